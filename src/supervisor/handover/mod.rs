//! What a supervisor finds that follows a killed one: run records, cgroups, a logger that still captures. Processes
//! that are what it would start itself go on ([`crate::domain::service::Survivor`] says which) and are its own from
//! then on (`adopt`), at once; everything else is ended meanwhile, by record, identity and tree (`leftover`), so that
//! nothing ever runs twice. Runs on a thread of its own; only when it is done apps start.

mod adopt;
mod leftover;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tracing::{info, warn};

use self::leftover::Leftover;
use super::{
    layout::Layout,
    prepare,
    seats::SeatId,
    sockets::{self, Noted, Sockets},
};
use crate::{
    domain::{
        config::{self, Config},
        model::{AppName, InstanceId, Signal},
        service::Survivor,
    },
    os::{
        cgroup::{Base, Cgroup},
        notify, pidfd,
        record::RunRecord,
        tree::Member,
    },
};

/// The name of its record.
const LOGGER: &str = "logger";
/// A logger has so long to write what it has.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who goes on.
#[derive(Default)]
pub struct Handover {
    pub adopted: Vec<Adopted>,
    /// Those of their apps.
    pub sockets: BTreeMap<AppName, Sockets>,
    /// Who does not.
    pub ended: Vec<String>,
}

/// Whatever does not.
pub struct Rest {
    trees: Vec<Leftover>,
    /// Nobody is born into these any more.
    unused: Vec<Arc<Cgroup>>,
    logger: Option<RunRecord>,
    noted: Vec<Noted>,
    /// The files of sockets that go on.
    taken: Vec<PathBuf>,
}

/// A process that goes on, and what it is held by.
pub struct Adopted {
    id: SeatId,
    survivor: Survivor,
    /// The run that it bears.
    boot: Box<str>,
    pidfd: OwnedFd,
    /// Where it says how it is, made anew at the place that it knows.
    notices: Option<(PathBuf, UnixDatagram)>,
    bears: Option<Bears>,
}

/// Another name, which it was started under.
struct Bears {
    name: InstanceId,
    record: PathBuf,
    file: OwnedFd,
    cgroup: Option<Arc<Cgroup>>,
}

/// Who lives, for the question who goes on.
pub type Living = Vec<(SeatId, RunRecord)>;
/// Those of them who do.
pub type GoOn = BTreeMap<SeatId, Survivor>;

/// May something go on that an earlier supervisor has started? Records outlive an orderly end too.
#[must_use]
pub fn is_needed(layout: &Layout) -> bool {
    let of_instances = read_records(layout).into_iter().filter(|(name, _)| name != LOGGER);
    of_instances.into_iter().any(|(_, record)| record.is_alive_and_same().is_some())
}

/// Finds what the last supervisor left, and has those of it go on who may.
pub fn take_over(
    layout: &Layout,
    config: &Config,
    cgroups: Option<&Base>,
    who_goes_on: impl FnOnce(Living) -> GoOn,
) -> (Handover, Rest) {
    let mut records = read_records(layout);
    let logger = records.remove(LOGGER);
    let mut trees: Vec<Leftover> =
        records.into_iter().map(|(name, record)| leftover::leftover(name, record, config, layout, cgroups)).collect();
    let living = trees.iter().filter(|tree| tree.seat.is_some() && tree.is_whole());
    let living: Living = living.filter_map(|tree| Some((tree.seat.as_ref()?.0.clone(), tree.record.clone()))).collect();
    let wanted = if living.is_empty() { GoOn::new() } else { who_goes_on(living) };
    // Before any of them is noted anew.
    let noted = sockets::noted(layout);
    let mut handover = Handover::default();
    for name in wanted.keys().map(|id| &id.app).collect::<BTreeSet<_>>() {
        let is_theirs = |tree: &mut Leftover| {
            let seat = tree.seat.as_ref().filter(|(id, _)| id.app == *name && tree.main.is_some());
            let goes_on = seat.and_then(|(id, _)| wanted.get(id));
            goes_on.is_some_and(|survivor| survivor.pid == tree.record.pid)
        };
        let theirs = trees.extract_if(.., is_theirs).collect();
        trees.extend(handover.take(name, theirs, &wanted, layout, config));
    }
    let goes_on: Vec<_> = handover.adopted.iter().map(|adopted| adopted.id.clone()).collect();
    leftover::find_outputs(&mut trees, &goes_on, layout);
    // Nobody is born into these any more: other trees' groups are in use again already.
    let unused = |tree: &&Leftover| tree.name.ends_with(".job") || tree.is_of_nobody(config);
    let unused: Vec<_> = trees.iter().filter(unused).filter_map(|tree| tree.cgroup.clone()).collect();
    trees.retain(|tree| tree.main.is_some() || !tree.members().is_empty());
    handover.ended = trees.iter().map(|tree| tree.name.clone()).collect();
    let held = handover.sockets.values().flat_map(|sockets| sockets.values());
    let taken = held.filter_map(|held| Some(held.path()?.0.to_owned())).collect();
    (handover, Rest { trees, unused, logger, noted, taken })
}

impl Rest {
    /// Ends it, the logger last, which captures until then; in a hurry by KILL.
    pub fn end(self, hurry: &AtomicBool) {
        if !self.trees.is_empty() {
            let names: Vec<_> = self.trees.iter().map(|tree| tree.name.as_str()).collect();
            info!("ending what the last supervisor left: {}", names.join(", "));
        }
        leftover::end(self.trees, hurry);
        for group in self.unused {
            let _ = group.remove();
        }
        for noted in self.noted {
            noted.clear(&self.taken);
        }
        if let Some(record) = self.logger {
            end_logger(&record);
        }
    }
}

impl Handover {
    /// What became of what was found, in words.
    #[must_use]
    pub fn told(&self) -> Option<String> {
        let adopted = self.adopted.iter().map(|one| prepare::seat_name(&one.id.instance(), one.id.seat));
        let adopted: Vec<_> = adopted.collect();
        let told = [("adopted", &adopted), ("ended", &self.ended)];
        let told = told.into_iter().filter(|(_, names)| !names.is_empty());
        let told: Vec<_> = told.map(|(what, names)| format!("{what} {}", names.join(", "))).collect();
        (!told.is_empty()).then(|| told.join("; "))
    }

    /// Takes the processes of an app over whole, sockets and all; whoever cannot be is returned.
    fn take(
        &mut self,
        name: &AppName,
        theirs: Vec<Leftover>,
        wanted: &GoOn,
        layout: &Layout,
        config: &Config,
    ) -> Vec<Leftover> {
        let Some(app) = config.apps.get(name) else { return theirs };
        let tree: Vec<Member> =
            if app.sockets.is_empty() { Vec::new() } else { theirs.iter().flat_map(Leftover::members).collect() };
        match sockets::take_back(app, &tree) {
            Ok(sockets) => {
                sockets::note(&layout.sockets(name), &sockets, &Sockets::new());
                self.sockets.insert(name.clone(), sockets);
            }
            Err(error) => {
                warn!(app = %name, "it cannot go on and is started anew, as its sockets cannot be taken over: {error}");
                return theirs;
            }
        }
        let mut refused = Vec::new();
        for tree in theirs {
            match Adopted::of(&tree, wanted, app, layout) {
                Ok(adopted) => self.adopted.push(adopted),
                Err(error) => {
                    warn!(app = %name, "{} cannot go on and is started anew: {error}", tree.name);
                    refused.push(tree);
                }
            }
        }
        refused
    }
}

impl Adopted {
    fn of(tree: &Leftover, wanted: &GoOn, app: &config::App, layout: &Layout) -> io::Result<Self> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let (id, name) = tree.seat.clone().ok_or_else(gone)?;
        let survivor = wanted.get(&id).cloned().ok_or_else(gone)?;
        let (_, pidfd) = tree.main.as_ref().ok_or_else(gone)?;
        let mut notices = None;
        if app.notifies() {
            let path = layout.notify(&name, id.seat.second);
            notices = Some((path.clone(), notify::make(&path, app.run_as.uid, app.run_as.gid)?));
        }
        let mut bears = None;
        if name.app != id.app {
            let record = layout.record(&tree.name);
            let file = fs::File::options().read(true).write(true).open(&record)?.into();
            bears = Some(Bears { name, record, file, cgroup: tree.cgroup.clone() });
        }
        let boot = tree.record.everhook_boot.as_str().into();
        Ok(Self { id, survivor, boot, pidfd: pidfd.try_clone()?, notices, bears })
    }
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

/// The old logger writes what the FIFOs hold, then leaves; what comes later waits in the FIFOs.
fn end_logger(record: &RunRecord) {
    let Some(fd) = record.is_alive_and_same() else { return };
    let _ = pidfd::signal(&fd, Signal::TERM);
    if !pidfd::wait_ended(&fd, PATIENCE) {
        warn!(pid = record.pid, "the last logger does not end; it is killed, its buffer is finished by the next one");
        let _ = pidfd::signal(&fd, Signal::KILL);
        let _ = pidfd::wait_ended(&fd, PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::identity;

    #[test]
    fn records_of_who_has_ended_need_no_handover() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout { state: dir.path().into(), run: dir.path().into() };
        assert!(!is_needed(&layout), "there was none before");
        fs::create_dir(layout.record("")).unwrap();
        let (boot, namespace) = (identity::boot_id().unwrap(), identity::pid_namespace().unwrap());
        let note = |name: &str, pid: u32| {
            fs::write(layout.record(name), format!("{pid} {} {boot} {namespace} run\n", u64::MAX)).unwrap();
        };
        note("blog.1", i32::MAX.unsigned_abs());
        note(LOGGER, std::process::id());
        assert!(!is_needed(&layout), "nothing runs that could go on");
        note("api.1", std::process::id());
        assert!(is_needed(&layout));
    }
}
