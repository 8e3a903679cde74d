//! How scripts read messages: `body`, `xpath`, `jsonpath`, SOAP parts.

use std::collections::BTreeMap;
use std::sync::Arc;

use rhai::{Dynamic, ImmutableString, Map};
use serde_json_path::{JsonPath, PathElement};
use xbus_core::transform::float_text;
use xbus_core::{Format, Message};

use super::attachments;
use super::call::{Call, current};
use super::error::ScriptError;
use super::octets::Octets;
use super::values::{
    HeadersHandle, Items, JsonObject, List, LongNumber, MessageHandle, Node, Responses, from_json,
};
use crate::json::Json;
use crate::xml::NodeRef;
use crate::xml::tree::{Id, Kind};
use crate::xpath::XPath;

/// SOAP 1.1 (W3C Note of 8 May 2000) and SOAP 1.2 (W3C Recommendation) envelopes.
const ENVELOPES: [&str; 2] = [
    "http://schemas.xmlsoap.org/soap/envelope/",
    "http://www.w3.org/2003/05/soap-envelope",
];

/// The value of one of the names that need no declaration; nothing for other names.
pub(crate) fn variable(name: &str) -> Result<Option<Dynamic>, ScriptError> {
    Ok(Some(match name {
        "body" => {
            let call = current()?;
            body(&call, &call.message)?
        }
        "headers" => Dynamic::from(HeadersHandle(None)),
        "attachments" => Dynamic::from(attachments::list(&current()?.message.attachments)),
        "id" => current()?.message.id.to_string().into(),
        "correlation_id" => current()?.message.correlation().into(),
        "route" => (&*current()?.context.route).into(),
        "received_at" => current()?.message.received_at.to_string().into(),
        "received" => Dynamic::from(MessageHandle(current()?.context.received.clone())),
        "responses" => Dynamic::from(Responses),
        "response" => match &current()?.context.response {
            Some(message) => Dynamic::from(MessageHandle(message.clone())),
            None => Dynamic::UNIT,
        },
        _ => return Ok(None),
    }))
}

/// The body by its format.
pub(crate) fn body(call: &Call, message: &Message) -> Result<Dynamic, ScriptError> {
    Ok(match call.format(message) {
        Format::Xml => Dynamic::from(Node::Parsed(NodeRef::root(call.xml(message)?))),
        Format::Json => match call.json(message)? {
            Json::Object(object) => Dynamic::from(JsonObject { object, body: true }),
            Json::Array(items) => Dynamic::from(List {
                items: Items::Json(items),
                body: true,
            }),
            other => from_json(&other),
        },
        Format::Csv => Dynamic::from(List::rows(call.csv(message)?, true)),
        Format::Form => {
            let label = message.content_type().and_then(xbus_charset::label);
            form(&call.text(message)?, label)
                .map_err(|error| call.unreadable(message, &error.to_string()))?
                .into()
        }
        Format::Text => call.text(message)?.into(),
        Format::Bytes => Dynamic::from(Octets::whole_body(message)),
    })
}

/// `application/x-www-form-urlencoded` as a map; a name that comes several times gives a list. `label`
/// is the charset of its content type.
pub(crate) fn form(text: &str, label: Option<&str>) -> Result<Map, xbus_charset::Error> {
    let mut map = Map::new();
    for pair in xbus_charset::form_pairs(text, label)?.take(10_000) {
        let (name, value) = pair?;
        let value: Dynamic = value.into();
        match map.get_mut(&*name) {
            None => {
                map.insert(name.into(), value);
            }
            Some(before) if before.is_array() => {
                if let Some(mut list) = before.write_lock::<rhai::Array>() {
                    list.push(value);
                }
            }
            Some(before) => *before = vec![before.clone(), value].into(),
        }
    }
    Ok(map)
}

/// Where an XPath begins: the current message, another message, or a node.
pub(crate) fn root(message: &MessageHandle) -> Result<Node, ScriptError> {
    Ok(Node::Parsed(NodeRef::root(current()?.xml(&message.0)?)))
}

/// The value of an XPath over a message: by a stream where that is enough, else by the tree.
pub(crate) fn xpath(
    message: &MessageHandle,
    text: &str,
    prefixes: Option<&Map>,
) -> Result<Dynamic, ScriptError> {
    let compiled = compiled(text, prefixes)?;
    if let Some(found) = current()?.stream(&message.0, &compiled) {
        return Ok(found?.map_or(Dynamic::UNIT, Dynamic::from));
    }
    root(message)?.xpath(&compiled)
}

pub(crate) fn own() -> Result<MessageHandle, ScriptError> {
    Ok(MessageHandle(current()?.message.clone()))
}

/// The compiled XPath, with prefixes given beside it in place of the route's.
pub(crate) fn compiled(text: &str, prefixes: Option<&Map>) -> Result<Arc<XPath>, ScriptError> {
    let call = current()?;
    let wrong =
        |error: crate::xpath::XPathError| ScriptError::text(format!("XPath `{text}`: {error}"));
    match prefixes {
        None => call.namespaces.xpath(text).map_err(wrong),
        Some(map) => {
            let mut all: BTreeMap<String, String> = call.namespaces.prefixes.clone();
            for (prefix, uri) in map {
                all.insert(prefix.to_string(), uri.to_string());
            }
            XPath::compile(text, &all).map(Arc::new).map_err(wrong)
        }
    }
}

/// A JSONPath (RFC 9535).
pub(crate) fn json_path(text: &str) -> Result<JsonPath, ScriptError> {
    // Each `..` visits everything beneath everything found so far.
    if text.matches("..").count() > 2 || text.len() > 4096 {
        return Err(ScriptError::text(
            "JSONPath: more than two `..`, or more than 4,096 characters",
        ));
    }
    JsonPath::parse(text).map_err(|error| ScriptError::text(format!("JSONPath `{text}`: {error}")))
}

/// The matches of a JSONPath, at most so many.
fn matches(message: &MessageHandle, path: &str, most: usize) -> Result<Vec<Json>, ScriptError> {
    let path = json_path(path)?;
    let body = current()?.json_tree(&message.0)?;
    if body.plain {
        let found = path.query(&body.tree);
        return Ok(found
            .iter()
            .take(most)
            .map(|value| Json::from_serde(value))
            .collect());
    }
    // The tree only tells where the values are.
    Ok(path
        .query_located(&body.tree)
        .locations()
        .take(most)
        .filter_map(|location| {
            location
                .iter()
                .try_fold(&body.json, |json, step| match step {
                    PathElement::Name(name) => json.member(name),
                    PathElement::Index(at) => json.item(*at),
                })
                .cloned()
        })
        .collect())
}

/// The first match of a JSONPath, or `()`.
pub(crate) fn jsonpath(message: &MessageHandle, path: &str) -> Result<Dynamic, ScriptError> {
    let found = matches(message, path, 1)?;
    Ok(found.first().map_or(Dynamic::UNIT, from_json))
}

/// Every match of a JSONPath.
pub(crate) fn jsonpath_all(message: &MessageHandle, path: &str) -> Result<List, ScriptError> {
    Ok(List::json(matches(message, path, usize::MAX)?))
}

/// The part of a SOAP envelope with that local name.
fn soap_part(message: &MessageHandle, part: &str) -> Result<Option<(NodeRef, u32)>, ScriptError> {
    let node = NodeRef::root(current()?.xml(&message.0)?);
    let document = &node.document;
    let root = document.root_element().map(Id::node);
    let Some(root) = root.filter(|id| {
        document.local_name(*id) == "Envelope" && ENVELOPES.contains(&document.namespace(*id))
    }) else {
        return Err(ScriptError::text("the message is not a SOAP envelope"));
    };
    let uri = document.namespace(root);
    let found = document.children(root.node).find(|n| {
        document.local_name(Id::node(*n)) == part && document.namespace(Id::node(*n)) == uri
    });
    Ok(found.map(|found| (node.clone(), found)))
}

fn elements(node: &NodeRef, parent: u32) -> impl Iterator<Item = Id> {
    node.document
        .children(parent)
        .filter(|n| node.document.node_kind(*n) == Kind::Element)
        .map(Id::node)
}

/// The first element in the Body of a SOAP envelope, or `()`.
pub(crate) fn soap_body(message: &MessageHandle) -> Result<Dynamic, ScriptError> {
    let Some((node, body)) = soap_part(message, "Body")? else {
        return Ok(Dynamic::UNIT);
    };
    Ok(match elements(&node, body).next() {
        Some(id) => Dynamic::from(Node::Parsed(NodeRef {
            document: node.document.clone(),
            id,
        })),
        None => Dynamic::UNIT,
    })
}

/// The header block of that name (`{namespace}local`, or the local name alone), or `()`.
pub(crate) fn soap_header(message: &MessageHandle, name: &str) -> Result<Dynamic, ScriptError> {
    let Some((node, header)) = soap_part(message, "Header")? else {
        return Ok(Dynamic::UNIT);
    };
    let (uri, local) = match name.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
        Some((uri, local)) => (Some(uri), local),
        None => (None, name),
    };
    let document = &node.document;
    let found = elements(&node, header).find(|id| {
        document.local_name(*id) == local && uri.is_none_or(|uri| document.namespace(*id) == uri)
    });
    Ok(found.map_or(Dynamic::UNIT, |id| {
        Dynamic::from(Node::Parsed(NodeRef {
            document: node.document.clone(),
            id,
        }))
    }))
}

/// A value as a text for a header or an attribute.
pub(crate) fn plain_text(value: &Dynamic) -> Result<ImmutableString, ScriptError> {
    if let Some(text) = value.read_lock::<ImmutableString>() {
        return Ok(text.clone());
    }
    if let Some(node) = value.read_lock::<Node>() {
        return Ok(node.text()?.into());
    }
    if let Some(number) = value.read_lock::<LongNumber>() {
        return Ok(number.0.text().into());
    }
    if value.is_unit() {
        return Ok(ImmutableString::new());
    }
    if let Ok(number) = value.as_float() {
        return Ok(float_text(number).into());
    }
    if value.is_int() || value.is_bool() || value.is_char() {
        return Ok(value.to_string().into());
    }
    Err(ScriptError::text(format!(
        "{} cannot be a plain text here",
        super::values::described(value)
    )))
}
