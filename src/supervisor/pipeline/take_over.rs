//! An app that runs as another user than before goes on with what it has: as systemd does it with a StateDirectory,
//! its folders become that user's, with all that the former one made there.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::super::{Supervisor, keys::Keys, prepare::is_of_another};
use crate::domain::{api::TreeTask, config, deploy::JobEnd};

impl Supervisor {
    /// Goes on once nothing in the app's folders is its former user's any more.
    pub fn with_own_folders(
        &mut self,
        app: &config::App,
        then: impl FnOnce(&mut Supervisor, Result<(), String>) + Send + 'static,
    ) {
        let uid = app.work_as.uid;
        // A deploy that ends by the config of before leaves them to whom they are now.
        let is_current = || self.apps.get(&app.name).is_some_and(|known| known.spec().work_as == app.work_as);
        let is_known = || self.shells.get(&app.name).is_none_or(|shell| shell.owner == Some(uid));
        if !self.me.root || app.deploy.is_none() || is_known() || !is_current() {
            return then(self, Ok(()));
        }
        let (name, who) = (app.name.clone(), app.work_as.clone());
        let helped = name.clone();
        let own = [self.layout.app(&name).join("shared"), self.layout.cache(&name), self.layout.tmp(&name)];
        let releases = self.layout.releases(&name);
        self.files.run(
            move || own.into_iter().chain(below(&releases)).filter(|folder| is_of_another(folder, uid)).collect(),
            move |supervisor, theirs: Vec<PathBuf>| {
                let owned = move |supervisor: &mut Supervisor, result: Result<(), String>| {
                    if let Some(shell) = supervisor.shells.get_mut(&name).filter(|_| result.is_ok()) {
                        shell.owner = Some(uid);
                    }
                    then(supervisor, result);
                };
                if theirs.is_empty() {
                    return owned(supervisor, Ok(()));
                }
                let task = TreeTask::TakeOver { paths: theirs };
                supervisor.start_errand(&helped, &who, &task, Keys::default(), move |supervisor, end: JobEnd| {
                    owned(supervisor, end.failure().map_or(Ok(()), Err));
                });
            },
        );
    }
}

fn below(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}
