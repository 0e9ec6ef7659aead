//! What stands in the file, judged: defaults filled in, names resolved, and each finding at its place.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    App, Config, Deploys, Finding, Log, LogFormat, Place, Places, Role, SecretRef, Serve, Severity, Token, access, app,
    deploy,
    finding::Mark,
    http, identity,
    include::File,
    parse::{meant, of},
    probe, raw,
};
use crate::domain::model::{Account, AppName, Facts, show_span};

/// Collects findings; knows the texts, and what the machine says.
pub struct Judge<'a> {
    /// The config, then the files that it includes.
    pub files: &'a [File<'a>],
    pub facts: &'a Facts,
    pub findings: Vec<Finding>,
    /// Users that were looked up.
    pub users: BTreeMap<String, Option<Account>>,
    pub alike: app::Alike,
}

impl<'a> Judge<'a> {
    pub fn new(files: &'a [File<'a>], facts: &'a Facts) -> Self {
        Self { files, facts, findings: Vec::new(), users: BTreeMap::new(), alike: app::Alike::default() }
    }

    /// A user by name or number. Asked once for each: the machine reads files for it, or asks a server.
    pub fn user(&mut self, name: &str) -> Option<Account> {
        let known = self.users.entry(name.to_owned());
        known.or_insert_with(|| (self.facts.user)(name)).clone()
    }

    /// Is this the config of a root supervisor?
    pub fn as_root(&self) -> bool {
        self.facts.uid == 0
    }

    /// The file that says what stands at this path, and the path there: an app's field may stand in
    /// `defaults`, and the app in an included file.
    fn written<'k>(&self, keys: &[&'k str]) -> (&File<'_>, Vec<&'k str>) {
        let main = &self.files[0];
        if let ["apps", name, field @ ..] = keys {
            let own = self.files.iter().find(|file| file.root.find(&["apps", name]).is_some()).unwrap_or(main);
            let default: Vec<&str> = [&["defaults"], field].concat();
            if !field.is_empty() && own.root.find(keys).is_none() && main.root.find(&default).is_some() {
                return (main, default);
            }
            return (own, keys.to_vec());
        }
        (main, keys.to_vec())
    }

    /// The value at this path, or the nearest parent that stands in the file.
    fn mark(&self, keys: &[&str]) -> (&File<'_>, Option<Mark>) {
        let (file, keys) = self.written(keys);
        let mut parents = (1..=keys.len()).rev().map(|length| (length, file.root.find(&keys[..length])));
        let found = parents.find_map(|(length, entry)| Some((length, entry?)));
        let mark = found.map(|(length, entry)| {
            // An app's name says more than the whole of its entry.
            let named = length < keys.len() || matches!(keys.as_slice(), ["apps", _]);
            Mark::new(if named { entry.key_span.clone() } else { entry.value.span.clone() }, "")
        });
        (file, mark)
    }

    /// Where what stands at this path begins, or its nearest parent.
    pub fn place(&self, keys: &[&str]) -> Option<Place> {
        let (file, mark) = self.mark(keys);
        Some(file.place(mark?.span.start))
    }

    /// The folder that relative paths at this path of keys are relative to: that of their file.
    pub fn base(&self, keys: &[&str]) -> PathBuf {
        self.written(keys).0.base.clone()
    }

    pub fn report(&mut self, severity: Severity, keys: &[&str], message: String) {
        let (file, mark) = self.mark(keys);
        let finding = file.source.finding(severity, message, mark.as_slice());
        self.findings.push(finding);
    }

    pub fn error(&mut self, keys: &[&str], message: impl AsRef<str>) {
        self.report(Severity::Error, keys, format!("{}{}", of(keys), message.as_ref()));
    }

    pub fn warn(&mut self, keys: &[&str], message: impl Into<String>) {
        self.report(Severity::Warning, keys, message.into());
    }

    /// What was read, or an error at its place and the fallback, so that judging goes on.
    pub fn take<T>(&mut self, keys: &[&str], read: Result<T, String>, fallback: T) -> T {
        read.unwrap_or_else(|message| {
            self.error(keys, message);
            fallback
        })
    }

    /// An error unless it holds.
    pub fn require(&mut self, holds: bool, keys: &[&str], message: &str) {
        if !holds {
            self.error(keys, message);
        }
    }

    /// Relative paths are relative to the folder of the file.
    pub fn path(&mut self, keys: &[&str], text: &str) -> PathBuf {
        self.require(!text.is_empty() && !text.contains('\0'), keys, "this is no path");
        absolute(&self.base(keys), text)
    }

    pub fn secret(&mut self, keys: &[&str], secret: &raw::Secret) -> SecretRef {
        match secret {
            raw::Secret::File(path) => SecretRef::File(self.path(keys, path)),
            raw::Secret::Env(name) => {
                self.require(is_variable(name), keys, "this is no name of a variable");
                SecretRef::Env(name.clone())
            }
            raw::Secret::Credential(name) => {
                let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
                self.require(plain, keys, "this is no name of a credential: a file's name, without a folder");
                SecretRef::Credential(name.clone())
            }
        }
    }

    /// The names of variables that cannot be passed on.
    pub fn env(&mut self, keys: &[&str], env: &BTreeMap<String, String>) {
        for (name, value) in env {
            let at = [keys, &[name]].concat();
            let good = !name.is_empty() && !name.contains(['=', '\0']);
            self.require(good, &at, &format!("{name:?} is no name of a variable"));
            self.require(!value.contains('\0'), &at, "a variable cannot hold a NUL character");
        }
    }

    /// The names of apps that exist; an error for each other.
    pub fn apps(&mut self, keys: &[&str], names: &[String], all: &BTreeMap<String, raw::App>) -> Vec<AppName> {
        let mut known: Vec<AppName> = Vec::new();
        for (i, name) in names.iter().enumerate() {
            match name.parse() {
                Ok(app) if all.contains_key(name) => {
                    if !known.contains(&app) {
                        known.push(app);
                    }
                }
                _ => {
                    let message =
                        format!("app \"{name}\" does not exist{}", meant(name, all.keys().map(String::as_str)));
                    self.error(&[keys, &[&i.to_string()]].concat(), message);
                }
            }
        }
        known
    }
}

pub fn absolute(base: &Path, text: &str) -> PathBuf {
    base.join(text).components().collect()
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

/// The whole config. Its findings are in `judge`; with an error among them it is not to be used.
pub fn config(judge: &mut Judge<'_>, raw: &raw::Root, places: &Places) -> Config {
    let root_default = Path::new("/var/lib/everhook");
    let default = if judge.as_root() { root_default } else { &places.state_home };
    let state_dir = raw.state_dir.as_ref().map_or(default.to_owned(), |text| judge.path(&["state_dir"], text));
    let run_dir = match &raw.run_dir {
        Some(text) => judge.path(&["run_dir"], text),
        None if judge.as_root() && state_dir == root_default => "/run/everhook".into(),
        None => state_dir.join("run"),
    };
    let http = http::http(judge, &raw.http);
    let hooks = http.iter().any(|entry| entry.serve.contains(&Serve::Hooks));
    let fetch_as = identity::fetch_as(judge, raw);
    let apps = app::apps(judge, raw, hooks);
    probe::notify_paths(judge, &run_dir, &apps);
    deploy::trees(judge, &state_dir, &apps);
    access::nameless(judge, fetch_as.as_deref(), &apps);
    let shutdown = raw.shutdown.timeout.map_or(Duration::from_secs(30), |span| span.0);
    cut_short(judge, raw, shutdown, &apps);
    Config {
        path: judge.files[0].source.path.to_owned(),
        include: Vec::new(),
        state_dir,
        run_dir,
        tokens: tokens(judge, raw),
        local: local(judge, &raw.local),
        log: log(judge, &raw.log),
        echo: raw.echo,
        shutdown,
        deploys: Deploys {
            parallel: parallel(judge, raw.deploys.parallel),
            fetch_as,
            catch_up: raw.deploys.catch_up.unwrap_or(true),
        },
        apps,
        http,
    }
}

/// Who may take longer to stop than a shutdown waits for, though the config has thought of how long that is.
fn cut_short(judge: &mut Judge<'_>, raw: &raw::Root, shutdown: Duration, apps: &BTreeMap<AppName, Arc<App>>) {
    let is_said = |name: &AppName| {
        raw.defaults.stop.is_some() || raw.apps.get(name.as_str()).is_some_and(|app| app.stop.is_some())
    };
    for (name, app) in apps.iter().filter(|(_, app)| app.command.is_some() && app.stop.timeout() > shutdown) {
        if is_said(name) {
            let message = format!(
                "app \"{name}\" may take {} to stop, and a shutdown kills what still runs after {}: see `shutdown`",
                show_span(app.stop.timeout()),
                show_span(shutdown)
            );
            judge.warn(&["apps", name.as_str(), "stop"], message);
        }
    }
}

fn parallel(judge: &mut Judge<'_>, wanted: Option<u32>) -> u32 {
    judge.require(wanted != Some(0), &["deploys", "parallel"], "at least one deploy must be able to run");
    wanted.unwrap_or(1)
}

fn tokens(judge: &mut Judge<'_>, raw: &raw::Root) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    for (i, token) in raw.tokens.iter().enumerate() {
        let i = i.to_string();
        let keys = ["tokens", i.as_str()];
        let (Some(name), Some(secret), Some(role)) = (&token.name, &token.secret, token.role) else {
            judge.error(&keys, "a token needs `name`, `secret` and `role`");
            continue;
        };
        let name_keys = ["tokens", &i, "name"];
        judge.require(!name.trim().is_empty(), &name_keys, "a token needs a name, for the audit");
        if tokens.iter().any(|other| other.name == *name) {
            judge.error(&name_keys, format!("two tokens are named \"{name}\""));
        }
        let secret = judge.secret(&["tokens", &i, "secret"], secret);
        let apps = token.apps.as_ref().map(|names| judge.apps(&["tokens", &i, "apps"], names, &raw.apps));
        tokens.push(Token { name: name.clone(), secret, role, apps });
    }
    tokens
}

fn local(judge: &mut Judge<'_>, raw: &BTreeMap<String, Role>) -> BTreeMap<String, Role> {
    for group in raw.keys().filter(|group| *group != "*") {
        if (judge.facts.group)(group).is_none() {
            judge.warn(&["local", group], format!("group \"{group}\" does not exist"));
        }
    }
    raw.clone()
}

const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

fn log(judge: &mut Judge<'_>, raw: &raw::Log) -> Log {
    let level = raw.level.clone().unwrap_or_else(|| "info".into());
    if !LEVELS.contains(&level.as_str()) {
        let near = meant(&level, LEVELS);
        judge.error(&["log", "level"], format!("{level:?} is no level; expected one of {}{near}", LEVELS.join(", ")));
    }
    let keep = raw.keep.unwrap_or(14);
    judge.require(keep > 0, &["log", "keep"], "at least today's file must be kept");
    Log { level, format: raw.format.unwrap_or(LogFormat::Text), keep }
}
