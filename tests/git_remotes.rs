//! Repositories as they are out there: over ssh with a deploy key and a known host, over https with a
//! token, and what is said where either is wrong.
#![allow(clippy::unwrap_used)]

#[path = "support/deploying.rs"]
mod deploying;
#[path = "support/http.rs"]
mod http;
#[path = "support/remotes.rs"]
mod remotes;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    io::Write,
    net::TcpListener,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use deploying::*;
use remotes::{Http, Sshd, certificate};
use serde_json::Value;
use server::{Repo, Server, processes};

/// A token that nothing else holds, what another test of this run starts included: command lines
/// of the whole machine are searched for it.
fn new_token() -> String {
    format!("ghp-7f3ac01d-{}", server::unique())
}

/// `site` with this in its `deploy`; fetched by a user with a name, which ssh needs.
fn world_of(deploy: &str) -> (Server, Repo) {
    let fetcher = if is_root() { "deploys: (fetch_user: \"ehtest\")," } else { "" };
    let server = Server::new(&format!(
        "(state_dir: \"@DIR@/state\", http: [(bind: \"127.0.0.1:0\", serve: [Hooks, Api])], {fetcher} apps: {{\n{}\n}})",
        site("", deploy)
    ));
    fs::write(server.path().join("held"), "").unwrap();
    let repo = Repo::new(server.path().join("repo"), &[("app.sh", APP), ("VERSION", "1")]);
    (server, repo)
}

/// From here on the repository is there.
fn move_to(server: &Server, url: &str) {
    let old = format!("repo: \"{}\"", server.path().join("repo").display());
    server.edit_config(&old, &format!("repo: \"{url}\""));
}

fn copy_key(server: &Server, key: &str) {
    server.write_secret("key", key);
}

/// Over ssh, with the key and the host that it should have.
fn ssh_world() -> (Server, Repo, Sshd) {
    let (server, repo) = world_of("ssh_key: File(\"@DIR@/key\"), host_key: \"@HOST@\",");
    let sshd = Sshd::new(server.path().join("sshd"));
    copy_key(&server, &sshd.read("client"));
    move_to(&server, &sshd.url(&repo.path));
    server.edit_config("@HOST@", &sshd.host_key("host"));
    (server, repo, sshd)
}

fn refused_at_fetch(server: &Server, words: &[&str]) -> Value {
    server.fails(1, &["deploy", "site"]);
    let deploy = deploys(server)[0].clone();
    assert_eq!((&deploy["state"], &deploy["step"]), (&"failed".into(), &"fetch".into()), "{deploy}");
    for word in words {
        assert!(deploy["reason"].as_str().unwrap().contains(word), "no {word:?} in {deploy}");
    }
    deploy
}

fn keys_left(server: &Server) -> usize {
    fs::read_dir(server.path().join("state/run/keys")).unwrap().count()
}

#[test]
fn a_deploy_key_and_a_pinned_host_are_all_it_takes() {
    let (mut server, repo, sshd) = ssh_world();
    let key = sshd.read("client");
    // As an editor of Windows leaves it, and without its last newline.
    copy_key(&server, &key.replace('\n', "\r\n"));
    start_live(&mut server);
    copy_key(&server, key.trim_end());
    let gate = Gate::new(&server, "gate");
    let held = format!("command=\"cat {}; exec sh -c \\\"$SSH_ORIGINAL_COMMAND\\\"\" ", gate_path(&server).display());
    fs::write(sshd.path("authorized"), held + &sshd.read("client.pub")).unwrap();
    repo.commit(&[("VERSION", "2")], "second");
    let id = push(&server, &repo);
    let fetch = gate.reached();
    // That of the first fetch is put away meanwhile.
    let folders = server.until("one fetch has a key", |s| {
        let folders = fs::read_dir(s.path().join("state/run/keys")).unwrap().map(|e| e.unwrap().path());
        Some(folders.collect::<Vec<_>>()).filter(|folders| folders.len() == 1)
    });
    for name in ["key", "hosts"] {
        let facts = fs::metadata(folders[0].join(name)).unwrap();
        assert_eq!(facts.mode() & 0o777, 0o600, "{name}");
        if is_root() {
            assert_eq!(facts.uid(), nix::unistd::User::from_name("ehtest").unwrap().unwrap().uid.as_raw());
        }
    }
    assert_eq!(fs::read_to_string(folders[0].join("key")).unwrap(), key);
    // Whatever the user's own config says of connections that stay, it is not read.
    let ssh = processes(&folders[0].display().to_string()).into_iter().find_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some(String::from_utf8(line).unwrap().replace('\0', " ")).filter(|line| line.starts_with("ssh "))
    });
    let ssh = ssh.expect("it fetches");
    assert!(["-F none", "ControlMaster=no", "ControlPath=none"].iter().all(|words| ssh.contains(words)), "{ssh}");
    drop(fetch);
    let deploy = server.deploy_end(id);
    assert_eq!(deploy["state"], "live", "{deploy}");
    assert_eq!(version(&server), "2");
    server.until("the key is gone", |s| (keys_left(s) == 0).then_some(()));
    let folder = folders[0].display().to_string();
    server.until("no ssh is left behind", |_| processes(&folder).is_empty().then_some(()));
}

fn gate_path(server: &Server) -> PathBuf {
    server.path().join("gate")
}

#[test]
fn an_unproven_host_is_refused_with_the_key_it_offers() {
    let (mut server, _repo, sshd) = ssh_world();
    let known = format!(" host_key: \"{}\",", sshd.host_key("host"));
    start_live(&mut server);
    let reload = |server: &Server| server.ok(&["reload"]);
    let pid = server.main_pid("site");

    server.edit_config(&known, "");
    reload(&server);
    let line = format!("host_key: \"{}\"", sshd.host_key("host"));
    refused_at_fetch(&server, &["127.0.0.1", &sshd.fingerprint("host"), &line, "is not known"]);

    // Another key of the same type, and one of a type that the host does not have.
    sshd.new_key("other");
    sshd.keygen(&["-t", "ecdsa", "-N", ""], "ecdsa");
    for pinned in ["other", "ecdsa"] {
        server.edit_config(" settle:", &format!(" host_key: \"{}\", settle:", sshd.host_key(pinned)));
        reload(&server);
        refused_at_fetch(&server, &["127.0.0.1", &sshd.fingerprint("host"), &line, "`host_key`"]);
        server.edit_config(&format!(" host_key: \"{}\",", sshd.host_key(pinned)), "");
    }
    assert_eq!(server.main_pid("site"), pid);
    server.edit_config(" settle:", &format!("{known} settle:"));
    reload(&server);
    server.ok(&["deploy", "site"]);
}

#[test]
fn keys_that_cannot_work_are_named() {
    let (mut server, repo, sshd) = ssh_world();
    start_live(&mut server);
    repo.commit(&[("VERSION", "2")], "second");
    let (pid, live) = (server.main_pid("site"), fs::read_to_string(home(&server, "site").join("live")).unwrap());
    let says = |words: &[&str]| {
        refused_at_fetch(&server, words);
        let said = server.fails(1, &["check"]);
        assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
    };
    let key = server.path().join("key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let fix = format!("chmod 600 {}", key.display());
    says(&["`ssh_key`", "can be read by other users", &fix]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    server.ok(&["check"]);
    copy_key(&server, &sshd.read("client.pub"));
    says(&["`ssh_key`", "public key"]);
    sshd.keygen(&["-t", "ed25519", "-N", "phrase"], "locked");
    copy_key(&server, &sshd.read("locked"));
    says(&["`ssh_key`", "passphrase"]);
    fs::remove_file(&key).unwrap();
    says(&["`ssh_key`", "No such file"]);
    sshd.new_key("stranger");
    copy_key(&server, &sshd.read("stranger"));
    refused_at_fetch(&server, &["127.0.0.1", "does not take `ssh_key`", "deploy key"]);
    assert_eq!(server.main_pid("site"), pid);
    assert_eq!(fs::read_to_string(home(&server, "site").join("live")).unwrap(), live);
    copy_key(&server, &sshd.read("client"));
    server.ok(&["deploy", "site"]);
    assert_eq!(version(&server), "2");
}

#[test]
fn a_host_that_says_nothing_leaves_no_ssh_behind() {
    let (mut server, repo, _sshd) = ssh_world();
    server.edit_config("settle:", "timeout: \"3s\", settle:");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let text = fs::read_to_string(server.config()).unwrap();
    let url = text.split('"').find(|word| word.starts_with("ssh://")).unwrap();
    let other = format!("ssh://nobody@127.0.0.1:{port}{}", repo.path.display());
    server.edit_config(url, &other);
    server.start();
    let deploy = server.deploy_end(1);
    assert_eq!((&deploy["state"], &deploy["step"]), (&"failed".into(), &"fetch".into()), "{deploy}");
    assert!(deploy["reason"].as_str().unwrap().contains("timed out"), "{deploy}");
    for words in [format!("127.0.0.1:{port}"), format!("-p\0{port}")] {
        server.until("no ssh is left behind", |_| processes(&words).is_empty().then_some(()));
    }
    server.until("the key is gone", |s| (keys_left(s) == 0).then_some(()));
    // Until here the port was nobody else's, whose ssh would have been found.
    drop(silent);
}

/// No file but the secret itself holds the token, in any form.
fn assert_unseen(server: &Server, token: &str) {
    for word in [token, &base64_of(&format!("git:{token}"))] {
        let found =
            Command::new("grep").args(["-raF", "--devices=skip", "-l", word]).arg(server.path()).output().unwrap();
        let found = String::from_utf8(found.stdout).unwrap();
        let others: Vec<&str> = found.lines().filter(|path| !path.ends_with("/token")).collect();
        assert_eq!(others, [] as [&str; 0], "{word}");
    }
    let id = deploys(server)[0]["id"].to_string();
    let shown = [vec!["history"], vec!["history", "show", &id], vec!["check"], vec!["status"], vec!["audit"]];
    for words in shown {
        assert!(!server.ok(&words).contains(token), "{words:?}");
    }
    assert!(!server.ok(&["events", "-n", "1000"]).contains(token));
    assert_eq!(processes(token), [] as [i32; 0]);
}

fn base64_of(text: &str) -> String {
    let script = "import base64,sys; print(base64.b64encode(sys.argv[1].encode()).decode())";
    let told = Command::new("/usr/bin/python3").args(["-c", script, text]).output().unwrap();
    String::from_utf8(told.stdout).unwrap().trim().to_owned()
}

#[test]
fn smart_http_needs_a_token_only_where_the_server_does() {
    let (mut server, repo) = world_of("");
    let token = new_token();
    let open = Http::new(server.path(), "", None);
    let url = format!("http://127.0.0.1:{}/repo/.git", open.port);
    move_to(&server, &url);
    start_live(&mut server);

    let closed = Http::new(server.path(), &format!("git:{token}"), None);
    server.edit_config(&url, &format!("http://127.0.0.1:{}/repo/.git", closed.port));
    server.ok(&["reload"]);
    refused_at_fetch(&server, &["wants a login", "`https_token`"]);
    server.write_secret("token", &format!("{token}\n"));
    let login = "https_token: (user: \"git\", token: File(\"@DIR@/token\")), settle:";
    server.edit_config("settle:", login);
    server.ok(&["reload"]);
    repo.commit(&[("VERSION", "2")], "second");
    server.ok(&["deploy", "site"]);
    assert_eq!(version(&server), "2");
    assert_unseen(&server, &token);

    server.edit_config("user: \"git\"", "user: \"other\"");
    server.ok(&["reload"]);
    refused_at_fetch(&server, &["does not take `https_token`"]);
    assert_unseen(&server, &token);
    server.until("the token is gone", |s| (keys_left(s) == 0).then_some(()));
}

/// Puts a witness in the place of git, of ssh and of what git starts, in a mount namespace of the
/// server's: each run is written down with its user, command line and environment before it begins.
struct Witness {
    folder: PathBuf,
    programs: Vec<PathBuf>,
}

impl Witness {
    fn new(server: &Server) -> Self {
        let lines = |script: &str| {
            let told = Command::new("sh").args(["-c", script]).output().unwrap();
            String::from_utf8(told.stdout).unwrap().lines().map(PathBuf::from).collect::<Vec<_>>()
        };
        let core = lines("git --exec-path")[0].clone();
        let known = lines("which -a git ssh")
            .into_iter()
            .chain(["git", "git-remote-http", "git-remote-https"].map(|name| core.join(name)));
        let mut programs: Vec<PathBuf> = known.filter_map(|path| path.canonicalize().ok()).collect();
        programs.sort();
        programs.dedup();
        let folder = server.path().join("witness");
        fs::create_dir(&folder).unwrap();
        let witness = Self { folder, programs };
        for (n, program) in witness.programs.iter().enumerate() {
            witness.stand_in(n, program);
        }
        fs::write(witness.path("seen"), "").unwrap();
        fs::set_permissions(witness.path("seen"), fs::Permissions::from_mode(0o666)).unwrap();
        witness
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn stand_in(&self, n: usize, program: &Path) {
        let (real, script) = (self.path(&format!("real-{n}")), self.path(&format!("script-{n}")));
        // By another process: a file that this one writes may be busy in a child of a test beside it.
        let copy = format!(
            "cp {} {real} && cat > {script} && chmod 755 {script}",
            program.display(),
            real = real.display(),
            script = script.display()
        );
        let text = format!(
            "#!/bin/sh\necho \"run $(id -u) {} $(tr '\\0\\n' '  ' < /proc/$$/cmdline)\" >> {seen}\nenv >> {seen}\nexec {} \"$@\"\n",
            program.display(),
            real.display(),
            seen = self.path("seen").display()
        );
        let mut shell = Command::new("sh").args(["-c", &copy]).stdin(Stdio::piped()).spawn().unwrap();
        shell.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(shell.wait().unwrap().success());
    }

    /// The command that starts a server so; `more` is done as well.
    fn prefix(&self, more: &str) -> Vec<String> {
        let mounts: Vec<String> = (self.programs.iter().enumerate())
            .map(|(n, program)| {
                format!("mount --bind {} {}", self.path(&format!("script-{n}")).display(), program.display())
            })
            .collect();
        let script = format!("{} && {more} && exec \"$@\"", mounts.join(" && "));
        ["unshare", "-m", "sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
    }

    fn seen(&self) -> String {
        fs::read_to_string(self.path("seen")).unwrap()
    }

    /// The uids of everything that ran.
    fn uids(&self) -> Vec<u32> {
        let seen = self.seen();
        let lines = seen.lines().filter_map(|line| line.strip_prefix("run "));
        let mut uids: Vec<u32> = lines.map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
        uids.sort_unstable();
        uids.dedup();
        uids
    }
}

#[test]
fn no_git_is_root_and_no_git_is_told_the_token() {
    if !is_root() {
        println!("skipped: only root can become other users, and mount");
        return;
    }
    let authorities = Path::new("/etc/ssl/certs/ca-certificates.crt");
    if !authorities.exists() {
        println!("skipped: ca-certificates is not installed");
        return;
    }
    let login = "https_token: (user: \"git\", token: File(\"@DIR@/token\")),";
    let (mut server, repo) = world_of(login);
    let token = new_token();
    server.write_secret("token", &token);
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let cert = folder.path().join("cert.pem");
    certificate(&cert);
    let remote = Http::new(server.path(), &format!("git:{token}"), Some(&cert.with_extension("both")));
    move_to(&server, &format!("https://127.0.0.1:{}/repo/.git", remote.port));
    let witness = Witness::new(&server);
    let prefix = witness.prefix(&format!("mount --bind {} {}", cert.display(), authorities.display()));
    server.start_as(&prefix.iter().map(String::as_str).collect::<Vec<_>>());
    let first = server.deploy_end(1);
    assert_eq!(first["state"], "live", "{first}");
    server.wait_state("site", "ready");
    repo.commit(&[("VERSION", "2")], "second");
    let second = server.deliver("site", &repo);
    assert_eq!(second["state"], "live", "{second}");
    server.ok(&["rollback", "site"]);

    let fetcher = nix::unistd::User::from_name("ehtest").unwrap().unwrap().uid.as_raw();
    assert_eq!(witness.uids(), [fetcher.min(NOBODYS), fetcher.max(NOBODYS)]);
    let seen = witness.seen();
    assert!(seen.contains("git-remote-http") && !seen.contains(&token), "{seen}");
    assert_unseen(&server, &token);
    // A server that nobody vouches for is told nothing.
    drop(remote);
    certificate(&folder.path().join("other.pem"));
    let other = Http::new(server.path(), &format!("git:{token}"), Some(&folder.path().join("other.both")));
    let text = fs::read_to_string(server.config()).unwrap();
    let url = text.split('"').find(|word| word.starts_with("https://")).unwrap();
    server.edit_config(url, &format!("https://127.0.0.1:{}/repo/.git", other.port));
    server.ok(&["reload"]);
    refused_at_fetch(&server, &["could not be reached", "ertificate"]);
}

#[test]
fn two_hundred_deploys_leave_a_small_mirror_and_no_git() {
    const DEPLOYS: usize = 200;
    let apps = site("", "layout: Releases(keep: 2)").replace("command: [\"/bin/sh\", \"app.sh\"],", "");
    let mut server = Server::with_apps(&apps.replace("20ms", "0s"));
    let repo = Repo::new(server.path().join("repo"), &[("VERSION", "0")]);
    // As somebody may have set it; git's own housekeeping goes on in the background.
    repo.git(&["config", "gc.auto", "1"]);
    fs::write(server.path().join(".gitconfig"), "[gc]\nauto = 1\nautoDetach = true\n").unwrap();
    server.start_as(&["env", &format!("HOME={}", server.path().display())]);
    assert_eq!(server.deploy_end(1)["state"], "live");
    let live = home(&server, "site").join("live");
    for n in 1..DEPLOYS {
        let commit = repo.commit(&[("VERSION", &n.to_string())], "next");
        if n % 50 == 25 {
            // A git that is ended in the middle of its work.
            let (gate, _) = Gate::in_mirror(&server);
            let id = push(&server, &repo);
            drop((gate.reached(), server.ok(&["cancel", &id.to_string()])));
            assert_eq!(over(&server, id)["state"], "cancelled");
            gate.remove();
        } else {
            push(&server, &repo);
            server.until("it is live", |_| fs::read_to_string(&live).unwrap().contains(&commit).then_some(()));
        }
    }
    let mirrors = server.path().join("state/mirrors");
    let marker = mirrors.display().to_string();
    // The last deploy's housekeeping may not have begun yet, and has halves of its own.
    server.until("the mirror is small, and nothing works in it or was left half done", |_| {
        let (workers, mut all) = (processes(&marker), Vec::new());
        files(&mirrors, &mut all);
        let halves: Vec<_> = all.iter().filter(|path| path.display().to_string().contains("tmp_")).collect();
        let taken: u64 = all.iter().filter_map(|path| fs::metadata(path).ok()).map(|facts| facts.blocks() * 512).sum();
        let is_so = workers.is_empty() && halves.is_empty() && taken < 3 << 20;
        if !is_so {
            println!("{workers:?} {halves:?} {taken} bytes in {} files after {DEPLOYS} deploys", all.len());
        }
        is_so.then_some(())
    });
    server.until("old releases are gone", |s| (releases(s, "site").len() == 2).then_some(()));
}

/// What is there; some of it may go meanwhile.
fn files(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder { files(&entry.path(), all) } else { all.push(entry.path()) }
    }
}

#[test]
fn many_deploys_leave_a_small_mirror_and_no_git() {
    let (mut server, repo) = world_of("");
    // As somebody may have set it; git's own housekeeping goes on in the background.
    repo.git(&["config", "gc.auto", "1"]);
    start_live(&mut server);
    let mirrors = server.path().join("state/mirrors");
    let objects = fs::read_dir(&mirrors).unwrap().next().unwrap().unwrap().path().join("objects");
    let loose = || {
        let folders = fs::read_dir(&objects).unwrap().map(Result::unwrap).filter(|e| e.file_name().len() == 2);
        folders.map(|folder| fs::read_dir(folder.path()).map_or(0, Iterator::count)).sum::<usize>()
    };
    for n in 0..6 {
        let files: Vec<_> = (0..90).map(|k| (format!("files/{k}"), format!("{n} {k}"))).collect();
        let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        repo.commit(&files, "many");
        assert_eq!(server.deliver("site", &repo)["state"], "live");
    }
    server.until("the mirror is tidied", |_| (loose() <= 400).then_some(()));
    let marker = mirrors.display().to_string();
    server.until("nothing works in it any more", |_| processes(&marker).is_empty().then_some(()));
    let packs = fs::read_dir(objects.join("pack")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let packs: Vec<_> = packs.collect();
    assert!(packs.iter().any(|name| name.ends_with(".pack")), "{packs:?}");
    assert!(!packs.iter().any(|name| name.contains("tmp")), "{packs:?}");
    repo.commit(&[("VERSION", "2")], "after it");
    assert_eq!(server.deliver("site", &repo)["state"], "live");
}
