//! Writes documents, parts of them and built elements as XML text.
//!
//! Prefixes are kept as they were. A part that is lifted out of its document takes along the
//! declarations that its names need, and those that its values seem to use (`xsi:type="x:Name"`).

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::element::{Content, Element};
use super::tree::{Document, Id, Kind};
use super::{NodeRef, XML_NAMESPACE, same, split_name};

/// Bytes that there is room for from the beginning.
const USUAL: usize = 512;

/// Writes XML into a text of bounded size.
pub struct Writer<'n> {
    out: String,
    limit: usize,
    /// Declarations in force at the place of writing, innermost last.
    scope: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    /// Prefixes of the route, for built names that no element declares.
    namespaces: &'n BTreeMap<String, String>,
}

impl<'n> Writer<'n> {
    /// A writer of at most `limit` bytes.
    pub fn new(limit: usize, namespaces: &'n BTreeMap<String, String>) -> Self {
        Self {
            out: String::with_capacity(limit.min(USUAL)),
            limit,
            scope: vec![(Cow::Borrowed("xml"), Cow::Borrowed(XML_NAMESPACE))],
            namespaces,
        }
    }

    /// Writes `<?xml …?>`.
    pub fn declaration(&mut self, charset: &str) {
        self.out.push_str("<?xml version=\"1.0\" encoding=\"");
        self.out.push_str(charset);
        self.out.push_str("\"?>\n");
    }

    /// What was written.
    pub fn finish(self) -> String {
        self.out
    }

    fn bound(&self) -> Result<(), String> {
        if self.out.len() > self.limit {
            return Err(format!("the XML would be larger than {} bytes", self.limit));
        }
        Ok(())
    }

    fn lookup(&self, prefix: &str) -> Option<&str> {
        self.scope
            .iter()
            .rev()
            .find(|(known, _)| same(known, prefix))
            .map(|(_, uri)| &**uri)
    }

    fn declare(&mut self, prefix: &str, uri: &str) {
        if prefix.is_empty() {
            self.out.push_str(" xmlns=\"");
        } else {
            self.out.push_str(" xmlns:");
            self.out.push_str(prefix);
            self.out.push_str("=\"");
        }
        escape(&mut self.out, uri, true);
        self.out.push('"');
        let owned = |text: &str| Cow::Owned(text.to_owned());
        self.scope.push((owned(prefix), owned(uri)));
    }

    fn attribute(&mut self, name: &str, value: &str) {
        self.out.push(' ');
        self.out.push_str(name);
        self.out.push_str("=\"");
        escape(&mut self.out, value, true);
        self.out.push('"');
    }

    /// Writes a built element.
    pub fn element(&mut self, element: &Element) -> Result<(), String> {
        let mark = self.scope.len();
        self.out.push('<');
        self.out.push_str(&element.name);
        for (name, value) in &element.attributes {
            match split_name(name) {
                Some(("xmlns", prefix)) => {
                    if value.is_empty() {
                        return Err(format!("xmlns:{prefix} cannot be empty"));
                    }
                    self.declare(prefix, value);
                }
                Some(("", "xmlns")) => self.declare("", value),
                _ => {}
            }
        }
        for name in std::iter::once(&element.name).chain(element.attributes.iter().map(|a| &a.0)) {
            let Some((prefix, _)) = split_name(name) else {
                continue;
            };
            if prefix.is_empty() || prefix == "xmlns" || self.lookup(prefix).is_some() {
                continue;
            }
            match self.namespaces.get(prefix) {
                Some(uri) => {
                    let uri = uri.clone();
                    self.declare(prefix, &uri);
                }
                None => {
                    return Err(format!(
                        "the prefix of <{name}> is not declared: give its element the attribute \
                         \"xmlns:{prefix}\", or put {prefix} into the route's namespaces"
                    ));
                }
            }
        }
        for (name, value) in &element.attributes {
            if name != "xmlns" && !name.starts_with("xmlns:") {
                self.attribute(name, value);
            }
        }
        if element.content.is_empty() {
            self.out.push_str("/>");
        } else {
            self.out.push('>');
            for piece in &element.content {
                match piece {
                    Content::Text(text) => escape(&mut self.out, text, false),
                    Content::Node(node) => self.node(node)?,
                    // As deep as elements may be nested, no deeper.
                    Content::Element(element) => self.element(element)?,
                }
                self.bound()?;
            }
            self.out.push_str("</");
            self.out.push_str(&element.name);
            self.out.push('>');
        }
        self.scope.truncate(mark);
        self.bound()
    }

    /// Writes a node of a document with what is in it; of an attribute its value as text.
    pub fn node(&mut self, node: &NodeRef) -> Result<(), String> {
        let document = &*node.document;
        if node.id.attr > 0 {
            escape(
                &mut self.out,
                document.characters(node.id).unwrap_or_default(),
                false,
            );
            return self.bound();
        }
        let first = node.id.node;
        let last = document.end(first);
        // Open elements: one past their last descendant, their number, the scope outside them.
        let mut open: Vec<(u32, u32, usize)> = Vec::new();
        for at in first..last {
            self.close(document, &mut open, at);
            let id = Id::node(at);
            let text = document.characters(id).unwrap_or_default();
            match document.node_kind(at) {
                Kind::Root => {}
                Kind::Element => {
                    let mark = self.scope.len();
                    self.start_tag(document, at, at == first);
                    if document.end(at) == at + 1 {
                        self.out.push_str("/>");
                        self.scope.truncate(mark);
                    } else {
                        self.out.push('>');
                        open.push((document.end(at), at, mark));
                    }
                }
                Kind::Text => escape(&mut self.out, text, false),
                Kind::Comment => {
                    self.out.push_str("<!--");
                    self.out.push_str(text);
                    self.out.push_str("-->");
                }
                Kind::Instruction => {
                    self.out.push_str("<?");
                    self.out.push_str(document.name(id));
                    if !text.is_empty() {
                        self.out.push(' ');
                        self.out.push_str(text);
                    }
                    self.out.push_str("?>");
                }
            }
            self.bound()?;
        }
        self.close(document, &mut open, last);
        self.bound()
    }

    fn close(&mut self, document: &Document, open: &mut Vec<(u32, u32, usize)>, at: u32) {
        while let Some(&(end, node, mark)) = open.last() {
            if end > at {
                return;
            }
            open.pop();
            self.out.push_str("</");
            self.out.push_str(document.name(Id::node(node)));
            self.out.push('>');
            self.scope.truncate(mark);
        }
    }

    fn start_tag(&mut self, document: &Document, node: u32, top: bool) {
        let id = Id::node(node);
        self.out.push('<');
        self.out.push_str(document.name(id));
        let mark = self.scope.len();
        for (prefix, uri) in document.declarations(node) {
            if self.lookup(prefix).unwrap_or_default() != uri {
                self.declare(prefix, uri);
            }
        }
        if top {
            self.inherited(document, node);
        }
        // What names need, should the text around them say otherwise.
        let needs = std::iter::once(id).chain(document.attributes(node).map(|attr| Id {
            node,
            attr: attr + 1,
        }));
        for needed in needs {
            let name = document.name(needed);
            let prefix = name.split_once(':').map_or("", |(prefix, _)| prefix);
            if prefix.is_empty() && needed.attr > 0 {
                continue;
            }
            let uri = document.namespace(needed);
            if !same(self.lookup(prefix).unwrap_or_default(), uri)
                && !self.scope[mark..]
                    .iter()
                    .any(|(known, _)| same(known, prefix))
            {
                self.declare(prefix, uri);
            }
        }
        for attr in document.attributes(node) {
            let id = Id {
                node,
                attr: attr + 1,
            };
            self.attribute(
                document.name(id),
                document.characters(id).unwrap_or_default(),
            );
        }
    }

    /// Declares what `node` inherits from elements that are not written, where something in it
    /// uses the prefix.
    fn inherited(&mut self, document: &Document, node: u32) {
        let mut seen: Vec<&str> = document.declarations(node).map(|(p, _)| p).collect();
        let mut outer = Id::node(node);
        while let Some(parent) = document.parent(outer) {
            for (prefix, uri) in document.declarations(parent.node) {
                if seen.contains(&prefix) {
                    continue;
                }
                seen.push(prefix);
                if !prefix.is_empty()
                    && self.lookup(prefix) != Some(uri)
                    && uses(document, node, prefix)
                {
                    self.declare(prefix, uri);
                }
            }
            outer = parent;
        }
    }
}

/// Whether a name or a value within `node` begins with `prefix` and a colon.
fn uses(document: &Document, node: u32, prefix: &str) -> bool {
    let begins = |text: &str| {
        text.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with(':'))
    };
    (node..document.end(node)).any(|at| {
        begins(document.name(Id::node(at)))
            || document.characters(Id::node(at)).is_some_and(begins)
            || document.attributes(at).any(|attr| {
                let id = Id {
                    node: at,
                    attr: attr + 1,
                };
                begins(document.name(id)) || document.characters(id).is_some_and(begins)
            })
    })
}

/// Appends `text` with the characters escaped that markup would take.
pub fn escape(out: &mut String, text: &str, attribute: bool) {
    let mut rest = text;
    let special = |b: u8| {
        matches!(b, b'<' | b'>' | b'&' | b'\r') || attribute && matches!(b, b'"' | b'\t' | b'\n')
    };
    while let Some(at) = rest.bytes().position(special) {
        out.push_str(&rest[..at]);
        out.push_str(match rest.as_bytes()[at] {
            b'<' => "&lt;",
            b'>' => "&gt;",
            b'&' => "&amp;",
            b'"' => "&quot;",
            b'\t' => "&#9;",
            b'\n' => "&#10;",
            _ => "&#13;",
        });
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
}
