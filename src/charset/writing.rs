//! The charset that a route wants its bodies in: what stands under `charset` of a sender.

use std::borrow::Cow;
use std::collections::HashMap;

use bytes::Bytes;
use xbus_core::spec::{Args, Field, Type};
use xbus_core::{Code, Fault, Format, Message, long};

use crate::encode::lacking;
use crate::{Charset, Error, declare, text_leniently};

/// Bytes of which it takes long to make others: slower than reading them.
const ENOUGH: usize = long::PASSED / 4;

/// What `charset` of a sender takes: a label, or a map of [`FIELDS`].
pub const TYPE: Type = Type::Either(&[Type::Text, Type::Object(FIELDS)]);

/// What can stand under `charset` where it is a map.
pub const FIELDS: &[Field] = &[
    Field::new("to", Type::Text, "The charset, by its IANA label.").required(),
    Field::new(
        "replace",
        Type::Text,
        "What stands for a character that the charset lacks: a text such as `?`, or the word \
         `reference` for a character reference, which XML alone knows (`&#x20AC;`). In the names and \
         instructions of XML nothing can be replaced, and comments lose the character. Left out: such \
         a character is an error that says which and where.",
    ),
];

/// What becomes of a character that the charset lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Replace {
    Never,
    With(String),
    Reference,
}

/// A charset to write, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writing {
    label: String,
    charset: Charset,
    replace: Replace,
}

impl Writing {
    /// What was written under `key`, whose type is [`TYPE`]. The outer `Option` is empty when that
    /// cannot be used, which has been added to the problems; the inner when nothing was written.
    pub fn read(args: Args<'_>, key: &str) -> Option<Option<Self>> {
        let Some(node) = args.node(key) else {
            return Some(None);
        };
        let wrong = |code, message: String, help: &str| {
            let problems = args.build.problems;
            problems.error(&args.place(key), code, message, help);
        };
        let inner = args.object(key, FIELDS);
        let (label, replace) = match node.text() {
            Some(label) => (label.to_owned(), None),
            None => (inner.text("to")?, inner.text("replace")),
        };
        let Ok(charset) = Charset::by_label(&label) else {
            wrong(
                "unknown-charset",
                format!("no charset has the label '{label}'"),
                "write an IANA label such as utf-8, iso-8859-1, windows-1252 or utf-16le",
            );
            return None;
        };
        let replace = match replace {
            None => Replace::Never,
            Some(word) if word == "reference" => Replace::Reference,
            Some(text) if charset.bytes(&text).is_ok() && !text.contains(char::is_control) => {
                Replace::With(text)
            }
            Some(text) => {
                wrong(
                    "bad-replacement",
                    format!("'{}' cannot stand in {label} itself", text.escape_debug()),
                    "write a text that the charset has, such as '?', or reference",
                );
                return None;
            }
        };
        Some(Some(Self {
            label,
            charset,
            replace,
        }))
    }

    /// Writes in the charset of `label`, and replaces nothing.
    pub fn to(label: &str) -> Result<Self, Error> {
        Ok(Self {
            label: label.to_owned(),
            charset: Charset::by_label(label)?,
            replace: Replace::Never,
        })
    }

    /// Writes in the charset of `label`, with `replacement` for what that lacks.
    ///
    /// # Errors
    /// [`Error::Unknown`], and [`Error::Lacking`] when the charset lacks the replacement itself.
    pub fn replacing(label: &str, replacement: &str) -> Result<Self, Error> {
        let writing = Self::to(label)?;
        writing.bytes(replacement, false)?;
        Ok(Self {
            replace: Replace::With(replacement.to_owned()),
            ..writing
        })
    }

    /// The charset's label, as it was written.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The message with its body in the charset. XML declaration and content type say so.
    ///
    /// # Errors
    /// `transform`: the body is no text in the charset that it is in, or holds a character that
    /// cannot be written, with its place in the body.
    pub fn apply(&self, message: &Message) -> Result<Message, Fault> {
        let text = text_leniently(message).map_err(fault)?;
        let xml = is_xml(message, &text);
        let bytes = self.bytes(&text, xml).map_err(fault)?;
        let mut made = message.with_body(Bytes::from(bytes));
        let plain = if xml { "application/xml" } else { "text/plain" };
        let given = message.content_type().unwrap_or(plain);
        made.headers
            .set("content-type", &relabelled(given, &self.label));
        Ok(made)
    }

    /// The bytes of a text, which is XML or not.
    pub fn bytes(&self, text: &str, xml: bool) -> Result<Vec<u8>, Error> {
        long::over(text.len(), ENOUGH, || self.make(text, xml))
    }

    fn make(&self, text: &str, xml: bool) -> Result<Vec<u8>, Error> {
        let whole = |text: &str| match xml {
            true => self.charset.bytes(&declare(text, &self.label)),
            false => self.charset.bytes(text),
        };
        let at = match whole(text) {
            Ok(bytes) => return Ok(bytes),
            // Its place in what was given, which may have no declaration.
            Err(at) => self.charset.bytes(text).err().unwrap_or(at),
        };
        let lacks = |at| lacking(text, at, &self.label);
        let replaced = match (&self.replace, xml) {
            (Replace::Never, _) | (Replace::Reference, false) => return Err(lacks(at)),
            (Replace::With(with), false) => self.in_text(text, with),
            (_, true) => self.in_xml(text).map_err(lacks)?,
        };
        whole(&replaced).map_err(|_| lacks(at))
    }

    fn in_text(&self, text: &str, with: &str) -> String {
        let mut can = Can::new(self.charset);
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            match can.write(c) {
                true => out.push(c),
                false => out.push_str(with),
            }
        }
        out
    }

    /// XML with each character replaced that can be; the error is the place of one that cannot.
    fn in_xml(&self, text: &str) -> Result<String, usize> {
        let mut can = Can::new(self.charset);
        let mut out = String::with_capacity(text.len() + 64);
        let mut at = 0;
        let mut place = Place::Text;
        while let Some(c) = text[at..].chars().next() {
            let rest = &text[at..];
            if let Some((next, length)) = place.step(rest) {
                out.push_str(&rest[..length]);
                at += length;
                place = next;
                continue;
            }
            match (can.write(c), place) {
                (true, _) => out.push(c),
                (false, Place::Text | Place::Value(_)) => out.push_str(&self.replacement(c)),
                (false, Place::CData) => match &self.replace {
                    Replace::With(with) if !with.contains(['>', ']']) => out.push_str(with),
                    // References mean nothing within, and what would end it ends it.
                    _ => {
                        out.push_str("]]>");
                        out.push_str(&self.replacement(c));
                        out.push_str("<![CDATA[");
                    }
                },
                (false, Place::Comment) => {}
                (false, Place::Tag | Place::Instruction) => return Err(at),
            }
            at += c.len_utf8();
        }
        Ok(out)
    }

    /// What stands for a character in the text of XML.
    fn replacement(&self, c: char) -> Cow<'_, str> {
        match &self.replace {
            Replace::With(with) if with.contains(['&', '<', '>', '"', '\'']) => {
                let mut out = String::new();
                for c in with.chars() {
                    match c {
                        '&' => out.push_str("&amp;"),
                        '<' => out.push_str("&lt;"),
                        '>' => out.push_str("&gt;"),
                        '"' => out.push_str("&quot;"),
                        '\'' => out.push_str("&apos;"),
                        c => out.push(c),
                    }
                }
                out.into()
            }
            Replace::With(with) => with.as_str().into(),
            _ => format!("&#x{:X};", u32::from(c)).into(),
        }
    }
}

/// Where in an XML document something stands.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Text,
    CData,
    Comment,
    Instruction,
    /// Within a tag, outside of values.
    Tag,
    /// Within a value that ends with this quote.
    Value(char),
}

impl Place {
    /// What begins here with so many bytes of markup; nothing when the place stays.
    fn step(self, rest: &str) -> Option<(Place, usize)> {
        let first = rest.as_bytes().first()?;
        let (mark, next) = match (self, first) {
            (Place::Text, b'<') => {
                for (mark, next) in [
                    ("<!--", Place::Comment),
                    ("<![CDATA[", Place::CData),
                    ("<?", Place::Instruction),
                    ("<", Place::Tag),
                ] {
                    if rest.starts_with(mark) {
                        return Some((next, mark.len()));
                    }
                }
                return None;
            }
            (Place::CData, b']') => ("]]>", Place::Text),
            (Place::Comment, b'-') => ("-->", Place::Text),
            (Place::Instruction, b'?') => ("?>", Place::Text),
            (Place::Tag, b'>') => (">", Place::Text),
            (Place::Tag, b'"') => ("\"", Place::Value('"')),
            (Place::Tag, b'\'') => ("'", Place::Value('\'')),
            (Place::Value('"'), b'"') => ("\"", Place::Tag),
            (Place::Value(_), b'\'') if self == Place::Value('\'') => ("'", Place::Tag),
            _ => return None,
        };
        rest.starts_with(mark).then_some((next, mark.len()))
    }
}

/// Which characters a charset has, asked once for each.
struct Can {
    charset: Charset,
    known: HashMap<char, bool>,
}

impl Can {
    fn new(charset: Charset) -> Self {
        Self {
            charset,
            known: HashMap::new(),
        }
    }

    fn write(&mut self, c: char) -> bool {
        if matches!(c, ' '..='~' | '\t' | '\n' | '\r') {
            // Every charset that there is has these, shift_jis' yen and tilde among them.
            return true;
        }
        let charset = self.charset;
        *self
            .known
            .entry(c)
            .or_insert_with(|| charset.bytes(c.encode_utf8(&mut [0; 4])).is_ok())
    }
}

fn fault(error: Error) -> Fault {
    Fault::new(Code::Transform, error.to_string())
}

fn is_xml(message: &Message, text: &str) -> bool {
    match message.format() {
        Some(format) => format == Format::Xml,
        None => text.starts_with("<?xml"),
    }
}

/// A content type whose charset parameter is `label`; its other parameters stay.
pub fn relabelled(content_type: &str, label: &str) -> String {
    let mut parts = content_type.split(';').map(str::trim);
    let mut value = parts.next().unwrap_or_default().to_owned();
    for parameter in parts {
        let name = parameter.split('=').next().unwrap_or_default();
        if !parameter.is_empty() && !name.trim().eq_ignore_ascii_case("charset") {
            value.push_str("; ");
            value.push_str(parameter);
        }
    }
    value.push_str("; charset=");
    value.push_str(label);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writing(label: &str, replace: Replace) -> Writing {
        Writing {
            replace,
            ..Writing::to(label).unwrap()
        }
    }

    fn latin1(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| char::from(*byte)).collect()
    }

    fn message(content_type: &str, body: &[u8]) -> Message {
        let mut message = Message::new(body.to_vec());
        message.headers.set("content-type", content_type);
        message
    }

    #[test]
    fn what_a_charset_lacks_is_replaced_where_xml_lets_it() {
        let reference = writing("iso-8859-1", Replace::Reference);
        let with = writing("iso-8859-1", Replace::With("<?>".into()));
        let declaration = "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n";
        for (from, referred, replaced) in [
            ("<a>5 €</a>", "<a>5 &#x20AC;</a>", "<a>5 &lt;?&gt;</a>"),
            (
                "<a b='€\"' c=\"'€\">é</a>",
                "<a b='&#x20AC;\"' c=\"'&#x20AC;\">é</a>",
                "<a b='&lt;?&gt;\"' c=\"'&lt;?&gt;\">é</a>",
            ),
            (
                "<a><![CDATA[<€>]]></a>",
                "<a><![CDATA[<]]>&#x20AC;<![CDATA[>]]></a>",
                "<a><![CDATA[<]]>&lt;?&gt;<![CDATA[>]]></a>",
            ),
            (
                "<a><!-- 5 € -->é</a>",
                "<a><!-- 5  -->é</a>",
                "<a><!-- 5  -->é</a>",
            ),
            ("<a>𠀀</a>", "<a>&#x20000;</a>", "<a>&lt;?&gt;</a>"),
        ] {
            let bytes = reference.bytes(from, true).unwrap();
            assert_eq!(latin1(&bytes), format!("{declaration}{referred}"));
            let bytes = with.bytes(from, true).unwrap();
            assert_eq!(latin1(&bytes), format!("{declaration}{replaced}"));
        }
        for (bad, column) in [("<a €='1'/>", 4), ("<€/>", 2), ("<a><?p €?></a>", 8)] {
            for how in [&reference, &with] {
                let error = how.bytes(bad, true).unwrap_err().to_string();
                let place = format!("'€' (U+20AC), which stands at line 1, column {column}");
                assert!(error.contains(&place), "{error}");
            }
        }
    }

    #[test]
    fn text_has_no_references() {
        let with = writing("us-ascii", Replace::With("?".into()));
        assert_eq!(with.bytes("5 € für", false).unwrap(), b"5 ? f?r");
        let reference = writing("us-ascii", Replace::Reference);
        let error = reference.bytes("a\n5 €", false).unwrap_err().to_string();
        assert!(error.contains("line 2, column 3"), "{error}");
    }

    #[test]
    fn the_place_is_that_in_the_body_as_it_was() {
        for body in ["<a>\n€</a>", "<?xml version='1.0'?><a>\n€</a>"] {
            let error = Writing::to("latin1").unwrap().bytes(body, true);
            let error = error.unwrap_err().to_string();
            assert!(error.contains("line 2, column 1"), "{error}");
        }
    }

    #[test]
    fn declaration_and_content_type_follow() {
        let writing = Writing::to("iso-8859-15").unwrap();
        for (content_type, body, expected_type, expected) in [
            (
                "text/xml; charset=utf-8",
                "<?xml version='1.0' encoding='UTF-8'?><a>€</a>",
                "text/xml; charset=iso-8859-15",
                "<?xml version='1.0' encoding='iso-8859-15'?><a>\u{a4}</a>",
            ),
            (
                "application/soap+xml; Charset=\"utf-8\"; action=\"urn:a\"",
                "<a/>",
                "application/soap+xml; action=\"urn:a\"; charset=iso-8859-15",
                "<?xml version=\"1.0\" encoding=\"iso-8859-15\"?>\n<a/>",
            ),
            (
                "text/csv; header=present",
                "a;€",
                "text/csv; header=present; charset=iso-8859-15",
                "a;\u{a4}",
            ),
        ] {
            let made = writing
                .apply(&message(content_type, body.as_bytes()))
                .unwrap();
            assert_eq!(made.content_type(), Some(expected_type));
            assert_eq!(latin1(made.body.bytes()), expected);
        }
    }

    #[test]
    fn the_source_charset_is_read() {
        let declared = b"<?xml version=\"1.0\" encoding=\"iso-8859-1\"?><a>\xe4</a>";
        let utf8 = Writing::to("utf-8").unwrap();
        let made = utf8.apply(&message("application/xml", declared)).unwrap();
        let text = std::str::from_utf8(made.body.bytes()).unwrap();
        assert!(text.contains("encoding=\"utf-8\"?><a>ä"), "{text}");
        let typed = message("text/plain; charset=\"windows-1252\"", b"\x80");
        assert_eq!(utf8.apply(&typed).unwrap().body.bytes(), "€".as_bytes());
        let fault = utf8.apply(&message("text/plain", b"\xff\xff")).unwrap_err();
        assert_eq!(fault.code, Code::Transform);
    }
}
