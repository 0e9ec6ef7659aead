use super::{
    client::{change, look, strange},
    failure::{Code, Failure},
    find::Place,
    output::Output,
    preview::preview,
    progress::Teller,
    screen::{Screen, complain, visible},
    words::{Waiting, deploy_end},
};
use crate::domain::{
    api::{DeployState, DeployView, Reply, Request},
    model::AppName,
};

/// Deploy the newest commit, or the one that is named
#[derive(Debug, clap::Args)]
pub struct Deploy {
    app: AppName,
    /// A commit, branch or tag of the refs that the app allows
    #[arg(long, value_name = "REV")]
    rev: Option<String>,
    /// Return as soon as it is queued
    #[arg(long)]
    detach: bool,
    /// Change nothing: fetch, and show what would be done
    #[arg(long, conflicts_with = "detach")]
    dry_run: bool,
    #[command(flatten)]
    waiting: Waiting,
}

impl Deploy {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let request = Request::DeployApp { app: self.app.clone(), rev: self.rev.clone(), dry_run: self.dry_run };
        if self.dry_run {
            return preview(place, request, self.waiting.timeout);
        }
        let no_wait = self.waiting.no_wait || self.detach;
        carry_out(place, request, &Waiting { no_wait, ..self.waiting.clone() })
    }
}

/// For `deploy` and `rollback`: shows the pipeline live with what its steps write, and when it ends otherwise
/// than live the last lines of its log, unless somebody has just seen them.
///
/// # Errors
/// When it ends otherwise than live, or as the supervisor says.
pub fn carry_out(place: &Place, request: Request, waiting: &Waiting) -> Result<(), Failure> {
    let mut screen = Screen::stdout();
    let mut teller = Teller::default();
    let mut output = Output::new(place);
    let told = change(place, &mut screen, request, waiting, |screen, said| {
        let told = teller.tell(screen, said);
        teller.writing().into_iter().for_each(|id| output.follow(id));
        told
    });
    screen.flush()?;
    match told {
        Ok(Reply::Deploy { deploy, log }) => ended(&mut screen, output, &deploy, &log),
        Ok(Reply::Changed { message, .. }) => {
            output.finish();
            screen.line(&visible(&message))?;
            Ok(screen.flush()?)
        }
        Ok(_) => Err(strange()),
        Err(failure) => match (failure.code, teller.deploy_id()) {
            (Code::Failed, Some(id)) => match look(place, &mut screen, Request::Deploy { id }) {
                Ok(Reply::Deploy { deploy, log }) if deploy.state.is_end() => ended(&mut screen, output, &deploy, &log),
                _ => Err(failure),
            },
            (Code::Interrupted | Code::TimedOut, Some(id)) => {
                let message = format!("{}; see it with `everhook history show {id}`", failure.message);
                Err(Failure::new(failure.code, message))
            }
            _ => Err(failure),
        },
    }
}

fn ended(screen: &mut Screen, output: Output<'_>, deploy: &DeployView, log: &[String]) -> Result<(), Failure> {
    let seen = output.finish() && screen.terminal;
    let end = format!("deploy {} of {}: {}", deploy.id, deploy.app, deploy_end(deploy));
    // What was asked for is so, when the commit that was skipped is the live one.
    let already_live =
        deploy.state == DeployState::Skipped && deploy.commit.is_some() && deploy.commit == deploy.previous_commit;
    if deploy.state == DeployState::Live || already_live {
        let release = deploy.release.as_ref().map(|release| format!(", release {release}")).unwrap_or_default();
        screen.line(&visible(&format!("{end}{release}")))?;
        return Ok(screen.flush()?);
    }
    if !log.is_empty() && !seen {
        complain("the last lines of its log:");
        log.iter().for_each(|line| complain(&format!("  {line}")));
    }
    Err(Failure::new(Code::Failed, end))
}
