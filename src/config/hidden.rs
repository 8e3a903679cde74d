//! What a quoted source line must not show: secrets, and what may be one under a mistyped key.
//!
//! Checking opens what the tables know and do not call secret; every other value is hidden. Of a file that cannot be read
//! as YAML, or had no mistake by itself, nothing is known but the names of keys: there a value is shown under the name of one that is secret nowhere.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use granit_parser::{Event, Options, Parser};
use xbus_core::problem::{Place, Problem};
use xbus_core::spec::{Field, Node, Raw, Type};

/// Line and column, both from 1.
type At = (usize, usize);

/// The places that checking has judged.
#[derive(Default)]
pub(crate) struct Judged(Mutex<HashMap<Arc<Path>, Places>>);

#[derive(Default)]
struct Places {
    open: HashSet<At>,
    /// Apart from the values, as a map may begin where its first key does.
    keys: HashSet<At>,
    closed: HashSet<At>,
}

impl Judged {
    fn with<T>(&self, file: &Arc<Path>, act: impl FnOnce(&mut Places) -> T) -> T {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !files.contains_key(file) {
            files.insert(file.clone(), Places::default());
        }
        act(files.entry(file.clone()).or_default())
    }

    /// Of a file in which no mistake was found: should one be found between files yet, names tell what is hidden.
    pub(crate) fn forget(&self, file: &Path) {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.remove(file);
    }

    /// What begins there may be shown; of a list or map everything in it.
    pub(crate) fn open(&self, place: &Place) {
        self.with(&place.file, |places| {
            places.open.insert((place.line, place.column));
        });
    }

    /// The keys of a map may be shown.
    pub(crate) fn open_keys(&self, node: &Node) {
        let Some((first, _)) = node.entries().first() else {
            return;
        };
        self.with(&first.place.file, |places| {
            let keys = node.entries().iter();
            let keys = keys.map(|(key, _)| (key.place.line, key.place.column));
            places.keys.extend(keys);
        });
    }

    /// It is a secret, whatever else it is through an alias.
    pub(crate) fn close(&self, node: &Node) {
        match &node.raw {
            Raw::Null => {}
            Raw::Scalar(_) => self.with(&node.place.file, |places| {
                places.closed.insert((node.place.line, node.place.column));
            }),
            Raw::List(items) => items.iter().for_each(|item| self.close(item)),
            Raw::Map(entries) => entries.iter().for_each(|(_, value)| self.close(value)),
        }
    }

    /// Gives each problem what of its line must not be shown. `texts` are the files that were read as YAML.
    pub(crate) fn hide(
        &self,
        problems: &mut [Problem],
        text_of: impl Fn(&Path) -> Option<String>,
        names: &Names,
    ) {
        let mut hidden: HashMap<Arc<Path>, (String, Hidden)> = HashMap::new();
        for problem in problems.iter_mut().filter(|problem| problem.place.line > 0) {
            let file = &problem.place.file;
            if !hidden.contains_key(file) {
                let Some(text) = text_of(file) else {
                    continue;
                };
                let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let found = files.get(file).and_then(|places| values(&text, places));
                drop(files);
                hidden.insert(file.clone(), (text, found));
            }
            let Some((text, found)) = hidden.get(file) else {
                continue;
            };
            problem.hidden = match found {
                Some(values) => on_line(text, problem.place.line, values),
                None => names.on_line(text, problem.place.line),
            };
        }
    }
}

/// From where to where values are hidden; nothing when the file is no YAML.
type Hidden = Option<Vec<(At, At)>>;

/// The hidden values of a file.
fn values(text: &str, places: &Places) -> Hidden {
    let mut found = Vec::new();
    // For each list or map that is not complete: whether it is open, and for a map whether a key is next.
    let mut stack: Vec<(bool, Option<bool>)> = Vec::new();
    // A key that is shown only when it has a value: else it may be a text in braces.
    let mut bare: Option<(At, At)> = None;
    for event in Parser::new_from_str_with_options(text, Options::default()) {
        let (event, span) = event.ok()?;
        let start = (span.start.line().max(1), span.start.col() + 1);
        let end = (span.end.line().max(1), span.end.col() + 1);
        let within = stack.last().is_some_and(|(open, _)| *open);
        let is_key = stack.last().is_some_and(|(_, key)| *key == Some(true));
        let turn = |stack: &mut Vec<(bool, Option<bool>)>| {
            if let Some((_, Some(key))) = stack.last_mut() {
                *key = !*key;
            }
        };
        match event {
            Event::Scalar(value, ..) => {
                let judged = match is_key {
                    true => &places.keys,
                    false => &places.open,
                };
                let shown = (within || judged.contains(&start)) && !places.closed.contains(&start);
                if is_key {
                    bare = (!shown).then_some((start, end));
                } else {
                    let nothing = matches!(&*value, "" | "~" | "null");
                    found.extend(bare.take().filter(|_| nothing));
                    if !shown && !nothing && !is_reference(&value) {
                        found.push((start, end));
                    }
                }
                turn(&mut stack);
            }
            Event::Alias(_) => {
                bare = None;
                turn(&mut stack);
            }
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                bare = None;
                let key = matches!(event, Event::MappingStart(..)).then_some(true);
                stack.push((within || places.open.contains(&start), key));
            }
            Event::SequenceEnd | Event::MappingEnd => {
                stack.pop();
                turn(&mut stack);
            }
            _ => {}
        }
    }
    Some(found)
}

/// Whether a value only says where in the environment the real one is.
fn is_reference(value: &str) -> bool {
    let inner = value
        .strip_prefix("${")
        .and_then(|rest| rest.strip_suffix('}'));
    inner.is_some_and(|inner| !inner.contains(['{', '}']) && !inner.contains(":-"))
}

/// The columns (from 0) of a line that hidden values cover.
fn on_line(text: &str, line: usize, values: &[(At, At)]) -> Vec<Range<usize>> {
    let Some(content) = text.lines().nth(line - 1) else {
        return Vec::new();
    };
    let indent = content.chars().take_while(|c| c.is_whitespace()).count();
    let width = content.trim_end().chars().count();
    values
        .iter()
        .filter(|(start, end)| start.0 <= line && line <= end.0)
        .map(|(start, end)| {
            let from = if start.0 == line { start.1 - 1 } else { indent };
            let to = if end.0 == line { end.1 - 1 } else { width };
            from..to.min(width)
        })
        .filter(|range| !range.is_empty())
        .collect()
}

/// The names of all keys, and whether one of that name takes a secret anywhere.
pub(crate) struct Names(HashMap<&'static str, bool>);

impl Names {
    pub(crate) fn new(tables: impl IntoIterator<Item = &'static [Field]>) -> Self {
        let mut names = Self(HashMap::new());
        tables.into_iter().for_each(|table| names.add(table));
        names
    }

    fn add(&mut self, table: &'static [Field]) {
        for field in table {
            *self.0.entry(field.name).or_default() |= takes_secret(&field.kind, false);
            self.below(&field.kind);
        }
    }

    fn below(&mut self, kind: &'static Type) {
        match kind {
            Type::Object(fields) => self.add(fields),
            Type::List(inner) | Type::OneOrMany(inner) | Type::Map(inner) => self.below(inner),
            Type::Either(kinds) => kinds.iter().for_each(|kind| self.below(kind)),
            _ => {}
        }
    }

    /// The columns (from 0) to hide on a line of a file that is no YAML.
    fn on_line(&self, text: &str, line: usize) -> Vec<Range<usize>> {
        let lines: Vec<&str> = text.lines().take(line).collect();
        let Some((content, before)) = lines.split_last() else {
            return Vec::new();
        };
        let width = content.trim_end().chars().count();
        let mut keys = keys_of(content).peekable();
        if keys.peek().is_none() {
            // It goes on with what a line above began.
            let above = before.iter().rev().find_map(|line| keys_of(line).last());
            let indent = content.chars().take_while(|c| c.is_whitespace()).count();
            let shown = above.is_none_or(|key| self.0.get(key.name) == Some(&false));
            return match shown || indent >= width {
                true => Vec::new(),
                false => std::iter::once(indent..width).collect(),
            };
        }
        for key in keys {
            let value = key.value.trim_start();
            let known = self.0.get(key.name);
            let goes_on = known.is_none() && value.starts_with(['{', '[', '#']);
            if known != Some(&false) && !value.is_empty() && !goes_on {
                let from = content.chars().count() - value.chars().count();
                return std::iter::once(from..width.max(from + 1)).collect();
            }
        }
        Vec::new()
    }
}

struct Written<'a> {
    name: &'a str,
    /// The rest of the line behind the colon.
    value: &'a str,
}

/// What looks like keys on a line.
fn keys_of(line: &str) -> impl Iterator<Item = Written<'_>> {
    line.match_indices(':').filter_map(|(at, _)| {
        let value = &line[at + 1..];
        if !value.is_empty() && !value.starts_with([' ', '\t', '"', '\'']) {
            return None;
        }
        let before = line[..at].trim_end().trim_end_matches(['"', '\'']);
        let start = before
            .rfind(|c: char| !(c.is_alphanumeric() || "_-./".contains(c)))
            .map_or(0, |found| {
                found + before[found..].chars().next().map_or(1, char::len_utf8)
            });
        let name = &before[start..];
        (!name.is_empty()).then_some(Written { name, value })
    })
}

/// Whether a value of that type can be a secret; with `deep`, or hold one in a key of its own.
pub(crate) fn takes_secret(kind: &Type, deep: bool) -> bool {
    match kind {
        Type::Secret => true,
        Type::List(inner) | Type::OneOrMany(inner) | Type::Map(inner) => takes_secret(inner, deep),
        Type::Either(kinds) => kinds.iter().any(|kind| takes_secret(kind, deep)),
        Type::Object(fields) => deep && holds_secret(fields),
        _ => false,
    }
}

/// Whether a map with these keys holds a secret.
pub(crate) fn holds_secret(fields: &[Field]) -> bool {
    fields.iter().any(|field| takes_secret(&field.kind, true))
}
