//! Files that hold a secret, opened only where nobody else reads them: DESIGN.md section 9.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use nix::sys::statfs::{FsType, TMPFS_MAGIC, fstatfs};

use super::files;

/// No secret is longer, in bytes.
const LONGEST: u64 = 64 * 1024;

/// Reads it. `owners`: the uids, beside root's and our own, that it may belong to.
///
/// # Errors
/// A sentence with the path and, where others may read it, the fix.
pub fn read(path: &Path, owners: &[u32]) -> Result<Vec<u8>, String> {
    let named = |e: io::Error| match e.raw_os_error() {
        Some(libc::ELOOP) => format!("the secret {} is a symbolic link; name the file itself", path.display()),
        _ => format!("the secret {}: {e}", path.display()),
    };
    let file = files::open_nofollow(path).map_err(named)?;
    let facts = file.metadata().map_err(named)?;
    if !facts.is_file() {
        return Err(format!("the secret {} is no file", path.display()));
    }
    let me = nix::unistd::geteuid().as_raw();
    if facts.uid() != 0 && facts.uid() != me && !owners.contains(&facts.uid()) {
        return Err(format!(
            "the secret {} belongs to uid {}; it must belong to root, to whoever runs everhook or to the app's user",
            path.display(),
            facts.uid()
        ));
    }
    let mode = facts.permissions().mode();
    if mode & 0o044 != 0 && reachable(path) && !is_made_for_secrets(&file, path) {
        return Err(format!(
            "the secret {} can be read by other users (mode {:o}); chmod 600 {}",
            path.display(),
            mode & 0o777,
            path.display()
        ));
    }
    // A vector that grows leaves copies behind.
    let mut bytes = Vec::with_capacity(usize::try_from(facts.len().min(LONGEST)).unwrap_or(0) + 1);
    file.take(LONGEST).read_to_end(&mut bytes).map_err(named)?;
    Ok(bytes)
}

/// The same for one that a link may lead to, as tools that renew certificates lay them out. The link must be
/// where nobody but root and we could have put it.
///
/// # Errors
/// As [`read`].
pub fn read_linked(path: &Path, owners: &[u32]) -> Result<Vec<u8>, String> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let is_guarded = || {
        let me = nix::unistd::geteuid().as_raw();
        let facts = fs::metadata(folder);
        facts.is_ok_and(|facts| (facts.uid() == 0 || facts.uid() == me) && facts.permissions().mode() & 0o022 == 0)
    };
    if fs::symlink_metadata(path).is_ok_and(|facts| facts.is_symlink()) && is_guarded() {
        let target = path.canonicalize().map_err(|e| format!("the secret {}: {e}", path.display()))?;
        return read(&target, owners);
    }
    read(path, owners)
}

/// Can others enter every folder above it?
fn reachable(path: &Path) -> bool {
    path.ancestors()
        .skip(1)
        .filter(|folder| !folder.as_os_str().is_empty())
        .all(|folder| fs::metadata(folder).is_ok_and(|facts| facts.permissions().mode() & 0o011 != 0))
}

/// Container runtimes mount secrets world-readable, read-only or on a tmpfs of their own.
fn is_made_for_secrets(file: &fs::File, path: &Path) -> bool {
    let read_only = nix::sys::statvfs::fstatvfs(file)
        .is_ok_and(|facts| facts.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
    let tmpfs: FsType = TMPFS_MAGIC;
    let shared = ["/tmp", "/dev/shm", "/var/tmp"].iter().any(|folder| path.starts_with(folder));
    read_only || (!shared && fstatfs(file).is_ok_and(|facts| facts.filesystem_type() == tmpfs))
}
