//! How much a fetch may bring: whoever may push to a repository fills no disk by it. git writes what comes
//! into one file, and small news into a few; the kernel ends a write beyond the limit (setrlimit(2),
//! `RLIMIT_FSIZE`), and that git with it.

use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::TreeError;

/// No file is larger, in bytes; and none takes more than half of what is free.
const MOST: u64 = 10 << 30;
/// However full the disk is: what it then says itself is clearer.
const LEAST: u64 = 1 << 20;

/// Sets it for this process and what it starts from here on; a lower one that holds already stays.
pub(super) fn set(mirror: &Path) -> Result<(), TreeError> {
    let failed = |e| TreeError::io("limiting the fetch", e);
    let disk = rustix::fs::statvfs(mirror).map_err(failed)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let before = getrlimit(Resource::Fsize);
    let most = MOST.min((free / 2).max(LEAST)).min(before.current.unwrap_or(u64::MAX));
    setrlimit(Resource::Fsize, Rlimit { current: Some(most), ..before }).map_err(failed)
}

/// What holds for this process.
pub(super) fn now() -> Rlimit {
    getrlimit(Resource::Fsize)
}

/// After a fetch, for what has nothing to do with it.
pub(super) fn put_back(before: Rlimit) {
    // It was only lowered, and below what may be raised again.
    let _ = setrlimit(Resource::Fsize, before);
}

/// What stands on stderr of a git that came to the limit, in plain words.
pub(super) fn reached(shown: &str, stderr: &str) -> Option<String> {
    let is_it = ["died of signal 25", "File too large"].iter().any(|words| stderr.contains(words));
    let most = getrlimit(Resource::Fsize).current.filter(|_| is_it)?;
    let size = if most < 1 << 20 { format!("{} KiB", most >> 10) } else { format!("{} MiB", most >> 20) };
    Some(format!(
        "{shown} brings more than {size} at once, which is not taken: the most is {} GiB and half of what is free",
        MOST >> 30
    ))
}
