use anstyle::Style;

use super::{
    client::{look, strange},
    failure::Failure,
    find::Place,
    screen::{BAD, Screen},
    table::{Cell, Table, or_dash},
    words::{by, local_time, since},
};
use crate::domain::{
    api::{Reply, Request},
    model::At,
};

/// Rows without `--since`, which asks for all from there on.
const LATEST: u32 = 50;

/// Who did what from where; the latest 50 without --since
#[derive(Debug, clap::Args)]
pub struct Audit {
    /// All from this moment on: RFC 3339, or how long ago (1h)
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<At>,
    /// As one JSON document
    #[arg(long)]
    json: bool,
}

impl Audit {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let mut screen = Screen::stdout();
        let n = if self.since.is_some() { u32::MAX } else { LATEST };
        let request = Request::Audit { since: self.since, n };
        let Reply::Audit(rows) = look(place, &mut screen, request)? else { return Err(strange()) };
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
