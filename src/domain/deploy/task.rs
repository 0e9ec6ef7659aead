//! What a deploy is to do by its config: what is fetched, which steps follow, how what is not deployed ends.

use super::{Live, Queued, StepKind, wanted};
use crate::domain::{
    api::{By, DeployState, Fetch, Filters, Verdict},
    config::{self, Track},
    model::CommitId,
};

/// Free space that a release needs at least, in bytes.
const LEAST_SPACE: u64 = 500 << 20;

/// How much must be free before a commit is put anywhere, in bytes. `size`: what it will take, as far as
/// that is known.
pub(super) fn space(size: Option<u64>) -> u64 {
    LEAST_SPACE.max(size.unwrap_or(0).saturating_mul(2))
}

/// A step that may be to be run.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub kind: StepKind,
    pub step: config::Step,
    /// Nothing of what it is for differs from what is live.
    pub left_out: bool,
}

/// All steps of a deploy, in the order of their kinds. `changes`: what the fetch answered to [`changes`].
pub(super) fn steps(deploy: &config::Deploy, changes: &[Option<String>]) -> Vec<Planned> {
    let mut answers = changes.iter();
    let all = written(deploy).map(|(kind, step)| {
        let asked = !step.changed.is_empty();
        let left_out = asked && answers.next().is_some_and(Option::is_none);
        Planned { kind, step: step.clone(), left_out }
    });
    all.collect()
}

/// What the fetch is asked: of each step with a condition, at last whether it can be taken back.
fn changes(deploy: &config::Deploy) -> Vec<Vec<String>> {
    let lists = written(deploy).map(|(_, step)| &step.changed).chain([&deploy.irreversible]);
    lists.filter(|patterns| !patterns.is_empty()).cloned().collect()
}

/// Why a release cannot be taken back, as the fetch answered.
pub(super) fn irreversible(deploy: &config::Deploy, changes: &[Option<String>]) -> Option<String> {
    if deploy.irreversible.is_empty() { None } else { changes.last().cloned().flatten() }
}

fn written(deploy: &config::Deploy) -> impl Iterator<Item = (StepKind, &config::Step)> {
    let lists = [
        (StepKind::Check, &deploy.check),
        (StepKind::Build, &deploy.build),
        (StepKind::BeforeSwitch, &deploy.before_switch),
        (StepKind::AfterLive, &deploy.after_live),
        (StepKind::OnFailure, &deploy.on_failure),
    ];
    lists.into_iter().flat_map(|(kind, steps)| steps.iter().map(move |step| (kind, step)))
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
        asked: view.by.is_person(),
        damaged: None,
        live: live.map(|live| live.commit.clone()),
        live_release: live.filter(|_| deploy.tree().is_none()).map(|live| queued.places.release(&live.release)),
        filters: (!asked).then_some(filters),
        changes: changes(deploy),
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
