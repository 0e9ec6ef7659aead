//! Slows down who guesses tokens, and nobody else.
//!
//! An address may be wrong a few times, then once in a while; between that what it sends is not even
//! looked at. The same wrong token again is no guess, as of a program whose token has expired: it tells
//! nobody anything new. A token that has once been right from an address goes on being looked at from
//! there, so that whoever guesses from behind the same router or proxy locks nobody out (OWASP calls this
//! a device cookie).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use super::{Debts, TokenHash, debts::REMEMBERED};

/// Wrong tokens that an address may send at once.
const ATTEMPTS: u32 = 10;
/// So long until one of them is forgiven.
const FORGIVEN_IN: Duration = Duration::from_secs(6);

/// Addresses that belong to one sender: an IPv6 host has a whole /64 to itself.
#[must_use]
pub fn sender(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// Who has guessed wrongly lately.
#[derive(Debug)]
pub struct Guard {
    wrong: Debts,
    /// What each address got wrong last.
    last: BTreeMap<IpAddr, [u8; 32]>,
    /// What was right, and from where; as many as there are addresses that are remembered.
    right: BTreeSet<(IpAddr, [u8; 32])>,
}

impl Default for Guard {
    fn default() -> Self {
        Self { wrong: Debts::new(ATTEMPTS, FORGIVEN_IN), last: BTreeMap::new(), right: BTreeSet::new() }
    }
}

/// How what somebody sends is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    New,
    /// It was wrong the last time.
    Again,
}

impl Guard {
    /// May what this address sends be looked at?
    ///
    /// # Errors
    /// How long it has to wait before it tries again.
    pub fn admit(&self, from: IpAddr, token: TokenHash, now: Instant) -> Result<Admission, Duration> {
        let known = sender(from);
        if self.last.get(&known) == Some(token.bytes()) {
            return Ok(Admission::Again);
        }
        match self.wrong.wait(from, now) {
            Some(wait) if !self.right.contains(&(known, *token.bytes())) => Err(wait),
            _ => Ok(Admission::New),
        }
    }

    /// It was wrong, and not the same as the last time.
    pub fn wrong(&mut self, from: IpAddr, token: TokenHash, now: Instant) {
        if let Some(forgotten) = self.wrong.add(from, now) {
            self.last.remove(&forgotten);
        }
        self.last.insert(sender(from), *token.bytes());
    }

    /// It was right.
    pub fn right(&mut self, from: IpAddr, token: TokenHash) {
        if self.right.len() >= REMEMBERED {
            self.right.pop_first();
        }
        self.right.insert((sender(from), *token.bytes()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn hash(text: &str) -> TokenHash {
        TokenHash::of(text.as_bytes())
    }

    #[test]
    fn a_few_are_free_and_then_one_at_a_time() {
        let (mut guard, start, from) = (Guard::default(), Instant::now(), ip("192.0.2.1"));
        for n in 0..ATTEMPTS {
            let guess = hash(&n.to_string());
            assert_eq!(guard.admit(from, guess, start), Ok(Admission::New));
            guard.wrong(from, guess, start);
        }
        assert_eq!(guard.admit(from, hash("x"), start), Err(FORGIVEN_IN));
        assert_eq!(guard.admit(ip("192.0.2.2"), hash("x"), start), Ok(Admission::New));
        let later = start + FORGIVEN_IN;
        assert_eq!(guard.admit(from, hash("x"), later), Ok(Admission::New));
        guard.wrong(from, hash("x"), later);
        assert_eq!(guard.admit(from, hash("y"), later), Err(FORGIVEN_IN));
        assert_eq!(guard.admit(from, hash("x"), later), Ok(Admission::Again));
        assert_eq!(guard.admit(ip("192.0.2.2"), hash("x"), later), Ok(Admission::New));
    }

    #[test]
    fn who_was_right_is_let_in_beside_a_guesser() {
        let (mut guard, now, from) = (Guard::default(), Instant::now(), ip("192.0.2.1"));
        guard.right(from, hash("good"));
        for n in 0..100 {
            guard.wrong(from, hash(&n.to_string()), now);
        }
        assert_eq!(guard.admit(from, hash("good"), now), Ok(Admission::New));
        assert!(guard.admit(from, hash("guess"), now).is_err());
        assert_eq!(guard.admit(ip("192.0.2.9"), hash("guess"), now), Ok(Admission::New));
    }

    #[test]
    fn a_sender_is_an_ipv4_address_or_a_network_of_64_bits() {
        assert_eq!(sender(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
        assert_eq!(sender(ip("2001:db8::1")), sender(ip("2001:db8::ffff:ffff:ffff:ffff")));
        assert_ne!(sender(ip("2001:db8::1")), sender(ip("2001:db8:0:1::1")));
    }

    #[test]
    fn memory_is_bounded_and_the_worst_is_remembered() {
        let (mut guard, now, worst) = (Guard::default(), Instant::now(), ip("192.0.2.1"));
        for _ in 0..2 * ATTEMPTS {
            guard.wrong(worst, hash("guess"), now);
        }
        for n in 0..2 * REMEMBERED as u32 {
            guard.wrong(IpAddr::V4((0x0a00_0000 + n).into()), hash("guess"), now);
            guard.right(IpAddr::V4((0x0a00_0000 + n).into()), hash("good"));
        }
        let remembered = (guard.wrong.remembered(), guard.last.len(), guard.right.len());
        assert_eq!(remembered, (REMEMBERED, REMEMBERED, REMEMBERED));
        assert!(guard.admit(worst, hash("x"), now).is_err());
    }

    proptest! {
        #[test]
        fn nobody_guesses_faster_than_the_rate(pauses in proptest::collection::vec(0u64..20, 1..200)) {
            let (mut guard, start, from) = (Guard::default(), Instant::now(), ip("192.0.2.1"));
            let (mut now, mut looked_at) = (start, 0u32);
            for (n, pause) in pauses.into_iter().enumerate() {
                now += Duration::from_secs(pause);
                let guess = hash(&n.to_string());
                if guard.admit(from, guess, now).is_ok() {
                    guard.wrong(from, guess, now);
                    looked_at += 1;
                }
            }
            let by_rate = (now - start).as_secs() / FORGIVEN_IN.as_secs();
            prop_assert!(u64::from(looked_at) <= u64::from(ATTEMPTS) + by_rate);
        }
    }
}
