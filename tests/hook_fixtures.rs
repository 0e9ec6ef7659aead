//! Real deliveries of the forges, byte for byte as they were recorded (`tests/fixtures`), and
//! signatures by the libraries that others sign them with (`tests/vectors`).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use everhook::domain::{
    hook::{
        Change, Dialect, Head, Headers, Kind, Parsed, Request, What, head, parse, proves, recognise, same_repository,
    },
    model::{At, Secret},
};
use serde::Deserialize;

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn fixture(path: &str) -> Vec<u8> {
    fs::read(tests().join("fixtures").join(path)).unwrap()
}

fn names(folder: &str) -> Vec<String> {
    let path = tests().join("fixtures").join(folder);
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(!names.is_empty());
    names
}

fn headers(pairs: &[(&str, &str)]) -> Headers<'static> {
    pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect::<Vec<_>>().into()
}

/// What a recorded body says under these headers, which must be known for the dialect's.
fn read(dialect: &Dialect, sent: &[(&str, &str)], file: &str) -> Parsed {
    let headers = headers(sent);
    assert_eq!(recognise(&headers).as_ref(), Some(dialect));
    parse(dialect, head(dialect, &headers), &fixture(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn github(event: &str, file: &str) -> Parsed {
    let sent = [("x-github-event", event), ("x-github-delivery", "id-1"), ("content-type", "application/json")];
    read(&Dialect::GitHub, &sent, &format!("github/{file}"))
}

fn gitlab(event: &str, file: &str) -> Parsed {
    read(&Dialect::GitLab, &[("x-gitlab-event", event), ("idempotency-key", "id-2")], &format!("gitlab/{file}"))
}

fn changes(parsed: Parsed) -> Vec<Change> {
    match parsed.kind {
        Kind::Changes(changes) => changes,
        kind => panic!("{kind:?}"),
    }
}

fn change(parsed: Parsed) -> Change {
    let mut changes = changes(parsed);
    assert_eq!(changes.len(), 1);
    changes.remove(0)
}

#[test]
fn every_delivery_of_github_is_understood() {
    for file in names("github") {
        let event = file.split('.').next().unwrap();
        let parsed = github(event, &file);
        assert_eq!(parsed.event, event);
        assert_eq!(parsed.sender_id.as_deref(), Some("id-1"));
        assert!(parsed.sender.is_some(), "{file}");
        assert!(parsed.repository.full_name.contains('/'), "{file}");
        let full_name = parsed.repository.full_name.clone();
        assert!(same_repository(&format!("git@github.com:{full_name}.git"), &parsed.repository), "{file}");
        match (event, parsed.kind) {
            ("ping", Kind::Ping) | ("push", Kind::Changes(_)) => {}
            ("release", Kind::Changes(of)) => {
                assert_eq!((of[0].what, of[0].ref_name.as_str()), (What::Release, "refs/tags/0.0.1"));
            }
            ("release", Kind::Other { why }) => assert_eq!(why, "event `release created` is not deployed"),
            ("workflow_run", Kind::Other { why }) => assert!(why.contains("`nothing`"), "it has not ended: {why}"),
            (_, Kind::Other { why }) => assert_eq!(why, format!("event `{event}` is not deployed")),
            (_, kind) => panic!("{file}: {kind:?}"),
        }
    }
}

#[test]
fn pushes_of_github_say_what_moved() {
    let push = |file: &str| change(github("push", file));
    let made = push("push.0.json");
    assert_eq!((made.ref_name.as_str(), made.before), ("refs/tags/simple-tag", None));
    assert_eq!(made.after.unwrap().as_str(), "6113728f27ae82c7b1a177c8d03f9e96e0adf246");
    assert_eq!(made.subject.as_deref(), Some("Adding a .gitignore file"));
    for deleted in ["push.1.json", "push.2.json"] {
        let deleted = push(deleted);
        assert_eq!((deleted.after, deleted.subject), (None, None));
        assert!(deleted.before.is_some());
    }
    let branch = push("push.4.json");
    assert_eq!(branch.ref_name, "refs/heads/master");
    assert!(branch.after.is_some() && branch.author.is_some());
}

/// `payload=` and the body, encoded as a browser does.
fn form(json: &[u8]) -> String {
    let encoded = json.iter().map(|b| match b {
        b' ' => "+".into(),
        b if b.is_ascii_alphanumeric() => char::from(*b).to_string(),
        b => format!("%{b:02X}"),
    });
    format!("payload={}", encoded.collect::<String>())
}

#[test]
fn a_form_holds_the_same_delivery() {
    for file in names("github") {
        let event = file.split('.').next().unwrap();
        let body = form(&fixture(&format!("github/{file}")));
        let sent = headers(&[
            ("x-github-event", event),
            ("x-github-delivery", "id-1"),
            ("content-type", "application/x-www-form-urlencoded"),
        ]);
        let parsed = parse(&Dialect::GitHub, head(&Dialect::GitHub, &sent), body.as_bytes()).unwrap();
        assert_eq!(parsed, github(event, &file));
    }
}

#[test]
fn every_delivery_of_gitlab_is_understood() {
    assert_eq!(names("gitlab").len(), 5);
    let push = |event: &str, file: &str| change(gitlab(event, file));
    let branch = push("Push Hook", "push-event.json");
    assert_eq!(branch.ref_name, "refs/heads/master");
    assert_eq!(branch.after.unwrap().as_str(), "da1560886d4f094c3e6c9ef40349f7d38b5d27d7");
    assert_eq!((branch.subject.as_deref(), branch.author.as_deref()), (Some("fixed readme"), Some("GitLab dev user")));
    assert_eq!(push("System Hook", "system-push-event.json").ref_name, "refs/heads/master");
    for (event, file) in [("Tag Push Hook", "tag-event.json"), ("System Hook", "system-tag-event.json")] {
        let tag = push(event, file);
        assert_eq!((tag.ref_name.as_str(), tag.before), ("refs/tags/v1.0.0", None));
    }
    let release = push("Release Hook", "release-event.json");
    assert_eq!((release.what, release.ref_name.as_str()), (What::Release, "refs/tags/v1.1"));
    assert_eq!(release.after.unwrap().as_str(), "ee0a3fb31ac16e11b9dbb596ad16d4af654d08f8");
    let parsed = gitlab("Push Hook", "push-event.json");
    assert_eq!((parsed.sender.as_deref(), parsed.sender_id.as_deref()), (Some("John Smith"), Some("id-2")));
    assert_eq!(parsed.repository.full_name, "mike/diaspora");
    for configured in ["git@example.com:mike/diaspora.git", "http://example.com/Mike/Diaspora"] {
        assert!(same_repository(configured, &parsed.repository), "{configured}");
    }
}

#[test]
fn those_that_stem_from_gogs_speak_alike() {
    let github = ("x-github-event", "push");
    let gitea = [github, ("x-gogs-event", "push"), ("x-gitea-event", "push"), ("x-gitea-delivery", "id-3")];
    let forgejo = [gitea[2], gitea[3], github, ("x-forgejo-event", "push"), ("x-forgejo-delivery", "id-3")];
    for (dialect, sent) in [(Dialect::Gitea, &gitea[..]), (Dialect::Forgejo, &forgejo)] {
        let parsed = read(&dialect, sent, "gitea/push-event.json");
        assert_eq!((parsed.event.as_str(), parsed.sender_id.as_deref()), ("push", Some("id-3")));
        assert!(same_repository("git@localhost:Example/example", &parsed.repository));
        let push = change(parsed);
        assert_eq!((push.ref_name.as_str(), push.before.as_ref()), ("refs/heads/master", None));
        assert_eq!((push.subject.as_deref(), push.author.as_deref()), (Some("example"), Some("example")));
    }
    let gogs = [("x-gogs-event", "push"), ("x-gogs-delivery", "id-4"), github];
    let parsed = read(&Dialect::Gogs, &gogs, "gogs/push-event.json");
    assert_eq!((parsed.sender.as_deref(), parsed.sender_id.as_deref()), (Some("unknwon"), Some("id-4")));
    assert_eq!(change(parsed).ref_name, "refs/heads/develop");
    for (dialect, event, file, tag) in [
        (Dialect::Gitea, "x-gitea-event", "gitea/release-event.json", "refs/tags/example"),
        (Dialect::Gogs, "x-gogs-event", "gogs/release-event.json", "refs/tags/v1.0.0"),
    ] {
        let release = change(read(&dialect, &[(event, "release")], file));
        assert_eq!((release.what, release.ref_name.as_str()), (What::Release, tag));
    }
}

#[test]
fn of_gogs_tags_are_made_and_refs_deleted_by_events_of_their_own() {
    let event = |event: &str, kind: &str, sha: &str| {
        let body = format!(r#"{{"ref": "a/b", "ref_type": "{kind}", "sha": "{sha}"}}"#);
        let head = Head { event: event.to_owned(), sender_id: None, form: false };
        parse(&Dialect::Gogs, head, body.as_bytes()).unwrap()
    };
    let sha = "a".repeat(40);
    let made = change(event("create", "tag", &sha));
    assert_eq!((made.ref_name.as_str(), made.after.unwrap().as_str(), made.deleted), ("refs/tags/a/b", &*sha, false));
    for (kind, name) in [("tag", "refs/tags/a/b"), ("branch", "refs/heads/a/b")] {
        let gone = change(event("delete", kind, ""));
        assert_eq!((gone.ref_name.as_str(), gone.after, gone.deleted), (name, None, true));
    }
    assert!(matches!(event("create", "branch", "").kind, Kind::Other { .. }), "its push tells");
}

#[test]
fn several_refs_of_a_push_are_all_read() {
    let cloud = [("x-event-key", "repo:push"), ("x-request-uuid", "id-5"), ("x-hook-uuid", "{1}")];
    let parsed = read(&Dialect::BitbucketCloud, &cloud, "bitbucket/repo-push.json");
    assert_eq!((parsed.sender_id.as_deref(), parsed.sender.as_deref()), (Some("id-5"), Some("emmap1")));
    assert!(same_repository("git@bitbucket.org:team_name/Repo_name.git", &parsed.repository));
    let push = change(parsed);
    assert_eq!(push.ref_name, "refs/heads/name-of-branch");
    assert_eq!(push.after.unwrap().as_str(), "709d658dc5b6d6afcd46049c2f332ee3f515a67d");
    assert_eq!((push.subject.as_deref(), push.author.as_deref()), (Some("new commit message"), Some("Emma")));

    let (a, b) = ("a".repeat(40), "b".repeat(40));
    let at = |kind: &str, name: &str, hash: &str| {
        format!(
            r#"{{"type": "{kind}", "name": "{name}", "target": {{"hash": "{hash}", "author": {{"raw": "Ann <a@x>"}}}}}}"#
        )
    };
    let moved = |old: &str, new: &str| format!(r#"{{"old": {old}, "new": {new}}}"#);
    let body = format!(
        r#"{{"push": {{"changes": [{}, {}, {}]}}}}"#,
        moved(&at("branch", "x/y", &a), &at("branch", "x/y", &b)),
        moved("null", &at("tag", "v1", &a)),
        moved(&at("branch", "old", &a), "null"),
    );
    let head = || Head { event: "repo:push".to_owned(), sender_id: None, form: false };
    let all = changes(parse(&Dialect::BitbucketCloud, head(), body.as_bytes()).unwrap());
    let told: Vec<_> =
        all.iter().map(|c| (c.ref_name.as_str(), c.before.is_some(), c.after.is_some(), c.deleted)).collect();
    assert_eq!(
        told,
        [
            ("refs/heads/x/y", true, true, false),
            ("refs/tags/v1", false, true, false),
            ("refs/heads/old", true, false, true)
        ]
    );
    assert_eq!(all[0].author.as_deref(), Some("Ann"));
    let none = parse(&Dialect::BitbucketCloud, head(), br#"{"push": {"changes": []}}"#).unwrap();
    assert_eq!(none.kind, Kind::Other { why: "it changes no ref".to_owned() });
}

#[test]
fn every_delivery_of_bitbucket_data_center_is_understood() {
    let sent = [("x-event-key", "repo:refs_changed"), ("x-request-id", "id-6")];
    let parsed = read(&Dialect::BitbucketDataCenter, &sent, "bitbucket-server/repo-refs-changed.json");
    assert_eq!((parsed.sender_id.as_deref(), parsed.sender.as_deref()), (Some("id-6"), Some("gopher")));
    for configured in [
        "ssh://git@server.bitbucket.local:7999/~gopher/webhook-test.git",
        "https://server.bitbucket.local/scm/~gopher/webhook-test.git",
    ] {
        assert!(same_repository(configured, &parsed.repository), "{configured}");
    }
    let deleted = change(parsed);
    assert_eq!((deleted.ref_name.as_str(), deleted.deleted, deleted.after), ("refs/heads/feature/wip", true, None));
    let ping = Head { event: "diagnostics:ping".to_owned(), sender_id: None, form: false };
    assert_eq!(parse(&Dialect::BitbucketDataCenter, ping, br#"{"test": true}"#).unwrap().kind, Kind::Ping);
}

#[test]
fn every_delivery_of_azure_devops_is_understood() {
    let sent = [("x-vss-subscriptionid", "1"), ("authorization", "Basic eDp5")];
    let parsed = read(&Dialect::AzureDevOps, &sent, "azuredevops/git.push.json");
    assert_eq!(parsed.event, "git.push");
    assert_eq!(parsed.sender_id.as_deref(), Some("03c164c2-8912-4d5e-8009-3707d5f83734"));
    assert_eq!(parsed.sender.as_deref(), Some("Jamal Hartnett"));
    for configured in [
        "https://me@dev.azure.com/fabrikam-fiber-inc/DefaultCollection/_git/Fabrikam-Fiber-Git",
        "git@ssh.dev.azure.com:v3/fabrikam-fiber-inc/DefaultCollection/Fabrikam-Fiber-Git",
    ] {
        assert!(same_repository(configured, &parsed.repository), "{configured}");
    }
    let push = change(parsed);
    assert_eq!(push.ref_name, "refs/heads/main");
    assert_eq!(push.after.unwrap().as_str(), "33b55f7cb7e7e245323987634f960cf4a6e6bc74");
    assert_eq!(push.subject.as_deref(), Some("Fixed bug in web.config file"));

    let text = String::from_utf8(fixture("azuredevops/git.push.json")).unwrap();
    let read = |body: String| {
        let head = Head { event: String::new(), sender_id: None, form: false };
        parse(&Dialect::AzureDevOps, head, body.as_bytes()).unwrap()
    };
    let gone = change(read(text.replace(
        "\"newObjectId\": \"33b55f7cb7e7e245323987634f960cf4a6e6bc74\"",
        &format!("\"newObjectId\": \"{}\"", "0".repeat(40)),
    )));
    assert!(gone.deleted && gone.after.is_none());
    let test = text.replacen('{', "{\"subscriptionId\": \"00000000-0000-0000-0000-000000000000\", ", 1);
    assert_eq!(read(test).kind, Kind::Ping);
    let other = read(text.replace("git.push", "build.complete"));
    assert_eq!(other.kind, Kind::Other { why: "event `build.complete` is not deployed".to_owned() });
}

#[test]
fn gitee_speaks_like_github_under_other_names() {
    let read = |event: &str, ping: &str| {
        let sent = [("x-gitee-event", event), ("x-gitee-timestamp", "1576754827988"), ("x-gitee-ping", ping)];
        read(&Dialect::Gitee, &sent, "gitea/push-event.json")
    };
    let push = read("Push Hook", "false");
    assert_eq!((push.event.as_str(), push.sender_id.as_deref()), ("Push Hook", Some("1576754827988")));
    assert_eq!(change(push).ref_name, "refs/heads/master");
    assert_eq!(change(read("Tag Push Hook", "false")).what, What::Push);
    assert_eq!(read("Push Hook", "true").kind, Kind::Ping);
    assert_eq!(read("Note Hook", "false").kind, Kind::Other { why: "event `Note Hook` is not deployed".to_owned() });
}

#[test]
fn an_unknown_sender_is_nobodys() {
    let secret = Secret::new(b"s3cret".to_vec());
    for folder in ["gitea", "gogs", "bitbucket", "bitbucket-server", "azuredevops"] {
        for file in names(folder) {
            let body = fixture(&format!("{folder}/{file}"));
            assert_eq!(recognise(&headers(&[("content-type", "application/json")])), None);
            // Under a known forge's name it still has to prove itself.
            for (dialect, event) in [(Dialect::GitHub, "x-github-event"), (Dialect::GitLab, "x-gitlab-event")] {
                let headers = headers(&[(event, "push")]);
                let request = Request { headers: &headers, body: &body, at: At(0) };
                assert!(!proves(Some(&dialect), &request, &secret, true), "{folder}/{file}");
            }
        }
    }
}

/// A delivery that a library has signed.
#[derive(Deserialize)]
struct Vector {
    dialect: String,
    secret: String,
    fixture: String,
    at: i64,
    headers: BTreeMap<String, String>,
}

impl Vector {
    fn proves(&self, body: &[u8], at: i64, secret: &str) -> bool {
        let headers = self.headers.clone().into_iter().collect::<Vec<_>>().into();
        let request = Request { headers: &headers, body, at: At(at) };
        let dialect = Dialect::from_name(&self.dialect).unwrap();
        proves(Some(&dialect), &request, &Secret::new(secret.as_bytes().to_vec()), false)
    }

    fn check(&self) {
        let (name, body) = (format!("{} {}", self.dialect, self.fixture), fixture(&self.fixture));
        assert!(self.proves(&body, self.at, &self.secret), "{name}");
        assert!(!self.proves(&body, self.at, &format!("{}x", self.secret)), "{name}");
        let longer = [&body[..], b" "].concat();
        // Gitee signs no body.
        assert_eq!(self.proves(&longer, self.at, &self.secret), self.dialect == "gitee", "{name}");
        let minutes = |minutes: i64| self.proves(&body, self.at + minutes * 60_000, &self.secret);
        let timed = match self.dialect.as_str() {
            "standard_webhooks" | "gitlab" => [true, true, false, false, false],
            "gitee" => [true, true, true, true, false],
            _ => [true; 5],
        };
        assert_eq!([minutes(5), minutes(-5), minutes(6), minutes(60), minutes(61)], timed, "{name}");
    }
}

#[test]
fn what_others_have_signed_is_proven() {
    let text = fs::read_to_string(tests().join("vectors/signatures.json")).unwrap();
    let vectors: Vec<Vector> = serde_json::from_str(&text).unwrap();
    let dialects: BTreeSet<&str> = vectors.iter().map(|vector| vector.dialect.as_str()).collect();
    assert_eq!(dialects.len(), 9, "{dialects:?}");
    vectors.iter().for_each(Vector::check);
}

/// The same with whatever the libraries do today; where npm or its registry is missing it says so.
#[test]
fn what_others_sign_now_is_proven() {
    let folder = tempfile::tempdir().unwrap();
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--no-audit", "--no-fund", "--fetch-retries=0", "--fetch-timeout=20000"]);
    npm.args(["@octokit/webhooks-methods@6", "standardwebhooks@1"]).arg("--prefix").arg(folder.path());
    if !npm.output().is_ok_and(|output| output.status.success()) {
        eprintln!("left out: npm cannot install the libraries that sign");
        return;
    }
    let script = tests().join("vectors/make.mjs");
    let made = Command::new("node").arg(script).arg(folder.path()).arg("now").output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let vectors: Vec<Vector> = serde_json::from_slice(&made.stdout).unwrap();
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    assert!(vectors.iter().all(|vector| vector.at.abs_diff(now) < 300_000));
    vectors.iter().for_each(Vector::check);
}
