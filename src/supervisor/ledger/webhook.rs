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
            dialect: dialect.map(|dialect| dialect.name().to_owned()),
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

/// A proven delivery of which nothing comes, whatever the store knows: written with the next commit.
pub(super) struct Passed {
    pub id: DeliveryId,
    pub row: NewDelivery,
    pub events: Vec<NewEvent>,
    /// No app deploys its repository.
    pub unmatched: bool,
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

/// The answer where the config alone says that nothing comes of a delivery, which gets this number. `None`: the
/// store has to be asked.
pub(super) fn pass(proven: &Proven<'_>, snapshot: &Snapshot, id: DeliveryId) -> Option<(Answer, Passed)> {
    let (apps, what) = match fate(proven, snapshot) {
        Fate::Fruitless(what) => (Vec::new(), what),
        Fate::Judged(changes, apps) => {
            let pairs = changes.iter().flat_map(|change| apps.iter().map(move |app| (app, change)));
            let unasked = pairs.map(|(app, change)| judge(app, change, || Err(())).map(|judged| ((), judged)));
            match outcome(unasked.collect::<Result<_, ()>>().ok()?) {
                Outcome::Skipped(reason) => (names(&apps), Fruitless::Skipped(reason)),
                _ => return None,
            }
        }
    };
    let (row, apps) = fruitless_row(proven, &apps, &what);
    let (answer, events) = fruitless_words(proven, id, &apps, &what);
    Some((answer, Passed { id, row, events, unmatched: what.is_unmatched() }))
}

/// Records a proven delivery and queues its deploys, inside the transaction that is open.
///
/// # Errors
/// Of the store.
pub(super) fn keep(connection: &Connection, proven: &Proven<'_>, known: Known<'_>) -> rusqlite::Result<Kept> {
    match fate(proven, known.snapshot) {
        Fate::Fruitless(what) => fruitless(connection, proven, &[], &what, known.next_delivery()),
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
        Outcome::Accepted(accepted) => accept(connection, proven, &names, &accepted, id),
        Outcome::Skipped(reason) => fruitless(connection, proven, &names, &Fruitless::Skipped(reason), id),
        Outcome::Duplicate(of) => {
            let reason = match (of, changes) {
                (Some(of), _) => format!("repeats delivery {of}"),
                (None, [Change { after: Some(commit), .. }]) => format!("commit {} is live", commit.short()),
                (None, _) => "repeats an earlier one".to_owned(),
            };
            fruitless(connection, proven, &names, &Fruitless::Duplicate(of, reason), id)
        }
    }
}

fn accept(
    connection: &Connection,
    proven: &Proven<'_>,
    about: &[AppName],
    accepted: &[(&Change, &AppName)],
    id: DeliveryId,
) -> rusqlite::Result<Kept> {
    let at = proven.incoming.at;
    let shown = accepted.first().map(|(change, _)| *change);
    deliveries::append(connection, id, &row(proven, shown, DeliveryState::Accepted, None, None, about))?;
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
        events.push(event(proven, Some(change), id, Some(app), DeliveryState::Accepted, None));
    }
    let deploys = queued.iter().map(|deploy| DeployOf { app: deploy.app.clone(), id: deploy.id }).collect();
    let answer = success(proven, 202, &Heard::Accepted { delivery: id, deploys });
    let told = vec![Told::Accepted { deploys: queued }];
    Ok(Kept { id, answer, told, events, state: DeliveryState::Accepted, unmatched: false })
}

fn fruitless(
    connection: &Connection,
    proven: &Proven<'_>,
    about: &[AppName],
    what: &Fruitless,
    id: DeliveryId,
) -> rusqlite::Result<Kept> {
    let (row, apps) = fruitless_row(proven, about, what);
    deliveries::append(connection, id, &row)?;
    let (answer, events) = fruitless_words(proven, id, &apps, what);
    Ok(Kept { id, answer, told: Vec::new(), events, state: what.state(), unmatched: what.is_unmatched() })
}

impl Fruitless {
    fn reason(&self) -> &str {
        match self {
            Self::Pong => "ping",
            Self::Unmatched(reason) | Self::Skipped(reason) | Self::Duplicate(_, reason) => reason,
        }
    }

    fn is_unmatched(&self) -> bool {
        matches!(self, Self::Unmatched(_))
    }

    fn state(&self) -> DeliveryState {
        if let Self::Duplicate(..) = self { DeliveryState::Duplicate } else { DeliveryState::Skipped }
    }
}

/// The row, and the apps that it concerns.
fn fruitless_row(proven: &Proven<'_>, about: &[AppName], what: &Fruitless) -> (NewDelivery, Vec<AppName>) {
    // What has no repository yet, or is no push, concerns the app that the path names.
    let named = if proven.incoming.raw.app.is_some() { proven.apps.first() } else { None };
    let apps: Vec<AppName> =
        if about.is_empty() { named.iter().map(|app| app.name.clone()).collect() } else { about.to_vec() };
    let of = if let Fruitless::Duplicate(of, _) = what { *of } else { None };
    (row(proven, shown(proven), what.state(), Some(what.reason().to_owned()), of, &apps), apps)
}

/// What is answered, and what is told of it.
fn fruitless_words(proven: &Proven<'_>, id: DeliveryId, apps: &[AppName], what: &Fruitless) -> (Answer, Vec<NewEvent>) {
    let event = |app| event(proven, shown(proven), id, app, what.state(), Some(what.reason()));
    let events = if apps.is_empty() { vec![event(None)] } else { apps.iter().map(|app| event(Some(app))).collect() };
    let body = match what {
        Fruitless::Pong => Heard::Pong { pong: true },
        Fruitless::Unmatched(_) => {
            Heard::Skipped { delivery: id, skipped: "no app deploys this repository".to_owned() }
        }
        Fruitless::Skipped(reason) => Heard::Skipped { delivery: id, skipped: reason.clone() },
        Fruitless::Duplicate(of, _) => Heard::Duplicate { delivery: id, duplicate_of: *of },
    };
    (success(proven, 200, &body), events)
}

/// The change that stands for all.
fn shown<'a>(proven: &'a Proven<'_>) -> Option<&'a Change> {
    if let Kind::Changes(changes) = &proven.parsed.kind { changes.first() } else { None }
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
    proven: &Proven<'_>,
    change: Option<&Change>,
    id: DeliveryId,
    app: Option<&AppName>,
    state: DeliveryState,
    reason: Option<&str>,
) -> NewEvent {
    let what = change.map_or_else(|| format!("event {:?}", proven.parsed.event), said);
    NewEvent {
        at: proven.incoming.at,
        app: app.cloned(),
        instance: None,
        kind: EventKind::Delivery,
        from: None,
        to: Some(state.to_string()),
        cause: Some(reason.map_or_else(|| what.clone(), str::to_owned)),
        detail: Some(format!("delivery {id} of {}: {what}", proven.dialect.name())),
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

fn row(
    proven: &Proven<'_>,
    change: Option<&Change>,
    state: DeliveryState,
    reason: Option<String>,
    duplicate_of: Option<DeliveryId>,
    apps: &[AppName],
) -> NewDelivery {
    let blank = blank(proven.incoming);
    let only = if let [only] = apps { Some(only.to_string()) } else { None };
    NewDelivery {
        sender_id: proven.parsed.sender_id.clone(),
        app: blank.app.or(only),
        dialect: Some(proven.dialect.name().to_owned()),
        event: Some(proven.parsed.event.clone()),
        ref_name: change.map(|change| change.ref_name.clone()),
        commit: change.and_then(|change| change.after.clone()),
        sender: proven.parsed.sender.clone(),
        state,
        reason,
        duplicate_of,
        apps: apps.to_vec(),
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

fn success(proven: &Proven<'_>, status: u16, body: &Heard) -> Answer {
    Answer { ticket: proven.incoming.raw.ticket, status, body: rows::json(body), retry_after: None }
}

fn problem(ticket: u64, status: u16, title: &str, detail: &str, retry_after: Option<u32>) -> Answer {
    let body = rows::json(&ProblemView::new(status, title, detail));
    Answer { ticket, status, body, retry_after }
}
