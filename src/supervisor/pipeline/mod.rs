//! Carries out what the deploy machine decides: jobs, release folders, the trial, the file `live`.
//! Which deploy runs and what it does next is `domain::deploy`'s; nothing is decided here.

mod by_hand;
mod carry;
mod catch_up;
mod preview;
mod releases;
mod reserve;
mod rollback;
mod steps;
mod take_over;
mod tidy;
mod trial;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use tracing::info;

use super::{
    Supervisor,
    control::ReplyTo,
    jobs::JobSpec,
    keys::Keys,
    launch,
    ledger::{Command, NewDeploy, NewEvent, Unfinished},
    prepare,
};
use crate::{
    domain::{
        api::{DeployState, DeployView, EventKind, Progress, Refusal, RefusalKind, Reply, Saying, TreeTask},
        config::{self, Identity},
        deploy::{Action, Event, Found, Job, Live, Places, Queued, Resumption, StepKind, Who, resume},
        model::{AppName, DeployId, ReleaseId},
        service::order,
    },
    os::files,
};
pub use reserve::{Fetcher, Reserve};
pub use rollback::Rollback;

/// What was asked for beyond a deploy's record: as in [`Queued`].
#[derive(Debug, Default)]
pub struct Order {
    pub rev: Option<String>,
    pub since: Option<DeployId>,
}

impl Supervisor {
    /// Tells the deploy machine what happened, and carries out everything that follows.
    pub fn deploy_event(&mut self, event: Event) {
        self.deploy_todo.push_back(event);
        if self.deploying {
            return;
        }
        self.deploying = true;
        while let Some(event) = self.deploy_todo.pop_front() {
            let mut actions = Vec::new();
            self.deploys.on(event, crate::os::clock::now(), &mut actions);
            for action in actions {
                self.deploy_action(action);
            }
        }
        self.deploying = false;
        self.go_on_ending();
    }

    fn deploy_action(&mut self, action: Action) {
        match action {
            Action::Persist { view, attempts } => self.persist(view, attempts),
            Action::Expect { deploy } => self.expect_fetch(deploy),
            Action::Run { deploy, job } => self.run_job(deploy, job),
            Action::EndJob { deploy } => self.end_job_of(deploy),
            Action::Note { deploy, app, line, trouble } => self.note_deploy(&app, deploy, &line, trouble),
            Action::MakeRelease { deploy, app, release, needs_bytes } => {
                self.make_release(deploy, &app, &release, needs_bytes);
            }
            Action::StartTrial { deploy, app, release, commit, settle, stands } => {
                let live = Live { release, commit };
                self.start_trial(deploy, app, live, settle, stands);
            }
            Action::WriteLive { deploy, app, release, commit } => self.write_live(deploy, app, release, commit),
            Action::RunLive { app, .. } => self.run_live(app),
            Action::RemoveRelease { app, release } => self.remove_releases(&app, vec![release]),
            Action::Prune { app, keep } => self.prune(&app, keep),
            Action::Anew(queued) => self.queue_anew(*queued),
            Action::Behind { app, behind } => drop(self.behind.insert(app, behind)),
            Action::Ended(view) => self.deploy_ended(&view),
        }
    }

    /// Puts a stored deploy into the line; `attempts`: how often it was started before.
    pub fn queue_deploy(&mut self, view: DeployView, attempts: u32, order: Order) {
        if self.early.is_some() {
            // What the last supervisor left may still be working in the same folders and groups, and is ended there.
            self.early_deploys.push((view, attempts, order));
        } else if let Some(queued) = self.housed(view, attempts, order) {
            self.undeployed.remove(&queued.view.app);
            self.deploy_event(Event::Queue(Box::new(queued)));
        }
    }

    /// What came before everything that is unfinished was known. Of it that is most, as it was stored by then.
    pub fn queue_early(&mut self, known: &BTreeSet<DeployId>) {
        for (view, attempts, order) in std::mem::take(&mut self.early_deploys) {
            if !known.contains(&view.id) {
                self.queue_deploy(view, attempts, order);
            }
        }
    }

    /// A stored deploy with its app as it is configured now; where there is none any more, it ends.
    fn housed(&mut self, view: DeployView, attempts: u32, order: Order) -> Option<Queued> {
        let Order { rev, since } = order;
        let found = self.apps.get(&view.app).filter(|app| !app.is_removed()).map(|app| Arc::clone(app.spec()));
        let Some(app) = found else {
            self.end_homeless(view, attempts);
            return None;
        };
        let places = self.places(&app);
        Some(Queued { view, attempts, rev, since, app, places })
    }

    /// Whatever was accepted ends, though its app is gone.
    fn end_homeless(&mut self, mut view: DeployView, attempts: u32) {
        view.state = DeployState::Cancelled;
        view.reason = Some("the app is in the config no more".to_owned());
        view.ended_at = Some(crate::os::clock::now().wall);
        let view = Box::new(view);
        self.persist(view.clone(), attempts);
        self.deploy_ended(&view);
    }

    /// Where deploys of this app work.
    #[must_use]
    pub fn places(&self, app: &config::App) -> Places {
        // An app without a repository has no mirror, and nothing of it is fetched.
        let repo = app.deploy.as_ref().map_or("", |deploy| deploy.repo.as_str());
        let mirror = self.layout.mirror(repo, app.work_as.gid, self.fetcher(app).uid);
        Places { mirror, app: self.layout.app(&app.name) }
    }

    /// Somebody else fetches from now on, elsewhere: what waits goes there too.
    pub fn deploys_move(&mut self) {
        let deploying: Vec<_> = self.apps.values().map(|app| Arc::clone(app.spec())).collect();
        for app in deploying.into_iter().filter(|app| app.deploy.is_some()) {
            let places = self.places(&app);
            self.deploy_event(Event::Reconfigure { app, places });
        }
    }

    /// Who fetches the repository of this app.
    fn fetcher<'a>(&'a self, app: &'a config::App) -> &'a Arc<Identity> {
        self.config.deploys.fetch_as.as_ref().unwrap_or(&app.work_as)
    }

    /// The same once more, by the config of then.
    fn queue_anew(&mut self, Queued { view, rev, since, .. }: Queued) {
        let ticket = self.ticket();
        self.orders.insert(ticket, Order { rev: rev.clone(), since });
        let DeployView { app, ref_name, commit, release, by, approved_by, .. } = view;
        let order = NewDeploy { ticket, app, ref_name, rev, commit, release, by, approved_by };
        self.ledger.send(Command::NewDeploy(order));
    }

    /// What the last supervisor left unfinished.
    pub fn resume_deploys(&mut self, unfinished: Vec<Unfinished>) {
        let mut resumed = Vec::new();
        let mut unproven = self.all_unproven();
        for Unfinished { deploy, attempts, rev } in unfinished {
            self.step_tmps.insert(deploy.id);
            let spec = self.apps.get(&deploy.app).and_then(|app| app.spec().deploy.as_ref());
            let found = Found {
                live: self.deploys.live(&deploy.app),
                stands: unproven.get(&deploy.app),
                after_live: spec.is_some_and(|deploy| !deploy.after_live.is_empty()),
            };
            match resume(deploy, found, crate::os::clock::now().wall) {
                Resumption::Live(view) => {
                    self.ledger.send(Command::Update { deploy: view, attempts, ticket: None });
                }
                Resumption::Ended { view, removal, told } => {
                    self.tell_of_deploy(&view.app, view.id, &told);
                    self.ledger.send(Command::Update { deploy: view, attempts, ticket: None });
                    removal.into_iter().for_each(|action| self.deploy_action(action));
                }
                Resumption::Requeue(view) => {
                    // That it stood for other pushes, one of them newer perhaps, nobody knows any more.
                    self.news_due.insert(view.app.clone());
                    resumed.extend(self.housed(*view, attempts, Order { rev, since: None }));
                }
                Resumption::Held(view) => {
                    unproven.retain(|_, stands| view.release.as_ref() != Some(stands));
                    resumed.extend(self.housed(*view, attempts, Order { rev, since: None }));
                }
            }
        }
        self.deploy_event(Event::Resume(resumed));
        // Somebody had decided about these, and no more than that was done.
        for app in unproven.into_keys() {
            self.run_live(app);
        }
    }

    /// What runs in place of what is live.
    fn all_unproven(&self) -> BTreeMap<AppName, ReleaseId> {
        let runs = self.apps.iter().filter_map(|(name, app)| Some((name.clone(), app.release()?.id.clone())));
        runs.filter(|(name, runs)| self.deploys.live(name).is_some_and(|live| live.release != *runs)).collect()
    }

    fn persist(&mut self, view: Box<DeployView>, attempts: u32) {
        let ticket = self.ticket();
        self.committing.insert(ticket, view.id);
        let before = self.deploy_states.insert(view.id, view.state);
        if before != Some(view.state) {
            info!(app = %view.app, deploy = view.id, reason = view.reason, "deploy {}", view.state);
            self.ledger.send(Command::Event(NewEvent {
                at: crate::os::clock::now().wall,
                app: Some(view.app.clone()),
                instance: None,
                kind: EventKind::Deploy,
                from: before.map(|state| state.to_string()),
                to: Some(view.state.to_string()),
                cause: view.reason.clone(),
                detail: Some(format!("deploy {}", view.id)),
            }));
        }
        self.tell_deploy_waiters(&view);
        if view.ended_at.is_some() {
            self.end_deploy_log(view.id);
        }
        if view.state.is_end() && before != Some(view.state) {
            self.tally.deployed(&view);
        }
        self.ledger.send(Command::Update { deploy: view, attempts, ticket: Some(ticket) });
    }

    /// What was persisted is durable.
    pub fn committed(&mut self, ticket: u64) {
        if let Some(deploy) = self.committing.remove(&ticket) {
            for (reply, saying) in self.kept_answers.remove(&ticket).unwrap_or_default() {
                reply.say(saying);
            }
            self.deploy_event(Event::Committed { deploy });
        }
    }

    /// Says something once the newest record of this deploy is durable: whoever hears it relies on it
    /// over a crash.
    pub fn say_kept(&mut self, deploy: DeployId, reply: ReplyTo, saying: Saying) {
        let records = self.committing.iter().filter(|(_, of)| **of == deploy);
        match records.map(|(ticket, _)| *ticket).max() {
            Some(ticket) => self.kept_answers.entry(ticket).or_default().push((reply, saying)),
            None => drop(reply.say(saying)),
        }
    }

    fn spec_of(&self, deploy: DeployId) -> Option<(DeployView, Arc<config::App>)> {
        self.deploys.find(deploy).map(|(view, app)| (view.clone(), Arc::clone(app)))
    }

    /// Runs a job once its output goes to this deploy's log.
    fn run_job(&mut self, deploy: DeployId, job: Job) {
        // What these need was made for the fetch.
        let Some(job) = self.give_to_fetcher(deploy, job) else { return };
        let Some(job) = self.give_to_waiting(deploy, job) else { return };
        let Some((view, app)) = self.spec_of(deploy) else { return };
        let fetches = matches!(job, Job::Tree { who: Who::FetchUser, .. });
        let ticket = self.ticket();
        self.coming_jobs.insert(deploy, ticket);
        self.with_job_folders(&Arc::clone(&app), fetches, move |supervisor, made| match made {
            Ok(keys) => supervisor.with_deploy_log(&app, deploy, move |supervisor| {
                if supervisor.still_comes(deploy, ticket) {
                    supervisor.begin_job(&view, job, keys);
                } else {
                    supervisor.put_away(keys);
                }
            }),
            Err(error) if supervisor.still_comes(deploy, ticket) => {
                if fetches {
                    supervisor.job_refused(deploy, error);
                } else {
                    supervisor.job_never_was(deploy, error);
                }
            }
            Err(_) => {}
        });
    }

    /// Is this job of the deploy still wanted, now that it may begin?
    fn still_comes(&mut self, deploy: DeployId, ticket: u64) -> bool {
        let comes = self.coming_jobs.get(&deploy) == Some(&ticket);
        if comes {
            self.coming_jobs.remove(&deploy);
        }
        comes
    }

    /// Ends the job of this deploy, also one that what it needs is still being made for.
    fn end_job_of(&mut self, deploy: DeployId) {
        if self.coming_jobs.remove(&deploy).is_some() || self.takes_from_fetcher(deploy) {
            return self.job_never_was(deploy, "it was ended before it began".to_owned());
        }
        self.end_running_job_of(deploy);
    }

    /// Goes on once the folders that jobs of this app work in are there, and where one fetches its keys
    /// as well, or it is known why not.
    fn with_job_folders(
        &mut self,
        app: &Arc<config::App>,
        fetches: bool,
        then: impl FnOnce(&mut Supervisor, Result<Keys, String>) + Send + 'static,
    ) {
        let app = Arc::clone(app);
        self.with_own_folders(&Arc::clone(&app), move |supervisor, owned| match owned {
            Ok(()) => supervisor.make_job_folders(&app, fetches, then),
            Err(error) => then(supervisor, Err(error)),
        });
    }

    fn make_job_folders(
        &mut self,
        app: &config::App,
        fetches: bool,
        then: impl FnOnce(&mut Supervisor, Result<Keys, String>) + Send + 'static,
    ) {
        let needs = self.job_folders(app);
        let maker = self.maker.clone();
        if fetches {
            self.stop_tidying(&self.places(app).mirror);
        }
        let access = app.deploy.as_ref().filter(|_| fetches).map(|deploy| deploy.access.clone()).unwrap_or_default();
        let fetcher = self.fetcher(app);
        let reader = self.me.root.then_some((fetcher.uid, fetcher.gid));
        let owners = [fetcher.uid, app.run_as.uid, app.work_as.uid];
        let job = self.ticket();
        let folder = self.layout.keys(job);
        let tree = app.deploy.as_ref().and_then(|deploy| deploy.tree()).filter(|_| self.me.root).map(Path::to_owned);
        let owner = (app.work_as.uid, app.work_as.gid);
        self.files.run(
            move || {
                needs.iter().try_for_each(|(path, mode, owner)| maker.folder(path, *mode, Some(*owner)))?;
                tree.map_or(Ok(()), |tree| prepare::make_tree(&tree, owner))?;
                Keys::lay(&folder, &access, reader, &owners)
            },
            move |supervisor, made| {
                if let Ok(keys) = &made {
                    supervisor.hide(keys.secrets());
                }
                then(supervisor, made);
            },
        );
    }

    fn job_folders(&self, app: &config::App) -> Vec<(std::path::PathBuf, u32, (u32, u32))> {
        if app.deploy.is_none() {
            return Vec::new();
        }
        let own = (app.work_as.uid, app.work_as.gid);
        vec![
            (self.places(app).mirror, 0o2750, (self.fetcher(app).uid, app.work_as.gid)),
            (self.layout.cache(&app.name).join("home"), 0o755, own),
            (self.layout.tmp(&app.name), 0o700, own),
        ]
    }

    /// The logger is gone, and so are its answers: its successor is told the newest sinks, so nobody
    /// need wait for the one, and the other is only for the eye.
    pub fn forget_questions(&mut self) {
        for (_, then) in std::mem::take(&mut self.retargets) {
            then(self);
        }
        for (_, then) in std::mem::take(&mut self.tails) {
            then(self, Vec::new());
        }
    }

    fn begin_job(&mut self, view: &DeployView, job: Job, keys: Keys) {
        let Some((_, app)) = self.spec_of(view.id) else { return };
        let fetches = matches!(&job, Job::Tree { task: TreeTask::Fetch(_), .. });
        let fetcher = self.fetcher(&app).clone();
        let cgroup = self.job_cgroup(&app.name, &format!("{}.job", app.name));
        let home = self.layout.app(&app.name);
        let spec = match job {
            Job::Tree { task, who } => {
                let who = if who == Who::FetchUser { fetcher } else { app.work_as.clone() };
                tree_job(view, who, &task, home, cgroup, keys)
            }
            Job::Step { kind, run } => {
                let release = view.release.as_ref().map(|release| self.layout.release(&app.name, release));
                // Only checks have a folder of their own where commits go into a working tree.
                let tree = app.deploy.as_ref().and_then(|deploy| deploy.tree()).filter(|_| kind != StepKind::Check);
                let place = tree.map(Path::to_owned).or(release);
                self.step_tmps.insert(view.id);
                JobSpec {
                    deploy: Some(view.id),
                    app: app.name.clone(),
                    args: self.step_args(view, place.as_deref(), run),
                    env: self.step_env(view, &app, place.as_deref()),
                    directory: place.unwrap_or(home),
                    who: app.work_as.clone(),
                    is_step: true,
                    cgroup,
                    keys,
                    order: None,
                    rights: None,
                }
            }
        };
        self.start_job(spec);
        if fetches {
            self.have_helper_wait(view, &app);
        }
    }

    fn make_release(&mut self, deploy: DeployId, app: &AppName, release: &ReleaseId, needed: u64) {
        let Some((_, spec)) = self.spec_of(deploy) else { return };
        let (path, releases) = (self.layout.release(app, release), self.layout.releases(app));
        let (maker, owner) = (self.maker.clone(), (spec.work_as.uid, spec.work_as.gid));
        self.files.run(
            move || {
                files::require_free(&releases, needed)?;
                maker.folder(&path, 0o755, Some(owner)).map(|()| path)
            },
            move |supervisor, result| supervisor.deploy_event(Event::ReleaseMade { deploy, result }),
        );
    }

    fn deploy_ended(&mut self, view: &DeployView) {
        self.deploy_states.remove(&view.id);
        self.reserves.remove(&view.id);
        self.fetchers.remove(&view.id);
        self.remove_tmp(view);
        self.tidy(view);
        self.note_undeployed(view);
        let waiters = std::mem::take(&mut self.waiters);
        for waiter in waiters {
            match waiter.wants(view.id) {
                None => self.waiters.push(waiter),
                Some(wanted) => self.say_kept(view.id, waiter.reply, told_end(view, wanted)),
            }
        }
        self.look_if_due(&view.app);
    }

    /// Whoever waits until an app without a release is up waits in vain once no deploy is left that may bring one.
    fn note_undeployed(&mut self, DeployView { id, app, state, reason, .. }: &DeployView) {
        let lacks = self.apps.get(app).is_some_and(|app| app.release().is_none());
        if !lacks || self.deploys.is_busy(app) {
            return;
        }
        let why = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        self.undeployed.insert(app.clone(), format!("{app} has no release, as deploy {id} {state}{why}"));
        self.look_at_waiters();
    }

    /// Tells whoever waits for a deploy that does not begin what that waits for.
    pub fn say_queued(&self, id: DeployId) {
        let found = self.deploys.find(id).map(|(view, app)| (view.clone(), app));
        let Some((mut view, app)) = found.filter(|(view, _)| view.state == DeployState::Queued) else { return };
        let other = self.deploys.running(&view.app).map(|other| format!("deploy {} runs", other.id));
        let why = order::blocked(app, &self.apps).or(other).unwrap_or_else(|| "deploys of other apps run".to_owned());
        view.reason = Some(why);
        self.tell_deploy_waiters(&view);
    }

    fn tell_deploy_waiters(&self, view: &DeployView) {
        for waiter in self.waiters.iter().filter(|waiter| waiter.wants(view.id).is_some()) {
            waiter.reply.say(Saying::Progress(Progress::Deploy(Box::new(view.clone()))));
        }
    }
}

/// What is said of the end of a deploy to somebody who wanted this end.
pub fn told_end(view: &DeployView, wanted: DeployState) -> Saying {
    let DeployView { id, app, state, .. } = view;
    if *state != wanted {
        let reason = view.reason.clone().unwrap_or_default();
        let message = format!("deploy {id} of {app} {state}: {reason}");
        return Saying::Refused(Refusal::new(RefusalKind::Failed, message));
    }
    let message = match (state, &view.release) {
        (DeployState::Live, Some(release)) => format!("{app} {release} is live"),
        _ => format!("deploy {id} of {app} is {state}"),
    };
    Saying::Done(Reply::Changed { app: Some(app.clone()), deploy: Some(*id), message })
}

fn tree_job(
    view: &DeployView,
    who: Arc<Identity>,
    task: &TreeTask,
    directory: std::path::PathBuf,
    cgroup: Option<Arc<crate::os::cgroup::Cgroup>>,
    keys: Keys,
) -> JobSpec {
    JobSpec {
        deploy: Some(view.id),
        app: view.app.clone(),
        args: tree_args(task),
        env: launch::base_env(&who),
        directory,
        who,
        is_step: false,
        cgroup,
        keys,
        order: None,
        rights: None,
    }
}

/// The tree helper's command line.
#[must_use]
pub fn tree_args(task: &TreeTask) -> Vec<String> {
    let task = serde_json::to_string(task).unwrap_or_default();
    vec!["everhook".to_owned(), "tree".to_owned(), task]
}
