//! Checks what was written against tables of fields: unknown and missing keys, values that do not
//! fit their type, files and connections that are not there, texts that do not compile. Each
//! problem is placed at the key or value that has it and says how to mend it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use xbus_core::problem::{Place, nearest, suggest};
use xbus_core::spec::{
    Field, Node, Raw, Scalar, Type, parse_duration, parse_rate, parse_size, stays_beneath,
};
use xbus_core::template::Template;
use xbus_core::transform::{CompileError, Scope, Source};
use xbus_core::{Compiler, Format, Problems};

use crate::files::{Files, nearest_file};
use crate::tables::{INVOKE, TARGET};

/// Extensions of transformations, whether or not this build can run them.
const TRANSFORMS: [&str; 4] = ["rhai", "xsl", "xslt", "j2"];

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
            Raw::Map(_) | Raw::Null => {}
            _ => return self.wrong(node, &Type::Object(&[]), what),
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
                .is_none_or(|value| matches!(value.raw, Raw::Null))
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
            Type::Text | Type::Secret | Type::Path => true,
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

    fn wrong(&self, node: &Node, kind: &Type, what: &str) -> bool {
        let found = match &node.raw {
            Raw::Null => String::from("nothing"),
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

    fn exists(&self, place: &Place, scalar: &Scalar, base: &Path, under: &Path) -> bool {
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
        if base.join(path).is_file() {
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

    fn template(&self, node: &Node, scalar: &Scalar) -> bool {
        match Template::expressions(scalar) {
            Ok(ranges) => all(&ranges, |range| {
                self.expression(node, scalar, range.clone())
            }),
            Err(at) => {
                self.problems.error(
                    &self.files.place_within(node, scalar, at),
                    "bad-expression",
                    "'{{' without its '}}'",
                    "close the expression with '}}'",
                );
                false
            }
        }
    }

    fn expression(&self, node: &Node, scalar: &Scalar, range: std::ops::Range<usize>) -> bool {
        let text = &scalar.text[range.clone()];
        if text.trim().is_empty() {
            self.problems.error(
                &self.files.place_within(node, scalar, range.start),
                "bad-expression",
                "the expression is empty",
                "write an expression such as header(\"country\")",
            );
            return false;
        }
        let Err(error) = self.compiler.expression(text, self.scope) else {
            return true;
        };
        let at = range.start + offset(text, &error);
        let message = if scalar.secret || !scalar.literal.is_empty() {
            String::from(
                "the expression does not compile; it holds values of the environment and is not shown",
            )
        } else {
            format!("the expression does not compile: {}", error.message)
        };
        self.problems.error(
            &self.files.place_within(node, scalar, at),
            "bad-expression",
            message,
            error.help.unwrap_or_else(|| {
                String::from("mend the expression; texts in it stand in double quotes")
            }),
        );
        false
    }

    fn transforms(&self, node: &Node) -> bool {
        match &node.raw {
            Raw::List(items) => all(items, |item| match item.raw {
                Raw::List(_) => self.wrong(item, &Type::Transform, "transform"),
                _ => self.transforms(item),
            }),
            Raw::Scalar(scalar) => self.script(node, scalar),
            Raw::Map(_) => {
                self.fields(node, &[crate::tables::CONVERSION], "a transformation")
                    && self.conversion(node)
            }
            Raw::Null => self.wrong(node, &Type::Transform, "transform"),
        }
    }

    fn script(&self, node: &Node, scalar: &Scalar) -> bool {
        if self.files.is_unknown(node) {
            return true;
        }
        let path = PathBuf::from(&scalar.text);
        let extension = path.extension().and_then(|extension| extension.to_str());
        if !extension.is_some_and(|extension| TRANSFORMS.contains(&extension)) {
            self.problems.error(
                &node.place,
                "unknown-transform",
                format!("{} is no transformation", shown(scalar)),
                "name a file that ends in .rhai, .xsl, .xslt or .j2, or write { convert: { from, to } }",
            );
            return false;
        }
        let base = self.root.join("transforms");
        if !self.exists(&node.place, scalar, &base, Path::new("transforms")) {
            return false;
        }
        let Err(error) = self.compiler.transform(Source::File(&path), self.scope) else {
            return true;
        };
        // What is wrong stands in the script, not where the route names it.
        let place = Place {
            file: Path::new("transforms").join(&path).into(),
            line: error.line,
            column: error.column,
        };
        self.problems.error(
            &place,
            "bad-script",
            error.message,
            error.help.unwrap_or_default(),
        );
        false
    }

    fn conversion(&self, node: &Node) -> bool {
        let Some((from, to)) = conversion(node) else {
            return true;
        };
        match self
            .compiler
            .transform(Source::Convert { from, to }, self.scope)
        {
            Ok(_) => true,
            Err(error) => {
                self.problems.error(
                    &node.place,
                    "bad-conversion",
                    error.message,
                    error.help.unwrap_or_default(),
                );
                false
            }
        }
    }
}

/// The formats of `{ convert: { from, to } }`.
pub(crate) fn conversion(node: &Node) -> Option<(Option<Format>, Format)> {
    let convert = node.get("convert")?;
    let format = |name: &str| Format::from_name(convert.get(name)?.text()?);
    Some((format("from"), format("to")?))
}

/// Checks every item, also after one that is not well.
fn all<T>(items: &[T], mut check: impl FnMut(&T) -> bool) -> bool {
    let mut good = true;
    for item in items {
        good &= check(item);
    }
    good
}

/// The byte of `text` at which a compile error stands.
fn offset(text: &str, error: &CompileError) -> usize {
    let mut start = 0;
    for line in text
        .split_inclusive('\n')
        .take(error.line.saturating_sub(1))
    {
        start += line.len();
    }
    let line = text.get(start..).unwrap_or_default();
    let within = line
        .char_indices()
        .nth(error.column.saturating_sub(1))
        .map_or(line.len(), |(at, _)| at);
    start + within
}

/// The scalar as a message may show it: never what came from the environment.
pub(crate) fn shown(scalar: &Scalar) -> String {
    if scalar.secret || !scalar.literal.is_empty() {
        String::from("the value that the environment gave")
    } else {
        format!("'{}'", scalar.text)
    }
}

fn visible(scalar: &Scalar) -> String {
    if scalar.secret || !scalar.literal.is_empty() {
        String::new()
    } else {
        scalar.text.clone()
    }
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

/// Whether a type takes values of that shape.
fn fits(kind: &Type, raw: &Raw) -> bool {
    match kind {
        Type::Any => true,
        Type::List(_) => matches!(raw, Raw::List(_)),
        Type::OneOrMany(inner) => matches!(raw, Raw::List(_)) || fits(inner, raw),
        Type::Map(_) | Type::Object(_) => matches!(raw, Raw::Map(_)),
        Type::Either(kinds) => kinds.iter().any(|kind| fits(kind, raw)),
        Type::Transform => !matches!(raw, Raw::Null),
        _ => matches!(raw, Raw::Scalar(_)),
    }
}

/// How a value of a type is written, for messages and the reference.
pub(crate) fn expected(kind: &Type) -> String {
    match kind {
        Type::Text | Type::Secret => String::from("a text"),
        Type::Template => String::from("a text; it may hold {{ expression }}"),
        Type::Expression => String::from("an expression such as 'header(\"country\") == \"DE\"'"),
        Type::Bool => String::from("true or false"),
        Type::Count(from, u64::MAX) => format!("a whole number from {from}"),
        Type::Count(from, to) => format!("a whole number from {from} to {to}"),
        Type::Number(from, to) => format!("a number from {from} to {to}"),
        Type::Duration => String::from("a duration such as 250ms, 5s, 15m, 2h or 7d"),
        Type::Size => String::from("a size such as 64KiB, 10MiB or 1GiB"),
        Type::Rate => String::from("a rate such as 100/s, 5/m or 1000/h"),
        Type::Choice(words) => format!("one of: {}", words.join(", ")),
        Type::Path => String::from("a path, relative to the installation folder"),
        Type::File => String::from("the path of a file, relative to the installation folder"),
        Type::Asset => String::from("the name of a file in transforms/"),
        Type::Connection(kinds) => {
            format!("the name of a connection of kind {}", kinds.join(" or "))
        }
        Type::List(inner) => format!("a list of this: {}", expected(inner)),
        Type::OneOrMany(inner) => format!("{}, or a list of them", expected(inner)),
        Type::Map(inner) => format!("a map of names to this: {}", expected(inner)),
        Type::Object([]) => String::from("a map of keys and values"),
        Type::Object(fields) => {
            let names: Vec<&str> = fields.iter().map(|field| field.name).collect();
            format!("a map with the keys: {}", names.join(", "))
        }
        Type::Either(kinds) => kinds.iter().map(expected).collect::<Vec<_>>().join(", or "),
        Type::Transform => {
            String::from("a file in transforms/, { convert: { from, to } }, or a list of them")
        }
        Type::Any => String::from("{ … }"),
    }
}
