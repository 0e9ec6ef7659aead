//! App output on everhook's own stdout, whole lines with the instance's name. A thread of its own
//! writes; what it cannot get rid of is dropped and counted, so the capture never waits.

use std::{
    fs::File,
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::lines::Lines;

/// Bytes that wait for stdout at most.
const MAX_WAITING: usize = 1024 * 1024;

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    dropped: u64,
    writing: bool,
    broken: bool,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everhook's own stdout.
pub struct Echo {
    shared: Arc<Shared>,
    /// A terminal is shown no control bytes.
    terminal: bool,
    started: bool,
    on: bool,
}

impl Echo {
    #[must_use]
    pub fn new() -> Self {
        Self { shared: Arc::default(), terminal: io::stdout().is_terminal(), started: false, on: false }
    }

    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Turns it on or off.
    ///
    /// # Errors
    /// When there is no stdout.
    pub fn set(&mut self, on: bool) -> io::Result<()> {
        if on && !self.started {
            let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            let shared = Arc::clone(&self.shared);
            thread::spawn(move || write_all(&shared, &stdout));
            self.started = true;
        }
        self.on = on;
        Ok(())
    }

    /// Takes a piece of a source's output.
    pub fn push(&self, name: &str, lines: &mut Lines, bytes: &[u8]) {
        let mut batch = Vec::new();
        let mut count = 0;
        lines.push(bytes, |line| {
            self.add(&mut batch, name, line.bytes);
            count += 1;
        });
        self.send(&batch, count);
    }

    /// A source ends: shows what it wrote without a newline.
    pub fn finish_source(&self, name: &str, lines: &mut Lines) {
        if let Some(line) = lines.finish() {
            let mut batch = Vec::new();
            self.add(&mut batch, name, &line);
            self.send(&batch, 1);
        }
    }

    fn add(&self, batch: &mut Vec<u8>, name: &str, line: &[u8]) {
        batch.extend_from_slice(name.as_bytes());
        batch.extend_from_slice(b" | ");
        if self.terminal {
            visible(line.strip_suffix(b"\r").unwrap_or(line), batch);
        } else {
            batch.extend_from_slice(line);
        }
        batch.push(b'\n');
    }

    fn send(&self, batch: &[u8], count: u64) {
        if batch.is_empty() {
            return;
        }
        let mut waiting = self.shared.lock();
        if waiting.broken {
            return;
        }
        if waiting.bytes.len() + batch.len() > MAX_WAITING {
            waiting.dropped += count;
        } else {
            waiting.bytes.extend_from_slice(batch);
        }
        self.shared.changed.notify_all();
    }

    /// Waits until stdout has taken everything, but not longer than this.
    pub fn finish(&self, limit: Duration) {
        let busy = |w: &mut Waiting| !w.broken && (w.writing || !w.bytes.is_empty());
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), limit, busy);
        drop(waited);
    }
}

/// The thread: everything that waits, then the next.
fn write_all(shared: &Shared, stdout: &File) {
    loop {
        let mut waiting = shared.lock();
        waiting.writing = false;
        shared.changed.notify_all();
        let idle = |w: &mut Waiting| w.bytes.is_empty() && w.dropped == 0;
        let mut waiting = shared.changed.wait_while(waiting, idle).unwrap_or_else(PoisonError::into_inner);
        let mut bytes = std::mem::take(&mut waiting.bytes);
        let dropped = std::mem::take(&mut waiting.dropped);
        waiting.writing = true;
        drop(waiting);
        if dropped > 0 {
            let line = format!("everhook | {dropped} lines are not shown here, standard output was too slow\n");
            bytes.extend_from_slice(line.as_bytes());
        }
        if write(stdout, &bytes).is_err() {
            let mut waiting = shared.lock();
            (waiting.broken, waiting.writing, waiting.bytes) = (true, false, Vec::new());
            shared.changed.notify_all();
            return;
        }
    }
}

/// Writes to a description that others may have made non-blocking.
fn write(mut stdout: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stdout.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Control bytes as `^X`, so that no app's output drives the terminal.
fn visible(line: &[u8], into: &mut Vec<u8>) {
    for byte in line {
        match byte {
            b'\t' => into.push(b'\t'),
            0..=31 => into.extend([b'^', byte + 64]),
            127 => into.extend(b"^?"),
            _ => into.push(*byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_bytes_are_made_visible() {
        let mut shown = Vec::new();
        visible("a\tb\x1b[2J\x7fß".as_bytes(), &mut shown);
        assert_eq!(shown, "a\tb^[[2J^?ß".as_bytes());
    }

    #[test]
    fn what_is_not_taken_is_counted() {
        let echo = Echo { shared: Arc::default(), terminal: false, started: true, on: true };
        let mut lines = Lines::default();
        for _ in 0..3 {
            echo.push("blog.1", &mut lines, &[&[b'x'; 600_000][..], b"\n"].concat());
        }
        let waiting = echo.shared.lock();
        assert_eq!((waiting.bytes.len(), waiting.dropped), (600_010, 2));
    }
}
