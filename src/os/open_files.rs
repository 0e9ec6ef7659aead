//! Which files processes have open: proc(5), `/proc/<pid>/fd` and `fdinfo`.

use std::{
    collections::BTreeSet,
    ffi::c_int,
    fs::{self, File},
    os::fd::AsRawFd,
    path::PathBuf,
};

/// The files that these processes have open for writing. Of a process that ends meanwhile, or that
/// nobody else may look into, there are none.
#[must_use]
pub fn written_by(pids: &[u32]) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for pid in pids {
        let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for fd in open.flatten() {
            let Ok(path) = fs::read_link(fd.path()) else { continue };
            let info = format!("/proc/{pid}/fdinfo/{}", fd.file_name().to_string_lossy());
            let flags = fs::read_to_string(info).ok().and_then(|info| {
                let octal = info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim().to_owned();
                i32::from_str_radix(&octal, 8).ok()
            });
            if path.is_absolute() && flags.is_some_and(|flags| flags & nix::libc::O_ACCMODE != nix::libc::O_RDONLY) {
                files.insert(path);
            }
        }
    }
    files
}

/// Has nobody opened this file but once, here and for writing? No where that cannot be known. Ask for one without a
/// name only, as others can open no such file, or whoever does may have us killed.
#[must_use]
pub fn is_open_here_alone(file: &File) -> bool {
    // Nobody is given a lease to write but on what nobody else has open: fcntl(2).
    // SAFETY: takes no pointer.
    let lease = |kind: c_int| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } == 0;
    lease(libc::F_WRLCK) && lease(libc::F_UNLCK)
}

#[test]
fn a_file_is_open_here_alone_until_somebody_else_opens_it() {
    // Not every file system gives leases.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("file");
    let file = File::create(&path).unwrap();
    assert!(is_open_here_alone(&file));
    let other = File::open(&path).unwrap();
    assert!(!is_open_here_alone(&file));
    drop(other);
    // A process that another test is starting has it until it executes its program.
    let begun = std::time::Instant::now();
    while !is_open_here_alone(&file) {
        assert!(begun.elapsed() < std::time::Duration::from_secs(60));
    }
}

#[test]
fn a_file_that_is_read_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let dir_path = dir.path().canonicalize().unwrap();
    let (read, written) = (dir_path.join("read"), dir_path.join("written"));
    fs::write(&read, "").unwrap();
    let _open = (fs::File::open(&read).unwrap(), fs::File::create(&written).unwrap());
    let found = written_by(&[std::process::id()]);
    assert!(found.contains(&written) && !found.contains(&read));
}
