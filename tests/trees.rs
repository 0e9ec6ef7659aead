//! A tree of processes ends as a whole, gets its time for it, and nothing else is touched; also when
//! the supervisor was killed in between.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use server::{Server, processes};

/// Three processes that are told apart in the process table by their last argument: the main one, one
/// in a session of its own and one that was daemonised. Each writes a line when it is there, and one
/// when it hears TERM; `mind` is what the helpers do then.
fn scripts(server: &Server, mind: &str) {
    let dir = server.path().display();
    fs::write(
        server.path().join("helper.sh"),
        format!(
            "trap 'echo \"$1 heard\" >> {dir}/said; {mind}' TERM\necho \"$1 up\" >> {dir}/said\nwhile :; do sleep 0.05; done\n"
        ),
    )
    .unwrap();
    fs::write(
        server.path().join("main.sh"),
        format!(
            "setsid sh {dir}/helper.sh session {dir}-tree &\n(setsid sh -c 'sh {dir}/helper.sh daemon {dir}-tree &' &)\n\
             mine=$(grep -c 'main up' {dir}/said)\n\
             until [ \"$(grep -c 'session up' {dir}/said)\" -gt \"$mine\" ] && [ \"$(grep -c 'daemon up' {dir}/said)\" -gt \"$mine\" ]\n\
             do sleep 0.01; done\necho main up >> {dir}/said\nexec sleep 1000\n"
        ),
    )
    .unwrap();
    fs::write(server.path().join("said"), "").unwrap();
}

fn app(stop: &str) -> Server {
    Server::with_apps(&format!(
        "\"a\": (command: [\"sh\", \"@DIR@/main.sh\", \"@DIR@-tree\"], ready: Immediate, stop: (timeout: \"{stop}\"), restart: (first: \"1ms\"))"
    ))
}

fn said(server: &Server, what: &str) -> usize {
    let said = fs::read_to_string(server.path().join("said")).unwrap();
    said.lines().filter(|line| *line == what).count()
}

fn up(server: &Server, times: usize) {
    server.until("the tree is up", |s| (said(s, "main up") == times).then_some(()));
}

/// The helpers of the tree; their own `sleep`s are not among them.
fn helpers(server: &Server) -> Vec<i32> {
    processes(&format!("{}-tree", server.path().display()))
}

/// A process that belongs to nobody but has the look of the tree.
struct Bystander(Child);

impl Bystander {
    fn new() -> Self {
        let mut command = Command::new("sleep");
        command.arg("1000").env("EVERHOOK_APP", "a").env("EVERHOOK_INSTANCE", "a.1").env("EVERHOOK_BOOT", "another");
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn is_untouched(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_whole_tree_hears_the_signal_and_gets_its_time() {
    let mut server = app("20s");
    scripts(&server, "sleep 0.3; echo \"$1 bye\" >> \"${2%-tree}/said\"; exit 0");
    let mut outside = Bystander::new();
    server.start();
    up(&server, 1);
    assert!(helpers(&server).len() >= 2);
    server.ok(&["stop", "a"]);
    assert_eq!((said(&server, "session bye"), said(&server, "daemon bye")), (1, 1));
    assert!(helpers(&server).is_empty(), "stopped is said when nothing is left");
    assert_eq!(server.instance("a")["last_exit"]["signal"], 15);

    server.ok(&["start", "a"]);
    up(&server, 2);
    assert!(server.stop().success());
    assert_eq!((said(&server, "session bye"), said(&server, "daemon bye")), (2, 2), "at a shutdown too");
    assert!(helpers(&server).is_empty());
    assert!(outside.is_untouched(), "nothing outside the tree is signalled");
}

#[test]
fn who_ignores_the_signal_is_killed_when_the_time_is_over() {
    // Time in which they hear it.
    let mut server = app("5s");
    scripts(&server, ":");
    server.start();
    up(&server, 1);
    let begun = std::time::Instant::now();
    server.ok(&["stop", "a"]);
    assert!(begun.elapsed().as_secs() >= 5, "not before");
    assert_eq!((said(&server, "session heard"), said(&server, "daemon heard")), (1, 1), "they hear it once");
    assert!(helpers(&server).is_empty());
}

#[test]
fn when_the_main_process_ends_by_itself_the_rest_ends_before_the_next() {
    let mut server = app("20s");
    scripts(&server, "echo \"$1 bye\" >> \"${2%-tree}/said\"; exit 0");
    server.start();
    up(&server, 1);
    let old = server.main_pid("a");
    let tree = helpers(&server);
    kill(Pid::from_raw(old), Signal::SIGKILL).unwrap();
    server.wait_new_pid("a", old);
    up(&server, 2);
    let lines = fs::read_to_string(server.path().join("said")).unwrap();
    let place = |what: &str, n: usize| lines.lines().enumerate().filter(|(_, l)| *l == what).nth(n).unwrap().0;
    let second_up = place("session up", 1).min(place("daemon up", 1));
    assert!(place("session bye", 0) < second_up && place("daemon bye", 0) < second_up, "{lines}");
    assert!(helpers(&server).iter().all(|pid| !tree.contains(pid)), "no second copy");
}

#[test]
fn what_a_killed_supervisor_left_ends_before_the_next_copy() {
    for (stop, mind) in [("20s", "echo \"$1 bye\" >> \"${2%-tree}/said\"; exit 0"), ("5s", ":")] {
        let mut server = app(stop);
        scripts(&server, mind);
        let mut outside = Bystander::new();
        server.start();
        up(&server, 1);
        let (main, old) = (server.main_pid("a"), helpers(&server));
        server.kill();
        assert!(!old.is_empty() && old.contains(&helpers(&server)[0]), "apps outlive it");
        // Without a main process it does not go on.
        kill(Pid::from_raw(main), Signal::SIGKILL).unwrap();
        server.start();
        up(&server, 2);
        assert_eq!((said(&server, "session heard"), said(&server, "daemon heard")), (1, 1));
        let new = helpers(&server);
        assert!(new.iter().all(|pid| !old.contains(pid)), "no second copy: {old:?} {new:?}");
        let lines = fs::read_to_string(server.path().join("said")).unwrap();
        let heard = lines.lines().enumerate().filter(|(_, l)| l.ends_with("heard")).last().unwrap().0;
        let second = lines.lines().enumerate().filter(|(_, l)| *l == "session up").nth(1).unwrap().0;
        assert!(heard < second, "{lines}");
        let took = server.events().into_iter().find(|e| e["kind"] == "supervisor" && e["to"] == "took_over");
        assert!(took.is_some_and(|e| e["cause"].as_str().unwrap_or_default().contains("a.1")), "it is told");
        server.ok(&["restart", "a"]);
        assert!(outside.is_untouched(), "nothing outside the tree is signalled");
    }
}

#[test]
fn a_main_process_that_ignores_the_signal_is_killed_by_the_next_supervisor() {
    let mut server = Server::with_apps(
        r#""a": (command: ["sh", "-c", "trap '' TERM; echo $$ >> @DIR@/said; while :; do sleep 1000; done", "@DIR@-tree"],
             ready: Immediate, stop: (timeout: "300ms"))"#,
    );
    fs::write(server.path().join("said"), "").unwrap();
    server.start();
    let lines = |s: &Server| fs::read_to_string(s.path().join("said")).unwrap().lines().count();
    server.until("it is up", |s| (lines(s) == 1).then_some(()));
    server.kill();
    server.edit_config("ready: Immediate,", "ready: Immediate, enabled: false,");
    server.start();
    server.until("nobody is left", |s| helpers(s).is_empty().then_some(()));
    server.wait_state("a", "stopped");
    assert_eq!(lines(&server), 1);
}

/// What was adopted is nobody's child, nor are its children handed to anybody here.
#[test]
fn an_adopted_tree_ends_as_a_whole_and_restarts_in_every_way() {
    for (way, prefix) in ways() {
        let mut server = app("20s");
        scripts(&server, "echo \"$1 bye\" >> \"${2%-tree}/said\"; exit 0");
        let mut outside = Bystander::new();
        server.start_as(&prefix);
        up(&server, 1);
        let (main, tree) = (server.main_pid("a"), helpers(&server));
        server.kill();
        server.start_as(&prefix);
        server.wait_state("a", "ready");
        assert_eq!((server.main_pid("a"), said(&server, "session up")), (main, 1), "{way}");
        // By itself the main process ends, and the rest before the next.
        kill(Pid::from_raw(main), Signal::SIGKILL).unwrap();
        server.wait_new_pid("a", main);
        up(&server, 2);
        assert_eq!((said(&server, "session bye"), said(&server, "daemon bye")), (1, 1), "{way}");
        assert!(helpers(&server).iter().all(|pid| !tree.contains(pid)), "{way}: no second copy");
        server.kill();
        server.start_as(&prefix);
        server.wait_state("a", "ready");
        server.ok(&["stop", "a"]);
        assert_eq!((said(&server, "session bye"), said(&server, "daemon bye")), (2, 2), "{way}: all hear it, once");
        assert!(helpers(&server).is_empty(), "{way}: stopped is said when nothing is left");
        assert!(outside.is_untouched(), "{way}: nothing outside the tree is signalled");
        assert!(server.stop().success());
    }
}

#[test]
fn killed_again_and_again_no_copy_is_left_over() {
    let mut server = Server::with_apps(
        r#""a": (command: ["sleep", "1000"], ready: Immediate), "b": (command: ["sleep", "1000"], ready: Immediate, after: ["a"])"#,
    );
    for _ in 0..6 {
        server.start();
        server.kill();
    }
    server.start();
    server.wait_state("b", "ready");
    let home = server.path().join("state").to_str().unwrap().to_owned();
    for app in ["a", "b"] {
        let pid = server.main_pid(app);
        server.ok(&["stop", app, "-y"]);
        // Adopted, it was handed to somebody who may be slow to look at its end.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    }
    // Every process of any of these runs writes into a FIFO of this state folder.
    let writers: Vec<i32> = all_pids().into_iter().filter(|pid| writes_below(*pid, &home) && is_sleep(*pid)).collect();
    assert!(writers.is_empty(), "{writers:?}");
}

fn all_pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn is_sleep(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep")
}

fn writes_below(pid: i32, folder: &str) -> bool {
    fs::read_link(format!("/proc/{pid}/fd/1")).is_ok_and(|to| to.starts_with(folder))
}

/// What keeps trees together: version 2 of cgroups, version 1, or nothing at all. What is not to be had
/// is taken from the supervisor's view of the machine, which needs root.
fn ways() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut ways = vec![("as the machine is", vec![])];
    if !nix::unistd::geteuid().is_root() {
        println!("not root: only as the machine is");
        return ways;
    }
    let without = |kinds: &'static str| vec!["unshare", "--mount", "sh", "-c", kinds, "sh"];
    let no_second = "awk '$3 == \"cgroup2\" { print $2 }' /proc/mounts | xargs -r umount -l; exec \"$@\"";
    let none = "awk '$3 ~ /^cgroup/ { print $2 }' /proc/mounts | xargs -r umount -l; exec \"$@\"";
    ways.extend([("version 1", without(no_second)), ("none", without(none))]);
    ways
}

#[test]
fn whoever_hides_is_gone_after_stop_in_every_way() {
    for (way, prefix) in ways() {
        let mut server = Server::with_apps(
            r#""a": (command: ["sh", "@DIR@/main.sh", "@DIR@-tree"], ready: Immediate, stop: (timeout: "500ms"))"#,
        );
        let dir = server.path().display().to_string();
        let write = |name: &str, text: &str| fs::write(server.path().join(name), text.replace("@", &dir)).unwrap();
        write("said", "");
        // All ignore TERM. One is in a session of its own, one was daemonised, one scrubbed its environment
        // too, and one is never there for long: each of its processes starts the next and ends.
        write("deaf.sh", "trap '' TERM; echo \"$1 up\" >> @/said; while :; do sleep 0.05; done\n");
        write(
            "loop.sh",
            "trap '' TERM; sleep 0.01; [ -e @/looped ] || { echo 'loop up' >> @/said; touch @/looped; }; sh @/loop.sh @-tree &\n",
        );
        write(
            "main.sh",
            "setsid sh @/deaf.sh session @-tree &\n(setsid sh -c 'sh @/deaf.sh daemon @-tree &' &)\nsh @/loop.sh @-tree &\n\
             (setsid env -i PATH=$PATH sh -c 'sh @/deaf.sh bare @-tree &' &)\nexec sleep 1000\n",
        );
        let mut outside = Bystander::new();
        server.start_as(&prefix);
        let all = ["session up", "daemon up", "loop up", "bare up"];
        server.until("the tree is up", |s| all.iter().all(|line| said(s, line) == 1).then_some(()));
        let own = fs::read_to_string(format!("/proc/{}/cgroup", server.main_pid("a"))).unwrap();
        let groups: Vec<_> = own.lines().filter(|line| line.contains("everhook-")).collect();
        match way {
            "version 1" => assert!(groups.iter().all(|line| !line.starts_with("0::")), "{own}"),
            "none" => assert!(
                groups.is_empty() && server.log().contains("is not found when its app ends"),
                "{}",
                server.log()
            ),
            _ => {}
        }
        server.ok(&["stop", "a"]);
        assert!(helpers(&server).is_empty(), "{way}: stopped is said when nothing is left");
        assert!(outside.is_untouched(), "{way}: nothing outside the tree is signalled");
        assert!(server.stop().success());
    }
}

/// What keeps a tree together need not be there for the next supervisor, or not have been for the last one.
#[test]
fn a_tree_is_whole_whatever_the_next_supervisor_has_to_keep_it_together() {
    let ways = ways();
    let Some((_, none)) = ways.iter().find(|(way, _)| *way == "none") else { return };
    for (first, second) in [(&vec![], none), (none, &vec![])] {
        let mut server = app("20s");
        scripts(&server, "echo \"$1 bye\" >> \"${2%-tree}/said\"; exit 0");
        server.start_as(first);
        up(&server, 1);
        let main = server.main_pid("a");
        server.kill();
        server.start_as(second);
        server.wait_state("a", "ready");
        let anew = usize::from(server.main_pid("a") != main);
        server.until("it is all there", |s| (said(s, "main up") == 1 + anew).then_some(()));
        let ends = said(&server, "session bye");
        assert_eq!((ends, said(&server, "daemon bye")), (anew, anew), "no second copy");
        server.ok(&["stop", "a"]);
        assert_eq!((said(&server, "session bye"), said(&server, "daemon bye")), (ends + 1, ends + 1));
        assert!(helpers(&server).is_empty(), "stopped is said when nothing is left");
        assert!(server.stop().success());
    }
}

/// Its own supervisor knew it by the output that it was given; the next one has nothing but what it finds.
#[test]
fn whoever_hides_from_the_next_supervisor_ends_before_the_next_copy_in_every_way() {
    for (way, prefix) in ways() {
        let mut server = Server::with_apps(
            r#""a": (command: ["sh", "@DIR@/main.sh", "@DIR@-tree"], ready: Immediate, stop: (timeout: "20s"))"#,
        );
        let dir = server.path().display().to_string();
        let write = |name: &str, text: &str| fs::write(server.path().join(name), text.replace('@', &dir)).unwrap();
        write("said", "");
        write(
            "bare.sh",
            "trap 'echo bare heard >> @/said; exit' TERM\necho bare up >> @/said\nwhile :; do sleep 0.05; done\n",
        );
        write("main.sh", "(setsid env -i PATH=$PATH sh -c 'sh @/bare.sh @-tree &' &)\nexec sleep 1000\n");
        server.start_as(&prefix);
        server.until("the tree is up", |s| (said(s, "bare up") == 1).then_some(()));
        let (main, old) = (server.main_pid("a"), helpers(&server));
        server.kill();
        // Nobody is left whose descendant it is, or who bears the marks.
        kill(Pid::from_raw(main), Signal::SIGKILL).unwrap();
        let mut outside = Command::new("env");
        let open = format!("exec 5<>{dir}/state/run/fifo/a.1.out; echo open; exec sleep 1000");
        let mut outside =
            outside.args(["-i", "sh", "-c", &open]).stdout(Stdio::piped()).spawn().map(Bystander).unwrap();
        let mut line = String::new();
        BufReader::new(outside.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        server.start_as(&prefix);
        server.until("the next tree is up", |s| (said(s, "bare up") == 2).then_some(()));
        let lines = fs::read_to_string(server.path().join("said")).unwrap();
        assert_eq!(lines, "bare up\nbare heard\nbare up\n", "{way}");
        assert!(helpers(&server).iter().all(|pid| !old.contains(pid)), "{way}: no second copy");
        assert!(outside.is_untouched(), "{way}: nothing outside the tree is signalled");
        assert!(server.stop().success());
    }
}

/// As with sudo: a supervisor that is nobody special has a child that became somebody else.
#[test]
fn who_may_not_be_killed_is_named_and_nothing_runs_beside_it() {
    if !nix::unistd::geteuid().is_root() {
        return println!("not root: no program can be made that becomes another user");
    }
    let (own, other) = (1_000_000 + std::process::id(), 2_000_000 + std::process::id());
    let mut server = Server::new(&format!(
        r#"(state_dir: "@DIR@/state", apps: {{
"a": (command: "@DIR@/become --reuid {other} --regid {other} --clear-groups sleep 1000 & exec sleep 1000",
    ready: Immediate, stop: (timeout: "200ms")),
}})"#
    ));
    let dir = server.path().to_owned();
    let copy = |from: &str, to: &str| {
        let to = dir.join(to);
        assert!(Command::new("cp").arg(from).arg(&to).status().unwrap().success());
        to
    };
    let become_other = copy("/usr/bin/setpriv", "become");
    let binary = copy(env!("CARGO_BIN_EXE_everhook"), "everhook-as-user");
    fs::set_permissions(&become_other, fs::Permissions::from_mode(0o4755)).unwrap();
    chown(&dir, Some(own), Some(own)).unwrap();
    let own = own.to_string();
    let as_user = format!("setpriv --reuid {own} --regid {own} --clear-groups");
    // Without a cgroup, whoever may write one.
    let swap = format!("shift; exec {as_user} {} \"$@\"", binary.display());
    server.start_as(&["sh", "-c", &swap, "sh"]);
    server.wait_state("a", "ready");
    let theirs = || {
        let mine = |pid: &i32| fs::metadata(format!("/proc/{pid}")).is_ok_and(|facts| facts.uid() == other);
        let mut found = all_pids();
        found.retain(|pid| mine(pid) && is_sleep(*pid));
        found
    };
    let one =
        |server: &Server| server.until("it is somebody else's", |_| Some(theirs()).filter(|found| found.len() == 1))[0];
    let first = one(&server);
    let said = server.fails(1, &["stop", "a"]);
    assert!(said.contains("is not stopped") && said.contains(&format!("sleep ({first})")), "{said}");
    let stopping = server.instance("a");
    assert_eq!(stopping["state"], "stopping");
    assert!(stopping["reason"].as_str().unwrap().contains(&format!("sleep ({first})")), "{stopping}");
    let said = server.fails(1, &["start", "a"]);
    assert!(said.contains("may not kill"), "{said}");
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    server.wait_state("a", "ready");
    // What it leaves behind now is nobody's any more: root ends it.
    let second = one(&server);
    server.fails(1, &["stop", "a"]);
    kill(Pid::from_raw(second), Signal::SIGKILL).unwrap();
    server.wait_state("a", "stopped");
    assert!(server.stop().success());
}

#[test]
fn a_server_behind_wrappers_hears_the_signal_and_leaves_by_itself() {
    // Node's and npm's way: a shell that waits, and above it a program that waits.
    let wrap = "import subprocess, sys; sys.exit(subprocess.call(['sh', '-c', 'sh @DIR@/main.sh @DIR@-tree; true']))";
    for (way, prefix) in ways() {
        let mut server = Server::with_apps(&format!(
            r#""a": (command: ["python3", "-c", "{wrap}", "@DIR@-tree"], ready: Immediate, stop: (timeout: "20s"))"#
        ));
        let dir = server.path().display().to_string();
        fs::write(server.path().join("said"), "").unwrap();
        let script = format!(
            "trap 'sleep 0.2; echo bye >> {dir}/said; exit 0' TERM\necho main up >> {dir}/said\nwhile :; do sleep 0.05; done\n"
        );
        fs::write(server.path().join("main.sh"), script).unwrap();
        server.start_as(&prefix);
        up(&server, 1);
        server.ok(&["stop", "a"]);
        assert_eq!(said(&server, "bye"), 1, "{way}: it had its time, and heard the signal once");
        assert!(helpers(&server).is_empty(), "{way}");
        assert!(server.stop().success());
    }
}
