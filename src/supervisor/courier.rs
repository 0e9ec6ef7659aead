//! Hands letters to the courier process, which lives while there are any. What goes when, and what is
//! tried again, is decided by `domain::outbox`.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    ffi::CString,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    sync::Arc,
    time::Instant,
};

use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::{
    Supervisor,
    children::Owner,
    event::{self, Events},
    ledger::{Command, Query},
    secrets,
};
use crate::{
    domain::{
        api::{Outcome, Post, Posted},
        config,
        model::{AppName, Exit, Secret, Signal},
        outbox::{Action, BATCH, Event, Letter, Outbox, Trouble},
    },
    os::{
        channel::Channel,
        identity, pidfd,
        spawn::{SpawnError, Spawned},
        watched::Watched,
    },
};

/// Whom it trusts, if not the system's own list.
const TRUST: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// What is to be told outside, and the process that tells it.
pub struct Courier {
    outbox: Outbox,
    todo: VecDeque<Event>,
    busy: bool,
    /// Lanes whose letters were asked for, by ticket.
    reading: HashMap<u64, String>,
    /// Numbers the processes; an older one's word counts no more.
    run: u64,
    /// To the one that runs.
    to: Option<mpsc::UnboundedSender<(Post, Secret)>>,
    pidfd: Option<OwnedFd>,
}

impl Courier {
    #[must_use]
    pub fn new() -> Self {
        let (outbox, todo) = (Outbox::default(), VecDeque::new());
        Self { outbox, todo, busy: false, reading: HashMap::new(), run: 0, to: None, pidfd: None }
    }

    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.outbox.deadline()
    }
}

impl Supervisor {
    /// Tells the outbox what happened, and carries out everything that follows.
    pub fn outbox_event(&mut self, event: Event) {
        self.courier.todo.push_back(event);
        if std::mem::replace(&mut self.courier.busy, true) {
            return;
        }
        while let Some(event) = self.courier.todo.pop_front() {
            let mut actions = Vec::new();
            self.courier.outbox.on(event, Instant::now(), &mut actions);
            for action in actions {
                self.outbox_action(action);
            }
        }
        self.courier.busy = false;
    }

    fn outbox_action(&mut self, action: Action) {
        match action {
            Action::Read { lane } => self.read_letters(lane),
            Action::Send { letter } => self.send_letter(letter),
            Action::Forget { letter } => self.ledger.send(Command::Forget { letter }),
            Action::Wait { lane, by } => self.ledger.send(Command::Wait { apps: self.apps_of_lane(&lane), by }),
            Action::Tell { app, trouble, why } => {
                warn!(%app, "a commit's status: {why}");
                let word = match trouble {
                    Trouble::Refused => "status_refused",
                    Trouble::Delayed => "status_delayed",
                    Trouble::GivenUp => "status_given_up",
                };
                self.note_app(&app, word, why);
            }
            Action::Rest => self.courier.to = None,
            Action::Kill => {
                self.courier.to = None;
                if let Some(Err(error)) = self.courier.pidfd.as_ref().map(|fd| pidfd::signal(fd, Signal::KILL)) {
                    warn!(%error, "the courier does not answer, and cannot be killed");
                }
            }
        }
    }

    /// The config is new: says whose deploys are told, and looks what of them waits.
    pub fn look_for_letters(&mut self) {
        let telling = self.config.apps.values().filter(|app| status_of(app).is_some());
        let telling: BTreeSet<AppName> = telling.map(|app| app.name.clone()).collect();
        let lanes: BTreeSet<String> = telling.iter().filter_map(|app| self.lane_of(app)).collect();
        self.ledger.send(Command::Telling(telling));
        self.outbox_event(Event::Anew);
        for lane in lanes {
            self.outbox_event(Event::Mail { lane });
        }
    }

    /// The store has something to tell of this app.
    pub fn mail(&mut self, app: &AppName) {
        if let Some(lane) = self.lane_of(app) {
            self.outbox_event(Event::Mail { lane });
        }
    }

    fn lane_of(&self, app: &AppName) -> Option<String> {
        self.config.apps.get(app).and_then(|app| Some(status_of(app)?.api.clone()))
    }

    fn apps_of_lane(&self, lane: &str) -> Vec<AppName> {
        let apps = self.config.apps.values();
        apps.filter(|app| status_of(app).is_some_and(|status| status.api == lane)).map(|app| app.name.clone()).collect()
    }

    fn read_letters(&mut self, lane: String) {
        let (ticket, apps) = (self.ticket(), self.apps_of_lane(&lane));
        self.courier.reading.insert(ticket, lane);
        self.ledger.send(Command::Query { ticket, query: Query::Letters { apps, n: BATCH } });
    }

    /// The store has answered.
    pub fn letters_read(&mut self, ticket: u64, letters: Vec<Letter>) {
        if let Some(lane) = self.courier.reading.remove(&ticket) {
            self.outbox_event(Event::Read { lane, letters });
        }
    }

    /// The token is read each time anew: who exchanges it need not reload.
    fn send_letter(&mut self, letter: Letter) {
        let id = letter.id;
        let app = self.config.apps.get(&letter.app);
        let Some((app, status)) = app.and_then(|app| Some((app, status_of(app)?.clone()))) else {
            let why = "the app has no `status` in the config any more".to_owned();
            return self.outbox_event(Event::Posted { letter: id, outcome: Outcome::Refused { why } });
        };
        let (owners, reference) = (app.owners(), status.token.clone());
        self.files.run(
            move || secrets::existing(&reference, &owners),
            move |supervisor, token| match token {
                Ok(token) => {
                    supervisor.hide([&token]);
                    supervisor.post(letter, status, token);
                }
                Err(why) => {
                    let outcome = Outcome::Later { why: format!("the token of `status`: {why}"), after_s: None };
                    supervisor.outbox_event(Event::Posted { letter: id, outcome });
                }
            },
        );
    }

    fn post(&mut self, letter: Letter, to: config::Status, token: Secret) {
        if !self.courier.outbox.awaits(letter.id) {
            return;
        }
        if self.courier.to.is_none()
            && let Err(why) = self.start_courier()
        {
            return self.outbox_event(Event::Lost { why });
        }
        let mut status = letter.status;
        // Whose word it is, where several servers deploy the same.
        if let Some(host) = identity::host() {
            status.description = format!("{host}: {}", status.description);
        }
        let config::Status { forge, api, project, .. } = to;
        let post =
            Post { ticket: letter.id.unsigned_abs(), forge, api, project, context: context(&letter.app), status };
        if let Some(to) = &self.courier.to {
            // If it is gone, that is told when its end is seen.
            let _ = to.send((post, token));
        }
    }

    fn start_courier(&mut self) -> Result<(), String> {
        let (ours, theirs) = Channel::pair().map_err(|e| e.to_string())?;
        let spec = self.outward_spec(&["courier".to_owned()], |users| users.courier, 256, Arc::new(theirs));
        let mut spec = spec.map_err(|e| e.to_string())?;
        let trust = TRUST.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let variables = trust.map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()));
        spec.env.extend(variables.flatten());
        self.courier.run += 1;
        let (to, letters) = mpsc::unbounded_channel();
        (self.courier.to, self.courier.pidfd) = (Some(to), None);
        tokio::spawn(speak_to_courier(ours, letters, self.events.clone(), self.courier.run));
        self.spawn(Owner::Courier(self.courier.run), spec);
        Ok(())
    }

    pub fn courier_spawned(&mut self, run: u64, result: Result<Spawned, SpawnError>) {
        match result {
            Ok(spawned) if run == self.courier.run => {
                debug!(pid = spawned.pid, "the courier runs");
                self.courier.pidfd = Some(spawned.pidfd);
            }
            Ok(_) => {}
            Err(error) => self.courier_is_gone(run, format!("the courier could not be started: {error}")),
        }
    }

    pub fn courier_exited(&mut self, run: u64, exit: Exit) {
        self.courier_is_gone(run, format!("the courier {exit}"));
    }

    fn courier_is_gone(&mut self, run: u64, why: String) {
        // One that was let go has told everything.
        if run == self.courier.run {
            self.courier.pidfd = None;
            if self.courier.to.take().is_some() {
                self.outbox_event(Event::Lost { why });
            }
        }
    }

    /// The courier of this run says what came of a letter.
    pub fn courier_said(&mut self, run: u64, posted: Posted) {
        if run == self.courier.run {
            let Posted { ticket, outcome } = posted;
            self.outbox_event(Event::Posted { letter: i64::try_from(ticket).unwrap_or(0), outcome });
        }
    }
}

fn status_of(app: &config::App) -> Option<&config::Status> {
    app.deploy.as_ref()?.status.as_ref()
}

/// Tells our statuses from others: one for each app, whatever the number of its deploys.
fn context(app: &AppName) -> String {
    format!("everhook/{app}")
}

/// Carries letters and answers until the courier is let go or gone.
async fn speak_to_courier(
    channel: Channel,
    mut letters: mpsc::UnboundedReceiver<(Post, Secret)>,
    events: Events,
    run: u64,
) {
    let Ok(mut channel) = Watched::new(channel) else { return };
    loop {
        tokio::select! {
            letter = letters.recv() => match letter {
                Some((post, token)) => channel.queue(&post, token.expose(), None),
                None => return,
            },
            frame = channel.next() => match frame.and_then(|frame| frame.message::<Posted>()) {
                Ok(posted) => drop(events.send(event::Event::Courier { run, posted })),
                Err(_) => return,
            }
        }
    }
}
