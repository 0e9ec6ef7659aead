//! One deploy that runs. Its way leads through [`release`], [`steps`] and [`switch`], or to an [`end`]
//! before.
//!
//! ```text
//! fetch:  Fetching ─► (Clearing) ─► Making ─► CheckingOut ─► (Sharing)     ended by time, cancel,
//! check, build:  Stepping …                                               shutdown
//!         (Securing) ─► held, until somebody approves it
//! before_switch:  Stepping … ─► (Securing)
//! switch, verify:  (SharingAgain) ─► (Bridging) ─► Trying ─► (Flushing) ─► Writing ─► live     ends by itself
//!                                                └─► held where it cannot be taken back; approved: Flushing
//! after_live, on_failure:  Stepping …                                      changes that end no more
//! ```
//! Before each step, and before the release's folder is made, stands `Saving`: the record is durable
//! first; where the commit is known before the fetch, the release is recorded with that. A rollback begins at switch. Where commits go into a working tree: [`place`]. An event that a
//! phase does not wait for is ignored: it answers something that was given up.

mod end;
mod place;
mod release;
mod steps;
mod switch;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    Action, Event, Job, JobEnd, Live, Queued, StepKind, Who,
    queue::Waiting,
    record,
    task::{self, Planned},
};
use crate::domain::{
    api::{DeployState, StepState, TreeTask},
    config,
    model::{CommitId, DeployId, Exit, Now},
};

/// A deploy from its start to its end.
#[derive(Debug)]
pub(super) struct Pipeline {
    queued: Queued,
    deploy: config::Deploy,
    live: Option<Live>,
    /// Several pushes became this one: the tip of the ref holds them all, its commit may not.
    tip: bool,
    also: Vec<CommitId>,
    /// The one that runs, and those to come of all kinds.
    steps: VecDeque<Planned>,
    /// Why it cannot be taken back once it has switched, until that is looked at.
    asks: Option<String>,
    /// It is held next.
    holds: bool,
    /// The release is on disk as it is.
    secured: bool,
    /// The release's folder is there.
    made: bool,
    /// The release is recorded, and nothing of it is made yet.
    foretold: bool,
    /// It has ended, and what runs now follows that.
    over: Option<Over>,
    phase: Phase,
    /// Records that are not durable yet.
    unsaved: u32,
    /// End of the time for everything before the switch.
    limit: Instant,
    step_began: Instant,
    step_limit: Option<(Instant, Duration)>,
    stop: Option<Stop>,
    /// What it will take on the disk, in bytes.
    size: Option<u64>,
    /// Once it has switched it cannot be taken back.
    irreversible: bool,
    /// Somebody wants it live though it was not proven.
    kept: bool,
    /// How far the working tree of an app is that has one.
    progress: place::Progress,
    /// Its tree is on its way back.
    returning: Option<place::Return>,
    /// The mirror was found damaged, and fetched anew.
    healed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Saving(Next),
    Fetching,
    Clearing,
    Making,
    CheckingOut,
    Sharing,
    Stepping,
    Securing,
    Placing,
    Healing,
    Noting,
    Returning,
    Rebuilding,
    SharingAgain,
    Bridging,
    Trying,
    Flushing,
    Writing,
}

/// What a durable record allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Fetch,
    Clear,
    Make,
    Place,
    Step,
    Trial,
    /// Somebody wants it live as it is.
    Keep,
}

/// Why it is ended before the switch.
#[derive(Debug, Clone)]
pub(super) enum Stop {
    TimedOut(String),
    Cancelled(String),
    /// The config changed: another deploy does the same by the new one.
    Anew,
    Requeued,
}

/// How it ended, before the steps that follow an end.
#[derive(Debug)]
enum Over {
    Live(Live),
    Failed,
}

/// What a deploy is after an event.
#[derive(Debug)]
pub(super) enum Course {
    Goes,
    Ended,
    Live(Live),
    Requeued(Box<Waiting>),
    /// It cannot be taken back once it switches, or now that it has: it waits until somebody lets it go on.
    Held,
}

impl Pipeline {
    /// Starts it: the first record is on its way out.
    pub(super) fn start(waiting: Waiting, live: Option<Live>, now: Now, out: &mut Vec<Action>) -> Box<Self> {
        let Waiting { mut queued, deploy, tip, also, unsaved, built } = waiting;
        if let Some(mut built) = built {
            built.go_on(queued, unsaved, now, out);
            return built;
        }
        queued.attempts += 1;
        queued.view.started_at = Some(now.wall);
        queued.view.previous_commit = live.as_ref().map(|live| live.commit.clone());
        let mut pipeline = Self { tip, also, unsaved, ..Self::new(queued, deploy, live, now) };
        if pipeline.queued.is_rollback() && pipeline.tree().is_some() {
            pipeline.place_back(now, out);
        } else if pipeline.queued.is_rollback() {
            pipeline.save_step(Next::Trial, DeployState::Switching, now, out);
        } else {
            pipeline.foretell();
            pipeline.save_step(Next::Fetch, DeployState::Fetching, now, out);
            out.push(Action::Expect { deploy: pipeline.id() });
        }
        Box::new(pipeline)
    }

    fn new(queued: Queued, deploy: config::Deploy, live: Option<Live>, now: Now) -> Self {
        Self {
            steps: task::steps(&deploy, &[]).into(),
            asks: None,
            holds: false,
            secured: false,
            made: false,
            foretold: false,
            over: None,
            limit: now.mono + deploy.timeout,
            phase: Phase::Saving(Next::Fetch),
            unsaved: 0,
            step_began: now.mono,
            step_limit: None,
            stop: None,
            size: None,
            irreversible: false,
            kept: false,
            progress: place::Progress::AsItWas,
            returning: None,
            healed: false,
            queued,
            deploy,
            live,
            tip: false,
            also: Vec::new(),
        }
    }

    /// As it was held before a crash.
    pub(super) fn built(queued: Queued, deploy: config::Deploy, live: Option<Live>, now: Now) -> Box<Self> {
        let mut held = Self::new(queued, deploy, live, now);
        held.steps.retain(|planned| !matches!(planned.kind, StepKind::Check | StepKind::Build));
        (held.irreversible, held.secured, held.made) = (true, true, true);
        held.phase = Phase::Saving(Next::Trial);
        Box::new(held)
    }

    /// What was held may switch, or is to stay as it is.
    fn go_on(&mut self, queued: Queued, unsaved: u32, now: Now, out: &mut Vec<Action>) {
        let next = if record::is_unproven(&queued.view) { Next::Keep } else { Next::Trial };
        (self.queued, self.unsaved) = (queued, unsaved);
        self.queued.attempts += 1;
        self.kept = next == Next::Keep;
        self.limit = now.mono + self.deploy.timeout;
        if next == Next::Keep {
            self.save_step(next, DeployState::Switching, now, out);
        } else {
            // Those that are left lead to the switch: nobody is asked twice.
            let _ = self.next_step(now, out);
        }
    }

    /// As it waits for somebody's word; that takes no try from it.
    pub(super) fn hold(self: Box<Self>) -> Waiting {
        let mut queued = self.queued.clone();
        queued.attempts -= 1;
        let (deploy, tip, also, unsaved) = (self.deploy.clone(), self.tip, self.also.clone(), self.unsaved);
        Waiting { queued, deploy, tip, also, unsaved, built: Some(self) }
    }

    pub(super) fn queued(&self) -> &Queued {
        &self.queued
    }

    /// When [`Event::Timer`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let limited = self.before_switch() || self.is_over() || self.returning.is_some();
        let limited = limited && self.stop.is_none();
        limited.then(|| self.step_limit.map_or(self.limit, |(at, _)| at.min(self.limit)))
    }

    /// What an event about this deploy means to it.
    pub(super) fn on(&mut self, event: Event, now: Now, out: &mut Vec<Action>) -> Course {
        match (event, self.phase) {
            (Event::Committed { .. }, phase) => {
                self.unsaved = self.unsaved.saturating_sub(1);
                if let (0, Phase::Saving(next)) = (self.unsaved, phase) {
                    return self.act(next, now, out);
                }
                Course::Goes
            }
            (Event::JobEnded { end, .. }, _) => self.job_ended(&end, now, out),
            (Event::ReleaseMade { result, .. }, Phase::Making) => match (self.stop.take(), result) {
                (Some(stop), _) => self.stopped(stop, now, out),
                (None, Ok(_)) => {
                    self.made = true;
                    self.check_out(out)
                }
                (None, Err(why)) => self.failed(why, now, out),
            },
            (Event::Switched { .. }, Phase::Trying) => {
                self.step_done(now);
                self.begin(DeployState::Verifying, now, out);
                Course::Goes
            }
            (Event::Trial { result: Ok(note), .. }, Phase::Trying) => {
                self.queued.view.reason = note;
                let is_written = self.queued.is_rollback() && self.tree().is_none();
                if is_written { self.write_live(out) } else { self.flush(out) }
            }
            (Event::Trial { result: Err(why), .. }, Phase::Trying) => self.unproven(why, now, out),
            (Event::LiveWritten { result: Ok(()), .. }, Phase::Writing) => self.is_live(now, out),
            (Event::LiveWritten { result: Err(why), .. }, Phase::Writing) => self.unwritten(why, now, out),
            (Event::Cancel { why, .. }, _) => self.stop(Stop::Cancelled(why), now, out),
            (Event::Reconfigure { .. }, _) => self.stop(Stop::Anew, now, out),
            (Event::Shutdown, _) => self.stop(Stop::Requeued, now, out),
            (Event::Timer, _) => self.timer(now, out),
            (
                Event::ReleaseMade { .. }
                | Event::Switched { .. }
                | Event::Trial { .. }
                | Event::LiveWritten { .. }
                | Event::Queue(_)
                | Event::Resume(_)
                | Event::Live { .. }
                | Event::Gate { .. }
                | Event::Freeze { .. }
                | Event::Approve { .. }
                | Event::Forget { .. },
                _,
            ) => Course::Goes,
        }
    }

    pub(super) fn before_switch(&self) -> bool {
        let switches =
            matches!(self.phase, Phase::Trying | Phase::Flushing | Phase::Writing | Phase::Saving(Next::Keep));
        !self.is_over() && self.returning.is_none() && !switches
    }

    /// Do steps run that follow its end?
    pub(super) fn is_over(&self) -> bool {
        self.over.is_some()
    }

    fn id(&self) -> DeployId {
        self.queued.view.id
    }

    // What is recorded.

    fn persist(&mut self, out: &mut Vec<Action>) {
        self.unsaved += 1;
        out.push(Action::Persist { view: Box::new(self.queued.view.clone()), attempts: self.queued.attempts });
    }

    /// Begins what this state stands for.
    fn begin(&mut self, state: DeployState, now: Now, out: &mut Vec<Action>) {
        let name = match state {
            DeployState::Fetching => "fetch",
            DeployState::Verifying => "verify",
            _ => "switch",
        };
        self.queued.view.state = state;
        self.begin_step(name, None, now, out);
    }

    fn begin_step(&mut self, name: &str, command: Option<String>, now: Now, out: &mut Vec<Action>) {
        record::begin_step(&mut self.queued.view, name, command);
        self.step_began = now.mono;
        self.step_limit = None;
        self.persist(out);
    }

    fn save_step(&mut self, next: Next, state: DeployState, now: Now, out: &mut Vec<Action>) {
        self.begin(state, now, out);
        self.phase = Phase::Saving(next);
    }

    fn step_done(&mut self, now: Now) {
        let lasted = now.mono.saturating_duration_since(self.step_began);
        record::end_step(&mut self.queued.view, StepState::Done, Some(lasted), None);
    }

    // What is done.

    fn act(&mut self, next: Next, now: Now, out: &mut Vec<Action>) -> Course {
        match next {
            Next::Fetch => {
                let task = TreeTask::Fetch(Box::new(self.fetch()));
                self.run(Phase::Fetching, Job::Tree { task, who: Who::FetchUser }, out)
            }
            Next::Clear => match self.release_dir() {
                Some(path) => self.run_tree(Phase::Clearing, TreeTask::Empty { path }, out),
                None => self.make(now, out),
            },
            Next::Make => self.make(now, out),
            Next::Place => self.place(now, out),
            Next::Step => self.run_step(now, out),
            Next::Trial => self.switch(now, out),
            Next::Keep => self.flush(out),
        }
    }

    fn run(&mut self, phase: Phase, job: Job, out: &mut Vec<Action>) -> Course {
        out.push(Action::Run { deploy: self.id(), job });
        self.phase = phase;
        Course::Goes
    }

    fn run_tree(&mut self, phase: Phase, task: TreeTask, out: &mut Vec<Action>) -> Course {
        self.run(phase, Job::Tree { task, who: Who::AppUser }, out)
    }

    // What came of it.

    fn job_ended(&mut self, end: &JobEnd, now: Now, out: &mut Vec<Action>) -> Course {
        if self.phase == Phase::Flushing {
            return match end.failure() {
                None => self.write_live(out),
                Some(why) => self.unwritten(why, now, out),
            };
        }
        if self.returning.is_some() {
            return self.went_back(end, now, out);
        }
        if let Some(stop) = self.stop.take() {
            return self.stopped(stop, now, out);
        }
        match (self.phase, end.failure()) {
            (Phase::Fetching, None) => self.fetched(&end.answer, now, out),
            (Phase::Clearing, None) => self.make(now, out),
            (Phase::CheckingOut, None) => self.share(now, out),
            (Phase::CheckingOut, Some(why)) => self.not_checked_out(end, why, now, out),
            (Phase::Sharing, None) => self.next_step(now, out),
            (Phase::Stepping, _) => self.step_ended(end, now, out),
            (Phase::Securing, None) => self.secured(now, out),
            (Phase::SharingAgain, None) => self.bridge(now, out),
            (Phase::Bridging, None) => self.try_release(now, out),
            (Phase::Placing, None) => self.next_step(now, out),
            (Phase::Placing, Some(why)) => self.not_placed(end, why, now, out),
            (Phase::Healing, None) => self.healed(now, out),
            (Phase::Noting, None) => self.noted(now, out),
            (
                Phase::Fetching
                | Phase::Clearing
                | Phase::Sharing
                | Phase::Healing
                | Phase::Noting
                | Phase::Securing
                | Phase::SharingAgain
                | Phase::Bridging,
                Some(why),
            ) => self.failed(why, now, out),
            (
                Phase::Saving(_)
                | Phase::Making
                | Phase::Trying
                | Phase::Flushing
                | Phase::Writing
                | Phase::Returning
                | Phase::Rebuilding,
                _,
            ) => Course::Goes,
        }
    }
}

impl JobEnd {
    /// Why a run of the tree helper came to nothing: its own last words where it ended by itself and had any.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        if let Some(error) = &self.error {
            return Some(format!("the tree helper could not be started: {error}"));
        }
        if self.exit.success() {
            return None;
        }
        let spoken = if let Exit::Code(_) = self.exit { self.last_lines.as_slice() } else { &[] };
        let words = spoken.iter().rev().find(|line| !line.trim().is_empty());
        Some(words.map_or(format!("the tree helper {}", self.exit), |line| line.trim().to_owned()))
    }
}
