//! Making envelopes: around what is none, and of one version from the other.

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::Bytes;
use quick_xml::events::{BytesStart, Event};

use crate::soap::{NS_11, NS_12, NotSoap, Version, look};
use crate::xml;

/// An envelope around `content` (XML in UTF-8 without declaration).
pub(crate) fn envelope(version: Version, content: &str) -> String {
    let namespace = version.namespace();
    let mut out = String::with_capacity(content.len() + namespace.len() + 120);
    let _ = write!(
        out,
        "<soap:Envelope xmlns:soap=\"{namespace}\"><soap:Body>{content}</soap:Body></soap:Envelope>"
    );
    out
}

/// Makes a message of `version` of a body: an envelope of that version stays as it is, one of the
/// other version is mapped, anything else is wrapped. The flag says whether it was changed (and is
/// UTF-8 now). The error says why it cannot be done.
pub(crate) fn into_envelope(
    version: Version,
    body: &Bytes,
    charset: Option<&str>,
) -> Result<(Bytes, bool), String> {
    match look(body, charset, false) {
        Ok(seen) if seen.version == Some(version) => Ok((body.clone(), false)),
        Ok(_) => {
            let text = xbus_charset::decode(body, charset, true)?;
            Ok((map(version, xml::without_prolog(&text)?)?.into(), true))
        }
        Err(NotSoap::OtherElement) => {
            let text = xbus_charset::decode(body, charset, true)?;
            let content = xml::without_prolog(&text)?;
            Ok((envelope(version, content).into(), true))
        }
        Err(NotSoap::OtherVersion) => Err("an envelope of an unknown version of SOAP".into()),
        Err(NotSoap::Malformed(_)) if body.trim_ascii().is_empty() => {
            Ok((envelope(version, "").into(), true))
        }
        Err(NotSoap::Malformed(why)) => Err(format!("it is not XML: {why}")),
    }
}

/// Maps an envelope to another version: its namespace and the names of what only differs by
/// version. Fault codes and their structure are not mapped: a fault is a failure, not a message.
fn map(version: Version, text: &str) -> Result<String, String> {
    let (from, to) = match version {
        Version::V11 => (NS_12, NS_11),
        Version::V12 => (NS_11, NS_12),
    };
    let mut reader = quick_xml::Reader::from_str(text);
    let mut writer = quick_xml::Writer::new(Vec::with_capacity(text.len() + 64));
    loop {
        let event = reader.read_event().map_err(|error| error.to_string())?;
        let event = match event {
            Event::Eof => break,
            Event::Start(start) => Event::Start(mapped(&start, from, to)?),
            Event::Empty(start) => Event::Empty(mapped(&start, from, to)?),
            other => other,
        };
        writer
            .write_event(event)
            .map_err(|error| error.to_string())?;
    }
    String::from_utf8(writer.into_inner()).map_err(|error| error.to_string())
}

fn mapped<'a>(start: &BytesStart<'a>, from: &str, to: &str) -> Result<BytesStart<'a>, String> {
    let declares = |attribute: &str| {
        attribute == "xmlns" || attribute.get(..6).is_some_and(|prefix| prefix == "xmlns:")
    };
    let hit = start
        .attributes()
        .with_checks(false)
        .flatten()
        .any(|a| declares(a.key.0) && a.value == from);
    if !hit {
        return Ok(start.to_owned());
    }
    let mut changed = BytesStart::new(start.name().0.to_owned());
    for attribute in start.attributes().with_checks(false) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        let value = if declares(attribute.key.0) && attribute.value == from {
            Cow::Borrowed(to)
        } else {
            attribute.value
        };
        changed.push_attribute(quick_xml::events::attributes::Attribute {
            key: attribute.key,
            value,
        });
    }
    Ok(changed)
}
