//! What a process uses. proc_pid_statm(5), proc_pid_stat(5).

use std::fs;

/// Resident memory in bytes and processor time in seconds; `None` when the process is gone.
#[must_use]
pub fn usage(pid: u32) -> Option<(u64, f64)> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in field 2 may hold anything; utime and stime are fields 14 and 15.
    let mut fields = stat[stat.rfind(')')?..].split(' ').skip(12);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    let (user, system) = (ticks()?, ticks()?);
    let (page, second) = (
        nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??,
        nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??,
    );
    let seconds = (f64::from(user) + f64::from(system)) / f64::from(i32::try_from(second).ok()?);
    Some((pages * u64::try_from(page).ok()?, seconds))
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_uses_something() {
        let (memory, cpu) = super::usage(std::process::id()).unwrap();
        assert!(memory > 100_000 && cpu >= 0.0);
        assert_eq!(super::usage(u32::MAX), None);
    }
}
