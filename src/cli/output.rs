//! What commands say: results to standard output, everything else to standard error, and an exit
//! code that scripts can use.
//!
//! Text that comes from messages and destinations is shown without control characters, so that
//! nothing in it can move the terminal's cursor or colour the administrator's screen.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;
use xbus_core::Timestamp;

/// The thing asked about failed: problems were found, a fault came back, there is no such queue.
pub const FAILED: u8 = 1;
/// The command was used wrongly.
pub const WRONG_USE: u8 = 2;
/// No bus could be reached.
pub const NO_BUS: u8 = 3;

/// Why a command did not do what was asked.
#[derive(Debug, Default)]
pub struct Failure {
    /// Exit code: 1, 2 or 3.
    pub code: u8,
    /// What happened, in a sentence; nothing when it was told already.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// What the bus answered; goes to standard output with `--json`.
    pub body: Option<Box<Value>>,
}

impl Failure {
    /// The thing asked about failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::of(FAILED, message)
    }

    /// The command was used wrongly.
    pub fn wrong_use(message: impl Into<String>) -> Self {
        Self::of(WRONG_USE, message)
    }

    /// No bus could be reached.
    pub fn no_bus(message: impl Into<String>) -> Self {
        Self::of(NO_BUS, message)
    }

    /// Exit code 1 after everything was said.
    pub fn told() -> Self {
        Self::of(FAILED, "")
    }

    fn of(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            ..Self::default()
        }
    }

    /// Adds what to do about it.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Tells what came of a command, and gives the process its exit code.
pub fn finish(result: Result<(), Failure>, json: bool) -> ExitCode {
    let Err(failure) = result else {
        return ExitCode::SUCCESS;
    };
    if let (true, Some(body)) = (json, &failure.body) {
        print_json(body);
    }
    if !failure.message.is_empty() {
        note(&format!("error: {}", printable(&failure.message)));
    }
    if let Some(help) = &failure.help {
        note(&format!("  help: {}", printable(help)));
    }
    ExitCode::from(failure.code)
}

/// Writes to standard output. A reader that has gone away (`| head`) is no error.
pub fn print(text: &str) {
    print_bytes(text.as_bytes());
}

/// Writes bytes to standard output as they are.
pub fn print_bytes(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

/// Writes JSON to standard output.
pub fn print_json(value: &Value) {
    print(&format!("{value:#}\n"));
}

/// Writes what was asked for: as JSON where that is wanted, else as `text` tells it.
pub fn show(json: bool, value: &Value, text: impl FnOnce(&Value) -> String) {
    if json {
        print_json(value);
    } else {
        print(&text(value));
    }
}

/// The elements of a list; none where it is no list.
pub fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Writes a line to standard error.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// The terminal's width in columns; nothing when standard output is a file or a pipe, where lines
/// stay whole for the programs that read them.
pub fn width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let (terminal_size::Width(width), _) = terminal_size::terminal_size()?;
    Some(usize::from(width).max(40))
}

/// `text` without control characters; line breaks and tabs become spaces.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\r' | '\t' => ' ',
            c if is_unsafe(c) => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// The same for text of several lines, which keeps its lines.
pub fn printable_lines(text: &str) -> String {
    text.chars()
        .filter(|c| *c != '\r')
        .map(|c| {
            if is_unsafe(c) && c != '\n' && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// Control characters, and those that reverse the direction of what follows (Unicode TR 36).
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A duration in at most two units, such as `3m 20s`.
pub fn span(duration: Duration) -> String {
    let s = duration.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {}s", s / 60, s % 60),
        3600..86_400 => format!("{}h {}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// How long ago the time in `value` was, `-` when there is none.
pub fn age(value: &Value, now: Timestamp) -> String {
    moment(value).map_or_else(|| String::from("-"), |at| span(at.until(now)))
}

/// The time in `value`, and how far it is away.
pub fn when(value: &Value, now: Timestamp) -> String {
    match moment(value) {
        None => String::from("-"),
        Some(at) if at > now => format!("{at} (in {})", span(now.until(at))),
        Some(at) => format!("{at} ({} ago)", span(at.until(now))),
    }
}

fn moment(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// A value in a table's cell: text without quotes, `-` for nothing.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::from("-"),
        Value::String(text) if text.is_empty() => String::from("-"),
        Value::String(text) => printable(text),
        other => other.to_string(),
    }
}

/// What fits into a table of an error that may quote the lines of a script.
pub fn first_line(error: &Value) -> String {
    match error.as_str().and_then(|text| text.split_once('\n')) {
        Some((first, _)) => format!("{} …", printable(first.trim_end())),
        None => cell(error),
    }
}

/// The same as [`cell`] for a value of [`facts`], which keeps its lines.
pub fn cell_lines(value: &Value) -> String {
    match value {
        Value::String(text) if !text.trim().is_empty() => {
            printable_lines(text).trim_end().to_owned()
        }
        other => cell(other),
    }
}

/// Rows under headings, aligned; the last column wraps within the width.
pub struct Table {
    heads: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

/// To which side a column leans.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

impl Table {
    /// A table with these headings.
    pub fn new(heads: &[(&'static str, Align)]) -> Self {
        Self {
            heads: heads.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, one cell for each heading.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, within `width` columns where that is known.
    pub fn render(&self, width: Option<usize>) -> String {
        let widths: Vec<usize> = (0..self.heads.len()).map(|at| self.width_of(at)).collect();
        let heads: Vec<String> = self
            .heads
            .iter()
            .map(|(head, _)| head.to_string())
            .collect();
        let mut out = String::new();
        for row in std::iter::once(&heads).chain(&self.rows) {
            self.line(&mut out, row, &widths, width);
        }
        out
    }

    fn width_of(&self, at: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(at));
        let widest = cells.map(|cell| cell.chars().count()).max();
        widest.unwrap_or(0).max(self.heads[at].0.len())
    }

    fn line(&self, out: &mut String, row: &[String], widths: &[usize], width: Option<usize>) {
        let Some((last, front)) = row.split_last() else {
            return;
        };
        let mut indent = 0;
        for (at, cell) in front.iter().enumerate() {
            let pad = " ".repeat(widths[at].saturating_sub(cell.chars().count()));
            match self.heads[at].1 {
                Align::Left => out.push_str(&format!("{cell}{pad}  ")),
                Align::Right => out.push_str(&format!("{pad}{cell}  ")),
            }
            indent += widths[at] + 2;
        }
        let lines = match width {
            None => vec![last.clone()],
            // Too narrow to wrap beside the others: beneath them.
            Some(width) if width < indent + 24 => {
                let text = wrap(last, width.saturating_sub(4).max(20));
                if text.len() == 1 && indent + last.chars().count() <= width {
                    text
                } else {
                    indent = 4;
                    std::iter::once(String::new()).chain(text).collect()
                }
            }
            Some(width) => wrap(last, width - indent),
        };
        for (at, line) in lines.iter().enumerate() {
            if at > 0 {
                out.push_str(&" ".repeat(indent));
            }
            let end = out.len() + line.len();
            out.push_str(line);
            let kept = out[..end].trim_end_matches(' ').len();
            out.truncate(kept);
            out.push('\n');
        }
    }
}

/// Named values, names aligned. Of a value of several lines only the first wraps: what follows may
/// point at a column of a quoted line.
pub fn facts(pairs: &[(&str, String)], width: Option<usize>) -> String {
    let widest = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for (name, value) in pairs
        .iter()
        .filter(|(_, value)| !value.is_empty() && value != "-")
    {
        let room = width.map_or(usize::MAX, |width| width.saturating_sub(widest + 2).max(20));
        let (first, rest) = value.split_once('\n').unwrap_or((value, ""));
        let lines = wrap(first, room);
        let rest = rest.lines().map(str::trim_end);
        for (at, line) in lines.iter().map(String::as_str).chain(rest).enumerate() {
            let name = if at == 0 { *name } else { "" };
            if line.is_empty() {
                out.push('\n');
                continue;
            }
            let _ = writeln!(out, "{name:widest$}  {line}");
        }
    }
    out
}

/// Breaks `text` at spaces into lines of at most `width` characters; longer words are cut.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        if used > 0 && used + 1 + word.len() > width {
            lines.push(String::new());
            used = 0;
        } else if used > 0 {
            push(&mut lines, " ");
            used += 1;
        }
        while word.len() > width {
            let rest = word.split_off(width);
            push(&mut lines, &word.iter().collect::<String>());
            lines.push(String::new());
            word = rest;
        }
        used += word.len();
        push(&mut lines, &word.iter().collect::<String>());
    }
    lines
}

fn push(lines: &mut [String], text: &str) {
    if let Some(last) = lines.last_mut() {
        last.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn table() -> Table {
        let mut table = Table::new(&[
            ("NAME", Align::Left),
            ("DEPTH", Align::Right),
            ("LAST-ERROR", Align::Left),
        ]);
        table.row(vec![
            "orders.erp".into(),
            "12".into(),
            "the connection was refused by the other side".into(),
        ]);
        table.row(vec!["a".into(), "3".into(), "-".into()]);
        table
    }

    #[test]
    fn tables_align_and_wrap_their_last_column() {
        let wide = "NAME        DEPTH  LAST-ERROR\n\
                    orders.erp     12  the connection was refused by the other side\n\
                    a               3  -\n";
        assert_eq!(table().render(None), wide);
        let narrow = "NAME        DEPTH  LAST-ERROR\n\
                      orders.erp     12  the connection was refused\n                   \
                                         by the other side\n\
                      a               3  -\n";
        assert_eq!(table().render(Some(46)), narrow);
    }

    #[test]
    fn a_narrow_terminal_gets_the_last_column_beneath() {
        let beneath = "NAME        DEPTH  LAST-ERROR\n\
                       orders.erp     12\n    \
                           the connection was refused by the\n    \
                           other side\n\
                       a               3  -\n";
        assert_eq!(table().render(Some(40)), beneath);
    }

    #[test]
    fn wrapping_cuts_what_has_no_spaces() {
        assert_eq!(wrap("aaaaaaa bb", 3), ["aaa", "aaa", "a", "bb"]);
        assert_eq!(wrap("", 10), [""]);
    }

    #[test]
    fn nothing_from_outside_steers_the_terminal() {
        assert_eq!(
            printable("a\u{1b}[31mb\nc\u{202e}"),
            "a\u{fffd}[31mb c\u{fffd}"
        );
        assert_eq!(printable_lines("a\r\nb\u{7}"), "a\nb\u{fffd}");
        assert_eq!(cell(&json!("x\u{1b}")), "x\u{fffd}");
    }

    #[test]
    fn spans_have_two_units() {
        let spans = [5, 65, 3725, 90_000].map(|s| span(Duration::from_secs(s)));
        assert_eq!(spans, ["5s", "1m 5s", "1h 2m", "1d 1h"]);
    }

    #[test]
    fn times_say_how_far_they_are_away() {
        let now: Timestamp = "2026-11-22T08:00:00Z".parse().unwrap();
        let ahead = when(&json!("2026-11-22T08:01:00Z"), now);
        assert_eq!(ahead, "2026-11-22T08:01:00.000Z (in 1m 0s)");
        assert_eq!(age(&json!("2026-11-22T07:59:50Z"), now), "10s");
        assert_eq!(age(&json!(null), now), "-");
    }
}
