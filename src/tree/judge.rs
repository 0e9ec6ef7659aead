//! What a commit is worth: DESIGN.md section 7, "What is deployed".

use super::{
    TreeError,
    fetch::{Branches, MIRRORED},
    git::is_branch,
    mirror::Mirror,
};
use crate::domain::{api::Verdict, model::CommitId};

/// A commit to be judged.
pub(super) struct Question<'a> {
    pub commit: &'a CommitId,
    /// Of its branch.
    pub tip: &'a CommitId,
    pub live: Option<&'a CommitId>,
    /// Somebody wants this one, or the tip whatever it is: being live already is no objection.
    pub asked: bool,
}

pub(super) fn verdict(mirror: &Mirror, question: &Question<'_>) -> Result<Verdict, TreeError> {
    let &Question { commit, tip, live, asked } = question;
    if commit != tip && !(is_there(mirror, commit)? && is_ancestor(mirror, commit, tip)?) {
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

/// A commit and what it says of itself.
pub(super) struct Said {
    pub commit: CommitId,
    pub subject: String,
    pub author: String,
}

/// Where a branch of the mirror points.
pub(super) fn tip(mirror: &Mirror, name: &str) -> Result<Said, TreeError> {
    said(mirror, &format!("{MIRRORED}{name}"))
}

/// The branch and the commit that a person named.
pub(super) fn resolve(mirror: &Mirror, branches: &Branches, rev: &str) -> Result<(String, CommitId), TreeError> {
    let name = rev.strip_prefix("refs/heads/").unwrap_or(rev);
    if is_branch(name) && branches.fit(name) && has_branch(mirror, name)? {
        return Ok((name.to_owned(), tip(mirror, name)?.commit));
    }
    let unknown = || TreeError::Refused(format!("{rev:?} is no branch that is deployed and no commit of one"));
    if !(4..=64).contains(&rev.len()) || !rev.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(unknown());
    }
    let wish = format!("{}^{{commit}}", rev.to_ascii_lowercase());
    let done = mirror.git.run(&["rev-parse", "--verify", "--end-of-options", &wish], b"")?;
    if done.code != Some(0) {
        let ambiguous = done.stderr.contains("ambiguous");
        return Err(if ambiguous {
            TreeError::Refused(format!("more than one commit begins with {rev}"))
        } else {
            unknown()
        });
    }
    let commit = commit_of(&done.stdout)?;
    let contains = format!("--contains={commit}");
    let listed = mirror.git.must(&["for-each-ref", "--format=%(refname)", &contains, MIRRORED])?;
    let listed = String::from_utf8_lossy(&listed);
    let mut names = listed.lines().filter_map(|line| line.strip_prefix(MIRRORED));
    let name = names.find(|name| branches.fit(name)).ok_or_else(unknown)?;
    Ok((name.to_owned(), commit))
}

/// What the commit says that this names: one process of git tells all of it.
pub(super) fn said(mirror: &Mirror, name: &str) -> Result<Said, TreeError> {
    let form = "--format=%H%x00%s%x00%an <%ae>";
    let text = mirror.git.must(&["log", "-1", "--no-show-signature", "--no-color", form, name, "--"])?;
    let text = String::from_utf8_lossy(&text);
    let mut parts = text.trim_end_matches('\n').splitn(3, '\0');
    let commit = commit_of(parts.next().unwrap_or_default().as_bytes())?;
    let mut next = || shortened(parts.next().unwrap_or_default());
    Ok(Said { commit, subject: next(), author: next() })
}

/// A commit may call itself anything, at any length.
pub(super) fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(500).collect()
}

fn has_branch(mirror: &Mirror, name: &str) -> Result<bool, TreeError> {
    let name = format!("{MIRRORED}{name}");
    Ok(mirror.git.run(&["show-ref", "--verify", "--quiet", "--", &name], b"")?.code == Some(0))
}

pub(super) fn is_there(mirror: &Mirror, commit: &CommitId) -> Result<bool, TreeError> {
    let done = mirror.git.run(&["cat-file", "--batch-check"], format!("{commit}\n").as_bytes())?;
    match done.code {
        Some(0) => Ok(String::from_utf8_lossy(&done.stdout).contains(" commit ")),
        _ => Err(TreeError::Mirror(done.last_words())),
    }
}

fn is_ancestor(mirror: &Mirror, commit: &CommitId, of: &CommitId) -> Result<bool, TreeError> {
    let done = mirror.git.run(&["merge-base", "--is-ancestor", commit.as_str(), of.as_str()], b"")?;
    match done.code {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => Err(TreeError::Mirror(done.last_words())),
    }
}

fn commit_of(text: &[u8]) -> Result<CommitId, TreeError> {
    let text = String::from_utf8_lossy(text);
    text.trim().parse().map_err(|_| TreeError::Mirror(format!("{text:?} is no commit")))
}
