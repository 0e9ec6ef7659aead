//! The hooks channels: what listeners send is taken in, what they are answered goes out.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::{AsFd, BorrowedFd},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::webhook::Incoming;
use crate::{
    domain::{
        api::{Answer, FromHooks},
        model::At,
    },
    os::channel::Channel,
};

/// Messages of a listener that are taken into one round: a group is committed before more is read.
const MOST_AT_ONCE: usize = 256;
/// A listener that takes no answers is not read from beyond this many bytes.
const MOST_UNSENT: usize = 1024 * 1024;
/// Health questions that may be open at a time.
const MOST_ASKED: usize = 1024;

/// What came in from listeners.
#[derive(Default)]
pub(super) struct Arrived {
    pub deliveries: Vec<Incoming>,
    /// Somebody asks after the loop's health, and it has not been asked yet.
    pub health: bool,
    pub closed: Vec<usize>,
}

#[derive(Default)]
pub(super) struct Hooks {
    channels: BTreeMap<usize, Channel>,
    /// Open health questions: listener and its ticket. The loop is asked once for all of them, as its answer
    /// is as good for whoever asked meanwhile.
    asked: VecDeque<(usize, u64)>,
    /// The last round left frames behind that poll(2) does not see.
    left: bool,
}

impl Hooks {
    pub(super) fn replace(&mut self, listener: usize, channel: Channel) {
        self.remove(listener);
        self.channels.insert(listener, channel);
        // What it read ahead before it was handed over is in its buffer.
        self.left = true;
    }

    fn remove(&mut self, listener: usize) {
        self.channels.remove(&listener);
        self.asked.retain(|(asking, _)| *asking != listener);
    }

    /// Waits until a channel or `wake` is ready, at most `timeout`. Is `wake`?
    pub(super) fn wait(&self, wake: BorrowedFd<'_>, timeout: PollTimeout) -> bool {
        let mut fds = vec![PollFd::new(wake, PollFlags::POLLIN)];
        for channel in self.channels.values() {
            let mut interest = PollFlags::empty();
            interest.set(PollFlags::POLLIN, channel.backlog() <= MOST_UNSENT);
            interest.set(PollFlags::POLLOUT, channel.wants_write());
            fds.push(PollFd::new(channel.as_fd(), interest));
        }
        // An interrupted wait is a round in which nothing is there.
        let _ = poll(&mut fds, if self.left { PollTimeout::ZERO } else { timeout });
        fds[0].any().unwrap_or(true)
    }

    /// Is there nothing to take now?
    pub(super) fn is_quiet(&self) -> bool {
        let mut fds: Vec<_> = self.channels.values().map(|of| PollFd::new(of.as_fd(), PollFlags::POLLIN)).collect();
        !self.left && poll(&mut fds, PollTimeout::ZERO) == Ok(0)
    }

    /// Takes what is there now, up to a group.
    pub(super) fn take(&mut self, at: At) -> Arrived {
        let mut arrived = Arrived::default();
        self.left = false;
        for (listener, channel) in &mut self.channels {
            if channel.backlog() > MOST_UNSENT {
                continue;
            }
            for taken in 0.. {
                if taken == MOST_AT_ONCE {
                    self.left = true;
                    break;
                }
                let frame = match channel.receive_at_hand() {
                    Ok(frame) => frame,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => {
                        if e.kind() != io::ErrorKind::UnexpectedEof {
                            tracing::warn!("listener {listener}: {e}");
                        }
                        arrived.closed.push(*listener);
                        break;
                    }
                };
                match frame.message() {
                    Ok(FromHooks::Delivery(raw)) => {
                        arrived.deliveries.push(Incoming { listener: *listener, at, raw, frame: Some(frame) });
                    }
                    Ok(FromHooks::Health { ticket }) => {
                        arrived.health |= self.asked.is_empty();
                        if self.asked.len() == MOST_ASKED {
                            self.asked.pop_front();
                        }
                        self.asked.push_back((*listener, ticket));
                    }
                    Err(e) => {
                        tracing::warn!("listener {listener} sent what is no message: {e}");
                        arrived.closed.push(*listener);
                        break;
                    }
                }
            }
        }
        for listener in &arrived.closed {
            self.remove(*listener);
        }
        arrived
    }

    /// These are done with: what they came in is used again.
    pub(super) fn forget(&mut self, deliveries: Vec<Incoming>) {
        for Incoming { listener, frame, .. } in deliveries {
            if let (Some(channel), Some(frame)) = (self.channels.get_mut(&listener), frame) {
                channel.reuse_frame(frame);
            }
        }
    }

    /// Puts an answer into the queue of its listener, if that is still there; `flush` sends it.
    pub(super) fn answer(&mut self, listener: usize, answer: &Answer) {
        if let Some(channel) = self.channels.get_mut(&listener) {
            channel.queue(answer, answer.body.as_bytes(), None);
        }
    }

    /// The loop is alive: answers whoever asked.
    pub(super) fn healthy(&mut self) {
        for (listener, ticket) in std::mem::take(&mut self.asked) {
            let ok = Answer { ticket, status: 200, body: "ok".to_owned(), retry_after: None };
            self.answer(listener, &ok);
        }
    }

    /// Sends what the sockets take now. Returns the listeners that are gone.
    pub(super) fn flush(&mut self) -> Vec<usize> {
        let mut gone = Vec::new();
        for (listener, channel) in &mut self.channels {
            let held = channel.backlog() > MOST_UNSENT;
            if channel.wants_write() && channel.flush().is_err() {
                gone.push(*listener);
            }
            // It is read from again; whole frames may be in its buffer.
            self.left |= held && channel.backlog() <= MOST_UNSENT;
        }
        for listener in &gone {
            self.remove(*listener);
        }
        gone
    }
}
