//! An alarm by the wall clock: timerfd_create(2) with CLOCK_REALTIME. It also rings when the clock is
//! set, so that whoever waits for a time of day can look again at once.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use crate::domain::model::At;

/// A timer that becomes readable when its moment has come, or the clock was set.
struct Timer {
    fd: OwnedFd,
}

/// An alarm that a tokio runtime watches.
pub struct Alarm(AsyncFd<Timer>);

impl Alarm {
    /// Watches it in the runtime that this is called in.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the timer owns its descriptor, keeps it open as long as it lives, and has no way to
        // exchange it; nothing outside this type gets hold of the timer itself.
        unsafe { AsyncFd::register(Timer::new()?) }.map(Self).map_err(|e| e.into_parts().1)
    }

    /// Rings at this moment of the wall clock, at once where it is past; `None`: never. False where the
    /// clock was set meanwhile: the moment may have to be another one.
    ///
    /// # Errors
    /// As `timerfd_settime(2)` says.
    pub fn set(&self, at: Option<At>) -> io::Result<bool> {
        self.0.get_ref().set(at)
    }

    /// Waits until it rings: its moment has come, or the clock was set.
    ///
    /// # Errors
    /// When the runtime ends.
    pub async fn rung(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            if self.0.get_ref().take()? {
                return Ok(());
            }
            ready.clear_ready();
        }
    }
}

impl Timer {
    fn new() -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        Ok(Self { fd })
    }

    fn set(&self, at: Option<At>) -> io::Result<bool> {
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
    fn take(&self) -> io::Result<bool> {
        match rustix::io::read(&self.fd, &mut [0u8; 8]) {
            Ok(_) | Err(rustix::io::Errno::CANCELED) => Ok(true),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::clock;

    #[tokio::test(flavor = "current_thread")]
    async fn it_rings_when_its_moment_has_come() {
        let alarm = Alarm::new().unwrap();
        assert!(!alarm.0.get_ref().take().unwrap());
        alarm.set(Some(At(clock::now().wall.0 + 3_600_000))).unwrap();
        assert!(!alarm.0.get_ref().take().unwrap());
        alarm.set(Some(At(0))).unwrap();
        alarm.rung().await.unwrap();
        let soon = At(clock::now().wall.0 + 20);
        alarm.set(Some(soon)).unwrap();
        alarm.rung().await.unwrap();
        assert!(clock::now().wall >= soon);
        alarm.set(None).unwrap();
        assert!(!alarm.0.get_ref().take().unwrap());
    }
}
