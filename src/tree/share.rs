//! Makes paths of a release links into `shared/`, and loses nothing on the way: what the commit
//! tracks there fills an empty `shared/` once, and what an app wrote in place of a link (it saves by
//! write and rename) is carried over.
//!
//! Which paths were links in which release is noted in `shared/.everhook/<release>`: only there does
//! a plain file mean that the app replaced the link.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, Mode, OFlags, Stat, openat, readlinkat, renameat, symlinkat};

use super::{TreeError, beneath, empty};

/// In `shared/`: the notes.
pub(super) const NOTES: &str = ".everhook";
/// What is being copied, until it is whole.
const HALF: &str = ".everhook-half";

/// Links `paths` of `release` to the same paths in `shared`. A path that ends in a slash is a folder
/// and is made where it is missing; any other missing one is a link to nothing yet. Done again, it carries
/// over what has changed since: an app saves as long as it runs.
pub(super) fn share(
    release: &Path,
    shared: &Path,
    previous: Option<&Path>,
    paths: &[PathBuf],
) -> Result<(), TreeError> {
    let open = |path: &Path| beneath::folder(path).map_err(|e| TreeError::io(path.display().to_string(), e));
    let job = Sharing {
        release: open(release)?,
        shared: open(shared)?,
        target: shared,
        linked: noted(shared, release),
        linked_before: previous.map(|previous| noted(shared, previous)).unwrap_or_default(),
        previous: previous.and_then(|previous| beneath::folder(previous).ok()),
    };
    for path in paths {
        job.share(path)?;
    }
    note(shared, release, previous, paths).map_err(|e| TreeError::io("noting what is shared", e))
}

struct Sharing<'a> {
    release: OwnedFd,
    shared: OwnedFd,
    target: &'a Path,
    previous: Option<OwnedFd>,
    /// What was made a link in the release already, and what was one in the previous one.
    linked: BTreeSet<PathBuf>,
    linked_before: BTreeSet<PathBuf>,
}

/// One of the three places of a path.
struct Place {
    folder: OwnedFd,
    name: PathBuf,
}

impl Place {
    fn look(&self) -> io::Result<Option<Stat>> {
        beneath::look(self.folder.as_fd(), &self.name)
    }
}

impl Sharing<'_> {
    fn share(&self, path: &Path) -> Result<(), TreeError> {
        if !beneath::is_plain(path) || path.starts_with(NOTES) {
            return Err(TreeError::Refused(format!("shared path {} is not a plain path in the release", shown(path))));
        }
        let io = |e| TreeError::io(format!("sharing {}", shown(path)), e);
        let here = place(self.release.as_fd(), path).map_err(|e| led_astray(path, "the commit", e))?;
        let there = place(self.shared.as_fd(), path).map_err(|e| led_astray(path, "shared/", e))?;
        // Built anew from its names, a trailing slash is gone.
        let target: PathBuf = self.target.join(path).components().collect();
        self.carry_over(path, &here, &there)?;
        if let Some(stat) = here.look().map_err(io)? {
            if leads_to(&here, &stat, &target).map_err(io)? {
                return Ok(());
            }
            match (beneath::kind(&stat), there.look().map_err(io)?) {
                (_, None) => copy(&here, &stat, &there).map_err(io)?,
                (FileType::Directory, Some(_)) if self.linked.contains(path) => {
                    return Err(replaced(path, "a step", "a folder", "the new release"));
                }
                (FileType::RegularFile, Some(_)) if self.linked.contains(path) => {
                    save(path, "the new release", (&here, &stat), &there)?;
                }
                _ => {}
            }
            empty::remove(here.folder.as_fd(), &here.name).map_err(io)?;
        }
        if path.as_os_str().as_bytes().ends_with(b"/") && there.look().map_err(io)?.is_none() {
            beneath::make_folder_below(there.folder.as_fd(), &there.name).map_err(io)?;
        }
        symlinkat(&target, &here.folder, &here.name).map_err(|e| io(e.into()))
    }

    /// Saves what the previous release holds at this path beside `shared/`.
    fn carry_over(&self, path: &Path, here: &Place, there: &Place) -> Result<(), TreeError> {
        let io = |e| TreeError::io(format!("carrying over {}", shown(path)), e);
        let Some(previous) = self.previous.as_ref().and_then(|previous| existing(previous.as_fd(), path)) else {
            return Ok(());
        };
        let Some(stat) = previous.look().map_err(io)? else { return Ok(()) };
        let was_link = self.linked_before.contains(path);
        let shared = there.look().map_err(io)?;
        match beneath::kind(&stat) {
            FileType::RegularFile if was_link || shared.is_none() => {
                save(path, "the live release", (&previous, &stat), there)
            }
            FileType::Directory if was_link => Err(replaced(path, "the app", "a folder", "the live release")),
            FileType::Directory if shared.is_none() && !same(&previous, here).map_err(io)? => {
                Err(TreeError::Refused(format!(
                    "the live release holds a folder at {}, which is shared from now on: copy it to {} first",
                    shown(path),
                    self.target.join(path).display()
                )))
            }
            _ => Ok(()),
        }
    }
}

/// Takes a file that stands where a link was into `shared/`, unless what is there is newer or the same.
fn save(path: &Path, whose: &str, (file, stat): (&Place, &Stat), there: &Place) -> Result<(), TreeError> {
    let io = |e| TreeError::io(format!("carrying over {}", shown(path)), e);
    let shared = there.look().map_err(io)?;
    let newer = shared.is_some_and(|shared| changed(&shared) > changed(stat));
    if newer || same(file, there).map_err(io)? {
        return Ok(());
    }
    if shared.is_some_and(|shared| beneath::kind(&shared) == FileType::Directory) {
        return Err(replaced(path, "somebody", "a file", whose));
    }
    eprintln!("{}: {whose} holds a newer file in place of the link; it is carried over", shown(path));
    copy(file, stat, there).map_err(io)
}

fn replaced(path: &Path, who: &str, by: &str, whose: &str) -> TreeError {
    let shown = shown(path);
    TreeError::Refused(format!(
        "{who} replaced the shared {shown} by {by} in {whose}: bring its content into shared/ and remove it there"
    ))
}

fn led_astray(path: &Path, whose: &str, error: io::Error) -> TreeError {
    match error.raw_os_error() {
        Some(libc::ELOOP | libc::ENOTDIR) => TreeError::Refused(format!(
            "the shared path {} leads through something that is no folder in {whose}: a shared path may not go through a link or a file",
            shown(path)
        )),
        _ => TreeError::io(format!("sharing {}", shown(path)), error),
    }
}

fn shown(path: &Path) -> String {
    format!("{:?}", path.to_string_lossy())
}

fn place(root: BorrowedFd<'_>, path: &Path) -> io::Result<Place> {
    let (parent, name) = split(path);
    Ok(Place { folder: beneath::make_folder_below(root, parent)?, name })
}

fn existing(root: BorrowedFd<'_>, path: &Path) -> Option<Place> {
    let (parent, name) = split(path);
    Some(Place { folder: beneath::folder_below(root, parent).ok()?, name })
}

fn split(path: &Path) -> (&Path, PathBuf) {
    (path.parent().unwrap_or(Path::new("")), path.file_name().map(PathBuf::from).unwrap_or_default())
}

/// Is it the link that it is to be?
fn leads_to(here: &Place, stat: &Stat, target: &Path) -> io::Result<bool> {
    let is_link = beneath::kind(stat) == FileType::Symlink;
    Ok(is_link && readlinkat(&here.folder, &here.name, Vec::new())?.as_bytes() == target.as_os_str().as_bytes())
}

fn changed(stat: &Stat) -> (i64, i64) {
    (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

/// Copies a file, a link or a whole folder; `to` has it whole or not at all.
fn copy(from: &Place, stat: &Stat, to: &Place) -> io::Result<()> {
    let half = Place { folder: to.folder.as_fd().try_clone_to_owned()?, name: HALF.into() };
    empty::remove(half.folder.as_fd(), &half.name)?;
    copy_entry(from, stat, &half)?;
    Ok(renameat(&half.folder, &half.name, &to.folder, &to.name)?)
}

fn copy_entry(from: &Place, stat: &Stat, to: &Place) -> io::Result<()> {
    match beneath::kind(stat) {
        FileType::RegularFile => {
            let mut source = beneath::file(from.folder.as_fd(), &from.name)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut copy = File::from(openat(&to.folder, &to.name, flags, Mode::from_raw_mode(0o600))?);
            io::copy(&mut source, &mut copy)?;
            beneath::permit(&copy, stat.st_mode)?;
            copy.sync_all()
        }
        FileType::Directory => {
            let source = beneath::folder_below(from.folder.as_fd(), &from.name)?;
            let copy = beneath::make_folder_below(to.folder.as_fd(), &to.name)?;
            for name in beneath::names(source.as_fd())? {
                let from = Place { folder: source.try_clone()?, name: name.clone() };
                let to = Place { folder: copy.try_clone()?, name };
                if let Some(stat) = from.look()? {
                    copy_entry(&from, &stat, &to)?;
                }
            }
            beneath::permit(&copy, stat.st_mode)
        }
        FileType::Symlink => {
            let target = readlinkat(&from.folder, &from.name, Vec::new())?;
            Ok(symlinkat(&target, &to.folder, &to.name)?)
        }
        other => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{other:?} cannot be shared"))),
    }
}

/// Do two places hold the same?
fn same(one: &Place, other: &Place) -> io::Result<bool> {
    let (Some(a), Some(b)) = (one.look()?, other.look()?) else { return Ok(false) };
    if beneath::kind(&a) != beneath::kind(&b) {
        return Ok(false);
    }
    match beneath::kind(&a) {
        FileType::RegularFile => {
            let (a, b) =
                (beneath::file(one.folder.as_fd(), &one.name)?, beneath::file(other.folder.as_fd(), &other.name)?);
            Ok(a.metadata()?.len() == b.metadata()?.len() && same_bytes(a, b)?)
        }
        FileType::Symlink => {
            let target = |place: &Place| readlinkat(&place.folder, &place.name, Vec::new());
            Ok(target(one)? == target(other)?)
        }
        FileType::Directory => {
            let a = beneath::folder_below(one.folder.as_fd(), &one.name)?;
            let b = beneath::folder_below(other.folder.as_fd(), &other.name)?;
            let sorted = |folder: &OwnedFd| Ok::<_, io::Error>(beneath::names(folder.as_fd())?.into_iter().collect());
            let names: BTreeSet<PathBuf> = sorted(&a)?;
            if names != sorted(&b)? {
                return Ok(false);
            }
            for name in names {
                let one = Place { folder: a.try_clone()?, name: name.clone() };
                if !same(&one, &Place { folder: b.try_clone()?, name })? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn same_bytes(mut a: File, mut b: File) -> io::Result<bool> {
    let (mut left, mut right) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let n = a.read(&mut left)?;
        if n == 0 {
            return Ok(b.read(&mut right)? == 0);
        }
        match b.read_exact(&mut right[..n]) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            other => other?,
        }
        if left[..n] != right[..n] {
            return Ok(false);
        }
    }
}

/// The paths that were links in a release; NUL after each.
fn noted(shared: &Path, release: &Path) -> BTreeSet<PathBuf> {
    let text = release.file_name().and_then(|name| fs::read(shared.join(NOTES).join(name)).ok()).unwrap_or_default();
    let names = text.split(|b| *b == 0).filter(|name| !name.is_empty());
    names.map(|name| PathBuf::from(std::ffi::OsStr::from_bytes(name))).collect()
}

/// Notes the links of this release, and forgets those of releases that are neither it nor live.
fn note(shared: &Path, release: &Path, previous: Option<&Path>, paths: &[PathBuf]) -> io::Result<()> {
    let notes = shared.join(NOTES);
    fs::create_dir_all(&notes)?;
    let Some(name) = release.file_name() else { return Ok(()) };
    let mut file = File::create(notes.join(name))?;
    for path in paths {
        file.write_all(path.as_os_str().as_bytes())?;
        file.write_all(b"\0")?;
    }
    file.sync_all()?;
    for entry in fs::read_dir(&notes)? {
        let entry = entry?;
        let kept = [Some(name), previous.and_then(Path::file_name)];
        let is_note = entry.file_type()?.is_file();
        if is_note && !kept.contains(&Some(entry.file_name().as_os_str())) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
