//! What a move of files that was killed has left: at each path that differs between the two commits
//! what one of them has there, nothing, or the beginning of a file.

use std::{collections::BTreeMap, fs, io, os::unix::ffi::OsStrExt};

use super::{EMPTY, Note, Phase, Worktree};
use crate::{domain::model::CommitId, tree::TreeError};

/// The paths that may be half moved, and whether what is there is the move's doing.
#[derive(Default)]
pub(super) struct Half {
    paths: BTreeMap<String, Left>,
}

struct Left {
    /// The first commit has nothing there.
    added: bool,
    ours: bool,
    there: bool,
}

/// A path in two commits.
struct Change {
    path: String,
    old: Side,
    new: Side,
}

/// Mode and object.
struct Side {
    mode: String,
    id: String,
}

impl Half {
    /// `head`: where `HEAD` is. Once that is at the new commit, its files were all written.
    pub(super) fn left(tree: &Worktree, note: Option<&Note>, head: Option<&CommitId>) -> Result<Self, TreeError> {
        let Some(Note { phase: Phase::Moving { from }, commit, .. }) = note else { return Ok(Self::default()) };
        if head == Some(commit) && from.as_ref() != Some(commit) {
            return Ok(Self::default());
        }
        let from = from.as_ref().map_or(EMPTY, CommitId::as_str);
        let changes = changes(tree, from, commit)?;
        let contents = contents(tree, &changes)?;
        let judged = changes.into_iter().map(|change| {
            let left = judge(tree, &change, &contents);
            (change.path, left)
        });
        Ok(Self { paths: judged.collect() })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    pub(super) fn is_ours(&self, path: &str) -> bool {
        self.paths.get(path).is_some_and(|left| left.ours)
    }

    /// Where somebody else wrote since.
    pub(super) fn foreign(&self) -> impl Iterator<Item = String> + '_ {
        self.paths.iter().filter(|(_, left)| !left.ours).map(|(path, _)| path.clone())
    }

    /// Removes what the new commit brought: it stands in no index yet.
    pub(super) fn remove_added(&self, tree: &Worktree) -> Result<(), TreeError> {
        for (path, _) in self.paths.iter().filter(|(_, left)| left.added && left.there) {
            let file = tree.path.join(path);
            match fs::remove_file(&file) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(TreeError::io(file.display().to_string(), e));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn changes(tree: &Worktree, from: &str, to: &CommitId) -> Result<Vec<Change>, TreeError> {
    let args = ["diff-tree", "-r", "-z", "--no-renames", "--no-abbrev", "--no-commit-id", from, to.as_str()];
    let listed = tree.ask(&args, b"")?;
    let mut parts = listed.split(|b| *b == 0).filter(|part| !part.is_empty());
    let mut changes = Vec::new();
    while let (Some(facts), Some(path)) = (parts.next(), parts.next()) {
        let facts = String::from_utf8_lossy(facts);
        let facts: Vec<&str> = facts.trim_start_matches(':').split(' ').collect();
        let side = |mode: usize, id: usize| Side { mode: facts[mode].to_owned(), id: facts[id].to_owned() };
        if facts.len() == 5 {
            let path = String::from_utf8_lossy(path).into_owned();
            changes.push(Change { path, old: side(0, 2), new: side(1, 3) });
        }
    }
    Ok(changes)
}

/// What each of these objects is as a file at its path.
fn contents(tree: &Worktree, changes: &[Change]) -> Result<BTreeMap<(String, String), Vec<u8>>, TreeError> {
    let sides = changes.iter().flat_map(|change| [(&change.path, &change.old), (&change.path, &change.new)]);
    let wanted: Vec<_> = sides.filter(|(path, side)| side.mode != "000000" && !path.contains('\n')).collect();
    let asked: String = wanted.iter().map(|(path, side)| format!("{} {path}\n", side.id)).collect();
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let said = tree.ask(&["cat-file", "--filters", "--batch"], asked.as_bytes())?;
    let mut rest = said.as_slice();
    let mut found = BTreeMap::new();
    for (path, side) in wanted {
        let Some(end) = rest.iter().position(|b| *b == b'\n') else { break };
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 1..];
        let Some(size) = head.rsplit(' ').next().and_then(|size| size.parse::<usize>().ok()) else { continue };
        if size >= rest.len() {
            break;
        }
        found.insert((path.clone(), side.id.clone()), rest[..size].to_vec());
        rest = &rest[size + 1..];
    }
    Ok(found)
}

fn judge(tree: &Worktree, change: &Change, contents: &BTreeMap<(String, String), Vec<u8>>) -> Left {
    let file = tree.path.join(&change.path);
    let added = change.old.mode == "000000";
    let Ok(facts) = fs::symlink_metadata(&file) else { return Left { added, ours: true, there: false } };
    // What is in a folder is judged by itself.
    if facts.is_dir() {
        return Left { added, ours: true, there: false };
    }
    let is_link = facts.is_symlink();
    let bytes = if is_link {
        fs::read_link(&file).map(|target| target.as_os_str().as_bytes().to_vec())
    } else {
        fs::read(&file)
    };
    let Ok(bytes) = bytes else { return Left { added, ours: false, there: true } };
    let of = |side: &Side| {
        let fits = (side.mode == "120000") == is_link;
        contents.get(&(change.path.clone(), side.id.clone())).filter(|_| fits)
    };
    let ours =
        of(&change.old).is_some_and(|old| *old == bytes) || of(&change.new).is_some_and(|new| new.starts_with(&bytes));
    Left { added, ours, there: true }
}
