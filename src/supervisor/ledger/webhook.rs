//! One delivery from its bytes to its answer. What is deployed and what repeats is decided by
//! `domain::deploy::accept`, what a forge says by `domain::hook`.

use std::{borrow::Cow, fs::File, io, os::unix::fs::FileExt};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use rusqlite::Connection;

use super::{
    super::veil,
    deliveries::{self, NewDelivery},
    deploys::{self, Same},
    journal, rows,
    say::{NewEvent, Told},
    write::Known,
};
use crate::domain::{
    api::{Answer, By, DeliveryState, DeployOf, DeployView, EventKind, Heard, MAX_BODY, ProblemView, RawDelivery},
    deploy::accept::{App, Outcome, Sender, Snapshot, Unproven, judge, outcome},
    hook::{self, Change, Dialect, Headers, Kind, Parsed, What},
    model::{AppName, At, DeliveryId, Secret},
};
use crate::os::channel::Frame;

/// Seconds after which a sender may try again while the store takes nothing.
const RETRY_AFTER: u32 = 10;
/// A name in the path is kept up to this many characters.
const NAME_SHOWN: usize = 63;

/// A request as it came over the channel.
pub(super) struct Incoming {
    pub listener: usize,
    pub at: At,
    pub raw: RawDelivery,
    /// With the headers and the body, or the memfd that holds it; `None`: it came another way.
    pub frame: Option<Frame>,
}

impl Incoming {
    /// What follows the message.
    fn frame_body(&self) -> &[u8] {
        self.frame.as_ref().map_or(&[][..], Frame::body)
    }

    /// None where they are not what was said: then nothing is proven.
    fn headers(&self) -> Headers<'_> {
        let lines = self.frame_body().get(..self.raw.headers).unwrap_or_default();
        std::str::from_utf8(lines).unwrap_or_default().into()
    }

    /// The exact bytes.
    ///
    /// # Errors
    /// When they are in a memfd that is not sealed, or not as long as was said.
    fn body(&self) -> io::Result<Cow<'_, [u8]>> {
        let Some(length) = self.raw.memfd else {
            return Ok(Cow::Borrowed(self.frame_body().get(self.raw.headers..).unwrap_or_default()));
        };
        let broken = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
        let fd = self
            .frame
            .as_ref()
            .and_then(|frame| frame.fds.first())
            .ok_or_else(|| broken("no descriptor came with the body"))?;
        let seals = fcntl(fd, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_retain)?;
        if !seals.contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_WRITE) {
            return Err(broken("the body is not sealed"));
        }
        let file = File::from(fd.try_clone()?);
        if length > MAX_BODY || file.metadata()?.len() != length as u64 {
            return Err(broken("the body's length is not the one that was said"));
        }
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Cow::Owned(bytes))
    }
}

/// The answer while the store takes nothing, or the disk does not say that it has what the store took.
pub(super) fn unavailable(ticket: u64) -> Answer {
    let detail = "the delivery could not be stored safely; send it again later";
    problem(ticket, 503, "Service Unavailable", detail, Some(RETRY_AFTER))
}

/// What a request is, before the store is asked.
pub(super) enum Reading<'a> {
    /// Not proven, or proven and not understood: an answer, and a row for the record.
    Refused {
        answer: Answer,
        row: NewDelivery,
    },
    Proven(Proven<'a>),
}

/// A delivery that proved itself.
pub(super) struct Proven<'a> {
    pub incoming: &'a Incoming,
    pub body: Cow<'a, [u8]>,
    pub dialect: Dialect,
    pub parsed: Parsed,
    pub apps: Vec<&'a App>,
}

/// Proves and parses a request.
pub(super) fn read<'a>(incoming: &'a Incoming, snapshot: &'a Snapshot) -> Reading<'a> {
    let raw = &incoming.raw;
    let headers = &incoming.headers();
    let recognised = hook::recognise(headers);
    let name = raw.app.as_deref();
    let dialect = snapshot.dialect(name, recognised.as_ref());
    let refused = |status: u16, title: &str, detail: &str, reason: String| {
        let known = name.and_then(|name| snapshot.app(name));
        let head = dialect.map(|dialect| hook::head(dialect, headers));
        let row = NewDelivery {
            sender_id: head.as_ref().and_then(|head| head.sender_id.clone()),
            dialect: dialect.map(Dialect::name),
            event: head.map(|head| head.event),
            state: DeliveryState::Refused,
            reason: Some(reason),
            apps: known.map(|app| app.name.clone()).into_iter().collect(),
            ..blank(incoming)
        };
        Reading::Refused { answer: problem(raw.ticket, status, title, detail, None), row }
    };
    let unproven = |reason: String| refused(401, "Unauthorized", "the delivery does not prove itself", reason);
    let body = match incoming.body() {
        Ok(body) => body,
        Err(error) => return unproven(format!("the body did not arrive whole: {error}")),
    };
    let request = hook::Request { headers, body: &body, at: incoming.at };
    let proves = |dialect: Option<&Dialect>, secret: &Secret| hook::proves(dialect, &request, secret, name.is_some());
    let Sender { dialect, apps } = match snapshot.proven(name, recognised.as_ref(), proves) {
        Ok(sender) => sender,
        Err(Unproven::NoneFits) => return unproven(hook::why_unproven(dialect, &request)),
        Err(why) => return unproven(why.to_string()),
    };
    match hook::parse(&dialect, hook::head(&dialect, headers), &body) {
        Ok(parsed) => Reading::Proven(Proven { incoming, body, dialect, parsed, apps }),
        Err(why) => {
            let why = why.to_string();
            refused(400, "Bad Request", &why, format!("not understood: {why}"))
        }
    }
}

/// What came of a proven delivery: to be sent and told after the commit.
pub(super) struct Kept {
    /// Its number.
    pub id: DeliveryId,
    pub answer: Answer,
    pub told: Vec<Told>,
    /// To be appended.
    pub events: Vec<NewEvent>,
    pub state: DeliveryState,
    /// No app deploys its repository.
    pub unmatched: bool,
}

impl Kept {
    /// Writes its events, where they go along with it.
    ///
    /// # Errors
    /// Of the store.
    pub(super) fn append_events(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        for event in self.events.drain(..) {
            self.told.push(Told::Event(journal::append_event(connection, &event)?));
        }
        Ok(())
    }
}

/// What a delivery that deploys nothing is recorded as.
enum Fruitless {
    Pong,
    Unmatched(String),
    Skipped(String),
    Duplicate(Option<DeliveryId>, String),
}

/// A proven delivery of which nothing comes. Where that is so whatever the store knows, it is written with the next
/// commit: its texts are moved here, as making new ones of each costs as much as its proof.
pub(super) struct Passed {
    pub id: DeliveryId,
    pub row: NewDelivery,
    /// What it says, in the words of its events.
    said: String,
    /// No app deploys its repository.
    pub unmatched: bool,
}

impl Passed {
    /// The apps that it concerns, `None` for none.
    pub(super) fn apps(&self) -> impl Iterator<Item = Option<&AppName>> {
        let none = self.row.apps.is_empty().then_some(None);
        self.row.apps.iter().map(Some).chain(none)
    }

    /// As [`NewDelivery::texts`].
    pub(super) fn texts(&mut self) -> impl Iterator<Item = &mut String> {
        self.row.texts().chain([&mut self.said])
    }

    /// What is told of it to one of these.
    pub(super) fn event(&self, app: Option<&AppName>) -> NewEvent {
        let NewDelivery { at, dialect, state, reason, .. } = &self.row;
        let words = (self.id, dialect.unwrap_or_default(), *state);
        event(*at, app, words, &self.said, reason.as_deref())
    }
}

/// What the config alone says of a proven delivery.
pub(super) enum Passing<'a> {
    Passed(Answer, Passed),
    /// The store has to be asked.
    Kept(Proven<'a>),
}

/// What the config says of a delivery.
enum Fate<'a> {
    Fruitless(Fruitless),
    /// Each change may be one for each of these apps.
    Judged(&'a [Change], Vec<&'a App>),
}

fn fate<'a>(proven: &'a Proven<'_>, snapshot: &Snapshot) -> Fate<'a> {
    let named = proven.incoming.raw.app.is_some();
    match &proven.parsed.kind {
        Kind::Ping => Fate::Fruitless(Fruitless::Pong),
        Kind::Other { why } => Fate::Fruitless(Fruitless::Skipped(why.clone())),
        Kind::Changes(changes) => match snapshot.matching(&proven.apps, named, &proven.parsed.repository) {
            Ok(apps) => Fate::Judged(changes, apps),
            Err(why) => Fate::Fruitless(Fruitless::Unmatched(format!("unmatched: {why}"))),
        },
    }
}

/// Answers where the config alone says that nothing comes of a delivery, which gets this number.
pub(super) fn pass<'a>(proven: Proven<'a>, snapshot: &Snapshot, id: DeliveryId) -> Passing<'a> {
    match unasked(&proven, snapshot) {
        Some((about, what)) => {
            let apps = concerned(&proven, about);
            let Proven { incoming, dialect, parsed, .. } = proven;
            let (answer, passed) = fruitless(incoming, &dialect, parsed, apps, what, id);
            Passing::Passed(answer, passed)
        }
        None => Passing::Kept(proven),
    }
}

/// Why nothing comes of it whatever the store knows, and the apps that it is about.
fn unasked(proven: &Proven<'_>, snapshot: &Snapshot) -> Option<(Vec<AppName>, Fruitless)> {
    match fate(proven, snapshot) {
        Fate::Fruitless(what) => Some((Vec::new(), what)),
        Fate::Judged(changes, apps) => {
            let pairs = changes.iter().flat_map(|change| apps.iter().map(move |app| (app, change)));
            let unasked = pairs.map(|(app, change)| judge(app, change, || Err(())).map(|judged| ((), judged)));
            match outcome(unasked.collect::<Result<_, ()>>().ok()?) {
                Outcome::Skipped(reason) => Some((names(&apps), Fruitless::Skipped(reason))),
                _ => None,
            }
        }
    }
}

/// Records a proven delivery and queues its deploys, inside the transaction that is open.
///
/// # Errors
/// Of the store.
pub(super) fn keep(connection: &Connection, proven: &Proven<'_>, known: Known<'_>) -> rusqlite::Result<Kept> {
    match fate(proven, known.snapshot) {
        Fate::Fruitless(what) => keep_fruitless(connection, proven, Vec::new(), what, known.next_delivery()),
        Fate::Judged(changes, apps) => judge_changes(connection, proven, changes, &apps, known, None),
    }
}

fn names(apps: &[&App]) -> Vec<AppName> {
    apps.iter().map(|app| app.name.clone()).collect()
}

/// Judges each change for each of these apps. `again`: the delivery that they repeat by hand.
pub(super) fn judge_changes(
    connection: &Connection,
    proven: &Proven<'_>,
    changes: &[Change],
    apps: &[&App],
    known: Known<'_>,
    again: Option<DeliveryId>,
) -> rusqlite::Result<Kept> {
    let sender = proven.parsed.sender_id.as_deref();
    let same = match sender {
        Some(id) => Some(Same::Sender { dialect: proven.dialect.name(), id }),
        None => again.map(Same::Delivery),
    };
    let mut judged = Vec::with_capacity(apps.len());
    for (change, app) in changes.iter().flat_map(|change| apps.iter().map(move |app| (change, app))) {
        let stored = || deploys::known(connection, &app.name, change, known.live.get(&app.name), same);
        judged.push(((change, &app.name), judge(app, change, stored)?));
    }
    let (names, id) = (names(apps), known.next_delivery());
    match outcome(judged) {
        Outcome::Accepted(accepted) => accept(connection, proven, names, &accepted, id),
        Outcome::Skipped(reason) => keep_fruitless(connection, proven, names, Fruitless::Skipped(reason), id),
        Outcome::Duplicate(of) => {
            let reason = match (of, changes) {
                (Some(of), _) => format!("repeats delivery {of}"),
                (None, [Change { after: Some(commit), .. }]) => format!("commit {} is live", commit.short()),
                (None, _) => "repeats an earlier one".to_owned(),
            };
            keep_fruitless(connection, proven, names, Fruitless::Duplicate(of, reason), id)
        }
    }
}

fn accept(
    connection: &Connection,
    proven: &Proven<'_>,
    about: Vec<AppName>,
    accepted: &[(&Change, &AppName)],
    id: DeliveryId,
) -> rusqlite::Result<Kept> {
    let Proven { incoming, dialect, parsed, .. } = proven;
    let at = incoming.at;
    let shown = accepted.first().map(|(change, _)| (*change).clone());
    let mut row = row(incoming, dialect, parsed.clone(), shown, about);
    // Its ref is fetched, and a repeat is known by its id.
    veil::clean_all([&mut row.app, &mut row.event, &mut row.sender].into_iter().flatten());
    deliveries::append(connection, id, &NewDelivery { state: DeliveryState::Accepted, ..row })?;
    deliveries::keep_body(connection, id, &without_secrets(&proven.body, &proven.apps))?;
    let mut queued = Vec::with_capacity(accepted.len());
    let mut events = Vec::with_capacity(accepted.len());
    for (change, app) in accepted {
        let mut deploy = DeployView {
            commit: change.after.clone(),
            ref_name: Some(change.ref_name.clone()),
            subject: change.subject.as_deref().map(veil::text),
            author: change.author.as_deref().map(veil::text),
            ..DeployView::new(app, By::Delivery { id }, at)
        };
        deploys::append(connection, &mut deploy, None)?;
        queued.push(deploy);
        let said = veil::text(&said(change));
        events.push(event(at, Some(app), (id, dialect.name(), DeliveryState::Accepted), &said, None));
    }
    let deploys = queued.iter().map(|deploy| DeployOf { app: deploy.app.clone(), id: deploy.id }).collect();
    let answer = success(incoming, 202, &Heard::Accepted { delivery: id, deploys });
    let told = vec![Told::Accepted { deploys: queued }];
    Ok(Kept { id, answer, told, events, state: DeliveryState::Accepted, unmatched: false })
}

fn keep_fruitless(
    connection: &Connection,
    proven: &Proven<'_>,
    about: Vec<AppName>,
    what: Fruitless,
    id: DeliveryId,
) -> rusqlite::Result<Kept> {
    let Proven { incoming, dialect, parsed, .. } = proven;
    let (mut answer, mut passed) = fruitless(incoming, dialect, parsed.clone(), concerned(proven, about), what, id);
    veil::clean_all(passed.texts().chain([&mut answer.body]));
    deliveries::append(connection, id, &passed.row)?;
    let (state, unmatched, events) =
        (passed.row.state, passed.unmatched, passed.apps().map(|app| passed.event(app)).collect());
    Ok(Kept { id, answer, told: Vec::new(), events, state, unmatched })
}

/// What has no repository yet, or is no push, concerns the app that the path names.
fn concerned(proven: &Proven<'_>, about: Vec<AppName>) -> Vec<AppName> {
    let named = if proven.incoming.raw.app.is_some() { proven.apps.first() } else { None };
    if about.is_empty() { named.iter().map(|app| app.name.clone()).collect() } else { about }
}

/// What is answered, recorded and told of a delivery that deploys nothing.
fn fruitless(
    incoming: &Incoming,
    dialect: &Dialect,
    mut parsed: Parsed,
    apps: Vec<AppName>,
    what: Fruitless,
    id: DeliveryId,
) -> (Answer, Passed) {
    let body = match &what {
        Fruitless::Pong => Heard::Pong { pong: true },
        Fruitless::Unmatched(_) => Heard::Skipped { delivery: id, skipped: "no app deploys this repository" },
        Fruitless::Skipped(reason) => Heard::Skipped { delivery: id, skipped: reason },
        Fruitless::Duplicate(of, _) => Heard::Duplicate { delivery: id, duplicate_of: *of },
    };
    let answer = success(incoming, 200, &body);
    let unmatched = matches!(what, Fruitless::Unmatched(_));
    let (state, reason, duplicate_of) = match what {
        Fruitless::Pong => (DeliveryState::Skipped, "ping".to_owned(), None),
        Fruitless::Unmatched(reason) | Fruitless::Skipped(reason) => (DeliveryState::Skipped, reason, None),
        Fruitless::Duplicate(of, reason) => (DeliveryState::Duplicate, reason, of),
    };
    // The change that stands for all.
    let change = if let Kind::Changes(changes) = &mut parsed.kind { changes.drain(..).next() } else { None };
    let said = change.as_ref().map_or_else(|| format!("event {:?}", parsed.event), said);
    let row = row(incoming, dialect, parsed, change, apps);
    let row = NewDelivery { state, reason: Some(reason), duplicate_of, ..row };
    (answer, Passed { id, row, said, unmatched })
}

/// A shorter secret may stand in a body by chance: only where it is a whole text is it meant.
const SURELY_MEANT: usize = 16;

/// The exact bytes but for the apps' secrets, which Gitee puts into the body too.
fn without_secrets<'a>(body: &'a [u8], apps: &[&App]) -> Cow<'a, [u8]> {
    let mut body = Cow::Borrowed(body);
    for secret in apps.iter().flat_map(|app| &app.secrets).map(Secret::expose).filter(|secret| !secret.is_empty()) {
        let found: Vec<usize> = memchr::memmem::find_iter(&body, secret).collect();
        for (start, end) in found.into_iter().map(|start| (start, start + secret.len())) {
            let quoted = start > 0 && body[start - 1] == b'"' && body.get(end) == Some(&b'"');
            if quoted || secret.len() >= SURELY_MEANT {
                body.to_mut()[start..end].fill(b'*');
            }
        }
    }
    body
}

fn event(
    at: At,
    app: Option<&AppName>,
    (id, dialect, state): (DeliveryId, &str, DeliveryState),
    said: &str,
    reason: Option<&str>,
) -> NewEvent {
    NewEvent {
        at,
        app: app.cloned(),
        instance: None,
        kind: EventKind::Delivery,
        from: None,
        to: Some(state.to_string()),
        cause: Some(reason.unwrap_or(said).to_owned()),
        detail: Some(format!("delivery {id} of {dialect}: {said}")),
    }
}

fn said(change: &Change) -> String {
    let Change { what, ref_name, after, deleted, .. } = change;
    let of = after.as_ref().map_or_else(|| ref_name.clone(), |commit| format!("{} to {ref_name}", commit.short()));
    match what {
        What::Push if *deleted => format!("deletion of {ref_name}"),
        What::Push => format!("push of {of}"),
        What::Release => format!("release of {ref_name}"),
        What::Pipeline => format!("pipeline of {ref_name}"),
    }
}

/// What is known of a proven delivery before it is judged.
fn row(
    incoming: &Incoming,
    dialect: &Dialect,
    parsed: Parsed,
    change: Option<Change>,
    apps: Vec<AppName>,
) -> NewDelivery {
    let blank = blank(incoming);
    let only = || if let [only] = &apps[..] { Some(only.to_string()) } else { None };
    let (ref_name, commit) = change.map(|change| (change.ref_name, change.after)).unzip();
    NewDelivery {
        sender_id: parsed.sender_id,
        app: blank.app.or_else(only),
        dialect: Some(dialect.name()),
        event: Some(parsed.event),
        ref_name,
        commit: commit.flatten(),
        sender: parsed.sender,
        apps,
        ..blank
    }
}

/// What is known of a request before anything of it is believed.
fn blank(incoming: &Incoming) -> NewDelivery {
    NewDelivery {
        sender_id: None,
        at: incoming.at,
        app: incoming.raw.app.as_ref().map(|name| name.chars().take(NAME_SHOWN).collect()),
        dialect: None,
        event: None,
        ref_name: None,
        commit: None,
        sender: None,
        address: incoming.raw.address.clone(),
        state: DeliveryState::Refused,
        reason: None,
        duplicate_of: None,
        apps: Vec::new(),
    }
}

fn success(incoming: &Incoming, status: u16, body: &Heard<'_>) -> Answer {
    Answer { ticket: incoming.raw.ticket, status, body: rows::json(body), retry_after: None }
}

fn problem(ticket: u64, status: u16, title: &str, detail: &str, retry_after: Option<u32>) -> Answer {
    let body = rows::json(&ProblemView::new(status, title, detail));
    Answer { ticket, status, body, retry_after }
}
