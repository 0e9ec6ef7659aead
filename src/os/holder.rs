//! Who has the very open file that we have: `kcmp(2)`. A path tells less, since anybody may open what it
//! leads to; an open file is only inherited, or given away. One that was opened by a supervisor that is no
//! more is known by its mark, which all who have it share and nobody else sets.

use std::{
    collections::HashMap,
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
};

use super::pidfd;

/// `KCMP_FILE`: do two descriptors mean the same open file?
const FILE: libc::c_int = 0;
/// Of fcntl(2), for what libc has no name: they belong to the open file, not to the descriptor.
const F_SETSIG: libc::c_int = 10;
const F_GETSIG: libc::c_int = 11;

/// Does this process have one of these open files? Not known of whoever we may not look into, and on
/// kernels without `kcmp`: then it is said to have none.
#[must_use]
pub fn holds(pid: u32, files: &[&OwnedFd]) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let wanted: Vec<_> = files.iter().filter_map(|file| Some((id_of(file).ok()?, file.as_raw_fd()))).collect();
    open.flatten().any(|entry| {
        // Most are told apart by what they lead to.
        let Ok(facts) = fs::metadata(entry.path()) else { return false };
        let same = wanted.iter().filter(|(id, _)| *id == (facts.dev(), facts.ino()));
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        number.is_some_and(|number: libc::c_ulong| same.into_iter().any(|(_, ours)| is_same(pid, number, *ours)))
    })
}

/// Marks an open file as ours: the signal that would tell of news, if anybody asked for that, is set to
/// the very one that it is anyway. Where it cannot be, a later supervisor does not find it.
pub fn mark(file: &OwnedFd) {
    // SAFETY: takes no pointer.
    unsafe { libc::fcntl(file.as_raw_fd(), F_SETSIG, libc::SIGIO) };
}

fn is_marked(file: &OwnedFd) -> bool {
    // SAFETY: takes no pointer.
    unsafe { libc::fcntl(file.as_raw_fd(), F_GETSIG) == libc::SIGIO }
}

/// The marked open files of these paths that other processes have, each once, with its place in the list.
/// Looks through everything that is open on this machine. Of processes that we may not look into nothing
/// is known.
#[must_use]
pub fn find_marked(paths: &[PathBuf]) -> Vec<(usize, OwnedFd)> {
    let id = |facts: fs::Metadata| (facts.dev(), facts.ino());
    let wanted: HashMap<_, _> =
        paths.iter().enumerate().filter_map(|(n, path)| Some((id(fs::metadata(path).ok()?), n))).collect();
    let mut found: Vec<(usize, OwnedFd)> = Vec::new();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids.filter(|pid| *pid != std::process::id()) {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let open = open.filter_map(|entry| {
            let place = wanted.get(&id(fs::metadata(entry.path()).ok()?))?;
            Some((*place, entry.file_name().to_str()?.parse::<libc::c_int>().ok()?))
        });
        for (place, number) in open {
            let Ok(file) = pidfd::open(pid).and_then(|pidfd| pidfd::take_file(&pidfd, number)) else { continue };
            let own = std::process::id();
            let known = |(_, other): &(usize, OwnedFd)| {
                is_same(own, file.as_raw_fd().cast_unsigned().into(), other.as_raw_fd())
            };
            // By now it may be another one than was looked at.
            let right = id_of(&file).is_ok_and(|id| wanted.get(&id) == Some(&place)) && is_marked(&file);
            if right && !found.iter().any(known) {
                found.push((place, file));
            }
        }
    }
    found
}

fn id_of(file: &OwnedFd) -> io::Result<(u64, u64)> {
    let facts = rustix::fs::fstat(file)?;
    Ok((facts.st_dev, facts.st_ino))
}

fn is_same(pid: u32, number: libc::c_ulong, ours: libc::c_int) -> bool {
    // SAFETY: takes no pointer; numbers that mean nothing are refused.
    unsafe { libc::syscall(libc::SYS_kcmp, std::process::id(), pid, FILE, ours, number) == 0 }
}
