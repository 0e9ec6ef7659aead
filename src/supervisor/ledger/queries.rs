//! Questions to the store and their replies.

use rusqlite::Connection;

use super::{
    deliveries, deploys, journal, outbox,
    say::{Query, Told},
    store::last_number,
};
use crate::domain::api::{Refusal, RefusalKind, Reply};

/// Reads what is asked for.
///
/// # Errors
/// Of the store.
pub(super) fn answer(store: &Connection, ticket: u64, query: &Query) -> rusqlite::Result<Told> {
    let reply = match query {
        Query::Unfinished => return Ok(Told::Unfinished { ticket, deploys: deploys::unfinished(store)? }),
        Query::Letters { apps, n } => {
            return Ok(Told::Letters { ticket, letters: outbox::letters(store, apps, *n)? });
        }
        Query::Events { apps, instance, n, since, after, before } => {
            let between = (after.unwrap_or(0), before.unwrap_or(i64::MAX));
            Ok(Reply::Events(journal::events(store, (apps.as_deref(), instance.as_ref()), *n, *since, between)?))
        }
        Query::Audit(filter) => Ok(Reply::Audit(journal::audit(store, filter)?)),
        Query::Deploys { apps, n, before } => {
            Ok(Reply::Deploys(deploys::list(store, apps.as_deref(), *n, before.unwrap_or(i64::MAX))?))
        }
        Query::Deliveries { apps, n, before } => {
            Ok(Reply::Deliveries(deliveries::list(store, apps.as_deref(), *n, before.unwrap_or(i64::MAX))?))
        }
        Query::Deploy { id, apps } => match deploys::find(store, *id, apps.as_deref())? {
            Some(deploy) => Ok(Reply::Deploy { deploy: Box::new(deploy), log: Vec::new() }),
            None => Err(missing(store, "deploy", "deploys", *id)?),
        },
        Query::Delivery { id, apps } => match deliveries::find(store, *id, apps.as_deref())? {
            Some(delivery) => Ok(Reply::Delivery(Box::new(delivery))),
            None => Err(missing(store, "delivery", "deliveries", *id)?),
        },
    };
    Ok(Told::Found { ticket, reply })
}

/// What is told when the store cannot be read.
pub(super) fn unreadable(ticket: u64, query: &Query, why: &str) -> Told {
    match query {
        Query::Unfinished => return Told::Unfinished { ticket, deploys: Vec::new() },
        Query::Letters { .. } => return Told::Letters { ticket, letters: Vec::new() },
        _ => {}
    }
    let message = format!("the database cannot be read: {why}");
    Told::Found { ticket, reply: Err(Refusal::new(RefusalKind::Unavailable, message)) }
}

fn missing(store: &Connection, what: &str, table: &str, id: i64) -> rusqlite::Result<Refusal> {
    let newest = match last_number(store, table)? {
        0 => "there is none yet".to_owned(),
        last => format!("the newest is {last}"),
    };
    Ok(Refusal::new(RefusalKind::NotFound, format!("{what} {id} does not exist; {newest}")))
}
