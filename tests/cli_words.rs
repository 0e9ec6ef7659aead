//! What commands answer, and with which exit code; who on this machine may do what.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use nix::unistd::geteuid;
use server::Server;

const APPS: &str = r#""db": (command: ["sleep", "1000"], ready: Immediate),
    "web": (command: ["sleep", "1000"], ready: Immediate, after: ["db"])"#;
const NOBODY: u32 = 65534;

fn server() -> Server {
    let server = Server::with_apps(APPS).started();
    server.wait_state("web", "ready");
    server
}

#[test]
fn no_supervisor_is_3_and_tells_how_to_start_one() {
    let server = Server::with_apps(APPS);
    for args in [
        &["status"][..],
        &["restart", "web"],
        &["logs", "web"],
        &["cancel", "7"],
        &["deliveries", "redeliver", "7"],
        &["reload"],
        &["shutdown"],
    ] {
        let told = server.fails(3, args);
        assert!(told.starts_with("everhook: ") && told.contains("control.sock"), "{told}");
        assert!(told.contains(&format!("everhook run --config {}", server.config().display())), "{told}");
    }
}

#[test]
fn what_does_not_exist_is_4_and_the_nearest_is_named() {
    let server = server();
    for args in [
        &["restart", "wep"][..],
        &["status", "wep"],
        &["stop", "wep"],
        &["logs", "wep"],
        &["history", "wep"],
        &["freeze", "wep", "--why", "x"],
        &["unfreeze", "wep"],
    ] {
        let told = server.fails(4, args);
        assert!(told.contains("app \"wep\" does not exist; did you mean \"web\"?"), "{args:?}: {told}");
    }
    for args in [
        &["restart", "web.2"][..],
        &["history", "show", "7"],
        &["deliveries", "show", "7"],
        &["cancel", "7"],
        &["approve", "7"],
        &["deliveries", "redeliver", "7"],
    ] {
        server.fails(4, args);
    }
}

#[test]
fn a_wrong_line_is_2() {
    let server = Server::with_apps(APPS);
    for args in [
        &["explode"][..],
        &["restart"],
        &["restart", "web", "--explode"],
        &["wait", "web", "--for", "perfect"],
        &["wait", "web", "--for", "ready", "--timeout", "long"],
        &["signal", "web", "SIGNONE"],
        &["reload", "web"],
        &["cancel"],
        &["approve", "web"],
        &["freeze", "web"],
        &["deploy", "web", "--dry-run", "--detach"],
        &["exec", "web", "--"],
    ] {
        let told = server.fails(2, args);
        assert!(told.starts_with("everhook: "), "{args:?}: {told}");
    }
}

#[test]
fn a_wait_ends_at_6_when_time_is_up() {
    let server = server();
    server.fails(6, &["wait", "web", "--for", "stopped", "--timeout", "200ms"]);
    server.ok(&["wait", "web", "--for", "ready", "--timeout", "60s"]);
}

#[test]
fn a_stop_that_hurts_others_needs_a_yes() {
    let server = server();
    let told = server.fails(2, &["stop", "db"]);
    assert!(told.contains("web") && told.contains("-y"), "{told}");
    assert_eq!(server.app("db")["state"], "ready");
    server.ok(&["stop", "web"]);
    server.ok(&["stop", "db"]);
    server.ok(&["start", "db", "web"]);
    server.ok(&["stop", "db", "-y"]);
    assert_eq!(server.app("db")["state"], "stopped");
    server.ok(&["stop", "db"]);
    server.ok(&["stop", "--all"]);
}

#[test]
fn all_are_those_that_can_run() {
    let server = Server::with_apps(
        r#""site": (deploy: (repo: "@DIR@/none")),
           "off": (command: ["sleep", "1000"], enabled: false),
           "web": (command: ["sleep", "1000"], ready: Immediate)"#,
    )
    .started();
    server.wait_state("web", "ready");
    let old = server.main_pid("web");
    for (verb, state) in [("restart", "ready"), ("stop", "stopped"), ("start", "ready")] {
        server.ok(&[verb, "--all"]);
        assert_eq!(server.app("web")["state"], state, "{verb}");
    }
    assert_ne!(server.main_pid("web"), old);
    assert!(server.fails(1, &["restart", "site"]).contains("no command"));
    server.fails(1, &["start", "off"]);
}

#[test]
fn what_does_not_come_up_is_1() {
    let server =
        Server::with_apps(r#""lame": (command: "echo last words >&2; exit 3", ready: After("10s"))"#).started();
    let told = server.fails(1, &["restart", "lame"]);
    assert!(told.contains('3') && told.contains("last words"), "{told}");
    let told = server.fails(1, &["deploy", "lame"]);
    assert!(told.contains("no repository"), "{told}");
}

#[test]
fn without_local_nobody_else_may_do_anything() {
    if !geteuid().is_root() {
        return;
    }
    let server = server();
    for args in [&["status"][..], &["logs", "web"], &["events"], &["history"], &["audit"], &["restart", "web"]] {
        let output = server.cli_as(NOBODY, args);
        let told = server::text(&output);
        assert_eq!(output.status.code(), Some(5), "{args:?}: {told}");
        assert!(told.contains("needs the role"), "{args:?}: {told}");
    }
    let row = server.json(&["audit"]).as_array().unwrap().last().unwrap().clone();
    assert_eq!((row["by"]["uid"].as_u64(), row["outcome"].as_str()), (Some(NOBODY.into()), Some("refused")), "{row}");
    assert_eq!((row["action"].as_str(), row["app"].as_str()), (Some("restart"), Some("web")), "{row}");
}

#[test]
fn local_gives_others_a_role() {
    if !geteuid().is_root() {
        return;
    }
    let server = Server::with_apps(APPS);
    server.edit_config("apps: {", "local: {\"*\": Viewer}, apps: {");
    let server = server.started();
    server.wait_state("web", "ready");
    let pid = server.main_pid("web");
    for args in [&["status"][..], &["logs", "web"], &["events"], &["history", "web"], &["deliveries"]] {
        let output = server.cli_as(NOBODY, args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", server::text(&output));
    }
    for (args, needed) in [
        (&["restart", "web"][..], "Operator"),
        (&["stop", "web"], "Operator"),
        (&["signal", "web", "TERM"], "Operator"),
        (&["deploy", "web"], "Deployer"),
        (&["deploy", "web", "--dry-run"], "Deployer"),
        (&["freeze", "web", "--why", "x"], "Deployer"),
        (&["unfreeze", "web"], "Deployer"),
        (&["reload"], "Admin"),
        (&["shutdown"], "Admin"),
        (&["audit"], "Admin"),
        (&["check", "--diff"], "Admin"),
    ] {
        let output = server.cli_as(NOBODY, args);
        let told = server::text(&output);
        assert_eq!(output.status.code(), Some(5), "{args:?}: {told}");
        assert!(told.contains(&format!("needs the role {needed}")), "{args:?}: {told}");
    }
    assert_eq!(server.main_pid("web"), pid);
    // The role counts from the reload on that gives it.
    server.edit_config("Viewer", "Operator");
    server.ok(&["reload"]);
    let output = server.cli_as(NOBODY, &["restart", "web"]);
    assert!(output.status.success(), "{}", server::text(&output));
    assert_ne!(server.main_pid("web"), pid);
}

#[test]
fn every_state_can_be_waited_for() {
    let deaf = "trap : TERM; echo deaf; while :; do sleep 1000 & wait; done";
    let server = Server::with_apps(&format!(
        r#""runs": (command: ["sleep", "1000"], ready: Immediate),
           "ends": (command: ["true"], ready: Immediate, restart: (policy: OnFailure)),
           "rests": (command: ["true"], enabled: false),
           "fails": (command: ["false"], ready: Immediate, restart: (policy: Never)),
           "pauses": (command: ["false"], ready: Immediate, restart: (first: "1h", max: "1h")),
           "begins": (command: ["sleep", "1000"], ready: Notify),
           "waits": (command: ["true"], after: ["begins"]),
           "leaves": (command: "{deaf}", ready: Immediate, stop: (timeout: "60s")),
           "serves": (command: "{deaf}", ready: Immediate, replace: StartFirst, stop: (timeout: "60s", drain: "60s")),
           "files": (deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/secret")))"#
    ));
    let server = server.started();
    let wait = |app: &str, state: &str| server.ok(&["wait", app, "--for", state, "--timeout", "60s"]);
    for (app, state) in [
        ("runs", "ready"),
        ("ends", "done"),
        ("rests", "stopped"),
        ("fails", "failed"),
        ("pauses", "backoff"),
        ("begins", "starting"),
        ("waits", "waiting"),
        ("leaves", "ready"),
        ("serves.1", "ready"),
        ("files", "waiting"),
    ] {
        wait(app, state);
    }
    for app in ["leaves", "serves"] {
        server.until("it is deaf", |s| s.ok(&["logs", app]).contains("deaf").then_some(()));
    }
    let mut waiting = std::process::Command::new(env!("CARGO_BIN_EXE_everhook"));
    waiting.args(["wait", "files", "--for", "deployed", "--config"]).arg(server.config());
    let mut waiting = waiting.spawn().unwrap();
    server::Repo::new(server.path().join("repo"), &[("index.html", "1")]);
    server.cli(&["deploy", "files"]);
    assert!(server.until("it is deployed", |_| waiting.try_wait().unwrap()).success());
    server.ok(&["stop", "leaves", "--no-wait"]);
    wait("leaves", "stopping");
    server.ok(&["restart", "serves"]);
    wait("serves", "draining");
    wait("serves.1", "draining");
    server.fails(6, &["wait", "runs", "--for", "draining", "--timeout", "50ms"]);
    server.fails(4, &["wait", "nobody", "--for", "ready"]);
    server.fails(4, &["wait", "runs.2", "--for", "ready"]);
    let told = server.fails(2, &["wait", "runs", "--for", "perfect"]);
    for state in
        ["ready", "done", "stopped", "failed", "waiting", "starting", "stopping", "backoff", "draining", "deployed"]
    {
        assert!(told.contains(state), "{told}");
    }
    server.ok(&["shutdown", "--now"]);
}
