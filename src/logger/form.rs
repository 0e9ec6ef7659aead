//! What a line becomes in a file: as it came, with its time before it, or a JSON object. Lines are
//! written as they come, so nothing waits for a newline; where the last one stands is a [`Tip`]. Pure.

use std::path::Path;

use memchr::memchr;
use serde::Deserialize;

use crate::domain::{
    api::{How, Stream},
    config::Form,
    model::{At, Size},
};

/// Stands at the end of a part of a line that goes on in the next part.
const GOES_ON: &str = " [everhook: the line goes on]";
/// Stands at the beginning of the next part.
const WENT_ON: &str = "[everhook: the line went on] ";
/// More than the beginning, the end and a character of a line need together.
const ROOM: usize = 512;
/// A byte becomes at most this many in JSON.
const ESCAPED: usize = 6;

/// How lines of one stream are written.
#[derive(Debug, Clone)]
pub struct Pen {
    form: Form,
    limit: u64,
    /// Of the instance.
    name: Box<str>,
    stream: Stream,
}

/// Where the last line of a file stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tip {
    /// It has no newline yet.
    pub open: bool,
    /// Bytes of it, as the app wrote them, in this part.
    length: u64,
    /// The beginning of a character whose end is still to come.
    carry: [u8; 3],
    carried: u8,
}

impl Tip {
    /// Before a line.
    pub const CLOSED: Self = Self { open: false, length: 0, carry: [0; 3], carried: 0 };

    /// Of a file whose last line is open or not, as far as can be seen.
    #[must_use]
    pub fn of(open: bool) -> Self {
        Self { open, ..Self::CLOSED }
    }

    /// As numbers, for a note.
    #[must_use]
    pub fn words(self) -> [u64; 2] {
        let [a, b, c] = self.carry;
        [u64::from_le_bytes([self.open.into(), self.carried, a, b, c, 0, 0, 0]), self.length]
    }

    #[must_use]
    pub fn from_words([state, length]: [u64; 2]) -> Self {
        let [open, carried, a, b, c, ..] = state.to_le_bytes();
        Self { open: open == 1, length, carry: [a, b, c], carried: carried.min(3) }
    }
}

impl Default for Tip {
    fn default() -> Self {
        Self::CLOSED
    }
}

/// Fills a slice from the front.
struct Page<'a> {
    bytes: &'a mut [u8],
    n: usize,
}

impl Page<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.n..self.n + bytes.len()].copy_from_slice(bytes);
        self.n += bytes.len();
    }

    fn room(&self) -> usize {
        self.bytes.len() - self.n
    }
}

impl Pen {
    /// For a file; whose it is stands in its name, `<instance>.<stream>.log`.
    #[must_use]
    pub fn of(path: &Path, how: &How) -> Self {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = name.strip_suffix(".log").unwrap_or(name);
        let (name, stream) = match name.strip_suffix(".err") {
            Some(name) => (name, Stream::Err),
            None => (name.strip_suffix(".out").unwrap_or(name), Stream::Out),
        };
        // Longer than any name of an instance would not fit before a line; only Json says it.
        let longest = if how.form == Form::Json { 100 } else { 0 };
        let name = name.chars().take(longest).filter(|c| !c.is_control() && !matches!(c, '"' | '\\')).collect();
        let Size(limit) = how.line_limit;
        Self { form: how.form, limit: limit.max(1), name, stream }
    }

    fn head(&self, at: At) -> String {
        match self.form {
            Form::Raw => String::new(),
            Form::Stamped => format!("{at} "),
            Form::Json => {
                let (name, stream) = (&self.name, self.stream.as_str());
                format!(r#"{{"at":"{at}","instance":"{name}","stream":"{stream}","line":""#)
            }
        }
    }

    fn tail(&self) -> &'static [u8] {
        if self.form == Form::Json { b"\"}\n" } else { b"\n" }
    }

    /// Does a file that begins like this have this form?
    #[must_use]
    pub fn has_begun(&self, bytes: &[u8]) -> bool {
        match self.form {
            Form::Raw => true,
            Form::Stamped => stamped(bytes).is_some(),
            Form::Json => bytes.starts_with(br#"{"at":""#),
        }
    }

    /// At most this many bytes more does a line have in the file, escapes aside.
    #[must_use]
    pub fn frame(&self) -> usize {
        self.head(At(0)).len() + self.tail().len()
    }

    /// Writes what fits of `input` into `out`, which must have more than a kilobyte; how much was
    /// taken, and how much written.
    pub fn write(&self, tip: &mut Tip, at: At, input: &[u8], out: &mut [u8]) -> (usize, usize) {
        let head = self.head(at);
        let mut page = Page { bytes: out, n: 0 };
        let mut taken = 0;
        while taken < input.len() && page.room() > ROOM {
            let rest = &input[taken..];
            if !tip.open {
                page.put(head.as_bytes());
                *tip = Tip::of(true);
            }
            if rest[0] == b'\n' {
                self.lift(tip, &mut page);
                page.put(self.tail());
                *tip = Tip::CLOSED;
                taken += 1;
                continue;
            }
            if self.is_long(tip, rest[0]) {
                self.lift(tip, &mut page);
                page.put(GOES_ON.as_bytes());
                page.put(self.tail());
                page.put(head.as_bytes());
                page.put(WENT_ON.as_bytes());
                *tip = Tip::of(true);
            }
            let left = usize::try_from(self.limit.saturating_sub(tip.length)).unwrap_or(usize::MAX).max(1);
            let most = left.min(page.room().saturating_sub(ROOM) / ESCAPED + 1).min(rest.len());
            let piece = &rest[..memchr(b'\n', &rest[..most]).unwrap_or(most)];
            match self.form {
                Form::Json => escape(tip, piece, &mut page),
                Form::Raw | Form::Stamped => page.put(piece),
            }
            tip.length += piece.len() as u64;
            taken += piece.len();
        }
        (taken, page.n)
    }

    /// Is the part full, and does `next` begin a character? Bytes that never do are cut anywhere.
    fn is_long(&self, tip: &Tip, next: u8) -> bool {
        let begins = next & 0xc0 != 0x80;
        tip.length >= self.limit && (begins || tip.length >= self.limit.saturating_add(3))
    }

    /// What is carried will not be completed any more.
    fn lift(&self, tip: &mut Tip, page: &mut Page<'_>) {
        if tip.carried > 0 {
            page.put("\u{fffd}".as_bytes());
            tip.carried = 0;
        }
    }
}

/// Writes a piece of a line as the inside of a JSON string; what is no UTF-8 becomes U+FFFD.
fn escape(tip: &mut Tip, piece: &[u8], page: &mut Page<'_>) {
    let mut rest = piece;
    while tip.carried > 0 && !rest.is_empty() {
        let mut bytes = [0; 4];
        let n = usize::from(tip.carried);
        bytes[..n].copy_from_slice(&tip.carry[..n]);
        bytes[n] = rest[0];
        match std::str::from_utf8(&bytes[..=n]) {
            Ok(character) => {
                page.put(character.as_bytes());
                tip.carried = 0;
                rest = &rest[1..];
            }
            Err(e) if e.error_len().is_none() && n < 3 => {
                tip.carry[n] = rest[0];
                tip.carried += 1;
                rest = &rest[1..];
            }
            Err(_) => {
                page.put("\u{fffd}".as_bytes());
                tip.carried = 0;
            }
        }
    }
    let mut chunks = rest.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        escape_text(chunk.valid(), page);
        let bad = chunk.invalid();
        let begins = std::str::from_utf8(bad).is_err_and(|e| e.error_len().is_none());
        if begins && chunks.peek().is_none() {
            tip.carry[..bad.len()].copy_from_slice(bad);
            tip.carried = bad.len() as u8;
        } else if !bad.is_empty() {
            page.put("\u{fffd}".as_bytes());
        }
    }
}

fn escape_text(text: &str, page: &mut Page<'_>) {
    let bytes = text.as_bytes();
    let mut from = 0;
    for (i, byte) in bytes.iter().enumerate() {
        if *byte >= 0x20 && !matches!(byte, b'"' | b'\\') {
            continue;
        }
        page.put(&bytes[from..i]);
        from = i + 1;
        match byte {
            b'"' | b'\\' => page.put(&[b'\\', *byte]),
            b'\t' => page.put(b"\\t"),
            b'\r' => page.put(b"\\r"),
            _ => {
                let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
                page.put(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 15)]);
            }
        }
    }
    page.put(&bytes[from..]);
}

/// A line as it is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadLine {
    /// When it began, where the file says so.
    pub at: Option<At>,
    pub text: String,
}

/// Reads lines of a file back, also those that come in pieces: the beginning of one that was shown
/// before its end came.
#[derive(Debug, Clone)]
pub struct Reading {
    form: Form,
    /// The line that goes on in the next piece, and its moment.
    within: Option<Option<At>>,
}

/// An object of a file in JSON form.
#[derive(Deserialize)]
struct Object {
    at: Option<At>,
    line: String,
}

impl Reading {
    #[must_use]
    pub fn new(form: Form) -> Self {
        Self { form, within: None }
    }

    /// A piece of a line, which ends here if `whole`. A line that does not have the form stands as it is.
    pub fn line(&mut self, bytes: &[u8], whole: bool) -> ReadLine {
        let read = match self.within {
            None => begin(self.form, bytes),
            Some(at) => ReadLine { at, text: go_on(self.form, bytes) },
        };
        self.within = (!whole).then_some(read.at);
        read
    }
}

fn begin(form: Form, bytes: &[u8]) -> ReadLine {
    let found = match form {
        Form::Raw => None,
        Form::Stamped => stamped(bytes),
        Form::Json => object(bytes),
    };
    found.unwrap_or_else(|| ReadLine { at: None, text: String::from_utf8_lossy(bytes).into_owned() })
}

fn stamped(bytes: &[u8]) -> Option<ReadLine> {
    let (stamp, rest) = bytes.split_at_checked(At(0).to_string().len())?;
    let text = rest.strip_prefix(b" ")?;
    let at = std::str::from_utf8(stamp).ok()?.parse().ok()?;
    Some(ReadLine { at: Some(at), text: String::from_utf8_lossy(text).into_owned() })
}

fn object(bytes: &[u8]) -> Option<ReadLine> {
    let text = String::from_utf8_lossy(bytes);
    let parse = |text: &str| serde_json::from_str::<Object>(text).ok();
    let object = parse(&text).or_else(|| parse(&format!("{text}\"}}")))?;
    Some(ReadLine { at: object.at, text: object.line })
}

fn go_on(form: Form, bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    if form != Form::Json {
        return text.into_owned();
    }
    let inside = text.strip_suffix("\"}").unwrap_or(&text);
    serde_json::from_str(&format!("\"{inside}\"")).unwrap_or_else(|_| text.into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::api::Sink;

    fn pen(form: Form, limit: u64) -> Pen {
        let sink = Sink::raw(Path::new("/logs/blog/blog.1.err.log").into(), None, 0);
        let Sink { path, how } = sink.with(|how| (how.form, how.line_limit) = (form, Size(limit)));
        Pen::of(&path, &how)
    }

    /// Everything that is written for these pieces.
    fn written(pen: &Pen, pieces: &[&[u8]], tip: &mut Tip) -> Vec<u8> {
        let mut all = Vec::new();
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                let mut page = vec![0; 1500];
                let (taken, n) = pen.write(tip, At(0), rest, &mut page);
                all.extend_from_slice(&page[..n]);
                rest = &rest[taken..];
                // A successor has the tip out of a note.
                *tip = Tip::from_words(tip.words());
            }
        }
        all
    }

    const MOMENT: &str = "1970-01-01T00:00:00.000Z";

    #[test]
    fn a_line_has_its_time_before_it() {
        let mut tip = Tip::CLOSED;
        let all = written(&pen(Form::Stamped, 100), &[b"one\n\ntw", b"o\nthr"], &mut tip);
        assert_eq!(String::from_utf8(all).unwrap(), format!("{MOMENT} one\n{MOMENT} \n{MOMENT} two\n{MOMENT} thr"));
        assert!(tip.open);
    }

    #[test]
    fn a_line_is_an_object_and_characters_are_whole() {
        let mut tip = Tip::CLOSED;
        let all = written(&pen(Form::Json, 100), &[b"\xe2", b"\x89", b"\xa4 \"\0\x1b\r\n\xff\xe2\n"], &mut tip);
        let text = String::from_utf8(all).unwrap();
        let head = format!(r#"{{"at":"{MOMENT}","instance":"blog.1","stream":"err","line":""#);
        assert_eq!(text, format!("{head}≤ \\\"\\u0000\\u001b\\r\"}}\n{head}\u{fffd}\u{fffd}\"}}\n"));
        assert_eq!(tip, Tip::CLOSED);
    }

    #[test]
    fn a_long_line_comes_in_marked_parts_and_no_character_is_cut() {
        for form in [Form::Stamped, Form::Json] {
            let mut tip = Tip::CLOSED;
            let all = written(&pen(form, 10), &["aaaaaaaaa≤bbbb\n".as_bytes()], &mut tip);
            let mut reading = Reading::new(form);
            let lines: Vec<_> =
                String::from_utf8(all).unwrap().lines().map(|l| reading.line(l.as_bytes(), true)).collect();
            let texts: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
            assert_eq!(texts, [format!("aaaaaaaaa≤{GOES_ON}"), format!("{WENT_ON}bbbb")]);
            assert!(lines.iter().all(|line| line.at == Some(At(0))));
        }
    }

    #[test]
    fn a_line_that_is_shown_in_pieces_is_read_as_such() {
        let mut tip = Tip::CLOSED;
        let all = written(&pen(Form::Json, 100), &[b"\r1%\ttwo\n"], &mut tip);
        let cut = all.len() - 6;
        let mut reading = Reading::new(Form::Json);
        assert_eq!(reading.line(&all[..cut], false), ReadLine { at: Some(At(0)), text: "\r1%\t".into() });
        assert_eq!(reading.line(&all[cut..all.len() - 1], true), ReadLine { at: Some(At(0)), text: "two".into() });
        let mut reading = Reading::new(Form::Stamped);
        assert_eq!(reading.line(b"no stamp", true), ReadLine { at: None, text: "no stamp".into() });
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'"'), Just(0xe2), Just(0x89), any::<u8>()], 0..3000),
            cuts in prop::collection::vec(0usize..3000, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            let want: Vec<String> = bytes.split(|b| *b == b'\n').map(|l| String::from_utf8_lossy(l).into_owned()).collect();
            for form in [Form::Stamped, Form::Json] {
                let mut all = written(&pen(form, 1 << 20), &pieces, &mut Tip::default());
                if all.last() != Some(&b'\n') {
                    all.push(b'\n');
                }
                let mut reading = Reading::new(form);
                let mut got: Vec<String> =
                    all[..all.len() - 1].split(|b| *b == b'\n').map(|l| reading.line(l, true).text).collect();
                // A character whose end never came is carried still.
                if let (Some(got), Some(want)) = (got.last_mut(), want.last()) && got.len() < want.len() {
                    got.push('\u{fffd}');
                }
                if bytes.last() == Some(&b'\n') || bytes.is_empty() {
                    prop_assert_eq!(&got[..], if bytes.is_empty() { &want[..] } else { &want[..want.len() - 1] });
                } else {
                    prop_assert_eq!(&got, &want);
                }
            }
        }
    }
}
