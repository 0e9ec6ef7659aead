//! Where in its log a stream was when: `<instance>.<stream>.times`, 32 bytes an entry, so that `--since`
//! finds its way in raw files too. An entry says: what stands from this place to that of the next one was
//! written between these two moments. Nothing but reading depends on it: what cannot be noted is not.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::runs::Files;
use crate::domain::model::At;

/// A place is noted at most once in this time.
pub const SPAN: Duration = Duration::from_secs(1);
const ENTRY: usize = 32;
/// A larger file is thinned out: in its older half two entries become one.
const MAX_BYTES: u64 = 2 * 1024 * 1024;
/// Not over a pause that is longer, in milliseconds.
const PAUSE: i64 = 60_000;

/// A part of a log, and between which moments it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub from: At,
    pub to: At,
    pub inode: u64,
    pub offset: u64,
}

impl Entry {
    fn bytes(&self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        let words = [self.from.0 as u64, self.to.0 as u64, self.inode, self.offset];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let mut words = bytes.chunks_exact(8).map(|word| word.try_into().map(u64::from_le_bytes));
        let mut next = || words.next()?.ok();
        let (from, to) = (At(next()? as i64), At(next()? as i64));
        Some(Self { from, to, inode: next()?, offset: next()? })
    }
}

/// The file beside a log; `None` for a log that is no instance's.
fn beside(log: &Path) -> Option<PathBuf> {
    Files::of(log)?;
    Some(log.with_extension("times"))
}

/// Notes that what is written from this place on is written from now on.
pub fn note(log: &Path, now: At, inode: u64, offset: u64) {
    if let Some(path) = beside(log) {
        let to = At(now.0 + SPAN.as_millis() as i64);
        // On a full disk, say; and the next one may fit again.
        let _ = append(&path, &Entry { from: now, to, inode, offset });
    }
}

fn append(path: &Path, entry: &Entry) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
    file.write_all(&entry.bytes())?;
    if file.metadata()?.len() > MAX_BYTES {
        let thin: Vec<u8> = thinned(read(path)?).iter().flat_map(Entry::bytes).collect();
        let aside = path.with_extension("times.new");
        fs::write(&aside, thin)?;
        fs::set_permissions(&aside, file.metadata()?.permissions())?;
        fs::rename(aside, path)?;
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<Vec<Entry>> {
    Ok(fs::read(path)?.chunks_exact(ENTRY).filter_map(Entry::read).collect())
}

/// Joins entries of the older half two by two; where that saves little, the oldest go.
fn thinned(mut entries: Vec<Entry>) -> Vec<Entry> {
    let (count, newer) = (entries.len(), entries.split_off(entries.len() / 2));
    let mut thin: Vec<Entry> = Vec::with_capacity(count);
    let mut alone = false;
    for entry in entries {
        match thin.last_mut() {
            Some(last) if alone && last.inode == entry.inode && entry.from.0 - last.to.0 < PAUSE => {
                last.to = entry.to;
                alone = false;
            }
            _ => {
                thin.push(entry);
                alone = true;
            }
        }
    }
    let over = (thin.len() + newer.len()).saturating_sub(count / 8 * 7);
    thin.drain(..over.min(thin.len()));
    thin.extend(newer);
    thin
}

/// The entries of a log, oldest first; none where nothing was noted.
#[must_use]
pub fn entries(log: &Path) -> Vec<Entry> {
    beside(log).and_then(|path| read(&path).ok()).unwrap_or_default()
}

/// When the first line of the file with this inode was written.
#[must_use]
pub fn begun(log: &Path, inode: u64) -> Option<At> {
    // Inodes are used again: the newest file that had it counts.
    entries(log).iter().rev().find(|entry| entry.inode == inode && entry.offset == 0).map(|entry| entry.from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at: i64, inode: u64, offset: u64) -> Entry {
        Entry { from: At(at), to: At(at + 1000), inode, offset }
    }

    #[test]
    fn what_is_noted_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("blog.1.out.log");
        assert_eq!(begun(&log, 7), None);
        for (at, inode, offset) in [(1, 7, 0), (2, 7, 50), (3, 8, 0), (4, 7, 0)] {
            note(&log, At(at), inode, offset);
        }
        assert_eq!(entries(&log), [entry(1, 7, 0), entry(2, 7, 50), entry(3, 8, 0), entry(4, 7, 0)]);
        assert_eq!((begun(&log, 7), begun(&log, 8), begun(&log, 9)), (Some(At(4)), Some(At(3)), None));
        note(&dir.path().join("deploys-7.log"), At(1), 1, 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_file_stays_bounded_and_no_moment_is_lost() {
        let all: Vec<Entry> = (0..800).map(|i| entry(i * 1000, 1, i as u64)).collect();
        let thin = thinned(all.clone());
        assert_eq!(thin.len(), 600);
        assert_eq!(thin[0], Entry { to: At(2000), ..all[0] });
        assert!(thin.windows(2).all(|pair| pair[0].to == pair[1].from));
        // With pauses nothing is joined: then the oldest go.
        let rare: Vec<Entry> = (0..800).map(|i| entry(i * 100_000, 1, i as u64)).collect();
        assert_eq!(thinned(rare.clone()), rare[100..]);
    }
}
