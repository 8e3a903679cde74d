//! quick-xml's events as pieces of the document, of which no more is looked at than is asked for.
//!
//! quick-xml finds the markup. What it leaves open about the text as such is checked here: that the bytes
//! are UTF-8 as far as they are read, and that every character may stand in XML (1.0, production 2).
//! What lies between the marks is checked by the reader. Whether each end tag has its start is checked
//! here too, so that a reading may begin in the middle of a document, where another has paused.

use std::borrow::Cow;

use memchr::memchr;
use quick_xml::errors::IllFormedError;
use quick_xml::events::Event;

/// Bytes that are looked through first; then four times as many each time, so that a document of
/// which only the beginning is wanted costs nothing by its length. In tests everything is cut.
const FIRST: usize = if cfg!(test) { 4 } else { 512 };

/// A byte order mark.
const MARK: &[u8] = "\u{feff}".as_bytes();

/// What is wrong, and at which byte.
pub(crate) type Wrong = (usize, String);

/// A piece of a document.
#[derive(Clone, Copy)]
pub(crate) enum Token<'a> {
    Start {
        name: &'a str,
        /// What follows the name, up to the end of the tag.
        rest: &'a str,
        empty: bool,
    },
    End,
    Text(&'a str),
    CData(&'a str),
    /// The name of a reference, or `#` and a number.
    Reference(&'a str),
    Comment(&'a str),
    /// An instruction or the XML declaration.
    Instruction(&'a str),
    /// A document type declaration.
    DocType,
    /// The end of the document.
    Done,
}

/// Reads tokens one after the other.
pub(crate) struct Scanner<'a> {
    markup: quick_xml::Reader<&'a [u8]>,
    /// The byte at which `markup` has begun to read: after a byte order mark, which it does not count,
    /// or in the middle.
    base: usize,
    bytes: &'a [u8],
    /// The same as text, where that is known beforehand.
    whole: Option<&'a str>,
    /// What has been looked through.
    text: &'a str,
    /// Where the document begins: after a byte order mark.
    start: usize,
    /// Whether there is a carriage return or a `]` in what was looked through.
    seen: Seen,
}

/// Where a scanner was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place {
    at: usize,
    looked: usize,
    seen: Seen,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Seen {
    returns: bool,
    brackets: bool,
}

impl<'a> Scanner<'a> {
    pub(crate) fn of_text(text: &'a str) -> Self {
        Self {
            whole: Some(text),
            ..Self::of_bytes(text.as_bytes())
        }
    }

    /// Of bytes that are to be UTF-8, which is checked on the way.
    pub(crate) fn of_bytes(bytes: &'a [u8]) -> Self {
        let start = if bytes.starts_with(MARK) {
            MARK.len()
        } else {
            0
        };
        Self {
            markup: markup(bytes),
            base: start,
            bytes,
            whole: None,
            text: "",
            start,
            seen: Seen::default(),
        }
    }

    /// Where this one is.
    pub(crate) fn place(&self) -> Place {
        Place {
            at: self.at(),
            looked: self.text.len(),
            seen: self.seen,
        }
    }

    /// A scanner that goes on where another was in the same bytes; nothing where they are others, or
    /// where it would read something else.
    pub(crate) fn resume(bytes: &'a [u8], place: Place) -> Option<Self> {
        let text = std::str::from_utf8(bytes.get(..place.looked)?).ok()?;
        let rest = bytes.get(place.at..)?;
        if rest.starts_with(MARK) {
            return None;
        }
        Some(Self {
            markup: markup(rest),
            base: place.at,
            text,
            seen: place.seen,
            ..Self::of_bytes(bytes)
        })
    }

    /// The byte after the last token.
    #[inline]
    pub(crate) fn at(&self) -> usize {
        self.base + self.markup.buffer_position() as usize
    }

    /// Whether a byte is where the document begins.
    pub(crate) fn is_start(&self, at: usize) -> bool {
        at == self.start
    }

    /// What has been looked through so far: at least up to the last token's end.
    pub(crate) fn text(&self) -> &'a str {
        self.text
    }

    /// What stands before a byte, whether or not it has been looked through.
    #[cold]
    pub(crate) fn before(&self, at: usize) -> Cow<'a, str> {
        String::from_utf8_lossy(self.bytes.get(..at).unwrap_or(self.bytes))
    }

    /// Whether a carriage return may stand in a token.
    pub(crate) fn has_returns(&self) -> bool {
        self.seen.returns
    }

    /// Whether a `]` may stand in a token.
    pub(crate) fn has_brackets(&self) -> bool {
        self.seen.brackets
    }

    /// The next token. `open` is the name of the innermost element that is open.
    #[inline]
    pub(crate) fn next(&mut self, open: Option<&str>) -> Result<Token<'a>, Wrong> {
        let at = self.at();
        let event = match self.markup.read_event() {
            Ok(event) => event,
            Err(error) => {
                let at = self.base + self.markup.error_position() as usize;
                return Err(self.wrong(at, &error));
            }
        };
        if let Event::End(tag) = &event
            && open != Some(tag.name().as_ref())
        {
            let error = unmatched(open, tag.name().as_ref());
            return Err(self.wrong(at, &error));
        }
        if self.at() > self.text.len() {
            self.look_to(self.at())?;
        }
        // A slice reader's event lends no longer than the event lives: so its piece is found again.
        Ok(match &event {
            Event::Start(tag) => self.start(at, tag, tag.name().as_ref().len(), false),
            Event::Empty(tag) => self.start(at, tag, tag.name().as_ref().len(), true),
            Event::End(_) => Token::End,
            Event::Text(text) => Token::Text(self.piece(at, text)),
            Event::CData(data) => Token::CData(self.piece(at + "<![CDATA[".len(), data)),
            Event::GeneralRef(name) => Token::Reference(self.piece(at + 1, name)),
            Event::Comment(text) => Token::Comment(self.piece(at + "<!--".len(), text)),
            Event::PI(content) => Token::Instruction(self.piece(at + 2, content)),
            Event::Decl(content) => Token::Instruction(self.piece(at + 2, content)),
            Event::DocType(_) => Token::DocType,
            Event::Eof => Token::Done,
        })
    }

    #[inline]
    fn start(&self, at: usize, tag: &str, name: usize, empty: bool) -> Token<'a> {
        let (name, rest) = self.piece(at + 1, tag).split_at(name);
        Token::Start { name, rest, empty }
    }

    /// What an event lends, with the lifetime of the document.
    #[inline]
    fn piece(&self, from: usize, lent: &str) -> &'a str {
        self.text.get(from..from + lent.len()).unwrap_or_default()
    }

    #[cold]
    fn wrong(&mut self, at: usize, error: &quick_xml::Error) -> Wrong {
        // What is no text, or may not stand in XML, is told first.
        if let Err(wrong) = self.look_to(self.at()) {
            return wrong;
        }
        (at, error.to_string())
    }

    /// Looks through the document up to a byte at least.
    fn look_to(&mut self, end: usize) -> Result<(), Wrong> {
        while self.text.len() < end.min(self.bytes.len()) {
            self.grow()?;
        }
        Ok(())
    }

    /// Looks through more of the document.
    fn grow(&mut self) -> Result<(), Wrong> {
        let before = self.text.len();
        let mut end = (before * 4).max(FIRST).min(self.bytes.len());
        // Not within a character, which has four bytes at the most.
        for _ in 0..3 {
            if self.bytes.get(end).is_some_and(|byte| byte & 0xc0 == 0x80) {
                end -= 1;
            }
        }
        let text = match self.whole {
            Some(whole) => whole.get(..end).unwrap_or(whole),
            None => std::str::from_utf8(&self.bytes[..end]).map_err(|error| {
                let at = error.valid_up_to();
                (at, "the bytes are not valid UTF-8".to_owned())
            })?,
        };
        let seen = check_chars(text, before)?;
        self.text = text;
        self.seen.returns |= seen.returns;
        self.seen.brackets |= seen.brackets;
        Ok(())
    }
}

/// quick-xml's reader of a document, or of what is left of one.
fn markup(bytes: &[u8]) -> quick_xml::Reader<&[u8]> {
    let mut markup = quick_xml::Reader::from_reader(bytes);
    let config = markup.config_mut();
    config.check_comments = true;
    config.check_end_names = false;
    config.allow_unmatched_ends = true;
    markup
}

/// What quick-xml itself says of an end tag that is not that of the open element.
#[cold]
fn unmatched(open: Option<&str>, found: &str) -> quick_xml::Error {
    let found = found.to_owned();
    let error = match open {
        Some(expected) => IllFormedError::MismatchedEndTag {
            expected: expected.to_owned(),
            found,
        },
        None => IllFormedError::UnmatchedEndTag(found),
    };
    error.into()
}

/// Looks at what may not stand in a document, from a byte on.
fn check_chars(text: &str, from: usize) -> Result<Seen, Wrong> {
    let bytes = text.as_bytes();
    for (number, chunk) in bytes[from..].chunks(1024).enumerate() {
        // Without branches, so that it runs at memory speed.
        let suspicious = chunk.iter().fold(false, |any, b| {
            any | (*b < 0x20) & (*b != b'\n') & (*b != b'\r') & (*b != b'\t') | (*b == 0xEF)
        });
        if !suspicious {
            continue;
        }
        for (offset, byte) in chunk.iter().enumerate() {
            let at = from + number * 1024 + offset;
            if *byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r')
                || *byte == 0xEF && matches!(bytes.get(at + 1..at + 3), Some([0xBF, 0xBE | 0xBF]))
            {
                let c = text[at..].chars().next().unwrap_or_default();
                return Err((
                    at,
                    format!("the character U+{:04X} cannot stand in XML", c as u32),
                ));
            }
        }
    }
    Ok(Seen {
        returns: memchr(b'\r', &bytes[from..]).is_some(),
        brackets: memchr(b']', &bytes[from..]).is_some(),
    })
}
