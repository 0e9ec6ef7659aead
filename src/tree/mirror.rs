//! A mirror: a bare repository of the fetch user's, which holds nothing that the remote does not
//! have. Whoever holds its lock works in it alone, so lock files of git in it are left from the dead.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::{FdFlags, fcntl_setfd},
};

use super::{
    TreeError, empty,
    git::{self, CONFIG, Git},
    objects::{Object, Objects},
};

/// Not `.lock`, which are git's. What git starts inherits it: it is held as long as any of them lives.
const LOCK: &str = "everhook.flock";

/// A mirror that is ours alone while this lives.
pub(super) struct Mirror {
    pub path: PathBuf,
    repo: String,
    pub git: Git,
    objects: Objects,
    _lock: File,
}

impl Mirror {
    /// Waits for its lock, clears what a killed git left, and makes it a repository if it is none.
    pub(super) fn open(path: &Path, repo: &str) -> Result<Self, TreeError> {
        let failed = |e: io::Error| TreeError::io(format!("the mirror {}", path.display()), e);
        let lock = File::options().create(true).append(true).open(path.join(LOCK)).map_err(failed)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
        fcntl_setfd(&lock, FdFlags::empty()).map_err(|e| failed(e.into()))?;
        let mirror = Self {
            path: path.to_owned(),
            repo: repo.to_owned(),
            git: Git::new(path).reaching(repo),
            objects: Objects::default(),
            _lock: lock,
        };
        mirror.prepare()?;
        Ok(mirror)
    }

    /// The same, for its own sake alone: `None` where somebody else is at work, or there is none yet.
    pub(super) fn idle(path: &Path) -> Result<Option<Self>, TreeError> {
        let failed = |e: io::Error| TreeError::io(format!("the mirror {}", path.display()), e);
        let lock = match File::options().append(true).open(path.join(LOCK)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            lock => lock.map_err(failed)?,
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() || !path.join("HEAD").exists() {
            return Ok(None);
        }
        fcntl_setfd(&lock, FdFlags::empty()).map_err(|e| failed(e.into()))?;
        clear_leftovers(path).and_then(|()| clear_halves(path)).map_err(failed)?;
        let git = Git::new(path);
        Ok(Some(Self { path: path.to_owned(), repo: String::new(), git, objects: Objects::default(), _lock: lock }))
    }

    /// Has the gits start that tell of objects, for whoever will ask them when another has done its work.
    pub(super) fn begin_to_tell(&self) -> Result<(), TreeError> {
        self.objects.begin(&self.git)
    }

    /// The object that a name or an expression leads to, of those that are there.
    pub(super) fn object(&self, name: &str) -> Result<Option<Object>, TreeError> {
        self.objects.find(&self.git, name)
    }

    /// The bytes of objects that must be there.
    pub(super) fn sizes(&self, ids: &[String]) -> Result<Vec<u64>, TreeError> {
        self.objects.sizes(&self.git, ids)
    }

    /// Throws away what is there and begins anew.
    pub(super) fn renew(&self) -> Result<(), TreeError> {
        self.objects.end();
        empty::empty_but(&self.path, &[LOCK])?;
        self.prepare()
    }

    /// Removes what a git that came to nothing has left.
    pub(super) fn clear(&self) {
        if let Err(error) = clear_leftovers(&self.path).and_then(|()| clear_halves(&self.path)) {
            eprintln!("what is left of the fetch could not be removed: {error}");
        }
    }

    fn prepare(&self) -> Result<(), TreeError> {
        let failed = |e| TreeError::io(format!("the mirror {}", self.path.display()), e);
        clear_leftovers(&self.path).map_err(failed)?;
        let (config, text) = (self.path.join(CONFIG), git::config(&self.path, &self.repo, &self.git.access));
        if fs::read_to_string(&config).ok().as_ref() != Some(&text) {
            // At once: an app's user may read it for a checkout meanwhile.
            let new = self.path.join("everhook.new");
            fs::write(&new, text).map_err(failed)?;
            fs::rename(new, config).map_err(failed)?;
        }
        if !self.path.join("HEAD").exists() || !self.path.join("objects").is_dir() {
            let done = self.git.run(&["init", "--bare", "--quiet", "--template="], b"")?;
            if done.code != Some(0) {
                return Err(TreeError::Mirror(done.last_words()));
            }
        }
        Ok(())
    }
}

/// Locks and half-written packs of gits that were killed.
fn clear_leftovers(path: &Path) -> io::Result<()> {
    for folder in [path.to_owned(), path.join("objects"), path.join("objects/pack"), path.join("objects/info")] {
        remove_leftovers(&folder, false)?;
    }
    remove_leftovers(&path.join("refs"), true)
}

/// Half-written objects, which are in nobody's way.
fn clear_halves(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path.join("objects")).into_iter().flatten() {
        let entry = entry?;
        if entry.file_name().len() == 2 && entry.file_type()?.is_dir() {
            remove_leftovers(&entry.path(), false)?;
        }
    }
    Ok(())
}

fn remove_leftovers(folder: &Path, deep: bool) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            if deep {
                remove_leftovers(&entry.path(), true)?;
            }
        } else if name.ends_with(".lock") || name.starts_with("tmp_") || name.starts_with(".tmp-") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
