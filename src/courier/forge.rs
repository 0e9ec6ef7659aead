//! How each forge is told a commit's status.
//!
//! - GitHub: docs.github.com/rest/commits/statuses, "Create a commit status"
//! - GitLab: docs.gitlab.com/api/commits, "Set commit pipeline status"
//! - Gitea and Forgejo: `/api/swagger`, `repoCreateStatus`

use http_body_util::Full;
use hyper::{
    Method, Request,
    body::Bytes,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT},
};
use serde::Serialize;

use crate::domain::{
    api::{Post, StatusState},
    config::Forge,
    model::Secret,
};

/// GitHub takes no longer description.
const LONGEST: usize = 140;
/// GitHub answers no client without a name.
const NAME: &str = concat!("everhook/", env!("CARGO_PKG_VERSION"));

#[derive(Serialize)]
struct GitHub<'a> {
    state: &'a str,
    context: &'a str,
    description: &'a str,
}

#[derive(Serialize)]
struct GitLab<'a> {
    state: &'a str,
    name: &'a str,
    description: &'a str,
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    ref_name: Option<&'a str>,
}

/// The request that tells this status.
///
/// # Errors
/// When the address or the token cannot be sent; names which, and nothing of the token.
pub(super) fn request(post: &Post, token: &Secret) -> Result<Request<Full<Bytes>>, String> {
    let Post { forge, api, project, status, .. } = post;
    let (path, body) = match forge {
        Forge::GitHub | Forge::Gitea => {
            (format!("{api}/repos/{}/statuses/{}", escaped(project, "/"), status.commit), {
                serde_json::to_vec(&GitHub {
                    state: github(status.state),
                    context: &post.context,
                    description: &cut(&status.description),
                })
            })
        }
        Forge::GitLab => (format!("{api}/projects/{}/statuses/{}", escaped(project, ""), status.commit), {
            serde_json::to_vec(&GitLab {
                state: gitlab(status.state),
                name: &post.context,
                description: &cut(&status.description),
                ref_name: status.ref_name.as_deref().map(short),
            })
        }),
    };
    let body = body.map_err(|error| error.to_string())?;
    let mut request = Request::builder().method(Method::POST).uri(path).header(USER_AGENT, NAME);
    request = request.header(CONTENT_TYPE, "application/json");
    request = match forge {
        Forge::GitHub => {
            request.header(ACCEPT, "application/vnd.github+json").header("x-github-api-version", "2022-11-28")
        }
        Forge::GitLab | Forge::Gitea => request.header(ACCEPT, "application/json"),
    };
    let (name, value) = proof(*forge, token)?;
    request.header(name, value).body(Full::from(body)).map_err(|error| format!("{api}: {error}"))
}

/// The header that proves us.
fn proof(forge: Forge, token: &Secret) -> Result<(HeaderName, HeaderValue), String> {
    let (name, prefix) = match forge {
        Forge::GitHub => (AUTHORIZATION, "Bearer "),
        Forge::GitLab => (HeaderName::from_static("private-token"), ""),
        Forge::Gitea => (AUTHORIZATION, "token "),
    };
    let value = [prefix.as_bytes(), token.expose()].concat();
    let plain = value.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
    let mut value = HeaderValue::from_maybe_shared(Bytes::from(value))
        .ok()
        .filter(|_| plain)
        .ok_or("the token of `status` is no token: it holds more than one line, or signs that none has")?;
    value.set_sensitive(true);
    Ok((name, value))
}

fn github(state: StatusState) -> &'static str {
    match state {
        StatusState::Queued | StatusState::Running => "pending",
        StatusState::Success => "success",
        StatusState::Failure => "failure",
        StatusState::Error | StatusState::Cancelled => "error",
    }
}

fn gitlab(state: StatusState) -> &'static str {
    match state {
        StatusState::Queued => "pending",
        StatusState::Running => "running",
        StatusState::Success => "success",
        StatusState::Failure | StatusState::Error => "failed",
        StatusState::Cancelled => "canceled",
    }
}

/// A branch or tag by its name alone.
fn short(ref_name: &str) -> &str {
    ["refs/heads/", "refs/tags/"].iter().find_map(|kind| ref_name.strip_prefix(kind)).unwrap_or(ref_name)
}

/// For one part of a path, or for several between these.
fn escaped(text: &str, between: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        let sign = char::from(byte);
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || between.contains(sign) {
            escaped.push(sign);
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// One line that every forge takes.
fn cut(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() <= LONGEST {
        return line;
    }
    line.chars().take(LONGEST - 1).chain(['…']).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::api::CommitStatus;

    pub(in crate::courier) fn post(forge: Forge, api: &str, project: &str) -> Post {
        let status = CommitStatus {
            commit: "1a2b".repeat(10).parse().unwrap(),
            ref_name: Some("refs/heads/release/1".to_owned()),
            deploy: 7,
            state: StatusState::Running,
            description: "web1: deploy 7\nruns".to_owned(),
        };
        let (api, project, context) = (api.to_owned(), project.to_owned(), "everhook/blog".to_owned());
        Post { ticket: 1, forge, api, project, context, status }
    }

    fn sent(post: &Post) -> (String, Vec<(String, String)>, Value) {
        let request = request(post, &Secret::new(b"t0ken".to_vec())).unwrap();
        assert_eq!(request.method(), Method::POST);
        let headers = request.headers().iter();
        let headers = headers.map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned())).collect();
        let target = request.uri().to_string();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let body = runtime.block_on(request.into_body().collect()).unwrap().to_bytes();
        (target, headers, serde_json::from_slice(&body).unwrap())
    }

    fn has(headers: &[(String, String)], name: &str, value: &str) -> bool {
        headers.contains(&(name.to_owned(), value.to_owned()))
    }

    #[test]
    fn github_is_told_as_it_documents() {
        let (target, headers, body) = sent(&post(Forge::GitHub, "https://api.github.com", "Me/b.log"));
        assert_eq!(target, format!("https://api.github.com/repos/Me/b.log/statuses/{}", "1a2b".repeat(10)));
        assert!(has(&headers, "authorization", "Bearer t0ken") && has(&headers, "user-agent", NAME));
        assert!(
            has(&headers, "accept", "application/vnd.github+json")
                && has(&headers, "x-github-api-version", "2022-11-28")
        );
        let want = json!({"state": "pending", "context": "everhook/blog", "description": "web1: deploy 7 runs"});
        assert_eq!(body, want);
    }

    #[test]
    fn gitlab_is_told_as_it_documents() {
        let (target, headers, body) = sent(&post(Forge::GitLab, "https://h/api/v4", "a/b/c"));
        assert_eq!(target, format!("https://h/api/v4/projects/a%2Fb%2Fc/statuses/{}", "1a2b".repeat(10)));
        assert!(has(&headers, "private-token", "t0ken"));
        let want = json!({"state": "running", "name": "everhook/blog", "ref": "release/1", "description": "web1: deploy 7 runs"});
        assert_eq!(body, want);
    }

    #[test]
    fn gitea_is_told_as_it_documents() {
        let (target, headers, body) = sent(&post(Forge::Gitea, "https://h/api/v1", "a/b"));
        assert_eq!(target, format!("https://h/api/v1/repos/a/b/statuses/{}", "1a2b".repeat(10)));
        assert!(has(&headers, "authorization", "token t0ken"));
        assert_eq!(body["state"], "pending");
    }

    #[test]
    fn a_description_is_cut_between_its_signs() {
        assert_eq!(cut(&"ü".repeat(140)), "ü".repeat(140));
        let long = cut(&"ü".repeat(141));
        assert_eq!((long.chars().count(), long.chars().last()), (140, Some('…')));
    }

    #[test]
    fn what_is_no_token_is_named_and_not_shown() {
        for bad in ["a\nb", "tökén", "a\u{7f}"] {
            let error = request(&post(Forge::GitLab, "https://h", "a/b"), &Secret::new(bad.into())).unwrap_err();
            assert!(error.contains("`status`") && !error.contains(bad), "{error}");
        }
        let shown = format!("{:?}", request(&post(Forge::GitHub, "https://h", "a/b"), &Secret::new(b"t0ken".to_vec())));
        assert!(!shown.contains("t0ken"), "{shown}");
    }

    #[test]
    fn signs_with_a_meaning_are_escaped() {
        assert_eq!((escaped("a/b c?", "/"), escaped("a/ü", "")), ("a/b%20c%3F".to_owned(), "a%2F%C3%BC".to_owned()));
    }
}
