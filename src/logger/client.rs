//! Somebody who reads logs: frames of `LogLine` on a socket, read from the files as fast as the client
//! takes them. What the capture writes is read back from the page cache; a rotated file stays open until
//! it is read, so neither rotation nor `keep` loses a line. One who stays too far behind is told how
//! many lines were skipped.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    lines::Lines,
    read::{Span, between, tail},
    runs::{self, Files},
    sink::Closer,
};
use crate::{
    domain::api::{LogLine, LogSource, Stream},
    os::channel::Channel,
};

/// What one reading takes from a file at most.
const CHUNK: usize = 64 * 1024;
/// A client is given no more to read while so much waits for it.
const BACKLOG: usize = 256 * 1024;
/// Rotated files that are kept open for a client that is behind, and the bytes they may hold.
const MAX_BEHIND: usize = 256;
const MAX_BYTES_BEHIND: u64 = 256 * 1024 * 1024;
/// The beginning of a line is shown when its end does not come within this.
const PATIENCE: Duration = Duration::from_millis(500);

/// What a client asks for.
#[derive(Debug)]
pub struct Wish {
    pub sources: Vec<LogSource>,
    pub follow: bool,
    /// Last lines of each stream; `None`: all.
    pub n: Option<u32>,
    /// The run before the current one; it is over, so nothing is followed.
    pub previous: bool,
    pub stderr: bool,
}

/// How far a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It has everything, or waits for what comes; at the moment, a line is to be shown unfinished.
    Waiting(Option<Instant>),
    /// There is more that it would take now.
    More,
    /// It does not take more now.
    Blocked,
    /// It has everything and nothing will come.
    Done,
}

/// One stream of one instance.
struct Feed {
    name: String,
    stream: Stream,
    path: PathBuf,
    spans: VecDeque<Span>,
    /// The last span goes on as its file grows.
    follow: bool,
    caught_up: bool,
    lines: Lines,
    waiting_since: Option<Instant>,
    skipped: u64,
}

/// Somebody who reads logs.
pub struct Client {
    channel: Channel,
    feeds: Vec<Feed>,
    closer: Closer,
}

impl Client {
    /// Opens what is to be read. The socket must be non-blocking.
    #[must_use]
    pub fn new(socket: OwnedFd, wish: &Wish, closer: Closer) -> Self {
        let streams = if wish.stderr { &[Stream::Err][..] } else { &[Stream::Out, Stream::Err] };
        let feeds = wish
            .sources
            .iter()
            .flat_map(|source| streams.iter().map(move |stream| Feed::new(source, *stream, wish)))
            .collect();
        Self { channel: Channel::new(socket), feeds, closer }
    }

    /// A sink has opened this file: it goes on there.
    pub fn opened(&mut self, path: &Path, file: &Arc<File>) {
        for feed in self.feeds.iter_mut().filter(|feed| feed.follow && feed.path == path) {
            feed.opened(file, &self.closer);
        }
    }

    /// Reads and sends what goes now, within bounds.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn step(&mut self, now: Instant) -> io::Result<Progress> {
        let more = self.fill(now);
        if !self.channel.flush()? {
            return Ok(Progress::Blocked);
        }
        if more {
            return Ok(Progress::More);
        }
        if self.feeds.iter().all(|feed| feed.spans.is_empty() && !feed.follow) {
            return Ok(Progress::Done);
        }
        let first = self.feeds.iter().filter_map(|feed| feed.waiting_since).min();
        Ok(Progress::Waiting(first.map(|since| since + PATIENCE)))
    }

    /// Queues frames, each feed's past at once, then a chunk of each in turn; is there more?
    fn fill(&mut self, now: Instant) -> bool {
        let mut chunk = vec![0; CHUNK];
        let mut more = false;
        for feed in &mut self.feeds {
            loop {
                if self.channel.backlog() > BACKLOG {
                    return true;
                }
                feed.tell_skipped(&mut self.channel);
                // What cannot be read any more is over.
                let n = feed.read(&mut chunk, &self.closer).unwrap_or(0);
                if n == 0 {
                    feed.caught_up = true;
                    feed.rest(&mut self.channel, now);
                    break;
                }
                feed.waiting_since = None;
                let Feed { name, stream, lines, .. } = feed;
                lines.push(&chunk[..n], |line| send(&mut self.channel, name, *stream, line));
                if feed.caught_up {
                    more = true;
                    break;
                }
            }
        }
        more
    }

    /// Does the socket have to be watched for room?
    #[must_use]
    pub fn wants_write(&self) -> bool {
        self.channel.wants_write()
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Feed {
    fn new(source: &LogSource, stream: Stream, wish: &Wish) -> Self {
        let path = match stream {
            Stream::Out => &source.out,
            Stream::Err => &source.err,
        };
        let n = wish.n.map(u64::from);
        let follow = wish.follow && !wish.previous;
        let spans = if wish.previous { previous(path, stream, n) } else { tail(path, n) };
        let mut feed = Self {
            name: source.name.clone(),
            stream,
            path: path.clone(),
            spans: spans.unwrap_or_else(|e| {
                eprintln!("everhook logger: {}: {e}", path.display());
                VecDeque::new()
            }),
            follow,
            caught_up: false,
            lines: Lines::default(),
            waiting_since: None,
            skipped: 0,
        };
        if follow {
            feed.attach();
        }
        feed
    }

    /// Lets the last span grow with the current file.
    fn attach(&mut self) {
        let Ok(file) = File::open(&self.path) else { return };
        let Ok(meta) = file.metadata() else { return };
        let current = self.spans.back_mut().filter(|span| is_same(&span.file, &meta));
        match current {
            Some(span) => span.to = u64::MAX,
            None => self.spans.push_back(Span { file: Arc::new(file), from: meta.len(), to: u64::MAX }),
        }
    }

    fn opened(&mut self, file: &Arc<File>, closer: &Closer) {
        let Ok(meta) = file.metadata() else { return };
        if self.spans.back().is_some_and(|span| is_same(&span.file, &meta)) {
            return;
        }
        self.spans.push_back(Span { file: Arc::clone(file), from: 0, to: u64::MAX });
        let behind = self.spans.len() - 1;
        let held = || -> u64 { self.spans.iter().take(behind).map(left_in).sum() };
        if behind > MAX_BEHIND || held() > MAX_BYTES_BEHIND {
            self.skip(closer);
        }
    }

    /// Gives up everything but the newest file.
    fn skip(&mut self, closer: &Closer) {
        while self.spans.len() > 1
            && let Some(mut span) = self.spans.pop_front()
        {
            span.to = span.from + left_in(&span);
            self.skipped += span.newlines().unwrap_or(0);
            closer.close(span.file);
        }
        // The newline of this line is among those counted.
        self.lines.finish();
    }

    fn tell_skipped(&mut self, channel: &mut Channel) {
        if self.skipped > 0 {
            let text = format!("[everhook: {} lines skipped]", self.skipped);
            self.skipped = 0;
            send(channel, &self.name, self.stream, text.as_bytes());
        }
    }

    /// The next bytes; 0 where nothing more is there now.
    fn read(&mut self, chunk: &mut [u8], closer: &Closer) -> io::Result<usize> {
        while let Some(span) = self.spans.front_mut() {
            let most = usize::try_from(span.to - span.from).unwrap_or(usize::MAX).min(chunk.len());
            let n = span.file.read_at(&mut chunk[..most], span.from)?;
            if n > 0 {
                span.from += n as u64;
                return Ok(n);
            }
            if self.follow && self.spans.len() == 1 {
                // Somebody truncated it.
                if let Some(span) = self.spans.front_mut() {
                    span.from = span.from.min(span.file.metadata()?.len());
                }
                return Ok(0);
            }
            if let Some(span) = self.spans.pop_front() {
                closer.close(span.file);
            }
        }
        Ok(0)
    }

    /// What to do with the beginning of a line when nothing more is there now.
    fn rest(&mut self, channel: &mut Channel, now: Instant) {
        let shown = if !self.follow {
            self.lines.finish()
        } else if !self.lines.waits() {
            self.waiting_since = None;
            None
        } else if now >= *self.waiting_since.get_or_insert(now) + PATIENCE {
            self.waiting_since = None;
            self.lines.show()
        } else {
            None
        };
        if let Some(line) = shown {
            send(channel, &self.name, self.stream, &line);
        }
    }
}

fn previous(path: &Path, stream: Stream, n: Option<u64>) -> io::Result<VecDeque<Span>> {
    let Some(files) = Files::of(path) else { return Ok(VecDeque::new()) };
    match runs::previous(&files.runs, stream)? {
        Some((begin, end)) => between(path, begin, end, n),
        None => Ok(VecDeque::new()),
    }
}

fn left_in(span: &Span) -> u64 {
    span.file.metadata().map_or(0, |m| m.len().min(span.to)).saturating_sub(span.from)
}

fn is_same(file: &File, other: &std::fs::Metadata) -> bool {
    file.metadata().is_ok_and(|m| (m.dev(), m.ino()) == (other.dev(), other.ino()))
}

fn send(channel: &mut Channel, name: &str, stream: Stream, line: &[u8]) {
    let line = String::from_utf8_lossy(line).into_owned();
    channel.queue(
        &LogLine { at: None, instance: name.to_owned(), stream: stream.as_str().to_owned(), line },
        &[],
        None,
    );
}
