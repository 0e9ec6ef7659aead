//! Whoever asked for a change and waits until it is so, or surely is not.

use std::time::Instant;

use super::{Supervisor, control::ReplyTo};
use crate::domain::{
    api::{InstanceState, Refusal, RefusalKind, Reply, Saying},
    model::{AppName, DeployId},
    service::State,
};

/// Somebody who waits.
pub struct Waiter {
    pub reply: ReplyTo,
    pub goals: Vec<Goal>,
    pub deadline: Option<Instant>,
    /// Said when every goal is reached.
    pub message: String,
    pub deploy: Option<DeployId>,
}

impl Waiter {
    #[must_use]
    pub fn waits_for(&self, deploy: DeployId) -> bool {
        self.goals.iter().any(|goal| matches!(goal, Goal::Deploy { id } if *id == deploy))
    }
}

/// What is waited for.
#[derive(Debug, Clone)]
pub enum Goal {
    /// Ready or done, without a failure beyond these on the way.
    Up {
        app: AppName,
        failures: u64,
    },
    Down {
        app: AppName,
    },
    State {
        app: AppName,
        state: InstanceState,
    },
    /// The end of a deploy is told by its own event.
    Deploy {
        id: DeployId,
    },
}

impl Supervisor {
    /// Waits for somebody, or answers at once.
    pub fn wait(&mut self, waiter: Waiter) {
        self.waiters.push(waiter);
        self.look_at_waiters();
    }

    /// The same once everything asked of the disk so far is done: who is told of a stop relies on it
    /// over a crash.
    pub fn wait_kept(&mut self, waiter: Waiter) {
        self.files.run(|| (), |supervisor, ()| supervisor.wait(waiter));
    }

    /// Answers those whose goals are reached or out of reach.
    pub fn look_at_waiters(&mut self) {
        let waiters = std::mem::take(&mut self.waiters);
        for mut waiter in waiters {
            match self.judge(&mut waiter) {
                Some(saying) => {
                    waiter.reply.say(saying);
                }
                None if waiter.reply.is_gone() => {}
                None => self.waiters.push(waiter),
            }
        }
    }

    fn judge(&self, waiter: &mut Waiter) -> Option<Saying> {
        let mut open = Vec::new();
        for goal in waiter.goals.drain(..) {
            match self.reached(&goal) {
                None => open.push(goal),
                Some(Ok(())) => {}
                Some(Err(message)) => return Some(Saying::Refused(Refusal::new(RefusalKind::Failed, message))),
            }
        }
        waiter.goals = open;
        if waiter.goals.is_empty() {
            let (deploy, message) = (waiter.deploy, waiter.message.clone());
            return Some(Saying::Done(Reply::Changed { deploy, message }));
        }
        let late = waiter.deadline.is_some_and(|at| at <= Instant::now());
        late.then(|| Saying::Refused(Refusal::new(RefusalKind::TimedOut, self.still(&waiter.goals[0]))))
    }

    fn reached(&self, goal: &Goal) -> Option<Result<(), String>> {
        let gone = |app: &AppName| Some(Err(format!("app {:?} was removed from the config", app.as_str())));
        match goal {
            Goal::Up { app, failures } => {
                let Some(found) = self.apps.get(app) else { return gone(app) };
                let instance = found.instance();
                let reason = || format!("{app}: {}", instance.reason().unwrap_or("it failed"));
                match instance.state() {
                    State::Ready { .. } | State::Done => Some(Ok(())),
                    _ if instance.failures() > *failures => Some(Err(reason())),
                    State::Failed { .. } | State::Stopped => Some(Err(reason())),
                    _ => None,
                }
            }
            Goal::Down { app } => match self.apps.get(app) {
                None => Some(Ok(())),
                Some(found) => (!found.instance().is_active()).then_some(Ok(())),
            },
            Goal::State { app, state } => {
                if !self.apps.contains_key(app) {
                    return gone(app);
                }
                (self.app_state(app) == *state).then_some(Ok(()))
            }
            Goal::Deploy { .. } => None,
        }
    }

    fn still(&self, goal: &Goal) -> String {
        match goal {
            Goal::Up { app, .. } | Goal::Down { app } | Goal::State { app, .. } => {
                let why = self.apps.get(app).and_then(|app| app.instance().reason()).map(|why| format!(" ({why})"));
                format!("timed out; {app} is {}{}", self.app_state(app), why.unwrap_or_default())
            }
            Goal::Deploy { id } => format!("timed out; deploy {id} goes on"),
        }
    }

    /// When the next one gives up.
    #[must_use]
    pub fn waiters_deadline(&self) -> Option<Instant> {
        self.waiters.iter().filter_map(|waiter| waiter.deadline).min()
    }
}
