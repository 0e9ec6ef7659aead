//! Words of the domain in columns: what is text there is parsed here.

use std::str::FromStr;

use rusqlite::{Connection, Row, params, types::Type};
use serde::{Serialize, de::DeserializeOwned};

use crate::domain::model::{AppName, At};

/// A column of text as the word it is.
pub(super) fn word<T: FromStr>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    text.parse().map_err(|_| bad(column, &text))
}

/// As [`word`], where the column may be null.
pub(super) fn some_word<T: FromStr>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| text.parse().map_err(|_| bad(column, &text))).transpose()
}

pub(super) fn moment(row: &Row<'_>, column: &str) -> rusqlite::Result<At> {
    row.get(column).map(At)
}

pub(super) fn some_moment(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<At>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(At))
}

/// A column of JSON.
pub(super) fn plain<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|_| bad(column, &text))
}

/// As [`plain`], where the column may be null.
pub(super) fn some_plain<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| serde_json::from_str(&text).map_err(|_| bad(column, &text))).transpose()
}

/// Plain data as JSON.
pub(super) fn json(data: &impl Serialize) -> String {
    serde_json::to_string(data).expect("plain data always serializes")
}

/// A filter by apps for `json_each`; `None`, and so null, for all.
pub(super) fn filter(apps: Option<&[AppName]>) -> Option<String> {
    apps.map(|apps| json(&apps))
}

fn bad(column: &str, text: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, format!("column {column} holds {text:?}").into())
}

/// What happened to an app happened to it under its new name. The audit keeps what was asked for.
pub(super) fn rename(connection: &Connection, old: &AppName, new: &AppName) -> rusqlite::Result<()> {
    let names = params![old.as_str(), new.as_str()];
    for change in [
        "UPDATE deploys SET app = ?2 WHERE app = ?1",
        "UPDATE OR IGNORE delivery_apps SET app = ?2 WHERE app = ?1",
        "UPDATE deliveries SET app = ?2 WHERE app = ?1",
        "UPDATE OR REPLACE outbox SET app = ?2 WHERE app = ?1",
        "UPDATE events SET app = ?2, instance = ?2 || substr(instance, length(?1) + 1) WHERE app = ?1",
    ] {
        connection.execute(change, names)?;
    }
    super::tokens::rename(connection, old, new)
}
