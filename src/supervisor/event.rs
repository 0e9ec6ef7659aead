//! Everything the loop hears, in the one order in which it hears it.

use super::{Supervisor, control::Asked, ledger::Told, seats::SeatId};
use crate::{
    domain::api::{FromLogger, Posted},
    os::spawn::{SpawnError, Spawned, Spawner},
};

/// One thing that happened.
pub enum Event {
    /// The spawner's answer, and what the loop lent it.
    Spawned { token: u64, result: Result<Spawned, SpawnError>, lent: Option<Box<Spawner>> },
    /// A probe's answer, or why it does not go on.
    Probed { seat: SeatId, attempt: u64, result: Result<(), String> },
    /// Somebody wants something.
    Asked(Box<Asked>),
    /// From the thread of SQLite and of acceptance.
    Told(Told),
    /// From the logger of this run number.
    Logger { run: u64, message: FromLogger },
    /// From the courier of this run number.
    Courier { run: u64, posted: Posted },
    /// Work on another thread is done: go on with it.
    Then(Box<dyn FnOnce(&mut Supervisor) + Send>),
}

/// Where threads and tasks put what happened.
pub type Events = tokio::sync::mpsc::UnboundedSender<Event>;
