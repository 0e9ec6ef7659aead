//! What an app may use and do, read back from the kernel.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::fs;

use nix::unistd::geteuid;
use serde_json::Value;
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
    let [supervisor, test] = [server.pid(), std::process::id()].map(|pid| oom_score_of(i32::try_from(pid).unwrap()));
    assert_eq!(supervisor, test, "it is that of the app alone");
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

/// The groups of a process, each with the names of its files.
fn in_a_group(pid: i32, file: &str) -> Option<String> {
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter(|line| line.contains(" - cgroup")).map(|line| line.split(' ').nth(4).unwrap());
    let groups = own.lines().map(|line| line.rsplit(':').next().unwrap());
    points.flat_map(|point| groups.clone().map(move |group| format!("{point}{group}/{file}"))).find_map(|path| {
        let text = path.contains("everhook-").then(|| fs::read_to_string(path).ok()).flatten()?;
        Some(text.trim().to_owned())
    })
}

/// Whole trees are limited here, as `check` sees it.
fn are_held(server: &Server) -> bool {
    let told = server::text(&server.cli(&["check"]));
    if told.contains("runs without its limit") {
        println!("left out, as no cgroup here can be limited: {told}");
    }
    !told.contains("runs without its limit")
}

const EATS: &str = "import os, time; x = b'x' * (200 << 20); time.sleep(1000)";

#[test]
fn whole_trees_are_limited_and_out_of_memory_is_told_as_that() {
    let server = Server::with_apps(&format!(
        r#""a": (ready: Immediate, command: ["sleep", "1000"], limits: (memory: "64MiB", cpu: 0.5, tasks: 77)),
           "main": (ready: Immediate, command: ["python3", "-c", "{EATS}"], limits: (memory: "64MiB"), restart: (first: "1h", max: "1h")),
           "worker": (ready: Immediate, command: ["sh", "-c", "python3 -c \"{EATS}\"; exit 0"], limits: (memory: "64MiB"), restart: (policy: OnFailure))"#
    ));
    if !are_held(&server) {
        return;
    }
    let server = server.started();
    server.wait_state("a", "ready");
    let pid = server.main_pid("a");
    let value = |names: [&str; 2]| names.into_iter().find_map(|name| in_a_group(pid, name)).unwrap();
    assert_eq!(value(["memory.max", "memory.limit_in_bytes"]), (64 << 20).to_string());
    assert_eq!(value(["cpu.max", "cpu.cfs_quota_us"]).split(' ').next(), Some("50000"));
    assert_eq!(value(["pids.max", "pids.max"]), "77");
    let used = server.instance("a")["memory_bytes"].as_u64().unwrap();
    assert!(used > 0 && used < 64 << 20, "{used}");

    server.wait_state("main", "backoff");
    let main = server.instance("main");
    assert_eq!((&main["last_exit"]["oom"], &main["last_exit"]["signal"]), (&true.into(), &9.into()));
    assert!(main["reason"].as_str().unwrap().contains("out of memory"), "{main}");
    // The one that was killed was not the main process, which ended well.
    server.wait_state("worker", "done");
    let worker = server.instance("worker");
    assert_eq!((&worker["last_exit"]["oom"], &worker["last_exit"]["code"]), (&false.into(), &0.into()));
    let told = server.until("it is told", |s| {
        s.events()
            .into_iter()
            .find(|e| e["app"] == "worker" && e["cause"].as_str().is_some_and(|c| c.contains("out of memory")))
    });
    assert_eq!((&told["kind"], &told["instance"]), (&"instance".into(), &"worker.1".into()));

    // Taken away again, and nothing is left behind.
    server.edit_config(", cpu: 0.5, tasks: 77", ", tasks: 78");
    server.ok(&["reload"]);
    let new = server.wait_new_pid("a", pid);
    let cpu = ["cpu.max", "cpu.cfs_quota_us"].into_iter().find_map(|name| in_a_group(new, name));
    assert!(cpu.is_none_or(|cpu| cpu == "-1" || cpu.starts_with("max")));
    assert_eq!(in_a_group(new, "pids.max").as_deref(), Some("78"));
}

#[test]
fn a_workers_end_for_memory_is_told_while_its_main_process_goes_on() {
    let server = Server::with_apps(&format!(
        r#""a": (ready: Immediate, command: ["sh", "-c", "python3 -c \"{EATS}\"; exec sleep 1000"], limits: (memory: "64MiB"))"#
    ));
    if !are_held(&server) {
        return;
    }
    let server = server.started();
    let told = server.until("it is told", |s| {
        s.events().into_iter().find(|e| e["cause"].as_str().is_some_and(|c| c.contains("out of memory")))
    });
    assert_eq!((&told["instance"], &told["detail"]), (&"a.1".into(), &"oom".into()));
    let a = server.instance("a");
    assert_eq!((&a["state"], &a["restarts"], &a["last_exit"]), (&"ready".into(), &0.into(), &Value::Null));
}

#[test]
fn a_command_as_an_app_is_limited_like_it() {
    let server = Server::with_apps(
        r#""a": (ready: Immediate, command: ["sleep", "1000"], limits: (memory: "64MiB", tasks: 77))"#,
    );
    if !are_held(&server) {
        return;
    }
    let server = server.started();
    server.wait_state("a", "ready");
    let said = server.ok(&["exec", "a", "--", "cat", "/proc/self/cgroup"]);
    let name = said.lines().find_map(|line| line.rsplit('/').next().filter(|name| name.starts_with("everhook-")));
    let name = name.unwrap_or_else(|| panic!("no group of its own: {said}")).to_owned();
    server.until("its group is gone with it", |_| groups(&name).is_empty().then_some(()));
    let eats = "x = b'x' * (200 << 20); print(len(x))";
    let ended = server.cli(&["exec", "a", "--", "python3", "-c", eats]);
    assert_eq!(ended.status.code(), Some(137), "{}", server::text(&ended));
    assert_eq!(server.instance("a")["restarts"], 0, "the app itself was not meant");
}

#[test]
fn who_grows_over_memory_restart_is_restarted_in_order() {
    let grows = "import os, signal, sys, time; signal.signal(15, lambda *_: (open('@DIR@/said', 'a').write('bye'), sys.exit(0))); x = b'x' * (100 << 20); time.sleep(1000)";
    let server = Server::with_apps(&format!(
        r#""a": (ready: Immediate, command: ["python3", "-c", "{grows}"], limits: (memory_restart: "60MiB")),
           "b": (ready: Immediate, command: ["sleep", "1000"], limits: (memory_restart: "60MiB"))"#
    ))
    .started();
    server.wait_state("a", "ready");
    let (old, other) = (server.main_pid("a"), server.main_pid("b"));
    server.wait_new_pid("a", old);
    // The next one grows as well, and may have left too by now.
    let said = fs::read_to_string(server.path().join("said")).unwrap();
    assert!(said.starts_with("bye"), "it had time to leave: {said:?}");
    let why =
        |e: &serde_json::Value| e["cause"].as_str().is_some_and(|c| c.contains("more than memory_restart: 60MiB"));
    assert!(server.events().iter().any(|e| e["app"] == "a" && why(e)));
    assert_eq!((server.main_pid("b"), &server.instance("b")["restarts"]), (other, &0.into()));
}

#[test]
fn groups_go_with_what_they_are_for() {
    let mut server = Server::with_apps(
        r#""a": (ready: Immediate, command: ["sleep", "1000"], limits: (tasks: 77)), "b": (ready: Immediate, command: ["sleep", "1000"])"#,
    )
    .started();
    server.wait_state("a", "ready");
    server.wait_state("b", "ready");
    let name = |server: &Server, app: &str| {
        let own = fs::read_to_string(format!("/proc/{}/cgroup", server.main_pid(app))).unwrap();
        own.lines()
            .find_map(|line| line.rsplit('/').next().filter(|name| name.starts_with("everhook-")))
            .map(str::to_owned)
    };
    let (Some(a), Some(b)) = (name(&server, "a"), name(&server, "b")) else { return };
    server.edit_config(r#", "b": (ready: Immediate, command: ["sleep", "1000"])"#, "");
    server.ok(&["reload"]);
    server.until("the group of the removed app is gone", |_| groups(&b).is_empty().then_some(()));
    assert!(!groups(&a).is_empty());
    assert!(server.stop().success());
    assert!(groups(&a).is_empty(), "{:?}", groups(&a));
}

#[test]
fn a_group_that_somebody_has_removed_is_made_again() {
    let server =
        Server::with_apps(r#""a": (ready: Immediate, command: ["sleep", "1000"], limits: (tasks: 77))"#).started();
    server.wait_state("a", "ready");
    let own = fs::read_to_string(format!("/proc/{}/cgroup", server.main_pid("a"))).unwrap();
    let name = own.lines().find_map(|line| line.rsplit('/').next().filter(|name| name.starts_with("everhook-")));
    let Some(name) = name else { return println!("left out, as there are no cgroups") };
    server.ok(&["stop", "a"]);
    // Whoever was the last in it may still be leaving.
    server.until("it is removed", |_| groups(name).iter().all(|group| fs::remove_dir(group).is_ok()).then_some(()));
    server.ok(&["start", "a"]);
    server.wait_state("a", "ready");
    assert_eq!(server.app("a")["instances"][0]["restarts"], 0, "nothing has failed");
    assert!(!groups(name).is_empty());
    if are_held(&server) {
        assert_eq!(in_a_group(server.main_pid("a"), "pids.max").as_deref(), Some("77"));
    }
}

/// Folders of this name in any hierarchy.
fn groups(name: &str) -> Vec<String> {
    let found =
        std::process::Command::new("find").args(["/sys/fs/cgroup", "-maxdepth", "5", "-name", name]).output().unwrap();
    String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect()
}
