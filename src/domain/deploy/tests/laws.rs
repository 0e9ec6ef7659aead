//! What holds whatever happens.

use super::{bench::*, *};
/// Something that happens in a run of many.
#[derive(Debug, Clone)]
enum Chance {
    Push {
        app: usize,
        dev: bool,
        rollback: bool,
        hand: bool,
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
    Approve(DeployId),
    Freeze {
        app: usize,
        frozen: bool,
    },
    /// Another config: whether it wants approval, and a repository.
    Reload {
        app: usize,
        approve: bool,
        moved: bool,
    },
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        3 => (0..3usize, any::<bool>(), proptest::bool::weighted(0.2), proptest::bool::weighted(0.2))
            .prop_map(|(app, dev, rollback, hand)| Chance::Push { app, dev, rollback, hand }),
        20 => (0..4usize, proptest::bool::weighted(0.9)).prop_map(|(index, good)| Chance::Answer { index, good }),
        1 => (1..600u64).prop_map(Chance::Pass),
        1 => (1..20i64).prop_map(Chance::Cancel),
        1 => (1..20i64).prop_map(Chance::Switched),
        1 => (0..3usize, any::<bool>()).prop_map(|(app, open)| Chance::Gate { app, open }),
        2 => (1..20i64).prop_map(Chance::Approve),
        1 => (0..3usize, any::<bool>()).prop_map(|(app, frozen)| Chance::Freeze { app, frozen }),
        1 => (0..3usize, any::<bool>(), proptest::bool::weighted(0.2))
            .prop_map(|(app, approve, moved)| Chance::Reload { app, approve, moved }),
    ]
}

/// Holds what must hold after every event, over what was said.
#[derive(Default)]
struct Law {
    heard: usize,
    recorded: HashSet<(DeployId, DeployState)>,
    running: BTreeSet<DeployId>,
}

impl Law {
    fn check(&mut self, bench: &Bench, apps: &[Arc<App>], parallel: usize) {
        for said in &bench.said[self.heard..] {
            let mut words = said.split(' ').filter_map(|word| word.parse::<DeployId>().ok());
            let needs = match said {
                _ if said.starts_with("trial") => DeployState::Switching,
                _ if said.starts_with("run") && said.ends_with("Fetch") => DeployState::Fetching,
                _ => continue,
            };
            let id = words.next().unwrap();
            assert!(self.recorded.contains(&(id, needs)), "{said} before its record was durable");
        }
        self.heard = bench.said.len();
        let running: Vec<_> = apps.iter().filter_map(|app| bench.deploys.running(&app.name)).collect();
        assert!(running.len() <= parallel, "{running:?}");
        for view in &running {
            let app = apps.iter().find(|app| app.name == view.app).unwrap();
            let rollback = view.release.as_ref().is_some_and(|release| release.deploy != view.id);
            if !self.running.contains(&view.id) && !rollback {
                assert!(bench.deploys.freeze(&view.app).is_none(), "started in a freeze: {view:?}");
                let approve = app.deploy.as_ref().unwrap().approve;
                assert!(!approve || view.approved_by.is_some() || view.by.is_person(), "not approved: {view:?}");
            }
            assert!(view.state != DeployState::Queued && view.ended_at.is_none(), "{view:?}");
            assert!(!view.state.is_end() || bench.deploys.is_over(view.id), "{view:?}");
            assert!(view.state != DeployState::Cancelled, "nothing follows: {view:?}");
        }
        self.running = running.iter().map(|view| view.id).collect();
        for app in apps {
            let refs: Vec<_> = bench.deploys.waiting(&app.name).filter(|v| v.release.is_none()).collect();
            let awaits = |view: &DeployView| view.state == DeployState::AwaitingApproval;
            let distinct: BTreeSet<_> = refs.iter().map(|view| (&view.ref_name, awaits(view))).collect();
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
        in_place in any::<bool>(),
    ) {
        let mut apps = [app("a", &["x"], &[]), app("b", &[], &[]), app("c", &["x", "y"], &["b"])];
        apps[1] = with(&apps[1], |deploy| {
            deploy.irreversible = vec!["db/**".into()];
            (deploy.build, deploy.before_switch) = (vec![when("make")], vec![when("migrate")]);
        });
        apps[2] = with(&apps[2], |deploy| {
            (deploy.after_live, deploy.on_failure) = (vec![step("tell"), when("purge")], vec![step("alarm"), step("mail")]);
        });
        if in_place {
            apps[0] = with(&apps[0], |deploy| {
                deploy.layout = Layout::InPlace("/srv/a".into());
                deploy.build = deploy.check.clone();
            });
        }
        let mut bench = Bench::new(parallel);
        bench.set_live(&apps[0], 0);
        bench.set_live(&apps[1], 0);
        let mut law = Law::default();
        let mut last = 0;
        for chance in chances {
            match chance {
                Chance::Push { app, dev, rollback, hand } => {
                    last += 1;
                    let mut push = queued(last, &apps[app]);
                    if dev {
                        push.view.ref_name = Some("refs/heads/dev".into());
                    }
                    if hand {
                        (push.view.by, push.view.commit, push.view.ref_name) = (ann(), None, None);
                    }
                    if rollback {
                        push.view.release = Some(ReleaseId::new(0, &commit(0)));
                    }
                    bench.queue(push);
                }
                Chance::Answer { index, good } => answer(&mut bench, index, good, &mut law, &apps),
                Chance::Pass(seconds) => {
                    bench.at += Duration::from_secs(seconds);
                    bench.on(Event::Timer);
                }
                Chance::Cancel(deploy) => bench.on(Event::Cancel { deploy, why: "because".into() }),
                Chance::Switched(deploy) => bench.on(Event::Switched { deploy }),
                Chance::Gate { app, open } => bench.on(Event::Gate { app: apps[app].name.clone(), open }),
                Chance::Approve(deploy) => bench.approve(deploy),
                Chance::Freeze { app, frozen } => bench.freeze(&apps[app], frozen),
                Chance::Reload { app, approve, moved } => {
                    apps[app] = with(&apps[app], |deploy| {
                        deploy.approve = approve;
                        deploy.repo.push_str(if moved { "x" } else { "" });
                    });
                    bench.reconfigure(&apps[app]);
                }
            }
            law.check(&bench, &apps, parallel as usize);
        }
        for app in &apps {
            bench.on(Event::Gate { app: app.name.clone(), open: true });
            bench.freeze(app, false);
        }
        loop {
            while !bench.open.is_empty() {
                answer(&mut bench, 0, true, &mut law, &apps);
                law.check(&bench, &apps, parallel as usize);
            }
            let waiting = apps.iter().flat_map(|app| bench.deploys.waiting(&app.name));
            let Some(left) = waiting.map(|view| (view.id, view.state)).next() else { break };
            prop_assert_eq!(left.1, DeployState::AwaitingApproval, "{} is stuck", left.0);
            bench.approve(left.0);
        }
        let asked: Vec<_> = (1..=last).chain(1000..bench.anew.get()).collect();
        prop_assert_eq!(bench.ended.keys().copied().collect::<Vec<_>>(), asked);
        prop_assert!(bench.deploys.is_idle() && bench.deploys.deadline().is_none());
        for view in bench.ended.values() {
            // What begins anew stands where the one stood that it repeats.
            let next = view.superseded_by.map(|next| next > view.id || view.id >= 1000);
            prop_assert!(next != Some(false), "{view:?}");
            prop_assert!(view.steps.iter().all(|step| step.state != StepState::Running), "{view:?}");
        }
    }
}

/// Answers one open action; records of one deploy stay in their order.
fn answer(bench: &mut Bench, index: usize, good: bool, law: &mut Law, apps: &[Arc<App>]) {
    if bench.open.is_empty() {
        return;
    }
    let index = index % bench.open.len();
    let is_record = |action: &Action| matches!(action, Action::Persist { .. });
    let index = if is_record(&bench.open[index]) { bench.open.iter().position(is_record).unwrap() } else { index };
    let action = bench.open.remove(index).unwrap();
    if let Action::Persist { view, .. } = &action {
        law.recorded.insert((view.id, view.state));
    }
    let well = bench.answer(&action);
    let event = match well {
        Some(Event::JobEnded { deploy, .. }) if !good => Event::JobEnded { deploy, end: bad(1, "no") },
        Some(Event::ReleaseMade { deploy, .. }) if !good => Event::ReleaseMade { deploy, result: Err("no".into()) },
        Some(Event::Trial { deploy, .. }) if !good => Event::Trial { deploy, result: Err("no".into()) },
        Some(Event::LiveWritten { deploy, .. }) if !good => Event::LiveWritten { deploy, result: Err("no".into()) },
        // What begins anew does so by the config of now.
        Some(Event::Queue(mut queued)) => {
            queued.app = apps.iter().find(|app| app.name == queued.view.app).unwrap().clone();
            Event::Queue(queued)
        }
        Some(event) => event,
        None => return,
    };
    bench.on(event);
}
