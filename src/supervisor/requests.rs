//! What people ask for, whoever they are: judge the right, begin the change, note it in the audit,
//! answer. SURFACE.md sections 2 and 5.

use std::{os::fd::OwnedFd, time::Instant};

use tracing::info;

use super::{
    Supervisor,
    control::{Asked, From, ReplyTo},
    exec,
    ledger::{Command, NewAudit, Query},
    reload::{Waiting, Wanted},
    seats::SeatId,
    waiters::{Goal, Waiter},
};
use crate::{
    domain::{
        access::{self, Principal},
        api::{Ask, By, DeployView, Refusal, RefusalKind, Reply, Request, Saying, Target},
        model::{AppName, InstanceId, nearest},
        service::{self, order},
    },
    os::clock,
};

/// A request of somebody who is known.
pub struct Caller {
    who: Principal,
    ask: Ask,
    fds: Vec<OwnedFd>,
    reply: ReplyTo,
}

/// What a request is about.
#[derive(Default)]
struct Subject {
    chosen: Vec<Chosen>,
    /// The one deploy, as it stood in the store.
    deploy: Option<Box<DeployView>>,
}

/// A request that was understood and allowed.
pub struct Wish {
    pub who: Principal,
    pub by: By,
    pub address: Option<String>,
    chosen: Vec<Chosen>,
    /// The apps of these.
    pub apps: Vec<AppName>,
    /// The deploy that it is about, as it stood in the store.
    deploy: Option<Box<DeployView>>,
    pub wait: bool,
    pub deadline: Option<Instant>,
    fds: Vec<OwnedFd>,
    pub reply: ReplyTo,
    pub request: Request,
}

/// An app that a request is about, or one copy of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chosen {
    pub app: AppName,
    pub only: Option<u32>,
}

impl Chosen {
    /// The copy that is meant, or the first one.
    fn first_instance(&self) -> InstanceId {
        InstanceId { app: self.app.clone(), number: self.only.unwrap_or(1) }
    }

    pub fn all(app: AppName) -> Self {
        Self { app, only: None }
    }
}

impl std::fmt::Display for Chosen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.only {
            None => write!(f, "{}", self.app),
            Some(number) => write!(f, "{}.{number}", self.app),
        }
    }
}

impl Supervisor {
    /// Hears a request, and answers it sooner or later.
    pub fn hear(&mut self, asked: Asked) {
        let Asked { ask, from, fds, reply } = asked;
        if matches!(from, From::Metrics) {
            return self.say_metrics(reply);
        }
        match self.principal(from, &ask) {
            Ok(who) => self.look_for_subject(Caller { who, ask, fds, reply }),
            Err(stranger) if stranger.noted => self.turn_down(&By::Nobody, &ask, &reply, stranger.refusal),
            Err(stranger) => drop(reply.say(Saying::Refused(stranger.refusal))),
        }
    }

    /// What the request is about, for which the store may have to be asked.
    pub fn look_for_subject(&mut self, caller: Caller) {
        let seen = if let Principal::Token { apps, .. } = &caller.who { apps.clone() } else { None };
        let query = match caller.ask.request {
            Request::Cancel { id } | Request::Approve { id } => {
                if let Some(early) = &mut self.early {
                    return early.push(caller);
                }
                Query::Deploy { id, apps: seen }
            }
            Request::Redeliver { id } => Query::Delivery { id, apps: seen },
            _ => {
                let chosen = self.targets(&caller.ask.request, &caller.who);
                return self.judge_request(caller, chosen.map(|chosen| Subject { chosen, deploy: None }));
            }
        };
        self.ask_ledger(query, move |supervisor, found| {
            let subject = found.map(|found| match found {
                Reply::Deploy { deploy, .. } => {
                    Subject { chosen: vec![Chosen::all(deploy.app.clone())], deploy: Some(deploy) }
                }
                Reply::Delivery(delivery) => {
                    Subject { chosen: delivery.about.into_iter().map(Chosen::all).collect(), deploy: None }
                }
                _ => Subject::default(),
            });
            supervisor.judge_request(caller, subject);
        });
    }

    fn judge_request(&mut self, caller: Caller, subject: Result<Subject, Refusal>) {
        let Caller { who, ask, fds, reply } = caller;
        let by = by(&who);
        let judged = subject.and_then(|subject| {
            let mut apps: Vec<AppName> = subject.chosen.iter().map(|chosen| chosen.app.clone()).collect();
            apps.dedup();
            self.judge_right(&who, &ask.request, &apps)?;
            Ok((subject, apps))
        });
        let (Subject { chosen, deploy }, apps) = match judged {
            Ok(judged) => judged,
            Err(refusal) => return self.turn_down(&by, &ask, &reply, refusal),
        };
        let Ask { address, wait, timeout, request, .. } = ask;
        let wish = Wish {
            who,
            by: by.clone(),
            address: address.clone(),
            chosen,
            apps: apps.clone(),
            deploy,
            wait,
            deadline: timeout.map(|timeout| Instant::now() + timeout),
            fds,
            reply: reply.clone(),
            request: request.clone(),
        };
        let result = self.grant(wish);
        if request.changes() && (result.is_err() || !told_later(&request)) {
            let reason = result.as_ref().err().map(|refusal| refusal.message.clone());
            self.audit_all(&by, address.as_deref(), &request, &apps, reason.as_deref());
        }
        if let Err(refusal) = result {
            reply.say(Saying::Refused(refusal));
        }
    }

    /// Refuses what was not even looked into.
    fn turn_down(&mut self, by: &By, ask: &Ask, reply: &ReplyTo, refusal: Refusal) {
        if ask.request.changes() {
            let named: Vec<AppName> = ask.request.named().into_iter().cloned().collect();
            self.audit_all(by, ask.address.as_deref(), &ask.request, &named, Some(&refusal.message));
        }
        reply.say(Saying::Refused(refusal));
    }

    /// The apps and copies that a request is about, sorted.
    fn targets(&self, request: &Request, who: &Principal) -> Result<Vec<Chosen>, Refusal> {
        let one = |app: &AppName| self.known(app, who).map(|app| vec![Chosen::all(app)]);
        let all = || self.visible(who).into_iter().map(Chosen::all).collect();
        match request {
            Request::Status { apps } if apps.is_empty() => Ok(all()),
            Request::Logs(logs) if logs.deploy.is_some() => Ok(Vec::new()),
            Request::Logs(logs) if logs.apps.is_empty() => Ok(all()),
            Request::Status { apps } => self.resolve(apps, who),
            Request::Start { apps } | Request::Stop { apps, .. } | Request::Restart { apps } => {
                let mut found = self.resolve(apps, who)?;
                if apps.contains(&Target::All) {
                    let is_meant = |app: &service::App| match request {
                        Request::Stop { .. } => app.spec().command.is_some(),
                        _ => app.spec().command.is_some() && app.spec().enabled,
                    };
                    found.retain(|chosen| self.apps.get(&chosen.app).is_some_and(|app| is_meant(app)));
                }
                Ok(found)
            }
            Request::Logs(logs) => self.resolve(&logs.apps, who),
            Request::Signal { app, .. } | Request::WaitFor { app, .. } | Request::Exec { app, .. } => {
                self.resolve(std::slice::from_ref(app), who)
            }
            Request::DeployApp { app, .. }
            | Request::Rollback { app, .. }
            | Request::Freeze { app, .. }
            | Request::Unfreeze { app } => one(app),
            Request::Events { app: Some(app), .. }
            | Request::History { app: Some(app), .. }
            | Request::Deliveries { app: Some(app), .. } => one(app),
            _ => Ok(Vec::new()),
        }
    }

    fn resolve(&self, targets: &[Target], who: &Principal) -> Result<Vec<Chosen>, Refusal> {
        let mut found = Vec::new();
        for target in targets {
            match target {
                Target::All => found.extend(self.visible(who).into_iter().map(Chosen::all)),
                Target::App(app) => found.push(Chosen::all(self.known(app, who)?)),
                Target::Instance(id) => found.push(self.known_instance(id, who)?),
            }
        }
        found.sort();
        found.dedup();
        let whole: Vec<AppName> = found.iter().filter(|c| c.only.is_none()).map(|c| c.app.clone()).collect();
        found.retain(|chosen| chosen.only.is_none() || !whole.contains(&chosen.app));
        Ok(found)
    }

    fn known_instance(&self, id: &InstanceId, who: &Principal) -> Result<Chosen, Refusal> {
        let app = self.known(&id.app, who)?;
        let found = self.apps.get(&app).filter(|app| app.spec().command.is_some());
        if found.is_some_and(|app| app.copy(id.number).is_some()) {
            return Ok(Chosen { app, only: Some(id.number) });
        }
        let has = match found.map_or(0, |app| app.spec().instances) {
            0 => "it has none".to_owned(),
            1 => format!("it has {app}.1 alone"),
            count => format!("it has {app}.1 to {app}.{count}"),
        };
        Err(Refusal::new(RefusalKind::NotFound, format!("instance {id} does not exist; {has}")))
    }

    pub fn known(&self, app: &AppName, who: &Principal) -> Result<AppName, Refusal> {
        if self.apps.contains_key(app) && self.may_see(app, who) {
            return Ok(app.clone());
        }
        let names = self.visible(who);
        let hint = nearest(app.as_str(), names.iter().map(AppName::as_str))
            .map(|name| format!("; did you mean {name:?}?"))
            .unwrap_or_default();
        Err(Refusal::new(RefusalKind::NotFound, format!("app {:?} does not exist{hint}", app.as_str())))
    }

    fn may_see(&self, app: &AppName, who: &Principal) -> bool {
        !matches!(who, Principal::Token { apps: Some(apps), .. } if !apps.contains(app))
    }

    fn visible(&self, who: &Principal) -> Vec<AppName> {
        self.apps.keys().filter(|app| self.may_see(app, who)).cloned().collect()
    }

    fn judge_right(&self, who: &Principal, request: &Request, apps: &[AppName]) -> Result<(), Refusal> {
        let may = |app: Option<&AppName>| {
            access::may(who, app, request.role(), &self.config.local, self.me.uid)
                .map_err(|denied| Refusal::new(RefusalKind::Forbidden, denied.to_string()))
        };
        if apps.is_empty() { may(None) } else { apps.iter().try_for_each(|app| may(Some(app))) }
    }

    /// What a list shows to somebody: `None` is everything.
    fn shown(&self, wish: &Wish) -> Option<Vec<AppName>> {
        match (&wish.who, wish.apps.is_empty()) {
            (_, false) => Some(wish.apps.clone()),
            (Principal::Token { apps: Some(apps), .. }, true) => Some(apps.clone()),
            _ => None,
        }
    }

    fn grant(&mut self, wish: Wish) -> Result<(), Refusal> {
        if self.is_ending() && wish.request.changes() && !matches!(wish.request, Request::Shutdown { .. }) {
            return Err(Refusal::new(RefusalKind::Unavailable, "everhook is shutting down"));
        }
        let shown = self.shown(&wish);
        match wish.request.clone() {
            Request::Status { .. } => self.say_status(&wish.chosen, wish.reply),
            Request::Events { app, number, n, since, follow, after, before } => {
                let instance = app.zip(number).map(|(app, number)| InstanceId { app, number });
                let query = Query::Events { apps: shown.clone(), instance: instance.clone(), n, since, after, before };
                self.say_events(query, follow.then_some((shown, instance)), token_of(&wish.who), wish.reply);
            }
            Request::History { n, before, .. } => {
                self.say_found(Query::Deploys { apps: shown, n, before }, wish.reply);
            }
            Request::Deploy { id } => self.say_deploy(Query::Deploy { id, apps: shown }, wish.reply),
            Request::Deliveries { n, before, .. } => {
                self.say_found(Query::Deliveries { apps: shown, n, before }, wish.reply);
            }
            Request::Delivery { id } => self.say_found(Query::Delivery { id, apps: shown }, wish.reply),
            Request::Audit(filter) => self.say_found(Query::Audit(filter), wish.reply),
            Request::Tokens => {
                let tokens = self.tokens.views(clock::now().wall);
                wish.reply.say(Saying::Done(Reply::Tokens(tokens)));
            }
            Request::TokenCreate { .. } => return self.create_token(wish),
            Request::TokenRevoke { name } => return self.revoke_token(wish, name),
            Request::DeployLog { id, n } => {
                let reply = wish.reply;
                self.tail(self.layout.deploy_log(id), n, None, move |_, lines| {
                    reply.say(Saying::Done(Reply::Lines(lines)));
                });
            }
            Request::Logs(logs) => match logs.deploy {
                Some(id) => self.serve_deploy_log(id, shown, logs, token_of(&wish.who), wish.reply),
                None => {
                    let ids: Vec<_> = wish.chosen.iter().flat_map(|chosen| self.instances_of(chosen)).collect();
                    self.serve_logs(&ids, logs, token_of(&wish.who), &wish.reply);
                }
            },
            Request::Start { .. } => return self.start_apps(wish, false),
            Request::Restart { .. } => return self.start_apps(wish, true),
            Request::Stop { confirmed, .. } => return self.stop_apps(wish, confirmed),
            Request::Signal { signal, .. } => return self.signal_apps(&wish, signal),
            Request::WaitFor { state, .. } => {
                let goals = wish.chosen.iter().map(|chosen| Goal::State { chosen: chosen.clone(), state }).collect();
                let message = format!("{} is {state}", list(&wish.chosen));
                self.wait(Waiter { reply: wish.reply, goals, deadline: wish.deadline, message, deploy: None });
            }
            Request::Exec { command, .. } => {
                let instance = wish.chosen[0].first_instance();
                return self.exec(exec::Order { instance, command, streams: wish.fds, reply: wish.reply });
            }
            Request::DeployApp { rev, dry_run, .. } => return self.deploy_app(wish, rev, dry_run),
            Request::Rollback { to, dry_run, .. } => return self.roll_app_back(wish, to, dry_run),
            Request::Cancel { .. } => return self.with_deploy(wish, Self::cancel_deploy),
            Request::Approve { .. } => return self.with_deploy(wish, Self::approve_deploy),
            Request::Freeze { why, .. } => return self.freeze_app(wish, &why),
            Request::Unfreeze { .. } => return self.unfreeze_app(wish),
            Request::Redeliver { id } => return self.redeliver(wish, id),
            Request::Prune { paths } => self.prune_remains(wish, paths),
            Request::Metrics => self.say_metrics(wish.reply),
            Request::Plan => self.say_plan(wish.reply),
            Request::Reload => {
                let who = wish.who.to_string();
                let waiting = Waiting { reply: wish.reply, wait: wish.wait, deadline: wish.deadline };
                self.reload(Wanted { by: wish.by, who, waiting: Some(waiting) });
            }
            Request::Upgrade => {
                let (who, binary) = (wish.who.to_string(), wish.fds.into_iter().next());
                self.upgrade(&who, binary, Some(wish.reply))?;
            }
            Request::Shutdown { now } => {
                wish.reply.say(Saying::Done(Reply::Changed {
                    app: None,
                    deploy: None,
                    message: "shutting down".to_owned(),
                }));
                self.shut_down(&wish.who.to_string(), now);
            }
        }
        Ok(())
    }

    fn with_deploy(
        &mut self,
        mut wish: Wish,
        act: impl FnOnce(&mut Self, Wish, &DeployView) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        match wish.deploy.take() {
            Some(deploy) => act(self, wish, &deploy),
            None => Err(Refusal::new(RefusalKind::NotFound, "there is no such deploy")),
        }
    }

    fn start_apps(&mut self, wish: Wish, restart: bool) -> Result<(), Refusal> {
        let verb = if restart { "restart" } else { "start" };
        self.must_have_command(&wish.apps, verb)?;
        self.must_not_lack(&wish.apps)?;
        let goals: Vec<Goal> = wish.chosen.iter().flat_map(|chosen| self.up(chosen, restart)).collect();
        for Chosen { app, only } in &wish.chosen {
            let by = format!("{verb} by {}", wish.who);
            self.resume_watch(app);
            self.feed(app, service::Event::Start { only: *only, restart, by });
        }
        let (goals, message) = if wish.wait {
            (goals, format!("{} {} up", list(&wish.chosen), if wish.chosen.len() == 1 { "is" } else { "are" }))
        } else {
            (Vec::new(), format!("{verb} of {} has begun", list(&wish.chosen)))
        };
        self.wait_kept(Waiter { reply: wish.reply, goals, deadline: wish.deadline, message, deploy: None });
        Ok(())
    }

    /// What is so once these copies have been started, or restarted one by one.
    fn up(&self, chosen: &Chosen, restart: bool) -> Vec<Goal> {
        let Some((app, shell)) = self.apps.get(&chosen.app).zip(self.shells.get(&chosen.app)) else {
            return Vec::new();
        };
        let rolled = restart.then(|| Goal::Rolled { app: chosen.app.clone(), after: shell.rolled.0 });
        let copies = app.copies().iter().filter(|copy| chosen.only.is_none_or(|number| number == copy.number()));
        let up = copies.map(|copy| Goal::Up {
            id: InstanceId { app: chosen.app.clone(), number: copy.number() },
            failures: copy.instance().failures(),
        });
        rolled.into_iter().chain(up).collect()
    }

    fn must_have_command(&self, apps: &[AppName], verb: &str) -> Result<(), Refusal> {
        if apps.is_empty() {
            return Err(Refusal::new(RefusalKind::Failed, format!("there is no app to {verb}")));
        }
        let lacks = |name: &&AppName| self.apps.get(name).is_some_and(|app| app.spec().command.is_none());
        let without: Vec<&AppName> = apps.iter().filter(lacks).collect();
        if without.is_empty() {
            return Ok(());
        }
        let message = format!("{} has no command: there is nothing to {verb}", list(&without));
        Err(Refusal::new(RefusalKind::Failed, message))
    }

    /// What it requires was stopped by somebody who should know that it is wanted again.
    fn must_not_lack(&self, apps: &[AppName]) -> Result<(), Refusal> {
        let rests = |name: &AppName| {
            let rests = self.apps.get(name).and_then(|app| app.rests());
            matches!(rests, Some(service::Rest::Held(_) | service::Rest::Disabled))
        };
        for name in apps {
            let mut requires = self.apps.get(name).into_iter().flat_map(|app| &app.spec().requires);
            if let Some(other) = requires.find(|other| !apps.contains(other) && rests(other)) {
                let message = format!("{name} requires {other}, which is stopped: start {other} too");
                return Err(Refusal::new(RefusalKind::Failed, message));
            }
        }
        Ok(())
    }

    fn stop_apps(&mut self, wish: Wish, confirmed: bool) -> Result<(), Refusal> {
        self.must_have_command(&wish.apps, "stop")?;
        let whole: Vec<AppName> = wish.apps.iter().filter(|app| self.ends_with(app, &wish.chosen)).cloned().collect();
        let hurt: Vec<AppName> = order::hurt_by(&whole, &self.apps).into_iter().cloned().collect();
        if !confirmed && !hurt.is_empty() {
            let message = format!("{} comes after {}, which would be stopped", list(&hurt), list(&wish.chosen));
            return Err(Refusal::new(RefusalKind::NeedsConfirmation, message));
        }
        for Chosen { app, only } in &wish.chosen {
            self.feed(app, service::Event::Stop { only: *only, by: format!("stopped by {}", wish.who) });
        }
        let (goals, message) = if wish.wait {
            let goals = wish.chosen.iter().map(|chosen| Goal::Down { chosen: chosen.clone() }).collect();
            (goals, format!("{} {} stopped", list(&wish.chosen), if wish.chosen.len() == 1 { "is" } else { "are" }))
        } else {
            (Vec::new(), format!("stop of {} has begun", list(&wish.chosen)))
        };
        self.wait_kept(Waiter { reply: wish.reply, goals, deadline: wish.deadline, message, deploy: None });
        Ok(())
    }

    /// Does nothing of the app run on when these are stopped?
    fn ends_with(&self, name: &AppName, stopped: &[Chosen]) -> bool {
        let is_stopped =
            |number| stopped.iter().any(|chosen| chosen.app == *name && chosen.only.is_none_or(|only| only == number));
        self.apps.get(name).is_some_and(|app| {
            app.copies().iter().all(|copy| is_stopped(copy.number()) || !copy.instance().is_active())
        })
    }

    fn signal_apps(&mut self, wish: &Wish, signal: crate::domain::model::Signal) -> Result<(), Refusal> {
        for chosen in &wish.chosen {
            let Some(app) = self.apps.get(&chosen.app) else { continue };
            let wanted = |id: &SeatId| chosen.only.is_none_or(|number| number == id.seat.number);
            let seats = self.active_seats(app).into_iter().filter(wanted);
            let mains: Vec<_> = seats.filter_map(|id| self.seat(&id)?.pidfd.as_ref()).collect();
            if mains.is_empty() {
                return Err(Refusal::new(RefusalKind::Failed, format!("{chosen} is not running")));
            }
            for fd in mains {
                crate::os::pidfd::signal(fd, signal)
                    .map_err(|error| Refusal::new(RefusalKind::Failed, format!("{chosen}: {signal}: {error}")))?;
            }
        }
        let message = format!("{signal} sent to {}", list(&wish.chosen));
        wish.reply.say(Saying::Done(Reply::Changed { app: None, deploy: None, message }));
        Ok(())
    }

    fn instances_of(&self, chosen: &Chosen) -> Vec<InstanceId> {
        let copies = self.apps.get(&chosen.app).map(|app| app.copies()).unwrap_or_default();
        let wanted = copies.iter().filter(|copy| chosen.only.is_none_or(|number| number == copy.number()));
        wanted.map(|copy| InstanceId { app: chosen.app.clone(), number: copy.number() }).collect()
    }

    /// A row in the audit for each app that a request is about, one where it is about none.
    pub fn audit_all(
        &mut self,
        by: &By,
        address: Option<&str>,
        request: &Request,
        apps: &[AppName],
        refused: Option<&str>,
    ) {
        let apps = if apps.is_empty() { vec![None] } else { apps.iter().map(Some).collect() };
        for app in apps {
            self.audit(by.clone(), address.map(str::to_owned), request, app, refused.map(str::to_owned));
        }
    }

    /// A row in the audit.
    pub fn audit(
        &mut self,
        by: By,
        address: Option<String>,
        request: &Request,
        app: Option<&AppName>,
        refused: Option<String>,
    ) {
        let outcome = if refused.is_some() { "refused" } else { "done" };
        info!(?by, action = request.verb(), app = app.map(AppName::as_str), outcome, "asked for");
        self.ledger.send(Command::Audit(NewAudit {
            at: clock::now().wall,
            by,
            address,
            action: request.verb().to_owned(),
            app: app.map(ToString::to_string),
            outcome: outcome.to_owned(),
            reason: refused.or_else(|| request.detail()),
        }));
    }
}

/// Does it note in the audit by itself how it went?
fn told_later(request: &Request) -> bool {
    use Request::{Freeze, Prune, Redeliver, Reload, Rollback, TokenCreate, TokenRevoke, Unfreeze};
    matches!(
        request,
        Reload
            | Rollback { .. }
            | Freeze { .. }
            | Prune { .. }
            | Unfreeze { .. }
            | Redeliver { .. }
            | TokenCreate { .. }
            | TokenRevoke { .. }
    )
}

fn token_of(who: &Principal) -> Option<String> {
    if let Principal::Token { name, .. } = who { Some(name.clone()) } else { None }
}

fn by(who: &Principal) -> By {
    match who {
        Principal::Local { uid, user, .. } => By::Local { uid: *uid, user: user.clone() },
        Principal::Token { name, .. } => By::Token { name: name.clone() },
    }
}

fn list<T: ToString>(apps: &[T]) -> String {
    apps.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
