//! An alarm by the wall clock: timerfd_create(2) with CLOCK_REALTIME. It also rings when the clock is
//! set, so that whoever waits for a time of day can look again at once.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::domain::model::At;

/// A timer that becomes readable when its moment has come, or the clock was set.
pub struct Timer {
    fd: OwnedFd,
}

impl Timer {
    /// # Errors
    /// When descriptors run out.
    pub fn new() -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        Ok(Self { fd })
    }

    /// Rings at this moment of the wall clock, at once where it is past; `None`: never. False where the
    /// clock was set meanwhile: the moment may have to be another one.
    ///
    /// # Errors
    /// As `timerfd_settime(2)` says.
    pub fn set(&self, at: Option<At>) -> io::Result<bool> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Zero would mean never.
        let value = at.map_or(zero, |At(at)| Timespec {
            tv_sec: at.max(1_000) / 1_000,
            tv_nsec: (at.max(1_000) % 1_000) * 1_000_000,
        });
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        match timerfd_settime(&self.fd, flags, &Itimerspec { it_interval: zero, it_value: value }) {
            // The timer is set all the same.
            Err(rustix::io::Errno::CANCELED) => Ok(false),
            other => Ok(other.map(|_| true)?),
        }
    }

    /// Has it rung? Silences it until it is set again, or the clock is.
    ///
    /// # Errors
    /// Never in practice.
    pub fn take(&self) -> io::Result<bool> {
        match rustix::io::read(&self.fd, &mut [0u8; 8]) {
            Ok(_) | Err(rustix::io::Errno::CANCELED) => Ok(true),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::clock;

    #[test]
    fn it_rings_when_its_moment_has_come() {
        let timer = Timer::new().unwrap();
        assert!(!timer.take().unwrap());
        timer.set(Some(At(clock::now().wall.0 + 3_600_000))).unwrap();
        assert!(!timer.take().unwrap());
        timer.set(Some(At(0))).unwrap();
        let mut fds = [nix::poll::PollFd::new(timer.as_fd(), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut fds, 5_000u16).unwrap(), 1);
        assert!(timer.take().unwrap());
        timer.set(None).unwrap();
        assert!(!timer.take().unwrap());
    }
}
