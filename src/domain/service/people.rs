//! What people want of an app: starts, stops, and what stays stopped until somebody starts it.

use super::{App, Copy, app::Task};
use crate::domain::model::Now;

impl App {
    /// Takes over what a person had stopped before everhook started: all of it, or single copies.
    #[must_use]
    pub fn with_holds(mut self, holds: Vec<(Option<u32>, String)>) -> Self {
        for (number, by) in holds {
            match number {
                None => self.held = Some(by.into()),
                Some(number) => {
                    if let Some(copy) = self.copy_mut(number) {
                        copy.held = Some(by.into());
                    }
                }
            }
        }
        self
    }

    /// What people have stopped: all of it (`None`), or single copies, and who did.
    #[must_use]
    pub fn holds(&self) -> Vec<(Option<u32>, String)> {
        let all = self.held.iter().map(|by| (None, by.to_string()));
        let copies =
            self.copies.iter().filter_map(|copy| copy.held.as_ref().map(|by| (Some(copy.number()), by.to_string())));
        all.chain(copies).collect()
    }

    /// The copies that an event is about.
    pub(super) fn copies_of(&self, only: Option<u32>) -> Vec<usize> {
        let wanted = |copy: &Copy| !copy.leaving && only.is_none_or(|number| number == copy.number());
        (0..self.copies.len()).filter(|copy| wanted(&self.copies[*copy])).collect()
    }

    pub(super) fn start(&mut self, only: Option<u32>, restart: bool, by: &str, now: Now, out: &mut Vec<Task>) {
        self.release_holds(only, out);
        if self.spec.schedule.is_some() {
            self.due = Some(by.into());
        }
        let copies = self.copies_of(only);
        if restart {
            let numbers = copies.iter().map(|copy| self.copies[*copy].number()).collect();
            return self.roll(numbers, by);
        }
        for copy in copies {
            if self.may_run(&self.copies[copy]) {
                self.set_going(copy, by, now, out);
            }
        }
    }

    /// What a person stopped, a person starts; of all that was stopped, one copy may be started alone.
    fn release_holds(&mut self, only: Option<u32>, out: &mut Vec<Task>) {
        let before = self.holds();
        let all = self.held.take();
        for copy in &mut self.copies {
            if only.is_none_or(|number| number == copy.number()) {
                copy.held = None;
            } else if copy.held.is_none() {
                copy.held.clone_from(&all);
            }
        }
        if self.holds() != before {
            out.push(Task::KeepHolds);
        }
    }

    pub(super) fn stop(&mut self, only: Option<u32>, by: &str, now: Now, out: &mut Vec<Task>) {
        let before = self.holds();
        let asked = |copy: &usize| self.held.is_some() || self.copies[*copy].held.is_some();
        let again: Vec<usize> = self.copies_of(only).into_iter().filter(asked).collect();
        for copy in self.copies_of(only) {
            if only.is_some() {
                self.copies[copy].held = Some(by.into());
            }
        }
        if only.is_none() {
            self.held = Some(by.into());
        }
        self.due = None;
        if self.holds().len() != before.len() {
            out.push(Task::KeepHolds);
        }
        let stopped = only.map_or_else(|| "the app".to_owned(), |number| format!("{}.{number}", self.name()));
        if self.trial.is_some() {
            self.fail_trial(&format!("{stopped} was stopped meanwhile"), now, out);
            if only.is_some() {
                self.all_back("back to the release before", now, out);
            }
        } else if let Some(number) = only {
            self.leave_out(number);
        } else {
            self.call_off(&format!("{stopped} was stopped meanwhile"), out);
        }
        for copy in self.copies_of(only) {
            self.send_off(copy, by, now, out);
            let seat = self.copies[copy].run.seat;
            // Who ends for another reason has its time, and only a second wish of people takes that away.
            let hurry = again.contains(&copy);
            self.tell(seat, out, |instance, app, out| instance.stop(hurry, app, by, now, out));
        }
    }
}
