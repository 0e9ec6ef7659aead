//! How long to wait before the next start, and when to give up.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::domain::config::Restart;

/// What the recent past of one instance says about its next start.
#[derive(Debug, Clone)]
pub struct Backoff {
    /// Ends without a long healthy life before them.
    failures: u32,
    /// Automatic restarts in the sliding window, oldest first.
    restarts: VecDeque<Instant>,
    /// State of the generator behind the jitter (xorshift64; Marsaglia 2003).
    chance: u64,
}

/// What to do after an end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Next {
    After(Duration),
    GiveUp,
}

impl Backoff {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { failures: 0, restarts: VecDeque::new(), chance: seed | 1 }
    }

    /// Forgets the past: a person, a deploy or a changed config starts anew.
    pub fn reset(&mut self) {
        self.failures = 0;
        self.restarts.clear();
    }

    /// An instance has ended that was ready for `ready_for` (`None`: never); what now?
    pub fn next(&mut self, rule: &Restart, ready_for: Option<Duration>, now: Instant) -> Next {
        while self.restarts.front().is_some_and(|at| now.duration_since(*at) > rule.give_up.within) {
            self.restarts.pop_front();
        }
        if self.restarts.len() >= rule.give_up.restarts as usize {
            return Next::GiveUp;
        }
        self.restarts.push_back(now);
        if ready_for.is_some_and(|length| length >= rule.reset_after) {
            self.failures = 0;
            return Next::After(Duration::ZERO);
        }
        let delay = delay(rule, self.failures);
        self.failures = self.failures.saturating_add(1);
        Next::After(self.jittered(delay, rule))
    }

    fn jittered(&mut self, delay: Duration, rule: &Restart) -> Duration {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        // 53 bits make an exact f64 in 0..1.
        let unit = (self.chance >> 11) as f64 / (1u64 << 53) as f64;
        delay.mul_f64(1.0 + rule.jitter.clamp(0.0, 1.0) * (2.0 * unit - 1.0)).min(rule.max)
    }
}

/// The delay after so many failures in a row, before jitter: `first · factor^failures`, at most `max`.
#[must_use]
pub fn delay(rule: &Restart, failures: u32) -> Duration {
    let grown = rule.first.as_secs_f64() * rule.factor.max(1.0).powi(i32::try_from(failures).unwrap_or(i32::MAX));
    Duration::try_from_secs_f64(grown).map_or(rule.max, |delay| delay.min(rule.max))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::config::{GiveUp, Policy};

    fn rule(first: u64, max: u64, jitter: f64, restarts: u32) -> Restart {
        Restart {
            policy: Policy::Always,
            success: vec![0],
            first: Duration::from_millis(first),
            factor: 2.0,
            max: Duration::from_millis(max),
            jitter,
            reset_after: Duration::from_secs(10),
            give_up: GiveUp { restarts, within: Duration::from_secs(300) },
            retry_after: None,
        }
    }

    #[test]
    fn delays_double_up_to_the_limit() {
        let rule = rule(100, 1_000, 0.0, 10);
        let millis: Vec<_> = (0..6).map(|n| delay(&rule, n).as_millis()).collect();
        assert_eq!(millis, [100, 200, 400, 800, 1_000, 1_000]);
        assert_eq!(delay(&rule, u32::MAX), rule.max);
    }

    #[test]
    fn a_long_healthy_life_restarts_at_once() {
        let (rule, now) = (rule(100, 1_000, 0.0, 10), Instant::now());
        let mut backoff = Backoff::new(1);
        assert_eq!(backoff.next(&rule, None, now), Next::After(Duration::from_millis(100)));
        assert_eq!(backoff.next(&rule, Some(Duration::from_secs(11)), now), Next::After(Duration::ZERO));
        assert_eq!(backoff.next(&rule, Some(Duration::from_secs(1)), now), Next::After(Duration::from_millis(100)));
    }

    #[test]
    fn giving_up_looks_at_a_sliding_window() {
        let (rule, start) = (rule(1, 1, 0.0, 3), Instant::now());
        let mut backoff = Backoff::new(1);
        let mut at = |seconds| backoff.next(&rule, None, start + Duration::from_secs(seconds));
        for seconds in [0, 1, 2] {
            assert_ne!(at(seconds), Next::GiveUp);
        }
        assert_eq!(at(3), Next::GiveUp);
        assert_ne!(at(302), Next::GiveUp, "the first two are out of the window");
    }

    proptest! {
        #[test]
        fn delays_stay_within_their_bounds(first in 0u64..5_000, max in 0u64..60_000, jitter in 0.0..1.0f64, seed: u64, ends in 1usize..40) {
            let rule = rule(first, max, jitter, u32::MAX);
            let mut backoff = Backoff::new(seed);
            let now = Instant::now();
            for n in 0..ends {
                let Next::After(got) = backoff.next(&rule, None, now) else { panic!("gave up") };
                let plain = delay(&rule, u32::try_from(n).unwrap());
                prop_assert!(got <= rule.max);
                prop_assert!(got.as_secs_f64() <= plain.as_secs_f64() * (1.0 + jitter) + 1e-6);
                prop_assert!(got.as_secs_f64() >= plain.as_secs_f64() * (1.0 - jitter) - 1e-6);
            }
        }
    }
}
