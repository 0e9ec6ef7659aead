//! The doors: accepts connections, serves HTTP/1.1 on each under limits, and closes in order.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    net::IpAddr,
    pin::{Pin, pin},
    rc::Rc,
    time::Duration,
};

use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
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
    answer::Content,
    guests::{Guests, Seat},
    tls::Tls,
};

/// From the first moment on a connection, or the last answer, to a whole request head.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Bytes of a request's head.
const HEAD_SIZE: usize = 16 * 1024;
/// What hyper buffers of a connection at most, each way.
const BUFFER: usize = 64 * 1024;
/// A peer that takes nothing of an answer for this long is given up.
const WRITE_TIME_MS: u32 = 30_000;
/// Between the last accept and the closing of what is idle: whoever was let in last has sent its
/// request by then, and gets an answer.
const LAST_CALL: Duration = Duration::from_millis(100);
/// How long requests under way may take once the doors close.
const GRACE: Duration = Duration::from_secs(5);
/// How long a peer that still sends is listened to after the answer, so that it can read it.
const LINGER: Duration = Duration::from_secs(2);
/// Pause after an accept that failed for want of descriptors or memory.
const BREATH: Duration = Duration::from_millis(100);

const TOO_MANY: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 5\r\nContent-Type: text/plain\r\n\
    Content-Length: 35\r\nConnection: close\r\n\r\ntoo many connections of one address";

/// Who answers behind the doors.
pub(super) trait Desk {
    fn answer(&self, request: Request<Incoming>, from: IpAddr) -> impl Future<Output = Response<Content>>;
}

/// Serves until `end` is ready, then closes: nothing new, what is under way within [`GRACE`].
pub(super) async fn open<D: Desk + 'static>(
    listener: TcpListener,
    guests: Guests,
    tls: Option<Tls>,
    desk: Rc<D>,
    end: impl Future<Output = ()>,
) {
    let (closing, closed) = watch::channel(());
    let tls = tls.map(Rc::new);
    let mut connections = JoinSet::new();
    let mut end = pin!(end);
    loop {
        tokio::select! {
            () = &mut end => break,
            Some(_) = connections.join_next() => {}
            (stream, address, seat) = next(&listener, &guests) => {
                connections.spawn_local(attend((stream, address, seat), tls.clone(), Rc::clone(&desk), closed.clone()));
            }
        }
    }
    drop(listener);
    sleep(LAST_CALL).await;
    closing.send_replace(());
    // Whoever is not done by then is cut off.
    let _ = timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
}

async fn next(listener: &TcpListener, guests: &Guests) -> (TcpStream, IpAddr, Seat) {
    loop {
        let place = guests.place().await;
        match listener.accept().await {
            Ok((stream, peer)) => {
                let address = peer.ip().to_canonical();
                match guests.seat(place, address) {
                    Some(seat) => return (stream, address, seat),
                    // Best effort: a fresh socket has room for it.
                    None => drop(stream.try_write(TOO_MANY)),
                }
            }
            Err(error) if gone(&error) => {}
            Err(_) => sleep(BREATH).await,
        }
    }
}

/// The peer went before it was accepted: no reason to pause.
fn gone(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

async fn attend<D: Desk + 'static>(
    (stream, address, _seat): (TcpStream, IpAddr, Seat),
    tls: Option<Rc<Tls>>,
    desk: Rc<D>,
    closed: watch::Receiver<()>,
) {
    // Without these two a connection works all the same.
    let _ = stream.set_nodelay(true);
    let _ = set_tcp_user_timeout(&stream, WRITE_TIME_MS);
    match tls {
        None => converse(stream, address, desk, closed).await,
        Some(tls) => {
            if let Some(stream) = tls.greet(stream).await {
                // Larger, and so not within the plain ones.
                Box::pin(converse(stream, address, desk, closed)).await;
            }
        }
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin, D: Desk + 'static>(
    stream: S,
    address: IpAddr,
    desk: Rc<D>,
    mut closed: watch::Receiver<()>,
) {
    let begun = Instant::now();
    let mut last_call = pin!(async {
        let _ = closed.changed().await;
        // Whose handshake ended late has as long for its request.
        sleep_until(begun + LAST_CALL).await;
    });
    let mut called = false;
    let service = service_fn(move |request| {
        let desk = Rc::clone(&desk);
        Box::pin(async move { Ok::<_, Infallible>(desk.answer(request, address).await) })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_header_size(HEAD_SIZE)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let outcome = loop {
        let outcome = tokio::select! {
            biased;
            outcome = poll_fn(|cx| connection.poll_without_shutdown(cx)) => Some(outcome),
            () = &mut last_call, if !called => None,
        };
        match outcome {
            Some(outcome) => break outcome,
            None => {
                called = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
        }
    };
    if outcome.is_ok() {
        linger(connection.into_parts().io.into_inner()).await;
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
