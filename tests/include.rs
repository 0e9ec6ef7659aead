//! Apps in files of their own: `include`.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use server::Server;

/// A server whose config includes every file of the folder `apps`.
fn server(apps: &[(&str, &str)]) -> Server {
    let server = Server::new(
        r#"(state_dir: "@DIR@/state", include: ["apps/*.ron"], apps: {
            "main": (command: ["sleep", "1000"], ready: Immediate)})"#,
    );
    fs::create_dir(server.path().join("apps")).unwrap();
    apps.iter().for_each(|(name, text)| write(&server, name, text));
    server
}

fn write(server: &Server, name: &str, text: &str) {
    fs::write(server.path().join("apps").join(name), text).unwrap();
}

/// By another process: a file that this one writes may be inherited by a child that a test beside this
/// one starts, and is then too busy to be executed.
fn write_program(path: &Path, text: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]).arg(path).stdin(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    shell.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
}

#[test]
fn included_apps_run_and_a_file_more_is_a_reload_away() {
    let server = server(&[
        ("blog.ron", r#"(apps: {"blog": (command: ["./run"], env_file: "env", ready: Immediate)})"#),
        ("ignored.txt", "no config"),
        (".hidden.ron", "no config"),
        ("env", "WHERE=here\n"),
    ]);
    write_program(&server.path().join("apps/run"), "#!/bin/sh\npwd >said\necho $WHERE >>said\nexec sleep 1000\n");
    let server = server.started();
    server.wait_state("blog", "ready");
    let folder = server.path().join("apps");
    let said = server.until("what the app said", |_| {
        fs::read_to_string(folder.join("said")).ok().filter(|said| said.lines().count() == 2)
    });
    assert_eq!(said, format!("{}\nhere\n", folder.display()), "paths are relative to the file that names them");
    assert_eq!(server.status()["supervisor"]["config_differs"], false);

    let blog = server.main_pid("blog");
    write(&server, "shop.ron", r#"(apps: {"shop": (command: ["sleep", "1000"], after: ["blog"], ready: Immediate)})"#);
    assert_eq!(server.status()["supervisor"]["config_differs"], true);
    let checked = server.ok(&["check"]);
    assert!(checked.contains("apps/shop.ron") && checked.contains("shop: "), "{checked}");
    let diff = server.ok(&["check", "--diff"]);
    assert!(diff.contains("shop: added"), "{diff}");
    let reloaded = server.ok(&["reload"]);
    assert!(reloaded.contains("shop: added") && reloaded.contains("include: changed"), "{reloaded}");
    server.wait_state("shop", "ready");
    assert_eq!(server.main_pid("blog"), blog);
    fs::remove_file(folder.join("blog.ron")).unwrap();
    write(&server, "shop.ron", r#"(apps: {"shop": (command: ["sleep", "1000"], ready: Immediate)})"#);
    assert!(server.ok(&["reload"]).contains("blog: removed"));
}

#[test]
fn faults_are_told_with_the_file_they_are_in() {
    let server = server(&[("a.ron", r#"(apps: {"a": (command: ["sleep", "1000"], ready: Immediate)})"#)]).started();
    server.wait_state("a", "ready");
    let pid = server.main_pid("a");
    let b = server.path().join("apps/b.ron").display().to_string();
    for (text, place, what) in [
        ("(apps: {\n\"b\": (comand: [\"x\"])})", ":2:7", "did you mean \"command\"?"),
        ("(apps: {\n  \"a\": (command: [\"x\"])})", ":2:3", "apps/a.ron:1:9"),
        ("(apps: {\n\n\"main\": (command: [\"x\"])})", ":3:1", "supervisor.ron:2:13"),
        ("(http: [])", ":1:2", "unknown field \"http\""),
        ("(apps: {\"b\": (command: [\"x\"], after: [\"c\"])})", ":1:", "app \"c\" does not exist"),
    ] {
        write(&server, "b.ron", text);
        for verb in ["check", "reload"] {
            let said = server.fails(1, &[verb]);
            assert!(said.contains(&format!("{b}{place}")) && said.contains(what), "{verb}: {said}");
        }
    }
    fs::remove_file(&b).unwrap();
    server.edit_config("apps/*.ron", "apps/c.ron");
    let said = server.fails(1, &["reload"]);
    assert!(said.contains("supervisor.ron:1:") && said.contains("apps/c.ron: No such file"), "{said}");
    assert_eq!(server.main_pid("a"), pid, "everything runs on");
}

#[test]
fn under_root_nobody_else_writes_an_included_file() {
    if !nix::unistd::geteuid().is_root() {
        return println!("not root: everything belongs to one user anyway");
    }
    let server = server(&[("a.ron", "(apps: {})")]).started();
    let path = server.path().join("apps/a.ron");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let said = server.fails(1, &["reload"]);
    assert!(said.contains(path.to_str().unwrap()) && said.contains("chmod go-w"), "{said}");
}
