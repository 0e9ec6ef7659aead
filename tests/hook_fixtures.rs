//! Real deliveries of the forges, byte for byte as they were recorded (`tests/fixtures`): those of
//! GitHub and GitLab are understood, those of any other forge are strangers.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{fs, path::Path};

use everhook::domain::{
    hook::{Dialect, Headers, Kind, Parsed, What, parse, prove, recognise, same_repository},
    model::Secret,
};

fn fixture(path: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)).unwrap()
}

fn names(folder: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(folder);
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(!names.is_empty());
    names
}

fn headers(pairs: &[(&str, &str)]) -> Headers {
    pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect::<Vec<_>>().into()
}

fn github(event: &str, file: &str) -> Parsed {
    let headers =
        headers(&[("x-github-event", event), ("x-github-delivery", "id-1"), ("content-type", "application/json")]);
    assert_eq!(recognise(&headers), Some(Dialect::GitHub));
    parse(Dialect::GitHub, &headers, &fixture(&format!("github/{file}"))).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn gitlab(event: &str, file: &str) -> Parsed {
    let headers = headers(&[("x-gitlab-event", event), ("idempotency-key", "id-2")]);
    assert_eq!(recognise(&headers), Some(Dialect::GitLab));
    parse(Dialect::GitLab, &headers, &fixture(&format!("gitlab/{file}"))).unwrap_or_else(|e| panic!("{file}: {e}"))
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
            ("ping", Kind::Ping) | ("push", Kind::Change(_)) => {}
            ("release", Kind::Change(release)) => {
                assert_eq!((release.what, release.ref_name.as_str()), (What::Release, "refs/tags/0.0.1"));
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
    let push = |file: &str| match github("push", file).kind {
        Kind::Change(push) => push,
        kind => panic!("{file}: {kind:?}"),
    };
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

#[test]
fn a_form_holds_the_same_delivery() {
    for file in names("github") {
        let event = file.split('.').next().unwrap();
        let json = fixture(&format!("github/{file}"));
        let encoded: String = json
            .iter()
            .map(|b| match b {
                b' ' => "+".into(),
                b if b.is_ascii_alphanumeric() => char::from(*b).to_string(),
                b => format!("%{b:02X}"),
            })
            .collect();
        let form = headers(&[
            ("x-github-event", event),
            ("x-github-delivery", "id-1"),
            ("content-type", "application/x-www-form-urlencoded"),
        ]);
        let parsed = parse(Dialect::GitHub, &form, format!("payload={encoded}").as_bytes()).unwrap();
        assert_eq!(parsed, github(event, &file));
    }
}

#[test]
fn every_delivery_of_gitlab_is_understood() {
    assert_eq!(names("gitlab").len(), 5);
    let push = |event: &str, file: &str| match gitlab(event, file).kind {
        Kind::Change(push) => push,
        kind => panic!("{file}: {kind:?}"),
    };
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
fn any_other_forge_is_a_stranger() {
    let secret = Secret::new(b"s3cret".to_vec());
    for (folder, sent) in [
        ("gitea", &[("x-gitea-event", "push"), ("x-gogs-event", "push"), ("x-github-event", "push")][..]),
        ("gitea", &[("x-forgejo-event", "push"), ("x-gitea-event", "push"), ("x-github-event", "push")]),
        ("gogs", &[("x-gogs-event", "push")]),
        ("bitbucket", &[("x-event-key", "repo:push")]),
        ("bitbucket-server", &[("x-event-key", "repo:refs_changed")]),
        ("azuredevops", &[("content-type", "application/json")]),
    ] {
        for file in names(folder) {
            assert_eq!(recognise(&headers(sent)), None, "{folder}/{file}");
            // Sent under a known forge's name it still has to prove itself.
            let body = fixture(&format!("{folder}/{file}"));
            assert!(!prove(Dialect::GitHub, &headers(&[("x-github-event", "push")]), &body, &secret));
            assert!(!prove(Dialect::GitLab, &headers(&[("x-gitlab-event", "Push Hook")]), &body, &secret));
        }
    }
}
