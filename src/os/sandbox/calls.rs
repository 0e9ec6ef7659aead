//! Which system calls an internal process may still make: an allowlist each, by seccomp(2). What is not on
//! it fails with `EPERM`, so that a call which a later libc makes is an error of that call, not the end of
//! the process.

use std::{collections::BTreeMap, env::consts::ARCH, io};

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

/// Whose calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    /// Reads and writes what it has: sockets that it accepts, its channels, memory.
    Listener,
    /// Files and threads beside what every process needs.
    Logger,
    /// That, and connections to anywhere.
    Courier,
}

impl Calls {
    pub(super) fn connect(self) -> bool {
        self == Self::Courier
    }
}

/// Memory, time, signals, waiting and descriptors that are there: what every process needs.
const COMMON: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getrlimit,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

const LISTENER: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_memfd_create,
    libc::SYS_setsockopt,
];

/// Names are looked up by libc, with whatever libraries and sockets the machine is set up for.
const COURIER: &[c_long] = &[
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvmmsg,
    libc::SYS_sendmmsg,
    libc::SYS_setsockopt,
    libc::SYS_socket,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// With threads, and with files where Landlock lets it.
const LOGGER: &[c_long] = &[
    libc::SYS_copy_file_range,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_getdents64,
    libc::SYS_getpriority,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setattr,
    libc::SYS_sendfile,
    libc::SYS_set_tid_address,
    libc::SYS_setpriority,
    libc::SYS_setrlimit,
    libc::SYS_signalfd4,
    libc::SYS_splice,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// The bits of a socket's type that are no flags (SOCK_TYPE_MASK of linux/net.h).
const SOCKET_TYPE: u64 = 0xf;

/// Forbids every other call to this thread and those that it starts. False where this machine has no seccomp.
///
/// # Errors
/// When the kernel has it and refuses it.
pub(super) fn allow(calls: Calls) -> io::Result<bool> {
    let Ok(arch) = TargetArch::try_from(ARCH) else { return Ok(false) };
    if !has_seccomp() {
        return Ok(false);
    }
    if calls != Calls::Listener {
        // Its flags are in memory, which no filter can read: where it is not known, libc takes clone(2).
        let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        install(unknown, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS.unsigned_abs()), arch)?;
    }
    let rules = rules(calls).map_err(io::Error::other)?;
    install(rules, SeccompAction::Errno(libc::EPERM.unsigned_abs()), SeccompAction::Allow, arch)?;
    Ok(true)
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

fn rules(calls: Calls) -> Result<Rules, seccompiler::BackendError> {
    let more: &[&[c_long]] = match calls {
        Calls::Listener => &[COMMON, LISTENER],
        Calls::Logger => &[COMMON, LOGGER],
        Calls::Courier => &[COMMON, LOGGER, COURIER],
    };
    let mut rules: Rules = more.iter().copied().flatten().map(|call| (*call, Vec::new())).collect();
    let is = |argument, length, operation, value| SeccompCondition::new(argument, length, operation, value);
    let when = |argument, length, operation, value| SeccompRule::new(vec![is(argument, length, operation, value)?]);
    let bits = |bits: i32| u64::from(bits.unsigned_abs());
    // Nothing that was written becomes a program.
    let not_exec = SeccompCmpOp::MaskedEq(bits(libc::PROT_EXEC));
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let rule = when(2, SeccompCmpArgLen::Dword, not_exec.clone(), 0)?;
        // libc maps libraries to look names up.
        rules.insert(call, if calls.connect() { Vec::new() } else { vec![rule] });
    }
    // A pair of streams is connected to itself for good; one of datagrams sends to any path it is told.
    let unix = is(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, bits(libc::AF_UNIX))?;
    let stream = is(1, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(SOCKET_TYPE), bits(libc::SOCK_STREAM))?;
    rules.insert(libc::SYS_socketpair, vec![SeccompRule::new(vec![unix, stream])?]);
    // abort(3): to oneself.
    let own = when(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(std::process::id()))?;
    rules.insert(libc::SYS_tgkill, vec![own]);
    if calls != Calls::Listener {
        let thread = SeccompCmpOp::MaskedEq(bits(libc::CLONE_THREAD));
        rules.insert(libc::SYS_clone, vec![when(0, SeccompCmpArgLen::Dword, thread, bits(libc::CLONE_THREAD))?]);
        rules.insert(libc::SYS_clone3, Vec::new());
    }
    Ok(rules)
}

fn install(rules: Rules, others: SeccompAction, these: SeccompAction, arch: TargetArch) -> io::Result<()> {
    let filter = SeccompFilter::new(rules, others, these, arch).map_err(io::Error::other)?;
    let program = BpfProgram::try_from(filter).map_err(io::Error::other)?;
    apply_filter(&program).map_err(io::Error::other)
}

/// Asks for the mode, which a kernel without it does not know (prctl(2)).
fn has_seccomp() -> bool {
    // SAFETY: takes no pointer.
    let mode = unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) };
    mode >= 0
}
