//! Removes everything in a folder, links as links, folders that forbid it included.

use std::{
    ffi::OsStr,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, FileType, renameat, unlinkat},
    io::Errno,
};

use super::{TreeError, beneath};

/// So often what comes in meanwhile is removed too.
const PASSES: u32 = 8;

/// Empties a folder; one that is not there is empty.
pub(super) fn empty(path: &Path) -> Result<(), TreeError> {
    empty_but(path, &[])
}

/// Empties a folder but for these names in it.
pub(super) fn empty_but(path: &Path, keep: &[&str]) -> Result<(), TreeError> {
    let failed = |e| TreeError::io(format!("emptying {}", path.display()), e);
    match open_own(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed(e)),
        Ok(root) => remove_all(root.as_fd(), keep).map_err(failed),
    }
}

/// Removes what stands at `name`, with everything in it. `parent` must be writable.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &Path) -> io::Result<()> {
    let Some(stat) = beneath::look(parent, name)? else { return Ok(()) };
    if beneath::kind(&stat) != FileType::Directory {
        return Ok(unlinkat(parent, name, AtFlags::empty())?);
    }
    beneath::unlock(parent, name, stat.st_mode)?;
    let folder = beneath::folder_below(parent, name)?;
    remove_all(folder.as_fd(), &[])?;
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

fn open_own(path: &Path) -> io::Result<OwnedFd> {
    if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
        let parent = beneath::hold(parent)?;
        if let Some(stat) = beneath::look(parent.as_fd(), Path::new(name))?
            && beneath::kind(&stat) == FileType::Directory
        {
            beneath::unlock(parent.as_fd(), Path::new(name), stat.st_mode)?;
        }
    }
    beneath::folder(path)
}

fn remove_all(root: BorrowedFd<'_>, keep: &[&str]) -> io::Result<()> {
    let mut raised = 0;
    for _ in 0..PASSES {
        loop {
            let mut names = beneath::names(root)?;
            names.retain(|name| !keep.iter().any(|kept| OsStr::new(kept) == name.as_os_str()));
            if names.is_empty() {
                return Ok(());
            }
            let before = raised;
            for name in &names {
                remove_flat(root, name, &mut raised)?;
            }
            if raised == before {
                break;
            }
        }
    }
    Err(io::Error::from(Errno::NOTEMPTY))
}

/// Removes a file, or a folder whose own folders are first raised up to `root`: so no depth, however
/// great, takes descriptors or stack.
fn remove_flat(root: BorrowedFd<'_>, name: &Path, raised: &mut u64) -> io::Result<()> {
    let Some(stat) = beneath::look(root, name)? else { return Ok(()) };
    if beneath::kind(&stat) != FileType::Directory {
        return gone(unlinkat(root, name, AtFlags::empty()));
    }
    beneath::unlock(root, name, stat.st_mode)?;
    let folder = beneath::folder_below(root, name)?;
    for inner in beneath::names(folder.as_fd())? {
        let Some(stat) = beneath::look(folder.as_fd(), &inner)? else { continue };
        if beneath::kind(&stat) != FileType::Directory {
            gone(unlinkat(&folder, &inner, AtFlags::empty()))?;
            continue;
        }
        beneath::unlock(folder.as_fd(), &inner, stat.st_mode)?;
        loop {
            *raised += 1;
            let free = format!(".everhook-{raised}");
            if beneath::look(root, Path::new(&free))?.is_none() {
                gone(renameat(&folder, &inner, root, &free))?;
                break;
            }
        }
    }
    match unlinkat(root, name, AtFlags::REMOVEDIR) {
        // Somebody still writes into it: the next pass takes it.
        Err(Errno::NOTEMPTY) => Ok(()),
        other => gone(other),
    }
}

fn gone(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
