//! Trees that make room: what they are known by, and their end.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tracing::warn;

use super::super::{layout::Layout, prepare::SECOND, seats::SeatId};
use crate::{
    domain::{
        api::Stream,
        config::{Config, StopStage},
        model::{InstanceId, Signal},
        service::Seat,
    },
    os::{
        cgroup::{Base, Cgroup},
        holder, pidfd,
        record::RunRecord,
        tree::{self, Member, TreeQuery},
    },
};

/// Of processes whose app is in the config no more.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at trees whose processes are not our children.
const LOOK: Duration = Duration::from_millis(20);

/// The tree of a former instance or job.
pub(super) struct Leftover {
    /// Of its record.
    pub name: String,
    /// Of an instance whose app is in the config: where it would go on, and by which name it is known.
    pub seat: Option<(SeatId, InstanceId)>,
    pub record: RunRecord,
    pub main: Option<(u32, OwnedFd)>,
    pub cgroup: Option<Arc<Cgroup>>,
    /// Where no cgroup tells: what it was given for its output.
    outputs: Vec<OwnedFd>,
    stages: Vec<StopStage>,
    /// The stage that comes next, and when.
    stage: usize,
    next: Instant,
}

/// What is left of whoever noted this.
pub(super) fn leftover(
    name: String,
    record: RunRecord,
    config: &Config,
    layout: &Layout,
    cgroups: Option<&Base>,
) -> Leftover {
    let app = name.split('.').next().and_then(|app| app.parse().ok()).and_then(|app| {
        let was = || config.apps.values().find(|one| one.was.as_ref() == Some(&app));
        config.apps.get(&app).or_else(was)
    });
    let instance = name.strip_suffix(SECOND).unwrap_or(&name).parse::<InstanceId>().ok();
    let seat = app.zip(instance).map(|(app, bears)| {
        let seat = Seat { number: bears.number, second: name.ends_with(SECOND) };
        (SeatId { app: app.name.clone(), seat }, bears)
    });
    // No command is run for what an earlier supervisor has left.
    let stages = app.filter(|_| !name.ends_with(".job")).map(|app| {
        let signals = app.stop.stages.iter().filter(|stage| stage.command.is_none());
        signals.cloned().collect::<Vec<_>>()
    });
    let group = format!("{}-{name}", layout.cgroup());
    Leftover {
        seat,
        main: record.is_alive_and_same().map(|fd| (record.pid, fd)),
        record,
        name,
        cgroup: cgroups.and_then(|base| base.make(&group).ok()).map(Arc::new),
        outputs: Vec::new(),
        stages: stages.unwrap_or_else(|| vec![StopStage { command: None, signal: Signal::TERM, timeout: TIMEOUT }]),
        stage: 0,
        next: Instant::now(),
    }
}

/// Both seats of a copy have the same output: whoever has nothing else belongs to the first then, or to the one that
/// goes on.
pub(super) fn find_outputs(trees: &mut [Leftover], goes_on: &[SeatId], layout: &Layout) {
    let shared = |tree: &Leftover| {
        let copy = tree.seat.as_ref().map(|(id, _)| (&id.app, id.seat.number));
        goes_on.iter().any(|id| copy == Some((&id.app, id.seat.number)))
    };
    let alone = trees.iter().enumerate().filter(|(_, tree)| tree.cgroup.is_none() && !tree.name.ends_with(SECOND));
    let alone = alone.filter(|(_, tree)| !shared(tree));
    let (owners, paths): (Vec<_>, Vec<_>) = alone
        .flat_map(|(n, tree)| [Stream::Out, Stream::Err].map(|stream| (n, layout.fifo(&tree.name, stream))))
        .unzip();
    if paths.is_empty() {
        return;
    }
    for (place, file) in holder::find_marked(&paths) {
        if let Some(tree) = owners.get(place).and_then(|n| trees.get_mut(*n)) {
            tree.outputs.push(file);
        }
    }
}

impl Leftover {
    /// Is its app in the config no more, or by another name?
    pub fn is_of_nobody(&self, config: &Config) -> bool {
        !config.apps.keys().any(|app| self.name.starts_with(&format!("{app}.")))
    }

    /// Does its main process live, and where the tree of its seat is looked for? One that was started where other
    /// groups could be made, or none, may not.
    pub fn is_whole(&self) -> bool {
        let Some((pid, _)) = &self.main else { return false };
        self.cgroup.as_ref().is_none_or(|group| {
            let inside = group.open_members().is_ok_and(|members| members.iter().any(|(member, _)| member == pid));
            if !inside {
                warn!(name = %self.name, "it cannot go on and is started anew: its processes are in another cgroup");
            }
            inside
        })
    }

    pub fn members(&self) -> Vec<Member> {
        self.found(tree::members)
    }

    fn found(&self, find: fn(&TreeQuery) -> io::Result<Vec<Member>>) -> Vec<Member> {
        let root = self.main.as_ref().map(|(pid, _)| *pid);
        let instance = self.name.strip_suffix(SECOND).unwrap_or(&self.name);
        let outputs: Vec<_> = self.outputs.iter().collect();
        let by_environment = TreeQuery {
            root,
            boot: &self.record.everhook_boot,
            instance,
            outputs: &outputs,
            session: root,
            cgroup: None,
        };
        let mut members = find(&by_environment).unwrap_or_default();
        if let Some(group) = &self.cgroup {
            let query = TreeQuery { cgroup: Some(group), ..by_environment };
            members.extend(find(&query).unwrap_or_default());
        }
        // Who is found both ways hears a signal once.
        members.sort_by_key(|member| member.pid);
        members.dedup_by_key(|member| member.pid);
        members
    }

    /// Goes on ending it; true when nothing is left.
    fn push(&mut self, now: Instant) -> bool {
        if self.main.as_ref().is_some_and(|(_, fd)| pidfd::has_ended(fd)) {
            self.main = None;
            // The rest of the tree hears the signal once the main process has ended.
            if let Some(stage) = self.stage.checked_sub(1).and_then(|last| self.stages.get(last)) {
                let signal = stage.signal;
                self.members().iter().for_each(|member| drop(pidfd::signal(&member.pidfd, signal)));
            }
        }
        if self.main.is_none() && self.members().is_empty() {
            return true;
        }
        if now >= self.next {
            self.escalate(now);
        }
        false
    }

    /// Nobody has the time any more to let it end by itself.
    fn hurry(&mut self, now: Instant) {
        if self.stage <= self.stages.len() {
            (self.stage, self.next) = (self.stages.len(), now);
        }
    }

    fn escalate(&mut self, now: Instant) {
        let stage = self.stages.get(self.stage).cloned();
        self.stage += 1;
        let Some(StopStage { signal, timeout, .. }) = stage else {
            warn!(name = %self.name, "does not end; it is killed");
            if let Some((_, fd)) = &self.main {
                let _ = pidfd::signal(fd, Signal::KILL);
            }
            self.found(tree::kill);
            self.next = now + LOOK;
            return;
        };
        self.next = now + timeout;
        match &self.main {
            Some((_, fd)) => drop(pidfd::signal(fd, signal)),
            None => self.members().iter().for_each(|member| drop(pidfd::signal(&member.pidfd, signal))),
        }
    }
}

/// Ends these trees; returns when nothing of them is left.
pub(super) fn end(mut trees: Vec<Leftover>, hurry: &AtomicBool) {
    while !trees.is_empty() {
        let now = Instant::now();
        if hurry.load(Ordering::Relaxed) {
            trees.iter_mut().for_each(|tree| tree.hurry(now));
        }
        trees.retain_mut(|tree| !tree.push(now));
        if !trees.is_empty() {
            std::thread::sleep(LOOK);
        }
    }
}
