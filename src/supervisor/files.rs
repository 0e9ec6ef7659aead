//! The thread for everything on disk that is neither SQLite nor below a release: one piece of work
//! after the other, each with what the loop does next.

use std::{io, sync::mpsc, thread};

use super::{
    Supervisor,
    event::{Event, Events},
};
use crate::os::mask::with_all_blocked;

/// Bytes of the thread's stack. A config that is read again brings parsers and RSA, and an overflow ends everything
/// without a word; what is not used costs nothing.
const STACK: usize = 2 * 1024 * 1024;

type Work = Box<dyn FnOnce() + Send>;

/// The files thread's inbox.
pub struct Files {
    work: mpsc::Sender<Work>,
    events: Events,
}

impl Files {
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(events: Events) -> io::Result<Self> {
        let (work, inbox) = mpsc::channel::<Work>();
        let work_off = move || {
            for piece in inbox {
                piece();
            }
        };
        with_all_blocked(|| thread::Builder::new().name("files".into()).stack_size(STACK).spawn(work_off))?;
        Ok(Self { work, events })
    }

    /// Does `work` on the thread, after everything asked before, then `then` in the loop.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        then: impl FnOnce(&mut Supervisor, T) + Send + 'static,
    ) {
        let events = self.events.clone();
        let piece = move || {
            let result = work();
            // Only a loop that has ended hears nothing.
            let _ = events.send(Event::Then(Box::new(move |supervisor| then(supervisor, result))));
        };
        // The thread lives as long as this sender.
        let _ = self.work.send(Box::new(piece));
    }
}
