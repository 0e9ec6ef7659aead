//! Which commit of what goes live, and which stays back: tags, releases, pipelines, filters, polls.
#![allow(clippy::unwrap_used)]

#[path = "support/deploying.rs"]
mod deploying;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{fs, path::Path};

use deploying::*;
use serde_json::{Value, json};
use server::{Repo, SECRET, Server, unique};

/// `site` with other triggers than pushes to main.
fn world_on(on: &str, deploy: &str) -> (Server, Repo) {
    world_with(&site("", deploy).replace("[Push(branch: \"main\")]", on))
}

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The number of the deploy that a delivery brought.
fn accepted((status, answer): (u16, Value)) -> i64 {
    assert_eq!(status, 202, "{answer}");
    answer["deploys"][0]["id"].as_i64().unwrap()
}

fn skipped((status, answer): (u16, Value)) -> String {
    assert_eq!(status, 200, "{answer}");
    answer["skipped"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

fn event(server: &Server, event: &str, body: &Value) -> (u16, Value) {
    server.tell("/hooks/site", event, &unique(), &body.to_string())
}

fn release(tag: &str, action: &str) -> Value {
    let mut body = fixture("github/release.0.json");
    (body["action"], body["release"]["tag_name"]) = (action.into(), tag.into());
    body
}

fn workflow(branch: &str, commit: &str, conclusion: &str) -> Value {
    let mut body = fixture("github/workflow_run.0.json");
    let id = body["repository"]["id"].clone();
    let run = &mut body["workflow_run"];
    (run["head_branch"], run["head_sha"], run["conclusion"]) = (branch.into(), commit.into(), conclusion.into());
    run["head_repository"]["id"] = id;
    body
}

/// The end of a deploy that did not go live, and why.
fn stayed_back(server: &Server, id: i64) -> String {
    let deploy = server.deploy_end(id);
    assert_eq!(deploy["state"], "skipped", "{deploy}");
    deploy["reason"].as_str().unwrap().to_owned()
}

fn live(server: &Server, id: i64, commit: &str) {
    let deploy = server.deploy_end(id);
    assert_eq!((&deploy["state"], &deploy["commit"]), (&json!("live"), &json!(commit)), "{deploy}");
    server.wait_state("site", "ready");
    assert_live(server, &deploy);
}

#[test]
fn tags_and_releases_are_deployed_and_no_branch_is() {
    let (mut server, repo) =
        world_on("[Tag(\"v*\"), Release]", "build: [\"echo $EVERHOOK_TAG,$EVERHOOK_BRANCH,$EVERHOOK_REF > named\"]");
    server.start();
    server.until("site waits for what nobody names", |s| {
        let app = s.app("site");
        let why = app["instances"][0]["reason"].as_str()?;
        (app["state"] == "waiting" && why.contains("`on` names no single branch")).then_some(())
    });
    assert_eq!(deploys(&server), [] as [Value; 0], "nothing is deployed that nobody asked for");
    let said = server.fails(1, &["deploy", "site"]);
    assert!(said.contains("--rev"), "{said}");

    // An annotated tag; the payload names the tag, a branch has its name.
    let first = repo.head();
    repo.git(&["tag", "-a", "-m", "one", "v1"]);
    repo.commit(&[("VERSION", "2")], "second");
    repo.git(&["branch", "v1"]);
    let object = repo.git(&["rev-parse", "refs/tags/v1"]);
    assert_eq!(skipped(server.push("site", &unique(), &repo.push_body())), "branch \"main\" is not deployed");
    assert_eq!(
        skipped(server.push("site", &unique(), &repo.push_of("refs/heads/v1", &repo.head()))),
        "branch \"v1\" is not deployed"
    );
    let id = accepted(server.push("site", &unique(), &repo.push_of("refs/tags/v1", &object)));
    live(&server, id, &first);
    assert_eq!(server.deploy_end(id)["ref"], "refs/tags/v1");
    assert_eq!(current(&server, "named"), "v1,,refs/tags/v1");
    assert_eq!(
        skipped(server.push("site", &unique(), &repo.push_of("refs/tags/x1", &object))),
        "tag \"x1\" is not deployed"
    );
    let gone = "0".repeat(40);
    assert_eq!(skipped(server.push("site", &unique(), &repo.push_of("refs/tags/v1", &gone))), "tag \"v1\" was deleted");

    // The tag moves, with nothing that leads from the old one to the new; then back.
    repo.git(&["checkout", "-q", "--orphan", "apart"]);
    let apart = repo.commit(&[("VERSION", "apart")], "apart");
    repo.git(&["tag", "-f", "-a", "-m", "moved", "v1"]);
    let moved = repo.git(&["rev-parse", "refs/tags/v1"]);
    live(&server, accepted(server.push("site", &unique(), &repo.push_of("refs/tags/v1", &moved))), &apart);
    repo.git(&["tag", "-f", "v1", &first]);
    live(&server, accepted(server.push("site", &unique(), &repo.push_of("refs/tags/v1", &first))), &first);

    // A release of whatever tag, and only when it is published; its payload names no commit.
    repo.git(&["tag", "2026.1", "main"]);
    assert!(skipped(event(&server, "release", &release("2026.1", "created"))).contains("release created"));
    live(
        &server,
        accepted(event(&server, "release", &release("2026.1", "published"))),
        &repo.git(&["rev-parse", "main"]),
    );
    assert_eq!(current(&server, "named"), "2026.1,,refs/tags/2026.1");
    let lost = server.deploy_end(accepted(event(&server, "release", &release("no-such", "published"))));
    assert_eq!(lost["state"], "superseded", "{lost}");

    // By hand: a tag by its name, a commit of one.
    server.ok(&["deploy", "site", "--rev", "v1"]);
    assert_eq!((version(&server), current(&server, "named")), ("1".into(), "v1,,refs/tags/v1".into()));
    let second = repo.git(&["rev-parse", "main"]);
    server.ok(&["deploy", "site", "--rev", &second[..10]]);
    assert_eq!(version(&server), "2");
    let said = server.fails(1, &["deploy", "site", "--rev", "apart"]);
    assert!(said.contains("no branch or tag that is deployed"), "{said}");
}

#[test]
fn an_app_that_is_only_deployed_says_what_it_waits_for() {
    let folder = site("", "").replace("command: [\"/bin/sh\", \"app.sh\"],", "");
    let (mut server, repo) = world_with(&folder.replace("[Push(branch: \"main\")]", "[Tag(\"v1\")]"));
    server.start();
    let app = server.wait_state("site", "waiting");
    let why = app["reason"].as_str().unwrap_or_else(|| panic!("{app}"));
    assert!(why.contains("`on` names no single branch") && server.ok(&["status"]).contains(why), "{why}");
    repo.git(&["tag", "v1"]);
    server.ok(&["deploy", "site", "--rev", "v1"]);
    let app = server.app("site");
    assert_eq!((&app["state"], &app["reason"], &app["behind"]), (&json!("deployed"), &json!(null), &json!(0)), "{app}");
}

#[test]
fn a_pipeline_that_succeeds_is_waited_for() {
    let (mut server, repo) =
        world_on("[Pipeline(branch: \"main\")]", "build: [\"if [ -e slow ]; then cat $DIR/gate; fi\"]");
    let gate = Gate::new(&server, "gate");
    server.start();
    let why = server.wait_state("site", "waiting")["instances"][0]["reason"].clone();
    assert!(why.as_str().unwrap().contains("pipeline"), "{why}");
    let first = repo.head();
    assert_eq!(skipped(server.push("site", &unique(), &repo.push_body())), "branch \"main\" is not deployed");
    let run = |branch: &str, commit: &str, how: &str| event(&server, "workflow_run", &workflow(branch, commit, how));
    assert!(skipped(run("main", &first, "failure")).contains("`failure`"));
    assert!(skipped(run("dev", &first, "success")).contains("\"dev\""));
    let mut fork = workflow("main", &first, "success");
    fork["workflow_run"]["head_repository"]["id"] = 1.into();
    assert!(skipped(event(&server, "workflow_run", &fork)).contains("fork"));
    live(&server, accepted(run("main", &first, "success")), &first);

    // While one deploy runs two more succeed, told in the wrong order; the tip has not.
    let slow = repo.commit(&[("slow", "")], "slow");
    let running = accepted(run("main", &slow, "success"));
    let held = gate.reached();
    repo.git(&["rm", "-q", "slow"]);
    let third = repo.commit(&[("VERSION", "3")], "third");
    let fourth = repo.commit(&[("VERSION", "4")], "fourth");
    repo.commit(&[("VERSION", "broken")], "fails its tests");
    let newer = accepted(run("main", &fourth, "success"));
    let late = accepted(run("main", &third, "success"));
    drop(held);
    assert_eq!(server.deploy_end(running)["state"], "live");
    assert_eq!(server.deploy_end(newer)["superseded_by"], late);
    live(&server, late, &fourth);
}

#[test]
fn paths_are_judged_on_what_is_not_live() {
    let (server, repo) = live_world("", "paths: [\"app/**\"], build: [\"if [ -e app/slow ]; then cat $DIR/gate; fi\"]");
    let gate = Gate::new(&server, "gate");
    let first = repo.head();
    repo.commit(&[("docs/a", "1")], "docs");
    let why = stayed_back(&server, push(&server, &repo));
    assert!(why.contains("`paths`") && why.contains(&first[..7]), "{why}");

    // Two commits of which only the first touches app/, and a forge whose list of commits is cut off.
    repo.commit(&[("app/a", "1")], "app");
    let head = repo.commit(&[("docs/a", "2")], "docs again");
    let mut body = fixture("gitlab/push-event.json");
    (body["ref"], body["after"], body["checkout_sha"]) =
        ("refs/heads/main".into(), head.clone().into(), head.clone().into());
    body["total_commits_count"] = 40.into();
    body["commits"] =
        json!([{"id": head, "message": "docs again", "modified": ["docs/a"], "added": [], "removed": []}]);
    let headers = [("content-type", "application/json"), ("x-gitlab-event", "Push Hook"), ("x-gitlab-token", SECRET)];
    let answer = http::request(server.address("hooks"), "POST", "/hooks/site", &headers, body.to_string().as_bytes());
    live(&server, accepted((answer.status, answer.json())), &head);

    // A change of app/ waits, and one of docs/ takes its place.
    repo.commit(&[("app/slow", "")], "slow");
    let slow = push(&server, &repo);
    let held = gate.reached();
    repo.git(&["rm", "-q", "app/slow"]);
    repo.commit(&[("app/a", "2")], "app");
    let waits = push(&server, &repo);
    let merged_head = repo.commit(&[("docs/a", "3")], "docs");
    let merged = push(&server, &repo);
    drop(held);
    assert_eq!(server.deploy_end(slow)["state"], "live");
    assert_eq!(server.deploy_end(waits)["superseded_by"], merged);
    live(&server, merged, &merged_head);

    // Forced back, with an empty list of commits: what differs counts.
    repo.git(&["reset", "-q", "--hard", &head]);
    let mut body: Value = serde_json::from_str(&repo.push_body()).unwrap();
    (body["forced"], body["commits"]) = (true.into(), json!([]));
    live(&server, accepted(server.push("site", &unique(), &body.to_string())), &head);

    // Forced away, so that the repository has lost what is live.
    repo.git(&["checkout", "-q", "--orphan", "anew"]);
    let anew = repo.commit(&[("docs/a", "4")], "docs");
    repo.git(&["branch", "-M", "main"]);
    repo.git(&["reflog", "expire", "--expire=now", "--all"]);
    repo.git(&["gc", "-q", "--prune=now"]);
    let mirrors = server.path().join("state/mirrors");
    server.until("the mirrors are gone", |_| {
        // Git may be at work in one.
        let _ = fs::remove_dir_all(&mirrors);
        (!mirrors.exists()).then_some(())
    });
    fs::create_dir(&mirrors).unwrap();
    live(&server, push(&server, &repo), &anew);

    // A person means what they say.
    let last = repo.commit(&[("docs/a", "5")], "docs");
    server.ok(&["deploy", "site"]);
    assert_eq!(server.app("site")["commit"], last);
}

#[test]
fn authors_and_a_word_in_the_message_keep_a_commit_back() {
    let (server, repo) = live_world("", "authors: [\"!*[bot]\"]");
    repo.git(&["commit", "-q", "--allow-empty", "--author", "renovate[bot] <r@example.org>", "-m", "bump"]);
    let why = stayed_back(&server, push(&server, &repo));
    assert!(why.contains("`authors`"), "{why}");
    repo.commit(&[("VERSION", "2")], "wip\n\n[skip deploy]");
    let why = stayed_back(&server, push(&server, &repo));
    assert!(why.contains("[skip deploy]"), "{why}");
    assert_eq!(version(&server), "1");
    server.ok(&["deploy", "site"]);
    assert_eq!(version(&server), "2");
    let head = repo.commit(&[("VERSION", "3")], "done");
    live(&server, push(&server, &repo), &head);
}

#[test]
fn the_delivered_commit_goes_live_or_the_newest() {
    let (server, repo) = live_world("", "");
    let delivered = repo.commit(&[("VERSION", "2")], "delivered");
    let body = repo.push_body();
    let newest = repo.commit(&[("VERSION", "3")], "nobody tells of it");
    live(&server, accepted(server.push("site", &unique(), &body)), &delivered);
    let app = server.app("site");
    assert_eq!(app["behind"], 1, "{app}");
    let table = server.ok(&["status"]);
    assert!(table.contains("1 behind"), "{table}");

    server.edit_config("settle: \"20ms\",", "settle: \"20ms\", track: Head,");
    server.ok(&["reload"]);
    let more = repo.commit(&[("VERSION", "4")], "one more");
    live(&server, accepted(server.push("site", &unique(), &repo.push_of("refs/heads/main", &newest))), &more);
    assert_eq!(server.app("site")["behind"], 0);
    server.ok(&["rollback", "site"]);
    server.until("how far it is behind", |s| (s.app("site")["behind"] == 2).then_some(()));
}

#[test]
fn after_a_rollback_it_is_behind_the_branch_that_it_was_deployed_of() {
    let (mut server, repo) = world_on("[Push(branch: \"**\")]", "");
    server.start();
    for n in ["1", "2", "3"] {
        let commit = repo.commit(&[("VERSION", n)], n);
        live(&server, accepted(server.push("site", &unique(), &repo.push_body())), &commit);
    }
    server.ok(&["rollback", "site"]);
    server.until("how far it is behind", |s| (s.app("site")["behind"] == 1).then_some(()));
    // What the last supervisor knew is not kept; whoever goes back is told again.
    server.kill();
    server.start();
    server.ok(&["rollback", "site"]);
    server.until("how far it is behind now", |s| (s.app("site")["behind"] == 2).then_some(()));
    assert_eq!(deploys(&server)[0]["ref"], "refs/heads/main");
}

/// The forge has nothing more of a commit that it told us of, nor of the one that is live.
#[test]
fn commits_that_the_forge_has_lost_end_clearly_and_hold_nothing_up() {
    let (server, repo) = live_world("", "paths: [\"app/**\"]");
    let first = repo.head();
    server.ok(&["freeze", "site", "--why", "nothing is fetched yet"]);
    repo.commit(&[("app/x", "1")], "is lost");
    let lost = push(&server, &repo);
    let forget = |commit: &str| {
        repo.git(&["reset", "-q", "--hard", commit]);
        repo.git(&["reflog", "expire", "--expire=now", "--all"]);
        repo.git(&["gc", "-q", "--prune=now"]);
    };
    forget(&first);
    server.ok(&["unfreeze", "site"]);
    let deploy = server.deploy_end(lost);
    assert_eq!(deploy["state"], "superseded", "{deploy}");
    assert!(deploy["reason"].as_str().unwrap().starts_with("gone: "), "{deploy}");

    let second = repo.commit(&[("app/x", "2")], "second");
    live(&server, push(&server, &repo), &second);
    repo.git(&["checkout", "-q", "--orphan", "anew"]);
    let anew = repo.commit(&[("app/x", "3")], "another history");
    repo.git(&["branch", "-f", "main"]);
    forget(&anew);
    live(&server, accepted(server.push("site", &unique(), &repo.push_of("refs/heads/main", &anew))), &anew);
}

#[test]
fn a_poll_finds_what_nobody_tells() {
    let mut server = Server::new(&format!(
        "(state_dir: \"@DIR@/state\", apps: {{ {} }})",
        site("", "poll: \"1s\"").replace("secret: File(\"@DIR@/secret\"),", "")
    ));
    fs::write(server.path().join("held"), "").unwrap();
    let repo = Repo::new(server.path().join("repo"), &[("app.sh", APP), ("VERSION", "1")]);
    start_live(&mut server);
    assert_eq!(server.app("site")["behind"], 0);
    let second = repo.commit(&[("VERSION", "2")], "second");
    live(&server, 2, &second);
    assert_eq!(deploy(&server, 2)["by"]["kind"], "poll");

    server.ok(&["rollback", "site"]);
    server.until("the commit is left alone", |s| s.log().contains("not caught up with").then_some(()));
    assert_eq!((version(&server).as_str(), deploys(&server).len()), ("1", 3));

    repo.commit(&[("VERSION", "3")], "[skip deploy]");
    assert_eq!(server.deploy_end(4)["state"], "skipped");
    server.until("it is not tried again", |s| s.log().contains("it was skipped").then_some(()));
    let fifth = repo.commit(&[("VERSION", "5")], "next");
    live(&server, 5, &fifth);
}

#[test]
fn what_awaits_approval_hides_nothing_newer() {
    let (mut server, repo) = world("", "approve: true, poll: \"1s\"");
    server.start();
    wait_deploy(&server, 1, "awaiting_approval");
    // It has no commit yet, and brings what is the newest then.
    server.until("it is left alone", |s| s.log().contains("not caught up with: a deploy that brings").then_some(()));
    server.ok(&["approve", "1"]);
    server.wait_state("site", "ready");
    repo.commit(&[("VERSION", "2")], "second");
    wait_deploy(&server, 2, "awaiting_approval");
    let head = repo.commit(&[("VERSION", "3")], "third");
    wait_deploy(&server, 3, "awaiting_approval");
    assert_eq!(server.deploy_end(2)["superseded_by"], 3);
    server.until("it is asked for once", |s| s.log().contains("its deploy has not ended").then_some(()));
    server.ok(&["approve", "3"]);
    live(&server, 3, &head);
    assert_eq!(deploys(&server).len(), 3);
}

#[test]
fn what_an_outage_of_the_listener_missed_is_made_up_for() {
    let (server, repo) = live_world("", "");
    let head = repo.commit(&[("VERSION", "2")], "its delivery finds nobody");
    let listener = &server.status()["supervisor"]["listeners"][0];
    let pid = nix::unistd::Pid::from_raw(i32::try_from(listener["pid"].as_i64().unwrap()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    live(&server, 2, &head);
    assert_eq!(deploy(&server, 2)["by"]["kind"], "catch_up");
}

#[test]
fn one_delivery_is_for_every_app_of_its_repository() {
    let apps = ["site", "second", "third"].map(|name| {
        let fails = if name == "third" { "check: [\"test ! -e $DIR/broken\"]" } else { "" };
        let marks = format!("$DIR/{name}");
        site("", fails).replace("\"site\"", &format!("\"{name}\"")).replace("$DIR/held", &marks)
    });
    let (mut server, repo) = world_with(&apps.join(",\n"));
    server.start();
    server.until("all are live", |s| {
        let deploys = deploys(s);
        (deploys.len() == 3 && deploys.iter().all(|d| d["state"] == "live")).then_some(())
    });
    fs::write(server.path().join("broken"), "").unwrap();
    let head = repo.commit(&[("VERSION", "2")], "second");
    let mut body: Value = serde_json::from_str(&repo.push_body()).unwrap();
    body["repository"]["clone_url"] = format!("file://{}", repo.path.display()).into();
    let (id, body) = (unique(), body.to_string());
    let (status, answer) = server.tell("/hooks", "push", &id, &body);
    assert_eq!((status, answer["deploys"].as_array().unwrap().len()), (202, 3), "{answer}");
    let ends: Vec<_> = answer["deploys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| {
            let end = server.deploy_end(of["id"].as_i64().unwrap());
            (end["app"].as_str().unwrap().to_owned(), end["state"].as_str().unwrap().to_owned())
        })
        .collect();
    for (app, state) in &ends {
        assert_eq!(state, if app == "third" { "failed" } else { "live" }, "{ends:?}");
    }

    // Delivered once more it is a repeat for those that have it, and a new try for the one that failed.
    fs::remove_file(server.path().join("broken")).unwrap();
    let (status, again) = server.tell("/hooks", "push", &id, &body);
    assert_eq!((status, again["deploys"].as_array().unwrap().len()), (202, 1), "{again}");
    assert_eq!(again["deploys"][0]["app"], "third");
    let end = server.deploy_end(again["deploys"][0]["id"].as_i64().unwrap());
    assert_eq!((&end["state"], &end["commit"]), (&json!("live"), &json!(head)), "{end}");
    let (status, last) = server.tell("/hooks", "push", &id, &body);
    assert_eq!(status, 200, "{last}");
    assert!(last["duplicate_of"].is_i64(), "{last}");
}
