//! `/metrics`: what Prometheus reads tells what really happened.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    io::Write,
    process::{Command, Stdio},
};

use server::{Repo, Server, text, unique};

const CONFIG: &str = r#"(state_dir: "@DIR@/state",
    http: [(bind: "127.0.0.1:0", serve: [Hooks]), (bind: "127.0.0.1:0", serve: [Metrics])],
    apps: {
        "web": (command: ["sleep", "1000"], ready: Immediate, instances: 2),
        "site": (deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/secret"),
            check: ["! grep -q broken VERSION"])),
        "docs": (deploy: (repo: "@DIR@/repo", on: [Tag("v*")], secret: File("@DIR@/secret"))),
    })"#;

fn server() -> (Server, Repo) {
    let server = Server::new(CONFIG);
    let repo = Repo::new(server.path().join("repo"), &[("VERSION", "1")]);
    let server = server.started();
    assert_eq!(server.deploy_end(1)["state"], "live");
    server.wait_state("web", "ready");
    (server, repo)
}

fn page(server: &Server, accept: &str) -> http::Answer {
    let answer = http::request(server.address("metrics"), "GET", "/metrics", &[("Accept", accept)], b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

/// The value of a sample, as it is written with its labels.
fn value(page: &str, sample: &str) -> f64 {
    let found = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {sample} in\n{page}")).parse().unwrap()
}

/// Waits until samples have these values.
fn wait(server: &Server, samples: &[(&str, f64)]) {
    let mut last = Vec::new();
    let reached = |s: &Server| {
        let page = page(s, "text/plain");
        last = samples.iter().map(|(sample, _)| value(page.text(), sample)).collect();
        samples.iter().zip(&last).all(|((_, expected), seen)| (expected - seen).abs() < f64::EPSILON).then_some(())
    };
    server.until(&format!("{samples:?}"), reached);
}

#[test]
fn promtool_has_nothing_to_say() {
    let (server, repo) = server();
    repo.commit(&[("VERSION", "2")], "second");
    assert_eq!(server.deliver("site", &repo)["state"], "live");
    let page = page(&server, "text/plain");
    assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut promtool) = promtool.spawn() else {
        return eprintln!("left out: promtool is missing (Debian: prometheus)");
    };
    promtool.stdin.take().unwrap().write_all(&page.body).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output).as_str()), (Some(0), ""), "{}", page.text());
}

#[test]
fn whoever_asks_for_openmetrics_gets_it() {
    let (server, _repo) = server();
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let page = page(&server, accept);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(page.header("content-type"), Some(kind));
    assert!(page.text().ends_with("# EOF\n"), "{}", page.text());
    let version = format!("everhook_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert!((value(page.text(), &version) - 1.0).abs() < f64::EPSILON);
    let plain = http::request(server.address("metrics"), "GET", "/metrics", &[], b"");
    assert!(plain.header("content-type").unwrap().starts_with("text/plain"), "{:?}", plain.headers);
}

#[test]
fn what_happens_is_counted() {
    let (server, repo) = server();
    wait(
        &server,
        &[
            ("everhook_app_up{app=\"web\"}", 1.0),
            ("everhook_app_up{app=\"site\"}", 1.0),
            ("everhook_app_state{app=\"site\",state=\"deployed\"}", 1.0),
            ("everhook_instance_up{app=\"web\",instance=\"web.2\"}", 1.0),
            ("everhook_instance_state{app=\"web\",instance=\"web.1\",state=\"ready\"}", 1.0),
            ("everhook_instance_exits_total{app=\"web\",instance=\"web.1\",reason=\"signal\"}", 0.0),
            ("everhook_deploys_total{app=\"site\",state=\"live\"}", 1.0),
            ("everhook_deploys_total{app=\"site\",state=\"failed\"}", 0.0),
            ("everhook_deploys_waiting{app=\"site\"}", 0.0),
            ("everhook_deliveries_total{state=\"accepted\"}", 0.0),
            ("everhook_store_up", 1.0),
            ("everhook_logger_up", 1.0),
        ],
    );
    let start = page(&server, "text/plain");
    for above_zero in [
        "process_start_time_seconds",
        "process_resident_memory_bytes",
        "everhook_loop_turn_seconds_count",
        "everhook_instance_memory_bytes{app=\"web\",instance=\"web.1\"}",
    ] {
        assert!(value(start.text(), above_zero) > 0.0, "{above_zero}");
    }

    let old = server.main_pid("web");
    server.ok(&["signal", "web.1", "KILL"]);
    server.wait_new_pid("web", old);
    server.ok(&["stop", "-y", "web.2"]);
    repo.commit(&[("VERSION", "broken")], "broken");
    assert_eq!(server.deliver("site", &repo)["state"], "failed");
    repo.commit(&[("VERSION", "2")], "mended");
    assert_eq!(server.deliver("site", &repo)["state"], "live");
    assert_eq!(server.push("site", &unique(), &repo.push_body()).0, 200);
    assert_eq!(server.push("site", &unique(), &repo.push_of("refs/heads/dev", &repo.head())).0, 200);
    let stranger = http::request(server.address("hooks"), "POST", "/hooks/site", &[], b"{}");
    assert_eq!(stranger.status, 401);
    // Its repository is none of any app.
    assert_eq!(server.tell("/hooks", "push", &unique(), &repo.push_body()).0, 200);
    wait(
        &server,
        &[
            ("everhook_instance_exits_total{app=\"web\",instance=\"web.1\",reason=\"signal\"}", 1.0),
            ("everhook_instance_restarts_total{app=\"web\",instance=\"web.1\"}", 1.0),
            ("everhook_instance_up{app=\"web\",instance=\"web.1\"}", 1.0),
            ("everhook_instance_up{app=\"web\",instance=\"web.2\"}", 0.0),
            ("everhook_instance_state{app=\"web\",instance=\"web.2\",state=\"stopped\"}", 1.0),
            ("everhook_app_up{app=\"web\"}", 0.0),
            ("everhook_deploys_total{app=\"site\",state=\"live\"}", 2.0),
            ("everhook_deploys_total{app=\"site\",state=\"failed\"}", 1.0),
            ("everhook_deploy_duration_seconds_count{app=\"site\"}", 3.0),
            ("everhook_deploy_duration_seconds_bucket{app=\"site\",le=\"+Inf\"}", 3.0),
            ("everhook_deliveries_total{state=\"accepted\"}", 2.0),
            ("everhook_deliveries_total{state=\"duplicate\"}", 1.0),
            ("everhook_deliveries_total{state=\"skipped\"}", 2.0),
            ("everhook_deliveries_total{state=\"refused\"}", 1.0),
            ("everhook_deliveries_unmatched_total", 1.0),
        ],
    );
}

#[test]
fn they_are_served_where_the_config_says_and_nothing_else_is_there() {
    let (server, _repo) = server();
    let ask = |serve, method, target| http::request(server.address(serve), method, target, &[], b"").status;
    assert_eq!(ask("hooks", "GET", "/metrics"), 404);
    for target in ["/api/v1/status", "/api/v1/openapi.json", "/api/v1/apps/web"] {
        assert_eq!(ask("metrics", "GET", target), 404, "{target}");
    }
    assert_eq!((ask("metrics", "POST", "/metrics"), ask("metrics", "POST", "/hooks/site")), (405, 404));
    assert_eq!((ask("metrics", "GET", "/healthz"), ask("metrics", "HEAD", "/metrics/")), (200, 200));
}
