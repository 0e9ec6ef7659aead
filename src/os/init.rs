//! The first process of a machine: DESIGN.md section 5, "Real PID 1". What a kernel that has just
//! executed us lacks is mounted, and at the end the machine is switched off. In a container somebody
//! else has done the one and does the other.

use std::{
    convert::Infallible,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot, set_cad_enabled},
        signal::{Signal, kill},
        wait::wait,
    },
    unistd::{Pid, sync},
};

use super::identity;

/// Where what is mounted, and a file in it by which one sees that it is there; without one, whether
/// the folder is a mount of its own says.
const MOUNTS: [(&str, &str, Option<&str>, &str, MsFlags); 5] = [
    ("proc", "/proc", Some("/proc/self"), "", NO_PROGRAMS),
    ("sysfs", "/sys", Some("/sys/kernel"), "", NO_PROGRAMS),
    ("devtmpfs", "/dev", Some("/dev/null"), "mode=0755", MsFlags::MS_NOSUID),
    ("tmpfs", "/run", None, "mode=0755", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV)),
    ("cgroup2", "/sys/fs/cgroup", None, "", NO_PROGRAMS),
];
const NO_PROGRAMS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// The machine that we are the init of.
#[derive(Debug)]
pub struct Machine(());

/// Are we executed by a kernel, to run its machine? Where nobody has mounted `/proc` yet, this does.
#[must_use]
pub fn is_init() -> bool {
    if !identity::is_pid_one() {
        return false;
    }
    if !Path::new("/proc/self").exists() {
        let [proc, ..] = MOUNTS;
        let _ = provide(proc);
    }
    !identity::in_container()
}

/// Signals that ask the first process of a pid namespace for its end, beside TERM and INT: power fails,
/// halt and switch off as systemd's tools and container engines say it. To others they mean nothing.
#[must_use]
pub fn end_signals() -> Vec<i32> {
    if !identity::is_pid_one() {
        return Vec::new();
    }
    vec![libc::SIGPWR, libc::SIGRTMIN() + 3, libc::SIGRTMIN() + 4]
}

impl Machine {
    /// Mounts what is not there, and makes ctrl-alt-del a SIGINT to us. What does not succeed is told
    /// on the console. `None` where we are no init.
    #[must_use]
    pub fn take() -> Option<Self> {
        if !is_init() {
            return None;
        }
        for kind in MOUNTS {
            if let Err(error) = provide(kind) {
                eprintln!("everhook: cannot mount {} on {}: {error}", kind.0, kind.1);
            }
        }
        if let Err(error) = set_cad_enabled(false) {
            eprintln!("everhook: ctrl-alt-del restarts this machine without warning: {error}");
        }
        Some(Self(()))
    }

    /// Ends whoever is left, brings everything to disk and switches the machine off.
    pub fn power_off(self) -> Infallible {
        // Nobody is to write any more; with the power they would be gone anyway.
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        while wait().is_ok() {}
        sync();
        for point in disks() {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            let _ = mount(None::<&str>, &point, None::<&str>, flags, None::<&str>);
        }
        loop {
            // A machine that cannot switch itself off is halted.
            let _ = reboot(RebootMode::RB_POWER_OFF);
            let _ = reboot(RebootMode::RB_HALT_SYSTEM);
        }
    }
}

fn provide((kind, place, sign, data, flags): (&str, &str, Option<&str>, &str, MsFlags)) -> io::Result<()> {
    let place = Path::new(place);
    if sign.map_or_else(|| is_mount(place), |sign| Path::new(sign).exists()) {
        return Ok(());
    }
    fs::create_dir_all(place)?;
    Ok(mount(Some(kind), place, Some(kind), flags, Some(data))?)
}

fn is_mount(place: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).ok().map(|facts| facts.dev());
    place.parent().is_some_and(|above| device(place).is_some_and(|own| Some(own) != device(above)))
}

/// Mounts of file systems on a disk, the last first.
fn disks() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().rev().filter_map(on_disk).collect()
}

/// proc_pid_mountinfo(5): `id parent major:minor root point options … - kind source options`.
fn on_disk(line: &str) -> Option<PathBuf> {
    let (mount, source) = line.split_once(" - ")?;
    let source = source.split(' ').nth(1)?;
    source.starts_with("/dev/").then(|| super::cgroup::unescaped(mount.split(' ').nth(4).unwrap_or("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_but_the_first_process_is_an_init() {
        assert!(!is_init() && Machine::take().is_none());
    }

    #[test]
    fn only_disks_are_made_read_only() {
        let disk = "24 1 254:0 / /data\\040here rw,relatime shared:1 - ext4 /dev/vda rw";
        assert_eq!(on_disk(disk), Some("/data here".into()));
        assert_eq!(on_disk("26 24 0:24 / /proc rw - proc proc rw"), None);
        assert!(is_mount(Path::new("/proc")) && !is_mount(Path::new("/proc/self/fd")));
    }
}
