//! Idle means idle: with nothing to do nobody of everhook's makes a system call.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use server::{LIMIT, Server};

/// Long enough for whoever looks at something every few seconds.
const WINDOW: Duration = Duration::from_secs(8);

/// Watches these processes until it is ended; `None` where that is not allowed.
fn strace(server: &Server, pids: &[i64]) -> Option<Child> {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o"]).arg(server.path().join("calls"));
    strace.args(pids.iter().flat_map(|pid| ["-p".to_owned(), pid.to_string()]));
    let mut strace = strace.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().ok()?;
    let watcher = format!("TracerPid:\t{}\n", strace.id());
    let is_watched = |pid: &i64| fs::read_to_string(format!("/proc/{pid}/status")).unwrap().contains(&watcher);
    let end = Instant::now() + LIMIT;
    while !pids.iter().all(is_watched) {
        if strace.try_wait().unwrap().is_some() {
            return None;
        }
        assert!(Instant::now() < end, "strace watches nobody");
        thread::sleep(Duration::from_millis(20));
    }
    Some(strace)
}

/// The calls that were begun and ended meanwhile.
fn calls(server: &Server, mut strace: Child) -> Vec<String> {
    thread::sleep(WINDOW);
    kill(Pid::from_raw(strace.id().cast_signed()), Signal::SIGINT).unwrap();
    strace.wait().unwrap();
    let text = fs::read_to_string(server.path().join("calls")).unwrap();
    // What they wait in goes on when nobody watches any more.
    let waits = |line: &&str| line.ends_with("<detached ...>") || line.contains("<unfinished ...>");
    text.lines().filter(|line| !waits(line)).map(str::to_owned).collect()
}

#[test]
fn a_hundred_healthy_instances_cost_no_system_call() {
    let apps =
        (0..10).map(|n| format!("\"a{n}\": (command: [\"sleep\", \"100000\"], instances: 10, ready: Immediate)"));
    let mut server = Server::with_apps(&apps.collect::<Vec<_>>().join(",\n")).started();
    server.until("all are ready", |s| {
        s.status()["apps"].as_array()?.iter().all(|app| app["state"] == "ready").then_some(())
    });
    let status = server.status();
    let supervisor = &status["supervisor"];
    let pids = [&supervisor["pid"], &supervisor["logger"]["pid"], &supervisor["listeners"][0]["pid"]];
    let pids = pids.map(|pid| pid.as_i64().unwrap());
    server.unfollow();
    // What the start needed is still being given back at first.
    let end = Instant::now() + LIMIT;
    loop {
        let Some(strace) = strace(&server, &pids) else { return println!("nobody may be traced here: left out") };
        let calls = calls(&server, strace);
        if calls.is_empty() {
            break;
        }
        assert!(Instant::now() < end, "{}", calls.join("\n"));
    }
    assert!(server.stop().success());
}
