//! The last lines of a file, for the supervisor. What a client reads is in [`history`](super::history).

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Component, Path},
};

use memchr::memrchr_iter;

use super::{chain::numbered, form::Reading, history::lines_of, runs::Place};
use crate::domain::config::Form;

/// What a tail answers at most, in bytes.
const MAX_TAIL: u64 = 4 * 1024 * 1024;

/// The last `n` lines of a log as text, at most 4 MiB of them, over its rotated files where these are not
/// compressed; none where there is no file. `run`: only those between two places, of which the second may be
/// the end.
///
/// # Errors
/// When a file cannot be read.
pub fn lines(path: &Path, form: Form, n: usize, run: Option<(Place, Option<Place>)>) -> io::Result<Vec<String>> {
    let (begin, mut end) = run.unzip();
    let mut bytes = Vec::new();
    for number in 0.. {
        let name = if number == 0 { path.to_owned() } else { numbered(path, number) };
        let file = match File::open(name) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound && number == 0 => continue,
            Err(e) if e.kind() == io::ErrorKind::NotFound => break,
            Err(e) => return Err(e),
        };
        let meta = file.metadata()?;
        let mut length = meta.len();
        if let Some(Some(place)) = end {
            if place.inode != meta.ino() {
                continue;
            }
            length = length.min(place.offset);
            end = None;
        }
        let first = begin.filter(|begin| begin.inode == meta.ino() && begin.offset <= length);
        let from = length.saturating_sub(MAX_TAIL - bytes.len() as u64).max(first.map_or(0, |begin| begin.offset));
        let mut older = vec![0; usize::try_from(length - from).unwrap_or(0)];
        file.read_exact_at(&mut older, from)?;
        older.append(&mut bytes);
        bytes = older;
        // The newline at the very end begins no line.
        let begins = memrchr_iter(b'\n', &bytes).map(|newline| newline + 1).filter(|begin| *begin < bytes.len());
        if let Some(begin) = begins.take(n).nth(n.saturating_sub(1)) {
            bytes.drain(..begin);
            break;
        }
        if from > 0 || first.is_some() {
            break;
        }
    }
    let mut reading = Reading::new(form);
    let mut lines = lines_of(form);
    let mut found = Vec::new();
    if n > 0 {
        lines.push(&bytes, |piece| found.push(reading.line(piece.bytes, piece.whole).text));
        found.extend(lines.finish().map(|rest| reading.line(&rest, true).text));
    }
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
    use std::io::Write;

    use super::*;
    use crate::{domain::model::At, logger::runs};

    #[test]
    fn the_last_lines_reach_over_rotated_files() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let last = |n| lines(&log, Form::Raw, n, None).unwrap().concat();
        assert_eq!(last(3), "");
        std::fs::write(numbered(&log, 2), "1\n2\n").unwrap();
        std::fs::write(numbered(&log, 1), "3\n4\n").unwrap();
        for text in ["5\n6", "5\n6\n"] {
            std::fs::write(&log, text).unwrap();
            for (n, want) in [(0, ""), (1, "6"), (2, "56"), (3, "456"), (5, "23456"), (9, "123456")] {
                assert_eq!(last(n), want, "{n}");
            }
        }
        std::fs::write(&log, "").unwrap();
        assert_eq!(last(1), "4");
        std::fs::remove_file(&log).unwrap();
        assert_eq!(last(9), "1234");
    }

    #[test]
    fn of_one_run_no_other_ones_lines_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("a.1.out.log");
        let files = runs::Files::of(&log).unwrap();
        let run = |number: i64| At(number);
        let write = |text: &str| {
            let mut file = File::options().append(true).create(true).open(&log).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        let last = |number, n| lines(&log, Form::Raw, n, runs::begun_at(&log, run(number))).unwrap().concat();
        runs::note(&files, run(1)).unwrap();
        write("1\n2\n");
        assert_eq!((last(1, 9), last(1, 1)), ("12".into(), "2".into()));
        runs::note(&files, run(2)).unwrap();
        assert_eq!((last(1, 9), last(2, 9)), ("12".into(), String::new()));
        write("3\n");
        std::fs::rename(&log, numbered(&log, 1)).unwrap();
        write("4\n");
        runs::note(&files, run(3)).unwrap();
        write("5\n");
        for (number, want) in [(1, "12"), (2, "34"), (3, "5"), (7, "12345")] {
            assert_eq!(last(number, 9), want, "{number}");
        }
    }

    #[test]
    fn of_a_giant_the_end_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "line\n".repeat(1 << 20) + "last\n").unwrap();
        let found = lines(&log, Form::Raw, 10_000_000, None).unwrap();
        assert_eq!(found.iter().map(|line| line.len() as u64 + 1).sum::<u64>(), MAX_TAIL);
        assert_eq!(found.last().map(String::as_str), Some("last"));
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
