//! How long rows are kept: DESIGN.md section 10. The audit stays for ever, but for what strangers tried.

use std::collections::BTreeSet;

use rusqlite::{Connection, params};

use crate::domain::model::{AppName, At};

/// Events that are kept of each app, and of what concerns no app.
const EVENTS: u32 = 10_000;
/// Rows of the audit about whoever was nobody: strangers make them, so their number is bounded.
const STRANGERS: u32 = 10_000;
/// Deploys that are kept of each app.
const DEPLOYS: u32 = 1_000;
/// Refused deliveries that are kept: strangers make them, so their number is bounded.
pub(super) const REFUSED: u32 = 1_000;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// Deliveries, in days.
const DELIVERIES_DAYS: i64 = 90;
/// Bodies over 64 KiB, in days.
const LARGE_BODIES_DAYS: i64 = 7;

/// Removes what is over its time or number. `apps`: those that rows were added for since the last
/// time, `None` among them for rows of no app.
pub(super) fn prune(connection: &Connection, now: At, apps: &BTreeSet<Option<AppName>>) -> rusqlite::Result<()> {
    for app in apps {
        events(connection, app.as_ref(), EVENTS)?;
        if let Some(app) = app {
            deploys(connection, app, DEPLOYS)?;
        }
    }
    refused(connection, REFUSED)?;
    strangers(connection, STRANGERS)?;
    // Numbers grow with time: looked for from the oldest on, the first that stays is found at once.
    let oldest_kept = "(SELECT coalesce((SELECT id FROM deliveries WHERE at >= ?1 ORDER BY id LIMIT 1), 1 << 62))";
    connection
        .prepare_cached(&format!("DELETE FROM bodies WHERE length(body) > 65536 AND delivery < {oldest_kept}"))?
        .execute([now.0 - LARGE_BODIES_DAYS * DAY_MS])?;
    connection
        .prepare_cached(&format!("DELETE FROM deliveries WHERE id < {oldest_kept}"))?
        .execute([now.0 - DELIVERIES_DAYS * DAY_MS])?;
    Ok(())
}

fn events(connection: &Connection, app: Option<&AppName>, most: u32) -> rusqlite::Result<()> {
    let mut delete = connection.prepare_cached(
        "DELETE FROM events WHERE app IS ?1
             AND id <= (SELECT id FROM events WHERE app IS ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
    )?;
    delete.execute(params![app.map(AppName::as_str), most])?;
    Ok(())
}

/// Deploys that run are kept, and as many that went live: their releases may be on disk.
fn deploys(connection: &Connection, app: &AppName, most: u32) -> rusqlite::Result<()> {
    let mut delete = connection.prepare_cached(
        "DELETE FROM deploys WHERE app = ?1
             AND id <= (SELECT id FROM deploys WHERE app = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)
             AND state IN ('live', 'failed', 'rolled_back', 'superseded', 'cancelled', 'skipped')
             AND id NOT IN (SELECT id FROM deploys WHERE app = ?1 AND state = 'live' ORDER BY id DESC LIMIT ?2)",
    )?;
    delete.execute(params![app.as_str(), most])?;
    Ok(())
}

fn strangers(connection: &Connection, most: u32) -> rusqlite::Result<()> {
    latest(connection, "audit", "by = '{\"kind\":\"nobody\"}'", most)
}

pub(super) fn refused(connection: &Connection, most: u32) -> rusqlite::Result<()> {
    latest(connection, "deliveries", "state = 'refused'", most)
}

/// Keeps so many of these rows, the latest; the table has an index of them.
fn latest(connection: &Connection, table: &str, which: &str, most: u32) -> rusqlite::Result<()> {
    let mut delete = connection.prepare_cached(&format!(
        "DELETE FROM {table} WHERE {which} AND id <=
             (SELECT id FROM {table} WHERE {which} ORDER BY id DESC LIMIT 1 OFFSET ?1)"
    ))?;
    delete.execute([most])?;
    Ok(())
}
