//! A repository, a mirror and an app's folders, and the helper at work on them.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use everhook::domain::{
    api::{Fetch, Fetched, TreeTask, Wanted},
    model::CommitId,
};
use tempfile::TempDir;

/// A repository, a mirror, and an app's folders.
pub struct World {
    pub dir: TempDir,
    /// No file that it writes is larger, in bytes.
    pub limit: Option<u64>,
    /// Fetches as this uid, works as that one.
    pub users: Option<(u32, u32)>,
}

pub fn wanted(branches: &[&str], ref_name: Option<&str>) -> Wanted {
    let branches = branches.iter().map(|&branch| branch.into()).collect();
    Wanted { branches, tags: vec![], ref_name: ref_name.map(Into::into) }
}

pub struct Ran {
    pub ok: bool,
    pub code: Option<i32>,
    pub answer: Vec<u8>,
    pub stderr: String,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let world = Self { dir, limit: None, users: None };
        for folder in ["mirror", "release", "shared", "repo"] {
            fs::create_dir(world.path(folder)).unwrap();
        }
        world.git(&["init", "-q", "-b", "master"]);
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn git(&self, args: &[&str]) -> String {
        let output = Command::new("git")
            .args(["-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "safe.directory=*"])
            .args(args)
            .current_dir(self.path("repo"))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn commit(&self, files: &[(&str, &str)], subject: &str) -> CommitId {
        for (name, text) in files {
            self.write(&format!("repo/{name}"), text);
        }
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", subject]);
        self.git(&["rev-parse", "HEAD"]).parse().unwrap()
    }

    pub fn repo(&self) -> String {
        self.path("repo").to_str().unwrap().to_owned()
    }

    pub fn run(&self, task: &TreeTask) -> Ran {
        let fetches = matches!(task, TreeTask::Fetch(_) | TreeTask::LsRemote { .. } | TreeTask::Tidy { .. });
        let answer = self.path("answer");
        File::create(&answer).unwrap();
        let mut command = match self.users {
            None => Command::new("/bin/sh"),
            Some((fetcher, app)) => {
                let uid = if fetches { fetcher } else { app };
                let mut command = Command::new("setpriv");
                command.args([&format!("--reuid={uid}"), &format!("--regid={app}"), "--clear-groups", "/bin/sh"]);
                fs::set_permissions(&answer, fs::Permissions::from_mode(0o666)).unwrap();
                command
            }
        };
        // As the supervisor does: whatever the path, it is executed from where it can be.
        let limit = self.limit.map(|bytes| format!("prlimit --fsize={bytes}:")).unwrap_or_default();
        let script = format!("exec {limit} \"$0\" tree \"$1\" 3>'{}'", answer.display());
        let Output { status, stderr, .. } = command
            .args(["-c", &script, &self.binary(), &serde_json::to_string(task).unwrap()])
            .env("HOME", self.path("home"))
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "core.hooksPath")
            .env("GIT_CONFIG_VALUE_0", "/evil")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        Ran { ok: status.success(), code: status.code(), answer: fs::read(answer).unwrap(), stderr }
    }

    /// The binary under test, where other users may execute it.
    pub fn binary(&self) -> String {
        let built = env!("CARGO_BIN_EXE_everhook");
        if self.users.is_none() {
            return built.to_owned();
        }
        let copy = self.path("everhook");
        if !copy.exists() {
            // By another process: a file that this one writes is busy while a child of a test beside this one has it.
            assert!(std::process::Command::new("cp").arg(built).arg(&copy).status().unwrap().success());
        }
        copy.to_str().unwrap().to_owned()
    }

    pub fn task(&self) -> Fetch {
        Fetch {
            deploy: 1,
            repo: self.repo(),
            mirror: self.path("mirror"),
            wanted: wanted(&["master"], None),
            commit: None,
            also: vec![],
            rev: None,
            asked: false,
            damaged: None,
            live: None,
            live_release: None,
            changes: vec![],
            filters: None,
        }
    }

    pub fn try_fetch(&self, change: impl FnOnce(&mut Fetch)) -> Ran {
        let mut task = self.task();
        change(&mut task);
        self.run(&TreeTask::Fetch(Box::new(task)))
    }

    pub fn fetch(&self, change: impl FnOnce(&mut Fetch)) -> Fetched {
        let ran = self.try_fetch(change);
        assert!(ran.ok, "{}", ran.stderr);
        serde_json::from_slice(&ran.answer).unwrap()
    }

    /// The sentence that a refused fetch ends with.
    pub fn refused(&self, change: impl FnOnce(&mut Fetch)) -> String {
        let ran = self.try_fetch(change);
        assert!(!ran.ok, "{:?}", String::from_utf8_lossy(&ran.answer));
        ran.last_words()
    }

    pub fn checkout(&self, commit: &CommitId) {
        let (mirror, release) = (self.path("mirror"), self.path("release"));
        let ran = self.run(&TreeTask::Checkout { mirror, release, commit: commit.clone() });
        assert!(ran.ok, "{}", ran.stderr);
    }

    pub fn share(&self, previous: Option<&str>, release: &str, paths: &[&str]) -> Ran {
        self.run(&TreeTask::Share {
            release: self.path(release),
            shared: self.path("shared"),
            previous: previous.map(|name| self.path(name)),
            paths: paths.iter().map(PathBuf::from).collect(),
        })
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn entries(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Ran {
    pub fn last_words(&self) -> String {
        self.stderr.trim_end().lines().next_back().unwrap_or_default().to_owned()
    }
}
