//! Columns: aligned, cut to the terminal's width and nowhere else.

use std::io;

use anstyle::Style;

use super::screen::{DIM, HEADER, Screen, visible};

/// A table that is filled and then printed.
pub struct Table {
    header: Vec<String>,
    rows: Vec<Row>,
}

struct Row {
    cells: Vec<Cell>,
    /// A sentence below the row, whole on any terminal.
    below: Option<String>,
}

/// A text and how it looks.
pub struct Cell(String, Style);

impl Cell {
    pub fn styled(text: &(impl ToString + ?Sized), style: Style) -> Self {
        Self(visible(&text.to_string()).replace('\t', " "), style)
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(&text, Style::new())
    }
}

/// `-` where there is nothing.
pub fn or_dash(value: Option<impl ToString>) -> Cell {
    value.map_or_else(|| Cell::styled("-", DIM), |value| Cell::from(value))
}

impl Table {
    pub fn new(header: &[&str]) -> Self {
        Self { header: header.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(Row { cells, below: None });
    }

    /// Puts a sentence below the last row.
    pub fn below(&mut self, sentence: &str) {
        if let Some(row) = self.rows.last_mut() {
            row.below = Some(visible(sentence));
        }
    }

    /// # Errors
    /// When nobody takes the output.
    pub fn print(&self, screen: &mut Screen) -> io::Result<()> {
        let widths: Vec<usize> = (0..self.header.len())
            .map(|i| {
                self.rows.iter().map(|row| columns(&row.cells[i].0)).chain([self.header[i].len()]).max().unwrap_or(0)
            })
            .collect();
        let header: Vec<Cell> = self.header.iter().map(|name| Cell::styled(name, HEADER)).collect();
        print_row(screen, &header, &widths)?;
        for row in &self.rows {
            print_row(screen, &row.cells, &widths)?;
            if let Some(sentence) = &row.below {
                screen.line(&screen.paint(DIM, &format!("  {sentence}")))?;
            }
        }
        screen.flush()
    }
}

fn print_row(screen: &mut Screen, cells: &[Cell], widths: &[usize]) -> io::Result<()> {
    let mut left = screen.width.unwrap_or(usize::MAX);
    let mut line = String::new();
    for (i, (Cell(text, style), width)) in cells.iter().zip(widths).enumerate() {
        let text = cut(text, left);
        left = left.saturating_sub(width + 2);
        line.push_str(&screen.paint(*style, &text));
        if i + 1 < cells.len() && left > 0 {
            line.extend(std::iter::repeat_n(' ', width + 2 - columns(&text).min(*width)));
        }
    }
    screen.line(line.trim_end())
}

/// At most `width` columns of the text, with an ellipsis where it was longer.
fn cut(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let mut used = 1;
    let kept = text.chars().take_while(|c| {
        used += column(*c);
        used <= width
    });
    let mut kept: String = kept.collect();
    if width > 0 {
        kept.push('…');
    }
    kept
}

fn columns(text: &str) -> usize {
    text.chars().map(column).sum()
}

/// Columns a character takes: two for the East Asian and emoji blocks that terminals draw wide.
fn column(c: char) -> usize {
    let wide = matches!(u32::from(c), 0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f | 0xff00..=0xff60 | 0xffe0..=0xffe6 | 0x1f300..=0x1faff | 0x20000..=0x3fffd);
    1 + usize::from(wide)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_where_the_terminal_ends() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("中文字", 5), "中文…");
        assert_eq!(cut("abc", 0), "");
    }
}
