//! The signals that this process was started with blocked.

use std::io;

use nix::sys::signal::SigSet;

/// Blocks none any more, for this thread and those that it starts: whoever started us may have
/// blocked the very signals that ask for the end.
///
/// # Errors
/// Never on Linux.
pub fn unblock_all() -> io::Result<()> {
    Ok(SigSet::empty().thread_set_mask()?)
}
