//! An app that changes what it is watched for would restart for ever.

use std::time::{Duration, Instant};

/// A change this soon after the restart that the last one brought may be of the app's own making.
const SOON: Duration = Duration::from_secs(5);
/// So many such changes in a row are no coincidence: a person saves less often.
const MANY: u32 = 10;

/// Looks for restarts that follow each other by themselves.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    last: Option<Instant>,
    in_a_row: u32,
    suspended: bool,
}

/// What a change leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Restart,
    /// One too many: no change counts from now on, until somebody has looked after it.
    Suspend,
    /// It was suspended before.
    Ignore,
}

impl Guard {
    /// Something has changed.
    pub fn changed(&mut self, now: Instant) -> Verdict {
        if self.suspended {
            return Verdict::Ignore;
        }
        let soon = self.last.is_some_and(|last| now.duration_since(last) <= SOON);
        self.in_a_row = if soon { self.in_a_row + 1 } else { 0 };
        self.last = Some(now);
        self.suspended = self.in_a_row >= MANY;
        if self.suspended { Verdict::Suspend } else { Verdict::Restart }
    }

    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.suspended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_suspended_and_saving_often_is_none() {
        let start = Instant::now();
        let mut guard = Guard::default();
        let verdicts: Vec<_> = (0..12).map(|n| guard.changed(start + Duration::from_secs(n))).collect();
        assert_eq!(verdicts[..10], [Verdict::Restart; 10]);
        assert_eq!(verdicts[10..], [Verdict::Suspend, Verdict::Ignore]);
        assert!(guard.is_suspended());
        let mut guard = Guard::default();
        let saves = (0..100u64).map(|n| start + Duration::from_secs(3 * n + 6 * (n / 9)));
        assert!(saves.into_iter().all(|at| guard.changed(at) == Verdict::Restart));
    }
}
