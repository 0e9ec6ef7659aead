//! What clients ask of the supervisor, over `control.sock` and people channels.
//!
//! On `control.sock` a client sends one [`Ask`] frame; the supervisor answers with frames of
//! [`Said`]: any number of `Progress` and stream items, then one `Done` or `Refused`. A people channel carries
//! many questions at once; beside one whose answer is a stream comes a socket, on which it is answered.
//! Followed events begin with one `Done`, of the past.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    AuditView, DeliveryView, DeployView, EventView, InstanceState, LogPlace, Metrics, Preview, Status, StepView,
    TokenView,
};
use crate::domain::{
    config::Role,
    model::{AppName, At, Bearer, DeliveryId, DeployId, Exit, InstanceId, ReleaseId, Signal, show_span},
};

/// One question.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ask {
    /// Names the question on this channel.
    pub ticket: u64,
    /// People channels only: the bearer token. On `control.sock` the peer's uid counts.
    pub token: Option<Bearer>,
    /// People channels only: the client's address.
    pub address: Option<String>,
    /// Answer when the end state is reached (or surely missed), not when the change is begun.
    pub wait: bool,
    /// Give up waiting after this; the work goes on.
    pub timeout: Option<Duration>,
    pub request: Request,
}

/// Apps and instances that a request is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    App(AppName),
    Instance(InstanceId),
    All,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Status {
        apps: Vec<Target>,
    },
    Events {
        app: Option<AppName>,
        /// Of this instance of it alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        number: Option<u32>,
        n: u32,
        since: Option<At>,
        follow: bool,
        /// Only those with higher numbers: how whoever followed them goes on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<i64>,
        /// Only those with lower numbers: the page before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<i64>,
    },
    History {
        app: Option<AppName>,
        n: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<DeployId>,
    },
    Deploy {
        id: DeployId,
    },
    Deliveries {
        app: Option<AppName>,
        n: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<DeliveryId>,
    },
    Delivery {
        id: DeliveryId,
    },
    Audit(AuditFilter),
    /// Makes a token; the answer alone has it.
    TokenCreate {
        name: String,
        role: Role,
        /// The apps it is for; empty: all, and the server itself.
        apps: Vec<AppName>,
        expires: Option<Duration>,
    },
    Tokens,
    TokenRevoke {
        name: String,
    },
    /// The supervisor hands the client's own socket to the logger, which sends [`super::LogFrame`]s
    /// and closes it.
    Logs(LogsRequest),
    /// Last lines of a deploy's log.
    DeployLog {
        id: DeployId,
        n: u32,
    },
    Start {
        apps: Vec<Target>,
    },
    /// `confirmed`: the client knows whom it hurts.
    Stop {
        apps: Vec<Target>,
        confirmed: bool,
    },
    Restart {
        apps: Vec<Target>,
    },
    Signal {
        app: Target,
        signal: Signal,
    },
    /// Answers when the app is in this state.
    WaitFor {
        app: Target,
        state: InstanceState,
    },
    /// Runs a command as the app. The frame carries its three streams, and when its connection closes
    /// the command is ended. Only on `control.sock`.
    Exec {
        app: Target,
        command: Vec<String>,
    },
    /// `dry_run`: change nothing, and answer with what would be done.
    DeployApp {
        app: AppName,
        rev: Option<String>,
        #[serde(default, skip_serializing_if = "is_false")]
        dry_run: bool,
    },
    Rollback {
        app: AppName,
        to: Option<ReleaseId>,
        #[serde(default, skip_serializing_if = "is_false")]
        dry_run: bool,
    },
    /// Ends a deploy that has not switched yet.
    Cancel {
        id: DeployId,
    },
    /// Lets a deploy go on that awaits approval.
    Approve {
        id: DeployId,
    },
    /// Nothing of the app is deployed any more, but a rollback.
    Freeze {
        app: AppName,
        why: String,
    },
    Unfreeze {
        app: AppName,
    },
    /// Judges the body of an accepted delivery as if it had come again.
    Redeliver {
        id: DeliveryId,
    },
    /// Removes these of the folders that belong to no app of the config; `None`: tells which there are.
    Prune {
        paths: Option<Vec<PathBuf>>,
    },
    /// What a reload of this config text would do. The text is the client's reading of the file.
    Plan,
    Reload,
    Shutdown {
        now: bool,
    },
    /// Another binary in the supervisor's place: the one that comes along as a descriptor, else the one that is
    /// installed by now.
    Upgrade,
    /// Everything that is measured; the one question of a metrics channel.
    Metrics,
}

impl Request {
    /// The word of SURFACE.md for the audit and for messages.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Status { .. } => "status",
            Self::Events { .. } => "events",
            Self::History { .. } | Self::Deploy { .. } => "history",
            Self::Deliveries { .. } | Self::Delivery { .. } => "deliveries",
            Self::Audit(_) => "audit",
            Self::TokenCreate { .. } => "token create",
            Self::Tokens => "token list",
            Self::TokenRevoke { .. } => "token revoke",
            Self::Logs(_) | Self::DeployLog { .. } => "logs",
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Restart { .. } => "restart",
            Self::Signal { .. } => "signal",
            Self::WaitFor { .. } => "wait",
            Self::Exec { .. } => "exec",
            Self::DeployApp { .. } => "deploy",
            Self::Rollback { .. } => "rollback",
            Self::Cancel { .. } => "cancel",
            Self::Approve { .. } => "approve",
            Self::Freeze { .. } => "freeze",
            Self::Unfreeze { .. } => "unfreeze",
            Self::Redeliver { .. } => "redeliver",
            Self::Prune { .. } => "prune",
            Self::Plan => "check",
            Self::Reload => "reload",
            Self::Shutdown { .. } => "shutdown",
            Self::Upgrade => "upgrade",
            Self::Metrics => "metrics",
        }
    }

    /// The apps that it names, whether they exist or not.
    #[must_use]
    pub fn named(&self) -> Vec<&AppName> {
        let named = |target| match target {
            &Target::All => None,
            Target::App(app) => Some(app),
            Target::Instance(id) => Some(&id.app),
        };
        match self {
            Self::Status { apps } | Self::Start { apps } | Self::Stop { apps, .. } | Self::Restart { apps } => {
                apps.iter().filter_map(named).collect()
            }
            Self::Logs(logs) => logs.apps.iter().filter_map(named).collect(),
            Self::Signal { app, .. } | Self::WaitFor { app, .. } | Self::Exec { app, .. } => {
                named(app).into_iter().collect()
            }
            Self::DeployApp { app, .. }
            | Self::Rollback { app, .. }
            | Self::Freeze { app, .. }
            | Self::Unfreeze { app } => vec![app],
            Self::Events { app, .. } | Self::History { app, .. } | Self::Deliveries { app, .. } => app.iter().collect(),
            Self::Deploy { .. }
            | Self::Cancel { .. }
            | Self::Approve { .. }
            | Self::Redeliver { .. }
            | Self::Delivery { .. }
            | Self::Audit(_)
            | Self::TokenCreate { .. }
            | Self::Tokens
            | Self::TokenRevoke { .. }
            | Self::DeployLog { .. }
            | Self::Prune { .. }
            | Self::Plan
            | Self::Reload
            | Self::Shutdown { .. }
            | Self::Upgrade
            | Self::Metrics => Vec::new(),
        }
    }

    /// What the audit says of it beyond its verb and its app.
    #[must_use]
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::Cancel { id } | Self::Approve { id } => Some(format!("deploy {id}")),
            Self::Redeliver { id } => Some(format!("delivery {id}")),
            Self::Freeze { why, .. } => Some(why.clone()),
            Self::TokenCreate { name, role, apps, expires } => {
                let scope = if apps.is_empty() {
                    "all apps".to_owned()
                } else {
                    apps.iter().map(AppName::as_str).collect::<Vec<_>>().join(", ")
                };
                let until = expires.map_or_else(String::new, |span| format!(", for {}", show_span(span)));
                Some(format!("{name}: {role:?} for {scope}{until}"))
            }
            Self::TokenRevoke { name } => Some(name.clone()),
            Self::Prune { paths: Some(paths) } => {
                Some(paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "))
            }
            _ => None,
        }
    }

    /// The role it needs; for requests about apps, in each of these apps.
    #[must_use]
    pub fn role(&self) -> Role {
        match self {
            Self::Start { .. } | Self::Stop { .. } | Self::Restart { .. } | Self::Signal { .. } => Role::Operator,
            Self::DeployApp { .. }
            | Self::Rollback { .. }
            | Self::Cancel { .. }
            | Self::Approve { .. }
            | Self::Freeze { .. }
            | Self::Unfreeze { .. }
            | Self::Redeliver { .. } => Role::Deployer,
            Self::Prune { .. }
            | Self::Plan
            | Self::Reload
            | Self::Shutdown { .. }
            | Self::Upgrade
            | Self::Audit(_)
            | Self::TokenCreate { .. }
            | Self::Tokens
            | Self::TokenRevoke { .. }
            | Self::Exec { .. } => Role::Admin,
            _ => Role::Viewer,
        }
    }

    /// Is its answer a stream, which needs a connection of its own?
    #[must_use]
    pub fn streams(&self) -> bool {
        matches!(self, Self::Events { follow: true, .. } | Self::Logs(_))
    }

    /// Does it change something? Then it stands in the audit.
    #[must_use]
    pub fn changes(&self) -> bool {
        let looks = match self {
            Self::Plan | Self::Audit(_) | Self::Tokens | Self::Prune { paths: None } => true,
            Self::DeployApp { dry_run, .. } | Self::Rollback { dry_run, .. } => *dry_run,
            _ => false,
        };
        self.role() >= Role::Operator && !looks
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// Which rows of the audit: those that fit everything that is given, the last `n` of them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct AuditFilter {
    pub since: Option<At>,
    pub n: u32,
    /// About this app; rows of apps that are gone are found too.
    pub app: Option<AppName>,
    /// By the user or the token of this name.
    pub by: Option<String>,
    /// The verb, such as `restart`.
    pub action: Option<String>,
    /// `done` or `refused`.
    pub outcome: Option<String>,
}

/// Which output to show.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LogsRequest {
    /// Empty: all apps.
    pub apps: Vec<Target>,
    pub follow: bool,
    /// Last lines of each stream; `None`: all.
    pub n: Option<u32>,
    /// The run before the current one.
    pub previous: bool,
    /// The error stream alone.
    pub stderr: bool,
    /// Written since this moment.
    pub since: Option<At>,
    /// With this regular expression in them.
    pub grep: Option<String>,
    /// The log of this deploy instead of apps' output.
    pub deploy: Option<DeployId>,
    /// Where a client goes on that lost its logger.
    pub resume: Vec<LogMark>,
}

/// How far a client has read a log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogMark {
    pub instance: String,
    pub stream: String,
    pub place: LogPlace,
}

/// A folder of an app that the config has no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remains {
    pub path: PathBuf,
    pub size_bytes: u64,
}

/// From the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Said {
    pub ticket: u64,
    pub what: Saying,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Saying {
    /// A line for whoever waits.
    Progress(Progress),
    /// One item of a followed stream.
    Event(EventView),
    Done(Reply),
    Refused(Refusal),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// An instance went into another state.
    Instance(EventView),
    /// A deploy went on: the whole of it, as far as it is.
    Deploy(Box<DeployView>),
    /// A step of it began or ended.
    Step { deploy: DeployId, step: StepView },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Status(Box<Status>),
    Events(Vec<EventView>),
    Deploys(Vec<DeployView>),
    /// One deploy and the last lines of its log.
    Deploy {
        deploy: Box<DeployView>,
        log: Vec<String>,
    },
    Deliveries(Vec<DeliveryView>),
    Delivery(Box<DeliveryView>),
    Audit(Vec<AuditView>),
    /// A new token, told this once.
    Token {
        name: String,
        token: Bearer,
        expires_at: Option<At>,
    },
    Tokens(Vec<TokenView>),
    Lines(Vec<String>),
    /// How a command ended.
    Exited {
        exit: Exit,
    },
    /// A change was begun (or, with `wait`, is so now); `deploy` where it is about one, and its `app`.
    Changed {
        app: Option<AppName>,
        deploy: Option<DeployId>,
        message: String,
    },
    Redelivered(Redelivered),
    /// What belongs to no app of the config any more.
    Remains(Vec<Remains>),
    /// What a deploy or a rollback would do.
    Preview(Box<Preview>),
    /// What a reload would do, or did, a line each.
    Plan {
        lines: Vec<String>,
    },
    Metrics(Box<Metrics>),
}

/// What became of a delivery that was judged anew: what its sender would have been told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Redelivered {
    /// Its new number.
    pub delivery: DeliveryId,
    pub deploys: Vec<DeployOf>,
    pub duplicate_of: Option<DeliveryId>,
    /// Why nothing is deployed.
    pub reason: Option<String>,
}

/// A deploy and its app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeployOf {
    pub app: AppName,
    pub id: DeployId,
}

/// A request that was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub kind: RefusalKind,
    /// One sentence: what was wrong and what to do.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The token is unknown: HTTP 401.
    Unknown,
    /// Too many unknown tokens came from there; this one was not looked at: HTTP 429.
    TooMany { wait_s: u32 },
    /// The role is too low: HTTP 403, exit 5.
    Forbidden,
    /// No such app, deploy, release, delivery: HTTP 404, exit 4.
    NotFound,
    /// Tried or refused, and not so: HTTP 409, exit 1.
    Failed,
    /// `stop` would hurt others and was not confirmed: exit 2 without a terminal.
    NeedsConfirmation,
    /// HTTP 400, exit 2.
    BadRequest,
    /// Exit 6.
    TimedOut,
    /// The supervisor is shutting down: HTTP 503.
    Unavailable,
}

impl Refusal {
    #[must_use]
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}
