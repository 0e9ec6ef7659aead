use anstyle::Style;

use super::{
    client::{change, look, strange},
    failure::Failure,
    find::Place,
    screen::{BAD, DIM, GOOD, Screen, visible},
    table::{Cell, Table, or_dash},
    words::{AppOrOne, Listed, Waiting, local_time},
};
use crate::domain::{
    api::{DeliveryState, DeliveryView, Reply, Request},
    model::{CommitId, DeliveryId},
};

/// What the forges sent and what became of it; `deliveries show ID`: one; `deliveries redeliver ID`:
/// as if it had come again
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "everhook deliveries [OPTIONS] [APP]\n       everhook deliveries [OPTIONS] show ID\n       everhook deliveries [OPTIONS] redeliver ID"
)]
pub struct Deliveries {
    #[command(flatten)]
    what: AppOrOne,
    /// How many of the latest
    #[arg(short, value_name = "N", default_value_t = 20)]
    n: u32,
    /// As one JSON document
    #[arg(long)]
    json: bool,
}

impl Deliveries {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let mut screen = Screen::stdout();
        let app = match self.what.read(&["show", "redeliver"]).map_err(Failure::usage)? {
            Listed::All(app) => app,
            Listed::One("redeliver", id) => return self.redeliver(place, &mut screen, id),
            Listed::One(_, id) => return self.show(place, &mut screen, id),
        };
        let Reply::Deliveries(list) = look(place, &mut screen, Request::Deliveries { app, n: self.n, before: None })?
        else {
            return Err(strange());
        };
        if self.json {
            return Ok(screen.document(&list)?);
        }
        Ok(table(&list).print(&mut screen)?)
    }

    fn redeliver(&self, place: &Place, screen: &mut Screen, id: DeliveryId) -> Result<(), Failure> {
        let told = change(place, screen, Request::Redeliver { id }, &Waiting::default(), |_, _| Ok(()))?;
        let Reply::Redelivered(redelivered) = told else { return Err(strange()) };
        if self.json {
            return Ok(screen.document(&redelivered)?);
        }
        let deploys = redelivered.deploys.iter().map(|one| format!("deploy {} of {} is queued", one.id, one.app));
        let what: Vec<String> = redelivered.reason.into_iter().chain(deploys).collect();
        screen.line(&visible(&format!("delivery {}: {}", redelivered.delivery, what.join(", "))))?;
        Ok(screen.flush()?)
    }

    fn show(&self, place: &Place, screen: &mut Screen, id: DeliveryId) -> Result<(), Failure> {
        let Reply::Delivery(delivery) = look(place, screen, Request::Delivery { id })? else {
            return Err(strange());
        };
        if self.json {
            return Ok(screen.document(&delivery)?);
        }
        let state = screen.paint(style(delivery.state), &visible(&outcome(&delivery)));
        screen.line(&format!("delivery {}: {state}", delivery.id))?;
        let facts = [
            ("at", Some(local_time(delivery.at))),
            ("app", delivery.app.clone()),
            ("forge", delivery.dialect.clone()),
            ("event", delivery.event.clone()),
            ("ref", delivery.ref_name.clone()),
            ("commit", delivery.commit.as_ref().map(ToString::to_string)),
            ("sender", delivery.sender.clone()),
            ("address", Some(delivery.address.clone())),
            ("its id", delivery.sender_id.clone()),
        ];
        for (name, fact) in facts {
            if let Some(fact) = fact {
                screen.line(&format!("{} {}", screen.paint(DIM, &format!("{name:<8}")), visible(&fact)))?;
            }
        }
        Ok(screen.flush()?)
    }
}

fn table(list: &[DeliveryView]) -> Table {
    let mut table = Table::new(&["ID", "AT", "APP", "FORGE", "EVENT", "REF", "COMMIT", "SENDER", "STATE"]);
    for delivery in list {
        table.row(vec![
            Cell::from(delivery.id),
            Cell::from(local_time(delivery.at)),
            or_dash(delivery.app.as_ref()),
            or_dash(delivery.dialect.as_ref()),
            or_dash(delivery.event.as_ref()),
            or_dash(delivery.ref_name.as_ref()),
            or_dash(delivery.commit.as_ref().map(CommitId::short)),
            or_dash(delivery.sender.as_ref()),
            Cell::styled(&outcome(delivery), style(delivery.state)),
        ]);
    }
    table
}

/// `accepted: deploy 7`, `skipped: ping`, `duplicate of 31`.
fn outcome(delivery: &DeliveryView) -> String {
    let mut text = delivery.state.to_string();
    if let Some(first) = delivery.duplicate_of {
        text.push_str(&format!(" of {first}"));
    }
    let deploys: Vec<String> = delivery.deploys.iter().map(|id| format!("deploy {id}")).collect();
    let why: Vec<String> = delivery.reason.clone().into_iter().chain(deploys).collect();
    if !why.is_empty() {
        text.push_str(&format!(": {}", why.join(", ")));
    }
    text
}

fn style(state: DeliveryState) -> Style {
    match state {
        DeliveryState::Accepted => GOOD,
        DeliveryState::Refused => BAD,
        DeliveryState::Skipped | DeliveryState::Duplicate => Style::new(),
    }
}
