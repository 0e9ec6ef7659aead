//! The JSON of SURFACE.md section 4. Absent is `null`, never missing; moments are RFC 3339 in UTC.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::domain::{
    config::Role,
    model::{AppName, At, CommitId, DeliveryId, DeployId, Exit, InstanceId, ReleaseId},
};

/// `status --json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Status {
    pub supervisor: SupervisorView,
    pub apps: Vec<AppView>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SupervisorView {
    pub pid: u32,
    pub version: String,
    pub since: At,
    pub config: String,
    /// The file on disk says something else than what runs.
    pub config_differs: bool,
    pub state_dir: String,
    pub listeners: Vec<ListenerView>,
    pub logger: LoggerView,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ListenerView {
    /// The address really bound; that of the config while it cannot be had.
    pub bind: String,
    pub serve: Vec<String>,
    /// `failed`: the address cannot be had, and is tried again.
    pub state: InstanceState,
    pub pid: Option<u32>,
    pub restarts: u64,
    /// Why it does not run, in a sentence.
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LoggerView {
    pub pid: Option<u32>,
    pub restarts: u64,
}

/// State of an instance, and of an app (which adds `deployed`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    Stopped,
    Waiting,
    Starting,
    Ready,
    Stopping,
    Backoff,
    Failed,
    Done,
    Draining,
    /// Of an app without a command that has a release.
    Deployed,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AppView {
    pub name: AppName,
    pub state: InstanceState,
    pub release: Option<ReleaseId>,
    pub commit: Option<CommitId>,
    pub behind: Option<u64>,
    pub frozen: Option<String>,
    /// Its deploys that await approval, oldest first.
    pub awaiting_approval: Vec<AwaitingView>,
    /// Why an app without a command has no release, or deploys none; why one that is ready runs what an earlier config
    /// says, or takes no webhooks in.
    pub reason: Option<String>,
    /// Where its files are watched.
    pub watch: Option<WatchView>,
    pub instances: Vec<InstanceView>,
}

/// A deploy that somebody is to decide about, and what is to be known for that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AwaitingView {
    pub deploy: DeployId,
    pub reason: Option<String>,
}

/// How well an app's files are watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WatchView {
    pub state: WatchState,
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WatchState {
    Watching,
    /// Some changes are not seen.
    Degraded,
    /// No change counts.
    Suspended,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceView {
    pub name: InstanceId,
    pub state: InstanceState,
    pub pid: Option<u32>,
    pub since: At,
    pub restarts: u64,
    /// Why it is not ready, in a sentence.
    pub reason: Option<String>,
    pub status: Option<String>,
    pub last_exit: Option<ExitView>,
    pub next_start_at: Option<At>,
    pub release: Option<ReleaseId>,
    pub sockets: BTreeMap<String, String>,
    pub memory_bytes: Option<u64>,
    pub cpu_s: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExitView {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub oom: bool,
    pub at: At,
}

/// One object of `events --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EventView {
    pub id: i64,
    pub at: At,
    pub app: Option<AppName>,
    pub instance: Option<InstanceId>,
    pub kind: EventKind,
    pub from: Option<String>,
    pub to: Option<String>,
    pub cause: Option<String>,
    pub detail: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    Instance,
    App,
    Deploy,
    Delivery,
    Listener,
    Logger,
    Reload,
    Supervisor,
}

/// One deploy of `history --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeployView {
    pub id: DeployId,
    pub app: AppName,
    pub state: DeployState,
    /// The step that runs, or that failed.
    pub step: Option<String>,
    pub reason: Option<String>,
    pub commit: Option<CommitId>,
    pub previous_commit: Option<CommitId>,
    #[serde(rename = "ref")]
    pub ref_name: Option<String>,
    pub subject: Option<String>,
    pub author: Option<String>,
    pub by: By,
    /// Who let it go on that awaited approval.
    pub approved_by: Option<By>,
    pub release: Option<ReleaseId>,
    pub superseded_by: Option<DeployId>,
    pub queued_at: At,
    pub started_at: Option<At>,
    pub ended_at: Option<At>,
    pub steps: Vec<StepView>,
}

impl DeployView {
    /// One that is queued now, without its number.
    #[must_use]
    pub fn new(app: &AppName, by: By, at: At) -> Self {
        Self {
            id: 0,
            app: app.clone(),
            state: DeployState::Queued,
            step: None,
            reason: None,
            commit: None,
            previous_commit: None,
            ref_name: None,
            subject: None,
            author: None,
            by,
            approved_by: None,
            release: None,
            superseded_by: None,
            queued_at: at,
            started_at: None,
            ended_at: None,
            steps: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DeployState {
    Accepted,
    Queued,
    AwaitingApproval,
    Fetching,
    Checking,
    Building,
    Switching,
    Verifying,
    Live,
    Failed,
    RolledBack,
    Superseded,
    Cancelled,
    Skipped,
}

impl DeployState {
    pub const ENDS: [Self; 6] =
        [Self::Live, Self::Failed, Self::RolledBack, Self::Superseded, Self::Cancelled, Self::Skipped];

    /// Has it ended?
    #[must_use]
    pub fn is_end(self) -> bool {
        Self::ENDS.contains(&self)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StepView {
    /// `fetch check build before_switch switch verify after_live`.
    pub name: String,
    pub command: Option<String>,
    pub state: StepState,
    pub duration_s: Option<f64>,
    pub exit: Option<StepExit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    Running,
    Done,
    Failed,
    TimedOut,
    Cancelled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StepExit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

impl From<Exit> for StepExit {
    fn from(exit: Exit) -> Self {
        Self { code: exit.code(), signal: exit.signal() }
    }
}

/// Who asked for something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum By {
    Delivery {
        id: DeliveryId,
    },
    Local {
        uid: u32,
        user: Option<String>,
    },
    Token {
        name: String,
    },
    First,
    CatchUp,
    Poll,
    /// A signal to the supervisor; sender as far as the kernel tells.
    Signal {
        pid: Option<u32>,
        uid: Option<u32>,
    },
    /// A request that proved nothing; only in the audit.
    Nobody,
}

impl By {
    /// Did somebody ask for it here, by hand?
    #[must_use]
    pub fn is_person(&self) -> bool {
        matches!(self, Self::Local { .. } | Self::Token { .. })
    }
}

/// One of `deliveries --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeliveryView {
    pub id: DeliveryId,
    pub sender_id: Option<String>,
    pub at: At,
    pub app: Option<String>,
    pub dialect: Option<String>,
    pub event: Option<String>,
    #[serde(rename = "ref")]
    pub ref_name: Option<String>,
    pub commit: Option<CommitId>,
    pub sender: Option<String>,
    pub address: String,
    pub state: DeliveryState,
    pub reason: Option<String>,
    pub deploys: Vec<DeployId>,
    pub duplicate_of: Option<DeliveryId>,
    /// The apps that it is about; not shown.
    #[serde(skip)]
    pub about: Vec<AppName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    Accepted,
    Skipped,
    Duplicate,
    Refused,
}

/// One of `audit --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditView {
    pub id: i64,
    pub at: At,
    pub by: By,
    pub address: Option<String>,
    pub action: String,
    pub app: Option<String>,
    /// `done` or `refused`.
    pub outcome: String,
    pub reason: Option<String>,
}

/// One of `token list --json`; what opens is never in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    pub name: String,
    pub role: Role,
    /// `null`: all, and the server itself.
    pub apps: Option<Vec<AppName>>,
    pub source: TokenSource,
    /// Who made it, where it does not stand in the config.
    pub by: Option<By>,
    pub created_at: Option<At>,
    pub expires_at: Option<At>,
    pub expired: bool,
}

/// Where a token comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenSource {
    /// `tokens` in supervisor.ron.
    Config,
    /// `token create`.
    Created,
}

/// One object of `logs --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LogLine {
    /// `null` in raw files.
    pub at: Option<At>,
    pub instance: String,
    /// `out` or `err`.
    pub stream: String,
    pub line: String,
}

/// The wire's spelling of a state, for tables and events.
macro_rules! spelled {
    ($kind:ident: $($variant:ident = $word:literal),*) => {
        impl $kind {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            #[must_use]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }
        impl std::fmt::Display for $kind {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }
        impl std::str::FromStr for $kind {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(format!("{text:?} is no state")),
                }
            }
        }
    };
}
spelled!(InstanceState: Stopped = "stopped", Waiting = "waiting", Starting = "starting", Ready = "ready",
    Stopping = "stopping", Backoff = "backoff", Failed = "failed", Done = "done", Draining = "draining",
    Deployed = "deployed");
spelled!(DeployState: Accepted = "accepted", Queued = "queued", AwaitingApproval = "awaiting_approval",
    Fetching = "fetching", Checking = "checking", Building = "building", Switching = "switching",
    Verifying = "verifying", Live = "live", Failed = "failed", RolledBack = "rolled_back",
    Superseded = "superseded", Cancelled = "cancelled", Skipped = "skipped");
spelled!(StepState: Running = "running", Done = "done", Failed = "failed", TimedOut = "timed_out",
    Cancelled = "cancelled");
spelled!(DeliveryState: Accepted = "accepted", Skipped = "skipped", Duplicate = "duplicate", Refused = "refused");
spelled!(EventKind: Instance = "instance", App = "app", Deploy = "deploy", Delivery = "delivery",
    Listener = "listener", Logger = "logger", Reload = "reload", Supervisor = "supervisor");

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! are_the_wires {
        ($($kind:ident),*) => {$(
            for state in $kind::ALL {
                assert_eq!(serde_json::to_value(state).unwrap(), state.word());
                assert_eq!(state.word().parse().as_ref(), Ok(state));
            }
            assert!("elsewhere".parse::<$kind>().is_err());
        )*};
    }

    #[test]
    fn what_is_shown_is_spelled_as_on_the_wire() {
        are_the_wires!(InstanceState, DeployState, StepState, DeliveryState, EventKind);
    }
}
