//! Specs: what an adapter or a route can be told, said once as a table of fields. From the same
//! table come `check`, the JSON Schema for editors, the reference pages and the values that the
//! adapter reads, so that they cannot disagree.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::problem::{Place, Problems};
use crate::template::Template;
use crate::transform::{Compiler, Expression, Scope};

/// What the user wrote, with its place. Environment references are already replaced.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it begins.
    pub place: Place,
    /// What it is.
    pub raw: Raw,
}

/// The shapes of YAML.
#[derive(Clone, Debug)]
pub enum Raw {
    /// Nothing, `~` or `null`.
    Null,
    /// Text, a number or a truth value: which one, the field's type says.
    Scalar(Scalar),
    /// A list.
    List(Vec<Node>),
    /// A map in the order written.
    Map(Vec<(Key, Node)>),
}

/// A key of a map, with its place.
#[derive(Clone, Debug)]
pub struct Key {
    /// The key.
    pub name: String,
    /// Where it stands.
    pub place: Place,
}

/// A scalar: its text, and which parts of it came from the environment.
#[derive(Clone)]
pub struct Scalar {
    /// The text after replacement.
    pub text: String,
    /// Byte ranges of `text` that came from the environment: `{{` in them is text.
    pub literal: Vec<std::ops::Range<usize>>,
    /// Holds the content of a `${file:…}`: never shown.
    pub secret: bool,
}

impl fmt::Debug for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.secret {
            f.write_str("(secret)")
        } else {
            write!(f, "{:?}", self.text)
        }
    }
}

impl Node {
    /// The value under `name` of a map.
    pub fn get(&self, name: &str) -> Option<&Node> {
        self.entries()
            .iter()
            .find(|(key, _)| key.name == name)
            .map(|(_, node)| node)
    }

    /// The entries of a map; none for other shapes.
    pub fn entries(&self) -> &[(Key, Node)] {
        match &self.raw {
            Raw::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a list; a value that is no list counts as a list of one, nothing as none.
    pub fn items(&self) -> &[Node] {
        match &self.raw {
            Raw::List(items) => items,
            Raw::Null => &[],
            _ => std::slice::from_ref(self),
        }
    }

    /// The text of a scalar.
    pub fn text(&self) -> Option<&str> {
        match &self.raw {
            Raw::Scalar(scalar) => Some(&scalar.text),
            _ => None,
        }
    }
}

/// What kind of value a field takes.
#[derive(Clone, Copy, Debug)]
pub enum Type {
    /// Text as it is.
    Text,
    /// Text that never shows anywhere.
    Secret,
    /// Text with `{{ }}`.
    Template,
    /// A rhai expression without braces.
    Expression,
    /// `true` or `false`.
    Bool,
    /// A whole number from the first to the second, both included.
    Count(u64, u64),
    /// A number, fractions allowed, from the first to the second, both included.
    Number(f64, f64),
    /// `250ms`, `5s`, `15m`, `2h`, `7d`.
    Duration,
    /// `64KiB`, `10MiB`, `1GiB`, or bytes.
    Size,
    /// `100/s`, `5/m`, `1000/h`.
    Rate,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A path relative to the installation folder; what it names need not exist yet.
    Path,
    /// A file that must exist, relative to the installation folder.
    File,
    /// A file in `transforms/`, which must exist.
    Asset,
    /// The name of a connection of one of these kinds.
    Connection(&'static [&'static str]),
    /// A list.
    List(&'static Type),
    /// One value or a list of them.
    OneOrMany(&'static Type),
    /// Names, chosen by the user, to values.
    Map(&'static Type),
    /// A map with these fields.
    Object(&'static [Field]),
    /// The first that fits by shape: scalar, list or map.
    Either(&'static [Type]),
    /// A transformation: a file, `{ convert: { from, to } }`, or a list of them.
    Transform,
    /// Anything: whoever reads it checks it.
    Any,
}

/// One key that can be written.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The key.
    pub name: &'static str,
    /// What it takes.
    pub kind: Type,
    /// What is used when it is left out, as one would write it; empty: nothing.
    pub default: &'static str,
    /// Whether leaving it out is an error.
    pub required: bool,
    /// What it does, in a sentence or two, with units and limits.
    pub doc: &'static str,
}

impl Field {
    /// A key that may be left out.
    pub const fn new(name: &'static str, kind: Type, doc: &'static str) -> Self {
        Self {
            name,
            kind,
            default: "",
            required: false,
            doc,
        }
    }

    /// The same with a default, as one would write it.
    pub const fn default(mut self, value: &'static str) -> Self {
        self.default = value;
        self
    }

    /// The same, but it must be there.
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }
}

/// A text that never shows: its debug form hides it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What a connection kind built; the adapter that built it knows the type.
pub type Connection = Arc<dyn std::any::Any + Send + Sync>;

/// What something is built for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// A step of `invoke`: its sender answers, so that it makes [`Request::Call`](crate::Request).
    Invoke,
    /// A target of `distribute` or `on_fault`.
    Target,
    /// What undoes a step or target.
    Compensate,
    /// A receiver, a connection, or anything that sends nothing.
    Other,
}

/// What is at hand while a route's receivers and senders are built. Building does no I/O.
pub struct Build<'a> {
    /// The route; empty outside of routes.
    pub route: Arc<str>,
    /// The step or target; `receive` for the receiver; for a connection its name.
    pub step: Arc<str>,
    /// What is built.
    pub role: Role,
    /// The bus's name.
    pub bus: Arc<str>,
    /// This bus's name among several: `node` of xbus.yaml.
    pub node: Arc<str>,
    /// The installation folder.
    pub root: &'a Path,
    /// Compiles expressions and transformations.
    pub compiler: &'a dyn Compiler,
    /// Namespaces of the route.
    pub scope: &'a Scope,
    /// Connections by name, each with its kind's name.
    pub connections: &'a BTreeMap<String, (&'static str, Connection)>,
    /// `timeout` of the step, or the default.
    pub timeout: Duration,
    /// `max_body` of the bus's defaults, in bytes.
    pub max_body: u64,
    /// Where problems go.
    pub problems: &'a Problems,
}

impl Build<'_> {
    /// Compiles an expression and reports what is wrong with it at its place.
    pub fn expression(&self, text: &str, place: &Place) -> Option<Arc<dyn Expression>> {
        match self.compiler.expression(text, self.scope) {
            Ok(expression) => Some(expression),
            Err(error) => {
                self.problems.error(
                    place,
                    "bad-expression",
                    format!(
                        "the expression does not compile: {} (at its column {})",
                        error.message, error.column
                    ),
                    error.help.unwrap_or_default(),
                );
                None
            }
        }
    }

    /// Compiles a text with `{{ }}` and reports what is wrong with it at its place.
    pub fn template(&self, node: &Node) -> Option<Template> {
        match &node.raw {
            Raw::Scalar(scalar) => Template::parse(scalar, &node.place, self),
            _ => None,
        }
    }

    /// The connection of that name when it is of type `T`; `check` has already said when it is not.
    pub fn connection<T: Send + Sync + 'static>(&self, name: &str) -> Option<Arc<T>> {
        let (_, connection) = self.connections.get(name)?;
        connection.clone().downcast::<T>().ok()
    }
}

/// The values of one map, read by field name. What does not fit was reported by `check` before, so
/// that a missing value here means "not written and no default".
#[derive(Clone, Copy)]
pub struct Args<'a> {
    node: Option<&'a Node>,
    fields: &'static [Field],
    /// What is at hand for building.
    pub build: &'a Build<'a>,
}

impl<'a> Args<'a> {
    /// The values that `node` has for `fields`.
    pub fn new(node: Option<&'a Node>, fields: &'static [Field], build: &'a Build<'a>) -> Self {
        Self {
            node,
            fields,
            build,
        }
    }

    /// What was written under `name`, whatever its shape; nothing for `null`.
    pub fn node(&self, name: &str) -> Option<&'a Node> {
        debug_assert!(
            self.fields.iter().any(|field| field.name == name),
            "no field {name} in the spec"
        );
        self.node?
            .get(name)
            .filter(|node| !matches!(node.raw, Raw::Null))
    }

    /// Whether `name` was written.
    pub fn has(&self, name: &str) -> bool {
        self.node(name).is_some()
    }

    /// Where `name` stands; where the map stands when it was not written.
    pub fn place(&self, name: &str) -> Place {
        self.node
            .and_then(|node| node.get(name))
            .or(self.node)
            .map_or_else(|| Place::file(Path::new("xbus.yaml")), |n| n.place.clone())
    }

    fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The text as written, or the default.
    pub fn text(&self, name: &str) -> Option<String> {
        match self.node(name) {
            Some(node) => node.text().map(str::to_owned),
            None => self
                .field(name)
                .filter(|field| !field.default.is_empty())
                .map(|field| field.default.to_owned()),
        }
    }

    /// A secret text.
    pub fn secret(&self, name: &str) -> Option<Secret> {
        self.text(name).map(Secret)
    }

    /// A truth value; `false` when there is neither value nor default.
    pub fn boolean(&self, name: &str) -> bool {
        self.text(name).as_deref() == Some("true")
    }

    /// A whole number.
    pub fn count(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// A number with a fraction.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.text(name)?.parse().ok()
    }

    /// A duration.
    pub fn duration(&self, name: &str) -> Option<Duration> {
        parse_duration(&self.text(name)?).ok()
    }

    /// A size in bytes.
    pub fn size(&self, name: &str) -> Option<u64> {
        parse_size(&self.text(name)?).ok()
    }

    /// A rate.
    pub fn rate(&self, name: &str) -> Option<Rate> {
        parse_rate(&self.text(name)?).ok()
    }

    /// A path beneath the installation folder; an absolute one stays as it is.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        Some(self.build.root.join(self.text(name)?))
    }

    /// A file in `transforms/`.
    pub fn asset(&self, name: &str) -> Option<PathBuf> {
        Some(self.build.root.join("transforms").join(self.text(name)?))
    }

    /// A text with `{{ }}`, compiled; problems are reported.
    pub fn template(&self, name: &str) -> Option<Template> {
        match self.node(name) {
            Some(node) => self.build.template(node),
            None => self.text(name).map(Template::constant),
        }
    }

    /// An expression, compiled; problems are reported.
    pub fn expression(&self, name: &str) -> Option<Arc<dyn Expression>> {
        let node = self.node(name)?;
        self.build.expression(node.text()?, &node.place)
    }

    /// The map under `name` with its own fields; an empty one when it was not written.
    pub fn object(&self, name: &str, fields: &'static [Field]) -> Args<'a> {
        Args::new(self.node(name), fields, self.build)
    }

    /// The items under `name`: of a list, or the one value.
    pub fn items(&self, name: &str) -> &'a [Node] {
        self.node(name).map_or(&[], Node::items)
    }

    /// The entries under `name`.
    pub fn entries(&self, name: &str) -> &'a [(Key, Node)] {
        self.node(name).map_or(&[], Node::entries)
    }

    /// The texts under `name`: of a list, or the one value.
    pub fn texts(&self, name: &str) -> Vec<String> {
        if self.has(name) {
            self.items(name)
                .iter()
                .filter_map(|node| node.text().map(str::to_owned))
                .collect()
        } else {
            self.text(name).into_iter().collect()
        }
    }
}

/// So many per so long.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// In how long.
    pub per: Duration,
}

/// Reads `250ms`, `5s`, `1.5s`, `15m`, `2h`, `7d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => f64::NAN,
    } * number.parse::<f64>().unwrap_or(f64::NAN);
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| format!("'{text}' is not a duration: write 250ms, 5s, 15m, 2h or 7d"))
}

/// Reads `64KiB`, `10MiB`, `1GiB`, `512B` or a number of bytes. `KB`, `MB` and `GB` are powers of 1000.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    let factor: f64 = match unit {
        "" | "B" => 1.0,
        "KB" | "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => f64::NAN,
    };
    let bytes = factor * number.parse::<f64>().unwrap_or(f64::NAN);
    if bytes.is_finite() && (0.0..1e18).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err(format!(
            "'{text}' is not a size: write 64KiB, 10MiB, 1GiB or a number of bytes"
        ))
    }
}

/// Reads `100/s`, `5/m` or `1000/h`.
pub fn parse_rate(text: &str) -> Result<Rate, String> {
    let wrong = || format!("'{text}' is not a rate: write 100/s, 5/m or 1000/h");
    let (count, per) = text.split_once('/').ok_or_else(wrong)?;
    let count: u32 = count.trim().parse().map_err(|_| wrong())?;
    let per = match per.trim() {
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return Err(wrong()),
    };
    if count == 0 {
        return Err(wrong());
    }
    Ok(Rate { count, per })
}

fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

/// Whether a relative path stays beneath the folder that it is relative to, by its text alone.
pub fn stays_beneath(path: &Path) -> bool {
    let mut depth = 0i32;
    for part in path.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => depth -= 1,
            Component::RootDir | Component::Prefix(_) => return false,
        }
        if depth < 0 {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_sizes_and_rates_read_as_written() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(604_800)));
        assert!(parse_duration("5").is_err() && parse_duration("-1s").is_err());
        assert_eq!(parse_size("10MiB"), Ok(10 * 1024 * 1024));
        assert_eq!(parse_size("512"), Ok(512));
        assert!(parse_size("ten").is_err());
        assert_eq!(
            parse_rate("100/s"),
            Ok(Rate {
                count: 100,
                per: Duration::from_secs(1)
            })
        );
        assert!(parse_rate("0/s").is_err() && parse_rate("5").is_err());
    }

    #[test]
    fn paths_that_leave_their_folder_are_seen() {
        assert!(stays_beneath(Path::new("a/../b")));
        assert!(!stays_beneath(Path::new("a/../../b")));
        assert!(!stays_beneath(Path::new("/etc/passwd")));
    }
}
