//! Takes over what another user, as whom the app ran before, has left in its folders.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, openat},
    io::Errno,
    process::{getegid, geteuid},
};

use super::{TreeError, beneath};

/// Makes what is in these folders, and is of whoever has the folder, ours; that of others stays theirs. Each folder
/// itself comes last: where it is ours, all of it is.
pub(super) fn take_over(paths: &[PathBuf]) -> Result<(), TreeError> {
    paths
        .iter()
        .try_for_each(|path| folder(path).map_err(|e| TreeError::io(format!("taking over {}", path.display()), e)))
}

fn folder(path: &Path) -> io::Result<()> {
    let folder = match beneath::folder(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let from = fstat(&folder)?.st_uid;
    // What root has left there is not handed on.
    if from == 0 || from == geteuid().as_raw() {
        return Ok(());
    }
    below(folder.as_fd(), from)?;
    Ok(take(folder.as_fd())?)
}

fn below(folder: BorrowedFd<'_>, from: u32) -> io::Result<()> {
    for name in beneath::names(folder)? {
        // Held, so that what is looked at is what is taken, whatever stands at its name by then.
        let held = match openat(folder, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOENT) => continue,
            other => other?,
        };
        let stat = fstat(&held)?;
        if stat.st_uid == from {
            take(held.as_fd())?;
        }
        if beneath::kind(&stat) == FileType::Directory {
            below(beneath::folder_below(held.as_fd(), Path::new(""))?.as_fd(), from)?;
        }
    }
    Ok(())
}

fn take(held: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let ours = (Uid::from_raw(geteuid().as_raw()), Gid::from_raw(getegid().as_raw()));
    chownat(held, c"", Some(ours.0), Some(ours.1), AtFlags::EMPTY_PATH)
}
