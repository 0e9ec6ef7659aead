//! What goes wrong in a deploy, from outside: the running app is untouched, and the record says why.
#![allow(clippy::unwrap_used)]

#[path = "support/deploying.rs"]
mod deploying;
#[path = "support/forge.rs"]
mod forge;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{fs, process::Command};

use deploying::*;
use forge::Forge;
use serde_json::Value;
use server::{Repo, Server, processes, unique};

/// What must stay as it is when a deploy fails.
#[derive(Debug, PartialEq)]
struct Untouched {
    pid: i32,
    live: String,
    current: std::path::PathBuf,
    releases: Vec<String>,
}

impl Untouched {
    fn of(server: &Server) -> Self {
        Self {
            pid: server.main_pid("site"),
            live: fs::read_to_string(home(server, "site").join("live")).unwrap(),
            current: fs::read_link(home(server, "site").join("current")).unwrap(),
            releases: releases(server, "site"),
        }
    }

    fn still(&self, server: &Server) {
        server.until("what failed is cleared away", |s| (releases(s, "site") == self.releases).then_some(()));
        assert_eq!(*self, Self::of(server));
        assert_eq!(server.app("site")["state"], "ready");
        runs_once(server);
    }
}

fn ended(deploy: &Value) -> (&str, &str, &str) {
    let text = |key: &str| deploy[key].as_str().unwrap_or_default();
    (text("state"), text("step"), text("reason"))
}

#[test]
fn a_failed_step_is_shown_with_its_last_lines() {
    let (mut server, repo) = world("", "check: [\"sh check.sh\"], build: [\"sh build.sh || exit 9\"]");
    repo.commit(&[("check.sh", "echo checked"), ("build.sh", "echo built")], "with steps");
    start_live(&mut server);
    let before = Untouched::of(&server);
    for (file, content, step, exit) in [
        ("check.sh", "echo one; echo two >&2; exit 3", "check", 3),
        ("build.sh", "echo one; echo two >&2; exit 3", "build", 9),
        ("check.sh", "echo one; echo two >&2; kill -9 $$", "check", 137),
    ] {
        repo.git(&["checkout", "-q", "HEAD", "."]);
        repo.commit(&[("check.sh", "true"), ("build.sh", "true"), (file, content)], "fails");
        let deploy = server.deliver("site", &repo);
        let (state, at, reason) = ended(&deploy);
        assert_eq!((state, at), ("failed", step), "{deploy}");
        let last = deploy["steps"].as_array().unwrap().last().unwrap();
        assert_eq!((&last["name"], &last["state"]), (&step.into(), &"failed".into()), "{last}");
        if exit == 137 {
            assert!(reason.contains("sh check.sh"), "{reason}");
        } else {
            assert_eq!(last["exit"]["code"], exit, "{last}");
            assert!(reason.contains(&format!("exited with {exit}")), "{reason}");
        }
        assert_eq!(deploy["release"], Value::Null);
        let id = deploy["id"].to_string();
        let shown = server.ok(&["history", "show", &id]);
        for words in ["failed", step, reason, "one", "two"] {
            assert!(shown.contains(words), "no {words:?} in {shown}");
        }
        let log = &server.json(&["history", "show", &id])["log"];
        let log = log.as_array().unwrap();
        assert!(log.iter().any(|line| line.as_str().unwrap().contains("two")), "{log:?}");
        before.still(&server);
    }
}

#[test]
fn a_step_that_takes_too_long_goes_with_its_whole_tree() {
    let (server, repo) =
        live_world("", "build: [(run: \"if [ -e slow ]; then sh slow $DIR/slow-step; fi\", timeout: \"10m\")]");
    server.edit_config("timeout: \"10m\"", "timeout: \"1s\"");
    server.ok(&["reload"]);
    let before = Untouched::of(&server);
    // A child, one in a session of its own, and all of them deaf.
    let slow = "trap '' TERM INT HUP\n(sh -c 'trap \"\" TERM; sleep 60; :' $1) &\n\
        setsid sh -c 'trap \"\" TERM; sleep 60; :' $1 &\nsleep 60\n";
    repo.commit(&[("slow", slow)], "slow");
    let deploy = server.deliver("site", &repo);
    let (state, step, reason) = ended(&deploy);
    assert_eq!((state, step), ("failed", "build"), "{deploy}");
    assert!(reason.contains("timed out after 1s"), "{reason}");
    assert_eq!(deploy["steps"].as_array().unwrap().last().unwrap()["state"], "timed_out", "{deploy}");
    assert_eq!(processes(&server.path().join("slow-step").display().to_string()), [] as [i32; 0]);
    before.still(&server);
}

#[test]
fn the_limit_of_a_deploy_holds_for_its_fetch_too() {
    let (mut server, repo) = world("", "timeout: \"10m\"");
    let limit = |server: &Server, old: &str, new: &str| {
        server.edit_config(&format!("timeout: \"{old}\""), &format!("timeout: \"{new}\""));
        server.ok(&["reload"]);
    };
    let forge = Forge::new(server.path());
    let path = server.path().join("repo");
    server.edit_config(&format!("repo: \"{}\"", path.display()), &format!("repo: \"{}\"", forge.url("repo")));
    start_live(&mut server);
    // Long enough for git to come there at all.
    limit(&server, "10m", "4s");
    let before = Untouched::of(&server);
    forge.close();
    repo.commit(&[("VERSION", "2")], "second");
    let id = push(&server, &repo);
    forge.visited();
    if is_root() {
        for pid in processes(&format!(":{}/", forge.port)) {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
            let name = status.lines().next().unwrap_or_default();
            assert!(!uids.split_whitespace().any(|uid| uid == "0"), "{name} runs as {uids}");
        }
    }
    let deploy = server.deploy_end(id);
    let (state, step, reason) = ended(&deploy);
    assert_eq!((state, step), ("failed", "fetch"), "{deploy}");
    assert!(reason.contains("timed out"), "{reason}");
    assert_eq!(processes(&format!(":{}/", forge.port)), [] as [i32; 0], "nothing of the fetch is left");
    before.still(&server);
    forge.open();
    limit(&server, "4s", "10m");
    assert_eq!(server.deliver("site", &repo)["state"], "live");
}

#[test]
fn what_cannot_be_fetched_changes_nothing() {
    let (server, repo) = live_world("", "");
    let before = Untouched::of(&server);
    let fails_at_fetch = |deploy: &Value, words: &str| {
        let (state, step, reason) = ended(deploy);
        assert_eq!((state, step), ("failed", "fetch"), "{deploy}");
        assert!(reason.contains(words), "{reason}");
        before.still(&server);
    };
    let second = repo.commit(&[("VERSION", "2")], "second");

    let away = server.path().join("away");
    fs::rename(&repo.path, &away).unwrap();
    let id = unique();
    let body = Repo { path: away.clone() }.push_of("refs/heads/main", &second);
    let (status, answer) = server.push("site", &id, &body);
    assert_eq!(status, 202, "{answer}");
    let failed = server.deploy_end(answer["deploys"][0]["id"].as_i64().unwrap());
    fails_at_fetch(&failed, "there is no repository at");
    let said = server.fails(1, &["deploy", "site"]);
    assert!(said.contains("there is no repository at"), "{said}");
    before.still(&server);

    fs::create_dir(&repo.path).unwrap();
    fails_at_fetch(&server.deploy_end(push_id(&server, &body)), "is no git repository");
    fs::remove_dir(&repo.path).unwrap();
    fs::rename(&away, &repo.path).unwrap();

    repo.git(&["branch", "-m", "main", "other"]);
    let deploy = server.deploy_end(push_id(&server, &body));
    assert_eq!(deploy["state"], "superseded", "the push is history, as its branch is: {deploy}");
    assert!(deploy["reason"].as_str().unwrap().contains("refs/heads/main"), "{deploy}");
    server.fails(1, &["deploy", "site"]);
    fails_at_fetch(&deploys(&server)[0], "has no branch \"main\"");
    repo.git(&["branch", "-m", "other", "main"]);

    // A commit that the branch does not hold is not deployed, and is no failure.
    let gone = repo.push_of("refs/heads/main", &"ab".repeat(20));
    let deploy = server.deploy_end(push_id(&server, &gone));
    assert_eq!(deploy["state"], "superseded", "{deploy}");
    before.still(&server);

    for (reference, after) in [("refs/heads/main", "0".repeat(40)), ("refs/heads/dev", second.clone())] {
        let (status, answer) = server.push("site", &unique(), &repo.push_of(reference, &after));
        assert_eq!(status, 200, "{answer}");
        assert!(answer["skipped"].is_string(), "{answer}");
    }
    for bad in ["refs/heads/main/../x", "refs/heads/--upload-pack=x", "main", "refs/heads/a b", ""] {
        let (status, answer) = server.push("site", &unique(), &repo.push_of(bad, &second));
        assert!(
            (200..300).contains(&status) && answer["deploys"].is_null() || status == 400,
            "{bad}: {status} {answer}"
        );
    }
    before.still(&server);

    // The same delivery again, now that it can be fetched.
    let (status, answer) = server.push("site", &id, &body);
    assert_eq!(status, 202, "{answer}");
    let deploy = server.deploy_end(answer["deploys"][0]["id"].as_i64().unwrap());
    assert_eq!((&deploy["state"], &deploy["commit"]), (&"live".into(), &second.clone().into()), "{deploy}");
    let count = deploys(&server).len();
    for id in [id, unique()] {
        let (status, answer) = server.push("site", &id, &body);
        assert_eq!(status, 200, "{answer}");
        assert!(answer["duplicate_of"].is_i64(), "{answer}");
    }
    assert_eq!(deploys(&server).len(), count);
}

fn push_id(server: &Server, body: &str) -> i64 {
    let (status, answer) = server.push("site", &unique(), body);
    assert_eq!(status, 202, "{answer}");
    answer["deploys"][0]["id"].as_i64().unwrap()
}

/// It is whole when it is fetched, and not any more when git reads from it; git stands at a FIFO meanwhile.
#[test]
fn a_mirror_that_rots_before_the_checkout_is_fetched_anew() {
    let (server, repo) = live_world("", "");
    repo.commit(&[("VERSION", "2")], "second");
    let blob = repo.git(&["rev-parse", "HEAD:VERSION"]);
    let (gate, mirror) = Gate::in_mirror(&server);
    let id = push_id(&server, &repo.push_body());
    let held = gate.reached();
    let is_there = |s: &Server| releases(s, "site").iter().any(|name| name.starts_with(&format!("{id}-")));
    server.until("the folder is there", |s| is_there(s).then_some(()));
    fs::remove_file(mirror.join("objects").join(&blob[..2]).join(&blob[2..])).unwrap();
    drop(held);
    let deploy = server.deploy_end(id);
    assert_eq!(deploy["state"], "live", "{deploy}");
    assert!(server.ok(&["history", "show", &id.to_string()]).contains("fetching it anew"));
    server.wait_state("site", "ready");
    assert_live(&server, &deploy);
}

#[test]
fn an_older_commit_that_comes_late_is_skipped() {
    let (server, repo) = live_world("", "");
    let old = repo.commit(&[("VERSION", "2")], "second");
    let late = repo.push_of("refs/heads/main", &old);
    repo.commit(&[("VERSION", "3")], "third");
    let live = server.deliver("site", &repo);
    let deploy = server.deploy_end(push_id(&server, &late));
    assert_eq!(deploy["state"], "skipped", "{deploy}");
    assert!(deploy["reason"].as_str().unwrap().contains("older"), "{deploy}");
    assert_live(&server, &live);
}

#[test]
fn what_a_step_leaves_behind_is_ended() {
    let (mut server, repo) = world("", "build: [\"sh build.sh\"]");
    let daemon = "trap '' TERM; echo here > $1.pid; tail -f $0";
    let build = format!(
        "touch left\nsetsid sh -c \"{}\" $PWD/left $PWD/left &\nuntil [ -s left.pid ]; do :; done\n",
        daemon.replace('$', "\\$")
    );
    repo.commit(&[("build.sh", &build)], "leaves a daemon");
    server.start();
    let deploy = server.deploy_end(1);
    assert_eq!(deploy["state"], "live", "{deploy}");
    let marker = home(&server, "site").join("releases").join(deploy["release"].as_str().unwrap()).join("left");
    assert_eq!(processes(&marker.display().to_string()), [] as [i32; 0]);
    server.wait_state("site", "ready");
    assert_live(&server, &deploy);
}

#[test]
fn a_trial_that_fails_is_taken_back() {
    let (server, repo) = live_world("restart: (first: \"10ms\"),", "");
    // Its shell may take longer than a moment to come to its end.
    server.edit_config("settle: \"20ms\"", "settle: \"1h\"");
    server.ok(&["reload"]);
    let before = Untouched::of(&server);
    repo.commit(&[("app.sh", "exit 7\n")], "crashes");
    let deploy = server.deliver("site", &repo);
    let (state, _, reason) = ended(&deploy);
    assert_eq!(state, "rolled_back", "{deploy}");
    assert!(reason.contains('7'), "{reason}");
    server.wait_state("site", "ready");
    assert_ne!(server.main_pid("site"), before.pid);
    assert_live(&server, &server.deploy_end(1));
    server.until("what failed is cleared away", |s| (releases(s, "site") == before.releases).then_some(()));
}

#[test]
fn what_a_crash_left_of_a_failed_deploy_takes_no_place() {
    let (server, repo) = live_world("", "layout: Releases(keep: 2), check: [\"! grep -q broken VERSION\"]");
    let broken = repo.commit(&[("VERSION", "broken")], "broken");
    assert_eq!(server.deliver("site", &repo)["state"], "failed");
    let left = format!("2-{}", &broken[..7]);
    server.until("it is cleared away", |s| (releases(s, "site").len() == 1).then_some(()));
    fs::create_dir(home(&server, "site").join("releases").join(&left)).unwrap();
    repo.commit(&[("VERSION", "3")], "mended");
    assert_eq!(server.deliver("site", &repo)["state"], "live");
    server.until("what was left is gone", |s| (!releases(s, "site").contains(&left)).then_some(()));
    let kept = releases(&server, "site");
    assert!(kept.len() == 2 && kept[0].starts_with("1-") && kept[1].starts_with("3-"), "{kept:?}");
}

/// A commit is small, and what a build makes of it is not.
#[test]
fn a_release_needs_room_for_two_of_the_last_one() {
    if !is_root() {
        return println!("only root mounts a small disk: left out");
    }
    let (mut server, repo) = world("", "build: [\"if [ -e heavy ]; then head -c 320m /dev/zero > made; fi\"]");
    let state = server.path().join("state");
    fs::create_dir(&state).unwrap();
    let disk = Disk::new(&state, "900m");
    repo.commit(&[("heavy", "")], "heavy");
    start_live(&mut server);
    let before = Untouched::of(&server);
    repo.git(&["rm", "-q", "heavy"]);
    repo.commit(&[("VERSION", "2")], "light");
    let deploy = server.deliver("site", &repo);
    let (state, _, reason) = ended(&deploy);
    assert_eq!(state, "failed", "{deploy}");
    assert!(reason.starts_with("not enough space: ") && reason.ends_with(", 640 MiB are needed"), "{reason}");
    before.still(&server);
    disk.resize("2g");
    for _ in 0..2 {
        repo.commit(&[], "light again");
        assert_eq!(server.deliver("site", &repo)["state"], "live");
    }
    assert!(server.stop().success());
    drop(disk);
}

#[test]
fn a_full_disk_fails_the_deploy_alone() {
    if !is_root() {
        println!("skipped: only root mounts a small disk");
        return;
    }
    let (mut server, repo) = world("", "");
    let state = server.path().join("state");
    fs::create_dir(&state).unwrap();
    let disk = Disk::new(&state, "1g");
    start_live(&mut server);
    let before = Untouched::of(&server);
    disk.resize("64m");
    repo.commit(&[("VERSION", "2")], "second");
    let deploy = server.deliver("site", &repo);
    let (state, step, reason) = ended(&deploy);
    assert_eq!((state, step), ("failed", "fetch"), "{deploy}");
    assert!(reason.contains("space") && reason.contains("MiB"), "{reason}");
    before.still(&server);

    let filler = server.path().join("state/filler");
    let _ = Command::new("dd").args(["if=/dev/zero", "bs=64k"]).arg(format!("of={}", filler.display())).output();
    let mut big = Vec::new();
    for n in 0..60_000_u32 {
        big.extend_from_slice(format!("{:x} ", n.wrapping_mul(2_654_435_761)).as_bytes());
    }
    fs::write(repo.path.join("big"), &big).unwrap();
    repo.commit(&[], "big");
    let (status, answer) = server.push("site", &unique(), &repo.push_body());
    // The store may have had a little room of its own: then the deploy waits for more, or has failed.
    assert!(status == 202 || status >= 500, "{status} {answer}");
    assert_eq!(server.main_pid("site"), before.pid);
    runs_once(&server);
    fs::remove_file(filler).unwrap();
    disk.resize("1g");
    repo.commit(&[("VERSION", "3")], "third");
    let id = server.until("the store takes deliveries again", |s| {
        let (status, answer) = s.push("site", &unique(), &repo.push_body());
        (status == 202).then(|| answer["deploys"][0]["id"].as_i64().unwrap())
    });
    let deploy = server.deploy_end(id);
    assert_eq!(deploy["state"], "live", "{deploy}");
    assert_live(&server, &deploy);
    assert!(server.stop().success());
    drop(disk);
}
