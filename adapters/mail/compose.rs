//! A mail from its parts (RFC 5322, MIME). Whatever the parts hold, it has no other headers and
//! recipients than they name: control characters become spaces, other than ASCII is encoded
//! (RFC 2047).

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use lettre::Address;
use lettre::address::Envelope;
use lettre::message::header::{
    Bcc, Cc, ContentDisposition, ContentId, ContentTransferEncoding, ContentType, HeaderName,
    HeaderValue, To,
};
use lettre::message::{Body, Mailbox, Mailboxes, MultiPart, SinglePart};
use xbus_core::{Code, Fault, MessageId, Timestamp, long};

/// Longest subject or header value in characters.
const LONGEST: usize = 900;
/// Bytes of content above which a mail takes long to make.
const ENOUGH: usize = long::PASSED / 4;

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
    /// What HTML shows it by (`cid:…`, RFC 2392), without angle brackets.
    pub(crate) content_id: Option<String>,
    pub(crate) content: Bytes,
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
    /// The mail, dated now.
    pub(crate) fn compose(self) -> Result<Composed, Fault> {
        self.compose_at(Timestamp::now())
    }

    /// The mail with that `Date`, which is when it was handed over (RFC 5322 section 3.6.1): the same over
    /// all attempts.
    pub(crate) fn compose_at(self, date: Timestamp) -> Result<Composed, Fault> {
        let texts = [&self.text, &self.html].into_iter().flatten();
        let attached: usize = self.attachments.iter().map(|one| one.content.len()).sum();
        let size = texts.map(String::len).sum::<usize>() + attached;
        long::over(size, ENOUGH, || self.build(date))
    }

    fn build(self, date: Timestamp) -> Result<Composed, Fault> {
        let envelope = self.envelope()?;
        let mut builder = lettre::Message::builder()
            .envelope(envelope)
            .date(system_time(date))
            .from(self.from)
            .message_id(Some(self.message_id))
            .raw_header(header("Auto-Submitted", self.automatic)?);
        let subject = one_line(&self.subject);
        if !subject.is_empty() {
            builder = builder.subject(subject);
        }
        let some = |all: Vec<Mailbox>| (!all.is_empty()).then(|| Mailboxes::from(all));
        if let Some(to) = some(self.to) {
            builder = builder.mailbox(To::from(to));
        }
        if let Some(cc) = some(self.cc) {
            builder = builder.mailbox(Cc::from(cc));
        }
        if let Some(bcc) = some(self.bcc) {
            builder = builder.mailbox(Bcc::from(bcc));
        }
        for (name, value) in &self.headers {
            builder = builder.raw_header(header(name, value)?);
        }
        let shown = |attached: &Attached| {
            let id = attached.content_id.as_deref().unwrap_or_default();
            let html = self.html.as_deref().unwrap_or_default();
            !id.is_empty() && html.contains(&format!("cid:{id}"))
        };
        let (related, attached): (Vec<Attached>, Vec<Attached>) =
            self.attachments.into_iter().partition(shown);
        let content = Content::of(self.text, self.html, related);
        let built = match (content, attached.is_empty()) {
            (Content::One(part), true) => builder.singlepart(part),
            (Content::Many(parts), true) => builder.multipart(parts),
            (content, false) => {
                let mixed = match content {
                    Content::One(part) => MultiPart::mixed().singlepart(part),
                    Content::Many(parts) => MultiPart::mixed().multipart(parts),
                };
                builder.multipart(attached.into_iter().fold(mixed, |mail, attached| {
                    mail.singlepart(part(attached, false))
                }))
            }
        };
        let mail = built.map_err(|error| no_mail(&error))?;
        Ok(Composed {
            envelope: mail.envelope().clone(),
            data: mail.formatted(),
        })
    }

    /// Every recipient once: who stands in `to` and in `cc` gets one mail.
    fn envelope(&self) -> Result<Envelope, Fault> {
        let mut all: Vec<Address> = Vec::new();
        for one in self.to.iter().chain(&self.cc).chain(&self.bcc) {
            let same = |known: &Address| {
                known.user() == one.email.user()
                    && known.domain().eq_ignore_ascii_case(one.email.domain())
            };
            if !all.iter().any(same) {
                all.push(one.email.clone());
            }
        }
        Envelope::new(Some(self.from.email.clone()), all).map_err(|error| no_mail(&error))
    }
}

fn no_mail(error: &dyn std::fmt::Display) -> Fault {
    Fault::new(
        Code::Transform,
        format!("no mail can be made of the message: {error}"),
    )
}

/// Within the years that a date can have four digits for.
fn system_time(time: Timestamp) -> SystemTime {
    const LAST: u64 = 253_402_300_799;
    let seconds = u64::try_from(time.as_micros() / 1_000_000).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(LAST))
}

/// What people read, in one or more forms (RFC 2046 section 5.1.4, RFC 2387).
enum Content {
    One(SinglePart),
    Many(MultiPart),
}

impl Content {
    /// `related` is what the HTML shows.
    fn of(text: Option<String>, html: Option<String>, related: Vec<Attached>) -> Self {
        let Some(html) = html.map(SinglePart::html) else {
            return Self::One(SinglePart::plain(text.unwrap_or_default()));
        };
        let html = match related.is_empty() {
            true => Self::One(html),
            false => Self::Many(
                related
                    .into_iter()
                    .fold(MultiPart::related().singlepart(html), |parts, shown| {
                        parts.singlepart(part(shown, true))
                    }),
            ),
        };
        let Some(text) = text.map(SinglePart::plain) else {
            return html;
        };
        let both = MultiPart::alternative().singlepart(text);
        Self::Many(match html {
            Self::One(html) => both.singlepart(html),
            Self::Many(html) => both.multipart(html),
        })
    }
}

/// `inline`: the HTML shows it.
fn part(attached: Attached, inline: bool) -> SinglePart {
    let (content_type, body) = encoded(&attached.content_type, &attached.content);
    let name = one_line(&attached.name).replace(['/', '\\', '"'], "_");
    let mut part = SinglePart::builder();
    if let Some(id) = attached.content_id.filter(|id| is_id(id)) {
        part = part.header(ContentId::from(format!("<{id}>")));
    }
    part.header(match inline {
        true => ContentDisposition::inline_with_name(&name),
        false => ContentDisposition::attachment(&name),
    })
    .header(content_type)
    .body(body)
}

/// Whether it can stand between angle brackets (RFC 2392, RFC 5322 section 3.6.4).
fn is_id(text: &str) -> bool {
    let good = |c: char| c.is_ascii_graphic() && !matches!(c, '<' | '>');
    !text.is_empty() && text.len() <= LONGEST && text.chars().all(good)
}

/// The bytes as they survive the way. Base64 for all but a mail, which must not be encoded (RFC 2046
/// section 5.2.1): one that has to be is sent as plain octets.
fn encoded(content_type: &str, content: &Bytes) -> (ContentType, Body) {
    let lower = content_type.trim_start().to_ascii_lowercase();
    let octets =
        || ContentType::parse("application/octet-stream").unwrap_or(ContentType::TEXT_PLAIN);
    let known = ContentType::parse(content_type).unwrap_or_else(|_| octets());
    let base64 = || {
        Body::new_with_encoding(content.to_vec(), ContentTransferEncoding::Base64)
            .unwrap_or_else(Body::new)
    };
    if lower.starts_with("message/") && keeps_lines(content) {
        let plain = Body::new_with_encoding(content.to_vec(), ContentTransferEncoding::SevenBit);
        if let Ok(body) = plain {
            return (known, body);
        }
    }
    match lower.starts_with("message/") || lower.starts_with("multipart/") {
        true => (octets(), base64()),
        false => (known, base64()),
    }
}

/// Whether no server changes its line ends: CRLF alone, and no line longer than 998 bytes.
fn keeps_lines(content: &[u8]) -> bool {
    content.split(|c| *c == b'\n').all(|line| line.len() <= 999)
        && content.iter().enumerate().all(|(at, c)| match c {
            b'\n' => at > 0 && content[at - 1] == b'\r',
            b'\r' => content.get(at + 1) == Some(&b'\n'),
            c => c.is_ascii() && *c != 0,
        })
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
            content_id: Some(String::from("x>\r\nX-Evil: yes")),
            content: Bytes::from_static(b"x"),
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
            content_id: None,
            content: Bytes::from_static(b"<a/>\n"),
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
    fn what_the_html_shows_stands_beside_it() {
        let mut mail = draft();
        mail.html = Some(String::from("<img src=\"cid:logo@x\">"));
        let attached = |id: &str, name: &str| Attached {
            name: String::from(name),
            content_type: String::from("image/png"),
            content_id: Some(String::from(id)),
            content: Bytes::from_static(b"png"),
        };
        mail.attachments = vec![attached("logo@x", "logo.png"), attached("other", "b.png")];
        let (_, body) = head_and_body(mail);
        let place = |what: &str| {
            body.find(what)
                .unwrap_or_else(|| panic!("{what} in {body}"))
        };
        let order = [
            "multipart/alternative",
            "text/plain",
            "multipart/related",
            "text/html",
            "Content-ID: <logo@x>\r\nContent-Disposition: inline; filename=\"logo.png\"",
            "Content-ID: <other>\r\nContent-Disposition: attachment; filename=\"b.png\"",
        ];
        assert!(order.map(place).is_sorted(), "{body}");
    }

    #[test]
    fn a_mail_within_a_mail_is_not_encoded() {
        let part_of = |content_type: &str, content: &'static [u8]| {
            let mut mail = draft();
            mail.attachments = vec![Attached {
                name: String::from("a.eml"),
                content_type: String::from(content_type),
                content_id: None,
                content: Bytes::from_static(content),
            }];
            head_and_body(mail).1
        };
        let plain = part_of("message/rfc822", b"Subject: x\r\n\r\nhello\r\n");
        assert!(
            plain.contains("Content-Type: message/rfc822\r\n"),
            "{plain}"
        );
        assert!(
            plain.contains("Content-Transfer-Encoding: 7bit\r\n"),
            "{plain}"
        );
        assert!(
            plain.contains("\r\n\r\nSubject: x\r\n\r\nhello\r\n\r\n--"),
            "{plain}"
        );
        for (content_type, content) in [
            ("message/rfc822", &b"Subject: \xe4\r\n\r\n"[..]),
            ("message/rfc822", b"Subject: x\n\nbare line ends\n"),
            ("Multipart/Mixed; boundary=x", b"--x\r\n"),
        ] {
            let mail = part_of(content_type, content);
            assert!(
                mail.contains("Content-Type: application/octet-stream\r\n"),
                "{mail}"
            );
            assert!(
                mail.contains("Content-Transfer-Encoding: base64\r\n"),
                "{mail}"
            );
        }
    }

    #[test]
    fn everybody_gets_one_and_no_name_is_a_recipient() {
        let mailbox = |text: &str| crate::address::fixed(text).unwrap().remove(0);
        let mut mail = draft();
        mail.to = vec![
            mailbox("desk@acme.example"),
            mailbox("\"thief evil.example, (x) : ;\" <desk@ACME.example>"),
        ];
        mail.cc = vec![mailbox("Desk@acme.example"), mailbox("desk@acme.example")];
        let composed = mail.compose().unwrap();
        let all: Vec<String> = composed
            .envelope
            .to()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            all,
            [
                "desk@acme.example",
                "Desk@acme.example",
                "boss@acme.example"
            ]
        );
        let text = String::from_utf8(composed.data).unwrap();
        assert!(text.contains("To: desk@acme.example, =?utf-8?"), "{text}");
    }

    #[test]
    fn lines_end_as_smtp_wants_them_and_none_is_too_long() {
        let mut mail = draft();
        mail.text = Some(format!("a\n.\r\nb\r.\rc\n{}", "x".repeat(5000)));
        mail.html = Some(format!("<p>\n.\n{}", "ü".repeat(5000)));
        mail.subject = "long ".repeat(150);
        mail.headers = vec![(String::from("X-Long"), "ü".repeat(2000))];
        mail.attachments = ["ü".repeat(255), "x".repeat(800)]
            .into_iter()
            .map(|name| Attached {
                name,
                content_type: String::from("text/plain"),
                content_id: Some("x".repeat(850)),
                content: Bytes::from_static(b"a\nb\rc"),
            })
            .collect();
        // A date that nobody can write is none to fail by.
        let data = mail
            .compose_at(Timestamp::from_micros(i64::MAX))
            .unwrap()
            .data;
        for (at, c) in data.iter().enumerate() {
            if *c == b'\n' {
                assert_eq!(data[at - 1], b'\r', "a bare line feed");
            }
            if *c == b'\r' {
                assert_eq!(data.get(at + 1), Some(&b'\n'), "a bare carriage return");
            }
        }
        assert!(data.split(|c| *c == b'\n').all(|line| line.len() <= 999));
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
