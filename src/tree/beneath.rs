//! Names below a folder, never through a symbolic link and never out of it (openat2(2),
//! RESOLVE_BENEATH): what a commit put there chooses nothing but itself.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path},
};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fchmod, mkdirat, open, openat2, statat};

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// Opens a folder by a path that is ours; it must not be a link itself.
pub(super) fn folder(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, FOLDER | OFlags::NOFOLLOW, Mode::empty())?)
}

/// Holds a folder that we may enter but perhaps not read.
pub(super) fn hold(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, FOLDER | OFlags::PATH, Mode::empty())?)
}

/// Opens the folder `path` below `root`.
pub(super) fn folder_below(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    Ok(openat2(root, path, FOLDER, Mode::empty(), resolve())?)
}

/// Opens the folder `path` below `root`; what is missing of it is made.
pub(super) fn make_folder_below(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let mut here = folder_below(root, Path::new(""))?;
    for part in path.components() {
        match mkdirat(&here, part.as_os_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        here = folder_below(here.as_fd(), Path::new(part.as_os_str()))?;
    }
    Ok(here)
}

/// Opens the plain file `name` of a folder for reading.
pub(super) fn file(folder: BorrowedFd<'_>, name: &Path) -> io::Result<File> {
    // A FIFO of that name must not hold us up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(openat2(folder, name, flags, Mode::empty(), resolve())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// What stands at `name` in a folder, links not followed; `None`: nothing.
pub(super) fn look(folder: BorrowedFd<'_>, name: &Path) -> io::Result<Option<Stat>> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The names in a folder.
pub(super) fn names(folder: BorrowedFd<'_>) -> io::Result<Vec<std::path::PathBuf>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(std::path::PathBuf::from(std::ffi::OsStr::from_bytes(name)));
        }
    }
    Ok(names)
}

/// Lets its owner read, change and enter the folder `name`, which may forbid that now.
pub(super) fn unlock(parent: BorrowedFd<'_>, name: &Path, mode: u32) -> io::Result<()> {
    if mode & 0o700 == 0o700 {
        return Ok(());
    }
    // No fchmodat without following links before Linux 6.6: hold it by name, change it through /proc.
    let held = openat2(parent, name, FOLDER | OFlags::PATH | OFlags::NOFOLLOW, Mode::empty(), resolve())?;
    let through = format!("/proc/self/fd/{}", held.as_raw_fd());
    Ok(rustix::fs::chmod(through, Mode::from_raw_mode(mode & 0o7777 | 0o700))?)
}

/// Gives an open file these permissions, without set-id bits.
pub(super) fn permit(file: impl AsFd, mode: u32) -> io::Result<()> {
    Ok(fchmod(file, Mode::from_raw_mode(mode & 0o777))?)
}

/// Is it a relative path of plain names?
pub(super) fn is_plain(path: &Path) -> bool {
    path.components().next().is_some() && path.components().all(|part| matches!(part, Component::Normal(_)))
}

fn resolve() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}
