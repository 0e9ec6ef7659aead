//! Steps of all kinds: in which order, under which condition, and what their failure changes.

use super::{bench::*, *};

/// An app with a step of every kind.
fn full() -> Arc<App> {
    with(&app("a", &["test"], &[]), |deploy| {
        (deploy.build, deploy.before_switch) = (vec![when("make")], vec![step("migrate"), when("index")]);
        (deploy.after_live, deploy.on_failure) = (vec![step("purge"), step("tell")], vec![step("alarm"), step("mail")]);
    })
}

/// What was said of steps, the switch and ends.
fn told(bench: &Bench) -> Vec<String> {
    let words = ["run 4 `", "run 5 `", "trial", "write live", "note", "ended", "remove", "prune"];
    bench.said.iter().filter(|said| words.iter().any(|word| said.starts_with(word))).cloned().collect()
}

fn steps(view: &DeployView) -> Vec<(&str, StepState)> {
    view.steps.iter().map(|step| (step.name.as_str(), step.state)).collect()
}

#[test]
fn every_kind_has_its_place() {
    let mut bench = Bench::new(1);
    bench.set_live(&full(), 1);
    bench.queue(queued(4, &full()));
    bench.run_to("");
    let want = ["run 4 `test`", "run 4 `make`", "run 4 `migrate`", "run 4 `index`", "trial 4", "write live 4"];
    assert_eq!(told(&bench), [&want[..], &["run 4 `purge`", "run 4 `tell`", "ended 4 live", "prune a"]].concat());
    let view = &bench.ended[&4];
    let last: Vec<_> = steps(view).into_iter().rev().take(3).collect();
    let done = StepState::Done;
    assert_eq!(last, [("after_live", done), ("after_live", done), ("switch", done)]);
    assert_eq!((bench.end(4), view.step.as_deref()), ((DeployState::Live, ""), None));
}

#[test]
fn a_step_whose_files_are_the_same_is_left_out_and_that_is_said() {
    let mut bench = Bench::new(1);
    bench.set_live(&full(), 1);
    bench.queue(queued(5, &full()));
    bench.run_to("ended 5");
    let note =
        |label: &str| format!("note `{label}` is left out: nothing that its `when` names differs from what is live");
    let want = ["run 5 `test`".into(), note("make"), "run 5 `migrate`".into(), note("index"), "trial 5".into()];
    assert_eq!(told(&bench)[..5], want);
    assert!(!bench.ended[&5].steps.iter().any(|step| step.command.as_deref() == Some("make")));
    // With nothing to compare with everything has changed.
    let mut first = Bench::new(1);
    first.queue(queued(5, &full()));
    first.run_to("trial 5");
    assert!(first.said.contains(&"run 5 `make`".into()) && first.said.contains(&"run 5 `index`".into()));
}

#[test]
fn before_the_switch_a_failure_touches_nothing() {
    let mut bench = Bench::new(1);
    bench.set_live(&full(), 1);
    bench.queue(queued(4, &full()));
    bench.run_to("run 4 `migrate`");
    assert!(!bench.deploys.switches(4));
    bench.instead(Event::JobEnded { deploy: 4, end: bad(2, "no") });
    // It is recorded as failed before anything else runs, and has not ended before that has.
    let Some(Action::Persist { view, .. }) = bench.open.front() else { panic!("{:?}", bench.open) };
    assert_eq!((view.state, view.ended_at, view.step.as_deref()), (DeployState::Failed, None, Some("before_switch")));
    bench.run_to("");
    assert_eq!(bench.end(4), (DeployState::Failed, "`migrate` exited with 2"));
    assert_eq!(told(&bench)[3..], ["run 4 `alarm`", "run 4 `mail`", "ended 4 failed", "remove 4"]);
    let view = &bench.ended[&4];
    let (failed, done) = (StepState::Failed, StepState::Done);
    assert_eq!(view.step.as_deref(), Some("before_switch"));
    assert_eq!(steps(view)[3..], [("before_switch", failed), ("on_failure", done), ("on_failure", done)]);
}

#[test]
fn a_release_that_goes_back_is_told_by_on_failure_too() {
    let mut bench = Bench::new(1);
    bench.set_live(&full(), 1);
    bench.queue(queued(4, &full()));
    bench.run_to("trial 4");
    bench.instead(Event::Trial { deploy: 4, result: Err("not ready".into()) });
    bench.run_to("run 4 `alarm`");
    bench.instead(Event::JobEnded { deploy: 4, end: bad(1, "") });
    bench.run_to("");
    assert_eq!(bench.end(4), (DeployState::RolledBack, "not ready"));
    let end = ["note `alarm` exited with 1; the deploy stays rolled_back", "ended 4 rolled_back", "remove 4"];
    assert_eq!(told(&bench)[told(&bench).len() - 3..], end);
}

#[test]
fn what_fails_once_it_is_live_leaves_it_live() {
    let mut bench = Bench::new(1);
    bench.queue(queued(4, &full()));
    bench.run_to("run 4 `purge`");
    assert!(bench.deploys.is_over(4) && bench.deploys.switches(4));
    assert_eq!(bench.deploys.running(&full().name).map(|view| view.state), Some(DeployState::Live));
    bench.instead(Event::JobEnded { deploy: 4, end: bad(3, "") });
    bench.queue(queued(5, &full()));
    bench.run_to("ended 4");
    assert_eq!(bench.end(4), (DeployState::Live, "`purge` exited with 3"));
    assert!(!bench.said.contains(&"run 4 `tell`".into()));
    // The next one knows what is live.
    bench.run_to("run 5 Fetch");
    assert_eq!(bench.fetching().live, Some(commit(4)));
}

#[test]
fn what_follows_an_end_has_its_time_and_can_be_cancelled() {
    for by_hand in [false, true] {
        let mut bench = Bench::new(1);
        bench.queue(queued(4, &full()));
        bench.run_to("run 4 `purge`");
        assert_eq!(bench.deploys.deadline(), Some(bench.base + Duration::from_secs(60)));
        if by_hand {
            bench.on(Event::Cancel { deploy: 4, why: "cancelled by ann".into() });
        } else {
            bench.at = Duration::from_secs(60);
            bench.on(Event::Timer);
        }
        assert_eq!(bench.said.last().unwrap(), "end job 4");
        bench.instead(Event::JobEnded { deploy: 4, end: JobEnd { exit: Exit::Signal(15), ..good() } });
        bench.run_to("");
        let (why, state) = if by_hand {
            ("`purge` was cancelled by ann", StepState::Cancelled)
        } else {
            ("`purge` timed out after 1m", StepState::TimedOut)
        };
        assert_eq!(bench.end(4), (DeployState::Live, why));
        assert_eq!(steps(&bench.ended[&4]).last().unwrap().1, state);
        assert!(bench.deploys.is_idle() && bench.deploys.deadline().is_none());
    }
}

#[test]
fn neither_a_shutdown_nor_a_reload_changes_an_end() {
    let site = full();
    let mut bench = Bench::new(1);
    bench.queue(queued(4, &site));
    bench.run_to("run 4 `purge`");
    bench.reconfigure(&with(&site, |deploy| deploy.after_live.clear()));
    assert_eq!(bench.open.len(), 1, "it goes on by the config it has: {:?}", bench.open);
    bench.on(Event::Shutdown);
    assert_eq!(bench.said.last().unwrap(), "end job 4");
    bench.instead(Event::JobEnded { deploy: 4, end: JobEnd { exit: Exit::Signal(15), ..good() } });
    assert_eq!(bench.end(4), (DeployState::Live, "`purge` was ended by a shutdown"));
}

#[test]
fn a_cancelled_deploy_is_no_failure_and_one_without_a_folder_has_none() {
    let mut bench = Bench::new(1);
    bench.queue(queued(4, &full()));
    bench.run_to("run 4 `test`");
    let running = bench.open.pop_front();
    bench.on(Event::Cancel { deploy: 4, why: "by ann".into() });
    assert!(running.is_some() && bench.said.last().unwrap() == "end job 4");
    bench.instead(Event::JobEnded { deploy: 4, end: bad(1, "") });
    bench.run_to("");
    assert_eq!(bench.end(4).0, DeployState::Cancelled);
    assert!(!bench.said.contains(&"run 4 `alarm`".into()));
    bench.queue(queued(5, &full()));
    bench.run_to("make 5");
    bench.instead(Event::ReleaseMade { deploy: 5, result: Err("no space".into()) });
    let found = bench.deploys.find(5).map(|(view, _)| (view.state, view.release.clone()));
    assert_eq!(found, Some((DeployState::Failed, None)));
    bench.run_to("");
    assert!(bench.said.contains(&"run 5 `mail`".into()));
}

#[test]
fn back_by_hand_nothing_is_built_and_what_follows_runs() {
    let mut bench = Bench::new(1);
    bench.set_live(&full(), 7);
    let mut back = queued(4, &full());
    (back.view.commit, back.view.release) = (Some(commit(1)), Some(ReleaseId::new(1, &commit(1))));
    bench.queue(back);
    bench.run_to("");
    let want = ["trial 4", "write live 4", "run 4 `purge`", "run 4 `tell`", "ended 4 live", "prune a"];
    assert_eq!(told(&bench), want);
}

#[test]
fn who_is_asked_is_asked_before_anything_that_cannot_be_taken_back() {
    let site = with(&full(), |deploy| deploy.irreversible = vec!["db/**".into()]);
    let mut bench = Bench::new(1);
    bench.set_live(&site, 1);
    bench.queue(queued(4, &site));
    bench.run_to("persist 4 awaiting");
    assert_eq!(told(&bench), ["run 4 `test`", "run 4 `make`"]);
    bench.run_to("");
    bench.approve(4);
    bench.run_to("");
    assert_eq!(told(&bench)[2..5], ["run 4 `migrate`", "run 4 `index`", "trial 4"]);
    assert_eq!(bench.end(4).0, DeployState::Live);
}

#[test]
fn steps_that_follow_an_end_are_not_run_again_after_a_crash() {
    let mut bench = Bench::new(1);
    bench.queue(queued(4, &full()));
    bench.run_to("run 4 `purge`");
    let (live, _) = bench.deploys.find(4).unwrap();
    let told = |view: DeployView| match resume(view, Found::default(), At(9)) {
        Resumption::Ended { view, removal, told } => (view, removal.is_some(), told),
        other => panic!("{other:?}"),
    };
    let (view, removed, said) = told(live.clone());
    assert_eq!((view.state, view.ended_at, removed), (DeployState::Live, Some(At(9)), false));
    assert_eq!((view.reason.as_ref(), view.steps.last().unwrap().state), (Some(&said), StepState::Cancelled));
    let failed = DeployView { state: DeployState::Failed, reason: Some("no".into()), ..live.clone() };
    let (view, removed, _) = told(failed);
    assert_eq!((view.reason.as_deref(), view.release, removed), (Some("no"), None, true));
}
