//! How a deploy's record changes: steps that begin and end, its end, its return into the queue.

use std::time::Duration;

use super::{Action, Live, StepKind};
use crate::domain::{
    api::{DeployState, DeployView, StepExit, StepState, StepView},
    model::{At, ReleaseId},
};

/// What becomes of a deploy that the last supervisor left unfinished.
#[derive(Debug, Clone)]
pub enum Resumption {
    /// It had made it: store it as live.
    Live(Box<DeployView>),
    /// Queue it again; the queue itself ends what was interrupted too often.
    Requeue(Box<DeployView>),
    /// It waits for somebody's word, as it did: what it has built is kept.
    Held(Box<DeployView>),
    /// It had ended, and what follows an end did not, or not to its own end: store it and tell that.
    Ended { view: Box<DeployView>, removal: Option<Action>, told: String },
}

/// What there is of an app when its deploys are looked at again.
#[derive(Debug, Clone, Copy, Default)]
pub struct Found<'a> {
    /// What the file `live` names.
    pub live: Option<&'a Live>,
    /// What runs in its place, since it could not be taken back.
    pub stands: Option<&'a ReleaseId>,
    /// It has steps that follow what went live.
    pub after_live: bool,
}

/// Judges an unfinished deploy by the file `live`, which alone says what was reached, and by what runs in
/// its place.
#[must_use]
pub fn resume(mut view: DeployView, found: Found<'_>, at: At) -> Resumption {
    let Found { live, stands, after_live } = found;
    if view.state.is_end() {
        return interrupted(view, at);
    }
    let switched = matches!(view.state, DeployState::Switching | DeployState::Verifying) || is_unproven(&view);
    if switched && view.release.is_some() && view.release.as_ref() == live.map(|live| &live.release) {
        end_step(&mut view, StepState::Done, None, None);
        view.state = DeployState::Live;
        view.step = None;
        view.ended_at = Some(at);
        if after_live {
            let told = format!("everhook ended before its `{}`, which is not run", StepKind::AfterLive.name());
            view.reason = Some(told.clone());
            return Resumption::Ended { view: Box::new(view), removal: None, told };
        }
        return Resumption::Live(Box::new(view));
    }
    let waits = view.state == DeployState::AwaitingApproval && !view.steps.is_empty();
    let beside = view.previous_commit.as_ref() == live.map(|live| &live.commit);
    if waits && beside {
        return Resumption::Held(Box::new(view));
    }
    if switched && view.release.is_some() && view.release.as_ref() == stands {
        end_step(&mut view, StepState::Failed, None, None);
        stand(&mut view, "everhook ended before it was proven");
        return Resumption::Held(Box::new(view));
    }
    requeue(&mut view);
    Resumption::Requeue(Box::new(view))
}

/// Has it switched, and was neither proven nor taken back?
pub(super) fn is_unproven(view: &DeployView) -> bool {
    matches!(view.step.as_deref(), Some("switch" | "verify"))
}

/// What it did cannot be taken back, and somebody is to be asked what now.
pub(super) fn stand(view: &mut DeployView, why: &str) {
    view.approved_by = None;
    view.reason = Some(format!("{why}; it cannot be taken back"));
}

/// Steps that follow an end are not run again: nobody knows how far they came.
fn interrupted(mut view: DeployView, at: At) -> Resumption {
    let kind = if view.state == DeployState::Live { StepKind::AfterLive } else { StepKind::OnFailure };
    let told = format!("its `{}` was interrupted, and is not run again", kind.name());
    end_step(&mut view, StepState::Cancelled, None, None);
    if view.state == DeployState::Live {
        view.reason = Some(view.reason.map_or_else(|| told.clone(), |reason| format!("{reason}; {told}")));
        view.step = None;
    }
    view.ended_at = Some(at);
    let removal = take_release(&mut view);
    Resumption::Ended { view: Box::new(view), removal, told }
}

/// As if it had never started. It remembers the folder it made, so that the next try clears it.
pub(super) fn requeue(view: &mut DeployView) {
    view.state = DeployState::Queued;
    view.step = None;
    view.reason = None;
    view.started_at = None;
    view.steps.clear();
}

/// Begins a step; of one that comes after a failure, the failed one stays the deploy's step.
pub(super) fn begin_step(view: &mut DeployView, name: &str, command: Option<String>) {
    if name != StepKind::OnFailure.name() {
        view.step = Some(name.to_owned());
    }
    let running = StepState::Running;
    view.steps.push(StepView { name: name.to_owned(), command, state: running, duration_s: None, exit: None });
}

/// Ends the step that runs, if one does.
pub(super) fn end_step(view: &mut DeployView, state: StepState, lasted: Option<Duration>, exit: Option<StepExit>) {
    if let Some(step) = view.steps.last_mut().filter(|step| step.state == StepState::Running) {
        step.state = state;
        step.duration_s = lasted.map(|d| d.as_secs_f64());
        step.exit = exit;
    }
}

/// The removal of a release that it made and that is not live.
pub(super) fn take_release(view: &mut DeployView) -> Option<Action> {
    let own = view.release.take_if(|release| view.state != DeployState::Live && release.deploy == view.id);
    own.map(|release| Action::RemoveRelease { app: view.app.clone(), release })
}

/// Ends a deploy: records it, tells whoever waits, and removes the release that it made, unless that
/// is live now.
pub(super) fn end(mut view: DeployView, attempts: u32, state: DeployState, at: At, out: &mut Vec<Action>) {
    let kept_step = matches!(state, DeployState::Failed | DeployState::RolledBack | DeployState::Cancelled);
    if !kept_step {
        view.step = None;
    }
    view.state = state;
    view.ended_at = Some(at);
    let removal = take_release(&mut view);
    let view = Box::new(view);
    out.push(Action::Persist { view: view.clone(), attempts });
    out.push(Action::Ended(view));
    out.extend(removal);
}
