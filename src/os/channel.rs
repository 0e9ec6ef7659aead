//! Frames over a unix stream socket: a JSON head, bytes, and up to four passed descriptors.
//!
//! On the wire: `u32` head length, `u32` body length (both little-endian), head, body. Descriptors
//! travel with the frame's first byte (unix(7), SCM_RIGHTS). The kernel may join what was sent before
//! it into one read, but ends that read inside the message that carries descriptors: so passed
//! descriptors belong to the frame of the read's last byte.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::{Serialize, de::DeserializeOwned};

/// No head is longer; a longer one is a broken peer.
const MAX_HEAD: usize = 64 * 1024 * 1024;
/// No body travels in a frame beyond this.
const MAX_BODY: usize = 1024 * 1024;
/// No more descriptors travel with one frame.
const MAX_FDS: usize = 4;
/// Frames that there is room for while none waits to be sent.
const FEW: usize = 16;
/// What one read takes at most.
const READ: usize = 64 * 1024;

/// A message and what came with it.
#[derive(Debug)]
pub struct Frame {
    pub head: Vec<u8>,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Frame {
    /// The head as a message.
    ///
    /// # Errors
    /// `InvalidData` when the peer sent something else.
    pub fn message<T: DeserializeOwned>(&self) -> io::Result<T> {
        serde_json::from_slice(&self.head).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }
}

struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// One end of a channel. The socket is non-blocking: `receive` and `flush` do what goes now.
/// Wait for readiness with `poll(2)` or tokio's `AsyncFd` around it.
pub struct Channel {
    socket: OwnedFd,
    incoming: Vec<u8>,
    /// Bytes at the beginning of `incoming` that were taken out already.
    taken: usize,
    /// Descriptors whose frames are not complete.
    fds: VecDeque<(u64, OwnedFd)>,
    /// Bytes taken out of `incoming` and received, ever: they place the descriptors.
    consumed: u64,
    received: u64,
    outgoing: VecDeque<Outgoing>,
    closed: bool,
}

impl Channel {
    /// A connected pair: this end, and the other to pass to a process.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?;
        Ok((Self::new(ours), theirs))
    }

    /// Takes a connected unix stream socket, which must be non-blocking.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            incoming: Vec::new(),
            taken: 0,
            fds: VecDeque::new(),
            consumed: 0,
            received: 0,
            outgoing: VecDeque::new(),
            closed: false,
        }
    }

    /// Gives the socket back, to be passed on; what was buffered is lost.
    #[must_use]
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Puts a frame, with at most four descriptors, into the queue; `flush` sends it.
    ///
    /// # Panics
    /// Never: the messages are plain data, which always serializes.
    pub fn queue(&mut self, message: &impl Serialize, body: &[u8], fds: impl IntoIterator<Item = OwnedFd>) {
        let fds: Vec<OwnedFd> = fds.into_iter().take(MAX_FDS).collect();
        // Small frames travel together; one with descriptors begins a message of its own.
        let joins = |last: &Outgoing| last.fds.is_empty() && last.sent == 0 && last.bytes.len() < READ;
        let mut last = match self.outgoing.pop_back() {
            Some(last) if fds.is_empty() && joins(&last) => last,
            other => {
                self.outgoing.extend(other);
                Outgoing { bytes: Vec::new(), sent: 0, fds }
            }
        };
        let bytes = &mut last.bytes;
        let start = bytes.len();
        bytes.extend_from_slice(&[0; 8]);
        serde_json::to_writer(&mut *bytes, message).expect("plain data always serializes");
        let lengths = [bytes.len() - start - 8, body.len()];
        for (place, length) in bytes[start..start + 8].chunks_exact_mut(4).zip(lengths) {
            place.copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        }
        bytes.extend_from_slice(body);
        self.outgoing.push_back(last);
    }

    /// Is something left to send?
    #[must_use]
    pub fn wants_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Bytes that wait to be sent.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.outgoing.iter().map(|o| o.bytes.len() - o.sent).sum()
    }

    /// Sends what the socket takes now; `true` when nothing is left.
    ///
    /// # Errors
    /// When the peer is gone.
    pub fn flush(&mut self) -> io::Result<bool> {
        while let Some(first) = self.outgoing.front_mut() {
            let slice = [IoSlice::new(&first.bytes[first.sent..])];
            let raw: Vec<RawFd> = first.fds.iter().map(AsRawFd::as_raw_fd).collect();
            let control = [ControlMessage::ScmRights(&raw)];
            let control = if raw.is_empty() { &control[..0] } else { &control[..] };
            match sendmsg::<()>(self.socket.as_raw_fd(), &slice, control, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(n) => {
                    first.sent += n;
                    first.fds.clear();
                    if first.sent == first.bytes.len() {
                        self.outgoing.pop_front();
                    }
                }
                Err(nix::Error::EAGAIN) => return Ok(false),
                Err(nix::Error::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.outgoing.shrink_to(FEW);
        Ok(true)
    }

    /// The next whole frame, if it is there now.
    ///
    /// # Errors
    /// `UnexpectedEof` when the peer has closed and nothing whole is left; `InvalidData` when it
    /// does not speak this protocol; `WouldBlock` when nothing whole is there now.
    pub fn receive(&mut self) -> io::Result<Frame> {
        loop {
            if let Some(frame) = self.parse()? {
                return Ok(frame);
            }
            if self.closed {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.read()?;
        }
    }

    fn parse(&mut self) -> io::Result<Option<Frame>> {
        let there = &self.incoming[self.taken..];
        let Some(lengths) = there.first_chunk::<8>() else { return Ok(None) };
        let length =
            |i: usize| u32::from_le_bytes([lengths[i], lengths[i + 1], lengths[i + 2], lengths[i + 3]]) as usize;
        let (head, body) = (length(0), length(4));
        if head > MAX_HEAD || body > MAX_BODY {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the peer sent no frame"));
        }
        let whole = 8 + head + body;
        if there.len() < whole {
            return Ok(None);
        }
        let (bytes, body) = (there[8..8 + head].to_vec(), there[8 + head..whole].to_vec());
        self.taken += whole;
        let frame_start = self.consumed;
        self.consumed += whole as u64;
        let mut fds = Vec::new();
        while let Some((place, _)) = self.fds.front() {
            if *place >= self.consumed {
                break;
            }
            let (place, passed) = self.fds.pop_front().expect("front is there");
            if place >= frame_start {
                fds.push(passed);
            }
        }
        Ok(Some(Frame { head: bytes, body, fds }))
    }

    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0u8; READ];
        let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
        let mut slice = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = loop {
            match recvmsg::<()>(self.socket.as_raw_fd(), &mut slice, Some(&mut space), flags) {
                Err(nix::Error::EINTR) => {}
                other => break other?,
            }
        };
        let n = message.bytes;
        let mut passed = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raws) = control {
                // SAFETY: the kernel made these descriptors for us in this very call; nobody else owns them.
                passed.extend(raws.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
            }
        }
        for fd in passed {
            self.fds.push_back(((self.received + n as u64).saturating_sub(1), fd));
        }
        self.received += n as u64;
        self.incoming.drain(..std::mem::take(&mut self.taken));
        self.incoming.extend_from_slice(&buffer[..n]);
        self.closed |= n == 0;
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read};

    use super::*;

    fn both() -> (Channel, Channel) {
        let (ours, theirs) = Channel::pair().unwrap();
        (ours, Channel::new(theirs))
    }

    #[test]
    fn frames_arrive_whole_and_in_order() {
        let (mut a, mut b) = both();
        let big = vec![7u8; 900_000];
        a.queue(&"one", &[], None);
        a.queue(&"two", &big, None);
        a.queue(&"three", b"x", None);
        let mut got = Vec::new();
        while got.len() < 3 {
            a.flush().unwrap();
            match b.receive() {
                Ok(frame) => got.push((frame.message::<String>().unwrap(), frame.body.len())),
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert_eq!(got, [("one".into(), 0), ("two".into(), 900_000), ("three".into(), 1)]);
        drop(a);
        assert_eq!(b.receive().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn descriptors_stay_with_their_frames() {
        let (mut a, mut b) = both();
        let file = |text: &str| {
            let path = std::env::temp_dir().join(format!("everhook-channel-{}-{text}", std::process::id()));
            std::fs::write(&path, text).unwrap();
            let file = File::open(&path).unwrap();
            std::fs::remove_file(path).unwrap();
            Some(OwnedFd::from(file))
        };
        a.queue(&0, &[], None);
        a.queue(&1, &[], file("first"));
        a.queue(&2, &[], None);
        a.queue(&3, &[], [file("second"), file(", third")].into_iter().flatten());
        assert!(a.flush().unwrap());
        let mut got = Vec::new();
        for _ in 0..4 {
            let mut text = String::new();
            for fd in b.receive().unwrap().fds {
                File::from(fd).read_to_string(&mut text).unwrap();
            }
            got.push(text);
        }
        assert_eq!(got, ["", "first", "", "second, third"]);
    }

    #[test]
    fn a_peer_that_speaks_something_else_is_refused() {
        let (mut a, mut b) = both();
        a.outgoing.push_back(Outgoing { bytes: vec![0xff; 16], sent: 0, fds: Vec::new() });
        a.flush().unwrap();
        assert_eq!(b.receive().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
