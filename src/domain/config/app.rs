//! One app, judged.

use std::{
    borrow::Borrow,
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    App, Command, Form, GiveUp, Identity, Limits, Logs, OnFailed, Place, Policy, Ready, Reload, Replace, Restart,
    Severity, Stop, StopStage, deploy, identity, judge::Judge, limits, numbered, order, probe, raw, schedule, shell,
    socket, steps, watch,
};
use crate::domain::model::{AppName, Facts, Signal};

/// Of `logs.age`.
const SHORTEST_AGE: Duration = Duration::from_secs(1);
/// Of one app; more are a slip of the finger.
const MOST_INSTANCES: u32 = 9_999;

/// All apps; `hooks`: some listener takes webhooks.
pub fn apps(judge: &mut Judge<'_>, raw: &raw::Root, hooks: bool) -> BTreeMap<AppName, Arc<App>> {
    let mut apps = BTreeMap::new();
    for (name, own) in &raw.apps {
        match name.parse::<AppName>() {
            Ok(parsed) => {
                let entry = Entry { name, raw: own.clone().or(&raw.defaults), all: &raw.apps, hooks };
                apps.insert(parsed.clone(), Arc::new(entry.app(judge, parsed)));
            }
            Err(error) => judge.error(&["apps", name], error.to_string()),
        }
    }
    for (name, app) in apps.iter().filter(|(_, app)| app.was.is_some()) {
        let other = apps.iter().find(|(other, one)| *other < name && one.was == app.was);
        if let Some((other, _)) = other {
            judge.error(&["apps", name.as_str(), "was"], format!("app \"{other}\" had this name"));
        }
    }
    // Made of all at once, a map keeps no room for others.
    let apps: BTreeMap<_, _> = apps.into_iter().collect();
    judge.require(raw.defaults.was.is_none(), &["defaults", "was"], "each app had a name of its own");
    order::cycle(judge, &apps);
    socket::clashes(judge, &apps);
    apps
}

/// What many apps have alike: there once for all of them, as there may be thousands.
#[derive(Default)]
pub struct Alike {
    pub identity: Vec<Arc<Identity>>,
    directory: Vec<Arc<Path>>,
    limits: Vec<Arc<Limits>>,
    restart: Vec<Arc<Restart>>,
    stop: Vec<Arc<Stop>>,
    logs: Vec<Arc<Logs>>,
}

/// So many different ones are looked through at most.
const DIFFERENT: usize = 16;

/// The one that is there already, where it is like this.
pub fn share<T: PartialEq + ?Sized>(known: &mut Vec<Arc<T>>, value: impl Borrow<T> + Into<Arc<T>>) -> Arc<T> {
    if let Some(same) = known.iter().rev().take(DIFFERENT).find(|other| ***other == *value.borrow()) {
        return Arc::clone(same);
    }
    known.push(value.into());
    Arc::clone(&known[known.len() - 1])
}

/// An app's entry with `defaults` merged in.
struct Entry<'a> {
    name: &'a str,
    raw: raw::App,
    all: &'a BTreeMap<String, raw::App>,
    hooks: bool,
}

impl Entry<'_> {
    fn keys<'k>(&'k self, field: &[&'k str]) -> Vec<&'k str> {
        [&["apps", self.name], field].concat()
    }

    fn app(&self, judge: &mut Judge<'_>, name: AppName) -> App {
        let raw = &self.raw;
        let (who, problem) = identity::of_app(judge, self.name, raw);
        let (command, program) = raw.command.as_ref().map(|words| self.command(judge, words)).unzip();
        if raw.command.is_none() && raw.deploy.is_none() {
            judge.error(&self.keys(&[]), "it needs a `command`, or a `deploy`, or both");
        }
        judge.env(&self.keys(&["env"]), &raw.env);
        let instances = self.instances(judge);
        let directory = raw.directory.as_ref().map(|text| judge.path(&self.keys(&["directory"]), text));
        let directory = directory.or_else(|| raw.deploy.is_none().then(|| judge.base(&self.keys(&[]))));
        let (limits, beyond) = limits::of_app(judge, self.name, &raw.limits);
        let (restart, stop) = (self.restart(judge), self.stop(judge));
        let alike = &mut judge.alike;
        let directory = directory.map(|directory| share(&mut alike.directory, directory));
        let (limits, restart, stop) =
            (share(&mut alike.limits, limits), share(&mut alike.restart, restart), share(&mut alike.stop, stop));
        let owner = (who.run_as.uid, who.run_as.gid);
        let (sockets, stranger) = socket::of_app(judge, self.name, raw.sockets.as_ref(), owner);
        let (schedule, untimely) = schedule::schedule(judge, self.name, raw, &self.all[self.name]);
        let problem = problem.or(beyond).or(stranger).or(untimely);
        let ready = probe::ready(judge, self.name, raw.ready.as_ref(), instances);
        let passed = i32::try_from(sockets.len()).unwrap_or(i32::MAX).saturating_add(3);
        let taken = matches!(ready, Ready::Fd { number, .. } if number < passed);
        let message = format!("the descriptors up to {} are those of `sockets`", passed - 1);
        judge.require(!taken || sockets.is_empty(), &self.keys(&["ready", "fd"]), &message);
        let logs = self.logs(judge);
        let logs = share(&mut judge.alike.logs, logs);
        let mut app = App {
            name,
            command,
            directory,
            run_as: who.run_as,
            work_as: who.work_as,
            groups: who.groups.map(Into::into),
            env: raw.env.clone(),
            env_file: self.env_files(judge),
            port: raw.port,
            instances,
            enabled: raw.enabled.unwrap_or(true),
            after: judge.apps(&self.keys(&["after"]), raw.after.as_deref().unwrap_or_default(), self.all).into(),
            requires: judge
                .apps(&self.keys(&["requires"]), raw.requires.as_deref().unwrap_or_default(), self.all)
                .into(),
            ready,
            live: raw.live.as_ref().and_then(|own| probe::live(judge, self.name, own, instances)).map(Box::new),
            restart,
            on_failed: raw.on_failed.unwrap_or(OnFailed::Stay),
            stop,
            replace: raw.replace.unwrap_or(if sockets.is_empty() { Replace::StopFirst } else { Replace::StartFirst }),
            reload: self.reload(judge),
            sockets,
            limits,
            logs,
            schedule: schedule.map(Box::new),
            watch: watch::watch(judge, self.name, raw).map(Box::new),
            deploy: raw.deploy.as_ref().map(|own| Box::new(deploy::deploy(judge, self.name, own, self.hooks))),
            was: self.was(judge),
            problem: None,
            places: self.places(judge),
        };
        probe::of_one(judge, &app);
        steps::env_from(judge, self.name, raw);
        let problem = problem.or_else(|| missing(judge, &app, program.flatten().as_deref()));
        app.problem = problem.map(|(field, message)| self.problem(judge, &app.name, field, &message).into());
        app
    }

    /// Where the fields stand that can turn out to be wrong only when they are used.
    fn places(&self, judge: &Judge<'_>) -> Box<[(&'static str, Place)]> {
        let fields = ["command", "directory", "user", "env_file", "sockets"];
        let entry = judge.place(&self.keys(&[]));
        let written = fields.into_iter().filter_map(|field| Some((field, judge.place(&self.keys(&[field]))?)));
        // What is not written stands where the entry does.
        let written = written.filter(|(_, place)| Some(place) != entry.as_ref());
        written.chain(entry.iter().cloned().map(|place| ("", place))).collect()
    }

    /// Notes what keeps this app from running, and says it with its place.
    fn problem(&self, judge: &mut Judge<'_>, name: &AppName, field: &str, message: &str) -> String {
        let told = format!("app \"{name}\": {message}");
        judge.report(Severity::AppProblem(name.clone()), &self.keys(&[field]), told);
        let place = judge.findings.last().map(|finding| finding.place.clone()).unwrap_or_default();
        format!("{message} ({place})")
    }

    /// The command, and its program where that is known.
    fn command(&self, judge: &mut Judge<'_>, words: &raw::Words) -> (Command, Option<String>) {
        let keys = self.keys(&["command"]);
        let (command, program) = match words {
            raw::Words::One(text) => {
                judge.require(!text.trim().is_empty(), &keys, "the command is empty");
                let program = shell::simple(text).map(|simple| numbered(&simple.program, 1));
                (Command::Shell(shell::with_exec(text)), program)
            }
            raw::Words::List(list) => {
                let program = list.first().map(|word| numbered(word, 1));
                judge.require(program.as_ref().is_some_and(|p| !p.is_empty()), &keys, "the command is empty");
                (Command::List(list.iter().map(String::as_str).collect()), program)
            }
        };
        judge.require(!words.holds_nul(), &keys, "a command cannot hold a NUL character");
        let base = program.as_deref().and_then(|path| path.rsplit('/').next());
        let passes = self.raw.sockets.as_ref().is_some_and(|sockets| !sockets.is_empty());
        let unreached = if passes { ", and its `sockets` do not reach the app" } else { "" };
        let wrapper = base.filter(|name| ["npm", "npx", "yarn", "pnpm", "nodemon"].contains(name));
        if let Some(wrapper) = wrapper {
            let message = format!(
                "app \"{}\": {wrapper} stands between everhook and the app{unreached}; run the app itself, such as [\"node\", \"server.js\"]",
                self.name
            );
            judge.warn(&keys, message);
        } else if passes && matches!(&command, Command::Shell(text) if !shell::ends_in_exec(text)) {
            let message = format!(
                "app \"{}\": a shell stays between everhook and the app{unreached}; put `exec` before the program",
                self.name
            );
            judge.warn(&keys, message);
        }
        (command, program)
    }

    fn env_files(&self, judge: &mut Judge<'_>) -> Box<[PathBuf]> {
        let keys = self.keys(&["env_file"]);
        let files = match &self.raw.env_file {
            None => &[],
            Some(raw::Words::One(file)) => std::slice::from_ref(file),
            Some(raw::Words::List(files)) => files.as_slice(),
        };
        files.iter().map(|file| judge.path(&keys, file)).collect()
    }

    fn instances(&self, judge: &mut Judge<'_>) -> u32 {
        let (instances, port) = (self.raw.instances.unwrap_or(1), self.raw.port);
        let counted = (1..=MOST_INSTANCES).contains(&instances);
        judge.require(counted, &self.keys(&["instances"]), &format!("expected a number from 1 to {MOST_INSTANCES}"));
        judge.require(port != Some(0), &self.keys(&["port"]), "expected a port from 1 to 65535");
        let last = u32::from(port.unwrap_or(1)).saturating_add(instances.saturating_sub(1));
        judge.require(
            !counted || last <= u32::from(u16::MAX),
            &self.keys(&["port"]),
            &format!("{instances} instances need as many ports, and the last one would be {last}"),
        );
        let scheduled = self.raw.schedule.is_some() && instances > 1;
        judge.require(!scheduled, &self.keys(&["instances"]), "a scheduled app has one instance");
        if counted && !scheduled { instances } else { 1 }
    }

    fn restart(&self, judge: &mut Judge<'_>) -> Restart {
        let raw = &self.raw.restart;
        let time = |span: &Option<raw::Span>, default: u64| span.map_or(Duration::from_millis(default), |span| span.0);
        let first = time(&raw.first, 100);
        let restart = Restart {
            policy: self.policy(),
            success: raw.success.clone().unwrap_or_else(|| vec![0]),
            first,
            factor: raw.factor.unwrap_or(2.0),
            max: raw.max.map_or(first.max(Duration::from_secs(30)), |span| span.0),
            jitter: raw.jitter.unwrap_or(0.1),
            reset_after: time(&raw.reset_after, 10_000),
            give_up: GiveUp {
                restarts: raw.give_up.restarts.unwrap_or(10),
                within: time(&raw.give_up.within, 300_000),
            },
            retry_after: raw.retry_after.map(|span| span.0),
        };
        let codes = restart.success.iter().all(|code| (0..=255).contains(code));
        let growing = restart.factor.is_finite() && restart.factor >= 1.0;
        for (holds, field, message) in [
            (codes, &["success"][..], "expected exit codes from 0 to 255"),
            (growing, &["factor"], "expected a factor of at least 1.0"),
            (restart.max >= restart.first, &["max"], "the longest delay is shorter than the first"),
            ((0.0..=1.0).contains(&restart.jitter), &["jitter"], "expected a share from 0.0 to 1.0"),
            (!restart.give_up.within.is_zero(), &["give_up", "within"], "this time cannot be zero"),
            (restart.retry_after != Some(Duration::ZERO), &["retry_after"], "this time cannot be zero"),
        ] {
            judge.require(holds, &self.keys(&[&["restart"], field].concat()), message);
        }
        restart
    }

    fn was(&self, judge: &mut Judge<'_>) -> Option<AppName> {
        let keys = self.keys(&["was"]);
        let was = self.raw.was.as_ref()?;
        let free = !self.all.contains_key(was);
        judge.require(free, &keys, &format!("app \"{was}\" still exists; an earlier name is expected"));
        let parsed = was.parse::<AppName>().map(Some).map_err(|error| error.to_string());
        judge.take(&keys, parsed, None)
    }

    fn reload(&self, judge: &mut Judge<'_>) -> Reload {
        match &self.raw.reload {
            None | Some(raw::Reload::Restart) => Reload::Restart,
            Some(raw::Reload::Signal(signal)) => {
                let deadly = [Signal::KILL, Signal::STOP].contains(signal);
                judge.require(!deadly, &self.keys(&["reload"]), "no process can heed this signal");
                Reload::Signal(*signal)
            }
            Some(raw::Reload::Exec(words)) => {
                Reload::Exec(probe::command_line(judge, &self.keys(&["reload"]), Some(words)).into())
            }
        }
    }

    /// A scheduled app ends and waits for its next time, whatever `defaults` say of those that run on.
    fn policy(&self) -> Policy {
        match self.raw.restart.policy {
            None | Some(Policy::Always) if self.raw.schedule.is_some() => Policy::Never,
            policy => policy.unwrap_or(Policy::Always),
        }
    }

    fn stop(&self, judge: &mut Judge<'_>) -> Stop {
        let stages = match &self.raw.stop {
            None => &[raw::Stage::default()],
            Some(raw::Stop::One(stage)) => std::slice::from_ref(stage),
            Some(raw::Stop::List(stages)) => stages.as_slice(),
        };
        judge.require(!stages.is_empty(), &self.keys(&["stop"]), "expected at least one signal and its time");
        let stage = |raw: &raw::Stage| StopStage {
            command: None,
            signal: raw.signal.unwrap_or(Signal::TERM),
            timeout: raw.timeout.map_or(Duration::from_secs(10), |span| span.0),
        };
        let first = match &self.raw.stop {
            Some(raw::Stop::One(one)) => one.command.as_ref().map(|command| {
                let command = probe::command_line(judge, &self.keys(&["stop", "command"]), Some(command));
                StopStage { command: Some(command.into()), ..stage(one) }
            }),
            None | Some(raw::Stop::List(_)) => None,
        };
        let drain = match &self.raw.stop {
            Some(raw::Stop::One(stage)) => stage.drain,
            None | Some(raw::Stop::List(_)) => None,
        };
        let in_list =
            |is: fn(&raw::Stage) -> bool| matches!(&self.raw.stop, Some(raw::Stop::List(list)) if list.iter().any(is));
        let (drains, asks) = (in_list(|stage| stage.drain.is_some()), in_list(|stage| stage.command.is_some()));
        judge.require(!drains, &self.keys(&["stop"]), "`drain` is a time of the whole, not of one signal in a list");
        judge.require(!asks, &self.keys(&["stop"]), "a list is one of signals: `command` stands beside a single one");
        let drain = drain.map_or(Duration::from_secs(30), |span| span.0);
        Stop { stages: first.into_iter().chain(stages.iter().map(stage)).collect(), drain }
    }

    fn logs(&self, judge: &mut Judge<'_>) -> Logs {
        let raw = &self.raw.logs;
        let default = Logs::default();
        let rotate = raw.rotate.unwrap_or(default.rotate);
        judge.require(rotate.0 > 0, &self.keys(&["logs", "rotate"]), "a file of no size cannot be rotated");
        let age = raw.age.map(|span| span.0);
        let long = age.is_none_or(|age| age >= SHORTEST_AGE);
        judge.require(long, &self.keys(&["logs", "age"]), "a file is rotated every second at most");
        let line_limit = raw.line_limit.unwrap_or(default.line_limit);
        judge.require(line_limit.0 > 0, &self.keys(&["logs", "line_limit"]), "a line of no length holds nothing");
        let form = match (raw.format, raw.stamp) {
            (Some(raw::LineFormat::Json), _) => Form::Json,
            (_, Some(raw::Stamp::Rfc3339)) => Form::Stamped,
            _ => Form::Raw,
        };
        if form == Form::Raw && self.raw.logs.line_limit.is_some() {
            let message =
                format!("app \"{}\": `line_limit` counts with `stamp: Rfc3339` or `format: Json` alone", self.name);
            judge.warn(&self.keys(&["logs", "line_limit"]), message);
        }
        let (keep, compress) = (raw.keep.unwrap_or(default.keep), raw.compress.unwrap_or(default.compress));
        Logs { rotate, age, keep, compress, form, line_limit }
    }
}

/// Why a user cannot work in this directory.
#[must_use]
pub fn keeps_out(directory: &Path, user: &Identity, facts: &Facts) -> Option<String> {
    let what = format!("directory {}", directory.display());
    match (facts.is_directory)(directory) {
        None => Some(format!("{what} does not exist")),
        Some(false) => Some(format!("{what} is a file")),
        Some(true) => denied(&what, directory, user, facts),
    }
}

/// Why the app's user cannot execute this file, though it is there.
#[must_use]
pub fn keeps_from_executing(program: &Path, app: &App, facts: &Facts) -> Option<String> {
    // With capabilities it may, whatever the modes say.
    let sure = app.limits.capabilities.is_none();
    sure.then(|| denied(&format!("program {:?}", program.display()), program, &app.run_as, facts)).flatten()
}

fn denied(what: &str, path: &Path, user: &Identity, facts: &Facts) -> Option<String> {
    let step = (facts.closed)(path, user.uid, user.gid, &user.groups)?;
    let name = user.name.clone().unwrap_or_else(|| format!("uid {}", user.uid));
    Some(format!("{what}: Permission denied for {name} at {}", step.display()))
}

/// A working directory or program that is not there, or closed to its user. What a release brings, or an app in `after` may
/// yet make, is not missed.
fn missing(judge: &Judge<'_>, app: &App, program: Option<&str>) -> Option<(&'static str, String)> {
    if app.deploy.is_some() || app.comes_after().next().is_some() {
        return None;
    }
    let directory = app.directory.as_deref()?;
    if let Some(why) = keeps_out(directory, &app.run_as, judge.facts) {
        return Some(("directory", why));
    }
    let program = program?;
    let absolute = program.starts_with('/');
    // Relative to a directory of its own, or looked for in a PATH of its own.
    let elsewhere = if program.contains('/') { !absolute } else { app.env.contains_key("PATH") };
    let unknown = elsewhere || program.starts_with('~') || !absolute && !app.env_file.is_empty();
    if unknown || program == "everhook" {
        return None;
    }
    if (judge.facts.is_program)(program) {
        let why = keeps_from_executing(Path::new(program), app, judge.facts).filter(|_| absolute);
        return why.map(|why| ("command", why));
    }
    let found = if absolute { "does not exist or cannot be executed" } else { "is not in PATH" };
    Some(("command", format!("program \"{program}\" {found}")))
}
