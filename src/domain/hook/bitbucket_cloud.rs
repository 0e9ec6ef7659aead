//! Bitbucket Cloud: `X-Event-Key`, `X-Hook-UUID` and `X-Request-UUID`, and HMAC-SHA256 of the body in
//! `X-Hub-Signature: sha256=<hex>`. One push may tell of several refs.

use std::borrow::Cow;

use serde::Deserialize;

use super::{
    Change, Forge, Head, Kind, NotUnderstood, Repository, Said, What, branch_ref, commit, not_deployed, proof, tag_ref,
    text,
};

pub(super) const FORGE: Forge = Forge {
    event: EVENT,
    ids: &["x-request-uuid"],
    proof: |request| proof::sha256_of(request, SIGNATURE, "sha256=", request.body),
    parse,
};

pub(super) const EVENT: &str = "x-event-key";
pub(super) const SIGNATURE: &str = "x-hub-signature";
/// What no other sender of `X-Event-Key` has.
pub(super) const OWN: [&str; 2] = ["x-hook-uuid", "x-request-uuid"];

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
    nickname: Option<String>,
    #[serde(default)]
    display_name: Option<String>,
}

#[derive(Deserialize)]
struct RepositoryField {
    #[serde(default)]
    full_name: Option<String>,
    #[serde(default)]
    links: Links,
}

#[derive(Default, Deserialize)]
struct Links {
    #[serde(default)]
    html: Option<Link>,
}

#[derive(Deserialize)]
struct Link {
    #[serde(default)]
    href: Option<String>,
}

#[derive(Deserialize)]
struct PushBody<'a> {
    #[serde(borrow)]
    push: Push<'a>,
}

#[derive(Deserialize)]
struct Push<'a> {
    #[serde(borrow)]
    changes: Vec<Moved<'a>>,
}

/// `old` is null for what was made, `new` for what was deleted.
#[derive(Deserialize)]
struct Moved<'a> {
    #[serde(default, borrow)]
    new: Option<Ref<'a>>,
    #[serde(default, borrow)]
    old: Option<Ref<'a>>,
}

#[derive(Deserialize)]
struct Ref<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    target: Target<'a>,
}

#[derive(Deserialize)]
struct Target<'a> {
    #[serde(borrow)]
    hash: Cow<'a, str>,
    #[serde(default, borrow)]
    message: Cow<'a, str>,
    #[serde(default)]
    author: Option<Author>,
}

#[derive(Deserialize)]
struct Author {
    /// `Name <mail>`.
    #[serde(default)]
    raw: Option<String>,
    #[serde(default)]
    user: Option<Actor>,
    #[serde(default)]
    display_name: Option<String>,
}

impl Author {
    fn name(self) -> Option<String> {
        let of_user = self.user.and_then(|user| user.display_name).or(self.display_name);
        let name = of_user.or_else(|| self.raw.map(|raw| raw.split('<').next().unwrap_or_default().to_owned()));
        name.and_then(|name| text::some_line(&name, 100))
    }
}

fn parse(head: &Head, body: &[u8]) -> Result<Said, NotUnderstood> {
    let any: Any = serde_json::from_slice(body)?;
    let kind = match head.event.as_str() {
        "repo:push" => {
            let body: PushBody = serde_json::from_slice(body)?;
            Kind::of(body.push.changes.into_iter().map(moved).collect::<Result<_, _>>()?)
        }
        other => not_deployed(other),
    };
    let sender = any.actor.and_then(|actor| actor.nickname.or(actor.display_name));
    let repository = any.repository.map_or_else(Repository::default, |field| {
        let place = field.full_name.as_ref().map(|name| format!("https://bitbucket.org/{name}"));
        Repository::new(field.full_name, [field.links.html.and_then(|link| link.href), place])
    });
    Ok(Said { sender: sender.and_then(|name| text::some_line(&name, 100)), repository, ..Said::of(kind) })
}

fn moved(moved: Moved<'_>) -> Result<Change, NotUnderstood> {
    let nothing = || NotUnderstood("a change has neither `new` nor `old`".to_owned());
    let deleted = moved.new.is_none();
    let before = moved.old.as_ref().map(|old| commit(&old.target.hash)).transpose()?.flatten();
    let at = moved.new.or(moved.old).ok_or_else(nothing)?;
    Ok(Change {
        what: What::Push,
        ref_name: match &*at.kind {
            "tag" | "annotated_tag" => tag_ref(&at.name)?,
            _ => branch_ref(&at.name)?,
        },
        before,
        after: if deleted { None } else { commit(&at.target.hash)? },
        deleted,
        subject: text::some_line(&at.target.message, 200),
        author: at.target.author.and_then(Author::name),
    })
}
