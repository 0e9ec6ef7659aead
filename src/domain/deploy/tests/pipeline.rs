//! One deploy, step by step.

use super::{bench::*, *};

#[test]
fn a_good_commit_takes_every_step_in_order() {
    let mut bench = Bench::new(1);
    bench.queue(queued(7, &app("a", &["npm test"], &[])));
    bench.run_to("");
    assert_eq!(
        bench.said,
        [
            "persist 7 fetching",
            "run 7 Fetch",
            "persist 7 fetching",
            "make 7",
            "run 7 Checkout",
            "run 7 Share",
            "persist 7 checking",
            "run 7 `npm test`",
            "persist 7 switching",
            "run 7 Share",
            "trial 7",
            "run 7 Sync",
            "write live 7",
            "persist 7 live",
            "ended 7 live",
            "prune a",
        ]
    );
    let view = &bench.ended[&7];
    assert_eq!(view.release, Some(ReleaseId::new(7, &commit(7))));
    assert_eq!((view.subject.as_deref(), view.step.as_deref()), (Some("s"), None));
    let steps: Vec<_> = view.steps.iter().map(|step| (step.name.as_str(), step.state)).collect();
    assert_eq!(steps, [("fetch", StepState::Done), ("check", StepState::Done), ("switch", StepState::Done)]);
}

#[test]
fn a_release_needs_room_for_two_of_the_last_one() {
    let mut bench = Bench::new(1);
    bench.queue(queued(7, &app("a", &[], &[])));
    bench.run_to("make 7");
    let Some(Action::MakeRelease { needs_bytes, .. }) = bench.open.front() else { panic!("{:?}", bench.open) };
    assert_eq!(*needs_bytes, 800 << 20);
}

#[test]
fn nothing_acts_before_its_record_is_durable() {
    let mut bench = Bench::new(1);
    bench.queue(queued(7, &app("a", &[], &[])));
    bench.run_to("persist 7 switching");
    assert_eq!(bench.open.len(), 1);
    bench.on(Event::Timer);
    assert!(!bench.said.iter().any(|said| said.starts_with("trial")));
    bench.run_to("");
    assert_eq!(bench.end(7).0, DeployState::Live);
}

#[test]
fn a_failing_step_leaves_what_runs_alone() {
    let mut bench = Bench::new(1);
    bench.queue(queued(7, &app("a", &["npm test"], &[])));
    bench.run_to("run 7 `npm test`");
    bench.at += Duration::from_secs(3);
    bench.instead(Event::JobEnded { deploy: 7, end: bad(1, "2 tests failed") });
    assert_eq!(bench.end(7), (DeployState::Failed, "`npm test` exited with 1"));
    let view = &bench.ended[&7];
    let step = view.steps.last().unwrap();
    assert_eq!((view.step.as_deref(), step.state, step.duration_s), (Some("check"), StepState::Failed, Some(3.0)));
    assert_eq!((step.exit.unwrap().code, &view.release), (Some(1), &None));
    assert!(bench.said.contains(&"remove 7".into()) && !bench.said.iter().any(|said| said.starts_with("trial")));
}

#[test]
fn a_fetch_says_itself_why_it_failed() {
    let mut bench = Bench::new(1);
    bench.queue(queued(7, &app("a", &[], &[])));
    bench.run_to("run 7 Fetch");
    bench.instead(Event::JobEnded { deploy: 7, end: bad(1, "there is no repository at /repo") });
    assert_eq!(bench.end(7), (DeployState::Failed, "there is no repository at /repo"));
}

#[test]
fn verdicts_become_ends() {
    for (verdict, state, word) in [
        (Verdict::Older, DeployState::Skipped, "older"),
        (Verdict::Gone, DeployState::Superseded, "gone"),
        (Verdict::NotWanted { reason: "branch \"dev\"".into() }, DeployState::Skipped, "branch \"dev\""),
    ] {
        let mut bench = Bench::new(1);
        bench.queue(queued(7, &app("a", &[], &[])));
        bench.run_to("run 7 Fetch");
        bench.instead(Event::JobEnded { deploy: 7, end: fetched(verdict, Some(commit(7))) });
        let (ended, reason) = bench.end(7);
        assert!(ended == state && reason.starts_with(word), "{ended} {reason}");
        assert!(bench.deploys.is_idle());
    }
}

#[test]
fn an_unproven_release_is_rolled_back_and_removed() {
    let site = app("a", &[], &[]);
    let mut bench = Bench::new(1);
    bench.set_live(&site, 3);
    bench.queue(queued(7, &site));
    bench.run_to("trial 7");
    bench.on(Event::Switched { deploy: 7 });
    bench.instead(Event::Trial { deploy: 7, result: Err("not ready within 5s".into()) });
    assert_eq!(bench.end(7), (DeployState::RolledBack, "not ready within 5s"));
    assert_eq!(bench.ended[&7].step.as_deref(), Some("verify"));
    assert_eq!(bench.ended[&7].previous_commit, Some(commit(3)));
    assert!(bench.said.contains(&"remove 7".into()));
    // Without anything to go back to it just failed.
    let mut bench = Bench::new(1);
    bench.queue(queued(7, &site));
    bench.run_to("trial 7");
    bench.instead(Event::Trial { deploy: 7, result: Err("no".into()) });
    assert_eq!(bench.end(7).0, DeployState::Failed);
}

#[test]
fn a_live_file_that_cannot_be_written_brings_the_old_release_back() {
    let site = app("a", &[], &[]);
    let mut bench = Bench::new(1);
    bench.set_live(&site, 3);
    bench.queue(queued(7, &site));
    bench.run_to("write live 7");
    bench.instead(Event::LiveWritten { deploy: 7, result: Err("no space".into()) });
    assert_eq!(bench.end(7), (DeployState::RolledBack, "no space"));
    assert!(bench.said.contains(&"run live 7".into()));
}

#[test]
fn a_note_of_the_trial_is_the_reason() {
    let mut bench = Bench::new(1);
    bench.queue(queued(7, &app("a", &[], &[])));
    bench.run_to("trial 7");
    bench.instead(Event::Trial { deploy: 7, result: Ok(Some("not running".into())) });
    bench.run_to("");
    assert_eq!(bench.end(7), (DeployState::Live, "not running"));
}

#[test]
fn steps_and_deploys_have_a_time() {
    let mut bench = Bench::new(1);
    bench.queue(queued(7, &app("a", &["npm test"], &[])));
    bench.run_to("run 7 `npm test`");
    assert_eq!(bench.deploys.deadline(), Some(bench.base + Duration::from_secs(60)));
    bench.at = Duration::from_secs(60);
    bench.on(Event::Timer);
    assert_eq!(bench.said.last().unwrap(), "end job 7");
    assert_eq!(bench.deploys.deadline(), None);
    bench.instead(Event::JobEnded { deploy: 7, end: JobEnd { exit: Exit::Signal(15), ..good() } });
    assert_eq!(bench.end(7), (DeployState::Failed, "`npm test` timed out after 1m"));
    assert_eq!(bench.ended[&7].steps.last().unwrap().state, StepState::TimedOut);

    let mut bench = Bench::new(1);
    bench.queue(queued(7, &app("a", &[], &[])));
    bench.run_to("run 7 Fetch");
    bench.at = Duration::from_secs(900);
    bench.on(Event::Timer);
    bench.instead(Event::JobEnded { deploy: 7, end: good() });
    assert_eq!(bench.end(7).1, "the fetch timed out after 15m, the limit of the whole deploy");
}

#[test]
fn a_rollback_switches_at_once_and_keeps_its_release() {
    let site = app("a", &["npm test"], &[]);
    let back = |id, to| {
        let mut back = queued(id, &site);
        (back.view.commit, back.view.release) = (Some(commit(to)), Some(ReleaseId::new(to, &commit(to))));
        back
    };
    let mut bench = Bench::new(1);
    bench.set_live(&site, 5);
    bench.queue(back(8, 3));
    bench.queue(queued(9, &site));
    bench.run_to("ended 8");
    let before: Vec<_> = bench.said.iter().filter(|said| said.contains(" 8")).cloned().collect();
    let want = ["persist 8 switching", "run 8 Share", "trial 8", "write live 8", "persist 8 live", "ended 8 live"];
    assert_eq!(before, want);
    // What waits makes room for it, and it makes room for no push.
    bench.queue(queued(10, &site));
    bench.queue(back(11, 5));
    bench.queue(queued(12, &site));
    assert_eq!(bench.end(10).0, DeployState::Superseded);
    bench.run_to("trial 11");
    bench.instead(Event::Trial { deploy: 11, result: Err("no".into()) });
    assert_eq!(bench.end(11).0, DeployState::RolledBack);
    assert!(!bench.said.iter().any(|said| said.starts_with("remove")));
    assert_eq!(bench.deploys.running(&site.name).map(|view| view.id), Some(12));
}

/// The release of a commit that is known is recorded with the fetch, so that nothing is waited for behind that.
#[test]
fn what_was_foretold_comes_true_or_is_forgotten() {
    let queue = |view: DeployView| {
        let mut bench = Bench::new(1);
        bench.queue(Queued { view, ..queued(7, &app("a", &[], &[])) });
        bench
    };
    let named = |bench: &Bench| match bench.open.front() {
        Some(Action::Persist { view, .. }) => view.release.clone(),
        other => panic!("{other:?}"),
    };
    let (view, known) = (queued(7, &app("a", &[], &[])).view, ReleaseId::new(7, &commit(7)));
    let mut bench = queue(view.clone());
    assert_eq!(named(&bench), Some(known.clone()));
    bench.run_to("run 7 Fetch");
    bench.instead(Event::JobEnded { deploy: 7, end: fetched_with(Verdict::Deploy, Some(commit(7)), vec![]) });
    assert_eq!(bench.said[2..], ["persist 7 fetching", "make 7"], "at once");

    // It was another commit, as of several that came together.
    let other: CommitId = "f".repeat(40).parse().unwrap();
    let mut bench = queue(view.clone());
    bench.run_to("run 7 Fetch");
    bench.instead(Event::JobEnded { deploy: 7, end: fetched_with(Verdict::Deploy, Some(other.clone()), vec![]) });
    assert_eq!(bench.said[2..], ["persist 7 fetching"], "recorded first, and nothing is there to be removed");
    assert_eq!(named(&bench), Some(ReleaseId::new(7, &other)));

    // It is not deployed at all.
    let mut bench = queue(view.clone());
    bench.run_to("run 7 Fetch");
    bench.instead(Event::JobEnded { deploy: 7, end: fetched_with(Verdict::Older, Some(commit(7)), vec![]) });
    bench.run_to("");
    assert_eq!((bench.end(7).0, &bench.ended[&7].release), (DeployState::Skipped, &None));
    assert!(!bench.said.contains(&"remove 7".into()), "{:?}", bench.said);

    // A try that a crash ended may have left something of that name.
    let mut bench = queue(DeployView { release: Some(known), ..view });
    bench.run_to("run 7 Empty");
}

#[test]
fn a_mirror_that_has_rotted_is_fetched_anew_once() {
    let damaged = || bad(DAMAGED.into(), "the mirror is damaged");
    for times in [1, 2] {
        let mut bench = Bench::new(1);
        bench.queue(queued(7, &app("a", &[], &[])));
        bench.run_to("run 7 Checkout");
        bench.instead(Event::JobEnded { deploy: 7, end: damaged() });
        let task = bench.fetching();
        assert_eq!((task.damaged.as_deref(), &task.commit), (Some("the mirror is damaged"), &Some(commit(7))));
        bench.run_to("run 7 Checkout");
        assert!(bench.said.contains(&"run 7 Empty".into()), "what was written of it goes first");
        if times == 2 {
            bench.instead(Event::JobEnded { deploy: 7, end: damaged() });
        }
        bench.run_to("");
        let ends = [(DeployState::Live, ""), (DeployState::Failed, "the mirror is damaged")];
        assert_eq!(bench.end(7), ends[times - 1]);
    }
}

#[test]
fn what_a_killed_helper_said_before_is_not_why_it_came_to_nothing() {
    assert_eq!(bad(1, " there is no such ref").failure().as_deref(), Some("there is no such ref"));
    let killed = JobEnd { exit: Exit::Signal(9), ..bad(1, "3 files so far") };
    assert_eq!(killed.failure().as_deref(), Some("the tree helper killed by SIGKILL"));
    assert_eq!(good().failure(), None);
}
