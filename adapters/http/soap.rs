//! SOAP envelopes: which version one has, and what its body holds.
//!
//! The look at an envelope stops at the first element of its Body; nothing is built, nothing behind
//! it is read, and copied is only what WS-Addressing and WS-Security say. Absent: what those headers mean (see
//! `addressing` and `security`).

use std::fmt;
use std::ops::Range;
use std::sync::LazyLock;

use http::StatusCode;
use memchr::memmem::Finder;
use memchr::memrchr;
use xbus_core::long;
use xbus_core::spec::Args;
use xbus_xml::XmlLimits;
use xbus_xml::reader::{Pause, Reader, Start, Step};

use crate::addressing::{self, Addressed};
use crate::security;
use crate::xml;

/// Namespace of SOAP 1.1 envelopes.
pub const NS_11: &str = "http://schemas.xmlsoap.org/soap/envelope/";
/// Namespace of SOAP 1.2 envelopes.
pub const NS_12: &str = "http://www.w3.org/2003/05/soap-envelope";

/// Bytes of a body that is searched for a fault before it is read.
const SHORT: usize = 4096;

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

    /// The version under `soap`, in its short form or among its keys; nothing for any version.
    pub(crate) fn written(short: Option<&str>, keys: Args<'_>) -> Option<Self> {
        match short {
            Some(text) => Self::from_name(text),
            None => Self::from_name(&keys.text("version")?),
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
    /// The first element of the Body, for who reads on from there in the same bytes.
    pub(crate) pause: Option<Pause>,
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
    // Most envelopes are UTF-8 and say early what they are: nothing behind that is looked at.
    if xbus_charset::is_utf8(body, charset) {
        let bytes = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
        match look_at(Reader::of_bytes(bytes, &XmlLimits::default()), want_element) {
            // Whether it is text at all is what is told first.
            Err(NotSoap::Malformed(_)) => {}
            Ok(mut seen) => {
                // The mark counts in what is read on.
                if bytes.len() < body.len() {
                    seen.pause = None;
                }
                return Ok(seen);
            }
            seen => return seen,
        }
    }
    let text = xbus_charset::decode(body, charset, true).map_err(malformed)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    if text.trim_start().is_empty() {
        return Err(malformed("the body is empty"));
    }
    let reader = Reader::of_text(text, &XmlLimits::default());
    let seen = long::over(text.len(), long::PARSED, || look_at(reader, want_element))?;
    // These were other bytes.
    Ok(Envelope {
        pause: None,
        ..seen
    })
}

fn malformed(error: impl std::fmt::Display) -> NotSoap {
    NotSoap::Malformed(error.to_string())
}

fn look_at(mut reader: Reader<'_>, want_element: bool) -> Result<Envelope, NotSoap> {
    let mut seen = Envelope::default();
    let version = root(&mut reader)?;
    let namespace = version.namespace();
    seen.version = Some(version);
    seen.places.content = reader.position();
    loop {
        let (from, part, in_soap) = match next(&mut reader)? {
            Next::Start(tag) => (tag.at, tag.local, tag.namespace() == namespace),
            Next::End => return Err(malformed("the Envelope has no Body")),
        };
        match part {
            "Header" if in_soap => {
                if seen.places.header.is_some() {
                    return Err(malformed("the Envelope has two Headers"));
                }
                let content = reader.position();
                seen.places.header = Some(from..content);
                header(&mut reader, version, &mut seen)?;
                seen.places.empty = reader.position() == content;
            }
            "Body" if in_soap => {
                first_in_body(&mut reader, version, want_element, &mut seen)?;
                return Ok(seen);
            }
            other => return Err(malformed(format!("<{other}> stands where the Body should"))),
        }
    }
}

/// The next tag where only elements may stand.
enum Next<'r, 'a> {
    Start(Start<'r, 'a>),
    End,
}

fn next<'r, 'a>(reader: &'r mut Reader<'a>) -> Result<Next<'r, 'a>, NotSoap> {
    loop {
        match reader.step().map_err(malformed)? {
            Step::Start => return Ok(Next::Start(reader.tag())),
            Step::End => return Ok(Next::End),
            Step::Text(text) if text.trim().is_empty() => {}
            Step::Text(_) | Step::Character(_) => {
                return Err(malformed("text outside of elements"));
            }
            Step::Comment(_) | Step::Instruction(..) => {}
            Step::Document => return Err(malformed("there is no element")),
        }
    }
}

/// Reads up to the Envelope; gives its version.
fn root(reader: &mut Reader<'_>) -> Result<Version, NotSoap> {
    match next(reader)? {
        Next::Start(tag) if tag.local != "Envelope" => Err(NotSoap::OtherElement),
        Next::Start(tag) => Version::of_namespace(tag.namespace()).ok_or(NotSoap::OtherVersion),
        Next::End => Err(malformed("there is no element")),
    }
}

/// Reads the Header's blocks and its end.
fn header(reader: &mut Reader<'_>, version: Version, seen: &mut Envelope) -> Result<(), NotSoap> {
    loop {
        let (from, namespace, local, meant) = match next(reader)? {
            Next::Start(tag) => {
                let meant = meant(&tag, version);
                (tag.at, tag.namespace().to_owned(), tag.local, meant)
            }
            Next::End => return Ok(()),
        };
        let content = reader.position();
        let addressing = addressing::Generation::of(&namespace);
        if meant.ours && security::is_security(&namespace, local) {
            let scope = scope(reader);
            rest_of_element(reader)?;
            let range = from..reader.position();
            let block = reader.text().get(range.clone()).unwrap_or_default();
            let xml = format!("<scope{scope}>{block}</scope>");
            let mandatory = meant.mandatory;
            seen.security.push(Block {
                range,
                xml,
                mandatory,
            });
        } else {
            let inner = content..rest_of_element(reader)?;
            let after = reader.position();
            // One empty tag says nothing.
            if let (Some(generation), true) = (addressing, meant.ours)
                && after > content
            {
                let value = xml::plain_text(reader.text().get(inner).unwrap_or_default());
                seen.addressed
                    .get_or_insert_with(|| Box::new(Addressed::new(generation)))
                    .note(generation, local, value, meant.mandatory, from..after);
            }
        }
        if meant.mandatory && meant.ours {
            let local = local.to_owned();
            let name = Name { namespace, local };
            seen.must_understand.push((name, meant.next));
        }
    }
}

/// Reads up to the end of the innermost open element; gives where its end tag begins.
fn rest_of_element(reader: &mut Reader<'_>) -> Result<usize, NotSoap> {
    let mut within = 0_usize;
    loop {
        let before = reader.position();
        match reader.step().map_err(malformed)? {
            Step::Start => within += 1,
            Step::End if within == 0 => return Ok(before),
            Step::End => within -= 1,
            _ => {}
        }
    }
}

/// The namespaces in scope, as the declarations of a start tag.
fn scope(reader: &Reader<'_>) -> String {
    let mut out = String::new();
    for (prefix, namespace) in reader.scope() {
        out.push_str(if prefix.is_empty() {
            " xmlns"
        } else {
            " xmlns:"
        });
        out.push_str(prefix);
        out.push_str("=\"");
        xml::escape_into(&mut out, namespace);
        out.push('"');
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
fn meant(tag: &Start<'_, '_>, version: Version) -> Meant {
    let mut meant = Meant {
        mandatory: false,
        ours: true,
        next: false,
    };
    for attribute in tag.attributes {
        if *tag.uris[attribute.uri as usize] != *version.namespace() {
            continue;
        }
        let value = attribute.value.trim();
        match attribute.local {
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
    meant
}

fn first_in_body(
    reader: &mut Reader<'_>,
    version: Version,
    want_element: bool,
    seen: &mut Envelope,
) -> Result<(), NotSoap> {
    let Next::Start(tag) = next(reader)? else {
        return Ok(());
    };
    let is_fault = tag.local == "Fault" && tag.namespace() == version.namespace();
    if want_element {
        seen.element = Some(Name {
            namespace: tag.namespace().to_owned(),
            local: tag.local.to_owned(),
        });
    }
    seen.pause = reader.pause();
    if is_fault {
        seen.fault = Some(fault_side(reader)?);
    }
    Ok(())
}

/// Whose fault it is, from faultcode (1.1) or Code/Value (1.2). Without a code: the receiver's.
fn fault_side(reader: &mut Reader<'_>) -> Result<FaultSide, NotSoap> {
    let (mut in_code, mut within) = (false, 0_usize);
    loop {
        match reader.step().map_err(malformed)? {
            Step::Start => {
                let local = reader.tag().local;
                in_code = local == "faultcode" || local == "Value";
                within += 1;
            }
            Step::Text(text) if in_code && !text.trim().is_empty() => {
                let code = text.trim();
                return Ok(side_of(code.rsplit(':').next().unwrap_or(code)));
            }
            Step::End if within == 0 => return Ok(FaultSide::Receiver),
            Step::End => within -= 1,
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

/// Whether a body that begins as an envelope does not end as one: the end tag of the Envelope is the
/// last thing in it, comments and instructions aside. What stands between is not looked at.
pub(crate) fn is_cut_off(body: &[u8]) -> bool {
    let text = body.trim_ascii_end();
    // In UTF-16 tags look otherwise.
    let wide = body.iter().take(4).any(|byte| matches!(byte, 0 | 0xfe..));
    if wide || text.ends_with(b"-->") || text.ends_with(b"?>") {
        return false;
    }
    let end = memrchr(b'<', text).map(|at| &text[at..]);
    let name = end
        .and_then(|tag| tag.strip_prefix(b"</"))
        .and_then(|tag| tag.strip_suffix(b">"))
        .map(<[u8]>::trim_ascii_end);
    name.and_then(|name| name.rsplit(|c| *c == b':').next()) != Some(b"Envelope")
}

/// The fault in a body of one of SOAP's media types.
pub(crate) fn fault_in(content_type: Option<&str>, body: &[u8]) -> Option<(Version, FaultSide)> {
    let content_type = content_type?;
    Version::of_type(content_type)?;
    // Without the element's name there is none, and a short body is sooner searched than read; in
    // UTF-16 alone it looks otherwise.
    let wide = body.iter().take(4).any(|byte| matches!(byte, 0 | 0xfe..));
    static FAULT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"Fault"));
    if !wide && body.len() <= SHORT && FAULT.find(body).is_none() {
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
