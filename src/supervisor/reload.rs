//! A changed config, applied all or nothing: only what changed is touched. What a change touches is
//! `domain::config::diff`'s to say.

use std::{collections::BTreeMap, path::Path, sync::Arc, thread};

use tracing::{info, warn};

use super::{
    Supervisor,
    certificates::Certificates,
    control::ReplyTo,
    internals::echoes,
    layout::Layout,
    ledger::Command,
    listeners, live, log,
    prepare::{self, Kit, Maker},
    rename,
    seats::Shell,
    settings::{self, Settings},
    veil,
};
use crate::{
    domain::{
        api::{By, EventKind, Refusal, RefusalKind, Reply, Request, Saying, ToLogger},
        config::{self, Config, Plan},
        deploy,
        model::{AppName, InstanceId},
        service::{self, App, Release, Seat},
    },
    os::mask::with_all_blocked,
};

/// Threads that make what apps need, at most, and how many apps are worth one.
const MOST_MAKERS: usize = 4;
const WORTH_A_THREAD: usize = 64;

/// Everything that a reload needs, made before anything is touched.
struct Prepared {
    settings: Settings,
    plan: Plan,
    kits: BTreeMap<AppName, NewApp>,
    /// Apps whose state has its new name already.
    moved: Vec<(AppName, AppName)>,
    /// Where `log` has changed.
    log: Option<log::Made>,
}

/// A wish that the config be read again.
pub struct Wanted {
    pub by: By,
    /// The same in words.
    pub who: String,
    /// Whom to tell how it went.
    pub reply: Option<ReplyTo>,
}

/// What the disk knows and has for an app that starts.
pub struct NewApp {
    pub kits: BTreeMap<Seat, Kit>,
    pub live: Option<Release>,
    /// What runs in place of the live one.
    pub unproven: Option<Release>,
    /// Its file `live` leads nowhere, which is its problem.
    pub lost: bool,
    /// Something could not be made for it, which is its problem until the next reload.
    pub unfit: bool,
    pub holds: live::Holds,
    pub freeze: Option<deploy::Freeze>,
    /// Of a scheduled app.
    pub ran: Option<live::Ran>,
}

/// Makes and reads what an app starts with. What keeps it from that is its own problem.
pub fn new_app(maker: &Maker, app: &mut Arc<config::App>) -> NewApp {
    let kits = match app.problem {
        None => maker.kits(app),
        // Nothing is made for an identity that may be wrong.
        Some(_) => maker.home(app).map(|()| BTreeMap::new()),
    };
    let unfit = kits.is_err();
    let kits = kits.unwrap_or_else(|error| {
        let app = Arc::make_mut(app);
        app.problem = Some(app.fault("", &error).into());
        BTreeMap::new()
    });
    let read = |of: fn(&Layout, &AppName) -> Result<Option<Release>, String>| {
        if app.deploy.is_some() { of(&maker.layout, &app.name) } else { Ok(None) }
    };
    let live = read(live::read);
    let unproven = read(live::unproven).unwrap_or_else(|error| {
        warn!(app = %app.name, "{error}");
        None
    });
    // Who reads through the link reads what runs.
    let linked = unproven.as_ref().filter(|_| app.reload != config::Reload::Restart);
    if let Some(release) = linked.or(live.as_ref().ok().and_then(Option::as_ref))
        && let Err(error) = live::link(&maker.layout, &app.name, release)
    {
        warn!(app = %app.name, "{error}");
    }
    let lost = live.is_err() && app.problem.is_none();
    let live = live.unwrap_or_else(|error| {
        Arc::make_mut(app).problem.get_or_insert(error.into());
        None
    });
    let ran = app.schedule.as_ref().and_then(|_| live::ran(&maker.layout, &app.name));
    let freeze = app.deploy.as_ref().and_then(|_| live::freeze(&maker.layout, &app.name));
    NewApp { kits, live, unproven, lost, unfit, holds: live::holds(&maker.layout, &app.name), freeze, ran }
}

/// The same for many at once, as most of it is the kernel's work.
pub fn new_apps(maker: &Maker, apps: &mut [Arc<config::App>]) -> Vec<NewApp> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_MAKERS);
    let share = apps.len().div_ceil(threads).max(WORTH_A_THREAD);
    let make = |part: &mut [Arc<config::App>]| part.iter_mut().map(|app| new_app(maker, app)).collect::<Vec<_>>();
    thread::scope(|scope| {
        let (own, others) = apps.split_at_mut(share.min(apps.len()));
        let others = others.chunks_mut(share);
        let others: Vec<_> = with_all_blocked(|| others.map(|part| scope.spawn(|| make(part))).collect());
        let mut made = make(own);
        for other in others {
            made.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        made
    })
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
        self.prepare_reload(true, move |supervisor, result| {
            let who: Vec<_> = wanted.iter().map(|wanted| wanted.who.as_str()).collect();
            let result = supervisor.finish_reload(&who.join(", "), result);
            for Wanted { by, reply, .. } in wanted {
                supervisor.audit(by, None, &Request::Reload, None, result.as_ref().err().cloned());
                if let Some(reply) = reply {
                    reply.say(match result.clone() {
                        Ok(lines) => Saying::Done(Reply::Plan { lines }),
                        Err(error) => Saying::Refused(Refusal::new(RefusalKind::Failed, error)),
                    });
                }
            }
            supervisor.reload_next();
        });
    }

    /// Applies what was prepared; what it changed, in words.
    fn finish_reload(&mut self, who: &str, prepared: Result<Prepared, String>) -> Result<Vec<String>, String> {
        let applied = prepared.and_then(|prepared| {
            let (lines, moved) = (prepared.plan.lines(), prepared.moved.clone());
            let applied = self.apply_settings(prepared);
            if applied.is_err() && !moved.is_empty() {
                let layout = self.layout.clone();
                self.files.run(move || rename::undo(&layout, &moved), |_, ()| ());
            }
            applied.map(|()| lines)
        });
        match &applied {
            Ok(lines) => {
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
        self.prepare_reload(false, move |_, result| {
            reply.say(match result {
                Ok(prepared) => Saying::Done(Reply::Plan { lines: prepared.plan.lines() }),
                Err(error) => Saying::Refused(Refusal::new(RefusalKind::Failed, error)),
            });
        });
    }

    fn prepare_reload(
        &mut self,
        make: bool,
        then: impl FnOnce(&mut Supervisor, Result<Prepared, String>) + Send + 'static,
    ) {
        let (path, old, maker) = (self.config.path.clone(), Arc::clone(&self.config), self.maker.clone());
        let certificates = self.certificates.clone();
        let envs: BTreeMap<AppName, Vec<(String, String)>> =
            self.shells.iter().map(|(name, shell)| (name.clone(), shell.env_file.clone())).collect();
        self.files.run(move || prepare(&path, (&old, &certificates), &maker, &envs, make), then);
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

fn prepare(
    path: &Path,
    (old, certificates): (&Config, &Certificates),
    maker: &Maker,
    envs: &BTreeMap<AppName, Vec<(String, String)>>,
    make: bool,
) -> Result<Prepared, String> {
    let mut settings = settings::read(path)?;
    let mut plan = config::diff(old, &settings.config);
    if !plan.refused.is_empty() {
        return Err(plan.refused.join("\n"));
    }
    let faults = settings.certificates.faults(certificates);
    if !faults.is_empty() {
        return Err(faults.join("\n"));
    }
    plan.renewed = settings.certificates.renewed(certificates, &settings.config);
    for (name, env) in &settings.env_files {
        let touched = plan.restarted.iter().any(|(app, _)| app == name);
        if !touched && envs.get(name).is_some_and(|before| before != env) {
            plan.restarted.push((name.clone(), vec!["env_file"]));
        }
    }
    let mut kits = BTreeMap::new();
    let mut moved = Vec::new();
    let mut log = None;
    if make {
        if old.log != settings.config.log {
            log = Some(log::make(&settings.config.log, &maker.layout.logs())?);
        }
        moved = move_renamed(&maker.layout, &plan, &settings.config)?;
        let mut config = (*settings.config).clone();
        let named = plan
            .added
            .iter()
            .chain(plan.renamed.iter().map(|(_, name)| name))
            .chain(plan.restarted.iter().map(|(name, _)| name))
            .chain(plan.applied.iter().map(|(name, _)| name));
        for name in named {
            let Some(app) = config.apps.get_mut(name).filter(|_| !kits.contains_key(name)) else { continue };
            let was = plan.renamed.iter().find(|(_, now)| now == name).and_then(|(was, _)| old.apps.get(was));
            let new = match was {
                Some(was) => renamed_app(maker, app, was),
                None => new_app(maker, app),
            };
            if let Some(why) = app.problem.clone().filter(|_| new.unfit && !plan.added.contains(name)) {
                // What runs of it can do without what is new.
                rename::undo(&maker.layout, &moved);
                return Err(format!("app {:?}: {why}", name.as_str()));
            }
            kits.insert(name.clone(), new);
        }
        for (old, new) in moved.iter().filter(|(_, new)| plan.added.contains(new)) {
            rename::move_logs(&maker.layout, old, new);
        }
        settings.config = Arc::new(config);
    }
    Ok(Prepared { settings, plan, kits, moved, log })
}

/// What an app starts with that had another name, in every seat that it has or had: what runs is known by its old
/// name in those alone that have something for the next one.
fn renamed_app(maker: &Maker, app: &mut Arc<config::App>, was: &config::App) -> NewApp {
    let mut both = config::App::clone(app);
    both.instances = both.instances.max(was.instances);
    if was.replace == config::Replace::StartFirst {
        both.replace = was.replace;
    }
    let mut both = Arc::new(both);
    let new = new_app(maker, &mut both);
    Arc::make_mut(app).problem.clone_from(&both.problem);
    new
}

/// Gives the state of apps their new names; those that had it, with the old one.
fn move_renamed(layout: &Layout, plan: &Plan, config: &Config) -> Result<Vec<(AppName, AppName)>, String> {
    let mut moved = Vec::new();
    let runs = |old: &AppName| plan.renamed.iter().any(|(name, _)| name == old);
    for (old, new) in rename::pairs(config).filter(|(old, new)| runs(old) || plan.added.contains(new)) {
        match rename::move_state(layout, old, new) {
            Ok(found) if found || runs(old) => moved.push((old.clone(), new.clone())),
            Ok(_) => {}
            Err(error) => {
                rename::undo(layout, &moved);
                return Err(error);
            }
        }
    }
    Ok(moved)
}
