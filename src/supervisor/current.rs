//! Apps with `reload`: their processes outlive their release's folder and read through `current`, so that
//! leads to the release that a process is to run before it is started or told. Where a trial fails it
//! leads back, and a start after a crash has it follow `live` again.

use std::sync::Arc;

use super::{Supervisor, event::Event, jobs::JobId, launch, live, seats::SeatId};
use crate::{
    domain::{
        config::{Command, Reload},
        model::{AppName, Signal},
        service::Happening,
    },
    os::{clock, pidfd},
};

impl Supervisor {
    /// Goes on once `current` leads to the release of this seat, where its app reads through it.
    pub fn with_current(
        &mut self,
        id: &SeatId,
        then: impl FnOnce(&mut Supervisor, Result<(), String>) + Send + 'static,
    ) {
        let app = self.apps.get(&id.app).filter(|app| app.spec().reload != Reload::Restart);
        let Some(release) = app.and_then(|app| app.run(id.seat)?.release.clone()) else { return then(self, Ok(())) };
        let (layout, name) = (self.layout.clone(), id.app.clone());
        self.files.run(move || live::link(&layout, &name, &release), then);
    }

    /// Nothing was told to go back: the link does by itself.
    pub fn link_back(&mut self, name: &AppName) {
        let app = self.apps.get(name).filter(|app| app.spec().reload != Reload::Restart);
        let Some(release) = app.and_then(|app| app.release()).cloned() else { return };
        let (layout, name) = (self.layout.clone(), name.clone());
        self.files.run(
            move || live::link(&layout, &name, &release),
            |supervisor, result| {
                if let Err(error) = result {
                    supervisor.trouble(&error);
                }
            },
        );
    }

    /// Tells the process of a seat to take the release that it is to run.
    pub fn reload_instance(&mut self, id: &SeatId, turn: u64) {
        let seat = id.clone();
        self.with_current(id, move |supervisor, linked| {
            let how = supervisor.apps.get(&seat.app).map(|app| app.spec().reload.clone());
            let result = match (linked, how) {
                (Err(error), _) => Err(error),
                (Ok(()), Some(Reload::Signal(signal))) => supervisor.tell_by_signal(&seat, signal),
                (Ok(()), Some(Reload::Exec(command))) => {
                    match supervisor.tell_by_command(&seat, turn, &command, "reload") {
                        Ok(_) => return supervisor.switched(&seat.app),
                        Err(error) => Err(error),
                    }
                }
                (Ok(()), Some(Reload::Restart) | None) => Err("its `reload` is another one in the config now".into()),
            };
            supervisor.switched(&seat.app);
            supervisor.tell(&seat, Happening::Told { turn, result });
        });
    }

    fn tell_by_signal(&mut self, id: &SeatId, signal: Signal) -> Result<u64, String> {
        let main = self.seat(id).and_then(|seat| seat.pidfd.as_ref()).ok_or("its main process is gone")?;
        // What it says of this reload is not older.
        let at = clock::monotonic_micros();
        pidfd::signal(main, signal).map_err(|e| format!("{signal} could not be sent: {e}"))?;
        Ok(at)
    }

    /// Has the command of `stop` ask the process of a seat to leave.
    pub fn ask_to_leave(&mut self, id: &SeatId, turn: u64) {
        let stages = self.apps.get(&id.app).map(|app| Arc::clone(&app.spec().stop));
        let command = stages.as_ref().and_then(|stop| stop.stages.iter().find_map(|stage| stage.command.as_deref()));
        let begun = match command {
            // A shutdown waits for it.
            Some(command) => self.tell_by_command(id, turn, command, "stop").map(|job| self.is_needed(job)),
            None => Err("its `stop` is another one in the config now".into()),
        };
        if let Err(why) = begun {
            let seat = id.clone();
            // What asks for it is still being carried out.
            let _ = self.events.send(Event::Then(Box::new(move |supervisor| {
                supervisor.tell(&seat, Happening::Told { turn, result: Err(why) });
            })));
        }
    }

    /// `field`: of the config, where the command stands.
    fn tell_by_command(
        &mut self,
        id: &SeatId,
        turn: u64,
        command: &Command,
        field: &'static str,
    ) -> Result<JobId, String> {
        let instance = id.instance();
        let (main, out, err) = match self.seat(id) {
            Some(seat) => (seat.main, Arc::clone(&seat.kit.out), Arc::clone(&seat.kit.err)),
            None => (None, Arc::clone(&self.me.null), Arc::clone(&self.me.null)),
        };
        let main = main.ok_or("its main process is gone")?;
        let name = format!("{instance}.{field}-{}", self.ticket());
        let args = launch::arguments(command, instance.number);
        let spec = self.command_spec(&id.app, &instance, &args, &name, &[("MAINPID", main.to_string())]);
        let mut spec = spec.map_err(|error| format!("its {field} command cannot be run: {error}"))?;
        spec.fds = vec![(Arc::clone(&self.me.null), 0), (out, 1), (err, 2)];
        let (at, seat) = (clock::monotonic_micros(), id.clone());
        let job: JobId = self.start_command(&id.app, name, spec, move |supervisor, end| {
            let result = match end.error {
                None if end.exit.success() => Ok(at),
                None => Err(format!("its {field} command {}", end.exit)),
                Some(error) => Err(format!("its {field} command could not be started: {error}")),
            };
            supervisor.tell(&seat, Happening::Told { turn, result });
        });
        if let Some(seat) = self.seat_mut(id) {
            seat.reload = Some(job);
        }
        Ok(job)
    }

    /// Nobody waits any more for the command that is to tell it.
    pub fn stop_reload(&mut self, id: &SeatId) {
        if let Some(job) = self.seat_mut(id).and_then(|seat| seat.reload.take()) {
            self.end_job(job);
        }
    }
}
