//! Short messages that wake nobody: they wait in the kernel until the other end looks for them.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use serde::{Serialize, de::DeserializeOwned};

/// No message is longer, in bytes of JSON.
const LONGEST: usize = 4096;

/// One end of a pair of sockets.
pub struct Notes(OwnedFd);

impl Notes {
    /// An end to write to, and the other one to be passed on.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Self(ours), theirs))
    }

    /// The end that was passed on.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Leaves a message, whole or not at all.
    ///
    /// # Errors
    /// `WouldBlock` when nobody has looked for long, `InvalidInput` for one that is too long, others when
    /// nobody will look any more.
    pub fn put(&self, message: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        if text.len() > LONGEST {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(send(self.0.as_raw_fd(), &text, MsgFlags::MSG_NOSIGNAL).map(drop)?)
    }

    /// The next message that waits; `None` where none does, or it is none of ours.
    #[must_use]
    pub fn take<T: DeserializeOwned>(&self) -> Option<T> {
        let mut text = [0; LONGEST];
        loop {
            match recv(self.0.as_raw_fd(), &mut text, MsgFlags::empty()) {
                Ok(length) => return serde_json::from_slice(&text[..length]).ok(),
                Err(nix::Error::EINTR) => {}
                Err(_) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::alone::alone;

    #[test]
    fn what_was_left_is_found_in_its_order() {
        let (ours, theirs) = Notes::pair().unwrap();
        let theirs = Notes::new(theirs);
        assert_eq!(theirs.take::<u32>(), None);
        for n in 0..50u32 {
            ours.put(&n).unwrap();
        }
        assert_eq!((0..50u32).map(|_| theirs.take::<u32>().unwrap()).collect::<Vec<_>>(), Vec::from_iter(0..50));
        assert_eq!(theirs.take::<u32>(), None);
        assert_eq!(ours.put(&"x".repeat(LONGEST)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        drop(ours);
        assert_eq!(theirs.take::<u32>(), None);
    }

    #[test]
    fn whoever_never_looks_is_left_alone() {
        alone("os::notes::tests::whoever_never_looks_is_left_alone", || {
            let (ours, theirs) = Notes::pair().unwrap();
            let full = (0..100_000u32).find_map(|n| ours.put(&n).err()).unwrap();
            assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
            let theirs = Notes::new(theirs);
            assert_eq!(theirs.take(), Some(0u32));
            drop(theirs);
            assert_ne!(ours.put(&1).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        });
    }
}
