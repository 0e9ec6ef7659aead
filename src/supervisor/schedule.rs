//! Scheduled apps: one alarm by the wall clock for all of them. What is due the timetable says, whether
//! it can run the app's own machine.

use std::{io, sync::Arc};

use tracing::{error, info};

use super::{Supervisor, event::Event, live};
use crate::{
    domain::{
        config::{self, Missed},
        model::{AppName, At},
        service::{self, Due, Rest, Timetable},
    },
    os::{clock, timer::Alarm},
};

/// When what runs, and what wakes us for it.
#[derive(Default)]
pub struct Schedules {
    table: Timetable,
    /// Made with the first scheduled app.
    alarm: Option<Arc<Alarm>>,
    armed: Option<At>,
}

impl Supervisor {
    /// Takes an app's schedule in, or its change. `ran`: what the disk knows of it.
    pub fn schedule_app(&mut self, app: &config::App, ran: Option<live::Ran>) {
        let now = clock::now().wall;
        let wanted = app.schedule.as_ref().filter(|_| app.enabled && app.problem.is_none());
        let Some(schedule) = wanted else {
            self.schedules.table.remove(&app.name);
            return self.look_at_clock();
        };
        // Another expression has missed nothing yet.
        let known = self.schedules.table.dealt_with(&app.name, schedule);
        let known = known.or(ran.filter(|ran| ran.schedule == schedule.text).map(|ran| ran.until));
        self.schedules.table.set(&app.name, schedule, known, now);
        if known.is_none() {
            self.keep_ran(&app.name, now);
        }
        self.look_at_clock();
    }

    /// An app has another name now; `ran`: what the disk knows of it.
    pub fn schedule_renamed(&mut self, old: &AppName, app: &config::App, ran: Option<live::Ran>) {
        self.schedules.table.remove(old);
        self.schedule_app(app, ran);
    }

    pub fn unschedule(&mut self, app: &AppName) {
        self.schedules.table.remove(app);
    }

    /// When a scheduled app runs next by itself.
    #[must_use]
    pub fn next_run(&self, app: &service::App) -> Option<At> {
        matches!(app.rests(), None | Some(Rest::Scheduled(_)))
            .then(|| self.schedules.table.next_of(app.name()))
            .flatten()
    }

    /// Runs what is due, and sets the alarm anew: it has rung, the clock was set, or a schedule changed.
    pub fn look_at_clock(&mut self) {
        if !self.begun || self.is_ending() {
            return;
        }
        // The clock may be set while we look.
        for _ in 0..3 {
            for due in self.schedules.table.look(clock::now().wall) {
                self.run_due(due);
            }
            if self.arm() {
                return;
            }
        }
    }

    fn run_due(&mut self, due: Due) {
        let Due { app, run, missed, until } = due;
        if let Some(missed) = missed {
            info!(%app, "{missed}");
            self.note_app(&app, "run_missed", missed);
        }
        if let Some(at) = run {
            self.feed(&app, service::Event::Due(at));
        }
        self.keep_ran(&app, until);
    }

    /// Keeps up to when an app's runs are dealt with, where that will be asked.
    fn keep_ran(&mut self, app: &AppName, until: At) {
        let Some(schedule) = self.schedules.table.schedule(app).filter(|schedule| schedule.missed == Missed::Run)
        else {
            return;
        };
        let ran = live::Ran { until, schedule: schedule.text.clone() };
        let (layout, app) = (self.layout.clone(), app.clone());
        self.files.run(
            move || live::keep_ran(&layout, &app, &ran),
            |supervisor, result| {
                if let Err(error) = result {
                    supervisor.trouble(&format!("a scheduled run could not be kept: {error}"));
                }
            },
        );
    }

    /// False where the clock was set meanwhile.
    fn arm(&mut self) -> bool {
        let alarm = self.schedules.table.alarm();
        if alarm.is_none() && self.schedules.armed.is_none() {
            return true;
        }
        match self.timer().and_then(|timer| timer.set(alarm)) {
            Ok(in_time) => {
                self.schedules.armed = alarm;
                in_time
            }
            Err(error) => {
                error!(%error, "no scheduled app runs");
                true
            }
        }
    }

    fn timer(&mut self) -> io::Result<Arc<Alarm>> {
        if let Some(alarm) = &self.schedules.alarm {
            return Ok(Arc::clone(alarm));
        }
        let alarm = Arc::new(Alarm::new()?);
        self.schedules.alarm = Some(Arc::clone(&alarm));
        let (ringing, events) = (Arc::clone(&alarm), self.events.clone());
        tokio::spawn(async move {
            while ringing.rung().await.is_ok() {
                if events.send(Event::Then(Box::new(Supervisor::look_at_clock))).is_err() {
                    return;
                }
            }
        });
        Ok(alarm)
    }
}
