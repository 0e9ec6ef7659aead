//! The files of one log, told by number: `log` is written, `log.1` came before it, `log.2.gz` before
//! that. The hand that captures moves them, another compresses them, readers open them: whoever moves
//! them or needs them to stay holds [`Aside::names`] for that moment.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use flate2::read::{GzDecoder, MultiGzDecoder};

use super::aside::Aside;
use crate::domain::model::At;

/// `blog.1.out.log.2`
#[must_use]
pub fn numbered(path: &Path, number: u32) -> PathBuf {
    with(path, &format!(".{number}"))
}

/// `blog.1.out.log.2.gz`
#[must_use]
pub fn zipped(path: &Path, number: u32) -> PathBuf {
    with(path, &format!(".{number}.gz"))
}

/// The path with this at its end.
#[must_use]
pub fn with(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// What is there under a name; `None` where nothing is.
///
/// # Errors
/// When it cannot be said.
pub fn look(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Something may be missing: true where it was there.
fn if_there(done: io::Result<()>) -> io::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn exists(path: &Path, number: u32) -> io::Result<bool> {
    Ok(look(&numbered(path, number))?.is_some() || look(&zipped(path, number))?.is_some())
}

/// Moves the file under the bare name to number 1 and every other one further, from the first missing
/// number down: no rename meets an existing file, and a kill between two of them leaves the gap where the
/// next try goes on. What is over `keep` goes.
///
/// # Errors
/// When a rename fails.
pub fn shift(path: &Path, keep: u32, aside: &Aside) -> io::Result<()> {
    if keep == 0 {
        return aside.discard(path);
    }
    let _names = aside.names();
    let mut free = 1;
    while exists(path, free)? {
        free += 1;
    }
    for number in (1..free).rev() {
        let (plain, zip) = (numbered(path, number), zipped(path, number));
        if look(&plain)?.is_some() {
            // A kill fell between the last two steps of compressing it: it will be compressed again.
            if_there(fs::remove_file(&zip))?;
            fs::rename(plain, numbered(path, number + 1))?;
        } else {
            if_there(fs::rename(zip, zipped(path, number + 1)))?;
        }
    }
    fs::rename(path, numbered(path, 1))?;
    let mut over = keep.saturating_add(1);
    while exists(path, over)? {
        for name in [numbered(path, over), zipped(path, over)] {
            if look(&name)?.is_some() {
                aside.discard(&name)?;
            }
        }
        over += 1;
    }
    Ok(())
}

/// A file of a log, open: what it is called by now does not matter.
#[derive(Debug, Clone)]
pub struct Found {
    pub file: Arc<File>,
    pub zip: bool,
    /// Of the file that was written to; a compressed one says which that was.
    pub inode: u64,
    /// Bytes of text.
    pub length: u64,
    /// The last write.
    pub written: At,
}

impl Found {
    /// # Errors
    /// When the file cannot be asked.
    pub fn plain(file: Arc<File>) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self { zip: false, inode: meta.ino(), length: meta.len(), written: written(&meta), file })
    }

    fn zipped(file: File) -> io::Result<Self> {
        let meta = file.metadata()?;
        let origin = GzDecoder::new(&file).header().and_then(|header| Origin::read(header.comment()?));
        // One that an administrator made says nothing: it is read, but never found by its inode.
        let Origin { inode, length } = origin.unwrap_or(Origin { inode: 0, length: u64::MAX });
        Ok(Self { zip: true, inode, length, written: written(&meta), file: Arc::new(file) })
    }

    /// Its text from the beginning on. The file's own position is left alone.
    #[must_use]
    pub fn text(&self) -> Box<dyn Read> {
        let from_start = FromStart { file: Arc::clone(&self.file), at: 0 };
        if self.zip { Box::new(MultiGzDecoder::new(from_start)) } else { Box::new(from_start) }
    }
}

/// Reads a file that others read too.
struct FromStart {
    file: Arc<File>,
    at: u64,
}

impl Read for FromStart {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(into, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

fn written(meta: &Metadata) -> At {
    At(meta.mtime().saturating_mul(1000).saturating_add(meta.mtime_nsec() / 1_000_000))
}

/// Which file a compressed one was.
#[derive(Debug, PartialEq, Eq)]
pub struct Origin {
    pub inode: u64,
    pub length: u64,
}

impl Origin {
    /// For the head of the compressed file.
    #[must_use]
    pub fn comment(&self) -> String {
        format!("everhook {} {}", self.inode, self.length)
    }

    fn read(comment: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(comment).ok()?.strip_prefix("everhook ")?;
        let (inode, length) = text.split_once(' ')?;
        Some(Self { inode: inode.parse().ok()?, length: length.parse().ok()? })
    }
}

/// All files of a log as they are now, newest first. None moves while they are opened.
///
/// # Errors
/// When one cannot be opened.
pub fn files(path: &Path, aside: &Aside) -> io::Result<Vec<Found>> {
    let mut opened = Vec::new();
    let names = aside.names();
    opened.extend(open(path)?.map(|file| (file, false)));
    for number in 1.. {
        if let Some(file) = open(&numbered(path, number))? {
            opened.push((file, false));
        } else if let Some(file) = open(&zipped(path, number))? {
            opened.push((file, true));
        } else {
            break;
        }
    }
    drop(names);
    let found = |(file, zip)| if zip { Found::zipped(file) } else { Found::plain(Arc::new(file)) };
    opened.into_iter().map(found).collect()
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
