//! From a delivery to the message that the route gets: decoded, opened, and said how to be read.

use std::io::Read;

use bytes::Bytes;
use lapin::message::Delivery;
use xbus_core::{Code, Fault, Format, Message, MessageId, long};

use crate::memory::Carried;
use crate::properties::{self, Envelope};

/// Compressed bodies may grow by so much, as those of HTTP.
const RATIO: u64 = 100;

/// Below this size nobody asks for the ratio.
const FLOOR: u64 = 64 * 1024;

/// How the bodies of a receiver are read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading {
    /// Bodies are xbus envelopes.
    pub(crate) envelope: bool,
    pub(crate) format: Option<Format>,
    /// In place of what the content type says.
    pub(crate) charset: Option<String>,
    /// Largest body in bytes, decoded.
    pub(crate) max_body: u64,
}

impl Reading {
    /// The message that a delivery with this body is, under the id that it has here, and the one
    /// that it comes from.
    ///
    /// # Errors
    /// A body that is no envelope, is compressed and damaged, or becomes too large: repeating it
    /// cannot help.
    pub(crate) fn message(
        &self,
        delivery: &Delivery,
        body: Bytes,
        carried: &Carried,
    ) -> Result<(Message, Option<MessageId>), Fault> {
        let about = Envelope {
            exchange: delivery.exchange.as_str(),
            routing_key: delivery.routing_key.as_str(),
            redelivered: delivery.redelivered,
        };
        let mut message = properties::read(&delivery.properties, about, body);
        self.decode(&mut message)?;
        let mut cause = None;
        if self.envelope {
            let outer = message;
            message = xbus_envelope::read(outer.body.bytes()).map_err(|error| {
                Fault::new(Code::Client, "the message is no xbus envelope")
                    .detail(format!("the message is no xbus envelope: {error}"))
            })?;
            cause = Some(message.id);
            message.correlation_id = Some(message.correlation().into());
            // What the protocol says is said of this delivery, not of an earlier one.
            message.headers.retain(|name| !is_about(name));
            for (name, value) in outer.headers.iter().filter(|(name, _)| is_about(name)) {
                message.headers.set(name, value);
            }
        }
        if let Some(charset) = &self.charset {
            let xml = self.format.or_else(|| message.format()) == Some(Format::Xml);
            let (body, given) = (message.body.bytes(), message.content_type());
            if let Some(settled) = xbus_charset::by_route(body, given, xml, charset) {
                message.headers.set("content-type", &settled);
            }
        }
        if message.body.bytes().len() as u64 > self.max_body {
            return Err(Fault::new(
                Code::TooLarge,
                format!("the body is larger than {} bytes", self.max_body),
            ));
        }
        message.id = carried.id;
        message.received_at = carried.received_at;
        message.format = self.format.or(message.format);
        Ok((message, cause))
    }

    /// Undoes a content encoding that is a compression, and takes one that names a charset (as some
    /// clients have it) for what it means. Others stay for the route to see.
    pub(crate) fn decode(&self, message: &mut Message) -> Result<(), Fault> {
        let Some(encoding) = message.headers.get("content-encoding") else {
            return Ok(());
        };
        // Spring AMQP writes `gzip:UTF-8`.
        let (first, rest) = match encoding.split_once(':') {
            Some((first, rest)) => (first.trim(), Some(rest.trim().to_owned())),
            None => (encoding.trim(), None),
        };
        let is = |name: &str| first.eq_ignore_ascii_case(name);
        let body = message.body.bytes();
        let (decoded, charset) = if is("gzip") || is("x-gzip") {
            (
                Some(self.inflate(flate2::bufread::MultiGzDecoder::new(&body[..]), body.len())?),
                rest,
            )
        } else if is("deflate") {
            (
                Some(self.inflate(flate2::bufread::ZlibDecoder::new(&body[..]), body.len())?),
                rest,
            )
        } else {
            (None, Some(first.to_owned()))
        };
        if let Some(decoded) = decoded {
            message.body = decoded.into();
            message.headers.remove("content-encoding");
        }
        if let Some(charset) = charset
            && xbus_charset::Charset::by_label(&charset).is_ok()
            && message
                .content_type()
                .is_some_and(|given| xbus_charset::label(given).is_none())
        {
            set_charset(message, &charset);
        }
        Ok(())
    }

    fn inflate(&self, decoder: impl Read, size: usize) -> Result<Vec<u8>, Fault> {
        let most = self
            .max_body
            .min((size as u64).saturating_mul(RATIO).max(FLOOR));
        let mut out = Vec::new();
        let read = long::over(size, long::PARSED, || {
            decoder.take(most + 1).read_to_end(&mut out)
        });
        if out.len() as u64 > most {
            return Err(Fault::new(
                Code::TooLarge,
                format!("the compressed body becomes larger than {most} bytes"),
            ));
        }
        read.map_err(|error| {
            Fault::new(Code::Client, "the compressed body is damaged")
                .detail(format!("the compressed body is damaged: {error}"))
        })?;
        Ok(out)
    }
}

fn is_about(name: &str) -> bool {
    name.get(..5)
        .is_some_and(|start| start.eq_ignore_ascii_case("amqp."))
}

/// Makes the content type say the charset.
fn set_charset(message: &mut Message, charset: &str) {
    let given = message.content_type().unwrap_or("text/plain");
    let value = xbus_charset::relabelled(given, charset);
    message.headers.set("content-type", &value);
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use lapin::BasicProperties;

    use super::*;

    fn delivery(content_type: &str, encoding: &str, body: Vec<u8>) -> Delivery {
        let mut delivery = Delivery::mock(1, "shop".into(), "order".into(), true, body);
        delivery.properties = BasicProperties::default()
            .with_content_type(content_type.into())
            .with_content_encoding(encoding.into());
        delivery
    }

    fn reading() -> Reading {
        Reading {
            max_body: 1_000_000,
            ..Reading::default()
        }
    }

    fn gzip(body: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        out.write_all(body).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn compressed_bodies_are_decoded_within_limits() {
        let carried = Carried::new();
        for encoding in ["gzip", "X-GZIP", "gzip:UTF-8"] {
            let delivery = delivery("text/plain", encoding, gzip(b"order"));
            let (message, _) = reading()
                .message(&delivery, delivery.data.clone().into(), &carried)
                .unwrap();
            assert_eq!(message.body.bytes().as_ref(), b"order");
            assert!(message.headers.get("content-encoding").is_none());
            assert_eq!(message.id, carried.id);
        }
        let bomb = delivery("text/plain", "gzip", gzip(&vec![0; 5_000_000]));
        let fault = reading()
            .message(&bomb, bomb.data.clone().into(), &carried)
            .unwrap_err();
        assert!(fault.code == Code::TooLarge && fault.rejected);
        let damaged = delivery("text/plain", "gzip", b"no gzip".to_vec());
        assert_eq!(
            reading()
                .message(&damaged, damaged.data.clone().into(), &carried)
                .unwrap_err()
                .code,
            Code::Client
        );
    }

    #[test]
    fn a_body_may_be_as_large_as_the_route_takes_also_within_an_envelope() {
        let small = Reading {
            max_body: 100,
            ..reading()
        };
        let enveloped = Reading {
            envelope: true,
            ..small.clone()
        };
        for (size, fits) in [(100, true), (101, false)] {
            let plain = delivery("text/plain", "", vec![b'x'; size]);
            let wrapped = xbus_envelope::write(&Message::new(vec![b'x'; size]));
            let wrapped = delivery("application/xml", "", wrapped);
            for (reading, delivery) in [(&small, plain), (&enveloped, wrapped)] {
                let body = delivery.data.clone().into();
                let read = reading.message(&delivery, body, &Carried::new());
                match read {
                    Ok((message, _)) => assert!(fits && message.body.bytes().len() == size),
                    Err(fault) => assert!(!fits && fault.code == Code::TooLarge && fault.rejected),
                }
            }
        }
    }

    #[test]
    fn a_charset_in_the_encoding_counts_where_the_type_has_none() {
        let carried = Carried::new();
        for (content_type, encoding, expected) in [
            ("text/csv", "ISO-8859-1", "text/csv; charset=ISO-8859-1"),
            (
                "text/csv; charset=utf-8",
                "ISO-8859-1",
                "text/csv; charset=utf-8",
            ),
            ("text/csv", "br", "text/csv"),
        ] {
            let delivery = delivery(content_type, encoding, b"x".to_vec());
            let (message, _) = reading()
                .message(&delivery, delivery.data.clone().into(), &carried)
                .unwrap();
            assert_eq!(message.content_type(), Some(expected));
            assert_eq!(message.headers.get("content-encoding"), Some(encoding));
        }
        let own = Reading {
            charset: Some(String::from("windows-1252")),
            ..reading()
        };
        for (given, expected) in [
            (
                "text/csv; header=present",
                "text/csv; header=present; charset=windows-1252",
            ),
            ("text/csv; charset=utf-8", "text/csv; charset=utf-8"),
        ] {
            let delivery = delivery(given, "", Vec::new());
            let (message, _) = own
                .message(&delivery, delivery.data.clone().into(), &carried)
                .unwrap();
            assert_eq!(message.content_type(), Some(expected));
        }
    }

    #[test]
    fn an_envelope_is_opened_and_says_what_this_delivery_is() {
        let mut inner = Message::new("<a/>");
        inner.headers.set("content-type", "text/xml");
        inner.headers.set("path.no", "7");
        inner.headers.set("amqp.routing-key", "earlier");
        inner.headers.set("amqp.reply-to", "earlier");
        let delivery = delivery("application/xml", "", xbus_envelope::write(&inner));
        let enveloped = Reading {
            envelope: true,
            ..reading()
        };
        let (message, cause) = enveloped
            .message(&delivery, delivery.data.clone().into(), &Carried::new())
            .unwrap();
        assert_eq!(cause, Some(inner.id));
        assert_eq!(message.correlation(), inner.id.to_string());
        assert_eq!(message.content_type(), Some("text/xml"));
        assert_eq!(message.headers.get("path.no"), Some("7"));
        assert_eq!(message.headers.get("amqp.routing-key"), Some("order"));
        assert_eq!(message.headers.get("amqp.reply-to"), None);
        let plain = Delivery::mock(1, "".into(), "q".into(), false, b"<a/>".to_vec());
        let fault = enveloped
            .message(&plain, plain.data.clone().into(), &Carried::new())
            .unwrap_err();
        assert!(fault.rejected);
    }
}
