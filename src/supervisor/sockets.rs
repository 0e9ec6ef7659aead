//! Sockets that are held for apps: bound before their first process starts, kept over restarts,
//! replacements and reloads, let go when the app rests. Binding is done on the files thread, since a
//! unix socket is a file.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, path::Path, sync::Arc};

use tracing::warn;

use super::{Supervisor, seats::SeatId};
use crate::{
    domain::{
        config::{self, Socket, SocketAddress},
        model::AppName,
        service::{App, Happening, State},
    },
    os::held::{self, FileId},
};

/// One that is held.
pub struct Held {
    pub socket: Socket,
    pub fd: Arc<OwnedFd>,
    /// The address really bound, as status shows it.
    pub shown: String,
    /// A unix socket's file.
    file: Option<FileId>,
}

/// Those of an app, by name.
pub type Sockets = BTreeMap<String, Arc<Held>>;

/// The sockets that the config wants: what is held already where it still is there, the rest bound now.
///
/// # Errors
/// Names the socket and the address.
fn bring_in_line(app: &config::App, held: &[Arc<Held>]) -> Result<Sockets, String> {
    let mut sockets = Sockets::new();
    for (name, wanted) in &app.sockets {
        let known = held.iter().find(|held| held.serves(wanted));
        let made = match known {
            Some(known) if known.socket == *wanted => Ok(Arc::clone(known)),
            Some(known) => known.changed(wanted).map(Arc::new),
            None => Held::new(wanted).map(Arc::new),
        };
        let made = made.map_err(|error| {
            let why = match error.kind() {
                io::ErrorKind::AddrInUse => "somebody else listens there".to_owned(),
                _ => error.to_string(),
            };
            app.fault("sockets", &format!("socket \"{name}\": cannot listen on {}: {why}", wanted.address))
        })?;
        sockets.insert(name.clone(), made);
    }
    Ok(sockets)
}

impl Held {
    fn new(socket: &Socket) -> io::Result<Self> {
        let (fd, address, file) = match &socket.address {
            SocketAddress::Tcp(address) => {
                let (fd, real) = held::tcp(*address, socket.reuse_port, socket.backlog)?;
                (fd, SocketAddress::Tcp(real), None)
            }
            SocketAddress::Udp(address) => {
                let (fd, real) = held::udp(*address, socket.reuse_port)?;
                (fd, SocketAddress::Udp(real), None)
            }
            SocketAddress::Unix(path) => {
                let (fd, file) = held::unix(path, socket.mode, socket.owner, socket.backlog)?;
                (fd, socket.address.clone(), Some(file))
            }
        };
        Ok(Self { socket: socket.clone(), fd: Arc::new(fd), shown: address.to_string(), file })
    }

    /// Does it serve where this one is wanted, and is it still there?
    fn serves(&self, wanted: &Socket) -> bool {
        let there = match (&self.socket.address, self.file) {
            (SocketAddress::Unix(path), Some(file)) => held::is_at(path, file) || held::put_back(path, file),
            _ => true,
        };
        self.socket.address == wanted.address && self.socket.reuse_port == wanted.reuse_port && there
    }

    /// The same socket, as it is wanted now.
    fn changed(&self, wanted: &Socket) -> io::Result<Self> {
        if !matches!(wanted.address, SocketAddress::Udp(_)) {
            held::relisten(&self.fd, wanted.backlog)?;
        }
        let file = match &wanted.address {
            SocketAddress::Unix(path) => Some(held::dress(path, wanted.mode, wanted.owner)?),
            SocketAddress::Tcp(_) | SocketAddress::Udp(_) => None,
        };
        Ok(Self { socket: wanted.clone(), fd: Arc::clone(&self.fd), shown: self.shown.clone(), file })
    }

    fn path(&self) -> Option<(&Path, FileId)> {
        match &self.socket.address {
            SocketAddress::Unix(path) => Some((path, self.file?)),
            SocketAddress::Tcp(_) | SocketAddress::Udp(_) => None,
        }
    }
}

/// Nobody serves there any more: a client shall hear so at once.
fn remove_files(gone: &[Arc<Held>]) {
    for (path, file) in gone.iter().filter_map(|held| held.path()) {
        held::remove(path, file);
    }
}

impl Supervisor {
    /// Starts a process once its app's sockets are held.
    pub fn with_sockets(&mut self, id: &SeatId, then: impl FnOnce(&mut Supervisor) + Send + 'static) {
        let Some((app, shell)) = self.apps.get(&id.app).zip(self.shells.get(&id.app)) else { return };
        let is_held = |(name, wanted): (&String, &Socket)| {
            shell.sockets.get(name).is_some_and(|held| held.socket == *wanted && held.file.is_none())
        };
        if app.spec().sockets.iter().all(is_held) && app.spec().sockets.len() == shell.sockets.len() {
            return then(self);
        }
        let (spec, held, id) = (Arc::clone(app.spec()), self.held_by(&id.app), id.clone());
        self.files.run(
            move || {
                let sockets = bring_in_line(&spec, &held)?;
                let kept = |old: &&Arc<Held>| sockets.values().any(|new| new.socket.address == old.socket.address);
                remove_files(&held.iter().filter(|old| !kept(old)).cloned().collect::<Vec<_>>());
                Ok::<_, String>(sockets)
            },
            move |supervisor, sockets| match sockets {
                Ok(sockets) => {
                    if let Some(shell) = supervisor.shells.get_mut(&id.app) {
                        shell.sockets = sockets;
                    }
                    then(supervisor);
                }
                Err(error) => supervisor.tell(&id, Happening::SpawnFailed(error)),
            },
        );
    }

    /// A process of the app has ended, and may have removed what is still in use.
    pub fn put_sockets_back(&self, app: &AppName) {
        let Some(shell) = self.shells.get(app) else { return };
        let files: Vec<_> = shell.sockets.values().filter(|held| held.file.is_some()).cloned().collect();
        if files.is_empty() {
            return;
        }
        let work = move || {
            for (path, file) in files.iter().filter_map(|held| held.path()) {
                if !held::is_at(path, file) && held::put_back(path, file) {
                    warn!(path = %path.display(), "an app has removed its socket; it is put back");
                }
            }
        };
        self.files.run(work, |_, ()| ());
    }

    fn held_by(&self, app: &AppName) -> Vec<Arc<Held>> {
        self.shells.get(app).into_iter().flat_map(|shell| shell.sockets.values().cloned()).collect()
    }

    /// Lets the sockets of an app go that rests: a client is refused at once, not left waiting.
    pub fn let_go_if_resting(&mut self, name: &AppName) {
        let rests = |app: &App| {
            app.runs().all(|run| matches!(run.instance.state(), State::Stopped | State::Failed { .. } | State::Done))
        };
        let Some(shell) = self.shells.get_mut(name).filter(|shell| !shell.sockets.is_empty()) else { return };
        if self.apps.get(name).is_none_or(|app| rests(app)) {
            let gone: Vec<_> = std::mem::take(&mut shell.sockets).into_values().collect();
            if gone.iter().any(|held| held.file.is_some()) {
                self.files.run(move || remove_files(&gone), |_, ()| ());
            }
        }
    }
}
