//! A command that changes the store, and how it does.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rusqlite::Connection;

use super::{
    deploys, journal, outbox, redelivery, rows,
    say::{NewAudit, NewDeploy, NewEvent, Told},
    tokens,
};
use crate::domain::{
    access::MadeToken,
    api::{DeployState, DeployView},
    deploy::accept::Snapshot,
    model::{AppName, At, CommitId, DeliveryId},
};

pub(super) enum Write {
    NewDeploy(NewDeploy),
    Redeliver {
        ticket: u64,
        id: DeliveryId,
    },
    /// The tickets of all that it stands for.
    Update {
        deploy: Box<DeployView>,
        attempts: u32,
        tickets: Vec<u64>,
    },
    Event(NewEvent),
    Audit(NewAudit),
    NewToken {
        ticket: u64,
        token: MadeToken,
    },
    RevokeToken {
        ticket: u64,
        name: String,
    },
    Rename {
        old: AppName,
        new: AppName,
    },
    Telling(BTreeSet<AppName>),
    Forget {
        letter: i64,
    },
    Wait {
        apps: Vec<AppName>,
        by: Duration,
    },
}

/// What a change is judged by.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub snapshot: &'a Snapshot,
    pub live: &'a BTreeMap<AppName, CommitId>,
    /// Apps whose deploys are told to a forge.
    pub telling: &'a BTreeSet<AppName>,
    pub now: At,
    /// The last number that a delivery was given.
    pub last_delivery: &'a Cell<DeliveryId>,
}

impl Known<'_> {
    /// The number of a delivery that is to be written.
    pub(super) fn next_delivery(&self) -> DeliveryId {
        self.last_delivery.update(|last| last + 1);
        self.last_delivery.get()
    }
}

impl Write {
    /// Does anybody go on only once it is durable? Nobody does for what is told of the past, nor for a
    /// deploy that does not run: what is lost of its place in the queue is found again at the next start.
    pub(super) fn is_waited_for(&self) -> bool {
        match self {
            Self::Update { deploy, .. } => !matches!(deploy.state, DeployState::Queued | DeployState::Superseded),
            Self::Event(_) | Self::Telling(_) | Self::Forget { .. } | Self::Wait { .. } => false,
            _ => true,
        }
    }

    /// The letter that it removes.
    pub(super) fn forgets(&self) -> Option<i64> {
        if let Self::Forget { letter } = self { Some(*letter) } else { None }
    }

    /// The app that it adds rows for.
    pub(super) fn touched(&self) -> Option<AppName> {
        match self {
            Self::NewDeploy(new) => Some(new.app.clone()),
            Self::Update { deploy, .. } => Some(deploy.app.clone()),
            Self::Event(new) => new.app.clone(),
            Self::Redeliver { .. }
            | Self::Audit(_)
            | Self::NewToken { .. }
            | Self::RevokeToken { .. }
            | Self::Telling(_)
            | Self::Forget { .. }
            | Self::Wait { .. } => None,
            Self::Rename { new, .. } => Some(new.clone()),
        }
    }

    /// Changes the store; returns what is told after the commit.
    ///
    /// # Errors
    /// Of the store.
    pub(super) fn put(&self, store: &Connection, known: Known<'_>) -> rusqlite::Result<Vec<Told>> {
        let Known { telling, now, .. } = known;
        Ok(match self {
            Self::NewDeploy(new) => {
                let mut deploy = DeployView::new(&new.app, new.by.clone(), now);
                deploy.ref_name.clone_from(&new.ref_name);
                deploy.commit.clone_from(&new.commit);
                deploy.release.clone_from(&new.release);
                deploy.approved_by.clone_from(&new.approved_by);
                deploys::append(store, &mut deploy, new.rev.as_deref())?;
                vec![Told::Queued { ticket: new.ticket, deploy: Box::new(deploy) }]
            }
            Self::Update { deploy, attempts, tickets } => {
                let tells = telling.contains(&deploy.app);
                let before = if tells { deploys::row(store, deploy.id)? } else { None };
                deploys::update(store, deploy, *attempts)?;
                let mail = tells && outbox::note(store, before.as_ref(), deploy)?;
                let mail = mail.then(|| Told::Mail { app: deploy.app.clone() });
                tickets.iter().map(|ticket| Told::Committed { ticket: *ticket }).chain(mail).collect()
            }
            Self::Redeliver { ticket, id } => redelivery::redeliver(store, *ticket, *id, known)?,
            Self::Event(new) => vec![Told::Event(journal::append_event(store, new)?)],
            Self::Audit(new) => {
                journal::append_audit(store, new)?;
                Vec::new()
            }
            Self::NewToken { ticket, token } => tokens::append(store, *ticket, token)?,
            Self::RevokeToken { ticket, name } => tokens::remove(store, *ticket, name)?,
            Self::Rename { old, new } => {
                rows::rename(store, old, new)?;
                vec![Told::Tokens(tokens::all(store)?)]
            }
            Self::Telling(apps) => {
                outbox::keep_of(store, apps)?;
                Vec::new()
            }
            Self::Forget { letter } => {
                outbox::forget(store, *letter)?;
                Vec::new()
            }
            Self::Wait { apps, by } => {
                outbox::wait(store, apps, *by)?;
                Vec::new()
            }
        })
    }
}
