//! From bytes to text. Precedence is that of RFC 7303 section 3: byte order mark, then the
//! transport's `charset` parameter, then the XML declaration, then what the route says, then UTF-8.

use std::borrow::Cow;

use encoding_rs::{DecoderResult, Encoding, UTF_8, UTF_16BE, UTF_16LE};
use xbus_core::{Format, Message, long};

use crate::{Charset, Error, declaration, label, relabelled};

/// The charset of `bytes`, and the length of their byte order mark. `label` is what the transport
/// says, and `xml` whether an XML declaration counts. [`Error::Unknown`] when the label that decides
/// is not known.
pub fn find(bytes: &[u8], label: Option<&str>, xml: bool) -> Result<(Charset, usize), Error> {
    if let Some((encoding, mark)) = Encoding::for_bom(bytes) {
        return Ok((Charset::whole(encoding), mark));
    }
    let charset = match label {
        Some(label) => Charset::by_label(label)?,
        None if xml => declared(bytes)?.unwrap_or(Charset::UTF_8),
        None => Charset::UTF_8,
    };
    Ok((charset, 0))
}

/// The charset that an XML document itself names or shows: UTF-16 without a byte order mark is
/// recognised by its first `<` (XML 1.0 appendix F).
fn declared(bytes: &[u8]) -> Result<Option<Charset>, Error> {
    match bytes {
        [b'<', 0, ..] => Ok(Some(Charset::whole(UTF_16LE))),
        [0, b'<', ..] => Ok(Some(Charset::whole(UTF_16BE))),
        _ => declaration::encoding(bytes)
            .map(|label| Charset::by_label(label).map(Charset::readable_by_byte))
            .transpose(),
    }
}

/// The content type of a body of which a route says that it is in `route`: what the route says counts
/// last, where neither a byte order mark nor the transport nor an XML declaration says anything.
/// `given` is the content type that came with it; nothing: that one stays.
pub fn by_route(bytes: &[u8], given: Option<&str>, xml: bool, route: &str) -> Option<String> {
    let says = Encoding::for_bom(bytes).is_some()
        || given.and_then(label).is_some()
        || (xml && !matches!(declared(bytes), Ok(None)));
    (!says).then(|| relabelled(given.unwrap_or("text/plain"), route))
}

/// Whether an XML document is in UTF-8, as far as it and the transport's `label` say.
pub fn is_utf8(bytes: &[u8], label: Option<&str>) -> bool {
    find(bytes, label, true).is_ok_and(|(charset, _)| charset.is_utf8())
}

/// Bytes as text, in the charset that [`find`] finds and without their byte order mark; copied only
/// when they are not UTF-8. [`Error::Unknown`] and [`Error::Malformed`], which says where.
pub fn decode<'a>(bytes: &'a [u8], label: Option<&str>, xml: bool) -> Result<Cow<'a, str>, Error> {
    let (charset, mark) = find(bytes, label, xml)?;
    decode_after(bytes, mark, charset.encoding)
}

/// The body of a message as text, by its byte order mark, its content type, its XML declaration when
/// `xml` says that it is XML, else UTF-8. The errors are those of [`decode`].
pub fn text(message: &Message, xml: bool) -> Result<Cow<'_, str>, Error> {
    let label = message.content_type().and_then(label);
    decode(message.body.bytes(), label, xml)
}

/// As [`text`], for a body that is only passed on: whatever begins like an XML declaration counts as
/// one, and an unknown label as UTF-8. [`Error::Malformed`] when it is no text so either.
pub fn text_leniently(message: &Message) -> Result<Cow<'_, str>, Error> {
    let bytes = message.body.bytes();
    let xml = message.format() == Some(Format::Xml) || bytes.starts_with(b"<?xml");
    match text(message, xml) {
        Err(Error::Unknown(_)) => Charset::UTF_8.decode(bytes),
        read => read,
    }
}

/// Bytes as ISO 8859-1 by its own definition, in which all bytes are valid: U+0000 to U+00FF. This
/// is how HTTP headers beyond US-ASCII used to be written (RFC 9110 section 5.5).
pub fn latin1(bytes: &[u8]) -> Cow<'_, str> {
    encoding_rs::mem::decode_latin1(bytes)
}

impl Charset {
    /// Bytes as text in this charset, whatever they themselves say. `utf-16` takes off a byte order
    /// mark and obeys it; elsewhere a mark is a character like others. [`Error::Malformed`] says
    /// where the bytes are not in the charset.
    pub fn decode(self, bytes: &[u8]) -> Result<Cow<'_, str>, Error> {
        let (encoding, mark) = self.unmarked(bytes);
        decode_after(bytes, mark, encoding)
    }
}

fn decode_after<'a>(
    bytes: &'a [u8],
    mark: usize,
    encoding: &'static Encoding,
) -> Result<Cow<'a, str>, Error> {
    let rest = &bytes[mark..];
    let malformed = |at: usize| Error::Malformed {
        charset: encoding.name(),
        at: mark + at,
        of: bytes.len(),
    };
    long::over(rest.len(), long::PASSED, || {
        if encoding == UTF_8 {
            return match std::str::from_utf8(rest) {
                Ok(text) => Ok(Cow::Borrowed(text)),
                Err(error) => Err(malformed(error.valid_up_to())),
            };
        }
        encoding
            .decode_without_bom_handling_and_without_replacement(rest)
            .ok_or_else(|| malformed(first_malformed(encoding, rest)))
    })
}

/// The offset of the first sequence that the encoding does not know.
fn first_malformed(encoding: &'static Encoding, bytes: &[u8]) -> usize {
    let mut decoder = encoding.new_decoder_without_bom_handling();
    let mut room = [0; 4096];
    let mut done = 0;
    loop {
        let (result, read, _) =
            decoder.decode_to_utf8_without_replacement(&bytes[done..], &mut room, true);
        done += read;
        match result {
            DecoderResult::OutputFull => {}
            DecoderResult::InputEmpty => return done,
            // The bytes of the sequence, and those that were read behind it.
            DecoderResult::Malformed(length, behind) => {
                return done.saturating_sub(usize::from(length) + usize::from(behind));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16le(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    fn message(content_type: &str, body: &[u8]) -> Message {
        let mut message = Message::new(body.to_vec());
        message.headers.set("content-type", content_type);
        message
    }

    #[test]
    fn byte_order_mark_beats_transport_beats_declaration() {
        let latin1 = b"<?xml version='1.0' encoding='ISO-8859-1'?><a>\xe9</a>";
        let read =
            |bytes: &[u8], label: Option<&str>| decode(bytes, label, true).map(Cow::into_owned);
        assert!(read(latin1, None).unwrap().ends_with("<a>é</a>"));
        let cyrillic = read(latin1, Some("windows-1251")).unwrap();
        assert!(cyrillic.ends_with("<a>й</a>"));
        assert!(read(latin1, Some("utf-8")).is_err());
        assert_eq!(
            read(b"\xef\xbb\xbf<a/>", Some("iso-8859-1")).unwrap(),
            "<a/>"
        );
        let wide = [b"\xff\xfe", &utf16le("<a>€</a>")[..]].concat();
        assert_eq!(read(&wide, None).unwrap(), "<a>€</a>");
        assert_eq!(read(&wide, Some("utf-8")).unwrap(), "<a>€</a>");
        let error = read(b"<a/>", Some("klingon")).unwrap_err();
        assert_eq!(error, Error::Unknown("klingon".into()));
        let declared = read(b"<?xml version='1.0' encoding='klingon'?><a/>", None);
        assert_eq!(declared, Err(Error::Unknown("klingon".into())));
        // Outside XML a declaration means nothing.
        assert!(decode(latin1, None, false).is_err());
        // Nor does one of something else.
        let sheet = b"<?xml-stylesheet encoding='iso-8859-1'?><a>\xe9</a>";
        assert!(decode(sheet, None, true).is_err());
    }

    #[test]
    fn utf_16_is_seen_without_a_mark_and_not_believed_when_it_is_none() {
        for text in [
            "<a>é</a>",
            "<?xml version='1.0' encoding='utf-16'?><a>é</a>",
        ] {
            let little = utf16le(text);
            assert_eq!(decode(&little, None, true).unwrap(), text);
            let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
            assert_eq!(decode(&big, None, true).unwrap(), text);
            assert!(!is_utf8(&little, None) && !is_utf8(&big, None));
        }
        let narrow = "<?xml version='1.0' encoding='utf-16'?><a>é</a>";
        assert_eq!(decode(narrow.as_bytes(), None, true).unwrap(), narrow);
        assert!(is_utf8(narrow.as_bytes(), None));
    }

    #[test]
    fn what_a_route_says_counts_last() {
        let declared = b"<?xml version='1.0' encoding='iso-8859-1'?><a/>";
        let utf16 = utf16le("<a/>");
        for (bytes, given, xml, expected) in [
            (&b"<a/>"[..], None, true, Some("text/plain; charset=cp1252")),
            (
                b"<a/>",
                Some("text/xml"),
                true,
                Some("text/xml; charset=cp1252"),
            ),
            (b"<a/>", Some("text/xml; charset=x; a=b"), true, None),
            (
                b"<a/>",
                Some("text/xml; charset="),
                true,
                Some("text/xml; charset=cp1252"),
            ),
            (b"\xef\xbb\xbf<a/>", None, true, None),
            (declared, Some("text/xml"), true, None),
            (
                declared,
                Some("text/csv"),
                false,
                Some("text/csv; charset=cp1252"),
            ),
            (&utf16, None, true, None),
        ] {
            let found = by_route(bytes, given, xml, "cp1252");
            assert_eq!(found.as_deref(), expected, "{given:?} {bytes:?}");
        }
    }

    #[test]
    fn what_is_utf_8_is_known_beforehand() {
        let latin1 = b"<?xml version='1.0' encoding='iso-8859-1'?><a/>";
        assert!(is_utf8(b"<a/>", None) && is_utf8(b"\xef\xbb\xbf<a/>", Some("latin1")));
        assert!(is_utf8(latin1, Some("utf-8")) && !is_utf8(latin1, None));
        assert!(!is_utf8(b"<a/>", Some("klingon")));
    }

    #[test]
    fn invalid_bytes_are_told_with_their_place() {
        let surrogate = [&utf16le("ab")[..], b"\x00\xd8", &utf16le("c")[..]].concat();
        let long = [&[b'a'; 10_000][..], b"\x81\xff", b"tail"].concat();
        for (bytes, label, place) in [
            (&b"abc\xff\xff"[..], "utf-8", "UTF-8 (byte 4 of 5)"),
            (b"ab\xe2\x82", "utf-8", "UTF-8 (byte 3 of 4)"),
            (b"\xef\xbb\xbfa\xff", "utf-8", "UTF-8 (byte 5 of 5)"),
            (b"ab\x80\xff", "shift_jis", "Shift_JIS (byte 4 of 4)"),
            (b"\x82\xa0\x82", "shift_jis", "Shift_JIS (byte 3 of 3)"),
            (b"a\0b", "utf-16le", "UTF-16LE (byte 3 of 3)"),
            (&surrogate, "utf-16le", "UTF-16LE (byte 5 of 8)"),
            (b"ab\xa5", "iso-8859-3", "ISO-8859-3 (byte 3 of 3)"),
            (&long, "big5", "Big5 (byte 10001 of 10006)"),
        ] {
            let error = decode(bytes, Some(label), false).unwrap_err().to_string();
            let expected = format!("the bytes are not valid {place}");
            assert_eq!(error, expected, "{label} {bytes:?}");
        }
    }

    #[test]
    fn a_charset_reads_what_it_is_told_to() {
        let read = |label: &str, bytes: &[u8]| {
            let charset = Charset::by_label(label).unwrap();
            charset.decode(bytes).map(Cow::into_owned)
        };
        assert_eq!(read("iso-8859-1", b"\xe9\x80").unwrap(), "é€");
        assert_eq!(read("utf-16", b"\xff\xfe\xe9\0").unwrap(), "é");
        assert_eq!(read("utf-16", b"\xfe\xff\0\xe9").unwrap(), "é");
        assert_eq!(read("utf-16", b"\xe9\0").unwrap(), "é");
        assert_eq!(read("utf-8", b"\xef\xbb\xbf").unwrap(), "\u{feff}");
        assert!(read("utf-8", b"\xff").is_err());
        assert_eq!(latin1(b"\xe9\x80"), "é\u{80}");
    }

    #[test]
    fn bodies_are_read_as_their_messages_say() {
        let typed = message("text/plain; charset=\"windows-1252\"", b"\x80");
        assert_eq!(text(&typed, false).unwrap(), "€");
        assert_eq!(text_leniently(&typed).unwrap(), "€");
        let declared = message(
            "text/plain",
            b"<?xml version='1.0' encoding='iso-8859-1'?><a>\xe4</a>",
        );
        assert!(text(&declared, false).is_err() && text(&declared, true).is_ok());
        assert!(text_leniently(&declared).unwrap().ends_with("<a>ä</a>"));
        let unknown = message("text/plain; charset=klingon", "ä".as_bytes());
        assert!(text(&unknown, false).is_err());
        assert_eq!(text_leniently(&unknown).unwrap(), "ä");
        let none = message("text/plain; charset=klingon", b"\xff");
        assert!(text_leniently(&none).is_err());
        // Two bytes that XML in UTF-16 would begin with are nothing special elsewhere.
        let binary = Message::new(b"<\0\x01\x02".to_vec());
        assert_eq!(text_leniently(&binary).unwrap(), "<\0\u{1}\u{2}");
    }
}
