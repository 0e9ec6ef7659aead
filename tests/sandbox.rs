//! What the processes that hear the network and write the logs have given up, read back from the kernel.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{fs, os::unix::fs::MetadataExt};

use server::Server;

const CONFIG: &str = r#"(state_dir: "@DIR@/state",
    http: [(bind: "127.0.0.1:0", serve: [Hooks]), (bind: "127.0.0.1:0", serve: [Api])],
    apps: {"blog": (command: ["sh", "-c", "echo line; exec sleep 1000"], ready: Immediate)})"#;

/// The value of a field of `/proc/<pid>/status`.
fn status(pid: u64, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {text}")).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The soft one.
fn limit(pid: u64, name: &str) -> String {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
    line[name.len()..].split_whitespace().next().unwrap().to_owned()
}

#[test]
fn listeners_and_logger_have_given_everything_up() {
    let server = Server::new(CONFIG).started();
    let [hooks, api, logger] = server.until("all of them run", |server| {
        let view = server.status()["supervisor"].take();
        let pids = [&view["listeners"][0], &view["listeners"][1], &view["logger"]].map(|one| one["pid"].as_u64());
        pids.iter().all(Option::is_some).then(|| pids.map(Option::unwrap_or_default))
    });
    let listeners = [(hooks, 60_900), (api, 60_900)];
    let logger = (logger, 60_901);
    for (pid, uid) in listeners.into_iter().chain([logger]) {
        server.until("it has shut itself in", |_| Some(()).filter(|()| status(pid, "Seccomp") == "2"));
        assert_eq!(status(pid, "NoNewPrivs"), "1");
        // Nobody but root may read its memory or trace it.
        assert_eq!(fs::metadata(format!("/proc/{pid}/fd")).unwrap().uid(), 0);
        if nix::unistd::getuid().is_root() {
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(status(pid, set), "0000000000000000", "{set} of {pid}");
            }
            assert_eq!(status(pid, "Uid"), [uid; 4].map(|uid| uid.to_string()).join(" "));
            assert_eq!(status(pid, "Gid"), [uid; 4].map(|uid| uid.to_string()).join(" "));
            assert_eq!(status(pid, "Groups"), "");
        } else {
            eprintln!("left out: users of their own need root");
        }
    }
    for (pid, _) in listeners {
        assert_eq!(limit(pid, "Max core file size"), "0");
        assert_eq!(limit(pid, "Max file size"), (64 << 20).to_string());
        // As many as the supervisor has, up to a number.
        let files = limit(server.pid().into(), "Max open files").parse::<u32>().unwrap();
        assert_eq!(limit(pid, "Max open files"), files.min(16 * 1024).to_string());
    }
    // And both do what they are there for.
    server.until("the line is logged", |server| server.ok(&["logs", "blog"]).contains("line").then_some(()));
    assert_eq!(http::request(server.address("hooks"), "GET", "/healthz", &[], b"").status, 200);
    assert_eq!(http::request(server.address("api"), "GET", "/healthz", &[], b"").status, 200);
}
