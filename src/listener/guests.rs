//! Who is in the house, and who has to leave when others wait. A connection has a seat, which costs next to
//! nothing; from the first byte of a request to its answer it also has a turn, which costs buffers. Whoever has
//! a turn and has not sent its whole request after a while gives it up when somebody else wants one, the slowest
//! first: so neither silent nor slow connections keep out whoever has something to say.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap, btree_map::OccupiedEntry},
    future::Future,
    io,
    net::IpAddr,
    pin::pin,
    rc::Rc,
    time::Duration,
};

use ipnet::IpNet;
use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use crate::{
    domain::access::{is_among, sender},
    os::{limits, memory},
};

/// Requests under way at a time. Each may hold about 32 KiB of hyper's, and a small body.
pub(super) const TURNS: usize = 512;
/// Connections at a time from one IPv4 address or IPv6 /64; more are told so and closed. Loopback and trusted
/// proxies are exempt, as each stands for the whole world.
const FROM_ONE: u32 = 64;
/// Within this time, and what its body takes at [`PACE`], a request has come unless its sender is slow.
const GRACE: Duration = Duration::from_millis(250);
/// Bytes a second of a body whose sender is not slow.
const PACE: usize = 8 * 1024 * 1024;
/// How long whoever was sent away may take to be gone.
const LEAVING: Duration = Duration::from_millis(10);
/// How long a request waits for its turn, or for room for its body, before it is told to come later.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// When so many requests were under way, and most of them are answered, the memory that they took is given back:
/// what lies between small things that stay would be kept for ever.
const MANY: usize = 64;

/// Descriptors that are no connections: a large body or a page for each turn, and channels.
const OWN_FILES: u64 = TURNS as u64 + 64;

/// How many connections this process has descriptors for.
///
/// # Errors
/// When the kernel does not say.
pub(super) fn seats() -> io::Result<usize> {
    let files = limits::files()?;
    Ok(usize::try_from(files.saturating_sub(OWN_FILES).max(files / 2)).unwrap_or(usize::MAX))
}

/// Everybody who is connected.
pub(super) struct Guests {
    seats: Semaphore,
    turns: Semaphore,
    /// The most turns at a time since memory was given back.
    most: Cell<usize>,
    proxies: Vec<IpNet>,
    crowd: RefCell<Crowd>,
}

#[derive(Default)]
struct Crowd {
    from: HashMap<IpAddr, u32>,
    /// Who says nothing, the longest first.
    idle: BTreeMap<u64, Rc<Notify>>,
    /// Who has not said everything yet, by when it should have.
    slow: BTreeMap<(Instant, u64), Rc<Notify>>,
    last: u64,
}

/// Where a guest stands in the crowd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Idle(u64),
    Speaking((Instant, u64)),
    /// The whole request is there.
    Heard,
}

/// One connection; its seat is free again when it is dropped.
pub(super) struct Guest {
    house: Rc<Guests>,
    address: IpAddr,
    place: Cell<Place>,
    /// Nothing is left unread of the request that is answered.
    whole: Cell<bool>,
    leave: Rc<Notify>,
}

/// The right to have a request under way.
pub(super) struct Turn<'a> {
    house: &'a Guests,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let (most, left) = (self.house.most.get(), self.house.under_way() - 1);
        if most >= MANY && left <= most / 4 {
            self.house.most.set(left);
            memory::give_heap_back();
        }
    }
}

impl Guests {
    pub(super) fn new(proxies: Vec<IpNet>, seats: usize) -> Rc<Self> {
        let (seats, turns) = (Semaphore::new(seats), Semaphore::new(TURNS));
        Rc::new(Self { seats, turns, most: Cell::new(0), proxies, crowd: RefCell::default() })
    }

    /// Waits for a free seat; where there is none, who has been silent longest leaves.
    pub(super) async fn seat(&self) -> SemaphorePermit<'_> {
        let free = async { self.seats.acquire().await.expect("the semaphore is never closed") };
        self.make_room(free, true).await
    }

    /// Gives the seat to this address (canonical), unless too many of it are here.
    pub(super) fn welcome(self: &Rc<Self>, seat: SemaphorePermit<'_>, address: IpAddr) -> Option<Guest> {
        let mut crowd = self.crowd.borrow_mut();
        let here = crowd.from.entry(sender(address)).or_default();
        if *here >= FROM_ONE && !address.is_loopback() && !is_among(address, &self.proxies) {
            return None;
        }
        *here += 1;
        seat.forget();
        let (leave, place) = (Rc::new(Notify::new()), Cell::new(Place::Heard));
        drop(crowd);
        let guest = Guest { house: Rc::clone(self), address, place, whole: Cell::new(true), leave };
        guest.is_silent();
        Some(guest)
    }

    fn under_way(&self) -> usize {
        TURNS - self.turns.available_permits()
    }

    /// Waits for something that others have, and sends them away one by one when their time is up.
    async fn make_room<T>(&self, free: impl Future<Output = T>, idle_too: bool) -> T {
        let mut free = pin!(free);
        let mut not_before = Instant::now();
        loop {
            let due = self.crowd.borrow().due(idle_too, not_before);
            let Some(due) = due else {
                // Everybody here is being answered: look again when somebody new may be slow.
                match timeout_at(Instant::now() + GRACE, &mut free).await {
                    Ok(got) => return got,
                    Err(_) => continue,
                }
            };
            match timeout_at(due.max(not_before), &mut free).await {
                Ok(got) => return got,
                Err(_) => self.crowd.borrow_mut().send_away(idle_too),
            }
            not_before = Instant::now() + LEAVING;
        }
    }
}

impl Crowd {
    /// When the next one may be sent away.
    fn due(&self, idle_too: bool, now: Instant) -> Option<Instant> {
        let idle = (idle_too && !self.idle.is_empty()).then_some(now);
        idle.or_else(|| self.slow.first_key_value().map(|((until, _), _)| *until))
    }

    fn send_away(&mut self, idle_too: bool) {
        let idle = if idle_too { self.idle.pop_first().map(|(_, leave)| leave) } else { None };
        let late = |first: &OccupiedEntry<'_, (Instant, u64), _>| first.key().0 <= Instant::now();
        let slow = || self.slow.first_entry().filter(late).map(OccupiedEntry::remove);
        if let Some(leave) = idle.or_else(slow) {
            leave.notify_one();
        }
    }
}

impl Guest {
    pub(super) fn address(&self) -> IpAddr {
        self.address
    }

    /// Waits until its time is up.
    pub(super) async fn sent_away(&self) {
        self.leave.notified().await;
    }

    /// It has nothing to say for now.
    pub(super) fn is_silent(&self) {
        let mut crowd = self.house.crowd.borrow_mut();
        crowd.last += 1;
        let number = crowd.last;
        crowd.idle.insert(number, Rc::clone(&self.leave));
        self.stands(&mut crowd, Place::Idle(number));
    }

    /// It begins to speak: waits for its turn. `None`: not within [`PATIENCE`].
    pub(super) async fn turn(&self) -> Option<Turn<'_>> {
        let turns = &self.house.turns;
        let turn = self.wait_for(async { turns.acquire().await.expect("the semaphore is never closed") }).await?;
        self.speaks(0);
        self.house.most.set(self.house.most.get().max(self.house.under_way()));
        Some(Turn { house: &self.house, _permit: turn })
    }

    /// Does somebody else need its turn as soon as it has its answer?
    pub(super) fn is_waited_for(&self) -> bool {
        self.house.turns.available_permits() == 0
    }

    /// The head of a request is there; of what has no body that is all.
    pub(super) fn begins(&self, is_all: bool) {
        self.whole.set(is_all);
        if is_all {
            self.waits();
        }
    }

    pub(super) fn is_whole(&self) -> bool {
        self.whole.get()
    }

    /// It begins to speak, or its body of so many bytes does.
    pub(super) fn speaks(&self, bytes: usize) {
        let mut crowd = self.house.crowd.borrow_mut();
        crowd.last += 1;
        #[expect(clippy::cast_precision_loss, reason = "25 MiB are exact")]
        let key = (Instant::now() + GRACE + Duration::from_secs_f64(bytes as f64 / PACE as f64), crowd.last);
        crowd.slow.insert(key, Rc::clone(&self.leave));
        self.stands(&mut crowd, Place::Speaking(key));
    }

    /// Its whole request was read: what follows is not its fault.
    pub(super) fn is_heard(&self) {
        self.whole.set(true);
        self.waits();
    }

    /// It waits for others.
    fn waits(&self) {
        self.stands(&mut self.house.crowd.borrow_mut(), Place::Heard);
    }

    /// Waits for something that slow ones have; `None`: not within [`PATIENCE`].
    pub(super) async fn wait_for<T>(&self, free: impl Future<Output = T>) -> Option<T> {
        self.waits();
        timeout_at(Instant::now() + PATIENCE, self.house.make_room(free, false)).await.ok()
    }

    fn stands(&self, crowd: &mut Crowd, place: Place) {
        match self.place.replace(place) {
            Place::Idle(number) => drop(crowd.idle.remove(&number)),
            Place::Speaking(key) => drop(crowd.slow.remove(&key)),
            Place::Heard => {}
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut crowd = self.house.crowd.borrow_mut();
        self.stands(&mut crowd, Place::Heard);
        let from = sender(self.address);
        if let Some(here) = crowd.from.get_mut(&from) {
            *here -= 1;
            if *here == 0 {
                crowd.from.remove(&from);
            }
        }
        self.house.seats.add_permits(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEATS: usize = 2000;

    fn guests() -> Rc<Guests> {
        Guests::new(vec!["198.51.100.0/24".parse().unwrap()], SEATS)
    }

    fn sit(guests: &Rc<Guests>, address: &str) -> Option<Guest> {
        guests.welcome(guests.seats.try_acquire().unwrap(), address.parse().unwrap())
    }

    #[test]
    fn one_address_takes_its_share_and_no_more() {
        let guests = guests();
        let mut seats: Vec<Guest> = (0..FROM_ONE).map(|_| sit(&guests, "192.0.2.1").unwrap()).collect();
        assert!(sit(&guests, "192.0.2.1").is_none());
        assert!(sit(&guests, "192.0.2.2").is_some());
        seats.pop();
        seats.push(sit(&guests, "192.0.2.1").unwrap());
        assert!(sit(&guests, "192.0.2.1").is_none());
        assert_eq!(guests.seats.available_permits(), SEATS - seats.len());
        drop(seats);
        let crowd = guests.crowd.borrow();
        assert!(crowd.from.is_empty() && crowd.idle.is_empty() && crowd.slow.is_empty());
        assert_eq!(guests.seats.available_permits(), SEATS);
    }

    #[test]
    fn an_ipv6_host_is_its_64_bits() {
        let guests = guests();
        let seats: Vec<Guest> = (0..FROM_ONE).map(|i| sit(&guests, &format!("2001:db8::{i:x}")).unwrap()).collect();
        assert!(sit(&guests, "2001:db8::ffff:ffff:ffff:ffff").is_none());
        assert!(sit(&guests, "2001:db8:0:1::1").is_some());
        drop(seats);
    }

    #[test]
    fn a_proxy_is_not_held_back() {
        let guests = guests();
        for proxy in ["127.0.0.1", "198.51.100.7"] {
            let seats: Vec<Guest> = (0..FROM_ONE * 2).map(|_| sit(&guests, proxy).unwrap()).collect();
            assert_eq!(seats.len(), 128);
        }
    }

    /// As the task of a connection does: leaves once it is told.
    async fn stay(guest: Guest) {
        guest.sent_away().await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_longest_silent_gives_its_seat_to_whoever_comes() {
        let guests = Guests::new(Vec::new(), 2);
        let [first, second] = [(); 2].map(|()| sit(&guests, "127.0.0.1").unwrap());
        // It said something meanwhile.
        first.speaks(0);
        first.is_silent();
        let begun = Instant::now();
        let rest = async { tokio::join!(stay(second), guests.seat()).1.forget() };
        tokio::select! {
            () = rest => assert_eq!(guests.seats.available_permits(), 0),
            // On a busy machine the other one's time to leave may be over before it is heard.
            () = first.sent_away() => assert!(begun.elapsed() >= LEAVING, "the other one was silent for longer"),
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_slow_one_gives_its_turn_up_and_one_that_is_heard_does_not() {
        let guests = guests();
        let [heard, large, slow, next] = [(); 4].map(|()| sit(&guests, "127.0.0.1").unwrap());
        let others = guests.turns.try_acquire_many(u32::try_from(TURNS).unwrap() - 3).unwrap();
        let mut turns = Vec::new();
        for guest in [&heard, &large, &slow] {
            turns.push(guest.turn().await.unwrap());
        }
        heard.is_heard();
        large.speaks(8 * PACE);
        let slow_turn = turns.pop();
        let leaving = async {
            slow.sent_away().await;
            drop(slow_turn);
        };
        let got = async { tokio::join!(leaving, next.turn()).1.is_some() };
        tokio::select! {
            got = got => assert!(got),
            () = heard.sent_away() => panic!("its request is whole"),
            () = large.sent_away() => panic!("its body takes longer"),
        }
        drop(others);
    }
}
