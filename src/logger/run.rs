//! The loop: what is readable is captured, what the supervisor says is done, readers are served.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

use super::{
    aside::Aside,
    capture::{Capture, Told},
    client::{Client, Progress},
    echo::Echo,
    filter::Filter,
    sink::SinkFile,
    sources::{Source, Sources},
};
use crate::{
    domain::{
        api::{FromLogger, Sink, Stream},
        model::At,
    },
    os::{
        capture::{Buffer, readable},
        channel::Channel,
        fifo::{WIDE, set_pipe_size},
        memory,
        notes::Notes,
        threads,
    },
};

/// A pass in which nobody gave this many bytes is followed by [`PAUSE`]: many small writes then cost one
/// pass. In ms; a flood fills a pipe within a pause, so it is never slowed down by this one.
const BUSY: usize = 32 * 1024;
/// So many bytes does one source give in a row at most while it gives that much; nobody waits long for it.
const IN_A_ROW: usize = 256 * 1024;
/// Whoever fills a pipe of the usual size so often in a row gets a larger one: every time that it is full
/// costs writer and reader a change of the processor.
const FULL: usize = 60 * 1024;
const OFTEN: u8 = 16;
const PAUSE: u8 = 5;
/// A flood waits for so long where a run begins, in ms: what is being started goes first. Whoever floods soon waits
/// for us, and leaves the processors too.
const FIRST_STEPS: u8 = 2;
/// Readers and stdout have this long to take what is left at the end.
const LAST_WORDS: Duration = Duration::from_millis(500);

pub(super) const CHANNEL: u64 = 0;
const SIGNAL: u64 = 1;
const BELL: u64 = 2;
const FIRST: u64 = 3;

/// Rung by a thread that has told a reader the past.
#[derive(Clone)]
pub(super) struct Bell {
    told: mpsc::Sender<(u64, Option<Filter>)>,
    fd: Arc<EventFd>,
}

impl Bell {
    /// The client goes on with this filter, or has what it asked for.
    pub fn ring(&self, token: u64, filter: Option<Filter>) {
        // Without a loop there is nothing to wake.
        if self.told.send((token, filter)).is_ok() {
            let _ = self.fd.write(1);
        }
    }
}

/// The logger process.
pub(super) struct Logger {
    pub epoll: Epoll,
    pub channel: Option<Channel>,
    /// Where runs are marked, and the last mark of each that is captured under no such name yet.
    pub marks: Option<Notes>,
    pub unplaced: HashMap<String, At>,
    /// A run has begun in this pass.
    pub begun: bool,
    signals: SignalFd,
    pub capture: Capture,
    pub aside: Aside,
    /// The logs folder; nothing outside of it is read.
    pub logs: PathBuf,
    pub sources: Sources,
    pub clients: HashMap<u64, Client>,
    pub echo: Echo,
    pub finished: bool,
    pub bell: Bell,
    told: mpsc::Receiver<(u64, Option<Filter>)>,
    /// Threads that tell the past.
    pub telling: usize,
    /// When the first file becomes too old.
    expiry: Option<Instant>,
    next: u64,
    /// When the first unfinished line of a reader is to be shown.
    deadline: Option<Instant>,
    /// A reader could go on at once.
    more: bool,
    /// Something was captured since the readers last went on.
    captured: bool,
}

impl Logger {
    /// Takes channel and buffer over.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn new(channel: OwnedFd, buffer: Buffer, logs: PathBuf) -> io::Result<Self> {
        if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            // Two descriptors a stream; where the limit stays, opening a sink fails and says so.
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let aside = Aside::start();
        let (capture, finished) = Capture::take_over(buffer, &aside);
        if let Err(error) = finished {
            eprintln!("everhook logger: what a killed logger had begun could not be finished: {error}");
        }
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&channel, EpollEvent::new(EpollFlags::EPOLLIN, CHANNEL))?;
        epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNAL))?;
        let fd = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        epoll.add(&*fd, EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
        let (tell, told) = mpsc::channel();
        Ok(Self {
            epoll,
            channel: Some(Channel::new(channel)),
            marks: None,
            unplaced: HashMap::new(),
            begun: false,
            signals,
            capture,
            aside,
            logs,
            sources: Sources::default(),
            clients: HashMap::new(),
            echo: Echo::new(),
            finished: false,
            bell: Bell { told: tell, fd },
            told,
            telling: 0,
            expiry: None,
            next: FIRST,
            deadline: None,
            more: false,
            captured: false,
        })
    }

    /// Captures until it is told to finish.
    ///
    /// # Errors
    /// When the kernel refuses to wait.
    pub fn run(&mut self) -> io::Result<()> {
        threads::run_in_turns_of(threads::LONG, false);
        let mut events = vec![EpollEvent::empty(); 256];
        while !self.finished {
            memory::at_rest();
            let count = match self.epoll.wait(&mut events, self.timeout()) {
                Err(nix::Error::EINTR) => continue,
                other => other?,
            };
            let mut most = 0;
            for event in &events[..count] {
                match event.data() {
                    CHANNEL => self.hear(),
                    SIGNAL => self.finished |= self.signals.read_signal()?.is_some(),
                    BELL => self.hear_bell(),
                    token => most = most.max(self.ready(token, event.events())),
                }
            }
            if self.captured || self.more || self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                self.step_clients();
            }
            if self.expiry.is_some_and(|at| at <= Instant::now()) {
                self.rotate_expired();
            }
            let begun = std::mem::take(&mut self.begun);
            if most >= BUSY && begun {
                self.pause(FIRST_STEPS);
            } else if most >= BUSY {
                // Whoever has waited longer than we have run goes on now, and not at the kernel's next look.
                thread::yield_now();
            } else if most > 0 && !self.more && !self.finished {
                self.pause(PAUSE);
            }
        }
        self.finish();
        Ok(())
    }

    /// Lets small writes gather; whoever asks something is not kept waiting.
    fn pause(&self, most: u8) {
        let signals = PollFd::new(self.signals.as_fd(), PollFlags::POLLIN);
        let channel = self.channel.as_ref().map(|channel| PollFd::new(channel.as_fd(), PollFlags::POLLIN));
        let mut watched: Vec<PollFd> = [signals].into_iter().chain(channel).collect();
        // Interrupted or not, what comes next is the same.
        let _ = poll(&mut watched, most);
    }

    fn timeout(&self) -> EpollTimeout {
        if self.more {
            return EpollTimeout::ZERO;
        }
        let Some(deadline) = self.deadline.into_iter().chain(self.expiry).min() else { return EpollTimeout::NONE };
        // A millisecond more, as the rest of one is cut off.
        let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        EpollTimeout::try_from(left).unwrap_or(EpollTimeout::MAX)
    }

    fn hear_bell(&mut self) {
        let _ = self.bell.fd.read();
        while let Ok((token, filter)) = self.told.try_recv() {
            self.telling -= 1;
            match (filter, self.clients.get_mut(&token)) {
                (Some(filter), Some(client)) => {
                    client.begin(filter);
                    self.step_client(token);
                }
                _ => self.dismiss(token),
            }
        }
    }

    /// Moves files away whose first line is too old. One whose last line is open follows when it is whole.
    fn rotate_expired(&mut self) {
        let now = Instant::now();
        self.expiry = None;
        for Source { sink, .. } in self.sources.values_mut() {
            match sink.expires() {
                Some(at) if at > now => self.expiry = Some(self.expiry.map_or(at, |first| first.min(at))),
                Some(_) => {
                    if let Err(error) = self.capture.rotate(sink) {
                        eprintln!("everhook logger: {}: {error}", sink.path.display());
                    }
                    tell_opened(sink, &mut self.clients);
                }
                None => {}
            }
        }
    }

    /// A source or a client is ready; how many bytes were captured.
    fn ready(&mut self, token: u64, flags: EpollFlags) -> usize {
        if self.clients.contains_key(&token) {
            if flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
                self.dismiss(token);
            } else {
                self.step_client(token);
            }
            return 0;
        }
        let Some(source) = self.sources.get(token) else { return 0 };
        let held = self.holds(token);
        if held == 0 && flags.contains(EpollFlags::EPOLLHUP) != source.hung_up {
            self.watch(token, flags.contains(EpollFlags::EPOLLHUP));
        }
        self.take_in_a_row(token, held)
    }

    /// Moves what a FIFO holds, and at once what came meanwhile where that is much; the most of one pass.
    fn take_in_a_row(&mut self, token: u64, mut held: usize) -> usize {
        let (mut most, mut total) = (0, 0);
        self.doubt(token);
        while held > 0 && total < IN_A_ROW {
            let n = self.take(token, held);
            most = most.max(n);
            total += n;
            if n < BUSY || self.begun {
                break;
            }
            self.widen(token, n);
            held = self.holds(token);
        }
        most
    }

    /// The file of a source is looked at before it is written to again.
    fn doubt(&mut self, token: u64) {
        if let Some(source) = self.sources.get_mut(token) {
            source.sink.doubt();
        }
    }

    /// Gives a pipe that is always full more room, or asks whoever may.
    fn widen(&mut self, token: u64, n: usize) {
        let Some(source) = self.sources.get_mut(token).filter(|source| source.full < OFTEN) else { return };
        source.full = if n >= FULL { source.full + 1 } else { 0 };
        if source.full == OFTEN && set_pipe_size(&source.fifo, WIDE).is_err() {
            let (source, stream) = (source.name.to_string(), source.stream);
            self.tell(&FromLogger::Crowded { source, stream });
        }
    }

    /// Watches a FIFO: at every wait, or, where no writer is left, only when one comes.
    fn watch(&mut self, token: u64, hung_up: bool) {
        let Some(source) = self.sources.get_mut(token) else { return };
        source.hung_up = hung_up;
        let edge = if hung_up { EpollFlags::EPOLLET } else { EpollFlags::empty() };
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN | edge, token);
        if let Err(error) = self.epoll.modify(&source.fifo, &mut event) {
            eprintln!("everhook logger: {} {}: {error}", source.name, source.stream.as_str());
        }
    }

    /// Bytes that a FIFO holds now.
    fn holds(&self, token: u64) -> usize {
        self.sources.get(token).and_then(|source| readable(&source.fifo).ok()).unwrap_or(0)
    }

    /// Moves up to `n` bytes, which the FIFO holds; how many.
    fn take(&mut self, token: u64, n: usize) -> usize {
        self.heed_marks();
        let Some(source) = self.sources.get_mut(token) else { return 0 };
        let Source { sink, lines, .. } = source;
        let (n, told) = match self.capture.pass(&source.fifo, n, sink) {
            Ok(taken) => taken,
            Err(error) => {
                eprintln!("everhook logger: {} {}: {error}", source.name, source.stream.as_str());
                if let Some(source) = self.sources.remove(token) {
                    self.forget(&source.fifo);
                }
                return 0;
            }
        };
        self.captured = true;
        if source.is_app && self.echo.is_on() {
            self.echo.push(&source.name, lines.get_or_insert_default(), self.capture.last());
        }
        tell_opened(sink, &mut self.clients);
        let line_open = sink.opened.as_ref().is_some_and(|opened| opened.line_open);
        if let Some(at) = sink.expires().filter(|at| !line_open || *at > Instant::now()) {
            self.expiry = Some(self.expiry.map_or(at, |first| first.min(at)));
        }
        if let Some(told) = told {
            let source = source.name.to_string();
            self.tell_gap(source, told);
        }
        if n > 0 && self.sources.get(token).is_some_and(|source| source.hung_up) {
            self.watch(token, false);
        }
        n
    }

    /// Moves what the FIFO holds now, not what comes meanwhile.
    pub fn drain(&mut self, token: u64) {
        let mut left = self.holds(token);
        self.doubt(token);
        while left > 0 {
            let n = self.take(token, left);
            if n == 0 {
                break;
            }
            left -= n.min(left);
        }
    }

    /// Begins to capture a FIFO. One of the same name and stream ends, after what it holds was written.
    ///
    /// # Errors
    /// When epoll takes no more.
    pub fn open(&mut self, name: &str, stream: Stream, sink: Sink, fifo: OwnedFd) -> io::Result<()> {
        let mut before = None;
        if let Some(token) = self.sources.stream(name, stream) {
            self.drain(token);
            before = self.remove(token).map(|source| source.sink);
        }
        let token = self.token();
        self.epoll.add(&fifo, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        let file = self.file(name, before, sink);
        self.sources.insert(token, Source::new(name, stream, fifo, file));
        Ok(())
    }

    /// The file for this sink: the one `before` where that has its path, which is closed otherwise.
    pub fn file(&mut self, name: &str, before: Option<SinkFile>, sink: Sink) -> SinkFile {
        let how = self.sources.share(sink.how);
        let mut file = match before {
            Some(same) if *same.path == *sink.path => same,
            other => {
                if let Some(mut left) = other {
                    self.close_file(name, &mut left);
                }
                SinkFile::new(sink.path, Arc::clone(&how), self.aside.clone())
            }
        };
        if let Err(error) = file.go_on(how).and_then(|()| self.capture.begin_form(&mut file)) {
            eprintln!("everhook logger: {}: {error}", file.path.display());
        }
        tell_opened(&mut file, &mut self.clients);
        if let Some(at) = file.expires() {
            self.expiry = Some(self.expiry.map_or(at, |first| first.min(at)));
        }
        file
    }

    /// Ends these, after what they hold was written.
    pub fn close(&mut self, tokens: impl IntoIterator<Item = u64>) {
        for token in tokens {
            self.drain(token);
            if let Some(mut source) = self.remove(token) {
                self.close_file(&source.name, &mut source.sink);
            }
        }
    }

    /// Reads a source no more.
    fn remove(&mut self, token: u64) -> Option<Source> {
        let mut source = self.sources.remove(token)?;
        self.forget(&source.fifo);
        if let Some(mut lines) = source.lines.take() {
            self.echo.finish_source(&source.name, &mut lines);
        }
        Some(source)
    }

    /// Says in a file what is missing, where something is, before it is written to no more.
    pub fn close_file(&mut self, name: &str, sink: &mut SinkFile) {
        if let Some(told) = self.capture.close(sink) {
            self.tell_gap(name.to_owned(), told);
        }
    }

    fn tell_gap(&mut self, source: String, told: Told) {
        let (dropped, reason) = match told {
            Told::Dropping { bytes, reason } => (bytes, Some(reason)),
            Told::Resumed { bytes } => (bytes, None),
        };
        self.tell(&FromLogger::Dropping { source, dropped, reason });
    }

    /// A name for something that epoll watches.
    pub fn token(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Lets all clients go on.
    pub fn step_clients(&mut self) {
        self.more = false;
        self.captured = false;
        self.deadline = None;
        let tokens: Vec<u64> = self.clients.keys().copied().collect();
        for token in tokens {
            self.step_client(token);
        }
    }

    /// Lets a client go on.
    pub fn step_client(&mut self, token: u64) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        let progress = client.step(Instant::now());
        match progress {
            Ok(Progress::Done) | Err(_) => return self.dismiss(token),
            Ok(Progress::More) => self.more = true,
            Ok(Progress::Waiting(Some(at))) => self.deadline = Some(self.deadline.map_or(at, |d| d.min(at))),
            Ok(Progress::Waiting(None) | Progress::Blocked) => {}
        }
        let room = if client.wants_write() { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
        if self.epoll.modify(client.as_fd(), &mut EpollEvent::new(room, token)).is_err() {
            self.dismiss(token);
        }
    }

    /// Lets everybody go whom the token of this name opened a log for.
    pub fn dismiss_of(&mut self, opener: &str) {
        let theirs = self.clients.iter().filter(|(_, client)| client.is_opened_by(opener));
        let theirs: Vec<u64> = theirs.map(|(token, _)| *token).collect();
        theirs.into_iter().for_each(|token| self.dismiss(token));
    }

    fn dismiss(&mut self, token: u64) {
        if let Some(client) = self.clients.remove(&token) {
            self.forget(&client);
        }
    }

    /// Stops watching what is about to be closed. Closing alone does not: whoever passed the descriptor
    /// may have it open still, and epoll watches what is behind it.
    pub fn forget(&self, fd: impl AsFd) {
        if let Err(error) = self.epoll.delete(fd) {
            eprintln!("everhook logger: a descriptor cannot be forgotten: {error}");
        }
    }

    /// Writes everything that the FIFOs hold, and lets readers and stdout take it.
    fn finish(&mut self) {
        self.hear();
        self.close(self.sources.all());
        for client in self.clients.values_mut() {
            client.end();
        }
        let end = Instant::now() + LAST_WORDS;
        let mut events = [EpollEvent::empty(); 16];
        loop {
            self.step_clients();
            let busy = self.more || self.telling > 0 || self.clients.values().any(Client::wants_write);
            if !busy || Instant::now() >= end {
                break;
            }
            // Only to wait until one of them takes something, or was told everything.
            let _ = self.epoll.wait(&mut events, if self.more { 0u8 } else { 10 });
            self.hear_bell();
        }
        self.echo.finish(end.saturating_duration_since(Instant::now()));
    }
}

/// Lets followers go on in the files that a sink has opened.
fn tell_opened(sink: &mut SinkFile, clients: &mut HashMap<u64, Client>) {
    for file in sink.fresh.drain(..) {
        for client in clients.values_mut() {
            client.opened(&sink.path, &file);
        }
    }
}
