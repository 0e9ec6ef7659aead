//! The processes that hear HTTP, one an `http` entry. The socket is held here, whatever happens to the
//! process: nobody is refused meanwhile. An address that cannot be had keeps nothing else from running:
//! it is tried again until it is free; only a reload refuses one that it would have to bind anew.

use std::{io, net::SocketAddr, os::fd::OwnedFd, sync::Arc, time::Duration};

use ipnet::IpNet;
use tracing::{error, info, warn};

use super::{
    Supervisor,
    certificates::{self, Certificates},
    children::Owner,
    control,
    internals::{Keeper, WELL},
    ledger::Command,
    upgrade::HTTP,
};
use crate::{
    domain::{
        api::{EventKind, InstanceState},
        config::{Http, Plan, Serve, overlap},
        model::{Exit, Pair, Signal},
    },
    os::{
        channel::Channel,
        limits, pidfd, socket,
        spawn::{SpawnError, SpawnSpec, Spawned},
    },
};

/// Descriptors of a listener: a connection each. Fewer where everhook itself may have no more.
const DESCRIPTORS: u64 = 16 * 1024;
/// Between two tries to have an address.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// One `http` entry.
pub struct Listener {
    entry: Http,
    /// With port 0 resolved; `None`: it cannot be had, and the keeper knows why.
    socket: Option<(Arc<OwnedFd>, SocketAddr)>,
    pub keeper: Keeper,
    /// How often it was tried to have the address: a try that was planned before the last one is none.
    tries: u64,
    /// To its process, where that serves HTTPS.
    certificate: Option<Channel>,
    /// Names its channels in the ledger; never used twice.
    pub number: usize,
}

impl Listener {
    /// Not bound yet.
    #[must_use]
    pub fn new(entry: Http, number: usize) -> Self {
        Self { entry, socket: None, keeper: Keeper::default(), tries: 0, certificate: None, number }
    }

    /// With the socket that the process before this one has handed on.
    #[must_use]
    pub fn taking(mut self, sockets: &mut Vec<(String, OwnedFd)>) -> Self {
        let bind = self.entry.bind.to_string();
        if let Some(at) = sockets.iter().position(|(address, _)| *address == bind) {
            let (_, socket) = sockets.remove(at);
            self.socket = socket::bound_tcp(&socket).ok().map(|address| (Arc::new(socket), address));
        }
        self
    }

    /// For the process that takes our place.
    #[must_use]
    pub fn handed_on(&self) -> Option<(String, Arc<OwnedFd>)> {
        let (socket, _) = self.socket.as_ref().filter(|_| !self.keeper.ending)?;
        Some((format!("{HTTP}{}", self.entry.bind), Arc::clone(socket)))
    }

    /// Binds the socket where it is not held.
    ///
    /// # Errors
    /// Names the address, and its place in the config.
    fn bind(&mut self) -> Result<(), String> {
        if self.socket.is_some() {
            return Ok(());
        }
        let bind = self.entry.bind;
        let (socket, address) = socket::listen_tcp(bind).map_err(|error| {
            let why = match error.kind() {
                io::ErrorKind::AddrInUse => "somebody else listens there".to_owned(),
                io::ErrorKind::PermissionDenied if bind.port() < 1024 => {
                    format!("{error}; a port below 1024 is root's, or needs the capability NET_BIND_SERVICE")
                }
                _ => error.to_string(),
            };
            self.refused(&why)
        })?;
        self.socket = Some((Arc::new(socket), address));
        // What follows has nothing to do with how long this took.
        self.keeper.hurry();
        Ok(())
    }

    fn refused(&self, why: &str) -> String {
        let place = self.entry.place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default();
        format!("cannot listen on {}: {why}{place}", self.entry.bind)
    }

    #[must_use]
    pub fn is_bound(&self) -> bool {
        self.socket.is_some()
    }

    /// The address really bound, else that of the config.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.socket.as_ref().map_or(self.entry.bind, |(_, address)| *address)
    }

    /// The words of SURFACE.md section 4, and of the listener's command line.
    #[must_use]
    pub fn serve(&self) -> Vec<&'static str> {
        self.entry.serve.iter().map(|serve| serve.word()).collect()
    }

    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.entry.tls.is_some() { "https" } else { "http" }
    }

    /// Lets its process leave; true if there is one, or one is being started.
    pub fn end(&mut self) -> bool {
        self.keeper.ending = true;
        if let Some(fd) = &self.keeper.pidfd {
            let _ = pidfd::signal(fd, Signal::TERM);
        }
        let leaves = self.keeper.pid.is_some() || self.keeper.state == InstanceState::Starting;
        if self.keeper.pid.is_some() {
            self.keeper.state = InstanceState::Stopping;
        }
        leaves
    }

    /// Is it the one of this entry, and does it stay?
    fn serves(&self, entry: &Http) -> bool {
        !self.keeper.ending && self.entry == *entry
    }
}

fn descriptors() -> u64 {
    limits::files().unwrap_or(DESCRIPTORS).min(DESCRIPTORS)
}

/// Binds what is new. A changed entry keeps its socket, or goes on waiting for it, and one that comes
/// back while its process still leaves takes it over; port 0 is another port each time.
///
/// # Errors
/// As [`Listener::bind`].
pub fn bind_new(plan: &Plan, held: &[Listener]) -> Result<Vec<Listener>, String> {
    let mut taken = Vec::new();
    let mut holder = |old: &Http| {
        let found = held.iter().find(|listener| listener.serves(old) && !taken.contains(&listener.number))?;
        taken.push(found.number);
        Some(found)
    };
    let changed: Vec<_> = plan.listeners_changed.iter().map(|(old, new)| (new, holder(old))).collect();
    let at = |bind: SocketAddr| held.iter().find(move |listener| listener.entry.bind == bind && listener.is_bound());
    let returns = |entry: &Http| at(entry.bind).filter(|_| entry.bind.port() != 0);
    let added = plan.listeners_added.iter().map(|entry| (entry, returns(entry)));
    let bound = |(entry, holder): (&Http, Option<&Listener>)| {
        let mut listener = Listener::new(entry.clone(), 0);
        match holder {
            Some(held) => listener.socket.clone_from(&held.socket),
            None => {
                let ours = held.iter().find(|held| held.is_bound() && overlap(held.address(), entry.bind));
                if let Some(ours) = ours {
                    let fix = "reload without any entry of this port first";
                    return Err(listener.refused(&format!("everhook itself still does on {}: {fix}", ours.address())));
                }
                listener.bind()?;
            }
        }
        Ok(listener)
    };
    changed.into_iter().chain(added).map(bound).collect()
}

impl Supervisor {
    /// Starts the process of an entry, once it has its socket.
    pub fn start_listener(&mut self, number: usize) {
        let Some(listener) = self.listeners.iter_mut().find(|l| l.number == number) else { return };
        let certificate = listener.entry.tls.as_ref().map(|tls| self.certificates.of(tls)).transpose();
        let certificate = match certificate {
            Ok(certificate) => certificate,
            Err(why) => {
                let why = format!("cannot serve HTTPS on {}: {why}", listener.address());
                return self.listener_fails(number, &why, "it is served once that is mended");
            }
        };
        if let Err(error) = listener.bind() {
            return self.listener_waits(number, &error);
        }
        listener.keeper.state = InstanceState::Starting;
        match self.listener_spec(number, certificate.as_deref()) {
            Ok((spec, channel)) => {
                if let Some(listener) = self.listeners.iter_mut().find(|l| l.number == number) {
                    listener.certificate = channel;
                }
                self.spawn(Owner::Listener(number), spec);
            }
            Err(error) => self.listener_stumbles(number, &error),
        }
    }

    /// How to start a bound one, and the channel of its certificate; the others are told to those who hear them.
    fn listener_spec(&self, number: usize, certificate: Option<&Pair>) -> Result<(SpawnSpec, Option<Channel>), String> {
        let listener = self.listeners.iter().find(|l| l.number == number);
        let (listener, (socket, _)) = listener.and_then(|l| Some((l, l.socket.as_ref()?))).ok_or("it has no socket")?;
        let networks = |list: &[IpNet]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut args = vec!["listener".to_owned(), "--serve".to_owned(), listener.serve().join(",")];
        args.extend(["--trust".to_owned(), networks(&listener.entry.trusted)]);
        if let Some(allow) = &listener.entry.allow {
            args.extend(["--allow".to_owned(), networks(allow)]);
        }
        if certificate.is_some() {
            args.push("--tls".to_owned());
        }
        let spec = self.outward_spec(&args, |users| users.listener, descriptors(), Arc::clone(socket));
        let mut spec = spec.map_err(|e| e.to_string())?;
        for (serve, fd) in listener.entry.serve.iter().zip(4..) {
            let pair = if *serve == Serve::Hooks { Channel::wide_pair() } else { Channel::pair() };
            let (ours, theirs) = pair.map_err(|e| e.to_string())?;
            spec.fds.push((Arc::new(theirs), fd));
            match serve {
                Serve::Hooks => self.ledger.send(Command::Channel { listener: number, channel: ours }),
                Serve::Api => control::people(ours, self.events.clone()),
                Serve::Metrics => control::metrics(ours, self.events.clone()),
            }
        }
        let mut certificates = None;
        if let Some(pair) = certificate {
            let (mut ours, theirs) = Channel::pair().map_err(|e| e.to_string())?;
            certificates::hand_over(&mut ours, pair).map_err(|e| e.to_string())?;
            spec.fds.push((Arc::new(theirs), 4 + i32::try_from(listener.entry.serve.len()).unwrap_or(0)));
            certificates = Some(ours);
        }
        Ok((spec, certificates))
    }

    pub fn listener_spawned(&mut self, number: usize, result: Result<Spawned, SpawnError>) {
        match result {
            Ok(spawned) => {
                let Some(listener) = self.listeners.iter_mut().find(|l| l.number == number) else { return };
                info!(pid = spawned.pid, bind = %listener.address(), "a listener runs");
                let missed = listener.keeper.reason.is_some() && listener.entry.serve.contains(&Serve::Hooks);
                listener.keeper.runs(spawned);
                if listener.keeper.ending {
                    listener.end();
                    return;
                }
                let restarts = listener.keeper.restarts;
                self.note(EventKind::Listener, None, "ready", None);
                if missed {
                    self.later(WELL, move |supervisor| supervisor.make_up_for_outage(number, restarts));
                }
            }
            Err(error) => self.listener_stumbles(number, &error.to_string()),
        }
    }

    /// Whoever called while there was no listener may not try again. Once it is well, the branches say
    /// what was missed.
    fn make_up_for_outage(&mut self, number: usize, restarts: u64) {
        let keeper = self.listeners.iter().find(|l| l.number == number).map(|listener| &listener.keeper);
        let well = keeper.is_some_and(|keeper| keeper.state == InstanceState::Ready && keeper.restarts == restarts);
        if well && !self.is_ending() {
            for app in self.apps.keys().cloned().collect::<Vec<_>>() {
                self.look_for_news(&app);
            }
        }
    }

    pub fn listener_exited(&mut self, number: usize, exit: Exit) {
        self.listener_stumbles(number, &exit.to_string());
    }

    fn listener_stumbles(&mut self, number: usize, why: &str) {
        let Some(listener) = self.listeners.iter_mut().find(|l| l.number == number) else { return };
        let Some(pause) = listener.keeper.ended(why) else {
            self.listeners.retain(|l| l.number != number);
            return self.go_on_ending();
        };
        warn!(bind = %listener.address(), "a listener: {why}");
        self.note(EventKind::Listener, Some("ready"), "backoff", Some(why.to_owned()));
        self.later(pause, move |supervisor| supervisor.start_listener(number));
    }

    /// Its address cannot be had: it is tried again, and what was said already is not said again.
    fn listener_waits(&mut self, number: usize, why: &str) {
        let Some(listener) = self.listeners.iter_mut().find(|l| l.number == number) else { return };
        listener.tries += 1;
        let (tries, pause) = (listener.tries, listener.keeper.next_pause(LONGEST_WAIT));
        self.listener_fails(number, why, "it is tried again until it can be had");
        self.later(pause, move |supervisor| {
            if supervisor.listeners.iter().any(|l| l.number == number && l.tries == tries && !l.is_bound()) {
                supervisor.start_listener(number);
            }
        });
    }

    /// It cannot be served now. What was said already is not said again.
    fn listener_fails(&mut self, number: usize, why: &str, then: &str) {
        let Some(listener) = self.listeners.iter_mut().find(|l| l.number == number) else { return };
        listener.keeper.state = InstanceState::Failed;
        if listener.keeper.reason.replace(why.to_owned()).as_deref() != Some(why) {
            error!("{why}; {then}, and everything else runs");
            self.note(EventKind::Listener, None, "failed", Some(why.to_owned()));
        }
    }

    /// What kept them from being served may be gone.
    pub fn start_failed_listeners(&mut self) {
        let failed = |listener: &&mut Listener| listener.keeper.state == InstanceState::Failed;
        let mut due: Vec<_> = self.listeners.iter_mut().filter(failed).collect();
        due.iter_mut().for_each(|listener| listener.keeper.hurry());
        let due: Vec<_> = due.iter().map(|listener| listener.number).collect();
        due.into_iter().for_each(|number| self.start_listener(number));
    }

    /// Serves with these from now on. Processes that run go on, and so do their connections.
    pub fn take_certificates(&mut self, new: Certificates) {
        let old = std::mem::replace(&mut self.certificates, new);
        for listener in &mut self.listeners {
            let Some(tls) = &listener.entry.tls else { continue };
            let Ok(pair) = self.certificates.of(tls) else { continue };
            let Some(channel) = listener.certificate.as_mut().filter(|_| old.of(tls).as_ref() != Ok(&pair)) else {
                continue;
            };
            match certificates::hand_over(channel, &pair) {
                Ok(()) => info!(bind = %listener.address(), until = %pair.until(), "a new certificate"),
                // It gets the new one when it is started again.
                Err(error) => warn!(bind = %listener.address(), %error, "a listener takes no new certificate"),
            }
        }
    }

    /// Carries out what a reload means for listeners: `new` is bound, or waits.
    pub fn change_listeners(&mut self, plan: &Plan, new: Vec<Listener>) {
        let changed = plan.listeners_changed.iter().map(|(old, _)| old);
        let mut gone: Vec<&Http> = plan.listeners_removed.iter().chain(changed).collect();
        self.listeners.retain_mut(|listener| match gone.iter().position(|old| listener.serves(old)) {
            Some(at) => {
                gone.remove(at);
                listener.end()
            }
            None => true,
        });
        // Whoever reloads may just have made room.
        self.start_failed_listeners();
        let mut due = Vec::new();
        for mut listener in new {
            listener.number = usize::try_from(self.ticket()).unwrap_or(usize::MAX);
            due.push(listener.number);
            self.listeners.push(listener);
        }
        // In the order of the config, by which a successor finds the sockets of those whose ports the kernel chose.
        let entries = Arc::clone(&self.config);
        self.listeners.sort_by_key(|one| entries.http.iter().position(|entry| one.serves(entry)).unwrap_or(usize::MAX));
        due.into_iter().for_each(|number| self.start_listener(number));
    }
}
