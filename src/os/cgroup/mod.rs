//! A cgroup per tree of processes: for membership, where no controller is needed and any hierarchy
//! serves in which we may make a folder, version 2 before 1; and for limits, where these are wanted.
//! Groups that an app makes below its own count.

mod limit;
mod place;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, mkdirat, openat, unlinkat},
    io::Errno,
};

pub use self::limit::{Kind, Wanted};
pub use self::place::Released;
pub(super) use self::place::unescaped;
use self::{
    limit::{Controllers, Group, Limited},
    place::{LEAF, Place, Root, Version},
};

use super::{pidfd, watched::Urgent};
use crate::domain::model::Signal;

/// No app nests deeper; the kernel's own default has no limit.
const DEEPEST: u32 = 64;
/// Rounds of killing one by one; a round misses only what was just forked.
const ROUNDS: u32 = 100;
/// Hierarchies of version 1 for trees, those first in which limits may be wanted too.
const PREFERRED: [&str; 3] = ["pids", "memory", "name=systemd"];

/// Where groups are made.
#[derive(Debug)]
pub struct Base(Arc<Above>);

/// What all groups of a base have alike.
#[derive(Debug)]
struct Above {
    root: Root,
    controllers: Controllers,
}

/// A group for one tree. It outlives this value, until [`Cgroup::remove`].
#[derive(Debug)]
pub struct Cgroup {
    folder: OwnedFd,
    name: Box<str>,
    above: Arc<Above>,
    /// `None`: nothing ever was, as in most.
    limited: Mutex<Option<Box<Limited>>>,
    /// Says whether somebody lives in it; open since that was first asked.
    populated: OnceLock<OwnedFd>,
}

/// Finds a writable place below the group that we are in.
///
/// # Errors
/// Why there is none, for people.
pub fn find_base() -> Result<Base, String> {
    let mut places = place::places();
    let rank = |place: &Place| {
        let preferred = |name: &&str| place.controllers.iter().any(|controller| controller == name);
        PREFERRED.iter().position(preferred).unwrap_or(PREFERRED.len())
    };
    places.sort_by_key(|place| (place.version == Version::One, rank(place)));
    let mut reason = None;
    for place in places {
        match Root::at(&above_leaf(&place)).or_else(|_| Root::at(&place)) {
            Ok(root) => return Ok(Base(Arc::new(Above { controllers: Controllers::new(&root), root }))),
            Err(error) => reason = reason.or(Some(format!("cgroup {} is not writable: {error}", place.path.display()))),
        }
    }
    Err(reason.unwrap_or_else(|| "no cgroup hierarchy is mounted".to_owned()))
}

/// In the leaf that is for us, groups are made beside us.
fn above_leaf(place: &Place) -> Place {
    let path = place.path.parent().filter(|_| place.version == Version::Two && place.path.ends_with(LEAF));
    Place { path: path.unwrap_or(&place.path).to_owned(), ..place.clone() }
}

/// Where systemd puts what it runs for a unit beside its main process.
const CONTROL: &str = ".control";

/// Makes the group of a service that we belonged to fit for a new main process, while processes live in
/// groups below it: a group that hands controllers down can have no process of its own.
///
/// # Errors
/// Why not, for people.
pub fn release() -> Result<Vec<Released>, String> {
    let Some(place) = place::places().into_iter().find(|place| place.version == Version::Two) else {
        return Ok(Vec::new());
    };
    let inner = place.path.ends_with(LEAF) || place.path.ends_with(CONTROL);
    let unit = place.path.parent().filter(|_| inner).unwrap_or(&place.path);
    place::disable(unit).map_err(|error| format!("cgroup {} cannot be released: {error}", unit.display()))
}

/// Can groups be limited in this kind (by its name) here? Looks only: nothing is changed.
///
/// # Errors
/// Why not.
pub fn can_limit(name: &str) -> Result<(), String> {
    static KNOWN: Mutex<Vec<(Kind, Result<(), String>)>> = Mutex::new(Vec::new());
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == name) else { return Ok(()) };
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, answer)) = known.iter().find(|(of, _)| *of == kind) {
        return answer.clone();
    }
    let answer = limit::can_limit(kind);
    known.push((kind, answer.clone()));
    answer
}

impl Base {
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.root.path
    }

    /// Makes a group, or takes the one of this name with whoever is in it. The name is one folder's,
    /// and unique among all supervisors below this base.
    ///
    /// # Errors
    /// `InvalidInput` for a name with other characters than letters, digits, `-`, `_`, `.`.
    pub fn make(&self, name: &str) -> io::Result<Cgroup> {
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if !plain || name.is_empty() || name.starts_with('.') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no name of a cgroup")));
        }
        let (folder, is_new) = make_folder(&self.0.root.folder, name)?;
        // What is limited in one that was there is not known.
        let limited = Mutex::new((!is_new).then(Box::default));
        let above = Arc::clone(&self.0);
        Ok(Cgroup { folder, name: name.into(), above, limited, populated: OnceLock::new() })
    }
}

impl Cgroup {
    /// Where a child can be born.
    #[must_use]
    pub fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        (self.version() == Version::Two).then(|| self.folder.as_fd())
    }

    /// The files through which a child moves itself into it, unless it is `born` there, and into those beside it.
    pub(super) fn open_procs(&self, born: bool) -> io::Result<Vec<OwnedFd>> {
        let open = |folder: &OwnedFd| openat(folder, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        let own = (!born).then_some(&self.folder);
        self.limited(|limited| {
            let beside = limited.beside.values().map(|beside| &beside.folder);
            Ok(own.into_iter().chain(beside).map(open).collect::<Result<_, _>>()?)
        })
    }

    fn limited<T>(&self, ask: impl FnOnce(&Limited) -> T) -> T {
        match self.lock_limited().as_deref() {
            Some(limited) => ask(limited),
            None => ask(&Limited::default()),
        }
    }

    fn lock_limited(&self) -> MutexGuard<'_, Option<Box<Limited>>> {
        self.limited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn group(&self) -> Group<'_> {
        let Above { root, controllers } = &*self.above;
        Group { tree: &self.folder, version: root.version, name: &self.name, controllers }
    }

    /// A new run begins, with these limits; whatever is counted is counted from here. What cannot be
    /// had, each with its reason.
    #[must_use]
    pub fn begin(&self, wanted: Wanted) -> Vec<(Kind, String)> {
        let mut limited = self.lock_limited();
        if limited.is_none() && wanted == Wanted::default() {
            return Vec::new();
        }
        let limited = limited.get_or_insert_with(|| Box::new(Limited::of_new()));
        let unmet = self.group().limit(limited, wanted);
        self.group().begin(limited);
        unmet
    }

    /// Bytes in use, without what is only kept from disk; `None` where nobody counts them.
    #[must_use]
    pub fn memory(&self) -> Option<u64> {
        self.limited(|limited| self.group().memory(limited))
    }

    /// Seconds of processor time of this run, those of ended processes included; `None` where nobody
    /// counts them.
    #[must_use]
    pub fn cpu(&self) -> Option<f64> {
        self.limited(|limited| self.group().cpu(limited))
    }

    /// How many processes of this run the kernel has killed for want of memory, as far as it says.
    #[must_use]
    pub fn kills(&self) -> u64 {
        self.limited(|limited| self.group().kills(limited))
    }

    /// Says when [`Cgroup::kills`] may have changed, to the runtime that this is called in. `None`
    /// where memory is not limited or the kernel does not tell.
    #[must_use]
    pub fn kill_events(&self) -> Option<Urgent> {
        self.limited(|limited| self.group().kill_events(limited))
    }

    fn version(&self) -> Version {
        self.above.root.version
    }

    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.above.root.path.join(&*self.name)
    }

    /// Living processes in it and below. Those outside of our pid namespace have no number here.
    ///
    /// # Errors
    /// When it cannot be read; a group removed meanwhile holds nobody.
    pub fn pids(&self) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        collect_pids(self.folder.as_fd(), DEEPEST, &mut pids)?;
        Ok(pids)
    }

    /// Kills everybody in it and below, those who fork meanwhile included. They are gone a little
    /// later: wait for [`Cgroup::events`].
    ///
    /// `cgroup.kill` is left alone: on Linux 6.18 everybody who is born (by clone3) into a group that
    /// it was once written to is killed too, and groups are kept over restarts.
    ///
    /// # Errors
    /// When somebody may not be killed; the others are.
    pub fn kill(&self) -> io::Result<()> {
        // Frozen, nobody forks, yet the frozen die by KILL (of version 1 they would not, and it has no
        // such file). Where that is refused the rounds do it.
        let _ = self.write("cgroup.freeze", "1");
        let killed = self.kill_in_rounds();
        let _ = self.write("cgroup.freeze", "0");
        killed
    }

    /// Who has a KILL pending cannot fork any more: so all are killed when a round finds no one new.
    fn kill_in_rounds(&self) -> io::Result<()> {
        let mut seen = HashSet::new();
        let mut result = Ok(());
        for _ in 0..ROUNDS {
            let mut members = self.open_members()?;
            members.retain(|(pid, _)| seen.insert(*pid));
            if members.is_empty() {
                return result;
            }
            for (pid, member) in &members {
                match pidfd::signal(member, Signal::KILL) {
                    Err(e) if e.raw_os_error() != Some(libc::ESRCH) => {
                        result = Err(io::Error::new(e.kind(), format!("process {pid} may not be killed: {e}")));
                    }
                    _ => {}
                }
            }
        }
        Err(io::Error::other("processes are born faster than killed"))
    }

    /// Its living processes, each held. One is a member if its number was listed before it was
    /// opened and is listed after, and it has not ended by then: so it had that number all along.
    ///
    /// # Errors
    /// When the group cannot be read.
    pub fn open_members(&self) -> io::Result<Vec<(u32, OwnedFd)>> {
        let mut opened: Vec<_> =
            self.pids()?.into_iter().filter_map(|pid| Some((pid, pidfd::open(pid).ok()?))).collect();
        let still = self.pids()?;
        opened.retain(|(pid, fd)| still.contains(pid) && !pidfd::has_ended(fd));
        Ok(opened)
    }

    /// Is nobody alive in it and below, in whichever pid namespace?
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn is_empty(&self) -> io::Result<bool> {
        if self.version() == Version::One {
            return Ok(self.open_members()?.is_empty());
        }
        // On the way of every restart: one call and no more.
        let file = match self.populated.get() {
            Some(file) => file,
            None => {
                let file = self.events()?;
                self.populated.get_or_init(|| file)
            }
        };
        let mut text = [0; 128];
        let length = rustix::io::pread(file, &mut text, 0)?;
        Ok(text[..length].split(|byte| *byte == b'\n').any(|line| line == b"populated 0"))
    }

    /// Becomes urgent (`POLLPRI`; with tokio `Interest::PRIORITY`) when [`Cgroup::is_empty`] may
    /// have changed. Read it after each, or it stays so.
    ///
    /// # Errors
    /// When the group is gone.
    pub fn events(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(openat(&self.folder, "cgroup.events", flags, Mode::empty())?)
    }

    /// Removes it and the groups below; one that is gone already is fine.
    ///
    /// # Errors
    /// `ResourceBusy` while somebody lives in it.
    pub fn remove(&self) -> io::Result<()> {
        remove_below(self.folder.as_fd(), DEEPEST)?;
        let beside = self.lock_limited().as_mut().map(|limited| std::mem::take(&mut limited.beside));
        let beside = beside.into_iter().flat_map(BTreeMap::into_values).map(|beside| beside.path);
        for path in beside.chain([self.path()]) {
            match fs::remove_dir(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        write(&self.folder, name, text)
    }
}

/// Makes a group, or takes the one that is there; which of both.
fn make_folder(above: &OwnedFd, name: &str) -> io::Result<(OwnedFd, bool)> {
    let made = match mkdirat(above, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(e) => return Err(e.into()),
    };
    Ok((open_folder(above, Path::new(name))?, made))
}

fn write(folder: &OwnedFd, name: &str, text: &str) -> io::Result<()> {
    let file = openat(folder, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    File::from(file).write_all(text.as_bytes())
}

fn open_folder(above: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(above, path, flags, Mode::empty())?)
}

fn read(folder: impl AsFd, name: &str) -> io::Result<String> {
    let mut text = String::new();
    let file = openat(folder, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    File::from(file).read_to_string(&mut text)?;
    Ok(text)
}

/// Does it come from a group that was removed?
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

fn collect_pids(folder: impl AsFd, depth: u32, pids: &mut Vec<u32>) -> io::Result<()> {
    match read(&folder, "cgroup.procs") {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0)),
        Err(e) if is_gone(&e) => return Ok(()),
        // A threaded group's processes are listed above it.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(e) => return Err(e),
    }
    for_each_below(&folder, depth, |below, _| collect_pids(below, depth - 1, pids))
}

fn remove_below(folder: impl AsFd, depth: u32) -> io::Result<()> {
    for_each_below(&folder, depth, |below, name| {
        remove_below(below, depth - 1)?;
        match unlinkat(&folder, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => Ok(()),
            other => Ok(other?),
        }
    })
}

fn for_each_below(
    folder: impl AsFd,
    depth: u32,
    mut act: impl FnMut(&OwnedFd, &Path) -> io::Result<()>,
) -> io::Result<()> {
    if depth == 0 {
        return Ok(());
    }
    let entries: Vec<_> = match Dir::read_from(&folder) {
        Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
        other => other?.collect::<Result<_, _>>()?,
    };
    for entry in entries {
        let name = entry.file_name().to_string_lossy();
        if entry.file_type() != FileType::Directory || matches!(&*name, "." | "..") {
            continue;
        }
        let name = Path::new(&*name);
        match open_folder(&folder, name) {
            Err(e) if is_gone(&e) => {}
            other => act(&other?, name)?,
        }
    }
    Ok(())
}
