//! The functions and operators of the bus, and the engine that knows them.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use rhai::{Blob, Dynamic, EvalAltResult, FLOAT, INT, ImmutableString, Map, Position};
use sha2::Digest;
use xbus_charset::Charset;
use xbus_core::transform::float_text;
use xbus_core::{Code, Format};

use super::call::{self, current};
use super::error::ScriptError;
use super::octets::Octets;
use super::values::{
    HeadersHandle, JsonObject, List, LongNumber, LookupTable, MessageHandle, Node, Responses, copy,
    from_json, xml_text,
};
use super::{attachments, lists, memory, numbers, octets, output, reading};
use crate::Limits;
use crate::json::Json;
use crate::xml::{Document, Element, NodeRef};

pub(super) type R<T> = Result<T, Box<EvalAltResult>>;

/// Nesting beyond this would not fit the stack when values are measured or dropped.
const MOST_ELEMENTS: usize = 10_000;

/// The engine with everything registered.
pub(crate) fn engine(limits: &Limits) -> rhai::Engine {
    let mut engine = rhai::Engine::new();
    engine
        .set_max_operations(limits.operations)
        .set_max_call_levels(limits.call_depth)
        .set_max_expr_depths(limits.expression_depth, limits.expression_depth)
        .set_max_array_size(limits.array_size.clamp(1, MOST_ELEMENTS))
        .set_max_map_size(limits.map_size.clamp(1, MOST_ELEMENTS))
        .set_max_string_size(limits.string_size.max(1))
        .set_max_variables(limits.variables)
        .set_max_functions(500)
        .set_max_modules(0)
        // Else the order of texts and numbers would be decided before `comparisons` is asked.
        .set_fast_operators(false)
        .disable_symbol("eval")
        // Nested without bound, see `check::captures`.
        .disable_symbol("curry")
        .disable_symbol("import")
        .disable_symbol("export");
    engine.on_progress(|operations| {
        (operations & 0x3ff == 0 && call::is_late()).then_some(Dynamic::UNIT)
    });
    engine.on_print(|text| tracing::info!(target: "xbus::script", "{text}"));
    engine.on_debug(|text, _, _| tracing::debug!(target: "xbus::script", "{text}"));
    let measured = limits.clone();
    #[allow(deprecated)] // marked as volatile, not as obsolete
    engine.on_var(move |name, index, context| {
        memory::check(&context, &measured)?;
        // An index means that the script has declared the name itself.
        if index > 0 || context.scope().contains(name) {
            return Ok(None);
        }
        Ok(reading::variable(name)?)
    });
    reading_functions(&mut engine);
    building_functions(&mut engine);
    small_functions(&mut engine);
    handles(&mut engine);
    comparisons(&mut engine);
    lists::register(&mut engine);
    octets::register(&mut engine);
    attachments::register(&mut engine);
    numbers::register(&mut engine);
    // It would hold a thread.
    engine.register_fn("sleep", |_: INT| -> R<()> { no_sleep() });
    engine.register_fn("sleep", |_: FLOAT| -> R<()> { no_sleep() });
    engine
}

fn no_sleep() -> R<()> {
    Err(ScriptError::text("a script cannot sleep").into())
}

fn xpath(node: &Node, text: &str, prefixes: Option<&Map>) -> R<Dynamic> {
    Ok(node.xpath(&*reading::compiled(text, prefixes)?)?)
}

fn xpath_all(node: &Node, text: &str, prefixes: Option<&Map>) -> R<List> {
    Ok(node.xpath_all(&*reading::compiled(text, prefixes)?)?)
}

fn reading_functions(engine: &mut rhai::Engine) {
    engine
        .register_fn("xpath", |e: &str| -> R<Dynamic> {
            Ok(reading::xpath(&reading::own()?, e, None)?)
        })
        .register_fn("xpath", |e: &str, ns: Map| -> R<Dynamic> {
            Ok(reading::xpath(&reading::own()?, e, Some(&ns))?)
        })
        .register_fn("xpath_all", |e: &str| -> R<List> {
            xpath_all(&reading::root(&reading::own()?)?, e, None)
        })
        .register_fn("xpath_all", |e: &str, ns: Map| -> R<List> {
            xpath_all(&reading::root(&reading::own()?)?, e, Some(&ns))
        })
        .register_fn("xpath", |n: &mut Node, e: &str| xpath(n, e, None))
        .register_fn("xpath", |n: &mut Node, e: &str, ns: Map| {
            xpath(n, e, Some(&ns))
        })
        .register_fn("xpath_all", |n: &mut Node, e: &str| xpath_all(n, e, None))
        .register_fn("xpath_all", |n: &mut Node, e: &str, ns: Map| {
            xpath_all(n, e, Some(&ns))
        })
        .register_fn("xpath", |m: &mut MessageHandle, e: &str| -> R<Dynamic> {
            Ok(reading::xpath(m, e, None)?)
        })
        .register_fn(
            "xpath",
            |m: &mut MessageHandle, e: &str, ns: Map| -> R<Dynamic> {
                Ok(reading::xpath(m, e, Some(&ns))?)
            },
        )
        .register_fn("xpath_all", |m: &mut MessageHandle, e: &str| {
            xpath_all(&reading::root(m)?, e, None)
        })
        .register_fn("xpath_all", |m: &mut MessageHandle, e: &str, ns: Map| {
            xpath_all(&reading::root(m)?, e, Some(&ns))
        })
        .register_fn("jsonpath", |e: &str| -> R<Dynamic> {
            Ok(reading::jsonpath(&reading::own()?, e)?)
        })
        .register_fn("jsonpath_all", |e: &str| -> R<List> {
            Ok(reading::jsonpath_all(&reading::own()?, e)?)
        })
        .register_fn("jsonpath", |m: &mut MessageHandle, e: &str| -> R<Dynamic> {
            Ok(reading::jsonpath(m, e)?)
        })
        .register_fn(
            "jsonpath_all",
            |m: &mut MessageHandle, e: &str| -> R<List> { Ok(reading::jsonpath_all(m, e)?) },
        )
        .register_fn("soap_body", || -> R<Dynamic> {
            Ok(reading::soap_body(&reading::own()?)?)
        })
        .register_fn("soap_body", |m: &mut MessageHandle| -> R<Dynamic> {
            Ok(reading::soap_body(m)?)
        })
        .register_fn("soap_header", |name: &str| -> R<Dynamic> {
            Ok(reading::soap_header(&reading::own()?, name)?)
        })
        .register_fn(
            "soap_header",
            |m: &mut MessageHandle, name: &str| -> R<Dynamic> {
                Ok(reading::soap_header(m, name)?)
            },
        )
        .register_fn("text", || -> R<ImmutableString> {
            let call = current()?;
            Ok(call.text(&call.message)?)
        })
        .register_fn("text", |m: &mut MessageHandle| -> R<ImmutableString> {
            Ok(current()?.text(&m.0)?)
        })
        .register_fn("bytes", || -> R<Octets> {
            Ok(Octets::shared(current()?.message.body.bytes()))
        })
        .register_fn("bytes", |m: &mut MessageHandle| {
            Octets::shared(m.0.body.bytes())
        })
        .register_fn("header", |name: &str| -> R<Dynamic> {
            let call = current()?;
            Ok(call.with_headers(|h| h.get(name).map_or(Dynamic::UNIT, Dynamic::from_str_value)))
        })
        .register_fn("header", |m: &mut MessageHandle, name: &str| -> Dynamic {
            m.0.headers
                .get(name)
                .map_or(Dynamic::UNIT, Dynamic::from_str_value)
        });
}

/// `Dynamic` from a borrowed text.
trait FromStrValue {
    fn from_str_value(text: &str) -> Dynamic;
}

impl FromStrValue for Dynamic {
    fn from_str_value(text: &str) -> Dynamic {
        ImmutableString::from(text).into()
    }
}

fn building_functions(engine: &mut rhai::Engine) {
    engine
        .register_fn("xml", |text: ImmutableString| -> R<Node> {
            let call = current()?;
            let document = Document::parse(&text, &call.shared.xml_limits)
                .map_err(|error| call.bad_text(&text, error.to_string()))?;
            Ok(Node::Parsed(NodeRef::root(Arc::new(document))))
        })
        .register_fn("xml", |blob: Blob| -> R<Node> {
            let text = xbus_charset::decode(&blob, None, true).map_err(ScriptError::text)?;
            parse_xml(&text)
        })
        .register_fn("xml", |node: Node| node)
        .register_fn("element", |name: &str| build(name, None, Dynamic::UNIT))
        .register_fn("element", |name: &str, content: Dynamic| {
            build(name, None, content)
        })
        .register_fn(
            "element",
            |name: &str, attributes: Map, content: Dynamic| build(name, Some(attributes), content),
        )
        .register_fn("to_xml", |node: &mut Node| -> R<ImmutableString> {
            let text: ImmutableString = xml_text(node, None)?.into();
            current()?.remember(&text, Format::Xml);
            Ok(text)
        })
        .register_fn("json", |text: ImmutableString| -> R<Dynamic> {
            let call = current()?;
            let json = Json::parse(&text).map_err(|what| call.bad_text(&text, what))?;
            Ok(from_json(&json))
        })
        .register_fn("json", |object: JsonObject| -> R<Dynamic> {
            if object.body {
                return Ok(Dynamic::from(JsonObject {
                    object: object.object,
                    body: false,
                }));
            }
            write_json(Dynamic::from(object))
        })
        .register_fn("json", |list: List| -> R<Dynamic> {
            if list.body && matches!(list.items, super::values::Items::Json(_)) {
                return Ok(Dynamic::from(List {
                    items: list.items,
                    body: false,
                }));
            }
            write_json(Dynamic::from(list))
        })
        .register_fn("json", |map: Map| write_json(map.into()))
        .register_fn("json", |array: rhai::Array| write_json(array.into()))
        .register_fn("json", |value: INT| write_json(value.into()))
        .register_fn("json", |value: FLOAT| write_json(value.into()))
        .register_fn("json", |value: bool| write_json(value.into()))
        .register_fn("json", |_: ()| write_json(Dynamic::UNIT))
        .register_fn("form", |text: &str| -> R<Map> {
            Ok(reading::form(text, None).map_err(ScriptError::text)?)
        })
        .register_fn("form", |map: Map| -> R<ImmutableString> {
            let mut out = String::new();
            for (name, value) in &map {
                let values = match value.read_lock::<rhai::Array>() {
                    Some(values) => values.clone(),
                    None => vec![value.clone()],
                };
                for value in values {
                    if !out.is_empty() {
                        out.push('&');
                    }
                    crate::convert::form_escape(&mut out, name);
                    out.push('=');
                    crate::convert::form_escape(&mut out, &reading::plain_text(&value)?);
                }
            }
            let text: ImmutableString = out.into();
            current()?.remember(&text, Format::Form);
            Ok(text)
        })
        .register_fn("copy", |value: Dynamic| -> R<Dynamic> { Ok(copy(&value)?) })
        .register_fn("encode", |text: &str, label: &str| -> R<Octets> {
            let bytes = xbus_charset::encode(text, label).map_err(ScriptError::text)?;
            Ok(Octets::made(bytes)?)
        })
        .register_fn(
            "encode",
            |text: &str, label: &str, replacement: &str| -> R<Blob> {
                let writing = xbus_charset::Writing::replacing(label, replacement);
                let bytes = writing.and_then(|writing| writing.bytes(text, false));
                Ok(bytes.map_err(ScriptError::text)?)
            },
        )
        .register_fn("decode", |blob: Blob, label: &str| -> R<ImmutableString> {
            let charset = Charset::by_label(label).map_err(ScriptError::text)?;
            let text = charset.decode(&blob).map_err(ScriptError::text)?;
            Ok((*text).into())
        });
}

fn parse_xml(text: &str) -> R<Node> {
    let call = current()?;
    let document = Document::parse(text, &call.shared.xml_limits)
        .map_err(|error| ScriptError::text(error.to_string()))?;
    Ok(Node::Parsed(NodeRef::root(Arc::new(document))))
}

fn write_json(value: Dynamic) -> R<Dynamic> {
    let call = current()?;
    let mut out = String::new();
    output::write_json(&mut out, &value, call.shared.limits.output_size, 0)?;
    let text: ImmutableString = out.into();
    call.remember(&text, Format::Json);
    Ok(text.into())
}

fn build(name: &str, attributes: Option<Map>, content: Dynamic) -> R<Node> {
    use crate::xml::element::Content;

    // Lists within lists are what `map` makes of several parts: they are flattened.
    fn pieces(value: &Dynamic, out: &mut Vec<Content>, depth: usize) -> Result<(), ScriptError> {
        if depth > 8 {
            return Err(ScriptError::text(
                "lists of content nested more than 8 deep",
            ));
        }
        if let Some(node) = value.read_lock::<Node>() {
            out.push(match &*node {
                Node::Parsed(node) => Content::Node(node.clone()),
                Node::Built(element) => Content::Element(element.clone()),
            });
        } else if let Some(list) = value.read_lock::<List>() {
            for at in 0..list.len() {
                pieces(&list.get(at), out, depth + 1)?;
            }
        } else if let Some(array) = value.read_lock::<rhai::Array>() {
            for item in array.iter() {
                pieces(item, out, depth + 1)?;
            }
        } else if !value.is_unit() {
            let text = reading::plain_text(value)?;
            if !text.is_empty() {
                out.push(Content::Text(Arc::from(text.as_str())));
            }
        }
        Ok(())
    }

    let call = current()?;
    let mut content_pieces = Vec::new();
    pieces(&content, &mut content_pieces, 0)?;
    let mut named = Vec::new();
    for (name, value) in attributes.unwrap_or_default() {
        // An attribute that is nothing is left out.
        if !value.is_unit() {
            named.push((name.to_string(), reading::plain_text(&value)?.into_owned()));
        }
    }
    let element = Element::new(
        name,
        named,
        content_pieces,
        call.shared.limits.xml_depth,
        call.shared.limits.output_size,
    )
    .map_err(ScriptError::text)?;
    Ok(Node::Built(Arc::new(element)))
}

pub(super) fn hash(algorithm: &str, bytes: &[u8]) -> R<String> {
    let hex = |digest: &[u8]| digest.iter().map(|b| format!("{b:02x}")).collect();
    Ok(match algorithm {
        "sha256" => hex(&sha2::Sha256::digest(bytes)),
        "sha384" => hex(&sha2::Sha384::digest(bytes)),
        "sha512" => hex(&sha2::Sha512::digest(bytes)),
        other => {
            return Err(ScriptError::text(format!(
                "there is no hash '{other}': sha256, sha384 or sha512"
            ))
            .into());
        }
    })
}

fn small_functions(engine: &mut rhai::Engine) {
    engine
        .register_fn("now", || xbus_core::Timestamp::now().to_string())
        .register_fn("now", |format: &str| -> R<String> {
            Ok(
                crate::time::format(&xbus_core::Timestamp::now().to_string(), format)
                    .map_err(ScriptError::text)?,
            )
        })
        .register_fn("format_time", |time: &str, format: &str| -> R<String> {
            Ok(crate::time::format(time, format).map_err(ScriptError::text)?)
        })
        .register_fn("uuid", || uuid::Uuid::new_v4().to_string())
        .register_fn("base64", |text: &str| STANDARD.encode(text))
        .register_fn("base64", |blob: Blob| STANDARD.encode(blob))
        .register_fn("base64_decode", |text: &str| -> R<Octets> {
            let compact: String = text.split_ascii_whitespace().collect();
            let bytes = STANDARD
                .decode(&compact)
                .or_else(|_| STANDARD_NO_PAD.decode(&compact))
                .map_err(|error| ScriptError::text(format!("not valid base64: {error}")))?;
            Ok(Octets::made(bytes)?)
        })
        .register_fn("hash", |text: &str| hash("sha256", text.as_bytes()))
        .register_fn("hash", |blob: Blob| hash("sha256", &blob))
        .register_fn("hash", |algorithm: &str, text: &str| {
            hash(algorithm, text.as_bytes())
        })
        .register_fn("hash", |algorithm: &str, blob: Blob| hash(algorithm, &blob))
        .register_fn("table", |name: &str| -> R<LookupTable> {
            Ok(LookupTable(current()?.shared.table(name)?))
        })
        .register_fn("log", |level: &str, text: &str| -> R<()> {
            let call = current()?;
            let (id, route) = (call.message.id, &*call.context.route);
            // One line: what a message holds cannot forge another.
            let text: String = text
                .chars()
                .take(4096)
                .flat_map(char::escape_debug)
                .collect();
            match level {
                "error" => tracing::error!(target: "xbus::script", %id, route, "{text}"),
                "warn" => tracing::warn!(target: "xbus::script", %id, route, "{text}"),
                "info" => tracing::info!(target: "xbus::script", %id, route, "{text}"),
                "debug" => tracing::debug!(target: "xbus::script", %id, route, "{text}"),
                "trace" => tracing::trace!(target: "xbus::script", %id, route, "{text}"),
                other => {
                    return Err(ScriptError::text(format!(
                        "there is no level '{other}': error, warn, info, debug or trace"
                    ))
                    .into());
                }
            }
            Ok(())
        })
        .register_fn("fail", |code: &str, text: &str| -> R<()> {
            Err(ScriptError::fault(Code::from_name(code).unwrap_or(Code::Internal), text).into())
        })
        .register_fn("number", |text: &str| -> R<FLOAT> {
            text.trim()
                .parse::<FLOAT>()
                .ok()
                .filter(|number| number.is_finite())
                .ok_or_else(|| ScriptError::text(format!("'{text}' is not a number")).into())
        })
        .register_fn("number", |value: INT| value as FLOAT)
        .register_fn("number", |value: FLOAT| value)
        .register_fn("number", |_: ()| -> R<FLOAT> {
            Err(ScriptError::text("() is not a number: the value is missing").into())
        })
        .register_fn("decimals", |value: FLOAT, places: INT| {
            decimals(value, places)
        })
        .register_fn("decimals", |value: INT, places: INT| {
            decimals(value as FLOAT, places)
        })
        .register_fn("round", |value: FLOAT, places: INT| -> R<FLOAT> {
            decimals(value, places)?
                .parse()
                .map_err(|_| ScriptError::text("the number cannot be rounded").into())
        })
        .register_fn("trimmed", |text: &str| text.trim().to_owned())
        .register_fn(
            "replaced",
            |text: &str, from: &str, to: &str| -> R<String> {
                let limit = current()?.shared.limits.string_size;
                let grows = text.matches(from).count() * to.len();
                if from.is_empty() || text.len() + grows > limit {
                    return Err(
                        ScriptError::text("replaced(): nothing to look for, or too large").into(),
                    );
                }
                Ok(text.replace(from, to))
            },
        )
        .register_fn("to_string", |value: FLOAT| float_text(value))
        .register_fn("print", |value: FLOAT| float_text(value));
}

/// A number with exactly so many digits after the point, halves away from zero as they are written.
fn decimals(value: FLOAT, places: INT) -> R<String> {
    if !value.is_finite() || !(0..=15).contains(&places) {
        return Err(ScriptError::text("decimals(): a finite number and 0 to 15 places").into());
    }
    let places = places as usize;
    // The shortest text that reads back is what was meant: 1.005 is not 1.00499999….
    let shown = value.to_string();
    let (whole, fraction) = shown.split_once('.').unwrap_or((&shown, ""));
    if fraction.len() <= places {
        let point = if places > 0 { "." } else { "" };
        return Ok(format!("{whole}{point}{fraction:0<places$}"));
    }
    let up = fraction.as_bytes()[places] >= b'5';
    let mut digits: Vec<u8> =
        format!("{}{}", whole.trim_start_matches('-'), &fraction[..places]).into_bytes();
    if up {
        let mut at = digits.len();
        loop {
            if at == 0 {
                digits.insert(0, b'1');
                break;
            }
            at -= 1;
            if digits[at] == b'9' {
                digits[at] = b'0';
            } else {
                digits[at] += 1;
                break;
            }
        }
    }
    let text = String::from_utf8(digits).unwrap_or_default();
    let (whole_part, fraction_part) = text.split_at(text.len() - places);
    let zero = text.bytes().all(|b| b == b'0');
    let sign = if value < 0.0 && !zero { "-" } else { "" };
    let point = if places > 0 { "." } else { "" };
    Ok(format!("{sign}{whole_part}{point}{fraction_part}"))
}

fn handles(engine: &mut rhai::Engine) {
    engine
        .register_type_with_name::<Node>("node")
        .register_get("name", |n: &mut Node| -> R<String> { Ok(n.name()?) })
        .register_get("local_name", |n: &mut Node| -> R<String> {
            Ok(n.local_name()?)
        })
        .register_get("namespace", |n: &mut Node| -> R<String> {
            Ok(n.namespace()?)
        })
        .register_get("children", |n: &mut Node| -> R<List> { Ok(n.children()?) })
        .register_fn("text", |n: &mut Node| -> R<String> { Ok(n.text()?) })
        .register_fn("attr", |n: &mut Node, name: &str| -> R<Dynamic> {
            Ok(n.attr(name)?)
        })
        .register_fn("to_string", |n: &mut Node| -> R<String> { Ok(n.text()?) })
        .register_type_with_name::<JsonObject>("object")
        .register_indexer_get(|o: &mut JsonObject, name: &str| -> Dynamic {
            o.object.get(name).map_or(Dynamic::UNIT, from_json)
        })
        .register_fn("contains", |o: &mut JsonObject, name: &str| {
            o.object.get(name).is_some()
        })
        .register_fn("len", |o: &mut JsonObject| o.object.members().len() as INT)
        .register_get("len", |o: &mut JsonObject| o.object.members().len() as INT)
        .register_fn("is_empty", |o: &mut JsonObject| {
            o.object.members().is_empty()
        })
        .register_fn("keys", |o: &mut JsonObject| {
            List::texts(o.object.members().iter().map(|(name, _)| name.clone()))
        })
        .register_fn("values", |o: &mut JsonObject| {
            List::json(o.object.members().iter().map(|(_, v)| v.clone()).collect())
        })
        .register_fn("to_string", |o: &mut JsonObject| -> R<Dynamic> {
            write_json(Dynamic::from(o.clone()))
        })
        .register_type_with_name::<MessageHandle>("message")
        .register_get("body", |m: &mut MessageHandle| -> R<Dynamic> {
            let call = current()?;
            let own = Arc::ptr_eq(&call.message, &m.0);
            let mut body = reading::body(&call, &m.0)?;
            if !own {
                super::values::unmark(&mut body);
            }
            Ok(body)
        })
        .register_get("headers", |m: &mut MessageHandle| {
            HeadersHandle(Some(m.0.clone()))
        })
        .register_get("attachments", |m: &mut MessageHandle| {
            attachments::list(&m.0.attachments)
        })
        .register_get("id", |m: &mut MessageHandle| m.0.id.to_string())
        .register_get("correlation_id", |m: &mut MessageHandle| m.0.correlation())
        .register_get("received_at", |m: &mut MessageHandle| {
            m.0.received_at.to_string()
        })
        .register_type_with_name::<Responses>("responses")
        .register_indexer_get(|_: &mut Responses, name: &str| -> R<Dynamic> {
            let call = current()?;
            let found = call
                .context
                .responses
                .iter()
                .find(|(step, _)| &**step == name);
            match found {
                Some((_, message)) => Ok(Dynamic::from(MessageHandle(message.clone()))),
                // A step that a `when` left out has no response.
                None => Ok(Dynamic::UNIT),
            }
        })
        .register_fn("contains", |_: &mut Responses, name: &str| -> R<bool> {
            let call = current()?;
            Ok(call
                .context
                .responses
                .iter()
                .any(|(step, _)| &**step == name))
        })
        .register_type_with_name::<HeadersHandle>("headers")
        .register_indexer_get(|h: &mut HeadersHandle, name: &str| -> R<Dynamic> {
            let value =
                |h: &xbus_core::Headers| h.get(name).map_or(Dynamic::UNIT, Dynamic::from_str_value);
            Ok(match &h.0 {
                Some(message) => value(&message.headers),
                None => current()?.with_headers(value),
            })
        })
        .register_indexer_set(
            |h: &mut HeadersHandle, name: &str, value: Dynamic| -> R<()> {
                if h.0.is_some() {
                    return Err(ScriptError::text(
                        "headers of received messages and responses do not change: set headers[…]",
                    )
                    .into());
                }
                let call = current()?;
                if value.is_unit() {
                    call.set_header(name, None)?;
                } else {
                    call.set_header(name, Some(&*reading::plain_text(&value)?))?;
                }
                Ok(())
            },
        )
        .register_fn("contains", |h: &mut HeadersHandle, name: &str| -> R<bool> {
            Ok(match &h.0 {
                Some(message) => message.headers.get(name).is_some(),
                None => current()?.with_headers(|h| h.get(name).is_some()),
            })
        })
        .register_fn("set_header", |name: &str, value: Dynamic| -> R<()> {
            if value.is_unit() {
                return Ok(current()?.set_header(name, None)?);
            }
            let text = reading::plain_text(&value)?;
            Ok(current()?.set_header(name, Some(&*text))?)
        })
        .register_fn("remove", |h: &mut HeadersHandle, name: &str| -> R<()> {
            if h.0.is_some() {
                return Err(ScriptError::text("these headers do not change").into());
            }
            Ok(current()?.set_header(name, None)?)
        })
        .register_fn("keys", |h: &mut HeadersHandle| -> R<List> {
            let names = |h: &xbus_core::Headers| {
                List::texts(h.iter().map(|(name, _)| ImmutableString::from(name)))
            };
            Ok(match &h.0 {
                Some(message) => names(&message.headers),
                None => current()?.with_headers(names),
            })
        })
        .register_type_with_name::<LookupTable>("table")
        .register_indexer_get(|t: &mut LookupTable, key: &str| t.get(key))
        .register_indexer_get(|t: &mut LookupTable, key: INT| t.get(&key.to_string()))
        .register_indexer_get(|t: &mut LookupTable, key: LongNumber| t.get(key.0.text()))
        .register_indexer_get(|_: &mut LookupTable, _: ()| Dynamic::UNIT)
        .register_fn("contains", |t: &mut LookupTable, key: &str| {
            t.0.find(key).is_some()
        });
}

/// Ordering a text against a number is a mistake, not false.
fn comparisons(engine: &mut rhai::Engine) {
    fn refuse(text: &str) -> R<bool> {
        let shown: String = text.chars().take(40).collect();
        Err(Box::new(EvalAltResult::ErrorRuntime(
            Dynamic::from(ScriptError::text(format!(
                "the text \"{shown}\" is compared with a number: number(…) makes one of it, also \
                 within an XPath"
            ))),
            Position::NONE,
        )))
    }
    for operator in ["<", "<=", ">", ">="] {
        engine
            .register_fn(operator, |a: &str, _: INT| refuse(a))
            .register_fn(operator, |a: &str, _: FLOAT| refuse(a))
            .register_fn(operator, |_: INT, b: &str| refuse(b))
            .register_fn(operator, |_: FLOAT, b: &str| refuse(b));
    }
}
