//! What an app may use and do, read back from the kernel.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::fs;

use nix::unistd::geteuid;
use server::Server;

/// A line of `/proc/<pid>/status`.
fn status_of(pid: i32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Soft and hard limit, by the name in `/proc/<pid>/limits`.
fn limit_of(pid: i32, name: &str) -> (String, String) {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let mut words = line.split_whitespace().map(str::to_owned);
    (words.next().unwrap(), words.next().unwrap())
}

fn nice_of(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap().parse().unwrap()
}

fn oom_score_of(pid: i32) -> i32 {
    fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
}

fn may_lower_oom_score() -> bool {
    let lower = "echo -500 > /proc/self/oom_score_adj";
    std::process::Command::new("sh").args(["-c", lower]).output().unwrap().status.success()
}

#[test]
fn whoever_runs_it_can_limit_its_apps() {
    let server = Server::with_apps(
        r#""a": (ready: Immediate, command: ["sleep", "1000"],
            limits: (files: 77, core: "0", nice: 7, oom_score: 300, umask: "0027", capabilities: [], no_new_privs: true)),
           "plain": (ready: Immediate, command: ["sleep", "1000"])"#,
    )
    .started();
    server.wait_state("a", "ready");
    server.wait_state("plain", "ready");
    let pid = server.main_pid("a");
    assert_eq!(limit_of(pid, "Max open files"), ("77".into(), "77".into()));
    assert_eq!(limit_of(pid, "Max core file size"), ("0".into(), "0".into()));
    assert_eq!((nice_of(pid), oom_score_of(pid)), (7, 300));
    assert_eq!(status_of(pid, "Umask"), "0027");
    assert_eq!(status_of(pid, "CapEff"), "0".repeat(16));
    assert_eq!(status_of(pid, "NoNewPrivs"), "1");
    let plain = server.main_pid("plain");
    assert_eq!(
        (nice_of(plain), status_of(plain, "Umask"), status_of(plain, "NoNewPrivs")),
        (0, "0022".into(), "0".into())
    );
    assert_eq!(limit_of(plain, "Max open files").0, "1024");

    // A change reaches the process, and no other app.
    server.edit_config("files: 77", "files: 88");
    assert!(server.ok(&["check", "--diff"]).contains("a: restarted (limits)"));
    server.ok(&["reload"]);
    let new = server.wait_new_pid("a", pid);
    assert_eq!(limit_of(new, "Max open files"), ("88".into(), "88".into()));
    assert_eq!(server.main_pid("plain"), plain);
}

#[test]
fn root_gives_groups_capabilities_and_priority() {
    if !geteuid().is_root() {
        println!("not root: left out");
        return;
    }
    // In some containers not even root may lower it.
    let score = if may_lower_oom_score() { -500 } else { 500 };
    let server = Server::with_apps(&format!(
        r#""a": (ready: Immediate, command: ["sleep", "1000"], user: "nobody", groups: ["games", 4321],
             limits: (nice: -5, oom_score: {score}, files: 5000, core: "1MiB", capabilities: ["NET_BIND_SERVICE", "CAP_SYS_NICE"])),
           "root": (ready: Immediate, command: ["sleep", "1000"], limits: (capabilities: ["CAP_KILL"])),
           "chowns": (ready: Immediate, command: ["python3", "-c", "import os, time; os.chown('@DIR@/theirs', 4242, -1); time.sleep(1000)"], user: "nobody", limits: (capabilities: ["CHOWN"])),
           "alone": (ready: Immediate, command: ["sleep", "1000"], user: "nobody", groups: [])"#
    ));
    fs::write(server.path().join("theirs"), "").unwrap();
    let server = server.started();
    for app in ["a", "root", "alone"] {
        server.wait_state(app, "ready");
    }
    let games = fs::read_to_string("/etc/group").unwrap();
    let games = games.lines().find(|line| line.starts_with("games:")).unwrap().split(':').nth(2).unwrap().to_owned();
    let pid = server.main_pid("a");
    assert_eq!(status_of(pid, "Groups"), format!("{games} 4321"), "these alone");
    assert_eq!((nice_of(pid), oom_score_of(pid)), (-5, score));
    assert_eq!(limit_of(pid, "Max open files"), ("5000".into(), "5000".into()));
    assert_eq!(limit_of(pid, "Max core file size"), ("1048576".into(), "1048576".into()));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status_of(pid, set), "0000000000800400", "{set}");
        assert_eq!(status_of(server.main_pid("root"), set), "0000000000000020", "{set}");
    }
    assert_eq!(status_of(server.main_pid("alone"), "Groups"), "");
    // And it can be used.
    server.until("the file has another owner", |s| {
        use std::os::unix::fs::MetadataExt;
        (fs::metadata(s.path().join("theirs")).unwrap().uid() == 4242).then_some(())
    });
}

#[test]
fn a_limit_that_the_kernel_refuses_is_that_apps_error() {
    let server = Server::with_apps(
        r#""a": (ready: Immediate, command: ["sleep", "1000"], limits: (files: 18446744073709551615), restart: (policy: Never)),
           "b": (ready: Immediate, command: ["sleep", "1000"])"#,
    )
    .started();
    server.wait_state("b", "ready");
    server.wait_state("a", "failed");
    let reason = server.instance("a")["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("setting the limit of open files to 18446744073709551615"), "{reason}");
}
