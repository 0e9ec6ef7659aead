//! A changed config, applied all or nothing: only what changed is touched. What a change touches is
//! `domain::config::diff`'s to say.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use tracing::{info, warn};

use super::{
    Supervisor,
    control::ReplyTo,
    internals::echoes,
    ledger::Command,
    listeners,
    planning::{NewApp, Prepared, new_app, planned, prepare},
    prepare::{self, Kit, Maker},
    rename,
    seats::Shell,
    settings::{self, Settings},
    veil,
    waiters::{Goal, Waiter},
};
use crate::domain::{
    api::{By, EventKind, Refusal, RefusalKind, Reply, Request, Saying, ToLogger},
    config::{self, Config, Plan},
    deploy,
    model::{AppName, InstanceId},
    service::{self, App, Seat},
};

/// What a reload has changed, in words, and what that is to come to.
type Applied = (Vec<String>, Vec<Goal>);

/// A wish that the config be read again.
pub struct Wanted {
    pub by: By,
    /// The same in words.
    pub who: String,
    pub waiting: Option<Waiting>,
}

/// Whom to tell how a reload went.
pub struct Waiting {
    pub reply: ReplyTo,
    /// Until all that it starts is up, and all that it ends is gone.
    pub wait: bool,
    pub deadline: Option<Instant>,
}

impl Supervisor {
    /// Reads the config again and applies it. One at a time, since each starts from what the last one
    /// applied; wishes that come meanwhile are granted by one more reading.
    pub fn reload(&mut self, wanted: Wanted) {
        self.reloads.push(wanted);
        if !self.reloading && !self.coming.any() && self.begun {
            self.reload_next();
        }
    }

    /// Grants the wishes that have come.
    pub fn reload_next(&mut self) {
        let wanted = std::mem::take(&mut self.reloads);
        self.reloading = !wanted.is_empty();
        if wanted.is_empty() {
            return;
        }
        let work = self.plan(prepare);
        self.files.run(work, move |supervisor, result| {
            let who: Vec<_> = wanted.iter().map(|wanted| wanted.who.as_str()).collect();
            let result = supervisor.finish_reload(&who.join(", "), result);
            for Wanted { by, waiting, .. } in wanted {
                supervisor.audit(by, None, &Request::Reload, None, result.as_ref().err().cloned());
                let Some(Waiting { reply, wait, deadline }) = waiting else { continue };
                match &result {
                    Ok((lines, goals)) => {
                        // What cannot be is known at once.
                        let told = |goal: &Goal| wait || supervisor.is_lame(goal);
                        let goals = goals.iter().filter(|goal| told(goal)).cloned().collect();
                        supervisor.wait(Waiter { reply, goals, deadline, message: lines.join("\n"), deploy: None });
                    }
                    Err(error) => {
                        reply.say(Saying::Refused(Refusal::new(RefusalKind::Failed, error.clone())));
                    }
                }
            }
            supervisor.reload_next();
        });
    }

    /// Applies what was prepared; what it changed, in words, and what it is to come to.
    fn finish_reload(&mut self, who: &str, prepared: Result<Prepared, String>) -> Result<Applied, String> {
        let applied = prepared.and_then(|prepared| {
            let (plan, moved) = (prepared.plan.clone(), prepared.moved.clone());
            let before = self.before(&plan);
            let applied = self.apply_settings(prepared);
            if applied.is_err() && !moved.is_empty() {
                let layout = self.layout.clone();
                self.files.run(move || rename::undo(&layout, &moved), |_, ()| ());
            }
            applied.map(|()| (plan.lines(), self.goals(&plan, &before)))
        });
        match &applied {
            Ok((lines, _)) => {
                let changes = lines.join("; ");
                info!(by = who, "the config is applied: {changes}");
                self.note(EventKind::Reload, None, "applied", Some(format!("{who}: {changes}")));
            }
            Err(error) => {
                tracing::error!(by = who, "the config is not applied, everything runs on as before:\n{error}");
                self.note(EventKind::Reload, None, "refused", Some(format!("{who}: {error}")));
            }
        }
        applied
    }

    /// Says what a reload would do.
    pub fn say_plan(&mut self, reply: ReplyTo) {
        let work = self.plan(|_, plan, _, _| Ok(plan.lines()));
        self.files.run(work, move |_, lines| {
            reply.say(match lines {
                Ok(lines) => Saying::Done(Reply::Plan { lines }),
                Err(error) => Saying::Refused(Refusal::new(RefusalKind::Failed, error)),
            });
        });
    }

    /// Reads what the files say now, and what that changes.
    fn plan<T>(
        &self,
        and: impl FnOnce(Settings, Plan, &Config, &Maker) -> Result<T, String> + Send + 'static,
    ) -> impl FnOnce() -> Result<T, String> + Send + 'static {
        let (path, old, maker) = (self.config.path.clone(), Arc::clone(&self.config), self.maker.clone());
        let certificates = self.certificates.clone();
        let envs: BTreeMap<AppName, Vec<(String, String)>> =
            self.shells.iter().map(|(name, shell)| (name.clone(), shell.env_file.clone())).collect();
        let behind = self.behind_config();
        move || {
            let settings = settings::read(&path)?.strict()?;
            let plan = planned(&settings, (&old, &certificates), &envs, &behind)?;
            and(settings, plan, &old, &maker)
        }
    }

    fn apply_settings(&mut self, prepared: Prepared) -> Result<(), String> {
        let Prepared { settings, plan, mut kits, moved, log } = prepared;
        self.may_rename(&plan, &settings.config)?;
        let listeners = listeners::bind_new(&plan, &self.listeners)?;
        if let Some(log) = log {
            self.log.switch(log);
        }
        self.logger.set_echo(echoes(&settings.config));
        let fetched_as = self.config.deploys.fetch_as.clone();
        self.config = Arc::clone(&settings.config);
        self.config_text = settings.text;
        self.unheard.clear();
        let changed = self.tokens.set_config(settings.tokens);
        self.end_streams(&changed);
        veil::set(&settings.veil);
        self.logger.set_veil(settings.veil);
        self.take_certificates(settings.certificates);
        self.ledger.send(Command::Snapshot(Arc::new(settings.hooks)));
        self.deploys.set_parallel(self.config.deploys.parallel);
        for (old, new) in &moved {
            match self.config.apps.get(new).cloned().zip(kits.remove(new)) {
                Some((spec, made)) if plan.renamed.iter().any(|(_, name)| name == new) => self.rename(old, &spec, made),
                Some((_, made)) => {
                    self.rename_store(old, new);
                    kits.insert(new.clone(), made);
                }
                None => {}
            }
        }
        if !moved.is_empty() {
            let layout = self.layout.clone();
            self.files.run(move || moved.iter().for_each(|(_, new)| rename::done(&layout, new)), |_, ()| ());
        }
        for name in &plan.removed {
            self.deploy_event(deploy::Event::Forget { app: name.clone() });
            self.feed(name, service::Event::Remove);
        }
        for (name, shell) in &mut self.shells {
            if let Some(env) = settings.env_files.get(name) {
                shell.env_file.clone_from(env);
            }
        }
        // Who is in several lists is restarted where one of them says so: the last one counts.
        let changed = plan
            .renamed
            .iter()
            .map(|(_, name)| (name, false))
            .chain(plan.applied.iter().map(|(name, _)| (name, false)))
            .chain(plan.restarted.iter().map(|(name, _)| (name, true)));
        for (name, restart) in changed.collect::<BTreeMap<_, _>>() {
            let Some(spec) = self.config.apps.get(name).cloned() else { continue };
            if let Some((new, shell)) = kits.remove(name).zip(self.shells.get_mut(name)) {
                shell.take_kits(new.kits);
            }
            self.capture(&spec);
            let old = self.apps.get(name).map(|app| Arc::clone(app.spec()));
            self.feed(name, service::Event::Reconfigure { spec: Arc::clone(&spec), restart });
            self.tell_blocked(name, &spec);
            self.schedule_app(&spec, None);
            let places = self.places(&spec);
            self.deploy_event(deploy::Event::Reconfigure { app: Arc::clone(&spec), places });
            if let Some(old) = old {
                self.deploy_reconfigured(&old, &spec);
            }
        }
        if fetched_as != self.config.deploys.fetch_as {
            self.deploys_move();
        }
        for (name, new) in kits {
            let Some(spec) = self.config.apps.get(&name).cloned() else { continue };
            if self.apps.contains_key(&name) {
                // Its earlier life is still being stopped; it comes back after that.
                continue;
            }
            let env = settings.env_files.get(&name).cloned().unwrap_or_default();
            self.add_app(&spec, new, env);
        }
        self.change_listeners(&plan, listeners);
        self.sample();
        self.look_at_clock();
        self.watch_files();
        self.set_polls();
        self.look_for_letters();
        self.give_back();
        Ok(())
    }

    /// Takes an app in and starts it.
    pub fn add_app(&mut self, spec: &Arc<config::App>, new: NewApp, env_file: Vec<(String, String)>) {
        self.take_in(spec, new, env_file);
        if self.begun {
            self.tell_blocked(&spec.name, spec);
            self.look_for_news(&spec.name);
        }
    }

    /// Takes an app in, which begins when it is told so.
    pub fn take_in(&mut self, spec: &Arc<config::App>, new: NewApp, env_file: Vec<(String, String)>) {
        let name = spec.name.clone();
        let commit = new.live.as_ref().map(|release| release.commit.clone());
        let live = new.live.as_ref().map(|live| deploy::Live { release: live.id.clone(), commit: live.commit.clone() });
        self.tell_cut(spec, &new.kits);
        self.shells.insert(name.clone(), Box::new(Shell::new(new.kits, env_file, spec)));
        if new.lost {
            self.lost.insert(name.clone());
        }
        let seed = self.ticket() ^ u64::from(self.me.pid) << 32;
        let app = App::new(Arc::clone(spec), new.unproven.or(new.live), seed, crate::os::clock::now().wall);
        self.apps.insert(name.clone(), Box::new(app.with_holds(new.holds)));
        self.awaited.extend(spec.comes_after().cloned());
        self.capture(spec);
        if spec.deploy.is_some() {
            self.ledger.send(Command::Live { app: name.clone(), commit });
            self.deploy_event(deploy::Event::Live { app: name.clone(), live });
            self.deploy_event(deploy::Event::Freeze { app: name.clone(), freeze: new.freeze });
        }
        self.schedule_app(spec, new.ran);
    }

    fn tell_cut(&mut self, spec: &config::App, kits: &BTreeMap<Seat, Kit>) {
        if let Some(cut) = kits.values().find_map(prepare::cut) {
            let told = spec.fault("", &cut);
            warn!(app = %spec.name, "{told}");
            self.note_app(&spec.name, "output_cut", told);
        }
    }

    /// A copy that the config has no more has no process left.
    pub fn instance_gone(&mut self, id: &InstanceId) {
        if let Some(shell) = self.shells.get_mut(&id.app) {
            shell.forget(id.number);
        }
        self.logger.close(&id.to_string());
    }

    /// A removed app has no process left.
    pub fn app_removed(&mut self, name: &AppName) {
        if self.is_ending() {
            return;
        }
        self.apps.remove(name);
        self.undeployed.remove(name);
        self.unschedule(name);
        let shell = self.shells.remove(name);
        if let Some(armed) = shell.as_ref().and_then(|shell| shell.armed) {
            self.deadlines.remove(&(armed, name.clone()));
        }
        if let Some(shell) = &shell {
            shell.remove_groups();
        }
        for number in shell.iter().flat_map(|shell| shell.numbers()) {
            self.logger.close(&InstanceId { app: name.clone(), number }.to_string());
        }
        self.tell_dependents(name);
        self.bring_back(name, shell.map(|shell| shell.env_file).unwrap_or_default());
    }

    /// Takes an app in again that the config got back while it was being stopped.
    fn bring_back(&mut self, name: &AppName, env_file: Vec<(String, String)>) {
        let Some(spec) = self.config.apps.get(name) else { return };
        let (mut spec, maker, name) = (Arc::clone(spec), self.maker.clone(), name.clone());
        let work = move || (new_app(&maker, &mut spec), spec);
        self.files.run(work, move |supervisor, (new, spec)| {
            let wanted = supervisor.config.apps.contains_key(&name) && !supervisor.apps.contains_key(&name);
            if wanted && !supervisor.is_ending() {
                supervisor.add_app(&spec, new, env_file);
            }
        });
    }

    /// Closes and opens all log files.
    pub fn reopen_logs(&mut self) {
        self.logger.tell(ToLogger::Reopen, None);
    }
}
