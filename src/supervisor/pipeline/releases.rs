//! Removes releases that nothing needs: their content as the app's user, whose names a commit chose.

use std::collections::BTreeSet;

use tracing::warn;

use super::super::{Supervisor, keys::Keys, ledger::Query};
use crate::domain::{
    api::{DeployState, Reply, TreeTask},
    config::Identity,
    model::{AppName, DeployId, ReleaseId},
};

impl Supervisor {
    /// Removes release folders; first what is in them, as the app's user.
    pub(super) fn remove_releases(&mut self, name: &AppName, releases: Vec<ReleaseId>) {
        let Some(app) = self.apps.get(name) else { return };
        let (who, live) = (app.spec().work_as.clone(), app.release().map(|release| release.id.clone()));
        let wanted = |release: &ReleaseId| self.runs_in(name, release) || Some(release) == live.as_ref();
        let (used, unused): (Vec<_>, Vec<_>) = releases.into_iter().partition(wanted);
        self.doomed.extend(used.into_iter().map(|release| (name.clone(), release)));
        for release in unused {
            let path = self.layout.release(name, &release);
            self.empty_folder(name, &who, path);
        }
    }

    /// Removes what had to stay as long as somebody ran in it.
    pub fn remove_doomed(&mut self, name: &AppName) {
        let of_deploys = self.deploys.running(name).into_iter().chain(self.deploys.waiting(name));
        let wanted: Vec<_> = of_deploys.filter_map(|view| view.release.clone()).collect();
        let (free, kept): (BTreeSet<_>, BTreeSet<_>) = std::mem::take(&mut self.doomed)
            .into_iter()
            .partition(|(of, release)| of == name && !self.runs_in(name, release) && !wanted.contains(release));
        self.doomed = kept;
        let releases: Vec<_> = free.into_iter().map(|(_, release)| release).collect();
        if !releases.is_empty() {
            self.remove_releases(name, releases);
        }
    }

    /// Does a process of the app run in it, an instance's or one that a person has started?
    fn runs_in(&self, name: &AppName, release: &ReleaseId) -> bool {
        let instance = self.apps.get(name).is_some_and(|app| app.uses(release));
        instance || self.jobs.values().any(|job| job.uses(name, release))
    }

    /// Asks first whose releases never were live: a crash can leave one behind, and it counts for
    /// nothing.
    pub(super) fn prune(&mut self, name: &AppName, keep: u32) {
        let query = Query::Deploys { apps: Some(vec![name.clone()]), n: 1000, before: None };
        let name = name.clone();
        self.ask_ledger(query, move |supervisor, reply| {
            let Ok(Reply::Deploys(deploys)) = reply else { return };
            let ended = deploys.iter().filter(|view| view.ended_at.is_some());
            let never_live = ended.filter(|view| view.state != DeployState::Live).map(|view| view.id).collect();
            supervisor.prune_all_but(name, keep, never_live);
        });
    }

    fn prune_all_but(&mut self, name: AppName, keep: u32, never_live: BTreeSet<DeployId>) {
        let live = self.deploys.live(&name).map(|live| live.release.clone());
        let folder = self.layout.releases(&name);
        self.files.run(
            move || {
                let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
                let mut found: Vec<ReleaseId> =
                    names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
                found.sort();
                found
            },
            move |supervisor, mut found: Vec<ReleaseId>| {
                let running = supervisor.deploys.running(&name).and_then(|view| view.release.clone());
                // What waits may go back to a release, or have built its own already.
                let waiting: Vec<_> =
                    supervisor.deploys.waiting(&name).filter_map(|view| view.release.clone()).collect();
                found.retain(|release| Some(release) != live.as_ref() && Some(release) != running.as_ref());
                found.retain(|release| !waiting.contains(release));
                let (mut gone, mut were_live): (Vec<_>, Vec<_>) =
                    found.into_iter().partition(|release| never_live.contains(&release.deploy));
                let surplus = were_live.len().saturating_sub((keep as usize).saturating_sub(1));
                gone.extend(were_live.drain(..surplus));
                supervisor.remove_releases(&name, gone);
            },
        );
    }

    pub(super) fn empty_folder(&mut self, app: &AppName, who: &std::sync::Arc<Identity>, path: std::path::PathBuf) {
        let task = TreeTask::Empty { path: path.clone() };
        self.start_errand(app, who, &task, Keys::default(), move |supervisor, end| {
            if !end.exit.success() {
                warn!(path = %path.display(), "what is left could not be emptied: {}", end.last_lines.join(" "));
                return;
            }
            supervisor.files.run(
                move || match std::fs::remove_dir(&path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {e}", path.display())),
                    _ => Ok(()),
                },
                |supervisor, result| {
                    if let Err(error) = result {
                        supervisor.trouble(&error);
                    }
                },
            );
        });
    }
}
