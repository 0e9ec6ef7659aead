//! First deploys, and pushes that nobody told us about: DESIGN.md section 7, "Missed pushes".

use tracing::{info, warn};

use super::super::{
    Supervisor,
    ledger::{Command, NewDeploy, Query},
};
use crate::domain::{
    api::{By, DeployState, DeployView, Reply, Tip, TreeTask, Wanted},
    config::{self, Trigger},
    model::{AppName, CommitId},
};

impl Supervisor {
    /// At the start, and for apps that a reload brings: queues the first deploy, or looks whether the
    /// branch has gone on.
    pub fn look_for_news(&mut self, app: &AppName) {
        let Some(found) = self.apps.get(app) else { return };
        let spec = std::sync::Arc::clone(found.spec());
        let Some(deploy) = &spec.deploy else { return };
        if spec.problem.is_some() || self.deploys.running(app).is_some() || self.deploys.waiting(app).next().is_some() {
            return;
        }
        let branches: Vec<String> = deploy.on.iter().map(|Trigger::Push(glob)| glob.text.clone()).collect();
        let single = match &deploy.on[..] {
            [] => true,
            [Trigger::Push(glob)] => glob.single().is_some(),
            _ => false,
        };
        if !single {
            return;
        }
        if found.release().is_none() {
            let ref_name = match &deploy.on[..] {
                [Trigger::Push(glob)] => glob.single().map(|branch| format!("refs/heads/{branch}")),
                _ => None,
            };
            self.ask_for_deploy(app, ref_name, None, By::First);
        } else if self.config.deploys.catch_up {
            self.ask_remote(app, &spec, deploy, branches);
        }
    }

    fn ask_remote(&mut self, app: &AppName, spec: &config::App, deploy: &config::Deploy, branches: Vec<String>) {
        let mirror = self.layout.mirror(&deploy.repo, spec.work_as.gid);
        let wanted = Wanted { branches, ref_name: None };
        let task = TreeTask::LsRemote { repo: deploy.repo.clone(), mirror, wanted };
        let who = self.config.deploys.fetch_as.clone().unwrap_or_else(|| spec.work_as.clone());
        let app = app.clone();
        // The repository may be another one since the last deploy.
        self.with_job_folders(spec, move |supervisor, made| {
            if let Err(error) = made {
                return supervisor.trouble(&error);
            }
            supervisor.start_errand(&app.clone(), &who, &task, move |supervisor, end| {
                match serde_json::from_slice::<Tip>(&end.answer) {
                    Ok(tip) if end.exit.success() => supervisor.judge_tip(app, tip),
                    _ => warn!(%app, "the repository could not be asked for news: {}", end.last_lines.join(" ")),
                }
            });
        });
    }

    /// A reload changed an app. It is deployed as the config says now, where
    /// that leads to another commit or there is none yet.
    pub fn deploy_reconfigured(&mut self, old: &config::App, new: &config::App) {
        let app = &new.name;
        let source = |app: &config::App| app.deploy.as_ref().map(|deploy| (deploy.repo.clone(), deploy.on.clone()));
        let mended = old.problem.is_some() && new.problem.is_none();
        let first = self.apps.get(app).is_some_and(|app| app.release().is_none());
        if source(old) == source(new) && !mended && !(first && old.deploy != new.deploy) {
            return;
        }
        self.news_due.insert(app.clone());
        self.look_if_due(app);
    }

    /// Looks for news that were put off, if no deploy is left that would bring them.
    pub fn look_if_due(&mut self, app: &AppName) {
        let busy = self.deploys.running(app).is_some() || self.deploys.waiting(app).next().is_some();
        if !busy && !self.is_ending() && self.news_due.remove(app) {
            self.look_for_news(app);
        }
    }

    fn judge_tip(&mut self, app: AppName, tip: Tip) {
        let live = self.apps.get(&app).and_then(|app| app.release()).map(|release| release.commit.clone());
        if live.as_ref() == Some(&tip.commit) {
            return;
        }
        let query = Query::Deploys { apps: Some(vec![app.clone()]), n: 1000 };
        self.ask_ledger(query, move |supervisor, reply| {
            let Ok(Reply::Deploys(deploys)) = reply else { return };
            if let Some(why) = stays_back(&deploys, &tip.commit) {
                info!(%app, commit = %tip.commit, "not caught up with: {why}");
                return;
            }
            supervisor.ask_for_deploy(&app, Some(tip.ref_name), Some(tip.commit), By::CatchUp);
        });
    }

    fn ask_for_deploy(&mut self, app: &AppName, ref_name: Option<String>, commit: Option<CommitId>, by: By) {
        let ticket = self.ticket();
        let order =
            NewDeploy { ticket, app: app.clone(), ref_name, rev: None, commit, release: None, by, approved_by: None };
        self.ledger.send(Command::NewDeploy(order));
    }
}

/// A commit that was rolled back, by itself or by hand, is not tried again without being asked for.
fn stays_back(deploys: &[DeployView], tip: &CommitId) -> Option<&'static str> {
    let newest = deploys.iter().find(|deploy| deploy.commit.as_ref() == Some(tip))?;
    match newest.state {
        DeployState::RolledBack => Some("it was rolled back"),
        DeployState::Live => Some("it was live and somebody went back"),
        DeployState::Failed if newest.step.as_deref() != Some("fetch") => Some("its deploy failed"),
        _ => None,
    }
}
