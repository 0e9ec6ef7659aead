//! What becomes of a commit is told to its forge: as that documents it, in the right order, whatever
//! happens to the forge, to the courier and to the supervisor; and no deploy waits for it.
#![allow(clippy::unwrap_used)]

#[path = "support/deploying.rs"]
mod deploying;
#[path = "support/forge.rs"]
mod forge;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;
#[path = "support/statuses.rs"]
mod statuses;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use deploying::*;
use forge::Forge;
use server::{LIMIT, Repo, Server, processes, text, unique};
use statuses::{Kind, Mood, Statuses, TOKEN};

/// The server, its forge's git and its forge's API.
struct World {
    server: Server,
    repo: Repo,
    _git: Forge,
    api: Statuses,
}

/// `site` from this forge; `deploy`: more of its deploy. Nothing runs yet.
fn world_of(kind: Kind, project: &'static str, deploy: &str) -> World {
    world_at(Statuses::new(kind, project), "http", kind, project, deploy)
}

fn world_at(api: Statuses, scheme: &str, kind: Kind, project: &'static str, deploy: &str) -> World {
    let base = match kind {
        Kind::GitHub => "",
        Kind::GitLab => "/api/v4",
        Kind::Gitea => "/api/v1",
    };
    let status = format!(
        "status: (forge: {kind:?}, api: \"{scheme}://127.0.0.1:{}{base}\", token: File(\"@DIR@/forge.token\")), {deploy}",
        api.port
    );
    let server = Server::with_apps(&site("", &status).replace("@DIR@/repo", "@GIT@"));
    server.write_secret("forge.token", TOKEN);
    fs::write(server.path().join("held"), "").unwrap();
    let repo = Repo::new(server.path().join("git").join(project), &[("app.sh", APP), ("VERSION", "1")]);
    let git = Forge::new(&server.path().join("git"));
    server.edit_config("@GIT@", &git.url(project));
    World { server, repo, _git: git, api }
}

/// A check that waits at `gate` where the commit says so, or at the one of the number that it says, and fails
/// where it says that.
const CHECK: &str =
    "check: [(run: \"test ! -e WAIT || cat $DIR/gate$(cat WAIT); test ! -e BAD\", name: \"the check\")],";

impl World {
    fn start(&mut self) {
        start_live(&mut self.server);
        self.api.until_last(&self.repo.head(), "success");
    }

    /// Commits and pushes; the deploy's number and the commit.
    fn push(&self, files: &[(&str, &str)]) -> (i64, String) {
        let commit = self.repo.commit(files, "next");
        (push(&self.server, &self.repo), commit)
    }

    /// The courier's pid, while there is one.
    fn courier(&self) -> Option<i32> {
        let me = format!("PPid:\t{}", self.server.pid());
        let is_it = |pid: &i32| {
            let ours =
                fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|s| s.lines().any(|line| line == me));
            ours && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"everhook\0courier\0"))
        };
        processes("courier").into_iter().find(is_it)
    }

    fn courier_runs(&self) -> i32 {
        self.server.until("the courier runs", |_| self.courier())
    }

    fn events(&self, to: &str) -> Vec<String> {
        let events = self.server.events().into_iter().filter(|event| event["to"] == to && event["app"] == "site");
        events.map(|event| event["cause"].as_str().unwrap().to_owned()).collect()
    }

    fn wait_event(&self, to: &str) -> String {
        self.server.until(&format!("the event {to}"), |_| self.events(to).pop())
    }
}

#[test]
fn github_hears_of_a_push_from_its_turn_to_its_end() {
    let mut world = world_of(Kind::GitHub, "Me/site", CHECK);
    let gate = Gate::new(&world.server, "gate");
    world.start();
    let first = world.repo.head();
    assert_eq!(world.api.states(&first).last().unwrap(), "success");

    let (id, commit) = world.push(&[("VERSION", "2"), ("WAIT", "")]);
    let held = gate.reached();
    let running = world.api.until_last(&commit, "pending");
    assert_eq!(running.context, "everhook/site");
    drop(held);
    let live = world.api.until_last(&commit, "success");
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let release = format!("{id}-{}", &commit[..7]);
    assert_eq!(live.description, format!("{}: live as {release}", host.trim()));

    fs::remove_file(world.repo.path.join("WAIT")).unwrap();
    let (_, bad) = world.push(&[("BAD", "")]);
    let failed = world.api.until_last(&bad, "failure");
    assert!(failed.description.ends_with("failed: `the check` exited with 1"), "{failed:?}");
    fs::remove_file(world.repo.path.join("BAD")).unwrap();
    // However late it ends, it is not taken for well.
    world.server.edit_config("settle: \"20ms\"", "settle: \"1h\"");
    world.server.ok(&["reload"]);
    let (id, broken) = world.push(&[("app.sh", "exit 3")]);
    world.api.until_last(&broken, "error");
    assert_eq!(deploy(&world.server, id)["state"], "rolled_back");
    // What was live before is so again, and nobody says otherwise.
    assert_eq!(world.api.states(&commit).last().unwrap(), "success");

    // Nothing of ours shows the token.
    world.server.until("the courier is gone", |_| world.courier().is_none().then_some(()));
    let shown = [
        world.server.log(),
        text(&world.server.cli(&["events", "-n", "1000", "--json"])),
        text(&world.server.cli(&["history", "show", &id.to_string()])),
        text(&world.server.cli(&["check"])),
    ];
    assert!(shown.iter().all(|text| !text.contains(TOKEN)), "{shown:#?}");
    world.server.stop();
    let database = fs::read(world.server.path().join("state/everhook.db")).unwrap();
    assert!(!database.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes()));
}

#[test]
fn gitlab_hears_it_in_its_own_words() {
    let mut world = world_of(Kind::GitLab, "team/sub.group/site", CHECK);
    let (gate, next) = (Gate::new(&world.server, "gate"), Gate::new(&world.server, "gate2"));
    world.start();
    let (id, commit) = world.push(&[("VERSION", "2"), ("WAIT", "")]);
    let held = gate.reached();
    let running = world.api.until_last(&commit, "running");
    assert_eq!((running.context.as_str(), running.ref_name.as_deref()), ("everhook/site", Some("main")));
    // Two that wait: the newer takes the older one's place.
    let (_, older) = world.push(&[("VERSION", "3")]);
    world.api.until_last(&older, "pending");
    // At a gate of its own: the first one may be held for a moment more when it comes.
    let (newer_id, newer) = world.push(&[("BAD", ""), ("WAIT", "2")]);
    let over = world.api.until_last(&older, "canceled");
    assert!(over.description.ends_with(&format!("superseded: deploy {newer_id} is newer")), "{over:?}");
    world.api.until_last(&newer, "pending");
    world.server.ok(&["cancel", &id.to_string()]);
    drop(held);
    world.api.until_last(&commit, "canceled");
    let held = next.reached();
    world.api.until_last(&newer, "running");
    drop(held);
    world.api.until_last(&newer, "failed");
    assert_eq!(world.api.states(&newer), ["pending", "running", "failed"]);
}

#[test]
fn gitea_hears_it_as_forgejo_does() {
    let mut world = world_of(Kind::Gitea, "me/site", "paths: [\"app.sh\"],");
    world.start();
    let (_, commit) = world.push(&[("README", "nothing that counts")]);
    let skipped = world.api.until_last(&commit, "success");
    assert!(skipped.description.contains(": skipped: "), "{skipped:?}");
}

#[test]
fn a_tag_is_told_of_by_the_commit_that_it_names() {
    let mut world = world_of(Kind::GitHub, "me/site", "");
    world.server.edit_config("Push(branch: \"main\")", "Push(branch: \"main\"), Tag(\"v*\")");
    world.start();
    let commit = world.repo.commit(&[("VERSION", "2")], "second");
    world.repo.git(&["tag", "-a", "v1", "-m", "the first"]);
    let object = world.repo.git(&["rev-parse", "v1"]);
    assert_ne!(object, commit);
    let (status, answer) = world.server.push("site", &unique(), &world.repo.push_of("refs/tags/v1", &object));
    assert_eq!(status, 202, "{answer}");
    world.api.until_last(&commit, "success");
    assert_eq!(world.api.states(&object), [] as [String; 0]);
}

#[test]
fn a_forge_that_is_down_hears_in_the_end_what_became_of_each_commit() {
    let mut world = world_of(Kind::GitLab, "me/site", CHECK);
    world.start();
    world.api.set(Mood::Says(503, "Retry-After: 1\r\n", String::new()));
    let mut commits = Vec::new();
    for (version, bad) in [("2", false), ("3", true), ("4", false)] {
        let files: &[(&str, &str)] = if bad { &[("BAD", "")] } else { &[("VERSION", version)] };
        let (id, commit) = world.push(files);
        if commits.is_empty() {
            world.api.turns_away(3);
            let delayed = world.wait_event("status_delayed");
            assert!(delayed.starts_with("GitLab answered 503 "), "{delayed}");
            world.api.set(Mood::Says(429, "Retry-After: 1\r\n", "slow down".to_owned()));
            world.api.turns_away(1);
        }
        let ended = world.server.deploy_end(id);
        assert_eq!(ended["state"], if bad { "failed" } else { "live" }, "{ended}");
        if bad {
            fs::remove_file(world.repo.path.join("BAD")).unwrap();
        }
        commits.push(commit);
    }
    world.api.set(Mood::Well);
    // It would be tried again in a while, which grows with every failure.
    world.server.ok(&["reload"]);
    for (commit, state) in commits.iter().zip(["success", "failed", "success"]) {
        world.api.until_last(commit, state);
        assert_eq!(world.api.states(commit), [state], "what is no longer so is not told");
    }
}

#[test]
fn a_forge_that_hangs_holds_up_no_deploy_and_no_end() {
    let mut world = world_of(Kind::GitHub, "me/site", "");
    world.start();
    world.api.set(Mood::Hangs);
    let (id, commit) = world.push(&[("VERSION", "2")]);
    world.api.turns_away(1);
    assert_eq!(world.server.deploy_end(id)["state"], "live");
    assert_eq!(version(&world.server), "2");
    assert_eq!(world.api.states(&commit), [] as [String; 0]);
    assert_eq!(world.server.stop().code(), Some(0));
    world.api.set(Mood::Well);
    world.server.start();
    world.api.until_last(&commit, "success");
}

#[test]
fn the_courier_has_no_rights_and_stays_no_longer_than_its_work() {
    let mut world = world_of(Kind::GitHub, "me/site", "");
    world.start();
    world.server.until("it is gone", |_| world.courier().is_none().then_some(()));
    world.api.set(Mood::Hangs);
    world.push(&[("VERSION", "2")]);
    world.api.turns_away(1);
    let courier = world.courier_runs();
    let status = fs::read_to_string(format!("/proc/{courier}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    if is_root() {
        let uid = nix::unistd::User::from_name("everhook-courier").unwrap().map_or(60902, |user| user.uid.as_raw());
        assert_eq!(field("Uid:"), vec![uid.to_string(); 4]);
        assert_eq!(field("Groups:"), [] as [String; 0]);
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(set), ["0000000000000000"], "{set}");
        }
        let environment = fs::read_to_string(format!("/proc/{courier}/environ")).unwrap();
        assert!(!environment.contains(TOKEN), "{environment}");
        // One may be closed meanwhile.
        for open in
            fs::read_dir(format!("/proc/{courier}/fd")).unwrap().filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
        {
            let open = open.display().to_string();
            assert!(!open.starts_with(world.server.path().join("state").to_str().unwrap()), "{open}");
        }
    }
    world.api.set(Mood::Well);
    world.api.until_last(&world.repo.head(), "success");
    world.server.until("it is gone", |_| world.courier().is_none().then_some(()));
}

#[test]
fn a_killed_courier_is_sent_again_and_a_killed_supervisor_goes_on() {
    let mut world = world_of(Kind::GitLab, "me/site", CHECK);
    let gate = Gate::new(&world.server, "gate");
    world.start();
    world.api.set(Mood::Hangs);
    let (_, commit) = world.push(&[("VERSION", "2"), ("WAIT", "")]);
    world.api.turns_away(1);
    let held = gate.reached();
    let courier = world.courier_runs();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(courier), nix::sys::signal::Signal::SIGKILL).unwrap();
    world.api.turns_away(1);
    assert_ne!(world.courier_runs(), courier);
    let second = world.courier_runs();
    world.server.kill();
    let end = Instant::now() + LIMIT;
    // Of one that nobody has reaped the command line is empty.
    while fs::read(format!("/proc/{second}/cmdline")).is_ok_and(|line| !line.is_empty()) {
        assert!(Instant::now() < end, "the courier outlives its supervisor");
        thread::yield_now();
    }
    world.api.set(Mood::Well);
    drop(held);
    world.server.start();
    world.api.until_last(&commit, "running");
    drop(gate.reached());
    world.api.until_last(&commit, "success");
}

#[test]
fn what_arrived_without_an_answer_is_told_again_and_harms_nothing() {
    let mut world = world_of(Kind::GitLab, "me/site", "");
    world.start();
    world.api.set(Mood::Mute);
    let (_, commit) = world.push(&[("VERSION", "2")]);
    world.api.until_last(&commit, "success");
    world.api.turns_away(1);
    world.api.set(Mood::Well);
    world.server.until("it is done", |_| world.courier().is_none().then_some(()));
    let (_, next) = world.push(&[("VERSION", "3")]);
    world.api.until_last(&next, "success");
    assert_eq!(world.api.states(&commit).last().unwrap(), "success");
}

#[test]
fn a_refusal_is_told_once_with_what_the_forge_said() {
    let mut world = world_of(Kind::GitHub, "me/site", "");
    let echo = format!("{{\"message\": \"Bad credentials {TOKEN}\"}}");
    world.api.set(Mood::Says(401, "", echo));
    start_live(&mut world.server);
    let why = world.wait_event("status_refused");
    assert!(why.starts_with("GitHub answered 401 for me/site: Bad credentials … ("), "{why}");
    let (id, _) = world.push(&[("VERSION", "2")]);
    world.server.deploy_end(id);
    world.server.until("all is said", |_| world.courier().is_none().then_some(()));
    assert_eq!(world.events("status_refused").len(), 1);

    // A token that cannot be read is waited for, and a reload need not be.
    world.api.set(Mood::Well);
    fs::remove_file(world.server.path().join("forge.token")).unwrap();
    let (_, commit) = world.push(&[("VERSION", "3")]);
    let why = world.wait_event("status_delayed");
    assert!(why.contains("forge.token"), "{why}");
    world.server.write_secret("forge.token", TOKEN);
    world.server.ok(&["reload"]);
    world.api.until_last(&commit, "success");
    assert!(!world.server.log().contains(TOKEN));
}

#[test]
fn an_app_that_is_renamed_takes_its_letters_along() {
    let mut world = world_of(Kind::GitHub, "me/site", "");
    world.start();
    world.api.set(Mood::Says(500, "", String::new()));
    let (id, commit) = world.push(&[("VERSION", "2")]);
    world.server.deploy_end(id);
    // All that came meanwhile, and then one more: after it nothing is on its way for a while.
    world.api.turns_away(1);
    world.api.turns_away(1);
    world.server.edit_config("\"site\": (", "\"blog\": (was: \"site\", ");
    world.server.ok(&["reload"]);
    world.api.set(Mood::Well);
    let told = world.api.until_last(&commit, "success");
    assert_eq!(told.context, "everhook/blog");
}

#[test]
fn tls_is_trusted_by_the_given_roots_alone() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (trusted, stranger) = (folder.path().join("trusted"), folder.path().join("stranger"));
    let certificate = signed(&trusted);
    signed(&stranger);
    let api = Statuses::with_tls(Kind::Gitea, "me/site", &certificate);
    let mut world = world_at(api, "https", Kind::Gitea, "me/site", "");
    let roots = |of: &Path| format!("SSL_CERT_FILE={}", of.join("ca.pem").display());
    world.server.start_as(&["env", &roots(&stranger)]);
    assert_eq!(world.server.deploy_end(1)["state"], "live");
    let why = world.wait_event("status_delayed");
    assert!(why.contains("UnknownIssuer"), "{why}");
    assert_eq!(world.api.told(), []);
    world.server.stop();
    world.server.start_as(&["env", &roots(&trusted)]);
    world.api.until_last(&world.repo.head(), "success");
}

/// Makes an authority in this folder and returns what it says of 127.0.0.1.
fn signed(folder: &Path) -> std::path::PathBuf {
    fs::create_dir(folder).unwrap();
    let openssl = |args: &[&str]| {
        let made = Command::new("openssl").args(args).current_dir(folder).stdin(Stdio::null()).output().unwrap();
        assert!(made.status.success(), "{args:?}: {}", text(&made));
    };
    let authority = format!("/CN=authority {}", folder.file_name().unwrap().display());
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout"];
    openssl(&[&["req", "-x509", "-days", "2", "-subj", &authority], &key[..], &["ca.key", "-out", "ca.pem"]].concat());
    openssl(&[&["req", "-subj", "/CN=test"], &key[..], &["forge.key", "-out", "forge.csr"]].concat());
    fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").unwrap();
    let sign = ["x509", "-req", "-days", "2", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
    openssl(&[&sign[..], &["-in", "forge.csr", "-extfile", "names", "-out", "forge.pem"]].concat());
    fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::set_permissions(folder.join("ca.pem"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    folder.join("forge.pem")
}
