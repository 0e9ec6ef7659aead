//! Which deploy runs when: one per app at a time, so many in all, the newest of those that wait.
//!
//! The law of coalescing: a newer deploy takes the place of every waiting one of its app and ref. A
//! rollback takes the place of all that wait, and only another rollback takes its own. What awaits
//! approval takes the place of its like alone, and holds nothing else up. What has switched and was not
//! proven gives way to what is live after it, and to nothing before.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use super::{
    Action, Event, Freeze, Live, Places, Queued,
    pipeline::{Course, Pipeline},
    record,
};
use crate::domain::{
    api::{By, DeployState, DeployView},
    config,
    model::{AppName, CommitId, DeployId, Now, ReleaseId},
};

/// So often a deploy is started; then it is given up.
const MOST_ATTEMPTS: u32 = 3;
/// Commits of pushes that one deploy stands for, the newest.
const MOST_OTHERS: usize = 50;

/// All deploys that wait or run.
#[derive(Debug)]
pub struct Deploys {
    parallel: usize,
    lanes: BTreeMap<AppName, Lane>,
    stopping: bool,
}

/// One app's deploys.
#[derive(Debug, Default)]
struct Lane {
    gate: Option<bool>,
    freeze: Option<Freeze>,
    live: Option<Live>,
    /// By their numbers.
    waiting: Vec<Waiting>,
    running: Option<Box<Pipeline>>,
}

/// A deploy in the line.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) queued: Queued,
    pub(super) deploy: config::Deploy,
    /// It stands for several pushes: deploy the ref's tip, which holds all of them.
    pub(super) tip: bool,
    /// The commits of the others, for a ref of which not every commit may be deployed.
    pub(super) also: Vec<CommitId>,
    /// Records that are not durable yet.
    pub(super) unsaved: u32,
    /// What is held before its switch: its release is built.
    pub(super) built: Option<Box<Pipeline>>,
}

impl Deploys {
    /// `parallel`: how many apps are deployed at once, at least one.
    #[must_use]
    pub fn new(parallel: u32) -> Self {
        Self { parallel: parallel.max(1) as usize, lanes: BTreeMap::new(), stopping: false }
    }

    /// An app without a deploy that waits or runs has another name now.
    pub fn rename(&mut self, old: &AppName, new: &AppName) {
        if let Some(lane) = self.lanes.remove(old) {
            self.lanes.insert(new.clone(), lane);
        }
    }

    /// After a reload; what runs goes on.
    pub fn set_parallel(&mut self, parallel: u32) {
        self.parallel = parallel.max(1) as usize;
    }

    /// Takes in what happened and pushes what is to be done, in this order.
    pub fn on(&mut self, event: Event, now: Now, out: &mut Vec<Action>) {
        match event {
            Event::Queue(queued) => self.queue(*queued, now, out),
            Event::Resume(all) => all.into_iter().for_each(|queued| self.queue(queued, now, out)),
            Event::Live { app, live } => self.lanes.entry(app).or_default().live = live,
            Event::Gate { app, open } => self.lanes.entry(app).or_default().gate = Some(open),
            Event::Freeze { app, freeze } => self.lanes.entry(app).or_default().freeze = freeze,
            Event::Approve { deploy, by } => self.approve(deploy, &by, now, out),
            Event::Reconfigure { app, places } => self.reconfigure(&app, &places, now, out),
            Event::Forget { app } => self.forget(&app, now, out),
            Event::Cancel { deploy, ref why } => {
                self.cancel_waiting(deploy, why, now, out);
                self.tell(deploy, event, now, out);
            }
            Event::Committed { deploy } => {
                self.tell(deploy, event, now, out);
                let waiting = self.lanes.values_mut().flat_map(|lane| &mut lane.waiting);
                if let Some(waiting) = waiting.into_iter().find(|waiting| waiting.queued.view.id == deploy) {
                    waiting.unsaved = waiting.unsaved.saturating_sub(1);
                }
            }
            Event::JobEnded { deploy, .. }
            | Event::ReleaseMade { deploy, .. }
            | Event::Switched { deploy }
            | Event::Trial { deploy, .. }
            | Event::LiveWritten { deploy, .. } => self.tell(deploy, event, now, out),
            Event::Shutdown => {
                self.stopping = true;
                self.tell_all(&event, now, out);
            }
            Event::Timer => self.tell_all(&event, now, out),
        }
        self.start_next(now, out);
    }

    /// When [`Event::Timer`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.lanes.values().filter_map(|lane| lane.running.as_ref()?.deadline()).min()
    }

    /// The deploy of this app that runs.
    #[must_use]
    pub fn running(&self, app: &AppName) -> Option<&DeployView> {
        Some(&self.lanes.get(app)?.running.as_ref()?.queued().view)
    }

    /// The deploys of this app that wait, oldest first.
    pub fn waiting(&self, app: &AppName) -> impl Iterator<Item = &DeployView> {
        self.lanes.get(app).into_iter().flat_map(|lane| &lane.waiting).map(|waiting| &waiting.queued.view)
    }

    /// Does a deploy of this app run or wait?
    #[must_use]
    pub fn is_busy(&self, app: &AppName) -> bool {
        self.running(app).is_some() || self.waiting(app).next().is_some()
    }

    /// A deploy that waits or runs, with the config it was queued with.
    #[must_use]
    pub fn find(&self, deploy: DeployId) -> Option<(&DeployView, &Arc<config::App>)> {
        let running = self.lanes.values().filter_map(|lane| lane.running.as_ref()).map(|pipeline| pipeline.queued());
        let waiting = self.lanes.values().flat_map(|lane| &lane.waiting).map(|waiting| &waiting.queued);
        running.chain(waiting).find(|queued| queued.view.id == deploy).map(|queued| (&queued.view, &queued.app))
    }

    /// Who froze this app's deploys, when and why.
    #[must_use]
    pub fn freeze(&self, app: &AppName) -> Option<&Freeze> {
        self.lanes.get(app)?.freeze.as_ref()
    }

    /// What to go back to from a deploy of this app that has switched and was not proven.
    #[must_use]
    pub fn before_unproven(&self, app: &AppName) -> Option<&ReleaseId> {
        let lane = self.lanes.get(app).filter(|lane| lane.waiting.iter().any(Waiting::is_unproven))?;
        lane.live.as_ref().map(|live| &live.release)
    }

    /// What is live of this app, whatever runs.
    #[must_use]
    pub fn live(&self, app: &AppName) -> Option<&Live> {
        self.lanes.get(app)?.live.as_ref()
    }

    /// Does this one run, and past the point where it can be cancelled?
    #[must_use]
    pub fn switches(&self, deploy: DeployId) -> bool {
        let mut running = self.lanes.values().filter_map(|lane| lane.running.as_ref());
        running.any(|pipeline| pipeline.queued().view.id == deploy && !pipeline.before_switch())
    }

    /// Does this one run steps that follow its end, and can be cancelled alone?
    #[must_use]
    pub fn is_over(&self, deploy: DeployId) -> bool {
        let mut running = self.lanes.values().filter_map(|lane| lane.running.as_ref());
        running.any(|pipeline| pipeline.queued().view.id == deploy && pipeline.is_over())
    }

    /// Does none run?
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.lanes.values().all(|lane| lane.running.is_none())
    }

    fn queue(&mut self, queued: Queued, now: Now, out: &mut Vec<Action>) {
        if self.find(queued.view.id).is_some() {
            return;
        }
        let Some(deploy) = queued.app.deploy.clone() else {
            return end(queued, DeployState::Failed, "the app has no repository any more".into(), now, out);
        };
        let held = queued.view.state == DeployState::AwaitingApproval || record::is_unproven(&queued.view);
        let held = held && !queued.view.steps.is_empty();
        if queued.attempts >= MOST_ATTEMPTS && !held {
            let why = format!("interrupted {} times", queued.attempts);
            return end(queued, DeployState::Failed, why, now, out);
        }
        let lane = self.lanes.entry(queued.view.app.clone()).or_default();
        let built = held.then(|| Pipeline::built(queued.clone(), (*deploy).clone(), lane.live.clone(), now));
        let mut waiting = Waiting { queued, deploy: *deploy, tip: false, also: Vec::new(), unsaved: 0, built };
        waiting.line_up(held, out);
        lane.join(waiting, now, out);
    }

    fn approve(&mut self, deploy: DeployId, by: &By, now: Now, out: &mut Vec<Action>) {
        for lane in self.lanes.values_mut() {
            let approved = |waiting: &mut Waiting| waiting.queued.view.id == deploy && waiting.awaits_approval();
            for mut waiting in lane.waiting.extract_if(.., approved).collect::<Vec<_>>() {
                waiting.queued.view.approved_by = Some(by.clone());
                waiting.queued.view.reason = None;
                waiting.line_up(false, out);
                lane.join(waiting, now, out);
            }
        }
    }

    fn reconfigure(&mut self, app: &Arc<config::App>, places: &Places, now: Now, out: &mut Vec<Action>) {
        let Some(lane) = self.lanes.get_mut(&app.name) else { return };
        let repo = |app: &config::App| app.deploy.as_ref().map(|deploy| deploy.repo.clone());
        let other = "its repository is another one in the config now";
        for Waiting { mut queued, tip, also, unsaved, built, .. } in std::mem::take(&mut lane.waiting) {
            match app.deploy.clone().filter(|_| repo(&queued.app) == repo(app)) {
                None => give_up(queued, other.into(), now, out),
                Some(deploy) => {
                    (queued.app, queued.places) = (Arc::clone(app), places.clone());
                    let mut waiting = Waiting { queued, deploy: *deploy, tip, also, unsaved, built };
                    waiting.forget_built(out);
                    waiting.line_up(false, out);
                    lane.join(waiting, now, out);
                }
            }
        }
        let Some(old) = lane.running.as_ref().map(|pipeline| pipeline.queued()) else { return };
        let deploy = old.view.id;
        if repo(&old.app) != repo(app) {
            lane.tell(Event::Cancel { deploy, why: other.into() }, now, out);
        } else if config::is_changed(&old.app, app) {
            lane.tell(Event::Reconfigure { app: Arc::clone(app), places: places.clone() }, now, out);
        }
    }

    fn forget(&mut self, app: &AppName, now: Now, out: &mut Vec<Action>) {
        let Some(lane) = self.lanes.get_mut(app) else { return };
        let why = "the app was removed from the config";
        for waiting in lane.waiting.drain(..) {
            give_up(waiting.queued, why.into(), now, out);
        }
        match lane.running.as_ref().map(|pipeline| pipeline.queued().view.id) {
            Some(deploy) => self.tell(deploy, Event::Cancel { deploy, why: why.into() }, now, out),
            None => drop(self.lanes.remove(app)),
        }
    }

    fn cancel_waiting(&mut self, deploy: DeployId, why: &str, now: Now, out: &mut Vec<Action>) {
        for lane in self.lanes.values_mut() {
            for waiting in lane.waiting.extract_if(.., |waiting| waiting.queued.view.id == deploy) {
                give_up(waiting.queued, why.to_owned(), now, out);
            }
        }
    }

    fn tell(&mut self, deploy: DeployId, event: Event, now: Now, out: &mut Vec<Action>) {
        let lane = self.lanes.values_mut().find(|lane| lane.runs(deploy));
        if let Some(lane) = lane {
            lane.tell(event, now, out);
        }
    }

    fn tell_all(&mut self, event: &Event, now: Now, out: &mut Vec<Action>) {
        for lane in self.lanes.values_mut() {
            lane.tell(event.clone(), now, out);
        }
    }

    fn start_next(&mut self, now: Now, out: &mut Vec<Action>) {
        while !self.stopping && self.lanes.values().filter(|lane| lane.running.is_some()).count() < self.parallel {
            let ready = self.lanes.values_mut().filter_map(|lane| lane.next().map(|next| (lane, next)));
            let first = ready.min_by_key(|(lane, next)| lane.waiting[*next].queued.view.id);
            let Some((lane, next)) = first else { return };
            let pipeline = Pipeline::start(lane.waiting.remove(next), lane.live.clone(), now, out);
            lane.running = Some(pipeline);
        }
    }
}

impl Lane {
    fn runs(&self, deploy: DeployId) -> bool {
        self.running.as_ref().is_some_and(|pipeline| pipeline.queued().view.id == deploy)
    }

    /// The place in the line of the one that may start. In a freeze that is a rollback alone: whoever
    /// finds a bad release live in the night needs it.
    fn next(&self) -> Option<usize> {
        let open = |waiting: &Waiting| self.gate.unwrap_or(waiting.queued.app.comes_after().next().is_none());
        let thawed = |waiting: &Waiting| self.freeze.is_none() || waiting.queued.is_rollback() || waiting.is_unproven();
        let may_start = |waiting: &Waiting| !waiting.awaits_approval() && thawed(waiting) && open(waiting);
        self.waiting.iter().position(may_start).filter(|_| self.running.is_none())
    }

    /// Puts a deploy into the line; of it and those that wait, the newer ones stay.
    fn join(&mut self, mut new: Waiting, now: Now, out: &mut Vec<Action>) {
        let older: Vec<_> = self.waiting.extract_if(.., |old| supersedes(&new.queued, &old.queued)).collect();
        for mut old in older {
            new.stand_for(&mut old);
            supersede(old.queued, new.queued.view.id, now, out);
        }
        if let Some(newer) = self.waiting.iter_mut().find(|old| supersedes(&old.queued, &new.queued)) {
            newer.stand_for(&mut new);
            return supersede(new.queued, newer.queued.view.id, now, out);
        }
        let place = self.waiting.partition_point(|old| old.queued.rank() < new.queued.rank());
        self.waiting.insert(place, new);
    }

    fn tell(&mut self, event: Event, now: Now, out: &mut Vec<Action>) {
        let Some(pipeline) = &mut self.running else { return };
        match pipeline.on(event, now, out) {
            Course::Goes => return,
            Course::Ended => {}
            Course::Live(live) => {
                let (by, back) = (pipeline.queued().view.id, pipeline.queued().is_rollback());
                self.live = Some(live);
                self.forget_built(out);
                self.end_unproven(by, back, now, out);
            }
            Course::Requeued(waiting) => self.waiting.insert(0, *waiting),
            Course::Held => {
                let Some(mut held) = self.running.take().map(Pipeline::hold) else { return };
                held.line_up(true, out);
                self.join(held, now, out);
            }
        }
        self.running = None;
    }

    /// Another release is live now: what was not proven is decided.
    fn end_unproven(&mut self, by: DeployId, back: bool, now: Now, out: &mut Vec<Action>) {
        for waiting in self.waiting.extract_if(.., |waiting| waiting.is_unproven()).collect::<Vec<_>>() {
            if back {
                end(waiting.queued, DeployState::RolledBack, format!("deploy {by} went back"), now, out);
            } else {
                supersede(waiting.queued, by, now, out);
            }
        }
    }

    /// What was built and held was judged beside another release: it begins anew, and asks again.
    fn forget_built(&mut self, out: &mut Vec<Action>) {
        self.waiting.iter_mut().for_each(|waiting| waiting.forget_built(out));
    }
}

impl Waiting {
    /// Records how it waits, where that is new. `held`: somebody is to be asked before it switches.
    fn line_up(&mut self, held: bool, out: &mut Vec<Action>) {
        let asks = match self.is_unproven() {
            true => self.queued.view.approved_by.is_none(),
            false => held || self.queued.needs_approval(),
        };
        let state = if asks { DeployState::AwaitingApproval } else { DeployState::Queued };
        if self.queued.view.state != state {
            self.queued.view.state = state;
            self.unsaved += 1;
            let view = Box::new(self.queued.view.clone());
            out.push(Action::Persist { view, attempts: self.queued.attempts });
        }
    }

    /// As if its release had never been built, nor been asked for.
    fn forget_built(&mut self, out: &mut Vec<Action>) {
        if self.is_unproven() || self.built.take().is_none() {
            return;
        }
        let state = self.queued.view.state;
        record::requeue(&mut self.queued.view);
        self.queued.view.state = state;
        if !self.queued.is_gated() {
            self.queued.view.approved_by = None;
        }
        self.line_up(false, out);
    }

    fn awaits_approval(&self) -> bool {
        self.queued.view.state == DeployState::AwaitingApproval
    }

    fn is_unproven(&self) -> bool {
        record::is_unproven(&self.queued.view)
    }

    /// A push that took the place of another must not lose it, should it be the older commit that
    /// came late. Where people approve commits, no other one goes live.
    fn stand_for(&mut self, old: &mut Self) {
        let push = |queued: &Queued| queued.rev.is_none() && !queued.is_rollback();
        let any = !self.deploy.approve && push(&self.queued) && push(&old.queued);
        if any && (old.tip || old.queued.view.commit != self.queued.view.commit) {
            self.tip = true;
            self.also.append(&mut old.also);
            self.also.extend(old.queued.view.commit.clone());
            self.also.drain(..self.also.len().saturating_sub(MOST_OTHERS));
        }
    }
}

fn supersedes(new: &Queued, old: &Queued) -> bool {
    if record::is_unproven(&new.view) || record::is_unproven(&old.view) {
        return record::is_unproven(&new.view) && record::is_unproven(&old.view) && new.rank() > old.rank();
    }
    let same_ref = match (&new.view.ref_name, &old.view.ref_name) {
        (Some(new), Some(old)) => new == old,
        _ => true,
    };
    let awaits = |queued: &Queued| queued.view.state == DeployState::AwaitingApproval;
    // What awaits approval makes room for its like and for a person's own, and for nothing that was
    // approved before it came.
    let may = match (awaits(old), awaits(new)) {
        (true, false) => new.view.approved_by.is_none(),
        (old, new) => old == new,
    };
    new.rank() > old.rank() && (new.is_rollback() || !old.is_rollback() && same_ref && may)
}

fn supersede(mut queued: Queued, by: DeployId, now: Now, out: &mut Vec<Action>) {
    queued.view.superseded_by = Some(by);
    end(queued, DeployState::Superseded, format!("deploy {by} is newer"), now, out);
}

/// Ends one that nobody wants any more; what it has switched goes back.
fn give_up(queued: Queued, why: String, now: Now, out: &mut Vec<Action>) {
    if record::is_unproven(&queued.view) {
        out.push(Action::RunLive { deploy: queued.view.id, app: queued.view.app.clone() });
    }
    end(queued, DeployState::Cancelled, why, now, out);
}

/// Ends one that does not run.
fn end(mut queued: Queued, state: DeployState, why: String, now: Now, out: &mut Vec<Action>) {
    queued.view.reason = Some(why);
    record::end(queued.view, queued.attempts, state, now.wall, out);
}
