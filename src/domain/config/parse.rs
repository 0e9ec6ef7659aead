//! From text to the raw shapes, and the parser's complaints in words for people.

use std::borrow::Cow;

use ron::{
    Error as Ron, Options,
    error::{Position, SpannedError},
    extensions::Extensions,
};
use serde::de::DeserializeOwned;
use serde_path_to_error::{Path as Keys, Segment};

use super::{
    finding::{Faults, Mark, Severity, Source},
    scan::{Entry, Node, scan},
};
use crate::domain::model::nearest;

/// Reads the whole text.
///
/// # Errors
/// The first fault of form, and every key that is given twice.
pub fn parse<T: DeserializeOwned>(source: Source<'_>) -> Result<(T, Node), Faults> {
    let scanned = scan(source.text);
    if let Ok(root) = &scanned {
        let doubles: Vec<_> = root.duplicates().into_iter().map(|pair| twice(source, pair)).collect();
        if !doubles.is_empty() {
            return Err(Faults(doubles));
        }
    }
    let options = Options::default().with_default_extension(Extensions::IMPLICIT_SOME);
    let fault = |error: &SpannedError, keys: &[&str]| {
        let at = byte(source.text, error.span.end);
        let (message, mark) = explain(&error.code, at, keys, scanned.as_ref().ok());
        Faults(vec![source.finding(Severity::Error, message, &[mark])])
    };
    let text = scanned.as_ref().map_or(Cow::Borrowed(source.text), |root| plain_notify(source.text, root));
    let mut de = ron::Deserializer::from_str_with_options(&text, &options).map_err(|e| fault(&e, &[]))?;
    let mut track = serde_path_to_error::Track::new();
    let root = match T::deserialize(serde_path_to_error::Deserializer::new(&mut de, &mut track)) {
        Ok(root) => root,
        Err(code) => {
            let keys = keys(&track.path());
            return Err(fault(&de.span_error(code), &keys.iter().map(String::as_str).collect::<Vec<_>>()));
        }
    };
    de.end().map_err(|code| fault(&de.span_error(code), &[]))?;
    match scanned {
        Ok(node) => Ok((root, node)),
        // A key given twice could hide behind what the scanner does not understand.
        Err(at) => {
            let mark = Mark::new(at..at, "");
            Err(Faults(vec![source.finding(Severity::Error, "this cannot be read".into(), &[mark])]))
        }
    }
}

/// `ready: Notify` may have fields or not, and the parser knows such two by their names only. So the
/// plain one gets one of its own, of the same length, as places in the text must stay.
fn plain_notify<'t>(text: &'t str, root: &Node) -> Cow<'t, str> {
    let apps = root.get("apps").into_iter().flat_map(|apps| &apps.value.entries);
    let apps = apps.chain(root.get("defaults")).filter_map(|app| app.value.get("ready"));
    let plain = apps.filter(|ready| text.get(ready.value.span.clone()) == Some("Notify"));
    let mut text = Cow::Borrowed(text);
    for ready in plain {
        text.to_mut().replace_range(ready.value.span.clone(), PLAIN_NOTIFY);
    }
    text
}

/// As in `raw`.
const PLAIN_NOTIFY: &str = "N_tify";

fn twice(source: Source<'_>, (first, second): (&Entry, &Entry)) -> super::Finding {
    let (line, column) = source.position(first.key_span.start);
    let message = format!("\"{}\" is given twice, first at {line}:{column}", second.key);
    let marks =
        [Mark::new(second.key_span.clone(), "given again"), Mark::new(first.key_span.clone(), "first given here")];
    source.finding(Severity::Error, message, &marks)
}

/// The byte of the parser's line and column (in characters, both from 1).
fn byte(text: &str, at: Position) -> usize {
    let line_start: usize = text.split_inclusive('\n').take(at.line.saturating_sub(1)).map(str::len).sum();
    let line = &text[line_start..];
    line_start + line.char_indices().nth(at.col.saturating_sub(1)).map_or(line.len(), |(i, _)| i)
}

/// The message and the mark for an error of the parser.
fn explain(code: &Ron, at: usize, keys: &[&str], root: Option<&Node>) -> (String, Mark) {
    let value = root.and_then(|root| if keys.is_empty() { Some(root) } else { Some(&root.find(keys)?.value) });
    let here = value.map_or(at..at, |node| node.span.clone());
    match code {
        Ron::NoSuchStructField { expected, found, .. } => {
            let place = root.and_then(|root| unknown_key(root, keys, found));
            // The path may already end with the unknown field itself.
            let owner = if keys.last() == Some(&found.as_str()) { &keys[..keys.len() - 1] } else { keys };
            let message =
                format!("unknown field \"{found}\"{}{}", within(owner), meant(found, expected.iter().copied()));
            (message, Mark::new(place.unwrap_or(at..at), one_of(expected)))
        }
        Ron::NoSuchEnumVariant { expected, found, .. } => {
            let expected: Vec<&str> = expected.iter().copied().filter(|name| *name != PLAIN_NOTIFY).collect();
            let message = format!("{}unknown value `{found}`{}", of(keys), meant(found, expected.iter().copied()));
            (message, Mark::new(here, one_of(&expected)))
        }
        Ron::InvalidValueForType { expected, found } => {
            (format!("{}expected {expected}, found {found}", of(keys)), Mark::new(here, format!("expected {expected}")))
        }
        Ron::Message(text) => (format!("{}{text}", of(keys)), Mark::new(here, "")),
        other => match expected(other) {
            Some(expected) => (format!("{}{expected}", of(keys)), Mark::new(here, expected)),
            None => (lower_first(&other.to_string()), Mark::new(at..at, "")),
        },
    }
}

/// For a value of the wrong kind.
fn expected(code: &Ron) -> Option<&'static str> {
    Some(match code {
        Ron::ExpectedString => "expected a string, in quotes",
        Ron::ExpectedBoolean => "expected true or false",
        Ron::ExpectedInteger => "expected a whole number",
        Ron::ExpectedFloat => "expected a number",
        Ron::IntegerOutOfBounds => "expected a smaller number, or one that is not negative",
        Ron::ExpectedArray => "expected a list: `[first, second, …]`",
        Ron::ExpectedMap => "expected a map: `{\"name\": value, …}`",
        Ron::ExpectedStructLike | Ron::ExpectedNamedStructLike(_) => "expected fields: `(name: value, …)`",
        _ => return None,
    })
}

fn keys(path: &Keys) -> Vec<String> {
    let key = |segment: &Segment| match segment {
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Map { key } => Some(key.clone()),
        Segment::Enum { .. } | Segment::Unknown => None,
    };
    path.iter().filter_map(key).collect()
}

/// Where the unknown field stands: in the value that the path leads to, or at the end of the path.
fn unknown_key(root: &Node, keys: &[&str], found: &str) -> Option<std::ops::Range<usize>> {
    let mut longest = root;
    for key in keys {
        match longest.get(key) {
            Some(entry) if *key != found || entry.value.get(found).is_some() => longest = &entry.value,
            _ => break,
        }
    }
    longest.get(found).map(|entry| entry.key_span.clone())
}

/// What stands before a message about the value at this path.
pub fn of(keys: &[&str]) -> String {
    if keys.is_empty() { String::new() } else { format!("{}: ", dotted(keys)) }
}

fn within(keys: &[&str]) -> String {
    if keys.is_empty() { " at the top level".into() } else { format!(" in {}", dotted(keys)) }
}

/// A path for people: `apps.blog.ready`, items of lists as `after[0]`.
fn dotted(keys: &[&str]) -> String {
    keys.iter().fold(String::new(), |path, key| match key.parse::<usize>() {
        Ok(index) => format!("{path}[{index}]"),
        Err(_) if path.is_empty() => (*key).to_owned(),
        Err(_) => format!("{path}.{key}"),
    })
}

/// `; did you mean "command"?`, where one of the names is near.
pub fn meant<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    nearest(typed, names).map(|near| format!("; did you mean \"{near}\"?")).unwrap_or_default()
}

fn one_of(names: &[&str]) -> String {
    match names {
        [] => "nothing is expected here".into(),
        [only] => format!("expected {only}"),
        _ => format!("expected one of {}", names.join(", ")),
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}
