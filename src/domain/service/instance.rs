//! One running copy of an app as a state machine. How it becomes ready and stays well: [`health`]; how a run
//! ends and what follows: [`end`].

use std::time::{Duration, Instant};

use super::{backoff::Backoff, survivor::Survivor};
use crate::domain::{
    config::{self, Ready},
    model::{At, Exit, Now, Progress, Signal, show_span},
};

mod end;
mod health;
mod reload;

use reload::Reloading;

/// Why a process is ready that nobody has started.
const ADOPTED: &str = "adopted: it has outlived the supervisor that started it";
/// After KILL, KILL again this often until the tree is empty: a tree may fork faster than it is read.
const KILL_AGAIN: Duration = Duration::from_secs(1);

/// Where an instance is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Stopped,
    Waiting,
    /// `pid` is `None` until the spawner has answered; `until`: ready then (`After`), or given up then.
    Starting {
        pid: Option<u32>,
        until: Option<Instant>,
    },
    Ready {
        pid: u32,
        since: Instant,
        /// It is taking another release.
        reload: Option<Box<Reloading>>,
    },
    /// Boxed like `reload` above, as both are rare, and apps may be many.
    Stopping(Box<Stopping>),
    Backoff {
        until: Instant,
    },
    Failed {
        retry: Option<Instant>,
    },
    Done,
}

/// An end under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopping {
    main: Main,
    /// Index into the stages of `stop`; beyond them KILL has been sent.
    stage: usize,
    until: Instant,
    then: Then,
    /// Another one has taken over: it may finish what it has begun.
    drains: bool,
    /// The turn of the command that asks it to leave, while that runs.
    asks: Option<u64>,
}

/// The main process of a tree that is being ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Main {
    /// The spawner has not answered.
    Spawning,
    Alive(u32),
    Gone,
}

/// What comes when the tree is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Then {
    Rest,
    StartAgain {
        cause: String,
    },
    /// It said that it leaves by itself: judge how it does.
    JudgeExit {
        ready_for: Option<Duration>,
    },
    /// It ended by itself, or was ended for not becoming ready or not being well: judge it.
    Judge(End),
}

/// How a run ended that nobody asked to end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct End {
    exit: Option<Exit>,
    ready_for: Option<Duration>,
    reason: String,
}

/// What the shell is to do for a process.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Start the main process; answered by `Spawned` or `SpawnFailed`.
    Spawn,
    /// Send to the main process.
    Signal(Signal),
    /// Have the command of `stop` ask the main process to leave; answered by `Told` with this turn.
    Ask {
        turn: u64,
    },
    /// The main process is gone: send once to every process left of the tree; answered by `TreeEmpty`.
    SignalTree(Signal),
    /// KILL every process of the tree; answered by `TreeEmpty`.
    Kill,
    /// Begin probing; answers carry `attempt`.
    Probe {
        attempt: u64,
    },
    StopProbe,
    /// Have the running process take the release of its seat; answered by `Told` with this turn.
    Reload {
        turn: u64,
    },
    /// Nobody waits any more for a command that was to have it do so, or to leave.
    StopReload,
    /// Ask again and again whether it is well; answers carry `attempt`. Ended by `StopProbe`.
    Watch {
        attempt: u64,
    },
    /// Note for a later supervisor how far it has got.
    Progress(Progress),
    /// The transition that is recorded next is due to a failure: what it said last belongs to it.
    Crashed,
    /// A transition, or between the same states what else is worth a record, for the record.
    Record {
        from: &'static str,
        to: &'static str,
        cause: String,
    },
}

/// What the owner of an instance must know beyond its actions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Note {
    Ready,
    /// A run ended as a success and needs no other.
    Done,
    /// On trial: the run has failed. The instance rests.
    TrialFailed(String),
    /// It rests after an asked-for stop.
    Rested,
}

/// One running copy.
#[derive(Debug, Clone)]
pub struct Instance {
    state: State,
    /// When `state` began, for people.
    since: At,
    /// Counts spawns, so that answers of an earlier probe are told apart.
    attempt: u64,
    /// Automatic restarts since somebody last asked for a start.
    restarts: u64,
    /// Runs that ended in a failure, ever: whoever waits for a start compares.
    failures: u64,
    last_exit: Option<(Exit, At)>,
    reason: Option<Box<str>>,
    /// What it said about itself in this run, if anything.
    said: Option<Box<Said>>,
    /// Live probes that have failed in a row.
    failed_probes: u32,
    /// The first answer to the liveness probe is still to come.
    unasked: bool,
    watchdog: Option<Box<Silence>>,
    backoff: Backoff,
    pub(super) on_trial: bool,
    /// Its process took another release than the one that it was started in, or is to.
    in_place: bool,
    /// Counts reloads.
    reloads: u64,
}

/// What a run has said by notifications.
#[derive(Debug, Clone, Default)]
struct Said {
    status: Option<String>,
    errno: Option<i32>,
    exit_status: Option<u8>,
    reloading: bool,
    watchdog_every: Option<Duration>,
}

/// How long it may be silent, and until when.
#[derive(Debug, Clone, Copy)]
struct Silence {
    limit: Duration,
    until: Instant,
}

impl Instance {
    #[must_use]
    pub fn new(seed: u64, wall: At) -> Self {
        Self {
            state: State::Stopped,
            since: wall,
            attempt: 0,
            restarts: 0,
            failures: 0,
            last_exit: None,
            reason: None,
            said: None,
            failed_probes: 0,
            unasked: false,
            watchdog: None,
            backoff: Backoff::new(seed),
            on_trial: false,
            in_place: false,
            reloads: 0,
        }
    }

    /// A machine for another process of the same copy, which is to take over from this one. Its
    /// attempts are counted on from `attempt`.
    pub(super) fn successor(&self, attempt: u64, wall: At) -> Self {
        Self { state: State::Stopped, since: wall, attempt, reason: None, on_trial: false, ..self.clone() }
    }

    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    #[must_use]
    pub fn since(&self) -> At {
        self.since
    }

    #[must_use]
    pub fn attempt(&self) -> u64 {
        self.attempt
    }

    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures
    }

    #[must_use]
    pub fn last_exit(&self) -> Option<(Exit, At)> {
        self.last_exit
    }

    /// Why it is not ready, in a sentence.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// What it said of itself last, for people.
    #[must_use]
    pub fn status(&self) -> Option<&str> {
        self.said.as_ref()?.status.as_deref()
    }

    /// The main process, while it lives.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match &self.state {
            State::Starting { pid, .. } => *pid,
            State::Ready { pid, .. } => Some(*pid),
            State::Stopping(stopping) if let Main::Alive(pid) = stopping.main => Some(pid),
            _ => None,
        }
    }

    /// Does a process of it live, or may one?
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self.state, State::Starting { .. } | State::Ready { .. } | State::Stopping(_))
    }

    /// Is its main process gone while the rest of the tree is being ended?
    #[must_use]
    pub fn awaits_empty_tree(&self) -> bool {
        matches!(&self.state, State::Stopping(stopping) if stopping.main == Main::Gone)
    }

    /// Does it only finish what it has begun?
    #[must_use]
    pub fn drains(&self) -> bool {
        matches!(&self.state, State::Stopping(stopping) if stopping.drains)
    }

    /// When it wants a timer event.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Starting { until, .. } => *until,
            State::Stopping(stopping) => Some(stopping.until),
            State::Backoff { until } => Some(*until),
            State::Failed { retry } => *retry,
            State::Ready { reload, .. } => {
                let (silence, reload) =
                    (self.watchdog.as_ref().map(|silence| silence.until), reload.as_ref().map(|r| r.until));
                silence.into_iter().chain(reload).min()
            }
            State::Stopped | State::Waiting | State::Done => None,
        }
    }

    fn enter(&mut self, state: State, cause: &str, now: Now, out: &mut Vec<Action>) {
        let from = name(&self.state);
        let asks = matches!(&self.state, State::Stopping(stopping) if stopping.asks.is_some());
        if self.reloads() || asks && !matches!(state, State::Stopping(_)) {
            out.push(Action::StopReload);
        }
        if matches!(state, State::Stopping(_)) {
            out.push(Action::Progress(Progress::Leaving));
        }
        self.state = state;
        self.since = now.wall;
        out.push(Action::Record { from, to: name(&self.state), cause: cause.to_owned() });
    }

    /// Lies down without a process: stopped, waiting or failed, with the reason that status shows.
    pub(super) fn rest(&mut self, state: State, reason: &str, now: Now, out: &mut Vec<Action>) {
        self.reason = Some(reason.into());
        if self.state != state {
            self.enter(state, reason, now, out);
        }
    }

    /// Starts anew, the past forgotten; while something still runs, once that has ended.
    pub(super) fn start(&mut self, cause: &str, now: Now, out: &mut Vec<Action>) {
        self.backoff.reset();
        self.restarts = 0;
        match &mut self.state {
            State::Starting { .. } | State::Ready { .. } => {}
            State::Stopping(stopping) => stopping.then = Then::StartAgain { cause: cause.to_owned() },
            _ => self.spawn(cause, now, out),
        }
    }

    fn spawn(&mut self, cause: &str, now: Now, out: &mut Vec<Action>) {
        self.attempt += 1;
        self.reason = None;
        self.said = None;
        self.in_place = false;
        // First, as it takes longest; nobody waits for the record.
        out.push(Action::Spawn);
        self.enter(State::Starting { pid: None, until: None }, cause, now, out);
    }

    /// Ends what runs and starts again.
    pub(super) fn restart(&mut self, app: &config::App, cause: &str, now: Now, out: &mut Vec<Action>) {
        self.cease(app, cause, now, out);
        self.start(cause, now, out);
    }

    /// A wish to stop. `again`: a second one shortens the wait: KILL at once.
    pub(super) fn stop(&mut self, again: bool, app: &config::App, cause: &str, now: Now, out: &mut Vec<Action>) {
        if again && matches!(&self.state, State::Stopping(stopping) if stopping.then == Then::Rest) {
            self.escalate(usize::MAX, app, now, out);
        } else {
            self.cease(app, cause, now, out);
        }
    }

    /// Another one has taken over: the signal, and then the time of `stop.drain`.
    pub(super) fn drain(&mut self, app: &config::App, now: Now, out: &mut Vec<Action>) {
        self.cease_within(app.stop.drain, true, app, "another one has taken over", now, out);
    }

    /// Nobody has the time any more to let it drain.
    pub(super) fn hurry(&mut self, app: &config::App, cause: &str, now: Now, out: &mut Vec<Action>) {
        let State::Stopping(stopping) = &mut self.state else { return };
        if stopping.drains {
            let until = stopping.until.min(now.mono + app.stop.stages[0].timeout);
            let stopping = Stopping { drains: false, until, ..Stopping::clone(stopping) };
            self.enter(State::Stopping(stopping.into()), cause, now, out);
        }
    }

    /// Ends what runs, and lets an end that is under way take its time.
    pub(super) fn cease(&mut self, app: &config::App, cause: &str, now: Now, out: &mut Vec<Action>) {
        self.cease_within(app.stop.stages[0].timeout, false, app, cause, now, out);
    }

    fn cease_within(
        &mut self,
        time: Duration,
        drains: bool,
        app: &config::App,
        cause: &str,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let main = match &mut self.state {
            State::Starting { pid: None, .. } => Main::Spawning,
            State::Starting { pid: Some(pid), .. } | State::Ready { pid, .. } => Main::Alive(*pid),
            State::Stopping(stopping) => {
                stopping.then = Then::Rest;
                return;
            }
            _ => return,
        };
        out.push(Action::StopProbe);
        let is_alive = matches!(main, Main::Alive(_));
        let by_command = app.stop.stages[0].command.is_some();
        if is_alive && !by_command {
            out.push(Action::Signal(app.stop.stages[0].signal));
        }
        self.reason = Some(cause.into());
        let stopping = Stopping { main, stage: 0, until: now.mono + time, then: Then::Rest, drains, asks: None };
        self.enter(State::Stopping(stopping.into()), cause, now, out);
        if is_alive && by_command {
            self.ask(0, app, out);
        }
    }

    /// Has the main process hear that it is to leave, as this stage of `stop` does it.
    fn ask(&mut self, stage: usize, app: &config::App, out: &mut Vec<Action>) {
        let stage = &app.stop.stages[stage];
        let State::Stopping(stopping) = &mut self.state else { return };
        if stage.command.is_none() {
            return out.push(Action::Signal(stage.signal));
        }
        self.reloads += 1;
        stopping.asks = Some(self.reloads);
        out.push(Action::Ask { turn: self.reloads });
    }

    /// The command of `stop` has ended. Where it has failed nobody waits for what it was to bring about.
    fn asked(&mut self, turn: u64, result: Result<u64, String>, app: &config::App, now: Now, out: &mut Vec<Action>) {
        let State::Stopping(stopping) = &mut self.state else { return };
        if stopping.asks != Some(turn) {
            return;
        }
        stopping.asks = None;
        let (stage, is_alive) = (stopping.stage, matches!(stopping.main, Main::Alive(_)));
        if let Err(why) = result
            && is_alive
        {
            self.note(why, out);
            self.escalate(stage.saturating_add(1), app, now, out);
        }
    }

    /// Goes to a stage of `stop`; beyond the last one: KILL, again and again.
    fn escalate(&mut self, stage: usize, app: &config::App, now: Now, out: &mut Vec<Action>) {
        let State::Stopping(stopping) = &mut self.state else { return };
        stopping.stage = stage;
        if stopping.asks.take().is_some() {
            out.push(Action::StopReload);
        }
        if let Some(next) = app.stop.stages.get(stage) {
            stopping.until = now.mono + next.timeout;
            match stopping.main {
                Main::Alive(_) => self.ask(stage, app, out),
                Main::Gone => out.push(Action::SignalTree(next.signal)),
                Main::Spawning => {}
            }
        } else {
            stopping.until = now.mono + KILL_AGAIN;
            out.push(Action::Kill);
        }
    }

    /// Its process runs already, and was found ready by an earlier supervisor.
    pub(super) fn outlived(&mut self, survivor: &Survivor, app: &config::App, now: Now, out: &mut Vec<Action>) {
        self.attempt += 1;
        self.restarts = survivor.restarts;
        self.reason = None;
        let Survivor { pid, begun, .. } = *survivor;
        self.enter(State::Ready { pid, since: begun.mono, reload: None }, ADOPTED, now, out);
        self.since = begun.wall;
        self.watch(app, now, out);
    }

    pub(super) fn spawned(&mut self, pid: u32, app: &config::App, now: Now, out: &mut Vec<Action>) -> Option<Note> {
        match &mut self.state {
            State::Starting { pid: slot @ None, .. } => {
                *slot = Some(pid);
                self.await_ready(app, now, out)
            }
            State::Stopping(stopping) if stopping.main == Main::Spawning => {
                stopping.main = Main::Alive(pid);
                let stage = stopping.stage;
                self.escalate(stage, app, now, out);
                None
            }
            _ => None,
        }
    }

    pub(super) fn spawn_failed(
        &mut self,
        error: &str,
        app: &config::App,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Option<Note> {
        match &self.state {
            State::Starting { pid: None, .. } => {
                let end = End { exit: None, ready_for: None, reason: format!("could not be started: {error}") };
                self.after_end(end, app, now, out)
            }
            State::Stopping(stopping) if stopping.main == Main::Spawning => self.tree_empty(app, now, out),
            _ => None,
        }
    }

    pub(super) fn timer(&mut self, app: &config::App, now: Now, out: &mut Vec<Action>) -> Option<Note> {
        if self.deadline().is_none_or(|at| at > now.mono) {
            return None;
        }
        match &self.state {
            State::Starting { pid: Some(pid), .. } => match app.ready.within() {
                None => return Some(self.ready(app, now, out)),
                Some(within) => {
                    let seen = self.reason.as_deref().map_or_else(|| unheard(&app.ready), str::to_owned);
                    let reason = format!("not ready within {}: {seen}", show_span(within));
                    let end = End { exit: None, ready_for: None, reason: reason.clone() };
                    let main = Main::Alive(*pid);
                    out.push(Action::StopProbe);
                    self.end_tree(main, Then::Judge(end), &reason, app, now, out);
                }
            },
            State::Ready { reload: Some(reload), .. } if reload.until <= now.mono => {
                return self.reload_is_late(app, now, out);
            }
            State::Ready { .. } => {
                let limit = self.watchdog.as_ref().map_or(Duration::ZERO, |silence| silence.limit);
                self.unwell(&format!("no WATCHDOG=1 within {}", show_span(limit)), app, now, out);
            }
            State::Stopping(stopping) => {
                let next = stopping.stage.saturating_add(1);
                self.escalate(next, app, now, out);
            }
            State::Backoff { .. } => {
                self.restarts += 1;
                self.spawn("backoff is over", now, out);
            }
            State::Failed { .. } => self.start("retry_after is over", now, out),
            _ => {}
        }
        None
    }
}

/// What it lacks that never was ready, where nothing else was seen of it.
fn unheard(ready: &Ready) -> String {
    match ready {
        Ready::Notify { .. } => "it did not say READY=1".to_owned(),
        Ready::Fd { number, .. } => format!("it wrote no newline to descriptor {number}"),
        _ => "its probe has not come to an answer".to_owned(),
    }
}

/// The word of SURFACE.md section 3.
pub(super) fn name(state: &State) -> &'static str {
    match state {
        State::Stopped => "stopped",
        State::Waiting => "waiting",
        State::Starting { .. } => "starting",
        State::Ready { .. } => "ready",
        State::Stopping(stopping) if stopping.drains => "draining",
        State::Stopping(_) => "stopping",
        State::Backoff { .. } => "backoff",
        State::Failed { .. } => "failed",
        State::Done => "done",
    }
}
