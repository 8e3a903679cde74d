//! Body text in another charset, strictly: a character that the charset lacks is an error that
//! names it, never a question mark.

use encoding_rs::{EncoderResult, Encoding, UTF_8, UTF_16BE, UTF_16LE};
use xbus_core::{Code, Fault, Format, Message};

/// Whether a label names a charset (WHATWG Encoding Standard, which has all IANA labels in use;
/// `us-ascii` and ISO 8859 are taken by their own definition when writing).
pub(crate) fn is_known(label: &str) -> bool {
    Encoding::for_label(label.as_bytes()).is_some_and(|encoding| encoding.name() != "replacement")
}

/// The message's body in `label`'s charset. An XML declaration is made to say so.
pub(crate) fn encode(message: &Message, label: &str) -> Result<Vec<u8>, Fault> {
    let text = decode(message)?;
    let text = if is_xml(message, &text) {
        declare(&text, label)
    } else {
        text
    };
    encode_text(&text, label)
}

fn is_xml(message: &Message, text: &str) -> bool {
    match message.format() {
        Some(format) => format == Format::Xml,
        None => text.starts_with("<?xml"),
    }
}

/// The body as text: by its byte order mark, its content type, its XML declaration, else UTF-8.
fn decode(message: &Message) -> Result<String, Fault> {
    let bytes = message.body.bytes();
    let (encoding, skip) = match Encoding::for_bom(bytes) {
        Some(found) => found,
        None => {
            let label = message
                .content_type()
                .and_then(charset_parameter)
                .or_else(|| declared(bytes));
            let encoding = label.and_then(|label| Encoding::for_label(label.trim().as_bytes()));
            (encoding.unwrap_or(UTF_8), 0)
        }
    };
    encoding
        .decode_without_bom_handling_and_without_replacement(&bytes[skip..])
        .map(std::borrow::Cow::into_owned)
        .ok_or_else(|| {
            Fault::new(
                Code::Transform,
                format!("the body is not text in {}", encoding.name()),
            )
        })
}

/// The `charset` parameter of a media type (RFC 9110 section 8.3.2).
fn charset_parameter(content_type: &str) -> Option<&str> {
    content_type.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("charset")
            .then(|| value.trim().trim_matches('"'))
    })
}

/// The encoding that an XML declaration names (XML 1.0, production 80).
fn declared(bytes: &[u8]) -> Option<&str> {
    let head = &bytes[..bytes.len().min(256)];
    if !head.starts_with(b"<?xml") {
        return None;
    }
    let end = head.windows(2).position(|pair| pair == b"?>")?;
    let text = std::str::from_utf8(&head[..end]).ok()?;
    let range = encoding_value(text)?;
    Some(&text[range])
}

/// Where in an XML declaration the value of `encoding` stands.
fn encoding_value(declaration: &str) -> Option<std::ops::Range<usize>> {
    let name = declaration.find("encoding")?;
    let after = name + "encoding".len();
    let open = after + declaration[after..].find(['"', '\''])?;
    let quote = declaration.as_bytes()[open] as char;
    let close = open + 1 + declaration[open + 1..].find(quote)?;
    Some(open + 1..close)
}

/// XML text whose declaration names `label`; one is added where there is none.
fn declare(text: &str, label: &str) -> String {
    let end = text.starts_with("<?xml").then(|| text.find("?>")).flatten();
    let Some(end) = end else {
        return format!("<?xml version=\"1.0\" encoding=\"{label}\"?>\n{text}");
    };
    match encoding_value(&text[..end]) {
        Some(range) => format!("{}{label}{}", &text[..range.start], &text[range.end..]),
        None => {
            // After the version, before `standalone` (XML 1.0, production 23).
            let at = text[..end].find("standalone").unwrap_or(end);
            let (before, after) = text.split_at(at);
            let gap = if at == end { "" } else { " " };
            format!("{} encoding=\"{label}\"{gap}{after}", before.trim_end())
        }
    }
}

fn encode_text(text: &str, label: &str) -> Result<Vec<u8>, Fault> {
    let lower = label.trim().to_ascii_lowercase();
    let missing = |at: usize| lacks(text, at, label);
    match lower.as_str() {
        "us-ascii" | "ascii" | "ansi_x3.4-1968" | "iso646-us" => {
            narrow(text, 0x7f).map_err(missing)
        }
        "iso-8859-1" | "iso8859-1" | "iso_8859-1" | "latin1" | "l1" => {
            narrow(text, 0xff).map_err(missing)
        }
        "utf-16" => {
            let mut out = vec![0xff, 0xfe];
            out.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
            Ok(out)
        }
        _ => {
            let encoding = Encoding::for_label(lower.as_bytes()).ok_or_else(|| {
                Fault::new(
                    Code::Transform,
                    format!("no charset has the label '{label}'"),
                )
            })?;
            if encoding == UTF_8 {
                Ok(text.as_bytes().to_vec())
            } else if encoding == UTF_16LE {
                Ok(text.encode_utf16().flat_map(u16::to_le_bytes).collect())
            } else if encoding == UTF_16BE {
                Ok(text.encode_utf16().flat_map(u16::to_be_bytes).collect())
            } else {
                // The Encoding Standard reads ISO 8859-9 and -11 as their Windows supersets, whose
                // additions lie in 0x80 to 0x9F.
                let strict = lower.starts_with("iso-8859-") || lower.starts_with("iso8859-");
                wide(text, encoding, strict).map_err(missing)
            }
        }
    }
}

/// Code points as bytes, up to `most`; else where the first greater one stands.
fn narrow(text: &str, most: u32) -> Result<Vec<u8>, usize> {
    text.char_indices()
        .map(|(at, c)| match u32::from(c) {
            code if code <= most => Ok(code as u8),
            _ => Err(at),
        })
        .collect()
}

fn wide(text: &str, encoding: &'static Encoding, strict: bool) -> Result<Vec<u8>, usize> {
    if strict && encoding.is_single_byte() {
        let mut out = Vec::with_capacity(text.len());
        let mut buffer = [0; 4];
        for (at, c) in text.char_indices() {
            let (bytes, _, unmappable) = encoding.encode(c.encode_utf8(&mut buffer));
            match *bytes {
                [byte] if !unmappable && !(0x80..0xa0).contains(&byte) => out.push(byte),
                _ => return Err(at),
            }
        }
        return Ok(out);
    }
    let mut encoder = encoding.new_encoder();
    let room = encoder
        .max_buffer_length_from_utf8_without_replacement(text.len())
        .unwrap_or(text.len() * 4 + 16);
    let mut out = Vec::with_capacity(room);
    let (result, read) = encoder.encode_from_utf8_to_vec_without_replacement(text, &mut out, true);
    match result {
        EncoderResult::InputEmpty => Ok(out),
        EncoderResult::OutputFull => Err(read),
        EncoderResult::Unmappable(c) => Err(read - c.len_utf8()),
    }
}

/// The fault for the character at byte `at` of `text`.
fn lacks(text: &str, at: usize, label: &str) -> Fault {
    let before = &text[..at];
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .map_or(0, |rest| rest.chars().count())
        + 1;
    let what = text[at..].chars().next().unwrap_or_default();
    Fault::new(
        Code::Transform,
        format!(
            "the charset {label} has no '{}' (U+{:04X}), which stands at line {line}, column {column}",
            what.escape_debug(),
            u32::from(what)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(content_type: &str, body: &[u8]) -> Message {
        let mut message = Message::new(body.to_vec());
        message.headers.set("content-type", content_type);
        message
    }

    #[test]
    fn labels_are_known_or_not() {
        assert!(is_known("ISO-8859-15") && is_known("latin1") && is_known("utf-16le"));
        assert!(!is_known("klingon"));
    }

    #[test]
    fn text_is_written_in_the_charset() {
        let euro = message("text/plain", "5 € für ä".as_bytes());
        assert_eq!(encode(&euro, "iso-8859-15").unwrap(), b"5 \xa4 f\xfcr \xe4");
        assert_eq!(encode(&euro, "windows-1252").unwrap()[2], 0x80);
        assert_eq!(&encode(&euro, "utf-16").unwrap()[..4], b"\xff\xfe5\0");
    }

    #[test]
    fn a_missing_character_is_named_with_its_place() {
        for label in ["iso-8859-1", "us-ascii", "iso-8859-9", "iso-8859-2"] {
            let fault = encode(&message("text/plain", "a\nbc€".as_bytes()), label).unwrap_err();
            assert_eq!(fault.code, Code::Transform);
            for part in ["U+20AC", "'€'", "line 2, column 3", label] {
                assert!(fault.reason.contains(part), "{label}: {}", fault.reason);
            }
        }
    }

    #[test]
    fn xml_declarations_follow_the_charset() {
        for (from, to) in [
            (
                "<a>ä</a>",
                "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n<a>\u{e4}</a>",
            ),
            (
                "<?xml version='1.0'?><a/>",
                "<?xml version='1.0' encoding=\"iso-8859-1\"?><a/>",
            ),
            (
                "<?xml version=\"1.0\" standalone=\"yes\"?><a/>",
                "<?xml version=\"1.0\" encoding=\"iso-8859-1\" standalone=\"yes\"?><a/>",
            ),
            (
                "<?xml version=\"1.0\" encoding='UTF-8'?><a/>",
                "<?xml version=\"1.0\" encoding='iso-8859-1'?><a/>",
            ),
        ] {
            let bytes = encode(&message("application/xml", from.as_bytes()), "iso-8859-1").unwrap();
            let expected: Vec<u8> = to.chars().map(|c| c as u8).collect();
            assert_eq!(bytes, expected, "{from}");
        }
    }

    #[test]
    fn the_source_charset_is_read() {
        let xml = message(
            "application/xml",
            b"<?xml version=\"1.0\" encoding=\"iso-8859-1\"?><a>\xe4</a>",
        );
        let out = encode(&xml, "utf-8").unwrap();
        assert!(
            String::from_utf8(out)
                .unwrap()
                .contains("encoding=\"utf-8\"?><a>ä")
        );
        let text = message("text/plain; charset=\"windows-1252\"", b"\x80");
        assert_eq!(encode(&text, "utf-8").unwrap(), "€".as_bytes());
        assert!(encode(&message("text/plain", b"\xff\xff\xff"), "utf-8").is_err());
    }
}
