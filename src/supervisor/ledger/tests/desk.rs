//! The other side of the thread: its listener and its loop.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};
use sha2::Sha256;
use tempfile::TempDir;

use super::super::*;
use crate::{
    domain::{
        api::{Answer, DeliveryView, DeployState, DeployView, EventKind, FromHooks, RawDelivery, Refusal, Reply},
        deploy::accept::{App, Snapshot},
        model::{AppName, At, CommitId, Secret},
    },
    os::channel::Channel,
};

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A ledger, with this test as its listener 0 and as its loop.
pub(super) struct Desk {
    pub(super) folder: Arc<TempDir>,
    pub(super) ledger: Option<Ledger>,
    told: mpsc::Receiver<Told>,
    pub(super) listener: Channel,
    pub(super) tickets: u64,
    /// The loop follows the events of deliveries.
    pub(super) heed: Option<Heed>,
}

/// One request, still to be signed.
pub(super) struct Post {
    pub(super) app: Option<&'static str>,
    pub(super) event: &'static str,
    pub(super) id: Option<String>,
    pub(super) secret: &'static str,
    pub(super) body: Vec<u8>,
}

pub(super) fn name(text: &str) -> AppName {
    text.parse().unwrap()
}

pub(super) fn commit(digit: char) -> CommitId {
    digit.to_string().repeat(40).parse().unwrap()
}

fn app(name: &str, repo: &str, secrets: &[&str]) -> App {
    App {
        name: name.parse().unwrap(),
        repo: repo.to_owned(),
        on: Vec::new(),
        secrets: secrets.iter().map(|text| Secret::new(text.as_bytes().to_vec())).collect(),
        dialect: None,
    }
}

/// Two apps of one repository, and another.
fn apps() -> Vec<App> {
    vec![
        app("blog", "git@host.example:foo/bar.git", &["hush"]),
        app("docs", "https://host.example/foo/bar", &["hush"]),
        app("api", "https://host.example/foo/api", &["quiet"]),
    ]
}

pub(super) fn push(ref_name: &str, after: char, id: &str) -> Post {
    let body = json!({
        "ref": ref_name,
        "before": "0".repeat(40),
        "after": after.to_string().repeat(40),
        "repository": {"full_name": "foo/bar", "clone_url": "https://host.example/foo/bar.git"},
        "head_commit": {"message": "say … hello 👋\n\nmore", "author": {"name": "Ann"}},
        "sender": {"login": "ann"},
    });
    Post {
        app: Some("blog"),
        event: "push",
        id: Some(id.to_owned()),
        secret: "hush",
        body: body.to_string().into_bytes(),
    }
}

pub(super) fn master(after: char, id: &str) -> Post {
    push("refs/heads/master", after, id)
}

impl Desk {
    pub(super) fn open() -> Self {
        Self::at(Arc::new(tempfile::tempdir().unwrap()), "everhook.db")
    }

    pub(super) fn at(folder: Arc<TempDir>, file: &str) -> Self {
        let (tell, told) = mpsc::channel();
        let ledger = Ledger::start(&folder.path().join(file), Arc::new(move |t| tell.send(t).unwrap_or(()))).unwrap();
        let (ours, theirs) = Channel::pair().unwrap();
        ledger.send(Command::Channel { listener: 0, channel: Channel::new(theirs) });
        ledger.send(Command::Snapshot(Arc::new(Snapshot::new(apps()))));
        let heed = Some(ledger.heed());
        Self { folder, ledger: Some(ledger), told, listener: ours, tickets: 0, heed }
    }

    pub(super) fn database(&self) -> PathBuf {
        self.folder.path().join("everhook.db")
    }

    /// The database, after the ledger's end.
    pub(super) fn look(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.database()).unwrap()
    }

    pub(super) fn ledger(&self) -> &Ledger {
        self.ledger.as_ref().unwrap()
    }

    /// Ends the ledger and starts another on the same folder.
    pub(super) fn reopen(mut self) -> Self {
        self.close();
        Self::at(Arc::clone(&self.folder), "everhook.db")
    }

    pub(super) fn close(&mut self) {
        self.ledger.take().unwrap().close();
    }

    pub(super) fn send(&mut self, post: &Post) -> u64 {
        self.send_with(post, None, &post.body)
    }

    pub(super) fn send_with(&mut self, post: &Post, memfd: Option<(usize, OwnedFd)>, inline: &[u8]) -> u64 {
        self.tickets += 1;
        let mac = Hmac::<Sha256>::new_from_slice(post.secret.as_bytes()).unwrap().chain_update(&post.body).finalize();
        let hex: String = mac.into_bytes().iter().map(|b| format!("{b:02x}")).collect();
        let mut headers = format!(
            "x-github-event: {}\nx-hub-signature-256: sha256={hex}\ncontent-type: application/json\n",
            post.event
        );
        headers.extend(post.id.iter().map(|id| format!("x-github-delivery: {id}\n")));
        let raw = RawDelivery {
            ticket: self.tickets,
            app: post.app.map(str::to_owned),
            headers: headers.len(),
            address: "192.0.2.7".to_owned(),
            memfd: memfd.as_ref().map(|(length, _)| *length),
        };
        let (headers, inline) = (headers.as_bytes(), Bytes::copy_from_slice(inline));
        self.listener.queue_with(&FromHooks::Delivery(raw), headers, inline, memfd.map(|(_, fd)| fd));
        self.tickets
    }

    /// The next answer.
    pub(super) fn answer(&mut self) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.listener.flush().unwrap();
            match self.listener.receive() {
                Ok(frame) => {
                    let body = String::from_utf8(frame.body().to_vec()).unwrap();
                    return Answer { body, ..frame.message().unwrap() };
                }
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock),
            }
            assert!(Instant::now() < deadline, "no answer came");
            let mut interest = PollFlags::POLLIN;
            interest.set(PollFlags::POLLOUT, self.listener.wants_write());
            poll(&mut [PollFd::new(self.listener.as_fd(), interest)], PollTimeout::from(500u16)).unwrap();
        }
    }

    pub(super) fn post(&mut self, post: &Post) -> (u16, Value) {
        let ticket = self.send(post);
        let answer = self.answer();
        assert_eq!(answer.ticket, ticket);
        (answer.status, serde_json::from_str(&answer.body).unwrap())
    }

    /// What is told next that `pick` wants; the rest is passed over.
    pub(super) fn told<T>(&self, mut pick: impl FnMut(Told) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(picked) = pick(self.told.recv_timeout(left).expect("it is told in time")) {
                return picked;
            }
        }
    }

    pub(super) fn ask(&self, query: Query) -> Result<Reply, Refusal> {
        self.ledger().send(Command::Query { ticket: 99, query });
        self.told(|told| if let Told::Found { ticket: 99, reply } = told { Some(reply) } else { None })
    }

    pub(super) fn deliveries(&self, apps: Option<Vec<AppName>>) -> Vec<DeliveryView> {
        match self.ask(Query::Deliveries { apps, n: 10_000, before: None }) {
            Ok(Reply::Deliveries(list)) => list,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn deploys(&self) -> Vec<DeployView> {
        match self.ask(Query::Deploys { apps: None, n: 10_000, before: None }) {
            Ok(Reply::Deploys(list)) => list,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn unfinished(&self) -> Vec<Unfinished> {
        self.ledger().send(Command::Query { ticket: 98, query: Query::Unfinished });
        self.told(|told| if let Told::Unfinished { ticket: 98, deploys } = told { Some(deploys) } else { None })
    }

    /// Lets a deploy reach this state, as the loop would.
    pub(super) fn set(&self, id: i64, state: DeployState) {
        let mut deploy = self.deploys().into_iter().find(|deploy| deploy.id == id).unwrap();
        deploy.state = state;
        self.ledger().send(Command::Update { deploy: Box::new(deploy), attempts: 0, ticket: Some(7) });
        self.told(|told| matches!(told, Told::Committed { ticket: 7 }).then_some(()));
    }

    pub(super) fn event(&self, app: &str, to: &str) -> NewEvent {
        NewEvent {
            at: At(1_000),
            app: Some(name(app)),
            instance: Some(format!("{app}.1").parse().unwrap()),
            kind: EventKind::Instance,
            from: Some("starting".to_owned()),
            to: Some(to.to_owned()),
            cause: Some("it was ready".to_owned()),
            detail: None,
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if let Some(ledger) = self.ledger.take() {
            ledger.close();
        }
    }
}
