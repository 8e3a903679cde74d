//! Where markup begins and ends: the tokens of a document, looked through only as far as they are
//! asked for.
//!
//! What lies between the marks is checked by the reader; here it is text in UTF-8 whose characters may
//! stand in XML (1.0, production 2), names of ASCII, comments, and that each end tag has its start.
//! Absent: DTDs, and whatever else begins with `<!`.

use memchr::{memchr, memchr2, memchr3, memmem};

use super::{is_space, split_name};

/// Bytes that are looked through first; then four times as many each time, so that a document of
/// which only the beginning is wanted costs nothing by its length. In tests everything is cut.
const FIRST: usize = if cfg!(test) { 4 } else { 512 };
/// Bytes of text that are tried one by one before a search that is quick for many.
const FEW: usize = 16;

/// What is wrong, and at which byte.
pub(crate) type Wrong = (usize, String);

/// A piece of a document.
#[derive(Clone, Copy)]
pub(crate) enum Token<'a> {
    Start {
        name: &'a str,
        /// Where in the name its local part begins.
        local: usize,
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
    /// The end of the document.
    Done,
}

/// Reads tokens one after the other.
pub(crate) struct Scanner<'a> {
    bytes: &'a [u8],
    /// The same as text, where that is known beforehand.
    whole: Option<&'a str>,
    /// What has been looked through.
    text: &'a str,
    at: usize,
    /// Where the document begins: after a byte order mark.
    start: usize,
    /// Whether there is a carriage return or a `]` in what was looked through.
    seen: Seen,
}

#[derive(Clone, Copy, Default)]
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
        let start = if bytes.starts_with("\u{feff}".as_bytes()) {
            3
        } else {
            0
        };
        Self {
            bytes,
            whole: None,
            text: "",
            at: start,
            start,
            seen: Seen::default(),
        }
    }

    /// The byte after the last token.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Whether a byte is where the document begins.
    pub(crate) fn is_start(&self, at: usize) -> bool {
        at == self.start
    }

    /// What has been looked through so far.
    pub(crate) fn text(&self) -> &'a str {
        self.text
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
    pub(crate) fn next(&mut self, open: Option<&str>) -> Result<Token<'a>, Wrong> {
        if self.at >= self.text.len() && !self.reach(1)? {
            return Ok(Token::Done);
        }
        match self.text.as_bytes()[self.at] {
            b'<' => {
                if !self.reach(2)? {
                    return Err(self.wrong("the document ends within a tag"));
                }
                match self.text.as_bytes()[self.at + 1] {
                    b'/' => self.end(open),
                    b'!' => self.declared(),
                    b'?' => {
                        let content = self.up_to(2, b"?>", "an instruction does not end")?;
                        Ok(Token::Instruction(content))
                    }
                    _ => self.start(),
                }
            }
            b'&' => self.reference(),
            _ => self.characters(),
        }
    }

    fn wrong(&self, what: impl Into<String>) -> Wrong {
        (self.at, what.into())
    }

    /// Looks through more of the document; false at its end.
    fn grow(&mut self) -> Result<bool, Wrong> {
        let before = self.text.len();
        if before == self.bytes.len() {
            return Ok(false);
        }
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
        Ok(true)
    }

    /// Whether there are so many bytes from here on, which have then been looked through.
    fn reach(&mut self, bytes: usize) -> Result<bool, Wrong> {
        while self.text.len() < self.at + bytes {
            if !self.grow()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where `find` finds something from `from` on.
    fn find(
        &mut self,
        mut from: usize,
        find: impl Fn(&[u8]) -> Option<usize>,
    ) -> Result<Option<usize>, Wrong> {
        loop {
            if let Some(found) = self.text.as_bytes().get(from..).and_then(&find) {
                return Ok(Some(from + found));
            }
            // What is looked for may begin in the last two bytes.
            from = from.max(self.text.len().saturating_sub(2));
            if !self.grow()? {
                return Ok(None);
            }
        }
    }

    /// What stands between the mark of `open` bytes that begins here and `close`.
    fn up_to(&mut self, open: usize, close: &[u8], endless: &str) -> Result<&'a str, Wrong> {
        let from = self.at + open;
        match self.find(from, |bytes| memmem::find(bytes, close))? {
            Some(to) => {
                self.at = to + close.len();
                Ok(&self.text[from..to])
            }
            None => Err(self.wrong(endless)),
        }
    }

    fn characters(&mut self) -> Result<Token<'a>, Wrong> {
        let from = self.at;
        let to = self.find(from, |bytes| {
            let few = &bytes[..bytes.len().min(FEW)];
            let is_mark = |byte: &u8| matches!(byte, b'<' | b'&');
            few.iter()
                .position(is_mark)
                .or_else(|| Some(few.len() + memchr2(b'<', b'&', &bytes[few.len()..])?))
        })?;
        self.at = to.unwrap_or(self.text.len());
        Ok(Token::Text(&self.text[from..self.at]))
    }

    fn reference(&mut self) -> Result<Token<'a>, Wrong> {
        let from = self.at + 1;
        let ends = |byte: &u8| matches!(byte, b';' | b'<' | b'&') || is_space(*byte);
        match self.find(from, |bytes| bytes.iter().position(ends))? {
            Some(to) if self.bytes[to] == b';' => {
                self.at = to + 1;
                Ok(Token::Reference(&self.text[from..to]))
            }
            _ => Err(self.wrong("'&' that does not begin a reference")),
        }
    }

    fn declared(&mut self) -> Result<Token<'a>, Wrong> {
        self.reach(9)?;
        let rest = &self.bytes[self.at..];
        if rest.starts_with(b"<!--") {
            let from = self.at + 4;
            let to = self.find(from, |bytes| memmem::find(bytes, b"--"))?;
            let Some(to) = to else {
                return Err(self.wrong("a comment does not end"));
            };
            if self.bytes.get(to + 2) != Some(&b'>') {
                return Err((to, "'--' within a comment".to_owned()));
            }
            let content = &self.text[from..to];
            self.at = to + 2;
            self.reach(1)?;
            self.at += 1;
            Ok(Token::Comment(content))
        } else if rest.starts_with(b"<![CDATA[") {
            let content = self.up_to(9, b"]]>", "a CDATA section does not end")?;
            Ok(Token::CData(content))
        } else if rest
            .get(2..9)
            .is_some_and(|word| word.eq_ignore_ascii_case(b"DOCTYPE"))
        {
            Err(self.wrong("a document type declaration (DTD) is not accepted"))
        } else {
            Err(self.wrong("'<!' that begins neither a comment nor a CDATA section"))
        }
    }

    fn end(&mut self, open: Option<&str>) -> Result<Token<'a>, Wrong> {
        let from = self.at + 2;
        if let Some(open) = open
            && let Some(rest) = self.text.as_bytes()[from..].strip_prefix(open.as_bytes())
            && rest.first() == Some(&b'>')
        {
            self.at = from + open.len() + 1;
            return Ok(Token::End);
        }
        let Some(to) = self.find(from, |bytes| memchr(b'>', bytes))? else {
            return Err(self.wrong("an end tag does not end"));
        };
        let name =
            self.text[from..to].trim_end_matches(|c: char| c.is_ascii() && is_space(c as u8));
        match open {
            Some(open) if open == name => {
                self.at = to + 1;
                Ok(Token::End)
            }
            Some(open) => {
                Err(self.wrong(format!("expected `</{open}>`, but there is `</{name}>`")))
            }
            None => Err(self.wrong(format!("the end tag `</{name}>` has no start"))),
        }
    }

    fn start(&mut self) -> Result<Token<'a>, Wrong> {
        let from = self.at + 1;
        let (to, local) = ascii_name(self.text.as_bytes(), from);
        if let Some(local) = local {
            let tail = &self.text.as_bytes()[to..];
            let (length, empty) = match tail {
                [b'>', ..] => (1, false),
                [b'/', b'>', ..] => (2, true),
                _ => (0, false),
            };
            if length > 0 {
                self.at = to + length;
                return Ok(Token::Start {
                    name: &self.text[from..to],
                    local: local - from,
                    rest: "",
                    empty,
                });
            }
        }
        let mut at = from;
        let end = loop {
            let found = self.find(at, |bytes| memchr3(b'>', b'"', b'\'', bytes))?;
            match found.map(|found| (found, self.bytes[found])) {
                None => return Err(self.wrong("a tag does not end")),
                Some((found, b'>')) => break found,
                Some((found, quote)) => match self.find(found + 1, |bytes| memchr(quote, bytes))? {
                    Some(closed) => at = closed + 1,
                    None => return Err(self.wrong("a tag does not end")),
                },
            }
        };
        let content = &self.text[from..end];
        let (content, empty) = match content.strip_suffix('/') {
            Some(content) => (content, true),
            None => (content, false),
        };
        // Again, as the name may have been cut.
        let (length, local) = match ascii_name(content.as_bytes(), 0) {
            (to, Some(local)) if content.as_bytes().get(to).is_none_or(|b| is_space(*b)) => {
                (to, local)
            }
            _ => {
                let to = content.bytes().position(is_space).unwrap_or(content.len());
                let name = &content[..to];
                match split_name(name) {
                    Some((_, local)) => (to, to - local.len()),
                    None => return Err(self.wrong(format!("'{name}' is not a name"))),
                }
            }
        };
        self.at = end + 1;
        let (name, rest) = content.split_at(length);
        Ok(Token::Start {
            name,
            local,
            rest,
            empty,
        })
    }
}

/// How far a name of ASCII goes that begins at `from`, and where its local part begins; the latter is
/// missing where there is no such name.
#[inline]
pub(crate) fn ascii_name(bytes: &[u8], from: usize) -> (usize, Option<usize>) {
    let (mut at, mut local, mut colon) = (from, from, false);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'_' => {}
            b'0'..=b'9' | b'-' | b'.' if at > local => {}
            b':' if !colon && at > local => {
                colon = true;
                local = at + 1;
            }
            _ => break,
        }
        at += 1;
    }
    (at, (at > local).then_some(local))
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
