//! `/api/v1` from both sides: what a request with a token becomes, and what each answer of the
//! supervisor looks like over HTTP.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/http.rs"]
mod http;
#[path = "support/listening.rs"]
mod listening;

use std::time::Duration;

use everhook::domain::api::{Ask, DeployOf, Redelivered, Refusal, RefusalKind, Reply, Request, Saying};
use http::{Answer, Client, head, request};
use listening::Listener;
use serde_json::json;

const TOKEN: (&str, &str) = ("Authorization", "Bearer t0ken");

/// Sends a request, and answers the question that it becomes.
fn exchange(listener: &mut Listener, method: &str, target: &str, body: &str, what: Saying) -> (Ask, Answer) {
    let mut client = Client::connect(listener.address);
    let headers = [TOKEN, ("Content-Type", "application/json")];
    client.send(&head(method, target, &headers, Some(body.len()).filter(|n| *n > 0)));
    client.send(body.as_bytes());
    let ask = listener.question();
    listener.say(ask.ticket, what);
    (ask, client.answer(false))
}

fn changed(deploy: Option<i64>) -> Saying {
    Saying::Done(Reply::Changed { app: None, deploy, message: "so it is".into() })
}

#[test]
fn a_change_is_asked_for_and_told() {
    let mut listener = Listener::start("api");
    for (action, body, expected) in [
        ("restart", "", r#"{"restart":{"apps":[{"app":"blog"}]}}"#),
        ("start", "{}", r#"{"start":{"apps":[{"app":"blog"}]}}"#),
        ("stop", "", r#"{"stop":{"apps":[{"app":"blog"}],"confirmed":true}}"#),
        ("deploy", r#"{"rev": "v1"}"#, r#"{"deploy_app":{"app":"blog","rev":"v1"}}"#),
        ("deploy", "", r#"{"deploy_app":{"app":"blog","rev":null}}"#),
        ("rollback", r#"{"to": "7-1a2b3c4"}"#, r#"{"rollback":{"app":"blog","to":"7-1a2b3c4"}}"#),
        ("freeze", r#"{"why": "the fair"}"#, r#"{"freeze":{"app":"blog","why":"the fair"}}"#),
        ("unfreeze", "", r#"{"unfreeze":{"app":"blog"}}"#),
    ] {
        let target = format!("/api/v1/apps/blog/{action}/");
        let (ask, answer) = exchange(&mut listener, "POST", &target, body, changed(Some(7)));
        assert_eq!(serde_json::to_string(&ask.request).unwrap(), expected);
        assert_eq!((ask.token.as_deref(), ask.address.as_deref()), (Some("t0ken"), Some("127.0.0.1")));
        assert_eq!((ask.wait, ask.timeout), (false, None));
        assert_eq!(answer.status, 202);
        assert_eq!(answer.text(), format!(r#"{{"action":"{action}","app":"blog","deploy":7}}"#));
    }
}

#[test]
fn a_dry_run_is_waited_for_and_told_whole() {
    let mut listener = Listener::start("api");
    let preview = json!({
        "app": "blog", "ref": "refs/heads/main", "commit": null, "subject": null, "author": null, "live_release": null,
        "live_commit": null, "release": null, "reason": null, "known": false, "commits": [], "commits_total": 0,
        "taken_back": 0, "files": ["a"], "files_total": 1, "steps": [{"name": "check", "command": "true", "left_out": false}],
        "instances": ["blog.1"], "irreversible": null,
    });
    for (action, query, body, expected, limit) in [
        ("deploy", "", r#"{"dry_run": true}"#, r#"{"deploy_app":{"app":"blog","rev":null,"dry_run":true}}"#, 60),
        ("rollback", "?wait=5s", r#"{"dry_run": true}"#, r#"{"rollback":{"app":"blog","to":null,"dry_run":true}}"#, 5),
    ] {
        let told = Saying::Done(Reply::Preview(serde_json::from_value(preview.clone()).unwrap()));
        let target = format!("/api/v1/apps/blog/{action}{query}");
        let (ask, answer) = exchange(&mut listener, "POST", &target, body, told);
        assert_eq!(serde_json::to_string(&ask.request).unwrap(), expected);
        assert_eq!((ask.wait, ask.timeout), (true, Some(Duration::from_secs(limit))));
        assert_eq!((answer.status, answer.json()), (200, preview.clone()));
    }
}

#[test]
fn a_deploy_is_cancelled_and_approved_by_its_number() {
    let mut listener = Listener::start("api");
    for action in ["cancel", "approve"] {
        let done = || {
            let app = Some("blog".parse().unwrap());
            Saying::Done(Reply::Changed { app, deploy: Some(7), message: "so it is".into() })
        };
        for (query, status) in [("", 202), ("?wait=30s", 200)] {
            let target = format!("/api/v1/deploys/7/{action}{query}");
            let (ask, answer) = exchange(&mut listener, "POST", &target, "", done());
            assert_eq!(serde_json::to_string(&ask.request).unwrap(), format!(r#"{{"{action}":{{"id":7}}}}"#));
            assert_eq!(answer.status, status);
            assert_eq!(answer.text(), format!(r#"{{"action":"{action}","app":"blog","deploy":7}}"#));
        }
    }
}

#[test]
fn a_redelivery_is_answered_as_its_sender_would_be() {
    let mut listener = Listener::start("api");
    let deploys = vec![DeployOf { app: "blog".parse().unwrap(), id: 9 }];
    let accepted = Redelivered { delivery: 32, deploys, duplicate_of: None, reason: None };
    let repeats = "repeats delivery 31".to_owned();
    let duplicate = Redelivered { delivery: 33, deploys: vec![], duplicate_of: Some(31), reason: Some(repeats) };
    for (told, status, body) in [
        (accepted, 202, r#"{"delivery":32,"deploys":[{"app":"blog","id":9}],"duplicate_of":null,"reason":null}"#),
        (duplicate, 200, r#"{"delivery":33,"deploys":[],"duplicate_of":31,"reason":"repeats delivery 31"}"#),
    ] {
        let said = Saying::Done(Reply::Redelivered(told));
        let (ask, answer) = exchange(&mut listener, "POST", "/api/v1/deliveries/31/redeliver", "", said);
        assert!(matches!(ask.request, Request::Redeliver { id: 31 }));
        assert_eq!((answer.status, answer.text()), (status, body));
    }
}

#[test]
fn waiting_ends_in_an_outcome() {
    let mut listener = Listener::start("api");
    let target = "/api/v1/apps/blog/restart?wait=30s";
    let (ask, answer) = exchange(&mut listener, "POST", target, "", changed(None));
    assert_eq!((ask.wait, ask.timeout), (true, Some(Duration::from_secs(30))));
    assert_eq!((answer.status, answer.text()), (200, r#"{"action":"restart","app":"blog","deploy":null}"#));
    let refusal = Refusal::new(RefusalKind::TimedOut, "blog.1 is still starting");
    let (_, answer) = exchange(&mut listener, "POST", target, "", Saying::Refused(refusal));
    assert_eq!((answer.status, answer.json()["detail"].as_str()), (409, Some("blog.1 is still starting")));
}

#[test]
fn every_refusal_has_its_status() {
    let mut listener = Listener::start("api");
    for (kind, status) in [
        (RefusalKind::Unknown, 401),
        (RefusalKind::Forbidden, 403),
        (RefusalKind::NotFound, 404),
        (RefusalKind::Failed, 409),
        (RefusalKind::NeedsConfirmation, 409),
        (RefusalKind::TimedOut, 409),
        (RefusalKind::BadRequest, 400),
        (RefusalKind::Unavailable, 503),
    ] {
        let refusal = Saying::Refused(Refusal::new(kind, "why"));
        let (_, answer) = exchange(&mut listener, "POST", "/api/v1/apps/blog/stop", "", refusal);
        assert_eq!((answer.status, answer.json()["detail"].as_str()), (status, Some("why")), "{kind:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        assert_eq!(answer.header("www-authenticate").is_some(), status == 401);
        assert_eq!(answer.header("retry-after").is_some(), status == 503);
    }
}

#[test]
fn lists_take_an_app_and_a_number() {
    let mut listener = Listener::start("api");
    for (target, expected, reply) in [
        ("/api/v1/deploys?app=blog&n=5", r#"{"history":{"app":"blog","n":5}}"#, Reply::Deploys(vec![])),
        ("/api/v1/deploys", r#"{"history":{"app":null,"n":20}}"#, Reply::Deploys(vec![])),
        ("/api/v1/deliveries?n=100000", r#"{"deliveries":{"app":null,"n":1000}}"#, Reply::Deliveries(vec![])),
    ] {
        let (ask, answer) = exchange(&mut listener, "GET", target, "", Saying::Done(reply));
        assert_eq!(serde_json::to_string(&ask.request).unwrap(), expected);
        assert_eq!((answer.status, answer.text()), (200, "[]"));
    }
    let missing = || Saying::Refused(Refusal::new(RefusalKind::NotFound, "no such deploy"));
    let (ask, answer) = exchange(&mut listener, "GET", "/api/v1/deploys/7", "", missing());
    assert!(matches!(ask.request, Request::Deploy { id: 7 }) && answer.status == 404);
    let (ask, _) = exchange(&mut listener, "GET", "/api/v1/deliveries/31/", "", missing());
    assert!(matches!(ask.request, Request::Delivery { id: 31 }));
    let (ask, _) = exchange(&mut listener, "GET", "/api/v1/status?app=blog", "", missing());
    assert_eq!(serde_json::to_string(&ask.request).unwrap(), r#"{"status":{"apps":[{"app":"blog"}]}}"#);
}

#[test]
fn what_is_wrong_is_said_without_asking() {
    let mut listener = Listener::start("api");
    let at = listener.address;
    let json = ("Content-Type", "application/json");
    let blog = "/api/v1/apps/blog/deploy";
    for (method, target, headers, body, status) in [
        ("POST", blog, vec![], "", 401),
        ("GET", "/api/v1/status", vec![("Authorization", "Basic eDp5")], "", 401),
        ("GET", blog, vec![TOKEN], "", 405),
        ("POST", "/api/v1/status", vec![TOKEN], "{}", 405),
        ("POST", "/api/v1/apps/blog/explode", vec![TOKEN], "", 404),
        ("POST", "/api/v1/apps/Blog!/deploy", vec![TOKEN], "", 404),
        ("GET", "/api/v1/deploys/x", vec![TOKEN], "", 404),
        ("POST", "/api/v1/deploys/x/cancel", vec![TOKEN], "", 404),
        ("POST", "/api/v1/deploys/7/explode", vec![TOKEN], "", 404),
        ("GET", "/api/v1/deploys/7/approve", vec![TOKEN], "", 405),
        ("POST", "/api/v1/deploys/7/approve", vec![], "", 401),
        ("POST", "/api/v1/deploys/7/cancel", vec![TOKEN, json], r#"{"why": "x"}"#, 400),
        ("POST", "/api/v1/deliveries/0/redeliver", vec![TOKEN], "", 404),
        ("POST", "/api/v1/apps/blog/freeze", vec![TOKEN, json], r#"{"reason": "x"}"#, 400),
        ("GET", "/api/v1/deploys?n=many", vec![TOKEN], "", 400),
        ("POST", "/api/v1/apps/blog/deploy?wait=long", vec![TOKEN], "", 400),
        ("POST", "/api/v1/apps/blog/deploy?wait=5h", vec![TOKEN], "", 400),
        ("POST", blog, vec![TOKEN, json], "{", 400),
        ("POST", blog, vec![TOKEN, json], r#"["v1"]"#, 400),
        ("POST", "/api/v1/apps/blog/restart", vec![TOKEN, json], "[]", 400),
        ("POST", "/api/v1/apps/blog/restart", vec![TOKEN, json], "null", 400),
        ("POST", blog, vec![TOKEN, json], r#"{"revision": "v1"}"#, 400),
        ("POST", "/api/v1/apps/blog/restart", vec![TOKEN, json], r#"{"rev": "v1"}"#, 400),
        ("POST", "/api/v1/apps/blog/rollback", vec![TOKEN, json], r#"{"to": "yesterday"}"#, 400),
        ("POST", blog, vec![TOKEN, ("Content-Type", "text/plain")], "{}", 415),
        ("POST", blog, vec![TOKEN, ("Content-Encoding", "gzip")], "{}", 415),
        ("POST", blog, vec![TOKEN, ("Content-Length", "20000")], "", 413),
        ("POST", "/hooks/blog", vec![], "{}", 404),
        ("POST", "/deploy", vec![], "{}", 404),
    ] {
        let answer = request(at, method, target, &headers, body.as_bytes());
        assert_eq!(answer.status, status, "{method} {target} {headers:?} {body}: {}", answer.text());
        assert!(!answer.json()["detail"].as_str().unwrap().contains('\n'));
        assert_eq!(answer.header("www-authenticate"), (status == 401).then_some("Bearer"), "{target}");
    }
    assert!(listener.is_silent());
}

#[test]
fn an_empty_form_is_an_empty_body() {
    let mut listener = Listener::start("api");
    let mut client = Client::connect(listener.address);
    let form = ("Content-Type", "application/x-www-form-urlencoded");
    client.send(&head("POST", "/api/v1/apps/blog/restart", &[TOKEN, form], Some(0)));
    let ask = listener.question();
    listener.say(ask.ticket, changed(None));
    assert_eq!(client.answer(false).status, 202);
}

#[test]
fn health_asks_without_a_token() {
    let mut listener = Listener::start("api");
    let mut client = Client::connect(listener.address);
    client.send(&head("GET", "/healthz", &[], None));
    let ask = listener.question();
    assert_eq!(ask.token, None);
    listener.say(ask.ticket, Saying::Refused(Refusal::new(RefusalKind::Unknown, "no token")));
    let answer = client.answer(false);
    assert_eq!((answer.status, answer.text()), (200, "ok"));
}

#[test]
fn one_listener_may_serve_both_at_their_own_channels() {
    let mut listener = Listener::start("hooks,api");
    let (ask, answer) = exchange(&mut listener, "POST", "/api/v1/apps/blog/start", "", changed(None));
    assert!(matches!(ask.request, Request::Start { .. }) && answer.status == 202);
    let mut client = Client::connect(listener.address);
    client.send(&head("POST", "/hooks/blog", &[], Some(2)));
    client.send(b"{}");
    let (delivery, _) = listener.delivery();
    listener.answer(delivery.ticket, 202, "{}", None);
    assert_eq!(client.answer(false).status, 202);
}
