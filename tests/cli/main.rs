//! What a person types and gets back: tables, JSON, exit codes, questions. The supervisor is a fake
//! that speaks the protocol over a socket.
#![allow(clippy::unwrap_used, reason = "clippy knows only test functions as tests")]

mod fake;

use std::{
    io::{BufRead, BufReader},
    os::unix::net::UnixListener,
    process::{Command, Stdio},
};

use everhook::domain::{
    api::{LogLine, Progress, Refusal, RefusalKind, Request, Saying, Target, note_folder, note_name},
    model::At,
};
use serde_json::{Value, json};

use fake::{Answer, Fake, Ran, changed, everhook, on_terminal, said};

const AT: &str = "2026-11-25T04:15:39.120Z";

fn status() -> Value {
    let instance = |name: &str, state: &str, more: Value| {
        let mut one = json!({"name": name, "state": state, "pid": null, "since": AT, "restarts": 0, "reason": null,
            "status": null, "last_exit": null, "next_start_at": null, "release": null, "sockets": {},
            "memory_bytes": null, "cpu_s": null});
        one.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        one
    };
    let app = |name: &str, state: &str, instances: Vec<Value>| {
        json!({"name": name, "state": state, "release": null, "commit": null, "behind": null, "frozen": null, "awaiting_approval": [], "reason": null, "watch": null,
            "instances": instances})
    };
    let busy = json!({"pid": 42, "restarts": 3, "release": "7-1a2b3c4", "memory_bytes": 12_582_912, "cpu_s": 1.26});
    let down = json!({"reason": "exited with 1 \u{1b}[31m five times within a minute, so it was given up on"});
    json!({
        "supervisor": {"pid": 1, "version": "0.1.0", "since": AT, "config": "/etc/supervisor.ron",
            "config_differs": true, "state_dir": "/var/lib/everhook", "logger": {"pid": 13, "restarts": 0},
            "listeners": [{"bind": "127.0.0.1:9988", "serve": ["hooks"], "state": "backoff", "pid": null, "restarts": 1,
                "reason": "killed by signal 9 (KILL)"}]},
        "apps": [
            app("api", "failed", vec![instance("api.1", "failed", down)]),
            app("blog", "ready", vec![instance("blog.1", "ready", busy), instance("blog.2", "stopped", json!({}))]),
            app("docs", "deployed", vec![]),
        ],
    })
}

fn reply(kind: &str, body: &Value) -> Saying {
    Saying::Done(serde_json::from_value(json!({ kind: body })).unwrap())
}

fn deploy(state: &str, reason: Option<&str>) -> Value {
    json!({"id": 8, "app": "blog", "state": state, "step": "check", "reason": reason, "commit": "1a2b3c4".repeat(6)[..40],
        "previous_commit": null, "ref": "refs/heads/master", "subject": "Say hello", "author": "Ann",
        "by": {"kind": "delivery", "id": 31}, "approved_by": null, "release": null, "superseded_by": null, "queued_at": AT,
        "started_at": AT, "ended_at": null, "steps": [{"name": "check", "command": "npm test", "state": "failed",
            "duration_s": 3.1, "exit": {"code": 1, "signal": null}}]})
}

#[test]
fn status_is_a_table_with_reasons() {
    let fake = Fake::saying(reply("status", &status()));
    let ran = fake.run(&["status"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert!(lines[0].starts_with("APP     STATE     SINCE"), "{}", ran.out);
    assert!(lines[0].ends_with("PID  RESTARTS  RELEASE    CPU   MEM"), "{}", ran.out);
    assert!(lines[1].starts_with("api     failed "), "{}", ran.out);
    assert_eq!(lines[2], "  exited with 1 ^[[31m five times within a minute, so it was given up on");
    assert!(lines[3].starts_with("blog.1  ready "), "{}", ran.out);
    assert!(lines[3].ends_with("42   3         7-1a2b3c4  1.3s  12.0M"), "{}", ran.out);
    assert!(lines[4].starts_with("blog.2  stopped "), "{}", ran.out);
    assert!(lines[5].starts_with("docs    deployed "), "{}", ran.out);
    assert_eq!(lines[6], "the listener on 127.0.0.1:9988 is backoff: killed by signal 9 (KILL)");
    assert!(lines[7].starts_with("/etc/supervisor.ron differs from what runs"), "{}", ran.out);
    assert!(!ran.out.contains('\u{1b}'), "no colours in a pipe");
    for alias in ["ls", "ps"] {
        assert_eq!(fake.run(&[alias]).out, ran.out);
    }
    fake.run(&["status", "blog", "api.1"]);
    assert_eq!(fake.requests()[3], json!({"status": {"apps": [{"app": "blog"}, {"instance": "api.1"}]}}));
}

#[test]
fn on_a_terminal_rows_are_cut_and_coloured() {
    let fake = Fake::saying(reply("status", &status()));
    let (code, shown) = on_terminal(fake.command(&["status"]), "");
    assert_eq!(code, 0);
    assert!(shown.contains("\u{1b}[31mfailed\u{1b}[0m"), "{shown}");
    assert!(shown.contains("RESTARTS") && !shown.contains("MEM") && !shown.contains("12.0M"), "{shown}");
    assert!(
        shown.contains("^[[31m five times within a minute, so it was given up on"),
        "a reason is never cut: {shown}"
    );
    let mut plain = fake.command(&["status"]);
    plain.env("NO_COLOR", "1");
    assert!(!on_terminal(plain, "").1.contains('\u{1b}'));
}

#[test]
fn json_is_the_documents_of_the_api() {
    let fake = Fake::saying(reply("status", &status()));
    assert_eq!(fake.run(&["status", "--json"]).json(), status());

    let fake = Fake::new(|request| {
        let done = match request {
            Request::History { .. } => reply("deploys", &json!([deploy("failed", Some("no"))])),
            Request::Deploy { id: 8 } => {
                reply("deploy", &json!({"deploy": deploy("failed", Some("no")), "log": ["a", "b"]}))
            }
            Request::Audit { .. } => reply("audit", &json!([])),
            other => panic!("{other:?}"),
        };
        Answer::Whole(vec![said(&done)])
    });
    assert_eq!(fake.run(&["history", "blog", "-n", "3", "--json"]).json(), json!([deploy("failed", Some("no"))]));
    let mut with_log = deploy("failed", Some("no"));
    with_log["log"] = json!(["a", "b"]);
    assert_eq!(fake.run(&["history", "show", "8", "--json"]).json(), with_log);
    assert_eq!(fake.run(&["audit", "--json"]).json(), json!([]));
    fake.run(&["history", "show"]);
    let asked = fake.requests();
    assert_eq!(asked[0], json!({"history": {"app": "blog", "n": 3}}));
    assert_eq!(asked[3], json!({"history": {"app": "show", "n": 20}}), "an app may be named show");
}

#[test]
fn one_deploy_is_shown_with_steps_and_log() {
    let fake =
        Fake::saying(reply("deploy", &json!({"deploy": deploy("failed", Some("no test")), "log": ["one", "two"]})));
    let ran = fake.run(&["history", "show", "8"]);
    for part in [
        "deploy 8 of blog: failed at check: no test",
        "by       delivery 31",
        "failed with 1 in 3.1s  npm test",
        "LOG\none\ntwo\n",
    ] {
        assert!(ran.out.contains(part), "{part:?} in {}", ran.out);
    }
}

#[test]
fn deliveries_say_what_became_of_them() {
    let delivery = json!({"id": 32, "sender_id": "x", "at": AT, "app": "blog", "dialect": "github", "event": "push",
        "ref": "refs/heads/master", "commit": null, "sender": "ann", "address": "192.0.2.1", "state": "accepted",
        "reason": null, "deploys": [7], "duplicate_of": null});
    let mut again = delivery.clone();
    again["state"] = json!("duplicate");
    again["duplicate_of"] = json!(31);
    again["deploys"] = json!([]);
    let fake = Fake::saying(reply("deliveries", &json!([delivery, again])));
    let out = fake.run(&["deliveries"]).out;
    assert!(
        out.contains(
            "2026-11-25 04:15:39  blog  github  push   refs/heads/master  -       ann     accepted: deploy 7\n"
        ),
        "{out}"
    );
    assert!(out.contains("duplicate of 31\n"), "{out}");
    let fake = Fake::saying(reply("delivery", &delivery));
    assert_eq!(fake.run(&["deliveries", "show", "32", "--json"]).json(), delivery);
}

#[test]
fn refusals_have_their_exit_codes() {
    let codes = [
        (RefusalKind::Unknown, 5),
        (RefusalKind::Forbidden, 5),
        (RefusalKind::NotFound, 4),
        (RefusalKind::Failed, 1),
        (RefusalKind::BadRequest, 2),
        (RefusalKind::TimedOut, 6),
        (RefusalKind::Unavailable, 1),
    ];
    for (kind, code) in codes {
        let fake = Fake::refusing(kind, "app \"blgo\" does not exist; did you mean \"blog\"?");
        for words in
            [&["status", "blgo"][..], &["restart", "blgo"], &["logs", "blgo"], &["logs", "blgo.1"], &["deploy", "blgo"]]
        {
            let ran = fake.run(words);
            assert_eq!(ran.code, code, "{words:?} {kind:?}: {}", ran.err);
            assert_eq!(ran.err, "everhook: app \"blgo\" does not exist; did you mean \"blog\"?\n");
        }
    }
}

#[test]
fn without_a_supervisor_the_socket_and_the_way_out_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let name = socket.to_str().unwrap();
    let ran = Ran::of(everhook(&["status", "--socket", name]).output().unwrap());
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains(name) && ran.err.contains("everhook run"), "{}", ran.err);
    // A supervisor that was killed leaves its socket behind. A child that a test beside this one starts may have
    // it for a moment more, but nobody listens there.
    let listener = UnixListener::bind(&socket).unwrap();
    rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
    drop(listener);
    let ran = Ran::of(everhook(&["status", "--json"]).env("EVERHOOK_SOCKET", &socket).output().unwrap());
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains("nobody listens"), "{}", ran.err);
    // One that goes away in the middle has not answered.
    let fake = Fake::new(|_| Answer::Whole(vec![]));
    assert_eq!(fake.run(&["restart", "blog"]).code, 3);
}

#[test]
fn wrong_usage_is_2_and_help_is_one_screen() {
    for words in [
        &["statsu"][..],
        &["stop"],
        &["wait", "blog"],
        &["wait", "blog", "--for", "redy"],
        &["start", "Blog!"],
        &["history", "show", "x"],
        &["history", "a", "b"],
        &["restart", "blog", "--all"],
        &["signal", "blog", "NOPE"],
    ] {
        let ran = Ran::of(everhook(words).args(["--socket", "/nonexistent"]).output().unwrap());
        assert_eq!(ran.code, 2, "{words:?}: {}", ran.err);
        assert!(ran.err.starts_with("everhook: "), "{}", ran.err);
    }
    let bare = Ran::of(everhook(&[]).output().unwrap());
    assert_eq!(bare.code, 0);
    let long = Ran::of(everhook(&["--help"]).output().unwrap());
    assert_eq!((long.code, long.out.trim_end()), (0, bare.out.trim_end()));
    for verb in [
        "status",
        "logs",
        "events",
        "history",
        "deliveries",
        "audit",
        "start",
        "stop",
        "restart",
        "signal",
        "wait",
        "deploy",
        "rollback",
        "check",
        "reload",
        "run",
        "shutdown",
        "serve",
    ] {
        assert!(bare.out.contains(verb), "{verb}");
        assert_eq!(Ran::of(everhook(&["help", verb]).output().unwrap()).code, 0, "{verb}");
    }
}

#[test]
fn changes_wait_unless_told_otherwise() {
    let fake = Fake::saying(changed("blog is ready"));
    assert_eq!(fake.run(&["restart", "blog"]).out, "blog is ready\n");
    fake.run(&["start", "--all", "--no-wait"]);
    fake.run(&["wait", "blog.2", "--for", "done", "--timeout", "1m30s"]);
    fake.run(&["signal", "blog", "HUP"]);
    fake.run(&["rollback", "blog", "--to", "7-1a2b3c4"]);
    let asked = fake.asked.lock().unwrap();
    assert_eq!(asked.iter().map(|ask| ask.wait).collect::<Vec<_>>(), [true, false, true, true, true]);
    assert!(matches!(&asked[1].request, Request::Start { apps } if apps[..] == [Target::All]));
    assert_eq!(asked[2].timeout, Some(std::time::Duration::from_secs(90)));
    drop(asked);
    let asked = fake.requests();
    assert_eq!(asked[2], json!({"wait_for": {"app": {"instance": "blog.2"}, "state": "done"}}));
    assert_eq!(asked[3], json!({"signal": {"app": {"app": "blog"}, "signal": "SIGHUP"}}));
    assert_eq!(asked[4], json!({"rollback": {"app": "blog", "to": "7-1a2b3c4"}}));
}

#[test]
fn a_failed_start_shows_the_last_words() {
    let line = LogLine { at: None, instance: "api.1".into(), stream: "err".into(), line: "cannot bind".into() };
    let line = serde_json::to_value(line).unwrap();
    let fake = Fake::new(move |request| {
        Answer::Whole(match request {
            Request::Start { .. } => {
                vec![said(&Saying::Refused(Refusal::new(RefusalKind::Failed, "api.1 exited with 1")))]
            }
            Request::Status { .. } => vec![said(&reply("status", &status()))],
            Request::Logs(logs) if logs.n == Some(10) => vec![line.clone(), end()],
            other => panic!("{other:?}"),
        })
    });
    let ran = fake.run(&["start", "api"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, "api.1 | cannot bind\neverhook: api.1 exited with 1\n"));
    let logs = &fake.requests()[2]["logs"];
    assert_eq!(logs["apps"], json!([{"instance": "api.1"}]), "only of what is down");
}

/// Asks for confirmation until it is given.
fn hurt() -> Fake {
    Fake::new(|request| {
        let what = match request {
            Request::Stop { confirmed: true, .. } => changed("db is stopped"),
            _ => Saying::Refused(Refusal::new(RefusalKind::NeedsConfirmation, "api needs db and would stop with it")),
        };
        Answer::Whole(vec![said(&what)])
    })
}

#[test]
fn stop_names_whom_it_hurts_and_asks() {
    let fake = hurt();
    let ran = fake.run(&["stop", "db"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("api needs db and would stop with it") && ran.err.contains("-y"), "{}", ran.err);
    assert_eq!(fake.run(&["stop", "db", "-y"]).out, "db is stopped\n");

    let (code, shown) = on_terminal(hurt().command(&["stop", "db"]), "y\n");
    assert!(code == 0 && shown.contains("api needs db") && shown.contains("db is stopped"), "{code} {shown}");
    let fake = hurt();
    let (code, shown) = on_terminal(fake.command(&["stop", "db"]), "\n");
    assert!(code == 2 && shown.contains("nothing was stopped"), "{code} {shown}");
    assert_eq!(fake.requests().len(), 1);
}

fn progress(state: &str, steps: &Value) -> Value {
    let mut view = deploy(state, None);
    view["steps"] = steps.clone();
    let view = serde_json::from_value(view).unwrap();
    said(&Saying::Progress(Progress::Deploy(Box::new(view))))
}

#[test]
fn a_deploy_is_shown_live() {
    let fake = Fake::new(|_| {
        let step = |name: &str, state: &str, seconds: Option<f64>| json!({"name": name, "command": "npm test", "state": state, "duration_s": seconds, "exit": null});
        let mut live = deploy("live", None);
        live["release"] = json!("8-1a2b3c4");
        let checking = progress("checking", &json!([step("check", "running", None)]));
        let checked = json!([step("check", "done", Some(3.12)), step("build", "running", None)]);
        Answer::Whole(vec![
            progress("fetching", &json!([])),
            checking.clone(),
            checking,
            progress("building", &checked),
            said(&reply("deploy", &json!({"deploy": live, "log": []}))),
        ])
    });
    let ran = fake.run(&["deploy", "blog", "--rev", "v1"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(
        lines,
        [
            "deploy 8 of blog: fetching 1a2b3c4 Say hello",
            "deploy 8 of blog: checking",
            "  check         running  npm test",
            "  check         done in 3.1s  npm test",
            "deploy 8 of blog: building",
            "  build         running  npm test",
            "deploy 8 of blog: live, release 8-1a2b3c4",
        ]
    );
    assert_eq!(fake.requests()[0], json!({"deploy_app": {"app": "blog", "rev": "v1"}}));
}

#[test]
fn a_deploy_that_is_not_live_says_why() {
    let fake = Fake::saying(reply(
        "deploy",
        &json!({"deploy": deploy("failed", Some("`npm test` exited with 1")), "log": ["1 failing"]}),
    ));
    let ran = fake.run(&["deploy", "blog"]);
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.err,
        "the last lines of its log:\n  1 failing\neverhook: deploy 8 of blog: failed at check: `npm test` exited with 1\n"
    );
    // Nothing to do is not a failure: what was asked for is so.
    let mut same = deploy("skipped", Some("already live"));
    same["previous_commit"] = same["commit"].clone();
    assert_eq!(Fake::saying(reply("deploy", &json!({"deploy": same, "log": []}))).run(&["deploy", "blog"]).code, 0);
    let older = deploy("skipped", Some("older"));
    assert_eq!(Fake::saying(reply("deploy", &json!({"deploy": older, "log": []}))).run(&["deploy", "blog"]).code, 1);
    let fake = Fake::saying(changed("deploy 9 of blog is queued"));
    assert_eq!(fake.run(&["deploy", "blog", "--detach"]).out, "deploy 9 of blog is queued\n");
    assert!(!fake.asked.lock().unwrap()[0].wait);
}

#[test]
fn ctrl_c_leaves_the_work_running_and_says_so() {
    let fake = Fake::new(|_| Answer::Open(vec![progress("building", &json!([]))]));
    let mut child = fake.command(&["deploy", "blog"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("building"), "{line}");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 130);
    assert!(ran.err.contains("the work goes on") && ran.err.contains("everhook history show 8"), "{}", ran.err);
}

#[test]
fn a_supervisor_that_says_nothing_is_not_waited_for_beyond_the_timeout() {
    let fake = Fake::new(|_| Answer::Open(vec![]));
    let ran = fake.run(&["restart", "blog", "--timeout", "10ms"]);
    assert_eq!(ran.code, 6, "{}", ran.err);
}

fn log_lines(lines: &'static [(&'static str, &'static str, &'static str)]) -> Fake {
    Fake::new(move |request| {
        let line = |(instance, stream, line): &(&str, &str, &str)| json!({"at": null, "instance": instance, "stream": stream, "line": line});
        Answer::Whole(match request {
            Request::Logs(_) => lines.iter().map(line).chain([end()]).collect(),
            Request::Status { .. } => vec![said(&reply("status", &status()))],
            other => panic!("{other:?}"),
        })
    })
}

/// Tells a client of `logs` that it has everything.
fn end() -> Value {
    said(&Saying::Done(everhook::domain::api::Reply::Lines(Vec::new())))
}

#[test]
fn logs_are_prefixed_where_several_speak_and_raw_in_a_pipe() {
    let fake = log_lines(&[("api.1", "out", "\u{1b}[31mred"), ("blog.2", "err", "x")]);
    assert_eq!(fake.run(&["logs"]).out, "api.1  | \u{1b}[31mred\nblog.2 | x\n");
    assert_eq!(fake.run(&["logs", "api.1", "--stderr", "-n", "2"]).out, "\u{1b}[31mred\nx\n");
    let asked = fake.requests().into_iter().filter(|request| request.get("logs").is_some()).collect::<Vec<_>>();
    let want = json!({"apps": [], "follow": false, "n": 20, "previous": false, "stderr": false, "since": null,
        "grep": null, "deploy": null, "resume": []});
    assert_eq!(asked[0], json!({"logs": want}));
    assert_eq!((&asked[1]["logs"]["n"], &asked[1]["logs"]["stderr"]), (&json!(2), &json!(true)));
    fake.run(&["logs", "api.1", "--previous"]);
    assert_eq!(fake.requests().last().unwrap()["logs"]["n"], json!(null), "all of the run before");
    let (_, shown) = on_terminal(fake.command(&["logs", "api.1"]), "");
    assert!(shown.contains("^[[31mred"), "{shown}");

    let first = fake.run(&["logs", "--json"]).out;
    let first: Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
    assert_eq!(first, json!({"at": null, "instance": "api.1", "stream": "out", "line": "\u{1b}[31mred"}));
}

#[test]
fn events_are_one_a_line_and_can_be_followed() {
    let event = json!({"id": 1, "at": AT, "app": "blog", "instance": "blog.1", "kind": "instance", "from": "starting",
        "to": "ready", "cause": "answered 200", "detail": null});
    let list = reply("events", &json!([event]));
    let fake = Fake::saying(list);
    let out = fake.run(&["events", "--since", AT]).out;
    assert_eq!(out, "2026-11-25 04:15:39  blog.1          instance    starting → ready        answered 200\n");
    let one: Value = serde_json::from_str(&fake.run(&["events", "--json"]).out).unwrap();
    assert_eq!(one, event);
    let since: At = AT.parse().unwrap();
    assert_eq!(fake.requests()[0], json!({"events": {"app": null, "n": 50, "since": since, "follow": false}}));
    fake.run(&["events", "blog.2"]);
    let of_one = json!({"events": {"app": "blog", "number": 2, "n": 50, "since": null, "follow": false}});
    assert_eq!(fake.requests().last(), Some(&of_one));

    let item = json!({"ticket": 1, "what": {"event": event}});
    let fake = Fake::new(move |_| Answer::Open(vec![item.clone(), item.clone()]));
    let mut child = fake.command(&["events", "blog", "-f", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let out = BufReader::new(child.stdout.as_mut().unwrap());
    assert_eq!(out.lines().take(2).map(Result::unwrap).filter(|line| line.contains("blog.1")).count(), 2);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn shutdown_waits_until_the_supervisor_is_gone() {
    let fake = Fake::saying(changed("stopping 3 apps"));
    assert_eq!(fake.run(&["shutdown", "--now"]).out, "stopping 3 apps\n");
    assert_eq!(fake.requests()[0], json!({"shutdown": {"now": true}}));
    assert_eq!(Fake::new(|_| Answer::Whole(vec![])).run(&["shutdown"]).code, 0);
}

#[test]
fn a_reload_that_is_refused_shows_the_fault() {
    let fake = Fake::refusing(
        RefusalKind::Failed,
        "/etc/supervisor.ron:3:14: unknown field `comand`; did you mean `command`?",
    );
    let ran = fake.run(&["reload"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("supervisor.ron:3:14") && ran.err.contains("command"), "{}", ran.err);
    let fake = Fake::saying(reply("plan", &json!({"lines": ["restart blog", "nothing else"]})));
    assert_eq!(fake.run(&["reload"]).out, "restart blog\nnothing else\n");
}

#[test]
fn a_deploy_is_told_from_what_the_store_says_in_the_end() {
    let fake = Fake::new(|request| {
        Answer::Whole(match request {
            Request::DeployApp { .. } => {
                let refusal = Refusal::new(RefusalKind::Failed, "deploy 8 of blog failed");
                vec![progress("checking", &deploy("checking", None)["steps"]), said(&Saying::Refused(refusal))]
            }
            Request::Deploy { id: 8 } => {
                let failed = deploy("failed", Some("`npm test` exited with 1"));
                vec![said(&reply("deploy", &json!({"deploy": failed, "log": ["1 failing"]})))]
            }
            other => panic!("{other:?}"),
        })
    });
    let ran = fake.run(&["deploy", "blog"]);
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("  check         failed with 1 in 3.1s  npm test\n"), "{}", ran.out);
    assert!(ran.err.contains("1 failing\neverhook: deploy 8 of blog: failed at check: `npm test`"), "{}", ran.err);
}

/// A folder with this `supervisor.ron`, and the client's command for it.
fn configured(words: &[&str], config: &str) -> (tempfile::TempDir, Command) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("supervisor.ron"), config).unwrap();
    let mut command = everhook(words);
    command.current_dir(folder.path());
    (folder, command)
}

#[test]
fn check_tells_faults_with_their_place_and_delays() {
    let check = |config: &str| Ran::of(configured(&["check"], config).1.output().unwrap());
    let ran = check(r#"(state_dir: "state", apps: {"blog": (command: ["sleep", "9"])})"#);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("blog: restarts after 100ms"), "{}", ran.out);
    assert!(ran.out.ends_with("supervisor.ron is good\n"), "{}", ran.out);

    let ran = check("(apps: {\n \"blog\": (comand: [\"sleep\"]),\n})");
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(ran.err.contains("supervisor.ron:2:") && ran.err.contains("command"), "{}", ran.err);

    let ran = check(r#"(state_dir: "state", apps: {"blog": (command: ["sleep", "9"], user: "nobody-has-this-name")})"#);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("nobody-has-this-name") && ran.err.ends_with("cannot run: blog\n"), "{}", ran.err);

    // What is named and cannot be used is as wrong as what is written.
    let ran = check("(state_dir: \"state\", apps: {\"blog\": (command: [\"sleep\", \"9\"],\n env_file: \"nowhere\")})");
    assert_eq!(ran.code, 1, "{}", ran.out);
    assert!(ran.out.contains("blog: cannot run: env_file") && ran.out.contains("supervisor.ron:2:12)"), "{}", ran.out);
    assert!(ran.err.ends_with("cannot run: blog\n"), "{}", ran.err);
    let deployed = r#"(state_dir: "state", apps: {"blog": (command: ["sleep", "9"], deploy: (repo: "/srv/blog", secret: File("@")))})"#;
    let ran = check(&deployed.replace('@', "nowhere"));
    assert_eq!(ran.code, 1, "{}", ran.out);
    assert!(ran.err.contains("app \"blog\": the secret /") && ran.err.contains("nowhere: No such file"), "{}", ran.err);
    let ran = check(&deployed.replace('@', "state/made"));
    assert_eq!(ran.code, 0, "made at the start: {}", ran.err);

    if nix::unistd::geteuid().is_root() {
        let (folder, mut command) = configured(&["check"], "(state_dir: \"state\", apps: {})");
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let ran = Ran::of(command.output().unwrap());
        assert!(ran.code == 0 && ran.err.contains("warning: ") && ran.err.contains("chmod go-w"), "{}", ran.err);
    }

    let missing = Ran::of(everhook(&["check", "-c", "/nonexistent/supervisor.ron"]).output().unwrap());
    assert_eq!(missing.code, 1);
    assert!(missing.err.contains("/nonexistent/supervisor.ron: No such file"), "{}", missing.err);
}

#[test]
fn check_diff_asks_the_supervisor() {
    let fake = Fake::saying(reply("plan", &json!({"lines": ["blog: restart (command)"]})));
    let (_folder, mut command) = configured(&["check", "--diff"], "()");
    let ran = Ran::of(command.arg("--socket").arg(fake.socket()).output().unwrap());
    assert_eq!((ran.code, ran.out.as_str()), (0, "blog: restart (command)\n"));
    let (_folder, mut command) = configured(&["check", "--diff"], r#"(state_dir: "state")"#);
    assert_eq!(Ran::of(command.output().unwrap()).code, 3);
}

#[test]
fn the_config_tells_where_the_supervisor_is_and_its_note_where_the_config_cannot() {
    let fake = Fake::saying(reply("status", &status()));
    let run_dir = fake.socket().parent().unwrap().display().to_string();
    let (_folder, mut command) = configured(&["status", "--json"], &format!("(run_dir: {run_dir:?})"));
    assert_eq!(Ran::of(command.output().unwrap()).json(), status());

    let (folder, mut command) = configured(&["status", "--json"], "(apps: {");
    let ran = Ran::of(command.output().unwrap());
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains("supervisor.ron:1:"), "{}", ran.err);
    // Root's notes have a fixed place, which a test leaves alone.
    if nix::unistd::geteuid().is_root() {
        return;
    }
    let session = folder.path().join("session");
    let config = folder.path().canonicalize().unwrap().join("supervisor.ron");
    let note = note_folder(1, Some(&session)).unwrap();
    std::fs::create_dir_all(&note).unwrap();
    std::fs::write(note.join(note_name(&config)), run_dir).unwrap();
    let ran = Ran::of(command.env("XDG_RUNTIME_DIR", &session).output().unwrap());
    assert_eq!(ran.json(), status());
    assert!(ran.err.starts_with("everhook: warning: ") && ran.err.contains("supervisor.ron:1:"), "{}", ran.err);
}

#[test]
fn a_long_way_to_the_socket_is_no_hindrance() {
    let folder = tempfile::tempdir().unwrap();
    let long = folder.path().join("x".repeat(150));
    let fake = Fake::saying(reply("status", &status()));
    std::os::unix::fs::symlink(fake.socket().parent().unwrap(), &long).unwrap();
    let mut command = everhook(&["status", "--json", "--socket"]);
    assert_eq!(Ran::of(command.arg(long.join("control.sock")).output().unwrap()).json(), status());
}
