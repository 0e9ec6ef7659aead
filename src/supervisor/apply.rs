//! Carries out what the service machines decide, and turns the results into events. Nothing is
//! decided here.

use std::{os::fd::OwnedFd, sync::Arc, time::Instant};

use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::{
    Me, Supervisor,
    children::Owner,
    launch,
    ledger::{Command, NewEvent},
    live, prepare, probe,
};
use crate::{
    domain::{
        api::EventKind,
        config, deploy,
        model::{AppName, InstanceId, Signal},
        service::{self, Action, order},
    },
    os::{
        pidfd,
        spawn::{RecordFile, SpawnError, SpawnSpec, Spawned},
        tree::{self, Member, TreeQuery},
    },
};

/// The shell around an app's machine: what it holds of the machine's world.
pub struct Shell {
    pub kit: prepare::Kit,
    /// The main process.
    pub pidfd: Option<OwnedFd>,
    pub main: Option<u32>,
    /// What `env_file` said when it was last read.
    pub env_file: Vec<(String, String)>,
    probe: Option<AbortHandle>,
    killed: bool,
    /// The deadline that stands in `Supervisor::deadlines`.
    pub armed: Option<Instant>,
}

impl Shell {
    #[must_use]
    pub fn new(kit: prepare::Kit, env_file: Vec<(String, String)>) -> Self {
        Self { kit, pidfd: None, main: None, env_file, probe: None, killed: false, armed: None }
    }
}

/// The one instance of an app.
#[must_use]
pub fn first(app: &AppName) -> InstanceId {
    InstanceId { app: app.clone(), number: 1 }
}

impl Supervisor {
    /// Tells an app's machine what happened, and carries out everything that follows.
    pub fn feed(&mut self, app: &AppName, event: service::Event) {
        self.todo.push_back((app.clone(), event));
        if self.feeding {
            return;
        }
        self.feeding = true;
        while let Some((app, event)) = self.todo.pop_front() {
            self.feed_one(&app, event);
        }
        self.feeding = false;
        self.go_on_ending();
    }

    fn feed_one(&mut self, name: &AppName, event: service::Event) {
        let now = crate::os::clock::now();
        let Some(app) = self.apps.get_mut(name) else { return };
        let mut actions = Vec::new();
        app.on(event, now, &mut actions);
        let changed = !actions.is_empty();
        for action in actions {
            self.apply(name, action);
        }
        self.rearm(name);
        if changed {
            self.tell_dependents(name);
            self.look_at_waiters();
        }
    }

    fn rearm(&mut self, name: &AppName) {
        let deadline = self.apps.get(name).and_then(service::App::deadline);
        let Some(shell) = self.shells.get_mut(name) else { return };
        if shell.armed == deadline {
            return;
        }
        if let Some(old) = shell.armed.take() {
            self.deadlines.remove(&(old, name.clone()));
        }
        if let Some(new) = deadline {
            shell.armed = Some(new);
            self.deadlines.insert((new, name.clone()));
        }
    }

    /// Looks again at what `after` holds back because of this app.
    pub fn tell_dependents(&mut self, name: &AppName) {
        let waiting = self.apps.values().filter(|app| app.spec().after.contains(name));
        let waiting: Vec<_> = waiting.map(|app| (app.name().clone(), Arc::clone(app.spec()))).collect();
        for (app, spec) in waiting {
            self.tell_blocked(&app, &spec);
        }
    }

    /// Tells an app, and its deploys, whether `after` holds it back.
    pub fn tell_blocked(&mut self, app: &AppName, spec: &config::App) {
        let reason = order::blocked(spec, &self.apps);
        self.deploy_event(deploy::Event::Gate { app: app.clone(), open: reason.is_none() });
        self.feed(app, service::Event::Block(reason));
    }

    fn apply(&mut self, name: &AppName, action: Action) {
        match action {
            Action::Spawn => self.start_instance(name),
            Action::Signal(signal) => self.signal_main(name, signal),
            Action::SignalTree(signal) => {
                for member in self.tree(name) {
                    self.signal_member(name, &member, signal);
                }
                self.tell_if_empty(name);
            }
            Action::Kill => {
                self.kill_tree(name);
                self.tell_if_empty(name);
            }
            Action::Probe { attempt } => self.begin_probe(name, attempt),
            Action::StopProbe => {
                if let Some(probe) = self.shells.get_mut(name).and_then(|shell| shell.probe.take()) {
                    probe.abort();
                }
            }
            Action::Record { from, to, cause } => self.record(name, from, to, cause),
            Action::Hold(held) => self.keep_held(name, held),
            Action::TrialEnded(result) => self.trial_ended(name, result),
            Action::Removed => self.app_removed(name),
        }
    }

    fn start_instance(&mut self, name: &AppName) {
        let Some((app, shell)) = self.apps.get(name).zip(self.shells.get_mut(name)) else { return };
        shell.killed = false;
        let id = first(name);
        let spec = app.spec();
        match instance_spec(spec, app.release(), &id, shell, &self.me) {
            Ok(mut order) => {
                order.gate = self.logger.mark(&id);
                self.spawn(Owner::App(name.clone()), order);
            }
            Err(error) => self.feed(name, service::Event::SpawnFailed(error.to_string())),
        }
    }

    /// The spawner has answered for an instance.
    pub fn instance_spawned(&mut self, name: &AppName, result: Result<Spawned, SpawnError>) {
        match result {
            Ok(Spawned { pid, pidfd }) => {
                if let Some(shell) = self.shells.get_mut(name) {
                    shell.pidfd = Some(pidfd);
                    shell.main = Some(pid);
                }
                self.feed(name, service::Event::Spawned(pid));
                self.switched(name);
            }
            Err(error) => self.feed(name, service::Event::SpawnFailed(error.to_string())),
        }
    }

    fn signal_main(&mut self, name: &AppName, signal: Signal) {
        let Some(fd) = self.shells.get(name).and_then(|shell| shell.pidfd.as_ref()) else { return };
        if let Err(error) = pidfd::signal(fd, signal) {
            warn!(app = %name, %signal, %error, "the main process did not take the signal");
        }
    }

    fn signal_member(&self, name: &AppName, member: &Member, signal: Signal) {
        match pidfd::signal(&member.pidfd, signal) {
            Err(error) if error.raw_os_error() != Some(3) => {
                warn!(app = %name, pid = member.pid, process = %member.name, %signal, %error, "a process of the tree did not take the signal");
            }
            _ => {}
        }
    }

    /// The processes of an app's tree.
    pub fn tree(&self, name: &AppName) -> Vec<Member> {
        let Some(shell) = self.shells.get(name) else { return Vec::new() };
        let instance = first(name).to_string();
        let query = TreeQuery {
            root: shell.main,
            boot: &self.me.boot,
            instance: &instance,
            cgroup: shell.kit.cgroup.as_deref(),
        };
        tree::members(&query).unwrap_or_else(|error| {
            warn!(app = %name, %error, "the tree cannot be read");
            Vec::new()
        })
    }

    #[must_use]
    pub fn tree_is_empty(&self, name: &AppName) -> bool {
        match self.shells.get(name).and_then(|shell| shell.kit.cgroup.as_ref()) {
            Some(group) => group.is_empty().unwrap_or(true),
            None => self.tree(name).is_empty(),
        }
    }

    #[must_use]
    pub fn is_killed(&self, name: &AppName) -> bool {
        self.shells.get(name).is_some_and(|shell| shell.killed)
    }

    /// KILL to everything of the tree.
    pub fn kill_tree(&mut self, name: &AppName) {
        if let Some(shell) = self.shells.get_mut(name) {
            shell.killed = true;
            if let Some(Err(error)) = shell.kit.cgroup.as_ref().map(|group| group.kill()) {
                warn!(app = %name, %error, "the cgroup cannot be killed as a whole");
            }
        }
        for member in self.tree(name) {
            self.signal_member(name, &member, Signal::KILL);
        }
    }

    fn tell_if_empty(&mut self, name: &AppName) {
        let waits = self.apps.get(name).is_some_and(|app| app.instance().awaits_empty_tree());
        if waits && self.tree_is_empty(name) {
            self.feed(name, service::Event::TreeEmpty);
        }
    }

    fn begin_probe(&mut self, name: &AppName, attempt: u64) {
        let Some((app, shell)) = self.apps.get(name).zip(self.shells.get_mut(name)) else { return };
        let task = probe::until_ready(name.clone(), attempt, app.spec().ready.clone(), self.events.clone());
        if let Some(old) = shell.probe.replace(tokio::spawn(task).abort_handle()) {
            old.abort();
        }
    }

    fn record(&mut self, name: &AppName, from: &str, to: &str, cause: String) {
        info!(app = %name, "{from} → {to}: {cause}");
        self.ledger.send(Command::Event(NewEvent {
            at: crate::os::clock::now().wall,
            app: Some(name.clone()),
            instance: Some(first(name)),
            kind: EventKind::Instance,
            from: Some(from.to_owned()),
            to: Some(to.to_owned()),
            cause: Some(cause),
            detail: None,
        }));
    }

    fn keep_held(&mut self, name: &AppName, held: bool) {
        let (layout, app) = (self.layout.clone(), name.clone());
        let by = held.then(|| self.apps.get(name).and_then(|app| app.held().map(str::to_owned)).unwrap_or_default());
        self.files.run(
            move || live::hold(&layout, &app, by.as_deref()),
            |supervisor, result| {
                if let Err(error) = result {
                    supervisor.trouble(&format!("a stop or start by a person could not be kept: {error}"));
                }
            },
        );
    }

    /// Everything whose moment has come.
    pub fn timers(&mut self) {
        let now = Instant::now();
        while let Some((at, name)) = self.deadlines.first().cloned() {
            if at > now {
                break;
            }
            self.deadlines.pop_first();
            if let Some(shell) = self.shells.get_mut(&name) {
                shell.armed = None;
            }
            self.feed(&name, service::Event::Timer);
        }
    }
}

fn instance_spec(
    app: &config::App,
    release: Option<&service::Release>,
    id: &InstanceId,
    shell: &Shell,
    me: &Me,
) -> Result<SpawnSpec, launch::Unfit> {
    let env = launch::instance_env(app, id, release, &me.boot, &shell.env_file);
    let command = app.command.as_ref().map(launch::arguments).unwrap_or_default();
    let mut spec = launch::spec(&command, &env, &app.run_as, me.root)?;
    launch::limit(&mut spec, &app.limits);
    spec.directory = launch::directory(app, release);
    spec.fds = vec![(Arc::clone(&me.null), 0), (Arc::clone(&shell.kit.out), 1), (Arc::clone(&shell.kit.err), 2)];
    spec.cgroup = shell.kit.cgroup.as_ref().map(|group| group.folder());
    spec.record = Some(RecordFile { file: Arc::clone(&shell.kit.record), everhook_boot: me.boot.clone() });
    Ok(spec)
}
