//! Deliveries from outside: what is understood, what is refused and how, what repeats.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{fs, path::Path};

use http::Answer;
use serde_json::{Value, json};
use server::{Repo, SECRET, Server, sign, unique};

const OLD_SECRET: &str = "the old one";

/// `site` deploys main, `globs` what its globs say, `exact` the branch `x`; each of its repository.
const APPS: &str = r#"
    "site": (deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/secret"),
        previous_secret: File("@DIR@/old"))),
    "globs": (deploy: (repo: "@DIR@/other", on: [Push(branch: "release/*"), Push(branch: "v[0-9]")],
        secret: File("@DIR@/secret"))),
    "exact": (deploy: (repo: "@DIR@/third", on: [Push(branch: "x")], secret: File("@DIR@/secret"))),
    "nosecret": (deploy: (repo: "@DIR@/fourth"))"#;

fn server() -> (Server, Repo) {
    let server = Server::with_apps(APPS);
    // A newline at the end, as an editor leaves it, is no part of a secret.
    server.write_secret("secret", &format!("{SECRET}\n"));
    server.write_secret("old", &format!("{OLD_SECRET}\n"));
    let repo = Repo::new(server.path().join("repo"), &[("VERSION", "1")]);
    (server.started(), repo)
}

fn post(server: &Server, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    http::request(server.address("hooks"), "POST", target, headers, body)
}

/// As GitHub sends it.
fn github_as(server: &Server, target: &str, event: &str, kind: &str, secret: &str, body: &[u8]) -> Answer {
    let (id, signature) = (unique(), sign(secret, body));
    let headers = [
        ("content-type", kind),
        ("x-github-event", event),
        ("x-github-delivery", &id),
        ("x-hub-signature-256", &signature),
    ];
    post(server, target, &headers, body)
}

fn github(server: &Server, target: &str, event: &str, body: &str) -> Answer {
    github_as(server, target, event, "application/json", SECRET, body.as_bytes())
}

fn gitlab(server: &Server, target: &str, event: &str, token: &str, body: &str) -> Answer {
    let id = unique();
    let headers = [
        ("content-type", "application/json"),
        ("x-gitlab-event", event),
        ("x-gitlab-event-uuid", &id),
        ("x-gitlab-token", token),
    ];
    post(server, target, &headers, body.as_bytes())
}

/// `payload=` and the body, with everything encoded.
fn form(body: &str) -> String {
    let encoded: String = body.bytes().map(|byte| format!("%{byte:02X}")).collect();
    format!("payload={encoded}")
}

fn fixture(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

fn fixtures(folder: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(folder);
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn gitlab_push(repo: &str, ref_name: &str, commit: &str) -> String {
    let mut body: Value = serde_json::from_str(&fixture("gitlab/push-event.json")).unwrap();
    (body["ref"], body["after"], body["checkout_sha"]) = (ref_name.into(), commit.into(), commit.into());
    body["project"]["git_http_url"] = repo.into();
    body.to_string()
}

fn accepted(answer: &Answer) -> Value {
    let body = answer.json();
    assert_eq!(answer.status, 202, "{body}");
    assert_eq!(body.as_object().unwrap().len(), 2, "{body}");
    body["deploys"].clone()
}

fn skipped(answer: &Answer) -> String {
    let body = answer.json();
    assert_eq!(answer.status, 200, "{body}");
    body["skipped"].as_str().unwrap_or_else(|| panic!("{body}")).to_owned()
}

fn problem(answer: &Answer, status: u16) -> Value {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let body = answer.json();
    assert_eq!(body["status"], status, "{body}");
    assert!(body["title"].is_string(), "{body}");
    body
}

fn newest(server: &Server) -> Value {
    server.json(&["deliveries", "-n", "1"])[0].clone()
}

#[test]
fn a_push_is_taken_in_every_form_and_only_once() {
    let (server, repo) = server();
    let body = repo.push_body();
    server.until("the first deploy", |s| Some(()).filter(|()| s.app("site")["release"].is_string()));
    let live = github(&server, "/hooks/site", "push", &body);
    assert_eq!(live.status, 200, "{}", live.text());
    assert!(live.json().get("duplicate_of").is_some(), "the first deploy made it live: {}", live.text());

    repo.commit(&[("VERSION", "2")], "second");
    let deploys = accepted(&github_as(
        &server,
        "/hooks/site",
        "push",
        "application/x-www-form-urlencoded",
        SECRET,
        form(&repo.push_body()).as_bytes(),
    ));
    assert_eq!(deploys[0]["app"], "site");
    assert_eq!(server.deploy_end(deploys[0]["id"].as_i64().unwrap())["state"], "live");

    let third = repo.commit(&[("VERSION", "3")], "third");
    let body = gitlab_push("http://example.com/x/y.git", "refs/heads/main", &third);
    let deploys = accepted(&gitlab(&server, "/deploy/site", "Push Hook", SECRET, &body));
    let deploy = server.deploy_end(deploys[0]["id"].as_i64().unwrap());
    assert_eq!((&deploy["state"], &deploy["commit"]), (&json!("live"), &json!(third)), "{deploy}");
    assert_eq!(deploy["by"]["kind"], "delivery");

    // The sender's own id makes a repeat, and so does a commit that is live.
    repo.commit(&[("VERSION", "4")], "fourth");
    let (id, body) = (unique(), repo.push_body());
    let (status, first) = server.push("site", &id, &body);
    assert_eq!(status, 202, "{first}");
    for target in [&id, &unique()] {
        server.deploy_end(first["deploys"][0]["id"].as_i64().unwrap());
        let (status, again) = server.push("site", target, &body);
        assert_eq!((status, &again["duplicate_of"]), (200, &first["delivery"]), "{again}");
        assert_eq!(newest(&server)["state"], "duplicate");
    }
    // Without a type it is JSON; slashes and a query make no difference.
    let signature = sign(SECRET, body.as_bytes());
    let headers = [("x-github-event", "push"), ("x-hub-signature-256", signature.as_str())];
    assert_eq!(post(&server, "//hooks//site/?x=1", &headers, body.as_bytes()).status, 200);
}

#[test]
fn without_a_name_the_repository_counts() {
    let (server, repo) = server();
    let head = repo.commit(&[("VERSION", "2")], "second");
    let url = format!("file://{}/", repo.path.display());
    let mut body: Value = serde_json::from_str(&repo.push_body()).unwrap();
    body["repository"]["clone_url"] = url.clone().into();
    for target in ["/hooks", "/deploy"] {
        let answer = github(&server, target, "push", &body.to_string());
        assert!(answer.status == 202 || answer.json().get("duplicate_of").is_some(), "{}", answer.text());
        assert_eq!(newest(&server)["app"], "site");
    }
    let answer = gitlab(&server, "/hooks/", "Push Hook", SECRET, &gitlab_push(&url, "refs/heads/dev", &head));
    assert_eq!(skipped(&answer), "branch \"dev\" is not deployed");
    let stranger = github(&server, "/hooks", "push", &repo.push_body());
    assert_eq!(skipped(&stranger), "no app deploys this repository");
}

/// A repository was renamed or given away: what it sends matches nothing any more, and that is seen.
#[test]
fn what_matches_no_app_any_more_is_told_with_the_nearest() {
    let (server, repo) = server();
    let mut body: Value = serde_json::from_str(&repo.push_body()).unwrap();
    body["repository"]["clone_url"] = format!("{}/repos", server.path().display()).into();
    body["repository"]["full_name"] = "new-owner/repo".into();
    let answer = github(&server, "/hooks", "push", &body.to_string());
    assert_eq!(skipped(&answer), "no app deploys this repository");
    let told = server.until("it is an event", |server| {
        let events = server.events();
        let cause =
            |event: &Value| event["cause"].as_str().filter(|cause| cause.starts_with("unmatched")).map(str::to_owned);
        events.iter().find_map(cause)
    });
    assert!(told.contains("\"new-owner/repo\"") && told.ends_with("the nearest app is \"site\""), "{told}");
    let delivery = newest(&server);
    assert_eq!((&delivery["state"], &delivery["app"]), (&json!("skipped"), &Value::Null), "{delivery}");
}

#[test]
fn only_the_whole_name_of_a_branch_counts() {
    let (server, repo) = server();
    let push = |app: &str, ref_name: &str| {
        github(&server, &format!("/hooks/{app}"), "push", &repo.push_of(ref_name, &"a".repeat(40)))
    };
    for (app, branch) in [
        ("exact", "feature/x"),
        ("exact", "x/y"),
        ("exact", "X"),
        ("exact", "refs/heads/x"),
        ("site", "mai"),
        ("site", "main2"),
        ("globs", "release"),
        ("globs", "v12"),
        ("globs", "hot/release/1"),
    ] {
        assert_eq!(skipped(&push(app, &format!("refs/heads/{branch}"))), format!("branch {branch:?} is not deployed"));
    }
    assert_eq!(skipped(&push("exact", "refs/tags/x")), "tag \"x\" is not deployed");
    assert_eq!(newest(&server)["reason"], "tag \"x\" is not deployed");
    for (app, branch) in [("exact", "x"), ("globs", "release/1.2"), ("globs", "v7")] {
        accepted(&push(app, &format!("refs/heads/{branch}")));
    }
    assert_eq!(
        skipped(&github(&server, "/hooks/site", "push", &repo.push_of("refs/heads/main", &"0".repeat(40)))),
        "branch \"main\" was deleted"
    );
}

#[test]
fn other_events_are_answered_with_the_reason() {
    let (server, _repo) = server();
    let ping = fixture("github/ping.0.json");
    for (kind, body) in [("application/json", ping.clone()), ("application/x-www-form-urlencoded", form(&ping))] {
        let answer = github_as(&server, "/hooks/site", "ping", kind, SECRET, body.as_bytes());
        assert_eq!((answer.status, answer.json()), (200, json!({"pong": true})));
        let delivery = newest(&server);
        assert_eq!((&delivery["state"], &delivery["reason"]), (&json!("skipped"), &json!("ping")), "{delivery}");
    }
    let issues = github(&server, "/hooks/site", "issues", &fixture("github/issues.0.json"));
    assert_eq!(skipped(&issues), "event `issues` is not deployed");
    let answer = gitlab(&server, "/hooks/site", "Tag Push Hook", SECRET, &fixture("gitlab/tag-event.json"));
    skipped(&answer);
}

#[test]
fn every_recorded_delivery_that_proves_itself_is_taken() {
    let (server, _repo) = server();
    for name in fixtures("github") {
        let event = name.split('.').next().unwrap();
        let body = fixture(&format!("github/{name}"));
        for (kind, body) in
            [("application/json", body.clone()), ("application/x-www-form-urlencoded; charset=utf-8", form(&body))]
        {
            let answer = github_as(&server, "/hooks/site", event, kind, SECRET, body.as_bytes());
            assert_eq!(answer.status, 200, "{name} as {kind}: {}", answer.text());
        }
    }
    for (name, event) in [
        ("push-event", "Push Hook"),
        ("tag-event", "Tag Push Hook"),
        ("release-event", "Release Hook"),
        ("system-push-event", "System Hook"),
        ("system-tag-event", "System Hook"),
    ] {
        let answer = gitlab(&server, "/hooks/site", event, SECRET, &fixture(&format!("gitlab/{name}.json")));
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
    }
}

#[test]
fn what_is_not_proven_gets_one_answer_whatever_is_wrong() {
    let (server, repo) = server();
    let body = repo.push_body();
    let wrong = sign("wrong", body.as_bytes());
    let good = sign(SECRET, body.as_bytes());
    let push = ("x-github-event", "push");
    let mut answers = vec![
        github_as(&server, "/hooks/site", "push", "application/json", "wrong", body.as_bytes()),
        github(&server, "/hooks/unknown", "push", &body),
        github(&server, "/hooks/nosecret", "push", &body),
        github(&server, "/hooks/..", "push", &body),
        post(&server, "/hooks/site", &[push], body.as_bytes()),
        post(&server, "/hooks/site", &[push, ("x-hub-signature-256", &wrong)], body.as_bytes()),
        post(&server, "/hooks/site", &[("x-hub-signature-256", &good)], body.as_bytes()),
        post(&server, "/hooks/site", &[push, ("x-hub-signature-256", &good)], format!("{body} ").as_bytes()),
        post(&server, "/hooks", &[push, ("x-hub-signature-256", &wrong)], body.as_bytes()),
        gitlab(&server, "/deploy/site", "Push Hook", "wrong", &fixture("gitlab/push-event.json")),
        gitlab(&server, "/deploy/site", "Push Hook", &format!("{SECRET}x"), "{}"),
        post(&server, "/hooks/site", &[push, ("x-hub-signature-256", &wrong)], b"no json"),
    ];
    // GitHub's signature under another forge's name, or under two, proves nothing.
    for other in ["x-gitea-event", "x-gogs-event", "x-gitee-event", "x-gitlab-event", "x-event-key", "x-vss-activityid"]
    {
        let headers = [push, (other, "push"), ("x-hub-signature-256", good.as_str())];
        answers.push(post(&server, "/hooks/site", &headers, body.as_bytes()));
    }
    answers.push(post(&server, "/hooks/site", &[push, ("x-hub-signature", &good)], body.as_bytes()));
    let first = problem(&answers[0], 401);
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(problem(answer, 401), first, "number {i}");
        let names = |answer: &Answer| answer.headers.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(answer), names(&answers[0]), "number {i}");
    }
    let refused = server.json(&["deliveries", "-n", "100"]);
    let refused = refused.as_array().unwrap();
    assert_eq!(refused.len(), answers.len());
    assert!(refused.iter().all(|d| d["state"] == "refused" && d["reason"].is_string() && d["address"] == "127.0.0.1"));
}

#[test]
fn the_previous_secret_is_good_too() {
    let (server, repo) = server();
    let body = repo.push_of("refs/heads/dev", &repo.head());
    for secret in [SECRET, OLD_SECRET] {
        skipped(&github_as(&server, "/hooks/site", "push", "application/json", secret, body.as_bytes()));
    }
    let other = github_as(&server, "/hooks/exact", "push", "application/json", OLD_SECRET, body.as_bytes());
    problem(&other, 401);
}

#[test]
fn what_is_wrong_has_its_own_answer() {
    let (server, _repo) = server();
    for (event, body) in [("push", "no json"), ("push", "{}"), ("push", "[]")] {
        problem(&github(&server, "/hooks/site", event, body), 400);
    }
    problem(&gitlab(&server, "/hooks/site", "Push Hook", SECRET, "{"), 400);
    problem(&post(&server, "/hooks/site", &[], b""), 411);
    let form = github_as(&server, "/hooks/site", "push", "application/x-www-form-urlencoded", SECRET, b"other=1");
    problem(&form, 400);
    let address = server.address("hooks");
    for method in ["GET", "PUT", "DELETE"] {
        let answer = http::request(address, method, "/hooks/site", &[], &[]);
        problem(&answer, 405);
        assert_eq!(answer.header("allow"), Some("POST"), "{method}");
    }
    for (name, value) in
        [("content-type", "text/plain"), ("content-type", "application/xml"), ("content-encoding", "gzip")]
    {
        problem(&post(&server, "/hooks/site", &[(name, value)], b"{}"), 415);
    }
    let mut client = http::Client::connect(address);
    client.send(&http::head("POST", "/hooks/site", &[], Some(100 << 20)));
    problem(&client.answer(false), 413);
    problem(&post(&server, "/hook", &[], b"{}"), 404);
    assert_eq!(http::request(address, "GET", "/healthz", &[], &[]).text(), "ok");
}
