//! A supervisor that follows a killed one goes on with what runs: the same processes, their output, their sockets,
//! what they say. What would be started otherwise now is replaced, and nothing ever runs twice.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Instant,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use server::{LIMIT, Server, free_address, processes};

const HELD: &str = include_str!("support/apps/held.py");

/// Writes numbered lines; told USR1 it ends with 7, at TERM with 0.
const COUNTS: &str = "trap 'exit 7' USR1; trap 'exit 0' TERM\nn=0\n\
    while :; do n=$((n + 1)); echo \"line $n\"; echo $n > \"$1/count\"; sleep 0.02; done\n";

fn counting(fields: &str) -> Server {
    let server = Server::with_apps(&format!(
        r#""a": (command: ["/bin/sh", "@DIR@/app.sh", "@DIR@"], ready: Immediate, {fields})"#
    ));
    fs::write(server.path().join("app.sh"), COUNTS).unwrap();
    fs::write(server.path().join("count"), "0").unwrap();
    let server = server.started();
    server.wait_state("a", "ready");
    server
}

fn count(dir: &Path) -> u32 {
    fs::read_to_string(dir.join("count")).unwrap().trim().parse().unwrap_or(0)
}

/// Waits without a supervisor until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        thread::yield_now();
    }
}

fn counts_on(server: &Server, by: u32) {
    let (dir, before) = (server.path(), count(server.path()));
    until("it counts on", || count(dir) > before + by);
}

/// Is there an event of this instance that says so?
fn told_adopted(server: &Server, instance: &str) -> usize {
    let is =
        |e: &Value| e["instance"] == instance && e["cause"].as_str().is_some_and(|cause| cause.contains("adopted"));
    server.events().iter().filter(|event| is(event)).count()
}

/// All that is in the log, and is whole, in order and once.
fn lines_without_a_hole(server: &Server) -> usize {
    let log = server.path().join("state/logs/a/a.1.out.log");
    let text = fs::read_to_string(log).unwrap();
    // The last one may be on its way.
    let text = text.rsplit_once('\n').unwrap_or_default().0;
    for (n, line) in text.lines().enumerate() {
        assert_eq!(line, format!("line {}", n + 1));
    }
    text.lines().count()
}

/// Whoever inherits it may be slow to look at its end.
fn lives(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// For a moment what the shell starts looks like the shell.
fn runs_once(server: &Server, pid: i32) {
    until("it runs once", || processes(server.path().join("app.sh").to_str().unwrap()) == [pid]);
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[test]
fn what_runs_goes_on_and_its_output_has_no_hole() {
    let mut server = counting("");
    counts_on(&server, 5);
    let before = server.instance("a");
    let pid = server.main_pid("a");
    for round in 1..=3 {
        server.kill();
        counts_on(&server, 20);
        server.start();
        let app = server.wait_state("a", "ready");
        assert_eq!((server.main_pid("a"), &app["instances"][0]["restarts"]), (pid, &0.into()), "{app}");
        assert_eq!(told_adopted(&server, "a.1"), round, "{:?}", server.events());
        counts_on(&server, 20);
    }
    let since = |instance: &Value| instance["since"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let moved = since(&server.instance("a")).duration_since(since(&before)).as_secs_f64().abs();
    assert!(moved < 1.0, "it is as old as it is: {moved}");
    assert!(server.log().contains("adopted 1 instance"), "{}", server.log());
    let took = server.events().into_iter().filter(|e| e["kind"] == "supervisor" && e["to"] == "took_over");
    assert!(took.filter(|e| e["cause"] == "adopted a.1").count() == 3, "{:?}", server.events());

    runs_once(&server, pid);
    server.ok(&["stop", "a"]);
    let written = count(server.path());
    server.until("all was captured", |s| (lines_without_a_hole(s) >= written as usize).then_some(()));
    assert_eq!(server.instance("a")["state"], "stopped");
    assert!(processes(server.path().join("app.sh").to_str().unwrap()).is_empty());
    server.ok(&["start", "a"]);
    assert_ne!(server.main_pid("a"), pid);
}

#[test]
fn it_is_restarted_stopped_and_ended_like_any_other() {
    let mut server = counting("");
    let first = server.main_pid("a");
    server.kill();
    server.start();
    server.wait_state("a", "ready");
    assert_eq!(server.main_pid("a"), first);
    server.ok(&["restart", "a"]);
    let second = server.main_pid("a");
    assert_ne!(first, second);
    server.kill();
    server.start();
    server.wait_state("a", "ready");
    assert_eq!(server.main_pid("a"), second);
    assert!(server.stop().success(), "an ordered end ends it too");
    assert!(processes(server.path().join("app.sh").to_str().unwrap()).is_empty());
}

/// As far as the kernel tells how somebody else's child ended, which is surely so from Linux 6.15 on.
#[test]
fn how_it_ends_is_seen_and_judged() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    if (numbers.next().unwrap(), numbers.next().unwrap()) < (6, 15) {
        return println!("Linux {release} need not tell how a stranger ended");
    }
    let mut server = counting("restart: (policy: OnFailure, success: [0, 7]),");
    let pid = server.main_pid("a");
    server.kill();
    server.start();
    server.wait_state("a", "ready");
    assert_eq!(server.main_pid("a"), pid);
    signal(pid, Signal::SIGKILL);
    let pid = server.wait_new_pid("a", pid);
    let instance = server.instance("a");
    assert_eq!((&instance["restarts"], &instance["last_exit"]["signal"]), (&1.into(), &9.into()), "{instance}");
    server.kill();
    server.start();
    server.wait_state("a", "ready");
    assert_eq!((server.main_pid("a"), server.instance("a")["restarts"].clone()), (pid, 1.into()));
    // By then it hears it.
    counts_on(&server, 1);
    signal(pid, Signal::SIGUSR1);
    let app = server.wait_state("a", "done");
    assert_eq!(app["instances"][0]["last_exit"]["code"], 7, "{app}");
}

#[test]
fn who_ended_meanwhile_is_started() {
    let mut server = counting("");
    let pid = server.main_pid("a");
    server.kill();
    signal(pid, Signal::SIGKILL);
    until("it is gone", || processes(server.path().join("app.sh").to_str().unwrap()).is_empty());
    server.start();
    server.wait_state("a", "ready");
    assert_ne!(server.main_pid("a"), pid);
    assert_eq!(told_adopted(&server, "a.1"), 0);
}

#[test]
fn a_changed_config_replaces_what_a_reload_would_and_leaves_the_rest() {
    let mut server = Server::with_apps(
        r#""env": (command: ["sleep", "1001"], ready: Immediate, env: {"X": "1"}),
           "live": (command: ["sleep", "1002"], ready: Immediate, stop: (timeout: "9s")),
           "gone": (command: ["sleep", "1003"], ready: Immediate),
           "off": (command: ["sleep", "1004"], ready: Immediate),
           "fewer": (command: ["sleep", "1005"], ready: Immediate, instances: 2),
           "after": (command: ["sleep", "1006"], ready: Immediate, after: ["env"], requires: ["live"])"#,
    )
    .started();
    let names = ["env", "live", "gone", "off", "fewer", "after"];
    names.iter().for_each(|name| drop(server.wait_state(name, "ready")));
    let before: Vec<i32> = names.map(|name| server.main_pid(name)).into();
    server.kill();
    server.edit_config("\"X\": \"1\"", "\"X\": \"2\"");
    server.edit_config("timeout: \"9s\"", "timeout: \"8s\"");
    server.edit_config("\"gone\": (", "\"new\": (");
    server.edit_config("\"1004\"],", "\"1004\"], enabled: false,");
    server.edit_config("instances: 2", "instances: 1");
    server.start();
    for name in ["live", "fewer", "after"] {
        let app = server.wait_state(name, "ready");
        let place = names.iter().position(|other| *other == name).unwrap();
        assert_eq!(app["instances"][0]["pid"], before[place], "{app}");
    }
    server.wait_new_pid("env", before[0]);
    server.wait_state("new", "ready");
    server.wait_state("off", "stopped");
    let causes: Vec<_> =
        server.events().into_iter().filter(|e| e["app"] == "env").map(|e| e["cause"].clone()).collect();
    assert!(causes.iter().any(|cause| cause == "the config has changed"), "{causes:?}");
    for (pid, name) in [(before[0], "env"), (before[2], "gone"), (before[3], "off")] {
        until(&format!("{name} is ended"), || !lives(pid));
    }
    for (seconds, copies) in [(1001, 1), (1003, 1), (1004, 0), (1005, 1)] {
        let mine = |pid: &i32| fs::read_link(format!("/proc/{pid}/fd/1")).is_ok_and(|to| to.starts_with(server.path()));
        // Who has only just been started does not tell its command yet.
        until(&format!("{copies} sleep {seconds}"), || {
            processes(&format!("sleep\0{seconds}\0")).iter().filter(|pid| mine(pid)).count() == copies
        });
    }
}

#[test]
fn who_was_not_ready_yet_is_started_anew_and_who_was_is_not() {
    let say = r#"import os,socket,sys,time
if os.path.exists(sys.argv[1]): socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM).sendto(b"READY=1",os.environ["NOTIFY_SOCKET"])
time.sleep(1000)"#;
    let mut server = Server::with_apps(
        r#""a": (command: ["python3", "@DIR@/say.py", "@DIR@/ready"], ready: Notify(within: "10m"))"#,
    );
    fs::write(server.path().join("say.py"), say).unwrap();
    server.start();
    let first = server.until("it starts", |s| s.instance("a")["pid"].as_i64());
    server.kill();
    fs::write(server.path().join("ready"), "").unwrap();
    server.start();
    let app = server.wait_state("a", "ready");
    assert_ne!(app["instances"][0]["pid"], first);
    let second = server.main_pid("a");
    server.kill();
    server.start();
    server.wait_state("a", "ready");
    assert_eq!(server.main_pid("a"), second);
}

/// `NOTIFY_SOCKET` leads to the new supervisor.
#[test]
fn what_it_says_is_heard() {
    let says = r#"import os,signal,socket,sys,time
def say(what):
    try: socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM).sendto(what,os.environ["NOTIFY_SOCKET"])
    except OSError: pass
say(b"READY=1")
while not os.path.exists(sys.argv[1]):
    say(b"WATCHDOG=1\nSTATUS=%d" % time.monotonic_ns())
    time.sleep(0.02)
say(b"STOPPING=1")
time.sleep(1000)"#;
    let mut server = Server::with_apps(
        r#""a": (command: ["python3", "@DIR@/say.py", "@DIR@/leave"], ready: Notify,
             live: (probe: Watchdog, every: "20s"), stop: (timeout: "1h"))"#,
    );
    fs::write(server.path().join("say.py"), says).unwrap();
    server.start();
    server.wait_state("a", "ready");
    let pid = server.main_pid("a");
    server.kill();
    server.start();
    server.wait_state("a", "ready");
    assert_eq!(server.main_pid("a"), pid);
    server.until("it is heard", |s| s.instance("a")["status"].is_string().then_some(()));
    fs::write(server.path().join("leave"), "").unwrap();
    server.wait_state("a", "stopping");
    fs::remove_file(server.path().join("leave")).unwrap();
    signal(pid, Signal::SIGKILL);
    server.wait_new_pid("a", pid);
}

/// Asks without a pause until told to end: how many were answered, and what went wrong.
fn ask_on(at: SocketAddr, end: Arc<AtomicBool>, answers: Arc<AtomicU32>) -> thread::JoinHandle<Vec<String>> {
    thread::spawn(move || {
        let mut lost = Vec::new();
        while !end.load(Ordering::Relaxed) {
            let mut text = String::new();
            let answer = TcpStream::connect(at).and_then(|mut stream| {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
                stream.read_to_string(&mut text).map(|_| text)
            });
            match answer {
                Ok(text) if text.starts_with("HTTP/1.1 200") => drop(answers.fetch_add(1, Ordering::Relaxed)),
                other => lost.push(format!("{other:?}")),
            }
        }
        lost
    })
}

/// Clients notice nothing: not the kill, not the next supervisor, not the replacements under it.
#[test]
fn held_sockets_are_taken_back_and_no_connection_is_lost() {
    let mut server = Server::with_apps(
        r#""web": (command: ["/usr/bin/python3", "@DIR@/held.py"], env: {"VERSION": "1"}, ready: After("300ms"),
             sockets: {"http": "127.0.0.1:0", "other": "127.0.0.1:0", "file": "unix:@DIR@/web.sock", "udp": "udp:127.0.0.1:0"},
             instances: 2)"#,
    );
    fs::write(server.path().join("held.py"), HELD).unwrap();
    server.start();
    server.wait_state("web", "ready");
    let pids = |s: &Server| -> Vec<Value> {
        s.app("web")["instances"].as_array().unwrap().iter().map(|one| one["pid"].clone()).collect()
    };
    let (before, sockets) = (pids(&server), server.instance("web")["sockets"].clone());
    let at: SocketAddr = sockets["http"].as_str().unwrap().parse().unwrap();
    let (end, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let client = ask_on(at, Arc::clone(&end), Arc::clone(&answers));
    let answered = |more: u32| {
        let before = answers.load(Ordering::Relaxed);
        until("more answers", || answers.load(Ordering::Relaxed) > before + more);
    };
    for _ in 0..2 {
        answered(20);
        server.kill();
        answered(20);
        server.start();
        server.wait_state("web", "ready");
        assert_eq!((pids(&server), server.instance("web")["sockets"].clone()), (before.clone(), sockets.clone()));
    }
    answered(20);
    server.ok(&["restart", "web"]);
    // Whoever drains is shown until it has left.
    server.until("the old ones have left", |s| pids(s).iter().all(|pid| !before.contains(pid)).then_some(()));
    assert_eq!(server.instance("web")["sockets"], sockets);
    answered(20);
    fs::remove_file(server.path().join("web.sock")).unwrap();
    server.ok(&["restart", "web"]);
    assert!(server.path().join("web.sock").exists(), "its file is known again");
    end.store(true, Ordering::Relaxed);
    assert_eq!(client.join().unwrap(), Vec::<String>::new());
    server.ok(&["stop", "web"]);
    server.until("nobody holds it any more", |_| TcpStream::connect(at).is_err().then_some(()));
}

/// What it opened itself is nobody's: there nothing is taken, and the address it was given is bound anew.
#[test]
fn the_file_of_a_socket_goes_whose_address_changed_meanwhile() {
    let app = |name: &str| {
        format!(
            r#""{name}": (command: ["sleep", "1000"], ready: Immediate, sockets: {{"http": "unix:@DIR@/{name}.sock"}}),"#
        )
    };
    let mut server = Server::with_apps(&["moves", "goes", "dies", "stays", "off"].map(app).concat()).started();
    let there = |server: &Server| {
        let entries =
            fs::read_dir(server.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = entries.filter(|name| name.contains(".sock")).collect();
        names.sort();
        names
    };
    let both = |names: &[&str]| {
        names.iter().flat_map(|name| [format!("{name}.sock"), format!("{name}.sock.held")]).collect::<Vec<_>>()
    };
    for name in ["moves", "goes", "dies", "stays", "off"] {
        server.wait_state(name, "ready");
    }
    assert_eq!(there(&server), both(&["dies", "goes", "moves", "off", "stays"]));
    let (stays, dies) = (server.main_pid("stays"), server.main_pid("dies"));
    server.kill();
    signal(dies, Signal::SIGKILL);
    until("it is dead", || !lives(dies));
    server.edit_config("/moves.sock", "/moved.sock");
    server.edit_config("/dies.sock", "/died.sock");
    let text = fs::read_to_string(server.config()).unwrap();
    let goes = app("goes").replace("@DIR@", server.path().to_str().unwrap());
    server.write_config(&text.replace(&goes, "").replace("\"off\": (", "\"off\": (enabled: false, "));
    server.start();
    let moved = both(&["died", "moved", "stays"]);
    server.until("only the new ones are there", |s| (there(s) == moved).then_some(()));
    for name in ["moves", "dies", "stays"] {
        server.wait_state(name, "ready");
    }
    assert_eq!(server.main_pid("stays"), stays);
    // And once more, of what was taken over.
    server.kill();
    server.edit_config("/stays.sock", "/stood.sock");
    server.start();
    server.until("the new one is there", |s| (there(s) == both(&["died", "moved", "stood"])).then_some(()));
    assert!(server.stop().success());
    assert_eq!(there(&server), Vec::<String>::new());
}

#[test]
fn a_socket_that_the_app_has_closed_is_bound_anew() {
    let port = free_address();
    let mut server = Server::with_apps(&format!(
        r#""a": (command: "exec 3<&-; exec sleep 1000", ready: Immediate, sockets: {{"http": "{port}"}})"#
    ))
    .started();
    server.wait_state("a", "ready");
    let pid = server.main_pid("a");
    server.until("it has closed it", |_| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name.trim() == "sleep").then_some(())
    });
    server.kill();
    server.start();
    server.wait_state("a", "ready");
    assert_eq!((server.main_pid("a"), TcpStream::connect(port).is_ok()), (pid, true));
}

#[test]
fn an_end_that_was_asked_for_early_ends_what_is_adopted() {
    let mut server = counting("");
    let pid = server.main_pid("a");
    server.kill();
    server.start();
    assert!(server.stop().success());
    assert!(!lives(pid));
    assert!(processes(server.path().join("app.sh").to_str().unwrap()).is_empty());
}

#[test]
fn who_goes_on_is_looked_after_while_the_rest_takes_its_time_to_end() {
    let mut server = Server::with_apps(
        r#""a": (command: ["sleep", "1000"], ready: Immediate),
        "deaf": (command: "trap '' TERM; echo $$ > @DIR@/deaf; while :; do sleep 0.1; done", stop: (timeout: "1h"),
            ready: Exec(command: ["false"], within: "1h"))"#,
    );
    server.start();
    let deaf = |s: &Server| fs::read_to_string(s.path().join("deaf")).ok()?.trim().parse::<i32>().ok();
    let first = server.until("it is deaf", deaf);
    server.wait_state("a", "ready");
    for by_hand in [true, false] {
        let (pid, deaf_one) = (server.main_pid("a"), deaf(&server).unwrap());
        server.kill();
        server.start();
        server.until("it is adopted", |s| (s.instance("a")["pid"] == pid).then_some(()));
        signal(pid, Signal::SIGKILL);
        server.wait_new_pid("a", pid);
        assert!(lives(deaf_one));
        if by_hand {
            signal(deaf_one, Signal::SIGKILL);
            server.until("its next one is started", |s| deaf(s).filter(|pid| *pid != first));
            server.wait_state("a", "ready");
            continue;
        }
        // Who wants the end for the second time has no patience with it.
        server.signal(Signal::SIGTERM);
        let end = Instant::now() + LIMIT;
        while lives(deaf_one) {
            assert!(Instant::now() < end, "it is not ended: {}", server.log());
            thread::sleep(std::time::Duration::from_millis(150));
            server.signal(Signal::SIGTERM);
        }
        assert!(server.ended().success());
    }
}

/// Says so when it finds that its last process still runs; deaf to TERM.
const ALONE: &str = "trap '' TERM\n[ -e \"$1/pid\" ] && grep -qs ') [^ZX] ' \"/proc/$(cat \"$1/pid\")/stat\" \
    && echo twice >> \"$1/twice\"\necho $$ > \"$1/pid\"\nwhile :; do sleep 0.05; done\n";

#[test]
fn what_people_want_while_the_rest_is_ended_comes_after_that() {
    let mut server = Server::with_apps(
        r#""a": (command: ["/bin/sh", "@DIR@/app.sh", "@DIR@"], stop: (timeout: "2s"),
             ready: Exec(command: ["test", "-e", "@DIR@/may-be-ready"], within: "1h"))"#,
    );
    fs::write(server.path().join("app.sh"), ALONE).unwrap();
    server.start();
    until("it runs", || server.path().join("pid").exists());
    server.kill();
    // Nobody was ready by then, so nobody goes on.
    fs::write(server.path().join("may-be-ready"), "").unwrap();
    server.start();
    // Which of these it is depends on when one asks.
    let state = server.app("a")["state"].clone();
    assert!(state == "waiting" || state == "starting" || state == "ready", "{state}");
    server.fails(6, &["wait", "a", "--for", "stopped", "--timeout", "100ms"]);
    server.edit_config(r#"stop: (timeout: "2s")"#, r#"stop: (timeout: "1s"), env: {"NEW": "1"}"#);
    for wish in [["reload"].as_slice(), &["restart", "a"], &["stop", "a"], &["start", "a"]] {
        server.ok(wish);
    }
    server.wait_state("a", "ready");
    assert!(!server.path().join("twice").exists(), "it ran twice: {}", server.log());
    runs_once(&server, server.main_pid("a"));
    assert!(server.log().contains("ending what the last supervisor left: a.1"), "{}", server.log());
}
