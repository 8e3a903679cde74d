//! Blobs as the bus gives them: handles that share their octets. rhai's own hold a copy each, and fall under the
//! limit on arrays.
//!
//! Absent: changing them. What a script needs of a few octets it does with rhai's own (`blob(n)`), which every
//! function here takes too.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rhai::{Blob, Dynamic, INT, ImmutableString};
use xbus_charset::Charset;
use xbus_core::Message;

use super::call::{Call, current};
use super::error::ScriptError;
use super::functions::{R, hash};
use super::values::Node;
use crate::json::Json;
use crate::xml::{Document, NodeRef};

/// A blob.
#[derive(Clone)]
pub(crate) struct Octets {
    pub(crate) bytes: Bytes,
    /// It is the body itself.
    pub(crate) body: bool,
}

impl Octets {
    /// Those of a message, which cost a script nothing.
    pub(crate) fn shared(bytes: &Bytes) -> Self {
        Self {
            bytes: bytes.clone(),
            body: false,
        }
    }

    /// The body of a message.
    pub(crate) fn whole_body(message: &Message) -> Self {
        Self {
            bytes: message.body.bytes().clone(),
            body: true,
        }
    }

    /// Those that a function made. All of one run together fall under the limit on results: no limit of
    /// rhai counts what lies in its variables as a handle.
    pub(crate) fn made(bytes: Vec<u8>) -> Result<Self, ScriptError> {
        Self::count(&*current()?, bytes.len())?;
        Ok(Self::shared(&bytes.into()))
    }

    /// Counts octets that a script has made.
    pub(crate) fn count(call: &Call, more: usize) -> Result<(), ScriptError> {
        let limit = call.shared.limits.output_size;
        let all = call.made_octets.get().saturating_add(more);
        call.made_octets.set(all);
        if all > limit {
            return Err(ScriptError::text(format!(
                "the blobs that the script makes are larger than {limit} bytes"
            )));
        }
        Ok(())
    }
}

/// The octets of a blob, the bus's or rhai's.
pub(crate) fn of(value: &Dynamic) -> Option<Bytes> {
    if let Some(octets) = value.read_lock::<Octets>() {
        return Some(octets.bytes.clone());
    }
    value
        .read_lock::<Blob>()
        .map(|blob| Bytes::copy_from_slice(&blob))
}

pub(super) fn register(engine: &mut rhai::Engine) {
    engine
        .register_type_with_name::<Octets>("blob")
        .register_fn("len", |o: &mut Octets| o.bytes.len() as INT)
        .register_get("len", |o: &mut Octets| o.bytes.len() as INT)
        .register_fn("is_empty", |o: &mut Octets| o.bytes.is_empty())
        .register_get("is_empty", |o: &mut Octets| o.bytes.is_empty())
        .register_indexer_get(|o: &mut Octets, at: INT| -> R<INT> {
            let place = match at < 0 {
                true => o.bytes.len().checked_sub(at.unsigned_abs() as usize),
                false => Some(at as usize),
            };
            let octet = place.and_then(|place| o.bytes.get(place));
            Ok(octet.map(|octet| INT::from(*octet)).ok_or_else(|| {
                ScriptError::text(format!(
                    "the blob has {} byte(s), there is none at {at}",
                    o.bytes.len()
                ))
            })?)
        })
        .register_fn("==", |a: Octets, b: Octets| a.bytes == b.bytes)
        .register_fn("!=", |a: Octets, b: Octets| a.bytes != b.bytes)
        .register_fn("xml", |o: Octets| xml(&o.bytes))
        .register_fn("json", |o: Octets| -> R<Dynamic> {
            let text = utf_8(&o.bytes)?;
            let json = Json::parse(text).map_err(|what| bad(&o.bytes, what))?;
            Ok(super::values::from_json(&json))
        })
        .register_fn("base64", |o: Octets| -> R<String> {
            let limit = current()?.shared.limits.string_size;
            if o.bytes.len() / 3 * 4 > limit {
                return Err(too_large(limit));
            }
            Ok(STANDARD.encode(&o.bytes))
        })
        .register_fn("hash", |o: Octets| hash("sha256", &o.bytes))
        .register_fn("hash", |algorithm: &str, o: Octets| {
            hash(algorithm, &o.bytes)
        })
        .register_fn("decode", |o: Octets, label: &str| -> R<ImmutableString> {
            let limit = current()?.shared.limits.string_size;
            if o.bytes.len() > limit {
                return Err(too_large(limit));
            }
            let charset = Charset::by_label(label).map_err(ScriptError::text)?;
            let text = charset
                .decode(&o.bytes)
                .map_err(|error| bad(&o.bytes, error.into()))?;
            Ok((*text).into())
        })
        .register_fn("to_blob", |o: &mut Octets| -> Blob { o.bytes.to_vec() });
}

/// The document of a blob, in the charset that it says itself.
fn xml(bytes: &Bytes) -> R<Node> {
    let text = xbus_charset::decode(bytes, None, true).map_err(|what| bad(bytes, what.into()))?;
    let document = Document::parse(&text, &current()?.shared.xml_limits)
        .map_err(|error| bad(bytes, error.to_string()))?;
    Ok(Node::Parsed(NodeRef::root(document.into())))
}

/// JSON between systems is UTF-8 (RFC 8259 section 8.1).
fn utf_8(bytes: &Bytes) -> R<&str> {
    Ok(std::str::from_utf8(bytes).map_err(|error| bad(bytes, error.to_string()))?)
}

fn bad(bytes: &Bytes, what: String) -> ScriptError {
    match current() {
        Ok(call) => call.bad_octets(bytes, what),
        Err(error) => error,
    }
}

fn too_large(limit: usize) -> Box<rhai::EvalAltResult> {
    ScriptError::text(format!("the text would be larger than {limit} bytes")).into()
}
