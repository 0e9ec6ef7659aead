//! What the loop and the ledger's thread say to each other.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crate::{
    domain::{
        access::MadeToken,
        api::{AuditFilter, By, DeployView, EventKind, EventView, Refusal, Reply},
        deploy::accept::Snapshot,
        model::{AppName, At, CommitId, DeliveryId, DeployId, InstanceId, ReleaseId},
        outbox::Letter,
    },
    os::channel::Channel,
};

/// From the loop. What changes the store is kept until it is committed, however long that takes.
pub enum Command {
    /// The hooks channel of this listener; an older one of the same number is dropped.
    Channel { listener: usize, channel: Channel },
    /// The config as acceptance needs it; replaces the one before.
    Snapshot(Arc<Snapshot>),
    /// The apps whose deploys are told to a forge; replaces those before.
    Telling(BTreeSet<AppName>),
    /// What is live of this app now: a delivery of this commit repeats.
    Live { app: AppName, commit: Option<CommitId> },
    /// An app has another name now, and its rows with it.
    Rename { old: AppName, new: AppName },
    /// New deploys get numbers above this one: the highest that names a release on disk.
    Above(DeployId),
    /// A deploy that no delivery asked for. Answered by [`Told::Queued`].
    NewDeploy(NewDeploy),
    /// Judges a delivery's body as if it had come again. Answered by [`Told::Found`].
    Redeliver { ticket: u64, id: DeliveryId },
    /// Stores a deploy, with its steps, as it is now. With a ticket answered by [`Told::Committed`].
    Update { deploy: Box<DeployView>, attempts: u32, ticket: Option<u64> },
    /// Appends an event. Answered by [`Told::Event`].
    Event(NewEvent),
    /// Appends a row of the audit.
    Audit(NewAudit),
    /// Keeps a token that was made. Answered by [`Told::Tokens`] and [`Told::Found`].
    NewToken { ticket: u64, token: MadeToken },
    /// Forgets one of this name. Answered in the same way.
    RevokeToken { ticket: u64, name: String },
    /// This letter need not be sent any more.
    Forget { letter: i64 },
    /// All letters of these apps were put off for so long.
    Wait { apps: Vec<AppName>, by: Duration },
    /// Answered by [`Told::Found`], for [`Query::Letters`] by [`Told::Letters`], for [`Query::Unfinished`] by
    /// [`Told::Unfinished`].
    Query { ticket: u64, query: Query },
    /// The loop is alive: the answer to [`Told::Health`].
    Health,
    /// The start is over: commit what is there, which takes memory, and keep no cache. Answered by [`Told::Rests`].
    Rest,
    /// Commit what is there and end.
    Close,
}

/// A deploy asked for by hand, at the start or by a rollback.
#[derive(Debug, Clone)]
pub struct NewDeploy {
    pub ticket: u64,
    pub app: AppName,
    /// The full ref, where one is meant.
    pub ref_name: Option<String>,
    /// What a person typed for `--rev`.
    pub rev: Option<String>,
    pub commit: Option<CommitId>,
    /// The release on disk to go back to.
    pub release: Option<ReleaseId>,
    pub by: By,
    /// Who let go on what this one repeats.
    pub approved_by: Option<By>,
}

/// An event without its number.
#[derive(Debug, Clone)]
pub struct NewEvent {
    pub at: At,
    pub app: Option<AppName>,
    pub instance: Option<InstanceId>,
    pub kind: EventKind,
    pub from: Option<String>,
    pub to: Option<String>,
    pub cause: Option<String>,
    pub detail: Option<String>,
}

/// A row of the audit without its number.
#[derive(Debug, Clone)]
pub struct NewAudit {
    pub at: At,
    pub by: By,
    pub address: Option<String>,
    pub action: String,
    pub app: Option<String>,
    /// `done` or `refused`.
    pub outcome: String,
    pub reason: Option<String>,
}

/// A question to the store. `apps`: only what concerns one of these; `None`: everything.
#[derive(Debug, Clone)]
pub enum Query {
    /// The last `n`, oldest first, as a log reads.
    Events {
        apps: Option<Vec<AppName>>,
        /// Of this one alone.
        instance: Option<InstanceId>,
        n: u32,
        since: Option<At>,
        /// Only those with higher numbers.
        after: Option<i64>,
        /// Only those with lower numbers.
        before: Option<i64>,
    },
    /// The last `n`, newest first, without their steps' output.
    Deploys {
        apps: Option<Vec<AppName>>,
        n: u32,
        before: Option<DeployId>,
    },
    /// The reply's `log` is empty.
    Deploy {
        id: DeployId,
        apps: Option<Vec<AppName>>,
    },
    /// The last `n`, newest first.
    Deliveries {
        apps: Option<Vec<AppName>>,
        n: u32,
        before: Option<DeliveryId>,
    },
    Delivery {
        id: DeliveryId,
        apps: Option<Vec<AppName>>,
    },
    /// Oldest first.
    Audit(AuditFilter),
    /// The oldest `n` letters of these apps.
    Letters {
        apps: Vec<AppName>,
        n: usize,
    },
    /// Every deploy that has not ended, oldest first.
    Unfinished,
}

/// A deploy to go on with.
#[derive(Debug, Clone, PartialEq)]
pub struct Unfinished {
    pub deploy: DeployView,
    /// How often a crash has already resumed it.
    pub attempts: u32,
    /// As in [`NewDeploy`].
    pub rev: Option<String>,
}

/// To the loop. Whatever tells of a change comes after its commit.
#[derive(Debug)]
pub enum Told {
    /// A delivery was answered 202; these deploys are queued.
    Accepted {
        deploys: Vec<DeployView>,
    },
    /// Everything is committed and synced: none of the ledger's threads does anything more by itself.
    Rests,
    /// A listener asks whether the loop is alive; answer with [`Command::Health`].
    Health,
    Queued {
        ticket: u64,
        deploy: Box<DeployView>,
    },
    Committed {
        ticket: u64,
    },
    Event(EventView),
    Found {
        ticket: u64,
        reply: Result<Reply, Refusal>,
    },
    Unfinished {
        ticket: u64,
        deploys: Vec<Unfinished>,
    },
    /// The tokens that people made, all of them: told when the store is opened and at each change.
    Tokens(Vec<MadeToken>),
    /// There is something to tell to the forge of this app.
    Mail {
        app: AppName,
    },
    Letters {
        ticket: u64,
        letters: Vec<Letter>,
    },
    /// The listener closed its end.
    ChannelClosed {
        listener: usize,
    },
    /// The store takes nothing: deliveries get 503, commands wait. Told once, until `Recovered`.
    Trouble {
        message: String,
    },
    Recovered,
    /// Something that a person has to know: the database was damaged and moved aside.
    Alert {
        message: String,
    },
}
