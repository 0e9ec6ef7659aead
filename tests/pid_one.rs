//! As the first process of a pid namespace.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    process::{Command, Stdio},
    time::Instant,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use server::{LIMIT, Server};

const PREFIX: [&str; 6] = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--"];

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn it_reaps_orphans_and_ends_in_order() {
    if !geteuid().is_root() {
        println!("not root: left out");
        return;
    }
    let orphans = "for i in $(seq 1000); do (sleep 0.01 &) ; done; echo made >> @DIR@/said; exit 7";
    let mut server = Server::with_apps(&format!(
        r#""orphans": (command: "{orphans}", ready: Immediate, restart: (policy: Never)),
           "a": (command: ["sh", "-c", "trap 'echo bye >> @DIR@/said; exit 0' TERM; echo up >> @DIR@/said; while :; do sleep 1000 & wait; done"], ready: Immediate)"#
    ));
    server.start_as(&PREFIX);
    let app = server.wait_state("orphans", "failed");
    assert_eq!(app["instances"][0]["last_exit"]["code"], 7, "its own exit is not stolen");
    assert_eq!(server.status()["supervisor"]["pid"], 1);
    let one = children(server.pid())[0];
    server.until("no zombie is left", |_| {
        let dead = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") Z "));
        (!children(one).iter().any(dead)).then_some(())
    });
    let said = |server: &Server| fs::read_to_string(server.path().join("said")).unwrap_or_default();
    server.until("it hears a signal", |s| said(s).contains("up").then_some(()));
    kill(Pid::from_raw(i32::try_from(one).unwrap()), Signal::SIGTERM).unwrap();
    assert!(server.ended().success(), "{}", server.log());
    assert!(said(&server).contains("bye"));
}

/// Ctrl-alt-del, a failing power supply, and by which systemd's and Podman's containers are halted and switched off.
#[test]
fn whatever_an_init_is_told_ends_it_in_order() {
    if !geteuid().is_root() {
        println!("not root: left out");
        return;
    }
    // SIGRTMIN is 34, since the C library keeps two for itself.
    for signal in ["INT", "PWR", "37", "38"] {
        let mut server = Server::with_apps(
            r#""a": (command: "trap 'echo bye > @DIR@/said; exit 0' TERM; echo >&3; while :; do sleep 1000 & wait; done", ready: Fd(fd: 3))"#,
        );
        server.start_as(&PREFIX);
        server.wait_state("a", "ready");
        let one = children(server.pid())[0].to_string();
        assert!(Command::new("kill").args(["-s", signal, &one]).status().unwrap().success(), "{signal}");
        assert!(server.ended().success(), "{signal}: {}", server.log());
        assert_eq!(fs::read_to_string(server.path().join("said")).unwrap(), "bye\n", "{signal}");
    }
}

/// The kernel drops what an init neither blocks nor handles.
#[test]
fn who_asks_for_the_end_while_it_begins_is_heard() {
    if !geteuid().is_root() {
        println!("not root: left out");
        return;
    }
    let server = Server::with_apps(r#""a": (command: ["sleep", "1000"], ready: Immediate)"#);
    for round in 0..20 {
        let run = server.client(&["run"]);
        let mut child = Command::new(PREFIX[0]);
        let child = child.args(&PREFIX[1..]).arg(run.get_program()).args(run.get_args());
        let mut child = child.current_dir(server.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let end = Instant::now() + LIMIT;
        let status = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let blocks = |pid: &u32| {
            let status = status(pid);
            status.starts_with("Name:\teverhook") && !status.contains("SigBlk:\t0000000000000000")
        };
        let one = loop {
            assert!(Instant::now() < end, "it does not begin");
            if let Some(one) = children(child.id()).into_iter().find(blocks) {
                break one;
            }
        };
        kill(Pid::from_raw(i32::try_from(one).unwrap()), Signal::SIGTERM).unwrap();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "round {round}: it was not heard");
            std::thread::yield_now();
        };
        assert!(status.success(), "round {round}: {status}");
    }
}

/// A container that starts again counts its pids from one: what the records name is somebody else by then.
#[test]
fn pids_that_begin_anew_are_nobodys() {
    const OTHERS: usize = 200;
    if !geteuid().is_root() {
        println!("not root: left out");
        return;
    }
    let mut server = Server::with_apps(r#""a": (command: ["sleep", "1000"], ready: Immediate, instances: 3)"#);
    server.start_as(&PREFIX);
    let before = server.wait_state("a", "ready");
    let pids = |app: &serde_json::Value| -> Vec<u64> {
        app["instances"].as_array().unwrap().iter().map(|instance| instance["pid"].as_u64().unwrap()).collect()
    };
    let recorded = pids(&before);
    assert!(recorded.iter().all(|pid| *pid <= OTHERS as u64), "{recorded:?}");
    let one = children(server.pid())[0];
    kill(Pid::from_raw(i32::try_from(one).unwrap()), Signal::SIGKILL).unwrap();
    assert!(!server.ended().success());

    let others = format!("for i in $(seq {OTHERS}); do sleep 2000 & done; exec \"$@\"");
    server.start_as(&[&PREFIX[..], &["sh", "-c", &others, "sh"]].concat());
    let now = pids(&server.wait_state("a", "ready"));
    assert!(now.iter().all(|pid| *pid > OTHERS as u64), "{now:?}");
    let one = children(server.pid())[0];
    let lives = |pid: &&u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"sleep\x002000\x00");
    // Some may still be the shell that they are made by.
    server
        .until("none of them heard anything", |_| (children(one).iter().filter(lives).count() == OTHERS).then_some(()));
    kill(Pid::from_raw(i32::try_from(one).unwrap()), Signal::SIGTERM).unwrap();
    assert!(server.ended().success(), "{}", server.log());
}

/// A file of `contrib/`, with the binary that was built and the config of the test in it.
fn contrib(name: &str, server: &Server) -> String {
    let text = fs::read_to_string(format!("{}/contrib/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let config = server.config().display().to_string();
    text.replace("/usr/local/bin/everhook", env!("CARGO_BIN_EXE_everhook"))
        .replace("/etc/everhook/supervisor.ron", &config)
}

#[test]
fn the_container_file_runs_it() {
    if !geteuid().is_root() {
        println!("not root: left out");
        return;
    }
    let mut server = Server::with_apps("\"a\": (command: \"echo from within; exec sleep 1000\", ready: Immediate)");
    let file = contrib("Dockerfile", &server);
    let entry = file.lines().find_map(|line| line.strip_prefix("ENTRYPOINT ")).unwrap();
    let line: Vec<String> = serde_json::from_str(entry).unwrap();
    let quoted: Vec<String> = line.iter().map(|word| format!("'{word}'")).collect();
    let exec = format!("exec {}", quoted.join(" "));
    server.start_as(&[&PREFIX[..], &["sh", "-c", &exec]].concat());
    server.wait_state("a", "ready");
    assert_eq!(server.status()["supervisor"]["pid"], 1);
    server.until("what it prints is on the container's stdout", |s| s.log().contains("from within").then_some(()));
    let one = children(server.pid())[0];
    let signal = file.lines().find_map(|line| line.strip_prefix("STOPSIGNAL ")).unwrap();
    kill(Pid::from_raw(i32::try_from(one).unwrap()), signal.parse::<Signal>().unwrap()).unwrap();
    assert!(server.ended().success(), "{}", server.log());
}

#[test]
fn systemd_understands_the_unit() {
    let server = Server::with_apps("");
    let unit = server.path().join("everhook.service");
    fs::write(&unit, contrib("everhook.service", &server)).unwrap();
    let output = std::process::Command::new("systemd-analyze").arg("verify").arg(&unit).output();
    let Ok(output) = output else { return println!("no systemd-analyze here") };
    let said = server::text(&output);
    // Older ones do not know it, and ExecStopPost does what it is for.
    let others: Vec<&str> = said.lines().filter(|line| !line.contains("DelegateSubgroup")).collect();
    assert!(output.status.success() && others.iter().all(|line| !line.contains("everhook.service")), "{said}");
}

/// An init that ends takes everything with it: another binary runs in its place without an end.
#[test]
fn another_binary_may_run_in_its_place() {
    if !geteuid().is_root() {
        println!("not root: left out");
        return;
    }
    let mut server = Server::with_apps(r#""a": (command: ["sleep", "1000"], ready: Immediate)"#);
    server.start_as(&PREFIX);
    let app = server.wait_state("a", "ready")["instances"][0]["pid"].clone();
    let (one, began) = (children(server.pid())[0], server.status()["supervisor"]["since"].clone());
    let said = server.ok(&["upgrade", "--binary", env!("CARGO_BIN_EXE_everhook")]);
    assert!(said.contains("runs in its place, pid 1"), "{said}");
    assert_ne!(server.status()["supervisor"]["since"], began);
    assert_eq!(server.wait_state("a", "ready")["instances"][0]["pid"], app);
    kill(Pid::from_raw(i32::try_from(one).unwrap()), Signal::SIGTERM).unwrap();
    assert!(server.ended().success(), "{}", server.log());
}
