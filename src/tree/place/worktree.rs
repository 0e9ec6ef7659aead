//! A working tree of the app's user, and git in it.

use std::{
    fs::{self, File},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::{FdFlags, fcntl_setfd},
};
use sha2::{Digest, Sha256};

use crate::{
    domain::{
        api::{Place, To},
        model::CommitId,
    },
    os::{files, users},
    tree::{
        TreeError,
        git::{self, Git},
        refs::HEADS,
    },
};

/// The tree without a file, which every git knows.
pub(super) const EMPTY: &str = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";
/// Held by whoever of ours is at work in it, git included.
const LOCK: &str = "everhook.flock";
/// So many of a list are named.
const NAMED: usize = 10;

pub(super) struct Worktree {
    pub path: PathBuf,
    pub git_dir: PathBuf,
    pub git: Git,
    has_remote: bool,
    _lock: File,
}

impl Worktree {
    /// Makes a clone of a folder that is missing or empty.
    pub(super) fn open_or_clone(task: &Place) -> Result<Self, TreeError> {
        make(&task.tree)?;
        files::require_free(&task.tree, task.needs_bytes).map_err(TreeError::Refused)?;
        let git = Git::in_tree(&task.tree, &task.mirror);
        if is_bare_ground(&task.tree, &git)? {
            clone(&git, task)?;
        }
        Self::open(&task.tree, &task.mirror)
    }

    pub(super) fn open(path: &Path, mirror: &Path) -> Result<Self, TreeError> {
        own(path)?;
        own(&path.join(".git"))?;
        let git = Git::in_tree(path, mirror);
        let done = git.run(&["rev-parse", "--is-inside-work-tree", "--absolute-git-dir"], b"")?;
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let mut lines = said.lines();
        let (true, Some("true"), Some(git_dir)) = (done.code == Some(0), lines.next(), lines.next()) else {
            return Err(TreeError::Refused(format!(
                "{} holds files and is no working tree of git: name a clone, or an empty folder",
                path.display()
            )));
        };
        let git_dir = PathBuf::from(git_dir);
        let failed = |e: io::Error| TreeError::io(git_dir.display().to_string(), e);
        let lock = File::options().create(true).append(true).open(git_dir.join(LOCK)).map_err(failed)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
        fcntl_setfd(&lock, FdFlags::empty()).map_err(|e| failed(e.into()))?;
        let has_remote = git.run(&["config", "--get", "remote.origin.url"], b"")?.code == Some(0);
        Ok(Self { path: path.to_owned(), git_dir, git, has_remote, _lock: lock })
    }

    pub(super) fn shown(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Is there a remote whose branches people compare theirs with?
    pub(super) fn has_remote(&self) -> bool {
        self.has_remote
    }

    /// Runs a command that only fails where something is wrong with the tree.
    pub(super) fn ask(&self, args: &[&str], input: &[u8]) -> Result<Vec<u8>, TreeError> {
        let done = self.git.run(args, input)?;
        if done.code == Some(0) {
            return Ok(done.stdout);
        }
        let verb = args.first().unwrap_or(&"");
        Err(TreeError::Refused(format!("`git {verb}` failed in {}: {}", self.shown(), done.last_words())))
    }

    pub(super) fn must(&self, args: &[&str]) -> Result<(), TreeError> {
        self.ask(args, b"").map(drop)
    }

    /// The commit that it is at; `None`: nothing was ever committed there.
    pub(super) fn head(&self) -> Result<Option<CommitId>, TreeError> {
        self.commit_of("HEAD")
    }

    pub(super) fn commit_of(&self, name: &str) -> Result<Option<CommitId>, TreeError> {
        commit_of(&self.git, name)
    }

    /// The branch that it is on, as a full ref.
    pub(super) fn branch(&self) -> Result<Option<String>, TreeError> {
        let done = self.git.run(&["symbolic-ref", "--quiet", "HEAD"], b"")?;
        let name = String::from_utf8_lossy(&done.stdout).trim().to_owned();
        Ok((done.code == Some(0) && !name.is_empty()).then_some(name))
    }

    pub(super) fn has(&self, commit: &CommitId) -> Result<bool, TreeError> {
        Ok(self.commit_of(commit.as_str())?.is_some())
    }

    pub(super) fn mirror_has(&self, mirror: &Path, commit: &CommitId) -> Result<bool, TreeError> {
        Ok(commit_of(&Git::new(mirror), commit.as_str())?.is_some())
    }

    /// The commits that lead to the one and not to the other, in words.
    pub(super) fn own_commits(&self, one: &CommitId, other: &CommitId) -> Result<Vec<String>, TreeError> {
        let args = ["log", "--format=%h %s", "--no-show-signature", "--end-of-options", one.as_str()];
        let said = self.ask(&[&args[..], &[&format!("^{other}")]].concat(), b"")?;
        Ok(String::from_utf8_lossy(&said).lines().map(str::to_owned).collect())
    }

    /// The tracked files that are not as `HEAD` has them, on disk or in the index.
    pub(super) fn changed(&self) -> Result<Vec<String>, TreeError> {
        let args =
            ["status", "--porcelain=v2", "-z", "--untracked-files=no", "--no-renames", "--ignore-submodules=all"];
        let said = self.ask(&args, b"")?;
        let path = |entry: &[u8]| {
            let entry = String::from_utf8_lossy(entry).into_owned();
            let fields = match entry.chars().next()? {
                '1' => 9,
                'u' => 11,
                _ => return None,
            };
            entry.splitn(fields, ' ').nth(fields - 1).map(str::to_owned)
        };
        Ok(said.split(|b| *b == 0).filter(|entry| !entry.is_empty()).filter_map(path).collect())
    }

    /// How a file is left: nothing of another content or kind has the same.
    pub(super) fn digest(&self, path: &str) -> String {
        let file = self.path.join(path);
        let Ok(facts) = fs::symlink_metadata(&file) else { return "gone".to_owned() };
        let (kind, bytes) = if facts.is_symlink() {
            ("link", fs::read_link(&file).map(|target| target.as_os_str().as_bytes().to_vec()))
        } else if facts.is_file() {
            (if facts.mode() & 0o100 == 0 { "file" } else { "program" }, fs::read(&file))
        } else {
            return "folder".to_owned();
        };
        bytes.map_or_else(
            |_| "unreadable".to_owned(),
            |bytes| format!("{kind} {:x}", Hex(Sha256::digest(bytes).as_slice())),
        )
    }

    /// Of a git of ours that was killed.
    pub(super) fn clear_locks(&self) -> Result<(), TreeError> {
        let branch = self.branch()?.unwrap_or_else(|| HEADS.to_owned());
        for name in
            ["index.lock".to_owned(), "HEAD.lock".to_owned(), "config.lock".to_owned(), format!("{branch}.lock")]
        {
            let path = self.git_dir.join(name);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(TreeError::io(path.display().to_string(), e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A merge or the like that a person is in the middle of.
    pub(super) fn refuse_unfinished(&self) -> Result<(), TreeError> {
        for (name, what, end) in [
            ("MERGE_HEAD", "merge", "merge --abort"),
            ("rebase-merge", "rebase", "rebase --abort"),
            ("rebase-apply", "rebase", "rebase --abort"),
            ("CHERRY_PICK_HEAD", "cherry-pick", "cherry-pick --abort"),
            ("REVERT_HEAD", "revert", "revert --abort"),
            ("BISECT_LOG", "bisect", "bisect reset"),
        ] {
            if self.git_dir.join(name).exists() {
                let shown = self.shown();
                return Err(TreeError::Refused(format!(
                    "a {what} is under way in {shown}: end it, or take it back with `git {end}`"
                )));
            }
        }
        Ok(())
    }
}

/// What this leads to; `None`, and not a word about it: nothing that is there.
fn commit_of(git: &Git, name: &str) -> Result<Option<CommitId>, TreeError> {
    let done = git.run(&["rev-parse", "--verify", "--quiet", &format!("{name}^{{commit}}")], b"")?;
    Ok(String::from_utf8_lossy(&done.stdout).trim().parse().ok().filter(|_| done.code == Some(0)))
}

struct Hex<'a>(&'a [u8]);

impl std::fmt::LowerHex for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The first of a list, and how many more there are.
pub(super) fn listed(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(NAMED) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}

fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn named(uid: u32) -> String {
    users::user_name(uid).unwrap_or_else(|| format!("uid {uid}"))
}

fn make(path: &Path) -> Result<(), TreeError> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => own(path),
        Err(e) if matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound) => {
            let (shown, me) = (path.display(), me());
            Err(TreeError::Refused(format!(
                "there is no {shown}, and {} cannot make it: `install -d -o {me} -g {} {shown}`",
                named(me),
                rustix::process::getegid().as_raw()
            )))
        }
        Err(e) => Err(TreeError::io(path.display().to_string(), e)),
    }
}

/// git works in a tree of its owner's alone, and so do the steps.
fn own(path: &Path) -> Result<(), TreeError> {
    let facts = match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        facts => facts.map_err(|e| TreeError::io(path.display().to_string(), e))?,
    };
    let (owner, me) = (facts.uid(), me());
    if owner == me {
        return Ok(());
    }
    let (shown, owner, me) = (path.display(), named(owner), named(me));
    let name = me.strip_prefix("uid ").unwrap_or(&me);
    Err(TreeError::Refused(format!(
        "{shown} belongs to {owner}, and the app's git and steps run as {me}: \
         `chown -R {name} {shown}`, or name that owner as the app's `user`"
    )))
}

/// Is it empty, or as empty as a clone that was never finished?
fn is_bare_ground(path: &Path, git: &Git) -> Result<bool, TreeError> {
    let failed = |e: io::Error| TreeError::io(path.display().to_string(), e);
    let mut others = 0;
    let mut begun = false;
    for entry in fs::read_dir(path).map_err(failed)? {
        if entry.map_err(failed)?.file_name() == ".git" {
            begun = true;
        } else {
            others += 1;
        }
    }
    Ok(others == 0 && (!begun || git.run(&["rev-parse", "--git-dir"], b"")?.code != Some(0)))
}

/// What `git clone` leaves, but for the commits.
fn clone(git: &Git, task: &Place) -> Result<(), TreeError> {
    let ref_name = if let To::Commit { ref_name, .. } = &task.to { ref_name.as_deref() } else { None };
    let name = ref_name.and_then(|full| full.strip_prefix(HEADS)).unwrap_or("main");
    let url = git::shown(&task.repo);
    let head = format!("--initial-branch={name}");
    for args in [
        &["init", "--quiet", "--template=", &head][..],
        &["config", "remote.origin.url", &url],
        &["config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"],
    ] {
        let done = git.run(args, b"")?;
        if done.code != Some(0) {
            let words = done.last_words();
            return Err(TreeError::Refused(format!("no clone can be made in {}: {words}", task.tree.display())));
        }
    }
    Ok(())
}
