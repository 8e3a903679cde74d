//! A document as a flat tree: one vector of nodes in document order, one of attributes, one buffer
//! with every character. It is built in one pass, never changed, and freed without recursion.

use std::ops::ControlFlow;
use std::sync::Arc;

use ahash::AHashMap;

use xbus_core::long;

use super::reader::{self, Sink, Start, XmlError};
use super::{XML_NAMESPACE, XmlLimits, same};

/// What a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The document itself.
    Root,
    /// An element.
    Element,
    /// Characters, CDATA sections among them.
    Text,
    /// A comment.
    Comment,
    /// A processing instruction.
    Instruction,
}

struct Node {
    kind: Kind,
    /// Elements and instructions: number of the name.
    name: u32,
    parent: u32,
    /// One past the last descendant.
    end: u32,
    /// Elements: range of attributes; others: range of characters.
    from: u32,
    to: u32,
}

struct Attr {
    name: u32,
    from: u32,
    to: u32,
}

struct Name {
    /// Name as written and where its local part begins, within the buffer.
    from: u32,
    local: u32,
    to: u32,
    uri: u32,
    /// First name with the same namespace and local part.
    expanded: u32,
}

struct Declaration {
    node: u32,
    prefix: (u32, u32),
    uri: u32,
}

/// A parsed document.
pub struct Document {
    nodes: Vec<Node>,
    attrs: Vec<Attr>,
    names: Vec<Name>,
    uris: Vec<Box<str>>,
    declarations: Vec<Declaration>,
    buffer: String,
}

/// One node or attribute of a document. The order is document order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Id {
    /// The number of the node.
    pub node: u32,
    /// 0 for the node itself, else one more than the attribute's number.
    pub attr: u32,
}

impl Id {
    /// The document itself.
    pub const ROOT: Id = Id { node: 0, attr: 0 };

    /// The node of that number.
    pub fn node(node: u32) -> Self {
        Id { node, attr: 0 }
    }
}

/// A handle on a node that keeps its document alive; cheap to clone.
#[derive(Clone)]
pub struct NodeRef {
    /// The document.
    pub document: Arc<Document>,
    /// The node in it.
    pub id: Id,
}

impl NodeRef {
    /// The document as a node.
    pub fn root(document: Arc<Document>) -> Self {
        Self {
            document,
            id: Id::ROOT,
        }
    }

    /// String value as XPath 1.0 section 5 defines it.
    pub fn string_value(&self) -> String {
        self.document.string_value(self.id)
    }

    /// The element itself; of a document its root element.
    pub fn element(&self) -> Option<u32> {
        match self.document.kind(self.id) {
            Some(Kind::Root) => self.document.root_element(),
            Some(Kind::Element) => Some(self.id.node),
            _ => None,
        }
    }
}

impl Document {
    /// Parses a text that is a whole document.
    pub fn parse(text: &str, limits: &XmlLimits) -> Result<Self, XmlError> {
        if text.len() > u32::MAX as usize / 2 {
            return Err(XmlError {
                message: "the document is larger than 2 GiB".into(),
                line: 1,
                column: 1,
            });
        }
        let mut builder = Builder {
            document: Document {
                nodes: Vec::with_capacity(text.len() / 24 + 2),
                attrs: Vec::new(),
                names: Vec::new(),
                uris: Vec::new(),
                declarations: Vec::new(),
                buffer: String::with_capacity(text.len() / 2),
            },
            open: vec![0],
            names: AHashMap::new(),
            expanded: AHashMap::new(),
            uri_count: 0,
        };
        builder.push(Kind::Root, 0, 0, 0);
        long::over(text.len(), long::PARSED, || {
            reader::read(text, limits, &mut builder)
        })?;
        let mut document = builder.document;
        document.nodes[0].end = document.nodes.len() as u32;
        Ok(document)
    }

    /// What kind of node it is; nothing for attributes.
    pub fn kind(&self, id: Id) -> Option<Kind> {
        (id.attr == 0).then(|| self.nodes[id.node as usize].kind)
    }

    /// The number of the root element.
    pub fn root_element(&self) -> Option<u32> {
        self.children(0)
            .find(|n| self.nodes[*n as usize].kind == Kind::Element)
    }

    /// What kind of node it is.
    pub fn node_kind(&self, node: u32) -> Kind {
        self.nodes[node as usize].kind
    }

    /// The node above; of an attribute its element.
    pub fn parent(&self, id: Id) -> Option<Id> {
        if id.attr > 0 {
            Some(Id::node(id.node))
        } else if id.node == 0 {
            None
        } else {
            Some(Id::node(self.nodes[id.node as usize].parent))
        }
    }

    /// One past the last descendant of a node.
    pub fn end(&self, node: u32) -> u32 {
        self.nodes[node as usize].end
    }

    /// The numbers of the nodes directly beneath.
    pub fn children(&self, node: u32) -> impl Iterator<Item = u32> {
        let end = self.end(node);
        let mut next = node + 1;
        std::iter::from_fn(move || {
            (next < end).then(|| {
                let this = next;
                next = self.end(this);
                this
            })
        })
    }

    /// The number of the node after it, with the same parent.
    pub fn next_sibling(&self, node: u32) -> Option<u32> {
        let this = &self.nodes[node as usize];
        (node > 0 && this.end < self.nodes[this.parent as usize].end).then_some(this.end)
    }

    /// The attributes of a node, as their numbers.
    pub fn attributes(&self, node: u32) -> std::ops::Range<u32> {
        let node = &self.nodes[node as usize];
        if node.kind == Kind::Element {
            node.from..node.to
        } else {
            0..0
        }
    }

    fn name_of(&self, id: Id) -> Option<&Name> {
        if id.attr > 0 {
            let attr = &self.attrs[id.attr as usize - 1];
            return Some(&self.names[attr.name as usize]);
        }
        let node = &self.nodes[id.node as usize];
        matches!(node.kind, Kind::Element | Kind::Instruction)
            .then(|| &self.names[node.name as usize])
    }

    /// Name as written, prefix included; empty where there is none.
    pub fn name(&self, id: Id) -> &str {
        self.name_of(id)
            .map_or("", |n| &self.buffer[n.from as usize..n.to as usize])
    }

    /// Name without prefix; empty where there is none.
    pub fn local_name(&self, id: Id) -> &str {
        self.name_of(id)
            .map_or("", |n| &self.buffer[n.local as usize..n.to as usize])
    }

    /// Namespace; empty where there is none.
    pub fn namespace(&self, id: Id) -> &str {
        self.name_of(id).map_or("", |n| &self.uris[n.uri as usize])
    }

    /// Number that all names with the same namespace and local part share.
    pub fn expanded(&self, id: Id) -> Option<u32> {
        self.name_of(id).map(|n| n.expanded)
    }

    /// The number of a name, where it occurs in the document.
    pub fn find_name(&self, uri: &str, local: &str) -> Option<u32> {
        self.names
            .iter()
            .find(|n| {
                (n.to - n.local) as usize == local.len()
                    && &self.buffer[n.local as usize..n.to as usize] == local
                    && same(&self.uris[n.uri as usize], uri)
            })
            .map(|n| n.expanded)
    }

    /// Characters of a text, comment, instruction or attribute; nothing for elements.
    pub fn characters(&self, id: Id) -> Option<&str> {
        let (from, to) = if id.attr > 0 {
            let attr = &self.attrs[id.attr as usize - 1];
            (attr.from, attr.to)
        } else {
            let node = &self.nodes[id.node as usize];
            if matches!(node.kind, Kind::Root | Kind::Element) {
                return None;
            }
            (node.from, node.to)
        };
        Some(&self.buffer[from as usize..to as usize])
    }

    /// String value as XPath 1.0 section 5 defines it.
    pub fn string_value(&self, id: Id) -> String {
        if let Some(text) = self.characters(id) {
            return text.to_owned();
        }
        let mut value = String::new();
        for node in id.node + 1..self.end(id.node) {
            if self.nodes[node as usize].kind == Kind::Text {
                value.push_str(self.characters(Id::node(node)).unwrap_or_default());
            }
        }
        value
    }

    /// The value of an attribute by local name and namespace.
    pub fn attribute(&self, node: u32, uri: &str, local: &str) -> Option<&str> {
        self.attributes(node)
            .map(|at| Id { node, attr: at + 1 })
            .find(|id| self.local_name(*id) == local && same(self.namespace(*id), uri))
            .and_then(|id| self.characters(id))
    }

    /// The declarations that a start tag carries: prefix and namespace.
    pub fn declarations(&self, node: u32) -> impl Iterator<Item = (&str, &str)> {
        let start = self.declarations.partition_point(|d| d.node < node);
        self.declarations[start..]
            .iter()
            .take_while(move |d| d.node == node)
            .map(|d| {
                (
                    &self.buffer[d.prefix.0 as usize..d.prefix.1 as usize],
                    &*self.uris[d.uri as usize],
                )
            })
    }

    /// The namespace that a prefix stands for at an element.
    pub fn resolve(&self, node: u32, prefix: &str) -> Option<&str> {
        let mut node = node;
        loop {
            if let Some((_, uri)) = self.declarations(node).find(|(p, _)| same(p, prefix)) {
                return Some(uri);
            }
            if node == 0 {
                return match prefix {
                    "xml" => Some(XML_NAMESPACE),
                    _ => None,
                };
            }
            node = self.nodes[node as usize].parent;
        }
    }
}

struct Builder<'a> {
    document: Document,
    /// Open elements, the root first.
    open: Vec<u32>,
    names: AHashMap<(u32, &'a str), u32>,
    expanded: AHashMap<(u32, &'a str), u32>,
    uri_count: usize,
}

impl<'a> Builder<'a> {
    fn push(&mut self, kind: Kind, name: u32, from: u32, to: u32) {
        let at = self.document.nodes.len() as u32;
        self.document.nodes.push(Node {
            kind,
            name,
            parent: self.open[self.open.len() - 1],
            end: at + 1,
            from,
            to,
        });
    }

    fn characters(&mut self, text: &str) -> (u32, u32) {
        let from = self.document.buffer.len() as u32;
        self.document.buffer.push_str(text);
        (from, self.document.buffer.len() as u32)
    }

    fn name(&mut self, uri: u32, name: &'a str, local: &'a str) -> u32 {
        if let Some(id) = self.names.get(&(uri, name)) {
            return *id;
        }
        let (from, to) = self.characters(name);
        let id = self.document.names.len() as u32;
        let expanded = *self.expanded.entry((uri, local)).or_insert(id);
        self.document.names.push(Name {
            from,
            local: to - local.len() as u32,
            to,
            uri,
            expanded,
        });
        self.names.insert((uri, name), id);
        id
    }
}

impl<'a> Sink<'a> for Builder<'a> {
    fn start(&mut self, tag: &Start<'_, 'a>) -> ControlFlow<()> {
        while self.uri_count < tag.uris.len() {
            self.document.uris.push((*tag.uris[self.uri_count]).into());
            self.uri_count += 1;
        }
        let at = self.document.nodes.len() as u32;
        let name = self.name(tag.uri, tag.name, tag.local);
        let from = self.document.attrs.len() as u32;
        for attribute in tag.attributes {
            let name = self.name(attribute.uri, attribute.name, attribute.local);
            let (from, to) = self.characters(&attribute.value);
            self.document.attrs.push(Attr { name, from, to });
        }
        let to = self.document.attrs.len() as u32;
        for (prefix, uri) in tag.declarations {
            let prefix = self.characters(prefix);
            self.document.declarations.push(Declaration {
                node: at,
                prefix,
                uri: *uri,
            });
        }
        self.push(Kind::Element, name, from, to);
        self.open.push(at);
        ControlFlow::Continue(())
    }

    fn end(&mut self) -> ControlFlow<()> {
        let end = self.document.nodes.len() as u32;
        if let Some(node) = self.open.pop() {
            self.document.nodes[node as usize].end = end;
        }
        ControlFlow::Continue(())
    }

    fn text(&mut self, text: &str) -> ControlFlow<()> {
        let (from, to) = self.characters(text);
        let parent = self.open[self.open.len() - 1];
        // Pieces of one text (around references and CDATA) are one node.
        match self.document.nodes.last_mut() {
            Some(last) if last.kind == Kind::Text && last.parent == parent && last.to == from => {
                last.to = to;
            }
            _ => self.push(Kind::Text, 0, from, to),
        }
        ControlFlow::Continue(())
    }

    fn comment(&mut self, text: &str) -> ControlFlow<()> {
        let (from, to) = self.characters(text);
        self.push(Kind::Comment, 0, from, to);
        ControlFlow::Continue(())
    }

    fn instruction(&mut self, target: &'a str, data: &str) -> ControlFlow<()> {
        if self.document.uris.is_empty() {
            // Before the first element: the namespaces 0 and 1 are always the same.
            self.document.uris = vec!["".into(), XML_NAMESPACE.into()];
            self.uri_count = 2;
        }
        let name = self.name(0, target, target);
        let (from, to) = self.characters(data);
        self.push(Kind::Instruction, name, from, to);
        ControlFlow::Continue(())
    }
}
