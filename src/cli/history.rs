use serde::Serialize;

use super::{
    client::{look, strange},
    failure::Failure,
    find::Place,
    progress::outcome,
    screen::{DIM, HEADER, Screen, visible},
    table::{Cell, Table, or_dash},
    words::{AppOrOne, Listed, between, by, deploy_end, deploy_style, local_time, now},
};
use crate::domain::{
    api::{DeployView, Reply, Request},
    model::{At, CommitId, DeployId},
};

/// Deploys, newest first; `history show ID`: one with its steps, times and log
#[derive(Debug, clap::Args)]
#[command(override_usage = "everhook history [OPTIONS] [APP]\n       everhook history [OPTIONS] show ID")]
pub struct History {
    #[command(flatten)]
    what: AppOrOne,
    /// How many of the latest
    #[arg(short, value_name = "N", default_value_t = 20)]
    n: u32,
    /// As one JSON document
    #[arg(long)]
    json: bool,
}

/// A deploy with the last lines of its log.
#[derive(Serialize)]
struct WithLog<'a> {
    #[serde(flatten)]
    deploy: &'a DeployView,
    log: &'a [String],
}

impl History {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let mut screen = Screen::stdout();
        let app = match self.what.read(&["show"]).map_err(Failure::usage)? {
            Listed::All(app) => app,
            Listed::One(_, id) => return self.show(place, &mut screen, id),
        };
        let Reply::Deploys(deploys) = look(place, &mut screen, Request::History { app, n: self.n, before: None })?
        else {
            return Err(strange());
        };
        if self.json {
            return Ok(screen.document(&deploys)?);
        }
        Ok(table(&deploys, now()).print(&mut screen)?)
    }

    fn show(&self, place: &Place, screen: &mut Screen, id: DeployId) -> Result<(), Failure> {
        let Reply::Deploy { deploy, log } = look(place, screen, Request::Deploy { id })? else {
            return Err(strange());
        };
        if self.json {
            return Ok(screen.document(&WithLog { deploy: &deploy, log: &log })?);
        }
        head(screen, &deploy)?;
        if !deploy.steps.is_empty() {
            screen.line("")?;
            steps(&deploy).print(screen)?;
        }
        if !log.is_empty() {
            screen.line(&format!("\n{}", screen.paint(HEADER, "LOG")))?;
            log.iter().try_for_each(|line| screen.line(&visible(line)))?;
        }
        Ok(screen.flush()?)
    }
}

fn table(deploys: &[DeployView], now: At) -> Table {
    let mut table = Table::new(&["ID", "APP", "STATE", "COMMIT", "BY", "QUEUED", "TOOK", "SUBJECT"]);
    for deploy in deploys {
        let took = deploy.started_at.map(|started| between(started, deploy.ended_at.unwrap_or(now)));
        table.row(vec![
            Cell::from(deploy.id),
            Cell::from(&deploy.app),
            Cell::styled(&deploy.state, deploy_style(deploy.state)),
            or_dash(deploy.commit.as_ref().map(CommitId::short)),
            Cell::from(by(&deploy.by)),
            Cell::from(local_time(deploy.queued_at)),
            or_dash(took),
            or_dash(deploy.subject.as_ref()),
        ]);
        if deploy.reason.is_some() || deploy.superseded_by.is_some() {
            table.below(&deploy_end(deploy));
        }
    }
    table
}

fn head(screen: &mut Screen, deploy: &DeployView) -> Result<(), Failure> {
    let end = screen.paint(deploy_style(deploy.state), &visible(&deploy_end(deploy)));
    screen.line(&format!("deploy {} of {}: {end}", deploy.id, deploy.app))?;
    let commit = deploy.commit.as_ref().map(|commit| {
        let said = deploy.subject.as_deref().unwrap_or_default();
        let author = deploy.author.as_ref().map(|author| format!(" ({author})")).unwrap_or_default();
        format!("{commit} {said}{author}")
    });
    let facts = [
        ("commit", commit),
        ("before", deploy.previous_commit.as_ref().map(ToString::to_string)),
        ("ref", deploy.ref_name.clone()),
        ("by", Some(by(&deploy.by))),
        ("approved", deploy.approved_by.as_ref().map(|who| format!("by {}", by(who)))),
        ("release", deploy.release.as_ref().map(ToString::to_string)),
        ("queued", Some(local_time(deploy.queued_at))),
        ("started", deploy.started_at.map(local_time)),
        ("ended", deploy.ended_at.map(local_time)),
    ];
    for (name, fact) in facts {
        if let Some(fact) = fact {
            screen.line(&format!("{} {}", screen.paint(DIM, &format!("{name:<8}")), visible(fact.trim_end())))?;
        }
    }
    Ok(())
}

fn steps(deploy: &DeployView) -> Table {
    let mut table = Table::new(&["STEP", "STATE", "COMMAND"]);
    for step in &deploy.steps {
        table.row(vec![Cell::from(&step.name), Cell::from(outcome(step)), or_dash(step.command.as_ref())]);
    }
    table
}
