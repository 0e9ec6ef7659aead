//! Several copies of an app, from outside: each has its own number, output and hold; what restarts
//! them goes one by one; a reload touches the difference alone.
#![allow(clippy::unwrap_used)]

#[path = "support/deploying.rs"]
mod deploying;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

use deploying::{start_live, world};
use serde_json::Value;
use server::Server;

/// Three copies that say who they are and wait.
const APP: &str = r#""blog": (command: "echo $EVERHOOK_INSTANCE {instance} $PORT $ID; sleep 1000", instances: 3, port: 4000,
    env: {"ID": "id-{instance}"}, ready: Immediate)"#;

fn pids(server: &Server) -> Vec<i64> {
    server.app("blog")["instances"].as_array().unwrap().iter().map(|i| i["pid"].as_i64().unwrap_or(0)).collect()
}

fn states(server: &Server) -> Vec<String> {
    let word = |i: &Value| i["state"].as_str().unwrap().to_owned();
    server.app("blog")["instances"].as_array().unwrap().iter().map(word).collect()
}

#[test]
fn each_copy_has_its_number_output_and_hold() {
    let mut server = Server::with_apps(APP).started();
    server.wait_state("blog", "ready");
    server.until("all have spoken", |s| {
        let said = s.ok(&["logs", "blog"]);
        (1..=3).all(|n| said.contains(&format!("blog.{n} {n} {} id-{n}", 3999 + n))).then_some(())
    });
    assert!(!server.ok(&["logs", "blog.2"]).contains("blog.1 "));
    assert!(server.ok(&["status"]).contains("blog.3"));
    let one = server.json(&["status", "blog.2"]);
    assert_eq!(one["apps"][0]["instances"].as_array().unwrap().len(), 1, "{one}");

    let before = pids(&server);
    server.ok(&["stop", "blog.2"]);
    assert_eq!(states(&server), ["ready", "stopped", "ready"]);
    assert_eq!(server.app("blog")["state"], "stopped", "the worst speaks for the app");
    server.ok(&["reload"]);
    server.kill();
    server.start();
    server.until("two run again", |s| (states(s) == ["ready", "stopped", "ready"]).then_some(()));
    let again = pids(&server);
    assert_eq!(again, [before[0], 0, before[2]], "those that ran go on");
    server.ok(&["start", "blog.2"]);
    assert_eq!(states(&server), ["ready", "ready", "ready"]);
    assert_eq!((pids(&server)[0], pids(&server)[2]), (again[0], again[2]), "the others were left alone");

    let mut follower = server.client(&["events", "blog.2", "-f", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut followed = BufReader::new(follower.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let past = server.ok(&["events", "blog.2", "--json"]);
    assert!(past.lines().count() > 3 && past.lines().all(|line| line.contains(r#""instance":"blog.2""#)), "{past}");
    assert_eq!(followed.by_ref().take(past.lines().count()).collect::<Vec<_>>(), past.lines().collect::<Vec<_>>());

    server.ok(&["restart", "blog.3"]);
    server.ok(&["restart", "blog.2"]);
    let next = followed.next().unwrap();
    assert!(next.contains(r#""instance":"blog.2""#) && next.contains("restart by"), "{next}");
    follower.kill().unwrap();
    follower.wait().unwrap();
    assert_eq!(pids(&server)[0], again[0]);
    assert_ne!(pids(&server)[2], again[2]);
    server.ok(&["signal", "blog.1", "KILL"]);
    server.until("another first copy", |s| {
        let pid = pids(s)[0];
        (pid != 0 && pid != again[0]).then_some(())
    });
    server.ok(&["wait", "blog.1", "--for", "ready"]);

    server.ok(&["stop", "blog"]);
    server.ok(&["start", "blog.1"]);
    assert_eq!(states(&server), ["ready", "stopped", "stopped"]);
    let said = server.fails(4, &["restart", "blog.4"]);
    assert!(said.contains("blog.1 to blog.3"), "{said}");
}

#[test]
fn a_restart_goes_one_by_one_and_stops_at_the_first_that_fails() {
    let server = Server::with_apps(
        r#""blog": (command: "test -e @DIR@/broken-{instance} || { echo >&3; exec sleep 1000; }; echo broken here; exit 7",
             instances: 3, ready: Fd(fd: 3), restart: (first: "10m", max: "10m"))"#,
    )
    .started();
    server.wait_state("blog", "ready");
    let first = pids(&server);
    server.ok(&["restart", "blog"]);
    let second = pids(&server);
    assert!(first.iter().zip(&second).all(|(a, b)| a != b), "{first:?} {second:?}");
    // Since the start of the whole, the states as they came: never two away from ready at once.
    let events = server.events();
    let rolled = events.iter().skip_while(|e| e["to"] != "stopping").filter(|e| e["app"] == "blog");
    let order: Vec<_> = rolled.map(|e| (e["instance"].as_str().unwrap(), e["to"].as_str().unwrap())).collect();
    let one = |name| [(name, "stopping"), (name, "starting"), (name, "ready")];
    assert_eq!(order, [one("blog.1"), one("blog.2"), one("blog.3")].concat());

    fs::write(server.path().join("broken-2"), "").unwrap();
    let said = server.fails(1, &["restart", "blog"]);
    assert!(said.contains("blog.2") && said.contains("blog.3 runs on as before"), "{said}");
    assert!(said.contains("blog.2 | broken here"), "{said}");
    assert_eq!(states(&server), ["ready", "backoff", "ready"]);
    assert_eq!(pids(&server)[2], second[2]);
    assert!(server.events().iter().any(|e| e["kind"] == "app" && e["to"] == "restart_stopped"));
}

#[test]
fn a_restart_waits_for_those_too_that_had_failed_or_were_stopped() {
    let server = Server::with_apps(
        r#""blog": (command: "test -e @DIR@/cured && { echo >&3; exec sleep 1000; }; exit 7", instances: 3,
             ready: Fd(fd: 3), restart: (give_up: (restarts: 0, within: "1m")))"#,
    )
    .started();
    server.until("all have failed", |s| (states(s) == ["failed"; 3]).then_some(()));
    let said = server.fails(1, &["restart", "blog"]);
    assert!(said.contains("blog.1: exited with 7") && !said.contains("runs on"), "{said}");
    fs::write(server.path().join("cured"), "").unwrap();
    server.ok(&["restart", "blog"]);
    assert_eq!(states(&server), ["ready"; 3]);
    server.ok(&["stop", "blog.3"]);
    server.ok(&["restart", "blog"]);
    assert_eq!(states(&server), ["ready"; 3]);
}

#[test]
fn a_copy_that_comes_anew_was_not_stopped_by_anybody() {
    let mut server = Server::with_apps(APP).started();
    server.wait_state("blog", "ready");
    server.ok(&["stop", "blog.3"]);
    server.edit_config("instances: 3", "instances: 2");
    server.ok(&["reload"]);
    server.until("two are left", |s| (states(s) == ["ready"; 2]).then_some(()));
    server.edit_config("instances: 2", "instances: 3");
    server.ok(&["reload"]);
    server.until("three run", |s| (states(s) == ["ready"; 3]).then_some(()));
    assert!(server.stop().success());
    server.start();
    server.until("three run again", |s| (states(s) == ["ready"; 3]).then_some(()));
}

#[test]
fn a_reload_starts_and_stops_the_difference_alone() {
    let server = Server::with_apps(APP).started();
    server.wait_state("blog", "ready");
    let three = pids(&server);
    server.edit_config("instances: 3", "instances: 1");
    assert!(server.ok(&["reload"]).contains("changed without a restart (instances)"));
    server.until("one is left", |s| (pids(s) == three[..1]).then_some(()));
    server.edit_config("instances: 1", "instances: 4");
    server.ok(&["reload"]);
    server.until("four run", |s| (states(s) == ["ready"; 4]).then_some(()));
    assert_eq!(pids(&server)[0], three[0]);
    server.until("the fourth has spoken", |s| s.ok(&["logs", "blog.4"]).contains("4003 id-4").then_some(()));
}

#[test]
fn a_release_that_fails_in_one_copy_goes_live_in_none() {
    let (mut server, repo) = world("instances: 2,", "");
    // By what it says: by time alone one that is about to exit may be ready before.
    server.edit_config("After(\"20ms\")", "Fd(fd: 3)");
    let good = format!("echo >&3\n{}", deploying::APP);
    repo.commit(&[("app.sh", &good)], "says when it is ready");
    start_live(&mut server);
    let bad = format!("test $EVERHOOK_INSTANCE = site.2 && exit 3\n{good}");
    repo.commit(&[("app.sh", &bad), ("VERSION", "2")], "bad in the second copy");
    let deploy = server.deliver("site", &repo);
    assert_eq!(deploy["state"], "rolled_back", "{deploy}");
    assert!(deploy["reason"].as_str().unwrap().contains("site.2"), "{deploy}");
    let app = server.wait_state("site", "ready");
    let releases: Vec<_> = app["instances"].as_array().unwrap().iter().map(|i| i["release"].clone()).collect();
    assert!(
        releases.iter().all(|release| *release == app["release"] && release.as_str().unwrap().starts_with("1-")),
        "{app}"
    );

    repo.commit(&[("app.sh", &good), ("VERSION", "3")], "good");
    assert_eq!(server.deliver("site", &repo)["state"], "live");
}
