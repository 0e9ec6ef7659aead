//! The certificate channel: supervisor to listener. Nothing comes back on it.

use serde::{Deserialize, Serialize};

/// From the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToListener {
    /// Serve new connections with the certificate chain and the key that are, as PEM, in the sealed memfd beside
    /// the frame: so no buffer of a channel keeps a copy of the key.
    Certificate,
}

/// No chain with its key is larger, in bytes.
pub const LARGEST_PAIR: usize = 512 * 1024;
