//! What `/metrics` tells, in numbers. The listener makes text of it.

use serde::{Deserialize, Serialize};

use super::{DeliveryState, DeployState, Status};
use crate::domain::model::{AppName, Exit, InstanceId};

/// All that is measured. What counts, counts since the supervisor's start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Metrics {
    pub status: Status,
    /// Of the supervisor itself.
    pub memory_bytes: Option<u64>,
    pub cpu_s: Option<f64>,
    pub exits: Vec<Exits>,
    pub deploys: Vec<Deployed>,
    pub deliveries: Deliveries,
    pub lost: Vec<Lost>,
    /// The store takes what comes.
    pub store_works: bool,
    /// How long the loop was busy with one thing, by [`TURN_BOUNDS`].
    pub turns: Durations,
}

/// How often the main process of an instance has ended, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exits {
    pub instance: InstanceId,
    /// In the order of [`ENDS`].
    pub counts: [u64; ENDS.len()],
}

/// How a process ends, as a label has it.
pub const ENDS: [&str; 5] = ["success", "failure", "signal", "oom", "unknown"];

impl Exits {
    #[must_use]
    pub fn new(instance: InstanceId) -> Self {
        Self { instance, counts: [0; ENDS.len()] }
    }

    pub fn count(&mut self, exit: Exit) {
        self.counts[match exit {
            Exit::Code(0) => 0,
            Exit::Code(_) => 1,
            Exit::Signal(_) => 2,
            Exit::OutOfMemory => 3,
            Exit::Unknown => 4,
        }] += 1;
    }
}

/// The deploys of an app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deployed {
    pub app: AppName,
    /// How many wait.
    pub waiting: u64,
    pub running: bool,
    /// How many ended, in the order of [`DeployState::ENDS`].
    pub ended: [u64; DeployState::ENDS.len()],
    /// From the start to the end, by [`DEPLOY_BOUNDS`].
    pub durations: Durations,
}

/// Webhook requests by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deliveries {
    pub accepted: u64,
    pub skipped: u64,
    pub duplicate: u64,
    pub refused: u64,
    /// Of those that were skipped: no app deploys their repository.
    pub unmatched: u64,
}

impl Deliveries {
    pub fn count(&mut self, state: DeliveryState, unmatched: bool) {
        *match state {
            DeliveryState::Accepted => &mut self.accepted,
            DeliveryState::Skipped => &mut self.skipped,
            DeliveryState::Duplicate => &mut self.duplicate,
            DeliveryState::Refused => &mut self.refused,
        } += 1;
        self.unmatched += u64::from(unmatched);
    }

    pub fn add(&mut self, more: Self) {
        self.accepted += more.accepted;
        self.skipped += more.skipped;
        self.duplicate += more.duplicate;
        self.refused += more.refused;
        self.unmatched += more.unmatched;
    }
}

/// Output that no disk took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    pub instance: InstanceId,
    pub bytes: u64,
}

/// Seconds of a deploy, in rising order.
pub const DEPLOY_BOUNDS: [f64; 10] = [1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0];
/// Seconds of one turn of the loop.
pub const TURN_BOUNDS: [f64; 7] = [0.000_01, 0.000_1, 0.001, 0.01, 0.1, 1.0, 10.0];

/// How often something took how long: a histogram.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Durations {
    /// How many were not longer than each bound, but longer than the one before; at the end those over the last.
    counts: Vec<u64>,
    pub sum_s: f64,
}

impl Durations {
    pub fn add(&mut self, seconds: f64, bounds: &[f64]) {
        let at = bounds.iter().position(|bound| seconds <= *bound).unwrap_or(bounds.len());
        self.counts.resize(bounds.len() + 1, 0);
        self.counts[at] += 1;
        self.sum_s += seconds;
    }

    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Each bound with its number; the last one is `f64::INFINITY`.
    #[must_use]
    pub fn buckets(&self, bounds: &[f64]) -> Vec<(f64, u64)> {
        let counts = self.counts.iter().copied().chain(std::iter::repeat(0));
        bounds.iter().copied().chain([f64::INFINITY]).zip(counts).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_length_is_in_one_bucket() {
        let (mut durations, bounds) = (Durations::default(), [1.0, 10.0]);
        assert_eq!(durations.buckets(&bounds), [(1.0, 0), (10.0, 0), (f64::INFINITY, 0)]);
        for seconds in [0.5, 1.0, 1.5, 100.0] {
            durations.add(seconds, &bounds);
        }
        assert_eq!(durations.buckets(&bounds), [(1.0, 2), (10.0, 1), (f64::INFINITY, 1)]);
        assert_eq!(durations.count(), 4);
        assert!((durations.sum_s - 103.0).abs() < f64::EPSILON);
    }

    #[test]
    fn every_exit_is_counted_as_one_of_them() {
        let mut exits = Exits::new("blog.1".parse().unwrap());
        for exit in [Exit::Code(0), Exit::Code(1), Exit::Code(2), Exit::Signal(9), Exit::OutOfMemory, Exit::Unknown] {
            exits.count(exit);
        }
        assert_eq!(exits.counts, [1, 2, 1, 1, 1]);
    }
}
