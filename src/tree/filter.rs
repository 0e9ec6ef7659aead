//! What keeps a commit from being deployed though its ref holds it: `paths`, `authors`, and a word in
//! its message. Judged over everything that is not live yet, not over one push: a push that waited may
//! have been merged into a later one that changes nothing else.

use super::{TreeError, compare, judge, mirror::Mirror};
use crate::domain::{
    api::Filters,
    model::{BadGlob, CommitId, Globs},
};

/// In the message of a commit that nobody is to deploy but by hand; in any case of letters.
const SKIP: &str = "[skip deploy]";

/// Commits whose authors are looked at: those of more are not read.
const MOST_COMMITS: &str = "--max-count=10000";

/// Why `commit`, with this message, is not deployed over `live`; `None`: it is.
pub(super) fn objection(
    mirror: &Mirror,
    filters: &Filters,
    live: Option<&CommitId>,
    commit: &CommitId,
    message: &str,
) -> Result<Option<String>, TreeError> {
    if message.to_lowercase().contains(SKIP) {
        return Ok(Some(format!("`{SKIP}` stands in the message of {}", commit.short())));
    }
    let refused = |bad: BadGlob| TreeError::Refused(bad.why);
    let paths = Globs::of_paths(&filters.paths).map_err(refused)?;
    let authors = Globs::of_people(&filters.authors).map_err(refused)?;
    // Without something to compare with everything has changed.
    let Some(live) = live.filter(|_| !paths.is_empty() || !authors.is_empty()) else { return Ok(None) };
    if !judge::is_there(mirror, live)? {
        return Ok(None);
    }
    if !paths.is_empty() && !compare::changed(mirror, live, commit)?.iter().any(|path| paths.take(path)) {
        return Ok(Some(format!("no file that `paths` names differs from {}, which is live", live.short())));
    }
    if !authors.is_empty() && !written(mirror, live, commit)?.iter().any(|(n, m)| by(&authors, n, m)) {
        return Ok(Some(format!("nobody that `authors` names wrote what is new since {}", live.short())));
    }
    Ok(None)
}

fn by(authors: &Globs, name: &str, mail: &str) -> bool {
    authors.take_any(&[name, mail, &format!("{name} <{mail}>")])
}

/// Who wrote the commits that are new; where there are none, since the branch went back, the commit.
fn written(mirror: &Mirror, live: &CommitId, commit: &CommitId) -> Result<Vec<(String, String)>, TreeError> {
    let new = authors(mirror, &[MOST_COMMITS, &format!("{live}..{commit}")])?;
    if new.is_empty() { authors(mirror, &["--max-count=1", commit.as_str()]) } else { Ok(new) }
}

fn authors(mirror: &Mirror, which: &[&str]) -> Result<Vec<(String, String)>, TreeError> {
    let args = ["log", "-z", "--no-show-signature", "--no-color", "--format=%an%n%ae"];
    let listed = mirror.git.must(&[&args[..], which, &["--"]].concat())?;
    let listed = String::from_utf8_lossy(&listed);
    let pair = |one: &str| one.split_once('\n').map(|(name, mail)| (name.to_owned(), mail.to_owned()));
    Ok(listed.split('\0').filter_map(pair).collect())
}
