//! A mail from its parts (RFC 5322, MIME). Whatever the parts hold, it has no other headers and
//! recipients than they name: control characters become spaces, other than ASCII is encoded
//! (RFC 2047).

use lettre::address::Envelope;
use lettre::message::header::{ContentTransferEncoding, ContentType, HeaderName, HeaderValue};
use lettre::message::{Attachment, Body, Mailbox, MultiPart, SinglePart};
use xbus_core::{Code, Fault, MessageId};

/// Longest subject or header value in characters.
const LONGEST: usize = 900;

/// The parts of a mail.
pub(crate) struct Draft {
    pub(crate) from: Mailbox,
    pub(crate) to: Vec<Mailbox>,
    pub(crate) cc: Vec<Mailbox>,
    pub(crate) bcc: Vec<Mailbox>,
    pub(crate) subject: String,
    pub(crate) text: Option<String>,
    pub(crate) html: Option<String>,
    pub(crate) attachments: Vec<Attached>,
    /// Further headers; their names are checked when a route is built.
    pub(crate) headers: Vec<(String, String)>,
    /// With its angle brackets.
    pub(crate) message_id: String,
    /// `Auto-Submitted` (RFC 3834 section 5).
    pub(crate) automatic: &'static str,
}

/// An attachment.
pub(crate) struct Attached {
    pub(crate) name: String,
    pub(crate) content_type: String,
    pub(crate) content: Vec<u8>,
}

/// A mail that is ready to go.
pub(crate) struct Composed {
    pub(crate) envelope: Envelope,
    pub(crate) data: Vec<u8>,
}

/// `<ID.TARGET@BUS.xbus>`: the same over all attempts.
pub(crate) fn message_id(id: MessageId, target: &str, bus: &str) -> String {
    let word = |text: &str| -> String {
        let word: String = text
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(60)
            .collect();
        let word = word.trim_matches('-').to_owned();
        if word.is_empty() {
            String::from("x")
        } else {
            word
        }
    };
    format!("<{id}.{}@{}.xbus>", word(target), word(bus))
}

impl Draft {
    /// The mail.
    pub(crate) fn compose(self) -> Result<Composed, Fault> {
        let mut builder = lettre::Message::builder()
            .from(self.from)
            .message_id(Some(self.message_id))
            .raw_header(header("Auto-Submitted", self.automatic)?);
        let subject = one_line(&self.subject);
        if !subject.is_empty() {
            builder = builder.subject(subject);
        }
        for to in self.to {
            builder = builder.to(to);
        }
        for cc in self.cc {
            builder = builder.cc(cc);
        }
        for bcc in self.bcc {
            builder = builder.bcc(bcc);
        }
        for (name, value) in &self.headers {
            builder = builder.raw_header(header(name, value)?);
        }
        let content = match (self.text, self.html) {
            (Some(text), Some(html)) => {
                Content::Both(MultiPart::alternative_plain_html(text, html))
            }
            (text, None) => Content::One(SinglePart::plain(text.unwrap_or_default())),
            (None, Some(html)) => Content::One(SinglePart::html(html)),
        };
        let built = if self.attachments.is_empty() {
            match content {
                Content::One(part) => builder.singlepart(part),
                Content::Both(parts) => builder.multipart(parts),
            }
        } else {
            let mixed = match content {
                Content::One(part) => MultiPart::mixed().singlepart(part),
                Content::Both(parts) => MultiPart::mixed().multipart(parts),
            };
            let attach = |mail: MultiPart, attached: Attached| mail.singlepart(part(attached));
            builder.multipart(self.attachments.into_iter().fold(mixed, attach))
        };
        let mail = built.map_err(|error| {
            Fault::new(
                Code::Transform,
                format!("no mail can be made of the message: {error}"),
            )
        })?;
        Ok(Composed {
            envelope: mail.envelope().clone(),
            data: mail.formatted(),
        })
    }
}

enum Content {
    One(SinglePart),
    Both(MultiPart),
}

fn part(attached: Attached) -> SinglePart {
    let content_type = ContentType::parse(&attached.content_type)
        .or_else(|_| ContentType::parse("application/octet-stream"))
        .unwrap_or(ContentType::TEXT_PLAIN);
    let name = one_line(&attached.name).replace(['/', '\\', '"'], "_");
    // Base64, so that bytes stay as they are: line ends of text would be changed on the way.
    let body = Body::new_with_encoding(attached.content, ContentTransferEncoding::Base64)
        .unwrap_or_else(Body::new);
    Attachment::new(name).body(body, content_type)
}

fn header(name: &str, value: &str) -> Result<HeaderValue, Fault> {
    let known = HeaderName::new_from_ascii(name.to_owned())
        .map_err(|_| Fault::new(Code::Transform, format!("'{name}' is no mail header")))?;
    Ok(HeaderValue::new(known, one_line(value)))
}

/// Text without control characters, and not endless.
fn one_line(text: &str) -> String {
    let plain: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST)
        .collect();
    plain.trim().to_owned()
}

#[cfg(test)]
pub(crate) fn draft() -> Draft {
    let mailbox = |text: &str| crate::address::fixed(text).unwrap().remove(0);
    Draft {
        from: mailbox("bus@acme.example"),
        to: vec![mailbox("Müller & Söhne <desk@acme.example>")],
        cc: vec![],
        bcc: vec![mailbox("boss@acme.example")],
        subject: String::from("Order 42"),
        text: Some(String::from("hello")),
        html: None,
        attachments: vec![],
        headers: vec![],
        message_id: message_id(MessageId::new(), "desk", "acme bus"),
        automatic: "auto-generated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head_and_body(draft: Draft) -> (String, String) {
        let mail = String::from_utf8(draft.compose().unwrap().data).unwrap();
        let (head, body) = mail.split_once("\r\n\r\n").unwrap();
        (format!("{head}\r\n"), body.to_owned())
    }

    #[test]
    fn nothing_adds_a_header() {
        let mut evil = draft();
        evil.subject = String::from("a\r\nBcc: thief@evil.example\r\n\r\nbody");
        evil.headers = vec![(
            String::from("X-Customer"),
            String::from("7\nX-Evil: yes\u{2028}Ä"),
        )];
        evil.attachments = vec![Attached {
            name: String::from("a\"\r\nX-Evil: yes/../b.txt"),
            content_type: String::from("text/plain\r\nX-Evil: yes"),
            content: b"x".to_vec(),
        }];
        let composed = evil.compose().unwrap();
        assert_eq!(composed.envelope.to().len(), 2);
        let mail = String::from_utf8(composed.data).unwrap();
        assert!(mail.is_ascii());
        for line in mail.split("\r\n") {
            assert!(
                !line.starts_with("X-Evil") && !line.starts_with("Bcc"),
                "{mail}"
            );
            assert!(line.len() < 998);
        }
    }

    #[test]
    fn other_scripts_are_encoded() {
        let mut mail = draft();
        mail.subject = String::from("Grüße 東京");
        mail.text = Some(String::from("Grüße\n.\nEnde"));
        let (head, body) = head_and_body(mail);
        assert!(
            head.is_ascii() && head.contains("Subject: =?utf-8?"),
            "{head}"
        );
        assert!(head.contains("charset=utf-8"), "{head}");
        assert!(body.is_ascii());
    }

    #[test]
    fn text_html_and_attachments_stand_together() {
        let mut mail = draft();
        mail.html = Some(String::from("<b>hello</b>"));
        mail.attachments = vec![Attached {
            name: String::from("order.xml"),
            content_type: String::from("application/xml"),
            content: b"<a/>\n".to_vec(),
        }];
        let (head, body) = head_and_body(mail);
        assert!(head.contains("multipart/mixed"), "{head}");
        for part in [
            "multipart/alternative",
            "text/html",
            "filename=\"order.xml\"",
            "PGEvPgo=",
        ] {
            assert!(body.contains(part), "no {part} in {body}");
        }
    }

    #[test]
    fn message_ids_are_stable_and_safe() {
        let id = MessageId::new();
        assert_eq!(
            message_id(id, "desk>\r\n", "acme bus"),
            format!("<{id}.desk@acme-bus.xbus>")
        );
    }
}
