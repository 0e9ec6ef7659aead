//! How a run ends, and what follows: the rest of its tree is ended, then a rule decides on the next one.

use std::time::Duration;

use super::{Action, End, Instance, Main, Note, Said, State, Stopping, Then};
use crate::domain::{
    config::{self, Policy},
    model::{Exit, Now, show_span},
    service::backoff::Next,
};

impl Instance {
    /// The main process has ended; `alone`: nothing else of the tree lives.
    pub(in crate::domain::service) fn exited(
        &mut self,
        exit: Exit,
        alone: bool,
        app: &config::App,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Option<Note> {
        let nothing = Said::default();
        let said = self.said.as_deref().unwrap_or(&nothing);
        let exit = said.exit(exit);
        let ended = said.ended(exit);
        self.last_exit = Some((exit, now.wall));
        let ready_for = match &mut self.state {
            State::Starting { .. } => None,
            State::Ready { since, .. } => Some(now.mono.duration_since(*since)),
            State::Stopping(stopping) => {
                stopping.main = Main::Gone;
                if let Then::JudgeExit { ready_for } = stopping.then {
                    stopping.then = Then::Judge(End { exit: Some(exit), ready_for, reason: ended });
                }
                if alone {
                    return self.tree_empty(app, now, out);
                }
                let signal = app.stop.stages.get(stopping.stage).map(|stage| stage.signal);
                out.push(signal.map_or(Action::Kill, Action::SignalTree));
                return None;
            }
            _ => return None,
        };
        out.push(Action::StopProbe);
        let reason = format!("{ended}; ending the rest of its tree");
        let end = End { exit: Some(exit), ready_for, reason: ended };
        if alone {
            return self.after_end(end, app, now, out);
        }
        self.end_tree(Main::Gone, Then::Judge(end), &reason, app, now, out);
        None
    }

    pub(super) fn end_tree(
        &mut self,
        main: Main,
        then: Then,
        reason: &str,
        app: &config::App,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let until = now.mono + app.stop.stages[0].timeout;
        self.reason = Some(reason.into());
        let stopping = Stopping { main, stage: 0, until, then, drains: false, asks: None };
        self.enter(State::Stopping(stopping.into()), reason, now, out);
        if main == Main::Gone {
            out.push(Action::SignalTree(app.stop.stages[0].signal));
        } else {
            self.ask(0, app, out);
        }
    }

    /// Nothing of the tree lives any more.
    pub(in crate::domain::service) fn tree_empty(
        &mut self,
        app: &config::App,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Option<Note> {
        let State::Stopping(stopping) = &self.state else { return None };
        match stopping.then.clone() {
            Then::Rest => {
                let reason = self.reason.clone().unwrap_or_default();
                self.enter(State::Stopped, &reason, now, out);
                Some(Note::Rested)
            }
            Then::StartAgain { cause } => {
                self.spawn(&cause, now, out);
                None
            }
            Then::Judge(end) => self.after_end(end, app, now, out),
            Then::JudgeExit { ready_for } => {
                let end = End { exit: None, ready_for, reason: "ended, nobody saw how".into() };
                self.after_end(end, app, now, out)
            }
        }
    }

    /// The one place that decides what follows a run that ended by itself.
    pub(super) fn after_end(&mut self, end: End, app: &config::App, now: Now, out: &mut Vec<Action>) -> Option<Note> {
        let rule = &app.restart;
        let success = end.exit.is_some_and(|exit| rule.is_success(exit));
        self.reason = Some(end.reason.as_str().into());
        if success && rule.policy != Policy::Always {
            self.reason = None;
            self.enter(State::Done, &end.reason, now, out);
            return Some(Note::Done);
        }
        self.failures += 1;
        let tried_again = !self.on_trial && rule.policy != Policy::Never;
        let next = tried_again.then(|| self.backoff.next(rule, end.ready_for, now.mono));
        if next != Some(Next::After(Duration::ZERO)) {
            out.push(Action::Crashed);
        }
        if self.on_trial {
            self.enter(State::Stopped, &end.reason, now, out);
            return Some(Note::TrialFailed(end.reason));
        }
        match next {
            None => self.fail(&end.reason, app, now, out),
            Some(Next::GiveUp) => {
                let given = format!("{} restarts within {}", rule.give_up.restarts, show_span(rule.give_up.within));
                self.fail(&format!("{}; gave up after {given}", end.reason), app, now, out);
            }
            Some(Next::After(Duration::ZERO)) => {
                self.restarts += 1;
                self.spawn(&end.reason, now, out);
            }
            Some(Next::After(delay)) => {
                let cause = format!("{}; next start in {}", end.reason, show_span(delay));
                self.enter(State::Backoff { until: now.mono + delay }, &cause, now, out);
            }
        }
        None
    }

    fn fail(&mut self, reason: &str, app: &config::App, now: Now, out: &mut Vec<Action>) {
        let retry = app.restart.retry_after.map(|after| now.mono + after);
        self.rest(State::Failed { retry }, reason, now, out);
    }
}

impl Said {
    /// Of a main process that is nobody's child of ours only it itself can tell.
    fn exit(&self, seen: Exit) -> Exit {
        match (seen, self.exit_status) {
            (Exit::Unknown, Some(status)) => Exit::Code(status.into()),
            _ => seen,
        }
    }

    fn ended(&self, exit: Exit) -> String {
        self.errno.map_or_else(|| exit.to_string(), |errno| format!("{exit}; it told errno {errno}"))
    }
}
