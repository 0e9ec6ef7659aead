//! Who waits for whom: `after` at the start, its reverse at the end.

use std::collections::BTreeSet;

use super::{App, Apps, Copy, Rest, State};
use crate::domain::{config, model::AppName};

/// Why an app must wait for the apps of its `after` and `requires`; `None`: nothing holds it back. An app
/// of `after` is good enough when it is ready, done, failed or stopped, requires one that has failed or is stopped, or,
/// without a command, when it is deployed.
#[must_use]
pub fn blocked(spec: &config::App, apps: &Apps) -> Option<String> {
    spec.after
        .iter()
        .find(|name| apps.get(name).is_some_and(|app| !is_past(app, apps)))
        .map(|name| format!("waits for {name}"))
        .or_else(|| lacking(spec, apps))
}

/// What it cannot run without, in a sentence; `None`: all of `requires` is up.
#[must_use]
pub fn lacking(spec: &config::App, apps: &Apps) -> Option<String> {
    let down = |name: &&AppName| apps.get(*name).is_none_or(|app| !is_up(app));
    spec.requires.iter().find(down).map(|name| format!("requires {name}, which is not up"))
}

/// Does something of it do its work, or is that done?
fn is_up(app: &App) -> bool {
    if app.spec().command.is_none() {
        return app.release().is_some();
    }
    app.copies().iter().any(|copy| matches!(copy.instance().state(), State::Ready { .. } | State::Done))
}

/// What it requires and will not get before somebody starts that one, in a sentence.
#[must_use]
pub fn lacking_for_good(spec: &config::App, apps: &Apps) -> Option<String> {
    spec.requires.iter().find_map(|name| {
        let why = down_for_good(apps.get(name)?, apps)?;
        Some(format!("requires {name}, which {why}"))
    })
}

fn down_for_good(app: &App, apps: &Apps) -> Option<String> {
    let failed = |copy: &Copy| matches!(copy.instance().state(), State::Failed { retry: None });
    if is_up(app) {
        None
    } else if matches!(app.rests(), Some(Rest::Held(_) | Rest::Disabled)) {
        Some("is stopped".to_owned())
    } else if app.spec().command.is_some() && app.copies().iter().all(failed) {
        Some("has failed".to_owned())
    } else {
        lacking_for_good(app.spec(), apps)
    }
}

fn is_past(app: &App, apps: &Apps) -> bool {
    if app.spec().command.is_none() {
        return app.release().is_some() || app.spec().problem.is_some();
    }
    app.copies().iter().all(|copy| match copy.instance().state() {
        State::Ready { .. } | State::Done | State::Failed { .. } => true,
        // Stopped because somebody or the config wants it so, not because nothing has happened.
        State::Stopped => app.copy_rests(copy).is_some(),
        State::Waiting => match app.rests() {
            // Nobody waits until its time has come.
            Some(Rest::Scheduled(_)) => true,
            Some(Rest::Lacks(_)) => lacking_for_good(app.spec(), apps).is_some(),
            _ => false,
        },
        State::Starting { .. } | State::Stopping(_) | State::Backoff { .. } => false,
    })
}

/// At shutdown: the apps that do not know of it and may be stopped now, since nothing that runs comes after them.
pub fn stoppable(apps: &Apps) -> Vec<AppName> {
    let mut unaware = apps.values().filter(|app| !app.is_ending()).peekable();
    if unaware.peek().is_none() {
        return Vec::new();
    }
    let active = apps.values().filter(|app| app.is_active());
    let needed: BTreeSet<&AppName> = active.flat_map(|app| app.spec().comes_after()).collect();
    unaware.map(|app| app.name()).filter(|name| !needed.contains(name)).cloned().collect()
}

/// The running apps that come after one of `stopped`: whom a stop hurts. What is stopped
/// already hurts nobody more.
#[must_use]
pub fn hurt_by<'a>(stopped: &[AppName], apps: &'a Apps) -> Vec<&'a AppName> {
    let is_stopped = |app: &App| app.copies().iter().all(|copy| matches!(copy.instance().state(), State::Stopped));
    let stops = |name: &AppName| apps.get(name).is_some_and(|app| !is_stopped(app));
    apps.values()
        .filter(|app| app.is_active() && !stopped.contains(app.name()))
        .filter(|app| app.spec().comes_after().any(|name| stopped.contains(name) && stops(name)))
        .map(|app| app.name())
        .collect()
}
