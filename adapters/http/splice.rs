//! Putting blocks into an envelope's Header and leaving every other byte as it is. The envelope is
//! UTF-8; its places are those that `soap::look` found.

use std::ops::Range;

use bytes::Bytes;

use crate::soap::{Envelope, Version};

/// Bytes of a byte order mark, which places do not count.
pub(crate) fn mark(body: &[u8]) -> usize {
    if body.starts_with(b"\xef\xbb\xbf") {
        3
    } else {
        0
    }
}

/// Puts `blocks` in front of the Header's others, makes a Header where there is none, and takes
/// away what lies in `without` (header blocks, in their order). Gives the new body, and the byte
/// of it at which more blocks can be put.
pub(crate) fn into_header(
    body: &Bytes,
    seen: &Envelope,
    blocks: &str,
    without: &[Range<usize>],
) -> (Bytes, usize) {
    let skip = mark(body);
    let mut out = Vec::with_capacity(body.len() + blocks.len() + 120);
    let (open, close, mut rest) = header(&body[skip..], seen);
    out.extend_from_slice(&body[..skip + open.start]);
    out.extend_from_slice(&open.text);
    let inside = out.len();
    out.extend_from_slice(blocks.as_bytes());
    out.extend_from_slice(&close);
    for range in without {
        if let Some(kept) = body.get(skip + rest..skip + range.start) {
            out.extend_from_slice(kept);
            rest = range.end;
        }
    }
    out.extend_from_slice(body.get(skip + rest..).unwrap_or_default());
    (out.into(), inside)
}

/// A Header's start tag, and where it goes.
struct Open {
    start: usize,
    text: Vec<u8>,
}

/// The Header as it is to be: its start tag, its end tag where it has none, and where the rest of
/// the envelope begins.
fn header(text: &[u8], seen: &Envelope) -> (Open, Vec<u8>, usize) {
    let places = &seen.places;
    let Some(range) = places.header.clone() else {
        let namespace = seen.version.unwrap_or(Version::V11).namespace();
        let open = Open {
            start: places.content,
            text: format!("<soap:Header xmlns:soap=\"{namespace}\">").into(),
        };
        return (open, b"</soap:Header>".to_vec(), places.content);
    };
    let tag = text.get(range.clone()).unwrap_or_default();
    if !places.empty {
        let open = Open {
            start: range.start,
            text: tag.to_vec(),
        };
        return (open, Vec::new(), range.end);
    }
    let start = tag.strip_suffix(b"/>").unwrap_or(tag);
    let name = start
        .get(1..)
        .unwrap_or_default()
        .split(u8::is_ascii_whitespace)
        .next()
        .unwrap_or_default();
    let open = Open {
        start: range.start,
        text: [start, b">"].concat(),
    };
    (open, [b"</", name, b">"].concat(), range.end)
}

/// Where in the body its Security headers for us lie; nothing where it is not UTF-8.
pub(crate) fn security(body: &[u8], charset: Option<&str>, seen: &Envelope) -> Vec<Range<usize>> {
    if !xbus_charset::is_utf8(body, charset) {
        return Vec::new();
    }
    let skip = mark(body);
    seen.security
        .iter()
        .map(|block| skip + block.range.start..skip + block.range.end)
        .collect()
}

/// Puts `text` in at a byte.
pub(crate) fn insert(body: &[u8], at: usize, text: &str) -> Bytes {
    let (before, after) = body.split_at(at.min(body.len()));
    [before, text.as_bytes(), after].concat().into()
}

/// Puts `text` in place of what lies in `range`.
pub(crate) fn replace(body: &Bytes, range: Range<usize>, text: &str) -> Bytes {
    let skip = mark(body);
    let (before, after) = (
        body.get(..skip + range.start).unwrap_or_default(),
        body.get(skip + range.end..).unwrap_or_default(),
    );
    [before, text.as_bytes(), after].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soap::{NS_11, look};

    fn put(envelope: &str, blocks: &str) -> String {
        let body = Bytes::from(envelope.to_owned());
        let seen = look(&body, None, false).expect("an envelope");
        let without: Vec<_> = seen
            .security
            .iter()
            .map(|block| block.range.clone())
            .collect();
        let (body, inside) = into_header(&body, &seen, blocks, &without);
        assert!(body[inside..].starts_with(blocks.as_bytes()));
        let seen = look(&body, None, false);
        assert!(seen.is_ok(), "{seen:?}: {body:?}");
        String::from_utf8(body.to_vec()).expect("UTF-8")
    }

    #[test]
    fn the_rest_of_the_envelope_stays_as_it_is() {
        let security = "<w:Security xmlns:w='http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd'>old</w:Security>";
        let rest = "<e:Body a='1'  >\r\n<x>&#65;ü</x ></e:Body>\n</e:Envelope>\n<!-- end -->";
        let start = format!("\u{feff}<?xml version='1.0'?>\n<e:Envelope  xmlns:e='{NS_11}'>\n");
        for (header, expected) in [
            (
                String::new(),
                format!("<soap:Header xmlns:soap=\"{NS_11}\"><b/></soap:Header>\n"),
            ),
            ("<e:Header />".into(), "<e:Header ><b/></e:Header>".into()),
            ("<e:Header\n/>".into(), "<e:Header\n><b/></e:Header>".into()),
            (
                "<e:Header x='/'> <h/> </e:Header>".into(),
                "<e:Header x='/'><b/> <h/> </e:Header>".into(),
            ),
            (
                format!("<e:Header> {security} <h/>{security} </e:Header>"),
                "<e:Header><b/>  <h/> </e:Header>".into(),
            ),
        ] {
            let given = format!("{start}{header}{rest}");
            let start = match header.is_empty() {
                // Before the white space, right after the Envelope's tag.
                true => start.trim_end_matches('\n'),
                false => &start,
            };
            assert_eq!(put(&given, "<b/>"), format!("{start}{expected}{rest}"));
        }
    }
}
