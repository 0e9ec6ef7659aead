//! `--dry-run` of `deploy` and `rollback`.

use std::time::Duration;

use super::{
    client::{look_long, strange},
    failure::Failure,
    find::Place,
    screen::{BUSY, HEADER, Screen, visible},
};
use crate::domain::{
    api::{Preview, Reply, Request},
    model::CommitId,
};

/// Shows what would be done.
///
/// # Errors
/// As the supervisor says.
pub fn preview(place: &Place, request: Request, timeout: Option<Duration>) -> Result<(), Failure> {
    let mut screen = Screen::stdout();
    let Reply::Preview(preview) = look_long(place, &mut screen, request, timeout)? else { return Err(strange()) };
    head(&mut screen, &preview)?;
    compared(&mut screen, &preview)?;
    if !preview.steps.is_empty() {
        screen.line(&screen.paint(HEADER, "STEPS"))?;
        for step in &preview.steps {
            let why = if step.left_out { "  (left out: nothing that its `when` names differs)" } else { "" };
            screen.line(&format!("  {:<13} {}{why}", step.name, visible(&step.command)))?;
        }
    }
    screen.line(&screen.paint(HEADER, "INSTANCES"))?;
    if preview.instances.is_empty() {
        screen.line("  none: the release would only be made live")?;
    }
    preview.instances.iter().try_for_each(|id| screen.line(&format!("  {id}")))?;
    screen.line("nothing was changed")?;
    Ok(screen.flush()?)
}

fn head(screen: &mut Screen, preview: &Preview) -> Result<(), Failure> {
    let Preview { app, commit, subject, author, ref_name, .. } = preview;
    let short = commit.as_ref().map_or("an unknown commit", CommitId::short);
    let said = subject.as_ref().map(|subject| format!(" {subject}")).unwrap_or_default();
    let author = author.as_ref().map(|author| format!(" ({author})")).unwrap_or_default();
    let from = ref_name.as_ref().map(|name| format!(" of {name}")).unwrap_or_default();
    let what = match &preview.release {
        Some(release) => format!("rollback of {app}: to release {release}, commit {short}"),
        None => format!("deploy of {app}: {short}{said}{author}{from}"),
    };
    screen.line(&visible(&what))?;
    let live = match (&preview.live_release, &preview.live_commit) {
        (Some(release), Some(live)) if Some(live) == commit.as_ref() => format!("live is this commit, in {release}"),
        (Some(release), Some(live)) => format!("live is {}, in {release}", live.short()),
        _ => "nothing is live yet".to_owned(),
    };
    screen.line(&live)?;
    if let Some(reason) = &preview.reason {
        screen.line(&screen.paint(BUSY, &visible(&format!("it would not go live: {reason}"))))?;
    } else if let Some(why) = &preview.irreversible {
        let line = format!("it would await approval before it switches (irreversible: {why})");
        screen.line(&screen.paint(BUSY, &visible(&line)))?;
    }
    Ok(())
}

fn compared(screen: &mut Screen, preview: &Preview) -> Result<(), Failure> {
    let compared = &preview.compared;
    let whole = preview.live_commit.is_some() && !compared.known && compared.files_total > 0;
    if whole {
        screen.line("the live commit is not in the repository any more: all of the new one is shown")?;
    }
    let back = match compared.taken_back {
        0 => String::new(),
        n => format!(", {n} taken back"),
    };
    screen.line(&screen.paint(HEADER, &format!("COMMITS: {}{back}", compared.commits_total)))?;
    for one in &compared.commits {
        screen.line(&visible(&format!("  {} {} ({})", one.commit.short(), one.subject, one.author)))?;
    }
    more(screen, compared.commits_total, compared.commits.len())?;
    screen.line(&screen.paint(HEADER, &format!("FILES: {}", compared.files_total)))?;
    compared.files.iter().try_for_each(|path| screen.line(&visible(&format!("  {path}"))))?;
    more(screen, compared.files_total, compared.files.len())
}

fn more(screen: &mut Screen, total: u64, shown: usize) -> Result<(), Failure> {
    match total.saturating_sub(shown as u64) {
        0 => Ok(()),
        more => Ok(screen.line(&format!("  and {more} more"))?),
    }
}
