//! What people do to deploys: ask for one, go back, cancel, approve, freeze, redeliver. DESIGN.md section 7,
//! "By hand". Who may is judged before; what is possible says the deploy machine.

use super::super::{
    Supervisor,
    ledger::{Command, NewDeploy},
    live,
    requests::Wish,
    veil,
    waiters::{Goal, Waiter},
};
use super::{Order, Rollback, told_end};
use crate::domain::{
    api::{DeployState, DeployView, Redelivered, Refusal, RefusalKind, Reply, Saying},
    deploy::{Event, Freeze},
    model::{AppName, DeliveryId, ReleaseId},
};

fn failed(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalKind::Failed, message)
}

impl Supervisor {
    pub fn deploy_app(&mut self, wish: Wish, rev: Option<String>, dry_run: bool) -> Result<(), Refusal> {
        let app = wish.apps[0].clone();
        self.deployable(&app)?;
        if dry_run {
            self.preview_deploy(wish, rev);
            return Ok(());
        }
        if let Some(freeze) = self.deploys.freeze(&app) {
            return Err(failed(format!("{app} is {freeze}; `everhook unfreeze {app}` lets deploys start again")));
        }
        let ticket = self.ticket();
        self.queued.insert(ticket, (wish.reply, wish.wait, wish.deadline));
        self.orders.insert(ticket, Order { rev: rev.clone(), since: None });
        let order =
            NewDeploy { ticket, app, ref_name: None, rev, commit: None, release: None, by: wish.by, approved_by: None };
        self.ledger.send(Command::NewDeploy(order));
        Ok(())
    }

    pub fn roll_app_back(&mut self, wish: Wish, to: Option<ReleaseId>, dry_run: bool) -> Result<(), Refusal> {
        let app = wish.apps[0].clone();
        self.deployable(&app)?;
        let to = to.or_else(|| self.deploys.before_unproven(&app).cloned());
        let ticket = self.ticket();
        if !dry_run {
            self.queued.insert(ticket, (wish.reply.clone(), wish.wait, wish.deadline));
        }
        self.roll_back(Rollback { app, to, dry_run, by: wish.by, address: wish.address, ticket, reply: wish.reply });
        Ok(())
    }

    fn has_repository(&self, app: &AppName) -> Result<(), Refusal> {
        if self.apps.get(app).is_some_and(|app| app.spec().deploy.is_none()) {
            return Err(failed(format!("{app} has no repository: there is nothing to deploy")));
        }
        Ok(())
    }

    fn deployable(&self, app: &AppName) -> Result<(), Refusal> {
        self.has_repository(app)?;
        match self.apps.get(app).and_then(|app| app.spec().problem.clone()) {
            Some(problem) => Err(failed(problem)),
            None => Ok(()),
        }
    }

    /// At once what waits; of what runs the step's tree is ended first. From the switch on a deploy ends
    /// by itself.
    pub fn cancel_deploy(&mut self, wish: Wish, stored: &DeployView) -> Result<(), Refusal> {
        let Some(view) = self.deploys.find(stored.id).map(|(view, _)| view.clone()) else {
            return is_over(&wish, stored, DeployState::Cancelled);
        };
        let DeployView { id, app, state, .. } = &view;
        if self.deploys.is_over(*id) {
            self.deploy_event(Event::Cancel { deploy: *id, why: format!("cancelled by {}", wish.who) });
            wish.reply.say(begun(&view, format!("what follows deploy {id} of {app} is being ended; it stays {state}")));
            return Ok(());
        }
        if self.deploys.switches(*id) {
            let message = format!(
                "deploy {id} of {app} is {state}: from the switch on it cannot be cancelled; \
                 `everhook rollback {app}` goes back once it is live"
            );
            return Err(failed(message));
        }
        let Wish { reply, deadline, wait, who, .. } = wish;
        if wait {
            let goals = vec![Goal::Deploy { id: *id, wanted: DeployState::Cancelled }];
            self.waiters.push(Waiter { reply, goals, deadline, message: String::new(), deploy: Some(*id) });
        } else {
            reply.say(begun(&view, format!("deploy {id} of {app} is being cancelled")));
        }
        self.deploy_event(Event::Cancel { deploy: *id, why: format!("cancelled by {who}") });
        Ok(())
    }

    pub fn approve_deploy(&mut self, wish: Wish, stored: &DeployView) -> Result<(), Refusal> {
        let Some(view) = self.deploys.find(stored.id).map(|(view, _)| view.clone()) else {
            return is_over(&wish, stored, DeployState::Live);
        };
        let DeployView { id, app, state, .. } = &view;
        let Wish { reply, deadline, wait, by, .. } = wish;
        if *state != DeployState::AwaitingApproval && view.approved_by.is_none() {
            return Err(failed(format!("deploy {id} of {app} does not await approval: it is {state}")));
        }
        let freeze = self.deploys.freeze(app).cloned();
        if let (true, None) = (wait, &freeze) {
            let goals = vec![Goal::Deploy { id: *id, wanted: DeployState::Live }];
            let (reply, message) = (reply.clone(), String::new());
            self.waiters.push(Waiter { reply, goals, deadline, message, deploy: Some(*id) });
        }
        self.deploy_event(Event::Approve { deploy: *id, by });
        if !wait || freeze.is_some() {
            let but = freeze.map(|freeze| format!("; it starts once {app} is unfrozen ({freeze})")).unwrap_or_default();
            self.say_kept(*id, reply, begun(&view, format!("deploy {id} of {app} is approved{but}")));
        }
        Ok(())
    }

    /// Nothing starts from here on; what runs already goes on.
    pub fn freeze_app(&mut self, wish: Wish, why: &str) -> Result<(), Refusal> {
        let app = wish.apps[0].clone();
        self.has_repository(&app)?;
        let freeze = Freeze::new(wish.who.to_string(), crate::os::clock::now().wall, &veil::text(why))
            .map_err(|why| Refusal::new(RefusalKind::BadRequest, why))?;
        match self.deploys.freeze(&app) {
            Some(first) => {
                let message = format!("{app} is {first} already");
                self.audit_done(&wish);
                wish.reply.say(changed(&app, message));
            }
            None => self.keep_freeze(wish, app, Some(freeze)),
        }
        Ok(())
    }

    pub fn unfreeze_app(&mut self, wish: Wish) -> Result<(), Refusal> {
        let app = wish.apps[0].clone();
        self.has_repository(&app)?;
        if self.deploys.freeze(&app).is_none() {
            self.audit_done(&wish);
            wish.reply.say(changed(&app, format!("{app} is not frozen")));
            return Ok(());
        }
        self.keep_freeze(wish, app, None);
        Ok(())
    }

    /// It counts once it is on disk, so that it holds over whatever comes.
    fn keep_freeze(&mut self, wish: Wish, app: AppName, freeze: Option<Freeze>) {
        let (layout, name, kept) = (self.layout.clone(), app.clone(), freeze.clone());
        self.files.run(
            move || live::keep_freeze(&layout, &name, kept.as_ref()),
            move |supervisor, result| match result {
                Ok(()) => supervisor.frozen(&wish, &app, freeze),
                Err(error) => {
                    supervisor.audit_refused(&wish, &error);
                    wish.reply.say(Saying::Refused(failed(error)));
                }
            },
        );
    }

    fn frozen(&mut self, wish: &Wish, app: &AppName, freeze: Option<Freeze>) {
        let message = if let Some(freeze) = &freeze {
            self.note_app(app, "frozen", freeze.to_string());
            let running = self.deploys.running(app).map(|view| view.id);
            let but = running.map(|id| format!("; deploy {id} runs already and goes on")).unwrap_or_default();
            format!("{app} is {freeze}{but}")
        } else {
            self.note_app(app, "unfrozen", format!("unfrozen by {}", wish.who));
            let waits = self.deploys.waiting(app).map(|view| format!("deploy {} is {}", view.id, view.state));
            [format!("{app} is unfrozen")].into_iter().chain(waits).collect::<Vec<_>>().join("; ")
        };
        self.audit_done(wish);
        if self.apps.contains_key(app) {
            self.deploy_event(Event::Freeze { app: app.clone(), freeze });
        }
        wish.reply.say(changed(app, message));
    }

    /// Has the stored body judged as if its sender had sent it again.
    pub fn redeliver(&mut self, wish: Wish, id: DeliveryId) -> Result<(), Refusal> {
        let ticket = self.ticket();
        self.questions.insert(
            ticket,
            Box::new(move |supervisor, answer| {
                let result = match answer {
                    Ok(Reply::Redelivered(Redelivered { reason: Some(why), duplicate_of: None, delivery, .. })) => {
                        Err(failed(format!("delivery {delivery}, which repeats {id}, is skipped: {why}")))
                    }
                    other => other,
                };
                match result {
                    Ok(reply) => {
                        supervisor.audit_done(&wish);
                        wish.reply.say(Saying::Done(reply));
                    }
                    Err(refusal) => {
                        supervisor.audit_refused(&wish, &refusal.message);
                        wish.reply.say(Saying::Refused(refusal));
                    }
                }
            }),
        );
        self.ledger.send(Command::Redeliver { ticket, id });
        Ok(())
    }

    pub fn audit_done(&mut self, wish: &Wish) {
        self.audit_all(&wish.by, wish.address.as_deref(), &wish.request, &wish.apps, None);
    }

    pub fn audit_refused(&mut self, wish: &Wish, why: &str) {
        self.audit_all(&wish.by, wish.address.as_deref(), &wish.request, &wish.apps, Some(why));
    }
}

/// Answers for a deploy that is over: it may be what is wanted.
fn is_over(wish: &Wish, view: &DeployView, wanted: DeployState) -> Result<(), Refusal> {
    let DeployView { id, app, state, .. } = view;
    if !state.is_end() {
        return Err(failed(format!("deploy {id} of {app} is about to change its state: try again")));
    }
    match told_end(view, wanted) {
        Saying::Refused(_) => Err(failed(format!("deploy {id} of {app} has ended already: {state}"))),
        already => {
            wish.reply.say(already);
            Ok(())
        }
    }
}

fn begun(view: &DeployView, message: String) -> Saying {
    Saying::Done(Reply::Changed { app: Some(view.app.clone()), deploy: Some(view.id), message })
}

fn changed(app: &AppName, message: String) -> Saying {
    Saying::Done(Reply::Changed { app: Some(app.clone()), deploy: None, message })
}
