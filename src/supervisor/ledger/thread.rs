//! The thread: one round takes everything that is there, writes it in one transaction, and answers
//! and tells after the commit.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::File,
    os::fd::AsFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::poll::PollTimeout;
use rusqlite::Connection;

use super::{
    super::veil,
    Inbox, Tell,
    books::{Books, Contents, Done},
    clerk::Desk,
    disk::{Disk, Group},
    hooks::{Arrived, Hooks},
    queries,
    say::{Command, Query, Told},
    store::{self, Fault, Opened, StoreError},
    tokens,
    waiting::{Extent, Waiting},
    webhook::{self, Incoming, Passing, Proven, Reading, unavailable},
    write::{Known, Write},
};
use crate::domain::{
    api::{Answer, DeliveryState},
    deploy::accept::Snapshot,
    model::{AppName, At, CommitId, DeliveryId, DeployId},
};

/// How often a store that takes nothing is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// So many answers do not wait for the rest of a round: whoever gets them has to do meanwhile.
const READY: usize = 16;
/// Writes that may wait for a store that takes nothing; then events are dropped and counted.
const MOST_WAITING: usize = 10_000;

/// Everything the thread knows.
pub(super) struct State {
    path: PathBuf,
    tell: Arc<Tell>,
    inbox: Arc<Inbox>,
    desk: Arc<Desk>,
    disk: Arc<Disk>,
    hooks: Hooks,
    snapshot: Arc<Snapshot>,
    /// Apps whose deploys are told to a forge.
    telling: BTreeSet<AppName>,
    live: BTreeMap<AppName, CommitId>,
    /// New deploys get higher numbers.
    above: DeployId,
    waiting: Waiting,
    /// To rest once what waits is written.
    resting: bool,
    queries: Vec<(u64, Query)>,
    /// The last number that a delivery was given; `None` while no store says it.
    last_delivery: Option<DeliveryId>,
    /// The store took nothing at the last try; when it is tried again.
    trouble: Option<Instant>,
    closing: bool,
}

impl State {
    pub(super) fn new(path: PathBuf, tell: Arc<Tell>, inbox: Arc<Inbox>, desk: Arc<Desk>, disk: Arc<Disk>) -> Self {
        Self {
            path,
            tell,
            inbox,
            desk,
            disk,
            hooks: Hooks::default(),
            snapshot: Arc::default(),
            telling: BTreeSet::new(),
            live: BTreeMap::new(),
            above: 0,
            waiting: Waiting::default(),
            resting: false,
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
            if std::mem::take(&mut self.resting) {
                self.rest();
            }
        }
        desk.close();
        let mut books = desk.books();
        self.close_log();
        let store = books.store.take();
        drop(books);
        self.disk.close();
        if let Some(Err((_, error))) = store.map(Connection::close) {
            tracing::error!("{}: {error}", self.path.display());
        }
    }

    /// Keeps nothing that can be had again, and leaves the disk's thread nothing to wake up for.
    fn rest(&self) {
        let shrunk = self.desk.books().store.as_ref().map(|store| store.execute_batch("PRAGMA shrink_memory"));
        if let Some(Err(error)) = shrunk {
            tracing::warn!("{}: keeps its cache: {error}", self.path.display());
        }
        self.disk.ask();
        (self.tell)(Told::Rests);
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
            Command::Rest => {
                self.waiting.hurry();
                self.resting = true;
            }
            Command::Close => self.closing = true,
        }
    }

    fn round(&mut self, arrived: Arrived) {
        if arrived.health {
            (self.tell)(Told::Health);
        }
        let snapshot = Arc::clone(&self.snapshot);
        let proven = self.hear(&arrived.deliveries, &snapshot);
        if self.trouble.is_some_and(|again| Instant::now() < again && !self.closing) {
            self.answer(&TurnedAway::all(&proven).0);
        } else if let Some(extent) = self.extent(&proven) {
            self.take_up(&proven, extent);
        }
        drop(proven);
        self.hooks.forget(arrived.deliveries);
        self.send();
        for listener in arrived.closed {
            (self.tell)(Told::ChannelClosed { listener });
        }
        if let Some(error) = self.disk.fault() {
            let desk = Arc::clone(&self.desk);
            self.close_store(&mut desk.books());
            self.begin_trouble(format!("{}: {error}", self.path.display()));
        }
        self.answer_queries();
    }

    /// Commits these, and what else is due.
    fn take_up(&mut self, incoming: &[Proven<'_>], extent: Extent) {
        let waited_for = incoming.len() + usize::from(self.waiting.is_hurried());
        let desk = Arc::clone(&self.desk);
        let mut books = desk.books();
        match self.write(&mut books, incoming, extent) {
            Ok(done) if waited_for == 0 && extent != Extent::Trial => self.disk.put_told(done.told, &*self.tell),
            Ok(done) => {
                self.disk.put(Group { answers: done.answers, told: done.told });
                drop(books);
                self.make_durable(waited_for, extent);
            }
            Err(TurnedAway(answers)) => self.answer(&answers),
        }
    }

    fn answer(&mut self, answers: &[(usize, Answer)]) {
        for (listener, answer) in answers {
            self.hooks.answer(*listener, answer);
        }
    }

    /// Sends the answers that are there, and those that the disk's thread left.
    fn send(&mut self) {
        let durable = self.disk.answers();
        self.answer(&durable);
        for listener in self.hooks.flush() {
            (self.tell)(Told::ChannelClosed { listener });
        }
    }

    /// Has what is committed synced: here, where one alone waits for it and nothing else is to be done meanwhile,
    /// else by the disk's thread.
    fn make_durable(&mut self, waited_for: usize, extent: Extent) {
        let disk = Arc::clone(&self.disk);
        if extent == Extent::Trial {
            let log = disk.log();
            let groups = disk.sync(log.as_ref());
            if !disk.is_faulty() {
                self.recover();
            }
            self.release(groups);
        } else if let Some(log) = disk.free_log().filter(|_| waited_for == 1 && self.hooks.is_quiet()) {
            self.settle(log.as_ref());
        } else {
            disk.ask();
        }
    }

    /// Syncs what is committed, answers and tells.
    fn settle(&mut self, log: Option<&File>) {
        let groups = self.disk.sync(log);
        self.release(groups);
    }

    fn release(&mut self, groups: Vec<Group>) {
        groups.iter().for_each(|group| self.answer(&group.answers));
        self.send();
        for told in groups.into_iter().flat_map(|group| group.told) {
            (self.tell)(told);
        }
    }

    /// Answers what needs no store, and returns what does.
    fn hear<'a>(&mut self, incoming: &'a [Incoming], snapshot: &'a Snapshot) -> Vec<Proven<'a>> {
        let (mut kept, mut passed, mut refused) = (Vec::new(), Vec::with_capacity(incoming.len()), VecDeque::new());
        let mut answers = Vec::with_capacity(incoming.len());
        for one in incoming {
            if answers.len() == READY {
                self.answer_now(&mut answers);
            }
            match webhook::read(one, snapshot) {
                Reading::Refused { answer, row } => {
                    answers.push((one.listener, answer));
                    self.inbox.heard().count(DeliveryState::Refused, false);
                    self.last_delivery = self.last_delivery.map(|last| last + 1);
                    refused.push_back((self.last_delivery, row));
                }
                Reading::Proven(proven) => {
                    // While the store takes nothing, nobody is told that it will.
                    let number = self.last_delivery.filter(|_| self.trouble.is_none()).map(|last| last + 1);
                    let passing = match number {
                        Some(number) => webhook::pass(proven, snapshot, number),
                        None => Passing::Kept(proven),
                    };
                    match passing {
                        Passing::Passed(answer, one_passed) => {
                            answers.push((one.listener, answer));
                            self.last_delivery = number;
                            self.inbox.heard().count(one_passed.row.state, one_passed.unmatched);
                            passed.push(one_passed);
                        }
                        Passing::Kept(proven) => kept.push(proven),
                    }
                }
            }
        }
        self.answer_now(&mut answers);
        if !passed.is_empty() || !refused.is_empty() {
            self.desk.hand_over(&mut passed, &mut refused);
        }
        kept
    }

    /// Sends answers that wait for no commit.
    fn answer_now(&mut self, answers: &mut Vec<(usize, Answer)>) {
        veil::clean_all(answers.iter_mut().map(|(_, answer)| &mut answer.body));
        self.answer(answers);
        answers.clear();
        self.send();
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

    fn write(&mut self, books: &mut Books, incoming: &[Proven<'_>], extent: Extent) -> Result<Done, TurnedAway> {
        self.open(books);
        if extent.is_everything() {
            self.desk.empty_tray(&mut books.answered);
        }
        let mut done = self.transact(books, incoming, extent);
        if let Some(Err(error)) = &done
            && Fault::of(error) == Fault::Damaged
        {
            self.begin_anew(books, error);
            done = self.transact(books, incoming, extent);
        }
        match done {
            Some(Ok(done)) => Ok(self.finish(done, extent)),
            Some(Err(error)) => Err(self.give_up(books, &error, incoming)),
            None => Err(TurnedAway::all(incoming)),
        }
    }

    /// `None`: no store is open.
    fn transact(
        &mut self,
        books: &mut Books,
        incoming: &[Proven<'_>],
        extent: Extent,
    ) -> Option<rusqlite::Result<Done>> {
        let heeded = self.inbox.is_heeded();
        let Self { waiting, snapshot, live, telling, last_delivery, .. } = self;
        let Books { store, answered } = books;
        let last = Cell::new(last_delivery.unwrap_or_default());
        let known = Known { snapshot, live, telling, now: now(), last_delivery: &last };
        let done = answered.transact(store.as_ref()?, waiting, Contents { incoming, extent, known, heeded });
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
        done
    }

    /// After a trial of the disk.
    fn recover(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!("{}: takes what comes again", self.path.display());
            (self.tell)(Told::Recovered);
        }
    }

    /// The store takes nothing now: everything waits but the deliveries, which are answered.
    fn give_up(&mut self, books: &mut Books, error: &rusqlite::Error, incoming: &[Proven<'_>]) -> TurnedAway {
        // What failed in the disk's hands is better opened again; a full one can still be read.
        if error.sqlite_error_code() != Some(rusqlite::ErrorCode::DiskFull) {
            self.close_store(books);
        }
        self.begin_trouble(format!("{}: {error}", self.path.display()));
        TurnedAway::all(incoming)
    }

    fn close_log(&mut self) {
        let disk = Arc::clone(&self.disk);
        let mut log = disk.log();
        self.settle(log.as_ref());
        *log = None;
    }

    fn close_store(&mut self, books: &mut Books) {
        self.close_log();
        books.store = None;
        books.answered.forget_noted();
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
                Ok(opened) => self.take_store(books, opened),
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

    fn take_store(&mut self, books: &mut Books, Opened { store, log, alert }: Opened) {
        match tokens::all(&store) {
            Ok(tokens) => (self.tell)(Told::Tokens(tokens)),
            Err(error) => tracing::error!("{}: the tokens cannot be read: {error}", self.path.display()),
        }
        self.count_deliveries(&store);
        *self.disk.log() = Some(log);
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
        self.close_store(books);
        let fresh = store::move_aside(&self.path, now(), error).and_then(|alert| {
            let opened = store::open(&self.path, now())?;
            let sql = |source| StoreError::Sql { path: self.path.clone(), source };
            store::count_from(&opened.store, "deploys", deploys).map_err(sql)?;
            store::count_from(&opened.store, "deliveries", deliveries).map_err(sql)?;
            Ok(Opened { alert: Some(alert), ..opened })
        });
        match fresh {
            Ok(opened) => self.take_store(books, opened),
            Err(error) => self.begin_trouble(error.to_string()),
        }
    }

    fn answer_queries(&mut self) {
        if self.queries.is_empty() {
            return;
        }
        let desk = Arc::clone(&self.desk);
        let mut books = desk.books();
        // What is told of the same rows comes before.
        if self.disk.is_waited_for() {
            let disk = Arc::clone(&self.disk);
            self.settle(disk.log().as_ref());
        }
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

/// The answers to deliveries that the store does not take: they may come again later.
struct TurnedAway(Vec<(usize, Answer)>);

impl TurnedAway {
    fn all(incoming: &[Proven<'_>]) -> Self {
        let answers = incoming.iter().map(|Proven { incoming: one, .. }| (one.listener, unavailable(one.raw.ticket)));
        Self(answers.collect())
    }
}

pub(super) fn now() -> At {
    // A clock before 1970 is shown as 1970.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    At(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
