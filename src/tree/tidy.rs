//! Keeps a mirror small: git's own housekeeping is off, since it would go on behind a job's back.

use std::{fs, io, path::Path};

use super::{TreeError, mirror::Mirror};

/// More loose objects or packs than these are put together.
const LOOSE: usize = 400;
const PACKS: usize = 12;
/// What no ref reaches stays so long: a deploy of it may be under way.
const KEPT: &str = "--prune=1.hour.ago";

/// Puts together what many fetches brought and drops what no ref reaches any more, where that is due
/// and nobody else works in the mirror. It has one processor at most, and a hundred MiB or so.
pub(super) fn tidy(path: &Path) -> Result<(), TreeError> {
    let Some(mirror) = Mirror::idle(path)? else { return Ok(()) };
    if !is_due(path).map_err(|e| TreeError::io(format!("the mirror {}", path.display()), e))? {
        return Ok(());
    }
    // As good as it goes.
    let _ = rustix::process::nice(10);
    let settings = ["-c", "pack.threads=1", "-c", "pack.windowMemory=100m", "-c", "gc.writeCommitGraph=false"];
    let gc = ["gc", "--quiet", "--force", KEPT];
    mirror.git.must(&[&settings[..], &gc].concat()).map(drop)
}

fn is_due(mirror: &Path) -> io::Result<bool> {
    let packs = fs::read_dir(mirror.join("objects/pack"))?.filter_map(Result::ok);
    let packs = packs.filter(|entry| entry.path().extension().is_some_and(|kind| kind == "pack")).count();
    let mut loose = 0;
    for folder in fs::read_dir(mirror.join("objects"))?.filter_map(Result::ok) {
        if folder.file_name().len() == 2 {
            loose += fs::read_dir(folder.path())?.count();
        }
    }
    Ok(packs > PACKS || loose > LOOSE)
}
