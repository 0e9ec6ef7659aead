//! Where things stand in RON text: a tree of keys and spans, without judging values. The parser gives
//! no places for what it has read; faults of meaning and keys given twice need them.

use std::{borrow::Cow, ops::Range};

/// A value and where it stands, in bytes.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Node {
    pub span: Range<usize>,
    /// Fields, map entries, or items (whose key is their number).
    pub entries: Vec<Entry>,
    /// Their places in `entries`, in the order of their keys: there may be thousands.
    by_key: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: String,
    /// Of the key; of the value where there is none.
    pub key_span: Range<usize>,
    pub value: Node,
}

impl Node {
    fn of(entries: Vec<Entry>) -> Self {
        let mut by_key: Vec<usize> = (0..entries.len()).collect();
        // Stable: the first of a name stays the first.
        by_key.sort_by(|one, other| entries[*one].key.cmp(&entries[*other].key));
        Self { span: 0..0, entries, by_key }
    }

    pub fn get(&self, key: &str) -> Option<&Entry> {
        let at = self.by_key.partition_point(|place| self.entries[*place].key.as_str() < key);
        self.by_key.get(at).map(|place| &self.entries[*place]).filter(|entry| entry.key == key)
    }

    /// The entry at the end of the path, or nothing if a part of the path is not there.
    pub fn find(&self, path: &[&str]) -> Option<&Entry> {
        let (last, parents) = path.split_last()?;
        let parent = parents.iter().try_fold(self, |node, key| Some(&node.get(key)?.value))?;
        parent.get(last)
    }

    /// Every key that the same parent has already: the place of the first, then of the repeated one.
    pub fn duplicates(&self) -> Vec<(&Entry, &Entry)> {
        let mut found: Vec<_> = self.entries.iter().flat_map(|entry| entry.value.duplicates()).collect();
        for same in self.by_key.chunk_by(|one, other| self.entries[*one].key == self.entries[*other].key) {
            found.extend(same[1..].iter().map(|again| (&self.entries[same[0]], &self.entries[*again])));
        }
        found.sort_by_key(|(_, again)| again.key_span.start);
        found
    }
}

/// Reads the whole text.
///
/// # Errors
/// The byte where it is no RON; the parser proper knows better why.
pub fn scan(text: &str) -> Result<Node, usize> {
    let mut scanner = Scanner { text, at: 0, depth: 0 };
    scanner.skip();
    while scanner.rest().starts_with("#!") {
        let end = scanner.rest().find(']').ok_or(scanner.at)?;
        scanner.at += end + 1;
        scanner.skip();
    }
    let root = scanner.value()?;
    scanner.skip();
    if scanner.rest().is_empty() { Ok(root) } else { Err(scanner.at) }
}

/// Deeper than any config; the parser stops at the same depth.
const DEEPEST: u32 = 128;

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Skips blanks and comments; an unclosed block comment ends the text.
    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if trimmed.starts_with("//") {
                self.at += trimmed.find('\n').unwrap_or(trimmed.len());
            } else if trimmed.starts_with("/*") {
                self.at += block_comment(trimmed);
            } else {
                return;
            }
        }
    }

    fn take(&mut self, expected: char) -> bool {
        let taken = self.rest().starts_with(expected);
        if taken {
            self.at += expected.len_utf8();
        }
        taken
    }

    fn value(&mut self) -> Result<Node, usize> {
        let start = self.at;
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(start);
        }
        let mut node = Node::default();
        if let Some(length) = string_length(self.rest()) {
            self.at += length;
        } else if self.rest().starts_with(['(', '[', '{']) {
            node = Node::of(self.group()?);
        } else {
            let word = self.word();
            if word.is_empty() {
                return Err(start);
            }
            let end = self.at;
            self.skip();
            if self.rest().starts_with('(') {
                node = Node::of(self.group()?);
            } else {
                self.at = end;
            }
            if word == "Some"
                && let [only] = node.entries.as_slice()
            {
                node = only.value.clone();
            }
        }
        self.depth -= 1;
        node.span = start..self.at;
        Ok(node)
    }

    /// An identifier, number or character.
    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let length = if let Some(quoted) = rest.strip_prefix('\'') {
            let escaped = usize::from(quoted.starts_with('\\'));
            quoted[escaped..].char_indices().skip(1).find(|(_, c)| *c == '\'').map_or(0, |(i, _)| i + escaped + 2)
        } else {
            rest.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.' | '+' | '-' | '#' | '=')))
                .unwrap_or(rest.len())
        };
        self.at += length;
        &rest[..length]
    }

    /// What stands between a pair of brackets.
    fn group(&mut self) -> Result<Vec<Entry>, usize> {
        let close = match self.rest().chars().next() {
            Some('(') => ')',
            Some('[') => ']',
            _ => '}',
        };
        self.at += 1;
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            self.skip();
            if self.take(close) {
                return Ok(entries);
            }
            let first = self.value()?;
            self.skip();
            let entry = if self.take(':') {
                let key = key_text(&self.text[first.span.clone()]).into_owned();
                self.skip();
                Entry { key, key_span: first.span, value: self.value()? }
            } else {
                Entry { key: entries.len().to_string(), key_span: first.span.clone(), value: first }
            };
            entries.push(entry);
            self.skip();
            if !self.take(',') {
                return if self.take(close) { Ok(entries) } else { Err(self.at) };
            }
        }
    }
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// The length of the string literal that the text starts with: plain, raw or of bytes.
fn string_length(text: &str) -> Option<usize> {
    let unprefixed = text.strip_prefix('b').unwrap_or(text);
    let prefix = text.len() - unprefixed.len();
    if let Some(raw) = unprefixed.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let body = raw[hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        return Some(prefix + 1 + hashes + 1 + body.find(&end)? + end.len());
    }
    let body = unprefixed.strip_prefix('"')?;
    let mut escaped = false;
    for (i, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(prefix + 1 + i + 1),
            _ => {}
        }
    }
    None
}

/// What a key says: the content of a string, or the identifier without `r#`.
fn key_text(token: &str) -> Cow<'_, str> {
    if string_length(token).is_some() {
        return ron::from_str::<String>(token).map_or(Cow::Borrowed(token), Cow::Owned);
    }
    Cow::Borrowed(token.strip_prefix("r#").unwrap_or(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown<'a>(text: &'a str, path: &[&str]) -> &'a str {
        let root = scan(text).unwrap();
        &text[root.find(path).unwrap().value.span.clone()]
    }

    #[test]
    fn values_are_found_by_their_path() {
        let text = r##"#![enable(implicit_some)]
            // a comment with "quotes" and (
            (apps: { "a\"b": (env: {r#"x"#: "1",}, list: [1, /* two */ 2, Http(url: "u")], last: After("1s")), },)"##;
        assert_eq!(shown(text, &["apps", "a\"b", "env", "x"]), "\"1\"");
        assert_eq!(shown(text, &["apps", "a\"b", "list", "1"]), "2");
        assert_eq!(shown(text, &["apps", "a\"b", "list", "2", "url"]), "\"u\"");
        assert_eq!(shown(text, &["apps", "a\"b", "last"]), "After(\"1s\")");
        assert_eq!(shown("(a: Some((b: 1)))", &["a", "b"]), "1");
    }

    #[test]
    fn odd_but_good_text_is_read() {
        for text in [
            "()",
            " ( ) ",
            "[]",
            "{}",
            "(a: 'x', b: '\\'', c: '\"')",
            "(a: -1.5e+3, b: 0xFF, c: inf)",
            "Name",
            "Name (a: 1)",
            "(a: b\"x\", b: br#\"y\"#)",
            "(a: \"ü\\u{41}\")",
            "/* /* nested */ */ (a: 1) // end",
            "(r#type: 1)",
            "{1: 2, (1, 2): 3}",
        ] {
            assert!(scan(text).is_ok(), "{text}");
            assert!(ron::from_str::<ron::Value>(text).is_ok() || text.starts_with("Name"), "{text}");
        }
        for text in ["", "(", "(a: 1", "(a 1)", "(a: 1))", "\"open", "(a: ,)", "/* open"] {
            assert!(scan(text).is_err(), "{text}");
        }
    }

    #[test]
    fn keys_given_twice_are_found_at_every_depth() {
        let root = scan(r#"(apps: {"a": (env: {"X": "1", r"X": "2"}), "a": ()}, apps: {})"#).unwrap();
        let keys: Vec<&str> = root.duplicates().iter().map(|(_, second)| second.key.as_str()).collect();
        assert_eq!(keys, ["X", "a", "apps"]);
    }
}
