//! What a supervisor finds that follows a killed one: run records, cgroups, a logger that still
//! captures. Until adoption takes them over they are ended, by record, identity and tree, so that
//! nothing ever runs twice. Runs on a thread of its own, before any app starts.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{layout::Layout, prepare::SECOND};
use crate::{
    domain::{
        api::Stream,
        config::{Config, StopStage},
        model::Signal,
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
struct Leftover {
    name: String,
    boot: String,
    main: Option<(u32, OwnedFd)>,
    cgroup: Option<Arc<Cgroup>>,
    /// Where no cgroup tells: what it was given for its output.
    outputs: Vec<OwnedFd>,
    stages: Vec<StopStage>,
    /// The stage that comes next, and when.
    stage: usize,
    next: Instant,
}

/// May an earlier supervisor have left something? Whatever it started has a record.
#[must_use]
pub fn is_needed(layout: &Layout) -> bool {
    fs::read_dir(layout.record("")).is_ok_and(|mut records| records.next().is_some())
}

/// Ends everything that the last supervisor left, the logger last. Returns what was found.
pub fn end_leftovers(layout: &Layout, config: &Config, cgroups: Option<&Base>) -> Vec<String> {
    let records = read_records(layout);
    let mut trees: Vec<Leftover> = records
        .iter()
        .filter(|(name, _)| name.as_str() != "logger")
        .map(|(name, record)| leftover(name, record, config, layout, cgroups))
        .collect();
    find_outputs(&mut trees, layout);
    // Nobody is born into these any more: other trees' groups are in use again already.
    let unused = |tree: &&Leftover| {
        !config.apps.keys().any(|app| tree.name.starts_with(&format!("{app}."))) || tree.name.ends_with(".job")
    };
    let unused: Vec<_> = trees.iter().filter(unused).filter_map(|tree| tree.cgroup.clone()).collect();
    let mut found = Vec::new();
    trees.retain(|tree| {
        let alive = tree.main.is_some() || !tree.members().is_empty();
        if alive {
            found.push(tree.name.clone());
        }
        alive
    });
    if !found.is_empty() {
        info!("ending what the last supervisor left: {}", found.join(", "));
    }
    while !trees.is_empty() {
        let now = Instant::now();
        trees.retain_mut(|tree| !tree.push(now));
        if !trees.is_empty() {
            std::thread::sleep(LOOK);
        }
    }
    for group in unused {
        let _ = group.remove();
    }
    if let Some(record) = records.get("logger") {
        end_logger(record);
    }
    found
}

fn read_records(layout: &Layout) -> BTreeMap<String, RunRecord> {
    let folder = layout.record("");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((name, RunRecord::read(&entry.path()).ok()??))
        })
        .collect()
}

fn leftover(name: &str, record: &RunRecord, config: &Config, layout: &Layout, cgroups: Option<&Base>) -> Leftover {
    let app = name.split('.').next().and_then(|app| app.parse().ok()).and_then(|app| {
        let was = || config.apps.values().find(|one| one.was.as_ref() == Some(&app));
        config.apps.get(&app).or_else(was)
    });
    let stages = app.filter(|_| !name.ends_with(".job")).map(|app| app.stop.stages.clone());
    let group = format!("{}-{name}", layout.cgroup());
    Leftover {
        name: name.to_owned(),
        boot: record.everhook_boot.clone(),
        main: record.is_alive_and_same().map(|fd| (record.pid, fd)),
        cgroup: cgroups.and_then(|base| base.make(&group).ok()).map(Arc::new),
        outputs: Vec::new(),
        stages: stages.unwrap_or_else(|| vec![StopStage { signal: Signal::TERM, timeout: TIMEOUT }]),
        stage: 0,
        next: Instant::now(),
    }
}

/// Both seats of a copy have the same output: whoever has nothing else belongs to the first then.
fn find_outputs(trees: &mut [Leftover], layout: &Layout) {
    let alone = trees.iter().enumerate().filter(|(_, tree)| tree.cgroup.is_none() && !tree.name.ends_with(SECOND));
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
    fn members(&self) -> Vec<Member> {
        self.found(tree::members)
    }

    fn found(&self, find: fn(&TreeQuery) -> io::Result<Vec<Member>>) -> Vec<Member> {
        let root = self.main.as_ref().map(|(pid, _)| *pid);
        let instance = self.name.strip_suffix(SECOND).unwrap_or(&self.name);
        let outputs: Vec<_> = self.outputs.iter().collect();
        let by_environment =
            TreeQuery { root, boot: &self.boot, instance, outputs: &outputs, session: root, cgroup: None };
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

    fn escalate(&mut self, now: Instant) {
        let stage = self.stages.get(self.stage).cloned();
        self.stage += 1;
        let Some(StopStage { signal, timeout }) = stage else {
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

/// The old logger writes what the FIFOs hold, then leaves; what comes later waits in the FIFOs.
fn end_logger(record: &RunRecord) {
    let Some(fd) = record.is_alive_and_same() else { return };
    let _ = pidfd::signal(&fd, Signal::TERM);
    if !pidfd::wait_ended(&fd, TIMEOUT) {
        warn!(pid = record.pid, "the last logger does not end; it is killed, its buffer is finished by the next one");
        let _ = pidfd::signal(&fd, Signal::KILL);
        let _ = pidfd::wait_ended(&fd, TIMEOUT);
    }
}
