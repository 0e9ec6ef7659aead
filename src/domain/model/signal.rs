//! Signals by name and number.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A signal, by its Linux number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

/// Names in the order of their numbers on x86 and arm; 1 is HUP.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

impl Signal {
    pub const KILL: Self = Self(9);
    pub const TERM: Self = Self(15);
    pub const STOP: Self = Self(19);

    /// For numbers that the kernel told us.
    #[must_use]
    pub fn from_number(number: i32) -> Self {
        Self(number)
    }

    #[must_use]
    pub fn number(self) -> i32 {
        self.0
    }
}

/// A text names no signal.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no signal; expected a name such as \"SIGTERM\" or a number from 1 to 64")]
pub struct BadSignal(String);

impl FromStr for Signal {
    type Err = BadSignal;

    /// Takes `SIGTERM`, `TERM`, `term` or `15`.
    fn from_str(text: &str) -> Result<Self, BadSignal> {
        if let Ok(number) = text.parse::<i32>() {
            return if (1..=64).contains(&number) { Ok(Self(number)) } else { Err(BadSignal(text.to_owned())) };
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        NAMES
            .iter()
            .position(|n| *n == name)
            .map(|i| Self(i32::try_from(i).unwrap_or(0) + 1))
            .ok_or_else(|| BadSignal(text.to_owned()))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match usize::try_from(self.0 - 1).ok().and_then(|i| NAMES.get(i)) {
            Some(name) => write!(f, "SIG{name}"),
            None => write!(f, "signal {}", self.0),
        }
    }
}

impl Serialize for Signal {
    fn serialize<S: Serializer>(&self, ser: S) -> Result<S::Ok, S::Error> {
        ser.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Signal {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        let text = String::deserialize(de)?;
        text.strip_prefix("signal ").unwrap_or(&text).parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_the_same_signal() {
        for text in ["SIGTERM", "TERM", "term", "15"] {
            assert_eq!(text.parse::<Signal>().unwrap(), Signal::TERM);
        }
        assert_eq!("KILL".parse::<Signal>().unwrap().to_string(), "SIGKILL");
        assert_eq!("SYS".parse::<Signal>().unwrap().number(), 31);
        assert!("NOPE".parse::<Signal>().is_err());
        assert!("65".parse::<Signal>().is_err());
    }
}
