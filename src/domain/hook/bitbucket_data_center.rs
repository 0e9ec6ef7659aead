//! Bitbucket Data Center (and Server): `X-Event-Key` and `X-Request-Id`, and HMAC-SHA256 of the body
//! in `X-Hub-Signature: sha256=<hex>`, or basic authentication with the secret as password. One push
//! may tell of several refs.

use std::borrow::Cow;

use serde::Deserialize;

use super::{
    Change, Flaw, Forge, Head, Kind, NotUnderstood, Proof, Repository, Request, Said, What, bitbucket_cloud, commit,
    full_ref, not_deployed, proof, text,
};

pub(super) const FORGE: Forge = Forge { event: bitbucket_cloud::EVENT, ids: &["x-request-id"], proof: prove, parse };

const PING: &str = "diagnostics:ping";

fn prove<'a>(request: &Request<'a>) -> Result<Proof<'a>, Flaw> {
    let has = |name| request.headers.has(name);
    if !has(bitbucket_cloud::SIGNATURE) && has("authorization") {
        return proof::authorization(request).map(Proof::token);
    }
    let signed = proof::sha256_of(request, bitbucket_cloud::SIGNATURE, "sha256=", request.body);
    signed.map_err(|flaw| match request.headers.get(bitbucket_cloud::EVENT) {
        Some(PING) if !has(bitbucket_cloud::SIGNATURE) => {
            Flaw("some versions do not sign the test of a connection: what follows a push is signed".to_owned())
        }
        _ => flaw,
    })
}

#[derive(Deserialize)]
struct Any {
    #[serde(default)]
    actor: Option<Actor>,
    #[serde(default)]
    repository: Option<RepositoryField>,
}

#[derive(Deserialize)]
struct Actor {
    #[serde(default)]
    name: Option<String>,
}

#[derive(Deserialize)]
struct RepositoryField {
    #[serde(default)]
    slug: Option<String>,
    #[serde(default)]
    project: Option<Project>,
    #[serde(default)]
    links: Links,
}

#[derive(Deserialize)]
struct Project {
    #[serde(default)]
    key: Option<String>,
}

#[derive(Default, Deserialize)]
struct Links {
    #[serde(default)]
    clone: Vec<Link>,
    #[serde(default, rename = "self")]
    own: Vec<Link>,
}

#[derive(Deserialize)]
struct Link {
    #[serde(default)]
    href: Option<String>,
}

#[derive(Deserialize)]
struct PushBody<'a> {
    #[serde(borrow)]
    changes: Vec<Moved<'a>>,
    /// Where it points now, in newer versions.
    #[serde(default, rename = "toCommit", borrow)]
    to: Option<Commit<'a>>,
}

#[derive(Deserialize)]
struct Moved<'a> {
    #[serde(rename = "refId", borrow)]
    ref_id: Cow<'a, str>,
    #[serde(rename = "fromHash", borrow)]
    from: Cow<'a, str>,
    #[serde(rename = "toHash", borrow)]
    to: Cow<'a, str>,
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Commit<'a> {
    #[serde(default, borrow)]
    id: Cow<'a, str>,
    #[serde(default, borrow)]
    message: Cow<'a, str>,
    #[serde(default)]
    author: Option<Actor>,
}

fn parse(head: &Head, body: &[u8]) -> Result<Said, NotUnderstood> {
    if head.event == PING {
        return Ok(Said::of(Kind::Ping));
    }
    let any: Any = serde_json::from_slice(body)?;
    let kind = match head.event.as_str() {
        "repo:refs_changed" => {
            let body: PushBody = serde_json::from_slice(body)?;
            Kind::of(body.changes.iter().map(|one| moved(one, body.to.as_ref())).collect::<Result<_, _>>()?)
        }
        other => not_deployed(other),
    };
    let sender = any.actor.and_then(|actor| actor.name).and_then(|name| text::some_line(&name, 100));
    let repository = any.repository.map_or_else(Repository::default, |field| {
        let name = field.project.and_then(|project| project.key).zip(field.slug);
        let links = field.links.clone.into_iter().chain(field.links.own);
        Repository::new(name.map(|(key, slug)| format!("{key}/{slug}")), links.map(|link| link.href))
    });
    Ok(Said { sender, repository, ..Said::of(kind) })
}

fn moved(moved: &Moved<'_>, to: Option<&Commit<'_>>) -> Result<Change, NotUnderstood> {
    let after = commit(&moved.to)?.filter(|_| moved.kind != "DELETE");
    let to = to.filter(|to| to.id == moved.to);
    let author = to.and_then(|to| to.author.as_ref()?.name.as_deref());
    Ok(Change {
        what: What::Push,
        ref_name: full_ref(&moved.ref_id)?,
        before: commit(&moved.from)?,
        deleted: after.is_none(),
        after,
        subject: to.and_then(|to| text::some_line(&to.message, 200)),
        author: author.and_then(|name| text::some_line(name, 100)),
    })
}
