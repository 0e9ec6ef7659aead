//! Where output goes: what a terminal gets otherwise than a pipe.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

/// Standard output. Lines are buffered until [`Screen::flush`], which whoever waits calls first.
pub struct Screen {
    out: BufWriter<Stdout>,
    /// Somebody looks: control bytes are made visible and rows cut to `width`.
    pub terminal: bool,
    colour: bool,
    /// Columns of the terminal.
    pub width: Option<usize>,
}

pub const HEADER: Style = Style::new().bold();
pub const DIM: Style = Style::new().dimmed();
pub const GOOD: Style = AnsiColor::Green.on_default();
pub const BUSY: Style = AnsiColor::Yellow.on_default();
pub const BAD: Style = AnsiColor::Red.on_default();

impl Screen {
    pub fn stdout() -> Self {
        let out = io::stdout();
        let terminal = out.is_terminal();
        let colour = terminal && anstream::AutoStream::choice(&out) != anstream::ColorChoice::Never;
        let width = if terminal { rustix::termios::tcgetwinsize(&out).ok() } else { None };
        let width = width.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
        Self { out: BufWriter::new(out), terminal, colour, width }
    }

    /// # Errors
    /// When nobody takes the output.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.write_all(b"\n")
    }

    /// # Errors
    /// When nobody takes the output.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// One JSON document.
    ///
    /// # Errors
    /// When nobody takes the output.
    pub fn document(&mut self, document: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut self.out, document)?;
        self.line("")?;
        self.flush()
    }

    /// One JSON object a line.
    ///
    /// # Errors
    /// When nobody takes the output.
    pub fn object(&mut self, object: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, object)?;
        self.line("")
    }

    /// The text in a colour where colours are shown.
    pub fn paint(&self, style: Style, text: &str) -> String {
        if self.colour && style != Style::new() && !text.is_empty() {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }
}

/// A line on stderr. Whoever closed it does not want to know.
pub fn complain(text: &str) {
    let text = if io::stderr().is_terminal() { visible_lines(text) } else { text.to_owned() };
    let _ = writeln!(io::stderr(), "{text}");
}

/// Control bytes as text (`^[` for escape), so that what apps and commits say cannot drive the
/// terminal; the marks that reverse the direction of text too. Tabs stay.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => shown.push(c),
            '\u{0}'..='\u{1f}' => shown.extend(['^', char::from(c as u8 + 0x40)]),
            '\u{7f}' => shown.push_str("^?"),
            '\u{80}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => shown.extend(c.escape_unicode()),
            _ => shown.push(c),
        }
    }
    shown
}

/// [`visible`] for a text of several lines.
pub fn visible_lines(text: &str) -> String {
    text.lines().map(visible).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_drives_the_terminal() {
        assert_eq!(visible("\u{1b}[31mred\u{1b}[0m\r\u{7}"), "^[[31mred^[[0m^M^G");
        assert_eq!(visible("a\tb ü 中\u{9b}2J\u{202e}"), "a\tb ü 中\\u{9b}2J\\u{202e}");
        assert_eq!(visible_lines("one\ntwo\u{1b}"), "one\ntwo^[");
    }
}
