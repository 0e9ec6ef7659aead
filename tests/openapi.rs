//! The OpenAPI document and what is really served say the same.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use server::{Repo, Server, text};

/// Its newer versions may find what this one does not, which is better learned by changing this line.
const SCHEMATHESIS: &str = "4.32.5";

fn server() -> Server {
    let server = Server::new(
        r#"(state_dir: "@DIR@/state", http: [(bind: "127.0.0.1:0", serve: [Hooks, Api, Metrics])],
        tokens: [(name: "boss", secret: File("@DIR@/boss"), role: Admin)],
        apps: {"blog": (command: ["sleep", "1000"], ready: Immediate,
            deploy: (repo: "@DIR@/blog.git", secret: File("@DIR@/secret"), settle: "0s"))})"#,
    );
    server.write_secret("boss", "t0ken");
    let repo = Repo::new(server.path().join("blog.git"), &[("a", "1")]);
    let server = server.started();
    server.wait_state("blog", "ready");
    repo.commit(&[("a", "2")], "second");
    assert_eq!(server.deliver("blog", &repo)["state"], "live");
    server
}

/// Methods that somebody might try.
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];

#[test]
fn it_names_every_method_of_every_path_and_no_other() {
    let server = server();
    let address = server.address("api");
    let document = http::request(address, "GET", "/api/v1/openapi.json", &[], b"");
    assert_eq!((document.status, document.header("content-type")), (200, Some("application/json")));
    let tag = document.header("etag").unwrap();
    assert_eq!(http::request(address, "GET", "/api/v1/openapi.json", &[("If-None-Match", tag)], b"").status, 304);
    let document = document.json();
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 20, "{paths:?}");
    for (path, operations) in paths {
        let target = path.replace("{app}", "blog").replace("{of}", "blog").replace("{id}", "1");
        let told: Vec<String> = operations.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect();
        for method in METHODS {
            let answer = http::request(address, method, &target, &[], b"");
            let is_told = told.iter().any(|told| told == method || (told == "GET" && method == "HEAD"));
            assert_eq!(answer.status == 405, !is_told, "{method} {path}: {}", answer.status);
            assert_ne!(answer.status, 404, "{method} {path}");
            if let Some(allow) = answer.header("allow") {
                let allowed: Vec<&str> = allow.split(", ").filter(|method| *method != "HEAD").collect();
                assert_eq!(allowed, told, "{path}");
            }
            // Of what wants a token nothing is done without one.
            let guarded = !operations[told[0].to_lowercase().as_str()]["security"].is_null();
            assert!(!is_told || !guarded || answer.status == 401, "{method} {path}: {}", answer.status);
        }
    }
}

#[test]
fn schemathesis_finds_nothing() {
    let Some(python) = schemathesis() else { return };
    let server = server();
    let document = format!("http://{}/api/v1/openapi.json", server.address("api"));
    let mut run = Command::new(python);
    run.args(["-m", "schemathesis.cli", "run", &document, "--header", "Authorization: Bearer t0ken"]);
    run.args(["--checks", "all", "--max-examples", "25", "--continue-on-failure", "--no-color"]);
    // The same requests each time, however slow: what a gate tells must not hang on luck.
    run.args(["--seed", "1", "--generation-deterministic"]);
    run.args(["--suppress-health-check", "all", "--request-timeout", "60"]);
    let output = run.current_dir(server.path()).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(server.status()["supervisor"]["listeners"][0]["restarts"], 0);
}

/// The Python that has it: installed once below the target folder, from PyPI.
fn schemathesis() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("schemathesis-{SCHEMATHESIS}"));
    let (python, whole) = (folder.join("bin/python"), folder.join("whole"));
    if whole.exists() {
        return Some(python);
    }
    let _ = fs::remove_dir_all(&folder);
    let package = format!("schemathesis=={SCHEMATHESIS}");
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "2", &package];
    let mut venv = Command::new("/usr/bin/python3");
    venv.args(["-m", "venv"]).arg(&folder);
    let mut install = Command::new(&python);
    install.args(pip);
    for mut command in [venv, install] {
        match command.stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                eprintln!("left out: schemathesis cannot be installed: {}", text(&output).trim());
                return None;
            }
            Err(error) => {
                eprintln!("left out: python3 is missing: {error}");
                return None;
            }
        }
    }
    fs::write(whole, "").unwrap();
    Some(python)
}
