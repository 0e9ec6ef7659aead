//! What the tests of deploys share: an app that is easy to follow, gates that hold a step or an app
//! where a test wants them, and what is found on disk.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    fs,
    fs::File,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Instant,
};

use serde_json::Value;

use super::server::{LIMIT, Repo, Server, processes, unique};

/// The uid of an app with `deploy` and no `user`, under root.
pub const NOBODYS: u32 = 60903;

/// Follows a file of the test's, which makes it known in lists of processes.
pub const APP: &str = "echo \"version $(cat VERSION)\"\nexec tail -f \"$DIR/held\"\n";

/// `site`, whose commits say in their files what its steps and its instance do; `fields` of the app,
/// `deploy` of its deploy.
pub fn site(fields: &str, deploy: &str) -> String {
    format!(
        r#""site": (command: ["/bin/sh", "app.sh"], env: {{"DIR": "@DIR@", "OWN": "the app's"}},
          ready: After("20ms"), {fields}
          deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/secret"),
            env: {{"DIR": "@DIR@"}}, settle: "20ms", {deploy}))"#
    )
}

/// A server with `site` and its repository; nothing runs yet.
pub fn world(fields: &str, deploy: &str) -> (Server, Repo) {
    world_with(&site(fields, deploy))
}

pub fn world_with(apps: &str) -> (Server, Repo) {
    let server = Server::with_apps(apps);
    fs::write(server.path().join("held"), "").unwrap();
    let repo = Repo::new(server.path().join("repo"), &[("app.sh", APP), ("VERSION", "1")]);
    (server, repo)
}

/// The same, with its first deploy live.
pub fn live_world(fields: &str, deploy: &str) -> (Server, Repo) {
    let (mut server, repo) = world(fields, deploy);
    start_live(&mut server);
    (server, repo)
}

/// From its next start on it does not look for what it missed: a test that pushes after a restart is alone
/// with its pushes.
pub fn without_catch_up(server: &Server) {
    server.edit_config("(state_dir:", "(deploys: (catch_up: false), state_dir:");
}

/// Starts the server and waits for the end of its first deploy.
pub fn start_live(server: &mut Server) {
    server.start();
    let first = server.deploy_end(1);
    assert_eq!(first["state"], "live", "{first}");
    server.wait_state("site", "ready");
}

/// A FIFO that whoever reads it waits at (`cat "$DIR/gate"`).
pub struct Gate {
    path: PathBuf,
}

impl Gate {
    pub fn new(server: &Server, name: &str) -> Self {
        Self::at(server.path().join(name))
    }

    pub fn at(path: PathBuf) -> Self {
        assert!(Command::new("mkfifo").args(["-m", "666"]).arg(&path).status().unwrap().success());
        Self { path }
    }

    /// Where git stands when it checks out, and the mirror: it reads attributes there.
    pub fn in_mirror(server: &Server) -> (Self, PathBuf) {
        let mirror = fs::read_dir(server.path().join("state/mirrors")).unwrap().next().unwrap().unwrap().path();
        let (info, owner) = (mirror.join("info"), fs::metadata(&mirror).unwrap());
        fs::create_dir_all(&info).unwrap();
        std::os::unix::fs::chown(&info, Some(owner.uid()), Some(owner.gid())).unwrap();
        (Self::at(info.join("attributes")), mirror)
    }

    /// Another one in its place, for whoever comes from now on: who stands at the old one may do so for a
    /// moment after it was let go, and is not to be taken for who comes next.
    pub fn anew(self) -> Self {
        fs::remove_file(&self.path).unwrap();
        Self::at(self.path)
    }

    /// There is no gate any more.
    pub fn remove(self) {
        fs::remove_file(self.path).unwrap();
    }

    /// Whoever comes from now on passes; who stands there already does when the one who holds it lets go.
    pub fn open(self) {
        let draft = self.path.with_extension("draft");
        fs::write(&draft, "").unwrap();
        fs::rename(draft, self.path).unwrap();
    }

    /// Waits until somebody stands at the gate; they pass when what this returns is dropped.
    pub fn reached(&self) -> File {
        let end = Instant::now() + LIMIT;
        loop {
            let open = File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&self.path);
            match open {
                Ok(gate) => return gate,
                Err(e) => assert!(Instant::now() < end, "nobody comes to {}: {e}", self.path.display()),
            }
            thread::yield_now();
        }
    }
}

/// How many main processes of `site` there are.
pub fn copies(server: &Server) -> usize {
    processes(server.path().join("held").to_str().unwrap()).len()
}

/// One main process runs; ready by time alone, its shell may not have become it yet.
pub fn runs_once(server: &Server) {
    server.until("one copy runs", |s| (copies(s) == 1).then_some(()));
}

/// Sends a push of the tip; the deploy's number.
pub fn push(server: &Server, repo: &Repo) -> i64 {
    let (status, answer) = server.push("site", &unique(), &repo.push_body());
    assert_eq!(status, 202, "{answer}");
    answer["deploys"][0]["id"].as_i64().unwrap()
}

pub fn deploys(server: &Server) -> Vec<Value> {
    server.json(&["history", "-n", "1000"]).as_array().unwrap().clone()
}

pub fn deploy(server: &Server, id: i64) -> Value {
    deploys(server).into_iter().find(|deploy| deploy["id"] == id).unwrap_or_else(|| panic!("no deploy {id}"))
}

pub fn wait_deploy(server: &Server, id: i64, state: &str) -> Value {
    let is_so = |deploy: &Value| deploy["id"] == id && deploy["state"] == state;
    server.until(&format!("deploy {id} is {state}"), |s| deploys(s).into_iter().find(is_so))
}

/// A deploy that is over, with all that follows its end.
pub fn over(server: &Server, id: i64) -> Value {
    server.until(&format!("deploy {id} is over"), |s| {
        deploys(s).into_iter().find(|deploy| deploy["id"] == id && !deploy["ended_at"].is_null())
    })
}

pub fn home(server: &Server, app: &str) -> PathBuf {
    server.path().join("state/apps").join(app)
}

/// The names of the releases on disk.
pub fn releases(server: &Server, app: &str) -> Vec<String> {
    let folder = fs::read_dir(home(server, app).join("releases")).unwrap();
    let mut names: Vec<String> = folder.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_by_key(|name| name.split('-').next().unwrap().parse::<u64>().unwrap());
    names
}

/// What the release holds that the link `current` leads to.
pub fn current(server: &Server, file: &str) -> String {
    fs::read_to_string(home(server, "site").join("current").join(file)).unwrap().trim().to_owned()
}

/// The release that the app's main process runs in.
pub fn runs_in(server: &Server) -> String {
    let folder = fs::read_link(format!("/proc/{}/cwd", server.main_pid("site"))).unwrap();
    folder.file_name().unwrap().to_str().unwrap().to_owned()
}

/// The VERSION that runs.
pub fn version(server: &Server) -> String {
    let file = format!("/proc/{}/cwd/VERSION", server.main_pid("site"));
    fs::read_to_string(file).unwrap().trim().to_owned()
}

/// Everything agrees on this release being the live one, and it runs once.
pub fn assert_live(server: &Server, deploy: &Value) {
    let release = deploy["release"].as_str().unwrap_or_else(|| panic!("{deploy}"));
    assert_eq!(runs_in(server), release);
    let live = fs::read_to_string(home(server, "site").join("live")).unwrap();
    assert_eq!(live, format!("{release} {}\n", deploy["commit"].as_str().unwrap()));
    let link = fs::read_link(home(server, "site").join("current")).unwrap();
    assert_eq!(link, Path::new("releases").join(release));
    assert_eq!(server.app("site")["release"], release);
    runs_once(server);
}

/// Whom everything in a folder belongs to.
pub fn owners(folder: &Path) -> Vec<u32> {
    let mut owners = vec![fs::symlink_metadata(folder).unwrap().uid()];
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            owners.extend(self::owners(&entry.path()));
        } else {
            owners.push(entry.metadata().unwrap().uid());
        }
    }
    owners.sort_unstable();
    owners.dedup();
    owners
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A disk of a size, in memory, for as long as this lives; root's.
pub struct Disk(PathBuf);

impl Disk {
    pub fn new(path: &Path, size: &str) -> Self {
        let mount = ["-t", "tmpfs", "-o", &format!("size={size},mode=711"), "everhook-test"].map(str::to_owned);
        assert!(Command::new("mount").args(mount).arg(path).status().unwrap().success());
        Self(path.to_owned())
    }

    pub fn resize(&self, size: &str) {
        let option = format!("remount,size={size}");
        assert!(Command::new("mount").args(["-o", &option]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
