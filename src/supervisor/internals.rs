//! The processes that everhook itself is made of: the logger, and the listeners of `listeners`. They
//! are started from the running binary, restarted at once, then after 10 ms doubling to 1 s, and
//! never given up.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::{
    Supervisor,
    children::Owner,
    event::{Event, Events},
    launch,
    ledger::{Command, NewEvent},
    prepare::{Ids, OwnUsers},
};
use crate::{
    domain::{
        api::{EventKind, FromLogger, InstanceState, Sink, Stream, ToLogger},
        config::{Config, Identity},
        model::{At, Exit, InstanceId, Veil},
    },
    os::{
        channel::Channel,
        fifo, identity, memfd,
        notes::Notes,
        spawn::{RecordFile, SpawnError, SpawnSpec, Spawned},
        watched::Watched,
    },
};

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A process that lived this long was well.
pub const WELL: Duration = Duration::from_secs(10);

/// The life of an internal process.
pub struct Keeper {
    pub pid: Option<u32>,
    pub pidfd: Option<OwnedFd>,
    pub restarts: u64,
    pub state: InstanceState,
    /// Why it does not run.
    pub reason: Option<String>,
    started: Option<Instant>,
    pause: Duration,
    /// It may end now.
    pub ending: bool,
}

impl Default for Keeper {
    fn default() -> Self {
        Self {
            pid: None,
            pidfd: None,
            restarts: 0,
            state: InstanceState::Stopped,
            reason: None,
            started: None,
            pause: Duration::ZERO,
            ending: false,
        }
    }
}

impl Keeper {
    pub fn runs(&mut self, spawned: Spawned) {
        self.pid = Some(spawned.pid);
        self.pidfd = Some(spawned.pidfd);
        self.state = InstanceState::Ready;
        self.reason = None;
        self.started = Some(Instant::now());
    }

    /// How long to wait before the next start; `None`: it may rest.
    pub fn ended(&mut self, why: &str) -> Option<Duration> {
        self.pid = None;
        self.pidfd = None;
        if self.ending {
            self.state = InstanceState::Stopped;
            return None;
        }
        self.restarts += 1;
        self.state = InstanceState::Backoff;
        self.reason = Some(why.to_owned());
        if self.started.take().is_some_and(|at| at.elapsed() >= WELL) {
            self.hurry();
        }
        Some(self.next_pause(LONGEST_PAUSE))
    }

    /// How long to wait now, twice as long as the last time.
    pub fn next_pause(&mut self, longest: Duration) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).clamp(FIRST_PAUSE, longest);
        pause
    }

    /// The next try comes at once.
    pub fn hurry(&mut self) {
        self.pause = Duration::ZERO;
    }
}

/// The logger.
#[derive(Default)]
pub struct Logger {
    pub keeper: Keeper,
    pub run: u64,
    to: Option<mpsc::UnboundedSender<Outgoing>>,
    /// Where runs are marked without waking it, and whether some were since it was last told to look.
    marks: Option<Notes>,
    marked: bool,
    /// Said when there is one again.
    waiting: Vec<Outgoing>,
    echo: bool,
    /// What it hides in the logs of deploys.
    veil: Veil,
}

struct Outgoing {
    message: ToLogger,
    fds: Vec<OwnedFd>,
}

impl Logger {
    #[must_use]
    pub fn new(echo: bool, veil: Veil) -> Self {
        Self { echo, veil, ..Self::default() }
    }

    /// Has it hide this in the logs of deploys, and nothing else.
    pub fn set_veil(&mut self, veil: Veil) {
        if self.veil != veil {
            self.veil = veil;
            self.tell_veil();
        }
    }

    fn tell_veil(&self) {
        match memfd::holding("everhook-veil", self.veil.pack().expose()) {
            Ok(fd) => self.tell(ToLogger::Veil, Some(fd)),
            Err(error) => error!(%error, "the logger cannot be told which secrets it hides"),
        }
    }

    /// Repeats what it captures on our own stdout, or not.
    pub fn set_echo(&mut self, on: bool) {
        if self.echo != on {
            self.echo = on;
            self.tell_echo();
        }
    }

    fn tell_echo(&self) {
        self.tell(ToLogger::Echo { on: self.echo }, None);
    }

    /// Is there no process, nor one being started?
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.keeper.pid.is_none() && self.keeper.state != InstanceState::Starting
    }

    #[must_use]
    pub fn is_there(&self) -> bool {
        self.to.is_some()
    }

    /// Says something to the logger; lost while there is none, since the next one is told everything.
    pub fn tell(&self, message: ToLogger, fds: impl IntoIterator<Item = OwnedFd>) {
        if let Some(to) = &self.to {
            let _ = to.send(Outgoing { message, fds: fds.into_iter().collect() });
        }
    }

    /// A run of this instance is about to begin: everything that stands in its FIFOs belongs to the run before.
    /// The program must not start before the end of this pipe, where there is one.
    ///
    /// Of FIFOs that are `empty` the logger has all of the run before, so that the program need not wait for it,
    /// nor the logger wake up: see `heed_marks` there.
    pub fn mark(&mut self, instance: &InstanceId, at: At, empty: bool) -> Option<Arc<OwnedFd>> {
        let to = self.to.as_ref()?;
        let message = ToLogger::Mark { source: instance.to_string(), at };
        if empty && self.marks.as_ref().is_some_and(|marks| marks.put(&message).is_ok()) {
            self.marked = true;
            return None;
        }
        let (ours, theirs) = std::io::pipe().ok()?;
        let _ = to.send(Outgoing { message, fds: vec![theirs.into()] });
        Some(Arc::new(ours.into()))
    }

    /// Has it note the runs that were marked, when nothing waits for a processor any more.
    pub fn look_at_marks(&mut self) {
        if std::mem::take(&mut self.marked) {
            self.tell(ToLogger::Look, None);
        }
    }

    fn begin_marks(&mut self) {
        self.marks = match Notes::pair() {
            Ok((ours, theirs)) => {
                self.tell(ToLogger::Marks, Some(theirs));
                Some(ours)
            }
            Err(error) => {
                error!(%error, "programs wait for the logger at each start");
                None
            }
        };
    }

    /// Says it to this logger, or to the next one.
    pub fn tell_any(&mut self, message: ToLogger, fd: OwnedFd) {
        match &self.to {
            Some(_) => self.tell(message, Some(fd)),
            None => self.waiting.push(Outgoing { message, fds: vec![fd] }),
        }
    }

    /// Captures what is written to these FIFOs from now on. While there is no logger nothing need be said.
    pub fn open<'a>(&self, source: &str, outputs: impl IntoIterator<Item = (Stream, &'a OwnedFd, Sink)>) {
        if self.to.is_none() {
            return;
        }
        let (mut sinks, mut fds) = (Vec::new(), Vec::new());
        for (stream, output, sink) in outputs {
            match fifo::read_end(output) {
                Ok(fd) => {
                    sinks.push((stream, sink));
                    fds.push(fd);
                }
                Err(error) => error!(%source, stream = stream.as_str(), %error, "output is not captured"),
            }
        }
        self.tell(ToLogger::Open { source: source.to_owned(), sinks }, fds);
    }

    /// Captures it no more.
    pub fn close(&self, source: &str) {
        self.tell(ToLogger::Close { source: source.to_owned() }, None);
    }

    /// Says what must not be lost, once everything is captured.
    pub fn go_on(&mut self) {
        for Outgoing { message, fds } in std::mem::take(&mut self.waiting) {
            self.tell(message, fds);
        }
    }
}

impl Supervisor {
    /// How to start one of everhook's own processes; not under root it is who everhook is.
    pub fn internal_spec(
        &self,
        args: &[String],
        user: impl FnOnce(OwnUsers) -> Ids,
    ) -> Result<SpawnSpec, launch::Unfit> {
        let (uid, gid) = self.maker.own_users.map_or((self.me.uid, self.me.uid), user);
        let who = Identity { uid, gid, groups: Vec::new(), name: None, home: "/".into(), shell: "/bin/sh".into() };
        let env = [("PATH", launch::PATH), ("LANG", "C.UTF-8")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        let mut words = vec!["everhook".to_owned()];
        words.extend_from_slice(args);
        let mut spec = launch::spec(&words, &env.into(), &who, self.me.root)?;
        spec.no_new_privs = true;
        spec.capabilities = self.me.root.then_some(0);
        spec.umask = 0o027;
        Ok(spec)
    }

    /// The same for one that ends with us and hears outsiders: it has so many descriptors, writes no large file,
    /// and finds this socket as descriptor 3.
    pub fn outward_spec(
        &self,
        args: &[String],
        user: impl FnOnce(OwnUsers) -> Ids,
        descriptors: u64,
        socket: Arc<OwnedFd>,
    ) -> Result<SpawnSpec, launch::Unfit> {
        let mut spec = self.internal_spec(args, user)?;
        spec.die_with_parent = true;
        spec.rlimits = vec![
            (libc::RLIMIT_NOFILE, descriptors, descriptors),
            (libc::RLIMIT_CORE, 0, 0),
            (libc::RLIMIT_FSIZE, 64 << 20, 64 << 20),
        ];
        spec.fds = vec![
            (Arc::clone(&self.me.null), 0),
            (Arc::clone(&self.me.stderr), 1),
            (Arc::clone(&self.me.stderr), 2),
            (socket, 3),
        ];
        Ok(spec)
    }

    pub fn start_logger(&mut self) {
        let path = |path: PathBuf| path.display().to_string();
        let (buffer, logs) = (path(self.layout.buffer()), path(self.layout.logs()));
        let args = ["logger", "--buffer", &buffer, "--logs", &logs].map(str::to_owned);
        let started =
            self.internal_spec(&args, |users| users.logger).map_err(|e| e.to_string()).and_then(|mut spec| {
                let (ours, theirs) = Channel::pair().map_err(|e| e.to_string())?;
                let record = self.record_file("logger").map_err(|e| e.to_string())?;
                spec.fds = vec![
                    (Arc::clone(&self.me.null), 0),
                    (Arc::clone(&self.me.stdout), 1),
                    (Arc::clone(&self.me.stderr), 2),
                    (Arc::new(theirs), 3),
                ];
                spec.record =
                    Some(RecordFile { file: Arc::new(record), everhook_boot: self.me.boot.clone(), started_as: None });
                Ok((ours, spec))
            });
        self.logger.keeper.state = InstanceState::Starting;
        match started {
            Ok((ours, spec)) => {
                self.logger.run += 1;
                let (to, outbox) = mpsc::unbounded_channel();
                self.logger.to = Some(to);
                self.logger.begin_marks();
                self.logger.tell_veil();
                // Before it reads anything, as what it has read by then is not shown.
                self.logger.tell_echo();
                tokio::spawn(speak_to_logger(ours, outbox, self.events.clone(), self.logger.run));
                self.capture_everything();
                self.logger.go_on();
                self.spawn(Owner::Logger, spec);
            }
            Err(error) => self.logger_stumbles(&error),
        }
    }

    pub fn logger_spawned(&mut self, result: Result<Spawned, SpawnError>) {
        match result {
            Ok(spawned) => {
                info!(pid = spawned.pid, "the logger runs");
                self.logger.keeper.runs(spawned);
                self.note(EventKind::Logger, None, "ready", None);
            }
            Err(error) => self.logger_stumbles(&error.to_string()),
        }
    }

    pub fn logger_exited(&mut self, exit: Exit) {
        if self.logger.keeper.ending {
            self.logger.to = None;
            self.logger.keeper.ended("");
            self.go_on_ending();
        } else {
            self.logger_stumbles(&exit.to_string());
        }
    }

    fn logger_stumbles(&mut self, why: &str) {
        self.logger.to = None;
        self.forget_questions();
        let pause = self.logger.keeper.ended(why);
        self.note(EventKind::Logger, Some("ready"), "backoff", Some(why.to_owned()));
        warn!("the logger: {why}");
        if let Some(pause) = pause {
            self.later(pause, |supervisor| {
                if !supervisor.logger.keeper.ending {
                    supervisor.start_logger();
                }
            });
        }
    }

    /// An event of everhook's own.
    pub fn note(&mut self, kind: EventKind, from: Option<&str>, to: &str, cause: Option<String>) {
        self.ledger.send(Command::Event(NewEvent {
            at: crate::os::clock::now().wall,
            app: None,
            instance: None,
            kind,
            from: from.map(str::to_owned),
            to: Some(to.to_owned()),
            cause,
            detail: None,
        }));
    }

    /// Does something in the loop after a while; at once for no time.
    pub fn later(&mut self, pause: Duration, then: impl FnOnce(&mut Supervisor) + Send + 'static) {
        if pause.is_zero() {
            return then(self);
        }
        let events = self.events.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let _ = events.send(Event::Then(Box::new(then)));
        });
    }
}

/// Is apps' output repeated on our own stdout?
#[must_use]
pub fn echoes(config: &Config) -> bool {
    config.echo.unwrap_or_else(|| identity::is_pid_one() || std::io::IsTerminal::is_terminal(&std::io::stdout()))
}

/// Carries messages both ways until the logger is gone.
async fn speak_to_logger(channel: Channel, mut outbox: mpsc::UnboundedReceiver<Outgoing>, events: Events, run: u64) {
    let Ok(mut channel) = Watched::new(channel) else { return };
    loop {
        tokio::select! {
            out = outbox.recv() => match out {
                Some(out) => {
                    channel.queue(&out.message, &[], out.fds);
                    if channel.flush().is_err() {
                        return;
                    }
                }
                None => return,
            },
            frame = channel.next() => match frame {
                Ok(frame) => {
                    if let Ok(message) = frame.message::<FromLogger>() {
                        let _ = events.send(Event::Logger { run, message });
                    }
                }
                Err(_) => return,
            }
        }
    }
}
