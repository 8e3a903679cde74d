//! The message: one value that moves forward through a route.
//!
//! Absent on purpose: no acknowledgement handle, no error mark, no second "out" message. What
//! happened to a message is said by return values, never by the message itself.

use std::any::Any;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::{Attachments, Timestamp};

/// The bus's own identity of a message: a UUID version 7 (RFC 9562), so that ids sort by the time
/// at which messages were accepted. Never taken from outside.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(u128);

impl MessageId {
    /// A new id, greater than all that this process made before: milliseconds, a counter of 16 bits
    /// that goes on into them when it is full, and 58 random bits (RFC 9562 sections 5.7 and 6.2,
    /// method 1). The counter is an atomic, not one behind a lock that all messages share.
    pub fn new() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let now = (Timestamp::now().as_micros() as u64 / 1000) << 16;
        let next = |last: u64| now.max(last + 1);
        let (Ok(last) | Err(last)) = LAST.fetch_update(Relaxed, Relaxed, |last| Some(next(last)));
        let count = u128::from(next(last));
        let random = uuid::Uuid::new_v4().as_u128() & ((1 << 58) - 1);
        let version = 0x7 << 76;
        let variant = 0b10 << 62;
        Self(
            (count >> 16) << 80
                | version
                | ((count >> 4) & 0xfff) << 64
                | variant
                | (count & 0xf) << 58
                | random,
        )
    }

    /// The id as a number; big-endian order is time order.
    pub fn as_u128(self) -> u128 {
        self.0
    }

    /// The id that [`MessageId::as_u128`] gave.
    pub fn from_u128(value: u128) -> Self {
        Self(value)
    }

    /// Characters of its text form.
    pub const LENGTH: usize = uuid::fmt::Hyphenated::LENGTH;

    /// Its text form, hyphenated and in lower case, in `buffer`.
    pub fn encode(self, buffer: &mut [u8; Self::LENGTH]) -> &str {
        uuid::Uuid::from_u128(self.0)
            .hyphenated()
            .encode_lower(buffer)
    }

    /// When the id was made, from the 48 bits of milliseconds that a version 7 UUID begins with.
    pub fn made_at(self) -> Timestamp {
        Timestamp::from_micros(((self.0 >> 80) as i64) * 1000)
    }
}

impl Default for MessageId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.encode(&mut [0; Self::LENGTH]))
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MessageId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        uuid::Uuid::parse_str(text)
            .map(|id| Self(id.as_u128()))
            .map_err(|_| format!("'{text}' is not a message id (a UUID such as 0192e4a6-…)"))
    }
}

/// Headers of a message: ordered, names compared without regard to ASCII case and kept as they
/// came. One name has one value; setting it again replaces it.
///
/// All text lives in one buffer, so that a message with twenty headers costs two allocations.
#[derive(Clone, Default)]
pub struct Headers {
    text: String,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    name: u32,
    value: u32,
    end: u32,
}

impl Headers {
    /// No headers; allocates nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Room for `count` headers with `bytes` of names and values together.
    pub fn with_capacity(count: usize, bytes: usize) -> Self {
        Self {
            text: String::with_capacity(bytes),
            entries: Vec::with_capacity(count),
        }
    }

    /// The value of `name`, or nothing.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.position(name).map(|at| self.value_at(at))
    }

    /// Sets `name` to `value`, in place of what it had.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.position(name) {
            Some(at) => {
                let entry = self.push_text(name, value);
                self.entries[at] = entry;
                self.compact();
            }
            None => {
                let entry = self.push_text(name, value);
                self.entries.push(entry);
            }
        }
    }

    /// Those whose names `keep` accepts, with room for `count` more of `bytes` together.
    pub fn kept(&self, mut keep: impl FnMut(&str) -> bool, count: usize, bytes: usize) -> Self {
        let mut kept = Self::with_capacity(self.entries.len() + count, self.text.len() + bytes);
        // One copy of all text costs less than one for each that stays.
        kept.text.push_str(&self.text);
        kept.entries.extend(
            self.entries
                .iter()
                .filter(|entry| keep(&self.text[entry.name as usize..entry.value as usize])),
        );
        kept.compact();
        kept
    }

    /// Adds a header whose name is known not to be there yet. Twice the same name: the first wins.
    pub fn append(&mut self, name: &str, value: &str) {
        let entry = self.push_text(name, value);
        self.entries.push(entry);
    }

    /// The same, under a name that begins with `prefix`.
    pub fn append_under(&mut self, prefix: &str, name: &str, value: &str) {
        let at = self.text.len() as u32;
        self.text.push_str(prefix);
        let mut entry = self.push_text(name, value);
        entry.name = at;
        self.entries.push(entry);
    }

    /// Takes `name` away and says whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.entries.len();
        let text = &self.text;
        self.entries
            .retain(|e| !text[e.name as usize..e.value as usize].eq_ignore_ascii_case(name));
        self.entries.len() != before
    }

    /// Takes away every header whose name `keep` does not accept.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        let text = &self.text;
        self.entries
            .retain(|e| keep(&text[e.name as usize..e.value as usize]));
    }

    /// Names and values in the order in which they were first set.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        (0..self.entries.len()).map(|at| (self.name_at(at), self.value_at(at)))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn push_text(&mut self, name: &str, value: &str) -> Entry {
        let at = self.text.len() as u32;
        self.text.push_str(name);
        let middle = self.text.len() as u32;
        self.text.push_str(value);
        Entry {
            name: at,
            value: middle,
            end: self.text.len() as u32,
        }
    }

    /// Gives back what replaced values took, once that is most of the buffer.
    fn compact(&mut self) {
        const SMALL: usize = 4096;
        let live: usize = self.entries.iter().map(|e| (e.end - e.name) as usize).sum();
        if self.text.len() > SMALL.max(2 * live) {
            let mut tight = Self::with_capacity(self.entries.len(), live);
            for (name, value) in self.iter() {
                tight.append(name, value);
            }
            *self = tight;
        }
    }

    fn position(&self, name: &str) -> Option<usize> {
        // Most names differ in length: only the others are looked at.
        let length = name.len() as u32;
        self.entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.value - entry.name == length)
            .find_map(|(at, _)| same(self.name_at(at), name).then_some(at))
    }

    fn name_at(&self, at: usize) -> &str {
        let e = self.entries[at];
        &self.text[e.name as usize..e.value as usize]
    }

    fn value_at(&self, at: usize) -> &str {
        let e = self.entries[at];
        &self.text[e.value as usize..e.end as usize]
    }
}

impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Headers {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(items: I) -> Self {
        let mut headers = Self::new();
        for (name, value) in items {
            headers.set(name, value);
        }
        headers
    }
}

/// What a parser made of a body; whoever parsed it knows the type.
pub type Parsed = Arc<dyn Any + Send + Sync>;

/// The payload: bytes exactly as they came or were made, and a place where whoever parses them
/// leaves the result, so that a body is parsed once however many expressions read it.
#[derive(Clone, Default)]
pub struct Body {
    bytes: Bytes,
    parsed: Arc<OnceLock<Parsed>>,
}

impl Body {
    /// The bytes; a cheap clone shares them.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whether these are the very same bytes, and not others that are equal.
    pub fn same(&self, other: &Self) -> bool {
        std::ptr::eq::<[u8]>(&*self.bytes, &*other.bytes)
    }

    /// The place for the parse result. Clones of a body share it.
    pub fn parsed(&self) -> &OnceLock<Parsed> {
        &self.parsed
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self {
            bytes,
            parsed: Arc::default(),
        }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Payloads never reach a log.
        write!(f, "Body({} bytes)", self.bytes.len())
    }
}

/// Whether two names are the same, case aside. Nearly all are written alike.
fn same(one: &str, other: &str) -> bool {
    one == other || one.eq_ignore_ascii_case(other)
}

/// A media type without its parameters (RFC 9110 section 8.3.1).
pub fn essence(content_type: &str) -> &str {
    // A dozen bytes are sooner looked at than a search is begun.
    let end = content_type.bytes().position(|byte| byte == b';');
    content_type[..end.unwrap_or(content_type.len())].trim_ascii()
}

/// How a body is read when something reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Format {
    /// XML 1.0.
    Xml,
    /// JSON (RFC 8259).
    Json,
    /// Comma-separated values (RFC 4180), or with another separator.
    Csv,
    /// `application/x-www-form-urlencoded`.
    Form,
    /// Characters in a known charset.
    Text,
    /// Octets that nobody interprets.
    Bytes,
}

impl Format {
    /// The name that routes use: `xml`, `json`, `csv`, `form`, `text`, `bytes`.
    pub fn name(self) -> &'static str {
        match self {
            Format::Xml => "xml",
            Format::Json => "json",
            Format::Csv => "csv",
            Format::Form => "form",
            Format::Text => "text",
            Format::Bytes => "bytes",
        }
    }

    /// The format of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "xml" => Format::Xml,
            "json" => Format::Json,
            "csv" => Format::Csv,
            "form" => Format::Form,
            "text" => Format::Text,
            "bytes" => Format::Bytes,
            _ => return None,
        })
    }

    /// The format that a media type (RFC 9110 section 8.3.1) stands for, parameters and case
    /// aside; nothing for types that say little, such as `application/octet-stream`.
    pub fn from_media_type(content_type: &str) -> Option<Self> {
        let essence = essence(content_type);
        let is = |name: &str| same(essence, name);
        let ends = |suffix: &str| {
            essence.len() > suffix.len()
                && essence
                    .get(essence.len() - suffix.len()..)
                    .is_some_and(|end| end.eq_ignore_ascii_case(suffix))
        };
        if is("text/xml") || is("application/xml") || ends("+xml") {
            Some(Format::Xml)
        } else if is("application/json") || ends("+json") {
            Some(Format::Json)
        } else if is("text/csv") {
            Some(Format::Csv)
        } else if is("application/x-www-form-urlencoded") {
            Some(Format::Form)
        } else if essence
            .get(..5)
            .is_some_and(|start| start.eq_ignore_ascii_case("text/"))
        {
            Some(Format::Text)
        } else {
            None
        }
    }

    /// The media type that the bus puts on a body of this format that it made itself (UTF-8).
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Xml => "application/xml; charset=utf-8",
            Format::Json => "application/json",
            Format::Csv => "text/csv; charset=utf-8",
            Format::Form => "application/x-www-form-urlencoded",
            Format::Text => "text/plain; charset=utf-8",
            Format::Bytes => "application/octet-stream",
        }
    }
}

/// One message on its way. Steps never change a message that others can see: they make a new one.
#[derive(Clone, Debug)]
pub struct Message {
    /// The bus's own id; the same at every step and every attempt.
    pub id: MessageId,
    /// What ties this message to a conversation: the caller's, or nothing (then it is the id).
    pub correlation_id: Option<Arc<str>>,
    /// When the bus received it.
    pub received_at: Timestamp,
    /// Headers; the content type is the header `content-type`.
    pub headers: Headers,
    /// The payload.
    pub body: Body,
    /// What it carries beside the payload.
    pub attachments: Attachments,
    /// The format where a route, a file name or a transformation says it; else see
    /// [`Message::format`].
    pub format: Option<Format>,
}

impl Message {
    /// A message with a new id, received now.
    pub fn new(body: impl Into<Body>) -> Self {
        Self {
            id: MessageId::new(),
            correlation_id: None,
            received_at: Timestamp::now(),
            headers: Headers::new(),
            body: body.into(),
            attachments: Attachments::default(),
            format: None,
        }
    }

    /// The same message with another body, as a transformation or a response makes it: id,
    /// correlation, headers and attachments stay.
    pub fn with_body(&self, body: impl Into<Body>) -> Self {
        Self {
            id: self.id,
            correlation_id: self.correlation_id.clone(),
            received_at: self.received_at,
            headers: self.headers.clone(),
            body: body.into(),
            attachments: self.attachments.clone(),
            format: None,
        }
    }

    /// The content type, where there is one.
    pub fn content_type(&self) -> Option<&str> {
        self.headers.get("content-type")
    }

    /// The format: what was said of it, else what its content type stands for. Nothing means:
    /// text when it is valid in its charset, else bytes.
    pub fn format(&self) -> Option<Format> {
        self.format
            .or_else(|| self.content_type().and_then(Format::from_media_type))
    }

    /// The correlation id as text; the message's own id when no other was given.
    pub fn correlation(&self) -> String {
        match &self.correlation_id {
            Some(id) => id.to_string(),
            None => self.id.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_one_process_ascend_and_survive_text() {
        let ids: Vec<MessageId> = (0..10_000).map(|_| MessageId::new()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        let id = uuid::Uuid::from_u128(ids[0].as_u128());
        assert_eq!(id.get_version(), Some(uuid::Version::SortRand));
        assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
        assert!(ids[0].made_at().until(Timestamp::now()) < std::time::Duration::from_secs(60));
        assert_eq!(ids[0].to_string().parse::<MessageId>().unwrap(), ids[0]);
        assert!("nonsense".parse::<MessageId>().is_err());
    }

    #[test]
    fn headers_ignore_case_and_keep_order() {
        let mut headers = Headers::new();
        headers.set("Content-Type", "text/xml");
        headers.set("X-B", "1");
        headers.set("content-type", "text/plain");
        assert_eq!(headers.get("CONTENT-TYPE"), Some("text/plain"));
        let all: Vec<_> = headers.iter().collect();
        assert_eq!(all, [("content-type", "text/plain"), ("X-B", "1")]);
        assert!(headers.remove("x-b") && !headers.remove("x-b"));
        assert_eq!(headers.len(), 1);
        for number in 0..100_000 {
            headers.set("x-count", &number.to_string());
        }
        assert_eq!(headers.get("x-count"), Some("99999"));
        assert!(
            headers.text.len() < 10_000,
            "replaced values are given back"
        );
        headers.set("x-count", "1");
        let mut kept = headers.kept(|name| name != "x-count", 1, 20);
        kept.append_under("http.", "Date", "now");
        let all: Vec<_> = kept.iter().collect();
        assert_eq!(all, [("content-type", "text/plain"), ("http.Date", "now")]);
    }

    #[test]
    fn media_types_name_formats() {
        for (media_type, format) in [
            ("application/soap+xml; charset=utf-8", Some(Format::Xml)),
            ("TEXT/XML", Some(Format::Xml)),
            ("application/problem+json", Some(Format::Json)),
            ("text/csv;header=present", Some(Format::Csv)),
            ("text/html", Some(Format::Text)),
            ("application/octet-stream", None),
        ] {
            assert_eq!(Format::from_media_type(media_type), format, "{media_type}");
        }
    }
}
