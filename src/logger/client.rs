//! Somebody who follows logs: lines on a socket, read from the files as fast as the client takes them,
//! once its [`history`](super::history) is told. What the capture writes is read back from the page cache; a
//! rotated file stays open until it is read, so neither rotation nor `keep` loses a line. One who stays too
//! far behind is told how many lines were skipped.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use memchr::memchr_iter;

use super::{
    aside::Aside,
    filter::Filter,
    form::Reading,
    history::{Chapter, End, last_line, lines_of, queue},
    lines::{Lines, Piece},
};
use crate::{
    domain::api::{LogFeed, LogFrame, LogPlace},
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

/// How far a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It has everything; at the moment, a line is to be shown unfinished.
    Waiting(Option<Instant>),
    /// There is more that it would take now.
    More,
    /// It does not take more now.
    Blocked,
    /// It has everything and nothing will come.
    Done,
}

/// A file that is read on; the last one of a log grows.
struct Part {
    file: Arc<File>,
    inode: u64,
    from: u64,
}

/// One log that is followed.
struct Follow {
    feed: LogFeed,
    parts: VecDeque<Part>,
    lines: Lines,
    reading: Reading,
    waiting_since: Option<Instant>,
    skipped: u64,
    /// Nothing more will come.
    ended: bool,
}

/// Somebody who follows logs.
pub struct Client {
    channel: Channel,
    follows: Vec<Follow>,
    /// The name of the token that opened it.
    opener: Option<String>,
    /// `None` while the past is being told, elsewhere.
    filter: Option<Filter>,
    aside: Aside,
}

impl Client {
    /// Opens what is to be followed. The socket must be non-blocking.
    #[must_use]
    pub fn new(socket: OwnedFd, feeds: Vec<LogFeed>, opener: Option<String>, aside: Aside) -> Self {
        let follows = feeds.into_iter().map(Follow::new).collect();
        Self { channel: Channel::new(socket), follows, opener, filter: None, aside }
    }

    /// What comes before that which is followed.
    #[must_use]
    pub fn past(&self) -> Vec<Chapter> {
        let chapter = |follow: &Follow| {
            let at = |part: &Part| End::At(Arc::clone(&part.file), part.from);
            let end = follow.parts.front().map_or(End::Nothing, at);
            Chapter { feed: follow.feed.clone(), end }
        };
        self.follows.iter().map(chapter).collect()
    }

    /// The past is told: from now on it follows.
    pub fn begin(&mut self, filter: Filter) {
        self.filter = Some(filter);
        for Follow { feed, parts, .. } in &self.follows {
            let place = parts.front().map_or(LogPlace { inode: 0, offset: 0 }, |part| part.place(0));
            let (instance, stream) = (feed.instance.clone(), feed.stream.as_str().to_owned());
            self.channel.queue(&LogFrame::Here { instance, stream }, &place.bytes(), None);
        }
    }

    /// A sink has opened this file: it goes on there.
    pub fn opened(&mut self, path: &Path, file: &Arc<File>) {
        for follow in self.follows.iter_mut().filter(|follow| follow.feed.path == path) {
            follow.opened(file, &self.aside);
        }
    }

    /// This log goes on at another path, under another name.
    pub fn renamed(&mut self, from: &Path, to: &Path, instance: &str) {
        for follow in self.follows.iter_mut().filter(|follow| follow.feed.path == from) {
            to.clone_into(&mut follow.feed.path);
            let was = std::mem::replace(&mut follow.feed.instance, instance.to_owned());
            self.channel.queue(&LogFrame::Renamed { was, instance: instance.to_owned() }, &[], None);
        }
    }

    /// Nothing more will come into this log.
    pub fn ended(&mut self, path: &Path) {
        for follow in self.follows.iter_mut().filter(|follow| follow.feed.path == path) {
            follow.ended = true;
        }
    }

    /// Nothing more will come at all.
    pub fn end(&mut self) {
        for follow in &mut self.follows {
            follow.ended = true;
        }
    }

    /// Reads and sends what goes now, within bounds.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn step(&mut self, now: Instant) -> io::Result<Progress> {
        let Some(filter) = &self.filter else { return Ok(Progress::Waiting(None)) };
        let mut chunk = vec![0; CHUNK];
        let mut more = false;
        for follow in &mut self.follows {
            if self.channel.backlog() > BACKLOG {
                more = true;
                break;
            }
            more |= follow.go_on(&mut chunk, filter, &mut self.channel, &self.aside, now);
        }
        let done = !more && self.follows.iter().all(|follow| follow.ended);
        if done {
            self.channel.queue(&LogFrame::end(), &[], None);
            self.follows.clear();
        }
        if !self.channel.flush()? {
            return Ok(Progress::Blocked);
        }
        if more {
            return Ok(Progress::More);
        }
        if done {
            return Ok(Progress::Done);
        }
        let first = self.follows.iter().filter_map(|follow| follow.waiting_since).min();
        Ok(Progress::Waiting(first.map(|since| since + PATIENCE)))
    }

    /// Was it opened by the token of this name?
    #[must_use]
    pub fn is_opened_by(&self, token: &str) -> bool {
        self.opener.as_deref() == Some(token)
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

impl Part {
    /// The place so many bytes before where it is.
    fn place(&self, before: usize) -> LogPlace {
        LogPlace { inode: self.inode, offset: self.from.saturating_sub(before as u64) }
    }

    fn left(&self) -> u64 {
        self.file.metadata().map_or(0, |meta| meta.len()).saturating_sub(self.from)
    }

    fn newlines(&self) -> io::Result<u64> {
        let mut chunk = vec![0; CHUNK];
        let (mut at, mut count) = (self.from, 0);
        loop {
            let n = self.file.read_at(&mut chunk, at)?;
            if n == 0 {
                return Ok(count);
            }
            count += memchr_iter(b'\n', &chunk[..n]).count() as u64;
            at += n as u64;
        }
    }
}

impl Follow {
    fn new(feed: LogFeed) -> Self {
        let part = File::open(&feed.path).and_then(|file| {
            let from = last_line(&file)?;
            Ok(Part { inode: file.metadata()?.ino(), file: Arc::new(file), from })
        });
        let (lines, reading) = (lines_of(feed.form), Reading::new(feed.form));
        Self { feed, parts: part.into_iter().collect(), lines, reading, waiting_since: None, skipped: 0, ended: false }
    }

    fn opened(&mut self, file: &Arc<File>, aside: &Aside) {
        let Ok(meta) = file.metadata() else { return };
        let is_it = |part: &Part| part.file.metadata().is_ok_and(|m| (m.dev(), m.ino()) == (meta.dev(), meta.ino()));
        if self.parts.back().is_some_and(is_it) {
            return;
        }
        self.parts.push_back(Part { file: Arc::clone(file), inode: meta.ino(), from: 0 });
        let behind = self.parts.len() - 1;
        let held = || -> u64 { self.parts.iter().take(behind).map(Part::left).sum() };
        if behind > MAX_BEHIND || held() > MAX_BYTES_BEHIND {
            self.skip(aside);
        }
    }

    /// Gives up everything but the newest file.
    fn skip(&mut self, aside: &Aside) {
        while self.parts.len() > 1
            && let Some(part) = self.parts.pop_front()
        {
            self.skipped += part.newlines().unwrap_or(0);
            aside.close(part.file);
        }
        // The newline of this line is among those counted.
        self.lines.finish();
        self.reading = Reading::new(self.feed.form);
    }

    fn place(&self, before: usize) -> LogPlace {
        self.parts.front().map_or(LogPlace { inode: 0, offset: 0 }, |part| part.place(before))
    }

    /// Queues what a chunk holds; is there more?
    fn go_on(&mut self, chunk: &mut [u8], filter: &Filter, channel: &mut Channel, aside: &Aside, now: Instant) -> bool {
        if self.skipped > 0 {
            let text = format!("[everhook: {} lines skipped]", std::mem::take(&mut self.skipped));
            queue(channel, &self.feed, None, text, self.place(0));
        }
        // What cannot be read any more is over.
        let n = self.read(chunk, aside).unwrap_or(0);
        if n == 0 {
            self.rest(filter, channel, now);
            return false;
        }
        self.waiting_since = None;
        let place = self.place(n);
        let Self { feed, lines, reading, .. } = self;
        lines.push(&chunk[..n], |Piece { bytes, whole, end }| {
            let line = reading.line(bytes, whole);
            if filter.wants(&line) {
                let place = LogPlace { offset: place.offset + end as u64, ..place };
                queue(channel, feed, line.at, line.text, place);
            }
        });
        true
    }

    /// The next bytes; 0 where nothing more is there now.
    fn read(&mut self, chunk: &mut [u8], aside: &Aside) -> io::Result<usize> {
        while let Some(part) = self.parts.front_mut() {
            let n = part.file.read_at(chunk, part.from)?;
            if n > 0 {
                part.from += n as u64;
                return Ok(n);
            }
            if self.parts.len() == 1 {
                // Somebody truncated it.
                if let Some(part) = self.parts.front_mut() {
                    part.from = part.from.min(part.file.metadata()?.len());
                }
                return Ok(0);
            }
            if let Some(part) = self.parts.pop_front() {
                aside.close(part.file);
            }
        }
        Ok(0)
    }

    /// What to do with the beginning of a line when nothing more is there now.
    fn rest(&mut self, filter: &Filter, channel: &mut Channel, now: Instant) {
        if !self.lines.waits() {
            self.waiting_since = None;
        } else if self.ended || now >= *self.waiting_since.get_or_insert(now) + PATIENCE {
            self.waiting_since = None;
            if let Some(bytes) = self.lines.show() {
                let line = self.reading.line(&bytes, false);
                if filter.wants(&line) {
                    queue(channel, &self.feed, line.at, line.text, self.place(self.lines.held()));
                }
            }
        }
    }
}
