//! The store, what is answered already and not in it yet, and the transactions that both threads write it in.

use std::collections::{BTreeSet, VecDeque};

use rusqlite::Connection;

use super::{
    super::veil,
    deliveries::{self, NewDelivery},
    journal, keep, outbox,
    say::{NewEvent, Told},
    sparing::Sparing,
    store::{self, Fault},
    waiting::{Extent, Waiting},
    webhook::{self, Passed, Proven},
    write::Known,
};
use crate::domain::{
    api::{Answer, Deliveries, DeployView, EventKind},
    model::{AppName, DeliveryId},
};

/// What is noted is committed when there is so much of it: a commit, and the removal of as many old rows with it, keeps
/// a processor for as long as it takes.
const NOTED: usize = 512;
/// Rows that there is room for while none waits.
const FEW: usize = 16;
/// Rows are pruned when so many were written: what is over its number is counted each time.
const PRUNE_EVERY: u32 = 4_000;

/// How the writes of a transaction stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Care {
    /// What SQLite refuses undoes the others with it.
    Together,
    /// What SQLite refuses is left out; each has a savepoint, which costs about as much as the write itself.
    Alone,
}

/// What goes into a transaction beside what is answered already.
#[derive(Clone, Copy)]
pub(super) struct Contents<'a> {
    pub incoming: &'a [Proven<'a>],
    pub extent: Extent,
    pub known: Known<'a>,
    /// Does anybody follow the events?
    pub heeded: bool,
}

/// What one transaction did, to be answered and told after its commit.
#[derive(Default)]
pub(super) struct Done {
    pub answers: Vec<(usize, Answer)>,
    pub told: Vec<Told>,
    /// To be written with the next commit that brings everything: only the past is told by them.
    pub events: Vec<NewEvent>,
    /// What became of those that the store had to be asked about.
    pub heard: Deliveries,
    /// Apps that got rows, `None` for rows of no app.
    touched: BTreeSet<Option<AppName>>,
}

impl Done {
    fn tell(&mut self, told: Vec<Told>) {
        self.touched.extend(told.iter().filter_map(subject));
        self.told.extend(told);
    }
}

/// A refused delivery and its number, which one that came before there was a store gets as it is written.
pub(super) type Refused = (Option<DeliveryId>, NewDelivery);

/// Adds these; of too many the oldest go, as they would from the store.
pub(super) fn take_refused(to: &mut VecDeque<Refused>, more: &mut VecDeque<Refused>) {
    to.append(more);
    to.drain(..to.len().saturating_sub(keep::REFUSED as usize));
}

/// What is in the transaction that is open.
pub(super) enum Noted {
    Some,
    All,
    /// So much that it is time to commit it.
    Many,
}

/// What both threads write in.
#[derive(Default)]
pub(super) struct Books {
    /// `None`: it is not open.
    pub store: Option<Connection>,
    pub answered: Answered,
}

/// Deliveries that are answered and not in the store yet.
pub(super) struct Answered {
    passed: VecDeque<Passed>,
    noted: Open,
    /// Of what is committed.
    sparing: Sparing,
    refused: VecDeque<Refused>,
    /// What was written since rows were pruned.
    touched: BTreeSet<Option<AppName>>,
    written: u32,
}

/// What is in a transaction that is open.
#[derive(Default)]
struct Open {
    /// So many of the first ones.
    rows: usize,
    /// To be told of them after its commit.
    told: Vec<Told>,
    /// With them, once it has begun.
    sparing: Option<Sparing>,
}

impl Default for Answered {
    fn default() -> Self {
        Self {
            passed: VecDeque::new(),
            noted: Open::default(),
            sparing: Sparing::default(),
            refused: VecDeque::new(),
            touched: BTreeSet::new(),
            written: PRUNE_EVERY,
        }
    }
}

impl Answered {
    pub(super) fn is_empty(&self) -> bool {
        self.passed.is_empty() && self.refused.is_empty()
    }

    /// Takes more; of too many refused ones the oldest go.
    pub(super) fn take(&mut self, passed: Vec<Passed>, mut refused: VecDeque<Refused>) {
        if self.passed.is_empty() {
            self.passed = passed.into();
        } else {
            self.passed.extend(passed);
        }
        veil::clean_all(refused.iter_mut().flat_map(|(_, row)| row.texts()));
        take_refused(&mut self.refused, &mut refused);
    }

    /// Writes the rows of a few into a transaction, which it begins.
    ///
    /// # Errors
    /// Of the store; then nothing is noted any more.
    pub(super) fn note_some(&mut self, store: &Connection, heeded: bool) -> rusqlite::Result<Noted> {
        let end = self.passed.len().min(self.noted.rows + deliveries::AT_ONCE);
        let noted = begin(store).and_then(|()| {
            let sparing = self.noted.sparing.get_or_insert_with(|| self.sparing.clone());
            veil::clean_all(self.passed.range_mut(self.noted.rows..end).flat_map(Passed::texts));
            let some = self.passed.range(self.noted.rows..end);
            deliveries::append_all(store, some.clone().map(|passed| (passed.id, &passed.row)))?;
            for passed in some {
                self.noted.told.extend(tell_of(store, passed, heeded, sparing)?);
                touch(&mut self.touched, passed);
            }
            Ok(())
        });
        if noted.is_err() {
            self.take_back(store);
        } else {
            self.noted.rows = end;
        }
        noted.map(|()| match end {
            end if end >= NOTED => Noted::Many,
            end if end == self.passed.len() => Noted::All,
            _ => Noted::Some,
        })
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
        self.noted = Open::default();
    }

    /// Writes it in one transaction. On an error nothing of it was written.
    ///
    /// # Errors
    /// Of the store, but not what a single change is refused for.
    pub(super) fn transact(
        &mut self,
        store: &Connection,
        waiting: &mut Waiting,
        contents: Contents<'_>,
    ) -> rusqlite::Result<Done> {
        match self.try_to_transact(store, waiting, contents, Care::Together) {
            Err(error) if Fault::of(&error) == Fault::Statement => {
                self.try_to_transact(store, waiting, contents, Care::Alone)
            }
            other => other,
        }
    }

    fn try_to_transact(
        &mut self,
        store: &Connection,
        waiting: &mut Waiting,
        contents: Contents<'_>,
        care: Care,
    ) -> rusqlite::Result<Done> {
        let last = contents.known.last_delivery.get();
        let done = begin(store).and_then(|()| self.fill(store, waiting, contents, care)).and_then(|done| {
            store.prepare_cached("COMMIT")?.execute([])?;
            Ok(done)
        });
        match done {
            Ok(mut done) => {
                self.finish(&mut done, waiting, contents.extent);
                Ok(done)
            }
            Err(error) => {
                contents.known.last_delivery.set(last);
                self.take_back(store);
                Err(error)
            }
        }
    }

    /// Everything inside the transaction. A single command that SQLite refuses is left out and logged,
    /// so that it never stands in the way of the others.
    fn fill(
        &mut self,
        store: &Connection,
        waiting: &Waiting,
        contents: Contents<'_>,
        care: Care,
    ) -> rusqlite::Result<Done> {
        let Contents { incoming, extent, known, heeded } = contents;
        let mut done = Done::default();
        done.tell(std::mem::take(&mut self.noted.told));
        let sparing = self.noted.sparing.get_or_insert_with(|| self.sparing.clone());
        if extent.is_everything() {
            veil::clean_all(self.passed.range_mut(self.noted.rows..).flat_map(Passed::texts));
            for passed in self.passed.range(self.noted.rows..) {
                done.tell(guarded(store, care, || note(store, passed, heeded, sparing))?.unwrap_or_default());
                touch(&mut done.touched, passed);
            }
            self.noted.rows = self.passed.len();
            for write in &waiting.writes {
                if let Some(told) = guarded(store, care, || post(store, write.put(store, known)?, known))? {
                    done.touched.insert(write.touched());
                    done.tell(told);
                }
            }
        }
        for proven in incoming {
            let kept = guarded(store, care, || {
                let mut kept = webhook::keep(store, proven, known)?;
                kept.told = post(store, kept.told, known)?;
                if extent.is_everything() {
                    kept.append_events(store)?;
                }
                Ok(kept)
            })?;
            let answer = kept.map_or_else(
                || webhook::unavailable(proven.incoming.raw.ticket),
                |kept| {
                    done.tell(kept.told);
                    done.events.extend(kept.events);
                    done.heard.count(kept.state, kept.unmatched);
                    kept.answer
                },
            );
            done.answers.push((proven.incoming.listener, answer));
        }
        if extent.has_all_answered() {
            for event in sparing.rest(known.now) {
                done.told.extend(tell(store, &event, heeded)?);
            }
        }
        if extent != Extent::Deliveries {
            self.fill_in_passing(store, waiting, &done, contents, care)?;
        }
        Ok(done)
    }

    /// What goes with a commit that is made anyhow: refused deliveries, and the removal of old rows.
    fn fill_in_passing(
        &self,
        store: &Connection,
        waiting: &Waiting,
        done: &Done,
        Contents { extent, known, .. }: Contents<'_>,
        care: Care,
    ) -> rusqlite::Result<()> {
        if extent == Extent::Trial {
            store::try_to_write(store)?;
        }
        for (number, row) in &self.refused {
            let number = number.unwrap_or_else(|| known.next_delivery());
            guarded(store, care, || deliveries::append(store, number, row))?;
        }
        if !self.refused.is_empty() {
            keep::refused(store, keep::REFUSED)?;
        }
        if extent.is_everything() && waiting.dropped > 0 {
            let lost = format!("{} events were not recorded while the store took nothing", waiting.dropped);
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
    fn finish(&mut self, done: &mut Done, waiting: &mut Waiting, extent: Extent) {
        let Open { rows, sparing, .. } = std::mem::take(&mut self.noted);
        self.passed.drain(..rows);
        if self.passed.is_empty() {
            self.passed.shrink_to(FEW);
        }
        self.sparing = sparing.filter(|_| !extent.has_all_answered()).unwrap_or_default();
        let mut rows = rows + done.answers.len();
        if extent != Extent::Deliveries {
            rows += self.refused.len();
            self.refused.clear();
            if self.written >= PRUNE_EVERY {
                self.written = 0;
                self.touched.clear();
            }
        }
        if extent.is_everything() {
            rows += waiting.changes();
            waiting.done();
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
fn note(store: &Connection, passed: &Passed, heeded: bool, sparing: &mut Sparing) -> rusqlite::Result<Vec<Told>> {
    deliveries::append(store, passed.id, &passed.row)?;
    tell_of(store, passed, heeded, sparing)
}

/// Writes the events of what was answered already.
fn tell_of(store: &Connection, passed: &Passed, heeded: bool, sparing: &mut Sparing) -> rusqlite::Result<Vec<Told>> {
    let mut told = Vec::new();
    for app in passed.apps().filter(|app| sparing.tells(*app)) {
        told.extend(tell(store, &passed.event(app), heeded)?);
    }
    Ok(told)
}

/// Writes an event; tells of it where that is heeded.
fn tell(store: &Connection, event: &NewEvent, heeded: bool) -> rusqlite::Result<Option<Told>> {
    if heeded {
        return journal::append_event(store, event).map(|event| Some(Told::Event(event)));
    }
    journal::insert_event(store, event).map(|()| None)
}

/// These apps got rows.
fn touch(touched: &mut BTreeSet<Option<AppName>>, passed: &Passed) {
    touched.extend(passed.apps().map(Option::<&_>::cloned));
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
