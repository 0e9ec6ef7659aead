//! The thread that owns SQLite and the hooks channels: it proves and parses deliveries, matches them
//! against a snapshot of the config, commits in groups, answers, and then tells the loop. DESIGN.md
//! sections 3, 7, 8 and 10.
//!
//! It decides nothing about an app's life, and nothing that supervises waits for it: a full disk or a
//! damaged database costs deliveries a 503 and events their place in the store, no app its process.

mod deliveries;
mod deploys;
mod hooks;
mod journal;
mod keep;
mod outbox;
mod queries;
mod redelivery;
mod rows;
mod say;
mod store;
mod thread;
mod tokens;
mod waiting;
mod webhook;
mod write;

#[cfg(test)]
mod tests;

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::veil;
use crate::{domain::api::Deliveries, os::mask::with_all_blocked};

pub use say::{Command, NewAudit, NewDeploy, NewEvent, Query, Told, Unfinished};
pub use store::version;

/// The handle of the thread.
pub struct Ledger {
    inbox: Arc<Inbox>,
    thread: JoinHandle<()>,
}

/// Commands on their way to the thread.
struct Inbox {
    commands: Mutex<Vec<Command>>,
    /// Readable while there may be commands.
    wake: EventFd,
    /// What became of the deliveries since the start.
    heard: Mutex<Deliveries>,
    /// Transactions so far.
    #[cfg(test)]
    commits: std::sync::atomic::AtomicU64,
}

impl Inbox {
    fn heard(&self) -> MutexGuard<'_, Deliveries> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, woken: bool) -> Vec<Command> {
        if woken {
            // The count is of no interest.
            let _ = self.wake.read();
        }
        std::mem::take(&mut *self.commands.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Ledger {
    /// Starts the thread, which opens the database at `path` (or begins it); `tell` is called on it
    /// and must not block. That the database cannot be opened is told, not returned.
    ///
    /// # Errors
    /// When the machine gives no thread or descriptor.
    pub fn start(path: &Path, tell: Box<dyn Fn(Told) + Send>) -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let inbox = Arc::new(Inbox {
            commands: Mutex::new(Vec::new()),
            wake,
            heard: Mutex::default(),
            #[cfg(test)]
            commits: std::sync::atomic::AtomicU64::new(0),
        });
        let state = thread::State::new(path.to_owned(), tell, Arc::clone(&inbox));
        let thread = with_all_blocked(|| std::thread::Builder::new().name("ledger".to_owned()).spawn(|| state.run()))?;
        Ok(Self { inbox, thread })
    }

    /// What became of the deliveries since the start.
    #[must_use]
    pub fn deliveries(&self) -> Deliveries {
        *self.inbox.heard()
    }

    /// Hands a command over; never blocks.
    pub fn send(&self, command: Command) {
        self.put(command);
        self.wake();
    }

    /// Hands a command over that can wait until the next one is sent, or [`Ledger::wake`].
    pub fn put(&self, mut command: Command) {
        veil::clean(&mut command);
        self.inbox.commands.lock().unwrap_or_else(PoisonError::into_inner).push(command);
    }

    /// Has the thread take everything that was handed over.
    pub fn wake(&self) {
        // Fails only at a count of 2^64 - 2, and then the thread is awake.
        let _ = self.inbox.wake.write(1);
    }

    /// Commits what was sent, closes the database and ends the thread. What the disk does not take
    /// now is lost, and logged.
    pub fn close(self) {
        self.send(Command::Close);
        if self.thread.join().is_err() {
            tracing::error!("the ledger's thread panicked");
        }
    }
}
