//! Puts commits into a working tree that people work in too: what a careful person does by hand with
//! `git pull`. Nothing that a person did is overwritten: changes of tracked files, commits that nobody
//! else has, files in the way and an unfinished merge are refused by name. What the last build did to
//! tracked files is its own doing and is taken back. DESIGN.md section 7, "InPlace".
//!
//! ```text
//! check ─► take back ─► note Moving ─► files ─► branch ─► note Building ─► (steps) ─► note Built
//! ```
//! The note ([`note`]) says after a kill what was ours; [`half`] knows what a killed move leaves.

mod half;
mod note;
mod worktree;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use half::Half;
use note::{Note, Phase};
use worktree::{EMPTY, Worktree, listed};

use super::{
    TreeError,
    refs::{HEADS, MIRRORED, TAGS},
};
use crate::domain::{
    api::{Place, To},
    model::{CommitId, DeployId},
};

/// Where what was taken back last can still be had from.
const UNDONE: &str = "refs/everhook/undone";

/// Brings the tree to a commit, or back to where it was.
pub(super) fn place(task: &Place) -> Result<(), TreeError> {
    let tree = Worktree::open_or_clone(task)?;
    let note = Note::read(&tree)?;
    let interrupted = note.as_ref().filter(|note| note.is_interrupted());
    if interrupted.is_some() {
        tree.clear_locks()?;
    }
    tree.refuse_unfinished()?;
    let (head, now) = (tree.head()?, tree.branch()?);
    let (commit, then) = match &task.to {
        To::Commit { commit, ref_name } => {
            fetch(&tree, &task.mirror, commit, ref_name.as_deref())?;
            (commit.clone(), destination(&tree, ref_name.as_deref(), note.as_ref(), now.as_deref())?)
        }
        To::Back { live } => match live.clone().or_else(|| note.as_ref()?.from.clone()) {
            Some(target) if interrupted.is_some() || head.as_ref() != Some(&target) => {
                (target, note.as_ref().map_or_else(|| now.clone(), |note| note.before.clone()))
            }
            _ => return Ok(()),
        },
    };
    refuse_losses(&tree, &task.mirror, &commit, note.as_ref(), (now.as_deref(), then.as_deref()))?;
    let taken = take_back(&tree, note.as_ref(), head.as_ref())?;

    // What an earlier try found is where this one goes back to.
    let found = || Some((interrupted?.from.clone(), interrupted?.before.clone()));
    let (from, before) = found().unwrap_or_else(|| (head.clone(), now.clone()));
    let phase = Phase::Moving { from: head.clone() };
    let mut next =
        Note { commit: commit.clone(), from, head: None, branch: then.clone(), before, changed: Digests::new(), phase };
    next.write(&tree)?;
    if let Err(Unmoved { why, touched }) = move_files(&tree, head.as_ref(), &commit) {
        if touched {
            take_back(&tree, Some(&next), head.as_ref())?;
        }
        if let Some(error) = taken.and_then(|taken| give_back(&tree, &taken).err()) {
            eprintln!("what the last build had changed stays taken back: {error}");
        }
        Note::restore(note.as_ref(), &tree)?;
        return Err(why);
    }
    set_head(&tree, task.deploy, &commit, now.as_deref(), then.as_deref())?;
    next.phase = if task.builds { Phase::Building } else { Phase::Built };
    next.head = Some(commit);
    next.write(&tree)
}

/// Notes what the steps have changed.
pub(super) fn built(path: &Path, mirror: &Path) -> Result<(), TreeError> {
    let tree = Worktree::open(path, mirror)?;
    let Some(mut note) = Note::read(&tree)? else { return Ok(()) };
    note.changed = tree.changed()?.into_iter().map(|path| (path.clone(), tree.digest(&path))).collect();
    (note.head, note.branch) = (tree.head()?, tree.branch()?);
    note.phase = Phase::Built;
    note.write(&tree)
}

/// Brings the commit, and what the remote's branch is at, from the mirror.
fn fetch(tree: &Worktree, mirror: &Path, commit: &CommitId, ref_name: Option<&str>) -> Result<(), TreeError> {
    let mirror = mirror.to_string_lossy();
    let there = tree.has(commit)?;
    let tracked = ref_name.and_then(|full| match full.strip_prefix(HEADS) {
        Some(name) if tree.has_remote() => Some(format!("+{MIRRORED}{name}:refs/remotes/origin/{name}")),
        Some(_) => None,
        None => full.starts_with(TAGS).then(|| format!("+{full}:{full}")),
    });
    let fixed = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-gc", "--", &mirror];
    let wanted = [(!there).then_some(commit.as_str()), tracked.as_deref()];
    let wanted: Vec<&str> = wanted.into_iter().flatten().collect();
    if wanted.is_empty() || tree.git.run(&[&fixed[..], &wanted].concat(), b"")?.code == Some(0) || there {
        return Ok(());
    }
    // What the remote's branch is at is for the eye alone.
    let done = tree.git.run(&[&fixed[..], &[commit.as_str()]].concat(), b"")?;
    if done.code == Some(0) {
        return Ok(());
    }
    let (short, words) = (commit.short(), done.last_words());
    if done.says_damaged() {
        return Err(TreeError::Mirror(words));
    }
    Err(TreeError::Refused(format!("commit {short} cannot be brought into {}: {words}", tree.shown())))
}

/// The branch that the tree is on then; `None`: on no branch, at the commit alone.
fn destination(
    tree: &Worktree,
    ref_name: Option<&str>,
    note: Option<&Note>,
    now: Option<&str>,
) -> Result<Option<String>, TreeError> {
    let Some(full) = ref_name else { return Ok(now.map(str::to_owned)) };
    if !full.starts_with(HEADS) {
        return Ok(None);
    }
    let ours =
        |now: &str| note.is_some_and(|note| [note.branch.as_deref(), note.before.as_deref()].contains(&Some(now)));
    match now.filter(|now| *now != full && !ours(now)) {
        Some(other) if tree.head()?.is_some() => {
            let name = |full: &str| full.strip_prefix(HEADS).unwrap_or(full).to_owned();
            let (other, wanted) = (name(other), name(full));
            Err(TreeError::Refused(format!(
                "{} is on branch {other:?}, and {wanted:?} is deployed: `git checkout {wanted}` there first, \
                 or deploy {other:?}",
                tree.shown()
            )))
        }
        _ => Ok(Some(full.to_owned())),
    }
}

/// Refuses where commits that nobody else has would hang on nothing. `branches`: the one that the tree is
/// on, and the one that it is on then, which is moved.
fn refuse_losses(
    tree: &Worktree,
    mirror: &Path,
    target: &CommitId,
    note: Option<&Note>,
    branches: (Option<&str>, Option<&str>),
) -> Result<(), TreeError> {
    let (now, then) = branches;
    let head = tree.head()?;
    let mut left = Vec::new();
    match then {
        Some(branch) if Some(branch) == now => left.extend(head.clone()),
        Some(branch) => left.extend(tree.commit_of(branch)?),
        None => {}
    }
    if now.is_none() {
        left.extend(head);
    }
    for commit in left {
        let ours = note.is_some_and(|note| note.commit == commit || note.head.as_ref() == Some(&commit));
        if ours || commit == *target || tree.mirror_has(mirror, &commit)? {
            continue;
        }
        let own = tree.own_commits(&commit, target)?;
        if !own.is_empty() {
            return Err(TreeError::Refused(format!(
                "{} holds commits that its repository does not have: {}; push them, or reset the branch",
                tree.shown(),
                listed(&own)
            )));
        }
    }
    Ok(())
}

/// Takes back what a build or a killed move did to tracked files; refuses where a person did more. What can be given
/// back: not what a killed move did.
fn take_back(tree: &Worktree, note: Option<&Note>, head: Option<&CommitId>) -> Result<Option<Taken>, TreeError> {
    let half = Half::left(tree, note, head)?;
    let changed = tree.changed()?;
    let ours = |path: &String| {
        let known = note.and_then(|note| note.changed.get(path));
        known.is_some_and(|known| *known == tree.digest(path)) || half.is_ours(path)
    };
    let building = note.is_some_and(|note| matches!(note.phase, Phase::Building));
    let mut foreign: Vec<String> = changed.iter().filter(|path| !building && !ours(path)).cloned().collect();
    foreign.extend(half.foreign());
    foreign.sort();
    foreign.dedup();
    if !foreign.is_empty() {
        return Err(TreeError::Refused(format!(
            "{} holds changes that no deploy made: {}; commit and push them, or take them back with \
             `git checkout -- FILE`",
            tree.shown(),
            listed(&foreign)
        )));
    }
    if changed.is_empty() && half.is_empty() {
        return Ok(None);
    }
    let mut kept = None;
    if !changed.is_empty() {
        eprintln!("taken back: {} (kept as {UNDONE})", listed(&changed));
        kept = keep(tree)?;
    }
    half.remove_added(tree)?;
    match head {
        Some(head) => tree.must(&["read-tree", "--reset", "-u", head.as_str()])?,
        None => tree.must(&["read-tree", "--empty"])?,
    }
    Ok(kept.filter(|_| half.is_empty()).map(|commit| Taken { commit, paths: changed }))
}

/// What was taken back.
struct Taken {
    /// That holds these paths as they were.
    commit: String,
    paths: Vec<String>,
}

/// What runs was built of it, and runs on.
fn give_back(tree: &Worktree, taken: &Taken) -> Result<(), TreeError> {
    let listed = tree.ask(&["ls-tree", "-r", "-z", "--name-only", &taken.commit], b"")?;
    let there: BTreeSet<&[u8]> = listed.split(|byte| *byte == 0).collect();
    let (changed, removed): (Vec<&String>, Vec<&String>) =
        taken.paths.iter().partition(|path| there.contains(path.as_bytes()));
    for path in removed {
        let file = tree.path.join(path);
        fs::remove_file(&file).map_err(|e| TreeError::io(file.display().to_string(), e))?;
    }
    let paths: Vec<u8> = changed.iter().flat_map(|path| [path.as_bytes(), b"\0"].concat()).collect();
    let source = format!("--source={}", taken.commit);
    let args =
        ["--literal-pathspecs", "restore", "--worktree", &source, "--pathspec-from-file=-", "--pathspec-file-nul"];
    if changed.is_empty() { Ok(()) } else { tree.ask(&args, &paths).map(drop) }
}

/// Keeps the changes as a commit that no branch holds: whoever misses them finds them.
fn keep(tree: &Worktree) -> Result<Option<String>, TreeError> {
    let done = tree.git.run(&["stash", "create", "changes that a deploy took back"], b"")?;
    let made = String::from_utf8_lossy(&done.stdout).trim().to_owned();
    if done.code != Some(0) || made.is_empty() {
        return Ok(None);
    }
    tree.must(&["update-ref", UNDONE, &made])?;
    Ok(Some(made))
}

/// Files could not be moved. `touched`: some were.
struct Unmoved {
    why: TreeError,
    touched: bool,
}

fn move_files(tree: &Worktree, from: Option<&CommitId>, to: &CommitId) -> Result<(), Unmoved> {
    let from = from.map_or(EMPTY, CommitId::as_str);
    // Ends with 1 where something needs an update: then the next command says what.
    let run = |args: &[&str], touched| tree.git.run(args, b"").map_err(|why| Unmoved { why, touched });
    run(&["update-index", "-q", "--refresh"], false)?;
    let done = run(&["read-tree", "-m", "-u", from, to.as_str()], true)?;
    if done.code == Some(0) {
        return Ok(());
    }
    let (shown, short) = (tree.shown(), to.short());
    let named = |words: &str| -> Vec<String> {
        let lines = done.stderr.lines().filter(|line| line.contains(words));
        lines.filter_map(|line| Some(line.split_once('\'')?.1.rsplit_once('\'')?.0.to_owned())).collect()
    };
    let in_the_way = ["would be overwritten", "would be removed", "would lose untracked files"];
    let untracked: Vec<_> = in_the_way.iter().flat_map(|words| named(words)).collect();
    let changed = named("not uptodate");
    let touched = untracked.is_empty() && changed.is_empty();
    let why = TreeError::Refused(if !untracked.is_empty() {
        format!(
            "{shown} holds files that git does not track, and commit {short} brings others of that name: {}; \
             move them away",
            listed(&untracked)
        )
    } else if !changed.is_empty() {
        format!("somebody is changing {shown} right now: {}", listed(&changed))
    } else if done.says_full() {
        format!("the disk is full, so commit {short} could not be put into {shown}: make room there")
    } else {
        format!("commit {short} could not be put into {shown}: {}", done.last_words())
    });
    Err(Unmoved { why, touched })
}

/// Brings the branch to the commit, and `HEAD` to the branch.
fn set_head(
    tree: &Worktree,
    deploy: DeployId,
    commit: &CommitId,
    now: Option<&str>,
    then: Option<&str>,
) -> Result<(), TreeError> {
    let message = format!("everhook: deploy {deploy}");
    let commit = commit.as_str();
    let Some(branch) = then else {
        return tree.must(&["update-ref", "--no-deref", "-m", &message, "HEAD", commit]);
    };
    let new = tree.commit_of(branch)?.is_none();
    tree.must(&["update-ref", "-m", &message, branch, commit])?;
    if now != Some(branch) {
        tree.must(&["symbolic-ref", "-m", &message, "HEAD", branch])?;
    }
    if new && tree.has_remote() {
        let name = branch.strip_prefix(HEADS).unwrap_or(branch);
        tree.must(&["config", &format!("branch.{name}.remote"), "origin"])?;
        tree.must(&["config", &format!("branch.{name}.merge"), branch])?;
    }
    Ok(())
}

/// What steps changed, by path: how each file is left.
type Digests = BTreeMap<String, String>;
