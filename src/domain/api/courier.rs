//! The courier's channel: the supervisor hands over what is to be told, and hears what came of it.

use serde::{Deserialize, Serialize};

use crate::domain::{
    config::Forge,
    model::{CommitId, DeployId},
};

/// To the courier: a commit's status for a forge. The token's bytes follow in the frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Post {
    /// The answer carries it.
    pub ticket: u64,
    pub forge: Forge,
    /// Base of the forge's API, without a slash at its end.
    pub api: String,
    /// Path of the repository there: `owner/name`, at GitLab with all its groups.
    pub project: String,
    /// Tells this status from others of the same commit.
    pub context: String,
    pub status: CommitStatus,
}

/// What became of a commit, for its forge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitStatus {
    pub commit: CommitId,
    /// The full ref, where one is known.
    #[serde(rename = "ref")]
    pub ref_name: Option<String>,
    pub deploy: DeployId,
    pub state: StatusState,
    /// One line for people, of any length.
    pub description: String,
}

/// Each forge has its own words for these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatusState {
    /// It waits for its turn, or for somebody's word.
    Queued,
    Running,
    /// It is live, or there was nothing to deploy.
    Success,
    /// Its own checks or its build say no.
    Failure,
    /// Something else kept it from going live.
    Error,
    /// Nobody wants it any more.
    Cancelled,
}

/// From the courier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Posted {
    pub ticket: u64,
    pub outcome: Outcome,
}

/// What came of an attempt. No word of it holds the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The forge has it.
    Delivered,
    /// Another attempt may succeed; not before so many seconds where the forge says so.
    Later { why: String, after_s: Option<u64> },
    /// No attempt will: what the forge said.
    Refused { why: String },
}
