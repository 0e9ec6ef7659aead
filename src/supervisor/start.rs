//! From nothing to the loop: read the config, take the lock, bind, start the threads, end what the
//! last supervisor left, and only then let apps start.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fs,
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use futures_core::Stream;
use signal_hook::iterator::exfiltrator::origin::Origin;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::{
    Me, Supervisor, alarm, certificates,
    children::Children,
    coming, control,
    courier::Courier,
    event::{Event, Events},
    files::Files,
    handover::{self, GoOn, Living},
    internals,
    layout::Layout,
    ledger::{Command, Ledger, Query},
    listeners::Listener,
    log, metrics, panics,
    prepare::{Maker, OwnUsers},
    rename, secrets,
    settings::{self, Settings},
    shutdown::Ending,
    signals,
    spawner::Spawning,
    upgrade::{Inheritance, Upgrade},
    veil, watch,
};
use crate::{
    domain::{
        access::{Guard, Keyring},
        api::{EventKind, ToLogger, note_folder, note_name},
        config::{self, Config},
        deploy::Deploys,
        service::{Run, State, Timetable},
    },
    os::{
        cgroup, clock, files,
        lock::{Lock, LockError},
        mask, memory, notify, reap,
        replace::Note,
        threads, users,
        watched::Ends,
    },
};

/// Older ones have neither `close_range` nor all of clone3.
const OLDEST_KERNEL: (u32, u32) = (5, 10);
/// Where nothing was started for so long, a start or a reload is over; it is not waited for longer than that.
const SETTLED: Duration = Duration::from_millis(250);
const LONGEST_START: Duration = Duration::from_secs(60);
/// A thread that has nothing left to do sleeps after no more than this.
const ASLEEP: Duration = Duration::from_millis(20);

/// Runs until the ordered end.
///
/// # Errors
/// One message that says why it cannot start, and what to do.
pub fn run(path: &Path) -> Result<(), String> {
    if let Some(version) = crate::os::identity::kernel().filter(|version| *version < OLDEST_KERNEL) {
        return Err(format!("Linux {}.{} is too old: everhook needs 5.10 or newer", version.0, version.1));
    }
    // Who asks for the end from here on is heard, once there is somebody to hear it.
    mask::block_all();
    memory::share_one_heap();
    let mut inheritance = Inheritance::take();
    let uid = users::facts().uid;
    // The lowest descriptors are the spawner's, so its thread comes first.
    let (events, inbox) = mpsc::unbounded_channel();
    let spawning = Spawning::start(events.clone()).map_err(|e| format!("cannot start processes: {e}"))?;
    panics::heed(events.clone());
    let _ = crate::os::limits::raise_files();
    let settings = settings::read(path)?;
    let layout = Layout { state: settings.config.state_dir.clone(), run: settings.config.run_dir.clone() };
    own(&layout.state, "state_dir", uid)?;
    own(&layout.run, "run_dir", uid)?;
    let _locks = layout.locks().map(|path| take_lock(&path)).into_iter().collect::<Result<Vec<_>, _>>()?;
    let root = uid == 0;
    let (cgroups, no_cgroup) = match cgroup::find_base() {
        Ok(base) => (Some(Arc::new(base)), None),
        Err(why) => (None, Some(why)),
    };
    let own_users = root.then(OwnUsers::find);
    let maker = Maker { layout: layout.clone(), root, cgroups, own_users };
    maker.common()?;
    veil::set(&settings.veil);
    let log = log::start(log::make(&settings.config.log, &layout.logs())?)?;
    if let Some(why) = no_cgroup {
        warn!(
            "{why}: a process that leaves its parent, scrubs its environment and closes its output is not found when its app ends"
        );
    }
    for warning in &settings.warnings {
        warn!("{warning}");
    }
    // Apps run all the same: nobody may be there to mend it.
    for error in &settings.unusable.tokens {
        error!("{error}");
    }
    for (app, error) in &settings.unusable.apps {
        error!(%app, "its webhooks are not taken in: {error}");
    }
    reap::set_child_subreaper().map_err(|e| format!("cannot become a subreaper: {e}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(memory::at_rest)
        .build()
        .map_err(|e| format!("cannot start the runtime: {e}"))?;
    let upgrade = runtime.block_on(async move {
        let mut signals = signals::listen().map_err(|e| format!("cannot hear signals: {e}"))?;
        // What asks for the end may have come already, and finds somebody who hears it now.
        mask::unblock_all().map_err(|e| format!("cannot unblock signals: {e}"))?;
        let ends = Ends::listen().map_err(|e| format!("cannot hear of ends: {e}"))?;
        let control = control::open(&layout.control(), inheritance.control.take(), events.clone())?;
        let mut supervisor = build(settings, layout, maker, spawning, events, (control, log), inheritance)?;
        threads::run_in_turns_of(threads::SHORT, false);
        let since = Instant::now();
        supervisor.begin();
        let lived = panics::caught(supervisor.live(inbox, &mut signals, ends)).await;
        let upgrade = supervisor.upgrade.take().filter(Upgrade::is_due);
        if lived.is_err() || upgrade.is_some() {
            mask::block_all();
            if let Some(origin) = signals::late_wish(&mut signals).await {
                supervisor.ends_later(&origin);
            }
        }
        if let Err(why) = lived {
            return Ok(Some(supervisor.begins_anew(&why, since)));
        }
        if let Some(mut upgrade) = upgrade {
            upgrade.note(Note::Ending, supervisor.ended_by.take());
            supervisor.go_without_words();
            supervisor.ledger.close();
            return Ok(Some(upgrade));
        }
        info!("ended in order");
        supervisor.remove_groups();
        let control = supervisor.layout.control();
        supervisor.go_without_words();
        supervisor.ledger.close();
        let _ = fs::remove_file(control);
        supervisor.gave_up.map_or(Ok(None), Err)
    })?;
    upgrade.map_or(Ok(()), |upgrade| Err(upgrade.execute()))
}

fn build(
    settings: Settings,
    layout: Layout,
    maker: Maker,
    spawning: Spawning,
    events: Events,
    (control, log): (control::Control, log::Writing),
    mut inheritance: Inheritance,
) -> Result<Supervisor, String> {
    let duplicate = |fd: std::os::fd::BorrowedFd<'_>| {
        fd.try_clone_to_owned().map(Arc::new).map_err(|e| format!("cannot start: {e}"))
    };
    let null = fs::File::options().read(true).write(true).open("/dev/null").map_err(|e| format!("/dev/null: {e}"))?;
    let me = Me {
        boot: secrets::random_hex()[..16].to_owned(),
        pid: std::process::id(),
        uid: users::facts().uid,
        root: maker.root,
        since: clock::now().wall,
        null: Arc::new(null.into()),
        stdout: duplicate(std::io::stdout().as_fd())?,
        stderr: duplicate(std::io::stderr().as_fd())?,
        program: program(),
    };
    let told = events.clone();
    let tell = Arc::new(move |what| drop(told.send(Event::Told(what))));
    let ledger = Ledger::start(&layout.database(), tell).map_err(|e| format!("cannot start the ledger: {e}"))?;
    ledger.send(Command::Snapshot(Arc::new(settings.hooks)));
    let files = Files::start(events.clone()).map_err(|e| format!("cannot start a thread: {e}"))?;
    let echo = internals::echoes(&settings.config);
    let entries = settings.config.http.iter().cloned().enumerate();
    let sockets = &mut inheritance.sockets;
    let listeners = entries.map(|(number, entry)| Listener::new(entry, number).taking(sockets)).collect();
    note_place(&settings.config);
    let mut tokens = Keyring::default();
    tokens.set_config(settings.tokens);
    let mut supervisor = Supervisor {
        me,
        config: Arc::clone(&settings.config),
        config_text: settings.text,
        tokens,
        certificates: settings.certificates,
        unheard: settings.unusable.apps,
        certificates_told: certificates::Told::default(),
        guard: Guard::default(),
        reloading: false,
        reloads: Vec::new(),
        layout,
        control,
        log,
        maker,
        begun: false,
        coming: coming::Coming::default(),
        ending: None,
        hurry: Arc::default(),
        gave_up: Note::GaveUp.left(),
        ended_by: None,
        ending_since: None,
        binding: BTreeMap::new(),
        awaited: BTreeSet::new(),
        apps: BTreeMap::new(),
        shells: BTreeMap::new(),
        todo: VecDeque::new(),
        feeding: false,
        deadlines: BTreeSet::new(),
        children: Children::default(),
        unsaid: Vec::new(),
        unworded: BTreeMap::new(),
        deploys: Deploys::new(settings.config.deploys.parallel),
        deploy_todo: VecDeque::new(),
        deploying: false,
        committing: HashMap::new(),
        kept_answers: HashMap::new(),
        deploy_states: HashMap::new(),
        lost: BTreeSet::new(),
        undeployed: BTreeMap::new(),
        doomed: BTreeSet::new(),
        news_due: BTreeSet::new(),
        asking: BTreeSet::new(),
        polls: BTreeMap::new(),
        step_tmps: BTreeSet::new(),
        reserves: HashMap::new(),
        fetchers: HashMap::new(),
        coming_jobs: HashMap::new(),
        tidying: BTreeMap::new(),
        behind: BTreeMap::new(),
        trials: HashMap::new(),
        early: Some(Vec::new()),
        early_deploys: Vec::new(),
        deploy_streams: HashMap::new(),
        jobs: HashMap::new(),
        timetable: Timetable::default(),
        alarm: alarm::Alarm::default(),
        watches: watch::Watches::default(),
        logger: internals::Logger::new(echo, settings.veil),
        courier: Courier::new(),
        listeners,
        upgrade: None,
        asked_for_us: inheritance.client,
        tally: metrics::Tally::default(),
        sampling: false,
        // Numbers of the first listeners are below.
        tickets: settings.config.http.len() as u64,
        waiters: Vec::new(),
        followers: Vec::new(),
        questions: HashMap::new(),
        tails: HashMap::new(),
        retargets: HashMap::new(),
        queued: HashMap::new(),
        orders: HashMap::new(),
        events,
        spawning,
        files,
        ledger,
    };
    supervisor.take_apps(&settings.config, settings.env_files);
    Ok(supervisor)
}

impl Supervisor {
    /// Makes what every app needs. What keeps one from it is that app's problem alone.
    fn take_apps(
        &mut self,
        config: &Config,
        env_files: BTreeMap<crate::domain::model::AppName, Vec<(String, String)>>,
    ) {
        for (old, new) in rename::taken_back(&self.layout, config) {
            self.ledger.send(Command::Rename { old: new, new: old });
        }
        for (old, new) in rename::pairs(config) {
            match rename::move_state(&self.layout, old, new) {
                Ok(_) => rename::done(&self.layout, new),
                Err(error) => warn!(app = %new, "{error}"),
            }
            self.ledger.send(Command::Rename { old: old.clone(), new: new.clone() });
        }
        let newest = config.apps.keys().map(|name| newest_release(&self.layout.releases(name))).max();
        self.ledger.send(Command::Above(newest.unwrap_or(0)));
        self.coming = coming::Coming::new(config, env_files);
        // What an earlier supervisor has left is looked at with every app in mind.
        let first = if handover::is_needed(&self.layout) { usize::MAX } else { coming::FIRST };
        self.take_first(first);
        self.look_for_letters();
    }

    /// Takes connections at once, and lets apps start when the last supervisor's are gone.
    fn begin(&mut self) {
        info!(pid = self.me.pid, version = env!("CARGO_PKG_VERSION"), "everhook runs");
        self.note(EventKind::Supervisor, None, "ready", None);
        for (app, error) in self.unheard.clone() {
            self.note_app(&app, "hooks_refused", error);
        }
        for number in self.listeners.iter().map(|listener| listener.number).collect::<Vec<_>>() {
            self.start_listener(number);
        }
        self.tell_manager("READY=1");
        let (layout, config, cgroups) = (self.layout.clone(), Arc::clone(&self.config), self.maker.cgroups.clone());
        let (events, hurry) = (self.events.clone(), Arc::clone(&self.hurry));
        let work = move || {
            let ask = |living| who_goes_on(&events, living);
            let (found, rest) = handover::take_over(&layout, &config, cgroups.as_deref(), ask);
            let told = found.told();
            // Whoever goes on is looked after while the others are ended, which may take its time.
            let _ = events.send(Event::Then(Box::new(move |supervisor| supervisor.adopt(found))));
            rest.end(&hurry);
            // Nobody writes them any more.
            rename::pairs(&config).for_each(|(old, new)| rename::move_logs(&layout, old, new));
            let _ = events.send(Event::Then(Box::new(move |supervisor| supervisor.begin_apps(told))));
        };
        if let Err(error) = mask::with_all_blocked(|| thread::Builder::new().name("handover".into()).spawn(work)) {
            let why = format!("cannot look for what the last supervisor left: {error}");
            error!("{why}");
            self.begun = true;
            self.gave_up = Some(why.clone());
            self.shut_down(&why, false);
        }
        if let Some(by) = Note::Ending.left() {
            self.shut_down(&by, false);
        }
    }

    /// To systemd, where that runs us.
    pub fn tell_manager(&self, what: &str) {
        if let Err(error) = notify::tell_manager(what) {
            warn!(%error, "whoever manages everhook cannot be told {what}");
        }
    }

    /// `took_over`: what became of what the last supervisor has left.
    fn begin_apps(&mut self, took_over: Option<String>) {
        if took_over.is_some() {
            self.note(EventKind::Supervisor, None, "took_over", took_over);
        }
        self.begun = true;
        self.sample();
        self.start_logger();
        if self.is_ending() {
            self.tell_upgraded();
            return self.forget_others();
        }
        self.begin_first();
        self.take_others();
        self.look_at_waiters();
        self.tell_upgraded();
    }

    /// Every app is known.
    pub fn all_are_in(&mut self) {
        // Made of all at once, a map keeps no room for others.
        self.apps = std::mem::take(&mut self.apps).into_iter().collect();
        self.shells = std::mem::take(&mut self.shells).into_iter().collect();
        self.look_at_clock();
        self.watch_files();
        let ticket = self.ticket();
        self.ledger.send(Command::Query { ticket, query: Query::Unfinished });
        self.say_hello();
        self.give_back();
    }

    /// What the start or a reload needs goes back to the kernel once it is over and nobody of ours is awake: whoever
    /// runs needs code, which would be there again.
    pub fn give_back(&mut self) {
        self.give_back_by(Instant::now() + LONGEST_START);
    }

    fn give_back_by(&mut self, latest: Instant) {
        self.later(SETTLED, move |supervisor| {
            let last = supervisor.children.started();
            let starts = supervisor.children.are_starting() || last.is_some_and(|at| at.elapsed() < SETTLED);
            // Who gets ready tells of it, which takes memory once more.
            let starts = starts || supervisor.apps.values().flat_map(|app| app.runs()).any(is_starting);
            if starts && Instant::now() < latest {
                return supervisor.give_back_by(latest);
            }
            supervisor.logger.tell(ToLogger::GiveBack, None);
            supervisor.ledger.send(Command::Rest);
        });
    }

    /// The ledger's threads have nothing left to do; when we have not either, memory goes back.
    pub fn rest(&mut self) {
        self.later(ASLEEP, |_| memory::give_back_at_rest());
    }

    /// The first lines of the shipped default: what runs where, and what to try.
    fn say_hello(&self) {
        for listener in self.listeners.iter().filter(|listener| listener.is_bound()) {
            info!("listening on {}://{} for {}", listener.scheme(), listener.address(), listener.serve().join(" and "));
        }
        for app in self.config.apps.values() {
            if let config::Ready::Probe { probe, .. } = &app.ready
                && let config::Probe::Http(probe) = &**probe
            {
                info!("app {} will answer on {}", app.name, probe.url);
            }
        }
        let config = self.config.path.display();
        info!("everything of this is below {} and {}", self.layout.state.display(), self.layout.run.display());
        info!("try next: everhook status -c {config} · everhook logs -f -c {config} · everhook history -c {config}");
    }

    async fn live(&mut self, mut inbox: mpsc::UnboundedReceiver<Event>, signals: &mut signals::Signals, ends: Ends) {
        let timer = tokio::time::sleep(Duration::MAX);
        tokio::pin!(timer);
        let mut set = None;
        while self.ending != Some(Ending::Done) {
            let next = self.next_deadline();
            if next != set {
                if let Some(at) = next {
                    timer.as_mut().reset(at.into());
                }
                set = next;
            }
            // First what is due, then the work, whose time is measured without the waiting.
            let due = tokio::select! {
                biased;
                Ok(pid) = ends.some() => Due::Reap(pid),
                Some(origin) = next_signal(signals) => Due::Signal(origin),
                Some(event) = inbox.recv() => Due::Event(event),
                () = &mut timer, if set.is_some() => Due::Moment,
            };
            let begun = Instant::now();
            match due {
                Due::Reap(pid) => self.reap(pid),
                Due::Signal(origin) => self.signalled(&origin),
                Due::Event(event) => self.on(event),
                Due::Moment => {
                    set = None;
                    self.moment();
                }
            }
            self.reap_others();
            // What is due by now does not wait for the timer, whose ticks are milliseconds.
            self.timers();
            self.write_down();
            self.tally.turned(begun.elapsed());
        }
    }
}

/// Asks the loop who of these goes on, and waits for its answer.
fn who_goes_on(events: &Events, living: Living) -> GoOn {
    let (answer, answered) = std::sync::mpsc::channel();
    let ask = move |supervisor: &mut Supervisor| drop(answer.send(supervisor.who_goes_on(living)));
    // A loop that has ended answers nobody.
    let _ = events.send(Event::Then(Box::new(ask)));
    answered.recv().unwrap_or_default()
}

/// What the loop woke up for.
enum Due {
    /// This child, and others perhaps with it.
    Reap(u32),
    Signal(Origin),
    Event(Event),
    Moment,
}

async fn next_signal(signals: &mut signals::Signals) -> Option<Origin> {
    std::future::poll_fn(|context| std::pin::Pin::new(&mut *signals).poll_next(context)).await
}

fn is_starting(run: &Run) -> bool {
    matches!(run.instance.state(), State::Starting { .. })
}

/// Where a newer one is found after a package's update: the file may be gone by now, its name is not.
fn program() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    let name = path.to_string_lossy();
    name.strip_suffix(" (deleted)").map_or_else(|| path.clone(), PathBuf::from)
}

/// The folder must be ours, and others must be able to go through it. `field`: of the config.
fn own(path: &Path, field: &str, uid: u32) -> Result<(), String> {
    let named = |e: std::io::Error| format!("{}: {e}; name another {field}", path.display());
    let made = !path.exists();
    fs::create_dir_all(path).map_err(named)?;
    let facts = fs::metadata(path).map_err(named)?;
    if facts.uid() != uid {
        return Err(format!(
            "{} belongs to uid {}, and uid {uid} runs everhook; chown it, or name another {field}",
            path.display(),
            facts.uid()
        ));
    }
    if made {
        fs::set_permissions(path, fs::Permissions::from_mode(0o711)).map_err(named)?;
    }
    if uid != 0 {
        return Ok(());
    }
    for folder in path.ancestors() {
        let mode = fs::metadata(folder).map_err(named)?.permissions().mode();
        if mode & 0o001 == 0 {
            return Err(format!(
                "the apps' users cannot enter {} (mode {:o}), so {} is of no use to them; chmod o+x {0}, or name \
                 another {field}",
                folder.display(),
                mode & 0o7777,
                path.display()
            ));
        }
    }
    Ok(())
}

fn take_lock(path: &Path) -> Result<Lock, String> {
    Lock::take(path).map_err(|error| match error {
        LockError::Held { pid } => {
            let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            let folder = path.parent().unwrap_or(path).display();
            format!("another everhook{pid} uses {folder} already: shut it down, or give this one folders of its own")
        }
        LockError::Io(error) => format!("{}: {error}", path.display()),
    })
}

/// Notes where a client finds us when it cannot read the config.
fn note_place(config: &Config) {
    let session = std::env::var_os("XDG_RUNTIME_DIR");
    let Some(folder) = note_folder(users::facts().uid, session.as_deref().map(Path::new)) else { return };
    let noted = fs::create_dir_all(&folder).and_then(|()| {
        files::write_durably(
            &folder.join(note_name(&config.path)),
            config.run_dir.as_os_str().as_encoded_bytes(),
            0o644,
        )
    });
    if let Err(error) = noted {
        warn!(folder = %folder.display(), %error, "a client with a broken config will not find this supervisor");
    }
}

fn newest_release(folder: &Path) -> i64 {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    let ids = names.filter_map(|entry| entry.file_name().to_str()?.parse::<crate::domain::model::ReleaseId>().ok());
    ids.map(|id| id.deploy).max().unwrap_or(0)
}
