//! What one app cannot have is that app's clear error, and never stops the others.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::unistd::geteuid;
use serde_json::Value;
use server::{Server, free_address, text};

/// Why an app does not run.
fn reason(app: &Value) -> String {
    app["instances"][0]["reason"].as_str().unwrap_or_default().to_owned()
}

/// Names and reasons of the failed apps, once `count` of all are settled.
fn settled(server: &Server, count: usize) -> (Vec<String>, Vec<(String, String)>) {
    let states = |server: &Server, state: &str| -> Vec<Value> {
        let status = server.status();
        status["apps"].as_array().unwrap().iter().filter(|app| app["state"] == state).cloned().collect()
    };
    server.until("every app is settled", |s| {
        (states(s, "ready").len() + states(s, "failed").len() == count).then_some(())
    });
    let name = |app: &Value| app["name"].as_str().unwrap().to_owned();
    let failed = states(server, "failed").iter().map(|app| (name(app), reason(app))).collect();
    (states(server, "ready").iter().map(name).collect(), failed)
}

fn many(count: usize) -> String {
    let apps = (0..count).map(|n| format!("\"a{n}\": (command: [\"sleep\", \"1000\"], ready: Immediate),\n"));
    format!("(state_dir: \"@DIR@/state\", apps: {{\n{}}})", apps.collect::<String>())
}

#[test]
fn a_start_that_cannot_be_has_the_place_of_its_field() {
    let never = "restart: (policy: Never)";
    let server = Server::new(&format!(
        r#"(state_dir: "@DIR@/state", apps: {{
"good": (command: ["sleep", "1000"], ready: Immediate),
"program": (command: ["no-such-program"], after: ["good"], {never}),
"text": (command: ["./run"], directory: "@DIR@", {never}),
"closed": (command: ["sleep", "1000"], directory: "@DIR@/closed", user: "60999", {never}),
}})"#
    ));
    fs::write(server.path().join("run"), "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(server.path().join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(server.path().join("closed")).unwrap();
    fs::set_permissions(server.path().join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    let server = server.started();
    server.wait_state("good", "ready");
    let mut wanted = vec![("program", 3, "no-such-program"), ("text", 4, "run\", whose interpreter is missing: ")];
    if geteuid().is_root() {
        wanted.push(("closed", 5, "Permission denied"));
    }
    for (app, line, what) in wanted {
        let reason = reason(&server.wait_state(app, "failed"));
        assert!(reason.contains(what) && reason.contains(&format!("supervisor.ron:{line}:")), "{app}: {reason}");
    }
    assert_eq!(server.app("good")["state"], "ready");
}

#[test]
fn what_an_apps_user_cannot_enter_is_told_before_it_starts_and_once_it_is_open_by_a_reload() {
    if !geteuid().is_root() {
        return println!("left out: only root runs apps as others");
    }
    let server = Server::new(
        r#"(state_dir: "@DIR@/state", apps: {
"good": (command: ["sleep", "1000"], ready: Immediate),
"folder": (command: ["sleep", "1000"], directory: "@DIR@/closed/folder", user: "60999", ready: Immediate),
"file": (command: ["@DIR@/closed/file"], user: "60999", ready: Immediate),
"no-folder": (command: ["sleep", "1000"], directory: "@DIR@/closed/file"),
})"#,
    );
    let closed = server.path().join("closed");
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    fs::create_dir_all(closed.join("folder")).unwrap();
    fs::write(closed.join("file"), "#!/bin/sh\nexec sleep 1000\n").unwrap();
    mode(&closed.join("file"), 0o755);
    mode(&closed, 0o700);
    let denied = format!("Permission denied for uid 60999 at {} (", closed.display());
    let wanted = [("folder", 3, denied.as_str()), ("file", 4, denied.as_str()), ("no-folder", 5, "is a file (")];
    let told = server.fails(1, &["check"]);
    let server = server.started();
    server.wait_state("good", "ready");
    for (app, line, what) in wanted {
        let reason = reason(&server.wait_state(app, "failed"));
        assert!(reason.contains(what) && reason.contains(&format!("supervisor.ron:{line}:")), "{app}: {reason}");
        assert!(told.contains(&format!("{app}: cannot run: {reason}")), "{told}");
        assert_eq!(server.instance(app)["restarts"], 0, "{app}");
    }
    mode(&closed, 0o755);
    assert!(server.fails(1, &["start", "folder"]).contains("once that is mended, `everhook reload` starts it"));
    server.ok(&["reload"]);
    for app in ["folder", "file"] {
        server.wait_state(app, "ready");
    }
}

#[test]
fn without_descriptors_left_only_the_app_without_fails() {
    let mut server = Server::new(&many(60));
    server.start_as(&["prlimit", "--nofile=260:260"]);
    let (ready, failed) = settled(&server, 60);
    assert!(ready.len() >= 10 && failed.len() >= 10, "{ready:?} {failed:?}");
    for (app, reason) in &failed {
        assert!(
            reason.contains("descriptors") && reason.contains("LimitNOFILE") && reason.contains("260"),
            "{app}: {reason}"
        );
        assert!(reason.contains("supervisor.ron:"), "{app}: {reason}");
    }
    // What runs is looked after as ever.
    let pid = server.main_pid(&ready[0]);
    server.ok(&["restart", &ready[0]]);
    assert_ne!(server.main_pid(&ready[0]), pid);
    server.fails(1, &["start", &failed[0].0]);
}

#[test]
fn without_a_cgroup_only_the_app_without_fails() {
    let Some(base) = limited_cgroup(3) else { return println!("no cgroup v2 that we may write: left out") };
    let mut server = Server::new(&many(8));
    let enter = format!("echo $$ >{}/cgroup.procs && exec \"$@\"", base.display());
    server.start_as(&["sh", "-c", &enter, "sh"]);
    let (ready, failed) = settled(&server, 8);
    assert!(!ready.is_empty() && !failed.is_empty(), "{ready:?} {failed:?}");
    for (app, reason) in &failed {
        assert!(reason.contains("cgroup") && reason.contains("supervisor.ron:"), "{app}: {reason}");
    }
    // Once there is room, a reload is all it needs.
    fs::write(base.join("cgroup.max.descendants"), "max").unwrap();
    server.ok(&["reload"]);
    assert_eq!(settled(&server, 8).0.len(), 8);
    assert!(server.stop().success());
    let (inner, _): (Vec<PathBuf>, Vec<PathBuf>) =
        fs::read_dir(&base).unwrap().map(|entry| entry.unwrap().path()).partition(|path| path.is_dir());
    inner.iter().for_each(|group| drop(fs::remove_dir(group)));
    let _ = fs::remove_dir(&base);
}

/// A cgroup v2 of the test's own in which only so many can be made.
fn limited_cgroup(most: u32) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let point = mounts.lines().find(|line| line.contains(" cgroup2 "))?.split(' ').nth(1)?.to_owned();
    let base = Path::new(&point).join(format!("everhook-test-{}", std::process::id()));
    fs::create_dir(&base).ok()?;
    fs::write(base.join("cgroup.max.descendants"), most.to_string()).ok()?;
    Some(base)
}

/// Beyond `fs.pipe-user-pages-soft` the kernel gives a user's new pipes two pages: writes are then cut
/// and block sooner.
#[test]
fn cut_pipes_are_told_and_the_app_runs() {
    if !geteuid().is_root() {
        return println!("not root: the pages of pipes of another user cannot be used up");
    }
    // Nobody else's, so that two runs of this test do not give each other room.
    let uid = 1_000_000 + std::process::id();
    let id = uid.to_string();
    let id = id.as_str();
    let soft: usize = fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft").unwrap().trim().parse().unwrap();
    if soft == 0 || soft > 65_536 {
        return println!("fs.pipe-user-pages-soft is {soft}: left out");
    }
    let as_user = ["setpriv", "--reuid", id, "--regid", id, "--clear-groups"];
    let hold = format!(
        "import os, resource, sys\nhard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n\
         resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n\
         pipes = [os.pipe() for _ in range({})]\nprint('held', flush=True)\nsys.stdin.read()",
        soft / 16 + 8
    );
    let mut hog = Command::new(as_user[0]);
    // Another one may be root's alone.
    hog.env("PATH", "/usr/local/bin:/usr/bin:/bin").args(&as_user[1..]).args(["python3", "-c", &hold]);
    let mut hog = hog.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(hog.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");

    let mut server = Server::new(&many(1));
    let folder = server.path().to_owned();
    let binary = folder.join("everhook-as-user");
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_everhook")).arg(&binary).status().unwrap().success());
    chown(&folder, Some(uid), Some(uid)).unwrap();
    let swap = format!("shift; exec {} {} \"$@\"", as_user.join(" "), binary.display());
    server.start_as(&["sh", "-c", &swap, "sh"]);
    server.wait_state("a0", "ready");
    let told = server.until("the cut pipe is told", |s| {
        s.events().into_iter().find(|event| event["app"] == "a0" && event["to"] == "output_cut")
    });
    let cause = told["cause"].as_str().unwrap();
    assert!(cause.contains("fs.pipe-user-pages-soft") && cause.contains("supervisor.ron:2:"), "{cause}");
    drop(hog.stdin.take());
    assert!(hog.wait().unwrap().success());
    let output = server.cli(&["status"]);
    assert!(output.status.success(), "{}", text(&output));
}

/// Each app with its own fault, the line of which it names; `good` runs.
#[test]
fn what_is_wrong_with_one_app_is_told_with_its_line_and_stops_no_other() {
    let user = if geteuid().is_root() { "\"nobody-of-that-name\"" } else { "12345" };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = taken.local_addr().unwrap();
    let faults = format!(
        r#"(state_dir: "@DIR@/state", http: [
(bind: "127.0.0.1:0", serve: [Api])], apps: {{
"good": (command: ["sleep", "1000"], ready: Immediate),
"user": (command: ["sleep", "1000"], user: {user}),
"program": (command: ["no-such-program"]),
"folder": (command: ["sleep", "1000"], directory: "/no/such/folder"),
"cron": (command: ["true"], schedule: "61 * * * *"),
"zone": (command: ["true"], schedule: (cron: "0 3 * * *", zone: "Nowhere/Land")),
"never": (command: ["true"], schedule: "0 0 30 2 *"),
"port": (command: ["sleep", "1000"], sockets: {{"http": "{socket}"}}, restart: (policy: Never)),
"env": (command: ["sleep", "1000"], env_file: "no-such-file"),
}})"#
    );
    let server = Server::new(&faults).started();
    server.wait_state("good", "ready");
    let pid = server.main_pid("good");
    let wanted =
        [("user", 4), ("program", 5), ("folder", 6), ("cron", 7), ("zone", 8), ("never", 9), ("port", 10), ("env", 11)];
    for (app, line) in wanted {
        let reason = reason(&server.wait_state(app, "failed"));
        assert!(reason.contains(&format!("supervisor.ron:{line}:")), "{app}: {reason}");
    }
    // What a person stopped stays so when it is mended.
    server.ok(&["stop", "program"]);
    server.edit_config("no-such-program", "sleep\", \"1000");
    server.ok(&["reload"]);
    assert_eq!(server.app("program")["state"], "stopped", "{}", server.app("program"));
    // The whole that cannot be had is refused with its place, and what runs runs on.
    server.edit_config("[Api])]", &format!("[Api]),\n(bind: \"{socket}\", serve: [Api])]"));
    let said = server.fails(1, &["reload"]);
    assert!(said.contains("somebody else listens there") && said.contains("supervisor.ron:3:8"), "{said}");
    assert_eq!(server.main_pid("good"), pid);
    server.edit_config(&socket.to_string(), "127.0.0.1:0");
    server.ok(&["reload"]);
    server.wait_state("port", "ready");
    drop(taken);
    server.until("the second listener runs", |s| {
        (s.status()["supervisor"]["listeners"][1]["state"] == "ready").then_some(())
    });
    assert_eq!(server.main_pid("good"), pid);
}

/// An app runs without its webhooks, and everhook without a token: after a reboot nobody may be there to mend a file.
#[test]
fn a_secret_of_no_use_at_the_start_stops_no_app() {
    let server = Server::new(
        r#"(state_dir: "@DIR@/state", http: [(bind: "127.0.0.1:0", serve: [Hooks, Api])],
tokens: [(name: "eye", secret: File("@DIR@/token"), role: Viewer)], apps: {
"good": (command: ["sleep", "1000"], ready: Immediate),
"site": (deploy: (repo: "@DIR@/repo", on: [Push(branch: "x")], secret: File("@DIR@/secret"))),
})"#,
    );
    let secret = server.path().join("secret");
    let mode = |mode| fs::set_permissions(&secret, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o644);
    let server = server.started();
    server.wait_state("good", "ready");
    let pid = server.main_pid("good");
    let body = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/github/push.1.json")).unwrap();
    assert_eq!(server.push("site", "1", &body).0, 401);
    let (fix, place) = (format!("chmod 600 {}", secret.display()), "supervisor.ron:4:1");
    let reason = server.app("site")["reason"].clone();
    let is_told = |text: &str| text.contains("other users") && text.contains(&fix) && text.contains(place);
    assert!(is_told(reason.as_str().unwrap()), "{reason}");
    server.until("it is told", |s| (is_told(&s.log()) && s.log().contains("token \"eye\"")).then_some(()));
    server.until("an event", |s| {
        let told = |event: &Value| event["to"] == "hooks_refused" && is_told(event["cause"].as_str().unwrap());
        s.events().iter().any(told).then_some(())
    });
    // Whoever is there hears it.
    let said = server.fails(1, &["reload"]);
    assert!(is_told(&said) && said.contains("token \"eye\""), "{said}");
    assert!(is_told(&server.fails(1, &["check"])));
    mode(0o600);
    server.write_secret("token", "opens");
    server.ok(&["reload"]);
    assert_eq!(server.push("site", "2", &body).0, 200);
    let headers = [("authorization", "Bearer opens")];
    assert_eq!(http::request(server.address("api"), "GET", "/api/v1/status", &headers, &[]).status, 200);
    assert_eq!(server.main_pid("good"), pid);
}

#[test]
fn what_cannot_be_made_for_more_copies_stops_none_that_runs() {
    let server = Server::with_apps(r#""a": (command: ["sleep", "1000"], ready: Immediate, instances: 1)"#).started();
    server.wait_state("a", "ready");
    let pid = server.main_pid("a");
    let (records, aside) = (server.path().join("state/run/records"), server.path().join("aside"));
    fs::rename(&records, &aside).unwrap();
    server.edit_config("instances: 1", "instances: 3");
    let said = server.fails(1, &["reload"]);
    assert!(said.contains("app \"a\"") && said.contains("No such file"), "{said}");
    assert_eq!(server.main_pid("a"), pid);
    fs::rename(&aside, &records).unwrap();
    server.ok(&["reload"]);
    server.until("three run", |s| {
        let app = s.app("a");
        (app["state"] == "ready" && app["instances"].as_array().unwrap().len() == 3).then_some(())
    });
    assert_eq!(server.main_pid("a"), pid);
}

#[test]
fn an_address_that_cannot_be_had_at_the_start_stops_no_app_and_is_had_once_it_is_free() {
    let (address, nowhere) = (free_address(), "192.0.2.1:9988");
    let taken = std::net::TcpListener::bind(address).unwrap();
    let server = Server::new(&format!(
        r#"(state_dir: "@DIR@/state", http: [
(bind: "{address}", serve: [Api]),
(bind: "{nowhere}", serve: [Hooks]),
(bind: "127.0.0.1:0", serve: [Api])], apps: {{
"good": (command: ["sleep", "1000"], ready: Immediate),
}})"#
    ));
    let server = server.started();
    server.wait_state("good", "ready");
    let pid = server.main_pid("good");
    let listener = |s: &Server, n: usize| s.status()["supervisor"]["listeners"][n].clone();
    let why = [(0, "somebody else listens there", 2), (1, "Cannot assign", 3)];
    let is_told = |s: &Server, (n, what, line): (usize, &str, u32)| {
        let listener = listener(s, n);
        let reason = listener["reason"].as_str().unwrap_or_default();
        assert_eq!((&listener["state"], &listener["pid"]), (&"failed".into(), &Value::Null), "{listener}");
        assert!(reason.contains(what) && reason.contains(&format!("supervisor.ron:{line}:8")), "{reason}");
        assert!(s.ok(&["status"]).contains(reason), "{reason}");
        s.until("the log tells it too", |s| s.log().contains(reason).then_some(()));
    };
    why.into_iter().for_each(|expected| is_told(&server, expected));
    server.until("the other one runs", |s| (listener(s, 2)["state"] == "ready").then_some(()));

    // A reload has it tried at once, and is not refused for what is not new.
    server.edit_config("\"good\": (", "\"more\": (command: [\"sleep\", \"1000\"], ready: Immediate),\n\"good\": (");
    server.ok(&["reload"]);
    server.wait_state("more", "ready");
    why.into_iter().for_each(|expected| is_told(&server, expected));
    let failed = |s: &Server| s.events().into_iter().filter(|e| e["kind"] == "listener" && e["to"] == "failed").count();
    assert_eq!(failed(&server), 2, "it is told once, however often it is tried");

    drop(taken);
    let ready = |s: &Server| Some(listener(s, 0)).filter(|listener| listener["state"] == "ready");
    let ready = server.until("the freed address is listened on", ready);
    assert_eq!((&ready["reason"], &ready["restarts"]), (&Value::Null, &0.into()), "{ready}");
    std::net::TcpStream::connect(address).unwrap();
    // One that is not to be had goes like any other.
    server.edit_config(&format!("(bind: \"{nowhere}\", serve: [Hooks]),"), "");
    server.ok(&["reload"]);
    assert_eq!(server.status()["supervisor"]["listeners"].as_array().unwrap().len(), 2);
    assert_eq!(server.main_pid("good"), pid);
}
