//! Who goes on under the next supervisor, and that nobody runs twice for it.

use std::slice;

use proptest::prelude::*;

use super::{law::*, *};
use crate::domain::model::Progress;

fn survivor(seat: Seat, pid: u32, now: Now, age: u64) -> Survivor {
    let begun = Now { mono: now.mono - seconds(age), wall: At(now.wall.0 - i64::try_from(age).unwrap() * 1000) };
    Survivor { seat, pid, begun, release: None, unchanged: true, progress: Progress::Ready, restarts: 2 }
}

fn second(number: u32) -> Seat {
    Seat { number, second: true }
}

/// An app that nothing was told yet, and a kernel with these processes.
fn found(spec: config::App, survivors: &[Survivor]) -> World {
    let now = Now { mono: World::new(spec.clone()).now.mono + seconds(1_000_000), wall: At(1_000_000_000) };
    let app = App::new(Arc::new(spec), None, 7, now.wall);
    let mut world = World { app, now, trees: BTreeMap::new(), next_pid: 100, done: vec![] };
    for survivor in survivors {
        world.tree(survivor.seat).main = Some(survivor.pid);
    }
    world
}

fn kept(app: &App, survivors: &[Survivor], now: Now) -> Vec<Seat> {
    app.keeps(survivors, now).iter().map(|survivor| survivor.seat).collect()
}

/// What the handover does: whoever does not go on is ended, then all begins.
fn take_over(world: &mut World, survivors: Vec<Survivor>) -> Vec<Seat> {
    let seats = kept(&world.app, &survivors, world.now);
    let (on, gone): (Vec<_>, Vec<_>) = survivors.into_iter().partition(|survivor| seats.contains(&survivor.seat));
    gone.into_iter().for_each(|survivor| world.tree(survivor.seat).main = None);
    world.feed(Event::Outlived(on));
    world.feed(Event::Block(None));
    seats
}

#[test]
fn what_is_ready_goes_on_as_it_was() {
    let spec = config::App { instances: 2, ..spec(Ready::Immediate, Policy::Always) };
    let mut world = found(spec.clone(), &[]);
    let survivors = vec![survivor(FIRST, 7, world.now, 60)];
    world.tree(FIRST).main = Some(7);
    assert_eq!(take_over(&mut world, survivors), [FIRST]);
    let instance = world.app.copies()[0].instance();
    assert_eq!((instance.pid(), instance.restarts(), instance.since().0), (Some(7), 2, world.now.wall.0 - 60_000));
    assert_eq!(world.words(), [(1, "ready"), (2, "starting")], "what is missing is started");
    world.exit(Exit::Code(1));
    assert_eq!(world.words()[0], (1, "starting"), "it is restarted at once, as it was well for long");
    assert_eq!(world.app.copies()[0].instance().restarts(), 3);
}

#[test]
fn while_others_make_room_it_is_kept_up_and_nothing_starts_beside_it() {
    let spec =
        config::App { instances: 2, replace: config::Replace::StartFirst, ..spec(Ready::Immediate, Policy::Always) };
    let mut world = found(spec, &[]);
    let changed = Survivor { unchanged: false, ..survivor(FIRST, 7, world.now, 60) };
    world.tree(FIRST).main = Some(7);
    world.tree(second(1)).main = Some(8);
    world.feed(Event::Outlived(vec![changed]));
    world.feed(Event::Timer);
    world.exit(Exit::Code(1));
    assert_eq!(world.words(), [(1, "starting"), (2, "stopped")]);
    world.tree(second(1)).main = None;
    world.feed(Event::Block(None));
    assert_eq!(world.words().last(), Some(&(2, "starting")));
}

#[test]
fn what_is_not_proven_or_leaves_makes_room() {
    let notify = || Ready::Notify { within: seconds(4) };
    for (ready, progress, age, goes_on) in [
        (Ready::Immediate, Progress::Started, 0, true),
        (Ready::Immediate, Progress::Leaving, 60, false),
        (Ready::After(seconds(5)), Progress::Started, 4, false),
        (Ready::After(seconds(5)), Progress::Started, 5, true),
        (notify(), Progress::Started, 60, false),
        (notify(), Progress::Ready, 0, true),
        (notify(), Progress::Leaving, 60, false),
    ] {
        let world = found(spec(ready, Policy::Always), &[]);
        let one = Survivor { progress, ..survivor(FIRST, 7, world.now, age) };
        assert_eq!(!kept(&world.app, slice::from_ref(&one), world.now).is_empty(), goes_on, "{one:?}");
    }
}

#[test]
fn what_is_not_to_run_makes_room() {
    let plain = || spec(Ready::Immediate, Policy::Always);
    let world = found(plain(), &[]);
    let one = survivor(FIRST, 7, world.now, 60);
    assert_eq!(kept(&world.app, slice::from_ref(&one), world.now), [FIRST]);
    let other = Survivor { release: Some(release(1).id), ..one.clone() };
    assert_eq!(kept(&world.app, &[other], world.now), [], "another release");
    let beside = survivor(second(1), 7, world.now, 60);
    assert_eq!(kept(&world.app, &[beside], world.now), [], "nothing is started beside another");
    let more = survivor(Seat::first(2), 7, world.now, 60);
    assert_eq!(kept(&world.app, &[more], world.now), [], "there are fewer copies now");
    let held = world.app.clone().with_holds(vec![(None, "ann".into())]);
    assert_eq!(kept(&held, slice::from_ref(&one), world.now), [], "a person stopped it");
    for spec in [
        config::App { enabled: false, ..plain() },
        config::App { problem: Some("no".into()), ..plain() },
        config::App { command: None, ..plain() },
    ] {
        let world = found(spec, &[]);
        assert_eq!(kept(&world.app, slice::from_ref(&one), world.now), []);
    }
}

#[test]
fn of_two_the_one_that_takes_over_goes_on() {
    let spec = config::App { replace: Replace::StartFirst, ..spec(Ready::Immediate, Policy::Always) };
    let mut world = found(spec, &[]);
    let (old, new) = (survivor(FIRST, 7, world.now, 60), survivor(second(1), 8, world.now, 20));
    (world.tree(FIRST).main, world.tree(second(1)).main) = (Some(7), Some(8));
    let changed = Survivor { unchanged: false, ..new.clone() };
    assert_eq!(kept(&world.app, &[old.clone(), changed], world.now), [FIRST], "it is what the config says");
    assert_eq!(take_over(&mut world, vec![old, new]), [second(1)]);
    assert_eq!(world.all_words(), [(second(1), "ready")]);
    world.exit_in(second(1), Exit::Code(1));
    assert_eq!(world.all_words(), [(second(1), "starting")]);
}

#[test]
fn what_was_given_something_else_is_replaced_by_its_rule() {
    for (replace, words) in [
        (Replace::StopFirst, vec![(1, "stopping"), (2, "ready")]),
        (Replace::StartFirst, vec![(1, "ready"), (1, "starting"), (2, "ready")]),
    ] {
        let spec = config::App { replace, instances: 2, ..spec(Ready::Immediate, Policy::Always) };
        let mut world = found(spec, &[]);
        let other = |number| Survivor { unchanged: false, ..survivor(Seat::first(number), 7 + number, world.now, 60) };
        let survivors = vec![other(1), other(2)];
        survivors.iter().for_each(|one| world.tree(one.seat).main = Some(one.pid));
        assert_eq!(take_over(&mut world, survivors).len(), 2);
        assert_eq!(world.words(), words, "one by one");
        world.settle();
        let pids: Vec<_> = world.app.copies().iter().map(|copy| copy.instance().pid()).collect();
        assert!(pids.iter().all(|pid| *pid > Some(100)), "{pids:?}");
        assert_eq!(world.rolled(), [Ok(())]);
    }
}

#[test]
fn how_far_it_has_got_is_noted() {
    let noted = |world: &World| {
        let progress = |task: &Task| match task {
            Task::Process(_, Action::Progress(progress)) => Some(*progress),
            _ => None,
        };
        world.done.iter().filter_map(progress).collect::<Vec<_>>()
    };
    let mut world = World::new(spec(Ready::Notify { within: seconds(4) }, Policy::Always));
    world.spawned(false);
    assert_eq!(noted(&world), []);
    world.say(FIRST, "READY=1");
    assert_eq!(noted(&world), [Progress::Ready]);
    world.feed(stop());
    assert_eq!(noted(&world), [Progress::Ready, Progress::Leaving]);
    let mut world = World::new(spec(Ready::Immediate, Policy::Always));
    world.settle();
    assert_eq!(noted(&world), [], "that it runs is proof enough");
}

fn any_survivor() -> impl Strategy<Value = (Seat, u64, bool, Progress, bool)> {
    let progress = prop::sample::select(vec![Progress::Started, Progress::Ready, Progress::Leaving]);
    (any_seat(), 0..100u64, any::<bool>(), progress, any::<bool>())
}

proptest! {
    /// Whoever is found: `World::feed` asserts at every spawn that nobody lives in that seat, and here that no copy
    /// has two that nobody is replacing. Nobody is stuck afterwards.
    #[test]
    fn adoption_never_yields_two_copies(
        spec in any_spec(),
        start_first in any::<bool>(),
        any in prop::collection::vec(any_survivor(), 0..8),
        live in any::<bool>(),
    ) {
        let replace = if start_first { Replace::StartFirst } else { Replace::StopFirst };
        let mut world = found(config::App { replace, ..spec }, &[]);
        if live {
            world.app.release = Some(Arc::new(release(1)));
        }
        let mut survivors: Vec<Survivor> = vec![];
        for (n, (seat, age, unchanged, progress, of_live)) in any.into_iter().enumerate() {
            if survivors.iter().all(|other| other.seat != seat) {
                let pid = 10 + u32::try_from(n).unwrap();
                let release = of_live.then(|| release(1).id);
                let one = survivor(seat, pid, world.now, age);
                survivors.push(Survivor { unchanged, progress, release, ..one });
                world.tree(seat).main = Some(pid);
            }
        }
        let kept = take_over(&mut world, survivors);
        for number in 1..=3 {
            prop_assert!(kept.iter().filter(|seat| seat.number == number).count() <= 1);
        }
        for (seat, tree) in &world.trees {
            prop_assert!(tree.is_empty() || world.app.run(*seat).is_some(), "somebody is forgotten");
        }
        for run in world.app.runs() {
            prop_assert!(run.instance.pid() == world.trees.get(&run.seat).and_then(|tree| tree.main));
        }
        world.feed(start(false));
        for _ in 0..10 {
            world.settle();
            world.pass(seconds(2));
        }
        world.settle();
        for number in 1..=world.app.spec().instances {
            let lives = world.trees.iter().filter(|(seat, tree)| seat.number == number && tree.main.is_some());
            prop_assert_eq!(lives.count(), 1);
        }
    }
}
