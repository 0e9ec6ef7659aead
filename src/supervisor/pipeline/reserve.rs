//! Tree helpers that wait for their task, since to start one takes as long as what it does for a small
//! repository. The one that fetches starts while it is recorded that the deploy begins; the one for what follows,
//! mostly a checkout as the app's user, while the fetch runs. Neither does anything before it is told its task, and
//! each ends where there is none.

use std::{
    io::Write,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
};

use super::super::{
    Supervisor,
    jobs::{JobId, JobSpec},
    keys::Keys,
    launch,
};
use crate::domain::{
    api::{DeployView, READS_TASK, TreeTask},
    config::{self, Identity},
    deploy::{Job, Who},
    model::DeployId,
};

/// The helper that waits, and where it is told its task; without one it ends.
pub struct Reserve {
    job: JobId,
    order: UnixStream,
}

/// The helper of a deploy's fetch.
pub enum Fetcher {
    /// What it needs is being made; the task is perhaps there by then.
    Preparing(Option<Job>),
    Waiting(Reserve),
}

impl Supervisor {
    /// Starts the helper of a fetch that follows. Where that fails it is started in its turn.
    pub(super) fn expect_fetch(&mut self, deploy: DeployId) {
        let Some((_, app)) = self.spec_of(deploy) else { return };
        self.fetchers.insert(deploy, Fetcher::Preparing(None));
        self.with_job_folders(&Arc::clone(&app), true, move |supervisor, made| match made {
            Ok(keys) => {
                supervisor.with_deploy_log(&app, deploy, move |supervisor| supervisor.prepared(deploy, keys));
            }
            Err(error) => {
                if let Some(Fetcher::Preparing(Some(_))) = supervisor.fetchers.remove(&deploy) {
                    supervisor.job_refused(deploy, error);
                }
            }
        });
    }

    /// Forgets the task that the helper of a fetch was to get; false: there is none that waits to be given.
    pub fn takes_from_fetcher(&mut self, deploy: DeployId) -> bool {
        let Some(Fetcher::Preparing(task)) = self.fetchers.get_mut(&deploy) else { return false };
        task.take().is_some()
    }

    fn prepared(&mut self, deploy: DeployId, keys: Keys) {
        let found = self.fetchers.remove(&deploy).zip(self.spec_of(deploy));
        let Some((Fetcher::Preparing(task), (view, app))) = found else {
            // It has ended meanwhile.
            return self.files.run(move || drop(keys), |_, ()| ());
        };
        if let Some(job) = task {
            return self.begin_job(&view, job, keys);
        }
        let who = self.config.deploys.fetch_as.clone().unwrap_or_else(|| app.work_as.clone());
        if let Some(waiting) = self.have_wait(&app, "fetch", who, keys) {
            self.fetchers.insert(deploy, Fetcher::Waiting(waiting));
        }
    }

    /// Has the helper of the fetch do this; gives it back where none is there.
    pub(super) fn give_to_fetcher(&mut self, deploy: DeployId, job: Job) -> Option<Job> {
        let Job::Tree { task: task @ TreeTask::Fetch(_), who: Who::FetchUser } = &job else { return Some(job) };
        match self.fetchers.remove(&deploy) {
            None => return Some(job),
            Some(Fetcher::Preparing(_)) => {
                self.fetchers.insert(deploy, Fetcher::Preparing(Some(job)));
                return None;
            }
            Some(Fetcher::Waiting(waiting)) => {
                if !self.give(waiting, deploy, task) {
                    return Some(job);
                }
            }
        }
        if let Some((view, app)) = self.spec_of(deploy) {
            self.have_helper_wait(&view, &app);
        }
        None
    }

    /// Starts the helper of what this deploy does after its fetch. Where that fails it is started in its turn.
    pub(super) fn have_helper_wait(&mut self, view: &DeployView, app: &Arc<config::App>) {
        if let Some(waiting) = self.have_wait(app, "next", app.work_as.clone(), Keys::default()) {
            self.reserves.insert(view.id, waiting);
        }
    }

    /// Gives the helper that waits this task; false: none does.
    pub(super) fn give_to_waiting(&mut self, deploy: DeployId, task: &TreeTask) -> bool {
        self.reserves.remove(&deploy).is_some_and(|waiting| self.give(waiting, deploy, task))
    }

    fn have_wait(&mut self, app: &config::App, what: &str, who: Arc<Identity>, keys: Keys) -> Option<Reserve> {
        if self.is_ending() {
            // Those that waited were ended, and no deploy begins to ask for this one.
            self.files.run(move || drop(keys), |_, ()| ());
            return None;
        }
        let log = self.deploy_stream(&app.name, &app.work_as)?;
        let (order, theirs) = UnixStream::pair().ok()?;
        let name = format!("{}.{what}.job", app.name);
        let job = JobSpec {
            deploy: None,
            app: app.name.clone(),
            args: ["everhook", "tree", READS_TASK].map(str::to_owned).to_vec(),
            env: launch::base_env(&who),
            directory: self.layout.app(&app.name),
            who,
            is_step: false,
            cgroup: self.job_cgroup(&app.name, &name),
            keys,
            order: Some(Arc::new(OwnedFd::from(theirs))),
        };
        self.start_reserve(job, name, log).map(|job| Reserve { job, order })
    }

    fn give(&mut self, Reserve { job, mut order }: Reserve, deploy: DeployId, task: &TreeTask) -> bool {
        let Ok(text) = serde_json::to_vec(task) else { return false };
        // What it does not take at once, or half of it, is no task to it.
        let told = order.set_nonblocking(true).and_then(|()| order.write_all(&text));
        told.is_ok() && self.employ(job, deploy)
    }
}
