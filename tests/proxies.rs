//! Who it is that asks: through proxies that are trusted or not, and who may ask at all.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::net::SocketAddr;

use http::Answer;
use server::{Repo, SECRET, Server, sign};

const APPS: &str =
    r#""site": (deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/secret")))"#;

fn server(entry: &str) -> (Server, Repo, SocketAddr) {
    let server = Server::new(&format!(
        r#"(state_dir: "@DIR@/state", http: [(bind: "127.0.0.1:0", serve: [Hooks, Api], {entry})],
            tokens: [(name: "boss", secret: File("@DIR@/boss"), role: Admin)], apps: {{{APPS}}})"#
    ));
    server.write_secret("boss", "boss");
    let repo = Repo::new(server.path().join("repo"), &[("index.html", "1")]);
    let server = server.started();
    assert_eq!(server.deploy_end(1)["state"], "live");
    let at = server.address("hooks");
    (server, repo, at)
}

/// A signed push of another branch, with these headers beside.
fn push(at: SocketAddr, repo: &Repo, headers: &[(&str, &str)]) -> Answer {
    let body = repo.push_of("refs/heads/dev", &repo.head());
    let signature = sign(SECRET, body.as_bytes());
    let all = [&[("x-github-event", "push"), ("x-hub-signature-256", signature.as_str())], headers].concat();
    http::request(at, "POST", "/hooks/site", &all, body.as_bytes())
}

/// The address of the newest delivery, once one is there.
fn address(server: &Server) -> String {
    let newest = server.json(&["deliveries", "-n", "1"]);
    newest[0]["address"].as_str().unwrap().to_owned()
}

#[test]
fn only_a_trusted_proxy_says_who_asks() {
    let (server, repo, at) = server("");
    assert_eq!(push(at, &repo, &[("x-forwarded-for", "192.0.2.7"), ("forwarded", "for=192.0.2.7")]).status, 200);
    assert_eq!(address(&server), "127.0.0.1");

    server
        .edit_config("serve: [Hooks, Api], ", r#"serve: [Hooks, Api], trusted_proxies: ["127.0.0.0/8", "10.0.0.0/8"]"#);
    server.ok(&["reload"]);
    let at = server.address("hooks");
    let seen = |headers: &[(&str, &str)]| {
        assert_eq!(push(at, &repo, headers).status, 200);
        address(&server)
    };
    assert_eq!(seen(&[]), "127.0.0.1");
    assert_eq!(seen(&[("x-forwarded-for", "203.0.113.5, 192.0.2.7, 10.1.1.1")]), "192.0.2.7");
    assert_eq!(seen(&[("x-forwarded-for", "203.0.113.5"), ("x-forwarded-for", "192.0.2.7")]), "192.0.2.7");
    assert_eq!(seen(&[("forwarded", r#"for="[2001:db8::1]:4711";proto=https"#)]), "2001:db8::1");
    assert_eq!(seen(&[("x-forwarded-for", "192.0.2.7"), ("forwarded", "for=192.0.2.8")]), "127.0.0.1");

    let token = [("authorization", "Bearer wrong"), ("x-forwarded-for", "192.0.2.66")];
    assert_eq!(http::request(at, "POST", "/api/v1/apps/site/deploy", &token, b"").status, 401);
    assert_eq!(server.json(&["audit", "--by", "nobody"])[0]["address"], "192.0.2.66");
}

#[test]
fn who_is_not_allowed_is_not_answered() {
    let (_server, repo, at) = server(r#"trusted_proxies: ["127.0.0.1"], allow: ["192.0.2.0/24", "2001:db8::/32"]"#);
    for (from, status) in [
        ("192.0.2.7", 200),
        ("::ffff:192.0.2.7", 200),
        ("2001:db8::7", 200),
        ("192.0.3.7", 403),
        ("2001:db9::7", 403),
        ("unknown", 403),
    ] {
        let answer = push(at, &repo, &[("x-forwarded-for", from)]);
        assert_eq!(answer.status, status, "{from}: {}", answer.text());
    }
    assert_eq!(push(at, &repo, &[]).status, 403, "the proxy itself is none of them");
    assert_eq!(http::request(at, "GET", "/healthz", &[], b"").status, 403);
    let token = [("authorization", "Bearer boss"), ("x-forwarded-for", "192.0.2.7")];
    assert_eq!(http::request(at, "GET", "/api/v1/status", &token, b"").status, 200);
}

/// A stranger adds a header that its proxy passes on, or the proxy hides whom it asks for: neither is the proxy.
#[test]
fn whoever_is_not_named_for_sure_has_no_right_of_the_proxy() {
    let (_server, repo, at) = server(r#"trusted_proxies: ["127.0.0.1"], allow: ["127.0.0.1", "192.0.2.0/24"]"#);
    let asked = |headers: &[(&str, &str)]| push(at, &repo, headers).status;
    assert_eq!(asked(&[]), 200, "the proxy itself is one of them");
    assert_eq!(asked(&[("x-forwarded-for", "192.0.2.7")]), 200);
    for plain in ["203.0.113.5", "unknown", "", "192.0.2.7, unknown"] {
        assert_eq!(asked(&[("x-forwarded-for", plain)]), 403, "{plain}");
    }
    for named in ["for=192.0.2.7", "for=127.0.0.1", "for=_hidden", "proto=https", "x"] {
        assert_eq!(asked(&[("x-forwarded-for", "203.0.113.5"), ("forwarded", named)]), 403, "{named}");
    }
    assert_eq!(asked(&[("forwarded", "for=_hidden")]), 403);
}
