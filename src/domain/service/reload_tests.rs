//! Releases that a running process takes as it is.

use super::*;

fn reloading(ready: Ready, instances: u32) -> World {
    let reload = config::Reload::Signal(Signal::TERM);
    let mut world = World::new(config::App { instances, reload, ..spec(ready, Policy::Always) });
    world.settle();
    world.pass(seconds(1));
    world.feed(Event::Adopt(release(1)));
    world.done.clear();
    world
}

fn notify() -> Ready {
    Ready::Notify { within: seconds(4) }
}

impl World {
    fn trial(&mut self, number: i64) {
        self.feed(Event::Try { release: release(number), settle: seconds(3), stands: false });
    }

    fn told(&mut self, number: u32, result: Result<u64, String>) {
        let seat = Seat::first(number);
        let turn = self.tree(seat).turn;
        self.tell(seat, Happening::Told { turn, result });
    }

    fn spawns(&self) -> usize {
        self.done.iter().filter(|task| matches!(task, Task::Process(_, Action::Spawn))).count()
    }

    /// Who has been told how often.
    fn turns(&self) -> Vec<(u32, u64)> {
        let turn = |task: &Task| match task {
            Task::Process(seat, Action::Reload { turn }) => Some((seat.number, *turn)),
            _ => None,
        };
        self.done.iter().filter_map(turn).collect()
    }

    fn release_of(&self, number: u32) -> Option<ReleaseId> {
        Some(self.app.run(Seat::first(number))?.release.as_ref()?.id.clone())
    }
}

#[test]
fn one_by_one_they_are_told_and_nobody_is_started() {
    let mut world = reloading(Ready::Immediate, 2);
    world.trial(2);
    assert_eq!(world.turns(), [(1, 1)]);
    world.told(1, Ok(5));
    assert_eq!(world.turns(), [(1, 1), (2, 1)]);
    assert!(world.trial_ends().is_empty());
    world.told(2, Ok(6));
    world.pass(seconds(4));
    assert_eq!((world.trial_ends(), world.spawns()), (vec![true], 0));
    assert_eq!([world.release_of(1), world.release_of(2)], [2, 2].map(|n| Some(release(n).id)));
    assert!(world.app.uses(&release(2).id));
}

#[test]
fn what_it_says_counts_from_the_signal_on() {
    let mut world = reloading(notify(), 1);
    world.trial(2);
    world.say(FIRST, "RELOADING=1\nMONOTONIC_USEC=9");
    world.say(FIRST, "READY=1");
    world.told(1, Ok(10));
    for not_it in ["RELOADING=1", "READY=1", "RELOADING=1\nMONOTONIC_USEC=9", "READY=1"] {
        world.say(FIRST, not_it);
        assert!(world.app.is_rolling(), "{not_it}");
    }
    world.say(FIRST, "RELOADING=1\nMONOTONIC_USEC=10");
    assert!(world.app.is_rolling());
    world.say(FIRST, "READY=1");
    assert!(!world.app.is_rolling());
    world.pass(seconds(4));
    assert_eq!(world.trial_ends(), [true]);
}

#[test]
fn who_does_not_take_it_takes_the_one_before() {
    let mut world = reloading(notify(), 1);
    world.trial(2);
    world.told(1, Ok(10));
    world.pass(seconds(3));
    world.say(FIRST, "EXTEND_TIMEOUT_USEC=4000000");
    world.pass(seconds(3));
    assert!(world.trial_ends().is_empty(), "it has asked for time");
    world.pass(seconds(2));
    assert_eq!((world.trial_ends(), world.turns()), (vec![false], vec![(1, 1), (1, 2)]));
    assert_eq!(world.release_of(1), Some(release(1).id));
    world.told(1, Ok(20));
    world.say(FIRST, "RELOADING=1\nMONOTONIC_USEC=20");
    world.say(FIRST, "READY=1");
    world.pass(seconds(60));
    assert_eq!(world.spawns(), 0);
    assert!(matches!(world.state(), State::Ready { reload: None, .. }));
}

#[test]
fn who_does_not_go_back_either_is_started_anew() {
    let mut world = reloading(notify(), 1);
    world.trial(2);
    world.told(1, Err("no".into()));
    assert_eq!((world.trial_ends(), world.spawns()), (vec![false], 0));
    world.told(1, Ok(10));
    world.pass(seconds(5));
    assert!(matches!(world.state(), State::Stopping(_)));
    world.settle();
    assert_eq!((world.spawns(), world.release_of(1)), (1, Some(release(1).id)));
    assert!(matches!(world.state(), State::Ready { .. }));
}

#[test]
fn an_exit_or_a_failed_probe_before_it_has_settled_takes_it_back() {
    let mut world = reloading(Ready::Immediate, 1);
    world.trial(2);
    world.told(1, Ok(5));
    world.exit(Exit::Code(1));
    world.settle();
    assert_eq!((world.trial_ends(), world.spawns()), (vec![false], 1));
    assert_eq!(world.release_of(1), Some(release(1).id));

    let tcp = LiveProbe::Probe(config::Probe::Tcp(config::TcpProbe { addr: "localhost:1".into() }));
    let reload = config::Reload::Signal(Signal::TERM);
    let mut world = World::new(config::App { reload, ..watched(tcp, 3) });
    world.settle();
    world.feed(Event::Adopt(release(1)));
    world.done.clear();
    world.trial(2);
    world.told(1, Ok(5));
    let attempt = world.app.worst().attempt();
    world.tell(FIRST, Happening::LiveProbed { attempt, result: Err("no".into()) });
    assert_eq!((world.trial_ends(), world.spawns(), world.turns().len()), (vec![false], 0, 2));
    world.told(1, Ok(6));
    assert!(matches!(world.state(), State::Ready { .. }));
}

#[test]
fn a_restart_by_a_person_is_one() {
    let mut world = reloading(Ready::Immediate, 1);
    world.feed(start(true));
    world.settle();
    assert_eq!((world.spawns(), world.turns().len()), (1, 0));
    world.trial(2);
    world.feed(start(true));
    world.told(1, Ok(5));
    world.settle();
    world.pass(seconds(4));
    assert_eq!((world.trial_ends(), world.spawns()), (vec![true], 2));
    assert_eq!(world.release_of(1), Some(release(2).id));
}

#[test]
fn the_folder_that_it_was_started_in_is_in_use() {
    let mut world = World::new(config::App {
        reload: config::Reload::Signal(Signal::TERM),
        ..spec(Ready::Immediate, Policy::Always)
    });
    world.feed(Event::Adopt(release(1)));
    world.feed(start(true));
    world.settle();
    world.trial(2);
    world.settle();
    world.pass(seconds(4));
    assert!(world.app.uses(&release(1).id) && world.app.uses(&release(2).id));
    world.feed(start(true));
    world.settle();
    assert!(!world.app.uses(&release(1).id) && world.app.uses(&release(2).id));
}
