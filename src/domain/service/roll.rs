//! One by one: a restart of several copies, each up before the next one goes down; and the trial of a
//! release, which is such a restart and a time to settle.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{App, Release, app::Task, copy::Progress, instance::State};
use crate::domain::model::Now;

/// A new release being judged.
#[derive(Debug, Clone)]
pub(super) struct Trial {
    previous: Option<Release>,
    settle: Duration,
    /// It has settled then; `None` until every copy is ready.
    pub until: Option<Instant>,
}

/// A restart under way.
#[derive(Debug, Clone)]
pub(super) struct Roll {
    cause: String,
    left: VecDeque<u32>,
    current: Option<Current>,
}

/// The copy whose turn it is.
#[derive(Debug, Clone)]
struct Current {
    number: u32,
    /// Those before its turn.
    failures: u64,
}

impl App {
    /// Is a restart of its copies under way?
    #[must_use]
    pub fn is_rolling(&self) -> bool {
        self.roll.is_some()
    }

    /// Is it going to be started by a restart that is under way?
    pub(super) fn awaits_turn(&self, number: u32) -> bool {
        self.roll.as_ref().is_some_and(|roll| roll.left.contains(&number))
    }

    /// Starts these copies anew, one by one. Whoever asks during a restart has their copies added to it;
    /// the one whose turn it is has another one.
    pub(super) fn roll(&mut self, numbers: Vec<u32>, cause: &str) {
        let roll = self.roll.get_or_insert_with(|| Roll { cause: String::new(), left: VecDeque::new(), current: None });
        cause.clone_into(&mut roll.cause);
        if roll.current.as_ref().is_some_and(|current| numbers.contains(&current.number)) {
            roll.current = None;
        }
        roll.left.retain(|number| !numbers.contains(number));
        roll.left.extend(numbers);
    }

    pub(super) fn go_on_rolling(&mut self, now: Now, out: &mut Vec<Task>) {
        while let Some(roll) = &mut self.roll {
            if let Some(Current { number, failures }) = roll.current.clone() {
                match self.copy(number).map(|copy| copy.progress(failures)) {
                    Some(Progress::Going) => return,
                    Some(Progress::Failed(why)) => return self.stop_rolling(number, &why, out),
                    Some(Progress::Up) | None => {}
                }
                if let Some(roll) = &mut self.roll {
                    roll.current = None;
                }
                continue;
            }
            match roll.left.pop_front() {
                Some(number) => self.begin_turn(number, now, out),
                None => self.rolled(now, out),
            }
        }
    }

    fn begin_turn(&mut self, number: u32, now: Now, out: &mut Vec<Task>) {
        let Some(copy) = self.copies.iter().position(|copy| copy.number() == number) else { return };
        if !self.may_run(&self.copies[copy]) {
            return;
        }
        let on_trial = self.trial.is_some();
        let Some(roll) = &mut self.roll else { return };
        let instance = &mut self.copies[copy].run.instance;
        roll.current = Some(Current { number, failures: instance.failures() });
        instance.on_trial = on_trial;
        let cause = roll.cause.clone();
        self.set_going_anew(copy, &cause, now, out);
    }

    /// Every copy is up.
    fn rolled(&mut self, now: Now, out: &mut Vec<Task>) {
        self.roll = None;
        out.push(Task::Rolled(Ok(())));
        let done = self.copies.iter().all(|copy| matches!(copy.instance().state(), State::Done));
        if let Some(trial) = &mut self.trial {
            trial.until = Some(now.mono + trial.settle);
            if done {
                self.pass_trial(out);
            }
        }
    }

    /// A copy did not come up: those after it run on as they are.
    fn stop_rolling(&mut self, number: u32, why: &str, out: &mut Vec<Task>) {
        let Some(roll) = self.roll.take() else { return };
        let name = |number| format!("{}.{number}", self.name());
        let left: Vec<String> = roll.left.into_iter().map(name).collect();
        let on = match left.as_slice() {
            [] => String::new(),
            [one] => format!("; {one} runs on as before"),
            several => format!("; {} run on as before", several.join(", ")),
        };
        let only = self.copies.len() == 1;
        let who = if only { self.name().to_string() } else { name(number) };
        out.push(Task::Rolled(Err(format!("{who}: {why}{on}"))));
    }

    /// This copy has no turn any more; the others go on.
    pub(super) fn leave_out(&mut self, number: u32) {
        if let Some(roll) = &mut self.roll {
            roll.left.retain(|left| *left != number);
            roll.current.take_if(|current| current.number == number);
        }
    }

    /// Nobody has a turn any more.
    pub(super) fn call_off(&mut self, why: &str, out: &mut Vec<Task>) {
        if self.roll.take().is_some() {
            out.push(Task::Rolled(Err(why.to_owned())));
        }
    }

    pub(super) fn begin_trial(&mut self, release: Release, settle: Duration, out: &mut Vec<Task>) {
        let cause = format!("release {}", release.id);
        self.call_off(&cause, out);
        let previous = self.release.replace(release);
        self.trial = Some(Trial { previous, settle, until: None });
        let numbers = self.copies.iter().filter(|copy| !copy.leaving).map(super::Copy::number).collect();
        self.roll(numbers, &cause);
    }

    pub(super) fn pass_trial(&mut self, out: &mut Vec<Task>) {
        if self.trial.take().is_some() {
            self.forget_trial();
            out.push(Task::TrialEnded(Ok(())));
        }
    }

    /// Goes back to the release before; whether anything is started in it is the caller's.
    pub(super) fn fail_trial(&mut self, reason: &str, out: &mut Vec<Task>) {
        let Some(trial) = self.trial.take() else { return };
        self.release = trial.previous;
        self.forget_trial();
        self.call_off(reason, out);
        out.push(Task::TrialEnded(Err(reason.to_owned())));
    }

    fn forget_trial(&mut self) {
        for copy in &mut self.copies {
            copy.run.instance.on_trial = false;
        }
    }

    /// Every copy that runs another release than the one of now goes back to it at once.
    pub(super) fn all_back(&mut self, cause: &str, now: Now, out: &mut Vec<Task>) {
        for copy in 0..self.copies.len() {
            if self.copies[copy].run.release == self.release {
                continue;
            }
            if self.may_run(&self.copies[copy]) {
                self.set_going_anew(copy, cause, now, out);
            } else {
                self.tell(copy, out, |instance, app, out| instance.cease(app, cause, now, out));
            }
        }
    }
}
