//! What tests of this crate share: a build without a bus, from JSON.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use xbus_core::problem::{Place, Problem, Problems};
use xbus_core::spec::{Args, Build, Connection, Field, Key, Node, Raw, Role, Scalar};
use xbus_core::transform::{CompileError, Compiler, Context, Expression, Scope, Source, Value};
use xbus_core::{Fault, Message, Transform};

/// Takes every expression for the name of a header.
struct HeaderCompiler;

struct Header(String);

impl Expression for Header {
    fn evaluate(&self, message: &Arc<Message>, _: &Context) -> Result<Value, Fault> {
        let value = message.headers.get(&self.0);
        Ok(value.map_or(Value::Unit, |value| Value::Text(value.into())))
    }
}

impl Compiler for HeaderCompiler {
    fn transform(&self, _: Source<'_>, _: &Scope) -> Result<Arc<dyn Transform>, CompileError> {
        Err(CompileError {
            message: "none here".into(),
            line: 1,
            column: 1,
            help: None,
        })
    }

    fn expression(&self, text: &str, _: &Scope) -> Result<Arc<dyn Expression>, CompileError> {
        Ok(Arc::new(Header(text.to_owned())))
    }
}

/// Builds from what the user wrote, as `role` and with the connection `rabbit`. Gives what was made
/// and the codes of what was reported.
pub(crate) fn built<T>(
    written: serde_json::Value,
    fields: &'static [Field],
    role: Role,
    rabbit: Option<Connection>,
    make: impl FnOnce(Args<'_>) -> T,
) -> (T, Vec<&'static str>) {
    let problems = Problems::new();
    let written = node(written);
    let connections: BTreeMap<String, (&'static str, Connection)> = rabbit
        .map(|link| (String::from("rabbit"), ("amqp", link)))
        .into_iter()
        .collect();
    let made = {
        let build = Build {
            route: "route".into(),
            step: "rabbit".into(),
            role,
            bus: "bus".into(),
            node: "n1".into(),
            root: Path::new("/"),
            compiler: &HeaderCompiler,
            scope: &Scope::default(),
            connections: &connections,
            timeout: Duration::from_secs(5),
            max_body: 100_000,
            problems: &problems,
        };
        make(Args::new(Some(&written), fields, &build))
    };
    let codes = problems.into_sorted();
    (
        made,
        codes.iter().map(|Problem { code, .. }| *code).collect(),
    )
}

/// What the user would have written, from JSON.
fn node(value: serde_json::Value) -> Node {
    use serde_json::Value as Json;
    let scalar = |text: String| {
        Raw::Scalar(Scalar {
            text,
            literal: Vec::new(),
            secret: false,
        })
    };
    let place = Place::file(Path::new("xbus.yaml"));
    let raw = match value {
        Json::Null => Raw::Null,
        Json::String(text) => scalar(text),
        Json::Array(items) => Raw::List(items.into_iter().map(node).collect()),
        Json::Object(entries) => {
            let entry = |(name, value)| {
                let place = place.clone();
                (Key { name, place }, node(value))
            };
            Raw::Map(entries.into_iter().map(entry).collect())
        }
        other => scalar(other.to_string()),
    };
    Node { place, raw }
}
