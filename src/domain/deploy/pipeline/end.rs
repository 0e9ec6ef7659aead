//! How a deploy ends before it is live: by its time, by somebody's word, by a failure.

use super::{Course, Next, Phase, Pipeline, Stop};
use crate::domain::{
    api::{By, DeployState, StepState},
    deploy::{Action, Queued, queue::Waiting, record, task},
    model::{Now, show_span},
};

impl Pipeline {
    pub(super) fn timer(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        if self.deadline().is_none_or(|at| now.mono < at) {
            return Course::Goes;
        }
        let label = self.label();
        let why = match self.step_limit.filter(|(at, _)| *at <= self.limit) {
            Some((_, length)) => format!("{label} timed out after {}", show_span(length)),
            None => {
                format!("{label} timed out after {}, the limit of the whole deploy", show_span(self.deploy.timeout))
            }
        };
        self.stop(Stop::TimedOut(why), now, out)
    }

    /// Ends it where that is still possible: at once, or when what runs has ended.
    pub(super) fn stop(&mut self, stop: Stop, now: Now, out: &mut Vec<Action>) -> Course {
        match (self.phase, &stop) {
            // It switches at once: there is nothing to begin anew.
            (Phase::Saving(_), Stop::Anew) if self.queued.is_rollback() => {}
            (Phase::Saving(Next::Keep), _) => {}
            // The service ends what is tried, and what cannot be taken back then stands.
            (Phase::Trying, Stop::Requeued) if self.irreversible => {}
            (Phase::Saving(_), _) | (Phase::Trying, Stop::Requeued) => return self.stopped(stop, now, out),
            (Phase::Trying | Phase::Flushing | Phase::Writing, _) => {}
            (Phase::Making, _) => self.stop_then(stop),
            (
                Phase::Fetching
                | Phase::Clearing
                | Phase::CheckingOut
                | Phase::Sharing
                | Phase::Stepping
                | Phase::Weighing
                | Phase::Securing,
                _,
            ) => {
                if self.stop.is_none() {
                    out.push(Action::EndJob { deploy: self.id() });
                }
                self.stop_then(stop);
            }
        }
        Course::Goes
    }

    /// The first word holds, but a person's counts more than the wish to begin anew.
    fn stop_then(&mut self, stop: Stop) {
        if matches!((&self.stop, &stop), (None, _) | (Some(Stop::Anew), Stop::Cancelled(_))) {
            self.stop = Some(stop);
        }
    }

    /// What is asked for, without what this try has found out: the tip is looked for again where it
    /// was meant, but what was approved stays that commit.
    fn anew(&self) -> Queued {
        let mut queued = Queued { since: Some(self.queued.rank()), ..self.queued.clone() };
        let view = &mut queued.view;
        let pushed = matches!(view.by, By::Delivery { .. }) && !task::means_tip(&self.queued, &self.deploy, self.tip);
        if !pushed && !self.queued.is_rollback() && view.approved_by.is_none() {
            view.commit = None;
        }
        if !self.queued.is_rollback() {
            view.release = None;
        }
        queued
    }

    pub(super) fn stopped(&mut self, stop: Stop, now: Now, out: &mut Vec<Action>) -> Course {
        let (state, step, why) = match stop {
            Stop::TimedOut(why) => (DeployState::Failed, StepState::TimedOut, why),
            Stop::Cancelled(why) => (DeployState::Cancelled, StepState::Cancelled, why),
            Stop::Anew => {
                out.push(Action::Anew(Box::new(self.anew())));
                let why = "a reload changed the app: another deploy begins anew by the new config";
                (DeployState::Cancelled, StepState::Cancelled, why.to_owned())
            }
            Stop::Requeued => {
                record::requeue(&mut self.queued.view);
                // Nothing went wrong with this try.
                self.queued.attempts -= 1;
                self.persist(out);
                let (queued, deploy) = (self.queued.clone(), self.deploy.clone());
                let (tip, also, unsaved) = (self.tip, self.also.clone(), self.unsaved);
                return Course::Requeued(Box::new(Waiting { queued, deploy, tip, also, unsaved, built: None }));
            }
        };
        self.end(state, step, Some(why), now, out)
    }

    pub(super) fn failed(&mut self, why: String, now: Now, out: &mut Vec<Action>) -> Course {
        self.end(DeployState::Failed, StepState::Failed, Some(why), now, out)
    }

    pub(super) fn passed_over(&mut self, state: DeployState, why: String, now: Now, out: &mut Vec<Action>) -> Course {
        self.end(state, StepState::Done, Some(why), now, out)
    }

    pub(super) fn end(
        &mut self,
        state: DeployState,
        step: StepState,
        why: Option<String>,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Course {
        let lasted = now.mono.saturating_duration_since(self.step_began);
        record::end_step(&mut self.queued.view, step, Some(lasted), None);
        self.queued.view.reason = why;
        record::end(self.queued.view.clone(), self.queued.attempts, state, now.wall, out);
        Course::Ended
    }
}
