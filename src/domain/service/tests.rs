//! Laws of the life cycle, over an explicit clock and a shell that may answer in any order.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::domain::config::{Command, GiveUp, Identity, Limits, Logs, Policy, Ready, Restart, Stop, StopStage};
use crate::domain::model::{Signal, Size};

fn spec(ready: Ready, policy: Policy) -> config::App {
    let me = Identity { uid: 1, gid: 1, groups: vec![], name: None, home: "/".into(), shell: "/bin/sh".into() };
    config::App {
        name: "a".parse().unwrap(),
        command: Some(Command::List(vec!["x".into()])),
        directory: Some("/".into()),
        run_as: me.clone(),
        work_as: me,
        groups: None,
        env: Default::default(),
        env_file: vec![],
        port: None,
        enabled: true,
        after: vec![],
        ready,
        restart: Restart {
            policy,
            success: vec![0],
            first: Duration::from_millis(100),
            factor: 2.0,
            max: Duration::from_secs(1),
            jitter: 0.0,
            reset_after: Duration::from_secs(10),
            give_up: GiveUp { restarts: 3, within: Duration::from_secs(60) },
            retry_after: None,
        },
        stop: Stop { stages: vec![StopStage { signal: Signal::TERM, timeout: Duration::from_secs(5) }] },
        limits: Limits::default(),
        logs: Logs { rotate: Size(1 << 20), keep: 3 },
        schedule: None,
        watch: None,
        deploy: None,
        problem: None,
        places: Default::default(),
    }
}

/// An app, a clock and a kernel with at most one tree of it.
struct World {
    app: App,
    now: Now,
    spawning: bool,
    main: Option<u32>,
    others: bool,
    next_pid: u32,
    done: Vec<Action>,
    attempt: u64,
}

impl World {
    fn new(spec: config::App) -> Self {
        let now = Now { mono: Instant::now(), wall: At(0) };
        let app = App::new(Arc::new(spec), None, None, 7, now.wall);
        let mut world =
            Self { app, now, spawning: false, main: None, others: false, next_pid: 100, done: vec![], attempt: 0 };
        world.feed(Event::Begin);
        world
    }

    fn feed(&mut self, event: Event) {
        let mut out = vec![];
        self.app.on(event, self.now, &mut out);
        for action in out {
            match &action {
                Action::Spawn => {
                    assert!(!self.spawning && self.main.is_none() && !self.others, "two copies");
                    self.spawning = true;
                }
                Action::Probe { attempt } => self.attempt = *attempt,
                _ => {}
            }
            self.done.push(action);
        }
    }

    fn spawned(&mut self, leaves_others: bool) {
        if std::mem::take(&mut self.spawning) {
            self.next_pid += 1;
            self.main = Some(self.next_pid);
            self.others = leaves_others;
            self.feed(Event::Spawned(self.next_pid));
        }
    }

    fn exit(&mut self, exit: Exit) {
        if self.main.take().is_some() {
            self.feed(Event::Exited { exit, alone: !self.others });
        }
    }

    fn others_end(&mut self) {
        if std::mem::take(&mut self.others) && self.main.is_none() {
            self.feed(Event::TreeEmpty);
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
        self.app.instance().state()
    }

    fn trial_ends(&self) -> Vec<bool> {
        let ended = |a: &Action| if let Action::TrialEnded(result) = a { Some(result.is_ok()) } else { None };
        self.done.iter().filter_map(ended).collect()
    }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn release(n: i64) -> Release {
    let commit: CommitId = "a".repeat(40).parse().unwrap();
    Release { id: ReleaseId::new(n, &commit), commit, directory: "/r".into() }
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
    assert!(world.app.instance().reason().unwrap().contains("gave up after 3 restarts"));
    world.feed(Event::Start { restart: true, by: "ann".into() });
    assert!(matches!(world.state(), State::Starting { .. }));
}

#[test]
fn the_rest_of_the_tree_hears_the_signal_and_then_kill() {
    let mut world = World::new(spec(Ready::Immediate, Policy::Always));
    world.spawned(true);
    world.feed(Event::Stop { by: "ann".into() });
    assert_eq!(world.done.last(), Some(&Action::Record { from: "ready", to: "stopping", cause: "ann".into() }));
    world.exit(Exit::Signal(15));
    assert_eq!(world.done.last(), Some(&Action::SignalTree(Signal::TERM)));
    world.pass(seconds(5));
    assert_eq!(world.done.last(), Some(&Action::Kill));
    world.others_end();
    assert_eq!(world.state(), &State::Stopped);
    world.pass(seconds(1000));
    assert_eq!(world.state(), &State::Stopped, "a stop by a person holds");
}

#[test]
fn a_second_stop_kills_at_once() {
    let mut world = World::new(spec(Ready::Immediate, Policy::Always));
    world.spawned(false);
    world.feed(Event::Stop { by: "ann".into() });
    world.feed(Event::Stop { by: "ann".into() });
    assert_eq!(world.done.last(), Some(&Action::Kill));
}

#[test]
fn a_release_that_crashes_on_trial_gives_way_to_the_one_before() {
    let mut world = World::new(spec(Ready::Immediate, Policy::Always));
    world.feed(Event::Adopt(release(1)));
    world.spawned(false);
    world.feed(Event::Try { release: release(2), settle: seconds(3) });
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
    world.feed(Event::Try { release: release(2), settle: seconds(3) });
    world.exit(Exit::Signal(15));
    world.spawned(false);
    world.pass(seconds(3));
    assert_eq!(world.trial_ends(), [true]);
    world.exit(Exit::Code(1));
    assert_eq!(world.app.release().unwrap().id.deploy, 2, "a later crash takes nothing back");
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

#[derive(Debug, Clone)]
enum Step {
    Start(bool),
    Stop,
    Spawned(bool),
    SpawnFails,
    Exit(i32),
    OthersEnd,
    Probe(bool),
    Pass(u64),
    Try,
    Block(bool),
    Reconfigure(bool),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any::<bool>().prop_map(Step::Start),
        Just(Step::Stop),
        any::<bool>().prop_map(Step::Spawned),
        Just(Step::SpawnFails),
        (0..2i32).prop_map(Step::Exit),
        Just(Step::OthersEnd),
        any::<bool>().prop_map(Step::Probe),
        (0..20_000u64).prop_map(Step::Pass),
        Just(Step::Try),
        any::<bool>().prop_map(Step::Block),
        any::<bool>().prop_map(Step::Reconfigure),
    ]
}

fn any_spec() -> impl Strategy<Value = config::App> {
    let probe = config::TcpProbe { address: config::ProbeAddress::Localhost(1), within: seconds(4) };
    let ready = prop_oneof![Just(Ready::Immediate), Just(Ready::After(seconds(1))), Just(Ready::Tcp(probe))];
    let policy = prop_oneof![Just(Policy::Always), Just(Policy::OnFailure), Just(Policy::Never)];
    (ready, policy).prop_map(|(ready, policy)| spec(ready, policy))
}

proptest! {
    /// `World::feed` asserts it at every spawn. Afterwards the machine must not be stuck: with the
    /// kernel doing its part a start leads out of every state.
    #[test]
    fn never_two_copies_and_never_stuck(spec in any_spec(), steps in prop::collection::vec(any_step(), 0..60)) {
        let mut world = World::new(spec.clone());
        let mut tries = 0;
        for step in steps {
            match step {
                Step::Start(restart) => world.feed(Event::Start { restart, by: "p".into() }),
                Step::Stop => world.feed(Event::Stop { by: "p".into() }),
                Step::Spawned(others) => world.spawned(others),
                Step::SpawnFails => if std::mem::take(&mut world.spawning) {
                    world.feed(Event::SpawnFailed("no".into()));
                },
                Step::Exit(code) => world.exit(Exit::Code(code)),
                Step::OthersEnd => world.others_end(),
                Step::Probe(good) => {
                    let result = if good { Ok(()) } else { Err("no".into()) };
                    let attempt = world.attempt;
                    world.feed(Event::Probed { attempt, result });
                }
                Step::Pass(millis) => world.pass(Duration::from_millis(millis)),
                Step::Try => if world.app.would_run() && !world.app.is_on_trial() {
                    tries += 1;
                    world.feed(Event::Try { release: release(tries), settle: seconds(2) });
                },
                Step::Block(held) => world.feed(Event::Block(held.then(|| "b".into()))),
                Step::Reconfigure(restart) =>
                    world.feed(Event::Reconfigure { spec: Arc::new(spec.clone()), restart }),
            }
            let pid = world.app.instance().pid();
            prop_assert!(pid.is_none() || pid == world.main);
        }
        world.feed(Event::Block(None));
        world.feed(Event::Start { restart: false, by: "end".into() });
        for _ in 0..4 {
            world.spawned(false);
            if matches!(world.state(), State::Stopping(_)) {
                world.exit(Exit::Signal(9));
                world.others_end();
            }
        }
        let attempt = world.attempt;
        world.feed(Event::Probed { attempt, result: Ok(()) });
        world.pass(seconds(3));
        let good = matches!(world.state(), State::Ready { .. } | State::Done);
        prop_assert!(good, "stuck in {:?}", world.state());
        prop_assert_eq!(world.trial_ends().len(), usize::try_from(tries).unwrap());
    }
}
