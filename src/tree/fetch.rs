//! Brings a mirror up to date and finds the commit that is meant.

use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};

use super::{
    TreeError, content,
    explain::explain,
    git::{self, is_branch},
    judge::{self, Question},
    mirror::Mirror,
};
use crate::domain::{
    api::{Fetch, Fetched, Tip, Verdict, Wanted},
    model::CommitId,
};

const HEADS: &str = "refs/heads/";
/// Where the remote's branches are in the mirror.
pub(super) const MIRRORED: &str = "refs/remotes/origin/";

/// Fetches and judges; a damaged mirror is made anew, once.
pub(super) fn fetch(task: &Fetch) -> Result<Fetched, TreeError> {
    check_address(&task.repo)?;
    let mirror = Mirror::open(&task.mirror, &task.repo);
    let mirror = match mirror {
        Err(TreeError::Mirror(_)) => {
            return Err(TreeError::Refused(format!("{} cannot be made a repository", task.mirror.display())));
        }
        other => other?,
    };
    match fetch_into(&mirror, task) {
        Err(TreeError::Mirror(why)) => {
            eprintln!("the mirror of {} is damaged ({why}): fetching it anew", git::shown(&task.repo));
            mirror.renew()?;
            fetch_into(&mirror, task)
        }
        other => other,
    }
}

/// The remote's tip of the branch that is meant, without fetching.
pub(super) fn tip(repo: &str, mirror: &Path, wanted: &Wanted) -> Result<Tip, TreeError> {
    check_address(repo)?;
    let mirror = Mirror::open(mirror, repo)?;
    let branches = Branches::of(&mirror, repo, wanted)?;
    let name = branches.meant(wanted)?;
    let ref_name = format!("{HEADS}{name}");
    let listed = remote(&mirror, repo, &["ls-remote", "--quiet", "--", repo, &ref_name])?;
    let commit = listed.lines().find_map(|line| {
        let (commit, listed) = line.split_once('\t')?;
        (listed == ref_name).then(|| commit.parse::<CommitId>().ok())?
    });
    let commit = commit.ok_or_else(|| TreeError::Refused(format!("{} has no branch {name:?}", git::shown(repo))))?;
    Ok(Tip { ref_name, commit })
}

fn fetch_into(mirror: &Mirror, task: &Fetch) -> Result<Fetched, TreeError> {
    let branches = Branches::of(mirror, &task.repo, &task.wanted)?;
    if let Some(ref_name) = &task.wanted.ref_name
        && let Err(reason) = branches.judge(ref_name)
    {
        let verdict = Verdict::NotWanted { reason };
        return Ok(unjudged(verdict, ref_name.clone(), task.commit.clone()));
    }
    if let Some(rev) = &task.rev {
        fetch_refs(mirror, &task.repo, &branches.refspecs())?;
        let (name, commit) = judge::resolve(mirror, &branches, rev)?;
        return judged(mirror, task, &name, Some(&commit));
    }
    let name = branches.meant(&task.wanted)?;
    match fetch_refs(mirror, &task.repo, &[refspec(&name)]) {
        // The branch was deleted after the push.
        Err(TreeError::Refused(_)) if task.commit.is_some() && !exists(mirror, &task.repo, &name)? => {
            Ok(unjudged(Verdict::Gone, format!("{HEADS}{name}"), task.commit.clone()))
        }
        Err(error) => Err(error),
        Ok(()) => judged(mirror, task, &name, task.commit.as_ref()),
    }
}

fn judged(mirror: &Mirror, task: &Fetch, name: &str, commit: Option<&CommitId>) -> Result<Fetched, TreeError> {
    let tip = judge::tip(mirror, name)?;
    let asked = task.rev.is_some() || commit.is_none();
    let commit = commit.unwrap_or(&tip.commit);
    let ref_name = format!("{HEADS}{name}");
    let verdict = judge::verdict(mirror, &Question { commit, tip: &tip.commit, live: task.live.as_ref(), asked })?;
    if verdict != Verdict::Deploy {
        return Ok(unjudged(verdict, ref_name, Some(commit.clone())));
    }
    let tree_bytes = content::measure(mirror, commit)?;
    let said = if *commit == tip.commit { tip } else { judge::said(mirror, commit.as_str())? };
    let (subject, author, tree_bytes) = (Some(said.subject), Some(said.author), Some(tree_bytes));
    Ok(Fetched { verdict, ref_name, commit: Some(said.commit), subject, author, tree_bytes })
}

fn unjudged(verdict: Verdict, ref_name: String, commit: Option<CommitId>) -> Fetched {
    Fetched { verdict, ref_name, commit, subject: None, author: None, tree_bytes: None }
}

fn fetch_refs(mirror: &Mirror, repo: &str, refspecs: &[String]) -> Result<(), TreeError> {
    let fixed = ["fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--no-auto-gc", "--", repo];
    let args: Vec<&str> = fixed.into_iter().chain(refspecs.iter().map(String::as_str)).collect();
    remote(mirror, repo, &args).map(drop)
}

/// Runs a command that speaks to the remote.
fn remote(mirror: &Mirror, repo: &str, args: &[&str]) -> Result<String, TreeError> {
    let done = mirror.git.run(args, b"")?;
    match done.code {
        Some(0) => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
        _ => Err(explain(repo, &done)),
    }
}

fn exists(mirror: &Mirror, repo: &str, name: &str) -> Result<bool, TreeError> {
    let ref_name = format!("{HEADS}{name}");
    let listed = remote(mirror, repo, &["ls-remote", "--quiet", "--", repo, &ref_name])?;
    Ok(listed.lines().any(|line| line.split_once('\t').is_some_and(|(_, listed)| listed == ref_name)))
}

fn check_address(repo: &str) -> Result<(), TreeError> {
    if repo.is_empty() || repo.starts_with('-') || repo.contains(|c: char| c.is_ascii_control()) {
        return Err(TreeError::Refused(format!("{repo:?} is no address of a repository")));
    }
    Ok(())
}

fn refspec(name: &str) -> String {
    format!("+{HEADS}{name}:{MIRRORED}{name}")
}

/// The branches that are deployed.
pub(super) enum Branches {
    Default(String),
    Globs(Vec<(String, GlobMatcher)>),
}

impl Branches {
    /// Asks the remote for its default branch where the config names none.
    fn of(mirror: &Mirror, repo: &str, wanted: &Wanted) -> Result<Self, TreeError> {
        if wanted.branches.is_empty() {
            return Ok(Self::Default(default_branch(mirror, repo)?));
        }
        let globs = wanted.branches.iter().map(|text| {
            let glob = GlobBuilder::new(text).literal_separator(true).build();
            let glob = glob.map_err(|e| TreeError::Refused(format!("{text:?} is no pattern of branches: {e}")))?;
            if is_branch(text) || has_wildcard(text) {
                Ok((text.clone(), glob.compile_matcher()))
            } else {
                Err(TreeError::Refused(format!("{text:?} is no name of a branch")))
            }
        });
        Ok(Self::Globs(globs.collect::<Result<_, _>>()?))
    }

    pub(super) fn fit(&self, name: &str) -> bool {
        match self {
            Self::Default(default) => default == name,
            Self::Globs(globs) => globs.iter().any(|(_, glob)| glob.is_match(name)),
        }
    }

    /// Why this ref is not deployed.
    fn judge(&self, ref_name: &str) -> Result<(), String> {
        match ref_name.strip_prefix(HEADS).filter(|name| is_branch(name)) {
            None => Err(format!("{ref_name:?} is no branch")),
            Some(name) if self.fit(name) => Ok(()),
            Some(name) => Err(match self {
                Self::Default(default) => {
                    format!("branch {name:?} is not deployed: the repository's default branch is {default:?}")
                }
                Self::Globs(_) => format!("branch {name:?} is not deployed"),
            }),
        }
    }

    /// The one branch that is meant when no commit of another was asked for.
    fn meant(&self, wanted: &Wanted) -> Result<String, TreeError> {
        if let Some(name) = wanted.ref_name.as_deref().and_then(|name| name.strip_prefix(HEADS)) {
            return Ok(name.to_owned());
        }
        match self {
            Self::Default(name) => Ok(name.clone()),
            Self::Globs(globs) => match &globs[..] {
                [(name, _)] if !has_wildcard(name) => Ok(name.clone()),
                _ => {
                    Err(TreeError::Refused("`on` names no single branch: name a branch or a commit with --rev".into()))
                }
            },
        }
    }

    /// What to fetch so that every allowed branch is there. Of a glob the part before its first
    /// wildcard counts: what comes along too much is never looked at.
    fn refspecs(&self) -> Vec<String> {
        match self {
            Self::Default(name) => vec![refspec(name)],
            Self::Globs(globs) => globs
                .iter()
                .map(|(text, _)| match text.find(WILDCARDS) {
                    None => refspec(text),
                    Some(end) => refspec(&format!("{}*", &text[..end])),
                })
                .collect(),
        }
    }
}

const WILDCARDS: [char; 5] = ['*', '?', '[', '{', '\\'];

fn has_wildcard(text: &str) -> bool {
    text.contains(WILDCARDS)
}

fn default_branch(mirror: &Mirror, repo: &str) -> Result<String, TreeError> {
    let listed = remote(mirror, repo, &["ls-remote", "--quiet", "--symref", "--", repo, "HEAD"])?;
    let target = listed.lines().find_map(|line| line.strip_prefix("ref: ")?.strip_suffix("\tHEAD"));
    target.and_then(|name| name.strip_prefix(HEADS)).filter(|name| is_branch(name)).map(str::to_owned).ok_or_else(
        || {
            let shown = git::shown(repo);
            TreeError::Refused(format!(
                "{shown} has no default branch: push a first commit, or name a branch, `on: [Push(branch: \"main\")]`"
            ))
        },
    )
}
