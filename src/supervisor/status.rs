//! What `status` shows: SURFACE.md section 4.

use std::{collections::BTreeMap, sync::Arc};

use super::{Supervisor, control::ReplyTo, requests::Chosen, seats::SeatId};
use crate::{
    domain::{
        api::{
            AppView, AwaitingView, DeployState, ExitView, InstanceState, InstanceView, ListenerView, LoggerView, Reply,
            Saying, Status, SupervisorView,
        },
        model::{AppName, At, Exit, InstanceId},
        service::{App, Instance, Rest, Run, State},
    },
    os::stat,
};

impl Supervisor {
    /// Answers with the state of these apps and copies.
    pub fn say_status(&mut self, chosen: &[Chosen], reply: ReplyTo) {
        self.gather_status(chosen, move |_, status, _| {
            reply.say(Saying::Done(Reply::Status(Box::new(status))));
        });
    }

    /// The state of these apps and copies, and what the supervisor itself uses: bytes of memory and seconds of
    /// processor time. What must be read from files is, on the files thread.
    pub fn gather_status(
        &mut self,
        chosen: &[Chosen],
        then: impl FnOnce(&mut Supervisor, Status, Option<(u64, f64)>) + Send + 'static,
    ) {
        let mut status = Status { supervisor: self.supervisor_view(), apps: Vec::new() };
        let mut trees = Vec::new();
        let mut apps: Vec<&App> =
            chosen.iter().filter_map(|chosen| self.apps.get(&chosen.app).map(|app| &**app)).collect();
        apps.dedup_by_key(|app| app.name());
        for app in apps {
            let wanted = |run: &&Run| {
                let fits = |c: &Chosen| c.app == *app.name() && c.only.is_none_or(|number| number == run.seat.number);
                chosen.iter().any(fits)
            };
            let runs: Vec<&Run> = app.runs().filter(wanted).collect();
            status.apps.push(self.app_view(app, &runs));
            for run in runs.iter().filter(|_| app.spec().command.is_some()) {
                let id = SeatId { app: app.name().clone(), seat: run.seat };
                trees.push(run.instance.is_active().then(|| self.measured(&id)));
            }
        }
        let (config, text, own) = (Arc::clone(&self.config), self.config_text.clone(), self.me.pid);
        let is_behind = !self.behind_config().is_empty();
        self.files.run(
            move || {
                status.supervisor.config_differs = is_behind || text.differs(&config);
                let instances = status.apps.iter_mut().flat_map(|app| &mut app.instances);
                for (instance, tree) in instances.zip(trees) {
                    let usage = tree.and_then(|tree| tree.usage());
                    instance.memory_bytes = usage.map(|(memory, _)| memory);
                    instance.cpu_s = usage.map(|(_, cpu)| cpu);
                }
                (status, stat::usage(own))
            },
            move |supervisor, (status, own)| then(supervisor, status, own),
        );
    }

    fn supervisor_view(&self) -> SupervisorView {
        let listeners = self.listeners.iter().map(|listener| ListenerView {
            bind: listener.address().to_string(),
            serve: listener.serve().into_iter().map(str::to_owned).collect(),
            state: listener.keeper.state,
            pid: listener.keeper.pid,
            restarts: listener.keeper.restarts,
            reason: listener.keeper.reason.clone(),
        });
        SupervisorView {
            pid: self.me.pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: self.me.since,
            config: self.config.path.display().to_string(),
            config_differs: false,
            state_dir: self.layout.state.display().to_string(),
            listeners: listeners.collect(),
            logger: LoggerView { pid: self.logger.keeper.pid, restarts: self.logger.keeper.restarts },
        }
    }

    /// One app, as far as the loop knows it, with these of its processes.
    #[must_use]
    fn app_view(&self, app: &App, runs: &[&Run]) -> AppView {
        let release = app.release();
        let runs = if app.spec().command.is_some() { runs } else { &[] };
        AppView {
            name: app.name().clone(),
            state: self.app_state(app.name()),
            release: release.map(|release| release.id.clone()),
            commit: release.map(|release| release.commit.clone()),
            behind: release.and_then(|release| self.behind.get(app.name())?.get(&release.commit).copied()),
            frozen: self.deploys.freeze(app.name()).map(ToString::to_string),
            awaiting_approval: self.awaiting_approval(app.name()),
            reason: self.why_unheard(app).or_else(|| why_undeployed(app)).or_else(|| self.why_behind(app)),
            watch: self.watch_view(app.name()),
            instances: runs.iter().map(|run| self.instance_view(app, run)).collect(),
        }
    }

    fn why_unheard(&self, app: &App) -> Option<String> {
        self.unheard
            .get(app.name())
            .filter(|_| app.spec().problem.is_none())
            .map(|why| format!("its webhooks are not taken in: {why}"))
    }

    fn awaiting_approval(&self, app: &AppName) -> Vec<AwaitingView> {
        let awaiting = self.deploys.waiting(app).filter(|view| view.state == DeployState::AwaitingApproval);
        awaiting.map(|view| AwaitingView { deploy: view.id, reason: view.reason.clone() }).collect()
    }

    fn instance_view(&self, app: &App, run: &Run) -> InstanceView {
        let next_run = self.next_run(app);
        let instance = &run.instance;
        // What does not run will start in what is live then.
        let release = if instance.is_active() { run.release.as_deref() } else { app.release() };
        let last_exit = instance.last_exit().map(|(exit, at)| ExitView {
            code: exit.code(),
            signal: exit.signal(),
            oom: exit == Exit::OutOfMemory,
            at,
        });
        InstanceView {
            name: InstanceId { app: app.name().clone(), number: run.seat.number },
            state: word(instance),
            pid: instance.pid(),
            since: instance.since(),
            restarts: instance.restarts(),
            reason: self.reason(app, run),
            status: instance.status().map(str::to_owned),
            last_exit,
            next_start_at: starting_again_at(instance).or(next_run),
            release: release.map(|release| release.id.clone()),
            sockets: self.addresses(app.name()),
            memory_bytes: None,
            cpu_s: None,
        }
    }

    /// Why it is not ready, and after a failure what it said last.
    fn reason(&self, app: &App, run: &Run) -> Option<String> {
        if is_unknown(&run.instance) {
            return Some(
                "everhook has just started, and what an earlier one left is adopted or ended first".to_owned(),
            );
        }
        let reason = run.instance.reason()?;
        if let Some(why) = self.unkillable(app.name(), run.seat.number).filter(|_| run.instance.is_active()) {
            return Some(format!("{reason}; {why}"));
        }
        let failed = matches!(run.instance.state(), State::Backoff { .. } | State::Failed { .. });
        let id = SeatId { app: app.name().clone(), seat: run.seat };
        let last = self.seat(&id).filter(|_| failed).and_then(|seat| seat.words.last.last());
        Some(last.map_or_else(|| reason.to_owned(), |line| format!("{reason}; its last words: {line}")))
    }

    /// The sockets that are held for an app.
    fn addresses(&self, app: &AppName) -> BTreeMap<String, String> {
        let held = self.shells.get(app).into_iter().flat_map(|shell| &shell.sockets);
        held.map(|(name, held)| (name.clone(), held.shown.clone())).collect()
    }

    /// The state of an app or one of its copies.
    #[must_use]
    pub fn state_of(&self, chosen: &Chosen) -> InstanceState {
        let copy = chosen.only.and_then(|number| self.apps.get(&chosen.app)?.copy(number));
        copy.map_or_else(|| self.app_state(&chosen.app), |copy| word(copy.instance()))
    }

    /// The app's state, for tables and waiters.
    #[must_use]
    pub fn app_state(&self, name: &AppName) -> InstanceState {
        let Some(app) = self.apps.get(name) else { return InstanceState::Stopped };
        if app.spec().command.is_some() {
            return word(app.worst());
        }
        match (app.rests(), app.release()) {
            (Some(Rest::Problem(_)), _) => InstanceState::Failed,
            (_, Some(_)) => InstanceState::Deployed,
            (_, None) => InstanceState::Waiting,
        }
    }
}

/// What keeps an app back that has no instance which could say it.
fn why_undeployed(app: &App) -> Option<String> {
    match app.rests().filter(|_| app.spec().command.is_none())? {
        Rest::Problem(why) => Some(why),
        Rest::NoRelease => Some(app.first_deploy()),
        _ => None,
    }
}

fn starting_again_at(instance: &Instance) -> Option<At> {
    let (State::Backoff { until } | State::Failed { retry: Some(until) }) = instance.state() else { return None };
    let now = crate::os::clock::now();
    let wait = i64::try_from(until.saturating_duration_since(now.mono).as_millis()).unwrap_or(0);
    Some(At(now.wall.0 + wait))
}

/// Has nobody looked yet whether it runs, as an earlier supervisor has started it perhaps?
fn is_unknown(instance: &Instance) -> bool {
    *instance.state() == State::Stopped && instance.reason().is_none()
}

/// The state's word.
#[must_use]
pub fn word(instance: &Instance) -> InstanceState {
    match instance.state() {
        State::Stopped if is_unknown(instance) => InstanceState::Waiting,
        State::Stopped => InstanceState::Stopped,
        State::Waiting => InstanceState::Waiting,
        State::Starting { .. } => InstanceState::Starting,
        State::Ready { .. } => InstanceState::Ready,
        State::Stopping(_) if instance.drains() => InstanceState::Draining,
        State::Stopping(_) => InstanceState::Stopping,
        State::Backoff { .. } => InstanceState::Backoff,
        State::Failed { .. } => InstanceState::Failed,
        State::Done => InstanceState::Done,
    }
}
