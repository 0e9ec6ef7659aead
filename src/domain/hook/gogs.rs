//! Gogs: `X-Gogs-Event`, and in `X-Gogs-Signature` the HMAC-SHA256 of the JSON in hex. The bodies are
//! GitHub's, but no push tells of a tag or of what was deleted: the events `create` and `delete` do.

use std::borrow::Cow;

use serde::Deserialize;

use super::{
    Change, Forge, Head, Kind, NotUnderstood, Said, What, branch_ref, commit, form, gitea, github, not_deployed,
    tag_ref,
};

pub(super) const FORGE: Forge = Forge {
    event: "x-gogs-event",
    ids: &["x-gogs-delivery"],
    proof: |request| gitea::prove(request, "x-gogs-signature"),
    parse,
};

#[derive(Deserialize)]
struct RefBody<'a> {
    #[serde(rename = "ref", borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    ref_type: Cow<'a, str>,
    /// Of a tag that was made.
    #[serde(default, borrow)]
    sha: Cow<'a, str>,
}

fn parse(head: &Head, body: &[u8]) -> Result<Said, NotUnderstood> {
    let json = form::payload(head.form, body)?;
    let said = github::read(&head.event, &json)?;
    let deleted = match head.event.as_str() {
        "create" => false,
        "delete" => true,
        _ => return Ok(said),
    };
    let made: RefBody = serde_json::from_slice(&json)?;
    let ref_name = match (&*made.ref_type, deleted) {
        ("tag", _) => tag_ref(&made.name)?,
        ("branch", true) => branch_ref(&made.name)?,
        // A push tells of it too.
        _ => return Ok(Said { kind: not_deployed(&head.event), ..said }),
    };
    let after = if deleted || made.sha.is_empty() { None } else { commit(&made.sha)? };
    let change = Change { what: What::Push, ref_name, before: None, after, deleted, subject: None, author: None };
    Ok(Said { kind: Kind::Changes(vec![change]), ..said })
}
