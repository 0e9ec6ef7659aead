//! What a request shows for its proof. Whether it fits depends on the secret alone, so it is read
//! once, however many secrets are tried.

use std::{borrow::Cow, time::Duration};

use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha256, Sha512};

use super::Request;
use crate::domain::{
    config::{Encoding, Hash},
    model::{At, Secret, show_span},
};

/// Why a request cannot prove itself, whatever the secret: a sentence for the app's people, never
/// for the sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Flaw(pub(super) String);

/// What fits the right secret.
pub struct Proof<'a> {
    fits: Box<dyn Fn(&Secret) -> bool + 'a>,
    /// A try hashes the body, however it ends.
    hashes: bool,
    /// What may be wrong where no secret fits.
    doubt: Option<Flaw>,
}

impl<'a> Proof<'a> {
    /// One that needs the headers alone.
    pub(super) fn new(fits: impl Fn(&Secret) -> bool + 'a) -> Self {
        Self { fits: Box::new(fits), hashes: false, doubt: None }
    }

    /// The secret itself.
    pub(super) fn token(token: impl AsRef<[u8]> + 'a) -> Self {
        Self::new(move |secret| secret.matches(token.as_ref()))
    }

    /// An HMAC of `body` under the secret.
    pub(super) fn hmac(hash: Hash, body: impl AsRef<[u8]> + 'a, mac: Vec<u8>) -> Self {
        let macs = [mac];
        Self::new(move |secret| hmac_fits(hash, secret.expose(), &[body.as_ref()], &macs)).hashing()
    }

    pub(super) fn hashing(self) -> Self {
        Self { hashes: true, ..self }
    }

    pub(super) fn doubted(self, doubt: Option<Flaw>) -> Self {
        Self { doubt, ..self }
    }

    /// Does its sender know this secret? An empty one proves nothing.
    #[must_use]
    pub fn fits(&self, secret: &Secret) -> bool {
        !secret.is_empty() && (self.fits)(secret)
    }

    /// What may be wrong where no secret fits.
    #[must_use]
    pub fn doubt(&self) -> Option<&Flaw> {
        self.doubt.as_ref()
    }

    pub(super) fn hashes(&self) -> bool {
        self.hashes
    }
}

/// Is one of `macs` the HMAC of these pieces? Each takes the same time whether it is or not.
pub(super) fn hmac_fits(hash: Hash, key: &[u8], message: &[&[u8]], macs: &[Vec<u8>]) -> bool {
    fn fits<M: Mac + KeyInit + Clone>(key: &[u8], message: &[&[u8]], macs: &[Vec<u8>]) -> bool {
        let Ok(begun) = <M as KeyInit>::new_from_slice(key) else { return false };
        let computed = message.iter().fold(begun, Mac::chain_update);
        macs.iter().any(|mac| computed.clone().verify_slice(mac).is_ok())
    }
    match hash {
        Hash::Sha256 => fits::<Hmac<Sha256>>(key, message, macs),
        Hash::Sha512 => fits::<Hmac<Sha512>>(key, message, macs),
    }
}

/// Takes the time of a try that hashes the body.
pub(super) fn spend(request: &Request<'_>, secret: &Secret) {
    std::hint::black_box(hmac_fits(Hash::Sha256, secret.expose(), &[request.body], &[vec![0; 32]]));
}

/// The value of a header that is there once and not empty.
pub(super) fn required<'a>(request: &Request<'a>, name: &str) -> Result<&'a str, Flaw> {
    request.headers.get(name).ok_or_else(|| {
        let name = title(name);
        Flaw(if request.headers.has(&name.to_lowercase()) {
            format!("its {name} is empty or comes twice")
        } else {
            format!("it has no {name}: give the webhook the app's secret at its sender")
        })
    })
}

/// The MAC in a header, after `prefix`.
pub(super) fn mac(
    request: &Request<'_>,
    name: &str,
    prefix: &str,
    hash: Hash,
    encoding: Encoding,
) -> Result<Vec<u8>, Flaw> {
    let value = required(request, name)?;
    let bytes = match hash {
        Hash::Sha256 => 32,
        Hash::Sha512 => 64,
    };
    let decoded = value.strip_prefix(prefix).and_then(|text| match encoding {
        Encoding::Hex => HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok(),
        Encoding::Base64 => BASE64.decode(text.as_bytes()).ok(),
    });
    decoded.filter(|mac| mac.len() == bytes).ok_or_else(|| {
        let after = if prefix.is_empty() { String::new() } else { format!("`{prefix}` and ") };
        let form = match encoding {
            Encoding::Hex => format!("{} hex digits", bytes * 2),
            Encoding::Base64 => format!("the base64 of {bytes} bytes"),
        };
        Flaw(format!("its {} is not {after}{form}", title(name)))
    })
}

/// 64 hex digits in a header, after `prefix`: what most forges sign the body with.
pub(super) fn sha256_of<'a>(
    request: &Request<'a>,
    name: &str,
    prefix: &str,
    body: impl AsRef<[u8]> + 'a,
) -> Result<Proof<'a>, Flaw> {
    Ok(Proof::hmac(Hash::Sha256, body, mac(request, name, prefix, Hash::Sha256, Encoding::Hex)?))
}

/// The password of basic authentication, whoever the user is, or a bearer token.
pub(super) fn authorization<'a>(request: &Request<'a>) -> Result<Cow<'a, [u8]>, Flaw> {
    let value = required(request, "authorization")?;
    let bad = || Flaw("its Authorization is neither `Basic` with user and password nor `Bearer`".to_owned());
    let (scheme, rest) = value.split_once(' ').ok_or_else(bad)?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(Cow::Borrowed(rest.trim().as_bytes()));
    }
    let decoded = BASE64.decode(rest.trim().as_bytes()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"));
    let colon = decoded.as_ref().and_then(|pair| pair.iter().position(|b| *b == b':'));
    decoded.zip(colon).map(|(pair, colon)| Cow::Owned(pair[colon + 1..].to_vec())).ok_or_else(bad)
}

/// Why a time is none that a delivery can have been signed at, if it is not; `tolerance` either way.
pub(super) fn stale(signed: At, came: At, tolerance: Duration) -> Option<Flaw> {
    let apart = Duration::from_millis(came.0.abs_diff(signed.0));
    let side = if signed < came { "before" } else { "after" };
    (apart > tolerance).then(|| {
        let (apart, tolerance) = (show_span(Duration::from_secs(apart.as_secs())), show_span(tolerance));
        Flaw(format!(
            "it says that it was signed {apart} {side} it came; at most {tolerance} are allowed: look at both clocks"
        ))
    })
}

/// A header's name as people know it.
pub(super) fn title(name: &str) -> String {
    let part = |part: &str| part.get(..1).map(|first| first.to_uppercase() + &part[1..]).unwrap_or_default();
    name.split('-').map(part).collect::<Vec<_>>().join("-")
}
