//! xbus-xml: XML 1.0 with namespaces (a strict reader on top of quick-xml, a compact tree, and a
//! writer), and checks against an XML Schema.
//!
//! Absent on purpose: DTDs. A document with one is refused, so that there are no entities to expand
//! and no files to fetch. Nothing here recurses on the depth of a document.

pub mod cache;
pub mod element;
pub mod reader;
mod scan;
pub mod schema;
#[cfg(test)]
mod tests;
pub mod tree;
pub mod write;
pub mod xop;

pub use element::Element;
pub use tree::{Document, NodeRef};

/// The namespace that the prefix `xml` always stands for.
pub const XML_NAMESPACE: &str = "http://www.w3.org/XML/1998/namespace";
/// The namespace of namespace declarations; nothing else may use it.
pub const XMLNS_NAMESPACE: &str = "http://www.w3.org/2000/xmlns/";

/// What a document may have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct XmlLimits {
    /// Elements inside one another.
    pub depth: usize,
    /// Attributes of one element, namespace declarations included.
    pub attributes: usize,
    /// Nodes and attributes of the whole document.
    pub nodes: usize,
}

impl Default for XmlLimits {
    fn default() -> Self {
        Self {
            depth: 256,
            attributes: 1_000,
            nodes: 2_000_000,
        }
    }
}

/// Whether `c` may begin a name (XML 1.0 fifth edition, production 4; no colon).
pub fn is_name_start(c: char) -> bool {
    matches!(c, 'A'..='Z' | 'a'..='z' | '_'
        | '\u{C0}'..='\u{D6}' | '\u{D8}'..='\u{F6}' | '\u{F8}'..='\u{2FF}'
        | '\u{370}'..='\u{37D}' | '\u{37F}'..='\u{1FFF}' | '\u{200C}'..='\u{200D}'
        | '\u{2070}'..='\u{218F}' | '\u{2C00}'..='\u{2FEF}' | '\u{3001}'..='\u{D7FF}'
        | '\u{F900}'..='\u{FDCF}' | '\u{FDF0}'..='\u{FFFD}' | '\u{10000}'..='\u{EFFFF}')
}

/// Whether `c` may stand within a name (production 4a; no colon).
pub fn is_name_char(c: char) -> bool {
    is_name_start(c)
        || matches!(c, '-' | '.' | '0'..='9' | '\u{B7}'
            | '\u{300}'..='\u{36F}' | '\u{203F}'..='\u{2040}')
}

/// Whether `text` is a name without a colon (Namespaces in XML 1.0, production 4).
pub fn is_ncname(text: &str) -> bool {
    let bytes = text.as_bytes();
    match bytes.first() {
        None => false,
        Some(b'A'..=b'Z' | b'a'..=b'z' | b'_')
            if bytes[1..]
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.')) =>
        {
            true
        }
        _ => {
            let mut chars = text.chars();
            chars.next().is_some_and(is_name_start) && chars.all(is_name_char)
        }
    }
}

/// Whether `c` may stand in a document at all (production 2).
pub fn is_xml_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..)
}

/// Prefix and local part of a qualified name, when it is one.
pub fn split_name(name: &str) -> Option<(&str, &str)> {
    let (to, local) = ascii_name(name.as_bytes(), 0);
    if let Some(local) = local
        && to == name.len()
    {
        return Some((&name[..local.saturating_sub(1)], &name[local..]));
    }
    // Names beyond ASCII, and what is none.
    match name.split_once(':') {
        None => is_ncname(name).then_some(("", name)),
        Some((prefix, local)) => (is_ncname(prefix) && is_ncname(local)).then_some((prefix, local)),
    }
}

/// How far a name of ASCII goes that begins at `from`, and where its local part begins; the latter is
/// missing where there is no such name.
#[inline]
pub(crate) fn ascii_name(bytes: &[u8], from: usize) -> (usize, Option<usize>) {
    let part = |from: usize| {
        let is_part = |byte: &u8| NAME_BYTES[*byte as usize] != NO_NAME;
        let length = bytes[from..].iter().position(|byte| !is_part(byte));
        let to = length.map_or(bytes.len(), |length| from + length);
        let starts = to > from && NAME_BYTES[bytes[from] as usize] == NAME_START;
        (to, starts)
    };
    let (to, starts) = part(from);
    if !starts || bytes.get(to) != Some(&b':') {
        return (to, starts.then_some(from));
    }
    let local = to + 1;
    let (to, starts) = part(local);
    (to, starts.then_some(local))
}

const NO_NAME: u8 = 0;
const NAME_PART: u8 = 1;
const NAME_START: u8 = 2;

/// What bytes of ASCII may do in a name (productions 4 and 4a without the colon).
const NAME_BYTES: [u8; 256] = {
    let mut bytes = [NO_NAME; 256];
    let mut at = 0;
    while at < 128 {
        bytes[at] = match at as u8 {
            b'A'..=b'Z' | b'a'..=b'z' | b'_' => NAME_START,
            b'0'..=b'9' | b'-' | b'.' => NAME_PART,
            _ => NO_NAME,
        };
        at += 1;
    }
    bytes
};

/// Whether two prefixes or namespaces are the same, which are often both empty. An empty text has no address
/// to speak of, and on processors with AVX-512 glibc compares no bytes there in the time of a hundred.
#[inline]
pub fn same(one: &str, other: &str) -> bool {
    one.len() == other.len() && (one.is_empty() || one == other)
}

/// White space (production 3).
pub(crate) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}
