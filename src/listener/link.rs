//! A channel to the supervisor: questions go out with a ticket, answers find whoever asked.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    io,
    os::fd::OwnedFd,
    rc::Rc,
    time::Duration,
};

use hyper::body::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::answer::Problem;
use crate::{
    domain::api::{Answer, Said, Saying},
    os::{channel::Channel, watched::Watched},
};

/// Something that comes back over a channel.
pub(super) trait Reply: DeserializeOwned {
    fn ticket(&self) -> u64;

    /// Is nothing more to come for this ticket?
    fn is_last(&self) -> bool;
}

impl Reply for Answer {
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
pub(super) type Following = [Bytes; 2];

struct Question<Q> {
    message: Q,
    body: Following,
    fd: Option<OwnedFd>,
}

type Waiting<R> = Rc<RefCell<HashMap<u64, oneshot::Sender<R>>>>;

/// The asking end.
pub(super) struct Link<Q, R> {
    outbox: mpsc::UnboundedSender<Question<Q>>,
    waiting: Waiting<R>,
    next_ticket: Cell<u64>,
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
        let channel = Watched::new(Channel::new(socket))?;
        let (outbox, questions) = mpsc::unbounded_channel();
        let waiting = Waiting::default();
        let carry = carry(channel, questions, Rc::clone(&waiting));
        Ok((Self { outbox, waiting, next_ticket: Cell::new(1) }, carry))
    }

    /// Asks what is answered on the socket that goes along.
    ///
    /// # Errors
    /// 503, when the supervisor is gone.
    pub(super) fn tell(&self, question: impl FnOnce(u64) -> Q, socket: OwnedFd) -> Result<(), Problem> {
        let ticket = self.next_ticket.get();
        self.next_ticket.set(ticket + 1);
        let question = Question { message: question(ticket), body: Following::default(), fd: Some(socket) };
        self.outbox.send(question).map_err(|_| gone())
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
        let ticket = Ticket { number: self.next_ticket.get(), waiting: &self.waiting };
        self.next_ticket.set(ticket.number + 1);
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(ticket.number, sender);
        self.outbox.send(Question { message: question(ticket.number), body, fd }).map_err(|_| gone())?;
        match timeout(limit, receiver).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(Problem::unavailable("the supervisor did not answer in time")),
        }
    }
}

fn gone() -> Problem {
    Problem::unavailable("the supervisor is not there; it will be back soon")
}

async fn carry<Q: Serialize, R: Reply>(
    mut channel: Watched,
    mut questions: mpsc::UnboundedReceiver<Question<Q>>,
    waiting: Waiting<R>,
) {
    while pass(&mut channel, &mut questions, &waiting).await.is_ok() {}
    // Whoever waits learns it now; whoever asks later, by the closed outbox.
    questions.close();
    waiting.borrow_mut().clear();
}

/// Frames out, or one in.
async fn pass<Q: Serialize, R: Reply>(
    channel: &mut Watched,
    questions: &mut mpsc::UnboundedReceiver<Question<Q>>,
    waiting: &Waiting<R>,
) -> io::Result<()> {
    tokio::select! {
        question = questions.recv() => {
            let mut next = Some(question.ok_or(io::ErrorKind::BrokenPipe)?);
            // All that are there travel together; what fills a message does not wait for the rest.
            while let Some(Question { message, body, fd }) = next {
                channel.queue_pieces(&message, &[&body[0], &body[1]], fd);
                if channel.is_full() {
                    channel.flush()?;
                }
                next = questions.try_recv().ok();
            }
        }
        frame = channel.next() => {
            let reply: R = frame?.message()?;
            let asker = reply.is_last().then(|| waiting.borrow_mut().remove(&reply.ticket())).flatten();
            if let Some(asker) = asker {
                // Whoever asked may have gone meanwhile.
                let _ = asker.send(reply);
            }
        }
    }
    Ok(())
}
