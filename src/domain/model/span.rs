//! Lengths of time, written `"1m30s"`; `#[serde(with = "span")]` on a `Duration`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer};

/// Longest length of time that the config takes: ten years, so that no sum of two can overflow.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 86_400);

/// Reads `"1m30s"`, `"250ms"`, `"2h"`, `"90d"`. A bare number has no unit and is refused.
///
/// # Errors
/// One sentence that says what was expected.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no length of time; expected numbers with units, such as \"1m30s\" or \"250ms\"");
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let number_len = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let number: f64 = rest[..number_len].parse().map_err(|_| bad())?;
        rest = &rest[number_len..];
        let unit_len = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_alphabetic() || c == 'µ').len();
        let seconds = match &rest[..unit_len] {
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" | "sec" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            "w" => 7.0 * 86_400.0,
            _ => return Err(bad()),
        };
        rest = rest[unit_len..].trim_start();
        total =
            Duration::try_from_secs_f64(number * seconds).ok().and_then(|d| total.checked_add(d)).ok_or_else(bad)?;
        if total > LONGEST {
            return Err(format!("{text:?} is longer than ten years"));
        }
    }
    Ok(total)
}

/// Shows a length of time as the config writes it: `1m30s`, `250ms`, `0s`.
#[must_use]
pub fn show_span(length: Duration) -> String {
    let millis = length.as_millis();
    if millis == 0 {
        return if length.is_zero() { "0s".into() } else { format!("{}us", length.as_micros()) };
    }
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];
    let mut rest = millis;
    let mut shown = String::new();
    for (unit, name) in units {
        let count = rest / unit;
        rest %= unit;
        if count > 0 {
            shown.push_str(&format!("{count}{name}"));
        }
    }
    shown
}

/// For `#[serde(with = "span")]`.
///
/// # Errors
/// As the serializer says.
pub fn serialize<S: Serializer>(length: &Duration, ser: S) -> Result<S::Ok, S::Error> {
    ser.serialize_str(&show_span(*length))
}

/// For `#[serde(with = "span")]`.
///
/// # Errors
/// When the text is no length of time.
pub fn deserialize<'de, D: Deserializer<'de>>(de: D) -> Result<Duration, D::Error> {
    parse_span(&String::deserialize(de)?).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_read_back_as_shown() {
        for (text, millis) in [
            ("1m30s", 90_000),
            ("250ms", 250),
            ("0s", 0),
            ("1.5s", 1_500),
            ("1h 2m", 3_720_000),
            ("90d", 7_776_000_000),
        ] {
            let length = parse_span(text).unwrap();
            assert_eq!(length.as_millis(), millis, "{text}");
            assert_eq!(parse_span(&show_span(length)).unwrap(), length);
        }
        for bad in ["", "5", "s", "1x", "1m30", "-1s", "1e9s", "11w 99999d"] {
            assert!(parse_span(bad).is_err(), "{bad}");
        }
    }
}
