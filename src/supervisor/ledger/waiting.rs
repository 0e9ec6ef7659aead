//! Changes that wait to be written.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::write::Write;

/// What nobody waits for is not on the way of a delivery: it is written with the next commit that somebody else
/// waits for, at the latest after this.
const UNHURRIED_WAIT: Duration = Duration::from_millis(20);
/// An update of a deploy takes the place of one of the same among so many writes before it: under many
/// pushes each deploy is queued and superseded in one commit.
const NEAR: usize = 512;
/// Changes that there is room for while none waits.
const FEW: usize = 16;

/// What a transaction is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// Some of what is answered already.
    Noted,
    /// All of it.
    Answered,
    /// The deliveries that came.
    Deliveries,
    /// Everything.
    All,
    /// Everything, and a page even where that is nothing: does the disk take something again?
    Trial,
}

impl Extent {
    pub(super) fn is_everything(self) -> bool {
        matches!(self, Self::All | Self::Trial)
    }

    /// Is nothing of it left that is answered?
    pub(super) fn has_all_answered(self) -> bool {
        !matches!(self, Self::Noted | Self::Deliveries)
    }
}

/// What the ledger's thread was told to write.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) writes: VecDeque<Write>,
    /// Somebody waits for one of them.
    hurried: bool,
    /// By when they are written even if nothing else is.
    due: Option<Instant>,
    /// Events that found no place while the store took nothing.
    pub dropped: u64,
}

impl Waiting {
    /// Changes that are not made yet.
    pub(super) fn changes(&self) -> usize {
        self.writes.len()
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Does somebody wait for some of it?
    pub(super) fn is_hurried(&self) -> bool {
        self.hurried
    }

    /// What waits is written at once.
    pub(super) fn hurry(&mut self) {
        self.hurried = true;
    }

    pub(super) fn put_off(&mut self, write: Write) {
        if write.is_waited_for() {
            self.hurried = true;
        } else {
            self.wait_at_most(UNHURRIED_WAIT);
        }
        if let Some(write) = self.merged(write) {
            self.writes.push_back(write);
        }
    }

    /// Puts an update of a deploy in the place of an older one that waits; whatever else comes back.
    fn merged(&mut self, write: Write) -> Option<Write> {
        let Write::Update { deploy: new, attempts: newer, tickets: mut more } = write else { return Some(write) };
        for waiting in self.writes.iter_mut().rev().take(NEAR) {
            if let Write::Update { deploy, attempts, tickets } = waiting
                && deploy.id == new.id
            {
                (*deploy, *attempts) = (new, newer);
                tickets.append(&mut more);
                return None;
            }
        }
        Some(Write::Update { deploy: new, attempts: newer, tickets: more })
    }

    fn wait_at_most(&mut self, wait: Duration) {
        let due = Instant::now() + wait;
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    /// Is it time to write, and what? `incoming`: deliveries wait for their answer.
    pub(super) fn extent(&self, incoming: bool) -> Option<Extent> {
        let overdue = self.due.is_some_and(|due| due <= Instant::now());
        if self.hurried || overdue {
            return Some(Extent::All);
        }
        incoming.then_some(Extent::Deliveries)
    }

    /// The letters that are removed.
    pub(super) fn forgotten(&self) -> Vec<i64> {
        self.writes.iter().filter_map(Write::forgets).collect()
    }

    /// They are written.
    pub(super) fn done(&mut self) {
        self.writes.clear();
        self.writes.shrink_to(FEW);
        self.dropped = 0;
        self.hurried = false;
        self.due = None;
    }
}
