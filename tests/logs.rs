//! Reading logs from outside: by time, by what is in them, of several apps and of deploys, and over
//! kills of the logger.
#![allow(clippy::unwrap_used)]

#[path = "support/deploying.rs"]
mod deploying;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Seek},
    os::unix::fs::MetadataExt,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use deploying::{Gate, push};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use server::{LIMIT, Server};

/// A client of `logs`, and its lines as they come.
struct Follower {
    client: Child,
    lines: Receiver<String>,
}

impl Follower {
    fn new(server: &Server, args: &[&str]) -> Self {
        Self::of(server, &[&["logs"], args].concat())
    }

    /// Of what any command prints.
    fn of(server: &Server, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_everhook"));
        command.args(args).arg("--config").arg(server.config()).stdin(Stdio::null());
        command.env_remove("EVERHOOK_CONFIG").env_remove("EVERHOOK_SOCKET");
        let mut client = command.stdout(Stdio::piped()).spawn().unwrap();
        let read = BufReader::new(client.stdout.take().unwrap()).lines();
        let (told, lines) = channel();
        thread::spawn(move || read.map_while(Result::ok).all(|line| told.send(line).is_ok()));
        Self { client, lines }
    }

    fn next(&self) -> String {
        self.lines.recv_timeout(LIMIT).expect("a line comes")
    }

    fn ends(mut self) -> Option<i32> {
        assert!(self.lines.recv_timeout(LIMIT).is_err(), "nothing more comes");
        self.client.wait().unwrap().code()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

fn logger(server: &Server) -> Option<i64> {
    server.status()["supervisor"]["logger"]["pid"].as_i64()
}

fn kill_logger(server: &Server) {
    let pid = server.until("a logger runs", logger);
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    server.until("another logger runs", |s| logger(s).filter(|new| *new != pid));
}

#[test]
fn a_follower_goes_on_when_the_logger_is_killed() {
    let server = Server::with_apps(
        r#""a": (ready: Immediate, restart: (policy: Never), logs: (rotate: "20KiB", keep: 99),
        command: "while [ ! -e go ]; do echo waiting; sleep 0.05; done; i=0; while [ $i -lt 6000 ]; do i=$((i+1)); echo line $i; [ $((i % 20)) -gt 0 ] || sleep 0.01; done")"#,
    )
    .started();
    // Shells of other apps may write meanwhile: what is told stands in order, whole and once.
    let follower = Follower::new(&server, &["a", "-f", "-n", "0"]);
    let grep = Follower::new(&server, &["a", "-f", "-n", "0", "--grep", "00$|waiting"]);
    for client in [&follower, &grep] {
        assert_eq!(client.next(), "waiting", "it follows");
    }
    kill_logger(&server);
    std::fs::write(server.path().join("go"), "").unwrap();
    let next = |client: &Follower| std::iter::repeat_with(|| client.next()).find(|line| line != "waiting").unwrap();
    for i in 1..=6000 {
        assert_eq!(next(&follower), format!("line {i}"));
        if i % 100 == 0 {
            assert_eq!(next(&grep), format!("line {i}"));
        }
        if i % 1500 == 700 {
            kill_logger(&server);
        }
    }
    // An ordered end is an end.
    let mut server = server;
    server.wait_state("a", "done");
    assert_eq!(server.stop().code(), Some(0));
    assert_eq!(follower.ends(), Some(0));
}

#[test]
fn lines_of_many_apps_are_whole_and_have_their_instance() {
    let app = |i: usize| {
        format!(
            r#""app{i}": (ready: Immediate, restart: (policy: Never),
              command: "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo app{i} says $i; echo app{i} cries $i >&2; done")"#
        )
    };
    let server = Server::with_apps(&(0..20).map(app).collect::<Vec<_>>().join(",\n")).started();
    for i in 0..20 {
        server.wait_state(&format!("app{i}"), "done");
    }
    let follower = Follower::new(&server, &["-f", "-n", "200", "--all"]);
    let mut said: BTreeMap<(String, String), usize> = BTreeMap::new();
    for _ in 0..20 * 400 {
        let line = follower.next();
        let (name, text) = line.split_once('|').unwrap();
        let words: Vec<&str> = text.split(' ').skip(1).collect();
        let [app, verb, number] = words[..] else { panic!("{line:?}") };
        assert_eq!(name.trim(), format!("{app}.1"), "{line:?}");
        let count = said.entry((app.to_owned(), verb.to_owned())).or_default();
        *count += 1;
        assert_eq!(number, count.to_string(), "{line:?}");
    }
    assert_eq!(said.len(), 40);
}

#[test]
fn lines_are_found_by_time_and_by_what_is_in_them() {
    let server = Server::with_apps(
        r#""a": (logs: (format: Json), command: "echo early bird; until test -e late; do sleep 0.05; done; echo late worm; echo \"late \\\"bird\\\"\" >&2; exec sleep 1000"),
        "b": (logs: (stamp: Rfc3339), command: "echo a bee; exec sleep 1000")"#,
    )
    .started();
    let says = |app: &str, words: &str| {
        server.until(words, |s| s.ok(&["logs", app]).contains(words).then_some(()));
    };
    // What is captured by now has an earlier time.
    says("a", "early bird");
    fs::write(server.path().join("late"), "").unwrap();
    says("a", "late \"bird\"");
    says("b", "a bee");
    let found = |args: &[&str]| -> Vec<Value> {
        let lines = server.ok(&[args, &["--json"]].concat());
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let texts = |args: &[&str]| found(args).iter().map(|l| l["line"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(texts(&["logs", "a"]), ["early bird", "late worm", "late \"bird\""]);
    assert_eq!(texts(&["logs", "--grep", "^e.*bird|bee$"]), ["early bird", "a bee"]);
    let lines = found(&["logs", "a"]);
    let late = lines[1]["at"].as_str().unwrap();
    assert_eq!(texts(&["logs", "a", "--since", late]), ["late worm", "late \"bird\""]);
    assert_eq!(texts(&["logs", "a", "--since", late, "--stderr", "--grep", "b"]), ["late \"bird\""]);
    assert_eq!(texts(&["logs", "--since", "2001-01-01T00:00:00Z"]).len(), 4);
    let bee = &found(&["logs", "b"])[0];
    let at = bee["at"].as_str().unwrap();
    assert_eq!((at.len(), &bee["stream"]), (24, &"out".into()), "{bee}");
    assert_eq!(server.ok(&["logs", "b.1"]), format!("{at} a bee\n"), "people see the time too");
    let file = std::fs::read_to_string(server.path().join("state/logs/a/a.1.out.log")).unwrap();
    assert!(file.starts_with(&format!("{{\"at\":{}", lines[0]["at"])), "{file}");
    let bad = server.fails(2, &["logs", "a", "--grep", "a(b"]);
    assert!(bad.contains("\"a(b\" is no regular expression"), "{bad}");
    server.fails(2, &["logs", "a", "--since", "noon"]);
}

#[test]
fn a_reload_changes_the_form_and_keeps_old_lines() {
    let server = Server::with_apps(
        r#""a": (logs: (keep: 5), command: "echo before; while :; do sleep 0.05; [ ! -e go ] || echo after; done")"#,
    )
    .started();
    server.until("it has written", |s| s.ok(&["logs", "a"]).contains("before").then_some(()));
    let pid = server.main_pid("a");
    server.edit_config("logs: (keep: 5)", "logs: (keep: 5, format: Json)");
    let plan = server.ok(&["reload"]);
    assert!(plan.contains("a: changed without a restart (logs)"), "{plan}");
    std::fs::write(server.path().join("go"), "").unwrap();
    let lines = server.until("a line has its time", |s| {
        let lines = s.ok(&["logs", "a", "-n", "1000", "--json"]);
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines.last().is_some_and(|line| line["at"].is_string()).then_some(lines)
    });
    assert_eq!(server.main_pid("a"), pid);
    assert_eq!((&lines[0]["line"], &lines[0]["at"]), (&"before".into(), &Value::Null));
    assert_eq!(lines.last().unwrap()["line"], "after");
}

#[test]
fn a_deploys_log_is_followed_until_it_is_over() {
    let (mut server, repo) = deploying::world("", r#"check: ["echo look at it; cat \"$DIR/gate\"; echo seen"]"#);
    let gate = Gate::new(&server, "gate");
    server.start();
    drop(gate.reached());
    assert_eq!(server.deploy_end(1)["state"], "live");
    repo.commit(&[("VERSION", "2")], "second");
    let id = push(&server, &repo).to_string();
    let reached = gate.reached();
    let follower = Follower::new(&server, &["--deploy", &id, "-f"]);
    while follower.next() != "look at it" {}
    drop(reached);
    let mut seen = false;
    while let Ok(line) = follower.lines.recv_timeout(LIMIT) {
        seen |= line == "seen";
    }
    assert!(seen);
    assert_eq!(follower.ends(), Some(0));
    assert_eq!(server.deploy_end(id.parse().unwrap())["state"], "live");
    let log = server.ok(&["logs", "--deploy", &id, "--grep", "^(look|seen)"]);
    assert_eq!(log, "look at it\nseen\n");
    // What is over has an end.
    assert_eq!(Follower::new(&server, &["--deploy", "1", "-f", "-n", "0"]).ends(), Some(0));
    server.fails(4, &["logs", "--deploy", "99"]);
    server.fails(2, &["logs", "site", "--deploy", "1"]);
}

/// Also a progress that is written over itself, before there is an end of a line.
#[test]
fn whoever_waits_for_a_deploy_sees_what_its_steps_write() {
    let step =
        r#"build: ["if [ -e slow ]; then echo first; printf '\\r10%%'; cat \"$DIR/gate\"; echo; echo second; fi"]"#;
    let (server, repo) = deploying::live_world("", step);
    let gate = Gate::new(&server, "gate");
    repo.commit(&[("slow", "")], "slow");
    let deploy = Follower::of(&server, &["deploy", "site"]);
    let reached = gate.reached();
    while deploy.next() != "  | first" {}
    while !deploy.next().contains("10%") {}
    drop(reached);
    let mut lines = Vec::new();
    while let Ok(line) = deploy.lines.recv_timeout(LIMIT) {
        lines.push(line);
    }
    assert!(lines.contains(&"  | second".to_owned()), "{lines:?}");
    assert!(lines.last().unwrap().ends_with(" is live"), "{lines:?}");
    assert_eq!(deploy.ends(), Some(0));
}

#[test]
fn a_file_that_grew_old_is_moved_away_while_nothing_is_written() {
    let server = Server::with_apps(r#""a": (logs: (age: "1s"), command: "echo only this; exec sleep 1000")"#).started();
    let old = server.path().join("state/logs/a/a.1.out.log.1");
    server.until("it was moved", |_| old.exists().then_some(()));
    thread::sleep(Duration::from_millis(1500));
    assert!(!old.with_extension("2").exists(), "an empty one is not");
    assert_eq!(server.ok(&["logs", "a"]), "only this\n");
}

/// Whoever follows a file by its descriptor has all of it: it is moved away, never cut or copied.
#[test]
fn a_rotated_file_is_the_one_that_was_written() {
    let server = Server::with_apps(
        r#""a": (logs: (rotate: "64KiB", keep: 1000),
             command: "echo 0; read go < @DIR@/go; seq 1 20000; exec sleep 1000")"#,
    );
    let go = server.path().join("go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    let server = server.started();
    let path = server.path().join("state/logs/a/a.1.out.log");
    let mut held = server.until("the first line is there", |_| {
        let mut file = File::open(&path).ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        (text == "0\n").then_some(file)
    });
    fs::write(go, "\n").unwrap();
    server.until("everything is written", |s| (s.ok(&["logs", "a", "-n", "1"]) == "20000\n").then_some(()));
    let inode = held.metadata().unwrap().ino();
    let old: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap()).collect();
    let moved: Vec<_> = old.iter().filter(|entry| entry.metadata().unwrap().ino() == inode).collect();
    assert!(moved.len() == 1 && moved[0].path() != path, "{old:?}");
    held.rewind().unwrap();
    let mut text = String::new();
    held.read_to_string(&mut text).unwrap();
    let whole: String = (0..text.lines().count()).map(|n| format!("{n}\n")).collect();
    assert!(text == whole && text.len() > 32 << 10, "{} bytes", text.len());
}

/// As logrotate does it: who has moved a file away says so, and what comes next is in a new one.
#[test]
fn a_file_that_was_moved_away_is_left_at_usr1() {
    let counts = "n=0; while :; do echo $n; n=$((n + 1)); sleep 0.02; done";
    let server = Server::with_apps(&format!("\"a\": (command: \"{counts}\", ready: Immediate)")).started();
    let path = server.path().join("state/logs/a/a.1.out.log");
    let moved = path.with_extension("moved");
    let content = |path: &std::path::Path| fs::read_to_string(path).unwrap_or_default();
    server.until("the first line is there", |_| content(&path).ends_with('\n').then_some(()));
    let before = fs::metadata(&path).unwrap();
    fs::rename(&path, &moved).unwrap();
    server.signal(Signal::SIGUSR1);
    server.until("there is a new file", |_| content(&path).ends_with('\n').then_some(()));
    let after = fs::metadata(&path).unwrap();
    assert_eq!((after.mode(), after.uid(), after.gid()), (before.mode(), before.uid(), before.gid()));
    server.ok(&["stop", "a"]);
    server.until("every line is in one of both", |_| {
        let all = [&moved, &path].map(|path| content(path)).concat();
        let whole: String = (0..all.lines().count()).map(|n| format!("{n}\n")).collect();
        (all == whole).then_some(())
    });
}

/// A bar that moves by carriage returns is seen before its line ends.
#[test]
fn progress_without_a_newline_is_shown() {
    let (mut server, repo) =
        deploying::world("", r#"build: ["if [ -e slow ]; then printf '\\r1%%\\r2%%'; cat \"$DIR/gate\"; fi"]"#);
    let gate = Gate::new(&server, "gate");
    server.start();
    assert_eq!(server.deploy_end(1)["state"], "live");
    repo.commit(&[("slow", "")], "slow");
    let id = push(&server, &repo).to_string();
    let reached = gate.reached();
    let mut client = server.client(&["logs", "--deploy", &id, "-f"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = client.stdout.take().unwrap();
    let (told, pieces) = channel();
    thread::spawn(move || {
        let mut piece = [0; 1024];
        while let Ok(n @ 1..) = output.read(&mut piece) {
            if told.send(piece[..n].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut seen = Vec::new();
    while !seen.windows(6).any(|part| part == b"\r1%\r2%") {
        seen.extend(pieces.recv_timeout(LIMIT).expect("it is shown"));
    }
    drop(reached);
    assert_eq!(server.deploy_end(id.parse().unwrap())["state"], "live");
    assert!(client.wait().unwrap().success());
}
