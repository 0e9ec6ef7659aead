//! How the webhooks of an app are read.

use std::sync::Arc;

use serde::Deserialize;

use super::{judge::Judge, raw};

/// Whose webhooks they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dialect {
    GitHub,
    GitLab,
    Gitea,
    Forgejo,
    Gogs,
    BitbucketCloud,
    BitbucketDataCenter,
    Gitee,
    AzureDevOps,
    StandardWebhooks,
    Generic(Arc<Generic>),
}

impl Dialect {
    /// As deliveries show it: `github`, `azure_devops`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::GitHub => "github",
            Self::GitLab => "gitlab",
            Self::Gitea => "gitea",
            Self::Forgejo => "forgejo",
            Self::Gogs => "gogs",
            Self::BitbucketCloud => "bitbucket_cloud",
            Self::BitbucketDataCenter => "bitbucket_data_center",
            Self::Gitee => "gitee",
            Self::AzureDevOps => "azure_devops",
            Self::StandardWebhooks => "standard_webhooks",
            Self::Generic(_) => GENERIC,
        }
    }

    /// The one of this name; `None` for `generic` too, which is as each app has it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::KNOWN.into_iter().find(|dialect| dialect.name() == name)
    }

    /// All that need no words of their own.
    const KNOWN: [Self; 10] = [
        Self::GitHub,
        Self::GitLab,
        Self::Gitea,
        Self::Forgejo,
        Self::Gogs,
        Self::BitbucketCloud,
        Self::BitbucketDataCenter,
        Self::Gitee,
        Self::AzureDevOps,
        Self::StandardWebhooks,
    ];
}

const GENERIC: &str = "generic";

/// A sender that is told in the config. Names of headers are in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generic {
    pub proof: Shown,
    /// The header that names the event.
    pub event: Option<String>,
    /// The header with the sender's own id of a delivery; without it the same body is the same delivery.
    pub id: Option<String>,
    pub ref_at: Pointer,
    pub commit_at: Option<Pointer>,
    pub repository_at: Option<Pointer>,
}

/// What a sender shows for its proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// An HMAC of the body under the secret, after `prefix` in a header.
    Hmac { header: String, prefix: String, hash: Hash, encoding: Encoding },
    /// The secret: `Authorization: Bearer …`.
    Bearer,
    /// As Standard Webhooks has it.
    Standard,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Hash {
    Sha256,
    Sha512,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Encoding {
    Hex,
    Base64,
}

/// A JSON pointer (RFC 6901), in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer(Vec<String>);

impl Pointer {
    /// Keys of objects and indexes of lists, from the outside in.
    #[must_use]
    pub fn parts(&self) -> &[String] {
        &self.0
    }

    fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no JSON pointer; expected one such as \"/repository/url\"");
        let parts = text.strip_prefix('/').ok_or_else(bad)?.split('/');
        let unescaped = |part: &str| {
            let plain = part.replace("~1", "").replace("~0", "");
            (!plain.contains('~')).then(|| part.replace("~1", "/").replace("~0", "~"))
        };
        parts.map(unescaped).collect::<Option<_>>().map(Self).ok_or_else(bad)
    }
}

impl std::fmt::Display for Pointer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|part| write!(f, "/{}", part.replace('~', "~0").replace('/', "~1")))
    }
}

/// `None`: as the headers of each request say.
pub fn dialect(judge: &mut Judge<'_>, keys: &[&str], raw: Option<&raw::Dialect>) -> Option<Dialect> {
    Some(match raw? {
        raw::Dialect::Auto => return None,
        raw::Dialect::GitHub => Dialect::GitHub,
        raw::Dialect::GitLab => Dialect::GitLab,
        raw::Dialect::Gitea => Dialect::Gitea,
        raw::Dialect::Forgejo => Dialect::Forgejo,
        raw::Dialect::Gogs => Dialect::Gogs,
        raw::Dialect::BitbucketCloud => Dialect::BitbucketCloud,
        raw::Dialect::BitbucketDataCenter => Dialect::BitbucketDataCenter,
        raw::Dialect::Gitee => Dialect::Gitee,
        raw::Dialect::AzureDevOps => Dialect::AzureDevOps,
        raw::Dialect::StandardWebhooks => Dialect::StandardWebhooks,
        raw::Dialect::Generic { proof, event, id, ref_at, commit, repository } => {
            let at = |field: &'static str| [keys, &[field]].concat();
            let mut pointer = |field, text: &Option<String>| {
                let read = text.as_ref().map(|text| Pointer::parse(text)).transpose();
                judge.take(&at(field), read, None)
            };
            let (repository_at, commit_at) = (pointer("repository", repository), pointer("commit", commit));
            let found = pointer("ref", ref_at);
            let missing = "`ref` is missing: where the body names the ref, such as \"/ref\"";
            judge.require(ref_at.is_some(), &at("ref"), missing);
            Dialect::Generic(Arc::new(Generic {
                proof: shown(judge, &at("proof"), proof.as_ref()),
                event: event.as_ref().map(|name| header(judge, &at("event"), name)),
                id: id.as_ref().map(|name| header(judge, &at("id"), name)),
                ref_at: found.unwrap_or(Pointer(Vec::new())),
                commit_at,
                repository_at,
            }))
        }
    })
}

fn shown(judge: &mut Judge<'_>, keys: &[&str], raw: Option<&raw::Proof>) -> Shown {
    match raw {
        None => {
            judge.error(keys, "`proof` is missing: `Hmac(header: \"X-Signature\")`, `Bearer` or `Standard`");
            Shown::Bearer
        }
        Some(raw::Proof::Bearer) => Shown::Bearer,
        Some(raw::Proof::Standard) => Shown::Standard,
        Some(raw::Proof::Hmac { header: name, prefix, hash, encoding }) => {
            let keys = [keys, &["header"]].concat();
            judge.require(name.is_some(), &keys, "`header` is missing: the one that the signature comes in");
            Shown::Hmac {
                header: name.as_ref().map(|name| header(judge, &keys, name)).unwrap_or_default(),
                prefix: prefix.clone().unwrap_or_default(),
                hash: hash.unwrap_or(Hash::Sha256),
                encoding: encoding.unwrap_or(Encoding::Hex),
            }
        }
    }
}

/// A header's name as requests have it here.
fn header(judge: &mut Judge<'_>, keys: &[&str], name: &str) -> String {
    let good = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
    judge.require(good, keys, "this is no name of a header");
    name.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one_dialects() {
        for dialect in Dialect::KNOWN {
            assert_eq!(Dialect::from_name(dialect.name()), Some(dialect));
        }
        assert_eq!(Dialect::from_name(GENERIC), None);
    }

    #[test]
    fn pointers_are_those_of_rfc_6901() {
        let parts = |text: &str| Pointer::parse(text).map(|pointer| pointer.0);
        assert_eq!(parts("/a/0/b"), Ok(vec!["a".into(), "0".into(), "b".into()]));
        assert_eq!(parts("/a~1b/m~0n/~01"), Ok(vec!["a/b".into(), "m~n".into(), "~1".into()]));
        assert_eq!(parts("/"), Ok(vec![String::new()]));
        for bad in ["", "a", "#/a", "/a~", "/a~2"] {
            assert!(parts(bad).is_err(), "{bad}");
        }
        assert_eq!(Pointer::parse("/a~1b/~01").map(|pointer| pointer.to_string()), Ok("/a~1b/~01".to_owned()));
    }
}
