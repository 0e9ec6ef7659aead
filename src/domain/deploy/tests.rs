//! The machine as a whole, driven by an explicit clock and a shell that does everything at once.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;
use crate::domain::{
    api::{By, DeployState, Fetched, StepState, Verdict},
    config::{
        App, Deploy, GiveUp, Identity, Limits, Logs, OnFailed, Policy, Ready, Replace, Restart, Step, Stop, StopStage,
    },
    model::{At, Now, Signal, Size},
};

fn app(name: &str, check: &[&str], after: &[&str]) -> Arc<App> {
    let who = Identity { uid: 1, gid: 1, groups: vec![], name: None, home: "/".into(), shell: "/bin/sh".into() };
    let step = |run: &&str| Step { run: (*run).into(), name: None, timeout: Some(Duration::from_secs(60)) };
    let deploy = Deploy {
        repo: "/repo".into(),
        keep: 5,
        on: vec![],
        secret: None,
        previous_secret: None,
        check: check.iter().map(step).collect(),
        build: vec![],
        env: BTreeMap::new(),
        shared: vec![PathBuf::from("db")],
        timeout: Duration::from_secs(900),
        settle: Duration::from_secs(5),
    };
    Arc::new(App {
        name: name.parse().unwrap(),
        command: None,
        directory: None,
        run_as: who.clone(),
        work_as: who,
        groups: None,
        env: BTreeMap::new(),
        env_file: vec![],
        port: None,
        instances: 1,
        enabled: true,
        requires: vec![],
        on_failed: OnFailed::Stay,
        after: after.iter().map(|name| name.parse().unwrap()).collect(),
        ready: Ready::Immediate,
        live: None,
        restart: Restart {
            policy: Policy::Always,
            success: vec![0],
            first: Duration::from_millis(100),
            factor: 2.0,
            max: Duration::from_secs(30),
            jitter: 0.0,
            reset_after: Duration::from_secs(10),
            give_up: GiveUp { restarts: 10, within: Duration::from_secs(300) },
            retry_after: None,
        },
        stop: Stop {
            stages: vec![StopStage { signal: Signal::TERM, timeout: Duration::from_secs(10) }],
            drain: Duration::ZERO,
        },
        sockets: BTreeMap::new(),
        replace: Replace::StopFirst,
        limits: Limits::default(),
        logs: Logs { rotate: Size(1 << 20), keep: 1, ..Logs::default() },
        schedule: None,
        watch: None,
        deploy: Some(Box::new(deploy)),
        problem: None,
        places: Default::default(),
    })
}

fn commit(n: DeployId) -> CommitId {
    format!("{:040x}", n + 1).parse().unwrap()
}

fn view(id: DeployId, app: &AppName) -> DeployView {
    DeployView {
        id,
        app: app.clone(),
        state: DeployState::Queued,
        step: None,
        reason: None,
        commit: Some(commit(id)),
        previous_commit: None,
        ref_name: Some("refs/heads/master".into()),
        subject: None,
        author: None,
        by: By::Delivery { id },
        release: None,
        superseded_by: None,
        queued_at: At(0),
        started_at: None,
        ended_at: None,
        steps: vec![],
    }
}

fn queued(id: DeployId, app: &Arc<App>) -> Queued {
    let places = Places { mirror: "/m".into(), app: "/apps/a".into() };
    Queued { view: view(id, &app.name), attempts: 0, rev: None, app: app.clone(), places }
}

fn good() -> JobEnd {
    JobEnd { exit: Exit::Code(0), error: None, answer: vec![], last_lines: vec![] }
}

fn bad(code: i32, words: &str) -> JobEnd {
    JobEnd { exit: Exit::Code(code), last_lines: vec!["noise".into(), words.into(), String::new()], ..good() }
}

fn fetched(verdict: Verdict, commit: Option<CommitId>) -> JobEnd {
    let ref_name = "refs/heads/master".to_owned();
    let fetched = Fetched { verdict, ref_name, commit, subject: Some("s".into()), author: None, tree_bytes: Some(9) };
    JobEnd { answer: serde_json::to_vec(&fetched).unwrap(), ..good() }
}

/// A machine, its clock, and what it asked for that is not answered.
struct Bench {
    deploys: Deploys,
    base: Instant,
    at: Duration,
    open: VecDeque<Action>,
    ended: BTreeMap<DeployId, DeployView>,
    said: Vec<String>,
}

impl Bench {
    fn new(parallel: u32) -> Self {
        Self {
            deploys: Deploys::new(parallel),
            base: Instant::now(),
            at: Duration::ZERO,
            open: VecDeque::new(),
            ended: BTreeMap::new(),
            said: vec![],
        }
    }

    fn on(&mut self, event: Event) {
        let mut out = Vec::new();
        let wall = At(i64::try_from(self.at.as_millis()).unwrap());
        self.deploys.on(event, Now { mono: self.base + self.at, wall }, &mut out);
        for action in out {
            if let Action::Ended(view) = &action {
                assert!(self.ended.insert(view.id, (**view).clone()).is_none(), "ended twice: {view:?}");
            }
            self.said.push(brief(&action));
            self.open.push_back(action);
        }
    }

    fn queue(&mut self, queued: Queued) {
        self.on(Event::Queue(Box::new(queued)));
    }

    /// Answers what is open as a shell does where all goes well, until `stop` matches what is next.
    fn run_to(&mut self, stop: &str) {
        while let Some(action) = self.open.pop_front() {
            if !stop.is_empty() && brief(&action).starts_with(stop) {
                self.open.push_front(action);
                return;
            }
            if let Some(event) = self.answer(&action) {
                self.on(event);
            }
        }
        assert!(stop.is_empty(), "{stop} never came: {:#?}", self.said);
    }

    fn answer(&self, action: &Action) -> Option<Event> {
        Some(match action {
            Action::Persist { view, .. } => Event::Committed { deploy: view.id },
            Action::Run { deploy, job: Job::Tree { task: TreeTask::Fetch(task), .. } } => {
                let commit = task.commit.clone().or_else(|| Some(commit(*deploy)));
                Event::JobEnded { deploy: *deploy, end: fetched(Verdict::Deploy, commit) }
            }
            Action::Run { deploy, .. } => Event::JobEnded { deploy: *deploy, end: good() },
            Action::MakeRelease { deploy, .. } => Event::ReleaseMade { deploy: *deploy, result: Ok("/r".into()) },
            Action::StartTrial { deploy, .. } => Event::Trial { deploy: *deploy, result: Ok(None) },
            Action::WriteLive { deploy, .. } => Event::LiveWritten { deploy: *deploy, result: Ok(()) },
            _ => return None,
        })
    }

    /// Takes the open action that is next and answers it otherwise.
    fn instead(&mut self, event: Event) {
        self.open.pop_front().unwrap();
        self.on(event);
    }

    fn end(&self, id: DeployId) -> (DeployState, &str) {
        let view = self.ended.get(&id).unwrap_or_else(|| panic!("{id} has not ended: {:#?}", self.said));
        (view.state, view.reason.as_deref().unwrap_or_default())
    }

    fn ends(&self) -> Vec<(DeployId, DeployState)> {
        self.ended.iter().map(|(id, view)| (*id, view.state)).collect()
    }

    fn set_live(&mut self, app: &Arc<App>, id: DeployId) {
        let live = Some(Live { release: ReleaseId::new(id, &commit(id)), commit: commit(id) });
        self.on(Event::Live { app: app.name.clone(), live });
    }
}

fn brief(action: &Action) -> String {
    match action {
        Action::Persist { view, .. } => format!("persist {} {}", view.id, view.state),
        Action::Run { deploy, job: Job::Tree { task, .. } } => {
            let name = format!("{task:?}");
            format!("run {deploy} {}", name.split([' ', '(']).next().unwrap())
        }
        Action::Run { deploy, job: Job::Step { run, .. } } => format!("run {deploy} `{run}`"),
        Action::EndJob { deploy } => format!("end job {deploy}"),
        Action::MakeRelease { deploy, .. } => format!("make {deploy}"),
        Action::StartTrial { deploy, .. } => format!("trial {deploy}"),
        Action::WriteLive { deploy, .. } => format!("write live {deploy}"),
        Action::GoBack { deploy, .. } => format!("go back {deploy}"),
        Action::RemoveRelease { release, .. } => format!("remove {}", release.deploy),
        Action::Prune { app, .. } => format!("prune {app}"),
        Action::Ended(view) => format!("ended {} {}", view.id, view.state),
    }
}

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
    assert!(bench.said.contains(&"go back 7".into()));
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
    let Some(Action::Run { job: Job::Tree { task: TreeTask::Fetch(task), who: Who::FetchUser }, .. }) =
        bench.open.front()
    else {
        panic!("{:?}", bench.open)
    };
    assert_eq!((&task.commit, &task.live), (&None, &Some(commit(1))));
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
    assert_eq!(before, ["persist 8 switching", "trial 8", "write live 8", "persist 8 live", "ended 8 live"]);
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
    let Resumption::Live(live) = resume(with(DeployState::Verifying), Some(&release), At(5)) else { panic!() };
    assert_eq!((live.state, live.ended_at), (DeployState::Live, Some(At(5))));
    for (state, live) in [(DeployState::Verifying, None), (DeployState::Switching, Some(ReleaseId::new(3, &commit(3))))]
    {
        let Resumption::Requeue(back) = resume(with(state), live.as_ref(), At(5)) else { panic!() };
        assert_eq!((back.state, &back.release), (DeployState::Queued, &Some(release.clone())));
    }
    // A rollback that waits to go back to what is live anyway has not happened.
    let mut back = with(DeployState::Queued);
    back.id = 9;
    assert!(matches!(resume(back, Some(&release), At(5)), Resumption::Requeue(_)));
}

/// Something that happens in a run of many.
#[derive(Debug, Clone)]
enum Chance {
    Push {
        app: usize,
        dev: bool,
        rollback: bool,
    },
    /// Answer the open action of this index, well or badly.
    Answer {
        index: usize,
        good: bool,
    },
    Pass(u64),
    Cancel(DeployId),
    Switched(DeployId),
    Gate {
        app: usize,
        open: bool,
    },
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        3 => (0..3usize, any::<bool>(), proptest::bool::weighted(0.2))
            .prop_map(|(app, dev, rollback)| Chance::Push { app, dev, rollback }),
        20 => (0..4usize, proptest::bool::weighted(0.9)).prop_map(|(index, good)| Chance::Answer { index, good }),
        1 => (1..600u64).prop_map(Chance::Pass),
        1 => (1..20i64).prop_map(Chance::Cancel),
        1 => (1..20i64).prop_map(Chance::Switched),
        1 => (0..3usize, any::<bool>()).prop_map(|(app, open)| Chance::Gate { app, open }),
    ]
}

/// Holds what must hold after every event, over what was said.
#[derive(Default)]
struct Law {
    heard: usize,
    switching_recorded: BTreeSet<DeployId>,
}

impl Law {
    fn check(&mut self, bench: &Bench, apps: &[Arc<App>], parallel: usize) {
        for said in &bench.said[self.heard..] {
            let mut words = said.split(' ').filter_map(|word| word.parse::<DeployId>().ok());
            if said.starts_with("trial") {
                let id = words.next().unwrap();
                assert!(self.switching_recorded.contains(&id), "{said} before its record was durable");
            }
        }
        self.heard = bench.said.len();
        let running: Vec<_> = apps.iter().filter_map(|app| bench.deploys.running(&app.name)).collect();
        assert!(running.len() <= parallel, "{running:?}");
        for view in &running {
            assert!(!view.state.is_end() && view.state != DeployState::Queued, "{view:?}");
        }
        for app in apps {
            let refs: Vec<_> = bench.deploys.waiting(&app.name).filter(|v| v.release.is_none()).collect();
            let distinct: BTreeSet<_> = refs.iter().map(|view| &view.ref_name).collect();
            assert_eq!(refs.len(), distinct.len(), "two of one ref wait: {refs:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_deploy_ends_and_never_two_of_one_app_run(
        chances in prop::collection::vec(chance(), 1..200),
        parallel in 1..3u32,
    ) {
        let apps = [app("a", &["x"], &[]), app("b", &[], &[]), app("c", &["x", "y"], &["b"])];
        let mut bench = Bench::new(parallel);
        bench.set_live(&apps[0], 0);
        let mut law = Law::default();
        let mut last = 0;
        for chance in chances {
            match chance {
                Chance::Push { app, dev, rollback } => {
                    last += 1;
                    let mut push = queued(last, &apps[app]);
                    if dev {
                        push.view.ref_name = Some("refs/heads/dev".into());
                    }
                    if rollback {
                        push.view.release = Some(ReleaseId::new(0, &commit(0)));
                    }
                    bench.queue(push);
                }
                Chance::Answer { index, good } => answer(&mut bench, index, good, &mut law),
                Chance::Pass(seconds) => {
                    bench.at += Duration::from_secs(seconds);
                    bench.on(Event::Timer);
                }
                Chance::Cancel(deploy) => bench.on(Event::Cancel { deploy, why: "because".into() }),
                Chance::Switched(deploy) => bench.on(Event::Switched { deploy }),
                Chance::Gate { app, open } => bench.on(Event::Gate { app: apps[app].name.clone(), open }),
            }
            law.check(&bench, &apps, parallel as usize);
        }
        for app in &apps {
            bench.on(Event::Gate { app: app.name.clone(), open: true });
        }
        while !bench.open.is_empty() {
            answer(&mut bench, 0, true, &mut law);
            law.check(&bench, &apps, parallel as usize);
        }
        prop_assert_eq!(bench.ended.keys().copied().collect::<Vec<_>>(), (1..=last).collect::<Vec<_>>());
        prop_assert!(bench.deploys.is_idle() && bench.deploys.deadline().is_none());
        for view in bench.ended.values() {
            let next = view.superseded_by.map(|next| next > view.id);
            prop_assert!(next != Some(false), "{view:?}");
            prop_assert!(view.steps.iter().all(|step| step.state != StepState::Running), "{view:?}");
        }
    }
}

/// Answers one open action; records of one deploy stay in their order.
fn answer(bench: &mut Bench, index: usize, good: bool, law: &mut Law) {
    if bench.open.is_empty() {
        return;
    }
    let index = index % bench.open.len();
    let is_record = |action: &Action| matches!(action, Action::Persist { .. });
    let index = if is_record(&bench.open[index]) { bench.open.iter().position(is_record).unwrap() } else { index };
    let action = bench.open.remove(index).unwrap();
    if let Action::Persist { view, .. } = &action
        && view.state == DeployState::Switching
    {
        law.switching_recorded.insert(view.id);
    }
    let well = bench.answer(&action);
    let event = match well {
        Some(Event::JobEnded { deploy, .. }) if !good => Event::JobEnded { deploy, end: bad(1, "no") },
        Some(Event::ReleaseMade { deploy, .. }) if !good => Event::ReleaseMade { deploy, result: Err("no".into()) },
        Some(Event::Trial { deploy, .. }) if !good => Event::Trial { deploy, result: Err("no".into()) },
        Some(Event::LiveWritten { deploy, .. }) if !good => Event::LiveWritten { deploy, result: Err("no".into()) },
        Some(event) => event,
        None => return,
    };
    bench.on(event);
}
