//! A freeze: an app's deploys do not start until somebody unfreezes it.

use std::{fmt, str::FromStr};

use crate::domain::model::At;

/// No reason is longer, in characters.
const LONGEST_WHY: usize = 500;

/// Who froze an app, when and why. Its text form is that of the file that keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freeze {
    /// In words: `user "ann"`.
    pub by: String,
    pub at: At,
    pub why: String,
}

impl Freeze {
    /// # Errors
    /// A sentence, when `why` says nothing or is no line that can be shown.
    pub fn new(by: String, at: At, why: &str) -> Result<Self, String> {
        let why = why.trim();
        if why.is_empty() {
            return Err("say why it is frozen, for whoever finds it so".to_owned());
        }
        if why.chars().any(char::is_control) || why.chars().count() > LONGEST_WHY {
            return Err(format!("why it is frozen must be one line of at most {LONGEST_WHY} characters"));
        }
        Ok(Self { by, at, why: why.to_owned() })
    }

    /// What the file holds.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{} {}\n{}\n", self.at, self.by, self.why)
    }
}

impl fmt::Display for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frozen by {} since {}: {}", self.by, self.at, self.why)
    }
}

impl FromStr for Freeze {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (head, why) = text.split_once('\n').ok_or("it has one line, not two")?;
        let (at, by) = head.split_once(' ').ok_or("its first line names no moment and no person")?;
        let at = at.parse().map_err(|_| format!("{at:?} is no moment"))?;
        Self::new(by.to_owned(), at, why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_as_it_was_written() {
        let freeze = Freeze::new("user \"ann\"".to_owned(), At(1000), " the fair: no deploys ").unwrap();
        assert_eq!(freeze.to_string(), "frozen by user \"ann\" since 1970-01-01T00:00:01.000Z: the fair: no deploys");
        assert_eq!(freeze.text().parse(), Ok(freeze));
    }

    #[test]
    fn it_says_why_in_one_line() {
        let with = |why: &str| Freeze::new("uid 7".to_owned(), At(0), why);
        assert!(with("").is_err() && with(" \n").is_err() && with("a\nb").is_err() && with(&"x".repeat(501)).is_err());
        assert!(with(&"ü".repeat(500)).is_ok());
        for broken in ["", "x", "then ann\nwhy\n", "1970-01-01T00:00:01.000Z ann\n"] {
            assert!(broken.parse::<Freeze>().is_err(), "{broken}");
        }
    }
}
