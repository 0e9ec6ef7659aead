//! Limits of this process, and the numbers of those that children get.

use std::{io, os::fd::AsRawFd};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Open files: the number of the highest descriptor, and one.
pub const FILES: u32 = libc::RLIMIT_NOFILE;
/// Bytes of a core file.
pub const CORE: u32 = libc::RLIMIT_CORE;

/// How many files this process may have open, and how many of them it has not: the kernel gives the
/// lowest free number, so the newest descriptor tells.
///
/// # Errors
/// When the kernel refuses to say.
pub fn files_left(newest: &impl AsRawFd) -> io::Result<(u64, u64)> {
    let (most, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let open = u64::try_from(newest.as_raw_fd()).unwrap_or(0) + 1;
    Ok((most, most.saturating_sub(open)))
}

/// How many files this process may have open.
///
/// # Errors
/// When the kernel refuses to say.
pub fn files() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

/// Raises the soft limit of open files to the hard one: the supervisor holds several per app.
/// Children get a soft limit of their own.
///
/// # Errors
/// When the kernel refuses.
pub fn raise_files() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}
