//! `layout: InPlace`: commits are put into a working tree that people work in too. What they did there is
//! never overwritten, and what a deploy did that came to nothing is taken back.
#![allow(clippy::unwrap_used)]

#[path = "support/deploying.rs"]
mod deploying;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, chown, lchown, symlink},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Instant,
};

use deploying::*;
use serde_json::Value;
use server::{LIMIT, Repo, Server, processes, text};

/// The app's user.
fn owner() -> u32 {
    if is_root() { NOBODYS } else { nix::unistd::geteuid().as_raw() }
}

/// Whoever works in the tree: at the keyboard, as its owner.
struct Person {
    tree: PathBuf,
    config: PathBuf,
}

impl Person {
    fn at(server: &Server) -> Self {
        let config = server.path().join("person.gitconfig");
        fs::write(&config, "[safe]\ndirectory = *\n[user]\nname = Pat\nemail = pat@example.org\n").unwrap();
        Self { tree: server.path().join("tree"), config }
    }

    fn run(&self, program: &str, args: &[&str], folder: &Path) -> Output {
        let mut command = Command::new(program);
        command.args(args).current_dir(folder).env("GIT_CONFIG_GLOBAL", &self.config).env("LC_ALL", "C");
        if is_root() {
            command.uid(NOBODYS).gid(NOBODYS);
        }
        command.output().unwrap()
    }

    fn git(&self, args: &[&str]) -> String {
        let output = self.run("git", args, &self.tree);
        assert!(output.status.success(), "git {args:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Clones the repository, as the old script's set-up begins.
    fn clones(&self, repo: &Repo) {
        folder(&self.tree);
        let output = self.run("git", &["clone", "-q", repo.path.to_str().unwrap(), "."], &self.tree);
        assert!(output.status.success(), "{}", text(&output));
    }

    fn writes(&self, name: &str, content: &str) {
        let path = self.tree.join(name);
        fs::write(&path, content).unwrap();
        give(&path);
    }

    fn reads(&self, name: &str) -> String {
        fs::read_to_string(self.tree.join(name)).unwrap().trim().to_owned()
    }

    fn status(&self) -> String {
        self.git(&["status"])
    }

    /// Tracked files that are not as HEAD has them.
    fn changes(&self) -> String {
        self.git(&["status", "--porcelain", "--untracked-files=no"])
    }
}

fn give(path: &Path) {
    if is_root() {
        chown(path, Some(NOBODYS), Some(NOBODYS)).unwrap();
    }
}

/// A folder of the app's user.
fn folder(path: &Path) {
    fs::create_dir(path).unwrap();
    give(path);
}

/// A server whose site lives in `tree`; nothing runs yet.
fn tree_world(fields: &str, deploy: &str) -> (Server, Repo, Person) {
    let (server, repo) = world(fields, &format!("layout: InPlace(\"@DIR@/tree\"), {deploy}"));
    let person = Person::at(&server);
    (server, repo, person)
}

/// The same, with its clone taken over and its first deploy live.
fn live_tree(fields: &str, deploy: &str) -> (Server, Repo, Person) {
    let (mut server, repo, person) = tree_world(fields, deploy);
    person.clones(&repo);
    start_live(&mut server);
    (server, repo, person)
}

/// Everything agrees on this deploy being the live one.
fn assert_there(server: &Server, person: &Person, deploy: &Value) {
    assert_eq!(deploy["state"], "live", "{deploy}");
    let (release, commit) = (deploy["release"].as_str().unwrap(), deploy["commit"].as_str().unwrap());
    let live = fs::read_to_string(home(server, "site").join("live")).unwrap();
    assert_eq!(live, format!("{release} {commit} {}\n", person.tree.display()));
    assert_eq!(fs::read_link(home(server, "site").join("current")).unwrap(), person.tree);
    assert_eq!(server.app("site")["release"], release);
    assert_eq!(fs::read_link(format!("/proc/{}/cwd", server.main_pid("site"))).unwrap(), person.tree);
    assert_eq!(person.git(&["rev-parse", "HEAD"]), commit);
    assert_eq!(owners(&person.tree), [owner()]);
    runs_once(server);
    server.until("no release is left", |s| releases(s, "site").is_empty().then_some(()));
}

fn ended(deploy: &Value) -> (&str, &str, &str) {
    let text = |key: &str| deploy[key].as_str().unwrap_or_default();
    (text("state"), text("step"), text("reason"))
}

#[test]
fn a_clone_is_taken_over_and_goes_forth_and_back() {
    let (mut server, repo, person) = tree_world("", "check: [\"echo checked > in-a-folder-of-its-own\"]");
    person.clones(&repo);
    person.writes("notes", "mine\n");
    // What a repository configures to be run runs for nobody.
    let trap = server.path().join("trap");
    fs::write(&trap, "#!/bin/sh\ntouch $(dirname $0)/sprung\n").unwrap();
    fs::set_permissions(&trap, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for hook in ["post-checkout", "post-merge", "reference-transaction", "post-index-change"] {
        let _ = fs::remove_file(person.tree.join(".git/hooks").join(hook));
        let hook = person.tree.join(".git/hooks").join(hook);
        symlink(&trap, &hook).unwrap();
        lchown(&hook, Some(owner()), None).unwrap();
    }
    person.git(&["config", "core.fsmonitor", trap.to_str().unwrap()]);
    person.git(&["config", "core.sshCommand", trap.to_str().unwrap()]);

    start_live(&mut server);
    let first = server.deploy_end(1);
    assert_there(&server, &person, &first);
    let said = person.status();
    assert!(said.contains("On branch main") && said.contains("up to date with 'origin/main'"), "{said}");
    assert!(!person.tree.join("in-a-folder-of-its-own").exists(), "checks run elsewhere");

    repo.commit(&[("VERSION", "2"), ("new/file", "new")], "second");
    let second = server.deliver("site", &repo);
    assert_there(&server, &person, &second);
    let log = server.ok(&["logs", "--deploy", &second["id"].to_string()]);
    assert!(!log.contains("fatal"), "that the tree lacks the commit is what it is there for: {log}");
    assert_eq!(
        (person.reads("VERSION"), person.reads("notes"), version(&server)),
        ("2".into(), "mine".into(), "2".into())
    );
    let said = person.status();
    assert!(said.contains("up to date with 'origin/main'") && said.contains("notes"), "{said}");

    server.ok(&["rollback", "site"]);
    assert_there(&server, &person, &deploys(&server)[0]);
    assert_eq!((version(&server), person.reads("VERSION")), ("1".into(), "1".into()));
    assert!(!person.tree.join("new/file").exists());
    let said = person.status();
    assert!(said.contains("On branch main") && said.contains("behind 'origin/main' by 1 commit"), "{said}");
    server.fails(1, &["rollback", "site"]);

    let preview = server.ok(&["deploy", "site", "--dry-run"]);
    assert!(preview.contains("second") && preview.contains("new/file"), "{preview}");
    assert_eq!(version(&server), "1");
    server.ok(&["deploy", "site"]);
    assert_there(&server, &person, &deploys(&server)[0]);
    assert_eq!(version(&server), "2");
    assert!(!server.path().join("sprung").exists(), "no hook and no monitor has run");

    assert!(server.stop().success());
    repo.commit(&[("VERSION", "3")], "while nobody looked");
    server.start();
    let third = server
        .until("it is caught up with", |s| deploys(s).into_iter().find(|deploy| deploy["by"]["kind"] == "catch_up"));
    let third = server.deploy_end(third["id"].as_i64().unwrap());
    server.wait_state("site", "ready");
    assert_there(&server, &person, &third);
    assert_eq!(version(&server), "3");
}

#[test]
fn a_missing_or_empty_folder_becomes_a_clone() {
    for is_there in [true, false] {
        let (mut server, repo, mut person) = tree_world("", "");
        folder(&server.path().join("place"));
        person.tree = server.path().join("place/tree");
        server.edit_config(&server.path().join("tree").display().to_string(), &person.tree.display().to_string());
        if is_there {
            folder(&person.tree);
        }
        start_live(&mut server);
        assert_there(&server, &person, &server.deploy_end(1));
        let said = person.status();
        assert!(said.contains("On branch main") && said.contains("up to date with 'origin/main'"), "{said}");
        assert!(said.contains("working tree clean"), "{said}");
        assert_eq!(person.git(&["remote", "get-url", "origin"]), repo.path.display().to_string());
        // It is a clone like any other.
        repo.commit(&[("VERSION", "2")], "second");
        person.git(&["pull", "-q"]);
        assert_eq!(person.reads("VERSION"), "2");
    }
}

#[test]
fn what_a_person_did_is_refused_by_name_and_stays() {
    let (server, repo, person) = live_tree("", "");
    let pid = server.main_pid("site");
    let refused = |words: &[&str]| {
        let said = server.fails(1, &["deploy", "site"]);
        let deploy = deploys(&server)[0].clone();
        let (state, step, reason) = ended(&deploy);
        assert_eq!((state, step), ("failed", "build"), "{deploy}");
        for word in words {
            assert!(reason.contains(word) && said.contains(word), "no {word:?} in {reason} / {said}");
        }
        assert_eq!(server.main_pid("site"), pid);
        runs_once(&server);
    };
    let first = repo.head();
    repo.commit(&[("VERSION", "2"), ("brought", "by the commit\n")], "second");

    person.writes("VERSION", "mine\n");
    refused(&["VERSION", "no deploy made", &person.tree.display().to_string()]);
    person.git(&["add", "VERSION"]);
    refused(&["VERSION"]);
    assert_eq!(person.reads("VERSION"), "mine");
    person.git(&["reset", "-q", "--hard"]);
    fs::remove_file(person.tree.join("app.sh")).unwrap();
    refused(&["app.sh"]);
    person.git(&["checkout", "-q", "--", "."]);

    person.writes("brought", "by me\n");
    refused(&["brought", "move them away"]);
    assert_eq!((person.reads("brought"), person.changes()), ("by me".into(), String::new()));
    fs::remove_file(person.tree.join("brought")).unwrap();
    folder(&person.tree.join("brought"));
    person.writes("brought/inner", "by me\n");
    for _ in 0..2 {
        refused(&["brought", "move them away"]);
    }
    assert_eq!((person.reads("brought/inner"), person.changes()), ("by me".into(), String::new()));
    fs::remove_dir_all(person.tree.join("brought")).unwrap();

    person.writes("own", "work\n");
    person.git(&["add", "own"]);
    person.git(&["commit", "-q", "-m", "mine alone"]);
    refused(&["mine alone", "push them"]);
    assert_eq!(person.reads("own"), "work");
    person.git(&["reset", "-q", "--hard", &first]);

    person.git(&["checkout", "-q", "-b", "experiment"]);
    refused(&["experiment", "git checkout main"]);
    person.git(&["checkout", "-q", "main"]);
    fs::write(person.tree.join(".git/MERGE_HEAD"), format!("{first}\n")).unwrap();
    refused(&["merge", "git merge --abort"]);
    fs::remove_file(person.tree.join(".git/MERGE_HEAD")).unwrap();
    fs::write(person.tree.join(".git/index.lock"), "").unwrap();
    refused(&["index.lock"]);
    fs::remove_file(person.tree.join(".git/index.lock")).unwrap();

    server.ok(&["deploy", "site"]);
    assert_there(&server, &person, &deploys(&server)[0]);
    assert_eq!((version(&server), person.reads("brought")), ("2".into(), "by the commit".into()));
}

#[test]
fn what_the_build_did_to_tracked_files_is_its_own_and_taken_back() {
    let (mut server, repo, person) = tree_world("", "build: [\"echo built >> lock\", \"cp VERSION out\"]");
    repo.commit(&[("lock", "one\n")], "with a lock file");
    person.clones(&repo);
    start_live(&mut server);
    assert_eq!((person.reads("lock"), person.reads("out")), ("one\nbuilt".into(), "1".into()));
    assert_eq!(person.changes(), "M lock");

    repo.commit(&[("VERSION", "2")], "second");
    assert_there(&server, &person, &server.deliver("site", &repo));
    assert_eq!(
        (person.reads("lock"), person.reads("out"), version(&server)),
        ("one\nbuilt".into(), "2".into(), "2".into())
    );
    repo.commit(&[("lock", "two\n")], "locks anew");
    assert_there(&server, &person, &server.deliver("site", &repo));
    assert_eq!(person.reads("lock"), "two\nbuilt");
    assert_eq!(person.git(&["show", "refs/everhook/undone:lock"]), "one\nbuilt", "it can be had back");

    // What runs was built of it, and runs on where the next commit is refused.
    person.writes("brought", "by me\n");
    repo.commit(&[("brought", "by the commit\n"), ("lock", "three\n")], "in the way");
    let deploy = server.deliver("site", &repo);
    assert_eq!((ended(&deploy).0, person.reads("lock")), ("failed", "two\nbuilt".into()), "{deploy}");
    repo.commit(&[("lock", "two\n")], "as before");
    repo.git(&["rm", "-q", "brought"]);

    person.writes("lock", "two\nbuilt\nand edited\n");
    repo.commit(&[("VERSION", "4")], "fourth");
    let deploy = server.deliver("site", &repo);
    let (state, step, reason) = ended(&deploy);
    assert_eq!((state, step), ("failed", "build"), "{deploy}");
    assert!(reason.contains("lock") && !reason.contains("VERSION"), "{reason}");
    assert_eq!((person.reads("lock"), person.reads("out")), ("two\nbuilt\nand edited".into(), "2".into()));
    server.ok(&["rollback", "site", "--dry-run"]);
    person.writes("lock", "two\nbuilt\n");
    server.ok(&["rollback", "site"]);
    assert_eq!(
        (person.reads("lock"), person.reads("out"), version(&server)),
        ("one\nbuilt".into(), "2".into(), "2".into())
    );
}

#[test]
fn what_comes_to_nothing_leaves_the_tree_as_it_was() {
    let build = "cp VERSION out; ! grep -q broken VERSION";
    let (mut server, repo, person) = tree_world(
        "restart: (first: \"10ms\"),",
        &format!("check: [\"! grep -q unchecked VERSION\"], build: [\"{build}\", \"true\"]"),
    );
    // By what it says: by time alone one that is about to exit may be ready before.
    server.edit_config("After(\"20ms\")", "Fd(fd: 3)");
    let app = format!("echo >&3\n{APP}");
    repo.commit(&[("app.sh", &app)], "says when it is ready");
    person.clones(&repo);
    start_live(&mut server);
    let (first, pid) = (server.deploy_end(1), server.main_pid("site"));
    let inode = |name: &str| fs::metadata(person.tree.join(name)).unwrap().ino();
    let untouched = inode("VERSION");

    repo.commit(&[("VERSION", "unchecked")], "fails its check");
    let deploy = server.deliver("site", &repo);
    assert_eq!((&deploy["state"], &deploy["step"]), (&"failed".into(), &"check".into()), "{deploy}");
    assert_eq!((inode("VERSION"), server.main_pid("site")), (untouched, pid), "nothing was touched");
    assert_there(&server, &person, &first);

    repo.commit(&[("VERSION", "broken")], "fails its build");
    let deploy = server.deliver("site", &repo);
    let (state, step, reason) = ended(&deploy);
    assert_eq!((state, step), ("failed", "build"), "{deploy}");
    assert!(reason.contains("exited with 1") && !reason.contains("could not be brought back"), "{reason}");
    assert_eq!(
        (person.reads("VERSION"), person.reads("out"), person.changes()),
        ("1".into(), "1".into(), String::new())
    );
    assert_eq!(server.main_pid("site"), pid, "what runs was not touched");
    assert_there(&server, &person, &first);

    repo.commit(&[("VERSION", "3"), ("app.sh", "exit 7\n")], "crashes");
    let deploy = server.deliver("site", &repo);
    let (state, _, reason) = ended(&deploy);
    assert_eq!(state, "rolled_back", "{deploy}");
    assert!(reason.contains('7'), "{reason}");
    server.wait_state("site", "ready");
    assert_there(&server, &person, &first);
    assert_eq!((version(&server), person.reads("out")), ("1".into(), "1".into()));
    let starts_of_bad = server.events().into_iter().filter(|event| {
        event["kind"] == "instance" && event["cause"].as_str().is_some_and(|cause| cause.contains("exited with 7"))
    });
    assert_eq!(starts_of_bad.count(), 1, "the old release was started in its own files only");

    repo.commit(&[("VERSION", "4"), ("app.sh", &app)], "the cure");
    assert_there(&server, &person, &server.deliver("site", &repo));
    assert_eq!((version(&server), person.reads("out")), ("4".into(), "4".into()));
}

#[test]
fn a_build_that_is_cancelled_is_taken_back() {
    let (server, repo, person) =
        live_tree("", "build: [\"cp VERSION out; if [ -e slow ]; then cat $DIR/gate; fi; echo more >> VERSION\"]");
    let gate = Gate::new(&server, "gate");
    repo.commit(&[("slow", ""), ("VERSION", "2")], "slow");
    let id = push(&server, &repo);
    let held = gate.reached();
    assert_eq!(person.reads("VERSION"), "2");
    server.ok(&["cancel", &id.to_string()]);
    drop(held);
    let deploy = server.deploy_end(id);
    assert_eq!((&deploy["state"], &deploy["step"]), (&"cancelled".into(), &"build".into()), "{deploy}");
    assert_there(&server, &person, &server.deploy_end(1));
    assert_eq!((person.reads("VERSION"), person.reads("out")), ("1more".into(), "1".into()));
}

#[test]
fn forced_pushes_and_branches_are_followed() {
    let (server, repo, person) = live_tree("", "");
    let first = repo.head();
    repo.commit(&[("VERSION", "2")], "second");
    server.deliver("site", &repo);
    repo.git(&["reset", "-q", "--hard", &first]);
    repo.commit(&[("VERSION", "2b"), ("other", "file")], "instead");
    assert_there(&server, &person, &server.deliver("site", &repo));
    let said = person.status();
    assert!(said.contains("up to date with 'origin/main'") && said.contains("working tree clean"), "{said}");
    assert_eq!(version(&server), "2b");

    // Of another branch, and back: it was a deploy that had put the tree onto it.
    repo.git(&["checkout", "-q", "-b", "next"]);
    repo.commit(&[("VERSION", "3")], "on next");
    server.edit_config("Push(branch: \"main\")", "Push(branch: \"*\")");
    server.ok(&["reload"]);
    server.ok(&["deploy", "site", "--rev", "next"]);
    assert_there(&server, &person, &deploys(&server)[0]);
    assert!(person.status().contains("On branch next"), "{}", person.status());
    server.ok(&["deploy", "site", "--rev", "main"]);
    assert_there(&server, &person, &deploys(&server)[0]);
    assert!(person.status().contains("On branch main"), "{}", person.status());
    assert_eq!(version(&server), "2b");
}

#[test]
fn whose_tree_it_is_must_be_whose_steps_they_are() {
    if !is_root() {
        println!("skipped: only root has a tree of somebody else's");
        return;
    }
    let (mut server, repo, person) = tree_world("", "");
    person.clones(&repo);
    chown(&person.tree, Some(0), Some(0)).unwrap();
    server.start();
    let deploy = server.deploy_end(1);
    let (state, step, reason) = ended(&deploy);
    assert_eq!((state, step), ("failed", "build"), "{deploy}");
    for words in ["belongs to root", "uid 60903", "chown -R 60903"] {
        assert!(reason.contains(words), "no {words:?} in {reason}");
    }
    give(&person.tree);
    chown(person.tree.join(".git"), Some(0), Some(0)).unwrap();
    let said = server.fails(1, &["deploy", "site"]);
    assert!(said.contains(".git belongs to root"), "{said}");
    give(&person.tree.join(".git"));
    server.ok(&["deploy", "site"]);
    assert_there(&server, &person, &deploys(&server)[0]);
}

#[test]
fn a_kill_in_the_middle_is_resumed() {
    let (mut server, repo, person) =
        live_tree("", "build: [\"if [ -e slow ]; then echo half >> VERSION; cat $DIR/gate; fi\"]");
    let gate = Gate::new(&server, "gate");
    repo.commit(&[("slow", ""), ("VERSION", "2")], "slow");
    let id = push(&server, &repo);
    let held = gate.reached();
    server.kill();
    drop(held);
    let marker = server.path().join("gate").display().to_string();
    let end = Instant::now() + LIMIT;
    while !processes(&marker).is_empty() {
        assert!(Instant::now() < end, "the killed step is still there");
        std::thread::yield_now();
    }
    assert_eq!(person.reads("VERSION"), "2half", "it had got so far");
    server.start();
    drop(gate.reached());
    let deploy = server.deploy_end(id);
    server.wait_state("site", "ready");
    assert_there(&server, &person, &deploy);
    assert_eq!(person.reads("VERSION"), "2half", "what the killed build had done was its own");
}

#[test]
fn files_that_a_killed_deploy_had_half_written_are_its_own_and_a_persons_are_not() {
    let (mut server, repo, person) = live_tree("", "");
    let first = repo.head();
    let files = [("VERSION", "2\nand more\n"), ("added", "by the commit\n"), ("app.sh", APP), ("gone", "x")];
    repo.commit(&[("gone", "x")], "one more");
    server.deliver("site", &repo);
    let second = repo.head();
    assert_ne!(first, second);
    repo.git(&["rm", "-q", "gone"]);
    let third = repo.commit(&files[..2], "third");
    assert!(server.stop().success());

    // As a git that was killed leaves it: one file is begun, one written, one removed, the index as before.
    let note = person.tree.join(".git/everhook.json");
    let said: Value = serde_json::from_str(&fs::read_to_string(&note).unwrap()).unwrap();
    let mut half = said;
    half["commit"] = third.into();
    half["phase"] = serde_json::json!({"moving": {"from": second}});
    fs::write(&note, half.to_string()).unwrap();
    give(&note);
    person.writes("VERSION", "2\nand");
    person.writes("added", "by the commit\n");
    fs::remove_file(person.tree.join("gone")).unwrap();
    person.writes(".git/index.lock", "");
    person.git(&["fetch", "-q"]);

    person.writes("app.sh", "echo edited since\n");
    server.start();
    let deploy = server
        .until("it is caught up with", |s| deploys(s).into_iter().find(|deploy| deploy["by"]["kind"] == "catch_up"));
    let deploy = server.deploy_end(deploy["id"].as_i64().unwrap());
    let (state, _, reason) = ended(&deploy);
    assert_eq!(state, "failed", "{deploy}");
    assert!(reason.contains("app.sh") && !reason.contains("added") && !reason.contains("VERSION"), "{reason}");
    assert_eq!(person.reads("app.sh"), "echo edited since");

    person.writes("app.sh", APP);
    server.ok(&["deploy", "site"]);
    assert_there(&server, &person, &deploys(&server)[0]);
    assert_eq!((person.reads("VERSION"), person.reads("added")), ("2\nand more".into(), "by the commit".into()));
    assert!(!person.tree.join("gone").exists() && person.changes().is_empty(), "{}", person.changes());
}

#[test]
fn a_tree_without_a_command_and_another_layout() {
    let (mut server, repo) = world("", "");
    let apps = fs::read_to_string(server.config()).unwrap();
    fs::write(server.config(), apps.replace("command: [\"/bin/sh\", \"app.sh\"],", "")).unwrap();
    server.start();
    assert_eq!(server.deploy_end(1)["state"], "live");
    let person = Person::at(&server);
    person.clones(&repo);
    let tree = person.tree.display().to_string();
    server.edit_config("settle:", &format!("layout: InPlace(\"{tree}\"), settle:"));
    server.ok(&["reload"]);
    assert_eq!(current(&server, "VERSION"), "1");
    repo.commit(&[("VERSION", "2")], "second");
    let deploy = server.deliver("site", &repo);
    assert_eq!(deploy["state"], "live", "{deploy}");
    assert_eq!(server.app("site")["state"], "deployed");
    assert_eq!((current(&server, "VERSION"), person.reads("VERSION")), ("2".into(), "2".into()));
    assert_eq!(fs::read_link(home(&server, "site").join("current")).unwrap(), person.tree);
    server.until("the releases are gone", |s| releases(s, "site").is_empty().then_some(()));

    server.edit_config(&format!("layout: InPlace(\"{tree}\"), "), "");
    server.ok(&["reload"]);
    repo.commit(&[("VERSION", "3")], "third");
    assert_eq!(server.deliver("site", &repo)["state"], "live");
    assert_eq!((current(&server, "VERSION"), person.reads("VERSION")), ("3".into(), "2".into()));
}

#[test]
fn a_disk_too_full_is_told_before_the_tree_is_touched() {
    if !is_root() {
        return println!("only root mounts a small disk: left out");
    }
    let (mut server, repo, person) = tree_world("", "");
    folder(&person.tree);
    let disk = Disk::new(&person.tree, "1g");
    give(&person.tree);
    start_live(&mut server);
    repo.commit(&[("VERSION", "2")], "second");
    let second = server.deliver("site", &repo);
    assert_there(&server, &person, &second);
    let pid = server.main_pid("site");

    disk.resize("64m");
    repo.commit(&[("VERSION", "3")], "third");
    let deploy = server.deliver("site", &repo);
    let (state, _, reason) = ended(&deploy);
    assert_eq!(state, "failed", "{deploy}");
    let figures = format!("MiB are free at {}, 500 MiB are needed", person.tree.display());
    assert!(reason.starts_with("not enough space: ") && reason.ends_with(&figures), "{reason}");
    assert_there(&server, &person, &second);
    assert_eq!((server.main_pid("site"), person.reads("VERSION")), (pid, "2".into()));

    // The way back needs no room that is not there.
    server.ok(&["rollback", "site"]);
    assert_eq!(person.reads("VERSION"), "1");
    disk.resize("1g");
    assert_there(&server, &person, &server.deliver("site", &repo));
    assert!(server.stop().success());
    drop(disk);
}

/// It is whole when the commit is checked, and not any more when it is brought into the tree.
#[test]
fn a_mirror_that_rots_before_the_tree_has_the_commit_is_fetched_anew() {
    let (server, repo, person) = live_tree("", "check: [\"test ! -p $DIR/gate || cat $DIR/gate\"],");
    let gate = Gate::new(&server, "gate");
    repo.commit(&[("VERSION", "2")], "second");
    let blob = repo.git(&["rev-parse", "HEAD:VERSION"]);
    let id = push(&server, &repo);
    let held = gate.reached();
    let mirror = fs::read_dir(server.path().join("state/mirrors")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(mirror.join("objects").join(&blob[..2]).join(&blob[2..])).unwrap();
    drop(held);
    let deploy = server.deploy_end(id);
    assert_there(&server, &person, &deploy);
    assert_eq!(person.reads("VERSION"), "2");
    server.until("the log tells of it", |s| {
        s.ok(&["logs", "--deploy", &id.to_string(), "-n", "1000"]).contains("fetching it anew").then_some(())
    });
}
