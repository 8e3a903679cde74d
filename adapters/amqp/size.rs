//! Whether a message fits what AMQP can carry. What does not is refused here: the broker would
//! close the channel, or the whole connection, and others with it.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, MAX_SHORT_STRING_LENGTH};

use crate::publisher::Publish;

/// Properties and headers go in one frame, and RabbitMQ's frames are of 128 KiB; some of it is for
/// the other properties and the frame itself.
const HEADERS_MOST: usize = 128 * 1024 - 4096;

/// Checks names and headers; the error says what is too long.
pub(crate) fn fits(publish: &Publish) -> Result<(), String> {
    for (what, text) in [
        ("the exchange's name", &publish.exchange),
        ("the routing key", &publish.routing_key),
    ] {
        if text.len() > MAX_SHORT_STRING_LENGTH {
            return Err(format!(
                "{what} has {} bytes, and AMQP allows 255",
                text.len()
            ));
        }
    }
    head(&publish.properties)
}

/// Checks the headers alone.
pub(crate) fn head(properties: &BasicProperties) -> Result<(), String> {
    let size = headers(properties);
    if size > HEADERS_MOST {
        return Err(format!(
            "the headers take {size} bytes together, and AMQP has room for {HEADERS_MOST}; send \
             fewer, or in the body"
        ));
    }
    Ok(())
}

fn headers(properties: &BasicProperties) -> usize {
    properties.headers().as_ref().map_or(0, table)
}

fn table(fields: &FieldTable) -> usize {
    let each = fields.into_iter();
    4 + each
        .map(|(key, field)| 1 + key.as_str().len() + value(field))
        .sum::<usize>()
}

/// An upper bound of what a value takes (AMQP 0-9-1 section 4.2.1), its type included.
fn value(field: &AMQPValue) -> usize {
    1 + match field {
        AMQPValue::LongString(text) => 4 + text.len(),
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldTable(fields) => table(fields),
        AMQPValue::FieldArray(fields) => 4 + fields.as_slice().iter().map(value).sum::<usize>(),
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn too_large_headers_and_too_long_keys_are_refused() {
        let mut headers = FieldTable::default();
        headers.insert("x".into(), AMQPValue::LongString(vec![b'x'; 1000].into()));
        let mut publish = Publish {
            exchange: "".into(),
            routing_key: "q".into(),
            properties: BasicProperties::default().with_headers(headers.clone()),
            body: Bytes::new(),
        };
        assert_eq!(fits(&publish), Ok(()));
        publish.routing_key = "k".repeat(256).into();
        assert!(fits(&publish).unwrap_err().contains("routing key"));
        publish.routing_key = "q".into();
        headers.insert(
            "y".into(),
            AMQPValue::LongString(vec![0; 128 * 1024].into()),
        );
        publish.properties = BasicProperties::default().with_headers(headers);
        assert!(fits(&publish).unwrap_err().contains("headers"));
    }
}
