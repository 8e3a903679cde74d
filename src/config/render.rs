//! Problems for people and for programs.

use std::collections::HashMap;
use std::fmt::Write;
use std::ops::Range;
use std::path::Path;

use serde_json::{Value, json};
use xbus_core::problem::{Problem, Severity};

/// Longest part of a source line that is shown, in characters.
const MAX_WIDTH: usize = 120;

/// Problems as text: each with its place, the source line with a mark under the column, and how to
/// mend it; then a count. Source lines are read from the folder, so that they show what the user
/// wrote and never what the environment gave.
pub fn render(problems: &[Problem], root: &Path, colour: bool) -> String {
    let paint = Paint(colour);
    let mut sources: HashMap<&Path, Option<String>> = HashMap::new();
    let mut out = String::new();
    for problem in problems {
        let (level, style) = match problem.severity {
            Severity::Error => ("error", "1;31"),
            Severity::Warning => ("warning", "1;33"),
        };
        let head = paint.with(style, &format!("{level}[{}]", problem.code));
        let message = paint.with("1", &format!(": {}", clean(&problem.message)));
        let _ = writeln!(out, "{head}{message}");
        let place = &problem.place;
        let _ = writeln!(
            out,
            "  {} {}",
            paint.with("1;34", "-->"),
            clean(&place.to_string())
        );
        let source = sources
            .entry(&place.file)
            .or_insert_with(|| std::fs::read_to_string(root.join(&place.file)).ok());
        let line = place
            .line
            .checked_sub(1)
            .and_then(|skip| source.as_deref()?.lines().nth(skip));
        if let Some(line) = line {
            let (line, column) = masked(line, place.column, &problem.hidden);
            quote(&mut out, &line, place.line, column, &paint, style);
        }
        if let Some(help) = &problem.help {
            let _ = writeln!(out, "  {} {}", paint.with("1;36", "help:"), clean(help));
        }
        out.push('\n');
    }
    out.push_str(&summary(problems));
    out
}

fn quote(out: &mut String, line: &str, number: usize, column: usize, paint: &Paint, style: &str) {
    let line = clean(line);
    let before = column.saturating_sub(1);
    // A long line is cut so that the column stays in sight.
    let skip = before.saturating_sub(MAX_WIDTH / 2);
    let skip = if line.chars().count() <= MAX_WIDTH {
        0
    } else {
        skip
    };
    let shown: String = line.chars().skip(skip).take(MAX_WIDTH).collect();
    let number = number.to_string();
    let margin = " ".repeat(number.len());
    let bar = paint.with("1;34", "|");
    let _ = writeln!(out, " {margin} {bar}");
    let _ = writeln!(
        out,
        " {} {bar} {}",
        paint.with("1;34", &number),
        shown.trim_end()
    );
    if column > 0 {
        let gap = " ".repeat(before - skip.min(before));
        let mark = "^".repeat(token(&line, before).max(1));
        let _ = writeln!(out, " {margin} {bar} {gap}{}", paint.with(style, &mark));
    }
}

/// What stands for what is not shown: as long whatever it hides.
const MASK: &str = "***";

/// A line without what is hidden on it and without the user parts of URLs, and where its column is then.
fn masked(line: &str, column: usize, hidden: &[Range<usize>]) -> (String, usize) {
    let chars: Vec<char> = line.chars().collect();
    let mut ranges: Vec<Range<usize>> = hidden.iter().cloned().chain(users(&chars)).collect();
    ranges.sort_by_key(|range| range.start);
    let (mut out, mut at, mut moved) = (String::with_capacity(line.len()), 0, column);
    for range in ranges {
        let end = range.end.min(chars.len());
        if range.start >= at {
            out.extend(&chars[at..range.start.min(end)]);
            if column > range.start {
                // Within what is hidden the column is where that begins.
                moved = match column > end {
                    true => out.chars().count() + MASK.len() + (column - end),
                    false => out.chars().count() + 1,
                };
            }
            out.push_str(MASK);
        }
        at = at.max(end);
    }
    out.extend(&chars[at.min(chars.len())..]);
    (out, moved)
}

/// Where the user parts of URLs stand, between `://` and `@`.
fn users(chars: &[char]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = chars[at..]
        .windows(3)
        .position(|three| three == [':', '/', '/'])
    {
        let from = at + next + 3;
        let quote = chars[..from].iter().rev().find(|c| matches!(c, '"' | '\''));
        let ends = |c: char| match quote {
            Some(quote) => c == *quote,
            None => c.is_whitespace() || matches!(c, ',' | '}' | ']'),
        };
        let rest = &chars[from..];
        let rest = &rest[..rest.iter().position(|c| ends(*c)).unwrap_or(rest.len())];
        if let Some(end) = rest.iter().rposition(|c| *c == '@').filter(|end| *end > 0) {
            found.push(from..from + end);
            at = from + end;
        } else {
            at = from;
        }
    }
    found
}

/// How many characters belong to the word or quoted text at a column.
fn token(line: &str, from: usize) -> usize {
    let mut chars = line.chars().skip(from);
    match chars.next() {
        Some(quote @ ('"' | '\'')) => chars
            .position(|c| c == quote)
            .map_or(1, |at| at + 2)
            .min(60),
        Some(c) if c.is_alphanumeric() => {
            1 + chars
                .take_while(|c| c.is_alphanumeric() || "_-./".contains(*c))
                .count()
        }
        _ => 1,
    }
}

fn summary(problems: &[Problem]) -> String {
    let count = |severity| {
        problems
            .iter()
            .filter(|problem| problem.severity == severity)
            .count()
    };
    let words = |count: usize, one: &str| match count {
        1 => format!("1 {one}"),
        more => format!("{more} {one}s"),
    };
    match (count(Severity::Error), count(Severity::Warning)) {
        (0, 0) => String::from("no problems\n"),
        (errors, 0) => format!("{}\n", words(errors, "error")),
        (0, warnings) => format!("{}\n", words(warnings, "warning")),
        (errors, warnings) => format!(
            "{}, {}\n",
            words(errors, "error"),
            words(warnings, "warning")
        ),
    }
}

/// A text that cannot steer a terminal: control characters are blanks, tabs too, so that the mark
/// stands under its column.
fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

struct Paint(bool);

impl Paint {
    fn with(&self, style: &str, text: &str) -> String {
        match self.0 {
            true => format!("\x1b[{style}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

/// Problems as `{"problems": [{severity, code, message, file, line, column, help}]}`. Line and
/// column count from 1; `null` where a whole file or line is meant, as is `help` without one.
pub fn to_json(problems: &[Problem]) -> Value {
    let number = |number: usize| match number {
        0 => Value::Null,
        number => json!(number),
    };
    let problems: Vec<Value> = problems
        .iter()
        .map(|problem| {
            json!({
                "severity": problem.severity.name(),
                "code": problem.code,
                "message": problem.message,
                "file": problem.place.file.display().to_string(),
                "line": number(problem.place.line),
                "column": number(problem.place.column),
                "help": problem.help,
            })
        })
        .collect();
    json!({ "problems": problems })
}
