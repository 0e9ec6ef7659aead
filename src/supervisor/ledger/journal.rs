//! Rows of events and of the audit.

use rusqlite::{Connection, Row, named_params, params};

use super::{
    rows::{filter, json, moment, plain, some_word, word},
    say::{NewAudit, NewEvent},
};
use crate::domain::{
    api::{AuditFilter, AuditView, EventView},
    model::{AppName, At, InstanceId},
};

/// Appends an event that nobody is told of.
pub(super) fn insert_event(connection: &Connection, new: &NewEvent) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO events (at, app, instance, kind, \"from\", \"to\", cause, detail)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    insert.execute(params![
        new.at.0,
        new.app.as_ref().map(AppName::as_str),
        new.instance.as_ref().map(ToString::to_string),
        new.kind.word(),
        new.from,
        new.to,
        new.cause,
        new.detail,
    ])?;
    Ok(())
}

pub(super) fn append_event(connection: &Connection, new: &NewEvent) -> rusqlite::Result<EventView> {
    insert_event(connection, new)?;
    let NewEvent { at, app, instance, kind, from, to, cause, detail } = new.clone();
    Ok(EventView { id: connection.last_insert_rowid(), at, app, instance, kind, from, to, cause, detail })
}

/// The last `n` of these apps, oldest first; `between` two numbers, which are not among them.
pub(super) fn events(
    connection: &Connection,
    (apps, instance): (Option<&[AppName]>, Option<&InstanceId>),
    n: u32,
    since: Option<At>,
    between: (i64, i64),
) -> rusqlite::Result<Vec<EventView>> {
    let mut statement = connection.prepare_cached(
        "SELECT * FROM events WHERE (?1 IS NULL OR app IN (SELECT value FROM json_each(?1)))
             AND (?3 IS NULL OR at >= ?3) AND id > ?4 AND id < ?5
             AND (?6 IS NULL OR instance = ?6) ORDER BY id DESC LIMIT ?2",
    )?;
    let wanted =
        params![filter(apps), n, since.map(|at| at.0), between.0, between.1, instance.map(ToString::to_string)];
    let rows = statement.query_map(wanted, read_event)?;
    oldest_first(rows)
}

pub(super) fn append_audit(connection: &Connection, new: &NewAudit) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO audit (at, by, address, action, app, outcome, reason)
         VALUES (:at, :by, :address, :action, :app, :outcome, :reason)",
    )?;
    insert.execute(named_params! {
        ":at": new.at.0,
        ":by": json(&new.by),
        ":address": new.address,
        ":action": new.action,
        ":app": new.app,
        ":outcome": new.outcome,
        ":reason": new.reason,
    })?;
    Ok(())
}

/// The last ones that fit, oldest first.
pub(super) fn audit(connection: &Connection, filter: &AuditFilter) -> rusqlite::Result<Vec<AuditView>> {
    let AuditFilter { since, n, app, by, action, outcome } = filter;
    let mut statement = connection.prepare_cached(
        "SELECT * FROM audit WHERE (:since IS NULL OR at >= :since) AND (:app IS NULL OR app = :app)
             AND (:by IS NULL OR :by IN (by ->> 'user', by ->> 'name', by ->> 'kind'))
             AND (:action IS NULL OR action = :action) AND (:outcome IS NULL OR outcome = :outcome)
             ORDER BY id DESC LIMIT :n",
    )?;
    let wanted = named_params! {
        ":since": since.map(|at| at.0),
        ":app": app.as_ref().map(AppName::as_str),
        ":by": by,
        ":action": action,
        ":outcome": outcome,
        ":n": n,
    };
    let rows = statement.query_map(wanted, read_audit)?;
    oldest_first(rows)
}

fn oldest_first<T>(newest_first: impl Iterator<Item = rusqlite::Result<T>>) -> rusqlite::Result<Vec<T>> {
    let mut rows = newest_first.collect::<rusqlite::Result<Vec<_>>>()?;
    rows.reverse();
    Ok(rows)
}

fn read_event(row: &Row<'_>) -> rusqlite::Result<EventView> {
    Ok(EventView {
        id: row.get("id")?,
        at: moment(row, "at")?,
        app: some_word(row, "app")?,
        instance: some_word(row, "instance")?,
        kind: word(row, "kind")?,
        from: row.get("from")?,
        to: row.get("to")?,
        cause: row.get("cause")?,
        detail: row.get("detail")?,
    })
}

fn read_audit(row: &Row<'_>) -> rusqlite::Result<AuditView> {
    Ok(AuditView {
        id: row.get("id")?,
        at: moment(row, "at")?,
        by: plain(row, "by")?,
        address: row.get("address")?,
        action: row.get("action")?,
        app: row.get("app")?,
        outcome: row.get("outcome")?,
        reason: row.get("reason")?,
    })
}
