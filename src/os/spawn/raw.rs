//! System calls as the kernel has them, for the child and for those around its birth. They allocate
//! nothing and go past the C library, which would act on all threads (setxid), keep signals back, or
//! write `errno`, which is the parent's.

use std::{
    ffi::{CStr, c_char, c_int, c_long, c_uint},
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    ptr,
    sync::atomic::AtomicU32,
    time::Duration,
};

use crate::os::call::call;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("32-bit Linux has other calls for 32-bit uids");

/// Signals are numbered from 1 to this; the kernel's set of them has as many bits.
pub(super) const SIGNALS: c_int = 64;
const SET_SIZE: usize = 8;

/// An error number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::os) struct Errno(pub c_int);

fn checked(result: c_long) -> Result<c_long, Errno> {
    if result >= 0 { Ok(result) } else { Err(Errno(c_int::try_from(-result).unwrap_or(libc::EINVAL))) }
}

fn descriptor(result: c_long) -> RawFd {
    RawFd::try_from(result).unwrap_or(-1)
}

pub(super) fn exit(status: c_int) -> ! {
    loop {
        // SAFETY: takes no pointer; runs no handler of the shared memory.
        unsafe { call!(SYS_exit_group, status) };
    }
}

pub(super) fn close_range(first: c_uint, last: c_uint, flags: c_uint) -> Result<(), Errno> {
    // SAFETY: takes no pointer; the child's own descriptors are owned by nothing in its program.
    checked(unsafe { call!(SYS_close_range, first, last, flags) }).map(drop)
}

/// A copy numbered above `number`, closed at exec.
pub(super) fn dup_above(fd: RawFd, number: RawFd) -> Result<RawFd, Errno> {
    // SAFETY: takes no pointer.
    let copy = unsafe { call!(SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, number.saturating_add(1)) };
    checked(copy).map(descriptor)
}

/// A copy under `number` that stays open over exec.
pub(super) fn dup2(fd: RawFd, number: RawFd) -> Result<(), Errno> {
    // SAFETY: takes no pointer.
    checked(unsafe { call!(SYS_dup3, fd, number, 0) }).map(drop)
}

/// In the parent: makes `slot`, which must be ours, another descriptor for `fd`.
pub(super) fn dup3(fd: RawFd, slot: RawFd) -> io::Result<()> {
    // SAFETY: takes no pointer; the slot stays open, so that its owner's promise holds.
    if unsafe { libc::dup3(fd, slot, libc::O_CLOEXEC) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(super) fn write(fd: RawFd, bytes: &[u8]) -> Result<(), Errno> {
    // SAFETY: the buffer is valid for its length.
    let written = checked(unsafe { call!(SYS_write, fd, bytes.as_ptr(), bytes.len()) })?;
    if usize::try_from(written) == Ok(bytes.len()) { Ok(()) } else { Err(Errno(libc::EIO)) }
}

pub(super) fn write_at_start(fd: RawFd, bytes: &[u8]) -> Result<(), Errno> {
    // SAFETY: the buffer is valid for its length.
    let written = checked(unsafe { call!(SYS_pwrite64, fd, bytes.as_ptr(), bytes.len(), 0) })?;
    if usize::try_from(written) == Ok(bytes.len()) { Ok(()) } else { Err(Errno(libc::EIO)) }
}

fn open(path: &CStr, flags: c_int) -> Result<RawFd, Errno> {
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: the path is null-terminated.
    let fd = unsafe { call!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0) };
    checked(fd).map(descriptor)
}

fn close(fd: RawFd) {
    // SAFETY: takes no pointer; the callers have just opened it.
    unsafe { call!(SYS_close, fd) };
}

pub(super) fn write_file(path: &CStr, bytes: &[u8]) -> Result<(), Errno> {
    let fd = open(path, libc::O_WRONLY)?;
    let written = write(fd, bytes);
    close(fd);
    written
}

/// The time since boot, in the unit of a start time in `/proc/<pid>/stat`: hundredths of a second (proc(5)).
pub(super) fn clock_ticks() -> Result<u64, Errno> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is valid for writing.
    checked(unsafe { call!(SYS_clock_gettime, libc::CLOCK_BOOTTIME, ptr::from_mut(&mut time)) })?;
    Ok(time.tv_sec.unsigned_abs() * 100 + time.tv_nsec.unsigned_abs() / 10_000_000)
}

/// Returns when nobody has the other end of this pipe open any more, or the time is over. What goes wrong is no
/// reason not to go on.
pub(super) fn wait_for_hangup(pipe: RawFd, at_most: Duration) {
    let mut watched = libc::pollfd { fd: pipe, events: 0, revents: 0 };
    let mut left = libc::timespec { tv_sec: 0, tv_nsec: at_most.subsec_nanos().into() };
    let (no_mask, place) = (ptr::null::<u64>(), ptr::from_mut(&mut watched));
    // SAFETY: one descriptor's entry and a time, both valid for writing; no mask is given.
    unsafe { call!(SYS_ppoll, place, 1, ptr::from_mut(&mut left), no_mask, SET_SIZE) };
}

pub(super) fn setsid() -> Result<(), Errno> {
    // SAFETY: takes no pointer.
    checked(unsafe { call!(SYS_setsid) }).map(drop)
}

pub(super) fn getpid() -> libc::pid_t {
    // SAFETY: takes no pointer. (The C library might remember the parent's.)
    descriptor(unsafe { call!(SYS_getpid) })
}

pub(super) fn getppid() -> libc::pid_t {
    // SAFETY: takes no pointer.
    descriptor(unsafe { call!(SYS_getppid) })
}

pub(super) fn set_nice(nice: c_int) -> Result<(), Errno> {
    // SAFETY: takes no pointer.
    checked(unsafe { call!(SYS_setpriority, libc::PRIO_PROCESS, 0, nice) }).map(drop)
}

pub(super) fn set_limit(resource: c_uint, limit: &libc::rlimit64) -> Result<(), Errno> {
    let nothing = ptr::null_mut::<libc::rlimit64>();
    // SAFETY: the limit is valid, and the old one is not asked for.
    checked(unsafe { call!(SYS_prlimit64, 0, resource, ptr::from_ref(limit), nothing) }).map(drop)
}

pub(super) fn setgroups(groups: &[libc::gid_t]) -> Result<(), Errno> {
    // SAFETY: the list is valid for its length.
    checked(unsafe { call!(SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

pub(super) fn setresgid(gid: libc::gid_t) -> Result<(), Errno> {
    // SAFETY: takes no pointer.
    checked(unsafe { call!(SYS_setresgid, gid, gid, gid) }).map(drop)
}

pub(super) fn setresuid(uid: libc::uid_t) -> Result<(), Errno> {
    // SAFETY: takes no pointer.
    checked(unsafe { call!(SYS_setresuid, uid, uid, uid) }).map(drop)
}

pub(super) fn umask(mask: libc::mode_t) {
    // SAFETY: takes no pointer; cannot fail.
    unsafe { call!(SYS_umask, mask) };
}

pub(super) fn chdir(path: &CStr) -> Result<(), Errno> {
    // SAFETY: the path is null-terminated.
    checked(unsafe { call!(SYS_chdir, path.as_ptr()) }).map(drop)
}

/// For operations with one number.
pub(super) fn prctl(operation: c_int, argument: c_int) -> Result<(), Errno> {
    // SAFETY: the operations used here take numbers, no pointers.
    checked(unsafe { call!(SYS_prctl, operation, c_long::from(argument), 0, 0, 0) }).map(drop)
}

/// Nobody can be given a capability by exec that is not in the bounding set. Only root may shrink it;
/// others without capabilities and with no_new_privs get none either.
pub(in crate::os) fn bound_capabilities(keep: u64) -> Result<(), Errno> {
    for capability in (0..=63).filter(|capability| keep & (1 << capability) == 0) {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            // The kernel knows fewer, or we may not.
            Err(Errno(libc::EINVAL | libc::EPERM)) => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

/// Makes this the effective, permitted, inheritable and ambient set. The ambient one lets a program
/// that an ordinary user executes have them.
pub(in crate::os) fn set_capabilities(set: u64) -> Result<(), Errno> {
    /// `_LINUX_CAPABILITY_VERSION_3`, of ourselves.
    const HEADER: [u32; 2] = [0x2008_0522, 0];
    const RAISE: c_int = libc::PR_CAP_AMBIENT_RAISE;
    let mut header = HEADER;
    let [low, high] = [set & 0xFFFF_FFFF, set >> 32].map(|half| half as u32);
    let sets = [low, low, low, high, high, high];
    // SAFETY: version 3 takes a header of two words and two sets of three words; it may write to the header.
    checked(unsafe { call!(SYS_capset, header.as_mut_ptr(), sets.as_ptr()) })?;
    // What was ambient before and is inheritable no more went with that.
    for capability in (0..=63).filter(|capability: &c_long| set & (1 << *capability) != 0) {
        // SAFETY: takes no pointer.
        checked(unsafe { call!(SYS_prctl, libc::PR_CAP_AMBIENT, RAISE, capability, 0, 0) })?;
    }
    Ok(())
}

/// The kernel's `struct sigaction`; the same bytes mean `SIG_DFL` wherever restorer and mask stand.
#[repr(C)]
struct KernelAction([u64; 4]);

/// The signal does what it does by default.
pub(super) fn default_disposition(signal: c_int) {
    const DEFAULT: KernelAction = KernelAction([0; 4]);
    let (new, nothing) = (ptr::from_ref(&DEFAULT), ptr::null_mut::<KernelAction>());
    // SAFETY: the action is valid, and the old one is not asked for. KILL and STOP are refused, rightly.
    unsafe { call!(SYS_rt_sigaction, signal, new, nothing, SET_SIZE) };
}

/// In the parent: is the signal ignored, as stays so over exec?
pub(super) fn is_ignored(signal: c_int) -> bool {
    let mut action = KernelAction([0; 4]);
    let (nothing, old) = (ptr::null::<KernelAction>(), ptr::from_mut(&mut action));
    // SAFETY: no new action is set, and the old one fits.
    let asked = unsafe { call!(SYS_rt_sigaction, signal, nothing, old, SET_SIZE) };
    // The handler is the first word wherever restorer and mask stand.
    asked == 0 && action.0[0] == libc::SIG_IGN as u64
}

/// Blocks every signal, those of the C library included; returns the mask before.
pub(super) fn block_signals() -> u64 {
    let (all, mut before) = (u64::MAX, 0u64);
    // SAFETY: both sets have the size given.
    unsafe { call!(SYS_rt_sigprocmask, libc::SIG_SETMASK, ptr::from_ref(&all), ptr::from_mut(&mut before), SET_SIZE,) };
    before
}

pub(super) fn set_mask(mask: u64) {
    let nothing = ptr::null_mut::<u64>();
    // SAFETY: the set has the size given, and the old one is not asked for.
    unsafe {
        call!(SYS_rt_sigprocmask, libc::SIG_SETMASK, ptr::from_ref(&mask), nothing, SET_SIZE);
    }
}

/// Returns only if it failed. The lists must end with null, and everything must be valid.
pub(super) fn execve(
    program: *const c_char,
    argv: &[*const c_char],
    envp: &[*const c_char],
) -> Result<std::convert::Infallible, Errno> {
    // SAFETY: `Plan::new` took the pointers from texts that live until we are gone, and ended the lists with null.
    let failed = unsafe { call!(SYS_execve, program, argv.as_ptr(), envp.as_ptr()) };
    Err(checked(failed).err().unwrap_or(Errno(libc::EINVAL)))
}

/// In the parent: waits until the kernel has set this to zero for a child that leaves our memory, and has told whoever
/// waits for it (`CLONE_CHILD_CLEARTID`, clone(2)), or something else has happened; false when the time is over.
pub(super) fn wait_while(flag: &AtomicU32, value: u32, at_most: Option<Duration>) -> bool {
    let time = at_most.map(|time| libc::timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    });
    let time = time.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the word is valid and aligned, and the time too where one is given. The kernel wakes those only that
    // share the word with other processes, hence no FUTEX_PRIVATE_FLAG.
    let waited = unsafe { call!(SYS_futex, flag.as_ptr(), libc::FUTEX_WAIT, value, time) };
    waited != -c_long::from(libc::ETIMEDOUT)
}

/// In the parent: waits for a child that ended before exec; false when it did execute its program.
pub(super) fn reap_unexecuted(pidfd: &OwnedFd) -> bool {
    loop {
        // SAFETY: plain data, for which zero is good.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = pidfd.as_raw_fd().unsigned_abs();
        // SAFETY: the info is valid for writing.
        let result = unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED | libc::__WCLONE) };
        if result == 0 {
            return true;
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return false;
        }
    }
}
