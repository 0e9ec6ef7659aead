//! Apps that cannot run without another, and apps that everhook does not run without, from outside.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{fs, process::Stdio, time::Instant};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use server::{LIMIT, Server};

fn app(name: &str, fields: &str) -> String {
    format!(
        r#""{name}": (ready: Immediate, restart: (first: "10ms"), {fields}
            command: "trap 'echo end {name} >> @DIR@/said; exit 0' TERM; echo start {name} >> @DIR@/said; while :; do sleep 1000 & wait; done"),"#
    )
}

fn said(server: &Server) -> Vec<String> {
    let text = fs::read_to_string(server.path().join("said")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Waits until these have spoken, and hear a signal from then on.
fn begun(server: &Server, names: &[&str]) {
    server.until("they have begun", |s| {
        let said = said(s);
        names.iter().all(|name| said.contains(&format!("start {name}"))).then_some(())
    });
}

#[test]
fn it_stops_and_starts_again_with_what_it_requires() {
    let config = [app("web", "requires: [\"db\"],"), app("db", ""), app("other", "after: [\"db\"],")].concat();
    let mut server = Server::with_apps(&config).started();
    server.wait_state("web", "ready");
    server.wait_state("other", "ready");
    let starts: Vec<_> = server.events().iter().filter(|e| e["to"] == "starting").map(|e| e["app"].clone()).collect();
    assert_eq!(starts[0], "db", "{starts:?}");

    let (web, other) = (server.main_pid("web"), server.main_pid("other"));
    server.ok(&["signal", "db", "KILL"]);
    let web = server.wait_new_pid("web", web);
    server.wait_state("web", "ready");
    assert_eq!(server.main_pid("other"), other, "`after` alone is no such tie");

    let said_no = server.fails(2, &["stop", "db"]);
    assert!(said_no.contains("web"), "{said_no}");
    server.ok(&["stop", "-y", "db"]);
    let waiting = server.wait_state("web", "waiting");
    assert_eq!(waiting["instances"][0]["reason"], "requires db, which is not up");
    assert!(server.fails(1, &["start", "web"]).contains("web requires db, which is stopped"));
    fs::write(server.path().join("said"), "").unwrap();
    server.ok(&["start", "db"]);
    server.wait_state("web", "ready");
    assert_ne!(server.main_pid("web"), web);

    begun(&server, &["db", "web"]);
    assert!(server.stop().success());
    let order = said(&server);
    let place = |name: &str| order.iter().position(|line| line == &format!("end {name}"));
    assert!(place("web") < place("db"), "{order:?}");
}

#[test]
fn who_requires_what_nobody_starts_says_so_and_holds_nobody_up() {
    let failing =
        r#""bad": (command: "exit 3", ready: After("10s"), restart: (give_up: (restarts: 0, within: "1m"))),"#;
    let config = [
        failing.to_owned(),
        app("off", "enabled: false,"),
        app("needs-bad", "requires: [\"bad\"],"),
        app("needs-off", "requires: [\"off\"],"),
        app("needs-both", "requires: [\"needs-off\", \"needs-bad\"],"),
        app("late", "after: [\"needs-bad\", \"needs-off\", \"needs-both\"],"),
    ];
    let server = Server::with_apps(&config.concat()).started();
    server.wait_state("late", "ready");
    server.wait_state("bad", "failed");
    for name in ["needs-bad", "needs-off", "needs-both"] {
        assert_eq!(server.app(name)["state"], "waiting");
    }
    let said = server.fails(1, &["start", "needs-bad"]);
    assert!(said.contains("needs-bad waits: requires bad, which has failed"), "{said}");
    let said = server.fails(1, &["start", "needs-both"]);
    assert!(said.contains("needs-both waits: requires needs-off, which requires off, which is stopped"), "{said}");
}

#[test]
fn whoever_is_stopped_together_with_what_it_requires_has_its_time() {
    let server = Server::with_apps(&[app("web", "requires: [\"db\"],"), app("db", "")].concat()).started();
    server.wait_state("web", "ready");
    begun(&server, &["db", "web"]);
    server.ok(&["stop", "--all"]);
    assert!(said(&server).contains(&"end web".to_owned()), "{:?}", said(&server));
    assert!(said(&server).contains(&"end db".to_owned()), "{:?}", said(&server));
}

/// Of so many apps the first run while the others are still made.
#[test]
fn of_many_apps_each_waits_for_those_before_it_and_everybody_is_heard() {
    let many: String =
        (0..150).map(|n| format!("\"m{n}\": (command: [\"/bin/sleep\", \"1000\"], ready: Immediate),\n")).collect();
    let late = r#""late": (command: "while ! test -e @DIR@/go; do sleep 0.02; done; echo >&3; exec sleep 1000", ready: Fd(fd: 3)),"#;
    let after = r#""a-first": (command: ["/bin/sleep", "1000"], ready: Immediate, after: ["m149", "late"]),"#;
    let mut server = Server::with_apps(&[&many, late, after].concat());
    server.start();
    // Whoever asks is answered when every app is known.
    assert_eq!(server.status()["apps"].as_array().unwrap().len(), 152);
    server.ok(&["stop", "-y", "m148"]);
    server.wait_state("m149", "ready");
    assert_eq!(server.wait_state("a-first", "waiting")["instances"][0]["reason"], "waits for late");
    fs::write(server.path().join("go"), "").unwrap();
    server.wait_state("a-first", "ready");
    for n in 0..150 {
        server.wait_state(&format!("m{n}"), if n == 148 { "stopped" } else { "ready" });
    }
    assert!(server.stop().success());
}

#[test]
fn an_end_that_is_wanted_while_apps_are_made_ends_those_that_run() {
    let many: String = (0..200).map(|n| app(&format!("m{n}"), "")).collect();
    let server = Server::with_apps(&many);
    let mut everhook = server.client(&["run"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // At the first sign of life of one of them.
    server.until("an app runs", |server| (!said(server).is_empty()).then_some(()));
    kill(Pid::from_raw(everhook.id().cast_signed()), Signal::SIGTERM).unwrap();
    let ended = server.until("the end", |_| everhook.try_wait().unwrap());
    assert!(ended.success());
    let said = said(&server);
    for begun in said.iter().filter_map(|line| line.strip_prefix("start ")) {
        assert!(said.contains(&format!("end {begun}")), "{begun} of {said:?}");
    }
}

#[test]
fn an_end_that_is_wanted_before_it_is_heard_comes_in_order() {
    let server = Server::with_apps(&app("web", ""));
    let lock = server.path().join("state/run/lock");
    for _ in 0..6 {
        let _ = fs::remove_file(&lock);
        let mut everhook = server.client(&["run"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Among the first things that it makes.
        let end = Instant::now() + LIMIT;
        while !lock.exists() {
            assert!(Instant::now() < end, "no lock is made");
        }
        kill(Pid::from_raw(everhook.id().cast_signed()), Signal::SIGTERM).unwrap();
        let ended = server.until("the end", |_| everhook.try_wait().unwrap());
        assert!(ended.success(), "{ended}");
    }
}

#[test]
fn what_it_cannot_do_without_ends_everhook_with_one() {
    let bad = r#""bad": (command: "until test -e @DIR@/go; do sleep 0.02; done; echo no database; exit 3", ready: Immediate, on_failed: Shutdown,
        restart: (first: "10ms", give_up: (restarts: 2, within: "5m"))),"#;
    let mut server = Server::with_apps(&format!("{bad}\n{}", app("good", ""))).started();
    server.until("both run", |s| (said(s) == ["start good"] && s.app("bad")["state"] == "ready").then_some(()));
    fs::write(server.path().join("go"), "").unwrap();
    let status = server.ended();
    assert_eq!(status.code(), Some(1));
    assert!(
        server.log().contains("app \"bad\" has failed: exited with 3; gave up after 2 restarts"),
        "{}",
        server.log()
    );
    assert_eq!(said(&server), ["start good", "end good"], "the others end in order");
}
