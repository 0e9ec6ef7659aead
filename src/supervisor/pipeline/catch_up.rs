//! First deploys, and pushes that nobody told us about: DESIGN.md section 7, "Missed pushes".

use std::{collections::BTreeMap, time::Duration};

use tracing::{info, warn};

use super::super::{
    Supervisor,
    ledger::{Command, NewDeploy, Query},
};
use crate::domain::{
    api::{By, DeployState, DeployView, Reply, Tip, TreeTask},
    config,
    deploy::wanted,
    model::{AppName, CommitId},
};

/// So often in a row a commit may fail to be fetched before it is left alone.
const MOST_FETCHES: usize = 3;

impl Supervisor {
    /// At the start, and for apps that a reload brings: queues the first deploy, or looks whether the
    /// branch has gone on.
    pub fn look_for_news(&mut self, app: &AppName) {
        let Some(deploy) = self.lookable(app) else { return };
        if self.apps.get(app).is_some_and(|app| app.release().is_some()) {
            if self.config.deploys.catch_up {
                self.ask_remote(app, &deploy, None, Some(By::CatchUp));
            }
        } else if self.deploys.waiting(app).next().is_none() {
            let ref_name = deploy.branch().map(|branch| format!("refs/heads/{branch}"));
            self.ask_for_deploy(app, ref_name, None, By::First);
        }
    }

    /// How an app is deployed whose branch may be looked at: no deploy brings its news by itself.
    fn lookable(&self, app: &AppName) -> Option<config::Deploy> {
        let spec = self.apps.get(app).filter(|app| !app.is_removed())?.spec();
        let deploy = spec.deploy.as_deref().filter(|deploy| deploy.unlooked().is_none())?;
        let awaits = |view: &DeployView| view.state == DeployState::AwaitingApproval;
        let busy = self.deploys.running(app).is_some() || !self.deploys.waiting(app).all(awaits);
        (spec.problem.is_none() && !busy).then(|| deploy.clone())
    }

    /// Starts and ends what looks at branches every so often, as the config says now.
    pub fn set_polls(&mut self) {
        let wanted: BTreeMap<AppName, Duration> = self
            .config
            .apps
            .iter()
            .filter_map(|(name, app)| Some((name.clone(), app.deploy.as_ref()?.poll?)))
            .collect();
        self.polls.retain(|app, (pause, _)| wanted.get(app) == Some(pause));
        for (app, pause) in wanted {
            if !self.polls.contains_key(&app) {
                let turn = self.ticket();
                self.polls.insert(app.clone(), (pause, turn));
                self.poll_later(app, pause, turn);
            }
        }
    }

    fn poll_later(&mut self, app: AppName, pause: Duration, turn: u64) {
        self.later(pause, move |supervisor| {
            if supervisor.polls.get(&app) != Some(&(pause, turn)) || supervisor.is_ending() {
                return;
            }
            supervisor.poll(&app);
            supervisor.poll_later(app, pause, turn);
        });
    }

    fn poll(&mut self, app: &AppName) {
        let Some(deploy) = self.lookable(app) else { return };
        self.ask_remote(app, &deploy, None, Some(By::Poll));
    }

    /// After a rollback: how far it lies behind its branch, which is that of `on`, or the one that the
    /// release was deployed of.
    pub fn learn_behind(&mut self, app: &AppName, of: Option<String>) {
        let Some(live) = self.apps.get(app).and_then(|app| app.release()).map(|release| release.commit.clone()) else {
            return;
        };
        if self.behind.get(app).is_some_and(|behind| behind.contains_key(&live)) {
            return;
        }
        let spec = self.apps.get(app).and_then(|app| app.spec().deploy.clone());
        let of = of.filter(|of| of.starts_with("refs/heads/"));
        if let Some(deploy) = spec.filter(|deploy| deploy.unlooked().is_none() || of.is_some()) {
            self.ask_remote(app, &deploy, of, None);
        }
    }

    /// Asks the remote for the tip of this branch, or the app's, and deploys it where it is news; `by`
    /// nobody: only to know how far the live one is behind. One question of an app at a time.
    fn ask_remote(&mut self, app: &AppName, deploy: &config::Deploy, branch: Option<String>, by: Option<By>) {
        let Some(spec) = self.apps.get(app).map(|app| std::sync::Arc::clone(app.spec())) else { return };
        if !self.asking.insert(app.clone()) {
            return;
        }
        let mirror = self.places(&spec).mirror;
        let live = self.apps.get(app).and_then(|app| app.release()).map(|release| release.commit.clone());
        let task = TreeTask::LsRemote {
            repo: deploy.repo.clone(),
            mirror,
            wanted: wanted(deploy, branch),
            live: live.clone(),
        };
        let who = self.fetcher(&spec).clone();
        let (app, limit) = (app.clone(), deploy.timeout);
        // The repository may be another one since the last deploy.
        self.with_job_folders(&spec, true, move |supervisor, made| {
            let keys = match made {
                Ok(keys) => keys,
                Err(error) => {
                    supervisor.asking.remove(&app);
                    return warn!(%app, "the repository could not be asked for news: {error}");
                }
            };
            let job = supervisor.start_errand(&app.clone(), &who, &task, keys, move |supervisor, end| {
                supervisor.asking.remove(&app);
                match serde_json::from_slice::<Tip>(&end.answer) {
                    Ok(tip) if end.exit.success() => {
                        supervisor.behind.insert(app.clone(), live.into_iter().zip(tip.behind).collect());
                        if let Some(by) = by {
                            supervisor.judge_tip(app, tip, by);
                        }
                    }
                    _ => warn!(%app, "the repository could not be asked for news: {}", end.last_lines.join(" ")),
                }
            });
            supervisor.later(limit, move |supervisor| supervisor.end_job(job));
        });
    }

    /// A reload changed an app. It is deployed as the config says now, where
    /// that leads to another commit or there is none yet.
    pub fn deploy_reconfigured(&mut self, old: &config::App, new: &config::App) {
        let app = &new.name;
        let source = |app: &config::App| {
            let config::Deploy { repo, on, paths, authors, .. } = &**app.deploy.as_ref()?;
            Some((repo.clone(), on.clone(), paths.clone(), authors.clone()))
        };
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
        let busy = self.deploys.is_busy(app);
        if !busy && !self.is_ending() && self.news_due.remove(app) {
            self.look_for_news(app);
        }
    }

    fn judge_tip(&mut self, app: AppName, tip: Tip, by: By) {
        let live = self.apps.get(&app).and_then(|app| app.release()).map(|release| release.commit.clone());
        if live.as_ref() == Some(&tip.commit) {
            return;
        }
        let query = Query::Deploys { apps: Some(vec![app.clone()]), n: 1000, before: None };
        self.ask_ledger(query, move |supervisor, reply| {
            let Ok(Reply::Deploys(deploys)) = reply else { return };
            if let Some(why) = stays_back(&deploys, &tip, &by) {
                info!(%app, commit = %tip.commit, "not caught up with: {why}");
                return;
            }
            // Something else may bring it by now.
            if supervisor.lookable(&app).is_some() {
                supervisor.ask_for_deploy(&app, Some(tip.ref_name), Some(tip.commit), by);
            }
        });
    }

    fn ask_for_deploy(&mut self, app: &AppName, ref_name: Option<String>, commit: Option<CommitId>, by: By) {
        let ticket = self.ticket();
        let order =
            NewDeploy { ticket, app: app.clone(), ref_name, rev: None, commit, release: None, by, approved_by: None };
        self.ledger.send(Command::NewDeploy(order));
    }
}

/// A commit that was rolled back, by itself or by hand, is not tried again without being asked for; nor
/// does who looks often try what came to nothing again and again.
fn stays_back(deploys: &[DeployView], tip: &Tip, by: &By) -> Option<&'static str> {
    let brings = |deploy: &DeployView| deploy.commit.is_none() && deploy.ref_name.as_ref() == Some(&tip.ref_name);
    if deploys.iter().any(|deploy| !deploy.state.is_end() && brings(deploy)) {
        return Some("a deploy that brings the newest commit has not ended");
    }
    let mut tries = deploys.iter().filter(|deploy| deploy.commit.as_ref() == Some(&tip.commit));
    let newest = tries.next()?;
    let often = *by != By::CatchUp;
    match newest.state {
        DeployState::RolledBack => Some("it was rolled back"),
        DeployState::Live => {
            let chosen = |deploy: &DeployView| deploy.state == DeployState::Live && deploy.by.is_person();
            let went_back = deploys.iter().any(|deploy| deploy.id > newest.id && chosen(deploy));
            went_back.then_some("it was live and somebody went back")
        }
        DeployState::Failed if newest.step.as_deref() != Some("fetch") => Some("its deploy failed"),
        DeployState::Failed => {
            let unfetched = |deploy: &&DeployView| deploy.state == DeployState::Failed;
            let failed = 1 + tries.take_while(unfetched).count();
            (often && failed >= MOST_FETCHES).then_some("it could not be fetched three times")
        }
        DeployState::Skipped if often => Some("it was skipped"),
        DeployState::Cancelled if often => Some("its deploy was cancelled"),
        state if !state.is_end() => Some("its deploy has not ended"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::model::At;

    fn deploy(id: i64, commit: char, state: DeployState, by: By) -> DeployView {
        let commit = Some(commit.to_string().repeat(40).parse().unwrap());
        DeployView { id, state, commit, ..DeployView::new(&"a".parse().unwrap(), by, At(0)) }
    }

    #[test]
    fn what_was_taken_back_stays_back() {
        let tip = Tip { ref_name: "refs/heads/main".into(), commit: "b".repeat(40).parse().unwrap(), behind: None };
        let back = |deploys: &[DeployView], by: &By| stays_back(deploys, &tip, by).is_some();
        let (push, person) = (|| By::Delivery { id: 1 }, || By::Local { uid: 0, user: None });
        let (once, often) = (&By::CatchUp, &By::Poll);
        let was = |state| deploy(2, 'b', state, push());
        for by in [once, often] {
            assert!(!back(&[], by));
            assert!(back(&[was(DeployState::RolledBack)], by) && back(&[was(DeployState::Failed)], by));
            assert!(!back(&[deploy(3, 'a', DeployState::Live, push()), was(DeployState::Live)], by), "forced back");
            assert!(back(&[deploy(3, 'a', DeployState::Live, person()), was(DeployState::Live)], by));
            assert!(!back(&[was(DeployState::Superseded)], by));
            assert!(back(&[was(DeployState::AwaitingApproval)], by));
        }
        assert!(back(&[was(DeployState::Skipped)], often) && !back(&[was(DeployState::Skipped)], once));
        let unknown = |of: &str| DeployView {
            ref_name: Some(of.into()),
            commit: None,
            ..deploy(9, 'b', DeployState::AwaitingApproval, By::First)
        };
        assert!(back(&[unknown("refs/heads/main")], often) && !back(&[unknown("refs/heads/other")], often));
        let unfetched = || DeployView { step: Some("fetch".into()), ..was(DeployState::Failed) };
        assert!(!back(&[unfetched(), unfetched()], often));
        assert!(back(&[unfetched(), unfetched(), unfetched()], often));
        assert!(!back(&[unfetched(), unfetched(), unfetched()], once));
    }
}
