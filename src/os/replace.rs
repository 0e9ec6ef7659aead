//! Another program in the place of this process: the same pid, the same children, and those descriptors that it is
//! to go on with.

use std::{
    ffi::{CString, OsString},
    io, iter,
    os::{
        fd::{AsFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
    unistd::execve,
};

use super::mask;

/// Kept ones are from here on: the lowest numbers are taken early in the life of a supervisor.
const FIRST: RawFd = 256;
/// Names what is kept: `label=number`, separated by commas.
const KEPT: &str = "EVERHOOK_KEPT";

/// What the next one has to know of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// Why the program that was to run in this one's place does not.
    NotReplaced,
    /// The panic that ended it.
    Panicked,
    /// Who had asked for the end of everything.
    Ending,
    /// What could not go on, and everything ends for it.
    GaveUp,
}

impl Note {
    const ALL: [Self; 4] = [Self::NotReplaced, Self::Panicked, Self::Ending, Self::GaveUp];

    fn variable(self) -> &'static str {
        match self {
            Self::NotReplaced => "EVERHOOK_NOT_REPLACED",
            Self::Panicked => "EVERHOOK_PANICKED",
            Self::Ending => "EVERHOOK_ENDING",
            Self::GaveUp => "EVERHOOK_GAVE_UP",
        }
    }

    /// What whoever ran in this place before left to be known.
    #[must_use]
    pub fn left(self) -> Option<String> {
        std::env::var(self.variable()).ok()
    }
}

/// Executes `program` with the arguments of this process. It finds the descriptors by [`kept`], and the notes by
/// [`Note::left`]. Signals stay blocked until it is ready for them. Returns only where it cannot be executed.
pub fn replace(program: &Path, keep: &[(String, impl AsFd)], notes: &[(Note, String)]) -> io::Error {
    mask::with_all_blocked(|| {
        let mut copies = Vec::new();
        match copy_all(keep, &mut copies).and_then(|kept| exec(program, &kept, notes)) {
            Err(error) => error,
            Ok(never) => match never {},
        }
    })
}

fn copy_all(keep: &[(String, impl AsFd)], copies: &mut Vec<OwnedFd>) -> io::Result<String> {
    let mut kept = Vec::new();
    for (label, fd) in keep {
        // Without FD_CLOEXEC.
        let number = fcntl(fd, FcntlArg::F_DUPFD(FIRST))?;
        // SAFETY: fcntl has just made this descriptor; nobody else owns it.
        copies.push(unsafe { OwnedFd::from_raw_fd(number) });
        kept.push(format!("{label}={number}"));
    }
    Ok(kept.join(","))
}

fn exec(program: &Path, kept: &str, notes: &[(Note, String)]) -> io::Result<std::convert::Infallible> {
    let text = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let args = std::env::args_os().map(|arg| text(arg.into_vec())).collect::<Result<Vec<_>, _>>()?;
    let ours = |name: &OsString| *name == *KEPT || Note::ALL.iter().any(|note| *name == *note.variable());
    let others = std::env::vars_os().filter(|(name, _)| !ours(name));
    let notes = notes.iter().map(|(note, what)| (note.variable(), what.replace('\0', "?")));
    let more = iter::once((KEPT, kept.to_owned())).chain(notes);
    let env = others.chain(more.map(|(name, value)| (name.into(), value.into())));
    let env = env.map(|(name, value)| text([name.as_bytes(), b"=", value.as_bytes()].concat()));
    let env = env.collect::<Result<Vec<_>, _>>()?;
    Ok(execve(&text(program.as_os_str().as_bytes().to_vec())?, &args, &env)?)
}

/// The descriptors that whoever ran in this place before has kept for us, each with its label; once per process.
#[must_use]
pub fn kept() -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let named = std::env::var(KEPT).unwrap_or_default();
    let entries = named.split(',').filter_map(|entry| entry.rsplit_once('='));
    let numbers = entries.filter_map(|(label, number)| Some((label.to_owned(), number.parse().ok()?)));
    let mut seen = Vec::new();
    let ours = |(label, number): (String, RawFd)| {
        if number < FIRST || seen.contains(&number) || close_on_exec(number).is_err() {
            return None;
        }
        seen.push(number);
        // SAFETY: it is open (fcntl said so) and above all that this process has opened by itself so early; the
        // list above hands each number out once, and this runs once.
        Some((label, unsafe { OwnedFd::from_raw_fd(number) }))
    };
    numbers.filter_map(ours).collect()
}

fn close_on_exec(number: RawFd) -> io::Result<()> {
    // SAFETY: a plain system call on a number; a wrong one answers EBADF.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, FdFlag::FD_CLOEXEC.bits()) })?;
    Ok(())
}

/// Did another program run in our place before?
#[must_use]
pub fn is_successor() -> bool {
    std::env::var_os(KEPT).is_some()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::os::alone::alone;

    #[test]
    fn what_cannot_be_executed_leaves_everything_as_it_was() {
        alone("os::replace::tests::what_cannot_be_executed_leaves_everything_as_it_was", || {
            let null = std::fs::File::open("/dev/null").unwrap();
            let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
            let before = open();
            let error = replace(Path::new("/etc/passwd"), &[("a".to_owned(), &null)], &[]);
            assert_eq!(error.raw_os_error(), Some(libc::EACCES), "{error}");
            assert_eq!(open(), before);
            assert!(null.as_raw_fd() > 2);
            assert!(kept().is_empty() && Note::ALL.iter().all(|note| note.left().is_none()));
        });
    }
}
