//! Starts, ends and states of apps, from outside.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    os::unix::fs::chown,
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use serde_json::Value;
use server::{Server, text};

/// The transitions of an app, oldest first.
fn transitions(server: &Server, app: &str) -> Vec<(String, String)> {
    let word = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let events = server.events();
    events
        .iter()
        .filter(|e| e["app"] == app && e["kind"] == "instance")
        .map(|e| (word(&e["to"]), word(&e["cause"])))
        .collect()
}

/// What the apps of a test wrote into `@DIR@/said`, in order.
fn said(server: &Server) -> Vec<String> {
    let text = fs::read_to_string(server.path().join("said")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_crash_loop_slows_down_gives_up_and_can_be_revived() {
    let server = Server::with_apps(
        r#""bad": (command: "echo >>runs; echo last words $(wc -l <runs); exit 3", ready: Fd(fd: 3),
             restart: (first: "20ms", factor: 3.0, jitter: 0.0, give_up: (restarts: 4, within: "5m"))),
           "good": (command: ["sleep", "1000"], ready: Immediate)"#,
    )
    .started();
    server.wait_state("good", "ready");
    let good = server.main_pid("good");
    let app = server.wait_state("bad", "failed");
    let instance = &app["instances"][0];
    assert_eq!((&instance["restarts"], &instance["pid"]), (&4.into(), &Value::Null), "{instance}");
    assert_eq!(instance["last_exit"]["code"], 3);
    assert!(instance["reason"].as_str().unwrap().contains("gave up after 4 restarts within 5m"), "{instance}");

    let causes: Vec<_> = transitions(&server, "bad").into_iter().filter(|(to, _)| to == "backoff").collect();
    let delays: Vec<_> = causes.iter().map(|(_, cause)| cause.rsplit(' ').next().unwrap()).collect();
    assert_eq!(delays, ["20ms", "60ms", "180ms", "540ms"], "{causes:?}");
    assert!(causes.iter().all(|(_, cause)| cause.contains('3')), "{causes:?}");
    let ends = server.until("what it said last", |s| {
        let ends: Vec<_> = s.events().into_iter().filter(|e| e["to"] == "backoff" || e["to"] == "failed").collect();
        (ends.len() == 5).then_some(ends)
    });
    // Of each run its own, not those of the runs before.
    let words: Vec<_> = ends.iter().map(|e| e["detail"].as_str().unwrap_or_default()).collect();
    assert_eq!(words, ["last words 1", "last words 2", "last words 3", "last words 4", "last words 5"]);
    assert!(server.instance("bad")["reason"].as_str().unwrap().ends_with("its last words: last words 5"));

    fs::write(server.path().join("mended"), "").unwrap();
    server.edit_config("; exit 3", "; test -e @DIR@/mended && echo >&3 && exec sleep 1000; exit 3");
    server.ok(&["reload"]);
    server.wait_state("bad", "ready");
    fs::remove_file(server.path().join("mended")).unwrap();
    kill(Pid::from_raw(server.main_pid("bad")), Signal::SIGKILL).unwrap();
    server.wait_state("bad", "failed");
    let said = server.fails(1, &["restart", "bad"]);
    assert!(said.contains("last words") && said.contains("exit"), "{said}");
    fs::write(server.path().join("mended"), "").unwrap();
    server.ok(&["restart", "bad"]);
    assert_eq!(server.app("bad")["state"], "ready");
    assert_eq!(server.main_pid("good"), good, "the other app was left alone");
}

#[test]
fn who_has_failed_for_a_while_says_when_it_is_tried_again() {
    let server = Server::with_apps(
        r#""later": (command: "exit 3", restart: (first: "10ms", give_up: (restarts: 1, within: "5m"), retry_after: "1h")),
           "soon": (command: "echo >>runs; exit 3", restart: (first: "10ms", give_up: (restarts: 1, within: "5m"), retry_after: "100ms")),
           "never": (command: "exit 3", restart: (policy: Never))"#,
    )
    .started();
    for (app, is_told) in [("later", true), ("never", false)] {
        server.wait_state(app, "failed");
        assert_eq!(server.instance(app)["next_start_at"].is_string(), is_told, "{app}");
        assert_eq!(server.ok(&["status", app]).contains("next start in"), is_told, "{app}");
    }
    server.until("it was tried again, twice", |s| {
        let runs = fs::read_to_string(s.path().join("runs")).unwrap_or_default();
        (runs.lines().count() >= 5).then_some(())
    });
}

#[test]
fn a_start_that_fails_says_why_at_the_first_exit() {
    let server = Server::with_apps(
        r#""a": (command: "echo no database >&2; exit 4", enabled: true, ready: Fd(fd: 3), restart: (first: "10m")),
           "late": (command: ["sleep", "1000"], ready: Tcp(addr: "127.0.0.1:1", within: "300ms"), restart: (first: "10s"))"#,
    )
    .started();
    server.ok(&["stop", "a", "late"]);
    for verb in ["start", "restart"] {
        let said = server.fails(1, &[verb, "a"]);
        assert!(said.contains("no database") && said.contains('4'), "{verb}: {said}");
        let said = server.fails(1, &[verb, "late"]);
        assert!(said.contains("not ready within 300ms"), "{verb}: {said}");
        assert_eq!(server.app("a")["state"], "backoff", "everhook goes on trying");
    }
    assert!(server.instance("a")["next_start_at"].is_string());
    server.fails(4, &["start", "nobody"]);
    server.fails(2, &["start"]);
    server.fails(6, &["wait", "late", "--for", "ready", "--timeout", "100ms"]);
}

#[test]
fn policies_decide_what_an_end_means() {
    let apps = [
        ("Never", 0, "done"),
        ("OnFailure", 0, "done"),
        ("Never", 5, "failed"),
        ("OnFailure", 5, "failed"),
        ("Always", 0, "failed"),
    ];
    let config: String = apps
        .iter()
        .enumerate()
        .map(|(n, (policy, code, _))| {
            format!(
                "\"a{n}\": (command: \"exit {code}\", ready: Immediate, restart: (policy: {policy}, first: \"1ms\", give_up: (restarts: 2, within: \"5m\"))),\n"
            )
        })
        .collect();
    let server = Server::with_apps(&config).started();
    for (n, (policy, code, state)) in apps.iter().enumerate() {
        let app = server.wait_state(&format!("a{n}"), state);
        let restarts = app["instances"][0]["restarts"].as_i64().unwrap();
        let want = if *policy == "Never" || *state == "done" { 0 } else { 2 };
        assert_eq!(restarts, want, "{policy} {code}: {app}");
    }
}

#[test]
fn apps_start_in_order_and_end_in_reverse() {
    let app = |name: &str, after: &str, code: &str| {
        format!(
            r#""{name}": (after: [{after}], ready: Immediate, command: "trap 'echo end {name} >> @DIR@/said; exit 0' TERM; echo start {name} >> @DIR@/said; {code}"),"#
        )
    };
    let forever = "while :; do sleep 1000 & wait; done";
    let config = format!(
        r#"{} {} {} "once": (command: "echo once >> @DIR@/said", restart: (policy: OnFailure), ready: After("30s")),"#,
        app("a", "\"b\"", forever),
        app("b", "\"z\", \"once\"", forever),
        app("z", "\"once\"", forever)
    );
    let mut server = Server::with_apps(&config).started();
    server.wait_state("a", "ready");
    server.until("all have spoken", |s| (said(s).len() == 4).then_some(()));
    assert_eq!(said(&server)[0], "once");
    let causes: Vec<_> = server.events().iter().filter(|e| e["to"] == "starting").map(|e| e["app"].clone()).collect();
    assert_eq!(causes, ["once", "z", "b", "a"]);
    assert!(server.stop().success());
    assert_eq!(said(&server)[4..], ["end a", "end b", "end z"]);
}

#[test]
fn a_stop_holds_until_somebody_starts_it() {
    let mut server = Server::with_apps(
        r#""a": (command: ["sleep", "1000"], ready: Immediate), "b": (command: ["sleep", "1000"], ready: Immediate, after: ["a"])"#,
    )
    .started();
    server.wait_state("b", "ready");
    let said = server.fails(2, &["stop", "a"]);
    assert!(said.contains('b') && said.contains("-y"), "{said}");
    server.ok(&["stop", "a", "-y"]);
    server.ok(&["stop", "a", "-y"]);
    let down = server.path().join("state/apps/a/down");
    assert!(down.exists());
    server.ok(&["reload"]);
    for crash in [false, true] {
        if crash {
            server.kill();
        } else {
            assert!(server.stop().success());
        }
        server.start();
        server.wait_state("b", "ready");
        server.wait_state("a", "stopped");
        let a = server.instance("a");
        assert_eq!(a["pid"], Value::Null, "{a}");
        assert!(a["reason"].as_str().unwrap().contains("stopped"), "it says who: {a}");
    }
    server.ok(&["start", "a"]);
    server.ok(&["start", "a"]);
    assert!(!down.exists());
    let pid = server.main_pid("a");
    server.ok(&["restart", "a"]);
    assert_ne!(server.main_pid("a"), pid);
}

#[test]
fn who_waits_for_a_stop_hears_that_it_was_started_again() {
    let server = Server::with_apps(
        r#""deaf": (command: ["/bin/sh", "-c", "trap '' TERM; echo up >> @DIR@/said; while ! [ -e @DIR@/go ]; do sleep 0.02; done"],
            ready: Immediate, stop: (timeout: "1h"))"#,
    )
    .started();
    server.until("it is deaf", |s| (said(s) == ["up"]).then_some(()));
    let stops = server.client(&["stop", "deaf"]).stderr(Stdio::piped()).spawn().unwrap();
    server.wait_state("deaf", "stopping");
    server.ok(&["start", "deaf", "--no-wait"]);
    let told = stops.wait_with_output().unwrap();
    assert_eq!(told.status.code(), Some(1));
    assert!(String::from_utf8(told.stderr).unwrap().contains("deaf was started again"));
    fs::write(server.path().join("go"), "").unwrap();
    server.until("it runs anew", |s| (s.app("deaf")["state"] != "stopping").then_some(()));
}

#[test]
fn a_second_stop_kills() {
    let server = Server::with_apps(
        r#""stubborn": (command: "trap '' TERM; echo up; while :; do sleep 1000; done", stop: (timeout: "1h"))"#,
    )
    .started();
    server.until("it hears nothing", |s| s.ok(&["logs", "stubborn"]).contains("up").then_some(()));
    server.ok(&["stop", "stubborn", "--no-wait"]);
    let app = server.wait_state("stubborn", "stopping");
    assert!(app["instances"][0]["pid"].is_i64(), "{app}");
    server.ok(&["stop", "stubborn"]);
    let end = &server.instance("stubborn")["last_exit"];
    assert_eq!((&end["code"], &end["signal"]), (&Value::Null, &9.into()), "{end}");
}

/// It leaves when its file is there, and is deaf to everything else; the command of `stop` makes it.
#[test]
fn a_command_asks_it_to_leave() {
    let waits = "rm -f @DIR@/$EVERHOOK_APP.end; trap '' TERM; echo >&3; while ! test -e @DIR@/$EVERHOOK_APP.end; do sleep 0.02; done; exit 0";
    let hears = "trap 'echo heard > @DIR@/heard; exit 0' TERM; echo >&3; while :; do sleep 0.02; done";
    let server = Server::with_apps(&format!(
        r#""asked": (command: "{waits}", ready: Fd(fd: 3),
             stop: (command: "echo asked $EVERHOOK_APP $MAINPID; > @DIR@/asked.end; while :; do sleep 1000; done", timeout: "10m")),
           "refused": (command: "{hears}", ready: Fd(fd: 3), stop: (command: "exit 3", timeout: "10m")),
           "missing": (command: ["sleep", "1000"], ready: Immediate, stop: (command: ["@DIR@/none"], timeout: "10m")),
           "slow": (command: "{waits}", ready: Fd(fd: 3), stop: (command: "echo asked >> @DIR@/slow.said", timeout: "100ms"))"#
    ));
    let told = server.ok(&["check"]);
    assert!(told.contains("stops by `exit 3`, after 10m SIGTERM, after 10m SIGKILL"), "{told}");
    let mut server = server.started();
    let apps = ["asked", "refused", "missing", "slow"];
    apps.iter().for_each(|app| drop(server.wait_state(app, "ready")));
    let pid = server.main_pid("asked");
    server.ok(&["stop", "--all"]);
    let exit = |app: &str| server.instance(app)["last_exit"].clone();
    assert_eq!(exit("asked")["code"], 0, "the command that runs on holds nothing up");
    let said = format!("asked asked {pid}");
    server.until("its output is the app's", |s| s.ok(&["logs", "asked"]).contains(&said).then_some(()));
    assert!(server.path().join("heard").exists(), "the signal comes when the command fails");
    assert_eq!(exit("missing")["signal"], 15);
    assert_eq!(exit("slow")["signal"], 9, "the signal, and KILL, come in their time");
    let asked = fs::read_to_string(server.path().join("slow.said")).unwrap_or_default();
    assert!(asked.lines().count() <= 1, "it is asked once");
    server.until("why the signal came is told", |s| {
        let events = s.events();
        let mut causes = events.iter().filter_map(|e| e["cause"].as_str());
        causes.any(|cause| cause.contains("its stop command exited with 3")).then_some(())
    });

    // A restart asks as well, and so does the end of everhook.
    server.ok(&["start", "asked"]);
    let pid = server.main_pid("asked");
    server.ok(&["restart", "asked"]);
    server.wait_new_pid("asked", pid);
    assert!(server.stop().success());
    assert!(!server.log().contains("the time of a shutdown is over"), "{}", server.log());
}

#[test]
fn a_shutdown_kills_what_still_runs_when_its_time_is_over() {
    let deaf = "trap '' TERM; echo >&3; while :; do sleep 1000 & wait; done";
    let mut server = Server::new(&format!(
        r#"(state_dir: "@DIR@/state", shutdown: (timeout: "500ms"), apps: {{
"deaf": (command: "{deaf}", ready: Fd(fd: 3), stop: (timeout: "10m")),
"behind": (command: "{deaf}", ready: Fd(fd: 3), requires: ["deaf"], stop: (timeout: "20m")),
"quick": (command: ["sleep", "1000"], ready: Immediate),
}})"#
    ));
    let told = text(&server.cli(&["check"]));
    assert!(told.contains(":3:") && told.contains("app \"behind\" may take 20m to stop"), "{told}");
    assert!(!told.contains("\"quick\""), "{told}");
    server.start();
    server.wait_state("behind", "ready");
    let mains = ["deaf", "behind"].map(|app| server.main_pid(app));
    assert!(server.stop().success());
    assert!(server.log().contains("the time of a shutdown is over"), "{}", server.log());
    assert!(mains.iter().all(|pid| kill(Pid::from_raw(*pid), None).is_err()), "nothing is left");
}

#[test]
fn signals_and_waits_reach_an_app() {
    let server = Server::with_apps(
        r#""a": (ready: Immediate, restart: (policy: OnFailure),
             command: "trap 'echo hup >> @DIR@/said' HUP; trap 'exit 0' USR1; echo up >> @DIR@/said; while :; do sleep 1000 & wait; done")"#,
    )
    .started();
    server.ok(&["wait", "a", "--for", "ready", "--timeout", "20s"]);
    server.until("it is up", |s| (said(s) == ["up"]).then_some(()));
    for spelling in ["HUP", "SIGHUP", "1"] {
        let before = said(&server).len();
        server.ok(&["signal", "a", spelling]);
        server.until("it heard", |s| (said(s).len() > before).then_some(()));
    }
    server.ok(&["signal", "a.1", "USR1"]);
    server.ok(&["wait", "a", "--for", "done"]);
    assert_eq!(server.instance("a")["last_exit"]["code"], 0);
    let why = server.fails(1, &["signal", "a", "HUP"]);
    assert!(why.contains('a'), "{why}");
}

#[test]
fn status_tells_everything_and_absent_is_null() {
    let server = Server::with_apps(
        r#""a": (command: ["sleep", "1000"], ready: Immediate), "b": (command: "sleep 1000", enabled: false)"#,
    )
    .started();
    server.wait_state("a", "ready");
    let keys = |v: &Value| {
        let mut keys: Vec<_> = v.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys.join(" ")
    };
    let status = server.until("listener and logger are up", |s| {
        let status = s.status();
        let up =
            status["supervisor"]["listeners"][0]["state"] == "ready" && status["supervisor"]["logger"]["pid"].is_i64();
        up.then_some(status)
    });
    let supervisor = &status["supervisor"];
    assert_eq!(keys(supervisor), "config config_differs listeners logger pid since state_dir version");
    assert_eq!(supervisor["pid"], server.pid());
    assert_eq!(keys(&supervisor["listeners"][0]), "bind pid reason restarts serve state");
    assert_eq!(keys(&supervisor["logger"]), "pid restarts");
    for app in status["apps"].as_array().unwrap() {
        assert_eq!(keys(app), "awaiting_approval behind commit frozen instances name reason release state watch");
        let instance = &app["instances"][0];
        assert_eq!(
            keys(instance),
            "cpu_s last_exit memory_bytes name next_start_at pid reason release restarts since sockets state status"
        );
        assert_eq!(instance["last_exit"], Value::Null);
    }
    let (a, b) = (server.instance("a"), server.instance("b"));
    assert!(a["memory_bytes"].as_i64().unwrap() > 0 && a["cpu_s"].is_number() && a["reason"].is_null(), "{a}");
    assert_eq!((&b["state"], &b["memory_bytes"], &b["pid"]), (&"stopped".into(), &Value::Null, &Value::Null));
    server.edit_config("1000", "1001");
    assert_eq!(server.status()["supervisor"]["config_differs"], true);
}

#[test]
fn what_one_app_lacks_is_no_other_apps_problem() {
    let config = r#"(state_dir: "@DIR@/state", apps: {
"user": (command: ["sleep", "1000"], user: "no-such-user"),
"program": (command: ["no-such-program"], restart: (first: "1ms", give_up: (restarts: 1, within: "5m"))),
"folder": (command: ["sleep", "1000"], directory: "@DIR@/nowhere", restart: (first: "1ms", give_up: (restarts: 1, within: "5m"))),
"file": (command: ["sleep", "1000"], env_file: "@DIR@/no-such-env"),
"good": (command: ["sleep", "1000"]),
"off": (command: ["no-such-program"], enabled: false),
})"#;
    let server = Server::new(config).started();
    server.wait_state("good", "ready");
    for (app, line, names) in [
        ("user", 2, "no-such-user"),
        ("program", 3, "no-such-program"),
        ("folder", 4, "nowhere"),
        ("file", 5, "no-such-env"),
    ] {
        let app = server.wait_state(app, "failed");
        let reason = app["instances"][0]["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains(names), "{app}");
        assert!(reason.contains(&format!("supervisor.ron:{line}:")), "{app}");
    }
    assert_eq!(server.app("off")["state"], "stopped", "nobody wants it to run");
    assert_eq!(server.app("good")["state"], "ready");
}

#[test]
fn run_that_cannot_start_says_why() {
    let broken = Server::new("(state_dir: \"@DIR@/state\", aps: {})");
    let said = broken.fails(1, &["run"]);
    assert!(said.contains("supervisor.ron:1") && said.contains("apps"), "{said}");
    assert!(!broken.path().join("state").exists(), "nothing was made");
    let said = broken.fails(3, &["--socket", "/nonexistent/control.sock", "status"]);
    assert!(said.contains("/nonexistent/control.sock"), "{said}");

    let server = Server::with_apps(r#""a": (command: ["sleep", "1000"])"#).started();
    let said = server.fails(1, &["run"]);
    assert!(said.contains(&server.pid().to_string()), "{said}");
    server.ok(&["status"]);

    let beyond = Server::new("(state_dir: \"@DIR@/supervisor.ron/state\")");
    let said = beyond.fails(1, &["run"]);
    assert!(said.contains("supervisor.ron/state: Not a directory") && said.contains("another state_dir"), "{said}");

    if geteuid().is_root() {
        let foreign = Server::with_apps("");
        let state = foreign.path().join("state");
        fs::create_dir(&state).unwrap();
        chown(&state, Some(1), None).unwrap();
        let said = foreign.fails(1, &["run"]);
        assert!(said.contains(state.to_str().unwrap()) && said.contains("uid 1") && said.contains("chown"), "{said}");
    } else {
        println!("not root: a state_dir of another user is left out");
    }
}

#[test]
fn restarts_of_a_crash_loop_in_parallel_are_all_answered() {
    let server =
        Server::with_apps(r#""x": (command: ["false"], ready: Immediate, restart: (first: "1ms", max: "5ms"))"#)
            .started();
    let mut clients: Vec<_> = (0..40)
        .map(|_| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_everhook"));
            command.args(["restart", "x", "-c"]).arg(server.config());
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for client in clients.drain(..) {
        let output = client.wait_with_output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 1)), "{}", text(&output));
    }
    server.ok(&["status"]);
}

#[test]
fn a_folder_belongs_to_one_supervisor() {
    let server = Server::with_apps("").started();
    let first = server.json(&["status"])["supervisor"]["pid"].to_string();
    for (state, run, taken) in
        [("state", "state/run", "state"), ("state", "run", "state"), ("other", "state/run", "state/run")]
    {
        let dir = server.path().display();
        let config = server.path().join("second.ron");
        fs::write(&config, format!("(state_dir: \"{dir}/{state}\", run_dir: \"{dir}/{run}\", apps: {{}})")).unwrap();
        let second = std::process::Command::new(env!("CARGO_BIN_EXE_everhook"))
            .args(["run", "--config"])
            .arg(&config)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&second.stderr);
        assert_eq!(second.status.code(), Some(1), "{said}");
        assert!(said.contains(&first) && said.contains(&format!("{dir}/{taken} ")), "{said}");
    }
}

#[test]
fn the_log_has_what_its_level_lets_through() {
    let mut server = Server::new(
        r#"(state_dir: "@DIR@/state", http: [], log: (level: "warn"), echo: false, apps: {"a": (command: ["sleep", "1000"], ready: Immediate)})"#,
    );
    server.start();
    server.wait_state("a", "ready");
    server.ok(&["restart", "a"]);
    assert_eq!(server.log(), "");
    server.edit_config("\"warn\"", "\"info\"");
    server.ok(&["reload"]);
    server.ok(&["restart", "a"]);
    server.until("it says more", |s| s.log().contains("INFO").then_some(()));
}

/// A write lease holds up whoever opens the file until its holder lets go, or for 45 s: so does a file
/// system that does not answer.
#[test]
fn a_start_that_hangs_holds_up_no_other() {
    let server = Server::with_apps(
        r#""good": (command: ["sleep", "1000"], ready: Immediate),
           "hangs": (command: ["@DIR@/one"], ready: Immediate, enabled: false),
           "too": (command: ["@DIR@/two"], ready: Immediate, enabled: false)"#,
    );
    for name in ["one", "two"] {
        // By another process: a file that this one writes may be busy in a child of a test beside.
        let copied = Command::new("cp").arg("/bin/sleep").arg(server.path().join(name)).status().unwrap();
        assert!(copied.success());
    }
    let hold = "import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
held = [os.open(name, os.O_RDONLY) for name in sys.argv[1:]]
for fd in held: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('held', flush=True)
sys.stdin.read()";
    let mut holder = Command::new("python3");
    holder.args(["-c", hold, "one", "two"]).current_dir(server.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = holder.spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.take().unwrap()), &mut line).unwrap();
    assert_eq!(line, "held\n");

    let server = server.started();
    server.wait_state("good", "ready");
    server.edit_config(", enabled: false", ", restart: (policy: Never)");
    server.ok(&["reload", "--no-wait"]);
    for app in ["hangs", "too"] {
        server.wait_state(app, "starting");
    }
    let pid = server.main_pid("good");
    server.ok(&["restart", "good"]);
    assert_ne!(server.main_pid("good"), pid);
    for app in ["hangs", "too"] {
        assert_eq!((&server.app(app)["state"], &server.instance(app)["pid"]), (&"starting".into(), &Value::Null));
    }
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
    for app in ["hangs", "too"] {
        // It has no argument, which the one that was held up tells.
        server.wait_state(app, "failed");
        let instance = server.instance(app);
        assert_eq!(instance["last_exit"]["code"], 1, "{instance}");
    }
}

/// Ready for a moment, then gone: that is no success, and counts each time.
#[test]
fn who_ends_just_after_it_was_ready_is_given_up_too() {
    let server = Server::with_apps(
        r#""a": (command: "echo run >> @DIR@/said; sleep 1; exit 1", ready: After("10ms"),
             restart: (first: "10ms", give_up: (restarts: 2, within: "5m")))"#,
    )
    .started();
    let app = server.wait_state("a", "failed");
    let instance = &app["instances"][0];
    assert_eq!((&instance["restarts"], &instance["last_exit"]["code"]), (&2.into(), &1.into()), "{instance}");
    assert_eq!(said(&server).len(), 3);
    // Its end is written down with its last words, which are read first.
    let states = server.until("its end is written down", |s| {
        let states: Vec<_> = transitions(s, "a").into_iter().map(|(to, _)| to).collect();
        states.iter().any(|state| state == "failed").then_some(states)
    });
    let round = ["starting", "ready", "backoff"];
    assert_eq!(states, [&round[..], &round, &["starting", "ready", "failed"]].concat());
}

/// What a person asked for dies with the supervisor: the next one does what the config says, and so
/// does the one after it.
#[test]
fn a_restart_in_the_middle_of_a_kill_is_not_done_again() {
    let mut server = Server::with_apps(
        r#""a": (command: "echo run >> @DIR@/said; if [ -e @DIR@/slow ]; then exec sleep 1000; fi; exit 1",
             ready: Tcp(addr: "127.0.0.1:1", within: "10m"), restart: (give_up: (restarts: 0, within: "5m")))"#,
    )
    .started();
    server.wait_state("a", "failed");
    assert_eq!(said(&server).len(), 1);
    fs::write(server.path().join("slow"), "").unwrap();
    let mut client = server.client(&["restart", "a"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    server.until("it runs once more", |s| (said(s).len() == 2).then_some(()));
    server.wait_state("a", "starting");
    server.kill();
    assert!(!client.wait().unwrap().success(), "nobody answered");
    for runs in [3, 4] {
        server.start();
        server.wait_state("a", "starting");
        server.until("it runs once", |s| (said(s).len() >= runs).then_some(()));
        assert_eq!(said(&server).len(), runs);
        let asked = server.json(&["audit"]);
        let asked: Vec<_> = asked.as_array().unwrap().iter().filter(|row| row["action"] == "restart").collect();
        assert_eq!(asked.len(), 1, "{asked:?}");
        server.kill();
    }
    server.start();
}
