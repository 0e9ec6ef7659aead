//! The laws that hold whatever happens: an app is never there twice and never stuck.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
pub(super) enum Step {
    Start(Option<u32>, bool),
    Stop(Option<u32>),
    Spawned(Seat, bool),
    SpawnFails(Seat),
    Exit(Seat, i32),
    OthersEnd(Seat),
    Probe(Seat, bool),
    Live(Seat, bool),
    Say(Seat, &'static str),
    Told(Seat, bool),
    MainIs(Seat),
    Pass(u64),
    Try,
    Block(bool),
    Changed,
    Lack(bool),
    Reconfigure(u32, bool),
}

pub(super) fn any_seat() -> impl Strategy<Value = Seat> {
    (1..=3u32, any::<bool>()).prop_map(|(number, second)| Seat { number, second })
}

fn any_only() -> impl Strategy<Value = Option<u32>> {
    prop::option::of(1..=3u32)
}

pub(super) fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (any_only(), any::<bool>()).prop_map(|(only, restart)| Step::Start(only, restart)),
        any_only().prop_map(Step::Stop),
        (any_seat(), any::<bool>()).prop_map(|(seat, others)| Step::Spawned(seat, others)),
        (any_seat(), any::<bool>()).prop_map(|(seat, others)| Step::Spawned(seat, others)),
        any_seat().prop_map(Step::SpawnFails),
        (any_seat(), 0..2i32).prop_map(|(seat, code)| Step::Exit(seat, code)),
        any_seat().prop_map(Step::OthersEnd),
        (any_seat(), any::<bool>()).prop_map(|(seat, good)| Step::Probe(seat, good)),
        (any_seat(), any::<bool>()).prop_map(|(seat, good)| Step::Live(seat, good)),
        (any_seat(), prop::sample::select(SAYINGS)).prop_map(|(seat, what)| Step::Say(seat, what)),
        (any_seat(), any::<bool>()).prop_map(|(seat, good)| Step::Told(seat, good)),
        any_seat().prop_map(Step::MainIs),
        (0..20_000u64).prop_map(Step::Pass),
        Just(Step::Try),
        any::<bool>().prop_map(Step::Block),
        Just(Step::Changed),
        any::<bool>().prop_map(Step::Lack),
        (1..=3u32, any::<bool>()).prop_map(|(count, restart)| Step::Reconfigure(count, restart)),
    ]
}

const SAYINGS: &[&str] = &[
    "READY=1",
    "RELOADING=1",
    "RELOADING=1\nMONOTONIC_USEC=7",
    "STOPPING=1",
    "READY=1\nSTOPPING=1",
    "WATCHDOG=1",
    "WATCHDOG=trigger",
    "WATCHDOG_USEC=6000000",
    "EXTEND_TIMEOUT_USEC=5000000",
    "EXTEND_TIMEOUT_USEC=18446744073709551615",
    "ERRNO=1\nSTATUS=x",
];

fn any_live() -> impl Strategy<Value = Option<Live>> {
    let tcp = config::Probe::Tcp(config::TcpProbe { addr: "localhost:1".into() });
    let probe = prop_oneof![Just(LiveProbe::Watchdog), Just(LiveProbe::Probe(tcp))];
    let live = |(probe, failures)| Live { probe, every: seconds(5), failures, timeout: seconds(1) };
    prop::option::of((probe, 1..=2u32).prop_map(live))
}

/// The same, with a command before its signals.
pub(super) fn asking(stop: &config::Stop) -> Arc<config::Stop> {
    let command = config::Command::Shell("leave".into());
    let first = config::StopStage { command: Some(command.into()), ..stop.stages[0].clone() };
    Arc::new(config::Stop { stages: [&[first], &stop.stages[..]].concat(), drain: stop.drain })
}

pub(super) fn any_spec() -> impl Strategy<Value = config::App> {
    let probe = config::Probe::Tcp(config::TcpProbe { addr: "localhost:1".into() });
    let probe = Ready::Probe { probe: probe.into(), within: seconds(4) };
    let notify = Ready::Notify { within: seconds(4) };
    let ready = prop_oneof![Just(Ready::Immediate), Just(Ready::After(seconds(1))), Just(probe), Just(notify)];
    let policy = prop_oneof![Just(Policy::Always), Just(Policy::OnFailure), Just(Policy::Never)];
    let reload = prop_oneof![Just(config::Reload::Restart), Just(config::Reload::Signal(Signal::TERM))];
    let made = |(ready, policy, instances, live, reload, asks)| {
        let plain = spec(ready, policy);
        let stop = if asks { asking(&plain.stop) } else { Arc::clone(&plain.stop) };
        config::App { instances, live, reload, stop, ..plain }
    };
    (ready, policy, 1..=3u32, any_live().prop_map(|live| live.map(Box::new)), reload, any::<bool>()).prop_map(made)
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
                Step::Start(only, restart) => world.feed(Event::Start { only, restart, by: "p".into() }),
                Step::Stop(only) => world.feed(Event::Stop { only, by: "p".into() }),
                Step::Spawned(seat, others) => world.spawned_in(seat, others),
                Step::SpawnFails(seat) => if std::mem::take(&mut world.tree(seat).spawning) {
                    world.tell(seat, Happening::SpawnFailed("no".into()));
                },
                Step::Exit(seat, code) => world.exit_in(seat, Exit::Code(code)),
                Step::OthersEnd(seat) => world.others_end_in(seat),
                Step::Probe(seat, good) => {
                    let result = if good { Ok(()) } else { Err("no".into()) };
                    let attempt = world.tree(seat).attempt;
                    world.tell(seat, Happening::Probed { attempt, result });
                }
                Step::Live(seat, good) => {
                    let result = if good { Ok(()) } else { Err("no".into()) };
                    let attempt = world.tree(seat).attempt;
                    world.tell(seat, Happening::LiveProbed { attempt, result });
                }
                Step::Say(seat, what) => world.say(seat, what),
                Step::Told(seat, good) => {
                    let result = if good { Ok(5) } else { Err("no".into()) };
                    let turn = world.tree(seat).turn;
                    world.tell(seat, Happening::Told { turn, result });
                }
                Step::MainIs(seat) => if world.tree(seat).main.is_some() {
                    world.next_pid += 1;
                    let pid = world.next_pid;
                    world.tree(seat).main = Some(pid);
                    world.tell(seat, Happening::MainIs(pid));
                },
                Step::Pass(millis) => world.pass(Duration::from_millis(millis)),
                Step::Try => if world.app.would_run() && !world.app.is_on_trial() {
                    tries += 1;
                    world.feed(Event::Try { release: release(tries), settle: seconds(2), stands: false });
                },
                Step::Changed => world.feed(Event::Changed { cause: "watch: x".into() }),
                Step::Lack(lacks) => world.feed(Event::Lack(lacks.then(|| "b".into()))),
                Step::Block(held) => world.feed(Event::Block(held.then(|| "b".into()))),
                Step::Reconfigure(instances, restart) => {
                    let spec = Arc::new(config::App { instances, ..spec.clone() });
                    world.feed(Event::Reconfigure { spec, restart });
                }
            }
            for run in world.app.runs() {
                let pid = run.instance.pid();
                prop_assert!(pid.is_none() || pid == world.trees[&run.seat].main);
            }
            let alone = spec.replace == Replace::StopFirst;
            prop_assert!(!alone || world.app.runs().all(|run| !run.seat.second), "a second one that nobody wants");
            let known = |seat: &Seat| world.app.run(*seat).is_some();
            prop_assert!(world.trees.iter().all(|(seat, tree)| tree.is_empty() || known(seat)), "somebody is forgotten");
        }
        world.feed(Event::Block(None));
        world.feed(Event::Lack(Some("b".into())));
        for _ in 0..6 {
            world.settle();
            world.pass(seconds(3));
        }
        prop_assert!(!world.app.is_active(), "it runs without what it requires: {:?}", world.all_words());
        world.feed(Event::Lack(None));
        world.feed(start(false));
        for _ in 0..6 {
            world.settle();
            world.pass(seconds(3));
        }
        prop_assert!(world.app.runs().count() == world.app.copies().len(), "somebody stays: {:?}", world.all_words());
        let good = matches!(world.state(), State::Ready { .. } | State::Done);
        prop_assert!(good && !world.app.is_rolling(), "stuck in {:?}", world.words());
        prop_assert_eq!(world.trial_ends().len(), usize::try_from(tries).unwrap());
    }
}
