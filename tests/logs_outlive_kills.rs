//! What apps write is kept: every line once, in order, whoever of everhook's processes is killed.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{fs, path::PathBuf};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use server::Server;

/// The log files of an app, oldest first.
fn files(server: &Server, app: &str) -> Vec<PathBuf> {
    let folder = server.path().join("state/logs").join(app);
    let prefix = format!("{app}.1.out.log");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut numbered: Vec<(u32, PathBuf)> = entries
        .filter_map(|path| {
            let rest = path.file_name()?.to_str()?.strip_prefix(&prefix)?.to_owned();
            let number = if rest.is_empty() { 0 } else { rest.strip_prefix('.')?.parse().ok()? };
            Some((number, path))
        })
        .collect();
    numbered.sort();
    numbered.into_iter().rev().map(|(_, path)| path).collect()
}

/// All that was captured, over rotations.
fn captured(server: &Server, app: &str) -> String {
    let bytes: Vec<u8> = files(server, app).iter().flat_map(|path| fs::read(path).unwrap()).collect();
    String::from_utf8(bytes).unwrap()
}

/// About as many: a file that is moved meanwhile is counted twice, or not at all.
fn captured_bytes(server: &Server) -> u64 {
    let folder = server.path().join("state/logs/a");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|facts| facts.len()).sum()
}

fn logger(server: &Server) -> Option<i64> {
    server.status()["supervisor"]["logger"]["pid"].as_i64()
}

/// A million lines of one width, the number in front.
const WRITER: &str = r#""a": (ready: Immediate, restart: (policy: Never), stop: (timeout: "5s"), logs: (rotate: "1MiB", keep: 1000, compress: false),
    command: ["awk", "BEGIN { for (i = 0; i < 1000000; i++) printf \"%07d abcdefghijklmnopqrstuvwxyz\\n\", i }"])"#;
const WIDTH: u64 = 35;

/// Waits for the last line; nothing is written or moved any more then.
fn everything_was_captured(server: &Server) {
    server.until("everything was captured", |s| s.ok(&["logs", "a", "-n", "1"]).contains("0999999").then_some(()));
}

#[test]
fn a_million_lines_outlive_kills_of_the_logger() {
    let server = Server::with_apps(WRITER).started();
    for kills in 1..=6 {
        server.until("more was captured", |s| (captured_bytes(s) > kills * 4_000_000).then_some(()));
        let pid = server.until("a logger runs", logger);
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
        server.until("another logger runs", |s| logger(s).filter(|new| *new != pid));
    }
    server.wait_state("a", "done");
    everything_was_captured(&server);
    let all = captured(&server, "a");
    assert_eq!(all.len() as u64, 1_000_000 * WIDTH, "neither lost nor doubled");
    for (n, line) in all.lines().enumerate() {
        assert_eq!(line, format!("{n:07} abcdefghijklmnopqrstuvwxyz"));
    }
    assert!(files(&server, "a").len() > 30, "it was rotated");
    assert!(server.instance("a")["restarts"] == 0, "the app did not notice");
}

#[test]
fn a_million_lines_outlive_kills_of_the_supervisor() {
    // Each quarter waits for its file, so that it does not end while nobody is there.
    let waits = r#"{ if (i % 250000 == 0) while (system(\"test -e @DIR@/go\" i)) system(\"sleep 0.02\"); printf"#;
    let mut server = Server::with_apps(&WRITER.replace("printf", waits).replace(", i }", ", i } }")).started();
    let pid = server.main_pid("a");
    for quarter in 0..4 {
        fs::write(server.path().join(format!("go{}", quarter * 250_000)), "").unwrap();
        if quarter < 3 {
            server.kill();
            server.start();
            server.wait_state("a", "ready");
            assert_eq!(server.main_pid("a"), pid);
        }
    }
    everything_was_captured(&server);
    let all = captured(&server, "a");
    assert_eq!(all.len() as u64, 1_000_000 * WIDTH, "neither lost nor doubled");
    for (n, line) in all.lines().enumerate() {
        assert_eq!(line, format!("{n:07} abcdefghijklmnopqrstuvwxyz"));
    }
    assert!(server.instance("a")["restarts"] == 0, "the app did not notice");
}

#[test]
fn last_lines_and_the_run_before() {
    let server = Server::with_apps(
        r#""a": (ready: Immediate, command: "for i in 1 2 3 4 5; do echo line $i of $$; done; echo trouble of $$ >&2; exec sleep 1000")"#,
    )
    .started();
    server.wait_state("a", "ready");
    let first = server.main_pid("a");
    server.until("it has written", |s| s.ok(&["logs", "a"]).contains(&format!("trouble of {first}")).then_some(()));
    let two = server.ok(&["logs", "a", "-n", "2"]);
    assert!(two.contains(&format!("line 5 of {first}")) && !two.contains("line 3"), "{two}");
    let errors = server.ok(&["logs", "a", "--stderr"]);
    assert!(errors.contains("trouble") && !errors.contains("line"), "{errors}");
    server.ok(&["restart", "a"]);
    let second = server.main_pid("a");
    server.until("it has written again", |s| {
        s.ok(&["logs", "a"]).contains(&format!("trouble of {second}")).then_some(())
    });
    let previous = server.ok(&["logs", "a", "--previous"]);
    assert!(
        previous.contains(&format!("line 1 of {first}")) && !previous.contains(&format!("of {second}")),
        "{previous}"
    );
    let all = server.ok(&["logs", "a", "-n", "1000"]);
    assert!(all.contains(&format!("of {first}")) && all.contains(&format!("of {second}")), "over restarts: {all}");
    let lines = server.ok(&["logs", "a", "-n", "1", "--json"]);
    let line: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((&line["instance"], &line["at"]), (&"a.1".into(), &serde_json::Value::Null), "{line}");
    server.fails(4, &["logs", "b"]);
}

#[test]
fn what_a_run_writes_first_is_its_own() {
    let server = Server::with_apps(
        r#""a": (ready: Immediate, restart: (first: "0s"), command: "echo first of $$; exec sleep 1000")"#,
    )
    .started();
    server.wait_state("a", "ready");
    let mut runs = vec![server.main_pid("a")];
    for n in 0..10 {
        let pid = runs[n];
        server.until("it has written", |s| s.ok(&["logs", "a"]).contains(&format!("first of {pid}\n")).then_some(()));
        server.ok(&["restart", "a"]);
        runs.push(server.main_pid("a"));
        assert_eq!(server.ok(&["logs", "a", "--previous"]).trim(), format!("first of {pid}"), "run {n} of {runs:?}");
    }
}

#[test]
fn with_echo_the_lines_come_to_the_supervisors_own_output() {
    let server = Server::new(
        r#"(state_dir: "@DIR@/state", echo: true, apps: {"a": (command: "echo hello; exec sleep 1000"), "b": (command: "echo there; exec sleep 1000")})"#,
    )
    .started();
    for (app, word) in [("a.1", "hello"), ("b.1", "there")] {
        server.until("the line is echoed", |s| {
            s.log().lines().any(|line| line.contains(app) && line.ends_with(word)).then_some(())
        });
    }
}
