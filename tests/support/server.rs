//! One supervisor in a folder of its own, driven as a user drives it: by its commands, its HTTP and
//! signals. What a test waits for is looked at again at every event that the product tells.
#![allow(dead_code, clippy::unwrap_used)]

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Mutex,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use hmac::{Hmac, KeyInit, Mac};
use rustix::net::{AddressFamily, SocketType, sockopt::set_socket_reuseaddr};
use serde_json::Value;
use sha2::Sha256;

use super::http;

/// Nothing that a test waits for takes longer.
pub const LIMIT: Duration = Duration::from_secs(60);
/// The secret in `@DIR@/secret`.
pub const SECRET: &str = "s3cret";

/// An address that nobody listens on and that the kernel gives to nobody else while this test process
/// lives: a socket stays bound to it without listening, which keeps nobody out who sets SO_REUSEADDR,
/// as servers do.
pub fn free_address() -> SocketAddr {
    static HELD: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    set_socket_reuseaddr(&socket, true).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let address = rustix::net::getsockname(&socket).unwrap().try_into().unwrap();
    HELD.lock().unwrap().push(socket);
    address
}

pub struct Server {
    dir: tempfile::TempDir,
    child: Option<Child>,
    /// A line for every event, from a client that follows them.
    events: Option<(Child, Mutex<Receiver<String>>)>,
}

impl Server {
    /// A config in a folder that everybody may enter; `@DIR@` in it is the folder. Nothing runs yet.
    pub fn new(config: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("everhook-test-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let server = Self { dir, child: None, events: None };
        server.write_secret("secret", SECRET);
        server.write_config(config);
        server
    }

    /// The usual one: `apps` and a listener for hooks and API on a port of the kernel's.
    pub fn with_apps(apps: &str) -> Self {
        Self::new(&format!(
            "(state_dir: \"@DIR@/state\", http: [(bind: \"127.0.0.1:0\", serve: [Hooks, Api])], apps: {{\n{apps}\n}})"
        ))
    }

    pub fn started(mut self) -> Self {
        self.start();
        self
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn config(&self) -> PathBuf {
        self.path().join("supervisor.ron")
    }

    /// A file in the folder that nobody else reads.
    pub fn write_secret(&self, name: &str, content: &str) {
        let path = self.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn write_config(&self, config: &str) {
        fs::write(self.config(), config.replace("@DIR@", self.path().to_str().unwrap())).unwrap();
    }

    pub fn edit_config(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.config()).unwrap();
        assert!(text.contains(from), "the config has no {from}");
        self.write_config(&text.replace(from, to));
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_everhook"));
        command.arg("--config").arg(self.config()).args(args).current_dir(self.path()).stdin(Stdio::null());
        command.env_remove("EVERHOOK_CONFIG").env_remove("EVERHOOK_SOCKET");
        // Where a supervisor of an ordinary user notes its place.
        command.env("XDG_RUNTIME_DIR", self.path().join("session"));
        command
    }

    /// Starts the supervisor and waits until it answers.
    pub fn start(&mut self) {
        self.start_as(&[]);
    }

    /// The same behind a prefix, such as `unshare`.
    pub fn start_as(&mut self, prefix: &[&str]) {
        let log = fs::File::options().create(true).append(true).open(self.path().join("out")).unwrap();
        let run = self.command(&["run"]);
        let mut command = if let Some((program, rest)) = prefix.split_first() {
            let mut outer = Command::new(program);
            outer.args(rest).arg(run.get_program()).args(run.get_args()).current_dir(self.path()).stdin(Stdio::null());
            outer
        } else {
            run
        };
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        let end = Instant::now() + LIMIT;
        while !self.cli(&["status", "--json"]).status.success() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < end, "it does not run: {}", self.log());
            thread::yield_now();
        }
        self.follow();
    }

    fn follow(&mut self) {
        let mut client = self.command(&["events", "-f", "-n", "1", "--json"]);
        let mut client = client.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(client.stdout.take().unwrap()).lines();
        let (told, events) = channel();
        thread::spawn(move || lines.map_while(Result::ok).all(|line| told.send(line).is_ok()));
        self.unfollow();
        self.events = Some((client, Mutex::new(events)));
    }

    /// From now on nobody follows the events: what is waited for is looked at again every 50 ms.
    pub fn unfollow(&mut self) {
        if let Some((mut client, _)) = self.events.take() {
            let _ = client.kill();
            let _ = client.wait();
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// What the supervisor printed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path().join("out")).unwrap_or_default()
    }

    pub fn cli(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// A command that the test starts itself.
    pub fn client(&self, args: &[&str]) -> Command {
        self.command(args)
    }

    /// The same as another user, without any group of ours. The binary may be where nobody else goes.
    pub fn cli_as(&self, id: u32, args: &[&str]) -> Output {
        let binary = self.path().join("everhook");
        if !binary.exists() {
            // By another process: a file that this one writes may be inherited by a child that a test
            // beside this one starts, and is then busy.
            let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_everhook")).arg(&binary).status().unwrap();
            assert!(copied.success());
        }
        let line = self.command(args);
        let mut command = Command::new(binary);
        command.args(line.get_args()).current_dir(self.path()).stdin(Stdio::null()).env_clear();
        command.uid(id).gid(id).output().unwrap()
    }

    /// Runs a command that must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.cli(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must fail with this code; what it printed.
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.cli(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output));
        text(&output)
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let args = [args, &["--json"]].concat();
        serde_json::from_str(&self.ok(&args)).unwrap()
    }

    pub fn events(&self) -> Vec<Value> {
        let lines = self.ok(&["events", "-n", "1000", "--json"]);
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn status(&self) -> Value {
        self.json(&["status"])
    }

    pub fn app(&self, name: &str) -> Value {
        let status = self.status();
        let apps = status["apps"].as_array().unwrap();
        apps.iter().find(|app| app["name"] == name).unwrap_or_else(|| panic!("no app {name}")).clone()
    }

    pub fn instance(&self, name: &str) -> Value {
        self.app(name)["instances"][0].clone()
    }

    /// The main process of an app that runs.
    pub fn main_pid(&self, name: &str) -> i32 {
        i32::try_from(self.instance(name)["pid"].as_i64().expect("it runs")).unwrap()
    }

    /// Waits until `look` finds something; it looks again at every event.
    pub fn until<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(Instant::now() < end, "never: {what}\n{}\n{}", self.log(), text(&self.cli(&["status"])));
            // Not everything is an event: look again soon even if none comes.
            let soon = Duration::from_millis(50);
            let follows = |events: &Mutex<Receiver<_>>| {
                events.lock().unwrap().recv_timeout(soon) != Err(RecvTimeoutError::Disconnected)
            };
            if !self.events.as_ref().is_some_and(|(_, events)| follows(events)) {
                thread::sleep(soon);
            }
        }
    }

    /// Waits until an event is told that is wanted, of those that nobody waited for yet.
    pub fn wait_event(&self, wanted: impl Fn(&Value) -> bool) {
        let (_, events) = self.events.as_ref().unwrap();
        let events = events.lock().unwrap();
        while !wanted(&serde_json::from_str(&events.recv_timeout(LIMIT).unwrap()).unwrap()) {}
    }

    pub fn wait_state(&self, app: &str, state: &str) -> Value {
        self.until(&format!("{app} is {state}"), |s| Some(s.app(app)).filter(|app| app["state"] == state))
    }

    /// Waits for another main process than this one.
    pub fn wait_new_pid(&self, app: &str, old: i32) -> i32 {
        self.until(&format!("another process of {app}"), |s| {
            let pid = s.instance(app)["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok())?;
            Some(pid).filter(|pid| *pid != old)
        })
    }

    /// Waits for the end of a deploy.
    pub fn deploy_end(&self, id: i64) -> Value {
        const ENDS: [&str; 6] = ["live", "failed", "rolled_back", "superseded", "cancelled", "skipped"];
        self.until(&format!("the end of deploy {id}"), |s| {
            let deploy = s.json(&["history", "-n", "1000"]);
            let found = deploy.as_array().unwrap().iter().find(|d| d["id"] == id)?.clone();
            ENDS.contains(&found["state"].as_str().unwrap()).then_some(found)
        })
    }

    /// The address of the listener that serves this.
    pub fn address(&self, serve: &str) -> SocketAddr {
        let status = self.status();
        let listeners = status["supervisor"]["listeners"].as_array().unwrap();
        let serves = |l: &&Value| l["serve"].as_array().unwrap().iter().any(|s| s == serve);
        listeners.iter().find(serves).unwrap()["bind"].as_str().unwrap().parse().unwrap()
    }

    /// Sends a push as GitHub does, signed.
    pub fn push(&self, app: &str, id: &str, body: &str) -> (u16, Value) {
        self.tell(&format!("/hooks/{app}"), "push", id, body)
    }

    /// Sends any event as GitHub does, signed.
    pub fn tell(&self, target: &str, event: &str, id: &str, body: &str) -> (u16, Value) {
        Self::tell_at(self.address("hooks"), target, event, id, body)
    }

    /// The same where it is known who listens: to ask that takes as long as much of what follows.
    pub fn tell_at(listener: SocketAddr, target: &str, event: &str, id: &str, body: &str) -> (u16, Value) {
        let signature = sign(SECRET, body.as_bytes());
        let headers = [
            ("content-type", "application/json"),
            ("x-github-event", event),
            ("x-github-delivery", id),
            ("x-hub-signature-256", &signature),
        ];
        let answer = http::request(listener, "POST", target, &headers, body.as_bytes());
        (answer.status, answer.json())
    }

    /// Pushes the repository's tip and waits for the end of its deploy.
    pub fn deliver(&self, app: &str, repo: &Repo) -> Value {
        let (status, answer) = self.push(app, &unique(), &repo.push_body());
        assert_eq!(status, 202, "{answer}");
        self.deploy_end(answer["deploys"][0]["id"].as_i64().unwrap())
    }

    /// Kills the supervisor without a warning.
    pub fn kill(&mut self) {
        self.unfollow();
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Asks for the ordered end and waits for it.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        self.ended()
    }

    /// Waits for the end of the supervisor.
    pub fn ended(&mut self) -> ExitStatus {
        self.unfollow();
        let mut child = self.child.take().unwrap();
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > end {
                // It says what it waits for, if it still hears.
                let before = self.log().len();
                let _ = Command::new("kill").args(["-QUIT", &child.id().to_string()]).status();
                let end = Instant::now() + LIMIT;
                while self.log().len() == before && Instant::now() < end {
                    thread::yield_now();
                }
                let _ = child.kill();
                let _ = child.wait();
                panic!("it does not end: {}", self.log());
            }
            thread::yield_now();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.unfollow();
        if thread::panicking() {
            eprintln!("what the supervisor printed:\n{}", self.log());
        }
        if self.child.is_some() && !thread::panicking() {
            self.stop();
        } else if let Some(mut child) = self.child.take() {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }
}

/// What a command printed.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// `X-Hub-Signature-256`.
pub fn sign(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body);
    let hex: String = mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256={hex}")
}

/// An id that no other delivery has.
pub fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Does a process live whose command line holds this?
pub fn processes(marker: &str) -> Vec<i32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != i32::try_from(std::process::id()).unwrap())
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(marker))
        })
        .collect()
}

/// A repository as a team has one, readable for everybody.
pub struct Repo {
    pub path: PathBuf,
}

impl Repo {
    /// `files`: name and content of the first commit on `main`.
    pub fn new(path: PathBuf, files: &[(&str, &str)]) -> Self {
        fs::create_dir_all(&path).unwrap();
        let repo = Self { path };
        repo.git(&["init", "-q", "-b", "main"]);
        repo.commit(files, "first");
        repo
    }

    pub fn git(&self, args: &[&str]) -> String {
        let mut git = Command::new("git");
        git.current_dir(&self.path).args(["-c", "user.name=Ann", "-c", "user.email=ann@example.org"]).args(args);
        let output = git.env("GIT_CONFIG_GLOBAL", "/dev/null").output().unwrap();
        assert!(output.status.success(), "git {args:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A commit; its id.
    pub fn commit(&self, files: &[(&str, &str)], subject: &str) -> String {
        for (name, content) in files {
            let path = self.path.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", subject]);
        self.head()
    }

    pub fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"])
    }

    /// What GitHub sends for a push of the tip of `main`.
    pub fn push_body(&self) -> String {
        self.push_of("refs/heads/main", &self.head())
    }

    pub fn push_of(&self, ref_name: &str, after: &str) -> String {
        let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/github/push.1.json");
        let mut body: Value = serde_json::from_str(&fs::read_to_string(recorded).unwrap()).unwrap();
        body["ref"] = ref_name.into();
        body["after"] = after.into();
        body["before"] = "0".repeat(40).into();
        body["deleted"] = after.bytes().all(|b| b == b'0').into();
        body["head_commit"]["id"] = after.into();
        body.to_string()
    }
}
