//! What a thread asks of the scheduler.

/// This thread runs with what others leave of the processor.
pub fn yield_to_others() {
    // On Linux a thread's id names the thread alone; where it is refused, the thread is no less right.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
}
