//! The thread that starts processes: the only one that ever waits for an exec. Jobs and internal
//! processes die with it, so it lives as long as the process. While it hangs, as on a file system that
//! does not answer, others beside it start instances, whose lives hang on no thread.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::event::{Event, Events};
use crate::os::{
    mask::with_all_blocked,
    spawn::{SpawnSpec, Spawner},
    threads,
};

/// Orders that wait for so long, while none is carried out, wait for something that hangs.
const HANGS: Duration = Duration::from_secs(1);
/// An order that is expected comes within this time. A halted processor takes a good part of it to wake up.
const AT_ONCE: Duration = Duration::from_micros(150);
/// The loop hears of a process so much later, as it would run where that takes its first steps.
const FIRST_STEPS: Duration = Duration::from_micros(500);
/// Orders that there is room for while none waits.
const FEW: usize = 16;
/// Threads beside the first at most: each may hang too.
const MOST_BESIDE: usize = 8;

/// Orders for the threads.
pub struct Spawning {
    queue: Arc<Queue>,
    events: Events,
    /// Orders without an answer.
    open: usize,
    /// When one was last answered, or given while there were none.
    moved: Instant,
}

#[derive(Default)]
struct Queue {
    inner: Mutex<Orders>,
    more: Condvar,
    /// Orders that were given, ever. Changed with `inner` locked.
    given: AtomicUsize,
    /// The processor on which the first thread waits.
    processor: AtomicUsize,
}

#[derive(Default)]
struct Orders {
    waiting: VecDeque<(u64, SpawnSpec)>,
    /// One is likely to come at once.
    expected: bool,
    /// The loop waits for the last answer.
    awaited: bool,
    /// Threads beside the first.
    beside: usize,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next order; waits for it. `rehearse`: what to do before one that is expected.
    fn next(&self, mut rehearse: impl FnMut()) -> (u64, SpawnSpec) {
        let mut orders = self.lock();
        loop {
            let expected = std::mem::take(&mut orders.expected);
            if let Some(order) = orders.waiting.pop_front() {
                return order;
            }
            // The start of a thousand apps leaves no room for a thousand.
            orders.waiting.shrink_to(FEW);
            if expected {
                let given = self.given.load(Ordering::Relaxed);
                drop(orders);
                rehearse();
                self.watch(given);
                orders = self.lock();
            } else {
                self.processor.store(threads::processor(), Ordering::Relaxed);
                orders = self.more.wait(orders).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Stays awake until there is one more order than these, for a while at most.
    fn watch(&self, given: usize) {
        let begun = Instant::now();
        while self.given.load(Ordering::Relaxed) == given && begun.elapsed() < AT_ONCE {
            std::hint::spin_loop();
        }
    }

    /// Lets what was just started have the processors, while nobody wants more of us.
    fn linger(&self) {
        let idle = |orders: &mut Orders| orders.waiting.is_empty() && !orders.awaited;
        let waited = self.more.wait_timeout_while(self.lock(), FIRST_STEPS, idle);
        waited.unwrap_or_else(PoisonError::into_inner).0.awaited = false;
    }

    /// The next order for an instance; with none left, one thread less is beside the first.
    fn next_instance(&self) -> Option<(u64, SpawnSpec)> {
        let mut orders = self.lock();
        let instance = orders.waiting.iter().position(|(_, spec)| !spec.die_with_parent);
        if instance.is_none() {
            orders.beside -= 1;
        }
        orders.waiting.remove(instance?)
    }
}

impl Spawning {
    /// # Errors
    /// When descriptors or threads run out.
    pub fn start(events: Events) -> io::Result<Self> {
        let mut spawner = Spawner::new()?;
        let queue = Arc::new(Queue::default());
        let (orders, answers) = (Arc::clone(&queue), events.clone());
        // It never ends: the children's parent-death signal hangs on this thread.
        let work = move || {
            threads::run_in_turns_of(threads::SHORT, true);
            loop {
                let (token, spec) = orders.next(|| spawner.rehearse());
                let result = spawner.spawn_and_rest(&spec, || orders.linger());
                // Only a loop that has ended hears nothing.
                let _ = answers.send(Event::Spawned { token, result });
            }
        };
        with_all_blocked(|| thread::Builder::new().name("spawner".into()).stack_size(256 * 1024).spawn(work))?;
        Ok(Self { queue, events, open: 0, moved: Instant::now() })
    }

    /// An order will come in a moment, or not: whoever is to carry it out wakes up meanwhile, unless that is on our
    /// own processor, as it would keep us from giving the order.
    pub fn expect(&self) {
        if self.open == 0 && self.queue.processor.load(Ordering::Relaxed) != threads::processor() {
            self.queue.lock().expected = true;
            self.queue.more.notify_one();
        }
    }

    /// What is answered next has ended already.
    pub fn hurry(&self) {
        self.queue.lock().awaited = true;
        self.queue.more.notify_one();
    }

    /// Answered by [`Event::Spawned`] with this token.
    pub fn spawn(&mut self, token: u64, spec: SpawnSpec) {
        if self.open == 0 {
            self.moved = Instant::now();
        }
        self.open += 1;
        let mut orders = self.queue.lock();
        orders.waiting.push_back((token, spec));
        self.queue.given.fetch_add(1, Ordering::Relaxed);
        drop(orders);
        self.queue.more.notify_one();
    }

    /// An order was answered.
    pub fn answered(&mut self) {
        self.open = self.open.saturating_sub(1);
        self.moved = Instant::now();
    }

    /// When to look whether orders wait for something that hangs; `None`: none waits.
    #[must_use]
    pub fn look_at(&self) -> Option<Instant> {
        (self.open > 1).then(|| self.moved + HANGS)
    }

    /// Starts a thread for the instances that wait; false: nobody needs one.
    ///
    /// # Errors
    /// When descriptors or threads run out.
    pub fn help(&mut self) -> io::Result<bool> {
        self.moved = Instant::now();
        let mut orders = self.queue.lock();
        let waits = orders.waiting.iter().any(|(_, spec)| !spec.die_with_parent);
        if !waits || orders.beside >= MOST_BESIDE {
            return Ok(false);
        }
        let mut spawner = Spawner::new()?;
        let (queue, answers) = (Arc::clone(&self.queue), self.events.clone());
        let work = move || {
            threads::run_in_turns_of(threads::SHORT, true);
            while let Some((token, spec)) = queue.next_instance() {
                let result = spawner.spawn(&spec);
                let _ = answers.send(Event::Spawned { token, result });
            }
        };
        with_all_blocked(|| thread::Builder::new().name("spawner".into()).stack_size(256 * 1024).spawn(work))?;
        orders.beside += 1;
        Ok(true)
    }
}
