//! Charsets: which one a body is in, and the way from bytes to text and back.
//!
//! Labels are those of the WHATWG Encoding Standard, which take in the IANA names in use. Precedence
//! is that of RFC 7303 section 3: byte order mark, then the transport's `charset` parameter, then
//! the XML declaration, then UTF-8.

use std::borrow::Cow;

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};

/// The value of the `charset` parameter of a content type.
pub(crate) fn parameter(content_type: &str) -> Option<&str> {
    content_type.split(';').skip(1).find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("charset")
            .then(|| value.trim().trim_matches('"').trim_matches('\''))
            .filter(|value| !value.is_empty())
    })
}

/// The charset of that label.
pub(crate) fn by_label(label: &str) -> Result<&'static Encoding, String> {
    // The standard maps these labels to a decoder that refuses everything.
    Encoding::for_label_no_replacement(label.as_bytes())
        .ok_or_else(|| format!("the charset '{label}' is not known"))
}

/// The charset that an XML declaration at the start of `bytes` names. UTF-16 without a byte order
/// mark is recognised by its first bytes (XML 1.0 appendix F).
fn declared(bytes: &[u8]) -> Result<Option<&'static Encoding>, String> {
    if bytes.starts_with(b"\0<\0?") {
        return Ok(Some(UTF_16BE));
    }
    if bytes.starts_with(b"<\0?\0") {
        return Ok(Some(UTF_16LE));
    }
    if !bytes.starts_with(b"<?xml") {
        return Ok(None);
    }
    let head = &bytes[..bytes.len().min(256)];
    let Some(end) = memchr::memmem::find(head, b"?>") else {
        return Ok(None);
    };
    let Some(at) = memchr::memmem::find(&head[..end], b"encoding") else {
        return Ok(None);
    };
    let rest = head[at + 8..end].trim_ascii_start();
    let Some(rest) = rest.strip_prefix(b"=") else {
        return Ok(None);
    };
    let rest = rest.trim_ascii_start();
    let Some((&quote, rest)) = rest.split_first() else {
        return Ok(None);
    };
    let Some(end) = memchr::memchr(quote, rest) else {
        return Ok(None);
    };
    let label = String::from_utf8_lossy(&rest[..end]);
    let encoding = by_label(&label)?;
    // A declaration that could be read byte by byte is not in UTF-16, whatever it says.
    Ok(Some(encoding.output_encoding()))
}

/// Whether an XML body without a byte order mark is in UTF-8.
pub(crate) fn is_utf8(bytes: &[u8], content_type: Option<&str>) -> bool {
    Encoding::for_bom(bytes).is_none()
        && match content_type.and_then(parameter) {
            Some(label) => by_label(label) == Ok(UTF_8),
            None => matches!(declared(bytes), Ok(None)) || declared(bytes) == Ok(Some(UTF_8)),
        }
}

/// The characters at the beginning of UTF-8 bytes, the last of which may be cut.
pub(crate) fn valid_head(bytes: &[u8]) -> Option<&str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&bytes[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    }
}

/// Text of a body.
pub(crate) fn decode<'a>(
    bytes: &'a [u8],
    content_type: Option<&str>,
    xml: bool,
) -> Result<Cow<'a, str>, String> {
    let (encoding, skip) = match Encoding::for_bom(bytes) {
        Some((encoding, length)) => (encoding, length),
        None => {
            let transport = match content_type.and_then(parameter) {
                Some(label) => Some(by_label(label)?),
                None if xml => declared(bytes)?,
                None => None,
            };
            (transport.unwrap_or(UTF_8), 0)
        }
    };
    decode_as(&bytes[skip..], encoding)
}

/// Text of bytes in a known charset; a byte order mark has been taken away.
pub(crate) fn decode_as<'a>(
    bytes: &'a [u8],
    encoding: &'static Encoding,
) -> Result<Cow<'a, str>, String> {
    if encoding == UTF_8 {
        return match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Cow::Borrowed(text)),
            Err(error) => Err(format!(
                "the bytes are not valid UTF-8 (byte {} of {})",
                error.valid_up_to() + 1,
                bytes.len()
            )),
        };
    }
    encoding
        .decode_without_bom_handling_and_without_replacement(bytes)
        .ok_or_else(|| format!("the bytes are not valid {}", encoding.name()))
}

/// Bytes of `text` in a charset. The error names the first character that the charset lacks.
pub(crate) fn encode(text: &str, label: &str) -> Result<Vec<u8>, String> {
    let encoding = by_label(label)?;
    if encoding == UTF_8 {
        return Ok(text.as_bytes().to_vec());
    }
    // The standard has no encoder for UTF-16.
    if encoding == UTF_16LE {
        return Ok(text.encode_utf16().flat_map(u16::to_le_bytes).collect());
    }
    if encoding == UTF_16BE {
        return Ok(text.encode_utf16().flat_map(u16::to_be_bytes).collect());
    }
    let (bytes, _, lacking) = encoding.encode(text);
    if lacking {
        let mut buffer = [0u8; 4];
        let culprit = text
            .chars()
            .find(|c| encoding.encode(c.encode_utf8(&mut buffer)).2)
            .unwrap_or('\u{fffd}');
        return Err(format!(
            "the character '{culprit}' (U+{:04X}) does not exist in the charset {label}",
            culprit as u32
        ));
    }
    Ok(bytes.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_mark_beats_transport_beats_declaration() {
        let latin1 = b"<?xml version='1.0' encoding='iso-8859-1'?><a>\xe9</a>";
        let read = |bytes: &[u8], ct: Option<&str>| decode(bytes, ct, true).map(Cow::into_owned);
        assert!(read(latin1, None).unwrap().ends_with("<a>é</a>"));
        assert!(
            read(latin1, Some("text/xml; charset=\"windows-1251\""))
                .unwrap()
                .ends_with("<a>й</a>")
        );
        assert!(read(latin1, Some("text/xml; charset=utf-8")).is_err());
        assert_eq!(
            read(b"\xef\xbb\xbf<a/>", Some("text/xml; charset=iso-8859-1")).unwrap(),
            "<a/>"
        );
        let wide: Vec<u8> = b"\xff\xfe"
            .iter()
            .copied()
            .chain("<a>€</a>".encode_utf16().flat_map(u16::to_le_bytes))
            .collect();
        assert_eq!(read(&wide, None).unwrap(), "<a>€</a>");
        assert!(
            read(b"<a/>", Some("text/xml; charset=klingon"))
                .unwrap_err()
                .contains("klingon")
        );
        // Outside XML a declaration means nothing.
        assert!(decode(latin1, None, false).is_err());
    }

    #[test]
    fn what_a_charset_lacks_is_named() {
        assert_eq!(encode("é", "iso-8859-1").unwrap(), b"\xe9");
        assert_eq!(encode("é", "utf-16be").unwrap(), b"\0\xe9");
        let error = encode("5 Ж", "iso-8859-1").unwrap_err();
        assert!(
            error.contains("'Ж' (U+0416)") && error.contains("iso-8859-1"),
            "{error}"
        );
    }
}
