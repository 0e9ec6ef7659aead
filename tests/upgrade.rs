//! Another binary in the supervisor's place, as after a package's update: the same pid, every process goes on, and
//! nobody who calls is turned away.
#![allow(clippy::unwrap_used)]

#[path = "support/deploying.rs"]
mod deploying;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Instant,
};

use deploying::{Gate, is_root, push, site, world_with};
use nix::sys::signal::Signal;
use serde_json::Value;
use server::{LIMIT, Server, processes};

/// Told USR1 it ends with 7.
const COUNTS: &str = "trap 'exit 7' USR1; trap 'exit 0' TERM\nn=0\n\
    while :; do n=$((n + 1)); echo \"line $n\"; sleep 0.02; done\n";

fn counting() -> String {
    r#""a": (command: ["/bin/sh", "@DIR@/count.sh"], ready: Immediate)"#.to_owned()
}

fn installed(server: &Server) -> PathBuf {
    server.path().join("everhook")
}

/// As a package does it: the file of before has no name any more.
fn install(server: &Server) {
    let _ = fs::remove_file(installed(server));
    // By another process, since a file that this one writes is busy while a child that a test beside this one
    // starts still has it.
    let mut copy = std::process::Command::new("cp");
    assert!(copy.arg(env!("CARGO_BIN_EXE_everhook")).arg(installed(server)).status().unwrap().success());
}

/// Started from a binary that can be replaced.
fn start(server: &mut Server) {
    fs::write(server.path().join("count.sh"), COUNTS).unwrap();
    install(server);
    let run = format!("shift; exec {} \"$@\"", installed(server).display());
    server.start_as(&["/bin/sh", "-c", &run, "sh"]);
}

fn began(server: &Server) -> Value {
    server.status()["supervisor"]["since"].clone()
}

fn runs(server: &Server) -> PathBuf {
    fs::read_link(format!("/proc/{}/exe", server.pid())).unwrap()
}

/// Waits for the successor, which nobody announces to a signal's sender.
fn until_successor(server: &Server, before: &Value) {
    server.until("another one runs in its place", |s| {
        let told = s.cli(&["status", "--json"]);
        let status: Value = serde_json::from_slice(&told.stdout).ok()?;
        (status["supervisor"]["since"] != *before).then_some(())
    });
}

#[test]
fn apps_and_callers_notice_nothing() {
    let mut server = Server::with_apps(&counting());
    start(&mut server);
    server.unfollow();
    server.wait_state("a", "ready");
    let (pid, app) = (server.pid(), server.main_pid("a"));
    let address = server.address("hooks");
    let (end, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let caller = {
        let (end, answers) = (Arc::clone(&end), Arc::clone(&answers));
        thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                assert_eq!(http::request(address, "GET", "/healthz", &[], b"").status, 200);
                answers.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    for round in 1..=4 {
        let (before, heard) = (began(&server), answers.load(Ordering::Relaxed));
        install(&server);
        if round % 2 == 1 {
            let said = server.ok(&["upgrade"]);
            assert!(said.contains(&format!("runs in its place, pid {pid}")), "{said}");
        } else {
            server.signal(Signal::SIGUSR2);
            until_successor(&server, &before);
        }
        assert_ne!(began(&server), before);
        let state = server.wait_state("a", "ready");
        assert_eq!((server.main_pid("a"), &state["instances"][0]["restarts"]), (app, &0.into()), "{state}");
        assert_eq!(runs(&server), installed(&server), "the new file, which is there");
        server.until("callers are heard", |_| (answers.load(Ordering::Relaxed) > heard + 20).then_some(()));
    }
    end.store(true, Ordering::Relaxed);
    caller.join().expect("nobody was turned away");
    let told = |s: &Server| s.events().iter().filter(|event| event["to"] == "upgraded").count();
    server.until("each is an event", |s| (told(s) == 4).then_some(()));

    nix::sys::signal::kill(nix::unistd::Pid::from_raw(app), Signal::SIGUSR1).unwrap();
    server.wait_new_pid("a", app);
    assert_eq!(server.instance("a")["last_exit"]["code"], 7, "it is a child as before");
    // A shell blocks all for the moment in which it forks.
    server.until("it blocks and ignores nothing", |s| {
        let status = fs::read_to_string(format!("/proc/{}/status", s.main_pid("a"))).unwrap();
        let masks = status.lines().filter(|line| line.starts_with("SigBlk:") || line.starts_with("SigIgn:"));
        let none = masks.filter(|line| line.ends_with("\t0000000000000000"));
        (none.count() == 2).then_some(())
    });
    assert!(server.stop().success());
    assert_eq!(processes(server.path().join("count.sh").to_str().unwrap()), [] as [i32; 0]);
    let log = fs::read_to_string(server.path().join("state/logs/a/a.1.out.log")).unwrap();
    let of_first = log.lines().enumerate().take_while(|(n, line)| *line == format!("line {}", n + 1)).count();
    let begins_anew = log.lines().nth(of_first);
    assert_eq!(begins_anew, Some("line 1"), "no line is lost or told twice");
}

#[test]
fn what_does_not_prove_itself_changes_nothing() {
    let mut server = Server::with_apps(&counting());
    start(&mut server);
    server.wait_state("a", "ready");
    let (before, app) = (began(&server), server.main_pid("a"));
    let refused = |args: &[&str], why: &str| {
        let told = server.fails(1, args);
        assert!(told.contains(why), "{told}");
    };
    refused(&["upgrade", "--binary", "/bin/true"], "is no everhook that can take over");
    refused(&["upgrade", "--binary", "/bin/false"], "has not proven itself");
    refused(&["upgrade", "--binary", "/etc/passwd"], "cannot be run");
    refused(&["upgrade", "--binary", "/no/such/file"], "/no/such/file: No such file");
    install(&server);
    fs::set_permissions(installed(&server), fs::Permissions::from_mode(0o644)).unwrap();
    refused(&["upgrade"], "Permission denied");
    fs::remove_file(installed(&server)).unwrap();
    refused(&["upgrade"], "No such file");
    install(&server);
    server.edit_config("ready: Immediate", "ready: Imediate");
    refused(&["upgrade"], "supervisor.ron:");
    let refusals = |s: &Server| s.events().iter().filter(|event| event["to"] == "upgrade_refused").count();
    server.until("each is an event", |s| (refusals(s) == 6).then_some(()));
    assert!(server.log().contains("no upgrade, everything runs on as before"), "{}", server.log());
    assert_eq!((began(&server), server.main_pid("a")), (before, app));
    server.edit_config("ready: Imediate", "ready: Immediate");
    server.ok(&["upgrade"]);
    assert_eq!(server.main_pid("a"), app);
}

#[test]
fn a_binary_that_is_passed_is_copied_and_what_is_deployed_goes_on() {
    let (mut server, repo) =
        world_with(&(site("", "build: [\"if [ -e slow ]; then cat $DIR/gate; fi\"]") + ", " + &counting()));
    start(&mut server);
    server.deploy_end(1);
    let (gate, app) = (Gate::new(&server, "gate"), server.main_pid("a"));
    repo.commit(&[("slow", ""), ("VERSION", "2")], "slow");
    let id = push(&server, &repo);
    let held = gate.reached();
    server.ok(&["upgrade", "--binary", env!("CARGO_BIN_EXE_everhook")]);
    let copies = || fs::read_dir(server.path().join("state/bin")).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(copies().collect::<Vec<_>>(), [runs(&server)]);
    gate.open();
    drop(held);
    assert_eq!(server.deploy_end(id)["state"], "live");
    assert_eq!(server.main_pid("a"), app);
    let audit = server.json(&["audit"]);
    assert!(
        audit.as_array().unwrap().iter().any(|row| row["action"] == "upgrade" && row["outcome"] == "done"),
        "{audit}"
    );
}

/// As the README shows it: whoever may push here is root on this machine.
#[test]
fn it_deploys_itself() {
    let known = std::process::Command::new("id").arg("ehtest").output().is_ok_and(|told| told.status.success());
    if !is_root() || !known {
        return println!("left out: it needs root and the user ehtest");
    }
    let step = format!(
        "{} --socket @DIR@/state/run/control.sock upgrade --binary everhook-new",
        env!("CARGO_BIN_EXE_everhook")
    );
    let apps = format!(
        r#""everhook": (user: "ehtest", deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/secret"),
            build: ["cp {} everhook-new"], after_live: ["{step}"]))"#,
        env!("CARGO_BIN_EXE_everhook")
    );
    let (mut server, _repo) = world_with(&(apps + ", " + &counting()));
    server.edit_config("(state_dir:", "(local: {\"ehtest\": Admin}, state_dir:");
    start(&mut server);
    server.unfollow();
    server.wait_state("a", "ready");
    let app = server.main_pid("a");
    server.until("the new one runs", |s| runs(s).starts_with(s.path().join("state/bin")).then_some(()));
    server.wait_state("a", "ready");
    assert_eq!(server.main_pid("a"), app);
    // It is live before that, and its end is told when the step that asked for the upgrade is ended.
    let told = server.until("it has ended", |s| {
        let deploy = s.json(&["history"])[0].clone();
        (!deploy["ended_at"].is_null()).then_some(deploy)
    });
    assert_eq!(
        (&told["state"], &told["reason"]),
        (&"live".into(), &"its `after_live` was interrupted, and is not run again".into()),
        "{told}"
    );
}

#[test]
fn what_panics_begins_anew_and_apps_run_on() {
    for thread in ["loop", "files"] {
        let (mut server, repo) = world_with(&(site("", "build: [\"cat $DIR/gate\"]") + ", " + &counting()));
        let gate = Gate::new(&server, "gate");
        fs::write(server.path().join("count.sh"), COUNTS).unwrap();
        server.start_as(&["env", &format!("EVERHOOK_PANIC_ON_QUIT={thread}")]);
        server.unfollow();
        drop(gate.reached());
        server.deploy_end(1);
        server.wait_state("a", "ready");
        let (pid, app, address) = (server.pid(), server.main_pid("a"), server.address("hooks"));
        repo.commit(&[("VERSION", "2")], "second");
        let id = push(&server, &repo);
        let held = gate.reached();
        let before = began(&server);
        server.signal(Signal::SIGQUIT);
        until_successor(&server, &before);
        gate.open();
        drop(held);
        assert_eq!(server.deploy_end(id)["state"], "live", "what was deployed goes on");
        let state = server.wait_state("a", "ready");
        assert_eq!((server.main_pid("a"), &state["instances"][0]["restarts"]), (app, &0.into()), "{state}");
        assert_eq!((server.pid(), server.address("hooks")), (pid, address));
        assert_eq!(http::request(address, "GET", "/healthz", &[], b"").status, 200);
        let events = server.events();
        let told = events.iter().find(|event| event["to"] == "panicked").and_then(|event| event["cause"].as_str());
        assert!(told.is_some_and(|why| why.contains("told to at src/supervisor/panics.rs")), "{events:?}");
        assert!(server.stop().success(), "{}", server.log());
        assert_eq!(processes(server.path().join("count.sh").to_str().unwrap()), [] as [i32; 0]);
    }
}

#[test]
fn an_end_that_panics_ends_all_the_same() {
    for (asked, code) in [(true, 0), (false, 1)] {
        // The one takes the second TERM for an end alone; the other's failure is the end of everything.
        let apps = r#""slow": (command: ["/bin/sh", "@DIR@/slow.sh"], ready: Immediate),
            "bad": (command: "until test -e @DIR@/go; do sleep 0.02; done; exit 3", ready: Immediate, on_failed: Shutdown,
                restart: (give_up: (restarts: 0, within: "5m")))"#;
        let mut server = Server::with_apps(&format!("{}, {apps}", counting()));
        let slow =
            "n=0; trap 'n=$((n + 1)); if [ $n = 2 ]; then exit 0; fi' TERM\necho up\nwhile :; do sleep 0.02; done\n";
        fs::write(server.path().join("slow.sh"), slow).unwrap();
        fs::write(server.path().join("count.sh"), COUNTS).unwrap();
        server.start_as(&["env", "EVERHOOK_PANIC_ON_QUIT=loop"]);
        for app in ["a", "slow", "bad"] {
            server.wait_state(app, "ready");
        }
        for (app, said) in [("a", "line 1"), ("slow", "up")] {
            server.until("it has begun", |s| s.ok(&["logs", app]).contains(said).then_some(()));
        }
        if asked {
            server.signal(Signal::SIGTERM);
        } else {
            fs::write(server.path().join("go"), "").unwrap();
        }
        server.wait_state("a", "stopped");
        server.wait_state("slow", "stopping");
        server.signal(Signal::SIGQUIT);
        assert_eq!(server.ended().code(), Some(code), "{}", server.log());
        assert!(server.log().contains("begun anew after a panic"), "{}", server.log());
        assert_eq!(processes(server.path().to_str().unwrap()), [] as [i32; 0]);
        let log = fs::read_to_string(server.path().join("state/logs/a/a.1.out.log")).unwrap();
        let starts = log.lines().filter(|line| *line == "line 1").count();
        assert_eq!(starts, 1, "what had ended is not started any more");
    }
}

#[test]
fn an_end_that_is_wanted_at_the_last_moment_is_the_successors() {
    // One that is watched has a thread of its own.
    let mut server = Server::with_apps(r#""a": (command: "exec sleep 1000", ready: Immediate, watch: ["."])"#);
    for rounds in 0..6 {
        start(&mut server);
        server.unfollow();
        let mut client = server.client(&["upgrade"]);
        let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let end = Instant::now() + LIMIT;
        while server.log().matches("takes over").count() == rounds {
            assert!(Instant::now() < end, "no upgrade: {}", server.log());
        }
        assert!(server.stop().success());
        client.wait().unwrap();
    }
}
