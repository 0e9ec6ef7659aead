//! Starting processes without a copy of anything: DESIGN.md section 5, "Spawning".
//!
//! The child shares our memory and, at first, our descriptors, until it has executed its program or
//! failed; whoever made it may go on meanwhile. Everything is allocated here, in the parent; what the
//! child does with it stands in [`child`], how it comes to be in [`clone`](mod@clone).

mod child;
mod clone;
pub(super) mod raw;
#[cfg(test)]
mod tests;

use std::{
    ffi::{CString, OsStr, c_char, c_int},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::FileExt,
        },
    },
    path::PathBuf,
    ptr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::resource::{Resource, getrlimit},
    unistd::{getegid, geteuid, getpid},
};

use self::{
    child::{Failure, PidEntry, Plan, Step},
    clone::{Running, Stack},
};
use super::{
    cgroup::{Cgroup, is_gone},
    identity,
    record::{self, RECORD_SIZE, StartedAs},
};

/// Soft limit of open files of a child whose spec names none; `select(2)` breaks above it.
const NOFILE_SOFT: u64 = 1024;
/// What nearly every child needs: three streams, a result or a channel, a record, a gate, cgroups of
/// version 1, one to spare.
const FIRST_SLOTS: usize = 10;

/// Whom the child becomes. Absent: whoever we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// Where the child notes who it is, before exec, from offset 0; see [`super::record::RunRecord`].
#[derive(Debug, Clone)]
pub struct RecordFile {
    /// Open for writing.
    pub file: Arc<OwnedFd>,
    /// The id of the supervisor's run, without white space, at most 32 bytes.
    pub everhook_boot: String,
    /// Of an instance.
    pub started_as: Option<StartedAs>,
}

/// A value that the kernel may refuse to lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    pub value: i32,
    /// Fail where it is refused; else ours stays.
    pub insist: bool,
}

impl Tuning {
    /// As far as we may.
    #[must_use]
    pub fn at_best(value: i32) -> Self {
        Self { value, insist: false }
    }

    /// This or nothing.
    #[must_use]
    pub fn exactly(value: i32) -> Self {
        Self { value, insist: true }
    }
}

/// Everything about a process that is to be started. Nothing of the supervisor's environment,
/// descriptors, dispositions or mask reaches it but what stands here.
#[derive(Debug, Clone)]
pub struct SpawnSpec {
    /// The file to execute, absolute (or `/proc/self/exe`).
    pub program: CString,
    /// The whole of argv, its name included.
    pub args: Vec<CString>,
    /// `NAME=value`.
    pub env: Vec<CString>,
    /// Names of variables, none of them in `env`, whose value is the child's own pid: `LISTEN_PID` and
    /// its like, which no parent can know before.
    pub pid_env: Vec<&'static str>,
    /// Entered as the child's user.
    pub directory: PathBuf,
    pub credentials: Option<Credentials>,
    /// Descriptors of the child: `(ours, its number)`. Numbers not named are closed.
    pub fds: Vec<(Arc<OwnedFd>, RawFd)>,
    /// To be born in, or of version 1 entered before anything else.
    pub cgroup: Option<Arc<Cgroup>>,
    /// No record, no exec.
    pub record: Option<RecordFile>,
    /// Exec waits until nobody has the other end of this pipe open, but 50 ms at most: for whoever must have
    /// done something before the program's first act.
    pub gate: Option<Arc<OwnedFd>>,
    /// Die with the thread that spawned (jobs and internal processes).
    pub die_with_parent: bool,
    pub no_new_privs: bool,
    /// These are all that it may ever have, a bit for each number; a user that has none by itself is
    /// given them.
    pub capabilities: Option<u64>,
    pub umask: u32,
    pub nice: Tuning,
    pub oom_score_adj: Tuning,
    /// `(resource, soft, hard)`. Without `RLIMIT_NOFILE` its soft limit is 1,024.
    pub rlimits: Vec<(u32, u64, u64)>,
}

impl SpawnSpec {
    /// A clean child in `/` with no environment and no descriptors, as whoever we are.
    #[must_use]
    pub fn new(program: CString, args: Vec<CString>) -> Self {
        Self {
            program,
            args,
            env: Vec::new(),
            pid_env: Vec::new(),
            directory: "/".into(),
            credentials: None,
            fds: Vec::new(),
            cgroup: None,
            record: None,
            gate: None,
            die_with_parent: false,
            no_new_privs: false,
            capabilities: None,
            umask: 0o022,
            nice: Tuning::at_best(0),
            oom_score_adj: Tuning::at_best(0),
            rlimits: Vec::new(),
        }
    }
}

/// A child that has executed its program (it may have ended since).
#[derive(Debug)]
pub struct Spawned {
    pub pid: u32,
    pub pidfd: OwnedFd,
}

/// No child: nothing of it is left, not even a zombie.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {errno}")]
pub struct SpawnError {
    /// What was tried: `chdir to "/x"`, `setting uid 1000`, `executing "/bin/x"`.
    pub step: String,
    pub part: Part,
    pub errno: io::Error,
}

/// The part of a spec that could not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Directory,
    Program,
    Credentials,
    /// Its group is gone.
    Cgroup,
    Other,
}

/// What a thread needs to spawn. Make it before other descriptors are opened: the numbers it takes
/// are the lowest free ones, and everything below the highest of them is copied at each spawn.
pub struct Spawner {
    null: OwnedFd,
    /// Where descriptors for a child are put; they hold `/dev/null` between spawns.
    slots: Vec<OwnedFd>,
    /// How many of them hold something else.
    filled: usize,
    stack: Stack,
    /// Boot id and pid namespace, the part of each record that never changes.
    machine: String,
    /// Container runtimes may refuse clone3: then `clone`, and the child moves itself into its cgroup.
    clone3: bool,
    /// Signals that we ignore; nobody ignores more later on.
    ignored: Vec<c_int>,
    /// Says what a child inherits.
    oom_score_adj: File,
}

impl Spawner {
    /// # Errors
    /// When descriptors or memory run out, or `/proc` is not there.
    pub fn new() -> io::Result<Self> {
        dumpable_at_first();
        let mut spawner = Self {
            null: std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into(),
            slots: Vec::new(),
            filled: 0,
            stack: Stack::new()?,
            machine: format!("{} {}", identity::boot_id()?, identity::pid_namespace()?),
            clone3: true,
            ignored: (1..=raw::SIGNALS).filter(|signal| raw::is_ignored(*signal)).collect(),
            oom_score_adj: File::open("/proc/self/oom_score_adj")?,
        };
        spawner.grow(FIRST_SLOTS)?;
        Ok(spawner)
    }

    fn grow(&mut self, count: usize) -> io::Result<()> {
        while self.slots.len() < count {
            let fd = fcntl(&self.null, FcntlArg::F_DUPFD_CLOEXEC(3))?;
            // SAFETY: fcntl has just made this descriptor; nobody else owns it.
            self.slots.push(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        Ok(())
    }

    /// Starts a process, and does not wait until it has executed its program, which may take as long as a file
    /// system likes; unless it [`Spawner::waits_for`] that.
    ///
    /// The reaper may see the end of a child before [`Underway::wait`] has returned its pid. Of a child that never
    /// executed its program the reaper sees nothing.
    #[must_use]
    pub fn begin(mut self, spec: SpawnSpec) -> Underway {
        let begun = self.make(&spec);
        Underway { begun, spec, spawner: self }
    }

    fn make(&mut self, spec: &SpawnSpec) -> Result<Begun, SpawnError> {
        let preparing =
            |errno: io::Error| SpawnError { step: format!("preparing {:?}", spec.program), part: Part::Other, errno };
        let gone = |errno: io::Error| SpawnError {
            step: format!("making a process for {:?} in its cgroup, which somebody has removed", spec.program),
            part: Part::Cgroup,
            errno,
        };
        let birthplace = spec.cgroup.as_ref().and_then(|group| group.birthplace());
        let born = self.clone3 && birthplace.is_some();
        let by_hand = spec.cgroup.as_ref().map_or(Ok(Vec::new()), |group| group.open_procs(born));
        let by_hand = by_hand.map_err(|e| if is_gone(&e) { gone(e) } else { preparing(e) })?;
        let mut filled: Vec<&OwnedFd> = spec.fds.iter().map(|(fd, _)| &**fd).collect();
        filled.extend(spec.record.iter().map(|r| &*r.file));
        filled.extend(spec.gate.as_deref());
        filled.extend(&by_hand);
        self.grow(filled.len()).map_err(preparing)?;
        let slots: Vec<RawFd> = self.slots.iter().map(AsRawFd::as_raw_fd).collect();
        let mut plan = Plan::new(spec, &slots, by_hand.len(), &self.machine).map_err(preparing)?;
        plan.ignored = self.clone3.then(|| self.ignored.clone());
        if !self.waits_for(spec) {
            plan.oom_score_adj = None;
        }

        self.filled = filled.len();
        let started = fill(&slots, &filled).and_then(|()| self.start(birthplace, plan));
        if started.is_err() {
            self.rest();
        }
        match started {
            Err(e) if self.clone3 && matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                self.clone3 = false;
                self.make(spec)
            }
            Err(errno) if birthplace.is_some() && is_gone(&errno) => Err(gone(errno)),
            Err(errno) => {
                Err(SpawnError { step: format!("making a process for {:?}", spec.program), part: Part::Other, errno })
            }
            Ok(begun) => Ok(begun),
        }
    }

    /// Descriptors must not stay open in the slots: somebody may wait for their end. The child has its own by now.
    fn rest(&mut self) {
        let filled = std::mem::take(&mut self.filled);
        for slot in &self.slots[..filled] {
            // Both are open and the slot is ours, so that this cannot fail.
            let _ = raw::dup3(self.null.as_raw_fd(), slot.as_raw_fd());
        }
    }

    /// Does `begin` wait for the child? Only of one whose `oom_score_adj` is to be another than ours, which somebody
    /// may have changed.
    #[must_use]
    pub fn waits_for(&self, spec: &SpawnSpec) -> bool {
        let mut text = [0; 16];
        let length = self.oom_score_adj.read_at(&mut text, 0).unwrap_or(0);
        std::str::from_utf8(&text[..length]).ok().and_then(|text| text.trim_end().parse().ok())
            != Some(spec.oom_score_adj.value)
    }

    fn start(&self, birthplace: Option<BorrowedFd<'_>>, plan: Plan) -> io::Result<Begun> {
        let cgroup = birthplace.as_ref().map(AsRawFd::as_raw_fd);
        let undumpable = plan.credentials.is_some().then(Undumpable::enter);
        let blocked = raw::block_signals();
        let started = Running::start(&self.stack, plan, cgroup, self.clone3);
        raw::set_mask(blocked);
        let (spawned, running) = started?;
        Ok(Begun { spawned, running, undumpable })
    }
}

/// A child, and what of ours it uses besides the stack of its spawner and the texts of its spec.
struct Begun {
    spawned: Spawned,
    running: Running,
    undumpable: Option<Undumpable>,
}

impl Begun {
    /// Waits until it has executed its program or ended.
    fn end(self, spec: &SpawnSpec) -> Result<Spawned, SpawnError> {
        let Self { spawned, running, undumpable } = self;
        let failure = running.end();
        drop(undumpable);
        executed(spawned, failure, spec)
    }
}

/// A child on its way to its program.
pub struct Underway {
    begun: Result<Begun, SpawnError>,
    // Its texts and the stack are used until that is dropped, which comes first.
    spec: SpawnSpec,
    spawner: Spawner,
}

impl Underway {
    /// Has it executed its program, or ended?
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.begun.as_ref().map_or(true, |begun| begun.running.is_over())
    }

    /// Waits for that, no longer than so.
    pub fn wait_for(&self, at_most: Duration) {
        if let Ok(begun) = &self.begun {
            begun.running.wait(Some(at_most));
        }
    }

    /// Waits until it has executed its program; the spawner is free for another one then.
    ///
    /// # Errors
    /// Names the step that failed.
    pub fn wait(self) -> (Spawner, Result<Spawned, SpawnError>) {
        let Self { begun, spec, mut spawner } = self;
        let result = begun.and_then(|begun| begun.end(&spec));
        spawner.rest();
        (spawner, result)
    }
}

fn fill(slots: &[RawFd], with: &[&OwnedFd]) -> io::Result<()> {
    with.iter().zip(slots).try_for_each(|(fd, slot)| raw::dup3(fd.as_raw_fd(), *slot))
}

/// Tells a child that has executed its program from one that ended before. Until exec the child's
/// exit signal is 0, at exec it becomes SIGCHLD (execve(2)): so `__WCLONE` waits for the first kind
/// alone, and no reaper that asks without it ever sees them.
fn executed(spawned: Spawned, failure: Option<Failure>, spec: &SpawnSpec) -> Result<Spawned, SpawnError> {
    if !raw::reap_unexecuted(&spawned.pidfd) {
        return Ok(spawned);
    }
    Err(match failure {
        Some(Failure { step, errno }) => {
            let part = match step {
                Step::Directory => Part::Directory,
                Step::Execute => Part::Program,
                Step::Groups | Step::Gid | Step::Uid => Part::Credentials,
                _ => Part::Other,
            };
            SpawnError { step: name_of(step, spec, errno), part, errno: io::Error::from_raw_os_error(errno) }
        }
        None => SpawnError {
            step: format!("executing {:?}", spec.program),
            part: Part::Other,
            errno: io::Error::new(io::ErrorKind::Interrupted, "it was killed before"),
        },
    })
}

fn name_of(step: Step, spec: &SpawnSpec, errno: i32) -> String {
    let who =
        |what: &str, id: fn(&Credentials) -> u32| format!("setting {what} {}", spec.credentials.as_ref().map_or(0, id));
    match step {
        Step::Descriptors => "setting up descriptors".into(),
        Step::Cgroup => "entering its cgroup".into(),
        Step::Session => "making a session".into(),
        Step::OomScore => format!("setting oom_score_adj {}", spec.oom_score_adj.value),
        Step::Nice => format!("setting nice {}", spec.nice.value),
        Step::Limit(resource) => limit_name(resource, spec),
        Step::Groups => "setting groups".into(),
        Step::Gid => who("gid", |c| c.gid),
        Step::Uid => who("uid", |c| c.uid),
        Step::Directory => format!("chdir to {:?}", spec.directory),
        Step::Capabilities => "setting capabilities".into(),
        Step::NoNewPrivileges => "setting no_new_privs".into(),
        Step::DeathSignal => "tying its life to ours".into(),
        Step::Record => "writing its run record".into(),
        Step::Execute => {
            let file = spec.directory.join(OsStr::from_bytes(spec.program.as_bytes()));
            // The kernel names the error alone, which is not the program's then.
            let more = match errno {
                libc::ENOENT if file.exists() => ", whose interpreter is missing",
                libc::ENOEXEC => ", which is no program and has no line `#!`",
                _ => "",
            };
            format!("executing {:?}{more}", spec.program)
        }
    }
}

fn limit_name(resource: u32, spec: &SpawnSpec) -> String {
    let what = match resource {
        libc::RLIMIT_NOFILE => "open files".into(),
        libc::RLIMIT_CORE => "a core file".into(),
        other => format!("resource {other}"),
    };
    let value = spec.rlimits.iter().find(|(of, ..)| *of == resource).map(|(_, _, hard)| format!(" to {hard}"));
    format!("setting the limit of {what}{}", value.unwrap_or_default())
}

impl Plan {
    /// `slots` hold, in this order, the child's descriptors, the record, the gate, and the files of its cgroups.
    fn new(spec: &SpawnSpec, slots: &[RawFd], by_hand: usize, machine: &str) -> io::Result<Self> {
        let moves: Vec<(RawFd, RawFd)> = slots.iter().zip(&spec.fds).map(|(slot, (_, to))| (*slot, *to)).collect();
        let mut after = slots[moves.len()..].iter().copied();
        let mut slot = |wanted: bool| if wanted { after.next() } else { None };
        let record = slot(spec.record.is_some());
        let gate = slot(spec.gate.is_some());
        let procs = after.take(by_hand).collect();
        let numbers: Vec<RawFd> = moves.iter().map(|(_, to)| *to).collect();
        let pid_env: Vec<PidEntry> = spec.pid_env.iter().map(|name| PidEntry::new(name)).collect();
        let mut envp: Vec<*const c_char> = spec.env.iter().map(|entry| entry.as_ptr()).collect();
        envp.extend(pid_env.iter().map(PidEntry::as_ptr).chain([ptr::null()]));
        Ok(Self {
            program: spec.program.as_ptr(),
            argv: pointers(&spec.args),
            envp,
            pid_env,
            directory: CString::new(spec.directory.clone().into_os_string().into_vec())?,
            last_slot: slots.iter().copied().max().unwrap_or(2),
            highest: numbers.iter().copied().max().unwrap_or(-1),
            gaps: gaps(numbers)?,
            moves,
            record,
            record_tail: record_tail(spec, machine)?,
            gate,
            procs,
            credentials: spec.credentials.clone().filter(|c| !already(c)),
            ignored: None,
            limits: limits(spec)?,
            oom_score_adj: Some((spec.oom_score_adj.value.to_string(), spec.oom_score_adj.insist)),
            nice: (spec.nice.value, spec.nice.insist),
            umask: spec.umask,
            capabilities: spec.capabilities,
            no_new_privs: spec.no_new_privs,
            parent: spec.die_with_parent.then(|| getpid().as_raw()),
            failure: None,
        })
    }
}

/// A null-terminated list; it points into `texts`.
fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|t| t.as_ptr()).chain([ptr::null()]).collect()
}

/// The ranges of numbers that a child does not have.
fn gaps(mut numbers: Vec<RawFd>) -> io::Result<Vec<(u32, u32)>> {
    numbers.sort_unstable();
    let mut next = 0;
    let mut gaps = Vec::new();
    for number in numbers {
        let number = u32::try_from(number)
            .ok()
            .filter(|n| *n >= next)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a descriptor's number is given twice"))?;
        if number > next {
            gaps.push((next, number - 1));
        }
        next = number + 1;
    }
    gaps.push((next, u32::MAX));
    Ok(gaps)
}

/// What follows pid and start time in the record.
fn record_tail(spec: &SpawnSpec, machine: &str) -> io::Result<String> {
    let Some(record) = &spec.record else { return Ok(String::new()) };
    let boot = &record.everhook_boot;
    if boot.is_empty() || boot.len() > 32 || boot.contains(char::is_whitespace) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no id of a run"));
    }
    let tail = record::tail(machine, boot, record.started_as.as_ref());
    debug_assert!(tail.len() + 40 < RECORD_SIZE, "pid and start time find room before it");
    Ok(tail)
}

/// Not under root there is nothing to become, and setgroups would be refused.
fn already(credentials: &Credentials) -> bool {
    let (uid, gid) = (geteuid(), getegid());
    !uid.is_root() && credentials.uid == uid.as_raw() && credentials.gid == gid.as_raw()
}

fn limits(spec: &SpawnSpec) -> io::Result<Vec<(u32, libc::rlimit64)>> {
    let mut limits: Vec<_> = spec
        .rlimits
        .iter()
        .map(|&(resource, soft, hard)| (resource, libc::rlimit64 { rlim_cur: soft, rlim_max: hard }))
        .collect();
    if !spec.rlimits.iter().any(|(resource, ..)| *resource == libc::RLIMIT_NOFILE) {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        limits.push((libc::RLIMIT_NOFILE, libc::rlimit64 { rlim_cur: hard.min(NOFILE_SOFT), rlim_max: hard }));
    }
    Ok(limits)
}

/// Children of ours that change their uid while they share our memory. The kernel then makes that
/// memory undumpable, so that the new user cannot trace it; it must stay so until the last has left.
static CHANGING_UID: Mutex<u32> = Mutex::new(0);

/// Were we dumpable before we spawned at all?
fn dumpable_at_first() -> bool {
    static FIRST: OnceLock<bool> = OnceLock::new();
    *FIRST.get_or_init(|| nix::sys::prctl::get_dumpable().unwrap_or(false))
}

/// One child that changes its uid in our memory; the last one gone, we are as dumpable as before.
struct Undumpable;

impl Undumpable {
    fn enter() -> Self {
        *CHANGING_UID.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self
    }
}

impl Drop for Undumpable {
    fn drop(&mut self) {
        let mut count = CHANGING_UID.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0 && dumpable_at_first() {
            // Setting a valid value cannot fail.
            let _ = nix::sys::prctl::set_dumpable(true);
        }
    }
}
