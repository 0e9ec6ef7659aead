//! People without ssh: tokens and roles over HTTP, what the audit keeps of it, and what a reload
//! touches.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::fs;

use nix::sys::signal::Signal;
use server::Server;

const SLEEPER: &str = r#"(command: ["sleep", "1000"], ready: Immediate"#;

fn world() -> Server {
    let tokens = [("look", "Viewer", ""), ("work", "Operator", ", apps: [\"one\"]"), ("ship", "Deployer", "")].map(
        |(name, role, apps)| format!("(name: \"{name}\", secret: File(\"@DIR@/state/{name}\"), role: {role}{apps})"),
    );
    let mut server = Server::new(&format!(
        r#"(state_dir: "@DIR@/state", http: [(bind: "127.0.0.1:0", serve: [Hooks, Api])], tokens: [{}],
        apps: {{ "one": {SLEEPER}), "two": {SLEEPER}, env: {{"A": "1"}}), }})"#,
        tokens.join(", ")
    ));
    server.start();
    server.wait_state("one", "ready");
    server.wait_state("two", "ready");
    server
}

fn ask(server: &Server, token: &str, method: &str, target: &str) -> (u16, serde_json::Value) {
    let secret = fs::read_to_string(server.path().join("state").join(token)).unwrap_or_else(|_| token.to_owned());
    let bearer = format!("Bearer {secret}");
    let answer = http::request(server.address("api"), method, target, &[("authorization", &bearer)], &[]);
    (answer.status, answer.json())
}

#[test]
fn each_role_may_what_it_may_and_the_audit_knows() {
    let server = world();
    let (status, body) = ask(&server, "look", "GET", "/api/v1/status");
    assert_eq!((status, body["apps"].as_array().unwrap().len()), (200, 2));
    let (status, body) = ask(&server, "work", "GET", "/api/v1/status");
    assert_eq!((status, body["apps"].as_array().unwrap().len()), (200, 1), "only its own apps");
    assert_eq!(ask(&server, "nonsense", "GET", "/api/v1/status").0, 401);

    let (status, body) = ask(&server, "look", "POST", "/api/v1/apps/one/restart");
    assert_eq!(status, 403, "{body}");
    assert!(body["detail"].as_str().unwrap().contains("Operator"), "{body}");
    assert_eq!(ask(&server, "work", "POST", "/api/v1/apps/two/restart").0, 404, "not its app");
    assert_eq!(ask(&server, "work", "POST", "/api/v1/apps/none/restart").0, 404);
    assert_eq!(ask(&server, "work", "POST", "/api/v1/apps/one/deploy").0, 403);
    assert_eq!(ask(&server, "ship", "POST", "/api/v1/apps/one/deploy").0, 409, "it has no repository");

    let pid = server.main_pid("one");
    let (status, body) = ask(&server, "work", "POST", "/api/v1/apps/one/restart?wait=30s");
    assert_eq!((status, &body["action"]), (200, &"restart".into()), "{body}");
    assert_ne!(server.main_pid("one"), pid);
    assert_eq!(ask(&server, "ship", "POST", "/api/v1/apps/two/stop?wait=30s").0, 200);
    assert_eq!(server.app("two")["state"], "stopped");

    let audit = server.json(&["audit"]);
    let rows: Vec<_> = audit
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let text = |key: &str| row[key].as_str().unwrap_or("").to_owned();
            (row["by"]["name"].as_str().unwrap_or("").to_owned(), text("action"), text("app"), text("outcome"))
        })
        .collect();
    let has = |by: &str, action: &str, app: &str, outcome: &str| {
        rows.contains(&(by.to_owned(), action.to_owned(), app.to_owned(), outcome.to_owned()))
    };
    assert!(has("work", "restart", "one", "done") && has("ship", "stop", "two", "done"), "{rows:?}");
    assert!(rows.iter().any(|(by, _, _, outcome)| by == "look" && outcome == "refused"), "{rows:?}");
}

#[test]
fn a_reload_touches_only_what_changed() {
    let server = world();
    let (one, two) = (server.main_pid("one"), server.main_pid("two"));
    server.ok(&["reload"]);
    assert_eq!((server.main_pid("one"), server.main_pid("two")), (one, two), "nothing has changed");

    server.edit_config(r#""A": "1""#, r#""A": "2""#);
    assert_eq!(server.status()["supervisor"]["config_differs"], true);
    server.ok(&["reload"]);
    let two = server.wait_new_pid("two", two);
    assert_eq!(server.main_pid("one"), one);

    server.edit_config(r#""two": (command"#, r#""two": (comand"#);
    let said = server.fails(1, &["reload"]);
    assert!(said.contains("supervisor.ron:") && said.contains("did you mean \"command\""), "{said}");
    assert_eq!((server.main_pid("one"), server.main_pid("two")), (one, two), "all or nothing");
    server.edit_config(r#""two": (comand"#, r#""two": (command"#);

    server.edit_config(
        r#""one": (command: ["sleep", "1000"]"#,
        r#""one": (restart: (policy: Never), command: ["sleep", "1000"]"#,
    );
    server.edit_config(r#"apps: { "#, &format!(r#"apps: {{ "three": {SLEEPER}), "#));
    server.signal(Signal::SIGHUP);
    server.wait_state("three", "ready");
    assert_eq!(server.main_pid("one"), one, "a policy needs no restart");
    server.ok(&["signal", "one", "KILL"]);
    server.wait_state("one", "failed");

    fs::remove_file(server.path().join("state/run/control.sock")).unwrap();
    server.signal(Signal::SIGHUP);
    server.until("the control socket is back", |s| s.cli(&["status"]).status.success().then_some(()));

    let audit = server.json(&["audit"]);
    let hup = audit.as_array().unwrap().iter().find(|row| row["by"]["kind"] == "signal").unwrap();
    assert_eq!(hup["by"]["pid"], std::process::id(), "{hup}");
}
