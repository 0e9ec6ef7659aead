//! How the child comes to be: clone3 on a stack of its own, `clone` where that is refused.

use std::{
    ffi::{c_int, c_long, c_void},
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use super::{
    Spawned,
    child::{self, Failure, Plan},
    raw,
};

/// The child calls a few frames deep and keeps one small buffer; unoptimised frames are larger.
const STACK: usize = 64 * 1024;
/// Below the stack, never accessible: an overflow ends the child, not us.
const GUARD: usize = 64 * 1024;

/// Shared memory and descriptors; a word becomes zero when it executes its program or ends (clone(2)).
const FLAGS: c_int = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_PIDFD | libc::CLONE_CHILD_CLEARTID | BY_LIBC;
/// Where the child's calls go through the C library it uses our `errno`, so that we have to sleep meanwhile.
const BY_LIBC: c_int = if cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) { 0 } else { libc::CLONE_VFORK };

/// What a child writes into its `oom_score_adj` the kernel writes into those of all that it shares its memory with,
/// us among them, unless somebody sleeps until it has its own.
fn flags(plan: &Plan) -> c_int {
    if plan.oom_score_adj.is_some() { FLAGS | libc::CLONE_VFORK } else { FLAGS }
}

/// `CLONE_INTO_CGROUP`, which libc declares too narrow.
const INTO_CGROUP: u64 = 0x2_0000_0000;
/// `CLONE_CLEAR_SIGHAND`, for clone3 alone: no handler of ours in the child. What is ignored stays so.
const CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// The child's stack, for one at a time.
pub(super) struct Stack {
    lowest: *mut c_void,
}

// SAFETY: the memory belongs to this value alone, whichever thread holds it.
unsafe impl Send for Stack {}

impl Stack {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let lowest = unsafe {
            libc::mmap(
                ptr::null_mut(),
                GUARD + STACK,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if lowest == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self { lowest };
        // SAFETY: the range lies within the mapping made above.
        if unsafe { libc::mprotect(stack.start(), STACK, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }

    fn start(&self) -> *mut c_void {
        // SAFETY: within the mapping of GUARD + STACK bytes.
        unsafe { self.lowest.byte_add(GUARD) }
    }

    fn end(&self) -> *mut c_void {
        // SAFETY: one past the end of the mapping of GUARD + STACK bytes.
        unsafe { self.lowest.byte_add(GUARD + STACK) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no child uses it: whoever has one keeps its spawner until it has left.
        unsafe { libc::munmap(self.lowest, GUARD + STACK) };
    }
}

/// A child's plan and what tells whether it still uses that; both are its own until then.
pub(super) struct Running {
    plan: NonNull<Plan>,
    /// The kernel sets it to zero, and wakes whoever waits for that.
    flag: NonNull<AtomicU32>,
}

// SAFETY: both belong to this value alone once the child has left, and are not touched before; what the plan
// points to lives in its spec, whichever thread holds that.
unsafe impl Send for Running {}

impl Running {
    /// Makes a child that carries out `plan`. All signals of this thread must be blocked; stack and spec must be
    /// left alone until [`Running::end`].
    pub(super) fn start(stack: &Stack, plan: Plan, cgroup: Option<RawFd>, clone3: bool) -> io::Result<(Spawned, Self)> {
        let flags = flags(&plan);
        let running = Self { plan: leak(plan), flag: leak(AtomicU32::new(1)) };
        match running.clone(stack, flags, cgroup, clone3) {
            Ok(spawned) => Ok((spawned, running)),
            Err(error) => {
                // There is no child that would use anything.
                running.flag().store(0, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    fn clone(&self, stack: &Stack, flags: c_int, cgroup: Option<RawFd>, clone3: bool) -> io::Result<Spawned> {
        let mut pidfd: RawFd = -1;
        let (plan, flag) = (self.plan.as_ptr().cast::<c_void>(), self.flag.as_ptr());
        let pid = if clone3 {
            by_clone3(stack, flags, (plan, flag), cgroup, &mut pidfd)?
        } else {
            let (told, no_tls) = (ptr::from_mut(&mut pidfd), ptr::null_mut::<c_void>());
            // SAFETY: as in `by_clone3`; glibc's wrapper calls `child::enter` on the given stack.
            let pid = unsafe { libc::clone(enter_by_clone, stack.end(), flags, plan, told, no_tls, flag) };
            if pid < 0 {
                return Err(io::Error::last_os_error());
            }
            c_long::from(pid)
        };
        // SAFETY: the kernel has made this descriptor for us in this very call.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Spawned { pid: pid.unsigned_abs().try_into().unwrap_or(u32::MAX), pidfd })
    }

    /// Waits until the child has executed its program or ended; what it said before that.
    pub(super) fn end(self) -> Option<Failure> {
        self.wait(None);
        // SAFETY: the child has left, and nobody else knows the plan.
        unsafe { self.plan.as_ref() }.failure
    }

    /// No longer than so, where that is said.
    pub(super) fn wait(&self, at_most: Option<Duration>) {
        while !self.is_over() && raw::wait_while(self.flag(), 1, at_most) {}
    }

    pub(super) fn is_over(&self) -> bool {
        self.flag().load(Ordering::Acquire) == 0
    }

    fn flag(&self) -> &AtomicU32 {
        // SAFETY: it lives as long as we do, and only atomic writes are made to it.
        unsafe { self.flag.as_ref() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.wait(None);
        // SAFETY: both came from boxes, and the child, which was told of them, has left.
        drop(unsafe { (Box::from_raw(self.plan.as_ptr()), Box::from_raw(self.flag.as_ptr())) });
    }
}

fn leak<T>(value: T) -> NonNull<T> {
    NonNull::from(Box::leak(Box::new(value)))
}

extern "C" fn enter_by_clone(plan: *mut c_void) -> c_int {
    child::enter(plan)
}

fn by_clone3(
    stack: &Stack,
    flags: c_int,
    (plan, flag): (*mut c_void, *mut AtomicU32),
    cgroup: Option<RawFd>,
    pidfd: &mut RawFd,
) -> io::Result<c_long> {
    // SAFETY: plain integers, for all of which zero is good.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(flags.unsigned_abs()) | CLEAR_SIGHAND;
    args.pidfd = ptr::from_mut(pidfd).addr() as u64;
    args.child_tid = flag.addr() as u64;
    args.stack = stack.start().addr() as u64;
    args.stack_size = STACK as u64;
    if let Some(folder) = cgroup {
        args.flags |= INTO_CGROUP;
        args.cgroup = u64::from(folder.unsigned_abs());
    }
    // SAFETY: the stack is mapped, aligned and used by nobody else; plan and flag outlive the child's use of
    // them, since `Running` frees them only then; `child::enter` neither returns nor unwinds, allocates nothing
    // and calls the kernel only.
    let pid = unsafe { clone3(&raw mut args, plan) };
    if pid < 0 { Err(io::Error::from_raw_os_error(i32::try_from(-pid).unwrap_or(libc::EINVAL))) } else { Ok(pid) }
}

/// The C library has no wrapper: the child must leave the system call straight into its own frame,
/// as there is nothing on its stack to return to.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(args: *mut libc::clone_args, plan: *mut c_void) -> c_long {
    let result: c_long;
    // SAFETY: the caller vouches for args and plan. The parent goes on behind the label with only the
    // registers changed that are named; the child has registers and a stack of its own.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") args,
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") child::enter as extern "C" fn(*mut c_void) -> !,
            in("r13") plan,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// As above.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3(args: *mut libc::clone_args, plan: *mut c_void) -> c_long {
    let result: c_long;
    // SAFETY: as above.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x30, xzr",
            "mov x0, x20",
            "blr x21",
            "brk 1",
            "2:",
            inlateout("x0") args => result,
            in("x1") size_of::<libc::clone_args>(),
            in("x8") libc::SYS_clone3,
            in("x20") plan,
            in("x21") child::enter as extern "C" fn(*mut c_void) -> !,
            lateout("x30") _,
        );
    }
    result
}

/// Elsewhere `clone` serves.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn clone3(_: *mut libc::clone_args, _: *mut c_void) -> c_long {
    -c_long::from(libc::ENOSYS)
}
