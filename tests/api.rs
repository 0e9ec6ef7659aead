//! The API from outside: the four roles, what each answers, and that the audit tells of it.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use http::Answer;
use serde_json::{Value, json};
use server::{Repo, Server};

const CONFIG: &str = r#"(state_dir: "@DIR@/state", http: [(bind: "127.0.0.1:0", serve: [Hooks]), (bind: "127.0.0.1:0", serve: [Api])],
    tokens: [
        (name: "eye", secret: File("@DIR@/viewer"), role: Viewer, apps: ["plain", "site"]),
        (name: "hand", secret: File("@DIR@/operator"), role: Operator, apps: ["plain", "lame"]),
        (name: "ci", secret: File("@DIR@/deployer"), role: Deployer, apps: ["site"]),
        (name: "boss", secret: File("@DIR@/admin"), role: Admin),
    ],
    apps: {
        "plain": (command: ["sleep", "1000"], ready: Immediate),
        "lame": (command: ["false"], ready: After("10s")),
        "other": (command: ["sleep", "1000"], ready: Immediate),
        "site": (deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/secret"),
            check: ["! grep -q broken VERSION"])),
    })"#;

fn server() -> (Server, Repo) {
    let server = Server::new(CONFIG);
    for role in ["viewer", "operator", "deployer", "admin"] {
        server.write_secret(role, &format!("token of the {role}\n"));
    }
    let repo = Repo::new(server.path().join("repo"), &[("VERSION", "1")]);
    let server = server.started();
    assert_eq!(server.deploy_end(1)["state"], "live");
    (server, repo)
}

fn call(server: &Server, role: &str, method: &str, target: &str, body: &str) -> Answer {
    let token = format!("Bearer token of the {role}");
    let headers = [("authorization", token.as_str()), ("content-type", "application/json")];
    http::request(server.address("api"), method, &format!("/api/v1/{target}"), &headers, body.as_bytes())
}

fn get(server: &Server, role: &str, target: &str) -> Value {
    let answer = call(server, role, "GET", target, "");
    assert_eq!(answer.status, 200, "{target}: {}", answer.text());
    answer.json()
}

fn post(server: &Server, role: &str, target: &str) -> Answer {
    call(server, role, "POST", &format!("apps/{target}"), "")
}

fn problem(answer: &Answer, status: u16) -> String {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    answer.json()["detail"].as_str().unwrap().to_owned()
}

fn begun(answer: &Answer, action: &str, app: &str) -> Value {
    let body = answer.json();
    let expected = json!({"action": action, "app": app, "deploy": body["deploy"]});
    assert_eq!((answer.status, &body), (202, &expected));
    body["deploy"].clone()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|app| app["name"].as_str().unwrap()).collect()
}

#[test]
fn a_viewer_looks_at_its_own_apps() {
    let (server, repo) = server();
    let (status, _) = server.push("site", "a-1", &repo.push_of("refs/heads/dev", &repo.head()));
    assert_eq!(status, 200);
    let status = get(&server, "viewer", "status");
    assert_eq!(names(&status["apps"]), ["plain", "site"]);
    assert_eq!(names(&get(&server, "viewer", "status?app=site")["apps"]), ["site"]);
    assert_eq!(names(&get(&server, "admin", "status/")["apps"]).len(), 4);
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&status), keys(&server.status()));

    let deploys = get(&server, "viewer", "deploys");
    assert_eq!(deploys, server.json(&["history"]));
    assert_eq!(get(&server, "viewer", "deploys/1"), deploys[0]);
    let deliveries = get(&server, "viewer", "deliveries?app=site&n=5");
    assert_eq!((&deliveries[0]["sender_id"], &deliveries[0]["state"]), (&json!("a-1"), &json!("skipped")));
    assert_eq!(get(&server, "viewer", "deliveries?n=0"), json!([]));
    for list in ["deploys", "deliveries"] {
        assert_eq!(get(&server, "operator", list), json!([]), "{list} of other apps");
    }
    problem(&call(&server, "operator", "GET", "deploys/1", ""), 404);
    problem(&call(&server, "operator", "GET", "deploys?app=site", ""), 404);
    problem(&call(&server, "viewer", "GET", "status?app=other", ""), 404);
    problem(&call(&server, "viewer", "GET", "deploys?n=many", ""), 400);
    problem(&call(&server, "viewer", "POST", "status", ""), 405);
    problem(&call(&server, "viewer", "GET", "apps/plain/restart", ""), 405);
}

#[test]
fn an_operator_restarts_starts_and_stops() {
    let (server, _repo) = server();
    let pid = server.main_pid("plain");
    assert_eq!(begun(&post(&server, "operator", "plain/restart"), "restart", "plain"), Value::Null);
    server.wait_new_pid("plain", pid);
    let stopped = post(&server, "operator", "plain/stop?wait=30s");
    assert_eq!((stopped.status, stopped.json()["action"].clone()), (200, json!("stop")), "{}", stopped.text());
    assert_eq!(server.app("plain")["state"], "stopped");
    assert_eq!(post(&server, "operator", "plain/start?wait=30s").status, 200);
    assert_eq!(server.app("plain")["state"], "ready");
    let reason = problem(&post(&server, "operator", "lame/restart?wait=30s"), 409);
    assert!(reason.contains("lame") && reason.contains('1'), "{reason}");
    problem(&post(&server, "operator", "lame/restart?wait=soon"), 400);
    for refused in ["site/stop", "other/stop", "unknown/stop", "..%2Fx/stop"] {
        problem(&post(&server, "operator", refused), 404);
    }
    for action in ["start", "stop", "restart"] {
        assert!(problem(&post(&server, "admin", &format!("site/{action}")), 409).contains("no command"));
    }
    problem(&call(&server, "operator", "POST", "apps/plain/restart", r#"{"force": true}"#), 400);
    problem(&post(&server, "operator", "plain/explode"), 404);
}

#[test]
fn a_deployer_deploys_and_rolls_back() {
    let (server, repo) = server();
    let first = repo.head();
    let second = repo.commit(&[("VERSION", "2")], "second");
    let id = begun(&post(&server, "deployer", "site/deploy"), "deploy", "site");
    let deploy = server.deploy_end(id.as_i64().unwrap());
    assert_eq!((&deploy["state"], &deploy["commit"]), (&json!("live"), &json!(second)), "{deploy}");
    assert_eq!(deploy["by"], json!({"kind": "token", "name": "ci"}));

    let answer = post(&server, "deployer", "site/rollback?wait=30s");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(server.app("site")["commit"], first.as_str());
    let release = server.deploy_end(id.as_i64().unwrap())["release"].as_str().unwrap().to_owned();
    let to = json!({"to": release}).to_string();
    let answer = call(&server, "deployer", "POST", "apps/site/rollback?wait=30s", &to);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(server.app("site")["commit"], second.as_str());

    let rev = json!({"rev": first}).to_string();
    let answer = call(&server, "deployer", "POST", "apps/site/deploy?wait=30s", &rev);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.json()["deploy"].is_i64());
    assert_eq!(server.app("site")["commit"], first.as_str());

    let before = get(&server, "deployer", "deploys");
    for (target, body) in [("deploy", json!({"dry_run": true, "rev": second})), ("rollback", json!({"dry_run": true}))]
    {
        let answer = call(&server, "deployer", "POST", &format!("apps/site/{target}"), &body.to_string());
        let told = answer.json();
        assert_eq!((answer.status, &told["app"], &told["live_commit"]), (200, &json!("site"), &json!(first)), "{told}");
        if target == "deploy" {
            assert_eq!(
                (&told["commit"], &told["commits_total"], &told["files"]),
                (&json!(second), &json!(1), &json!(["VERSION"])),
                "{told}"
            );
            let check = json!({"name": "check", "command": "! grep -q broken VERSION", "left_out": false});
            assert_eq!(told["steps"], json!([check]));
        }
    }
    problem(&call(&server, "viewer", "POST", "apps/site/deploy", r#"{"dry_run": true}"#), 403);
    assert_eq!(get(&server, "deployer", "deploys"), before);

    repo.commit(&[("VERSION", "broken")], "broken");
    let reason = problem(&post(&server, "deployer", "site/deploy?wait=30s"), 409);
    assert!(reason.contains("check") || reason.contains("grep"), "{reason}");
    let unknown = call(&server, "deployer", "POST", "apps/site/rollback", r#"{"to": "99-abcdef0"}"#);
    assert!([404, 409].contains(&unknown.status), "{}", unknown.text());
    problem(&call(&server, "deployer", "POST", "apps/site/deploy", r#"{"revision": "x"}"#), 400);
    problem(&call(&server, "deployer", "POST", "apps/site/deploy", "no json"), 400);
    assert!(problem(&post(&server, "admin", "plain/deploy"), 409).contains("no repository"));
}

#[test]
fn a_deployer_freezes_cancels_approves_and_has_sent_again() {
    let (server, repo) = server();
    server.edit_config("check: [", "approve: true, check: [");
    server.ok(&["reload"]);
    let push = |id: &str| {
        repo.commit(&[("VERSION", id)], id);
        let (status, answer) = server.push("site", id, &repo.push_body());
        assert_eq!(status, 202, "{answer}");
        (answer["delivery"].as_i64().unwrap(), answer["deploys"][0]["id"].as_i64().unwrap())
    };
    let freeze =
        |role: &str, why: &str| call(&server, role, "POST", "apps/site/freeze", &json!({"why": why}).to_string());
    assert_eq!(begun(&freeze("deployer", "the fair"), "freeze", "site"), Value::Null);
    assert!(get(&server, "viewer", "status?app=site")["apps"][0]["frozen"].as_str().unwrap().ends_with(": the fair"));
    assert!(problem(&post(&server, "deployer", "site/deploy"), 409).contains("the fair"));
    problem(&freeze("deployer", " "), 400);
    begun(&post(&server, "deployer", "site/unfreeze"), "unfreeze", "site");
    problem(&post(&server, "admin", "plain/unfreeze"), 409);

    let (delivery, id) = push("2");
    let of = |role: &str, id: i64, action: &str| call(&server, role, "POST", &format!("deploys/{id}/{action}"), "");
    let cancelled = of("deployer", id, "cancel?wait=30s");
    assert_eq!((cancelled.status, cancelled.json()), (200, json!({"action": "cancel", "app": "site", "deploy": id})));
    assert_eq!(get(&server, "viewer", &format!("deploys/{id}"))["state"], "cancelled");
    assert!(problem(&of("deployer", id, "approve"), 409).contains("has ended already: cancelled"));

    let again = |role: &str| call(&server, role, "POST", &format!("deliveries/{delivery}/redeliver"), "");
    let told = again("deployer");
    assert_eq!(told.status, 202, "{}", told.text());
    let again_id = told.json()["deploys"][0]["id"].as_i64().unwrap();
    let approved = of("deployer", again_id, "approve?wait=30s");
    assert_eq!(approved.status, 200, "{}", approved.text());
    let deploy = get(&server, "viewer", &format!("deploys/{again_id}"));
    assert_eq!((&deploy["state"], &deploy["approved_by"]), (&json!("live"), &json!({"kind": "token", "name": "ci"})));
    let repeats = again("deployer");
    assert_eq!((repeats.status, repeats.json()["deploys"].clone()), (200, json!([])), "{}", repeats.text());

    // Who may only look may not; who may not even look learns nothing.
    for answer in
        [freeze("viewer", "x"), post(&server, "viewer", "site/unfreeze"), of("viewer", id, "cancel"), again("viewer")]
    {
        assert!(problem(&answer, 403).contains("needs the role Deployer for app \"site\""));
    }
    for answer in [freeze("operator", "x"), of("operator", id, "approve"), again("operator"), of("admin", 99, "cancel")]
    {
        problem(&answer, 404);
    }
    let rows = server.json(&["audit"]);
    let by_ci = rows.as_array().unwrap().iter().filter(|row| row["by"]["name"] == "ci");
    let seen: Vec<_> =
        by_ci.map(|row| format!("{} {}", row["action"].as_str().unwrap(), row["outcome"].as_str().unwrap())).collect();
    assert_eq!(
        seen,
        [
            "freeze done",
            "deploy refused",
            "freeze refused",
            "unfreeze done",
            "cancel done",
            "approve refused",
            "redeliver done",
            "approve done",
            "redeliver done"
        ]
    );
}

#[test]
fn whoever_is_not_known_or_may_not_is_told_so() {
    let (server, _repo) = server();
    let address = server.address("api");
    let pid = server.main_pid("plain");
    for headers in [&[][..], &[("authorization", "Bearer wrong")], &[("authorization", "Basic eDp5")]] {
        for (method, target) in [("POST", "apps/plain/restart"), ("POST", "apps/unknown/restart"), ("GET", "status")] {
            let answer = http::request(address, method, &format!("/api/v1/{target}"), headers, &[]);
            problem(&answer, 401);
            assert!(answer.header("www-authenticate").unwrap().starts_with("Bearer"), "{:?}", answer.headers);
        }
    }
    for (role, target, needed) in [
        ("viewer", "plain/restart", "Operator"),
        ("viewer", "site/deploy", "Deployer"),
        ("deployer", "site/explode", ""),
    ] {
        if needed.is_empty() {
            problem(&post(&server, role, target), 404);
        } else {
            let detail = problem(&post(&server, role, target), 403);
            assert!(detail.contains(needed), "{detail}");
        }
    }
    assert_eq!(server.main_pid("plain"), pid);
    // Nothing of the one is served by the other.
    problem(&http::request(server.address("hooks"), "GET", "/api/v1/status", &[], &[]), 404);
    problem(&http::request(address, "POST", "/hooks/site", &[], b"{}"), 404);
}

#[test]
fn the_audit_tells_who_did_what_from_where() {
    let (server, _repo) = server();
    let newest = |server: &Server| server.json(&["audit"]).as_array().unwrap().last().unwrap().clone();
    let token = |name: &str| json!({"kind": "token", "name": name});
    let row = |server: &Server, by: Value, action: &str, app: &str, outcome: &str| {
        let row = newest(server);
        let seen = (&row["by"], &row["action"], &row["app"], &row["outcome"], row["reason"].is_string());
        let expected = (&by, &json!(action), &json!(app), &json!(outcome), outcome == "refused");
        assert_eq!(seen, expected, "{row}");
        row
    };
    post(&server, "operator", "plain/restart?wait=30s");
    assert_eq!(row(&server, token("hand"), "restart", "plain", "done")["address"], "127.0.0.1");
    post(&server, "viewer", "plain/stop");
    let refused = row(&server, token("eye"), "stop", "plain", "refused");
    assert!(refused["reason"].as_str().unwrap().contains("Operator"), "{refused}");
    post(&server, "operator", "other/stop");
    row(&server, token("hand"), "stop", "other", "refused");
    post(&server, "admin", "site/restart");
    row(&server, token("boss"), "restart", "site", "refused");
    post(&server, "nobody", "plain/start");
    let unknown = newest(&server);
    assert_eq!(
        (&unknown["action"], &unknown["app"], &unknown["outcome"], &unknown["address"]),
        (&json!("start"), &json!("plain"), &json!("refused"), &json!("127.0.0.1")),
        "{unknown}"
    );
    post(&server, "deployer", "site/deploy?wait=30s");
    row(&server, token("ci"), "deploy", "site", "done");
    server.ok(&["restart", "plain"]);
    let local = newest(&server);
    assert_eq!(
        (&local["by"]["kind"], &local["by"]["uid"], &local["address"]),
        (&json!("local"), &json!(nix::unistd::geteuid().as_raw()), &Value::Null)
    );
    let rows = server.json(&["audit"]).as_array().unwrap().len();
    get(&server, "viewer", "status");
    server.ok(&["status"]);
    assert_eq!(server.json(&["audit"]).as_array().unwrap().len(), rows, "looking changes nothing");
}

/// Rows of the audit, as verb and outcome.
fn verbs(server: &Server) -> Vec<(String, String)> {
    let rows = server.json(&["audit", "-n", "1000"]);
    let word = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    rows.as_array().unwrap().iter().map(|row| (word(row, "action"), word(row, "outcome"))).collect()
}

/// Waits for one more row than `before`, which must be of this verb.
fn one_more_row(server: &Server, before: usize, verb: &str) -> String {
    let rows = server.until(&format!("a row of {verb}"), |s| Some(verbs(s)).filter(|rows| rows.len() > before));
    assert_eq!((rows.len(), rows[before].0.as_str()), (before + 1, verb), "{rows:?}");
    rows[before].1.clone()
}

#[test]
fn every_change_over_http_stands_in_the_audit() {
    let (server, _repo) = server();
    let document = http::request(server.address("api"), "GET", "/api/v1/openapi.json", &[], b"").json();
    let mut seen = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        if operations["post"]["security"].is_null() {
            continue;
        }
        let (verb, before) = (path.rsplit('/').next().unwrap(), verbs(&server).len());
        let target = path.replace("{app}", "plain").replace("{id}", "1");
        let body = if verb == "freeze" { r#"{"why": "the fair"}"# } else { "{}" };
        let answer = call(&server, "admin", "POST", target.trim_start_matches("/api/v1/"), body);
        let done = matches!(answer.status, 200 | 202);
        assert!(done || [404, 409].contains(&answer.status), "{path}: {}", answer.text());
        assert_eq!(one_more_row(&server, before, verb), if done { "done" } else { "refused" }, "{path}");
        let row = server.json(&["audit", "-n", "1"])[0].clone();
        assert_eq!((&row["by"]["name"], &row["address"]), (&json!("boss"), &json!("127.0.0.1")), "{row}");
        seen.push(verb.to_owned());
    }
    for verb in
        ["restart", "start", "stop", "deploy", "rollback", "freeze", "unfreeze", "cancel", "approve", "redeliver"]
    {
        assert!(seen.iter().any(|seen| seen == verb), "{verb} is in no path of {seen:?}");
    }
}

#[test]
fn every_changing_command_stands_in_the_audit() {
    let (mut server, repo) = server();
    repo.commit(&[("VERSION", "2")], "second");
    assert_eq!(server.deliver("site", &repo)["state"], "live");
    for (args, outcome) in [
        (&["stop", "-y", "plain"][..], "done"),
        (&["start", "plain"], "done"),
        (&["restart", "plain"], "done"),
        (&["signal", "plain", "CONT"], "done"),
        (&["exec", "plain", "--", "true"], "done"),
        (&["freeze", "site", "--why", "the fair"], "done"),
        (&["deploy", "site"], "refused"),
        (&["unfreeze", "site"], "done"),
        (&["deploy", "site"], "done"),
        (&["rollback", "site", "--to", "99-1a2b3c4"], "refused"),
        (&["cancel", "1"], "refused"),
        (&["approve", "1"], "done"),
        (&["deliveries", "redeliver", "1"], "done"),
        (&["token", "create", "guest", "--role", "viewer"], "done"),
        (&["token", "revoke", "guest"], "done"),
        (&["reload"], "done"),
    ] {
        let before = verbs(&server).len();
        let output = server.cli(args);
        let verb = match args[0] {
            "token" => args[..2].join(" "),
            "deliveries" => args[1].to_owned(),
            verb => verb.to_owned(),
        };
        assert_eq!(one_more_row(&server, before, &verb), outcome, "{args:?}: {}", server::text(&output));
    }
    let before = verbs(&server).len();
    server.signal(nix::sys::signal::Signal::SIGHUP);
    one_more_row(&server, before, "reload");
    server.ok(&["shutdown"]);
    assert!(server.ended().success());
    server.start();
    assert_eq!(one_more_row(&server, before + 1, "shutdown"), "done");
}

#[test]
fn groups_of_this_machine_have_the_roles_that_local_gives_them() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("left out: other users need root");
    }
    let server = Server::new(
        r#"(state_dir: "@DIR@/state", local: {"bin": Viewer, "daemon": Operator},
        apps: {"plain": (command: ["sleep", "1000"], ready: Immediate)})"#,
    );
    let server = server.started();
    // The first of them copies the binary to where others may run it.
    assert_eq!(server.cli_as(60_999, &["status"]).status.code(), Some(5));
    let run = |groups: &str, args: &[&str]| {
        let line = server.client(args);
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=60999", "--regid=60999", groups]).arg(server.path().join("everhook"));
        let output = command.args(line.get_args()).current_dir(server.path()).output().unwrap();
        (output.status.code(), server::text(&output))
    };
    let id = |name: &str| nix::unistd::Group::from_name(name).unwrap().unwrap().gid.as_raw();
    let (bin, daemon) = (format!("--groups={}", id("bin")), format!("--groups={}", id("daemon")));
    let both = format!("--groups={},{}", id("bin"), id("daemon"));
    for (groups, args, code) in [
        ("--clear-groups", &["status"][..], 5),
        (&bin, &["status"], 0),
        (&bin, &["restart", "plain"], 5),
        (&daemon, &["restart", "plain"], 0),
        (&both, &["restart", "plain"], 0),
        (&both, &["deploy", "plain"], 5),
        (&daemon, &["audit"], 5),
    ] {
        let (seen, text) = run(groups, args);
        assert_eq!(seen, Some(code), "{groups} {args:?}: {text}");
    }
    let rows = server.json(&["audit"]);
    let seen: Vec<_> = rows.as_array().unwrap().iter().map(|row| (&row["by"]["uid"], &row["outcome"])).collect();
    let row = |outcome| (json!(60_999), json!(outcome));
    let expected = ["refused", "done", "done", "refused"].map(row);
    assert_eq!(seen, expected.iter().map(|(uid, outcome)| (uid, outcome)).collect::<Vec<_>>());
}
