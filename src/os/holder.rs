//! Who has the very open file that we have: `kcmp(2)`. A path tells less, since anybody may open what it
//! leads to; an open file is only inherited, or given away.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

/// `KCMP_FILE`: do two descriptors mean the same open file?
const FILE: libc::c_int = 0;

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

fn id_of(file: &OwnedFd) -> io::Result<(u64, u64)> {
    let facts = rustix::fs::fstat(file)?;
    Ok((facts.st_dev, facts.st_ino))
}

fn is_same(pid: u32, number: libc::c_ulong, ours: libc::c_int) -> bool {
    // SAFETY: takes no pointer; numbers that mean nothing are refused.
    unsafe { libc::syscall(libc::SYS_kcmp, std::process::id(), pid, FILE, ours, number) == 0 }
}
