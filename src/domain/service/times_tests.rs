//! Laws of apps that run at times, and of those whose files are watched.

use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::{law::*, *};
use crate::domain::config::{Missed, Schedule};

fn scheduled(policy: Policy) -> config::App {
    let schedule = Schedule::new("0 3 * * *", TimeZone::UTC, Missed::Skip).unwrap();
    config::App { schedule: Some(Box::new(schedule)), ..spec(Ready::Immediate, policy) }
}

fn spawns(world: &World) -> usize {
    world.done.iter().filter(|task| matches!(task, Task::Process(_, Action::Spawn))).count()
}

fn skips(world: &World) -> usize {
    world.done.iter().filter(|task| matches!(task, Task::RunSkipped(_))).count()
}

#[test]
fn it_runs_when_due_whatever_became_of_the_run_before() {
    let mut world = World::new(scheduled(Policy::Never));
    assert_eq!((world.state(), spawns(&world)), (&State::Waiting, 0));
    for (runs, code) in [(1, 0), (2, 1), (3, 0)] {
        world.feed(Event::Due(At(runs)));
        world.spawned(false);
        world.exit(Exit::Code(code));
        let done = matches!(world.state(), State::Done);
        assert_eq!((done, spawns(&world)), (code == 0, usize::try_from(runs).unwrap()));
    }
    assert_eq!(skips(&world), 0);
}

#[test]
fn a_run_that_goes_on_or_is_tried_again_is_not_joined() {
    let mut world = World::new(scheduled(Policy::OnFailure));
    world.feed(Event::Due(At(1)));
    world.feed(Event::Due(At(2)));
    world.spawned(false);
    world.feed(Event::Due(At(3)));
    world.exit(Exit::Code(1));
    assert!(matches!(world.state(), State::Backoff { .. }));
    world.feed(Event::Due(At(4)));
    assert_eq!((spawns(&world), skips(&world)), (1, 3));
    world.pass(seconds(1));
    assert_eq!(spawns(&world), 2, "the failed run is tried again");
}

#[test]
fn what_holds_it_back_is_awaited_and_what_stops_it_forgets_it() {
    let mut world = World::new(scheduled(Policy::Never));
    world.feed(Event::Block(Some("waits for b".into())));
    world.feed(Event::Due(At(1)));
    assert_eq!(spawns(&world), 0);
    world.feed(Event::Lack(Some("requires c, which is not up".into())));
    world.feed(Event::Due(At(2)));
    assert_eq!(skips(&world), 1, "and whoever looks is told");
    world.feed(Event::Lack(None));
    world.feed(Event::Block(None));
    assert_eq!(spawns(&world), 1);
    world.spawned(false);
    world.exit(Exit::Code(0));
    world.feed(Event::Stop { only: None, by: "ann".into() });
    world.feed(Event::Due(At(2)));
    assert_eq!((spawns(&world), skips(&world), world.state()), (1, 1, &State::Stopped));
    world.feed(start(false));
    assert_eq!(spawns(&world), 2, "by hand it runs at once");
}

#[test]
fn a_change_restarts_what_runs_or_has_failed_and_starts_nothing_that_is_stopped() {
    let mut world = World::new(spec(Ready::Immediate, Policy::Never));
    let change = || Event::Changed { cause: "watch: x".into() };
    world.spawned(false);
    world.feed(change());
    world.exit(Exit::Signal(15));
    world.spawned(false);
    assert_eq!(spawns(&world), 2);
    world.exit(Exit::Code(1));
    assert!(matches!(world.state(), State::Failed { .. }) && world.app.heeds_changes());
    world.feed(change());
    world.spawned(false);
    assert_eq!(spawns(&world), 3);
    world.feed(Event::Stop { only: None, by: "ann".into() });
    world.exit(Exit::Signal(15));
    world.feed(change());
    assert_eq!((spawns(&world), world.app.heeds_changes()), (3, false));
}

proptest! {
    /// Only its time and a person start it, each at most once, whatever else happens.
    #[test]
    fn it_never_runs_unasked(steps in prop::collection::vec(any_step(), 0..60), dues in prop::collection::vec(0..60usize, 0..6)) {
        let spec = scheduled(Policy::Never);
        let mut world = World::new(spec.clone());
        let mut asked = 0;
        for (i, step) in steps.into_iter().enumerate() {
            if dues.contains(&i) {
                asked += 1;
                world.feed(Event::Due(At(0)));
            }
            match step {
                Step::Start(only, restart) => {
                    asked += 1;
                    world.feed(Event::Start { only, restart, by: "p".into() });
                }
                Step::Stop(only) => world.feed(Event::Stop { only, by: "p".into() }),
                Step::Spawned(seat, others) => world.spawned_in(seat, others),
                Step::Exit(seat, code) => world.exit_in(seat, Exit::Code(code)),
                Step::OthersEnd(seat) => world.others_end_in(seat),
                Step::Pass(millis) => world.pass(Duration::from_millis(millis)),
                Step::Block(held) => world.feed(Event::Block(held.then(|| "b".into()))),
                Step::Reconfigure(_, restart) => {
                    world.feed(Event::Reconfigure { spec: Arc::new(spec.clone()), restart });
                }
                Step::Probe(..) => world.feed(Event::Changed { cause: "watch: x".into() }),
                _ => {}
            }
            prop_assert!(spawns(&world) <= asked, "{} runs, {asked} asked for", spawns(&world));
        }
    }
}
