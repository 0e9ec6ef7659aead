//! A certificate chain and its private key, judged before anybody serves with them.

use std::{fmt, sync::Arc};

use rustls::{
    Error, InconsistentKeys, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_cert::der::Decode;

use super::{At, Secret};

/// It is time for a new one when less than this is left, in milliseconds, ...
const SOON: i64 = 14 * 24 * 60 * 60 * 1000;
/// ... or, where it lives shortly, less than this part of its life.
const PART: i64 = 5;

/// A chain and the key of its first certificate, both as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    pem: Secret,
    from: At,
    until: At,
}

/// What the clock makes of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does not count yet.
    Early,
    Good,
    /// It should have been renewed.
    Late,
    Expired,
}

/// Why a chain and a key are of no use, and which of the two is to be looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPair {
    #[error("{0}")]
    Chain(String),
    #[error("{0}")]
    Key(String),
}

impl Pair {
    /// Takes the texts of both files; other things in them do not matter.
    ///
    /// # Errors
    /// What is wrong with which of the two, in words that follow its name.
    pub fn read(chain: &[u8], key: &[u8]) -> Result<Self, BadPair> {
        let pem = Secret::new([chain, b"\n", key].concat());
        let certificates = certificates(chain)?;
        let (from, until) = validity(&certificates[0])?;
        let certified = |certificates: Vec<CertificateDer<'static>>| {
            CertifiedKey::from_der(certificates, private_key(key)?, &ring::default_provider()).map_err(unfit)
        };
        if let Err(why) = certified(certificates.clone()) {
            // Who has joined the files the wrong way round has one that fits.
            let other = certificates.into_iter().skip(1).any(|other| certified(vec![other]).is_ok());
            let turned = "has its own certificate not at the beginning: put it first, then the one that signed it";
            return Err(if other { BadPair::Chain(turned.into()) } else { why });
        }
        Ok(Self { pem, from, until })
    }

    /// As [`Pair::read`], from what [`Pair::pem`] gave.
    ///
    /// # Errors
    /// As there.
    pub fn from_pem(pem: &[u8]) -> Result<Self, BadPair> {
        Self::read(pem, pem)
    }

    /// Both in one text.
    #[must_use]
    pub fn pem(&self) -> &Secret {
        &self.pem
    }

    /// From here on it counts for nothing.
    #[must_use]
    pub fn until(&self) -> At {
        self.until
    }

    /// # Errors
    /// When every client turns away.
    pub fn judge(&self, now: At) -> Result<(), BadPair> {
        if now < self.until {
            Ok(())
        } else {
            Err(BadPair::Chain(format!("expired at {}: have it renewed", self.until)))
        }
    }

    /// How it stands at this moment.
    #[must_use]
    pub fn standing(&self, now: At) -> Standing {
        match now {
            now if now < self.from => Standing::Early,
            now if now >= self.until => Standing::Expired,
            now if now >= self.renewal() => Standing::Late,
            _ => Standing::Good,
        }
    }

    /// When it stands otherwise next.
    #[must_use]
    pub fn next_moment(&self, now: At) -> Option<At> {
        [self.from, self.renewal(), self.until].into_iter().filter(|at| *at > now).min()
    }

    /// From here on it should have been renewed.
    fn renewal(&self) -> At {
        At(self.until.0 - SOON.min((self.until.0 - self.from.0) / PART))
    }

    /// What should be looked after, in words that follow the name of the chain.
    #[must_use]
    pub fn warning(&self, now: At) -> Option<String> {
        match self.standing(now) {
            Standing::Good => None,
            Standing::Early => Some(format!("counts from {} only", self.from)),
            Standing::Late => Some(format!("expires at {}: it should have been renewed by now", self.until)),
            Standing::Expired => Some(format!("expired at {}: clients turn away until it is renewed", self.until)),
        }
    }

    /// How it is served with: TLS 1.2 and 1.3, HTTP/1.1, the same key for whatever name is asked for.
    ///
    /// # Errors
    /// Never where this was read before.
    pub fn server(&self) -> Result<ServerConfig, BadPair> {
        let pem = self.pem.expose();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().map_err(unfit)?.with_no_client_auth();
        let mut config = config.with_single_cert(certificates(pem)?, private_key(pem)?).map_err(unfit)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pair(until {})", self.until)
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, BadPair> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| BadPair::Chain(format!("is no PEM: {error}")))?;
    let none = "holds no certificate; expected PEM, which begins with -----BEGIN CERTIFICATE-----";
    if found.is_empty() { Err(BadPair::Chain(none.into())) } else { Ok(found) }
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, BadPair> {
    let bad = |why: String| Err(BadPair::Key(why));
    match PrivateKeyDer::from_pem_slice(pem) {
        Ok(key) => Ok(key),
        Err(_) if pem.windows(9).any(|word| word == b"ENCRYPTED") => {
            bad("has a passphrase, which nobody is there to type: take it off with `openssl pkey -in FILE`".into())
        }
        Err(rustls::pki_types::pem::Error::NoItemsFound) => {
            bad("holds no private key; expected PEM, which begins with -----BEGIN PRIVATE KEY-----".into())
        }
        Err(error) => bad(format!("is no PEM: {error}")),
    }
}

fn validity(certificate: &CertificateDer<'_>) -> Result<(At, At), BadPair> {
    let read = x509_cert::Certificate::from_der(certificate);
    let read = read.map_err(|error| BadPair::Chain(format!("holds a certificate that cannot be read: {error}")))?;
    let validity = read.tbs_certificate().validity();
    let at = |time: x509_cert::time::Time| At(i64::try_from(time.to_unix_duration().as_millis()).unwrap_or(i64::MAX));
    Ok((at(validity.not_before), at(validity.not_after)))
}

fn unfit(error: Error) -> BadPair {
    match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            BadPair::Key("is not the key of this certificate".into())
        }
        Error::General(why) => BadPair::Key(format!("cannot be used: {why}")),
        other => BadPair::Chain(format!("cannot be used: {other}")),
    }
}
