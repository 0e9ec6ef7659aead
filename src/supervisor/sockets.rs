//! Sockets that are held for apps: bound before their first process starts, kept over restarts,
//! replacements and reloads, let go when the app rests. Binding is done on the files thread, since a
//! unix socket is a file.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::warn;

use super::{
    Later, Supervisor,
    layout::{Layout, SOCKETS},
    seats::SeatId,
};
use crate::{
    domain::{
        config::{self, Socket, SocketAddress},
        model::AppName,
        service::{App, Happening, State},
    },
    os::{
        held::{self, Bound, FileId},
        pidfd,
        tree::Member,
    },
};

/// The first passed descriptor: `sd_listen_fds(3)`.
pub const FIRST_PASSED: i32 = 3;

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

/// Apps whose sockets are being bound, and what is done next for the seats that wait for them.
pub type Binding = BTreeMap<AppName, Vec<(SeatId, Later)>>;

/// The sockets that the config wants: what is held already where it still is there, the rest bound now. `others`: what
/// other apps hold there that are about to leave it.
///
/// # Errors
/// Names the socket and the address.
fn bring_in_line(app: &config::App, held: &Sockets, others: &[Arc<Held>]) -> Result<Sockets, String> {
    let mut sockets = Sockets::new();
    for (name, wanted) in &app.sockets {
        let same = held.get(name).filter(|held| held.serves(wanted));
        // By another name: only where that does not stand for a port of its own.
        let by_address = || held.values().chain(others).find(|held| !any_port(&wanted.address) && held.serves(wanted));
        let known = same.or_else(by_address);
        let made = match known {
            Some(known) if known.socket == *wanted => Ok(Arc::clone(known)),
            Some(known) => known.changed(wanted).map(Arc::new),
            None => Held::new(wanted).map(Arc::new),
        };
        sockets.insert(name.clone(), made.map_err(|error| refused(app, name, &wanted.address, &error))?);
    }
    Ok(sockets)
}

fn refused(app: &config::App, name: &str, address: &SocketAddress, error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => "somebody else listens there".to_owned(),
        _ => error.to_string(),
    };
    app.fault("sockets", &format!("socket \"{name}\": cannot listen on {address}: {why}"))
}

/// The sockets of an app whose processes go on under a supervisor that does not hold them yet: taken out of the
/// processes that have them, which were given them by an earlier one. Where nobody has one, it is bound anew.
///
/// # Errors
/// Names the socket, where it can neither be taken nor be bound.
pub fn take_back(app: &config::App, tree: &[Member]) -> Result<Sockets, String> {
    let mut sockets = Sockets::new();
    for (place, (name, wanted)) in app.sockets.iter().enumerate() {
        let held = match find(name, place, &wanted.address, tree) {
            Some(fd) => Held::taken(wanted, fd),
            None if any_port(&wanted.address) => Err(io::ErrorKind::NotFound.into()),
            None => Held::new(wanted),
        };
        sockets.insert(name.clone(), Arc::new(held.map_err(|error| refused(app, name, &wanted.address, &error))?));
    }
    Ok(sockets)
}

/// First where it was put for them, then everywhere. Of ports of the kernel's choice only the place tells which is
/// which.
fn find(name: &str, place: usize, wanted: &SocketAddress, tree: &[Member]) -> Option<OwnedFd> {
    let fits = |fd: &OwnedFd| match (wanted, held::bound_at(fd)) {
        (SocketAddress::Tcp(wanted), Some(Bound::Tcp(real))) | (SocketAddress::Udp(wanted), Some(Bound::Udp(real))) => {
            wanted.ip() == real.ip() && (wanted.port() == 0 || wanted.port() == real.port())
        }
        (SocketAddress::Unix(wanted), Some(Bound::Unix(real))) => *wanted == real,
        _ => false,
    };
    let put = |member: &Member| {
        let number = held::passed(member.pid, name).or_else(|| i32::try_from(place).ok())?;
        pidfd::take_file(&member.pidfd, FIRST_PASSED + number).ok()
    };
    let everywhere = || tree.iter().flat_map(|member| held::sockets_of(member.pid, &member.pidfd));
    tree.iter().filter_map(put).find(fits).or_else(|| everywhere().filter(|_| !any_port(wanted)).find(fits))
}

fn any_port(address: &SocketAddress) -> bool {
    match address {
        SocketAddress::Tcp(address) | SocketAddress::Udp(address) => address.port() == 0,
        SocketAddress::Unix(_) => false,
    }
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

    /// One that another process has had, dressed as it is wanted now.
    fn taken(socket: &Socket, fd: OwnedFd) -> io::Result<Self> {
        let shown = match held::bound_at(&fd) {
            Some(Bound::Tcp(address)) => SocketAddress::Tcp(address).to_string(),
            Some(Bound::Udp(address)) => SocketAddress::Udp(address).to_string(),
            Some(Bound::Unix(_)) | None => socket.address.to_string(),
        };
        let file = match &socket.address {
            SocketAddress::Unix(path) => Some(held::file_of(path)?),
            SocketAddress::Tcp(_) | SocketAddress::Udp(_) => None,
        };
        let known = Self { socket: socket.clone(), fd: Arc::new(fd), shown, file };
        // Where the app has removed it, nobody could reach it.
        known.serves(socket);
        known.changed(socket)
    }

    /// Does it serve where this one is wanted, and is it still there?
    fn serves(&self, wanted: &Socket) -> bool {
        let there = match (&self.socket.address, self.file) {
            (SocketAddress::Unix(path), Some(file)) => held::is_at(path, file) || held::put_back(path, file),
            _ => true,
        };
        // One that the kernel has chosen may be wanted by its number now.
        let same = self.socket.address == wanted.address || self.shown == wanted.address.to_string();
        same && self.socket.reuse_port == wanted.reuse_port && there
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

    pub fn path(&self) -> Option<(&Path, FileId)> {
        match &self.socket.address {
            SocketAddress::Unix(path) => Some((path, self.file?)),
            SocketAddress::Tcp(_) | SocketAddress::Udp(_) => None,
        }
    }
}

/// Notes for a supervisor that may follow which files are these sockets'; nothing where they are as `known`.
pub fn note(note: &Path, sockets: &Sockets, known: &Sockets) {
    let files = |sockets: &Sockets| -> Vec<u8> {
        let held = sockets.values().filter_map(|held| held.path());
        held.flat_map(|(path, (device, inode))| {
            [format!("{device} {inode} ").as_bytes(), path.as_os_str().as_bytes(), b"\0"].concat()
        })
        .collect()
    };
    let files_now = files(sockets);
    if files_now == files(known) {
        return;
    }
    let noted = match files_now.as_slice() {
        [] => fs::remove_file(note),
        some => fs::write(note, some),
    };
    if let Err(error) = noted {
        warn!(%error, "a supervisor that follows does not know of sockets that are left");
    }
}

/// The files of all that was noted.
pub fn noted(layout: &Layout) -> Vec<Noted> {
    let entries = fs::read_dir(layout.record("")).into_iter().flatten().flatten();
    let notes =
        entries.map(|entry| entry.path()).filter(|path| path.as_os_str().as_bytes().ends_with(SOCKETS.as_bytes()));
    notes.map(|note| Noted { files: read(&fs::read(&note).unwrap_or_default()), note }).collect()
}

/// What was noted of an app's sockets.
pub struct Noted {
    note: PathBuf,
    files: Vec<(PathBuf, FileId)>,
}

impl Noted {
    /// Removes the files of those that nobody has taken over.
    pub fn clear(self, taken: &[PathBuf]) {
        let left = self.files.iter().filter(|(path, _)| !taken.contains(path));
        let count = left.map(|(path, file)| held::remove_left(path, *file)).count();
        // Something else may be noted there by now.
        if count == self.files.len() && fs::read(&self.note).is_ok_and(|now| read(&now) == self.files) {
            let _ = fs::remove_file(self.note);
        }
    }
}

fn read(note: &[u8]) -> Vec<(PathBuf, FileId)> {
    let file = |line: &[u8]| {
        let mut words = line.splitn(3, |b| *b == b' ');
        let mut number = || std::str::from_utf8(words.next()?).ok()?.parse::<u64>().ok();
        let id = (number()?, number()?);
        Some((PathBuf::from(OsStr::from_bytes(words.next()?)), id))
    };
    note.split(|b| *b == 0).filter_map(file).collect()
}

/// Nobody serves there any more: a client shall hear so at once.
fn remove_files(gone: &[Arc<Held>]) {
    for (path, file) in gone.iter().filter_map(|held| held.path()) {
        held::remove(path, file);
    }
}

impl Supervisor {
    /// Starts a process once its app's sockets are held. Whoever comes while they are being bound waits for them:
    /// all of an app's processes serve on the same ones.
    pub fn with_sockets(&mut self, id: &SeatId, then: impl FnOnce(&mut Supervisor) + Send + 'static) {
        let Some((app, shell)) = self.apps.get(&id.app).zip(self.shells.get(&id.app)) else { return };
        if let Some(waiting) = self.binding.get_mut(&id.app) {
            return waiting.push((id.clone(), Box::new(then)));
        }
        let is_held = |(name, wanted): (&String, &Socket)| {
            shell.sockets.get(name).is_some_and(|held| held.socket == *wanted && held.file.is_none())
        };
        if app.spec().sockets.iter().all(is_held) && app.spec().sockets.len() == shell.sockets.len() {
            return then(self);
        }
        self.binding.insert(id.app.clone(), Vec::new());
        let (spec, held, id) = (Arc::clone(app.spec()), shell.sockets.clone(), id.clone());
        let others = self.left_by_others(&spec);
        let to = self.layout.sockets(&spec.name);
        self.files.run(
            move || {
                let sockets = bring_in_line(&spec, &held, &others)?;
                note(&to, &sockets, &held);
                let kept = |old: &&Arc<Held>| sockets.values().any(|new| new.socket.address == old.socket.address);
                remove_files(&held.values().filter(|old| !kept(old)).cloned().collect::<Vec<_>>());
                Ok::<_, String>(sockets)
            },
            move |supervisor, sockets| {
                let waiting = supervisor.binding.remove(&id.app).unwrap_or_default();
                match sockets {
                    Ok(sockets) => {
                        if let Some(shell) = supervisor.shells.get_mut(&id.app) {
                            shell.sockets = sockets;
                        }
                        then(supervisor);
                    }
                    Err(error) => supervisor.tell(&id, Happening::SpawnFailed(error)),
                }
                for (id, then) in waiting {
                    supervisor.with_sockets(&id, then);
                }
            },
        );
    }

    /// What other apps hold where this one is to serve: no two of a config do, so they leave it. A unix socket is a file
    /// of theirs, which goes with them.
    fn left_by_others(&self, app: &config::App) -> Vec<Arc<Held>> {
        let wanted = |held: &&Arc<Held>| {
            held.file.is_none() && app.sockets.values().any(|wanted| wanted.address == held.socket.address)
        };
        let others = self.shells.iter().filter(|(name, _)| **name != app.name);
        others.flat_map(|(_, shell)| shell.sockets.values()).filter(wanted).cloned().collect()
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

    /// Lets the sockets of an app go that rests: a client is refused at once, not left waiting.
    pub fn let_go_if_resting(&mut self, name: &AppName) {
        let rests = |app: &App| {
            app.runs().all(|run| matches!(run.instance.state(), State::Stopped | State::Failed { .. } | State::Done))
        };
        let Some(shell) = self.shells.get_mut(name).filter(|shell| !shell.sockets.is_empty()) else { return };
        if self.apps.get(name).is_none_or(|app| rests(app)) {
            // Those without a file are closed here: whoever hears that it rests is refused from then on.
            let mut gone: Vec<_> = std::mem::take(&mut shell.sockets).into_values().collect();
            gone.retain(|held| held.file.is_some());
            if !gone.is_empty() {
                let noted = self.layout.sockets(name);
                let work = move || {
                    remove_files(&gone);
                    let _ = fs::remove_file(noted);
                };
                self.files.run(work, |_, ()| ());
            }
        }
    }
}
