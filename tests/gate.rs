//! The gate from outside: which steps run when, what they see, and what their failure changes.
#![allow(clippy::unwrap_used)]

#[path = "support/deploying.rs"]
mod deploying;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{fs, os::unix::fs::PermissionsExt};

use deploying::*;
use serde_json::Value;
use server::Server;

/// What the steps of `site` wrote into `told` in its cache, since it was asked before.
fn told(server: &Server) -> Vec<String> {
    let path = home(server, "site").join("cache/told");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let _ = fs::remove_file(path);
    text.lines().map(str::to_owned).collect()
}

fn steps(deploy: &Value) -> Vec<(&str, &str)> {
    let steps = deploy["steps"].as_array().unwrap().iter();
    steps.map(|step| (step["name"].as_str().unwrap(), step["state"].as_str().unwrap())).collect()
}

fn has_event(server: &Server, cause: &str) {
    server.until(&format!("an event says {cause:?}"), |s| {
        let says =
            |event: &Value| event["kind"] == "deploy" && event["cause"].as_str().is_some_and(|c| c.contains(cause));
        s.events().iter().any(says).then_some(())
    });
}

#[test]
fn every_kind_of_step_runs_where_it_belongs() {
    let tell = |what: &str| format!("echo {what} $(readlink $EVERHOOK_CACHE/../current) >> $EVERHOOK_CACHE/told");
    let (server, repo) = live_world(
        "",
        &format!(
            r#"check: [(run: "{}", name: "install", when: Changed(["*.lock"])), "! grep -q broken VERSION"],
            before_switch: ["test ! -e stuck", "{}"], after_live: ["{}", "test ! -e loud"],
            on_failure: ["test -e app.sh; echo failed $EVERHOOK_COMMIT >> $EVERHOOK_CACHE/told", "test ! -e stuck"]"#,
            tell("install"),
            tell("before"),
            tell("after"),
        ),
    );
    let release = |deploy: &Value| format!("releases/{}", deploy["release"].as_str().unwrap());
    // Nothing is live: all there is has changed.
    let first = over(&server, 1);
    assert_eq!(told(&server), ["install".into(), "before".into(), format!("after {}", release(&first))]);

    repo.commit(&[("VERSION", "2")], "second");
    let shown = server.ok(&["deploy", "site", "--dry-run"]);
    let line =
        |name: &str| shown.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{shown}")).to_owned();
    assert!(line("install").contains("left out") && !line("grep").contains("left out"), "{shown}");
    assert!(shown.contains("after_live") && !shown.contains("on_failure"), "{shown}");
    let second = over(&server, push(&server, &repo));
    assert_eq!(told(&server), [format!("before {}", release(&first)), format!("after {}", release(&second))]);
    let names: Vec<_> = steps(&second).into_iter().map(|(name, _)| name).collect();
    let switch = names.iter().position(|name| *name == "switch").unwrap();
    assert_eq!(names[..switch], ["fetch", "check", "before_switch", "before_switch"]);
    assert_eq!(names[names.len() - 2..], ["after_live", "after_live"]);
    let log = server.path().join(format!("state/logs/deploys/{}.log", second["id"]));
    server.until("the log names what was left out", |_| {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("`install` is left out")).then_some(())
    });
    repo.commit(&[("a.lock", "")], "other packages");
    let third = over(&server, push(&server, &repo));
    assert_eq!(told(&server)[0], format!("install {}", release(&second)));

    // A failure before the switch touches nothing, and is told of.
    let pid = server.main_pid("site");
    let head = repo.commit(&[("stuck", "")], "cannot be migrated to");
    let failed = over(&server, push(&server, &repo));
    assert_eq!((&failed["state"], &failed["step"]), (&"failed".into(), &"before_switch".into()), "{failed}");
    assert_eq!(told(&server), [format!("failed {head}")]);
    let last = [("before_switch", "failed"), ("on_failure", "done"), ("on_failure", "failed")];
    assert_eq!(steps(&failed)[steps(&failed).len() - 3..], last);
    has_event(&server, "`test ! -e stuck` exited with 1; the deploy stays failed");
    assert_eq!(server.main_pid("site"), pid);
    assert_live(&server, &third);

    // One after it leaves it live, and is told of as well.
    repo.git(&["rm", "-q", "stuck"]);
    repo.commit(&[("loud", "")], "cannot be told");
    let loud = over(&server, push(&server, &repo));
    assert_eq!((&loud["state"], &loud["reason"]), (&"live".into(), &"`test ! -e loud` exited with 1".into()), "{loud}");
    has_event(&server, "`test ! -e loud` exited with 1; the deploy stays live");
    assert_live(&server, &loud);

    // Back by hand: the release is built and was proven; what follows the switch follows this one too.
    told(&server);
    server.ok(&["rollback", "site"]);
    assert_eq!(told(&server), [format!("after {}", release(&third))]);
}

#[test]
fn what_was_live_before_a_crash_is_live_whatever_was_to_follow() {
    let (mut server, repo) = live_world("", "after_live: [\"if [ -e slow ]; then cat $DIR/gate; fi\", \"true\"]");
    without_catch_up(&server);
    let gate = Gate::new(&server, "gate");
    repo.commit(&[("slow", "")], "slow");
    let id = push(&server, &repo);
    let held = gate.reached();
    assert_eq!((&deploy(&server, id)["state"], &deploy(&server, id)["ended_at"]), (&"live".into(), &Value::Null));
    server.kill();
    drop(held);
    server.start();
    let ended = over(&server, id);
    assert_eq!(ended["state"], "live", "{ended}");
    assert_eq!(steps(&ended).last(), Some(&("after_live", "cancelled")));
    has_event(&server, "its `after_live` was interrupted");
    server.wait_state("site", "ready");
    assert_live(&server, &ended);

    // It may take its time, but nobody has to wait for it.
    repo.commit(&[("VERSION", "3")], "slow as well");
    let id = push(&server, &repo);
    let _held = gate.reached();
    let said = server.ok(&["cancel", &id.to_string()]);
    assert!(said.contains("stays live"), "{said}");
    let ended = over(&server, id);
    assert_eq!(steps(&ended).last(), Some(&("after_live", "cancelled")));
    assert_live(&server, &ended);
}

#[test]
fn steps_have_those_variables_of_the_app_that_are_named() {
    let (mut server, _) = world(
        "env_file: \"@DIR@/app.env\",",
        "env_from: [\"OWN\", \"TOKEN\"], build: [\"printf '%s|' \\\"$OWN\\\" \\\"$TOKEN\\\" \\\"$OTHER\\\" > seen\"]",
    );
    server.write_secret("app.env", "TOKEN=from a file\nOTHER=theirs\n");
    start_live(&mut server);
    assert_eq!(current(&server, "seen"), "the app's|from a file||");
}

/// What a step tries that it must not; the first word names it.
const BREAK_OUT: &str = r#"
try() { name=$1; shift; if "$@" > got 2>&1; then echo "$name"; fi; }
{
    try other_variables cat "$DIR/other.env"
    try other_release cat "$APPS/other/current/VERSION"
    try other_shared touch "$APPS/other/shared/x"
    try config cat "$DIR/supervisor.ron"
    try database cat "$APPS/../everhook.db"
    try outside touch "$DIR/open/x"
    ln -s "$DIR/open" out
    try outside_by_link touch out/x
    try mirror sh -c 'echo x >> "$(cat $DIR/mirror)/HEAD"'
    try live_release touch "$EVERHOOK_PREVIOUS_DIR/x"
    try environment_of_the_app cat "/proc/$(cat $DIR/pid)/environ"
    try signal_to_the_app kill -0 "$(cat $DIR/pid)"
} > broken_out
"#;

/// What a step needs; the first that is refused fails it.
const NEEDED: &str = r#"
touch here; touch "$EVERHOOK_CACHE/here"; touch "$HOME/here"; touch "$TMPDIR/here"; touch data/here
mv here "$EVERHOOK_CACHE/moved"; mv "$EVERHOOK_CACHE/moved" back
cat "$EVERHOOK_PREVIOUS_DIR/VERSION" /etc/passwd > /dev/null; env true
echo "said by name" > /dev/stdout; echo "and here" > /dev/stderr
nice > nice; cat /proc/self/oom_score_adj > oom
if command -v ionice > /dev/null; then ionice -p $$ > ionice; else echo idle > ionice; fi
"#;

#[test]
fn a_step_reaches_its_own_folders_and_no_others() {
    let other = site("env_file: \"@DIR@/other.env\",", "").replacen("\"site\"", "\"other\"", 1);
    let own = site(
        "",
        r#"shared: ["data/"], build: ["if [ -e break.sh ]; then sh -e needed.sh; sh break.sh; fi"],
        env: {"DIR": "@DIR@", "APPS": "@DIR@/state/apps"}, "#,
    );
    let own = own.replacen("env: {\"DIR\": \"@DIR@\"}, settle", "settle", 1);
    let (mut server, repo) = world_with(&format!("{own}, {other}"));
    // All of these could be opened by the step's user.
    fs::write(server.path().join("other.env"), "TOKEN=x\n").unwrap();
    fs::create_dir(server.path().join("open")).unwrap();
    let free = fs::Permissions::from_mode(0o777);
    fs::set_permissions(server.path().join("open"), free).unwrap();
    server.start();
    for app in ["site", "other"] {
        server.wait_state(app, "ready");
        server.until("its first deploy is over", |s| {
            deploys(s).into_iter().find(|deploy| deploy["app"] == app && !deploy["ended_at"].is_null())
        });
    }
    let mirrors = fs::read_dir(server.path().join("state/mirrors")).unwrap();
    let mirror = mirrors.map(|entry| entry.unwrap().path()).next().unwrap();
    fs::write(server.path().join("mirror"), mirror.to_str().unwrap()).unwrap();
    fs::write(server.path().join("pid"), server.main_pid("site").to_string()).unwrap();
    let head = fs::read(mirror.join("HEAD")).unwrap();

    repo.commit(&[("break.sh", BREAK_OUT), ("needed.sh", NEEDED)], "breaks out");
    let deploy = over(&server, push(&server, &repo));
    let log = || server.ok(&["logs", "--deploy", &deploy["id"].to_string()]);
    assert_eq!(deploy["state"], "live", "{deploy}: {}", log());
    server.until("what was said by name is in the log", |_| log().contains("said by name").then_some(()));
    assert_eq!((&*current(&server, "nice"), &*current(&server, "oom")), ("10", "500"));
    assert!(current(&server, "ionice").starts_with("idle"));
    server.until("what was temporary is gone", |s| {
        fs::read_dir(home(s, "site").join("tmp")).unwrap().next().is_none().then_some(())
    });
    if log().contains("not confined") {
        return eprintln!("this kernel confines no step: what it reaches is not tested");
    }
    assert_eq!(current(&server, "broken_out"), "", "{}", log());
    assert_eq!(fs::read(mirror.join("HEAD")).unwrap(), head);
}

#[test]
fn a_step_that_floods_its_log_ends_and_the_log_is_bounded() {
    let (server, repo) = live_world("", "build: [\"if [ -e flood ]; then seq 1 3000000; echo the end; fi\"]");
    repo.commit(&[("flood", "")], "says a lot");
    let deploy = over(&server, push(&server, &repo));
    assert_eq!(deploy["state"], "live", "{deploy}");
    let id = deploy["id"].to_string();
    server.until("its last words are there", |s| s.ok(&["logs", "--deploy", &id]).contains("the end").then_some(()));
    let files = fs::read_dir(server.path().join("state/logs/deploys")).unwrap().map(Result::unwrap);
    let own = files.filter(|file| file.file_name().to_string_lossy().starts_with(&format!("{id}.log")));
    let bytes: u64 = own.filter_map(|file| file.metadata().ok()).map(|facts| facts.len()).sum();
    assert!((1 << 20..11 << 20).contains(&bytes), "{bytes} of the 22 MB that it said are kept");
}

#[test]
fn what_a_step_that_took_too_long_ran_is_named() {
    let step = "(run: \"if [ -e slow ]; then sleep 1000 & wait; fi\", timeout: \"10m\")";
    let (server, repo) = live_world("", &format!("build: [{step}]"));
    // From now on: the first deploy was not to take too long.
    server.edit_config("timeout: \"10m\"", "timeout: \"2s\"");
    server.ok(&["reload"]);
    repo.commit(&[("slow", "")], "slow");
    let deploy = over(&server, push(&server, &repo));
    assert_eq!((&deploy["state"], &deploy["steps"][1]["state"]), (&"failed".into(), &"timed_out".into()), "{deploy}");
    has_event(&server, "ended while it ran: ");
    let named = |s: &Server| s.ok(&["logs", "--deploy", &deploy["id"].to_string()]).contains("ended while it ran: ");
    server.until("the log names what ran", |s| named(s).then_some(()));
}
