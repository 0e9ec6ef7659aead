//! What strangers do to the front door, and that nobody else notices: the apps run on untouched, and a signed
//! delivery each second gets its 2xx. `--nocapture` shows the figures.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        mpsc::{RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use http::Answer;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use server::{Repo, SECRET, Server, free_address, sign, unique};

/// Two that run, of which one is deployed.
const APPS: &str = r#""site": (command: ["sleep", "1000"], ready: Immediate,
      deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/secret"), settle: "0s")),
    "other": (command: ["sleep", "1000"], ready: Immediate)"#;
/// Signed deliveries during an attack.
const DELIVERIES: usize = 4;
/// KiB of memory that the listener never needs, as it is built for tests.
const MEMORY: u64 = 96 * 1024;

struct World {
    server: Server,
    repo: Repo,
    at: SocketAddr,
    apps: Vec<(i32, String)>,
    listener: i64,
}

impl World {
    fn new() -> Self {
        Self::behind("")
    }

    /// `entry`: more of the `http` entry.
    fn behind(entry: &str) -> Self {
        let server = Server::new(&format!(
            r#"(state_dir: "@DIR@/state", http: [(bind: "127.0.0.1:0", serve: [Hooks], {entry})], apps: {{{APPS}}})"#
        ));
        let repo = Repo::new(server.path().join("repo"), &[("VERSION", "1")]);
        let server = server.started();
        assert_eq!(server.deploy_end(1)["state"], "live");
        server.wait_state("site", "ready");
        let at = server.address("hooks");
        let mut world = Self { server, repo, at, apps: Vec::new(), listener: 0 };
        (world.apps, world.listener) = (world.running(), world.listener());
        world
    }

    /// Pid and start time of each app.
    fn running(&self) -> Vec<(i32, String)> {
        let start = |pid: i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().to_owned()
        };
        ["site", "other"].map(|app| self.server.main_pid(app)).map(|pid| (pid, start(pid))).to_vec()
    }

    fn listener(&self) -> i64 {
        self.server.status()["supervisor"]["listeners"][0]["pid"].as_i64().unwrap()
    }

    /// A signed delivery of another branch each second until `attack` is over, and so many at least.
    fn deliver_during<T>(&self, attack: impl FnOnce() -> T + Send) -> T
    where
        T: Send,
    {
        let (over, ended) = channel::<()>();
        thread::scope(|scope| {
            let attack = scope.spawn(move || {
                let _over = over;
                attack()
            });
            let (mut sent, mut slowest) = (0, Duration::ZERO);
            loop {
                let begun = Instant::now();
                let answer = self.signed(&[]);
                slowest = slowest.max(begun.elapsed());
                sent += 1;
                assert_eq!(answer.status, 200, "{}", answer.text());
                if ended.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Disconnected) {
                    break;
                }
            }
            println!("{sent} signed deliveries, all answered 200, the slowest in {slowest:?}");
            attack.join().unwrap()
        })
    }

    fn signed(&self, more: &[(&str, &str)]) -> Answer {
        let body = self.repo.push_of("refs/heads/dev", &self.repo.head());
        let (id, signature) = (unique(), sign(SECRET, body.as_bytes()));
        let own = [("x-github-event", "push"), ("x-github-delivery", id.as_str()), ("x-hub-signature-256", &signature)];
        http::request(self.at, "POST", "/hooks/site", &[&own, more].concat(), body.as_bytes())
    }

    /// Nothing that runs has noticed, and the listener is the same and small.
    fn is_unharmed(&self, what: &str) {
        assert_eq!(self.running(), self.apps);
        assert_eq!(self.listener(), self.listener, "the listener was restarted");
        let [now, most] = ["VmRSS:", "VmHWM:"].map(|field| self.memory(field));
        println!("{what}: the listener has {now} KiB, and had {most} KiB at most");
        assert!(most < MEMORY, "the listener had {most} KiB");
        assert_eq!(self.signed(&[]).status, 200);
    }

    fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.listener)).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

/// Lets this process have this many connections; how many it may have, and nobody else as many meanwhile.
fn room_for(connections: usize) -> (usize, MutexGuard<'static, ()>) {
    const OTHERS: usize = 200;
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = u64::try_from(connections + OTHERS).unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.max(wanted.min(hard)), hard);
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let most = usize::try_from(soft).unwrap_or(usize::MAX).saturating_sub(OTHERS).min(connections);
    if most < connections {
        println!("RLIMIT_NOFILE leaves room for {most} connections");
    }
    (most, alone)
}

#[test]
fn a_flood_of_unsigned_pushes_hurts_nobody() {
    let world = World::new();
    let body = world.repo.push_body();
    let script = world.server.path().join("flood.lua");
    let text = format!(
        "wrk.method = 'POST'\nwrk.body = [[{body}{}]]\nwrk.headers['X-GitHub-Event'] = 'push'\n\
         wrk.headers['X-Hub-Signature-256'] = 'sha256={}'\n",
        " ".repeat(7000),
        "0".repeat(64)
    );
    fs::write(&script, text).unwrap();
    let said = world.deliver_during(|| {
        let mut wrk = Command::new("wrk");
        wrk.args(["-t1", "-c1500", "-d5s", "--timeout", "20s", "-s"]).arg(&script);
        wrk.arg(format!("http://{}/hooks/site", world.at));
        wrk.output().expect("Debian's wrk is there")
    });
    println!("{}", server::text(&said));
    world.is_unharmed("a flood over 1,500 connections");
    let refused = world.server.json(&["deliveries", "-n", "100000"]);
    let refused = refused.as_array().unwrap().iter().filter(|delivery| delivery["state"] == "refused").count();
    assert!((1..=1000).contains(&refused), "{refused} rows of refused deliveries");
}

#[test]
fn whoever_is_refused_too_often_is_told_to_wait_and_nobody_else() {
    let world = World::behind(r#"trusted_proxies: ["127.0.0.1"]"#);
    let unsigned = |from: &str| {
        let headers = [("x-github-event", "push"), ("x-forwarded-for", from)];
        http::request(world.at, "POST", "/hooks/site", &headers, b"{}")
    };
    // On a slow machine some are forgiven meanwhile.
    let told = |status: u16, ask: &dyn Fn() -> Answer| {
        let mut refused = 0;
        loop {
            let answer = ask();
            if answer.status != status {
                return (refused, answer);
            }
            refused += 1;
            assert!(refused < 10_000, "it is never told to wait");
        }
    };
    let (refused, answer) = told(401, &|| unsigned("192.0.2.1"));
    assert!(refused >= 100, "after {refused}");
    assert_eq!(answer.status, 429, "{}", answer.text());
    assert!(answer.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    // Another path makes no difference, but another address, and a proof.
    let elsewhere = || http::request(world.at, "GET", "/hooks", &[("x-forwarded-for", "192.0.2.1")], b"");
    let (refused, answer) = told(405, &elsewhere);
    assert!(refused < 100 && answer.status == 429, "after {refused}: {}", answer.text());
    assert_eq!(unsigned("192.0.2.2").status, 401);
    for _ in 0..30 {
        let answer = world.signed(&[("x-forwarded-for", "192.0.2.1")]);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let health = http::request(world.at, "GET", "/healthz", &[("x-forwarded-for", "192.0.2.1")], b"");
    assert_eq!((health.status, health.text()), (200, "ok"));
}

/// An nginx of the machine's own before the hooks, as most have one.
struct Nginx(Child, SocketAddr);

impl Nginx {
    fn before(world: &World) -> Self {
        let at = free_address();
        let work = world.server.path().join("nginx");
        fs::create_dir(&work).unwrap();
        fs::set_permissions(&work, fs::Permissions::from_mode(0o777)).unwrap();
        let work = work.display();
        let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temp: String = temp.iter().map(|kind| format!("{kind}_temp_path {work}/{kind};\n")).collect();
        // All come from here, so the client's address stands in a header of the test's.
        let config = format!(
            "daemon off;\nworker_processes 1;\npid {work}/nginx.pid;\nerror_log {work}/error.log;\nevents {{}}\nhttp {{\n\
             access_log off;\n{temp}set_real_ip_from 127.0.0.1;\nreal_ip_header X-Test-Client;\nserver {{\nlisten {at};\n\
             location / {{\nproxy_pass http://{};\nproxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n}}\n}}\n}}\n",
            world.at
        );
        let path = world.server.path().join("nginx/nginx.conf");
        fs::write(&path, config).unwrap();
        let mut nginx = Command::new("/usr/sbin/nginx");
        let child = nginx.args(["-e", "stderr", "-c"]).arg(path).stdin(Stdio::null()).spawn();
        let nginx = Self(child.expect("Debian's nginx is there"), at);
        let end = Instant::now() + server::LIMIT;
        while TcpStream::connect(at).is_err() {
            assert!(Instant::now() < end, "nginx does not answer");
            thread::yield_now();
        }
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}

#[test]
fn behind_nginx_a_stranger_uses_up_nobody_elses_allowance() {
    const STRANGERS: usize = 1000;
    let mut world = World::behind(r#"trusted_proxies: ["127.0.0.1"]"#);
    let nginx = Nginx::before(&world);
    world.at = nginx.1;
    let stranger = [("x-github-event", "push"), ("x-test-client", "192.0.2.66")];
    let statuses: Vec<u16> = thread::scope(|scope| {
        // Whoever is refused too often is answered late, so several ask at a time.
        let ask =
            || (0..STRANGERS / 20).map(|_| http::request(world.at, "POST", "/hooks/site", &stranger, b"{}").status);
        let asking: Vec<_> = (0..20).map(|_| scope.spawn(move || ask().collect::<Vec<_>>())).collect();
        for n in 0..30 {
            // From another address, and from the very same: a proof is worth more than an address.
            let from = if n % 2 == 0 { "192.0.2.7" } else { "192.0.2.66" };
            let answer = world.signed(&[("x-test-client", from)]);
            assert_eq!(answer.status, 200, "{from}, {n}: {}", answer.text());
        }
        asking.into_iter().flat_map(|asking| asking.join().unwrap()).collect()
    });
    assert_eq!(statuses.len(), STRANGERS);
    assert!(statuses.iter().all(|status| [401, 429].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&429), "the stranger is told to wait");
    let deliveries = world.server.json(&["deliveries", "-n", "100000"]);
    let from = |state: &str| -> Vec<&str> {
        let mine = deliveries.as_array().unwrap().iter().filter(|delivery| delivery["state"] == state);
        mine.map(|delivery| delivery["address"].as_str().unwrap()).collect()
    };
    assert!(from("refused").iter().all(|from| *from == "192.0.2.66"));
    assert!(["192.0.2.7", "192.0.2.66"].iter().all(|client| from("skipped").contains(client)));
}

/// Half of them stop in the head, half in the body.
#[test]
fn slow_connections_hurt_nobody() {
    const HEAD: &[u8] = b"POST /hooks/site HTTP/1.1\r\nHost: test\r\nX-GitHub-Event: push\r\nX-Pad: ";
    const BODY: &[u8] = b"POST /hooks/site HTTP/1.1\r\nHost: test\r\nContent-Length: 60000\r\n\r\n{";
    let world = World::new();
    let (count, _alone) = room_for(4000);
    let (held, lost) = world.deliver_during(|| {
        let mut slow: Vec<TcpStream> = (0..count).map(|_| TcpStream::connect(world.at).unwrap()).collect();
        for (number, stream) in slow.iter_mut().enumerate() {
            let _ = stream.write_all(if number % 2 == 0 { HEAD } else { BODY });
        }
        // A byte of each now and then, as long as deliveries are to come through.
        let (end, mut lost) = (Instant::now() + Duration::from_secs(DELIVERIES as u64), 0);
        while Instant::now() < end {
            let before = slow.len();
            slow.retain_mut(|stream| stream.write_all(b"x").is_ok());
            lost += before - slow.len();
            thread::sleep(Duration::from_millis(200));
        }
        (slow.len(), lost)
    });
    println!("{held} slow connections are held, {lost} were closed");
    world.is_unharmed("slow connections");
}

/// Half of them never say anything, half have had an answer.
#[test]
fn ten_thousand_idle_connections_hurt_nobody() {
    let world = World::new();
    let (count, _alone) = room_for(10_000);
    let begun = Instant::now();
    let idle = world.deliver_during(|| {
        let mut idle = Vec::with_capacity(count);
        for number in 0..count {
            let mut stream = TcpStream::connect(world.at).unwrap();
            if number % 2 == 0 {
                stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
                let (mut said, mut piece) = (Vec::new(), [0; 1024]);
                while !said.ends_with(b"ok") {
                    let length = stream.read(&mut piece).unwrap();
                    assert!(length > 0, "{}", String::from_utf8_lossy(&said));
                    said.extend_from_slice(&piece[..length]);
                }
            }
            idle.push(stream);
        }
        idle
    });
    for _ in 0..DELIVERIES {
        assert_eq!(world.signed(&[]).status, 200);
    }
    world.is_unharmed(&format!("{} idle connections", idle.len()));
    // None of them was closed for the others' sake; whoever says nothing for a minute is.
    let open = idle.iter().filter(|stream| is_open(stream)).count();
    println!("{open} of {count} are open");
    if count == 10_000 && begun.elapsed() < Duration::from_secs(50) {
        assert_eq!(open, count);
    }
}

fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    matches!(stream.peek(&mut [0; 1]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
}
