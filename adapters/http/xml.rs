//! XML as far as HTTP needs it: decoding by BOM, content type and declaration (RFC 7303 section
//! 3), leaving prologs out, and escaping.

use std::borrow::Cow;

use encoding_rs::Encoding;

/// The charset that a content type names.
pub(crate) fn charset(content_type: &str) -> Option<&str> {
    parameter(content_type, "charset")
}

/// A parameter of a media type (RFC 9110 section 5.6.6), without its quotes.
pub(crate) fn parameter<'a>(content_type: &'a str, name: &str) -> Option<&'a str> {
    content_type.split(';').skip(1).find_map(|part| {
        let (key, value) = part.split_once('=')?;
        key.trim()
            .eq_ignore_ascii_case(name)
            .then(|| value.trim().trim_matches('"'))
    })
}

/// The media type without its parameters.
pub(crate) fn essence(content_type: &str) -> &str {
    content_type
        .split_once(';')
        .map_or(content_type, |(essence, _)| essence)
        .trim()
}

/// The encoding of a document: its BOM, else what the content type says, else its declaration,
/// else UTF-8.
fn encoding(body: &[u8], charset: Option<&str>) -> Result<&'static Encoding, String> {
    if let Some((encoding, _)) = Encoding::for_bom(body) {
        return Ok(encoding);
    }
    if let Some(label) = charset.or_else(|| declared(body)) {
        return Encoding::for_label(label.as_bytes())
            .ok_or_else(|| format!("the charset '{}' is not known", label.escape_default()));
    }
    // UTF-16 without a BOM, by its first "<" (XML 1.0 appendix F).
    Ok(match body {
        [b'<', 0, ..] => encoding_rs::UTF_16LE,
        [0, b'<', ..] => encoding_rs::UTF_16BE,
        _ => encoding_rs::UTF_8,
    })
}

/// The encoding that an XML declaration names.
fn declared(body: &[u8]) -> Option<&str> {
    let body = body.strip_prefix(b"<?xml")?;
    let end = body.iter().take(200).position(|byte| *byte == b'>')?;
    let text = std::str::from_utf8(&body[..end]).ok()?;
    let (_, rest) = text.split_once("encoding")?;
    let rest = rest.trim_start().strip_prefix('=')?.trim_start();
    let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    rest[1..].split(quote).next()
}

/// Whether a document is UTF-8, as far as it says.
pub(crate) fn is_utf8(body: &[u8], charset: Option<&str>) -> bool {
    encoding(body, charset).is_ok_and(|encoding| encoding == encoding_rs::UTF_8)
}

/// The document as text; copied only when it is not UTF-8. The error says what is wrong.
pub(crate) fn decode<'a>(body: &'a [u8], charset: Option<&str>) -> Result<Cow<'a, str>, String> {
    let encoding = encoding(body, charset)?;
    if encoding == encoding_rs::UTF_8 {
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        return std::str::from_utf8(body)
            .map(Cow::Borrowed)
            .map_err(|error| format!("byte {} is not UTF-8", error.valid_up_to() + 1));
    }
    let (text, used, broken) = encoding.decode(body);
    if broken {
        return Err(format!("it is not valid {}", used.name()));
    }
    Ok(text)
}

/// The document from its first element on: without declaration, comments and instructions before
/// it. A DTD is an error.
pub(crate) fn without_prolog(text: &str) -> Result<&str, String> {
    let mut rest = text.trim_start_matches('\u{feff}').trim_start();
    loop {
        let skipped = if rest.starts_with("<?") {
            rest.split_once("?>").map(|(_, rest)| rest)
        } else if rest.starts_with("<!--") {
            rest[4..].split_once("-->").map(|(_, rest)| rest)
        } else if rest.starts_with("<!") {
            return Err("a DTD is not allowed".into());
        } else {
            return Ok(rest.trim_end());
        };
        rest = skipped.ok_or("its prolog does not end")?.trim_start();
    }
}

/// The text of an element without markup, its entities resolved where they are predefined.
pub(crate) fn plain_text(raw: &str) -> String {
    quick_xml::escape::unescape(raw)
        .map_or_else(|_| raw.to_owned(), Cow::into_owned)
        .trim()
        .to_owned()
}

/// Appends text to XML: markup is escaped, characters that XML 1.0 does not know become `?`.
pub(crate) fn escape_into(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => out.push(c),
            c if !is_char(c) => out.push('?'),
            c => out.push(c),
        }
    }
}

/// Whether XML 1.0 knows a character (production 2).
pub(crate) fn is_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_decoded_by_bom_content_type_and_declaration() {
        let latin = b"<?xml version='1.0' encoding='ISO-8859-1'?><a>\xe9</a>";
        assert!(decode(latin, None).unwrap().contains("<a>é</a>"));
        assert!(decode(latin, Some("utf-8")).is_err());
        assert!(!is_utf8(latin, None) && is_utf8(b"<a/>", None));
        let wide: Vec<u8> = [0xff, 0xfe]
            .into_iter()
            .chain("<a>é</a>".encode_utf16().flat_map(u16::to_le_bytes))
            .collect();
        assert_eq!(decode(&wide, None).unwrap(), "<a>é</a>");
        assert_eq!(decode(&wide[2..], None).unwrap(), "<a>é</a>");
        assert!(decode(b"<a/>", Some("klingon")).is_err());
    }

    #[test]
    fn prologs_are_left_out() {
        let text = "\u{feff}<?xml version='1.0'?>\n<!-- x --><?a b?> <a/> \n";
        assert_eq!(without_prolog(text), Ok("<a/>"));
        assert!(without_prolog("<!DOCTYPE a><a/>").is_err());
    }
}
