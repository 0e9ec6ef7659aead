//! Servers and libraries that nobody here wrote say when they are ready, and are asked whether they
//! are well. `.ci/run` installs them.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{fs, process::Command};

use server::{Server, processes};

/// Causes of an app's events of this end state, oldest first.
fn causes(server: &Server, to: &str) -> Vec<String> {
    let events = server.events();
    let ours = events.iter().filter(|e| e["app"] == "a" && e["kind"] == "instance" && e["to"] == to);
    ours.map(|e| e["cause"].as_str().unwrap().to_owned()).collect()
}

fn signal(signal: &str, pid: i32) {
    assert!(Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status().unwrap().success());
}

#[test]
fn sdnotify_of_python() {
    let server = Server::with_apps(
        r#""a": (command: ["/usr/bin/python3", "@DIR@/app.py"], ready: Notify, restart: (first: "10ms"), stop: (timeout: "100ms"),
             live: (probe: Watchdog, every: "500ms", failures: 2))"#,
    );
    let app = "
import os, sdnotify, time
n = sdnotify.SystemdNotifier()
n.notify('STATUS=Loading'); n.notify('READY=1'); n.notify('STATUS=Serving')
while not os.path.exists(os.path.dirname(__file__) + '/hang'):
    n.notify('WATCHDOG=1'); time.sleep(0.05)
time.sleep(1000)
";
    fs::write(server.path().join("app.py"), app).unwrap();
    let server = server.started();
    server.wait_state("a", "ready");
    server.until("its status is shown", |s| (s.instance("a")["status"] == "Serving").then_some(()));
    let pid = server.main_pid("a");
    fs::write(server.path().join("hang"), "").unwrap();
    server.wait_new_pid("a", pid);
    assert!(causes(&server, "stopping")[0].contains("no WATCHDOG=1 within 1s"), "{:?}", causes(&server, "stopping"));
}

#[test]
fn gunicorn() {
    let server = Server::with_apps(
        r#""a": (command: ["/usr/bin/gunicorn", "--bind", "unix:@DIR@/g.sock", "app:app"], directory: "@DIR@", ready: Notify,
             live: (probe: Http(url: "http://unix:@DIR@/g.sock:/", expect: 204), every: "200ms"))"#,
    );
    let app = "
def app(environ, start_response):
    open('asked', 'w').close()
    start_response('204 No Content', [])
    return []
";
    fs::write(server.path().join("app.py"), app).unwrap();
    let server = server.started();
    server.wait_state("a", "ready");
    server.until("its status is shown", |s| (s.instance("a")["status"] == "Gunicorn arbiter booted").then_some(()));
    server.until("it was asked", |s| s.path().join("asked").exists().then_some(()));
    let pid = server.main_pid("a");
    server.ok(&["restart", "a"]);
    assert_ne!(server.main_pid("a"), pid);
    assert_eq!(server.instance("a")["restarts"], 0);
}

#[test]
fn redis() {
    let server = Server::with_apps(
        r#""a": (command: "redis-server --port 0 --unixsocket @DIR@/r.sock --supervised systemd --save '' --dir @DIR@",
             ready: Notify, restart: (first: "10ms"), stop: (timeout: "300ms"),
             live: (probe: Exec(command: ["redis-cli", "-s", "@DIR@/r.sock", "ping"]), every: "200ms", failures: 2, timeout: "1s"))"#,
    )
    .started();
    server.wait_state("a", "ready");
    server.until("its status is shown", |s| (s.instance("a")["status"] == "Ready to accept connections").then_some(()));
    let pid = server.main_pid("a");
    // It accepts connections and answers nothing.
    signal("STOP", pid);
    let second = server.wait_new_pid("a", pid);
    let why = &causes(&server, "stopping")[0];
    assert!(why.contains("2 live probes in a row failed: the probe did not end within 1s"), "{why}");
    let dir = server.path().to_str().unwrap();
    server.until("no redis-cli is left", |_| {
        let left = processes(dir)
            .into_iter()
            .any(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "redis-cli\n"));
        (!left || server.main_pid("a") != second).then_some(())
    });
}

#[test]
fn nginx() {
    let server = Server::with_apps(
        r#""a": (command: ["nginx", "-p", "@DIR@", "-c", "@DIR@/nginx.conf"], restart: (first: "10ms"), stop: (signal: "SIGQUIT", timeout: "300ms"),
             ready: Http(url: "http://unix:@DIR@/n.sock:/healthz", expect: 204),
             live: (probe: Http(url: "http://unix:@DIR@/n.sock:/healthz", expect: 204), every: "200ms", failures: 2, timeout: "500ms"))"#,
    );
    let temp =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path @DIR@/{name};"));
    let config = format!(
        "daemon off; worker_processes 1; pid @DIR@/nginx.pid; error_log stderr;\nevents {{}}\nhttp {{ access_log off; {}\n\
         server {{ listen unix:@DIR@/n.sock; location /healthz {{ return 204; }} }} }}\n",
        temp.concat()
    );
    fs::write(server.path().join("nginx.conf"), config.replace("@DIR@", server.path().to_str().unwrap())).unwrap();
    let server = server.started();
    server.wait_state("a", "ready");
    let master = server.main_pid("a");
    let workers = || fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap_or_default();
    let worker = server.until("its worker", |_| workers().split_whitespace().next().and_then(|pid| pid.parse().ok()));
    signal("STOP", worker);
    server.wait_new_pid("a", master);
    let why = &causes(&server, "stopping")[0];
    assert!(why.contains("2 live probes in a row failed") && why.contains("no answer within 500ms"), "{why}");
    assert!(processes("nginx: worker").iter().all(|pid| *pid != worker), "the worker has ended with its master");
}

/// Where Debian has put PostgreSQL, whichever version it is of.
fn postgres(program: &str) -> String {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let found = versions.map(|version| version.unwrap().path().join("bin").join(program)).find(|path| path.exists());
    found.unwrap().to_str().unwrap().to_owned()
}

#[test]
fn postgresql() {
    let is_root = nix::unistd::geteuid().is_root();
    let user = if is_root { "user: \"postgres\"," } else { "" };
    let server = Server::with_apps(&format!(
        r#""a": (command: ["{}", "-D", "@DIR@/pg/data", "-k", "@DIR@/pg", "-c", "listen_addresses="], {user} directory: "/",
             ready: Notify, stop: (signal: "SIGINT"), restart: (first: "10ms"),
             live: (probe: Exec(command: ["{}", "-q", "-h", "@DIR@/pg"]), every: "300ms"))"#,
        postgres("postgres"),
        postgres("pg_isready"),
    ));
    let home = server.path().join("pg");
    fs::create_dir(&home).unwrap();
    let mut init = Command::new(postgres("initdb"));
    if is_root {
        let account = nix::unistd::User::from_name("postgres").unwrap().unwrap();
        std::os::unix::fs::chown(&home, Some(account.uid.as_raw()), Some(account.gid.as_raw())).unwrap();
        std::os::unix::process::CommandExt::uid(&mut init, account.uid.as_raw());
        std::os::unix::process::CommandExt::gid(&mut init, account.gid.as_raw());
    }
    let made = init.arg("-D").arg(home.join("data")).args(["-A", "trust", "-N"]).current_dir("/").output().unwrap();
    assert!(made.status.success(), "{}", server::text(&made));
    let server = server.started();
    server.wait_state("a", "ready");
    let pid = server.main_pid("a");
    server.ok(&["restart", "a"]);
    assert_ne!(server.main_pid("a"), pid);
    // It leaves by itself, says so, and is started again, as `Always` wants it.
    let second = server.main_pid("a");
    signal("INT", second);
    server.wait_new_pid("a", second);
    assert!(causes(&server, "stopping").iter().any(|cause| cause == "it said that it stops"));
    server.wait_state("a", "ready");
}
