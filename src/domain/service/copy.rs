//! One of an app's copies: its process machine, and what people and the config want of it.

use std::sync::Arc;

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
    /// What it was last asked to start in, or to take while it runs; kept over crashes.
    pub release: Option<Arc<Release>>,
    /// What its process was started in.
    pub home: Option<Arc<Release>>,
}

/// The other process of a copy while one takes over from another.
#[derive(Debug, Clone)]
pub(super) enum Beside {
    /// It is to take over, and must prove itself first.
    New(Box<Run>),
    /// It is on its way out: it has been taken over from, or did not get so far.
    Old(Box<Run>),
}

impl Beside {
    fn run(&self) -> &Run {
        match self {
            Self::New(run) | Self::Old(run) => run,
        }
    }
}

/// One copy of an app.
#[derive(Debug, Clone)]
pub struct Copy {
    pub(super) run: Run,
    pub(super) beside: Option<Beside>,
    /// Who stopped this copy alone, while that holds.
    pub(super) held: Option<Box<str>>,
    /// `instances` was lowered: it goes once nothing of it runs.
    pub(super) leaving: bool,
    /// Why the last one that was to take over did not.
    pub(super) rejected: Option<Box<str>>,
    /// Attempts that were made in its seats by machines that are gone.
    spent: u64,
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
        let run = Run { seat: Seat::first(number), instance, release: None, home: None };
        Self { run, beside: None, held: None, leaving: false, rejected: None, spent: 0 }
    }

    #[must_use]
    pub fn number(&self) -> u32 {
        self.run.seat.number
    }

    /// The process that counts.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.run.instance
    }

    /// Every process machine of it, the one that counts first.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        std::iter::once(&self.run).chain(self.beside.as_ref().map(Beside::run))
    }

    pub(super) fn runs_mut(&mut self) -> impl Iterator<Item = &mut Run> {
        let beside = self.beside.as_mut().map(|beside| match beside {
            Beside::New(run) | Beside::Old(run) => &mut **run,
        });
        std::iter::once(&mut self.run).chain(beside)
    }

    pub(super) fn run_mut(&mut self, seat: Seat) -> Option<&mut Run> {
        self.runs_mut().find(|run| run.seat == seat)
    }

    /// Does the config want fewer, and not this one?
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    #[must_use]
    pub fn is_active(&self) -> bool {
        self.runs().any(|run| run.instance.is_active())
    }

    /// The seat of the one that is to take over, while there is one.
    pub(super) fn new_seat(&self) -> Option<Seat> {
        match &self.beside {
            Some(Beside::New(run)) => Some(run.seat),
            Some(Beside::Old(_)) | None => None,
        }
    }

    /// Has a process that is to take over from the one that counts in the other seat, which is free.
    pub(super) fn put_beside(&mut self, release: Option<Arc<Release>>, wall: At) -> Seat {
        let seat = Seat { second: !self.run.seat.second, ..self.run.seat };
        let mut instance = self.run.instance.successor(self.spent.max(self.run.instance.attempt()), wall);
        instance.on_trial = true;
        self.rejected = None;
        self.beside = Some(Beside::New(Box::new(Run { seat, instance, release, home: None })));
        seat
    }

    /// The new one counts from now on; the seat of the old one, which is to end.
    pub(super) fn take_over(&mut self) -> Option<Seat> {
        let Some(Beside::New(new)) = self.beside.take_if(|beside| matches!(beside, Beside::New(_))) else {
            return None;
        };
        let old = std::mem::replace(&mut self.run, *new);
        self.run.instance.on_trial = false;
        self.spent = self.spent.max(old.instance.attempt());
        let seat = old.seat;
        self.beside = old.instance.is_active().then_some(Beside::Old(Box::new(old)));
        Some(seat)
    }

    /// The new one shall not take over; its seat, in which it is to end.
    pub(super) fn give_up_new(&mut self) -> Option<Seat> {
        let Some(Beside::New(mut new)) = self.beside.take_if(|beside| matches!(beside, Beside::New(_))) else {
            return None;
        };
        let seat = new.seat;
        new.instance.on_trial = false;
        self.spent = self.spent.max(new.instance.attempt());
        self.beside = new.instance.is_active().then_some(Beside::Old(new));
        Some(seat)
    }

    /// Forgets whoever has left beside it.
    pub(super) fn tidy(&mut self) {
        let gone = |beside: &mut Beside| matches!(beside, Beside::Old(run) if !run.instance.is_active());
        self.beside.take_if(gone);
    }

    /// `failures`: those before it was started anew.
    pub(super) fn progress(&self, failures: u64) -> Progress {
        if let Some(why) = &self.rejected {
            return Progress::Failed(format!("{why}; the one before runs on"));
        }
        let instance = match &self.beside {
            Some(Beside::New(run)) => &run.instance,
            Some(Beside::Old(_)) | None => self.instance(),
        };
        let failed = || Progress::Failed(instance.reason().unwrap_or("it failed").to_owned());
        match instance.state() {
            _ if instance.failures() > failures => failed(),
            State::Ready { .. } if instance.reloads() => Progress::Going,
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
