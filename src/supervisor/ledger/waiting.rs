//! What waits to be written, and the transaction that it is written in.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use rusqlite::Connection;

use super::{
    deliveries::{self, NewDelivery},
    journal, keep, outbox,
    say::{NewEvent, Told},
    store::{self, Fault},
    webhook::{self, Passed, Proven},
    write::{Known, Write},
};
use crate::domain::{
    api::{Answer, Deliveries, DeployView, EventKind},
    model::AppName,
};

/// What nothing comes of is written with the next commit, at the latest after this.
const FRUITLESS_WAIT: Duration = Duration::from_secs(1);
/// What nobody waits for is not on the way of a delivery: it is written with the next commit that somebody else
/// waits for, at the latest after this.
const UNHURRIED_WAIT: Duration = Duration::from_millis(20);
/// So many deliveries of which nothing comes are a commit of their own.
const PASSED: usize = 512;
/// So many of them are put into the transaction between two rounds: answers wait for no more.
const NOTED_AT_ONCE: usize = 64;
/// An update of a deploy takes the place of one of the same among so many writes before it: under many
/// pushes each deploy is queued and superseded in one commit.
const NEAR: usize = 512;
/// Changes that there is room for while none waits.
const FEW: usize = 16;
/// Rows are pruned after this many commits' worth of new ones.
const PRUNE_EVERY: u32 = 500;

/// How the writes of a transaction stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Care {
    /// What SQLite refuses undoes the others with it.
    Together,
    /// What SQLite refuses is left out; each has a savepoint, which costs about as much as the write itself.
    Alone,
}

/// What a transaction is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// The deliveries that came, and those that were given the numbers before theirs.
    Deliveries,
    /// Everything.
    All,
    /// Everything, and a page even where that is nothing: does the disk take something again?
    Trial,
}

/// What goes into a transaction beside all that waits.
#[derive(Clone, Copy)]
pub(super) struct Contents<'a> {
    pub incoming: &'a [Proven<'a>],
    pub extent: Extent,
    pub known: Known<'a>,
}

/// What one transaction did, to be answered and told after its commit.
#[derive(Default)]
pub(super) struct Done {
    pub answers: Vec<(usize, Answer)>,
    pub told: Vec<Told>,
    /// What became of those that the store had to be asked about.
    pub heard: Deliveries,
    /// Apps that got rows, `None` for rows of no app.
    touched: BTreeSet<Option<AppName>>,
}

impl Done {
    pub(super) fn answered(answers: Vec<(usize, Answer)>) -> Self {
        Self { answers, ..Self::default() }
    }

    fn tell(&mut self, told: Vec<Told>) {
        self.touched.extend(told.iter().filter_map(subject));
        self.told.extend(told);
    }
}

pub(super) struct Waiting {
    writes: VecDeque<Write>,
    /// Somebody waits for one of them.
    hurried: bool,
    /// Refused deliveries that are not written yet.
    refused: VecDeque<NewDelivery>,
    /// Proven ones that are answered and not written yet.
    passed: Vec<Passed>,
    /// The first of them are in a transaction that is open, and this is to be told of them after its commit.
    noted: (usize, Vec<Told>),
    /// By when whatever waits is written even if nothing else is.
    due: Option<Instant>,
    /// Events that found no place while the store took nothing.
    pub dropped: u64,
    touched: BTreeSet<Option<AppName>>,
    written: u32,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            writes: VecDeque::new(),
            hurried: false,
            refused: VecDeque::new(),
            passed: Vec::new(),
            noted: (0, Vec::new()),
            due: None,
            dropped: 0,
            touched: BTreeSet::new(),
            written: PRUNE_EVERY,
        }
    }
}

impl Waiting {
    /// Changes that are not made yet.
    pub(super) fn changes(&self) -> usize {
        self.writes.len()
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
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

    /// Refused deliveries wait for the next commit; the oldest go when there are too many.
    pub(super) fn remember(&mut self, refused: NewDelivery) {
        self.wait_at_most(FRUITLESS_WAIT);
        self.refused.push_back(refused);
        while self.refused.len() > keep::REFUSED as usize {
            self.refused.pop_front();
        }
    }

    pub(super) fn pass(&mut self, passed: Passed) {
        self.wait_at_most(FRUITLESS_WAIT);
        self.passed.push(passed);
    }

    fn wait_at_most(&mut self, wait: Duration) {
        let due = Instant::now() + wait;
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    /// Is it time to write, and what? `incoming`: deliveries wait for their answer; `asked`: somebody wants to see
    /// all there is.
    pub(super) fn extent(&self, incoming: bool, asked: bool) -> Option<Extent> {
        let overdue = self.due.is_some_and(|due| due <= Instant::now());
        let waits = !self.refused.is_empty() || !self.passed.is_empty() || !self.writes.is_empty();
        if self.hurried || self.passed.len() >= PASSED || (waits && (asked || overdue)) {
            return Some(Extent::All);
        }
        incoming.then_some(Extent::Deliveries)
    }

    /// The letters that are removed.
    pub(super) fn forgotten(&self) -> Vec<i64> {
        self.writes.iter().filter_map(Write::forgets).collect()
    }

    /// Begins to write what is answered already: the rows of a few deliveries, after each of which others may be
    /// answered. Then a commit has little left to do.
    pub(super) fn note_some(&mut self, store: &Connection) {
        let end = self.passed.len().min(self.noted.0 + NOTED_AT_ONCE);
        if self.noted.0 == end {
            return;
        }
        let noted = begin(store).and_then(|()| {
            for passed in &self.passed[self.noted.0..end] {
                self.noted.1.extend(note(store, passed)?);
            }
            Ok(())
        });
        match noted {
            Ok(()) => self.noted.0 = end,
            Err(_) => {
                // The commit tries again, with care.
                self.take_back(store);
                self.due = Some(Instant::now());
            }
        }
    }

    /// Ends the transaction that is open, if one is: what was written in it waits again.
    pub(super) fn take_back(&mut self, store: &Connection) {
        // A failed statement may have ended the transaction; if not, this does.
        if !store.is_autocommit()
            && let Err(error) = store.execute_batch("ROLLBACK")
        {
            tracing::error!("a transaction could not be undone: {error}");
        }
        self.forget_noted();
    }

    /// The store was closed.
    pub(super) fn forget_noted(&mut self) {
        self.noted = (0, Vec::new());
    }

    /// Writes it in one transaction. On an error nothing of it was written.
    ///
    /// # Errors
    /// Of the store, but not what a single change is refused for.
    pub(super) fn transact(&mut self, store: &Connection, contents: Contents<'_>) -> rusqlite::Result<Done> {
        match self.try_to_transact(store, contents, Care::Together) {
            Err(error) if Fault::of(&error) == Fault::Statement => self.try_to_transact(store, contents, Care::Alone),
            other => other,
        }
    }

    fn try_to_transact(&mut self, store: &Connection, contents: Contents<'_>, care: Care) -> rusqlite::Result<Done> {
        let done = begin(store).and_then(|()| self.fill(store, contents, care)).and_then(|done| {
            store.prepare_cached("COMMIT")?.execute([])?;
            Ok(done)
        });
        match done {
            Ok(mut done) => {
                self.finish(&mut done, contents.extent);
                Ok(done)
            }
            Err(error) => {
                self.take_back(store);
                Err(error)
            }
        }
    }

    /// Everything inside the transaction. A single command that SQLite refuses is left out and logged,
    /// so that it never stands in the way of the others.
    fn fill(&mut self, store: &Connection, contents: Contents<'_>, care: Care) -> rusqlite::Result<Done> {
        let Contents { incoming, extent, known } = contents;
        let mut done = Done::default();
        done.tell(std::mem::take(&mut self.noted.1));
        // Before whatever is given the numbers after theirs.
        for passed in &self.passed[self.noted.0..] {
            done.tell(guarded(store, care, || note(store, passed))?.unwrap_or_default());
        }
        if extent != Extent::Deliveries {
            for write in &self.writes {
                if let Some(told) = guarded(store, care, || post(store, write.put(store, known)?, known))? {
                    done.touched.insert(write.touched());
                    done.tell(told);
                }
            }
        }
        for proven in incoming {
            let kept = guarded(store, care, || {
                let mut kept = webhook::keep(store, proven, known.snapshot, known.live)?;
                kept.told = post(store, kept.told, known)?;
                Ok(kept)
            })?;
            let answer = kept.map_or_else(
                || proven.incoming.unavailable(),
                |kept| {
                    done.tell(kept.told);
                    done.heard.count(kept.state, kept.unmatched);
                    kept.answer
                },
            );
            done.answers.push((proven.incoming.listener, answer));
        }
        if extent != Extent::Deliveries {
            self.fill_in_passing(store, &done, contents, care)?;
        }
        Ok(done)
    }

    /// What goes with a commit that is made anyhow: refused deliveries, and the removal of old rows.
    fn fill_in_passing(
        &self,
        store: &Connection,
        done: &Done,
        Contents { extent, known, .. }: Contents<'_>,
        care: Care,
    ) -> rusqlite::Result<()> {
        if extent == Extent::Trial {
            store::try_to_write(store)?;
        }
        for row in &self.refused {
            guarded(store, care, || deliveries::append(store, row))?;
        }
        if !self.refused.is_empty() {
            keep::refused(store, keep::REFUSED)?;
        }
        if self.dropped > 0 {
            let lost = format!("{} events were not recorded while the store took nothing", self.dropped);
            let new = NewEvent {
                at: known.now,
                app: None,
                instance: None,
                kind: EventKind::Supervisor,
                from: None,
                to: None,
                cause: Some(lost),
                detail: None,
            };
            journal::append_event(store, &new)?;
        }
        if self.written >= PRUNE_EVERY {
            let touched = self.touched.union(&done.touched).cloned().collect();
            keep::prune(store, known.now, &touched)?;
            outbox::prune(store, touched.iter().flatten())?;
        }
        Ok(())
    }

    /// After a commit.
    fn finish(&mut self, done: &mut Done, extent: Extent) {
        let mut rows = self.passed.len() + done.answers.len();
        self.passed.clear();
        self.forget_noted();
        if extent == Extent::Deliveries {
            if self.writes.is_empty() && self.refused.is_empty() {
                self.due = None;
            }
        } else {
            rows += self.writes.len() + self.refused.len();
            if self.written >= PRUNE_EVERY {
                self.written = 0;
                self.touched.clear();
            }
            self.writes.clear();
            self.writes.shrink_to(FEW);
            self.refused.clear();
            self.dropped = 0;
            self.hurried = false;
            self.due = None;
        }
        self.written = self.written.saturating_add(u32::try_from(rows).unwrap_or(u32::MAX));
        self.touched.append(&mut done.touched);
    }
}

/// Begins a transaction, unless one is open.
fn begin(store: &Connection) -> rusqlite::Result<()> {
    if store.is_autocommit() {
        store.prepare_cached("BEGIN")?.execute([])?;
    }
    Ok(())
}

/// Notes for their forges what was told of new deploys.
fn post(store: &Connection, mut told: Vec<Told>, known: Known<'_>) -> rusqlite::Result<Vec<Told>> {
    if known.telling.is_empty() {
        return Ok(told);
    }
    let mut mail = Vec::new();
    for new in told.iter().flat_map(new_deploys).filter(|deploy| known.telling.contains(&deploy.app)) {
        if outbox::note(store, None, new)? {
            mail.push(Told::Mail { app: new.app.clone() });
        }
    }
    told.append(&mut mail);
    Ok(told)
}

/// Writes what was answered already.
fn note(store: &Connection, passed: &Passed) -> rusqlite::Result<Vec<Told>> {
    deliveries::append_as(store, Some(passed.id), &passed.row)?;
    passed.events.iter().map(|event| journal::append_event(store, event).map(Told::Event)).collect()
}

/// Does one command's work, with care so that all of it or nothing is in the transaction. `None`: SQLite
/// refuses it, which is logged.
fn guarded<T>(
    store: &Connection,
    care: Care,
    work: impl FnOnce() -> rusqlite::Result<T>,
) -> rusqlite::Result<Option<T>> {
    if care == Care::Together {
        return work().map(Some);
    }
    let run = |sql| store.prepare_cached(sql)?.execute([]);
    run("SAVEPOINT one")?;
    let done = match work() {
        Ok(done) => Some(done),
        Err(error) if Fault::of(&error) == Fault::Statement => {
            tracing::error!("a change was not stored: {error}");
            run("ROLLBACK TO one")?;
            None
        }
        Err(error) => return Err(error),
    };
    run("RELEASE one")?;
    Ok(done)
}

fn new_deploys(told: &Told) -> &[DeployView] {
    match told {
        Told::Accepted { deploys } => deploys,
        Told::Queued { deploy, .. } => std::slice::from_ref(deploy),
        _ => &[],
    }
}

/// The app of an event; every delivery that is kept makes one for each of its apps.
fn subject(told: &Told) -> Option<Option<AppName>> {
    if let Told::Event(event) = told { Some(event.app.clone()) } else { None }
}
