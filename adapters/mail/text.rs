//! The message's body as text, for the text of a mail.

use xbus_core::{Format, Message};

/// The body where it is text: by its byte order mark, its content type, its XML declaration, else
/// UTF-8. Nothing when it is none.
pub(crate) fn of(message: &Message) -> Option<String> {
    if message.format() == Some(Format::Bytes) {
        return None;
    }
    let text = xbus_charset::text_leniently(message).ok()?;
    let binary = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{c}');
    (!text.chars().any(binary)).then(|| text.into_owned())
}

/// Whether the content type says HTML.
pub(crate) fn is_html(message: &Message) -> bool {
    message.content_type().is_some_and(|content_type| {
        let essence = content_type.split(';').next().unwrap_or_default();
        essence.trim().eq_ignore_ascii_case("text/html")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(content_type: &str, body: &[u8]) -> Option<String> {
        let mut message = Message::new(body.to_vec());
        message.headers.set("content-type", content_type);
        of(&message)
    }

    #[test]
    fn text_is_read_in_its_charset() {
        assert_eq!(text("text/plain", "ä".as_bytes()).as_deref(), Some("ä"));
        let latin = text("text/plain; charset=iso-8859-1", b"\xe4");
        assert_eq!(latin.as_deref(), Some("ä"));
        let xml = b"<?xml version='1.0' encoding='iso-8859-1'?><a>\xe4</a>";
        assert!(text("application/xml", xml).unwrap().contains("ä"));
        assert_eq!(text("application/pdf", b"%PDF\0\xff"), None);
        assert_eq!(text("text/plain", b"a\0b"), None);
    }
}
