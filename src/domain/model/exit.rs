//! How a process ended.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a process ended, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It returned this status.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// The kernel killed it for want of memory.
    OutOfMemory,
    /// Somebody else reaped it; counts as a failure.
    Unknown,
}

impl Exit {
    #[must_use]
    pub fn code(self) -> Option<i32> {
        if let Self::Code(code) = self { Some(code) } else { None }
    }

    #[must_use]
    pub fn signal(self) -> Option<i32> {
        match self {
            Self::Signal(signal) => Some(signal),
            Self::OutOfMemory => Some(super::Signal::KILL.number()),
            Self::Code(_) | Self::Unknown => None,
        }
    }

    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with {code}"),
            Self::Signal(signal) => write!(f, "killed by {}", super::Signal::from_number(*signal)),
            Self::OutOfMemory => f.write_str("killed by SIGKILL, out of memory"),
            Self::Unknown => f.write_str("ended, nobody saw how"),
        }
    }
}
