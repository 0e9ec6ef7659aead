//! How a deploy's record changes: steps that begin and end, its end, its return into the queue.

use std::time::Duration;

use super::Action;
use crate::domain::{
    api::{DeployState, DeployView, StepExit, StepState, StepView},
    model::{At, ReleaseId},
};

/// What becomes of a deploy that the last supervisor left unfinished.
#[derive(Debug, Clone, PartialEq)]
pub enum Resumption {
    /// It had made it: store it as live.
    Live(Box<DeployView>),
    /// Queue it again; the queue itself ends what was interrupted too often.
    Requeue(Box<DeployView>),
}

/// Judges an unfinished deploy by the file `live`, which alone says what was reached.
#[must_use]
pub fn resume(mut view: DeployView, live: Option<&ReleaseId>, at: At) -> Resumption {
    let switched = matches!(view.state, DeployState::Switching | DeployState::Verifying);
    if switched && view.release.is_some() && view.release.as_ref() == live {
        end_step(&mut view, StepState::Done, None, None);
        view.state = DeployState::Live;
        view.step = None;
        view.ended_at = Some(at);
        return Resumption::Live(Box::new(view));
    }
    requeue(&mut view);
    Resumption::Requeue(Box::new(view))
}

/// As if it had never started. It remembers the folder it made, so that the next try clears it.
pub(super) fn requeue(view: &mut DeployView) {
    view.state = DeployState::Queued;
    view.step = None;
    view.reason = None;
    view.started_at = None;
    view.steps.clear();
}

/// Begins the step that this state stands for.
pub(super) fn begin_step(view: &mut DeployView, state: DeployState, command: Option<String>) {
    let name = match state {
        DeployState::Fetching => "fetch",
        DeployState::Checking => "check",
        DeployState::Building => "build",
        DeployState::Verifying => "verify",
        _ => "switch",
    };
    view.state = state;
    view.step = Some(name.to_owned());
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

/// Ends a deploy: records it, tells whoever waits, and removes the release that it made, unless that
/// is live now.
pub(super) fn end(mut view: DeployView, attempts: u32, state: DeployState, at: At, out: &mut Vec<Action>) {
    let kept_step = matches!(state, DeployState::Failed | DeployState::RolledBack | DeployState::Cancelled);
    if !kept_step {
        view.step = None;
    }
    view.state = state;
    view.ended_at = Some(at);
    let own = view.release.take_if(|release| state != DeployState::Live && release.deploy == view.id);
    let removal = own.map(|release| Action::RemoveRelease { app: view.app.clone(), release });
    let view = Box::new(view);
    out.push(Action::Persist { view: view.clone(), attempts });
    out.push(Action::Ended(view));
    out.extend(removal);
}
