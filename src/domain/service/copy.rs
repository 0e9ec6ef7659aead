//! One of an app's copies: its process machine, and what people and the config want of it.

use super::{
    Release,
    instance::{Instance, State},
};
use crate::domain::model::At;

/// Where a process of an app runs: the number of its copy, counted from 1, and whether it is the
/// second one of that copy, beside the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seat {
    pub number: u32,
    pub second: bool,
}

impl Seat {
    #[must_use]
    pub fn first(number: u32) -> Self {
        Self { number, second: false }
    }
}

/// A machine in its seat.
#[derive(Debug, Clone)]
pub struct Run {
    pub seat: Seat,
    pub instance: Instance,
    /// What it was last asked to start in; kept over crashes.
    pub release: Option<Release>,
}

/// One copy of an app.
#[derive(Debug, Clone)]
pub struct Copy {
    pub(super) run: Run,
    /// Who stopped this copy alone, while that holds.
    pub(super) held: Option<String>,
    /// `instances` was lowered: it goes once nothing of it runs.
    pub(super) leaving: bool,
}

/// How far a copy has got that was started anew.
pub(super) enum Progress {
    Up,
    Going,
    Failed(String),
}

impl Copy {
    pub(super) fn new(number: u32, seed: u64, wall: At) -> Self {
        let instance = Instance::new(seed.wrapping_mul(2 * u64::from(number) + 1), wall);
        Self { run: Run { seat: Seat::first(number), instance, release: None }, held: None, leaving: false }
    }

    #[must_use]
    pub fn number(&self) -> u32 {
        self.run.seat.number
    }

    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.run.instance
    }

    /// Every process machine of it.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        std::iter::once(&self.run)
    }

    /// `failures`: those before it was started anew.
    pub(super) fn progress(&self, failures: u64) -> Progress {
        let instance = self.instance();
        let failed = || Progress::Failed(instance.reason().unwrap_or("it failed").to_owned());
        match instance.state() {
            _ if instance.failures() > failures => failed(),
            State::Ready { .. } | State::Done => Progress::Up,
            State::Starting { .. } | State::Stopping(_) | State::Backoff { .. } => Progress::Going,
            State::Stopped | State::Waiting | State::Failed { .. } => failed(),
        }
    }

    /// SURFACE.md section 3: the worst copy speaks for the app.
    pub(super) fn rank(&self) -> usize {
        match self.instance().state() {
            State::Failed { .. } => 0,
            State::Backoff { .. } => 1,
            State::Stopping(_) => 2,
            State::Starting { .. } => 3,
            State::Waiting => 4,
            State::Stopped => 5,
            State::Ready { .. } => 6,
            State::Done => 7,
        }
    }
}
