//! A channel to the supervisor: questions go out with a ticket, answers find whoever asked.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::{Future, poll_fn},
    io,
    marker::PhantomData,
    os::fd::OwnedFd,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use hyper::body::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep},
};

use super::answer::Problem;
use crate::{
    domain::api::{Answer, Said, Saying},
    os::{
        channel::{Channel, Frame},
        watched::Watched,
    },
};

/// Something that comes back over a channel.
pub(super) trait Reply: DeserializeOwned {
    /// # Errors
    /// `InvalidData` when the supervisor sent something else.
    fn of(frame: &Frame) -> io::Result<Self> {
        frame.message()
    }

    fn ticket(&self) -> u64;

    /// Is nothing more to come for this ticket?
    fn is_last(&self) -> bool;
}

impl Reply for Answer {
    fn of(frame: &Frame) -> io::Result<Self> {
        let body = str::from_utf8(frame.body()).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        Ok(Self { body: body.to_owned(), ..frame.message()? })
    }

    fn ticket(&self) -> u64 {
        self.ticket
    }

    fn is_last(&self) -> bool {
        true
    }
}

impl Reply for Said {
    fn ticket(&self) -> u64 {
        self.ticket
    }

    fn is_last(&self) -> bool {
        matches!(self.what, Saying::Done(_) | Saying::Refused(_))
    }
}

/// What follows a message in its frame, one behind the other.
pub(super) type Following = (String, Bytes);

/// How exactly it is looked who has waited for too long: a timer for each question would cost more than its way.
const EXACTLY: Duration = Duration::from_millis(250);

type Waiting<R> = RefCell<HashMap<u64, Asker<R>>>;

struct Asker<R> {
    told: oneshot::Sender<R>,
    until: Instant,
}

/// What the asking end and whoever moves the frames have in common.
struct Shared<R> {
    /// `None`: the supervisor is gone.
    channel: RefCell<Option<Watched>>,
    waiting: Waiting<R>,
    /// Somebody waits where nobody did.
    begun: Notify,
    /// Of whoever moves the frames, while it does not know of all that is queued.
    carrier: Cell<Option<Waker>>,
}

/// The asking end.
pub(super) struct Link<Q, R> {
    shared: Rc<Shared<R>>,
    next_ticket: Cell<u64>,
    asks: PhantomData<fn(Q)>,
}

/// A ticket that nobody waits for any more is forgotten.
struct Ticket<'a, R> {
    number: u64,
    waiting: &'a Waiting<R>,
}

impl<R> Drop for Ticket<'_, R> {
    fn drop(&mut self) {
        self.waiting.borrow_mut().remove(&self.number);
    }
}

impl<Q: Serialize, R: Reply> Link<Q, R> {
    /// Takes the channel's socket. The future moves its frames and ends when the channel is gone.
    ///
    /// # Errors
    /// When the descriptor cannot be watched.
    pub(super) fn new(socket: OwnedFd) -> io::Result<(Self, impl Future<Output = ()>)> {
        let channel = RefCell::new(Some(Watched::new(Channel::new(socket))?));
        let (waiting, begun, carrier) = (RefCell::default(), Notify::new(), Cell::default());
        let shared = Rc::new(Shared { channel, waiting, begun, carrier });
        let carried = Rc::clone(&shared);
        let carry = async move {
            tokio::select! {
                biased;
                () = poll_fn(|cx| carried.poll(cx)) => {}
                () = carried.watch_time() => {}
            }
        };
        Ok((Self { shared, next_ticket: Cell::new(1), asks: PhantomData }, carry))
    }

    /// Asks what is answered on the socket that goes along.
    ///
    /// # Errors
    /// 503, when the supervisor is gone.
    pub(super) fn tell(&self, question: impl FnOnce(u64) -> Q, socket: OwnedFd) -> Result<(), Problem> {
        let ticket = self.next_ticket.get();
        self.next_ticket.set(ticket + 1);
        self.shared.send(&question(ticket), Following::default(), Some(socket))
    }

    /// Asks and waits for the answer, `limit` at most.
    ///
    /// # Errors
    /// 503, when the supervisor is gone or silent.
    pub(super) async fn ask(
        &self,
        question: impl FnOnce(u64) -> Q,
        body: Following,
        fd: Option<OwnedFd>,
        limit: Duration,
    ) -> Result<R, Problem> {
        let ticket = Ticket { number: self.next_ticket.get(), waiting: &self.shared.waiting };
        self.next_ticket.set(ticket.number + 1);
        let (told, reply) = oneshot::channel();
        self.shared.wait(ticket.number, Asker { told, until: Instant::now() + limit });
        self.shared.send(&question(ticket.number), body, fd)?;
        reply.await.map_err(|_| if self.shared.channel.borrow().is_some() { silent() } else { gone() })
    }
}

pub(super) fn silent() -> Problem {
    Problem::unavailable("the supervisor did not answer in time")
}

fn gone() -> Problem {
    Problem::unavailable("the supervisor is not there; it will be back soon")
}

impl<R: Reply> Shared<R> {
    /// Queues a question. All that come in one go travel together, but what fills a message does not wait for the
    /// rest: the supervisor works at it meanwhile.
    fn send(&self, question: &impl Serialize, body: Following, fd: Option<OwnedFd>) -> Result<(), Problem> {
        let mut channel = self.channel.borrow_mut();
        let channel = channel.as_mut().ok_or_else(gone)?;
        channel.queue_with(question, body.0.as_bytes(), body.1, fd);
        if channel.is_full() {
            // That it failed is found by whoever moves the frames.
            let _ = channel.flush();
        }
        if let Some(carrier) = self.carrier.take() {
            carrier.wake();
        }
        Ok(())
    }

    /// Moves frames until the channel is gone.
    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let next = self.channel.borrow_mut().as_mut().map(|channel| channel.poll_next(cx));
            let handed_out = match next {
                Some(Poll::Ready(frame)) => frame.and_then(|frame| self.hand_out(&frame)),
                Some(Poll::Pending) => {
                    self.carrier.set(Some(cx.waker().clone()));
                    return Poll::Pending;
                }
                None => break,
            };
            if handed_out.is_err() {
                break;
            }
        }
        // Whoever waits learns it now; whoever asks later, by the channel that is not there.
        self.channel.replace(None);
        self.waiting.take();
        Poll::Ready(())
    }

    fn hand_out(&self, frame: &Frame) -> io::Result<()> {
        let reply = R::of(frame)?;
        let asker = reply.is_last().then(|| self.waiting.borrow_mut().remove(&reply.ticket())).flatten();
        if let Some(asker) = asker {
            // Whoever asked may have gone meanwhile.
            let _ = asker.told.send(reply);
        }
        Ok(())
    }

    fn wait(&self, ticket: u64, asker: Asker<R>) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.is_empty() {
            self.begun.notify_one();
        }
        waiting.insert(ticket, asker);
    }

    /// Lets go who has waited for too long, as long as somebody waits.
    async fn watch_time(&self) {
        loop {
            self.begun.notified().await;
            while !self.waiting.borrow().is_empty() {
                sleep(EXACTLY).await;
                let now = Instant::now();
                self.waiting.borrow_mut().retain(|_, asker| asker.until > now);
            }
        }
    }
}
