//! GitLab: `X-Gitlab-Event`, and the secret itself in `X-Gitlab-Token`. A system hook names its event
//! in the body.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer};

use super::{Headers, Kind, NotUnderstood, Push, Repository, commit, full_ref, not_deployed, text};
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
            Kind::Push(push(&serde_json::from_slice(body)?)?)
        }
        ("System Hook", other) if !other.is_empty() => not_deployed(&text::line(other, 100)),
        (other, _) => not_deployed(other),
    };
    let sender = any.user_username.or(any.user_name).and_then(|name| text::some_line(&name, 100));
    let repository = any.project.map_or_else(Repository::default, |p| {
        Repository::new(p.path_with_namespace, [p.git_http_url, p.git_ssh_url, p.web_url])
    });
    Ok((kind, sender, repository))
}

fn push(body: &PushBody) -> Result<Push, NotUnderstood> {
    let deleted = body.checkout_sha == Some(None);
    let newest = body.commits.iter().find(|c| c.id == body.after).or(body.commits.last());
    let author = newest.and_then(|c| c.author.as_ref()?.name.as_deref());
    Ok(Push {
        ref_name: full_ref(&body.ref_name)?,
        before: if body.before.is_empty() { None } else { commit(&body.before)? },
        after: commit(&body.after)?.filter(|_| !deleted),
        subject: newest.and_then(|c| text::some_line(&c.message, 200)),
        author: author.and_then(|name| text::some_line(name, 100)),
    })
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
            Kind::Push(push) => push.after.map(|c| c.to_string()),
            other => panic!("{other:?}"),
        };
        assert_eq!(after(""), Some("a".repeat(40)));
        assert_eq!(after(&format!(r#", "checkout_sha": "{}""#, "b".repeat(40))), Some("a".repeat(40)));
        assert_eq!(after(r#", "checkout_sha": null"#), None);
    }

    #[test]
    fn a_system_hook_names_its_event_in_the_body() {
        assert!(matches!(pushed("System Hook", r#", "event_name": "push""#), Kind::Push(_)));
        assert!(matches!(pushed("System Hook", r#", "object_kind": "tag_push""#), Kind::Push(_)));
        let why = "event `repository_update` is not deployed".to_owned();
        assert_eq!(pushed("System Hook", r#", "event_name": "repository_update""#), Kind::Other { why });
        let why = "event `Merge Request Hook` is not deployed".to_owned();
        assert_eq!(pushed("Merge Request Hook", ""), Kind::Other { why });
    }
}
