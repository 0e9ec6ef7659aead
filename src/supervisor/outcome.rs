//! What a reload comes to: whoever asked for it hears whether all that it starts is up, and all that it ends is gone.

use std::collections::BTreeMap;

use super::{Supervisor, requests::Chosen, waiters::Goal};
use crate::domain::{
    config::Plan,
    model::{AppName, InstanceId},
    service::{App, Copy, Rest, Run, State},
};

/// How far each app of a reload had got before it.
pub struct Before(BTreeMap<AppName, Mark>);

/// Restarts that were over, and by its number the attempts and failures of each copy.
struct Mark {
    rolled: u64,
    copies: BTreeMap<u32, (u64, u64)>,
}

impl Supervisor {
    pub fn before(&self, plan: &Plan) -> Before {
        let mark = |name: AppName| {
            let old = plan.was(&name).unwrap_or(&name);
            let (app, shell) = (self.apps.get(old)?, self.shells.get(old)?);
            let of = |copy: &Copy| (copy.number(), (copy.instance().attempt(), copy.instance().failures()));
            let copies = app.copies().iter().map(of).collect();
            Some((name, Mark { rolled: shell.rolled.0, copies }))
        };
        Before(touched(plan).into_iter().filter_map(mark).collect())
    }

    /// What is so once it has come to its end.
    pub fn goals(&self, plan: &Plan, before: &Before) -> Vec<Goal> {
        let apps = touched(plan).into_iter().filter_map(|name| self.apps.get(&name));
        let goals = apps.flat_map(|app| {
            let restarted = plan.restarted.iter().any(|(name, _)| name == app.name());
            self.goals_of(app, restarted, before.0.get(app.name()))
        });
        goals.map(|goal| Goal::Applied(Box::new(goal))).collect()
    }

    fn goals_of(&self, app: &App, restarted: bool, before: Option<&Mark>) -> Vec<Goal> {
        let name = app.name();
        if app.is_removed() || !app.spec().enabled {
            return vec![Goal::Ended { chosen: Chosen::all(name.clone()) }];
        }
        let restart = before.zip(self.shells.get(name)).filter(|_| restarted);
        let restart = restart.filter(|(mark, shell)| app.is_rolling() || shell.rolled.0 > mark.rolled);
        let rolled = restart.map(|(mark, _)| Goal::Rolled { app: name.clone(), after: mark.rolled });
        let copies = app.copies().iter().filter_map(|copy| {
            let number = copy.number();
            if copy.is_leaving() {
                return Some(Goal::Ended { chosen: Chosen { app: name.clone(), only: Some(number) } });
            }
            let known = before.and_then(|mark| mark.copies.get(&number));
            let is_started = known.is_none_or(|(attempt, _)| copy.instance().attempt() > *attempt);
            let failures = known.map_or(0, |(_, failures)| *failures);
            is_started.then(|| Goal::Up { id: InstanceId { app: name.clone(), number }, failures })
        });
        rolled.into_iter().chain(copies).collect()
    }

    /// Why an app still runs what an earlier config says, where its restart has come to nothing.
    #[must_use]
    pub fn why_behind(&self, app: &App) -> Option<String> {
        let shell = self.shells.get(app.name())?;
        let is_old = |run: &Run| {
            let ready = matches!(run.instance.state(), State::Ready { .. });
            ready && shell.seat(run.seat).is_some_and(|seat| seat.definition != shell.definition)
        };
        let mut counted = app.copies().iter().filter_map(|copy| copy.runs().next());
        if app.is_rolling() || app.is_removed() || !counted.any(is_old) {
            return None;
        }
        let why = shell.rolled.1.as_ref().err().map(|why| format!(": {why}")).unwrap_or_default();
        Some(format!("it runs as an earlier config says{why}"))
    }

    /// Those of all apps.
    pub fn behind_config(&self) -> Vec<AppName> {
        self.apps.values().filter(|app| self.why_behind(app).is_some()).map(|app| app.name().clone()).collect()
    }

    /// Is it about an app that cannot run?
    pub fn is_lame(&self, goal: &Goal) -> bool {
        let Goal::Applied(goal) = goal else { return false };
        matches!(&**goal, Goal::Up { id, .. } if self.apps.get(&id.app).is_some_and(|app| app.spec().problem.is_some()))
    }

    /// Does it not run for a reason that a reload has nothing to do with?
    pub fn rests_anyway(&self, id: &InstanceId) -> bool {
        let Some(app) = self.apps.get(&id.app) else { return true };
        match app.rests() {
            None => app.copy(id.number).is_none_or(|copy| app.is_held(Some(copy.number()))),
            Some(Rest::Blocked(_) | Rest::Lacks(_)) => !self.is_coming(app),
            Some(Rest::Problem(_)) => false,
            Some(_) => true,
        }
    }

    /// Is something of what it comes after being started, or ended to be started again?
    fn is_coming(&self, app: &App) -> bool {
        app.spec().comes_after().filter_map(|other| self.apps.get(other)).any(|other| match other.worst().state() {
            State::Starting { .. } | State::Stopping(_) => true,
            State::Waiting => self.is_coming(other),
            _ => false,
        })
    }
}

/// The apps that a reload is about, those that it removes too.
fn touched(plan: &Plan) -> Vec<AppName> {
    let mut names: Vec<_> = plan.removed.iter().chain(plan.apps()).cloned().collect();
    names.sort();
    names.dedup();
    names
}
