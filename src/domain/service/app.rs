//! One app: what it should do now, and its copies that do it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    copy::{Copy, Run, Seat},
    instance::{Action, Instance, Note, State},
    notice::Notice,
    roll::{Roll, Trial},
    survivor::Survivor,
};
use crate::domain::{
    config,
    model::{AppName, At, CommitId, Exit, Now, ReleaseId},
};

/// A release as an instance runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    pub id: ReleaseId,
    pub commit: CommitId,
    /// Absolute, no link in it.
    pub directory: PathBuf,
}

/// What the app hears.
#[derive(Debug, Clone)]
pub enum Event {
    /// Everything is known that was known before: act on it.
    Begin,
    /// These run already: an earlier supervisor has started them. Until it is said what the app waits for
    /// (`Block`), others of it may still be ending, and nothing is started beside these.
    Outlived(Vec<Survivor>),
    /// A person wants it, or this copy alone, to run; `restart`: anew if it runs.
    Start {
        only: Option<u32>,
        restart: bool,
        by: String,
    },
    /// A person wants it, or this copy alone, not to run.
    Stop {
        only: Option<u32>,
        by: String,
    },
    /// The time of a scheduled app has come.
    Due(At),
    /// A file that it is watched for has changed: what runs, or would, is started anew.
    Changed {
        cause: String,
    },
    /// The apps of `after` hold it back (`Some`: with this reason), or no longer.
    Block(Option<String>),
    /// Something of `requires` is not up (`Some`: in a sentence), or all of it is.
    Lack(Option<String>),
    /// Run this release from now on and judge it: every copy must become ready and stay so for `settle`.
    /// `stands`: where it does not, nothing goes back to the one before that was ended for it.
    Try {
        release: Release,
        settle: Duration,
        stands: bool,
    },
    /// This release is live; nothing runs it on trial (apps without a command, stopped ones).
    Adopt(Release),
    /// Run this release instead of what runs, without a trial. Where a release was tried in the folder of
    /// the one before and failed, nothing is started until this is said.
    GoBack(Option<Release>),
    /// The config says something else; `restart`: the processes must know it.
    Reconfigure {
        spec: Arc<config::App>,
        restart: bool,
    },
    /// The app left the config.
    Remove,
    /// everhook ends.
    Shutdown,
    Timer,
    /// Something happened to the process in this seat.
    Process(Seat, Happening),
}

/// What happens to a process.
#[derive(Debug, Clone)]
pub enum Happening {
    Spawned(u32),
    SpawnFailed(String),
    Exited {
        exit: Exit,
        alone: bool,
    },
    TreeEmpty,
    Probed {
        attempt: u64,
        result: Result<(), String>,
    },
    /// A ready process was asked whether it is still well.
    LiveProbed {
        attempt: u64,
        result: Result<(), String>,
    },
    /// A running process was told of its release, at this moment of the monotonic clock in microseconds;
    /// or why not.
    Told {
        turn: u64,
        result: Result<u64, String>,
    },
    /// It uses more than it may, in a sentence.
    Outgrown(String),
    /// It said something about itself; its `main_pid` was looked at already.
    Notified(Notice),
    /// This process of its tree is its main process from now on.
    MainIs(u32),
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    /// For the process in this seat.
    Process(Seat, Action),
    /// Keep what [`App::holds`] says: a person stopped or started something.
    KeepHolds,
    /// The trial of a release is over.
    TrialEnded(Result<(), String>),
    /// A restart of copies one by one is over; or why it went no further.
    Rolled(Result<(), String>),
    /// A run of a scheduled app does not take place, and why.
    RunSkipped(String),
    /// A copy that the config has no more has no process left.
    Gone(u32),
    /// The removed app has no process left.
    Removed,
    /// It has failed, and without it everhook shall end.
    ShutDown(String),
}

/// Why an app does not run though nothing is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rest {
    Held(String),
    Disabled,
    NoRelease,
    Blocked(String),
    Lacks(String),
    /// Until its time by this expression.
    Scheduled(String),
    Ending,
    Problem(String),
    /// The folder that its releases share is being brought back to the one before.
    Parked,
}

/// By their names. Boxed, as a map keeps room for nearly twice as many as it has.
pub type Apps = BTreeMap<AppName, Box<App>>;

/// One app of the config.
#[derive(Debug, Clone)]
pub struct App {
    pub(super) spec: Arc<config::App>,
    /// At least one; in the order of their numbers.
    pub(super) copies: Vec<Copy>,
    pub(super) release: Option<Arc<Release>>,
    /// Who stopped all of it, while that holds.
    pub(super) held: Option<Box<str>>,
    pub(super) blocked: Option<Box<str>>,
    pub(super) lacks: Option<Box<str>>,
    /// A trial has failed whose release took the folder of the one before.
    pub(super) parked: bool,
    /// What an earlier supervisor has left of it may still be ending.
    pub(super) settling: bool,
    given_up: bool,
    /// Why a scheduled app is to run now, until it does.
    pub(super) due: Option<Box<str>>,
    /// Boxed like the next, as both are rare, and apps may be many.
    pub(super) trial: Option<Box<Trial>>,
    pub(super) roll: Option<Box<Roll>>,
    pub(super) ending: bool,
    pub(super) removed: bool,
    seed: u64,
}

impl App {
    /// `seed`: for the jitter.
    #[must_use]
    pub fn new(spec: Arc<config::App>, release: Option<Release>, seed: u64, wall: At) -> Self {
        let copies = (1..=spec.instances).map(|number| Copy::new(number, seed, wall)).collect();
        Self {
            spec,
            copies,
            release: release.map(Arc::new),
            held: None,
            blocked: None,
            lacks: None,
            parked: false,
            settling: false,
            given_up: false,
            due: None,
            trial: None,
            roll: None,
            ending: false,
            removed: false,
            seed,
        }
    }

    #[must_use]
    pub fn name(&self) -> &AppName {
        &self.spec.name
    }

    #[must_use]
    pub fn spec(&self) -> &Arc<config::App> {
        &self.spec
    }

    #[must_use]
    pub fn copies(&self) -> &[Copy] {
        &self.copies
    }

    #[must_use]
    pub fn copy(&self, number: u32) -> Option<&Copy> {
        self.copies.iter().find(|copy| copy.number() == number)
    }

    pub(super) fn copy_mut(&mut self, number: u32) -> Option<&mut Copy> {
        self.copies.iter_mut().find(|copy| copy.number() == number)
    }

    /// Every process machine of it.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.copies.iter().flat_map(Copy::runs)
    }

    #[must_use]
    pub fn run(&self, seat: Seat) -> Option<&Run> {
        self.runs().find(|run| run.seat == seat)
    }

    /// The copy that speaks for the app: SURFACE.md section 3.
    #[must_use]
    pub fn worst(&self) -> &Instance {
        let staying = self.copies.iter().filter(|copy| !copy.leaving);
        staying.min_by_key(|copy| copy.rank()).unwrap_or(&self.copies[0]).instance()
    }

    /// Does a process of it live, or may one?
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.runs().any(|run| run.instance.is_active())
    }

    /// Was it told that everhook shuts down?
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.ending
    }

    /// What instances are started in.
    #[must_use]
    pub fn release(&self) -> Option<&Release> {
        self.release.as_deref()
    }

    #[must_use]
    pub fn is_on_trial(&self) -> bool {
        self.trial.is_some()
    }

    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    /// When it wants a [`Event::Timer`].
    #[must_use]
    pub fn deadline(&self) -> Option<std::time::Instant> {
        let settled = self.trial.as_ref().filter(|_| self.is_settled()).and_then(|trial| trial.until);
        settled.into_iter().chain(self.runs().filter_map(|run| run.instance.deadline())).min()
    }

    /// Its folder has another name now.
    pub fn relocate(&mut self, from: &Path, to: &Path) {
        let runs = self.copies.iter_mut().flat_map(Copy::runs_mut);
        for release in runs.flat_map(|run| [&mut run.release, &mut run.home]).chain([&mut self.release]).flatten() {
            if let Ok(below) = release.directory.strip_prefix(from) {
                let directory = to.join(below);
                Arc::make_mut(release).directory = directory;
            }
        }
    }

    /// Does a process of it that lives run this release, or in its folder?
    #[must_use]
    pub fn uses(&self, release: &ReleaseId) -> bool {
        let is = |known: &Option<Arc<Release>>| known.as_ref().is_some_and(|known| known.id == *release);
        self.runs().any(|run| run.instance.is_active() && (is(&run.release) || is(&run.home)))
    }

    /// Hears one event and says what is to be done.
    pub fn on(&mut self, event: Event, now: Now, out: &mut Vec<Task>) {
        match event {
            Event::Begin => {}
            Event::Outlived(survivors) => return self.outlived(&survivors, now, out),
            Event::Start { only, restart, by } => self.start(only, restart, &by, now, out),
            Event::Stop { only, by } => self.stop(only, &by, now, out),
            Event::Due(at) => self.come_due(at, out),
            Event::Changed { cause } => {
                let copies = self.copies_of(None).into_iter().filter(|copy| self.may_run(&self.copies[*copy]));
                let numbers: Vec<u32> = copies.map(|copy| self.copies[copy].number()).collect();
                if !numbers.is_empty() {
                    self.roll(numbers, &cause);
                }
            }
            Event::Block(reason) => (self.blocked, self.settling) = (reason.map(Into::into), false),
            Event::Lack(what) => self.lack(what, now, out),
            Event::Try { release, settle, stands } => self.begin_trial(release, settle, stands, out),
            Event::Adopt(release) => self.adopt(release),
            Event::GoBack(release) => {
                (self.release, self.parked) = (release.map(Arc::new), false);
                self.go_back("back to the live release", now, out);
            }
            Event::Reconfigure { spec, restart } => self.reconfigure(&spec, restart, now, out),
            Event::Remove => {
                self.removed = true;
                self.end("removed from the config", now, out);
            }
            Event::Shutdown => {
                self.ending = true;
                self.end("everhook shuts down", now, out);
            }
            Event::Timer => self.timer(now, out),
            Event::Process(seat, what) => self.happened(seat, what, now, out),
        }
        if !self.settling {
            self.go_on_rolling(now, out);
            self.follow_rules(now, out);
        }
        self.give_up(out);
    }

    /// Ends everything for its sake, where the config wants that.
    fn give_up(&mut self, out: &mut Vec<Task>) {
        let failed = |copy: &&Copy| matches!(copy.instance().state(), State::Failed { retry: None });
        if self.spec.on_failed == config::OnFailed::Stay || self.ending || self.removed || self.given_up {
            return;
        }
        if let Some(copy) = self.copies.iter().find(failed) {
            self.given_up = true;
            let why = copy.instance().reason().unwrap_or("it failed");
            out.push(Task::ShutDown(format!("app \"{}\" has failed: {why}", self.name())));
        }
    }

    /// Has a machine do something; what follows is for its seat.
    pub(super) fn tell<T>(
        &mut self,
        seat: Seat,
        out: &mut Vec<Task>,
        what: impl FnOnce(&mut Instance, &config::App, &mut Vec<Action>) -> T,
    ) -> Option<T> {
        let run = self.copies.iter_mut().find_map(|copy| copy.run_mut(seat))?;
        let mut actions = Vec::new();
        let told = what(&mut run.instance, &self.spec, &mut actions);
        if actions.contains(&Action::Spawn) {
            run.home.clone_from(&run.release);
        }
        out.extend(actions.into_iter().map(|action| Task::Process(seat, action)));
        Some(told)
    }

    pub(super) fn seats(&self) -> Vec<Seat> {
        self.runs().map(|run| run.seat).collect()
    }

    fn happened(&mut self, seat: Seat, what: Happening, now: Now, out: &mut Vec<Task>) {
        let note = self.tell(seat, out, |instance, app, out| match what {
            Happening::Spawned(pid) => instance.spawned(pid, app, now, out),
            Happening::SpawnFailed(error) => instance.spawn_failed(&error, app, now, out),
            Happening::Exited { exit, alone } => instance.exited(exit, alone, app, now, out),
            Happening::TreeEmpty => instance.tree_empty(app, now, out),
            Happening::Probed { attempt, result: Ok(()) } => instance.probed(attempt, app, now, out),
            Happening::Probed { attempt, result: Err(why) } => {
                instance.probe_failed(attempt, why);
                None
            }
            Happening::LiveProbed { attempt, result } => instance.live_probed(attempt, result, app, now, out),
            Happening::Told { turn, result } => instance.told(turn, result, app, now, out),
            Happening::Outgrown(why) => {
                instance.unwell(&why, app, now, out);
                None
            }
            Happening::Notified(notice) => instance.notified(&notice, app, now, out),
            Happening::MainIs(pid) => {
                instance.main_is(pid, out);
                None
            }
        });
        self.heed(seat, note.flatten(), now, out);
        self.judge_trial(now, out);
    }

    fn timer(&mut self, now: Now, out: &mut Vec<Task>) {
        self.judge_trial(now, out);
        for seat in self.seats() {
            let note = self.tell(seat, out, |instance, app, out| instance.timer(app, now, out));
            self.heed(seat, note.flatten(), now, out);
        }
    }

    fn heed(&mut self, seat: Seat, note: Option<Note>, now: Now, out: &mut Vec<Task>) {
        // How the others are is seen when the restart, or the trial, goes on.
        let Some(Note::TrialFailed(why)) = note else { return };
        let several = self.copies.len() > 1;
        let name = self.name().clone();
        if let Some(copy) = self.copies.iter_mut().find(|copy| copy.new_seat() == Some(seat)) {
            copy.give_up_new();
            copy.rejected = Some(why.as_str().into());
        }
        if self.trial.is_some() {
            let why = if several { format!("{name}.{}: {why}", seat.number) } else { why };
            self.take_back(&why, now, out);
        }
    }

    /// Starts what does not run, in the release of now.
    pub(super) fn set_going(&mut self, copy: usize, cause: &str, now: Now, out: &mut Vec<Task>) {
        if !matches!(self.copies[copy].instance().state(), State::Starting { .. } | State::Ready { .. }) {
            self.copies[copy].run.release.clone_from(&self.release);
        }
        self.due = None;
        let seat = self.copies[copy].run.seat;
        self.tell(seat, out, |instance, _, out| instance.start(cause, now, out));
    }

    /// Starts it anew, in the release of now.
    pub(super) fn set_going_anew(&mut self, copy: usize, cause: &str, now: Now, out: &mut Vec<Task>) {
        self.copies[copy].run.release.clone_from(&self.release);
        self.due = None;
        self.copies[copy].rejected = None;
        let seat = self.copies[copy].run.seat;
        self.tell(seat, out, |instance, app, out| instance.restart(app, cause, now, out));
    }

    fn end(&mut self, cause: &str, now: Now, out: &mut Vec<Task>) {
        self.fail_trial(cause, now, out);
        self.call_off(cause, out);
        self.cease_all(cause, now, out);
    }

    pub(super) fn cease_all(&mut self, cause: &str, now: Now, out: &mut Vec<Task>) {
        for copy in 0..self.copies.len() {
            self.cease(copy, cause, now, out);
        }
    }

    /// Ends all of a copy.
    pub(super) fn cease(&mut self, copy: usize, cause: &str, now: Now, out: &mut Vec<Task>) {
        self.send_off(copy, cause, now, out);
        let seat = self.copies[copy].run.seat;
        self.tell(seat, out, |instance, app, out| instance.cease(app, cause, now, out));
    }

    /// Whoever is beside the one that counts is to end, and soon.
    pub(super) fn send_off(&mut self, copy: usize, cause: &str, now: Now, out: &mut Vec<Task>) {
        if let Some(seat) = self.copies[copy].give_up_new() {
            self.tell(seat, out, |instance, app, out| instance.cease(app, cause, now, out));
        }
        let second = self.copies[copy].runs().nth(1).map(|run| run.seat);
        if let Some(seat) = second {
            self.tell(seat, out, |instance, app, out| instance.hurry(app, cause, now, out));
        }
    }

    /// A release that goes live without a trial; what runs is told by its next start.
    fn adopt(&mut self, release: Release) {
        self.release = Some(Arc::new(release));
    }

    fn reconfigure(&mut self, spec: &Arc<config::App>, restart: bool, now: Now, out: &mut Vec<Task>) {
        let was_enabled = self.spec.enabled;
        let known: Vec<u32> = self.copies.iter().map(Copy::number).filter(|number| *number <= spec.instances).collect();
        let before = std::mem::replace(&mut self.spec, Arc::clone(spec));
        self.recount(now, out);
        if !spec.enabled && was_enabled {
            self.fail_trial("the app was disabled", now, out);
            self.call_off("the app was disabled", out);
            self.cease_all("disabled in the config", now, out);
        } else if self.spec.problem.is_some() {
            self.call_off("the config has a problem", out);
            self.cease_all("the config has a problem", now, out);
        } else if restart {
            self.roll(known, "the config has changed");
        } else {
            for seat in self.seats() {
                let note = self.tell(seat, out, |instance, app, out| instance.looked_at_anew(&before, app, now, out));
                self.heed(seat, note.flatten(), now, out);
            }
            for copy in self.copies_of(None) {
                let failed = matches!(self.copies[copy].instance().state(), State::Failed { .. });
                if failed && self.may_run(&self.copies[copy]) {
                    self.set_going(copy, "the config has changed", now, out);
                }
            }
        }
    }

    /// As many copies as the config says: more are new, fewer leave.
    fn recount(&mut self, now: Now, out: &mut Vec<Task>) {
        let count = self.spec.instances;
        for copy in 0..self.copies.len() {
            let number = self.copies[copy].number();
            self.copies[copy].leaving = number > count;
            if number > count {
                self.leave_out(number);
                self.cease(copy, "`instances` was lowered", now, out);
            }
        }
        for number in 1..=count {
            if self.copy(number).is_none() {
                self.copies.push(Copy::new(number, self.seed, now.wall));
                // An earlier copy of this number may have been stopped by somebody.
                out.push(Task::KeepHolds);
            }
        }
        self.copies.sort_by_key(Copy::number);
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
