//! Lines out of bytes that come in pieces: pure.

use memchr::memchr_iter;

/// A longer line is told in parts of this many bytes.
const MAX_LINE: usize = 1024 * 1024;

/// Holds the beginning of a line until its newline comes.
#[derive(Debug)]
pub struct Lines {
    partial: Vec<u8>,
    /// A longer line is told in parts.
    longest: usize,
}

impl Default for Lines {
    fn default() -> Self {
        Self::up_to(MAX_LINE)
    }
}

/// A line without its newline, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    pub bytes: &'a [u8],
    /// Its newline has come.
    pub whole: bool,
    /// How many of the bytes that were pushed last come before its end.
    pub end: usize,
}

impl Lines {
    /// Tells a line that is longer than this in parts.
    #[must_use]
    pub fn up_to(longest: usize) -> Self {
        Self { partial: Vec::new(), longest }
    }

    /// Takes bytes and gives each line that is whole now.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(Piece<'_>)) {
        let mut from = 0;
        for newline in memchr_iter(b'\n', bytes) {
            let end = newline + 1;
            if self.partial.is_empty() {
                each(Piece { bytes: &bytes[from..newline], whole: true, end });
            } else {
                self.partial.extend_from_slice(&bytes[from..newline]);
                each(Piece { bytes: &self.partial, whole: true, end });
                self.partial.clear();
            }
            from = end;
        }
        self.partial.extend_from_slice(&bytes[from..]);
        if self.partial.len() > self.longest
            && let Some(part) = self.show()
        {
            each(Piece { bytes: &part, whole: false, end: bytes.len() - self.partial.len() });
        }
    }

    /// How many bytes wait for their newline.
    #[must_use]
    pub fn held(&self) -> usize {
        self.partial.len()
    }

    /// Is there something that could be shown before its newline comes?
    #[must_use]
    pub fn waits(&self) -> bool {
        whole(&self.partial) > 0
    }

    /// What there is of the line, but for the beginning of a character whose end is still to come.
    pub fn show(&mut self) -> Option<Vec<u8>> {
        let rest = self.partial.split_off(whole(&self.partial));
        let shown = std::mem::replace(&mut self.partial, rest);
        (!shown.is_empty()).then_some(shown)
    }

    /// What there is of the line: no more will come.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        let rest = std::mem::take(&mut self.partial);
        (!rest.is_empty()).then_some(rest)
    }
}

/// How many bytes come before a character of UTF-8 whose end is missing.
fn whole(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let at = bytes.len() - back;
        let length = match bytes[at] {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => 1,
        };
        return if length > back { at } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_make_the_same_lines_as_the_whole(text in "[a≤\n]{0,60}", cuts in prop::collection::vec(0usize..200, 0..8)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let mut lines = Lines::default();
            let mut got: Vec<String> = Vec::new();
            for piece in cuts.windows(2) {
                lines.push(&bytes[piece[0]..piece[1]], |l| got.push(String::from_utf8(l.bytes.to_vec()).unwrap()));
            }
            got.extend(lines.finish().map(|l| String::from_utf8(l).unwrap()));
            let want: Vec<&str> = text.split_terminator('\n').collect();
            prop_assert_eq!(got, want);
        }

        #[test]
        fn what_is_shown_early_never_cuts_a_character(text in "[a≤ß𝄞]{1,20}", cut in 0usize..80) {
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            let mut lines = Lines::default();
            let mut got = Vec::new();
            lines.push(&bytes[..cut], |_| unreachable!());
            if let Some(shown) = lines.show() {
                prop_assert!(std::str::from_utf8(&shown).is_ok());
                got.extend(shown);
            }
            prop_assert!(!lines.waits());
            lines.push(&bytes[cut..], |_| unreachable!());
            got.extend(lines.finish().unwrap_or_default());
            prop_assert_eq!(got, bytes);
        }
    }

    #[test]
    fn a_line_without_end_comes_in_parts() {
        let mut lines = Lines::default();
        let mut parts = 0;
        for _ in 0..40 {
            lines.push(&[b'x'; 65536], |part| {
                assert!(!part.whole && part.end == 65536 && part.bytes.len() <= MAX_LINE + 65536);
                parts += 1;
            });
        }
        assert_eq!(parts, 2);
    }
}
