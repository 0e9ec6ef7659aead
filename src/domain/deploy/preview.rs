//! What a deploy or a rollback would do, without doing it: `--dry-run`.

use std::sync::Arc;

use super::{
    Live, Places, Queued, StepKind,
    task::{self, Planned},
};
use crate::domain::{
    api::{By, Compared, DeployView, Fetch, Fetched, PlannedStep, Preview, Verdict},
    config,
    model::{At, CommitId, InstanceId, ReleaseId},
};

/// What a deploy by hand would fetch; `None` for an app without a repository.
#[must_use]
pub fn fetch(
    app: &Arc<config::App>,
    places: Places,
    by: By,
    rev: Option<String>,
    live: Option<&Live>,
) -> Option<Fetch> {
    let deploy = app.deploy.as_ref()?;
    let view = DeployView::new(&app.name, by, At(0));
    let queued = Queued { view, attempts: 0, rev, since: None, app: Arc::clone(app), places };
    Some(task::fetch(&queued, deploy, live, (false, &[])))
}

/// What it would do with what was fetched. `instances`: those that would run the release.
#[must_use]
pub fn deploy(
    app: &config::App,
    live: Option<&Live>,
    fetched: Fetched,
    compared: Compared,
    instances: Vec<InstanceId>,
) -> Preview {
    let Fetched { verdict, ref_name, commit, subject, author, changes, .. } = fetched;
    let short = commit.as_ref().map_or("it", CommitId::short);
    let reason = (verdict != Verdict::Deploy).then(|| task::passed_over(verdict, short, &ref_name).1);
    let irreversible = app.deploy.as_ref().and_then(|deploy| task::irreversible(deploy, &changes));
    let steps = app.deploy.iter().flat_map(|deploy| task::steps(deploy, &changes));
    let steps = steps.filter(|planned| planned.kind != StepKind::OnFailure).map(planned);
    Preview {
        ref_name: Some(ref_name),
        subject,
        author,
        reason,
        irreversible,
        steps: steps.collect(),
        ..preview(app, live, commit, compared, instances)
    }
}

/// What going back to a release on disk would do: nothing is fetched, checked or built again.
#[must_use]
pub fn rollback(
    app: &config::App,
    live: Option<&Live>,
    to: (ReleaseId, CommitId),
    compared: Compared,
    instances: Vec<InstanceId>,
) -> Preview {
    let steps = app.deploy.iter().flat_map(|deploy| task::steps(deploy, &[]));
    let steps = steps.filter(|planned| planned.kind == StepKind::AfterLive).map(planned).collect();
    Preview { release: Some(to.0), steps, ..preview(app, live, Some(to.1), compared, instances) }
}

fn preview(
    app: &config::App,
    live: Option<&Live>,
    commit: Option<CommitId>,
    compared: Compared,
    instances: Vec<InstanceId>,
) -> Preview {
    Preview {
        app: app.name.clone(),
        ref_name: None,
        commit,
        subject: None,
        author: None,
        live_release: live.map(|live| live.release.clone()),
        live_commit: live.map(|live| live.commit.clone()),
        release: None,
        reason: None,
        irreversible: None,
        compared,
        steps: Vec::new(),
        instances,
    }
}

fn planned(Planned { kind, step, left_out }: Planned) -> PlannedStep {
    PlannedStep { name: kind.name().to_owned(), command: step.label().to_owned(), left_out }
}
