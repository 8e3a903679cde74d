//! What a mail becomes: one message, or one for each attachment. CPU only.
//!
//! Absent: trust. A mail's headers name nothing but headers of its own prefix, and what only another
//! program can read (encryption, TNEF) is refused with words that help.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use mail_parser::{Addr, HeaderValue};
use xbus_charset::Charset;
use xbus_core::{Attachment, Code, Fault, Format, Headers, Message};

use crate::mime::{self, Fields, Leaf, encrypted, one_line};

/// Most headers of a mail that become headers of its message.
const HEADERS_MOST: usize = 100;
/// What everybody asks for comes first, and what says whether a mail may be answered, so that it is
/// there whatever the limits leave out.
const FIRST: &[&str] = &[
    "from",
    "to",
    "subject",
    "date",
    "message-id",
    "reply-to",
    "return-path",
    "auto-submitted",
    "precedence",
    "list-id",
    "list-post",
    "list-unsubscribe",
    "content-type",
    "x-auto-response-suppress",
    "references",
];
/// Most bytes of them.
const HEADERS_SIZE: usize = 64 * 1024;

/// What becomes of attachments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Attachments {
    /// Each is a message.
    Each,
    /// They go with the text, as attachments of one message.
    All,
    /// They are left out.
    Ignore,
}

/// How mails become messages.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(crate) attachments: Attachments,
    pub(crate) prefer_html: bool,
    pub(crate) format: Option<Format>,
    pub(crate) charset: Option<String>,
}

/// What a mail is refused with: a message of its headers, for the journal, and why.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) message: Box<Message>,
    pub(crate) fault: Box<Fault>,
}

/// What becomes of a part of a mail.
pub(crate) type Made = Result<Message, Refused>;

/// The messages of a mail, in its order. Never none. One of several attachments that cannot be read is
/// an error of its own; the error of the whole is that there is no message.
pub(crate) fn messages(mail: &[u8], reading: &Reading) -> Result<Vec<Made>, Refused> {
    let (headers, made) = match Fields::read(mail) {
        Ok((fields, body)) => (headers(&fields), mime::leaves(mail, fields, body).map(Some)),
        Err(fault) => (Headers::new(), Err(fault)),
    };
    let made = made.and_then(|leaves| {
        let leaves = leaves.unwrap_or_default();
        refuse_unreadable(&leaves, reading)?;
        make(&leaves, &headers, reading)
    });
    made.map_err(|fault| refused(headers, fault))
}

/// A message of headers alone, with why there is no more of it.
pub(crate) fn refused(headers: Headers, fault: Fault) -> Refused {
    let mut message = Message::new("");
    message.headers = headers;
    Refused {
        message: Box::new(message),
        fault: Box::new(fault),
    }
}

/// The message headers of a mail's fields.
pub(crate) fn headers(fields: &Fields<'_>) -> Headers {
    let mut headers = Headers::new();
    let mut size = 0;
    let others = fields.iter().filter(|field| {
        !FIRST
            .iter()
            .any(|name| field.name.eq_ignore_ascii_case(name))
    });
    for field in FIRST
        .iter()
        .filter_map(|name| fields.get(name))
        .chain(others)
    {
        let name = format!("mail.{}", field.name.to_ascii_lowercase());
        let own = matches!(name.as_str(), "mail.from-address" | "mail.attachment");
        if own || headers.get(&name).is_some() {
            continue;
        }
        let value = match field.name.to_ascii_lowercase().as_str() {
            "from" | "to" | "cc" | "reply-to" | "sender" => addresses(field),
            "date" => date(field),
            _ => field.text(),
        };
        size += name.len() + value.len();
        if headers.len() >= HEADERS_MOST || size > HEADERS_SIZE {
            break;
        }
        headers.append(&name, &value);
    }
    if let Some(address) = fields.get("from").and_then(first_address) {
        headers.append("mail.from-address", &address);
    }
    headers
}

/// The bare address of the first that a field names.
pub(crate) fn first_address(field: mime::Field<'_>) -> Option<String> {
    let HeaderValue::Address(addresses) = field.parsed(|stream| stream.parse_address()) else {
        return None;
    };
    let address = addresses.iter().find_map(Addr::address).map(one_line)?;
    (!address.is_empty()).then_some(address)
}

/// `Name <address>, …` (RFC 5322): written anew, so that no decoded name looks like an address.
fn addresses(field: mime::Field<'_>) -> String {
    let HeaderValue::Address(addresses) = field.parsed(|stream| stream.parse_address()) else {
        return field.text();
    };
    let written = |one: &Addr<'_>| {
        let address = one.address().map(one_line).unwrap_or_default();
        let name = one.name().map(one_line).unwrap_or_default();
        let special = |c: char| "()<>[]:;@\\,\"".contains(c);
        match (name.as_str(), address.as_str()) {
            ("", address) => address.to_owned(),
            (name, "") => name.to_owned(),
            (name, address) if name.contains(special) => {
                let name = name.replace('\\', "\\\\").replace('"', "\\\"");
                format!("\"{name}\" <{address}>")
            }
            (name, address) => format!("{name} <{address}>"),
        }
    };
    let all: Vec<String> = addresses
        .iter()
        .map(written)
        .filter(|one| !one.is_empty())
        .collect();
    all.join(", ")
}

/// RFC 3339 where the date can be read, else as it came.
fn date(field: mime::Field<'_>) -> String {
    match field.parsed(|stream| stream.parse_date()) {
        HeaderValue::DateTime(date) if date.is_valid() => date.to_rfc3339(),
        _ => field.text(),
    }
}

fn refuse_unreadable(leaves: &[Leaf<'_>], reading: &Reading) -> Result<(), Fault> {
    for leaf in leaves {
        let name = leaf.name.as_deref().unwrap_or_default();
        match leaf.kind.word.as_str() {
            "application/pkcs7-mime" | "application/x-pkcs7-mime" => {
                return Err(match leaf.kind.parameter("smime-type") {
                    Some("signed-data") => Fault::new(
                        Code::Unsupported,
                        "the mail is wrapped in its signature (S/MIME, opaque); ask the sender to \
                         sign in clear text (multipart/signed)",
                    ),
                    _ => encrypted("S/MIME"),
                });
            }
            "application/ms-tnef" | "application/vnd.ms-tnef" => tnef(leaves, reading)?,
            _ if name.eq_ignore_ascii_case("winmail.dat") => tnef(leaves, reading)?,
            "message/partial" => {
                return Err(Fault::new(
                    Code::Unsupported,
                    "the mail is one fragment of a larger one (message/partial); ask the sender to \
                     send it whole",
                ));
            }
            "message/external-body" => {
                return Err(Fault::new(
                    Code::Unsupported,
                    "a part of the mail lies elsewhere (message/external-body), and the bus fetches \
                     nothing that a mail names; ask the sender to attach it",
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Where only the text is asked for and there is one, the rest does not matter.
fn tnef(leaves: &[Leaf<'_>], reading: &Reading) -> Result<(), Fault> {
    if reading.attachments == Attachments::Ignore && leaves.iter().any(is_text) {
        return Ok(());
    }
    Err(Fault::new(
        Code::Unsupported,
        "the mail is in Outlook's own format (TNEF, winmail.dat), which hides its attachments; ask \
         the sender to send as HTML or plain text, or have Exchange convert mail that goes outside",
    ))
}

fn make(leaves: &[Leaf<'_>], headers: &Headers, reading: &Reading) -> Result<Vec<Made>, Fault> {
    if reading.attachments == Attachments::Each {
        let texts = leaves.iter().any(is_text);
        let attached: Vec<&Leaf<'_>> = leaves
            .iter()
            .filter(|leaf| is_attachment(leaf) && !(texts && is_form(leaf)))
            .collect();
        if let [leaf] = attached[..] {
            return Ok(vec![Ok(attachment(leaf, 1, headers, reading)?)]);
        }
        if !attached.is_empty() {
            return Ok(each(&attached, headers, reading));
        }
    }
    let mut message = text(leaves, headers, reading)?;
    if reading.attachments == Attachments::All && !is_whole(leaves) {
        let all: Result<Vec<Attachment>, Fault> = leaves
            .iter()
            .filter(|leaf| is_beside_text(leaf))
            .map(|leaf| attached(leaf, reading))
            .collect();
        message.attachments = all?.into();
    }
    Ok(vec![Ok(message)])
}

/// A message of each attachment, as far as it can be read.
fn each(attached: &[&Leaf<'_>], headers: &Headers, reading: &Reading) -> Vec<Made> {
    let one = |(at, leaf): (usize, &&Leaf<'_>)| {
        attachment(leaf, at + 1, headers, reading).map_err(|fault| {
            let mut headers = headers.clone();
            headers.set("mail.attachment", &name_of(leaf, at + 1));
            refused(headers, fault)
        })
    };
    attached.iter().enumerate().map(one).collect()
}

/// The name by which an attachment is known.
fn name_of(leaf: &Leaf<'_>, number: usize) -> Arc<str> {
    match &leaf.name {
        Some(name) => Arc::from(name.as_ref()),
        None if leaf.kind.word == "message/rfc822" => format!("attachment-{number}.eml").into(),
        None => format!("attachment-{number}").into(),
    }
}

/// A mail that is nothing but a document.
fn is_whole(leaves: &[Leaf<'_>]) -> bool {
    matches!(leaves, [leaf] if leaf.name.is_none() && leaf.disposition != "attachment")
}

/// Whether it is a text that people read in the mail itself.
fn is_text(leaf: &Leaf<'_>) -> bool {
    matches!(leaf.kind.word.as_str(), "text/plain" | "text/html")
        && leaf.disposition != "attachment"
        && leaf.name.is_none()
}

/// Neither a text of the mail, nor one of its forms.
fn is_beside_text(leaf: &Leaf<'_>) -> bool {
    let form = leaf.place.alternative
        && leaf.name.is_none()
        && matches!(
            leaf.kind.word.as_str(),
            "text/enriched" | "text/richtext" | "text/x-amp-html" | "text/watch-html"
        );
    !is_text(leaf) && !form
}

/// Another form of the text, of whatever type: such as an invitation.
fn is_form(leaf: &Leaf<'_>) -> bool {
    leaf.place.form && leaf.name.is_none() && leaf.disposition != "attachment"
}

/// What is beside the text and no picture in it.
fn is_attachment(leaf: &Leaf<'_>) -> bool {
    let shown = leaf.place.related && leaf.content_id.is_some();
    is_beside_text(leaf) && (!shown || leaf.disposition == "attachment")
}

/// The message of the mail's text.
fn text(leaves: &[Leaf<'_>], headers: &Headers, reading: &Reading) -> Result<Message, Fault> {
    let of = |word: &str| -> Vec<&Leaf<'_>> {
        let wanted = |leaf: &&Leaf<'_>| is_text(leaf) && leaf.kind.word == word;
        leaves.iter().filter(wanted).collect()
    };
    let (mut plain, html) = (of("text/plain"), of("text/html"));
    if !html.is_empty() {
        plain.retain(|leaf| !leaf.is_blank());
    }
    let (chosen, content_type) = match (reading.prefer_html, plain.is_empty(), html.is_empty()) {
        (true, _, false) | (false, true, false) => (&html[..1], "text/html; charset=utf-8"),
        (_, false, _) => (&plain[..], "text/plain; charset=utf-8"),
        // A mail that is nothing but a document.
        (_, true, true) if is_whole(leaves) => {
            return attachment(&leaves[0], 1, headers, reading);
        }
        (_, true, true) => (&plain[..], "text/plain; charset=utf-8"),
    };
    let mut text = String::new();
    for leaf in chosen {
        let bytes = leaf.decoded()?;
        let more = characters(&bytes, leaf.kind.parameter("charset"))?;
        if !text.is_empty() && !text.ends_with('\n') {
            text.push_str("\r\n");
        }
        text.push_str(&more);
    }
    if text.trim_start().starts_with("-----BEGIN PGP MESSAGE-----") {
        return Err(encrypted("OpenPGP"));
    }
    let mut message = Message::new(text);
    message.headers = headers.clone();
    message.headers.set("content-type", content_type);
    message.format = reading.format;
    Ok(message)
}

/// A text's characters. What says ASCII or nothing is often something else (RFC 2045 section 5.2):
/// then UTF-8 where it is that, else the Windows charset that mail programs used.
fn characters<'a>(bytes: &'a [u8], label: Option<&str>) -> Result<Cow<'a, str>, Fault> {
    let label = label.map(str::trim).filter(|label| !label.is_empty());
    let vague = label.is_none_or(|label| {
        ["us-ascii", "ascii", "unknown-8bit", "x-unknown"]
            .iter()
            .any(|known| known.eq_ignore_ascii_case(label))
    });
    if vague {
        if let Ok(text) = std::str::from_utf8(bytes) {
            return Ok(Cow::Borrowed(text));
        }
        if let Ok(text) = Charset::by_label("windows-1252").and_then(|c| c.decode(bytes)) {
            return Ok(text);
        }
        return Ok(String::from_utf8_lossy(bytes));
    }
    let label = label.unwrap_or_default();
    let charset = Charset::by_label(label).map_err(|_| {
        Fault::new(
            Code::Unsupported,
            format!(
                "the mail's text is in a charset that nobody knows: '{}'",
                one_line(label)
            ),
        )
    })?;
    charset.decode(bytes).map_err(|error| {
        Fault::new(
            Code::Client,
            format!("the mail's text is not in the charset that it names: {error}"),
        )
    })
}

/// The message of an attachment: its bytes as they are.
fn attachment(
    leaf: &Leaf<'_>,
    number: usize,
    headers: &Headers,
    reading: &Reading,
) -> Result<Message, Fault> {
    let mut attached = attached(leaf, reading)?;
    let name = name_of(leaf, number);
    attached.name = Some(name.clone());
    let format = attached.format();
    let mut message = Message::new(attached.body);
    message.headers = headers.clone();
    if let Some(content_type) = &attached.content_type {
        message.headers.set("content-type", content_type);
    }
    message.headers.set("mail.attachment", &name);
    message.format = reading.format.or(format);
    Ok(message)
}

/// An attachment: its bytes as they are, its type with the charset alone.
fn attached(leaf: &Leaf<'_>, reading: &Reading) -> Result<Attachment, Fault> {
    let charset = leaf
        .kind
        .parameter("charset")
        .map(one_line)
        .filter(|charset| {
            charset
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b"-_:.".contains(&c))
        });
    let mut content_type = match charset {
        Some(charset) if !charset.is_empty() => format!("{}; charset={charset}", leaf.kind.word),
        _ => leaf.kind.word.clone(),
    };
    let body: Bytes = leaf.decoded()?.into_owned().into();
    if let Some(route) = &reading.charset {
        let format = reading
            .format
            .or_else(|| Format::from_media_type(&content_type));
        let xml = format == Some(Format::Xml);
        if let Some(settled) = xbus_charset::by_route(&body, Some(&content_type), xml, route) {
            content_type = settled;
        }
    }
    Ok(Attachment {
        name: leaf.name.as_deref().map(Arc::from),
        content_type: Some(one_line(&content_type).into()),
        content_id: leaf.content_id.as_deref().map(Arc::from),
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EACH: Reading = Reading {
        attachments: Attachments::Each,
        prefer_html: false,
        format: None,
        charset: None,
    };
    const IGNORE: Reading = Reading {
        attachments: Attachments::Ignore,
        ..EACH
    };
    const ALL: Reading = Reading {
        attachments: Attachments::All,
        ..EACH
    };

    fn one(mail: &str, reading: &Reading) -> Message {
        let mut all = messages(mail.as_bytes(), reading).unwrap();
        assert_eq!(all.len(), 1, "{mail}");
        all.remove(0).unwrap()
    }

    fn body(message: &Message) -> String {
        String::from_utf8_lossy(message.body.bytes()).into_owned()
    }

    fn reason(mail: &str, reading: &Reading) -> String {
        messages(mail.as_bytes(), reading).unwrap_err().fault.reason
    }

    const BOTH: &str = "Content-Type: multipart/alternative; boundary=x\n\n--x\n\nplain\n--x\nContent-Type: text/html\n\n<p>html</p>\n--x\nContent-Type: text/enriched\n\nrich\n--x--\n";

    #[test]
    fn headers_are_decoded_and_stay_in_their_place() {
        let mail = "From: =?utf-8?Q?M=C3=BCller=2C_=3Cx=40y=3E?= <m@acme.example>\nTo: a@b.example, \"C, D\" <c@d.example>\nSubject: =?iso-8859-1?Q?Gr=FC=DFe?=\n =?utf-8?B?IHRhZw0KQmNjOiBldmls?=\nDate: Mon, 22 Mar 1993 09:41:09 -0800\nMessage-ID: <1@acme.example>\nX-Order: 7\nx-order: 8\nAttachment: forged.xml\nFrom-Address: forged@acme.example\n\nhi";
        let message = one(mail, &EACH);
        let header = |name: &str| message.headers.get(name).unwrap_or("-").to_owned();
        assert_eq!(header("mail.from"), "\"Müller, <x@y>\" <m@acme.example>");
        assert_eq!(header("mail.from-address"), "m@acme.example");
        assert_eq!(header("mail.to"), "a@b.example, \"C, D\" <c@d.example>");
        assert_eq!(header("mail.subject"), "Grüße tag  Bcc: evil");
        assert_eq!(header("mail.date"), "1993-03-22T09:41:09-08:00");
        assert_eq!(header("mail.message-id"), "<1@acme.example>");
        assert_eq!(header("mail.x-order"), "7");
        assert_eq!(header("mail.attachment"), "-");
        assert!(
            message
                .headers
                .iter()
                .all(|(name, _)| name.starts_with("mail.") || name == "content-type")
        );
        assert_eq!(body(&message), "hi");
    }

    #[test]
    fn the_text_is_plain_unless_html_is_preferred() {
        assert_eq!(body(&one(BOTH, &EACH)), "plain");
        let html = Reading {
            prefer_html: true,
            ..EACH
        };
        let message = one(BOTH, &html);
        assert_eq!(body(&message), "<p>html</p>");
        assert_eq!(message.content_type(), Some("text/html; charset=utf-8"));
        assert_eq!(body(&one("Subject: x\n\nonly plain", &html)), "only plain");
        let only = "Content-Type: text/html; charset=iso-8859-1\nContent-Transfer-Encoding: quoted-printable\n\n<p>=E4</p>";
        assert_eq!(body(&one(only, &EACH)), "<p>ä</p>");
    }

    #[test]
    fn each_attachment_is_a_message_and_pictures_in_the_text_are_none() {
        let mail = format!(
            "Subject: order\nContent-Type: multipart/mixed; boundary=m\n\n--m\n{BOTH}--m\nContent-Type: multipart/related; boundary=r\n\n--r\nContent-Type: text/html\n\nx\n--r\nContent-Type: image/png\nContent-ID: <logo>\n\npng\n--r--\n--m\nContent-Type: application/octet-stream; name=order.xml\nContent-Transfer-Encoding: base64\n\nPGEvPg==\n--m\nContent-Type: text/plain; charset=windows-1252\nContent-Disposition: attachment\n\nnote\n--m\nContent-Type: message/rfc822\n\nSubject: within\n\nx\n--m--\n"
        );
        let all: Vec<Message> = messages(mail.as_bytes(), &EACH)
            .unwrap()
            .into_iter()
            .map(Result::unwrap)
            .collect();
        let told: Vec<_> = all
            .iter()
            .map(|one| {
                (
                    one.headers.get("mail.attachment").unwrap(),
                    one.content_type().unwrap(),
                    body(one),
                )
            })
            .collect();
        assert_eq!(
            told[0],
            (
                "order.xml",
                "application/octet-stream",
                String::from("<a/>")
            )
        );
        assert_eq!(
            told[1],
            (
                "attachment-2",
                "text/plain; charset=windows-1252",
                String::from("note")
            )
        );
        assert_eq!(told[2].0, "attachment-3.eml");
        assert_eq!(told.len(), 3);
        assert_eq!(all[0].format(), Some(Format::Xml));
        assert!(
            all.iter()
                .all(|one| one.headers.get("mail.subject") == Some("order"))
        );
        assert_eq!(body(&one(&mail, &IGNORE)), "plain");

        let message = one(&mail, &ALL);
        assert_eq!(body(&message), "plain");
        assert_eq!(message.content_type(), Some("text/plain; charset=utf-8"));
        let told: Vec<_> = message
            .attachments
            .iter()
            .map(|one| {
                (
                    one.name.as_deref(),
                    one.content_type.as_deref().unwrap(),
                    one.content_id.as_deref(),
                    &one.body[..],
                )
            })
            .collect();
        let within: &[u8] = b"Subject: within\n\nx";
        assert_eq!(
            told,
            [
                (None, "image/png", Some("logo"), &b"png"[..]),
                (Some("order.xml"), "application/octet-stream", None, b"<a/>"),
                (None, "text/plain; charset=windows-1252", None, b"note"),
                (None, "message/rfc822", None, within),
            ]
        );
        assert_eq!(message.attachments[1].format(), Some(Format::Xml));
    }

    #[test]
    fn one_message_with_all_attachments_reads_its_text_as_others_do() {
        let none = one("Subject: x\n\nonly text", &ALL);
        assert_eq!(body(&none), "only text");
        assert!(none.attachments.is_empty());
        let mut html = one(BOTH, &ALL);
        assert!(html.attachments.is_empty(), "forms of the text are none");
        html = one(
            BOTH,
            &Reading {
                prefer_html: true,
                ..ALL
            },
        );
        assert_eq!(body(&html), "<p>html</p>");
        // A mail that is a document is its body, one that has a file carries it.
        let document = one("Content-Type: application/xml\n\n<a/>", &ALL);
        assert_eq!(body(&document), "<a/>");
        assert!(document.attachments.is_empty());
        let file = one(
            "Content-Type: image/png; name=\"C:\\\\x\\\\..\\\\a.png\"\n\npng",
            &ALL,
        );
        assert_eq!(body(&file), "");
        assert_eq!(file.attachments.len(), 1);
        assert_eq!(file.attachments[0].name.as_deref(), Some("a.png"));
        for (mail, word) in [
            (
                "Content-Type: application/ms-tnef; name=winmail.dat\n\nx",
                "TNEF",
            ),
            (
                "Content-Type: multipart/mixed; boundary=x\n\n--x\n\ntext\n--x\nContent-Type: image/png\nContent-Transfer-Encoding: base64\n\nAAAAA\n--x--\n",
                "damaged",
            ),
        ] {
            let said = reason(mail, &ALL);
            assert!(said.contains(word), "{mail}: {said}");
        }
    }

    #[test]
    fn a_form_of_the_text_that_nobody_knows_is_no_attachment_in_its_place() {
        let mail = |second: &str| {
            format!(
                "Content-Type: multipart/alternative; boundary=x\n\n--x\n\nplain\n--x\n{second}\n\nother\n--x--\n"
            )
        };
        for second in [
            "Content-Type: application/x-whatever",
            "Content-Type: text/calendar",
        ] {
            assert_eq!(body(&one(&mail(second), &EACH)), "plain", "{second}");
            assert_eq!(one(&mail(second), &ALL).attachments.len(), 1, "{second}");
        }
        // These are meant as attachments, or all that there is.
        for other in [
            mail("Content-Type: text/calendar; name=a.ics"),
            mail("Content-Disposition: attachment\nContent-Type: text/calendar"),
            mail(
                "Content-Type: multipart/mixed; boundary=y\n\n--y\nContent-Type: text/calendar\n\nother\n--y--",
            ),
            mail("Content-Type: text/calendar").replace("--x\n\nplain\n", ""),
        ] {
            assert_eq!(body(&one(&other, &EACH)).trim_end(), "other", "{other}");
        }
    }

    #[test]
    fn text_without_header_or_blank_line_is_the_body() {
        for (mail, text) in [
            ("just text\nand more\n", "just text\nand more\n"),
            ("just text\n\nand: more\n", "just text\n\nand: more\n"),
            (
                "Subject: s\njust text\nnote: this\n",
                "just text\nnote: this\n",
            ),
            ("From x Mon Mar 22\nSubject: s\n\ntext", "text"),
            ("Subject: s\nlost its fold\nTo: a@b.example\n\ntext", "text"),
            ("Subject: s\n", ""),
        ] {
            let message = one(mail, &EACH);
            assert_eq!(body(&message), text, "{mail}");
            let subject = mail.contains("Subject").then_some("s");
            assert_eq!(message.headers.get("mail.subject"), subject, "{mail}");
            assert_eq!(message.headers.get("mail.note"), None, "{mail}");
        }
    }

    #[test]
    fn a_mail_that_is_a_document_is_its_body() {
        let mail = "Content-Type: application/xml\n\n<a/>";
        for reading in [&EACH, &IGNORE] {
            let message = one(mail, reading);
            assert_eq!(
                (body(&message).as_str(), message.format()),
                ("<a/>", Some(Format::Xml))
            );
        }
    }

    #[test]
    fn an_empty_plain_text_gives_way_and_an_ignored_attachment_is_no_text() {
        let mail = "Content-Type: multipart/alternative; boundary=x\n\n--x\n\n \n--x\nContent-Type: text/html\n\n<p>x</p>\n--x--\n";
        assert_eq!(body(&one(mail, &EACH)), "<p>x</p>");
        let mail = "Content-Type: image/png; name=a.png\n\npng";
        assert_eq!(body(&one(mail, &IGNORE)), "");
        assert_eq!(body(&one(mail, &EACH)), "png");
    }

    #[test]
    fn charsets_are_believed_when_they_are_right() {
        let text = |charset: &str, bytes: &[u8]| {
            let mut mail = format!("Content-Type: text/plain{charset}\n\n").into_bytes();
            mail.extend_from_slice(bytes);
            messages(&mail, &EACH)
                .map(|all| body(all[0].as_ref().unwrap()))
                .map_err(|r| r.fault.reason)
        };
        assert_eq!(text("; charset=iso-8859-15", b"\xa4").unwrap(), "€");
        assert_eq!(text("; charset=us-ascii", b"\x80").unwrap(), "€");
        assert_eq!(text("", "ä".as_bytes()).unwrap(), "ä");
        assert!(
            text("; charset=utf-8", b"\xe4 x")
                .unwrap_err()
                .contains("charset")
        );
        assert!(
            text("; charset=klingon-7", b"x")
                .unwrap_err()
                .contains("klingon-7")
        );
    }

    #[test]
    fn what_only_others_can_read_is_refused_with_what_to_do() {
        for (mail, word) in [
            (
                "Content-Type: multipart/encrypted; boundary=x\n\n--x\n\n--x--\n",
                "OpenPGP",
            ),
            (
                "Content-Type: application/pkcs7-mime; smime-type=enveloped-data\n\nx",
                "S/MIME",
            ),
            (
                "Content-Type: application/pkcs7-mime; smime-type=signed-data\n\nx",
                "clear text",
            ),
            (
                "Content-Type: application/ms-tnef; name=winmail.dat\n\nx",
                "TNEF",
            ),
            (
                "Content-Type: application/octet-stream; name=WINMAIL.DAT\n\nx",
                "TNEF",
            ),
            ("Content-Type: message/partial\n\nx", "fragment"),
            ("Content-Type: message/external-body\n\nx", "attach it"),
            ("Subject: x\n\n-----BEGIN PGP MESSAGE-----\nx", "OpenPGP"),
        ] {
            let said = reason(mail, &EACH);
            assert!(said.contains(word), "{mail}: {said}");
        }
        let mail = "Content-Type: multipart/mixed; boundary=x\n\n--x\n\ntext\n--x\nContent-Type: application/ms-tnef\n\nx\n--x--\n";
        assert_eq!(body(&one(mail, &IGNORE)), "text");
        assert!(reason(mail, &EACH).contains("winmail.dat"));
    }

    #[test]
    fn a_signature_is_no_attachment() {
        let mail = "Content-Type: multipart/signed; boundary=x\n\n--x\n\ntext\n--x\nContent-Type: application/pgp-signature; name=signature.asc\n\nsig\n--x--\n";
        assert_eq!(body(&one(mail, &EACH)), "text");
    }

    /// Numbers that look random and are the same each time (xorshift).
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % sides as u64) as usize
        }
    }

    #[test]
    fn torture_is_read_or_refused_with_a_reason() {
        const PIECES: &[&str] = &[
            "\n",
            "\r\n",
            "\n\n",
            ":",
            " ",
            "\t",
            "--",
            "--x",
            "--x--",
            "=",
            "=?utf-8?Q?=E4?=",
            "=?klingon?B?////?=",
            "Subject: ",
            "From: ",
            "From: <",
            "a@b, \"",
            "(((",
            "To: group: a@b;",
            "Date: 99 Foo 20001 99:99:99 +9999",
            "Content-Type: ",
            "multipart/mixed; boundary=x",
            "multipart/alternative; boundary=\"x\"",
            "multipart/signed; boundary=x--",
            "multipart/related; boundary*0=x; boundary*1=",
            "message/rfc822",
            "text/plain; charset=utf-7",
            "text/html; charset=\"gb18030\"",
            "; name*=utf-8''%ff%zz",
            "Content-Transfer-Encoding: ",
            "base64",
            "quoted-printable",
            "x-uuencode",
            "begin 600 x\n",
            "AAAA",
            "====",
            "\u{feff}",
            "\0",
            "\u{1f600}",
            "Content-Disposition: attachment; filename=",
            "Content-ID: <>",
        ];
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let (mut read, mut refused) = (0, 0);
        for _ in 0..4000 {
            let mut mail = Vec::new();
            for _ in 0..dice.roll(60) {
                mail.extend_from_slice(PIECES[dice.roll(PIECES.len())].as_bytes());
                if dice.roll(12) == 0 {
                    mail.push(dice.roll(256) as u8);
                }
            }
            let reading = Reading {
                prefer_html: dice.roll(2) == 0,
                ..[EACH, ALL, IGNORE][dice.roll(3)].clone()
            };
            match messages(&mail, &reading) {
                Ok(all) => {
                    assert!(!all.is_empty());
                    for (name, value) in all.iter().flatten().flat_map(|one| one.headers.iter()) {
                        let shown = String::from_utf8_lossy(&mail);
                        assert!(!value.contains(char::is_control), "{name} in {shown:?}");
                    }
                    read += 1;
                }
                Err(why) => {
                    assert!(!why.fault.reason.is_empty());
                    refused += 1;
                }
            }
        }
        assert!(read > 500 && refused > 50, "{read} read, {refused} refused");
    }

    #[test]
    fn one_damaged_attachment_leaves_the_others() {
        let part = |head: &str, body: &str| {
            format!(
                "--m\nContent-Type: application/xml{head}\nContent-Transfer-Encoding: base64\n\n{body}\n"
            )
        };
        let head = "Subject: s\nContent-Type: multipart/mixed; boundary=m\n\n";
        let (good, bad) = (part("; name=good.xml", "PGEvPg=="), part("", "PGEvP"));
        let mail = format!("{head}{bad}{good}{bad}--m--\n");
        let all = messages(mail.as_bytes(), &EACH).unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!(body(all[1].as_ref().unwrap()), "<a/>");
        for (at, name) in [(0, "attachment-1"), (2, "attachment-3")] {
            let refused = all[at].as_ref().unwrap_err();
            assert!(refused.fault.reason.contains("damaged"), "{refused:?}");
            let header = |name| refused.message.headers.get(name);
            assert_eq!(header("mail.attachment"), Some(name));
            assert_eq!(header("mail.subject"), Some("s"));
        }
        // Alone it is the mail, and with `all` its part.
        assert!(reason(&format!("{head}{bad}--m--\n"), &EACH).contains("damaged"));
        assert!(reason(&mail, &ALL).contains("damaged"));
    }

    #[test]
    fn large_oddities_are_read_in_good_time() {
        let started = std::time::Instant::now();
        let mega = |text: &str| text.repeat((4 << 20) / text.len());
        for mail in [
            mega("Content-Type: message/rfc822\n\n"),
            mega("Content-Type: multipart/mixed; boundary=x\n\n--x\n"),
            format!("Subject: {}", mega("=?utf-8?Q?=E4?= ")),
            format!("From: {}\n\nx", "(\"<,".repeat(60_000)),
            format!("Content-Type: {}\n\nx", "a*0=x; ".repeat(30_000)),
            mega("x: y\n"),
            mega("\n"),
            mega("--x\n"),
            format!(
                "Content-Type: multipart/mixed; boundary=x\n\n{}",
                mega("--y\n")
            ),
            format!(
                "Content-Transfer-Encoding: quoted-printable\n\n{}",
                mega("=")
            ),
            format!("Content-Transfer-Encoding: base64\n\n{}", mega("=A")),
        ] {
            for reading in [&EACH, &ALL] {
                let _ = messages(mail.as_bytes(), reading);
            }
        }
        assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
    }
}
