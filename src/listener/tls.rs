//! HTTPS: the certificate and its key come over a channel of their own, again whenever they are exchanged.
//! Connections that are there go on as they are, new ones are proven by the newest.

use std::{cell::RefCell, future::Future, io, os::fd::OwnedFd, rc::Rc, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    domain::{
        api::{LARGEST_PAIR, ToListener},
        model::{Pair, Secret},
    },
    os::{
        channel::{Channel, Frame},
        memfd,
        watched::Watched,
    },
};

/// How long a handshake may take; the request's head has its own time after that.
const TIME: Duration = Duration::from_secs(10);

/// What new connections are proven by.
pub(super) struct Tls {
    current: Rc<RefCell<Arc<ServerConfig>>>,
}

impl Tls {
    /// Takes the channel's socket and waits for the first certificate. The future takes in later ones and ends
    /// when the channel is gone.
    ///
    /// # Errors
    /// When the channel is gone, or what came is of no use.
    pub(super) async fn open(socket: OwnedFd) -> io::Result<(Self, impl Future<Output = ()>)> {
        let mut channel = Watched::new(Channel::new(socket))?;
        let first = unpack(channel.next().await?)?;
        let current = Rc::new(RefCell::new(first));
        let shared = Rc::clone(&current);
        let carry = async move {
            while let Ok(frame) = channel.next().await {
                match unpack(frame) {
                    Ok(newer) => *shared.borrow_mut() = newer,
                    Err(error) => eprintln!("everhook: listener: the certificate stays as it was: {error}"),
                }
            }
        };
        Ok((Self { current }, carry))
    }

    /// Greets a client; `None` when it does not speak TLS, or not in time.
    pub(super) async fn greet(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.current.borrow()));
        timeout(TIME, acceptor.accept(stream)).await.ok()?.ok()
    }
}

/// How to serve with what came.
fn unpack(mut frame: Frame) -> io::Result<Arc<ServerConfig>> {
    let ToListener::Certificate = frame.message()?;
    let fd = frame.fds.pop().ok_or(io::ErrorKind::InvalidData)?;
    let pem = Secret::new(memfd::read_sealed(fd, LARGEST_PAIR)?);
    let config = Pair::from_pem(pem.expose()).and_then(|pair| pair.server()).map_err(io::Error::other)?;
    Ok(Arc::new(config))
}
