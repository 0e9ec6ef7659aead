//! Processes held by descriptor: what is signalled or waited for is never somebody else who has
//! been given the same number.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

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

/// Waits until it has ended, ours or not, in the runtime that this is called in.
///
/// # Errors
/// When epoll takes no more.
pub async fn ended(pidfd: OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is owned and stays the same as long as it is registered.
    let watched = unsafe { AsyncFd::register(pidfd) }.map_err(|e| e.into_parts().1)?;
    watched.readable().await.map(drop)
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

    #[tokio::test(flavor = "current_thread")]
    async fn an_end_can_be_awaited() {
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let fd = open(child.id()).unwrap();
        let waits = tokio::spawn(ended(fd.try_clone().unwrap()));
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        signal(&fd, Signal::KILL).unwrap();
        waits.await.unwrap().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn nobody_has_no_descriptor() {
        for pid in [0, u32::MAX, i32::MAX.unsigned_abs()] {
            assert!(open(pid).is_err(), "{pid}");
        }
    }
}
