//! Another binary in the place of this one, as after a package's update: the same pid, and every process goes on.
//!
//! ```text
//! copy ─► prove ─► listeners finish ─► disk and store are done ─► execve ─► the next start adopts
//! ```
//! A binary that a client passes is copied to where root alone writes. Before anything is touched it has to prove
//! itself as a child: it reads the config and knows the version of the database. The sockets of `http`, `control.sock` and the
//! client's connection are handed on; held sockets of apps are taken back from their processes, as after a kill.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Read},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sha2::{Digest, Sha256};
use tracing::{error, info, warn};

use super::{
    Supervisor, control::ReplyTo, event::Event, jobs::JobId, ledger, listeners::Listener, settings, shutdown::Ending,
};
use crate::{
    domain::{
        api::{EventKind, Refusal, RefusalKind, Reply, Said, Saying},
        deploy::JobEnd,
        model::{AppName, Signal},
    },
    os::{
        channel::Channel,
        files, memfd, pidfd,
        replace::{self, Note},
        spawn::SpawnSpec,
    },
};

/// How the successor finds the connection of whoever asked for it, with the ticket of the question.
const CLIENT: &str = "client:";
/// And `control.sock`.
const CONTROL: &str = "control";
/// And a socket of `http`, with its address in the config.
pub const HTTP: &str = "http:";
/// What a binary begins its proof with.
const PROVEN: &str = "everhook ";
/// It has so long for that.
const PROOF: Duration = Duration::from_secs(10);
/// Listeners have so long to answer what they have heard.
const PATIENCE: Duration = Duration::from_secs(10);
/// No binary is larger.
const LARGEST: u64 = 256 << 20;
const LONGEST_PROOF: usize = 64 * 1024;

/// One that is under way.
pub struct Upgrade {
    program: PathBuf,
    reply: Option<ReplyTo>,
    client: Option<(String, OwnedFd)>,
    sockets: Sockets,
    stage: Stage,
    /// What the successor has to know.
    notes: Vec<(Note, String)>,
}

/// With a label each.
pub type Sockets = Vec<(String, Arc<OwnedFd>)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Proving,
    /// Listeners finish.
    Leaving,
    /// The disk has what was meant for it.
    Due,
}

impl Supervisor {
    /// Begins one. `binary`: the file to run, else the one that this was started from.
    ///
    /// # Errors
    /// When something is in its way.
    pub fn upgrade(&mut self, who: &str, binary: Option<OwnedFd>, reply: Option<ReplyTo>) -> Result<(), Refusal> {
        let in_its_way = [
            (self.upgrade.is_some(), "another upgrade is under way"),
            (self.is_ending(), "everhook is shutting down"),
            (self.reloading, "a reload is under way; ask again when it is over"),
            (!self.begun || self.coming.any(), "everhook is still starting; ask again in a moment"),
        ];
        if let Some((_, why)) = in_its_way.into_iter().find(|(is, _)| *is) {
            return Err(Refusal::new(RefusalKind::Unavailable, why));
        }
        let installed = self.me.program.clone();
        self.upgrade = Some(Upgrade { reply, ..Upgrade::new(installed.clone()) });
        info!(by = who, "an upgrade begins");
        self.note(EventKind::Supervisor, None, "upgrading", Some(who.to_owned()));
        let folder = self.layout.binaries();
        self.files.run(
            move || binary.map_or(Ok(installed), |binary| take_in(&folder, binary)),
            |supervisor, program| match program.and_then(|program| supervisor.prove(program)) {
                Ok(()) => {}
                Err(why) => supervisor.stays(&why),
            },
        );
        Ok(())
    }

    /// Has it prove itself.
    fn prove(&mut self, program: PathBuf) -> Result<(), String> {
        let text = |text: &[u8]| CString::new(text).map_err(|e| e.to_string());
        let config = text(self.config.path.as_os_str().as_bytes())?;
        let database = text(ledger::version().to_string().as_bytes())?;
        let args = vec![text(b"everhook")?, text(b"prove")?, config, database];
        let mut spec = SpawnSpec::new(text(program.as_os_str().as_bytes())?, args);
        // Secrets may stand in our environment.
        let env = std::env::vars_os().map(|(name, value)| text(&[name.as_bytes(), b"=", value.as_bytes()].concat()));
        spec.env = env.collect::<Result<_, _>>()?;
        let said = Arc::new(memfd::anonymous("proof").map_err(|e| e.to_string())?);
        spec.fds = vec![(Arc::clone(&self.me.null), 0), (Arc::clone(&said), 1), (Arc::clone(&said), 2)];
        spec.die_with_parent = true;
        let name: AppName = "everhook".parse().map_err(|_| "no name for its proof".to_owned())?;
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.program.clone_from(&program);
        }
        let job: JobId = self.start_command(&name, "everhook.prove".to_owned(), spec, move |supervisor, end| {
            let said = memfd::read_all(&said, LONGEST_PROOF).unwrap_or_default();
            match judge(&program, &end, &String::from_utf8_lossy(&said)) {
                Ok(version) => supervisor.leave(&version),
                Err(why) => supervisor.stays(&why),
            }
        });
        self.later(PROOF, move |supervisor| supervisor.kill_job(job));
        Ok(())
    }

    /// It is not to be: everything stays as it is.
    fn stays(&mut self, why: &str) {
        let Some(upgrade) = self.upgrade.take() else { return };
        error!("no upgrade, everything runs on as before: {why}");
        self.note(EventKind::Supervisor, None, "upgrade_refused", Some(why.to_owned()));
        if let Some(reply) = upgrade.reply {
            reply.say(Saying::Refused(Refusal::new(RefusalKind::Failed, why)));
        }
        // Whoever waits for our end must hear that it goes on.
        self.go_on_ending();
    }

    fn leave(&mut self, version: &str) {
        let Some(upgrade) = &mut self.upgrade else { return };
        info!("{version} takes over: {}", upgrade.program.display());
        let Some(reply) = upgrade.reply.take().filter(|reply| !reply.is_gone()) else { return self.finish_listeners() };
        let (events, label) = (self.events.clone(), format!("{CLIENT}{}", reply.ticket()));
        reply.hand_over(move |client| {
            let keep = move |supervisor: &mut Supervisor| {
                if let Some(upgrade) = &mut supervisor.upgrade {
                    upgrade.client = Some((label, client));
                }
                supervisor.finish_listeners();
            };
            let _ = events.send(Event::Then(Box::new(keep)));
        });
        // It may be gone by now, and then hands nothing over.
        self.later(Duration::from_secs(1), Supervisor::finish_listeners);
    }

    /// Has the listeners answer what they have heard. Whoever comes meanwhile waits in the socket's queue.
    fn finish_listeners(&mut self) {
        let sockets = self.handed_on();
        let Some(upgrade) = self.upgrade.as_mut().filter(|upgrade| upgrade.stage == Stage::Proving) else { return };
        (upgrade.stage, upgrade.sockets) = (Stage::Leaving, sockets);
        self.listeners.retain_mut(Listener::end);
        self.later(PATIENCE, |supervisor| {
            let leaving = supervisor.upgrade.as_ref().is_some_and(|upgrade| upgrade.stage == Stage::Leaving);
            for fd in supervisor.listeners.iter().filter(|_| leaving).filter_map(|l| l.keeper.pidfd.as_ref()) {
                let _ = pidfd::signal(fd, Signal::KILL);
            }
        });
        self.go_on_upgrading();
    }

    /// The sockets on which callers wait meanwhile.
    pub fn handed_on(&self) -> Sockets {
        let control = (CONTROL.to_owned(), Arc::clone(&self.control.socket));
        self.listeners.iter().filter_map(Listener::handed_on).chain([control]).collect()
    }

    /// Does what comes next, once the listeners are gone.
    pub fn go_on_upgrading(&mut self) {
        let left = self.listeners.is_empty();
        let Some(upgrade) = self.upgrade.as_mut().filter(|upgrade| left && upgrade.stage == Stage::Leaving) else {
            return;
        };
        upgrade.stage = Stage::Due;
        self.files.run(
            || (),
            |supervisor, ()| {
                if supervisor.upgrade.is_some() {
                    supervisor.ending = Some(Ending::Done);
                }
            },
        );
    }

    /// Tells how the upgrade went that made this process what it is.
    pub fn tell_upgraded(&mut self) {
        if !replace::is_successor() {
            return;
        }
        let message = format!("everhook {} runs in its place, pid {}", env!("CARGO_PKG_VERSION"), self.me.pid);
        let saying = if let Some(why) = Note::NotReplaced.left() {
            error!("no upgrade, the binary of before runs again: {why}");
            self.note(EventKind::Supervisor, None, "upgrade_refused", Some(why.clone()));
            Saying::Refused(Refusal::new(RefusalKind::Failed, why))
        } else if let Some(why) = Note::Panicked.left() {
            warn!("{message}, begun anew after a panic");
            self.note(EventKind::Supervisor, None, "panicked", Some(why.clone()));
            Saying::Refused(Refusal::new(RefusalKind::Failed, why))
        } else {
            info!("{message}");
            self.note(EventKind::Supervisor, None, "upgraded", Some(message.clone()));
            Saying::Done(Reply::Changed { app: None, deploy: None, message })
        };
        if let Some((ticket, client)) = self.asked_for_us.take() {
            let mut channel = Channel::new(client);
            channel.queue(&Said { ticket, what: saying }, &[], None);
            // Whoever is gone hears nothing.
            let _ = channel.flush();
        }
        let (folder, ours) = (self.layout.binaries(), self.me.program.clone());
        self.files.run(move || forget_others(&folder, &ours), |_, ()| ());
    }
}

impl Upgrade {
    fn new(program: PathBuf) -> Self {
        Self { program, reply: None, client: None, sockets: Vec::new(), stage: Stage::Proving, notes: Vec::new() }
    }

    /// One that is to be executed at once.
    #[must_use]
    pub fn at_once(program: PathBuf, sockets: Sockets, notes: Vec<(Note, String)>) -> Self {
        Self { sockets, stage: Stage::Due, notes, ..Self::new(program) }
    }

    /// Has the successor know this.
    pub fn note(&mut self, note: Note, what: Option<String>) {
        self.notes.extend(what.map(|what| (note, what)));
    }

    /// May this process end for it?
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.stage == Stage::Due
    }

    /// Tells whoever asked that it comes to nothing.
    pub fn refuse(self, why: &str) {
        if let Some(reply) = self.reply {
            reply.say(Saying::Refused(Refusal::new(RefusalKind::Unavailable, why)));
        }
    }

    /// Executes it. Where that fails, which it has proven not to, the binary that runs does so once more.
    #[must_use]
    pub fn execute(self) -> String {
        let sockets = self.sockets.into_iter().filter_map(|(label, fd)| Some((label, fd.try_clone().ok()?)));
        let keep: Vec<(String, OwnedFd)> = sockets.chain(self.client).collect();
        let error = replace::replace(&self.program, &keep, &self.notes);
        let why = format!("{} cannot be executed: {error}", self.program.display());
        let mut notes = self.notes;
        notes.push((Note::NotReplaced, why.clone()));
        let again = replace::replace(Path::new("/proc/self/exe"), &keep, &notes);
        format!("{why}; and neither can the binary of before: {again}")
    }
}

/// What the process before this one handed on.
#[derive(Default)]
pub struct Inheritance {
    /// By the address in the config.
    pub sockets: Vec<(String, OwnedFd)>,
    pub control: Option<OwnedFd>,
    pub client: Option<(u64, OwnedFd)>,
}

impl Inheritance {
    #[must_use]
    pub fn take() -> Self {
        let mut all = Self::default();
        for (label, fd) in replace::kept() {
            if let Some(address) = label.strip_prefix(HTTP) {
                all.sockets.push((address.to_owned(), fd));
            } else if let Some(ticket) = label.strip_prefix(CLIENT).and_then(|ticket| ticket.parse().ok()) {
                all.client = Some((ticket, fd));
            } else if label == CONTROL {
                all.control = Some(fd);
            }
        }
        all
    }
}

/// `everhook prove CONFIG VERSION`: would a start with this config and a database of this version go well?
///
/// # Errors
/// Why not.
pub fn prove(config: &Path, database: &str) -> Result<String, String> {
    settings::read(config)?.strict()?;
    let known = ledger::version();
    if database.parse::<usize>().is_ok_and(|found| found > known) {
        return Err(format!("it knows databases up to version {known}, and the one here is of version {database}"));
    }
    Ok(format!("{PROVEN}{}", env!("CARGO_PKG_VERSION")))
}

fn judge(program: &Path, end: &JobEnd, said: &str) -> Result<String, String> {
    let program = program.display();
    if let Some(error) = &end.error {
        return Err(format!("{program} cannot be run: {error}"));
    }
    let line = said.lines().next_back().unwrap_or_default().trim();
    match (end.exit.success(), line.starts_with(PROVEN)) {
        (true, true) => Ok(line.to_owned()),
        (true, false) => Err(format!("{program} is no everhook that can take over")),
        (false, _) if said.trim().is_empty() => Err(format!("{program} has not proven itself: {}", end.exit)),
        (false, _) => Err(format!("{program} has not proven itself: {}", said.trim())),
    }
}

/// Copies a binary to where nobody else can change it.
fn take_in(folder: &Path, binary: OwnedFd) -> Result<PathBuf, String> {
    let failed = |e: io::Error| format!("the binary cannot be copied to {}: {e}", folder.display());
    let mut bytes = Vec::new();
    File::from(binary).take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LARGEST {
        return Err("no binary of everhook is that large".to_owned());
    }
    let digest = Sha256::digest(&bytes);
    let name: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    fs::create_dir_all(folder).map_err(failed)?;
    let path = folder.join(format!("everhook-{name}"));
    files::write_durably(&path, &bytes, 0o755).map_err(failed)?;
    Ok(path)
}

/// Copies of before that run no more.
fn forget_others(folder: &Path, ours: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path() != ours {
            let _ = fs::remove_file(entry.path());
        }
    }
}
