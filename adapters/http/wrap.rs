//! Making envelopes: around what is none, and of one version from the other.

use std::borrow::Cow;

use bytes::Bytes;
use quick_xml::events::attributes::Attribute;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::{QName, ResolveResult};
use quick_xml::reader::NsReader;
use xbus_core::long;
use xbus_xml::XmlLimits;
use xbus_xml::reader::{namespaced, said};

use crate::soap::{Envelope, NS_11, NS_12, NotSoap, Version, look};
use crate::{fault, wellformed, xml};

/// An envelope around `content` (XML in UTF-8 without declaration).
pub(crate) fn envelope(version: Version, content: &str) -> String {
    [
        "<soap:Envelope xmlns:soap=\"",
        version.namespace(),
        "\"><soap:Body>",
        content,
        "</soap:Body></soap:Envelope>",
    ]
    .concat()
}

/// Makes a message of `version` of a body: an envelope of that version stays as it is, one of the
/// other version is mapped, anything else is wrapped. The flag says whether it was changed (and is
/// UTF-8 now). The error says why it cannot be done.
pub(crate) fn into_envelope(
    version: Version,
    body: &Bytes,
    charset: Option<&str>,
) -> Result<(Bytes, bool), String> {
    let seen = look(body, charset, false);
    if let Ok(seen) = &seen
        && seen.version == Some(version)
    {
        return Ok((body.clone(), false));
    }
    long::over(body.len(), long::PARSED, || {
        made(version, body, charset, seen)
    })
}

/// What is no envelope of that version, as `seen`, made into one.
fn made(
    version: Version,
    body: &Bytes,
    charset: Option<&str>,
    seen: Result<Envelope, NotSoap>,
) -> Result<(Bytes, bool), String> {
    match seen {
        Ok(seen) => {
            let text = xbus_charset::decode(body, charset, true)?;
            let mut mapped = map(version, xml::without_prolog(&text)?)?;
            if seen.fault.is_some() {
                mapped = fault::restructured(version, &mapped)?;
            }
            Ok((mapped.into(), true))
        }
        Err(NotSoap::OtherElement) => {
            let text = xbus_charset::decode(body, charset, true)?;
            let made = envelope(version, xml::without_prolog(&text)?);
            // What an envelope of the bus holds does not break it.
            let limits = XmlLimits::default();
            let utf8 = Some("utf-8");
            wellformed::check(made.as_bytes(), utf8, limits.depth, limits.attributes, true)
                .map_err(|why| format!("within its envelope it is {why}"))?;
            Ok((made.into(), true))
        }
        Err(NotSoap::OtherVersion) => Err("an envelope of an unknown version of SOAP".into()),
        Err(NotSoap::Malformed(_)) if body.trim_ascii().is_empty() => {
            Ok((envelope(version, "").into(), true))
        }
        Err(NotSoap::Malformed(why)) => Err(format!("it is not XML: {why}")),
    }
}

/// Maps an envelope to another version: its namespace, and the attributes of header blocks. What a
/// fault says is mapped by [`fault::restructured`].
fn map(version: Version, text: &str) -> Result<String, String> {
    let mut reader = namespaced(text);
    let mut writer = quick_xml::Writer::new(Vec::with_capacity(text.len() + 64));
    let mut depth = 0usize;
    let mut in_header = false;
    loop {
        let event = reader.read_event().map_err(|error| said(&error))?;
        let event = match event {
            Event::Eof if depth > 0 => return Err("it ends in the middle".into()),
            Event::Eof => break,
            Event::Start(start) => {
                depth += 1;
                if depth == 2 {
                    in_header = start.local_name().into_inner() == "Header";
                }
                let block = depth == 3 && in_header;
                Event::Start(mapped(&reader, &start, version, block)?)
            }
            Event::Empty(start) => {
                let block = depth == 2 && in_header;
                Event::Empty(mapped(&reader, &start, version, block)?)
            }
            Event::End(end) => {
                depth = depth.saturating_sub(1);
                Event::End(end)
            }
            other => other,
        };
        writer
            .write_event(event)
            .map_err(|error| error.to_string())?;
    }
    String::from_utf8(writer.into_inner()).map_err(|error| error.to_string())
}

/// A tag for `version`; `block`: that of a header block.
fn mapped<'a>(
    reader: &NsReader<&[u8]>,
    start: &BytesStart<'a>,
    version: Version,
    block: bool,
) -> Result<BytesStart<'a>, String> {
    let (from, to) = match version {
        Version::V11 => (NS_12, NS_11),
        Version::V12 => (NS_11, NS_12),
    };
    let declares = |attribute: &str| {
        attribute == "xmlns" || attribute.get(..6).is_some_and(|prefix| prefix == "xmlns:")
    };
    let hit = block
        || start
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
        let (resolved, local) = reader.resolver().resolve_attribute(attribute.key);
        let of_soap = block && matches!(resolved, ResolveResult::Bound(ns) if ns.0 == from);
        let (name, value) = if declares(attribute.key.0) && attribute.value == from {
            (attribute.key.0.into(), Cow::Borrowed(to))
        } else if of_soap {
            match block_attribute(version, local.into_inner(), attribute.value.trim()) {
                Mapped::Left => (attribute.key.0.into(), attribute.value),
                Mapped::Dropped => continue,
                Mapped::To(local, value) => {
                    let prefix = attribute.key.0.split(':').next().unwrap_or_default();
                    let value = value.map_or(attribute.value, Cow::Borrowed);
                    (Cow::Owned(format!("{prefix}:{local}")), value)
                }
            }
        } else {
            (attribute.key.0.into(), attribute.value)
        };
        changed.push_attribute(Attribute {
            key: QName(&name),
            value,
        });
    }
    Ok(changed)
}

const NEXT_11: &str = "http://schemas.xmlsoap.org/soap/actor/next";
const NEXT_12: &str = "http://www.w3.org/2003/05/soap-envelope/role/next";
const ULTIMATE_12: &str = "http://www.w3.org/2003/05/soap-envelope/role/ultimateReceiver";

/// What becomes of an attribute.
enum Mapped {
    Left,
    Dropped,
    /// Its local name, and its value where that changes.
    To(&'static str, Option<&'static str>),
}

/// Maps an attribute of SOAP's own on a header block (SOAP 1.1 section 4.2, SOAP 1.2 part 1 section
/// 5.2). No actor means the ultimate receiver; the role `none`, which nobody plays, stays an actor
/// that nobody is. SOAP 1.1 knows no `relay`.
fn block_attribute(version: Version, local: &str, value: &str) -> Mapped {
    match (version, local, value) {
        (Version::V11, "mustUnderstand", "true" | "1") => Mapped::To("mustUnderstand", Some("1")),
        (Version::V11, "mustUnderstand", _) => Mapped::To("mustUnderstand", Some("0")),
        (Version::V11, "role", "" | ULTIMATE_12) => Mapped::Dropped,
        (Version::V11, "role", NEXT_12) => Mapped::To("actor", Some(NEXT_11)),
        (Version::V11, "role", _) => Mapped::To("actor", None),
        (Version::V11, "relay", _) => Mapped::Dropped,
        (Version::V12, "mustUnderstand", "true" | "1") => {
            Mapped::To("mustUnderstand", Some("true"))
        }
        (Version::V12, "mustUnderstand", _) => Mapped::To("mustUnderstand", Some("false")),
        (Version::V12, "actor", "") => Mapped::Dropped,
        (Version::V12, "actor", NEXT_11) => Mapped::To("role", Some(NEXT_12)),
        (Version::V12, "actor", _) => Mapped::To("role", None),
        _ => Mapped::Left,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrapped_or_mapped_is_whole() {
        let made = |body: String| into_envelope(Version::V11, &Bytes::from(body), None);
        assert!(made("<a/> <b>1</b>".to_owned()).is_ok(), "two elements");
        for broken in [
            "<a><b></a>",
            "<a>",
            "<a/></soap:Body>",
            "<a/>&no;",
            "<x:a/>",
        ] {
            let why = made(broken.to_owned()).unwrap_err();
            assert!(why.contains("not well-formed"), "{broken}: {why}");
        }
        let whole = envelope(Version::V12, "<a>1</a>");
        assert!(made(whole.clone()).is_ok());
        for cut in [whole.len() - 1, whole.len() - 20, whole.len() - 35] {
            assert!(made(whole[..cut].to_owned()).is_err(), "{cut}");
        }
    }

    #[test]
    fn header_blocks_are_mapped_with_the_envelope() {
        let of_12 = format!(
            "<e:Envelope xmlns:e=\"{NS_12}\"><e:Header>\
             <a xmlns=\"urn:a\" e:mustUnderstand=\"true\" e:role=\"{NEXT_12}\" e:relay=\"true\" role=\"r\">\
             <in e:role=\"x\"/></a>\
             <b e:mustUnderstand=\"false\" e:role=\"{ULTIMATE_12}\"/><c e:role=\"urn:&amp;r\"/>\
             </e:Header><e:Body><m e:role=\"x\" mustUnderstand=\"true\">t &amp; u</m></e:Body></e:Envelope>"
        );
        let of_11 = format!(
            "<e:Envelope xmlns:e=\"{NS_11}\"><e:Header>\
             <a xmlns=\"urn:a\" e:mustUnderstand=\"1\" e:actor=\"{NEXT_11}\" role=\"r\">\
             <in e:role=\"x\"/></a>\
             <b e:mustUnderstand=\"0\"/><c e:actor=\"urn:&amp;r\"/>\
             </e:Header><e:Body><m e:role=\"x\" mustUnderstand=\"true\">t &amp; u</m></e:Body></e:Envelope>"
        );
        assert_eq!(map(Version::V11, &of_12).unwrap(), of_11);
        // And back, but for what SOAP 1.1 cannot say.
        let again = of_12
            .replace(" e:relay=\"true\"", "")
            .replace(&format!(" e:role=\"{ULTIMATE_12}\""), "");
        assert_eq!(map(Version::V12, &of_11).unwrap(), again);
        let seen = look(of_11.as_bytes(), None, true).unwrap();
        assert_eq!(seen.must_understand.len(), 1);
    }
}
