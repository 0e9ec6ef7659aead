//! The files `live` (what starts), `unproven` (what starts in its place), `current` (the link for others),
//! `down` (a person stopped it) and `frozen` (nothing is deployed) of an app: the truth about what is to
//! run, whatever the store says. On the files thread.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::layout::Layout;
use crate::{
    domain::{
        deploy::Freeze,
        model::{AppName, At},
        service::Release,
    },
    os::files,
};

/// What is live of the app; `None`: nothing ever was.
///
/// # Errors
/// Names the file when it holds something else, or its release is not there.
pub fn read(layout: &Layout, app: &AppName) -> Result<Option<Release>, String> {
    named_in(&layout.live(app), layout, app)
}

/// What the app runs in place of its live release, since it could not be taken back.
///
/// # Errors
/// As [`read`].
pub fn unproven(layout: &Layout, app: &AppName) -> Result<Option<Release>, String> {
    named_in(&layout.unproven(app), layout, app)
}

fn named_in(path: &Path, layout: &Layout, app: &AppName) -> Result<Option<Release>, String> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(format!("{}: {e}", path.display())),
    };
    let mut words = text.trim_end_matches('\n').splitn(3, ' ');
    let parsed = words.next().and_then(|id| id.parse().ok()).zip(words.next().and_then(|commit| commit.parse().ok()));
    let Some((id, commit)) = parsed else {
        return Err(format!("{} names no release; it should read `7-1a2b3c4 <commit>`", path.display()));
    };
    let directory = words.next().map_or_else(|| layout.release(app, &id), PathBuf::from);
    if !directory.is_dir() {
        return Err(format!("{} names {id}, and {} is not there", path.display(), directory.display()));
    }
    Ok(Some(Release { id, commit, directory }))
}

/// Makes `live` what starts from now on, durably.
///
/// # Errors
/// Names what could not be written; what starts is then as before.
pub fn write(layout: &Layout, app: &AppName, live: &Release) -> Result<(), String> {
    name_in(&layout.live(app), layout, app, live)?;
    forget_unproven(layout, app)
}

/// Has a release start in place of the live one, over a crash and a restart of the machine too.
///
/// # Errors
/// Names the file.
pub fn keep_unproven(layout: &Layout, app: &AppName, release: &Release) -> Result<(), String> {
    name_in(&layout.unproven(app), layout, app, release)
}

/// What is live starts again.
///
/// # Errors
/// Names the file.
pub fn forget_unproven(layout: &Layout, app: &AppName) -> Result<(), String> {
    let path = layout.unproven(app);
    if !path.exists() {
        return Ok(());
    }
    files::remove_durably(&path).map_err(|e| format!("{}: {e}", path.display()))
}

/// A working tree stands there by its path: it need not be the one of the config any more.
fn name_in(path: &Path, layout: &Layout, app: &AppName, named: &Release) -> Result<(), String> {
    let Release { id, commit, directory } = named;
    let own = *directory == layout.release(app, id);
    let place = if own { String::new() } else { format!(" {}", directory.display()) };
    let text = format!("{id} {commit}{place}\n");
    files::write_durably(path, text.as_bytes(), 0o644).map_err(|e| format!("{}: {e}", path.display()))
}

/// Points `current` at the live release, where it does not yet: a crash may have come in between.
///
/// # Errors
/// Names the link.
pub fn link(layout: &Layout, app: &AppName, release: &Release) -> Result<(), String> {
    let link = layout.current(app);
    let target = release.directory.strip_prefix(layout.app(app)).unwrap_or(&release.directory);
    if fs::read_link(&link).is_ok_and(|found| found == target) {
        return Ok(());
    }
    files::symlink_swap(target, &link).map_err(|e| format!("{}: {e}", link.display()))
}

/// What a person stopped, and who did: a copy by its number, or all of the app.
pub type Holds = Vec<(Option<u32>, String)>;

/// Keeps what people have stopped: a line `stopped by ann` for all of the app, `2: stopped by ann` for
/// a copy; no file where nothing is stopped.
///
/// # Errors
/// Names the file.
pub fn keep_holds(layout: &Layout, app: &AppName, holds: &[(Option<u32>, String)]) -> Result<(), String> {
    let path = layout.down(app);
    let line = |(number, by): &(Option<u32>, String)| {
        number.map_or_else(|| format!("{by}\n"), |number| format!("{number}: {by}\n"))
    };
    let result = if holds.is_empty() {
        files::remove_durably(&path)
    } else {
        files::write_durably(&path, holds.iter().map(line).collect::<String>().as_bytes(), 0o644)
    };
    result.map_err(|e| format!("{}: {e}", path.display()))
}

/// What people had stopped; an empty file stops all of the app.
#[must_use]
pub fn holds(layout: &Layout, app: &AppName) -> Holds {
    let Ok(text) = fs::read_to_string(layout.down(app)) else { return Vec::new() };
    let read = |line: &str| match line.split_once(": ").map(|(number, by)| (number.parse(), by)) {
        Some((Ok(number), by)) => (Some(number), by.to_owned()),
        _ => (None, line.to_owned()),
    };
    let holds: Holds = text.lines().filter(|line| !line.is_empty()).map(read).collect();
    if holds.is_empty() { vec![(None, "stopped".to_owned())] } else { holds }
}

/// Keeps who froze the app's deploys, when and why; no file where nobody did.
///
/// # Errors
/// Names the file.
pub fn keep_freeze(layout: &Layout, app: &AppName, freeze: Option<&Freeze>) -> Result<(), String> {
    let path = layout.frozen(app);
    let result = match freeze {
        Some(freeze) => files::write_durably(&path, freeze.text().as_bytes(), 0o644),
        None => files::remove_durably(&path),
    };
    result.map_err(|e| format!("{}: {e}", path.display()))
}

/// Is the app frozen? A file that cannot be read is one that somebody wanted there.
#[must_use]
pub fn freeze(layout: &Layout, app: &AppName) -> Option<Freeze> {
    let path = layout.frozen(app);
    let why = match fs::read_to_string(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(e) => e.to_string(),
        Ok(text) => match text.parse() {
            Ok(freeze) => return Some(freeze),
            Err(why) => why,
        },
    };
    let at = fs::metadata(&path).and_then(|facts| facts.modified()).ok();
    let at = at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
    let at = At(i64::try_from(at.as_millis()).unwrap_or_default());
    Some(Freeze { by: "somebody".to_owned(), at, why: format!("{} is there ({why})", path.display()) })
}

/// Up to when a scheduled app's runs are dealt with, and by which expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    pub until: At,
    pub schedule: String,
}

/// Keeps it over a restart of everhook or of the machine.
///
/// # Errors
/// Names the file.
pub fn keep_ran(layout: &Layout, app: &AppName, ran: &Ran) -> Result<(), String> {
    let path = layout.last_run(app);
    let text = format!("{} {}\n", ran.until, ran.schedule);
    files::write_durably(&path, text.as_bytes(), 0o644).map_err(|e| format!("{}: {e}", path.display()))
}

/// What was kept; nothing where it cannot be read, since a run that was missed is no reason to fail.
#[must_use]
pub fn ran(layout: &Layout, app: &AppName) -> Option<Ran> {
    let text = fs::read_to_string(layout.last_run(app)).ok()?;
    let (until, schedule) = text.trim_end().split_once(' ')?;
    Some(Ran { until: until.parse().ok()?, schedule: schedule.to_owned() })
}
