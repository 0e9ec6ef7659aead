//! Bodies that HTTP alone has: SURFACE.md section 5.

use serde::{Deserialize, Serialize};

use super::DeployOf;
use crate::domain::model::{AppName, DeliveryId, DeployId, ReleaseId};

/// What the sender of a delivery is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Heard<'a> {
    Accepted { delivery: DeliveryId, deploys: Vec<DeployOf> },
    Skipped { delivery: DeliveryId, skipped: &'a str },
    Duplicate { delivery: DeliveryId, duplicate_of: Option<DeliveryId> },
    Pong { pong: bool },
}

/// Why a request is not answered with what it asked for (RFC 9457).
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Problem"))]
pub struct ProblemView<'a> {
    pub r#type: &'static str,
    /// The status in words.
    pub title: &'a str,
    pub status: u16,
    /// One sentence: what was wrong and what to do.
    pub detail: &'a str,
}

impl<'a> ProblemView<'a> {
    #[must_use]
    pub fn new(status: u16, title: &'a str, detail: &'a str) -> Self {
        Self { r#type: "about:blank", title, status, detail }
    }
}

/// A change was begun, or is so where somebody waited for that.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Changed"))]
pub struct ChangedView {
    pub action: &'static str,
    pub app: Option<AppName>,
    /// The deploy that it is about.
    pub deploy: Option<DeployId>,
}

/// Of `…/deploy`.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DeployBody {
    /// A branch, a tag or a commit; else what would be deployed by itself.
    #[serde(default)]
    pub rev: Option<String>,
    /// Change nothing, and answer with what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// Of `…/rollback`.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RollbackBody {
    /// Else the release before the live one.
    #[serde(default)]
    pub to: Option<ReleaseId>,
    /// Change nothing, and answer with what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// Of `…/freeze`.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FreezeBody {
    /// One line, for whoever finds it so.
    #[cfg_attr(test, schemars(regex(pattern = r"^(?=.*\S)[^\x00-\x1f\x7f-\x9f]{1,500}$")))]
    pub why: String,
}

/// Of a change that there is nothing to say of.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NoBody {}
