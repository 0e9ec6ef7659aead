//! Probes that are commands: jobs in a cgroup of their own, as the app's user and in its place, ended
//! with their whole tree when their time is over.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::super::{
    Supervisor,
    event::{Event, Events},
    jobs::JobSpec,
    keys::Keys,
    launch,
    seats::SeatId,
};
use crate::domain::{
    config::Command,
    model::{Exit, show_span},
};

/// How much of what it printed last is looked at.
const TAIL: usize = 4096;
/// How much of that goes into a reason.
const SHOWN: usize = 200;

/// How a command ended, or why it never ran.
type Answer = oneshot::Sender<Result<Exit, String>>;

/// Runs the command once.
pub async fn ask(
    events: &Events,
    seat: &SeatId,
    attempt: u64,
    command: &Command,
    limit: Duration,
) -> Result<(), String> {
    let late = Instant::now() + limit;
    let failed = |e: std::io::Error| format!("the probe cannot be run: {e}");
    let (theirs, ours) = pipe::pipe().map_err(failed)?;
    let theirs = theirs.into_blocking_fd().map_err(failed)?;
    let (answer, mut answered) = oneshot::channel();
    let (id, line) = (seat.clone(), command.clone());
    let start = move |supervisor: &mut Supervisor| supervisor.run_probe(&id, attempt, &line, theirs, answer);
    let gone = || "the probe was not run".to_owned();
    events.send(Event::Then(Box::new(start))).map_err(|_| gone())?;
    let mut tail = Tail { pipe: ours, text: Vec::new(), open: true };
    let ended = async {
        loop {
            tokio::select! {
                // What it has written before its end comes first.
                biased;
                () = tail.more(), if tail.open => {}
                ended = &mut answered => return ended.unwrap_or_else(|_| Err(gone())),
            }
        }
    };
    match timeout_at(late, ended).await {
        Ok(Ok(Exit::Code(0))) => Ok(()),
        Ok(Ok(exit)) => Err(format!("the probe {exit}{}", tail.last_line())),
        Ok(Err(why)) => Err(why),
        Err(_) => {
            let id = seat.clone();
            let _ = events.send(Event::Then(Box::new(move |supervisor| supervisor.end_probe(&id))));
            Err(format!("the probe did not end within {}{}", show_span(limit), tail.last_line()))
        }
    }
}

/// The end of what a command prints.
struct Tail {
    pipe: pipe::Receiver,
    text: Vec<u8>,
    open: bool,
}

impl Tail {
    async fn more(&mut self) {
        let mut buffer = [0u8; 1024];
        match self.pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => self.open = false,
            Ok(n) => {
                self.text.extend_from_slice(&buffer[..n]);
                self.text.drain(..self.text.len().saturating_sub(TAIL));
            }
        }
    }

    fn last_line(&self) -> String {
        let text = String::from_utf8_lossy(&self.text);
        let last = text.lines().map(str::trim).rfind(|line| !line.is_empty());
        last.map(|line| format!(": {}", line.chars().take(SHOWN).collect::<String>())).unwrap_or_default()
    }
}

impl Supervisor {
    fn run_probe(&mut self, id: &SeatId, attempt: u64, command: &Command, out: OwnedFd, answer: Answer) {
        let Some(app) = self.apps.get(&id.app) else { return };
        let (spec, Some(run)) = (Arc::clone(app.spec()), app.run(id.seat)) else { return };
        // Whoever asked for an earlier run waits no more.
        if run.instance.attempt() != attempt {
            return;
        }
        let release = run.release.clone();
        let instance = id.instance();
        let name = format!("{instance}.{}", if id.seat.second { "probe2" } else { "probe" });
        let Some(shell) = self.shells.get(&id.app) else { return };
        let env =
            launch::instance_env(&spec, &instance, release.as_deref(), &self.me.boot_of(id.seat), &shell.env_file);
        if self.seat(id).and_then(|seat| seat.health.command).is_some_and(|job| self.jobs.contains_key(&job)) {
            let _ = answer.send(Err("the probe before has not ended yet".into()));
            return;
        }
        // It goes with the job.
        let cgroup = match self.maker.cgroup(&name) {
            Ok(group) => group,
            Err(error) => {
                let _ = answer.send(Err(error));
                return;
            }
        };
        let job = JobSpec {
            deploy: None,
            app: id.app.clone(),
            args: launch::arguments(command, instance.number),
            env,
            directory: launch::directory(&spec, release.as_deref(), &self.layout.current(&spec.name)),
            who: spec.run_as.clone(),
            is_step: false,
            cgroup,
            keys: Keys::default(),
            order: None,
            rights: None,
        };
        let job = self.start_probe_job(job, name, out, move |_, end| {
            // Nobody waits any more when its time was over.
            let _ = answer.send(end.error.map_or(Ok(end.exit), Err));
        });
        if let Some(seat) = self.seat_mut(id) {
            seat.health.command = Some(job);
        }
    }

    fn end_probe(&mut self, id: &SeatId) {
        if let Some(job) = self.seat(id).and_then(|seat| seat.health.command) {
            self.kill_job(job);
        }
    }
}
