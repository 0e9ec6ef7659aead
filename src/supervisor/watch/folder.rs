//! Which folders the kernel is to tell of, and what is in them: one walk for both.

use std::{
    collections::BTreeSet,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::domain::config::Watch;

/// What is watched for one app, and what in it belongs to everhook itself.
pub struct Ground<'a> {
    pub watch: &'a Watch,
    /// State and run directory: they change at every turn of the supervisor's own.
    pub ours: &'a [PathBuf],
}

/// A walk through what is watched.
#[derive(Default)]
pub struct Walk {
    /// Each is to be watched for itself; whatever is ignored costs nothing.
    pub folders: BTreeSet<PathBuf>,
    /// Differs when something was written, made, removed or renamed.
    pub signature: u64,
    /// The first path that is not there or cannot be read.
    pub trouble: Option<String>,
}

impl Ground<'_> {
    /// The watched path that this one is, or is in; `None` when it does not count.
    #[must_use]
    pub fn root_of(&self, path: &Path) -> Option<&Path> {
        let inside = |root: &&PathBuf| {
            path.strip_prefix(root).is_ok_and(|relative| !self.watch.ignore.fits(relative))
                && !self.ours.iter().any(|ours| path.starts_with(ours))
        };
        self.watch.paths.iter().find(inside).map(PathBuf::as_path)
    }

    /// Is this a folder above something watched, so that its coming and going matters?
    #[must_use]
    pub fn is_above(&self, path: &Path) -> bool {
        self.watch.paths.iter().any(|root| root.starts_with(path))
    }

    /// Walks through everything that counts. Links are not followed, but a watched path may be one.
    #[must_use]
    pub fn walk(&self) -> Walk {
        let mut walk = Walk::default();
        let mut hasher = DefaultHasher::new();
        for root in &self.watch.paths {
            // What is replaced, removed or not there yet is seen by the folder above it.
            let above = root.ancestors().skip(1).find(|path| path.is_dir());
            walk.folders.extend(above.map(Path::to_owned));
            match fs::metadata(root) {
                Ok(facts) if facts.is_dir() => self.enter(root, root, &mut walk, &mut hasher),
                Ok(facts) => note(root, &facts, &mut hasher),
                Err(error) => {
                    root.hash(&mut hasher);
                    walk.trouble.get_or_insert(format!("{}: {error}", root.display()));
                }
            }
        }
        walk.signature = hasher.finish();
        walk
    }

    fn enter(&self, root: &Path, folder: &Path, walk: &mut Walk, hasher: &mut DefaultHasher) {
        walk.folders.insert(folder.to_owned());
        folder.hash(hasher);
        let entries = match fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
            Ok(entries) => entries,
            // Gone meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                walk.trouble.get_or_insert(format!("{}: {error}", folder.display()));
                return;
            }
        };
        let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
        paths.sort();
        for path in paths {
            let counts = path.strip_prefix(root).is_ok_and(|relative| !self.watch.ignore.fits(relative));
            if !counts || self.ours.contains(&path) {
                continue;
            }
            match fs::symlink_metadata(&path) {
                Ok(facts) if facts.is_dir() => self.enter(root, &path, walk, hasher),
                Ok(facts) => note(&path, &facts, hasher),
                Err(_) => {}
            }
        }
    }
}

/// Reading leaves all of this as it is, and so does a change of mode.
fn note(path: &Path, facts: &fs::Metadata, hasher: &mut DefaultHasher) {
    (path, facts.ino(), facts.size(), facts.mtime(), facts.mtime_nsec()).hash(hasher);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::config::Ignore;

    fn watch(paths: Vec<PathBuf>) -> Watch {
        let ignore = Ignore::new(&["node_modules".into(), "*.log".into()]).unwrap();
        Watch { paths, ignore, debounce: Duration::ZERO, poll: None }
    }

    #[test]
    fn ignored_folders_are_not_entered_and_reading_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("src");
        for folder in ["a/b", "node_modules/x/y", ".git/objects", "state/logs"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("a/main"), "1").unwrap();
        let watch = watch(vec![root.clone()]);
        let ground = Ground { watch: &watch, ours: &[root.join("state")] };
        let walk = ground.walk();
        let want = [dir.path().to_owned(), root.clone(), root.join("a"), root.join("a/b")];
        assert_eq!(walk.folders, BTreeSet::from(want));

        fs::read(root.join("a/main")).unwrap();
        fs::write(root.join("node_modules/x/new"), "1").unwrap();
        fs::write(root.join("a/app.log"), "1").unwrap();
        fs::write(root.join("state/file"), "1").unwrap();
        assert_eq!(ground.walk().signature, walk.signature);
        fs::write(root.join("a/main"), "22").unwrap();
        assert_ne!(ground.walk().signature, walk.signature);

        assert_eq!(ground.root_of(&root.join("a/b/c")), Some(root.as_path()));
        assert_eq!(ground.root_of(&root.join("a/.git/index.lock")), None);
        assert_eq!(ground.root_of(&root.join("state/logs/x")), None);
        assert_eq!(ground.root_of(&dir.path().join("other")), None);
        assert!(ground.is_above(dir.path()) && !ground.is_above(&root.join("a")));
    }

    #[test]
    fn what_is_not_there_yet_is_awaited_in_the_nearest_folder() {
        let dir = tempfile::tempdir().unwrap();
        let watch = watch(vec![dir.path().join("later/src")]);
        let walk = Ground { watch: &watch, ours: &[] }.walk();
        assert_eq!(walk.folders, BTreeSet::from([dir.path().to_owned()]));
    }
}
