//! What a deploy is to do by its config: what is fetched, which steps follow, how what is not deployed ends.

use super::{Live, Queued, StepKind, wanted};
use crate::domain::{
    api::{By, DeployState, Fetch, Filters, Verdict},
    config::{self, Track},
    model::CommitId,
};

/// The steps of a deploy, in their order.
pub(super) fn steps(deploy: &config::Deploy) -> Vec<(StepKind, config::Step)> {
    let check = deploy.check.iter().map(|step| (StepKind::Check, step.clone()));
    let build = deploy.build.iter().map(|step| (StepKind::Build, step.clone()));
    check.chain(build).collect()
}

/// What is to be fetched and judged. `merged`: whether it stands for several pushes, and the commits of
/// the others.
pub(super) fn fetch(
    queued: &Queued,
    deploy: &config::Deploy,
    live: Option<&Live>,
    merged: (bool, &[CommitId]),
) -> Fetch {
    let view = &queued.view;
    let asked = view.by.is_person() || view.by == By::First;
    let filters = Filters { paths: deploy.paths.clone(), authors: deploy.authors.clone() };
    let any = queued.rev.is_some() || means_tip(queued, deploy, merged.0);
    Fetch {
        deploy: view.id,
        repo: deploy.repo.clone(),
        mirror: queued.places.mirror.clone(),
        wanted: wanted(deploy, view.ref_name.clone()),
        commit: view.commit.clone().filter(|_| !any),
        also: if any { Vec::new() } else { merged.1.to_vec() },
        rev: queued.rev.clone(),
        live: live.map(|live| live.commit.clone()),
        filters: (!asked).then_some(filters),
    }
}

/// Is it the newest commit of its ref, whatever that is by then?
pub(super) fn means_tip(queued: &Queued, deploy: &config::Deploy, merged: bool) -> bool {
    let view = &queued.view;
    let every = view.ref_name.as_ref().is_none_or(|name| deploy.takes_every(name));
    every && (merged || deploy.track == Track::Head && view.approved_by.is_none())
}

/// How a deploy ends whose commit is not deployed, and why. `short`: the commit.
pub(super) fn passed_over(verdict: Verdict, short: &str, ref_name: &str) -> (DeployState, String) {
    match verdict {
        Verdict::Deploy => (DeployState::Skipped, format!("older: {short} is live already")),
        Verdict::Older => (DeployState::Skipped, format!("older: {short} is part of what is live")),
        Verdict::Gone => (DeployState::Superseded, format!("gone: {short} is not reachable from {ref_name} any more")),
        Verdict::NotWanted { reason } => (DeployState::Skipped, reason),
    }
}
