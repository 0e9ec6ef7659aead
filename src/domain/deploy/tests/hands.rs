//! What people do to deploys: approve, freeze, cancel, and reload the config in the middle.

use super::{bench::*, *};

fn awaiting(bench: &Bench, app: &Arc<App>) -> Vec<(DeployId, DeployState)> {
    bench.deploys.waiting(&app.name).map(|view| (view.id, view.state)).collect()
}

#[test]
fn what_no_person_asked_for_awaits_approval() {
    let site = with(&app("a", &[], &[]), |deploy| deploy.approve = true);
    let mut bench = Bench::new(1);
    bench.queue(queued(1, &site));
    bench.run_to("");
    assert_eq!(bench.said, ["persist 1 awaiting_approval"]);
    // A newer push takes its place, and what is approved is that push's commit and no other.
    bench.queue(queued(2, &site));
    assert_eq!(bench.end(1).0, DeployState::Superseded);
    bench.run_to("");
    bench.approve(1);
    bench.approve(2);
    bench.run_to("run 2 Fetch");
    let task = bench.fetching();
    assert_eq!(task.commit, Some(commit(2)));
    bench.run_to("");
    assert_eq!((bench.end(2).0, &bench.ended[&2].approved_by), (DeployState::Live, &Some(ann())));
    let mut hand = queued(3, &site);
    hand.view.by = ann();
    bench.queue(hand);
    bench.run_to("");
    assert_eq!((bench.end(3).0, &bench.ended[&3].approved_by), (DeployState::Live, &None));
}

#[test]
fn what_awaits_approval_holds_nothing_up() {
    let site = with(&app("a", &[], &[]), |deploy| deploy.approve = true);
    let mut bench = Bench::new(1);
    bench.freeze(&site, true);
    bench.queue(queued(1, &site));
    bench.approve(1);
    bench.queue(queued(2, &site));
    // The one that was approved is still to come, whatever else asks for approval.
    assert_eq!(awaiting(&bench, &site), [(1, DeployState::Queued), (2, DeployState::AwaitingApproval)]);
    bench.freeze(&site, false);
    bench.run_to("ended 1");
    let mut hand = queued(3, &site);
    (hand.view.by, hand.view.ref_name, hand.view.commit) = (ann(), None, None);
    bench.queue(hand);
    assert_eq!((bench.end(2).0, bench.ended[&2].superseded_by), (DeployState::Superseded, Some(3)));
    bench.run_to("");
    assert_eq!(bench.end(3).0, DeployState::Live);
}

#[test]
fn nothing_acts_on_the_record_of_an_earlier_wait() {
    let site = with(&app("a", &[], &[]), |deploy| deploy.approve = true);
    let mut bench = Bench::new(1);
    bench.queue(queued(1, &site));
    bench.approve(1);
    assert_eq!(bench.said, ["persist 1 awaiting_approval", "persist 1 queued", "persist 1 fetching"]);
    for left in [2, 1] {
        bench.open.pop_front();
        bench.on(Event::Committed { deploy: 1 });
        assert_eq!(bench.open.len(), left);
    }
    bench.run_to("run 1 Fetch");
}

#[test]
fn in_a_freeze_the_newest_waits_and_only_a_rollback_starts() {
    let site = app("a", &[], &[]);
    let mut bench = Bench::new(1);
    bench.set_live(&site, 0);
    bench.queue(queued(1, &site));
    bench.run_to("run 1 Fetch");
    bench.freeze(&site, true);
    bench.run_to("");
    assert_eq!(bench.end(1).0, DeployState::Live, "what runs goes on");
    for id in [2, 3] {
        bench.queue(queued(id, &site));
    }
    let mut back = queued(4, &site);
    (back.view.commit, back.view.release) = (Some(commit(0)), Some(ReleaseId::new(0, &commit(0))));
    bench.queue(back);
    bench.run_to("");
    assert_eq!((bench.end(2).0, bench.end(3).0), (DeployState::Superseded, DeployState::Superseded));
    assert_eq!(bench.end(4).0, DeployState::Live);
    for id in [5, 6] {
        bench.queue(queued(id, &site));
    }
    bench.run_to("");
    assert!(bench.deploys.is_idle());
    bench.freeze(&site, false);
    bench.run_to("");
    assert_eq!((bench.end(5).0, bench.end(6).0), (DeployState::Superseded, DeployState::Live));
}

#[test]
fn a_cancelled_one_ends_before_it_switches_and_not_after() {
    for stop in ["run 1 Fetch", "make 1", "run 1 `x`", "persist 1 switching"] {
        let mut bench = Bench::new(1);
        bench.queue(queued(1, &app("a", &["x"], &[])));
        bench.run_to(stop);
        assert!(!bench.deploys.switches(1), "{stop}");
        bench.on(Event::Cancel { deploy: 1, why: "by ann".into() });
        if let Some(answer) = bench.open.front().and_then(|action| bench.answer(action)) {
            bench.instead(answer);
        }
        assert_eq!(bench.end(1), (DeployState::Cancelled, "by ann"), "{stop}");
    }
    let mut bench = Bench::new(1);
    bench.queue(queued(1, &app("a", &["x"], &[])));
    bench.run_to("trial 1");
    assert!(bench.deploys.switches(1));
    bench.on(Event::Cancel { deploy: 1, why: "by ann".into() });
    bench.run_to("");
    assert_eq!(bench.end(1).0, DeployState::Live);
}

#[test]
fn a_reload_begins_what_has_not_switched_anew() {
    let site = app("a", &["x"], &[]);
    let other = with(&site, |deploy| deploy.check[0].run = "y".into());
    let mut bench = Bench::new(1);
    bench.queue(queued(1, &site));
    bench.run_to("run 1 `x`");
    bench.reconfigure(&site);
    assert_ne!(bench.said.last().unwrap(), "end job 1", "nothing has changed");
    bench.reconfigure(&other);
    assert_eq!(bench.said.last().unwrap(), "end job 1");
    bench.instead(Event::JobEnded { deploy: 1, end: JobEnd { exit: Exit::Signal(15), ..good() } });
    assert_eq!(bench.end(1).0, DeployState::Cancelled);
    let place = |word: &str| bench.said.iter().position(|said| said == word).unwrap();
    assert!(place("anew 1") < place("persist 1 cancelled"), "a crash in between loses nothing");
    let Some(Action::Anew(anew)) = bench.open.iter().find(|action| matches!(action, Action::Anew(_))) else {
        panic!("{:?}", bench.open)
    };
    assert_eq!((&anew.view.commit, &anew.view.release), (&Some(commit(1)), &None));

    let mut bench = Bench::new(1);
    bench.queue(queued(1, &site));
    bench.run_to("run 1 `x`");
    bench.reconfigure(&other);
    bench.on(Event::Cancel { deploy: 1, why: "by ann".into() });
    bench.instead(Event::JobEnded { deploy: 1, end: good() });
    assert_eq!(bench.end(1), (DeployState::Cancelled, "by ann"), "a person wants it to end");

    let mut bench = Bench::new(1);
    bench.queue(queued(1, &site));
    bench.run_to("trial 1");
    bench.reconfigure(&other);
    bench.run_to("");
    assert_eq!(bench.end(1).0, DeployState::Live);
}

#[test]
fn what_begins_anew_stands_where_it_stood() {
    let site = app("a", &["x"], &[]);
    let anew = |site: &Arc<App>, approve: &[DeployId]| {
        let mut bench = Bench::new(1);
        bench.queue(queued(1, site));
        bench.approve(1);
        bench.run_to("run 1 `x`");
        bench.queue(queued(2, site));
        approve.iter().for_each(|id| bench.approve(*id));
        bench.reconfigure(&with(site, |deploy| deploy.check[0].run = "y".into()));
        // All of them are in the line before one starts.
        bench.freeze(site, true);
        bench.instead(Event::JobEnded { deploy: 1, end: good() });
        bench.run_to("");
        bench.freeze(site, false);
        bench.run_to("");
        bench
    };
    let bench = anew(&site, &[]);
    assert_eq!((bench.end(1000).0, bench.ended[&1000].superseded_by), (DeployState::Superseded, Some(2)));
    assert_eq!(bench.end(2).0, DeployState::Live);
    // What awaits approval is asked for still, and what was approved goes live.
    let approving = with(&site, |deploy| deploy.approve = true);
    let bench = anew(&approving, &[]);
    assert_eq!((bench.end(1000).0, &bench.ended[&1000].commit), (DeployState::Live, &Some(commit(1))));
    assert_eq!(awaiting(&bench, &site), [(2, DeployState::AwaitingApproval)]);
    let bench = anew(&approving, &[2]);
    assert_eq!((bench.end(1000).0, bench.end(2).0), (DeployState::Superseded, DeployState::Live));
}

#[test]
fn what_waits_is_deployed_by_the_config_of_now() {
    let site = app("a", &["x"], &["maker"]);
    let mut bench = Bench::new(1);
    bench.queue(queued(1, &site));
    bench.reconfigure(&with(&site, |deploy| deploy.approve = true));
    assert_eq!(awaiting(&bench, &site), [(1, DeployState::AwaitingApproval)]);
    bench.reconfigure(&with(&site, |deploy| deploy.check[0].run = "y".into()));
    assert_eq!(awaiting(&bench, &site), [(1, DeployState::Queued)]);
    bench.on(Event::Gate { app: site.name.clone(), open: true });
    bench.run_to("run 1 `y`");
    bench.queue(queued(2, &site));
    bench.reconfigure(&with(&site, |deploy| deploy.repo = "/other".into()));
    bench.instead(Event::JobEnded { deploy: 1, end: good() });
    for id in [1, 2] {
        let (state, reason) = bench.end(id);
        assert!(state == DeployState::Cancelled && reason.contains("repository"), "{id}: {state} {reason}");
    }
    bench.run_to("");
    assert_eq!(bench.ended.len(), 2);
}

/// An app with something live, whose deploys of even numbers cannot be taken back.
fn migrating(approve: bool) -> (Arc<App>, Bench) {
    let site = with(&app("a", &["x"], &[]), |deploy| {
        (deploy.irreversible, deploy.approve) = (vec!["db/**".into()], approve);
    });
    let mut bench = Bench::new(1);
    bench.set_live(&site, 1);
    (site, bench)
}

#[test]
fn what_cannot_be_taken_back_is_held_before_it_switches() {
    let (site, mut bench) = migrating(false);
    let other = app("b", &[], &[]);
    bench.queue(queued(3, &site));
    bench.run_to("");
    assert_eq!(bench.end(3).0, DeployState::Live, "nothing is to be asked");
    bench.queue(queued(4, &site));
    bench.run_to("persist 4 awaiting");
    let Some(Action::Persist { view, attempts }) = bench.open.front() else { panic!("{:?}", bench.open) };
    assert_eq!((view.reason.as_deref(), *attempts), (Some("irreversible: it drops a table"), 0));
    bench.run_to("");
    // It holds nothing up, and has no time.
    assert!(bench.deploys.is_idle() && bench.deploys.deadline().is_none());
    bench.queue(queued(5, &other));
    bench.run_to("ended 5");
    bench.at += Duration::from_secs(100_000);
    bench.on(Event::Timer);
    bench.approve(4);
    bench.run_to("");
    assert_eq!((bench.end(4), &bench.ended[&4].approved_by), ((DeployState::Live, ""), &Some(ann())));
    let checks = bench.said.iter().filter(|said| *said == "run 4 `x`").count();
    assert_eq!(checks, 1, "what was built goes live");
}

#[test]
fn a_held_release_makes_room_for_a_newer_one() {
    let (site, mut bench) = migrating(false);
    bench.queue(queued(2, &site));
    bench.run_to("");
    bench.queue(queued(3, &site));
    assert_eq!((bench.end(2).0, bench.ended[&2].superseded_by), (DeployState::Superseded, Some(3)));
    bench.run_to("ended 3");
    assert!(bench.said.contains(&"remove 2".into()));
    bench.queue(queued(4, &site));
    bench.run_to("");
    bench.on(Event::Cancel { deploy: 4, why: "by ann".into() });
    assert_eq!(bench.end(4), (DeployState::Cancelled, "by ann"));
    assert_eq!(bench.said.last().unwrap(), "remove 4");
}

#[test]
fn beside_another_release_or_config_it_begins_anew_and_asks_again() {
    let (site, mut bench) = migrating(false);
    let checks = |bench: &Bench, run: &str| bench.said.iter().filter(|said| *said == run).count();
    bench.queue(queued(2, &site));
    bench.run_to("");
    let mut dev = queued(3, &site);
    dev.view.ref_name = Some("refs/heads/dev".into());
    bench.queue(dev);
    bench.run_to("");
    assert_eq!((bench.end(3).0, checks(&bench, "run 2 `x`")), (DeployState::Live, 2));
    assert_eq!(awaiting(&bench, &site), [(2, DeployState::AwaitingApproval)]);
    bench.reconfigure(&with(&site, |deploy| deploy.check[0].run = "y".into()));
    bench.run_to("");
    assert_eq!((checks(&bench, "run 2 `y`"), awaiting(&bench, &site)[0].1), (1, DeployState::AwaitingApproval));
    // Each step of the new try ran, whatever the one before had done.
    bench.approve(2);
    bench.run_to("");
    assert_eq!(bench.ended[&2].steps.iter().filter(|step| step.command.is_some()).count(), 1);
    assert_eq!(bench.end(2).0, DeployState::Live);
}

#[test]
fn who_let_it_start_has_not_let_it_switch() {
    let (site, mut bench) = migrating(true);
    bench.queue(queued(2, &site));
    bench.approve(2);
    bench.run_to("");
    assert_eq!(awaiting(&bench, &site), [(2, DeployState::AwaitingApproval)], "it asks again");
    bench.freeze(&site, true);
    bench.approve(2);
    bench.run_to("");
    assert_eq!(awaiting(&bench, &site), [(2, DeployState::Queued)]);
    bench.freeze(&site, false);
    bench.run_to("");
    assert_eq!(bench.end(2).0, DeployState::Live);
    // After a crash what was let switch is not asked for again.
    let (site, mut bench) = migrating(false);
    let mut again = queued(2, &site);
    again.view.approved_by = Some(ann());
    bench.queue(again);
    bench.run_to("");
    assert_eq!(bench.end(2).0, DeployState::Live);
}

/// Deploy 4 of it was approved, has switched, and did not prove itself.
fn unproven() -> (Arc<App>, Bench) {
    let (site, mut bench) = migrating(false);
    bench.queue(queued(4, &site));
    bench.run_to("");
    bench.approve(4);
    bench.run_to("trial 4");
    let Some(Action::StartTrial { stands: true, .. }) = bench.open.front() else { panic!("{:?}", bench.open) };
    bench.on(Event::Switched { deploy: 4 });
    bench.instead(Event::Trial { deploy: 4, result: Err("it exited with 1".into()) });
    bench.run_to("");
    (site, bench)
}

#[test]
fn what_cannot_be_taken_back_is_not_when_it_proves_wrong() {
    let (site, mut bench) = unproven();
    assert_eq!(awaiting(&bench, &site), [(4, DeployState::AwaitingApproval)]);
    let view = bench.deploys.waiting(&site.name).next().unwrap();
    assert_eq!(view.reason.as_deref(), Some("it exited with 1; it cannot be taken back"));
    assert_eq!((view.step.as_deref(), &view.approved_by), (Some("verify"), &None));
    assert!(bench.deploys.is_idle() && !bench.said.contains(&"remove 4".into()));
    assert_eq!(bench.deploys.before_unproven(&site.name), Some(&ReleaseId::new(1, &commit(1))));
    // In a freeze too: it is there already.
    bench.freeze(&site, true);
    bench.said.clear();
    bench.approve(4);
    bench.run_to("");
    assert_eq!(bench.end(4), (DeployState::Live, ""));
    let done: Vec<_> = bench.said.iter().filter(|said| !said.starts_with("persist")).collect();
    assert_eq!(done, ["run 4 Sync", "write live 4", "run live 4", "ended 4 live", "prune a"]);
}

#[test]
fn what_was_not_proven_is_decided_by_what_is_live_next() {
    // A newer push takes its place once it is live, and not before.
    let (site, mut bench) = unproven();
    bench.queue(queued(5, &site));
    bench.run_to("run 5 `x`");
    bench.instead(Event::JobEnded { deploy: 5, end: bad(1, "") });
    assert_eq!((bench.end(5).0, awaiting(&bench, &site).len()), (DeployState::Failed, 1));
    bench.queue(queued(7, &site));
    bench.run_to("");
    assert_eq!((bench.end(4).0, bench.ended[&4].superseded_by), (DeployState::Superseded, Some(7)));
    // Another one that cannot be taken back and did not prove itself takes it too.
    let (site, mut bench) = unproven();
    bench.queue(queued(6, &site));
    bench.run_to("");
    bench.approve(6);
    bench.run_to("trial 6");
    bench.instead(Event::Trial { deploy: 6, result: Err("no".into()) });
    bench.run_to("");
    assert_eq!(bench.end(4).0, DeployState::Superseded);
    assert_eq!(awaiting(&bench, &site), [(6, DeployState::AwaitingApproval)]);
    // Somebody goes back.
    let mut back = queued(8, &site);
    (back.view.commit, back.view.release, back.view.by) = (Some(commit(1)), Some(ReleaseId::new(1, &commit(1))), ann());
    bench.queue(back);
    assert_eq!(awaiting(&bench, &site).len(), 1, "it is not so yet");
    bench.run_to("");
    assert_eq!((bench.end(8).0, bench.end(6)), (DeployState::Live, (DeployState::RolledBack, "deploy 8 went back")));
    assert!(bench.said.contains(&"remove 6".into()));
}

#[test]
fn giving_up_what_was_not_proven_runs_what_is_live() {
    let cancel = |bench: &mut Bench, _: &Arc<App>| bench.on(Event::Cancel { deploy: 4, why: "by ann".into() });
    let forget = |bench: &mut Bench, site: &Arc<App>| bench.on(Event::Forget { app: site.name.clone() });
    for give_up in [cancel as fn(&mut Bench, &Arc<App>), forget] {
        let (site, mut bench) = unproven();
        bench.said.clear();
        give_up(&mut bench, &site);
        assert_eq!(bench.end(4).0, DeployState::Cancelled);
        assert_eq!(bench.said, ["run live 4", "persist 4 cancelled", "ended 4 cancelled", "remove 4"]);
    }
    // A reload changes nothing about it.
    let (site, mut bench) = unproven();
    bench.reconfigure(&with(&site, |deploy| deploy.check[0].run = "y".into()));
    bench.run_to("");
    assert_eq!(awaiting(&bench, &site), [(4, DeployState::AwaitingApproval)]);
}

#[test]
fn a_hold_outlives_a_crash_with_what_was_built() {
    let after = |view: DeployView, stands: bool| {
        let (site, mut bench) = migrating(false);
        let live = bench.deploys.live(&site.name).cloned();
        let release = view.release.clone().filter(|_| stands);
        let found = Found { live: live.as_ref(), stands: release.as_ref(), after_live: false };
        let view = match resume(view, found, At(5)) {
            Resumption::Held(view) | Resumption::Requeue(view) => *view,
            Resumption::Live(view) | Resumption::Ended { view, .. } => panic!("{view:?}"),
        };
        bench.on(Event::Resume(vec![Queued { view, attempts: 3, ..queued(4, &site) }]));
        bench.run_to("");
        (site, bench)
    };
    // Before the switch: the approval is for what was built.
    let (site, mut bench) = migrating(false);
    bench.queue(queued(4, &site));
    bench.run_to("");
    let held = bench.deploys.waiting(&site.name).next().unwrap().clone();
    let (site, mut bench) = after(held.clone(), false);
    assert_eq!(bench.deploys.waiting(&site.name).next(), Some(&held));
    bench.approve(4);
    bench.run_to("");
    assert_eq!(bench.end(4).0, DeployState::Live);
    assert!(!bench.said.contains(&"run 4 `x`".into()), "{:?}", bench.said);
    // Beside another release it begins anew; it was tried three times already.
    let elsewhere = DeployView { previous_commit: Some(commit(9)), ..held };
    let (_, bench) = after(elsewhere, false);
    assert_eq!(bench.end(4), (DeployState::Failed, "interrupted 3 times"));
    // After the switch: as it was asked, or amid the proof.
    let (site, bench) = unproven();
    let asked = bench.deploys.waiting(&site.name).next().unwrap().clone();
    let proving = DeployView { state: DeployState::Verifying, approved_by: Some(ann()), ..asked.clone() };
    let kept = DeployView { state: DeployState::Queued, approved_by: Some(ann()), ..asked.clone() };
    for (view, stands) in [(asked.clone(), true), (asked, false), (proving, true), (kept, true)] {
        let (site, mut bench) = after(view, stands);
        assert_eq!(awaiting(&bench, &site), [(4, DeployState::AwaitingApproval)]);
        bench.said.clear();
        bench.approve(4);
        bench.run_to("");
        assert_eq!(bench.end(4).0, DeployState::Live);
        assert!(bench.said.contains(&"run live 4".into()) && !bench.said.contains(&"trial 4".into()));
    }
}
