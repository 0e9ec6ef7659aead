//! An app goes on under another name: what runs is not touched, and what it had is found under the new name.
#![allow(clippy::unwrap_used)]

#[path = "support/deploying.rs"]
mod deploying;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::fs;

use deploying::{copies, runs_once};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use server::{Server, processes};

/// Tells its name and its numbers, each time that it hears USR1, and what it was started as.
const APP: &str = "trap 'n=$((n + 1)); echo \"line $n\"' USR1\necho \"I am $EVERHOOK_APP\"\n\
    (setsid tail -f \"$DIR/held\" & )\nwhile :; do sleep 1000 & wait $!; done\n";

fn world(name: &str) -> Server {
    let server = Server::with_apps(&format!(
        r#""{name}": (command: ["/bin/sh", "@DIR@/app.sh"], env: {{"DIR": "@DIR@"}}, ready: After("20ms"), stop: (timeout: "300ms"))"#
    ));
    fs::write(server.path().join("held"), "").unwrap();
    fs::write(server.path().join("app.sh"), APP).unwrap();
    server
}

/// Has it write another line, and waits for it.
fn speak(server: &Server, app: &str, line: &str) {
    server.ok(&["signal", app, "USR1"]);
    server.until(line, |s| s.ok(&["logs", app]).contains(line).then_some(()));
}

/// Waits until it has said what it was started as; it hears a signal from then on.
fn begun(server: &Server) {
    server.until("it has begun", |s| s.ok(&["logs", "old"]).contains("I am old").then_some(()));
}

fn env(pid: i32, name: &str) -> String {
    let env = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let env = String::from_utf8(env).unwrap();
    env.split('\0').find_map(|v| v.strip_prefix(&format!("{name}="))).unwrap().to_owned()
}

fn renamed(server: &Server, from: &str, to: &str) {
    server.edit_config(&format!("\"{from}\": ("), &format!("\"{to}\": (was: \"{from}\", "));
}

#[test]
fn a_reload_renames_and_touches_no_process() {
    let mut server = world("old").started();
    server.wait_state("old", "ready");
    begun(&server);
    speak(&server, "old", "line 1");
    let pid = server.main_pid("old");
    renamed(&server, "old", "new");
    assert!(server.ok(&["check", "--diff"]).contains("new: was old"));
    server.ok(&["reload"]);
    assert_eq!((server.main_pid("new"), env(pid, "EVERHOOK_APP")), (pid, "old".into()));
    server.fails(4, &["restart", "old"]);
    speak(&server, "new", "line 2");
    assert!(server.ok(&["logs", "new"]).contains("I am old\nline 1\nline 2"), "{}", server.ok(&["logs", "new"]));
    let events = server.events();
    assert!(events.iter().all(|event| event["app"] != "old" && event["instance"] != "old.1"), "{events:?}");
    assert!(events.iter().any(|event| event["instance"] == "new.1" && event["to"] == "starting"));
    assert_eq!(fs::read_dir(server.path().join("state/logs/old")).unwrap().count(), 0);

    // Another one may have the name once nobody bears it.
    server.edit_config("apps: {", "apps: { \"old\": (command: [\"/bin/sleep\", \"1000\"]), ");
    server.edit_config("was: \"old\", ", "");
    assert!(server.fails(1, &["reload"]).contains("processes of new still bear the name old: restart new first"));
    server.ok(&["restart", "new"]);
    let next = server.main_pid("new");
    assert_eq!(env(next, "EVERHOOK_APP"), "new");
    runs_once(&server);
    server.ok(&["reload"]);
    server.wait_state("old", "ready");
    assert_eq!(server.main_pid("new"), next);
    server.until("both names have their output", |s| s.ok(&["logs", "new"]).contains("I am new").then_some(()));
    assert!(!server.ok(&["logs", "old"]).contains("I am"));
    server.ok(&["stop", "new"]);
    assert_eq!(copies(&server), 0);
    assert!(server.stop().success());
}

#[test]
fn who_follows_the_output_follows_it_under_its_new_name() {
    let mut server = world("old").started();
    begun(&server);
    speak(&server, "old", "line 1");
    let path = server.path().join("followed");
    let file = fs::File::create(&path).unwrap();
    let mut client = server.client(&["logs", "-f", "old"]).stdout(file).spawn().unwrap();
    let told = |s: &Server, what: &str| {
        s.until(what, |_| fs::read_to_string(&path).unwrap().contains(what).then_some(()));
    };
    told(&server, "line 1");
    renamed(&server, "old", "new");
    server.ok(&["reload"]);
    speak(&server, "new", "line 2");
    told(&server, "line 2");
    // The next logger is asked by the new name for what comes next.
    let logger = server.status()["supervisor"]["logger"]["pid"].as_i64().unwrap();
    kill(Pid::from_raw(i32::try_from(logger).unwrap()), Signal::SIGKILL).unwrap();
    speak(&server, "new", "line 3");
    told(&server, "line 3");
    assert_eq!(client.try_wait().unwrap(), None, "it follows on");
    client.kill().unwrap();
    client.wait().unwrap();
    let lines = fs::read_to_string(&path).unwrap();
    let spoken: Vec<_> = lines.lines().filter(|line| line.starts_with("line")).collect();
    assert_eq!(spoken, ["line 1", "line 2", "line 3"]);
    assert!(server.stop().success());
}

#[test]
fn who_bears_the_old_name_is_ended_whole_after_a_rename() {
    for killed in [false, true] {
        let mut server = world("old").started();
        server.wait_state("old", "ready");
        runs_once(&server);
        let pid = server.main_pid("old");
        renamed(&server, "old", "new");
        if killed {
            server.ok(&["reload"]);
            server.kill();
            server.start();
            server.wait_state("new", "ready");
            assert_eq!(server.main_pid("new"), pid);
            speak(&server, "new", "line 1");
            assert!(server.ok(&["logs", "new"]).contains("I am old"));
            // By the name that it bears.
            server.ok(&["restart", "new"]);
            assert_ne!(server.main_pid("new"), pid);
            runs_once(&server);
        } else {
            server.ok(&["reload"]);
            server.ok(&["stop", "new"]);
            server.until("nobody is left", |s| (copies(s) == 0).then_some(()));
        }
    }
}

#[test]
fn a_start_with_another_name_takes_all_over() {
    for killed in [false, true] {
        let mut server = world("old").started();
        server.wait_state("old", "ready");
        begun(&server);
        let pid = server.main_pid("old");
        if killed {
            server.kill();
        } else {
            server.ok(&["stop", "old"]);
            server.stop();
        }
        renamed(&server, "old", "new");
        server.start();
        assert!(server.ok(&["logs", "new"]).contains("I am old"));
        let events = server.events();
        assert!(events.iter().all(|event| event["app"] != "old"), "{events:?}");
        if killed {
            server.wait_state("new", "ready");
            assert_eq!(server.main_pid("new"), pid);
            speak(&server, "new", "line 1");
            runs_once(&server);
        } else {
            let app = server.wait_state("new", "stopped");
            assert!(app["instances"][0]["reason"].as_str().unwrap().starts_with("stopped by"), "{app}");
        }
        // Again with the same config: there is nothing to be done.
        server.stop();
        server.start();
        assert!(server.ok(&["logs", "new"]).contains("I am old"));
    }
}

/// As a kill leaves it that comes in the middle: the folder has its new name, and neither the link nor the outputs are
/// there.
fn half_renamed(server: &Server, from: &str, to: &str) {
    let apps = server.path().join("state/apps");
    fs::write(apps.join(from).join("renaming"), format!("{from} {to}\n")).unwrap();
    fs::rename(apps.join(from), apps.join(to)).unwrap();
}

#[test]
fn a_rename_that_was_cut_off_is_done_to_its_end() {
    let mut server = world("old").started();
    server.wait_state("old", "ready");
    begun(&server);
    let pid = server.main_pid("old");
    server.kill();
    half_renamed(&server, "old", "new");
    // Somebody was about to begin afresh, and had nothing yet.
    fs::create_dir(server.path().join("state/apps/old")).unwrap();
    renamed(&server, "old", "new");
    server.start();
    server.wait_state("new", "ready");
    assert_eq!(server.main_pid("new"), pid);
    speak(&server, "new", "line 1");
    assert!(server.ok(&["logs", "new"]).contains("I am old\nline 1"));
    let apps = server.path().join("state/apps");
    assert_eq!(fs::read_link(apps.join("old")).unwrap().to_str(), Some("new"));
    assert!(!apps.join("new/renaming").exists());

    assert!(server.stop().success());
}

#[test]
fn a_name_is_free_where_somebody_was_only_about_to_have_it() {
    for (there, free) in [("shared/", true), ("down", false)] {
        let mut server = world("old").started();
        server.wait_state("old", "ready");
        server.stop();
        let apps = server.path().join("state/apps");
        fs::create_dir_all(apps.join("new/shared")).unwrap();
        if !free {
            fs::write(apps.join("new").join(there), "").unwrap();
        }
        renamed(&server, "old", "new");
        server.start();
        assert_eq!(fs::symlink_metadata(apps.join("old")).unwrap().is_symlink(), free);
        let says = |s: &Server| s.log().contains("which is there already: move one of them away");
        if free {
            assert!(!says(&server), "{}", server.log());
        } else {
            server.until("it says why not", |s| says(s).then_some(()));
        }
    }
}

#[test]
fn a_rename_that_was_cut_off_and_is_not_wanted_any_more_is_taken_back() {
    let (mut server, repo) = deploying::live_world("", "shared: [\"data/\"]");
    let pid = server.main_pid("site");
    server.kill();
    half_renamed(&server, "site", "blog");
    server.start();
    let app = server.wait_state("site", "ready");
    assert_eq!((server.main_pid("site"), &server.json(&["history", "site"])[0]["release"]), (pid, &app["release"]));
    assert!(!server.path().join("state/apps/blog").exists());
    repo.commit(&[("VERSION", "2")], "second");
    assert_eq!(server.deliver("site", &repo)["state"], "live");
    runs_once(&server);
}

#[test]
fn releases_and_history_go_on() {
    let (server, repo) = deploying::live_world("", "shared: [\"data/\"]");
    runs_once(&server);
    let pid = server.main_pid("site");
    renamed(&server, "site", "blog");
    server.ok(&["reload"]);
    assert_eq!(server.main_pid("blog"), pid);
    let first = server.json(&["history", "blog"])[0].clone();
    assert_eq!(
        (&first["state"], &first["app"], &server.app("blog")["release"]),
        (&"live".into(), &"blog".into(), &first["release"])
    );
    assert!(processes(server.path().join("held").to_str().unwrap()).contains(&pid));
    let (status, answer) = server.push("site", "gone", &repo.push_body());
    assert_eq!(status, 401, "{answer}");

    repo.commit(&[("VERSION", "2")], "second");
    let second = server.deliver("blog", &repo);
    assert_eq!(second["state"], "live", "{second}");
    let version = |s: &Server| fs::read_to_string(format!("/proc/{}/cwd/VERSION", s.main_pid("blog"))).unwrap();
    assert_eq!(version(&server), "2");
    server.ok(&["rollback", "blog"]);
    assert_eq!(version(&server), "1");
    assert!(fs::metadata(server.path().join("state/apps/blog/current/data")).unwrap().is_dir());
    runs_once(&server);
}

#[test]
fn what_it_says_is_heard_under_its_new_name_and_a_busy_one_keeps_its_own() {
    let server = Server::with_apps(
        r#""old": (command: ["/bin/sh", "-c", "while read line; do systemd-notify \"$line\"; done < @DIR@/say"], ready: Notify, stop: (timeout: "300ms"))"#,
    );
    let gate = deploying::Gate::new(&server, "say");
    let server = server.started();
    let mut says = gate.reached();
    renamed(&server, "old", "new");
    assert!(server.fails(1, &["reload"]).contains("old cannot become new while it is being started"));
    let say =
        |says: &mut fs::File, what: &str| std::io::Write::write_all(says, format!("{what}\n").as_bytes()).unwrap();
    say(&mut says, "READY=1");
    server.wait_state("old", "ready");
    server.ok(&["reload"]);
    say(&mut says, "STATUS=under another name");
    server.until("its status is told", |s| (s.instance("new")["status"] == "under another name").then_some(()));
}

#[test]
fn more_copies_and_another_way_to_replace_them_come_with_the_new_name() {
    let server = Server::with_apps(
        r#""old": (command: "echo $EVERHOOK_INSTANCE; exec sleep 1000", ready: Immediate, instances: 1, replace: StopFirst)"#,
    )
    .started();
    server.wait_state("old", "ready");
    let pid = server.main_pid("old");
    renamed(&server, "old", "new");
    server.edit_config("instances: 1, replace: StopFirst", "instances: 3, replace: StartFirst");
    server.ok(&["reload"]);
    let ready = |s: &Server, count: usize| {
        let app = s.app("new");
        (app["state"] == "ready" && app["instances"].as_array().unwrap().len() == count).then_some(())
    };
    server.until("three run", |s| ready(s, 3));
    assert_eq!(server.main_pid("new"), pid);
    server.ok(&["restart", "new"]);
    server.until("those of before have left", |s| ready(s, 3));
    assert_ne!(server.main_pid("new"), pid);
    server.until("each has its name", |s| {
        let said = s.ok(&["logs", "new"]);
        ["old.1", "new.1", "new.2", "new.3"].iter().all(|name| said.contains(&format!("| {name}"))).then_some(())
    });
}

#[test]
fn a_copy_that_goes_with_the_old_name_goes_whole() {
    let mut server = Server::with_apps(
        r#""old": (command: "setsid sh @DIR@/stays.sh @DIR@ & exec sleep 1000", ready: Immediate, instances: 2, stop: (timeout: "300ms"))"#,
    );
    let stays = "trap '' TERM\necho $$ > $1/left-$EVERHOOK_INSTANCE\nexec sleep 1000\n";
    fs::write(server.path().join("stays.sh"), stays).unwrap();
    // Without a cgroup, where that can be: there a tree is known by the name that it bears.
    let none = "awk '$3 ~ /^cgroup/ { print $2 }' /proc/mounts | xargs -r umount -l; exec \"$@\"";
    if nix::unistd::geteuid().is_root() {
        server.start_as(&["unshare", "-m", "sh", "-c", none, "sh"]);
    } else {
        server.start();
    }
    let left = server
        .until("it has a child", |s| fs::read_to_string(s.path().join("left-old.2")).ok()?.trim().parse::<i32>().ok());
    server.wait_state("old", "ready");
    renamed(&server, "old", "new");
    server.edit_config("instances: 2", "instances: 1");
    server.ok(&["reload"]);
    server.until("one is left", |s| (s.app("new")["instances"].as_array().unwrap().len() == 1).then_some(()));
    // Whoever it was handed to may be slow to look at its end.
    let stat = fs::read_to_string(format!("/proc/{left}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
}
