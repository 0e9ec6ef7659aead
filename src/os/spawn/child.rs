//! What the child does between clone and exec, in the order of DESIGN.md section 5.
//!
//! It runs in the memory of its parent, beside the parent's threads: so it allocates
//! nothing, takes no lock, cannot panic, and calls the kernel only (the C library's setuid signals
//! all threads).

use std::{
    convert::Infallible,
    ffi::{CString, c_char, c_int, c_void},
    os::fd::RawFd,
    time::Duration,
};

use super::{
    Credentials,
    raw::{self, Errno},
};
use crate::os::{
    record::{self, DIGITS, RECORD_SIZE},
    threads,
};

/// The longest wait at a gate: its spawner waits too.
pub(super) const GATE: Duration = Duration::from_millis(50);

/// Everything the child needs, made before it is.
pub(super) struct Plan {
    pub program: *const c_char,
    pub argv: Vec<*const c_char>,
    pub envp: Vec<*const c_char>,
    /// What `envp` points to besides the spec's.
    pub pid_env: Vec<PidEntry>,
    pub directory: CString,
    /// Descriptors above this one are the parent's alone.
    pub last_slot: RawFd,
    /// From slot to the child's number.
    pub moves: Vec<(RawFd, RawFd)>,
    /// The highest of the child's numbers.
    pub highest: RawFd,
    /// What is to be closed at last, the slots included.
    pub gaps: Vec<(u32, u32)>,
    /// Slot of the run record.
    pub record: Option<RawFd>,
    pub record_tail: String,
    /// Slot of the gate.
    pub gate: Option<RawFd>,
    /// Slots of the `cgroup.procs` that the child enters by itself: clone can place it in one only.
    pub procs: Vec<RawFd>,
    pub credentials: Option<Credentials>,
    /// The signals that are ignored, where all the others are the default's already; `None`: nobody knows.
    pub ignored: Option<Vec<c_int>>,
    pub limits: Vec<(u32, libc::rlimit64)>,
    /// Where it is another than ours.
    pub oom_score_adj: Option<(String, bool)>,
    /// With both: fail where it cannot be had?
    pub nice: (c_int, bool),
    pub umask: u32,
    /// All that it keeps, or is given.
    pub capabilities: Option<u64>,
    pub no_new_privs: bool,
    /// Die with this process.
    pub parent: Option<libc::pid_t>,
    /// What the child tells its parent.
    pub failure: Option<Failure>,
}

/// `NAME=` and room for a pid, null-terminated at every moment.
pub(super) struct PidEntry {
    text: Box<[u8]>,
    /// Where the value begins.
    value: usize,
}

impl PidEntry {
    pub(super) fn new(name: &str) -> Self {
        let mut text = format!("{name}=").into_bytes();
        let value = text.len();
        text.resize(value + DIGITS + 1, 0);
        Self { text: text.into(), value }
    }

    pub(super) fn as_ptr(&self) -> *const c_char {
        self.text.as_ptr().cast()
    }

    fn fill(&mut self, pid: u64) {
        let mut digits = [0; DIGITS];
        let places = self.text.iter_mut().skip(self.value);
        places.zip(record::decimal(pid, &mut digits)).for_each(|(to, from)| *to = *from);
    }
}

/// What the child was at when it failed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Descriptors,
    Cgroup,
    Session,
    OomScore,
    Nice,
    Limit(u32),
    Groups,
    Gid,
    Uid,
    Directory,
    Capabilities,
    NoNewPrivileges,
    DeathSignal,
    Record,
    Execute,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Failure {
    pub step: Step,
    pub errno: c_int,
}

trait At<T> {
    fn at(self, step: Step) -> Result<T, Failure>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, step: Step) -> Result<T, Failure> {
        self.map_err(|Errno(errno)| Failure { step, errno })
    }
}

/// The child's first and last function; `plan` is the parent's [`Plan`], which it does not touch meanwhile.
pub(super) extern "C" fn enter(plan: *mut c_void) -> ! {
    // SAFETY: `Running` leaves the plan to us until we are gone.
    let plan = unsafe { &mut *plan.cast::<Plan>() };
    let Err(failure) = live(plan);
    plan.failure = Some(failure);
    raw::exit(127)
}

fn live(plan: &mut Plan) -> Result<Infallible, Failure> {
    part_descriptors(plan).at(Step::Descriptors)?;
    for procs in &plan.procs {
        raw::write(*procs, b"0").at(Step::Cgroup)?;
    }
    raw::setsid().at(Step::Session)?;
    limit(plan)?;
    become_user(plan)?;
    raw::umask(plan.umask);
    raw::chdir(&plan.directory).at(Step::Directory)?;
    if let Some(set) = plan.capabilities {
        raw::set_capabilities(set).at(Step::Capabilities)?;
    }
    if plan.no_new_privs {
        raw::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).at(Step::NoNewPrivileges)?;
    }
    for &(slot, number) in &plan.moves {
        raw::dup2(slot, number).at(Step::Descriptors)?;
    }
    if let Some(parent) = plan.parent {
        die_with(parent).at(Step::DeathSignal)?;
    }
    if let Some(slot) = plan.record {
        note(slot, &plan.record_tail).at(Step::Record)?;
    }
    if let Some(gate) = plan.gate {
        raw::wait_for_hangup(gate, GATE);
    }
    // The turns are the spawner's until here, so that its child gets to run.
    threads::run_in_usual_turns();
    for &(first, last) in &plan.gaps {
        raw::close_range(first, last, 0).at(Step::Descriptors)?;
    }
    plan.pid_env.iter_mut().for_each(|entry| entry.fill(own_pid()));
    match &plan.ignored {
        Some(signals) => signals.iter().for_each(|signal| raw::default_disposition(*signal)),
        None => (1..=raw::SIGNALS).for_each(raw::default_disposition),
    }
    raw::set_mask(0);
    raw::execve(plan.program, &plan.argv, &plan.envp).at(Step::Execute)
}

/// Leaves the parent's descriptor table for one of our own, in which no slot stands in the way of a
/// number to come. Done first, and before a limit on their number holds.
fn part_descriptors(plan: &mut Plan) -> Result<(), Errno> {
    let above = plan.last_slot.unsigned_abs().saturating_add(1);
    raw::close_range(above, u32::MAX, libc::CLOSE_RANGE_UNSHARE)?;
    let slots = plan.moves.iter_mut().map(|(slot, _)| slot);
    for slot in slots.chain(&mut plan.record).chain(&mut plan.gate).chain(&mut plan.procs) {
        if *slot <= plan.highest {
            *slot = raw::dup_above(*slot, plan.highest)?;
        }
    }
    Ok(())
}

fn limit(plan: &Plan) -> Result<(), Failure> {
    // Not under root what we inherited can often not be lowered: then it stays, unless it must not.
    let permitted = |result: Result<(), Errno>, insist: bool| match result {
        Err(Errno(libc::EACCES | libc::EPERM)) if !insist => Ok(()),
        other => other,
    };
    if let Some((score, insist)) = &plan.oom_score_adj {
        permitted(raw::write_file(c"/proc/self/oom_score_adj", score.as_bytes()), *insist).at(Step::OomScore)?;
    }
    let (nice, insist) = plan.nice;
    permitted(raw::set_nice(nice), insist).at(Step::Nice)?;
    for (resource, limit) in &plan.limits {
        raw::set_limit(*resource, limit).at(Step::Limit(*resource))?;
    }
    let Some(set) = plan.capabilities else { return Ok(()) };
    raw::bound_capabilities(set).at(Step::Capabilities)?;
    // Else they go with the change of uid.
    if set == 0 { Ok(()) } else { raw::prctl(libc::PR_SET_KEEPCAPS, 1).at(Step::Capabilities) }
}

fn become_user(plan: &Plan) -> Result<(), Failure> {
    let Some(credentials) = &plan.credentials else { return Ok(()) };
    raw::setgroups(&credentials.groups).at(Step::Groups)?;
    raw::setresgid(credentials.gid).at(Step::Gid)?;
    raw::setresuid(credentials.uid).at(Step::Uid)
}

/// The signal comes from now on only: a parent that is gone already would be missed.
fn die_with(parent: libc::pid_t) -> Result<(), Errno> {
    raw::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)?;
    if raw::getppid() == parent { Ok(()) } else { Err(Errno(libc::ESRCH)) }
}

fn own_pid() -> u64 {
    u64::from(raw::getpid().unsigned_abs())
}

/// One write of a fixed length, so that a record is never half of one and half of another.
fn note(slot: RawFd, tail: &str) -> Result<(), Errno> {
    let mut line = [b' '; RECORD_SIZE];
    if !record::fill(&mut line, own_pid(), raw::clock_ticks()?, tail.as_bytes()) {
        return Err(Errno(libc::EINVAL));
    }
    raw::write_at_start(slot, &line)
}
