//! `everhook tree '<JSON>'`: everything that touches a mirror, a release or `shared/`, in a process of
//! its own, so that root never runs git nor follows a name that a commit chose. DESIGN.md sections 3
//! and 7.
//!
//! It runs as the fetch user or as the app's user, does one [`TreeTask`] and ends, or one after the other as they
//! come. The answer goes to [`RESULT_FD`], or there where the tasks come from; what it says on stderr is the deploy's
//! log, the last line the reason of a failure.
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
mod take_over;
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
    net::{SendFlags, send},
    process::umask,
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    domain::api::{DAMAGED, READS_TASKS, RESULT_FD, TreeTask, TreeWord},
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

/// Does the task that the first argument is, or those that come on standard input where it says so.
#[must_use]
pub fn main(args: &[String]) -> ExitCode {
    match args {
        [word] if word == READS_TASKS => work_off(),
        [text] => {
            // At once, so that no git gets it.
            let mut result = Some(inherited(RESULT_FD));
            match serde_json::from_str(text) {
                Ok(task) => told(run(task, &mut |answer| write_down(answer, result.take()))),
                Err(error) => unreadable(&error),
            }
        }
        _ => {
            eprintln!("everhook tree: a part of everhook that is not called by hand");
            ExitCode::from(2)
        }
    }
}

/// Does what comes on standard input until nothing more does, or something fails.
fn work_off() -> ExitCode {
    let own = limit::now();
    for line in io::stdin().lines() {
        match line.map_err(serde_json::Error::io).and_then(|line| serde_json::from_str(&line)) {
            Ok(task) => {
                let done = run(task, &mut |answer| say(&TreeWord::Done(answer)));
                if done.is_err() {
                    return told(done);
                }
            }
            Err(error) => return unreadable(&error),
        }
        limit::put_back(own);
    }
    ExitCode::SUCCESS
}

fn unreadable(error: &serde_json::Error) -> ExitCode {
    eprintln!("everhook tree: the task cannot be read: {error}");
    ExitCode::from(2)
}

fn told(done: Result<(), TreeError>) -> ExitCode {
    let Err(error) = done else { return ExitCode::SUCCESS };
    eprintln!("{}", error.to_string().replace(['\n', '\r'], " "));
    if matches!(error, TreeError::Mirror(_)) { ExitCode::from(DAMAGED) } else { ExitCode::FAILURE }
}

/// Where an answer goes, if there is one, as soon as the task is done.
type Answer<'a> = &'a mut dyn FnMut(Option<Box<RawValue>>) -> Result<(), TreeError>;

/// `answer` is called once, unless it fails.
fn run(task: TreeTask, answer: Answer<'_>) -> Result<(), TreeError> {
    // The app's group reads a mirror and nobody else does; a release may be served by anybody.
    let fetches = matches!(
        task,
        TreeTask::Fetch(_) | TreeTask::LsRemote { .. } | TreeTask::Compare { .. } | TreeTask::Tidy { .. }
    );
    umask(Mode::from_raw_mode(if fetches { 0o027 } else { 0o022 }));
    match task {
        TreeTask::Fetch(task) => return fetch::fetch(&task, &mut |fetched| answer(json(fetched)?)),
        TreeTask::LsRemote { repo, mirror, wanted, live } => {
            return answer(json(&fetch::tip(&repo, &mirror, &wanted, live.as_ref())?)?);
        }
        TreeTask::Compare { mirror, repo, from, to } => {
            return answer(json(&compare::compare(&mirror, &repo, from.as_ref(), &to)?)?);
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
        TreeTask::Measure { paths } => return answer(json(&measure::measure(&paths)?)?),
        TreeTask::Empty { path } => empty::empty(&path),
        TreeTask::TakeOver { paths } => take_over::take_over(&paths),
    }?;
    answer(None)
}

fn json(answer: &impl Serialize) -> Result<Option<Box<RawValue>>, TreeError> {
    to_raw_value(answer).map(Some).map_err(|e| TreeError::io("the answer", io::Error::from(e)))
}

/// The answer of the only task.
fn write_down(answer: Option<Box<RawValue>>, to: Option<io::Result<OwnedFd>>) -> Result<(), TreeError> {
    let Some((answer, to)) = answer.zip(to) else { return Ok(()) };
    let to = to.map_err(|e| TreeError::io(format!("descriptor {RESULT_FD} for the answer"), e))?;
    File::from(to).write_all(answer.get().as_bytes()).map_err(|e| TreeError::io("writing the answer", e))
}

/// Says it to whoever tells us our tasks.
fn say(word: &TreeWord) -> Result<(), TreeError> {
    let failed = |e: io::Error| TreeError::io("telling how far it is", e);
    let line = serde_json::to_string(word).map_err(|e| failed(e.into()))? + "\n";
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        let sent = send(io::stdin(), rest, SendFlags::NOSIGNAL).map_err(|e| failed(e.into()))?;
        rest = &rest[sent..];
    }
    Ok(())
}

/// Lets whoever told the task, where it was waited for, know that the part has begun in which little is left to be
/// done here.
fn say_begun() {
    // Where the task was an argument nobody is there to hear it, and standard input is no socket.
    let _ = say(&TreeWord::Begun);
}

fn sync(release: &Path) -> Result<(), TreeError> {
    let folder = File::open(release).map_err(|e| TreeError::io(format!("opening {}", release.display()), e))?;
    rustix::fs::syncfs(&folder).map_err(|e| TreeError::io(format!("writing {} to the disk", release.display()), e))
}
