//! Deploys in people's hands, from outside: cancelled, approved, frozen, sent again; each of it holds over a
//! kill, says what is so, and stands in the audit.
#![allow(clippy::unwrap_used)]

#[path = "support/deploying.rs"]
mod deploying;
#[path = "support/forge.rs"]
mod forge;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

use deploying::*;
use forge::Forge;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use server::{Repo, Server, processes, unique};

const SLOW: &str = "build: [\"if [ -e slow ]; then cat $DIR/gate; fi\"]";

/// `site` is live, and what is pushed next stands at a gate in its build.
fn slow_world(deploy: &str) -> (Server, Repo, Gate) {
    let (server, repo) = live_world("", &format!("{SLOW}, {deploy}"));
    let gate = Gate::new(&server, "gate");
    repo.commit(&[("slow", ""), ("VERSION", "2")], "slow");
    (server, repo, gate)
}

/// Action, app, outcome and reason of the newest rows, oldest first.
fn audit(server: &Server, n: usize) -> Vec<(String, String, String, String)> {
    let rows = server.json(&["audit"]);
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let rows = rows.as_array().unwrap();
    let newest = rows[rows.len() - n..].iter();
    newest.map(|row| (text(row, "action"), text(row, "app"), text(row, "outcome"), text(row, "reason"))).collect()
}

fn row(action: &str, outcome: &str, reason: &str) -> (String, String, String, String) {
    (action.to_owned(), "site".to_owned(), outcome.to_owned(), reason.to_owned())
}

#[test]
fn a_deploy_is_cancelled_before_it_switches_and_not_after() {
    let (server, repo, gate) = slow_world("");
    let runs = push(&server, &repo);
    let held = gate.reached();
    repo.git(&["rm", "-q", "slow"]);
    repo.commit(&[("VERSION", "3")], "third");
    let waits = push(&server, &repo);

    let said = server.ok(&["cancel", &waits.to_string()]);
    assert!(said.contains(&format!("deploy {waits} of site is cancelled")), "{said}");
    let deploy = deploy(&server, waits);
    assert_eq!(deploy["state"], "cancelled", "{deploy}");
    assert!(deploy["reason"].as_str().unwrap().starts_with("cancelled by "), "{deploy}");

    assert!(!processes(&server.path().join("gate").display().to_string()).is_empty());
    server.ok(&["cancel", &runs.to_string()]);
    drop(held);
    let cancelled = server.deploy_end(runs);
    assert_eq!((&cancelled["state"], &cancelled["step"]), (&"cancelled".into(), &"build".into()), "{cancelled}");
    assert_eq!(cancelled["steps"].as_array().unwrap().last().unwrap()["state"], "cancelled");
    assert_eq!(processes(&server.path().join("gate").display().to_string()), [] as [i32; 0]);
    assert_eq!(version(&server), "1");

    // What is so already is no failure; what ended otherwise is.
    server.ok(&["cancel", &runs.to_string()]);
    let said = server.fails(1, &["cancel", "1"]);
    assert!(said.contains("has ended already: live"), "{said}");
    let said = server.fails(4, &["cancel", "99"]);
    assert!(said.contains("deploy 99 does not exist") && said.contains(&format!("newest is {waits}")), "{said}");
    server.fails(2, &["cancel", "x"]);

    server.edit_config("settle: \"20ms\"", "settle: \"1h\"");
    server.ok(&["reload"]);
    repo.commit(&[("VERSION", "4")], "fourth");
    let id = push(&server, &repo);
    wait_deploy(&server, id, "verifying");
    let said = server.fails(1, &["cancel", &id.to_string()]);
    assert!(said.contains("from the switch on") && said.contains("everhook rollback site"), "{said}");
    assert_eq!(deploys(&server)[0]["state"], "verifying");
    let rows = audit(&server, 7);
    let about = |id: i64| format!("deploy {id}");
    assert_eq!(
        rows[..3],
        [
            row("cancel", "done", &about(waits)),
            row("cancel", "done", &about(runs)),
            row("cancel", "done", &about(runs))
        ]
    );
    assert_eq!(
        (&rows[3].2, &rows[4].2, &rows[6].2),
        (&"refused".into(), &"refused".into(), &"refused".into()),
        "{rows:?}"
    );
    server.ok(&["stop", "site"]);
    assert_eq!(server.deploy_end(id)["state"], "rolled_back");
}

#[test]
fn a_freeze_holds_over_a_kill_and_keeps_the_newest_push() {
    let (mut server, repo) = live_world("", "");
    without_catch_up(&server);
    repo.commit(&[("VERSION", "2")], "second");
    assert_eq!(server.deliver("site", &repo)["state"], "live");
    assert_eq!(server.app("site")["frozen"], Value::Null);
    server.fails(2, &["freeze", "site"]);
    server.fails(2, &["freeze", "site", "--why", " "]);
    let said = server.ok(&["freeze", "site", "--why", "the fair"]);
    assert!(said.contains("site is frozen by ") && said.contains(": the fair"), "{said}");
    let said = server.ok(&["freeze", "site", "--why", "another"]);
    assert!(said.contains("the fair already"), "the first one holds: {said}");

    let first = push(&server, &repo_commit(&repo, "3"));
    server.kill();
    server.start();
    server.wait_state("site", "ready");
    let newest = push(&server, &repo_commit(&repo, "4"));
    assert_eq!(server.deploy_end(first)["superseded_by"], newest);
    let frozen = server.app("site")["frozen"].as_str().unwrap().to_owned();
    assert!(frozen.starts_with("frozen by ") && frozen.ends_with(": the fair"), "{frozen}");
    assert!(server.ok(&["status"]).contains(&format!("site is {frozen}")));
    let said = server.fails(1, &["deploy", "site"]);
    assert!(said.contains(&frozen) && said.contains("everhook unfreeze site"), "{said}");
    assert_eq!(deploy(&server, newest)["state"], "queued");
    assert_eq!(version(&server), "2");

    let said = server.ok(&["unfreeze", "site"]);
    assert!(said.contains(&format!("site is unfrozen; deploy {newest} is queued")), "{said}");
    assert_eq!(server.deploy_end(newest)["state"], "live");
    assert_eq!((version(&server).as_str(), &server.app("site")["frozen"]), ("4", &Value::Null));
    server.ok(&["unfreeze", "site"]);

    // At night one wants to go back, whoever has frozen it.
    server.ok(&["freeze", "site", "--why", "the night"]);
    server.ok(&["rollback", "site"]);
    assert_eq!(version(&server), "2");
    assert!(server.stop().success());
    server.start();
    assert!(server.app("site")["frozen"].is_string());
    let rows = audit(&server, 9);
    assert_eq!(rows[0].2, "refused", "a reason without a word: {rows:?}");
    assert_eq!(
        [&rows[1], &rows[2], &rows[4], &rows[5], &rows[6]].map(Clone::clone),
        [
            row("freeze", "done", "the fair"),
            row("freeze", "done", "another"),
            row("unfreeze", "done", ""),
            row("unfreeze", "done", ""),
            row("freeze", "done", "the night")
        ]
    );
    assert_eq!((rows[3].0.as_str(), rows[3].2.as_str()), ("deploy", "refused"));
    server.fails(4, &["freeze", "sitte", "--why", "x"]);
}

fn repo_commit(repo: &Repo, version: &str) -> Repo {
    repo.commit(&[("VERSION", version)], version);
    Repo { path: repo.path.clone() }
}

#[test]
fn what_the_forge_brings_awaits_approval() {
    let (mut server, repo) = world("", "approve: true");
    without_catch_up(&server);
    server.start();
    wait_deploy(&server, 1, "awaiting_approval");
    assert_eq!(server.app("site")["state"], "waiting");
    let said = server.ok(&["approve", "1"]);
    assert!(said.contains("deploy 1 of site: ") && said.contains("live"), "{said}");
    server.wait_state("site", "ready");

    repo.commit(&[("VERSION", "2")], "second");
    let second = push(&server, &repo);
    wait_deploy(&server, second, "awaiting_approval");
    repo.commit(&[("VERSION", "3")], "third");
    let third = push(&server, &repo);
    assert_eq!(server.deploy_end(second)["superseded_by"], third);
    let said = server.fails(1, &["approve", &second.to_string()]);
    assert!(said.contains("has ended already: superseded"), "{said}");
    // It is asked for again after a kill, and what was approved is known over one.
    server.kill();
    server.start();
    wait_deploy(&server, third, "awaiting_approval");
    server.ok(&["freeze", "site", "--why", "the fair"]);
    let said = server.ok(&["approve", &third.to_string()]);
    assert!(said.contains("is approved; it starts once site is unfrozen"), "{said}");
    server.kill();
    server.start();
    assert_eq!(deploy(&server, third)["state"], "queued");
    assert_eq!(audit(&server, 1), [row("approve", "done", &format!("deploy {third}"))]);
    server.ok(&["unfreeze", "site"]);
    let live = server.deploy_end(third);
    assert_eq!((&live["state"], &live["approved_by"]["kind"]), (&"live".into(), &"local".into()), "{live}");
    assert!(server.ok(&["history", "show", &third.to_string()]).contains("approved by "));
    let said = server.ok(&["approve", &third.to_string()]);
    assert!(said.contains("is live"), "{said}");

    repo.commit(&[("VERSION", "4")], "fourth");
    server.ok(&["deploy", "site"]);
    assert_eq!(version(&server), "4");
    let hand = deploys(&server)[0].clone();
    assert_eq!((&hand["state"], &hand["approved_by"]), (&"live".into(), &Value::Null), "{hand}");
    let said = server.ok(&["rollback", "site"]);
    assert!(said.contains("live"), "{said}");
    repo.commit(&[("VERSION", "5")], "fifth");
    let fifth = push(&server, &repo);
    wait_deploy(&server, fifth, "awaiting_approval");
    server.ok(&["cancel", &fifth.to_string()]);
    server.fails(4, &["approve", "99"]);
}

#[test]
fn a_delivery_is_judged_anew() {
    let (server, repo) = live_world("", "check: [\"! [ -e $DIR/broken ]\"]");
    fs::write(server.path().join("broken"), "").unwrap();
    let commit = repo.commit(&[("VERSION", "2")], "second");
    let sender_id = unique();
    let (status, answer) = server.push("site", &sender_id, &repo.push_body());
    assert_eq!(status, 202, "{answer}");
    let first = answer["delivery"].as_i64().unwrap();
    let failed = server.deploy_end(answer["deploys"][0]["id"].as_i64().unwrap());
    assert_eq!(failed["state"], "failed", "{failed}");
    fs::remove_file(server.path().join("broken")).unwrap();

    let again = server.json(&["deliveries", "redeliver", &first.to_string()]);
    let (delivery, id) = (again["delivery"].as_i64().unwrap(), again["deploys"][0]["id"].as_i64().unwrap());
    assert_eq!(again["deploys"], json!([{"app": "site", "id": id}]), "{again}");
    let live = server.deploy_end(id);
    assert_eq!((&live["state"], &live["commit"]), (&"live".into(), &commit.into()), "{live}");
    assert_eq!(live["by"], json!({"kind": "delivery", "id": delivery}));
    let shown = server.json(&["deliveries", "show", &delivery.to_string()]);
    assert_eq!((&shown["sender_id"], &shown["state"]), (&sender_id.into(), &"accepted".into()), "{shown}");
    assert!(shown["address"].as_str().unwrap().contains(&format!("redelivery of {first}")), "{shown}");
    assert_eq!(audit(&server, 1), [row("redeliver", "done", &format!("delivery {first}"))]);

    // Now it repeats what is live.
    let said = server.ok(&["deliveries", "redeliver", &first.to_string()]);
    assert!(said.contains(&format!("repeats delivery {delivery}")), "{said}");
    let duplicate = server.json(&["deliveries"])[0].clone();
    assert_eq!((&duplicate["state"], &duplicate["duplicate_of"]), (&"duplicate".into(), &delivery.into()));
    let said = server.fails(1, &["deliveries", "redeliver", &duplicate["id"].to_string()]);
    assert!(said.contains("redeliver that one"), "{said}");

    let (status, answer) = server.push("site", &unique(), &repo.push_of("refs/heads/dev", &repo.head()));
    assert_eq!(status, 200, "{answer}");
    let said = server.fails(1, &["deliveries", "redeliver", &answer["delivery"].to_string()]);
    assert!(said.contains("was skipped, so its body is not kept"), "{said}");
    server.edit_config("branch: \"main\"", "branch: \"next\"");
    server.ok(&["reload"]);
    let said = server.fails(1, &["deliveries", "redeliver", &first.to_string()]);
    assert!(said.contains("branch \"main\" is not deployed"), "{said}");
    assert_eq!(audit(&server, 1)[0].2, "refused");
    server.fails(4, &["deliveries", "redeliver", "999"]);
    server.fails(2, &["deliveries", "redeliver", "x"]);
}

#[test]
fn whoever_leaves_does_not_take_the_work_along() {
    let (server, _repo, gate) = slow_world("");
    let mut client = server.client(&["deploy", "site"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let held = gate.reached();
    let id = deploys(&server)[0]["id"].as_i64().unwrap();
    // By then it knows the deploy.
    let mut told = BufReader::new(client.stdout.take().unwrap()).lines();
    assert!(told.any(|line| line.unwrap().contains(": building")));
    kill(Pid::from_raw(i32::try_from(client.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = client.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let said = server::text(&output);
    assert!(said.contains("the work goes on") && said.contains(&format!("everhook history show {id}")), "{said}");
    drop(held);
    assert_eq!(server.deploy_end(id)["state"], "live");
}

#[test]
fn a_dry_run_tells_and_changes_nothing() {
    let (server, repo) =
        live_world("instances: 2,", "check: [\"true\"], build: [(run: \"echo built\", name: \"make it\")]");
    let first = repo.head();
    repo.commit(&[("VERSION", "2"), ("a b/new", "x")], "adds a file");
    let tip = repo.commit(&[("VERSION", "3")], "third");
    let state = |server: &Server| {
        let disk = (releases(server, "site"), fs::read_to_string(home(server, "site").join("live")).unwrap());
        (deploys(server), server.json(&["audit"]), disk, server.app("site")["instances"][0]["pid"].clone())
    };
    let before = state(&server);
    let said = server.ok(&["deploy", "site", "--dry-run"]);
    for words in [
        &format!("deploy of site: {} third (Ann <ann@example.org>) of refs/heads/main", &tip[..7]),
        &format!("live is {}, in 1-{}", &first[..7], &first[..7]),
        "COMMITS: 2\n",
        " adds a file (Ann <ann@example.org>)\n",
        "FILES: 2\n  VERSION\n  a b/new\n",
        "STEPS\n  check         true\n  build         make it\n",
        "INSTANCES\n  site.1\n  site.2\n",
        "nothing was changed",
    ] {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
    server.ok(&["freeze", "site", "--why", "the fair"]);
    let said = server.ok(&["deploy", "site", "--dry-run", "--rev", &first]);
    assert!(said.contains("it would not go live: the app is frozen by "), "{said}");
    assert!(said.contains("live is this commit") && said.contains("COMMITS: 0\nFILES: 0\n"), "{said}");
    server.ok(&["unfreeze", "site"]);
    let said = server.fails(1, &["deploy", "site", "--dry-run", "--rev", "no-such"]);
    assert!(said.contains("\"no-such\" is no branch or tag that is deployed"), "{said}");
    let said = server.fails(1, &["rollback", "site", "--dry-run"]);
    assert!(said.contains("no earlier release"), "{said}");
    let mut after = state(&server);
    let rows = after.1.as_array_mut().unwrap();
    rows.retain(|row| !row["action"].as_str().unwrap().contains("freeze"));
    assert_eq!(after, before);
    if is_root() {
        for mirror in fs::read_dir(server.path().join("state/mirrors")).unwrap() {
            let owners = owners(&mirror.unwrap().path());
            assert!(!owners.contains(&0), "git ran as root: {owners:?}");
        }
    }

    server.ok(&["deploy", "site"]);
    server.ok(&["stop", "site"]);
    let said = server.ok(&["rollback", "site", "--dry-run"]);
    let to = format!("rollback of site: to release 1-{}, commit {}", &first[..7], &first[..7]);
    assert!(said.contains(&to) && said.contains("COMMITS: 0, 2 taken back\n"), "{said}");
    assert!(said.contains("FILES: 2\n") && said.contains("  none: the release would only be made live"), "{said}");
    assert!(!said.contains("STEPS"), "a release on disk is built already: {said}");
    server.fails(4, &["rollback", "site", "--dry-run", "--to", "99-1234567"]);
    server.fails(4, &["deploy", "sitte", "--dry-run"]);
    assert_eq!(server.app("site")["commit"], tip);
}

#[test]
fn before_the_first_deploy_everything_is_new() {
    let (mut server, repo) = world("", "approve: true");
    server.start();
    wait_deploy(&server, 1, "awaiting_approval");
    let said = server.ok(&["deploy", "site", "--dry-run"]);
    assert!(said.contains("nothing is live yet") && said.contains("FILES: 2\n  VERSION\n  app.sh\n"), "{said}");
    assert!(said.contains("INSTANCES\n  site.1\n"), "{said}");
    assert_eq!(server.app("site")["commit"], Value::Null);
    // Another history is compared all the same.
    server.ok(&["approve", "1"]);
    repo.git(&["checkout", "-q", "--orphan", "other"]);
    repo.commit(&[("VERSION", "2")], "another history");
    repo.git(&["branch", "-f", "main"]);
    let said = server.ok(&["deploy", "site", "--dry-run"]);
    assert!(said.contains("COMMITS: 1, 1 taken back\n") && said.contains("FILES: 1\n  VERSION\n"), "{said}");
}

#[test]
fn a_remote_that_says_nothing_holds_no_dry_run_and_no_shutdown() {
    let (mut server, _repo) = world("", "");
    let forge = Forge::new(server.path());
    let path = server.path().join("repo");
    server.edit_config(&format!("repo: \"{}\"", path.display()), &format!("repo: \"{}\"", forge.url("repo")));
    start_live(&mut server);
    server.edit_config("settle: \"20ms\"", "settle: \"20ms\", timeout: \"1s\"");
    server.ok(&["reload"]);
    forge.close();
    let said = server.fails(1, &["deploy", "site", "--dry-run"]);
    assert!(said.contains("longer than 1s"), "{said}");
    assert_eq!(processes(&format!(":{}/", forge.port)), [] as [i32; 0]);

    server.edit_config("timeout: \"1s\"", "timeout: \"1h\"");
    server.ok(&["reload"]);
    forge.close();
    let client = server.client(&["deploy", "site", "--dry-run"]).stderr(Stdio::piped()).spawn().unwrap();
    forge.visited();
    assert!(server.stop().success());
    assert!(!client.wait_with_output().unwrap().status.success());
    assert_eq!(processes(&format!(":{}/", forge.port)), [] as [i32; 0]);
}

#[test]
fn what_cannot_be_taken_back_asks_before_it_switches() {
    let (mut server, repo) =
        live_world("", "build: [\"echo built >> $EVERHOOK_CACHE/built\"], irreversible: Changed([\"db/**\"])");
    let built = |server: &Server| fs::read_to_string(home(server, "site").join("cache/built")).unwrap().lines().count();
    repo.commit(&[("VERSION", "2")], "second");
    assert_eq!(server.deliver("site", &repo)["state"], "live");
    repo.commit(&[("db/1.sql", "drop table x"), ("VERSION", "3")], "third");
    let said = server.ok(&["deploy", "site", "--dry-run"]);
    assert!(said.contains("it would await approval before it switches (irreversible: \"db/1.sql\" differs"), "{said}");
    assert_eq!(server.app("site")["awaiting_approval"], json!([]));
    let third = push(&server, &repo);
    let held = wait_deploy(&server, third, "awaiting_approval");
    assert!(held["reason"].as_str().unwrap().contains("irreversible: \"db/1.sql\" differs"), "{held}");
    assert_eq!((version(&server).as_str(), built(&server)), ("2", 3));
    assert!(server.ok(&["history"]).contains("irreversible: "));
    let waits = json!([{"deploy": third, "reason": held["reason"]}]);
    assert_eq!(server.app("site")["awaiting_approval"], waits);
    let said = server.ok(&["status"]);
    assert!(said.contains(&format!("deploy {third} of site awaits approval (irreversible: \"db/1.sql\"")), "{said}");

    // A kill forgets nothing, and what was built is kept.
    without_catch_up(&server);
    server.kill();
    server.start();
    server.wait_state("site", "ready");
    assert_eq!(deploy(&server, third), held);
    assert_eq!((version(&server).as_str(), built(&server)), ("2", 3));
    server.ok(&["approve", &third.to_string()]);
    let live = server.deploy_end(third);
    assert_eq!((&live["state"], &live["reason"]), (&"live".into(), &Value::Null), "{live}");
    assert_eq!(live["approved_by"]["kind"], "local");
    assert_live(&server, &live);
    assert_eq!((version(&server).as_str(), built(&server)), ("3", 3), "what was built goes live");

    // A person's own deploy asks too, and a newer push takes its place.
    repo.commit(&[("db/2.sql", "drop table y"), ("VERSION", "4")], "fourth");
    let client = server.client(&["deploy", "site"]).stdout(Stdio::piped()).spawn().unwrap();
    let id = third + 1;
    wait_deploy(&server, id, "awaiting_approval");
    repo.commit(&[("VERSION", "5")], "fifth");
    let newest = push(&server, &repo);
    let output = client.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        server::text(&output).contains(&format!("`everhook approve {id}` lets it go on")),
        "{}",
        server::text(&output)
    );
    assert_eq!(server.deploy_end(id)["superseded_by"], newest);
    let held = wait_deploy(&server, newest, "awaiting_approval");
    assert!(held["reason"].as_str().unwrap().contains("db/2.sql"), "all that is not live counts: {held}");
    server.ok(&["cancel", &newest.to_string()]);
    server.until("what was built goes", |s| (releases(s, "site").len() == 3).then_some(()));
    assert_eq!(version(&server), "3");
}

/// `site` runs a release that cannot be taken back and did not prove itself: it exits as long as there is
/// `$DIR/broken`. The deploy's number.
fn unproven(server: &Server, repo: &Repo, version: &str) -> i64 {
    fs::write(server.path().join("broken"), "").unwrap();
    let app = "[ -e $DIR/broken ] && exit 3\nexec tail -f $DIR/held\n";
    repo.commit(&[("db/1.sql", "drop table x"), ("VERSION", version), ("app.sh", app)], version);
    let id = push(server, repo);
    wait_deploy(server, id, "awaiting_approval");
    server.ok(&["approve", &id.to_string(), "--no-wait"]);
    server.until("it asks what now", |s| {
        let deploy = deploy(s, id);
        (deploy["state"] == "awaiting_approval" && deploy["step"] == "verify").then_some(())
    });
    id
}

const KEEPS_TRYING: &str = "restart: (first: \"10ms\", max: \"50ms\", give_up: (restarts: 100000, within: \"1s\")),";

/// Releases that tell whether they are well: by time alone one that exits may seem to be, while its shell has
/// not come so far.
fn told_world() -> (Server, Repo) {
    let (mut server, repo) = world(KEEPS_TRYING, "irreversible: Changed([\"db/**\"])");
    let is_well = "[ ! -e $DIR/broken ] || ! grep -q broken app.sh";
    server.edit_config("After(\"20ms\")", &format!("Exec(command: \"{is_well}\", within: \"1h\")"));
    start_live(&mut server);
    (server, repo)
}

#[test]
fn what_cannot_be_taken_back_stays_when_it_proves_wrong() {
    let (mut server, repo) = told_world();
    let id = unproven(&server, &repo, "2");
    let asked = deploy(&server, id);
    assert_eq!(asked["reason"], "exited with 3; it cannot be taken back", "{asked}");
    let release = asked["release"].as_str().unwrap().to_owned();
    // Nothing goes back by itself, over a kill neither, and the usual rules go on.
    for _ in 0..2 {
        assert!(fs::read_to_string(home(&server, "site").join("live")).unwrap().starts_with("1-"));
        server.until("it is tried again", |s| (s.instance("site")["restarts"].as_i64() > Some(2)).then_some(()));
        assert_eq!((&server.app("site")["release"], deploy(&server, id)), (&release.as_str().into(), asked.clone()));
        server.kill();
        server.start();
    }
    fs::remove_file(server.path().join("broken")).unwrap();
    // The last that found it broken has gone.
    runs_once(&server);
    server.wait_state("site", "ready");
    assert_eq!((version(&server), deploy(&server, id)), ("2".into(), asked));
    // It is live because somebody says so, as it runs.
    let pid = server.main_pid("site");
    server.ok(&["approve", &id.to_string()]);
    let live = server.deploy_end(id);
    assert_eq!((&live["state"], &live["reason"]), (&"live".into(), &Value::Null), "{live}");
    assert_eq!(live["approved_by"]["kind"], "local");
    assert_live(&server, &live);
    assert_eq!(server.main_pid("site"), pid);
}

#[test]
fn whoever_is_asked_may_go_back() {
    let (mut server, repo) = told_world();
    without_catch_up(&server);
    let first = server.deploy_end(1);
    let id = unproven(&server, &repo, "2");
    let said = server.ok(&["rollback", "site"]);
    assert!(said.contains("is live"), "{said}");
    let back = server.deploy_end(id);
    assert_eq!(
        (&back["state"], &back["reason"]),
        (&"rolled_back".into(), &format!("deploy {} went back", id + 1).into())
    );
    assert_live(&server, &first);
    server.until("its release goes", |s| (releases(s, "site").len() == 1).then_some(()));

    // Or give it up; a kill right then starts the one that is live as well.
    let id = unproven(&server, &repo, "3");
    server.ok(&["cancel", &id.to_string()]);
    server.kill();
    server.start();
    server.wait_state("site", "ready");
    assert_eq!((version(&server).as_str(), &deploy(&server, id)["state"]), ("1", &"cancelled".into()));

    // A cure takes its place once it is live.
    let id = unproven(&server, &repo, "4");
    repo.commit(&[("VERSION", "5"), ("app.sh", APP)], "the cure");
    let cure = push(&server, &repo);
    wait_deploy(&server, cure, "awaiting_approval");
    server.until("the other one still asks", |s| (deploy(s, id)["state"] == "awaiting_approval").then_some(()));
    server.ok(&["approve", &cure.to_string()]);
    let ended = server.deploy_end(id);
    assert_eq!((&ended["state"], &ended["superseded_by"]), (&"superseded".into(), &cure.into()), "{ended}");
    assert_live(&server, &server.deploy_end(cure));
}
