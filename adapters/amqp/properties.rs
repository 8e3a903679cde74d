//! A message as AMQP properties, headers and body, and back.
//!
//! The table of what becomes of what stands in docs/rabbitmq.md, "What becomes of headers and
//! properties". Absent on purpose: delivery mode, reply-to, expiration and user id of what is sent;
//! those are set by whoever publishes, never by a message's headers. Headers by which a message
//! would choose the queues that get it (`CC`, `BCC`) never pass.

use std::borrow::Cow;
use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use serde_json::Value;
use xbus_core::{Body, Code, Fault, Headers, Message, Timestamp};

use crate::size;

/// What a protocol says of a message stands under such a prefix, so that nobody else may use it.
const RESERVED: &[&str] = &[
    "amqp.",
    "http.",
    "path.",
    "query.",
    "mail.",
    "file.",
    "schedule.",
    "xbus.",
];

/// Credentials, which never become message headers.
const SECRET: &[&str] = &[
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "x-api-key",
];

/// Headers that mean something to the broker where they are published: copies to further queues
/// (<https://www.rabbitmq.com/docs/sender-selected>) and its own bookkeeping.
const OF_THE_BROKER: &[&str] = &[
    "cc",
    "bcc",
    "x-death",
    "x-delivery-count",
    "x-acquired-count",
];

/// A correlation id or content type that does not fit a property stands in the header of its name.
const CORRELATION: &str = "x-correlation-id";

/// A message as it is published without an envelope; `app_id` is the bus's name.
///
/// # Errors
/// `too-large`: a header's name has more than 255 bytes, or all of them together do not fit a frame.
pub(crate) fn write(message: &Message, app_id: &str) -> Result<(BasicProperties, Bytes), Fault> {
    let mut headers = FieldTable::default();
    let mut properties = BasicProperties::default()
        .with_message_id(message.id.to_string().into())
        .with_timestamp(message.received_at.as_micros().max(0) as u64 / 1_000_000);
    if let Some(app_id) = short(app_id) {
        properties = properties.with_app_id(app_id);
    }
    let correlation = message.correlation();
    for (name, value) in message.headers.iter() {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if is("content-type") {
            match short(value) {
                Some(value) => properties = properties.with_content_type(value),
                None => insert(&mut headers, "content-type", value)?,
            }
        } else if is("content-encoding") && short(value).is_some() {
            properties = properties.with_content_encoding(value.into());
        } else if is("amqp.type") {
            if let Some(value) = short(value) {
                properties = properties.with_type(value);
            }
        } else if is("amqp.priority") {
            if let Ok(value) = value.parse() {
                properties = properties.with_priority(value);
            }
        } else if is(CORRELATION) {
            // The message's own says more than a header that came with it.
            insert(&mut headers, name, &correlation)?;
        } else if passes_out(name) {
            insert(&mut headers, name, value)?;
        }
    }
    match short(&correlation) {
        Some(correlation) => properties = properties.with_correlation_id(correlation),
        None => insert(&mut headers, CORRELATION, &correlation)?,
    }
    if !headers.inner().is_empty() {
        properties = properties.with_headers(headers);
    }
    size::head(&properties).map_err(|what| Fault::new(Code::TooLarge, what))?;
    Ok((properties, message.body.bytes().clone()))
}

/// A property's value, where it fits into one (255 bytes).
pub(crate) fn short(value: &str) -> Option<ShortString> {
    ShortString::try_new(value).ok()
}

fn insert(headers: &mut FieldTable, name: &str, value: &str) -> Result<(), Fault> {
    let key = short(name).ok_or_else(|| {
        Fault::new(
            Code::TooLarge,
            format!(
                "the name of a header has {} bytes, AMQP takes 255",
                name.len()
            ),
        )
    })?;
    headers.insert(key, AMQPValue::LongString(LongString::from(value)));
    Ok(())
}

/// Whether a message header is published as an application header.
fn passes_out(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    !is_reserved(&lower)
        && !OF_THE_BROKER.contains(&lower.as_str())
        && !lower.starts_with("x-first-death-")
        && !lower.starts_with("x-last-death-")
}

/// Whether an application header becomes a message header.
fn passes_in(lower: &str) -> bool {
    !is_reserved(lower) && !SECRET.contains(&lower) && lower != "x-delivery-count"
}

fn is_reserved(lower: &str) -> bool {
    RESERVED.iter().any(|prefix| lower.starts_with(prefix))
}

/// What is known of a delivery beside properties and body.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Envelope<'a> {
    /// The exchange that it was published to; empty for the default one.
    pub(crate) exchange: &'a str,
    /// Its routing key.
    pub(crate) routing_key: &'a str,
    /// Whether it was delivered before, here or elsewhere.
    pub(crate) redelivered: bool,
}

/// The message that a delivery is, as it came: its body is not decoded, its id is new.
pub(crate) fn read(
    properties: &BasicProperties,
    envelope: Envelope<'_>,
    body: impl Into<Body>,
) -> Message {
    let mut message = Message::new(body);
    message.correlation_id = properties
        .correlation_id()
        .as_ref()
        .map(ShortString::as_str)
        .filter(|id| !id.is_empty())
        .map(Into::into);
    message.headers = about(properties, envelope);
    if let Some(headers) = properties.headers() {
        for (name, value) in headers {
            let name = name.as_str();
            let lower = name.to_ascii_lowercase();
            // A property stands before a header of the same name, and of two that differ by case
            // alone the first stands.
            if passes_in(&lower) && message.headers.get(name).is_none() {
                message.headers.append(name, &text_of(value));
            }
        }
    }
    // The property of a request is often the attempt's own, by which its reply is known.
    if let Some(id) = message.headers.get(CORRELATION).filter(|id| !id.is_empty()) {
        message.correlation_id = Some(id.into());
    }
    message
}

/// The headers that say what the protocol says of a message.
pub(crate) fn about(properties: &BasicProperties, envelope: Envelope<'_>) -> Headers {
    let mut headers = Headers::with_capacity(12, 512);
    let mut add = |name: &str, value: Option<Cow<'_, str>>| {
        if let Some(value) = value {
            headers.append(name, &value);
        }
    };
    let text =
        |value: &'_ Option<ShortString>| value.as_ref().map(|v| v.as_str().to_owned().into());
    add("content-type", text(properties.content_type()));
    add("content-encoding", text(properties.content_encoding()));
    add("amqp.exchange", Some(envelope.exchange.into()));
    add("amqp.routing-key", Some(envelope.routing_key.into()));
    let redelivered = if envelope.redelivered {
        "true"
    } else {
        "false"
    };
    add("amqp.redelivered", Some(redelivered.into()));
    add(
        "amqp.delivery-count",
        delivery_count(properties).map(|count| count.to_string().into()),
    );
    add("amqp.message-id", text(properties.message_id()));
    add("amqp.correlation-id", text(properties.correlation_id()));
    add("amqp.reply-to", text(properties.reply_to()));
    add("amqp.expiration", text(properties.expiration()));
    add(
        "amqp.priority",
        properties
            .priority()
            .map(|priority| priority.to_string().into()),
    );
    add(
        "amqp.timestamp",
        properties.timestamp().map(|seconds| time(seconds).into()),
    );
    add("amqp.type", text(properties.kind()));
    add("amqp.user-id", text(properties.user_id()));
    add("amqp.app-id", text(properties.app_id()));
    headers
}

/// How often a quorum queue has delivered the message before and got it back.
pub(crate) fn delivery_count(properties: &BasicProperties) -> Option<u64> {
    let value = properties
        .headers()
        .as_ref()?
        .inner()
        .get("x-delivery-count")?;
    text_of(value).parse().ok()
}

/// A header's value as text. Byte strings that are not UTF-8 are given in base64 (RFC 4648 section
/// 4), tables and arrays as JSON, times in RFC 3339, nothing as the empty text.
pub(crate) fn text_of(value: &AMQPValue) -> Cow<'_, str> {
    match value {
        AMQPValue::LongString(value) => bytes_text(value.as_bytes()),
        AMQPValue::ShortString(value) => value.as_str().into(),
        AMQPValue::ByteArray(value) => bytes_text(value.as_slice()),
        AMQPValue::Timestamp(seconds) => time(*seconds).into(),
        AMQPValue::Void => "".into(),
        AMQPValue::Float(value) => value.to_string().into(),
        AMQPValue::Double(value) => value.to_string().into(),
        AMQPValue::DecimalValue(value) => decimal(value.value, value.scale).into(),
        other => json(other).to_string().into(),
    }
}

fn bytes_text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => BASE64.encode(bytes).into(),
    }
}

fn json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => (*value).into(),
        AMQPValue::ShortShortInt(value) => (*value).into(),
        AMQPValue::ShortShortUInt(value) => (*value).into(),
        AMQPValue::ShortInt(value) => (*value).into(),
        AMQPValue::ShortUInt(value) => (*value).into(),
        AMQPValue::LongInt(value) => (*value).into(),
        AMQPValue::LongUInt(value) => (*value).into(),
        AMQPValue::LongLongInt(value) => (*value).into(),
        // What JSON has no number for (RFC 8259 section 6) becomes null.
        AMQPValue::Float(value) => (*value).into(),
        AMQPValue::Double(value) => (*value).into(),
        AMQPValue::FieldArray(items) => items.as_slice().iter().map(json).collect(),
        AMQPValue::FieldTable(table) => table
            .into_iter()
            .map(|(name, value)| (name.to_string(), json(value)))
            .collect(),
        AMQPValue::Void => Value::Null,
        text => text_of(text).into_owned().into(),
    }
}

/// `value` divided by ten to the power of `scale`, exactly.
fn decimal(value: u32, scale: u8) -> String {
    let scale = usize::from(scale);
    if scale == 0 {
        return value.to_string();
    }
    let mut digits = value.to_string();
    while digits.len() <= scale {
        digits.insert(0, '0');
    }
    digits.insert(digits.len() - scale, '.');
    digits
}

/// Seconds since the epoch in RFC 3339; as a number where that has no such form.
fn time(seconds: u64) -> String {
    // The last second of the year 9999.
    match i64::try_from(seconds) {
        Ok(seconds) if seconds <= 253_402_300_799 => {
            Timestamp::from_micros(seconds * 1_000_000).to_string()
        }
        _ => seconds.to_string(),
    }
}

/// A short text for a header that the bus adds: one line, and not so long that it crowds out others.
pub(crate) fn line(text: &str, most: usize) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if out.len() + c.len_utf8() > most {
            let _ = write!(out, "…");
            break;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use lapin::types::{ByteArray, DecimalValue, FieldArray};
    use proptest::prelude::*;

    use super::*;

    fn table(entries: Vec<(&str, AMQPValue)>) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert(name.into(), value);
        }
        table
    }

    fn round_trip(message: &Message) -> Message {
        let (properties, body) = write(message, "bus").unwrap();
        read(&properties, Envelope::default(), body.to_vec())
    }

    #[test]
    fn what_the_protocol_says_stands_under_its_prefix() {
        let properties = BasicProperties::default()
            .with_message_id("m1".into())
            .with_correlation_id("c1".into())
            .with_content_type("text/xml".into())
            .with_reply_to("answers".into())
            .with_expiration("60000".into())
            .with_priority(3)
            .with_timestamp(1_795_334_400)
            .with_type("order".into())
            .with_user_id("guest".into())
            .with_app_id("shop".into())
            .with_headers(table(vec![("x-delivery-count", AMQPValue::LongLongInt(4))]));
        let envelope = Envelope {
            exchange: "shop",
            routing_key: "order.de",
            redelivered: true,
        };
        let message = read(&properties, envelope, b"<a/>".to_vec());
        assert_eq!(message.correlation(), "c1");
        assert_ne!(message.id.to_string(), "m1");
        let all: Vec<_> = message.headers.iter().collect();
        assert_eq!(
            all,
            [
                ("content-type", "text/xml"),
                ("amqp.exchange", "shop"),
                ("amqp.routing-key", "order.de"),
                ("amqp.redelivered", "true"),
                ("amqp.delivery-count", "4"),
                ("amqp.message-id", "m1"),
                ("amqp.correlation-id", "c1"),
                ("amqp.reply-to", "answers"),
                ("amqp.expiration", "60000"),
                ("amqp.priority", "3"),
                ("amqp.timestamp", "2026-11-22T08:00:00.000Z"),
                ("amqp.type", "order"),
                ("amqp.user-id", "guest"),
                ("amqp.app-id", "shop"),
            ]
        );
    }

    #[test]
    fn every_type_of_header_becomes_text() {
        let inner = table(vec![
            ("n", AMQPValue::LongInt(-1)),
            ("raw", AMQPValue::LongString(vec![255, 0].into())),
            ("none", AMQPValue::Void),
            ("nan", AMQPValue::Double(f64::NAN)),
        ]);
        let array = FieldArray::from(vec![AMQPValue::FieldTable(inner), AMQPValue::Boolean(true)]);
        for (value, text) in [
            (AMQPValue::LongString("Grüße\0\r\n".into()), "Grüße\0\r\n"),
            (AMQPValue::LongString(vec![255, 254].into()), "//4="),
            (
                AMQPValue::ByteArray(ByteArray::from(vec![1u8, 200])),
                "Acg=",
            ),
            (AMQPValue::Boolean(false), "false"),
            (AMQPValue::ShortShortUInt(200), "200"),
            (AMQPValue::LongLongInt(i64::MIN), "-9223372036854775808"),
            (AMQPValue::Double(0.5), "0.5"),
            (AMQPValue::Double(f64::INFINITY), "inf"),
            (
                AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 5 }),
                "0.05",
            ),
            (
                AMQPValue::DecimalValue(DecimalValue {
                    scale: 2,
                    value: 1234,
                }),
                "12.34",
            ),
            (AMQPValue::Timestamp(0), "1970-01-01T00:00:00.000Z"),
            (AMQPValue::Timestamp(u64::MAX), "18446744073709551615"),
            (AMQPValue::Void, ""),
            (
                AMQPValue::FieldArray(array),
                r#"[{"n":-1,"nan":null,"none":null,"raw":"/wA="},true]"#,
            ),
        ] {
            assert_eq!(text_of(&value), text);
        }
    }

    #[test]
    fn nobody_feigns_what_the_bus_says_or_hands_credentials_on() {
        let text = || AMQPValue::LongString("x".into());
        let names = [
            "amqp.routing-key",
            "HTTP.status",
            "path.no",
            "query.a",
            "mail.from",
            "file.name",
            "Xbus.Partly-delivered",
            "Authorization",
            "cookie",
            "X-Api-Key",
        ];
        let headers = table(
            names
                .into_iter()
                .map(|name| (name, text()))
                .chain([("ok", text())])
                .collect(),
        );
        let properties = BasicProperties::default().with_headers(headers);
        let message = read(&properties, Envelope::default(), Vec::new());
        assert_eq!(message.headers.get("amqp.routing-key"), Some(""));
        assert_eq!(message.headers.get("ok"), Some("x"));
        assert_eq!(message.headers.len(), 4);
    }

    #[test]
    fn a_message_does_not_choose_who_else_gets_it() {
        let mut message = Message::new("x");
        for name in [
            "CC",
            "BCC",
            "x-death",
            "x-last-death-queue",
            "amqp.reply-to",
            "http.status",
        ] {
            message.headers.set(name, "other-queue");
        }
        message.headers.set("amqp.type", "order");
        message.headers.set("amqp.priority", "7");
        message.headers.set("amqp.expiration", "1");
        let (properties, _) = write(&message, "bus").unwrap();
        assert!(properties.headers().is_none(), "{:?}", properties.headers());
        assert!(properties.reply_to().is_none() && properties.expiration().is_none());
        assert_eq!(
            properties.kind().as_ref().map(ShortString::as_str),
            Some("order")
        );
        assert_eq!(*properties.priority(), Some(7));
        assert_eq!(
            properties.app_id().as_ref().map(ShortString::as_str),
            Some("bus")
        );
        let id = message.id.to_string();
        assert_eq!(
            properties.message_id().as_ref().map(ShortString::as_str),
            Some(id.as_str())
        );
        assert_eq!(properties.correlation_id(), properties.message_id());
    }

    #[test]
    fn what_does_not_fit_is_refused_or_goes_elsewhere() {
        let mut message = Message::new("x");
        message.headers.set(&"n".repeat(255), "v");
        assert!(write(&message, "bus").is_ok());
        message.headers.set(&"n".repeat(256), "v");
        let fault = write(&message, "bus").unwrap_err();
        assert!(fault.code == Code::TooLarge && fault.rejected);

        let mut message = Message::new("x");
        message.headers.set("long", &"v".repeat(128 * 1024));
        assert_eq!(write(&message, "bus").unwrap_err().code, Code::TooLarge);

        let mut message = Message::new("x");
        message.correlation_id = Some("c".repeat(300).into());
        let content_type = format!("text/xml; note={}", "t".repeat(300));
        message.headers.set("content-type", &content_type);
        let back = round_trip(&message);
        assert_eq!(back.correlation_id, message.correlation_id);
        assert_eq!(back.content_type(), Some(content_type.as_str()));
        assert!(
            write(&message, &"b".repeat(300))
                .unwrap()
                .0
                .app_id()
                .is_none()
        );
    }

    #[test]
    fn lines_are_short_and_one() {
        assert_eq!(line("a\r\nb", 10), "a  b");
        assert_eq!(line("Grüße", 4), "Grü…");
    }

    proptest! {
        #[test]
        fn a_message_comes_back_as_it_was(
            headers in prop::collection::btree_map("[A-Za-z$#_-]{1,40}", ".*", 0..12),
            correlation in prop::option::of(".{1,300}"),
            content_type in prop::option::of("[a-z]{1,9}/[a-z+]{1,9}(; charset=[a-z0-9-]{1,9})?"),
            body in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut message = Message::new(body);
            message.correlation_id = correlation.map(Into::into);
            for (name, value) in &headers {
                let lower = name.to_ascii_lowercase();
                if passes_in(&lower) && passes_out(name) {
                    message.headers.set(name, value);
                }
            }
            if let Some(content_type) = &content_type {
                message.headers.set("content-type", content_type);
            }
            let back = round_trip(&message);
            prop_assert_eq!(back.correlation(), message.correlation());
            prop_assert_eq!(back.body.bytes(), message.body.bytes());
            let sorted = |headers: &Headers| {
                let mut all: Vec<_> = headers
                    .iter()
                    .filter(|(name, _)| !name.starts_with("amqp."))
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect();
                all.sort();
                all
            };
            let mut expected = sorted(&message.headers);
            let long = message.correlation_id.as_ref().is_some_and(|id| id.len() > 255);
            if long {
                expected.retain(|(name, _)| !name.eq_ignore_ascii_case(CORRELATION));
                expected.push((CORRELATION.to_owned(), message.correlation()));
                expected.sort();
            }
            prop_assert_eq!(sorted(&back.headers), expected);
        }
    }
}
