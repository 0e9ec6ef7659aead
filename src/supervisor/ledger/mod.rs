//! The thread that owns SQLite and the hooks channels: it proves and parses deliveries, matches them
//! against a snapshot of the config, commits in groups, answers, and then tells the loop. DESIGN.md
//! sections 3, 7, 8 and 10. What it answered without the store a thread behind it writes; another one syncs what was
//! committed, while the next group is written.
//!
//! It decides nothing about an app's life, and nothing that supervises waits for it: a full disk or a
//! damaged database costs deliveries a 503 and events their place in the store, no app its process.

mod books;
mod clerk;
mod deliveries;
mod deploys;
mod disk;
mod hooks;
mod journal;
mod keep;
mod outbox;
mod queries;
mod redelivery;
mod rows;
mod say;
mod sparing;
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
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::veil;
use crate::{domain::api::Deliveries, os::mask::with_all_blocked};

pub use say::{Command, NewAudit, NewDeploy, NewEvent, Query, Told, Unfinished};
pub use store::version;

/// Called on both threads; must not block.
type Tell = dyn Fn(Told) + Send + Sync;

/// The handle of the threads.
pub struct Ledger {
    inbox: Arc<Inbox>,
    threads: [JoinHandle<()>; 3],
}

/// Commands on their way to the thread.
struct Inbox {
    commands: Mutex<Vec<Command>>,
    /// Readable while there may be commands.
    wake: EventFd,
    /// What became of the deliveries since the start.
    heard: Mutex<Deliveries>,
    /// How many follow the events.
    heeding: AtomicUsize,
    /// Transactions so far.
    #[cfg(test)]
    commits: std::sync::atomic::AtomicU64,
}

/// Somebody heeds the events of deliveries: as long as this is there they are told. Of what is committed before the
/// next query the store alone tells.
pub struct Heed(Arc<Inbox>);

impl Drop for Heed {
    fn drop(&mut self) {
        self.0.heeding.fetch_sub(1, Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inbox {
    fn heard(&self) -> MutexGuard<'_, Deliveries> {
        lock(&self.heard)
    }

    fn take(&self, woken: bool) -> Vec<Command> {
        if woken {
            // The count is of no interest.
            let _ = self.wake.read();
        }
        std::mem::take(&mut *lock(&self.commands))
    }

    /// Has the thread look at everything.
    fn wake(&self) {
        // Fails only at a count of 2^64 - 2, and then the thread is awake.
        let _ = self.wake.write(1);
    }

    /// Is anybody to be told of what became of deliveries?
    fn is_heeded(&self) -> bool {
        self.heeding.load(Relaxed) > 0
    }

    fn committed(&self) {
        #[cfg(test)]
        self.commits.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Ledger {
    /// Starts the threads, which open the database at `path` (or begin it); `tell` is called on them
    /// and must not block. That the database cannot be opened is told, not returned.
    ///
    /// # Errors
    /// When the machine gives no thread or descriptor.
    pub fn start(path: &Path, tell: Arc<Tell>) -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let inbox = Arc::new(Inbox {
            commands: Mutex::new(Vec::new()),
            wake,
            heard: Mutex::default(),
            heeding: AtomicUsize::new(0),
            #[cfg(test)]
            commits: std::sync::atomic::AtomicU64::new(0),
        });
        let (desk, disk) = (Arc::new(clerk::Desk::default()), Arc::new(disk::Disk::default()));
        let state = thread::State::new(
            path.to_owned(),
            Arc::clone(&tell),
            Arc::clone(&inbox),
            Arc::clone(&desk),
            Arc::clone(&disk),
        );
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            with_all_blocked(|| std::thread::Builder::new().name(name.to_owned()).spawn(run))
        };
        let thread = start("ledger", Box::new(move || state.run()))?;
        let (its_disk, its_tell, its_inbox) = (Arc::clone(&disk), Arc::clone(&tell), Arc::clone(&inbox));
        let clerk = start("clerk", Box::new(move || desk.run(&its_disk, &*its_tell, &its_inbox)))?;
        let its_inbox = Arc::clone(&inbox);
        let disk = start("disk", Box::new(move || disk.run(&*tell, &its_inbox)))?;
        Ok(Self { inbox, threads: [thread, clerk, disk] })
    }

    /// What became of the deliveries since the start.
    #[must_use]
    pub fn deliveries(&self) -> Deliveries {
        *self.inbox.heard()
    }

    /// Has the events of deliveries told, which costs something for each.
    #[must_use]
    pub fn heed(&self) -> Heed {
        self.inbox.heeding.fetch_add(1, Relaxed);
        Heed(Arc::clone(&self.inbox))
    }

    /// Hands a command over; never blocks.
    pub fn send(&self, command: Command) {
        self.put(command);
        self.wake();
    }

    /// Hands a command over that can wait until the next one is sent, or [`Ledger::wake`].
    pub fn put(&self, mut command: Command) {
        veil::clean(&mut command);
        lock(&self.inbox.commands).push(command);
    }

    /// Has the thread take everything that was handed over.
    pub fn wake(&self) {
        self.inbox.wake();
    }

    /// Commits what was sent, closes the database and ends the threads. What the disk does not take
    /// now is lost, and logged.
    pub fn close(self) {
        self.send(Command::Close);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the ledger panicked");
            }
        }
    }
}
