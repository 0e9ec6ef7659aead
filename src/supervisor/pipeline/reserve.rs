//! Tree helpers that wait for their tasks, since to start one takes as long as what it does for a small
//! repository. The one that fetches starts while it is recorded that the deploy begins, and where its user is the
//! app's too, it does what follows as well. Else the one for that, mostly a checkout, starts while the fetch waits for
//! the remote: before, both would want the same processors. None does anything before it is told a task, says when
//! that is done, and ends where there is no other.

use std::{
    io::Write,
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use super::super::{
    Supervisor,
    event::{Event, Events},
    jobs::{JobId, JobSpec, LONGEST_ANSWER},
    keys::Keys,
    launch,
};
use crate::domain::{
    api::{DeployView, READS_TASKS, TreeTask, TreeWord},
    config::{self, Access, Identity},
    deploy::{self, Job, JobEnd, Who},
    model::{DeployId, Exit},
};

/// A helper that waits, and where it is told its tasks; without one it ends.
pub struct Reserve {
    pub job: JobId,
    order: UnixStream,
    who: Arc<Identity>,
}

impl Drop for Reserve {
    fn drop(&mut self) {
        // What it says is heard to its end.
        let _ = self.order.shutdown(Shutdown::Write);
    }
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
        // One that gets no keys need not wait for what it works in.
        let keyless = app.deploy.as_ref().is_some_and(|deploy| deploy.access == Access::default());
        let early = if keyless { self.have_fetcher_wait(&app, Keys::default()) } else { None };
        self.with_job_folders(&Arc::clone(&app), true, move |supervisor, made| match made {
            Ok(keys) if supervisor.fetchers.contains_key(&deploy) => {
                let waiting = early.or_else(|| supervisor.have_fetcher_wait(&app, keys));
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

    fn have_fetcher_wait(&mut self, app: &config::App, keys: Keys) -> Option<Reserve> {
        let who = self.fetcher(app).clone();
        self.have_wait(app, "fetch", who, keys)
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
            Some(Fetcher::Waiting(waiting)) => {
                if self.give(waiting, deploy, task) {
                    None
                } else {
                    Some(job)
                }
            }
        }
    }

    /// Starts the helper of what this deploy does after its fetch. Where that fails it is started in its turn.
    pub(super) fn have_helper_wait(&mut self, view: &DeployView, app: &Arc<config::App>) {
        if let Some(waiting) = self.have_wait(app, "next", app.work_as.clone(), Keys::default()) {
            self.reserves.insert(view.id, waiting);
        }
    }

    /// Has the helper that waits do this; gives it back where none does. None waits while a team's own commands run.
    pub(super) fn give_to_waiting(&mut self, deploy: DeployId, job: Job) -> Option<Job> {
        if let Job::Tree { who: Who::FetchUser, .. } = job {
            return Some(job);
        }
        let waiting = self.reserves.remove(&deploy);
        let Job::Tree { task, .. } = &job else { return Some(job) };
        let given = waiting.is_some_and(|waiting| self.give(waiting, deploy, task));
        if given { None } else { Some(job) }
    }

    fn have_wait(&mut self, app: &config::App, what: &str, who: Arc<Identity>, keys: Keys) -> Option<Reserve> {
        if self.is_ending() {
            // Those that waited were ended, and no deploy begins to ask for this one.
            self.put_away(keys);
            return None;
        }
        let log = self.deploy_stream(&app.name, &app.work_as)?;
        let (order, theirs) = UnixStream::pair().ok()?;
        order.set_nonblocking(true).ok()?;
        let words = tokio::net::UnixStream::from_std(order.try_clone().ok()?).ok()?;
        let name = format!("{}.{what}.job", app.name);
        let spec = JobSpec {
            deploy: None,
            app: app.name.clone(),
            args: ["everhook", "tree", READS_TASKS].map(str::to_owned).to_vec(),
            env: launch::base_env(&who),
            directory: self.layout.app(&app.name),
            who: Arc::clone(&who),
            is_step: false,
            cgroup: self.job_cgroup(&app.name, &name),
            keys,
            order: Some(Arc::new(OwnedFd::from(theirs))),
            rights: None,
        };
        let job = self.start_reserve(spec, name, log)?;
        tokio::spawn(hear(words, job, self.events.clone()));
        Some(Reserve { job, order, who })
    }

    /// Tells a helper a task; false: it does not do it.
    fn give(&mut self, reserve: Reserve, deploy: DeployId, task: &TreeTask) -> bool {
        let Ok(mut text) = serde_json::to_vec(task) else { return false };
        text.push(b'\n');
        // What it does not take at once, or half of it, is no task to it.
        if (&reserve.order).write_all(&text).is_err() {
            return false;
        }
        if let TreeTask::Sync { .. } = task {
            // The last one: it is gone before the next deploy begins.
            let _ = reserve.order.shutdown(Shutdown::Write);
        }
        self.employ(reserve, deploy)
    }

    /// A helper said something of its task; `None`: nothing that makes sense.
    fn helper_said(&mut self, id: JobId, word: Option<TreeWord>) {
        match word {
            Some(TreeWord::Begun) => self.have_next_wait(id),
            Some(TreeWord::Done(answer)) => {
                let Some((deploy, reserve)) = self.dismiss(id) else { return };
                let serves = self.spec_of(deploy).is_some_and(|(_, app)| app.work_as == reserve.who);
                if serves && !self.is_ending() {
                    self.reserves.insert(deploy, reserve);
                }
                let answer = answer.map(|answer| answer.get().as_bytes().to_vec()).unwrap_or_default();
                let end = JobEnd { exit: Exit::Code(0), error: None, answer, last_lines: Vec::new() };
                self.deploy_event(deploy::Event::JobEnded { deploy, end });
            }
            None => self.end_job(id),
        }
    }

    /// This helper has nothing to do but to wait: meanwhile the one for what follows starts.
    fn have_next_wait(&mut self, id: JobId) {
        let Some((deploy, employed)) = self.jobs.get(&id).and_then(|job| job.employed()) else { return };
        let Some((view, app)) = self.spec_of(deploy) else { return };
        if app.work_as != employed.who && !self.reserves.contains_key(&deploy) {
            self.have_helper_wait(&view, &app);
        }
    }
}

/// Hears what a helper says until it ends.
async fn hear(words: tokio::net::UnixStream, job: JobId, events: Events) {
    let mut words = BufReader::new(words.take(LONGEST_ANSWER as u64));
    let mut line = Vec::new();
    while matches!(words.read_until(b'\n', &mut line).await, Ok(1..)) {
        let word = serde_json::from_slice(&line).ok();
        let said = Box::new(move |supervisor: &mut Supervisor| supervisor.helper_said(job, word));
        if events.send(Event::Then(said)).is_err() {
            return;
        }
        line.clear();
    }
}
