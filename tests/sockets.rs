//! Sockets that everhook holds for its apps, and replacements without a gap, from outside.
#![allow(clippy::unwrap_used)]

#[path = "support/deploying.rs"]
mod deploying;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    thread,
    time::Duration,
};

use serde_json::Value;
use server::{Repo, Server, free_address};

const HELD: &str = include_str!("support/apps/held.py");

/// `web`, which runs `held.py` on its sockets.
fn web(sockets: &str, fields: &str) -> Server {
    web_of(HELD, sockets, fields)
}

/// The same of another program.
fn web_of(program: &str, sockets: &str, fields: &str) -> Server {
    let server = Server::with_apps(&format!(
        r#""web": (command: ["/usr/bin/python3", "@DIR@/held.py"], env: {{"VERSION": "1", "BREAK": "@DIR@"}},
             ready: After("300ms"), sockets: {{{sockets}}}, {fields})"#
    ));
    fs::write(server.path().join("held.py"), program).unwrap();
    server.started()
}

fn address(server: &Server, name: &str) -> SocketAddr {
    let shown = server.instance("web")["sockets"][name].clone();
    shown.as_str().unwrap().trim_start_matches("udp:").parse().unwrap()
}

/// The version and the process that answer.
fn who(address: SocketAddr) -> (String, i32) {
    let answer = http::request(address, "GET", "/", &[], b"");
    assert_eq!(answer.status, 200);
    let (version, pid) = answer.text().trim().split_once(' ').unwrap();
    (version.to_owned(), pid.parse().unwrap())
}

fn states(server: &Server) -> Vec<(String, String)> {
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let instances = server.app("web")["instances"].as_array().unwrap().clone();
    instances.iter().map(|one| (word(&one["name"]), word(&one["state"]))).collect()
}

#[test]
fn sockets_are_bound_passed_shown_and_kept() {
    let sockets =
        r#""a": "127.0.0.1:0", "b": (address: "unix:@DIR@/b.sock", mode: "0620", backlog: 16), "c": "udp:127.0.0.1:0""#;
    let server = web(sockets, "");
    server.wait_state("web", "ready");
    let shown = server.instance("web")["sockets"].clone();
    let path = server.path().join("b.sock");
    assert_eq!(shown["b"], format!("unix:{}", path.display()));
    server.until("it has them", |s| s.ok(&["logs", "web"]).contains("sockets a b c").then_some(()));
    assert_eq!(who(address(&server, "a")).0, "1");

    let ask = || {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    };
    ask();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o620);
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    udp.send_to(b"x", address(&server, "c")).unwrap();
    assert_eq!(udp.recv(&mut [0; 8]).unwrap(), 1);

    fs::remove_file(&path).unwrap();
    server.ok(&["restart", "web"]);
    ask();
    server.edit_config("mode: \"0620\"", "mode: \"0600\"");
    assert!(server.ok(&["reload"]).contains("sockets"));
    server
        .until("the new mode", |_| (fs::metadata(&path).unwrap().permissions().mode() & 0o777 == 0o600).then_some(()));
    assert_eq!(server.instance("web")["sockets"], shown, "the ports are kept");

    let port = address(&server, "a");
    server.ok(&["stop", "web"]);
    server.until("who rests refuses", |_| TcpStream::connect(port).is_err().then_some(()));
    server.until("its file is gone", |_| (!path.exists()).then_some(()));
    server.ok(&["start", "web"]);
    ask();
}

#[test]
fn a_taken_port_is_that_apps_error_alone() {
    let taken = free_address();
    let other = TcpListener::bind(taken).unwrap();
    let server =
        web(&format!("\"http\": \"{taken}\""), r#"restart: (first: "20ms", give_up: (restarts: 2, within: "5m"))"#);
    let app = server.wait_state("web", "failed");
    let why = app["instances"][0]["reason"].as_str().unwrap();
    let wanted = format!("socket \"http\": cannot listen on {taken}: somebody else listens there");
    assert!(why.contains(&wanted) && why.contains("supervisor.ron:3:"), "{why}");
    // A child that a test beside this one starts may have it still when we have not.
    rustix::net::shutdown(&other, rustix::net::Shutdown::Both).unwrap();
    drop(other);
    server.ok(&["restart", "web"]);
    assert_eq!(address(&server, "http"), taken);
    assert_eq!(who(taken).1, server.main_pid("web"));
}

#[test]
fn a_replacement_is_proven_beside_the_old_one_which_drains() {
    let server = web(r#""http": "127.0.0.1:0""#, "");
    server.wait_state("web", "ready");
    let (at, old) = (address(&server, "http"), server.main_pid("web"));
    let slow = thread::spawn(move || http::request(at, "GET", "/slow", &[], b"").status);
    server.ok(&["restart", "web"]);
    let new = server.main_pid("web");
    assert_ne!(new, old);
    assert_eq!(slow.join().unwrap(), 200);
    server.until("the old one has left", |s| (states(s) == [("web.1".into(), "ready".into())]).then_some(()));
    assert_eq!(who(at).1, new);
    let draining = server.events().into_iter().filter(|e| e["to"] == "draining").count();
    assert_eq!(draining, 1);

    fs::write(server.path().join("hang"), "").unwrap();
    // Time for it to say what it was passed.
    server.edit_config("After(\"300ms\")", "Tcp(addr: \"127.0.0.1:1\", within: \"10s\")");
    server.ok(&["reload"]);
    let said = server.fails(1, &["restart", "web"]);
    assert!(said.contains("not ready within 10s") && said.contains("the one before runs on"), "{said}");
    assert!(said.contains("web.1 | sockets http"), "{said}");
    assert_eq!((server.main_pid("web"), who(at).1), (new, new), "the old one was not touched");
    server.until("the other one is gone", |s| (states(s) == [("web.1".into(), "ready".into())]).then_some(()));
}

#[test]
fn who_stops_first_keeps_connections_waiting() {
    let server = web(r#""http": "127.0.0.1:0""#, "replace: StopFirst, stop: (timeout: \"20s\")");
    server.wait_state("web", "ready");
    let (at, old) = (address(&server, "http"), server.main_pid("web"));
    assert_eq!(who(at).1, old);
    let asking = thread::spawn(move || {
        loop {
            let answered = who(at).1;
            if answered != old {
                return answered;
            }
        }
    });
    server.ok(&["restart", "web"]);
    assert_eq!(asking.join().unwrap(), server.main_pid("web"));
    assert!(!server.events().iter().any(|e| e["to"] == "draining"));
}

/// They ask for them at once, at their first start.
#[test]
fn all_copies_serve_on_the_same_sockets() {
    for sockets in [r#""http": "127.0.0.1:0", "udp": "udp:127.0.0.1:0""#, r#""file": "unix:@DIR@/web.sock""#] {
        let server = web(sockets, "instances: 4");
        for again in [false, true] {
            if again {
                server.ok(&["stop", "web"]);
                server.ok(&["start", "web"]);
            }
            server.wait_state("web", "ready");
            let instances = server.app("web")["instances"].as_array().unwrap().clone();
            let held =
                instances.iter().map(|instance| fs::read_link(format!("/proc/{}/fd/3", instance["pid"])).unwrap());
            let held: BTreeSet<_> = held.collect();
            assert_eq!((instances.len(), held.len()), (4, 1), "{held:?}");
            if sockets.contains("http") {
                let answered = who(address(&server, "http")).1;
                assert!(instances.iter().any(|instance| instance["pid"] == answered));
            }
        }
        assert!(!server.events().iter().any(|event| event["to"] == "backoff"));
    }
}

#[test]
fn a_reload_with_another_port_and_several_copies_goes_one_by_one() {
    let (before, free) = (free_address(), free_address());
    let server = web(&format!("\"http\": \"{before}\""), "instances: 2");
    server.wait_state("web", "ready");
    assert_eq!(who(before).0, "1");
    server.edit_config(&format!("{before}\"}}"), &format!("{free}\"}}"));
    server.ok(&["reload"]);
    server.until("both are new", |s| {
        let instances = s.app("web")["instances"].as_array().unwrap().clone();
        (instances.len() == 2 && TcpStream::connect(before).is_err()).then_some(())
    });
    server.wait_state("web", "ready");
    assert_eq!(who(free).0, "1");
}

#[test]
fn a_release_is_tried_beside_the_old_one() {
    let at = free_address();
    // Whoever ends later than others begin is not ready before.
    let mut server = Server::with_apps(&format!(
        r#""web": (command: ["/usr/bin/python3", "held.py"], sockets: {{"http": "{at}"}}, ready: Http(url: "http://{at}/"),
             deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/secret"), settle: "200ms"))"#
    ));
    let repo = Repo::new(server.path().join("repo"), &[("held.py", HELD), ("VERSION", "1")]);
    server.start();
    assert_eq!(server.deploy_end(1)["state"], "live");
    server.wait_state("web", "ready");
    let old = server.main_pid("web");
    repo.commit(&[("held.py", "import time\ntime.sleep(0.1)\nraise SystemExit(3)\n"), ("VERSION", "2")], "bad");
    let bad = server.deliver("web", &repo);
    assert_eq!(bad["state"], "rolled_back", "{bad}");
    assert_eq!(who(at), ("1".to_owned(), old), "the old one was not touched");
    repo.commit(&[("held.py", HELD), ("VERSION", "3")], "good");
    assert_eq!(server.deliver("web", &repo)["state"], "live");
    server.until("the old one has left", |s| (states(s).len() == 1).then_some(()));
    let (version, pid) = who(at);
    assert_eq!((version.as_str(), pid), ("3", server.main_pid("web")));
    assert_ne!(pid, old);
}

#[test]
fn what_a_killed_supervisor_left_is_replaced_on_its_port() {
    let mut server = web(r#""http": "127.0.0.1:0""#, "");
    server.wait_state("web", "ready");
    let at = address(&server, "http");
    // Which port the kernel has chosen may be written down, and is still held then.
    server.edit_config("127.0.0.1:0\"}", &format!("{at}\"}}"));
    server.ok(&["reload"]);
    assert_eq!((address(&server, "http"), &server.app("web")["state"]), (at, &"ready".into()));
    let old = server.main_pid("web");
    server.kill();
    server.edit_config("\"VERSION\": \"1\"", "\"VERSION\": \"2\"");
    server.start();
    let new = server.wait_new_pid("web", old);
    server.until("the old one has left", |s| (states(s).len() == 1).then_some(()));
    assert_eq!(who(at), ("2".into(), new));
}

/// As Node does with a path that it has bound itself.
#[test]
fn an_app_that_removes_its_socket_at_its_end_does_no_harm() {
    let removing =
        HELD.replace("        break\n", "        os.unlink(os.environ[\"BREAK\"] + \"/web.sock\")\n        break\n");
    assert_ne!(removing, HELD);
    let server = web_of(&removing, r#""http": "unix:@DIR@/web.sock""#, "");
    server.wait_state("web", "ready");
    let path = server.path().join("web.sock");
    for _ in 0..3 {
        server.ok(&["restart", "web"]);
        server.until("the old one has left", |s| (states(s).len() == 1).then_some(()));
        let asked = server.until("somebody is connected", |_| UnixStream::connect(&path).ok());
        (&asked).write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        (&asked).read_to_string(&mut text).unwrap();
        assert!(text.contains(&format!("1 {}", server.main_pid("web"))), "{text}");
    }
    server.ok(&["stop", "web"]);
    server.until("nothing is left", |s| (!path.exists() && !s.path().join("web.sock.held").exists()).then_some(()));
}

/// Two that run `held.py`, on one port each.
fn two_on(web: SocketAddr, api: SocketAddr) -> String {
    let app = |name: &str, at: SocketAddr| {
        format!(
            r#""{name}": (command: ["/usr/bin/python3", "@DIR@/held.py"], env: {{"VERSION": "{name}", "BREAK": "@DIR@"}},
                 ready: After("300ms"), sockets: {{"http": "{at}"}}),"#
        )
    };
    format!(r#"(state_dir: "@DIR@/state", apps: {{{} {}}})"#, app("web", web), app("api", api))
}

#[test]
fn a_reload_may_give_the_port_of_one_app_to_another_one() {
    let [one, two, three] = [free_address(), free_address(), free_address()];
    let mut server = Server::new(&two_on(one, two));
    fs::write(server.path().join("held.py"), HELD).unwrap();
    server.start();
    let serves = |server: &Server, at: SocketAddr, name: &str| {
        server.until(&format!("{name} on {at}"), |_| {
            TcpStream::connect(at).ok()?;
            (who(at).0 == name).then_some(())
        });
    };
    serves(&server, one, "web");
    serves(&server, two, "api");
    // One process each, and which.
    let alone = |server: &Server, name: &str| {
        let instances = server.app(name)["instances"].as_array().unwrap().clone();
        let [one] = instances.as_slice() else { return None };
        (one["state"] == "ready").then(|| one["pid"].as_i64()).flatten()
    };
    for (web, api) in [(two, one), (one, three), (three, two)] {
        let before = ["web", "api"].map(|name| server.until("it is ready", |s| alone(s, name)));
        server.write_config(&two_on(web, api));
        server.ok(&["reload"]);
        for (name, before) in ["web", "api"].into_iter().zip(before) {
            server.until("another process", |s| alone(s, name).filter(|pid| *pid != before));
        }
        serves(&server, web, "web");
        serves(&server, api, "api");
    }
    server.write_config(&two_on(three, two).replace("\"web\"", "\"other\""));
    server.ok(&["reload"]);
    serves(&server, three, "other");
}
