//! What an app finds when it starts: nothing of the supervisor's but what was promised.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt};

use nix::unistd::geteuid;
use server::{Server, text};

/// Where apps of any user may write.
fn shared(server: &Server) -> String {
    let folder = server.path().join("shared");
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).unwrap();
    folder.to_str().unwrap().to_owned()
}

fn wait_file(server: &Server, path: &str) -> String {
    server.until(path, |_| fs::read_to_string(path).ok())
}

/// A shell script that writes what it finds, and then waits.
fn tell(what: &str, file: &str) -> String {
    format!("{{ {what}; }} > {file}.new 2>&1; mv {file}.new {file}; exec sleep 1000")
}

/// What a process was given; in the middle of its exec that cannot be read yet.
fn environment(server: &Server, pid: i32) -> BTreeMap<String, String> {
    let text = server.until("its environment", |_| {
        fs::read_to_string(format!("/proc/{pid}/environ")).ok().filter(|text| !text.is_empty())
    });
    let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn nothing_of_the_supervisors_own_process_is_inherited() {
    let mut server = Server::with_apps(
        "\"a\": (ready: Immediate, command: [\"sleep\", \"1000\"]),\n\"b\": (ready: Immediate, command: [\"sh\", \"-c\", \"cd @DIR@/shared; umask > new; mv new umask; exec sleep 1000\"]),",
    );
    let folder = shared(&server);
    // All signals that can be ignored are, some are blocked, a descriptor is open, and the environment
    // and the umask are odd.
    let outer = "import os, signal, sys\n\
        for s in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD, signal.SIGQUIT, signal.SIGRTMIN, signal.SIGRTMAX): signal.signal(s, signal.SIG_IGN)\n\
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM, signal.SIGRTMAX])\n\
        fd = os.open('/etc/passwd', os.O_RDONLY); os.dup2(fd, 57); os.set_inheritable(57, True)\n\
        os.umask(0o077); os.environ.update(LEAK='1', LC_ALL='C', NOTIFY_SOCKET='/x', LISTEN_FDS='3', PORT='1', PATH='/opt/odd:' + os.environ['PATH'])\n\
        os.execv(sys.argv[1], sys.argv[1:])";
    server.start_as(&["python3", "-c", outer]);
    server.wait_state("a", "ready");
    let pid = server.main_pid("a");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for field in ["SigBlk", "SigIgn"] {
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        assert_eq!(line.split_whitespace().nth(1).unwrap(), "0000000000000000", "{line}");
    }
    // What it has been given it never closes; the libraries that it loads it does.
    let fds = || {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let mut names: Vec<_> = open.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    server.until("three descriptors alone are open", |_| (fds() == ["0", "1", "2"]).then_some(()));
    assert_eq!(fs::read_link(format!("/proc/{pid}/fd/0")).unwrap().to_str(), Some("/dev/null"));
    assert_eq!(wait_file(&server, &format!("{folder}/umask")).trim(), "0022");

    let env = environment(&server, pid);
    let mut names: Vec<_> = env.keys().map(String::as_str).collect();
    names.retain(|name| *name != "TZ");
    assert_eq!(
        names,
        ["EVERHOOK_APP", "EVERHOOK_BOOT", "EVERHOOK_INSTANCE", "HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER"]
    );
    assert_eq!((env["EVERHOOK_APP"].as_str(), env["EVERHOOK_INSTANCE"].as_str()), ("a", "a.1"));
    assert_eq!(env["PATH"], "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    assert_eq!(env["LANG"], "C.UTF-8");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().to_owned();
    assert_eq!(session, pid.to_string(), "a session of its own");
    // The process ends by an ordinary TERM, though its grandparent ignores it.
    server.ok(&["stop", "a"]);
    assert_eq!(server.instance("a")["last_exit"]["signal"], 15);
}

#[test]
fn env_file_comes_before_env_and_port_is_set() {
    let server = Server::with_apps(
        r#""a": (ready: Immediate, command: ["sleep", "1000"], port: 4321, env_file: ["@DIR@/one", "@DIR@/two"],
             env: {"C": "env", "LANG": "de_DE.UTF-8", "WHO": "{instance}", "EVERHOOK_BOOT": "mine"}),"#,
    );
    fs::write(server.path().join("one"), "# comment\nA=one\nB=one\nC=one\nQ='two words' \nE=\"a\\\"b\"\n").unwrap();
    fs::write(server.path().join("two"), "B=two\nC=two\n").unwrap();
    let server = server.started();
    server.wait_state("a", "ready");
    let env = environment(&server, server.main_pid("a"));
    let want = [
        ("A", "one"),
        ("B", "two"),
        ("C", "env"),
        ("Q", "two words"),
        ("E", "a\"b"),
        ("PORT", "4321"),
        ("LANG", "de_DE.UTF-8"),
        ("WHO", "1"),
    ];
    for (name, value) in want {
        assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}: {env:?}");
    }
    assert_ne!(env["EVERHOOK_BOOT"], "mine", "whoever looks for the tree needs it");
}

#[test]
fn text_beyond_ascii_can_be_printed() {
    let server = Server::with_apps(
        r#""a": (restart: (policy: OnFailure), ready: After("30s"), command: ["python3", "-c", "print('\u{e9}')"])"#,
    )
    .started();
    server.wait_state("a", "done");
    server.until("it is in the log", |s| s.ok(&["logs", "a"]).contains('\u{e9}').then_some(()));
}

#[test]
fn standard_input_is_empty() {
    let server =
        Server::with_apps(r#""a": (restart: (policy: Never), ready: After("30s"), command: ["cat"])"#).started();
    server.wait_state("a", "done");
}

#[test]
fn another_user_is_another_user_in_everything() {
    if !geteuid().is_root() {
        println!("not root: left out");
        return;
    }
    let what = "id -u; id -g; id -G; echo $HOME $USER $LOGNAME $SHELL; pwd";
    let server = Server::with_apps(&format!(
        r#""named": (user: "daemon", ready: Immediate, directory: "/tmp", command: "{}"),
           "number": (user: 60777, ready: Immediate, command: "{}"),
           "grouped": (user: "daemon", group: "games", ready: Immediate, command: "{}"),
           "paths": (user: "nobody", ready: Immediate, command: "echo to-out > /dev/stdout; echo to-err > /dev/stderr; exec sleep 1000"),
           "thief": (user: "daemon", ready: Immediate, command: "for f in @DIR@/state/run/fifo/paths* @DIR@/state/run/records/* @DIR@/state/everhook.db @DIR@/state/logs/paths/*; do cat < \"$f\" && echo opened $f; done > @DIR@/shared/thief.new 2>&1; mv @DIR@/shared/thief.new @DIR@/shared/thief; exec sleep 1000")"#,
        tell(what, "@DIR@/shared/named"),
        tell(what, "@DIR@/shared/number"),
        tell(what, "@DIR@/shared/grouped"),
    ));
    let folder = shared(&server);
    let server = server.started();
    let id = |args: &[&str]| text(&std::process::Command::new("id").args(args).output().unwrap()).trim().to_owned();
    let named = wait_file(&server, &format!("{folder}/named"));
    let lines: Vec<_> = named.lines().collect();
    assert_eq!(lines[0], id(&["-u", "daemon"]));
    assert_eq!(lines[1], id(&["-g", "daemon"]));
    assert_eq!(lines[2], id(&["-G", "daemon"]), "the user's own groups, none of root's");
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let entry: Vec<_> = passwd.lines().find(|line| line.starts_with("daemon:")).unwrap().split(':').collect();
    assert_eq!(lines[3], format!("{} daemon daemon {}", entry[5], entry[6]));
    assert_eq!(lines[4], "/tmp");
    let number = wait_file(&server, &format!("{folder}/number"));
    assert_eq!(number.lines().next(), Some("60777"));
    assert!(!number.lines().nth(2).unwrap().split(' ').any(|group| group == "0"), "{number}");
    let grouped = wait_file(&server, &format!("{folder}/grouped"));
    assert_eq!(
        grouped.lines().nth(1),
        fs::read_to_string("/etc/group").unwrap().lines().find(|l| l.starts_with("games:")).unwrap().split(':').nth(2)
    );

    server.until("both lines are in the log", |s| {
        let log = s.ok(&["logs", "paths"]);
        (log.contains("to-out") && log.contains("to-err")).then_some(())
    });
    let thief = wait_file(&server, &format!("{folder}/thief"));
    assert!(!thief.contains("opened"), "{thief}");
    let pid = server.main_pid("paths");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let caps = status.lines().find(|line| line.starts_with("CapEff")).unwrap();
    assert!(caps.ends_with("0000000000000000"), "{caps}");
}
