//! How the loop learns whether an instance is ready, and whether it is still well: questions to it
//! (`ask`; commands by `exec`; where others listen on the same socket, by `proof`), and what it says
//! itself (`notices`). What follows from an answer is decided in `service`.

mod ask;
mod exec;
mod notices;
mod proof;

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::unix::pipe,
    task::AbortHandle,
    time::{sleep, sleep_until},
};
use tracing::warn;

use self::ask::{Answer, Asker, Question};
use super::{
    Supervisor,
    event::{Event, Events},
    jobs::JobId,
    seats::SeatId,
};
use crate::{
    domain::{
        config::{self, LiveProbe, Probe, Ready, Replace},
        service::Happening,
    },
    os::spawn::SpawnSpec,
};

/// No single try for readiness takes longer, but that of a command, which may wait by itself.
const TRY: Duration = Duration::from_secs(5);
/// Between two tries: short at first, since most apps are up within a second.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// What is held of a seat to know how its process is.
#[derive(Default)]
pub struct Health {
    asking: Option<Task>,
    /// The probe command that runs.
    command: Option<JobId>,
    /// The end of the pipe on which its newline is awaited.
    newline: Option<OwnedFd>,
    notices: Option<Box<notices::Notices>>,
    /// Sees the end of a main process that may be no child of ours.
    main_watch: Option<Task>,
}

/// A task that ends with what holds it.
struct Task(AbortHandle);

impl Task {
    fn start(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(future).abort_handle())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Health {
    /// Puts into the environment where and how often the process is to say how it is, unless the app
    /// knows better; returns the variables that are to hold its pid.
    pub fn announce(&mut self, app: &config::App, env: &mut BTreeMap<String, String>) -> Vec<&'static str> {
        let Some(notices) = self.notices.as_mut().filter(|_| app.notifies()) else { return Vec::new() };
        notices.forget();
        notices.announce(env);
        let Some(live) = app.watchdog() else { return Vec::new() };
        env.entry("WATCHDOG_USEC".into()).or_insert_with(|| live.every.as_micros().to_string());
        if env.contains_key("WATCHDOG_PID") { Vec::new() } else { vec!["WATCHDOG_PID"] }
    }

    /// Where the next process speaks is made anew.
    pub fn forget_notices(&mut self) {
        self.notices = None;
    }

    /// Adds to a process that is to be started what it needs to show how it is.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn equip(&mut self, app: &config::App, spec: &mut SpawnSpec) -> io::Result<()> {
        self.main_watch = None;
        if let Ready::Fd { number, .. } = app.ready {
            let (ours, theirs) = io::pipe()?;
            spec.fds.push((Arc::new(theirs.into()), number));
            self.newline = Some(ours.into());
        }
        Ok(())
    }
}

impl Supervisor {
    /// Asks until the instance is ready; each new reason why it is not is told once.
    pub fn begin_probe(&mut self, id: &SeatId, attempt: u64) {
        let Some(ready) = self.apps.get(&id.app).map(|app| app.spec().ready.clone()) else { return };
        let Some(seat) = self.seat_mut(id) else { return };
        let (question, limit) = match ready {
            Ready::Immediate | Ready::After(_) | Ready::Notify { .. } => return,
            Ready::Fd { .. } => match seat.health.newline.take().map(pipe::Receiver::from_owned_fd) {
                Some(Ok(pipe)) => (Question::Newline(pipe), Duration::MAX),
                Some(Err(error)) => return warn!(app = %id.app, %error, "its newline cannot be awaited"),
                None => return,
            },
            Ready::Probe { probe, within } => match *probe {
                Probe::Exec(command) => (Question::Exec(command), within),
                probe => (self.question(id, probe), TRY),
            },
        };
        let asker = Asker { seat: id.clone(), attempt, question, limit, events: self.events.clone() };
        self.ask(id, until_ready(asker));
    }

    /// Asks a ready instance again and again whether it is well.
    pub fn begin_watch(&mut self, id: &SeatId, attempt: u64) {
        let Some(app) = self.apps.get(&id.app) else { return };
        // A release on trial is not kept waiting for longer than it is to settle.
        let settle = app.spec().deploy.as_ref().map_or(Duration::MAX, |deploy| deploy.settle);
        let live = app.spec().live.as_deref().cloned();
        let Some(config::Live { probe: LiveProbe::Probe(probe), every, timeout, .. }) = live else { return };
        let question = self.question(id, probe);
        let asker = Asker { seat: id.clone(), attempt, question, limit: timeout, events: self.events.clone() };
        self.ask(id, watch(asker, every.min(settle), every));
    }

    /// Where others may answer in its place, or nobody though the socket is held, it must be proven.
    fn question(&self, id: &SeatId, probe: Probe) -> Question {
        let of_others = |app: &config::App| {
            let asked = !matches!(probe, Probe::Exec(_));
            asked && (app.replace == Replace::StartFirst || app.is_held(&probe, id.seat.number))
        };
        let held = self.apps.get(&id.app).is_some_and(|app| of_others(app.spec()));
        let main = self.seat(id).and_then(|seat| Some((seat.main?, seat.kit.cgroup.clone())));
        match main.filter(|_| held) {
            Some((main, cgroup)) => {
                let (boot, instance) = (self.boot_of(id), self.mark_of(id));
                let whose = Arc::new(proof::Whose { main, boot, instance, cgroup });
                Question::Proven { probe, whose, missed: 0 }
            }
            None => Question::from(probe),
        }
    }

    fn ask(&mut self, id: &SeatId, task: impl Future<Output = ()> + Send + 'static) {
        self.stop_probe(id);
        if let Some(seat) = self.seat_mut(id) {
            seat.health.asking = Some(Task::start(task));
        }
    }

    pub fn stop_probe(&mut self, id: &SeatId) {
        let Some(seat) = self.seat_mut(id) else { return };
        seat.health.asking = None;
        if let Some(job) = seat.health.command.take() {
            self.kill_job(job);
        }
    }
}

async fn until_ready(mut asker: Asker) {
    let mut pause = PAUSE;
    let mut told = String::new();
    loop {
        let answer = asker.once(asker.limit).await;
        let others = matches!(answer, Answer::Others(_));
        let result = match answer {
            Answer::Yes => Ok(()),
            Answer::No(why) | Answer::Others(why) | Answer::Untaken(why) => Err(why),
        };
        let done = result.is_ok();
        if done || result.as_ref().is_err_and(|why| *why != told) {
            told = result.as_ref().err().cloned().unwrap_or_default();
            let event = Event::Probed { seat: asker.seat.clone(), attempt: asker.attempt, result };
            if asker.events.send(event).is_err() || done {
                return;
            }
        }
        sleep(if others { PAUSE } else { pause }).await;
        pause = pause.mul_f64(1.1).min(LONGEST_PAUSE);
    }
}

/// Tells the first answer, every failure, and the first success after one.
async fn watch(mut asker: Asker, first: Duration, every: Duration) {
    let mut well = false;
    let mut next = Instant::now() + first;
    loop {
        sleep_until(next.into()).await;
        let result = patiently(&mut asker).await;
        // A late answer moves those to come: none is asked at once after another.
        let now = Instant::now();
        next = if next + every > now { next + every } else { now + every };
        let news = !well || result.is_err();
        well = result.is_ok();
        if news && tell(&asker.events, &asker.seat, Happening::LiveProbed { attempt: asker.attempt, result }).is_err() {
            return;
        }
    }
}

/// Asks again while others take the question, or nobody as yet, as long as a single probe may take.
async fn patiently(asker: &mut Asker) -> Result<(), String> {
    let begun = Instant::now();
    let mut left = asker.limit;
    loop {
        let answer = asker.once(left).await;
        left = asker.limit.saturating_sub(begun.elapsed() + PAUSE);
        match answer {
            Answer::Yes => return Ok(()),
            Answer::Others(_) | Answer::Untaken(_) if !left.is_zero() => sleep(PAUSE).await,
            Answer::No(why) | Answer::Others(why) | Answer::Untaken(why) => return Err(why),
        }
    }
}

/// Tells the machine of a seat something; an error when the loop has ended.
fn tell(events: &Events, seat: &SeatId, what: Happening) -> Result<(), ()> {
    let seat = seat.clone();
    events.send(Event::Then(Box::new(move |supervisor| supervisor.tell(&seat, what)))).map_err(drop)
}
