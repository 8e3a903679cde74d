//! Reads XML as a stream of checked events, namespaces resolved.
//!
//! quick-xml finds the markup; what it leaves open is checked here: characters, names, attributes,
//! references, the declaration, one root, namespace constraints, and the limits. The tree and the
//! streaming XPath read through the same function, so that they cannot disagree.

use std::borrow::Cow;
use std::ops::ControlFlow;

use ahash::{AHashMap, AHashSet};
use quick_xml::events::Event;
use quick_xml::name::NamespaceError;
use quick_xml::reader::NsReader;

use super::{XML_NAMESPACE, XMLNS_NAMESPACE, XmlLimits, is_ncname, is_xml_char, split_name};

/// Characters that an error tells at most, beside the place.
const MESSAGE_MOST: usize = 200;
/// Declarations that may be in scope at one place.
const MAX_DECLARATIONS: usize = 256;

/// A plain reader of `text` that resolves names, for who looks for something in it. It takes as many
/// declarations as [`read`] does, and checks less.
pub fn namespaced(text: &str) -> NsReader<&[u8]> {
    let mut reader = NsReader::from_str(text);
    reader
        .resolver_mut()
        .set_max_namespace_bindings(MAX_DECLARATIONS);
    reader
}

/// What the error of a [`namespaced`] reader says to whoever wrote the document.
pub fn said(error: &quick_xml::Error) -> String {
    match error {
        quick_xml::Error::Namespace(NamespaceError::TooManyBindings(_)) => too_many(),
        other => other.to_string(),
    }
}

fn too_many() -> String {
    format!("more than {MAX_DECLARATIONS} namespace declarations in scope")
}

/// Why a text is not an XML document that the bus takes.
#[derive(Debug, Clone, PartialEq)]
pub struct XmlError {
    /// What is wrong.
    pub message: String,
    /// 1-based line.
    pub line: usize,
    /// 1-based column in characters.
    pub column: usize,
}

impl std::fmt::Display for XmlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "not well-formed XML: {} (line {}, column {})",
            self.message, self.line, self.column
        )
    }
}

/// One attribute of a start tag that is not a namespace declaration.
pub struct Attribute<'a> {
    /// Name as written.
    pub name: &'a str,
    /// Name without prefix.
    pub local: &'a str,
    /// Number of its namespace; 0 is none.
    pub uri: u32,
    /// Value, references resolved and white space normalised.
    pub value: Cow<'a, str>,
}

/// A start tag with its names resolved.
pub struct Start<'r, 'a> {
    /// The byte at which the tag begins.
    pub at: usize,
    /// Name as written.
    pub name: &'a str,
    /// Name without prefix.
    pub local: &'a str,
    /// Number of its namespace; 0 is none.
    pub uri: u32,
    /// Its attributes, namespace declarations aside.
    pub attributes: &'r [Attribute<'a>],
    /// Prefixes (empty: the default) with namespace numbers that this tag declares.
    pub declarations: &'r [(&'a str, u32)],
    /// Every namespace by its number.
    pub uris: &'r [Cow<'a, str>],
}

/// What takes the events. Breaking ends the reading early; what follows is not checked.
pub trait Sink<'a> {
    /// A start tag, or an empty one, which an end follows.
    fn start(&mut self, tag: &Start<'_, 'a>) -> ControlFlow<()>;
    /// The end of the innermost open element.
    fn end(&mut self) -> ControlFlow<()>;
    /// A piece of text, line ends normalised; a node's text may come in several pieces.
    fn text(&mut self, text: &str) -> ControlFlow<()>;
    /// A comment.
    fn comment(&mut self, text: &str) -> ControlFlow<()>;
    /// A processing instruction.
    fn instruction(&mut self, target: &'a str, data: &str) -> ControlFlow<()>;
}

/// How the reading ended.
#[derive(Debug, PartialEq, Clone, Copy)]
pub enum End {
    /// At the end of a well-formed document.
    Document,
    /// Because the sink had enough.
    Early,
}

/// Reads `text` into `sink`.
pub fn read<'a>(
    text: &'a str,
    limits: &XmlLimits,
    sink: &mut impl Sink<'a>,
) -> Result<End, XmlError> {
    let mut state = State {
        uris: vec![Cow::Borrowed(""), Cow::Borrowed(XML_NAMESPACE)],
        uri_ids: AHashMap::new(),
        scope: vec![("xml", 1)],
        marks: Vec::new(),
        attributes: Vec::new(),
        declarations: Vec::new(),
        limits: *limits,
        nodes: 0,
        rooted: false,
    };
    let mut reader = quick_xml::Reader::from_str(text);
    let config = reader.config_mut();
    config.check_comments = true;
    config.check_end_names = true;
    if let Err((at, message)) = check_chars(text) {
        return Err(place(text, at, message));
    }
    loop {
        let at = reader.buffer_position() as usize;
        let event = match reader.read_event() {
            Ok(event) => event,
            Err(error) => {
                return Err(place(
                    text,
                    reader.error_position() as usize,
                    error.to_string(),
                ));
            }
        };
        let flow = match event {
            Event::Eof => {
                return if !state.marks.is_empty() {
                    Err(place(
                        text,
                        text.len(),
                        "the document ends within an element".into(),
                    ))
                } else if !state.rooted {
                    Err(place(text, text.len(), "there is no root element".into()))
                } else {
                    Ok(End::Document)
                };
            }
            other => state.event(text, at, other, sink),
        };
        match flow {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => return Ok(End::Early),
            Err(message) => return Err(place(text, at, message)),
        }
    }
}

struct State<'a> {
    uris: Vec<Cow<'a, str>>,
    uri_ids: AHashMap<Cow<'a, str>, u32>,
    /// Prefixes in scope, innermost last.
    scope: Vec<(&'a str, u32)>,
    /// Length of `scope` outside each open element.
    marks: Vec<u32>,
    attributes: Vec<Attribute<'a>>,
    declarations: Vec<(&'a str, u32)>,
    limits: XmlLimits,
    nodes: usize,
    rooted: bool,
}

type Flow = Result<ControlFlow<()>, String>;

impl<'a> State<'a> {
    fn event(
        &mut self,
        whole: &'a str,
        at: usize,
        event: Event<'a>,
        sink: &mut impl Sink<'a>,
    ) -> Flow {
        match event {
            Event::Start(tag) => self.start(
                at,
                slice(whole, &tag),
                tag.name().as_ref().len(),
                false,
                sink,
            ),
            Event::Empty(tag) => self.start(
                at,
                slice(whole, &tag),
                tag.name().as_ref().len(),
                true,
                sink,
            ),
            Event::End(_) => {
                if let Some(mark) = self.marks.pop() {
                    self.scope.truncate(mark as usize);
                }
                Ok(sink.end())
            }
            Event::Text(text) => {
                let text: &str = &text;
                if self.marks.is_empty() {
                    return if text.bytes().all(is_space) {
                        Ok(ControlFlow::Continue(()))
                    } else {
                        Err("text outside the root element".into())
                    };
                }
                if memchr::memchr(b']', text.as_bytes()).is_some() && text.contains("]]>") {
                    return Err("']]>' within text".into());
                }
                self.node()?;
                Ok(sink.text(&normalise_lines(text)))
            }
            Event::CData(data) => {
                if self.marks.is_empty() {
                    return Err("a CDATA section outside the root element".into());
                }
                self.node()?;
                let data: &str = &data;
                Ok(if data.is_empty() {
                    ControlFlow::Continue(())
                } else {
                    sink.text(&normalise_lines(data))
                })
            }
            Event::GeneralRef(name) => {
                if self.marks.is_empty() {
                    return Err("a reference outside the root element".into());
                }
                self.node()?;
                let c = reference(&name)?;
                Ok(sink.text(c.encode_utf8(&mut [0; 4])))
            }
            Event::Comment(text) => {
                self.node()?;
                Ok(sink.comment(&normalise_lines(&text)))
            }
            Event::PI(pi) => {
                self.node()?;
                let content: &'a str = slice(whole, &pi);
                let end = content.bytes().position(is_space).unwrap_or(content.len());
                let (target, data) = content.split_at(end);
                if !is_ncname(target) {
                    return Err(format!("'{target}' cannot name a processing instruction"));
                }
                if target.eq_ignore_ascii_case("xml") {
                    return Err("an XML declaration anywhere but at the very start".into());
                }
                let data = data.trim_start_matches([' ', '\t', '\n', '\r']);
                Ok(sink.instruction(target, &normalise_lines(data)))
            }
            Event::Decl(decl) => {
                if at != 0 {
                    return Err("an XML declaration anywhere but at the very start".into());
                }
                check_declaration(&decl)?;
                Ok(ControlFlow::Continue(()))
            }
            Event::DocType(_) => Err("a document type declaration (DTD) is not accepted".into()),
            Event::Eof => Ok(ControlFlow::Continue(())),
        }
    }

    fn node(&mut self) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > self.limits.nodes {
            return Err(format!("more than {} nodes", self.limits.nodes));
        }
        Ok(())
    }

    fn start(
        &mut self,
        at: usize,
        content: &'a str,
        name_len: usize,
        empty: bool,
        sink: &mut impl Sink<'a>,
    ) -> Flow {
        if self.marks.is_empty() {
            if self.rooted {
                return Err("a second root element".into());
            }
            self.rooted = true;
        }
        if self.marks.len() >= self.limits.depth {
            return Err(format!(
                "elements nested more than {} deep",
                self.limits.depth
            ));
        }
        self.node()?;
        let mark = self.scope.len() as u32;
        let (name, rest) = content.split_at(name_len);
        self.attributes.clear();
        self.declarations.clear();
        if !rest.is_empty() {
            self.read_attributes(rest)?;
        }
        let (prefix, local) = split(name)?;
        if prefix == "xmlns" {
            return Err("an element cannot have the prefix xmlns".into());
        }
        let uri = self.lookup(prefix)?;
        for number in 0..self.attributes.len() {
            // An attribute without a prefix is in no namespace.
            let name = self.attributes[number].name;
            let local = self.attributes[number].local;
            if local.len() != name.len() {
                self.attributes[number].uri = self.lookup(&name[..name.len() - local.len() - 1])?;
            }
        }
        self.check_duplicates()?;
        let flow = sink.start(&Start {
            at,
            name,
            local,
            uri,
            attributes: &self.attributes,
            declarations: &self.declarations,
            uris: &self.uris,
        });
        if empty {
            self.scope.truncate(mark as usize);
            if flow.is_continue() {
                return Ok(sink.end());
            }
        } else {
            self.marks.push(mark);
        }
        Ok(flow)
    }

    fn lookup(&self, prefix: &str) -> Result<u32, String> {
        for (known, uri) in self.scope.iter().rev() {
            if *known == prefix {
                return Ok(*uri);
            }
        }
        if prefix.is_empty() {
            Ok(0)
        } else {
            Err(format!("the prefix '{prefix}' is not declared"))
        }
    }

    fn uri(&mut self, uri: Cow<'a, str>) -> u32 {
        if uri.is_empty() {
            return 0;
        }
        if uri == XML_NAMESPACE {
            return 1;
        }
        if let Some(id) = self.uri_ids.get(&uri) {
            return *id;
        }
        let id = self.uris.len() as u32;
        self.uris.push(uri.clone());
        self.uri_ids.insert(uri, id);
        id
    }

    fn read_attributes(&mut self, text: &'a str) -> Result<(), String> {
        let bytes = text.as_bytes();
        let mut at = 0;
        loop {
            let before = at;
            while at < bytes.len() && is_space(bytes[at]) {
                at += 1;
            }
            if at == bytes.len() {
                return Ok(());
            }
            if at == before {
                return Err("white space is missing between attributes".into());
            }
            let start = at;
            while at < bytes.len() && bytes[at] != b'=' && !is_space(bytes[at]) {
                at += 1;
            }
            let name = &text[start..at];
            while at < bytes.len() && is_space(bytes[at]) {
                at += 1;
            }
            if at == bytes.len() || bytes[at] != b'=' {
                return Err(format!("the attribute '{name}' has no value"));
            }
            at += 1;
            while at < bytes.len() && is_space(bytes[at]) {
                at += 1;
            }
            let quote = match bytes.get(at) {
                Some(quote @ (b'"' | b'\'')) => *quote,
                _ => return Err(format!("the value of the attribute '{name}' is not quoted")),
            };
            at += 1;
            let Some(length) = memchr::memchr(quote, &bytes[at..]) else {
                return Err(format!("the value of the attribute '{name}' does not end"));
            };
            let value = attribute_value(&text[at..at + length])
                .map_err(|error| format!("attribute '{name}': {error}"))?;
            at += length + 1;
            if self.attributes.len() + self.declarations.len() >= self.limits.attributes {
                return Err(format!(
                    "more than {} attributes at one element",
                    self.limits.attributes
                ));
            }
            self.node()?;
            let (prefix, local) = split(name)?;
            if prefix == "xmlns" {
                self.declare(local, value)?;
            } else if prefix.is_empty() && local == "xmlns" {
                self.declare("", value)?;
            } else {
                self.attributes.push(Attribute {
                    name,
                    local,
                    uri: 0,
                    value,
                });
            }
        }
    }

    /// Takes a namespace declaration (Namespaces in XML 1.0 sections 3 and 5).
    fn declare(&mut self, prefix: &'a str, uri: Cow<'a, str>) -> Result<(), String> {
        if prefix == "xmlns" || uri == XMLNS_NAMESPACE {
            return Err("the prefix xmlns and its namespace cannot be declared".into());
        }
        if (prefix == "xml") != (uri == XML_NAMESPACE) {
            return Err("the prefix xml and its namespace belong together".into());
        }
        if !prefix.is_empty() && uri.is_empty() {
            return Err(format!("the prefix '{prefix}' cannot be undeclared"));
        }
        if self.declarations.iter().any(|(known, _)| *known == prefix) {
            return Err(format!("the prefix '{prefix}' is declared twice"));
        }
        if self.scope.len() >= MAX_DECLARATIONS {
            return Err(too_many());
        }
        let id = self.uri(uri);
        self.declarations.push((prefix, id));
        self.scope.push((prefix, id));
        Ok(())
    }

    fn check_duplicates(&self) -> Result<(), String> {
        let attributes = &self.attributes;
        let same = |a: &Attribute<'_>, b: &Attribute<'_>| a.uri == b.uri && a.local == b.local;
        let twice = |a: &Attribute<'_>| Err(format!("the attribute '{}' appears twice", a.name));
        if attributes.len() < 12 {
            for (at, a) in attributes.iter().enumerate() {
                if attributes[..at].iter().any(|b| same(a, b)) {
                    return twice(a);
                }
            }
        } else {
            let mut seen = AHashSet::with_capacity(attributes.len());
            for a in attributes {
                if !seen.insert((a.uri, a.local)) {
                    return twice(a);
                }
            }
        }
        Ok(())
    }
}

/// The part of `whole` that a borrowed event covers, with the lifetime of the whole.
fn slice<'a>(whole: &'a str, part: &str) -> &'a str {
    let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
    whole
        .get(start..start.wrapping_add(part.len()))
        .unwrap_or_default()
}

fn split(name: &str) -> Result<(&str, &str), String> {
    split_name(name).ok_or_else(|| format!("'{name}' is not a name"))
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Line ends as section 2.11 wants them.
fn normalise_lines(text: &str) -> Cow<'_, str> {
    if memchr::memchr(b'\r', text.as_bytes()).is_none() {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n"))
    }
}

/// An attribute's value by section 3.3.3 (no DTD: every attribute is CDATA).
fn attribute_value(raw: &str) -> Result<Cow<'_, str>, String> {
    let bytes = raw.as_bytes();
    if memchr::memchr2(b'&', b'<', bytes).is_none()
        && memchr::memchr3(b'\t', b'\n', b'\r', bytes).is_none()
    {
        return Ok(Cow::Borrowed(raw));
    }
    let raw = normalise_lines(raw);
    let mut value = String::with_capacity(raw.len());
    let mut rest = &*raw;
    while let Some(at) = rest.find(['&', '<', '\t', '\n']) {
        value.push_str(&rest[..at]);
        match rest.as_bytes()[at] {
            b'<' => return Err("'<' within a value".into()),
            b'&' => {
                let end = rest[at..]
                    .find(';')
                    .ok_or("'&' that does not begin a reference")?;
                value.push(reference(&rest[at + 1..at + end])?);
                rest = &rest[at + end + 1..];
            }
            _ => {
                value.push(' ');
                rest = &rest[at + 1..];
            }
        }
    }
    value.push_str(rest);
    Ok(Cow::Owned(value))
}

/// The character that `&name;` stands for.
fn reference(name: &str) -> Result<char, String> {
    match name {
        "lt" => return Ok('<'),
        "gt" => return Ok('>'),
        "amp" => return Ok('&'),
        "apos" => return Ok('\''),
        "quot" => return Ok('"'),
        _ => {}
    }
    let wrong = || format!("'&{};' is not a character", shorten(name, 40));
    let number = match name.strip_prefix('#') {
        None => {
            return Err(format!(
                "the entity '&{};' is not declared (DTDs are not accepted)",
                shorten(name, 40)
            ));
        }
        Some(digits) => match digits.strip_prefix('x') {
            Some(hex) if !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
                u32::from_str_radix(hex, 16).map_err(|_| wrong())?
            }
            None if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().map_err(|_| wrong())?
            }
            _ => return Err(wrong()),
        },
    };
    char::from_u32(number)
        .filter(|c| is_xml_char(*c))
        .ok_or_else(wrong)
}

fn shorten(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        None => Cow::Borrowed(text),
        Some((at, _)) => Cow::Owned(format!("{}…", &text[..at])),
    }
}

/// Whether every character may stand in a document; else where the first is that may not.
fn check_chars(text: &str) -> Result<(), (usize, String)> {
    let bytes = text.as_bytes();
    let suspicious = |chunk: &[u8]| {
        // Branch-free, so that it runs at memory speed.
        chunk.iter().fold(false, |any, b| {
            any | (*b < 0x20) & (*b != b'\n') & (*b != b'\r') & (*b != b'\t') | (*b == 0xEF)
        })
    };
    for (number, chunk) in bytes.chunks(1024).enumerate() {
        if !suspicious(chunk) {
            continue;
        }
        for (offset, byte) in chunk.iter().enumerate() {
            let at = number * 1024 + offset;
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
    Ok(())
}

/// The XML declaration's content by productions 23 to 32.
fn check_declaration(content: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("the XML declaration is wrong: {what}"));
    let Some(mut rest) = content.strip_prefix("xml") else {
        return wrong("it must begin with <?xml");
    };
    let mut last = 0;
    loop {
        let trimmed = rest.trim_start_matches([' ', '\t', '\n', '\r']);
        if trimmed.is_empty() {
            break;
        }
        if trimmed.len() == rest.len() {
            return wrong("white space is missing");
        }
        let Some((name, after)) = trimmed.split_once('=') else {
            return wrong("a value is missing");
        };
        let after = after.trim_start_matches([' ', '\t', '\n', '\r']);
        let quote = match after.chars().next() {
            Some(quote @ ('"' | '\'')) => quote,
            _ => return wrong("a value is not quoted"),
        };
        let Some((value, after)) = after[1..].split_once(quote) else {
            return wrong("a value does not end");
        };
        rest = after;
        let (order, fine) = match name.trim_end_matches([' ', '\t', '\n', '\r']) {
            "version" => (
                1,
                value.strip_prefix("1.").is_some_and(|minor| {
                    !minor.is_empty() && minor.bytes().all(|b| b.is_ascii_digit())
                }),
            ),
            "encoding" => (
                2,
                value.starts_with(|c: char| c.is_ascii_alphabetic())
                    && value
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')),
            ),
            "standalone" => (3, matches!(value, "yes" | "no")),
            _ => return wrong("only version, encoding and standalone may stand in it"),
        };
        if order <= last || (last == 0 && order != 1) {
            return wrong("the order is version, encoding, standalone");
        }
        if !fine {
            return wrong("a value is not allowed");
        }
        last = order;
    }
    if last == 0 {
        return wrong("the version is missing");
    }
    Ok(())
}

fn place(text: &str, at: usize, message: String) -> XmlError {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |n| n + 1);
    XmlError {
        // A name in it may be as long as the document.
        message: shorten(&message, MESSAGE_MOST).into_owned(),
        line: memchr::memchr_iter(b'\n', before.as_bytes()).count() + 1,
        column: before[line_start..].chars().count() + 1,
    }
}

/// Line and column (1-based, in characters) of the start tag with that number among the document's
/// elements, counted from 0; nothing when there are fewer.
pub fn place_of_element(text: &str, limits: &XmlLimits, number: usize) -> Option<(usize, usize)> {
    struct Counting {
        left: usize,
        found: Option<usize>,
    }
    impl<'a> Sink<'a> for Counting {
        fn start(&mut self, tag: &Start<'_, 'a>) -> ControlFlow<()> {
            if self.left == 0 {
                self.found = Some(tag.at);
                return ControlFlow::Break(());
            }
            self.left -= 1;
            ControlFlow::Continue(())
        }
        fn end(&mut self) -> ControlFlow<()> {
            ControlFlow::Continue(())
        }
        fn text(&mut self, _: &str) -> ControlFlow<()> {
            ControlFlow::Continue(())
        }
        fn comment(&mut self, _: &str) -> ControlFlow<()> {
            ControlFlow::Continue(())
        }
        fn instruction(&mut self, _: &'a str, _: &str) -> ControlFlow<()> {
            ControlFlow::Continue(())
        }
    }
    let mut counting = Counting {
        left: number,
        found: None,
    };
    read(text, limits, &mut counting).ok()?;
    let found = place(text, counting.found?, String::new());
    Some((found.line, found.column))
}
