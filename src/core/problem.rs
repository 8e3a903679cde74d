//! What is wrong with an installation: each problem with its place and a way to mend it.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// How bad a problem is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Severity {
    /// The bus refuses to start with it.
    Error,
    /// It runs, and probably does not do what was meant.
    Warning,
}

impl Severity {
    /// `error` or `warning`.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// A place in a file of the installation.
#[derive(Clone, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct Place {
    /// Path relative to the installation folder.
    pub file: Arc<Path>,
    /// 1-based line; 0 when the whole file is meant.
    pub line: usize,
    /// 1-based column in characters; 0 when the whole line is meant.
    pub column: usize,
}

impl Place {
    /// The whole of a file.
    pub fn file(path: &Path) -> Self {
        Self {
            file: Arc::from(path),
            line: 0,
            column: 0,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
            if self.column > 0 {
                write!(f, ":{}", self.column)?;
            }
        }
        Ok(())
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// A stable name for programs and for looking it up, such as `unknown-key`.
    pub code: &'static str,
    /// What is wrong, in a sentence.
    pub message: String,
    /// Where.
    pub place: Place,
    /// How to mend it.
    pub help: Option<String>,
    /// Columns of its source line, from 0, that nobody shall see: secrets stand there.
    pub hidden: Vec<std::ops::Range<usize>>,
}

/// Collects problems; every problem is found before any is reported.
#[derive(Default, Debug)]
pub struct Problems(Mutex<Vec<Problem>>);

impl Problems {
    /// None so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an error.
    pub fn error(
        &self,
        place: &Place,
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.add(Severity::Error, place, code, message.into(), help.into());
    }

    /// Adds a warning.
    pub fn warning(
        &self,
        place: &Place,
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.add(Severity::Warning, place, code, message.into(), help.into());
    }

    fn add(
        &self,
        severity: Severity,
        place: &Place,
        code: &'static str,
        message: String,
        help: String,
    ) {
        let problem = Problem {
            severity,
            code,
            message,
            place: place.clone(),
            help: (!help.is_empty()).then_some(help),
            hidden: Vec::new(),
        };
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .push(problem);
    }

    /// Adds what was collected elsewhere.
    pub fn extend(&self, more: impl IntoIterator<Item = Problem>) {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .extend(more);
    }

    /// Whether there is an error among them.
    pub fn has_errors(&self) -> bool {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .iter()
            .any(|problem| problem.severity == Severity::Error)
    }

    /// Whether there are any of a file.
    pub fn are_of(&self, file: &Path) -> bool {
        let all = self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        all.iter().any(|problem| *problem.place.file == *file)
    }

    /// All of them, by file, line and column.
    pub fn into_sorted(self) -> Vec<Problem> {
        let mut all = self
            .0
            .into_inner()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        all.sort_by(|a, b| a.place.cmp(&b.place));
        all
    }
}

/// The name among `candidates` that somebody who wrote `name` most probably meant: at most a third
/// of its letters differ.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (name.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// A sentence that suggests the nearest name, or else lists what there is.
pub fn suggest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(name, candidates.clone()) {
        Some(near) => format!("did you mean '{near}'?"),
        None => {
            let all: Vec<&str> = candidates.into_iter().collect();
            if all.is_empty() {
                String::from("there are none")
            } else {
                format!("there are: {}", all.join(", "))
            }
        }
    }
}

/// Edits (insert, delete, replace, swap neighbours) between two names, without regard to case, `_` and `-`.
fn distance(a: &str, b: &str) -> usize {
    strsim::damerau_levenshtein(&fold(a), &fold(b))
}

fn fold(name: &str) -> String {
    name.to_lowercase().replace('_', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_and_not_strangers() {
        let names = ["transform", "timeout", "retry", "order_by"];
        assert_eq!(nearest("transfrom", names), Some("transform"));
        assert_eq!(nearest("order-by", names), Some("order_by"));
        assert_eq!(nearest("banana", names), None);
    }
}
