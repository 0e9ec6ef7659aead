//! Which lines a reader wants: since when, and with what in them. Pure.

use regex_automata::{meta::Regex, util::syntax};

use super::form::ReadLine;
use crate::domain::{api::LogWish, model::At};

/// A compiled expression is no larger than this, in bytes.
const LARGEST: usize = 4 * 1024 * 1024;

/// What a line must have to be shown.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    since: Option<At>,
    grep: Option<Regex>,
}

impl Filter {
    /// # Errors
    /// What is wrong with the expression, in a sentence.
    pub fn new(wish: &LogWish) -> Result<Self, String> {
        let compile = |text: &String| {
            Regex::builder()
                .configure(Regex::config().nfa_size_limit(Some(LARGEST)))
                .syntax(syntax::Config::new())
                .build(text)
                .map_err(|error| {
                    let why = error.syntax_error().map_or_else(|| error.to_string(), ToString::to_string);
                    format!("{text:?} is no regular expression: {why}")
                })
        };
        Ok(Self { since: wish.since, grep: wish.grep.as_ref().map(compile).transpose()? })
    }

    /// Is every line wanted?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.since.is_none() && self.grep.is_none()
    }

    /// A line without a time is not older than what was looked for.
    #[must_use]
    pub fn wants(&self, line: &ReadLine) -> bool {
        let new = match (self.since, line.at) {
            (Some(since), Some(at)) => at >= since,
            _ => true,
        };
        new && self.grep.as_ref().is_none_or(|grep| grep.is_match(&line.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_wanted_by_time_and_content() {
        let line = |at: Option<i64>, text: &str| ReadLine { at: at.map(At), text: text.to_owned() };
        let wish = |grep: &str| LogWish { since: Some(At(5)), grep: Some(grep.into()), ..LogWish::default() };
        let filter = Filter::new(&wish("(?i)error [0-9]+$|ü")).unwrap();
        assert!(filter.wants(&line(Some(5), "an ERROR 17")) && filter.wants(&line(None, "grün")));
        assert!(!filter.wants(&line(Some(4), "an error 17")) && !filter.wants(&line(Some(5), "error 17 and on")));
        assert!(Filter::default().is_empty() && !filter.is_empty());
        let bad = Filter::new(&wish("a(b")).unwrap_err();
        assert!(bad.contains("\"a(b\" is no regular expression"), "{bad}");
        assert!(Filter::new(&wish("((a{500}){500}){500}")).is_err());
    }
}
