//! Everything that a reload needs, read, judged and made before anything is touched; and what an app starts with.
//! On the files thread (at the start: before there is anything to hold up).

use std::{collections::BTreeMap, sync::Arc, thread};

use tracing::warn;

use super::{
    certificates::Certificates,
    foresee,
    layout::Layout,
    live, log,
    prepare::{Kit, Maker},
    rename,
    settings::Settings,
};
use crate::{
    domain::{
        config::{self, Config, Plan},
        deploy,
        model::AppName,
        service::{Release, Seat},
    },
    os::mask::with_all_blocked,
};

/// Threads that make what apps need, at most, and how many apps are worth one.
const MOST_MAKERS: usize = 4;
const WORTH_A_THREAD: usize = 64;

/// Everything that a reload needs, made before anything is touched.
pub struct Prepared {
    pub settings: Settings,
    pub plan: Plan,
    pub kits: BTreeMap<AppName, NewApp>,
    /// Apps whose state has its new name already.
    pub moved: Vec<(AppName, AppName)>,
    /// Where `log` has changed.
    pub log: Option<log::Made>,
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

/// What a reload does.
///
/// # Errors
/// Why it cannot be, a line each.
pub fn planned(
    settings: &Settings,
    (old, certificates): (&Config, &Certificates),
    envs: &BTreeMap<AppName, Vec<(String, String)>>,
    behind: &[AppName],
) -> Result<Plan, String> {
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
        let told = plan.restarted.iter().any(|(app, fields)| app == name && fields.contains(&"env_file"));
        if !told && envs.get(name).is_some_and(|before| before != env) {
            plan.restart(name, "env_file");
        }
    }
    for old in behind {
        let name = plan.renamed.iter().find(|(was, _)| was == old).map_or(old, |(_, name)| name).clone();
        if settings.config.apps.contains_key(&name) && !plan.restarted.iter().any(|(app, _)| *app == name) {
            plan.restart(&name, "not done yet");
        }
    }
    let foreseen = foreseen(&plan, settings);
    if foreseen.is_empty() { Ok(plan) } else { Err(foreseen.join("\n")) }
}

/// Makes what it needs.
///
/// # Errors
/// What could not be made, and for which app.
pub fn prepare(mut settings: Settings, plan: Plan, old: &Config, maker: &Maker) -> Result<Prepared, String> {
    let mut kits: BTreeMap<AppName, NewApp> = BTreeMap::new();
    let mut log = None;
    if old.log != settings.config.log {
        log = Some(log::make(&settings.config.log, &maker.layout.logs())?);
    }
    let moved = move_renamed(&maker.layout, &plan, &settings.config)?;
    let mut config = (*settings.config).clone();
    for name in plan.apps() {
        let Some(app) = config.apps.get_mut(name).filter(|_| !kits.contains_key(name)) else { continue };
        let new = match plan.was(name).and_then(|was| old.apps.get(was)) {
            Some(was) => renamed_app(maker, app, was),
            None => new_app(maker, app),
        };
        if let Some(why) = app.problem.clone().filter(|_| new.unfit && !plan.added.contains(name)) {
            // What runs of it can do without what is new.
            rename::undo(&maker.layout, &moved);
            return Err(format!("app \"{name}\": {why}"));
        }
        kits.insert(name.clone(), new);
    }
    for (old, new) in moved.iter().filter(|(_, new)| plan.added.contains(new)) {
        rename::move_logs(&maker.layout, old, new);
    }
    settings.config = Arc::new(config);
    Ok(Prepared { settings, plan, kits, moved, log })
}

/// Of whoever is to be started anew, in sentences.
fn foreseen(plan: &Plan, settings: &Settings) -> Vec<String> {
    let started = || plan.restarted.iter().map(|(name, _)| name);
    let apps = started().filter_map(|name| settings.config.apps.get(name));
    // What another app may yet make is not missed.
    let comes = |before: &AppName| started().chain(&plan.added).any(|name| name == before);
    let waits = |app: &config::App| app.comes_after().any(comes);
    let alone = apps.filter(|app| app.problem.is_none() && !waits(app));
    let fault = |app: &Arc<config::App>| {
        let env = settings.env_files.get(&app.name).map(Vec::as_slice).unwrap_or_default();
        Some(format!("app \"{}\": {}", app.name, foresee::fault(app, env)?))
    };
    alone.filter_map(fault).collect()
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
