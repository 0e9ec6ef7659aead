//! Releases on disk: what stays, what goes, what is reached through `current`, and what everybody who
//! reads there sees of a switch.
#![allow(clippy::unwrap_used)]

#[path = "support/deploying.rs"]
mod deploying;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use deploying::*;
use server::{LIMIT, Repo, Server, free_address, text};

/// `site` without a command.
fn folder(deploy: &str) -> (Server, Repo) {
    let apps = site("", deploy).replace("command: [\"/bin/sh\", \"app.sh\"],", "");
    let server = Server::with_apps(&apps);
    let repo = Repo::new(server.path().join("repo"), &[("VERSION", "1")]);
    (server, repo)
}

/// An nginx of the machine's own, which serves what `current` leads to.
struct Nginx {
    child: Child,
    at: SocketAddr,
}

impl Nginx {
    fn serving(server: &Server) -> Self {
        let at = free_address();
        let work = server.path().join("nginx");
        fs::create_dir(&work).unwrap();
        fs::set_permissions(&work, fs::Permissions::from_mode(0o777)).unwrap();
        let (root, shown) = (home(server, "site").join("current"), work.display().to_string());
        let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("    {kind}_temp_path {shown}/{kind};\n"))
            .concat();
        let config = format!(
            "daemon off;\nworker_processes 2;\npid {shown}/nginx.pid;\nerror_log {shown}/error.log;\nevents {{}}\n\
             http {{\n    access_log off;\n{temp}    server {{\n        listen {at};\n        root {};\n    }}\n}}\n",
            root.display()
        );
        fs::write(work.join("nginx.conf"), config).unwrap();
        let mut nginx = Command::new("/usr/sbin/nginx");
        nginx.args(["-e", "stderr", "-p", &shown, "-c", &format!("{shown}/nginx.conf")]);
        let child = nginx.stdin(Stdio::null()).spawn().expect("Debian's nginx is there");
        let end = Instant::now() + LIMIT;
        while TcpStream::connect(at).is_err() {
            assert!(Instant::now() < end, "nginx does not answer");
            thread::yield_now();
        }
        Self { child, at }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

/// Asks for the page again and again: every answer is whole, and of one version after the other.
fn reader(at: SocketAddr, end: &AtomicBool) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    while !end.load(Ordering::Relaxed) {
        let answer = http::request(at, "GET", "/page.html", &[("connection", "close")], b"");
        let text = answer.text().trim().to_owned();
        assert_eq!(answer.status, 200, "{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() == 200 && lines.iter().all(|line| *line == lines[0]), "a mixture: {text}");
        if seen.last().is_none_or(|last| last != lines[0]) {
            seen.push(lines[0].to_owned());
        }
    }
    seen
}

fn page(version: u32) -> String {
    format!("version {version}\n").repeat(200)
}

#[test]
fn a_folder_is_switched_under_nginx_without_an_error() {
    const VERSIONS: u32 = 8;
    let (mut server, repo) = folder("layout: Releases(keep: 2), build: [\"! grep -q broken VERSION\"]");
    repo.commit(&[("page.html", &page(1))], "a page");
    server.start();
    assert_eq!(server.deploy_end(1)["state"], "live");
    server.wait_state("site", "deployed");
    let nginx = Nginx::serving(&server);
    let end = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (at, end) = (nginx.at, Arc::clone(&end));
            thread::spawn(move || reader(at, &end))
        })
        .collect();
    let mut wrk = Command::new("wrk");
    wrk.args(["-t1", "-c8", "-d300s", "--timeout", "20s"]).arg(format!("http://{}/page.html", nginx.at));
    let wrk = wrk.stdout(Stdio::piped()).spawn().expect("Debian's wrk is there");

    for version in 2..=VERSIONS {
        repo.commit(&[("page.html", &page(version))], "next");
        assert_eq!(server.deliver("site", &repo)["state"], "live");
    }
    repo.commit(&[("VERSION", "broken"), ("page.html", &page(99))], "fails");
    assert_eq!(server.deliver("site", &repo)["state"], "failed");
    server.ok(&["rollback", "site"]);
    let seen_back = http::request(nginx.at, "GET", "/page.html", &[("connection", "close")], b"");
    let seen_back = seen_back.text();
    assert!(seen_back.starts_with(&format!("version {}\n", VERSIONS - 1)), "{seen_back}");
    end.store(true, Ordering::Relaxed);
    for reader in readers {
        let seen = reader.join().unwrap();
        let numbers: Vec<u32> =
            seen.iter().map(|line| line.strip_prefix("version ").unwrap().parse().unwrap()).collect();
        let (forth, back) = numbers.split_at(numbers.len() - usize::from(numbers.last() == Some(&(VERSIONS - 1))));
        assert!(forth.is_sorted() && forth.iter().chain(back).all(|n| *n <= VERSIONS), "{numbers:?}");
    }
    // It tells what it counted when it is interrupted.
    Command::new("kill").args(["-INT", &wrk.id().to_string()]).status().unwrap();
    let said = text(&wrk.wait_with_output().unwrap());
    assert!(said.contains("requests in") && !said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    println!("{said}");
    assert_eq!(server.app("site")["state"], "deployed");
    for verb in ["restart", "start", "stop"] {
        let said = server.fails(1, &[verb, "site"]);
        assert!(said.contains("has no command"), "{said}");
    }
}

#[test]
fn old_assets_stay_reachable_as_long_as_their_releases_would() {
    let build = "mkdir -p assets/js; cp page assets/js/app-$(cat VERSION).js; cp page assets/index.js; \
        ln -s /etc/passwd assets/link-$(cat VERSION); mkfifo assets/pipe-$(cat VERSION)";
    let (mut server, repo) =
        folder(&format!("layout: Releases(keep: 3), bridge: [\"assets/\", \"none\"], build: [\"{build}\"]"));
    repo.commit(&[("page", "1\n")], "with assets");
    server.start();
    let mut releases = vec![server.deploy_end(1)];
    let assets = |release: &serde_json::Value| {
        let folder =
            home(&server, "site").join("releases").join(release["release"].as_str().unwrap()).join("assets/js");
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    for version in 2..=5 {
        repo.commit(&[("VERSION", &version.to_string()), ("page", &format!("{version}\n"))], "next");
        releases.push(server.deliver("site", &repo));
        assert_eq!(releases.last().unwrap()["state"], "live");
    }
    assert_eq!(assets(&releases[2]), ["app-1.js", "app-2.js", "app-3.js"]);
    assert_eq!(assets(&releases[4]), ["app-3.js", "app-4.js", "app-5.js"], "of the last three releases");
    let current = home(&server, "site").join("current/assets");
    let read = |name: &str| fs::read_to_string(current.join(name)).unwrap();
    assert_eq!(
        (read("js/app-3.js"), read("js/app-5.js"), read("index.js")),
        ("3\n".into(), "5\n".into(), "5\n".into())
    );
    for passed in ["link-4", "pipe-4"] {
        assert!(fs::symlink_metadata(current.join(passed)).is_err(), "{passed} is no plain file");
    }
    let uid = if is_root() { NOBODYS } else { nix::unistd::geteuid().as_raw() };
    assert_eq!(fs::metadata(current.join("js/app-3.js")).unwrap().uid(), uid);

    // Back at the one before, what was loaded meanwhile is there too.
    server.ok(&["rollback", "site"]);
    assert_eq!(current_link(&server), releases[3]["release"].as_str().unwrap());
    assert_eq!((read("js/app-5.js"), read("index.js")), ("5\n".into(), "4\n".into()));
    let notes = home(&server, "site").join("shared/.everhook/bridge");
    let noted = fs::read_dir(notes).unwrap().count();
    assert!(noted <= 4, "{noted} notes of 3 releases");
}

fn current_link(server: &Server) -> String {
    let link = fs::read_link(home(server, "site").join("current")).unwrap();
    link.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn what_a_commit_puts_in_the_way_leads_nowhere() {
    let (mut server, repo) = folder("bridge: [\"assets\"]");
    let outside = server.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o777)).unwrap();
    repo.commit(&[("assets/deep/a", "a"), ("assets/b", "b")], "with assets");
    server.start();
    assert_eq!(server.deploy_end(1)["state"], "live");
    // What was a folder is a link out, then a file; then the whole of it is a link.
    repo.git(&["rm", "-q", "-r", "assets/deep"]);
    symlink(&outside, repo.path.join("assets/deep")).unwrap();
    repo.commit(&[], "a link in place of a folder");
    assert_eq!(server.deliver("site", &repo)["state"], "live");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(current(&server, "assets/b"), "b");
    repo.git(&["rm", "-q", "-r", "assets"]);
    symlink(&outside, repo.path.join("assets")).unwrap();
    repo.commit(&[], "a link in place of all");
    let deploy = server.deliver("site", &repo);
    assert_eq!(deploy["state"], "live", "{deploy}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    repo.git(&["rm", "-q", "assets"]);
    repo.commit(&[("assets/c", "c")], "a folder again");
    assert_eq!(server.deliver("site", &repo)["state"], "live");
    assert_eq!(current(&server, "assets/c"), "c");
}

/// The app of `live_world` with one release kept, and a deploy after the next one, which fails: by then the
/// one before would be gone.
fn pushed_out(server: &Server, repo: &Repo) -> serde_json::Value {
    repo.commit(&[("app.sh", APP), ("VERSION", "2")], "second");
    let second = over(server, push(server, repo));
    assert_eq!(second["state"], "live", "{second}");
    repo.commit(&[("VERSION", "broken")], "fails");
    assert_eq!(over(server, push(server, repo))["state"], "failed");
    second
}

const KEEP_ONE: &str = "layout: Releases(keep: 1), check: [\"! grep -q broken VERSION\"]";

#[test]
fn a_release_stays_as_long_as_an_instance_drains_in_it() {
    let app = "sleep 1000 & trap 'cat \"$DIR/gate\"; echo \"still $(cat VERSION)\"; kill $!; exit 0' TERM\n\
        echo up\ntail -f \"$DIR/held\" & wait\n";
    let (mut server, repo) = world("replace: StartFirst, stop: (timeout: \"2s\", drain: \"10m\"),", KEEP_ONE);
    repo.commit(&[("app.sh", app)], "reads its files when it ends");
    start_live(&mut server);
    server.until("it hears a signal", |s| s.ok(&["logs", "site"]).contains("up").then_some(()));
    let gate = Gate::new(&server, "gate");
    let second = pushed_out(&server, &repo);
    let held = gate.reached();
    drop(held);
    server.until("it has read them", |s| s.ok(&["logs", "site"]).contains("still 1").then_some(()));
    let left = [second["release"].as_str().unwrap().to_owned()];
    server.until("then its release goes", |s| (releases(s, "site") == left).then_some(()));
}

#[test]
fn a_release_stays_as_long_as_a_persons_command_runs_in_it() {
    let (server, repo) = live_world("", KEEP_ONE);
    let gate = Gate::new(&server, "gate");
    let mut exec = server.client(&["exec", "site", "--", "sh", "-c", "cat \"$DIR/gate\"; cat VERSION"]);
    let exec = exec.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let held = gate.reached();
    let second = pushed_out(&server, &repo);
    drop(held);
    let output = exec.wait_with_output().unwrap();
    assert!(output.status.success() && text(&output).trim() == "1", "{}", text(&output));
    let left = [second["release"].as_str().unwrap().to_owned()];
    server.until("then its release goes", |s| (releases(s, "site") == left).then_some(()));
}

/// Reads half of the page by its name and half by the folder that it was started in, for each request anew.
const READS_LATE: &str = r#"
import http.server, os, signal, socket, threading
HERE = os.getcwd()
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        half = open("page.html").readlines()[:100]
        page = "".join(half + open(os.path.join(HERE, "page.html")).readlines()[100:]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)
    def log_message(self, *a): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), H, bind_and_activate=False)
server.daemon_threads = False
server.socket = socket.socket(fileno=3)
server.socket.setblocking(False)
signal.signal(signal.SIGTERM, lambda *a: threading.Thread(target=server.shutdown).start())
server.serve_forever()
server.server_close()
"#;

#[test]
fn an_instance_stays_in_the_release_that_it_was_started_in() {
    let at = free_address();
    let ready = format!("Http(url: \"http://{at}/page.html\")");
    // As whoever came from a tool whose releases are found by the link alone has it.
    let fields = format!("directory: \"@DIR@/state/apps/site/current\", sockets: {{\"http\": \"{at}\"}},");
    let apps = site(&fields, "").replace("After(\"20ms\")", &ready);
    let (mut server, repo) = world_with(&apps);
    let start = "exec python3 app.py \"$DIR/held\"\n";
    repo.commit(&[("app.sh", start), ("app.py", READS_LATE), ("page.html", &page(1))], "a page");
    start_live(&mut server);
    let end = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let end = Arc::clone(&end);
            thread::spawn(move || reader(at, &end))
        })
        .collect();
    let mut last = serde_json::Value::Null;
    for version in 2..=4 {
        repo.commit(&[("page.html", &page(version))], "next");
        last = server.deliver("site", &repo);
        assert_eq!(last["state"], "live", "{last}");
    }
    end.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
    // However it starts again, it starts in what is live.
    server.ok(&["restart", "site"]);
    assert_live(&server, &last);
    let pid = server.main_pid("site");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    server.wait_new_pid("site", pid);
    server.wait_state("site", "ready");
    assert_live(&server, &last);
    assert!(server.stop().success());
    server.start();
    server.wait_state("site", "ready");
    assert_live(&server, &last);
}

#[test]
fn a_new_user_goes_on_with_what_the_one_before_has_made() {
    if !is_root() {
        return println!("not root: everything is run by whoever started everhook");
    }
    const NEW: u32 = 61_310;
    let steps = "echo $EVERHOOK_DEPLOY >> $EVERHOOK_CACHE/seen; mkdir assets; echo x > assets/$EVERHOOK_DEPLOY.js";
    let deploy = format!(
        r#"layout: Releases(keep: 2), shared: ["data/", "db.json"], bridge: ["assets"], build: ["{steps}", "[ -s db.json ] || echo {{}} > db.json"],"#
    );
    let (mut server, repo) = world("", &deploy);
    // Closed to all others, as apps close what is theirs.
    let start = format!("umask 077; mkdir -p data/own; id -u >> data/own/users\n{APP}");
    repo.commit(&[("app.sh", &start)], "keeps what it knows");
    start_live(&mut server);
    let second = server.deliver("site", repo_with(&repo, "2"));
    assert_eq!(second["state"], "live", "{second}");

    // What is others' stays theirs: root's in the folder, and whatever a link in it leads to.
    let (shared, elsewhere) = (home(&server, "site").join("shared"), server.path().join("elsewhere"));
    fs::write(shared.join("data/roots"), "").unwrap();
    fs::write(&elsewhere, "").unwrap();
    std::os::unix::fs::chown(&elsewhere, Some(NOBODYS), Some(NOBODYS)).unwrap();
    symlink(&elsewhere, shared.join("data/link")).unwrap();
    std::os::unix::fs::lchown(shared.join("data/link"), Some(NOBODYS), Some(NOBODYS)).unwrap();

    server.edit_config("ready: After(\"20ms\"),", &format!("ready: After(\"20ms\"), user: {NEW},"));
    server.ok(&["reload"]);
    server.until("the new user has written", |_| {
        fs::read_to_string(shared.join("data/own/users")).unwrap().ends_with("61310\n").then_some(())
    });
    assert_eq!(version(&server), "2");
    assert_eq!(fs::metadata(&elsewhere).unwrap().uid(), NOBODYS);
    for (path, uid) in [("data/roots", 0), ("data/link", NEW), ("data/own", NEW), ("db.json", NEW)] {
        assert_eq!(fs::symlink_metadata(shared.join(path)).unwrap().uid(), uid, "{path}");
    }
    for (before, version) in [("2", "3"), ("3", "4")] {
        let next = server.deliver("site", repo_with(&repo, version));
        assert_eq!(next["state"], "live", "{next}");
        assert_live(&server, &next);
        assert_eq!(current(&server, &format!("assets/{before}.js")), "x");
    }
    assert_eq!(fs::read_to_string(home(&server, "site").join("cache/seen")).unwrap(), "1\n2\n3\n4\n");
    server.until("its releases went", |s| (releases(s, "site").len() == 2).then_some(()));
    server.ok(&["rollback", "site"]);
    assert_eq!(version(&server), "3");
}

/// With another commit.
fn repo_with<'a>(repo: &'a Repo, version: &str) -> &'a Repo {
    repo.commit(&[("VERSION", version)], version);
    repo
}
