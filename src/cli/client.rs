//! One question to the supervisor and what it answers, frame by frame.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    failure::{Code, Failure},
    find::Place,
    screen::Screen,
    words::Waiting,
};
use crate::{
    domain::api::{Ask, Reply, Request, Said, Saying},
    os::{
        channel::{Channel, Frame},
        socket::connect_unix,
    },
};

/// A look needs no work, so an answer that takes longer never comes.
const LOOK: Duration = Duration::from_secs(30);
/// What the supervisor gets beyond `--timeout` to say itself that time is up.
const GRACE: Duration = Duration::from_secs(2);

/// A connection to `control.sock`.
pub struct Client {
    channel: Channel,
    socket: PathBuf,
    /// Becomes readable at Ctrl-C, once [`Client::heed_interrupt`] was called.
    interrupt: Option<UnixStream>,
    deadline: Option<Instant>,
}

impl Client {
    /// # Errors
    /// When no supervisor answers there.
    pub fn connect(place: &Place) -> Result<Self, Failure> {
        let socket = place.socket()?;
        match open(&socket) {
            Ok(stream) => Ok(Self { channel: Channel::new(stream), socket, interrupt: None, deadline: None }),
            Err(e) => {
                let why = match e.kind() {
                    io::ErrorKind::NotFound => "it does not exist; one that runs makes it again at SIGHUP".into(),
                    io::ErrorKind::ConnectionRefused => "nobody listens".into(),
                    _ => e.to_string(),
                };
                let start = place.how_to_start();
                let message = format!("no supervisor answers on {} ({why}); start one: {start}", socket.display());
                Err(Failure::new(Code::NoSupervisor, message))
            }
        }
    }

    /// Puts the question; the answer is looked for with [`Client::hear`].
    pub fn ask(&mut self, request: Request, wait: bool, timeout: Option<Duration>) {
        self.deadline = timeout.map(|timeout| Instant::now() + timeout + GRACE);
        self.channel.queue(&Ask { ticket: 1, token: None, address: None, wait, timeout, request }, &[], None);
    }

    /// The same with descriptors for whatever it starts; waits for the end.
    pub fn ask_with(&mut self, request: Request, fds: Vec<OwnedFd>, timeout: Option<Duration>) {
        self.deadline = timeout.map(|timeout| Instant::now() + timeout);
        let ask = Ask { ticket: 1, token: None, address: None, wait: true, timeout, request };
        self.channel.queue(&ask, &[], fds);
    }

    /// From here on Ctrl-C ends the waiting with a [`Failure`] instead of the process.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn heed_interrupt(&mut self) -> Result<(), Failure> {
        let register = || -> io::Result<UnixStream> {
            let (heard, rung) = UnixStream::pair()?;
            signal_hook::low_level::pipe::register(signal_hook::consts::SIGINT, rung)?;
            Ok(heard)
        };
        self.interrupt =
            Some(register().map_err(|e| Failure::new(Code::Failed, format!("cannot watch for Ctrl-C: {e}")))?);
        Ok(())
    }

    /// The next frame, `None` when the other side has closed. What was put on the screen is shown
    /// before this waits.
    ///
    /// # Errors
    /// When time is up, at Ctrl-C, or when the other side does not speak the protocol.
    pub fn frame(&mut self, screen: &mut Screen) -> Result<Option<Frame>, Failure> {
        loop {
            match self.channel.flush().and_then(|_| self.channel.receive()) {
                Ok(frame) => return Ok(Some(frame)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    screen.flush()?;
                    self.wait()?;
                }
                Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(strange()),
                // Closed, reset or broken: what it had said before was received before.
                Err(_) => return Ok(None),
            }
        }
    }

    /// The next thing that the supervisor says, other than a refusal.
    ///
    /// # Errors
    /// As [`Client::frame`]; a refusal; the end of the connection.
    pub fn hear(&mut self, screen: &mut Screen) -> Result<Saying, Failure> {
        let Some(frame) = self.frame(screen)? else {
            let message = format!("the supervisor on {} went away before it answered", self.socket.display());
            return Err(Failure::new(Code::NoSupervisor, message));
        };
        match frame.message::<Said>().map_err(|_| strange())?.what {
            Saying::Refused(refusal) => Err(refusal.into()),
            said => Ok(said),
        }
    }

    fn wait(&self) -> Result<(), Failure> {
        let mut events = PollFlags::POLLIN;
        if self.channel.wants_write() {
            events |= PollFlags::POLLOUT;
        }
        let mut fds = vec![PollFd::new(self.channel.as_fd(), events)];
        fds.extend(self.interrupt.iter().map(|heard| PollFd::new(heard.as_fd(), PollFlags::POLLIN)));
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // Rounded up, so that time is really up when nothing came.
        let left = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, left) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(Failure::new(Code::Failed, format!("cannot wait for the supervisor: {e}"))),
        }
        let readable = |fd: &PollFd| fd.any().unwrap_or(true);
        if fds.get(1).is_some_and(readable) {
            return Err(Failure::new(Code::Interrupted, "not waiting any longer; the work goes on"));
        }
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) && !readable(&fds[0]) {
            let message = format!("no answer in time from the supervisor on {}", self.socket.display());
            return Err(Failure::new(Code::TimedOut, message));
        }
        Ok(())
    }
}

fn open(socket: &Path) -> io::Result<OwnedFd> {
    let stream = connect_unix(socket)?;
    stream.set_nonblocking(true)?;
    Ok(stream.into())
}

/// Puts a question that changes nothing and gives the whole answer.
///
/// # Errors
/// As [`Client::hear`].
pub fn look(place: &Place, screen: &mut Screen, request: Request) -> Result<Reply, Failure> {
    let mut client = Client::connect(place)?;
    client.ask(request, false, None);
    client.deadline = Some(Instant::now() + LOOK);
    loop {
        if let Saying::Done(reply) = client.hear(screen)? {
            return Ok(reply);
        }
    }
}

/// Puts a question whose answer takes work; Ctrl-C leaves it, as nothing changes by it.
///
/// # Errors
/// As [`Client::hear`].
pub fn look_long(
    place: &Place,
    screen: &mut Screen,
    request: Request,
    timeout: Option<Duration>,
) -> Result<Reply, Failure> {
    let mut client = Client::connect(place)?;
    client.ask(request, true, timeout);
    loop {
        if let Saying::Done(reply) = client.hear(screen)? {
            return Ok(reply);
        }
    }
}

/// Asks for a change, and unless told otherwise waits until it is so.
///
/// # Errors
/// As [`Client::hear`]: the change may be under way all the same when time is up or at Ctrl-C.
pub fn change(
    place: &Place,
    screen: &mut Screen,
    request: Request,
    waiting: &Waiting,
    mut progress: impl FnMut(&mut Screen, Saying) -> io::Result<()>,
) -> Result<Reply, Failure> {
    let mut client = Client::connect(place)?;
    client.ask(request, !waiting.no_wait, waiting.timeout);
    client.heed_interrupt()?;
    loop {
        match client.hear(screen)? {
            Saying::Done(reply) => return Ok(reply),
            said => progress(screen, said)?,
        }
    }
}

/// The other side said something that this version does not know.
pub fn strange() -> Failure {
    Failure::new(
        Code::Failed,
        "the supervisor answers what this everhook does not understand; are both of one version?",
    )
}
