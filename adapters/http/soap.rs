//! SOAP envelopes: which version one has, and what its body holds.
//!
//! The look at an envelope stops at the first element of its Body; nothing is built, and copied is
//! only what WS-Addressing and WS-Security say. Absent: what those headers mean (see
//! `addressing` and `security`).

use std::fmt;
use std::ops::Range;

use http::StatusCode;
use memchr::memmem;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::{PrefixDeclaration, ResolveResult};
use quick_xml::reader::NsReader;
use xbus_core::long;
use xbus_xml::reader::{namespaced, said};

use crate::addressing::{self, Addressed};
use crate::security;
use crate::xml;

/// Namespace of SOAP 1.1 envelopes.
pub const NS_11: &str = "http://schemas.xmlsoap.org/soap/envelope/";
/// Namespace of SOAP 1.2 envelopes.
pub const NS_12: &str = "http://www.w3.org/2003/05/soap-envelope";

/// A look at the first so many bytes is enough for most envelopes.
const FIRST_LOOK: usize = 4096;

/// A version of SOAP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// SOAP 1.1 (W3C note of 2000).
    V11,
    /// SOAP 1.2 (W3C recommendation of 2007).
    V12,
}

impl Version {
    /// The envelope's namespace.
    pub fn namespace(self) -> &'static str {
        match self {
            Version::V11 => NS_11,
            Version::V12 => NS_12,
        }
    }

    /// The media type of its messages.
    pub fn media_type(self) -> &'static str {
        match self {
            Version::V11 => "text/xml",
            Version::V12 => "application/soap+xml",
        }
    }

    /// The content type of a message in UTF-8.
    pub fn content_type(self) -> &'static str {
        match self {
            Version::V11 => "text/xml; charset=utf-8",
            Version::V12 => "application/soap+xml; charset=utf-8",
        }
    }

    /// The version that `1.1` or `1.2` stands for.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "1.1" => Some(Version::V11),
            "1.2" => Some(Version::V12),
            _ => None,
        }
    }

    /// The version whose messages have the media type of `content_type`.
    pub(crate) fn of_type(content_type: &str) -> Option<Self> {
        let essence = xml::essence(content_type);
        [Version::V11, Version::V12]
            .into_iter()
            .find(|version| essence.eq_ignore_ascii_case(version.media_type()))
    }

    fn of_namespace(namespace: &str) -> Option<Self> {
        match namespace {
            NS_11 => Some(Version::V11),
            NS_12 => Some(Version::V12),
            _ => None,
        }
    }
}

/// A name with its namespace; the latter is empty for names in none.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Name {
    /// Namespace.
    pub namespace: String,
    /// Local name.
    pub local: String,
}

impl Name {
    /// Reads `{namespace}local` or `local`.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, local) = match text.strip_prefix('{') {
            Some(rest) => rest.split_once('}')?,
            None => ("", text),
        };
        (!local.is_empty() && !local.contains([':', '{', '}', ' '])).then(|| Self {
            namespace: namespace.to_owned(),
            local: local.to_owned(),
        })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.local)
        } else {
            write!(f, "{{{}}}{}", self.namespace, self.local)
        }
    }
}

/// Who is meant by a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultSide {
    /// Client (1.1), Sender (1.2).
    Sender,
    /// The sender as well, for what is wrong with the envelope itself: VersionMismatch,
    /// MustUnderstand, DataEncodingUnknown.
    Envelope,
    /// Server (1.1), Receiver (1.2).
    Receiver,
}

/// What an envelope is seen to be.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Envelope {
    pub(crate) version: Option<Version>,
    /// First element of the Body, where it was asked for.
    pub(crate) element: Option<Name>,
    /// Whether the Body holds a Fault, and whose.
    pub(crate) fault: Option<FaultSide>,
    /// Header blocks that must be understood by the one who receives the message; and whether that is
    /// whoever comes next, an intermediary too.
    pub(crate) must_understand: Vec<(Name, bool)>,
    /// What WS-Addressing says of it; nothing without a header of its.
    pub(crate) addressed: Option<Box<Addressed>>,
    /// The wsse:Security blocks for the one who receives the message.
    pub(crate) security: Vec<Block>,
    /// Where its parts lie.
    pub(crate) places: Places,
}

/// A header block that is looked into.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Block {
    /// Where it lies, from its first to after its last character.
    pub(crate) range: Range<usize>,
    /// The block as a document of its own: in an element that declares what is in scope there.
    pub(crate) xml: String,
    /// Whether it must be understood.
    pub(crate) mandatory: bool,
}

/// Where the parts of an envelope lie, in bytes of its text (UTF-8, without a byte order mark).
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Places {
    /// After the start tag of the Envelope.
    pub(crate) content: usize,
    /// The start tag of the Header.
    pub(crate) header: Option<Range<usize>>,
    /// Whether the Header is one empty tag.
    pub(crate) empty: bool,
}

/// Why a body is not an envelope that can be taken.
#[derive(Debug, PartialEq)]
pub(crate) enum NotSoap {
    /// Well-formed so far, and its first element is something else.
    OtherElement,
    /// An Envelope of a version that is neither 1.1 nor 1.2.
    OtherVersion,
    /// Not well-formed, empty, or against a limit of documents.
    Malformed(String),
}

impl fmt::Display for NotSoap {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherElement => out.write_str("its first element is not an Envelope of SOAP"),
            Self::OtherVersion => out.write_str("its Envelope is of neither SOAP 1.1 nor 1.2"),
            Self::Malformed(why) => write!(out, "it is not XML: {why}"),
        }
    }
}

/// Looks at an envelope. `charset` is what the content type says.
pub(crate) fn look(
    body: &[u8],
    charset: Option<&str>,
    want_element: bool,
) -> Result<Envelope, NotSoap> {
    // Most envelopes are UTF-8 and say early what they are.
    if body.len() > FIRST_LOOK && xbus_charset::is_utf8(body, charset) {
        let head = &body[..FIRST_LOOK];
        let head = match std::str::from_utf8(head) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default(),
        };
        if let Ok(seen) = look_at(head, want_element) {
            return Ok(seen);
        }
    }
    let text = xbus_charset::decode(body, charset, true).map_err(malformed)?;
    long::over(text.len(), long::PARSED, || look_at(&text, want_element))
}

fn malformed(error: impl std::fmt::Display) -> NotSoap {
    NotSoap::Malformed(error.to_string())
}

fn unreadable(error: quick_xml::Error) -> NotSoap {
    NotSoap::Malformed(said(&error))
}

fn look_at(text: &str, want_element: bool) -> Result<Envelope, NotSoap> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().is_empty() {
        return Err(malformed("the body is empty"));
    }
    let mut reader = namespaced(text);
    let mut seen = Envelope::default();
    let (version, empty) = root(&mut reader)?;
    seen.version = Some(version);
    seen.places.content = at(&reader);
    let namespace = version.namespace();
    if empty {
        return Err(malformed("the Envelope has no Body"));
    }
    loop {
        let from = at(&reader);
        let (resolved, event) = reader.read_resolved_event().map_err(unreadable)?;
        let (start, empty) = match event {
            Event::Start(start) => (start, false),
            Event::Empty(start) => (start, true),
            Event::End(_) | Event::Eof => return Err(malformed("the Envelope has no Body")),
            other => {
                misplaced(&other)?;
                continue;
            }
        };
        let in_soap = matches!(resolved, ResolveResult::Bound(ns) if ns.0 == namespace);
        match start.local_name().into_inner() {
            "Header" if in_soap => {
                if seen.places.header.is_some() {
                    return Err(malformed("the Envelope has two Headers"));
                }
                seen.places.header = Some(from..at(&reader));
                seen.places.empty = empty;
                if !empty {
                    header(text, &mut reader, version, &mut seen)?;
                }
            }
            "Body" if in_soap => {
                if !empty {
                    first_in_body(&mut reader, version, want_element, &mut seen)?;
                }
                return Ok(seen);
            }
            other => return Err(malformed(format!("<{other}> stands where the Body should"))),
        }
    }
}

/// How far the reader is.
fn at(reader: &NsReader<&[u8]>) -> usize {
    reader.buffer_position() as usize
}

/// What may not stand between elements of an envelope.
fn misplaced(event: &Event<'_>) -> Result<(), NotSoap> {
    match event {
        Event::DocType(_) => Err(malformed("a DTD is not allowed")),
        Event::Text(text) if !text.trim().is_empty() => Err(malformed("text outside of elements")),
        Event::CData(_) | Event::GeneralRef(_) => Err(malformed("text outside of elements")),
        _ => Ok(()),
    }
}

/// Reads up to the Envelope; gives its version and whether it is empty.
fn root(reader: &mut NsReader<&[u8]>) -> Result<(Version, bool), NotSoap> {
    loop {
        let (resolved, event) = reader.read_resolved_event().map_err(unreadable)?;
        let (start, empty) = match event {
            Event::Start(start) => (start, false),
            Event::Empty(start) => (start, true),
            Event::Eof => return Err(malformed("there is no element")),
            Event::End(_) => return Err(malformed("an end tag without its start")),
            other => {
                misplaced(&other)?;
                continue;
            }
        };
        if start.local_name().into_inner() != "Envelope" {
            return Err(NotSoap::OtherElement);
        }
        return match resolved {
            ResolveResult::Bound(ns) => Version::of_namespace(ns.0)
                .map(|version| (version, empty))
                .ok_or(NotSoap::OtherVersion),
            ResolveResult::Unbound => Err(NotSoap::OtherVersion),
            ResolveResult::Unknown(prefix) => {
                Err(malformed(format!("the prefix '{prefix}' is not declared")))
            }
        };
    }
}

/// Reads the Header's blocks and its end.
fn header(
    text: &str,
    reader: &mut NsReader<&[u8]>,
    version: Version,
    seen: &mut Envelope,
) -> Result<(), NotSoap> {
    loop {
        let from = at(reader);
        let (resolved, event) = reader.read_resolved_event().map_err(unreadable)?;
        let (start, empty) = match event {
            Event::Start(start) => (start, false),
            Event::Empty(start) => (start, true),
            Event::End(_) => return Ok(()),
            Event::Eof => return Err(malformed("the Header does not end")),
            other => {
                misplaced(&other)?;
                continue;
            }
        };
        let namespace = match resolved {
            ResolveResult::Bound(ns) => ns.0.to_owned(),
            ResolveResult::Unbound => String::new(),
            ResolveResult::Unknown(prefix) => {
                return Err(malformed(format!("the prefix '{prefix}' is not declared")));
            }
        };
        let local = start.local_name().into_inner();
        let meant = meant(reader, &start, version)?;
        let addressing = addressing::Generation::of(&namespace);
        if meant.ours && security::is_security(&namespace, local) {
            let scope = scope(reader);
            if !empty {
                reader.read_to_end(start.name()).map_err(unreadable)?;
            }
            let range = from..at(reader);
            let block = text.get(range.clone()).unwrap_or_default();
            let xml = format!("<scope{scope}>{block}</scope>");
            let mandatory = meant.mandatory;
            seen.security.push(Block {
                range,
                xml,
                mandatory,
            });
        } else if !empty {
            let value = match addressing {
                Some(_) if meant.ours => {
                    let inner = reader.read_text(start.name()).map_err(unreadable)?;
                    xml::plain_text(&inner)
                }
                _ => {
                    reader.read_to_end(start.name()).map_err(unreadable)?;
                    String::new()
                }
            };
            if let (Some(generation), true) = (addressing, meant.ours) {
                seen.addressed
                    .get_or_insert_with(|| Box::new(Addressed::new(generation)))
                    .note(generation, local, value, meant.mandatory, from..at(reader));
            }
        }
        if meant.mandatory && meant.ours {
            let local = local.to_owned();
            let name = Name { namespace, local };
            seen.must_understand.push((name, meant.next));
        }
    }
}

/// The namespaces in scope, as the declarations of a start tag.
pub(crate) fn scope(reader: &NsReader<&[u8]>) -> String {
    let mut out = String::new();
    for (prefix, namespace) in reader.resolver().bindings() {
        match prefix {
            PrefixDeclaration::Default => xml::declare(&mut out, "xmlns", namespace.0),
            PrefixDeclaration::Named(prefix) => {
                xml::declare(&mut out, &format!("xmlns:{prefix}"), namespace.0);
            }
        }
    }
    out
}

/// What a header block says of whom it is for.
struct Meant {
    mandatory: bool,
    ours: bool,
    /// For whoever comes next.
    next: bool,
}

/// Whether a header block must be understood, and whether it is for us: actor (SOAP 1.1 section
/// 4.2.2) or role (SOAP 1.2 part 1 section 2.2) is not set, next, or the ultimate receiver.
fn meant(
    reader: &NsReader<&[u8]>,
    start: &BytesStart<'_>,
    version: Version,
) -> Result<Meant, NotSoap> {
    let mut meant = Meant {
        mandatory: false,
        ours: true,
        next: false,
    };
    for attribute in start.attributes().with_checks(false) {
        let attribute = attribute.map_err(malformed)?;
        let (resolved, local) = reader.resolver().resolve_attribute(attribute.key);
        if !matches!(resolved, ResolveResult::Bound(ns) if ns.0 == version.namespace()) {
            continue;
        }
        let value = attribute.value.trim();
        match local.into_inner() {
            "mustUnderstand" => meant.mandatory = matches!(value, "1" | "true"),
            "actor" | "role" => {
                meant.next = matches!(
                    value,
                    "http://schemas.xmlsoap.org/soap/actor/next"
                        | "http://www.w3.org/2003/05/soap-envelope/role/next"
                );
                meant.ours = meant.next
                    || matches!(
                        value,
                        "" | "http://www.w3.org/2003/05/soap-envelope/role/ultimateReceiver"
                    );
            }
            _ => {}
        }
    }
    Ok(meant)
}

fn first_in_body(
    reader: &mut NsReader<&[u8]>,
    version: Version,
    want_element: bool,
    seen: &mut Envelope,
) -> Result<(), NotSoap> {
    loop {
        let (resolved, event) = reader.read_resolved_event().map_err(unreadable)?;
        let start = match event {
            Event::Start(start) | Event::Empty(start) => start,
            Event::End(_) => return Ok(()),
            Event::Eof => return Err(malformed("the Body does not end")),
            other => {
                misplaced(&other)?;
                continue;
            }
        };
        let local = start.local_name().into_inner();
        let namespace = match resolved {
            ResolveResult::Bound(ns) => ns.0,
            ResolveResult::Unbound => "",
            ResolveResult::Unknown(prefix) => {
                return Err(malformed(format!("the prefix '{prefix}' is not declared")));
            }
        };
        let is_fault = local == "Fault" && namespace == version.namespace();
        if want_element {
            seen.element = Some(Name {
                namespace: namespace.to_owned(),
                local: local.to_owned(),
            });
        }
        if is_fault {
            seen.fault = Some(fault_side(reader)?);
        }
        return Ok(());
    }
}

/// Whose fault it is, from faultcode (1.1) or Code/Value (1.2). Without a code: the receiver's.
fn fault_side(reader: &mut NsReader<&[u8]>) -> Result<FaultSide, NotSoap> {
    let mut in_code = false;
    loop {
        match reader.read_event().map_err(unreadable)? {
            Event::Start(start) => {
                let local = start.local_name().into_inner();
                in_code = local == "faultcode" || local == "Value";
            }
            Event::Text(text) if in_code && !text.trim().is_empty() => {
                let code = text.trim();
                return Ok(side_of(code.rsplit(':').next().unwrap_or(code)));
            }
            Event::End(end) if end.local_name().into_inner() == "Fault" => {
                return Ok(FaultSide::Receiver);
            }
            Event::Eof => return Ok(FaultSide::Receiver),
            _ => {}
        }
    }
}

/// Whose fault a code says it is, by its local name.
pub(crate) fn side_of(local: &str) -> FaultSide {
    // SOAP 1.1 allows codes to be refined with dots: Client.Authentication.
    match local.split('.').next().unwrap_or(local) {
        "Client" | "Sender" => FaultSide::Sender,
        "VersionMismatch" | "MustUnderstand" | "DataEncodingUnknown" => FaultSide::Envelope,
        _ => FaultSide::Receiver,
    }
}

/// The status that a fault is sent with (SOAP 1.1 section 6.2, SOAP 1.2 part 2 table 20).
pub(crate) fn status_of(version: Version, side: FaultSide) -> StatusCode {
    match (version, side) {
        (Version::V12, FaultSide::Sender) => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The fault in a body of one of SOAP's media types.
pub(crate) fn fault_in(content_type: Option<&str>, body: &[u8]) -> Option<(Version, FaultSide)> {
    let content_type = content_type?;
    Version::of_type(content_type)?;
    // Without the element's name there is none; it looks otherwise in UTF-16 alone.
    let wide = body.iter().take(4).any(|byte| matches!(byte, 0 | 0xfe..));
    if !(wide || memmem::find(body, b"Fault").is_some()) {
        return None;
    }
    match look(body, xbus_charset::label(content_type), false) {
        Ok(Envelope {
            version: Some(version),
            fault: Some(side),
            ..
        }) => Some((version, side)),
        _ => None,
    }
}
