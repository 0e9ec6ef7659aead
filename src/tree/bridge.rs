//! Keeps files of earlier releases reachable in a new one: who loaded a page before the switch still asks
//! for the assets that it names. Each file is linked, not copied, and none that the new release has itself
//! is touched. Links and whatever else is no plain file or folder are passed over, and never followed.
//!
//! How old a file is, counted in releases, is noted in `shared/.everhook/bridge/<release>`: what is older
//! than the releases that are kept comes along no more.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, linkat, openat},
    io::Errno,
};

use super::{TreeError, beneath, share::NOTES};

/// How many releases ago a file was a release's own, by path.
type Ages = BTreeMap<PathBuf, u32>;

/// Brings the files in `paths` of `previous` that `release` has not, if they are of the last `keep` releases.
pub(super) fn bridge(
    release: &Path,
    previous: &Path,
    shared: &Path,
    paths: &[PathBuf],
    keep: u32,
) -> Result<(), TreeError> {
    let failed = |path: &Path, e| TreeError::io(format!("keeping old files of {} reachable", path.display()), e);
    let to = beneath::folder(release).map_err(|e| failed(release, e))?;
    let from = match beneath::folder(previous) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        from => from.map_err(|e| failed(previous, e))?,
    };
    let notes = shared.join(NOTES).join("bridge");
    let known = read(&notes, previous).map_err(|e| failed(&notes, e))?;
    let mut job = Bridge { ages: read(&notes, release).map_err(|e| failed(&notes, e))?, known, keep };
    for path in paths {
        job.folder(from.as_fd(), to.as_fd(), path).map_err(|e| failed(path, e))?;
    }
    write(&notes, release, &job.ages).map_err(|e| failed(&notes, e))
}

struct Bridge {
    /// Of the files that the previous release had from others.
    known: Ages,
    /// Of those that the new one has from others.
    ages: Ages,
    keep: u32,
}

impl Bridge {
    fn folder(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        let there = match beneath::folder_below(from, path) {
            Err(e) if is_nothing(&e) => return Ok(()),
            there => there?,
        };
        for name in beneath::names(there.as_fd())? {
            let Some(stat) = beneath::look(there.as_fd(), &name)? else { continue };
            let path = path.join(&name);
            match beneath::kind(&stat) {
                FileType::Directory => self.folder(from, to, &path)?,
                FileType::RegularFile => self.file(there.as_fd(), &name, to, &path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn file(&mut self, there: BorrowedFd<'_>, name: &Path, to: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        let age = self.known.get(path).map_or(1, |age| age + 1);
        if age >= self.keep {
            return Ok(());
        }
        let here = match beneath::make_folder_below(to, path.parent().unwrap_or(Path::new(""))) {
            // The new release has something else there.
            Err(e) if is_nothing(&e) || e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            here => here?,
        };
        match linkat(there, name, &here, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(()),
            Err(Errno::XDEV | Errno::MLINK | Errno::PERM) => copy(there, here.as_fd(), name)?,
            Err(e) => return Err(e.into()),
        }
        self.ages.insert(path.to_owned(), age);
        Ok(())
    }
}

/// A link, a file, or nothing where a folder was looked for.
fn is_nothing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP))
}

fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &Path) -> io::Result<()> {
    let mut source = beneath::file(from, name)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut copy = File::from(openat(to, name, flags, Mode::from_raw_mode(0o600))?);
    io::copy(&mut source, &mut copy)?;
    let mode = std::os::unix::fs::MetadataExt::mode(&source.metadata()?);
    beneath::permit(&copy, mode)
}

/// A line of `<age> <path>` with NUL after each.
fn read(notes: &Path, release: &Path) -> io::Result<Ages> {
    let text = match release.file_name().map(|name| fs::read(notes.join(name))) {
        Some(Err(e)) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Some(Ok(text)) => text,
        _ => Vec::new(),
    };
    let entries = text.split(|b| *b == 0).filter_map(|entry| {
        let blank = entry.iter().position(|b| *b == b' ')?;
        let age = std::str::from_utf8(&entry[..blank]).ok()?.parse().ok()?;
        Some((PathBuf::from(std::ffi::OsStr::from_bytes(&entry[blank + 1..])), age))
    });
    Ok(entries.collect())
}

/// Notes them, and forgets the notes of releases that are gone.
fn write(notes: &Path, release: &Path, ages: &Ages) -> io::Result<()> {
    fs::create_dir_all(notes)?;
    let (Some(name), Some(releases)) = (release.file_name(), release.parent()) else { return Ok(()) };
    let entries =
        ages.iter().map(|(path, age)| [format!("{age} ").as_bytes(), path.as_os_str().as_bytes(), b"\0"].concat());
    fs::write(notes.join(name), entries.collect::<Vec<_>>().concat())?;
    for entry in fs::read_dir(notes)? {
        let entry = entry?;
        if !releases.join(entry.file_name()).is_dir() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
