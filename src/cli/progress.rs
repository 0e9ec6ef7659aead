//! Live lines of whoever waits: transitions of instances, states and steps of a deploy.

use std::io;

use super::{
    screen::{BAD, DIM, Screen, visible},
    words::{deploy_style, took},
};
use crate::domain::{
    api::{DeployState, DeployView, EventView, Progress, Saying, StepState, StepView},
    model::{CommitId, DeployId, Signal},
};

/// What was told so far, so that nothing is told twice.
#[derive(Default)]
pub struct Teller {
    state: Option<(DeployId, DeployState)>,
    commit: Option<CommitId>,
    /// By the steps' order.
    steps: Vec<StepState>,
    writing: Option<DeployId>,
}

impl Teller {
    /// # Errors
    /// When nobody takes the output.
    pub fn tell(&mut self, screen: &mut Screen, said: Saying) -> io::Result<()> {
        match said {
            Saying::Progress(Progress::Instance(event)) | Saying::Event(event) => instance(screen, &event),
            Saying::Progress(Progress::Deploy(deploy)) => self.deploy(screen, &deploy),
            Saying::Progress(Progress::Step { step, .. }) => tell_step(screen, &step),
            Saying::Done(_) | Saying::Refused(_) => Ok(()),
        }
    }

    /// The deploy that was told of last.
    pub fn deploy_id(&self) -> Option<DeployId> {
        self.state.map(|(id, _)| id)
    }

    /// The deploy that was told of last to run something that may write.
    pub fn writing(&self) -> Option<DeployId> {
        self.writing
    }

    /// What has ended, then the state, then what runs in it. How the deploy ended is told with the answer.
    fn deploy(&mut self, screen: &mut Screen, deploy: &DeployView) -> io::Result<()> {
        let told = std::mem::replace(&mut self.steps, deploy.steps.iter().map(|step| step.state).collect());
        let news = deploy.steps.iter().enumerate().filter(|(i, step)| told.get(*i) != Some(&step.state));
        let (running, ended): (Vec<_>, Vec<_>) =
            news.map(|(_, step)| step).partition(|step| step.state == StepState::Running);
        ended.into_iter().try_for_each(|step| tell_step(screen, step))?;
        let state = Some((deploy.id, deploy.state));
        if self.state != state && !deploy.state.is_end() {
            self.state_line(screen, deploy)?;
        }
        self.state = state;
        if running.iter().any(|step| !["switch", "verify"].contains(&step.name.as_str())) {
            self.writing = Some(deploy.id);
        }
        running.into_iter().try_for_each(|step| tell_step(screen, step))
    }

    fn state_line(&mut self, screen: &mut Screen, deploy: &DeployView) -> io::Result<()> {
        let mut line = format!("deploy {} of {}: ", deploy.id, deploy.app);
        line.push_str(&screen.paint(deploy_style(deploy.state), &deploy.state.to_string()));
        if self.commit != deploy.commit {
            self.commit.clone_from(&deploy.commit);
            if let Some(commit) = &deploy.commit {
                line.push_str(&format!(" {}", commit.short()));
            }
            if let Some(subject) = &deploy.subject {
                line.push_str(&format!(" {}", visible(subject)));
            }
        }
        let why = deploy.reason.as_ref().map(|why| format!(" ({})", visible(why))).unwrap_or_default();
        if deploy.state == DeployState::Queued {
            line.push_str(&why);
        }
        if deploy.state == DeployState::AwaitingApproval {
            let what = match deploy.step.as_deref() {
                Some("switch" | "verify") => {
                    format!("makes it live as it is, `everhook rollback {}` goes back", deploy.app)
                }
                _ => "lets it go on".to_owned(),
            };
            line.push_str(&format!("{why}: `everhook approve {}` {what}", deploy.id));
        }
        screen.line(&line)
    }
}

fn instance(screen: &mut Screen, event: &EventView) -> io::Result<()> {
    let who = event.instance.as_ref().map(ToString::to_string).or_else(|| event.app.as_ref().map(ToString::to_string));
    let mut line = format!("  {} {}", who.unwrap_or_else(|| event.kind.to_string()), transition(event));
    if let Some(cause) = &event.cause {
        line.push_str(&format!(": {}", visible(cause)));
    }
    screen.line(&line)
}

/// `starting → ready`, as far as it is known.
pub fn transition(event: &EventView) -> String {
    match (&event.from, &event.to) {
        (Some(from), Some(to)) => format!("{from} → {to}"),
        (None, Some(one)) | (Some(one), None) => one.clone(),
        (None, None) => String::new(),
    }
}

fn tell_step(screen: &mut Screen, step: &StepView) -> io::Result<()> {
    let command = step.command.as_deref().map(|command| format!("  {}", visible(command))).unwrap_or_default();
    let name = format!("  {:<13}", step.name);
    match step.state {
        StepState::Running => screen.line(&screen.paint(DIM, &format!("{name} running{command}"))),
        StepState::Done => screen.line(&format!("{name} {}{command}", outcome(step))),
        _ => screen.line(&screen.paint(BAD, &format!("{name} {}{command}", outcome(step)))),
    }
}

/// `done in 3.1s`, `failed with 1 in 0.2s`.
pub fn outcome(step: &StepView) -> String {
    let mut text = step.state.to_string();
    if let Some(exit) = step.exit.filter(|_| step.state == StepState::Failed) {
        match (exit.code, exit.signal) {
            (Some(code), _) => text.push_str(&format!(" with {code}")),
            (None, Some(signal)) => text.push_str(&format!(" by {}", Signal::from_number(signal))),
            (None, None) => {}
        }
    }
    if let Some(seconds) = step.duration_s {
        text.push_str(&format!(" in {}", took(seconds)));
    }
    text
}
