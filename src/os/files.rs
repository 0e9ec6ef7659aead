//! Files whose content must survive a crash whole, and folders with a fixed owner and mode.
//! Everything here works on names in folders that nobody less trusted may write; below a release
//! [`super::beneath`] does.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, symlink},
    },
    path::{Path, PathBuf},
};

/// Renames, and returns when the new name is on disk. Both names must be on one file system.
///
/// # Errors
/// As `rename(2)` and `fsync(2)` say.
pub fn rename_durably(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_folder(to)
}

/// Moves all that is called `<old>.…` in one folder to `<new>.…` in another.
///
/// # Errors
/// As `rename(2)` and `readdir(3)` say; what was moved by then stays so.
pub fn move_named(from: &Path, to: &Path, old: &str, new: &str) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(old)).filter(|rest| rest.starts_with('.'));
        if let Some(rest) = rest {
            fs::rename(entry.path(), to.join(format!("{new}{rest}")))?;
        }
    }
    Ok(())
}

/// Gives the files of a folder that are its former owner's to a new one. The former owner may change the
/// folder meanwhile: only that one's own files, which have no other name, are given away.
///
/// # Errors
/// As `open(2)` and `fchown(2)` say.
pub fn hand_over(folder: &Path, from: u32, (uid, gid): (u32, u32)) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let Ok(file) = OpenOptions::new().read(true).custom_flags(flags).open(entry?.path()) else { continue };
        let facts = file.metadata()?;
        if facts.is_file() && facts.uid() == from && facts.nlink() == 1 {
            fchown(&file, Some(uid), Some(gid))?;
        }
    }
    Ok(())
}

/// Replaces a file's content: after a crash it holds the old or the new one, whole.
/// One writer at a time. The mode does not depend on the umask.
///
/// # Errors
/// As the file system says; the old content is still there then.
pub fn write_durably(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let new = beside(path)?;
    remove_if_there(&new)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file
        .set_permissions(Permissions::from_mode(mode))
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&new, path));
    if let Err(e) = written {
        // What failed is told; that the rest of it could not be removed is no second failure.
        let _ = fs::remove_file(&new);
        return Err(e);
    }
    sync_folder(path)
}

/// Points a symbolic link elsewhere (or makes it) at once: it never leads nowhere in between.
///
/// # Errors
/// As the file system says; `IsADirectory` when a folder has the name.
pub fn symlink_swap(target: &Path, link: &Path) -> io::Result<()> {
    let new = beside(link)?;
    remove_if_there(&new)?;
    symlink(target, &new)?;
    rename_durably(&new, link)
}

/// Removes a file and returns when that is on disk; one that is not there is removed already.
///
/// # Errors
/// As the file system says.
pub fn remove_durably(path: &Path) -> io::Result<()> {
    remove_if_there(path)?;
    sync_folder(path)
}

/// The files whose paths fit a glob, in order, and their texts. `*` stands for a part of one name; names
/// that begin with a dot must be named so. That nothing fits is no error unless there is no `*` at all.
///
/// # Errors
/// Names what cannot be read.
pub fn matching(glob: &Path) -> Result<Vec<(PathBuf, String)>, String> {
    let mut paths = vec![PathBuf::new()];
    for part in glob.components() {
        let name = part.as_os_str();
        let pattern = name.to_str().filter(|name| name.contains(['*', '?', '[', '{']));
        let Some(pattern) = pattern else {
            paths.iter_mut().for_each(|path| path.push(name));
            continue;
        };
        let matcher =
            globset::Glob::new(pattern).map_err(|error| format!("{pattern:?} is no pattern: {}", error.kind()))?;
        let matcher = matcher.compile_matcher();
        let mut found = Vec::new();
        for folder in &paths {
            let named = |error: io::Error| format!("{}: {error}", folder.display());
            match fs::read_dir(folder) {
                Ok(entries) => {
                    let names =
                        entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>();
                    let shown =
                        |name: &OsString| pattern.starts_with('.') || !name.as_encoded_bytes().starts_with(b".");
                    let fits = names.map_err(named)?.into_iter().filter(|name| matcher.is_match(name) && shown(name));
                    found.extend(fits.map(|name| folder.join(name)));
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => return Err(named(error)),
            }
        }
        found.sort();
        paths = found;
    }
    let read = |path: PathBuf| match fs::read_to_string(&path) {
        Ok(text) => Ok((path, text)),
        Err(error) => Err(format!("{}: {error}", path.display())),
    };
    paths.into_iter().map(read).collect()
}

/// A name in the same folder that nothing else has; of a crash in between it is all that is left,
/// and the next write takes it away.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a path without a name"))?;
    let mut new = std::ffi::OsString::from(".");
    new.push(name);
    new.push(".new");
    Ok(path.with_file_name(new))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn sync_folder(of: &Path) -> io::Result<()> {
    let folder = of.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Opens a regular file for reading, following no link in its last part and never waiting (as the
/// open of a FIFO would).
///
/// # Errors
/// `FilesystemLoop` (`ELOOP`) for a symbolic link, `InvalidInput` for anything else that is no regular file.
pub fn open_nofollow(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    regular(OpenOptions::new().read(true).custom_flags(flags).open(path)?, path)
}

/// The same, through links.
///
/// # Errors
/// `InvalidInput` for what is no regular file, and as `open(2)` says.
pub fn open_regular(path: &Path) -> io::Result<File> {
    regular(OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?, path)
}

/// # Errors
/// `InvalidInput` for what is no regular file.
pub fn regular(file: File, path: &Path) -> io::Result<File> {
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no regular file", path.display())))
}

/// Makes a folder where none is (its parent must be), and mends owner and mode where they differ.
/// `owner` is uid and gid; `None`: whoever has it.
///
/// # Errors
/// `NotADirectory` when something else, a symbolic link included, has the name.
pub fn make_folder(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    match fs::DirBuilder::new().mode(mode & 0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let flags = libc::O_NOFOLLOW | libc::O_DIRECTORY;
    let folder = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = folder.metadata()?;
    if let Some((uid, gid)) = owner.filter(|owner| *owner != (metadata.uid(), metadata.gid())) {
        fchown(&folder, Some(uid), Some(gid))?;
    }
    // A change of owner may have taken special bits away.
    if folder.metadata()?.mode() & 0o7777 != mode {
        folder.set_permissions(Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Writes everything to disk that was changed on the file system of this file.
///
/// # Errors
/// When writing failed since it was opened.
pub fn syncfs(file: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::syncfs(file)?)
}

/// Bytes that an unprivileged user may still write on the file system of this path.
///
/// # Errors
/// When there is no such path.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Is so much free where this folder lies?
///
/// # Errors
/// A sentence with both figures where it is not, or why nobody knows.
pub fn require_free(path: &Path, needed: u64) -> Result<(), String> {
    let shown = path.display();
    let free = free_bytes(path).map_err(|e| format!("{shown}: {e}"))?;
    let mib = |bytes: u64| bytes >> 20;
    if free < needed {
        return Err(format!("not enough space: {} MiB are free at {shown}, {} MiB are needed", mib(free), mib(needed)));
    }
    Ok(())
}

/// As root nobody else may decide what root does: what a config says, may nobody else write.
///
/// # Errors
/// Names the path, whose it is, and the fix.
pub fn guard(path: &Path) -> Result<(), String> {
    let facts = fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let sticky = facts.is_dir() && facts.permissions().mode() & 0o1000 != 0;
    if facts.uid() == 0 && (facts.permissions().mode() & 0o022 == 0 || sticky) {
        return Ok(());
    }
    Err(format!(
        "{} can be written by others than root (owner {}, mode {:o}); run as root, the config and its folder must be \
         root's alone: chown root {0} && chmod go-w {0}",
        path.display(),
        facts.uid(),
        facts.permissions().mode() & 0o7777
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_replaced_whole_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("live");
        fs::write(beside(&path).unwrap(), "left by a crash").unwrap();
        for content in ["7-1a2b3c4", "8"] {
            write_durably(&path, content.as_bytes(), 0o666).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o666);
        fs::create_dir(folder.path().join("folder")).unwrap();
        assert!(write_durably(&folder.path().join("folder"), b"", 0o600).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside");
        remove_durably(&path).unwrap();
        remove_durably(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_link_is_pointed_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("current");
        for target in ["releases/1", "releases/2"] {
            symlink_swap(Path::new(target), &link).unwrap();
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
        }
        fs::create_dir(folder.path().join("folder")).unwrap();
        assert!(symlink_swap(Path::new("x"), &folder.path().join("folder")).is_err());
    }

    #[test]
    fn only_regular_files_are_opened_as_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link, fifo) = (folder.path().join("file"), folder.path().join("link"), folder.path().join("fifo"));
        fs::write(&file, "secret").unwrap();
        symlink(&file, &link).unwrap();
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(open_nofollow(&file).is_ok());
        assert_eq!(open_nofollow(&link).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        for other in [&fifo, folder.path()] {
            assert_eq!(open_nofollow(other).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn folders_get_their_owner_and_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mirror");
        let owner = nix::unistd::geteuid().is_root().then_some((65534, 65534));
        for mode in [0o2750, 0o711] {
            make_folder(&path, mode, owner).unwrap();
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!(metadata.mode() & 0o7777, mode);
            assert!(owner.is_none_or(|owner| owner == (metadata.uid(), metadata.gid())));
        }
        symlink(&path, folder.path().join("link")).unwrap();
        assert!(make_folder(&folder.path().join("link"), 0o700, None).is_err());
        assert!(make_folder(&folder.path().join("no/folder"), 0o700, None).is_err());
    }

    #[test]
    fn space_and_flushing_are_the_file_systems() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_bytes(folder.path()).unwrap() > 0);
        assert!(require_free(folder.path(), 1).is_ok());
        assert!(require_free(folder.path(), u64::MAX).unwrap_err().contains("17592186044415 MiB are needed"));
        assert!(free_bytes(&folder.path().join("none")).is_err());
        syncfs(File::open(folder.path()).unwrap()).unwrap();
    }
}
