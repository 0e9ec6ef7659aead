//! The only reaper: nobody else in the supervisor waits for a child that has executed its program.

use std::io;

use rustix::{
    io::Errno,
    process::{Pid, WaitId, WaitIdOptions, WaitOptions, WaitStatus, wait, waitid, waitpid},
};

use crate::domain::model::Exit;

/// Reaps a child that has ended, ours or that of a dead child that was handed to us; `None` when all that are
/// left live. Never blocks. An end may be told before `Underway::wait` has returned its pid.
pub fn next() -> Option<(u32, Exit)> {
    ended(|| wait(WaitOptions::NOHANG))
}

/// How this child has ended, without reaping it, which takes longer.
pub fn look(pid: u32) -> Option<Exit> {
    let pid = Pid::from_raw(pid.cast_signed())?;
    let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = waitid(WaitId::Pid(pid), how).ok()??;
    let code = status.exit_status().map(Exit::Code);
    code.or_else(|| status.terminating_signal().map(Exit::Signal))
}

/// The same for this child alone. The kernel finds it at once, where it looks at all of a thousand for the next.
pub fn this(pid: u32) -> Option<Exit> {
    let pid = Pid::from_raw(pid.cast_signed())?;
    ended(|| waitpid(Some(pid), WaitOptions::NOHANG)).map(|(_, exit)| exit)
}

fn ended(ask: impl Fn() -> rustix::io::Result<Option<(Pid, WaitStatus)>>) -> Option<(u32, Exit)> {
    loop {
        let (pid, status) = match ask() {
            Ok(Some(ended)) => ended,
            Err(Errno::INTR) => continue,
            Ok(None) | Err(_) => return None,
        };
        let exit = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => continue,
        };
        return Some((pid.as_raw_nonzero().get().unsigned_abs(), exit));
    }
}

/// Makes orphans below us our children instead of init's.
///
/// # Errors
/// Never on Linux 3.4 and newer.
pub fn set_child_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, process::Command, time::Duration};

    use super::*;
    use crate::os::{alone::alone, pidfd};

    #[test]
    fn every_end_is_told_once_and_orphans_are_ours() {
        alone("os::reap::tests::every_end_is_told_once_and_orphans_are_ours", || {
            set_child_subreaper().unwrap();
            let mut ends = HashMap::new();
            assert_eq!(next(), None, "nobody has ended");
            let scripts = ["exit 7", "kill -TERM $$", "kill -40 $$", "sleep 0.01 & exit 0"];
            let children = scripts.map(|script| Command::new("/bin/sh").args(["-c", script]).spawn().unwrap().id());
            let fds = children.map(|pid| pidfd::open(pid).unwrap());
            assert!(fds.iter().all(|fd| pidfd::wait_ended(fd, Duration::from_secs(20))));
            while ends.len() < 5 {
                while let Some((pid, exit)) = next() {
                    assert_eq!(ends.insert(pid, exit), None);
                }
                std::thread::yield_now();
            }
            let of_children = children.map(|pid| ends.remove(&pid).unwrap());
            assert_eq!(of_children, [Exit::Code(7), Exit::Signal(15), Exit::Signal(40), Exit::Code(0)]);
            assert_eq!(ends.into_values().collect::<Vec<_>>(), [Exit::Code(0)], "the orphan");
        });
    }

    #[test]
    fn one_is_reaped_and_the_others_left() {
        alone("os::reap::tests::one_is_reaped_and_the_others_left", || {
            let exits =
                |code: &str| Command::new("/bin/sh").args(["-c", &format!("exit {code}")]).spawn().unwrap().id();
            let children = ["1", "2"].map(exits);
            let fds = children.map(|pid| pidfd::open(pid).unwrap());
            assert!(fds.iter().all(|fd| pidfd::wait_ended(fd, Duration::from_secs(20))));
            assert_eq!(look(children[1]), Some(Exit::Code(2)));
            assert_eq!(this(children[1]), Some(Exit::Code(2)));
            assert_eq!((look(children[1]), this(children[1])), (None, None));
            assert_eq!(this(std::process::id()), None, "it is no child");
            assert_eq!(next(), Some((children[0], Exit::Code(1))));
        });
    }
}
