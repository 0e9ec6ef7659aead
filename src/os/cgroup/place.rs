//! Where cgroups can be made: the hierarchies that are mounted, and our own group in each.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};

use super::{DEEPEST, for_each_below, is_gone, make_folder, open_folder, read, write};

/// Makes the names of trials differ.
static TRIALS: AtomicU32 = AtomicU32::new(0);

/// Which kind of hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// A mounted hierarchy, and where we are in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub version: Version,
    /// Of version 1: what it controls, or `name=…`.
    pub controllers: Vec<String>,
    pub path: PathBuf,
}

/// A group in which groups can be made.
#[derive(Debug)]
pub(super) struct Root {
    pub folder: OwnedFd,
    pub path: PathBuf,
    pub version: Version,
}

/// All hierarchies, version 2 first.
pub(super) fn places() -> Vec<Place> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mounts = String::from_utf8_lossy(&mounts);
    let mut places: Vec<Place> =
        own.lines().flat_map(|own| mounts.lines().filter_map(move |mount| place(mount, own))).collect();
    places.sort_by_key(|place| place.version == Version::One);
    places
}

/// Where we are in this mount, if it is of the hierarchy that this line of `/proc/self/cgroup`
/// (`id:controllers:path`) is about. proc_pid_mountinfo(5), cgroups(7). In a container the path may
/// lie outside of what is mounted: then what is mounted is all there is.
pub(super) fn place(mount: &str, own: &str) -> Option<Place> {
    let mut parts = own.splitn(3, ':').skip(1);
    let (controllers, own) = (parts.next()?, parts.next()?);
    let (mount, kind) = mount.split_once(" - ")?;
    let mut kind = kind.split(' ');
    let version = match (kind.next()?, controllers) {
        ("cgroup2", "") => Version::Two,
        ("cgroup", controllers) if !controllers.is_empty() => Version::One,
        _ => return None,
    };
    let controllers: Vec<String> = controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let options: Vec<&str> = kind.nth(1)?.split(',').collect();
    if !controllers.iter().all(|name| options.contains(&name.as_str())) {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, unescaped(fields.next()?));
    let within = own.strip_prefix(root.trim_end_matches('/')).unwrap_or("");
    let within = if within.split('/').any(|part| part == "..") { "" } else { within.trim_matches('/') };
    Some(Place { version, controllers, path: point.join(within) })
}

/// Spaces and the like stand in mountinfo as three octal digits.
pub(in crate::os) fn unescaped(field: &str) -> PathBuf {
    ["\\040", "\\011", "\\012", "\\134"]
        .into_iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_owned(), |text, (code, character)| text.replace(code, character))
        .into()
}

impl Root {
    /// Takes this group, if a process of ours can be born below it. What is mounted may not be ours,
    /// so a group is made to see.
    pub(super) fn at(place: &Place) -> io::Result<Self> {
        let Place { version, path, .. } = place;
        let root = Self { folder: open_folder(CWD, path)?, path: path.clone(), version: *version };
        openat(&root.folder, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        let name = format!("everhook-trial-{}-{}", std::process::id(), TRIALS.fetch_add(1, Ordering::Relaxed));
        let (trial, _) = make_folder(&root.folder, &name)?;
        // Below a threaded group no process can live.
        let fit = *version == Version::One || read(&trial, "cgroup.type")?.trim() == "domain";
        unlinkat(&root.folder, &name, AtFlags::REMOVEDIR)?;
        if fit { Ok(root) } else { Err(io::ErrorKind::Unsupported.into()) }
    }
}

/// Lets groups below this one of version 2 be limited in it. A group with processes of its own cannot
/// have such: they, and so we, move into a leaf.
///
/// # Errors
/// Why it cannot be.
pub(super) fn enable(base: &Path, controller: &str) -> io::Result<()> {
    let point = mount_point(base);
    let mut above: Vec<&Path> = base.ancestors().take_while(|path| path.starts_with(&point)).skip(1).collect();
    above.reverse();
    // Whoever manages the groups above has mostly done this; where not, we may be allowed to.
    for path in above {
        let _ = hand_down(path, controller);
    }
    match hand_down(base, controller) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            vacate(base)?;
            hand_down(base, controller)
        }
        other => other,
    }
}

fn hand_down(path: &Path, controller: &str) -> io::Result<()> {
    File::options()
        .write(true)
        .open(path.join("cgroup.subtree_control"))?
        .write_all(format!("+{controller}").as_bytes())
}

fn mount_point(path: &Path) -> PathBuf {
    let is_group = |path: &&Path| path.join("cgroup.procs").exists();
    path.ancestors().take_while(is_group).last().unwrap_or(path).to_owned()
}

/// A group, and the controllers that it handed down.
pub type Released = (PathBuf, Vec<String>);

/// Takes back from the groups below this one whatever it hands down; they are not limited any more then.
/// A group below that hands it down itself, as one of an app may, keeps it from that and so has to give it up
/// first. Nothing is done to the group that everything is in. Returns what was taken back, the lowest first.
pub(super) fn disable(base: &Path) -> io::Result<Vec<Released>> {
    let group = open_folder(CWD, base)?;
    let mut released = Vec::new();
    // The one at the top has no type.
    if read(&group, "cgroup.type").is_ok() {
        take_back(&group, base, DEEPEST, &mut released)?;
    }
    Ok(released)
}

fn take_back(group: &OwnedFd, path: &Path, depth: u32, released: &mut Vec<Released>) -> io::Result<()> {
    let given = match read(group, "cgroup.subtree_control") {
        Err(error) if is_gone(&error) => return Ok(()),
        given => given?,
    };
    let given: Vec<String> = given.split_whitespace().map(str::to_owned).collect();
    if given.is_empty() {
        return Ok(());
    }
    let text: Vec<String> = given.iter().map(|controller| format!("-{controller}")).collect();
    let give_up = || write(group, "cgroup.subtree_control", &text.join(" "));
    match give_up() {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            for_each_below(group, depth, |below, name| take_back(below, &path.join(name), depth - 1, released))?;
            give_up()?;
        }
        other => other?,
    }
    released.push((path.to_owned(), given));
    Ok(())
}

/// The name of the leaf, as systemd's `DelegateSubgroup=` of our unit has it too.
pub(super) const LEAF: &str = "supervisor";

/// Moves everybody out of a group into a leaf below it.
fn vacate(base: &Path) -> io::Result<()> {
    let leaf = base.join(LEAF);
    if let Err(error) = fs::create_dir(&leaf)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    // Who is born meanwhile is found in the next round.
    for _ in 0..10 {
        let procs = fs::read_to_string(base.join("cgroup.procs"))?;
        if procs.trim().is_empty() {
            break;
        }
        for pid in procs.lines() {
            // Ends that come in between do not matter, and what may not be moved shows at the end.
            let _ = fs::write(leaf.join("cgroup.procs"), pid);
        }
    }
    Ok(())
}
