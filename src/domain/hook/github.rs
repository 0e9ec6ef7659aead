//! GitHub: `X-GitHub-Event`, `X-Hub-Signature-256` over the raw body, JSON or a form whose field
//! `payload` holds the JSON. The older SHA-1 signature proves nothing here.

use std::borrow::Cow;

use serde::Deserialize;

use super::{
    Change, Flaw, Forge, Head, Kind, NotUnderstood, Proof, Repository, Request, Said, What, branch_ref, commit, form,
    full_ref, not_deployed, proof, tag_ref, text,
};

pub(super) const FORGE: Forge = Forge { event: "x-github-event", ids: &["x-github-delivery"], proof: prove, parse };

const SIGNATURE: &str = "x-hub-signature-256";
/// By SHA-1, which GitHub sends beside the other for old receivers.
const WEAK: &str = "x-hub-signature";

fn prove<'a>(request: &Request<'a>) -> Result<Proof<'a>, Flaw> {
    if request.headers.has(WEAK) && !request.headers.has(SIGNATURE) {
        let fix = "have X-Hub-Signature-256 sent too, as GitHub does, and look whether a proxy drops it";
        return Err(Flaw(format!("it is signed by SHA-1 alone (X-Hub-Signature), which proves nothing: {fix}")));
    }
    proof::sha256_of(request, SIGNATURE, "sha256=", request.body)
}

/// What every event has. Nothing else of a body is kept: most of it is never needed.
#[derive(Deserialize)]
struct Any {
    #[serde(default)]
    repository: Option<RepositoryField>,
    #[serde(default)]
    sender: Option<Sender>,
}

#[derive(Deserialize)]
struct PushBody<'a> {
    #[serde(rename = "ref", borrow)]
    ref_name: Cow<'a, str>,
    #[serde(borrow)]
    after: Cow<'a, str>,
    #[serde(default, borrow)]
    before: Cow<'a, str>,
    #[serde(default)]
    deleted: bool,
    #[serde(default, borrow)]
    head_commit: Option<Commit<'a>>,
    /// Of any event; what comes most is read once.
    #[serde(default)]
    repository: Option<RepositoryField>,
    #[serde(default)]
    sender: Option<Sender>,
}

#[derive(Deserialize)]
struct ReleaseBody<'a> {
    #[serde(borrow)]
    action: Cow<'a, str>,
    release: Release,
}

#[derive(Deserialize)]
struct Release {
    tag_name: String,
    #[serde(default)]
    name: Option<String>,
}

#[derive(Deserialize)]
struct WorkflowBody<'a> {
    #[serde(borrow)]
    action: Cow<'a, str>,
    #[serde(borrow)]
    workflow_run: WorkflowRun<'a>,
    #[serde(default)]
    repository: Option<RepositoryId>,
}

#[derive(Deserialize)]
struct WorkflowRun<'a> {
    #[serde(default)]
    conclusion: Option<String>,
    #[serde(default)]
    head_branch: Option<String>,
    #[serde(borrow)]
    head_sha: Cow<'a, str>,
    #[serde(default, borrow)]
    head_commit: Option<Commit<'a>>,
    #[serde(default)]
    head_repository: Option<RepositoryId>,
}

#[derive(Deserialize)]
struct RepositoryId {
    #[serde(default)]
    id: Option<u64>,
}

#[derive(Deserialize)]
struct Commit<'a> {
    #[serde(default, borrow)]
    message: Cow<'a, str>,
    #[serde(default)]
    author: Option<Author>,
}

#[derive(Deserialize)]
struct Author {
    #[serde(default)]
    name: Option<String>,
}

#[derive(Deserialize)]
struct Sender {
    #[serde(default)]
    login: Option<String>,
}

#[derive(Deserialize)]
struct RepositoryField {
    #[serde(default)]
    full_name: Option<String>,
    #[serde(default)]
    clone_url: Option<String>,
    #[serde(default)]
    ssh_url: Option<String>,
    #[serde(default)]
    git_url: Option<String>,
    #[serde(default)]
    html_url: Option<String>,
}

fn parse(head: &Head, body: &[u8]) -> Result<Said, NotUnderstood> {
    read(&head.event, &form::payload(head.form, body)?)
}

/// The bodies are those of other forges too.
pub(super) fn read(event: &str, json: &[u8]) -> Result<Said, NotUnderstood> {
    if event == "push" {
        // Looked at once, and not each text by itself; what is no text may still be JSON where nobody looks.
        let body: PushBody = match std::str::from_utf8(json) {
            Ok(text) => serde_json::from_str(text)?,
            Err(_) => serde_json::from_slice(json)?,
        };
        return Ok(said(Kind::Changes(vec![push(&body)?]), body.repository, body.sender));
    }
    let any: Any = serde_json::from_slice(json)?;
    let kind = match event {
        "ping" => Kind::Ping,
        "release" => release(&serde_json::from_slice(json)?)?,
        "workflow_run" => workflow_run(serde_json::from_slice(json)?)?,
        other => not_deployed(other),
    };
    Ok(said(kind, any.repository, any.sender))
}

fn said(kind: Kind, repository: Option<RepositoryField>, sender: Option<Sender>) -> Said {
    let sender = sender.and_then(|s| s.login).and_then(|login| text::some_line(&login, 100));
    let repository = repository.map_or_else(Repository::default, |r| {
        Repository::new(r.full_name, [r.clone_url, r.ssh_url, r.git_url, r.html_url])
    });
    Said { sender, repository, ..Said::of(kind) }
}

fn push(body: &PushBody) -> Result<Change, NotUnderstood> {
    let after = commit(&body.after)?.filter(|_| !body.deleted);
    Ok(Change {
        what: What::Push,
        ref_name: full_ref(&body.ref_name)?,
        before: if body.before.is_empty() { None } else { commit(&body.before)? },
        deleted: after.is_none(),
        after,
        subject: subject(body.head_commit.as_ref()),
        author: author(body.head_commit.as_ref()),
    })
}

fn subject(commit: Option<&Commit>) -> Option<String> {
    commit.and_then(|commit| text::some_line(&commit.message, 200))
}

fn author(commit: Option<&Commit>) -> Option<String> {
    commit.and_then(|commit| text::some_line(commit.author.as_ref()?.name.as_deref()?, 100))
}

/// A release says which tag it is of, but not which commit that is.
fn release(body: &ReleaseBody) -> Result<Kind, NotUnderstood> {
    if body.action != "published" {
        return Ok(not_deployed(&format!("release {}", text::line(&body.action, 100))));
    }
    let ref_name = tag_ref(&body.release.tag_name)?;
    let subject = body.release.name.as_deref().and_then(|name| text::some_line(name, 200));
    let what = What::Release;
    let change = Change { what, ref_name, before: None, after: None, deleted: false, subject, author: None };
    Ok(Kind::Changes(vec![change]))
}

/// Each workflow of a commit has a run of its own, and each that succeeds counts.
fn workflow_run(body: WorkflowBody) -> Result<Kind, NotUnderstood> {
    let WorkflowBody { action, workflow_run: run, repository } = body;
    let why = |why: String| Ok(Kind::Other { why });
    if action != "completed" {
        return Ok(not_deployed(&format!("workflow_run {}", text::line(&action, 100))));
    }
    if run.conclusion.as_deref() != Some("success") {
        let conclusion = text::line(run.conclusion.as_deref().unwrap_or("nothing"), 100);
        return why(format!("the workflow ended with `{conclusion}`"));
    }
    // A branch of a fork may have any name.
    let of = |repository: &Option<RepositoryId>| repository.as_ref().and_then(|repository| repository.id);
    if of(&run.head_repository).is_some_and(|id| Some(id) != of(&repository)) {
        return why("the workflow ran for another repository, a fork".to_owned());
    }
    let Some(branch) = &run.head_branch else { return why("the workflow ran for no branch".to_owned()) };
    Ok(Kind::Changes(vec![Change {
        what: What::Pipeline,
        ref_name: branch_ref(branch)?,
        before: None,
        after: commit(&run.head_sha)?,
        deleted: false,
        subject: subject(run.head_commit.as_ref()),
        author: author(run.head_commit.as_ref()),
    }]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{
        hook::{Dialect, Headers, proves, why_unproven},
        model::{At, Secret},
    };

    fn shows(headers: &Headers<'_>, body: &[u8], secret: &Secret) -> bool {
        proves(Some(&Dialect::GitHub), &Request { headers, body, at: At(0) }, secret, false)
    }

    fn read_as(event: &str, form: bool, body: &[u8]) -> Result<Said, NotUnderstood> {
        parse(&Head { event: event.to_owned(), sender_id: None, form }, body)
    }

    fn change(kind: Kind) -> Change {
        match kind {
            Kind::Changes(mut changes) if changes.len() == 1 => changes.remove(0),
            other => panic!("{other:?}"),
        }
    }

    fn headers(pairs: &[(&str, &str)]) -> Headers<'static> {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect::<Vec<_>>().into()
    }

    fn sign(body: &[u8], secret: &[u8]) -> String {
        use hmac::{Hmac, KeyInit, Mac};
        let mac = Hmac::<sha2::Sha256>::new_from_slice(secret).unwrap().chain_update(body).finalize().into_bytes();
        format!("sha256={}", mac.iter().map(|b| format!("{b:02x}")).collect::<String>())
    }

    /// The example of GitHub's documentation, "Testing the webhook payload validation".
    #[test]
    fn the_documented_signature_proves() {
        let secret = Secret::new(b"It's a Secret to Everybody".to_vec());
        let good = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let proves = |name: &str, value: &str| shows(&headers(&[(name, value)]), b"Hello, World!", &secret);
        assert!(proves("x-hub-signature-256", good));
        assert!(proves("x-hub-signature-256", &good.replace('a', "A").replace("shA", "sha")));
        for bad in ["", "sha256=", &good[..70], &good[7..], &format!("{good}0"), &good.replace('e', "f")] {
            assert!(!proves("x-hub-signature-256", bad), "{bad}");
        }
        assert!(!proves("x-hub-signature", good));
        assert!(!shows(&headers(&[]), b"Hello, World!", &secret));
    }

    proptest! {
        #[test]
        fn only_the_exact_bytes_and_secret_prove(
            body: Vec<u8>, secret in prop::collection::vec(any::<u8>(), 1..80), at: prop::sample::Index, bit in 0u8..8
        ) {
            prop_assume!(secret.last() != Some(&b'\n'));
            let signed = headers(&[("x-hub-signature-256", &sign(&body, &secret))]);
            let right = Secret::new(secret.clone());
            prop_assert!(shows(&signed, &body, &right));
            let mut longer = body.clone();
            longer.push(0);
            prop_assert!(!shows(&signed, &longer, &right));
            if !body.is_empty() {
                let mut other = body.clone();
                other[at.index(body.len())] ^= 1 << bit;
                prop_assert!(!shows(&signed, &other, &right));
            }
            let mut wrong = secret.clone();
            wrong[at.index(secret.len())] ^= 1 << bit;
            // Trailing zeros are HMAC's own padding, a trailing newline is not part of a secret.
            prop_assume!(wrong.last() != Some(&0) && secret.last() != Some(&0) && wrong.last() != Some(&b'\n'));
            prop_assert!(!shows(&signed, &body, &Secret::new(wrong)));
        }
    }

    #[test]
    fn why_nothing_fits_is_said_with_its_fix() {
        let why = |pairs: &[(&str, &str)]| {
            let headers = headers(pairs);
            why_unproven(Some(&Dialect::GitHub), &Request { headers: &headers, body: b"", at: At(0) })
        };
        assert!(why(&[("x-hub-signature", "sha1=aa")]).contains("SHA-1 alone"));
        assert!(why(&[]).contains("no X-Hub-Signature-256: give the webhook"));
        assert!(why(&[(SIGNATURE, "")]).contains("empty or comes twice"));
        assert!(why(&[(SIGNATURE, "abc")]).contains("is not `sha256=` and 64 hex digits"));
        assert_eq!(why(&[(SIGNATURE, &format!("sha256={}", "a".repeat(64)))]), "no secret fits");
    }

    #[test]
    fn a_push_says_where_it_points() {
        let body = |after: &str, deleted: bool| {
            format!(r#"{{"ref": "refs/heads/a", "after": "{after}", "deleted": {deleted}, "head_commit": null}}"#)
        };
        let push = |body: &str| change(read_as("push", false, body.as_bytes()).unwrap().kind);
        assert_eq!(push(&body(&"a".repeat(40), false)).after.unwrap().as_str(), "a".repeat(40));
        assert_eq!(push(&body(&"a".repeat(40), true)).after, None);
        assert_eq!(push(&body(&"0".repeat(40), false)).after, None);
    }

    #[test]
    fn a_published_release_is_of_its_tag() {
        let release = |action: &str| {
            let body = format!(r#"{{"action": "{action}", "release": {{"tag_name": "v1/x", "name": "One"}}}}"#);
            read_as("release", false, body.as_bytes()).unwrap().kind
        };
        let change = change(release("published"));
        assert_eq!((change.what, change.ref_name.as_str()), (What::Release, "refs/tags/v1/x"));
        assert_eq!((change.after, change.deleted, change.subject.as_deref()), (None, false, Some("One")));
        for action in ["created", "edited", "deleted", "released", "unpublished"] {
            let why = format!("event `release {action}` is not deployed");
            assert_eq!(release(action), Kind::Other { why });
        }
    }

    #[test]
    fn a_workflow_counts_when_it_succeeds_for_a_branch_of_the_repository() {
        let run = |action: &str, run: &str| {
            let sha = "a".repeat(40);
            let body = format!(
                r#"{{"action": "{action}", "repository": {{"id": 7}}, "workflow_run": {{"head_sha": "{sha}", {run}}}}}"#
            );
            read_as("workflow_run", false, body.as_bytes()).unwrap().kind
        };
        let good = r#""conclusion": "success", "head_branch": "main", "head_repository": {"id": 7}"#;
        let change = change(run("completed", good));
        assert_eq!((change.what, change.ref_name.as_str()), (What::Pipeline, "refs/heads/main"));
        assert_eq!(change.after.unwrap().as_str(), "a".repeat(40));
        for (action, bad) in [
            ("requested", good.to_owned()),
            ("completed", good.replace("success", "failure")),
            ("completed", good.replace("\"success\"", "null")),
            ("completed", good.replace("\"id\": 7", "\"id\": 8")),
            ("completed", good.replace("\"main\"", "null")),
        ] {
            assert!(matches!(run(action, &bad), Kind::Other { .. }), "{action} {bad}");
        }
    }

    #[test]
    fn what_is_broken_or_incomplete_is_said_in_a_line() {
        for (event, body) in [
            ("push", "{nonsense"),
            ("push", "{}"),
            ("push", r#"{"ref": "refs/heads/a"}"#),
            ("push", r#"{"ref": "refs/heads/a", "after": 5}"#),
            ("push", r#"{"ref": "refs/heads/a", "after": "HEAD"}"#),
            ("release", r#"{"action": "published"}"#),
            ("workflow_run", r#"{"action": "completed"}"#),
            ("ping", ""),
            ("issues", "5"),
        ] {
            let why = read_as(event, false, body.as_bytes()).err().unwrap().to_string();
            assert!(!why.contains('\n') && why.len() < 300, "{why}");
        }
        assert!(read_as("ping", true, b"{}").err().unwrap().to_string().contains("payload"));
        assert_eq!(read_as("ping", true, b"payload=%7B%7D").unwrap().kind, Kind::Ping);
    }
}
