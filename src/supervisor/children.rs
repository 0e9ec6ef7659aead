//! Whose process is which, and what to do when one ends. One reaper for all: instances, jobs,
//! internal processes and, as PID 1 or subreaper, whatever lost its parent.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use super::{Supervisor, jobs::JobId, seats::SeatId};
use crate::{
    domain::{
        model::{AppName, Exit},
        service::Happening,
    },
    os::{
        reap,
        spawn::{SpawnError, SpawnSpec, Spawned},
    },
};

/// So long may what is being started hold back the search for others that have ended.
const LONGEST_WAIT: Duration = Duration::from_millis(20);
/// So many starts are described ahead at most: more than the spawner's threads, should each of them hang, and
/// few beside the start of a thousand apps, which else have all their environments in memory at once.
const AHEAD: usize = 32;

/// Whom a process belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    Seat(SeatId),
    Job(JobId),
    Listener(usize),
    Logger,
    /// By its number of run.
    Courier(u64),
}

/// The processes that are ours, and the spawns that are under way.
#[derive(Default)]
pub struct Children {
    pids: HashMap<u32, Owner>,
    /// By token.
    ordered: HashMap<u64, Owner>,
    /// Seats whose process is to be described and ordered in its turn.
    waiting: VecDeque<SeatId>,
    /// Ends that were seen before the spawner said whose they are.
    early: HashMap<u32, Exit>,
    /// When the spawner last answered.
    started: Option<Instant>,
    /// Since when others may have ended beside those that were reaped.
    unreaped: Option<Instant>,
    /// That have ended, and are reaped with these others.
    zombies: Vec<u32>,
    /// And whose seats are looked after then.
    past: Vec<Past>,
}

/// A main process that has ended. What is counted and closed after it can wait for the next one of its seat.
struct Past {
    id: SeatId,
    exit: Exit,
    pidfd: Option<OwnedFd>,
}

impl Children {
    /// This process, which others have started, is the owner's from now on.
    pub fn adopt(&mut self, pid: u32, owner: Owner) {
        self.pids.insert(pid, owner);
    }

    /// An app has another name now.
    pub fn rename(&mut self, old: &AppName, new: &AppName) {
        let owners = self.pids.values_mut().chain(self.ordered.values_mut());
        let seats = owners.filter_map(|owner| if let Owner::Seat(id) = owner { Some(id) } else { None });
        let past = self.past.iter_mut().map(|past| &mut past.id);
        for id in seats.chain(&mut self.waiting).chain(past).filter(|id| id.app == *old) {
            id.app.clone_from(new);
        }
    }

    /// When something was last started.
    #[must_use]
    pub fn started(&self) -> Option<Instant> {
        self.started
    }

    /// Is something being started?
    #[must_use]
    pub fn are_starting(&self) -> bool {
        !self.ordered.is_empty()
    }

    /// When to look for others that have ended.
    #[must_use]
    pub fn reap_at(&self) -> Option<Instant> {
        let since = self.unreaped?;
        Some(if self.are_starting() { since + LONGEST_WAIT } else { since })
    }
}

impl Supervisor {
    /// Starts a process for `owner`.
    pub fn spawn(&mut self, owner: Owner, spec: SpawnSpec) {
        let token = self.ticket();
        self.children.ordered.insert(token, owner);
        self.spawning.spawn(token, spec);
    }

    /// Starts the process of a seat, after those that wait for the same.
    pub fn spawn_in_turn(&mut self, id: SeatId) {
        self.children.waiting.push_back(id);
        self.spawn_waiting();
    }

    fn spawn_waiting(&mut self) {
        while self.children.ordered.len() < AHEAD
            && let Some(id) = self.children.waiting.pop_front()
        {
            self.spawn_instance(&id);
        }
        self.children.waiting.shrink_to(AHEAD);
    }

    /// The spawner has answered.
    pub fn spawned(&mut self, token: u64, result: Result<Spawned, SpawnError>) {
        let Some(owner) = self.children.ordered.remove(&token) else { return };
        self.children.started = Some(Instant::now());
        let pid = result.as_ref().ok().map(|spawned| spawned.pid);
        if let Some(pid) = pid {
            self.children.pids.insert(pid, owner.clone());
        }
        match owner.clone() {
            Owner::Seat(id) => self.instance_spawned(&id, result),
            Owner::Job(job) => self.job_spawned(job, result),
            Owner::Listener(number) => self.listener_spawned(number, result),
            Owner::Logger => self.logger_spawned(result),
            Owner::Courier(run) => self.courier_spawned(run, result),
        }
        if let Some((pid, exit)) = pid.and_then(|pid| Some((pid, self.children.early.remove(&pid)?))) {
            self.ended(pid, exit);
        }
        if self.children.ordered.is_empty() {
            self.children.early.clear();
        }
        self.spawn_waiting();
    }

    /// A child has ended, and others perhaps with it. The search for these passes all children and keeps the kernel
    /// from making another meanwhile, so it comes when what follows from this one has been started.
    pub fn reap(&mut self, told: u32) {
        self.children.unreaped.get_or_insert_with(Instant::now);
        let later = self.is_in_nobodys_way(told);
        let Some(exit) = (if later { reap::look(told) } else { reap::this(told) }) else { return };
        if later {
            self.children.zombies.push(told);
        }
        if !self.reaped(told, exit) {
            self.look_at_ending_trees();
        }
    }

    /// May this one be reaped when the next one of its seat runs? Its group counts the living, unless
    /// their number is limited.
    fn is_in_nobodys_way(&self, pid: u32) -> bool {
        let Some(Owner::Seat(id)) = self.children.pids.get(&pid) else { return false };
        let unlimited = self.apps.get(&id.app).is_some_and(|app| app.spec().limits.tasks.is_none());
        let group = self.seat(id).and_then(|seat| seat.kit.cgroup.as_ref());
        unlimited && group.is_some_and(|group| group.birthplace().is_some())
    }

    /// Reaps everything that has ended, when it is time to.
    pub fn reap_others(&mut self) {
        if self.children.reap_at().is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.children.unreaped = None;
        for pid in std::mem::take(&mut self.children.zombies) {
            reap::this(pid);
        }
        for past in std::mem::take(&mut self.children.past) {
            self.settle(past);
        }
        let mut orphans = false;
        while let Some((pid, exit)) = reap::next() {
            orphans |= !self.reaped(pid, exit);
        }
        if orphans {
            self.look_at_ending_trees();
        }
    }

    /// False: it is nobody's, as far as is known.
    fn reaped(&mut self, pid: u32, exit: Exit) -> bool {
        let known = self.children.pids.contains_key(&pid);
        if known {
            self.ended(pid, exit);
        } else if !self.children.ordered.is_empty() {
            self.children.early.insert(pid, exit);
            self.spawning.hurry();
        }
        known
    }

    /// A main process has ended that is no child of ours.
    pub fn ended_unreaped(&mut self, pid: u32, exit: Exit) {
        self.ended(pid, exit);
    }

    fn ended(&mut self, pid: u32, exit: Exit) {
        match self.children.pids.remove(&pid) {
            Some(Owner::Seat(id)) => {
                // What it has said before its end, which may be that another is the main process.
                self.hear_notices(&id);
                if self.seat(&id).and_then(|seat| seat.main) != Some(pid) {
                    return self.look_at_ending_trees();
                }
                let pidfd = self.seat_mut(&id).and_then(|shell| {
                    shell.main = None;
                    shell.pidfd.take()
                });
                let exit = self.judge_memory(&id, exit);
                let alone = self.tree_is_empty(&id);
                // The next start is on its way with this.
                self.tell(&id, Happening::Exited { exit, alone });
                self.put_sockets_back(&id.app);
                self.children.unreaped.get_or_insert_with(Instant::now);
                self.children.past.push(Past { id, exit, pidfd });
            }
            Some(Owner::Job(job)) => self.job_exited(job, exit),
            Some(Owner::Listener(number)) => self.listener_exited(number, exit),
            Some(Owner::Logger) => self.logger_exited(exit),
            Some(Owner::Courier(run)) => self.courier_exited(run, exit),
            None => {}
        }
    }

    fn settle(&mut self, past: Past) {
        let Past { id, exit, pidfd } = past;
        drop(pidfd);
        self.tally.exited(&id.instance(), exit);
        self.watch_rest(&id);
    }

    /// A process without an owner has ended: it may have been the last of a tree.
    pub fn look_at_ending_trees(&mut self) {
        let mut waiting = Vec::new();
        for app in self.apps.values() {
            let runs = app.runs().filter(|run| run.instance.awaits_empty_tree());
            waiting.extend(runs.map(|run| SeatId { app: app.name().clone(), seat: run.seat }));
        }
        for id in waiting {
            if self.tree_is_empty(&id) {
                self.tell(&id, Happening::TreeEmpty);
            } else if self.is_killed(&id) {
                self.kill_tree(&id);
            }
        }
        self.look_at_ending_jobs();
    }
}
