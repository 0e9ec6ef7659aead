//! The thread: one round takes everything that is there, writes it in one transaction, and answers
//! and tells after the commit.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    os::fd::AsFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::poll::PollTimeout;
use rusqlite::Connection;

use super::{
    Inbox, Tell,
    books::{Books, Contents, Done},
    clerk::Desk,
    hooks::{Arrived, Hooks},
    queries,
    say::{Command, Query, Told},
    store::{self, Fault, StoreError},
    tokens,
    waiting::{Extent, Waiting},
    webhook::{self, Incoming, Proven, Reading},
    write::{Known, Write},
};
use crate::{
    domain::{
        api::DeliveryState,
        deploy::accept::Snapshot,
        model::{AppName, At, CommitId, DeliveryId, DeployId},
    },
    os::memory,
};

/// How often a store that takes nothing is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Writes that may wait for a store that takes nothing; then events are dropped and counted.
const MOST_WAITING: usize = 10_000;

/// Everything the thread knows.
pub(super) struct State {
    path: PathBuf,
    tell: Arc<Tell>,
    inbox: Arc<Inbox>,
    desk: Arc<Desk>,
    hooks: Hooks,
    snapshot: Arc<Snapshot>,
    /// Apps whose deploys are told to a forge.
    telling: BTreeSet<AppName>,
    live: BTreeMap<AppName, CommitId>,
    /// New deploys get higher numbers.
    above: DeployId,
    waiting: Waiting,
    /// Free memory goes back once what waits is written.
    giving_back: bool,
    queries: Vec<(u64, Query)>,
    /// The last number that a delivery was given; `None` while no store says it.
    last_delivery: Option<DeliveryId>,
    /// The store took nothing at the last try; when it is tried again.
    trouble: Option<Instant>,
    closing: bool,
}

impl State {
    pub(super) fn new(path: PathBuf, tell: Arc<Tell>, inbox: Arc<Inbox>, desk: Arc<Desk>) -> Self {
        Self {
            path,
            tell,
            inbox,
            desk,
            hooks: Hooks::default(),
            snapshot: Arc::default(),
            telling: BTreeSet::new(),
            live: BTreeMap::new(),
            above: 0,
            waiting: Waiting::default(),
            giving_back: false,
            queries: Vec::new(),
            last_delivery: None,
            trouble: None,
            closing: false,
        }
    }

    pub(super) fn run(mut self) {
        let desk = Arc::clone(&self.desk);
        self.open(&mut desk.books());
        while !self.closing {
            let woken = self.hooks.wait(self.inbox.wake.as_fd(), self.timeout());
            let arrived = self.hooks.take(now());
            // After them: whoever was told that a reload is done and then pushes is judged by the new config.
            for command in self.inbox.take(woken) {
                self.sort(command);
            }
            self.round(arrived);
            if std::mem::take(&mut self.giving_back) {
                let shrunk = desk.books().store.as_ref().map(|store| store.execute_batch("PRAGMA shrink_memory"));
                if let Some(Err(error)) = shrunk {
                    tracing::warn!("{}: keeps its cache: {error}", self.path.display());
                }
                memory::give_back();
            }
        }
        desk.close();
        let store = desk.books().store.take();
        if let Some(Err((_, error))) = store.map(Connection::close) {
            tracing::error!("{}: {error}", self.path.display());
        }
    }

    /// Nothing to wait for but what wakes us, unless the disk is to be tried again.
    fn timeout(&self) -> PollTimeout {
        let Some(due) = self.trouble.or(self.waiting.due()) else { return PollTimeout::NONE };
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
                self.waiting.put_off(Write::Telling(apps));
            }
            Command::Live { app, commit: Some(commit) } => drop(self.live.insert(app, commit)),
            Command::Live { app, commit: None } => drop(self.live.remove(&app)),
            Command::Rename { old, new } => {
                if let Some(commit) = self.live.remove(&old) {
                    self.live.insert(new.clone(), commit);
                }
                self.waiting.put_off(Write::Rename { old, new });
            }
            Command::Above(id) => self.above = self.above.max(id),
            Command::NewDeploy(new) => self.waiting.put_off(Write::NewDeploy(new)),
            Command::Redeliver { ticket, id } => self.waiting.put_off(Write::Redeliver { ticket, id }),
            Command::Update { deploy, attempts, ticket } => {
                self.waiting.put_off(Write::Update { deploy, attempts, tickets: ticket.into_iter().collect() });
            }
            Command::Event(_) if self.waiting.changes() >= MOST_WAITING && self.trouble.is_some() => {
                self.waiting.dropped += 1;
            }
            Command::Event(new) => self.waiting.put_off(Write::Event(new)),
            Command::Audit(new) => self.waiting.put_off(Write::Audit(new)),
            Command::NewToken { ticket, token } => self.waiting.put_off(Write::NewToken { ticket, token }),
            Command::RevokeToken { ticket, name } => self.waiting.put_off(Write::RevokeToken { ticket, name }),
            Command::Forget { letter } => self.waiting.put_off(Write::Forget { letter }),
            Command::Wait { apps, by } => self.waiting.put_off(Write::Wait { apps, by }),
            Command::Query { ticket, query } => self.queries.push((ticket, query)),
            Command::Health => self.hooks.healthy(),
            Command::GiveBack => {
                self.waiting.hurry();
                self.giving_back = true;
            }
            Command::Close => self.closing = true,
        }
    }

    fn round(&mut self, arrived: Arrived) {
        if arrived.health {
            (self.tell)(Told::Health);
        }
        let snapshot = Arc::clone(&self.snapshot);
        let (proven, mut gone) = self.hear(&arrived.deliveries, &snapshot);
        if self.trouble.is_some_and(|again| Instant::now() < again && !self.closing) {
            self.answer(&turned_away(&proven));
        } else if let Some(extent) = self.extent(&proven) {
            let desk = Arc::clone(&self.desk);
            let mut books = desk.books();
            let done = self.write(&mut books, &proven, extent);
            self.answer(&done);
            gone.append(&mut self.hooks.flush());
            // With the books in hand, so that nobody tells of later rows before.
            for told in done.told {
                (self.tell)(told);
            }
        }
        drop(proven);
        self.hooks.forget(arrived.deliveries);
        gone.append(&mut self.hooks.flush());
        for listener in arrived.closed.into_iter().chain(gone) {
            (self.tell)(Told::ChannelClosed { listener });
        }
        self.answer_queries();
    }

    fn answer(&mut self, done: &Done) {
        for (listener, answer) in &done.answers {
            self.hooks.answer(*listener, answer);
        }
    }

    /// Answers what needs no store, and returns what does, and the listeners that are gone.
    fn hear<'a>(&mut self, incoming: &'a [Incoming], snapshot: &'a Snapshot) -> (Vec<Proven<'a>>, Vec<usize>) {
        let (mut kept, mut passed, mut refused) = (Vec::new(), Vec::new(), VecDeque::new());
        for one in incoming {
            match webhook::read(one, snapshot) {
                Reading::Refused { answer, row } => {
                    self.hooks.answer(one.listener, &answer);
                    self.inbox.heard().count(DeliveryState::Refused, false);
                    self.last_delivery = self.last_delivery.map(|last| last + 1);
                    refused.push_back((self.last_delivery, row));
                }
                Reading::Proven(proven) => {
                    // While the store takes nothing, nobody is told that it will.
                    let number = self.last_delivery.filter(|_| self.trouble.is_none()).map(|last| last + 1);
                    match number.and_then(|number| webhook::pass(&proven, snapshot, number)) {
                        Some((answer, one_passed)) => {
                            self.hooks.answer(one.listener, &answer);
                            self.last_delivery = number;
                            self.inbox.heard().count(one_passed.row.state, one_passed.unmatched);
                            passed.push(one_passed);
                        }
                        None => kept.push(proven),
                    }
                }
            }
        }
        // These wait for no commit.
        let gone = self.hooks.flush();
        if !passed.is_empty() || !refused.is_empty() {
            self.desk.hand_over(&mut passed, &mut refused);
        }
        (kept, gone)
    }

    /// Is it time to write, and what?
    fn extent(&self, incoming: &[Proven<'_>]) -> Option<Extent> {
        if self.trouble.is_some() {
            return Some(Extent::Trial);
        }
        // Whoever asks wants to see all there is.
        let asked = !self.queries.is_empty() || self.closing;
        if asked || self.desk.needs_help() { Some(Extent::All) } else { self.waiting.extent(!incoming.is_empty()) }
    }

    fn write(&mut self, books: &mut Books, incoming: &[Proven<'_>], extent: Extent) -> Done {
        self.open(books);
        if extent.is_everything() {
            self.desk.empty_tray(&mut books.answered);
        }
        match self.transact(books, incoming, extent) {
            None => turned_away(incoming),
            Some(Ok(done)) => self.finish(done, extent),
            Some(Err(error)) if Fault::of(&error) == Fault::Damaged => {
                self.begin_anew(books, &error);
                match self.transact(books, incoming, extent) {
                    Some(Ok(done)) => self.finish(done, extent),
                    Some(Err(error)) => self.give_up(books, &error, incoming),
                    None => turned_away(incoming),
                }
            }
            Some(Err(error)) => self.give_up(books, &error, incoming),
        }
    }

    /// `None`: no store is open.
    fn transact(
        &mut self,
        books: &mut Books,
        incoming: &[Proven<'_>],
        extent: Extent,
    ) -> Option<rusqlite::Result<Done>> {
        let Self { waiting, snapshot, live, telling, last_delivery, .. } = self;
        let Books { store, answered } = books;
        let last = Cell::new(last_delivery.unwrap_or_default());
        let known = Known { snapshot, live, telling, now: now(), last_delivery: &last };
        let done = answered.transact(store.as_ref()?, waiting, Contents { incoming, extent, known });
        *last_delivery = last_delivery.map(|_| last.get());
        Some(done)
    }

    /// After a commit.
    fn finish(&mut self, mut done: Done, extent: Extent) -> Done {
        self.inbox.committed();
        self.inbox.heard().add(done.heard);
        for event in std::mem::take(&mut done.events) {
            self.waiting.put_off(Write::Event(event));
        }
        if extent.is_everything() {
            self.desk.set_stuck(false);
        }
        if self.trouble.take().is_some() {
            tracing::info!("{}: takes what comes again", self.path.display());
            done.told.insert(0, Told::Recovered);
        }
        done
    }

    /// The store takes nothing now: everything waits but the deliveries, which are answered.
    fn give_up(&mut self, books: &mut Books, error: &rusqlite::Error, incoming: &[Proven<'_>]) -> Done {
        // What failed in the disk's hands is better opened again; a full one can still be read.
        if error.sqlite_error_code() != Some(rusqlite::ErrorCode::DiskFull) {
            close_store(books);
        }
        self.begin_trouble(format!("{}: {error}", self.path.display()));
        turned_away(incoming)
    }

    fn begin_trouble(&mut self, message: String) {
        let again = Instant::now() + RETRY;
        self.desk.set_stuck(true);
        if self.trouble.replace(again).is_none() {
            tracing::error!("{message}");
            (self.tell)(Told::Trouble { message });
        }
        if self.closing && self.waiting.changes() > 0 {
            tracing::error!("{} changes were not stored", self.waiting.changes());
        }
    }

    /// Deliveries are numbered on from the last one in the store, and the last one that was answered.
    fn count_deliveries(&mut self, store: &Connection) {
        if let Ok(stored) = store::last_number(store, "deliveries") {
            self.last_delivery = Some(stored.max(self.last_delivery.unwrap_or_default()));
        }
    }

    /// Opens the store where it is not open.
    fn open(&mut self, books: &mut Books) {
        if books.store.is_none() {
            match store::open(&self.path, now()) {
                Ok((store, alert)) => self.take_store(books, store, alert),
                Err(error) => self.begin_trouble(error.to_string()),
            }
        }
        if let Some(store) = books.store.as_ref().filter(|_| self.above > 0) {
            // By itself, whatever becomes of what was begun.
            books.answered.take_back(store);
            match store::count_from(store, "deploys", self.above) {
                Ok(()) => self.above = 0,
                Err(error) => tracing::error!("{}: {error}", self.path.display()),
            }
        }
    }

    fn take_store(&mut self, books: &mut Books, store: Connection, alert: Option<String>) {
        match tokens::all(&store) {
            Ok(tokens) => (self.tell)(Told::Tokens(tokens)),
            Err(error) => tracing::error!("{}: the tokens cannot be read: {error}", self.path.display()),
        }
        self.count_deliveries(&store);
        books.store = Some(store);
        if let Some(message) = alert {
            tracing::error!("{message}");
            (self.tell)(Told::Alert { message });
        }
    }

    /// Moves a database that turned out to be damaged aside and begins a fresh one, whose numbers go on.
    fn begin_anew(&mut self, books: &mut Books, error: &rusqlite::Error) {
        let last = |table| books.store.as_ref().and_then(|store| store::last_number(store, table).ok()).unwrap_or(0);
        let (deploys, deliveries) = (last("deploys"), last("deliveries"));
        close_store(books);
        let fresh = store::move_aside(&self.path, now(), error).and_then(|alert| {
            let (store, _) = store::open(&self.path, now())?;
            let sql = |source| StoreError::Sql { path: self.path.clone(), source };
            store::count_from(&store, "deploys", deploys).map_err(sql)?;
            store::count_from(&store, "deliveries", deliveries).map_err(sql)?;
            Ok((store, alert))
        });
        match fresh {
            Ok((store, alert)) => self.take_store(books, store, Some(alert)),
            Err(error) => self.begin_trouble(error.to_string()),
        }
    }

    fn answer_queries(&mut self) {
        if self.queries.is_empty() {
            return;
        }
        let desk = Arc::clone(&self.desk);
        let mut books = desk.books();
        // What a store that takes nothing still holds need not be sent again.
        let gone = self.waiting.forgotten();
        for (ticket, mut query) in std::mem::take(&mut self.queries) {
            if let Query::Letters { n, .. } = &mut query {
                *n += gone.len();
            }
            let Some(store) = &books.store else {
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
                    self.begin_anew(&mut books, &error);
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

fn close_store(books: &mut Books) {
    books.store = None;
    books.answered.forget_noted();
}

/// The answers to these without the store: they may come again later.
fn turned_away(incoming: &[Proven<'_>]) -> Done {
    Done::answered(incoming.iter().map(|one| (one.incoming.listener, one.incoming.unavailable())).collect())
}

pub(super) fn now() -> At {
    // A clock before 1970 is shown as 1970.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    At(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
