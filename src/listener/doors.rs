//! The doors: accepts connections, serves HTTP/1.1 on each under limits, and closes in order.

use std::{
    cell::Cell,
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
    time::Duration,
};

use hyper::{
    Request, Response, StatusCode, Version,
    body::{Body, Bytes, Incoming},
    header::{CONNECTION, HOST, HeaderValue, TRANSFER_ENCODING},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    answer::{Content, Problem, json_text},
    guests::{Guest, Guests},
    peeked::{self, Peeked},
    tls::Tls,
};
use crate::domain::api::ProblemView;

/// From a request's first byte to its whole head.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// How long a connection may say nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// After so long without a request the buffers of a connection are let go.
const REST: Duration = Duration::from_secs(1);
/// Bytes of a request's head.
const HEAD_SIZE: usize = 16 * 1024;
/// What hyper buffers of a connection at most, each way.
const BUFFER: usize = 20 * 1024;
/// A peer that takes nothing of an answer for this long is given up.
const WRITE_TIME_MS: u32 = 30_000;
/// Between the last accept and the closing of what is idle: whoever was let in last has sent its
/// request by then, and gets an answer.
const LAST_CALL: Duration = Duration::from_millis(100);
/// How long requests under way may take once the doors close.
const GRACE: Duration = Duration::from_secs(5);
/// So long before its end whoever has no answer yet is told that there is none.
const LAST_WORD: Duration = Duration::from_millis(500);
/// How long a peer that still sends is listened to after the answer, so that it can read it.
const LINGER: Duration = Duration::from_secs(2);
/// Pause after an accept that failed for want of descriptors or memory.
const BREATH: Duration = Duration::from_millis(100);

/// Who answers behind the doors.
pub(super) trait Desk {
    /// Boxed, as it is handed on and on.
    fn answer(&self, request: Box<Request<Incoming>>, guest: &Guest) -> impl Future<Output = Response<Content>>;
}

/// Serves until `end` is ready, then closes: nothing new, what is under way within [`GRACE`].
pub(super) async fn open<D: Desk + 'static>(
    listener: TcpListener,
    guests: Rc<Guests>,
    tls: Option<Tls>,
    desk: Rc<D>,
    end: impl Future<Output = ()>,
) {
    let (closing, closed) = watch::channel(false);
    let tls = tls.map(Rc::new);
    let mut connections = JoinSet::new();
    let mut end = pin!(end);
    loop {
        tokio::select! {
            () = &mut end => break,
            Some(_) = connections.join_next() => {}
            (stream, guest) = next(&listener, &guests) => {
                connections.spawn_local(attend(stream, guest, tls.clone(), Rc::clone(&desk), closed.clone()));
            }
        }
    }
    drop(listener);
    sleep(LAST_CALL).await;
    closing.send_replace(true);
    // Whoever is not done by then is cut off.
    let _ = timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
}

async fn next(listener: &TcpListener, guests: &Rc<Guests>) -> (TcpStream, Guest) {
    loop {
        let seat = guests.seat().await;
        match listener.accept().await {
            Ok((stream, peer)) => match guests.welcome(seat, peer.ip().to_canonical()) {
                Some(guest) => return (stream, guest),
                // Best effort: a fresh socket has room for it.
                None => drop(stream.try_write(&too_many())),
            },
            Err(error) if gone(&error) => {}
            Err(_) => sleep(BREATH).await,
        }
    }
}

fn too_many() -> Vec<u8> {
    turned_away(StatusCode::TOO_MANY_REQUESTS, "too many connections of one address")
}

fn busy() -> Vec<u8> {
    turned_away(StatusCode::SERVICE_UNAVAILABLE, "too many requests are being answered")
}

fn leaving() -> Vec<u8> {
    turned_away(StatusCode::SERVICE_UNAVAILABLE, "the answer did not come before the listener had to leave")
}

/// A whole answer for whoever does not get it from hyper.
fn turned_away(status: StatusCode, detail: &str) -> Vec<u8> {
    let body = json_text(&ProblemView::new(status.as_u16(), status.canonical_reason().unwrap_or("Error"), detail));
    let head = format!(
        "HTTP/1.1 {status}\r\nRetry-After: 5\r\nContent-Type: application/problem+json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

/// The peer went before it was accepted: no reason to pause.
fn gone(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

async fn attend<D: Desk + 'static>(
    stream: TcpStream,
    guest: Guest,
    tls: Option<Rc<Tls>>,
    desk: Rc<D>,
    closed: watch::Receiver<bool>,
) {
    // Without these two a connection works all the same.
    let _ = stream.set_nodelay(true);
    let _ = set_tcp_user_timeout(&stream, WRITE_TIME_MS);
    let guest = Rc::new(guest);
    let attended = async {
        match tls {
            None => converse(stream, &guest, desk, closed).await,
            // Larger, and so not within the plain ones.
            Some(tls) => Box::pin(greet(stream, tls, &guest, desk, closed)).await,
        }
    };
    tokio::select! {
        () = guest.sent_away() => {}
        () = attended => {}
    }
}

async fn greet<D: Desk + 'static>(
    stream: TcpStream,
    tls: Rc<Tls>,
    guest: &Rc<Guest>,
    desk: Rc<D>,
    closed: watch::Receiver<bool>,
) {
    if let Some(stream) = tls.greet(stream).await {
        converse(stream, guest, desk, closed).await;
    }
}

/// Request after request, until the peer has no more, or the doors close.
async fn converse<S, D>(mut stream: S, guest: &Rc<Guest>, desk: Rc<D>, mut closed: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Desk + 'static,
{
    let begun = Instant::now();
    let mut first = Bytes::new();
    loop {
        if first.is_empty() {
            guest.is_silent();
            let said = tokio::select! {
                biased;
                said = timeout(SILENCE, peeked::first(&mut stream)) => said,
                () = last_call(&mut closed, begun) => return Box::pin(linger(stream)).await,
            };
            match said {
                Ok(Ok(bytes)) if !bytes.is_empty() => first = bytes,
                _ => return,
            }
        }
        // All that is larger than silence, and not there most of the time.
        let spoken = Box::pin(speak(stream, first, guest, &desk, last_call(&mut closed, begun))).await;
        let Some(silent) = spoken else { return };
        (stream, first) = silent;
    }
}

/// From the first byte of a request to where none is under way: the connection, and what was read ahead.
/// `None`: it is closed.
async fn speak<S, D>(
    mut stream: S,
    first: Bytes,
    guest: &Rc<Guest>,
    desk: &Rc<D>,
    last_call: impl Future<Output = ()>,
) -> Option<(S, Bytes)>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Desk + 'static,
{
    let Some(_turn) = guest.turn().await else {
        let _ = stream.write_all(&busy()).await;
        linger(stream).await;
        return None;
    };
    match serve(stream, first, guest, desk, last_call).await? {
        // Where others wait for a turn nothing is kept of a request that has none: its sender has to repeat it.
        Rest::Silent(stream, ahead) if ahead.is_empty() || !guest.is_waited_for() => return Some((stream, ahead)),
        Rest::Silent(stream, _) | Rest::Done(stream) => linger(stream).await,
    }
    None
}

/// The doors close; whose handshake ended late has as long for its request as others.
async fn last_call(closed: &mut watch::Receiver<bool>, begun: Instant) {
    let _ = closed.wait_for(|closed| *closed).await;
    sleep_until(begun + LAST_CALL).await;
}

/// How a conversation stands.
enum Rest<S> {
    /// Nothing is under way; what was read ahead is there.
    Silent(S, Bytes),
    Done(S),
}

/// What becomes of a connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// No request is there yet.
    Unasked,
    /// The answer is not there yet.
    Open,
    /// Everything of the request was read, and the peer may send the next one.
    Goes(Instant),
    /// hyper judges, and ends it where it has to.
    Else,
}

/// Answers requests as long as they come; `None`: the connection broke.
async fn serve<S, D>(
    stream: S,
    first: Bytes,
    guest: &Rc<Guest>,
    desk: &Rc<D>,
    last_call: impl Future<Output = ()>,
) -> Option<Rest<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Desk + 'static,
{
    let after = Rc::new(Cell::new(After::Unasked));
    let waits = {
        let (guest, after) = (Rc::clone(guest), Rc::clone(&after));
        move || after.get() == After::Open && guest.is_whole()
    };
    let stream = Peeked::new(first, stream, waits);
    let service = service_fn(|request: Request<Incoming>| {
        let (desk, guest, after) = (Rc::clone(desk), Rc::clone(guest), Rc::clone(&after));
        let request = Box::new(request);
        Box::pin(async move {
            after.set(After::Open);
            guest.begins(request.body().is_end_stream());
            let (ends, goes) = wish(&request);
            // Whoever is in front may have taken a length for its end (RFC 9112 section 6.1).
            let chunked = request.headers().contains_key(TRANSFER_ENCODING);
            let mut response = if has_its_host(&request) {
                desk.answer(request, &guest).await
            } else {
                Problem::bad_request("a request has one Host header").hang_up().into()
            };
            if chunked {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            if goes && guest.is_whole() && !response.headers().contains_key(CONNECTION) {
                after.set(After::Goes(Instant::now()));
            } else {
                after.set(After::Else);
                if !ends {
                    guest.speaks(0);
                }
            }
            Ok::<_, Infallible>(response)
        })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_header_size(HEAD_SIZE)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let (mut last_call, mut rest) = (pin!(last_call), pin!(sleep(REST)));
    let (mut closing, mut resting) = (false, false);
    let outcome = loop {
        let wanted = || !resting && matches!(after.get(), After::Goes(_)) && guest.is_waited_for();
        tokio::select! {
            biased;
            outcome = until(&mut connection, wanted) => match outcome {
                Some(outcome) => break Some(outcome),
                None => resting = true,
            },
            () = &mut last_call, if !closing => {
                closing = true;
                rest.set(sleep(GRACE - LAST_WORD));
                Pin::new(&mut connection).graceful_shutdown();
                continue;
            }
            () = &mut rest, if closing || !resting => match after.get() {
                _ if closing => break None,
                After::Goes(at) if at.elapsed() >= REST => resting = true,
                After::Goes(at) => rest.set(sleep_until(at + REST)),
                After::Unasked | After::Open | After::Else => rest.set(sleep(REST)),
            },
        }
        if resting && !closing {
            // Ends as soon as the answer is sent, and does not say so to the peer: its head is written already.
            Pin::new(&mut connection).graceful_shutdown();
        }
    };
    let parts = connection.into_parts();
    let (mut stream, unread) = parts.io.into_inner().into_parts();
    match outcome {
        Some(Ok(())) if resting && !closing => Some(Rest::Silent(stream, joined(parts.read_buf, unread))),
        Some(Ok(())) => Some(Rest::Done(stream)),
        // hyper has told what is wrong with it.
        Some(Err(error)) if error.is_parse() => Some(Rest::Done(stream)),
        None if matches!(after.get(), After::Unasked | After::Open) => {
            stream.write_all(&leaving()).await.ok().map(|()| Rest::Done(stream))
        }
        None | Some(Err(_)) => None,
    }
}

/// Drives the connection to its end, or to where it is `enough`: `None`.
async fn until<F: Future + Unpin>(connection: &mut F, enough: impl Fn() -> bool) -> Option<F::Output> {
    poll_fn(|cx| match Pin::new(&mut *connection).poll(cx) {
        Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        Poll::Pending if enough() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// One that names none or two may be another one's for whoever is in front (RFC 9112 section 3.2).
fn has_its_host(request: &Request<Incoming>) -> bool {
    request.version() != Version::HTTP_11 || request.headers().get_all(HOST).iter().count() == 1
}

/// Does the peer want the connection to end with this answer, and may it go on for sure?
fn wish(request: &Request<Incoming>) -> (bool, bool) {
    let says = |word: &str| {
        let values = request.headers().get_all(CONNECTION).iter();
        values.filter_map(|value| value.to_str().ok()).any(|value| value.eq_ignore_ascii_case(word))
    };
    let named = request.headers().contains_key(CONNECTION);
    let new = request.version() == Version::HTTP_11;
    (says("close") || (!new && !named), new && (!named || says("keep-alive")))
}

/// What hyper read comes before what it did not.
fn joined(read: Bytes, unread: Bytes) -> Bytes {
    match (read.is_empty(), unread.is_empty()) {
        (true, _) => unread,
        (_, true) => Bytes::copy_from_slice(&read),
        _ => [read, unread].concat().into(),
    }
}

/// Closes so that the peer can read the answer: a socket closed with unread bytes in it resets the
/// connection, and the answer to a body that was refused would be lost (RFC 9112 section 9.6).
async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut sink = vec![0; 16 * 1024];
    let drain = async { while matches!(stream.read(&mut sink).await, Ok(n) if n > 0) {} };
    let _ = timeout(LINGER, drain).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl Desk for Nobody {
        async fn answer(&self, _: Box<Request<Incoming>>, _: &Guest) -> Response<Content> {
            Response::new(Content::empty())
        }
    }

    /// Ten thousand of them are a few MiB: whatever a request needs is not part of it.
    #[tokio::test(flavor = "current_thread")]
    async fn whoever_is_silent_costs_little() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let guests = Guests::new(Vec::new(), 1);
        let guest = guests.welcome(guests.seat().await, "127.0.0.1".parse().unwrap()).unwrap();
        let (_closing, closed) = watch::channel(false);
        let size = size_of_val(&attend(stream, guest, None, Rc::new(Nobody), closed));
        assert!(size <= 1024, "{size} bytes");
    }

    #[test]
    fn what_is_said_at_the_door_is_whole() {
        let unavailable = "503 Service Unavailable";
        for (status, said) in [("429 Too Many Requests", too_many()), (unavailable, busy()), (unavailable, leaving())] {
            let text = std::str::from_utf8(&said).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head}");
            assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
            let shown = serde_json::from_str::<serde_json::Value>(body).unwrap()["status"].to_string();
            assert_eq!(shown, status[..3]);
        }
    }
}
