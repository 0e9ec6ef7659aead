//! kill -9 and SIGTERM of the supervisor in every step of a deploy: what is recorded afterwards is
//! true, the right release runs once, and the deploy comes to its end.
#![allow(clippy::unwrap_used)]

#[path = "support/deploying.rs"]
mod deploying;
#[path = "support/forge.rs"]
mod forge;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use deploying::*;
use forge::Forge;
use serde_json::Value;
use server::{Repo, Server, free_address, processes, unique};

/// Stands at a gate while it starts, once it is told to end, or not at all: as its commit says.
const GATED: &str = r#"
import http.server, os, signal, sys, threading
open(sys.argv[1]).close()
gate = os.environ["DIR"] + "/gate"
def end(*_):
    if os.path.exists("slow-end"): open(gate).read()
    os._exit(0)
signal.signal(signal.SIGTERM, end)
if os.path.exists("slow-start"): open(gate).read()
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), H).serve_forever()
"#;

const STEP: &str = "if [ -e slow ]; then cat $DIR/gate; fi";

fn step_at(kind: &str) -> (Server, Repo, Gate) {
    let (server, repo) = live_world("", &format!("{kind}: [\"{STEP}\"]"));
    let gate = Gate::new(&server, "gate");
    repo.commit(&[("slow", ""), ("VERSION", "2")], "slow");
    (server, repo, gate)
}

/// Another start has what the first one had, and nothing of the last one's jobs is left.
fn runs_the_first(server: &Server) {
    server.wait_state("site", "ready");
    assert_eq!(version(server), "1");
    runs_once(server);
}

fn ends_live(server: &Server, id: i64) -> Value {
    let deploy = server.deploy_end(id);
    assert_eq!((&deploy["state"], &deploy["reason"]), (&"live".into(), &().into()), "{deploy}");
    server.wait_state("site", "ready");
    assert_live(server, &deploy);
    assert_eq!(version(server), "2");
    deploy
}

#[test]
fn a_step_begins_anew_after_a_kill() {
    for (kind, state) in [("check", "checking"), ("build", "building")] {
        let (mut server, repo, gate) = step_at(kind);
        let id = push(&server, &repo);
        let held = gate.reached();
        wait_deploy(&server, id, state);
        server.kill();
        let left = processes(&server.path().join("gate").display().to_string());
        server.start();
        let again = wait_deploy(&server, id, state);
        assert_eq!(again["ended_at"], Value::Null);
        runs_the_first(&server);
        server.until("the old step is gone", |server| {
            let now = processes(&server.path().join("gate").display().to_string());
            now.iter().all(|pid| !left.contains(pid)).then_some(())
        });
        // Whoever stands there now is the new one, and has two who hold it.
        let new = gate.reached();
        drop((held, new));
        ends_live(&server, id);
        assert_eq!(deploys(&server).len(), 2, "{kind}: nothing was caught up with on top");
    }
}

#[test]
fn the_third_interruption_is_the_last() {
    let (mut server, repo, mut gate) = step_at("build");
    let id = push(&server, &repo);
    for _ in 0..3 {
        let held = gate.reached();
        wait_deploy(&server, id, "building");
        server.kill();
        gate = gate.anew();
        drop(held);
        server.start();
    }
    let deploy = server.deploy_end(id);
    assert_eq!(deploy["state"], "failed", "{deploy}");
    assert!(deploy["reason"].as_str().unwrap().contains("interrupted 3 times"), "{deploy}");
    runs_the_first(&server);
    server.until("the half-made release is gone", |s| (releases(s, "site").len() == 1).then_some(()));
}

#[test]
fn a_fetch_begins_anew_after_a_kill() {
    let (mut server, repo) = world("", "");
    let forge = Forge::new(server.path());
    let path = server.path().join("repo");
    server.edit_config(&format!("repo: \"{}\"", path.display()), &format!("repo: \"{}\"", forge.url("repo")));
    start_live(&mut server);
    forge.close();
    repo.commit(&[("VERSION", "2")], "second");
    let id = push(&server, &repo);
    forge.visited();
    wait_deploy(&server, id, "fetching");
    server.kill();
    server.start();
    wait_deploy(&server, id, "fetching");
    forge.visited();
    runs_the_first(&server);
    forge.open();
    ends_live(&server, id);
}

/// What waits behind it comes after it, or takes its place: each of the two ends once.
#[test]
fn what_waits_is_in_the_line_after_a_kill() {
    let (mut server, repo, gate) = step_at("build");
    let runs = push(&server, &repo);
    let held = gate.reached();
    repo.git(&["rm", "-q", "slow"]);
    repo.commit(&[("VERSION", "3")], "third");
    let waits = push(&server, &repo);
    assert_eq!(deploy(&server, waits)["state"], "queued");
    server.kill();
    drop(held);
    server.start();
    let (first, second) = (server.deploy_end(runs), server.deploy_end(waits));
    assert_eq!((&first["state"], &first["superseded_by"]), (&"superseded".into(), &waits.into()), "{first}");
    assert_eq!(second["state"], "live", "{second}");
    server.wait_state("site", "ready");
    assert_live(&server, &second);
    assert_eq!((version(&server).as_str(), deploys(&server).len()), ("3", 3));
}

/// The answer is read, and the next thing that happens is the kill: nothing but the store knows of it.
#[test]
fn an_accepted_delivery_outlives_a_kill_at_once() {
    let (mut server, repo) = world("", "");
    server.edit_config("apps:", "deploys: (catch_up: false), apps:");
    start_live(&mut server);
    for n in 2..6 {
        repo.commit(&[("VERSION", &n.to_string())], "next");
        let id = push(&server, &repo);
        server.kill();
        server.start();
        let deploy = server.deploy_end(id);
        assert_eq!((&deploy["state"], &deploy["by"]["kind"]), (&"live".into(), &"delivery".into()), "{deploy}");
        assert_eq!(deploys(&server).len(), n);
    }
    server.wait_state("site", "ready");
    assert_eq!(version(&server), "5");
}

/// git stands at a FIFO that it reads attributes from: the folder is there, and empty.
#[test]
fn a_checkout_begins_anew_after_a_kill() {
    let (mut server, repo) = live_world("", "");
    repo.commit(&[("VERSION", "2")], "second");
    let (gate, _) = Gate::in_mirror(&server);
    let id = push(&server, &repo);
    let held = gate.reached();
    let half_made = |s: &Server| releases(s, "site").iter().any(|release| release.starts_with(&format!("{id}-")));
    server.until("its folder is there", |s| half_made(s).then_some(()));
    assert_eq!(deploy(&server, id)["state"], "fetching");
    server.kill();
    let gate = gate.anew();
    drop(held);
    server.start();
    let held = gate.reached();
    // It may read them once more.
    gate.open();
    drop(held);
    ends_live(&server, id);
    assert_eq!(releases(&server, "site").len(), 2);
}

#[test]
fn a_terminated_supervisor_does_the_deploy_at_its_next_start() {
    let (mut server, repo, gate) = step_at("build");
    let id = push(&server, &repo);
    let held = gate.reached();
    assert!(server.stop().success(), "{}", server.log());
    drop(held);
    assert_eq!(copies(&server), 0);
    assert_eq!(processes(&server.path().join("gate").display().to_string()), [] as [i32; 0]);
    server.start();
    let held = gate.reached();
    runs_the_first(&server);
    drop(held);
    ends_live(&server, id);
}

/// An app that says when it is ready, and a free port for it.
fn gated() -> (Server, Repo, Gate, SocketAddr) {
    let port = free_address();
    let apps = site("stop: (timeout: \"10m\"),", "")
        .replace("[\"/bin/sh\", \"app.sh\"]", "\"python3 app.py $DIR/held\"")
        .replace("After(\"20ms\")", &format!("Tcp(addr: \"{port}\", within: \"10m\")"))
        .replace("ready:", &format!("port: {}, ready:", port.port()));
    let (server, repo) = world_with(&apps);
    repo.commit(&[("app.py", GATED)], "gated");
    let gate = Gate::new(&server, "gate");
    (server, repo, gate, port)
}

#[test]
fn a_kill_while_the_new_release_is_proven() {
    let (mut server, repo, gate, _) = gated();
    start_live(&mut server);
    repo.commit(&[("VERSION", "2"), ("slow-start", "")], "slow to start");
    let id = push(&server, &repo);
    let held = gate.reached();
    wait_deploy(&server, id, "verifying");
    let live = fs::read_to_string(home(&server, "site").join("live")).unwrap();
    assert!(live.starts_with("1-"), "not live before it is proven: {live}");
    server.kill();
    let gate = gate.anew();
    drop(held);
    server.start();
    assert!(copies(&server) <= 1);
    drop(gate.reached());
    ends_live(&server, id);
}

#[test]
fn a_kill_while_the_old_release_ends() {
    let (mut server, repo, gate, _) = gated();
    repo.commit(&[("slow-end", "")], "slow to end");
    start_live(&mut server);
    repo.git(&["rm", "-q", "slow-end"]);
    repo.commit(&[("VERSION", "2")], "second");
    let id = push(&server, &repo);
    let held = gate.reached();
    wait_deploy(&server, id, "switching");
    server.kill();
    // Told to end for the second time it stands at the gate twice, where nobody may be any more.
    server.edit_config("timeout: \"10m\"", "timeout: \"2s\"");
    server.start();
    drop(held);
    let deploy = server.until("the end", |s| Some(deploy(s, id)).filter(|d| d["ended_at"].is_string()));
    assert_eq!(deploy["state"], "live", "{deploy}");
    ends_live(&server, id);
}

#[test]
fn a_terminated_supervisor_leaves_the_old_release_live_until_the_new_one_is_proven() {
    let (mut server, repo, gate, _) = gated();
    start_live(&mut server);
    repo.commit(&[("VERSION", "2"), ("slow-start", "")], "slow to start");
    let id = push(&server, &repo);
    let held = gate.reached();
    wait_deploy(&server, id, "verifying");
    assert!(server.stop().success(), "{}", server.log());
    drop(held);
    assert_eq!(copies(&server), 0);
    assert!(fs::read_to_string(home(&server, "site").join("live")).unwrap().starts_with("1-"));
    server.start();
    drop(gate.reached());
    ends_live(&server, id);
}

/// One that drains when everhook is killed has been taken over from: it is ended, and the deploy is over.
#[test]
fn a_kill_while_the_old_process_drains() {
    let app = "sleep 1000 & trap 'cat \"$DIR/gate\"; kill $!; exit 0' TERM\ntail -f \"$DIR/held\" & wait\n";
    let (mut server, repo) = world("replace: StartFirst, stop: (timeout: \"2s\"),", "");
    repo.commit(&[("app.sh", app)], "drains");
    start_live(&mut server);
    let gate = Gate::new(&server, "gate");
    repo.commit(&[("app.sh", APP), ("VERSION", "2")], "second");
    let id = push(&server, &repo);
    let held = gate.reached();
    let deploy = server.deploy_end(id);
    assert_eq!(deploy["state"], "live", "{deploy}");
    server.kill();
    // Ready by time alone, the shell of the new one may not have become it yet.
    server.until("they go on without it", |s| (copies(s) >= 2).then_some(()));
    server.start();
    server.wait_state("site", "ready");
    assert_live(&server, &deploy);
    drop(held);
    assert_eq!(deploys(&server).len(), 2);
}

/// What is live is what the file `live` says, whatever becomes of the link for others.
#[test]
fn a_link_that_cannot_be_switched_takes_nothing_back() {
    let (mut server, repo) = live_world("", "");
    let link = home(&server, "site").join("current");
    fs::remove_file(&link).unwrap();
    fs::create_dir_all(link.join("somebody's")).unwrap();
    repo.commit(&[("VERSION", "2")], "second");
    let deploy = server.deliver("site", &repo);
    assert_eq!(deploy["state"], "live", "{deploy}");
    assert_eq!((version(&server), runs_in(&server)), ("2".into(), deploy["release"].as_str().unwrap().into()));
    server.until("it is told", |s| s.log().contains("/current").then_some(()));
    assert!(server.stop().success());
    fs::remove_dir_all(&link).unwrap();
    server.start();
    server.wait_state("site", "ready");
    assert_live(&server, &deploy);
}

/// How often everhook is killed under a stream of deliveries.
const ROUNDS: usize = 8;

/// Kills at moments that nobody chose, while a forge goes on pushing: each delivery that was accepted ends
/// once, no two deploys of the app run at a time, and what is live at the end is the newest.
#[test]
fn kills_under_a_stream_of_deliveries() {
    let busy = "exec 9>>$EVERHOOK_CACHE/busy; flock -n 9 || echo twice >> $EVERHOOK_CACHE/twice; cp VERSION built";
    let (mut server, repo) = world("", &format!("build: [\"{busy}\"]"));
    // The forge knows one address.
    let port = free_address();
    server.edit_config("127.0.0.1:0", &port.to_string());
    start_live(&mut server);
    let done = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let forge = scope.spawn(|| stream(port, &repo, &done));
        for round in 0..ROUNDS as u64 {
            // Some of them before anything was done, some amid it.
            thread::sleep(Duration::from_millis(u64::from(fastrand(round)) % 1500));
            server.kill();
            server.start();
        }
        done.store(true, Ordering::Relaxed);
        forge.join().unwrap()
    });
    assert!(sent.len() > ROUNDS, "{} deliveries", sent.len());
    let all = server.until("every deploy has ended", |s| {
        let all = deploys(s);
        all.iter().all(|deploy| deploy["ended_at"].is_string()).then_some(all)
    });
    let deliveries = server.json(&["deliveries", "-n", "1000"]).as_array().unwrap().clone();
    for (sender, status) in &sent {
        let of = |state: &str| {
            deliveries
                .iter()
                .filter(|row| row["sender_id"] == sender.as_str() && row["state"] == state)
                .collect::<Vec<_>>()
        };
        let accepted = of("accepted");
        assert_eq!(accepted.len(), 1, "{sender} ({status}): {accepted:?}");
        let outcomes: Vec<_> = all.iter().filter(|deploy| deploy["by"]["id"] == accepted[0]["id"]).collect();
        assert_eq!(outcomes.len(), 1, "{sender}: {outcomes:?}");
        let (state, reason) = (outcomes[0]["state"].as_str().unwrap(), outcomes[0]["reason"].as_str());
        let honest = ["live", "superseded", "skipped"].contains(&state) || reason == Some("interrupted 3 times");
        assert!(honest, "{}", outcomes[0]);
    }
    let cache = home(&server, "site").join("cache");
    assert!(cache.join("busy").exists() && !cache.join("twice").exists());
    // The last start may still look for news, and bring it before its push is told.
    let head = repo.commit(&[("VERSION", "last")], "last");
    let (status, answer) = server.push("site", &unique(), &repo.push_body());
    assert!([200, 202].contains(&status), "{answer}");
    let is_it = |deploy: &Value| deploy["commit"] == head.as_str() && deploy["state"] == "live";
    let last = server.until("the newest is live", |s| deploys(s).into_iter().find(is_it));
    server.wait_state("site", "ready");
    assert_live(&server, &last);
    assert_eq!(current(&server, "built"), "last");
}

/// A forge that pushes commit after commit, more than there are kills, and asks again with the same id until it
/// is answered: the ids and the answers' status.
fn stream(at: SocketAddr, repo: &Repo, done: &AtomicBool) -> Vec<(String, u16)> {
    let mut sent = Vec::new();
    while !done.load(Ordering::Relaxed) || sent.len() <= ROUNDS {
        repo.commit(&[("VERSION", &format!("n{}", sent.len()))], "next");
        let (body, id) = (repo.push_body(), unique());
        let end = Instant::now() + server::LIMIT;
        let signature = server::sign(server::SECRET, body.as_bytes());
        let headers = [
            ("content-type", "application/json"),
            ("x-github-event", "push"),
            ("x-github-delivery", &id),
            ("x-hub-signature-256", &signature),
        ];
        let status = loop {
            match http::try_request(at, "POST", "/hooks/site", &headers, body.as_bytes()) {
                Some(status) if status != 503 => break status,
                _ => assert!(Instant::now() < end, "nobody answers"),
            }
            thread::yield_now();
        };
        assert!([200, 202].contains(&status), "{status}");
        sent.push((id, status));
        thread::sleep(Duration::from_millis(100));
    }
    sent
}

/// A number that is another one in each round of each run.
fn fastrand(round: u64) -> u32 {
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(round) >> 32) as u32
}

/// Kills at moments that nobody chose: whatever is live then is whole, and runs once.
#[test]
fn kills_at_any_moment_of_a_deploy() {
    let (mut server, repo) = world("", "build: [\"cp VERSION built\"]");
    // A catch-up of the start would take the next commit before its push.
    server.edit_config("apps:", "deploys: (catch_up: false), apps:");
    start_live(&mut server);
    let mut last = 1;
    for n in 2..10 {
        repo.commit(&[("VERSION", &n.to_string())], "next");
        let id = push(&server, &repo);
        // The n-th look at it falls into another moment each time.
        for _ in 0..n {
            let _ = deploy(&server, id);
        }
        server.kill();
        let live = fs::read_to_string(home(&server, "site").join("live")).unwrap();
        let release = live.split(' ').next().unwrap();
        let whole = home(&server, "site").join("releases").join(release);
        assert_eq!(
            fs::read_to_string(whole.join("built")).unwrap(),
            fs::read_to_string(whole.join("VERSION")).unwrap(),
            "a half-made release is live"
        );
        server.start();
        let ended = server.deploy_end(id);
        assert_eq!(ended["state"], "live", "{ended}");
        server.wait_state("site", "ready");
        assert_live(&server, &ended);
        last = n;
    }
    assert_eq!(version(&server), last.to_string());
}

/// A kill between the durable `live` and the record: the deploy was made, and the record says so. What
/// follows it was done, or is told not to have been.
#[test]
fn what_became_live_before_the_kill_is_live_after_it() {
    let (mut server, repo) = world("", "after_live: [\"echo $EVERHOOK_DEPLOY >> $EVERHOOK_CACHE/followed\"]");
    // A catch-up of the start would take the next commit before its push.
    server.edit_config("apps:", "deploys: (catch_up: false), apps:");
    start_live(&mut server);
    for n in 2..12 {
        repo.commit(&[("VERSION", &n.to_string())], "next");
        let id = push(&server, &repo);
        let live = home(&server, "site").join("live");
        let end = std::time::Instant::now() + server::LIMIT;
        while !fs::read_to_string(&live).unwrap().starts_with(&format!("{id}-")) {
            assert!(std::time::Instant::now() < end, "{}", server.log());
            std::thread::yield_now();
        }
        server.kill();
        if n % 2 == 0 {
            // As it is found where the kill came before the link was switched.
            let link = home(&server, "site").join("current");
            fs::remove_file(&link).unwrap();
            std::os::unix::fs::symlink(format!("releases/{}", releases(&server, "site")[0]), link).unwrap();
        }
        server.start();
        let deploy = over(&server, id);
        assert_eq!(deploy["state"], "live", "{deploy}");
        let attempts = deploy["steps"].as_array().unwrap().iter().filter(|step| step["name"] == "fetch").count();
        assert_eq!(attempts, 1, "{deploy}");
        let followed = fs::read_to_string(home(&server, "site").join("cache/followed")).unwrap_or_default();
        let told = deploy["reason"].as_str().is_some_and(|reason| reason.contains("`after_live`"));
        assert!(told || followed.lines().any(|line| line == id.to_string()), "{deploy}");
        server.wait_state("site", "ready");
        assert_live(&server, &deploy);
    }
}
