//! What waits to be told outside: when which letter goes, when it is tried again, and when it is given
//! up. DESIGN.md section 3, "courier".
//!
//! [`Outbox`] takes [`Event`]s and the time, and gives back [`Action`]s. The letters themselves are in
//! the store, where a newer one takes the place of an older one about the same thing; here are the
//! lanes, one for each API, so that one forge that hangs holds up no other. In a lane one letter at a
//! time is on its way, oldest first: no older word ever overtakes a newer one. What went wrong is read
//! from the store again before it is tried again, so that meanwhile it may have become something else.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use crate::domain::{
    api::{CommitStatus, Outcome},
    model::AppName,
};

#[cfg(test)]
mod tests;

/// Letters that are read from the store at once.
pub const BATCH: usize = 16;
/// The first wait after a failure; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(5 * 60);
/// A forge may ask for more patience, but not for any.
const LONGEST_WISH: Duration = Duration::from_secs(60 * 60);
/// A letter that has waited for so long is given up.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);
/// So many failures in a row are told; fewer are nobody's concern.
const TOLD_AT: u32 = 3;
/// The courier says sooner what came of a letter, or it never will.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(90);

/// A letter as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Another one that takes its place has another number.
    pub id: i64,
    pub app: AppName,
    pub status: CommitStatus,
    /// How long it was put off after failures, all in all. No clock that is set changes that.
    pub waited: Duration,
}

/// All lanes. A lane is named by the base of its API.
#[derive(Debug, Default)]
pub struct Outbox {
    lanes: BTreeMap<String, Lane>,
    /// The last that was told of an app's letters, until one arrives.
    told: BTreeMap<AppName, String>,
    /// The courier has something to do.
    busy: bool,
}

#[derive(Debug, Default)]
struct Lane {
    /// The store may hold letters that were not read.
    mail: bool,
    /// The store is being asked.
    reading: bool,
    letters: VecDeque<Letter>,
    /// On its way, and by when the courier must have said what came of it.
    out: Option<(Letter, Instant)>,
    /// In a row.
    failures: u32,
    /// Nothing goes before.
    wait: Option<Instant>,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// The store has letters for this lane.
    Mail { lane: String },
    /// Answers [`Action::Read`]: the oldest, at most [`BATCH`].
    Read { lane: String, letters: Vec<Letter> },
    /// What came of this letter.
    Posted { letter: i64, outcome: Outcome },
    /// The courier is gone, or could not be started; what was on its way may have arrived or not.
    Lost { why: String },
    /// The config changed: what it was that did not work may work now.
    Anew,
    /// The moment of [`Outbox::deadline`] has come.
    Timer,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Read the oldest letters of this lane's apps.
    Read { lane: String },
    /// Hand it to the courier, which is started where there is none; answered by [`Event::Posted`].
    Send { letter: Letter },
    /// It need not be sent any more: remove it from the store, unless another took its place.
    Forget { letter: i64 },
    /// All letters of this lane's apps wait for so long.
    Wait { lane: String, by: Duration },
    /// For whoever looks after this app.
    Tell { app: AppName, trouble: Trouble, why: String },
    /// Nothing is on its way: the courier may end.
    Rest,
    /// The courier does not answer: end it.
    Kill,
}

/// What went wrong with an app's letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The forge does not want it, and never will.
    Refused,
    /// The forge does not take it for now.
    Delayed,
    GivenUp,
}

impl Outbox {
    /// Takes in what happened and pushes what is to be done.
    pub fn on(&mut self, event: Event, now: Instant, out: &mut Vec<Action>) {
        match event {
            Event::Mail { lane } => self.lanes.entry(lane).or_default().mail = true,
            Event::Read { lane, letters } => self.read(&lane, letters, out),
            Event::Posted { letter, outcome } => self.posted(letter, outcome, now, out),
            Event::Lost { why } => self.lost(&why, now, out),
            Event::Anew => {
                self.told.clear();
                for lane in self.lanes.values_mut() {
                    (lane.wait, lane.failures) = (None, 0);
                    // What was read may be another app's business now.
                    lane.mail |= !lane.letters.is_empty();
                    lane.letters.clear();
                }
            }
            Event::Timer => {
                if self.lanes.values().any(|lane| lane.out.as_ref().is_some_and(|(_, by)| *by <= now)) {
                    out.push(Action::Kill);
                    self.lost("the courier gave no answer in time", now, out);
                }
            }
        }
        self.go_on(now, out);
    }

    /// When [`Event::Timer`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.lanes.values().filter_map(|lane| lane.out.as_ref().map(|(_, by)| *by).or(lane.wait)).min()
    }

    /// Is it to be known what came of this letter?
    #[must_use]
    pub fn awaits(&self, letter: i64) -> bool {
        self.lanes.values().any(|lane| lane.out.as_ref().is_some_and(|(out, _)| out.id == letter))
    }

    fn read(&mut self, name: &str, letters: Vec<Letter>, out: &mut Vec<Action>) {
        let Some(lane) = self.lanes.get_mut(name) else { return };
        lane.reading = false;
        lane.mail |= letters.len() >= BATCH;
        let (old, letters): (Vec<_>, Vec<_>) = letters.into_iter().partition(|letter| letter.waited >= PATIENCE);
        lane.letters = letters.into();
        for letter in old {
            out.push(Action::Forget { letter: letter.id });
            self.tell(&letter.app, Trouble::GivenUp, "nothing arrived for a day".to_owned(), out);
        }
    }

    fn posted(&mut self, id: i64, outcome: Outcome, now: Instant, out: &mut Vec<Action>) {
        let sent = |lane: &Lane| lane.out.as_ref().is_some_and(|(letter, _)| letter.id == id);
        let Some((name, lane)) = self.lanes.iter_mut().find(|(_, lane)| sent(lane)) else { return };
        let Some((letter, _)) = lane.out.take() else { return };
        match outcome {
            Outcome::Later { why, after_s } => {
                let name = name.clone();
                self.put_off(&name, &letter, why, after_s.map(Duration::from_secs), now, out);
            }
            Outcome::Delivered => {
                lane.failures = 0;
                self.told.remove(&letter.app);
                out.push(Action::Forget { letter: id });
            }
            Outcome::Refused { why } => {
                lane.failures = 0;
                out.push(Action::Forget { letter: id });
                self.tell(&letter.app, Trouble::Refused, why, out);
            }
        }
    }

    fn lost(&mut self, why: &str, now: Instant, out: &mut Vec<Action>) {
        let sent: Vec<(String, Letter)> =
            self.lanes.iter_mut().filter_map(|(n, lane)| Some((n.clone(), lane.out.take()?.0))).collect();
        for (name, letter) in sent {
            self.put_off(&name, &letter, why.to_owned(), None, now, out);
        }
    }

    /// The whole lane waits: what did not take this letter takes no other one.
    fn put_off(
        &mut self,
        name: &str,
        letter: &Letter,
        why: String,
        wish: Option<Duration>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Some(lane) = self.lanes.get_mut(name) else { return };
        lane.failures = lane.failures.saturating_add(1);
        let wait = backoff(lane.failures).max(wish.unwrap_or_default().min(LONGEST_WISH));
        lane.wait = Some(now + wait);
        lane.letters.clear();
        lane.mail = true;
        let told = lane.failures == TOLD_AT;
        out.push(Action::Wait { lane: name.to_owned(), by: wait });
        if told {
            self.tell(&letter.app, Trouble::Delayed, why, out);
        }
    }

    /// Once for the same trouble.
    fn tell(&mut self, app: &AppName, trouble: Trouble, why: String, out: &mut Vec<Action>) {
        if self.told.insert(app.clone(), why.clone()).as_ref() != Some(&why) {
            out.push(Action::Tell { app: app.clone(), trouble, why });
        }
    }

    fn go_on(&mut self, now: Instant, out: &mut Vec<Action>) {
        for (name, lane) in &mut self.lanes {
            lane.wait = lane.wait.filter(|at| *at > now);
            if lane.out.is_some() || lane.reading || lane.wait.is_some() {
                continue;
            }
            if let Some(letter) = lane.letters.pop_front() {
                lane.out = Some((letter.clone(), now + LONGEST_ATTEMPT));
                self.busy = true;
                out.push(Action::Send { letter });
            } else if lane.mail {
                (lane.mail, lane.reading) = (false, true);
                out.push(Action::Read { lane: name.clone() });
            }
        }
        self.lanes.retain(|_, lane| lane.mail || lane.reading || lane.out.is_some() || lane.wait.is_some());
        if self.busy && self.lanes.values().all(|lane| lane.out.is_none() && !lane.reading) {
            self.busy = false;
            out.push(Action::Rest);
        }
    }
}

fn backoff(failures: u32) -> Duration {
    (FIRST_WAIT * 2u32.pow(failures.saturating_sub(1).min(12))).min(LONGEST_WAIT)
}
