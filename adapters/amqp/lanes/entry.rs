//! A lane's message as it stands in a queue of the broker, and back.
//!
//! The body is the message's body. Everything else stands as JSON in the header `x-xbus`, where an
//! operator can read it; id, content type and correlation id are shown as properties too. Where
//! that JSON is too long for the header frame that every broker takes, or the message has
//! attachments, it stands before the body, with its length in front (content type
//! `application/x-xbus-message`); the attachments stand behind the body.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use serde::{Deserialize, Serialize};
use xbus_core::broker::{LaneEntry, LaneName};
use xbus_core::store::{EntryRef, Queued};
use xbus_core::{Attachment, Format, Headers, Message, MessageId, Timestamp};

/// The header that holds all that is not the body.
const META: &str = "x-xbus";
/// The header of what makes the owner of a partition look at its front.
const NUDGE: &str = "x-xbus-nudge";
/// The content type of a body that begins with the rest.
const PACKED: &str = "application/x-xbus-message";
/// The version of what has attachments, which nodes that do not know them set aside.
const WITH_ATTACHMENTS: u32 = 2;
/// So long may the JSON be in a header: a frame of 4096 bytes, which AMQP 0.9.1 (section 4.2.3)
/// guarantees, holds it together with the properties.
const META_MAX: usize = 3000;
/// What it is about without the message's headers.
const META_ROOM: usize = 512;

/// One message of a lane.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) message: Arc<Message>,
    pub(super) key: Arc<str>,
    pub(super) target: Arc<str>,
    pub(super) since: Timestamp,
    pub(super) cause: Option<MessageId>,
    /// Who accepted it; empty for nobody.
    pub(super) node: Arc<str>,
    pub(super) origin: Option<(Arc<str>, u64)>,
    /// The number of the one that was handed over before it to the same queue, where that is known.
    pub(super) after: Option<u64>,
    pub(super) attempts: u32,
    pub(super) last_error: Option<String>,
    pub(super) parked: Option<String>,
}

/// What a queue gives.
pub(super) enum Content {
    /// A message of the lane.
    Entry(Box<Entry>),
    /// No message: the front may hold something.
    Nudge,
}

/// The JSON in [`META`].
#[derive(Serialize, Deserialize)]
struct Meta<'a> {
    v: u32,
    id: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlation: Option<Cow<'a, str>>,
    /// Microseconds since 1970, as the others.
    received: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    format: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    attachments: Vec<Part>,
    /// In order; a name may stand twice.
    headers: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    key: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    target: Cow<'a, str>,
    since: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    node: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<(Cow<'a, str>, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<u64>,
    #[serde(default, skip_serializing_if = "is_zero")]
    attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_error: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parked: Option<Cow<'a, str>>,
}

/// An attachment, whose octets stand behind the body.
#[derive(Serialize, Deserialize)]
struct Part {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(rename = "id", default, skip_serializing_if = "Option::is_none")]
    content_id: Option<String>,
    length: usize,
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl From<LaneEntry> for Entry {
    fn from(entry: LaneEntry) -> Self {
        Self {
            message: entry.message,
            key: entry.key,
            target: entry.target,
            since: entry.since,
            cause: entry.cause,
            node: entry.node,
            origin: entry.origin,
            after: None,
            attempts: 0,
            last_error: None,
            parked: None,
        }
    }
}

impl Entry {
    /// As the core knows it.
    pub(super) fn queued(&self, lane: &LaneName) -> Queued {
        Queued {
            at: EntryRef {
                queue: lane.queue.clone(),
                key: self.key.clone(),
                seq: self.origin.as_ref().map_or(0, |(_, number)| *number),
            },
            message: self.message.clone(),
            target: self.target.clone(),
            since: self.since,
            cause: self.cause,
            attempts: self.attempts,
            last_error: self.last_error.clone(),
            next_try: None,
            parked: self.parked.clone(),
        }
    }

    /// As it is published.
    pub(super) fn write(&self) -> (BasicProperties, Bytes) {
        let message = &self.message;
        let attachments: Vec<Part> = message.attachments.iter().map(Part::of).collect();
        let alone = attachments.is_empty();
        let id = message.id.to_string();
        let meta = Meta {
            v: if alone { 1 } else { WITH_ATTACHMENTS },
            attachments,
            id: id.as_str().into(),
            correlation: message.correlation_id.as_deref().map(Cow::from),
            received: message.received_at.as_micros(),
            format: message.format.map(|format| format.name().into()),
            headers: message
                .headers
                .iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            key: (&*self.key).into(),
            target: (&*self.target).into(),
            since: self.since.as_micros(),
            cause: self.cause.map(|id| id.to_string()),
            node: (&*self.node).into(),
            origin: self
                .origin
                .as_ref()
                .map(|(store, number)| ((&**store).into(), *number)),
            after: self.after,
            attempts: self.attempts,
            last_error: self.last_error.as_deref().map(Cow::from),
            parked: self.parked.as_deref().map(Cow::from),
        };
        // Strings, numbers and lists of them: nothing that could not be written.
        let headers = &message.headers;
        let length = headers
            .iter()
            .map(|(n, v)| n.len() + v.len() + 8)
            .sum::<usize>();
        let mut json = Vec::with_capacity(length + META_ROOM);
        if serde_json::to_writer(&mut json, &meta).is_err() {
            json.clear();
        }
        let mut properties = BasicProperties::default()
            .with_message_id(ShortString::from(id.as_str()))
            .with_timestamp(seconds(self.since))
            .with_type("xbus.lane".into())
            .with_app_id("xbus".into());
        if let Some(Ok(id)) = message.correlation_id.as_deref().map(ShortString::try_new) {
            properties = properties.with_correlation_id(id);
        }
        if json.len() > META_MAX || !alone {
            let body = message.body.bytes();
            let length = 4 + json.len() + body.len() + message.attachments.size();
            let mut packed = BytesMut::with_capacity(length);
            packed.extend_from_slice(&(json.len() as u32).to_be_bytes());
            packed.extend_from_slice(&json);
            packed.extend_from_slice(body);
            for attachment in message.attachments.iter() {
                packed.extend_from_slice(&attachment.body);
            }
            return (properties.with_content_type(PACKED.into()), packed.freeze());
        }
        let content_type = message.content_type().map(ShortString::try_new);
        if let Some(Ok(content_type)) = content_type
            && content_type.as_str() != PACKED
        {
            properties = properties.with_content_type(content_type);
        }
        let mut headers = FieldTable::default();
        headers.insert(META.into(), AMQPValue::LongString(LongString::from(json)));
        (
            properties.with_headers(headers),
            message.body.bytes().clone(),
        )
    }

    /// What a queue gave. A message that somebody else put there comes as one that is to be parked.
    pub(super) fn read(properties: &BasicProperties, data: Vec<u8>) -> Content {
        let header = |name: &str| {
            properties
                .headers()
                .as_ref()
                .and_then(|table| table.inner().get(name))
        };
        if header(NUDGE).is_some() {
            return Content::Nudge;
        }
        let data = Bytes::from(data);
        let read = match header(META) {
            Some(AMQPValue::LongString(json)) => Self::parse(json.as_bytes(), data.clone()),
            _ if properties.content_type().as_ref().map(ShortString::as_str) == Some(PACKED) => {
                unpack(&data).and_then(|(json, body)| Self::parse(&json, body))
            }
            _ => None,
        };
        Content::Entry(Box::new(
            read.unwrap_or_else(|| Self::foreign(properties, data)),
        ))
    }

    fn parse(json: &[u8], mut body: Bytes) -> Option<Self> {
        let meta: Meta<'static> = serde_json::from_slice(json).ok()?;
        if meta.v != 1 && meta.v != WITH_ATTACHMENTS {
            return None;
        }
        let mut attachments = Vec::with_capacity(meta.attachments.len().min(1000));
        for part in meta.attachments.into_iter().rev() {
            let start = body.len().checked_sub(part.length)?;
            attachments.push(part.with(body.split_off(start)));
        }
        attachments.reverse();
        let length = meta.headers.iter().map(|(n, v)| n.len() + v.len()).sum();
        let mut headers = Headers::with_capacity(meta.headers.len(), length);
        for (name, value) in &meta.headers {
            headers.append(name, value);
        }
        let message = Message {
            id: meta.id.parse().ok()?,
            correlation_id: meta.correlation.map(Arc::from),
            received_at: Timestamp::from_micros(meta.received),
            headers,
            body: body.into(),
            attachments: attachments.into(),
            format: match meta.format {
                Some(name) => Some(Format::from_name(&name)?),
                None => None,
            },
        };
        Some(Self {
            message: Arc::new(message),
            key: meta.key.into(),
            target: meta.target.into(),
            since: Timestamp::from_micros(meta.since),
            cause: match meta.cause {
                Some(id) => Some(id.parse().ok()?),
                None => None,
            },
            node: meta.node.into(),
            origin: meta
                .origin
                .map(|(store, number)| (Arc::from(store), number)),
            after: meta.after,
            attempts: meta.attempts,
            last_error: meta.last_error.map(Cow::into_owned),
            parked: meta.parked.map(Cow::into_owned),
        })
    }

    fn foreign(properties: &BasicProperties, body: Bytes) -> Self {
        let mut message = Message::new(body);
        if let Some(content_type) = properties.content_type() {
            message.headers.set("content-type", content_type.as_str());
        }
        if let Some(id) = properties.correlation_id() {
            message.correlation_id = Some(Arc::from(id.as_str()));
        }
        let why = "it was not put into the lane by xbus, or by a newer version";
        Self {
            since: message.received_at,
            message: Arc::new(message),
            key: Arc::from(""),
            target: Arc::from(""),
            cause: None,
            node: Arc::from(""),
            origin: None,
            after: None,
            attempts: 0,
            last_error: None,
            parked: Some(why.to_owned()),
        }
    }
}

impl Part {
    fn of(attachment: &Attachment) -> Self {
        Self {
            name: attachment.name.as_deref().map(str::to_owned),
            content_type: attachment.content_type.as_deref().map(str::to_owned),
            content_id: attachment.content_id.as_deref().map(str::to_owned),
            length: attachment.body.len(),
        }
    }

    fn with(self, body: Bytes) -> Attachment {
        Attachment {
            name: self.name.map(Arc::from),
            content_type: self.content_type.map(Arc::from),
            content_id: self.content_id.map(Arc::from),
            body,
        }
    }
}

/// Makes the owner of a partition look at its front when it comes to it.
pub(super) fn nudge() -> (BasicProperties, Bytes) {
    let mut headers = FieldTable::default();
    headers.insert(NUDGE.into(), true.into());
    let properties = BasicProperties::default()
        .with_headers(headers)
        .with_type("xbus.nudge".into())
        .with_app_id("xbus".into());
    (properties, Bytes::new())
}

fn unpack(data: &Bytes) -> Option<(Bytes, Bytes)> {
    let length: [u8; 4] = data.get(..4)?.try_into().ok()?;
    let end = 4usize.checked_add(u32::from_be_bytes(length) as usize)?;
    (end <= data.len()).then(|| (data.slice(4..end), data.slice(end..)))
}

/// AMQP's timestamps are seconds.
fn seconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_micros() / 1_000_000).unwrap_or_default()
}

/// Reads `meta` and `body` in both forms in which an entry may stand; what was read is written and
/// read again, and must be the same. For the fuzz targets.
pub(crate) fn fuzz(meta: &[u8], body: &[u8]) {
    let mut headers = FieldTable::default();
    headers.insert(META.into(), AMQPValue::LongString(LongString::from(meta)));
    let plain = BasicProperties::default().with_headers(headers);
    let packed = BasicProperties::default().with_content_type(PACKED.into());
    let length = (meta.len() as u32).to_be_bytes();
    for (properties, data) in [
        (plain, body.to_vec()),
        (packed.clone(), [&length[..], meta, body].concat()),
        (packed, [meta, body].concat()),
    ] {
        if let Content::Entry(entry) = Entry::read(&properties, data)
            && entry.parked.is_none()
        {
            let (properties, data) = entry.write();
            let Content::Entry(again) = Entry::read(&properties, data.to_vec()) else {
                panic!("an entry came back as a nudge");
            };
            assert_eq!((properties, data), again.write());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn back(entry: &Entry) -> Entry {
        let (properties, body) = entry.write();
        match Entry::read(&properties, body.to_vec()) {
            Content::Entry(entry) => *entry,
            Content::Nudge => panic!("a message came back as a nudge"),
        }
    }

    fn same(left: &Entry, right: &Entry) {
        assert_eq!(left.message.id, right.message.id);
        assert_eq!(left.message.correlation_id, right.message.correlation_id);
        assert_eq!(left.message.received_at, right.message.received_at);
        assert_eq!(left.message.headers, right.message.headers);
        assert_eq!(left.message.body.bytes(), right.message.body.bytes());
        assert_eq!(left.message.attachments, right.message.attachments);
        assert_eq!(left.message.format, right.message.format);
        assert_eq!(left.key, right.key);
        assert_eq!(left.target, right.target);
        assert_eq!(left.since, right.since);
        assert_eq!(left.cause, right.cause);
        assert_eq!(left.node, right.node);
        assert_eq!(left.origin, right.origin);
        assert_eq!(left.after, right.after);
        assert_eq!(left.attempts, right.attempts);
        assert_eq!(left.last_error, right.last_error);
        assert_eq!(left.parked, right.parked);
    }

    prop_compose! {
        fn any_message()(
            body in prop::collection::vec(any::<u8>(), 0..200),
            headers in prop::collection::vec((any::<String>(), any::<String>()), 0..8),
            long in prop::option::of(2000usize..9000),
            attachments in prop::collection::vec(any::<(Option<String>, Vec<u8>)>(), 0..3),
            correlation in prop::option::of(any::<String>()),
            received in any::<i64>(),
            id in any::<u128>(),
            format in prop::option::of(prop::sample::select(vec![
                Format::Xml, Format::Json, Format::Csv, Format::Form, Format::Text, Format::Bytes,
            ])),
        ) -> Message {
            let mut message = Message::new(body);
            message.id = MessageId::from_u128(id);
            message.received_at = Timestamp::from_micros(received);
            message.correlation_id = correlation.map(Arc::from);
            message.format = format;
            let attachment = |(name, body): (Option<String>, Vec<u8>)| Attachment {
                name: name.map(Arc::from),
                body: body.into(),
                ..Attachment::default()
            };
            message.attachments = attachments.into_iter().map(attachment).collect();
            for (name, value) in &headers {
                message.headers.append(name, value);
            }
            if let Some(length) = long {
                message.headers.append("long", &"ä".repeat(length));
            }
            message
        }
    }

    proptest! {
        #[test]
        fn any_entry_comes_back_as_it_was(
            message in any_message(),
            (key, target, node) in any::<(String, String, String)>(),
            since in any::<i64>(),
            cause in prop::option::of(any::<u128>()),
            origin in prop::option::of(any::<(String, u64)>()),
            after in any::<Option<u64>>(),
            attempts in any::<u32>(),
            (last_error, parked) in any::<(Option<String>, Option<String>)>(),
        ) {
            let entry = Entry {
                message: Arc::new(message),
                key: key.into(),
                target: target.into(),
                since: Timestamp::from_micros(since),
                cause: cause.map(MessageId::from_u128),
                node: node.into(),
                origin: origin.map(|(store, number)| (Arc::from(store), number)),
                after,
                attempts,
                last_error,
                parked,
            };
            same(&entry, &back(&entry));
        }

        #[test]
        fn what_others_put_there_is_kept(data in prop::collection::vec(any::<u8>(), 0..100), packed: bool) {
            let mut properties = BasicProperties::default();
            if packed {
                properties = properties.with_content_type(PACKED.into());
            }
            let Content::Entry(entry) = Entry::read(&properties, data.clone()) else {
                panic!("no nudge");
            };
            prop_assert_eq!(entry.message.body.bytes().as_ref(), data.as_slice());
            prop_assert!(entry.parked.is_some());
        }
    }

    #[test]
    fn operators_can_read_it() {
        let mut message = Message::new("<order/>");
        message.headers.set("Content-Type", "text/xml");
        let entry = Entry::from(LaneEntry {
            lane: LaneName {
                queue: Arc::from("orders.erp"),
                partitions: 1,
            },
            key: Arc::from("C-1"),
            message: Arc::new(message),
            target: Arc::from("erp"),
            since: Timestamp::now(),
            cause: None,
            node: Arc::from("one"),
            origin: Some((Arc::from("store"), 7)),
        });
        let (properties, body) = entry.write();
        assert_eq!(&body[..], b"<order/>");
        let content_type = properties.content_type().clone().unwrap();
        assert_eq!(content_type.as_str(), "text/xml");
        let headers = properties.headers().clone().unwrap();
        let Some(AMQPValue::LongString(json)) = headers.inner().get(META) else {
            panic!("no {META}");
        };
        let json = String::from_utf8(json.as_bytes().to_vec()).unwrap();
        for part in [r#""key":"C-1""#, r#"["Content-Type","text/xml"]"#] {
            assert!(json.contains(part), "{json}");
        }
        let (properties, body) = nudge();
        assert!(matches!(
            Entry::read(&properties, body.to_vec()),
            Content::Nudge
        ));
    }
}
