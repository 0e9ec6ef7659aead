//! A cgroup v2 per tree of processes, for membership alone: no controller is needed, so any
//! hierarchy serves in which we may make a folder. Groups that an app makes below its own count.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, mkdirat, openat, unlinkat},
    io::Errno,
};

use super::pidfd;
use crate::domain::model::Signal;

/// No app nests deeper; the kernel's own default has no limit.
const DEEPEST: u32 = 64;
/// Rounds of killing one by one; a round misses only what was just forked.
const ROUNDS: u32 = 100;
/// Makes the names of trials differ.
static TRIALS: AtomicU32 = AtomicU32::new(0);

/// A group of ours in which groups can be made.
#[derive(Debug)]
pub struct Base {
    folder: OwnedFd,
    path: PathBuf,
}

/// A group for one tree. It outlives this value, until [`Cgroup::remove`].
#[derive(Debug, Clone)]
pub struct Cgroup {
    folder: Arc<OwnedFd>,
    path: PathBuf,
}

/// Finds a writable place below the group that we are in. In a container the group's path may lie
/// outside of what is mounted, and what is mounted may not be ours: so a group is made to see.
#[must_use]
pub fn find_base() -> Option<Base> {
    let (own, mounts) = (fs::read_to_string("/proc/self/cgroup").ok()?, fs::read("/proc/self/mountinfo").ok()?);
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let places = String::from_utf8_lossy(&mounts).lines().filter_map(|line| place(line, own)).collect::<Vec<_>>();
    places.into_iter().find_map(|path| Base::at(path).ok())
}

/// Where our group is in this mount, if the line is one of cgroup v2. proc_pid_mountinfo(5).
fn place(line: &str, own: &str) -> Option<PathBuf> {
    let (mount, kind) = line.split_once(" - ")?;
    if kind.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, unescaped(fields.next()?));
    let within = own.strip_prefix(root.trim_end_matches('/')).unwrap_or("");
    // Outside of the mount, what is mounted is all there is.
    let within = if within.split('/').any(|part| part == "..") { "" } else { within.trim_matches('/') };
    Some(point.join(within))
}

/// Spaces and the like stand in mountinfo as three octal digits.
fn unescaped(field: &str) -> PathBuf {
    ["\\040", "\\011", "\\012", "\\134"]
        .into_iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_owned(), |text, (code, character)| text.replace(code, character))
        .into()
}

impl Base {
    /// Takes this folder, if a process of ours can be born below it.
    fn at(path: PathBuf) -> io::Result<Self> {
        let base = Self { folder: open_folder(CWD, &path)?, path };
        openat(&base.folder, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        let count = TRIALS.fetch_add(1, Ordering::Relaxed);
        let trial = base.make(&format!("everhook-trial-{}-{count}", std::process::id()))?;
        let kind = trial.read("cgroup.type");
        trial.remove()?;
        // Below a threaded group no process can live.
        if kind?.trim() == "domain" { Ok(base) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
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
        match mkdirat(&self.folder, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        let folder = open_folder(self.folder.as_fd(), Path::new(name))?;
        Ok(Cgroup { folder: Arc::new(folder), path: self.path.join(name) })
    }
}

impl Cgroup {
    /// For `SpawnSpec::cgroup`.
    #[must_use]
    pub fn folder(&self) -> Arc<OwnedFd> {
        self.folder.clone()
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
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
        // Frozen, nobody forks, yet the frozen die by KILL. Where that is refused the rounds do it.
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
        // On the way of every restart: three calls and no more.
        let file = openat(&self.folder, "cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = [0; 128];
        let length = rustix::io::read(&file, &mut text)?;
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
        match fs::remove_dir(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn read(&self, name: &str) -> io::Result<String> {
        read(self.folder.as_fd(), name)
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let file = openat(&self.folder, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        File::from(file).write_all(text.as_bytes())
    }
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

fn is_gone(error: &io::Error) -> bool {
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

#[cfg(test)]
mod tests {
    use std::{ffi::CString, time::Duration};

    use nix::{
        poll::{PollFd, PollFlags, poll},
        sys::wait::{Id, WaitPidFlag, waitid},
        unistd::Pid,
    };

    use super::*;
    use crate::os::spawn::{SpawnSpec, Spawned, Spawner};

    fn group(name: &str) -> Option<Cgroup> {
        // Without a writable hierarchy there is nothing to test.
        Some(find_base()?.make(&format!("everhook-test-{}-{name}", std::process::id())).unwrap())
    }

    fn spawn(cgroup: &Cgroup, script: &str) -> Spawned {
        let mut spec =
            SpawnSpec::new(c"/bin/sh".into(), vec![c"sh".into(), c"-c".into(), CString::new(script).unwrap()]);
        spec.env = vec![c"PATH=/usr/bin:/bin".into()];
        spec.cgroup = Some(cgroup.folder());
        Spawner::new().unwrap().spawn(&spec).unwrap()
    }

    fn reap(spawned: &Spawned) {
        assert!(pidfd::wait_ended(&spawned.pidfd, Duration::from_secs(20)));
        waitid(Id::Pid(Pid::from_raw(spawned.pid.cast_signed())), WaitPidFlag::WEXITED).unwrap();
    }

    /// Waits for the kernel to tell that this is so.
    fn wait_until(cgroup: &Cgroup, so: impl Fn() -> bool) {
        let events = cgroup.events().unwrap();
        loop {
            let mut text = String::new();
            File::from(events.try_clone().unwrap()).read_to_string(&mut text).unwrap();
            if so() {
                return;
            }
            let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            assert_ne!(poll(&mut fds, 20_000u16).unwrap(), 0, "nothing happened");
        }
    }

    #[test]
    fn the_place_is_found_in_every_mount() {
        let host = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        assert_eq!(place(host, "/a/b"), Some("/sys/fs/cgroup/unified/a/b".into()));
        assert_eq!(place(host, "/"), Some("/sys/fs/cgroup/unified/".into()));
        assert_eq!(place(host, "/../other"), Some("/sys/fs/cgroup/unified/".into()));
        let bound = "41 31 0:38 /docker/1 /sys/fs/cgroup rw shared:9 - cgroup2 cgroup rw";
        assert_eq!(place(bound, "/docker/1/x"), Some("/sys/fs/cgroup/x".into()));
        assert_eq!(place(bound, "/elsewhere"), Some("/sys/fs/cgroup/".into()));
        assert_eq!(place("41 31 0:38 / /a\\040b rw - cgroup2 cgroup rw", "/"), Some("/a b/".into()));
        assert_eq!(place("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", "/"), None);
    }

    #[test]
    fn names_are_one_folder() {
        let Some(base) = find_base() else { return };
        for name in ["", ".", "..", "a/b", "../a", "a b", ".hidden"] {
            assert_eq!(base.make(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        assert!(base.make("cgroup.procs").is_err());
    }

    #[test]
    fn everybody_born_in_it_is_killed() {
        let Some(cgroup) = group("kill") else { return };
        // The second time in the same group, which must be as good as new.
        for _ in 0..2 {
            assert!(cgroup.is_empty().unwrap());
            // A daemonised grandchild with an empty environment, and a group of the app's own.
            let below = cgroup.path().join("below");
            let script = format!(
                "mkdir {0} && (echo 0 > {0}/cgroup.procs && exec sleep 1000) & \
                 env -i setsid sh -c 'sleep 1000 & exit' & while :; do sleep 0.01; done",
                below.display()
            );
            let spawned = spawn(&cgroup, &script);
            assert!(cgroup.pids().unwrap().contains(&spawned.pid), "born in it");
            assert!(!cgroup.is_empty().unwrap());
            assert_eq!(cgroup.remove().unwrap_err().raw_os_error(), Some(libc::EBUSY));
            while !below.exists() || cgroup.pids().unwrap().len() < 3 {
                std::thread::yield_now();
            }
            assert!(cgroup.open_members().unwrap().iter().any(|(pid, _)| *pid == spawned.pid));
            cgroup.kill().unwrap();
            wait_until(&cgroup, || cgroup.is_empty().unwrap());
            assert!(cgroup.pids().unwrap().is_empty());
            reap(&spawned);
            fs::remove_dir(below).unwrap();
        }
        fs::create_dir(cgroup.path().join("left")).unwrap();
        for _ in 0..2 {
            cgroup.remove().unwrap();
            assert!(cgroup.pids().unwrap().is_empty(), "gone is empty");
        }
    }
}
