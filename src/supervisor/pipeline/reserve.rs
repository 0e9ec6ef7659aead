//! A tree helper that waits for its task. What follows a fetch is mostly a checkout, as the app's user: its
//! helper starts while the fetch runs, since to start it takes as long as to check a small repository
//! out. It does nothing before it is told its task, and ends where there is none.

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
    config,
    model::DeployId,
};

/// The helper that waits, and where it is told its task; without one it ends.
pub struct Reserve {
    job: JobId,
    order: UnixStream,
}

impl Supervisor {
    /// Starts the helper of what this deploy does after its fetch. Where that fails it is started in its turn.
    pub(super) fn have_helper_wait(&mut self, view: &DeployView, app: &Arc<config::App>) {
        let Some(log) = self.deploy_stream(&app.name, &app.work_as) else { return };
        let Ok((order, theirs)) = UnixStream::pair() else { return };
        let name = format!("{}.next", app.name);
        let job = JobSpec {
            deploy: None,
            app: app.name.clone(),
            args: ["everhook", "tree", READS_TASK].map(str::to_owned).to_vec(),
            env: launch::base_env(&app.work_as),
            directory: self.layout.app(&app.name),
            who: app.work_as.clone(),
            is_step: false,
            cgroup: self.job_cgroup(&app.name, &name),
            keys: Keys::default(),
            order: Some(Arc::new(OwnedFd::from(theirs))),
        };
        if let Some(job) = self.start_reserve(job, name, log) {
            self.reserves.insert(view.id, Reserve { job, order });
        }
    }

    /// Gives the helper that waits this task; false: none does.
    pub(super) fn give_to_waiting(&mut self, deploy: DeployId, task: &TreeTask) -> bool {
        let Some(Reserve { job, mut order }) = self.reserves.remove(&deploy) else { return false };
        let Ok(text) = serde_json::to_vec(task) else { return false };
        // What it does not take at once, or half of it, is no task to it.
        let told = order.set_nonblocking(true).and_then(|()| order.write_all(&text));
        told.is_ok() && self.employ(job, deploy)
    }
}
