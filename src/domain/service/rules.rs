//! Whether an app is to run: by its config, what people have stopped, what it waits for and its times. What
//! lies idle follows these rules.

use super::{App, Copy, Rest, Run, app::Task, instance::State};
use crate::domain::model::{At, Now};

impl App {
    /// Is something of `requires` not up?
    #[must_use]
    pub fn lacks(&self) -> bool {
        self.lacks.is_some()
    }

    /// Why it does not run by rule, whatever its last run did.
    #[must_use]
    pub fn rests(&self) -> Option<Rest> {
        if self.ending || self.removed {
            Some(Rest::Ending)
        } else if !self.spec.enabled {
            Some(Rest::Disabled)
        } else if let Some(problem) = &self.spec.problem {
            Some(Rest::Problem(problem.to_string()))
        } else if let Some(by) = self.held.clone().or_else(|| self.all_copies_held()) {
            Some(Rest::Held(by.into()))
        } else if self.spec.deploy.is_some() && self.release.is_none() {
            Some(Rest::NoRelease)
        } else if self.parked {
            Some(Rest::Parked)
        } else if let Some(schedule) = self.spec.schedule.as_ref().filter(|_| self.due.is_none()) {
            Some(Rest::Scheduled(schedule.text.clone()))
        } else if let Some(what) = &self.lacks {
            Some(Rest::Lacks(what.to_string()))
        } else {
            self.blocked.as_deref().map(|why| Rest::Blocked(why.to_owned()))
        }
    }

    fn all_copies_held(&self) -> Option<Box<str>> {
        self.copies.iter().map(|copy| copy.held.clone()).collect::<Option<Vec<_>>>()?.pop()
    }

    /// The same for one copy.
    pub(super) fn copy_rests(&self, copy: &Copy) -> Option<Rest> {
        match self.rests() {
            None | Some(Rest::Blocked(_) | Rest::Lacks(_) | Rest::Scheduled(_)) if copy.held.is_some() => {
                copy.held.as_deref().map(|by| Rest::Held(by.to_owned()))
            }
            rests => rests,
        }
    }

    /// Have people stopped it, or this copy of it?
    #[must_use]
    pub fn is_held(&self, only: Option<u32>) -> bool {
        let mut meant = self.copies.iter().filter(|copy| only.is_none_or(|number| number == copy.number()));
        self.held.is_some() || meant.all(|copy| copy.held.is_some())
    }

    /// Could a trial run now, or is the release only to be made live?
    #[must_use]
    pub fn would_run(&self) -> bool {
        // What a deploy brings is run at its time.
        if self.spec.schedule.is_some() {
            return false;
        }
        self.heeds_changes() || (self.spec.command.is_some() && self.rests() == Some(Rest::NoRelease))
    }

    /// Would a change of its files start something anew?
    #[must_use]
    pub fn heeds_changes(&self) -> bool {
        self.copies.iter().any(|copy| self.may_run(copy))
    }

    /// May it be started (again)? What runs is not held back by `after` any more.
    pub(super) fn may_run(&self, copy: &Copy) -> bool {
        let rule = match self.copy_rests(copy) {
            None => true,
            Some(Rest::Blocked(_)) => !matches!(copy.instance().state(), State::Stopped | State::Waiting),
            Some(_) => false,
        };
        rule && self.spec.command.is_some() && !copy.leaving
    }

    /// What it requires went down: it goes too, and comes back with it.
    pub(super) fn lack(&mut self, what: Option<String>, now: Now, out: &mut Vec<Task>) {
        if let (Some(what), None) = (&what, &self.lacks) {
            self.fail_trial(what, now, out);
            self.call_off(what, out);
            self.cease_all(what, now, out);
        }
        self.lacks = what.map(Into::into);
    }

    /// A run that is still going on, or about to be tried again, is not joined by another one.
    pub(super) fn come_due(&mut self, at: At, out: &mut Vec<Task>) {
        let waits = matches!(self.rests(), None | Some(Rest::Scheduled(_) | Rest::Blocked(_) | Rest::Lacks(_)));
        let tries = |run: &Run| matches!(run.instance.state(), State::Backoff { .. });
        if !waits || self.spec.schedule.is_none() {
            return;
        }
        if self.due.is_some() || self.is_active() || self.runs().any(tries) {
            out.push(Task::RunSkipped(format!("the run of {at} is skipped: the one before has not ended")));
        } else {
            self.due = Some(format!("scheduled for {at}").into());
        }
    }

    /// Brings idle copies in line with what the rules say.
    pub(super) fn follow_rules(&mut self, now: Now, out: &mut Vec<Task>) {
        self.copies.iter_mut().for_each(Copy::tidy);
        self.copies.retain(|copy| {
            let gone = copy.leaving && !copy.is_active();
            if gone {
                out.push(Task::Gone(copy.number()));
            }
            !gone
        });
        if self.removed && !self.is_active() {
            out.push(Task::Removed);
        }
        if self.spec.command.is_none() || self.removed {
            return;
        }
        for copy in 0..self.copies.len() {
            if !self.copies[copy].leaving {
                self.follow_rule(copy, now, out);
            }
        }
    }

    /// What an app without a release waits for.
    #[must_use]
    pub fn first_deploy(&self) -> String {
        let unlooked = self.spec.deploy.as_ref().and_then(|deploy| deploy.unlooked());
        match (unlooked, &self.blocked) {
            (Some(why), _) => format!("first deploy, when it is asked for: {why}"),
            (None, Some(why)) => format!("first deploy, which {why}"),
            (None, None) => "first deploy".to_owned(),
        }
    }

    fn follow_rule(&mut self, copy: usize, now: Now, out: &mut Vec<Task>) {
        let instance = self.copies[copy].instance();
        let idle = matches!(instance.state(), State::Stopped | State::Waiting);
        let (active, due) = (instance.is_active(), self.due.clone());
        let (state, reason) = match self.copy_rests(&self.copies[copy]) {
            None => {
                if (idle || due.is_some()) && !self.awaits_turn(self.copies[copy].number()) {
                    self.set_going(copy, due.as_deref().unwrap_or("start"), now, out);
                }
                return;
            }
            Some(_) if active => return,
            Some(Rest::Problem(reason)) => (State::Failed { retry: None }, reason),
            Some(Rest::Held(by)) => (State::Stopped, by),
            Some(Rest::Disabled) => (State::Stopped, "disabled in the config".to_owned()),
            Some(Rest::Ending) => (State::Stopped, "everhook shuts down".to_owned()),
            Some(Rest::NoRelease) => (State::Waiting, self.first_deploy()),
            Some(Rest::Parked) => (State::Waiting, "its working tree is being brought back".to_owned()),
            // Whatever has run before is not held back by `after` when it failed or is done.
            Some(Rest::Blocked(reason)) if idle => (State::Waiting, reason),
            Some(Rest::Scheduled(when)) if idle => (State::Waiting, format!("scheduled at \"{when}\"")),
            Some(Rest::Lacks(what)) if idle || matches!(instance.state(), State::Backoff { .. }) => {
                (State::Waiting, what)
            }
            Some(Rest::Blocked(_) | Rest::Lacks(_) | Rest::Scheduled(_)) => return,
        };
        let seat = self.copies[copy].run.seat;
        self.tell(seat, out, |instance, _, out| instance.rest(state, &reason, now, out));
    }
}
