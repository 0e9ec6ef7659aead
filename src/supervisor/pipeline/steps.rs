//! What a step sees, and what is said about steps.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::super::{
    Supervisor,
    jobs::stream_name,
    launch::PATH,
    ledger::{Command, NewEvent},
};
use crate::domain::{
    api::{DeployView, EventKind, StepTask, Stream},
    config,
    model::{AppName, DeployId},
};

impl Supervisor {
    /// SURFACE.md section 6, "Steps". `place`: the folder that they work in.
    pub(super) fn step_env(
        &self,
        view: &DeployView,
        app: &config::App,
        place: Option<&Path>,
    ) -> BTreeMap<String, String> {
        let cache = self.layout.cache(&app.name);
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let short = |prefix: &str| {
            let name = view.ref_name.as_deref().and_then(|name| name.strip_prefix(prefix));
            name.unwrap_or_default().to_owned()
        };
        let folder = |path: Option<&Path>| path.map(|path| path.display().to_string()).unwrap_or_default();
        let live = self.apps.get(&app.name).and_then(|app| app.release()).map(|release| release.directory.as_path());
        let mut env: BTreeMap<String, String> = [
            ("PATH", PATH.to_owned()),
            ("HOME", cache.join("home").display().to_string()),
            ("USER", app.work_as.name.clone().unwrap_or_else(|| app.work_as.uid.to_string())),
            ("TMPDIR", self.step_tmp(view).display().to_string()),
            ("LANG", "C.UTF-8".to_owned()),
            ("CI", "true".to_owned()),
            ("EVERHOOK_APP", app.name.to_string()),
            ("EVERHOOK_DEPLOY", view.id.to_string()),
            ("EVERHOOK_COMMIT", view.commit.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("EVERHOOK_PREVIOUS_COMMIT", view.previous_commit.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("EVERHOOK_REF", text(&view.ref_name)),
            ("EVERHOOK_BRANCH", short("refs/heads/")),
            ("EVERHOOK_TAG", short("refs/tags/")),
            ("EVERHOOK_AUTHOR", text(&view.author)),
            ("EVERHOOK_CACHE", cache.display().to_string()),
            ("EVERHOOK_RELEASE_DIR", folder(place)),
            ("EVERHOOK_PREVIOUS_DIR", folder(live)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let Some(deploy) = &app.deploy else { return env };
        env.extend(deploy.env.clone());
        let env_file = self.shells.get(&app.name).map(|shell| shell.env_file.as_slice()).unwrap_or_default();
        env.extend(borrowed(app, &deploy.env_from, env_file));
        env
    }

    /// The command line of what becomes the step: [`StepTask`]. `place`: the folder that it works in.
    pub(super) fn step_args(&self, view: &DeployView, place: Option<&Path>, run: String) -> Vec<String> {
        let app = &view.app;
        let hidden = [&self.layout.state, &self.layout.run];
        let private =
            self.config.private_files().into_iter().filter(|path| !hidden.iter().any(|of| path.starts_with(of)));
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let hidden = hidden.into_iter().cloned().chain(private.map(PathBuf::from)).chain(credentials).collect();
        let own = self.layout.app(app);
        // The stream is theirs already, and opened by name as `/dev/stdout`.
        let stream = self.layout.fifo(&stream_name(app), Stream::Out);
        let writes =
            [own.join("shared"), self.layout.cache(app), stream].into_iter().chain(place.map(Path::to_owned)).collect();
        let task = StepTask { run, hidden, reads: vec![own], writes, tmp: self.step_tmp(view) };
        vec!["everhook".to_owned(), "step".to_owned(), serde_json::to_string(&task).unwrap_or_default()]
    }

    fn step_tmp(&self, view: &DeployView) -> PathBuf {
        self.layout.tmp(&view.app).join(view.id.to_string())
    }

    /// What is temporary goes with its deploy.
    pub(super) fn remove_tmp(&mut self, view: &DeployView) {
        let Some(app) = self.apps.get(&view.app).filter(|_| self.step_tmps.remove(&view.id)) else { return };
        let (name, who, path) = (view.app.clone(), app.spec().work_as.clone(), self.step_tmp(view));
        self.files.run(
            move || path.is_dir().then_some(path),
            move |supervisor, found| {
                if let Some(path) = found {
                    supervisor.empty_folder(&name, &who, path);
                }
            },
        );
    }

    /// Adds a line to a deploy's log; a trouble is an event too.
    pub(super) fn note_deploy(&self, app: &AppName, deploy: DeployId, line: &str, trouble: bool) {
        self.add_to_deploy_log(app, line);
        if trouble {
            self.tell_of_deploy(app, deploy, line);
        }
    }

    /// Tells where the team of an app looks, besides the deploy's log.
    pub fn tell_of_deploy(&self, app: &AppName, deploy: DeployId, cause: &str) {
        self.ledger.send(Command::Event(NewEvent {
            at: crate::os::clock::now().wall,
            app: Some(app.clone()),
            instance: None,
            kind: EventKind::Deploy,
            from: None,
            to: None,
            cause: Some(cause.to_owned()),
            detail: Some(format!("deploy {deploy}")),
        }));
    }
}

/// Those of an app's own variables that are named, as its first instance has them.
fn borrowed(app: &config::App, names: &[String], env_file: &[(String, String)]) -> BTreeMap<String, String> {
    let own = app.env.iter().map(|(name, value)| (name.clone(), config::numbered(value, 1)));
    let all = env_file.iter().cloned().chain(own);
    all.filter(|(name, _)| names.contains(name)).collect()
}
