//! Messages with attachments as one body: `multipart/related` (RFC 2387) as MTOM or as SOAP with
//! Attachments, or the attachments put back into the document as base64 text.
//!
//! The same message always becomes the same octets, so that every attempt sends what the first did.
//! Absent: making attachments of base64 text, and any transfer encoding: HTTP carries octets.

use std::collections::HashSet;
use std::fmt::Write as _;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use memchr::memmem;
use xbus_core::{Attachment, Attachments, Code, Fault, Message, MessageId, long};
use xbus_xml::xop;

use crate::package::{Form, XOP, is_multipart, loose_end};
use crate::soap::Version;
use crate::{splice, xml};

/// The content type of an attachment that says none.
pub(crate) const OCTETS: &str = "application/octet-stream";

/// Says that a body is built as MIME says (RFC 2045 section 4); SOAP with Attachments shows it, and
/// old services ask for it.
const MIME_VERSION: HeaderValue = HeaderValue::from_static("1.0");

/// What a route says of attachments that it sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Attach {
    Mtom,
    Swa,
    Inline,
    Form,
    /// Not at all.
    Left,
}

impl Attach {
    /// The way that one of the words stands for.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "mtom" => Attach::Mtom,
            "swa" => Attach::Swa,
            "inline" => Attach::Inline,
            "form" => Attach::Form,
            "none" => Attach::Left,
            _ => return None,
        })
    }
}

/// A body that holds a message and what it carries.
pub(crate) struct Packed {
    pub(crate) content_type: String,
    /// Where in the body the text of its root begins, behind a byte order mark.
    pub(crate) root: usize,
    pub(crate) body: Bytes,
}

/// A SOAP message that is ready but for its attachments.
pub(crate) struct Root<'a> {
    pub(crate) version: Version,
    pub(crate) action: Option<&'a str>,
    pub(crate) content_type: &'a str,
    pub(crate) body: &'a Bytes,
}

fn cannot(detail: impl Into<String>) -> Fault {
    Fault::new(Code::Transform, "the attachments cannot be sent").detail(detail)
}

impl Packed {
    /// Says in headers what the body is.
    pub(crate) fn describe(&self, headers: &mut HeaderMap) -> Result<(), Fault> {
        let value = HeaderValue::from_bytes(self.content_type.as_bytes())
            .map_err(|_| cannot("the content type of the whole holds a control character"))?;
        headers.insert(CONTENT_TYPE, value);
        if is_multipart(&self.content_type) {
            headers.insert(HeaderName::from_static("mime-version"), MIME_VERSION);
        }
        Ok(())
    }
}

/// A SOAP message with its attachments; nothing when it goes as it is. `usual` is how it is put
/// together where neither the route nor the envelope says it: SwA when that says nothing either.
pub(crate) fn soap(
    attach: Option<Attach>,
    usual: Option<Form>,
    message: &Message,
    root: &Root<'_>,
) -> Result<Option<Packed>, Fault> {
    let attached: usize = message.attachments.iter().map(|one| one.body.len()).sum();
    long::over(root.body.len() + attached, long::PASSED, || {
        together(attach, usual, message, root)
    })
}

fn together(
    attach: Option<Attach>,
    usual: Option<Form>,
    message: &Message,
    root: &Root<'_>,
) -> Result<Option<Packed>, Fault> {
    let attachments = &message.attachments;
    let form = match attach {
        Some(Attach::Left) => return Ok(None),
        Some(Attach::Inline) => return inline(attachments, root),
        // Services that speak MTOM may take nothing else.
        Some(Attach::Mtom) => Form::Mtom,
        _ if attachments.is_empty() => return Ok(None),
        Some(_) => Form::Swa,
        None => form_of(root.content_type, root.body)
            .or(usual)
            .unwrap_or(Form::Swa),
    };
    related(form, message.id, attachments, root).map(Some)
}

/// MTOM where a document refers to attachments as XOP does; nothing where it does not.
fn form_of(content_type: &str, body: &[u8]) -> Option<Form> {
    let charset = xbus_charset::label(content_type);
    let text = xbus_charset::decode(body, charset, true).ok()?;
    let includes = xop::includes(&text).ok()?;
    (!includes.is_empty()).then_some(Form::Mtom)
}

/// A message whose root is SOAP.
pub(crate) fn related(
    form: Form,
    id: MessageId,
    attachments: &Attachments,
    root: &Root<'_>,
) -> Result<Packed, Fault> {
    let media_type = root.version.media_type();
    let mut outer = String::new();
    let mut root_type = root.content_type.to_owned();
    match form {
        Form::Mtom => {
            let charset = xbus_charset::label(root.content_type);
            if let Ok(text) = xbus_charset::decode(root.body, charset, true)
                && let Ok(includes) = xop::includes(&text)
                && let Some(why) = loose_end(&includes, attachments)
            {
                return Err(cannot(why));
            }
            // MTOM section 4.3, and the parameters of RFC 2387 as SOAP stacks write them.
            let _ = write!(outer, "; type=\"{XOP}\"; start-info=\"{media_type}\"");
            root_type = XOP.to_owned();
            if let Some(charset) = charset {
                let _ = write!(root_type, "; charset={charset}");
            }
            let _ = write!(root_type, "; type=\"{media_type}\"");
        }
        Form::Swa => {
            let _ = write!(outer, "; type=\"{media_type}\"");
        }
    }
    if let (Version::V12, Some(action)) = (root.version, root.action) {
        let _ = write!(outer, "; action=\"{action}\"");
    }
    multipart(id, &outer, &root_type, root.body, attachments)
}

/// A message whose root is anything.
pub(crate) fn plain(
    id: MessageId,
    attachments: &Attachments,
    content_type: &str,
    body: &Bytes,
) -> Result<Packed, Fault> {
    let outer = format!("; type=\"{}\"", xml::essence(content_type));
    check_type(Some(content_type))?;
    multipart(id, &outer, content_type, body, attachments)
}

fn multipart(
    id: MessageId,
    parameters: &str,
    root_type: &str,
    root: &Bytes,
    attachments: &Attachments,
) -> Result<Packed, Fault> {
    let mut taken = HashSet::new();
    for content_id in attachments
        .iter()
        .filter_map(|one| one.content_id.as_deref())
    {
        check_id(content_id)?;
        if !taken.insert(content_id) {
            return Err(cannot(format!(
                "two attachments have the content id '{content_id}'"
            )));
        }
    }
    let bodies = attachments.iter().map(|one| one.body.as_ref());
    let boundary = boundary(id, std::iter::once(root.as_ref()).chain(bodies));
    let own_id = |what: &str, number: usize| {
        let mut own = format!("{what}{number}.{id}@xbus");
        while taken.contains(own.as_str()) {
            own.insert(0, 'x');
        }
        own
    };
    let start = own_id("root", 0);
    let mut out =
        BytesMut::with_capacity(root.len() + attachments.size() + 512 * (attachments.len() + 1));
    let mut part = |head: &str, content: &[u8]| {
        out.put_slice(b"--");
        out.put_slice(boundary.as_bytes());
        out.put_slice(b"\r\n");
        out.put_slice(head.as_bytes());
        out.put_slice(b"Content-Transfer-Encoding: binary\r\n\r\n");
        let at = out.len();
        out.put_slice(content);
        out.put_slice(b"\r\n");
        at
    };
    let root_at = part(
        &format!("Content-Type: {root_type}\r\nContent-ID: <{start}>\r\n"),
        root,
    );
    for (number, attachment) in attachments.iter().enumerate() {
        let generated;
        let content_id = match attachment.content_id.as_deref() {
            Some(id) => id,
            None => {
                generated = own_id("part", number + 1);
                &generated
            }
        };
        part(&head(attachment, content_id)?, &attachment.body);
    }
    out.put_slice(format!("--{boundary}--\r\n").as_bytes());
    Ok(Packed {
        content_type: format!(
            "multipart/related{parameters}; start=\"<{start}>\"; boundary=\"{boundary}\""
        ),
        root: root_at + splice::mark(root),
        body: out.freeze(),
    })
}

fn head(attachment: &Attachment, content_id: &str) -> Result<String, Fault> {
    let content_type = attachment.content_type.as_deref();
    check_type(content_type)?;
    let mut head = format!(
        "Content-Type: {}\r\nContent-ID: <{content_id}>\r\n",
        content_type.unwrap_or(OCTETS)
    );
    if let Some(name) = attachment.name.as_deref() {
        head.push_str("Content-Disposition: attachment; filename");
        let plain = name
            .bytes()
            .all(|c| matches!(c, b' '..=b'~') && !matches!(c, b'"' | b'\\'));
        match plain {
            true => {
                let _ = write!(head, "=\"{name}\"");
            }
            // RFC 2231 section 4.
            false => {
                head.push_str("*=UTF-8''");
                for c in name.bytes() {
                    let _ = match c {
                        b'-' | b'.' | b'_' | b'~' => write!(head, "{}", char::from(c)),
                        c if c.is_ascii_alphanumeric() => write!(head, "{}", char::from(c)),
                        c => write!(head, "%{c:02X}"),
                    };
                }
            }
        }
        head.push_str("\r\n");
    }
    Ok(head)
}

/// Whether a content type can stand in a part's head.
pub(crate) fn check_type(content_type: Option<&str>) -> Result<(), Fault> {
    match content_type {
        Some(text) if text.chars().any(char::is_control) => Err(cannot(
            "the content type of an attachment holds a control character",
        )),
        _ => Ok(()),
    }
}

fn check_id(content_id: &str) -> Result<(), Fault> {
    let bad = |c: char| c.is_control() || matches!(c, '<' | '>');
    if content_id.is_empty() || content_id.trim() != content_id || content_id.contains(bad) {
        return Err(cannot(
            "the content id of an attachment is empty, or holds an angle bracket, a control \
             character, or white space at an end",
        ));
    }
    Ok(())
}

/// A boundary that stands nowhere in what it divides; the same each time.
pub(crate) fn boundary<'a>(
    id: MessageId,
    contents: impl Iterator<Item = &'a [u8]> + Clone,
) -> String {
    let mut boundary = format!("=_xbus_{id}");
    let mut number = 0;
    loop {
        let finder = memmem::Finder::new(&boundary);
        if contents
            .clone()
            .all(|content| finder.find(content).is_none())
        {
            return boundary;
        }
        number += 1;
        boundary = format!("=_xbus_{id}_{number}");
    }
}

/// The document with its attachments in it, where it refers to them as XOP does. One that nothing
/// refers to has no place in it.
fn inline(attachments: &Attachments, root: &Root<'_>) -> Result<Option<Packed>, Fault> {
    let charset = xbus_charset::label(root.content_type);
    let is_utf8 = xbus_charset::is_utf8(root.body, charset);
    let text = xbus_charset::decode(root.body, charset, true)
        .map_err(|error| cannot(error.to_string()))?;
    // A declaration would name the charset that the text leaves.
    let text = match is_utf8 {
        true => &text,
        false => xml::without_prolog(&text).map_err(cannot)?,
    };
    let includes = xop::includes(text).map_err(cannot)?;
    if attachments.is_empty() && includes.is_empty() {
        return Ok(None);
    }
    if let Some(why) = loose_end(&includes, attachments) {
        return Err(cannot(why));
    }
    let mut used = HashSet::new();
    let made = xop::replaced(text, &includes, |include, out| {
        let attachment = include.content_id.as_deref().and_then(|id| {
            attachments
                .iter()
                .position(|one| one.content_id.as_deref() == Some(id))
        });
        if let Some(at) = attachment {
            used.insert(at);
            BASE64_STANDARD.encode_string(&attachments[at].body, out);
        }
    });
    if let Some(at) = (0..attachments.len()).find(|at| !used.contains(at)) {
        return Err(cannot(format!(
            "the body does not refer to attachment {}, which 'attach: inline' has no place for",
            at + 1
        )));
    }
    let mut content_type = format!("{}; charset=utf-8", root.version.media_type());
    if let (Version::V12, Some(action)) = (root.version, root.action) {
        let _ = write!(content_type, "; action=\"{action}\"");
    }
    Ok(Some(Packed {
        content_type,
        root: 0,
        body: made.into(),
    }))
}
