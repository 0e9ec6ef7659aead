//! The thread behind the ledger's: it writes what is answered already, so that no answer waits for the store.
//!
//! What it cannot write it leaves to the ledger's thread, which knows what a store that takes nothing means.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{
    Inbox, Tell,
    books::{Answered, Books, Contents, Noted, Refused, take_refused},
    disk::Disk,
    lock,
    thread::now,
    waiting::{Extent, Waiting},
    webhook::Passed,
    write::Known,
};
use crate::{domain::deploy::accept::Snapshot, os::threads};

/// What nothing comes of is committed after this: it is in the store within a second.
const WAIT: Duration = Duration::from_millis(500);
/// Its rows are put into the transaction as soon as there are so many, however soon the commit is due: they wait in
/// memory. With fewer at a time it stands more often in the way of those that answer.
const MANY: usize = 2048;
/// The ledger's thread helps where so much of it waits.
const MOST: usize = 4 * MANY;

/// What both threads have in their hands, one after the other.
#[derive(Default)]
pub(super) struct Desk {
    tray: Mutex<Tray>,
    /// There is something new in the tray for the clerk.
    came: Condvar,
    /// Of whoever has the books next.
    turn: Mutex<()>,
    books: Mutex<Books>,
}

/// What it is time for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// Rows, in the transaction that is open.
    Rows,
    Everything,
}

/// What is to be written by the clerk.
#[derive(Default)]
struct Tray {
    passed: Vec<Passed>,
    refused: VecDeque<Refused>,
    /// When the first was put here of what is not committed.
    since: Option<Instant>,
    /// Left to the ledger's thread until that has written something.
    stuck: bool,
    closing: bool,
}

impl Desk {
    /// The books, for whoever asked first: a clerk that writes much gives them away in between.
    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        let turn = lock(&self.turn);
        let books = lock(&self.books);
        drop(turn);
        books
    }

    /// Hands over what is answered already; never waits for the store.
    pub(super) fn hand_over(&self, passed: &mut Vec<Passed>, refused: &mut VecDeque<Refused>) {
        let mut tray = lock(&self.tray);
        let (was, first) = (tray.passed.len(), tray.since.is_none());
        tray.passed.append(passed);
        take_refused(&mut tray.refused, refused);
        if first {
            tray.since = Some(Instant::now());
        }
        let many = was < MANY && tray.passed.len() >= MANY;
        drop(tray);
        if first || many {
            self.came.notify_one();
        }
    }

    /// Puts into the books what was handed over, which is committed next.
    pub(super) fn empty_tray(&self, answered: &mut Answered) {
        let mut tray = lock(&self.tray);
        let (passed, refused) = (std::mem::take(&mut tray.passed), std::mem::take(&mut tray.refused));
        tray.since = None;
        drop(tray);
        answered.take(passed, refused);
    }

    /// The same of what may be committed later.
    fn take_rows(&self, answered: &mut Answered) {
        let passed = std::mem::take(&mut lock(&self.tray).passed);
        answered.take(passed, VecDeque::new());
    }

    /// Is the ledger's thread to write what the clerk does not?
    pub(super) fn needs_help(&self) -> bool {
        let tray = lock(&self.tray);
        tray.stuck || tray.passed.len() >= MOST
    }

    /// The clerk goes on, or leaves everything to the ledger's thread.
    pub(super) fn set_stuck(&self, stuck: bool) {
        let was = std::mem::replace(&mut lock(&self.tray).stuck, stuck);
        if was && !stuck {
            self.came.notify_one();
        }
    }

    /// Nothing comes any more.
    pub(super) fn close(&self) {
        lock(&self.tray).closing = true;
        self.came.notify_one();
    }

    /// The clerk's work, until the desk is closed.
    pub(super) fn run(&self, disk: &Disk, tell: &Tell, inbox: &Inbox) {
        threads::run_in_batches();
        while let Some(due) = self.wait() {
            if let Err(error) = self.write(due, disk, tell, inbox) {
                tracing::warn!("what is answered cannot be written now: {error}");
                self.set_stuck(true);
                inbox.wake();
            }
        }
    }

    /// Waits until it is time to write something; `None`: nothing comes any more.
    fn wait(&self) -> Option<Due> {
        let mut tray = lock(&self.tray);
        while !tray.closing {
            let waits = match tray.since.filter(|_| !tray.stuck) {
                None => None,
                Some(since) => {
                    let left = WAIT.saturating_sub(since.elapsed());
                    if left.is_zero() {
                        return Some(Due::Everything);
                    }
                    if tray.passed.len() >= MANY {
                        return Some(Due::Rows);
                    }
                    Some(left)
                }
            };
            tray = match waits {
                None => self.came.wait(tray).unwrap_or_else(PoisonError::into_inner),
                Some(left) => self.came.wait_timeout(tray, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        None
    }

    /// Writes what is there; between a few rows and the next the books are free.
    fn write(&self, due: Due, disk: &Disk, tell: &Tell, inbox: &Inbox) -> rusqlite::Result<()> {
        loop {
            let mut books = self.books();
            let Books { store, answered } = &mut *books;
            // Where it is not open the ledger's thread tries to open it.
            let Some(store) = store else {
                self.empty_tray(answered);
                return Ok(());
            };
            match due {
                Due::Rows => self.take_rows(answered),
                Due::Everything => self.empty_tray(answered),
            }
            let extent = match answered.note_some(store, inbox.is_heeded())? {
                Noted::Some => {
                    drop(books);
                    // Whoever answers, and was put behind us on this processor, would wait for the next tick.
                    thread::yield_now();
                    continue;
                }
                Noted::All if due == Due::Rows => return Ok(()),
                Noted::All => Extent::Answered,
                Noted::Many => Extent::Noted,
            };
            let (snapshot, live, telling) = (Snapshot::default(), BTreeMap::new(), BTreeSet::new());
            let (now, last_delivery) = (now(), &Cell::default());
            let known = Known { snapshot: &snapshot, live: &live, telling: &telling, now, last_delivery };
            let heeded = inbox.is_heeded();
            let contents = Contents { incoming: &[], extent, known, heeded };
            let done = answered.transact(store, &mut Waiting::default(), contents)?;
            inbox.committed();
            disk.put_told(done.told, tell);
            if answered.is_empty() && (due == Due::Rows || extent == Extent::Answered) {
                return Ok(());
            }
        }
    }
}
