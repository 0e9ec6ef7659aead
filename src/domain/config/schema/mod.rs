//! The config as the rest of the house uses it: every default filled in, every path absolute, every
//! name resolved. `load` makes it out of the file's text. Here is what the whole server has; `app`,
//! `health` and `deploy` are what one app has.

mod app;
mod deploy;
mod health;

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::domain::model::AppName;
pub use app::*;
pub use deploy::*;
pub use health::*;

/// The whole of `supervisor.ron`.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file it came from, absolute.
    pub path: PathBuf,
    /// Files with further apps.
    pub include: Vec<Include>,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    pub http: Vec<Http>,
    pub tokens: Vec<Token>,
    /// Unix group, or `*` for everybody, to role.
    pub local: BTreeMap<String, Role>,
    pub log: Log,
    /// App output on everhook's own stdout; `None`: on a terminal and as PID 1.
    pub echo: Option<bool>,
    /// What still runs so long after a shutdown has begun is killed.
    pub shutdown: Duration,
    pub deploys: Deploys,
    /// Shared with whoever runs them.
    pub apps: BTreeMap<AppName, Arc<App>>,
}

/// One entry of `include`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Include {
    /// Absolute.
    pub glob: PathBuf,
    /// What it named when the config was read.
    pub files: Vec<PathBuf>,
}

/// One entry of `http`: one listener process.
#[derive(Debug, Clone)]
pub struct Http {
    pub bind: SocketAddr,
    pub serve: Vec<Serve>,
    /// Proxies whose word counts on whom they ask for.
    pub trusted: Vec<IpNet>,
    /// Who may ask at all; `None`: everybody.
    pub allow: Option<Vec<IpNet>>,
    /// Serves HTTPS with these; `None`: HTTP.
    pub tls: Option<Tls>,
    /// Of `bind`, for what is found out later.
    pub place: Option<Place>,
}

/// The files of a certificate chain and of its private key, absolute.
#[derive(Debug, Clone)]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Of `cert` and of `key`.
    pub places: [Option<Place>; 2],
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        (&self.cert, &self.key) == (&other.cert, &other.key)
    }
}

/// It is the same wherever it stands.
impl PartialEq for Http {
    fn eq(&self, other: &Self) -> bool {
        (self.bind, &self.serve, &self.trusted, &self.allow, &self.tls)
            == (other.bind, &other.serve, &other.trusted, &other.allow, &other.tls)
    }
}

/// What a listener serves. The dashboard comes later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Serve {
    Hooks,
    Api,
    Metrics,
}

impl Serve {
    /// As status and the listener's command line have it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Hooks => "hooks",
            Self::Api => "api",
            Self::Metrics => "metrics",
        }
    }
}

/// A bearer token of the config file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub name: String,
    pub secret: SecretRef,
    pub role: Role,
    /// The apps it may see and touch; `None`: all.
    pub apps: Option<Vec<AppName>>,
}

/// What somebody may do; each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    Viewer,
    Operator,
    Deployer,
    Admin,
}

/// Where a secret's bytes are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SecretRef {
    /// An absolute path. Made at start when it is missing and lies in `state_dir`.
    File(PathBuf),
    /// A variable of the supervisor's own environment.
    Env(String),
    /// A file in `$CREDENTIALS_DIRECTORY`, as systemd and podman provide it.
    Credential(String),
}

/// The supervisor's own log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    pub format: LogFormat,
    /// Daily files that are kept.
    pub keep: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum LogFormat {
    Text,
    Json,
}

/// What holds for all deploys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deploys {
    /// Deploys of different apps that may run at once.
    pub parallel: u32,
    /// Who fetches: the account of `fetch_user`; `None`: each app's own user.
    pub fetch_as: Option<Arc<Identity>>,
    /// Compare the branch's tip at every start?
    pub catch_up: bool,
}

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Of the user database; a bare number has none.
    pub name: Option<String>,
    pub home: PathBuf,
    pub shell: PathBuf,
}

/// A place in a file of the config, shown as `file:line:column`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<Path>,
    pub line: u32,
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}
