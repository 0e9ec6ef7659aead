//! The thread: one round takes everything that is there, writes it in one transaction, and answers
//! and tells after the commit.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    os::fd::AsFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::poll::PollTimeout;
use rusqlite::Connection;

use super::{
    Inbox,
    deliveries::{self, NewDelivery},
    deploys,
    hooks::{Arrived, Hooks},
    journal, keep, outbox, queries, redelivery,
    say::{Command, NewAudit, NewDeploy, NewEvent, Query, Told},
    store::{self, Fault, StoreError},
    tokens,
    webhook::{self, Incoming, Passed, Proven, Reading},
};
use crate::{
    domain::{
        access::MadeToken,
        api::{Answer, Deliveries, DeliveryState, DeployState, DeployView, EventKind},
        deploy::accept::Snapshot,
        model::{AppName, At, CommitId, DeliveryId, DeployId},
    },
    os::memory,
};

/// How often a store that takes nothing is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// What nothing comes of is written with the next commit, at the latest after this.
const FRUITLESS_WAIT: Duration = Duration::from_secs(1);
/// So does what nobody waits for: a delivery that comes meanwhile need not wait for a commit before its own.
const UNHURRIED_WAIT: Duration = Duration::from_millis(20);
/// Writes that may wait for a store that takes nothing; then events are dropped and counted.
const MOST_WAITING: usize = 10_000;
/// So many deliveries of which nothing comes are a commit of their own.
const PASSED: usize = 512;
/// An update of a deploy takes the place of one of the same among so many writes before it: under many
/// pushes each deploy is queued and superseded in one commit.
const NEAR: usize = 512;
/// Changes that there is room for while none waits.
const FEW: usize = 16;
/// Rows are pruned after this many commits' worth of new ones.
const PRUNE_EVERY: u32 = 500;

/// A command that changes the store.
enum Write {
    NewDeploy(NewDeploy),
    Redeliver {
        ticket: u64,
        id: DeliveryId,
    },
    /// The tickets of all that it stands for.
    Update {
        deploy: Box<DeployView>,
        attempts: u32,
        tickets: Vec<u64>,
    },
    Event(NewEvent),
    Audit(NewAudit),
    NewToken {
        ticket: u64,
        token: MadeToken,
    },
    RevokeToken {
        ticket: u64,
        name: String,
    },
    Rename {
        old: AppName,
        new: AppName,
    },
    Telling(BTreeSet<AppName>),
    Forget {
        letter: i64,
    },
    Wait {
        apps: Vec<AppName>,
        by: Duration,
    },
}

/// How the writes of a transaction stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Care {
    /// What SQLite refuses undoes the others with it.
    Together,
    /// What SQLite refuses is left out; each has a savepoint, which costs about as much as the write itself.
    Alone,
}

impl Write {
    /// Does anybody go on only once it is durable? Nobody does for what is told of the past, nor for a
    /// deploy that does not run: what is lost of its place in the queue is found again at the next start.
    fn is_waited_for(&self) -> bool {
        match self {
            Self::Update { deploy, .. } => !matches!(deploy.state, DeployState::Queued | DeployState::Superseded),
            Self::Event(_) | Self::Telling(_) | Self::Forget { .. } | Self::Wait { .. } => false,
            _ => true,
        }
    }

    /// The letter that it removes.
    fn forgets(&self) -> Option<i64> {
        if let Self::Forget { letter } = self { Some(*letter) } else { None }
    }
}

/// What one transaction did, to be answered and told after its commit.
#[derive(Default)]
struct Done {
    answers: Vec<(usize, Answer)>,
    told: Vec<Told>,
    /// What became of those that the store had to be asked about.
    heard: Deliveries,
    /// Apps that got rows, `None` for rows of no app.
    touched: BTreeSet<Option<AppName>>,
}

/// Everything the thread knows.
pub(super) struct State {
    path: PathBuf,
    tell: Box<dyn Fn(Told) + Send>,
    inbox: Arc<Inbox>,
    store: Option<Connection>,
    hooks: Hooks,
    snapshot: Arc<Snapshot>,
    /// Apps whose deploys are told to a forge.
    telling: BTreeSet<AppName>,
    live: BTreeMap<AppName, CommitId>,
    /// New deploys get higher numbers.
    above: DeployId,
    writes: VecDeque<Write>,
    /// Somebody waits for one of them.
    hurried: bool,
    /// Free memory goes back once it is.
    giving_back: bool,
    queries: Vec<(u64, Query)>,
    /// Refused deliveries that are not written yet.
    refused: VecDeque<NewDelivery>,
    /// Proven ones that are answered and not written yet.
    passed: Vec<Passed>,
    /// The last number that a delivery was given; `None` while no store says it.
    last_delivery: Option<DeliveryId>,
    /// By when whatever waits is written even if nothing else is.
    due: Option<Instant>,
    /// The store took nothing at the last try; when it is tried again.
    trouble: Option<Instant>,
    /// Events that found no place while it did.
    dropped: u64,
    touched: BTreeSet<Option<AppName>>,
    written: u32,
    closing: bool,
}

impl State {
    pub(super) fn new(path: PathBuf, tell: Box<dyn Fn(Told) + Send>, inbox: Arc<Inbox>) -> Self {
        Self {
            path,
            tell,
            inbox,
            store: None,
            hooks: Hooks::default(),
            snapshot: Arc::default(),
            telling: BTreeSet::new(),
            live: BTreeMap::new(),
            above: 0,
            writes: VecDeque::new(),
            hurried: false,
            giving_back: false,
            queries: Vec::new(),
            refused: VecDeque::new(),
            passed: Vec::new(),
            last_delivery: None,
            due: None,
            trouble: None,
            dropped: 0,
            touched: BTreeSet::new(),
            written: PRUNE_EVERY,
            closing: false,
        }
    }

    pub(super) fn run(mut self) {
        self.open();
        while !self.closing {
            self.hooks.wait(self.inbox.wake.as_fd(), self.timeout());
            let arrived = self.hooks.take(now());
            // After them: whoever was told that a reload is done and then pushes is judged by the new config.
            for command in self.inbox.take() {
                self.sort(command);
            }
            self.round(arrived);
            if std::mem::take(&mut self.giving_back) {
                memory::give_back();
            }
        }
        if let Some(Err((_, error))) = self.store.take().map(Connection::close) {
            tracing::error!("{}: {error}", self.path.display());
        }
    }

    /// Nothing to wait for but what wakes us, unless the disk is to be tried again.
    fn timeout(&self) -> PollTimeout {
        let Some(due) = self.trouble.or(self.due) else { return PollTimeout::NONE };
        let left = due.saturating_duration_since(Instant::now()).as_millis() + 1;
        u16::try_from(left).map_or(PollTimeout::MAX, PollTimeout::from)
    }

    fn sort(&mut self, command: Command) {
        match command {
            Command::Channel { listener, channel } => self.hooks.replace(listener, channel),
            Command::Snapshot(snapshot) => self.snapshot = snapshot,
            Command::Telling(apps) => {
                self.telling.clone_from(&apps);
                // After the renames that were ordered before.
                self.put_off(Write::Telling(apps));
            }
            Command::Live { app, commit: Some(commit) } => drop(self.live.insert(app, commit)),
            Command::Live { app, commit: None } => drop(self.live.remove(&app)),
            Command::Rename { old, new } => {
                if let Some(commit) = self.live.remove(&old) {
                    self.live.insert(new.clone(), commit);
                }
                self.put_off(Write::Rename { old, new });
            }
            Command::Above(id) => self.above = self.above.max(id),
            Command::NewDeploy(new) => self.put_off(Write::NewDeploy(new)),
            Command::Redeliver { ticket, id } => self.put_off(Write::Redeliver { ticket, id }),
            Command::Update { deploy, attempts, ticket } => {
                self.put_off(Write::Update { deploy, attempts, tickets: ticket.into_iter().collect() });
            }
            Command::Event(_) if self.writes.len() >= MOST_WAITING && self.trouble.is_some() => self.dropped += 1,
            Command::Event(new) => self.put_off(Write::Event(new)),
            Command::Audit(new) => self.put_off(Write::Audit(new)),
            Command::NewToken { ticket, token } => self.put_off(Write::NewToken { ticket, token }),
            Command::RevokeToken { ticket, name } => self.put_off(Write::RevokeToken { ticket, name }),
            Command::Forget { letter } => self.put_off(Write::Forget { letter }),
            Command::Wait { apps, by } => self.put_off(Write::Wait { apps, by }),
            Command::Query { ticket, query } => self.queries.push((ticket, query)),
            Command::Health => self.hooks.healthy(),
            Command::GiveBack => (self.hurried, self.giving_back) = (true, true),
            Command::Close => self.closing = true,
        }
    }

    fn put_off(&mut self, write: Write) {
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
        self.due = Some(self.due.map_or(due, |other| other.min(due)));
    }

    fn round(&mut self, arrived: Arrived) {
        if arrived.health {
            (self.tell)(Told::Health);
        }
        let snapshot = Arc::clone(&self.snapshot);
        let proven = self.hear(&arrived.deliveries, &snapshot);
        // These wait for no commit.
        let mut gone = self.hooks.flush();
        let done = self.write(&proven);
        for (listener, answer) in &done.answers {
            self.hooks.answer(*listener, answer);
        }
        gone.append(&mut self.hooks.flush());
        for told in done.told {
            (self.tell)(told);
        }
        for listener in arrived.closed.into_iter().chain(gone) {
            (self.tell)(Told::ChannelClosed { listener });
        }
        self.answer_queries();
    }

    /// Answers what needs no store, and returns what does.
    fn hear<'a>(&mut self, incoming: &'a [Incoming], snapshot: &'a Snapshot) -> Vec<Proven<'a>> {
        let mut kept = Vec::new();
        for one in incoming {
            match webhook::read(one, snapshot) {
                Reading::Refused { answer, row } => {
                    self.hooks.answer(one.listener, &answer);
                    self.remember(row);
                }
                Reading::Proven(proven) => {
                    // While the store takes nothing, nobody is told that it will.
                    let number = self.last_delivery.filter(|_| self.trouble.is_none()).map(|last| last + 1);
                    match number.and_then(|number| webhook::pass(&proven, snapshot, number)) {
                        Some((answer, passed)) => {
                            self.hooks.answer(one.listener, &answer);
                            self.last_delivery = number;
                            self.inbox.heard().count(passed.row.state, passed.unmatched);
                            self.passed.push(passed);
                            self.wait_at_most(FRUITLESS_WAIT);
                        }
                        None => kept.push(proven),
                    }
                }
            }
        }
        kept
    }

    /// Writes everything that waits, if there is something and it is time.
    fn write(&mut self, incoming: &[Proven<'_>]) -> Done {
        if self.trouble.is_some_and(|again| Instant::now() < again && !self.closing) {
            return turned_away(incoming);
        }
        self.open();
        let overdue = self.due.is_some_and(|due| due <= Instant::now());
        let asked = !self.queries.is_empty() || self.closing || overdue;
        let waits = !self.refused.is_empty() || !self.passed.is_empty() || !self.writes.is_empty();
        let many = self.passed.len() >= PASSED;
        let something = self.hurried || many || !incoming.is_empty() || (asked && waits);
        if !something && self.trouble.is_none() {
            return Done::default();
        }
        let Some(store) = &self.store else { return turned_away(incoming) };
        match self.transact(store, incoming) {
            Ok(done) => self.finish(done),
            Err(error) if Fault::of(&error) == Fault::Damaged => {
                self.begin_anew(&error);
                match self.store.as_ref().map(|store| self.transact(store, incoming)) {
                    Some(Ok(done)) => self.finish(done),
                    Some(Err(error)) => self.give_up(&error, incoming),
                    None => turned_away(incoming),
                }
            }
            Err(error) => self.give_up(&error, incoming),
        }
    }

    fn transact(&self, store: &Connection, incoming: &[Proven<'_>]) -> rusqlite::Result<Done> {
        match self.try_to_transact(store, incoming, Care::Together) {
            Err(error) if Fault::of(&error) == Fault::Statement => self.try_to_transact(store, incoming, Care::Alone),
            other => other,
        }
    }

    fn try_to_transact(&self, store: &Connection, incoming: &[Proven<'_>], care: Care) -> rusqlite::Result<Done> {
        store.prepare_cached("BEGIN")?.execute([])?;
        let done = self.fill(store, incoming, care).and_then(|done| {
            store.prepare_cached("COMMIT")?.execute([])?;
            Ok(done)
        });
        if done.is_err() && !store.is_autocommit() {
            // A failed statement may have ended the transaction; if not, this does.
            if let Err(error) = store.execute_batch("ROLLBACK") {
                tracing::error!("{}: {error}", self.path.display());
            }
        }
        done
    }

    /// Everything inside the transaction. A single command that SQLite refuses is left out and logged,
    /// so that it never stands in the way of the others.
    fn fill(&self, store: &Connection, incoming: &[Proven<'_>], care: Care) -> rusqlite::Result<Done> {
        let mut done = Done::default();
        // Before whatever is given the numbers after theirs.
        for passed in &self.passed {
            let told = guarded(store, care, || note(store, passed))?.unwrap_or_default();
            done.touched.extend(told.iter().filter_map(subject));
            done.told.extend(told);
        }
        for write in &self.writes {
            if let Some(told) = guarded(store, care, || self.post(store, self.put(store, write)?))? {
                done.touched.insert(touched(write));
                done.touched.extend(told.iter().filter_map(subject));
                done.told.extend(told);
            }
        }
        for proven in incoming {
            let kept = guarded(store, care, || {
                let mut kept = webhook::keep(store, proven, &self.snapshot, &self.live)?;
                kept.told = self.post(store, kept.told)?;
                Ok(kept)
            })?;
            let answer = kept.map_or_else(
                || proven.incoming.unavailable(),
                |kept| {
                    done.touched.extend(kept.told.iter().filter_map(subject));
                    done.told.extend(kept.told);
                    done.heard.count(kept.state, kept.unmatched);
                    kept.answer
                },
            );
            done.answers.push((proven.incoming.listener, answer));
        }
        self.fill_in_passing(store, &done, care)?;
        Ok(done)
    }

    /// What goes with a commit that is made anyhow: refused deliveries, and the removal of old rows.
    fn fill_in_passing(&self, store: &Connection, done: &Done, care: Care) -> rusqlite::Result<()> {
        if self.trouble.is_some() {
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
                at: now(),
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
            keep::prune(store, now(), &touched)?;
            outbox::prune(store, touched.iter().flatten())?;
        }
        Ok(())
    }

    fn put(&self, store: &Connection, write: &Write) -> rusqlite::Result<Vec<Told>> {
        Ok(match write {
            Write::NewDeploy(new) => {
                let mut deploy = DeployView::new(&new.app, new.by.clone(), now());
                deploy.ref_name.clone_from(&new.ref_name);
                deploy.commit.clone_from(&new.commit);
                deploy.release.clone_from(&new.release);
                deploy.approved_by.clone_from(&new.approved_by);
                deploys::append(store, &mut deploy, new.rev.as_deref())?;
                vec![Told::Queued { ticket: new.ticket, deploy: Box::new(deploy) }]
            }
            Write::Update { deploy, attempts, tickets } => {
                let tells = self.telling.contains(&deploy.app);
                let before = if tells { deploys::row(store, deploy.id)? } else { None };
                deploys::update(store, deploy, *attempts)?;
                let mail = tells && outbox::note(store, before.as_ref(), deploy)?;
                let mail = mail.then(|| Told::Mail { app: deploy.app.clone() });
                tickets.iter().map(|ticket| Told::Committed { ticket: *ticket }).chain(mail).collect()
            }
            Write::Redeliver { ticket, id } => {
                redelivery::redeliver(store, *ticket, *id, &self.snapshot, &self.live, now())?
            }
            Write::Event(new) => vec![Told::Event(journal::append_event(store, new)?)],
            Write::Audit(new) => {
                journal::append_audit(store, new)?;
                Vec::new()
            }
            Write::NewToken { ticket, token } => tokens::append(store, *ticket, token)?,
            Write::RevokeToken { ticket, name } => tokens::remove(store, *ticket, name)?,
            Write::Rename { old, new } => {
                super::rows::rename(store, old, new)?;
                vec![Told::Tokens(tokens::all(store)?)]
            }
            Write::Telling(apps) => {
                outbox::keep_of(store, apps)?;
                Vec::new()
            }
            Write::Forget { letter } => {
                outbox::forget(store, *letter)?;
                Vec::new()
            }
            Write::Wait { apps, by } => {
                outbox::wait(store, apps, *by)?;
                Vec::new()
            }
        })
    }

    /// Notes for their forges what was told of new deploys.
    fn post(&self, store: &Connection, mut told: Vec<Told>) -> rusqlite::Result<Vec<Told>> {
        if self.telling.is_empty() {
            return Ok(told);
        }
        let mut mail = Vec::new();
        for new in told.iter().flat_map(new_deploys).filter(|deploy| self.telling.contains(&deploy.app)) {
            if outbox::note(store, None, new)? {
                mail.push(Told::Mail { app: new.app.clone() });
            }
        }
        told.append(&mut mail);
        Ok(told)
    }

    /// After a commit.
    fn finish(&mut self, mut done: Done) -> Done {
        #[cfg(test)]
        self.inbox.commits.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if self.written >= PRUNE_EVERY {
            self.written = 0;
            self.touched.clear();
        }
        let rows = self.writes.len() + self.refused.len() + self.passed.len() + done.answers.len();
        self.written = self.written.saturating_add(u32::try_from(rows).unwrap_or(u32::MAX));
        self.touched.append(&mut done.touched);
        self.writes.clear();
        self.writes.shrink_to(FEW);
        self.dropped = 0;
        self.refused.clear();
        self.passed.clear();
        self.count_deliveries();
        self.hurried = false;
        self.due = None;
        self.inbox.heard().add(done.heard);
        if self.trouble.take().is_some() {
            tracing::info!("{}: takes what comes again", self.path.display());
            done.told.insert(0, Told::Recovered);
        }
        done
    }

    /// The store takes nothing now: everything waits but the deliveries, which are answered.
    fn give_up(&mut self, error: &rusqlite::Error, incoming: &[Proven<'_>]) -> Done {
        // What failed in the disk's hands is better opened again; a full one can still be read.
        if error.sqlite_error_code() != Some(rusqlite::ErrorCode::DiskFull) {
            self.store = None;
        }
        self.begin_trouble(format!("{}: {error}", self.path.display()));
        turned_away(incoming)
    }

    fn begin_trouble(&mut self, message: String) {
        let again = Instant::now() + RETRY;
        if self.trouble.replace(again).is_none() {
            tracing::error!("{message}");
            (self.tell)(Told::Trouble { message });
        }
        if self.closing && !self.writes.is_empty() {
            tracing::error!("{} changes were not stored", self.writes.len());
        }
    }

    /// Refused deliveries wait for the next commit; the oldest go when there are too many.
    fn remember(&mut self, refused: NewDelivery) {
        self.wait_at_most(FRUITLESS_WAIT);
        self.inbox.heard().count(DeliveryState::Refused, false);
        self.refused.push_back(refused);
        while self.refused.len() > keep::REFUSED as usize {
            self.refused.pop_front();
        }
    }

    /// Deliveries are numbered on from the last one in the store, and the last one that was answered.
    fn count_deliveries(&mut self) {
        let stored = self.store.as_ref().and_then(|store| store::last_number(store, "deliveries").ok());
        self.last_delivery = stored.map(|stored| stored.max(self.last_delivery.unwrap_or(0)));
    }

    /// Opens the store where it is not open.
    fn open(&mut self) {
        if self.store.is_none() {
            match store::open(&self.path, now()) {
                Ok((store, alert)) => self.take_store(store, alert),
                Err(error) => self.begin_trouble(error.to_string()),
            }
        }
        if let Some(store) = self.store.as_ref().filter(|_| self.above > 0) {
            match store::count_from(store, "deploys", self.above) {
                Ok(()) => self.above = 0,
                Err(error) => tracing::error!("{}: {error}", self.path.display()),
            }
        }
    }

    fn take_store(&mut self, store: Connection, alert: Option<String>) {
        match tokens::all(&store) {
            Ok(tokens) => (self.tell)(Told::Tokens(tokens)),
            Err(error) => tracing::error!("{}: the tokens cannot be read: {error}", self.path.display()),
        }
        self.store = Some(store);
        self.count_deliveries();
        if let Some(message) = alert {
            tracing::error!("{message}");
            (self.tell)(Told::Alert { message });
        }
    }

    /// Moves a database that turned out to be damaged aside and begins a fresh one, whose numbers go on.
    fn begin_anew(&mut self, error: &rusqlite::Error) {
        let last = |table| self.store.as_ref().and_then(|store| store::last_number(store, table).ok()).unwrap_or(0);
        let (deploys, deliveries) = (last("deploys"), last("deliveries"));
        self.store = None;
        let fresh = store::move_aside(&self.path, now(), error).and_then(|alert| {
            let (store, _) = store::open(&self.path, now())?;
            let sql = |source| StoreError::Sql { path: self.path.clone(), source };
            store::count_from(&store, "deploys", deploys).map_err(sql)?;
            store::count_from(&store, "deliveries", deliveries).map_err(sql)?;
            Ok((store, alert))
        });
        match fresh {
            Ok((store, alert)) => self.take_store(store, Some(alert)),
            Err(error) => self.begin_trouble(error.to_string()),
        }
    }

    fn answer_queries(&mut self) {
        // What a store that takes nothing still holds need not be sent again.
        let gone: Vec<i64> = self.writes.iter().filter_map(Write::forgets).collect();
        for (ticket, mut query) in std::mem::take(&mut self.queries) {
            if let Query::Letters { n, .. } = &mut query {
                *n += gone.len();
            }
            let Some(store) = &self.store else {
                match query {
                    // These must not be taken for nothing: they are told when they are known.
                    Query::Unfinished | Query::Letters { .. } => self.queries.push((ticket, query)),
                    _ => (self.tell)(queries::unreadable(ticket, &query, "it is not open")),
                }
                continue;
            };
            let mut told = queries::answer(store, ticket, &query).unwrap_or_else(|error| {
                tracing::error!("{}: {error}", self.path.display());
                if Fault::of(&error) == Fault::Damaged {
                    self.begin_anew(&error);
                }
                queries::unreadable(ticket, &query, &error.to_string())
            });
            if let Told::Letters { letters, .. } = &mut told {
                letters.retain(|letter| !gone.contains(&letter.id));
            }
            (self.tell)(told);
        }
    }
}

/// The answers to these without the store: they may come again later.
fn turned_away(incoming: &[Proven<'_>]) -> Done {
    let answers = incoming.iter().map(|one| (one.incoming.listener, one.incoming.unavailable())).collect();
    Done { answers, ..Done::default() }
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

/// The app that a write adds rows for.
fn touched(write: &Write) -> Option<AppName> {
    match write {
        Write::NewDeploy(new) => Some(new.app.clone()),
        Write::Update { deploy, .. } => Some(deploy.app.clone()),
        Write::Event(new) => new.app.clone(),
        Write::Redeliver { .. }
        | Write::Audit(_)
        | Write::NewToken { .. }
        | Write::RevokeToken { .. }
        | Write::Telling(_)
        | Write::Forget { .. }
        | Write::Wait { .. } => None,
        Write::Rename { new, .. } => Some(new.clone()),
    }
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

fn now() -> At {
    // A clock before 1970 is shown as 1970.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    At(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
