//! Messages that come as one multipart body, opened: SOAP with Attachments (W3C note of 2000), MTOM
//! (W3C recommendation of 2005), and any other `multipart/related` (RFC 2387) or mixed body. The root
//! becomes the body, byte for byte; every other part becomes an attachment.
//!
//! Absent: `Content-Location`, and headers of parts beside those that an attachment has.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use xbus_core::{Attachment, Attachments, Code, Fault};
use xbus_xml::xop::{self, Include};

use crate::multipart::{self, Part, Typed};
use crate::soap::Version;
use crate::{form, xml};

/// The media type of a root whose octets may stand in other parts.
pub(crate) const XOP: &str = "application/xop+xml";

/// Bodies above this size are opened away from the threads that serve connections.
const OPEN_ASIDE: usize = 256 * 1024;

/// How a root goes with its attachments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// The root is `application/xop+xml`.
    Mtom,
    /// The root has a type of its own.
    Swa,
}

/// What came in one body.
#[derive(Debug)]
pub(crate) struct Opened {
    /// How it was put together; nothing for the fields and files of a form.
    pub(crate) form: Option<Form>,
    /// The content type of the body: with MTOM that of the document that the package means.
    pub(crate) content_type: String,
    pub(crate) body: Bytes,
    pub(crate) attachments: Attachments,
}

/// A content type as it stands in a header.
pub(crate) fn said(headers: &HeaderMap) -> Option<std::borrow::Cow<'_, str>> {
    let value = headers.get(CONTENT_TYPE)?;
    Some(String::from_utf8_lossy(value.as_bytes()))
}

/// Whether a content type is a multipart's.
pub(crate) fn is_multipart(content_type: &str) -> bool {
    let essence = xml::essence(content_type);
    let start = "multipart/";
    essence
        .get(..start.len())
        .is_some_and(|own| own.eq_ignore_ascii_case(start))
}

/// The version of SOAP in a `multipart/related`, as far as its content type says: the type of the
/// root, or with MTOM of what it stands for.
pub(crate) fn version_said(content_type: &str) -> Option<Version> {
    // Few are, and those that are not can be told by their first letter.
    let multipart = matches!(
        content_type.trim_ascii_start().as_bytes(),
        [b'm' | b'M', ..]
    );
    if !multipart || !xml::essence(content_type).eq_ignore_ascii_case("multipart/related") {
        return None;
    }
    let outer = Typed::read(content_type.as_bytes());
    let kind = outer.parameter("type")?;
    match xml::essence(kind).eq_ignore_ascii_case(XOP) {
        true => version_of(outer.parameter("start-info")?),
        false => version_of(kind),
    }
}

/// Whether a `multipart/related` may hold an envelope of `only` (nothing: of any version), as far as
/// its content type says. One that does not say is looked into.
pub(crate) fn may_hold(content_type: &str, only: Option<Version>) -> bool {
    let outer = Typed::read(content_type.as_bytes());
    let fits = |said: &str| {
        version_of(said).is_some_and(|version| only.is_none_or(|only| only == version))
    };
    match outer.parameter("type") {
        None => true,
        Some(kind) if xml::essence(kind).eq_ignore_ascii_case(XOP) => {
            outer.parameter("start-info").is_none_or(fits)
        }
        Some(kind) => fits(kind),
    }
}

fn version_of(content_type: &str) -> Option<Version> {
    let essence = xml::essence(content_type);
    [Version::V11, Version::V12]
        .into_iter()
        .find(|version| essence.eq_ignore_ascii_case(version.media_type()))
}

/// Opens a multipart body. `route`: the charset of a form's fields where they do not say one. `client`
/// when it cannot be read, or refers to what it does not hold.
pub(crate) fn open(content_type: &str, body: &Bytes, route: Option<&str>) -> Result<Opened, Fault> {
    let outer = Typed::read(content_type.as_bytes());
    let parts = multipart::parts(body, multipart::boundary(&outer)?)?;
    match outer.word.as_str() {
        "multipart/form-data" => form::opened(parts, route),
        _ => related(&outer, parts),
    }
}

/// The same, away from the threads that serve connections where it may take long.
pub(crate) async fn open_aside(
    content_type: &str,
    body: Bytes,
    route: Option<&str>,
) -> Result<Opened, Fault> {
    if body.len() <= OPEN_ASIDE {
        return open(content_type, &body, route);
    }
    let (content_type, route) = (content_type.to_owned(), route.map(str::to_owned));
    tokio::task::spawn_blocking(move || open(&content_type, &body, route.as_deref()))
        .await
        .unwrap_or_else(|_| {
            Err(Fault::new(
                Code::Internal,
                "the multipart body was not read",
            ))
        })
}

/// The same, with what the headers say of the body made to say it of the root.
pub(crate) async fn open_in(
    headers: &mut HeaderMap,
    body: Bytes,
    route: Option<&str>,
) -> Result<Opened, Fault> {
    let opened = open_aside(&said(headers).unwrap_or_default(), body, route).await?;
    match HeaderValue::from_bytes(opened.content_type.as_bytes()) {
        Ok(value) => headers.insert(CONTENT_TYPE, value),
        Err(_) => headers.remove(CONTENT_TYPE),
    };
    Ok(opened)
}

fn broken(why: impl std::fmt::Display) -> Fault {
    Fault::new(
        Code::Client,
        format!("the multipart body cannot be read: {why}"),
    )
}

fn related(outer: &Typed, mut parts: Vec<Part>) -> Result<Opened, Fault> {
    let mut known = HashSet::new();
    let ids = parts.iter().filter_map(|part| part.content_id.as_deref());
    if let Some(twice) = ids.into_iter().find(|id| !known.insert(*id)) {
        return Err(broken(format!(
            "two parts have the content id '{}'",
            twice.chars().take(100).collect::<String>()
        )));
    }
    let at = match outer.parameter("start") {
        None => 0,
        Some(start) => {
            let start = start.trim();
            let inner = start
                .strip_prefix('<')
                .and_then(|start| start.strip_suffix('>'));
            let start = inner.unwrap_or(start).trim();
            parts
                .iter()
                .position(|part| part.content_id.as_deref() == Some(start))
                .ok_or_else(|| broken("no part is the one that 'start' names"))?
        }
    };
    let root = parts.remove(at);
    if root.content_type.as_deref().is_some_and(is_multipart) {
        return Err(broken("its root is a multipart itself"));
    }
    let (form, content_type) = root_type(outer, &root);
    let attachments: Attachments = parts.into_iter().map(attachment).collect();
    if form == Form::Mtom {
        no_loose_ends(&content_type, &root.body, &attachments)?;
    }
    Ok(Opened {
        form: Some(form),
        content_type,
        body: root.body,
        attachments,
    })
}

fn attachment(part: Part) -> Attachment {
    Attachment {
        name: part.file_name().map(Arc::from),
        content_type: part.content_type.map(Arc::from),
        content_id: part.content_id.map(Arc::from),
        body: part.body,
    }
}

/// What the body is: the root's own content type. With MTOM that of what it stands for, which `type`
/// of the root says (XOP section 5), else `start-info` of the whole. The SOAP action goes along
/// wherever it stands.
fn root_type(outer: &Typed, root: &Part) -> (Form, String) {
    let own = root.content_type.as_deref();
    let typed = Typed::read(own.unwrap_or_default().as_bytes());
    let info = Typed::read(outer.parameter("start-info").unwrap_or_default().as_bytes());
    let mut action = outer
        .parameter("action")
        .or_else(|| info.parameter("action"));
    if typed.word != XOP {
        let mut content_type = own
            .or_else(|| outer.parameter("type"))
            .unwrap_or("text/plain")
            .to_owned();
        if typed.parameter("action").is_none() && typed.word == Version::V12.media_type() {
            push_action(&mut content_type, action);
        }
        return (Form::Swa, content_type);
    }
    let meant = Typed::read(typed.parameter("type").unwrap_or_default().as_bytes());
    action = meant
        .parameter("action")
        .or_else(|| typed.parameter("action"))
        .or(action);
    let word = [meant.word.as_str(), info.word.as_str()]
        .into_iter()
        .find(|word| word.contains('/'))
        .unwrap_or(Version::V11.media_type());
    let mut content_type = word.to_owned();
    if let Some(charset) = typed.parameter("charset").or(meant.parameter("charset")) {
        content_type.push_str("; charset=");
        content_type.push_str(charset);
    }
    if word == Version::V12.media_type() {
        push_action(&mut content_type, action);
    }
    (Form::Mtom, content_type)
}

fn push_action(content_type: &mut String, action: Option<&str>) {
    let fits =
        |action: &&str| !action.contains(['"', '\\']) && !action.chars().any(char::is_control);
    if let Some(action) = action.filter(fits) {
        content_type.push_str("; action=\"");
        content_type.push_str(action);
        content_type.push('"');
    }
}

/// Every `xop:Include` refers to a part that is there (XOP section 3.2). What is no document is left
/// to those who say so in better words.
fn no_loose_ends(content_type: &str, body: &[u8], attachments: &Attachments) -> Result<(), Fault> {
    let charset = xbus_charset::label(content_type);
    let Ok(text) = xbus_charset::decode(body, charset, true) else {
        return Ok(());
    };
    let includes = xop::includes(&text).unwrap_or_default();
    match loose_end(&includes, attachments) {
        Some(why) => Err(broken(why)),
        None => Ok(()),
    }
}

/// Attachments of so many bytes together may be referred to as often as a document likes.
const SMALL: usize = 64 * 1024;

/// Why a document's references cannot be followed, where they cannot.
pub(crate) fn loose_end(includes: &[Include], attachments: &Attachments) -> Option<String> {
    // What takes the place of the references is to be no larger than what was sent, by and large.
    let mut room = attachments.size() + SMALL;
    includes
        .iter()
        .find_map(|include| match &include.content_id {
            None => Some("an xop:Include has no href with a cid: address".to_owned()),
            Some(id) => match attachments.by_content_id(id) {
                None => Some(format!(
                    "an xop:Include refers to '{}', which no attachment has as its content id",
                    id.chars().take(100).collect::<String>()
                )),
                Some(attachment) => match room.checked_sub(attachment.body.len()) {
                    Some(left) => {
                        room = left;
                        None
                    }
                    None => Some(
                        "its xop:Include elements refer to the same attachments again and again"
                            .to_owned(),
                    ),
                },
            },
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTER: &str = "multipart/related; boundary=b; type=\"application/xop+xml\"; \
                         start=\"<root@x>\"; start-info=\"application/soap+xml\"; action=\"urn:outer\"";

    fn package(root_type: &str, root: &str) -> Bytes {
        format!(
            "--b\r\nContent-ID: <one@x>\r\nContent-Type: image/png\r\n\
             Content-Disposition: attachment; filename=\"a.png\"\r\n\r\n\u{1}\u{2}\r\n\
             --b\r\nContent-Type: {root_type}\r\nContent-ID: <root@x>\r\n\r\n{root}\r\n--b--\r\n"
        )
        .into()
    }

    #[test]
    fn references_do_not_multiply_what_was_sent() {
        let attachment = |size: usize| Attachment {
            content_id: Some("a".into()),
            body: vec![0; size].into(),
            ..Attachment::default()
        };
        let includes = vec![
            Include {
                range: 0..1,
                content_id: Some("a".into()),
            };
            3
        ];
        let small = Attachments::from(vec![attachment(1000)]);
        assert_eq!(loose_end(&includes, &small), None);
        let large = Attachments::from(vec![attachment(100_000)]);
        assert_eq!(loose_end(&includes[..1], &large), None);
        let why = loose_end(&includes, &large).expect("refused");
        assert!(why.contains("again and again"), "{why}");
    }

    #[test]
    fn the_root_becomes_the_body_and_the_rest_attachments() {
        let include = format!(
            "<a xmlns:x=\"{}\"><x:Include href=\"cid:one%40x\"/></a>",
            xop::NAMESPACE
        );
        let kind = "application/xop+xml; charset=UTF-8; type=\"application/soap+xml; action=\\\"urn:a\\\"\"";
        let opened = open(OUTER, &package(kind, &include), None).unwrap();
        assert_eq!(opened.form, Some(Form::Mtom));
        assert_eq!(
            opened.content_type,
            "application/soap+xml; charset=UTF-8; action=\"urn:a\""
        );
        assert_eq!(opened.body, include);
        let one = &opened.attachments[0];
        assert_eq!(opened.attachments.len(), 1);
        assert_eq!(one.name.as_deref(), Some("a.png"));
        assert_eq!(one.content_type.as_deref(), Some("image/png"));
        assert_eq!(one.content_id.as_deref(), Some("one@x"));
        assert_eq!(one.body, "\u{1}\u{2}");
    }

    #[test]
    fn content_types_of_roots() {
        for (outer, root, expected) in [
            (
                OUTER,
                "application/xop+xml",
                "application/soap+xml; action=\"urn:outer\"",
            ),
            (
                OUTER,
                "Application/XOP+xml; type=\"text/xml\"; charset=iso-8859-1",
                "text/xml; charset=iso-8859-1",
            ),
            (OUTER, "text/xml; charset=UTF-8", "text/xml; charset=UTF-8"),
            (
                OUTER,
                "application/soap+xml; charset=UTF-8",
                "application/soap+xml; charset=UTF-8; action=\"urn:outer\"",
            ),
            (
                "multipart/related; boundary=b; start=\"<root@x>\"",
                "application/xop+xml",
                "text/xml",
            ),
        ] {
            let opened = open(outer, &package(root, "<a/>"), None).unwrap();
            assert_eq!(opened.content_type, expected, "{root}");
        }
        let bare = Bytes::from_static(b"--b\r\n\r\n<a/>\r\n--b--");
        let opened = open(
            "multipart/related; boundary=b; type=\"text/xml\"",
            &bare,
            None,
        )
        .unwrap();
        assert_eq!(opened.content_type, "text/xml");
    }

    #[test]
    fn what_refers_to_nothing_is_refused() {
        let refused = |outer: &str, body: &Bytes| open(outer, body, None).unwrap_err().reason;
        let body = package("text/xml", "<a/>");
        let other = OUTER.replace("root@x", "gone@x");
        assert!(refused(&other, &body).contains("'start'"));
        let twice = String::from_utf8(body.to_vec())
            .unwrap()
            .replace("<root@x>", "<one@x>");
        let reason = refused("multipart/related; boundary=b", &twice.into());
        assert!(
            reason.contains("two parts have the content id 'one@x'"),
            "{reason}"
        );
        for href in ["cid:gone", "http://x/"] {
            let include = format!(
                "<a xmlns:x=\"{}\"><x:Include href=\"{href}\"/></a>",
                xop::NAMESPACE
            );
            let reason = refused(OUTER, &package(XOP, &include));
            assert!(reason.contains("xop:Include"), "{reason}");
        }
    }

    #[test]
    fn versions_are_said_by_the_head() {
        for (content_type, version, only_11) in [
            (
                "multipart/related; type=\"text/xml\"",
                Some(Version::V11),
                true,
            ),
            (
                "multipart/related; type=\"application/soap+xml\"",
                Some(Version::V12),
                false,
            ),
            (OUTER, Some(Version::V12), false),
            (
                "multipart/related; type=\"application/xop+xml\"",
                None,
                true,
            ),
            ("multipart/related", None, true),
            ("multipart/related; type=\"text/html\"", None, false),
        ] {
            assert_eq!(version_said(content_type), version, "{content_type}");
            assert_eq!(
                may_hold(content_type, Some(Version::V11)),
                only_11,
                "{content_type}"
            );
        }
        assert_eq!(version_said("text/xml; type=\"text/xml\""), None);
    }
}
