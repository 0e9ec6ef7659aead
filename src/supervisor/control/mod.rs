//! How people reach the loop: `control.sock`, where the peer's uid and groups count, and the people
//! channels of listeners, where the token does. One task a connection; what is asked becomes one
//! event, what is answered goes back through [`ReplyTo`].

use std::{
    io,
    os::fd::OwnedFd,
};

use tokio::{io::unix::AsyncFd, sync::mpsc};
use tracing::{debug, warn};

use super::event::{Event, Events};
use crate::{
    domain::api::{Ask, Said, Saying},
    os::{channel::Channel, users},
};

/// A question and who asks it.
pub struct Asked {
    pub ask: Ask,
    pub from: From,
    pub reply: ReplyTo,
}

/// Where a question came from.
#[derive(Debug, Clone)]
pub enum From {
    /// `control.sock`.
    Local { uid: u32, user: Option<String>, groups: Vec<String> },
    /// A people channel; who it is stands in the token.
    People,
}

/// The way back to whoever asked.
#[derive(Clone)]
pub struct ReplyTo {
    ticket: u64,
    out: mpsc::UnboundedSender<Out>,
}

enum Out {
    Say(Said),
    /// Give the connection itself away.
    Socket(Box<dyn FnOnce(OwnedFd) + Send>),
}

impl ReplyTo {
    /// False when nobody listens any more.
    pub fn say(&self, what: Saying) -> bool {
        self.out.send(Out::Say(Said { ticket: self.ticket, what })).is_ok()
    }

    /// Hands the client's socket over, once everything said so far is sent.
    pub fn hand_over(&self, to: impl FnOnce(OwnedFd) + Send + 'static) {
        let _ = self.out.send(Out::Socket(Box::new(to)));
    }

    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.out.is_closed()
    }
}

/// Takes clients of `control.sock` until the loop ends.
pub async fn accept(socket: OwnedFd, events: Events) -> io::Result<()> {
    let listener = std::os::unix::net::UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let Ok(stream) = stream.into_std() else { continue };
                let fd = OwnedFd::from(stream);
                let from = match users::peer(&fd) {
                    Ok(peer) => From::Local {
                        uid: peer.uid,
                        user: (users::facts().user)(&peer.uid.to_string()).and_then(|account| account.name),
                        groups: users::peer_groups(&fd).iter().filter_map(|gid| users::group_name(*gid)).collect(),
                    },
                    Err(error) => {
                        warn!(%error, "a client of the control socket has no credentials");
                        continue;
                    }
                };
                tokio::spawn(serve(Channel::new(fd), from, events.clone()));
            }
            Err(error) => {
                // Out of descriptors, most likely: going on at once would burn the processor.
                warn!(%error, "the control socket");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves a listener's people channel.
pub fn people(channel: Channel, events: Events) {
    tokio::spawn(serve(channel, From::People, events));
}

async fn serve(channel: Channel, from: From, events: Events) {
    if let Err(error) = talk(channel, from, events).await {
        debug!(%error, "a client is gone");
    }
}

async fn talk(channel: Channel, from: From, events: Events) -> io::Result<()> {
    let (out, mut outbox) = mpsc::unbounded_channel();
    let mut channel = AsyncFd::new(channel)?;
    loop {
        let writing = channel.get_ref().wants_write();
        tokio::select! {
            said = outbox.recv() => match said {
                Some(Out::Say(said)) => {
                    channel.get_mut().queue(&said, &[], None);
                    channel.get_mut().flush()?;
                }
                Some(Out::Socket(to)) => {
                    send_all(&mut channel).await?;
                    to(channel.into_inner().into_socket());
                    return Ok(());
                }
                None => return Ok(()),
            },
            guard = channel.writable_mut(), if writing => {
                let mut guard = guard?;
                if !guard.get_inner_mut().flush()? {
                    guard.clear_ready();
                }
            }
            guard = channel.readable_mut() => {
                let mut guard = guard?;
                match guard.get_inner_mut().receive() {
                    Ok(frame) => {
                        let ask: Ask = frame.message()?;
                        let reply = ReplyTo { ticket: ask.ticket, out: out.clone() };
                        let asked = Asked { ask, from: from.clone(), reply };
                        if events.send(Event::Asked(Box::new(asked))).is_err() {
                            return Ok(());
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

async fn send_all(channel: &mut AsyncFd<Channel>) -> io::Result<()> {
    while channel.get_ref().wants_write() {
        let mut guard = channel.writable_mut().await?;
        if !guard.get_inner_mut().flush()? {
            guard.clear_ready();
        }
    }
    Ok(())
}
