//! The thread that watches: the kernel's word comes from the notify crate's own thread, changes go to
//! the loop once they have settled. It alone walks folders and asks for watches, and it sleeps while
//! nothing happens.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use notify::{
    ErrorKind, Event, EventKind, INotifyWatcher, RecursiveMode, Watcher,
    event::{CreateKind, ModifyKind},
};

use super::{Report, Whose, folder::Ground};
use crate::{domain::config::Watch, os::mounts};

/// More that waits here counts as lost, as in the kernel's own queue.
const WAITING: usize = 4096;
/// What never settles counts after this long, or after ten times its own debounce.
const LONGEST: Duration = Duration::from_secs(5);
/// Paths of one change that are told.
const TOLD: usize = 16;

/// What is to be watched for whom.
#[derive(Clone, PartialEq)]
pub struct Wanted {
    pub whose: Whose,
    pub watch: Watch,
}

/// What the thread hears.
pub enum Order {
    /// From now on all of this, and nothing else.
    Watch(Vec<Wanted>),
    Seen(notify::Result<Event>),
}

/// One watch.
struct Eye {
    wanted: Wanted,
    change: Option<Change>,
    /// What its folders were like when a change was last told, and when they were last walked through.
    signature: u64,
    walked: u64,
    /// What keeps it from seeing everything: for as long as it is watched, and now.
    foreign: Option<String>,
    trouble: Option<String>,
    poll_at: Option<Instant>,
}

impl Eye {
    fn new(wanted: Wanted) -> Self {
        let paths = wanted.watch.paths.iter();
        let foreign =
            paths.filter(|_| wanted.watch.poll.is_none()).find_map(|path| Some((path, mounts::foreign(path)?)));
        let foreign = foreign.map(|(path, kind)| {
            let path = path.display();
            format!("{path} is on {kind}: what others change there is not told; set `poll`, such as poll: \"2s\"")
        });
        Self { wanted, change: None, signature: 0, walked: 0, foreign, trouble: None, poll_at: None }
    }
}

/// Something that has not settled.
struct Change {
    paths: Vec<PathBuf>,
    due: Instant,
    at_last: Instant,
}

pub struct Watching {
    inbox: mpsc::Receiver<Order>,
    between: Arc<Between>,
    watcher: Option<INotifyWatcher>,
    /// Folders that the kernel tells of.
    held: BTreeSet<PathBuf>,
    eyes: Vec<Eye>,
    ours: Vec<PathBuf>,
    tell: Box<dyn Fn(Report) + Send>,
    sender: mpsc::Sender<Order>,
}

/// Between notify's thread and this one.
#[derive(Default)]
struct Between {
    waiting: AtomicUsize,
    lost: AtomicBool,
    /// What is watched: writes beside it, in the folder above, are nobody's business.
    roots: Mutex<Vec<PathBuf>>,
}

impl Between {
    fn is_beside(&self, event: &Event) -> bool {
        let roots = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        let inside = |path: &PathBuf| roots.iter().any(|root| path.starts_with(root));
        matches!(event.kind, EventKind::Modify(ModifyKind::Data(_))) && !event.paths.iter().any(inside)
    }
}

impl Watching {
    /// `ours`: folders that never count.
    pub fn new(
        (sender, inbox): (mpsc::Sender<Order>, mpsc::Receiver<Order>),
        ours: Vec<PathBuf>,
        tell: impl Fn(Report) + Send + 'static,
    ) -> Self {
        let (between, held, eyes) = (Arc::default(), BTreeSet::new(), Vec::new());
        Self { inbox, between, watcher: None, held, eyes, ours, tell: Box::new(tell), sender }
    }

    /// Until nobody can give orders any more, which is never: the thread ends with the process.
    pub fn run(mut self) {
        loop {
            let order = match self.next_moment() {
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => self.inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            let mut orders = match order {
                Ok(order) => vec![order],
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            orders.extend(self.inbox.try_iter());
            self.hear(orders);
            self.poll();
            self.tell_settled();
        }
    }

    fn next_moment(&self) -> Option<Instant> {
        let of = |eye: &Eye| [eye.change.as_ref().map(|change| change.due.min(change.at_last)), eye.poll_at];
        self.eyes.iter().flat_map(of).flatten().min()
    }

    fn hear(&mut self, orders: Vec<Order>) {
        let mut look_again = false;
        for order in orders {
            match order {
                Order::Watch(wanted) => self.watch(wanted),
                Order::Seen(seen) => {
                    self.between.waiting.fetch_sub(1, Ordering::Relaxed);
                    look_again |= self.seen(&seen);
                }
            }
        }
        if self.between.lost.swap(false, Ordering::Relaxed) {
            self.compare();
            look_again = true;
        }
        if look_again {
            self.look();
        }
    }

    /// Begins anew; a watch that is the same goes on with its change.
    fn watch(&mut self, wanted: Vec<Wanted>) {
        let mut old = std::mem::take(&mut self.eyes);
        for wanted in wanted {
            let same = old.iter().position(|eye| eye.wanted.whose == wanted.whose && eye.wanted.watch == wanted.watch);
            let mut eye = same.map_or_else(|| Eye::new(wanted), |same| old.swap_remove(same));
            eye.poll_at = eye.wanted.watch.poll.map(|poll| Instant::now() + poll);
            self.eyes.push(eye);
        }
        let roots = self.eyes.iter().flat_map(|eye| eye.wanted.watch.paths.clone());
        *self.between.roots.lock().unwrap_or_else(PoisonError::into_inner) = roots.collect();
        // What is there already is no change.
        while !self.hold_all().is_empty() {}
        for i in 0..self.eyes.len() {
            if self.eyes[i].change.is_none() {
                let signature = self.ground(i).walk().signature;
                (self.eyes[i].signature, self.eyes[i].walked) = (signature, signature);
            }
        }
    }

    fn ground(&self, i: usize) -> Ground<'_> {
        Ground { watch: &self.eyes[i].wanted.watch, ours: &self.ours }
    }

    /// Has the kernel tell of folders that came; each is a change, and may hold more by now.
    fn look(&mut self) {
        loop {
            let fresh = self.hold_all();
            if fresh.is_empty() {
                return;
            }
            fresh.iter().for_each(|path| self.changed(path));
        }
    }

    /// Has the kernel tell of the folders that count now, and of no others; those that are new.
    fn hold_all(&mut self) -> Vec<PathBuf> {
        let (mut wanted, mut fresh) = (BTreeSet::new(), Vec::new());
        let mut full: Option<String> = None;
        for i in 0..self.eyes.len() {
            let walk = self.ground(i).walk();
            let mut trouble = walk.trouble;
            if self.eyes[i].wanted.watch.poll.is_none() {
                for folder in &walk.folders {
                    if full.is_none() && !self.held.contains(folder) {
                        match self.hold(folder) {
                            Ok(true) => fresh.push(folder.clone()),
                            Ok(false) => {}
                            Err(error) => full = Some(error),
                        }
                    }
                    if !self.held.contains(folder) {
                        trouble = full.clone().or(trouble);
                    }
                }
                wanted.extend(walk.folders);
            }
            self.note_trouble(i, trouble);
        }
        let gone: Vec<_> = self.held.difference(&wanted).cloned().collect();
        gone.iter().for_each(|folder| self.let_go(folder));
        fresh
    }

    fn note_trouble(&mut self, i: usize, trouble: Option<String>) {
        let eye = &mut self.eyes[i];
        let trouble = trouble.or_else(|| eye.foreign.clone());
        if eye.trouble != trouble {
            eye.trouble.clone_from(&trouble);
            (self.tell)(Report::Trouble { whose: eye.wanted.whose.clone(), trouble });
        }
    }

    /// True when the kernel tells of this folder from now on, false when it is not there.
    fn hold(&mut self, folder: &Path) -> Result<bool, String> {
        let watcher = match &mut self.watcher {
            Some(watcher) => watcher,
            empty => empty.insert(watcher(&self.sender, &self.between)?),
        };
        match watcher.watch(folder, RecursiveMode::NonRecursive) {
            Ok(()) => {
                self.held.insert(folder.to_owned());
                Ok(true)
            }
            Err(error) => match error.kind {
                ErrorKind::MaxFilesWatch => Err(limit("max_user_watches", "watches of folders")),
                ErrorKind::PathNotFound | ErrorKind::WatchNotFound => Ok(false),
                ErrorKind::Io(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                _ => Err(format!("{}: {error}", folder.display())),
            },
        }
    }

    fn let_go(&mut self, folder: &Path) {
        self.held.remove(folder);
        if let Some(watcher) = &mut self.watcher {
            // One that is gone already is all the better.
            let _ = watcher.unwatch(folder);
        }
    }

    /// Takes in what the kernel tells; true when folders may have come or gone.
    fn seen(&mut self, seen: &notify::Result<Event>) -> bool {
        let Ok(event) = seen else { return true };
        let moved = !matches!(event.kind, EventKind::Modify(ModifyKind::Data(_)) | EventKind::Create(CreateKind::File));
        let mut look_again = false;
        for path in &event.paths {
            self.changed(path);
            let above = (0..self.eyes.len()).any(|i| self.ground(i).is_above(path));
            let below = self.held.range(path.clone()..).take_while(|held| moved && held.starts_with(path));
            let below: Vec<_> = below.cloned().collect();
            // The name may be another folder's by now.
            below.iter().for_each(|folder| self.let_go(folder));
            look_again |= above || !below.is_empty() || (moved && path.is_dir());
        }
        look_again
    }

    /// Notes a change for everybody whom it counts for.
    fn changed(&mut self, path: &Path) {
        let now = Instant::now();
        for eye in &mut self.eyes {
            let watch = &eye.wanted.watch;
            if watch.poll.is_some() || (Ground { watch, ours: &self.ours }).root_of(path).is_none() {
                continue;
            }
            let longest = LONGEST.max(watch.debounce * 10);
            let change =
                eye.change.get_or_insert_with(|| Change { paths: Vec::new(), due: now, at_last: now + longest });
            change.due = now + watch.debounce;
            if change.paths.len() < TOLD && !change.paths.iter().any(|told| told == path) {
                change.paths.push(path.to_owned());
            }
        }
    }

    /// Something was lost: looks whether anything is not as it was. Reading alone fills the queue too.
    fn compare(&mut self) {
        for i in 0..self.eyes.len() {
            self.compare_one(i);
        }
    }

    fn compare_one(&mut self, i: usize) {
        let walk = self.ground(i).walk();
        if self.eyes[i].wanted.watch.poll.is_some() {
            self.note_trouble(i, walk.trouble);
        }
        let eye = &mut self.eyes[i];
        let still = walk.signature == eye.walked;
        eye.walked = walk.signature;
        if walk.signature != eye.signature {
            let (watch, now) = (&eye.wanted.watch, Instant::now());
            let (due, at_last) = (now + watch.debounce, now + LONGEST.max(watch.debounce * 10));
            match &mut eye.change {
                Some(change) if still => {}
                Some(change) => change.due = due,
                empty => *empty = Some(Change { paths: watch.paths.clone(), due, at_last }),
            }
        }
    }

    fn poll(&mut self) {
        for i in 0..self.eyes.len() {
            if self.eyes[i].poll_at.is_some_and(|at| at <= Instant::now()) {
                self.compare_one(i);
                self.eyes[i].poll_at = self.eyes[i].wanted.watch.poll.map(|poll| Instant::now() + poll);
            }
        }
    }

    fn tell_settled(&mut self) {
        let now = Instant::now();
        for i in 0..self.eyes.len() {
            if self.eyes[i].change.as_ref().is_none_or(|change| change.due.min(change.at_last) > now) {
                continue;
            }
            let signature = self.ground(i).walk().signature;
            let eye = &mut self.eyes[i];
            let goes_on = eye.wanted.watch.poll.is_some() && signature != eye.walked;
            eye.walked = signature;
            // Where the kernel tells nothing a second walk says that it has settled.
            if let Some(change) = eye.change.as_mut().filter(|change| goes_on && now < change.at_last) {
                change.due = now + eye.wanted.watch.debounce;
                continue;
            }
            eye.signature = signature;
            if let Some(change) = eye.change.take() {
                (self.tell)(Report::Changed { whose: eye.wanted.whose.clone(), paths: change.paths });
            }
        }
    }
}

/// notify's own thread, which gives what counts to ours. Opens and reads never count, and neither does
/// a change of mode or times.
fn watcher(sender: &mpsc::Sender<Order>, between: &Arc<Between>) -> Result<INotifyWatcher, String> {
    let (sender, between) = (sender.clone(), Arc::clone(between));
    let heard = move |seen: notify::Result<Event>| {
        let counts = match &seen {
            Ok(event) if event.need_rescan() => {
                between.lost.store(true, Ordering::Relaxed);
                true
            }
            Ok(event) => {
                let idle = matches!(event.kind, EventKind::Access(_) | EventKind::Modify(ModifyKind::Metadata(_)));
                !idle && !between.is_beside(event)
            }
            Err(_) => true,
        };
        if !counts {
            return;
        }
        if between.waiting.load(Ordering::Relaxed) >= WAITING {
            between.lost.store(true, Ordering::Relaxed);
            return;
        }
        between.waiting.fetch_add(1, Ordering::Relaxed);
        // The thread lives as long as the process.
        let _ = sender.send(Order::Seen(seen));
    };
    INotifyWatcher::new(heard, notify::Config::default()).map_err(|error| match &error.kind {
        ErrorKind::Io(io) if io.raw_os_error() == Some(nix::libc::EMFILE) => {
            limit("max_user_instances", "inotify instances")
        }
        _ => error.to_string(),
    })
}

/// The kernel's own message for this says that the disk is full, or that files are too many.
fn limit(name: &str, what: &str) -> String {
    let now = std::fs::read_to_string(format!("/proc/sys/fs/inotify/{name}"));
    let now = now.map(|now| format!(" (now {})", now.trim())).unwrap_or_default();
    format!(
        "the kernel's limit of {what} for this user is reached{now}: raise it, such as `sysctl \
         fs.inotify.{name}=524288`, ignore folders, or set `poll`"
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::domain::config::Ignore;

    /// Half of a change is no change yet, however often it is looked at.
    #[test]
    fn what_is_polled_settles_first() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("src");
        fs::create_dir(&root).unwrap();
        let (told, reports) = mpsc::channel();
        let mut watching = Watching::new(mpsc::channel(), Vec::new(), move |report| drop(told.send(report)));
        let ignore = Ignore::new(&[]).unwrap();
        let (debounce, poll) = (Duration::from_secs(1), Some(Duration::from_secs(1)));
        let watch = Watch { paths: vec![root.clone()], ignore, debounce, poll };
        watching.hear(vec![Order::Watch(vec![Wanted { whose: Whose::App("a".parse().unwrap()), watch }])]);
        let mut look = |file: Option<&str>| {
            file.iter().for_each(|file| fs::write(root.join(file), "1").unwrap());
            watching.compare_one(0);
            // Its time is over, as far as the clock goes.
            watching.eyes[0].change.iter_mut().for_each(|change| change.due = Instant::now());
            // And now it has changed again.
            file.iter().for_each(|file| fs::write(root.join(file), "22").unwrap());
            watching.tell_settled();
            reports.try_iter().count()
        };
        assert_eq!([look(Some("a")), look(Some("b")), look(None), look(None)], [0, 0, 1, 0]);
    }

    /// What was lost may have been reads alone: the folders say whether anything has changed.
    #[test]
    fn what_is_lost_is_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("src");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("main"), "1").unwrap();
        let (told, reports) = mpsc::channel();
        let mut watching = Watching::new(mpsc::channel(), Vec::new(), move |report| drop(told.send(report)));
        let ignore = Ignore::new(&[]).unwrap();
        let watch = Watch { paths: vec![root.clone()], ignore, debounce: Duration::ZERO, poll: None };
        watching.hear(vec![Order::Watch(vec![Wanted { whose: Whose::App("a".parse().unwrap()), watch }])]);
        let mut lose = |change: bool| {
            if change {
                fs::write(root.join("main"), "22").unwrap();
            }
            watching.between.lost.store(true, Ordering::Relaxed);
            watching.hear(Vec::new());
            watching.tell_settled();
            reports.try_iter().count()
        };
        assert_eq!([lose(false), lose(true), lose(false)], [0, 1, 0]);
    }
}
