//! Where each run of an instance begins in its logs: `<instance>.runs`, a line a run,
//! `time inode offset-out inode offset-err`; the last ones are kept.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::sink::make_folder;
use crate::domain::{api::Stream, model::At};

/// Runs that are kept.
const KEEP: usize = 1_000;
/// A longer file is cut down to them.
const MAX_BYTES: u64 = 256 * 1024;

/// A place in a log, and when it was its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub at: At,
    pub inode: u64,
    pub offset: u64,
}

impl Place {
    /// The end of a file as it is now; inode 0 where there is none.
    fn end_of(path: &Path, at: At) -> Self {
        let (inode, offset) = fs::metadata(path).map_or((0, 0), |meta| (meta.ino(), meta.len()));
        Self { at, inode, offset }
    }
}

/// The instance's three files, told by one of its logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    pub out: PathBuf,
    pub err: PathBuf,
    pub runs: PathBuf,
}

impl Files {
    /// `None` for a log that is no instance's.
    #[must_use]
    pub fn of(log: &Path) -> Option<Self> {
        let name = log.file_name()?.to_str()?;
        let instance = name.strip_suffix(".out.log").or_else(|| name.strip_suffix(".err.log"))?;
        let file = |end: &str| log.with_file_name(format!("{instance}.{end}"));
        Some(Self { out: file("out.log"), err: file("err.log"), runs: file("runs") })
    }
}

/// Notes that a run begins at the ends of both logs.
///
/// # Errors
/// When the file cannot be written.
pub fn note(files: &Files, at: At) -> io::Result<()> {
    let (out, err) = (Place::end_of(&files.out, at), Place::end_of(&files.err, at));
    let line = format!("{at} {} {} {} {}\n", out.inode, out.offset, err.inode, err.offset);
    let open = || OpenOptions::new().append(true).create(true).mode(0o640).open(&files.runs);
    let mut file = match open() {
        // The first run of all: nothing was written yet.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            make_folder(&files.runs)?;
            open()?
        }
        other => other?,
    };
    file.write_all(line.as_bytes())?;
    if file.metadata()?.len() > MAX_BYTES {
        shorten(&files.runs)?;
    }
    Ok(())
}

fn shorten(runs: &Path) -> io::Result<()> {
    let text = fs::read_to_string(runs)?;
    let lines: Vec<&str> = text.lines().collect();
    let kept = lines[lines.len().saturating_sub(KEEP)..].join("\n") + "\n";
    let aside = runs.with_extension("runs.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&aside)?;
    file.write_all(kept.as_bytes())?;
    fs::rename(aside, runs)
}

/// Begin of the run that began at this moment, and its end where another one has begun since; `None` where
/// nothing is known of it. The log is that of one stream.
#[must_use]
pub fn begun_at(log: &Path, at: At) -> Option<(Place, Option<Place>)> {
    let files = Files::of(log)?;
    let stream = if log == files.out { Stream::Out } else { Stream::Err };
    let text = fs::read_to_string(&files.runs).ok()?;
    let mut later = None;
    for place in text.lines().rev().filter_map(|line| place(line, stream)) {
        if place.at <= at {
            return (place.at == at).then_some((place, later));
        }
        later = Some(place);
    }
    None
}

/// Begin and end of the run before the current one; `None` where there was none.
///
/// # Errors
/// When the file cannot be read.
pub fn previous(runs: &Path, stream: Stream) -> io::Result<Option<(Place, Place)>> {
    let text = match fs::read_to_string(runs) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut places = text.lines().rev().filter_map(|line| place(line, stream));
    let end = places.next();
    let begin = places.next();
    Ok(begin.zip(end))
}

fn place(line: &str, stream: Stream) -> Option<Place> {
    let mut words = line.split(' ');
    let at = words.next()?.parse().ok()?;
    let mut words = words.skip(match stream {
        Stream::Out => 0,
        Stream::Err => 2,
    });
    Some(Place { at, inode: words.next()?.parse().ok()?, offset: words.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_two_marks_are_the_previous_run() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::of(&dir.path().join("blog.1.err.log")).unwrap();
        assert_eq!(files, Files::of(&files.out).unwrap());
        assert_eq!(Files::of(Path::new("/logs/deploys/7.log")), None);
        assert_eq!(previous(&files.runs, Stream::Out).unwrap(), None);
        note(&files, At(0)).unwrap();
        assert_eq!(previous(&files.runs, Stream::Out).unwrap(), None);
        fs::write(&files.out, "12345").unwrap();
        note(&files, At(1)).unwrap();
        let inode = fs::metadata(&files.out).unwrap().ino();
        let (begin, end) = previous(&files.runs, Stream::Out).unwrap().unwrap();
        let place = |at, inode, offset| Place { at: At(at), inode, offset };
        assert_eq!((begin, end), (place(0, 0, 0), place(1, inode, 5)));
        assert_eq!(previous(&files.runs, Stream::Err).unwrap(), Some((place(0, 0, 0), place(1, 0, 0))));
    }

    #[test]
    fn the_file_stays_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::of(&dir.path().join("blog.1.out.log")).unwrap();
        fs::write(&files.runs, "1970-01-01T00:00:00.000Z 1 1 1 1\n".repeat(9_000)).unwrap();
        note(&files, At(7)).unwrap();
        let text = fs::read_to_string(&files.runs).unwrap();
        assert_eq!(text.lines().count(), KEEP);
        assert!(text.ends_with("1970-01-01T00:00:00.007Z 0 0 0 0\n"));
    }
}
