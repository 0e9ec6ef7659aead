//! What a reload from one config to another does to whom.

use std::{
    fmt::{self, Write},
    net::SocketAddr,
    time::Duration,
};

use super::{App, Config, Http, Ready};
use crate::domain::model::AppName;

/// A change of config, sorted by what it asks of the running supervisor.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Stopped; their files stay.
    pub removed: Vec<AppName>,
    pub added: Vec<AppName>,
    /// Who had another name, which comes first; what runs of them goes on.
    pub renamed: Vec<(AppName, AppName)>,
    /// Whose processes are started anew, and what has changed of them.
    pub restarted: Vec<(AppName, Vec<&'static str>)>,
    /// Fields of the others that count from now on, without a restart; `enabled` starts or stops.
    pub applied: Vec<(AppName, Vec<&'static str>)>,
    pub listeners_added: Vec<Http>,
    pub listeners_removed: Vec<Http>,
    /// The same address serves something else: the old entry and the new one.
    pub listeners_changed: Vec<(Http, Http)>,
    /// Addresses that go on with another certificate.
    pub renewed: Vec<SocketAddr>,
    /// Top-level fields that count from now on.
    pub other: Vec<&'static str>,
    /// What cannot change in a running supervisor, and what would keep an app from running that runs now, each a
    /// sentence: the reload is refused.
    pub refused: Vec<String>,
}

impl Plan {
    /// Does it change anything?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The apps of the new config that it is about; one may come several times.
    pub fn apps(&self) -> impl Iterator<Item = &AppName> {
        let renamed = self.renamed.iter().map(|(_, new)| new);
        let changed = self.restarted.iter().chain(&self.applied).map(|(name, _)| name);
        self.added.iter().chain(renamed).chain(changed)
    }

    /// The other name that an app of the new config runs by.
    #[must_use]
    pub fn was(&self, name: &AppName) -> Option<&AppName> {
        self.renamed.iter().find(|(_, new)| new == name).map(|(old, _)| old)
    }

    /// Has an app started anew for this reason too.
    pub fn restart(&mut self, name: &AppName, why: &'static str) {
        if let Some((_, fields)) = self.restarted.iter_mut().find(|(app, _)| app == name) {
            return fields.push(why);
        }
        let live = self.applied.extract_if(.., |(app, _)| app == name).flat_map(|(_, fields)| fields);
        let fields = std::iter::once(why).chain(live).collect();
        self.restarted.push((name.clone(), fields));
    }

    /// For people, a line each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        if self.is_empty() {
            return vec!["nothing changes".into()];
        }
        let fields =
            |(app, fields): &(AppName, Vec<&str>), what: &str| format!("{app}: {what} ({})", fields.join(", "));
        let listener = |http: &Http, what: &str| format!("listener {}: {what}", http.bind);
        let mut lines = self.refused.clone();
        lines.extend(self.removed.iter().map(|app| format!("{app}: removed")));
        lines.extend(self.added.iter().map(|app| format!("{app}: added")));
        lines.extend(self.renamed.iter().map(|(old, new)| format!("{new}: was {old}")));
        lines.extend(self.restarted.iter().map(|change| fields(change, "restarted")));
        lines.extend(self.applied.iter().map(|change| fields(change, "changed without a restart")));
        lines.extend(self.listeners_removed.iter().map(|http| listener(http, "closed")));
        lines.extend(self.listeners_added.iter().map(|http| listener(http, "opened")));
        let anew = "serves anew, as its entry says now";
        lines.extend(self.listeners_changed.iter().map(|(_, http)| listener(http, anew)));
        lines.extend(self.renewed.iter().map(|bind| format!("listener {bind}: a new certificate")));
        lines.extend(self.other.iter().map(|field| format!("{field}: changed")));
        lines
    }
}

/// What a reload from `old` to `new` does.
#[must_use]
pub fn diff(old: &Config, new: &Config) -> Plan {
    let is_new = |name: &AppName| !old.apps.contains_key(name);
    let names = new.apps.values().filter_map(|app| Some((app.was.clone()?, app.name.clone())));
    let renamed: Vec<_> = names.filter(|(was, name)| is_new(name) && old.apps.contains_key(was)).collect();
    let gone = |name: &&AppName| !new.apps.contains_key(*name) && !renamed.iter().any(|(was, _)| was == *name);
    let before = |name: &AppName| renamed.iter().find(|(_, now)| now == name).map_or(name, |(was, _)| was).clone();
    let mut plan = Plan {
        removed: old.apps.keys().filter(gone).cloned().collect(),
        added: new.apps.keys().filter(|name| is_new(name) && before(name) == **name).cloned().collect(),
        other: other(old, new),
        refused: refused(old, new),
        ..Plan::default()
    };
    for (name, new) in &new.apps {
        let Some(old) = old.apps.get(&before(name)) else { continue };
        if let Some(fault) = new.problem.as_ref().filter(|_| new.enabled && old.problem.is_none()) {
            plan.refused.push(format!("app \"{name}\": {fault}"));
        }
        let (restarting, live) = (restarting(old, new), live(old, new));
        if !restarting.is_empty() {
            plan.restarted.push((name.clone(), [restarting, live].concat()));
        } else if !live.is_empty() {
            plan.applied.push((name.clone(), live));
        }
    }
    plan.renamed = renamed;
    listeners(&old.http, &new.http, &mut plan);
    plan
}

/// Does a reload from one to the other change the app? Where it stands in the file is no matter.
#[must_use]
pub fn is_changed(old: &App, new: &App) -> bool {
    !restarting(old, new).is_empty() || !live(old, new).is_empty()
}

fn changed<const N: usize>(fields: [(&'static str, bool); N]) -> Vec<&'static str> {
    fields.into_iter().filter(|(_, changed)| *changed).map(|(name, _)| name).collect()
}

/// Fields that a process gets at its start.
fn restarting(old: &App, new: &App) -> Vec<&'static str> {
    changed([
        ("command", old.command != new.command),
        ("directory", old.directory != new.directory),
        ("user", old.run_as.uid != new.run_as.uid),
        ("group", old.run_as.gid != new.run_as.gid),
        ("groups", old.groups != new.groups),
        ("env", old.env != new.env),
        ("env_file", old.env_file != new.env_file),
        ("port", old.port != new.port),
        ("sockets", old.sockets != new.sockets),
        // What the process is told of how it is looked at.
        ("ready", told(old).0 != told(new).0),
        ("live", told(old).1 != told(new).1),
        ("limits", old.limits != new.limits),
        // What kept it from running is mended, or came up: the text also names its line, which may move.
        ("fault", old.problem.is_some() != new.problem.is_some()),
    ])
}

/// Stands for all that a process gets at its start, [`restarting`] above, and what `env_file` said: where a
/// later supervisor finds another number, a reload would have started it anew. Another version of everhook
/// may count otherwise.
#[must_use]
pub fn definition(app: &App, env_file: &[(String, String)]) -> u64 {
    let process = (&app.command, &app.directory, app.run_as.uid, app.run_as.gid, &app.groups);
    let given = (&app.env, &app.env_file, env_file, app.port, &app.sockets, told(app), &app.limits);
    let mut sum = Fnv(0xcbf2_9ce4_8422_2325);
    // Only what it is written to could fail.
    let _ = write!(sum, "{process:?} {given:?}");
    sum.0
}

/// FNV-1a: short, and known by everybody.
struct Fnv(u64);

impl Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Ok(())
    }
}

/// What an app learns from its environment and descriptors: whether and where it is to say that it is
/// ready, and how often that it is well.
fn told(app: &App) -> ((bool, Option<i32>), Option<Duration>) {
    let number = if let Ready::Fd { number, .. } = app.ready { Some(number) } else { None };
    ((matches!(app.ready, Ready::Notify { .. }), number), app.watchdog().map(|live| live.every))
}

fn live(old: &App, new: &App) -> Vec<&'static str> {
    changed([
        ("instances", old.instances != new.instances),
        ("enabled", old.enabled != new.enabled),
        ("after", old.after != new.after),
        ("requires", old.requires != new.requires),
        ("ready", old.ready != new.ready && told(old).0 == told(new).0),
        ("live", old.live != new.live && told(old).1 == told(new).1),
        ("restart", old.restart != new.restart),
        ("on_failed", old.on_failed != new.on_failed),
        ("stop", old.stop != new.stop),
        ("replace", old.replace != new.replace),
        ("reload", old.reload != new.reload),
        ("logs", old.logs != new.logs),
        ("schedule", old.schedule != new.schedule),
        ("watch", old.watch != new.watch),
        ("deploy", old.deploy != new.deploy),
    ])
}

fn other(old: &Config, new: &Config) -> Vec<&'static str> {
    changed([
        ("include", old.include != new.include),
        ("tokens", old.tokens != new.tokens),
        ("local", old.local != new.local),
        ("log", old.log != new.log),
        ("echo", old.echo != new.echo),
        ("shutdown", old.shutdown != new.shutdown),
        ("deploys", old.deploys != new.deploys),
    ])
}

fn refused(old: &Config, new: &Config) -> Vec<String> {
    [("state_dir", old.state_dir != new.state_dir), ("run_dir", old.run_dir != new.run_dir)]
        .into_iter()
        .filter(|(_, changed)| *changed)
        .map(|(field, _)| format!("{field} cannot change while everhook runs: shut it down and run it again"))
        .collect()
}

/// Entries are told apart by their address; those with port 0 that are the same no more by their order.
fn listeners(old: &[Http], new: &[Http], plan: &mut Plan) {
    let mut left: Vec<&Http> = old.iter().collect();
    let mut take = |fits: &dyn Fn(&Http) -> bool| left.iter().position(|other| fits(other)).map(|at| left.remove(at));
    let other: Vec<&Http> = new.iter().filter(|entry| take(&|old| old == *entry).is_none()).collect();
    for entry in other {
        match take(&|old| old.bind == entry.bind) {
            Some(old) => plan.listeners_changed.push((old.clone(), entry.clone())),
            None => plan.listeners_added.push(entry.clone()),
        }
    }
    plan.listeners_removed = left.into_iter().cloned().collect();
}
