//! The ordered end: apps in the reverse of their order, then the listeners, the logger, the store.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{Supervisor, listeners::Listener};
use crate::{
    domain::{
        api::{EventKind, ToLogger},
        deploy,
        model::Signal,
        service::{self, order},
    },
    os::pidfd,
};

/// How far the end has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Apps,
    /// Everything but the logger, which hears the others' last words.
    Listeners,
    Logger,
    Done,
}

/// No listener or logger takes longer to leave.
const PATIENCE: Duration = Duration::from_secs(10);
/// Two signals closer together are one wish: some terminals and runtimes send both INT and TERM.
const SECOND_WISH: Duration = Duration::from_millis(100);

impl Supervisor {
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Begins the end; asked again, or with `now`, whatever still runs is killed.
    pub fn shut_down(&mut self, by: &str, now: bool) {
        let again = self.ending_since.is_some_and(|since| since.elapsed() >= SECOND_WISH);
        if self.ending.is_none() {
            self.ended_by = Some(by.to_owned());
            self.ending_since = Some(Instant::now());
            info!(%by, "shutting down");
            if let Some(upgrade) = self.upgrade.take() {
                upgrade.refuse("everhook is shutting down");
            }
            self.tell_manager("STOPPING=1");
            self.note(EventKind::Supervisor, None, "stopping", Some(by.to_owned()));
            self.ending = Some(Ending::Apps);
            self.deploy_event(deploy::Event::Shutdown);
            self.end_dispensable();
            self.later(self.config.shutdown, Supervisor::cut_short);
        }
        if again || now {
            self.hurry.store(true, Ordering::Relaxed);
            let active: Vec<_> = self.apps.values().flat_map(|app| self.active_seats(app)).collect();
            for seat in active {
                self.kill_tree(&seat);
            }
        }
        self.go_on_ending();
    }

    /// The time of `shutdown` is over: what still runs is killed.
    fn cut_short(&mut self) {
        if self.apps.values().any(|app| app.is_active()) || !self.begun {
            let why = "the time of a shutdown is over; what still runs is killed";
            warn!("{why}");
            self.note(EventKind::Supervisor, None, "shutdown_is_late", Some(why.to_owned()));
            self.shut_down("shutdown: timeout", true);
        }
    }

    /// Does what the end needs next, if anything ends at all.
    pub fn go_on_ending(&mut self) {
        match self.ending {
            None => self.go_on_upgrading(),
            Some(Ending::Apps) => self.end_apps(),
            Some(Ending::Listeners) if self.listeners.is_empty() => self.end_logger(),
            Some(Ending::Logger) if self.logger.is_gone() => self.ending = Some(Ending::Done),
            _ => {}
        }
    }

    fn end_apps(&mut self) {
        // What outlived the last supervisor may go on, and is to end with the rest then. What follows from the
        // events that are fed comes by here again.
        if !self.begun || self.feeding {
            return;
        }
        let due = order::stoppable(&self.apps);
        if !due.is_empty() {
            return self.feed_all(due.into_iter().map(|app| (app, service::Event::Shutdown)));
        }
        let busy = self.apps.values().any(|app| app.is_active()) || self.coming.any();
        if busy || !self.deploys.is_idle() || !self.jobs.is_empty() || self.deploying {
            return;
        }
        if self.ending == Some(Ending::Apps) {
            self.ending = Some(Ending::Listeners);
            self.listeners.retain_mut(Listener::end);
            self.later(PATIENCE, Supervisor::lose_patience);
            self.go_on_ending();
        }
    }

    fn end_logger(&mut self) {
        self.ending = Some(Ending::Logger);
        self.logger.keeper.ending = true;
        self.logger.tell(ToLogger::Finish, None);
        self.go_on_ending();
    }

    /// What should have ended by now is killed: its sockets and its buffer are ours.
    fn lose_patience(&mut self) {
        let listeners = self.listeners.iter().map(|listener| &listener.keeper);
        for keeper in listeners.chain([&self.logger.keeper]) {
            if let (Some(fd), Some(pid)) = (&keeper.pidfd, keeper.pid) {
                warn!(pid, "an internal process does not end; it is killed");
                let _ = pidfd::signal(fd, Signal::KILL);
            }
        }
    }
}
