//! Fills a release from a mirror that it only reads: an index of its own, no hooks, nothing of git
//! left behind.

use std::{fs, path::Path};

use super::{TreeError, git::Git};
use crate::domain::model::CommitId;

/// Writes the commit's files into `release`, which must be empty.
pub(super) fn checkout(mirror: &Path, release: &Path, commit: &CommitId) -> Result<(), TreeError> {
    let shown = release.display();
    let mut entries = fs::read_dir(release).map_err(|e| TreeError::io(format!("the release {shown}"), e))?;
    if entries.next().is_some() {
        return Err(TreeError::Refused(format!("the release {shown} is not empty")));
    }
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|e| TreeError::io("random bytes", std::io::Error::other(e)))?;
    // A name that no commit can hold by intent.
    let index = release.join(format!(".everhook-index-{:032x}", u128::from_ne_bytes(random)));
    let git = Git::new(mirror).with_work_tree(release, index.clone());
    let written = run(&git, &["read-tree", "--reset", "-u", commit.as_str()], commit);
    match fs::remove_file(&index) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => written.and(Err(TreeError::io("git's index", e))),
        _ => written,
    }
}

fn run(git: &Git, args: &[&str], commit: &CommitId) -> Result<(), TreeError> {
    let done = git.run(args, b"")?;
    if done.code == Some(0) {
        return Ok(());
    }
    if done.says_damaged() {
        return Err(TreeError::Mirror(done.last_words()));
    }
    let short = commit.short();
    Err(TreeError::Refused(if done.says_full() {
        format!("the disk is full, so commit {short} could not be checked out: make room below the state folder")
    } else {
        format!("commit {short} could not be checked out: {}", done.last_words())
    }))
}
