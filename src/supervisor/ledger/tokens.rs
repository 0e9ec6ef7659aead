//! Rows of the tokens that people made.

use rusqlite::{Connection, Row, named_params, params};

use super::{
    rows::{json, moment, plain, some_moment, some_plain},
    say::Told,
};
use crate::domain::{
    access::{MadeToken, TokenHash},
    api::{Refusal, RefusalKind, Reply},
    model::AppName,
};

/// Keeps a new one. Answered by what there is now, then by [`Told::Found`].
pub(super) fn append(connection: &Connection, ticket: u64, new: &MadeToken) -> rusqlite::Result<Vec<Told>> {
    let mut insert = connection.prepare_cached(
        "INSERT OR IGNORE INTO tokens (name, hash, role, apps, by, created_at, expires_at)
         VALUES (:name, :hash, :role, :apps, :by, :created_at, :expires_at)",
    )?;
    let added = insert.execute(named_params! {
        ":name": new.name,
        ":hash": new.hash.bytes(),
        ":role": json(&new.role),
        ":apps": new.apps.as_ref().map(json),
        ":by": json(&new.by),
        ":created_at": new.created_at.0,
        ":expires_at": new.expires_at.map(|at| at.0),
    })?;
    let message = || format!("there is a token {:?} already", new.name);
    told(connection, ticket, if added == 1 { Ok(()) } else { Err(Refusal::new(RefusalKind::Failed, message())) })
}

/// Forgets one. Answered by what there is now, then by [`Told::Found`].
pub(super) fn remove(connection: &Connection, ticket: u64, name: &str) -> rusqlite::Result<Vec<Told>> {
    let removed = connection.prepare_cached("DELETE FROM tokens WHERE name = ?1")?.execute([name])?;
    let message = || format!("there is no token {name:?} any more");
    told(connection, ticket, if removed == 1 { Ok(()) } else { Err(Refusal::new(RefusalKind::NotFound, message())) })
}

/// All of them, in the order in which they were made.
pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<MadeToken>> {
    let mut statement = connection.prepare_cached("SELECT * FROM tokens ORDER BY created_at, name")?;
    statement.query_map([], read)?.collect()
}

/// A token for an app goes on being for it under its new name.
pub(super) fn rename(connection: &Connection, old: &AppName, new: &AppName) -> rusqlite::Result<()> {
    for token in all(connection)? {
        let Some(mut apps) = token.apps.filter(|apps| apps.contains(old)) else { continue };
        for app in apps.iter_mut().filter(|app| *app == old) {
            app.clone_from(new);
        }
        connection
            .prepare_cached("UPDATE tokens SET apps = ?2 WHERE name = ?1")?
            .execute(params![token.name, json(&apps)])?;
    }
    Ok(())
}

fn told(connection: &Connection, ticket: u64, done: Result<(), Refusal>) -> rusqlite::Result<Vec<Told>> {
    let reply = done.map(|()| Reply::Changed { app: None, deploy: None, message: String::new() });
    Ok(vec![Told::Tokens(all(connection)?), Told::Found { ticket, reply }])
}

fn read(row: &Row<'_>) -> rusqlite::Result<MadeToken> {
    Ok(MadeToken {
        name: row.get("name")?,
        hash: TokenHash::from(row.get::<_, [u8; 32]>("hash")?),
        role: plain(row, "role")?,
        apps: some_plain(row, "apps")?,
        by: plain(row, "by")?,
        created_at: moment(row, "created_at")?,
        expires_at: some_moment(row, "expires_at")?,
    })
}
