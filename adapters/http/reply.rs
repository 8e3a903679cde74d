//! The good answer: what a route replies, in the caller's shape.

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use http_body_util::Full;
use xbus_core::{Code, Fault, Fits, Format, Message, Reply};

use crate::door::Config;
use crate::heads::passes;
use crate::pack::{self, Attach};
use crate::package::{self, Form};
use crate::shape::{self, Answer, Refusal, Shape};
use crate::soap::{self, Version};
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
    let given = message.content_type();
    let mut body = message.body.bytes().clone();
    let mut content_type = given.and_then(|value| HeaderValue::from_str(value).ok());
    let mut status = match shape {
        Shape::Soap(_) => StatusCode::OK,
        _ => shape::ack_status(reply.status),
    };
    if let (Shape::Soap(version), true) = (shape, config.soap.is_some()) {
        let charset = given.and_then(xbus_charset::label);
        let (enveloped, changed) = envelope(version, message)?;
        let fitting = given
            .is_some_and(|given| xml::essence(given).eq_ignore_ascii_case(version.media_type()));
        if changed || !fitting {
            content_type = Some(soap_type(version, &enveloped, charset, changed));
        }
        own = changed;
        body = enveloped;
    }
    // A destination or a script may have answered with a fault: never with 200.
    let said = content_type.as_ref().and_then(|value| value.to_str().ok());
    if let Some((version, side)) = soap::fault_in(said, &body) {
        asked = asked.filter(|status| !status.is_success());
        status = soap::status_of(version, side);
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

/// A reply as an envelope, and whether that was made of it.
fn envelope(version: Version, reply: &Message) -> Result<(Bytes, bool), Fault> {
    let not_xml =
        |why: String| Fault::new(Code::Transform, "the reply is not an XML document").detail(why);
    let body = reply.body.bytes();
    let charset = reply.content_type().and_then(xbus_charset::label);
    let (enveloped, changed) = wrap::into_envelope(version, body, charset).map_err(not_xml)?;
    if !changed && soap::is_cut_off(&enveloped) {
        return Err(not_xml("the envelope ends in the middle".to_owned()));
    }
    Ok((enveloped, changed))
}

/// Whether a reply can be given to a caller of that version: see [`xbus_core::Arrival::fits`].
pub(crate) fn fits(version: Version) -> Fits {
    match version {
        Version::V11 => |reply| envelope(Version::V11, reply).map(drop),
        Version::V12 => |reply| envelope(Version::V12, reply).map(drop),
    }
}

/// Whether an answer goes with the attachments of its reply: with SOAP as the route says, and else where
/// the request had its own in a package that can be told apart from a form. `form` is that of the
/// request. What failed carries nothing.
pub(crate) fn carries(answer: &Answer, config: &Config, reply: &Reply, form: Option<Form>) -> bool {
    let Some(message) = &reply.message else {
        return false;
    };
    answer.status().is_success()
        && (!message.attachments.is_empty() || config.attach == Some(Attach::Mtom))
        && (config.soap.is_some() || form.is_some())
}

/// An answer that [`carries`] attachments, with them.
pub(crate) fn with_attachments(
    answer: Answer,
    shape: Shape,
    config: &Config,
    reply: &Reply,
    form: Option<Form>,
) -> Result<Answer, Refusal> {
    let Some(message) = &reply.message else {
        return Ok(answer);
    };
    let (mut head, body) = answer.into_parts();
    let body = shape::whole(body);
    let said = package::said(&head.headers).unwrap_or_default();
    let packed = match (shape, &config.soap) {
        (Shape::Soap(version), Some(_)) => {
            let root = pack::Root {
                version,
                action: None,
                content_type: &said,
                body: &body,
            };
            pack::soap(config.attach, form, message, &root)?
        }
        _ => Some(pack::plain(reply.id, &message.attachments, &said, &body)?),
    };
    let Some(packed) = packed else {
        return Ok(Answer::from_parts(head, Full::new(body)));
    };
    packed.describe(&mut head.headers)?;
    Ok(Answer::from_parts(head, Full::new(packed.body)))
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
