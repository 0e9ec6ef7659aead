//! Limits of this process, and the numbers of those that children get.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Open files: the number of the highest descriptor, and one.
pub const FILES: u32 = libc::RLIMIT_NOFILE;
/// Bytes of a core file.
pub const CORE: u32 = libc::RLIMIT_CORE;

/// Raises the soft limit of open files to the hard one: the supervisor holds several per app.
/// Children get a soft limit of their own.
///
/// # Errors
/// When the kernel refuses.
pub fn raise_files() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}
