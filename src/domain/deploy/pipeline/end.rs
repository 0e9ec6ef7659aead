//! How a deploy ends: by its time, by somebody's word, by a failure, or live; then the steps that follow.

use super::{Course, Next, Over, Phase, Pipeline, Stop};
use crate::domain::{
    api::{By, DeployState, StepState},
    deploy::{Action, Live, Queued, queue::Waiting, record, task},
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
            (_, Stop::Anew) if self.is_over() => {}
            (_, Stop::Cancelled(_) | Stop::Anew) if self.returning.is_some() => {}
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
                | Phase::Securing
                | Phase::Placing
                | Phase::Healing
                | Phase::Noting
                | Phase::Returning
                | Phase::Rebuilding
                | Phase::SharingAgain
                | Phase::Bridging,
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
        if self.is_over() {
            let (step, why) = match stop {
                Stop::TimedOut(why) => (StepState::TimedOut, why),
                Stop::Cancelled(why) => (StepState::Cancelled, format!("{} was {why}", self.label())),
                Stop::Anew | Stop::Requeued => {
                    (StepState::Cancelled, format!("{} was ended by a shutdown", self.label()))
                }
            };
            return self.give_up(step, &why, now, out);
        }
        let (state, step, why) = match stop {
            Stop::TimedOut(why) => (DeployState::Failed, StepState::TimedOut, why),
            Stop::Cancelled(why) => (DeployState::Cancelled, StepState::Cancelled, why),
            Stop::Anew => {
                out.push(Action::Anew(Box::new(self.anew())));
                let why = "a reload changed the app: another deploy begins anew by the new config";
                (DeployState::Cancelled, StepState::Cancelled, why.to_owned())
            }
            Stop::Requeued => {
                self.take_foretold_back();
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
        if self.is_over() {
            return self.give_up(StepState::Failed, &why, now, out);
        }
        self.end(DeployState::Failed, StepState::Failed, Some(why), now, out)
    }

    pub(super) fn passed_over(&mut self, state: DeployState, why: String, now: Now, out: &mut Vec<Action>) -> Course {
        self.end(state, StepState::Done, Some(why), now, out)
    }

    /// From here on nothing changes how it ended; steps may follow.
    pub(super) fn end(
        &mut self,
        state: DeployState,
        step: StepState,
        why: Option<String>,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Course {
        if self.must_return(state) {
            return self.begin_return(state, step, why, now, out);
        }
        self.end_step(step, now);
        self.take_foretold_back();
        self.queued.view.reason = why;
        self.queued.view.state = state;
        self.over = match state {
            DeployState::Live => self.target().map(|(release, commit)| Over::Live(Live { release, commit })),
            DeployState::Failed | DeployState::RolledBack => Some(Over::Failed),
            _ => None,
        };
        if self.over.is_none() {
            return self.close(now, out);
        }
        if !self.made {
            // There is no folder for a step to work in.
            out.extend(record::take_release(&mut self.queued.view));
        }
        self.limit = now.mono + self.deploy.timeout;
        self.next_step(now, out)
    }

    /// Ends what follows the end: the rest of it does not run.
    fn give_up(&mut self, step: StepState, why: &str, now: Now, out: &mut Vec<Action>) -> Course {
        self.end_step(step, now);
        self.steps.clear();
        let view = &mut self.queued.view;
        let line = format!("{why}; the deploy stays {}", view.state);
        if view.state == DeployState::Live {
            view.reason = Some(view.reason.take().map_or_else(|| why.to_owned(), |reason| format!("{reason}; {why}")));
        }
        let (deploy, app) = (view.id, view.app.clone());
        out.push(Action::Note { deploy, app, line, trouble: true });
        self.close(now, out)
    }

    pub(super) fn end_step(&mut self, step: StepState, now: Now) {
        let lasted = now.mono.saturating_duration_since(self.step_began);
        record::end_step(&mut self.queued.view, step, Some(lasted), None);
    }

    /// Nothing follows any more.
    pub(super) fn close(&mut self, now: Now, out: &mut Vec<Action>) -> Course {
        let view = self.queued.view.clone();
        let state = view.state;
        record::end(view, self.queued.attempts, state, now.wall, out);
        let Some(Over::Live(live)) = self.over.take() else { return Course::Ended };
        out.push(Action::Prune { app: self.queued.view.app.clone(), keep: self.deploy.kept() });
        Course::Live(live)
    }
}
