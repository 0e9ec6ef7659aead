//! Files: found below the folder and nowhere else, sent piece by piece.

use std::{
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
};

use hyper::body::Bytes;
use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};

use super::types;

/// Bytes of a file that are in memory at a time, per request.
const PIECE: u64 = 64 * 1024;

/// What a name leads to.
pub(super) enum Found {
    Page(Page),
    Folder,
    /// A device, a FIFO, a socket.
    Other,
}

/// A file that can be shown.
pub(super) struct Page {
    pub file: File,
    /// Bytes.
    pub length: u64,
    /// Strong, quoted: another inode, size or time is another version.
    pub etag: String,
    /// As HTTP writes dates.
    pub modified: String,
    pub kind: &'static str,
}

/// Opens what `path` leads to below the folder.
///
/// # Errors
/// As openat2(2): `EXDEV` for what leads out.
pub(super) fn find(folder: &OwnedFd, path: &Path) -> io::Result<Found> {
    // Without NONBLOCK a FIFO would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = loop {
        match openat2(folder, path, flags, Mode::empty(), resolve) {
            // Something was renamed meanwhile, somewhere; once more.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => break File::from(other?),
        }
    };
    let about = file.metadata()?;
    if about.is_dir() {
        return Ok(Found::Folder);
    }
    if !about.is_file() {
        return Ok(Found::Other);
    }
    let (length, inode, seconds, nanos) = (about.len(), about.ino(), about.mtime(), about.mtime_nsec());
    let etag = format!("\"{length:x}-{seconds:x}.{nanos:x}-{inode:x}\"");
    let modified = jiff::Timestamp::from_second(seconds).unwrap_or_default();
    let modified = modified.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    Ok(Found::Page(Page { file, length, etag, modified, kind: types::of(path) }))
}

/// A file's bytes, as many as were announced.
pub(in crate::listener) struct FileBody {
    file: File,
    left: u64,
}

impl FileBody {
    pub(super) fn new(file: File, length: u64) -> Self {
        Self { file, left: length }
    }

    pub(in crate::listener) fn left(&self) -> u64 {
        self.left
    }

    /// The next piece; `None` at the end. A file that became shorter is an error, which cuts the
    /// answer off visibly.
    pub(in crate::listener) fn next_piece(&mut self) -> Option<io::Result<Bytes>> {
        if self.left == 0 {
            return None;
        }
        Some(self.read())
    }

    fn read(&mut self) -> io::Result<Bytes> {
        let wanted = self.left.min(PIECE);
        let mut piece = Vec::with_capacity(usize::try_from(wanted).unwrap_or_default());
        let read = (&mut self.file).take(wanted).read_to_end(&mut piece)?;
        if read as u64 != wanted {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= wanted;
        Ok(piece.into())
    }
}
