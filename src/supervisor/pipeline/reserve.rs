//! Tree helpers that wait for their task, since to start one takes as long as what it does for a small
//! repository. The one that fetches starts while it is recorded that the deploy begins; the one for what follows,
//! mostly a checkout as the app's user, while the fetch waits for the remote: before, both would want the same
//! processors. Neither does anything before it is told its task, and each ends where there is none.

use std::{
    io::Write,
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
};

use super::super::{
    Supervisor,
    event::Event,
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
            Ok(keys) if supervisor.fetchers.contains_key(&deploy) => {
                let who = supervisor.config.deploys.fetch_as.clone().unwrap_or_else(|| app.work_as.clone());
                let waiting = supervisor.have_wait(&app, "fetch", who, keys);
                // Meanwhile it starts: what it says comes after its task.
                supervisor.with_deploy_log(&app, deploy, move |supervisor| supervisor.prepared(deploy, waiting));
            }
            // It has ended meanwhile.
            Ok(keys) => supervisor.put_away(keys),
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

    fn prepared(&mut self, deploy: DeployId, waiting: Option<Reserve>) {
        let Some(Fetcher::Preparing(task)) = self.fetchers.remove(&deploy) else { return };
        self.fetchers.extend(waiting.map(|waiting| (deploy, Fetcher::Waiting(waiting))));
        if let Some(job) = task {
            self.run_job(deploy, job);
        }
    }

    /// Has the helper of the fetch do this; gives it back where none is there.
    pub(super) fn give_to_fetcher(&mut self, deploy: DeployId, job: Job) -> Option<Job> {
        let Job::Tree { task: task @ TreeTask::Fetch(_), who: Who::FetchUser } = &job else { return Some(job) };
        match self.fetchers.remove(&deploy) {
            None => Some(job),
            Some(Fetcher::Preparing(_)) => {
                self.fetchers.insert(deploy, Fetcher::Preparing(Some(job)));
                None
            }
            Some(Fetcher::Waiting(waiting)) => match self.give(waiting, deploy, task) {
                None => Some(job),
                Some(order) => {
                    self.when_begun(order, move |supervisor| supervisor.have_next_wait(deploy));
                    None
                }
            },
        }
    }

    /// Goes on once this helper has nothing to do but to wait, or has ended.
    fn when_begun(&self, order: UnixStream, then: impl FnOnce(&mut Supervisor) + Send + 'static) {
        let Ok(order) = tokio::net::UnixStream::from_std(order) else { return };
        let events = self.events.clone();
        tokio::spawn(async move {
            let _ = order.readable().await;
            let _ = events.send(Event::Then(Box::new(then)));
        });
    }

    fn have_next_wait(&mut self, deploy: DeployId) {
        let Some((view, app)) = self.spec_of(deploy) else { return };
        let runs = self.deploys.running(&app.name).is_some_and(|running| running.id == deploy);
        if runs && !self.reserves.contains_key(&deploy) {
            self.have_helper_wait(&view, &app);
        }
    }

    /// Starts the helper of what this deploy does after its fetch. Where that fails it is started in its turn.
    pub(super) fn have_helper_wait(&mut self, view: &DeployView, app: &Arc<config::App>) {
        if let Some(waiting) = self.have_wait(app, "next", app.work_as.clone(), Keys::default()) {
            self.reserves.insert(view.id, waiting);
        }
    }

    /// Has the helper that waits do this; gives it back where none does.
    pub(super) fn give_to_waiting(&mut self, deploy: DeployId, job: Job) -> Option<Job> {
        let Job::Tree { task, who: Who::AppUser } = &job else { return Some(job) };
        let given = self.reserves.remove(&deploy).and_then(|waiting| self.give(waiting, deploy, task));
        if given.is_some() { None } else { Some(job) }
    }

    fn have_wait(&mut self, app: &config::App, what: &str, who: Arc<Identity>, keys: Keys) -> Option<Reserve> {
        if self.is_ending() {
            // Those that waited were ended, and no deploy begins to ask for this one.
            self.put_away(keys);
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

    /// Tells a helper its task; what it was told by is closed by it. `None`: it does not do it.
    fn give(&mut self, Reserve { job, mut order }: Reserve, deploy: DeployId, task: &TreeTask) -> Option<UnixStream> {
        let text = serde_json::to_vec(task).ok()?;
        // What it does not take at once, or half of it, is no task to it.
        order.set_nonblocking(true).and_then(|()| order.write_all(&text)).ok()?;
        order.shutdown(Shutdown::Write).ok()?;
        self.employ(job, deploy).then_some(order)
    }
}
