//! What lies between two commits of a mirror, for whoever asks what a deploy would bring.

use std::path::Path;

use super::{TreeError, commit::shortened, judge, mirror::Mirror};
use crate::domain::{
    api::{CommitView, Compared},
    model::{CommitId, Globs},
};

/// Commits and paths that are named; the rest is counted.
const COMMITS: usize = 50;
const FILES: usize = 200;
/// Of a path, in characters.
const LONGEST_PATH: usize = 500;

/// From `from`, where that is there, to `to`.
pub(super) fn compare(
    mirror: &Path,
    repo: &str,
    from: Option<&CommitId>,
    to: &CommitId,
) -> Result<Compared, TreeError> {
    let mirror = Mirror::open(mirror, repo)?;
    if !judge::is_there(&mirror, to)? {
        return Err(TreeError::Refused(format!("commit {} is not in the mirror", to.short())));
    }
    let from = match from {
        Some(from) if judge::is_there(&mirror, from)? => Some(from),
        _ => None,
    };
    let range = from.map_or_else(|| to.to_string(), |from| format!("{from}..{to}"));
    let (files, files_total) = files(&mirror, from, to)?;
    Ok(Compared {
        known: from.is_some(),
        commits: commits(&mirror, &range)?,
        commits_total: count(&mirror, &range)?,
        taken_back: from.map_or(Ok(0), |from| count(&mirror, &format!("{to}..{from}")))?,
        files,
        files_total,
    })
}

fn commits(mirror: &Mirror, range: &str) -> Result<Vec<CommitView>, TreeError> {
    let most = format!("--max-count={COMMITS}");
    let format = "--format=%H%x00%s%x00%an <%ae>%x00";
    let args = ["log", &most, "--no-show-signature", "--no-color", "-z", format, "--end-of-options", range, "--"];
    let text = mirror.git.must(&args)?;
    let text = String::from_utf8_lossy(&text);
    let words: Vec<&str> = text.split('\0').collect();
    // Each entry ends with a NUL of the format's and one of `-z`.
    let entries = words.chunks_exact(4).map(|words| {
        let commit = words[0].trim().parse().map_err(|_| TreeError::Mirror(format!("{:?} is no commit", words[0])))?;
        Ok(CommitView { commit, subject: shortened(words[1]), author: shortened(words[2]) })
    });
    entries.collect()
}

fn count(mirror: &Mirror, range: &str) -> Result<u64, TreeError> {
    let text = mirror.git.must(&["rev-list", "--count", "--end-of-options", range, "--"])?;
    let text = String::from_utf8_lossy(&text);
    text.trim().parse().map_err(|_| TreeError::Mirror(format!("{text:?} is no number of commits")))
}

fn files(mirror: &Mirror, from: Option<&CommitId>, to: &CommitId) -> Result<(Vec<String>, u64), TreeError> {
    let paths = match from {
        Some(from) => changed(mirror, from, to)?,
        None => listed(&mirror.git.must(&["ls-tree", "-r", "-z", "--name-only", "--full-tree", to.as_str()])?),
    };
    let shown = |path: &String| path.chars().take(LONGEST_PATH).collect();
    Ok((paths.iter().take(FILES).map(shown).collect(), paths.len() as u64))
}

/// Every path that differs, by both names where a file was renamed.
pub(super) fn changed(mirror: &Mirror, from: &CommitId, to: &CommitId) -> Result<Vec<String>, TreeError> {
    let args = ["diff-tree", "-r", "-z", "--name-only", "--no-renames", "--end-of-options"];
    Ok(listed(&mirror.git.must(&[&args[..], &[from.as_str(), to.as_str()]].concat())?))
}

/// Of each list of patterns, whether a file that fits differs from what is live, and which; where that
/// cannot be compared any more, all has changed.
pub(super) fn changes(
    mirror: &Mirror,
    live: Option<&CommitId>,
    commit: &CommitId,
    lists: &[Vec<String>],
) -> Result<Vec<Option<String>>, TreeError> {
    let Some(live) = live.filter(|_| !lists.is_empty()) else { return Ok(Vec::new()) };
    if !judge::is_there(mirror, live)? {
        let why = format!("{}, which is live, is not in the repository any more", live.short());
        return Ok(vec![Some(why); lists.len()]);
    }
    let changed = changed(mirror, live, commit)?;
    let differs = |patterns: &Vec<String>| {
        let patterns = Globs::of_paths(patterns).map_err(|bad| TreeError::Refused(bad.why))?;
        let found = changed.iter().find(|path| patterns.take(path));
        Ok(found.map(|path| format!("{path:?} differs from what is live")))
    };
    lists.iter().map(differs).collect()
}

fn listed(output: &[u8]) -> Vec<String> {
    let paths = output.split(|b| *b == 0).filter(|path| !path.is_empty());
    paths.map(|path| String::from_utf8_lossy(path).into_owned()).collect()
}
