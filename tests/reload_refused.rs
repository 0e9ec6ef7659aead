//! A changed config from outside: what a reload refuses as a whole, and what it tells of what did not come up.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/reloading.rs"]
mod reloading;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt, lchown, symlink},
};

use nix::{
    sys::stat::Mode,
    unistd::{geteuid, mkfifo},
};
use reloading::*;
use serde_json::json;
use server::{Server, free_address};

#[test]
fn a_broken_file_changes_nothing() {
    let server = server();
    let before = pids(&server);
    let good = fs::read_to_string(server.config()).unwrap();
    server.write_config(&good.replace("red", "blue").replace("ready: Immediate, after", "raedy: Immediate, after"));
    for args in [&["reload"][..], &["check"], &["check", "--diff"]] {
        let told = server.fails(1, args);
        let place = format!("{}:4:", server.config().display());
        assert!(told.contains(&place) && told.contains("raedy") && told.contains("ready"), "{args:?}: {told}");
    }
    let event = hup(&server);
    assert_eq!(event["to"], "refused");
    assert!(event["cause"].as_str().unwrap().contains("supervisor.ron:4:"), "{event}");
    assert_eq!(pids(&server), before);
    // Whoever cannot read the config asks the supervisor that runs.
    let status = server.cli(&["status"]);
    let told = server::text(&status);
    assert!(status.status.success() && told.contains("warning") && told.contains("two"), "{told}");
    let audit = server.json(&["audit"]);
    let refused =
        audit.as_array().unwrap().iter().filter(|row| row["action"] == "reload" && row["outcome"] == "refused");
    assert_eq!(refused.count(), 2, "{audit}");

    // A port that is taken, a state_dir that moves: the rest of the file is not applied either.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let entry = format!(", (bind: \"{}\", serve: [Hooks])]", taken.local_addr().unwrap());
    server.write_config(&good.replace("red", "blue").replace("[Hooks, Api])]", &format!("[Hooks, Api]){entry}")));
    let told = server.fails(1, &["reload"]);
    assert!(told.contains(&taken.local_addr().unwrap().to_string()), "{told}");
    assert_eq!(pids(&server), before);
    server.write_config(&good);
    assert_eq!(server.ok(&["reload"]).trim(), "nothing changes");
}

/// Each would keep an app from its next start: whoever runs is not ended for it.
#[test]
fn what_is_certain_to_fail_is_refused_and_touches_nobody() {
    let server = server();
    let before = pids(&server);
    let good = fs::read_to_string(server.config()).unwrap();
    fs::write(server.path().join("text"), "no program\n").unwrap();
    fs::create_dir(server.path().join("closed")).unwrap();
    fs::set_permissions(server.path().join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    let home = server.path().join("home");
    fs::create_dir(&home).unwrap();
    mkfifo(&home.join("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
    symlink("../one.env", home.join("link")).unwrap();
    let no_user = if geteuid().is_root() { "\"nobody-of-that-name\"" } else { "12345" };
    let folder = |name: &str| format!(r#"directory: "{}/{name}""#, server.path().display());
    let mut cases = vec![
        ("\"sleep\", \"1002\"".to_owned(), "\"no-such-program\"".to_owned(), "no-such-program"),
        ("\"sleep\", \"1002\"".to_owned(), "\"./text\"".to_owned(), "text"),
        ("env: {".to_owned(), format!("user: {no_user}, env: {{"), "user"),
        ("env: {".to_owned(), "env_file: \"no-such-file\", env: {".to_owned(), "no-such-file"),
        // Nobody waits for somebody to write into it.
        ("env: {".to_owned(), "env_file: \"home/fifo\", env: {".to_owned(), "fifo is no regular file"),
        ("env: {".to_owned(), format!("{}, env: {{", folder("nowhere")), "nowhere"),
        ("env: {".to_owned(), "schedule: \"61 * * * *\", env: {".to_owned(), "61"),
    ];
    if geteuid().is_root() {
        let closed = format!("user: \"60999\", {}, env: {{", folder("closed"));
        cases.push(("env: {".to_owned(), closed, "closed: Permission denied for uid 60999"));
        // Who runs an app does not have root read to it what it may not read itself.
        for path in [home.clone(), home.join("link")] {
            lchown(path, Some(60_999), None).unwrap();
        }
        let linked = "user: \"60999\", env_file: \"home/link\", env: {".to_owned();
        cases.push(("env: {".to_owned(), linked, "a link of another user leads to it"));
    }
    for (from, to, what) in &cases {
        // What else is in the file is not applied either.
        let more = r#""more": (command: ["sleep", "1006"]), "one""#;
        server.write_config(&good.replace(from, to).replace("\"one\"", more));
        for verb in [&["reload"][..], &["check", "--diff"]] {
            let told = server.fails(1, verb);
            let place = format!("{}:3:", server.config().display());
            assert!(told.contains("app \"two\": ") && told.contains(what) && told.contains(&place), "{to}: {told}");
        }
        assert_eq!((pids(&server), server.app("two")["state"].clone()), (before.clone(), "ready".into()), "{to}");
        assert_eq!(server.status()["supervisor"]["config_differs"], true);
    }
    assert_eq!(hup(&server)["to"], "refused");
    // What does not run may be as it is.
    server.write_config(
        &good.replace("\"sleep\", \"1002\"", "\"no-such-program\"").replace("env: {", "enabled: false, env: {"),
    );
    server.ok(&["reload"]);
}

#[test]
fn what_is_wrong_with_a_new_app_is_told_and_stops_no_other() {
    let server = server();
    let before = pids(&server);
    for (n, wait) in [(1, true), (2, false)] {
        let lame = format!("\"lame{n}\": (command: [\"no-such-program\"]),\n");
        let more = format!("\"more{n}\": (command: [\"sleep\", \"1006\"], ready: Immediate),\n");
        server.edit_config("\"one\"", &format!("{lame}{more}\"one\""));
        let told = server.fails(1, if wait { &["reload"] } else { &["reload", "--no-wait"] });
        let why = format!("the config is applied, but lame{n}: program \"no-such-program\" is not in PATH");
        assert!(told.contains(&why) && told.contains(&format!("supervisor.ron:{}:", 2 * n)), "{told}");
        assert_eq!(server.app(&format!("lame{n}"))["state"], "failed");
        server.wait_state(&format!("more{n}"), "ready");
    }
    let after = pids(&server);
    assert!(before.iter().all(|(name, pid)| after[name] == *pid), "{after:?}");
}

#[test]
fn a_reload_tells_what_did_not_come_up_and_tries_it_again() {
    for (replace, runs_on) in [("StartFirst", true), ("StopFirst", false)] {
        let server = server();
        let pid = server.main_pid("two");
        server.edit_config("env: {", &format!("replace: {replace}, restart: (first: \"1m\"), env: {{"));
        assert!(server.ok(&["reload"]).starts_with("two: changed without a restart (restart"));
        server.edit_config("\"sleep\", \"1002\"", "\"sh\", \"-c\", \"exit 7\"");
        server.edit_config("ready: Immediate, replace", "ready: Fd(fd: 3), replace");
        let told = server.fails(1, &["reload"]);
        assert!(told.contains("the config is applied, but two: exited with 7"), "{told}");
        assert_eq!(told.contains("the one before runs on"), runs_on, "{told}");
        let (app, differs) = (server.app("two"), server.status()["supervisor"]["config_differs"].clone());
        assert_eq!((&app["state"], &differs), (&if runs_on { "ready" } else { "backoff" }.into(), &runs_on.into()));
        let plan = if runs_on { "two: restarted (not done yet)" } else { "nothing changes" };
        assert_eq!(server.ok(&["check", "--diff"]).trim(), plan);
        if runs_on {
            assert_eq!(server.main_pid("two"), pid);
            let reason = app["reason"].as_str().unwrap();
            assert!(reason.contains("earlier config") && reason.contains("exited with 7"), "{app}");
            assert!(server.ok(&["status"]).contains(&format!("two: {reason}")));
            assert!(server.fails(1, &["reload"]).contains("exited with 7"), "it is tried again");
            hup(&server);
            let told = |s: &Server| s.events().iter().filter(|event| event["to"] == "restart_stopped").count();
            server.until("a reload by signal tells it too", |s| (told(s) == 3).then_some(()));
        }
        server.edit_config("exit 7", "echo >&3; exec sleep 1007");
        assert_eq!(server.ok(&["reload"]).trim(), "two: restarted (command)");
        let status = server.status();
        assert_eq!(
            (&status["supervisor"]["config_differs"], &server.app("two")["reason"]),
            (&json!(false), &json!(null))
        );
        assert_eq!(server.app("two")["state"], "ready");
    }
}

#[test]
fn an_address_that_takes_in_one_that_is_held_is_refused_with_the_way_to_it() {
    let port = free_address().port();
    let config = |bind: &str| {
        let entry = if bind.is_empty() { String::new() } else { format!("(bind: \"{bind}:{port}\", serve: [Hooks])") };
        format!("(state_dir: \"@DIR@/state\", http: [{entry}], apps: {{}})")
    };
    let server = Server::new(&config("127.0.0.1")).started();
    let health = || http::request(([127, 0, 0, 1], port).into(), "GET", "/healthz", &[], &[]).status;
    assert_eq!(health(), 200);
    server.write_config(&config("0.0.0.0"));
    let why = server.fails(1, &["reload"]);
    let told =
        format!("cannot listen on 0.0.0.0:{port}: everhook itself still does on 127.0.0.1:{port}: reload without");
    assert!(why.contains(&told), "{why}");
    assert_eq!(health(), 200);
    server.write_config(&config(""));
    server.ok(&["reload"]);
    server.write_config(&config("0.0.0.0"));
    server.until("the one before has left", |s| s.cli(&["reload"]).status.success().then_some(()));
    assert_eq!(health(), 200);
}
