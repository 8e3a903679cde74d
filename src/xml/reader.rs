//! Reads XML as a stream of checked events, namespaces resolved.
//!
//! quick-xml finds the markup; what it leaves open is checked here: names, attributes, references,
//! the declaration, one root, namespace constraints, and the limits; characters and end tags one step before,
//! in `scan`. Trees, the streaming XPath and the look at an envelope read through the same code, so that
//! they cannot disagree, and one may go on where another has paused.

use std::borrow::Cow;
use std::ops::{ControlFlow, Range};

use ahash::{AHashMap, AHashSet};
use quick_xml::name::NamespaceError;
use quick_xml::reader::NsReader;

use super::scan::{Place, Scanner, Token};
use super::{
    XML_NAMESPACE, XMLNS_NAMESPACE, XmlLimits, ascii_name, is_ncname, is_space, is_xml_char, same,
    split_name,
};

/// Characters that an error tells at most, beside the place.
const MESSAGE_MOST: usize = 200;
/// Declarations that may be in scope at one place.
const MAX_DECLARATIONS: usize = 256;
/// Namespaces that are looked for one by one; further ones through a map.
const FEW_URIS: usize = 8;

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

impl Start<'_, '_> {
    /// The namespace of its name; empty for none.
    pub fn namespace(&self) -> &str {
        self.uris.get(self.uri as usize).map_or("", |uri| uri)
    }
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
    Reader::of_text(text, limits).into_sink(sink)
}

/// As [`read`], of bytes that are to be UTF-8: they are looked at as far as they are read.
pub fn read_bytes<'a>(
    bytes: &'a [u8],
    limits: &XmlLimits,
    sink: &mut impl Sink<'a>,
) -> Result<End, XmlError> {
    Reader::of_bytes(bytes, limits).into_sink(sink)
}

/// What comes next in a document.
pub enum Step<'a> {
    /// A start tag, or an empty one, which an end follows: [`Reader::tag`].
    Start,
    /// The end of the innermost open element.
    End,
    /// A piece of text, line ends normalised; a node's text may come in several pieces.
    Text(Cow<'a, str>),
    /// A reference within a text.
    Character(char),
    /// A comment.
    Comment(Cow<'a, str>),
    /// A processing instruction: its target and what follows.
    Instruction(&'a str, Cow<'a, str>),
    /// The end of a well-formed document.
    Document,
}

/// An element that is open.
struct Open<'a> {
    name: &'a str,
    /// Where its local part begins.
    local: usize,
    /// Number of its namespace.
    uri: u32,
    /// Length of `scope` outside of it.
    outside: usize,
}

/// The same without a text to borrow of.
#[derive(Debug, PartialEq)]
struct PausedOpen {
    name: Range<usize>,
    local: usize,
    uri: u32,
    outside: usize,
}

/// The same of an attribute.
#[derive(Debug, PartialEq)]
struct PausedAttribute {
    name: Range<usize>,
    /// Where the local part begins.
    local: usize,
    uri: u32,
    value: Range<usize>,
}

/// Where a reading has paused, behind a start tag: what is open there, what is in scope, and the tag.
#[derive(Debug, PartialEq)]
pub struct Pause {
    place: Place,
    limits: XmlLimits,
    nodes: usize,
    open: Vec<PausedOpen>,
    scope: Vec<(Range<usize>, u32)>,
    /// Namespaces after the first two, which every document has.
    uris: Vec<Range<usize>>,
    /// Where the tag begins.
    at: usize,
    attributes: Vec<PausedAttribute>,
    /// It is empty.
    empty: bool,
}

/// Reads a document event by event.
pub struct Reader<'a> {
    scanner: Scanner<'a>,
    uris: Vec<Cow<'a, str>>,
    /// Numbers of the namespaces after the first few.
    uri_ids: Option<AHashMap<Cow<'a, str>, u32>>,
    /// Prefixes in scope, innermost last.
    scope: Vec<(&'a str, u32)>,
    open: Vec<Open<'a>>,
    attributes: Vec<Attribute<'a>>,
    limits: XmlLimits,
    nodes: usize,
    rooted: bool,
    /// Where the last event begins, or what is wrong with it.
    begun: usize,
    /// The last start tag: where, what, and the number of its namespace.
    at: usize,
    name: &'a str,
    local: &'a str,
    uri: u32,
    /// It was empty: its end comes next.
    empty: bool,
    /// It is to be told first.
    again: bool,
}

impl<'a> Reader<'a> {
    /// A reader of a whole document.
    pub fn of_text(text: &'a str, limits: &XmlLimits) -> Self {
        Self::new(Scanner::of_text(text), limits)
    }

    /// A reader of bytes that are to be UTF-8, which is an error where they turn out not to be.
    pub fn of_bytes(bytes: &'a [u8], limits: &XmlLimits) -> Self {
        Self::new(Scanner::of_bytes(bytes), limits)
    }

    /// A reader that goes on where another has paused in the same bytes, with the start tag as its first
    /// event; nothing where it could come to something else than a reading from the beginning under these
    /// limits.
    pub fn resume(bytes: &'a [u8], pause: &Pause, limits: &XmlLimits) -> Option<Self> {
        let known = &pause.limits;
        if limits.depth < known.depth
            || limits.attributes < known.attributes
            || limits.nodes < known.nodes
        {
            return None;
        }
        let scanner = Scanner::resume(bytes, pause.place)?;
        let text = scanner.text();
        let piece = |range: &Range<usize>| text.get(range.clone());
        let mut reader = Self::new(scanner, limits);
        for uri in &pause.uris {
            reader.uris.push(Cow::Borrowed(piece(uri)?));
        }
        for (prefix, uri) in &pause.scope {
            reader.scope.push((piece(prefix)?, *uri));
        }
        for open in &pause.open {
            reader.open.push(Open {
                name: piece(&open.name)?,
                local: open.local,
                uri: open.uri,
                outside: open.outside,
            });
        }
        for attribute in &pause.attributes {
            let name = piece(&attribute.name)?;
            reader.attributes.push(Attribute {
                name,
                local: name.get(attribute.local..)?,
                uri: attribute.uri,
                value: Cow::Borrowed(piece(&attribute.value)?),
            });
        }
        let tag = reader.open.last()?;
        reader.name = tag.name;
        reader.local = tag.name.get(tag.local..)?;
        reader.uri = tag.uri;
        reader.at = pause.at;
        reader.empty = pause.empty;
        reader.nodes = pause.nodes;
        reader.rooted = true;
        reader.again = true;
        Some(reader)
    }

    /// Where this reading is, behind a start tag, for another to go on there. Nothing where namespaces are
    /// many, or the tag does not have them or its attributes' values as they are.
    pub fn pause(&self) -> Option<Pause> {
        if self.open.is_empty() || self.uri_ids.is_some() {
            return None;
        }
        let text = self.scanner.text();
        let start = text.as_ptr().addr();
        let range = |piece: &str| {
            // Such as the default prefix, which nobody writes.
            if piece.is_empty() {
                return Some(0..0);
            }
            let from = piece.as_ptr().addr().checked_sub(start)?;
            (from + piece.len() <= text.len()).then(|| from..from + piece.len())
        };
        let as_it_is = |value: &Cow<'_, str>| match value {
            Cow::Borrowed(value) => range(value),
            Cow::Owned(_) => None,
        };
        let uris = self.uris[2..].iter().map(as_it_is);
        let scope = self.scope[1..].iter();
        let open = self.open.iter().map(|open| {
            Some(PausedOpen {
                name: range(open.name)?,
                local: open.local,
                uri: open.uri,
                outside: open.outside,
            })
        });
        let attributes = self.attributes.iter().map(|attribute| {
            Some(PausedAttribute {
                name: range(attribute.name)?,
                local: attribute.name.len() - attribute.local.len(),
                uri: attribute.uri,
                value: as_it_is(&attribute.value)?,
            })
        });
        Some(Pause {
            place: self.scanner.place(),
            limits: self.limits,
            nodes: self.nodes,
            uris: uris.collect::<Option<_>>()?,
            scope: scope
                .map(|(prefix, uri)| Some((range(prefix)?, *uri)))
                .collect::<Option<_>>()?,
            open: open.collect::<Option<_>>()?,
            at: self.at,
            attributes: attributes.collect::<Option<_>>()?,
            empty: self.empty,
        })
    }

    /// How many elements are open.
    pub fn depth(&self) -> usize {
        self.open.len()
    }

    /// The local names of the elements that are open, outermost first, and their namespaces.
    pub fn open(&self) -> impl Iterator<Item = (&'a str, &str)> {
        let open = self.open.iter();
        open.map(|open| (&open.name[open.local..], &*self.uris[open.uri as usize]))
    }

    fn new(scanner: Scanner<'a>, limits: &XmlLimits) -> Self {
        let mut uris = Vec::with_capacity(FEW_URIS);
        uris.extend([Cow::Borrowed(""), Cow::Borrowed(XML_NAMESPACE)]);
        let mut scope = Vec::with_capacity(8);
        scope.push(("xml", 1));
        Self {
            scanner,
            uris,
            uri_ids: None,
            scope,
            open: Vec::with_capacity(16),
            attributes: Vec::new(),
            limits: *limits,
            nodes: 0,
            rooted: false,
            begun: 0,
            at: 0,
            name: "",
            local: "",
            uri: 0,
            empty: false,
            again: false,
        }
    }

    /// The next event. Not to be called again after the end of the document or an error.
    pub fn step(&mut self) -> Result<Step<'a>, XmlError> {
        loop {
            match self.advance() {
                Ok(Some(step)) => return Ok(step),
                Ok(None) => {}
                Err(message) => return Err(self.wrong(message)),
            }
        }
    }

    /// The last start tag.
    #[inline]
    pub fn tag(&self) -> Start<'_, 'a> {
        Start {
            at: self.at,
            name: self.name,
            local: self.local,
            uri: self.uri,
            attributes: &self.attributes,
            declarations: &self.scope[self.outside()..],
            uris: &self.uris,
        }
    }

    /// The byte after the last event.
    pub fn position(&self) -> usize {
        self.scanner.at()
    }

    /// What has been looked through so far: at least up to [`Reader::position`].
    pub fn text(&self) -> &'a str {
        self.scanner.text()
    }

    /// Prefixes (empty: the default) with the namespaces that they stand for here, `xml` aside.
    pub fn scope(&self) -> impl Iterator<Item = (&'a str, &str)> {
        let visible = |(at, (prefix, uri)): (usize, &(&'a str, u32))| {
            let hidden = self.scope[at + 1..]
                .iter()
                .any(|(later, _)| later == prefix);
            (!hidden && *uri != 0).then(|| (*prefix, &*self.uris[*uri as usize]))
        };
        self.scope.iter().enumerate().skip(1).filter_map(visible)
    }

    /// Length of `scope` outside of the innermost open element.
    fn outside(&self) -> usize {
        self.open.last().map_or(0, |open| open.outside)
    }

    /// Reads what is left into `sink`.
    pub fn into_sink(mut self, sink: &mut impl Sink<'a>) -> Result<End, XmlError> {
        loop {
            let flow = match self.advance() {
                Err(message) => return Err(self.wrong(message)),
                Ok(None) => continue,
                Ok(Some(Step::Document)) => return Ok(End::Document),
                Ok(Some(Step::Start)) => sink.start(&self.tag()),
                Ok(Some(Step::End)) => sink.end(),
                Ok(Some(Step::Text(text))) => sink.text(&text),
                Ok(Some(Step::Character(c))) => sink.text(c.encode_utf8(&mut [0; 4])),
                Ok(Some(Step::Comment(text))) => sink.comment(&text),
                Ok(Some(Step::Instruction(target, data))) => sink.instruction(target, &data),
            };
            if flow.is_break() {
                return Ok(End::Early);
            }
        }
    }

    #[cold]
    fn wrong(&self, message: String) -> XmlError {
        place(&self.scanner.before(self.begun), self.begun, message)
    }

    /// The next event; nothing where something was read that is none.
    #[inline]
    fn advance(&mut self) -> Result<Option<Step<'a>>, String> {
        if self.empty || self.again {
            if self.again {
                self.again = false;
                return Ok(Some(Step::Start));
            }
            self.empty = false;
            return Ok(Some(self.close()));
        }
        self.begun = self.scanner.at();
        match self.scanner.next(self.open.last().map(|open| open.name)) {
            Ok(Token::Start { name, rest, empty }) => self.start(name, rest, empty),
            Ok(Token::End) => Ok(Some(self.close())),
            Ok(Token::Text(text)) => self.characters(text),
            Ok(other) => self.rare(other),
            Err((at, message)) => {
                self.begun = at;
                Err(message)
            }
        }
    }

    fn close(&mut self) -> Step<'a> {
        if let Some(open) = self.open.pop() {
            self.scope.truncate(open.outside);
        }
        Step::End
    }

    #[inline]
    fn characters(&mut self, text: &'a str) -> Result<Option<Step<'a>>, String> {
        if self.open.is_empty() {
            return if text.bytes().all(is_space) {
                Ok(None)
            } else {
                Err("text outside the root element".into())
            };
        }
        if self.scanner.has_brackets()
            && memchr::memchr(b']', text.as_bytes()).is_some()
            && text.contains("]]>")
        {
            return Err("']]>' within text".into());
        }
        self.node()?;
        Ok(Some(Step::Text(self.normalised(text))))
    }

    /// Line ends as section 2.11 wants them.
    #[inline]
    fn normalised(&self, text: &'a str) -> Cow<'a, str> {
        if self.scanner.has_returns() {
            normalise_lines(text)
        } else {
            Cow::Borrowed(text)
        }
    }

    fn rare(&mut self, token: Token<'a>) -> Result<Option<Step<'a>>, String> {
        match token {
            Token::CData(data) => {
                if self.open.is_empty() {
                    return Err("a CDATA section outside the root element".into());
                }
                self.node()?;
                Ok(if data.is_empty() {
                    None
                } else {
                    Some(Step::Text(self.normalised(data)))
                })
            }
            Token::Reference(name) => {
                if self.open.is_empty() {
                    return Err("a reference outside the root element".into());
                }
                self.node()?;
                Ok(Some(Step::Character(reference(name)?)))
            }
            Token::Comment(text) => {
                self.node()?;
                Ok(Some(Step::Comment(self.normalised(text))))
            }
            Token::Instruction(content) => self.instruction(content),
            Token::DocType => Err("a document type declaration (DTD) is not accepted".into()),
            _ => {
                if !self.open.is_empty() {
                    Err("the document ends within an element".into())
                } else if !self.rooted {
                    Err("there is no root element".into())
                } else {
                    Ok(Some(Step::Document))
                }
            }
        }
    }

    fn instruction(&mut self, content: &'a str) -> Result<Option<Step<'a>>, String> {
        let end = content.bytes().position(is_space).unwrap_or(content.len());
        let (target, data) = content.split_at(end);
        if target == "xml" && self.scanner.is_start(self.begun) {
            check_declaration(content)?;
            return Ok(None);
        }
        self.node()?;
        if !is_ncname(target) {
            return Err(format!("'{target}' cannot name a processing instruction"));
        }
        if target.eq_ignore_ascii_case("xml") {
            return Err("an XML declaration anywhere but at the very start".into());
        }
        let data = data.trim_start_matches([' ', '\t', '\n', '\r']);
        Ok(Some(Step::Instruction(target, self.normalised(data))))
    }

    fn node(&mut self) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > self.limits.nodes {
            return Err(format!("more than {} nodes", self.limits.nodes));
        }
        Ok(())
    }

    #[inline]
    fn start(
        &mut self,
        name: &'a str,
        rest: &'a str,
        empty: bool,
    ) -> Result<Option<Step<'a>>, String> {
        if self.open.is_empty() {
            if self.rooted {
                return Err("a second root element".into());
            }
            self.rooted = true;
        }
        if self.open.len() >= self.limits.depth {
            return Err(format!(
                "elements nested more than {} deep",
                self.limits.depth
            ));
        }
        self.node()?;
        let outside = self.scope.len();
        self.attributes.clear();
        if !rest.is_empty() {
            self.read_attributes(rest, outside)?;
        }
        let (prefix, local) = split(name)?;
        if prefix == "xmlns" {
            return Err("an element cannot have the prefix xmlns".into());
        }
        self.uri = self.lookup(prefix)?;
        for number in 0..self.attributes.len() {
            // An attribute without a prefix is in no namespace.
            let name = self.attributes[number].name;
            let local = self.attributes[number].local;
            if local.len() != name.len() {
                self.attributes[number].uri = self.lookup(&name[..name.len() - local.len() - 1])?;
            }
        }
        if self.attributes.len() > 1 {
            self.check_duplicates()?;
        }
        self.at = self.begun;
        self.name = name;
        self.local = local;
        self.empty = empty;
        self.open.push(Open {
            name,
            local: name.len() - local.len(),
            uri: self.uri,
            outside,
        });
        Ok(Some(Step::Start))
    }

    fn lookup(&self, prefix: &str) -> Result<u32, String> {
        match find(&self.scope, prefix) {
            Some(uri) => Ok(uri),
            None if prefix.is_empty() => Ok(0),
            None => Err(format!("the prefix '{prefix}' is not declared")),
        }
    }

    /// The number of a namespace.
    fn uri(&mut self, uri: Cow<'a, str>) -> u32 {
        if uri.is_empty() {
            return 0;
        }
        let few = self.uris.len().min(FEW_URIS);
        if let Some(known) = self.uris[..few].iter().position(|known| *known == uri) {
            return known as u32;
        }
        let id = self.uris.len() as u32;
        if self.uris.len() >= FEW_URIS {
            let ids = self.uri_ids.get_or_insert_default();
            if let Some(known) = ids.get(&uri) {
                return *known;
            }
            ids.insert(uri.clone(), id);
        }
        self.uris.push(uri);
        id
    }

    fn read_attributes(&mut self, text: &'a str, outside: usize) -> Result<(), String> {
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
            let (end, local) = ascii_name(bytes, at);
            at = end;
            while at < bytes.len() && bytes[at] != b'=' && !is_space(bytes[at]) {
                at += 1;
            }
            let name = &text[start..at];
            // Otherwise it is not of ASCII alone, or none.
            let local = local.filter(|_| at == end).map(|local| local - start);
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
            // Most values hold nothing that stands for something else.
            let plain = bytes[at..].iter().position(|byte| !VALUE[*byte as usize]);
            let value = match plain.map(|plain| at + plain) {
                Some(end) if bytes[end] == quote => {
                    let value = &text[at..end];
                    at = end + 1;
                    Cow::Borrowed(value)
                }
                _ => {
                    let Some(length) = memchr::memchr(quote, &bytes[at..]) else {
                        return Err(format!("the value of the attribute '{name}' does not end"));
                    };
                    let value = attribute_value(&text[at..at + length])
                        .map_err(|error| format!("attribute '{name}': {error}"))?;
                    at += length + 1;
                    value
                }
            };
            if self.attributes.len() + self.scope.len() - outside >= self.limits.attributes {
                return Err(format!(
                    "more than {} attributes at one element",
                    self.limits.attributes
                ));
            }
            self.node()?;
            let (prefix, local) = match local {
                Some(local) => (&name[..local.saturating_sub(1)], &name[local..]),
                None => split(name)?,
            };
            if prefix == "xmlns" {
                self.declare(local, value, outside)?;
            } else if prefix.is_empty() && local == "xmlns" {
                self.declare("", value, outside)?;
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

    /// Takes a namespace declaration (Namespaces in XML 1.0 sections 3 and 5) of the element outside of
    /// which `scope` has that length.
    fn declare(
        &mut self,
        prefix: &'a str,
        uri: Cow<'a, str>,
        outside: usize,
    ) -> Result<(), String> {
        if prefix == "xmlns" || uri == XMLNS_NAMESPACE {
            return Err("the prefix xmlns and its namespace cannot be declared".into());
        }
        if (prefix == "xml") != (uri == XML_NAMESPACE) {
            return Err("the prefix xml and its namespace belong together".into());
        }
        if !prefix.is_empty() && uri.is_empty() {
            return Err(format!("the prefix '{prefix}' cannot be undeclared"));
        }
        if find(&self.scope[outside..], prefix).is_some() {
            return Err(format!("the prefix '{prefix}' is declared twice"));
        }
        // `xml` has not been declared.
        if self.scope.len() > MAX_DECLARATIONS {
            return Err(too_many());
        }
        let id = self.uri(uri);
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

/// The namespace that a prefix stands for where these are in scope.
#[inline]
fn find(scope: &[(&str, u32)], prefix: &str) -> Option<u32> {
    let found = scope.iter().rev().find(|(known, _)| same(known, prefix));
    found.map(|(_, uri)| *uri)
}

fn split(name: &str) -> Result<(&str, &str), String> {
    split_name(name).ok_or_else(|| format!("'{name}' is not a name"))
}

/// Line ends as section 2.11 wants them.
fn normalise_lines(text: &str) -> Cow<'_, str> {
    if memchr::memchr(b'\r', text.as_bytes()).is_none() {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n"))
    }
}

/// Bytes of values that stand for themselves and end none.
const VALUE: [bool; 256] = {
    let mut bytes = [false; 256];
    let mut at = 0;
    while at < 256 {
        bytes[at] = at >= 0x20 && !matches!(at as u8, b'"' | b'\'' | b'&' | b'<');
        at += 1;
    }
    bytes
};

/// An attribute's value by section 3.3.3 (no DTD: every attribute is CDATA).
fn attribute_value(raw: &str) -> Result<Cow<'_, str>, String> {
    let is_special = |byte: &u8| *byte < b' ' || matches!(byte, b'&' | b'<');
    if !raw.as_bytes().iter().any(is_special) {
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
