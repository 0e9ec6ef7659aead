//! One deploy that runs.
//!
//! ```text
//! fetch:  Fetching ─► (Clearing) ─► Making ─► CheckingOut ─► (Sharing)     ended by time, cancel,
//! check:  Stepping …                                                       shutdown
//! build:  Stepping …
//!         (Weighing) ─► held, until somebody approves it
//! switch, verify:  Trying ─► (Flushing) ─► Writing ─► live                 ends by itself
//! ```
//! Before each step, and before the release's folder is made, stands `Saving`: the record is durable
//! first. A rollback begins at switch. An event that a phase does not wait for is ignored: it answers
//! something that was given up.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{Action, Event, Job, JobEnd, Live, Queued, StepKind, Who, queue::Waiting, record, task};
use crate::domain::{
    api::{By, DeployState, Fetch, Fetched, StepState, TreeTask, Verdict, Weighed},
    config,
    model::{CommitId, DeployId, Now, ReleaseId, show_span},
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
    steps: Vec<(StepKind, config::Step)>,
    phase: Phase,
    /// Records that are not durable yet.
    unsaved: u32,
    /// End of the time for everything before the switch.
    limit: Instant,
    step_began: Instant,
    step_limit: Option<(Instant, Duration)>,
    stop: Option<Stop>,
    tree_bytes: Option<u64>,
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
    Weighing,
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
    Step(usize),
    Trial,
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

/// What a deploy is after an event.
#[derive(Debug)]
pub(super) enum Course {
    Goes,
    Ended,
    Live(Live),
    Requeued(Box<Waiting>),
    /// It cannot be taken back once it switches: it waits until somebody lets it go on.
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
        let mut pipeline = Self {
            steps: task::steps(&deploy),
            limit: now.mono + deploy.timeout,
            phase: Phase::Saving(Next::Fetch),
            unsaved,
            step_began: now.mono,
            step_limit: None,
            stop: None,
            tree_bytes: None,
            queued,
            deploy,
            live,
            tip,
            also,
        };
        if pipeline.queued.is_rollback() {
            pipeline.save_step(Next::Trial, DeployState::Switching, None, now, out);
        } else {
            pipeline.save_step(Next::Fetch, DeployState::Fetching, None, now, out);
        }
        Box::new(pipeline)
    }

    /// What was held may switch.
    fn go_on(&mut self, queued: Queued, unsaved: u32, now: Now, out: &mut Vec<Action>) {
        (self.queued, self.unsaved) = (queued, unsaved);
        self.queued.attempts += 1;
        self.limit = now.mono + self.deploy.timeout;
        self.save_step(Next::Trial, DeployState::Switching, None, now, out);
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
        let limited = self.before_switch() && self.stop.is_none();
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
                (None, Ok(_)) => self.check_out(out),
                (None, Err(why)) => self.failed(why, now, out),
            },
            (Event::Switched { .. }, Phase::Trying) => {
                self.step_done(now);
                self.begin(DeployState::Verifying, None, now, out);
                Course::Goes
            }
            (Event::Trial { result: Ok(note), .. }, Phase::Trying) => {
                self.queued.view.reason = note;
                if self.queued.is_rollback() { self.write_live(out) } else { self.flush(out) }
            }
            (Event::Trial { result: Err(why), .. }, Phase::Trying) => self.unproven(why, now, out),
            (Event::LiveWritten { result: Ok(()), .. }, Phase::Writing) => self.is_live(now, out),
            (Event::LiveWritten { result: Err(why), .. }, Phase::Writing) => self.go_back(why, now, out),
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
        !matches!(self.phase, Phase::Trying | Phase::Flushing | Phase::Writing)
    }

    fn id(&self) -> DeployId {
        self.queued.view.id
    }

    // What is recorded.

    fn persist(&mut self, out: &mut Vec<Action>) {
        self.unsaved += 1;
        out.push(Action::Persist { view: Box::new(self.queued.view.clone()), attempts: self.queued.attempts });
    }

    fn begin(&mut self, state: DeployState, command: Option<String>, now: Now, out: &mut Vec<Action>) {
        record::begin_step(&mut self.queued.view, state, command);
        self.step_began = now.mono;
        self.step_limit = None;
        self.persist(out);
    }

    fn save_step(&mut self, next: Next, state: DeployState, command: Option<String>, now: Now, out: &mut Vec<Action>) {
        self.begin(state, command, now, out);
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
                None => self.make(out),
            },
            Next::Make => self.make(out),
            Next::Step(index) => {
                let Some((kind, step)) = self.steps.get(index).cloned() else { return Course::Goes };
                let timeout = step.timeout.unwrap_or(self.deploy.timeout);
                self.step_began = now.mono;
                self.step_limit = Some((now.mono + timeout, timeout));
                self.run(Phase::Stepping, Job::Step { kind, run: step.run }, out)
            }
            Next::Trial => {
                let Some((release, commit)) = self.target() else {
                    return self.failed("the commit of the release is not known".into(), now, out);
                };
                let (deploy, app, settle) = (self.id(), self.queued.view.app.clone(), self.deploy.settle);
                out.push(Action::StartTrial { deploy, app, release, commit, settle });
                self.phase = Phase::Trying;
                Course::Goes
            }
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

    fn fetch(&self) -> Fetch {
        task::fetch(&self.queued, &self.deploy, self.live.as_ref(), (self.tip, &self.also))
    }

    fn target(&self) -> Option<(ReleaseId, CommitId)> {
        self.queued.view.release.clone().zip(self.queued.view.commit.clone())
    }

    fn dir_of(&self, release: &ReleaseId) -> PathBuf {
        self.queued.places.app.join("releases").join(release.to_string())
    }

    fn release_dir(&self) -> Option<PathBuf> {
        self.queued.view.release.as_ref().map(|release| self.dir_of(release))
    }

    fn make(&mut self, out: &mut Vec<Action>) -> Course {
        if let Some(release) = self.queued.view.release.clone() {
            let (deploy, app, tree_bytes) = (self.id(), self.queued.view.app.clone(), self.tree_bytes);
            out.push(Action::MakeRelease { deploy, app, release, tree_bytes });
        }
        self.phase = Phase::Making;
        Course::Goes
    }

    fn check_out(&mut self, out: &mut Vec<Action>) -> Course {
        let Some((release, commit)) = self.target() else { return Course::Goes };
        let (mirror, release) = (self.queued.places.mirror.clone(), self.dir_of(&release));
        self.run_tree(Phase::CheckingOut, TreeTask::Checkout { mirror, release, commit }, out)
    }

    fn share(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        let Some(release) = self.release_dir().filter(|_| !self.deploy.shared.is_empty()) else {
            return self.next_step(0, now, out);
        };
        let previous = self.live.as_ref().map(|live| self.dir_of(&live.release));
        let (shared, paths) = (self.queued.places.app.join("shared"), self.deploy.shared.clone());
        self.run_tree(Phase::Sharing, TreeTask::Share { release, shared, previous, paths }, out)
    }

    /// The step at `index`; behind the last one the switch.
    fn next_step(&mut self, index: usize, now: Now, out: &mut Vec<Action>) -> Course {
        self.step_done(now);
        match self.steps.get(index) {
            None => return self.weigh(now, out),
            Some((kind, step)) => {
                let state = match kind {
                    StepKind::Check => DeployState::Checking,
                    StepKind::Build => DeployState::Building,
                };
                let command = step.name.clone().unwrap_or_else(|| step.run.clone());
                self.save_step(Next::Step(index), state, Some(command), now, out);
            }
        }
        Course::Goes
    }

    /// Before the switch: does somebody have to be asked?
    fn weigh(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        let (from, to) = (self.live.as_ref().map(|live| live.commit.clone()), self.queued.view.commit.clone());
        let asks = !self.deploy.irreversible.is_empty() && !self.queued.may_switch();
        let Some((from, to)) = from.zip(to).filter(|_| asks) else {
            self.save_step(Next::Trial, DeployState::Switching, None, now, out);
            return Course::Goes;
        };
        let (mirror, repo) = (self.queued.places.mirror.clone(), self.deploy.repo.clone());
        let task = TreeTask::Weigh { mirror, repo, from, to, paths: self.deploy.irreversible.clone() };
        self.run(Phase::Weighing, Job::Tree { task, who: Who::FetchUser }, out)
    }

    fn weighed(&mut self, answer: &[u8], now: Now, out: &mut Vec<Action>) -> Course {
        match serde_json::from_slice::<Weighed>(answer) {
            Ok(Weighed { irreversible: None }) => {
                self.save_step(Next::Trial, DeployState::Switching, None, now, out);
                Course::Goes
            }
            Ok(Weighed { irreversible: Some(why) }) => {
                self.queued.view.reason = Some(format!("irreversible: {why}"));
                Course::Held
            }
            Err(_) => self.failed("the tree helper gave no answer that can be read".into(), now, out),
        }
    }

    fn flush(&mut self, out: &mut Vec<Action>) -> Course {
        match self.release_dir() {
            Some(release) => self.run_tree(Phase::Flushing, TreeTask::Sync { release }, out),
            None => self.write_live(out),
        }
    }

    fn write_live(&mut self, out: &mut Vec<Action>) -> Course {
        if let Some((release, commit)) = self.target() {
            out.push(Action::WriteLive { deploy: self.id(), app: self.queued.view.app.clone(), release, commit });
        }
        self.phase = Phase::Writing;
        Course::Goes
    }

    // What came of it.

    fn job_ended(&mut self, end: &JobEnd, now: Now, out: &mut Vec<Action>) -> Course {
        if self.phase == Phase::Flushing {
            return match end.failure() {
                None => self.write_live(out),
                Some(why) => self.go_back(why, now, out),
            };
        }
        if let Some(stop) = self.stop.take() {
            return self.stopped(stop, now, out);
        }
        match (self.phase, end.failure()) {
            (Phase::Fetching, None) => self.fetched(&end.answer, now, out),
            (Phase::Clearing, None) => self.make(out),
            (Phase::CheckingOut, None) => self.share(now, out),
            (Phase::Sharing, None) => self.next_step(0, now, out),
            (Phase::Stepping, _) => self.step_ended(end, now, out),
            (Phase::Weighing, None) => self.weighed(&end.answer, now, out),
            (Phase::Fetching | Phase::Clearing | Phase::CheckingOut | Phase::Sharing | Phase::Weighing, Some(why)) => {
                self.failed(why, now, out)
            }
            (Phase::Saving(_) | Phase::Making | Phase::Trying | Phase::Flushing | Phase::Writing, _) => Course::Goes,
        }
    }

    fn fetched(&mut self, answer: &[u8], now: Now, out: &mut Vec<Action>) -> Course {
        let Ok(fetched) = serde_json::from_slice::<Fetched>(answer) else {
            return self.failed("the tree helper gave no answer that can be read".into(), now, out);
        };
        let view = &mut self.queued.view;
        view.commit = fetched.commit.or(view.commit.take());
        view.subject = fetched.subject.or(view.subject.take());
        view.author = fetched.author.or(view.author.take());
        view.ref_name = Some(fetched.ref_name.clone());
        self.tree_bytes = fetched.tree_bytes;
        if !fetched.behind.is_empty() {
            out.push(Action::Behind { app: view.app.clone(), behind: fetched.behind });
        }
        let commit = view.commit.clone();
        let short = commit.as_ref().map_or("it", CommitId::short).to_owned();
        match (fetched.verdict, commit) {
            (Verdict::Deploy, Some(commit)) if !self.repeats(&commit) => self.name_release(&commit, out),
            (Verdict::Deploy, None) => self.failed("the tree helper named no commit".into(), now, out),
            (verdict, _) => {
                let (state, why) = task::passed_over(verdict, &short, &fetched.ref_name);
                self.passed_over(state, why, now, out)
            }
        }
    }

    /// Is this commit live, and was it no person who asked for it?
    fn repeats(&self, commit: &CommitId) -> bool {
        !self.queued.view.by.is_person() && self.live.as_ref().is_some_and(|live| live.commit == *commit)
    }

    /// Records the release before its folder is made, so that a crash leaves none that nobody knows.
    fn name_release(&mut self, commit: &CommitId, out: &mut Vec<Action>) -> Course {
        let release = ReleaseId::new(self.id(), commit);
        let left = self.queued.view.release.replace(release.clone());
        let next = if left.as_ref() == Some(&release) { Next::Clear } else { Next::Make };
        if let Some(left) = left.filter(|left| *left != release) {
            out.push(Action::RemoveRelease { app: self.queued.view.app.clone(), release: left });
        }
        self.persist(out);
        self.phase = Phase::Saving(next);
        Course::Goes
    }

    fn step_ended(&mut self, end: &JobEnd, now: Now, out: &mut Vec<Action>) -> Course {
        let label = self.label();
        let good = end.error.is_none() && end.exit.success();
        let lasted = now.mono.saturating_duration_since(self.step_began);
        let state = if good { StepState::Done } else { StepState::Failed };
        let exit = end.error.is_none().then(|| end.exit.into());
        record::end_step(&mut self.queued.view, state, Some(lasted), exit);
        match &end.error {
            Some(error) => self.failed(format!("{label} could not be started: {error}"), now, out),
            None if !good => self.failed(format!("{label} {}", end.exit), now, out),
            None => {
                let ended = self.queued.view.steps.iter().filter(|step| step.command.is_some()).count();
                self.next_step(ended, now, out)
            }
        }
    }

    /// What runs, as a reason names it.
    fn label(&self) -> String {
        match self.queued.view.steps.last() {
            Some(step) => step.command.as_ref().map_or(format!("the {}", step.name), |command| format!("`{command}`")),
            None => "the deploy".into(),
        }
    }

    // How it ends.

    fn timer(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        if self.deadline().is_none_or(|at| now.mono < at) {
            return Course::Goes;
        }
        let label = self.label();
        let why = match self.step_limit.filter(|(at, _)| *at <= self.limit) {
            Some((_, length)) => format!("{label} timed out after {}", show_span(length)),
            None => {
                format!("{label} timed out after {}, the limit of the whole deploy", show_span(self.deploy.timeout))
            }
        };
        self.stop(Stop::TimedOut(why), now, out)
    }

    /// Ends it where that is still possible: at once, or when what runs has ended.
    fn stop(&mut self, stop: Stop, now: Now, out: &mut Vec<Action>) -> Course {
        match (self.phase, &stop) {
            // It switches at once: there is nothing to begin anew.
            (Phase::Saving(_), Stop::Anew) if self.queued.is_rollback() => {}
            (Phase::Saving(_), _) | (Phase::Trying, Stop::Requeued) => return self.stopped(stop, now, out),
            (Phase::Trying | Phase::Flushing | Phase::Writing, _) => {}
            (Phase::Making, _) => self.stop_then(stop),
            (
                Phase::Fetching
                | Phase::Clearing
                | Phase::CheckingOut
                | Phase::Sharing
                | Phase::Stepping
                | Phase::Weighing,
                _,
            ) => {
                if self.stop.is_none() {
                    out.push(Action::EndJob { deploy: self.id() });
                }
                self.stop_then(stop);
            }
        }
        Course::Goes
    }

    /// The first word holds, but a person's counts more than the wish to begin anew.
    fn stop_then(&mut self, stop: Stop) {
        if matches!((&self.stop, &stop), (None, _) | (Some(Stop::Anew), Stop::Cancelled(_))) {
            self.stop = Some(stop);
        }
    }

    /// What is asked for, without what this try has found out: the tip is looked for again where it
    /// was meant, but what was approved stays that commit.
    fn anew(&self) -> Queued {
        let mut queued = Queued { since: Some(self.queued.rank()), ..self.queued.clone() };
        let view = &mut queued.view;
        let pushed = matches!(view.by, By::Delivery { .. }) && !task::means_tip(&self.queued, &self.deploy, self.tip);
        if !pushed && !self.queued.is_rollback() && view.approved_by.is_none() {
            view.commit = None;
        }
        if !self.queued.is_rollback() {
            view.release = None;
        }
        queued
    }

    fn stopped(&mut self, stop: Stop, now: Now, out: &mut Vec<Action>) -> Course {
        let (state, step, why) = match stop {
            Stop::TimedOut(why) => (DeployState::Failed, StepState::TimedOut, why),
            Stop::Cancelled(why) => (DeployState::Cancelled, StepState::Cancelled, why),
            Stop::Anew => {
                out.push(Action::Anew(Box::new(self.anew())));
                let why = "a reload changed the app: another deploy begins anew by the new config";
                (DeployState::Cancelled, StepState::Cancelled, why.to_owned())
            }
            Stop::Requeued => {
                record::requeue(&mut self.queued.view);
                // Nothing went wrong with this try.
                self.queued.attempts -= 1;
                self.persist(out);
                let (queued, deploy) = (self.queued.clone(), self.deploy.clone());
                let (tip, also, unsaved) = (self.tip, self.also.clone(), self.unsaved);
                return Course::Requeued(Box::new(Waiting { queued, deploy, tip, also, unsaved, built: None }));
            }
        };
        self.end(state, step, Some(why), now, out)
    }

    fn failed(&mut self, why: String, now: Now, out: &mut Vec<Action>) -> Course {
        self.end(DeployState::Failed, StepState::Failed, Some(why), now, out)
    }

    fn passed_over(&mut self, state: DeployState, why: String, now: Now, out: &mut Vec<Action>) -> Course {
        self.end(state, StepState::Done, Some(why), now, out)
    }

    /// Without a release to go back to it just failed.
    fn unproven(&mut self, why: String, now: Now, out: &mut Vec<Action>) -> Course {
        let state = if self.live.is_some() { DeployState::RolledBack } else { DeployState::Failed };
        self.end(state, StepState::Failed, Some(why), now, out)
    }

    fn go_back(&mut self, why: String, now: Now, out: &mut Vec<Action>) -> Course {
        out.push(Action::GoBack { deploy: self.id(), app: self.queued.view.app.clone() });
        self.unproven(why, now, out)
    }

    fn is_live(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        let Some((release, commit)) = self.target() else { return Course::Ended };
        let reason = self.queued.view.reason.take();
        let _ = self.end(DeployState::Live, StepState::Done, reason, now, out);
        out.push(Action::Prune { app: self.queued.view.app.clone(), keep: self.deploy.keep });
        Course::Live(Live { release, commit })
    }

    fn end(
        &mut self,
        state: DeployState,
        step: StepState,
        why: Option<String>,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Course {
        let lasted = now.mono.saturating_duration_since(self.step_began);
        record::end_step(&mut self.queued.view, step, Some(lasted), None);
        self.queued.view.reason = why;
        record::end(self.queued.view.clone(), self.queued.attempts, state, now.wall, out);
        Course::Ended
    }
}

impl JobEnd {
    /// Why a run of the tree helper came to nothing: its own last words where it had any.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        if let Some(error) = &self.error {
            return Some(format!("the tree helper could not be started: {error}"));
        }
        if self.exit.success() {
            return None;
        }
        let words = self.last_lines.iter().rev().find(|line| !line.trim().is_empty());
        Some(words.map_or(format!("the tree helper {}", self.exit), |line| line.trim().to_owned()))
    }
}
