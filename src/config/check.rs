//! Checks what was written against tables of fields: unknown and missing keys, values that do not
//! fit their type, files and connections that are not there, texts that do not compile. Each
//! problem is placed at the key or value that has it and says how to mend it.

use std::collections::BTreeMap;
use std::path::Path;

use xbus_core::problem::{Place, nearest, suggest};
use xbus_core::spec::{
    Field, Node, Raw, Scalar, Type, parse_duration, parse_rate, parse_size, stays_beneath,
};
use xbus_core::transform::Scope;
use xbus_core::{Compiler, Problems};

use crate::files::{Files, nearest_file};
use crate::hidden::{holds_secret, takes_secret};
use crate::tables::{INVOKE, TARGET};
use crate::words::{expected, fits, shown, visible};

/// What checking takes.
#[derive(Clone, Copy)]
pub(crate) struct Checker<'a> {
    pub(crate) root: &'a Path,
    pub(crate) files: &'a Files,
    pub(crate) compiler: &'a dyn Compiler,
    pub(crate) scope: &'a Scope,
    /// The kinds of the connections by name.
    pub(crate) connections: &'a BTreeMap<String, &'static str>,
    pub(crate) problems: &'a Problems,
}

impl Checker<'_> {
    /// Checks a map against tables of fields that hold together; `what` names it in messages.
    /// Says whether all is well.
    pub(crate) fn fields(&self, node: &Node, tables: &[&'static [Field]], what: &str) -> bool {
        self.fields_beside(node, tables, &[], &[], what)
    }

    /// The same; keys in `beside` are left to others and can be suggested, keys in `reported` were
    /// complained about already.
    pub(crate) fn fields_beside(
        &self,
        node: &Node,
        tables: &[&'static [Field]],
        beside: &[&'static str],
        reported: &[&str],
        what: &str,
    ) -> bool {
        if self.files.is_unknown(node) {
            return true;
        }
        match &node.raw {
            Raw::Map(_) | Raw::Null => self.files.judged.open_keys(node),
            _ => {
                // Of a few keys all are shown.
                let shown = match tables {
                    [one] if one.len() <= 8 && beside.is_empty() => *one,
                    _ => &[],
                };
                let hidden = tables.iter().any(|table| holds_secret(table));
                return self.wrong_as(node, &Type::Object(shown), what, hidden);
            }
        }
        let fields = || tables.iter().copied().flatten();
        let mut good = true;
        for (key, value) in node.entries() {
            match fields().find(|field| field.name == key.name) {
                Some(field) => {
                    good &= match value.raw {
                        Raw::Null => true,
                        _ => self.value(value, &field.kind, field.name),
                    }
                }
                None if beside.contains(&key.name.as_str()) => {}
                None if reported.contains(&key.name.as_str()) => good = false,
                None => {
                    let mut known = names(tables);
                    known.extend(beside);
                    let for_targets = TARGET.iter().any(|field| field.name == key.name)
                        && std::ptr::eq(tables[0], INVOKE);
                    let help = match for_targets {
                        true => format!(
                            "'{}' is for targets: move the step to 'distribute'",
                            key.name
                        ),
                        false => suggest(&key.name, known),
                    };
                    self.problems.error(
                        &key.place,
                        "unknown-key",
                        format!("{what} has no key '{}'", key.name),
                        help,
                    );
                    good = false;
                }
            }
        }
        for field in fields().filter(|field| field.required) {
            if node
                .get(field.name)
                .is_none_or(|value| matches!(value.raw, Raw::Null) && !self.files.is_unknown(value))
            {
                let place = match node.entries().iter().find(|(k, _)| k.name == field.name) {
                    Some((key, _)) => &key.place,
                    None => &node.place,
                };
                self.problems.error(
                    place,
                    "missing-key",
                    format!("{what} needs the key '{}'", field.name),
                    format!("add {}: {}", field.name, expected(&field.kind)),
                );
                good = false;
            }
        }
        good
    }

    /// Checks one value; says whether it is well.
    pub(crate) fn value(&self, node: &Node, kind: &Type, what: &str) -> bool {
        let judged = &self.files.judged;
        match kind {
            Type::Secret => judged.close(node),
            // Who reads it judges it.
            Type::Any | Type::Object(_) | Type::Either(_) => {}
            Type::Map(_) => judged.open_keys(node),
            kind if takes_secret(kind, true) => {}
            _ => judged.open(&node.place),
        }
        if self.files.is_unknown(node) {
            return true;
        }
        match kind {
            Type::Any => true,
            Type::Object(fields) => self.fields(node, &[fields], &format!("'{what}'")),
            Type::Map(inner) => match &node.raw {
                Raw::Map(entries) => all(entries, |(key, value)| {
                    matches!(inner, Type::Any) || self.value(value, inner, &key.name)
                }),
                _ => self.wrong(node, kind, what),
            },
            Type::List(inner) => match &node.raw {
                Raw::List(items) => all(items, |item| self.value(item, inner, what)),
                _ => self.wrong(node, kind, what),
            },
            Type::OneOrMany(inner) => match &node.raw {
                Raw::List(items) => all(items, |item| self.value(item, inner, what)),
                _ => self.value(node, inner, what),
            },
            Type::Either(kinds) => self.either(node, kinds, what),
            Type::Transform => self.transforms(node),
            _ => match &node.raw {
                Raw::Scalar(scalar) => self.scalar(node, scalar, kind, what),
                _ => self.wrong(node, kind, what),
            },
        }
    }

    fn either(&self, node: &Node, kinds: &'static [Type], what: &str) -> bool {
        let fitting: Vec<&Type> = kinds.iter().filter(|kind| fits(kind, &node.raw)).collect();
        match fitting.as_slice() {
            [] => self.wrong(node, &Type::Either(kinds), what),
            [one] => self.value(node, one, what),
            several => {
                let well = several.iter().any(|kind| {
                    let aside = Problems::new();
                    let checker = Checker {
                        problems: &aside,
                        ..*self
                    };
                    checker.value(node, kind, what)
                });
                well || self.wrong(node, &Type::Either(kinds), what)
            }
        }
    }

    fn scalar(&self, node: &Node, scalar: &Scalar, kind: &Type, what: &str) -> bool {
        let text = scalar.text.as_str();
        let place = &node.place;
        match kind {
            Type::Text | Type::Path => true,
            Type::Secret => {
                xbus_core::secrets::register(text);
                true
            }
            Type::Template => self.template(node, scalar),
            Type::Expression => self.expression(node, scalar, 0..text.len()),
            Type::Bool if matches!(text, "true" | "false") => true,
            Type::Count(from, to) if text.parse().is_ok_and(|n: u64| (from..=to).contains(&&n)) => {
                true
            }
            Type::Number(from, to)
                if text.parse().is_ok_and(|n: f64| (from..=to).contains(&&n)) =>
            {
                true
            }
            Type::Duration if parse_duration(text).is_ok() => true,
            Type::Size if parse_size(text).is_ok() => true,
            Type::Rate if parse_rate(text).is_ok() => true,
            Type::Choice(words) if words.contains(&text) => true,
            Type::Choice(words) => {
                self.problems.error(
                    place,
                    "bad-choice",
                    format!("{} is none of the words for '{what}'", shown(scalar)),
                    suggest(&visible(scalar), words.iter().copied()),
                );
                false
            }
            Type::File => self.exists(place, scalar, self.root, Path::new("")),
            Type::Asset => self.exists(
                place,
                scalar,
                &self.root.join("transforms"),
                Path::new("transforms"),
            ),
            Type::Connection(kinds) => self.connection(place, scalar, kinds),
            _ => self.wrong(node, kind, what),
        }
    }

    pub(crate) fn wrong(&self, node: &Node, kind: &Type, what: &str) -> bool {
        self.wrong_as(node, kind, what, takes_secret(kind, true))
    }

    /// The same; a text that may be a secret is not told.
    fn wrong_as(&self, node: &Node, kind: &Type, what: &str, hidden: bool) -> bool {
        let found = match &node.raw {
            Raw::Null => String::from("nothing"),
            Raw::Scalar(_) if hidden => String::from("a text"),
            Raw::Scalar(scalar) => shown(scalar),
            Raw::List(_) => String::from("a list"),
            Raw::Map(_) => String::from("a map"),
        };
        let what = what.trim_matches('\'');
        self.problems.error(
            &node.place,
            "wrong-type",
            format!("'{what}' cannot be {found}"),
            format!("write {}", expected(kind)),
        );
        false
    }

    fn connection(&self, place: &Place, scalar: &Scalar, kinds: &'static [&'static str]) -> bool {
        let fitting = || {
            self.connections
                .iter()
                .filter(|(_, kind)| kinds.contains(kind))
                .map(|(name, _)| name.as_str())
        };
        match self.connections.get(&scalar.text) {
            Some(kind) if kinds.contains(kind) => true,
            Some(kind) => {
                self.problems.error(
                    place,
                    "wrong-connection",
                    format!("the connection {} is of kind {kind}", shown(scalar)),
                    format!("name a connection of kind {}", kinds.join(" or ")),
                );
                false
            }
            None => {
                let names: Vec<&str> = fitting().collect();
                let help = if names.is_empty() {
                    format!(
                        "define it in xbus.yaml under connections, of kind {}",
                        kinds.join(" or ")
                    )
                } else {
                    suggest(&visible(scalar), names)
                };
                self.problems.error(
                    place,
                    "undefined-connection",
                    format!("there is no connection {}", shown(scalar)),
                    help,
                );
                false
            }
        }
    }

    pub(crate) fn exists(&self, place: &Place, scalar: &Scalar, base: &Path, under: &Path) -> bool {
        let path = Path::new(&scalar.text);
        let in_transforms = !under.as_os_str().is_empty();
        if in_transforms && !stays_beneath(path) {
            self.problems.error(
                place,
                "outside-folder",
                format!("{} leaves the folder transforms/", shown(scalar)),
                "name a file in transforms/",
            );
            return false;
        }
        if self.files.exists(&base.join(path)) {
            return true;
        }
        let help = match nearest_file(base, path) {
            Some(near) => format!("did you mean '{near}'?"),
            None if in_transforms => String::from("what routes name lies in transforms/"),
            None => String::from("paths are relative to the installation folder"),
        };
        let named = match scalar.secret || !scalar.literal.is_empty() {
            true => shown(scalar),
            false => format!("'{}'", under.join(path).display()),
        };
        self.problems.error(
            place,
            "missing-file",
            format!("there is no file {named}"),
            help,
        );
        false
    }
}

/// Checks every item, also after one that is not well.
pub(crate) fn all<T>(items: &[T], mut check: impl FnMut(&T) -> bool) -> bool {
    let mut good = true;
    for item in items {
        good &= check(item);
    }
    good
}

fn names(tables: &[&'static [Field]]) -> Vec<&'static str> {
    tables
        .iter()
        .copied()
        .flatten()
        .map(|field| field.name)
        .collect()
}

/// The name that was probably meant, among the fields of tables.
pub(crate) fn nearest_field(name: &str, tables: &[&'static [Field]]) -> Option<&'static str> {
    nearest(name, names(tables))
}
