//! The thread that starts processes: the only one that ever waits for an exec. Jobs and internal
//! processes die with it, so it lives as long as the process.

use std::{io, sync::mpsc, thread};

use super::event::{Event, Events};
use crate::os::{
    mask::with_all_blocked,
    spawn::{SpawnSpec, Spawner},
    threads,
};

/// The spawner's inbox.
pub struct Spawning {
    orders: mpsc::Sender<(u64, SpawnSpec)>,
}

impl Spawning {
    /// # Errors
    /// When descriptors or threads run out.
    pub fn start(events: Events) -> io::Result<Self> {
        let mut spawner = Spawner::new()?;
        let (orders, inbox) = mpsc::channel::<(u64, SpawnSpec)>();
        let work = move || {
            threads::run_in_turns_of(threads::SHORT, true);
            for (token, spec) in inbox {
                let result = spawner.spawn(&spec);
                // Only a loop that has ended hears nothing.
                let _ = events.send(Event::Spawned { token, result });
            }
            // Parked, not ended: the children's parent-death signal hangs on this thread.
            loop {
                thread::park();
            }
        };
        with_all_blocked(|| thread::Builder::new().name("spawner".into()).stack_size(256 * 1024).spawn(work))?;
        Ok(Self { orders })
    }

    /// Answered by [`Event::Spawned`] with this token.
    pub fn spawn(&self, token: u64, spec: SpawnSpec) {
        // The thread lives as long as this sender.
        let _ = self.orders.send((token, spec));
    }
}
