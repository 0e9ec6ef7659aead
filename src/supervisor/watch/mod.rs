//! Restarts of apps whose files change: `watch`; and certificates that are renewed. Looking is a thread's, what
//! follows for an app is the guard's and the app's own machine's to say.

mod folder;
mod thread;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::mpsc,
    thread::Builder,
};

use tracing::warn;

use self::thread::{Order, Wanted, Watching};
use super::{Supervisor, event::Event};
use crate::{
    domain::{
        api::{WatchState, WatchView},
        config::Watch,
        model::AppName,
        service::{self, Guard, Verdict},
    },
    os::{mask::with_all_blocked, open_files},
};

/// Whom changes matter to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    App(AppName),
    /// The listeners with `tls`.
    Certificates,
}

/// What the thread tells.
pub enum Report {
    /// It has settled; the first of the paths, in the order they changed.
    Changed { whose: Whose, paths: Vec<PathBuf> },
    /// What keeps a watch from seeing everything; `None`: nothing any more.
    Trouble { whose: Whose, trouble: Option<String> },
}

/// Files that are remembered as written by an app itself.
const MOST_OWN: usize = 64;

/// The apps that are watched.
#[derive(Default)]
pub struct Watches {
    /// To the thread, once there is something to watch.
    orders: Option<mpsc::Sender<Order>>,
    apps: BTreeMap<AppName, Watched>,
    certificates: Option<Watch>,
}

struct Watched {
    watch: Watch,
    guard: Guard,
    trouble: Option<String>,
    /// What it has been seen to write itself, and so has no meaning: its log, say, of which the last line may be told
    /// when the process that wrote it is gone.
    own: BTreeSet<PathBuf>,
}

impl Supervisor {
    /// Watches what the config says, and nothing else. A changed `watch` is looked at afresh.
    pub fn watch_files(&mut self) {
        let apps = self.config.apps.values().filter(|app| app.enabled && app.problem.is_none());
        let apps: Vec<(AppName, Watch)> =
            apps.filter_map(|app| Some((app.name.clone(), *app.watch.clone()?))).collect();
        let certificates = self.certificates.watch();
        let as_before = apps.iter().map(|(app, watch)| (app, watch));
        let as_before = as_before.eq(self.watches.apps.iter().map(|(app, watched)| (app, &watched.watch)));
        if as_before && certificates == self.watches.certificates {
            return;
        }
        let mut old = std::mem::take(&mut self.watches.apps);
        let mut wanted = Vec::new();
        for (app, watch) in apps {
            let same = old.remove(&app).filter(|watched| watched.watch == watch);
            wanted.push(Wanted { whose: Whose::App(app.clone()), watch: watch.clone() });
            let fresh = || Watched { watch, guard: Guard::default(), trouble: None, own: BTreeSet::new() };
            self.watches.apps.insert(app, same.unwrap_or_else(fresh));
        }
        wanted.extend(certificates.clone().map(|watch| Wanted { whose: Whose::Certificates, watch }));
        self.watches.certificates = certificates;
        match self.watch_thread() {
            // The thread lives as long as this sender.
            Ok(orders) => drop(orders.send(Order::Watch(wanted))),
            Err(error) => self.trouble(&format!("nothing is watched: {error}")),
        }
    }

    fn watch_thread(&mut self) -> io::Result<mpsc::Sender<Order>> {
        if let Some(orders) = &self.watches.orders {
            return Ok(orders.clone());
        }
        let (orders, inbox) = mpsc::channel();
        let events = self.events.clone();
        let tell = move |report| {
            let _ = events.send(Event::Then(Box::new(move |supervisor| supervisor.watched(report))));
        };
        let ours = vec![self.layout.state.clone(), self.layout.run.clone()];
        let watching = Watching::new((orders.clone(), inbox), ours, tell);
        with_all_blocked(|| Builder::new().name("watch".into()).stack_size(512 * 1024).spawn(move || watching.run()))?;
        self.watches.orders = Some(orders.clone());
        Ok(orders)
    }

    fn watched(&mut self, report: Report) {
        match report {
            Report::Changed { whose: Whose::App(app), paths } => self.watched_changed(&app, &paths),
            Report::Changed { whose: Whose::Certificates, .. } => self.look_at_certificates(),
            Report::Trouble { whose: Whose::Certificates, trouble } => {
                if let Some(trouble) = trouble {
                    warn!("not every renewed certificate is seen before the next reload: {trouble}");
                }
            }
            Report::Trouble { whose: Whose::App(app), trouble } => {
                let Some(watched) = self.watches.apps.get_mut(&app) else { return };
                watched.trouble.clone_from(&trouble);
                match trouble {
                    Some(trouble) => {
                        warn!(%app, "the watch does not see everything: {trouble}");
                        self.note_app(&app, "watch_degraded", trouble);
                    }
                    None => self.note_app(&app, "watch_whole", "everything is watched again".to_owned()),
                }
            }
        }
    }

    fn watched_changed(&mut self, app: &AppName, paths: &[PathBuf]) {
        let heeds = self.apps.get(app).is_some_and(|app| app.heeds_changes());
        if !heeds || self.is_ending() {
            return;
        }
        let Some(first) = self.others_work(app, paths) else { return };
        let Some(watched) = self.watches.apps.get_mut(app) else { return };
        match watched.guard.changed(first, std::time::Instant::now()) {
            Verdict::Restart => {
                self.feed(app, service::Event::Changed { cause: format!("watch: {}", first.display()) });
            }
            Verdict::Suspend => {
                let told = suspended(first);
                warn!(%app, "{told}");
                self.note_app(app, "watch_suspended", told);
            }
            Verdict::Ignore => {}
        }
    }

    /// The first of these that the app does not write itself. What it has open for writing it does, and that is told
    /// once.
    fn others_work<'a>(&mut self, app: &AppName, paths: &'a [PathBuf]) -> Option<&'a PathBuf> {
        let known = &self.watches.apps.get(app)?.own;
        let new: Vec<&PathBuf> = paths.iter().filter(|path| !known.contains(*path)).collect();
        if new.is_empty() {
            return None;
        }
        let seats = self.active_seats(self.apps.get(app)?);
        let pids: Vec<u32> = seats.iter().flat_map(|seat| self.tree(seat)).map(|member| member.pid).collect();
        let written = open_files::written_by(&pids);
        let (own, others): (Vec<_>, Vec<_>) = new.into_iter().partition(|path| written.contains(*path));
        let known = &mut self.watches.apps.get_mut(app)?.own;
        let told = own.first().filter(|_| known.is_empty());
        let told =
            told.map(|own| format!("it writes {} itself, which does not count; add it to `ignore`", own.display()));
        let room = MOST_OWN.saturating_sub(known.len());
        known.extend(own.into_iter().take(room).cloned());
        if let Some(told) = told {
            warn!(%app, "{told}");
            self.note_app(app, "watch_own", told);
        }
        others.first().copied()
    }

    /// Somebody looks after the app: its watch counts again.
    pub fn resume_watch(&mut self, app: &AppName) {
        if let Some(watched) = self.watches.apps.get_mut(app) {
            watched.guard = Guard::default();
        }
    }

    #[must_use]
    pub fn watch_view(&self, app: &AppName) -> Option<WatchView> {
        let watched = self.watches.apps.get(app)?;
        let (state, reason) = match (watched.guard.is_suspended(), &watched.trouble) {
            (true, _) => {
                (WatchState::Suspended, Some("it changes what it is watched for; restart it to watch again".to_owned()))
            }
            (false, Some(trouble)) => (WatchState::Degraded, Some(trouble.clone())),
            (false, None) => (WatchState::Watching, None),
        };
        Some(WatchView { state, reason })
    }
}

fn suspended(path: &Path) -> String {
    format!(
        "restart after restart followed a change, the last one of {}: the app seems to change what it is watched for. \
         Add that to `ignore`, or restart the app to watch again",
        path.display()
    )
}
