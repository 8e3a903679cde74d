//! What the fuzz targets (tests/fuzz) need of this crate beside its public parts. No part of its API.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use crate::properties::{self, Envelope};

/// Reads an entry of a lane whose account of itself is `meta`, and what is written of it again.
pub fn entry(meta: &[u8], body: &[u8]) {
    crate::lanes::fuzz(meta, body);
}

/// Reads a delivery whose headers are made of `parts`, and writes the message again.
pub fn delivery(parts: &[&[u8]], body: &[u8]) {
    let text = |at: usize| {
        let part = parts.get(at).copied().unwrap_or_default();
        ShortString::try_new(String::from_utf8_lossy(part).as_ref()).unwrap_or_default()
    };
    let mut headers = FieldTable::default();
    for (at, part) in parts.iter().enumerate().skip(2) {
        headers.insert(text(at - 1), value(part));
    }
    let kept = BasicProperties::default()
        .with_content_type(text(0))
        .with_correlation_id(text(1))
        .with_headers(headers);
    let envelope = Envelope {
        exchange: "e",
        routing_key: "k",
        redelivered: false,
    };
    let message = properties::read(&kept, envelope, body.to_vec());
    assert_eq!(message.body.bytes(), body);
    if let Ok((properties, again)) = properties::write(&message, "bus") {
        assert_eq!(again, body);
        let back = properties::read(&properties, envelope, again.to_vec());
        assert_eq!(back.correlation(), message.correlation());
        assert_eq!(back.content_type(), message.content_type());
    }
}

/// A value of the type that the first byte says.
fn value(part: &[u8]) -> AMQPValue {
    let (kind, rest) = part.split_first().unwrap_or((&0, &[]));
    let mut number = [0; 8];
    let length = rest.len().min(8);
    number[..length].copy_from_slice(&rest[..length]);
    match kind % 8 {
        0 => AMQPValue::LongString(LongString::from(rest.to_vec())),
        1 => AMQPValue::Timestamp(u64::from_le_bytes(number)),
        2 => AMQPValue::Double(f64::from_le_bytes(number)),
        3 => AMQPValue::LongLongInt(i64::from_le_bytes(number)),
        4 => AMQPValue::Boolean(rest.is_empty()),
        5 => AMQPValue::ByteArray(rest.to_vec().into()),
        6 => AMQPValue::FieldArray(vec![AMQPValue::LongString(rest.to_vec().into())].into()),
        _ => AMQPValue::Void,
    }
}
