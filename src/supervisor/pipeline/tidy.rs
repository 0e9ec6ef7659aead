//! Housekeeping of mirrors, after deploys: no deploy waits for it.

use std::{path::Path, time::Duration};

use tracing::warn;

use super::super::{Supervisor, keys::Keys};
use crate::domain::api::{DeployView, TreeTask};

/// It is ended then; the next one goes on.
const LIMIT: Duration = Duration::from_secs(15 * 60);

impl Supervisor {
    /// Looks after the mirror that this deploy fetched into. Whatever became of that: a fetch that was
    /// ended leaves half a pack behind.
    pub(super) fn tidy(&mut self, view: &DeployView) {
        let Some(app) = self.apps.get(&view.app).filter(|app| !app.is_removed()) else { return };
        let spec = std::sync::Arc::clone(app.spec());
        if self.is_ending() || !view.steps.iter().any(|step| step.name == "fetch") || spec.deploy.is_none() {
            return;
        }
        let mirror = self.places(&spec).mirror;
        if self.tidying.contains_key(&mirror) {
            return;
        }
        let who = self.fetcher(&spec).clone();
        let (task, tidied, app) = (TreeTask::Tidy { mirror: mirror.clone() }, mirror.clone(), view.app.clone());
        let job = self.start_errand(&view.app, &who, &task, Keys::default(), move |supervisor, end| {
            let unwanted = supervisor.tidying.remove(&tidied).is_none();
            if let Some(why) = end.failure().filter(|_| !unwanted) {
                warn!(%app, "the mirror of its repository was not tidied: {why}");
            }
        });
        if self.jobs.contains_key(&job) {
            self.tidying.insert(mirror, job);
            self.later(LIMIT, move |supervisor| supervisor.end_job(job));
        }
    }

    /// Somebody wants to fetch.
    pub(super) fn stop_tidying(&mut self, mirror: &Path) {
        if let Some(job) = self.tidying.remove(mirror) {
            self.end_job(job);
        }
    }
}
