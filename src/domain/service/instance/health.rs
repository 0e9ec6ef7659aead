//! How an instance becomes ready, and how it is known to stay well: probes and what it says itself.

use std::time::Duration;

use super::{Action, End, Instance, Main, Note, Said, Silence, State, Stopping, Then};
use crate::domain::{
    config::{self, LiveProbe, Ready},
    model::{Now, Progress},
    service::notice::{Notice, Watchdog},
};

impl Instance {
    /// The main process runs: what is to prove that it is ready?
    pub(super) fn await_ready(&mut self, app: &config::App, now: Now, out: &mut Vec<Action>) -> Option<Note> {
        let State::Starting { until, .. } = &mut self.state else { return None };
        *until = app.ready.within().map(|within| now.mono + within);
        match &app.ready {
            Ready::Immediate => return Some(self.ready(app, now, out)),
            Ready::After(length) => *until = Some(now.mono + *length),
            // It says so itself.
            Ready::Notify { .. } => {}
            Ready::Fd { .. } | Ready::Probe { .. } => out.push(Action::Probe { attempt: self.attempt }),
        }
        None
    }

    /// A probe has proven it ready.
    pub(in crate::domain::service) fn probed(
        &mut self,
        attempt: u64,
        app: &config::App,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Option<Note> {
        let current = attempt == self.attempt && matches!(self.state, State::Starting { pid: Some(_), .. });
        current.then(|| self.ready(app, now, out))
    }

    /// Why the last probe failed, for whoever looks at the status meanwhile.
    pub(in crate::domain::service) fn probe_failed(&mut self, attempt: u64, why: String) {
        if attempt == self.attempt && matches!(self.state, State::Starting { .. }) {
            self.reason = Some(why.into());
        }
    }

    pub(super) fn ready(&mut self, app: &config::App, now: Now, out: &mut Vec<Action>) -> Note {
        if let State::Starting { pid: Some(pid), .. } = self.state {
            self.reason = None;
            if app.ready.within().is_some() {
                out.push(Action::Progress(Progress::Ready));
            }
            self.enter(State::Ready { pid, since: now.mono, reload: None }, "ready", now, out);
            self.watch(app, now, out);
        }
        Note::Ready
    }

    /// From now on it must show that it is well.
    pub(super) fn watch(&mut self, app: &config::App, now: Now, out: &mut Vec<Action>) {
        self.failed_probes = 0;
        self.listen(app, now);
        self.question(app, out);
    }

    /// It is asked from now on whether it is well, where the config names such a question.
    pub(super) fn question(&mut self, app: &config::App, out: &mut Vec<Action>) {
        self.unasked = app.live.as_ref().is_some_and(|live| live.probe != LiveProbe::Watchdog);
        if self.unasked {
            out.push(Action::Watch { attempt: self.attempt });
        }
    }

    /// Is it as it is to stay? Not while its first answer is still to come.
    pub(in crate::domain::service) fn is_settled(&self) -> bool {
        match self.state {
            State::Ready { .. } => !self.unasked,
            State::Starting { .. } | State::Stopping(_) | State::Backoff { .. } => false,
            State::Stopped | State::Waiting | State::Failed { .. } | State::Done => true,
        }
    }

    /// From now on it may be silent for so long. What it said itself counts more than the config.
    fn listen(&mut self, app: &config::App, now: Now) {
        let configured = app.watchdog();
        let every = self.said.as_ref().and_then(|said| said.watchdog_every).or(configured.map(|live| live.every));
        let limit = every.map(|every| configured.map_or(every, |live| live.silence(every)));
        let limit = limit.filter(|limit| !limit.is_zero());
        // A limit beyond the clock is none.
        self.watchdog = limit.and_then(|limit| Some(Silence { limit, until: now.mono.checked_add(limit)? }.into()));
    }

    /// The config says something else about readiness or liveness, and the process need not know.
    pub(in crate::domain::service) fn looked_at_anew(
        &mut self,
        before: &config::App,
        app: &config::App,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Option<Note> {
        match self.state {
            State::Starting { pid: Some(_), .. } if before.ready != app.ready => {
                out.push(Action::StopProbe);
                self.await_ready(app, now, out)
            }
            State::Ready { .. } if before.live != app.live => {
                out.push(Action::StopProbe);
                self.watch(app, now, out);
                None
            }
            _ => None,
        }
    }

    /// A ready instance was asked.
    pub(in crate::domain::service) fn live_probed(
        &mut self,
        attempt: u64,
        result: Result<(), String>,
        app: &config::App,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Option<Note> {
        let live = app.live.as_ref().filter(|_| attempt == self.attempt)?;
        if !matches!(self.state, State::Ready { .. }) {
            return None;
        }
        self.unasked = false;
        let Err(why) = result else {
            if std::mem::take(&mut self.failed_probes) > 0 {
                self.note("live again".into(), out);
            }
            return None;
        };
        self.failed_probes += 1;
        if self.on_trial && self.in_place {
            // The release is at fault, not the process, which takes the one before next.
            self.failed_probes = 0;
            let why = format!("live probe failed: {why}");
            self.note(why.clone(), out);
            return Some(Note::TrialFailed(why));
        }
        // A release on trial must have none.
        let most = if self.on_trial { 1 } else { live.failures };
        if self.failed_probes < most {
            self.note(format!("live probe {} of {most} failed: {why}", self.failed_probes), out);
        } else if most == 1 {
            self.unwell(&format!("live probe failed: {why}"), app, now, out);
        } else {
            self.unwell(&format!("{most} live probes in a row failed: {why}"), app, now, out);
        }
        None
    }

    /// Ends what runs, as a failure.
    pub(in crate::domain::service) fn unwell(
        &mut self,
        reason: &str,
        app: &config::App,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let State::Ready { pid, since, .. } = self.state else { return };
        out.push(Action::StopProbe);
        let ready_for = Some(now.mono.duration_since(since));
        let end = End { exit: None, ready_for, reason: reason.to_owned() };
        self.end_tree(Main::Alive(pid), Then::Judge(end), reason, app, now, out);
    }

    /// For the record, without a transition.
    pub(super) fn note(&self, cause: String, out: &mut Vec<Action>) {
        let state = super::name(&self.state);
        out.push(Action::Record { from: state, to: state, cause });
    }

    /// Another process of the tree is the main process from now on.
    pub(in crate::domain::service) fn main_is(&mut self, main: u32, out: &mut Vec<Action>) {
        match &mut self.state {
            State::Starting { pid: Some(pid), .. } | State::Ready { pid, .. } => *pid = main,
            State::Stopping(stopping) if matches!(stopping.main, Main::Alive(_)) => stopping.main = Main::Alive(main),
            _ => return,
        }
        self.note(format!("process {main} is the main process from now on"), out);
    }

    /// It said something about itself.
    pub(in crate::domain::service) fn notified(
        &mut self,
        notice: &Notice,
        app: &config::App,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Option<Note> {
        self.pid()?;
        self.remember(notice);
        let mut note = None;
        if notice.ready {
            note = self.said_ready(app, now, out);
        }
        // With READY=1 in the same message it has reloaded already.
        if notice.reloading && !notice.ready && matches!(self.state, State::Ready { .. }) && !self.says_reloading() {
            self.said.get_or_insert_default().reloading = true;
            self.note("reloading".into(), out);
        }
        self.said_reloading(notice, app, out);
        if notice.watchdog_every.is_some() || notice.watchdog == Some(Watchdog::Alive) {
            self.listen(app, now);
        }
        if notice.stopping {
            self.said_stopping(app, now, out);
        }
        // What the same message begins may take as long.
        if let Some(length) = notice.extend {
            self.extend(length, app, now);
        }
        if !notice.stopping && notice.watchdog == Some(Watchdog::Trigger) {
            self.unwell("it triggered its watchdog", app, now, out);
        }
        note
    }

    pub(super) fn says_reloading(&self) -> bool {
        self.said.as_ref().is_some_and(|said| said.reloading)
    }

    fn remember(&mut self, notice: &Notice) {
        let Said { status, errno, exit_status, watchdog_every, .. } = &mut **self.said.get_or_insert_default();
        if let Some(text) = &notice.status {
            *status = Some(text.clone()).filter(|text| !text.is_empty());
        }
        *errno = notice.errno.or(*errno);
        *exit_status = notice.exit_status.or(*exit_status);
        *watchdog_every = notice.watchdog_every.or(*watchdog_every);
    }

    fn said_ready(&mut self, app: &config::App, now: Now, out: &mut Vec<Action>) -> Option<Note> {
        if self.said.as_mut().is_some_and(|said| std::mem::take(&mut said.reloading)) {
            self.note("reloaded".into(), out);
        }
        let waits = matches!(self.state, State::Starting { .. }) && matches!(app.ready, Ready::Notify { .. });
        waits.then(|| self.ready(app, now, out))
    }

    /// Never shortens a limit.
    fn extend(&mut self, length: Duration, app: &config::App, now: Now) {
        let Some(at) = now.mono.checked_add(length) else { return };
        match &mut self.state {
            State::Starting { until: Some(until), .. } if app.ready.within().is_some() => *until = at.max(*until),
            State::Ready { reload: Some(reload), .. } => reload.until = at.max(reload.until),
            State::Stopping(stopping) if stopping.stage < app.stop.stages.len() => {
                stopping.until = at.max(stopping.until);
            }
            _ => {}
        }
    }

    /// It leaves by itself; it has as long as for the first signal, which it needs no more.
    fn said_stopping(&mut self, app: &config::App, now: Now, out: &mut Vec<Action>) {
        let (pid, ready_for) = match self.state {
            State::Starting { pid: Some(pid), .. } => (pid, None),
            State::Ready { pid, since, .. } => (pid, Some(now.mono.duration_since(since))),
            _ => return,
        };
        out.push(Action::StopProbe);
        let until = now.mono + app.stop.stages[0].timeout;
        let then = Then::JudgeExit { ready_for };
        let reason = "it said that it stops";
        self.reason = Some(reason.into());
        self.enter(
            State::Stopping(Box::new(Stopping {
                main: Main::Alive(pid),
                stage: 0,
                until,
                then,
                drains: false,
                asks: None,
            })),
            reason,
            now,
            out,
        );
    }
}
