//! What the tests of reloads share: three apps, who runs with which pid, and a reload by signal.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{collections::BTreeMap, fs};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::server::Server;

pub const APPS: &str = r#""one": (command: ["sleep", "1001"], ready: Immediate, env_file: "@DIR@/one.env", restart: (policy: Always, first: "10ms")),
    "two": (command: ["sleep", "1002"], ready: Immediate, env: {"COLOUR": "red"}),
    "three": (command: ["sleep", "1003"], ready: Immediate, after: ["two"])"#;

pub fn server() -> Server {
    let server = Server::with_apps(APPS);
    fs::write(server.path().join("one.env"), "GREETING=hello\n").unwrap();
    let server = server.started();
    for app in ["one", "two", "three"] {
        server.wait_state(app, "ready");
    }
    server.until("all of its own run too", |s| pids(s).values().all(Value::is_i64).then_some(()));
    server
}

/// Who runs with which pid, listeners and logger too.
pub fn pids(server: &Server) -> BTreeMap<String, Value> {
    let status = server.status();
    let supervisor = &status["supervisor"];
    let listeners =
        supervisor["listeners"].as_array().unwrap().iter().map(|l| (l["bind"].to_string(), l["pid"].clone()));
    let apps = status["apps"].as_array().unwrap();
    let apps = apps.iter().map(|app| (app["name"].as_str().unwrap().to_owned(), app["instances"][0]["pid"].clone()));
    listeners.chain(apps).chain([("the logger".to_owned(), supervisor["logger"]["pid"].clone())]).collect()
}

/// The config, there whole, since somebody may read it meanwhile.
pub fn put(server: &Server, text: &str) {
    let next = server.path().join("next.ron");
    fs::write(&next, text).unwrap();
    fs::rename(&next, server.config()).unwrap();
}

pub fn reloads(server: &Server) -> usize {
    server.events().iter().filter(|event| event["kind"] == "reload").count()
}

/// Reloads by signal, and waits for its end.
pub fn hup(server: &Server) -> Value {
    let before = reloads(server);
    server.signal(Signal::SIGHUP);
    server.until("the end of the reload", |s| {
        let all = s.events();
        let reloads: Vec<_> = all.iter().filter(|event| event["kind"] == "reload").collect();
        (reloads.len() > before).then(|| (*reloads.last().unwrap()).clone())
    })
}

pub fn environ(server: &Server, app: &str) -> String {
    // Empty for a moment while the shell executes the program; the app may be on its way to another one.
    server.until("an environment", |s| {
        let pid = s.instance(app)["pid"].as_i64()?;
        let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
        (!environ.is_empty()).then(|| String::from_utf8(environ).unwrap())
    })
}
