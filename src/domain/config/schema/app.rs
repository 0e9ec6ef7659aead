//! One app: how it is run, kept up, ended, limited and logged.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Deploy, Identity, Live, LiveProbe, Place, Ready};
use crate::domain::{
    config::{Schedule, Watch},
    model::{AppName, Capabilities, Exit, Signal, Size},
};

/// One app.
#[derive(Debug, Clone, PartialEq)]
pub struct App {
    pub name: AppName,
    /// `None`: only deployed, never run.
    pub command: Option<Command>,
    /// `None`: the release where there is `deploy`, else the config's folder (already filled in then).
    pub directory: Option<Arc<Path>>,
    /// Whom instances run as. Like all that many apps have alike, there once for all of them.
    pub run_as: Arc<Identity>,
    /// Whom git's checkout, steps and release files belong to: never root.
    pub work_as: Arc<Identity>,
    /// Supplementary groups that the config names; `None`: the user's own.
    pub groups: Option<Box<[u32]>>,
    /// `{instance}` in a value is the copy's number.
    pub env: BTreeMap<String, String>,
    /// Absolute paths, later ones win.
    pub env_file: Box<[PathBuf]>,
    pub port: Option<u16>,
    /// How many copies run, at least 1.
    pub instances: u32,
    pub enabled: bool,
    pub after: Box<[AppName]>,
    /// Like `after`, and it stops and starts again with them.
    pub requires: Box<[AppName]>,
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
    pub logs: Arc<Logs>,
    /// A one-shot app that runs at these times only.
    pub schedule: Option<Box<Schedule>>,
    /// Changes of these restart it.
    pub watch: Option<Box<Watch>>,
    pub deploy: Option<Box<Deploy>>,
    /// An earlier name, whose instances, releases and history go on.
    pub was: Option<AppName>,
    /// What keeps this app alone from running (an unknown user, say), with its place in the file.
    /// The app is `failed` with this reason and the others run.
    pub problem: Option<Box<str>>,
    /// Where its fields stand, for what is found out later. The entry itself is `""`.
    pub places: Box<[(&'static str, Place)]>,
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
    /// The uids of its own users, whose its files may be.
    #[must_use]
    pub fn owners(&self) -> [u32; 2] {
        [self.run_as.uid, self.work_as.uid]
    }

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
    List(Words),
    /// For `/bin/sh -c`, `exec` already put before a single simple command.
    Shell(String),
}

/// The words of a command line. In one text, where each is ended by the NUL that none of them can hold: there may be
/// thousands of them, and each would have its own piece of memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Words(Box<str>);

impl Words {
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split_terminator('\0')
    }
}

impl<'a> FromIterator<&'a str> for Words {
    /// What comes after a NUL in a word is left out: no kernel would see it.
    fn from_iter<T: IntoIterator<Item = &'a str>>(words: T) -> Self {
        let until_nul = |word: &'a str| word.split('\0').next().unwrap_or_default();
        let ended = words.into_iter().flat_map(|word| [until_nul(word), "\0"]);
        Self(ended.collect::<String>().into())
    }
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
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
    /// A command has it do so; run as the app. Boxed, as few have one.
    Exec(Box<Command>),
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

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Udp(address) => write!(f, "udp:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopStage {
    /// Asks the main process to leave, run as the app; `None`: the signal does. Boxed, as few have one.
    pub command: Option<Box<Command>>,
    /// What is left of the tree without its main process hears it in any case.
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
