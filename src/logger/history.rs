//! What a reader gets of the past: lines over all files of its logs, compressed ones too, by time and
//! by what is in them. A thread of its own reads and sends it, so the capture never waits for the disk, for
//! an expression or for whoever reads.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
    sync::Arc,
    thread,
};

use memchr::{memchr_iter, memrchr_iter};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    aside::Aside,
    chain::{self, Found},
    filter::Filter,
    form::Reading,
    lines::{Lines, Piece},
    runs::{self, Files, Place},
    times,
};
use crate::{
    domain::{
        api::{LogFeed, LogFrame, LogLine, LogPlace, LogWish, Refusal, RefusalKind},
        config::Form,
        model::At,
    },
    os::{channel::Channel, threads},
};

const CHUNK: usize = 64 * 1024;
/// So much is put together before it is sent, in bytes.
const BATCH: usize = 128 * 1024;
/// A line in a form is not longer than this, whatever stands in the file.
const LONGEST: usize = 8 * 1024 * 1024;
/// The clock of files may be behind by so much, in milliseconds.
const COARSE: i64 = 20;
/// A run is noted in its log so much later than it began at most, in milliseconds.
const LATE: i64 = 2_000;

/// A log to be read.
pub struct Chapter {
    pub feed: LogFeed,
    pub end: End,
}

/// Where the past of a log ends.
pub enum End {
    /// Where the log does.
    Open,
    /// At this offset of this file: the reader follows what comes behind.
    At(Arc<File>, u64),
    /// Before the first line: all of it is followed.
    Nothing,
}

/// The past of some logs, for one reader.
pub struct Past {
    pub socket: OwnedFd,
    pub chapters: Vec<Chapter>,
    pub wish: LogWish,
    pub aside: Aside,
}

/// A part of a file.
#[derive(Debug, Clone)]
struct Span {
    found: Found,
    from: u64,
    to: u64,
    /// So many of its wanted lines come too early.
    skip: u64,
}

impl Past {
    /// Reads and sends on a thread; `then` gets the filter when everything was sent and more may come.
    pub fn tell(self, then: impl FnOnce(Option<Filter>) + Send + 'static) {
        thread::spawn(move || {
            threads::yield_to_others();
            let told = self.run();
            then(told.unwrap_or(None));
        });
    }

    fn run(self) -> io::Result<Option<Filter>> {
        let mut teller = Teller { channel: Channel::new(self.socket), follow: self.wish.follow };
        let filter = match Filter::new(&self.wish) {
            Ok(filter) => filter,
            Err(message) => {
                let refusal = Refusal::new(RefusalKind::BadRequest, message);
                teller.channel.queue(&LogFrame::refused(refusal), &[], None);
                teller.send()?;
                return Ok(None);
            }
        };
        for chapter in &self.chapters {
            let story = Story { chapter, wish: &self.wish, filter: &filter };
            match story.spans(&self.aside) {
                Ok(spans) => story.tell(&spans, &mut teller)?,
                Err(error) => eprintln!("everhook logger: {}: {error}", chapter.feed.path.display()),
            }
        }
        if !self.wish.follow {
            teller.channel.queue(&LogFrame::end(), &[], None);
        }
        teller.send()?;
        Ok(self.wish.follow.then_some(filter))
    }
}

/// Sends to a reader, at its pace.
struct Teller {
    channel: Channel,
    follow: bool,
}

impl Teller {
    fn send(&mut self) -> io::Result<()> {
        while !self.channel.flush()? {
            poll(&mut [PollFd::new(self.channel.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
        }
        Ok(())
    }

    /// Fails when nobody reads any more.
    fn is_heard(&self) -> io::Result<()> {
        let mut socket = [PollFd::new(self.channel.as_fd(), PollFlags::empty())];
        match poll(&mut socket, PollTimeout::ZERO)? {
            0 => Ok(()),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// One log for one reader.
struct Story<'a> {
    chapter: &'a Chapter,
    wish: &'a LogWish,
    filter: &'a Filter,
}

impl Story<'_> {
    /// What is to be told, oldest first.
    fn spans(&self, aside: &Aside) -> io::Result<Vec<Span>> {
        let (feed, wish) = (&self.chapter.feed, self.wish);
        let mut files = chain::files(&feed.path, aside)?;
        match &self.chapter.end {
            End::Open => {}
            End::At(file, to) => end_at(&mut files, file, *to)?,
            End::Nothing => files.clear(),
        }
        let whole = |found: Found| Span { from: 0, to: found.length, skip: 0, found };
        let mut spans: Vec<Span> = files.into_iter().map(whole).collect();
        if let Some(place) = feed.from {
            resume(&mut spans, place);
            return Ok(oldest_first(spans));
        }
        if wish.previous {
            spans = previous(spans, feed)?;
        } else if let Some(since) = wish.since {
            from_moment(&mut spans, &feed.path, since);
        }
        match wish.n {
            Some(n) => self.last(spans, n.into()),
            None => Ok(oldest_first(spans)),
        }
    }

    /// The last `n` lines that are wanted; files that come before them are not touched.
    fn last(&self, spans: Vec<Span>, n: u64) -> io::Result<Vec<Span>> {
        let mut kept = Vec::new();
        let mut left = n;
        for mut span in spans {
            if left == 0 {
                break;
            }
            if span.from >= span.to {
                continue;
            }
            if self.filter.is_empty() && !span.found.zip {
                span.keep_last(&mut left)?;
            } else {
                let count = self.count(&span)?;
                span.skip = count.saturating_sub(left);
                left -= count - span.skip;
            }
            kept.push(span);
        }
        Ok(oldest_first(kept))
    }

    /// How many lines of it are wanted.
    fn count(&self, span: &Span) -> io::Result<u64> {
        let mut count = 0;
        if self.filter.is_empty() {
            let mut open = false;
            span.read(|chunk, _| {
                count += memchr_iter(b'\n', chunk).count() as u64;
                open = chunk.last() != Some(&b'\n');
                Ok(())
            })?;
            return Ok(count + u64::from(open));
        }
        let mut reading = Reading::new(self.chapter.feed.form);
        let mut lines = lines_of(self.chapter.feed.form);
        let mut look = |bytes: &[u8], whole| count += u64::from(self.filter.wants(&reading.line(bytes, whole)));
        span.read(|chunk, _| {
            lines.push(chunk, |piece| look(piece.bytes, piece.whole));
            Ok(())
        })?;
        if let Some(rest) = lines.finish() {
            look(&rest, true);
        }
        Ok(count)
    }

    fn tell(&self, spans: &[Span], teller: &mut Teller) -> io::Result<()> {
        let feed = &self.chapter.feed;
        let mut reading = Reading::new(feed.form);
        let mut lines = lines_of(feed.form);
        let mut place = LogPlace { inode: 0, offset: 0 };
        for span in spans {
            let mut skip = span.skip;
            place.inode = span.found.inode;
            span.read(|chunk, offset| {
                lines.push(chunk, |Piece { bytes, whole, end }| {
                    let line = reading.line(bytes, whole);
                    if !self.filter.wants(&line) {
                        return;
                    }
                    if skip > 0 {
                        skip -= 1;
                        return;
                    }
                    let place = LogPlace { offset: offset + end as u64, ..place };
                    queue(&mut teller.channel, feed, line.at, line.text, place);
                });
                place.offset = offset + chunk.len() as u64;
                if teller.channel.backlog() > BATCH { teller.send() } else { teller.is_heard() }
            })?;
        }
        // Of a reader that follows, the rest goes on there; it is long, or there is none.
        if let Some(rest) = lines.finish() {
            let line = reading.line(&rest, !teller.follow);
            if self.filter.wants(&line) {
                queue(&mut teller.channel, feed, line.at, line.text, place);
            }
        }
        Ok(())
    }
}

/// Puts a line and the place behind it into a reader's queue.
pub fn queue(channel: &mut Channel, feed: &LogFeed, at: Option<At>, line: String, place: LogPlace) {
    let (instance, stream) = (feed.instance.clone(), feed.stream.as_str().to_owned());
    channel.queue(&LogLine { at, instance, stream, line }, &place.bytes(), None);
}

/// For a file in this form.
#[must_use]
pub fn lines_of(form: Form) -> Lines {
    if form == Form::Raw { Lines::default() } else { Lines::up_to(LONGEST) }
}

fn oldest_first(mut spans: Vec<Span>) -> Vec<Span> {
    spans.retain(|span| span.from < span.to);
    spans.reverse();
    spans
}

/// Lets the files end in this one, at this offset; it may have been moved or compressed meanwhile.
fn end_at(files: &mut Vec<Found>, file: &Arc<File>, to: u64) -> io::Result<()> {
    let last = Found::plain(Arc::clone(file))?;
    // Its inode is not used again as long as it is open, but an older file may have had it.
    let is_it = |found: &Found| found.inode == last.inode && (!found.zip || found.length == last.length);
    match files.iter().position(is_it) {
        Some(newer) => drop(files.drain(..newer)),
        None => *files = vec![last],
    }
    files[0].length = to;
    Ok(())
}

/// Leaves what comes behind the place; everything where the file is gone.
fn resume(spans: &mut Vec<Span>, place: LogPlace) {
    let is_it = |span: &Span| span.found.inode == place.inode && span.found.length >= place.offset;
    if let Some(at) = spans.iter().position(is_it) {
        spans.truncate(at + 1);
        spans[at].from = place.offset;
    }
}

/// The run before the current one. What was rotated out of it is missing.
fn previous(mut spans: Vec<Span>, feed: &LogFeed) -> io::Result<Vec<Span>> {
    let Some(files) = Files::of(&feed.path) else { return Ok(Vec::new()) };
    let Some((begin, end)) = runs::previous(&files.runs, feed.stream)? else { return Ok(Vec::new()) };
    let Some(newest) = find(&spans, end) else { return Ok(Vec::new()) };
    let oldest = find(&spans, begin).filter(|oldest| *oldest >= newest);
    if let Some(oldest) = oldest {
        spans.truncate(oldest + 1);
        spans[oldest].from = begin.offset;
    }
    spans.drain(..newest);
    spans[0].to = end.offset.min(spans[0].to);
    Ok(spans)
}

/// Leaves what was written since a moment, by the places that were noted, else by files.
fn from_moment(spans: &mut Vec<Span>, path: &Path, since: At) {
    let entries = times::entries(path);
    match entries.iter().position(|entry| entry.to > since) {
        // What came before the first one may be newer too.
        Some(0) => {}
        Some(first) => {
            let entry = entries[first];
            let place = Place { at: entry.from, inode: entry.inode, offset: entry.offset };
            if let Some(oldest) = find(spans, place) {
                spans.truncate(oldest + 1);
                spans[oldest].from = place.offset;
                return;
            }
        }
        None if !entries.is_empty() => return spans.clear(),
        None => {}
    }
    spans.retain(|span| span.found.written >= At(since.0 - COARSE));
}

/// The file in which a place is. Inodes are used again, so it must also have been written to then: after
/// that moment, and the file before it not.
fn find(spans: &[Span], place: Place) -> Option<usize> {
    if place.inode == 0 {
        // There was no file then.
        return None;
    }
    let fits = |span: &Span| span.found.inode == place.inode && span.found.length >= place.offset;
    let late = |span: &Span| span.found.written.0 + COARSE >= place.at.0;
    let oldest = spans.iter().rposition(|span| fits(span) && late(span));
    let found = oldest.or_else(|| spans.iter().position(fits))?;
    let before = spans.get(found + 1);
    before.is_none_or(|span| span.found.written.0 <= place.at.0 + LATE).then_some(found)
}

impl Span {
    /// Gives its text in chunks, each with its offset.
    fn read(&self, mut each: impl FnMut(&[u8], u64) -> io::Result<()>) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        let mut at = if self.found.zip { 0 } else { self.from };
        let mut text: Box<dyn Read> = if self.found.zip { self.found.text() } else { Box::new(io::empty()) };
        while at < self.to {
            let most = usize::try_from(self.to - at).unwrap_or(CHUNK).min(CHUNK);
            let n = if self.found.zip {
                text.read(&mut chunk[..most])?
            } else {
                self.found.file.read_at(&mut chunk[..most], at)?
            };
            if n == 0 {
                break;
            }
            // A compressed one is read from its beginning.
            let early = usize::try_from(self.from.saturating_sub(at)).unwrap_or(n).min(n);
            if early < n {
                each(&chunk[early..n], at + early as u64)?;
            }
            at += n as u64;
        }
        Ok(())
    }

    /// Moves `from` to where the last `left` lines begin; says how many are left to find.
    fn keep_last(&mut self, left: &mut u64) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        let mut at = self.to;
        while at > self.from {
            let start = at.saturating_sub(CHUNK as u64).max(self.from);
            let length = (at - start) as usize;
            self.found.file.read_exact_at(&mut chunk[..length], start)?;
            for newline in memrchr_iter(b'\n', &chunk[..length]) {
                let begin = start + newline as u64 + 1;
                // The newline at the very end begins no line.
                if begin == self.to {
                    continue;
                }
                *left -= 1;
                if *left == 0 {
                    self.from = begin;
                    return Ok(());
                }
            }
            at = start;
        }
        *left -= 1;
        Ok(())
    }
}

/// Where a reader that follows a file begins: behind its last newline, unless that is far away.
///
/// # Errors
/// When the file cannot be read.
pub fn last_line(file: &File) -> io::Result<u64> {
    let length = file.metadata()?.size();
    let mut chunk = vec![0; CHUNK];
    let mut at = length;
    while at > 0 && length - at < LONGEST as u64 {
        let start = at.saturating_sub(CHUNK as u64);
        let most = (at - start) as usize;
        file.read_exact_at(&mut chunk[..most], start)?;
        if let Some(newline) = memchr::memrchr(b'\n', &chunk[..most]) {
            return Ok(start + newline as u64 + 1);
        }
        at = start;
    }
    Ok(if at == 0 { 0 } else { length })
}
