//! What the process is told that becomes a step of a deploy, as JSON on its command line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `everhook step '<this as JSON>'`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StepTask {
    /// For `/bin/sh -e -c`.
    pub run: String,
    /// Files and folders that it must not open, with all below them: other apps, secrets.
    pub hidden: Vec<PathBuf>,
    /// What it may read of what is hidden.
    pub reads: Vec<PathBuf>,
    /// What it may also write.
    pub writes: Vec<PathBuf>,
    /// Folder of its own for what it forgets, and for nobody's after this deploy.
    pub tmp: PathBuf,
}
