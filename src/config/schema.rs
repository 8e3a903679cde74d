//! stub
use serde_json::Value;
use xbus_core::Kind;
use xbus_core::spec::Field;
/// stub
pub fn schema_of_route(_kinds: &[Kind]) -> Value { Value::Null }
/// stub
pub fn schema_of_bus(_kinds: &[Kind], _extra: &'static [Field]) -> Value { Value::Null }
/// stub
pub fn reference(_kinds: &[Kind], _extra: &'static [Field]) -> String { String::new() }
