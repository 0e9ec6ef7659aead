//! Limits of a group, what it uses, and whom the kernel killed in it for memory: by version 2 where
//! that has the controller, else by the hierarchy of version 1 that has it. cgroups(7), and
//! `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/` of the kernel.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::fs::{Access, Mode, OFlags, access, openat};

use super::{
    make_folder,
    place::{self, Root, Version},
    read, write,
};
use crate::os::watched::Urgent;

/// `cpu.max` counts time in periods of this many microseconds.
const PERIOD: f64 = 100_000.0;

/// What can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Memory,
    Cpu,
    Tasks,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Memory, Self::Cpu, Self::Tasks];

    /// The name of the field in the config.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Tasks => "tasks",
        }
    }

    /// The controller's name, in both versions.
    fn controller(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Tasks => "pids",
        }
    }
}

/// `None`: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Wanted {
    /// Bytes.
    pub memory: Option<u64>,
    /// Processors' worth of time.
    pub cpu: Option<f64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
}

/// Whoever can say where a kind is limited.
#[derive(Debug)]
pub(super) struct Controllers {
    /// Where groups of version 2 are made.
    base: Option<PathBuf>,
    /// What was found out for each kind that was asked for.
    found: Mutex<BTreeMap<Kind, Result<Arc<Source>, String>>>,
}

/// Where groups of a kind are made.
#[derive(Debug)]
enum Source {
    /// The group of the tree itself.
    Tree,
    /// A group beside it, in this hierarchy.
    Beside(Root),
}

/// As [`super::can_limit`].
pub(super) fn can_limit(kind: Kind) -> Result<(), String> {
    let base = super::find_base()?;
    let offered = |path: &Path| {
        let controllers = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
        let writable = access(path.join("cgroup.subtree_control"), Access::WRITE_OK).is_ok();
        writable && controllers.split_whitespace().any(|name| name == kind.controller())
    };
    if base.0.root.version == Version::Two && base.0.root.path.ancestors().any(offered) {
        return Ok(());
    }
    let none = || format!("no cgroup has the {} controller", kind.controller());
    beside(kind.controller()).map(drop).map_err(|why| why.unwrap_or_else(none))
}

/// A hierarchy of version 1 with this controller; else why none can be used, where there is one.
fn beside(controller: &str) -> Result<Root, Option<String>> {
    let mut why = None;
    for place in place::places().iter().filter(|place| place.controllers.iter().any(|name| name == controller)) {
        match Root::at(place) {
            Ok(found) => return Ok(found),
            Err(error) => why = Some(format!("cgroup {} is not writable: {error}", place.path.display())),
        }
    }
    Err(why)
}

/// A group beside the tree's.
#[derive(Debug)]
pub(super) struct Beside {
    pub folder: OwnedFd,
    pub path: PathBuf,
}

/// What is limited, and where.
#[derive(Debug, Default)]
pub(super) struct Limited {
    /// What was set last.
    wanted: Option<Wanted>,
    pub beside: BTreeMap<Kind, Beside>,
    unmet: Vec<(Kind, String)>,
    /// Used and killed before the present run: groups are kept over restarts.
    cpu_before: f64,
    kills_before: u64,
}

impl Limited {
    /// Of a group that was just made.
    pub(super) fn of_new() -> Self {
        Self { wanted: Some(Wanted::default()), ..Self::default() }
    }

    fn any(&self) -> bool {
        self.wanted.is_some_and(|wanted| wanted != Wanted::default())
    }
}

impl Controllers {
    pub(super) fn new(tree: &Root) -> Self {
        let base = (tree.version == Version::Two).then(|| tree.path.clone());
        Self { base, found: Mutex::default() }
    }

    fn source(&self, kind: Kind) -> Result<Arc<Source>, String> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.entry(kind).or_insert_with(|| self.find(kind).map(Arc::new)).clone()
    }

    fn find(&self, kind: Kind) -> Result<Source, String> {
        let controller = kind.controller();
        let refused = match self.base.as_deref().map(|base| place::enable(base, controller).map_err(|e| (base, e))) {
            Some(Ok(())) => return Ok(Source::Tree),
            Some(Err((base, error))) => format!("cgroup {} gives no {controller} controller: {error}", base.display()),
            None => format!("no cgroup has the {controller} controller"),
        };
        beside(controller).map(Source::Beside).map_err(|why| why.unwrap_or(refused))
    }
}

/// What stands between a group's tree and a kind of limit.
pub(super) struct Group<'a> {
    pub tree: &'a OwnedFd,
    pub version: Version,
    pub name: &'a str,
    pub controllers: &'a Controllers,
}

impl Group<'_> {
    /// Sets what is wanted, unless it is set; what cannot be had, each with its reason.
    pub(super) fn limit(&self, limited: &mut Limited, wanted: Wanted) -> Vec<(Kind, String)> {
        let before = limited.wanted.replace(wanted);
        if before == Some(wanted) {
            return limited.unmet.clone();
        }
        if before.is_none() {
            self.lift();
        }
        let before = before.unwrap_or_default();
        let mut unmet = Vec::new();
        let as_text = |number: Option<u64>| number.map(|number| number.to_string());
        for (kind, value, was) in [
            (Kind::Memory, as_text(wanted.memory), before.memory.is_some()),
            (Kind::Cpu, wanted.cpu.map(quota), before.cpu.is_some()),
            (Kind::Tasks, as_text(wanted.tasks), before.tasks.is_some()),
        ] {
            if value.is_none() && !was {
                continue;
            }
            if let Err(why) = self.set(limited, kind, value.as_deref()) {
                unmet.push((kind, why));
            }
        }
        limited.unmet.clone_from(&unmet);
        unmet
    }

    /// Takes away the limits that a group has from an earlier supervisor.
    fn lift(&self) {
        for file in ["memory.max", "cpu.max", "pids.max"] {
            // Most have none of these files.
            let _ = write(self.tree, file, "max");
        }
    }

    fn set(&self, limited: &mut Limited, kind: Kind, value: Option<&str>) -> Result<(), String> {
        let source = self.controllers.source(kind)?;
        if let (Source::Beside(root), None) = (&*source, limited.beside.get(&kind)) {
            let path = root.path.join(self.name);
            let (folder, _) = make_folder(&root.folder, self.name).map_err(|e| format!("{}: {e}", path.display()))?;
            limited.beside.insert(kind, Beside { folder, path });
        }
        let (folder, version) = self.of(limited, kind);
        let (file, value) = match (kind, version) {
            (Kind::Memory, Version::Two) => ("memory.max", value.unwrap_or("max").to_owned()),
            (Kind::Memory, Version::One) => ("memory.limit_in_bytes", value.unwrap_or("-1").to_owned()),
            (Kind::Cpu, Version::Two) => ("cpu.max", format!("{} {PERIOD}", value.unwrap_or("max"))),
            (Kind::Cpu, Version::One) => ("cpu.cfs_quota_us", value.unwrap_or("-1").to_owned()),
            (Kind::Tasks, _) => ("pids.max", value.unwrap_or("max").to_owned()),
        };
        if (kind, version) == (Kind::Cpu, Version::One) {
            let _ = write(folder, "cpu.cfs_period_us", &PERIOD.to_string());
        }
        write(folder, file, &value).map_err(|e| format!("{file} of cgroup {}: {e}", self.name))
    }

    /// The group that this kind is in.
    fn of<'b>(&'b self, limited: &'b Limited, kind: Kind) -> (&'b OwnedFd, Version) {
        limited.beside.get(&kind).map_or((self.tree, self.version), |beside| (&beside.folder, Version::One))
    }

    fn number(&self, limited: &Limited, kind: Kind, files: [&str; 2]) -> Option<u64> {
        let (folder, version) = self.of(limited, kind);
        read(folder, files[usize::from(version == Version::One)]).ok()?.trim().parse().ok()
    }

    /// Bytes in use, without what is only kept from disk and dropped when somebody needs the room.
    pub(super) fn memory(&self, limited: &Limited) -> Option<u64> {
        let used = self.number(limited, Kind::Memory, ["memory.current", "memory.usage_in_bytes"])?;
        let (folder, version) = self.of(limited, Kind::Memory);
        let key = if version == Version::Two { "inactive_file" } else { "total_inactive_file" };
        let spare = field(&read(folder, "memory.stat").ok()?, key)?;
        Some(used.saturating_sub(spare))
    }

    /// Seconds since the group was made; `usage_usec` needs no controller.
    fn cpu_ever(&self) -> Option<f64> {
        if self.version == Version::One {
            return None;
        }
        let used = field(&read(self.tree, "cpu.stat").ok()?, "usage_usec")?;
        Some(std::time::Duration::from_micros(used).as_secs_f64())
    }

    /// Seconds of the present run. Without a limit nothing is noted at its beginning: a restart is to
    /// cost nothing that nobody asked for.
    pub(super) fn cpu(&self, limited: &Limited) -> Option<f64> {
        self.cpu_ever().filter(|_| limited.any()).map(|used| (used - limited.cpu_before).max(0.0))
    }

    fn kills_ever(&self, limited: &Limited) -> Option<u64> {
        let (folder, version) = self.of(limited, Kind::Memory);
        let file = if version == Version::Two { "memory.events" } else { "memory.oom_control" };
        field(&read(folder, file).ok()?, "oom_kill")
    }

    /// How many processes of the present run the kernel has killed for want of memory.
    pub(super) fn kills(&self, limited: &Limited) -> u64 {
        self.kills_ever(limited).unwrap_or(0).saturating_sub(limited.kills_before)
    }

    /// A new run begins.
    pub(super) fn begin(&self, limited: &mut Limited) {
        if !limited.any() {
            return;
        }
        limited.cpu_before = self.cpu_ever().unwrap_or(0.0);
        limited.kills_before = self.kills_ever(limited).unwrap_or(0);
    }

    /// Says when the kernel may have killed somebody.
    pub(super) fn kill_events(&self, limited: &Limited) -> Option<Urgent> {
        limited.wanted?.memory?;
        let (folder, version) = self.of(limited, Kind::Memory);
        let open =
            |file: &str| openat(folder, file, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
        if version == Version::Two {
            return Urgent::new(open("memory.events").ok()?).ok();
        }
        // It is told to an eventfd just before, as `cgroup-v1/memory.rst` has it.
        let count = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).ok()?;
        let control = open("memory.oom_control").ok()?;
        let pair = format!("{} {}", count.as_fd().as_raw_fd(), control.as_raw_fd());
        write(folder, "cgroup.event_control", &pair).ok()?;
        Urgent::counted(count).ok()
    }
}

/// Microseconds of each period.
fn quota(cpu: f64) -> String {
    format!("{:.0}", cpu * PERIOD)
}

/// A row `key number`.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}
