//! Processes held by descriptor: what is signalled or waited for is never somebody else who has
//! been given the same number.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    ptr,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getsid, pidfd_getfd, pidfd_open, pidfd_send_signal};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};

use crate::domain::model::{Exit, Signal};

/// From the end of a process until its parent has looked at it, at most.
const UNREAPED: Duration = Duration::from_secs(2);
/// `PIDFD_GET_INFO` of linux/pidfd.h: `_IOWR(0xff, 11, struct pidfd_info)` in its first size.
const GET_INFO: libc::Ioctl = 0xC040_FF0B_u32 as libc::Ioctl;
/// `PIDFD_INFO_EXIT`: asked for, and given where it is known. Linux 6.15.
const INFO_EXIT: u64 = 1 << 3;

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
    Ended::watch(pidfd)?.0.readable().await.map(drop)
}

/// Waits until this process, which the descriptor is of, has ended, ours or not, and says how, as far as anybody
/// tells: its row in the process table until its parent has looked at it, and from then on its descriptor. A child
/// of ours is told of by the reaper too.
///
/// # Errors
/// When epoll takes no more.
pub async fn exit(pid: u32, pidfd: OwnedFd) -> io::Result<Exit> {
    let Ended(watched) = Ended::watch(pidfd)?;
    // Readable when it has ended, hung up when it was reaped.
    let mut ended = watched.ready(Interest::READABLE).await?;
    while !ended.ready().is_read_closed() {
        let unreaped = zombie_exit(pid);
        ended.clear_ready();
        // Else the row may be somebody else's.
        if let Some(exit) = unreaped.filter(|_| !is_reaped(watched.get_ref())) {
            return Ok(exit);
        }
        match timeout(UNREAPED, watched.ready(Interest::READABLE)).await {
            Ok(next) => ended = next?,
            Err(_) => break,
        }
    }
    Ok(info_exit(watched.get_ref()))
}

/// How a process ended that nobody has reaped: the last field of `/proc/<pid>/stat`. Whoever may not look into it
/// would read a zero there.
fn zombie_exit(pid: u32) -> Option<Exit> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let name_end = stat.iter().rposition(|b| *b == b')')?;
    let mut fields = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?.split_ascii_whitespace();
    let zombie = fields.next() == Some("Z");
    (zombie && may_look_into(pid)).then(|| Some(from_status(fields.next_back()?.parse().ok()?)))?
}

/// `KCMP_VM` of kcmp(2) asks for what the table asks for too, and says when it is refused.
fn may_look_into(pid: u32) -> bool {
    /// Do two processes share their memory?
    const MEMORY: libc::c_int = 1;
    // SAFETY: takes no pointer.
    unsafe { libc::syscall(libc::SYS_kcmp, std::process::id(), pid, MEMORY, 0, 0) >= 0 }
}

/// Before Linux 6.9 nobody knows: no.
fn is_reaped(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::empty())];
    let ready = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
    ready && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

fn from_status(status: libc::c_int) -> Exit {
    if libc::WIFSIGNALED(status) { Exit::Signal(libc::WTERMSIG(status)) } else { Exit::Code(libc::WEXITSTATUS(status)) }
}

struct Ended(AsyncFd<OwnedFd>);

impl Ended {
    fn watch(pidfd: OwnedFd) -> io::Result<Self> {
        // SAFETY: the descriptor is owned and stays the same as long as it is registered.
        unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map(Self).map_err(|e| e.into_parts().1)
    }
}

/// `struct pidfd_info`, of which we read the end alone.
#[repr(C)]
struct Info {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

fn info_exit(pidfd: &OwnedFd) -> Exit {
    let mut info = Info { mask: INFO_EXIT, cgroup: 0, ids: [0; 11], exit_code: 0 };
    // SAFETY: the request writes at most the 64 bytes that its number names, which `info` has.
    let done = unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO, ptr::from_mut(&mut info)) };
    if done != 0 || info.mask & INFO_EXIT == 0 {
        return Exit::Unknown;
    }
    from_status(info.exit_code)
}

/// The session that a process is in.
#[must_use]
pub fn session(pid: u32) -> Option<u32> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    getsid(Some(pid)).ok().map(|session| session.as_raw_nonzero().get().unsigned_abs())
}

/// A descriptor of another process, by its number there: the same open file.
///
/// # Errors
/// `EBADF` where it has none of this number, `EPERM` where we may not trace it.
pub fn take_file(pidfd: impl AsFd, number: i32) -> io::Result<OwnedFd> {
    Ok(pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty())?)
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
    use std::{
        io::{BufRead, BufReader, Write},
        os::unix::process::ExitStatusExt,
        process::{Command, Stdio},
    };

    use super::*;
    use crate::os::identity;

    #[test]
    fn a_signal_ends_it_and_the_end_is_seen() {
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let fd = open(child.id()).unwrap();
        assert!(!has_ended(&fd));
        assert!(!wait_ended(&fd, Duration::from_millis(1)));
        signal(&fd, Signal::TERM).unwrap();
        assert!(wait_ended(&fd, Duration::from_secs(20)));
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

    /// Of a process whose parent is somebody else. Older kernels say nothing.
    #[tokio::test(flavor = "current_thread")]
    async fn how_a_stranger_ended_is_known_where_the_kernel_tells() {
        let tells = identity::kernel() >= Some((6, 15));
        for (script, exit) in [("exit 0", Exit::Code(0)), ("exit 7", Exit::Code(7)), ("kill -KILL $$", Exit::Signal(9))]
        {
            let line = format!("exec 3<&0; sh -c 'read go; {script}' <&3 & echo $!; wait");
            let mut parent = Command::new("/bin/sh");
            let parent = parent.args(["-c", &line]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut parent = parent.spawn().unwrap();
            let mut pid = String::new();
            BufReader::new(parent.stdout.take().unwrap()).read_line(&mut pid).unwrap();
            let pid = pid.trim().parse().unwrap();
            let stranger = open(pid).unwrap();
            let seen = tokio::spawn(super::exit(pid, stranger));
            tokio::task::yield_now().await;
            assert!(!seen.is_finished());
            parent.stdin.take().unwrap().write_all(b"go\n").unwrap();
            let seen = seen.await.unwrap().unwrap();
            assert_eq!(seen, if tells { exit } else { Exit::Unknown }, "{script}");
            parent.wait().unwrap();
        }
    }

    /// Nobody reaps it before we have looked.
    #[tokio::test(flavor = "current_thread")]
    async fn how_a_zombie_ended_is_known() {
        for (script, end) in [("exit 0", Exit::Code(0)), ("exit 7", Exit::Code(7)), ("kill -TERM $$", Exit::Signal(15))]
        {
            let mut child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
            let fd = open(child.id()).unwrap();
            assert!(wait_ended(&fd, Duration::from_secs(20)));
            assert!(!is_reaped(&fd));
            assert_eq!(exit(child.id(), fd).await.unwrap(), end, "{script}");
            child.wait().unwrap();
        }
        assert_eq!(zombie_exit(std::process::id()), None);
    }

    #[test]
    fn nobody_has_no_descriptor() {
        for pid in [0, u32::MAX, i32::MAX.unsigned_abs()] {
            assert!(open(pid).is_err(), "{pid}");
        }
    }
}
