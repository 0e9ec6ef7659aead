//! Rows of deliveries.

use rusqlite::{Connection, OptionalExtension, Row, params};

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

pub(super) fn append(connection: &Connection, id: DeliveryId, new: &NewDelivery) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO deliveries
             (id, sender_id, at, app, dialect, event, ref, \"commit\", sender, address, state, reason, duplicate_of)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?;
    // By place: looking their names up costs as much as the row.
    insert.execute(params![
        id,
        new.sender_id,
        new.at.0,
        new.app,
        new.dialect,
        new.event,
        new.ref_name,
        new.commit.as_ref().map(CommitId::as_str),
        new.sender,
        new.address,
        new.state.word(),
        new.reason,
        new.duplicate_of,
    ])?;
    let mut about = connection.prepare_cached("INSERT INTO delivery_apps (delivery, app) VALUES (?1, ?2)")?;
    for app in &new.apps {
        about.execute(params![id, app.as_str()])?;
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
