//! One supervisor at a time: a locked file that says who.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

/// So long a child of a dead holder, on its way to exec, may still have what that had.
const PASSING_ON: Duration = Duration::from_secs(5);
/// Until it is looked at again.
const PAUSE: Duration = Duration::from_millis(2);

/// Held while this lives; the kernel lets go of it when we die.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it; their pid, unless it is only just being written.
    #[error("it is held by {}", .pid.map_or("another process".to_owned(), |pid| format!("process {pid}")))]
    Held { pid: Option<u32> },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Lock {
    /// Takes the lock, making the file where it is missing, and writes our pid into it.
    ///
    /// # Errors
    /// [`LockError::Held`] when somebody has it: at once where the one lives who wrote into it.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(0o644).custom_flags(libc::O_NOFOLLOW).open(path)?;
        let end = Instant::now() + PASSING_ON;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(e) => return Err(LockError::Io(e.into())),
            }
            let pid = holder(&file);
            if pid.is_none_or(lives) || Instant::now() > end {
                return Err(LockError::Held { pid });
            }
            thread::sleep(PAUSE);
        }
        file.set_len(0)?;
        file.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0)?;
        Ok(Self { _file: file })
    }
}

fn holder(file: &File) -> Option<u32> {
    let mut text = [0; 16];
    let length = file.read_at(&mut text, 0).ok()?;
    std::str::from_utf8(&text[..length]).ok()?.trim().parse().ok()
}

/// Whoever was killed is gone, or waits for its parent to hear of it.
fn lives(pid: u32) -> bool {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name in brackets, which may hold anything. proc_pid_stat(5).
    let state = stat.iter().rposition(|byte| *byte == b')').and_then(|at| stat.get(at + 2));
    state.is_some_and(|state| !b"ZX".contains(state))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No process ever has that.
    const DEAD: u32 = u32::MAX;

    /// Whoever held it is gone; a child of another test, on its way to exec, may hold it for a moment more.
    fn dies(first: Lock, path: &Path) {
        fs::write(path, format!("{DEAD}\n")).unwrap();
        drop(first);
    }

    /// A child that is not on its way to exec yet has the open files of the one that is killed meanwhile.
    #[test]
    fn who_was_killed_is_waited_for_and_not_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!lives(DEAD) && lives(std::process::id()));
        for round in 0..20 {
            let path = folder.path().join(format!("lock{round}"));
            let first = Lock::take(&path).unwrap();
            fs::write(&path, format!("{DEAD}\n")).unwrap();
            thread::scope(|scope| {
                let next = scope.spawn(|| Lock::take(&path).map(drop));
                thread::yield_now();
                drop(first);
                next.join().unwrap().unwrap();
            });
        }
    }

    #[test]
    fn the_second_learns_who_was_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Lock::take(&path).unwrap();
        let refused = Lock::take(&path).unwrap_err();
        assert_eq!(refused.to_string(), format!("it is held by process {}", std::process::id()));
        dies(first, &path);
        Lock::take(&path).unwrap();
        assert!(matches!(Lock::take(&folder.path().join("no/lock")), Err(LockError::Io(_))));
    }
}
