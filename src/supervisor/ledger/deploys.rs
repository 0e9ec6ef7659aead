//! Rows of deploys and their steps.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    rows::{filter, json, moment, plain, some_moment, some_plain, some_word, word},
    say::Unfinished,
};
use crate::domain::{
    api::{By, DeployView, StepExit, StepView},
    deploy::accept::Known,
    hook::Change,
    model::{AppName, CommitId, DeliveryId, DeployId},
};

/// A state that is no end; spelled as the partial index `deploys_unfinished` has it.
const UNFINISHED: &str = "state NOT IN ('live', 'failed', 'rolled_back', 'superseded', 'cancelled', 'skipped')";

/// Appends a deploy; its number is the row's new one, whatever `view.id` says.
pub(super) fn append(connection: &Connection, view: &mut DeployView, rev: Option<&str>) -> rusqlite::Result<()> {
    view.id = 0;
    put(connection, None, view, 0)?;
    view.id = connection.last_insert_rowid();
    if rev.is_some() {
        connection.prepare_cached("UPDATE deploys SET rev = ?2 WHERE id = ?1")?.execute(params![view.id, rev])?;
    }
    Ok(())
}

/// Stores a deploy and its steps as they are now.
pub(super) fn update(connection: &Connection, view: &DeployView, attempts: u32) -> rusqlite::Result<()> {
    put(connection, Some(view.id), view, attempts)?;
    // To remove what is not there costs more than the row of the deploy.
    if connection.prepare_cached("SELECT 1 FROM steps WHERE deploy = ?1 LIMIT 1")?.exists([view.id])? {
        connection.prepare_cached("DELETE FROM steps WHERE deploy = ?1")?.execute([view.id])?;
    }
    let mut insert = connection.prepare_cached(
        "INSERT INTO steps (deploy, number, name, command, state, duration_s, exited, code, signal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    for (number, step) in (1i64..).zip(&view.steps) {
        let (code, signal) = step.exit.map_or((None, None), |exit| (exit.code, exit.signal));
        insert.execute(params![
            view.id,
            number,
            step.name,
            step.command,
            step.state.to_string(),
            step.duration_s,
            step.exit.is_some(),
            code,
            signal
        ])?;
    }
    Ok(())
}

fn put(connection: &Connection, id: Option<DeployId>, view: &DeployView, attempts: u32) -> rusqlite::Result<()> {
    let delivery = if let By::Delivery { id } = view.by { Some(id) } else { None };
    let mut statement = connection.prepare_cached(
        "INSERT INTO deploys (id, app, state, step, reason, \"commit\", previous_commit, ref, subject, author, by,
             approved_by, delivery, release, superseded_by, queued_at, started_at, ended_at, attempts)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)
         ON CONFLICT (id) DO UPDATE SET state = excluded.state, step = excluded.step, reason = excluded.reason,
             \"commit\" = excluded.\"commit\", previous_commit = excluded.previous_commit, ref = excluded.ref,
             subject = excluded.subject, author = excluded.author,
             approved_by = excluded.approved_by, release = excluded.release,
             superseded_by = excluded.superseded_by, started_at = excluded.started_at,
             ended_at = excluded.ended_at, attempts = excluded.attempts",
    )?;
    // By place: looking their names up costs as much as the row.
    statement.execute(params![
        id,
        view.app.as_str(),
        view.state.to_string(),
        view.step,
        view.reason,
        view.commit.as_ref().map(CommitId::as_str),
        view.previous_commit.as_ref().map(CommitId::as_str),
        view.ref_name,
        view.subject,
        view.author,
        json(&view.by),
        view.approved_by.as_ref().map(json),
        delivery,
        view.release.as_ref().map(ToString::to_string),
        view.superseded_by,
        view.queued_at.0,
        view.started_at.map(|at| at.0),
        view.ended_at.map(|at| at.0),
        attempts,
    ])?;
    Ok(())
}

/// The last `n` of these apps, newest first.
pub(super) fn list(
    connection: &Connection,
    apps: Option<&[AppName]>,
    n: u32,
    before: DeployId,
) -> rusqlite::Result<Vec<DeployView>> {
    let mut statement = connection.prepare_cached(
        "SELECT * FROM deploys WHERE (?1 IS NULL OR app IN (SELECT value FROM json_each(?1))) AND id < ?3
             ORDER BY id DESC LIMIT ?2",
    )?;
    let deploys = statement.query_map(params![filter(apps), n, before], read)?.collect::<rusqlite::Result<Vec<_>>>()?;
    deploys.into_iter().map(|deploy| with_steps(connection, deploy)).collect()
}

pub(super) fn find(
    connection: &Connection,
    id: DeployId,
    apps: Option<&[AppName]>,
) -> rusqlite::Result<Option<DeployView>> {
    let mut statement = connection.prepare_cached(
        "SELECT * FROM deploys WHERE id = ?1 AND (?2 IS NULL OR app IN (SELECT value FROM json_each(?2)))",
    )?;
    let deploy = statement.query_row(params![id, filter(apps)], read).optional()?;
    deploy.map(|deploy| with_steps(connection, deploy)).transpose()
}

/// Without its steps.
pub(super) fn row(connection: &Connection, id: DeployId) -> rusqlite::Result<Option<DeployView>> {
    connection.prepare_cached("SELECT * FROM deploys WHERE id = ?1")?.query_row([id], read).optional()
}

/// All that have not ended, or whose end something follows that has not, oldest first.
pub(super) fn unfinished(connection: &Connection) -> rusqlite::Result<Vec<Unfinished>> {
    let mut statement =
        connection.prepare(&format!("SELECT * FROM deploys WHERE {UNFINISHED} OR ended_at IS NULL ORDER BY id"))?;
    let rows = statement
        .query_map([], |row| {
            Ok(Unfinished { deploy: read(row)?, attempts: row.get("attempts")?, rev: row.get("rev")? })
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    rows.into_iter().map(|row| Ok(Unfinished { deploy: with_steps(connection, row.deploy)?, ..row })).collect()
}

/// How what repeats is known: by the sender's own id, with the dialect, or by ours.
#[derive(Debug, Clone, Copy)]
pub(super) enum Same<'a> {
    Sender { dialect: &'a str, id: &'a str },
    Delivery(DeliveryId),
}

/// What the rule of repeats asks of the store for one app and a change. `same`: as what the delivery
/// is known, which may tell of several refs.
pub(super) fn known(
    connection: &Connection,
    app: &AppName,
    change: &Change,
    live: Option<&CommitId>,
    same: Option<Same<'_>>,
) -> rusqlite::Result<Known> {
    let mut known = Known { live: live.cloned(), ..Known::default() };
    let pair = |row: &Row<'_>| Ok((row.get::<_, DeliveryId>(0)?, word(row, "state")?));
    if let Some(Same::Sender { dialect, id }) = same {
        let mut same = connection.prepare_cached(
            // From the delivery to its deploys; the other way leads over all that the app ever deployed.
            "SELECT v.id, d.state FROM deliveries v INDEXED BY deliveries_sender
             CROSS JOIN deploys d INDEXED BY deploys_delivery ON d.delivery = v.id
             WHERE v.sender_id = ?1 AND v.state = 'accepted' AND v.dialect = ?2 AND d.app = ?3 AND d.ref = ?4
             ORDER BY d.id DESC LIMIT 1",
        )?;
        known.same_id = same.query_row(params![id, dialect, app.as_str(), change.ref_name], pair).optional()?;
    }
    if let Some(Same::Delivery(id)) = same {
        let mut same = connection.prepare_cached(
            "SELECT delivery, state FROM deploys WHERE delivery = ?1 AND app = ?2 AND ref = ?3 ORDER BY id DESC LIMIT 1",
        )?;
        known.same_id = same.query_row(params![id, app.as_str(), change.ref_name], pair).optional()?;
    }
    if let Some(live) = live.filter(|live| Some(*live) == change.after.as_ref()) {
        let mut brought = connection.prepare_cached(
            "SELECT delivery FROM deploys WHERE app = ?1 AND \"commit\" = ?2 AND state = 'live'
             AND delivery IS NOT NULL ORDER BY id DESC LIMIT 1",
        )?;
        known.live_by = brought.query_row([app.as_str(), live.as_str()], |row| row.get(0)).optional()?;
    }
    // By its own index, which holds few rows: that of the app leads to all that it ever deployed.
    let mut running = connection.prepare_cached(&format!(
        "SELECT 1 FROM deploys INDEXED BY deploys_unfinished WHERE app = ?1 AND {UNFINISHED} LIMIT 1"
    ))?;
    known.under_way = running.exists([app.as_str()])?;
    Ok(known)
}

/// Without its steps.
pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<DeployView> {
    Ok(DeployView {
        id: row.get("id")?,
        app: word(row, "app")?,
        state: word(row, "state")?,
        step: row.get("step")?,
        reason: row.get("reason")?,
        commit: some_word(row, "commit")?,
        previous_commit: some_word(row, "previous_commit")?,
        ref_name: row.get("ref")?,
        subject: row.get("subject")?,
        author: row.get("author")?,
        by: plain(row, "by")?,
        approved_by: some_plain(row, "approved_by")?,
        release: some_word(row, "release")?,
        superseded_by: row.get("superseded_by")?,
        queued_at: moment(row, "queued_at")?,
        started_at: some_moment(row, "started_at")?,
        ended_at: some_moment(row, "ended_at")?,
        steps: Vec::new(),
    })
}

fn with_steps(connection: &Connection, mut deploy: DeployView) -> rusqlite::Result<DeployView> {
    let mut statement = connection.prepare_cached("SELECT * FROM steps WHERE deploy = ?1 ORDER BY number")?;
    let steps = statement.query_map([deploy.id], |row| {
        let exit = StepExit { code: row.get("code")?, signal: row.get("signal")? };
        Ok(StepView {
            name: row.get("name")?,
            command: row.get("command")?,
            state: word(row, "state")?,
            duration_s: row.get("duration_s")?,
            exit: row.get::<_, bool>("exited")?.then_some(exit),
        })
    })?;
    deploy.steps = steps.collect::<rusqlite::Result<_>>()?;
    Ok(deploy)
}
