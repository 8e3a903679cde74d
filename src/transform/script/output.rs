//! What becomes of a script's last value: a body with its type, or the value of an expression.

use rhai::{Array, Blob, Dynamic, ImmutableString, Map};
use xbus_charset::Charset;
use xbus_core::transform::Value;
use xbus_core::{Body, Format, Headers, Message};

use super::call::{Call, current};
use super::error::ScriptError;
use super::values::{
    HeadersHandle, Items, JsonObject, List, LongNumber, MessageHandle, Node, Responses, described,
    row, xml_text,
};
use crate::json::{Json, write_float, write_text};
use crate::xml::tree::Id;

/// Nesting of maps and arrays that JSON is written from.
const MAX_DEPTH: usize = 128;

/// A number as people write it: without a point when it is whole.
pub(crate) fn float_text(number: f64) -> String {
    number.to_string()
}

/// The message that a script's value makes.
pub(crate) fn message(call: &Call, value: Dynamic) -> Result<Message, ScriptError> {
    let headers = call.headers.borrow().clone();
    let untouched = |headers| {
        let mut message = Message::clone(&call.message);
        if let Some(headers) = headers {
            message.headers = headers;
        }
        message
    };
    if is_own_body(call, &value) {
        return Ok(untouched(headers));
    }
    // A content type that the script has set decides charset and format.
    let chosen = call.typed.get();
    let content_type: Option<String> = headers
        .as_ref()
        .unwrap_or(&call.message.headers)
        .get("content-type")
        .map(str::to_owned);
    let label = content_type
        .as_deref()
        .filter(|_| chosen)
        .and_then(xbus_charset::label)
        .unwrap_or("utf-8")
        .to_owned();
    let (bytes, format) = if let Some(node) = value.read_lock::<Node>().map(|node| node.clone()) {
        let shown = known(&label)?.name();
        let text = xml_text(&node, Some(shown))?;
        (encoded(text, &label)?, Format::Xml)
    } else if let Some(text) = value
        .read_lock::<ImmutableString>()
        .map(|text| text.clone())
    {
        let made = call
            .made
            .borrow()
            .iter()
            .rev()
            .find(|(known, _)| known.ptr_eq(&text))
            .map(|(_, format)| *format);
        (
            encoded(text.into_owned(), &label)?,
            made.unwrap_or(Format::Text),
        )
    } else if value.is_blob() {
        let blob = value.into_blob().unwrap_or_default();
        (blob, Format::Bytes)
    } else if let Some(handle) = value.read_lock::<MessageHandle>().map(|m| m.clone()) {
        // `received` or a response as the last value: its body and content type.
        let mut message = untouched(headers);
        message.body = handle.0.body.clone();
        message.format = handle.0.format;
        if !chosen {
            match handle.0.content_type() {
                Some(content_type) => message.headers.set("content-type", content_type),
                None => {
                    message.headers.remove("content-type");
                }
            }
        }
        return Ok(message);
    } else if value.is_unit() {
        return Err(ScriptError::text(
            "the script ends without a value: end it with the new body, with `body` to leave it \
             as it is, or with \"\" for an empty one",
        ));
    } else if value.is_int()
        || value.is_float()
        || value.is_bool()
        || value.is_char()
        || value.is::<LongNumber>()
    {
        let text = super::reading::plain_text(&value)?.into_owned();
        (encoded(text, &label)?, Format::Text)
    } else {
        let mut out = String::new();
        write_json(&mut out, &value, call.shared.limits.output_size, 0)?;
        (encoded(out, &label)?, Format::Json)
    };
    let mut message = untouched(headers);
    message.body = Body::from(bytes);
    message.format = None;
    if !chosen {
        let before = content_type.as_deref().unwrap_or_default();
        let essence = before.split(';').next().unwrap_or_default().trim();
        let keeps = match format {
            Format::Xml | Format::Json | Format::Csv => {
                Format::from_media_type(essence) == Some(format)
            }
            _ => false,
        };
        let new = match (keeps, format) {
            (true, Format::Json) => essence.to_owned(),
            (true, _) => format!("{essence}; charset=utf-8"),
            (false, _) => format.media_type().to_owned(),
        };
        message.headers.set("content-type", &new);
    }
    Ok(message)
}

fn encoded(text: String, label: &str) -> Result<Vec<u8>, ScriptError> {
    if known(label)?.is_utf8() {
        return Ok(text.into_bytes());
    }
    xbus_charset::encode(&text, label).map_err(ScriptError::text)
}

fn known(label: &str) -> Result<Charset, ScriptError> {
    Charset::by_label(label).map_err(ScriptError::text)
}

/// Whether the value is the body as it came, so that its bytes can stay.
fn is_own_body(call: &Call, value: &Dynamic) -> bool {
    if let Some(object) = value.read_lock::<JsonObject>() {
        return object.body;
    }
    if let Some(list) = value.read_lock::<List>() {
        return list.body;
    }
    if let Some(Node::Parsed(node)) = value.read_lock::<Node>().as_deref() {
        return node.id == Id::ROOT
            && call
                .parsed_xml(&call.message)
                .is_some_and(|own| std::sync::Arc::ptr_eq(&own, &node.document));
    }
    if let Some(text) = value.read_lock::<ImmutableString>() {
        return call
            .known_text(&call.message)
            .is_some_and(|own| own.ptr_eq(&text) && !call.typed.get());
    }
    false
}

/// Writes a value as JSON.
pub(crate) fn write_json(
    out: &mut String,
    value: &Dynamic,
    limit: usize,
    depth: usize,
) -> Result<(), ScriptError> {
    if depth > MAX_DEPTH {
        return Err(ScriptError::text(format!(
            "maps and arrays nested more than {MAX_DEPTH} deep cannot become JSON"
        )));
    }
    if value.is_unit() {
        out.push_str("null");
    } else if let Ok(flag) = value.as_bool() {
        out.push_str(if flag { "true" } else { "false" });
    } else if let Ok(number) = value.as_int() {
        out.push_str(&number.to_string());
    } else if let Ok(number) = value.as_float() {
        write_float(out, number)?;
    } else if let Ok(c) = value.as_char() {
        write_text(out, c.encode_utf8(&mut [0; 4]));
    } else if let Some(text) = value.read_lock::<ImmutableString>() {
        write_text(out, &text);
    } else if let Some(array) = value.read_lock::<Array>() {
        write_items(out, array.iter().cloned(), limit, depth)?;
    } else if let Some(map) = value.read_lock::<Map>() {
        out.push('{');
        for (at, (name, value)) in map.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            write_text(out, name);
            out.push(':');
            write_json(out, value, limit, depth + 1)?;
        }
        out.push('}');
    } else if let Some(object) = value.read_lock::<JsonObject>() {
        Json::Object(object.object.clone()).write(out, limit)?;
    } else if let Some(list) = value.read_lock::<List>() {
        match &list.items {
            Items::Json(items) => Json::Array(items.clone()).write(out, limit)?,
            Items::Rows(table) => {
                write_items(out, (0..table.len()).map(|at| row(table, at)), limit, depth)?;
            }
            _ => write_items(out, list.clone().iter(), limit, depth)?,
        }
    } else if let Some(node) = value.read_lock::<Node>() {
        write_text(out, &node.text()?);
    } else if let Some(number) = value.read_lock::<LongNumber>() {
        out.push_str(number.0.text());
    } else if let Some(headers) = value.read_lock::<HeadersHandle>() {
        match &headers.0 {
            Some(message) => write_headers(out, &message.headers),
            None => current()?.with_headers(|headers| write_headers(out, headers)),
        }
    } else {
        let help = if value.is_blob() {
            ": base64(…) or decode(…) makes a text of it"
        } else if value.is::<MessageHandle>() {
            ": name what of it is meant, such as .body or .headers"
        } else if value.is::<Responses>() {
            ": name one of them, such as responses.NAME.body"
        } else if value.is_timestamp() {
            ": now() gives the time as a text"
        } else {
            ""
        };
        return Err(ScriptError::text(format!(
            "{} cannot become JSON{help}",
            described(value)
        )));
    }
    if out.len() > limit {
        return Err(ScriptError::text(format!(
            "the JSON would be larger than {limit} bytes"
        )));
    }
    Ok(())
}

fn write_headers(out: &mut String, headers: &Headers) {
    out.push('{');
    for (at, (name, value)) in headers.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_text(out, name);
        out.push(':');
        write_text(out, value);
    }
    out.push('}');
}

fn write_items(
    out: &mut String,
    items: impl Iterator<Item = Dynamic>,
    limit: usize,
    depth: usize,
) -> Result<(), ScriptError> {
    out.push('[');
    for (at, item) in items.enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_json(out, &item, limit, depth + 1)?;
    }
    out.push(']');
    Ok(())
}

/// The value of an expression.
pub(crate) fn value(value: Dynamic) -> Result<Value, ScriptError> {
    if value.is_unit() {
        return Ok(Value::Unit);
    }
    if let Ok(flag) = value.as_bool() {
        return Ok(Value::Bool(flag));
    }
    if let Ok(number) = value.as_int() {
        return Ok(Value::Int(number));
    }
    if let Ok(number) = value.as_float() {
        return Ok(Value::Float(number));
    }
    if value.is_blob() {
        let bytes = value.into_blob().unwrap_or_else(|_| Blob::new());
        return Ok(Value::Text(String::from_utf8(bytes).map_err(|_| {
            ScriptError::text("the bytes are not a text: decode(blob, charset) makes one")
        })?));
    }
    if let Some(handle) = value.read_lock::<MessageHandle>() {
        return Ok(Value::Text(current()?.text(&handle.0)?.to_string()));
    }
    if let Ok(text) = super::reading::plain_text(&value) {
        return Ok(Value::Text(text.into_owned()));
    }
    let mut out = String::new();
    write_json(&mut out, &value, current()?.shared.limits.output_size, 0)?;
    Ok(Value::Text(out))
}
