//! Several copies, one by one; and one process that takes over from another.

use super::*;

fn several(count: u32) -> World {
    let mut world = World::new(config::App { instances: count, ..spec(Ready::Immediate, Policy::Always) });
    world.settle();
    world
}

#[test]
fn copies_start_together_and_restart_one_by_one() {
    let mut world = World::new(config::App { instances: 3, ..spec(Ready::Immediate, Policy::Always) });
    assert_eq!(world.words(), [(1, "starting"), (2, "starting"), (3, "starting")]);
    world.settle();
    world.feed(start(true));
    assert_eq!(world.words(), [(1, "stopping"), (2, "ready"), (3, "ready")]);
    world.exit_in(Seat::first(1), Exit::Signal(15));
    assert_eq!(world.words(), [(1, "starting"), (2, "ready"), (3, "ready")]);
    world.spawned_in(Seat::first(1), false);
    assert_eq!(world.words(), [(1, "ready"), (2, "stopping"), (3, "ready")]);
    world.settle();
    assert_eq!((world.words(), world.rolled()), (vec![(1, "ready"), (2, "ready"), (3, "ready")], vec![Ok(())]));
}

#[test]
fn a_copy_that_does_not_come_back_ends_the_restart() {
    let mut world = several(3);
    world.feed(start(true));
    world.exit_in(Seat::first(1), Exit::Signal(15));
    world.spawned_in(Seat::first(1), false);
    world.exit_in(Seat::first(2), Exit::Signal(15));
    world.feed(Event::Process(Seat::first(2), Happening::SpawnFailed("no such file".into())));
    let why = world.rolled().pop().unwrap().unwrap_err();
    assert_eq!(why, "a.2: could not be started: no such file; a.3 runs on as before");
    assert_eq!(world.words(), [(1, "ready"), (2, "backoff"), (3, "ready")]);
}

#[test]
fn one_copy_is_stopped_and_started_alone() {
    let mut world = several(2);
    world.feed(Event::Stop { only: Some(2), by: "ann".into() });
    world.settle();
    assert_eq!(world.app.holds(), [(Some(2), "ann".to_owned())]);
    world.feed(start(true));
    world.settle();
    assert_eq!(world.words(), [(1, "ready"), (2, "ready")], "a restart of all starts it again");
    world.feed(stop());
    world.settle();
    world.feed(Event::Start { only: Some(1), restart: false, by: "ann".into() });
    world.settle();
    assert_eq!(world.words(), [(1, "ready"), (2, "stopped")]);
    assert_eq!(world.app.holds(), [(Some(2), "ann".to_owned())]);
}

#[test]
fn fewer_copies_leave_and_more_come() {
    let mut world = several(3);
    let fewer = config::App { instances: 1, ..spec(Ready::Immediate, Policy::Always) };
    world.feed(Event::Reconfigure { spec: Arc::new(fewer.clone()), restart: false });
    assert_eq!(world.words(), [(1, "ready"), (2, "stopping"), (3, "stopping")]);
    assert_eq!(name(world.state()), "ready", "what leaves does not count");
    world.exit_in(Seat::first(3), Exit::Signal(15));
    assert!(world.done.contains(&Task::Gone(3)));
    world.feed(Event::Reconfigure { spec: Arc::new(config::App { instances: 2, ..fewer }), restart: false });
    world.settle();
    assert_eq!(world.words(), [(1, "ready"), (2, "ready")], "one that was still leaving came back");
}

#[test]
fn a_failure_of_one_copy_on_trial_takes_all_back() {
    let mut world = several(2);
    world.feed(Event::Adopt(release(1)));
    world.feed(start(true));
    world.settle();
    world.feed(Event::Try { release: release(2), settle: seconds(3), stands: false });
    world.settle();
    assert!(world.app.runs().all(|run| run.release == Some(release(2).into())));
    world.exit_in(Seat::first(2), Exit::Code(1));
    world.settle();
    assert_eq!(world.trial_ends(), [false]);
    assert!(world.app.runs().all(|run| run.release == Some(release(1).into())));
    assert_eq!(world.words(), [(1, "ready"), (2, "ready")]);
}

#[test]
fn what_cannot_be_taken_back_stands_and_the_rest_stays_as_it_is() {
    let mut world = several(3);
    world.feed(Event::Adopt(release(1)));
    world.feed(start(true));
    world.settle();
    world.feed(Event::Try { release: release(2), settle: seconds(3), stands: true });
    world.exit_in(Seat::first(1), Exit::Signal(15));
    world.spawned_in(Seat::first(1), false);
    world.exit_in(Seat::first(1), Exit::Code(1));
    assert_eq!(world.trial_ends(), [false]);
    world.settle();
    let releases: Vec<_> = world.app.runs().map(|run| run.release.clone().unwrap().id.deploy).collect();
    assert_eq!(releases, [2, 2, 1], "who had a turn is started again by `restart`, and the others run on");
    assert_eq!(world.app.release(), Some(&release(2)));
    world.feed(Event::GoBack(Some(release(1))));
    world.settle();
    assert!(world.app.runs().all(|run| run.release == Some(release(1).into())));
    // The one before that was kept beside it serves on.
    let mut world = beside();
    world.feed(Event::Try { release: release(2), settle: seconds(3), stands: true });
    world.settle();
    world.exit_in(SECOND, Exit::Code(1));
    assert_eq!((world.trial_ends(), world.all_words()), (vec![false], vec![(FIRST, "ready")]));
    assert_ne!(world.app.release(), Some(&release(2)));
}

#[test]
fn a_crash_during_a_trial_restarts_in_the_release_that_it_ran() {
    let mut world = several(2);
    world.feed(Event::Try { release: release(2), settle: seconds(3), stands: false });
    world.exit_in(Seat::first(2), Exit::Code(1));
    world.pass(seconds(1));
    world.spawned_in(Seat::first(2), false);
    assert!(world.trial_ends().is_empty());
    assert_eq!(world.app.run(Seat::first(2)).unwrap().release, None, "its turn has not come");
    world.settle();
    assert_eq!(world.app.run(Seat::first(2)).unwrap().release, Some(release(2).into()));
}

const SECOND: Seat = Seat { number: 1, second: true };

/// One copy, ready, that is replaced by another beside it.
fn beside() -> World {
    let mut world = World::new(config::App { replace: Replace::StartFirst, ..spec(Ready::Immediate, Policy::Always) });
    world.settle();
    world
}

#[test]
fn the_new_one_is_proven_before_the_old_one_drains() {
    let mut world = beside();
    world.feed(start(true));
    assert_eq!(world.all_words(), [(FIRST, "ready"), (SECOND, "starting")]);
    assert_eq!(name(world.state()), "ready", "the new one does not count");
    world.spawned_in(SECOND, false);
    assert_eq!(world.all_words(), [(SECOND, "ready"), (FIRST, "draining")]);
    assert_eq!(world.rolled(), [Ok(())]);
    world.feed(start(true));
    assert_eq!(world.all_words(), [(SECOND, "ready"), (FIRST, "draining")], "one generation drains at a time");
    world.pass(seconds(29));
    assert!(!world.done.contains(&Task::Process(FIRST, Action::Kill)));
    world.pass(seconds(2));
    assert!(world.done.contains(&Task::Process(FIRST, Action::Kill)));
    world.exit_in(FIRST, Exit::Signal(9));
    assert_eq!(world.all_words(), [(SECOND, "ready"), (FIRST, "starting")]);
    world.spawned_in(FIRST, false);
    assert_eq!(world.all_words(), [(FIRST, "ready"), (SECOND, "draining")]);
    world.feed(stop());
    assert_eq!(world.all_words(), [(FIRST, "stopping"), (SECOND, "stopping")]);
    world.settle();
    assert_eq!(world.all_words(), [(FIRST, "stopped")]);
}

#[test]
fn a_new_one_that_fails_leaves_the_old_one_alone() {
    let mut world = beside();
    for _ in 0..2 {
        world.feed(start(true));
        world.spawned_in(SECOND, false);
        world.settle();
        assert_eq!(world.rolled().pop(), Some(Ok(())));
        world.feed(start(true));
        world.feed(Event::Process(FIRST, Happening::SpawnFailed("no such file".into())));
        let why = world.rolled().pop().unwrap().unwrap_err();
        assert_eq!(why, "a: could not be started: no such file; the one before runs on");
        assert_eq!(world.all_words(), [(SECOND, "ready")]);
        world.trees.insert(FIRST, Tree::default());
        world.feed(start(true));
        world.settle();
        assert_eq!(world.all_words(), [(FIRST, "ready")]);
    }
    assert!(!world.done.iter().any(|task| matches!(task, Task::Process(_, Action::Kill))));
}

#[test]
fn a_release_on_trial_runs_beside_the_old_one_until_it_has_settled() {
    let mut world = beside();
    let old = world.app.run(FIRST).unwrap().instance.pid();
    world.feed(Event::Try { release: release(2), settle: seconds(3), stands: false });
    world.settle();
    assert_eq!(world.all_words(), [(FIRST, "ready"), (SECOND, "ready")]);
    world.exit_in(SECOND, Exit::Code(1));
    assert_eq!(world.trial_ends(), [false]);
    assert_eq!(world.all_words(), [(FIRST, "ready")]);
    assert_eq!(world.app.run(FIRST).unwrap().instance.pid(), old, "it was not touched");
    world.feed(Event::Try { release: release(3), settle: seconds(3), stands: false });
    world.settle();
    world.pass(seconds(3));
    assert_eq!(world.trial_ends(), [false, true]);
    assert_eq!(world.all_words(), [(SECOND, "ready"), (FIRST, "draining")]);
    assert_eq!(world.app.run(SECOND).unwrap().release, Some(release(3).into()));
}
