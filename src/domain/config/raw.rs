//! The file as it is written: every field optional, values still words. `defaults` are merged here.

mod forms;

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use super::{Encoding, Forge, Hash, LogFormat, Missed, OnFailed, Policy, Replace, Role, Serve, Track};
use crate::domain::model::{Signal, Size, span};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Root {
    pub include: Vec<String>,
    pub state_dir: Option<String>,
    pub run_dir: Option<String>,
    pub http: Vec<Http>,
    pub tokens: Vec<Token>,
    pub local: BTreeMap<String, Role>,
    pub log: Log,
    pub echo: Option<bool>,
    pub shutdown: Shutdown,
    pub deploys: Deploys,
    pub defaults: App,
    pub apps: BTreeMap<String, App>,
}

/// A file that the config includes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Included {
    pub apps: BTreeMap<String, App>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    pub bind: Option<String>,
    pub serve: Vec<Serve>,
    pub trusted_proxies: Vec<String>,
    pub allow: Option<Vec<String>>,
    pub tls: Option<Tls>,
    pub insecure: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    pub cert: Option<String>,
    pub key: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Token {
    pub name: Option<String>,
    pub secret: Option<Secret>,
    pub role: Option<Role>,
    pub apps: Option<Vec<String>>,
}

#[derive(Debug, Clone, Deserialize)]
pub enum Secret {
    File(String),
    Env(String),
    Credential(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub level: Option<String>,
    pub format: Option<LogFormat>,
    pub keep: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shutdown {
    pub timeout: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deploys {
    pub parallel: Option<u32>,
    pub fetch_user: Option<String>,
    pub catch_up: Option<bool>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct App {
    pub command: Option<Words>,
    pub directory: Option<String>,
    pub user: Option<Account>,
    pub group: Option<Account>,
    pub groups: Option<Vec<Account>>,
    pub env: BTreeMap<String, String>,
    pub env_file: Option<Words>,
    pub port: Option<u16>,
    pub instances: Option<u32>,
    pub enabled: Option<bool>,
    pub after: Option<Vec<String>>,
    pub requires: Option<Vec<String>>,
    pub ready: Option<Ready>,
    pub live: Option<Live>,
    pub restart: Restart,
    pub on_failed: Option<OnFailed>,
    pub stop: Option<Stop>,
    pub sockets: Option<BTreeMap<String, Socket>>,
    pub replace: Option<Replace>,
    pub reload: Option<Reload>,
    pub limits: Limits,
    pub logs: Logs,
    pub schedule: Option<Schedule>,
    pub watch: Option<Watch>,
    pub deploy: Option<Deploy>,
    pub was: Option<String>,
}

/// A user or group by name or number.
#[derive(Debug, Clone)]
pub struct Account(pub String);

/// One string, or a list of them.
#[derive(Debug, Clone)]
pub enum Words {
    One(String),
    List(Vec<String>),
}

impl Words {
    /// Is a NUL in it, which the kernel takes for the end of a word?
    pub fn holds_nul(&self) -> bool {
        match self {
            Self::One(text) => text.contains('\0'),
            Self::List(list) => list.iter().any(|word| word.contains('\0')),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Ready {
    Immediate,
    After(Span),
    Notify {
        within: Option<Span>,
    },
    /// `Notify` without fields, as [`super::parse`] spells it to the parser.
    #[serde(rename = "N_tify")]
    PlainNotify,
    Http {
        url: Option<String>,
        host: Option<String>,
        expect: Option<u16>,
        within: Option<Span>,
    },
    Tcp {
        addr: Option<String>,
        within: Option<Span>,
    },
    Exec {
        command: Option<Words>,
        within: Option<Span>,
    },
    Fd {
        fd: Option<i32>,
        within: Option<Span>,
    },
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Live {
    pub probe: Option<LiveProbe>,
    pub every: Option<Span>,
    pub failures: Option<u32>,
    pub timeout: Option<Span>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum LiveProbe {
    Watchdog,
    Http { url: Option<String>, host: Option<String>, expect: Option<u16> },
    Tcp { addr: Option<String> },
    Exec { command: Option<Words> },
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Restart {
    pub policy: Option<Policy>,
    pub success: Option<Vec<i32>>,
    pub first: Option<Span>,
    pub factor: Option<f64>,
    pub max: Option<Span>,
    pub jitter: Option<f64>,
    pub reset_after: Option<Span>,
    pub give_up: GiveUp,
    pub retry_after: Option<Span>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GiveUp {
    pub restarts: Option<u32>,
    pub within: Option<Span>,
}

#[derive(Debug, Clone)]
pub enum Stop {
    One(Stage),
    List(Vec<Stage>),
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stage {
    pub command: Option<Words>,
    pub signal: Option<Signal>,
    pub timeout: Option<Span>,
    pub drain: Option<Span>,
}

#[derive(Debug, Clone, Deserialize)]
pub enum Reload {
    Restart,
    Signal(Signal),
    Exec(Words),
}

#[derive(Debug, Default, Clone)]
pub struct Socket {
    pub address: Option<String>,
    pub mode: Option<String>,
    pub user: Option<Account>,
    pub reuse_port: Option<bool>,
    pub backlog: Option<u32>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    pub memory: Option<Size>,
    pub memory_restart: Option<Size>,
    pub cpu: Option<f64>,
    pub tasks: Option<u64>,
    pub files: Option<u64>,
    pub core: Option<Size>,
    pub nice: Option<i32>,
    pub oom_score: Option<i32>,
    pub umask: Option<String>,
    pub capabilities: Option<Vec<String>>,
    pub no_new_privs: Option<bool>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Logs {
    pub rotate: Option<Size>,
    pub age: Option<Span>,
    pub keep: Option<u32>,
    pub compress: Option<bool>,
    pub stamp: Option<Stamp>,
    pub format: Option<LineFormat>,
    pub line_limit: Option<Size>,
}

/// What stands before a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Stamp {
    #[serde(rename = "none")]
    Nothing,
    Rfc3339,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum LineFormat {
    Raw,
    Json,
}

#[derive(Debug, Default, Clone)]
pub struct Schedule {
    pub cron: Option<String>,
    pub zone: Option<String>,
    pub missed: Option<Missed>,
}

#[derive(Debug, Default, Clone)]
pub struct Watch {
    pub paths: Vec<String>,
    pub ignore: Vec<String>,
    pub debounce: Option<Span>,
    pub poll: Option<Span>,
    /// Written as `(paths: …)`.
    pub is_full: bool,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deploy {
    pub repo: Option<String>,
    pub layout: Option<Layout>,
    pub on: Option<Vec<Trigger>>,
    pub paths: Option<Vec<String>>,
    pub authors: Option<Vec<String>>,
    pub track: Option<Track>,
    pub poll: Option<Span>,
    pub secret: Option<Secret>,
    pub previous_secret: Option<Secret>,
    pub dialect: Option<Dialect>,
    pub ssh_key: Option<Secret>,
    pub host_key: Option<String>,
    pub https_token: Option<HttpsToken>,
    pub check: Option<Vec<Step>>,
    pub build: Option<Vec<Step>>,
    pub before_switch: Option<Vec<Step>>,
    pub after_live: Option<Vec<Step>>,
    pub on_failure: Option<Vec<Step>>,
    pub env: BTreeMap<String, String>,
    pub env_from: Option<Vec<String>>,
    pub shared: Option<Vec<String>>,
    pub bridge: Option<Vec<String>>,
    pub timeout: Option<Span>,
    pub settle: Option<Span>,
    pub approve: Option<bool>,
    pub irreversible: Option<When>,
    pub status: Option<Status>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Status {
    pub forge: Option<Forge>,
    pub api: Option<String>,
    pub token: Option<Secret>,
}

/// Whose webhooks an app takes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Dialect {
    Auto,
    GitHub,
    GitLab,
    Gitea,
    Forgejo,
    Gogs,
    BitbucketCloud,
    BitbucketDataCenter,
    Gitee,
    AzureDevOps,
    StandardWebhooks,
    Generic {
        proof: Option<Proof>,
        event: Option<String>,
        id: Option<String>,
        #[serde(rename = "ref")]
        ref_at: Option<String>,
        commit: Option<String>,
        repository: Option<String>,
    },
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Proof {
    Hmac { header: Option<String>, prefix: Option<String>, hash: Option<Hash>, encoding: Option<Encoding> },
    Bearer,
    Standard,
}

/// A condition on what a deploy changes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum When {
    Changed(Vec<String>),
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpsToken {
    pub user: Option<String>,
    pub token: Option<Secret>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Layout {
    Releases { keep: Option<u32> },
    InPlace(String),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Trigger {
    Push { branch: Option<String> },
    Tag(String),
    Release,
    Pipeline { branch: Option<String> },
}

#[derive(Debug, Default, Clone)]
pub struct Step {
    pub run: Option<String>,
    pub name: Option<String>,
    pub when: Option<When>,
    pub timeout: Option<Span>,
}

/// A length of time.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(transparent)]
pub struct Span(#[serde(with = "span")] pub Duration);

impl App {
    /// What this app says, and where it says nothing, what `defaults` say.
    pub fn or(self, defaults: &Self) -> Self {
        let d = defaults.clone();
        Self {
            command: self.command.or(d.command),
            directory: self.directory.or(d.directory),
            user: self.user.or(d.user),
            group: self.group.or(d.group),
            groups: self.groups.or(d.groups),
            env: merged(self.env, d.env),
            env_file: self.env_file.or(d.env_file),
            port: self.port.or(d.port),
            instances: self.instances.or(d.instances),
            enabled: self.enabled.or(d.enabled),
            after: self.after.or(d.after),
            requires: self.requires.or(d.requires),
            ready: self.ready.or(d.ready),
            live: match (self.live, d.live) {
                (Some(own), Some(default)) => Some(own.or(default)),
                // Defaults without a probe say how often; whether at all, each app says itself.
                (None, default) => default.filter(|live| live.probe.is_some()),
                (own, None) => own,
            },
            restart: self.restart.or(d.restart),
            on_failed: self.on_failed.or(d.on_failed),
            stop: match (self.stop, d.stop) {
                (Some(Stop::One(stage)), Some(Stop::One(default))) => Some(Stop::One(Stage {
                    command: stage.command.or(default.command),
                    signal: stage.signal.or(default.signal),
                    timeout: stage.timeout.or(default.timeout),
                    drain: stage.drain.or(default.drain),
                })),
                (own, default) => own.or(default),
            },
            sockets: self.sockets.or(d.sockets),
            replace: self.replace.or(d.replace),
            reload: self.reload.or(d.reload),
            limits: self.limits.or(d.limits),
            logs: self.logs.or(&d.logs),
            schedule: self.schedule.or(d.schedule),
            watch: self.watch.or(d.watch),
            // Defaults say how to deploy; whether to, each app says itself.
            deploy: self.deploy.map(|own| own.or(d.deploy.unwrap_or_default())),
            // No two apps had the same name.
            was: self.was,
        }
    }
}

impl Live {
    fn or(self, d: Self) -> Self {
        Self {
            probe: self.probe.or(d.probe),
            every: self.every.or(d.every),
            failures: self.failures.or(d.failures),
            timeout: self.timeout.or(d.timeout),
        }
    }
}

impl Restart {
    fn or(self, d: Self) -> Self {
        Self {
            policy: self.policy.or(d.policy),
            success: self.success.or(d.success),
            first: self.first.or(d.first),
            factor: self.factor.or(d.factor),
            max: self.max.or(d.max),
            jitter: self.jitter.or(d.jitter),
            reset_after: self.reset_after.or(d.reset_after),
            give_up: GiveUp {
                restarts: self.give_up.restarts.or(d.give_up.restarts),
                within: self.give_up.within.or(d.give_up.within),
            },
            retry_after: self.retry_after.or(d.retry_after),
        }
    }
}

impl Logs {
    fn or(self, d: &Self) -> Self {
        Self {
            rotate: self.rotate.or(d.rotate),
            age: self.age.or(d.age),
            keep: self.keep.or(d.keep),
            compress: self.compress.or(d.compress),
            stamp: self.stamp.or(d.stamp),
            format: self.format.or(d.format),
            line_limit: self.line_limit.or(d.line_limit),
        }
    }
}

impl Limits {
    fn or(self, d: Self) -> Self {
        Self {
            memory: self.memory.or(d.memory),
            memory_restart: self.memory_restart.or(d.memory_restart),
            cpu: self.cpu.or(d.cpu),
            tasks: self.tasks.or(d.tasks),
            files: self.files.or(d.files),
            core: self.core.or(d.core),
            nice: self.nice.or(d.nice),
            oom_score: self.oom_score.or(d.oom_score),
            umask: self.umask.or(d.umask),
            capabilities: self.capabilities.or(d.capabilities),
            no_new_privs: self.no_new_privs.or(d.no_new_privs),
        }
    }
}

impl Deploy {
    fn or(self, d: Self) -> Self {
        Self {
            repo: self.repo.or(d.repo),
            layout: self.layout.or(d.layout),
            on: self.on.or(d.on),
            paths: self.paths.or(d.paths),
            authors: self.authors.or(d.authors),
            track: self.track.or(d.track),
            poll: self.poll.or(d.poll),
            secret: self.secret.or(d.secret),
            previous_secret: self.previous_secret.or(d.previous_secret),
            dialect: self.dialect.or(d.dialect),
            ssh_key: self.ssh_key.or(d.ssh_key),
            host_key: self.host_key.or(d.host_key),
            https_token: self.https_token.or(d.https_token),
            check: self.check.or(d.check),
            build: self.build.or(d.build),
            before_switch: self.before_switch.or(d.before_switch),
            after_live: self.after_live.or(d.after_live),
            on_failure: self.on_failure.or(d.on_failure),
            env: merged(self.env, d.env),
            env_from: self.env_from.or(d.env_from),
            shared: self.shared.or(d.shared),
            bridge: self.bridge.or(d.bridge),
            timeout: self.timeout.or(d.timeout),
            settle: self.settle.or(d.settle),
            approve: self.approve.or(d.approve),
            irreversible: self.irreversible.or(d.irreversible),
            status: match (self.status, d.status) {
                (Some(own), Some(default)) => Some(own.or(default)),
                (own, default) => own.or(default),
            },
        }
    }
}

impl Status {
    fn or(self, d: Self) -> Self {
        Self { forge: self.forge.or(d.forge), api: self.api.or(d.api), token: self.token.or(d.token) }
    }
}

/// Variables are merged one by one: an app adds to those of `defaults`.
fn merged(own: BTreeMap<String, String>, mut defaults: BTreeMap<String, String>) -> BTreeMap<String, String> {
    defaults.extend(own);
    defaults
}
