//! The config as the rest of the house uses it: every default filled in, every path absolute, every
//! name resolved. `load` makes it out of the file's text.

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

use super::{Dialect, Schedule, Status, Watch};
use crate::domain::model::{AppName, Capabilities, Exit, Glob, Signal, Size};

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
    /// Of `bind`, for what is found out later.
    pub place: Option<Place>,
}

/// It is the same wherever it stands.
impl PartialEq for Http {
    fn eq(&self, other: &Self) -> bool {
        (self.bind, &self.serve, &self.trusted, &self.allow) == (other.bind, &other.serve, &other.trusted, &other.allow)
    }
}

/// What a listener serves. The dashboard and metrics come later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Serve {
    Hooks,
    Api,
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

/// One app.
#[derive(Debug, Clone, PartialEq)]
pub struct App {
    pub name: AppName,
    /// `None`: only deployed, never run.
    pub command: Option<Command>,
    /// `None`: the release where there is `deploy`, else the config's folder (already filled in then).
    pub directory: Option<PathBuf>,
    /// Whom instances run as. Like all that many apps have alike, there once for all of them.
    pub run_as: Arc<Identity>,
    /// Whom git's checkout, steps and release files belong to: never root.
    pub work_as: Arc<Identity>,
    /// Supplementary groups that the config names; `None`: the user's own.
    pub groups: Option<Vec<u32>>,
    /// `{instance}` in a value is the copy's number.
    pub env: BTreeMap<String, String>,
    /// Absolute paths, later ones win.
    pub env_file: Vec<PathBuf>,
    pub port: Option<u16>,
    /// How many copies run, at least 1.
    pub instances: u32,
    pub enabled: bool,
    pub after: Vec<AppName>,
    /// Like `after`, and it stops and starts again with them.
    pub requires: Vec<AppName>,
    /// Of the first copy; those of others differ at most in `{instance}`.
    pub ready: Ready,
    pub live: Option<Box<Live>>,
    pub restart: Arc<Restart>,
    pub on_failed: OnFailed,
    pub stop: Arc<Stop>,
    /// Held for it and passed to each process, by name.
    pub sockets: BTreeMap<String, Socket>,
    pub replace: Replace,
    pub reload: Reload,
    pub limits: Arc<Limits>,
    pub logs: Logs,
    /// A one-shot app that runs at these times only.
    pub schedule: Option<Box<Schedule>>,
    /// Changes of these restart it.
    pub watch: Option<Box<Watch>>,
    pub deploy: Option<Box<Deploy>>,
    /// An earlier name, whose instances, releases and history go on.
    pub was: Option<AppName>,
    /// What keeps this app alone from running (an unknown user, say), with its place in the file.
    /// The app is `failed` with this reason and the others run.
    pub problem: Option<String>,
    /// Where its fields stand, for what is found out later. The entry itself is `""`.
    pub places: Vec<(&'static str, Place)>,
}

impl App {
    /// Does a new release leave the one before running until it is proven?
    #[must_use]
    pub fn keeps_the_old_one(&self) -> bool {
        self.replace == Replace::StartFirst && self.reload == Reload::Restart
    }

    /// The apps that must be up before it starts.
    pub fn comes_after(&self) -> impl Iterator<Item = &AppName> {
        self.after.iter().chain(&self.requires)
    }

    /// Something that is wrong with this app alone, with the place of the field that asks for it.
    #[must_use]
    pub fn fault(&self, field: &str, message: &str) -> String {
        let place = |field: &str| self.places.iter().find(|(known, _)| *known == field).map(|(_, place)| place);
        match place(field).or_else(|| place("")) {
            Some(place) => format!("{message} ({place})"),
            None => message.to_owned(),
        }
    }
}

impl App {
    /// Does it speak systemd's protocol, and so need a socket for it?
    #[must_use]
    pub fn notifies(&self) -> bool {
        matches!(self.ready, Ready::Notify { .. }) || self.watchdog().is_some()
    }

    /// The watchdog that it must keep quiet.
    #[must_use]
    pub fn watchdog(&self) -> Option<&Live> {
        self.live.as_deref().filter(|live| live.probe == LiveProbe::Watchdog)
    }
}

/// A text of the config as a copy reads it: `{instance}` is its number.
#[must_use]
pub fn numbered(text: &str, instance: u32) -> String {
    text.replace("{instance}", &instance.to_string())
}

/// How a main process is started; `{instance}` in it is the copy's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Executed as it is; `everhook` as the first word is the running binary.
    List(Vec<String>),
    /// For `/bin/sh -c`, `exec` already put before a single simple command.
    Shell(String),
}

/// How an instance shows that it is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    Immediate,
    /// It has run for this long.
    After(Duration),
    /// It says so by systemd's protocol: sd_notify(3).
    Notify {
        within: Duration,
    },
    /// It writes a newline to this descriptor, as s6 knows it.
    Fd {
        number: i32,
        within: Duration,
    },
    /// A probe is answered.
    Probe {
        probe: Probe,
        within: Duration,
    },
}

impl Ready {
    /// How long it may take, where that is limited.
    #[must_use]
    pub fn within(&self) -> Option<Duration> {
        match self {
            Self::Immediate | Self::After(_) => None,
            Self::Notify { within } | Self::Fd { within, .. } | Self::Probe { within, .. } => Some(*within),
        }
    }
}

/// How a ready instance shows that it is still well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    pub probe: LiveProbe,
    /// From one probe to the next; for the watchdog, how often it must at least be heard of.
    pub every: Duration,
    /// So many in a row and it is restarted.
    pub failures: u32,
    /// Of a single probe.
    pub timeout: Duration,
}

impl Live {
    /// How long the watchdog may be silent; `every` is as the app may have changed it.
    #[must_use]
    pub fn silence(&self, every: Duration) -> Duration {
        every.saturating_mul(self.failures)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiveProbe {
    /// It says so itself, again and again: `WATCHDOG=1` of sd_notify(3).
    Watchdog,
    Probe(Probe),
}

/// A question to an instance. `{instance}` in its texts is the copy's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    Http(HttpProbe),
    Tcp(TcpProbe),
    /// Answered by an exit with 0.
    Exec(Command),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpProbe {
    /// To a literal address, `localhost` or a unix socket.
    pub url: String,
    /// The `Host` header; `None`: what the URL says.
    pub host: Option<String>,
    /// The status that counts.
    pub expect: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpProbe {
    pub addr: String,
}

/// An address that a probe connects to; names other than `localhost` are refused, since a probe
/// asks no DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeAddress {
    Socket(SocketAddr),
    /// Both families are tried.
    Localhost(u16),
    Unix(PathBuf),
}

/// When and how an ended instance starts again.
#[derive(Debug, Clone, PartialEq)]
pub struct Restart {
    pub policy: Policy,
    /// Exit codes that are no failure.
    pub success: Vec<i32>,
    pub first: Duration,
    pub factor: f64,
    pub max: Duration,
    /// Share of the delay that chance may add or take, 0 to 1.
    pub jitter: f64,
    /// Backoff starts over after an instance was ready for this long.
    pub reset_after: Duration,
    pub give_up: GiveUp,
    /// A failed instance is tried again after this; `None`: by a person or a deploy only.
    pub retry_after: Option<Duration>,
}

impl Restart {
    /// Is this exit a success by the config?
    #[must_use]
    pub fn is_success(&self, exit: Exit) -> bool {
        exit.code().is_some_and(|code| self.success.contains(&code))
    }
}

/// What a failed app means for everhook as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum OnFailed {
    Stay,
    Shutdown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Policy {
    Always,
    OnFailure,
    Never,
}

/// More than `restarts` restarts within `within` and the instance is `failed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GiveUp {
    pub restarts: u32,
    pub within: Duration,
}

/// How a tree is ended: each stage's signal, then its time; after the last, KILL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// At least one.
    pub stages: Vec<StopStage>,
    /// How long one that has been taken over from may finish what it has begun.
    pub drain: Duration,
}

/// Which of two processes of a copy comes first when one takes over from the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Replace {
    StopFirst,
    StartFirst,
}

/// How a release reaches a process that runs already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reload {
    /// Another process takes over from it.
    Restart,
    /// It reads what `current` leads to anew when it hears this signal.
    Signal(Signal),
    /// A command has it do so; run as the app.
    Exec(Command),
}

/// A socket that is bound and held for an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    pub address: SocketAddress,
    /// Of a unix socket's file.
    pub mode: u32,
    /// Whom a unix socket's file belongs to.
    pub owner: Option<(u32, u32)>,
    /// Others may bind the same port, the app's own processes say.
    pub reuse_port: bool,
    /// Connections that may wait to be accepted.
    pub backlog: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SocketAddress {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    /// Absolute.
    Unix(PathBuf),
}

impl std::fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Udp(address) => write!(f, "udp:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopStage {
    pub signal: Signal,
    pub timeout: Duration,
}

impl Stop {
    /// The longest a stop may take before KILL.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.stages.iter().map(|stage| stage.timeout).sum()
    }
}

/// What an instance may use, and what it may do. `None`: no limit but the machine's.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    /// Of the whole tree; over it the kernel kills.
    pub memory: Option<Size>,
    /// Over it the instance is restarted in order.
    pub memory_restart: Option<Size>,
    /// Processors' worth of time of the whole tree: 1.5 is one and a half.
    pub cpu: Option<f64>,
    /// Processes and threads of the whole tree.
    pub tasks: Option<u64>,
    /// Open files of each process.
    pub files: Option<u64>,
    /// Of a core file of each process.
    pub core: Option<Size>,
    /// -20 to 19.
    pub nice: Option<i32>,
    /// -1,000 to 1,000.
    pub oom_score: Option<i32>,
    pub umask: Option<u32>,
    /// All that it may ever have; given to a user that has none of its own.
    pub capabilities: Option<Capabilities>,
    pub no_new_privs: bool,
}

/// How an instance's output is written, and where it is cut into files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logs {
    pub rotate: Size,
    /// A file whose first line is older than this is rotated too.
    pub age: Option<Duration>,
    /// Rotated files that are kept beside the current one.
    pub keep: u32,
    /// Rotated files become `.gz`, all but the newest.
    pub compress: bool,
    pub form: Form,
    /// A longer line is cut into marked parts; counts where `form` is not raw.
    pub line_limit: Size,
}

impl Default for Logs {
    fn default() -> Self {
        let (rotate, line_limit) = (Size(50 << 20), Size(1 << 20));
        Self { rotate, age: None, keep: 10, compress: true, form: Form::Raw, line_limit }
    }
}

/// What a line is in a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// As the app wrote it.
    Raw,
    /// With the moment it began before it, RFC 3339.
    Stamped,
    /// A JSON object as `logs --json` shows it.
    Json,
}

/// How an app gets new commits.
#[derive(Debug, Clone)]
pub struct Deploy {
    /// URL, or absolute path.
    pub repo: String,
    pub access: Access,
    pub layout: Layout,
    /// Empty: the remote's default branch.
    pub on: Vec<Trigger>,
    /// Patterns of [`Globs::of_paths`]: only where such a file differs from what is live.
    pub paths: Vec<String>,
    /// Patterns of [`Globs::of_people`]: only where one of these wrote something that is not live.
    pub authors: Vec<String>,
    pub track: Track,
    /// How often the branch is looked at without being told.
    pub poll: Option<Duration>,
    pub secret: Option<SecretRef>,
    pub previous_secret: Option<SecretRef>,
    /// Whose webhooks are taken; `None`: of whoever is known by its headers.
    pub dialect: Option<Dialect>,
    pub check: Vec<Step>,
    pub build: Vec<Step>,
    /// The last ones before the release's instances are started.
    pub before_switch: Vec<Step>,
    /// Once the release is live, which their failure does not change.
    pub after_live: Vec<Step>,
    /// Once a deploy has failed or was rolled back.
    pub on_failure: Vec<Step>,
    /// The steps' own variables.
    pub env: BTreeMap<String, String>,
    /// Names of the app's variables that its steps have as well.
    pub env_from: Vec<String>,
    /// Paths inside a release, relative, no `..`, that are links into `shared/`; a folder where one
    /// ends in a slash.
    pub shared: Vec<PathBuf>,
    /// Folders inside a release, relative, no `..`, in which files of the releases before stay reachable.
    pub bridge: Vec<PathBuf>,
    /// Limit of a whole deploy up to the switch, and of each step that names none.
    pub timeout: Duration,
    /// How long a new release must stay healthy after it was ready.
    pub settle: Duration,
    /// What no person asked for awaits the approval of one.
    pub approve: bool,
    /// Patterns over files: where one that fits differs from what is live, somebody is asked before the switch.
    pub irreversible: Vec<String>,
    /// Whom it is told to.
    pub status: Option<Status>,
}

/// Where commits are put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// Each into a folder of its own; so many of those that were live are kept.
    Releases { keep: u32 },
    /// All into this working tree, which the app's user owns. Absolute.
    InPlace(PathBuf),
}

/// What proves us to a remote, and a remote to us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    pub ssh_key: Option<SecretRef>,
    /// Type and key of each that the host may have; empty: as the machine's known_hosts say.
    pub host_key: Vec<String>,
    pub https_token: Option<HttpsToken>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpsToken {
    pub user: String,
    pub token: SecretRef,
}

/// What starts a deploy. Names are those after `refs/heads/` or `refs/tags/`, in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trigger {
    /// A push to a branch.
    Push(Glob),
    /// A tag that is made or moved.
    Tag(Glob),
    /// A release that the forge publishes, of whatever tag.
    Release,
    /// A pipeline at the forge that succeeds for a branch.
    Pipeline(Glob),
}

/// Which commit of its ref a deploy takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Track {
    /// The one that was delivered.
    Commit,
    /// The newest at the time of the fetch.
    Head,
}

impl Deploy {
    /// The working tree that every commit is put into.
    #[must_use]
    pub fn tree(&self) -> Option<&Path> {
        match &self.layout {
            Layout::InPlace(tree) => Some(tree),
            Layout::Releases { .. } => None,
        }
    }

    /// Releases that were live and stay. None of them holds what a working tree has by now.
    #[must_use]
    pub fn kept(&self) -> u32 {
        match &self.layout {
            Layout::Releases { keep } => *keep,
            Layout::InPlace(_) => 1,
        }
    }

    /// The one branch that `on` names; `None`: none, several, or the remote's default branch.
    #[must_use]
    pub fn branch(&self) -> Option<&str> {
        let mut branches = self.on.iter().filter_map(|trigger| match trigger {
            Trigger::Push(glob) | Trigger::Pipeline(glob) => Some(glob),
            Trigger::Tag(_) | Trigger::Release => None,
        });
        let first = branches.next()?.single()?;
        branches.all(|other| other.as_str() == first).then_some(first)
    }

    /// Why its branch is not looked at without being told: there is no single one, or not every commit
    /// of it may be deployed. Such an app has no first deploy either.
    #[must_use]
    pub fn unlooked(&self) -> Option<&'static str> {
        if self.on.is_empty() {
            return None;
        }
        let Some(branch) = self.branch() else { return Some("`on` names no single branch") };
        (!self.takes_every(&format!("refs/heads/{branch}"))).then_some("`on` asks for a pipeline that succeeds")
    }

    /// Is any commit of this ref deployed, whatever became of its pipeline?
    #[must_use]
    pub fn takes_every(&self, ref_name: &str) -> bool {
        let branch = ref_name.strip_prefix("refs/heads/");
        let fits = |trigger: &Trigger| match trigger {
            Trigger::Push(glob) => branch.is_some_and(|name| glob.fits(name)),
            Trigger::Tag(_) | Trigger::Release => branch.is_none(),
            Trigger::Pipeline(_) => false,
        };
        self.on.is_empty() || self.on.iter().any(fits)
    }
}

impl PartialEq for Deploy {
    fn eq(&self, other: &Self) -> bool {
        let key = |d: &Self| {
            // As they are written: a slash at the end makes a difference here, and none to a path.
            let shared: Vec<_> = d.shared.iter().map(|path| path.clone().into_os_string()).collect();
            (
                (d.repo.clone(), d.access.clone(), d.layout.clone()),
                (d.secret.clone(), d.previous_secret.clone(), d.dialect.clone()),
                (
                    [&d.check, &d.build, &d.before_switch, &d.after_live, &d.on_failure].map(Clone::clone),
                    (d.env.clone(), d.env_from.clone()),
                    shared,
                    d.timeout,
                    d.settle,
                    d.approve,
                    d.irreversible.clone(),
                ),
            )
        };
        let which = |d: &Self| (d.on.clone(), d.paths.clone(), d.authors.clone(), d.track, d.poll);
        let rest = self.bridge == other.bridge && self.status == other.status;
        rest && which(self) == which(other) && key(self) == key(other)
    }
}

/// One command of a team in its deploy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// For `/bin/sh -e -c`.
    pub run: String,
    /// Shown instead of the command; `None`: the command.
    pub name: Option<String>,
    /// Patterns of [`Globs::of_paths`]: only where such a file differs from what is live; empty: always.
    pub changed: Vec<String>,
    pub timeout: Option<Duration>,
}

impl Step {
    /// What it is called.
    #[must_use]
    pub fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.run)
    }
}
