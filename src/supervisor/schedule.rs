//! Scheduled apps. What is due the timetable says, whether it can run the app's own machine.

use tracing::info;

use super::{Supervisor, live};
use crate::{
    domain::{
        config::{self, Missed},
        model::{AppName, At},
        service::{self, Due, Rest},
    },
    os::clock,
};

impl Supervisor {
    /// Takes an app's schedule in, or its change. `ran`: what the disk knows of it.
    pub fn schedule_app(&mut self, app: &config::App, ran: Option<live::Ran>) {
        let now = clock::now().wall;
        let wanted = app.schedule.as_ref().filter(|_| app.enabled && app.problem.is_none());
        let Some(schedule) = wanted else {
            self.timetable.remove(&app.name);
            return self.look_at_clock();
        };
        // Another expression has missed nothing yet.
        let known = self.timetable.dealt_with(&app.name, schedule);
        let known = known.or(ran.filter(|ran| ran.schedule == schedule.text).map(|ran| ran.until));
        self.timetable.set(&app.name, schedule, known, now);
        if known.is_none() {
            self.keep_ran(&app.name, now);
        }
        self.look_at_clock();
    }

    /// An app has another name now; `ran`: what the disk knows of it.
    pub fn schedule_renamed(&mut self, old: &AppName, app: &config::App, ran: Option<live::Ran>) {
        self.timetable.remove(old);
        self.schedule_app(app, ran);
    }

    pub fn unschedule(&mut self, app: &AppName) {
        self.timetable.remove(app);
    }

    /// When a scheduled app runs next by itself.
    #[must_use]
    pub fn next_run(&self, app: &service::App) -> Option<At> {
        matches!(app.rests(), None | Some(Rest::Scheduled(_))).then(|| self.timetable.next_of(app.name())).flatten()
    }

    /// Runs every app whose moment has come.
    pub(super) fn run_scheduled(&mut self, now: At) {
        for due in self.timetable.look(now) {
            self.run_due(due);
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
        let Some(schedule) = self.timetable.schedule(app).filter(|schedule| schedule.missed == Missed::Run) else {
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
}
