//! How much each address has got wrong lately: a few times are free, and then one in a while.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use super::sender;

/// Addresses that are remembered at a time; of more, those that owe least are forgotten.
pub(super) const REMEMBERED: usize = 10_000;

/// A bucket that leaks, for each address: it takes so many at once, and loses one in each while.
#[derive(Debug)]
pub struct Debts {
    at_once: u32,
    forgiven_in: Duration,
    /// When all that an address owes is forgiven.
    forgiven_at: BTreeMap<IpAddr, Instant>,
    /// The same, the soonest first.
    soonest: BTreeSet<(Instant, IpAddr)>,
}

impl Debts {
    #[must_use]
    pub fn new(at_once: u32, forgiven_in: Duration) -> Self {
        Self { at_once, forgiven_in, forgiven_at: BTreeMap::new(), soonest: BTreeSet::new() }
    }

    /// How long this address has to wait until it may get something wrong once more; `None`: not at all.
    #[must_use]
    pub fn wait(&self, from: IpAddr, now: Instant) -> Option<Duration> {
        let debt = self.forgiven_at.get(&sender(from))?.saturating_duration_since(now);
        let room = self.forgiven_in * (self.at_once - 1);
        debt.checked_sub(room).filter(|wait| !wait.is_zero())
    }

    /// It got something wrong. Who is forgotten in its favour.
    pub fn add(&mut self, from: IpAddr, now: Instant) -> Option<IpAddr> {
        let from = sender(from);
        let debt = match self.forgiven_at.remove(&from) {
            Some(debt) => {
                self.soonest.remove(&(debt, from));
                debt.max(now)
            }
            None => now,
        } + self.forgiven_in;
        let many = self.forgiven_at.len() >= REMEMBERED;
        let forgotten = if many { self.soonest.pop_first().map(|(_, forgotten)| forgotten) } else { None };
        if let Some(forgotten) = forgotten {
            self.forgiven_at.remove(&forgotten);
        }
        self.forgiven_at.insert(from, debt);
        self.soonest.insert((debt, from));
        forgotten
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.forgiven_at.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EACH: Duration = Duration::from_secs(1);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_owes_for_itself_alone() {
        let (mut debts, start) = (Debts::new(3, EACH), Instant::now());
        for _ in 0..3 {
            assert_eq!(debts.wait(ip("2001:db8::1"), start), None);
            debts.add(ip("2001:db8::1"), start);
        }
        assert_eq!(debts.wait(ip("2001:db8::2"), start), Some(EACH), "the same 64 bits");
        assert_eq!(debts.wait(ip("2001:db8:0:1::1"), start), None);
        assert_eq!(debts.wait(ip("2001:db8::1"), start + EACH), None);
    }

    proptest! {
           #[test]
           fn nobody_is_wrong_more_often_than_the_rate(pauses in proptest::collection::vec(0u64..3000, 1..300)) {
               let (mut debts, start, from) = (Debts::new(5, EACH), Instant::now(), ip("192.0.2.1"));
               let (mut now, mut free) = (start, 0u64);
               for pause in pauses {
                   now += Duration::from_millis(pause);
                   if debts.wait(from, now).is_none() {
                       debts.add(from, now);
                       free += 1;
                   }
               }
               prop_assert!(free <= 5 + (now - start).as_secs());
           }

           #[test]
           fn whoever_waits_as_long_as_it_is_told_is_let_in(times in 1u32..100) {
               let (mut debts, now, from) = (Debts::new(5, EACH), Instant::now(), ip("192.0.2.1"));
               for _ in 0..times {
    debts.add(from, now);
    }
               let wait = debts.wait(from, now).unwrap_or_default();
               prop_assert_eq!(wait.is_zero(), times < 5);
               prop_assert_eq!(debts.wait(from, now + wait), None);
           }
       }
}
