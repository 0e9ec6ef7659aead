//! Ten restarts in a row under load lose no request, for apps that know nothing of everhook: gunicorn,
//! a Node app that listens on a descriptor, and one that calls `listen(port)`; nor do deploys, whatever is
//! wrong with what they bring. DESIGN: none unanswered or cut, after one retry on a fresh connection where
//! a reused idle one was closed before a byte of answer.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    collections::BTreeSet,
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use server::{LIMIT, Repo, Server, free_address, text};

const RESTARTS: usize = 10;
/// Clients that keep their connection, and ask once a second each.
const KEEPING: u64 = 200;
/// Clients that connect anew for each request: 200 a second.
const FRESH: u64 = 20;
const RATE: u64 = 200;
/// Each load takes the whole machine: one after the other.
static MACHINE: Mutex<()> = Mutex::new(());

/// The app of this entry, whose socket is on a port that is free now.
fn app(name: &str, entry: &str) -> (Server, SocketAddr) {
    let at = free_address();
    let entry = entry.replace("@PORT@", &at.port().to_string()).replace("@PRELOAD@", "@DIR@/everhook.cjs");
    let server = Server::with_apps(&format!("\"{name}\": (sockets: {{\"http\": \"{at}\"}}, {entry})"));
    let release = include_str!("support/apps/release.cjs");
    Repo::new(server.path().join("repo"), &[("kind", "good"), ("release.cjs", release)]);
    for (file, content) in [
        ("everhook.cjs", include_str!("../contrib/node/everhook.cjs")),
        ("plain.cjs", include_str!("support/apps/plain.cjs")),
        ("on_fd.cjs", include_str!("support/apps/on_fd.cjs")),
        ("wsgi.py", include_str!("support/apps/wsgi.py")),
    ] {
        fs::write(server.path().join(file), content).unwrap();
    }
    let server = server.started();
    server.wait_state(name, "ready");
    (server, at)
}

/// What a client has seen.
#[derive(Debug, Default)]
struct Seen {
    answers: u64,
    retries: u64,
    lost: Vec<String>,
    pids: BTreeSet<String>,
}

/// One request on this connection; `Ok(None)`: it was closed before a byte of an answer.
fn ask(stream: &mut TcpStream, keep: bool) -> Result<Option<(String, bool)>, String> {
    let connection = if keep { "keep-alive" } else { "close" };
    let request = format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n\r\n");
    let closed = |e: &std::io::Error| matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
    match stream.write_all(request.as_bytes()) {
        Err(e) if closed(&e) => return Ok(None),
        other => other.map_err(|e| e.to_string())?,
    }
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) if read.is_empty() => return Ok(None),
            Err(e) if read.is_empty() && closed(&e) => return Ok(None),
            // A machine that was put to sleep meanwhile.
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Ok(0) => return Err(format!("cut: {:?}", String::from_utf8_lossy(&read))),
            Ok(n) => read.extend_from_slice(&buffer[..n]),
            Err(e) => return Err(format!("{e} after {:?}", String::from_utf8_lossy(&read))),
        }
        let answer = String::from_utf8_lossy(&read).into_owned();
        let Some((head, body)) = answer.split_once("\r\n\r\n") else { continue };
        let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
        if (chunked && !body.ends_with("0\r\n\r\n")) || !body.contains('\n') {
            continue;
        }
        let Some(body) = body.lines().find(|line| line.starts_with("ok ")) else {
            return Err(format!("another answer: {answer:?}"));
        };
        let stays = keep && !head.to_lowercase().contains("connection: close");
        return if head.starts_with("HTTP/1.1 200") { Ok(Some((body.to_owned(), stays))) } else { Err(answer) };
    }
}

fn connect(at: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(at).map_err(|e| format!("connect: {e}"))?;
    stream.set_read_timeout(Some(LIMIT)).map_err(|e| e.to_string())?;
    Ok(stream)
}

/// Whoever answers now, on a connection of its own.
fn answer(at: SocketAddr) -> String {
    let answer = ask(&mut connect(at).unwrap(), false).unwrap();
    answer.expect("it is answered").0
}

/// Asks at its pace until it shall end.
fn client(at: SocketAddr, keep: bool, end: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut kept: Option<TcpStream> = None;
    let pace = Duration::from_millis(1000 * if keep { KEEPING } else { FRESH } / RATE);
    let mut next = Instant::now();
    while !end.load(Ordering::Relaxed) {
        let mut reused = kept.is_some();
        let answer = loop {
            let stream = kept.take().map_or_else(|| connect(at), Ok);
            let result = stream.and_then(|mut stream| Ok((ask(&mut stream, keep)?, stream)));
            match result {
                Ok((None, _)) if reused => {
                    (reused, seen.retries) = (false, seen.retries + 1);
                }
                Ok((None, _)) => break Err("closed without an answer".to_owned()),
                Ok((Some(answer), stream)) => break Ok((answer, stream)),
                Err(error) => break Err(error),
            }
        };
        match answer {
            Ok(((body, stays), stream)) => {
                seen.answers += 1;
                seen.pids.insert(body);
                kept = stays.then_some(stream);
            }
            Err(error) => seen.lost.push(error),
        }
        next += pace;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    seen
}

fn load(at: SocketAddr, end: &Arc<AtomicBool>) -> Vec<JoinHandle<Seen>> {
    let start = |n: u64| {
        let end = Arc::clone(end);
        thread::spawn(move || {
            // Spread over their first round.
            thread::sleep(Duration::from_millis(n * 5 % 1000));
            client(at, n < KEEPING, &end)
        })
    };
    (0..KEEPING + FRESH).map(start).collect()
}

/// A load generator of others, for as long as nobody ends it.
fn wrk(at: SocketAddr) -> Child {
    let mut wrk = Command::new("wrk");
    wrk.args(["-t1", "-c8", "-d120s", "--timeout", "60s"]).arg(format!("http://{at}/"));
    wrk.stdout(Stdio::piped()).spawn().expect("Debian's wrk is there")
}

/// `foreign`: `wrk` counts as well.
fn loses_nothing(server: &Server, name: &str, at: SocketAddr, foreign: bool) {
    let answered = under_load(server, name, at, foreign, || {
        let mut pids = BTreeSet::from([server.main_pid(name)]);
        let mut answered = BTreeSet::new();
        for _ in 0..RESTARTS {
            server.ok(&["restart", name]);
            pids.insert(server.main_pid(name));
            // One that is ready by time alone may not have got so far.
            server.until("another process answers", |_| answered.insert(answer(at)).then_some(()));
        }
        assert_eq!(pids.len(), RESTARTS + 1, "each restart had a process of its own");
    });
    assert!(answered > RESTARTS / 2, "answers of {answered} processes");
}

/// Does something while clients ask, none of whom may lose a request; how many processes answered.
fn under_load(server: &Server, name: &str, at: SocketAddr, foreign: bool, work: impl FnOnce()) -> usize {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let end = Arc::new(AtomicBool::new(false));
    let clients = load(at, &end);
    let wrk = foreign.then(|| wrk(at));
    work();
    end.store(true, Ordering::Relaxed);
    let seen: Vec<Seen> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let lost: Vec<_> = seen.iter().flat_map(|seen| &seen.lost).collect();
    let answers: u64 = seen.iter().map(|seen| seen.answers).sum();
    let retries: u64 = seen.iter().map(|seen| seen.retries).sum();
    let answered: BTreeSet<_> = seen.iter().flat_map(|seen| seen.pids.clone()).collect();
    println!("{name}: {answers} answers of {} processes, {retries} retries", answered.len());
    assert!(lost.is_empty(), "{} of {answers} lost: {:?}\n{}", lost.len(), &lost[..lost.len().min(5)], server.log());
    assert!(answers > 1000, "{answers} answers of {answered:?}");
    if let Some(wrk) = wrk {
        // It tells what it counted when it is interrupted.
        Command::new("kill").args(["-INT", &wrk.id().to_string()]).status().unwrap();
        let said = text(&wrk.wait_with_output().unwrap());
        println!("{said}");
        assert!(said.contains("requests in") && !said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    }
    answered.len()
}

#[test]
fn a_python_app_under_gunicorn() {
    let (server, at) = app(
        "web",
        r#"directory: "@DIR@", stop: (drain: "20s"), command: ["/usr/bin/gunicorn", "--workers", "2", "--graceful-timeout", "20", "wsgi:app"], ready: Notify"#,
    );
    loses_nothing(&server, "web", at, true);
}

#[test]
fn a_node_app_on_a_descriptor() {
    let (server, at) = app(
        "web",
        r#"directory: "@DIR@", stop: (drain: "20s"), command: ["node", "on_fd.cjs"], ready: After("500ms")"#,
    );
    loses_nothing(&server, "web", at, false);
}

#[test]
fn an_unmodified_node_app() {
    let (server, at) = app(
        "web",
        r#"directory: "@DIR@", stop: (drain: "20s"), command: ["node", "plain.cjs"], port: @PORT@, env: {"NODE_OPTIONS": "--require @PRELOAD@"}, ready: Http(url: "http://127.0.0.1:@PORT@/")"#,
    );
    loses_nothing(&server, "web", at, true);
}

/// Good ones, one that its check refuses, one that exits at once, one that never answers, and one that
/// becomes unwell while it is proven: whatever becomes of a deploy, everybody is answered.
#[test]
fn deploys_whatever_they_bring() {
    let (server, at) = app(
        "web",
        r#"command: ["node", "release.cjs"], port: @PORT@, stop: (timeout: "8s", drain: "20s"),
           env: {"NODE_OPTIONS": "--require @PRELOAD@"}, ready: Http(url: "http://127.0.0.1:@PORT@/healthz", within: "20s"),
           live: (probe: Http(url: "http://127.0.0.1:@PORT@/healthz"), every: "100ms", timeout: "10s"),
           deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], check: ["! grep -q refused kind"], settle: "1s")"#,
    );
    let repo = Repo { path: server.path().join("repo") };
    let answered = under_load(&server, "web", at, true, || {
        for (kind, state, reason) in [
            ("good", "live", ""),
            ("refused", "failed", "`! grep -q refused kind` exited with 1"),
            ("exits", "rolled_back", "exited with 3"),
            ("sickens", "rolled_back", "500"),
            ("hangs", "rolled_back", "not ready within 20s"),
            ("good", "live", ""),
        ] {
            let before = server.main_pid("web");
            repo.commit(&[("kind", kind)], kind);
            server.cli(&["deploy", "web"]);
            let deploy = server.json(&["history", "-n", "1"])[0].clone();
            let said = deploy["reason"].as_str().unwrap_or_default();
            assert!(deploy["state"] == state && said.contains(reason), "{kind}: {deploy}");
            assert_eq!(server.main_pid("web") == before, state != "live", "{kind}");
        }
    });
    assert!(answered >= 3, "answers of {answered} processes");
}

/// What is under way is answered, and a connection that stayed open is good for one request more.
#[test]
fn the_preload_answers_what_was_begun() {
    let (server, at) = app(
        "web",
        r#"directory: "@DIR@", stop: (drain: "20s"), command: ["node", "plain.cjs"], port: @PORT@, env: {"NODE_OPTIONS": "--require @PRELOAD@"}, ready: After("500ms")"#,
    );
    let old = format!("ok {}", server.main_pid("web"));
    let mut idle = connect(at).unwrap();
    assert_eq!(ask(&mut idle, true).unwrap(), Some((old.clone(), true)));
    server.ok(&["restart", "web", "--no-wait"]);
    let mut slow = connect(at).unwrap();
    slow.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    server.until("the old one drains", |s| s.events().iter().any(|e| e["to"] == "draining").then_some(()));
    let mut answer = [0; 2048];
    let n = slow.read(&mut answer).unwrap();
    assert!(String::from_utf8_lossy(&answer[..n]).starts_with("HTTP/1.1 200"), "{:?}", &answer[..n]);
    // It may not have heard yet that it is to leave.
    server.until("the old one asks to close", |_| {
        let (body, stays) = ask(&mut idle, true).unwrap().expect("it is answered");
        assert_eq!(body, old);
        (!stays).then_some(())
    });
    drop((slow, idle));
    server.until("it has left", |s| (s.app("web")["instances"].as_array().unwrap().len() == 1).then_some(()));
}
