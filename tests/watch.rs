//! Restarts of apps whose files change: `watch`.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{fs, path::PathBuf, process::Command, time::Duration};

use nix::sys::signal::Signal;
use serde_json::Value;
use server::Server;

/// A server with one app `a` that runs `command` and has this `watch`; the folder `src` is there.
fn watching(command: &str, watch: &str) -> Server {
    let server = Server::with_apps(&format!(
        r#""a": (command: "{command}", watch: {watch}, ready: Immediate, stop: (timeout: "2s"))"#
    ));
    fs::create_dir_all(server.path().join("src/deep")).unwrap();
    fs::write(server.path().join("src/main"), "1").unwrap();
    fs::write(server.path().join("src/deep/other"), "1").unwrap();
    let server = server.started();
    server.wait_state("a", "ready");
    server.until("the watch", |s| (s.app("a")["watch"]["state"] != Value::Null).then_some(()));
    settle(&server);
    server
}

/// The thread has what it was told before: it answers in order, so a change that is seen proves it.
fn settle(server: &Server) {
    let pid = server.main_pid("a");
    let probe = server.path().join("src/probe");
    let mut tries = 0;
    server.until("the watch sees something", |s| {
        tries += 1;
        fs::write(&probe, format!("{tries}")).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        (s.instance("a")["pid"].as_i64() != Some(pid.into())).then_some(())
    });
    let last = quiet(server);
    fs::remove_file(&probe).unwrap();
    server.wait_new_pid("a", last);
    quiet(server);
}

/// Waits until nothing has restarted the app for a while.
fn quiet(server: &Server) -> i32 {
    let mut last = (Value::Null, std::time::Instant::now());
    server.until("quiet", |s| {
        let pid = s.instance("a")["pid"].clone();
        if pid.is_null() || pid != last.0 {
            last = (pid, std::time::Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(1)).then_some(())
    });
    server.main_pid("a")
}

fn causes(server: &Server) -> Vec<String> {
    let cause = |e: &Value| e["cause"].as_str().unwrap_or_default().to_owned();
    let stopping = |e: &&Value| e["app"] == "a" && e["to"] == "stopping";
    server.events().iter().filter(stopping).map(cause).collect()
}

fn note(server: &Server, what: &str) -> Option<String> {
    let found = server.events().into_iter().rfind(|e| e["app"] == "a" && e["to"] == what)?;
    Some(found["cause"].as_str().unwrap().to_owned())
}

/// Does this; the app must be restarted by it, and only once.
fn restarts(server: &Server, what: &str, act: impl FnOnce(PathBuf)) {
    let (pid, before) = (server.main_pid("a"), causes(server).len());
    // What takes several steps is one change, however long others keep this one from the next step: everhook
    // hears of all of them together.
    server.signal(Signal::SIGSTOP);
    act(server.path().join("src"));
    server.signal(Signal::SIGCONT);
    server.until(what, |s| s.instance("a")["pid"].as_i64().filter(|new| *new != i64::from(pid)));
    quiet(server);
    let causes = causes(server);
    assert_eq!(causes.len(), before + 1, "{what}: {causes:?}");
    assert!(causes.last().unwrap().starts_with("watch: "), "{what}: {causes:?}");
}

/// Does this; the app must run on.
fn leaves_alone(server: &Server, what: &str, act: impl FnOnce(PathBuf)) {
    let pid = quiet(server);
    act(server.path().join("src"));
    assert_eq!(quiet(server), pid, "{what}: {:?}", causes(server));
}

#[test]
fn whatever_changes_restarts_once() {
    let server =
        watching("exec sleep 1000", r#"(paths: ["src"], debounce: "100ms", ignore: ["*.log", "node_modules"])"#);
    restarts(&server, "a write", |src| fs::write(src.join("main"), "2").unwrap());
    restarts(&server, "a new file deep down", |src| fs::write(src.join("deep/new"), "1").unwrap());
    restarts(&server, "a removal", |src| fs::remove_file(src.join("deep/new")).unwrap());
    restarts(&server, "an editor that replaces the file", |src| {
        fs::write(src.join(".main.tmp"), "3").unwrap();
        fs::rename(src.join("main"), src.join("main~")).unwrap();
        fs::rename(src.join(".main.tmp"), src.join("main")).unwrap();
        fs::remove_file(src.join("main~")).unwrap();
    });
    restarts(&server, "a write after that", |src| fs::write(src.join("main"), "4").unwrap());
    restarts(&server, "folders made at once", |src| {
        fs::create_dir_all(src.join("x/y/z")).unwrap();
        fs::write(src.join("x/y/z/file"), "1").unwrap();
    });
    restarts(&server, "a write in a new folder", |src| fs::write(src.join("x/y/z/file"), "22").unwrap());
    restarts(&server, "a folder that moves", |src| fs::rename(src.join("x"), src.join("w")).unwrap());
    restarts(&server, "a write in a moved folder", |src| fs::write(src.join("w/y/z/file"), "333").unwrap());
    restarts(&server, "many files at once", |src| {
        (0..200).for_each(|n| fs::write(src.join(format!("deep/{n}")), "1").unwrap());
    });
}

#[test]
fn what_does_not_count_leaves_it_alone() {
    let server =
        watching("exec sleep 1000", r#"(paths: ["src"], debounce: "100ms", ignore: ["*.log", "node_modules"])"#);
    leaves_alone(&server, "reading everything", |src| {
        let tar = Command::new("tar").args(["cf", "/dev/null", "-C"]).arg(src).arg(".").status().unwrap();
        assert!(tar.success());
    });
    leaves_alone(&server, "a change of mode", |src| {
        assert!(Command::new("chmod").arg("600").arg(src.join("main")).status().unwrap().success());
    });
    leaves_alone(&server, "what is ignored", |src| {
        fs::write(src.join("app.log"), "1").unwrap();
        fs::create_dir_all(src.join("node_modules/x")).unwrap();
        fs::write(src.join("node_modules/x/index"), "1").unwrap();
        fs::write(src.join("deep/.main.swp"), "1").unwrap();
        let git = Command::new("git").args(["init", "-q"]).arg(&src).status().unwrap();
        assert!(git.success());
        Command::new("git").arg("-C").arg(src).arg("status").output().unwrap();
    });
}

#[test]
fn a_folder_that_vanishes_is_awaited() {
    let server = watching("exec sleep 1000", r#"(paths: ["src"], debounce: "100ms")"#);
    let src = server.path().join("src");
    restarts(&server, "the folder goes", |src| fs::remove_dir_all(src).unwrap());
    server.until("the gap is told", |s| (s.app("a")["watch"]["state"] == "degraded").then_some(()));
    restarts(&server, "the folder comes back", |src| fs::create_dir_all(src.join("new")).unwrap());
    server.until("all is well", |s| (s.app("a")["watch"]["state"] == "watching").then_some(()));
    restarts(&server, "a file in it", |src| fs::write(src.join("new/file"), "1").unwrap());
    restarts(&server, "another folder takes its place", |src| {
        let next = src.with_extension("next");
        fs::create_dir(&next).unwrap();
        fs::write(next.join("main"), "1").unwrap();
        fs::rename(&src, src.with_extension("old")).unwrap();
        fs::rename(&next, &src).unwrap();
    });
    restarts(&server, "a file in that one", |src| fs::write(src.join("main"), "2").unwrap());
    leaves_alone(&server, "the one before", |src| fs::write(src.with_extension("old").join("x"), "2").unwrap());
    assert!(src.exists());
}

#[test]
fn what_is_stopped_stays_so_and_a_failed_app_is_tried_again() {
    let server = watching("test -e src/broken && exit 1; exec sleep 1000", r#"(paths: ["src"], debounce: "50ms")"#);
    server.edit_config("ready: Immediate", "ready: Immediate, restart: (policy: Never)");
    server.ok(&["reload"]);
    let broken = server.path().join("src/broken");
    // At one stroke: it would be tried once more for a second one.
    fs::write(server.path().join("draft"), "").unwrap();
    fs::rename(server.path().join("draft"), &broken).unwrap();
    server.wait_state("a", "failed");
    quiet_failed(&server);
    fs::remove_file(&broken).unwrap();
    server.wait_state("a", "ready");
    server.ok(&["stop", "a"]);
    fs::write(server.path().join("src/main"), "new").unwrap();
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(server.app("a")["state"], "stopped");
    server.ok(&["start", "a"]);
}

/// A failed app is left alone while nothing changes.
fn quiet_failed(server: &Server) {
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(server.app("a")["state"], "failed");
}

#[test]
fn a_loop_of_the_apps_own_making_is_suspended() {
    let server = watching("exec sleep 1000", r#"(paths: ["src"], debounce: "100ms")"#);
    server.edit_config("exec sleep 1000", "date +%N >src/started; exec sleep 1000");
    server.ok(&["reload"]);
    let told = server.until("the loop is told", |s| note(s, "watch_suspended"));
    assert!(told.contains("src/started") && told.contains("`ignore`"), "{told}");
    let pid = quiet(&server);
    assert_eq!(server.app("a")["watch"]["state"], "suspended");
    assert!(server.ok(&["status"]).contains("watch"), "{}", server.ok(&["status"]));
    leaves_alone(&server, "suspended", |src| fs::write(src.join("main"), "2").unwrap());
    assert_eq!(server.main_pid("a"), pid);

    server.edit_config("debounce:", "ignore: [\"started\"], debounce:");
    server.ok(&["reload"]);
    server.until("it is watched again", |s| (s.app("a")["watch"]["state"] == "watching").then_some(()));
    settle(&server);
    restarts(&server, "a change", |src| fs::write(src.join("main"), "3").unwrap());
}

#[test]
fn an_apps_own_open_log_never_counts() {
    let server = watching("exec sleep 1000", r#"(paths: ["src"], debounce: "10ms")"#);
    // Its last line is told when nobody has the file open any more, or yet.
    server.edit_config(
        "exec sleep 1000",
        "sleep 0.3; exec >>src/own; trap 'echo last; exit' TERM; while :; do echo line; sleep 0.1; done",
    );
    server.ok(&["reload"]);
    let told = server.until("it is told", |s| note(s, "watch_own"));
    assert!(told.contains("src/own"), "{told}");
    quiet(&server);
    restarts(&server, "somebody else's change", |src| fs::write(src.join("main"), "2").unwrap());
    assert!(causes(&server).last().unwrap().ends_with("src/main"), "{:?}", causes(&server));
}

#[test]
fn polling_sees_the_same() {
    let server = watching("exec sleep 1000", r#"(paths: ["src"], debounce: "10ms", poll: "100ms")"#);
    // Each at one stroke: a look may come between any two.
    restarts(&server, "a write", |src| {
        fs::write(src.with_extension("new"), "22").unwrap();
        fs::rename(src.with_extension("new"), src.join("main")).unwrap();
    });
    leaves_alone(&server, "reading", |src| drop(fs::read(src.join("main")).unwrap()));
    restarts(&server, "the folder goes", |src| fs::rename(&src, src.with_extension("gone")).unwrap());
}

#[test]
fn single_files_are_watched_too() {
    let server = watching("exec sleep 1000", r#"(paths: ["src/main", "src/probe"], debounce: "50ms")"#);
    restarts(&server, "a write", |src| fs::write(src.join("main"), "22").unwrap());
    restarts(&server, "a replacement", |src| {
        fs::write(src.join("other"), "1").unwrap();
        fs::rename(src.join("other"), src.join("main")).unwrap();
    });
    leaves_alone(&server, "a neighbour", |src| fs::write(src.join("neighbour"), "1").unwrap());
}

#[test]
fn the_kernels_limits_are_named_and_the_app_runs() {
    // Watches, and what they are kept in.
    for (limit, most) in [("max_inotify_watches", 10), ("max_inotify_instances", 0)] {
        limited(limit, most);
    }
}

fn limited(limit: &str, most: u32) {
    let mut server = Server::new(
        r#"(state_dir: "@DIR@/state", apps: {"a": (command: ["sleep", "1000"], watch: ["src"], ready: Immediate)})"#,
    );
    (0..50).for_each(|n| fs::create_dir_all(server.path().join(format!("src/{n}"))).unwrap());
    let limited = format!("echo {most} >/proc/sys/user/{limit} && exec \"$@\"");
    let prefix =
        ["unshare", "--user", "--map-user=61234", "--map-group=61234", "--keep-caps", "sh", "-c", &limited, "sh"];
    let allowed = Command::new(prefix[0]).args(&prefix[1..]).arg("true").output().unwrap();
    if !allowed.status.success() {
        return println!("no user namespace can be made here: {}", server::text(&allowed));
    }
    server.start_as(&prefix);
    let app = server.until("the limit is told", |s| Some(s.app("a")).filter(|app| app["watch"]["state"] == "degraded"));
    let reason = app["watch"]["reason"].as_str().unwrap();
    let named = limit.replace("max_inotify", "fs.inotify.max_user");
    assert!(reason.contains(&named) && reason.contains("sysctl"), "{reason}");
    assert!(!server.log().contains("No space left"), "{}", server.log());
    server.wait_state("a", "ready");
}
