//! What follows a panic, which is a fault of ours: in the loop, or on a thread that it cannot do without. What the
//! loop knows is not trusted any more. The same binary is executed anew in this process, as at an upgrade, and adopts
//! what runs: apps go on, and no caller of theirs or ours is refused. An end that had begun goes on as well.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    panic::{self, AssertUnwindSafe, PanicHookInfo, catch_unwind},
    path::PathBuf,
    pin::pin,
    sync::mpsc,
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use tracing::error;

use super::{
    Supervisor,
    event::{Event, Events},
    listeners::Listener,
    upgrade::Upgrade,
};
use crate::os::replace::Note;

/// Threads that somebody waits for. Those of a single question are not among them.
const NEEDED: [&str; 8] = ["clerk", "disk", "files", "handover", "ledger", "makers", "spawner", "watch"];
/// What is meant for the disk has so long to get there.
const PATIENCE: Duration = Duration::from_secs(5);
/// Whoever lived for less than this may have to do with what comes again at once.
const BRIEF: Duration = Duration::from_secs(10);
/// And then so much is let pass before the next one.
const PAUSE: Duration = Duration::from_secs(1);

thread_local! {
    /// The last panic of this thread.
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// From now on a panic on a thread that is needed is one of the loop.
pub fn heed(events: Events) {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        usual(info);
        let why = told(info);
        if thread::current().name().is_some_and(|name| NEEDED.contains(&name)) {
            let follow = move |_: &mut Supervisor| {
                LAST.set(why);
                panic::resume_unwind(Box::new(()))
            };
            let _ = events.send(Event::Then(Box::new(follow)));
        } else {
            LAST.set(why);
        }
    }));
}

fn told(info: &PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let place = info.location().map(|place| format!(" at {place}")).unwrap_or_default();
    let thread = thread::current();
    format!("{}{place}, thread {}", text.unwrap_or("a panic"), thread.name().unwrap_or("without a name"))
}

/// # Errors
/// With what it panicked.
pub async fn caught<F: Future>(future: F) -> Result<F::Output, String> {
    let mut future = pin!(future);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(polled) => polled.map(Ok),
        Err(_) => Poll::Ready(Err(LAST.take())),
    })
    .await
}

impl Supervisor {
    /// Leaves everything to a process that begins anew in our place. All signals are blocked.
    pub fn begins_anew(mut self, why: &str, since: Instant) -> Upgrade {
        error!("everhook panicked, which is a fault of its own; it begins anew, and apps run on: {why}");
        let sockets = self.handed_on();
        self.listeners.retain_mut(Listener::end);
        // What may be wrong here as well is no reason to stop.
        let _ = catch_unwind(AssertUnwindSafe(|| self.go_without_words()));
        let ledger = self.ledger;
        let (done, closed) = mpsc::channel();
        thread::spawn(move || {
            ledger.close();
            done.send(())
        });
        let _ = closed.recv_timeout(PATIENCE);
        if since.elapsed() < BRIEF {
            thread::sleep(PAUSE);
        }
        let notes =
            [(Note::Panicked, Some(why.to_owned())), (Note::Ending, self.ended_by), (Note::GaveUp, self.gave_up)];
        let notes = notes.into_iter().filter_map(|(note, what)| Some((note, what?))).collect();
        Upgrade::at_once(PathBuf::from("/proc/self/exe"), sockets, notes)
    }
}

/// What no release has.
#[cfg(debug_assertions)]
impl Supervisor {
    /// Where the environment wants one, on the thread that it names.
    pub fn panic_for_a_test(&self) {
        match std::env::var("EVERHOOK_PANIC_ON_QUIT").as_deref() {
            Ok("loop") => panic!("told to"),
            Ok("files") => self.files.run(|| panic!("told to"), |_, ()| ()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_panic_ends_what_it_was_in_and_nothing_else() {
        assert_eq!(caught(async { 7 }).await, Ok(7));
        let late = async {
            tokio::task::yield_now().await;
            panic!("on purpose")
        };
        assert!(caught(late).await.is_err());
    }
}
