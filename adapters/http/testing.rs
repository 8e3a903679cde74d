//! What tests of this crate share: a build without a bus, and a compiler of the one expression
//! that they need.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use xbus_core::problem::{Place, Problem, Problems};
use xbus_core::spec::{Build, Key, Node, Raw, Scalar};
use xbus_core::transform::{CompileError, Compiler, Context, Expression, Scope, Source, Value};
use xbus_core::{Fault, Message, Transform};

/// Knows `header("name")`.
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
        Err(wrong())
    }

    fn expression(&self, text: &str, _: &Scope) -> Result<Arc<dyn Expression>, CompileError> {
        let name = text
            .strip_prefix("header(\"")
            .and_then(|rest| rest.strip_suffix("\")"))
            .ok_or_else(wrong)?;
        Ok(Arc::new(Header(name.to_owned())))
    }
}

fn wrong() -> CompileError {
    CompileError {
        message: "not header(…)".into(),
        line: 1,
        column: 1,
        help: None,
    }
}

/// Runs `with` while a step `target` of a route `route` is built; gives what it made and what was
/// reported.
pub(crate) fn with_build<T>(with: impl FnOnce(&Build<'_>) -> T) -> (T, Vec<Problem>) {
    let problems = Problems::new();
    let made = {
        let build = Build {
            route: "route".into(),
            step: "target".into(),
            role: xbus_core::spec::Role::Target,
            bus: "bus".into(),
            node: "node".into(),
            root: Path::new("/"),
            compiler: &HeaderCompiler,
            scope: &Scope::default(),
            connections: &BTreeMap::new(),
            timeout: Duration::from_secs(5),
            max_body: 100_000,
            problems: &problems,
        };
        with(&build)
    };
    (made, problems.into_sorted())
}

/// What the user would have written, from JSON.
pub(crate) fn node(value: serde_json::Value) -> Node {
    use serde_json::Value as Json;
    let scalar = |text: String| {
        Raw::Scalar(Scalar {
            text,
            literal: Vec::new(),
            secret: false,
        })
    };
    let place = Place {
        file: Arc::from(Path::new("routes/route.yaml")),
        line: 1,
        column: 1,
    };
    let raw = match value {
        Json::Null => Raw::Null,
        Json::String(text) => scalar(text),
        Json::Array(items) => Raw::List(items.into_iter().map(node).collect()),
        Json::Object(entries) => Raw::Map(
            entries
                .into_iter()
                .map(|(name, value)| {
                    let key = Key {
                        name,
                        place: place.clone(),
                    };
                    (key, node(value))
                })
                .collect(),
        ),
        other => scalar(other.to_string()),
    };
    Node { place, raw }
}
