//! `--dry-run`: fetches, compares and tells; nothing is queued, recorded or changed.

use std::{sync::Arc, time::Duration};

use serde::de::DeserializeOwned;

use super::super::{Supervisor, control::ReplyTo, jobs::JobId, keys::Keys, requests::Wish};
use crate::domain::{
    api::{Compared, Fetched, Preview, Refusal, RefusalKind, Reply, Saying, TreeTask, Verdict},
    config,
    deploy::{JobEnd, Live, preview},
    model::{AppName, CommitId, InstanceId, ReleaseId, show_span},
};

impl Supervisor {
    /// What a deploy by hand would do. The fetch is that of a deploy, by the same user.
    pub fn preview_deploy(&mut self, wish: Wish, rev: Option<String>) {
        let Some(spec) = self.apps.get(&wish.apps[0]).map(|app| Arc::clone(app.spec())) else { return };
        let live = self.deploys.live(&spec.name).cloned();
        let fetch = preview::fetch(&spec, self.places(&spec), wish.by, rev, live.as_ref());
        let Some(fetch) = fetch else { return };
        let reply = wish.reply;
        self.with_job_folders(&Arc::clone(&spec), true, move |supervisor, made| {
            let keys = match made {
                Ok(keys) => keys,
                Err(error) => return refuse(&reply, error),
            };
            let told = reply.clone();
            supervisor.ask_helper(
                &Arc::clone(&spec),
                &TreeTask::Fetch(Box::new(fetch)),
                keys,
                reply,
                move |supervisor, fetched| {
                    supervisor.compare_fetched(&spec, live, fetched, told);
                },
            );
        });
    }

    fn compare_fetched(&mut self, spec: &Arc<config::App>, live: Option<Live>, fetched: Fetched, reply: ReplyTo) {
        let commit = fetched.commit.clone().filter(|_| fetched.verdict == Verdict::Deploy);
        let instances = self.would_run(&spec.name);
        let Some(commit) = commit else {
            return say(&reply, preview::deploy(spec, live.as_ref(), fetched, Compared::default(), instances));
        };
        let (app, told) = (Arc::clone(spec), reply.clone());
        let from = live.as_ref().map(|live| live.commit.clone());
        self.compare(spec, from, commit, reply, move |supervisor, compared| {
            let mut preview = preview::deploy(&app, live.as_ref(), fetched, compared, instances);
            let frozen = supervisor.deploys.freeze(&app.name).map(|freeze| format!("the app is {freeze}"));
            preview.reason = preview.reason.or(frozen);
            say(&told, preview);
        });
    }

    /// What going back to this release would do.
    pub(super) fn preview_rollback(&mut self, app: &AppName, to: (ReleaseId, CommitId), reply: ReplyTo) {
        let Some(spec) = self.apps.get(app).map(|app| Arc::clone(app.spec())) else { return };
        let (live, instances, told) = (self.deploys.live(app).cloned(), self.would_run(app), reply.clone());
        let commit = to.1.clone();
        let from = live.as_ref().map(|live| live.commit.clone());
        self.compare(&Arc::clone(&spec), from, commit, reply, move |_, compared| {
            say(&told, preview::rollback(&spec, live.as_ref(), to, compared, instances));
        });
    }

    fn compare(
        &mut self,
        spec: &Arc<config::App>,
        from: Option<CommitId>,
        to: CommitId,
        reply: ReplyTo,
        then: impl FnOnce(&mut Supervisor, Compared) + Send + 'static,
    ) {
        let mirror = self.places(spec).mirror;
        self.stop_tidying(&mirror);
        let repo = spec.deploy.as_ref().map(|deploy| deploy.repo.clone()).unwrap_or_default();
        self.ask_helper(spec, &TreeTask::Compare { mirror, repo, from, to }, Keys::default(), reply, then);
    }

    /// Has the tree helper answer something as the fetch user, within the time of a deploy.
    fn ask_helper<T: DeserializeOwned>(
        &mut self,
        spec: &Arc<config::App>,
        task: &TreeTask,
        keys: Keys,
        reply: ReplyTo,
        then: impl FnOnce(&mut Supervisor, T) + Send + 'static,
    ) {
        let who = self.fetcher(spec).clone();
        let limit = spec.deploy.as_ref().map_or(Duration::ZERO, |deploy| deploy.timeout);
        let began = std::time::Instant::now();
        let job: JobId = self.start_errand(&spec.name, &who, task, keys, move |supervisor, end: JobEnd| {
            match (end.failure(), serde_json::from_slice(&end.answer)) {
                (None, Ok(answer)) => then(supervisor, answer),
                (Some(_), _) if began.elapsed() >= limit => {
                    refuse(&reply, format!("it took longer than {}, the limit of a deploy", show_span(limit)));
                }
                (Some(why), _) => refuse(&reply, why),
                (None, Err(_)) => refuse(&reply, "the tree helper gave no answer that can be read".to_owned()),
            }
        });
        self.later(limit, move |supervisor| supervisor.end_job(job));
    }

    /// The instances that would run a new release.
    fn would_run(&self, name: &AppName) -> Vec<InstanceId> {
        let app = self.apps.get(name).filter(|app| app.would_run());
        let copies = app.iter().flat_map(|app| app.copies());
        copies.map(|copy| InstanceId { app: name.clone(), number: copy.number() }).collect()
    }
}

fn say(reply: &ReplyTo, preview: Preview) {
    reply.say(Saying::Done(Reply::Preview(Box::new(preview))));
}

fn refuse(reply: &ReplyTo, why: String) {
    reply.say(Saying::Refused(Refusal::new(RefusalKind::Failed, why)));
}
