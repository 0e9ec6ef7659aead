//! An app that changes what it is watched for would restart for ever.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A change this soon after the restart that the last one brought may be of the app's own making.
const SOON: Duration = Duration::from_secs(5);
/// So many such changes in a row, all in one folder, are no coincidence: a person saves less often.
const MANY: u32 = 10;

/// Looks for restarts that follow each other by themselves.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    last: Option<(Instant, PathBuf)>,
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
    /// This path has changed.
    pub fn changed(&mut self, path: &Path, now: Instant) -> Verdict {
        if self.suspended {
            return Verdict::Ignore;
        }
        let folder = path.parent().unwrap_or(path);
        let again = self.last.as_ref().is_some_and(|(at, last)| now.duration_since(*at) <= SOON && last == folder);
        self.in_a_row = if again { self.in_a_row + 1 } else { 0 };
        self.last = Some((now, folder.to_owned()));
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

    fn verdicts(changes: impl Iterator<Item = (u64, &'static str)>) -> Vec<Verdict> {
        let (start, mut guard) = (Instant::now(), Guard::default());
        changes.map(|(second, path)| guard.changed(Path::new(path), start + Duration::from_secs(second))).collect()
    }

    #[test]
    fn a_loop_is_suspended() {
        let found = verdicts((0..12).map(|n| (n, if n % 2 == 0 { "/src/a" } else { "/src/b" })));
        assert_eq!(found[..10], [Verdict::Restart; 10]);
        assert_eq!(found[10..], [Verdict::Suspend, Verdict::Ignore]);
    }

    #[test]
    fn saving_often_and_changes_all_over_are_none() {
        let saves = verdicts((0..100).map(|n| (3 * n + 6 * (n / 9), "/src/a")));
        let checkout = verdicts((0..100).map(|n| (n, if n % 9 == 0 { "/src/a/x" } else { "/src/b/x" })));
        assert!(saves.into_iter().chain(checkout).all(|verdict| verdict == Verdict::Restart));
    }
}
