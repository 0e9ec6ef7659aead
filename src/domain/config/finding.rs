//! What is wrong in a config, or worth a word: each finding has its place, the line shown, and what
//! was expected instead.

use std::{fmt, ops::Range, path::Path};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use memchr::memchr_iter;

use crate::domain::model::AppName;

/// How much a finding matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Severity {
    /// Works, and may not be what was meant.
    Warning,
    /// This app alone cannot run; the others do.
    AppProblem(AppName),
    /// The config is refused.
    Error,
}

/// One thing to tell about a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    /// `/etc/everhook/supervisor.ron:3:14`, where a place in the text is known; else the file.
    pub place: String,
    /// One sentence, without the place.
    pub message: String,
    /// The lines of the text with a mark; empty where no place is known.
    pub shown: String,
    /// Number of the file and byte of the place, to tell in the order of the text.
    pub(super) at: (usize, usize),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.severity == Severity::Warning { "warning: " } else { "" };
        write!(f, "{}: {word}{}", self.place, self.message)?;
        if self.shown.is_empty() { Ok(()) } else { write!(f, "\n{}", self.shown) }
    }
}

/// Why a config is refused: at least one finding of [`Severity::Error`], and whatever else was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Finding>);

impl std::error::Error for Faults {}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, finding) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{finding}")?;
        }
        Ok(())
    }
}

/// A stretch of the text and what to write beside its mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub span: Range<usize>,
    pub label: String,
}

impl Mark {
    pub fn new(span: Range<usize>, label: impl Into<String>) -> Self {
        Self { span, label: label.into() }
    }
}

/// Where the lines of a text begin, in bytes: each app has places in it, and there may be thousands.
pub struct Lines(Vec<usize>);

impl Lines {
    pub fn of(text: &str) -> Self {
        Self(std::iter::once(0).chain(memchr_iter(b'\n', text.as_bytes()).map(|at| at + 1)).collect())
    }

    /// Line and column of a byte of that text, counted from 1, columns in characters.
    pub fn position(&self, text: &str, byte: usize) -> (usize, usize) {
        let before = text.get(..byte).unwrap_or(text);
        let line = self.0.partition_point(|start| *start <= before.len());
        (line, 1 + before[self.0[line - 1]..].chars().count())
    }
}

/// The text that findings are shown in.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub path: &'a Path,
    pub text: &'a str,
    /// The config's own is 0, those that it includes follow.
    pub number: usize,
}

impl<'a> Source<'a> {
    /// A byte order mark at the start is no part of the text.
    pub fn new(path: &'a Path, text: &'a str, number: usize) -> Self {
        Self { path, text: text.strip_prefix('\u{feff}').unwrap_or(text), number }
    }

    /// A finding at the first mark; the others are shown beside it.
    pub fn finding(&self, severity: Severity, message: String, marks: &[Mark]) -> Finding {
        let path = self.path.display();
        let Some(first) = marks.first() else {
            return Finding { severity, place: path.to_string(), message, shown: String::new(), at: (self.number, 0) };
        };
        let (line, column) = self.position(first.span.start);
        Finding {
            severity,
            place: format!("{path}:{line}:{column}"),
            message,
            shown: self.show(marks),
            at: (self.number, first.span.start),
        }
    }

    /// Line and column of a byte, as [`Lines::position`].
    pub fn position(&self, byte: usize) -> (usize, usize) {
        Lines::of(self.text).position(self.text, byte)
    }

    fn show(&self, marks: &[Mark]) -> String {
        let annotations = marks.iter().enumerate().map(|(i, mark)| {
            let kind = if i == 0 { AnnotationKind::Primary } else { AnnotationKind::Context };
            let mark_one = kind.span(self.first_line(&mark.span));
            if mark.label.is_empty() { mark_one } else { mark_one.label(mark.label.as_str()) }
        });
        let snippet = Snippet::source(self.text).annotations(annotations);
        Renderer::plain().render(&[Group::with_level(Level::ERROR).element(snippet)])
    }

    /// A mark over many lines would show them all: the first says enough.
    fn first_line(&self, span: &Range<usize>) -> Range<usize> {
        let length = self.text[span.clone()].find(['\n', '\r']).unwrap_or(span.len());
        span.start..span.start + length
    }
}
