//! Whoever asked for a change and waits until it is so, or surely is not.

use std::time::Instant;

use super::{Supervisor, control::ReplyTo, requests::Chosen};
use crate::domain::{
    api::{DeployState, InstanceState, Refusal, RefusalKind, Reply, Saying},
    model::{AppName, DeployId, InstanceId},
    service::{Copy, Instance, State, order},
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
    /// The end that is wanted of this deploy, if it is waited for.
    #[must_use]
    pub fn wants(&self, deploy: DeployId) -> Option<DeployState> {
        self.goals.iter().find_map(|goal| match goal {
            Goal::Deploy { id, wanted } if *id == deploy => Some(*wanted),
            _ => None,
        })
    }
}

/// What is waited for.
#[derive(Debug, Clone)]
pub enum Goal {
    /// Ready or done, without a failure beyond these on the way.
    Up {
        id: InstanceId,
        failures: u64,
    },
    /// A restart one by one is over that was not by then.
    Rolled {
        app: AppName,
        after: u64,
    },
    Down {
        chosen: Chosen,
    },
    /// What the config has no more, or not as something that runs, is gone.
    Ended {
        chosen: Chosen,
    },
    /// A reload has come to this; what runs as little as the config wants is no failure of it.
    Applied(Box<Goal>),
    State {
        chosen: Chosen,
        state: InstanceState,
    },
    /// The end of a deploy is told by its own event: is it this one?
    Deploy {
        id: DeployId,
        wanted: DeployState,
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
        for mut goal in waiter.goals.drain(..) {
            if self.awaits_turn(&mut goal) {
                open.push(goal);
                continue;
            }
            match self.reached(&goal) {
                None => open.push(goal),
                Some(Ok(())) => {}
                Some(Err(message)) => return Some(Saying::Refused(Refusal::new(RefusalKind::Failed, message))),
            }
        }
        waiter.goals = open;
        if waiter.goals.is_empty() {
            let (deploy, message) = (waiter.deploy, waiter.message.clone());
            return Some(Saying::Done(Reply::Changed { app: None, deploy, message }));
        }
        let late = waiter.deadline.is_some_and(|at| at <= Instant::now());
        late.then(|| Saying::Refused(Refusal::new(RefusalKind::TimedOut, self.still(&waiter.goals[0]))))
    }

    /// Is it about a copy that a restart has not come to yet? How that has fared until then does not count.
    fn awaits_turn(&self, goal: &mut Goal) -> bool {
        let Goal::Up { id, failures } = goal else { return false };
        let Some(app) = self.apps.get(&id.app).filter(|app| app.awaits_turn(id.number)) else { return false };
        *failures = app.copy(id.number).map_or(*failures, |copy| copy.instance().failures());
        true
    }

    fn reached(&self, goal: &Goal) -> Option<Result<(), String>> {
        let gone = |app: &AppName| Some(Err(format!("app {:?} was removed from the config", app.as_str())));
        match goal {
            Goal::Up { id, failures } => {
                let Some(app) = self.apps.get(&id.app) else { return gone(&id.app) };
                let Some(copy) = app.copy(id.number) else {
                    return Some(Err(format!("{id} is in the config no more")));
                };
                let instance = copy.instance();
                let name = if app.copies().len() == 1 { id.app.to_string() } else { id.to_string() };
                let reason = || format!("{name}: {}", instance.reason().unwrap_or("it failed"));
                match instance.state() {
                    State::Ready { .. } | State::Done => Some(Ok(())),
                    _ if instance.failures() > *failures => Some(Err(reason())),
                    State::Stopping(_) if let Some(why) = self.unkillable(&id.app, id.number) => {
                        Some(Err(format!("{name}: {why}")))
                    }
                    State::Failed { .. } if app.spec().problem.is_some() => {
                        Some(Err(format!("{}; once that is mended, `everhook reload` starts it", reason())))
                    }
                    State::Failed { .. } | State::Stopped => Some(Err(reason())),
                    State::Waiting => {
                        let why = self.in_vain(&id.app).or_else(|| order::lacking_for_good(app.spec(), &self.apps));
                        why.map(|why| Err(format!("{name} waits: {why}")))
                    }
                    _ => None,
                }
            }
            Goal::Rolled { app, after } => {
                let Some((found, shell)) = self.apps.get(app).zip(self.shells.get(app)) else { return gone(app) };
                let (count, result) = &shell.rolled;
                (*count > *after && !found.is_rolling()).then(|| result.clone().map_err(String::from))
            }
            Goal::Down { chosen } => match self.apps.get(&chosen.app) {
                None => Some(Ok(())),
                Some(app) => {
                    let wanted = app.runs().filter(|run| chosen.only.is_none_or(|number| number == run.seat.number));
                    let mut active = wanted.filter(|run| run.instance.is_active()).peekable();
                    if active.peek().is_none() {
                        return Some(Ok(()));
                    }
                    // Whether it was stopped meanwhile or not, that is no longer so.
                    if !app.is_held(chosen.only) && !app.is_removed() && !self.is_ending() {
                        return Some(Err(format!("{chosen} was started again")));
                    }
                    let why = active.find_map(|run| self.unkillable(&chosen.app, run.seat.number))?;
                    Some(Err(format!("{chosen} is not stopped: {why}")))
                }
            },
            Goal::Ended { chosen } => {
                let Some(app) = self.apps.get(&chosen.app) else { return Some(Ok(())) };
                let is_to_end =
                    |number| app.is_removed() || !app.spec().enabled || app.copy(number).is_none_or(Copy::is_leaving);
                let meant = app.runs().filter(|run| chosen.only.is_none_or(|number| number == run.seat.number));
                let mut active = meant.filter(|run| run.instance.is_active() && is_to_end(run.seat.number)).peekable();
                if active.peek().is_none() {
                    return Some(Ok(()));
                }
                let why = active.find_map(|run| self.unkillable(&chosen.app, run.seat.number))?;
                Some(Err(format!("{chosen} is not stopped: {why}")))
            }
            Goal::Applied(goal) => {
                let rests = matches!(&**goal, Goal::Up { id, .. } if self.rests_anyway(id));
                let is_gone = matches!(&**goal, Goal::Rolled { app, .. } if !self.apps.contains_key(app));
                if rests || is_gone {
                    return Some(Ok(()));
                }
                Some(self.reached(goal)?.map_err(|why| format!("the config is applied, but {why}")))
            }
            Goal::State { chosen, state } => {
                if !self.apps.contains_key(&chosen.app) {
                    return gone(&chosen.app);
                }
                (self.state_of(chosen) == *state || self.drains(chosen, *state)).then_some(Ok(()))
            }
            Goal::Deploy { .. } => None,
        }
    }

    /// Why an app that waits will not start before somebody deploys it, or one that it comes after.
    fn in_vain(&self, name: &AppName) -> Option<String> {
        let app = self.apps.get(name)?;
        let never =
            app.release().is_none() && app.spec().deploy.as_ref().is_some_and(|deploy| deploy.unlooked().is_some());
        let why = self.undeployed.get(name).cloned();
        let why = why.or_else(|| {
            (never && !self.deploys.is_busy(name)).then(|| format!("{name} has no release: {}", app.first_deploy()))
        });
        why.or_else(|| app.spec().comes_after().find_map(|other| self.in_vain(other)))
    }

    /// Whoever drains has been taken over from, and speaks for no copy any more.
    fn drains(&self, chosen: &Chosen, state: InstanceState) -> bool {
        let runs = self.apps.get(&chosen.app).into_iter().flat_map(|app| app.runs());
        let mut meant = runs.filter(|run| chosen.only.is_none_or(|number| number == run.seat.number));
        state == InstanceState::Draining && meant.any(|run| run.instance.drains())
    }

    fn still(&self, goal: &Goal) -> String {
        let chosen = match goal {
            Goal::Up { id, .. } => Chosen { app: id.app.clone(), only: Some(id.number) },
            Goal::Rolled { app, .. } => Chosen { app: app.clone(), only: None },
            Goal::Down { chosen } | Goal::Ended { chosen } | Goal::State { chosen, .. } => chosen.clone(),
            Goal::Applied(goal) => return self.still(goal),
            Goal::Deploy { id, .. } => return format!("timed out; deploy {id} goes on"),
        };
        let app = self.apps.get(&chosen.app);
        let instance =
            app.map(|app| chosen.only.and_then(|number| app.copy(number)).map_or(app.worst(), Copy::instance));
        let why = instance.and_then(Instance::reason).map(|why| format!(" ({why})")).unwrap_or_default();
        let alone = app.is_some_and(|app| app.copies().len() == 1);
        let name = if alone { chosen.app.to_string() } else { chosen.to_string() };
        format!("timed out; {name} is {}{why}", self.state_of(&chosen))
    }

    /// When the next one gives up.
    #[must_use]
    pub fn waiters_deadline(&self) -> Option<Instant> {
        self.waiters.iter().filter_map(|waiter| waiter.deadline).min()
    }
}
