//! The two clocks: one that only ever moves forward for delays, one that people read.

use std::{fmt, str::FromStr, time::Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A moment by the calendar, in milliseconds since 1970 UTC; shown as RFC 3339 with milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At(pub i64);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(at) => write!(f, "{at:.3}"),
            Err(_) => f.write_str("1970-01-01T00:00:00.000Z"),
        }
    }
}

impl FromStr for At {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, jiff::Error> {
        Ok(Self(text.parse::<jiff::Timestamp>()?.as_millisecond()))
    }
}

impl Serialize for At {
    fn serialize<S: Serializer>(&self, ser: S) -> Result<S::Ok, S::Error> {
        ser.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for At {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        String::deserialize(de)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The moment an event is handled: `mono` for every delay, `wall` for what people read.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub mono: Instant,
    pub wall: At,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_rfc3339_with_milliseconds() {
        assert_eq!(At(0).to_string(), "1970-01-01T00:00:00.000Z");
        let at: At = "2026-11-25T04:15:39.120Z".parse().unwrap();
        assert_eq!(at.to_string(), "2026-11-25T04:15:39.120Z");
    }
}
