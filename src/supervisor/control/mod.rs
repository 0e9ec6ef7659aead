//! How people reach the loop: `control.sock`, where the peer's uid and groups count, and the people
//! channels of listeners, where the token does. One task a connection; what is asked becomes one
//! event, what is answered goes back through [`ReplyTo`].

use std::{fs, io, os::fd::OwnedFd, path::Path, sync::Arc};

use tokio::{sync::mpsc, task::AbortHandle};
use tracing::{debug, error, info, warn};

use super::{
    Supervisor,
    event::{Event, Events},
    veil,
};
use crate::{
    domain::api::{Ask, Request, Said, Saying},
    os::{channel::Channel, socket, users, watched::Watched},
};

/// A question and who asks it.
pub struct Asked {
    pub ask: Ask,
    pub from: From,
    /// Descriptors that came with the question.
    pub fds: Vec<OwnedFd>,
    pub reply: ReplyTo,
}

/// Where a question came from.
#[derive(Debug, Clone)]
pub enum From {
    /// `control.sock`.
    Local { uid: u32, user: Option<String>, groups: Vec<String> },
    /// A people channel; who it is stands in the token.
    People,
    /// A metrics channel, which asks for these alone.
    Metrics,
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

    /// The question that this answers.
    pub fn ticket(&self) -> u64 {
        self.ticket
    }

    /// Hands the client's socket over; nothing may have been said before.
    pub fn hand_over(&self, to: impl FnOnce(OwnedFd) + Send + 'static) {
        let _ = self.out.send(Out::Socket(Box::new(to)));
    }

    /// Waits until nobody listens any more.
    pub async fn gone(&self) {
        self.out.closed().await;
    }

    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.out.is_closed()
    }
}

/// `control.sock`, whose clients are taken until the loop ends or this is dropped.
pub struct Control {
    task: AbortHandle,
    /// For the process that takes our place.
    pub socket: Arc<OwnedFd>,
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Binds `control.sock`, unless the process before this one has handed it on.
///
/// # Errors
/// Names the socket.
pub fn open(path: &Path, handed_on: Option<OwnedFd>, events: Events) -> Result<Control, String> {
    let failed = |e: io::Error| format!("cannot listen on {}: {e}", path.display());
    let socket = match handed_on.filter(|_| path.exists()) {
        Some(socket) => socket.into(),
        None => socket::listen_unix(path, 0o666).map_err(failed)?,
    };
    let ours = Arc::new(socket.try_clone().map_err(failed)?.into());
    let task = tokio::spawn(async move {
        if let Err(error) = accept(socket, events).await {
            error!(%error, "the control socket is lost");
        }
    });
    Ok(Control { task: task.abort_handle(), socket: ours })
}

impl Supervisor {
    /// Makes `control.sock` again where somebody removed it, as cleaners of temporary folders do.
    pub fn restore_control(&mut self) {
        let path = self.layout.control();
        if !matches!(fs::symlink_metadata(&path), Err(error) if error.kind() == io::ErrorKind::NotFound) {
            return;
        }
        match open(&path, None, self.events.clone()) {
            Ok(control) => {
                self.control = control;
                info!(socket = %path.display(), "the control socket was gone and is there again");
            }
            Err(error) => error!(%error, "the control socket is gone"),
        }
    }
}

async fn accept(listener: std::os::unix::net::UnixListener, events: Events) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let Ok(stream) = stream.into_std() else { continue };
                let fd = OwnedFd::from(stream);
                match who(&fd) {
                    Ok(from) => drop(tokio::spawn(serve(Channel::new(fd), from, events.clone()))),
                    Err(error) => warn!(%error, "a client of the control socket has no credentials"),
                }
            }
            Err(error) => {
                // Out of descriptors, most likely: going on at once would burn the processor.
                warn!(%error, "the control socket");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// The kernel's word for who is at the other end. Names of root, who may do everything, need no
/// look-up, which could ask the network.
fn who(socket: &OwnedFd) -> io::Result<From> {
    let peer = users::peer(socket)?;
    if peer.uid == 0 {
        return Ok(From::Local { uid: 0, user: Some("root".to_owned()), groups: Vec::new() });
    }
    let groups = users::peer_groups(socket)?.into_iter().chain([peer.gid]);
    Ok(From::Local {
        uid: peer.uid,
        user: users::user_name(peer.uid),
        groups: groups.filter_map(users::group_name).collect(),
    })
}

/// Serves a listener's people channel.
pub fn people(channel: Channel, events: Events) {
    tokio::spawn(serve(channel, From::People, events));
}

/// Serves a listener's metrics channel.
pub fn metrics(channel: Channel, events: Events) {
    tokio::spawn(serve(channel, From::Metrics, events));
}

async fn serve(channel: Channel, from: From, events: Events) {
    if let Err(error) = talk(channel, from, events, None).await {
        debug!(%error, "a client is gone");
    }
}

/// Answers a question of a people channel on the socket that came with it.
fn stream(socket: OwnedFd, ask: Ask, events: Events) {
    tokio::spawn(async move {
        if let Err(error) = talk(Channel::new(socket), From::People, events, Some(ask)).await {
            debug!(%error, "a reader is gone");
        }
    });
}

/// `first`: what was asked elsewhere and is answered here.
async fn talk(channel: Channel, from: From, events: Events, first: Option<Ask>) -> io::Result<()> {
    let (out, mut outbox) = mpsc::unbounded_channel();
    let mut channel = Watched::new(channel)?;
    let put = |ask: Ask, fds: Vec<OwnedFd>| {
        let reply = ReplyTo { ticket: ask.ticket, out: out.clone() };
        events.send(Event::Asked(Box::new(Asked { ask, from: from.clone(), fds, reply }))).is_ok()
    };
    let is_stream = first.is_some();
    if first.is_some_and(|ask| !put(ask, Vec::new())) {
        return Ok(());
    }
    loop {
        tokio::select! {
            said = outbox.recv() => match said {
                Some(Out::Say(said)) => channel.queue(&veil::message(&said), &[], None),
                Some(Out::Socket(to)) => {
                    to(channel.into_socket());
                    return Ok(());
                }
                None => return Ok(()),
            },
            frame = channel.next() => {
                let mut frame = frame?;
                let ask: Ask = frame.message()?;
                if matches!(from, From::Metrics) && !matches!(ask.request, Request::Metrics) {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "it may not ask for this"));
                }
                if matches!(from, From::People) && ask.request.streams() {
                    // On the shared channel it would stand in everybody's way, or be given away.
                    let Some(socket) = frame.fds.pop().filter(|_| !is_stream) else {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "a stream without a socket"));
                    };
                    stream(socket, ask, events.clone());
                } else if !put(ask, frame.fds) {
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_metrics_channel_nothing_else_can_be_asked() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let (events, mut heard) = mpsc::unbounded_channel();
            for request in [Request::Metrics, Request::Status { apps: Vec::new() }, Request::Shutdown { now: true }] {
                let (ours, theirs) = Channel::pair().unwrap();
                metrics(ours, events.clone());
                let mut theirs = Watched::new(Channel::new(theirs)).unwrap();
                let passes = matches!(request, Request::Metrics);
                let ask = Ask { ticket: 1, token: None, address: None, wait: false, timeout: None, request };
                theirs.queue(&ask, &[], None);
                assert!(theirs.flush().unwrap());
                if passes {
                    assert!(
                        matches!(heard.recv().await, Some(Event::Asked(asked)) if matches!(asked.from, From::Metrics))
                    );
                } else {
                    assert!(theirs.next().await.is_err(), "the channel is closed");
                    assert!(heard.try_recv().is_err(), "and nobody heard of it");
                }
            }
        });
    }
}
