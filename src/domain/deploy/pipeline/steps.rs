//! The team's own commands, and the question behind them: may it switch?

use super::{Course, Next, Phase, Pipeline};
use crate::domain::{
    api::{DeployState, StepState, TreeTask, Weighed},
    deploy::{Action, Job, JobEnd, StepKind, Who, record},
    model::Now,
};

impl Pipeline {
    /// The step at `index`; behind the last one the switch.
    pub(super) fn next_step(&mut self, index: usize, now: Now, out: &mut Vec<Action>) -> Course {
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

    pub(super) fn run_step(&mut self, index: usize, now: Now, out: &mut Vec<Action>) -> Course {
        let Some((kind, step)) = self.steps.get(index).cloned() else { return Course::Goes };
        let timeout = step.timeout.unwrap_or(self.deploy.timeout);
        self.step_began = now.mono;
        self.step_limit = Some((now.mono + timeout, timeout));
        self.run(Phase::Stepping, Job::Step { kind, run: step.run }, out)
    }

    pub(super) fn step_ended(&mut self, end: &JobEnd, now: Now, out: &mut Vec<Action>) -> Course {
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
    pub(super) fn label(&self) -> String {
        match self.queued.view.steps.last() {
            Some(step) => step.command.as_ref().map_or(format!("the {}", step.name), |command| format!("`{command}`")),
            None => "the deploy".into(),
        }
    }

    /// Before the switch: does somebody have to be asked?
    fn weigh(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        let (from, to) = (self.live.as_ref().map(|live| live.commit.clone()), self.queued.view.commit.clone());
        let Some((from, to)) = from.zip(to).filter(|_| !self.deploy.irreversible.is_empty()) else {
            self.save_step(Next::Trial, DeployState::Switching, None, now, out);
            return Course::Goes;
        };
        let (mirror, repo) = (self.queued.places.mirror.clone(), self.deploy.repo.clone());
        let task = TreeTask::Weigh { mirror, repo, from, to, paths: self.deploy.irreversible.clone() };
        self.run(Phase::Weighing, Job::Tree { task, who: Who::FetchUser }, out)
    }

    pub(super) fn weighed(&mut self, answer: &[u8], now: Now, out: &mut Vec<Action>) -> Course {
        match serde_json::from_slice::<Weighed>(answer) {
            Ok(Weighed { irreversible: None }) => {
                self.save_step(Next::Trial, DeployState::Switching, None, now, out);
                Course::Goes
            }
            Ok(Weighed { irreversible: Some(why) }) => {
                self.irreversible = true;
                self.queued.view.reason = Some(format!("irreversible: {why}"));
                self.secure(out)
            }
            Err(_) => self.failed("the tree helper gave no answer that can be read".into(), now, out),
        }
    }

    /// What is held, or may have to stay without being proven, outlives the machine too.
    fn secure(&mut self, out: &mut Vec<Action>) -> Course {
        match self.release_dir() {
            Some(release) => self.run_tree(Phase::Securing, TreeTask::Sync { release }, out),
            None => Course::Held,
        }
    }

    pub(super) fn secured(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        if !self.queued.may_switch() {
            return Course::Held;
        }
        self.queued.view.reason = None;
        self.save_step(Next::Trial, DeployState::Switching, None, now, out);
        Course::Goes
    }
}
