//! Several deploys, and what comes between.

use super::{bench::*, *};

#[test]
fn five_pushes_during_a_deploy_make_one_more() {
    let site = app("a", &[], &[]);
    let mut bench = Bench::new(1);
    bench.queue(queued(1, &site));
    bench.run_to("run 1 Checkout");
    for id in 2..=6 {
        bench.queue(queued(id, &site));
    }
    assert_eq!(bench.deploys.waiting(&site.name).map(|view| view.id).collect::<Vec<_>>(), [6]);
    bench.run_to("");
    let mut want: Vec<_> = (1..=6).map(|id| (id, DeployState::Superseded)).collect();
    (want[0].1, want[5].1) = (DeployState::Live, DeployState::Live);
    assert_eq!(bench.ends(), want);
    assert_eq!(bench.ended[&2].superseded_by, Some(3));
}

#[test]
fn of_several_pushes_the_tip_is_deployed() {
    // The older commit's delivery came last: deploying it alone would lose the newer one.
    let site = app("a", &[], &[]);
    let mut bench = Bench::new(1);
    bench.queue(queued(1, &site));
    bench.run_to("run 1 Checkout");
    bench.queue(queued(2, &site));
    bench.queue(queued(3, &site));
    bench.run_to("run 3 Fetch");
    let task = bench.fetching();
    assert_eq!((&task.commit, &task.live), (&None, &Some(commit(1))));
}

/// What is fetched for the last of three, the later two of which became one.
fn fetched_for_merged(change: impl FnOnce(&mut Deploy)) -> Fetch {
    let site = with(&app("a", &[], &[]), change);
    let mut bench = Bench::new(1);
    bench.queue(queued(1, &site));
    bench.run_to("run 1 Checkout");
    bench.queue(queued(2, &site));
    bench.queue(queued(3, &site));
    bench.run_to("run 3 Fetch");
    bench.fetching().clone()
}

#[test]
fn of_several_pipelines_one_that_succeeded_is_deployed() {
    let glob = || Glob::new("mas*").unwrap();
    let task = fetched_for_merged(|deploy| deploy.on = vec![Trigger::Pipeline(glob())]);
    assert_eq!((&task.commit, &task.also), (&Some(commit(3)), &vec![commit(2)]));
    assert_eq!(task.wanted.branches, ["mas*"]);
    // Where every push counts too, the tip holds them all.
    let both = vec![Trigger::Pipeline(glob()), Trigger::Push(glob()), Trigger::Tag(glob()), Trigger::Release];
    let task = fetched_for_merged(|deploy| deploy.on = both);
    assert_eq!((&task.commit, &task.also), (&None, &vec![]));
    assert_eq!((task.wanted.branches, task.wanted.tags), (vec!["mas*".into()], vec!["mas*".into(), "**".into()]));
}

#[test]
fn nothing_keeps_back_what_a_person_asks_for() {
    let task = |by: By, track: Track| {
        let site = with(&app("a", &[], &[]), |deploy| {
            (deploy.paths, deploy.track) = (vec!["app/**".into()], track);
        });
        let mut asked = queued(1, &site);
        asked.view.by = by;
        let mut bench = Bench::new(1);
        bench.queue(asked);
        bench.run_to("run 1 Fetch");
        bench.fetching().clone()
    };
    for by in [By::Local { uid: 0, user: None }, By::Token { name: "ci".into() }, By::First] {
        assert_eq!(task(by, Track::Commit).filters, None);
    }
    for by in [By::Delivery { id: 1 }, By::CatchUp, By::Poll] {
        assert_eq!(task(by, Track::Commit).filters.unwrap().paths, ["app/**"]);
    }
    assert_eq!(task(By::Delivery { id: 1 }, Track::Commit).commit, Some(commit(1)));
    assert_eq!(task(By::Delivery { id: 1 }, Track::Head).commit, None);
}

#[test]
fn other_refs_and_other_apps_wait_for_themselves() {
    let (one, two) = (app("a", &[], &[]), app("b", &[], &[]));
    let mut bench = Bench::new(1);
    bench.queue(queued(1, &one));
    let mut dev = queued(2, &one);
    dev.view.ref_name = Some("refs/heads/dev".into());
    bench.queue(dev);
    bench.queue(queued(3, &one));
    bench.queue(queued(4, &two));
    assert_eq!(bench.deploys.running(&two.name), None);
    bench.run_to("");
    assert!(bench.ends().iter().all(|(_, state)| *state == DeployState::Live), "{:?}", bench.ends());
    assert_eq!(bench.ended.len(), 4);
}

#[test]
fn a_gate_holds_the_first_deploy_back() {
    let site = app("a", &[], &["maker"]);
    let mut bench = Bench::new(1);
    bench.queue(queued(1, &site));
    assert!(bench.said.is_empty() && bench.deploys.is_idle());
    bench.on(Event::Gate { app: site.name.clone(), open: true });
    bench.run_to("");
    assert_eq!(bench.end(1).0, DeployState::Live);
}

#[test]
fn what_was_interrupted_three_times_is_given_up() {
    let site = app("a", &[], &[]);
    let mut bench = Bench::new(1);
    let mut twice = queued(1, &site);
    (twice.attempts, twice.view.release) = (2, Some(ReleaseId::new(1, &commit(1))));
    bench.queue(twice.clone());
    bench.run_to("");
    // What the last try left is cleared first.
    let place = |word: &str| bench.said.iter().position(|said| said.starts_with(word)).unwrap();
    assert!(place("run 1 Empty") < place("make 1"));
    assert_eq!(bench.end(1).0, DeployState::Live);
    let mut bench = Bench::new(1);
    twice.attempts = 3;
    bench.queue(twice);
    assert_eq!(bench.end(1), (DeployState::Failed, "interrupted 3 times"));
    assert!(bench.said.contains(&"remove 1".into()));
}

#[test]
fn a_shutdown_puts_back_what_is_not_live() {
    for stop in ["run 1 Fetch", "make 1", "run 1 `x`", "persist 1 switching", "trial 1"] {
        let site = app("a", &["x"], &[]);
        let mut bench = Bench::new(1);
        bench.queue(queued(1, &site));
        bench.run_to(stop);
        bench.on(Event::Shutdown);
        if let Some(answer) = bench.open.front().and_then(|action| bench.answer(action)) {
            bench.instead(answer);
        }
        assert!(bench.deploys.is_idle() && bench.ended.is_empty(), "{stop}: {:?}", bench.said);
        let back: Vec<_> = bench.deploys.waiting(&site.name).collect();
        assert_eq!((back.len(), back[0].state), (1, DeployState::Queued), "{stop}");
        assert_eq!(bench.said.last().unwrap(), "persist 1 queued", "{stop}");
    }
    let mut bench = Bench::new(1);
    bench.queue(queued(1, &app("a", &[], &[])));
    bench.run_to("write live 1");
    bench.on(Event::Shutdown);
    bench.run_to("");
    assert_eq!(bench.end(1).0, DeployState::Live);
}

#[test]
fn a_removed_app_ends_its_deploys_but_one_that_switches() {
    let site = app("a", &["x"], &[]);
    let mut bench = Bench::new(1);
    bench.queue(queued(1, &site));
    bench.run_to("run 1 `x`");
    bench.queue(queued(2, &site));
    bench.on(Event::Forget { app: site.name.clone() });
    assert_eq!(bench.end(2).0, DeployState::Cancelled);
    bench.instead(Event::JobEnded { deploy: 1, end: good() });
    assert_eq!(bench.end(1), (DeployState::Cancelled, "the app was removed from the config"));

    let mut bench = Bench::new(1);
    bench.queue(queued(1, &site));
    bench.run_to("trial 1");
    bench.on(Event::Forget { app: site.name.clone() });
    bench.run_to("");
    assert_eq!(bench.end(1).0, DeployState::Live);
}

#[test]
fn the_live_file_decides_what_a_crash_left() {
    let name: AppName = "a".parse().unwrap();
    let release = ReleaseId::new(7, &commit(7));
    let with = |state| DeployView { state, release: Some(release.clone()), ..view(7, &name) };
    let is_live = |n| Live { release: ReleaseId::new(n, &commit(n)), commit: commit(n) };
    let resumed = |view, live: Option<&Live>| resume(view, Found { live, ..Found::default() }, At(5));
    let Resumption::Live(live) = resumed(with(DeployState::Verifying), Some(&is_live(7))) else { panic!() };
    assert_eq!((live.state, live.ended_at), (DeployState::Live, Some(At(5))));
    // What follows has not begun, and nobody waits for it any more.
    let found = Found { live: Some(&is_live(7)), after_live: true, stands: None };
    let Resumption::Ended { view, removal: None, told } = resume(with(DeployState::Verifying), found, At(5)) else {
        panic!()
    };
    assert_eq!((view.state, view.ended_at), (DeployState::Live, Some(At(5))));
    assert_eq!(view.reason.as_ref(), Some(&told));
    assert!(told.contains("`after_live`"), "{told}");
    for (state, live) in [(DeployState::Verifying, None), (DeployState::Switching, Some(is_live(3)))] {
        let Resumption::Requeue(back) = resumed(with(state), live.as_ref()) else { panic!() };
        assert_eq!((back.state, &back.release), (DeployState::Queued, &Some(release.clone())));
    }
    // A rollback that waits to go back to what is live anyway has not happened.
    let mut back = with(DeployState::Queued);
    back.id = 9;
    assert!(matches!(resumed(back, Some(&is_live(7))), Resumption::Requeue(_)));
}
