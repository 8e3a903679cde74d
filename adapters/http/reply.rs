//! The good answer: what a route replies, in the caller's shape.

use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use xbus_core::{Code, Fault, Format, Reply};

use crate::door::Config;
use crate::heads::passes;
use crate::shape::{self, Answer, Refusal, Shape};
use crate::soap::{self, Envelope, Version};
use crate::{wrap, xml};

/// The answer to a message that was taken. The flag says whether its envelope was made by the bus.
pub(crate) fn answer(
    shape: Shape,
    config: &Config,
    reply: &Reply,
) -> Result<(Answer, bool), Refusal> {
    let Some(message) = &reply.message else {
        let answer = shape::acknowledgement(shape, reply.id, reply.status);
        return Ok((answer, true));
    };
    let mut own = false;
    let mut asked = reply
        .http_status
        .and_then(|status| StatusCode::from_u16(status).ok());
    let (mut body, mut content_type) = (
        message.body.bytes().clone(),
        message
            .content_type()
            .and_then(|value| HeaderValue::from_str(value).ok()),
    );
    let mut status = match shape {
        Shape::Soap(_) => StatusCode::OK,
        _ => shape::ack_status(reply.status),
    };
    if let (Shape::Soap(version), true) = (shape, config.soap.is_some()) {
        let charset = message.content_type().and_then(xbus_charset::label);
        let not_xml = |why: String| {
            Refusal::from(
                Fault::new(Code::Transform, "the reply is not an XML document").detail(why),
            )
        };
        let (enveloped, changed) = wrap::into_envelope(version, &body, charset).map_err(not_xml)?;
        let fitting = message
            .content_type()
            .is_some_and(|given| xml::essence(given).eq_ignore_ascii_case(version.media_type()));
        if changed || !fitting {
            content_type = Some(soap_type(version, &enveloped, charset, changed));
        }
        own = changed;
        body = enveloped;
        // A transformation may answer with a fault of its own: never with 200.
        if let Ok(Envelope {
            fault: Some(side), ..
        }) = soap::look(&body, charset, false)
        {
            asked = asked.filter(|status| !status.is_success());
            status = match (version, side) {
                (Version::V12, soap::FaultSide::Sender) => StatusCode::BAD_REQUEST,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
        }
    }
    let content_type = content_type.unwrap_or_else(|| {
        HeaderValue::from_static(match message.format() {
            Some(format) => format.media_type(),
            None if std::str::from_utf8(&body).is_ok() => Format::Text.media_type(),
            None => Format::Bytes.media_type(),
        })
    });
    let mut answer = shape::answer(asked.unwrap_or(status), content_type, body, reply.id);
    for (name, value) in reply.headers.iter() {
        let pair = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_bytes(value.as_bytes()),
        );
        if let (Ok(name), Ok(value)) = pair
            && passes(&name)
        {
            answer.headers_mut().insert(name, value);
        }
    }
    Ok((answer, own))
}

/// The content type of an envelope that stays in its own charset.
fn soap_type(version: Version, body: &[u8], charset: Option<&str>, changed: bool) -> HeaderValue {
    let usual = HeaderValue::from_static(version.content_type());
    if changed || xbus_charset::is_utf8(body, charset) {
        return usual;
    }
    match charset {
        Some(charset) => {
            HeaderValue::from_str(&format!("{}; charset={charset}", version.media_type()))
                .unwrap_or(usual)
        }
        None => HeaderValue::from_static(version.media_type()),
    }
}
