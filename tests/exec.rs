//! `everhook exec`: a command as an app sees the world.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use server::{Server, processes};

const APPS: &str = r#""a": (command: ["sleep", "1000"], directory: "@DIR@/work", env: {"GREETING": "hello"}, ready: Immediate),
    "off": (command: ["sleep", "1000"], enabled: false),
    "bad": (command: ["no-such-program"], directory: "@DIR@/work"),"#;

fn server() -> Server {
    let server = Server::with_apps(APPS);
    fs::create_dir(server.path().join("work")).unwrap();
    let server = server.started();
    server.wait_state("a", "ready");
    server
}

#[test]
fn a_command_runs_as_the_app_and_its_code_is_ours() {
    let server = server();
    let said = server.ok(&["exec", "a", "--", "sh", "-c", "pwd; echo $GREETING $EVERHOOK_APP; cat"]);
    assert_eq!(said, format!("{}/work\nhello a\n", server.path().display()));
    assert_eq!(server.ok(&["exec", "off", "--", "echo", "it need not run"]), "it need not run\n");
    server.fails(7, &["exec", "a", "--", "sh", "-c", "exit 7"]);
    let said = server.fails(143, &["exec", "a", "--", "sh", "-c", "kill $$"]);
    assert!(said.contains("SIGTERM"), "{said}");
    let said = server.fails(1, &["exec", "a", "--", "no-such-command"]);
    assert!(said.contains("no-such-command"), "{said}");
    let said = server.fails(1, &["exec", "bad", "--", "true"]);
    assert!(said.contains("no-such-program"), "{said}");
    server.fails(2, &["exec", "a", "true"]);
    server.fails(4, &["exec", "nobody", "--", "true"]);
    server.fails(4, &["exec", "a.2", "--", "true"]);
    let audit = server.json(&["audit"]);
    let of_exec = audit.as_array().unwrap().iter().filter(|row| row["action"] == "exec").count();
    assert!(of_exec >= 5, "{audit}");
}

#[test]
fn streams_are_the_clients_own_and_its_end_is_the_commands() {
    let mut server = server();
    let mut client = Command::new(env!("CARGO_BIN_EXE_everhook"));
    client.args(["exec", "a", "-c"]).arg(server.config()).args([
        "--",
        "sh",
        "-c",
        "while read line; do echo got $line; done; echo over >&2; exec sleep 4711",
    ]);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = client.stdin.take().unwrap();
    let mut output = BufReader::new(client.stdout.take().unwrap());
    let mut line = String::new();
    for word in ["one", "two"] {
        line.clear();
        writeln!(input, "{word}").unwrap();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, format!("got {word}\n"));
    }
    drop(input);
    line.clear();
    BufReader::new(client.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "over\n");
    let marker = |server: &Server| {
        let own = "EVERHOOK_APP=a";
        processes("4711")
            .into_iter()
            .filter(|pid| {
                let environ = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap_or_default();
                environ.contains(own)
                    && environ.contains("exec-")
                    && fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(server.path()))
            })
            .count()
    };
    server.until("the command sleeps", |s| (marker(s) == 1).then_some(()));
    client.kill().unwrap();
    client.wait().unwrap();
    server.until("the command has ended", |s| (marker(s) == 0).then_some(()));
    assert_eq!(server.app("a")["state"], "ready", "the app runs on");

    let mut client = Command::new(env!("CARGO_BIN_EXE_everhook"));
    client.args(["exec", "a", "-c"]).arg(server.config()).args(["--", "sh", "-c", "echo on; exec sleep 1000"]);
    let mut client = client.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    line.clear();
    BufReader::new(client.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(server.stop().success(), "a command holds up no shutdown");
    assert!(!client.wait().unwrap().success());
}

#[test]
fn only_an_admin_may() {
    if !nix::unistd::geteuid().is_root() {
        return println!("not root: there is nobody else to ask as");
    }
    let mut server = Server::new(
        r#"(state_dir: "@DIR@/state", local: {"*": Deployer}, apps: {"a": (command: ["sleep", "1000"], user: "60999", ready: Immediate)})"#,
    );
    server.start();
    server.wait_state("a", "ready");
    let refused = server.cli_as(1234, &["exec", "a", "--", "id"]);
    assert_eq!(refused.status.code(), Some(5), "{}", server::text(&refused));
    assert_eq!(server.ok(&["exec", "a", "--", "id", "-u"]), "60999\n");
}
