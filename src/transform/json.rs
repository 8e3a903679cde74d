//! JSON values behind cheap handles: a script pays for what it touches.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use ahash::AHashMap;
use rhai::ImmutableString;
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use xbus_core::long;

use crate::number::Number;

/// Objects with more members than this get an index.
const INDEX_FROM: usize = 12;

/// A JSON value; cloning shares what is inside.
#[derive(Clone, Debug)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// A number whose text says more than an integer or a float would.
    Number(Arc<Number>),
    Text(ImmutableString),
    Array(Arc<Vec<Json>>),
    Object(Arc<Object>),
}

/// A JSON object in the order of the text; of a name given twice the last counts.
#[derive(Debug, Default)]
pub(crate) struct Object {
    members: Vec<(ImmutableString, Json)>,
    index: Option<AHashMap<ImmutableString, usize>>,
}

impl Object {
    pub(crate) fn new(members: Vec<(ImmutableString, Json)>) -> Self {
        let index = (members.len() > INDEX_FROM).then(|| {
            members
                .iter()
                .enumerate()
                .map(|(at, (name, _))| (name.clone(), at))
                .collect()
        });
        Self { members, index }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Json> {
        match &self.index {
            Some(index) => index.get(name).map(|at| &self.members[*at].1),
            None => self
                .members
                .iter()
                .rev()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value),
        }
    }

    pub(crate) fn members(&self) -> &[(ImmutableString, Json)] {
        &self.members
    }
}

impl Json {
    /// Parses a whole text. Nesting is bounded (128) by the parser.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        long::over(text.len(), long::PARSED, || Self::read(text))
    }

    fn read(text: &str) -> Result<Self, String> {
        let wrong = |error| format!("not valid JSON: {error}");
        let numbers = Numbers::of(text);
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let json = Values(&numbers)
            .deserialize(&mut deserializer)
            .map_err(wrong)?;
        deserializer.end().map_err(wrong)?;
        Ok(json)
    }

    /// What serde_json can hold of the value: of numbers that are too long, the nearest float.
    pub(crate) fn to_serde(&self) -> serde_json::Value {
        use serde_json::Value;
        match self {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Int(value) => Value::from(*value),
            Json::Float(value) => Value::from(*value),
            Json::Number(number) => Value::from(number.nearest()),
            Json::Text(text) => Value::String(text.to_string()),
            Json::Array(items) => Value::Array(items.iter().map(Json::to_serde).collect()),
            Json::Object(object) => Value::Object(
                object
                    .members
                    .iter()
                    .map(|(name, value)| (name.to_string(), value.to_serde()))
                    .collect(),
            ),
        }
    }

    pub(crate) fn from_serde(value: &serde_json::Value) -> Self {
        use serde_json::Value;
        match value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Number(number) => match number.as_i64() {
                Some(value) => Json::Int(value),
                None => Json::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => Json::Text(text.into()),
            Value::Array(items) => {
                Json::Array(Arc::new(items.iter().map(Self::from_serde).collect()))
            }
            Value::Object(map) => Json::Object(Arc::new(Object::new(
                map.iter()
                    .map(|(name, value)| (name.into(), Self::from_serde(value)))
                    .collect(),
            ))),
        }
    }

    /// Whether serde_json can hold the value without a loss.
    pub(crate) fn is_plain(&self) -> bool {
        match self {
            Json::Number(_) => false,
            Json::Array(items) => items.iter().all(Json::is_plain),
            Json::Object(object) => object.members.iter().all(|(_, value)| value.is_plain()),
            _ => true,
        }
    }

    /// The member of that name.
    pub(crate) fn member(&self, name: &str) -> Option<&Json> {
        match self {
            Json::Object(object) => object.get(name),
            _ => None,
        }
    }

    /// The item at that place.
    pub(crate) fn item(&self, at: usize) -> Option<&Json> {
        match self {
            Json::Array(items) => items.get(at),
            _ => None,
        }
    }

    /// Writes the value; fails when `out` would grow beyond `limit` bytes.
    pub(crate) fn write(&self, out: &mut String, limit: usize) -> Result<(), String> {
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Json::Int(value) => out.push_str(&value.to_string()),
            Json::Float(value) => write_float(out, *value)?,
            Json::Number(number) => out.push_str(number.text()),
            Json::Text(text) => write_text(out, text),
            Json::Array(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    item.write(out, limit)?;
                }
                out.push(']');
            }
            Json::Object(object) => {
                out.push('{');
                for (at, (name, value)) in object.members.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    write_text(out, name);
                    out.push(':');
                    value.write(out, limit)?;
                }
                out.push('}');
            }
        }
        if out.len() > limit {
            return Err(format!("the JSON would be larger than {limit} bytes"));
        }
        Ok(())
    }
}

/// Writes a number; one without a fraction is written without a point.
pub(crate) fn write_float(out: &mut String, value: f64) -> Result<(), String> {
    if !value.is_finite() {
        return Err(format!("{value} cannot be a JSON number"));
    }
    if value.fract() == 0.0 && value.abs() < 1e15 {
        out.push_str(&(value as i64).to_string());
    } else {
        out.push_str(&serde_json::Value::from(value).to_string());
    }
    Ok(())
}

/// Writes a text in quotes (RFC 8259 section 7).
pub(crate) fn write_text(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest
        .bytes()
        .position(|b| b < 0x20 || matches!(b, b'"' | b'\\'))
    {
        out.push_str(&rest[..at]);
        match rest.as_bytes()[at] {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            other => out.push_str(&format!("\\u{other:04x}")),
        }
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
    out.push('"');
}

/// The numbers of a text in their order, each as it is written. The parser hands over only what a
/// number became; it is looked up here when that may differ from what stands in the text.
struct Numbers<'t> {
    text: &'t str,
    at: Cell<usize>,
    /// Numbers that the parser has passed since the last lookup.
    passed: Cell<usize>,
}

impl<'t> Numbers<'t> {
    fn of(text: &'t str) -> Self {
        Self {
            text,
            at: Cell::new(0),
            passed: Cell::new(0),
        }
    }

    fn pass(&self) {
        self.passed.set(self.passed.get() + 1);
    }

    /// The number that the parser is at. Up to there the text is known to be JSON.
    fn current(&self) -> &'t str {
        let mut token = self.next();
        for _ in 0..self.passed.take() {
            token = self.next();
        }
        token
    }

    fn next(&self) -> &'t str {
        let bytes = self.text.as_bytes();
        let mut at = self.at.get();
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'"' => {
                    at += 1;
                    while let Some(within) = bytes.get(at).filter(|b| **b != b'"') {
                        at += if *within == b'\\' { 2 } else { 1 };
                    }
                    at += 1;
                }
                b'-' | b'0'..=b'9' => {
                    let length = bytes[at..]
                        .iter()
                        .position(|b| !matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9'))
                        .unwrap_or(bytes.len() - at);
                    self.at.set(at + length);
                    return &self.text[at..at + length];
                }
                _ => at += 1,
            }
        }
        self.at.set(bytes.len());
        ""
    }
}

/// Reads a value with the texts of its numbers.
#[derive(Clone, Copy)]
struct Values<'n, 't>(&'n Numbers<'t>);

impl<'de> DeserializeSeed<'de> for Values<'_, '_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Values<'_, '_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        self.0.pass();
        Ok(Json::Int(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(match i64::try_from(value) {
            Ok(value) => {
                self.0.pass();
                Json::Int(value)
            }
            Err(_) => Number::json(self.0.current()),
        })
    }
    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Number::json(self.0.current()))
    }
    fn visit_str<E: de::Error>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.into()))
    }
    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Json::Array(Arc::new(items)))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(name) = map.next_key::<Name>()? {
            members.push((name.0, map.next_value_seed(self)?));
        }
        Ok(Json::Object(Arc::new(Object::new(members))))
    }
}

struct Name(ImmutableString);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl Visitor<'_> for Names {
            type Value = Name;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_str<E>(self, value: &str) -> Result<Name, E> {
                Ok(Name(value.into()))
            }
        }
        deserializer.deserialize_str(Names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_the_same() {
        let text = r#"{"b":[1,-2,1.5,true,null,"a\"\\\n\u0001é"],"a":{},"n":10000000000}"#;
        let json = Json::parse(text).unwrap();
        let mut out = String::new();
        json.write(&mut out, 1000).unwrap();
        assert_eq!(out, text);
        assert!(json.write(&mut String::new(), 20).is_err());
        assert!(json.is_plain());
        assert_eq!(
            Json::from_serde(&json.to_serde()).to_serde(),
            json.to_serde()
        );
    }

    #[test]
    fn numbers_are_written_as_they_stood() {
        for text in [
            "[12345678901234567890123,1.10,9223372036854775808,0.1234567890123456789,1E5,-0]",
            r#"{"a-1":[1,"\\\"2.5",3.50],"b":{"c":1e-400,"5":-9223372036854775809},"d":18446744073709551616}"#,
        ] {
            let mut out = String::new();
            Json::parse(text).unwrap().write(&mut out, 1000).unwrap();
            assert_eq!(out, text);
        }
        assert!(Json::parse("[1e999]").is_err());
        assert!(Json::parse("[1] 2.5").is_err());
    }

    #[test]
    fn nesting_is_bounded_and_large_objects_are_found_in() {
        let deep = "[".repeat(100_000);
        assert!(Json::parse(&deep).unwrap_err().contains("recursion"));
        let wide = format!(
            "{{{}}}",
            (0..50)
                .map(|n| format!("\"k{n}\":{n}"))
                .collect::<Vec<_>>()
                .join(",")
        );
        let Json::Object(object) = Json::parse(&wide).unwrap() else {
            panic!("not an object");
        };
        assert!(matches!(object.get("k49"), Some(Json::Int(49))));
        assert!(object.get("k50").is_none());
    }
}
