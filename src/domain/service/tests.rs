//! The life cycle, over an explicit clock and a shell that answers as it is told; what the files beside this one share.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{super::instance::name, *};
use crate::domain::config::{
    Command, GiveUp, Identity, Limits, Live, LiveProbe, Logs, OnFailed, Policy, Ready, Replace, Restart, Stop,
    StopStage,
};
use crate::domain::model::{Signal, Size};

fn spec(ready: Ready, policy: Policy) -> config::App {
    let me = Identity { uid: 1, gid: 1, groups: vec![], name: None, home: "/".into(), shell: "/bin/sh".into() };
    let me = Arc::new(me);
    config::App {
        name: "a".parse().unwrap(),
        command: Some(Command::List(["x"].into_iter().collect())),
        directory: Some(Path::new("/").into()),
        run_as: me.clone(),
        work_as: me,
        groups: None,
        env: Default::default(),
        env_file: [].into(),
        port: None,
        instances: 1,
        enabled: true,
        after: [].into(),
        requires: [].into(),
        on_failed: OnFailed::Stay,
        ready,
        live: None,
        restart: Arc::new(Restart {
            policy,
            success: vec![0],
            first: Duration::from_millis(100),
            factor: 2.0,
            max: Duration::from_secs(1),
            jitter: 0.0,
            reset_after: Duration::from_secs(10),
            give_up: GiveUp { restarts: 3, within: Duration::from_secs(60) },
            retry_after: None,
        }),
        stop: Arc::new(Stop {
            stages: vec![StopStage { command: None, signal: Signal::TERM, timeout: Duration::from_secs(5) }],
            drain: seconds(30),
        }),
        sockets: BTreeMap::new(),
        replace: Replace::StopFirst,
        reload: config::Reload::Restart,
        limits: Limits::default().into(),
        logs: Arc::new(Logs { rotate: Size(1 << 20), keep: 3, ..Logs::default() }),
        schedule: None,
        watch: None,
        deploy: None,
        was: None,
        problem: None,
        places: Default::default(),
    }
}

/// What the kernel has in a seat: at most one tree.
#[derive(Debug, Default)]
struct Tree {
    spawning: bool,
    main: Option<u32>,
    others: bool,
    attempt: u64,
    turn: u64,
}

impl Tree {
    fn is_empty(&self) -> bool {
        !self.spawning && self.main.is_none() && !self.others
    }
}

/// An app, a clock and a kernel.
struct World {
    app: App,
    now: Now,
    trees: BTreeMap<Seat, Tree>,
    next_pid: u32,
    done: Vec<Task>,
}

const FIRST: Seat = Seat { number: 1, second: false };

impl World {
    fn new(spec: config::App) -> Self {
        let now = Now { mono: Instant::now(), wall: At(0) };
        let app = App::new(Arc::new(spec), None, 7, now.wall);
        let mut world = Self { app, now, trees: BTreeMap::new(), next_pid: 100, done: vec![] };
        world.feed(Event::Begin);
        world
    }

    fn feed(&mut self, event: Event) {
        let mut out = vec![];
        self.app.on(event, self.now, &mut out);
        for task in out {
            match &task {
                Task::Process(seat, Action::Spawn) => {
                    let tree = self.trees.entry(*seat).or_default();
                    assert!(tree.is_empty(), "two copies");
                    tree.spawning = true;
                }
                Task::Process(seat, Action::Probe { attempt } | Action::Watch { attempt }) => {
                    self.trees.entry(*seat).or_default().attempt = *attempt;
                }
                Task::Process(seat, Action::Reload { turn } | Action::Ask { turn }) => {
                    self.trees.entry(*seat).or_default().turn = *turn;
                }
                Task::Gone(number) => {
                    assert!(self.trees.iter().all(|(seat, tree)| seat.number != *number || tree.is_empty()));
                }
                _ => {}
            }
            self.done.push(task);
        }
    }

    fn tell(&mut self, seat: Seat, what: Happening) {
        self.feed(Event::Process(seat, what));
    }

    fn tree(&mut self, seat: Seat) -> &mut Tree {
        self.trees.entry(seat).or_default()
    }

    fn spawned_in(&mut self, seat: Seat, leaves_others: bool) {
        if std::mem::take(&mut self.tree(seat).spawning) {
            self.next_pid += 1;
            let pid = self.next_pid;
            let tree = self.tree(seat);
            (tree.main, tree.others) = (Some(pid), leaves_others);
            self.tell(seat, Happening::Spawned(pid));
        }
    }

    fn spawned(&mut self, leaves_others: bool) {
        self.spawned_in(FIRST, leaves_others);
    }

    fn exit_in(&mut self, seat: Seat, exit: Exit) {
        if self.tree(seat).main.take().is_some() {
            let alone = !self.tree(seat).others;
            self.tell(seat, Happening::Exited { exit, alone });
        }
    }

    fn exit(&mut self, exit: Exit) {
        self.exit_in(FIRST, exit);
    }

    fn others_end_in(&mut self, seat: Seat) {
        let tree = self.tree(seat);
        if std::mem::take(&mut tree.others) && tree.main.is_none() {
            self.tell(seat, Happening::TreeEmpty);
        }
    }

    fn others_end(&mut self) {
        self.others_end_in(FIRST);
    }

    /// The kernel does its part: what is spawned comes up, what is told to end ends.
    fn settle(&mut self) {
        for _ in 0..20 {
            for seat in self.app.runs().map(|run| run.seat).collect::<Vec<_>>() {
                self.spawned_in(seat, false);
                if self.app.run(seat).is_some_and(|run| matches!(run.instance.state(), State::Stopping(_))) {
                    self.exit_in(seat, Exit::Signal(15));
                    self.others_end_in(seat);
                }
                let attempt = self.tree(seat).attempt;
                self.tell(seat, Happening::Probed { attempt, result: Ok(()) });
                self.tell(seat, Happening::LiveProbed { attempt, result: Ok(()) });
                let turn = self.tree(seat).turn;
                self.tell(seat, Happening::Told { turn, result: Ok(1) });
                self.say(seat, "RELOADING=1\nMONOTONIC_USEC=1");
                self.say(seat, "READY=1\nWATCHDOG=1");
            }
        }
    }

    /// The process in this seat says so; nobody is heard who does not run.
    fn say(&mut self, seat: Seat, what: &str) {
        if self.tree(seat).main.is_some() {
            self.tell(seat, Happening::Notified(Notice::parse(what.as_bytes()).unwrap()));
        }
    }

    fn pass(&mut self, length: Duration) {
        let end = self.now.mono + length;
        while let Some(at) = self.app.deadline().filter(|at| *at <= end) {
            self.now.mono = at.max(self.now.mono);
            self.feed(Event::Timer);
            if self.app.deadline() == Some(at) {
                break;
            }
        }
        self.now.mono = end;
    }

    fn state(&self) -> &State {
        self.app.worst().state()
    }

    fn all_words(&self) -> Vec<(Seat, &'static str)> {
        self.app.runs().map(|run| (run.seat, name(run.instance.state()))).collect()
    }

    fn words(&self) -> Vec<(u32, &'static str)> {
        self.app.runs().map(|run| (run.seat.number, name(run.instance.state()))).collect()
    }

    fn last(&self) -> Option<&Action> {
        self.done.iter().rev().find_map(|task| if let Task::Process(_, action) = task { Some(action) } else { None })
    }

    fn trial_ends(&self) -> Vec<bool> {
        let ended = |task: &Task| if let Task::TrialEnded(result) = task { Some(result.is_ok()) } else { None };
        self.done.iter().filter_map(ended).collect()
    }

    fn rolled(&self) -> Vec<Result<(), String>> {
        let ended = |task: &Task| if let Task::Rolled(result) = task { Some(result.clone()) } else { None };
        self.done.iter().filter_map(ended).collect()
    }
}

fn start(restart: bool) -> Event {
    Event::Start { only: None, restart, by: "ann".into() }
}

fn stop() -> Event {
    Event::Stop { only: None, by: "ann".into() }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn release(n: i64) -> Release {
    let commit: CommitId = "a".repeat(40).parse().unwrap();
    Release { id: ReleaseId::new(n, &commit), commit, directory: format!("/r/{n}").into() }
}

/// What is left of a command that nobody waits for any more is ended, and the signal follows in time.
#[test]
fn a_command_asks_before_the_signal() {
    let plain = spec(Ready::Immediate, Policy::Always);
    let asks = || config::App { stop: law::asking(&plain.stop), ..plain.clone() };
    let stopping = |ends: &dyn Fn(&mut World)| {
        let mut world = World::new(asks());
        world.spawned_in(FIRST, false);
        world.done.clear();
        world.feed(Event::Stop { only: None, by: "ann".into() });
        ends(&mut world);
        let told = |task: &Task| match task {
            Task::Process(_, Action::Ask { .. }) => Some("ask"),
            Task::Process(_, Action::Signal(Signal::TERM)) => Some("signal"),
            Task::Process(_, Action::SignalTree(Signal::TERM)) => Some("signal all"),
            Task::Process(_, Action::StopReload) => Some("end the command"),
            Task::Process(_, Action::Kill) => Some("kill"),
            _ => None,
        };
        world.done.iter().filter_map(told).collect::<Vec<_>>()
    };
    let ended = |world: &mut World, result| {
        let turn = world.tree(FIRST).turn;
        world.tell(FIRST, Happening::Told { turn, result });
    };
    assert_eq!(stopping(&|world| world.exit_in(FIRST, Exit::Code(0))), ["ask", "end the command"]);
    assert_eq!(stopping(&|world| ended(world, Ok(1))), ["ask"]);
    assert_eq!(stopping(&|world| ended(world, Err("no".into()))), ["ask", "signal"]);
    assert_eq!(stopping(&|world| world.pass(seconds(5))), ["ask", "end the command", "signal"]);
    let late = stopping(&|world| {
        world.pass(seconds(5));
        ended(world, Err("killed".into()));
        world.pass(seconds(5));
    });
    assert_eq!(late, ["ask", "end the command", "signal", "kill"]);
    let again = stopping(&|world| world.feed(Event::Stop { only: None, by: "ann".into() }));
    assert_eq!(again, ["ask", "end the command", "kill"]);
}

#[test]
fn a_crash_loop_ends_in_failed_and_start_revives_it() {
    let mut world = World::new(spec(Ready::Immediate, Policy::Always));
    for _ in 0..4 {
        world.spawned(false);
        world.exit(Exit::Code(3));
        world.pass(seconds(2));
    }
    assert!(matches!(world.state(), State::Failed { .. }));
    assert!(world.app.worst().reason().unwrap().contains("gave up after 3 restarts"));
    world.feed(start(true));
    assert!(matches!(world.state(), State::Starting { .. }));
}

#[test]
fn the_rest_of_the_tree_hears_the_signal_and_then_kill() {
    let mut world = World::new(spec(Ready::Immediate, Policy::Always));
    world.spawned(true);
    world.feed(stop());
    assert_eq!(world.last(), Some(&Action::Record { from: "ready", to: "stopping", cause: "ann".into() }));
    world.exit(Exit::Signal(15));
    assert_eq!(world.last(), Some(&Action::SignalTree(Signal::TERM)));
    world.pass(seconds(5));
    assert_eq!(world.last(), Some(&Action::Kill));
    world.others_end();
    assert_eq!(world.state(), &State::Stopped);
    world.pass(seconds(1000));
    assert_eq!(world.state(), &State::Stopped, "a stop by a person holds");
}

#[test]
fn a_second_stop_kills_at_once() {
    let mut world = World::new(spec(Ready::Immediate, Policy::Always));
    world.spawned(false);
    world.feed(stop());
    world.feed(stop());
    assert_eq!(world.last(), Some(&Action::Kill));
}

#[test]
fn a_release_that_crashes_on_trial_gives_way_to_the_one_before() {
    let mut world = World::new(spec(Ready::Immediate, Policy::Always));
    world.feed(Event::Adopt(release(1)));
    world.spawned(false);
    world.feed(Event::Try { release: release(2), settle: seconds(3), stands: false });
    world.exit(Exit::Signal(15));
    world.spawned(false);
    world.pass(seconds(1));
    assert!(world.trial_ends().is_empty());
    world.exit(Exit::Code(7));
    assert_eq!(world.trial_ends(), [false]);
    assert_eq!(world.app.release().unwrap().id.deploy, 1);
    world.spawned(false);
    assert!(matches!(world.state(), State::Ready { .. }));
}

#[test]
fn a_release_that_stays_ready_passes_its_trial() {
    let mut world = World::new(spec(Ready::Immediate, Policy::Always));
    world.spawned(false);
    world.feed(Event::Try { release: release(2), settle: seconds(3), stands: false });
    world.exit(Exit::Signal(15));
    world.spawned(false);
    world.pass(seconds(3));
    assert_eq!(world.trial_ends(), [true]);
    world.exit(Exit::Code(1));
    assert_eq!(world.app.release().unwrap().id.deploy, 2, "a later crash takes nothing back");
}

/// However short it is to settle: somebody has to have seen that it is well.
#[test]
fn a_release_that_is_watched_passes_once_it_has_answered() {
    let tcp = || LiveProbe::Probe(config::Probe::Tcp(config::TcpProbe { addr: "localhost:1".into() }));
    for result in [Ok(()), Err("no".to_owned())] {
        let mut world = World::new(config::App { ready: Ready::Immediate, ..watched(tcp(), 3) });
        world.settle();
        world.feed(Event::Adopt(release(1)));
        world.feed(Event::Try { release: release(2), settle: seconds(3), stands: false });
        world.exit(Exit::Signal(15));
        world.spawned(false);
        world.pass(seconds(4));
        assert!(world.trial_ends().is_empty() && world.app.deadline().is_none());
        let (attempt, good) = (world.app.worst().attempt(), result.is_ok());
        world.tell(FIRST, Happening::LiveProbed { attempt, result });
        if !good {
            world.exit(Exit::Signal(15));
        }
        assert_eq!(world.trial_ends(), [good]);
    }
}

#[test]
fn policies_decide_what_a_success_is_worth() {
    for (policy, exit, want_done) in [
        (Policy::OnFailure, Exit::Code(0), true),
        (Policy::Never, Exit::Code(0), true),
        (Policy::Always, Exit::Code(0), false),
        (Policy::OnFailure, Exit::Signal(9), false),
    ] {
        let mut world = World::new(spec(Ready::Immediate, policy));
        world.spawned(false);
        world.exit(exit);
        assert_eq!(world.state() == &State::Done, want_done, "{policy:?} {exit}");
    }
}

fn watched(probe: LiveProbe, failures: u32) -> config::App {
    let live = Live { probe, every: seconds(5), failures, timeout: seconds(1) };
    config::App { live: Some(Box::new(live)), ..spec(Ready::Notify { within: seconds(10) }, Policy::OnFailure) }
}

#[test]
fn silence_counts_from_the_last_word_and_as_often_as_it_asked_for() {
    let mut world = World::new(watched(LiveProbe::Watchdog, 2));
    world.spawned(false);
    world.pass(seconds(9));
    world.say(FIRST, "READY=1");
    world.pass(seconds(9));
    world.say(FIRST, "WATCHDOG=1");
    world.pass(seconds(9));
    assert!(matches!(world.state(), State::Ready { .. }));
    world.say(FIRST, "WATCHDOG_USEC=1000000");
    world.pass(seconds(2));
    assert!(world.app.worst().reason().unwrap().contains("no WATCHDOG=1 within 2s"));
    world.exit(Exit::Code(0));
    assert!(matches!(world.state(), State::Starting { .. }), "an exit with 0 makes no success of it");
}

#[test]
fn time_is_given_and_never_taken() {
    let mut world = World::new(watched(LiveProbe::Watchdog, 1));
    world.spawned(false);
    world.say(FIRST, "EXTEND_TIMEOUT_USEC=1000000");
    world.pass(seconds(9));
    assert!(matches!(world.state(), State::Starting { .. }));
    world.say(FIRST, "EXTEND_TIMEOUT_USEC=5000000");
    world.pass(seconds(4));
    assert!(matches!(world.state(), State::Starting { .. }));
    world.pass(seconds(1));
    assert!(world.app.worst().reason().unwrap().ends_with(": it did not say READY=1"));
    world.say(FIRST, "EXTEND_TIMEOUT_USEC=20000000");
    world.pass(seconds(19));
    assert_eq!(world.last(), Some(&Action::Signal(Signal::TERM)));
    world.pass(seconds(1));
    assert_eq!(world.last(), Some(&Action::Kill));
}

#[test]
fn who_says_that_it_stops_is_judged_by_how_it_does() {
    for (code, want) in [(0, "done"), (3, "backoff")] {
        let mut world = World::new(watched(LiveProbe::Watchdog, 1));
        world.spawned(false);
        world.say(FIRST, "READY=1");
        let before = world.done.len();
        world.say(FIRST, "STOPPING=1");
        let signals = |task: &Task| matches!(task, Task::Process(_, Action::Signal(_)));
        assert!(!world.done[before..].iter().any(signals), "it leaves by itself");
        world.exit(Exit::Code(code));
        assert_eq!(world.words(), [(1, want)]);
    }
}

/// As service managers read it: the time is for the end that the same message begins.
#[test]
fn who_says_that_it_stops_can_ask_for_time_at_once() {
    let mut world = World::new(watched(LiveProbe::Watchdog, 1));
    world.spawned(false);
    world.say(FIRST, "READY=1");
    world.say(FIRST, "EXTEND_TIMEOUT_USEC=600000000\nSTOPPING=1");
    let before = world.done.len();
    world.pass(seconds(599));
    assert!(matches!(world.state(), State::Stopping { .. }));
    let ends = |task: &Task| matches!(task, Task::Process(_, Action::Signal(_) | Action::Kill));
    assert!(!world.done[before..].iter().any(ends));
    world.pass(seconds(1));
    assert!(world.done[before..].iter().any(ends));
}

#[test]
fn on_trial_one_failed_live_probe_is_enough() {
    let tcp = config::Probe::Tcp(config::TcpProbe { addr: "localhost:1".into() });
    let mut world = World::new(watched(LiveProbe::Probe(tcp), 3));
    world.settle();
    let fail = |world: &mut World| {
        let attempt = world.tree(FIRST).attempt;
        world.tell(FIRST, Happening::LiveProbed { attempt, result: Err("no".into()) });
    };
    fail(&mut world);
    assert!(matches!(world.state(), State::Ready { .. }));
    world.feed(Event::Try { release: release(1), settle: seconds(3), stands: false });
    world.settle();
    fail(&mut world);
    world.settle();
    assert_eq!(world.trial_ends(), [false]);
}

#[path = "law_tests.rs"]
mod law;
#[path = "reload_tests.rs"]
mod reload;
#[path = "roll_tests.rs"]
mod roll;
#[path = "survivor_tests.rs"]
mod survivor;
#[path = "times_tests.rs"]
mod times;
