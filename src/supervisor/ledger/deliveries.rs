//! Rows of deliveries.

use std::sync::LazyLock;

use rusqlite::{Connection, OptionalExtension, Row, Statement, params};

use super::rows::{filter, moment, some_word, word};
use crate::domain::{
    api::{DeliveryState, DeliveryView},
    model::{AppName, At, CommitId, DeliveryId, DeployId},
};

/// A delivery without its number.
#[derive(Debug, Clone)]
pub(super) struct NewDelivery {
    pub sender_id: Option<String>,
    pub at: At,
    /// As the path names it, else the one app that it is about.
    pub app: Option<String>,
    pub dialect: Option<&'static str>,
    pub event: Option<String>,
    pub ref_name: Option<String>,
    pub commit: Option<CommitId>,
    pub sender: Option<String>,
    pub address: String,
    pub state: DeliveryState,
    pub reason: Option<String>,
    pub duplicate_of: Option<DeliveryId>,
    /// The apps it is about, for whoever may see these alone.
    pub apps: Vec<AppName>,
}

impl NewDelivery {
    /// What the sender wrote, or may have had us write.
    pub(super) fn texts(&mut self) -> impl Iterator<Item = &mut String> {
        let Self { sender_id, app, event, ref_name, sender, reason, .. } = self;
        [sender_id, app, event, ref_name, sender, reason].into_iter().flatten()
    }
}

/// So many rows are put in by one statement where there are as many: to begin and end one costs more than a row.
pub(super) const AT_ONCE: usize = 16;
const COLUMNS: usize = 13;

/// Puts so many rows into a table of so many columns.
fn statement(table: &str, columns: usize, rows: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(", "));
    format!("INSERT INTO {table} VALUES {}", vec![row; rows].join(", "))
}

/// One statement for one row, one for as many as go in at once.
fn statements(table: &str, columns: usize) -> [String; 2] {
    [1, AT_ONCE].map(|rows| statement(table, columns, rows))
}

static ROWS: LazyLock<[String; 2]> = LazyLock::new(|| {
    let columns =
        "id, sender_id, at, app, dialect, event, ref, \"commit\", sender, address, state, reason, duplicate_of";
    statements(&format!("deliveries ({columns})"), COLUMNS)
});
static ABOUT: LazyLock<[String; 2]> = LazyLock::new(|| statements("delivery_apps (delivery, app)", 2));

pub(super) fn append(connection: &Connection, id: DeliveryId, new: &NewDelivery) -> rusqlite::Result<()> {
    append_all(connection, [(id, new)])
}

/// Appends them in this order.
pub(super) fn append_all<'a>(
    connection: &Connection,
    rows: impl IntoIterator<Item = (DeliveryId, &'a NewDelivery), IntoIter: ExactSizeIterator + Clone>,
) -> rusqlite::Result<()> {
    let rows = rows.into_iter();
    put(connection, &ROWS, rows.clone(), |statement, at, (id, new)| {
        let place = at * COLUMNS;
        statement.raw_bind_parameter(place + 1, id)?;
        statement.raw_bind_parameter(place + 2, new.sender_id.as_deref())?;
        statement.raw_bind_parameter(place + 3, new.at.0)?;
        statement.raw_bind_parameter(place + 4, new.app.as_deref())?;
        statement.raw_bind_parameter(place + 5, new.dialect)?;
        statement.raw_bind_parameter(place + 6, new.event.as_deref())?;
        statement.raw_bind_parameter(place + 7, new.ref_name.as_deref())?;
        statement.raw_bind_parameter(place + 8, new.commit.as_ref().map(CommitId::as_str))?;
        statement.raw_bind_parameter(place + 9, new.sender.as_deref())?;
        statement.raw_bind_parameter(place + 10, &*new.address)?;
        statement.raw_bind_parameter(place + 11, new.state.word())?;
        statement.raw_bind_parameter(place + 12, new.reason.as_deref())?;
        statement.raw_bind_parameter(place + 13, new.duplicate_of)
    })?;
    let about: Vec<_> = rows.flat_map(|(id, new)| new.apps.iter().map(move |app| (id, app))).collect();
    put(connection, &ABOUT, about.into_iter(), |statement, at, (id, app)| {
        statement.raw_bind_parameter(2 * at + 1, id)?;
        statement.raw_bind_parameter(2 * at + 2, app.as_str())
    })
}

/// Puts in as many at once as there are, and the others one by one. `bind` says what stands in the row at a place.
fn put<T>(
    connection: &Connection,
    [one, many]: &[String; 2],
    mut rows: impl ExactSizeIterator<Item = T>,
    bind: impl Fn(&mut Statement<'_>, usize, T) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    while rows.len() > 0 {
        let (sql, count) = if rows.len() >= AT_ONCE { (many, AT_ONCE) } else { (one, 1) };
        let mut statement = connection.prepare_cached(sql)?;
        for (at, row) in rows.by_ref().take(count).enumerate() {
            bind(&mut statement, at, row)?;
        }
        statement.raw_execute()?;
    }
    Ok(())
}

/// Keeps the exact bytes of an accepted delivery.
pub(super) fn keep_body(connection: &Connection, id: DeliveryId, body: &[u8]) -> rusqlite::Result<()> {
    connection.prepare_cached("INSERT INTO bodies (delivery, body) VALUES (?1, ?2)")?.execute(params![id, body])?;
    Ok(())
}

/// The exact bytes of an accepted delivery, while they are kept.
pub(super) fn body(connection: &Connection, id: DeliveryId) -> rusqlite::Result<Option<Vec<u8>>> {
    let mut statement = connection.prepare_cached("SELECT body FROM bodies WHERE delivery = ?1")?;
    statement.query_row([id], |row| row.get(0)).optional()
}

/// The last `n` that are about these apps, newest first.
pub(super) fn list(
    connection: &Connection,
    apps: Option<&[AppName]>,
    n: u32,
    before: DeliveryId,
) -> rusqlite::Result<Vec<DeliveryView>> {
    let mut statement = connection.prepare_cached(
        "SELECT * FROM deliveries WHERE (?1 IS NULL OR EXISTS (SELECT 1 FROM delivery_apps
             WHERE delivery = deliveries.id AND app IN (SELECT value FROM json_each(?1)))) AND id < ?3
         ORDER BY id DESC LIMIT ?2",
    )?;
    let rows = statement.query_map(params![filter(apps), n, before], read)?.collect::<rusqlite::Result<Vec<_>>>()?;
    rows.into_iter().map(|row| with_deploys(connection, row, apps)).collect()
}

pub(super) fn find(
    connection: &Connection,
    id: DeliveryId,
    apps: Option<&[AppName]>,
) -> rusqlite::Result<Option<DeliveryView>> {
    let mut statement = connection.prepare_cached(
        "SELECT * FROM deliveries WHERE id = ?1 AND (?2 IS NULL OR EXISTS (SELECT 1 FROM delivery_apps
             WHERE delivery = deliveries.id AND app IN (SELECT value FROM json_each(?2))))",
    )?;
    let row = statement.query_row(params![id, filter(apps)], read).optional()?;
    let Some(row) = row else { return Ok(None) };
    let mut about = connection.prepare_cached("SELECT app FROM delivery_apps WHERE delivery = ?1 ORDER BY app")?;
    let about = about.query_map([id], |row| word(row, "app"))?.collect::<rusqlite::Result<_>>()?;
    with_deploys(connection, DeliveryView { about, ..row }, apps).map(Some)
}

fn read(row: &Row<'_>) -> rusqlite::Result<DeliveryView> {
    Ok(DeliveryView {
        id: row.get("id")?,
        sender_id: row.get("sender_id")?,
        at: moment(row, "at")?,
        app: row.get("app")?,
        dialect: row.get("dialect")?,
        event: row.get("event")?,
        ref_name: row.get("ref")?,
        commit: some_word(row, "commit")?,
        sender: row.get("sender")?,
        address: row.get("address")?,
        state: word(row, "state")?,
        reason: row.get("reason")?,
        deploys: Vec::new(),
        duplicate_of: row.get("duplicate_of")?,
        about: Vec::new(),
    })
}

/// Adds the deploys that came of it, of these apps.
fn with_deploys(
    connection: &Connection,
    mut view: DeliveryView,
    apps: Option<&[AppName]>,
) -> rusqlite::Result<DeliveryView> {
    if view.state == DeliveryState::Accepted {
        let mut statement = connection.prepare_cached(
            "SELECT id FROM deploys WHERE delivery = ?1
                 AND (?2 IS NULL OR app IN (SELECT value FROM json_each(?2))) ORDER BY id",
        )?;
        let ids = statement.query_map(params![view.id, filter(apps)], |row| row.get::<_, DeployId>(0))?;
        view.deploys = ids.collect::<rusqlite::Result<_>>()?;
    }
    Ok(view)
}
