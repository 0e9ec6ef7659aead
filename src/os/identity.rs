//! Which boot, which pid namespace, which place in it.

use std::{fs, io, os::unix::fs::MetadataExt};

/// Inode of the pid namespace that a machine boots with (`PROC_PID_INIT_INO`).
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// The kernel's random id of this boot.
///
/// # Errors
/// When `/proc` is not there.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Inode of our pid namespace.
///
/// # Errors
/// When `/proc` is not there.
pub fn pid_namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/self/ns/pid")?.ino())
}

/// Are we the init of our pid namespace?
#[must_use]
pub fn is_pid_one() -> bool {
    std::process::id() == 1
}

/// Do we live in a pid namespace of our own, as in a container? Without `/proc` nobody knows: no.
#[must_use]
pub fn in_container() -> bool {
    pid_namespace().is_ok_and(|inode| inode != FIRST_PID_NAMESPACE)
}

/// Version and patch level of the running kernel; `None` where `/proc` does not say.
#[must_use]
pub fn kernel() -> Option<(u32, u32)> {
    parse_kernel(&std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?)
}

/// The machine's name, as it is now.
#[must_use]
pub fn host() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

fn parse_kernel(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_by_two_numbers() {
        assert_eq!(parse_kernel("5.10.0-28-amd64\n"), Some((5, 10)));
        assert_eq!(parse_kernel("6.18.3"), Some((6, 18)));
        assert_eq!(parse_kernel("next"), None);
        assert!(kernel() >= Some((5, 10)));
    }

    #[test]
    fn the_machine_names_itself() {
        let id = boot_id().unwrap();
        assert_eq!((id.len(), id.matches('-').count()), (36, 4));
        assert!(pid_namespace().unwrap() > 0);
    }
}
