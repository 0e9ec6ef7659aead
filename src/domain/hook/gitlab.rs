//! GitLab: `X-Gitlab-Event`, and the secret itself in `X-Gitlab-Token`; or, where the secret is a
//! signing token (`whsec_…`), a signature as Standard Webhooks has it, and then the other counts for
//! nothing. A system hook names its event in the body.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer};

use super::{
    Change, Flaw, Forge, Head, Kind, NotUnderstood, Proof, Repository, Request, Said, What, branch_ref, commit,
    full_ref, not_deployed, proof,
    standard::{self, Signed},
    tag_ref, text,
};
use crate::domain::model::Secret;

pub(super) const FORGE: Forge = Forge {
    event: "x-gitlab-event",
    ids: &["idempotency-key", standard::ID, "x-gitlab-event-uuid"],
    proof: prove,
    parse,
};

const TOKEN: &str = "x-gitlab-token";

fn prove<'a>(request: &Request<'a>) -> Result<Proof<'a>, Flaw> {
    let claims = request.headers.has(standard::SIGNATURE);
    let (token, signed, doubt) = match (proof::required(request, TOKEN), Signed::of(request)) {
        (Err(unnamed), Err(unsigned)) => return Err(if claims { unsigned } else { unnamed }),
        (token, Ok(signed)) => (token.ok(), Some(signed), None),
        (token, Err(unsigned)) => (token.ok(), None, claims.then_some(unsigned)),
    };
    let fits = move |secret: &Secret| match &signed {
        _ if !standard::is_signing(secret) => token.is_some_and(|token| secret.matches(token.as_bytes())),
        Some(signed) => standard::keys(secret).iter().any(|key| signed.fits(key)),
        None => false,
    };
    Ok(Proof::new(fits).doubted(doubt))
}

/// What every event has. Nothing else of a body is kept: most of it is never needed.
#[derive(Deserialize)]
struct Any {
    #[serde(default)]
    object_kind: Option<String>,
    #[serde(default)]
    event_name: Option<String>,
    #[serde(default)]
    user_username: Option<String>,
    #[serde(default)]
    user_name: Option<String>,
    #[serde(default)]
    project: Option<Project>,
}

#[derive(Deserialize)]
struct Project {
    #[serde(default)]
    path_with_namespace: Option<String>,
    #[serde(default)]
    git_http_url: Option<String>,
    #[serde(default)]
    git_ssh_url: Option<String>,
    #[serde(default)]
    web_url: Option<String>,
}

#[derive(Deserialize)]
struct PushBody<'a> {
    #[serde(rename = "ref", borrow)]
    ref_name: Cow<'a, str>,
    #[serde(borrow)]
    after: Cow<'a, str>,
    #[serde(default, borrow)]
    before: Cow<'a, str>,
    /// Outer `None`: not sent. Inner `None`: the ref was deleted.
    #[serde(default, deserialize_with = "sent")]
    checkout_sha: Option<Option<String>>,
    /// The newest 20; oldest first.
    #[serde(default, borrow)]
    commits: Vec<Commit<'a>>,
}

#[derive(Deserialize)]
struct ReleaseBody<'a> {
    #[serde(borrow)]
    action: Cow<'a, str>,
    #[serde(borrow)]
    tag: Cow<'a, str>,
    #[serde(default, borrow)]
    commit: Option<Commit<'a>>,
}

#[derive(Deserialize)]
struct PipelineBody<'a> {
    #[serde(borrow)]
    object_attributes: Pipeline<'a>,
    #[serde(default, borrow)]
    commit: Option<Commit<'a>>,
}

#[derive(Deserialize)]
struct Pipeline<'a> {
    #[serde(rename = "ref", borrow)]
    ref_name: Cow<'a, str>,
    #[serde(default)]
    tag: bool,
    #[serde(borrow)]
    sha: Cow<'a, str>,
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(default)]
    source: Option<String>,
}

fn sent<'de, D: Deserializer<'de>>(de: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(de).map(Some)
}

#[derive(Deserialize)]
struct Commit<'a> {
    #[serde(default, borrow)]
    id: Cow<'a, str>,
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

fn parse(head: &Head, body: &[u8]) -> Result<Said, NotUnderstood> {
    let any: Any = serde_json::from_slice(body)?;
    let said = any.object_kind.as_deref().or(any.event_name.as_deref()).unwrap_or_default();
    let kind = match (head.event.as_str(), said) {
        ("Push Hook" | "Tag Push Hook", _) | ("System Hook", "push" | "tag_push") => {
            Kind::Changes(vec![push(&serde_json::from_slice(body)?)?])
        }
        ("Release Hook", _) => release(&serde_json::from_slice(body)?)?,
        ("Pipeline Hook", _) => pipeline(&serde_json::from_slice(body)?)?,
        ("System Hook", other) if !other.is_empty() => not_deployed(&text::line(other, 100)),
        (other, _) => not_deployed(other),
    };
    let sender = any.user_username.or(any.user_name).and_then(|name| text::some_line(&name, 100));
    let repository = any.project.map_or_else(Repository::default, |p| {
        Repository::new(p.path_with_namespace, [p.git_http_url, p.git_ssh_url, p.web_url])
    });
    Ok(Said { sender, repository, ..Said::of(kind) })
}

fn push(body: &PushBody) -> Result<Change, NotUnderstood> {
    let newest = body.commits.iter().find(|c| c.id == body.after).or(body.commits.last());
    let after = commit(&body.after)?.filter(|_| body.checkout_sha != Some(None));
    Ok(Change {
        what: What::Push,
        ref_name: full_ref(&body.ref_name)?,
        before: if body.before.is_empty() { None } else { commit(&body.before)? },
        deleted: after.is_none(),
        after,
        subject: subject(newest),
        author: author(newest),
    })
}

fn subject(commit: Option<&Commit>) -> Option<String> {
    commit.and_then(|commit| text::some_line(&commit.message, 200))
}

fn author(commit: Option<&Commit>) -> Option<String> {
    commit.and_then(|commit| text::some_line(commit.author.as_ref()?.name.as_deref()?, 100))
}

fn release(body: &ReleaseBody) -> Result<Kind, NotUnderstood> {
    if body.action != "create" {
        return Ok(not_deployed(&format!("Release Hook {}", text::line(&body.action, 100))));
    }
    let head = body.commit.as_ref();
    Ok(Kind::Changes(vec![Change {
        what: What::Release,
        ref_name: tag_ref(&body.tag)?,
        before: None,
        after: head.map(|head| commit(&head.id)).transpose()?.flatten(),
        deleted: false,
        subject: subject(head),
        author: author(head),
    }]))
}

/// A pipeline of a merge request is of what may come of it, one that another started a part of that.
fn pipeline(body: &PipelineBody) -> Result<Kind, NotUnderstood> {
    let run = &body.object_attributes;
    let why = |why: String| Ok(Kind::Other { why });
    if run.status != "success" {
        return why(format!("the pipeline is `{}`", text::line(&run.status, 100)));
    }
    if let Some(source) = ["merge_request_event", "external_pull_request_event", "parent_pipeline"]
        .into_iter()
        .find(|source| run.source.as_deref() == Some(*source))
    {
        return why(format!("the pipeline is one of `{source}`"));
    }
    let head = body.commit.as_ref();
    Ok(Kind::Changes(vec![Change {
        what: What::Pipeline,
        ref_name: if run.tag { tag_ref(&run.ref_name)? } else { branch_ref(&run.ref_name)? },
        before: None,
        after: commit(&run.sha)?,
        deleted: false,
        subject: subject(head),
        author: author(head),
    }]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        hook::{Dialect, Headers, proves, why_unproven},
        model::At,
    };

    fn headers(pairs: &[(&str, &str)]) -> Headers<'static> {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect::<Vec<_>>().into()
    }

    fn shows(pairs: &[(&str, &str)], body: &str, at: i64, secret: &str) -> bool {
        let headers = headers(pairs);
        let request = Request { headers: &headers, body: body.as_bytes(), at: At(at) };
        proves(Some(&Dialect::GitLab), &request, &Secret::new(secret.as_bytes().to_vec()), true)
    }

    #[test]
    fn the_token_is_the_secret() {
        let secret = "s3cret mit Ümlaut";
        let proves = |token: &str| shows(&[(TOKEN, token)], "anything", 0, secret);
        assert!(proves("s3cret mit Ümlaut"));
        for bad in ["", "s3cret", "s3cret mit Ümlaut ", "S3cret mit Ümlaut"] {
            assert!(!proves(bad), "{bad}");
        }
        assert!(!shows(&[], "anything", 0, secret));
    }

    #[test]
    fn a_signing_token_decides_where_it_is_the_secret() {
        // Of the specification of Standard Webhooks.
        let (secret, body, at) =
            ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "{\"test\": 2432232314}", 1_614_265_330_000);
        let good = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let signed = [
            ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
            ("webhook-timestamp", "1614265330"),
            ("webhook-signature", good),
        ];
        let with_token = |token: &'static str| [signed[0], signed[1], signed[2], (TOKEN, token)];
        assert!(shows(&signed, body, at, secret));
        assert!(shows(&with_token("other"), body, at, secret));
        assert!(!shows(&[(TOKEN, secret)], body, at, secret));
        assert!(!shows(&with_token("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), "{}", at, secret));
        // While it is rotated to, the token is good for the secret that it is.
        assert!(shows(&with_token("plain"), body, at, "plain"));
        let late = at + 301_000;
        assert!(!shows(&with_token("other"), body, late, secret));
        let headers = headers(&with_token("other"));
        let request = Request { headers: &headers, body: body.as_bytes(), at: At(late) };
        assert!(why_unproven(Some(&Dialect::GitLab), &request).contains("at most 5m"));
        let why = |pairs: &[(&str, &str)]| {
            let headers = self::headers(pairs);
            why_unproven(Some(&Dialect::GitLab), &Request { headers: &headers, body: b"", at: At(0) })
        };
        assert!(why(&[]).contains("no X-Gitlab-Token"));
        assert!(why(&[("webhook-signature", "v1,x")]).contains("no Webhook-Id"));
    }

    fn read(event: &str, body: &str) -> Kind {
        parse(&Head { event: event.to_owned(), sender_id: None, form: false }, body.as_bytes()).unwrap().kind
    }

    fn change(kind: Kind) -> Option<Change> {
        match kind {
            Kind::Changes(mut changes) if changes.len() == 1 => changes.pop(),
            _ => None,
        }
    }

    fn pushed(event: &str, rest: &str) -> Kind {
        let body = format!(r#"{{"ref": "refs/heads/a", "after": "{}"{rest}}}"#, "a".repeat(40));
        read(event, &body)
    }

    #[test]
    fn a_null_checkout_is_a_deletion() {
        let after = |rest: &str| change(pushed("Push Hook", rest)).unwrap().after.map(|c| c.to_string());
        assert_eq!(after(""), Some("a".repeat(40)));
        assert_eq!(after(&format!(r#", "checkout_sha": "{}""#, "b".repeat(40))), Some("a".repeat(40)));
        assert_eq!(after(r#", "checkout_sha": null"#), None);
    }

    #[test]
    fn a_system_hook_names_its_event_in_the_body() {
        assert!(matches!(pushed("System Hook", r#", "event_name": "push""#), Kind::Changes(_)));
        assert!(matches!(pushed("System Hook", r#", "object_kind": "tag_push""#), Kind::Changes(_)));
        let why = "event `repository_update` is not deployed".to_owned();
        assert_eq!(pushed("System Hook", r#", "event_name": "repository_update""#), Kind::Other { why });
        let why = "event `Merge Request Hook` is not deployed".to_owned();
        assert_eq!(pushed("Merge Request Hook", ""), Kind::Other { why });
    }

    #[test]
    fn a_release_is_of_its_tag_and_commit() {
        let release = |action: &str| {
            let commit = format!(r#"{{"id": "{}", "message": "One", "author": {{"name": "Ann"}}}}"#, "a".repeat(40));
            let body = format!(r#"{{"action": "{action}", "tag": "v1", "commit": {commit}}}"#);
            read("Release Hook", &body)
        };
        let change = change(release("create")).unwrap();
        assert_eq!((change.what, change.ref_name.as_str()), (What::Release, "refs/tags/v1"));
        assert_eq!(change.after.unwrap().as_str(), "a".repeat(40));
        for action in ["update", "delete"] {
            assert!(matches!(release(action), Kind::Other { .. }), "{action}");
        }
    }

    #[test]
    fn a_pipeline_counts_when_it_succeeds_for_a_ref() {
        let pipeline = |rest: &str| {
            let sha = "b".repeat(40);
            let body = format!(r#"{{"object_attributes": {{"ref": "main", "sha": "{sha}", {rest}}}}}"#);
            read("Pipeline Hook", &body)
        };
        let ref_name = |rest: &str| change(pipeline(rest)).map(|change| (change.what, change.ref_name));
        let good = r#""status": "success", "source": "push", "tag": false"#;
        assert_eq!(ref_name(good), Some((What::Pipeline, "refs/heads/main".to_owned())));
        assert_eq!(ref_name(&good.replace("false", "true")), Some((What::Pipeline, "refs/tags/main".to_owned())));
        for (from, to) in [("success", "failed"), ("success", "running"), ("push", "merge_request_event")] {
            assert_eq!(ref_name(&good.replace(from, to)), None, "{to}");
        }
    }
}
