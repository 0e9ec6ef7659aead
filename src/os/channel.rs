//! Frames over a unix stream socket: a JSON head, bytes, and up to four passed descriptors.
//!
//! On the wire: `u32` head length, `u32` body length (both little-endian), head, body. Descriptors
//! travel with the frame's first byte (unix(7), SCM_RIGHTS). The kernel may join what was sent before
//! it into one read, but ends that read inside the message that carries descriptors: so passed
//! descriptors belong to the frame of the read's last byte.
//!
//! Frames carry tokens and secrets: no buffer here is let go, or used anew, with their bytes in it.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use bytes::Bytes;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, setsockopt,
    socketpair, sockopt,
};
use serde::{Serialize, de::DeserializeOwned};

use super::wiped::Wiped;

/// No head is longer; a longer one is a broken peer.
const MAX_HEAD: usize = 64 * 1024 * 1024;
/// No body travels in a frame beyond this.
const MAX_BODY: usize = 1024 * 1024;
/// No more descriptors travel with one frame.
const MAX_FDS: usize = 4;
/// Frames that there is room for while none waits to be sent.
const FEW: usize = 16;
/// What one read or message takes, unless a frame is larger.
const READ: usize = 64 * 1024;
/// The first read has room for this.
const FIRST: usize = 4 * 1024;
/// A larger buffer is let go as soon as it is empty.
const KEPT: usize = 2 * READ;
/// Buffers of frames that are kept for the next ones, and how large they may be.
const SPARES: (usize, usize) = (32, 12 * 1024);
/// What is smaller is copied all the same: a message has a place for each that is not (sendmsg(2) takes 1,024).
const WORTH_SHARING: usize = 512;
/// What the kernel holds of a burst, each way.
const BURST: usize = 1024 * 1024;

/// A message and what came with it.
#[derive(Debug)]
pub struct Frame {
    bytes: Wiped,
    /// Bytes of the head; the body follows.
    head: usize,
    pub fds: Vec<OwnedFd>,
}

impl Frame {
    /// The head as a message.
    ///
    /// # Errors
    /// `InvalidData` when the peer sent something else.
    pub fn message<T: DeserializeOwned>(&self) -> io::Result<T> {
        serde_json::from_slice(self.head()).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    /// As it came.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        &self.bytes[..self.head]
    }

    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.bytes[self.head..]
    }
}

/// What is sent as one message.
#[derive(Default)]
struct Outgoing {
    bytes: Wiped,
    /// What is sent from where it is: each before the byte of `bytes` at this place.
    shared: Vec<(usize, Bytes)>,
    /// Of all.
    length: usize,
    sent: usize,
    fds: Vec<OwnedFd>,
}

impl Outgoing {
    /// What was not sent yet, in its order.
    fn left(&self) -> Vec<IoSlice<'_>> {
        let mut begin = 0;
        let mut all = Vec::with_capacity(2 * self.shared.len() + 1);
        for (place, shared) in &self.shared {
            all.extend([IoSlice::new(&self.bytes[begin..*place]), IoSlice::new(shared)]);
            begin = *place;
        }
        all.push(IoSlice::new(&self.bytes[begin..]));
        let mut left = &mut all[..];
        IoSlice::advance_slices(&mut left, self.sent);
        let left = left.len();
        all.drain(..all.len() - left);
        all
    }
}

/// What was received and not taken out yet: one buffer for all reads, as a fresh one would have to be zeroed.
#[derive(Default)]
struct Incoming {
    bytes: Wiped,
    start: usize,
    end: usize,
    /// What the next read has room for.
    room: usize,
    /// For the next frames.
    spares: Vec<Wiped>,
}

impl Incoming {
    fn there(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Room for the next read.
    fn space(&mut self) -> &mut [u8] {
        self.room = self.room.max(FIRST);
        if self.bytes.len() - self.end < self.room {
            let length = self.end - self.start;
            if self.bytes.len() - length < self.room {
                let mut larger = Wiped::zeroed((length + self.room).next_power_of_two());
                larger[..length].copy_from_slice(self.there());
                self.bytes = larger;
            } else {
                self.bytes.copy_within(self.start..self.end, 0);
                let stale = length.max(self.start)..self.end;
                self.bytes[stale].fill(0);
            }
            (self.start, self.end) = (0, length);
        }
        &mut self.bytes[self.end..]
    }

    fn received(&mut self, n: usize) {
        self.end += n;
        // Whoever sends so much at once does so again.
        if n >= self.room {
            self.room = (self.room * 4).min(READ);
        }
    }

    /// Takes out what has these lengths.
    fn take(&mut self, head: usize, body: usize) -> Wiped {
        let whole = 8 + head + body;
        let frame = &mut self.bytes[self.start..self.start + whole];
        let mut taken = self.spares.pop().unwrap_or_default();
        taken.extend(&frame[8..]);
        frame.fill(0);
        self.start += whole;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.bytes.len() > KEPT {
                self.bytes = Wiped::default();
            }
        }
        taken
    }
}

/// One end of a channel. The socket is non-blocking: `receive` and `flush` do what goes now.
/// Wait for readiness with `poll(2)` or tokio's `AsyncFd` around it.
pub struct Channel {
    socket: OwnedFd,
    incoming: Incoming,
    /// Descriptors whose frames are not complete.
    fds: VecDeque<(u64, OwnedFd)>,
    /// Bytes taken out of `incoming` and received, ever: they place the descriptors.
    consumed: u64,
    received: u64,
    outgoing: VecDeque<Outgoing>,
    /// For the next frame to be sent.
    spare: Wiped,
    /// The last read took everything that was there.
    drained: bool,
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

    /// The same, with room for bursts: what gathers while this end waits for a disk is there when it comes back.
    ///
    /// # Errors
    /// As [`Channel::pair`].
    pub fn wide_pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = Self::pair()?;
        for socket in [&ours.socket, &theirs] {
            // Without the privilege, as much as the machine lets everybody have.
            if setsockopt(socket, sockopt::SndBufForce, &BURST).is_err() {
                setsockopt(socket, sockopt::SndBuf, &BURST)?;
            }
        }
        Ok((ours, theirs))
    }

    /// Takes a connected unix stream socket, which must be non-blocking.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            incoming: Incoming::default(),
            fds: VecDeque::new(),
            consumed: 0,
            received: 0,
            outgoing: VecDeque::new(),
            spare: Wiped::default(),
            drained: false,
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
        self.queue_with(message, body, Bytes::new(), fds);
    }

    /// The same, with a body that ends with what is not copied, nor wiped.
    ///
    /// # Panics
    /// As [`Channel::queue`].
    pub fn queue_with(
        &mut self,
        message: &impl Serialize,
        body: &[u8],
        shared: Bytes,
        fds: impl IntoIterator<Item = OwnedFd>,
    ) {
        let fds: Vec<OwnedFd> = fds.into_iter().take(MAX_FDS).collect();
        // Small frames travel together; one with descriptors begins a message of its own.
        let joins = |last: &Outgoing| last.fds.is_empty() && last.sent == 0 && last.length < READ;
        let mut last = match self.outgoing.pop_back() {
            Some(last) if fds.is_empty() && joins(&last) => last,
            other => {
                self.outgoing.extend(other);
                Outgoing { bytes: std::mem::take(&mut self.spare), fds, ..Outgoing::default() }
            }
        };
        let bytes = &mut last.bytes;
        let start = bytes.len();
        bytes.extend(&[0; 8]);
        serde_json::to_writer(&mut *bytes, message).expect("plain data always serializes");
        let lengths = [bytes.len() - start - 8, body.len() + shared.len()];
        for (place, length) in bytes[start..start + 8].chunks_exact_mut(4).zip(lengths) {
            place.copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        }
        last.length += 8 + lengths.iter().sum::<usize>();
        bytes.extend(body);
        if shared.len() < WORTH_SHARING {
            bytes.extend(&shared);
        } else {
            last.shared.push((bytes.len(), shared));
        }
        self.outgoing.push_back(last);
    }

    /// Is something left to send?
    #[must_use]
    pub fn wants_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Does a whole message wait to be sent, which nothing joins any more?
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.outgoing.back().is_some_and(|last| last.length >= READ)
    }

    /// Bytes that wait to be sent.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.outgoing.iter().map(|o| o.length - o.sent).sum()
    }

    /// Sends what the socket takes now; `true` when nothing is left.
    ///
    /// # Errors
    /// When the peer is gone.
    pub fn flush(&mut self) -> io::Result<bool> {
        while let Some(first) = self.outgoing.front_mut() {
            let raw: Vec<RawFd> = first.fds.iter().map(AsRawFd::as_raw_fd).collect();
            let control = [ControlMessage::ScmRights(&raw)];
            let control = if raw.is_empty() { &control[..0] } else { &control[..] };
            match sendmsg::<()>(self.socket.as_raw_fd(), &first.left(), control, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(n) => {
                    first.sent += n;
                    first.fds.clear();
                    if first.sent == first.length {
                        let sent = self.outgoing.pop_front().expect("front is there");
                        self.reuse(sent.bytes);
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

    fn reuse(&mut self, mut sent: Wiped) {
        sent.clear();
        if sent.capacity() > self.spare.capacity() && sent.capacity() <= KEPT {
            self.spare = sent;
        }
    }

    /// The next whole frame, if it is there now.
    ///
    /// # Errors
    /// `UnexpectedEof` when the peer has closed and nothing whole is left; `InvalidData` when it
    /// does not speak this protocol; `WouldBlock` when nothing whole is there now.
    pub fn receive(&mut self) -> io::Result<Frame> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            if self.closed {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.read()?;
        }
    }

    /// As [`Channel::receive`], but for whoever waits with `poll(2)` before it takes more: that nothing whole is
    /// left of a read which took all that was there is enough, without a further one.
    ///
    /// # Errors
    /// As [`Channel::receive`].
    pub fn receive_at_hand(&mut self) -> io::Result<Frame> {
        match self.buffered()? {
            Some(frame) => Ok(frame),
            None if self.is_drained() => Err(io::ErrorKind::WouldBlock.into()),
            None => self.receive(),
        }
    }

    /// A frame that is done with leaves its buffer to the next one.
    pub fn reuse_frame(&mut self, frame: Frame) {
        let mut bytes = frame.bytes;
        let (most, size) = SPARES;
        if bytes.capacity() <= size && self.incoming.spares.len() < most {
            bytes.clear();
            self.incoming.spares.push(bytes);
        }
    }

    /// Did the last read, which is asked about once, leave nothing behind? What came since makes the socket
    /// ready anew.
    pub(super) fn is_drained(&mut self) -> bool {
        std::mem::take(&mut self.drained)
    }

    /// The next frame of those that were read already.
    pub(super) fn buffered(&mut self) -> io::Result<Option<Frame>> {
        let there = self.incoming.there();
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
        let bytes = self.incoming.take(head, body);
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
        Ok(Some(Frame { bytes, head, fds }))
    }

    fn read(&mut self) -> io::Result<()> {
        let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
        let buffer = self.incoming.space();
        let room = buffer.len();
        let mut slice = [IoSliceMut::new(buffer)];
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
        // A read that brings descriptors ends with them, whatever follows.
        self.drained = n < room && passed.is_empty();
        for fd in passed {
            self.fds.push_back(((self.received + n as u64).saturating_sub(1), fd));
        }
        self.received += n as u64;
        self.incoming.received(n);
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
    use crate::os::alone::alone;

    fn both() -> (Channel, Channel) {
        let (ours, theirs) = Channel::pair().unwrap();
        (ours, Channel::new(theirs))
    }

    #[test]
    fn frames_arrive_whole_and_in_order() {
        alone("os::channel::tests::frames_arrive_whole_and_in_order", || {
            let (mut a, mut b) = both();
            let big = vec![7u8; 900_000];
            a.queue(&"one", &[], None);
            a.queue(&"two", &big, None);
            a.queue(&"three", b"x", None);
            let mut got = Vec::new();
            while got.len() < 3 {
                a.flush().unwrap();
                match b.receive() {
                    Ok(frame) => got.push((frame.message::<String>().unwrap(), frame.body().len())),
                    Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
                }
            }
            assert_eq!(got, [("one".into(), 0), ("two".into(), 900_000), ("three".into(), 1)]);
            drop(a);
            assert_eq!(b.receive().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        });
    }

    #[test]
    fn what_is_shared_stands_where_it_belongs_however_little_is_sent_at_a_time() {
        alone("os::channel::tests::what_is_shared_stands_where_it_belongs_however_little_is_sent_at_a_time", || {
            let (mut a, mut b) = both();
            setsockopt(&a.socket, sockopt::SndBuf, &4096).unwrap();
            let body = |n: usize| -> Vec<u8> { (0..n).map(|i| (i * 7 + n) as u8).collect() };
            // Some are shared, some copied, and they travel together.
            let lengths = [0, 1, 600, 511, 512, 40_000, 3, 900_000, 5];
            for length in lengths {
                let body = body(length);
                let (copied, shared) = body.split_at(length / 3);
                a.queue_with(&length, copied, Bytes::copy_from_slice(shared), None);
            }
            let mut left = lengths.iter();
            let mut next = left.next();
            while let Some(length) = next {
                let done = a.flush().unwrap();
                assert_eq!(done, a.backlog() == 0);
                match b.receive() {
                    Ok(frame) => {
                        assert_eq!((frame.message::<usize>().unwrap(), frame.body()), (*length, &body(*length)[..]));
                        next = left.next();
                    }
                    Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
                }
            }
        });
    }

    #[test]
    fn a_read_that_took_everything_is_not_followed_by_another() {
        let (mut a, mut b) = both();
        for round in 0..3 {
            a.queue(&"one", &[round; 5000], None);
            a.queue(&"two", &[], None);
            a.flush().unwrap();
            assert_eq!(b.receive_at_hand().unwrap().body(), [round; 5000]);
            assert_eq!(b.receive_at_hand().unwrap().message::<String>().unwrap(), "two");
            a.queue(&"later", &[], None);
            a.flush().unwrap();
            assert_eq!(b.receive_at_hand().unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert_eq!(b.receive_at_hand().unwrap().message::<String>().unwrap(), "later");
            assert_eq!(b.receive_at_hand().unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert!(b.incoming.bytes.iter().all(|byte| *byte == 0), "what was taken out stays behind");
        }
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
        a.outgoing.push_back(Outgoing { bytes: vec![0xff; 16].into(), length: 16, ..Outgoing::default() });
        a.flush().unwrap();
        assert_eq!(b.receive().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
