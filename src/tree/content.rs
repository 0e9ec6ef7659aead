//! What a commit holds, looked at before anything of it reaches a release.

use std::collections::BTreeMap;

use super::{TreeError, mirror::Mirror};
use crate::domain::model::CommitId;

/// How a file begins that stands for one in large file storage.
const POINTER: &str = "^version https://git-lfs.github.com/spec/v1$";
/// No pointer is longer (git-lfs, docs/spec.md).
const POINTER_LONGEST: u64 = 1024;

/// The bytes of its files. A commit with submodules or files in large file storage is refused: what
/// would be deployed of them is an empty folder or a pointer.
pub(super) fn measure(mirror: &Mirror, commit: &CommitId) -> Result<u64, TreeError> {
    let listed = mirror.git.must(&["ls-tree", "-r", "-l", "-z", "--full-tree", "--end-of-options", commit.as_str()])?;
    let mut sizes = BTreeMap::new();
    let mut attributes = Vec::new();
    for entry in listed.split(|b| *b == 0).filter(|entry| !entry.is_empty()) {
        let entry = String::from_utf8_lossy(entry);
        let (facts, path) = entry.split_once('\t').unwrap_or_default();
        let mut facts = facts.split_ascii_whitespace();
        let (mode, _, id, size) = (facts.next(), facts.next(), facts.next(), facts.next());
        if mode == Some("160000") {
            return Err(refusal(commit, path, "is a submodule: put its files into the repository itself"));
        }
        if path == ".gitattributes" || path.ends_with("/.gitattributes") {
            attributes.extend(id.map(str::to_owned));
        }
        sizes.insert(path.to_owned(), size.and_then(|size| size.parse::<u64>().ok()).unwrap_or(0));
    }
    if uses_lfs(mirror, &attributes)? {
        for path in pointers(mirror, commit)? {
            if sizes.get(&path).is_some_and(|size| *size <= POINTER_LONGEST) {
                return Err(refusal(
                    commit,
                    &path,
                    "is in large file storage (LFS): put the file itself into the repository",
                ));
            }
        }
    }
    Ok(sizes.values().sum())
}

fn refusal(commit: &CommitId, path: &str, what: &str) -> TreeError {
    TreeError::Refused(format!("{path:?} of commit {} {what}; everhook does not deploy such yet", commit.short()))
}

fn uses_lfs(mirror: &Mirror, attributes: &[String]) -> Result<bool, TreeError> {
    for id in attributes {
        let missing = || TreeError::Mirror(format!("{id} is not there"));
        let file = mirror.object(id)?.ok_or_else(missing)?;
        let text = String::from_utf8_lossy(&file.bytes);
        let rules = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        if rules.flat_map(str::split_ascii_whitespace).any(|word| word == "filter=lfs") {
            return Ok(true);
        }
    }
    Ok(false)
}

fn pointers(mirror: &Mirror, commit: &CommitId) -> Result<Vec<String>, TreeError> {
    let args = ["grep", "--no-color", "-l", "-z", "-G", "-e", POINTER, commit.as_str(), "--"];
    let done = mirror.git.run(&args, b"")?;
    let prefix = format!("{commit}:");
    match done.code {
        Some(0) => Ok(done
            .stdout
            .split(|b| *b == 0)
            .filter_map(|name| String::from_utf8_lossy(name).strip_prefix(&prefix).map(str::to_owned))
            .collect()),
        Some(1) => Ok(Vec::new()),
        _ => Err(TreeError::Mirror(done.last_words())),
    }
}
