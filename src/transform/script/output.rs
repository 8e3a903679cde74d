//! What becomes of a script's last value: a body with its type, or the value of an expression.

use std::sync::Arc;

use bytes::Bytes;
use rhai::{Array, Dynamic, ImmutableString, Map};
use xbus_charset::Charset;
use xbus_core::transform::Value;
use xbus_core::{Body, Format, Headers, Message};

use super::attachments::{self, Part};
use super::call::{Call, current};
use super::error::ScriptError;
use super::octets::{self, Octets};
use super::values::{
    HeadersHandle, Items, JsonObject, List, LongNumber, MessageHandle, Node, Responses, described,
    row, xml_text,
};
use crate::json::{Json, write_float, write_text};
use crate::xml::tree::Id;

/// Nesting of maps and arrays that JSON is written from.
const MAX_DEPTH: usize = 128;

/// The message that a script's value makes; `changed` are its attachments, where the script set them.
pub(crate) fn message(
    call: &Call,
    value: Dynamic,
    changed: Option<Dynamic>,
) -> Result<Message, ScriptError> {
    let mut message = with_body(call, &value)?;
    if let Some(changed) = changed {
        message.attachments = attachments::collect(call, &changed)?;
    }
    Ok(message)
}

/// The message with the body that a value makes.
fn with_body(call: &Call, value: &Dynamic) -> Result<Message, ScriptError> {
    let mut message = Message::clone(&call.message);
    if let Some(headers) = call.headers.borrow().clone() {
        message.headers = headers;
    }
    if is_own_body(call, value) {
        return Ok(message);
    }
    // A content type that the script has set decides charset and format.
    let chosen = call.typed.get();
    if let Some(handle) = value.read_lock::<MessageHandle>() {
        // `received` or a response as the last value: all of its content.
        message.body = handle.0.body.clone();
        message.format = handle.0.format;
        message.attachments = handle.0.attachments.clone();
        if !chosen {
            match handle.0.content_type() {
                Some(content_type) => message.headers.set("content-type", content_type),
                None => {
                    message.headers.remove("content-type");
                }
            }
        }
        return Ok(message);
    }
    let content_type = message.content_type().map(str::to_owned);
    let label = content_type
        .as_deref()
        .filter(|_| chosen)
        .and_then(xbus_charset::label)
        .unwrap_or("utf-8");
    if value.is_unit() {
        return Err(ScriptError::text(
            "the script ends without a value: end it with the new body, with `body` to leave it \
             as it is, or with \"\" for an empty one",
        ));
    }
    let made = Made::of(call, value, label)?;
    message.body = Body::from(made.bytes);
    message.format = None;
    if !chosen {
        if let Some(part) = value.read_lock::<Part>() {
            message.format = part.attachment().format();
        }
        let format = made.format;
        let before = content_type.as_deref().unwrap_or_default();
        let essence = before.split(';').next().unwrap_or_default().trim();
        let keeps = match format {
            Format::Xml | Format::Json | Format::Csv => {
                Format::from_media_type(essence) == Some(format)
            }
            _ => false,
        };
        let new = match (made.content_type, keeps, format) {
            (Some(own), ..) => own.to_string(),
            (None, true, Format::Json) => essence.to_owned(),
            (None, true, _) => format!("{essence}; charset=utf-8"),
            (None, false, _) => format.media_type().to_owned(),
        };
        message.headers.set("content-type", &new);
    }
    Ok(message)
}

/// Octets that a value of a script makes.
pub(crate) struct Made {
    pub(crate) bytes: Bytes,
    pub(crate) format: Format,
    /// Where they have one already: what was received, as it came.
    pub(crate) content_type: Option<Arc<str>>,
}

impl Made {
    /// The octets of `value`; characters in the charset `label`.
    pub(crate) fn of(call: &Call, value: &Dynamic, label: &str) -> Result<Self, ScriptError> {
        let whole = |message: &Message| Self {
            bytes: message.body.bytes().clone(),
            format: call.format(message),
            content_type: message.content_type().map(Arc::from),
        };
        if is_own_body(call, value) {
            return Ok(whole(&call.message));
        }
        if let Some(handle) = value.read_lock::<MessageHandle>() {
            return Ok(whole(&handle.0));
        }
        if let Some(part) = value.read_lock::<Part>() {
            let attachment = part.attachment();
            return Ok(Self {
                bytes: attachment.body.clone(),
                format: attachment.format().unwrap_or(Format::Bytes),
                content_type: attachment.content_type.clone(),
            });
        }
        let (bytes, format) = if let Some(node) = value.read_lock::<Node>() {
            let shown = known(label)?.name();
            (encoded(xml_text(&node, Some(shown))?, label)?, Format::Xml)
        } else if let Some(text) = value.read_lock::<ImmutableString>() {
            let made = call
                .made
                .borrow()
                .iter()
                .rev()
                .find(|(known, _)| known.ptr_eq(&text))
                .map(|(_, format)| *format);
            (
                encoded(text.to_string(), label)?,
                made.unwrap_or(Format::Text),
            )
        } else if let Some(octets) = octets::of(value) {
            (octets, Format::Bytes)
        } else if value.is_unit() {
            return Err(ScriptError::text("() has no content: \"\" is empty"));
        } else if value.is_int()
            || value.is_float()
            || value.is_bool()
            || value.is_char()
            || value.is::<LongNumber>()
        {
            let text = super::reading::plain_text(value)?.into_owned();
            (encoded(text, label)?, Format::Text)
        } else {
            let mut out = String::new();
            write_json(&mut out, value, call.shared.limits.output_size, 0)?;
            (encoded(out, label)?, Format::Json)
        };
        Ok(Self {
            bytes,
            format,
            content_type: None,
        })
    }
}

fn encoded(text: String, label: &str) -> Result<Bytes, ScriptError> {
    if known(label)?.is_utf8() {
        return Ok(text.into_bytes().into());
    }
    let bytes = xbus_charset::encode(&text, label).map_err(ScriptError::text)?;
    Ok(bytes.into())
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
    if let Some(octets) = value.read_lock::<Octets>() {
        return octets.body;
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
        let help = if value.is_blob() || value.is::<Octets>() {
            ": base64(…) or decode(…) makes a text of it"
        } else if value.is::<Part>() {
            ": name what of it is meant, such as .name or .text()"
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
    if let Some(bytes) = octets::of(&value) {
        return Ok(Value::Text(String::from_utf8(bytes.into()).map_err(
            |_| ScriptError::text("the bytes are not a text: decode(blob, charset) makes one"),
        )?));
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
