//! Deploys from outside: what is deployed when, what its steps see, what is left on disk.
#![allow(clippy::unwrap_used)]

#[path = "support/deploying.rs"]
mod deploying;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use deploying::*;
use serde_json::Value;
use server::{Repo, Server, processes};

#[test]
fn the_tip_is_deployed_first_and_caught_up_with_at_a_start() {
    let (mut server, repo) = live_world("", "");
    let first = server.deploy_end(1);
    assert_eq!((&first["by"]["kind"], &first["commit"]), (&"first".into(), &repo.head().into()), "{first}");
    assert_live(&server, &first);

    assert!(server.stop().success());
    repo.commit(&[("VERSION", "2")], "while nobody looked");
    server.start();
    let second = server.deploy_end(2);
    assert_eq!((&second["by"]["kind"], &second["state"]), (&"catch_up".into(), &"live".into()), "{second}");
    server.wait_state("site", "ready");
    assert_live(&server, &second);

    server.ok(&["rollback", "site"]);
    assert_eq!(version(&server), "1");
    assert!(server.stop().success());
    server.start();
    server.until("the commit is left alone", |s| s.log().contains("not caught up with").then_some(()));
    server.wait_state("site", "ready");
    assert_eq!(version(&server), "1");
    assert_eq!(deploys(&server).len(), 3);
}

#[test]
fn after_holds_back_the_first_deploy() {
    let maker = r#""maker": (command: "cat gate; git init -q -b main made; cd made; echo 1 > VERSION; cp ../app.sh .; git add .;
        git -c user.name=Ann -c user.email=ann@example.org commit -q -m made", ready: After("10m"), restart: (policy: Never)),"#;
    let site = site("after: [\"maker\"],", "").replace("@DIR@/repo", "@DIR@/made");
    let mut server = Server::with_apps(&format!("{maker}\n{site}"));
    fs::write(server.path().join("held"), "").unwrap();
    fs::write(server.path().join("app.sh"), APP).unwrap();
    let gate = Gate::new(&server, "gate");
    server.start();
    let held = gate.reached();
    assert_eq!(server.app("site")["state"], "waiting");
    assert!(deploys(&server).iter().all(|deploy| deploy["state"] == "queued"), "{:?}", deploys(&server));
    drop(held);
    server.wait_state("site", "ready");
    assert_eq!(server.app("maker")["state"], "done");
    assert_live(&server, &server.deploy_end(1));
    assert_eq!(deploys(&server).len(), 1);
}

#[test]
fn an_app_without_a_command_is_only_deployed() {
    let apps = site("", "").replace("command: [\"/bin/sh\", \"app.sh\"],", "");
    let mut server = Server::new(&format!(
        r#"(state_dir: "@DIR@/state", http: [(bind: "127.0.0.1:0", serve: [Hooks, Api])],
           tokens: [(name: "ci", secret: File("@DIR@/secret"), role: Operator)], apps: {{ {apps} }})"#
    ));
    let repo = Repo::new(server.path().join("repo"), &[("VERSION", "1")]);
    server.start();
    assert_eq!(server.deploy_end(1)["state"], "live");
    let app = server.wait_state("site", "deployed");
    assert_eq!((&app["commit"], &app["instances"]), (&repo.head().into(), &serde_json::json!([])), "{app}");
    repo.commit(&[("VERSION", "2")], "second");
    let deploy = server.deliver("site", &repo);
    assert_eq!((&deploy["state"], &deploy["reason"]), (&"live".into(), &().into()), "{deploy}");
    assert_eq!(current(&server, "VERSION"), "2");

    let said = server.fails(1, &["restart", "site"]);
    assert!(said.contains("site") && said.contains("command"), "{said}");
    let bearer = format!("Bearer {}", server::SECRET);
    let headers = [("authorization", bearer.as_str()), ("content-length", "0")];
    let answer = http::request(server.address("api"), "POST", "/api/v1/apps/site/restart", &headers, b"");
    assert_eq!(answer.status, 409, "{}", answer.text());
}

#[test]
fn steps_see_their_environment_and_nothing_else() {
    let dump = "tr '\\\\0' '\\\\n' < /proc/self/environ > seen; id -u > uid; pwd > folder";
    let (mut server, repo) = world("", &format!("build: [\"{dump}\"]"));
    server.edit_config(
        "\"DIR\": \"@DIR@\"}, settle".replace("@DIR@", server.path().to_str().unwrap()).as_str(),
        &format!("\"DIR\": \"{}\", \"NODE_ENV\": \"test\"}}, settle", server.path().display()),
    );
    start_live(&mut server);
    let previous = repo.head();
    let previous_dir = home(&server, "site").join("releases").join(server.app("site")["release"].as_str().unwrap());
    let head = repo.commit(&[("VERSION", "2")], "second");
    let deploy = server.deliver("site", &repo);
    assert_live(&server, &deploy);

    let app = home(&server, "site");
    let release = app.join("releases").join(deploy["release"].as_str().unwrap());
    let cache = app.join("cache");
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let uid = if is_root() { NOBODYS } else { nix::unistd::geteuid().as_raw() };
    let seen = fs::read_to_string(release.join("seen")).unwrap();
    let mut seen: BTreeMap<&str, &str> = seen.lines().map(|line| line.split_once('=').unwrap()).collect();
    // The shell's own.
    for own in ["PWD", "OLDPWD", "SHLVL", "_"] {
        seen.remove(own);
    }
    // What its tree is known by where there are no cgroups.
    assert!(seen.remove("EVERHOOK_BOOT").is_some());
    assert_eq!(seen.remove("EVERHOOK_INSTANCE"), Some("site.job"));
    let user = seen.remove("USER").unwrap();
    assert!(!user.is_empty() && (!is_root() || user == NOBODYS.to_string()), "{user}");
    let id = deploy["id"].to_string();
    let tmp = text(&app.join("tmp").join(&id));
    let (home, cache) = (text(&cache.join("home")), text(&cache));
    let (release_dir, previous_dir) = (text(&release), text(&previous_dir));
    let want: BTreeMap<&str, &str> = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", &home),
        ("TMPDIR", &tmp),
        ("LANG", "C.UTF-8"),
        ("CI", "true"),
        ("EVERHOOK_APP", "site"),
        ("EVERHOOK_DEPLOY", &id),
        ("EVERHOOK_COMMIT", &head),
        ("EVERHOOK_PREVIOUS_COMMIT", &previous),
        ("EVERHOOK_REF", "refs/heads/main"),
        ("EVERHOOK_BRANCH", "main"),
        ("EVERHOOK_TAG", ""),
        ("EVERHOOK_AUTHOR", "Ann <ann@example.org>"),
        ("EVERHOOK_CACHE", &cache),
        ("EVERHOOK_RELEASE_DIR", &release_dir),
        ("EVERHOOK_PREVIOUS_DIR", &previous_dir),
        ("DIR", server.path().to_str().unwrap()),
        ("NODE_ENV", "test"),
    ]
    .into();
    assert_eq!(seen, want);
    assert_eq!(current(&server, "uid"), uid.to_string());
    assert_eq!(current(&server, "folder"), text(&release));
    assert_eq!(owners(&release), [uid]);
    let app_env = fs::read(format!("/proc/{}/environ", server.main_pid("site"))).unwrap();
    let app_env = String::from_utf8(app_env).unwrap();
    assert!(app_env.contains("OWN=the app's") && !app_env.contains("NODE_ENV"), "{app_env}");

    let state = server.path().join("state");
    for mirror in fs::read_dir(state.join("mirrors")).unwrap() {
        let owners = owners(&mirror.unwrap().path());
        assert!(owners.len() == 1 && (!is_root() || owners != [0]), "no git ran as root: {owners:?}");
    }
    if is_root() {
        assert_eq!(fs::metadata(home_of(&server)).unwrap().uid(), 0);
        assert_eq!(fs::metadata(home_of(&server).join("live")).unwrap().uid(), 0);
    }
}

fn home_of(server: &Server) -> std::path::PathBuf {
    home(server, "site")
}

#[test]
fn shared_files_outlive_releases_and_old_releases_go() {
    let app = "[ -e data/start ] || echo 1 > data/start\nread -r n < count || n=0\n\
        echo $((n + 1)) > count.new && mv count.new count\nexec tail -f \"$DIR/held\"\n";
    let (mut server, repo) = world("", "layout: Releases(keep: 2), shared: [\"data/\", \"count\"]");
    repo.commit(&[("app.sh", app)], "counts its starts");
    start_live(&mut server);
    let count = home(&server, "site").join("current/count");
    for n in 1..=4 {
        if n > 1 {
            repo.commit(&[("VERSION", &n.to_string())], "next");
            assert_live(&server, &server.deliver("site", &repo));
        }
        let counted = |_: &Server| fs::read_to_string(&count).is_ok_and(|text| text.trim() == n.to_string());
        server.until("the app has counted", |s| counted(s).then_some(()));
        assert_eq!(current(&server, "data/start"), "1", "what is shared stays");
    }
    let shared = home(&server, "site").join("shared");
    assert_eq!(fs::read_to_string(shared.join("count")).unwrap().trim(), "3", "carried over from the last release");
    server.until("old releases are gone", |s| (releases(s, "site").len() == 2).then_some(()));
    let left = releases(&server, "site");
    assert!(left[0].starts_with("3-") && left[1].starts_with("4-"), "{left:?}");
}

/// It saves by write and rename, as careful apps do: in its release a file is then in place of the link.
#[test]
fn what_the_app_saves_until_the_switch_is_in_the_next_release() {
    let build = "build: [\"if [ -e slow ]; then cat $DIR/gate; sed -i s/then/now/ conf; fi\"]";
    let (server, repo) = live_world("", &format!("shared: [\"db\", \"conf\"], {build}"));
    let gate = Gate::new(&server, "gate");
    let save = |name: &str, text: &str| {
        let saves = format!("echo {text} > {name}.new && mv {name}.new {name}");
        server.ok(&["exec", "site", "--", "sh", "-c", &saves]);
    };
    let is_shared = |name: &str, text: &str| {
        let link = home(&server, "site").join("current").join(name);
        let shared = home(&server, "site").join("shared").join(name);
        assert_eq!((fs::read_link(&link).ok(), current(&server, name)), (Some(shared), text.to_owned()));
    };
    save("db", "early");
    save("conf", "then");
    repo.commit(&[("VERSION", "2"), ("slow", "")], "second");
    let id = push(&server, &repo);
    let held = gate.reached();
    save("db", "late");
    drop(held);
    let second = over(&server, id);
    assert_eq!(second["state"], "live", "{second}");
    is_shared("db", "late");
    // A step that edits in place replaces the link too.
    is_shared("conf", "now");

    save("db", "latest");
    server.ok(&["rollback", "site"]);
    assert_eq!(version(&server), "1");
    is_shared("db", "latest");

    // What cannot be carried over is refused by its name, and nothing is switched.
    server.ok(&["exec", "site", "--", "sh", "-c", "rm db && mkdir db && echo x > db/x"]);
    let said = server.fails(1, &["rollback", "site", "--to", second["release"].as_str().unwrap()]);
    assert!(said.contains("replaced the shared \"db\" by a folder"), "{said}");
    assert_eq!((version(&server), current(&server, "db/x")), ("1".into(), "x".into()));
}

/// The release before ends first, and saves once more as it does.
#[test]
fn what_the_app_saves_as_it_ends_is_in_the_next_release() {
    let app = "trap 'echo \"saved by $(cat VERSION)\" > db.new; mv db.new db; kill $!; exit 0' TERM\n\
        cat db > seen || :\ntail -f \"$DIR/held\" & wait\n";
    let (mut server, repo) = world("", "shared: [\"db\"]");
    repo.commit(&[("app.sh", app)], "saves as it ends");
    start_live(&mut server);
    // Ready by time alone, it may still be on its way; once it reads it saves as it ends.
    let seen = home(&server, "site").join("current/seen");
    let has_read = |text: &str| {
        let is_so = |_: &Server| fs::read_to_string(&seen).is_ok_and(|seen| seen.trim() == text);
        server.until(&format!("it has read {text:?}"), |s| is_so(s).then_some(()));
    };
    has_read("");
    repo.commit(&[("VERSION", "2")], "second");
    let second = server.deliver("site", &repo);
    assert_eq!(second["state"], "live", "{second}");
    let shared = home(&server, "site").join("shared/db");
    has_read("saved by 1");
    assert_eq!(current(&server, "db"), "saved by 1");
    assert_eq!(fs::read_link(home(&server, "site").join("current/db")).unwrap(), shared);
    server.ok(&["rollback", "site"]);
    assert_eq!(version(&server), "1");
    has_read("saved by 2");
    assert_eq!(fs::read_link(home(&server, "site").join("current/db")).unwrap(), shared);
}

#[test]
fn pushes_during_a_deploy_become_one() {
    let (server, repo) = live_world("", "build: [\"if [ -e slow ]; then cat $DIR/gate; fi\"]");
    let gate = Gate::new(&server, "gate");
    repo.commit(&[("slow", "")], "slow");
    let slow = push(&server, &repo);
    let held = gate.reached();
    repo.git(&["rm", "-q", "slow"]);
    let mut ids = Vec::new();
    for n in 2..=6 {
        repo.commit(&[("VERSION", &n.to_string())], "quick");
        ids.push(push(&server, &repo));
    }
    drop(held);
    let last = server.deploy_end(*ids.last().unwrap());
    assert_eq!(last["state"], "live");
    assert_eq!(server.deploy_end(slow)["state"], "live");
    for (id, next) in ids.iter().zip(&ids[1..]) {
        let middle = server.deploy_end(*id);
        assert_eq!((&middle["state"], &middle["superseded_by"]), (&"superseded".into(), &(*next).into()), "{middle}");
    }
    assert_live(&server, &last);
    assert_eq!(version(&server), "6");
}

#[test]
fn what_a_step_leaves_behind_is_ended_and_named() {
    let step = "if [ -e leave ]; then cat $DIR/left & cat $DIR/gate; fi";
    let (server, repo) = live_world("", &format!("build: [\"{step}\"]"));
    let (gate, left) = (Gate::new(&server, "gate"), Gate::new(&server, "left"));
    repo.commit(&[("leave", "")], "leaves a process");
    let id = push(&server, &repo);
    let held = gate.reached();
    // Never let go: it would run for ever.
    let _waits = left.reached();
    let marker = server.path().join("left").display().to_string();
    let pids = processes(&marker);
    assert_eq!(pids.len(), 1, "{pids:?}");
    drop(held);
    let deploy = server.deploy_end(id);
    assert_eq!(deploy["state"], "live", "the step ended with its main process: {deploy}");
    assert_eq!(processes(&marker), [] as [i32; 0]);
    let named = format!("left running and ended: cat ({})", pids[0]);
    let log = server.path().join(format!("state/logs/deploys/{id}.log"));
    server.until("the deploy's log names it", |_| {
        fs::read_to_string(&log).is_ok_and(|text| text.contains(&named)).then_some(())
    });
    server.until("an event names it", |s| {
        let is_it = |event: &serde_json::Value| event["kind"] == "deploy" && event["cause"] == named.as_str();
        s.events().iter().any(is_it).then_some(())
    });
}

#[test]
fn who_waits_for_an_app_hears_that_its_first_deploy_has_brought_nothing() {
    let after = r#", "after": (command: ["sleep", "1000"], ready: Immediate, requires: ["site"]),
        "then": (command: ["sleep", "1000"], ready: Immediate, after: ["site"],
            deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], settle: "20ms"))"#;
    let (server, repo) = world_with(&(site("", "check: [\"cat $DIR/gate\", \"test -e good\"]") + after));
    let gate = Gate::new(&server, "gate");
    let server = server.started();
    let held = gate.reached();
    server.until("what its first deploy waits for", |s| {
        (s.instance("then")["reason"] == "first deploy, which waits for site").then_some(())
    });
    let mut asks = server.client(&["deploy", "then"]).stdout(Stdio::piped()).spawn().unwrap();
    let (mut said, mut line) = (BufReader::new(asks.stdout.take().unwrap()), String::new());
    said.read_line(&mut line).unwrap();
    assert!(line.ends_with(" of then: queued (waits for site)\n"), "{line}");
    let waits = server.client(&["start", "after"]).stderr(Stdio::piped()).spawn().unwrap();
    server.until("it is asked for", |s| (!s.json(&["audit"]).as_array().unwrap().is_empty()).then_some(()));
    gate.remove();
    drop(held);
    let told = waits.wait_with_output().unwrap();
    assert_eq!(told.status.code(), Some(1));
    let told = String::from_utf8(told.stderr).unwrap();
    assert!(told.contains("after waits: site has no release, as deploy 1 failed: "), "{told}");
    for wish in ["start", "restart"] {
        let told = server.fails(1, &[wish, "site"]);
        assert!(told.contains("site waits: site has no release, as deploy 1 failed"), "{told}");
    }
    repo.commit(&[("good", "")], "good");
    fs::write(server.path().join("gate"), "").unwrap();
    assert_live(&server, &server.deliver("site", &repo));
    server.ok(&["start", "after"]);
    assert!(asks.wait().unwrap().success());
    server.wait_state("then", "ready");
}

#[test]
fn a_stopped_app_gets_its_release_and_a_failed_one_is_started() {
    let give_up = "restart: (first: \"1ms\", max: \"1ms\", give_up: (restarts: 1, within: \"1m\")),";
    let (server, repo) = live_world(give_up, "");
    server.ok(&["stop", "site"]);
    repo.commit(&[("VERSION", "2")], "second");
    let deploy = server.deliver("site", &repo);
    assert_eq!((&deploy["state"], &deploy["reason"]), (&"live".into(), &"not running".into()), "{deploy}");
    assert_eq!((copies(&server), server.app("site")["state"].as_str()), (0, Some("stopped")));
    server.ok(&["start", "site"]);
    assert_live(&server, &deploy);

    let fails = "[ -e $DIR/broken ] && exit 3\nexec tail -f $DIR/held\n";
    repo.commit(&[("app.sh", fails)], "fails where something else is broken");
    assert_live(&server, &server.deliver("site", &repo));
    fs::write(server.path().join("broken"), "").unwrap();
    let mut pid = Some(server.main_pid("site"));
    server.until("the app has failed", |s| {
        if let Some(pid) = pid.take() {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        (s.app("site")["state"] == "failed").then_some(())
    });
    repo.commit(&[("app.sh", APP), ("VERSION", "4")], "the cure");
    let cure = server.deliver("site", &repo);
    assert_eq!(cure["state"], "live", "{cure}");
    server.wait_state("site", "ready");
    assert_live(&server, &cure);
}

#[test]
fn by_hand_it_goes_back_and_forth() {
    let (server, repo) = live_world("", "check: [\"! grep -q broken VERSION\"]");
    let first = repo.head();
    for n in ["2", "3"] {
        repo.commit(&[("VERSION", n)], n);
        server.deliver("site", &repo);
    }
    let old = server.deploy_end(1)["release"].as_str().unwrap().to_owned();
    server.ok(&["rollback", "site"]);
    assert_eq!(version(&server), "2");
    let back = deploys(&server)[0].clone();
    assert_eq!((&back["state"], &back["by"]["kind"]), (&"live".into(), &"local".into()), "{back}");
    assert_live(&server, &back);
    server.ok(&["rollback", "site", "--to", &old]);
    assert_eq!((version(&server), runs_in(&server)), ("1".into(), old));
    server.fails(4, &["rollback", "site", "--to", "99-1234567"]);
    server.fails(1, &["rollback", "site"]);
    let audit = server.json(&["audit"]);
    let outcomes: Vec<_> =
        audit.as_array().unwrap().iter().filter(|row| row["action"] == "rollback").map(|row| &row["outcome"]).collect();
    assert_eq!(outcomes, ["done", "done", "refused", "refused"], "{audit}");

    let told = server.ok(&["deploy", "site"]);
    for word in ["fetching", "check", "switch", "live"] {
        assert!(told.contains(word), "no {word} in {told}");
    }
    assert_eq!(version(&server), "3");
    server.ok(&["deploy", "site", "--rev", &first]);
    assert_eq!(version(&server), "1", "an older commit, since a person names it");
    let said = server.fails(1, &["deploy", "site", "--rev", "no-such"]);
    assert!(said.contains("no-such"), "{said}");

    repo.commit(&[("VERSION", "broken")], "broken");
    let said = server.fails(1, &["deploy", "site"]);
    assert!(said.contains("check") && said.contains("failed"), "{said}");
    assert_eq!(version(&server), "1");

    repo.commit(&[("VERSION", "5")], "good again");
    let next = deploys(&server)[0]["id"].as_i64().unwrap() + 1;
    let said = server.ok(&["deploy", "site", "--detach"]);
    assert!(said.contains(&next.to_string()), "{said}");
    assert_eq!(server.deploy_end(next)["state"], "live");
    assert_eq!(version(&server), "5");
}

#[test]
fn a_reload_without_the_app_cancels_its_deploy() {
    let (server, repo) = live_world("", "build: [\"if [ -e slow ]; then cat $DIR/gate; fi\"]");
    let gate = Gate::new(&server, "gate");
    repo.commit(&[("slow", "")], "slow");
    let id = push(&server, &repo);
    let held = gate.reached();
    let config = fs::read_to_string(server.config()).unwrap();
    server.write_config("(state_dir: \"@DIR@/state\", http: [(bind: \"127.0.0.1:0\", serve: [Hooks, Api])], apps: {})");
    server.ok(&["reload"]);
    let deploy = server.deploy_end(id);
    assert_eq!((&deploy["state"], &deploy["step"]), (&"cancelled".into(), &"build".into()), "{deploy}");
    drop(held);
    server.until("nothing of the app is left", |s| {
        (copies(s) == 0 && processes(&s.path().join("gate").display().to_string()).is_empty()).then_some(())
    });
    assert!(home(&server, "site").join("live").exists(), "its files stay");

    server.write_config(&config);
    server.ok(&["reload"]);
    let again = server.until("the tip is caught up with", |s| {
        deploys(s).into_iter().find(|deploy| deploy["by"]["kind"] == "catch_up")
    });
    drop(gate.reached());
    let again = server.deploy_end(again["id"].as_i64().unwrap());
    assert_eq!(again["state"], "live", "{again}");
    server.wait_state("site", "ready");
    assert_live(&server, &again);
}

/// The users that a package makes, in a view of the machine of its own.
#[test]
fn users_of_everhooks_own_run_what_is_named_after_them() {
    if !nix::unistd::geteuid().is_root() {
        return println!("not root: everything is run by whoever started everhook");
    }
    let (mut server, repo) = live_world("", "");
    let dir = server.path().to_owned();
    let owner = |name: &str| fs::metadata(dir.join("state/logs/site").join(name)).unwrap().uid();
    server.until("it is logged", |s| s.ok(&["logs", "site"]).contains("version 1").then_some(()));
    assert_eq!(owner("site.1.out.log"), 60901);
    assert!(server.stop().success());
    for name in ["passwd", "group"] {
        fs::copy(Path::new("/etc").join(name), dir.join(name)).unwrap();
    }
    let (mut passwd, mut group) = (String::new(), String::new());
    for (name, id) in [("everhook", 61_301), ("everhook-listener", 61_302), ("everhook-logger", 61_303)] {
        passwd += &format!("{name}:x:{id}:{}::/nonexistent:/usr/sbin/nologin\n", id + 100);
        group += &format!("{name}:x:{}:\n", id + 100);
    }
    for (name, more) in [("passwd", passwd), ("group", group)] {
        let file = dir.join(name);
        fs::write(&file, fs::read_to_string(&file).unwrap() + &more).unwrap();
    }
    let bind = format!("for f in passwd group; do mount --bind {}/$f /etc/$f; done; exec \"$@\"", dir.display());
    // Whoever starts asks the remote what was missed, and finds this one.
    repo.commit(&[("VERSION", "2")], "second");
    server.start_as(&["unshare", "--mount", "sh", "-c", &bind, "sh"]);
    let caught_up = server.until("the tip is caught up with", |s| {
        deploys(s).into_iter().find(|deploy| deploy["by"]["kind"] == "catch_up")
    });
    let second = server.deploy_end(caught_up["id"].as_i64().unwrap());
    assert_eq!(second["state"], "live", "{second}");
    server.wait_state("site", "ready");

    let ids = |pid: &Value| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        (field("Uid:"), field("Gid:"), field("Groups:"))
    };
    let all = |id: u32| [id; 4].map(|id| id.to_string()).join("\t");
    let supervisor = &server.status()["supervisor"];
    for (pid, id) in [(&supervisor["listeners"][0]["pid"], 61_302), (&supervisor["logger"]["pid"], 61_303)] {
        assert_eq!(ids(pid), (all(id), all(id + 100), String::new()));
    }
    // What the logger of before wrote is this one's too, which goes on with it.
    server.until("it is logged on", |s| s.ok(&["logs", "site"]).contains("version 2").then_some(()));
    assert!(server.ok(&["logs", "site"]).contains("version 1"));
    let logs = fs::read_dir(dir.join("state/logs/site")).unwrap().map(|entry| entry.unwrap());
    assert!(logs.into_iter().all(|entry| entry.metadata().unwrap().uid() == 61_303));
    // Whatever git has fetched is who fetched it's, who may not add to what another has.
    let uid = |path: &Path| fs::metadata(path).unwrap().uid();
    let mut fetchers = Vec::new();
    for mirror in fs::read_dir(dir.join("state/mirrors")).unwrap().map(|entry| entry.unwrap().path()) {
        let (fetcher, fetched) = (uid(&mirror), files_below(&mirror));
        assert!(fetched.len() > 3 && fetched.iter().all(|path| uid(path) == fetcher), "{fetched:?}");
        fetchers.push(fetcher);
    }
    fetchers.sort_unstable();
    assert_eq!(fetchers, [NOBODYS, 61_301]);
    assert!(server.stop().success());
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
