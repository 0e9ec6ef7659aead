//! Reads back what was written: the last lines of a log over its rotated files, and the run before
//! the current one. Files are opened here and never searched for again, so a rotation changes nothing.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Component, Path},
    sync::Arc,
};

use memchr::{memchr_iter, memrchr_iter};

use super::{lines::Lines, runs::Place, sink::numbered};

const CHUNK: u64 = 64 * 1024;
/// What a tail answers at most, in bytes.
const MAX_TAIL: u64 = 4 * 1024 * 1024;

/// A part of a file.
#[derive(Debug, Clone)]
pub struct Span {
    pub file: Arc<File>,
    pub from: u64,
    pub to: u64,
}

impl Span {
    /// The whole file as it is now; `None` where there is none.
    fn whole(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => {
                let to = file.metadata()?.len();
                Ok(Some(Self { file: Arc::new(file), from: 0, to }))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn inode(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.ino())
    }

    /// Newlines in it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn newlines(&self) -> io::Result<u64> {
        let mut chunk = vec![0; CHUNK as usize];
        let (mut at, mut count) = (self.from, 0);
        while at < self.to {
            let n = self.file.read_at(&mut chunk[..(self.to - at).min(CHUNK) as usize], at)?;
            if n == 0 {
                break;
            }
            count += memchr_iter(b'\n', &chunk[..n]).count() as u64;
            at += n as u64;
        }
        Ok(count)
    }

    /// Moves `from` to where the last `left` lines begin; says how many lines fewer it has.
    fn keep_last(&mut self, left: &mut u64, newest: bool) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK as usize];
        let mut at = self.to;
        while at > self.from {
            let start = at.saturating_sub(CHUNK).max(self.from);
            let length = (at - start) as usize;
            self.file.read_exact_at(&mut chunk[..length], start)?;
            for newline in memrchr_iter(b'\n', &chunk[..length]) {
                let place = start + newline as u64;
                // The newline at the very end closes the last line, it begins none.
                if place + 1 == self.to && newest {
                    continue;
                }
                *left -= 1;
                if *left == 0 {
                    self.from = place + 1;
                    return Ok(());
                }
            }
            at = start;
        }
        Ok(())
    }
}

/// The last `n` lines of the spans, which are in the order they were written.
fn last_of(mut spans: VecDeque<Span>, n: u64) -> io::Result<VecDeque<Span>> {
    let mut kept = VecDeque::new();
    let mut left = n;
    while let Some(mut span) = spans.pop_back() {
        if left == 0 {
            break;
        }
        if span.from < span.to {
            span.keep_last(&mut left, kept.is_empty())?;
            kept.push_front(span);
        }
    }
    Ok(kept)
}

/// The last `n` lines (`None`: all) of a log and its rotated files, oldest first.
///
/// # Errors
/// When a file cannot be read.
pub fn tail(path: &Path, n: Option<u64>) -> io::Result<VecDeque<Span>> {
    let mut spans = VecDeque::new();
    let mut left = n.unwrap_or(u64::MAX);
    let mut number = 0;
    while left > 0 {
        let name = if number == 0 { path.to_owned() } else { numbered(path, number) };
        match Span::whole(&name)? {
            Some(mut span) if span.to > 0 => {
                if n.is_some() {
                    span.keep_last(&mut left, spans.is_empty())?;
                }
                spans.push_front(span);
            }
            Some(_) => {}
            None if number == 0 => {}
            None => break,
        }
        number += 1;
    }
    Ok(spans)
}

/// What was written between two places, its last `n` lines (`None`: all). What was rotated out is missing.
///
/// # Errors
/// When a file cannot be read.
pub fn between(path: &Path, begin: Place, end: Place, n: Option<u64>) -> io::Result<VecDeque<Span>> {
    let mut spans = tail(path, None)?;
    let at = |place: Place| spans.iter().position(|s| s.inode().is_ok_and(|i| i == place.inode));
    let Some(last) = at(end) else { return Ok(VecDeque::new()) };
    let first = at(begin).filter(|first| *first <= last);
    spans.truncate(last + 1);
    if let Some(first) = first {
        spans.drain(..first);
        spans[0].from = begin.offset.min(spans[0].to);
    }
    if let Some(span) = spans.back_mut() {
        span.to = end.offset.min(span.to);
    }
    spans.retain(|span| span.from < span.to);
    match n {
        Some(n) => last_of(spans, n),
        None => Ok(spans),
    }
}

/// The last `n` lines of a file as text, at most 4 MiB of it.
///
/// # Errors
/// When a file cannot be read.
pub fn lines(path: &Path, n: u64) -> io::Result<Vec<String>> {
    let mut spans = tail(path, Some(n))?;
    let mut over = spans.iter().map(|s| s.to - s.from).sum::<u64>().saturating_sub(MAX_TAIL);
    let mut found = Vec::new();
    let mut assembler = Lines::default();
    for span in &mut spans {
        let skipped = over.min(span.to - span.from);
        span.from += skipped;
        over -= skipped;
        let mut bytes = vec![0; usize::try_from(span.to - span.from).unwrap_or(0)];
        span.file.read_exact_at(&mut bytes, span.from)?;
        assembler.push(&bytes, |line| found.push(String::from_utf8_lossy(line).into_owned()));
    }
    found.extend(assembler.finish().map(|line| String::from_utf8_lossy(&line).into_owned()));
    Ok(found)
}

/// Is this the plain name of something below the folder?
#[must_use]
pub fn is_below(path: &Path, folder: &Path) -> bool {
    path.strip_prefix(folder)
        .is_ok_and(|rest| rest.components().count() > 0 && rest.components().all(|c| matches!(c, Component::Normal(_))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(spans: &VecDeque<Span>) -> String {
        let mut all = Vec::new();
        for span in spans {
            let mut bytes = vec![0; (span.to - span.from) as usize];
            span.file.read_exact_at(&mut bytes, span.from).unwrap();
            all.extend(bytes);
        }
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn the_last_lines_reach_over_rotated_files() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert!(tail(&log, Some(3)).unwrap().is_empty());
        std::fs::write(numbered(&log, 2), "1\n2\n").unwrap();
        std::fs::write(numbered(&log, 1), "3\n4\n").unwrap();
        std::fs::write(&log, "5\n6").unwrap();
        for (n, want) in [(0, ""), (1, "6"), (2, "5\n6"), (3, "4\n5\n6"), (5, "2\n3\n4\n5\n6"), (9, "1\n2\n3\n4\n5\n6")]
        {
            assert_eq!(text(&tail(&log, Some(n)).unwrap()), want, "{n}");
        }
        std::fs::write(&log, "").unwrap();
        assert_eq!(lines(&log, 1).unwrap(), ["4"]);
        std::fs::write(&log, "5\n6\n").unwrap();
        assert_eq!(lines(&log, 3).unwrap(), ["4", "5", "6"]);
        std::fs::remove_file(&log).unwrap();
        assert_eq!(text(&tail(&log, None).unwrap()), "1\n2\n3\n4\n");
    }

    #[test]
    fn lines_over_many_chunks_are_counted_right() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let all: Vec<String> = (0..40_000).map(|i| format!("line {i}")).collect();
        std::fs::write(&log, all.join("\n") + "\n").unwrap();
        for n in [1, 5000, 7777, 39_999, 40_000, 50_000] {
            assert_eq!(lines(&log, n).unwrap(), all[all.len().saturating_sub(n as usize)..]);
        }
    }

    #[test]
    fn a_run_lies_between_two_marks() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(numbered(&log, 1), "a\nb\n").unwrap();
        std::fs::write(&log, "c\nd\n").unwrap();
        let place = |path: &Path, offset| Place { inode: std::fs::metadata(path).unwrap().ino(), offset };
        let (begin, end) = (place(&numbered(&log, 1), 2), place(&log, 2));
        assert_eq!(text(&between(&log, begin, end, None).unwrap()), "b\nc\n");
        assert_eq!(text(&between(&log, begin, end, Some(1)).unwrap()), "c\n");
        let gone = Place { inode: 1, offset: 5 };
        assert_eq!(text(&between(&log, gone, end, None).unwrap()), "a\nb\nc\n");
        assert_eq!(text(&between(&log, begin, gone, None).unwrap()), "");
        assert_eq!(text(&between(&log, end, place(&log, 4), Some(9)).unwrap()), "d\n");
    }

    #[test]
    fn only_plain_names_below_the_folder_are_read() {
        let logs = Path::new("/var/logs");
        assert!(is_below(Path::new("/var/logs/blog/blog.1.out.log"), logs));
        for bad in ["/var/logs", "/var/logs/../x", "/var/logsx/a", "logs/a", "/etc/passwd", "/var/logs/a/../../x"] {
            assert!(!is_below(Path::new(bad), logs), "{bad}");
        }
    }
}
