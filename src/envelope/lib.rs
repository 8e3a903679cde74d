//! The xbus envelope: a whole message (id, correlation, headers, body, attachments) as one XML document in the
//! namespace `urn:xbus:message:1`, for queues and brokers that keep only a body.
//!
//! ```xml
//! <message xmlns="urn:xbus:message:1" id="…" received-at-micros="1795334400000000">
//!   <header name="content-type">text/xml</header>
//!   <correlation-id>…</correlation-id>
//!   <body>&lt;order/&gt;</body>
//! </message>
//! ```
//!
//! Text stands as it is where XML 1.0 can say it, else in base64 (RFC 4648 section 4): what is read
//! is what was written, for any bytes.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use quick_xml::events::attributes::AttrError;
use quick_xml::events::{BytesEnd, BytesRef, BytesStart, BytesText, Event};
use quick_xml::{Reader, Writer};
use xbus_core::{
    Attachment, Attachments, Body, Format, Headers, Message, MessageId, Timestamp, long,
};

/// The namespace of version 1.
pub const NAMESPACE: &str = "urn:xbus:message:1";

/// The content type of an envelope.
pub const CONTENT_TYPE: &str = "application/xml; charset=utf-8";

/// Most headers that are read.
const MOST_HEADERS: usize = 10_000;

/// Most attachments that are read.
const MOST_ATTACHMENTS: usize = 10_000;

/// Writes a message as an envelope.
pub fn write(message: &Message) -> Vec<u8> {
    let size = message.body.bytes().len();
    let attached: usize = message.attachments.iter().map(|one| one.body.len()).sum();
    long::over(size + attached, long::PARSED, || {
        let mut out = Writer::new(Vec::with_capacity(size + 512));
        // Writing into memory cannot fail.
        let _ = write_to(&mut out, message);
        out.into_inner()
    })
}

fn write_to(out: &mut Writer<Vec<u8>>, message: &Message) -> std::io::Result<()> {
    let mut root = BytesStart::new("message");
    root.push_attribute(("xmlns", NAMESPACE));
    root.push_attribute(("id", message.id.to_string().as_str()));
    let received = message.received_at.as_micros().to_string();
    root.push_attribute(("received-at-micros", received.as_str()));
    if let Some(format) = message.format {
        root.push_attribute(("format", format.name()));
    }
    out.write_event(Event::Start(root))?;
    if let Some(correlation) = &message.correlation_id {
        write_value(out, "correlation-id", None, correlation.as_bytes())?;
    }
    for (name, value) in message.headers.iter() {
        write_value(out, "header", Some(name), value.as_bytes())?;
    }
    write_value(out, "body", None, message.body.bytes())?;
    for attachment in message.attachments.iter() {
        write_attachment(out, attachment)?;
    }
    out.write_event(Event::End(BytesEnd::new("message")))
}

fn write_value(
    out: &mut Writer<Vec<u8>>,
    element: &str,
    name: Option<&str>,
    value: &[u8],
) -> std::io::Result<()> {
    let mut start = BytesStart::new(element);
    push_attribute(&mut start, "name", name);
    write_content(out, start, value)
}

fn write_attachment(out: &mut Writer<Vec<u8>>, attachment: &Attachment) -> std::io::Result<()> {
    let mut start = BytesStart::new("attachment");
    push_attribute(&mut start, "name", attachment.name.as_deref());
    push_attribute(
        &mut start,
        "content-type",
        attachment.content_type.as_deref(),
    );
    push_attribute(&mut start, "content-id", attachment.content_id.as_deref());
    write_content(out, start, &attachment.body)
}

/// Base64, under the name with `64` behind it, where a parser would not give the value back as it is:
/// it makes a space of a tab or line end in an attribute (XML 1.0 section 3.3.3).
fn push_attribute(start: &mut BytesStart<'_>, name: &str, value: Option<&str>) {
    let Some(value) = value else { return };
    if is_xml_text(value.as_bytes()).is_some() && !value.contains(['\t', '\n']) {
        start.push_attribute((name, value));
    } else {
        let encoded = BASE64.encode(value);
        start.push_attribute((format!("{name}64").as_str(), encoded.as_str()));
    }
}

fn write_content(
    out: &mut Writer<Vec<u8>>,
    mut start: BytesStart<'_>,
    value: &[u8],
) -> std::io::Result<()> {
    let end = start.to_end().into_owned();
    match is_xml_text(value) {
        Some(text) => {
            out.write_event(Event::Start(start))?;
            out.write_event(Event::Text(BytesText::new(text)))?;
        }
        None => {
            start.push_attribute(("encoding", "base64"));
            out.write_event(Event::Start(start))?;
            let encoded = BASE64.encode(value);
            out.write_event(Event::Text(BytesText::from_escaped(encoded)))?;
        }
    }
    out.write_event(Event::End(end))
}

/// The text, when XML 1.0 (section 2.2) can say each of its characters and a parser gives them back
/// as they were: a carriage return would come back as a line feed (section 2.11).
fn is_xml_text(value: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(value).ok()?;
    text.chars()
        .all(|c| matches!(c, '\t' | '\n' | ' '..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..))
        .then_some(text)
}

/// Reads an envelope: the message that was written, with the id that it had.
///
/// # Errors
/// What is not well-formed, not an envelope or of another version, in words.
pub fn read(data: &[u8]) -> Result<Message, String> {
    long::over(data.len(), long::PARSED, || open(data))
}

fn open(data: &[u8]) -> Result<Message, String> {
    let text = std::str::from_utf8(data).map_err(|_| wrong("it is not UTF-8"))?;
    let mut reader = Reader::from_str(text);
    let mut message = None;
    let mut attachments = Vec::new();
    loop {
        match reader.read_event().map_err(|error| error.to_string())? {
            Event::Start(start) if message.is_none() => message = Some(begin(&start)?),
            Event::Start(start) => {
                let message = message.as_mut().ok_or_else(|| wrong("no root element"))?;
                read_value(&mut reader, &start, message, &mut attachments)?;
            }
            Event::Empty(start) => {
                let message = message
                    .as_mut()
                    .ok_or_else(|| wrong("an empty root element"))?;
                set(message, &mut attachments, &start, String::new())?;
            }
            Event::End(_) => break,
            Event::DocType(_) => return Err(wrong("a document type declaration")),
            Event::Eof => return Err(wrong("it ends too early")),
            _ => {}
        }
    }
    let mut message = message.ok_or_else(|| wrong("no root element"))?;
    message.attachments = attachments.into();
    Ok(message)
}

fn wrong(what: &str) -> String {
    format!("not an xbus envelope: {what}")
}

fn begin(start: &BytesStart<'_>) -> Result<Message, String> {
    if start.local_name().as_ref() != "message"
        || attribute(start, "xmlns")?.as_deref() != Some(NAMESPACE)
    {
        return Err(wrong(&format!("the root is not 'message' in {NAMESPACE}")));
    }
    let id = attribute(start, "id")?.ok_or_else(|| wrong("no id"))?;
    let received = attribute(start, "received-at-micros")?
        .and_then(|micros| micros.parse().ok())
        .ok_or_else(|| wrong("no received-at-micros"))?;
    Ok(Message {
        id: id.parse::<MessageId>().map_err(|error| wrong(&error))?,
        correlation_id: None,
        received_at: Timestamp::from_micros(received),
        headers: Headers::new(),
        body: Body::default(),
        attachments: Attachments::default(),
        format: attribute(start, "format")?.and_then(|name| Format::from_name(&name)),
    })
}

fn read_value(
    reader: &mut Reader<&[u8]>,
    start: &BytesStart<'_>,
    message: &mut Message,
    attachments: &mut Vec<Attachment>,
) -> Result<(), String> {
    let mut text = String::new();
    loop {
        match reader.read_event().map_err(|error| error.to_string())? {
            Event::Text(part) => text.push_str(&part),
            Event::CData(part) => text.push_str(&part),
            Event::GeneralRef(part) => push_reference(&mut text, &part)?,
            Event::End(_) => break,
            Event::Comment(_) => {}
            _ => return Err(wrong("elements in a value")),
        }
    }
    set(message, attachments, start, text)
}

fn push_reference(text: &mut String, reference: &BytesRef<'_>) -> Result<(), String> {
    let character = match reference.resolve_char_ref() {
        Ok(Some(character)) => character,
        Ok(None) => match reference.as_ref() {
            "lt" => '<',
            "gt" => '>',
            "amp" => '&',
            "quot" => '"',
            "apos" => '\'',
            _ => return Err(wrong("an unknown entity")),
        },
        Err(error) => return Err(error.to_string()),
    };
    text.push(character);
    Ok(())
}

fn set(
    message: &mut Message,
    attachments: &mut Vec<Attachment>,
    start: &BytesStart<'_>,
    text: String,
) -> Result<(), String> {
    let value = match attribute(start, "encoding")?.as_deref() {
        None | Some("text") => text.into_bytes(),
        Some("base64") => BASE64
            .decode(text.trim())
            .map_err(|error| wrong(&error.to_string()))?,
        Some(other) => return Err(wrong(&format!("unknown encoding '{other}'"))),
    };
    match start.local_name().as_ref() {
        "body" => message.body = value.into(),
        "correlation-id" => message.correlation_id = Some(as_text(value)?.into()),
        "header" => {
            let name =
                attribute_or_64(start, "name")?.ok_or_else(|| wrong("a header without name"))?;
            if message.headers.len() >= MOST_HEADERS {
                return Err(wrong("too many headers"));
            }
            message.headers.append(&name, &as_text(value)?);
        }
        "attachment" => {
            if attachments.len() >= MOST_ATTACHMENTS {
                return Err(wrong("too many attachments"));
            }
            attachments.push(Attachment {
                name: attribute_or_64(start, "name")?.map(Arc::from),
                content_type: attribute_or_64(start, "content-type")?.map(Arc::from),
                content_id: attribute_or_64(start, "content-id")?.map(Arc::from),
                body: value.into(),
            });
        }
        // Later minor additions of version 1 are passed over.
        _ => {}
    }
    Ok(())
}

fn as_text(value: Vec<u8>) -> Result<String, String> {
    String::from_utf8(value).map_err(|_| wrong("a header is not valid UTF-8"))
}

fn attribute_or_64(start: &BytesStart<'_>, name: &str) -> Result<Option<String>, String> {
    match attribute(start, &format!("{name}64"))? {
        Some(encoded) => BASE64
            .decode(encoded)
            .map_err(|error| wrong(&error.to_string()))
            .and_then(as_text)
            .map(Some),
        None => attribute(start, name),
    }
}

fn attribute(start: &BytesStart<'_>, name: &str) -> Result<Option<String>, String> {
    let found = start
        .try_get_attribute(name)
        .map_err(|error: AttrError| error.to_string())?;
    match found {
        None => Ok(None),
        Some(attribute) => quick_xml::escape::unescape(&attribute.value)
            .map(|value| Some(value.into_owned()))
            .map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(message: &Message) {
        let envelope = write(message);
        let back = read(&envelope).unwrap_or_else(|error| {
            panic!("{error}: {}", String::from_utf8_lossy(&envelope));
        });
        assert_eq!(back.id, message.id);
        assert_eq!(back.correlation_id, message.correlation_id);
        assert_eq!(back.received_at, message.received_at);
        assert_eq!(back.headers, message.headers);
        assert_eq!(back.body.bytes(), message.body.bytes());
        assert_eq!(back.attachments, message.attachments);
        assert_eq!(back.format, message.format);
    }

    #[test]
    fn any_message_comes_back_as_it_was() {
        for body in [
            &b""[..],
            b"<a b=\"1\">&amp; ]]> \r\n\t</a>",
            "Grüße \u{FFFF} \u{0}".as_bytes(),
            &[0, 1, 2, 254, 255],
            b"  leading and trailing  \n",
        ] {
            let mut message = Message::new(body.to_vec());
            message.correlation_id = Some("<c & 'd' \"e\">".into());
            message
                .headers
                .set("content-type", "text/xml; charset=\"utf-8\"");
            message.headers.set("odd", "line\r\nbreak\u{1}");
            message.headers.set("na<me\u{2}", " x ");
            message.headers.set("a\nb", "c");
            message.format = Some(Format::Xml);
            message.attachments = vec![
                Attachment {
                    name: Some("a\tb".into()),
                    content_type: Some("text/plain; x=\"1\"".into()),
                    content_id: Some("<1>".into()),
                    body: body.to_vec().into(),
                },
                Attachment::default(),
            ]
            .into();
            round_trip(&message);
        }
    }

    #[test]
    fn every_byte_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        for at in 0..=255usize {
            round_trip(&Message::new(all[at..].to_vec()));
            round_trip(&Message::new(vec![at as u8]));
        }
    }

    #[test]
    fn what_is_no_envelope_is_refused_in_words() {
        for data in [
            "",
            "<a/>",
            "<message/>",
            "<message xmlns='urn:xbus:message:2' id='x'/>",
            "<!DOCTYPE message [<!ENTITY a 'b'>]><message xmlns='urn:xbus:message:1'/>",
            "<message xmlns='urn:xbus:message:1' id='0192e4a6-0000-7000-8000-000000000000' received-at-micros='1'><body>",
        ] {
            assert!(read(data.as_bytes()).is_err(), "{data}");
        }
    }
}
