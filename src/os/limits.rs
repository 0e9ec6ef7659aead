//! Limits of this process.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one: the supervisor holds several per app.
/// Children get a soft limit of their own.
///
/// # Errors
/// When the kernel refuses.
pub fn raise_files() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}
