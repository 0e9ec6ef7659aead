//! `everhook tree '<JSON>'`: everything that touches a mirror, a release or `shared/`, in a process of
//! its own, so that root never runs git nor follows a name that a commit chose. DESIGN.md sections 3
//! and 7.
//!
//! It runs as the fetch user or as the app's user, does one [`TreeTask`] and ends. The answer goes to
//! [`RESULT_FD`]; what it says on stderr is the deploy's log, the last line the reason of a failure.
//! It decides nothing about the deploy beyond what only the repository can tell: what a commit is
//! worth.

mod access;
mod beneath;
mod bridge;
mod checkout;
mod commit;
mod compare;
mod content;
mod empty;
mod explain;
mod fetch;
mod filter;
mod git;
mod host_key;
mod judge;
mod limit;
mod measure;
mod mirror;
mod objects;
mod place;
mod refs;
mod share;
mod tidy;

use std::{
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    path::Path,
    process::ExitCode,
};

use rustix::{
    fs::Mode,
    net::{Shutdown, shutdown},
    process::umask,
};
use serde::Serialize;

use crate::{
    domain::api::{DAMAGED, READS_TASK, RESULT_FD, TreeTask},
    os::inherited::inherited,
};

/// Why a task could not be done: one sentence, which becomes the deploy's reason.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Trying again changes nothing until somebody does something.
    #[error("{0}")]
    Refused(String),
    /// The mirror does not hold what it should; a fresh one may.
    #[error("the mirror of the repository is damaged: {0}")]
    Mirror(String),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
}

impl TreeError {
    fn io(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Io { what: what.into(), source: source.into() }
    }
}

/// Does the task that the first argument is, or that standard input holds where it says so.
#[must_use]
pub fn main(args: &[String]) -> ExitCode {
    let text = match args {
        [word] if word == READS_TASK => io::read_to_string(io::stdin()),
        [text] => Ok(text.clone()),
        _ => {
            eprintln!("everhook tree: a part of everhook that is not called by hand");
            return ExitCode::from(2);
        }
    };
    let task = text.and_then(|text| match &text[..] {
        // It waited, and was not needed.
        "" => Ok(None),
        text => Ok(Some(serde_json::from_str(text)?)),
    });
    match task.map(|task| task.map_or(Ok(()), run)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("{}", error.to_string().replace(['\n', '\r'], " "));
            if matches!(error, TreeError::Mirror(_)) { ExitCode::from(DAMAGED) } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("everhook tree: the task cannot be read: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(task: TreeTask) -> Result<(), TreeError> {
    // The app's group reads a mirror and nobody else does; a release may be served by anybody.
    let fetches = matches!(
        task,
        TreeTask::Fetch(_) | TreeTask::LsRemote { .. } | TreeTask::Compare { .. } | TreeTask::Tidy { .. }
    );
    umask(Mode::from_raw_mode(if fetches { 0o027 } else { 0o022 }));
    match task {
        TreeTask::Fetch(task) => {
            let answer = result_descriptor()?;
            tell(answer, &fetch::fetch(&task)?)
        }
        TreeTask::LsRemote { repo, mirror, wanted, live } => {
            let answer = result_descriptor()?;
            tell(answer, &fetch::tip(&repo, &mirror, &wanted, live.as_ref())?)
        }
        TreeTask::Compare { mirror, repo, from, to } => {
            let answer = result_descriptor()?;
            tell(answer, &compare::compare(&mirror, &repo, from.as_ref(), &to)?)
        }
        TreeTask::Tidy { mirror } => tidy::tidy(&mirror),
        TreeTask::Checkout { mirror, release, commit } => checkout::checkout(&mirror, &release, &commit),
        TreeTask::Place(task) => place::place(&task),
        TreeTask::Built { tree, mirror } => place::built(&tree, &mirror),
        TreeTask::Share { release, shared, previous, paths } => {
            share::share(&release, &shared, previous.as_deref(), &paths)
        }
        TreeTask::Bridge { release, previous, shared, paths, keep } => {
            bridge::bridge(&release, &previous, &shared, &paths, keep)
        }
        TreeTask::Sync { release } => sync(&release),
        TreeTask::Measure { paths } => {
            let answer = result_descriptor()?;
            tell(answer, &measure::measure(&paths)?)
        }
        TreeTask::Empty { path } => empty::empty(&path),
    }
}

/// Lets whoever told the task, where it was waited for, know that the part has begun in which little is left to be
/// done here.
fn say_begun() {
    // Without a word: the other end hears that this one is closed.
    let _ = shutdown(io::stdin(), Shutdown::Both);
}

fn result_descriptor() -> Result<OwnedFd, TreeError> {
    inherited(RESULT_FD).map_err(|e| TreeError::io(format!("descriptor {RESULT_FD} for the answer"), e))
}

fn tell(descriptor: OwnedFd, answer: &impl Serialize) -> Result<(), TreeError> {
    let text = serde_json::to_vec(answer).map_err(|e| TreeError::io("the answer", std::io::Error::from(e)))?;
    File::from(descriptor).write_all(&text).map_err(|e| TreeError::io("writing the answer", e))
}

fn sync(release: &Path) -> Result<(), TreeError> {
    let folder = File::open(release).map_err(|e| TreeError::io(format!("opening {}", release.display()), e))?;
    rustix::fs::syncfs(&folder).map_err(|e| TreeError::io(format!("writing {} to the disk", release.display()), e))
}
