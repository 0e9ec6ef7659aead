//! What a thread asks of the scheduler.

use std::{ptr, time::Duration};

use super::call::call;

/// For who has little to do, and others wait for it.
pub const SHORT: Duration = Duration::from_micros(100);
/// For who has much to do, and nobody waits for it. Longer than the kernel's own, which is 3 ms at most; whoever
/// yields waits for so long where others would run.
pub const LONG: Duration = Duration::from_millis(5);
/// So much nicer has about a third of the weight (sched(7)): enough to go on where all processors are busy, as others
/// may come to wait for a lock that it has.
const A_THIRD: i32 = 5;

/// This thread runs with what others leave of the processor.
pub fn yield_to_others() {
    // On Linux a thread's id names the thread alone; where it is refused, the thread is no less right.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
}

/// How long this thread runs at a stretch while others wait: who is woken and has a shorter turn goes first
/// (Linux 6.12 and newer; older ones give every thread the same). `inherited`: by threads and processes that
/// it starts.
pub fn run_in_turns_of(turn: Duration, inherited: bool) {
    let flags = if inherited { 0 } else { libc::SCHED_FLAG_RESET_ON_FORK };
    // Refused or not known, the thread is no less right.
    let _ = set(libc::SCHED_OTHER, turn, flags, 0);
}

/// This thread never takes the processor from one that runs because it has something to do again, has a third of what
/// others have where they want it too, and runs long at a stretch where nobody does: for who works all the time for
/// nobody who waits.
pub fn run_in_batches() {
    // Refused or not known, the thread is no less right.
    let _ = set(libc::SCHED_BATCH, LONG, libc::SCHED_FLAG_RESET_ON_FORK, A_THIRD);
}

/// Turns as long as the kernel likes. Neither allocates nor panics: a child calls it before exec.
pub(super) fn run_in_usual_turns() {
    let _ = set(libc::SCHED_OTHER, Duration::ZERO, 0, 0);
}

/// For whoever runs by the usual policy: this one, in turns of so long, and so much nicer. Who runs by another,
/// since somebody wanted it so, keeps that.
fn set(policy: libc::c_int, turn: Duration, flags: libc::c_int, nicer: i32) -> bool {
    // SAFETY: takes no pointer.
    if unsafe { call!(SYS_sched_getscheduler, 0) } != libc::c_long::from(libc::SCHED_OTHER) {
        return false;
    }
    // SAFETY: plain integers, for all of which zero is good.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    attr.size = size_of::<libc::sched_attr>() as u32;
    attr.sched_policy = policy.unsigned_abs();
    attr.sched_flags = flags.unsigned_abs().into();
    attr.sched_runtime = u64::try_from(turn.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: takes no pointer. The kernel returns 20 less the nice value, so that it is no error number.
    let kept = unsafe { call!(SYS_getpriority, libc::PRIO_PROCESS, 0) };
    attr.sched_nice = i32::try_from(20i64.wrapping_sub(kept)).unwrap_or(0).saturating_add(nicer).min(19);
    // SAFETY: the attributes are valid and say their size; 0 is the calling thread.
    unsafe { call!(SYS_sched_setattr, 0, ptr::from_ref(&attr), 0) == 0 }
}
