//! What it costs that the process which hears the internet holds nothing: `cargo bench --bench hooks`.
//!
//! A signed push of 7 KB to a branch that is not deployed, proven and answered 200, beside one process that
//! does the same with hyper, HMAC and JSON and no isolation at all, and beside hyper alone; then with 10,000
//! idle connections. Both are there twice: as hyper's guide has a server, in a runtime of all processors, and on one
//! thread, which answers fewer but, as nobody is in its way, evenly. The load is Debian's `wrk`, with 32 connections;
//! all take turns.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/http.rs"]
mod http;
#[path = "../tests/support/server.rs"]
mod server;

use std::{
    convert::Infallible,
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use server::{Repo, SECRET, Server, sign};
use sha2::Sha256;
use tokio::runtime::Builder;

const PUSH: &str = include_str!("../tests/fixtures/github/push.0.json");
const TURNS: usize = 5;
const SECONDS: u32 = 4;
const IDLE: usize = 10_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        // This program once more, as the floor.
        Some("plain") => return serve(&args[1], |request| Box::pin(prove(request))),
        Some("bare") => return serve(&args[1], |request| Box::pin(ok(request))),
        _ => {}
    }
    // `cargo test --benches` only builds.
    if args.iter().any(|arg| arg == "--test") {
        return;
    }
    everhook::os::limits::raise_files().unwrap();
    let (server, address) = ours();
    let floors = ["all", "one"].into_iter().flat_map(|on| ["plain", "bare"].map(|kind| Floor::start(kind, on)));
    let floors: Vec<Floor> = floors.collect();
    let load = Load::new(server.path());
    let (mut rates, mut slowest) = ([const { Vec::new() }; 5], [const { Vec::new() }; 5]);
    for _ in 0..TURNS {
        let all = floors.iter().map(|floor| floor.address);
        for (n, at) in [address].into_iter().chain(all).enumerate() {
            let (rate, p99) = load.run(at);
            rates[n].push(rate);
            slowest[n].push(p99);
        }
    }
    let ([rate, all, _, one, _], [p99, _, bare_all, _, bare_one]) = (rates.map(median), slowest.map(median));
    println!("signed pushes answered 200: {rate:>9.0} a second");
    println!("  without isolation, all processors: {all:>9.0}  ratio {:>5.2}  (at least 0.7)", rate / all);
    println!("  without isolation, one thread:     {one:>9.0}  ratio {:>5.2}", rate / one);
    println!("p99: {p99:>9.3} ms");
    println!("  hyper alone, all processors: {bare_all:>9.3} ms  ratio {:>5.2}  (at most 3)", p99 / bare_all);
    println!("  hyper alone, one thread:     {bare_one:>9.3} ms  ratio {:>5.2}", p99 / bare_one);
    let idle: Vec<TcpStream> = (0..IDLE).map(|n| idle(address, n % 2 == 0)).collect();
    let (beside, _) = load.run(address);
    println!(
        "beside {IDLE} idle connections: {beside:>9.0} a second  ratio {:>5.2}  (at least 0.5)  listener {:.1} MiB (below 40)",
        beside / rate,
        pss_kib(&server) / 1024.0
    );
    drop(idle);
}

/// A push of a branch that is not deployed.
fn body() -> String {
    PUSH.replace("refs/tags/simple-tag", "refs/heads/dev")
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// An app that deploys another branch than the one that is pushed.
fn ours() -> (Server, SocketAddr) {
    let server = Server::with_apps(
        r#""site": (deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/secret")))"#,
    );
    Repo::new(server.path().join("repo"), &[("a", "1")]);
    let mut server = server.started();
    assert_eq!(server.deploy_end(1)["state"], "live");
    // Another program that gets every event is not what is measured.
    server.unfollow();
    let address = server.address("hooks");
    assert_eq!(server.push("site", "once", &body()).0, 200);
    (server, address)
}

/// A connection that says nothing, or nothing more after one answer.
fn idle(address: SocketAddr, fresh: bool) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    if !fresh {
        std::io::Write::write_all(&mut stream, b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
    }
    stream
}

fn pss_kib(server: &Server) -> f64 {
    let pid = server.status()["supervisor"]["listeners"][0]["pid"].as_i64().unwrap();
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the memory of another user is root's");
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// `wrk`, and what it sends.
struct Load {
    script: PathBuf,
}

impl Load {
    fn new(folder: &Path) -> Self {
        let (push, mut body) = (body(), String::new());
        push.bytes().for_each(|byte| write!(body, "\\x{byte:02x}").unwrap());
        let script = folder.join("push.lua");
        let text = format!(
            "wrk.method = 'POST'\nwrk.path = '/hooks/site'\nwrk.body = \"{body}\"\n\
             wrk.headers['Content-Type'] = 'application/json'\nwrk.headers['X-GitHub-Event'] = 'push'\n\
             wrk.headers['X-GitHub-Delivery'] = '72d3162e-cc78-11e3-81ab-4c9367dc0958'\n\
             wrk.headers['User-Agent'] = 'GitHub-Hookshot/044aadd'\nwrk.headers['Accept'] = '*/*'\n\
             wrk.headers['X-GitHub-Hook-ID'] = '292430182'\n\
             wrk.headers['X-Hub-Signature-256'] = '{}'\n\
             function done(summary, latency)\n  local e = summary.errors\n\
             \x20 print('SUM', summary.requests / summary.duration * 1e6, latency:percentile(99) / 1e3,\n\
             \x20   e.connect + e.read + e.write + e.status + e.timeout)\nend\n",
            sign(SECRET, push.as_bytes())
        );
        fs::write(&script, text).unwrap();
        Self { script }
    }

    /// Answers a second, and their p99 in ms; every one has to be a 2xx.
    fn run(&self, at: SocketAddr) -> (f64, f64) {
        let mut wrk = Command::new("wrk");
        wrk.args(["-t1", "-c32", &format!("-d{SECONDS}s"), "-s"]).arg(&self.script).arg(format!("http://{at}/"));
        let said = String::from_utf8(wrk.output().expect("Debian's wrk is there").stdout).unwrap();
        let sum = said.lines().find(|line| line.starts_with("SUM")).unwrap_or_else(|| panic!("{said}"));
        let numbers: Vec<f64> = sum.split_whitespace().skip(1).map(|number| number.parse().unwrap()).collect();
        assert!(numbers[2] == 0.0, "{said}");
        (numbers[0], numbers[1])
    }
}

/// This program as one of the servers that everhook is measured by.
struct Floor {
    address: SocketAddr,
    child: Child,
}

impl Floor {
    fn start(what: &str, on: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command.args([what, on]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { address: line.trim().parse().unwrap(), child }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

type Answering = std::pin::Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send>>;

/// hyper as its guide has it, or the same on `one` thread.
fn serve(on: &str, answer: fn(Request<Incoming>) -> Answering) {
    let mut runtime = if on == "one" { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    runtime.enable_all().build().unwrap().block_on(async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                let connection = hyper::server::conn::http1::Builder::new();
                let _ = connection.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            });
        }
    });
}

async fn ok(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let _ = request.into_body().collect().await;
    Ok(Response::new(Full::new(Bytes::from_static(b"{}"))))
}

#[derive(Deserialize)]
struct Push<'a> {
    #[serde(rename = "ref", borrow)]
    branch: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    after: std::borrow::Cow<'a, str>,
    repository: Repository,
}

#[derive(Deserialize)]
struct Repository {
    full_name: String,
}

async fn prove(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(&body);
    let sent = head.headers.get("x-hub-signature-256").and_then(|value| value.to_str().ok()?.strip_prefix("sha256="));
    let sent = sent.and_then(|hex| data_encoding::HEXLOWER.decode(hex.as_bytes()).ok()).unwrap_or_default();
    let push = serde_json::from_slice::<Push<'_>>(&body);
    let (status, text) = match (mac.verify_slice(&sent), push) {
        (Ok(()), Ok(Push { branch, after, repository })) => {
            let skipped = format!("{branch} of {} at {after} is not deployed", repository.full_name);
            (StatusCode::OK, serde_json::json!({"delivery": 1, "skipped": skipped}).to_string())
        }
        _ => (StatusCode::UNAUTHORIZED, String::new()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    Ok(response)
}
