//! The logger process: moves apps' output from FIFOs to rotated files, and serves it to readers.
//! DESIGN.md section 6. It decides nothing about apps: the supervisor says which FIFO goes where.
//! It outlives the supervisor, and its buffer outlives it: a kill at any instruction loses, doubles
//! and splits no line. A plain epoll loop: capture never waits for a reader of logs, for stdout or
//! for the disk's freeing of old files.
//!
//! Started as `everhook logger --buffer FILE --logs DIR`, with the channel as descriptor 3.

mod aside;
mod capture;
mod chain;
mod client;
mod echo;
mod filter;
mod form;
mod history;
mod lines;
mod orders;
mod read;
mod run;
mod runs;
mod sink;
mod sources;
mod times;

use std::{path::PathBuf, process::ExitCode};

use run::Logger;

use crate::os::{
    capture::inherited,
    sandbox::{self, Calls, Keeps},
};

/// The descriptor on which the logger finds its channel to the supervisor.
pub const CHANNEL_FD: i32 = 3;

/// Why the logger could not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("usage: everhook logger --buffer FILE --logs DIR, with the channel as descriptor {CHANNEL_FD}")]
    Usage,
    #[error("no channel as descriptor {CHANNEL_FD}: {0}")]
    Channel(std::io::Error),
    #[error("buffer {0}: {1}")]
    Buffer(PathBuf, std::io::Error),
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// Runs until `Finish` or SIGTERM; `args` are those behind `everhook logger`.
#[must_use]
pub fn main(args: &[String]) -> ExitCode {
    match start(args).and_then(|mut logger| Ok(logger.run()?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("everhook logger: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &[String]) -> Result<Logger, StartError> {
    let (mut buffer, mut logs) = (None, None);
    for pair in args.chunks(2) {
        match pair {
            [name, value] if name == "--buffer" => buffer = Some(PathBuf::from(value)),
            [name, value] if name == "--logs" => logs = Some(PathBuf::from(value)),
            _ => return Err(StartError::Usage),
        }
    }
    let (Some(buffer), Some(logs)) = (buffer, logs) else { return Err(StartError::Usage) };
    let channel = inherited(CHANNEL_FD).map_err(StartError::Channel)?;
    let open = crate::os::capture::Buffer::open(&buffer).map_err(|e| StartError::Buffer(buffer, e))?;
    let keeps = Keeps { calls: Calls::Logger, writes: &[&logs], reads: &[] };
    for lack in sandbox::enter(&keeps)? {
        eprintln!("everhook: logger: {lack}");
    }
    Ok(Logger::new(channel, open, logs)?)
}
