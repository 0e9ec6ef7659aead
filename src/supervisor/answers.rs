//! Answers that come from the ledger or the logger, and whoever waits for them.

use std::{path::PathBuf, time::Instant};

use tracing::{error, warn};

use super::{
    Supervisor,
    control::ReplyTo,
    ledger::{Command, Heed, Query, Told},
    pipeline::Order,
    waiters::{Goal, Waiter},
};
use crate::{
    domain::{
        api::{
            DeployState, DeployView, EventKind, EventView, FromLogger, Refusal, RefusalKind, Reply, Saying, ToLogger,
        },
        deploy,
        model::{AppName, At, InstanceId},
        outbox,
    },
    os::clock,
};

/// What is done with an answer of the ledger.
pub type Answered = Box<dyn FnOnce(&mut Supervisor, Result<Reply, Refusal>) + Send>;
/// What is done with lines that the logger has read.
pub type Read = Box<dyn FnOnce(&mut Supervisor, Vec<String>) + Send>;

/// Somebody who follows the events.
pub struct Follower {
    apps: Option<Vec<AppName>>,
    instance: Option<InstanceId>,
    /// The token that opened it.
    token: Option<String>,
    reply: ReplyTo,
    _heed: Heed,
}

fn taken_back() -> Refusal {
    Refusal::new(RefusalKind::Unknown, "the token was taken back")
}

/// Lines of a deploy's log that `history show` has.
const SHOWN_LINES: u32 = 200;

impl Supervisor {
    /// Asks the store.
    pub fn ask_ledger(
        &mut self,
        query: Query,
        then: impl FnOnce(&mut Supervisor, Result<Reply, Refusal>) + Send + 'static,
    ) {
        let ticket = self.ticket();
        self.questions.insert(ticket, Box::new(then));
        self.ledger.send(Command::Query { ticket, query });
    }

    pub fn say_found(&mut self, query: Query, reply: ReplyTo) {
        self.ask_ledger(query, move |_, found| {
            reply.say(match found {
                Ok(found) => Saying::Done(found),
                Err(refusal) => Saying::Refused(refusal),
            });
        });
    }

    /// `follow`: of which apps, once the past is told.
    pub fn say_events(
        &mut self,
        query: Query,
        follow: Option<(Option<Vec<AppName>>, Option<InstanceId>)>,
        token: Option<String>,
        reply: ReplyTo,
    ) {
        let Some((apps, instance)) = follow else { return self.say_found(query, reply) };
        // Before it asks: what comes between the past and the first that it is told would be lost.
        let heed = self.ledger.heed();
        self.ask_ledger(query, move |supervisor, found| match found {
            // Its token may have been taken back meanwhile, or have ended.
            Ok(_) if token.as_deref().is_some_and(|name| !supervisor.tokens.opens(name, clock::now().wall)) => {
                reply.say(Saying::Refused(taken_back()));
            }
            Ok(past) => {
                reply.say(Saying::Done(past));
                supervisor.followers.push(Follower { apps, instance, token, reply, _heed: heed });
            }
            Err(refusal) => {
                reply.say(Saying::Refused(refusal));
            }
        });
    }

    pub fn say_deploy(&mut self, query: Query, reply: ReplyTo) {
        self.ask_ledger(query, move |supervisor, found| match found {
            Ok(Reply::Deploy { deploy, .. }) => {
                let path = supervisor.layout.deploy_log(deploy.id);
                supervisor.tail(path, SHOWN_LINES, None, move |_, log| {
                    reply.say(Saying::Done(Reply::Deploy { deploy, log }));
                });
            }
            Ok(_) => {}
            Err(refusal) => {
                reply.say(Saying::Refused(refusal));
            }
        });
    }

    /// Has the logger read the last lines of a file, or of the run that was marked with this moment; none while there is no logger.
    pub fn tail(
        &mut self,
        path: PathBuf,
        n: u32,
        run: Option<At>,
        then: impl FnOnce(&mut Supervisor, Vec<String>) + Send + 'static,
    ) {
        if !self.logger.is_there() {
            return then(self, Vec::new());
        }
        let ticket = self.ticket();
        self.tails.insert(ticket, Box::new(then));
        self.logger.tell(ToLogger::Tail { ticket, path, n, run }, None);
    }

    /// The logger said something.
    pub fn logger_said(&mut self, run: u64, message: FromLogger) {
        if run != self.logger.run {
            return;
        }
        match message {
            FromLogger::Done { ticket } => {
                if let Some(then) = self.retargets.remove(&ticket) {
                    then(self);
                }
            }
            FromLogger::Lines { ticket, lines, .. } => {
                if let Some(then) = self.tails.remove(&ticket) {
                    then(self, lines);
                }
            }
            FromLogger::Crowded { source, stream } => self.widen(&source, stream),
            FromLogger::Dropping { source, dropped, reason } => {
                self.tally.dropping(&source, dropped, reason.is_some());
                match reason {
                    Some(reason) => self.trouble(&format!("output of {source} is being dropped: {reason}")),
                    None => warn!(%source, dropped, "output is logged again"),
                }
            }
        }
    }

    /// The ledger said something.
    pub fn told(&mut self, told: Told) {
        match told {
            Told::Accepted { deploys } => {
                for deploy in deploys {
                    self.queue_deploy(deploy, 0, Order::default());
                }
            }
            Told::Rests => self.rest(),
            Told::Health => self.ledger.send(Command::Health),
            Told::Queued { ticket, deploy } => self.queued(ticket, *deploy),
            Told::Committed { ticket } => self.committed(ticket),
            Told::Event(event) => self.tell_followers(&event),
            Told::Found { ticket, reply } => {
                if let Some(then) = self.questions.remove(&ticket) {
                    then(self, reply);
                }
            }
            Told::Unfinished { deploys, .. } => {
                let known = deploys.iter().map(|one| one.deploy.id).collect();
                self.resume_deploys(deploys);
                let callers = self.early.take();
                self.queue_early(&known);
                for caller in callers.into_iter().flatten() {
                    self.look_for_subject(caller);
                }
                for app in self.apps.keys().cloned().collect::<Vec<_>>() {
                    self.look_for_news(&app);
                }
                self.set_polls();
            }
            Told::Tokens(tokens) => {
                let gone = self.tokens.set_made(tokens);
                self.end_streams(&gone);
                self.look_at_clock();
            }
            Told::Mail { app } => self.mail(&app),
            Told::Letters { ticket, letters } => self.letters_read(ticket, letters),
            Told::ChannelClosed { .. } => {}
            Told::Trouble { message } => {
                self.tally.store_works = false;
                self.trouble(&format!("the store takes nothing: {message}"));
            }
            Told::Recovered => {
                self.tally.store_works = true;
                warn!("the store works again");
            }
            Told::Alert { message } => self.trouble(&message),
        }
    }

    /// A deploy that no delivery asked for is stored: into the line with it.
    fn queued(&mut self, ticket: u64, deploy: DeployView) {
        let id = deploy.id;
        let asked = self.queued.remove(&ticket);
        if let Some((reply, wait, deadline)) = asked {
            if wait {
                let goals = vec![Goal::Deploy { id, wanted: DeployState::Live }];
                let message = format!("deploy {id} is live");
                self.wait(Waiter { reply, goals, deadline, message, deploy: Some(id) });
            } else {
                let message = format!("deploy {id} of {} is queued", deploy.app);
                reply.say(Saying::Done(Reply::Changed { app: Some(deploy.app.clone()), deploy: Some(id), message }));
            }
        }
        let order = self.orders.remove(&ticket).unwrap_or_default();
        self.queue_deploy(deploy, 0, order);
        self.say_queued(id);
    }

    /// Ends every stream that one of these tokens opened.
    pub fn end_streams(&mut self, tokens: &[String]) {
        self.followers.retain(|follower| {
            let ends = follower.token.as_ref().is_some_and(|name| tokens.contains(name));
            if ends {
                follower.reply.say(Saying::Refused(taken_back()));
            }
            !ends
        });
        for token in tokens {
            self.logger.tell(ToLogger::Dismiss { token: token.clone() }, None);
        }
    }

    fn tell_followers(&mut self, event: &EventView) {
        let of_apps = |follower: &Follower| match (&follower.apps, &event.app) {
            (Some(apps), Some(app)) => apps.contains(app),
            (Some(_), None) => false,
            (None, _) => true,
        };
        let wanted = |follower: &Follower| {
            of_apps(follower) && (follower.instance.is_none() || follower.instance == event.instance)
        };
        self.followers.retain(|follower| {
            if wanted(follower) { follower.reply.say(Saying::Event(event.clone())) } else { !follower.reply.is_gone() }
        });
    }

    /// Something a person should know of, that stops nothing.
    pub fn trouble(&mut self, what: &str) {
        error!("{what}");
        self.note(EventKind::Supervisor, None, "trouble", Some(what.to_owned()));
    }

    /// When something that was not an event of its own is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let apps = self.deadlines.first().map(|(at, _)| *at);
        let others = [self.waiters_deadline(), self.deploys.deadline(), self.spawning.look_at()];
        let later = [self.write_down_at(), self.children.reap_at()];
        others.into_iter().chain(later).chain([apps, self.courier.deadline()]).flatten().min()
    }

    /// Everything whose moment has come.
    pub fn moment(&mut self) {
        let now = Instant::now();
        self.timers();
        if self.waiters_deadline().is_some_and(|at| at <= now) {
            self.look_at_waiters();
        }
        if self.spawning.look_at().is_some_and(|at| at <= now) {
            match self.spawning.help() {
                Ok(true) => warn!("a start hangs, as on a file system that does not answer; the others go past it"),
                Ok(false) => {}
                Err(error) => warn!(%error, "a start hangs, and the others with it"),
            }
        }
        if self.deploys.deadline().is_some_and(|at| at <= now) {
            self.deploy_event(deploy::Event::Timer);
        }
        if self.courier.deadline().is_some_and(|at| at <= now) {
            self.outbox_event(outbox::Event::Timer);
        }
    }
}
