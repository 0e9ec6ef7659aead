//! A changed config from outside: what a reload does, and that only what changed is touched.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/reloading.rs"]
mod reloading;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    os::unix::fs::{PermissionsExt, symlink},
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use reloading::*;
use serde_json::{Value, json};
use server::{Server, free_address};

#[test]
fn an_unchanged_file_changes_nothing() {
    let server = server();
    let before = pids(&server);
    assert_eq!(server.ok(&["reload"]).trim(), "nothing changes");
    assert_eq!(hup(&server)["to"], "applied");
    assert_eq!(pids(&server), before);
    assert_eq!(server.status()["supervisor"]["config_differs"], false);
}

#[test]
fn only_what_changed_is_touched() {
    let server = server();
    let before = pids(&server);
    server.edit_config("red", "blue");
    assert_eq!(server.status()["supervisor"]["config_differs"], true);
    assert!(server.ok(&["status"]).contains("differs"), "{}", server.ok(&["status"]));
    let plan = server.ok(&["check", "--diff"]);
    assert_eq!(plan.trim(), "two: restarted (env)");
    assert_eq!(pids(&server), before, "a look changes nothing");
    assert_eq!(server.ok(&["reload"]), plan);
    let old = i32::try_from(before["two"].as_i64().unwrap()).unwrap();
    let new = server.wait_new_pid("two", old);
    let mut expected = before.clone();
    expected.insert("two".into(), new.into());
    assert_eq!(pids(&server), expected);
    assert!(environ(&server, "two").contains("COLOUR=blue"));
    assert_eq!(server.status()["supervisor"]["config_differs"], false);
}

#[test]
fn a_policy_counts_without_a_restart() {
    let server = server();
    let pid = server.main_pid("one");
    server.edit_config("policy: Always", "policy: Never");
    assert_eq!(server.ok(&["reload"]).trim(), "one: changed without a restart (restart)");
    assert_eq!(server.main_pid("one"), pid);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    server.until("it stays down", |s| {
        let app = s.app("one");
        assert!(app["state"] != "backoff", "{app}");
        ["failed", "done", "stopped"].contains(&app["state"].as_str().unwrap()).then_some(())
    });
    server.edit_config("policy: Never", "policy: Always");
    server.ok(&["reload"]);
    server.ok(&["start", "one"]);
    assert_ne!(server.main_pid("one"), pid);
}

#[test]
fn what_an_env_file_says_now_restarts_its_app_alone() {
    let server = server();
    let before = pids(&server);
    fs::write(server.path().join("one.env"), "GREETING=good day\n").unwrap();
    assert_eq!(server.status()["supervisor"]["config_differs"], true, "a restart alone does not read it");
    assert_eq!(server.ok(&["reload"]).trim(), "one: restarted (env_file)");
    assert_eq!(server.status()["supervisor"]["config_differs"], false);
    server.wait_new_pid("one", i32::try_from(before["one"].as_i64().unwrap()).unwrap());
    assert!(environ(&server, "one").contains("GREETING=good day"));
    assert_eq!((&pids(&server)["two"], &pids(&server)["three"]), (&before["two"], &before["three"]));
    assert_eq!(server.ok(&["reload"]).trim(), "nothing changes");
}

#[test]
fn what_is_stopped_stays_so_and_enabled_counts() {
    let server = server();
    server.ok(&["stop", "two", "-y"]);
    server.edit_config("red", "blue");
    assert_eq!(server.ok(&["reload"]).trim(), "two: restarted (env)");
    assert_eq!(server.app("two")["state"], "stopped");
    server.ok(&["start", "two"]);
    assert!(environ(&server, "two").contains("COLOUR=blue"));

    server.edit_config("\"COLOUR\": \"blue\"}", "\"COLOUR\": \"blue\"}, enabled: false");
    assert_eq!(server.ok(&["reload"]).trim(), "two: changed without a restart (enabled)");
    let app = server.wait_state("two", "stopped");
    assert!(app["instances"][0]["reason"].as_str().unwrap().contains("disabled"), "{app}");
    server.edit_config(", enabled: false", "");
    server.ok(&["reload"]);
    server.wait_state("two", "ready");
}

#[test]
fn whoever_waits_for_an_app_that_goes_is_told() {
    let server = server();
    let binary = env!("CARGO_BIN_EXE_everhook");
    let mut waiting = Command::new(binary);
    let mut waiting = waiting.args(["wait", "three", "--for", "failed", "--timeout", "20s", "--config"]);
    waiting = waiting.arg(server.config()).stderr(Stdio::piped());
    let waiting = waiting.spawn().unwrap();
    let text = fs::read_to_string(server.config()).unwrap();
    let start = text.find("\"three\"").unwrap();
    let end = text.rfind("\n}").unwrap();
    put(&server, &format!("{}{}", &text[..start], &text[end..]));
    server.ok(&["reload"]);
    let output = waiting.wait_with_output().unwrap();
    let told = server::text(&output);
    assert!([1, 4].contains(&output.status.code().unwrap()) && told.contains("three"), "{told}");
}

#[test]
fn apps_come_and_go_and_come_back() {
    let server = server();
    let before = pids(&server);
    let new = r#""four": (command: "trap 'exec sleep 1005' TERM; sleep 1004 & wait", ready: Immediate, stop: (timeout: "1s")), "one""#;
    server.edit_config("\"one\"", new);
    assert_eq!(server.ok(&["reload"]).trim(), "four: added");
    let four = i64::from({
        server.wait_state("four", "ready");
        server.main_pid("four")
    });
    assert_eq!(&pids(&server)["one"], &before["one"]);
    // It comes back while its earlier life takes its time to end.
    let with = fs::read_to_string(server.config()).unwrap();
    server.edit_config(new, "\"one\"");
    assert_eq!(server.ok(&["reload", "--no-wait"]).trim(), "four: removed");
    server.write_config(&with);
    assert_eq!(server.ok(&["reload"]).trim(), "four: added");
    let again = server.until("it is back", |s| {
        let pid =
            s.status()["apps"].as_array()?.iter().find(|a| a["name"] == "four")?["instances"][0]["pid"].as_i64()?;
        Some(pid).filter(|pid| *pid != four)
    });
    assert!(!fs::exists(format!("/proc/{four}")).unwrap(), "no second copy runs");
    server.wait_state("four", "ready");
    assert_eq!(i64::from(server.main_pid("four")), again);
    server.edit_config(new, "\"one\"");
    server.ok(&["reload"]);
    server.fails(4, &["restart", "four"]);
    assert!(!fs::exists(format!("/proc/{again}")).unwrap());
    let after = pids(&server);
    assert_eq!(after, before);
}

#[test]
fn listeners_come_and_go() {
    let server = server();
    let before = pids(&server);
    let (first, address) = (server.address("hooks"), free_address());
    let entry = format!(", (bind: \"{address}\", serve: [Hooks])]");
    let entry = entry.as_str();
    for round in 0..3 {
        server.edit_config("[Hooks, Api])]", &format!("[Hooks, Api]){entry}"));
        assert_eq!(server.ok(&["reload"]).trim(), format!("listener {address}: opened"), "round {round}");
        let health = |address| http::request(address, "GET", "/healthz", &[], &[]).status;
        assert_eq!((health(address), health(first)), (200, 200));
        server.edit_config(entry, "]");
        assert_eq!(server.ok(&["reload"]).trim(), format!("listener {address}: closed"));
    }
    server.until("nobody listens", |_| TcpStream::connect(address).is_err().then_some(()));
    server.until("as before", |s| (pids(s) == before).then_some(()));
}

#[test]
fn a_reload_waits_for_what_it_starts_and_ends_unless_told_otherwise() {
    let server = server();
    let new = r#""slow": (command: "trap '' TERM; while :; do sleep 1008; done", ready: After("300ms"), stop: (timeout: "300ms")),
        "waits": (command: ["sleep", "1008"], ready: Immediate, after: ["slow"]), "rests": (command: ["true"], enabled: false),
        "later": (command: ["true"], schedule: "0 0 1 1 *"), "one""#;
    server.edit_config("\"one\"", new);
    assert!(server.fails(6, &["reload", "--timeout", "1ms"]).contains("timed out"));
    server.wait_state("waits", "ready");
    server.edit_config("300ms", "301ms");
    assert!(server.ok(&["reload", "--no-wait"]).contains("slow: changed"));
    server.edit_config("\"1008\"], ready", "\"1009\"], ready");
    server.edit_config("trap '' TERM", "trap '' TERM HUP");
    server.ok(&["reload"]);
    for app in ["slow", "waits"] {
        assert_eq!(server.app(app)["state"], "ready", "{app}");
    }
    let slow = server.main_pid("slow");
    server.edit_config("\"slow\": (command", "\"slow\": (enabled: false, command");
    server.ok(&["reload"]);
    assert_eq!(server.app("slow")["state"], "stopped");
    assert!(!fs::exists(format!("/proc/{slow}")).unwrap());
}

#[test]
fn many_reloads_at_once_end_at_the_last_file() {
    let server = server();
    let before = pids(&server);
    let good = fs::read_to_string(server.config()).unwrap();
    let extra = r#""extra": (command: ["sleep", "1009"], ready: Immediate), "#;
    for round in 0..50 {
        // The last file is without it.
        let more = if round % 2 == 0 { extra } else { "" };
        let text = good.replace("red", &format!("red{round}")).replace("\"one\":", &format!("{more}\"one\":"));
        put(&server, &text);
        server.signal(Signal::SIGHUP);
    }
    server.until("the last file is applied", |s| {
        let status = s.status();
        let names: Vec<_> = status["apps"].as_array()?.iter().map(|app| &app["name"]).collect();
        let differs = status["supervisor"]["config_differs"] == true;
        let applied = !differs && names == ["one", "three", "two"];
        (applied && s.app("two")["state"] == "ready" && environ(s, "two").contains("COLOUR=red49")).then_some(())
    });
    let after = pids(&server);
    assert_eq!((&after["one"], &after["three"]), (&before["one"], &before["three"]));
    let is_ours = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains(&format!("PPid:\t{}\n", server.pid()))
    };
    server.until("what is not in the file does not run", |_| {
        (!server::processes("1009").iter().any(is_ours)).then_some(())
    });
}

#[test]
fn a_reload_during_another_starts_from_what_that_one_applied() {
    let server = server();
    let before = pids(&server);
    let good = fs::read_to_string(server.config()).unwrap();
    // The first reload waits in the middle for what its config says.
    let more = good.replace("\"one\"", "\"extra\": (command: [\"sleep\", \"1009\"], ready: Immediate), \"one\"");
    fs::write(server.path().join("more"), more).unwrap();
    fs::remove_file(server.config()).unwrap();
    assert!(Command::new("mkfifo").arg(server.config()).status().unwrap().success());
    server.signal(Signal::SIGHUP);
    let mut first = Command::new("sh");
    let writes = "exec 3>\"$1\"; echo reached; read go; cat more >&3";
    first.args(["-c", writes, "sh"]).arg(server.config()).current_dir(server.path());
    let mut first = first.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(first.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    fs::remove_file(server.config()).unwrap();
    server.write_config(&good);
    server.signal(Signal::SIGHUP);
    // Answered after the signal was heard.
    server.events();
    first.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(first.wait().unwrap().success());
    server.until("the end of the second", |s| (reloads(s) == 2).then_some(()));
    server.until("as before", |s| (pids(s) == before).then_some(()));
    assert_eq!(server.status()["supervisor"]["config_differs"], false);
}

#[test]
fn a_config_behind_links_is_read_through_them() {
    let server = Server::with_apps(APPS);
    fs::write(server.path().join("one.env"), "GREETING=hello\n").unwrap();
    let text = fs::read_to_string(server.config()).unwrap();
    let text = text.replace(&format!("{}/one.env", server.path().display()), "one.env");
    for (folder, colour) in [("..v1", "red"), ("..v2", "green")] {
        let folder = server.path().join(folder);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("supervisor.ron"), text.replace("red", colour)).unwrap();
    }
    fs::remove_file(server.config()).unwrap();
    symlink("..data/supervisor.ron", server.config()).unwrap();
    symlink("..v1", server.path().join("..data")).unwrap();
    let server = server.started();
    server.wait_state("two", "ready");
    server.wait_state("one", "ready");
    assert!(environ(&server, "one").contains("GREETING=hello"));
    let (one, two) = (server.main_pid("one"), server.main_pid("two"));
    symlink("..v2", server.path().join("next")).unwrap();
    fs::rename(server.path().join("next"), server.path().join("..data")).unwrap();
    hup(&server);
    server.wait_new_pid("two", two);
    assert!(environ(&server, "two").contains("COLOUR=green"));
    assert_eq!(server.main_pid("one"), one);
}

#[test]
fn how_everhook_speaks_changes_too() {
    let server = server();
    let before = pids(&server);
    server.edit_config("apps: {", "log: (level: \"error\", format: Json), echo: true, apps: {");
    assert_eq!(server.ok(&["reload"]).trim(), "log: changed\necho: changed");
    let said = server.log().len();
    server.edit_config("level: \"error\"", "level: \"info\"");
    server.ok(&["reload"]);
    server.ok(&["restart", "two"]);
    // What was said before may be written down only now; the last line may be there in part.
    let is_json = |line: &&str| serde_json::from_str::<Value>(line).is_ok();
    let log = server.until("it says so in JSON", |s| {
        let log = s.log()[said..].to_owned();
        log.lines().filter(is_json).any(|line| line.contains("restart")).then_some(log)
    });
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    assert!(whole.lines().skip_while(|line| !is_json(line)).all(|line| is_json(&line)), "{log}");
    server.edit_config("\"sleep\", \"1002\"", "\"sh\", \"-c\", \"echo echoed; exec sleep 1002\"");
    server.ok(&["reload"]);
    server.until("the echo", |s| s.log().contains("echoed\n").then_some(()));
    assert_eq!(pids(&server)["one"], before["one"]);
}

#[test]
fn a_token_and_a_secret_are_read_again() {
    let server = Server::new(
        r#"(state_dir: "@DIR@/state", http: [(bind: "127.0.0.1:0", serve: [Hooks, Api])],
        tokens: [(name: "eye", secret: File("@DIR@/..data/token"), role: Viewer)],
        apps: {"site": (deploy: (repo: "@DIR@/repo", on: [Push(branch: "x")], secret: File("@DIR@/secret")))})"#,
    );
    for (folder, token) in [("..v1", "first"), ("..v2", "second")] {
        fs::create_dir(server.path().join(folder)).unwrap();
        server.write_secret(&format!("{folder}/token"), token);
    }
    symlink("..v1", server.path().join("..data")).unwrap();
    let server = server.started();
    let status = |token: &str| {
        let token = format!("Bearer {token}");
        let headers = [("authorization", token.as_str())];
        http::request(server.address("api"), "GET", "/api/v1/status", &headers, &[]).status
    };
    let body = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/github/push.1.json")).unwrap();
    // Until those that were made by hand are read, nobody says that a token is unknown.
    server.until("all tokens are known", |_| (status("second") != 503).then_some(()));
    assert_eq!((status("first"), status("second"), server.push("site", "1", &body).0), (200, 401, 200));
    symlink("..v2", server.path().join("next")).unwrap();
    fs::rename(server.path().join("next"), server.path().join("..data")).unwrap();
    server.write_secret("secret", "another");
    server.ok(&["reload"]);
    assert_eq!((status("first"), status("second"), server.push("site", "2", &body).0), (401, 200, 401));
}

#[test]
fn the_audit_names_whoever_sent_the_signal() {
    let server = server();
    hup(&server);
    let row = server.json(&["audit"]).as_array().unwrap().last().unwrap().clone();
    let by = json!({"kind": "signal", "pid": std::process::id(), "uid": nix::unistd::getuid().as_raw()});
    assert_eq!((&row["by"], &row["action"], &row["outcome"]), (&by, &json!("reload"), &json!("done")), "{row}");
}

#[test]
fn a_control_socket_that_was_removed_is_made_again() {
    let server = server();
    let before = pids(&server);
    let socket = server.path().join("state/run/control.sock");
    fs::remove_file(&socket).unwrap();
    let told = server.fails(3, &["status"]);
    assert!(told.contains("control.sock") && told.contains("SIGHUP"), "{told}");
    server.signal(Signal::SIGHUP);
    server.until("it answers again", |s| s.cli(&["status"]).status.success().then_some(()));
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o666);
    assert_eq!(pids(&server), before);
}

/// Container runtimes mount secrets readable for everybody, and their mode cannot always be changed.
#[test]
fn a_mounted_secret_is_used_though_its_mode_is_open() {
    if !geteuid().is_root() {
        return println!("not root: nothing can be mounted");
    }
    // A tmpfs that everybody uses, as /tmp may be, is none that was made for secrets.
    let folder = tempfile::Builder::new().prefix("everhook-test-").tempdir_in("/run").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let folder = folder.path();
    let mut server = Server::new(&format!(
        r#"(state_dir: "@DIR@/state", tokens: [(name: "ops", secret: File("{}/hook"), role: Admin)])"#,
        folder.display()
    ));
    for options in ["-t tmpfs none", "-t tmpfs -o ro none"] {
        let folder = folder.display();
        let fill = "mount -o remount,rw $2 && echo mounted >$2/hook && chmod 444 $2/hook && mount -o remount,$1 $2";
        let mode = if options.contains("ro") { "ro" } else { "rw" };
        let mount =
            format!("mount {options} {folder} && set -- {mode} {folder} \"$@\" && {fill} && shift 2 && exec \"$@\"");
        server.start_as(&["unshare", "--mount", "sh", "-c", &mount, "sh"]);
        assert!(server.stop().success(), "{options}");
    }
}

#[test]
fn what_asks_for_a_restart_gets_it_whatever_else_changes() {
    let server = Server::with_apps("\"a\": (command: [\"/bin/sleep\", \"1000\"])").started();
    server.wait_state("a", "ready");
    let pid = server.main_pid("a");
    server.edit_config("\"1000\"]", "\"1001\"], stop: (timeout: \"9s\")");
    server.ok(&["reload"]);
    server.wait_new_pid("a", pid);
}

/// Two entries whose ports the kernel chooses are two listeners all the same.
#[test]
fn a_listener_is_changed_or_closed_and_no_other_of_the_same_address() {
    let entry = |more: &str| format!("(bind: \"127.0.0.1:0\", {more})");
    let config = |entries: &[&str]| {
        let entries: Vec<_> = entries.iter().map(|more| entry(more)).collect();
        format!("(state_dir: \"@DIR@/state\", http: [{}], apps: {{}})", entries.join(", "))
    };
    let (hooks, api, metrics) = ("serve: [Hooks]", "serve: [Api]", "serve: [Metrics]");
    let server = Server::new(&config(&[hooks, api, metrics])).started();
    let staying = |s: &Server| -> Vec<(Value, Value, Value)> {
        let listeners = s.status()["supervisor"]["listeners"].as_array().unwrap().clone();
        let stay = listeners.into_iter().filter(|one| one["state"] != "stopping");
        stay.map(|one| (one["serve"][0].clone(), one["bind"].clone(), one["pid"].clone())).collect()
    };
    let all_ready = |s: &Server| {
        let listeners = s.status()["supervisor"]["listeners"].as_array().unwrap().clone();
        listeners.iter().all(|one| ["ready", "stopping"].contains(&one["state"].as_str().unwrap())).then_some(())
    };
    let status = |s: &Server, at: &str, path: &str| http::request(s.address(at), "GET", path, &[], &[]).status;
    server.until("they listen", all_ready);
    let before = staying(&server);

    // Whoever leaves does not do so while somebody still has to be answered.
    let mut asking = TcpStream::connect(server.address("api")).unwrap();
    asking.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n").unwrap();
    let allowed = format!("{api}, allow: [\"127.0.0.0/8\"]");
    server.write_config(&config(&[hooks, &allowed, metrics]));
    assert_eq!(server.ok(&["reload"]), "listener 127.0.0.1:0: serves anew, as its entry says now\n");
    let changed = staying(&server);
    assert_eq!((&changed[0], &changed[2]), (&before[0], &before[2]), "the others run on");
    assert_eq!((&changed[1].0, &changed[1].1), (&before[1].0, &before[1].1));
    let told = http::request(server.address("metrics"), "GET", "/metrics", &[], &[]);
    let told = String::from_utf8(told.body).unwrap();
    assert_eq!(told.matches("\neverhook_listener_up{").count(), 3, "{told}");
    drop(asking);
    server.until("they listen", all_ready);
    assert_eq!((status(&server, "api", "/api/v1/status"), status(&server, "hooks", "/api/v1/status")), (401, 404));

    server.ok(&["upgrade"]);
    server.until("they listen", all_ready);
    let binds = |of: &[(Value, Value, Value)]| of.iter().map(|one| (one.0.clone(), one.1.clone())).collect::<Vec<_>>();
    assert_eq!(binds(&staying(&server)), binds(&changed));
    assert_eq!((status(&server, "api", "/api/v1/status"), status(&server, "hooks", "/api/v1/status")), (401, 404));

    let before = staying(&server);
    server.write_config(&config(&[&allowed, metrics]));
    assert_eq!(server.ok(&["reload"]), "listener 127.0.0.1:0: closed\n");
    assert_eq!(staying(&server), before[1..], "the others run on");
}
