//! Brings a mirror up to date and finds the commit that is meant.

use std::{collections::BTreeMap, path::Path};

use super::{
    TreeError,
    commit::{self, Said},
    compare, content,
    explain::explain,
    filter, git,
    git::is_ref_name,
    judge::{self, Question},
    limit, measure,
    mirror::Mirror,
    refs::{HEADS, MIRRORED, Refs, TAGS, default_branch, refspec},
    say_begun,
};
use crate::domain::{
    api::{Fetch, Fetched, Tip, Verdict, Wanted},
    model::CommitId,
};

/// A name in the way of another is removed, and so may uncover the next one.
const MOST_IN_THE_WAY: usize = 20;

/// Fetches and judges; a damaged mirror is made anew, once. What was found is told before the mirror is let go,
/// which takes its time.
pub(super) fn fetch(task: &Fetch, tell: Tell<'_>) -> Result<(), TreeError> {
    check_address(&task.repo)?;
    let mirror = Mirror::open(&task.mirror, &task.repo);
    let mirror = match mirror {
        Err(TreeError::Mirror(_)) => {
            return Err(TreeError::Refused(format!("{} cannot be made a repository", task.mirror.display())));
        }
        other => other?,
    };
    let fetched = match fetch_first(&mirror, task) {
        Err(TreeError::Mirror(why)) => {
            eprintln!("the mirror of {} is damaged ({why}): fetching it anew", git::shown(&task.repo));
            mirror.renew()?;
            fetch_into(&mirror, task)
        }
        other => other,
    };
    if fetched.is_err() {
        // Of no use to anybody, and large perhaps.
        mirror.clear();
    }
    tell(&fetched?)
}

type Tell<'a> = &'a mut dyn FnMut(&Fetched) -> Result<(), TreeError>;

fn fetch_first(mirror: &Mirror, task: &Fetch) -> Result<Fetched, TreeError> {
    match &task.damaged {
        Some(why) => Err(TreeError::Mirror(why.clone())),
        None => fetch_into(mirror, task),
    }
}

/// The remote's tip of the branch that is meant, without fetching; and how far `live` is behind it, as
/// far as the mirror knows the tip from before.
pub(super) fn tip(repo: &str, mirror: &Path, wanted: &Wanted, live: Option<&CommitId>) -> Result<Tip, TreeError> {
    check_address(repo)?;
    let mirror = Mirror::open(mirror, repo)?;
    let ref_name = Refs::of(wanted, || default_branch(&mirror, repo))?.meant(wanted)?;
    let listed = remote(&mirror, repo, &["ls-remote", "--quiet", "--", repo, &ref_name])?;
    let commit = listed.lines().find_map(|line| {
        let (commit, listed) = line.split_once('\t')?;
        (listed == ref_name).then(|| commit.parse::<CommitId>().ok())?
    });
    let name = ref_name.strip_prefix(HEADS).unwrap_or(&ref_name);
    let commit = commit.ok_or_else(|| TreeError::Refused(format!("{} has no branch {name:?}", git::shown(repo))))?;
    let behind = match (live, commit::look_up(&mirror, commit.as_str())?) {
        (Some(live), _) if *live == commit => Some(0),
        (Some(live), Some(tip)) => judge::behind(&mirror, live, &tip)?,
        _ => None,
    };
    Ok(Tip { ref_name, commit, behind })
}

fn fetch_into(mirror: &Mirror, task: &Fetch) -> Result<Fetched, TreeError> {
    let refs = Refs::of(&task.wanted, || default_branch(mirror, &task.repo))?;
    if let Some(ref_name) = &task.wanted.ref_name
        && let Err(reason) = refs.judge(ref_name)
    {
        let verdict = Verdict::NotWanted { reason };
        return Ok(unjudged(verdict, ref_name.clone(), task.commit.clone()));
    }
    if let Some(rev) = &task.rev {
        let mut refspecs = refs.refspecs();
        // A tag may name a commit of a branch that is deployed. With the `*` its absence is no error.
        let tag = rev.strip_prefix(TAGS).unwrap_or(rev);
        refspecs.extend(is_ref_name(tag).then(|| refspec(&format!("{TAGS}{tag}*"))));
        fetch_refs(mirror, &task.repo, &refspecs)?;
        let (name, commit) = judge::resolve(mirror, &refs, rev)?;
        return judged(mirror, task, &name, Some(&commit));
    }
    let name = refs.meant(&task.wanted)?;
    let pushed = task.commit.is_some() || name.starts_with(TAGS);
    match fetch_refs(mirror, &task.repo, &[refspec(&name)]) {
        // The ref was deleted after the push.
        Err(TreeError::Refused(_)) if pushed && !exists(mirror, &task.repo, &name)? => {
            Ok(unjudged(Verdict::Gone, name, task.commit.clone()))
        }
        Err(error) => Err(error),
        Ok(()) => judged(mirror, task, &name, task.commit.as_ref()),
    }
}

fn judged(mirror: &Mirror, task: &Fetch, name: &str, commit: Option<&CommitId>) -> Result<Fetched, TreeError> {
    let head = judge::tip(mirror, name)?;
    let (tip, live) = (head.commit.clone(), task.live.as_ref());
    let asked = task.asked || task.rev.is_some() || commit.is_none();
    let commit = match commit {
        None => tip.clone(),
        Some(commit) => judge::delivered(mirror, name, &tip, commit, &task.also)?,
    };
    let verdict = judge::verdict(mirror, &Question { commit: &commit, tip: &tip, live, asked })?;
    let mut fetched = unjudged(verdict, name.to_owned(), Some(commit.clone()));
    if fetched.verdict != Verdict::Deploy {
        fetched.behind = behind(mirror, live.into_iter(), &head)?;
        return Ok(fetched);
    }
    fetched.behind = behind(mirror, live.into_iter().chain([&commit]), &head)?;
    let missing = || TreeError::Mirror(format!("commit {} is not there", commit.short()));
    let said = if commit == tip { head } else { commit::look_up(mirror, commit.as_str())?.ok_or_else(missing)? };
    if let Some(filters) = &task.filters
        && live != Some(&commit)
        && let Some(reason) = filter::objection(mirror, filters, live, &commit, &said.message)?
    {
        fetched.verdict = Verdict::NotWanted { reason };
    } else {
        fetched.tree_bytes = Some(content::measure(mirror, &commit)?);
        // A hint alone: what this user may not read, or is gone, is no reason to fail.
        let taken = task.live_release.clone().and_then(|release| measure::measure(&[release]).ok());
        fetched.live_bytes = taken.map(|taken| taken.size_bytes);
        fetched.changes = compare::changes(mirror, live, &commit, &task.changes)?;
    }
    (fetched.subject, fetched.author) = (Some(said.subject), Some(said.author));
    Ok(fetched)
}

/// How many commits each of these is behind the tip.
fn behind<'a>(
    mirror: &Mirror,
    of: impl Iterator<Item = &'a CommitId>,
    tip: &Said,
) -> Result<BTreeMap<CommitId, u64>, TreeError> {
    let counted = of.map(|commit| Ok((commit.clone(), judge::behind(mirror, commit, tip)?)));
    let counted = counted.collect::<Result<Vec<_>, TreeError>>()?;
    Ok(counted.into_iter().filter_map(|(commit, count)| Some((commit, count?))).collect())
}

fn unjudged(verdict: Verdict, ref_name: String, commit: Option<CommitId>) -> Fetched {
    Fetched {
        verdict,
        ref_name,
        commit,
        subject: None,
        author: None,
        tree_bytes: None,
        live_bytes: None,
        behind: BTreeMap::new(),
        changes: Vec::new(),
    }
}

fn fetch_refs(mirror: &Mirror, repo: &str, refspecs: &[String]) -> Result<(), TreeError> {
    let fixed = ["fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--no-auto-gc", "--", repo];
    let args: Vec<&str> = fixed.into_iter().chain(refspecs.iter().map(String::as_str)).collect();
    limit::set(&mirror.path)?;
    let mut done = mirror.git.run_beside(&args, b"", || {
        mirror.begin_to_tell()?;
        say_begun();
        Ok(())
    })?;
    for _ in 0..MOST_IN_THE_WAY {
        let names = in_the_way(&done.stderr);
        if done.code == Some(0) || names.is_empty() {
            break;
        }
        for name in names {
            mirror.git.must(&["update-ref", "--no-deref", "-d", name])?;
        }
        done = mirror.git.run(&args, b"")?;
    }
    if done.code == Some(0) { Ok(()) } else { Err(explain(repo, &mirror.git.access, &done)) }
}

/// The refs of the mirror that the remote has no more, since one that it has now lies below them or above:
/// `a` and `a/b` cannot both be there.
fn in_the_way(stderr: &str) -> Vec<&str> {
    let complaints = stderr.lines().filter_map(|line| line.split_once("' exists; cannot create '"));
    let names = complaints.filter_map(|(before, _)| before.rsplit('\'').next());
    names.filter(|name| name.starts_with(MIRRORED) || name.starts_with(TAGS)).collect()
}

/// Runs a command that speaks to the remote.
pub(super) fn remote(mirror: &Mirror, repo: &str, args: &[&str]) -> Result<String, TreeError> {
    let done = mirror.git.run(args, b"")?;
    match done.code {
        Some(0) => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
        _ => Err(explain(repo, &mirror.git.access, &done)),
    }
}

fn exists(mirror: &Mirror, repo: &str, ref_name: &str) -> Result<bool, TreeError> {
    let listed = remote(mirror, repo, &["ls-remote", "--quiet", "--", repo, ref_name])?;
    Ok(listed.lines().any(|line| line.split_once('\t').is_some_and(|(_, listed)| listed == ref_name)))
}

fn check_address(repo: &str) -> Result<(), TreeError> {
    if repo.is_empty() || repo.starts_with('-') || repo.contains(|c: char| c.is_ascii_control()) {
        return Err(TreeError::Refused(format!("{repo:?} is no address of a repository")));
    }
    Ok(())
}
