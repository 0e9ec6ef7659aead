//! `everhook serve`: one folder over HTTP, and nothing outside it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/http.rs"]
mod http;

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use http::{Answer, Client, head, request};
use nix::{sys::signal::Signal, unistd::Pid};

struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_everhook"))
            .args(["serve", folder.to_str().unwrap(), "--bind", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let start = format!("serving {} on http://", folder.display());
        let address = line.strip_prefix(&start).unwrap_or_else(|| panic!("{line}")).trim().parse().unwrap();
        Self { child, address }
    }

    fn get(&self, target: &str) -> Answer {
        request(self.address, "GET", target, &[], b"")
    }

    fn term(&self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    }

    fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::yield_now();
        }
        panic!("it does not end");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn site() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("site/docs/empty")).unwrap();
    fs::create_dir_all(root.join("site/.well-known")).unwrap();
    fs::create_dir_all(root.join("site/.git")).unwrap();
    for (name, text) in [
        ("secret.txt", "outside"),
        ("site/index.html", "<h1>v1</h1>"),
        ("site/docs/index.html", "docs"),
        ("site/a b.txt", "spaced"),
        ("site/.env", "TOKEN=1"),
        ("site/.git/config", "private"),
        ("site/.well-known/security.txt", "contact"),
    ] {
        fs::write(root.join(name), text).unwrap();
    }
    dir
}

#[test]
fn files_are_shown_with_their_type() {
    let dir = site();
    let server = Server::start(&dir.path().join("site"));
    let home = server.get("/");
    assert_eq!((home.status, home.text()), (200, "<h1>v1</h1>"));
    assert_eq!(home.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(home.header("x-content-type-options"), Some("nosniff"));
    for (target, text) in [
        ("/index.html?v=2", "<h1>v1</h1>"),
        ("//docs//", "docs"),
        ("/a%20b.txt", "spaced"),
        ("/.well-known/security.txt", "contact"),
    ] {
        let answer = server.get(target);
        assert_eq!((answer.status, answer.text()), (200, text), "{target}");
    }
    let whole = server.get("/index.html");
    let head = request(server.address, "HEAD", "/index.html", &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    for name in ["content-length", "content-type", "etag", "last-modified"] {
        assert_eq!(head.header(name), whole.header(name), "{name}");
        assert!(head.header(name).is_some(), "{name}");
    }
}

#[test]
fn a_folder_without_its_slash_moves_to_it() {
    let dir = site();
    let server = Server::start(&dir.path().join("site"));
    let moved = server.get("//docs?page=1");
    assert_eq!((moved.status, moved.header("location")), (301, Some("/docs/?page=1")));
    for missing in ["/docs/empty", "/docs/empty/", "/index.html/"] {
        assert_eq!(server.get(missing).status, 404, "{missing}");
    }
}

#[test]
fn a_known_version_is_not_sent_again() {
    let dir = site();
    let page = dir.path().join("site/index.html");
    let server = Server::start(&dir.path().join("site"));
    let first = server.get("/");
    let tag = first.header("etag").unwrap().to_owned();
    let date = first.header("last-modified").unwrap().to_owned();
    let again = |headers: &[(&str, &str)]| request(server.address, "GET", "/", headers, b"");
    for known in [tag.clone(), format!("\"x\", W/{tag}"), "*".into()] {
        let answer = again(&[("If-None-Match", &known)]);
        assert_eq!((answer.status, answer.header("etag")), (304, Some(tag.as_str())), "{known}");
    }
    assert_eq!(again(&[("If-Modified-Since", &date)]).status, 304);
    assert_eq!(again(&[("If-None-Match", "\"x\""), ("If-Modified-Since", &date)]).status, 200);
    // Same length, perhaps the same tick of the clock: another file all the same.
    let next = page.with_file_name("next");
    fs::write(&next, "<h1>v2</h1>").unwrap();
    fs::rename(next, page).unwrap();
    let changed = again(&[("If-None-Match", &tag)]);
    assert_eq!((changed.status, changed.text()), (200, "<h1>v2</h1>"));
}

#[test]
fn nothing_leads_out_of_the_folder() {
    let dir = site();
    let root = dir.path();
    symlink("../secret.txt", root.join("site/out.txt")).unwrap();
    symlink(root.join("secret.txt"), root.join("site/absolute.txt")).unwrap();
    symlink("..", root.join("site/up")).unwrap();
    symlink("/proc/self/cwd", root.join("site/magic")).unwrap();
    symlink("index.html", root.join("site/inside.html")).unwrap();
    symlink("loop", root.join("site/loop")).unwrap();
    nix::unistd::mkfifo(root.join("site/fifo").as_os_str().as_bytes(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let server = Server::start(&root.join("site"));
    for target in [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/docs/../../secret.txt",
        "/docs/..%5c..%5csecret.txt",
        "/out.txt",
        "/absolute.txt",
        "/up/secret.txt",
        "/magic/Cargo.toml",
        "/loop",
        "/fifo",
        "/.env",
        "/.git/config",
        "/%2egit/config",
        "/index.html%00.png",
        "/no",
        "/%zz",
    ] {
        let answer = server.get(target);
        assert_eq!((answer.status, answer.text()), (404, "not found\n"), "{target}");
    }
    assert_eq!(server.get("/inside.html").text(), "<h1>v1</h1>");
}

#[test]
fn other_methods_are_refused() {
    let dir = site();
    let server = Server::start(&dir.path().join("site"));
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = request(server.address, method, "/", &[], b"x");
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{method}");
    }
}

#[test]
fn a_large_file_is_sent_piece_by_piece() {
    let dir = site();
    let file = fs::File::create(dir.path().join("site/large.bin")).unwrap();
    file.set_len(100 * 1024 * 1024).unwrap();
    let server = Server::start(&dir.path().join("site"));
    let answer = server.get("/large.bin");
    assert_eq!((answer.status, answer.body.len()), (200, 100 * 1024 * 1024));
    let status = fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 40 * 1024, "{peak} kB at the peak");
}

#[test]
fn term_lets_the_answer_under_way_end() {
    let dir = site();
    let size = 16 * 1024 * 1024;
    fs::File::create(dir.path().join("site/large.bin")).unwrap().set_len(size).unwrap();
    let mut server = Server::start(&dir.path().join("site"));
    let mut idle = Client::connect(server.address);
    idle.send(&head("GET", "/", &[], None));
    assert_eq!(idle.answer(false).status, 200);
    let mut client = Client::connect(server.address);
    client.send(&head("GET", "/large.bin", &[], None));
    client.wait();
    // More than the sockets hold: it is under way.
    server.term();
    assert!(idle.is_closed());
    assert_eq!(client.answer(false).body.len() as u64, size);
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn what_cannot_be_served_says_why() {
    let dir = site();
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_everhook")).args(args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let folder = dir.path().join("site");
    let folder = folder.to_str().unwrap();
    let missing = format!("{folder}/no");
    let (code, why) = run(&["serve", &missing, "--bind", "127.0.0.1:0"]);
    assert!(code == Some(1) && why.contains(&missing), "{code:?} {why}");
    let (code, why) = run(&["serve", folder]);
    assert!(code == Some(2) && why.contains("--bind"), "{code:?} {why}");
    let server = Server::start(Path::new(folder));
    let taken = server.address.to_string();
    let (code, why) = run(&["serve", folder, "--bind", &taken]);
    assert!(code == Some(1) && why.contains(&taken), "{code:?} {why}");
}
