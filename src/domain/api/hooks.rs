//! The hooks channel: listener to ledger. It carries deliveries and the question after health, nothing else.

use serde::{Deserialize, Serialize};

/// From a listener.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromHooks {
    /// A request to `/hooks` or `/deploy`. Its headers follow in the frame, and then the body's exact bytes, or
    /// these are in a sealed memfd beside it when they are over [`INLINE_BODY`].
    Delivery(RawDelivery),
    /// `GET /healthz`.
    Health { ticket: u64 },
}

/// Bodies up to this many bytes travel in the frame.
pub const INLINE_BODY: usize = 64 * 1024;
/// No body is larger, as no forge sends one: 25 MiB.
pub const MAX_BODY: usize = 25 * 1024 * 1024;

/// A webhook request as it came in, nothing judged.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RawDelivery {
    /// Names the request on this channel; the answer carries it.
    pub ticket: u64,
    /// The name in the path, not checked.
    pub app: Option<String>,
    /// The bytes of the headers: a line each, `name: value`, names in lower case; all but those that no dialect
    /// looks at.
    pub headers: usize,
    /// The peer's address, IPv4-mapped ones as IPv4.
    pub address: String,
    /// The body's length in bytes when a memfd holds it.
    pub memfd: Option<usize>,
}

/// To a listener: the whole HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub ticket: u64,
    pub status: u16,
    /// JSON; `application/problem+json` where the status is 4xx or 5xx. `ok` for health. It follows in the frame.
    #[serde(skip)]
    pub body: String,
    /// Seconds, for the `Retry-After` header.
    pub retry_after: Option<u32>,
}
