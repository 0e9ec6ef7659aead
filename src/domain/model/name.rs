//! Names of apps and instances, and the nearest of a list to a mistyped one.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name of an app: `[a-z0-9][a-z0-9_-]{0,62}`. Shared, as whoever has something of an app is found by it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppName(Arc<str>);

/// Why a text is no [`AppName`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no app name: 1 to 63 characters of a-z, 0-9, `_` and `-`, not starting with `_` or `-`")]
pub struct BadName(String);

impl AppName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AppName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let good =
            text.len() <= 63 && text.starts_with(plain) && text.chars().all(|c| plain(c) || c == '_' || c == '-');
        if good { Ok(Self(text.into())) } else { Err(BadName(text.to_owned())) }
    }
}

impl Serialize for AppName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for AppName {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        String::deserialize(de)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for AppName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One running copy of an app: `blog.1`. Copies are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId {
    pub app: AppName,
    pub number: u32,
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.app, self.number)
    }
}

impl FromStr for InstanceId {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let bad = || BadName(text.to_owned());
        let (app, number) = text.rsplit_once('.').ok_or_else(bad)?;
        let number = number.parse().ok().filter(|n| *n > 0).ok_or_else(bad)?;
        Ok(Self { app: app.parse()?, number })
    }
}

/// The candidate that is at most a third of its length away from `typed` (Levenshtein distance), and
/// not wholly another word.
pub fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|c| (distance(typed, c), c))
        .filter(|(d, c)| *d < c.chars().count() && *d <= (c.chars().count().max(3)) / 3 + usize::from(c.len() > 3))
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// Letters to be added, left out, changed, or exchanged with the next one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = match (i, j) {
                (0, n) | (n, 0) => n,
                _ => {
                    let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let exchanged = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                    let exchanged = if exchanged { rows[i - 2][j - 2] + 1 } else { usize::MAX };
                    changed.min(exchanged).min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1)
                }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_short() {
        for good in ["a", "blog", "a-b_c9", "0x", &"a".repeat(63)] {
            assert!(good.parse::<AppName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "_a", "A", "a.b", "a/b", "ä", "a b", &"a".repeat(64)] {
            assert!(bad.parse::<AppName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn instances_read_back_as_shown() {
        let id: InstanceId = "blog.2".parse().unwrap();
        assert_eq!(id.to_string(), "blog.2");
        for bad in ["blog", "blog.0", "blog.x", ".1"] {
            assert!(bad.parse::<InstanceId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_nearest_name_is_near() {
        assert_eq!(nearest("blgo", ["api", "blog"]), Some("blog"));
        assert_eq!(nearest("comand", ["command", "env"]), Some("command"));
        assert_eq!(nearest("zzz", ["command", "env"]), None);
        assert_eq!(nearest("x", ["a", "b"]), None);
        assert_eq!(nearest("wbe", ["api", "web"]), Some("web"));
    }
}
