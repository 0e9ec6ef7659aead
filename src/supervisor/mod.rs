//! The process that keeps everything alive. One loop hears every event in one order, feeds the pure
//! machines of the domain, and carries their actions out; nothing is decided here, and nothing here
//! waits: processes are started, files written and rows stored on threads of their own.
//!
//! `event` is what the loop hears, `seats` what it holds of instances, `apply` what it does for them,
//! `pipeline` for deploys, `requests` for people; `start` is how it all begins, `shutdown` how it ends.

mod alarm;
mod answers;
mod apply;
mod certificates;
mod children;
mod coming;
mod control;
mod courier;
mod current;
mod event;
mod exec;
mod files;
mod foresee;
mod handover;
mod internals;
mod jobs;
mod keys;
mod launch;
mod layout;
mod ledger;
mod limits;
mod listeners;
mod live;
mod log;
mod logs;
mod metrics;
mod outcome;
mod outputs;
mod panics;
mod pipeline;
mod planning;
mod prepare;
mod probe;
mod prune;
mod reload;
mod rename;
mod requests;
mod schedule;
mod seats;
mod secrets;
mod settings;
mod shutdown;
mod signals;
mod sockets;
mod spawner;
mod start;
mod status;
mod tokens;
mod upgrade;
mod veil;
mod waiters;
mod watch;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use crate::{
    domain::{
        access::{Guard, Keyring},
        api::{DeployState, DeployView, Saying},
        config::Config,
        deploy::{self, Deploys},
        model::{AppName, At, CommitId, DeployId, ReleaseId},
        service::{self, Happening, Timetable},
    },
    os::init::Machine,
};

/// What never changes while this process lives.
struct Me {
    /// A random id of this run, in the environment of everything it starts.
    boot: String,
    pid: u32,
    uid: u32,
    root: bool,
    since: At,
    null: Arc<OwnedFd>,
    stdout: Arc<OwnedFd>,
    stderr: Arc<OwnedFd>,
    /// The file that runs, by the name that it had at the start.
    program: PathBuf,
}

impl Me {
    /// The run's id as a seat's processes carry it: that tells the tree of one seat from the other's.
    fn boot_of(&self, seat: service::Seat) -> String {
        if seat.second { format!("{}-second", self.boot) } else { self.boot.clone() }
    }
}

type Later = Box<dyn FnOnce(&mut Supervisor) + Send>;

/// All that the loop knows.
pub struct Supervisor {
    me: Me,
    config: Arc<Config>,
    /// The files' texts as they were applied.
    config_text: settings::Text,
    tokens: Keyring,
    certificates: certificates::Certificates,
    /// Apps whose webhooks cannot be proven, and why.
    unheard: BTreeMap<AppName, String>,
    certificates_told: certificates::Told,
    /// Who has sent wrong tokens lately.
    guard: Guard,
    /// A reload is on its way.
    reloading: bool,
    /// Reloads that were asked for meanwhile.
    reloads: Vec<reload::Wanted>,
    layout: layout::Layout,
    /// Takes clients of `control.sock`.
    control: control::Control,
    log: log::Writing,
    maker: prepare::Maker,
    /// Leftovers of the last supervisor are ended, apps may start.
    begun: bool,
    /// Apps that the loop does not have yet.
    coming: coming::Coming,
    ending: Option<shutdown::Ending>,
    /// What could not go on, and everhook with it.
    gave_up: Option<String>,
    /// Who asked for the end, and when.
    ended_by: Option<String>,
    ending_since: Option<Instant>,
    /// What an earlier supervisor has left gets no more time.
    hurry: Arc<AtomicBool>,

    apps: service::Apps,
    /// Boxed like the apps.
    shells: BTreeMap<AppName, Box<seats::Shell>>,
    binding: sockets::Binding,
    /// Apps that others come after, or came when the config said so: of another nobody needs to hear.
    awaited: BTreeSet<AppName>,
    todo: VecDeque<(AppName, service::Event)>,
    feeding: bool,
    /// When which app wants a timer event.
    deadlines: BTreeSet<(Instant, AppName)>,
    children: children::Children,
    /// Transitions that the log does not have yet, and when they were.
    unsaid: Vec<(Instant, ledger::NewEvent)>,
    /// Those that wait for what the instance said last, and the later ones of its seat.
    unworded: BTreeMap<seats::SeatId, Vec<words::Waiting>>,

    deploys: Deploys,
    deploy_todo: VecDeque<deploy::Event>,
    deploying: bool,
    /// Deploys by the ticket of their last update.
    committing: HashMap<u64, DeployId>,
    /// What is said once the update of this ticket is durable.
    kept_answers: HashMap<u64, Vec<(control::ReplyTo, Saying)>>,
    deploy_states: HashMap<DeployId, DeployState>,
    /// Which deploy tries a release of an app.
    trials: HashMap<AppName, DeployId>,
    /// Whoever wants something of a deploy before it is known what the last supervisor left unfinished;
    /// `None` once it is.
    early: Option<Vec<requests::Caller>>,
    /// Deploys that were queued until then.
    early_deploys: Vec<(DeployView, u32, pipeline::Order)>,
    deploy_streams: HashMap<AppName, outputs::DeployStream>,
    /// Apps whose file `live` leads nowhere, until a deploy has something to run.
    lost: BTreeSet<AppName>,
    /// Why the newest deploy of an app that has no release has brought none, until there is another.
    undeployed: BTreeMap<AppName, String>,
    /// Releases that go once nobody runs in them any more.
    doomed: BTreeSet<(AppName, ReleaseId)>,
    /// Apps whose repository is looked at once none of their deploys is left.
    news_due: BTreeSet<AppName>,
    /// Apps whose remote is being asked.
    asking: BTreeSet<AppName>,
    /// How often an app's branch is looked at, and the ticket of the timer that does.
    polls: BTreeMap<AppName, (Duration, u64)>,
    /// Deploys whose steps may have left something temporary.
    step_tmps: BTreeSet<DeployId>,
    /// Helpers that wait for what a deploy does after its fetch.
    reserves: HashMap<DeployId, pipeline::Reserve>,
    /// Helpers that wait for the fetch of a deploy that has begun.
    fetchers: HashMap<DeployId, pipeline::Fetcher>,
    /// Deploys with a job that what it needs is being made for, and the ticket of that job.
    coming_jobs: HashMap<DeployId, u64>,
    /// Mirrors that are tidied, and the jobs that do it.
    tidying: BTreeMap<PathBuf, jobs::JobId>,
    /// How many commits some of an app are behind the tip of their ref, as it was seen last.
    behind: BTreeMap<AppName, BTreeMap<CommitId, u64>>,
    jobs: jobs::Jobs,

    timetable: Timetable,
    alarm: alarm::Alarm,
    watches: watch::Watches,
    logger: internals::Logger,
    courier: courier::Courier,
    listeners: Vec<listeners::Listener>,
    /// Another binary is to run in our place.
    upgrade: Option<upgrade::Upgrade>,
    /// Who asked the process before this one for us, with the ticket of the question.
    asked_for_us: Option<(u64, OwnedFd)>,

    /// What is counted for `/metrics`.
    tally: metrics::Tally,
    /// The timer of `memory_restart` runs.
    sampling: bool,
    tickets: u64,
    waiters: Vec<waiters::Waiter>,
    followers: Vec<answers::Follower>,
    questions: HashMap<u64, answers::Answered>,
    tails: HashMap<u64, answers::Read>,
    retargets: HashMap<u64, Later>,
    /// Who asked for the deploy of this ticket, whether they wait, and how long.
    queued: HashMap<u64, (control::ReplyTo, bool, Option<Instant>)>,
    /// What a deploy of this ticket has that is no part of its record.
    orders: HashMap<u64, pipeline::Order>,

    events: event::Events,
    spawning: spawner::Spawning,
    files: files::Files,
    ledger: ledger::Ledger,
}

/// `everhook prove CONFIG VERSION`, for the supervisor in whose place this binary is to run.
#[must_use]
pub fn prove(args: &[String]) -> ExitCode {
    let [config, database] = args else { return ExitCode::from(2) };
    match upgrade::prove(Path::new(config), database) {
        Ok(proof) => {
            println!("{proof}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// `everhook run`: 0 after an ordered shutdown, 1 when it could not start. As the init of a machine it
/// switches that off instead of returning.
#[must_use]
pub fn run(config: &Path) -> ExitCode {
    let machine = Machine::take();
    let code = match start::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("everhook: {error}");
            ExitCode::FAILURE
        }
    };
    match machine.map(Machine::power_off) {
        // Nobody is there to read the code of an init.
        Some(never) => match never {},
        None => code,
    }
}

impl Supervisor {
    /// A number that was not used before in this run.
    fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// The file that a process writes its run record into.
    fn record_file(&self, name: &str) -> io::Result<OwnedFd> {
        let path = self.layout.record(name);
        Ok(File::options().write(true).create(true).truncate(false).open(path)?.into())
    }

    /// Handles one event.
    fn on(&mut self, event: event::Event) {
        use event::Event;
        match event {
            Event::Spawned { token, result, lent } => {
                self.spawning.answered(lent);
                self.spawned(token, result);
            }
            Event::Probed { seat, attempt, result } => self.tell(&seat, Happening::Probed { attempt, result }),
            Event::Asked(asked) if self.must_wait(&asked) => self.coming.ask_later(*asked),
            Event::Asked(asked) => self.hear(*asked),
            Event::Told(told) => self.told(told),
            Event::Logger { run, message } => self.logger_said(run, message),
            Event::Courier { run, posted } => self.courier_said(run, posted),
            Event::Then(then) => then(self),
        }
    }
}
