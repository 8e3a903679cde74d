//! The binary form of what the core keeps in the store: little-endian numbers, byte strings with
//! their length in front. Private to the bus; each record kind begins with its own version.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Attachment, Format, Headers, Message, MessageId, Timestamp};

/// With a format's number: attachments follow the body.
const ATTACHMENTS: u8 = 0x80;

/// Appends values to a buffer.
#[derive(Default)]
pub struct Encoder(Vec<u8>);

impl Encoder {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was appended.
    pub fn finish(self) -> Bytes {
        self.0.into()
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    /// 32 bits.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// 64 bits.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// A time.
    pub fn time(&mut self, value: Timestamp) -> &mut Self {
        self.u64(value.as_micros() as u64)
    }

    /// A message id.
    pub fn id(&mut self, value: MessageId) -> &mut Self {
        self.0.extend_from_slice(&value.as_u128().to_le_bytes());
        self
    }

    /// A byte string.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.u32(value.len() as u32);
        self.0.extend_from_slice(value);
        self
    }

    /// A text.
    pub fn text(&mut self, value: &str) -> &mut Self {
        self.bytes(value.as_bytes())
    }

    /// A text or nothing.
    pub fn maybe_text(&mut self, value: Option<&str>) -> &mut Self {
        match value {
            Some(text) => self.u8(1).text(text),
            None => self.u8(0),
        }
    }

    /// A whole message.
    pub fn message(&mut self, message: &Message) -> &mut Self {
        let attachments = match message.attachments.is_empty() {
            true => 0,
            false => ATTACHMENTS,
        };
        self.id(message.id)
            .maybe_text(message.correlation_id.as_deref())
            .time(message.received_at)
            .u8(message.format.map_or(0, format_number) | attachments)
            .u32(message.headers.len() as u32);
        for (name, value) in message.headers.iter() {
            self.text(name).text(value);
        }
        self.bytes(message.body.bytes());
        if !message.attachments.is_empty() {
            self.u32(message.attachments.len() as u32);
            for attachment in message.attachments.iter() {
                self.maybe_text(attachment.name.as_deref())
                    .maybe_text(attachment.content_type.as_deref())
                    .maybe_text(attachment.content_id.as_deref())
                    .bytes(&attachment.body);
            }
        }
        self
    }
}

/// Reads what an [`Encoder`] wrote; `None` where the data ends or does not fit.
pub struct Decoder {
    data: Bytes,
}

impl Decoder {
    /// Reads from `data`; byte strings share its memory.
    pub fn new(data: Bytes) -> Self {
        Self { data }
    }

    /// Whether all is read.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    fn take(&mut self, length: usize) -> Option<Bytes> {
        (length <= self.data.len()).then(|| self.data.split_to(length))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.as_ref().try_into().ok()
    }

    /// One byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// 32 bits.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// 64 bits.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A time.
    pub fn time(&mut self) -> Option<Timestamp> {
        self.u64()
            .map(|micros| Timestamp::from_micros(micros as i64))
    }

    /// A message id.
    pub fn id(&mut self) -> Option<MessageId> {
        self.array()
            .map(|bytes| MessageId::from_u128(u128::from_le_bytes(bytes)))
    }

    /// A byte string.
    pub fn bytes(&mut self) -> Option<Bytes> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    /// A text.
    pub fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    /// A text that is shared.
    pub fn name(&mut self) -> Option<Arc<str>> {
        self.text().map(Arc::from)
    }

    /// A text or nothing.
    pub fn maybe_text(&mut self) -> Option<Option<String>> {
        match self.u8()? {
            0 => Some(None),
            _ => self.text().map(Some),
        }
    }

    /// A whole message.
    pub fn message(&mut self) -> Option<Message> {
        let id = self.id()?;
        let correlation_id = self.maybe_text()?.map(Arc::from);
        let received_at = self.time()?;
        let format = self.u8()?;
        let count = self.u32()?;
        let mut headers = Headers::new();
        for _ in 0..count {
            let name = self.text()?;
            headers.append(&name, &self.text()?);
        }
        let body = self.bytes()?.into();
        let count = match format & ATTACHMENTS {
            0 => 0,
            _ => self.u32()?,
        };
        let attachments = (0..count)
            .map(|_| self.attachment())
            .collect::<Option<_>>()?;
        Some(Message {
            id,
            correlation_id,
            received_at,
            headers,
            body,
            attachments,
            format: format_of(format & !ATTACHMENTS),
        })
    }

    fn attachment(&mut self) -> Option<Attachment> {
        Some(Attachment {
            name: self.maybe_text()?.map(Arc::from),
            content_type: self.maybe_text()?.map(Arc::from),
            content_id: self.maybe_text()?.map(Arc::from),
            body: self.bytes()?,
        })
    }
}

/// The number that stands for a format in records; never 0.
fn format_number(format: Format) -> u8 {
    match format {
        Format::Xml => 1,
        Format::Json => 2,
        Format::Csv => 3,
        Format::Form => 4,
        Format::Text => 5,
        Format::Bytes => 6,
    }
}

fn format_of(number: u8) -> Option<Format> {
    [
        Format::Xml,
        Format::Json,
        Format::Csv,
        Format::Form,
        Format::Text,
        Format::Bytes,
    ]
    .into_iter()
    .find(|format| format_number(*format) == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_it_was_and_a_torn_one_does_not() {
        comes_back(Message::new(vec![0, 255, 10]));
        let mut message = Message::new("<a/>");
        message.attachments = vec![
            Attachment {
                name: Some(Arc::from("ä.pdf")),
                content_type: Some(Arc::from("application/pdf")),
                content_id: Some(Arc::from("1@x")),
                body: vec![0, 1].into(),
            },
            Attachment::default(),
        ]
        .into();
        comes_back(message);
    }

    fn comes_back(mut message: Message) {
        message.correlation_id = Some(Arc::from("c-1"));
        message.format = Some(Format::Csv);
        message.headers.set("X-Ü", "line\nbreak");
        let mut encoder = Encoder::new();
        encoder.message(&message);
        let data = encoder.finish();
        let back = Decoder::new(data.clone()).message().unwrap();
        assert_eq!(back.id, message.id);
        assert_eq!(back.correlation_id, message.correlation_id);
        assert_eq!(back.received_at, message.received_at);
        assert_eq!(back.headers, message.headers);
        assert_eq!(back.body.bytes(), message.body.bytes());
        assert_eq!(back.attachments, message.attachments);
        assert_eq!(back.format, message.format);
        for cut in 0..data.len() {
            assert!(Decoder::new(data.slice(..cut)).message().is_none());
        }
    }
}
