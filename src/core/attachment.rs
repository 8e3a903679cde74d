//! What a message carries beside its body: the parts of a multipart message (MIME, RFC 2046; SOAP
//! with attachments; MTOM), attachments of a mail.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

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

    /// Octets of all of them together.
    pub fn size(&self) -> usize {
        self.iter().map(|attachment| attachment.body.len()).sum()
    }
}
