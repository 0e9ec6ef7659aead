//! From the push to the release that runs, beside the floor of the machine: `cargo bench --bench deploys`.
//!
//! Accepted deliveries stand beside one commit of the same row and one bare round trip of hyper, a push
//! beside the shell script that teams had before, a rollback beside the start of the program alone.
//! Both sides take turns, so that a busy machine is busy for both.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/http.rs"]
mod http;
mod programs;
#[path = "../tests/support/server.rs"]
mod server;

use std::{
    convert::Infallible,
    fs::{self, File},
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::Mode,
    unistd::mkfifo,
};
use programs::{Programs, now};
use rusqlite::Connection;
use serde_json::json;
use server::{Repo, SECRET, Server, sign};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "commits") {
        // This program once more, with the slower fsync preloaded.
        println!("{}", commits_alone(Path::new(&args[1])));
        return;
    }
    // `cargo test --benches` only builds.
    if args.iter().any(|arg| arg == "--test") {
        return;
    }
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str()));
    let programs = Programs::compile(&[("probe", &["-static"]), ("slow_sync", &["-shared", "-fPIC"])]);
    if wants("accepted") {
        accepted(&programs);
    }
    if wants("group") {
        group(&programs);
    }
    if wants("push") {
        push_to_live(&programs);
    }
    if wants("rollback") {
        rollback(&programs);
    }
    if wants("history") {
        history();
    }
}

/// The words before a command whose fsyncs are slower by 1 ms and are counted in `count`.
fn slowly(programs: &Programs, count: &Path) -> [String; 4] {
    let shim = programs.path("slow_sync");
    let count = count.display();
    ["env".into(), format!("LD_PRELOAD={}", shim.display()), format!("COUNT={count}"), "PAUSE_US=1000".into()]
}

fn percentile(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let place = ((times.len() - 1) as f64 * share) as usize;
    times[place].as_secs_f64() * 1e3
}

fn row(what: &str, ours: f64, floor: f64, limit: f64) {
    println!("{what:<58} {ours:>9.3} ms  floor {floor:>9.3} ms  ratio {:>6.2}  (at most {limit})", ours / floor);
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let begun = Instant::now();
    let done = work();
    (begun.elapsed(), done)
}

// Deliveries.

/// An app whose first deploy stands still in its check, so that what comes then is accepted and waits.
fn waiting(prefix: &[&str]) -> Server {
    let mut server = Server::with_apps(
        r#""site": (command: ["/bin/sleep", "1000"], deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")],
             secret: File("@DIR@/secret"), check: ["exec tail -f /dev/null"], timeout: "1h"))"#,
    );
    Repo::new(server.path().join("repo"), &[("a", "1")]);
    server.start_as(prefix);
    server.until("the first deploy checks", |s| {
        let first = s.json(&["history"]);
        (first[0]["state"] == "checking").then_some(())
    });
    // Another program that gets every event is not what is measured.
    server.unfollow();
    server
}

/// A push of 7 KB that nobody sent before: headers and body.
fn push(number: usize) -> (Vec<u8>, Vec<u8>) {
    let commit = format!("{number:040x}");
    let body = format!(
        "{{\"ref\":\"refs/heads/main\",\"after\":\"{commit}\",\"before\":\"{zero}\",\"head_commit\":{{\"id\":\"{commit}\"}},\
         \"repository\":{{\"full_name\":\"team/site\",\"clone_url\":\"https://forge/team/site.git\"}},\"commits\":[],\
         \"pad\":\"{pad}\"}}",
        zero = "0".repeat(40),
        pad = "x".repeat(6700)
    );
    let (id, signature) = (format!("bench-{number}"), sign(SECRET, body.as_bytes()));
    let headers = [
        ("Content-Type", "application/json"),
        ("X-GitHub-Event", "push"),
        ("X-GitHub-Delivery", &id),
        ("X-Hub-Signature-256", &signature),
    ];
    (http::head("POST", "/hooks/site", &headers, Some(body.len())), body.into_bytes())
}

fn ask(client: &mut http::Client, head: &[u8], body: &[u8]) {
    let whole = [head, body].concat();
    assert!(client.send(&whole));
    let answer = client.answer(false);
    assert_eq!(answer.status, 202, "{}", answer.text());
}

/// The tables of the product's store.
const SCHEMA: &str = include_str!("../src/supervisor/ledger/schema.sql");

/// One commit of the rows that a delivery and its deploy are, in a store like the product's.
struct Commits {
    store: Connection,
}

impl Commits {
    fn new(folder: &Path) -> Self {
        let store = Connection::open(folder.join("floor.db")).unwrap();
        store
            .execute_batch(&format!(
                "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
                 PRAGMA wal_autocheckpoint=4000; {SCHEMA}"
            ))
            .unwrap();
        Self { store }
    }

    fn one(&self, number: usize, body: &[u8]) {
        let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
            self.store.prepare_cached(sql).unwrap().execute(values).unwrap();
        };
        let (id, commit) = (format!("bench-{number}"), format!("{number:040x}"));
        run("BEGIN", &[]);
        run(
            "INSERT INTO deliveries (sender_id, at, app, dialect, event, ref, \"commit\", address, state)
             VALUES (?1, 0, 'site', 'github', 'push', 'refs/heads/main', ?2, '127.0.0.1', 'accepted')",
            &[&id, &commit],
        );
        run("INSERT INTO delivery_apps VALUES (last_insert_rowid(), 'site')", &[]);
        run("INSERT INTO bodies VALUES (last_insert_rowid(), ?1)", &[&body]);
        run(
            "INSERT INTO deploys (app, state, \"commit\", ref, by, delivery, queued_at, attempts)
             VALUES ('site', 'queued', ?1, 'refs/heads/main', '{\"kind\":\"delivery\"}', last_insert_rowid(), 0, 0)",
            &[&commit],
        );
        run("COMMIT", &[]);
    }
}

/// p50 of a commit, in ms.
fn commits_alone(folder: &Path) -> f64 {
    let commits = Commits::new(folder);
    let (_, body) = push(0);
    let mut times: Vec<Duration> = (0..700).map(|n| timed(|| commits.one(n, &body)).0).collect();
    percentile(&mut times[300..], 0.5)
}

/// The same in a process of its own, behind these words.
fn commits_apart(prefix: &[&str], folder: &Path) -> f64 {
    let mut command = Command::new(prefix[0]);
    command.args(&prefix[1..]).arg(std::env::current_exe().unwrap()).arg("commits").arg(folder);
    String::from_utf8(command.output().unwrap().stdout).unwrap().trim().parse().unwrap()
}

/// A server of hyper alone that reads the body and says 202.
fn bare_hyper() -> SocketAddr {
    async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let _ = request.into_body().collect().await;
        let mut response = Response::new(Full::new(Bytes::from_static(b"{}")));
        *response.status_mut() = hyper::StatusCode::ACCEPTED;
        Ok(response)
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::task::spawn_local(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service_fn(answer))
                        .await;
                });
            }
        });
    });
    address
}

/// Request to durable 202 on one connection; then the same with every fsync 1 ms slower.
fn accepted(programs: &Programs) {
    const WARM: usize = 300;
    let server = waiting(&[]);
    let mut client = http::Client::connect(server.address("hooks"));
    let mut bare = http::Client::connect(bare_hyper());
    let commits = Commits::new(server.path());
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for number in 1..WARM + 1000 {
        let (head, body) = push(number);
        let (whole, ()) = timed(|| ask(&mut client, &head, &body));
        let (commit, ()) = timed(|| commits.one(number, &body));
        let (trip, ()) = timed(|| ask(&mut bare, &head, &body));
        if number >= WARM {
            ours.push(whole);
            floor.push(commit + trip);
        }
    }
    row("request to durable 202, one connection, p50", percentile(&mut ours, 0.5), percentile(&mut floor, 0.5), 2.0);
    drop(server);

    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let slowly = slowly(programs, &dir.path().join("count"));
    let slowly: Vec<&str> = slowly.iter().map(String::as_str).collect();
    let commit = commits_apart(&slowly, dir.path());
    let server = waiting(&slowly);
    let mut client = http::Client::connect(server.address("hooks"));
    let mut ours: Vec<Duration> = (1..700)
        .map(|number| {
            let (head, body) = push(number);
            timed(|| ask(&mut client, &head, &body)).0
        })
        .collect();
    row("the same with a slower fsync, beside a commit, p50", percentile(&mut ours[300..], 0.5), commit, 1.3);
}

/// 64 connections: how many fsyncs a delivery costs, and how many are durable a second.
fn group(programs: &Programs) {
    const CONNECTIONS: usize = 64;
    const EACH: usize = 200;
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let count = dir.path().join("count");
    let slowly = slowly(programs, &count);
    let slowly: Vec<&str> = slowly.iter().map(String::as_str).collect();
    let commit = commits_apart(&slowly, dir.path());
    let server = waiting(&slowly);
    let address = server.address("hooks");
    let message = |number: usize| {
        let (head, body) = push(1 + number);
        [head, body].concat()
    };
    let mut messages = (0..CONNECTIONS * EACH).map(message).collect::<Vec<_>>().into_iter();
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| http::Client::connect(address)).collect();
    let before = fs::metadata(&count).unwrap().len();
    // One thread, so that those who are measured have the processors.
    let (all, ()) = timed(|| {
        let mut waiting: Vec<usize> = (0..CONNECTIONS).collect();
        waiting.iter().for_each(|n| assert!(clients[*n].send(&messages.next().unwrap())));
        while !waiting.is_empty() {
            let mut fds: Vec<_> = waiting.iter().map(|n| PollFd::new(clients[*n].as_fd(), PollFlags::POLLIN)).collect();
            poll(&mut fds, PollTimeout::NONE).unwrap();
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap()).collect();
            let mut ready = ready.into_iter();
            waiting.retain(|n| {
                if !ready.next().unwrap() {
                    return true;
                }
                let answer = clients[*n].answer(false);
                assert_eq!(answer.status, 202, "{}", answer.text());
                let next = messages.next();
                assert!(next.iter().all(|message| clients[*n].send(message)));
                next.is_some()
            });
        }
    });
    #[allow(clippy::cast_precision_loss)]
    let (deliveries, syncs) = ((CONNECTIONS * EACH) as f64, (fs::metadata(&count).unwrap().len() - before) as f64);
    let (rate, alone) = (deliveries / all.as_secs_f64(), 1e3 / commit);
    println!("64 connections: {:.3} fsyncs a delivery  (at most 0.1)", syncs / deliveries);
    println!(
        "64 connections, slower fsync: {rate:.0} durable a second, {alone:.0} commits one after another: {:.1} times  (at least 10)",
        rate / alone
    );
}

// Deploys.

/// Where the program tells that it runs.
struct Told {
    path: PathBuf,
    lines: BufReader<File>,
}

impl Told {
    fn new(folder: &Path) -> Self {
        let path = folder.join("told");
        mkfifo(&path, Mode::from_bits_truncate(0o666)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let lines = BufReader::new(File::options().read(true).write(true).open(&path).unwrap());
        Self { path, lines }
    }

    /// Waits for the next program that says it runs: its name, its pid, and the monotonic clock in ns.
    fn next(&mut self) -> (String, i32, u64) {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        (words[0].to_owned(), words[1].parse().unwrap(), words[2].parse().unwrap())
    }

    fn wait(&mut self, name: &str) -> (i32, u64) {
        loop {
            let (who, pid, at) = self.next();
            if who == name {
                return (pid, at);
            }
        }
    }
}

/// `site` with the program that tells, live at its first commit.
fn deployed(programs: &Programs) -> (Server, Repo, Told) {
    let mut server = Server::with_apps(&format!(
        r#""site": (command: ["{probe}", "site", "@DIR@/told"], ready: Immediate, deploy: (repo: "@DIR@/repo",
             on: [Push(branch: "main")], secret: File("@DIR@/secret"), settle: "0s"))"#,
        probe = programs.path("probe").display()
    ));
    let mut told = Told::new(server.path());
    let repo = Repo::new(server.path().join("repo"), &[("VERSION", "1"), ("src/app.js", "the app")]);
    server.start();
    told.wait("site");
    assert_eq!(server.deploy_end(1)["state"], "live");
    (server, repo, told)
}

/// What teams had: fetch, check out, kill, start.
const SCRIPT: &str = "cd \"$1\" && git fetch -q origin && git checkout -q --detach origin/main\n\
     kill \"$(cat ../pid)\" 2> /dev/null; \"$2\" script \"$3\" & echo $! > ../pid\n";

/// From the push to the new release's process, and to the recorded end, beside the shell script.
fn push_to_live(programs: &Programs) {
    let (server, repo, mut told) = deployed(programs);
    // A forge knows it too.
    let listener = server.address("hooks");
    let work = server.path().join("work");
    repo.git(&["clone", "-q", repo.path.to_str().unwrap(), work.to_str().unwrap()]);
    fs::write(server.path().join("script.sh"), SCRIPT).unwrap();
    fs::write(server.path().join("pid"), "").unwrap();
    let (mut ours, mut ends, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = None;
    for turn in 0..33 {
        repo.commit(&[("VERSION", &format!("{turn}"))], "next");
        let begun = now();
        let script = Command::new("sh")
            .arg(server.path().join("script.sh"))
            .args([&work, &programs.path("probe"), &told.path])
            .stdin(Stdio::null())
            .status();
        assert!(script.unwrap().success());
        let (pid, at) = told.wait("script");
        last = Some(pid);
        let one = Duration::from_nanos(at - begun);

        let body = repo.push_body();
        let begun = now();
        let (status, answer) = Server::tell_at(listener, "/hooks/site", "push", &server::unique(), &body);
        assert_eq!(status, 202, "{answer}");
        let other = Duration::from_nanos(told.wait("site").1 - begun);
        let id = answer["deploys"][0]["id"].as_i64().unwrap();
        let of = json!(format!("deploy {id}"));
        server.wait_event(|event| event["detail"] == of && event["to"] == "live");
        let end = Duration::from_nanos(now() - begun);
        assert_eq!(server.deploy_end(id)["state"], "live");
        if turn >= 3 {
            floor.push(one);
            ours.push(other);
            ends.push(end);
        }
    }
    if let Some(pid) = last {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
    }
    let floor = percentile(&mut floor, 0.5);
    row("push to running, beside the shell script, p50", percentile(&mut ours, 0.5), floor, 1.25);
    row("push to the recorded end (told by `events`), p50", percentile(&mut ends, 0.5), floor, f64::NAN);
}

/// From the command to the old release's process, beside the start of that program alone.
fn rollback(programs: &Programs) {
    let (server, repo, mut told) = deployed(programs);
    repo.commit(&[("VERSION", "2")], "second");
    let second = server.deliver("site", &repo);
    told.wait("site");
    let first = server.json(&["history"])[1]["release"].as_str().unwrap().to_owned();
    let releases = [first, second["release"].as_str().unwrap().to_owned()];
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for turn in 0..20 {
        let begun = now();
        let mut alone = Command::new(programs.path("probe")).arg("alone").arg(&told.path).spawn().unwrap();
        floor.push(Duration::from_nanos(told.wait("alone").1 - begun));
        alone.kill().unwrap();
        alone.wait().unwrap();
        let begun = now();
        server.ok(&["rollback", "site", "--to", &releases[turn % 2]]);
        ours.push(Duration::from_nanos(told.wait("site").1 - begun));
    }
    let (ours, floor) = (percentile(&mut ours, 0.5), percentile(&mut floor, 0.5));
    println!(
        "{:<58} {ours:>9.3} ms  own start {floor:>8.3} ms  {:>6.1} ms more  (at most 100)",
        "rollback: command to the old release running, p50",
        ours - floor
    );
}

/// `everhook history` with 10 deploys and with 10,000, of ten apps.
fn history() {
    let apps: String = (0..10).map(|n| format!("\"a{n}\": (command: [\"/bin/sleep\", \"1000\"]),\n")).collect();
    let mut took = [10, 10_000].map(|count: usize| {
        let mut server = Server::with_apps(&apps).started();
        assert!(server.stop().success());
        let store = Connection::open(server.path().join("state/everhook.db")).unwrap();
        store.execute_batch("BEGIN").unwrap();
        for number in 0..count {
            let app = format!("a{}", number % 10);
            store
                .execute(
                    "INSERT INTO deploys (app, state, \"commit\", by, queued_at, ended_at, attempts)
                     VALUES (?1, 'live', ?2, '{\"kind\":\"first\"}', 0, 1000, 1)",
                    (app, format!("{:040x}", number + 1)),
                )
                .unwrap();
        }
        store.execute_batch("COMMIT").unwrap();
        drop(store);
        server.start();
        assert!(server.json(&["history"]).as_array().unwrap().len() >= 10);
        server
    });
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..30 {
        for (server, times) in took.iter_mut().zip(&mut times) {
            times.push(timed(|| server.ok(&["history"])).0);
        }
    }
    let [few, many] = &mut times;
    row("`everhook history`, 10,000 deploys beside 10, p50", percentile(many, 0.5), percentile(few, 0.5), 2.0);
}
