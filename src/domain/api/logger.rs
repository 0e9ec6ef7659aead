//! The logger's channel: supervisor to logger. Frames may carry a descriptor where it says so.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{LogLine, Refusal, Reply, Said, Saying};
use crate::domain::{
    config::{Form, Logs},
    model::{At, Size},
};

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
    /// Capture these FIFOs, whose read ends are beside the frame in this order. One of the same name and stream
    /// is replaced: what the old descriptor still holds is written first.
    Open { source: String, sinks: Vec<(Stream, Sink)> },
    /// Write to another sink from here on, after what the FIFO holds now was written to the old one.
    /// Answered with [`FromLogger::Done`].
    Retarget { ticket: u64, source: String, stream: Stream, sink: Sink },
    /// Stop capturing, after what the FIFO holds was written.
    Close { source: String },
    /// A source is called something else from here on, after what the FIFOs hold was written: its log files
    /// go along, from the folder `from`.
    Rename { source: String, to: String, from: PathBuf, sinks: Vec<(Stream, Sink)> },
    /// Marks are left on the socket that is beside the frame, from now on.
    Marks,
    /// A new run of this instance begins here: note it in `<instance>.runs`. Where a pipe is beside the frame,
    /// the FIFOs hold something of the run before: write that first, and close the pipe at the end, as the run's
    /// program waits for that. Those that are left on the socket of [`ToLogger::Marks`] are of runs whose FIFOs
    /// were empty, and whose programs do not wait: note each before anything more is read from its FIFOs, and
    /// before anything else is done that is said later.
    Mark { source: String, at: At },
    /// Marks have been left: note them, as nothing may be written for long.
    Look,
    /// Copy app output to stdout, each line with the source's name before it.
    Echo { on: bool },
    /// The last `n` lines of a file below the logs folder; `run`: only what the run wrote that was marked with
    /// this moment, where its mark is noted. Answered with [`FromLogger::Lines`].
    Tail { ticket: u64, path: PathBuf, n: u32, run: Option<At> },
    /// Serve `logs` on the client's socket, which is beside the frame: [`LogFrame`]s, then close.
    /// `token`: the name of what opened it, where that was a token.
    Serve { feeds: Vec<LogFeed>, token: Option<String>, wish: LogWish },
    /// Let everybody go whom this token opened a log for.
    Dismiss { token: String },
    /// Nothing more will come into this log: who follows it is told the rest, then left.
    End { path: PathBuf },
    /// Hide these secrets in what has [`Sink::veiled`], and no others: a packed [`Veil`](crate::domain::model::Veil),
    /// in the sealed memfd beside the frame.
    Veil,
    /// What the start needed is needed no more: memory goes back to the kernel.
    GiveBack,
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
    pub how: How,
}

/// How lines go to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct How {
    /// Rotate at the last newline before this; `None`: never, what is over a limit is dropped and counted.
    pub rotate: Option<Size>,
    /// Rotate when the first line is older than this.
    pub age: Option<Duration>,
    pub keep: u32,
    /// Rotated files become `.gz`, all but the newest.
    pub compress: bool,
    pub form: Form,
    /// Bytes of a line, where the form is not raw; a longer one is cut into marked parts.
    pub line_limit: Size,
    /// Known secrets are covered before they are in the file. Only where the form is raw.
    pub veiled: bool,
}

/// No packed veil is larger, in bytes.
pub const LARGEST_VEIL: usize = 16 * 1024 * 1024;

impl Sink {
    /// Raw, for a log that is cut into files by its size alone, or never.
    #[must_use]
    pub fn raw(path: PathBuf, rotate: Option<Size>, keep: u32) -> Self {
        let line_limit = Size(u64::MAX);
        let how = How { rotate, age: None, keep, compress: false, form: Form::Raw, line_limit, veiled: false };
        Self { path, how }
    }

    /// As an app's config says.
    #[must_use]
    pub fn of(path: PathBuf, logs: &Logs) -> Self {
        let Logs { rotate, age, keep, compress, form, line_limit } = *logs;
        Self { path, how: How { rotate: Some(rotate), age, keep, compress, form, line_limit, veiled: false } }
    }

    /// The same, written otherwise.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut How)) -> Self {
        change(&mut self.how);
        self
    }
}

/// A log that a client may read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogFeed {
    /// The instance's name, or that of the deploy.
    pub instance: String,
    pub stream: Stream,
    pub path: PathBuf,
    pub form: Form,
    /// Where a client goes on that lost its logger; the past before it is not told again.
    pub from: Option<LogPlace>,
}

/// Which lines a client wants.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LogWish {
    pub follow: bool,
    /// The last so many of each log; `None`: all.
    pub n: Option<u32>,
    /// The run before the current one; it is over, so nothing is followed.
    pub previous: bool,
    /// Written since this moment: to the millisecond where lines have a time, else to about a second.
    pub since: Option<At>,
    /// With this regular expression in them.
    pub grep: Option<String>,
}

/// A place between two lines of a log: an offset in the file that had this inode when it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPlace {
    pub inode: u64,
    pub offset: u64,
}

impl LogPlace {
    /// As the body of a frame.
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.inode.to_le_bytes());
        bytes[8..].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    #[must_use]
    pub fn read(body: &[u8]) -> Option<Self> {
        let (inode, offset) = (body.first_chunk()?, body.last_chunk()?);
        Some(Self { inode: u64::from_le_bytes(*inode), offset: u64::from_le_bytes(*offset) })
    }
}

/// What a client of `logs` hears. The body of a line's or a place's frame is the [`LogPlace`] behind it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LogFrame {
    Line(LogLine),
    /// From here on this log is followed.
    Here {
        instance: String,
        stream: String,
    },
    /// What was followed under this name goes on under another.
    Renamed {
        was: String,
        instance: String,
    },
    /// The answer is whole, or there is none. A connection that ends without it was lost.
    Said(Said),
}

/// How far a client is in each log, by the name and the stream.
pub type LogPlaces = BTreeMap<(String, String), LogPlace>;

/// What is known of one name is known of another from now on.
pub fn rename_places(places: &mut LogPlaces, was: &str, instance: &str) {
    let now = |name: String| if name == was { instance.to_owned() } else { name };
    *places = std::mem::take(places).into_iter().map(|((name, stream), at)| ((now(name), stream), at)).collect();
}

impl LogFrame {
    /// Everything was told.
    #[must_use]
    pub fn end() -> Self {
        Self::Said(Said { ticket: 0, what: Saying::Done(Reply::Lines(Vec::new())) })
    }

    #[must_use]
    pub fn refused(refusal: Refusal) -> Self {
        Self::Said(Said { ticket: 0, what: Saying::Refused(refusal) })
    }
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
    /// Its FIFO is always full, and the logger may not make it larger.
    Crowded {
        source: String,
        stream: Stream,
    },
    /// The disk does not take what comes; `dropped` bytes so far. Told at the first and at the end.
    Dropping {
        source: String,
        dropped: u64,
        reason: Option<String>,
    },
}
