use proptest::prelude::*;

use super::*;
use crate::domain::api::StatusState;

/// The store and the forges, and the courier between them.
struct World {
    outbox: Outbox,
    now: Instant,
    store: Vec<Letter>,
    next: i64,
    /// By the courier, which is gone once it may rest.
    sent: Vec<Letter>,
    arrived: Vec<Letter>,
    told: Vec<(Trouble, String)>,
    rests: bool,
}

fn lane_of(app: &AppName) -> String {
    // `c` and `d` share a forge.
    if app.as_str() < "c" { app.to_string() } else { "shared".to_owned() }
}

fn app(name: &str) -> AppName {
    name.parse().unwrap()
}

impl World {
    fn new() -> Self {
        Self {
            outbox: Outbox::default(),
            now: Instant::now(),
            store: Vec::new(),
            next: 1,
            sent: Vec::new(),
            arrived: Vec::new(),
            told: Vec::new(),
            rests: true,
        }
    }

    fn on(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.outbox.on(event, self.now, &mut actions);
        for action in actions {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Read { lane } => {
                let mine = self.store.iter().filter(|letter| lane_of(&letter.app) == lane);
                let letters = mine.take(BATCH).cloned().collect();
                self.on(Event::Read { lane, letters });
            }
            Action::Send { letter } => {
                self.rests = false;
                assert!(
                    self.sent.iter().all(|other| lane_of(&other.app) != lane_of(&letter.app)),
                    "one at a time in a lane"
                );
                self.sent.push(letter);
            }
            Action::Forget { letter } => self.store.retain(|stored| stored.id != letter),
            Action::Wait { lane, by } => {
                assert!(by >= FIRST_WAIT && by <= LONGEST_WISH);
                self.store.iter_mut().filter(|l| lane_of(&l.app) == lane).for_each(|l| l.waited += by);
            }
            Action::Tell { trouble, why, .. } => self.told.push((trouble, why)),
            Action::Rest => {
                assert!(self.sent.is_empty(), "the courier is let go in the middle of its work");
                self.rests = true;
            }
            Action::Kill => self.sent.clear(),
        }
    }

    /// A new word about a commit.
    fn write(&mut self, name: &str, commit: u8, state: StatusState) {
        let status = CommitStatus {
            commit: format!("{:040x}", u32::from(commit) + 1).parse().unwrap(),
            ref_name: None,
            deploy: self.next,
            state,
            description: String::new(),
        };
        self.store.retain(|letter| letter.app != app(name) || letter.status.commit != status.commit);
        self.store.push(Letter { id: self.next, app: app(name), status, waited: Duration::ZERO });
        self.next += 1;
        self.on(Event::Mail { lane: lane_of(&app(name)) });
    }

    fn answer(&mut self, which: usize, outcome: Outcome, arrives: bool) {
        if self.sent.is_empty() {
            return;
        }
        let letter = self.sent.remove(which % self.sent.len());
        if arrives {
            self.arrived.push(letter.clone());
        }
        self.on(Event::Posted { letter: letter.id, outcome });
    }

    /// Time passes until something is due, if anything is.
    fn pass(&mut self) -> bool {
        let Some(at) = self.outbox.deadline() else { return false };
        self.now = self.now.max(at);
        self.on(Event::Timer);
        true
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.sent.is_empty() {
                self.answer(0, Outcome::Delivered, true);
            } else if !self.pass() {
                return;
            }
        }
        panic!("it never comes to rest");
    }
}

fn later(why: &str) -> Outcome {
    Outcome::Later { why: why.to_owned(), after_s: None }
}

#[test]
fn a_lane_waits_twice_as_long_after_each_failure() {
    let mut world = World::new();
    world.write("a", 1, StatusState::Queued);
    let mut waits = Vec::new();
    for _ in 0..11 {
        world.answer(0, later("down"), false);
        waits.push((world.outbox.deadline().unwrap() - world.now).as_secs());
        assert!(world.rests);
        world.pass();
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    assert_eq!(world.told, [(Trouble::Delayed, "down".to_owned())]);
    world.settle();
    assert_eq!((world.arrived.len(), world.store.len()), (1, 0));
}

#[test]
fn a_forge_is_given_the_time_that_it_asks_for() {
    let mut world = World::new();
    world.write("a", 1, StatusState::Queued);
    for (wish, wait) in [(120, 120), (0, 2), (86_400, 3_600)] {
        world.answer(0, Outcome::Later { why: String::new(), after_s: Some(wish) }, false);
        assert_eq!((world.outbox.deadline().unwrap() - world.now).as_secs(), wait);
        world.pass();
    }
}

#[test]
fn a_forge_that_hangs_holds_up_no_other() {
    let mut world = World::new();
    world.write("a", 1, StatusState::Queued);
    world.write("b", 1, StatusState::Queued);
    assert_eq!(world.sent.len(), 2);
    world.answer(1, Outcome::Delivered, true);
    world.write("b", 1, StatusState::Success);
    world.answer(1, Outcome::Delivered, true);
    assert_eq!(world.arrived.len(), 2);
    assert!(!world.rests);
    assert!(world.pass(), "it does not hang for ever");
    assert!(world.rests && world.sent.is_empty());
    world.settle();
    assert_eq!(world.arrived.len(), 3);
}

#[test]
fn what_became_of_it_while_the_forge_was_down_is_told_alone() {
    let mut world = World::new();
    world.write("a", 1, StatusState::Queued);
    world.answer(0, later("down"), false);
    world.write("a", 1, StatusState::Running);
    world.write("a", 1, StatusState::Success);
    world.settle();
    assert_eq!(world.arrived.iter().map(|letter| letter.status.state).collect::<Vec<_>>(), [StatusState::Success]);
}

#[test]
fn a_refusal_is_told_once_and_holds_up_nothing() {
    let mut world = World::new();
    for commit in 0..100 {
        world.write("a", commit, StatusState::Queued);
    }
    for _ in 0..100 {
        world.answer(0, Outcome::Refused { why: "bad token".to_owned() }, false);
    }
    assert_eq!((world.told.len(), world.store.len(), world.rests), (1, 0, true));
    assert_eq!(world.outbox.deadline(), None);
    world.on(Event::Anew);
    world.write("a", 1, StatusState::Success);
    world.answer(0, Outcome::Refused { why: "bad token".to_owned() }, false);
    assert_eq!(world.told.len(), 2, "a new config is judged anew");
}

#[test]
fn letters_are_given_up_after_a_day() {
    let mut world = World::new();
    let begin = world.now;
    for commit in 0..40 {
        world.write("a", commit, StatusState::Success);
    }
    while !world.store.is_empty() {
        world.answer(0, later("down"), false);
        world.pass();
    }
    let lasted = (world.now - begin).as_secs();
    assert!((86_400..87_000).contains(&lasted), "{lasted} s");
    assert_eq!(world.told.last().unwrap().0, Trouble::GivenUp);
    assert_eq!(world.told.len(), 2, "{:?}", world.told);
    assert_eq!((world.outbox.deadline(), world.rests), (None, true));
}

#[test]
fn a_changed_config_is_tried_at_once() {
    let mut world = World::new();
    world.write("a", 1, StatusState::Success);
    world.answer(0, later("no such token"), false);
    assert!(world.sent.is_empty());
    world.on(Event::Anew);
    assert_eq!(world.sent.len(), 1);
}

#[derive(Debug, Clone)]
enum Step {
    Write(&'static str, u8, StatusState),
    Delivered(usize),
    /// It arrived, and nobody hears of it.
    Vanished(usize),
    Later(usize, Option<u64>),
    Refused(usize),
    Lost,
    Anew,
    Pass,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    use StatusState::{Cancelled, Error, Failure, Queued, Running, Success};
    let states = prop::sample::select(vec![Queued, Running, Success, Failure, Error, Cancelled]);
    let write = (prop::sample::select(vec!["a", "b", "c", "d"]), 0..6u8, states);
    prop_oneof![
        4 => write.prop_map(|(name, commit, state)| Step::Write(name, commit, state)),
        4 => any::<usize>().prop_map(Step::Delivered),
        1 => any::<usize>().prop_map(Step::Vanished),
        2 => (any::<usize>(), prop::option::of(0..600u64)).prop_map(|(which, wish)| Step::Later(which, wish)),
        1 => any::<usize>().prop_map(Step::Refused),
        1 => Just(Step::Lost),
        1 => Just(Step::Anew),
        3 => Just(Step::Pass),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    /// No older word about a commit ever comes after a newer one, and the newest one arrives, unless the
    /// forge refuses it.
    #[test]
    fn the_newest_word_is_the_last(steps in prop::collection::vec(step(), 0..120)) {
        let mut world = World::new();
        let (mut newest, mut refused) = (BTreeMap::new(), Vec::new());
        for step in steps {
            match step {
                Step::Write(name, commit, state) => {
                    world.write(name, commit, state);
                    newest.insert((name, commit), world.next - 1);
                }
                Step::Delivered(which) => world.answer(which, Outcome::Delivered, true),
                Step::Vanished(which) => world.answer(which, later("reset"), true),
                Step::Later(which, after_s) => {
                    world.answer(which, Outcome::Later { why: "down".to_owned(), after_s }, false);
                }
                Step::Refused(which) => {
                    refused.extend(world.sent.get(which % world.sent.len().max(1)).map(|letter| letter.id));
                    world.answer(which, Outcome::Refused { why: "no".to_owned() }, false);
                }
                Step::Lost => {
                    world.sent.clear();
                    world.on(Event::Lost { why: "killed".to_owned() });
                }
                Step::Anew => world.on(Event::Anew),
                Step::Pass => drop(world.pass()),
                Step::Restart => {
                    (world.outbox, world.rests) = (Outbox::default(), true);
                    world.sent.clear();
                    for lane in ["a", "b", "shared"] {
                        world.on(Event::Mail { lane: lane.to_owned() });
                    }
                }
            }
        }
        world.settle();
        prop_assert!(world.rests && world.store.is_empty() && world.outbox.lanes.is_empty());
        for (i, later) in world.arrived.iter().enumerate() {
            let about = |letter: &&Letter| letter.app == later.app && letter.status.commit == later.status.commit;
            prop_assert!(world.arrived[..i].iter().filter(about).all(|earlier| earlier.id <= later.id), "{later:?}");
        }
        for id in newest.values() {
            prop_assert!(refused.contains(id) || world.arrived.iter().any(|letter| letter.id == *id), "{id}");
        }
    }
}
