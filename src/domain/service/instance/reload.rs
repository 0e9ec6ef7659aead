//! How a process that runs is told of a new release, and how it shows that it has taken it. One that
//! speaks systemd's protocol shows it as `Type=notify-reload` of systemd.service(5) asks for: RELOADING=1
//! with a time that is not before the signal, then READY=1. Of any other nobody can say more than that it
//! took the signal: its life after that is its proof, by the trial's time to settle.

use std::time::{Duration, Instant};

use super::{Action, Instance, Note, State};
use crate::domain::{
    config::{self, Ready},
    model::{Now, Progress, show_span},
    service::Notice,
};

/// How long it may take where `ready` names no time.
const WITHIN: Duration = Duration::from_secs(60);

/// A reload under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloading {
    /// Tells answers of an earlier one apart.
    turn: u64,
    stage: Stage,
    /// Given up then.
    pub(super) until: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is being told.
    Telling,
    /// It is to say that it reloads; `since`: when it was told, in microseconds of the monotonic clock.
    Told { since: u64 },
    /// It said so.
    Begun,
}

impl Instance {
    /// Has the running process take the release that its seat is to run.
    pub(in crate::domain::service) fn reload(
        &mut self,
        app: &config::App,
        cause: &str,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let State::Ready { reload, .. } = &mut self.state else { return };
        self.reloads += 1;
        self.in_place = true;
        let until = now.mono + app.ready.within().unwrap_or(WITHIN);
        let before = reload.replace(Box::new(Reloading { turn: self.reloads, stage: Stage::Telling, until }));
        if before.is_some() {
            out.push(Action::StopReload);
        }
        self.note(format!("reloads: {cause}"), out);
        out.extend([Action::Progress(Progress::Leaving), Action::Reload { turn: self.reloads }]);
    }

    /// Is it still to show that it has taken a release?
    #[must_use]
    pub fn reloads(&self) -> bool {
        matches!(self.state, State::Ready { reload: Some(_), .. })
    }

    /// It was told, at this moment of the monotonic clock in microseconds, or could not be.
    pub(in crate::domain::service) fn told(
        &mut self,
        turn: u64,
        result: Result<u64, String>,
        app: &config::App,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Option<Note> {
        if matches!(self.state, State::Stopping(_)) {
            self.asked(turn, result, app, now, out);
            return None;
        }
        let says_reloading = self.says_reloading();
        let State::Ready { reload: Some(reload), .. } = &mut self.state else { return None };
        if (reload.turn, reload.stage) != (turn, Stage::Telling) {
            return None;
        }
        let since = match result {
            Ok(since) => since,
            Err(why) => return self.not_reloaded(&why, app, now, out),
        };
        let speaks = matches!(app.ready, Ready::Notify { .. });
        match &app.reload {
            config::Reload::Signal(_) if speaks => reload.stage = Stage::Told { since },
            // While the command ran it has begun, and maybe ended.
            config::Reload::Exec(_) if speaks && says_reloading => reload.stage = Stage::Begun,
            _ => self.has_reloaded(app, out),
        }
        None
    }

    /// What it says may be what a reload waits for.
    pub(super) fn said_reloading(&mut self, notice: &Notice, app: &config::App, out: &mut Vec<Action>) {
        let State::Ready { reload: Some(reload), .. } = &mut self.state else { return };
        if let Stage::Told { since } = reload.stage
            && notice.reloading
            && notice.monotonic.is_some_and(|time| time >= since)
        {
            reload.stage = Stage::Begun;
        }
        if notice.ready && reload.stage == Stage::Begun {
            self.has_reloaded(app, out);
        }
    }

    fn has_reloaded(&mut self, app: &config::App, out: &mut Vec<Action>) {
        if let State::Ready { reload, .. } = &mut self.state {
            *reload = None;
            if !self.on_trial {
                out.push(Action::Progress(Progress::Ready));
            }
            self.note("has taken the release".into(), out);
            self.question(app, out);
        }
    }

    /// Its time to show it is over.
    pub(super) fn reload_is_late(&mut self, app: &config::App, now: Now, out: &mut Vec<Action>) -> Option<Note> {
        let State::Ready { reload: Some(reload), .. } = &self.state else { return None };
        let missing = match reload.stage {
            Stage::Telling => "was not told",
            Stage::Told { .. } => "did not say RELOADING=1",
            Stage::Begun => "did not say READY=1",
        };
        let within = show_span(app.ready.within().unwrap_or(WITHIN));
        out.push(Action::StopReload);
        self.not_reloaded(&format!("it {missing} within {within} of a reload"), app, now, out)
    }

    /// On trial it runs on, and is to take the release before; else it is started anew.
    fn not_reloaded(&mut self, why: &str, app: &config::App, now: Now, out: &mut Vec<Action>) -> Option<Note> {
        if let State::Ready { reload, .. } = &mut self.state {
            *reload = None;
        }
        if self.on_trial {
            self.note(why.to_owned(), out);
            return Some(Note::TrialFailed(why.to_owned()));
        }
        self.restart(app, why, now, out);
        None
    }
}
