use super::{
    client::{look, strange},
    failure::Failure,
    find::Place,
    screen::{BUSY, Screen, visible},
    table::{Cell, Table, or_dash},
    words::{SomeApps, between, bytes, instance_style, now, took},
};
use crate::domain::{
    api::{AppView, AwaitingView, InstanceState, InstanceView, Reply, Request, Status as View, WatchState, WatchView},
    model::{At, ReleaseId},
};

/// What runs, since when, and why not where it does not
#[derive(Debug, clap::Args)]
pub struct Status {
    #[command(flatten)]
    apps: SomeApps,
    /// As one JSON document
    #[arg(long)]
    json: bool,
}

impl Status {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let mut screen = Screen::stdout();
        let request = Request::Status { apps: self.apps.targets() };
        let Reply::Status(status) = look(place, &mut screen, request)? else { return Err(strange()) };
        if self.json {
            return Ok(screen.document(&status)?);
        }
        if status.apps.is_empty() {
            screen.line("no apps")?;
        } else {
            table(&status, now()).print(&mut screen)?;
        }
        notes(&mut screen, &status)?;
        Ok(screen.flush()?)
    }
}

fn table(status: &View, now: At) -> Table {
    let mut table = Table::new(&["APP", "STATE", "SINCE", "PID", "RESTARTS", "RELEASE", "CPU", "MEM"]);
    for app in &status.apps {
        match app.instances.as_slice() {
            [] => {
                table.row(without_instance(app));
                if let Some(sentence) = &app.reason {
                    table.below(sentence);
                }
            }
            [only] => instance(&mut table, app.name.to_string(), app, only, now),
            several => several.iter().for_each(|one| instance(&mut table, one.name.to_string(), app, one, now)),
        }
    }
    table
}

fn without_instance(app: &AppView) -> Vec<Cell> {
    let nothing = || or_dash(None::<String>);
    let state = Cell::styled(&app.state, instance_style(app.state));
    let release = release(app, app.release.as_ref());
    vec![Cell::from(&app.name), state, nothing(), nothing(), nothing(), release, nothing(), nothing()]
}

/// What runs, and how far that is behind what could.
fn release(app: &AppView, release: Option<&ReleaseId>) -> Cell {
    match (release, app.behind) {
        (Some(release), Some(behind)) if behind > 0 && app.release.as_ref() == Some(release) => {
            Cell::from(format!("{release}, {behind} behind"))
        }
        (release, _) => or_dash(release),
    }
}

fn instance(table: &mut Table, name: String, app: &AppView, one: &InstanceView, now: At) {
    table.row(vec![
        Cell::from(name),
        Cell::styled(&one.state, instance_style(one.state)),
        Cell::from(between(one.since, now)),
        or_dash(one.pid),
        Cell::from(one.restarts),
        release(app, one.release.as_ref()),
        or_dash(one.cpu_s.map(took)),
        or_dash(one.memory_bytes.map(bytes)),
    ]);
    if let Some(sentence) = why(one, now) {
        table.below(&sentence);
    }
}

/// Why it is not running, and when it is tried again.
fn why(one: &InstanceView, now: At) -> Option<String> {
    if one.state == InstanceState::Ready {
        return None;
    }
    let next = one.next_start_at.map(|at| match between(now, at) {
        soon if soon == "0s" => "next start now".to_owned(),
        later => format!("next start in {later}"),
    });
    let parts: Vec<String> = one.reason.clone().into_iter().chain(next).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn notes(screen: &mut Screen, status: &View) -> Result<(), Failure> {
    let mut lines = Vec::new();
    let supervisor = &status.supervisor;
    for listener in supervisor.listeners.iter().filter(|listener| listener.state != InstanceState::Ready) {
        let reason = listener.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        lines.push(format!("the listener on {} is {}{reason}", listener.bind, listener.state));
    }
    for app in &status.apps {
        if let Some(WatchView { state, reason: Some(reason) }) = &app.watch {
            let state = if *state == WatchState::Suspended { "suspended" } else { "not whole" };
            lines.push(format!("the watch of {} is {state}: {reason}", app.name));
        }
    }
    for app in status.apps.iter().filter(|app| !app.instances.is_empty()) {
        if let Some(reason) = &app.reason {
            lines.push(format!("{}: {reason}", app.name));
        }
    }
    for app in &status.apps {
        if let Some(frozen) = &app.frozen {
            lines.push(format!("{} is {frozen}", app.name));
        }
    }
    for app in &status.apps {
        for AwaitingView { deploy, reason } in &app.awaiting_approval {
            let why = reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
            let how = format!("`everhook history show {deploy}`, `everhook approve {deploy}`");
            lines.push(format!("deploy {deploy} of {} awaits approval{why}: {how}", app.name));
        }
    }
    if supervisor.config_differs {
        let config = &supervisor.config;
        lines.push(format!(
            "{config} differs from what runs: `everhook check --diff` shows how, `everhook reload` applies it"
        ));
    }
    for line in lines {
        screen.line(&screen.paint(BUSY, &visible(&line)))?;
    }
    Ok(())
}
