//! The switch to a release: its trial by the service, and what makes it the live one on disk, or brings back the one
//! before.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::super::{Supervisor, ledger::Command, live};
use crate::{
    domain::{
        config,
        deploy::{Event, Live},
        model::{AppName, CommitId, DeployId, ReleaseId},
        service::{self, Release},
    },
    os::record::RunRecord,
};

impl Supervisor {
    /// Where this deploy's release is: the working tree that it was queued with, or a folder of its own.
    pub(super) fn place_of(&self, deploy: DeployId, app: &AppName, release: &ReleaseId) -> PathBuf {
        let spec = self.deploys.find(deploy).map(|(_, spec)| spec);
        let tree = spec.and_then(|spec| spec.deploy.as_ref()?.tree());
        tree.map_or_else(|| self.layout.release(app, release), Path::to_owned)
    }

    /// What cannot be taken back and replaces what runs before it is proven starts again after a crash.
    pub(super) fn start_trial(&mut self, deploy: DeployId, name: AppName, live: Live, settle: Duration, stands: bool) {
        if !stands || self.apps.get(&name).is_none_or(|app| app.spec().keeps_the_old_one() || !app.would_run()) {
            return self.try_release(deploy, &name, live, settle, stands);
        }
        let Live { release: id, commit } = live.clone();
        let kept = Release { directory: self.place_of(deploy, &name, &id), id, commit };
        let (layout, app) = (self.layout.clone(), name.clone());
        self.files.run(
            move || live::keep_unproven(&layout, &app, &kept),
            move |supervisor, result| match result {
                Ok(()) => supervisor.try_release(deploy, &name, live, settle, stands),
                Err(error) => supervisor.deploy_event(Event::Trial { deploy, result: Err(error) }),
            },
        );
    }

    fn try_release(&mut self, deploy: DeployId, name: &AppName, live: Live, settle: Duration, stands: bool) {
        let Live { release: id, commit } = live;
        let release = Release { directory: self.place_of(deploy, name, &id), id, commit };
        if self.lost.remove(name) {
            self.forget_loss(name);
        }
        let Some(app) = self.apps.get(name) else {
            let result = Err("the app is in the config no more".to_owned());
            return self.deploy_event(Event::Trial { deploy, result });
        };
        if self.is_ending() {
            // Nothing starts any more, and what runs no more proves nothing.
            return self.deploy_event(Event::Trial { deploy, result: Err("everhook shuts down".to_owned()) });
        }
        if app.would_run() {
            self.trials.insert(name.clone(), deploy);
            self.feed(name, service::Event::Try { release, settle, stands });
        } else {
            let note = app.spec().command.is_some().then(|| "not running".to_owned());
            self.deploy_event(Event::Trial { deploy, result: Ok(note) });
        }
    }

    /// There is something to run again: what was lost is no problem any more.
    fn forget_loss(&mut self, name: &AppName) {
        let Some(app) = self.apps.get(name) else { return };
        let spec = Arc::new(config::App { problem: None, ..(**app.spec()).clone() });
        self.feed(name, service::Event::Reconfigure { spec, restart: false });
    }

    /// A process of the app was started: if that is a release on trial, it is proven from here on.
    pub fn switched(&mut self, app: &AppName) {
        if let Some(deploy) = self.trials.get(app).copied() {
            self.deploy_event(Event::Switched { deploy });
        }
    }

    pub fn trial_ended(&mut self, app: &AppName, result: Result<(), String>) {
        if result.is_err() {
            self.link_back(app);
        }
        if let Some(deploy) = self.trials.remove(app) {
            self.deploy_event(Event::Trial { deploy, result: result.map(|()| None) });
        }
    }

    pub(super) fn write_live(&mut self, deploy: DeployId, app: AppName, release: ReleaseId, commit: CommitId) {
        let (layout, name, records) = (self.layout.clone(), app.clone(), self.records_in_place(&app));
        let adopted = Release { directory: self.place_of(deploy, &app, &release), id: release, commit: commit.clone() };
        let live = adopted.clone();
        self.files.run(
            // What is live is live, whatever becomes of the link for others.
            move || {
                live::write(&layout, &name, &live)?;
                // Whoever took it in place was started in another one, and is found by this one from now on.
                records.iter().for_each(|record| drop(RunRecord::note_release(record, &live.id)));
                Ok(live::link(&layout, &name, &live))
            },
            move |supervisor, result| {
                if let Ok(Err(error)) = &result {
                    supervisor.trouble(error);
                }
                let result = result.map(drop);
                if result.is_ok() {
                    supervisor.doomed.remove(&(app.clone(), adopted.id.clone()));
                    supervisor.ledger.send(Command::Live { app: app.clone(), commit: Some(commit) });
                    supervisor.feed(&app, service::Event::Adopt(adopted));
                    supervisor.tell_dependents(&app);
                    supervisor.look_at_waiters();
                    let of = supervisor.deploys.running(&app).and_then(|view| view.ref_name.clone());
                    supervisor.learn_behind(&app, of);
                }
                supervisor.deploy_event(Event::LiveWritten { deploy, result });
            },
        );
    }

    /// The records of an app's processes that take a release as they run.
    fn records_in_place(&self, app: &AppName) -> Vec<Arc<OwnedFd>> {
        let app = self.apps.get(app).filter(|app| app.spec().reload != config::Reload::Restart);
        let seats = app.into_iter().flat_map(|app| self.active_seats(app));
        seats.filter_map(|id| Some(Arc::clone(&self.seat(&id)?.kit.record))).collect()
    }

    pub(super) fn run_live(&mut self, app: AppName) {
        let (layout, name) = (self.layout.clone(), app.clone());
        self.files.run(
            move || live::forget_unproven(&layout, &name).and_then(|()| live::read(&layout, &name)),
            move |supervisor, found| match found {
                Ok(release) => supervisor.feed(&app, service::Event::GoBack(release)),
                Err(error) => supervisor.trouble(&error),
            },
        );
    }
}
