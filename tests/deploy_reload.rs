//! A release reaches a process that runs: it is told by `reload`, reads through `current`, and goes back
//! when it does not take it.
#![allow(clippy::unwrap_used)]

#[path = "support/deploying.rs"]
mod deploying;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
};

use deploying::{current, home, releases, runs_in, site};
use serde_json::Value;
use server::{Repo, Server};

const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/apps/reloads.py");

fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The client of `reloads.py`; nothing runs yet.
fn client(fields: &str, version: &str) -> (Server, Repo) {
    let server = Server::with_apps(&format!(
        r#""site": (command: ["/usr/bin/python3", "@DIR@/app.py"], {fields}
             env: {{"CURRENT": "@DIR@/state/apps/site/current", "TAKEN": "@DIR@/taken"}}, stop: (timeout: "5s"),
             deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/secret"), settle: "20ms",
               layout: Releases(keep: 1)))"#
    ));
    fs::copy(CLIENT, server.path().join("app.py")).unwrap();
    fs::write(server.path().join("taken"), "").unwrap();
    open_to_all(&server.path().join("taken"), 0o666);
    let repo = Repo::new(server.path().join("repo"), &[("VERSION", version)]);
    (server, repo)
}

fn live(mut server: Server) -> Server {
    deploying::start_live(&mut server);
    server.until("it hears signals", |s| s.ok(&["logs", "site"]).contains("waits").then_some(()));
    server
}

fn deliver(server: &Server, repo: &Repo, version: &str) -> Value {
    repo.commit(&[("VERSION", version)], version);
    server.deliver("site", repo)
}

fn taken(server: &Server) -> Vec<String> {
    let text = fs::read_to_string(server.path().join("taken")).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn who_notifies_is_waited_for_and_goes_back_when_it_says_nothing() {
    let (server, repo) = client("ready: Notify, reload: Signal(\"SIGHUP\"),", "1 well");
    let server = live(server);
    let (pid, first) = (server.main_pid("site"), runs_in(&server));

    let second = deliver(&server, &repo, "2 well");
    assert_eq!((&second["state"], server.main_pid("site")), (&"live".into(), pid), "{second}");
    assert_eq!((taken(&server), current(&server, "VERSION")), (vec!["2".to_owned()], "2 well".to_owned()));
    let instance = server.instance("site");
    assert_eq!((&instance["release"], &instance["state"]), (&second["release"], &"ready".into()));
    assert_eq!(runs_in(&server), first, "its folder is the one that it was started in");
    assert_eq!(releases(&server, "site").len(), 2, "which stays as long as it runs");

    server.edit_config("ready: Notify", "ready: Notify(within: \"3s\")");
    server.ok(&["reload"]);
    for (version, missing) in [("3 says_nothing", "RELOADING=1"), ("4 says_old", "RELOADING=1")] {
        let deploy = deliver(&server, &repo, version);
        let reason = deploy["reason"].as_str().unwrap();
        assert_eq!(deploy["state"], "rolled_back", "{deploy}");
        assert!(reason.contains(&format!("did not say {missing} within 3s")), "{reason}");
        assert_eq!(server.app("site")["release"], second["release"]);
        server.until("the link leads back", |s| (current(s, "VERSION") == "2 well").then_some(()));
        // On a busy machine it may have taken too long again, and be started anew.
        server.wait_state("site", "ready");
    }
    server.edit_config("ready: Notify(within: \"3s\")", "ready: Notify");
    server.ok(&["reload"]);

    server.ok(&["restart", "site"]);
    assert_ne!(server.main_pid("site"), pid);
    assert_eq!(runs_in(&server), second["release"]);
    server.until("the first one goes", |s| (!releases(s, "site").contains(&first)).then_some(()));
}

#[test]
fn who_ends_instead_is_started_in_the_release_before() {
    let (server, repo) = client("ready: Immediate, reload: Signal(\"SIGHUP\"),", "1 well");
    let server = live(server);
    let (pid, first) = (server.main_pid("site"), server.deploy_end(1));
    server.edit_config("settle: \"20ms\"", "settle: \"5m\"");
    server.ok(&["reload"]);
    let deploy = deliver(&server, &repo, "2 exits");
    assert_eq!((&deploy["state"], &deploy["reason"]), (&"rolled_back".into(), &"exited with 3".into()), "{deploy}");
    server.wait_new_pid("site", pid);
    server.wait_state("site", "ready");
    server.until("the link leads back", |s| (current(s, "VERSION") == "1 well").then_some(()));
    assert_eq!(
        (runs_in(&server).into(), &server.app("site")["release"]),
        (first["release"].clone(), &first["release"])
    );
}

#[test]
fn a_command_tells_it_as_the_app() {
    let exec = "ready: Immediate, instances: 2, reload: Exec([\"/bin/sh\", \"@DIR@/tell.sh\"]),";
    let (server, repo) = client(exec, "1 well");
    // It ends once the app has taken the release: after the end of one that fails the link leads back, and who
    // only then looks takes that one.
    let tell = "echo \"$EVERHOOK_INSTANCE $(cat VERSION) $EVERHOOK_APP\" >&2; before=$(wc -l < $TAKEN)\n\
        kill -HUP $MAINPID; until [ $(wc -l < $TAKEN) -gt $before ]; do sleep 0.01; done; test -e good\n";
    fs::write(server.path().join("tell.sh"), tell).unwrap();
    let server = live(server);
    let pids = |s: &Server| s.app("site")["instances"].as_array().unwrap().iter().map(|i| i["pid"].clone()).collect();
    let before: Vec<Value> = pids(&server);
    repo.commit(&[("good", "")], "good");
    let second = deliver(&server, &repo, "2 well");
    assert_eq!(second["state"], "live", "{second}");
    server.until("both have taken it", |s| (taken(s) == ["2", "2"]).then_some(()));
    let told = server.ok(&["logs", "--stderr", "site.2"]);
    assert!(told.contains("site.2.reload-") && told.contains(" 2 well site"), "{told}");

    fs::remove_file(repo.path.join("good")).unwrap();
    let third = deliver(&server, &repo, "3 well");
    assert_eq!(third["state"], "rolled_back", "{third}");
    assert!(third["reason"].as_str().unwrap().contains("its reload command exited with 1"), "{third}");
    server.until("the first of them has gone back", |s| (taken(s) == ["2", "2", "3", "2"]).then_some(()));
    assert_eq!(pids(&server), before, "nobody was started anew");
    assert_eq!(
        (current(&server, "VERSION"), server.app("site")["release"].clone()),
        ("2 well".into(), second["release"].clone())
    );
}

/// What a server on a unix socket answers.
fn ask(socket: &Path) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.split("\r\n\r\n").nth(1)?.to_owned())
}

/// `nginx.conf` of a release; everything it writes is in a folder beside.
fn nginx(server: &Server, answer: &str) -> String {
    let work = server.path().join("work").display().to_string();
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {work}/{kind};\n"))
        .concat();
    format!(
        "daemon off;\nworker_processes 1;\npid {work}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n    access_log off;\n\
         {temp}    server {{\n        listen unix:{work}/web.sock;\n        location / {{ {answer} }}\n    }}\n}}\n"
    )
}

#[test]
fn nginx_takes_its_config_from_a_release() {
    let server = Server::with_apps(
        r#""site": (command: ["/usr/sbin/nginx", "-e", "stderr", "-p", "@DIR@/work", "-c", "@DIR@/state/apps/site/current/nginx.conf"],
             reload: Signal("SIGHUP"), stop: (signal: "SIGQUIT"), ready: Http(url: "http://unix:@DIR@/work/web.sock:/"),
             live: (probe: Http(url: "http://unix:@DIR@/work/web.sock:/"), every: "100ms"),
             deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/secret"), settle: "20ms"))"#,
    );
    let (work, socket) = (server.path().join("work"), server.path().join("work/web.sock"));
    fs::create_dir(&work).unwrap();
    open_to_all(&work, 0o777);
    let repo = Repo::new(server.path().join("repo"), &[("nginx.conf", &nginx(&server, "return 200 one;"))]);
    let mut server = server;
    deploying::start_live(&mut server);
    let pid = server.main_pid("site");
    assert_eq!(ask(&socket).as_deref(), Some("one"));

    repo.commit(&[("nginx.conf", &nginx(&server, "return 200 two;"))], "two");
    let second = server.deliver("site", &repo);
    assert_eq!(second["state"], "live", "{second}");
    server.until("it answers with the new one", |_| (ask(&socket)? == "two").then_some(()));
    assert_eq!(server.main_pid("site"), pid);

    // One that answers 500 is found out by the probe, as long as it settles.
    server.edit_config("settle: \"20ms\"", "settle: \"5m\"");
    server.ok(&["reload"]);
    repo.commit(&[("nginx.conf", &nginx(&server, "return 500;"))], "broken");
    let third = server.deliver("site", &repo);
    assert_eq!(third["state"], "rolled_back", "{third}");
    assert!(third["reason"].as_str().unwrap().contains("live probe failed"), "{third}");
    server.until("it answers as before", |_| (ask(&socket)? == "two").then_some(()));
    assert_eq!((server.main_pid("site"), server.instance("site")["release"].clone()), (pid, second["release"].clone()));
    assert!(fs::read_to_string(home(&server, "site").join("current/nginx.conf")).unwrap().contains("two"));

    // nginx keeps the old workers for 100 ms beside the new ones, and either may be asked.
    server.until("the broken one's worker is gone", |_| {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        (children.split_whitespace().count() == 1).then_some(())
    });
    server.edit_config("settle: \"5m\"", "settle: \"20ms\"");
    server.ok(&["reload"]);
    server.ok(&["rollback", "site"]);
    server.until("the first one is back", |_| (ask(&socket)? == "one").then_some(()));
    assert_eq!(server.main_pid("site"), pid);
}

#[test]
fn what_is_left_of_apps_that_are_gone_is_pruned_once_it_was_shown() {
    let build = "build: [\"ln -s $DIR/outside out; mkdir -m 0 closed; head -c 300000 /dev/zero > big\"]";
    let deaf = "trap '' TERM; echo up; while :; do read -r _ < \"$DIR/deaf\"; done\n";
    let twin = site("", "").replace("\"site\"", "\"twin\"");
    let apps = format!("{}, {twin}", site("stop: (timeout: \"10m\"),", build));
    let (mut server, repo) = deploying::world_with(&apps);
    let _deaf = deploying::Gate::new(&server, "deaf");
    fs::create_dir(server.path().join("outside")).unwrap();
    fs::write(server.path().join("outside/kept"), "").unwrap();
    deploying::start_live(&mut server);
    server.wait_state("twin", "ready");
    repo.commit(&[("app.sh", deaf)], "hears nothing");
    assert_eq!(server.deliver("site", &repo)["state"], "live");
    server.until("it hears nothing", |s| s.ok(&["logs", "site"]).contains("up").then_some(()));
    assert!(server.ok(&["prune", "-y"]).contains("nothing is left"));

    // As long as it runs it is somebody's.
    let pid = server.main_pid("site");
    server.write_config(&format!(
        "(state_dir: \"@DIR@/state\", http: [(bind: \"127.0.0.1:0\", serve: [Hooks, Api])], apps: {{ {twin} }})"
    ));
    server.ok(&["reload", "--no-wait"]);
    assert!(server.ok(&["prune", "-y"]).contains("nothing is left"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let (apps, logs) = (home(&server, "site"), server.path().join("state/logs/site"));
    let said = server.until("it is nobody's", |s| {
        let output = s.cli(&["prune"]);
        (output.status.code() == Some(2)).then(|| server::text(&output))
    });
    for words in [&apps.display().to_string(), &logs.display().to_string(), "K  ", "nothing was removed", "-y"] {
        assert!(said.contains(words), "no {words} in {said}");
    }
    assert!(!said.contains("twin") && !said.contains("mirrors"), "{said}");
    assert!(apps.join("live").exists() && logs.exists());
    if deploying::is_root() {
        let output = server.cli_as(1234, &["prune", "-y"]);
        assert_eq!(output.status.code(), Some(5), "{}", server::text(&output));
    }

    let said = server.ok(&["prune", "-y"]);
    assert!(said.contains("removed 2 folders"), "{said}");
    assert!(!apps.exists() && !logs.exists());
    assert!(server.path().join("outside/kept").exists());
    assert!(fs::read_dir(server.path().join("state/mirrors")).unwrap().count() > 0, "the twin's");
    assert_eq!(server.app("twin")["state"], "ready");
    let audit = server.json(&["audit"]);
    let row = audit.as_array().unwrap().iter().find(|row| row["action"] == "prune" && row["outcome"] == "done");
    let row = row.filter(|row| row["reason"].as_str().unwrap().contains("apps/site"));
    assert!(row.is_some(), "{audit}");

    server.write_config("(state_dir: \"@DIR@/state\", http: [(bind: \"127.0.0.1:0\", serve: [Hooks, Api])], apps: {})");
    server.ok(&["reload"]);
    let mirrors = server.path().join("state/mirrors");
    server.until("nothing is left", |s| {
        s.ok(&["prune", "-y"]);
        (!home(s, "twin").exists() && fs::read_dir(&mirrors).unwrap().count() == 0).then_some(())
    });
    assert!(server.path().join("state/logs/deploys").is_dir());
}
