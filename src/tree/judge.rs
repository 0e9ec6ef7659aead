//! What a commit is worth: DESIGN.md section 7, "What is deployed".

use super::{
    TreeError,
    commit::{self, Said, commit_of},
    git::is_ref_name,
    mirror::Mirror,
    refs::{HEADS, MIRRORED, Refs, TAGS, mirrored, remote_name},
};
use crate::domain::{api::Verdict, model::CommitId};

/// A commit to be judged.
pub(super) struct Question<'a> {
    pub commit: &'a CommitId,
    /// Of its ref.
    pub tip: &'a CommitId,
    pub live: Option<&'a CommitId>,
    /// Somebody wants this one, or the tip whatever it is: being live already is no objection.
    pub asked: bool,
}

pub(super) fn verdict(mirror: &Mirror, question: &Question<'_>) -> Result<Verdict, TreeError> {
    let &Question { commit, tip, live, asked } = question;
    if commit != tip && !is_reached(mirror, commit, tip)? {
        return Ok(Verdict::Gone);
    }
    if asked {
        return Ok(Verdict::Deploy);
    }
    let older = match live {
        Some(live) if live == commit => true,
        Some(live) if commit != tip => is_there(mirror, live)? && is_ancestor(mirror, commit, live)?,
        _ => false,
    };
    Ok(if older { Verdict::Older } else { Verdict::Deploy })
}

/// The commit that a ref of the mirror leads to: a tag may be an object of its own.
pub(super) fn tip(mirror: &Mirror, full: &str) -> Result<Said, TreeError> {
    commit::look_up(mirror, &mirrored(full))?.ok_or_else(|| match full.strip_prefix(TAGS) {
        Some(_) => TreeError::Refused(format!("{full} leads to no commit")),
        None => TreeError::Mirror(format!("{full} is not there")),
    })
}

/// The commit that a delivery means. For an annotated tag it may have named the tag. Of several that
/// were delivered, in whatever order, it is the newest that the ref holds.
pub(super) fn delivered(
    mirror: &Mirror,
    full: &str,
    tip: &CommitId,
    commit: &CommitId,
    also: &[CommitId],
) -> Result<CommitId, TreeError> {
    let is_tag = full.starts_with(TAGS) && commit != tip;
    let mut newest =
        if is_tag { peeled(mirror, commit.as_str())?.unwrap_or_else(|| commit.clone()) } else { commit.clone() };
    for other in also {
        let held = is_reached(mirror, other, tip)?;
        if held && (!is_reached(mirror, &newest, tip)? || is_ancestor(mirror, &newest, other)?) {
            newest = other.clone();
        }
    }
    Ok(newest)
}

/// How many commits of the tip `commit` does not have; `None`: the mirror lacks it, which git complains about.
pub(super) fn behind(mirror: &Mirror, commit: &CommitId, tip: &Said) -> Result<Option<u64>, TreeError> {
    if *commit == tip.commit {
        return Ok(Some(0));
    }
    // Most pushes are one commit on top of what is live: nothing need be counted.
    if tip.parents[..] == [commit.clone()] {
        return Ok(Some(1));
    }
    let range = format!("{commit}..{}", tip.commit);
    let done = mirror.git.run(&["rev-list", "--count", "--end-of-options", &range], b"")?;
    let count = String::from_utf8_lossy(&done.stdout).trim().parse().ok();
    Ok(count.filter(|_| done.code == Some(0)))
}

fn peeled(mirror: &Mirror, name: &str) -> Result<Option<CommitId>, TreeError> {
    Ok(commit::look_up(mirror, name)?.map(|said| said.commit))
}

/// The ref and the commit that a person named.
pub(super) fn resolve(mirror: &Mirror, refs: &Refs, rev: &str) -> Result<(String, CommitId), TreeError> {
    let full = |space: &str| format!("{space}{}", rev.strip_prefix(space).unwrap_or(rev));
    let whole = [HEADS, TAGS].iter().any(|space| rev.starts_with(space));
    let named: Vec<String> = [HEADS, TAGS]
        .into_iter()
        .filter(|space| rev.starts_with(space) || !whole && is_ref_name(rev))
        .map(full)
        .filter(|full| full.splitn(3, '/').nth(2).is_some_and(is_ref_name) && refs.fit(full))
        .collect();
    let mut there = Vec::new();
    for full in named {
        if has_ref(mirror, &full)? {
            there.push(full);
        }
    }
    match &there[..] {
        [only] => return Ok((only.clone(), tip(mirror, only)?.commit)),
        [_, ..] => {
            let why = format!("{rev:?} is a branch and a tag: say \"{HEADS}{rev}\" or \"{TAGS}{rev}\"");
            return Err(TreeError::Refused(why));
        }
        [] => {}
    }
    let commit = named_commit(mirror, rev, &full(TAGS))?;
    let contains = format!("--contains={commit}");
    let listed = mirror.git.must(&["for-each-ref", "--format=%(refname)", &contains, MIRRORED, TAGS])?;
    let listed = String::from_utf8_lossy(&listed);
    let mut names = listed.lines().map(remote_name);
    let name = names.find(|name| refs.fit(name)).ok_or_else(|| unknown(rev))?;
    Ok((name, commit))
}

fn unknown(rev: &str) -> TreeError {
    TreeError::Refused(format!("{rev:?} is no branch or tag that is deployed and no commit of one"))
}

/// A commit by its id, or the beginning of it, or by a tag.
fn named_commit(mirror: &Mirror, rev: &str, tag: &str) -> Result<CommitId, TreeError> {
    if is_ref_name(tag) && has_ref(mirror, tag)? {
        return tip(mirror, tag).map(|said| said.commit);
    }
    if !(4..=64).contains(&rev.len()) || !rev.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(unknown(rev));
    }
    let wish = format!("{}^{{commit}}", rev.to_ascii_lowercase());
    let done = mirror.git.run(&["rev-parse", "--verify", "--end-of-options", &wish], b"")?;
    match done.code {
        Some(0) => commit_of(&done.stdout),
        _ if done.stderr.contains("ambiguous") => {
            Err(TreeError::Refused(format!("more than one commit begins with {rev}")))
        }
        _ => Err(unknown(rev)),
    }
}

fn has_ref(mirror: &Mirror, full: &str) -> Result<bool, TreeError> {
    Ok(mirror.git.run(&["show-ref", "--verify", "--quiet", "--", &mirrored(full)], b"")?.code == Some(0))
}

fn is_reached(mirror: &Mirror, commit: &CommitId, tip: &CommitId) -> Result<bool, TreeError> {
    Ok(is_there(mirror, commit)? && is_ancestor(mirror, commit, tip)?)
}

pub(super) fn is_there(mirror: &Mirror, commit: &CommitId) -> Result<bool, TreeError> {
    Ok(mirror.object(commit.as_str())?.is_some_and(|object| object.kind == "commit"))
}

fn is_ancestor(mirror: &Mirror, commit: &CommitId, of: &CommitId) -> Result<bool, TreeError> {
    let done = mirror.git.run(&["merge-base", "--is-ancestor", commit.as_str(), of.as_str()], b"")?;
    match done.code {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => Err(TreeError::Mirror(done.last_words())),
    }
}
