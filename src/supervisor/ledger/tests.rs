//! The thread with a real database and a real channel; the test is the listener and the loop.

mod desk;
mod outbox;

use std::{
    fs,
    io::Write,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    mount::{MsFlags, mount},
    sys::memfd::{MFdFlags, memfd_create},
};
use serde_json::{Value, json};

use self::desk::{Desk, PATIENCE, Post, commit, master, name, push};
use super::*;
use crate::{
    domain::{
        api::{
            Answer, AuditFilter, By, DeliveryState, DeliveryView, DeployState, EventKind, FromHooks, RefusalKind,
            Reply, StepExit, StepState, StepView,
        },
        model::At,
    },
    os::channel::Channel,
};

#[test]
fn a_signed_push_is_committed_before_it_is_accepted() {
    let mut desk = Desk::open();
    let post = master('a', "one");
    assert_eq!(desk.post(&post), (202, json!({"delivery": 1, "deploys": [{"app": "blog", "id": 1}]})));
    let told = desk.told(|told| if let Told::Accepted { deploys } = told { Some(deploys) } else { None });
    assert_eq!((told.len(), told[0].id, told[0].state), (1, 1, DeployState::Queued));

    let mut desk = desk.reopen();
    let deploys = desk.deploys();
    assert_eq!(deploys, told);
    assert_eq!(deploys[0].commit, Some(commit('a')));
    assert_eq!(deploys[0].ref_name.as_deref(), Some("refs/heads/master"));
    assert_eq!(deploys[0].subject.as_deref(), Some("say … hello 👋"));
    assert_eq!(deploys[0].by, By::Delivery { id: 1 });
    let deliveries = desk.deliveries(None);
    assert_eq!((deliveries.len(), deliveries[0].state, &deliveries[0].deploys), (1, DeliveryState::Accepted, &vec![1]));
    assert_eq!(deliveries[0].sender.as_deref(), Some("ann"));
    assert_eq!(deliveries[0].app.as_deref(), Some("blog"));

    desk.close();
    let body: Vec<u8> = desk.look().query_row("SELECT body FROM bodies", [], |row| row.get(0)).unwrap();
    assert_eq!(body, post.body);
}

#[test]
fn a_repeat_is_a_duplicate_until_its_deploy_came_to_nothing() {
    let mut desk = Desk::open();
    let post = master('a', "one");
    assert_eq!(desk.post(&post).0, 202);
    assert_eq!(desk.post(&post), (200, json!({"delivery": 2, "duplicate_of": 1})));
    desk.set(1, DeployState::Failed);
    assert_eq!(desk.post(&post), (202, json!({"delivery": 3, "deploys": [{"app": "blog", "id": 2}]})));
    desk.set(2, DeployState::Live);
    assert_eq!(desk.post(&post), (200, json!({"delivery": 4, "duplicate_of": 3})));
    assert_eq!(desk.deliveries(None)[0].state, DeliveryState::Duplicate);
}

#[test]
fn a_push_of_what_is_live_is_a_duplicate_under_any_id() {
    let mut desk = Desk::open();
    assert_eq!(desk.post(&master('a', "one")).0, 202);
    desk.set(1, DeployState::Live);
    desk.ledger().send(Command::Live { app: name("blog"), commit: Some(commit('a')) });
    assert_eq!(desk.post(&master('a', "two")), (200, json!({"delivery": 2, "duplicate_of": 1})));
    desk.ledger().send(Command::Live { app: name("blog"), commit: Some(commit('c')) });
    assert_eq!(desk.post(&master('a', "three")).0, 202);
}

#[test]
fn repeats_within_one_group_are_seen() {
    let mut desk = Desk::open();
    let post = master('a', "one");
    let tickets: Vec<u64> = (0..3).map(|_| desk.send(&post)).collect();
    let answers: Vec<Answer> = tickets.iter().map(|_| desk.answer()).collect();
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [202, 200, 200]);
    assert_eq!(desk.deploys().len(), 1);
}

#[test]
fn without_a_name_every_app_of_the_repository_is_deployed() {
    let mut desk = Desk::open();
    let post = Post { app: None, ..master('a', "one") };
    let both = json!({"delivery": 1, "deploys": [{"app": "blog", "id": 1}, {"app": "docs", "id": 2}]});
    assert_eq!(desk.post(&post), (202, both));
    desk.set(2, DeployState::RolledBack);
    assert_eq!(desk.post(&post), (202, json!({"delivery": 2, "deploys": [{"app": "docs", "id": 3}]})));
    let seen = desk.deliveries(Some(vec![name("docs")]));
    assert_eq!(seen.iter().map(|d| d.deploys.clone()).collect::<Vec<_>>(), [vec![3], vec![2]]);
    assert!(desk.deliveries(Some(vec![name("api")])).is_empty());
}

#[test]
fn an_unmatched_repository_is_skipped_and_told_with_the_nearest_app() {
    let mut desk = Desk::open();
    let post = Post { app: None, secret: "quiet", ..master('a', "one") };
    let (status, body) = desk.post(&post);
    assert_eq!((status, body), (200, json!({"delivery": 1, "skipped": "no app deploys this repository"})));
    let event = desk.told(|told| if let Told::Event(event) = told { Some(event) } else { None });
    let cause = event.cause.unwrap();
    assert!(cause.starts_with("unmatched") && cause.contains("\"api\""), "{cause}");
}

#[test]
fn what_nobody_follows_is_recorded_and_not_told() {
    let mut desk = Desk::open();
    desk.heed = None;
    let skipped = |id| Post { app: None, secret: "quiet", ..master('a', id) };
    assert_eq!(desk.post(&skipped("one")).0, 200);
    assert_eq!(desk.deliveries(None).len(), 1);
    desk.heed = Some(desk.ledger.as_ref().unwrap().heed());
    assert_eq!(desk.post(&skipped("two")).0, 200);
    let event = desk.told(|told| if let Told::Event(event) = told { Some(event) } else { None });
    assert!(event.detail.unwrap().starts_with("delivery 2 "));
}

#[test]
fn every_refusal_looks_the_same_and_is_recorded_with_its_reason() {
    let mut desk = Desk::open();
    let posts = [
        Post { secret: "wrong", ..master('a', "one") },
        Post { app: Some("nobody"), ..master('a', "two") },
        Post { app: None, secret: "wrong", ..master('a', "three") },
    ];
    let mut bodies: Vec<(u16, Value)> = posts.iter().map(|post| desk.post(post)).collect();
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    assert_eq!(bodies[0].0, 401);
    let text = bodies[0].1.to_string();
    assert!(!text.contains("secret") && !text.contains("app"), "{text}");

    let recorded = desk.deliveries(None);
    let reasons: Vec<&str> = recorded.iter().rev().map(|d| d.reason.as_deref().unwrap()).collect();
    assert_eq!(reasons, ["no secret fits", "no such app", "no secret fits"]);
    assert!(recorded.iter().all(|d| d.state == DeliveryState::Refused && d.deploys.is_empty()));
    assert_eq!(desk.deliveries(Some(vec![name("blog")])).len(), 1);
    assert!(desk.deploys().is_empty());
}

#[test]
fn refusals_are_written_within_a_second_by_themselves() {
    let mut desk = Desk::open();
    desk.deploys();
    let commits = || desk.ledger.as_ref().unwrap().inbox.commits.load(Ordering::Relaxed);
    let before = commits();
    let post = Post { secret: "wrong", ..master('a', "one") };
    assert_eq!(desk.post(&post).0, 401);
    let deadline = Instant::now() + PATIENCE;
    while desk.ledger().inbox.commits.load(Ordering::Relaxed) <= before {
        assert!(Instant::now() < deadline);
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
    assert_eq!(desk.deliveries(None).len(), 1);
}

/// Two threads write them: what is answered already, and what waits for its commit.
#[test]
fn deliveries_are_numbered_and_told_in_order_whoever_writes_them() {
    const ALL: i64 = 5_000;
    let mut desk = Desk::open();
    let mut accepted = Vec::new();
    for round in 0..ALL / 100 {
        for n in 0..100 {
            let id = format!("{round}-{n}");
            let post = match n {
                0 => master('a', &id),
                1 => Post { secret: "wrong", ..master('a', &id) },
                _ => push("refs/tags/v1", 'a', &id),
            };
            desk.send(&post);
        }
        for _ in 0..100 {
            let answer = desk.answer();
            assert!([200, 202, 401].contains(&answer.status));
            if answer.status == 202 {
                let body: Value = serde_json::from_str(&answer.body).unwrap();
                accepted.push(body["delivery"].as_i64().unwrap());
            }
        }
    }
    let mut last = 0;
    let mut left = ALL - ALL / 100;
    desk.told(|told| {
        if let Told::Event(event) = told {
            assert!(event.id > last, "{} after {last}", event.id);
            last = event.id;
            // Of very many at once only the first are told one by one.
            let more = event.cause.as_deref().and_then(|cause| cause.strip_suffix(" more deliveries came"));
            left -= more.map_or(1, |count| count.parse().unwrap());
        }
        (left == 0).then_some(())
    });
    let rows = desk.deliveries(None);
    let ids: Vec<i64> = rows.iter().rev().map(|row| row.id).collect();
    assert_eq!(ids, (1..=ALL).collect::<Vec<_>>());
    let is_accepted = |row: &&DeliveryView| row.state == DeliveryState::Accepted;
    assert_eq!(rows.iter().rev().filter(is_accepted).map(|row| row.id).collect::<Vec<_>>(), accepted);
}

#[test]
fn other_events_are_welcome_and_do_nothing() {
    let mut desk = Desk::open();
    let ping = Post { event: "ping", body: b"{\"zen\":\"x\"}".to_vec(), ..master('a', "one") };
    assert_eq!(desk.post(&ping), (200, json!({"pong": true})));
    let issue = Post { event: "issues", body: b"{}".to_vec(), ..master('a', "two") };
    let (status, body) = desk.post(&issue);
    assert_eq!((status, &body["delivery"]), (200, &json!(2)));
    assert!(body["skipped"].as_str().unwrap().contains("issues"));
    let tag = push("refs/tags/v1", 'a', "three");
    assert_eq!(desk.post(&tag), (200, json!({"delivery": 3, "skipped": "tag \"v1\" is not deployed"})));
    let broken = Post { body: b"{".to_vec(), ..master('a', "four") };
    let (status, body) = desk.post(&broken);
    assert_eq!((status, &body["status"], &body["type"]), (400, &json!(400), &json!("about:blank")));
    let states: Vec<(DeliveryState, String)> =
        desk.deliveries(None).into_iter().rev().map(|d| (d.state, d.reason.unwrap())).collect();
    assert_eq!(states[0], (DeliveryState::Skipped, "ping".to_owned()));
    assert_eq!(states[3].0, DeliveryState::Refused);
}

fn sealed(bytes: &[u8], seals: SealFlag) -> OwnedFd {
    let fd = memfd_create(c"body", MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC).unwrap();
    let mut file = fs::File::from(fd);
    file.write_all(bytes).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    file.into()
}

#[test]
fn a_large_body_comes_in_a_sealed_memfd_or_not_at_all() {
    let mut desk = Desk::open();
    let mut post = master('a', "one");
    let large = json!({"padding": "x".repeat(2_000_000)}).to_string();
    let end = post.body.len() - 1;
    post.body.splice(end.., format!(",{}", &large[1..]).into_bytes());
    let length = post.body.len();
    let whole = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_WRITE;
    for (seals, said, status) in
        [(SealFlag::F_SEAL_SHRINK, length, 401), (whole, length - 1, 401), (whole, 1 << 40, 401), (whole, length, 202)]
    {
        let fd = sealed(&post.body, seals);
        desk.send_with(&post, Some((said, fd)), &[]);
        assert_eq!(desk.answer().status, status, "{seals:?} {said}");
    }
    desk.close();
    let kept: i64 = desk.look().query_row("SELECT length(body) FROM bodies", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, i64::try_from(length).unwrap());
}

#[test]
fn a_thousand_deliveries_are_committed_in_groups() {
    let mut desk = Desk::open();
    desk.deploys();
    let before = desk.ledger().inbox.commits.load(Ordering::Relaxed);
    for i in 0..1000 {
        let digit = char::from_digit(u32::try_from(i).unwrap() % 6 + 10, 16).unwrap();
        desk.send(&master(digit, &format!("id {i}").replace(' ', "-")));
    }
    for _ in 0..1000 {
        assert_eq!(desk.answer().status, 202);
    }
    let commits = desk.ledger().inbox.commits.load(Ordering::Relaxed) - before;
    assert!(commits < 500, "{commits} commits");
    let desk = desk.reopen();
    assert_eq!(desk.deploys().len(), 1000);
    assert_eq!(desk.unfinished().len(), 1000);
}

#[test]
fn health_is_answered_when_the_loop_says_so() {
    let mut desk = Desk::open();
    // One question to the loop for all who ask.
    for ticket in [5, 6] {
        desk.listener.queue(&FromHooks::Health { ticket }, &[], None);
    }
    desk.listener.flush().unwrap();
    desk.told(|told| matches!(told, Told::Health).then_some(()));
    desk.ledger().send(Command::Health);
    for ticket in [5, 6] {
        assert_eq!(desk.answer(), Answer { ticket, status: 200, body: "ok".to_owned(), retry_after: None });
    }
}

#[test]
fn a_new_channel_gets_no_answers_meant_for_the_old() {
    let mut desk = Desk::open();
    desk.listener.queue(&FromHooks::Health { ticket: 1 }, &[], None);
    desk.listener.flush().unwrap();
    desk.told(|told| matches!(told, Told::Health).then_some(()));
    let (ours, theirs) = Channel::pair().unwrap();
    desk.ledger().send(Command::Channel { listener: 0, channel: Channel::new(theirs) });
    desk.ledger().send(Command::Health);
    desk.listener = ours;
    desk.tickets = 10;
    assert_eq!(desk.post(&master('a', "one")).0, 202);
}

#[test]
fn a_listener_that_ends_is_told() {
    let mut desk = Desk::open();
    let (other, _) = Channel::pair().unwrap();
    drop(std::mem::replace(&mut desk.listener, other));
    desk.told(|told| matches!(told, Told::ChannelClosed { listener: 0 }).then_some(()));
}

#[test]
fn a_listener_that_was_taken_over_gets_nothing() {
    let ask = |request: Value| json!({"ticket": 1, "token": "t", "address": "::1", "wait": false, "timeout": null, "request": request});
    for message in [
        ask(json!({"shutdown": {"now": true}})),
        ask(json!({"deploy_app": {"app": "blog", "rev": null}})),
        json!({"shutdown": {"now": true}}),
        json!({"delivery": {"ticket": 1, "proven": true}}),
        json!({"update": {}}),
        json!("health"),
        json!(null),
    ] {
        let mut desk = Desk::open();
        desk.listener.queue(&message, b"body", None);
        desk.listener.flush().unwrap();
        desk.told(|told| matches!(told, Told::ChannelClosed { listener: 0 }).then_some(()));
        assert_eq!((desk.deliveries(None), desk.deploys()), (vec![], vec![]), "{message}");
    }
    // Of deliveries only their own bytes count, whatever the listener says about them.
    let mut desk = Desk::open();
    let mut forged = master('a', "one");
    forged.secret = "guessed";
    assert_eq!(desk.post(&forged).0, 401);
    let mut replayed = master('a', "two");
    desk.send_with(&replayed, None, &master('b', "two").body);
    assert_eq!(desk.answer().status, 401, "a proof of other bytes");
    replayed.app = Some("api");
    assert_eq!(desk.post(&replayed).0, 401, "a proof of another app's secret");
    let told = desk.deliveries(None);
    assert_eq!(told.iter().map(|one| one.state).collect::<Vec<_>>(), [DeliveryState::Refused; 3]);
    assert_eq!(desk.deploys(), []);
}

#[test]
fn what_the_loop_stores_is_read_back_as_it_was() {
    let desk = Desk::open();
    let new = NewDeploy {
        approved_by: None,
        ticket: 3,
        app: name("blog"),
        ref_name: None,
        rev: Some("v1".to_owned()),
        commit: None,
        release: Some("7-1a2b3c4".parse().unwrap()),
        by: By::Local { uid: 1000, user: Some("ann".to_owned()) },
    };
    desk.ledger().send(Command::Above(40));
    desk.ledger().send(Command::NewDeploy(new));
    let mut deploy = desk.told(|told| if let Told::Queued { ticket: 3, deploy } = told { Some(deploy) } else { None });
    assert_eq!(deploy.id, 41);
    deploy.state = DeployState::Checking;
    deploy.started_at = Some(At(5));
    deploy.commit = Some(commit('b'));
    let exit = StepExit { code: Some(1), signal: None };
    for exit in [None, Some(exit), Some(StepExit { code: None, signal: None })] {
        let (name, command) = ("check".to_owned(), Some("npm test".to_owned()));
        deploy.steps.push(StepView { name, command, state: StepState::Failed, duration_s: Some(3.25), exit });
    }
    desk.ledger().send(Command::Update { deploy: deploy.clone(), attempts: 2, ticket: Some(4) });
    desk.told(|told| matches!(told, Told::Committed { ticket: 4 }).then_some(()));
    desk.ledger().send(Command::Event(desk.event("blog", "ready")));
    let event = desk.told(|told| if let Told::Event(event) = told { Some(event) } else { None });
    let audit = NewAudit {
        at: At(9),
        by: By::Nobody,
        address: Some("::1".to_owned()),
        action: "restart".to_owned(),
        app: Some("blog".to_owned()),
        outcome: "refused".to_owned(),
        reason: Some("the token is unknown".to_owned()),
    };
    desk.ledger().send(Command::Audit(audit));

    let desk = desk.reopen();
    let expected = Unfinished { deploy: *deploy.clone(), attempts: 2, rev: Some("v1".to_owned()) };
    assert_eq!(desk.unfinished(), [expected]);
    match desk.ask(Query::Events {
        apps: Some(vec![name("blog")]),
        instance: None,
        n: 5,
        since: None,
        after: None,
        before: None,
    }) {
        Ok(Reply::Events(events)) => assert_eq!(events, [event]),
        other => panic!("{other:?}"),
    }
    let fits = AuditFilter {
        since: Some(At(1)),
        n: 5,
        app: Some(name("blog")),
        by: Some("nobody".to_owned()),
        action: Some("restart".to_owned()),
        outcome: Some("refused".to_owned()),
    };
    let rows = |filter: AuditFilter| match desk.ask(Query::Audit(filter)) {
        Ok(Reply::Audit(rows)) => rows.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(rows(fits.clone()), 1);
    assert_eq!(rows(AuditFilter { since: Some(At(10)), ..fits.clone() }), 0);
    assert_eq!(rows(AuditFilter { app: Some(name("api")), ..fits.clone() }), 0);
    assert_eq!(rows(AuditFilter { by: Some("ann".to_owned()), ..fits.clone() }), 0);
    assert_eq!(rows(AuditFilter { action: Some("stop".to_owned()), ..fits.clone() }), 0);
    assert_eq!(rows(AuditFilter { outcome: Some("done".to_owned()), ..fits }), 0);
    match desk.ask(Query::Deploy { id: 41, apps: Some(vec![name("blog")]) }) {
        Ok(Reply::Deploy { deploy: found, log }) => assert_eq!((found, log.len()), (deploy, 0)),
        other => panic!("{other:?}"),
    }
    let hidden = desk.ask(Query::Deploy { id: 41, apps: Some(vec![name("api")]) }).unwrap_err();
    assert_eq!(hidden.kind, RefusalKind::NotFound);
    assert_eq!(desk.ask(Query::Delivery { id: 3, apps: None }).unwrap_err().kind, RefusalKind::NotFound);
}

#[test]
fn events_are_the_last_ones_oldest_first() {
    let desk = Desk::open();
    for to in ["starting", "ready", "failed"] {
        desk.ledger().send(Command::Event(desk.event("blog", to)));
    }
    match desk.ask(Query::Events { apps: None, instance: None, n: 2, since: None, after: None, before: None }) {
        Ok(Reply::Events(events)) => {
            let to: Vec<_> = events.iter().map(|event| event.to.as_deref().unwrap()).collect();
            assert_eq!(to, ["ready", "failed"]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_damaged_database_is_moved_aside_and_a_fresh_one_begun() {
    let mut desk = Desk::open();
    assert_eq!(desk.post(&master('a', "one")).0, 202);
    let path = desk.database();
    desk.close();
    let mut bytes = fs::read(&path).unwrap();
    bytes[5000..9000].fill(0x5a);
    fs::write(&path, bytes).unwrap();

    let mut desk = Desk::at(Arc::clone(&desk.folder), "everhook.db");
    let alert = desk.told(|told| if let Told::Alert { message } = told { Some(message) } else { None });
    assert!(alert.contains("damaged"), "{alert}");
    assert_eq!(desk.post(&master('a', "one")).0, 202);
    let aside = fs::read_dir(desk.folder.path()).unwrap().filter_map(Result::ok);
    assert_eq!(aside.filter(|e| e.file_name().to_string_lossy().starts_with("everhook.db.damaged-")).count(), 1);
}

#[test]
fn while_there_is_no_store_deliveries_are_turned_away_and_the_rest_waits() {
    let mut desk = Desk::at(Arc::new(tempfile::tempdir().unwrap()), "missing/everhook.db");
    desk.told(|told| matches!(told, Told::Trouble { .. }).then_some(()));
    let ticket = desk.send(&master('a', "one"));
    let answer = desk.answer();
    assert_eq!((answer.ticket, answer.status), (ticket, 503));
    assert!(answer.retry_after.is_some());
    assert_eq!(desk.post(&Post { secret: "wrong", ..master('a', "one") }).0, 401);
    assert_eq!(desk.ask(Query::Deploys { apps: None, n: 1, before: None }).unwrap_err().kind, RefusalKind::Unavailable);
    desk.ledger().send(Command::Query { ticket: 98, query: Query::Unfinished });
    desk.ledger().send(Command::Event(desk.event("blog", "ready")));

    fs::create_dir(desk.folder.path().join("missing")).unwrap();
    let mut seen = Vec::new();
    desk.told(|told| {
        match told {
            Told::Trouble { .. } => panic!("it is told once"),
            Told::Recovered => seen.push("recovered"),
            Told::Event(_) => seen.push("event"),
            Told::Unfinished { ticket: 98, .. } => seen.push("unfinished"),
            _ => {}
        }
        (seen.len() == 3).then_some(())
    });
    assert_eq!(seen, ["recovered", "event", "unfinished"]);
    assert_eq!(desk.post(&master('a', "one")).0, 202);
    assert_eq!(desk.deliveries(None).len(), 2);
}

/// Needs the right to mount; where that is missing nothing is tested.
#[test]
fn a_full_disk_turns_deliveries_away_and_keeps_none_by_half() {
    // The namespace is this thread's and that of the ledger's thread, which it starts.
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).is_err() {
        return;
    }
    let none: Option<&str> = None;
    let folder = Arc::new(tempfile::tempdir().unwrap());
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some("size=4m")).unwrap();
    let mut desk = Desk::at(Arc::clone(&folder), "everhook.db");
    desk.tell_of(&["blog"]);
    let mut accepted = 0;
    let mut next = |desk: &mut Desk| {
        let mut post = master('a', &format!("n{accepted}"));
        let end = post.body.len() - 1;
        post.body.splice(end.., format!(r#","padding":"{}"}}"#, "x".repeat(50_000)).into_bytes());
        let (status, _) = desk.post(&post);
        accepted += i64::from(status == 202);
        (status, accepted)
    };
    while next(&mut desk).0 == 202 {}
    desk.told(|told| matches!(told, Told::Trouble { .. }).then_some(()));
    desk.ledger().send(Command::Event(desk.event("blog", "ready")));
    let kept = i64::try_from(desk.deploys().len()).unwrap();
    // What was sent is not sent again and again while the disk does not forget it.
    let sent = desk.letters();
    assert_eq!(sent.len(), 1);
    desk.ledger().send(Command::Forget { letter: sent[0].id });
    assert_eq!(desk.letters(), []);
    mount(none, folder.path(), none, MsFlags::MS_REMOUNT, Some("size=64m")).unwrap();
    desk.told(|told| matches!(told, Told::Recovered).then_some(()));
    desk.told(|told| matches!(told, Told::Event(e) if e.kind == EventKind::Instance).then_some(()));
    let (status, accepted) = next(&mut desk);
    assert_eq!((status, accepted), (202, kept + 1));
    assert_eq!(desk.deliveries(None).len(), desk.deploys().len());
    let mut desk = desk.reopen();
    assert_eq!(i64::try_from(desk.deploys().len()).unwrap(), accepted);
    desk.close();
    // A child that a test beside this one starts may have a file of it open for a moment more.
    nix::mount::umount2(folder.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn rows_are_kept_for_their_time() {
    let mut desk = Desk::open();
    for (i, id) in ["old", "week", "new"].into_iter().enumerate() {
        assert_eq!(desk.post(&master(['a', 'b', 'c'][i], id)).0, 202);
    }
    desk.close();
    let db = desk.look();
    let day: i64 = 24 * 60 * 60 * 1000;
    db.execute("UPDATE deliveries SET at = at - ?1 WHERE sender_id = 'old'", [91 * day]).unwrap();
    db.execute("UPDATE deliveries SET at = at - ?1 WHERE sender_id = 'week'", [8 * day]).unwrap();
    db.execute("UPDATE bodies SET body = zeroblob(70000)", []).unwrap();
    let insert =
        "INSERT INTO deploys (app, state, by, queued_at, attempts) VALUES ('blog', ?1, '{\"kind\":\"first\"}', 0, 0)";
    db.execute("UPDATE deploys SET state = 'live' WHERE id = 1", []).unwrap();
    db.execute("UPDATE deploys SET state = 'failed' WHERE id = 2", []).unwrap();
    db.execute_batch("BEGIN").unwrap();
    for _ in 0..1000 {
        db.execute(insert, ["failed"]).unwrap();
    }
    for _ in 0..10_100 {
        db.execute("INSERT INTO events (at, app, kind) VALUES (0, 'blog', 'app')", []).unwrap();
    }
    db.execute_batch("COMMIT").unwrap();
    drop(db);

    let mut desk = Desk::at(Arc::clone(&desk.folder), "everhook.db");
    desk.ledger().send(Command::Event(desk.event("blog", "ready")));
    let count =
        desk.ask(Query::Events { apps: None, instance: None, n: 20_000, since: None, after: None, before: None });
    assert!(matches!(count, Ok(Reply::Events(events)) if events.len() == 10_000));
    let ids: Vec<_> = desk.deliveries(None).into_iter().map(|d| d.sender_id.unwrap()).collect();
    assert_eq!(ids, ["new", "week"]);
    let deploys: Vec<i64> = desk.deploys().into_iter().map(|deploy| deploy.id).collect();
    assert!(deploys.contains(&1), "what is live stays");
    assert!(!deploys.contains(&2), "what failed long ago goes");
    assert!(deploys.contains(&3), "what is queued stays");
    desk.close();
    let bodies: i64 = desk.look().query_row("SELECT count(*) FROM bodies", [], |row| row.get(0)).unwrap();
    assert_eq!(bodies, 1);
}

#[test]
fn refused_rows_are_bounded() {
    let mut desk = Desk::open();
    for i in 0..1_200 {
        let post = Post { secret: "wrong", id: Some(format!("n{i}")), ..master('a', "x") };
        desk.send(&post);
        assert_eq!(desk.answer().status, 401);
    }
    let rows = desk.deliveries(None);
    assert_eq!(rows.len(), 1_000);
    assert_eq!(rows[0].sender_id.as_deref(), Some("n1199"));
}
