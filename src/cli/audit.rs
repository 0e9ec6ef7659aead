use anstyle::Style;
use clap::builder::PossibleValuesParser;

use super::{
    client::{look, strange},
    failure::Failure,
    find::Place,
    screen::{BAD, Screen},
    table::{Cell, Table, or_dash},
    words::{by, local_time, since},
};
use crate::domain::{
    api::{AuditFilter, Reply, Request},
    model::{AppName, At},
};

/// Rows without `-n` and `--since`, which asks for all from there on.
const LATEST: u32 = 50;

/// Who did what from where; the latest 50 without -n or --since
#[derive(Debug, clap::Args)]
pub struct Audit {
    /// About this app alone
    app: Option<AppName>,
    /// All from this moment on: RFC 3339, or how long ago (1h)
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<At>,
    /// At most so many, the latest
    #[arg(short, value_name = "N")]
    n: Option<u32>,
    /// By this user or token; `signal` and `nobody` are those without a name
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// This alone, such as restart or "token create"
    #[arg(long, value_name = "VERB")]
    action: Option<String>,
    /// What was done, or what was refused
    #[arg(long, value_name = "OUTCOME", value_parser = PossibleValuesParser::new(["done", "refused"]))]
    outcome: Option<String>,
    /// As one JSON document
    #[arg(long)]
    json: bool,
}

impl Audit {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let mut screen = Screen::stdout();
        let n = self.n.unwrap_or(if self.since.is_some() { u32::MAX } else { LATEST });
        let filter = AuditFilter {
            since: self.since,
            n,
            app: self.app.clone(),
            by: self.by.clone(),
            action: self.action.clone(),
            outcome: self.outcome.clone(),
        };
        let Reply::Audit(rows) = look(place, &mut screen, Request::Audit(filter))? else { return Err(strange()) };
        if self.json {
            return Ok(screen.document(&rows)?);
        }
        let mut table = Table::new(&["AT", "BY", "ADDRESS", "ACTION", "APP", "OUTCOME", "REASON"]);
        for row in &rows {
            table.row(vec![
                Cell::from(local_time(row.at)),
                Cell::from(by(&row.by)),
                or_dash(row.address.as_ref()),
                Cell::from(&row.action),
                or_dash(row.app.as_ref()),
                Cell::styled(&row.outcome, if row.outcome == "refused" { BAD } else { Style::new() }),
                or_dash(row.reason.as_ref()),
            ]);
        }
        Ok(table.print(&mut screen)?)
    }
}
