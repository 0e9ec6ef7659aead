//! A world of deploys without processes: what the machine asks for is answered at once.

use super::*;
pub(super) fn app(name: &str, check: &[&str], after: &[&str]) -> Arc<App> {
    let who = Identity { uid: 1, gid: 1, groups: vec![], name: None, home: "/".into(), shell: "/bin/sh".into() };
    let who = std::sync::Arc::new(who);
    let deploy = Deploy {
        check: check.iter().map(|run| step(run)).collect(),
        shared: vec![PathBuf::from("db")],
        settle: Duration::from_secs(5),
        ..Deploy::plain("/repo")
    };
    Arc::new(App {
        name: name.parse().unwrap(),
        command: None,
        directory: None,
        run_as: who.clone(),
        work_as: who,
        groups: None,
        env: BTreeMap::new(),
        env_file: [].into(),
        port: None,
        instances: 1,
        enabled: true,
        requires: [].into(),
        on_failed: OnFailed::Stay,
        after: after.iter().map(|name| name.parse().unwrap()).collect(),
        ready: Ready::Immediate,
        live: None,
        restart: Arc::new(Restart {
            policy: Policy::Always,
            success: vec![0],
            first: Duration::from_millis(100),
            factor: 2.0,
            max: Duration::from_secs(30),
            jitter: 0.0,
            reset_after: Duration::from_secs(10),
            give_up: GiveUp { restarts: 10, within: Duration::from_secs(300) },
            retry_after: None,
        }),
        stop: Arc::new(Stop {
            stages: vec![StopStage { command: None, signal: Signal::TERM, timeout: Duration::from_secs(10) }],
            drain: Duration::ZERO,
        }),
        sockets: BTreeMap::new(),
        replace: Replace::StopFirst,
        reload: config::Reload::Restart,
        limits: Limits::default().into(),
        logs: std::sync::Arc::new(Logs { rotate: Size(1 << 20), keep: 1, ..Logs::default() }),
        schedule: None,
        watch: None,
        deploy: Some(Box::new(deploy)),
        was: None,
        problem: None,
        places: Default::default(),
    })
}

pub(super) fn step(run: &str) -> Step {
    Step { run: run.into(), name: None, changed: vec![], timeout: Some(Duration::from_secs(60)) }
}

/// One that runs only where its files differ.
pub(super) fn when(run: &str) -> Step {
    Step { changed: vec!["lock".into()], ..step(run) }
}

/// The same app, but for what its deploys need.
pub(super) fn with(app: &Arc<App>, change: impl FnOnce(&mut Deploy)) -> Arc<App> {
    let mut app = (**app).clone();
    change(app.deploy.as_mut().unwrap());
    Arc::new(app)
}

pub(super) fn ann() -> By {
    By::Local { uid: 7, user: Some("ann".into()) }
}

pub(super) fn commit(n: DeployId) -> CommitId {
    format!("{:040x}", n + 1).parse().unwrap()
}

pub(super) fn view(id: DeployId, app: &AppName) -> DeployView {
    DeployView {
        id,
        app: app.clone(),
        state: DeployState::Queued,
        step: None,
        reason: None,
        commit: Some(commit(id)),
        previous_commit: None,
        ref_name: Some("refs/heads/master".into()),
        subject: None,
        author: None,
        by: By::Delivery { id },
        approved_by: None,
        release: None,
        superseded_by: None,
        queued_at: At(0),
        started_at: None,
        ended_at: None,
        steps: vec![],
    }
}

pub(super) fn queued(id: DeployId, app: &Arc<App>) -> Queued {
    let places = Places { mirror: "/m".into(), app: "/apps/a".into() };
    Queued { view: view(id, &app.name), attempts: 0, rev: None, since: None, app: app.clone(), places }
}

pub(super) fn good() -> JobEnd {
    JobEnd { exit: Exit::Code(0), error: None, answer: vec![], last_lines: vec![] }
}

pub(super) fn bad(code: i32, words: &str) -> JobEnd {
    JobEnd { exit: Exit::Code(code), last_lines: vec!["noise".into(), words.into(), String::new()], ..good() }
}

pub(super) fn fetched(verdict: Verdict, commit: Option<CommitId>) -> JobEnd {
    fetched_with(verdict, commit, vec![])
}

/// The same with answers to what was asked about its changes.
pub(super) fn fetched_with(verdict: Verdict, commit: Option<CommitId>, changes: Vec<Option<String>>) -> JobEnd {
    let ref_name = "refs/heads/master".to_owned();
    let (subject, tree_bytes, behind) = (Some("s".into()), Some(9), BTreeMap::new());
    let live_bytes = Some(400 << 20);
    let fetched = Fetched { verdict, ref_name, commit, subject, author: None, tree_bytes, live_bytes, behind, changes };
    JobEnd { answer: serde_json::to_vec(&fetched).unwrap(), ..good() }
}

/// A machine, its clock, and what it asked for that is not answered.
pub(super) struct Bench {
    pub(super) deploys: Deploys,
    pub(super) base: Instant,
    pub(super) at: Duration,
    pub(super) open: VecDeque<Action>,
    pub(super) ended: BTreeMap<DeployId, DeployView>,
    pub(super) said: Vec<String>,
    /// What is begun anew gets numbers from here on.
    pub(super) anew: Cell<DeployId>,
}

impl Bench {
    /// What the fetch user is to fetch next.
    pub(super) fn fetching(&self) -> &Fetch {
        match self.open.front() {
            Some(Action::Run { job: Job::Tree { task: TreeTask::Fetch(task), who: Who::FetchUser }, .. }) => task,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn new(parallel: u32) -> Self {
        Self {
            deploys: Deploys::new(parallel),
            base: Instant::now(),
            at: Duration::ZERO,
            open: VecDeque::new(),
            ended: BTreeMap::new(),
            said: vec![],
            anew: Cell::new(1000),
        }
    }

    pub(super) fn on(&mut self, event: Event) {
        let mut out = Vec::new();
        let wall = At(i64::try_from(self.at.as_millis()).unwrap());
        self.deploys.on(event, Now { mono: self.base + self.at, wall }, &mut out);
        for action in out {
            if let Action::Ended(view) = &action {
                assert!(self.ended.insert(view.id, (**view).clone()).is_none(), "ended twice: {view:?}");
            }
            // Nobody answers it, and nothing hangs on it.
            if !matches!(action, Action::Expect { .. }) {
                self.said.push(brief(&action));
                self.open.push_back(action);
            }
        }
    }

    pub(super) fn queue(&mut self, queued: Queued) {
        self.on(Event::Queue(Box::new(queued)));
    }

    /// Answers what is open as a shell does where all goes well, until `stop` matches what is next.
    pub(super) fn run_to(&mut self, stop: &str) {
        while let Some(action) = self.open.pop_front() {
            if !stop.is_empty() && brief(&action).starts_with(stop) {
                self.open.push_front(action);
                return;
            }
            if let Some(event) = self.answer(&action) {
                self.on(event);
            }
        }
        assert!(stop.is_empty(), "{stop} never came: {:#?}", self.said);
    }

    pub(super) fn answer(&self, action: &Action) -> Option<Event> {
        Some(match action {
            Action::Persist { view, .. } => Event::Committed { deploy: view.id },
            Action::Run { deploy, job: Job::Tree { task: TreeTask::Fetch(task), .. } } => {
                let commit = task.commit.clone().or_else(|| Some(commit(*deploy)));
                // Every other commit changes what is asked about, such as what cannot be taken back.
                let change = (deploy % 2 == 0).then(|| "it drops a table".to_owned());
                let changes = task.live.iter().flat_map(|_| vec![change.clone(); task.changes.len()]).collect();
                Event::JobEnded { deploy: *deploy, end: fetched_with(Verdict::Deploy, commit, changes) }
            }
            Action::Run { deploy, .. } => Event::JobEnded { deploy: *deploy, end: good() },
            Action::MakeRelease { deploy, .. } => Event::ReleaseMade { deploy: *deploy, result: Ok("/r".into()) },
            Action::StartTrial { deploy, .. } => Event::Trial { deploy: *deploy, result: Ok(None) },
            Action::WriteLive { deploy, .. } => Event::LiveWritten { deploy: *deploy, result: Ok(()) },
            Action::Anew(queued) => {
                let mut queued = queued.clone();
                let old = &queued.view;
                let fresh = view(self.anew.replace(self.anew.get() + 1), &old.app);
                queued.view = DeployView {
                    commit: old.commit.clone(),
                    ref_name: old.ref_name.clone(),
                    by: old.by.clone(),
                    approved_by: old.approved_by.clone(),
                    release: old.release.clone(),
                    ..fresh
                };
                queued.attempts = 0;
                Event::Queue(queued)
            }
            _ => return None,
        })
    }

    /// Tells of a reload that changed the app.
    pub(super) fn reconfigure(&mut self, app: &Arc<App>) {
        self.on(Event::Reconfigure { app: app.clone(), places: Places { mirror: "/m".into(), app: "/apps/a".into() } });
    }

    pub(super) fn freeze(&mut self, app: &Arc<App>, frozen: bool) {
        let freeze = frozen.then(|| Freeze::new("user \"ann\"".into(), At(0), "the fair").unwrap());
        self.on(Event::Freeze { app: app.name.clone(), freeze });
    }

    pub(super) fn approve(&mut self, deploy: DeployId) {
        self.on(Event::Approve { deploy, by: ann() });
    }

    /// Takes the open action that is next and answers it otherwise.
    pub(super) fn instead(&mut self, event: Event) {
        self.open.pop_front().unwrap();
        self.on(event);
    }

    pub(super) fn end(&self, id: DeployId) -> (DeployState, &str) {
        let view = self.ended.get(&id).unwrap_or_else(|| panic!("{id} has not ended: {:#?}", self.said));
        (view.state, view.reason.as_deref().unwrap_or_default())
    }

    pub(super) fn ends(&self) -> Vec<(DeployId, DeployState)> {
        self.ended.iter().map(|(id, view)| (*id, view.state)).collect()
    }

    pub(super) fn set_live(&mut self, app: &Arc<App>, id: DeployId) {
        let live = Some(Live { release: ReleaseId::new(id, &commit(id)), commit: commit(id) });
        self.on(Event::Live { app: app.name.clone(), live });
    }
}

pub(super) fn brief(action: &Action) -> String {
    match action {
        Action::Persist { view, .. } => format!("persist {} {}", view.id, view.state),
        Action::Run { deploy, job: Job::Tree { task, .. } } => {
            let back = matches!(task, TreeTask::Place(place) if matches!(place.to, To::Back { .. }));
            let name = if back { "Back".to_owned() } else { format!("{task:?}") };
            format!("run {deploy} {}", name.split([' ', '(']).next().unwrap())
        }
        Action::Run { deploy, job: Job::Step { run, .. } } => format!("run {deploy} `{run}`"),
        Action::Expect { deploy } => format!("expect {deploy}"),
        Action::EndJob { deploy } => format!("end job {deploy}"),
        Action::Note { line, .. } => format!("note {line}"),
        Action::MakeRelease { deploy, .. } => format!("make {deploy}"),
        Action::StartTrial { deploy, .. } => format!("trial {deploy}"),
        Action::WriteLive { deploy, .. } => format!("write live {deploy}"),
        Action::RunLive { deploy, .. } => format!("run live {deploy}"),
        Action::RemoveRelease { release, .. } => format!("remove {}", release.deploy),
        Action::Prune { app, .. } => format!("prune {app}"),
        Action::Behind { app, .. } => format!("behind {app}"),
        Action::Anew(queued) => format!("anew {}", queued.view.id),
        Action::Ended(view) => format!("ended {} {}", view.id, view.state),
    }
}
