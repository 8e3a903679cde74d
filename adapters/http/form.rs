//! Forms with files: `multipart/form-data` (RFC 7578) opened and made.
//!
//! The fields are the body, as `application/x-www-form-urlencoded` in UTF-8; the files are the
//! attachments, each with its field's name as content id.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use xbus_charset::{CHARSET_FIELD, Charset};
use xbus_core::{Attachment, Attachments, Code, Fault, Format, Message};

use crate::multipart::Part;
use crate::pack::{self, Packed};
use crate::package::Opened;
use crate::xml;

/// The field of a file that has no name for it.
const FILE: &str = "file";
/// The field of a body that is no form.
const BODY: &str = "body";

/// Takes the fields and the files of a form. A field is in the charset of its own content type, else in
/// the one that the field `_charset_` names (RFC 7578 section 4.6), else in that of the `route`, else in
/// UTF-8. `client` when a part does not say which field it is, or is not in its charset.
pub(crate) fn opened(parts: Vec<Part>, route: Option<&str>) -> Result<Opened, Fault> {
    let mut fields = String::new();
    let named = parts
        .iter()
        .find(|part| part.disposition.parameter("name") == Some(CHARSET_FIELD))
        .and_then(|part| std::str::from_utf8(&part.body).ok())
        .map(str::trim)
        .filter(|label| !label.is_empty())
        .map(str::to_owned);
    let usual = named.as_deref().or(route).unwrap_or("utf-8");
    let mut files = Vec::new();
    for part in parts {
        let Some(field) = part.disposition.parameter("name") else {
            return Err(Fault::new(
                Code::Client,
                "the multipart body cannot be read: a part of the form does not name its field",
            ));
        };
        let file_name = part.file_name();
        let essence = part.content_type.as_deref().map(xml::essence);
        let is_text = essence.is_none_or(|essence| {
            essence
                .get(..5)
                .is_some_and(|start| start.eq_ignore_ascii_case("text/"))
        });
        if file_name.is_none() && is_text {
            if !fields.is_empty() {
                fields.push('&');
            }
            encode_into(&mut fields, field.as_bytes());
            fields.push('=');
            if field == CHARSET_FIELD && named.is_some() {
                fields.push_str("UTF-8");
                continue;
            }
            let own = part.content_type.as_deref();
            let label = own.and_then(xbus_charset::label).unwrap_or(usual);
            let text = Charset::by_label(label)
                .and_then(|charset| charset.decode(&part.body))
                .map_err(|error| unreadable(&format!("field '{}'", shown(field)), &error))?;
            encode_into(&mut fields, text.as_bytes());
        } else if file_name.is_some() || !part.body.is_empty() {
            // What is left out is how browsers send a field for a file that nobody chose.
            files.push(Attachment {
                name: file_name.map(Arc::from),
                content_id: Some(field.into()),
                content_type: part.content_type.clone().map(Arc::from),
                body: part.body,
            });
        }
    }
    Ok(Opened {
        form: None,
        // Said only where the route would else say another one.
        content_type: match route {
            Some(_) => format!("{}; charset=utf-8", Format::Form.media_type()),
            None => Format::Form.media_type().to_owned(),
        },
        body: fields.into(),
        attachments: Attachments::from(files),
    })
}

fn unreadable(what: &str, error: &xbus_charset::Error) -> Fault {
    Fault::new(
        Code::Client,
        format!("the multipart body cannot be read: {what}: {error}"),
    )
}

/// A name for a message: on one line, and no longer than that.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(100).collect()
}

/// The serializer of the WHATWG URL standard (section 5.2).
fn encode_into(out: &mut String, octets: &[u8]) {
    for &c in octets {
        match c {
            b' ' => out.push('+'),
            b'*' | b'-' | b'.' | b'_' => out.push(c.into()),
            c if c.is_ascii_alphanumeric() => out.push(c.into()),
            c => {
                const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                out.push('%');
                out.push(DIGITS[usize::from(c >> 4)].into());
                out.push(DIGITS[usize::from(c & 15)].into());
            }
        }
    }
}

/// A message as a form with files: the fields of a body that is a form, any other body as the field
/// `body`, and each attachment as a file.
pub(crate) fn packed(message: &Message) -> Result<Packed, Fault> {
    let body = message.body.bytes();
    let fields: Vec<(String, String)> = match message.format() {
        Some(Format::Form) => fields_of(message).map_err(|error| {
            Fault::new(Code::Transform, "the form to be sent cannot be read")
                .detail(format!("the form to be sent cannot be read: {error}"))
        })?,
        _ => Vec::new(),
    };
    let contents = std::iter::once(body.as_ref())
        .chain(fields.iter().map(|(_, value)| value.as_bytes()))
        .chain(message.attachments.iter().map(|one| one.body.as_ref()));
    let boundary = pack::boundary(message.id, contents);
    let mut out = BytesMut::with_capacity(body.len() + message.attachments.size() + 1024);
    let mut field = |name: &str, file: Option<&str>, content_type: Option<&str>, content: &[u8]| {
        let mut head = format!("--{boundary}\r\nContent-Disposition: form-data; name=\"");
        quote_into(&mut head, name);
        head.push('"');
        if let Some(file) = file {
            head.push_str("; filename=\"");
            quote_into(&mut head, file);
            head.push('"');
        }
        head.push_str("\r\n");
        if let Some(content_type) = content_type {
            head.push_str("Content-Type: ");
            head.push_str(content_type);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        out.put_slice(head.as_bytes());
        out.put_slice(content);
        out.put_slice(b"\r\n");
    };
    if message.format() == Some(Format::Form) {
        for (name, value) in &fields {
            field(name, None, None, value.as_bytes());
        }
    } else if !body.is_empty() {
        let own = message.content_type();
        let content_type = own.or_else(|| message.format.map(Format::media_type));
        pack::check_type(content_type)?;
        field(BODY, None, content_type, body);
    }
    for attachment in message.attachments.iter() {
        let content_type = attachment.content_type.as_deref();
        pack::check_type(content_type)?;
        field(
            attachment.content_id.as_deref().unwrap_or(FILE),
            // Without a name for it no server takes it for a file.
            Some(attachment.name.as_deref().unwrap_or(FILE)),
            Some(content_type.unwrap_or(pack::OCTETS)),
            &attachment.body,
        );
    }
    out.put_slice(format!("--{boundary}--\r\n").as_bytes());
    Ok(Packed {
        content_type: format!("multipart/form-data; boundary=\"{boundary}\""),
        root: 0,
        body: Bytes::from(out),
    })
}

fn fields_of(message: &Message) -> Result<Vec<(String, String)>, xbus_charset::Error> {
    let label = message.content_type().and_then(xbus_charset::label);
    xbus_charset::form_pairs(&xbus_charset::text(message, false)?, label)?.collect()
}

/// As browsers write names (HTML standard, section 4.10.21.8).
fn quote_into(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '"' => out.push_str("%22"),
            '\r' => out.push_str("%0D"),
            '\n' => out.push_str("%0A"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::open;

    #[test]
    fn fields_are_the_body_and_files_the_attachments() {
        let body = Bytes::from_static(
            "--b\r\nContent-Disposition: form-data; name=\"no 1\"\r\n\r\na&b = é\r\n\
             --b\r\nContent-Disposition: form-data; name=\"scan\"; filename=\"é 1.pdf\"\r\n\
             Content-Type: application/pdf\r\n\r\n%PDF\r\n\
             --b\r\nContent-Disposition: form-data; name=\"scan\"; filename=\"2.txt\"\r\n\r\n2\r\n\
             --b\r\nContent-Disposition: form-data; name=\"none\"; filename=\"\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n\r\n\
             --b\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\n\r\n--b--\r\n"
                .as_bytes(),
        );
        let opened = open("multipart/form-data; boundary=b", &body, None).unwrap();
        assert_eq!(opened.body, "no+1=a%26b+%3D+%C3%A9&x=");
        assert_eq!(opened.content_type, "application/x-www-form-urlencoded");
        let names: Vec<_> = opened
            .attachments
            .iter()
            .map(|one| one.name.clone())
            .collect();
        assert_eq!(names, [Some("é 1.pdf".into()), Some("2.txt".into())]);
        assert_eq!(opened.attachments[0].content_id.as_deref(), Some("scan"));
        assert_eq!(opened.attachments[0].body, "%PDF");

        let mut message = Message::new(opened.body.clone());
        message.headers.set("content-type", &opened.content_type);
        message.attachments = opened.attachments.clone();
        let packed = packed(&message).unwrap();
        let again = open(&packed.content_type, &packed.body, None).unwrap();
        assert_eq!(again.body, opened.body);
        let mut expected = opened.attachments.to_vec();
        expected[1].content_type = Some(pack::OCTETS.into());
        assert_eq!(again.attachments.to_vec(), expected);
    }

    #[test]
    fn fields_are_read_in_their_charsets() {
        let field = |name: &str, more: &str, octets: &[u8]| {
            let head =
                format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"{more}\r\n\r\n");
            [head.as_bytes(), octets, b"\r\n"].concat()
        };
        let form =
            |fields: &[Vec<u8>]| Bytes::from([fields.concat(), b"--b--\r\n".to_vec()].concat());
        let outer = "multipart/form-data; boundary=b";
        let own = field(
            "a",
            "\r\nContent-Type: text/plain; charset=iso-8859-1",
            b"\xe9",
        );
        let plain = field("b", "", b"\xcf");
        let said = field("_charset_", "", b"windows-1251");
        for (fields, route, body) in [
            (vec![own.clone()], None, "a=%C3%A9"),
            (
                vec![own.clone(), plain.clone(), said.clone()],
                Some("utf-8"),
                "a=%C3%A9&b=%D0%9F&_charset_=UTF-8",
            ),
            (vec![plain.clone()], Some("iso-8859-1"), "b=%C3%8F"),
            (vec![field("c", "", "é".as_bytes())], None, "c=%C3%A9"),
        ] {
            let opened = open(outer, &form(&fields), route).unwrap();
            assert_eq!(opened.body, body);
            assert_eq!(
                opened.content_type.contains("charset=utf-8"),
                route.is_some()
            );
        }
        let refused = open(outer, &form(&[plain]), None).unwrap_err().reason;
        assert!(
            refused.contains("field 'b'") && refused.contains("UTF-8"),
            "{refused}"
        );
        let unknown = field("_charset_", "", b"klingon");
        assert!(
            open(outer, &form(&[unknown, own.clone()]), None).is_ok(),
            "nothing is in it"
        );

        let mut message = Message::new("a=%E9&b=%80");
        message.headers.set(
            "content-type",
            "application/x-www-form-urlencoded; charset=windows-1252",
        );
        let packed = packed(&message).unwrap();
        assert_eq!(
            open(&packed.content_type, &packed.body, None).unwrap().body,
            "a=%C3%A9&b=%E2%82%AC"
        );
    }

    #[test]
    fn names_cannot_add_headers_and_fields_have_names() {
        let mut message = Message::new("x");
        message.headers.set("content-type", "text/plain");
        message.attachments = vec![Attachment {
            name: Some("a\"\r\nX: y".into()),
            ..Attachment::default()
        }]
        .into();
        let packed = packed(&message).unwrap();
        let text = String::from_utf8(packed.body.to_vec()).unwrap();
        assert!(
            text.contains("name=\"file\"; filename=\"a%22%0D%0AX: y\"\r\n"),
            "{text}"
        );
        assert!(
            text.contains("name=\"body\"\r\nContent-Type: text/plain\r\n\r\nx\r\n"),
            "{text}"
        );
        let nameless = Bytes::from_static(b"--b\r\n\r\nx\r\n--b--");
        assert!(open("multipart/form-data; boundary=b", &nameless, None).is_err());
    }
}
