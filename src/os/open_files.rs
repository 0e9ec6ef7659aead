//! Which files processes have open: proc(5), `/proc/<pid>/fd` and `fdinfo`.

use std::{collections::BTreeSet, fs, path::PathBuf};

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
