//! `deploy --dry-run` and `rollback --dry-run`: what would be done.

use serde::{Deserialize, Serialize};

use super::Compared;
use crate::domain::model::{AppName, CommitId, InstanceId, ReleaseId};

/// What a deploy or a rollback would do now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Preview {
    pub app: AppName,
    #[serde(rename = "ref")]
    pub ref_name: Option<String>,
    pub commit: Option<CommitId>,
    pub subject: Option<String>,
    pub author: Option<String>,
    /// What is live now.
    pub live_release: Option<ReleaseId>,
    pub live_commit: Option<CommitId>,
    /// The release on disk that a rollback goes to.
    pub release: Option<ReleaseId>,
    /// Why nothing would go live.
    pub reason: Option<String>,
    /// Why it would await approval before it switches.
    pub irreversible: Option<String>,
    /// From what is live to that commit.
    #[serde(flatten)]
    pub compared: Compared,
    /// In their order.
    pub steps: Vec<PlannedStep>,
    /// Those that would run the release.
    pub instances: Vec<InstanceId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlannedStep {
    /// As in a deploy's steps.
    pub name: String,
    pub command: String,
    /// It would not run, since no file that its `when` names differs.
    pub left_out: bool,
}
