//! What a message carries beside its body: the parts of a multipart message (MIME, RFC 2046; SOAP
//! with attachments; MTOM), attachments of a mail.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

use crate::Format;

/// One attachment, decoded from its transfer encoding.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Attachment {
    /// The file name that its sender gave (RFC 2183 section 2.3). It comes from outside: never a path.
    pub name: Option<Arc<str>>,
    /// Its media type with parameters.
    pub content_type: Option<Arc<str>>,
    /// What a body refers to it by, without angle brackets (RFC 2392).
    pub content_id: Option<Arc<str>>,
    /// Its octets.
    pub body: Bytes,
}

/// Longest name of a file, in characters.
const NAME_MOST: usize = 255;

impl Attachment {
    /// The name of a file that a sender gave, as it may be kept: without a path ahead of it (RFC 2183
    /// section 2.3), on one line, without control characters and those that turn the direction of what
    /// follows. Nothing where no name is left.
    pub fn file_name(given: &str) -> Option<String> {
        let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}');
        let name = given.rsplit(['/', '\\']).next().unwrap_or_default();
        let name: String = name
            .chars()
            .map(|c| if c.is_control() || turns(c) { ' ' } else { c })
            .collect();
        match name.trim() {
            "" | "." | ".." => None,
            name => Some(name.chars().take(NAME_MOST).collect()),
        }
    }

    /// How it is read: by its content type, where that says little by the extension of its name.
    pub fn format(&self) -> Option<Format> {
        let said = self
            .content_type
            .as_deref()
            .and_then(Format::from_media_type);
        if said.is_some_and(|format| format != Format::Text) {
            return said;
        }
        let extension = self.name.as_deref().and_then(|name| name.rsplit_once('.'));
        let named =
            extension.and_then(
                |(_, extension)| match extension.to_ascii_lowercase().as_str() {
                    "xml" => Some(Format::Xml),
                    "json" => Some(Format::Json),
                    "csv" => Some(Format::Csv),
                    "txt" => Some(Format::Text),
                    _ => None,
                },
            );
        named.or(said)
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Payloads never reach a log.
        write!(
            f,
            "Attachment({:?}, {:?}, {:?}, {} bytes)",
            self.name,
            self.content_type,
            self.content_id,
            self.body.len()
        )
    }
}

/// The attachments of a message, in order. Clones share them; none cost nothing.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Attachments(Option<Arc<[Attachment]>>);

impl Deref for Attachments {
    type Target = [Attachment];

    fn deref(&self) -> &[Attachment] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl FromIterator<Attachment> for Attachments {
    fn from_iter<I: IntoIterator<Item = Attachment>>(items: I) -> Self {
        let all: Arc<[Attachment]> = items.into_iter().collect();
        Self((!all.is_empty()).then_some(all))
    }
}

impl From<Vec<Attachment>> for Attachments {
    fn from(all: Vec<Attachment>) -> Self {
        all.into_iter().collect()
    }
}

impl Attachments {
    /// The one that `cid:` URLs call `content_id` (RFC 2392), which stands there without angle
    /// brackets.
    pub fn by_content_id(&self, content_id: &str) -> Option<&Attachment> {
        self.iter()
            .find(|attachment| attachment.content_id.as_deref() == Some(content_id))
    }

    /// Whether these are the very same, and not others that are equal.
    pub fn same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(ours), Some(theirs)) => Arc::ptr_eq(ours, theirs),
            (None, None) => true,
            _ => false,
        }
    }

    /// Octets of all of them together.
    pub fn size(&self) -> usize {
        self.iter().map(|attachment| attachment.body.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_never_a_path_nor_more_than_a_line() {
        let name = Attachment::file_name;
        for (given, left) in [
            ("page.tif", "page.tif"),
            ("../../etc/passwd", "passwd"),
            ("C:\\scans\\page 1.tif", "page 1.tif"),
            ("a/b\\c", "c"),
            (" a\r\nb\0\u{202e}c ", "a  b  c"),
            ("..a", "..a"),
        ] {
            assert_eq!(name(given).as_deref(), Some(left), "{given}");
        }
        for none in ["", " ", "..", "a/..", "a/.", "a/", "\\", "\n"] {
            assert_eq!(name(none), None, "{none}");
        }
        assert_eq!(
            name(&"ä".repeat(300)).map(|name| name.chars().count()),
            Some(255)
        );
    }

    #[test]
    fn a_name_tells_where_the_type_says_little() {
        let format = |name: Option<&str>, content_type: Option<&str>| {
            Attachment {
                name: name.map(Arc::from),
                content_type: content_type.map(Arc::from),
                ..Attachment::default()
            }
            .format()
        };
        let octets = Some("application/octet-stream");
        assert_eq!(format(Some("a.XML"), octets), Some(Format::Xml));
        assert_eq!(format(Some("a.csv"), Some("text/plain")), Some(Format::Csv));
        assert_eq!(
            format(Some("a.pdf"), Some("text/plain")),
            Some(Format::Text)
        );
        assert_eq!(
            format(Some("a.csv"), Some("application/json")),
            Some(Format::Json)
        );
        assert_eq!(format(Some("a.pdf"), octets), None);
        assert_eq!(format(None, None), None);
    }
}
