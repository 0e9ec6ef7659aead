//! What another user surely may not, seen without becoming that user: by the modes of files alone. Where something
//! else decides as well (an access list, a file system of a program's own), nothing is sure.

use std::{
    ffi::CString,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::{
    sys::statfs::{FUSE_SUPER_MAGIC, statfs},
    unistd::{AccessFlags, access, geteuid},
};

/// Who would go there.
#[derive(Debug, Clone, Copy)]
pub struct Who<'a> {
    pub uid: u32,
    pub gid: u32,
    pub groups: &'a [u32],
}

/// To go through a folder, or to execute a file: the bit of a mode.
const EXECUTE: u32 = 0o1;

/// The file or folder that keeps this user from entering the folder at the path, or from executing the file there.
/// `None`: nobody does, or it is not sure.
#[must_use]
pub fn denied(path: &Path, who: Who<'_>) -> Option<PathBuf> {
    // Nobody but root can be anybody else, and then the kernel knows better.
    let may = || !geteuid().is_root() && access(path, AccessFlags::X_OK).is_ok();
    if who.uid == 0 || may() {
        return None;
    }
    let real = fs::canonicalize(path).ok()?;
    let mut way: Vec<&Path> = real.ancestors().collect();
    way.reverse();
    way.into_iter().find(|step| is_closed(step, who).unwrap_or(false)).map(Path::to_owned)
}

fn is_closed(path: &Path, who: Who<'_>) -> io::Result<bool> {
    let facts = fs::metadata(path)?;
    let class = if facts.uid() == who.uid {
        6
    } else if facts.gid() == who.gid || who.groups.contains(&facts.gid()) {
        3
    } else {
        0
    };
    Ok(facts.mode() >> class & EXECUTE == 0 && modes_decide(path)?)
}

fn modes_decide(path: &Path) -> io::Result<bool> {
    let named = CString::new(path.as_os_str().as_bytes())?;
    let is_fuse = statfs(path)?.filesystem_type() == FUSE_SUPER_MAGIC;
    // SAFETY: both names are ended by NUL, and nothing is written where the room is none.
    let list = unsafe { libc::getxattr(named.as_ptr(), c"system.posix_acl_access".as_ptr(), std::ptr::null_mut(), 0) };
    Ok(!is_fuse && list < 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_a_mode_keeps_from_somebody_is_named() {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode(dir.path(), 0o755);
        let folder = dir.path().join("folder");
        let program = folder.join("program");
        fs::create_dir(&folder).unwrap();
        fs::write(&program, "").unwrap();
        let facts = fs::metadata(&folder).unwrap();
        let (uid, gid) = (facts.uid(), facts.gid());
        let other = Who { uid: 60_901, gid: 60_901, groups: &[] };
        let own = |uid| Who { uid, gid: 60_901, groups: &[] };
        if uid != 0 {
            return println!("not root: we can be nobody else");
        }

        mode(&folder, 0o711);
        mode(&program, 0o710);
        assert_eq!(denied(&folder, other), None);
        assert_eq!(denied(&program, other), Some(program.clone()));
        assert_eq!(denied(&program, Who { groups: &[gid], ..other }), None);
        assert_eq!(denied(&program, Who { gid, ..other }), None);

        mode(&folder, 0o700);
        assert_eq!((denied(&folder, other), denied(&program, other)), (Some(folder.clone()), Some(folder.clone())));
        assert_eq!(denied(&program, own(0)), None, "root goes everywhere");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        assert_eq!(denied(&link, other), Some(folder.clone()));
        assert_eq!(denied(&dir.path().join("missing"), other), None, "that is another matter");
    }
}
