//! Events and logs: as a list, or as they come, as server-sent events (WHATWG HTML, section 9.2).
//!
//! Each has a socket of its own to the supervisor, which is closed when the client goes. What a client
//! has seen stands in `id`; from there it goes on with `Last-Event-ID`.

use std::{future::Future, io, net::IpAddr, time::Duration};

use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, HeaderName, HeaderValue},
};
use serde::Serialize;
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::spawn_local,
    time::{Instant, sleep_until, timeout},
};

use super::{
    answer::{Content, Problem, answer, json_text},
    api::{LIMIT, People, ask, before, found, known, paged, refused, rows, strange},
    lasting::Place,
    link::silent,
    request::{parameter, token},
};
use crate::{
    domain::{
        api::Request as Question,
        api::{
            EventView, LogFrame, LogMark, LogPlace, LogPlaces, LogsRequest, Reply, Said, Saying, Target, rename_places,
        },
        model::{At, InstanceId},
    },
    os::{
        channel::{Channel, Frame},
        watched::Watched,
    },
};

/// Proxies close what is silent for a minute; so often something is said.
const SILENCE: Duration = Duration::from_secs(15);
/// A stream ends after this, and the client comes again: then its token is judged anew.
const LIFE: Duration = Duration::from_secs(300);
/// How soon it comes again, in milliseconds.
const RETRY: &str = "retry: 500\n\n";
/// Pieces that wait for a client to take them.
const WAITING: usize = 1024;
/// Missed events that are told at once; of more only the latest.
const MISSED: u32 = 10_000;

type Piece = io::Result<Bytes>;

impl People {
    /// `GET /api/v1/events`.
    pub(super) async fn events(&self, request: &Request<Incoming>, from: IpAddr) -> Result<Response<Content>, Problem> {
        let (token, query) = (token(request.headers())?, request.uri().query());
        let app = parameter::<String>(query, "app", "name of an app")?.map(|name| known(&name)).transpose()?;
        let follow = wants_stream(request.headers());
        let after = if follow { last_event_id(request.headers()).and_then(|id| id.parse().ok()) } else { None };
        let question = Question::Events {
            app,
            number: None,
            n: if after.is_some() { MISSED } else { rows(query)? },
            since: parameter::<At>(query, "since", "moment such as 2026-11-25T04:15:39Z")?,
            follow,
            after,
            before: before(query)?,
        };
        if !follow {
            let Reply::Events(events) = self.ask(token, from, None, question).await? else {
                return Err(strange());
            };
            let ids = events.iter().map(|event| event.id);
            return Ok(paged(found(request.headers(), &events), request.uri().path(), query, ids));
        }
        let place = self.lasting.take(&token)?;
        let (channel, first) = self.open(token, from, question).await?;
        let Saying::Done(Reply::Events(past)) = said(&first)? else { return Err(strange()) };
        let (pieces, body) = mpsc::channel(WAITING);
        spawn_local(until_gone(Some(place), pieces.clone(), tell_events(channel, past, pieces)));
        Ok(event_stream(body))
    }

    /// `GET /api/v1/logs/<app>`, of an app or an instance.
    pub(super) async fn logs(
        &self,
        of: &str,
        request: &Request<Incoming>,
        from: IpAddr,
    ) -> Result<Response<Content>, Problem> {
        let (token, query) = (token(request.headers())?, request.uri().query());
        let target = match of.parse::<InstanceId>() {
            Ok(instance) => Target::Instance(instance),
            Err(_) => Target::App(known(of)?),
        };
        let follow = wants_stream(request.headers());
        let flag =
            |name| Ok::<_, Problem>(parameter::<bool>(query, name, "word; expected true or false")?.unwrap_or(false));
        let question = Question::Logs(LogsRequest {
            apps: vec![target],
            follow,
            n: Some(rows(query)?),
            previous: flag("previous")? && !follow,
            stderr: flag("stderr")?,
            since: parameter::<At>(query, "since", "moment such as 2026-11-25T04:15:39Z")?,
            grep: parameter::<String>(query, "grep", "regular expression")?,
            deploy: None,
            resume: if follow { last_event_id(request.headers()).map(marks).unwrap_or_default() } else { Vec::new() },
        });
        let place = follow.then(|| self.lasting.take(&token)).transpose()?;
        let (channel, first) = self.open(token, from, question).await?;
        if let LogFrame::Said(Said { what: Saying::Refused(refusal), .. }) = first.message().map_err(|_| strange())? {
            return Err(refused(refusal));
        }
        let (pieces, body) = mpsc::channel(WAITING);
        if follow {
            spawn_local(until_gone(place, pieces.clone(), tell_logs(channel, first, pieces)));
            return Ok(event_stream(body));
        }
        spawn_local(until_gone(place, pieces.clone(), list_logs(channel, first, pieces)));
        Ok(answer(StatusCode::OK, "application/json", Content::Stream(body)))
    }

    /// Asks on a socket of its own; what came first on it says whether it goes on.
    async fn open(&self, token: String, from: IpAddr, question: Question) -> Result<(Watched, Frame), Problem> {
        let broken = |_| Problem::unavailable("the supervisor cannot be asked now");
        let (ours, theirs) = Channel::pair().map_err(broken)?;
        let mut channel = Watched::new(ours).map_err(broken)?;
        self.link.tell(ask(Some(token), from, None, question), theirs)?;
        match timeout(LIMIT, channel.next()).await {
            Ok(Ok(first)) => Ok((channel, first)),
            Ok(Err(_)) => Err(Problem::unavailable("the supervisor broke off")),
            Err(_) => Err(silent()),
        }
    }
}

/// The past, then what comes.
async fn tell_events(mut channel: Watched, past: Vec<EventView>, pieces: mpsc::Sender<Piece>) {
    let mut text = RETRY.to_owned();
    past.iter().for_each(|event| text.push_str(&event_of(&event.id.to_string(), event)));
    if pieces.send(Ok(text.into())).await.is_err() {
        return;
    }
    let end = Instant::now() + LIFE;
    while let Some(heard) = next(&mut channel, end).await {
        let text = match heard.map(|frame| said(&frame)) {
            Some(Ok(Saying::Event(event))) => event_of(&event.id.to_string(), &event),
            Some(_) => return,
            None => SILENT.to_owned(),
        };
        // The supervisor is never kept waiting: who reads too slowly is let go, and comes again.
        match pieces.try_send(Ok(text.into())) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => return,
        }
    }
}

/// Lines as they come, each with the places behind all that were told.
async fn tell_logs(mut channel: Watched, first: Frame, pieces: mpsc::Sender<Piece>) {
    let mut known = LogPlaces::new();
    let (mut heard, mut text) = (Some(first), RETRY.to_owned());
    let end = Instant::now() + LIFE;
    loop {
        match heard.as_ref().map(|frame| (LogPlace::read(frame.body()), frame.message())) {
            Some((place, Ok(LogFrame::Line(line)))) => {
                known.extend(place.map(|place| ((line.instance.clone(), line.stream.clone()), place)));
                text.push_str(&event_of(&id_of(&known), &line));
            }
            Some((place, Ok(LogFrame::Here { instance, stream }))) => {
                known.extend(place.map(|place| ((instance, stream), place)));
                text.push_str(&format!("id: {}\n\n", id_of(&known)));
            }
            Some((_, Ok(LogFrame::Renamed { was, instance }))) => {
                rename_places(&mut known, &was, &instance);
                text.push_str(&format!("id: {}\n\n", id_of(&known)));
            }
            Some(_) => return,
            None => text.push_str(SILENT),
        }
        if pieces.send(Ok(std::mem::take(&mut text).into())).await.is_err() {
            return;
        }
        match next(&mut channel, end).await {
            Some(frame) => heard = frame,
            None => return,
        }
    }
}

/// Lines up to the last one, as a JSON array.
async fn list_logs(mut channel: Watched, first: Frame, pieces: mpsc::Sender<Piece>) {
    let mut frame = first;
    let mut before = "[";
    loop {
        let piece = match frame.message() {
            Ok(LogFrame::Line(line)) => Ok(format!("{before}{}", json_text(&line)).into()),
            Ok(LogFrame::Here { .. }) => Ok(Bytes::new()),
            Ok(LogFrame::Said(Said { what: Saying::Done(_), .. })) => {
                let end = if before == "[" { "[]" } else { "]" };
                drop(pieces.send(Ok(end.into())).await);
                return;
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        };
        let broken = piece.is_err();
        if piece.as_ref().is_ok_and(|bytes: &Bytes| !bytes.is_empty()) {
            before = ",";
        }
        if pieces.send(piece).await.is_err() || broken {
            return;
        }
        match channel.next().await {
            Ok(next) => frame = next,
            Err(error) => return drop(pieces.send(Err(error)).await),
        }
    }
}

/// Something to keep a connection from being taken for dead.
const SILENT: &str = ":\n\n";

/// The next frame, `None` in it when nothing came for a while; `None` when the stream is to end.
async fn next(channel: &mut Watched, end: Instant) -> Option<Option<Frame>> {
    tokio::select! {
        frame = channel.next() => frame.ok().map(Some),
        () = sleep_until(end) => None,
        () = tokio::time::sleep(SILENCE) => Some(None),
    }
}

/// Tells until the client is gone, and keeps its place so long.
async fn until_gone(_place: Option<Place>, pieces: mpsc::Sender<Piece>, telling: impl Future<Output = ()>) {
    tokio::select! {
        () = telling => {}
        () = pieces.closed() => {}
    }
}

fn event_stream(body: mpsc::Receiver<Piece>) -> Response<Content> {
    let mut response = answer(StatusCode::OK, "text/event-stream", Content::Stream(body));
    // nginx would wait for more.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

fn said(frame: &Frame) -> Result<Saying, Problem> {
    match frame.message::<Said>().map_err(|_| strange())?.what {
        Saying::Refused(refusal) => Err(refused(refusal)),
        what => Ok(what),
    }
}

/// One event; JSON has no line end in it.
fn event_of(id: &str, value: &impl Serialize) -> String {
    format!("id: {id}\ndata: {}\n\n", json_text(value))
}

fn wants_stream(headers: &HeaderMap) -> bool {
    let named = |value: &str| {
        let kinds = value.split(',').map(|one| one.split(';').next().unwrap_or_default().trim());
        kinds.into_iter().any(|kind| kind.eq_ignore_ascii_case("text/event-stream"))
    };
    headers.get_all(ACCEPT).iter().any(|value| value.to_str().is_ok_and(named))
}

fn last_event_id(headers: &HeaderMap) -> Option<&str> {
    headers.get("last-event-id")?.to_str().ok()
}

/// `blog.1 out 17 4096,blog.1 err 18 0`: the places behind what was told.
fn id_of(known: &LogPlaces) -> String {
    let one = |((instance, stream), place): (&(String, String), &LogPlace)| {
        format!("{instance} {stream} {} {}", place.inode, place.offset)
    };
    known.iter().map(one).collect::<Vec<_>>().join(",")
}

/// What [`id_of`] says; what is no place is left out.
fn marks(id: &str) -> Vec<LogMark> {
    let one = |text: &str| {
        let mut words = text.split(' ');
        let (instance, stream) = (words.next()?.to_owned(), words.next()?.to_owned());
        let place = LogPlace { inode: words.next()?.parse().ok()?, offset: words.next()?.parse().ok()? };
        Some(LogMark { instance, stream, place })
    };
    id.split(',').filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_found_again_by_its_id() {
        let places = [("blog.1", "err", 3), ("blog.1", "out", 7)];
        let known: LogPlaces = places
            .iter()
            .map(|(instance, stream, offset)| {
                let place = LogPlace { inode: 17, offset: *offset };
                (((*instance).to_owned(), (*stream).to_owned()), place)
            })
            .collect();
        assert_eq!(id_of(&known), "blog.1 err 17 3,blog.1 out 17 7");
        let found: Vec<_> = marks(&id_of(&known)).into_iter().map(|mark| (mark.stream, mark.place.offset)).collect();
        assert_eq!(found, [("err".to_owned(), 3), ("out".to_owned(), 7)]);
        for strange in ["", "7", "blog.1 out", "blog.1 out x 3", ",,,"] {
            assert!(marks(strange).is_empty(), "{strange}");
        }
    }

    #[test]
    fn a_stream_is_wanted_where_its_type_is_named() {
        let wants = |accept| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            wants_stream(&headers)
        };
        assert!(wants("text/event-stream") && wants("application/json, Text/Event-Stream;q=0.9"));
        assert!(!wants("*/*") && !wants("application/json"));
    }
}
