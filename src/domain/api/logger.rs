//! The logger's channel: supervisor to logger. Frames may carry a descriptor where it says so.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::domain::model::{At, Size};

/// Which of its two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    Out,
    Err,
}

impl Stream {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::Err => "err",
        }
    }
}

/// From the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToLogger {
    /// Capture this FIFO; its read end is beside the frame. A source of the same name is replaced:
    /// what the old descriptor still holds is written first.
    Open { source: String, stream: Stream, sink: Sink },
    /// Write to another sink from here on, after what the FIFO holds now was written to the old one.
    /// Answered with [`FromLogger::Done`].
    Retarget { ticket: u64, source: String, stream: Stream, sink: Sink },
    /// Stop capturing, after what the FIFO holds was written.
    Close { source: String },
    /// A new run of this instance begins here: note it in `<instance>.runs`, then close the pipe that is beside
    /// the frame. The run's program waits for that.
    Mark { source: String, at: At },
    /// Copy app output to stdout, each line with the source's name before it.
    Echo { on: bool },
    /// The last `n` lines of a file below the logs folder. Answered with [`FromLogger::Lines`].
    Tail { ticket: u64, path: PathBuf, n: u32 },
    /// Serve `logs` on the client's socket, which is beside the frame: [`super::LogLine`] frames, then close.
    Serve { sources: Vec<LogSource>, follow: bool, n: Option<u32>, previous: bool, stderr: bool },
    /// Close and open all files again.
    Reopen,
    /// Write everything that the FIFOs hold, then end with 0.
    Finish,
}

/// A file that lines go to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sink {
    /// Absolute; the folder is made where it is missing.
    pub path: PathBuf,
    /// Rotate at the last newline before this; `None`: never, what is over `limit` is dropped and counted.
    pub rotate: Option<Size>,
    pub keep: u32,
}

/// What a client may read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogSource {
    /// The instance's name.
    pub name: String,
    pub out: PathBuf,
    pub err: PathBuf,
}

/// To the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromLogger {
    Done {
        ticket: u64,
    },
    Lines {
        ticket: u64,
        lines: Vec<String>,
        refusal: Option<Refusal>,
    },
    /// The disk does not take what comes; `dropped` bytes so far. Told at the first and at the end.
    Dropping {
        source: String,
        dropped: u64,
        reason: Option<String>,
    },
}
