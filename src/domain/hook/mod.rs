//! What forges send: which dialect a request speaks, whether it proves itself, what it says. One file
//! a dialect; the formats are those of the forges' own documentation.
//!
//! The proof is over the exact bytes received and comes before a byte of the body is parsed; every
//! comparison takes the same time whether it fits or not. This room never decides what is deployed,
//! and never says why a proof failed.

mod form;
mod github;
mod gitlab;
mod repository;
mod text;

use crate::domain::model::{CommitId, Secret};

pub use form::{BadEncoding, decode as percent_decode, field};
pub use repository::{Repository, same_repository};

/// The forges that are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    GitHub,
    GitLab,
}

impl Dialect {
    /// As deliveries show it: `github`, `gitlab`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::GitHub => "github",
            Self::GitLab => "gitlab",
        }
    }

    /// The dialect of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::GitHub, Self::GitLab].into_iter().find(|dialect| dialect.name() == name)
    }
}

/// A request's headers, names in lower case.
#[derive(Debug, Clone, Default)]
pub struct Headers(Vec<(String, String)>);

impl From<Vec<(String, String)>> for Headers {
    fn from(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }
}

impl Headers {
    /// The value of a header that came once and is not empty. One that came twice says two things and
    /// counts as absent.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str());
        let value = values.next().filter(|value| !value.is_empty())?;
        values.next().is_none().then_some(value)
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n == name)
    }
}

/// Event headers of forges whose deliveries are not understood. They come first: Gitea, Forgejo and
/// Gogs send GitHub's header beside their own.
const OTHER_FORGES: [&str; 5] = ["x-gitea-event", "x-forgejo-event", "x-gogs-event", "x-gitee-event", "x-event-key"];

/// Which forge sent this, by its event header; `None` for any other sender, and for a request that
/// claims two forges at once.
#[must_use]
pub fn recognise(headers: &Headers) -> Option<Dialect> {
    if OTHER_FORGES.iter().any(|name| headers.has(name)) {
        return None;
    }
    match (headers.has(github::EVENT), headers.has(gitlab::EVENT)) {
        (true, false) => Some(Dialect::GitHub),
        (false, true) => Some(Dialect::GitLab),
        _ => None,
    }
}

/// Does the request prove that its sender knows the secret? `body` is what came over the wire, byte
/// for byte. An empty secret proves nothing.
#[must_use]
pub fn prove(dialect: Dialect, headers: &Headers, body: &[u8], secret: &Secret) -> bool {
    if secret.is_empty() {
        return false;
    }
    match dialect {
        Dialect::GitHub => github::prove(headers, body, secret),
        Dialect::GitLab => gitlab::prove(headers, secret),
    }
}

/// The event's name as the forge spells it, fit to be shown: `push`, `Merge Request Hook`.
#[must_use]
pub fn event(dialect: Dialect, headers: &Headers) -> String {
    let name = match dialect {
        Dialect::GitHub => github::EVENT,
        Dialect::GitLab => gitlab::EVENT,
    };
    text::line(headers.get(name).unwrap_or_default(), 100)
}

/// The sender's own id of the delivery, the same when it is sent again. `None` where there is none,
/// or none that can be one: over 128 bytes, or other than visible ASCII.
#[must_use]
pub fn sender_id(dialect: Dialect, headers: &Headers) -> Option<String> {
    let id = match dialect {
        Dialect::GitHub => headers.get("x-github-delivery"),
        Dialect::GitLab => headers.get("idempotency-key").or_else(|| headers.get("x-gitlab-event-uuid")),
    }?;
    let good = id.len() <= 128 && id.bytes().all(|b| b.is_ascii_graphic());
    good.then(|| id.to_owned())
}

/// The headers of a delivery of which only this is kept, as far as [`parse`] reads them.
#[must_use]
pub fn headers_again(
    dialect: Dialect,
    event: Option<&str>,
    sender_id: Option<&str>,
    body: &[u8],
) -> Vec<(String, String)> {
    let (event_name, id_name) = match dialect {
        Dialect::GitHub => (github::EVENT, "x-github-delivery"),
        Dialect::GitLab => (gitlab::EVENT, "idempotency-key"),
    };
    // JSON begins with a brace, and no form does.
    let is_json = body.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
    let kind = if is_json { "application/json" } else { "application/x-www-form-urlencoded" };
    let known = [(event_name, event), (id_name, sender_id), ("content-type", Some(kind))];
    known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect()
}

/// What a delivery says. Every text is one line without control characters, and of bounded length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    pub event: String,
    pub sender_id: Option<String>,
    pub kind: Kind,
    /// Who did it at the forge.
    pub sender: Option<String>,
    pub repository: Repository,
}

/// What happened at the forge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The hook was set up.
    Ping,
    Change(Change),
    /// Nothing that is ever deployed; `why` is a sentence for the sender.
    Other {
        why: String,
    },
}

/// What a deploy may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A branch or a tag was pushed.
    Push,
    /// A release was published.
    Release,
    /// A pipeline succeeded.
    Pipeline,
}

/// Something new about a branch or a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub what: What,
    /// The full name: `refs/heads/feature/x`, `refs/tags/v1`.
    pub ref_name: String,
    /// `None`: it was made by this push.
    pub before: Option<CommitId>,
    /// Where it points now, or what succeeded; for an annotated tag it may be the id of the tag. `None`:
    /// the forge does not say, or it was deleted.
    pub after: Option<CommitId>,
    pub deleted: bool,
    /// First line of the newest commit's message.
    pub subject: Option<String>,
    pub author: Option<String>,
}

/// A proven body that is no delivery of its dialect; one line that says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotUnderstood(String);

impl From<serde_json::Error> for NotUnderstood {
    fn from(error: serde_json::Error) -> Self {
        Self(text::line(&format!("the body is not understood: {error}"), 300))
    }
}

/// Reads a delivery that has proven itself.
///
/// # Errors
/// When the body is broken, or a field that everything hangs on is missing.
pub fn parse(dialect: Dialect, headers: &Headers, body: &[u8]) -> Result<Parsed, NotUnderstood> {
    let event = event(dialect, headers);
    let (kind, sender, repository) = match dialect {
        Dialect::GitHub => github::parse(&event, headers, body)?,
        Dialect::GitLab => gitlab::parse(&event, body)?,
    };
    Ok(Parsed { event, sender_id: sender_id(dialect, headers), kind, sender, repository })
}

/// `refs/tags/…` of a tag's name.
fn tag_ref(name: &str) -> Result<String, NotUnderstood> {
    full_ref(&format!("refs/tags/{name}"))
}

/// `refs/heads/…` of a branch's name.
fn branch_ref(name: &str) -> Result<String, NotUnderstood> {
    full_ref(&format!("refs/heads/{name}"))
}

fn not_deployed(event: &str) -> Kind {
    Kind::Other { why: format!("event `{event}` is not deployed") }
}

/// A ref's full name as the body has it. What git itself would never take is no name.
fn full_ref(name: &str) -> Result<String, NotUnderstood> {
    let good = name.len() <= 1024 && name.strip_prefix("refs/").is_some_and(|rest| !rest.is_empty());
    if good && !name.chars().any(|c| c.is_control() || c == ' ') {
        return Ok(name.to_owned());
    }
    Err(NotUnderstood(format!("{:?} is no full name of a ref", text::line(name, 100))))
}

/// A commit as the body has it; all zeros is none.
fn commit(id: &str) -> Result<Option<CommitId>, NotUnderstood> {
    if matches!(id.len(), 40 | 64) && id.bytes().all(|b| b == b'0') {
        return Ok(None);
    }
    id.parse().map(Some).map_err(|_| NotUnderstood(format!("{:?} is no commit id", text::line(id, 70))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        Headers(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn a_forge_is_known_by_its_own_header_alone() {
        let github = ("x-github-event", "push");
        let gitlab = ("x-gitlab-event", "Push Hook");
        assert_eq!(recognise(&headers(&[github])), Some(Dialect::GitHub));
        assert_eq!(recognise(&headers(&[gitlab])), Some(Dialect::GitLab));
        assert_eq!(recognise(&headers(&[])), None);
        assert_eq!(recognise(&headers(&[github, gitlab])), None);
        for other in OTHER_FORGES {
            assert_eq!(recognise(&headers(&[github, (other, "push")])), None, "{other}");
        }
    }

    #[test]
    fn a_header_that_comes_twice_or_empty_is_absent() {
        assert_eq!(headers(&[("a", "1")]).get("a"), Some("1"));
        assert_eq!(headers(&[("a", "1"), ("a", "1")]).get("a"), None);
        assert_eq!(headers(&[("a", "")]).get("a"), None);
    }

    #[test]
    fn an_id_is_short_and_visible_or_none() {
        let id = |value: &str| sender_id(Dialect::GitHub, &headers(&[("x-github-delivery", value)]));
        assert_eq!(id("72d3162e-cc78-11e3-81ab-4c9367dc0958").as_deref(), Some("72d3162e-cc78-11e3-81ab-4c9367dc0958"));
        assert_eq!(id(&"a".repeat(129)), None);
        assert_eq!(id("a\u{1b}[2J"), None);
        let gitlab = headers(&[("idempotency-key", "k"), ("x-gitlab-event-uuid", "u")]);
        assert_eq!(sender_id(Dialect::GitLab, &gitlab).as_deref(), Some("k"));
        let older = headers(&[("x-gitlab-event-uuid", "u")]);
        assert_eq!(sender_id(Dialect::GitLab, &older).as_deref(), Some("u"));
    }

    #[test]
    fn what_is_kept_is_enough_to_read_a_delivery_again() {
        let again = |dialect, event, body: &[u8]| {
            let headers = Headers::from(headers_again(dialect, Some(event), Some("id-1"), body));
            let parsed = parse(dialect, &headers, body).unwrap();
            assert_eq!((parsed.event.as_str(), parsed.sender_id.as_deref()), (event, Some("id-1")));
            assert_eq!(recognise(&headers), Some(dialect));
            parsed.kind
        };
        let json = format!("{{\"ref\": \"refs/heads/x\", \"after\": \"{}\"}}", "a".repeat(40));
        let form = format!("payload={}", json.replace('"', "%22").replace(' ', "+"));
        let kind = again(Dialect::GitHub, "push", json.as_bytes());
        assert!(matches!(&kind, Kind::Change(push) if push.ref_name == "refs/heads/x"), "{kind:?}");
        assert_eq!(again(Dialect::GitHub, "push", form.as_bytes()), kind);
        let gitlab = json.replacen('{', "{\"object_kind\": \"push\", ", 1);
        assert!(matches!(again(Dialect::GitLab, "Push Hook", gitlab.as_bytes()), Kind::Change(_)));
        assert_eq!(Dialect::from_name("gitlab"), Some(Dialect::GitLab));
    }

    #[test]
    fn refs_and_commits_are_whole_or_refused() {
        for good in ["refs/heads/x", "refs/heads/feature/%41\"ü", "refs/tags/v1"] {
            assert_eq!(full_ref(good).unwrap(), good);
        }
        for bad in ["", "master", "refs/", "refs/heads/a b", "refs/heads/a\n", &format!("refs/{}", "a".repeat(1024))] {
            assert!(full_ref(bad).is_err(), "{bad}");
        }
        assert_eq!(commit(&"0".repeat(40)).unwrap(), None);
        assert_eq!(commit(&"0".repeat(64)).unwrap(), None);
        assert!(commit(&"a".repeat(64)).unwrap().is_some());
        for bad in ["", "0", "abc", &"0".repeat(41)] {
            assert!(commit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_empty_secret_proves_nothing() {
        let token = headers(&[("x-gitlab-event", "Push Hook"), ("x-gitlab-token", "")]);
        assert!(!prove(Dialect::GitLab, &token, b"", &Secret::new(Vec::new())));
    }
}
