//! From the commit to the disk: what a commit did is answered and told once the store's log is synced.
//!
//! SQLite commits without a sync of its own, so that the next group is proven and written while the disk takes
//! the one before. Whoever waits alone is served by the thread that commits: a second one would only be a detour.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Inbox, Tell, lock, say::Told, webhook};
use crate::domain::api::Answer;

/// What nobody waits for is on the disk this long after its commit.
const UNHURRIED_SYNC: Duration = Duration::from_millis(500);

/// What one commit did.
pub(super) struct Group {
    /// By the listener that asked.
    pub answers: Vec<(usize, Answer)>,
    pub told: Vec<Told>,
}

#[derive(Default)]
pub(super) struct Disk {
    /// The log of the store that is open. Whoever syncs has it in hand until what came of that is told: all is told
    /// in the order of the commits.
    log: Mutex<Option<File>>,
    line: Mutex<Line>,
    /// There is something for the thread to sync.
    came: Condvar,
}

#[derive(Default)]
struct Line {
    /// Not synced yet, in the order of their commits.
    groups: VecDeque<Group>,
    /// The thread is to sync them.
    asked: bool,
    /// When it is to sync what was told already.
    due: Option<Instant>,
    /// Of synced ones, to be sent by the thread that has the channels.
    answers: Vec<(usize, Answer)>,
    /// The disk refused a sync.
    fault: Option<io::Error>,
    closing: bool,
}

impl Disk {
    /// The log, once nobody else syncs.
    pub(super) fn log(&self) -> MutexGuard<'_, Option<File>> {
        lock(&self.log)
    }

    /// The log, unless somebody else syncs.
    pub(super) fn free_log(&self) -> Option<MutexGuard<'_, Option<File>>> {
        self.log.try_lock().ok()
    }

    /// Takes what a commit did. This and [`Disk::put_told`] are called with the books in hand, so that all stands in
    /// the order of the commits.
    pub(super) fn put(&self, group: Group) {
        lock(&self.line).groups.push_back(group);
    }

    /// Takes what a commit did that nobody waits for: only the past is told by it. That is told at once, unless
    /// something before it waits for the disk.
    pub(super) fn put_told(&self, told: Vec<Told>, tell: &Tell) {
        let log = self.free_log();
        let mut line = lock(&self.line);
        if log.is_some() && line.groups.is_empty() {
            line.due.get_or_insert_with(|| Instant::now() + UNHURRIED_SYNC);
            drop(line);
            told.into_iter().for_each(tell);
        } else {
            line.groups.push_back(Group { answers: Vec::new(), told });
            line.asked = true;
        }
        self.came.notify_one();
    }

    /// Has the thread sync what was put.
    pub(super) fn ask(&self) {
        lock(&self.line).asked = true;
        self.came.notify_one();
    }

    /// What the thread left to be answered.
    pub(super) fn answers(&self) -> Vec<(usize, Answer)> {
        std::mem::take(&mut lock(&self.line).answers)
    }

    /// Is something to be synced before it is answered and told?
    pub(super) fn is_waited_for(&self) -> bool {
        !lock(&self.line).groups.is_empty()
    }

    /// Did it refuse a sync, and nobody has asked for the reason yet?
    pub(super) fn is_faulty(&self) -> bool {
        lock(&self.line).fault.is_some()
    }

    /// Why the disk refused a sync, if it did since this was asked last.
    pub(super) fn fault(&self) -> Option<io::Error> {
        lock(&self.line).fault.take()
    }

    /// Syncs what was put until now, and returns it. What the disk refuses is in the store nevertheless, perhaps
    /// until the next power cut: it is told, and its senders are asked to come again.
    pub(super) fn sync(&self, log: Option<&File>) -> Vec<Group> {
        let mut line = lock(&self.line);
        let groups = line.groups.len();
        if line.due.take().is_none() && groups == 0 {
            return Vec::new();
        }
        drop(line);
        let synced = log.map_or(Ok(()), File::sync_data);
        let mut line = lock(&self.line);
        let mut groups: Vec<Group> = line.groups.drain(..groups).collect();
        if let Err(error) = synced {
            line.fault = Some(error);
            for (_, answer) in groups.iter_mut().flat_map(|group| &mut group.answers) {
                *answer = webhook::unavailable(answer.ticket);
            }
        }
        groups
    }

    /// Nothing is put any more.
    pub(super) fn close(&self) {
        lock(&self.line).closing = true;
        self.came.notify_one();
    }

    /// The thread's work, until the disk is closed.
    pub(super) fn run(&self, tell: &Tell, inbox: &Inbox) {
        while self.wait() {
            let log = self.log();
            let mut groups = self.sync(log.as_ref());
            let mut line = lock(&self.line);
            let answered = line.answers.len();
            line.answers.extend(groups.iter_mut().flat_map(|group| group.answers.drain(..)));
            let wakes = line.fault.is_some() || line.answers.len() > answered;
            drop(line);
            if wakes {
                inbox.wake();
            }
            groups.into_iter().flat_map(|group| group.told).for_each(tell);
        }
    }

    /// Waits until it is to sync; false: the disk is closed.
    fn wait(&self) -> bool {
        let mut line = lock(&self.line);
        while !line.asked && !line.closing {
            line = match line.due.map(|due| due.saturating_duration_since(Instant::now())) {
                None => self.came.wait(line).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return true,
                Some(left) => self.came.wait_timeout(line, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        std::mem::take(&mut line.asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(disk: &Disk, ticket: u64) {
        let answer = Answer { ticket, status: 202, body: String::new(), retry_after: None };
        disk.put(Group { answers: vec![(0, answer)], told: vec![Told::Committed { ticket }] });
    }

    fn statuses(groups: &[Group]) -> Vec<(u64, u16)> {
        groups.iter().flat_map(|group| &group.answers).map(|(_, answer)| (answer.ticket, answer.status)).collect()
    }

    #[test]
    fn what_was_put_is_released_once_and_in_order() {
        let disk = Disk::default();
        disk.log().replace(tempfile::tempfile().unwrap());
        put(&disk, 1);
        put(&disk, 2);
        assert_eq!(statuses(&disk.sync(disk.log().as_ref())), [(1, 202), (2, 202)]);
        put(&disk, 3);
        assert_eq!(statuses(&disk.sync(disk.log().as_ref())), [(3, 202)]);
        assert!(disk.sync(disk.log().as_ref()).is_empty() && !disk.is_faulty());
    }

    #[test]
    fn what_nobody_waits_for_is_told_at_once_and_in_order() {
        let disk = Disk::default();
        disk.log().replace(tempfile::tempfile().unwrap());
        let (send, told) = std::sync::mpsc::channel();
        let tell = move |what| drop(send.send(what));
        let seen = || -> Vec<u64> {
            told.try_iter().map(|told| if let Told::Committed { ticket } = told { ticket } else { 0 }).collect()
        };
        disk.put_told(vec![Told::Committed { ticket: 1 }], &tell);
        assert_eq!(seen(), [1]);
        put(&disk, 2);
        disk.put_told(vec![Told::Committed { ticket: 3 }], &tell);
        assert!(seen().is_empty());
        disk.sync(disk.log().as_ref()).into_iter().flat_map(|group| group.told).for_each(&tell);
        assert_eq!(seen(), [2, 3]);
    }

    #[test]
    fn a_refused_sync_turns_senders_away_and_is_told() {
        let disk = Disk::default();
        // Nothing of it can be synced.
        disk.log().replace(File::open("/dev/null").unwrap());
        put(&disk, 1);
        let groups = disk.sync(disk.log().as_ref());
        assert_eq!(statuses(&groups), [(1, 503)]);
        assert!(matches!(groups[0].told[..], [Told::Committed { ticket: 1 }]));
        assert!(disk.is_faulty() && disk.fault().is_some() && !disk.is_faulty());
    }
}
