//! How a command ends when it does not end well: SURFACE.md section 2, "Exit codes".

use std::io;

use crate::domain::api::{Refusal, RefusalKind};

/// What kind of failure it was; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Tried or refused, and not so.
    Failed,
    Usage,
    /// `stop` hurts others, and nobody has agreed to that.
    Unconfirmed,
    NoSupervisor,
    NotFound,
    Forbidden,
    TimedOut,
    /// Ctrl-C while waiting; the work goes on.
    Interrupted,
    /// Whoever read the output has gone.
    Unread,
    /// Of a command that was run for this one.
    Of(u8),
}

impl Code {
    pub fn exit(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage | Self::Unconfirmed => 2,
            Self::NoSupervisor => 3,
            Self::NotFound => 4,
            Self::Forbidden => 5,
            Self::TimedOut => 6,
            // As shells report SIGINT and SIGPIPE.
            Self::Interrupted => 130,
            Self::Unread => 141,
            Self::Of(code) => code,
        }
    }
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    pub code: Code,
    /// A sentence for stderr; empty where nobody would read it.
    pub message: String,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Usage, message)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal.kind {
            RefusalKind::Unknown | RefusalKind::Forbidden => Code::Forbidden,
            RefusalKind::NotFound => Code::NotFound,
            RefusalKind::Failed | RefusalKind::Unavailable | RefusalKind::TooMany { .. } => Code::Failed,
            RefusalKind::NeedsConfirmation => Code::Unconfirmed,
            RefusalKind::BadRequest => Code::Usage,
            RefusalKind::TimedOut => Code::TimedOut,
        };
        Self::new(code, refusal.message)
    }
}

/// Of writing the output: all else is mapped where it happens.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(Code::Unread, "");
        }
        Self::new(Code::Failed, format!("cannot write the output: {error}"))
    }
}
