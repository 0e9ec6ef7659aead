//! One app: what it should do now, and its instances that do it.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::instance::{Action, Instance, Note, State};
use crate::domain::{
    config,
    model::{AppName, At, CommitId, Exit, Now, ReleaseId},
};

/// A release as an instance runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    pub id: ReleaseId,
    pub commit: CommitId,
    /// Absolute, no link in it.
    pub directory: PathBuf,
}

/// What the app hears.
#[derive(Debug, Clone)]
pub enum Event {
    /// Everything is known that was known before: act on it.
    Begin,
    /// A person wants it to run; `restart`: anew if it runs.
    Start {
        restart: bool,
        by: String,
    },
    /// A person wants it not to run.
    Stop {
        by: String,
    },
    /// The apps of `after` hold it back (`Some`: with this reason), or no longer.
    Block(Option<String>),
    /// Run this release from now on and judge it: it must become ready and stay so for `settle`.
    Try {
        release: Release,
        settle: Duration,
    },
    /// This release is live; nothing runs it on trial (apps without a command, stopped ones).
    Adopt(Release),
    /// Run this release instead of what runs, without a trial.
    GoBack(Option<Release>),
    /// The config says something else; `restart`: the process must know it.
    Reconfigure {
        spec: Arc<config::App>,
        restart: bool,
    },
    /// The app left the config.
    Remove,
    /// everhook ends.
    Shutdown,
    Spawned(u32),
    SpawnFailed(String),
    Exited {
        exit: Exit,
        alone: bool,
    },
    TreeEmpty,
    Probed {
        attempt: u64,
        result: Result<(), String>,
    },
    Timer,
}

/// Why an app does not run though nothing is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rest {
    Held(String),
    Disabled,
    NoRelease,
    Blocked(String),
    Ending,
    Problem(String),
}

/// A new release being judged.
#[derive(Debug, Clone)]
struct Trial {
    previous: Option<Release>,
    settle: Duration,
    /// It has settled then; `None` until it is ready.
    until: Option<Instant>,
}

/// One app of the config.
#[derive(Debug, Clone)]
pub struct App {
    spec: Arc<config::App>,
    instance: Instance,
    release: Option<Release>,
    /// Who stopped it, while that holds.
    held: Option<String>,
    blocked: Option<String>,
    trial: Option<Trial>,
    ending: bool,
    removed: bool,
}

impl App {
    /// `held`: a person had stopped it before everhook started; `seed`: for the jitter.
    #[must_use]
    pub fn new(spec: Arc<config::App>, release: Option<Release>, held: Option<String>, seed: u64, wall: At) -> Self {
        Self {
            spec,
            instance: Instance::new(seed, wall),
            release,
            held,
            blocked: None,
            trial: None,
            ending: false,
            removed: false,
        }
    }

    #[must_use]
    pub fn name(&self) -> &AppName {
        &self.spec.name
    }

    #[must_use]
    pub fn spec(&self) -> &Arc<config::App> {
        &self.spec
    }

    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// What instances are started in.
    #[must_use]
    pub fn release(&self) -> Option<&Release> {
        self.release.as_ref()
    }

    #[must_use]
    pub fn is_on_trial(&self) -> bool {
        self.trial.is_some()
    }

    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    /// Who stopped it, while that holds.
    #[must_use]
    pub fn held(&self) -> Option<&str> {
        self.held.as_deref()
    }

    /// When it wants a [`Event::Timer`].
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let settled = self.trial.as_ref().and_then(|trial| trial.until);
        [settled, self.instance.deadline()].into_iter().flatten().min()
    }

    /// Why it does not run by rule, whatever its last run did.
    #[must_use]
    pub fn rests(&self) -> Option<Rest> {
        if self.ending || self.removed {
            Some(Rest::Ending)
        } else if !self.spec.enabled {
            Some(Rest::Disabled)
        } else if let Some(problem) = &self.spec.problem {
            Some(Rest::Problem(problem.clone()))
        } else if let Some(by) = &self.held {
            Some(Rest::Held(by.clone()))
        } else if self.spec.deploy.is_some() && self.release.is_none() {
            Some(Rest::NoRelease)
        } else {
            self.blocked.clone().map(Rest::Blocked)
        }
    }

    /// Could a trial run now, or is the release only to be made live?
    #[must_use]
    pub fn would_run(&self) -> bool {
        self.may_run() || (self.spec.command.is_some() && self.rests() == Some(Rest::NoRelease))
    }

    /// May it be started (again)? What runs is not held back by `after` any more.
    fn may_run(&self) -> bool {
        let rule = match self.rests() {
            None => true,
            Some(Rest::Blocked(_)) => !matches!(self.instance.state(), State::Stopped | State::Waiting),
            Some(_) => false,
        };
        rule && self.spec.command.is_some()
    }

    /// Hears one event and says what is to be done.
    pub fn on(&mut self, event: Event, now: Now, out: &mut Vec<Action>) {
        let spec = Arc::clone(&self.spec);
        let note = match event {
            Event::Begin => None,
            Event::Start { restart, by } => {
                self.start(restart, &by, now, out);
                None
            }
            Event::Stop { by } => {
                self.hold(by.clone(), out);
                self.instance.stop(&spec, &by, now, out);
                None
            }
            Event::Block(reason) => {
                self.blocked = reason;
                None
            }
            Event::Try { release, settle } => {
                self.begin_trial(&release, settle, now, out);
                None
            }
            Event::Adopt(release) => {
                self.release = Some(release);
                None
            }
            Event::GoBack(release) => {
                self.release = release;
                if self.may_run() {
                    self.instance.restart(&spec, "back to the live release", now, out);
                }
                None
            }
            Event::Reconfigure { spec, restart } => {
                self.reconfigure(&spec, restart, now, out);
                None
            }
            Event::Remove => {
                self.removed = true;
                self.end("removed from the config", now, out)
            }
            Event::Shutdown => {
                self.ending = true;
                self.end("everhook shuts down", now, out)
            }
            Event::Spawned(pid) => self.instance.spawned(pid, &spec, now, out),
            Event::SpawnFailed(error) => self.instance.spawn_failed(&error, &spec, now, out),
            Event::Exited { exit, alone } => self.instance.exited(exit, alone, &spec, now, out),
            Event::TreeEmpty => self.instance.tree_empty(&spec, now, out),
            Event::Probed { attempt, result: Ok(()) } => self.instance.probed(attempt, now, out),
            Event::Probed { attempt, result: Err(why) } => {
                self.instance.probe_failed(attempt, why);
                None
            }
            Event::Timer => self.timer(now, out),
        };
        self.heed(note, now, out);
        self.follow_rules(now, out);
    }

    fn start(&mut self, restart: bool, by: &str, now: Now, out: &mut Vec<Action>) {
        if self.held.take().is_some() {
            out.push(Action::Hold(false));
        }
        if !self.may_run() {
            return;
        }
        if restart {
            let spec = Arc::clone(&self.spec);
            self.instance.restart(&spec, by, now, out);
        } else {
            self.instance.start(by, now, out);
        }
    }

    fn hold(&mut self, by: String, out: &mut Vec<Action>) {
        if self.held.is_none() {
            out.push(Action::Hold(true));
        }
        self.held = Some(by);
        self.fail_trial("the app was stopped meanwhile", out);
    }

    fn end(&mut self, cause: &str, now: Now, out: &mut Vec<Action>) -> Option<Note> {
        self.fail_trial(cause, out);
        let spec = Arc::clone(&self.spec);
        self.instance.cease(&spec, cause, now, out);
        (!self.instance.is_active()).then_some(Note::Rested)
    }

    fn begin_trial(&mut self, release: &Release, settle: Duration, now: Now, out: &mut Vec<Action>) {
        let previous = self.release.replace(release.clone());
        self.trial = Some(Trial { previous, settle, until: None });
        self.instance.on_trial = true;
        let spec = Arc::clone(&self.spec);
        self.instance.restart(&spec, &format!("release {}", release.id), now, out);
    }

    fn reconfigure(&mut self, spec: &Arc<config::App>, restart: bool, now: Now, out: &mut Vec<Action>) {
        let was_enabled = self.spec.enabled;
        self.spec = Arc::clone(spec);
        if !spec.enabled && was_enabled {
            self.fail_trial("the app was disabled", out);
            self.instance.cease(spec, "disabled in the config", now, out);
        } else if self.spec.problem.is_some() {
            self.instance.cease(spec, "the config has a problem", now, out);
        } else if (restart || matches!(self.instance.state(), State::Failed { .. })) && self.may_run() {
            self.instance.restart(spec, "the config has changed", now, out);
        }
    }

    fn timer(&mut self, now: Now, out: &mut Vec<Action>) -> Option<Note> {
        if self.trial.as_ref().and_then(|trial| trial.until).is_some_and(|until| until <= now.mono) {
            self.pass_trial(out);
        }
        let spec = Arc::clone(&self.spec);
        self.instance.timer(&spec, now, out)
    }

    fn heed(&mut self, note: Option<Note>, now: Now, out: &mut Vec<Action>) {
        match note {
            Some(Note::Ready) => {
                if let Some(trial) = &mut self.trial {
                    trial.until = Some(now.mono + trial.settle);
                }
            }
            Some(Note::Done) => self.pass_trial(out),
            Some(Note::TrialFailed(reason)) => {
                self.fail_trial(&reason, out);
                if self.may_run() {
                    self.instance.start("back to the release before", now, out);
                }
            }
            Some(Note::Rested) if self.removed => out.push(Action::Removed),
            Some(Note::Rested) | None => {}
        }
    }

    fn pass_trial(&mut self, out: &mut Vec<Action>) {
        if self.trial.take().is_some() {
            self.instance.on_trial = false;
            out.push(Action::TrialEnded(Ok(())));
        }
    }

    /// Goes back to the release before; its start is the caller's.
    fn fail_trial(&mut self, reason: &str, out: &mut Vec<Action>) {
        if let Some(trial) = self.trial.take() {
            self.release = trial.previous;
            self.instance.on_trial = false;
            out.push(Action::TrialEnded(Err(reason.to_owned())));
        }
    }

    /// Brings an idle instance in line with what the rules say.
    fn follow_rules(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.spec.command.is_none() || self.removed {
            return;
        }
        let idle = matches!(self.instance.state(), State::Stopped | State::Waiting);
        match self.rests() {
            None if idle => self.instance.start("start", now, out),
            None => {}
            Some(_) if self.instance.is_active() => {}
            Some(Rest::Problem(reason)) => self.instance.rest(State::Failed { retry: None }, &reason, now, out),
            Some(Rest::Held(by)) => self.instance.rest(State::Stopped, &by, now, out),
            Some(Rest::Disabled) => self.instance.rest(State::Stopped, "disabled in the config", now, out),
            Some(Rest::Ending) => self.instance.rest(State::Stopped, "everhook shuts down", now, out),
            Some(Rest::NoRelease) => self.instance.rest(State::Waiting, "first deploy", now, out),
            // Whatever has run before is not held back by `after` when it failed or is done.
            Some(Rest::Blocked(reason)) if idle => self.instance.rest(State::Waiting, &reason, now, out),
            Some(Rest::Blocked(_)) => {}
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
