//! systemd's protocol of notifications, word for word, spoken by a small program of our own and by
//! `systemd-notify`.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use server::{Server, processes, text, unique};

/// Says what the files `say.0`, `say.1`, … of its folder hold, as they come; `exit N` ends it. Its
/// environment goes into the file `env`.
const SAY: &str = r#"
import os, socket, sys, time
here = os.path.dirname(os.path.abspath(__file__))
open(here + "/env.tmp", "w").write("\n".join("%s=%s" % e for e in os.environ.items()) + "\nPID=%d\n" % os.getpid())
os.rename(here + "/env.tmp", here + "/env")
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(os.environ["NOTIFY_SOCKET"])
n = len([f for f in os.listdir(here) if f.startswith("done.")])
while True:
    try: text = open(here + "/say.%d" % n).read()
    except FileNotFoundError:
        time.sleep(0.005)
        continue
    open(here + "/done.%d" % n, "w").close()
    n += 1
    if text.startswith("exit"): sys.exit(int(text[5:]))
    s.send(text.encode())
"#;

/// Such a program in a server of its own.
struct Speaker {
    server: Server,
    said: usize,
}

impl Speaker {
    /// `fields`: of its app `a`, beside the command.
    fn new(fields: &str) -> Self {
        let server = Server::with_apps(&format!(r#""a": (command: ["python3", "@DIR@/say.py"], {fields})"#));
        fs::write(server.path().join("say.py"), SAY).unwrap();
        Self { server: server.started(), said: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.server.path().join(name)
    }

    /// Has it say something; it was taken from us, though maybe not heard yet.
    fn say(&mut self, what: &str) {
        let draft = self.path(&unique());
        fs::write(&draft, what).unwrap();
        fs::rename(draft, self.path(&format!("say.{}", self.said))).unwrap();
        let done = self.path(&format!("done.{}", self.said));
        self.said += 1;
        self.server.until("it has spoken", |_| done.exists().then_some(()));
    }

    fn wait_status(&self, text: &str) {
        self.server.until("its status is told", |s| (s.instance("a")["status"] == text).then_some(()));
    }

    /// What it found in its environment.
    fn env(&self, name: &str) -> Option<String> {
        let env = self.server.until("it runs", |_| fs::read_to_string(self.path("env")).ok());
        env.lines().find_map(|line| line.strip_prefix(&format!("{name}=")).map(str::to_owned))
    }
}

/// Causes of an app's events of this end state, oldest first.
fn causes(server: &Server, to: &str) -> Vec<String> {
    let events = server.events();
    let ours = events.iter().filter(|e| e["app"] == "a" && e["kind"] == "instance" && e["to"] == to);
    ours.map(|e| e["cause"].as_str().unwrap().to_owned()).collect()
}

fn until_cause(server: &Server, to: &str, part: &str) -> String {
    server.until(&format!("{to} since {part}"), |s| causes(s, to).into_iter().find(|cause| cause.contains(part)))
}

#[test]
fn it_is_ready_when_it_says_so_and_its_status_is_shown() {
    let mut a = Speaker::new("ready: Notify, restart: (policy: OnFailure)");
    a.say("STATUS=warming up: 50 %\nX_UNKNOWN=1");
    a.wait_status("warming up: 50 %");
    assert_eq!(a.server.app("a")["state"], "starting");
    a.say("READY=0");
    a.say("READY=1\nSTATUS=ünder way\n");
    a.server.wait_state("a", "ready");
    a.wait_status("ünder way");
    a.say("RELOADING=1\nMONOTONIC_USEC=123456");
    until_cause(&a.server, "ready", "reloading");
    assert_eq!(a.server.app("a")["state"], "ready");
    a.say("READY=1");
    until_cause(&a.server, "ready", "reloaded");
    a.say("STATUS=");
    a.server.until("its status is gone", |s| s.instance("a")["status"].is_null().then_some(()));
    a.say("STOPPING=1\nSTATUS=bye");
    let app = a.server.wait_state("a", "stopping");
    assert_eq!(app["instances"][0]["reason"], "it said that it stops");
    a.say("exit 0");
    a.server.wait_state("a", "done");
    assert_eq!(a.server.instance("a")["status"], "bye");
    a.server.ok(&["start", "a", "--no-wait"]);
    a.server.until("a new run has said nothing yet", |s| s.instance("a")["status"].is_null().then_some(()));
}

#[test]
fn why_it_fails_is_told_and_what_takes_long_can_ask_for_time() {
    // As long as python may take to begin on a busy machine.
    let within = Duration::from_secs(8);
    let mut a = Speaker::new(r#"ready: Notify(within: "8s"), restart: (policy: Never), stop: (timeout: "100ms")"#);
    a.say("EXTEND_TIMEOUT_USEC=600000000");
    a.say("EXTEND_TIMEOUT_USEC=1");
    let begun = Instant::now();
    while begun.elapsed() < within {
        a.say("STATUS=still");
    }
    a.wait_status("still");
    assert_eq!(a.server.app("a")["state"], "starting", "{}", a.server.instance("a"));
    a.say("READY=1");
    a.server.wait_state("a", "ready");
    a.say("STOPPING=1\nEXTEND_TIMEOUT_USEC=600000000");
    a.server.wait_state("a", "stopping");
    a.say("ERRNO=2\nEXTEND_TIMEOUT_USEC=600000000");
    a.say("exit 9");
    a.server.wait_state("a", "failed");
    let instance = a.server.instance("a");
    assert_eq!(
        (&instance["last_exit"]["code"], &instance["reason"]),
        (&9.into(), &"exited with 9; it told errno 2".into())
    );
}

#[test]
fn silence_ends_in_a_restart() {
    let mut a = Speaker::new(
        r#"ready: Notify, restart: (first: "10ms"), live: (probe: Watchdog, every: "3s", failures: 2), env: {"KEPT": "1"}"#,
    );
    assert_eq!(a.env("WATCHDOG_USEC").unwrap(), "3000000");
    assert_eq!(a.env("WATCHDOG_PID"), a.env("PID"));
    assert_eq!(a.env("KEPT").unwrap(), "1");
    a.say("READY=1");
    a.server.wait_state("a", "ready");
    let first = a.server.main_pid("a");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(7) {
        a.say("WATCHDOG=1");
    }
    assert_eq!(a.server.main_pid("a"), first, "what is heard of is well");
    let second = a.server.wait_new_pid("a", first);
    assert!(causes(&a.server, "stopping")[0].contains("no WATCHDOG=1 within 6s"));
    // It changes its mind: never again, then asks for it at once.
    a.say("READY=1\nWATCHDOG_USEC=600000000");
    a.server.wait_state("a", "ready");
    a.say("WATCHDOG=trigger");
    a.server.wait_new_pid("a", second);
    assert!(causes(&a.server, "stopping")[1].contains("triggered its watchdog"));
}

#[test]
fn a_watchdog_needs_no_notified_readiness_and_nobody_else_a_socket() {
    let a = Speaker::new(r#"ready: Immediate, live: (probe: Watchdog, every: "1h")"#);
    assert_eq!(a.env("WATCHDOG_USEC").unwrap(), "3600000000");
    let socket = a.env("NOTIFY_SOCKET").unwrap();
    assert!(socket.ends_with("/notify/a.1"), "{socket}");
    let plain = Server::with_apps(r#""a": (command: "env > @DIR@/env; exec sleep 1000", ready: Immediate)"#).started();
    let env = plain.until("it runs", |s| fs::read_to_string(s.path().join("env")).ok().filter(|e| e.contains("LANG")));
    assert!(!env.contains("NOTIFY_SOCKET") && !env.contains("WATCHDOG"), "{env}");
}

/// Forks a child that names itself the main process; `parent`: what the first one does then.
fn forking(parent: &str) -> String {
    format!(
        r#"
import os, socket, sys, time
def say(text):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.connect(os.environ["NOTIFY_SOCKET"]); s.send(text.encode())
r, w = os.pipe()
if os.fork() == 0:
    os.setsid()
    say("MAINPID=%d\nREADY=1\nSTATUS=forked" % os.getpid())
    os.write(w, b"x")
    while not os.path.exists("go"): time.sleep(0.01)
    os._exit(7)
os.read(r, 1)
{parent}
"#
    )
}

fn forked(parent: &str) -> (Server, i32) {
    let server = Server::with_apps(
        r#""a": (command: ["python3", "fork.py"], directory: "@DIR@", ready: Notify, restart: (policy: Never))"#,
    );
    fs::write(server.path().join("fork.py"), forking(parent)).unwrap();
    let server = server.started();
    server.wait_state("a", "ready");
    until_cause(&server, "starting", "is the main process from now on");
    let pid = server.main_pid("a");
    (server, pid)
}

#[test]
fn a_daemon_that_forks_names_its_main_process_and_its_end_is_seen() {
    let (server, pid) = forked("os._exit(0)");
    let parent = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(' ').nth(stat.split(' ').count() - 4).unwrap().parse::<u32>().unwrap()
    };
    server.until("its parent has ended", |s| (parent(pid) == s.pid()).then_some(()));
    assert_eq!(server.app("a")["state"], "ready", "the end of the first process is no end of the app");
    fs::write(server.path().join("go"), "").unwrap();
    server.wait_state("a", "failed");
    assert_eq!(server.instance("a")["last_exit"]["code"], 7, "its status is known");
}

#[test]
fn a_main_process_that_is_nobodys_child_of_ours_is_seen_to_end() {
    let (server, pid) = forked("time.sleep(1000)");
    assert_eq!(processes("fork.py").iter().filter(|p| **p == pid).count(), 1);
    fs::write(server.path().join("go"), "").unwrap();
    let app = server.wait_state("a", "failed");
    assert_eq!(app["instances"][0]["last_exit"]["code"], 7, "the process table says it");
    // Its parent, which had become one of the tree, was ended with it.
    let left = |s: &Server| {
        processes(s.path().to_str().unwrap())
            .iter()
            .any(|p| fs::read_to_string(format!("/proc/{p}/cmdline")).is_ok_and(|l| l.contains("fork.py")))
    };
    assert!(!left(&server));
}

#[test]
fn a_stop_reaches_the_main_process_that_was_named() {
    let (server, pid) = forked("time.sleep(1000)");
    server.ok(&["stop", "a", "-y"]);
    assert_eq!(server.app("a")["state"], "stopped");
    // Its parent may not have heard of its end before its own.
    server.until("it is gone", |_| (!PathBuf::from(format!("/proc/{pid}")).exists()).then_some(()));
}

#[test]
fn a_stranger_makes_nothing_ready_and_is_no_main_process() {
    let mut a = Speaker::new("ready: Notify");
    let stranger = Command::new("sleep").arg("1000").spawn().unwrap();
    a.say(&format!("MAINPID={}\nSTATUS=heard", stranger.id()));
    a.wait_status("heard");
    until_cause(&a.server, "notification_refused", "no living process of its tree");
    assert_ne!(a.server.main_pid("a"), i32::try_from(stranger.id()).unwrap());
    let mut stranger = stranger;
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    if !nix::unistd::geteuid().is_root() {
        return println!("not root: there is nobody else to send as");
    }
    let server = Server::with_apps(r#""a": (command: ["sleep", "1000"], user: 12345, directory: "/", ready: Notify)"#);
    let server = server.started();
    server.until("it runs", |s| s.instance("a")["pid"].as_i64());
    let socket = server.path().join("state/run/notify/a.1");
    let send = |uid: u32| {
        let id = uid.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "systemd-notify", "--ready", "--no-block"]);
        command.env("NOTIFY_SOCKET", &socket).output().unwrap()
    };
    let refused = send(12346);
    assert!(!refused.status.success(), "{}", text(&refused));
    assert!(send(0).status.success());
    until_cause(&server, "notification_refused", "uid 0");
    assert_eq!(server.app("a")["state"], "starting");
    assert!(send(12345).status.success());
    server.wait_state("a", "ready");
}

#[test]
fn systemd_notify_speaks_though_it_is_gone_and_its_barrier_opens() {
    let server = Server::with_apps(
        r#""a": (ready: Notify(within: "1m"), command: "systemd-notify --ready --status='by a helper' && touch @DIR@/through; exec sleep 1000"),
           "once": (ready: Notify, restart: (policy: OnFailure), command: "systemd-notify --ready --no-block; exit 0")"#,
    );
    let server = server.started();
    server.wait_state("a", "ready");
    assert_eq!(server.instance("a")["status"], "by a helper");
    // systemd-notify itself gives up after five seconds, as a failure.
    server.until("the barrier is open", |s| s.path().join("through").exists().then_some(()));
    server.wait_state("once", "done");
    let events = server.events();
    let states: Vec<_> = events
        .iter()
        .filter(|e| e["app"] == "once" && e["kind"] == "instance")
        .map(|e| e["to"].as_str().unwrap())
        .collect();
    assert!(
        states.ends_with(&["starting", "ready", "done"]),
        "what is said before an end is heard before it: {states:?}"
    );
}

#[test]
fn what_was_said_in_an_earlier_run_is_nothing_to_the_next() {
    // The last word of the first run is READY=1, said by what is left of its tree.
    let server = Server::with_apps(
        r#""a": (ready: Notify(within: "1m"), restart: (first: "10ms"),
             command: "if test -e @DIR@/second; then exec sleep 1000; fi; touch @DIR@/second; sh -c 'trap \"systemd-notify --ready --no-block; exit\" TERM; sleep 1000 & wait' & sleep 0.2; exit 3")"#,
    )
    .started();
    server.until("it was started again", |s| {
        (s.instance("a")["restarts"] == 1 && s.instance("a")["pid"].is_i64()).then_some(())
    });
    server.ok(&["events"]);
    assert_eq!(server.app("a")["state"], "starting");
    assert!(causes(&server, "ready").is_empty());
}

#[test]
fn whoever_manages_everhook_is_told() {
    let mut server = Server::with_apps("");
    let path = server.path().join("manager");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(server::LIMIT)).unwrap();
    let variable = format!("NOTIFY_SOCKET={}", path.display());
    let next = || {
        let mut said = [0; 64];
        let length = manager.recv(&mut said).unwrap();
        String::from_utf8_lossy(&said[..length]).into_owned()
    };
    server.start_as(&["env", &variable]);
    assert_eq!(next(), "READY=1");
    assert!(server.stop().success());
    assert_eq!(next(), "STOPPING=1");
}
