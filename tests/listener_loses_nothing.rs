//! The listener may die at any moment: whoever connects is served, and what was answered is kept. It
//! holds nothing that is worth breaking in for.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::MetadataExt,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Sender, channel},
    },
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use serde_json::Value;
use server::{LIMIT, Repo, SECRET, Server, sign, unique};

const SITE: &str =
    r#""site": (deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/secret")))"#;
/// The uid of listeners under root.
const LISTENER: u32 = 60900;
const SENDERS: usize = 3;
const KILLS: usize = 15;

fn server() -> (Server, Repo) {
    let server = Server::with_apps(SITE);
    let repo = Repo::new(server.path().join("repo"), &[("VERSION", "1")]);
    (server.started(), repo)
}

fn listener(server: &Server) -> Option<i32> {
    let pid = server.status()["supervisor"]["listeners"][0]["pid"].as_i64()?;
    i32::try_from(pid).ok()
}

/// Delivers once: the id of the delivery, or nothing where the listener died before its answer. That
/// nobody takes the connection is a failure.
fn deliver(address: SocketAddr, body: &str) -> Option<i64> {
    let mut stream = TcpStream::connect(address).expect("the connection is taken");
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let (id, signature) = (unique(), sign(SECRET, body.as_bytes()));
    let headers = [
        ("connection", "close"),
        ("content-type", "application/json"),
        ("x-github-event", "push"),
        ("x-github-delivery", &id),
        ("x-hub-signature-256", &signature),
    ];
    stream.write_all(&http::head("POST", "/hooks/site", &headers, Some(body.len()))).ok()?;
    stream.write_all(body.as_bytes()).ok()?;
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    // A machine that is too busy to keep it in time says so: it is to come again.
    if head.starts_with("HTTP/1.1 503") {
        return None;
    }
    assert!(head.starts_with("HTTP/1.1 20"), "{answer}");
    // A body cut short by the kill was no answer.
    let body: Value = read.ok().and_then(|_| serde_json::from_str(body).ok())?;
    body["delivery"].as_i64()
}

fn deliver_until(stop: &AtomicBool, address: SocketAddr, bodies: &[String], answered: &Sender<i64>) {
    for body in bodies.iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
        if let Some(id) = deliver(address, body) {
            answered.send(id).unwrap();
        }
    }
}

#[test]
fn no_connection_is_refused_and_no_answer_is_forgotten() {
    let (server, repo) = server();
    let address = server.address("hooks");
    let bodies = [repo.push_body(), repo.push_of("refs/heads/dev", &repo.head())];
    let (stop, (answered, answers)) = (AtomicBool::new(false), channel());
    let mut ids = BTreeSet::new();
    thread::scope(|scope| {
        for _ in 0..SENDERS {
            let answered = answered.clone();
            scope.spawn(|| {
                let answered = answered;
                deliver_until(&stop, address, &bodies, &answered);
            });
        }
        for _ in 0..KILLS {
            let pid = server.until("a listener", listener);
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            // Once for each sender something came through the next one.
            server.until("another listener", |s| listener(s).filter(|new| *new != pid));
            ids.extend(answers.try_iter());
            ids.insert(answers.recv_timeout(LIMIT).expect("the next listener answers"));
        }
        stop.store(true, Ordering::Relaxed);
    });
    ids.extend(answers.try_iter());
    let kept = server.json(&["deliveries", "-n", "1000000"]);
    let kept: BTreeSet<i64> = kept.as_array().unwrap().iter().map(|d| d["id"].as_i64().unwrap()).collect();
    let lost: Vec<_> = ids.difference(&kept).collect();
    assert!(lost.is_empty(), "{lost:?} of {} were answered and are not kept", ids.len());
    let status = server.status();
    assert!(status["supervisor"]["listeners"][0]["restarts"].as_u64() >= Some(KILLS as u64), "{status}");
}

#[test]
fn the_listener_has_no_rights() {
    let (server, _repo) = server();
    // Once it answers it has given up what it had.
    assert_eq!(http::request(server.address("hooks"), "GET", "/nothing", &[], b"").status, 404);
    let pid = server.until("a listener", listener);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(field("NoNewPrivs"), ["1"]);
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert!(!geteuid().is_root() || field(set) == ["0000000000000000"], "{set}: {:?}", field(set));
    }
    if geteuid().is_root() {
        for ids in ["Uid", "Gid"] {
            assert_eq!(field(ids), vec![LISTENER.to_string(); 4]);
        }
        assert!(field("Groups").is_empty(), "{:?}", field("Groups"));
    }
    // What is not dumpable is root's in /proc, whoever runs it.
    assert_eq!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0);
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    // As many as the supervisor, up to a number.
    let own = fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let own: u64 = own.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_eq!(limit("Max open files"), vec![own.min(16 * 1024).to_string(); 2]);
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        assert!(!geteuid().is_root(), "root may look");
        return;
    };
    let names = open.map(|fd| fs::read_link(fd.unwrap().path()).unwrap_or_default());
    let files: Vec<_> = names.filter(|name| name.starts_with(server.path().join("state"))).collect();
    assert!(files.is_empty(), "it holds {files:?}");
}
