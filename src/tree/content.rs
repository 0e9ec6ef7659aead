//! What a commit holds, looked at before anything of it reaches a release.

use std::{borrow::Cow, collections::BTreeMap};

use data_encoding::HEXLOWER;

use super::{TreeError, mirror::Mirror};
use crate::domain::model::CommitId;

/// How a file begins that stands for one in large file storage.
const POINTER: &str = "^version https://git-lfs.github.com/spec/v1$";
/// No pointer is longer (git-lfs, docs/spec.md).
const POINTER_LONGEST: u64 = 1024;

/// The bytes of its files. A commit with submodules or files in large file storage is refused: what
/// would be deployed of them is an empty folder or a pointer.
pub(super) fn measure(mirror: &Mirror, commit: &CommitId) -> Result<u64, TreeError> {
    let mut files = Vec::new();
    walk(mirror, commit, &format!("{commit}^{{tree}}"), "", &mut files)?;
    let (paths, ids): (Vec<String>, Vec<String>) = files.into_iter().unzip();
    let sizes = mirror.sizes(&ids)?;
    let is_rules = |path: &str| path == ".gitattributes" || path.ends_with("/.gitattributes");
    let attributes: Vec<_> = paths.iter().zip(&ids).filter(|(path, _)| is_rules(path)).map(|(_, id)| id).collect();
    if uses_lfs(mirror, &attributes)? {
        let sizes: BTreeMap<&str, u64> = paths.iter().map(String::as_str).zip(sizes.iter().copied()).collect();
        for path in pointers(mirror, commit)? {
            if sizes.get(path.as_str()).is_some_and(|size| *size <= POINTER_LONGEST) {
                return Err(refusal(
                    commit,
                    &path,
                    "is in large file storage (LFS): put the file itself into the repository",
                ));
            }
        }
    }
    Ok(sizes.iter().sum())
}

/// The files of a tree and of those below it: path and id.
fn walk(
    mirror: &Mirror,
    commit: &CommitId,
    tree: &str,
    above: &str,
    files: &mut Vec<(String, String)>,
) -> Result<(), TreeError> {
    let damaged = || TreeError::Mirror(format!("the tree {tree} is not there, or is none"));
    let object = mirror.object(tree)?.filter(|object| object.kind == "tree").ok_or_else(damaged)?;
    let mut rest = &object.bytes[..];
    while !rest.is_empty() {
        let (entry, behind) = Entry::first(rest, object.id.len() / 2).ok_or_else(damaged)?;
        rest = behind;
        let path = format!("{above}{}", entry.name);
        match entry.mode {
            "160000" => {
                return Err(refusal(commit, &path, "is a submodule: put its files into the repository itself"));
            }
            "40000" => walk(mirror, commit, &entry.id, &format!("{path}/"), files)?,
            _ => files.push((path, entry.id)),
        }
    }
    Ok(())
}

/// One line of a tree as git stores it: mode, name and the bytes of an id.
struct Entry<'a> {
    mode: &'a str,
    name: Cow<'a, str>,
    id: String,
}

impl<'a> Entry<'a> {
    /// The first, and what follows it. `length`: bytes of an id.
    fn first(bytes: &'a [u8], length: usize) -> Option<(Self, &'a [u8])> {
        let (mode, rest) = bytes.split_at(bytes.iter().position(|b| *b == b' ')?);
        let (name, rest) = rest[1..].split_at(rest[1..].iter().position(|b| *b == 0)?);
        let (id, rest) = rest[1..].split_at_checked(length)?;
        let entry = Self {
            mode: std::str::from_utf8(mode).ok()?,
            name: String::from_utf8_lossy(name),
            id: HEXLOWER.encode(id),
        };
        Some((entry, rest))
    }
}

fn refusal(commit: &CommitId, path: &str, what: &str) -> TreeError {
    TreeError::Refused(format!("{path:?} of commit {} {what}; everhook does not deploy such yet", commit.short()))
}

fn uses_lfs(mirror: &Mirror, attributes: &[&String]) -> Result<bool, TreeError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_read_entry_by_entry() {
        let tree = [&b"100644 a b\0"[..], &[0xab; 20], b"40000 sub\0", &[1; 20]].concat();
        let (file, rest) = Entry::first(&tree, 20).unwrap();
        assert_eq!((file.mode, &*file.name, file.id), ("100644", "a b", "ab".repeat(20)));
        let (folder, rest) = Entry::first(rest, 20).unwrap();
        assert_eq!((folder.mode, &*folder.name, rest.len()), ("40000", "sub", 0));
        for broken in [&tree[..4], &tree[..9], &tree[..20], b""] {
            assert!(Entry::first(broken, 20).is_none());
        }
    }
}
