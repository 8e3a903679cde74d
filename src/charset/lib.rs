//! xbus-charset: which charset a body is in, and the way from bytes to text and back, strictly: what
//! does not fit is an error that says where, never a question mark unless a route asks for it.
//!
//! Labels are those of the WHATWG Encoding Standard, which take in the IANA names in use. When
//! reading, that standard takes US-ASCII and ISO 8859-1 for windows-1252, ISO 8859-9 for
//! windows-1254 and ISO 8859-11 for windows-874, which only add to them; when writing, such a label
//! stands for its own repertoire.
//!
//! Absent: guessing a charset from the letters of a text, and any XML beyond the declaration.

mod declaration;
mod decode;
mod encode;
mod error;
mod form;
mod writing;

use encoding_rs::{Encoding, UTF_8};

pub use declaration::declare;
pub use decode::{by_route, decode, find, is_utf8, latin1, text, text_leniently};
pub use encode::encode;
pub use error::Error;
pub use form::{CHARSET_FIELD, form_pairs};
pub use writing::{FIELDS, TYPE, Writing, relabelled};

/// A charset, as one of its labels names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Charset {
    encoding: &'static Encoding,
    repertoire: Repertoire,
}

/// Which part of the encoding may be written, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Repertoire {
    /// All of it.
    Whole,
    /// US-ASCII: up to U+007F.
    Ascii,
    /// ISO 8859 and TIS 620: 0x80 to 0x9F are the control characters of the same numbers.
    Iso,
    /// `utf-16` without a byte order: little-endian after a byte order mark (RFC 2781 section 4.3).
    Marked,
}

impl Charset {
    /// UTF-8.
    pub const UTF_8: Self = Self::whole(UTF_8);

    const fn whole(encoding: &'static Encoding) -> Self {
        Self {
            encoding,
            repertoire: Repertoire::Whole,
        }
    }

    /// The charset of a label, whatever its case. [`Error::Unknown`] when there is none.
    pub fn by_label(label: &str) -> Result<Self, Error> {
        if label.eq_ignore_ascii_case("utf-8") {
            return Ok(Self::UTF_8);
        }
        // The standard maps a few labels to a decoder that refuses everything.
        let encoding = Encoding::for_label_no_replacement(label.as_bytes())
            .ok_or_else(|| Error::Unknown(label.to_owned()))?;
        let label = label.trim().to_ascii_lowercase();
        let repertoire = match encoding.name() {
            "windows-1252" | "windows-1254" | "windows-874" => match label.as_str() {
                "us-ascii" | "ascii" | "ansi_x3.4-1968" => Repertoire::Ascii,
                "dos-874" => Repertoire::Whole,
                _ if label.contains("windows") || label.contains("cp125") => Repertoire::Whole,
                _ => Repertoire::Iso,
            },
            _ if label == "utf-16" => Repertoire::Marked,
            _ => Repertoire::Whole,
        };
        Ok(Self {
            encoding,
            repertoire,
        })
    }

    /// The name that a document in this charset may bear: that of the Encoding Standard, which for
    /// ISO 8859-1 is `windows-1252`.
    pub fn name(self) -> &'static str {
        match self.repertoire {
            Repertoire::Marked => "UTF-16",
            _ => self.encoding.name(),
        }
    }

    /// Whether this is UTF-8, so that text and bytes are the same.
    pub fn is_utf8(self) -> bool {
        self.encoding == UTF_8
    }

    /// The charset in which an XML declaration that names this one can stand: one that could be read
    /// byte by byte is not in UTF-16, whatever it says.
    fn readable_by_byte(self) -> Self {
        match self.encoding.output_encoding() {
            encoding if encoding == self.encoding => self,
            encoding => Self::whole(encoding),
        }
    }

    /// The encoding of bytes that begin so, and the length of the mark that `utf-16` alone takes off
    /// (RFC 2781 section 3.2).
    fn unmarked(self, bytes: &[u8]) -> (&'static Encoding, usize) {
        match Encoding::for_bom(bytes) {
            Some((found, mark)) if self.repertoire == Repertoire::Marked && found != UTF_8 => {
                (found, mark)
            }
            _ => (self.encoding, 0),
        }
    }
}

/// A parameter of a media type, such as `charset` (RFC 9110 section 5.6.6), without its quotes.
pub fn parameter<'a>(media_type: &'a str, name: &str) -> Option<&'a str> {
    let (_, mut rest) = cut(media_type, b';')?;
    loop {
        let (part, more) = match cut(rest, b';') {
            Some((part, more)) => (part, Some(more)),
            None => (rest, None),
        };
        if let Some((key, value)) = cut(part, b'=')
            && key.trim().eq_ignore_ascii_case(name)
        {
            return Some(value.trim().trim_matches('"').trim_matches('\''));
        }
        rest = more?;
    }
}

/// What stands before and after the first such byte: for texts of a few bytes, which every message has.
fn cut(text: &str, mark: u8) -> Option<(&str, &str)> {
    let at = text.bytes().position(|byte| byte == mark)?;
    Some((&text[..at], &text[at + 1..]))
}

/// The label in the `charset` parameter of a content type (RFC 9110 section 8.3.2). Nothing when it
/// is empty.
pub fn label(content_type: &str) -> Option<&str> {
    parameter(content_type, "charset").filter(|label| !label.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_known_or_not() {
        for label in [
            "ISO-8859-15",
            "latin1",
            "utf-16le",
            " UTF-8 ",
            "us-ascii",
            "shift_jis",
        ] {
            assert!(Charset::by_label(label).is_ok(), "{label}");
        }
        for label in ["klingon", "", "replacement", "iso-2022-kr"] {
            let error = Charset::by_label(label).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("the charset '{label}' is not known")
            );
        }
    }

    #[test]
    fn names_are_those_of_the_standard() {
        for (label, name) in [
            ("latin1", "windows-1252"),
            ("utf8", "UTF-8"),
            ("utf-16", "UTF-16"),
            ("utf-16be", "UTF-16BE"),
            ("iso-8859-2", "ISO-8859-2"),
        ] {
            assert_eq!(Charset::by_label(label).unwrap().name(), name);
        }
    }

    #[test]
    fn the_parameter_is_found() {
        for (content_type, found) in [
            ("text/xml; charset=utf-8", Some("utf-8")),
            ("text/xml;action=\"x\"; CharSet = \"UTF-8\"", Some("UTF-8")),
            ("text/xml; charset='utf-8'", Some("utf-8")),
            ("text/xml; charset=", None),
            ("text/xml; charset=\"\"", None),
            ("text/xml; charset", None),
            ("charset=utf-8", None),
        ] {
            assert_eq!(label(content_type), found, "{content_type}");
        }
        assert_eq!(parameter("text/xml; q=0.5", "q"), Some("0.5"));
    }
}
