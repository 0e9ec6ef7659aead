//! One by one: a restart of several copies, each up before the next one goes down; and the trial of a
//! release, which is such a restart and a time to settle.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{App, Copy, Release, app::Task, copy::Progress, instance::State};
use crate::domain::{
    config::{self, Replace},
    model::Now,
};

/// A new release being judged.
#[derive(Debug, Clone)]
pub(super) struct Trial {
    previous: Option<Arc<Release>>,
    settle: Duration,
    /// Where it fails, nothing is started in the release before.
    stands: bool,
    /// It has settled then; `None` until every copy is ready.
    pub until: Option<Instant>,
}

/// A restart under way.
#[derive(Debug, Clone)]
pub(super) struct Roll {
    cause: String,
    left: VecDeque<u32>,
    current: Option<Current>,
    /// It is for the sake of a release: what runs may take that as it is.
    in_place: bool,
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
    #[must_use]
    pub fn awaits_turn(&self, number: u32) -> bool {
        self.roll.as_ref().is_some_and(|roll| roll.left.contains(&number))
    }

    /// Starts these copies anew, one by one. Whoever asks during a restart has their copies added to it;
    /// the one whose turn it is has another one.
    pub(super) fn roll(&mut self, numbers: Vec<u32>, cause: &str) {
        let new = || Roll { cause: String::new(), left: VecDeque::new(), current: None, in_place: false };
        let roll = self.roll.get_or_insert_with(|| Box::new(new()));
        cause.clone_into(&mut roll.cause);
        // Whoever wants other processes gets them.
        roll.in_place = false;
        if roll.current.as_ref().is_some_and(|current| numbers.contains(&current.number)) {
            roll.current = None;
        }
        roll.left.retain(|number| !numbers.contains(number));
        roll.left.extend(numbers);
    }

    /// The same for the sake of a release: by `reload` where the config names a way.
    fn roll_to_release(&mut self, numbers: Vec<u32>, cause: &str) {
        self.roll(numbers, cause);
        if let Some(roll) = &mut self.roll {
            roll.in_place = true;
        }
    }

    /// Can the process of this copy take another release as it is?
    fn reloads(&self, copy: usize) -> bool {
        let runs = matches!(self.copies[copy].instance().state(), State::Ready { .. });
        self.spec.reload != config::Reload::Restart && runs
    }

    fn reload(&mut self, copy: usize, cause: &str, now: Now, out: &mut Vec<Task>) {
        self.copies[copy].run.release.clone_from(&self.release);
        self.copies[copy].run.instance.on_trial = self.trial.is_some();
        self.copies[copy].rejected = None;
        let seat = self.copies[copy].run.seat;
        self.tell(seat, out, |instance, app, out| instance.reload(app, cause, now, out));
    }

    pub(super) fn go_on_rolling(&mut self, now: Now, out: &mut Vec<Task>) {
        while let Some(roll) = &mut self.roll {
            let (current, next) = (roll.current.clone(), roll.left.front().copied());
            if let Some(Current { number, failures }) = current {
                match self.copy(number).map(|copy| copy.progress(failures)) {
                    Some(Progress::Going) => return,
                    Some(Progress::Failed(why)) => return self.stop_rolling(number, &why, now, out),
                    Some(Progress::Up) => self.turn_over(number, now, out),
                    None => {}
                }
                if let Some(roll) = &mut self.roll {
                    roll.current = None;
                }
            } else if let Some(number) = next {
                if !self.begin_turn(number, now, out) {
                    return;
                }
                if let Some(roll) = &mut self.roll {
                    roll.left.pop_front();
                }
            } else {
                self.rolled(now, out);
            }
        }
    }

    /// False: somebody must leave before.
    fn begin_turn(&mut self, number: u32, now: Now, out: &mut Vec<Task>) -> bool {
        let Some(copy) = self.copies.iter().position(|copy| copy.number() == number) else { return true };
        if !self.may_run(&self.copies[copy]) {
            return true;
        }
        let Some(cause) = self.roll.as_ref().map(|roll| roll.cause.clone()) else { return true };
        let in_place = self.roll.as_ref().is_some_and(|roll| roll.in_place) && self.reloads(copy);
        let beside = !in_place
            && self.spec.replace == Replace::StartFirst
            && matches!(self.copies[copy].instance().state(), State::Ready { .. });
        if let Some(seat) = self.copies[copy].give_up_new() {
            self.tell(seat, out, |instance, app, out| instance.cease(app, &cause, now, out));
        }
        self.copies[copy].tidy();
        if beside && self.copies[copy].beside.is_some() {
            return false;
        }
        let failures = self.copies[copy].instance().failures();
        if let Some(roll) = &mut self.roll {
            roll.current = Some(Current { number, failures });
        }
        if in_place {
            self.reload(copy, &cause, now, out);
        } else if beside {
            let seat = self.copies[copy].put_beside(self.release.clone(), now.wall);
            self.tell(seat, out, |instance, _, out| instance.start(&cause, now, out));
        } else {
            self.copies[copy].run.instance.on_trial = self.trial.is_some();
            self.set_going_anew(copy, &cause, now, out);
        }
        true
    }

    /// A copy is up that had its turn. On trial the old one stays until the new one has settled.
    fn turn_over(&mut self, number: u32, now: Now, out: &mut Vec<Task>) {
        if self.trial.is_none() {
            self.take_over(number, now, out);
        }
    }

    fn take_over(&mut self, number: u32, now: Now, out: &mut Vec<Task>) {
        let old = self.copies.iter_mut().find(|copy| copy.number() == number).and_then(Copy::take_over);
        if let Some(seat) = old {
            self.tell(seat, out, |instance, app, out| instance.drain(app, now, out));
        }
    }

    /// Every copy is up.
    fn rolled(&mut self, now: Now, out: &mut Vec<Task>) {
        self.roll = None;
        out.push(Task::Rolled(Ok(())));
        let is_done = |run: &super::Run| matches!(run.instance.state(), State::Done);
        let done = self.copies.iter().all(|copy| copy.runs().last().is_some_and(is_done));
        if let Some(trial) = &mut self.trial {
            trial.until = Some(now.mono + trial.settle);
            if done {
                self.pass_trial(now, out);
            }
        }
    }

    /// A copy did not come up: those after it run on as they are.
    fn stop_rolling(&mut self, number: u32, why: &str, now: Now, out: &mut Vec<Task>) {
        if self.trial.is_some() {
            return self.take_back(&format!("{}.{number}: {why}", self.name()), now, out);
        }
        let Some(roll) = self.roll.take() else { return };
        let name = |number| format!("{}.{number}", self.name());
        let runs = |number: &u32| self.copy(*number).is_some_and(Copy::is_active);
        let left: Vec<String> = roll.left.into_iter().filter(runs).map(name).collect();
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

    pub(super) fn begin_trial(&mut self, release: Release, settle: Duration, stands: bool, out: &mut Vec<Task>) {
        let cause = format!("release {}", release.id);
        self.call_off(&cause, out);
        let previous = self.release.replace(Arc::new(release));
        let stands = stands && !self.spec.keeps_the_old_one();
        self.trial = Some(Box::new(Trial { previous, settle, stands, until: None }));
        let numbers = self.copies.iter().filter(|copy| !copy.leaving).map(Copy::number).collect();
        self.roll_to_release(numbers, &cause);
    }

    /// Nobody is about to come or to go, and whoever is asked whether it is well has said so once, however
    /// short the time to settle is.
    pub(super) fn is_settled(&self) -> bool {
        self.copies.iter().filter(|copy| !copy.leaving).all(|copy| copy.runs().all(|run| run.instance.is_settled()))
    }

    pub(super) fn judge_trial(&mut self, now: Now, out: &mut Vec<Task>) {
        let until = self.trial.as_ref().and_then(|trial| trial.until);
        if until.is_some_and(|until| until <= now.mono) && self.is_settled() {
            self.pass_trial(now, out);
        }
    }

    fn pass_trial(&mut self, now: Now, out: &mut Vec<Task>) {
        if self.trial.take().is_none() {
            return;
        }
        for number in self.copies.iter().map(Copy::number).collect::<Vec<_>>() {
            self.take_over(number, now, out);
        }
        self.forget_trial();
        out.push(Task::TrialEnded(Ok(())));
    }

    /// The release is not proven: all of it goes back, or what had its turn goes on by the usual rules and
    /// the rest as it is.
    pub(super) fn take_back(&mut self, reason: &str, now: Now, out: &mut Vec<Task>) {
        let stands = self.trial.as_ref().is_some_and(|trial| trial.stands);
        self.fail_trial(reason, now, out);
        if !stands {
            self.all_back("back to the release before", now, out);
        }
    }

    /// Goes back to the release before, where it does not stand; whether anything is started in it is the
    /// caller's.
    pub(super) fn fail_trial(&mut self, reason: &str, now: Now, out: &mut Vec<Task>) {
        let Some(trial) = self.trial.take() else { return };
        let folder = |release: &Option<Arc<Release>>| release.as_ref().map(|release| release.directory.clone());
        if !trial.stands {
            self.parked = trial.previous.is_some() && folder(&trial.previous) == folder(&self.release);
            self.release = trial.previous;
        }
        for copy in 0..self.copies.len() {
            if self.copies[copy].new_seat().is_some() {
                self.send_off(copy, reason, now, out);
            }
        }
        self.forget_trial();
        self.call_off(reason, out);
        out.push(Task::TrialEnded(Err(reason.to_owned())));
    }

    fn forget_trial(&mut self) {
        for copy in &mut self.copies {
            copy.run.instance.on_trial = false;
        }
    }

    /// To another release, without a trial, and where that is wanted without a gap.
    pub(super) fn go_back(&mut self, cause: &str, now: Now, out: &mut Vec<Task>) {
        self.call_off(cause, out);
        for copy in 0..self.copies.len() {
            self.send_off(copy, cause, now, out);
        }
        if self.spec.replace == Replace::StopFirst {
            return self.all_back(cause, now, out);
        }
        let others = self.copies.iter().filter(|copy| copy.run.release != self.release && !copy.leaving);
        self.roll_to_release(others.map(Copy::number).collect(), cause);
    }

    /// Every copy that runs another release than the one of now goes back to it at once.
    pub(super) fn all_back(&mut self, cause: &str, now: Now, out: &mut Vec<Task>) {
        for copy in 0..self.copies.len() {
            if self.copies[copy].run.release == self.release {
                continue;
            }
            if self.may_run(&self.copies[copy]) && self.reloads(copy) {
                self.reload(copy, cause, now, out);
            } else if self.may_run(&self.copies[copy]) {
                self.set_going_anew(copy, cause, now, out);
            } else {
                let seat = self.copies[copy].run.seat;
                self.tell(seat, out, |instance, app, out| instance.cease(app, cause, now, out));
            }
        }
    }
}
