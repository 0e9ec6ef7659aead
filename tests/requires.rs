//! Apps that cannot run without another, and apps that everhook does not run without, from outside.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::fs;

use server::Server;

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
    server.ok(&["start", "db"]);
    server.wait_state("web", "ready");
    assert_ne!(server.main_pid("web"), web);

    fs::write(server.path().join("said"), "").unwrap();
    assert!(server.stop().success());
    let order = said(&server);
    let place = |name: &str| order.iter().position(|line| line == &format!("end {name}"));
    assert!(place("web") < place("db"), "{order:?}");
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
