//! Work below a folder whose content nobody vouches for: no name in it, no link, no `..` leads out,
//! whatever its owner changes meanwhile. Each path is resolved by the kernel (openat2,
//! `RESOLVE_BENEATH`) or is one name in a folder that was.

use std::{
    ffi::{CStr, CString, OsStr},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, RawMode, ResolveFlags, Stat, chmodat, fchmod, fstat, mkdirat,
        openat, openat2, readlinkat, renameat, statat, symlinkat, unlinkat,
    },
    io::Errno,
};

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A folder, and nothing but what is below it. Paths are relative to it.
#[derive(Debug)]
pub struct Beneath {
    folder: OwnedFd,
}

impl Beneath {
    /// # Errors
    /// `NotADirectory` for anything else, a symbolic link included.
    pub fn open(folder: &Path) -> io::Result<Self> {
        Ok(Self { folder: openat(CWD, folder, FOLDER | OFlags::NOFOLLOW, Mode::empty())? })
    }

    /// Opens, or with `OFlags::CREATE` makes, a file. Links that stay below are followed.
    ///
    /// # Errors
    /// `EXDEV` when the path leads out.
    pub fn open_file(&self, path: &Path, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
        let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(mode as RawMode) } else { Mode::empty() };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(&self.folder, path, flags | OFlags::CLOEXEC, mode, resolve)?)
    }

    fn open_folder(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_file(if path.as_os_str().is_empty() { Path::new(".") } else { path }, FOLDER, 0)
    }

    /// The folder that a path's last name is in, and that name.
    fn place<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let name = path.file_name().filter(|_| path.is_relative()).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no name below a folder", path.display()))
        })?;
        Ok((self.open_folder(path.parent().unwrap_or(Path::new("")))?, name))
    }

    /// Makes a folder and those above it, where they are missing, with this mode less the umask.
    ///
    /// # Errors
    /// `NotADirectory` when something else is in the way.
    pub fn mkdir_all(&self, path: &Path, mode: u32) -> io::Result<()> {
        let mut made = PathBuf::new();
        for part in path.components() {
            made.push(part);
            match self.open_folder(&made) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let (folder, name) = self.place(&made)?;
                    mkdirat(folder, name, Mode::from_raw_mode(mode as RawMode))?;
                }
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Makes a symbolic link at `path`; where it leads is nobody's business here.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken.
    pub fn symlink(&self, target: &Path, path: &Path) -> io::Result<()> {
        let (folder, name) = self.place(path)?;
        Ok(symlinkat(target, folder, name)?)
    }

    /// Where the symbolic link at `path` leads.
    ///
    /// # Errors
    /// `InvalidInput` when it is none.
    pub fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        let (folder, name) = self.place(path)?;
        Ok(std::ffi::OsString::from_vec(readlinkat(folder, name, Vec::new())?.into_bytes()).into())
    }

    /// Renames within the folder, replacing what `to` was.
    ///
    /// # Errors
    /// As `rename(2)` says.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (old_folder, old) = self.place(from)?;
        let (new_folder, new) = self.place(to)?;
        Ok(renameat(old_folder, old, new_folder, new)?)
    }

    /// What is at `path`, a symbolic link itself rather than where it leads; `None`: nothing.
    ///
    /// # Errors
    /// When the folders before it are none, or lead out.
    pub fn stat(&self, path: &Path) -> io::Result<Option<Stat>> {
        let (folder, name) = match self.place(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    /// Removes what is at `path` with everything below it; nothing there is fine. Folders that
    /// their owner may not change (`chmod a-w`) are opened up first.
    ///
    /// # Errors
    /// The first failure; what was removed before is gone.
    pub fn remove_all(&self, path: &Path) -> io::Result<()> {
        let (folder, name) = match self.place(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        remove(folder.as_fd(), &CString::new(name.as_bytes())?)
    }

    /// Removes everything in the folder, not the folder itself.
    ///
    /// # Errors
    /// As [`Beneath::remove_all`].
    pub fn empty(&self) -> io::Result<()> {
        empty(self.folder.as_fd())
    }
}

impl AsFd for Beneath {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

/// The type of what [`Beneath::stat`] found.
#[must_use]
pub fn type_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn empty(folder: BorrowedFd) -> io::Result<()> {
    let mode = Mode::from_raw_mode(fstat(folder)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        fchmod(folder, mode | Mode::RWXU)?;
    }
    // All names first, so that one descriptor a level is open on the way down.
    let names: Vec<CString> = Dir::read_from(folder)?
        .map(|entry| entry.map(|e| e.file_name().to_owned()))
        .filter(|name| !name.as_ref().is_ok_and(|n| matches!(n.to_bytes(), b"." | b"..")))
        .collect::<Result<_, _>>()?;
    names.iter().try_for_each(|name| remove(folder, name))
}

fn remove(folder: BorrowedFd, name: &CStr) -> io::Result<()> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says so of a folder, POSIX says EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e.into()),
    }
    empty(open_to_empty(folder, name)?.as_fd())?;
    match unlinkat(folder, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Opens a folder, if need be after giving its owner the right to. Only the owner can, so a link
/// that takes the name's place meanwhile changes nothing of others'.
fn open_to_empty(above: BorrowedFd, name: &CStr) -> io::Result<OwnedFd> {
    let open = || openat(above, name, FOLDER | OFlags::NOFOLLOW, Mode::empty());
    match open() {
        Err(Errno::ACCESS) => {
            chmodat(above, name, Mode::RWXU, AtFlags::empty())?;
            Ok(open()?)
        }
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File, Permissions},
        io::{Read, Write},
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;
    use crate::os::alone::alone_as_nobody;

    /// A folder with a neighbour that must never change.
    fn beside_a_treasure() -> (tempfile::TempDir, Beneath) {
        let outer = tempfile::tempdir().unwrap();
        fs::create_dir_all(outer.path().join("release/inner")).unwrap();
        fs::create_dir(outer.path().join("outside")).unwrap();
        fs::write(outer.path().join("outside/treasure"), "gold").unwrap();
        symlink("../outside", outer.path().join("release/relative")).unwrap();
        symlink(outer.path().join("outside"), outer.path().join("release/absolute")).unwrap();
        symlink("inner", outer.path().join("release/within")).unwrap();
        let beneath = Beneath::open(&outer.path().join("release")).unwrap();
        (outer, beneath)
    }

    #[test]
    fn nothing_leads_out() {
        let (outer, beneath) = beside_a_treasure();
        let absolute = outer.path().join("outside");
        for way in ["../outside", "relative", "absolute", "inner/../../outside", absolute.to_str().unwrap()] {
            let (way, treasure) = (Path::new(way), Path::new(way).join("treasure"));
            assert!(beneath.open_file(&treasure, OFlags::RDONLY, 0).is_err(), "{way:?}");
            assert!(beneath.open_file(&way.join("new"), OFlags::WRONLY | OFlags::CREATE, 0o600).is_err(), "{way:?}");
            assert!(beneath.mkdir_all(&way.join("new"), 0o755).is_err(), "{way:?}");
            assert!(beneath.symlink(Path::new("x"), &way.join("new")).is_err(), "{way:?}");
            assert!(beneath.rename(Path::new("inner"), &way.join("new")).is_err(), "{way:?}");
            assert!(beneath.rename(&treasure, Path::new("stolen")).is_err(), "{way:?}");
            assert!(beneath.stat(&treasure).is_err(), "{way:?}");
            assert!(beneath.remove_all(&treasure).is_err(), "{way:?}");
        }
        for none in ["", ".", "..", "/"] {
            assert!(beneath.remove_all(Path::new(none)).is_err(), "{none:?}");
        }
        beneath.empty().unwrap();
        assert_eq!(fs::read_dir(outer.path().join("release")).unwrap().count(), 0);
        let outside: Vec<_> =
            fs::read_dir(outer.path().join("outside")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(outside, ["treasure"]);
        assert!(Beneath::open(&outer.path().join("none")).is_err());
    }

    #[test]
    fn a_folder_that_is_a_link_is_not_worked_below() {
        let outer = tempfile::tempdir().unwrap();
        symlink(outer.path(), outer.path().join("link")).unwrap();
        assert!(Beneath::open(&outer.path().join("link")).is_err());
    }

    #[test]
    fn everything_works_within() {
        let (outer, beneath) = beside_a_treasure();
        let path = |text: &'static str| Path::new(text);
        beneath.mkdir_all(path("a/b/c"), 0o755).unwrap();
        beneath.mkdir_all(path("within/d"), 0o755).unwrap();
        let file = beneath.open_file(path("a/b/file"), OFlags::WRONLY | OFlags::CREATE, 0o640).unwrap();
        File::from(file).write_all(b"content").unwrap();
        beneath.symlink(path("/srv/shared/file"), path("a/link")).unwrap();
        assert_eq!(beneath.read_link(path("a/link")).unwrap(), path("/srv/shared/file"));
        beneath.rename(path("a/b/file"), path("inner/file")).unwrap();
        let mut text = String::new();
        File::from(beneath.open_file(path("within/file"), OFlags::RDONLY, 0).unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "content");
        let types = ["a", "a/link", "inner/file"].map(|p| type_of(&beneath.stat(path(p)).unwrap().unwrap()));
        assert_eq!(types, [FileType::Directory, FileType::Symlink, FileType::RegularFile]);
        assert!(beneath.stat(path("none")).unwrap().is_none());
        assert!(beneath.stat(path("none/at/all")).unwrap().is_none());
        for gone in ["a", "within", "none", "none/at/all"] {
            beneath.remove_all(path(gone)).unwrap();
            assert!(beneath.stat(path(gone)).unwrap().is_none(), "{gone}");
        }
        assert!(outer.path().join("release/inner/d").is_dir(), "a link is removed, not what it leads to");
    }

    #[test]
    fn what_its_owner_closed_is_removed_too() {
        alone_as_nobody("os::beneath::tests::what_its_owner_closed_is_removed_too", || {
            let outer = tempfile::tempdir().unwrap();
            let closed = outer.path().join("cache/mod");
            fs::create_dir_all(closed.join("deep/er")).unwrap();
            fs::write(closed.join("deep/file"), "").unwrap();
            for (folder, mode) in [("deep/er", 0o000), ("deep", 0o555), ("", 0o400)] {
                fs::set_permissions(closed.join(folder), Permissions::from_mode(mode)).unwrap();
            }
            let beneath = Beneath::open(outer.path()).unwrap();
            beneath.remove_all(Path::new("cache")).unwrap();
            assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 0);
        });
    }
}
