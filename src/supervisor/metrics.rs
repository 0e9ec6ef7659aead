//! What is counted for `/metrics`, and how it is gathered: what the loop knows in the loop, what must be read from
//! files on the files thread.

use std::{collections::BTreeMap, time::Duration};

use super::{Supervisor, control::ReplyTo, requests::Chosen};
use crate::domain::{
    api::{
        DEPLOY_BOUNDS, DeployState, DeployView, Deployed, Durations, Exits, Lost, Metrics, Reply, Saying, Status,
        TURN_BOUNDS,
    },
    model::{AppName, Exit, InstanceId},
};

/// What has happened since the start.
pub struct Tally {
    exits: BTreeMap<InstanceId, Exits>,
    deploys: BTreeMap<AppName, ([u64; DeployState::ENDS.len()], Durations)>,
    lost: BTreeMap<InstanceId, Gaps>,
    turns: Durations,
    pub store_works: bool,
}

/// Bytes of output that were lost.
#[derive(Default)]
struct Gaps {
    over: u64,
    /// Of the gap that lasts, as far as is known.
    current: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            exits: BTreeMap::new(),
            deploys: BTreeMap::new(),
            lost: BTreeMap::new(),
            turns: Durations::default(),
            store_works: true,
        }
    }
}

impl Tally {
    /// The loop was busy with one thing for so long.
    pub fn turned(&mut self, length: Duration) {
        self.turns.add(length.as_secs_f64(), &TURN_BOUNDS);
    }

    /// The main process of an instance has ended.
    pub fn exited(&mut self, instance: &InstanceId, exit: Exit) {
        self.exits.entry(instance.clone()).or_insert_with(|| Exits::new(instance.clone())).count(exit);
    }

    /// A deploy has ended.
    pub fn deployed(&mut self, view: &DeployView) {
        let (ended, durations) = self.deploys.entry(view.app.clone()).or_default();
        if let Some(at) = DeployState::ENDS.iter().position(|end| *end == view.state) {
            ended[at] += 1;
        }
        if let Some((start, end)) = view.started_at.zip(view.ended_at) {
            // A clock that was set back makes no time negative.
            durations
                .add(Duration::from_millis(u64::try_from(end.0 - start.0).unwrap_or(0)).as_secs_f64(), &DEPLOY_BOUNDS);
        }
    }

    /// So much of an instance's output is lost; the gap lasts, or is over.
    pub fn dropping(&mut self, source: &str, bytes: u64, lasts: bool) {
        let Ok(instance) = source.parse() else { return };
        let gaps: &mut Gaps = self.lost.entry(instance).or_default();
        if lasts {
            gaps.current = bytes;
        } else {
            gaps.over += bytes;
            gaps.current = 0;
        }
    }
}

impl Supervisor {
    /// Answers with all that is measured, of the apps that there are.
    pub fn say_metrics(&mut self, reply: ReplyTo) {
        let all: Vec<Chosen> = self.apps.keys().cloned().map(Chosen::all).collect();
        self.gather_status(&all, move |supervisor, status, own| {
            let metrics = supervisor.metrics(status, own);
            reply.say(Saying::Done(Reply::Metrics(Box::new(metrics))));
        });
    }

    fn metrics(&self, status: Status, own: Option<(u64, f64)>) -> Metrics {
        let instances: Vec<InstanceId> = self
            .apps
            .values()
            .filter(|app| app.spec().command.is_some())
            .flat_map(|app| {
                app.copies().iter().map(|copy| InstanceId { app: app.name().clone(), number: copy.number() })
            })
            .collect();
        let exits =
            instances.iter().map(|id| self.tally.exits.get(id).cloned().unwrap_or_else(|| Exits::new(id.clone())));
        let lost = instances.iter().map(|id| {
            let bytes = self.tally.lost.get(id).map_or(0, |gaps| gaps.over + gaps.current);
            Lost { instance: id.clone(), bytes }
        });
        let deploying = self.config.apps.values().filter(|app| app.deploy.is_some());
        let deploys = deploying.map(|app| {
            let (ended, durations) = self.tally.deploys.get(&app.name).cloned().unwrap_or_default();
            let (waiting, running) = (self.deploys.waiting(&app.name).count() as u64, self.deploys.running(&app.name));
            Deployed { app: app.name.clone(), waiting, running: running.is_some(), ended, durations }
        });
        Metrics {
            status,
            memory_bytes: own.map(|(memory, _)| memory),
            cpu_s: own.map(|(_, cpu)| cpu),
            exits: exits.collect(),
            deploys: deploys.collect(),
            deliveries: self.ledger.deliveries(),
            lost: lost.collect(),
            store_works: self.tally.store_works,
            turns: self.tally.turns.clone(),
        }
    }
}
