//! Body text in another charset, strictly: a character that the charset lacks is an error that
//! names it, never a question mark.

use xbus_charset::{declare, text_leniently};
use xbus_core::{Code, Fault, Format, Message};

/// The message's body in `label`'s charset. An XML declaration is made to say so.
pub(crate) fn encode(message: &Message, label: &str) -> Result<Vec<u8>, Fault> {
    let wrong = |error: xbus_charset::Error| Fault::new(Code::Transform, error.to_string());
    let text = text_leniently(message).map_err(wrong)?;
    let written = if is_xml(message, &text) {
        xbus_charset::encode(&declare(&text, label), label)
    } else {
        xbus_charset::encode(&text, label)
    };
    written.map_err(wrong)
}

fn is_xml(message: &Message, text: &str) -> bool {
    match message.format() {
        Some(format) => format == Format::Xml,
        None => text.starts_with("<?xml"),
    }
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
