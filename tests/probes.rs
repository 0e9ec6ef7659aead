//! Whether an instance is ready, and whether it stays well: every probe, with real servers and real
//! commands, from outside.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{fs, path::Path};

use serde_json::Value;
use server::{Server, free_address, processes, unique};

/// An HTTP server of a few lines: `serve.py ADDRESS`, which is a port of 127.0.0.1 or a path. What the
/// file `answer` beside it holds is the status; none: it does not answer.
const SERVE: &str = r#"
import os, socket, sys
where = sys.argv[1]
if where.isdigit():
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1", int(where)))
else:
    if os.path.exists(where): os.unlink(where)
    s = socket.socket(socket.AF_UNIX); s.bind(where)
s.listen(50)
here = os.path.dirname(os.path.abspath(__file__))
kept = []
while True:
    c, _ = s.accept()
    head = c.recv(4096).decode()
    open(here + "/heard", "a").write(head.replace("\r\n", "|") + "\n")
    try: status = open(here + "/answer").read().strip()
    except FileNotFoundError:
        kept.append(c)
        continue
    c.sendall(("HTTP/1.1 %s Whatever\r\nContent-Length: 0\r\nLocation: /\r\n\r\n" % status).encode())
    c.close()
"#;

fn write(server: &Server, name: &str, text: &str) {
    // Whole or not at all, since somebody reads it meanwhile.
    let path = server.path().join(name);
    let draft = server.path().join(unique());
    fs::write(&draft, text).unwrap();
    fs::rename(draft, path).unwrap();
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Causes of an app's events of this end state, oldest first.
fn causes(server: &Server, app: &str, to: &str) -> Vec<String> {
    let events = server.events();
    let ours = events.iter().filter(|e| e["app"] == app && e["kind"] == "instance" && e["to"] == to);
    ours.map(|e| e["cause"].as_str().unwrap().to_owned()).collect()
}

fn reason(server: &Server, app: &str) -> String {
    server.instance(app)["reason"].as_str().unwrap_or_default().to_owned()
}

/// Waits until the app `clock` was asked so many times more: others, asked as often, have been too.
fn ticks(server: &Server, count: usize) {
    let seen = || read(&server.path().join("ticks")).len();
    let end = seen() + count;
    server.until("the clock ticks", |_| (seen() >= end).then_some(()));
}

#[test]
fn http_counts_with_the_right_status_alone_and_over_a_unix_socket_too() {
    let server = Server::with_apps(
        r#""a": (command: ["python3", "@DIR@/serve.py", "@DIR@/a.sock"],
             ready: Http(url: "http://unix:@DIR@/a.sock:/healthz?x=1", host: "example.org", expect: 204, within: "1m"))"#,
    );
    write(&server, "serve.py", SERVE);
    write(&server, "answer", "301");
    let server = server.started();
    server.until("it says what it was answered", |s| {
        reason(s, "a").contains("answered 301, 204 is expected").then_some(())
    });
    assert_eq!(server.app("a")["state"], "starting");
    write(&server, "answer", "204");
    server.wait_state("a", "ready");
    let heard = read(&server.path().join("heard"));
    assert!(heard.starts_with("GET /healthz?x=1 HTTP/1.1|Host: example.org|"), "{heard}");
}

#[test]
fn a_unix_socket_that_accepts_is_ready() {
    let server = Server::with_apps(
        r#""a": (command: "exec python3 @DIR@/serve.py @DIR@/{instance}.sock", ready: Tcp(addr: "unix:@DIR@/{instance}.sock")),
           "never": (command: ["sleep", "1000"], ready: Tcp(addr: "unix:@DIR@/none.sock", within: "10s"), restart: (policy: Never))"#,
    );
    write(&server, "serve.py", SERVE);
    let server = server.started();
    server.wait_state("a", "ready");
    server.wait_state("never", "failed");
    let why = reason(&server, "never");
    assert!(why.contains("not ready within 10s") && why.contains("none.sock"), "{why}");
}

#[test]
fn a_newline_on_its_descriptor_makes_it_ready() {
    let server = Server::with_apps(
        r#""a": (command: "printf 'not yet' >&7; while ! test -e @DIR@/go; do sleep 0.05; done; echo >&7; exec 7>&-; exec sleep 1000", ready: Fd(fd: 7)),
           "closed": (command: "exec 3>&-; exec sleep 1000", ready: Fd(within: "10s"), restart: (policy: Never)),
           "clean": (command: "ls /proc/self/fd > @DIR@/fds; echo >&3; exec sleep 1000", ready: Fd(fd: 3))"#,
    )
    .started();
    server.wait_state("clean", "ready");
    // 4 is what `ls` reads the list from.
    assert_eq!(read(&server.path().join("fds")), "0\n1\n2\n3\n4\n");
    server.wait_state("closed", "failed");
    let why = reason(&server, "closed");
    assert!(why.contains("not ready within 10s: it closed its descriptor without a newline"), "{why}");
    assert_eq!(server.app("a")["state"], "starting");
    write(&server, "go", "");
    server.wait_state("a", "ready");
    let pid = server.main_pid("a");
    server.ok(&["restart", "a"]);
    assert_ne!(server.main_pid("a"), pid);
}

#[test]
fn a_command_decides_and_is_ended_with_its_tree() {
    let server = Server::with_apps(
        r#""a": (command: ["sleep", "1000"], directory: "@DIR@", env: {"WHO": "me"},
             ready: Exec(command: "test -e go || { echo first; echo not yet $WHO $EVERHOOK_APP; exit 3; }")),
           "hangs": (command: ["sleep", "1000"], restart: (policy: Never),
             ready: Exec(command: "setsid sleep 7@MARK@ & sleep 7@MARK@", within: "500ms")),
           "missing": (command: ["sleep", "1000"], restart: (policy: Never),
             ready: Exec(command: ["no-such-program"], within: "10s"))"#,
    );
    let mark = std::process::id().to_string();
    server.edit_config("7@MARK@", &format!("7{mark}"));
    let server = server.started();
    server.until("it says why", |s| reason(s, "a").contains("the probe exited with 3: not yet me a").then_some(()));
    write(&server, "go", "");
    server.wait_state("a", "ready");
    server.wait_state("hangs", "failed");
    let why = reason(&server, "hangs");
    assert!(why.contains("not ready within 500ms: its probe has not come to an answer"), "{why}");
    server.until("nothing of the command is left", |_| processes(&format!("sleep 7{mark}")).is_empty().then_some(()));
    server.wait_state("missing", "failed");
    assert!(reason(&server, "missing").contains("no-such-program"), "{}", reason(&server, "missing"));
}

#[test]
fn what_fails_or_hangs_is_restarted_after_so_many_failures() {
    let ports = [free_address().port(), free_address().port()];
    let app = |name: &str, port: u16, timeout: &str| {
        format!(
            r#""{name}": (command: ["python3", "@DIR@/{name}/serve.py", "{port}"], ready: Tcp(addr: "127.0.0.1:{port}"),
                 restart: (first: "10ms"), stop: (timeout: "2s"),
                 live: (probe: Http(url: "http://127.0.0.1:{port}/"), every: "150ms", failures: 3, timeout: "{timeout}")),"#
        )
    };
    let server = Server::with_apps(&(app("a", ports[0], "20s") + &app("b", ports[1], "500ms")));
    for app in ["a", "b"] {
        fs::create_dir(server.path().join(app)).unwrap();
        write(&server, &format!("{app}/serve.py"), SERVE);
        write(&server, &format!("{app}/answer"), "200");
    }
    let server = server.started();
    server.wait_state("b", "ready");
    server.wait_state("a", "ready");
    let first = server.main_pid("a");
    server.until("it was asked", |s| read(&s.path().join("a/heard")).contains("GET / ").then_some(()));
    write(&server, "a/answer", "500");
    server.wait_new_pid("a", first);
    let ends = causes(&server, "a", "stopping");
    assert!(ends[0].contains("3 live probes in a row failed") && ends[0].contains("answered 500"), "{ends:?}");
    let notes = causes(&server, "a", "ready");
    assert!(notes.iter().any(|n| n.contains("live probe 2 of 3 failed")), "{notes:?}");
    // It accepts and never answers.
    fs::remove_file(server.path().join("b/answer")).unwrap();
    server.until("the other is restarted too", |s| {
        causes(s, "b", "stopping").iter().any(|c| c.contains("no answer within 500ms")).then_some(())
    });
}

#[test]
fn one_failure_is_forgiven_and_a_reload_changes_the_question() {
    let server = Server::with_apps(
        r#""a": (command: ["sleep", "1000"], directory: "@DIR@", ready: Immediate,
             live: (probe: Exec(command: "echo asked >> said; ! test -e bad"), every: "100ms", failures: 1000)),
           "clock": (command: ["sleep", "1000"], directory: "@DIR@", ready: Immediate,
             live: (probe: Exec(command: "echo >> ticks"), every: "100ms"))"#,
    )
    .started();
    server.wait_state("a", "ready");
    let pid = server.main_pid("a");
    server.until("it was asked", |s| read(&s.path().join("said")).contains("asked").then_some(()));
    assert_eq!(causes(&server, "a", "ready"), ["ready"], "what is well is not told again");
    write(&server, "bad", "");
    server.until("a failure is told", |s| {
        causes(s, "a", "ready")
            .iter()
            .any(|c| c.contains("live probe 1 of 1000 failed: the probe exited with 1"))
            .then_some(())
    });
    fs::remove_file(server.path().join("bad")).unwrap();
    server.until("and its end", |s| causes(s, "a", "ready").iter().any(|c| c == "live again").then_some(()));
    server.edit_config("echo asked", "echo another");
    server.ok(&["reload"]);
    server.until("it is asked otherwise", |s| read(&s.path().join("said")).contains("another").then_some(()));
    assert_eq!(server.main_pid("a"), pid);
    server.ok(&["stop", "a", "-y"]);
    // A question that was on its way is not waited for: it is ended beside.
    server.until("what is stopped is not asked", |s| {
        fs::write(s.path().join("said"), "").unwrap();
        ticks(s, 3);
        read(&s.path().join("said")).is_empty().then_some(())
    });
}

#[test]
fn a_probe_that_kills_what_it_asks_costs_one_restart_a_round() {
    let server = Server::with_apps(
        r#""a": (command: "echo $$ > @DIR@/pid; exec sleep 1000", ready: Immediate, restart: (first: "10ms"),
             live: (probe: Exec(command: "test -e @DIR@/well && exit; test -s @DIR@/pid || exit 0; touch @DIR@/well; kill -9 $(cat @DIR@/pid); exit 1"), every: "100ms", failures: 1)),
           "clock": (command: ["sleep", "1000"], directory: "@DIR@", ready: Immediate,
             live: (probe: Exec(command: "echo >> ticks"), every: "100ms"))"#,
    )
    .started();
    server.until("it was restarted", |s| (s.instance("a")["restarts"] == 1).then_some(()));
    server.wait_state("a", "ready");
    ticks(&server, 4);
    assert_eq!(server.instance("a")["restarts"], 1);
    assert_eq!(server.instance("a")["last_exit"]["signal"], 9);
}

#[test]
fn probe_commands_are_the_apps_user() {
    if !nix::unistd::geteuid().is_root() {
        return println!("not root: there is no other user to be");
    }
    let server = Server::with_apps(
        r#""a": (command: ["sleep", "1000"], user: 12345, group: 12346, directory: "/",
             ready: Exec(command: "id -u; id -g; exit 1"))"#,
    )
    .started();
    server.until("it says who it is", |s| reason(s, "a").contains("exited with 1: 12346").then_some(()));
    let value: Value = server.instance("a");
    assert_eq!(value["state"], "starting");
}

#[test]
fn beside_an_old_one_no_hung_or_failing_one_is_taken_for_ready() {
    const APPS: usize = 10;
    const ROUNDS: usize = 5;
    let ports: Vec<u16> = (0..APPS).map(|_| free_address().port()).collect();
    let app = |(n, port): (usize, &u16)| {
        let probe = if n % 4 == 0 {
            format!("Tcp(addr: \"127.0.0.1:{port}\"")
        } else {
            format!("Http(url: \"http://127.0.0.1:{port}/\"")
        };
        format!(
            r#""a{n}": (command: ["/usr/bin/python3", "@DIR@/held.py"], env: {{"VERSION": "1", "BREAK": "@DIR@/a{n}"}},
                 sockets: {{"http": "127.0.0.1:{port}"}}, ready: {probe}, within: "30s"), restart: (first: "10ms")),"#
        )
    };
    let config: String = ports.iter().enumerate().map(app).collect();
    let server = Server::with_apps(&config);
    write(&server, "held.py", include_str!("support/apps/held.py"));
    for n in 0..APPS {
        fs::create_dir(server.path().join(format!("a{n}"))).unwrap();
    }
    let server = server.started();
    let each = |what: &(dyn Fn(&str, i32) + Sync)| {
        std::thread::scope(|scope| {
            for app in (0..APPS).map(|n| format!("a{n}")) {
                let server = &server;
                scope.spawn(move || {
                    server.ok(&["wait", &app, "--for", "ready", "--timeout", "60s"]);
                    what(&app, server.main_pid(&app));
                });
            }
        });
    };
    // All start at once, which may take long.
    each(&|_, _| {});
    server.edit_config("30s", "700ms");
    server.ok(&["reload"]);
    // One that answers with an error accepts, so that Tcp would be content with it.
    let fault = |app: &str| if app[1..].parse::<usize>().unwrap() % 2 == 0 { "hang" } else { "broken" };
    each(&|app, old| {
        write(&server, &format!("{app}/{}", fault(app)), "");
        for _ in 0..ROUNDS {
            let said = server.fails(1, &["restart", app]);
            assert!(said.contains("not ready within"), "{said}");
            assert_eq!((server.main_pid(app), &server.app(app)["state"]), (old, &Value::from("ready")));
        }
        fs::remove_file(server.path().join(format!("{app}/{}", fault(app)))).unwrap();
    });
    server.edit_config("700ms", "30s");
    server.ok(&["reload"]);
    each(&|app, old| {
        server.ok(&["restart", app]);
        assert_ne!(server.main_pid(app), old, "a good one is taken");
    });
}

#[test]
fn a_held_socket_that_nobody_accepts_from_makes_nothing_ready_and_nothing_well() {
    let (port, live) = (free_address().port(), free_address().port());
    let server = Server::with_apps(&format!(
        r#""sleeper": (command: ["sleep", "1000"], sockets: {{"http": "127.0.0.1:{port}"}}, restart: (policy: Never),
             ready: Tcp(addr: "localhost:{port}")),
           "hangs": (command: ["sleep", "1000"], sockets: {{"http": "127.0.0.1:{live}"}}, restart: (policy: Never),
             ready: Immediate, live: (probe: Tcp(addr: "localhost:{live}"), every: "100ms", failures: 2, timeout: "1s"))"#
    ))
    .started();
    server.until("it says why", |s| reason(s, "sleeper").contains("nobody accepts the connection").then_some(()));
    assert_eq!(server.app("sleeper")["state"], "starting");
    server.wait_state("hangs", "failed");
    assert!(reason(&server, "hangs").contains("2 live probes in a row failed"), "{}", reason(&server, "hangs"));
}

#[test]
fn who_accepts_late_is_well_as_long_as_its_timeout_allows() {
    const BUSY: &str = r"
import socket, time
s = socket.socket(fileno=3)
def answer():
    c = s.accept()[0]
    c.settimeout(30)
    try:
        c.recv(4096)
        c.sendall(b'HTTP/1.1 200 OK\r\n\r\n')
    except OSError: pass
    c.close()
answer()
time.sleep(2.5)
while True:
    answer()
    open('answered', 'a').write('.')
";
    let port = free_address().port();
    let server = Server::with_apps(&format!(
        r#""a": (command: ["python3", "busy.py"], directory: "@DIR@", sockets: {{"http": "127.0.0.1:{port}"}}, restart: (policy: Never),
             ready: Immediate, live: (probe: Http(url: "http://127.0.0.1:{port}/"), every: "100ms", failures: 1, timeout: "50s"))"#
    ));
    write(&server, "busy.py", BUSY);
    let server = server.started();
    server.wait_state("a", "ready");
    let pid = server.main_pid("a");
    server.until("it answers again", |s| (read(&s.path().join("answered")).len() > 10).then_some(()));
    assert_eq!((server.main_pid("a"), server.instance("a")["state"].as_str()), (pid, Some("ready")));
    assert!(!causes(&server, "a", "ready").iter().any(|cause| cause.contains("failed")), "no probe has failed");
}
