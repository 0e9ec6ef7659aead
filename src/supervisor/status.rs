//! What `status` shows: SURFACE.md section 4.

use std::{collections::BTreeMap, sync::Arc};

use super::{Supervisor, apply::first, control::ReplyTo, internals::serve_word};
use crate::domain::{
    api::{
        AppView, ExitView, InstanceState, InstanceView, ListenerView, LoggerView, Reply, Saying, Status, SupervisorView,
    },
    model::{AppName, At},
    service::{App, Rest, State},
};

impl Supervisor {
    /// Answers with the state of these apps. What must be read from files is, on the files thread.
    pub fn say_status(&mut self, apps: &[AppName], reply: ReplyTo) {
        let mut status = Status { supervisor: self.supervisor_view(), apps: Vec::new() };
        let mut trees: Vec<Vec<u32>> = Vec::new();
        for name in apps {
            let Some(app) = self.apps.get(name) else { continue };
            status.apps.push(self.app_view(app));
            let tree = if app.instance().is_active() { self.tree(name) } else { Vec::new() };
            trees.push(tree.iter().map(|member| member.pid).collect());
        }
        let (config, text) = (Arc::clone(&self.config), self.config_text.clone());
        self.files.run(
            move || {
                status.supervisor.config_differs = text.differs(&config);
                for (app, tree) in status.apps.iter_mut().zip(trees) {
                    let usage = tree.iter().filter_map(|pid| crate::os::stat::usage(*pid));
                    let sum = usage.fold(None, |sum: Option<(u64, f64)>, (memory, cpu)| {
                        Some(sum.map_or((memory, cpu), |(m, c)| (m + memory, c + cpu)))
                    });
                    if let Some(instance) = app.instances.first_mut() {
                        instance.memory_bytes = sum.map(|(memory, _)| memory);
                        instance.cpu_s = sum.map(|(_, cpu)| cpu);
                    }
                }
                status
            },
            move |_, status| {
                reply.say(Saying::Done(Reply::Status(Box::new(status))));
            },
        );
    }

    fn supervisor_view(&self) -> SupervisorView {
        let listeners = self.listeners.iter().map(|listener| ListenerView {
            bind: listener.address.to_string(),
            serve: listener.entry.serve.iter().map(|serve| serve_word(*serve).to_owned()).collect(),
            state: listener.keeper.state,
            pid: listener.keeper.pid,
            restarts: listener.keeper.restarts,
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

    /// One app, as far as the loop knows it.
    #[must_use]
    pub fn app_view(&self, app: &App) -> AppView {
        let release = app.release();
        let instances = if app.spec().command.is_some() {
            vec![instance_view(app, self.starting_again_at(app))]
        } else {
            Vec::new()
        };
        AppView {
            name: app.name().clone(),
            state: self.app_state(app.name()),
            release: release.map(|release| release.id.clone()),
            commit: release.map(|release| release.commit.clone()),
            behind: None,
            frozen: None,
            instances,
        }
    }

    fn starting_again_at(&self, app: &App) -> Option<At> {
        let State::Backoff { until } = app.instance().state() else { return None };
        let now = crate::os::clock::now();
        let wait = i64::try_from(until.saturating_duration_since(now.mono).as_millis()).unwrap_or(0);
        Some(At(now.wall.0 + wait))
    }

    /// The app's state, for tables and waiters.
    #[must_use]
    pub fn app_state(&self, name: &AppName) -> InstanceState {
        let Some(app) = self.apps.get(name) else { return InstanceState::Stopped };
        if app.spec().command.is_some() {
            return word(app.instance().state());
        }
        match (app.rests(), app.release()) {
            (Some(Rest::Problem(_)), _) => InstanceState::Failed,
            (_, Some(_)) => InstanceState::Deployed,
            (_, None) => InstanceState::Waiting,
        }
    }
}

fn instance_view(app: &App, next_start_at: Option<At>) -> InstanceView {
    let instance = app.instance();
    let last_exit =
        instance.last_exit().map(|(exit, at)| ExitView { code: exit.code(), signal: exit.signal(), oom: false, at });
    InstanceView {
        name: first(app.name()),
        state: word(instance.state()),
        pid: instance.pid(),
        since: instance.since(),
        restarts: instance.restarts(),
        reason: instance.reason().map(str::to_owned),
        status: None,
        last_exit,
        next_start_at,
        release: app.release().map(|release| release.id.clone()),
        sockets: BTreeMap::new(),
        memory_bytes: None,
        cpu_s: None,
    }
}

/// The state's word.
#[must_use]
pub fn word(state: &State) -> InstanceState {
    match state {
        State::Stopped => InstanceState::Stopped,
        State::Waiting => InstanceState::Waiting,
        State::Starting { .. } => InstanceState::Starting,
        State::Ready { .. } => InstanceState::Ready,
        State::Stopping(_) => InstanceState::Stopping,
        State::Backoff { .. } => InstanceState::Backoff,
        State::Failed { .. } => InstanceState::Failed,
        State::Done => InstanceState::Done,
    }
}
