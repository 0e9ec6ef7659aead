//! Deploys into a working tree.

use super::{bench::*, *};

fn in_place(check: &[&str], build: &[&str]) -> Arc<App> {
    let step = |run: &&str| Step { run: (*run).into(), name: None, changed: vec![], timeout: None };
    with(&app("a", check, &[]), |deploy| {
        deploy.layout = Layout::InPlace("/srv/a".into());
        deploy.shared = vec![];
        deploy.build = build.iter().map(step).collect();
    })
}

fn world(check: &[&str], build: &[&str]) -> (Bench, Arc<App>) {
    let mut bench = Bench::new(1);
    let app = in_place(check, build);
    bench.set_live(&app, 0);
    (bench, app)
}

/// What was done, without records and words.
fn done(bench: &Bench) -> Vec<&str> {
    let quiet = ["persist", "note", "behind", "prune"];
    bench.said.iter().map(String::as_str).filter(|said| !quiet.iter().any(|word| said.starts_with(word))).collect()
}

#[test]
fn it_is_checked_elsewhere_then_placed_and_built() {
    let (mut bench, app) = world(&["lint"], &["make"]);
    bench.queue(queued(1, &app));
    bench.run_to("");
    let checked = ["run 1 Fetch", "make 1", "run 1 Checkout", "run 1 `lint`"];
    let placed = ["remove 1", "run 1 Place", "run 1 `make`", "run 1 Built", "trial 1", "run 1 Sync", "write live 1"];
    assert_eq!(done(&bench), [&checked[..], &placed, &["ended 1 live"]].concat());

    // Without checks no folder is made, without steps nothing is noted.
    let (mut bench, app) = world(&[], &[]);
    bench.queue(queued(1, &app));
    bench.run_to("");
    let placed = ["run 1 Fetch", "run 1 Place", "trial 1", "run 1 Sync", "write live 1", "ended 1 live"];
    assert_eq!(done(&bench), placed);
}

#[test]
fn what_fails_is_brought_back_and_built_before_it_ends() {
    let back = ["run 1 Back", "run 1 `make`", "run 1 Built"];
    for (at, end, tail) in [
        ("run 1 `make`", "failed", &["remove 1"][..]),
        ("run 1 Built", "failed", &["remove 1"]),
        ("trial 1", "rolled_back", &["remove 1"]),
        ("run 1 Sync", "rolled_back", &["remove 1"]),
        ("write live 1", "rolled_back", &["remove 1"]),
    ] {
        let (mut bench, app) = world(&[], &["make"]);
        bench.queue(queued(1, &app));
        bench.run_to(at);
        let before = bench.said.len();
        let failure = match at {
            "trial 1" => Event::Trial { deploy: 1, result: Err("no".into()) },
            "write live 1" => Event::LiveWritten { deploy: 1, result: Err("no".into()) },
            _ => Event::JobEnded { deploy: 1, end: bad(1, "no") },
        };
        bench.instead(failure);
        bench.run_to("");
        bench.said.drain(..before);
        let started = ["trial 1", "run 1 Sync", "write live 1"].contains(&at);
        let again: &[&str] = if started { &["run live 1"] } else { &[] };
        let ended = format!("ended 1 {end}");
        assert_eq!(done(&bench), [&back[..], again, &[ended.as_str()], tail].concat(), "{at}");
    }
    // It could not be placed: then it is as it was.
    let (mut bench, app) = world(&[], &["make"]);
    bench.queue(queued(1, &app));
    bench.run_to("run 1 Place");
    bench.instead(Event::JobEnded { deploy: 1, end: bad(1, "/srv/a holds changes") });
    bench.run_to("");
    assert_eq!(bench.end(1), (DeployState::Failed, "/srv/a holds changes"));
    assert!(!bench.said.iter().any(|said| said.contains("Back")), "{:?}", bench.said);
}

#[test]
fn a_mirror_that_has_rotted_is_fetched_anew_once() {
    let damaged = || bad(DAMAGED.into(), "the mirror is damaged");
    for times in [1, 2] {
        let (mut bench, app) = world(&["lint"], &["make"]);
        bench.queue(queued(1, &app));
        bench.run_to("run 1 Place");
        bench.instead(Event::JobEnded { deploy: 1, end: damaged() });
        assert_eq!(bench.fetching().damaged.as_deref(), Some("the mirror is damaged"));
        let before = bench.said.len();
        bench.run_to("run 1 Place");
        if times == 2 {
            bench.instead(Event::JobEnded { deploy: 1, end: damaged() });
        }
        bench.run_to("");
        let ends = [(DeployState::Live, ""), (DeployState::Failed, "the mirror is damaged")];
        assert_eq!(bench.end(1), ends[times - 1]);
        assert!(!bench.said[before..].contains(&"run 1 `lint`".into()), "it was checked before");
    }
}

#[test]
fn a_way_back_that_fails_is_told_and_has_its_time() {
    let (mut bench, app) = world(&[], &["make"]);
    bench.queue(queued(1, &app));
    bench.run_to("trial 1");
    bench.instead(Event::Trial { deploy: 1, result: Err("exited with 7".into()) });
    bench.run_to("run 1 Back");
    bench.instead(Event::JobEnded { deploy: 1, end: bad(1, "the disk is full") });
    bench.run_to("");
    let why = "exited with 7; the working tree could not be brought back: the disk is full";
    assert_eq!(bench.end(1), (DeployState::RolledBack, why));
    assert!(done(&bench).contains(&"run live 1"), "what is live is started whatever it finds");

    let (mut bench, app) = world(&[], &["make"]);
    bench.queue(queued(1, &app));
    bench.run_to("run 1 `make`");
    bench.on(Event::Cancel { deploy: 1, why: "cancelled by ann".into() });
    bench.instead(Event::JobEnded { deploy: 1, end: bad(143, "") });
    bench.run_to("run 1 `make`");
    // Nobody ends the way back but time.
    bench.on(Event::Cancel { deploy: 1, why: "cancelled by bob".into() });
    assert!(!bench.said.iter().any(|said| said == "end job 1" && bench.said.last() == Some(said)), "{:?}", bench.said);
    bench.at += Duration::from_secs(900);
    bench.on(Event::Timer);
    assert_eq!(bench.said.last().unwrap(), "end job 1");
    bench.instead(Event::JobEnded { deploy: 1, end: bad(143, "") });
    bench.run_to("");
    let why = "cancelled by ann; the working tree could not be brought back: `make` timed out after 15m";
    assert_eq!(bench.end(1), (DeployState::Cancelled, why));
}

#[test]
fn a_shutdown_leaves_the_way_back_to_the_next_start() {
    for at in ["run 1 Place", "run 1 `make`", "run 1 Back"] {
        let (mut bench, app) = world(&[], &["make"]);
        bench.queue(queued(1, &app));
        if at == "run 1 Back" {
            bench.run_to("run 1 `make`");
            bench.instead(Event::JobEnded { deploy: 1, end: bad(1, "no") });
        }
        bench.run_to(at);
        bench.on(Event::Shutdown);
        let before = bench.said.len();
        bench.instead(Event::JobEnded { deploy: 1, end: bad(143, "") });
        assert_eq!(bench.said[before..], ["persist 1 queued"], "{at}");
        assert!(bench.deploys.is_idle());
    }
}

#[test]
fn a_rollback_places_and_builds_but_checks_nothing() {
    let (mut bench, app) = world(&["lint"], &["make"]);
    let mut back = queued(5, &app);
    (back.view.release, back.view.commit) = (Some(ReleaseId::new(2, &commit(2))), Some(commit(2)));
    bench.queue(back);
    bench.run_to("");
    let placed =
        ["run 5 Place", "run 5 `make`", "run 5 Built", "trial 5", "run 5 Sync", "write live 5", "ended 5 live"];
    assert_eq!(done(&bench), placed);
}
