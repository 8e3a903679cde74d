//! XOP (W3C recommendation of 2005): `xop:Include` elements, which stand in a document where the
//! base64 text of an attachment would.
//!
//! Absent: making an attachment of base64 text.

use std::ops::Range;

use quick_xml::events::{BytesStart, Event};
use quick_xml::name::ResolveResult;
use quick_xml::reader::NsReader;
use xbus_core::{Format, Message};

use crate::reader::{namespaced, said};

/// The namespace of `Include`.
pub const NAMESPACE: &str = "http://www.w3.org/2004/08/xop/include";

/// An `xop:Include` in a text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Include {
    /// Where the element stands, in bytes of the text.
    pub range: Range<usize>,
    /// What it refers to: the content id of a `cid:` URL (RFC 2392), percent-decoded. Nothing where
    /// its `href` is none.
    pub content_id: Option<String>,
}

/// Whether a text may hold an [`Include`]: without the namespace's name there is none. A text may
/// write that name with character references; nobody does, and nothing is then found in it.
pub fn may_include(text: &str) -> bool {
    memchr::memmem::find(text.as_bytes(), NAMESPACE.as_bytes()).is_some()
}

/// The [`Include`]s of a document, in its order. The error says why it cannot be read to its end.
pub fn includes(text: &str) -> Result<Vec<Include>, String> {
    if !may_include(text) {
        return Ok(Vec::new());
    }
    let mark = text.len() - text.trim_start_matches('\u{feff}').len();
    let mut reader = namespaced(&text[mark..]);
    let place = |reader: &NsReader<&[u8]>| {
        usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX) + mark
    };
    let mut found = Vec::new();
    loop {
        let start = place(&reader);
        let (resolved, event) = reader.read_resolved_event().map_err(|error| said(&error))?;
        let is_ours = matches!(resolved, ResolveResult::Bound(ns) if ns.0 == NAMESPACE);
        let content_id = match &event {
            Event::Eof => return Ok(found),
            Event::Start(tag) | Event::Empty(tag)
                if is_ours && tag.local_name().into_inner() == "Include" =>
            {
                content_id(tag)?
            }
            _ => continue,
        };
        if let Event::Start(tag) = event {
            reader
                .read_to_end(tag.name())
                .map_err(|error| said(&error))?;
        }
        found.push(Include {
            range: start..place(&reader),
            content_id,
        });
    }
}

fn content_id(tag: &BytesStart<'_>) -> Result<Option<String>, String> {
    let href = tag
        .try_get_attribute("href")
        .map_err(|error| error.to_string())?;
    let Some(href) = href else { return Ok(None) };
    let href = quick_xml::escape::unescape(&href.value).map_err(|error| error.to_string())?;
    let href = href.trim();
    let is_cid = href
        .get(..4)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("cid:"));
    Ok(is_cid.then(|| percent_decoded(&href[4..])))
}

/// RFC 3986 section 2.1; what is no triplet, or no UTF-8 then, stays.
pub(crate) fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digit = |at: usize| bytes.get(at).and_then(|c| char::from(*c).to_digit(16));
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (c, ..) => {
                out.push(c);
                at += 1;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

/// The text with what `put` gives for each [`Include`] in its place.
pub fn replaced<'a>(
    text: &str,
    includes: impl IntoIterator<Item = &'a Include>,
    mut put: impl FnMut(&Include, &mut String),
) -> String {
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    for include in includes {
        out.push_str(&text[from..include.range.start]);
        put(include, &mut out);
        from = include.range.end;
    }
    out.push_str(&text[from..]);
    out
}

/// The message as what holds it against a schema should see it (XOP section 4.2: a package means its
/// document with the text in place): base64 text where an [`Include`] refers to an attachment.
/// Nothing when the message is that already. The text is a stand-in, and lines stay where they are.
pub fn restored(message: &Message) -> Option<Message> {
    if message.attachments.is_empty() {
        return None;
    }
    let text = xbus_charset::text(message, true).ok()?;
    let mut includes = includes(&text).ok()?;
    includes.retain(|include| {
        let content_id = include.content_id.as_deref();
        content_id.is_some_and(|id| message.attachments.by_content_id(id).is_some())
    });
    if includes.is_empty() {
        return None;
    }
    let text_of = |include: &Include, out: &mut String| {
        let content_id = include.content_id.as_deref().unwrap_or_default();
        let attachment = message.attachments.by_content_id(content_id);
        if attachment.is_some_and(|attachment| !attachment.body.is_empty()) {
            out.push_str("AAAA");
        }
        let tag = &text.as_bytes()[include.range.clone()];
        out.extend(memchr::memchr_iter(b'\n', tag).map(|_| '\n'));
    };
    let made = replaced(&text, &includes, text_of);
    let mut restored = message.with_body(made);
    restored
        .headers
        .set("content-type", Format::Xml.media_type());
    restored.format = Some(Format::Xml);
    Some(restored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use xbus_core::Attachment;

    fn ids(text: &str) -> Vec<Option<String>> {
        let found = includes(text).unwrap();
        found.into_iter().map(|one| one.content_id).collect()
    }

    #[test]
    fn includes_are_found_by_their_namespace() {
        let text = format!(
            "\u{feff}<?xml version='1.0'?><!-- <x:Include/> --><a xmlns:x=\"{NAMESPACE}\">é &amp; \
             <x:Include href=\"cid:one%40x\"/><Include href=\"cid:no\"/><![CDATA[<x:Include/>]]>\
             <b><Include xmlns=\"{NAMESPACE}\" href='CID:a&amp;b'><x/>t</Include></b>\
             <x:Include/><x:Include href=\"http://x\"/></a>"
        );
        let expected = [Some("one@x".to_owned()), Some("a&b".to_owned()), None, None];
        assert_eq!(ids(&text), expected);
        let all = includes(&text).unwrap();
        assert_eq!(
            &text[all[0].range.clone()],
            "<x:Include href=\"cid:one%40x\"/>"
        );
        let second = &text[all[1].range.clone()];
        assert!(second.starts_with("<Include xmlns=") && second.ends_with("t</Include>"));
        let without = replaced(&text, &all[..2], |_, out| out.push_str("QQ=="));
        assert!(
            without.contains("é &amp; QQ==<Include href=\"cid:no\"/>"),
            "{without}"
        );
        assert!(without.contains("<b>QQ==</b>"), "{without}");
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let text = format!("<a xmlns:x=\"{NAMESPACE}\"><x:Include href=\"cid:1\">");
        assert!(includes(&text).is_err());
        assert_eq!(includes("<a><b></a>"), Ok(Vec::new()), "not even looked at");
        assert_eq!(percent_decoded("a%2Fb%zz%4"), "a/b%zz%4");
        assert_eq!(percent_decoded("%ff"), "%ff");
    }

    #[test]
    fn a_package_means_its_document() {
        let text = format!(
            "<a xmlns:x=\"{NAMESPACE}\"><b><x:Include\n href=\"cid:1\"/></b><x:Include href=\"cid:2\"/></a>"
        );
        let mut message = Message::new(text);
        assert!(restored(&message).is_none(), "it carries nothing");
        message.attachments = vec![Attachment {
            content_id: Some("1".into()),
            body: "x".into(),
            ..Attachment::default()
        }]
        .into();
        let made = restored(&message).unwrap();
        let made = xbus_charset::text(&made, true).unwrap().into_owned();
        assert!(
            made.contains("<b>AAAA\n</b><x:Include href=\"cid:2\"/>"),
            "{made}"
        );
    }
}
