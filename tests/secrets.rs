//! Secrets are planted wherever there may be some, everything happens that could show one, and then everything
//! that everhook has written and said is searched for them.
#![allow(clippy::unwrap_used)]

#[path = "support/forge.rs"]
mod forge;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;
#[path = "support/statuses.rs"]
mod statuses;

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use data_encoding::BASE64;
use forge::Forge;
use server::{Repo, Server, sign, text, unique};
use statuses::{Kind, Statuses, TOKEN};

/// Each is found nowhere else; what is short or of many lines is not among them.
const HOOK: &str = "hook-9f31c2 \"quoted\" \\ ümlaut";
const PREVIOUS: &str = "previous-8a72d1e5";
const ENV_HOOK: &str = "environment-hook-5b90";
const GENERIC: &str = "generic-bearer-77e2f0a4";
const BOSS: &str = "boss-token-4410aa9c";
const HTTPS: &str = "https-token-c0ffee12";
const IN_URL: &str = "url-password-ab12cd34";
const FILE_PASSWORD: &str = "env-file-password-3e8d";
const FILE_URL: &str = "database-url-password-19";
const LITERAL: &str = "literal-api-token-6d2b";
/// In place of [`HTTPS`] in its file, while the server runs.
const EXCHANGED: &str = "https-token-of-the-day-71";

const CONFIG: &str = r#"(
    state_dir: "@DIR@/state",
    http: [
        (bind: "127.0.0.1:0", serve: [Hooks], tls: (cert: "@DIR@/cert.pem", key: "@DIR@/key.pem")),
        (bind: "127.0.0.1:0", serve: [Hooks, Api]),
    ],
    tokens: [(name: "boss", secret: File("@DIR@/boss"), role: Admin)],
    apps: {
        "site": (
            command: ["/bin/sh", "-c", "echo app says $DB_PASSWORD; exec sleep 1000"], ready: Immediate,
            env_file: "@DIR@/site.env", env: {"API_TOKEN": "@LITERAL@"},
            deploy: (repo: "@GIT@", on: [Push(branch: "main")], settle: "10ms",
                secret: File("@DIR@/hook"), previous_secret: File("@DIR@/previous"),
                env_from: ["DB_PASSWORD", "DATABASE_URL", "API_TOKEN"],
                check: ["env", "cat leak", "test ! -e bad || { echo @LITERAL@ >&2; exit 3; }"],
                status: (forge: GitHub, api: "@API@", token: File("@DIR@/status")))),
        "crash": (
            command: ["/bin/sh", "-c", "echo dying of $DB_PASSWORD >&2; exit 1", "@LITERAL@"],
            env_file: "@DIR@/site.env", ready: Immediate, restart: (policy: Never)),
        "missing": (command: ["/nowhere/@LITERAL@"], ready: Immediate, restart: (policy: Never),
            env: {"API_TOKEN": "@LITERAL@"}),
        "web": (deploy: (repo: "https://127.0.0.1:1/web.git", secret: Env("EVERHOOK_TEST_HOOK"),
            https_token: (user: "git", token: File("@DIR@/https")))),
        "old": (deploy: (repo: "https://git:@IN_URL@@127.0.0.1:1/old.git", secret: File("@DIR@/hook"))),
        "ssh": (deploy: (repo: "ssh://git@127.0.0.1:1/ssh.git", ssh_key: File("@DIR@/ssh"),
            host_key: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBXTLrcX5BIh3Ik4JvzpdQOz1FT0JVpM4jQpzKXSbIzM")),
        "bearer": (deploy: (repo: "@GIT@", on: [Push(branch: "main")], secret: File("@DIR@/generic"), settle: "10ms",
            dialect: Generic(proof: Bearer, ref: "/ref"))),
    },
)"#;

/// What is planted: its name, and text of it that must be found nowhere.
fn planted(server: &Server) -> Vec<(&'static str, String)> {
    let mut all: Vec<(&str, String)> = [
        ("hook secret", HOOK),
        ("previous secret", PREVIOUS),
        ("secret of the environment", ENV_HOOK),
        ("generic secret", GENERIC),
        ("token", BOSS),
        ("https token", HTTPS),
        ("https token of later", EXCHANGED),
        ("password in a URL", IN_URL),
        ("password of an env file", FILE_PASSWORD),
        ("password in a URL of an env file", FILE_URL),
        ("token in the config", LITERAL),
        ("status token", TOKEN),
    ]
    .map(|(name, text)| (name, text.to_owned()))
    .into();
    // As git shows them that is asked to trace what it does.
    for (name, secret) in all.clone() {
        let escaped = |byte: u8| match byte {
            b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        };
        all.push((name, secret.bytes().map(escaped).collect()));
        all.push((name, BASE64.encode(format!("git:{secret}").as_bytes())));
    }
    for (name, file) in [("TLS key", "key.pem"), ("deploy key", "ssh")] {
        let pem = fs::read_to_string(server.path().join(file)).unwrap();
        let lines = pem.lines().filter(|line| !line.starts_with("-----"));
        // The first line is the same in every key of the kind.
        all.extend(lines.skip(1).map(|line| (name, line.to_owned())));
    }
    all
}

/// A file of a commit that shows the secrets of these names.
fn leak(server: &Server, shown: impl Fn(&str) -> bool) -> String {
    let planted = planted(server).into_iter().filter(|(name, _)| shown(name));
    planted.map(|(name, secret)| format!("{name}: {secret}\n")).collect()
}

/// `None` where it is gone.
fn there<T>(read: std::io::Result<T>) -> Option<T> {
    read.map_or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { None } else { panic!("{e}") }, Some)
}

fn run(folder: &Path, program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).current_dir(folder).output().unwrap();
    assert!(done.status.success(), "{program}: {}", text(&done));
}

struct World {
    server: Server,
    repo: Repo,
    _git: Forge,
    api: Statuses,
    said: Vec<(String, String)>,
    /// Of `token create`, which the config knows nothing of.
    made: Option<(&'static str, String)>,
}

fn world() -> World {
    let server = Server::new("()");
    let folder = server.path();
    let subject = ["req", "-x509", "-days", "90", "-subj", "/CN=test", "-newkey", "rsa:2048", "-nodes"];
    run(folder, "openssl", &[&subject[..], &["-keyout", "key.pem", "-out", "cert.pem"]].concat());
    run(folder, "ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", "ssh"]);
    for (name, content) in [
        ("hook", HOOK),
        ("previous", PREVIOUS),
        ("generic", GENERIC),
        ("boss", BOSS),
        ("https", HTTPS),
        ("status", TOKEN),
    ] {
        server.write_secret(name, content);
    }
    let url = format!("postgres://app:{FILE_URL}@127.0.0.1/db");
    server.write_secret("site.env", &format!("DB_PASSWORD={FILE_PASSWORD}\nDATABASE_URL={url}\n"));
    let api = Statuses::new(Kind::GitHub, "ann/site");
    let leak: String = leak(&server, |name| name != "https token of later");
    let repo = Repo::new(folder.join("git/ann/site"), &[("leak", &leak)]);
    let git = Forge::new(&folder.join("git"));
    let config =
        CONFIG.replace("@GIT@", &git.url("ann/site")).replace("@API@", &format!("http://127.0.0.1:{}", api.port));
    server.write_config(&config.replace("@LITERAL@", LITERAL).replace("@IN_URL@", IN_URL));
    fs::set_permissions(server.config(), fs::Permissions::from_mode(0o600)).unwrap();
    World { server, repo, _git: git, api, said: Vec::new(), made: None }
}

impl World {
    /// Keeps what a command says, well or not.
    fn ask(&mut self, args: &[&str]) {
        self.said.push((args[0].to_owned(), text(&self.server.cli(args))));
    }

    fn get(&mut self, target: &str) {
        let token = format!("Bearer {BOSS}");
        let answer = http::request(self.server.address("api"), "GET", target, &[("authorization", &token)], b"");
        self.said.push((target.to_owned(), format!("{:?} {}", answer.headers, String::from_utf8_lossy(&answer.body))));
    }

    fn post(&mut self, target: &str, headers: &[(&str, &str)], body: &str) -> u16 {
        let answer = http::request(self.server.address("api"), "POST", target, headers, body.as_bytes());
        self.said.push((target.to_owned(), format!("{:?} {}", answer.headers, String::from_utf8_lossy(&answer.body))));
        answer.status
    }

    /// A push as GitHub signs it; its deploy.
    fn push(&mut self, secret: &str) -> i64 {
        let (body, id) = (self.repo.push_body(), unique());
        let signature = sign(secret, body.as_bytes());
        let headers =
            [("x-github-event", "push"), ("x-github-delivery", id.as_str()), ("x-hub-signature-256", &signature)];
        assert_eq!(self.post("/hooks/site", &headers, &body), 202);
        let deploys = self.server.json(&["history", "site", "-n", "1"]);
        deploys[0]["id"].as_i64().unwrap()
    }

    /// Searches a text for everything that is planted.
    fn search(&self, whence: &str, text: &[u8], found: &mut Vec<String>) {
        for (name, secret) in planted(&self.server).into_iter().chain(self.made.clone()) {
            let quoted = serde_json::to_string(&secret).unwrap();
            for form in [secret.as_str(), quoted.trim_matches('"')] {
                if text.windows(form.len()).any(|piece| piece == form.as_bytes()) {
                    found.push(format!("the {name} is in {whence}"));
                }
            }
        }
    }

    /// Searches every file of a folder but what belongs to apps.
    fn search_files(&self, folder: &Path, found: &mut Vec<String>) {
        // What is at work meanwhile, such as git, makes files and removes them.
        let Some(entries) = there(fs::read_dir(folder)) else { return };
        for entry in entries {
            let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap();
            let theirs = ["releases", "cache", "site", "crash"].contains(&name);
            if kind.is_dir() && (folder.ends_with("apps") || !theirs) {
                self.search_files(&path, found);
            } else if kind.is_file() {
                let before = found.len();
                let Some(text) = there(fs::read(&path)) else { continue };
                self.search(path.to_str().unwrap(), &text, found);
                if name == "logger.buffer" {
                    // Here the output of apps passes, and stays theirs.
                    let theirs = found.split_off(before);
                    found.extend(theirs.into_iter().filter(|what| !what.contains("password of an env file")));
                }
            }
        }
    }
}

#[test]
fn no_secret_is_written_or_said() {
    let mut world = world();
    world.server.start_as(&["env", &format!("EVERHOOK_TEST_HOOK={ENV_HOOK}")]);
    // Steps that print everything, one that fails, and commands whose lines hold a secret.
    let first = world.server.until("the first deploy", |server| server.json(&["history", "site"])[0]["id"].as_i64());
    assert_eq!(world.server.deploy_end(first)["state"], "live");
    // Exchanged without a reload, it is known from its first use on.
    world.server.write_secret("https", EXCHANGED);
    assert_eq!(world.server.cli(&["deploy", "web"]).status.code(), Some(1));
    world.repo.commit(&[("bad", "1"), ("leak", &leak(&world.server, |_| true))], "bad");
    let failed = world.push(PREVIOUS);
    let end = world.server.deploy_end(failed);
    assert_eq!(end["state"], "failed", "{end}");
    let reason = end["reason"].as_str().unwrap();
    assert!(reason.contains("***") && reason.contains("exited with 3"), "{reason}");
    world.api.until_last(&world.repo.head(), "failure");
    for app in ["web", "old", "ssh"] {
        world.server.until("its fetch fails", |server| {
            let deploys = server.json(&["history", app]);
            deploys.as_array().unwrap().iter().any(|deploy| deploy["state"] == "failed").then_some(())
        });
    }
    world.server.wait_state("crash", "failed");
    world.server.wait_state("missing", "failed");
    world.server.until("its last words are known", |server| {
        server.instance("crash")["reason"].as_str().is_some_and(|reason| reason.contains("dying of ***")).then_some(())
    });

    // Deliveries: well, badly signed, with the secret itself where a proof is expected, and where none is.
    let body = world.repo.push_body();
    let bearer = format!("Bearer {GENERIC}");
    assert_eq!(world.post("/hooks/bearer", &[("authorization", &bearer)], r#"{"ref": "refs/heads/main"}"#), 202);
    let gitlab =
        r#"{"object_kind": "push", "ref": "refs/heads/dev", "after": "0123456789012345678901234567890123456789"}"#;
    for (target, name, value) in [
        ("/hooks/site", "x-hub-signature-256", format!("sha256={PREVIOUS}")),
        ("/hooks/site", "x-gitlab-token", PREVIOUS.to_owned()),
        ("/hooks/site", "x-gitlab-token", format!("{PREVIOUS}-more")),
        ("/hooks/web", "x-gitlab-token", ENV_HOOK.to_owned()),
        ("/hooks/bearer", "authorization", format!("Bearer {GENERIC}x")),
    ] {
        let gitlabs = name == "x-gitlab-token";
        let event = if gitlabs { ("x-gitlab-event", "Push Hook") } else { ("x-github-event", "push") };
        world.post(target, &[event, (name, &value)], if gitlabs { gitlab } else { &body });
    }
    // A commit's words come with its delivery, before they are fetched.
    let id = "0123456789012345678901234567890123456789";
    let told = format!(
        r#"{{"object_kind": "push", "ref": "refs/heads/main", "after": "{id}", "checkout_sha": "{id}",
           "commits": [{{"id": "{id}", "message": "{PREVIOUS}", "author": {{"name": "{PREVIOUS}"}}}}]}}"#
    );
    let gitlabs = [("x-gitlab-event", "Push Hook"), ("x-gitlab-token", PREVIOUS)];
    assert_eq!(world.post("/hooks/site", &gitlabs, &told), 202);
    // Whatever a sender, proven or not, may say.
    let body = format!(
        r#"{{"object_kind": "push", "ref": "refs/heads/{LITERAL}", "after": "{id}", "user_username": "{BOSS}"}}"#
    );
    assert_eq!(world.post("/hooks/site", &gitlabs, &body), 200);
    let strange = [("x-gitlab-event", FILE_URL), ("x-gitlab-token", PREVIOUS)];
    assert_eq!(world.post("/hooks/site", &strange, &body), 200);
    let named = [("x-github-event", BOSS), ("x-github-delivery", FILE_PASSWORD), ("x-hub-signature-256", HTTPS)];
    assert_eq!(world.post("/hooks/site", &named, &body), 401);
    world.post(&format!("/hooks/{BOSS}"), &gitlabs, &body);
    world.post("/api/v1/apps/site/restart?wait=30s", &[("authorization", &format!("Bearer {BOSS}"))], "");
    world.post("/api/v1/apps/site/restart", &[("authorization", &format!("Bearer {BOSS}x"))], "");

    let made = world.server.ok(&["token", "create", "made", "--role", "admin"]).trim().to_owned();
    for (token, status) in [(made.clone(), 200), (format!("{made}x"), 401)] {
        let token = format!("Bearer {token}");
        let answer =
            http::request(world.server.address("api"), "GET", "/api/v1/status", &[("authorization", &token)], b"");
        assert_eq!(answer.status, status);
    }
    world.made = Some(("made token", made));

    // A reload that fails shows the line that is wrong.
    let good = fs::read_to_string(world.server.config()).unwrap();
    let wrong = format!("\"API_TOKEN\": \"{LITERAL}\"}}, wrong: 1,");
    fs::write(world.server.config(), good.replacen(&format!("\"API_TOKEN\": \"{LITERAL}\"}},"), &wrong, 1)).unwrap();
    world.ask(&["reload"]);
    fs::write(world.server.config(), good).unwrap();
    world.ask(&["reload"]);
    world.ask(&["freeze", "site", "--why", &format!("it says {FILE_PASSWORD}")]);

    for args in [
        &["status"][..],
        &["status", "--json"],
        &["events", "-n", "1000"],
        &["events", "-n", "1000", "--json"],
        &["history", "-n", "1000"],
        &["history", "-n", "1000", "--json"],
        &["history", "show", &failed.to_string()],
        &["logs", "--deploy", &failed.to_string()],
        &["deliveries", "-n", "1000", "--json"],
        &["deliveries", "show", "1"],
        &["audit", "-n", "1000"],
        &["audit", "-n", "1000", "--json"],
        &["token", "list"],
        &["check", "--diff"],
    ] {
        world.ask(args);
    }
    for what in ["status", "apps/site", "apps/crash", "events?n=1000", "deploys?n=1000", "deliveries?n=1000"] {
        world.get(&format!("/api/v1/{what}"));
    }
    world.get(&format!("/api/v1/deploys/{failed}"));

    // What an app itself prints is its own.
    assert!(world.server.ok(&["logs", "crash", "--stderr"]).contains(FILE_PASSWORD));
    let shown = world.server.ok(&["logs", "--deploy", &failed.to_string(), "-n", "1000"]);
    assert!(shown.contains("DB_PASSWORD=*****") && shown.contains("hook secret: *****"), "{shown}");

    let mut found = Vec::new();
    for (what, said) in &world.said {
        world.search(&format!("the answer to {what}"), said.as_bytes(), &mut found);
    }
    for told in world.api.told() {
        world.search("a commit's status", format!("{told:?}").as_bytes(), &mut found);
    }
    let state = world.server.path().join("state");
    world.search_files(&state, &mut found);
    world.search("what the supervisor printed", world.server.log().as_bytes(), &mut found);
    world.server.stop();
    world.search_files(&state, &mut found);
    found.sort();
    found.dedup();
    assert!(found.is_empty(), "{found:#?}");
}

/// Of what comes in two pieces the first is in the file before the second is there, and that file has just begun.
#[test]
fn a_secret_in_two_pieces_is_hidden() {
    const SECRET: &str = "hook-9f31c2-in-two-pieces";
    let mut server = Server::with_apps(
        r#""site": (deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/hook"), settle: "10ms",
            env: {"DIR": "@DIR@"}, check: ["sh said.sh"]))"#,
    );
    server.write_secret("hook", SECRET);
    let (first, second) = SECRET.split_at(9);
    let said = format!("yes '' | head -c 5242880\nprintf {first}\ncat \"$DIR/gate\"\necho {second}\n");
    Repo::new(server.path().join("repo"), &[("said.sh", &said)]);
    let gate = server.path().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    fs::set_permissions(&gate, fs::Permissions::from_mode(0o666)).unwrap();
    server.start();
    let log = server.path().join("state/logs/deploys/1.log");
    server.until("the first piece is there", |_| (fs::read_to_string(&log).ok()? == first).then_some(()));
    drop(fs::File::options().write(true).open(&gate).unwrap());
    let deploy = server.deploy_end(1);
    assert_eq!(deploy["state"], "live", "{deploy}");
    let whole = format!("{}\n", "*".repeat(SECRET.len()));
    server.until("both are hidden", |_| fs::read_to_string(&log).unwrap().starts_with(&whole).then_some(()));
}
