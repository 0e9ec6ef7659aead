//! Numbers and hashes that name deliveries, deploys, releases and commits.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Number of a delivery, counted from 1 per store.
pub type DeliveryId = i64;
/// Number of a deploy, counted from 1 per store.
pub type DeployId = i64;

/// A full commit id: 40 (SHA-1) or 64 (SHA-256) lower-case hex digits, not all zero.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitId(String);

/// A text is no id of its kind.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no {1}")]
pub struct BadId(String, &'static str);

impl CommitId {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first seven digits, as releases and tables show them.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..7]
    }
}

impl FromStr for CommitId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let good = hex && matches!(text.len(), 40 | 64) && text.bytes().any(|b| b != b'0');
        if good { Ok(Self(text.to_owned())) } else { Err(BadId(text.to_owned(), "commit id")) }
    }
}

/// A release on disk: the number of the deploy that made it and the short commit, `7-1a2b3c4`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReleaseId {
    pub deploy: DeployId,
    pub commit: String,
}

impl ReleaseId {
    #[must_use]
    pub fn new(deploy: DeployId, commit: &CommitId) -> Self {
        Self { deploy, commit: commit.short().to_owned() }
    }
}

impl FromStr for ReleaseId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId(text.to_owned(), "release id");
        let (deploy, commit) = text.split_once('-').ok_or_else(bad)?;
        let hex = commit.len() == 7 && commit.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let digits = !deploy.is_empty() && deploy.bytes().all(|b| b.is_ascii_digit());
        if !hex || !digits {
            return Err(bad());
        }
        Ok(Self { deploy: deploy.parse().map_err(|_| bad())?, commit: commit.to_owned() })
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.deploy, self.commit)
    }
}

macro_rules! as_text {
    ($($kind:ty),*) => {$(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, ser: S) -> Result<S::Ok, S::Error> {
                ser.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
                String::deserialize(de)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
as_text!(CommitId, ReleaseId, super::InstanceId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_whole_and_not_zero() {
        assert!("a".repeat(40).parse::<CommitId>().is_ok());
        assert!("b".repeat(64).parse::<CommitId>().is_ok());
        for bad in ["", "abc", &"0".repeat(40), &"A".repeat(40), &"g".repeat(40)] {
            assert!(bad.parse::<CommitId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn releases_read_back_as_shown() {
        let id: ReleaseId = "7-1a2b3c4".parse().unwrap();
        assert_eq!((id.deploy, id.to_string().as_str()), (7, "7-1a2b3c4"));
        for bad in ["7", "7-", "-1a2b3c4", "7-1a2b3c", "../7-1a2b3c4", "+7-1a2b3c4"] {
            assert!(bad.parse::<ReleaseId>().is_err(), "{bad}");
        }
    }
}
