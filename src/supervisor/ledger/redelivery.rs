//! An accepted delivery that a person has judged as if it had come again, for the apps that it was about. It
//! proved itself then; whether that person may is judged in the loop.

use std::borrow::Cow;

use rusqlite::Connection;

use super::{
    deliveries,
    say::Told,
    webhook::{Incoming, Proven, judge_changes},
    write::Known,
};
use crate::domain::{
    api::{DeliveryState, DeliveryView, DeployOf, RawDelivery, Redelivered, Refusal, RefusalKind, Reply},
    deploy::accept::App,
    hook::{self, Dialect, Head, Kind},
    model::DeliveryId,
};

/// Judges the body of a delivery anew.
///
/// # Errors
/// Of the store.
pub(super) fn redeliver(
    connection: &Connection,
    ticket: u64,
    id: DeliveryId,
    known: Known<'_>,
) -> rusqlite::Result<Vec<Told>> {
    let refused = |kind, message| Ok(vec![Told::Found { ticket, reply: Err(Refusal::new(kind, message)) }]);
    let Some(first) = deliveries::find(connection, id, None)? else {
        return refused(RefusalKind::NotFound, format!("delivery {id} does not exist any more"));
    };
    let body = deliveries::body(connection, id)?;
    let apps: Vec<&App> = first.about.iter().filter_map(|name| known.snapshot.app(name.as_str())).collect();
    let dialect = first.dialect.as_deref().and_then(|name| {
        let own = apps.iter().filter_map(|app| app.dialect.clone()).find(|dialect| dialect.name() == name);
        own.or_else(|| Dialect::from_name(name))
    });
    let (Some(body), Some(dialect)) = (body, dialect) else {
        return refused(RefusalKind::Failed, not_kept(&first));
    };
    if apps.is_empty() {
        let message = format!("no app that delivery {id} is about has a repository in the config any more");
        return refused(RefusalKind::Failed, message);
    }
    let head = Head::again(first.event, first.sender_id, &body);
    let incoming = Incoming {
        listener: 0,
        at: known.now,
        raw: RawDelivery { ticket: 0, app: None, headers: 0, address: format!("redelivery of {id}"), memfd: None },
        frame: None,
    };
    let body = Cow::Owned(body);
    let parsed = match hook::parse(&dialect, head, &body) {
        Ok(parsed) => parsed,
        Err(why) => return refused(RefusalKind::Failed, format!("delivery {id}: {why}")),
    };
    let proven = Proven { incoming: &incoming, body, dialect, parsed, apps: apps.clone() };
    let Kind::Changes(changes) = &proven.parsed.kind else {
        return refused(RefusalKind::Failed, format!("delivery {id} asks for no deploy"));
    };
    let mut kept = judge_changes(connection, &proven, changes, &apps, known, Some(id))?;
    let view = deliveries::find(connection, kept.id, None)?;
    let queued =
        kept.told.iter().filter_map(|told| if let Told::Accepted { deploys } = told { Some(deploys) } else { None });
    let redelivered = Redelivered {
        delivery: kept.id,
        deploys: queued.flatten().map(|deploy| DeployOf { app: deploy.app.clone(), id: deploy.id }).collect(),
        duplicate_of: view.as_ref().and_then(|view| view.duplicate_of),
        reason: view.and_then(|view| view.reason),
    };
    kept.append_events(connection)?;
    kept.told.push(Told::Found { ticket, reply: Ok(Reply::Redelivered(redelivered)) });
    Ok(kept.told)
}

/// Why there is nothing to judge anew.
fn not_kept(delivery: &DeliveryView) -> String {
    let DeliveryView { id, state, .. } = delivery;
    match (state, delivery.duplicate_of) {
        (_, Some(first)) => format!("delivery {id} repeats {first}: redeliver that one"),
        (DeliveryState::Accepted, None) => format!("the body of delivery {id} is kept no more"),
        _ => format!("delivery {id} was {state}, so its body is not kept: have its sender send it again"),
    }
}
