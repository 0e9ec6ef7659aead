//! Apps that run at times: `schedule`.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::fs;

use serde_json::Value;
use server::Server;

/// What became of a scheduled app, by the words of its own events.
fn notes(server: &Server, app: &str, what: &str) -> Vec<Value> {
    server.events().into_iter().filter(|e| e["app"] == app && e["kind"] == "app" && e["to"] == what).collect()
}

fn runs(server: &Server, app: &str) -> usize {
    let started = |e: &&Value| e["app"] == app && e["kind"] == "instance" && e["to"] == "starting";
    server.events().iter().filter(started).count()
}

#[test]
fn a_scheduled_app_runs_at_its_times_and_rests_between_them() {
    let server = Server::with_apps(
        r#""tick": (command: "echo ran", schedule: "* * * * * *", ready: Immediate),
           "fails": (command: "exit 3", schedule: "* * * * * *", ready: Immediate),
           "later": (command: ["true"], schedule: (cron: "0 3 1 1 *", zone: "UTC")),
           "after": (command: ["sleep", "1000"], after: ["later"], ready: Immediate),
           "held": (command: ["true"], schedule: "* * * * * *")"#,
    )
    .started();
    server.ok(&["stop", "held"]);
    let held = runs(&server, "held");
    let later = server.wait_state("later", "waiting");
    let next = later["instances"][0]["next_start_at"].as_str().unwrap().to_owned();
    assert!(next.ends_with("-01-01T03:00:00.000Z"), "{next}");
    assert!(later["instances"][0]["reason"].as_str().unwrap().contains("0 3 1 1 *"), "{later}");
    server.wait_state("after", "ready");
    server.until("three runs", |s| (runs(s, "tick") >= 3 && runs(s, "fails") >= 2).then_some(()));
    let fails = server.until("a failed run", |s| Some(s.app("fails")).filter(|app| app["state"] == "failed"));
    assert!(fails["instances"][0]["next_start_at"].is_string(), "{fails}");
    assert_eq!(fails["instances"][0]["last_exit"]["code"], 3);
    server.until("a run that is over", |s| (s.app("tick")["state"] == "done").then_some(()));
    assert_eq!((server.app("held")["state"].as_str(), runs(&server, "held")), (Some("stopped"), held));
    assert!(server.instance("held")["next_start_at"].is_null());
    let cause =
        server.events().into_iter().rfind(|e| e["app"] == "tick" && e["to"] == "starting").unwrap()["cause"].clone();
    assert!(cause.as_str().unwrap().starts_with("scheduled for 20"), "{cause}");
    assert!(server.ok(&["status"]).contains("next start"), "{}", server.ok(&["status"]));

    // By hand it runs at once, and a reload runs nothing.
    assert_eq!(runs(&server, "later"), 0);
    server.ok(&["start", "later"]);
    server.wait_state("later", "done");
    assert_eq!(runs(&server, "later"), 1);
    server.edit_config(
        "command: [\"true\"], schedule: (cron: \"0 3",
        "command: [\"sleep\", \"0\"], schedule: (cron: \"5 3",
    );
    server.ok(&["reload"]);
    let next = server.instance("later")["next_start_at"].as_str().unwrap().to_owned();
    assert!(next.ends_with("-01-01T03:05:00.000Z"), "{next}");
    assert_eq!(runs(&server, "later"), 1);
}

#[test]
fn a_run_that_is_still_going_on_is_not_doubled_but_told() {
    let server = Server::with_apps(
        r#""slow": (command: ["sleep", "1000"], schedule: "* * * * * *", ready: Immediate),
           "tries": (command: "exit 1", schedule: "* * * * * *", ready: Immediate,
             restart: (policy: OnFailure, first: "10m"))"#,
    )
    .started();
    server.wait_state("slow", "ready");
    let pid = server.main_pid("slow");
    let skipped = server.until("an overlap", |s| notes(s, "slow", "run_skipped").pop());
    assert!(skipped["cause"].as_str().unwrap().contains("has not ended"), "{skipped}");
    assert_eq!(server.main_pid("slow"), pid);
    server.wait_state("tries", "backoff");
    server.until("an overlap with a retry", |s| notes(s, "tries", "run_skipped").pop());
    assert_eq!(runs(&server, "tries"), 1);
}

#[test]
fn what_was_missed_while_everhook_was_off_is_made_up_for_once() {
    let mut server = Server::with_apps(
        r#""run": (command: ["true"], schedule: (cron: "0 0 * * *", missed: Run), ready: Immediate),
           "skip": (command: ["true"], schedule: "0 0 * * *", ready: Immediate)"#,
    );
    server.start();
    server.wait_state("run", "waiting");
    let file = server.path().join("state/apps/run/last_run");
    server.until("the first record", |_| file.exists().then_some(()));
    assert!(server.stop().success());
    assert!(!server.path().join("state/apps/skip/last_run").exists());
    let told = fs::read_to_string(&file).unwrap();
    assert!(told.ends_with(" 0 0 * * *\n"), "{told}");
    // As if everhook had been off for days.
    fs::write(&file, "2026-01-01T00:00:00.000Z 0 0 * * *\n").unwrap();
    server.start();
    server.wait_state("run", "done");
    assert_eq!(runs(&server, "run"), 1, "one run makes up for all");
    let missed = notes(&server, "run", "run_missed").pop().unwrap();
    assert!(missed["cause"].as_str().unwrap().contains("made up for"), "{missed}");
    assert_eq!(server.wait_state("skip", "waiting")["instances"][0]["last_exit"], Value::Null);
    assert!(server.stop().success());
    // Another expression was not missed at that time.
    fs::write(&file, "2026-01-01T00:00:00.000Z 5 0 * * *\n").unwrap();
    server.start();
    server.wait_state("run", "waiting");
    assert_eq!(runs(&server, "run"), 1);
}

#[test]
fn a_scheduled_app_with_a_repository_is_not_run_by_its_deploys() {
    let repo = server::Repo::new(tempfile::tempdir_in("/tmp").unwrap().keep(), &[("run.sh", "echo ran\n")]);
    let server = Server::with_apps(&format!(
        r#""job": (command: ["sh", "run.sh"], schedule: "0 3 1 1 *", deploy: (repo: "{}", settle: "1s"))"#,
        repo.path.display()
    ))
    .started();
    let live = server.until("the first deploy", |s| {
        Some(s.app("job")).filter(|app| app["release"].is_string() && app["state"] == "waiting")
    });
    assert!(live["instances"][0]["next_start_at"].is_string(), "{live}");
    assert_eq!(runs(&server, "job"), 0);
    server.ok(&["start", "job"]);
    server.wait_state("job", "done");
    fs::remove_dir_all(&repo.path).unwrap();
}
