//! JSON Schema (draft 2020-12) of route files and of xbus.yaml, and the reference in Markdown, made
//! from the same tables that checking reads.

use std::fmt::Write;

use serde_json::{Map, Value, json};
use xbus_core::Kind;
use xbus_core::spec::{Field, Type};

use crate::receive::{BESIDE, lane};
use crate::tables::{BUS, INVOKE, RECEIVE, ROUTE, TARGET, UNDO};
use crate::words::expected;

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The schema of a route file.
pub fn schema_of_route(kinds: &[Kind]) -> Value {
    let mut schema = object(ROUTE);
    let properties = &mut schema["properties"];
    let list =
        |step: &str| json!({ "type": "array", "items": { "$ref": format!("#/$defs/{step}") } });
    for (key, value) in [
        ("receive", json!({ "$ref": "#/$defs/receive" })),
        ("invoke", list("invoke")),
        ("distribute", list("target")),
        ("on_fault", list("target")),
    ] {
        let doc = properties[key]["description"].take();
        properties[key] = value;
        properties[key]["description"] = doc;
    }
    let senders: Vec<(&str, Value)> = sides(kinds, |kind| Some(kind.sender.as_ref()?.fields));
    let answering: Vec<(&str, Value)> = sides(kinds, |kind| {
        let sender = kind.sender.as_ref().filter(|sender| sender.answers)?;
        Some(sender.fields)
    });
    let receivers: Vec<(&str, Value)> = kinds
        .iter()
        .filter_map(|kind| {
            let receiver = kind.receiver.as_ref()?;
            let mut own = object(receiver.fields);
            merge(&mut own, RECEIVE);
            merge(&mut own, lane(receiver));
            Some((kind.name, documented(own, kind.doc)))
        })
        .collect();
    head(&mut schema, "An xbus route");
    schema["$defs"] = json!({
        "receive": one_of(BESIDE, receivers),
        "invoke": one_of(INVOKE, answering),
        "target": one_of(TARGET, senders.clone()),
        "undo": one_of(UNDO, senders),
    });
    schema
}

/// The schema of xbus.yaml; `extra` as for [`Installation::plan`](crate::Installation::plan).
pub fn schema_of_bus(kinds: &[Kind], extra: &'static [Field]) -> Value {
    let mut schema = object(BUS);
    merge(&mut schema, extra);
    let connections = sides(kinds, |kind| Some(kind.connection.as_ref()?.fields));
    schema["properties"]["connections"]["additionalProperties"] = one_of(&[], connections);
    head(&mut schema, "The settings of an xbus");
    schema
}

fn head(schema: &mut Value, title: &str) {
    schema["$schema"] = json!(DRAFT);
    schema["title"] = json!(title);
}

fn sides<'a>(
    kinds: &'a [Kind],
    fields: impl Fn(&'a Kind) -> Option<&'static [Field]>,
) -> Vec<(&'a str, Value)> {
    kinds
        .iter()
        .filter_map(|kind| Some((kind.name, documented(object(fields(kind)?), kind.doc))))
        .collect()
}

fn documented(mut schema: Value, doc: &str) -> Value {
    schema["description"] = json!(doc);
    schema
}

/// A map with common keys and exactly one of others.
fn one_of(fields: &'static [Field], others: Vec<(&str, Value)>) -> Value {
    let mut schema = object(fields);
    let choices: Vec<Value> = others
        .iter()
        .map(|(name, _)| json!({ "required": [name] }))
        .collect();
    for (name, value) in others {
        schema["properties"][name] = value;
    }
    if !choices.is_empty() {
        schema["oneOf"] = json!(choices);
    }
    schema
}

fn merge(schema: &mut Value, fields: &'static [Field]) {
    let more = object(fields);
    if let (Some(properties), Some(more)) = (
        schema["properties"].as_object_mut(),
        more["properties"].as_object(),
    ) {
        for (name, value) in more {
            properties.entry(name).or_insert_with(|| value.clone());
        }
    }
}

fn object(fields: &'static [Field]) -> Value {
    let mut properties = Map::new();
    for field in fields {
        let mut value = of_type(field);
        if !field.doc.is_empty() {
            value["description"] = json!(field.doc);
        }
        if !field.default.is_empty() {
            value["default"] = json!(field.default);
        }
        properties.insert(field.name.to_owned(), value);
    }
    let required: Vec<&str> = fields
        .iter()
        .filter(|field| field.required)
        .map(|field| field.name)
        .collect();
    let mut schema = json!({
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn of_type(field: &Field) -> Value {
    match field.name {
        "compensate" if matches!(field.kind, Type::Any) => json!({ "$ref": "#/$defs/undo" }),
        _ => value(&field.kind),
    }
}

/// A scalar that the environment may give stands there as text.
fn scalar(own: Value) -> Value {
    json!({ "anyOf": [own, { "type": "string", "pattern": "\\$\\{" }] })
}

fn value(kind: &Type) -> Value {
    match kind {
        Type::Text | Type::Secret | Type::Template | Type::Expression | Type::Path => {
            json!({ "type": ["string", "number", "boolean"] })
        }
        Type::File | Type::Asset | Type::Connection(_) => json!({ "type": "string" }),
        Type::Bool => scalar(json!({ "type": "boolean" })),
        Type::Count(from, u64::MAX) => scalar(json!({ "type": "integer", "minimum": from })),
        Type::Count(from, to) => {
            scalar(json!({ "type": "integer", "minimum": from, "maximum": to }))
        }
        Type::Number(from, to) => {
            scalar(json!({ "type": "number", "minimum": from, "maximum": to }))
        }
        Type::Duration => json!({
            "type": "string",
            "pattern": "^[0-9.]+ *(ms|s|m|h|d)$|\\$\\{",
        }),
        Type::Size => json!({
            "type": ["string", "integer"],
            "pattern": "^[0-9.]+ *([kKMG]?B|[KMG]iB)?$|\\$\\{",
        }),
        Type::Rate => json!({ "type": "string", "pattern": "^[0-9]+ */ *[smh]$|\\$\\{" }),
        Type::Choice(words) => scalar(json!({ "enum": words })),
        Type::List(inner) => json!({ "type": "array", "items": value(inner) }),
        Type::OneOrMany(inner) => {
            let one = value(inner);
            json!({ "anyOf": [one, { "type": "array", "items": one }] })
        }
        Type::Map(inner) => json!({ "type": "object", "additionalProperties": value(inner) }),
        Type::Object(fields) => object(fields),
        Type::Either(kinds) => {
            json!({ "anyOf": kinds.iter().map(value).collect::<Vec<_>>() })
        }
        Type::Transform => {
            let conversion = object(crate::tables::CONVERSION);
            json!({ "anyOf": [
                { "type": "string" },
                conversion,
                { "type": "array", "items": { "anyOf": [{ "type": "string" }, conversion] } },
            ] })
        }
        Type::Any => json!({}),
    }
}

/// The reference of routes, adapters and xbus.yaml in Markdown.
pub fn reference(kinds: &[Kind], extra: &'static [Field]) -> String {
    let mut out = String::from(
        "# Reference\n\nMade from the tables that `xbus check` reads; `xbus schema` gives the same \
         to editors.\n",
    );
    let section = |out: &mut String, level: usize, title: &str, text: &str| {
        let _ = write!(out, "\n{} {title}\n\n{text}\n", "#".repeat(level));
    };
    section(
        &mut out,
        2,
        "A route",
        "One file beneath `routes/` that ends in `.yaml`.",
    );
    table(&mut out, &[ROUTE]);
    section(
        &mut out,
        3,
        "Steps of `invoke`",
        "Each has exactly one adapter that answers, and any of these keys.",
    );
    table(&mut out, &[INVOKE]);
    section(
        &mut out,
        3,
        "Targets of `distribute` and `on_fault`",
        "Each has exactly one adapter, and any of these keys.",
    );
    table(&mut out, &[TARGET]);
    section(
        &mut out,
        3,
        "The step under `compensate`",
        "It has exactly one adapter, and any of these keys.",
    );
    table(&mut out, &[UNDO]);
    section(
        &mut out,
        2,
        "Receivers",
        "Exactly one stands under `receive`.",
    );
    for kind in kinds {
        if let Some(receiver) = &kind.receiver {
            section(&mut out, 3, &format!("`{}` receives", kind.name), kind.doc);
            table(&mut out, &[receiver.fields, RECEIVE, lane(receiver)]);
            example(&mut out, receiver.example);
        }
    }
    section(
        &mut out,
        2,
        "Senders",
        "Exactly one stands in a step or target.",
    );
    for kind in kinds {
        if let Some(sender) = &kind.sender {
            let answers = match sender.answers {
                true => "It answers: `invoke` can use it.",
                false => "It gives no answer: only `distribute` can use it.",
            };
            let text = format!("{}\n\n{answers}", kind.doc);
            section(&mut out, 3, &format!("`{}` sends", kind.name), &text);
            table(&mut out, &[sender.fields]);
            example(&mut out, sender.example);
        }
    }
    section(
        &mut out,
        2,
        "xbus.yaml",
        "Optional, and so is every key of it.",
    );
    table(&mut out, &[BUS, extra]);
    section(
        &mut out,
        2,
        "Connections",
        "Under `connections` of xbus.yaml, each by a name of its own with exactly one kind.",
    );
    for kind in kinds {
        if let Some(connection) = &kind.connection {
            section(&mut out, 3, &format!("`{}` connects", kind.name), kind.doc);
            table(&mut out, &[connection.fields]);
            example(&mut out, connection.example);
        }
    }
    out
}

fn table(out: &mut String, tables: &[&'static [Field]]) {
    out.push_str("\n| key | takes | default | what |\n|---|---|---|---|\n");
    let mut names: Vec<&str> = Vec::new();
    for field in tables.iter().copied().flatten() {
        // The first table wins, as it does in checking.
        if !names.contains(&field.name) {
            names.push(field.name);
            rows(out, "", field);
        }
    }
}

fn rows(out: &mut String, above: &str, field: &Field) {
    let name = format!("{above}{}", field.name);
    let default = match (field.required, field.default) {
        (true, _) => String::from("required"),
        (false, "") => String::new(),
        (false, default) => format!("`{}`", cell(default)),
    };
    let takes = match nested(&field.kind) {
        Some((_, Nesting::Plain)) => String::from("a map"),
        Some((_, Nesting::Beside(other))) => format!("{other}, or a map"),
        Some((_, Nesting::Names)) => String::from("a map of names to maps"),
        Some((_, Nesting::List)) => String::from("a list of maps"),
        Some((_, Nesting::Many)) => String::from("a map, or a list of them"),
        None if matches!(field.kind, Type::Any) => String::from("see below"),
        None => expected(&field.kind),
    };
    let _ = writeln!(
        out,
        "| `{name}` | {} | {default} | {} |",
        cell(&takes),
        cell(field.doc)
    );
    if let Some((fields, nesting)) = nested(&field.kind) {
        let below = match nesting {
            Nesting::Names => format!("{name}.NAME."),
            _ => format!("{name}."),
        };
        for field in fields {
            rows(out, &below, field);
        }
    }
}

/// How a map with its own keys stands under a key.
enum Nesting {
    Plain,
    Beside(String),
    Names,
    List,
    Many,
}

fn nested(kind: &Type) -> Option<(&'static [Field], Nesting)> {
    match kind {
        Type::Object(fields) => Some((fields, Nesting::Plain)),
        Type::Map(Type::Object(fields)) => Some((fields, Nesting::Names)),
        Type::List(Type::Object(fields)) => Some((fields, Nesting::List)),
        Type::OneOrMany(Type::Object(fields)) => Some((fields, Nesting::Many)),
        Type::Either(kinds) => {
            let fields = kinds.iter().find_map(|kind| match kind {
                Type::Object(fields) => Some(*fields),
                _ => None,
            })?;
            let others: Vec<String> = kinds
                .iter()
                .filter(|kind| !matches!(kind, Type::Object(_)))
                .map(expected)
                .collect();
            Some((fields, Nesting::Beside(others.join(", or "))))
        }
        _ => None,
    }
}

fn example(out: &mut String, text: &str) {
    if !text.trim().is_empty() {
        let _ = write!(
            out,
            "\n```yaml\n{}\n```\n",
            text.trim_matches('\n').trim_end()
        );
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
