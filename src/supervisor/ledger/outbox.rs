//! Rows of the outbox: what waits to be told to forges, one row for each app and commit, as a newer
//! word takes the place of an older one.

use std::{collections::BTreeSet, time::Duration};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    deploys,
    rows::{filter, json, plain, word},
};
use crate::domain::{
    api::{CommitStatus, DeployView, StatusState},
    deploy,
    model::{AppName, CommitId, DeployId},
    outbox::Letter,
};

/// Letters that are kept of each app, the newest.
const MOST: u32 = 1_000;

/// Writes down what is new to a forge in this record of a deploy; `before`: the one that it replaces.
/// True where anything is.
pub(super) fn note(connection: &Connection, before: Option<&DeployView>, after: &DeployView) -> rusqlite::Result<bool> {
    let mut any = false;
    for status in deploy::statuses(before, after) {
        // Of several deploys of one commit the newest speaks, unless nobody wants it any more.
        let status = if status.state == StatusState::Cancelled {
            another(connection, after, &status.commit, 0)?.as_ref().and_then(deploy::status).unwrap_or(status)
        } else if another(connection, after, &status.commit, after.id)?.is_some() {
            continue;
        } else {
            status
        };
        put(connection, &after.app, &status)?;
        any = true;
    }
    Ok(any)
}

/// The newest other deploy of this commit above this number that was neither cancelled nor superseded.
fn another(
    connection: &Connection,
    than: &DeployView,
    commit: &CommitId,
    above: DeployId,
) -> rusqlite::Result<Option<DeployView>> {
    let mut newest = connection.prepare_cached(
        "SELECT * FROM deploys INDEXED BY deploys_app WHERE app = ?1 AND id > ?2 AND id != ?3 AND \"commit\" = ?4
             AND state NOT IN ('cancelled', 'superseded') ORDER BY id DESC LIMIT 1",
    )?;
    let about = params![than.app.as_str(), above, than.id, commit.as_str()];
    newest.query_row(about, deploys::read).optional()
}

fn put(connection: &Connection, app: &AppName, status: &CommitStatus) -> rusqlite::Result<()> {
    let about = params![app.as_str(), status.commit.as_str()];
    connection.prepare_cached("DELETE FROM outbox WHERE app = ?1 AND \"commit\" = ?2")?.execute(about)?;
    // A new number, so that whoever sent the old one forgets that alone.
    let mut insert =
        connection.prepare_cached("INSERT INTO outbox (app, \"commit\", status, waited_s) VALUES (?1, ?2, ?3, 0)")?;
    insert.execute(params![app.as_str(), status.commit.as_str(), json(status)])?;
    Ok(())
}

/// The oldest `n` of these apps.
pub(super) fn letters(connection: &Connection, apps: &[AppName], n: usize) -> rusqlite::Result<Vec<Letter>> {
    let mut statement = connection
        .prepare_cached("SELECT * FROM outbox WHERE app IN (SELECT value FROM json_each(?1)) ORDER BY id LIMIT ?2")?;
    let rows = statement.query_map(params![filter(Some(apps)), i64::try_from(n).unwrap_or(i64::MAX)], read)?;
    rows.collect()
}

fn read(row: &Row<'_>) -> rusqlite::Result<Letter> {
    let waited: i64 = row.get("waited_s")?;
    Ok(Letter {
        id: row.get("id")?,
        app: word(row, "app")?,
        status: plain(row, "status")?,
        waited: Duration::from_secs(waited.unsigned_abs()),
    })
}

pub(super) fn forget(connection: &Connection, letter: i64) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM outbox WHERE id = ?1")?.execute([letter])?;
    Ok(())
}

/// All letters of these apps were put off for so long.
pub(super) fn wait(connection: &Connection, apps: &[AppName], by: Duration) -> rusqlite::Result<()> {
    let mut wait = connection
        .prepare_cached("UPDATE outbox SET waited_s = waited_s + ?2 WHERE app IN (SELECT value FROM json_each(?1))")?;
    wait.execute(params![filter(Some(apps)), i64::try_from(by.as_secs()).unwrap_or(i64::MAX)])?;
    Ok(())
}

/// Removes the letters of all other apps: nobody sends them any more.
pub(super) fn keep_of(connection: &Connection, telling: &BTreeSet<AppName>) -> rusqlite::Result<()> {
    let apps: Vec<AppName> = telling.iter().cloned().collect();
    let mut others =
        connection.prepare_cached("DELETE FROM outbox WHERE app NOT IN (SELECT value FROM json_each(?1))")?;
    others.execute([filter(Some(&apps))])?;
    Ok(())
}

/// Removes the oldest letters where these apps have too many.
pub(super) fn prune<'a>(connection: &Connection, apps: impl Iterator<Item = &'a AppName>) -> rusqlite::Result<()> {
    let mut oldest = connection.prepare_cached(
        "DELETE FROM outbox WHERE app = ?1
             AND id <= (SELECT id FROM outbox WHERE app = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
    )?;
    for app in apps {
        oldest.execute(params![app.as_str(), MOST])?;
    }
    Ok(())
}
