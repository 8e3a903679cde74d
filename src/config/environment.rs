//! References to the environment in what the user wrote: `${NAME}`, `${NAME:-default}`,
//! `${file:/path}` and `$${` for a literal `${`. They are replaced once, after the YAML was parsed,
//! so that a value can hold any character. Keys are left as they are.

use std::collections::BTreeSet;
use std::path::Path;

use xbus_core::Problems;
use xbus_core::problem::Place;
use xbus_core::spec::{Node, Raw, Scalar};

/// Whether the folder is only looked at or is about to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// A variable that is not set is a warning: the folder may be checked elsewhere than it runs.
    Check,
    /// A variable that is not set is an error.
    Run,
}

/// Where variables come from.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process's own environment.
pub(crate) fn of_process(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// Replaces the references of a tree.
pub(crate) struct Replace<'a> {
    pub(crate) root: &'a Path,
    pub(crate) mode: Mode,
    pub(crate) lookup: Lookup<'a>,
    pub(crate) problems: &'a Problems,
    /// Gets the places of the values that are not known because a variable is not set.
    pub(crate) unknown: &'a mut BTreeSet<Place>,
}

impl Replace<'_> {
    /// Replaces the references in every value below `node`. Recursion is bounded by the parser's
    /// bound on depth.
    pub(crate) fn within(&mut self, node: &mut Node) {
        match &mut node.raw {
            Raw::Null => {}
            Raw::List(items) => items.iter_mut().for_each(|item| self.within(item)),
            Raw::Map(entries) => entries.iter_mut().for_each(|(_, value)| self.within(value)),
            Raw::Scalar(scalar) => {
                if scalar.text.contains("${") {
                    if let Some(replaced) = self.scalar(&scalar.text, &node.place) {
                        *scalar = replaced;
                    } else {
                        // As if it were not written: nobody shall read the reference itself.
                        node.raw = Raw::Null;
                        self.unknown.insert(node.place.clone());
                    }
                }
            }
        }
    }

    /// The text with its references replaced; nothing when one of them is not known.
    fn scalar(&self, text: &str, place: &Place) -> Option<Scalar> {
        let mut scalar = Scalar {
            text: String::with_capacity(text.len()),
            literal: Vec::new(),
            secret: false,
        };
        let mut known = true;
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            if rest[..at].ends_with('$') {
                // `$${`: one dollar less, and the brace is text.
                scalar.text.push_str(&rest[..at - 1]);
                scalar.text.push_str("${");
                rest = &rest[at + 2..];
                continue;
            }
            scalar.text.push_str(&rest[..at]);
            let Some(end) = rest[at..].find('}') else {
                self.problems.error(
                    place,
                    "bad-variable",
                    "'${' without its '}'",
                    "write ${NAME}, ${NAME:-default} or ${file:/path}; '$${' stands for a literal '${'",
                );
                return None;
            };
            match self.value(&rest[at + 2..at + end], place, &mut scalar.secret) {
                Some((value, from_outside)) => {
                    let start = scalar.text.len();
                    scalar.text.push_str(&value);
                    if from_outside {
                        scalar.literal.push(start..scalar.text.len());
                    }
                }
                None => known = false,
            }
            rest = &rest[at + end + 1..];
        }
        scalar.text.push_str(rest);
        known.then_some(scalar)
    }

    /// The value of what stands between the braces, and whether it came from outside of the file.
    fn value(&self, inner: &str, place: &Place, secret: &mut bool) -> Option<(String, bool)> {
        if let Some(path) = inner.strip_prefix("file:") {
            *secret = true;
            return self.file(path, place).map(|value| (value, true));
        }
        let (name, default) = match inner.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inner, None),
        };
        if !is_name(name) || default.is_some_and(|default| default.contains("${")) {
            self.problems.error(
                place,
                "bad-variable",
                format!("'${{{inner}}}' is no reference to the environment"),
                "write ${NAME}, ${NAME:-default} or ${file:/path}; '$${' stands for a literal '${'",
            );
            return None;
        }
        match ((self.lookup)(name), default) {
            // As in a shell, a default stands in for an empty value too.
            (Some(value), Some(default)) if value.is_empty() => Some((default.to_owned(), false)),
            (Some(value), _) => Some((value, true)),
            (None, Some(default)) => Some((default.to_owned(), false)),
            (None, None) => {
                self.missing(
                    place,
                    "unset-variable",
                    format!("the environment variable {name} is not set"),
                    format!("set it, or give a default: ${{{name}:-…}}"),
                );
                None
            }
        }
    }

    /// The content of a file, which is a secret wherever it stands.
    fn file(&self, path: &str, place: &Place) -> Option<String> {
        match std::fs::read_to_string(self.root.join(path)) {
            Ok(mut text) => {
                if text.ends_with('\n') {
                    text.pop();
                    if text.ends_with('\r') {
                        text.pop();
                    }
                }
                xbus_core::secrets::register(&text);
                Some(text)
            }
            Err(error) => {
                self.missing(
                    place,
                    "unreadable-secret",
                    format!("the file '{path}' cannot be read: {error}"),
                    String::from("make the file, and let the bus's user read it"),
                );
                None
            }
        }
    }

    fn missing(&self, place: &Place, code: &'static str, message: String, help: String) {
        match self.mode {
            Mode::Check => self.problems.warning(place, code, message, help),
            Mode::Run => self.problems.error(place, code, message, help),
        }
    }
}

fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}
