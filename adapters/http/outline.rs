//! Outlines of the elements that a WSDL's schemas describe: what `xbus wsdl` makes mappings of.
//!
//! An outline is a help for people, not a rule: of a choice it has the first way, recursion is cut, and
//! what cannot be found is left out.

use std::collections::HashMap;

use xbus_xml::tree::{Id, Kind};
use xbus_xml::{Document, XmlLimits};

use crate::soap::Name;
use crate::wsdl::{Body, Part, Payload, Wsdl, qname};

const XS: &str = "http://www.w3.org/2001/XMLSchema";
/// Deepest element, and most elements of one outline.
const DEEPEST: usize = 8;
const MOST: usize = 300;

/// An element as a schema describes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outline {
    /// Namespace; empty for elements in none.
    pub namespace: String,
    /// Local name.
    pub local: String,
    /// The name of its simple type, such as `decimal`; empty where it holds elements.
    pub kind: String,
    /// A value that fits that type, as far as can be told.
    pub value: String,
    /// Whether it may be left out.
    pub optional: bool,
    /// Whether it may stand several times.
    pub many: bool,
    /// Attributes that must be there, with a value.
    pub attributes: Vec<(String, String)>,
    /// What stands in it.
    pub children: Vec<Outline>,
}

/// The schemas of a description.
pub struct Outlines {
    documents: Vec<Document>,
    elements: HashMap<Name, At>,
    types: HashMap<Name, At>,
    groups: HashMap<Name, At>,
}

/// A node of a document, and the schema that it stands in.
#[derive(Clone, Copy)]
struct At {
    document: usize,
    schema: u32,
    node: u32,
}

struct Spent {
    left: usize,
}

impl Outlines {
    /// The schemas of `wsdl`.
    pub fn of(wsdl: &Wsdl) -> Self {
        let documents = wsdl
            .texts()
            .filter_map(|text| Document::parse(text, &XmlLimits::default()).ok())
            .collect();
        let mut this = Self {
            documents,
            elements: HashMap::new(),
            types: HashMap::new(),
            groups: HashMap::new(),
        };
        for number in 0..this.documents.len() {
            this.gather(number);
        }
        this
    }

    fn gather(&mut self, number: usize) {
        let document = &self.documents[number];
        for schema in 1..document.end(0) {
            if document.node_kind(schema) != Kind::Element || !is(document, schema, "schema") {
                continue;
            }
            let target = document
                .attribute(schema, "", "targetNamespace")
                .unwrap_or_default();
            for node in document.children(schema) {
                let Some(name) = document.attribute(node, "", "name") else {
                    continue;
                };
                let names = match document.local_name(Id::node(node)) {
                    "element" => &mut self.elements,
                    "complexType" | "simpleType" => &mut self.types,
                    "group" => &mut self.groups,
                    _ => continue,
                };
                let name = Name {
                    namespace: target.to_owned(),
                    local: name.to_owned(),
                };
                names.insert(
                    name,
                    At {
                        document: number,
                        schema,
                        node,
                    },
                );
            }
        }
    }

    /// What stands in the Body of a message: one element in most cases.
    pub fn body(&self, payload: &Payload) -> Vec<Outline> {
        let mut spent = Spent { left: MOST };
        match &payload.body {
            Body::Empty | Body::Unchecked(None) => Vec::new(),
            Body::Unchecked(Some(name)) => vec![self.global(name, &mut spent)],
            Body::Elements(names) => names
                .iter()
                .map(|name| self.global(name, &mut spent))
                .collect(),
            Body::Rpc(name, parts) => {
                let children = parts
                    .iter()
                    .map(|(part, what)| match what {
                        Part::Element(element) => self.global(element, &mut spent),
                        Part::Type(of) => {
                            let mut outline = Outline {
                                local: part.clone(),
                                ..Outline::default()
                            };
                            self.of_type(of, &mut outline, 1, &mut spent);
                            outline
                        }
                    })
                    .collect();
                vec![Outline {
                    namespace: name.namespace.clone(),
                    local: name.local.clone(),
                    children,
                    ..Outline::default()
                }]
            }
        }
    }

    fn global(&self, name: &Name, spent: &mut Spent) -> Outline {
        let mut outline = Outline {
            namespace: name.namespace.clone(),
            local: name.local.clone(),
            ..Outline::default()
        };
        if let Some(at) = self.elements.get(name) {
            self.content_of(*at, &mut outline, 0, spent);
        }
        outline
    }

    /// The type of an element declaration.
    fn content_of(&self, at: At, outline: &mut Outline, depth: usize, spent: &mut Spent) {
        if depth > DEEPEST || spent.left == 0 {
            return;
        }
        spent.left -= 1;
        let document = &self.documents[at.document];
        if let Some(name) = qname(document, at.node, "type") {
            return self.of_type(&name, outline, depth, spent);
        }
        for node in document.children(at.node) {
            if is(document, node, "complexType") || is(document, node, "simpleType") {
                self.type_at(At { node, ..at }, outline, depth, spent);
            }
        }
    }

    fn of_type(&self, name: &Name, outline: &mut Outline, depth: usize, spent: &mut Spent) {
        if name.namespace == XS {
            outline.kind = name.local.clone();
            outline.value = sample(&name.local).to_owned();
            return;
        }
        if depth > DEEPEST || spent.left == 0 {
            return;
        }
        spent.left -= 1;
        if let Some(at) = self.types.get(name) {
            self.type_at(*at, outline, depth + 1, spent);
        }
    }

    /// A type definition: its parts, in the order in which they stand.
    fn type_at(&self, at: At, outline: &mut Outline, depth: usize, spent: &mut Spent) {
        let document = &self.documents[at.document];
        for node in document.children(at.node) {
            if document.node_kind(node) != Kind::Element {
                continue;
            }
            let here = At { node, ..at };
            match document.local_name(Id::node(node)) {
                "simpleContent" | "complexContent" => self.type_at(here, outline, depth, spent),
                "extension" => {
                    if let Some(base) = qname(document, node, "base") {
                        self.of_type(&base, outline, depth, spent);
                    }
                    self.type_at(here, outline, depth, spent);
                }
                "restriction" => {
                    if let Some(base) = qname(document, node, "base") {
                        let mut under = Outline::default();
                        self.of_type(&base, &mut under, depth, spent);
                        (outline.kind, outline.value) = (under.kind, under.value);
                    }
                    self.type_at(here, outline, depth, spent);
                }
                "enumeration" => {
                    let first = document
                        .children(at.node)
                        .find(|n| is(document, *n, "enumeration"));
                    if first == Some(node)
                        && let Some(value) = document.attribute(node, "", "value")
                    {
                        value.clone_into(&mut outline.value);
                    }
                }
                "attribute" if document.attribute(node, "", "use") == Some("required") => {
                    if let Some(name) = document.attribute(node, "", "name") {
                        let mut of = Outline::default();
                        self.content_of(here, &mut of, depth, spent);
                        outline.attributes.push((name.to_owned(), of.value));
                    }
                }
                "sequence" | "all" | "choice" | "group" => {
                    self.particle(here, outline, false, depth, spent);
                }
                _ => {}
            }
        }
    }

    /// A particle: its elements become children.
    fn particle(&self, at: At, outline: &mut Outline, many: bool, depth: usize, spent: &mut Spent) {
        if depth > DEEPEST || spent.left == 0 {
            return;
        }
        spent.left -= 1;
        let document = &self.documents[at.document];
        let repeated = |node| {
            document
                .attribute(node, "", "maxOccurs")
                .is_some_and(|most| most != "1" && most != "0")
        };
        let many = many || repeated(at.node);
        match document.local_name(Id::node(at.node)) {
            "group" => {
                let name = qname(document, at.node, "ref");
                if let Some(group) = name.and_then(|name| self.groups.get(&name)) {
                    let document = &self.documents[group.document];
                    for node in document.children(group.node) {
                        self.particle(At { node, ..*group }, outline, many, depth + 1, spent);
                    }
                }
            }
            "sequence" | "all" | "choice" => {
                let choice = is(document, at.node, "choice");
                for node in document.children(at.node) {
                    let before = outline.children.len();
                    self.particle(At { node, ..at }, outline, many, depth, spent);
                    if choice && outline.children.len() > before {
                        break;
                    }
                }
            }
            "element" => {
                let mut child = match qname(document, at.node, "ref") {
                    Some(name) => Outline {
                        namespace: name.namespace.clone(),
                        local: name.local.clone(),
                        ..Outline::default()
                    },
                    None => self.local(at),
                };
                child.many = many;
                child.optional = document.attribute(at.node, "", "minOccurs") == Some("0");
                match qname(document, at.node, "ref") {
                    Some(name) => {
                        if let Some(global) = self.elements.get(&name) {
                            self.content_of(*global, &mut child, depth + 1, spent);
                        }
                    }
                    None => self.content_of(at, &mut child, depth + 1, spent),
                }
                outline.children.push(child);
            }
            _ => {}
        }
    }

    /// The name of a local element declaration.
    fn local(&self, at: At) -> Outline {
        let document = &self.documents[at.document];
        let usual = document.attribute(at.schema, "", "elementFormDefault");
        let form = document.attribute(at.node, "", "form").or(usual);
        let namespace = match form {
            Some("qualified") => document.attribute(at.schema, "", "targetNamespace"),
            _ => None,
        };
        Outline {
            namespace: namespace.unwrap_or_default().to_owned(),
            local: document
                .attribute(at.node, "", "name")
                .unwrap_or_default()
                .to_owned(),
            ..Outline::default()
        }
    }
}

fn is(document: &Document, node: u32, local: &str) -> bool {
    let id = Id::node(node);
    document.local_name(id) == local && document.namespace(id) == XS
}

/// A value of a built-in type.
fn sample(kind: &str) -> &'static str {
    match kind {
        "boolean" => "false",
        "decimal" | "float" | "double" | "integer" | "long" | "int" | "short" | "byte"
        | "nonNegativeInteger" | "nonPositiveInteger" | "unsignedLong" | "unsignedInt"
        | "unsignedShort" | "unsignedByte" => "0",
        "positiveInteger" => "1",
        "negativeInteger" => "-1",
        "date" => "2026-01-01",
        "dateTime" => "2026-01-01T00:00:00Z",
        "time" => "00:00:00Z",
        "gYear" => "2026",
        "duration" => "P0D",
        "language" => "en",
        _ => "",
    }
}
