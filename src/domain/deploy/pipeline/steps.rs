//! The team's own commands: before the switch, where the first that fails ends the deploy, and after its
//! end, which they change no more.

use super::{Course, Next, Over, Phase, Pipeline};
use crate::domain::{
    api::{DeployState, StepState, TreeTask},
    deploy::{Action, Job, JobEnd, StepKind, record, task::Planned},
    model::Now,
};

/// Of a command that a note names, in characters: the note is written at once or not at all.
const LONGEST_LABEL: usize = 200;

impl Pipeline {
    /// The step that is next; behind the last one before the switch the switch.
    pub(super) fn next_step(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        self.step_done(now);
        self.pass_over(out);
        let kind = self.steps.front().map(|planned| planned.kind);
        if self.awaits_place(kind) {
            return self.save_place(now, out);
        }
        let state = match kind {
            Some(StepKind::Check) => DeployState::Checking,
            Some(StepKind::Build) => DeployState::Building,
            _ if self.is_over() => self.queued.view.state,
            _ if self.must_ask() => return self.secure(now, out),
            Some(StepKind::BeforeSwitch) => DeployState::Building,
            _ if self.irreversible && !self.secured => return self.secure(now, out),
            _ if self.is_unnoted() => return self.note_steps(out),
            _ => {
                self.save_step(Next::Trial, DeployState::Switching, now, out);
                return Course::Goes;
            }
        };
        self.queued.view.state = state;
        let Some(Planned { kind, step, .. }) = self.steps.front() else { return self.close(now, out) };
        let (name, command) = (kind.name(), step.label().to_owned());
        self.begin_step(name, Some(command), now, out);
        self.phase = Phase::Saving(Next::Step);
        Course::Goes
    }

    /// Leaves out what stands before the next step that is to run.
    fn pass_over(&mut self, out: &mut Vec<Action>) {
        while let Some(next) = self.steps.front() {
            let now = match (&self.over, next.kind) {
                (None, StepKind::AfterLive | StepKind::OnFailure) => return,
                (None, _) => true,
                (Some(Over::Live(_)), kind) => kind == StepKind::AfterLive,
                (Some(Over::Failed), kind) => kind == StepKind::OnFailure,
            };
            if now && !next.left_out {
                return;
            }
            if now {
                let label: String = next.step.label().chars().take(LONGEST_LABEL).collect();
                let line = format!("`{label}` is left out: nothing that its `when` names differs from what is live");
                let (deploy, app) = (self.id(), self.queued.view.app.clone());
                out.push(Action::Note { deploy, app, line, trouble: false });
            }
            self.steps.pop_front();
        }
    }

    /// Does somebody have to be asked before it goes on to the switch? Once.
    fn must_ask(&mut self) -> bool {
        let Some(why) = self.asks.take() else { return false };
        self.irreversible = true;
        self.holds = !self.queued.may_switch();
        if self.holds {
            self.queued.view.reason = Some(format!("irreversible: {why}"));
        }
        self.holds
    }

    /// What is held, or may have to stay without being proven, outlives the machine too.
    fn secure(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        match self.release_dir() {
            Some(release) => self.run_tree(Phase::Securing, TreeTask::Sync { release }, out),
            None => self.secured(now, out),
        }
    }

    pub(super) fn secured(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        self.secured = true;
        if std::mem::take(&mut self.holds) { Course::Held } else { self.next_step(now, out) }
    }

    pub(super) fn run_step(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        let Some(Planned { kind, step, .. }) = self.steps.pop_front() else { return Course::Goes };
        let timeout = step.timeout.unwrap_or(self.deploy.timeout);
        self.secured = false;
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
            None => self.next_step(now, out),
        }
    }

    /// What runs, as a reason names it.
    pub(super) fn label(&self) -> String {
        if let Some(back) = &self.returning {
            return back.label();
        }
        match self.queued.view.steps.last() {
            Some(step) => step.command.as_ref().map_or(format!("the {}", step.name), |command| format!("`{command}`")),
            None => "the deploy".into(),
        }
    }
}
