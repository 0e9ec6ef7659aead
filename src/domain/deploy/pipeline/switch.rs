//! The switch: a release is tried, and is live once it is proven and written.

use super::{Course, Phase, Pipeline};
use crate::domain::{
    api::{DeployState, StepState, TreeTask},
    deploy::{Action, record},
    model::Now,
};

impl Pipeline {
    /// Before it is tried it gets what the live one has saved since, in place of links to what is shared.
    pub(super) fn switch(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        match self.sharing() {
            Some(task) => self.run_tree(Phase::SharingAgain, task, out),
            None => self.bridge(now, out),
        }
    }

    /// And the files of those before that have to stay reachable.
    pub(super) fn bridge(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        let previous = self.live.as_ref().map(|live| live.release.clone());
        let wanted = !self.deploy.bridge.is_empty() && self.tree().is_none();
        let both = previous.zip(self.queued.view.release.clone()).filter(|(old, new)| wanted && old != new);
        let Some((previous, release)) = both else { return self.try_release(now, out) };
        let (release, previous) = (self.dir_of(&release), self.dir_of(&previous));
        let (shared, paths) = (self.queued.places.app.join("shared"), self.deploy.bridge.clone());
        let task = TreeTask::Bridge { release, previous, shared, paths, keep: self.deploy.kept() };
        self.run_tree(Phase::Bridging, task, out)
    }

    pub(super) fn try_release(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        let Some((release, commit)) = self.target() else {
            return self.failed("the commit of the release is not known".into(), now, out);
        };
        let (deploy, app, settle) = (self.id(), self.queued.view.app.clone(), self.deploy.settle);
        out.push(Action::StartTrial { deploy, app, release, commit, settle, stands: self.irreversible });
        self.phase = Phase::Trying;
        Course::Goes
    }

    pub(super) fn flush(&mut self, out: &mut Vec<Action>) -> Course {
        match self.tree().or_else(|| self.release_dir()) {
            Some(release) => self.run_tree(Phase::Flushing, TreeTask::Sync { release }, out),
            None => self.write_live(out),
        }
    }

    pub(super) fn write_live(&mut self, out: &mut Vec<Action>) -> Course {
        if let Some((release, commit)) = self.target() {
            out.push(Action::WriteLive { deploy: self.id(), app: self.queued.view.app.clone(), release, commit });
        }
        self.phase = Phase::Writing;
        Course::Goes
    }

    /// Without a release to go back to it just failed. What cannot be taken back is not.
    pub(super) fn unproven(&mut self, why: String, now: Now, out: &mut Vec<Action>) -> Course {
        if self.irreversible {
            let lasted = now.mono.saturating_duration_since(self.step_began);
            record::end_step(&mut self.queued.view, StepState::Failed, Some(lasted), None);
            record::stand(&mut self.queued.view, &why);
            return Course::Held;
        }
        let state = if self.live.is_some() { DeployState::RolledBack } else { DeployState::Failed };
        self.end(state, StepState::Failed, Some(why), now, out)
    }

    /// A proven release that cannot be made the live one.
    pub(super) fn unwritten(&mut self, why: String, now: Now, out: &mut Vec<Action>) -> Course {
        // A working tree is brought back first.
        if !self.irreversible && self.tree().is_none() {
            out.push(Action::RunLive { deploy: self.id(), app: self.queued.view.app.clone() });
        }
        self.unproven(why, now, out)
    }

    pub(super) fn is_live(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        let reason = self.queued.view.reason.take();
        if self.kept {
            // In place of whatever still runs of the release before.
            out.push(Action::RunLive { deploy: self.id(), app: self.queued.view.app.clone() });
        }
        self.end(DeployState::Live, StepState::Done, reason, now, out)
    }
}
