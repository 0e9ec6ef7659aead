//! From the fetch to a folder that steps can work in.

use std::path::PathBuf;

use super::{Course, Next, Phase, Pipeline};
use crate::domain::{
    api::{DAMAGED, Fetch, Fetched, TreeTask, Verdict},
    deploy::{Action, Job, JobEnd, Who, task},
    model::{CommitId, Exit, Now, ReleaseId},
};

impl Pipeline {
    pub(super) fn fetch(&self) -> Fetch {
        task::fetch(&self.queued, &self.deploy, self.live.as_ref(), (self.tip, &self.also))
    }

    pub(super) fn target(&self) -> Option<(ReleaseId, CommitId)> {
        self.queued.view.release.clone().zip(self.queued.view.commit.clone())
    }

    pub(super) fn dir_of(&self, release: &ReleaseId) -> PathBuf {
        self.queued.places.release(release)
    }

    pub(super) fn release_dir(&self) -> Option<PathBuf> {
        self.queued.view.release.as_ref().map(|release| self.dir_of(release))
    }

    /// Names the release where its commit is known before the fetch, so that it is recorded with that. What a tag
    /// names is not.
    pub(super) fn foretell(&mut self) {
        let view = &self.queued.view;
        let of_branch = view.ref_name.as_ref().is_some_and(|name| name.starts_with("refs/heads/"));
        let any = self.queued.rev.is_some() || task::means_tip(&self.queued, &self.deploy, self.tip);
        if let Some(commit) = view.commit.clone().filter(|_| of_branch && !any && view.release.is_none()) {
            self.queued.view.release = Some(ReleaseId::new(self.id(), &commit));
            self.foretold = true;
        }
    }

    /// It comes to nothing: what was recorded of a release leads nowhere.
    pub(super) fn take_foretold_back(&mut self) {
        if std::mem::take(&mut self.foretold) {
            self.queued.view.release = None;
        }
    }

    pub(super) fn make(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        self.foretold = false;
        if !self.checks_elsewhere() {
            return self.next_step(now, out);
        }
        if let Some(release) = self.queued.view.release.clone() {
            let (deploy, app, needs_bytes) = (self.id(), self.queued.view.app.clone(), task::space(self.size));
            out.push(Action::MakeRelease { deploy, app, release, needs_bytes });
        }
        self.phase = Phase::Making;
        Course::Goes
    }

    pub(super) fn check_out(&mut self, out: &mut Vec<Action>) -> Course {
        let Some((release, commit)) = self.target() else { return Course::Goes };
        let (mirror, release) = (self.queued.places.mirror.clone(), self.dir_of(&release));
        self.run_tree(Phase::CheckingOut, TreeTask::Checkout { mirror, release, commit }, out)
    }

    pub(super) fn not_checked_out(&mut self, end: &JobEnd, why: String, now: Now, out: &mut Vec<Action>) -> Course {
        if self.may_heal(end) { self.fetch_anew(Phase::Fetching, why, out) } else { self.failed(why, now, out) }
    }

    /// Is what was fetched to blame, which may have rotted since? Once.
    pub(super) fn may_heal(&mut self, end: &JobEnd) -> bool {
        let damaged = end.error.is_none() && end.exit == Exit::Code(DAMAGED.into());
        damaged && !std::mem::replace(&mut self.healed, true)
    }

    /// All of it is fetched anew.
    pub(super) fn fetch_anew(&mut self, phase: Phase, why: String, out: &mut Vec<Action>) -> Course {
        let task = TreeTask::Fetch(Box::new(Fetch { damaged: Some(why), ..self.fetch() }));
        self.run(phase, Job::Tree { task, who: Who::FetchUser }, out)
    }

    pub(super) fn share(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        match self.sharing() {
            Some(task) => self.run_tree(Phase::Sharing, task, out),
            None => self.next_step(now, out),
        }
    }

    /// Has the release lead to what is shared, with all that the live one holds of it by now.
    pub(super) fn sharing(&self) -> Option<TreeTask> {
        let (id, _) = self.target().filter(|_| !self.deploy.shared.is_empty() && self.tree().is_none())?;
        let previous = self.live.as_ref().filter(|live| live.release != id).map(|live| self.dir_of(&live.release));
        let (release, shared) = (self.dir_of(&id), self.queued.places.app.join("shared"));
        Some(TreeTask::Share { release, shared, previous, paths: self.deploy.shared.clone() })
    }

    pub(super) fn fetched(&mut self, answer: &[u8], now: Now, out: &mut Vec<Action>) -> Course {
        let Ok(fetched) = serde_json::from_slice::<Fetched>(answer) else {
            return self.failed("the tree helper gave no answer that can be read".into(), now, out);
        };
        let view = &mut self.queued.view;
        view.commit = fetched.commit.or(view.commit.take());
        view.subject = fetched.subject.or(view.subject.take());
        view.author = fetched.author.or(view.author.take());
        view.ref_name = Some(fetched.ref_name.clone());
        // What a build makes of it is known of the last one.
        self.size = fetched.tree_bytes.max(fetched.live_bytes);
        self.steps = task::steps(&self.deploy, &fetched.changes).into();
        self.asks = task::irreversible(&self.deploy, &fetched.changes);
        if !fetched.behind.is_empty() {
            out.push(Action::Behind { app: view.app.clone(), behind: fetched.behind });
        }
        let commit = view.commit.clone();
        let short = commit.as_ref().map_or("it", CommitId::short).to_owned();
        match (fetched.verdict, commit) {
            (Verdict::Deploy, Some(commit)) if !self.repeats(&commit) => self.name_release(&commit, now, out),
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
    fn name_release(&mut self, commit: &CommitId, now: Now, out: &mut Vec<Action>) -> Course {
        let release = ReleaseId::new(self.id(), commit);
        if self.foretold && self.queued.view.release.as_ref() == Some(&release) {
            self.persist(out);
            return self.make(now, out);
        }
        self.take_foretold_back();
        let left = self.queued.view.release.replace(release.clone());
        let next = if left.as_ref() == Some(&release) { Next::Clear } else { Next::Make };
        if let Some(left) = left.filter(|left| *left != release) {
            out.push(Action::RemoveRelease { app: self.queued.view.app.clone(), release: left });
        }
        self.persist(out);
        self.phase = Phase::Saving(next);
        Course::Goes
    }
}
