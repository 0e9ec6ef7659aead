//! What an app saves of its shared files while it is being stopped. Where a release takes the place of the one
//! before only once that has ended, it is carried over in between.

use std::sync::Arc;

use super::super::{Supervisor, keys::Keys, seats::SeatId};
use crate::domain::{api::TreeTask, config::Identity, deploy::JobEnd, model::DeployId};

impl Supervisor {
    /// Goes on once all that the release before has saved is where the one on trial finds it.
    pub fn with_shared(
        &mut self,
        id: &SeatId,
        then: impl FnOnce(&mut Supervisor, Result<(), String>) + Send + 'static,
    ) {
        let Some((deploy, who, task)) = self.last_sharing(id) else { return then(self, Ok(())) };
        let app = id.app.clone();
        self.start_errand(&id.app, &who, &task, Keys::default(), move |supervisor, end: JobEnd| {
            for line in &end.last_lines {
                supervisor.note_deploy(&app, deploy, line, false);
            }
            then(supervisor, end.failure().map_or(Ok(()), Err));
        });
    }

    fn last_sharing(&self, id: &SeatId) -> Option<(DeployId, Arc<Identity>, TreeTask)> {
        let deploy = *self.trials.get(&id.app)?;
        let (app, (view, spec)) = (self.apps.get(&id.app)?, self.deploys.find(deploy)?);
        let how = spec.deploy.as_ref().filter(|how| how.tree().is_none() && !how.shared.is_empty())?;
        let (new, old) = (view.release.as_ref()?, self.deploys.live(&id.app)?.release.clone());
        let starts = app.run(id.seat)?.release.as_ref().is_some_and(|release| release.id == *new);
        if !starts || old == *new || app.spec().keeps_the_old_one() {
            return None;
        }
        let (release, previous) = (self.layout.release(&id.app, new), Some(self.layout.release(&id.app, &old)));
        let (shared, paths) = (self.layout.app(&id.app).join("shared"), how.shared.clone());
        Some((deploy, spec.work_as.clone(), TreeTask::Share { release, shared, previous, paths }))
    }
}
