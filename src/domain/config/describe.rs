//! What a config comes to, in lines for people.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    App, Command, Config, Deploy, Form, Include, Layout, Limits, Live, LiveProbe, Logs, Missed, Policy, Probe, Ready,
    Reload, Replace, Restart, Schedule, SecretRef, Status, Stop, StopStage, Track, Trigger, Watch, numbered,
};
use crate::domain::model::{At, show_span};

/// Delays that are counted at most; with a factor just above 1 they would go on for long.
const COUNTED: u32 = 100;

impl Restart {
    /// The delays before each restart in a row, without jitter: until it gives up, or until they grow
    /// no more.
    #[must_use]
    pub fn delays(&self) -> Vec<Duration> {
        let mut delays = Vec::new();
        if self.policy == Policy::Never {
            return delays;
        }
        let mut next = self.first.min(self.max);
        for _ in 0..self.give_up.restarts.min(COUNTED) {
            delays.push(next);
            let grown = Duration::try_from_secs_f64(next.as_secs_f64() * self.factor).unwrap_or(self.max).min(self.max);
            if grown <= next {
                break;
            }
            next = grown;
        }
        delays
    }

    /// Can so many restarts happen in the time that counts? An instance that ends at once is
    /// restarted `restarts` times; the next end within `within` of the first restart gives up.
    #[must_use]
    pub fn gives_up(&self) -> bool {
        let delays = self.delays();
        let Some(last) = delays.last() else { return true };
        let counted = u32::try_from(delays.len()).unwrap_or(COUNTED);
        let more = self.give_up.restarts.saturating_sub(counted);
        let all = delays.iter().skip(1).fold(Duration::ZERO, |sum, delay| sum.saturating_add(*delay));
        all.saturating_add(last.saturating_mul(more)) <= self.give_up.within
    }
}

impl Config {
    /// Every secret that is referred to, each once.
    #[must_use]
    pub fn secrets(&self) -> Vec<&SecretRef> {
        let deploys = self.apps.values().filter_map(|app| app.deploy.as_ref());
        let of_deploys = deploys.flat_map(|deploy| [&deploy.secret, &deploy.previous_secret]).flatten();
        let all: BTreeSet<_> = self.tokens.iter().map(|token| &token.secret).chain(of_deploys).collect();
        all.into_iter().collect()
    }

    /// Files that no app but their own is to see: secrets, variables, and this config itself.
    #[must_use]
    pub fn private_files(&self) -> BTreeSet<&Path> {
        let deploys = self.apps.values().filter_map(|app| app.deploy.as_ref());
        let others = deploys.flat_map(|deploy| {
            let token = deploy.access.https_token.as_ref().map(|https| &https.token);
            let status = deploy.status.as_ref().map(|status| &status.token);
            [deploy.access.ssh_key.as_ref(), token, status].into_iter().flatten()
        });
        let secrets = self.secrets().into_iter().chain(others).filter_map(|secret| match secret {
            SecretRef::File(path) => Some(path),
            SecretRef::Env(_) | SecretRef::Credential(_) => None,
        });
        let env_files = self.apps.values().flat_map(|app| &app.env_file);
        let included = self.include.iter().flat_map(|include| &include.files);
        secrets.chain(env_files).chain(included).chain([&self.path]).map(PathBuf::as_path).collect()
    }
}

/// Next times of a schedule that are shown.
const TIMES: usize = 3;

/// Per app: how it runs, when, how it restarts and stops, and how it is deployed, as far as it is.
/// `now`: schedules are shown from here on.
#[must_use]
pub fn describe(config: &Config, now: At) -> Vec<String> {
    config.include.iter().map(included).chain(config.apps.values().flat_map(|one| app(one, now))).collect()
}

/// A script's first line is enough to know it by.
fn shortened(script: &str) -> String {
    let mut lines = script.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    format!("`{first}{}`", if lines.next().is_some() { " …" } else { "" })
}

fn included(entry: &Include) -> String {
    let names: Vec<_> = entry.files.iter().map(|file| file.display().to_string()).collect();
    let names = if names.is_empty() { "no file is there".to_owned() } else { names.join(", ") };
    format!("include {}: {names}", entry.glob.display())
}

fn app(app: &App, now: At) -> Vec<String> {
    let name = &app.name;
    if let Some(problem) = &app.problem {
        return vec![format!("{name}: cannot run: {problem}")];
    }
    let deployed = app.deploy.as_ref().map(|how| format!("{name}: {}", deploys(how)));
    let status = app.deploy.as_ref().and_then(|how| how.status.as_ref());
    let status = status.map(|status| format!("{name}: {}", statuses(status)));
    let Some(command) = &app.command else {
        let only = format!("{name}: only deployed, as {}", user(app));
        return [Some(only), deployed, status].into_iter().flatten().collect();
    };
    let command = shown(command, app.instances);
    let copies = if app.instances == 1 { String::new() } else { format!(", {} instances", app.instances) };
    let tree = app.deploy.as_ref().and_then(|deploy| deploy.tree());
    let place = app.directory.as_deref().or(tree);
    let place = place.map_or_else(|| "its release".to_owned(), |place| place.display().to_string());
    let enabled = if app.enabled { "" } else { ", not started (enabled: false)" };
    let runs = format!("{name}: {command} as {} in {place}{copies}, {}{enabled}", user(app), ready(app));
    let when = app.schedule.as_ref().map(|schedule| format!("{name}: {}", times(schedule, now)));
    let ends = format!("{name}: {}; {}", restarts(&app.restart), stop(&app.stop, app.instances));
    let well = app.live.as_ref().map(|how| format!("{name}: {}", live(how, app.instances)));
    let limits = limits(&app.limits).map(|limits| format!("{name}: {limits}"));
    let sockets = sockets(app).map(|sockets| format!("{name}: {sockets}"));
    let logs = logs(&app.logs).map(|logs| format!("{name}: {logs}"));
    let watched = app.watch.as_ref().map(|watch| format!("{name}: {}", watches(watch)));
    let told = reload(app).map(|told| format!("{name}: {told}"));
    let lines = [Some(runs), when, watched, well, Some(ends), sockets, limits, logs, deployed, status, told];
    lines.into_iter().flatten().collect()
}

fn watches(watch: &Watch) -> String {
    let paths: Vec<_> = watch.paths.iter().map(|path| path.display().to_string()).collect();
    let looks = watch.poll.map(|poll| format!(", looking every {}", show_span(poll))).unwrap_or_default();
    format!("restarts {} after the last change in {}{looks}", show_span(watch.debounce), paths.join(", "))
}

fn times(schedule: &Schedule, now: At) -> String {
    let missed = match schedule.missed {
        Missed::Skip => "skipped",
        Missed::Run => "made up for by one run",
    };
    let next = schedule.shown(now, TIMES).join(", ");
    format!("runs at \"{}\", next at {next}; what is missed is {missed}", schedule.text)
}

/// What is held for it, and how one process takes over from another.
fn sockets(app: &App) -> Option<String> {
    let held: Vec<String> = app.sockets.iter().map(|(name, socket)| format!("{name} {}", socket.address)).collect();
    let holds = (!held.is_empty()).then(|| format!("holds {}", held.join(", ")));
    let waits = " and connections wait meanwhile";
    match (holds, app.replace) {
        (None, Replace::StopFirst) => None,
        (Some(holds), Replace::StopFirst) => {
            Some(format!("{holds}; the next process starts after the last one{waits}"))
        }
        (holds, Replace::StartFirst) => {
            let holds = holds.map(|holds| format!("{holds}; ")).unwrap_or_default();
            let drain = show_span(app.stop.drain);
            Some(format!("{holds}the next process starts beside the last one, which then has {drain} to drain"))
        }
    }
}

/// How a release reaches what runs; `None`: by another process.
fn reload(app: &App) -> Option<String> {
    let how = match &app.reload {
        Reload::Restart => return None,
        Reload::Signal(signal) => format!("{signal} tells"),
        Reload::Exec(command) => format!("{} tells", shown(command, app.instances)),
    };
    app.deploy.as_ref()?;
    Some(format!("{how} a running process of a new release, which `current` leads to by then"))
}

fn deploys(deploy: &Deploy) -> String {
    let on: Vec<String> = deploy.on.iter().map(trigger).collect();
    let on = if on.is_empty() { "a push to the default branch".into() } else { on.join(" or ") };
    let asks = if deploy.irreversible.is_empty() { "" } else { ", asks before what cannot be taken back" };
    let approved = if deploy.approve { ", once it is approved" } else { "" };
    let more = [
        (&deploy.before_switch, "before the switch"),
        (&deploy.after_live, "once it is live"),
        (&deploy.on_failure, "on failure"),
    ];
    let more: String = more
        .into_iter()
        .filter(|(steps, _)| !steps.is_empty())
        .map(|(steps, when)| format!(", {} {when}", steps.len()))
        .collect();
    format!(
        "deploys {} on {on}{}{approved} ({} to check, {} to build{more}, at most {}, settled after {}){asks}, {}",
        deploy.repo,
        only(deploy),
        deploy.check.len(),
        deploy.build.len(),
        show_span(deploy.timeout),
        show_span(deploy.settle),
        layout(&deploy.layout),
    )
}

fn statuses(status: &Status) -> String {
    format!("tells {} what becomes of commits of {}, at {}", status.forge.name(), status.project, status.api)
}

fn layout(layout: &Layout) -> String {
    match layout {
        Layout::Releases { keep } => format!("keeps {keep}"),
        Layout::InPlace(tree) => format!("in the working tree {}", tree.display()),
    }
}

fn trigger(trigger: &Trigger) -> String {
    match trigger {
        Trigger::Push(glob) => format!("a push to {}", glob.as_str()),
        Trigger::Tag(glob) => format!("a tag {}", glob.as_str()),
        Trigger::Release => "a release".to_owned(),
        Trigger::Pipeline(glob) => format!("a pipeline of {} that succeeds", glob.as_str()),
    }
}

/// What else counts before a commit is deployed, and which one.
fn only(deploy: &Deploy) -> String {
    let told = [
        deploy.poll.map(|poll| format!(" or a look every {}", show_span(poll))),
        (!deploy.paths.is_empty()).then(|| format!(", if {} changed", deploy.paths.join(", "))),
        (!deploy.authors.is_empty()).then(|| format!(", if by {}", deploy.authors.join(", "))),
        (deploy.track == Track::Head).then(|| ", always the newest commit".to_owned()),
        deploy.dialect.as_ref().map(|dialect| format!(", told by {}", dialect.name())),
    ];
    told.into_iter().flatten().collect()
}

fn user(app: &App) -> String {
    app.run_as.name.clone().unwrap_or_else(|| format!("uid {}", app.run_as.uid))
}

fn ready(app: &App) -> String {
    let ready = &app.ready;
    let within = ready.within().map(|within| format!(", within {}", show_span(within))).unwrap_or_default();
    let when = match ready {
        Ready::Immediate => "at once".into(),
        Ready::After(time) => format!("after {}", show_span(*time)),
        Ready::Notify { .. } => "when it notifies".into(),
        Ready::Fd { number, .. } => format!("when it writes a newline to descriptor {number}"),
        Ready::Probe { probe, .. } => format!("when {}", answered(probe, app.instances)),
    };
    format!("ready {when}{within}")
}

fn answered(probe: &Probe, instances: u32) -> String {
    match probe {
        Probe::Http(probe) => format!("{} answers {}", counted(&probe.url, instances), probe.expect),
        Probe::Tcp(probe) => format!("{} accepts", counted(&probe.addr, instances)),
        Probe::Exec(command) => format!("{} exits with 0", shown(command, instances)),
    }
}

fn live(live: &Live, instances: u32) -> String {
    let every = show_span(live.every);
    let asked = match &live.probe {
        LiveProbe::Watchdog => format!("it says so every {every}"),
        LiveProbe::Probe(probe) => {
            format!("{}, asked every {every} for at most {}", answered(probe, instances), show_span(live.timeout))
        }
    };
    let failures = if live.failures == 1 { "a failure".into() } else { format!("{} failures in a row", live.failures) };
    format!("well while {asked}; restarted after {failures}")
}

/// The number of the only copy; of several, the place that it will have.
fn counted(text: &str, instances: u32) -> String {
    if instances == 1 { numbered(text, 1) } else { text.to_owned() }
}

fn shown(command: &Command, instances: u32) -> String {
    match command {
        Command::List(words) => {
            format!("{:?}", words.iter().map(|word| counted(word, instances)).collect::<Vec<_>>())
        }
        Command::Shell(text) => shortened(&counted(text, instances)),
    }
}

fn restarts(restart: &Restart) -> String {
    let delays = restart.delays();
    let when = match restart.policy {
        Policy::Never => return "never restarts by itself".into(),
        Policy::Always => "restarts after",
        Policy::OnFailure => "restarts a failure after",
    };
    let give_up = &restart.give_up;
    let end = if give_up.restarts == 0 {
        return "gives up at the first exit that asks for a restart".into();
    } else if restart.gives_up() {
        format!("gives up after {} restarts in {}", give_up.restarts, show_span(give_up.within))
    } else {
        let within = show_span(give_up.within);
        format!("goes on for ever, as {} restarts take longer than {within}", give_up.restarts)
    };
    let retry = restart.retry_after.map(|time| format!(", tries again {} later", show_span(time))).unwrap_or_default();
    format!("{when} {}; {end}{retry}", list(&delays, give_up.restarts))
}

/// The first delays and the last.
fn list(delays: &[Duration], restarts: u32) -> String {
    let shown: Vec<String> = delays.iter().map(|delay| show_span(*delay)).collect();
    let last = shown.last().cloned().unwrap_or_default();
    let goes_on = usize::try_from(restarts).is_ok_and(|restarts| restarts > delays.len());
    match (shown.as_slice(), goes_on) {
        ([_], true) => format!("{last} each time"),
        ([first, second, third, _, .., _], true) => format!("{first}, {second}, {third}, … then every {last}"),
        ([first, second, third, _, .., _], false) => format!("{first}, {second}, {third}, … {last}"),
        (_, true) => format!("{}, then every {last}", shown[..shown.len() - 1].join(", ")),
        (_, false) => shown.join(", "),
    }
}

/// `None` where nothing is limited.
fn limits(limits: &Limits) -> Option<String> {
    let Limits { memory, memory_restart, cpu, tasks, files, core, nice, oom_score, umask, capabilities, no_new_privs } =
        limits;
    let told: Vec<String> = [
        memory.map(|size| format!("at most {size} of memory")),
        memory_restart.map(|size| format!("restarted over {size}")),
        cpu.map(|cpu| format!("{cpu} CPUs")),
        tasks.map(|tasks| format!("{tasks} tasks")),
        files.map(|files| format!("{files} open files")),
        core.map(|size| if size.0 == 0 { "no core files".into() } else { format!("core files up to {size}") }),
        nice.map(|nice| format!("nice {nice}")),
        oom_score.map(|score| format!("oom_score {score}")),
        umask.map(|mask| format!("umask {mask:04o}")),
        capabilities.map(|set| if set.0 == 0 { "no capability".into() } else { format!("capabilities {set}") }),
        no_new_privs.then(|| "no_new_privs".to_owned()),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!told.is_empty()).then(|| told.join(", "))
}

/// `None` where they are as everywhere.
fn logs(logs: &Logs) -> Option<String> {
    if *logs == Logs::default() {
        return None;
    }
    let Logs { rotate, age, keep, compress, form, line_limit } = logs;
    let form = match form {
        Form::Raw => "raw".to_owned(),
        Form::Stamped => format!("with times, lines up to {line_limit}"),
        Form::Json => format!("as JSON, lines up to {line_limit}"),
    };
    let age = age.map(|age| format!(" or {}", show_span(age))).unwrap_or_default();
    let kept = if *compress { "kept, compressed" } else { "kept" };
    Some(format!("logs {form}, in files of {rotate}{age}, {keep} {kept}"))
}

fn stop(stop: &Stop, instances: u32) -> String {
    let asked = |stage: &StopStage| match &stage.command {
        Some(command) => shown(command, instances),
        None => stage.signal.to_string(),
    };
    let stages: Vec<String> =
        stop.stages.iter().map(|stage| format!("{}, after {} ", asked(stage), show_span(stage.timeout))).collect();
    format!("stops by {}SIGKILL", stages.concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::config::GiveUp;

    fn restart(first: u64, factor: f64, max: u64, restarts: u32, within: u64) -> Restart {
        Restart {
            policy: Policy::Always,
            success: vec![0],
            first: Duration::from_millis(first),
            factor,
            max: Duration::from_millis(max),
            jitter: 0.1,
            reset_after: Duration::from_secs(10),
            give_up: GiveUp { restarts, within: Duration::from_secs(within) },
            retry_after: None,
        }
    }

    #[test]
    fn delays_grow_until_the_longest_or_the_end() {
        let millis = |r: &Restart| r.delays().iter().map(Duration::as_millis).collect::<Vec<_>>();
        assert_eq!(millis(&restart(100, 2.0, 1_000, 10, 300)), [100, 200, 400, 800, 1_000]);
        assert_eq!(millis(&restart(100, 2.0, 1_000, 3, 300)), [100, 200, 400]);
        assert_eq!(millis(&restart(500, 1.0, 30_000, 10, 300)), [500]);
        assert_eq!(millis(&Restart { policy: Policy::Never, ..restart(500, 1.0, 30_000, 10, 300) }), [0; 0]);
        assert!(restart(100, 1.000_000_1, 1_000, u32::MAX, 300).delays().len() <= 100);
    }

    #[test]
    fn what_never_gives_up_is_known() {
        assert!(restart(100, 2.0, 30_000, 10, 300).gives_up());
        assert!(!restart(100, 2.0, 60_000, 10, 60).gives_up());
        assert!(!restart(1_000, 1.0, 1_000, u32::MAX, 300).gives_up());
    }
}
