//! Whether a release can be taken back: by the files that differ from what is live.

use std::path::Path;

use super::{TreeError, compare, judge, mirror::Mirror};
use crate::domain::{
    api::Weighed,
    model::{CommitId, Globs},
};

/// Over everything from `from` to `to`; where that cannot be compared any more, all has changed.
pub(super) fn weigh(
    mirror: &Path,
    repo: &str,
    from: &CommitId,
    to: &CommitId,
    patterns: &[String],
) -> Result<Weighed, TreeError> {
    let mirror = Mirror::open(mirror, repo)?;
    if !judge::is_there(&mirror, from)? {
        let why = format!("{}, which is live, is not in the repository any more", from.short());
        return Ok(Weighed { irreversible: Some(why) });
    }
    let patterns = Globs::of_paths(patterns).map_err(|bad| TreeError::Refused(bad.why))?;
    let changed = compare::changed(&mirror, from, to)?;
    let found = changed.iter().find(|path| patterns.take(path));
    Ok(Weighed { irreversible: found.map(|path| format!("{path:?} differs from what is live")) })
}
