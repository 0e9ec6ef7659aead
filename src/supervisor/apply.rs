//! Carries out what the service machines decide, and turns the results into events. Nothing is
//! decided here.

use std::{
    io,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{
    Me, Supervisor,
    children::Owner,
    launch,
    ledger::{Command, NewEvent},
    live, prepare,
    seats::{SeatId, SeatShell, Shell},
    sockets::FIRST_PASSED,
    words,
};
use crate::{
    domain::{
        api::EventKind,
        config, deploy,
        model::{AppName, InstanceId, Progress, Signal},
        service::{self, Action, App, Happening, Task, order},
    },
    os::{
        fifo, pidfd,
        record::{RunRecord, StartedAs},
        spawn::{Part, RecordFile, SpawnError, SpawnSpec, Spawned},
        tree::{self, Member, TreeQuery},
    },
};

/// So long may what is being started hold back what is to be written down.
const LONGEST_WAIT: Duration = Duration::from_millis(20);
/// What was started has the processors for so long before that.
const FIRST_STEPS: Duration = Duration::from_millis(2);

impl Supervisor {
    /// Tells an app's machine what happened, and carries out everything that follows.
    pub fn feed(&mut self, app: &AppName, event: service::Event) {
        self.feed_all([(app.clone(), event)]);
    }

    /// The same for several, each of which may be another app's.
    pub fn feed_all(&mut self, events: impl IntoIterator<Item = (AppName, service::Event)>) {
        self.todo.extend(events);
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
        if let service::Event::Reconfigure { spec, .. } = &event {
            self.awaited.extend(spec.comes_after().cloned());
            if let Some(shell) = self.shells.get_mut(name) {
                shell.definition = config::definition(spec, &shell.env_file);
            }
        }
        let mut tasks = Vec::new();
        app.on(event, now, &mut tasks);
        let changed = !tasks.is_empty();
        for task in tasks {
            self.carry_out(name, task);
        }
        self.rearm(name);
        if changed {
            self.let_go_if_resting(name);
            if !self.doomed.is_empty() {
                self.remove_doomed(name);
            }
            self.tell_dependents(name);
            self.look_at_waiters();
        }
    }

    fn rearm(&mut self, name: &AppName) {
        let deadline = self.apps.get(name).and_then(|app| app.deadline());
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
        // Who comes after others starts when all are known, and have what goes on of theirs.
        if !self.awaited.contains(name) || self.coming.any() || !self.begun {
            return;
        }
        let waiting = self.apps.values().filter(|app| app.spec().comes_after().any(|before| before == name));
        let waiting: Vec<_> = waiting.map(|app| (app.name().clone(), Arc::clone(app.spec()))).collect();
        for (app, spec) in waiting {
            self.tell_blocked(&app, &spec);
            // Whoever comes after one that waits in vain does not wait for it.
            if self.apps.get(&app).is_some_and(|app| app.lacks()) {
                self.tell_dependents(&app);
            }
        }
    }

    /// Tells an app, and its deploys, whether `after` or `requires` holds it back.
    pub fn tell_blocked(&mut self, app: &AppName, spec: &config::App) {
        let reason = order::blocked(spec, &self.apps);
        if spec.deploy.is_some() {
            self.deploy_event(deploy::Event::Gate { app: app.clone(), open: reason.is_none() });
        }
        self.feed(app, service::Event::Block(reason));
        if !spec.requires.is_empty() || self.apps.get(app).is_some_and(|app| app.lacks()) {
            self.feed(app, service::Event::Lack(order::lacking(spec, &self.apps)));
        }
    }

    fn carry_out(&mut self, name: &AppName, task: Task) {
        match task {
            Task::Process(seat, action) => self.apply(&SeatId { app: name.clone(), seat }, action),
            Task::KeepHolds => self.keep_holds(name),
            Task::TrialEnded(result) => self.trial_ended(name, result),
            Task::Rolled(result) => self.rolled(name, result),
            Task::RunSkipped(why) => self.note_app(name, "run_skipped", why),
            Task::Gone(number) => self.instance_gone(&InstanceId { app: name.clone(), number }),
            Task::Removed => self.app_removed(name),
            Task::ShutDown(why) => {
                self.gave_up.get_or_insert(why.clone());
                self.shut_down(&why, false);
            }
        }
    }

    fn apply(&mut self, id: &SeatId, action: Action) {
        match action {
            Action::Spawn => self.start_instance(id),
            Action::Signal(signal) => self.signal_main(id, signal),
            Action::SignalTree(signal) => {
                for member in self.tree(id) {
                    self.signal_member(id, &member, signal);
                }
                self.tell_if_empty(id);
            }
            Action::Kill => {
                self.kill_tree(id);
                self.tell_if_empty(id);
            }
            Action::Probe { attempt } => self.begin_probe(id, attempt),
            Action::StopProbe => self.stop_probe(id),
            Action::Reload { turn } => self.reload_instance(id, turn),
            Action::StopReload => self.stop_reload(id),
            Action::Ask { turn } => self.ask_to_leave(id, turn),
            Action::Watch { attempt } => self.begin_watch(id, attempt),
            Action::Crashed => self.expect_words(id),
            Action::Progress(progress) => self.note_progress(id, progress),
            Action::Record { from, to, cause } => self.record(id, from, to, cause),
        }
    }

    #[must_use]
    pub fn seat(&self, id: &SeatId) -> Option<&SeatShell> {
        self.shells.get(&id.app)?.seat(id.seat)
    }

    pub fn seat_mut(&mut self, id: &SeatId) -> Option<&mut SeatShell> {
        self.shells.get_mut(&id.app)?.seat_mut(id.seat)
    }

    /// Tells the machine of a seat what happened to its process.
    pub fn tell(&mut self, id: &SeatId, what: Happening) {
        self.feed(&id.app, service::Event::Process(id.seat, what));
    }

    /// Every seat with a process, or with one that is being started or ended.
    pub fn active_seats(&self, app: &App) -> Vec<SeatId> {
        let active = app.runs().filter(|run| run.instance.is_active());
        active.map(|run| SeatId { app: app.name().clone(), seat: run.seat }).collect()
    }

    pub fn start_instance(&mut self, id: &SeatId) {
        if let Some(seat) = self.seat_mut(id) {
            seat.begin_renamed();
        }
        if self.apps.get(&id.app).map(|app| Arc::clone(app.spec())).is_some_and(|spec| self.awaits_notices(id, &spec)) {
            return;
        }
        let seat = id.clone();
        self.with_current(id, move |supervisor, linked| match linked {
            Ok(()) => supervisor.start_in_place(seat),
            Err(error) => supervisor.start_failed(&seat, "", &error),
        });
    }

    fn start_in_place(&mut self, seat: SeatId) {
        let Some(spec) = self.apps.get(&seat.app).map(|app| Arc::clone(app.spec())) else { return };
        self.with_own_folders(&spec, move |supervisor, owned| match owned {
            Ok(()) => supervisor.start_with_shared(seat),
            Err(error) => supervisor.start_failed(&seat, "user", &error),
        });
    }

    fn start_with_shared(&mut self, seat: SeatId) {
        self.with_shared(&seat.clone(), move |supervisor, carried| match carried {
            Ok(()) => supervisor.with_sockets(&seat.clone(), move |supervisor| supervisor.spawn_in_turn(seat)),
            Err(error) => supervisor.start_failed(&seat, "", &error),
        });
    }

    pub fn spawn_instance(&mut self, id: &SeatId) {
        let run = self.apps.get(&id.app).and_then(|app| Some((app.spec(), app.run(id.seat)?)));
        let Some(((spec, run), shell)) = run.zip(self.shells.get_mut(&id.app)) else { return };
        let (mut unmet, mut empty) = (Vec::new(), false);
        let began = crate::os::clock::now().wall;
        if let Some(seat) = shell.seat_mut(id.seat) {
            (seat.killed, seat.unkillable, seat.session, seat.boot) = (false, None, None, None);
            seat.words = words::Words::of(began);
            unmet = seat.begin_limits(&spec.limits);
            empty = [&seat.kit.out, &seat.kit.err]
                .into_iter()
                .all(|output| fifo::bytes_waiting(output).is_ok_and(|n| n == 0));
        }
        let instance = id.instance();
        match instance_spec(spec, run, id, shell, &self.me) {
            Ok(mut order) => {
                order.directory = launch::directory(spec, run.release.as_deref(), &self.layout.current(&id.app));
                order.gate = self.logger.mark(&instance, began, empty);
                self.spawn(Owner::Seat(id.clone()), order);
                self.limits_begun(id, unmet);
            }
            Err(error) => self.start_failed(id, "command", &error.to_string()),
        }
    }

    /// Somebody has removed the group of a seat while nobody lived in it.
    fn start_in_new_group(&mut self, id: SeatId) {
        let (maker, name) = (self.maker.clone(), prepare::seat_name(&id.instance(), id.seat));
        self.files.run(
            move || maker.cgroup(&name),
            move |supervisor, made| match made {
                Ok(group) => {
                    if let Some(seat) = supervisor.seat_mut(&id) {
                        seat.kit.cgroup = group;
                    }
                    supervisor.spawn_in_turn(id);
                }
                Err(error) => supervisor.start_failed(&id, "", &error),
            },
        );
    }

    /// Tells the place of the field that asks for what cannot be.
    fn start_failed(&mut self, id: &SeatId, field: &str, error: &str) {
        let fault = self.apps.get(&id.app).map(|app| app.spec().fault(field, error));
        self.tell(id, Happening::SpawnFailed(fault.unwrap_or_else(|| error.to_owned())));
    }

    /// The spawner has answered for an instance.
    pub fn instance_spawned(&mut self, id: &SeatId, result: Result<Spawned, SpawnError>) {
        match result {
            Ok(Spawned { pid, pidfd }) => {
                if let Some(shell) = self.seat_mut(id) {
                    shell.pidfd = Some(pidfd);
                    shell.main = Some(pid);
                    shell.session = Some(pid);
                }
                self.tell(id, Happening::Spawned(pid));
                self.hear_notices(id);
                self.switched(&id.app);
            }
            Err(SpawnError { part: Part::Cgroup, .. }) => self.start_in_new_group(id.clone()),
            Err(error) => {
                let field = match error.part {
                    Part::Directory => "directory",
                    Part::Program => "command",
                    Part::Credentials => "user",
                    Part::Cgroup | Part::Other => "",
                };
                self.start_failed(id, field, &error.to_string());
            }
        }
    }

    fn signal_main(&mut self, id: &SeatId, signal: Signal) {
        let Some(fd) = self.seat(id).and_then(|shell| shell.pidfd.as_ref()) else { return };
        if let Err(error) = pidfd::signal(fd, signal) {
            warn!(app = %id.app, %signal, %error, "the main process did not take the signal");
        }
    }

    /// False where it may not be signalled.
    fn signal_member(&self, id: &SeatId, member: &Member, signal: Signal) -> bool {
        match pidfd::signal(&member.pidfd, signal) {
            Err(error) if error.raw_os_error() != Some(3) => {
                warn!(app = %id.app, pid = member.pid, process = %member.name, %signal, %error, "a process of the tree did not take the signal");
                false
            }
            _ => true,
        }
    }

    /// For a supervisor that may follow this one.
    fn note_progress(&self, id: &SeatId, progress: Progress) {
        let Some(seat) = self.seat(id) else { return };
        if let Err(error) = RunRecord::note_progress(&seat.kit.record, progress) {
            warn!(app = %id.app, %error, "its record does not say how far it has got");
        }
    }

    /// The run that started a seat's process, as that bears it.
    #[must_use]
    pub fn boot_of(&self, id: &SeatId) -> String {
        let earlier = self.seat(id).and_then(|seat| seat.boot.as_deref());
        earlier.map_or_else(|| self.me.boot_of(id.seat), str::to_owned)
    }

    /// The name of a seat's process in its environment.
    #[must_use]
    pub fn mark_of(&self, id: &SeatId) -> String {
        let renamed = self.seat(id).and_then(|seat| seat.renamed.as_ref());
        renamed.map_or_else(|| id.instance().to_string(), |renamed| renamed.bears.to_string())
    }

    /// The processes of a seat's tree.
    pub fn tree(&self, id: &SeatId) -> Vec<Member> {
        self.found(id, tree::members)
    }

    fn found(&self, id: &SeatId, find: fn(&TreeQuery) -> io::Result<Vec<Member>>) -> Vec<Member> {
        let Some(shell) = self.seat(id) else { return Vec::new() };
        let (instance, boot) = (self.mark_of(id), self.boot_of(id));
        // Both seats of a copy share their output: while both live it tells nothing.
        let others = self.apps.get(&id.app).into_iter().flat_map(|app| app.runs());
        let mut others = others.filter(|run| run.seat.number == id.seat.number && run.seat != id.seat);
        let shared = others.any(|run| run.instance.is_active());
        let outputs: &[&OwnedFd] = if shared { &[] } else { &[&shell.kit.out, &shell.kit.err] };
        let cgroup = shell.kit.cgroup.as_deref();
        let (root, session) = (shell.main, shell.session);
        let query = TreeQuery { root, boot: &boot, instance: &instance, outputs, session, cgroup };
        find(&query).unwrap_or_else(|error| {
            warn!(app = %id.app, %error, "the tree cannot be read");
            Vec::new()
        })
    }

    #[must_use]
    pub fn tree_is_empty(&self, id: &SeatId) -> bool {
        match self.seat(id).and_then(|shell| shell.kit.cgroup.as_ref()) {
            Some(group) => group.is_empty().unwrap_or(true),
            None => self.tree(id).is_empty(),
        }
    }

    #[must_use]
    pub fn is_killed(&self, id: &SeatId) -> bool {
        self.seat(id).is_some_and(|shell| shell.killed)
    }

    /// KILL to everything of the tree.
    pub fn kill_tree(&mut self, id: &SeatId) {
        if let Some(shell) = self.seat_mut(id) {
            shell.killed = true;
            if let Some(Err(error)) = shell.kit.cgroup.as_ref().map(|group| group.kill()) {
                warn!(app = %id.app, %error, "the cgroup cannot be killed as a whole");
            }
        }
        let mut spared = Vec::new();
        for member in self.found(id, tree::kill) {
            if !self.signal_member(id, &member, Signal::KILL) {
                spared.push(format!("{} ({})", member.name.escape_debug(), member.pid));
            }
        }
        if !spared.is_empty() {
            self.tell_unkillable(id, &spared);
        }
    }

    /// Nothing goes on before somebody else ends these: whoever waits is told now.
    fn tell_unkillable(&mut self, id: &SeatId, names: &[String]) {
        let why = format!("everhook may not kill {}: end it as its user, or as root", names.join(", "));
        let known = self.seat_mut(id).map(|seat| seat.unkillable.replace(why.as_str().into()));
        if known.flatten().as_deref() != Some(why.as_str()) {
            self.note_app(&id.app, "not_killed", format!("{}: {why}", id.instance()));
            self.look_at_waiters();
        }
    }

    /// Who of this copy may not be killed.
    #[must_use]
    pub fn unkillable(&self, app: &AppName, number: u32) -> Option<&str> {
        let shell = self.shells.get(app)?;
        let mut seats = shell.seats().filter(|(seat, _)| seat.number == number);
        seats.find_map(|(_, seat)| seat.unkillable.as_deref())
    }

    fn tell_if_empty(&mut self, id: &SeatId) {
        let run = self.apps.get(&id.app).and_then(|app| app.run(id.seat));
        let waits = run.is_some_and(|run| run.instance.awaits_empty_tree());
        if waits && self.tree_is_empty(id) {
            self.tell(id, Happening::TreeEmpty);
        }
    }

    /// A restart of an app's copies is over.
    fn rolled(&mut self, name: &AppName, result: Result<(), String>) {
        let Some(shell) = self.shells.get_mut(name) else { return };
        let several = self.apps.get(name).is_some_and(|app| app.copies().len() > 1);
        shell.rolled = (shell.rolled.0 + 1, result.clone().map_err(Into::into));
        // Nobody may be there to hear the answer of a reload.
        let is_behind = || self.apps.get(name).is_some_and(|app| self.why_behind(app).is_some());
        if let Err(why) = result
            && (several || is_behind())
        {
            warn!(app = %name, "the restart goes no further: {why}");
            self.note_app(name, "restart_stopped", why);
        }
    }

    fn record(&mut self, id: &SeatId, from: &str, to: &str, cause: String) {
        let instance = id.instance();
        let event = NewEvent {
            at: crate::os::clock::now().wall,
            app: Some(id.app.clone()),
            instance: Some(instance),
            kind: EventKind::Instance,
            from: Some(from.to_owned()),
            to: Some(to.to_owned()),
            cause: Some(cause),
            detail: None,
        };
        self.remember(id, event);
    }

    /// Writes it down sooner or later.
    pub fn put_down(&mut self, event: NewEvent) {
        self.ledger.put(Command::Event(event.clone()));
        self.unsaid.push((Instant::now(), event));
    }

    /// Has transitions written down, here and in the store. That wakes three threads, so what is being started
    /// goes first, for a while at most: a restart is faster by what they would take of the processors.
    pub fn write_down(&mut self) {
        if self.unsaid.is_empty() || self.write_down_at().is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.ledger.wake();
        self.logger.look_at_marks();
        for (_, event) in std::mem::take(&mut self.unsaid) {
            let of = event.app.zip(event.instance).zip(event.from.zip(event.to));
            let Some(((app, instance), (from, to))) = of else { continue };
            info!(%app, instance = instance.number, "{from} → {to}: {}", event.cause.unwrap_or_default());
        }
    }

    /// When transitions are written down that wait for what is being started.
    pub fn write_down_at(&self) -> Option<Instant> {
        let (since, _) = self.unsaid.first()?;
        let latest = *since + LONGEST_WAIT;
        Some(if self.children.are_starting() { latest } else { latest.min(self.children.started()? + FIRST_STEPS) })
    }

    /// An event of an app as a whole.
    pub fn note_app(&mut self, name: &AppName, to: &str, cause: String) {
        self.ledger.send(Command::Event(NewEvent {
            at: crate::os::clock::now().wall,
            app: Some(name.clone()),
            instance: None,
            kind: EventKind::App,
            from: None,
            to: Some(to.to_owned()),
            cause: Some(cause),
            detail: None,
        }));
    }

    fn keep_holds(&mut self, name: &AppName) {
        let Some(holds) = self.apps.get(name).map(|app| app.holds()) else { return };
        let (layout, app) = (self.layout.clone(), name.clone());
        self.files.run(
            move || live::keep_holds(&layout, &app, &holds),
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
    run: &service::Run,
    id: &SeatId,
    shell: &mut Shell,
    me: &Me,
) -> Result<SpawnSpec, launch::Unfit> {
    let (instance, boot, release) = (id.instance(), me.boot_of(id.seat), run.release.as_deref());
    let started_as = StartedAs {
        definition: shell.definition,
        release: release.map(|release| release.id.clone()),
        restarts: run.instance.restarts(),
    };
    let (seat, sockets, env_file) = shell.parts(id.seat).ok_or(launch::Unfit::NoSeat)?;
    seat.definition = started_as.definition;
    let mut env = launch::instance_env(app, &instance, release, &boot, env_file);
    let mut pid_env = seat.health.announce(app, &mut env);
    pid_env.extend(launch::name_sockets(&mut env, sockets.keys()));
    let command = app.command.as_ref().map(|command| launch::arguments(command, instance.number)).unwrap_or_default();
    let mut spec = launch::spec(&command, &env, &app.run_as, me.root)?;
    launch::limit(&mut spec, &app.limits);
    spec.fds = vec![(Arc::clone(&me.null), 0), (Arc::clone(&seat.kit.out), 1), (Arc::clone(&seat.kit.err), 2)];
    spec.fds.extend(sockets.values().map(|held| Arc::clone(&held.fd)).zip(FIRST_PASSED..));
    spec.pid_env = pid_env;
    seat.health.equip(app, &mut spec)?;
    spec.cgroup.clone_from(&seat.kit.cgroup);
    spec.record =
        Some(RecordFile { file: Arc::clone(&seat.kit.record), everhook_boot: boot, started_as: Some(started_as) });
    Ok(spec)
}
