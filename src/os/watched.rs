//! What a tokio runtime watches: a [`Channel`], a file of the kernel's, or that children end.

use std::{
    fs::File,
    future::poll_fn,
    io::{self, Read},
    os::{fd::OwnedFd, unix::fs::FileExt},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use nix::sys::{
    eventfd::EventFd,
    signal::{SigHandler, SigSet, Signal, signal},
    signalfd::{SfdFlags, SignalFd},
};
use serde::Serialize;
use tokio::io::{Interest, unix::AsyncFd};

use super::channel::{Channel, Frame};

/// A channel for async code: frames go out while the next one is waited for.
pub struct Watched(AsyncFd<Channel>);

impl Watched {
    /// Watches the channel in the runtime that this is called in.
    ///
    /// # Errors
    /// When epoll takes no more.
    pub fn new(channel: Channel) -> io::Result<Self> {
        // SAFETY: the channel owns its socket, keeps it open as long as it lives, and has no way to
        // exchange it; nothing outside this type gets hold of the channel itself.
        unsafe { AsyncFd::register(channel) }.map(Self).map_err(|e| e.into_parts().1)
    }

    /// As [`Channel::queue`]; `next` sends it.
    pub fn queue(&mut self, message: &impl Serialize, body: &[u8], fds: impl IntoIterator<Item = OwnedFd>) {
        self.0.get_mut().queue(message, body, fds);
    }

    /// As [`Channel::queue_with`]; `next` sends it.
    pub fn queue_with(
        &mut self,
        message: &impl Serialize,
        body: &[u8],
        shared: Bytes,
        fds: impl IntoIterator<Item = OwnedFd>,
    ) {
        self.0.get_mut().queue_with(message, body, shared, fds);
    }

    /// As [`Channel::flush`], at once.
    ///
    /// # Errors
    /// When the peer is gone.
    pub fn flush(&mut self) -> io::Result<bool> {
        self.0.get_mut().flush()
    }

    /// Bytes that wait to be sent.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.0.get_ref().backlog()
    }

    /// As [`Channel::is_full`].
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.get_ref().is_full()
    }

    /// The socket, to be given away; what was buffered is lost.
    #[must_use]
    pub fn into_socket(self) -> OwnedFd {
        self.0.into_inner().into_socket()
    }

    /// Waits for the next frame and sends meanwhile what is queued. Nothing is lost when this is
    /// dropped before it is ready.
    ///
    /// # Errors
    /// As [`Channel::receive`] and [`Channel::flush`]; the channel is of no use then.
    pub async fn next(&mut self) -> io::Result<Frame> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Watched::next`], for the one task that is woken when there is more.
    ///
    /// # Errors
    /// As [`Watched::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Frame>> {
        loop {
            if let Some(frame) = self.0.get_mut().buffered()? {
                return Poll::Ready(Ok(frame));
            }
            while self.0.get_ref().wants_write() {
                let Poll::Ready(guard) = self.0.poll_write_ready_mut(cx) else { break };
                let mut guard = guard?;
                if !guard.get_inner_mut().flush()? {
                    guard.clear_ready();
                }
            }
            let mut guard = ready!(self.0.poll_read_ready_mut(cx))?;
            let received = guard.get_inner_mut().receive();
            // Told with this very guard: what comes after the read makes the socket ready anew.
            let drained = guard.get_inner_mut().is_drained();
            match received {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                other => {
                    if drained {
                        guard.clear_ready();
                    }
                    return Poll::Ready(other);
                }
            }
        }
    }
}

/// A file of the kernel's that says when something may have changed: by becoming urgent, such as
/// `memory.events` of a cgroup, or by a count, as an eventfd does.
pub struct Urgent {
    file: AsyncFd<File>,
    by: Interest,
}

impl Urgent {
    /// # Errors
    /// Outside of a runtime, and when the file cannot be watched.
    pub fn new(file: OwnedFd) -> io::Result<Self> {
        Self::told_by(file, Interest::PRIORITY)
    }

    /// One that counts.
    ///
    /// # Errors
    /// Outside of a runtime, and when it cannot be watched.
    pub fn counted(count: EventFd) -> io::Result<Self> {
        Self::told_by(count.into(), Interest::READABLE)
    }

    fn told_by(file: OwnedFd, by: Interest) -> io::Result<Self> {
        let file = File::from(file);
        look(&file, by)?;
        // SAFETY: the file owns its open descriptor, and nothing replaces or closes it while it is watched.
        let file = unsafe { AsyncFd::register_with_interest(file, by) }.map_err(|e| e.into_parts().1)?;
        Ok(Self { file, by })
    }

    /// Waits until it says something new.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn changed(&self) -> io::Result<()> {
        self.file.ready(self.by).await?.clear_ready();
        look(self.file.get_ref(), self.by)
    }
}

/// Tells that children have ended, without the detour of a handler, which would interrupt the runtime's wait
/// only to wake it from the next one: an end is on the way of a restart.
pub struct Ends(AsyncFd<SignalFd>);

impl Ends {
    /// Blocks SIGCHLD for this thread and those that it starts. Every other one must have it blocked, as a
    /// signal goes to whoever does not, and is lost there.
    ///
    /// # Errors
    /// Outside of a runtime, and when descriptors run out.
    pub fn listen() -> io::Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        // Whoever started us may ignore it: then the kernel would reap, and tell nobody.
        // SAFETY: the default is no handler.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
        let fd = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        // SAFETY: the signalfd owns its open descriptor, and nothing replaces or closes it while it is watched.
        unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map(Self).map_err(|e| e.into_parts().1)
    }

    /// Waits until children may have ended, and names one of them: a signal stands for all since the one before.
    ///
    /// # Errors
    /// Never on Linux.
    pub async fn some(&self) -> io::Result<u32> {
        loop {
            let mut ready = self.0.readable().await?;
            let told = self.0.get_ref().read_signal()?;
            // One signal stands for all ends since the last was read: there is nothing more behind it.
            ready.clear_ready();
            if let Some(told) = told {
                return Ok(told.ssi_pid);
            }
        }
    }
}

/// What has been read is not urgent any more, and a count is nought again.
fn look(mut file: &File, by: Interest) -> io::Result<()> {
    if by.is_priority() {
        return file.read_at(&mut [0; 512], 0).map(drop);
    }
    match file.read(&mut [0; 8]) {
        Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn both_ends_send_and_receive_at_once() {
        let (ours, theirs) = Channel::pair().unwrap();
        let (mut a, mut b) = (Watched::new(ours).unwrap(), Watched::new(Channel::new(theirs)).unwrap());
        let big = vec![7; 1_000_000];
        for number in 0..3 {
            a.queue(&number, &big, None);
            b.queue(&number, &big, None);
        }
        let three = async |end: &mut Watched| {
            for number in 0..3 {
                let frame = end.next().await.unwrap();
                assert_eq!((frame.message::<i32>().unwrap(), frame.body().len()), (number, 1_000_000));
            }
            while end.backlog() > 0 {
                tokio::select! { _ = end.next() => {} () = tokio::task::yield_now() => {} }
            }
        };
        tokio::join!(three(&mut a), three(&mut b));
        drop(a);
        assert_eq!(b.next().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
