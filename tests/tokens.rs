//! Tokens that people make: what they open, for how long, and what is left of them anywhere.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{fs, path::Path};

use http::Answer;
use serde_json::{Value, json};
use server::{Server, processes, text};

const CONFIG: &str = r#"(state_dir: "@DIR@/state", http: [(bind: "127.0.0.1:0", serve: [Api])],
    tokens: [(name: "boss", secret: File("@DIR@/boss"), role: Admin)],
    local: {"*": Operator},
    apps: {
        "blog": (command: ["sleep", "1000"], ready: Immediate),
        "shop": (command: ["sleep", "1000"], ready: Immediate),
    })"#;

fn server() -> Server {
    let server = Server::new(CONFIG);
    server.write_secret("boss", "the boss's own words\n");
    server.started()
}

fn call(server: &Server, token: &str, method: &str, target: &str) -> Answer {
    let token = format!("Bearer {token}");
    http::request(server.address("api"), method, &format!("/api/v1/{target}"), &[("authorization", &token)], b"")
}

/// Makes a token; only it is on stdout.
fn create(server: &Server, args: &[&str]) -> String {
    let output = server.cli(&[&["token", "create"], args].concat());
    assert!(output.status.success(), "{}", text(&output));
    let token = String::from_utf8(output.stdout).unwrap().trim_end().to_owned();
    let (prefix, bits) = token.split_once('_').unwrap();
    assert_eq!((prefix, bits.len()), ("everhook", 64), "{token}");
    assert!(bits.bytes().all(|b| b.is_ascii_hexdigit()));
    token
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect()
}

#[test]
fn a_token_opens_what_it_was_made_for_until_it_is_revoked() {
    let mut server = server();
    let token = create(&server, &["ci", "--role", "Operator", "--app", "blog"]);
    assert_eq!(names(&call(&server, &token, "GET", "status").json()["apps"]), ["blog"]);
    assert_eq!(call(&server, &token, "POST", "apps/blog/restart?wait=30s").status, 200);
    assert_eq!(call(&server, &token, "POST", "apps/blog/deploy").status, 403);
    assert_eq!(call(&server, &token, "POST", "apps/shop/restart").status, 404);

    // It outlives the supervisor, and a reload.
    server.kill();
    server.start();
    assert_eq!(call(&server, &token, "GET", "status").status, 200);
    server.ok(&["reload"]);
    assert_eq!(call(&server, &token, "GET", "status").status, 200);

    let listed = server.json(&["token", "list"]);
    assert_eq!(names(&listed), ["boss", "ci"]);
    let me = nix::unistd::getuid().as_raw();
    let row = &listed[1];
    assert_eq!((&row["role"], &row["apps"], &row["source"]), (&json!("Operator"), &json!(["blog"]), &json!("created")));
    assert_eq!((&row["by"]["uid"], &row["expires_at"], &row["expired"]), (&json!(me), &json!(null), &json!(false)));
    let table = server.ok(&["token", "list"]);
    assert!(table.contains("NAME") && table.contains("the config") && table.contains("Operator"), "{table}");

    server.ok(&["token", "revoke", "ci"]);
    assert_eq!(call(&server, &token, "GET", "status").status, 401);
    server.kill();
    server.start();
    assert_eq!(call(&server, &token, "GET", "status").status, 401);
    assert_eq!(names(&server.json(&["token", "list"])), ["boss"]);
}

#[test]
fn a_token_expires() {
    let server = server();
    let token = create(&server, &["guest", "--role", "viewer", "--expires", "1s"]);
    let lasting = create(&server, &["lasting", "--role", "viewer", "--expires", "90d"]);
    let deadline = std::time::Instant::now() + server::LIMIT;
    let answer = loop {
        let answer = call(&server, &token, "GET", "status");
        if answer.status != 200 {
            break answer;
        }
        assert!(std::time::Instant::now() < deadline, "it never expires");
        std::thread::yield_now();
    };
    assert_eq!(answer.status, 401);
    assert!(answer.text().contains(r#"the token \"guest\" expired at"#), "{}", answer.text());
    assert_eq!(call(&server, &lasting, "GET", "status").status, 200);
    let listed = server.json(&["token", "list"]);
    let expired: Vec<_> = listed.as_array().unwrap().iter().map(|row| row["expired"].as_bool().unwrap()).collect();
    assert_eq!((names(&listed), expired), (vec!["boss", "guest", "lasting"], vec![false, true, false]));
}

#[test]
fn what_cannot_be_made_or_revoked_is_told() {
    let server = server();
    create(&server, &["ci", "--role", "viewer"]);
    for (code, args, words) in [
        (1, &["create", "ci", "--role", "admin"][..], "there is a token \"ci\" already; `everhook token revoke ci`"),
        (1, &["create", "boss", "--role", "admin"], "there is a token \"boss\" already, in "),
        (2, &["create", "a b", "--role", "admin"], "no name for a token"),
        (2, &["create", "", "--role", "admin"], "no name for a token"),
        (2, &["create", "x", "--role", "owner"], "[possible values: viewer, operator, deployer, admin]"),
        (2, &["create", "x"], "--role"),
        (2, &["create", "x", "--role", "viewer", "--expires", "soon"], "soon"),
        (4, &["create", "x", "--role", "viewer", "--app", "blgo"], "did you mean \"blog\"?"),
        (4, &["revoke", "cj"], "token \"cj\" does not exist; did you mean \"ci\"?"),
        (1, &["revoke", "boss"], "supervisor.ron: take it out there and reload"),
    ] {
        let told = server.fails(code, &[&["token"], args].concat());
        assert!(told.contains(words), "{args:?}: {told}");
    }
    assert_eq!(names(&server.json(&["token", "list"])), ["boss", "ci"]);
}

#[test]
fn only_an_admin_makes_tokens_and_the_audit_tells_of_every_try() {
    let server = server();
    let token = create(&server, &["ci", "--role", "deployer", "--app", "blog", "--expires", "90d"]);
    server.ok(&["token", "revoke", "ci"]);
    server.fails(4, &["token", "revoke", "ci"]);
    assert_eq!(call(&server, &token, "POST", "apps/blog/stop").status, 401);
    let audit = server.json(&["audit"]);
    let rows: Vec<_> = audit.as_array().unwrap().iter().map(|row| json!([row["action"], row["outcome"]])).collect();
    let expected =
        [["token create", "done"], ["token revoke", "done"], ["token revoke", "refused"], ["stop", "refused"]];
    assert_eq!(rows, expected.map(|row| json!(row)));
    assert_eq!(audit[0]["reason"], "ci: Deployer for blog, for 90d");
    assert_eq!(audit[3]["address"], "127.0.0.1");

    let filtered = |args: &[&str]| server.json(&[&["audit"], args].concat()).as_array().unwrap().len();
    assert_eq!(filtered(&["--outcome", "refused"]), 2);
    assert_eq!(filtered(&["--action", "token revoke", "--outcome", "done"]), 1);
    assert_eq!(filtered(&["--by", "nobody"]), 1);
    assert_eq!(filtered(&["blog"]), 1);
    assert_eq!(filtered(&["shop"]), 0);
    assert_eq!(filtered(&["-n", "2"]), 2);
    assert_eq!(filtered(&["--since", "1h", "--action", "stop"]), 1);

    if nix::unistd::getuid().is_root() {
        for args in [&["token", "create", "mine", "--role", "admin"][..], &["token", "list"], &["audit"]] {
            let output = server.cli_as(60_999, args);
            assert_eq!(output.status.code(), Some(5), "{}", text(&output));
            assert!(text(&output).contains("Admin"), "{}", text(&output));
        }
        assert_eq!(filtered(&["--by", "nobody"]) + filtered(&["--action", "token create"]), 3);
    } else {
        eprintln!("left out: other users need root");
    }
}

#[test]
fn a_guesser_is_slowed_down_and_nobody_else() {
    let server = server();
    let token = create(&server, &["ci", "--role", "viewer"]);
    let late = create(&server, &["late", "--role", "viewer"]);
    assert_eq!(call(&server, &token, "GET", "status").status, 200);
    let refused = (0..30).map(|n| call(&server, &format!("guess {n}"), "POST", "apps/blog/stop")).find(|answer| {
        assert!([401, 429].contains(&answer.status), "{}", answer.text());
        answer.status == 429
    });
    let refused = refused.expect("somebody who guesses is held back");
    let wait: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    // What has been right from this address goes on; what has not is not even looked at.
    assert_eq!(call(&server, &token, "GET", "status").status, 200);
    assert_eq!(call(&server, &late, "GET", "status").status, 429);
    let rows = server.json(&["audit", "--by", "nobody"]).as_array().unwrap().len();
    assert!((10..20).contains(&rows), "{rows} rows of what was looked at");
    assert_eq!(http::request(server.address("api"), "GET", "/healthz", &[], b"").status, 200);
}

#[test]
fn a_token_goes_with_its_app_to_another_name() {
    let server = server();
    let token = create(&server, &["ci", "--role", "operator", "--app", "blog", "--app", "shop"]);
    server.edit_config(r#""blog": ("#, r#""site": (was: "blog", "#);
    server.ok(&["reload"]);
    assert_eq!(names(&call(&server, &token, "GET", "status").json()["apps"]), ["shop", "site"]);
    assert_eq!(server.json(&["token", "list"])[1]["apps"], json!(["site", "shop"]));
}

#[test]
fn what_opens_is_kept_nowhere() {
    let mut server = server();
    let token = create(&server, &["ci", "--role", "admin"]);
    assert_eq!(call(&server, &token, "POST", "apps/blog/restart?wait=30s").status, 200);
    let secrets = [token.as_str(), "the boss's own words"];
    for pid in processes(server.path().to_str().unwrap()) {
        for name in ["cmdline", "environ"] {
            let shown = fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            assert!(!has(&shown, &secrets), "{name} of {pid}");
        }
    }
    server.stop();
    let mut files = 0;
    look(&server.path().join("state"), &mut |path, bytes| {
        files += 1;
        assert!(!has(bytes, &secrets), "{}", path.display());
    });
    assert!(files > 3, "{files}");
    assert!(!has(server.log().as_bytes(), &secrets));
}

fn has(bytes: &[u8], secrets: &[&str]) -> bool {
    secrets.iter().any(|secret| memchr::memmem::find(bytes, secret.as_bytes()).is_some())
}

fn look(folder: &Path, see: &mut impl FnMut(&Path, &[u8])) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            look(&entry.path(), see);
        } else if kind.is_file() {
            see(&entry.path(), &fs::read(entry.path()).unwrap());
        }
    }
}
