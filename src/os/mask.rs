//! Which signals reach which thread.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

/// Blocks none any more, for this thread and those that it starts: whoever started us may have
/// blocked the very signals that ask for the end.
///
/// # Errors
/// Never on Linux.
pub fn unblock_all() -> io::Result<()> {
    Ok(SigSet::empty().thread_set_mask()?)
}

/// Blocks all, for this thread: what comes from now on waits for whoever unblocks them, in another program even.
pub fn block_all() {
    // Cannot fail on Linux; if it did, a wish might be lost.
    let _ = SigSet::all().thread_block();
}

/// Does something with all signals blocked. A thread that is started meanwhile keeps it so: signals to
/// the process then wake the thread that handles them, and no other before it.
pub fn with_all_blocked<T>(work: impl FnOnce() -> T) -> T {
    let mut before = SigSet::empty();
    // Neither fails on Linux; if it did, signals would take a detour.
    let _ = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), Some(&mut before));
    let done = work();
    let _ = before.thread_set_mask();
    done
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;

    #[test]
    fn a_thread_that_is_started_inside_keeps_the_mask() {
        let mask = || SigSet::thread_get_mask().unwrap().contains(Signal::SIGTERM);
        let inside = with_all_blocked(|| std::thread::spawn(mask));
        assert!(inside.join().unwrap());
        assert!(!mask());
    }
}
