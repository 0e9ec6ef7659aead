//! Processes held by descriptor: what is signalled or waited for is never somebody else who has
//! been given the same number.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::domain::model::Signal;

/// Opens a process of this pid namespace. It may be another one by now than the caller means:
/// compare after opening.
///
/// # Errors
/// `ESRCH` when there is none (a zombie not reaped yet still is one).
pub fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::Error::from_raw_os_error(libc::ESRCH))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Sends a signal.
///
/// # Errors
/// `ESRCH` when it has been reaped, `EPERM` when it is another user's.
pub fn signal(pidfd: impl AsFd, signal: Signal) -> io::Result<()> {
    let number = signal.number();
    // SAFETY: only libc's own handler signals are special, and only to those who handle them.
    let signal = unsafe { rustix::process::Signal::from_raw_unchecked(number) };
    Ok(pidfd_send_signal(pidfd, signal)?)
}

/// Has it ended (reaped or not)? A pidfd is readable from then on: `AsyncFd` waits for the same.
#[must_use]
pub fn has_ended(pidfd: impl AsFd) -> bool {
    poll_ended(&pidfd, PollTimeout::ZERO)
}

/// Waits until it has ended, ours or not; false when it lives on after `timeout`. Blocks.
#[must_use]
pub fn wait_ended(pidfd: impl AsFd, timeout: Duration) -> bool {
    poll_ended(&pidfd, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX))
}

fn poll_ended(pidfd: &impl AsFd, timeout: PollTimeout) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, timeout) {
            Err(nix::Error::EINTR) => {}
            other => return other.is_ok_and(|ready| ready > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::Command};

    use super::*;

    #[test]
    fn a_signal_ends_it_and_the_end_is_seen() {
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let fd = open(child.id()).unwrap();
        assert!(!has_ended(&fd));
        assert!(!wait_ended(&fd, Duration::from_millis(1)));
        signal(&fd, Signal::TERM).unwrap();
        assert!(wait_ended(&fd, Duration::from_secs(10)));
        assert_eq!(child.wait().unwrap().signal(), Some(15));
        assert!(has_ended(&fd));
        assert_eq!(signal(&fd, Signal::TERM).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn nobody_has_no_descriptor() {
        for pid in [0, u32::MAX, i32::MAX.unsigned_abs()] {
            assert!(open(pid).is_err(), "{pid}");
        }
    }
}
