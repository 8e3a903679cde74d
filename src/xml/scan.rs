//! The markup of a document as pieces of it, of which no more is looked at than is asked for.
//!
//! What is well formed is found here, where each piece is looked at once; of anything else quick-xml is
//! asked, which reads the document from its beginning and says what is wrong and where. Checked on the
//! way: that the bytes are UTF-8 as far as they are read, that every character may stand in XML (1.0,
//! production 2), and that each end tag has the name of its start. What lies between the marks is
//! checked by the reader.

use std::ops::Range;

use memchr::{memchr, memchr2, memchr3, memmem};
use quick_xml::events::Event;

use super::{ascii_name, is_space};

/// Bytes that are looked through first; then four times as many each time, so that a document of
/// which only the beginning is wanted costs nothing by its length. In tests everything is cut.
const FIRST: usize = if cfg!(test) { 4 } else { 256 };

/// What is wrong, and at which byte.
pub(crate) type Wrong = (usize, String);

/// A piece of a document.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Token<'a> {
    Start {
        name: &'a str,
        /// Where the local part of the name begins, if that is a name of ASCII; otherwise it may be none.
        local: Option<usize>,
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
    bytes: &'a [u8],
    /// The same as text, where that is known beforehand.
    whole: Option<&'a str>,
    /// What has been looked through.
    text: &'a str,
    /// The byte after the last token.
    at: usize,
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

    /// Where this one is.
    pub(crate) fn place(&self) -> Place {
        Place {
            at: self.at,
            looked: self.text.len(),
            seen: self.seen,
        }
    }

    /// A scanner that goes on where another was in the same bytes; nothing where they are others.
    pub(crate) fn resume(bytes: &'a [u8], place: Place) -> Option<Self> {
        let text = std::str::from_utf8(bytes.get(..place.looked)?).ok()?;
        Some(Self {
            text,
            at: place.at,
            seen: place.seen,
            ..Self::of_bytes(bytes)
        })
    }

    /// The byte after the last token.
    #[inline]
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Whether a byte is where the document begins.
    pub(crate) fn is_start(&self, at: usize) -> bool {
        at == self.start
    }

    /// What has been looked through so far: at least up to the last token's end.
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
    #[inline]
    pub(crate) fn next(&mut self, open: Option<&str>) -> Result<Token<'a>, Wrong> {
        match self.bytes.get(self.at..) {
            Some([b'<', b'/', ..]) => self.end(open),
            Some([b'<', b'!' | b'?', ..] | [b'<']) => self.rare(),
            Some([b'<', ..]) => self.start(),
            Some([b'&', rest @ ..]) => match memchr3(b';', b'&', b'<', rest) {
                Some(end) if rest[end] == b';' => {
                    let name = self.at + 1..self.at + 1 + end;
                    Ok(Token::Reference(self.take(name.end + 1, name)?))
                }
                _ => self.ask(),
            },
            Some(text @ [_, ..]) => {
                let length = memchr2(b'<', b'&', text).unwrap_or(text.len());
                let text = self.at..self.at + length;
                Ok(Token::Text(self.take(text.end, text)?))
            }
            _ => {
                self.take(self.at, 0..0)?;
                Ok(Token::Done)
            }
        }
    }

    #[inline]
    fn start(&mut self) -> Result<Token<'a>, Wrong> {
        let from = self.at + 1;
        let (name, local) = ascii_name(self.bytes, from);
        let end = match self.bytes.get(name) {
            Some(b'>') => Some(name),
            // There is neither a quote nor a `>` in what was passed.
            _ => tag_end(self.bytes, name),
        };
        let Some(end) = end else {
            return self.ask();
        };
        let empty = self.bytes[end - 1] == b'/';
        let to = if empty { end - 1 } else { end };
        let content = self.take(end + 1, from..to)?;
        // A name of ASCII, or whatever stands in its place.
        let ends = name == to || is_space(self.bytes[name]);
        let (name, local) = match local {
            Some(local) if ends => (name - from, Some(local - from)),
            _ => {
                let space = content.bytes().position(is_space);
                (space.unwrap_or(content.len()), None)
            }
        };
        let (name, rest) = content.split_at(name);
        Ok(Token::Start {
            name,
            local,
            rest,
            empty,
        })
    }

    #[inline]
    fn end(&mut self, open: Option<&str>) -> Result<Token<'a>, Wrong> {
        let Some(open) = open else {
            return self.ask();
        };
        let from = self.at + 2;
        let mut end = from + open.len();
        if self.bytes.get(end) != Some(&b'>') || self.bytes[from..end] != *open.as_bytes() {
            // There may be white space behind the name.
            end = match tag_end(self.bytes, from) {
                Some(end) if self.bytes[from..end].trim_ascii_end() == open.as_bytes() => end,
                _ => return self.ask(),
            };
        }
        self.take(end + 1, 0..0)?;
        Ok(Token::End)
    }

    /// Comments, sections, instructions, and what is none of them.
    fn rare(&mut self) -> Result<Token<'a>, Wrong> {
        let rest = &self.bytes[self.at..];
        let (begin, close) = match rest {
            [b'<', b'!', b'-', b'-', ..] => (4, "-->"),
            [b'<', b'?', ..] => (2, "?>"),
            rest if rest.starts_with(b"<![CDATA[") => (9, "]]>"),
            _ => return self.ask(),
        };
        // `<?>` is none, though it begins and ends as one.
        let length = memmem::find(&rest[begin..], close.as_bytes());
        let Some(length) = length.filter(|_| rest[begin] != b'>' || begin != 2) else {
            return self.ask();
        };
        let content = &rest[begin..begin + length];
        if begin == 4 && (content.ends_with(b"-") || memmem::find(content, b"--").is_some()) {
            return self.ask();
        }
        let from = self.at + begin;
        let to = from + length;
        let content = self.take(to + close.len(), from..to)?;
        Ok(match begin {
            2 => Token::Instruction(content),
            4 => Token::Comment(content),
            _ => Token::CData(content),
        })
    }

    /// Goes on to a byte; gives a piece that was passed.
    #[inline]
    fn take(&mut self, to: usize, piece: Range<usize>) -> Result<&'a str, Wrong> {
        self.at = to;
        if to > self.text.len() {
            self.look_to(to)?;
        }
        // Each begins and ends beside a character of ASCII.
        Ok(self.text.get(piece).unwrap_or_default())
    }

    /// What quick-xml reads here, or what it says is wrong.
    #[cold]
    fn ask(&mut self) -> Result<Token<'a>, Wrong> {
        let mut markup = markup(self.bytes);
        loop {
            let event = markup.read_event();
            let to = self.start + markup.buffer_position() as usize;
            match event {
                Err(error) => {
                    // What is no text, or may not stand in XML, is told first.
                    self.look_to(to)?;
                    let at = self.start + markup.error_position() as usize;
                    return Err((at, error.to_string()));
                }
                Ok(Event::DocType(_)) if to > self.at => {
                    self.take(to, 0..0)?;
                    return Ok(Token::DocType);
                }
                Ok(event) if to > self.at || matches!(event, Event::Eof) => {
                    return Err((self.at, "the markup cannot be read".to_owned()));
                }
                Ok(_) => {}
            }
        }
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

/// quick-xml's reader of a document.
fn markup(bytes: &[u8]) -> quick_xml::Reader<&[u8]> {
    let mut markup = quick_xml::Reader::from_reader(bytes);
    let config = markup.config_mut();
    config.check_comments = true;
    config.check_end_names = true;
    markup
}

/// Where the `>` of a tag stands, from a byte outside of quotes on.
#[inline]
fn tag_end(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        match *bytes.get(at)? {
            b'>' => return Some(at),
            quote @ (b'"' | b'\'') => {
                at += 1;
                at += memchr(quote, bytes.get(at..)?)? + 1;
            }
            _ => at += 1,
        }
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::split_name;

    /// What is read up to the end, a mistake, or a tag whose name is none.
    fn tokens(text: &str) -> (Vec<String>, Option<Wrong>) {
        let mut scanner = Scanner::of_bytes(text.as_bytes());
        let (mut out, mut open) = (Vec::new(), Vec::new());
        loop {
            let token = match scanner.next(open.last().copied()) {
                Ok(token) => token,
                Err(wrong) => return (out, Some(wrong)),
            };
            out.push(match token {
                Token::Start {
                    name,
                    local,
                    rest,
                    empty,
                } => {
                    if let Some(local) = local {
                        let prefix = &name[..local.saturating_sub(1)];
                        assert_eq!(split_name(name), Some((prefix, &name[local..])), "{text}");
                    }
                    if split_name(name).is_none() {
                        return (out, None);
                    }
                    if !empty {
                        open.push(name);
                    }
                    format!("start {empty} {name}|{rest}")
                }
                Token::End => {
                    open.pop();
                    "end".into()
                }
                Token::Text(text) => format!("text {text}"),
                Token::CData(data) => format!("data {data}"),
                Token::Reference(name) => format!("reference {name}"),
                Token::Comment(text) => format!("comment {text}"),
                Token::Instruction(content) => format!("instruction {content}"),
                Token::DocType => "type".into(),
                Token::Done => return (out, None),
            });
            out.push(scanner.at().to_string());
        }
    }

    /// The same as quick-xml has it.
    fn expected(text: &str) -> (Vec<String>, Option<Wrong>) {
        let mut markup = markup(text.as_bytes());
        let start = if text.starts_with('\u{feff}') { 3 } else { 0 };
        let mut out = Vec::new();
        loop {
            let event = match markup.read_event() {
                Ok(event) => event,
                Err(error) => {
                    let at = start + markup.error_position() as usize;
                    return (out, Some((at, error.to_string())));
                }
            };
            let empty = matches!(event, Event::Empty(_));
            out.push(match &event {
                Event::Start(tag) | Event::Empty(tag) => {
                    let (name, rest) = tag.split_at(tag.name().as_ref().len());
                    if split_name(name).is_none() {
                        return (out, None);
                    }
                    format!("start {empty} {name}|{rest}")
                }
                Event::End(_) => "end".into(),
                Event::Text(text) => format!("text {}", &**text),
                Event::CData(data) => format!("data {}", &**data),
                Event::GeneralRef(name) => format!("reference {}", &**name),
                Event::Comment(text) => format!("comment {}", &**text),
                Event::PI(content) => format!("instruction {}", &**content),
                Event::Decl(content) => format!("instruction {}", &**content),
                Event::DocType(_) => "type".into(),
                Event::Eof => return (out, None),
            });
            out.push((start + markup.buffer_position() as usize).to_string());
        }
    }

    fn piece() -> impl Strategy<Value = String> {
        const PIECES: &[&str] = &[
            "<a>",
            "</a>",
            "<b c='>'>",
            "</b >",
            "</b\n\t>",
            "<p:a/>",
            "<a b=\"'\" />",
            "<\u{e9}/>",
            "</a b='>'>",
            "text",
            "&amp;",
            "&;",
            "&#x20;",
            "&",
            ";",
            "<!--",
            "-->",
            "--",
            "-",
            "<!-->",
            "<!--->",
            "<!--c-->",
            "<![CDATA[",
            "]]>",
            "]",
            "<![CDATA[d]]>",
            "<?",
            "?>",
            "<?xml version='1.0'?>",
            "<?>",
            "<??>",
            "<?p q?>",
            "<!DOCTYPE a>",
            "<!DOCTYPE a [<!ENTITY b 'c'>]>",
            "<!doctype>",
            "<!",
            "<![",
            "<!x>",
            "<",
            ">",
            "/",
            "</",
            "/>",
            "<>",
            "< a>",
            "</>",
            "'",
            "\"",
            "=",
            " ",
            "\n",
            "a",
            "b",
            ":",
            "<a:b:c>",
            "<1>",
            "\u{20ac}",
            "<a",
            "<b ",
            "<a/b>",
            "</ a>",
            "</aa>",
        ];
        prop::sample::select(PIECES).prop_map(str::to_owned)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

        #[test]
        fn markup_is_what_quick_xml_takes_for_it(
            mark in any::<bool>(),
            pieces in prop::collection::vec(piece(), 0..12),
        ) {
            let text = format!("{}{}", if mark { "\u{feff}" } else { "" }, pieces.concat());
            prop_assert_eq!(tokens(&text), expected(&text), "{}", text);
        }
    }
}
