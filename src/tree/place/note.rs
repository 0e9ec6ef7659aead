//! What everhook last did in a working tree: kept in its git folder, so that it goes where that goes.

use std::{
    fs::{self, File},
    io::{self, Write},
};

use serde::{Deserialize, Serialize};

use super::{Digests, Worktree};
use crate::{domain::model::CommitId, tree::TreeError};

/// In the git folder.
const NAME: &str = "everhook.json";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Note {
    pub commit: CommitId,
    /// Where the deploy found the tree.
    pub from: Option<CommitId>,
    /// Where `HEAD` was when the steps were done: they may have committed something.
    pub head: Option<CommitId>,
    /// The branch, as a full ref, that the tree was left on; `None`: on none.
    pub branch: Option<String>,
    /// The one that it was on before.
    pub before: Option<String>,
    /// What the steps changed of tracked files.
    pub changed: Digests,
    pub phase: Phase,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// Files are being written, or whoever wrote them was killed.
    Moving {
        from: Option<CommitId>,
    },
    /// Steps are at work: whatever changes of tracked files is their doing.
    Building,
    Built,
}

impl Note {
    /// Did whoever was at work not get to its end?
    pub(super) fn is_interrupted(&self) -> bool {
        !matches!(self.phase, Phase::Built)
    }

    pub(super) fn read(tree: &Worktree) -> Result<Option<Self>, TreeError> {
        let path = tree.git_dir.join(NAME);
        let failed = |e: io::Error| TreeError::io(path.display().to_string(), e);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(failed)?,
        };
        // Of a version that wrote other ones: all that differs is then a person's.
        Ok(serde_json::from_slice(&text).ok())
    }

    pub(super) fn write(&self, tree: &Worktree) -> Result<(), TreeError> {
        let path = tree.git_dir.join(NAME);
        let failed = |e: io::Error| TreeError::io(path.display().to_string(), e);
        let new = tree.git_dir.join(format!("{NAME}.new"));
        let text = serde_json::to_vec(self).map_err(|e| failed(e.into()))?;
        let mut file = File::create(&new).map_err(failed)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&new, &path).map_err(failed)
    }

    /// As if nothing had been written since.
    pub(super) fn restore(before: Option<&Self>, tree: &Worktree) -> Result<(), TreeError> {
        let path = tree.git_dir.join(NAME);
        match before {
            Some(note) => note.write(tree),
            None => fs::remove_file(&path).map_err(|e| TreeError::io(path.display().to_string(), e)),
        }
    }
}
