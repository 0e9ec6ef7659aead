//! Descriptors that whoever executed this process left open for it.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicU64, Ordering},
};

/// Takes over descriptor `number`, once per process; it is closed on exec from then on.
///
/// # Errors
/// When no such descriptor is open, when it was taken before, or when the number is below 3 (those
/// are the standard streams) or above 63.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    let place = u32::try_from(number).ok().filter(|n| (3..64).contains(n)).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: plain system call on a number; a wrong one answers EBADF.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if TAKEN.fetch_or(1 << place, Ordering::SeqCst) & (1 << place) != 0 {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // SAFETY: it is open (fcntl said so), and the mask above hands each number out once. Callers ask
    // at the very start of a process, before anything else here could have opened that number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::alone::alone;

    #[test]
    fn only_what_is_open_is_taken_over() {
        // Of many tests side by side one may have that number in use, and would lose it.
        alone("os::inherited::tests::only_what_is_open_is_taken_over", || {
            for number in [-1, 0, 2, 64] {
                assert_eq!(inherited(number).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            }
            // Whoever has started the tests may have left it open.
            let _ = nix::unistd::close(63);
            assert_eq!(inherited(63).unwrap_err().raw_os_error(), Some(libc::EBADF));
        });
    }
}
