//! Gitea: `X-Gitea-Event`, and in `X-Gitea-Signature` the HMAC-SHA256 of the JSON in hex, which in a
//! form is that of the field `payload`. The bodies are GitHub's. A test of the hook is a push.
//! It sends the headers of Gogs and GitHub too.

use super::{Flaw, Forge, Head, NotUnderstood, Proof, Request, Said, form, github, proof};

pub(super) const FORGE: Forge =
    Forge { event: "x-gitea-event", ids: &["x-gitea-delivery"], proof: |request| prove(request, SIGNATURE), parse };

pub(super) const SIGNATURE: &str = "x-gitea-signature";

/// By this header alone.
pub(super) fn prove<'a>(request: &Request<'a>, header: &str) -> Result<Proof<'a>, Flaw> {
    let json = form::payload(request.is_form(), request.body).map_err(|why| Flaw(why.to_string()))?;
    proof::sha256_of(request, header, "", json)
}

pub(super) fn parse(head: &Head, body: &[u8]) -> Result<Said, NotUnderstood> {
    github::read(&head.event, &form::payload(head.form, body)?)
}
