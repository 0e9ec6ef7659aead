//! What people and accidents do to an app in the middle of its deploy, from outside.
#![allow(clippy::unwrap_used)]

#[path = "support/deploying.rs"]
mod deploying;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use deploying::*;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use server::{Repo, Server, processes};

fn building() -> (Server, Repo, Gate, i64, fs::File) {
    let (server, repo) = live_world("", "build: [\"if [ -e slow ]; then cat $DIR/gate; fi\"]");
    let gate = Gate::new(&server, "gate");
    repo.commit(&[("slow", ""), ("VERSION", "2")], "slow");
    let id = push(&server, &repo);
    let held = gate.reached();
    (server, repo, gate, id, held)
}

#[test]
fn a_stop_while_it_builds_holds() {
    let (server, _repo, _gate, id, held) = building();
    server.ok(&["stop", "site"]);
    drop(held);
    let deploy = server.deploy_end(id);
    assert_eq!((&deploy["state"], &deploy["reason"]), (&"live".into(), &"not running".into()), "{deploy}");
    assert_eq!(copies(&server), 0);
    server.ok(&["start", "site"]);
    assert_live(&server, &deploy);
}

#[test]
fn a_stop_while_it_is_proven_ends_the_trial() {
    let (mut server, repo) = world("", "");
    start_live(&mut server);
    server.edit_config("settle: \"20ms\"", "settle: \"1h\"");
    server.ok(&["reload"]);
    repo.commit(&[("VERSION", "2")], "second");
    let id = push(&server, &repo);
    wait_deploy(&server, id, "verifying");
    server.ok(&["stop", "site"]);
    let deploy = server.deploy_end(id);
    assert_eq!(deploy["state"], "rolled_back", "{deploy}");
    assert!(deploy["reason"].as_str().unwrap().contains("stopped"), "{deploy}");
    assert_eq!(copies(&server), 0);
    server.ok(&["start", "site"]);
    assert_live(&server, &server.deploy_end(1));
}

#[test]
fn the_old_release_comes_back_when_it_dies_while_the_new_one_is_built() {
    let (server, _repo, _gate, id, held) = building();
    let pid = server.main_pid("site");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    server.wait_new_pid("site", pid);
    server.wait_state("site", "ready");
    assert_eq!(version(&server), "1");
    server.ok(&["restart", "site"]);
    assert_eq!(version(&server), "1");
    runs_once(&server);
    drop(held);
    let deploy = server.deploy_end(id);
    assert_eq!(deploy["state"], "live", "{deploy}");
    assert_live(&server, &deploy);
}

#[test]
fn a_killed_step_fails_and_a_killed_logger_is_no_matter() {
    let (server, repo, gate, id, held) = building();
    let step = processes(&server.path().join("gate").display().to_string());
    assert!(!step.is_empty());
    for pid in step {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let deploy = server.deploy_end(id);
    assert_eq!((&deploy["state"], &deploy["step"]), (&"failed".into(), &"build".into()), "{deploy}");
    drop(held);
    assert_eq!(version(&server), "1");

    repo.git(&["rm", "-q", "slow"]);
    server.edit_config("cat $DIR/gate;", "echo before; cat $DIR/gate; echo after;");
    server.ok(&["reload"]);
    repo.commit(&[("slow", "again"), ("VERSION", "3")], "slow");
    let id = push(&server, &repo);
    let held = gate.reached();
    let logger = server.status()["supervisor"]["logger"]["pid"].as_i64().unwrap();
    kill(Pid::from_raw(i32::try_from(logger).unwrap()), Signal::SIGKILL).unwrap();
    server.until("another logger", |s| {
        s.status()["supervisor"]["logger"]["pid"].as_i64().filter(|pid| *pid != logger && *pid > 0)
    });
    drop(held);
    let deploy = server.deploy_end(id);
    assert_eq!(deploy["state"], "live", "{deploy}");
    let shown = server.until("the log is whole", |s| {
        Some(s.ok(&["history", "show", &id.to_string()])).filter(|shown| shown.contains("after"))
    });
    assert!(shown.contains("before"), "{shown}");
}

#[test]
fn a_rollback_waits_for_what_runs_and_wins_over_what_waits() {
    let (server, repo, _gate, id, held) = building();
    repo.git(&["rm", "-q", "slow"]);
    repo.commit(&[("VERSION", "3")], "third");
    let waits = push(&server, &repo);
    let first = server.deploy_end(1)["release"].as_str().unwrap().to_owned();
    server.ok(&["rollback", "site", "--to", &first, "--no-wait"]);
    let back = server.until("the rollback is queued", |s| deploys(s)[0]["id"].as_i64().filter(|back| *back > waits));
    drop(held);
    assert_eq!(server.deploy_end(id)["state"], "live");
    let superseded = server.deploy_end(waits);
    assert_eq!((&superseded["state"], &superseded["superseded_by"]), (&"superseded".into(), &back.into()));
    assert_eq!(server.deploy_end(back)["state"], "live");
    assert_eq!((version(&server), runs_in(&server)), ("1".into(), first));
    runs_once(&server);
}

#[test]
fn a_corrected_config_is_tried_at_once() {
    let (mut server, _repo) = world("", "");
    server.edit_config("/repo\"", "/wrong\"");
    server.start();
    let failed = server.deploy_end(1);
    assert_eq!((&failed["state"], &failed["step"]), (&"failed".into(), &"fetch".into()), "{failed}");
    assert_eq!(server.app("site")["state"], "waiting");
    server.edit_config("/wrong\"", "/repo\"");
    server.ok(&["reload"]);
    let deploy = server.deploy_end(2);
    assert_eq!(deploy["state"], "live", "{deploy}");
    server.wait_state("site", "ready");
    assert_live(&server, &deploy);
}

#[test]
fn what_comes_from_the_old_repository_is_given_up_for_the_new_one() {
    let (server, repo, gate, id, held) = building();
    repo.commit(&[], "waits");
    let waits = push(&server, &repo);
    let other = Repo::new(server.path().join("other"), &[("app.sh", APP), ("VERSION", "other")]);
    server.edit_config("/repo\"", "/other\"");
    server.ok(&["reload"]);
    for id in [id, waits] {
        let deploy = server.deploy_end(id);
        assert_eq!(deploy["state"], "cancelled", "{deploy}");
        assert!(deploy["reason"].as_str().unwrap().contains("repository"), "{deploy}");
    }
    drop((held, gate));
    let deploy = server.deploy_end(waits + 1);
    assert_eq!((&deploy["state"], &deploy["commit"]), (&"live".into(), &other.head().into()), "{deploy}");
    server.wait_state("site", "ready");
    assert_live(&server, &deploy);
}

#[test]
fn an_app_may_get_a_repository_later() {
    let (server, repo) = world("", "");
    let with = fs::read_to_string(server.config()).unwrap();
    let start = with.find("deploy: (").unwrap();
    let end = with.rfind("))").unwrap();
    let without = format!("{}{}", &with[..start], &with[end + 1..]);
    server.write_config(&without.replace("\"app.sh\"]", "\"repo/app.sh\"]"));
    let mut server = server;
    server.start();
    server.wait_state("site", "ready");
    server.write_config(&with);
    server.ok(&["reload"]);
    let deploy = server.deploy_end(1);
    assert_eq!((&deploy["state"], &deploy["commit"]), (&"live".into(), &repo.head().into()), "{deploy}");
    server.wait_state("site", "ready");
    assert_live(&server, &deploy);
}

#[test]
fn a_reload_that_changes_the_app_begins_its_deploy_anew() {
    let (server, repo, gate, id, held) = building();
    repo.commit(&[("VERSION", "3")], "third");
    let waits = push(&server, &repo);
    let step = processes(&server.path().join("gate").display().to_string());
    server.edit_config("\"OWN\": \"the app's\"", "\"OWN\": \"changed\"");
    server.edit_config("cat $DIR/gate;", "echo anew; cat $DIR/gate;");
    server.ok(&["reload"]);
    // Its step has been told to end, and the next one is not there yet: that is to wait until it is seen.
    drop(held);
    let first = server.deploy_end(id);
    assert_eq!((&first["state"], &first["step"]), (&"cancelled".into(), &"build".into()), "{first}");
    assert!(first["reason"].as_str().unwrap().contains("a reload changed the app"), "{first}");
    let left = processes(&server.path().join("gate").display().to_string());
    assert!(!step.is_empty() && !left.iter().any(|pid| step.contains(pid)), "its step goes with it: {left:?}");
    // What only waited keeps its number and is built by the config of now; what begins anew is the older one.
    drop(gate.reached());
    let ends: Vec<_> = [waits, waits + 1].iter().map(|id| server.deploy_end(*id)).collect();
    let live = ends.iter().rfind(|deploy| deploy["state"] == "live").unwrap_or_else(|| panic!("{ends:?}"));
    assert_eq!((&live["commit"], &live["by"]["kind"]), (&repo.head().into(), &"delivery".into()), "{live}");
    assert!(server.ok(&["history", "show", &live["id"].to_string()]).contains("anew"));
    server.wait_state("site", "ready");
    assert_live(&server, live);
    assert_eq!(version(&server), "3");
    let env = fs::read(format!("/proc/{}/environ", server.main_pid("site"))).unwrap();
    assert!(String::from_utf8_lossy(&env).contains("OWN=changed"));
}

#[test]
fn a_push_that_a_reload_begins_anew_is_the_same_push() {
    let (mut server, repo, gate, id, held) = building();
    server.edit_config("settle: \"20ms\"", "settle: \"30ms\"");
    server.ok(&["reload"]);
    drop(held);
    let first = server.deploy_end(id);
    assert_eq!(first["state"], "cancelled", "{first}");
    let held = gate.reached();
    let again = deploys(&server)[0].clone();
    assert_eq!((&again["commit"], &again["by"], &again["ref"]), (&first["commit"], &first["by"], &first["ref"]));
    let delivery = first["by"]["id"].to_string();
    assert_eq!(server.json(&["deliveries", "show", &delivery])["deploys"], serde_json::json!([id, id + 1]));
    // Nothing of it gets lost over a kill, and a reload that changes nothing changes nothing.
    server.kill();
    let at_gate = |server: &Server| processes(&server.path().join("gate").display().to_string());
    let left = at_gate(&server);
    server.start();
    server.until("the old step is gone", |s| (!at_gate(s).iter().any(|pid| left.contains(pid))).then_some(()));
    drop(held);
    let held = gate.reached();
    let text = fs::read_to_string(server.config()).unwrap();
    server.write_config(&format!("// A comment moves every line.\n{text}"));
    server.ok(&["reload"]);
    drop(held);
    let live = server.deploy_end(id + 1);
    assert_eq!((&live["state"], &live["commit"]), (&"live".into(), &repo.head().into()), "{live}");
    assert_eq!(deploys(&server).len(), 3);
    server.wait_state("site", "ready");
    assert_live(&server, &live);
}

#[test]
fn from_the_switch_on_a_reload_lets_it_finish() {
    let (mut server, repo) = world("", "");
    start_live(&mut server);
    server.edit_config("ready: After(\"20ms\")", "ready: Exec(command: \"cat $DIR/gate\", within: \"1h\")");
    server.ok(&["reload"]);
    let gate = Gate::new(&server, "gate");
    server.wait_state("site", "ready");
    repo.commit(&[("VERSION", "2")], "second");
    let id = push(&server, &repo);
    wait_deploy(&server, id, "verifying");
    let held = gate.reached();
    server.edit_config("settle: \"20ms\"", "settle: \"30ms\"");
    server.ok(&["reload"]);
    assert_eq!(deploys(&server)[0]["state"], "verifying");
    // Who takes too long is asked anew.
    gate.open();
    drop(held);
    let deploy = server.deploy_end(id);
    assert_eq!(deploy["state"], "live", "{deploy}");
    assert_live(&server, &deploy);
    assert_eq!(deploys(&server).len(), 2);
}

#[test]
fn an_app_that_is_removed_while_its_release_is_proven_leaves_nothing_behind() {
    let (mut server, repo) = world("", "");
    start_live(&mut server);
    server.edit_config("settle: \"20ms\"", "settle: \"1h\"");
    server.ok(&["reload"]);
    repo.commit(&[("VERSION", "2")], "second");
    let id = push(&server, &repo);
    wait_deploy(&server, id, "verifying");
    let config = fs::read_to_string(server.config()).unwrap();
    server.write_config("(state_dir: \"@DIR@/state\", http: [(bind: \"127.0.0.1:0\", serve: [Hooks, Api])], apps: {})");
    server.ok(&["reload"]);
    let deploy = server.deploy_end(id);
    assert_eq!(deploy["state"], "rolled_back", "{deploy}");
    assert!(deploy["reason"].as_str().unwrap().contains("removed"), "{deploy}");
    server.until("no process of it is left", |s| (copies(s) == 0).then_some(()));
    server.write_config(&config.replace("settle: \"1h\"", "settle: \"20ms\""));
    server.ok(&["reload"]);
    server.wait_state("site", "ready");
    assert_live(&server, &server.deploy_end(1));
}

#[test]
fn steps_may_do_odd_things() {
    let (mut server, repo) = world("", "build: [\"sh build.sh\"], check: [\"sh check.sh\"]");
    let build = "cat\nhead -c 3000000 /dev/zero | tr '\\\\0' x\nprintf '\\\\377\\\\000no end'\nexec >&- 2>&-\n\
        mkdir -p ro/deep && touch ro/deep/file && chmod 500 ro/deep ro\nln -s /etc/passwd out\nmkfifo pipe\n";
    repo.commit(&[("check.sh", "true"), ("build.sh", &build.replace("\\\\", "\\"))], "odd");
    start_live(&mut server);
    assert_eq!(current(&server, "VERSION"), "1");
    // What failed goes whatever it made of its folder.
    repo.commit(&[("build.sh", &format!("{}exit 1\n", build.replace("\\\\", "\\")))], "odd and fails");
    let deploy = server.deliver("site", &repo);
    assert_eq!(deploy["state"], "failed", "{deploy}");
    server.until("the release is removed", |s| (releases(s, "site").len() == 1).then_some(()));
    assert!(fs::metadata("/etc/passwd").unwrap().len() > 0, "nobody followed the link");
    // A step that removes the folder it stands in.
    repo.commit(&[("build.sh", "rm -rf \"$EVERHOOK_RELEASE_DIR\"/* \"$EVERHOOK_RELEASE_DIR\"\n")], "removes all");
    let deploy = server.deliver("site", &repo);
    assert_ne!(deploy["state"], "live", "{deploy}");
    server.wait_state("site", "ready");
    assert_live(&server, &server.deploy_end(1));
}

#[test]
fn a_branch_that_was_forced_back_is_followed() {
    let (server, repo) = live_world("", "");
    let first = repo.head();
    repo.commit(&[("VERSION", "2")], "second");
    assert_eq!(server.deliver("site", &repo)["state"], "live");
    repo.git(&["reset", "-q", "--hard", &first]);
    let deploy = server.deliver("site", &repo);
    assert_eq!((&deploy["state"], &deploy["commit"]), (&"live".into(), &first.into()), "{deploy}");
    assert_live(&server, &deploy);
    assert_eq!(version(&server), "1");
}

#[test]
fn two_apps_may_share_a_repository() {
    let other = site("", "").replace("\"site\"", "\"other\"").replace("$DIR/held", "$DIR/other");
    let (mut server, repo) = world_with(&format!("{},\n{other}", site("", "")));
    server.start();
    server.wait_state("site", "ready");
    server.wait_state("other", "ready");
    server.until("both are live", |s| deploys(s).iter().all(|d| d["state"] == "live").then_some(()));
    repo.commit(&[("VERSION", "2")], "second");
    let (status, answer) = server.push("site", &server::unique(), &repo.push_body());
    assert_eq!(status, 202, "{answer}");
    assert_eq!(server.deploy_end(answer["deploys"][0]["id"].as_i64().unwrap())["state"], "live");
    assert_ne!(server.app("other")["commit"], repo.head(), "the push was for one of them");
    let (status, answer) = server.push("other", &server::unique(), &repo.push_body());
    assert_eq!(status, 202, "{answer}");
    assert_eq!(server.deploy_end(answer["deploys"][0]["id"].as_i64().unwrap())["state"], "live");
    assert_eq!(server.app("other")["commit"], repo.head());
}

#[test]
fn a_release_that_somebody_removed_is_named_and_a_deploy_mends_it() {
    let (mut server, repo) = live_world("", "");
    without_catch_up(&server);
    let release = home(&server, "site").join("releases").join(server.app("site")["release"].as_str().unwrap());
    assert!(server.stop().success());
    fs::remove_dir_all(&release).unwrap();
    server.start();
    server.wait_state("site", "failed");
    let reason = server.instance("site")["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains(release.to_str().unwrap()), "{reason}");
    repo.commit(&[("VERSION", "2")], "second");
    let deploy = server.deliver("site", &repo);
    assert_eq!((&deploy["state"], &deploy["reason"]), (&"live".into(), &().into()), "{deploy}");
    server.wait_state("site", "ready");
    assert_live(&server, &deploy);
    assert_eq!((version(&server).as_str(), copies(&server)), ("2", 1));
}

#[test]
fn two_terminations_are_one() {
    let (mut server, _repo, gate, id, held) = building();
    server.signal(Signal::SIGTERM);
    server.signal(Signal::SIGTERM);
    assert!(server.ended().success(), "{}", server.log());
    drop(held);
    server.start();
    drop(gate.reached());
    let deploy = server.deploy_end(id);
    assert_eq!(deploy["state"], "live", "{deploy}");
    server.wait_state("site", "ready");
    assert_live(&server, &deploy);
}

/// A helper is on its way to wait for the fetch then, and nobody will ever tell it what to fetch.
#[test]
fn a_shutdown_just_as_a_deploy_begins_ends_and_the_deploy_goes_on_later() {
    let (mut server, repo) = live_world("", "");
    without_catch_up(&server);
    for round in 0..20 {
        repo.commit(&[("VERSION", &format!("{round}"))], "again");
        let id = push(&server, &repo);
        let begun = format!("deploy fetching app=site deploy={id}");
        // That is told before it is recorded, and the helper starts meanwhile: no event is as early.
        let end = Instant::now() + Duration::from_secs(60);
        while !server.log().contains(&begun) {
            assert!(Instant::now() < end, "never: {begun}\n{}", server.log());
            thread::yield_now();
        }
        assert!(server.stop().success());
        server.start();
        assert_live(&server, &server.deploy_end(id));
    }
}

/// What only looks is answered until the end, but its remote may never answer.
#[test]
fn a_shutdown_waits_for_no_remote_that_is_asked_meanwhile() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut server = Server::with_apps(&format!(
        r#""site": (command: ["/bin/sleep", "1000"], deploy: (repo: "git://{}/site.git", on: [Push(branch: "*")],
             secret: File("@DIR@/secret"))),
           "slow": (command: "trap 'cat @DIR@/gate; exit 0' TERM; echo slow; while :; do sleep 0.1; done", ready: Immediate,
             stop: (timeout: "5m"))"#,
        silent.local_addr().unwrap()
    ));
    let gate = Gate::new(&server, "gate");
    server.start();
    server.until("it hears the signal", |s| s.ok(&["logs", "slow"]).contains("slow").then_some(()));
    server.signal(Signal::SIGTERM);
    let held = gate.reached();
    let asked = server.fails(1, &["deploy", "site", "--rev", "main", "--dry-run", "--timeout", "60s"]);
    assert!(asked.contains("everhook is shutting down"), "{asked}");
    drop(held);
    assert!(server.ended().success());
}
