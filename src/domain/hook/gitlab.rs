//! GitLab: `X-Gitlab-Event`, and the secret itself in `X-Gitlab-Token`. A system hook names its event
//! in the body.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer};

use super::{
    Change, Headers, Kind, NotUnderstood, Repository, What, branch_ref, commit, full_ref, not_deployed, tag_ref, text,
};
use crate::domain::model::Secret;

pub(super) const EVENT: &str = "x-gitlab-event";

pub(super) fn prove(headers: &Headers, secret: &Secret) -> bool {
    headers.get("x-gitlab-token").is_some_and(|token| secret.matches(token.as_bytes()))
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

pub(super) fn parse(event: &str, body: &[u8]) -> Result<(Kind, Option<String>, Repository), NotUnderstood> {
    let any: Any = serde_json::from_slice(body)?;
    let said = any.object_kind.as_deref().or(any.event_name.as_deref()).unwrap_or_default();
    let kind = match (event, said) {
        ("Push Hook" | "Tag Push Hook", _) | ("System Hook", "push" | "tag_push") => {
            Kind::Change(push(&serde_json::from_slice(body)?)?)
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
    Ok((kind, sender, repository))
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
    Ok(Kind::Change(Change {
        what: What::Release,
        ref_name: tag_ref(&body.tag)?,
        before: None,
        after: head.map(|head| commit(&head.id)).transpose()?.flatten(),
        deleted: false,
        subject: subject(head),
        author: author(head),
    }))
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
    Ok(Kind::Change(Change {
        what: What::Pipeline,
        ref_name: if run.tag { tag_ref(&run.ref_name)? } else { branch_ref(&run.ref_name)? },
        before: None,
        after: commit(&run.sha)?,
        deleted: false,
        subject: subject(head),
        author: author(head),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::hook::{Dialect, prove};

    #[test]
    fn the_token_is_the_secret() {
        let secret = Secret::new("s3cret mit Ümlaut".as_bytes().to_vec());
        let proves = |token: &str| {
            let headers = vec![("x-gitlab-token".to_owned(), token.to_owned())].into();
            prove(Dialect::GitLab, &headers, b"anything", &secret)
        };
        assert!(proves("s3cret mit Ümlaut"));
        for bad in ["", "s3cret", "s3cret mit Ümlaut ", "S3cret mit Ümlaut"] {
            assert!(!proves(bad), "{bad}");
        }
        assert!(!prove(Dialect::GitLab, &Headers::default(), b"anything", &secret));
    }

    fn pushed(event: &str, rest: &str) -> Kind {
        let body = format!(r#"{{"ref": "refs/heads/a", "after": "{}"{rest}}}"#, "a".repeat(40));
        parse(event, body.as_bytes()).unwrap().0
    }

    #[test]
    fn a_null_checkout_is_a_deletion() {
        let after = |rest: &str| match pushed("Push Hook", rest) {
            Kind::Change(push) => push.after.map(|c| c.to_string()),
            other => panic!("{other:?}"),
        };
        assert_eq!(after(""), Some("a".repeat(40)));
        assert_eq!(after(&format!(r#", "checkout_sha": "{}""#, "b".repeat(40))), Some("a".repeat(40)));
        assert_eq!(after(r#", "checkout_sha": null"#), None);
    }

    #[test]
    fn a_system_hook_names_its_event_in_the_body() {
        assert!(matches!(pushed("System Hook", r#", "event_name": "push""#), Kind::Change(_)));
        assert!(matches!(pushed("System Hook", r#", "object_kind": "tag_push""#), Kind::Change(_)));
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
            parse("Release Hook", body.as_bytes()).unwrap().0
        };
        let Kind::Change(change) = release("create") else { panic!() };
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
            parse("Pipeline Hook", body.as_bytes()).unwrap().0
        };
        let ref_name = |rest: &str| match pipeline(rest) {
            Kind::Change(change) => Some((change.what, change.ref_name)),
            _ => None,
        };
        let good = r#""status": "success", "source": "push", "tag": false"#;
        assert_eq!(ref_name(good), Some((What::Pipeline, "refs/heads/main".to_owned())));
        assert_eq!(ref_name(&good.replace("false", "true")), Some((What::Pipeline, "refs/tags/main".to_owned())));
        for (from, to) in [("success", "failed"), ("success", "running"), ("push", "merge_request_event")] {
            assert_eq!(ref_name(&good.replace(from, to)), None, "{to}");
        }
    }
}
