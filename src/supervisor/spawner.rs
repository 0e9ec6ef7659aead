//! The thread that starts processes: the only one that ever waits for an exec. Jobs and internal
//! processes die with it, so it lives as long as the process. While it hangs, as on a file system that
//! does not answer, others beside it start instances, whose lives hang on no thread. An instance that
//! none is started before is made by the loop itself, which need not wake anybody up for that; the
//! thread waits for it all the same.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::event::{Event, Events};
use crate::os::{
    mask::with_all_blocked,
    spawn::{SpawnSpec, Spawner, Underway},
    threads,
};

/// Orders that wait for so long, while none is carried out, wait for something that hangs.
const HANGS: Duration = Duration::from_secs(1);
/// The loop hears of a process so much later, as it would run where that takes its first steps.
const FIRST_STEPS: Duration = Duration::from_micros(500);
/// So long one child is waited for before another is looked at.
const BRIEFLY: Duration = Duration::from_millis(10);
/// Orders that there is room for while none waits.
const FEW: usize = 16;
/// Threads beside the first at most: each may hang too.
const MOST_BESIDE: usize = 8;

/// Orders for the threads.
pub struct Spawning {
    queue: Arc<Queue>,
    events: Events,
    /// The loop's own, while what it was used for last is not under way any more.
    own: Option<Box<Spawner>>,
    /// Orders without an answer.
    open: usize,
    /// When one was last answered, or given while there were none.
    moved: Instant,
}

#[derive(Default)]
struct Queue {
    inner: Mutex<Orders>,
    more: Condvar,
}

#[derive(Default)]
struct Orders {
    waiting: VecDeque<(u64, Order)>,
    /// The loop waits for the last answer.
    awaited: bool,
    /// Threads beside the first.
    beside: usize,
}

enum Order {
    Start(Box<SpawnSpec>),
    Await(Box<Underway>),
}

impl Order {
    /// Does its life hang on no thread?
    fn is_free(&self) -> bool {
        matches!(self, Self::Start(spec) if !spec.die_with_parent)
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next order; waits for it.
    fn next(&self) -> (u64, Order) {
        let mut orders = self.lock();
        loop {
            if let Some(order) = orders.waiting.pop_front() {
                return order;
            }
            // The start of a thousand apps leaves no room for a thousand.
            orders.waiting.shrink_to(FEW);
            orders = self.more.wait(orders).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next order, where one waits.
    fn another(&self) -> Option<(u64, Order)> {
        self.lock().waiting.pop_front()
    }

    /// Lets what was just started have the processors, while nobody wants more of us.
    fn linger(&self) {
        let idle = |orders: &mut Orders| orders.waiting.is_empty() && !orders.awaited;
        let waited = self.more.wait_timeout_while(self.lock(), FIRST_STEPS, idle);
        waited.unwrap_or_else(PoisonError::into_inner).0.awaited = false;
    }

    /// The next order for an instance; with none left, one thread less is beside the first.
    fn next_free(&self) -> Option<(u64, Order)> {
        let mut orders = self.lock();
        let free = orders.waiting.iter().position(|(_, order)| order.is_free());
        if free.is_none() {
            orders.beside -= 1;
        }
        orders.waiting.remove(free?)
    }
}

/// Carries out what the queue gives out, until it gives out nothing more. With several spawners the next child is
/// made while one is on its way, and on another processor that runs meanwhile.
fn work(queue: &Queue, events: &Events, next: fn(&Queue) -> Option<(u64, Order)>, mut spawners: Vec<Spawner>) {
    threads::run_in_turns_of(threads::SHORT, true);
    let mut ways: VecDeque<Way> = VecDeque::new();
    loop {
        let order = if ways.is_empty() {
            let Some(order) = next(queue) else { return };
            Some(order)
        } else {
            spawners.last().and_then(|_| queue.another())
        };
        match (order, spawners.pop()) {
            (Some((token, Order::Start(spec))), Some(spawner)) => {
                ways.push_back(Way { token, underway: spawner.begin(*spec), is_lent: false });
            }
            (Some((token, Order::Await(underway))), spawner) => {
                spawners.extend(spawner);
                ways.push_back(Way { token, underway: *underway, is_lent: true });
            }
            (_, spawner) => {
                spawners.extend(spawner);
                queue.linger();
                let Some(Way { token, underway, is_lent }) = first_over(&mut ways) else { continue };
                let (spawner, result) = underway.wait();
                let mut lent = None;
                if is_lent {
                    lent = Some(Box::new(spawner));
                } else {
                    spawners.push(spawner);
                }
                // Only a loop that has ended hears nothing.
                let _ = events.send(Event::Spawned { token, result, lent });
            }
        }
    }
}

/// A child that is on its way.
struct Way {
    token: u64,
    underway: Underway,
    /// The loop wants its spawner back.
    is_lent: bool,
}

/// Waits until one of them has got there.
fn first_over(ways: &mut VecDeque<Way>) -> Option<Way> {
    loop {
        if ways.len() == 1 {
            return ways.pop_front();
        }
        if let Some(over) = ways.iter().position(|way| way.underway.is_over()) {
            return ways.remove(over);
        }
        ways.front()?.underway.wait_for(BRIEFLY);
    }
}

impl Spawning {
    /// # Errors
    /// When descriptors or threads run out.
    pub fn start(events: Events) -> io::Result<Self> {
        let (own, two) = (Spawner::new()?, vec![Spawner::new()?, Spawner::new()?]);
        let queue = Arc::new(Queue::default());
        // It never ends: the children's parent-death signal hangs on this thread.
        begin(&queue, &events, |queue| Some(queue.next()), two)?;
        Ok(Self { queue, events, own: Some(Box::new(own)), open: 0, moved: Instant::now() })
    }

    /// What is answered next has ended already.
    pub fn hurry(&self) {
        self.queue.lock().awaited = true;
        self.queue.more.notify_one();
    }

    /// Answered by [`Event::Spawned`] with this token.
    pub fn spawn(&mut self, token: u64, spec: SpawnSpec) {
        let mut own = None;
        if self.open == 0 {
            self.moved = Instant::now();
            // What hangs on a thread is made by the one that lives as long as the process, and we wait for nobody.
            own = self.own.take_if(|own| !spec.die_with_parent && !own.waits_for(&spec));
        }
        let order = match own {
            Some(own) => Order::Await(Box::new(own.begin(spec))),
            None => Order::Start(Box::new(spec)),
        };
        self.open += 1;
        self.queue.lock().waiting.push_back((token, order));
        self.queue.more.notify_one();
    }

    /// An order was answered, with what was lent for it.
    pub fn answered(&mut self, lent: Option<Box<Spawner>>) {
        if lent.is_some() {
            self.own = lent;
        }
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
        let waits = orders.waiting.iter().any(|(_, order)| order.is_free());
        if !waits || orders.beside >= MOST_BESIDE {
            return Ok(false);
        }
        begin(&self.queue, &self.events, Queue::next_free, vec![Spawner::new()?])?;
        orders.beside += 1;
        Ok(true)
    }
}

/// Starts a thread for what `next` gives out.
fn begin(
    queue: &Arc<Queue>,
    events: &Events,
    next: fn(&Queue) -> Option<(u64, Order)>,
    spawners: Vec<Spawner>,
) -> io::Result<()> {
    let (queue, events) = (Arc::clone(queue), events.clone());
    let work = move || work(&queue, &events, next, spawners);
    with_all_blocked(|| thread::Builder::new().name("spawner".into()).stack_size(256 * 1024).spawn(work))?;
    Ok(())
}
