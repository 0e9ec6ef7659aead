//! On whatever hierarchies the machine has.

use std::{ffi::CString, time::Duration};

use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::wait::{Id, WaitPidFlag, waitid},
    unistd::Pid,
};

use super::*;
use crate::os::spawn::{SpawnSpec, Spawned, Spawner};

fn group(name: &str) -> Option<Arc<Cgroup>> {
    // Without a writable hierarchy there is nothing to test.
    let group = find_base().ok()?.make(&format!("everhook-test-{}-{name}", std::process::id()));
    Some(Arc::new(group.unwrap()))
}

fn spawn(cgroup: &Arc<Cgroup>, script: &str) -> Spawned {
    let mut spec = SpawnSpec::new(c"/bin/sh".into(), vec![c"sh".into(), c"-c".into(), CString::new(script).unwrap()]);
    spec.env = vec![c"PATH=/usr/bin:/bin".into()];
    spec.cgroup = Some(Arc::clone(cgroup));
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
    let path = |mount: &str, own: &str| place::place(mount, own).map(|place| place.path);
    let host = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
    assert_eq!(path(host, "0::/a/b"), Some("/sys/fs/cgroup/unified/a/b".into()));
    assert_eq!(path(host, "0::/"), Some("/sys/fs/cgroup/unified/".into()));
    assert_eq!(path(host, "0::/../other"), Some("/sys/fs/cgroup/unified/".into()));
    let bound = "41 31 0:38 /docker/1 /sys/fs/cgroup rw shared:9 - cgroup2 cgroup rw";
    assert_eq!(path(bound, "0::/docker/1/x"), Some("/sys/fs/cgroup/x".into()));
    assert_eq!(path(bound, "0::/elsewhere"), Some("/sys/fs/cgroup/".into()));
    assert_eq!(path("41 31 0:38 / /a\\040b rw - cgroup2 cgroup rw", "0::/"), Some("/a b/".into()));
    let one = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct";
    assert_eq!(path(one, "3:cpu,cpuacct:/x"), Some("/sys/fs/cgroup/cpu,cpuacct/x".into()));
    for other in ["0::/", "4:memory:/x", "1:name=systemd:/"] {
        assert_eq!(path(one, other), None, "{other}");
    }
    assert_eq!(path(host, "4:memory:/x"), None);
}

#[test]
fn names_are_one_folder() {
    let Ok(base) = find_base() else { return };
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
        let inhabited = || fs::read_to_string(below.join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty());
        while !inhabited() || cgroup.pids().unwrap().len() < 3 {
            std::thread::yield_now();
        }
        // Before somebody lives below, that group would go.
        assert_eq!(cgroup.remove().unwrap_err().raw_os_error(), Some(libc::EBUSY));
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

#[test]
fn limits_are_set_where_they_can_be_had_and_taken_back() {
    let Some(cgroup) = group("limits") else { return };
    let wanted = Wanted { memory: Some(64 << 20), cpu: Some(0.5), tasks: Some(77) };
    let unmet = cgroup.begin(wanted);
    if !unmet.is_empty() {
        println!("left out, as here limits cannot be had: {unmet:?}");
        return;
    }
    let spawned = spawn(&cgroup, "exec sleep 1000");
    let folders: Vec<_> = fs::read_to_string(format!("/proc/{}/cgroup", spawned.pid))
        .unwrap()
        .lines()
        .flat_map(|own| {
            fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .lines()
                .filter_map(|mount| place::place(mount, own))
                .collect::<Vec<_>>()
        })
        .collect();
    let value = |names: [&str; 2]| {
        let mut values =
            folders.iter().flat_map(|place| names.map(|name| fs::read_to_string(place.path.join(name)).ok()));
        values.find_map(|text| text).unwrap().trim().to_owned()
    };
    let all = || {
        [
            value(["memory.max", "memory.limit_in_bytes"]),
            value(["cpu.max", "cpu.cfs_quota_us"]).split(' ').next().unwrap().to_owned(),
            value(["pids.max", "pids.max"]),
        ]
    };
    assert_eq!(all(), ["67108864", "50000", "77"]);
    assert!(cgroup.memory().is_some_and(|bytes| bytes < 64 << 20));
    assert_eq!(cgroup.kills(), 0);
    assert!(cgroup.begin(Wanted::default()).is_empty());
    assert_ne!(all(), ["67108864", "50000", "77"]);
    assert!(all()[2] == "max");
    cgroup.kill().unwrap();
    reap(&spawned);
    cgroup.remove().unwrap();
    assert!(
        folders.iter().all(|place| !place.path.ends_with(cgroup.path().file_name().unwrap()) || !place.path.exists())
    );
}
