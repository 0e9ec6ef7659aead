//! A file that lines go to: opened when needed, rotated by rename, never truncated.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use memchr::{memchr, memrchr};

use super::{
    aside::Aside,
    chain,
    form::{Pen, Tip},
    times,
};
use crate::{
    domain::{api::How, config::Form, model::Secret},
    os::clock,
};

/// A log that is never rotated takes this many bytes; what comes after is dropped and counted.
pub const UNROTATED: u64 = 64 * 1024 * 1024;

/// Of new log files and of the folders made for them.
const FILE_MODE: u32 = 0o640;
const FOLDER_MODE: u32 = 0o750;

fn pen(path: &Path, how: &How) -> Option<Box<Pen>> {
    (how.form != Form::Raw).then(|| Pen::of(path, how).into())
}

/// A log file that is open.
pub struct Opened {
    pub file: Arc<File>,
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    /// The last line has no newline yet.
    pub line_open: bool,
    /// When its first line was written, where its age counts.
    born: Option<Instant>,
    /// When a place in it was last noted in the log's times.
    noted: Option<Instant>,
}

/// What was not written because the file did not take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    pub bytes: u64,
    /// Its last line goes on in what comes next, which is dropped up to its newline.
    pub line_open: bool,
    pub reason: String,
}

/// A file that lines go to.
pub struct SinkFile {
    pub path: Box<Path>,
    /// Shared by all that are written alike, as there may be thousands.
    pub how: Arc<How>,
    /// Boxed, as most files are of apps that write little or nothing.
    pub opened: Option<Box<Opened>>,
    pub gap: Option<Box<Gap>>,
    /// Files opened since the followers were last told, oldest first.
    pub fresh: Vec<Arc<File>>,
    /// `None`: as it comes.
    pub pen: Option<Box<Pen>>,
    /// Where the last line stands, beside what the file itself tells.
    pub tip: Tip,
    /// The end of what was written last, where secrets are covered: one may go on in what comes next.
    pub tail: Option<Box<Secret>>,
    /// The open file was looked at not long ago: it is still there, and as large as was written.
    known: bool,
    aside: Aside,
}

impl SinkFile {
    #[must_use]
    pub fn new(path: PathBuf, how: Arc<How>, aside: Aside) -> Self {
        let (pen, fresh, tip) = (pen(&path, &how), Vec::new(), Tip::default());
        Self { path: path.into(), how, opened: None, gap: None, fresh, pen, tip, tail: None, known: false, aside }
    }

    /// Goes on in this way. A file that is not there is made with its first byte.
    ///
    /// # Errors
    /// When a file that is there cannot be opened.
    pub fn go_on(&mut self, how: Arc<How>) -> io::Result<()> {
        self.pen = pen(&self.path, &how);
        self.how = how;
        if self.opened.is_none() && fs::metadata(&self.path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            return Ok(());
        }
        if self.how.compress {
            self.aside.compress(&self.path);
        }
        let (aged, path) = (self.how.age.is_some(), self.path.clone());
        let opened = self.current()?;
        if aged && opened.size > 0 && opened.born.is_none() {
            opened.born = born(&path, opened);
        }
        Ok(())
    }

    /// When the file is too old; `None` while nothing is in it.
    #[must_use]
    pub fn expires(&self) -> Option<Instant> {
        self.opened.as_ref()?.born?.checked_add(self.how.age?)
    }

    /// The size over which the file goes no further: none where it has become too old.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        if self.expires().is_some_and(|at| at <= Instant::now()) {
            return Some(0);
        }
        self.how.rotate.map(|size| size.0)
    }

    /// Has the tip agree with the file, which may be another than the last time, or tell more than is
    /// known after a start.
    pub fn know_tip(&mut self) {
        // What cannot be opened is told when it is written to.
        if let Ok(opened) = self.current() {
            let open = opened.line_open;
            if open != self.tip.open {
                self.tip = Tip::of(open);
            }
        }
    }

    /// The file is about to be written to: its times are noted.
    pub fn touch(&mut self) {
        let Some(opened) = &mut self.opened else { return };
        let begins = opened.size == 0;
        if begins && self.how.age.is_some() {
            opened.born = Some(Instant::now());
        }
        if begins || opened.noted.is_none_or(|at| at.elapsed() >= times::SPAN) {
            opened.noted = Some(Instant::now());
            times::note(&self.path, clock::now().wall, opened.inode, opened.size);
        }
    }

    /// The open file as it is now: opened where it is not, opened again where somebody removed it, its
    /// size looked up, as others may have truncated it.
    ///
    /// # Errors
    /// When it cannot be opened or made.
    pub fn current(&mut self) -> io::Result<&mut Opened> {
        let stale = match &mut self.opened {
            None => true,
            Some(opened) => {
                let meta = opened.file.metadata()?;
                if meta.size() != opened.size {
                    opened.size = meta.size();
                    opened.line_open = ends_inside_a_line(&opened.file, opened.size)?;
                }
                meta.nlink() == 0
            }
        };
        if stale {
            let like = self.opened.take();
            self.open(like.as_ref().and_then(|o| o.file.metadata().ok()).as_ref())?;
        }
        self.opened.as_deref_mut().ok_or_else(|| io::Error::other("the file was just opened"))
    }

    /// Somebody may have removed or truncated the file: it is looked at before it is written to.
    pub fn doubt(&mut self) {
        self.known = false;
    }

    /// [`SinkFile::current`], unless that was asked since the last doubt.
    ///
    /// # Errors
    /// As that.
    pub fn known(&mut self) -> io::Result<()> {
        if !self.known || self.opened.is_none() {
            self.current()?;
            self.known = true;
        }
        Ok(())
    }

    /// Opens the path, making file and folder; a new file gets mode and group of `like`.
    fn open(&mut self, like: Option<&fs::Metadata>) -> io::Result<()> {
        let path = &self.path;
        let options = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).mode(FILE_MODE);
            options
        };
        let file = match options().open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                make_folder(path)?;
                let file = options().create(true).open(path)?;
                file.set_permissions(Permissions::from_mode(like.map_or(FILE_MODE, |l| l.mode() & 0o777)))?;
                if let Some(like) = like {
                    // Somebody gave the log to a group we may not be in: then the file stays ours alone.
                    let _ = fchown(&file, None, Some(like.gid()));
                }
                file
            }
            other => other?,
        };
        let meta = file.metadata()?;
        let line_open = ends_inside_a_line(&file, meta.size())?;
        let file = Arc::new(file);
        self.fresh.push(Arc::clone(&file));
        let mut opened = Opened {
            file,
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            line_open,
            born: None,
            noted: None,
        };
        if self.how.age.is_some() && opened.size > 0 {
            opened.born = born(path, &opened);
        }
        self.opened = Some(Box::new(opened));
        Ok(())
    }

    /// Moves the file with this identity away and opens a new one. Where the path holds another file by
    /// now, it was moved before: so a rotation that a kill cut short is finished by asking again.
    ///
    /// # Errors
    /// When a rename fails.
    pub fn rotate(&mut self, device: u64, inode: u64) -> io::Result<()> {
        let path = &self.path;
        let like = match fs::metadata(path) {
            Ok(meta) if (meta.dev(), meta.ino()) == (device, inode) => {
                chain::shift(path, self.how.keep, &self.aside)?;
                Some(meta)
            }
            Ok(_) => None,
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.opened.as_ref().and_then(|o| o.file.metadata().ok()),
            Err(e) => return Err(e),
        };
        if let Some(old) = self.opened.take() {
            self.aside.close(old.file);
        }
        self.open(like.as_ref())?;
        if self.how.compress {
            self.aside.compress(&self.path);
        }
        Ok(())
    }
}

/// Makes the folder of a log.
///
/// # Errors
/// When it cannot be made.
pub fn make_folder(log: &Path) -> io::Result<()> {
    log.parent().map_or(Ok(()), |folder| DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder))
}

/// When the first line of a file was written, as far as anything tells; the clock that people set may
/// have been set since.
fn born(path: &Path, opened: &Opened) -> Option<Instant> {
    let age = match times::begun(path, opened.inode) {
        Some(at) => Duration::from_millis(u64::try_from(clock::now().wall.0 - at.0).unwrap_or(0)),
        None => opened.file.metadata().and_then(|meta| meta.created().or(meta.modified())).ok()?.elapsed().ok()?,
    };
    Instant::now().checked_sub(age)
}

fn ends_inside_a_line(file: &File, size: u64) -> io::Result<bool> {
    let mut last = [0];
    Ok(size > 0 && file.read_at(&mut last, size - 1)? == 1 && last != *b"\n")
}

/// What comes next for data that is to go to a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Cut {
    /// This many of its first bytes go to this file.
    Write(usize),
    /// It begins a new file.
    Rotate,
}

/// Where `data` is cut, so that no file is larger than `limit` and no line is in two files. A line that
/// is larger than the limit makes its file larger.
#[must_use]
pub fn cut(size: u64, line_open: bool, limit: Option<u64>, data: &[u8]) -> Cut {
    let room = limit.map_or(u64::MAX, |limit| limit.saturating_sub(size));
    let Some(fitting) = usize::try_from(room).ok().and_then(|room| data.get(..room)) else {
        return Cut::Write(data.len());
    };
    if fitting.len() == data.len() {
        return Cut::Write(data.len());
    }
    if let Some(newline) = memrchr(b'\n', fitting) {
        return Cut::Write(newline + 1);
    }
    if size > 0 && !line_open {
        return Cut::Rotate;
    }
    Cut::Write(memchr(b'\n', data).map_or(data.len(), |newline| newline + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::api::Sink;

    #[test]
    fn files_end_at_the_last_newline_before_the_limit() {
        assert_eq!(cut(0, false, None, b"aaa"), Cut::Write(3));
        assert_eq!(cut(0, false, Some(10), b"aaa\nbbb\ncc"), Cut::Write(10));
        assert_eq!(cut(0, false, Some(9), b"aaa\nbbb\ncc"), Cut::Write(8));
        assert_eq!(cut(4, false, Some(7), b"bbb\n"), Cut::Rotate);
        assert_eq!(cut(7, false, Some(7), b"b"), Cut::Rotate);
        assert_eq!(cut(9, false, Some(7), b"b"), Cut::Rotate);
    }

    #[test]
    fn a_line_is_never_in_two_files() {
        assert_eq!(cut(4, true, Some(7), b"bbbb\nc"), Cut::Write(5));
        assert_eq!(cut(0, false, Some(3), b"bbbb\nc"), Cut::Write(5));
        assert_eq!(cut(0, false, Some(0), b"b\nc"), Cut::Write(2));
        assert_eq!(cut(9, true, Some(3), b"bbbb"), Cut::Write(4));
    }

    fn names(dir: &Path) -> Vec<(String, String)> {
        let mut all: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| (e.file_name().into_string().unwrap(), fs::read_to_string(e.path()).unwrap()))
            .collect();
        all.sort();
        all
    }

    fn file(dir: &Path, keep: u32) -> SinkFile {
        let Sink { path, how } = Sink::raw(dir.join("log"), None, keep);
        SinkFile::new(path, how.into(), Aside::start())
    }

    #[test]
    fn a_rotation_cut_short_at_any_rename_is_finished() {
        // keep 2 with the oldest one already moved to 3, or 2 also, or everything but the last step.
        let before: [&[(&str, &str)]; 4] = [
            &[("log", "new"), ("log.1", "b"), ("log.2", "a")],
            &[("log", "new"), ("log.1", "b"), ("log.3", "a")],
            &[("log", "new"), ("log.2", "b"), ("log.3", "a")],
            &[("log.1", "new"), ("log.2", "b"), ("log.3", "a")],
        ];
        for (step, files) in before.iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in *files {
                fs::write(dir.path().join(name), text).unwrap();
            }
            let mut sink = file(dir.path(), 2);
            let moved = dir.path().join(if step == 3 { "log.1" } else { "log" });
            let meta = fs::metadata(moved).unwrap();
            sink.rotate(meta.dev(), meta.ino()).unwrap();
            let mut after = names(dir.path());
            after.retain(|(name, _)| name != "log.3");
            let want = [("log", ""), ("log.1", "new"), ("log.2", "b")].map(|(n, t)| (n.to_owned(), t.to_owned()));
            assert_eq!(after, want, "step {step}");
        }
    }

    #[test]
    fn what_is_over_keep_goes() {
        for keep in [3, 1, 0] {
            let dir = tempfile::tempdir().unwrap();
            let mut sink = file(dir.path(), keep);
            for _ in 0..5 {
                let opened = sink.current().unwrap();
                let (device, inode) = (opened.device, opened.inode);
                sink.rotate(device, inode).unwrap();
            }
            assert_eq!(names(dir.path()).len(), keep as usize + 1);
        }
    }

    #[test]
    fn a_new_file_is_like_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = file(dir.path(), 1);
        let opened = sink.current().unwrap();
        assert_eq!(opened.file.metadata().unwrap().mode() & 0o777, 0o640);
        opened.file.set_permissions(Permissions::from_mode(0o644)).unwrap();
        let (device, inode) = (opened.device, opened.inode);
        sink.rotate(device, inode).unwrap();
        assert_eq!(sink.current().unwrap().file.metadata().unwrap().mode() & 0o777, 0o644);
        fs::remove_file(dir.path().join("log")).unwrap();
        assert_ne!(sink.current().unwrap().inode, inode);
        assert!(dir.path().join("log").exists());
    }
}
