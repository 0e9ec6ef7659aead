//! Limits of trees while they run: set before each start, out of memory told as that, the main
//! process apart from its workers, and `memory_restart`.

use std::{sync::Arc, time::Duration};

use tokio::task::AbortHandle;
use tracing::warn;

use super::{
    Supervisor,
    event::{Event, Events},
    ledger::{Command, NewEvent},
    seats::{SeatId, SeatShell},
};
use crate::{
    domain::{
        api::EventKind,
        config::Limits,
        model::{AppName, Exit, Signal, Size},
        service::Happening,
    },
    os::{
        cgroup::{Cgroup, Kind, Wanted},
        stat,
        watched::Urgent,
    },
};

/// After this, whoever the kernel has killed is not the main process: that would have ended.
const DYING: Duration = Duration::from_secs(1);
/// Between two looks at the memory of apps with `memory_restart`.
const SAMPLE: Duration = Duration::from_secs(5);

/// What is known of a tree's memory.
#[derive(Default)]
pub struct Memory {
    /// Kills by the kernel, of this run, that have been told.
    told: u64,
    /// Tells of further ones.
    watch: Option<AbortHandle>,
    /// Which limits cannot be had, as it was told.
    unmet: Box<[String]>,
}

/// A tree to be measured on another thread.
pub struct Measured {
    pids: Vec<u32>,
    group: Option<Arc<Cgroup>>,
}

impl Measured {
    /// Bytes of memory and seconds of processor time; `None` where nobody lives.
    #[must_use]
    pub fn usage(&self) -> Option<(u64, f64)> {
        let each = self.pids.iter().filter_map(|pid| stat::usage(*pid));
        let (memory, cpu) = each.reduce(|(memory, cpu), (m, c)| (memory + m, cpu + c))?;
        let group = self.group.as_ref();
        Some((
            group.and_then(|group| group.memory()).unwrap_or(memory),
            group.and_then(|group| group.cpu()).unwrap_or(cpu),
        ))
    }
}

/// Those that hold for a whole tree.
fn of_trees(limits: &Limits) -> Wanted {
    Wanted { memory: limits.memory.map(|size| size.0), cpu: limits.cpu, tasks: limits.tasks }
}

impl SeatShell {
    /// Before each start. Which limits cannot be had, where that is news.
    pub fn begin_limits(&mut self, limits: &Limits) -> Vec<String> {
        let wanted = of_trees(limits);
        self.memory.told = 0;
        let unmet: Vec<String> = match &self.kit.cgroup {
            Some(group) => {
                group.begin(wanted).into_iter().map(|(kind, why)| format!("{}: {why}", kind.name())).collect()
            }
            None => {
                let given = [
                    (wanted.memory.is_some(), Kind::Memory),
                    (wanted.cpu.is_some(), Kind::Cpu),
                    (wanted.tasks.is_some(), Kind::Tasks),
                ];
                let missing = given.into_iter().filter(|(given, _)| *given);
                missing.map(|(_, kind)| format!("{}: there is no cgroup", kind.name())).collect()
            }
        };
        if *unmet == *self.memory.unmet {
            return Vec::new();
        }
        self.memory.unmet = unmet.as_slice().into();
        unmet
    }
}

impl Supervisor {
    /// A start is on its way: tells what it goes without, and watches over the rest.
    pub fn limits_begun(&mut self, id: &SeatId, unmet: Vec<String>) {
        for what in unmet {
            warn!(app = %id.app, "it runs without a limit: {what}");
            self.note_app(&id.app, "unlimited", what);
        }
        let events = self.events.clone();
        if let Some(seat) = self.seat_mut(id)
            && seat.memory.watch.is_none()
            && let Some(told) = seat.kit.cgroup.as_ref().and_then(|group| group.kill_events())
        {
            seat.memory.watch = Some(tokio::spawn(watch(told, id.clone(), events)).abort_handle());
        }
    }

    /// A group for a command that is run as an app, with the limits that each of its instances has.
    pub fn limited_group(&self, app: &AppName, name: &str) -> Option<Arc<Cgroup>> {
        let limits = self.apps.get(app).map(|app| Arc::clone(&app.spec().limits))?;
        let group = self.job_cgroup(app, name)?;
        for (kind, why) in group.begin(of_trees(&limits)) {
            warn!(%app, "a command runs without a limit: {}: {why}", kind.name());
        }
        Some(group)
    }

    fn kills(&self, id: &SeatId) -> u64 {
        let limited = self.apps.get(&id.app).is_some_and(|app| app.spec().limits.memory.is_some());
        let group = self.seat(id).and_then(|seat| seat.kit.cgroup.as_ref()).filter(|_| limited);
        group.map_or(0, |group| group.kills())
    }

    /// The main process has ended: was it for want of memory? What else was killed is told.
    pub fn judge_memory(&mut self, id: &SeatId, exit: Exit) -> Exit {
        let kills = self.kills(id);
        let Some(seat) = self.seat_mut(id) else { return exit };
        let new = kills.saturating_sub(seat.memory.told);
        seat.memory.told = kills;
        if new > 0 && exit == Exit::Signal(Signal::KILL.number()) {
            self.tell_workers(id, new - 1);
            return Exit::OutOfMemory;
        }
        self.tell_workers(id, new);
        exit
    }

    /// The kernel may have killed somebody of this tree. Whether it was the main process shows soon.
    fn memory_ran_out(&mut self, id: &SeatId) {
        let main = self.seat(id).and_then(|seat| seat.main);
        let id = id.clone();
        self.later(DYING, move |supervisor| {
            let kills = supervisor.kills(&id);
            let Some(seat) = supervisor.seat_mut(&id).filter(|seat| seat.main.is_some() && seat.main == main) else {
                return;
            };
            let new = kills.saturating_sub(seat.memory.told);
            seat.memory.told = kills;
            supervisor.tell_workers(&id, new);
        });
    }

    fn tell_workers(&mut self, id: &SeatId, killed: u64) {
        if killed == 0 {
            return;
        }
        let cause = format!("out of memory: the kernel killed {killed} of its processes, not the main one");
        warn!(app = %id.app, instance = id.seat.number, "{cause}");
        self.ledger.send(Command::Event(NewEvent {
            at: crate::os::clock::now().wall,
            app: Some(id.app.clone()),
            instance: Some(id.instance()),
            kind: EventKind::Instance,
            from: None,
            to: None,
            cause: Some(cause),
            detail: Some("oom".to_owned()),
        }));
    }

    /// For [`Measured::usage`].
    #[must_use]
    pub fn measured(&self, id: &SeatId) -> Measured {
        let group = self.seat(id).and_then(|seat| seat.kit.cgroup.clone());
        Measured { pids: self.tree(id).iter().map(|member| member.pid).collect(), group }
    }

    /// Looks at memory from time to time as long as some app asks for it.
    pub fn sample(&mut self) {
        let wanted = self.config.apps.values().any(|app| app.limits.memory_restart.is_some());
        if !wanted || self.sampling || self.is_ending() {
            return;
        }
        self.sampling = true;
        self.later(SAMPLE, Supervisor::sample_now);
    }

    fn sample_now(&mut self) {
        let mut trees = Vec::new();
        for app in self.apps.values() {
            let Some(most) = app.spec().limits.memory_restart else { continue };
            trees.extend(
                self.active_seats(app)
                    .into_iter()
                    .map(|id| (self.seat(&id).and_then(|seat| seat.main), self.measured(&id), id, most)),
            );
        }
        let measure = move || {
            let over = trees.into_iter().filter_map(|(main, tree, id, most)| {
                let (used, _) = tree.usage()?;
                (used > most.0).then_some((main, id, used, most))
            });
            over.collect::<Vec<_>>()
        };
        self.files.run(measure, |supervisor, over| {
            for (main, id, used, most) in over {
                if supervisor.seat(&id).is_some_and(|seat| seat.main.is_some() && seat.main == main) {
                    let used = Size(used >> 20 << 20);
                    supervisor.tell(
                        &id,
                        Happening::Outgrown(format!("uses {used} of memory, more than memory_restart: {most}")),
                    );
                }
            }
            supervisor.sampling = false;
            supervisor.sample();
        });
    }

    /// At the very end: nobody lives in the groups of our trees any more.
    pub fn remove_groups(&self) {
        self.shells.values().for_each(|shell| shell.remove_groups());
    }
}

impl SeatShell {
    /// Nobody lives in its group any more, or whoever could not be killed keeps it.
    pub fn remove_group(&self) {
        if let Some(watch) = &self.memory.watch {
            watch.abort();
        }
        self.kit.remove_group();
        if let Some(renamed) = &self.renamed {
            renamed.next.remove_group();
        }
    }
}

/// Tells each time that the kernel says so.
async fn watch(told: Urgent, id: SeatId, events: Events) {
    while told.changed().await.is_ok() {
        let id = id.clone();
        if events.send(Event::Then(Box::new(move |supervisor| supervisor.memory_ran_out(&id)))).is_err() {
            return;
        }
    }
}
