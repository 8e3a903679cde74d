//! The compact binary form in which values are kept: variable-length integers (LEB128), text with
//! its length before it, messages. Reading never panics; what does not fit is `None`.

use std::sync::Arc;

use bytes::Bytes;
use xbus_core::{Attachment, Format, Headers, Message, MessageId, Timestamp};

/// With a format's number: attachments follow the body.
const ATTACHMENTS: u8 = 0x80;

pub fn put_u64(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn put_time(out: &mut Vec<u8>, time: Timestamp) {
    out.extend_from_slice(&time.as_micros().to_le_bytes());
}

pub fn put_id(out: &mut Vec<u8>, id: MessageId) {
    out.extend_from_slice(&id.as_u128().to_le_bytes());
}

pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub fn put_str(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

/// Writes a flag, then the value where there is one.
pub fn put_option<T>(out: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    match value {
        Some(value) => {
            out.push(1);
            put(out, value);
        }
        None => out.push(0),
    }
}

/// Everything of a message but its id.
pub fn put_message(out: &mut Vec<u8>, message: &Message) {
    put_option(out, message.correlation_id.as_deref(), put_str);
    put_time(out, message.received_at);
    let format = match message.format {
        None => 0,
        Some(Format::Xml) => 1,
        Some(Format::Json) => 2,
        Some(Format::Csv) => 3,
        Some(Format::Form) => 4,
        Some(Format::Text) => 5,
        Some(Format::Bytes) => 6,
    };
    let attachments = &message.attachments;
    out.push(match attachments.is_empty() {
        true => format,
        false => format | ATTACHMENTS,
    });
    put_u64(out, message.headers.len() as u64);
    for (name, value) in message.headers.iter() {
        put_str(out, name);
        put_str(out, value);
    }
    put_bytes(out, message.body.bytes());
    if !attachments.is_empty() {
        put_u64(out, attachments.len() as u64);
        for attachment in attachments.iter() {
            put_option(out, attachment.name.as_deref(), put_str);
            put_option(out, attachment.content_type.as_deref(), put_str);
            put_option(out, attachment.content_id.as_deref(), put_str);
            put_bytes(out, &attachment.body);
        }
    }
}

/// Reads what the functions above wrote.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// How many bytes have been read.
    pub fn position(&self) -> usize {
        self.at
    }

    pub fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len)?;
        let part = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(part)
    }

    pub fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    pub fn u32_fixed(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.fixed()?))
    }

    pub fn u64_fixed(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.fixed()?))
    }

    pub fn u64(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.u64()?.try_into().ok()
    }

    pub fn time(&mut self) -> Option<Timestamp> {
        Some(Timestamp::from_micros(i64::from_le_bytes(self.fixed()?)))
    }

    pub fn id(&mut self) -> Option<MessageId> {
        Some(MessageId::from_u128(u128::from_le_bytes(self.fixed()?)))
    }

    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = self.u64()?.try_into().ok()?;
        self.take(len)
    }

    pub fn str(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    /// `Some(None)` is a value that is not there.
    pub fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.u8()? {
            0 => Some(None),
            1 => Some(Some(read(self)?)),
            _ => None,
        }
    }

    /// The rest of a message whose id is known; `whole` is what this reader reads, so that the
    /// body can share it.
    pub fn message(&mut self, id: MessageId, whole: &Bytes) -> Option<Message> {
        let correlation_id = self.option(Self::str)?.map(Arc::from);
        let received_at = self.time()?;
        let format = self.u8()?;
        let attached = format & ATTACHMENTS != 0;
        let format = match format & !ATTACHMENTS {
            0 => None,
            1 => Some(Format::Xml),
            2 => Some(Format::Json),
            3 => Some(Format::Csv),
            4 => Some(Format::Form),
            5 => Some(Format::Text),
            6 => Some(Format::Bytes),
            _ => return None,
        };
        let count = self.u64()?;
        // What strangers wrote as a count must not make room for it.
        let room = count.min(32) as usize;
        let mut headers = Headers::with_capacity(room, 32 * room);
        for _ in 0..count {
            let name = self.str()?;
            headers.append(name, self.str()?);
        }
        let body = self.shared(whole)?.into();
        let count = if attached { self.u64()? } else { 0 };
        let attachments = (0..count)
            .map(|_| self.attachment(whole))
            .collect::<Option<_>>()?;
        Some(Message {
            id,
            correlation_id,
            received_at,
            headers,
            body,
            attachments,
            format,
        })
    }

    fn attachment(&mut self, whole: &Bytes) -> Option<Attachment> {
        Some(Attachment {
            name: self.option(Self::str)?.map(Arc::from),
            content_type: self.option(Self::str)?.map(Arc::from),
            content_id: self.option(Self::str)?.map(Arc::from),
            body: self.shared(whole)?,
        })
    }

    /// Bytes that share the memory of `whole`, which is what this reader reads.
    fn shared(&mut self, whole: &Bytes) -> Option<Bytes> {
        let length = self.bytes()?.len();
        Some(whole.slice(self.at - length..self.at))
    }
}

/// Mixes the bits of a number (the finaliser of SplitMix64).
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The hash under which indexes know a message. Evenly spread.
pub fn hash_id(id: MessageId) -> u64 {
    let value = id.as_u128();
    mix(value as u64 ^ mix((value >> 64) as u64))
}

/// The hash under which indexes know a business key (FNV-1a, mixed).
pub fn hash_key(name: &str, value: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in name.bytes().chain([0]).chain(value.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mix(hash)
}
