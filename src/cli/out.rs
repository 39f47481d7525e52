//! Standard output: text, tables and colours.
//!
//! Invariants: a closed stdout (`evenkeel … | head`) ends the command quietly and never panics; colour appears only on
//! a terminal and never when `NO_COLOR` is set.
//!
//! Non-goals: progress bars (indicatif draws those on stderr).

use std::io::{self, IsTerminal, Write};

pub use crate::core::words::{human_seconds, human_us, thousands};

/// The reader of stdout went away. The command ends with success, as the reader has what it wanted.
#[derive(Debug, thiserror::Error)]
#[error("stdout is closed")]
pub struct StdoutClosed;

/// Prints `text` and a line end.
///
/// # Errors
/// [`StdoutClosed`], or what else the write met (a full disk behind a redirection).
pub fn line(text: impl AsRef<str>) -> anyhow::Result<()> {
    write_to(&mut io::stdout().lock(), text.as_ref())
}

fn write_to(out: &mut impl Write, text: &str) -> anyhow::Result<()> {
    let newline: &[u8] = if text.ends_with('\n') { b"" } else { b"\n" };
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(newline)).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        Err(e) => Err(anyhow::Error::new(e).context("writing to stdout")),
    }
}

/// Prints a line on stderr; a closed stderr is no reason to stop working.
pub fn note(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
}

/// True if stdout may carry colour.
pub fn colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Where a column's text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// A table of text.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Columns by title; a title that begins with `>` stands right.
    pub fn new(titles: &[&'static str]) -> Self {
        let columns = titles.iter().map(|t| match t.strip_prefix('>') {
            Some(title) => (title, Align::Right),
            None => (*t, Align::Left),
        });
        Table { columns: columns.collect(), rows: Vec::new() }
    }

    /// Adds a row; cells that lack stay empty, cells beyond the columns are dropped.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        let mut cells = Vec::from(cells);
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
    }

    /// True if it has no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The text, with state words in colour if `colour`.
    pub fn render(&self, colour: bool) -> String {
        let width = |i: usize| {
            let cells = self.rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
            cells.max(self.columns[i].0.chars().count())
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut out = String::new();
        let titles: Vec<String> = self.columns.iter().map(|c| c.0.to_owned()).collect();
        self.render_row(&mut out, &titles, &widths, |text| if colour { paint(BOLD, text) } else { text.to_owned() });
        for row in &self.rows {
            self.render_row(&mut out, row, &widths, |text| if colour { paint_state(text) } else { text.to_owned() });
        }
        out
    }

    fn render_row(&self, out: &mut String, cells: &[String], widths: &[usize], style: impl Fn(&str) -> String) {
        let mut line = String::new();
        for (i, cell) in cells.iter().enumerate() {
            let pad = " ".repeat(widths[i] - cell.chars().count());
            if i > 0 {
                line.push_str("  ");
            }
            match self.columns[i].1 {
                Align::Left => line.push_str(&(style(cell) + &pad)),
                Align::Right => line.push_str(&(pad + &style(cell))),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

const BOLD: &str = "1";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

fn paint(code: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("\x1b[{code}m{text}\x1b[0m") }
}

/// How well a state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    Well,
    Warn,
    Bad,
}

/// Of the state that the text names; `None`: it names none.
pub fn grade(text: &str) -> Option<Grade> {
    match text {
        "ok" | "up" | "clean" => Some(Grade::Well),
        "warn" | "suspect" | "degraded" | "misplaced" | "draining" | "maintenance" | "deleting" => Some(Grade::Warn),
        "error" | "down" | "unavailable" | "failed" | "full" | "hung" | "no progress" => Some(Grade::Bad),
        _ => None,
    }
}

/// The text in the colour of the state that it names; other text as it is.
pub fn paint_state(text: &str) -> String {
    match grade(text) {
        Some(Grade::Well) => paint(GREEN, text),
        Some(Grade::Warn) => paint(YELLOW, text),
        Some(Grade::Bad) => paint(RED, text),
        None => text.to_owned(),
    }
}

/// Part of a whole in percent; nothing of nothing is 0 %.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "0 %".to_owned() } else { format!("{:.0} %", part as f64 / whole as f64 * 100.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_stdout_is_its_own_error() {
        let error = write_to(&mut Closed, "x").unwrap_err();
        assert!(error.downcast_ref::<StdoutClosed>().is_some());
    }

    #[test]
    fn one_line_end_is_enough() {
        let mut out = Vec::new();
        write_to(&mut out, "a").unwrap();
        write_to(&mut out, "b\n").unwrap();
        assert_eq!(out, b"a\nb\n");
    }

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_blanks() {
        let mut table = Table::new(&["NAME", ">SIZE", "STATE"]);
        table.row(["vm-één".into(), "1 GiB".into(), "ok".into()]);
        table.row(["b".into(), "10.5 GiB".into()]);
        let text = table.render(false);
        assert_eq!(text, "NAME        SIZE  STATE\nvm-één     1 GiB  ok\nb       10.5 GiB\n");
    }

    #[test]
    fn colour_does_not_change_the_layout() {
        let mut table = Table::new(&["STATE", "X"]);
        table.row(["up".into(), "1".into()]);
        table.row(["degraded".into(), "2".into()]);
        let plain = table.render(false);
        let mut stripped = table.render(true);
        assert!(stripped.contains("\x1b[32mup\x1b[0m"));
        for code in ["\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m"] {
            stripped = stripped.replace(code, "");
        }
        assert_eq!(stripped, plain);
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(percent(1, 4), "25 %");
        assert_eq!(percent(0, 0), "0 %");
    }
}
