//! Gitee: `X-Gitee-Event`, and in `X-Gitee-Token` either the password itself or the base64 of
//! HMAC-SHA256(secret, "{timestamp}\n{secret}"), with the milliseconds of `X-Gitee-Timestamp`. Some
//! versions percent-encode it. The body is not signed; what came with a time once repeats it when it
//! comes again, so that time is the id.

use std::time::Duration;

use data_encoding::BASE64;

use super::{Flaw, Forge, Head, NotUnderstood, Proof, Request, Said, form, github, percent_decode, proof};
use crate::domain::{
    config::Hash,
    model::{At, Secret},
};

pub(super) const FORGE: Forge = Forge { event: "x-gitee-event", ids: &[TIMESTAMP], proof: prove, parse };

const TIMESTAMP: &str = "x-gitee-timestamp";
/// `true` for a test of the hook; its event is then `ping`.
pub(super) const PING: &str = "x-gitee-ping";
const TOLERANCE: Duration = Duration::from_secs(60 * 60);

fn prove<'a>(request: &Request<'a>) -> Result<Proof<'a>, Flaw> {
    let token = proof::required(request, "x-gitee-token")?;
    let timestamp = request.headers.get(TIMESTAMP).unwrap_or_default();
    let signature = percent_decode(token.as_bytes(), false).ok().and_then(|text| BASE64.decode(&text).ok());
    let at = timestamp.parse().ok().filter(|_| timestamp.bytes().all(|b| b.is_ascii_digit())).map(At);
    let stale = match (&signature, at) {
        (None, _) => None,
        (Some(_), None) => Some(Flaw("its X-Gitee-Timestamp is no number of milliseconds".to_owned())),
        (Some(_), Some(at)) => proof::stale(at, request.at, TOLERANCE),
    };
    let signatures: Vec<_> = signature.filter(|_| stale.is_none()).into_iter().collect();
    let fits = move |secret: &Secret| {
        let key = secret.expose();
        let signed = proof::hmac_fits(Hash::Sha256, key, &[timestamp.as_bytes(), b"\n", key], &signatures);
        signed | secret.matches(token.as_bytes())
    };
    Ok(Proof::new(fits).doubted(stale))
}

fn parse(head: &Head, body: &[u8]) -> Result<Said, NotUnderstood> {
    let json = form::payload(head.form, body)?;
    let event = match head.event.as_str() {
        "Push Hook" | "Tag Push Hook" | "push_hooks" | "tag_push_hooks" => "push",
        other => other,
    };
    github::read(event, &json)
}
