//! Any sender of Standard Webhooks (standardwebhooks.com): `webhook-id`, `webhook-timestamp` in
//! seconds, and in `webhook-signature` one `v1,<base64>` for each secret that it signs with, separated
//! by spaces: HMAC-SHA256 of `{id}.{timestamp}.{body}`. The key is the base64 after `whsec_`.
//!
//! What the body says is each sender's own. Read are `type` and, in `data` where there is one, `ref`,
//! `commit` (or `after`, or `sha`) and `repository`; for others there is `Generic`.

use std::time::Duration;

use data_encoding::BASE64;
use zeroize::Zeroizing;

use super::{Flaw, Forge, Head, NotUnderstood, Proof, Request, Said, generic::told, pick::pick, proof, text};
use crate::domain::{
    config::Hash,
    model::{At, Secret},
};

pub(super) const ID: &str = "webhook-id";
pub(super) const SIGNATURE: &str = "webhook-signature";
const TIMESTAMP: &str = "webhook-timestamp";
const TOLERANCE: Duration = Duration::from_secs(5 * 60);
const PREFIX: &[u8] = b"whsec_";

pub(super) const FORGE: Forge = Forge { event: "", ids: &[ID], proof: prove, parse };

pub(super) fn prove<'a>(request: &Request<'a>) -> Result<Proof<'a>, Flaw> {
    let signed = Signed::of(request)?;
    Ok(Proof::new(move |secret| keys(secret).iter().any(|key| signed.fits(key))).hashing())
}

/// Is this a secret that signs, by its form?
pub(super) fn is_signing(secret: &Secret) -> bool {
    secret.expose().starts_with(PREFIX)
}

/// A secret without the prefix is the key as it is, or the base64 of it.
pub(super) fn keys(secret: &Secret) -> Vec<Zeroizing<Vec<u8>>> {
    let bytes = secret.expose();
    let decoded = BASE64.decode(bytes.strip_prefix(PREFIX).unwrap_or(bytes)).ok();
    let raw = (!is_signing(secret)).then(|| bytes.to_vec());
    decoded.into_iter().chain(raw).filter(|key| !key.is_empty()).map(Zeroizing::new).collect()
}

/// A signed delivery whose time is good.
pub(super) struct Signed<'a> {
    id: &'a str,
    timestamp: &'a str,
    body: &'a [u8],
    macs: Vec<Vec<u8>>,
}

impl<'a> Signed<'a> {
    pub(super) fn of(request: &Request<'a>) -> Result<Self, Flaw> {
        let id = proof::required(request, ID)?;
        let timestamp = proof::required(request, TIMESTAMP)?;
        let signatures = proof::required(request, SIGNATURE)?;
        let seconds = timestamp.parse::<i64>().ok().filter(|_| timestamp.bytes().all(|b| b.is_ascii_digit()));
        let at = seconds.and_then(|seconds| seconds.checked_mul(1000)).map(At);
        let at = at.ok_or_else(|| Flaw("its Webhook-Timestamp is no number of seconds".to_owned()))?;
        if let Some(flaw) = proof::stale(at, request.at, TOLERANCE) {
            return Err(flaw);
        }
        let v1 = signatures.split(' ').filter_map(|one| one.strip_prefix("v1,"));
        // More than that are no rotation.
        let macs: Vec<_> = v1.filter_map(|mac| BASE64.decode(mac.as_bytes()).ok()).take(16).collect();
        if macs.is_empty() {
            return Err(Flaw("its Webhook-Signature has no `v1,` with base64 after it".to_owned()));
        }
        Ok(Self { id, timestamp, body: request.body, macs })
    }

    pub(super) fn fits(&self, key: &[u8]) -> bool {
        let message = [self.id.as_bytes(), b".", self.timestamp.as_bytes(), b".", self.body];
        proof::hmac_fits(Hash::Sha256, key, &message, &self.macs)
    }
}

/// Where each thing may stand; the first place that has something counts.
const TYPE: &[&[&str]] = &[&["type"]];
const REF: &[&[&str]] = &[&["data", "ref"], &["ref"]];
const COMMIT: &[&[&str]] =
    &[&["data", "commit"], &["data", "after"], &["data", "sha"], &["commit"], &["after"], &["sha"]];
const REPOSITORY: &[&[&str]] = &[
    &["data", "repository"],
    &["data", "repository", "clone_url"],
    &["data", "repository", "url"],
    &["repository"],
    &["repository", "clone_url"],
    &["repository", "url"],
];

fn parse(_: &Head, body: &[u8]) -> Result<Said, NotUnderstood> {
    let places: Vec<&[&str]> = [TYPE, REF, COMMIT, REPOSITORY].concat();
    let mut found = pick(body, &places)?.into_iter();
    let mut first =
        |places: &[&[&str]]| found.by_ref().take(places.len()).collect::<Vec<_>>().into_iter().flatten().next();
    let (event, ref_name, commit, repository) = (first(TYPE), first(REF), first(COMMIT), first(REPOSITORY));
    let event = event.map(|event| text::line(&event, 100));
    Ok(Said { event, ..told(ref_name, "`ref`", commit, repository)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::hook::{Headers, Kind};

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn fits(pairs: &[(&str, &str)], body: &str, at: i64, secret: &str) -> Result<bool, String> {
        let headers: Headers<'_> =
            pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect::<Vec<_>>().into();
        let request = Request { headers: &headers, body: body.as_bytes(), at: At(at * 1000) };
        let proof = prove(&request).map_err(|flaw| flaw.to_string())?;
        Ok(proof.fits(&Secret::new(secret.as_bytes().to_vec())))
    }

    /// The example of the specification, "Verifying webhooks".
    #[test]
    fn the_documented_signature_proves() {
        let (id, stamp) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330");
        let good = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let body = "{\"test\": 2432232314}";
        let with = |signature: &str, at, secret: &str| {
            fits(&[(ID, id), (TIMESTAMP, stamp), (SIGNATURE, signature)], body, at, secret)
        };
        assert_eq!(with(good, 1_614_265_330, SECRET), Ok(true));
        assert_eq!(with(good, 1_614_265_330, &SECRET[6..]), Ok(true));
        let bad = "v1,AAAM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(with(&format!("v1a,x {bad} {good}"), 1_614_265_330, SECRET), Ok(true));
        assert_eq!(with(bad, 1_614_265_330, SECRET), Ok(false));
        assert_eq!(with(good, 1_614_265_330 + 300, SECRET), Ok(true));
        assert_eq!(with(good, 1_614_265_330 - 300, SECRET), Ok(true));
        for off in [301, -301, 1 << 40] {
            assert!(with(good, 1_614_265_330 + off, SECRET).unwrap_err().contains("at most 5m"));
        }
        for broken in ["g0hM9SsE", "v1,", "v1,%%", "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="] {
            assert_ne!(with(broken, 1_614_265_330, SECRET), Ok(true), "{broken}");
        }
        for secret in ["whsec_", "whsec_%", "", "x"] {
            assert_eq!(with(good, 1_614_265_330, secret), Ok(false), "{secret}");
        }
        for stamp in ["", "+1614265330", "16142653300000000000000", "x"] {
            let pairs = [(ID, id), (TIMESTAMP, stamp), (SIGNATURE, good)];
            assert!(fits(&pairs, body, 1_614_265_330, SECRET).is_err(), "{stamp}");
        }
    }

    #[test]
    fn what_stands_where_most_put_it_is_found() {
        let sha = "a".repeat(40);
        for body in [
            format!(r#"{{"type": "push", "data": {{"ref": "refs/heads/x", "commit": "{sha}", "repository": "u"}}}}"#),
            format!(r#"{{"type": "push", "ref": "x", "after": "{sha}", "repository": {{"clone_url": "u"}}}}"#),
        ] {
            let head = Head { event: String::new(), sender_id: None, form: false };
            let said = parse(&head, body.as_bytes()).unwrap();
            assert_eq!((said.event.as_deref(), said.repository.urls), (Some("push"), vec!["u".to_owned()]));
            let Kind::Changes(changes) = said.kind else { panic!() };
            assert_eq!(changes[0].ref_name, "refs/heads/x");
            assert_eq!(changes[0].after.as_ref().unwrap().as_str(), sha);
        }
    }
}
