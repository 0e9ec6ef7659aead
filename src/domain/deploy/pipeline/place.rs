//! `layout: InPlace`: after its checks, in a folder of their own, the working tree itself is brought to the
//! commit and built there. What comes to nothing from there on brings it back and builds it first, and
//! ends as it would have then.
//!
//! ```text
//! Placing ─► Stepping … ─► (Noting) ─► Trying ─► … live       (Healing: the mirror was damaged)
//!    └────────┴─────────────┴───────────┴─► Returning ─► (Rebuilding …) ─► (Noting) ─► its end
//! ```

use std::{collections::VecDeque, path::PathBuf};

use super::{Course, Next, Phase, Pipeline, Stop};
use crate::domain::{
    api::{DeployState, Place, StepState, To, TreeTask},
    config,
    deploy::{Action, Job, JobEnd, StepKind, task},
    model::{CommitId, Now},
};

/// How far the working tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    AsItWas,
    /// At the new commit, or on its way there.
    Moved,
    /// What steps did to it is noted.
    Noted,
}

/// How a deploy ends once its tree is back.
#[derive(Debug)]
pub(super) struct Return {
    state: DeployState,
    step: StepState,
    why: Option<String>,
    /// Instances may have been started in it.
    tried: bool,
    steps: VecDeque<config::Step>,
    /// The step that runs.
    step_label: Option<String>,
}

impl Return {
    /// What runs, as a reason names it.
    pub(super) fn label(&self) -> String {
        self.step_label.as_ref().map_or_else(|| "bringing it back".to_owned(), |label| format!("`{label}`"))
    }
}

impl Pipeline {
    /// The working tree that its commits go into.
    pub(super) fn tree(&self) -> Option<PathBuf> {
        self.deploy.tree().map(PathBuf::from)
    }

    /// What a rollback has to do: the tree has but one commit at a time.
    pub(super) fn place_back(&mut self, now: Now, out: &mut Vec<Action>) {
        self.steps.retain(|planned| !matches!(planned.kind, StepKind::Check | StepKind::BeforeSwitch));
        let _ = self.next_step(now, out);
    }

    /// Is a folder needed that is thrown away after the checks?
    pub(super) fn checks_elsewhere(&self) -> bool {
        self.tree().is_none() || self.steps.iter().any(|planned| planned.kind == StepKind::Check && !planned.left_out)
    }

    /// Is it the tree's turn?
    pub(super) fn awaits_place(&self, next: Option<StepKind>) -> bool {
        let turn = next != Some(StepKind::Check) && !self.is_over();
        turn && self.tree().is_some() && self.progress == Progress::AsItWas
    }

    pub(super) fn save_place(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        self.queued.view.state = DeployState::Building;
        self.begin_step(StepKind::Build.name(), None, now, out);
        self.phase = Phase::Saving(Next::Place);
        Course::Goes
    }

    pub(super) fn place(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        let Some((release, commit)) = self.target() else {
            return self.failed("the commit of the release is not known".into(), now, out);
        };
        if self.made || self.queued.attempts > 1 && !self.queued.is_rollback() {
            out.push(Action::RemoveRelease { app: self.queued.view.app.clone(), release });
        }
        // From here on steps work in the tree.
        self.made = true;
        self.place_commit(commit, out)
    }

    fn place_commit(&mut self, commit: CommitId, out: &mut Vec<Action>) -> Course {
        self.progress = Progress::Moved;
        let builds = self
            .steps
            .iter()
            .any(|planned| matches!(planned.kind, StepKind::Build | StepKind::BeforeSwitch) && !planned.left_out);
        let to = To::Commit { commit, ref_name: self.queued.view.ref_name.clone() };
        if !builds {
            self.progress = Progress::Noted;
        }
        self.bring(Phase::Placing, to, builds, out)
    }

    fn bring(&mut self, phase: Phase, to: To, builds: bool, out: &mut Vec<Action>) -> Course {
        let Some(tree) = self.tree() else { return Course::Goes };
        let (mirror, repo) = (self.queued.places.mirror.clone(), self.deploy.repo.clone());
        let goes_back = self.returning.is_some() || self.queued.is_rollback();
        let needs_bytes = if goes_back { 0 } else { task::space(self.size) };
        let task = Place { deploy: self.id(), tree, mirror, repo, to, builds, needs_bytes };
        self.run_tree(phase, TreeTask::Place(Box::new(task)), out)
    }

    /// It could not be placed, and is as it was.
    pub(super) fn not_placed(&mut self, end: &JobEnd, why: String, now: Now, out: &mut Vec<Action>) -> Course {
        self.progress = Progress::AsItWas;
        if self.may_heal(end) { self.fetch_anew(Phase::Healing, why, out) } else { self.failed(why, now, out) }
    }

    /// The mirror is a fresh one: on with the same commit.
    pub(super) fn healed(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        match self.target() {
            Some((_, commit)) => self.place_commit(commit, out),
            None => self.failed("the commit of the release is not known".into(), now, out),
        }
    }

    /// Must be noted what steps did to the tree?
    pub(super) fn is_unnoted(&self) -> bool {
        self.progress == Progress::Moved
    }

    pub(super) fn note_steps(&mut self, out: &mut Vec<Action>) -> Course {
        let Some(tree) = self.tree() else { return Course::Goes };
        let mirror = self.queued.places.mirror.clone();
        self.run_tree(Phase::Noting, TreeTask::Built { tree, mirror }, out)
    }

    pub(super) fn noted(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        self.progress = Progress::Noted;
        self.next_step(now, out)
    }

    /// Must the tree be brought back before it ends so?
    pub(super) fn must_return(&self, state: DeployState) -> bool {
        self.progress != Progress::AsItWas && state != DeployState::Live
    }

    pub(super) fn begin_return(
        &mut self,
        state: DeployState,
        step: StepState,
        why: Option<String>,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Course {
        self.end_step(step, now);
        let tried = !self.before_switch();
        // Where nothing was live there is nothing that would have to be built.
        let build = if self.live.is_some() { self.deploy.build.clone() } else { Vec::new() };
        let builds = !build.is_empty();
        self.returning = Some(Return { state, step, why, tried, steps: build.into(), step_label: None });
        (self.limit, self.step_limit) = (now.mono + self.deploy.timeout, None);
        let live = self.live.as_ref().map(|live| live.commit.clone());
        let line = match &live {
            Some(commit) => format!("the working tree is brought back to {}", commit.short()),
            None => "the working tree is brought back".to_owned(),
        };
        out.push(Action::Note { deploy: self.id(), app: self.queued.view.app.clone(), line, trouble: false });
        self.bring(Phase::Returning, To::Back { live }, builds, out)
    }

    /// A job of the way back has ended.
    pub(super) fn went_back(&mut self, end: &JobEnd, now: Now, out: &mut Vec<Action>) -> Course {
        match self.stop.take() {
            Some(Stop::Requeued) => {
                self.returning = None;
                return self.stopped(Stop::Requeued, now, out);
            }
            Some(Stop::TimedOut(why)) => return self.returned(Some(why), now, out),
            Some(Stop::Cancelled(_) | Stop::Anew) | None => {}
        }
        let label = self.label();
        match (self.phase, end.failure()) {
            (Phase::Rebuilding, Some(_)) if end.error.is_none() => {
                return self.returned(Some(format!("{label} {}", end.exit)), now, out);
            }
            (_, Some(why)) => return self.returned(Some(why), now, out),
            (Phase::Noting, None) => return self.returned(None, now, out),
            (_, None) => {}
        }
        let built = self.phase == Phase::Rebuilding;
        let next = self.returning.as_mut().and_then(|back| {
            let next = back.steps.pop_front();
            back.step_label = next.as_ref().map(|step| step.label().to_owned());
            next
        });
        match next {
            Some(step) => {
                let timeout = step.timeout.unwrap_or(self.deploy.timeout);
                self.step_limit = Some((now.mono + timeout, timeout));
                self.run(Phase::Rebuilding, Job::Step { kind: StepKind::Build, run: step.run }, out)
            }
            None if built => {
                self.step_limit = None;
                self.note_steps(out)
            }
            None => self.returned(None, now, out),
        }
    }

    fn returned(&mut self, trouble: Option<String>, now: Now, out: &mut Vec<Action>) -> Course {
        let Some(Return { state, step, mut why, tried, .. }) = self.returning.take() else { return Course::Goes };
        self.progress = Progress::AsItWas;
        if let Some(trouble) = trouble {
            let line = format!("the working tree could not be brought back: {trouble}");
            why = Some(why.map_or_else(|| line.clone(), |why| format!("{why}; {line}")));
            out.push(Action::Note { deploy: self.id(), app: self.queued.view.app.clone(), line, trouble: true });
        }
        if tried {
            out.push(Action::RunLive { deploy: self.id(), app: self.queued.view.app.clone() });
        }
        self.end(state, step, why, now, out)
    }
}
