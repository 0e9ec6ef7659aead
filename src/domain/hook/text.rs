//! Texts of strangers, made fit to be stored and shown.

/// The first line, trimmed, control characters left out, at most `limit` characters.
pub(super) fn line(text: &str, limit: usize) -> String {
    let first = text.trim_start().lines().next().unwrap_or_default().trim_end();
    // Most are as they have to be.
    if first.len() <= limit && first.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return first.to_owned();
    }
    first.chars().filter(|c| !c.is_control()).take(limit).collect()
}

/// The same, where there is something left.
pub(super) fn some_line(text: &str, limit: usize) -> Option<String> {
    Some(line(text, limit)).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_short_and_plain() {
        assert_eq!(line("fix: a\r\n\nlong story", 100), "fix: a");
        assert_eq!(line("\n\n  first \n", 100), "first");
        assert_eq!(line("a\u{1b}[31mb\0", 100), "a[31mb");
        assert_eq!(line("äöü", 2), "äö");
        assert_eq!(some_line(" \n\t", 9), None);
    }
}
