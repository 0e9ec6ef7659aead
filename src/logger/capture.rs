//! From a FIFO to a file, so that a kill at any instruction loses, doubles and splits nothing.
//!
//! Everything is noted in the buffer before it is done, and every step may be done twice:
//!
//! | note | it means | a successor |
//! |---|---|---|
//! | `Idle` | nothing is under way | has nothing to do |
//! | `Reading` | `data[from..to]` is being read from the FIFO | sees by the mark whether it was, then writes it |
//! | `Writing` | `data[from..to]` is being written at `offset` of this file | writes it there again, then the rest |
//! | `Forming` | `data[from..end]` was read and is in no file | writes it |
//! | `Rotating` | this file is being moved away | moves it where the path still holds it, then writes the rest |
//!
//! The rest is `data[to..end]`. There is one reader of a FIFO and one writer of a file: ourselves.
//!
//! In a form that is not raw, what was read is written as lines of that form in the buffer's second half,
//! as much as fits, and from there to the file; the note also says what was read and is in no line yet,
//! and where the last line stands.

use std::{
    io,
    os::{fd::AsFd, unix::fs::FileExt},
    path::Path,
    sync::Arc,
};

use memchr::{memchr, memchr_iter, memrchr};
use zeroize::Zeroizing;

use super::{
    aside::Aside,
    form::Tip,
    sink::{Cut, Gap, Opened, SinkFile, UNROTATED, cut},
};
use crate::{
    domain::{
        api::{How, Sink},
        config::Form,
        model::{Secret, Size, Veil},
    },
    os::{
        capture::{Buffer, CAPACITY, MAX_PATH, Note, WORDS, reserve},
        clock,
    },
};

/// Data is read behind this many bytes, so that a line about a gap fits before it.
const LEAD: usize = 256;
/// Where what is read ends, and lines of a form begin.
const FORMED: usize = CAPACITY / 2;
/// The most that one pass takes from a FIFO.
pub const MOST: usize = FORMED - LEAD;

/// What a pass brought about beside the bytes in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The file does not take what comes.
    Dropping { bytes: u64, reason: String },
    /// It does again; this many bytes are missing, and a line in the file says so.
    Resumed { bytes: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Phase {
    Idle,
    Reading,
    Writing,
    Rotating,
    Forming,
}

/// A note's numbers, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    phase: Phase,
    from: usize,
    to: usize,
    end: usize,
    mark: u64,
    device: u64,
    inode: u64,
    offset: u64,
    left: Left,
}

/// What was read and is in no line yet, where the form is not raw, and where the last line stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Left {
    from: usize,
    end: usize,
    tip: Tip,
}

impl Step {
    const IDLE: Self = Self {
        phase: Phase::Idle,
        from: 0,
        to: 0,
        end: 0,
        mark: 0,
        device: 0,
        inode: 0,
        offset: 0,
        left: Left { from: 0, end: 0, tip: Tip::CLOSED },
    };

    fn words(self, how: &How) -> [u64; WORDS] {
        let limit = how.rotate.map_or(u64::MAX, |size| size.0);
        let places = [self.from, self.to, self.end, self.left.from, self.left.end].map(|place| place as u64);
        let ([from, to, end, left, left_end], [tip, length]) = (places, self.left.tip.words());
        let (phase, form) = (self.phase as u64, how.form as u64);
        let Self { mark, device, inode, offset, .. } = self;
        let line = how.line_limit.0;
        let keep = how.keep.into();
        [phase, from, to, end, mark, device, inode, offset, limit, keep, form, line, left, left_end, tip, length]
    }

    /// `None` for anything but a step that is under way.
    fn read(note: Note) -> Option<(Self, Sink)> {
        let [phase, from, to, end, mark, device, inode, offset, limit, keep, form, line, left, left_end, tip, length] =
            note.words;
        let phase = match phase {
            1 => Phase::Reading,
            2 => Phase::Writing,
            3 => Phase::Rotating,
            4 => Phase::Forming,
            _ => return None,
        };
        let form = match form {
            0 => Form::Raw,
            1 => Form::Stamped,
            _ => Form::Json,
        };
        let place = |word: u64| usize::try_from(word).ok().filter(|p| *p <= CAPACITY);
        let (from, to, end) = (place(from)?, place(to)?, place(end)?);
        let left = Left { from: place(left)?, end: place(left_end)?, tip: Tip::from_words([tip, length]) };
        if from > to || to > end || left.from > left.end {
            return None;
        }
        let rotate = (limit != u64::MAX).then_some(Size(limit));
        let raw = Sink::raw(note.path, rotate, u32::try_from(keep).ok()?);
        let sink = raw.with(|how| (how.form, how.line_limit) = (form, Size(line)));
        Some((Self { phase, from, to, end, mark, device, inode, offset, left }, sink))
    }
}

/// Where a file stopped taking bytes: `data[at..]` is not in it.
#[derive(Debug)]
struct Stuck {
    at: usize,
    error: io::Error,
}

/// The one hand that moves bytes.
pub struct Capture {
    buffer: Buffer,
    /// Bytes that the last pass read.
    last: usize,
    veil: Veil,
}

impl Capture {
    /// Takes the buffer over and finishes what its last owner had begun.
    ///
    /// # Errors
    /// Beside the capture, which is good all the same: why that could not be finished.
    pub fn take_over(buffer: Buffer, aside: &Aside) -> (Self, io::Result<()>) {
        let mut capture = Self { buffer, last: 0, veil: Veil::default() };
        let finished = match Step::read(capture.buffer.noted()) {
            Some((step, sink)) => {
                capture.finish(step, &mut SinkFile::new(sink.path, Arc::new(sink.how), aside.clone()))
            }
            None => Ok(()),
        };
        capture.idle();
        (capture, finished)
    }

    fn finish(&mut self, step: Step, sink: &mut SinkFile) -> io::Result<()> {
        let rest = match step.phase {
            Phase::Idle => return Ok(()),
            Phase::Reading if self.buffer.is_marked(step.from, step.to, step.mark) => return Ok(()),
            Phase::Reading | Phase::Forming if sink.pen.is_some() => {
                sink.tip = step.left.tip;
                return self.form(sink, step.from, step.end).map_err(|stuck| stuck.error);
            }
            Phase::Reading | Phase::Forming => step.from,
            Phase::Writing => {
                let opened = sink.current()?;
                if (opened.device, opened.inode) == (step.device, step.inode) {
                    let offset = step.offset.min(opened.size);
                    self.write(opened, step.from, step.to, offset).map_err(|stuck| stuck.error)?;
                    step.to
                } else {
                    step.from
                }
            }
            Phase::Rotating => {
                sink.rotate(step.device, step.inode)?;
                step.to
            }
        };
        sink.tip = step.left.tip;
        let stored = self.store(sink, rest, step.end, step.left);
        stored.and_then(|()| self.form(sink, step.left.from, step.left.end)).map_err(|stuck| stuck.error)
    }

    /// Moves `n` bytes, at most [`MOST`], which the FIFO is known to hold, to the file. What the file does
    /// not take is dropped and counted: the app goes on in any case.
    ///
    /// # Errors
    /// When the FIFO cannot be read.
    pub fn pass(&mut self, fifo: impl AsFd, n: usize, sink: &mut SinkFile) -> io::Result<(usize, Option<Told>)> {
        let end = LEAD + n.min(MOST);
        if sink.pen.is_some() {
            sink.know_tip();
        }
        let mark = self.buffer.mark(LEAD, end);
        let left = Left { tip: sink.tip, ..Left::default() };
        self.note(Step { phase: Phase::Reading, from: LEAD, to: end, end, mark, left, ..Step::IDLE }, sink);
        let read = loop {
            match nix::unistd::read(fifo.as_fd(), &mut self.buffer.data_mut()[LEAD..end]) {
                Err(nix::Error::EINTR) => {}
                other => break other,
            }
        };
        self.last = read.unwrap_or(0);
        if sink.how.veiled {
            self.cover(sink, LEAD, LEAD + self.last);
        }
        let told = match (&read, &sink.gap) {
            (Err(_), _) => None,
            (Ok(n), None) => self.put(sink, LEAD, LEAD + n),
            (Ok(n), Some(_)) => self.resume(sink, *n),
        };
        self.idle();
        Ok((read?, told))
    }

    /// Covers these from now on where a sink wants it.
    pub fn set_veil(&mut self, veil: Veil) {
        self.veil = veil;
    }

    /// Covers known secrets in what was read, and in the file the beginning of one whose end has come now.
    fn cover(&mut self, sink: &mut SinkFile, from: usize, end: usize) {
        let data = &mut self.buffer.data_mut()[from..end];
        let tail = sink.tail.take().filter(|_| sink.gap.is_none());
        let before = tail.as_ref().map_or(&[][..], |tail| tail.expose());
        let mut text = Zeroizing::new([before, data].concat());
        if self.veil.cover(&mut text) {
            let (began, here) = text.split_at(before.len());
            data.copy_from_slice(here);
            if began != before
                && let Some(opened) = &sink.opened
            {
                // Where a new file was begun since, it holds the last of this; no secret is in two files.
                let there = began.len().min(usize::try_from(opened.size).unwrap_or(usize::MAX));
                let written = opened.file.write_all_at(&began[began.len() - there..], opened.size - there as u64);
                if let Err(error) = written {
                    eprintln!("everhook logger: the beginning of a secret stays in a log: {error}");
                }
            }
        }
        let kept = text.len().saturating_sub(self.veil.longest().saturating_sub(1));
        sink.tail = Some(Secret::exact(text[kept..].to_vec()).into());
    }

    /// What the last pass read.
    #[must_use]
    pub fn last(&self) -> &[u8] {
        &self.buffer.data()[LEAD..LEAD + self.last]
    }

    /// The file is being closed: says in it what is missing, where something is.
    pub fn close(&mut self, sink: &mut SinkFile) -> Option<Told> {
        let told = self.resume(sink, 0);
        self.idle();
        told
    }

    /// Stores what was read, or begins a gap.
    fn put(&mut self, sink: &mut SinkFile, from: usize, end: usize) -> Option<Told> {
        if is_full(sink, end - from) {
            return self.lose(sink, from, end, "the log is full");
        }
        let stored =
            if sink.pen.is_none() { self.store(sink, from, end, Left::default()) } else { self.form(sink, from, end) };
        match stored {
            Ok(()) => None,
            Err(stuck) => self.lose(sink, stuck.at, end, &reason(&stuck.error)),
        }
    }

    /// Stores what was read as lines of the sink's form. What does not fit onto the disk is taken back to
    /// the last whole line, so that the file holds nothing that has another form.
    fn form(&mut self, sink: &mut SinkFile, mut from: usize, end: usize) -> Result<(), Stuck> {
        while from < end
            && let Some(pen) = &sink.pen
        {
            // What is noted still may be in the second half, which is about to be written over.
            let left = Left { tip: sink.tip, ..Left::default() };
            self.note(Step { phase: Phase::Forming, from, to: from, end, left, ..Step::IDLE }, sink);
            let (read, formed) = self.buffer.data_mut().split_at_mut(FORMED);
            let (taken, n) = pen.write(&mut sink.tip, clock::now().wall, &read[from..end], formed);
            let left = Left { from: from + taken, end, tip: sink.tip };
            if let Err(stuck) = self.store(sink, FORMED, FORMED + n, left) {
                let lines = self.take_back(sink, stuck.at);
                let newlines = memchr_iter(b'\n', &self.buffer.data()[from..from + taken]);
                let kept = if lines == 0 { None } else { newlines.take(lines).last() };
                return Err(Stuck { at: kept.map_or(from, |newline| from + newline + 1), ..stuck });
            }
            from += taken;
        }
        Ok(())
    }

    /// Of the formed lines up to `at`, which are in the file, keeps the whole ones; how many.
    fn take_back(&self, sink: &mut SinkFile, at: usize) -> usize {
        let formed = &self.buffer.data()[FORMED..at];
        let whole = memrchr(b'\n', formed).map_or(0, |newline| newline + 1);
        if let Some(opened) = &mut sink.opened {
            let over = (formed.len() - whole) as u64;
            if over > 0 && opened.file.set_len(opened.size.saturating_sub(over)).is_ok() {
                opened.size = opened.size.saturating_sub(over);
                opened.line_open = whole == 0 && opened.line_open;
            }
        }
        memchr_iter(b'\n', &formed[..whole]).count()
    }

    /// Counts data as dropped; told when it is the first.
    fn lose(&self, sink: &mut SinkFile, from: usize, end: usize, reason: &str) -> Option<Told> {
        let first = sink.gap.is_none();
        sink.doubt();
        let begun = || Box::new(Gap { bytes: 0, line_open: false, reason: reason.to_owned() });
        let gap = sink.gap.get_or_insert_with(begun);
        let data = &self.buffer.data()[from..end];
        gap.bytes += data.len() as u64;
        gap.line_open = data.last().map_or(gap.line_open, |last| *last != b'\n');
        first.then(|| Told::Dropping { bytes: gap.bytes, reason: reason.to_owned() })
    }

    /// Tries to go on after a gap with the `n` bytes just read: a line that says how much is missing,
    /// then what stands behind the end of the line in which the gap ends.
    fn resume(&mut self, sink: &mut SinkFile, n: usize) -> Option<Told> {
        let gap = sink.gap.clone()?;
        let data = &self.buffer.data()[LEAD..LEAD + n];
        let skip = match memchr(b'\n', data) {
            _ if !gap.line_open => 0,
            Some(newline) => newline + 1,
            None => n,
        };
        let missing = gap.bytes + skip as u64;
        let from =
            if n > 0 && skip == n { None } else { self.lead_in(sink, LEAD + skip, n - skip, missing, &gap.reason) };
        let Some(from) = from else {
            self.lose(sink, LEAD, LEAD + n, &gap.reason);
            return None;
        };
        sink.gap = None;
        sink.know_tip();
        self.put(sink, from, LEAD + n).or(Some(Told::Resumed { bytes: missing }))
    }

    /// Puts the line about a gap before the `n` bytes at `place` where the file takes both; says where
    /// the line begins.
    fn lead_in(&mut self, sink: &mut SinkFile, place: usize, n: usize, missing: u64, reason: &str) -> Option<usize> {
        if n > 0 && is_full(sink, n + LEAD) {
            return None;
        }
        let frame = sink.pen.as_ref().map_or(0, |pen| pen.frame());
        let opened = sink.current().ok()?;
        let newline = if opened.line_open { "\n" } else { "" };
        let reason: String = reason.chars().take(40).collect();
        let line = format!("{newline}[everhook: {missing} bytes dropped, {reason}]\n");
        let from = place.checked_sub(line.len())?;
        let lines = 1 + memchr_iter(b'\n', &self.buffer.data()[place..place + n]).count();
        let length = line.len() + n + lines * frame;
        reserve(&opened.file, opened.size, length as u64).ok()?;
        self.buffer.data_mut()[from..place].copy_from_slice(line.as_bytes());
        Some(from)
    }

    /// Writes `data[from..end]`, rotating between lines; `left` is noted beside it.
    fn store(&mut self, sink: &mut SinkFile, mut from: usize, end: usize, left: Left) -> Result<(), Stuck> {
        while from < end {
            let stuck = |error| Stuck { at: from, error };
            if sink.path.as_os_str().len() > MAX_PATH {
                return Err(stuck(io::ErrorKind::InvalidFilename.into()));
            }
            sink.known().map_err(stuck)?;
            let limit = sink.limit();
            let opened = sink.opened.as_deref().ok_or_else(|| stuck(io::ErrorKind::NotFound.into()))?;
            let (device, inode, offset) = (opened.device, opened.inode, opened.size);
            let place = Step { device, inode, offset, from, end, left, ..Step::IDLE };
            match cut(opened.size, opened.line_open, limit, &self.buffer.data()[from..end]) {
                Cut::Write(length) => {
                    let to = from + length;
                    sink.touch();
                    self.note(Step { phase: Phase::Writing, to, ..place }, sink);
                    let opened = sink.opened.as_deref_mut().ok_or_else(|| stuck(io::ErrorKind::NotFound.into()))?;
                    self.write(opened, from, to, offset)?;
                    from = to;
                }
                Cut::Rotate => {
                    self.note(Step { phase: Phase::Rotating, to: from, ..place }, sink);
                    sink.rotate(device, inode).map_err(stuck)?;
                }
            }
        }
        Ok(())
    }

    /// Moves a file away that has another form than its sink, so that none has two.
    ///
    /// # Errors
    /// When it cannot be read, moved or made.
    pub fn begin_form(&mut self, sink: &mut SinkFile) -> io::Result<()> {
        if sink.pen.is_none() || sink.gap.is_some() || sink.opened.is_none() {
            return Ok(());
        }
        let mut first = [0; 64];
        let opened = sink.current()?;
        let n = opened.file.read_at(&mut first, 0)?;
        if n == 0 || sink.pen.as_ref().is_none_or(|pen| pen.has_begun(&first[..n])) {
            return Ok(());
        }
        if sink.opened.as_ref().is_some_and(|opened| opened.line_open) {
            self.buffer.data_mut()[LEAD] = b'\n';
            self.store(sink, LEAD, LEAD + 1, Left::default()).map_err(|stuck| stuck.error)?;
        }
        self.rotate(sink)
    }

    /// Begins a new file where this one's last line is whole.
    ///
    /// # Errors
    /// When a file cannot be moved or made.
    pub fn rotate(&mut self, sink: &mut SinkFile) -> io::Result<()> {
        let opened = sink.current()?;
        if opened.size == 0 || opened.line_open {
            return Ok(());
        }
        let (device, inode) = (opened.device, opened.inode);
        self.note(Step { phase: Phase::Rotating, device, inode, ..Step::IDLE }, sink);
        let rotated = sink.rotate(device, inode);
        self.idle();
        rotated
    }

    fn write(&self, opened: &mut Opened, from: usize, to: usize, offset: u64) -> Result<(), Stuck> {
        let mut at = from;
        while at < to {
            match opened.file.write_at(&self.buffer.data()[at..to], offset + (at - from) as u64) {
                Ok(0) => return Err(Stuck { at, error: io::ErrorKind::WriteZero.into() }),
                Ok(n) => {
                    at += n;
                    opened.size = opened.size.max(offset + (at - from) as u64);
                    opened.line_open = self.buffer.data()[at - 1] != b'\n';
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Stuck { at, error }),
            }
        }
        Ok(())
    }

    fn note(&mut self, step: Step, sink: &SinkFile) {
        self.buffer.note(&step.words(&sink.how), &sink.path);
    }

    fn idle(&mut self) {
        self.buffer.note(&[0; WORDS], Path::new(""));
    }
}

/// Is this the end of a log that is never rotated?
fn is_full(sink: &SinkFile, more: usize) -> bool {
    let size = sink.opened.as_ref().map_or(0, |opened| opened.size);
    sink.how.rotate.is_none() && size + more as u64 > UNROTATED
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull => "disk full".into(),
        io::ErrorKind::QuotaExceeded => "quota used up".into(),
        _ => error.to_string(),
    }
}
