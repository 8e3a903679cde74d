//! WSDL 1.1 (W3C note of 2001): the documents of a description, with the places in them that depend
//! on where they are served, and the operations that they describe over SOAP.
//!
//! Absent: WSDL 2.0, bindings other than SOAP, documents outside of the folder.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use quick_xml::events::{BytesStart, Event};
use quick_xml::name::ResolveResult;
use xbus_xml::reader::{namespaced, said};
use xbus_xml::schema::{Finding, beneath, range_of, read_text, target_of};
use xbus_xml::tree::{Id, Kind};
use xbus_xml::{Document, XmlLimits};

use crate::soap::{Name, Version};

const WSDL: &str = "http://schemas.xmlsoap.org/wsdl/";
const SOAP_11: &str = "http://schemas.xmlsoap.org/wsdl/soap/";
const SOAP_12: &str = "http://schemas.xmlsoap.org/wsdl/soap12/";
const XS: &str = "http://www.w3.org/2001/XMLSchema";

/// Most documents of one description.
const MAX_DOCUMENTS: usize = 500;

/// A description: its documents and operations.
pub struct Wsdl {
    /// The name of the document that all others are reached from.
    pub(crate) main: String,
    pub(crate) documents: BTreeMap<String, Described>,
    /// What it describes over SOAP, in the order written.
    pub operations: Vec<Operation>,
}

/// One document, as it is served.
pub(crate) struct Described {
    text: String,
    /// A WSDL, or else a schema.
    is_wsdl: bool,
    /// Attributes (from name to the closing quote) and what they become.
    places: Vec<(Range<usize>, Place)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Place {
    /// The service's address.
    Address,
    /// Another document: the attribute's name, and the document's.
    Document(&'static str, String),
    /// The namespace that the file of an import really is for: some say another, which strict
    /// clients refuse.
    Namespace(String),
    /// A place that nobody could read.
    Nothing,
}

/// An operation, as one binding has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// Its name.
    pub name: String,
    /// The version of SOAP of its binding.
    pub version: Version,
    /// `soapAction`, where there is one.
    pub action: Option<String>,
    /// What is sent to it.
    pub input: Payload,
    /// What it answers; nothing: it is one-way.
    pub output: Option<Payload>,
}

/// What stands in an envelope.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Payload {
    /// What stands in the Body.
    pub body: Body,
    /// The elements of header blocks that are described.
    pub headers: Vec<Name>,
}

/// What stands in the Body.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// Document style: these elements, one after the other.
    Elements(Vec<Name>),
    /// RPC style with literal content: an element of this name, in which each part stands by its own
    /// name and is of its type.
    Rpc(Name, Vec<(String, Part)>),
    /// Described by types alone, or encoded: the first element, where it is known.
    Unchecked(Option<Name>),
}

/// What a part of a message is.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Of this type.
    Type(Name),
    /// This element.
    Element(Name),
}

impl Payload {
    /// The first element in the Body.
    pub fn first(&self) -> Option<&Name> {
        match &self.body {
            Body::Empty => None,
            Body::Elements(names) => names.first(),
            Body::Rpc(name, _) => Some(name),
            Body::Unchecked(name) => name.as_ref(),
        }
    }
}

impl Wsdl {
    /// Reads `main` in `folder` and what it leads to there. Gives the description where there is no
    /// error, and everything that is to be said.
    pub fn load(folder: &Path, main: &Path) -> (Option<Self>, Vec<Finding>) {
        let mut findings = Vec::new();
        let mut documents = BTreeMap::new();
        let mut waiting = vec![(main.to_owned(), None)];
        while let Some((file, by)) = waiting.pop() {
            let name = name_of(&file);
            if documents.contains_key(&name) || documents.len() >= MAX_DOCUMENTS {
                continue;
            }
            let by: Option<Finding> = by;
            let text = match read_text(folder, &file) {
                Ok(text) => text,
                Err(why) => {
                    findings.push(Finding {
                        error: true,
                        message: format!("{}: {why}", file.display()),
                        ..by.unwrap_or_else(|| at_start(&file))
                    });
                    continue;
                }
            };
            match described(folder, &file, text, &mut waiting) {
                Ok(document) => {
                    documents.insert(name, document);
                }
                Err(message) => findings.push(Finding {
                    message,
                    ..at_start(&file)
                }),
            }
        }
        let operations = match operations(&documents) {
            Ok(operations) => operations,
            Err((file, message)) => {
                findings.push(Finding {
                    message,
                    ..at_start(Path::new(&file))
                });
                Vec::new()
            }
        };
        if findings.is_empty() && operations.is_empty() {
            findings.push(Finding {
                message: "it describes no operation over SOAP".into(),
                help: "name a WSDL 1.1 with a SOAP binding".into(),
                ..at_start(main)
            });
        }
        let good = !findings.iter().any(|finding| finding.error);
        let wsdl = Self {
            main: name_of(main),
            documents,
            operations,
        };
        (good.then_some(wsdl), findings)
    }

    /// Tells apart what the files hold.
    pub(crate) fn fingerprint(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        for (name, document) in &self.documents {
            (name, &document.text).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The file and line in which a part of a message names `local`.
    pub(crate) fn line_of(&self, local: &str) -> Option<(PathBuf, usize)> {
        self.documents
            .iter()
            .filter(|(_, document)| document.is_wsdl)
            .find_map(|(name, document)| {
                let line = document.text.lines().position(|line| {
                    line.contains("part")
                        && [":", "\"", "'"].iter().any(|before| {
                            line.contains(&format!("{before}{local}\""))
                                || line.contains(&format!("{before}{local}'"))
                        })
                })?;
                Some((PathBuf::from(name), line + 1))
            })
    }

    /// The texts of its documents.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.documents
            .values()
            .map(|document| document.text.as_str())
    }

    /// The names of its documents, as paths below the folder.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.documents.keys().map(String::as_str)
    }

    /// The document of that name as it is served at `base` (scheme, host and path).
    pub(crate) fn document(&self, name: &str, base: &str) -> Option<String> {
        let document = self.documents.get(name)?;
        let mut out = String::with_capacity(document.text.len() + 256);
        let mut from = 0;
        for (range, place) in &document.places {
            out.push_str(&document.text[from..range.start]);
            match place {
                Place::Address => {
                    out.push_str("location=\"");
                    crate::xml::escape_into(&mut out, base);
                    out.push('"');
                }
                Place::Document(attribute, name) => {
                    let key = match self.documents.get(name) {
                        Some(document) if document.is_wsdl => "wsdl",
                        _ => "xsd",
                    };
                    let url = format!("{base}?{key}={}", encoded(name));
                    out.push_str(attribute);
                    out.push_str("=\"");
                    crate::xml::escape_into(&mut out, &url);
                    out.push('"');
                }
                Place::Namespace(namespace) => {
                    out.push_str("namespace=\"");
                    crate::xml::escape_into(&mut out, namespace);
                    out.push('"');
                }
                Place::Nothing => {}
            }
            from = range.end;
        }
        out.push_str(&document.text[from..]);
        Some(xbus_charset::declare(&out, "utf-8"))
    }

    /// The operations whose first element in the Body is this one.
    pub(crate) fn by_element<'a>(
        &'a self,
        element: Option<&'a Name>,
    ) -> impl Iterator<Item = &'a Operation> + Clone {
        self.operations
            .iter()
            .filter(move |operation| operation.input.first() == element)
    }

    /// Whether nothing goes back to a Body with this first element.
    pub(crate) fn is_one_way(&self, element: Option<&Name>) -> bool {
        let mut fitting = self.by_element(element).peekable();
        fitting.peek().is_some() && fitting.all(|operation| operation.output.is_none())
    }
}

fn name_of(file: &Path) -> String {
    file.to_string_lossy().replace('\\', "/")
}

fn at_start(file: &Path) -> Finding {
    Finding {
        error: true,
        file: file.to_owned(),
        line: 1,
        column: 1,
        message: String::new(),
        help: "mend the description; it has to be WSDL 1.1".into(),
    }
}

/// A name as the value of a query parameter.
fn encoded(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' | b'/' => {
                out.push(byte as char);
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

fn attribute(start: &BytesStart<'_>, name: &str) -> Option<String> {
    let found = start
        .attributes()
        .with_checks(false)
        .flatten()
        .find(|attribute| attribute.key.0 == name)?;
    Some(
        quick_xml::escape::unescape(&found.value)
            .map_or_else(|_| found.value.to_string(), |value| value.into_owned()),
    )
}

/// Finds the places of a document, and what it leads to.
fn described(
    folder: &Path,
    file: &Path,
    text: String,
    waiting: &mut Vec<(PathBuf, Option<Finding>)>,
) -> Result<Described, String> {
    let mut reader = namespaced(&text);
    let mut places = Vec::new();
    let mut root = None;
    let wrong = |error: quick_xml::Error| format!("not well-formed XML: {}", said(&error));
    loop {
        let at = reader.buffer_position() as usize;
        let (resolved, event) = reader.read_resolved_event().map_err(wrong)?;
        let start = match event {
            Event::Start(start) | Event::Empty(start) => start,
            Event::Eof => break,
            _ => continue,
        };
        let namespace = match resolved {
            ResolveResult::Bound(namespace) => [WSDL, SOAP_11, SOAP_12, XS]
                .into_iter()
                .find(|known| *known == namespace.0)
                .unwrap_or_default(),
            _ => "",
        };
        let local = start.local_name().into_inner();
        let first = *root.get_or_insert(match (namespace, local) {
            (WSDL, "definitions") => Some(true),
            (XS, "schema") => Some(false),
            _ => None,
        });
        if first.is_none() {
            return Err(format!(
                "its first element is '{local}', not that of a WSDL 1.1 or a schema"
            ));
        }
        let key = match (namespace, local) {
            (SOAP_11 | SOAP_12, "address") => "location",
            (WSDL, "import") => "location",
            (XS, "import" | "include" | "redefine") => "schemaLocation",
            _ => continue,
        };
        let Some(value) = attribute(&start, key) else {
            continue;
        };
        let place = if local == "address" {
            Place::Address
        } else {
            let line = text[..at].bytes().filter(|byte| *byte == b'\n').count() + 1;
            match beneath(file, &value) {
                Some(path) if local != "import" || read_text(folder, &path).is_ok() => {
                    let by = Finding {
                        line,
                        help: "put the file there, or mend the path".into(),
                        ..at_start(file)
                    };
                    let name = name_of(&path);
                    waiting.push((path, Some(by)));
                    Place::Document(key, name)
                }
                // A client would ask for it, and be told that it is not there.
                _ if namespace == XS && local == "import" && !value.contains(':') => Place::Nothing,
                _ => continue,
            }
        };
        let end = reader.buffer_position() as usize;
        let tag = &text[at..end];
        if let (Place::Document(..), XS, "import") = (&place, namespace, local)
            && let Some(path) = beneath(file, &value)
            && let Ok(theirs) = read_text(folder, &path)
            && let Some(theirs) = target_of(&theirs).filter(|theirs| !theirs.is_empty())
            && attribute(&start, "namespace").is_some_and(|said| said != theirs)
            && let Some((from, _, to)) = range_of(tag, "namespace")
        {
            places.push((at + from..at + to, Place::Namespace(theirs)));
        }
        if let Some((from, _, to)) = range_of(tag, key) {
            places.push((at + from..at + to, place));
        }
        places.sort_by_key(|(range, _)| range.start);
    }
    Ok(Described {
        is_wsdl: root.flatten().ok_or("it holds no element")?,
        text,
        places,
    })
}

/// Names of components, with the namespace of the description that they stand in.
type Key = (String, String);

/// The descriptions, put together.
#[derive(Default)]
struct Model {
    messages: HashMap<Key, Vec<(String, Part)>>,
    port_types: HashMap<Key, Vec<Abstract>>,
}

/// An operation of a port type.
struct Abstract {
    name: String,
    input: Option<Key>,
    output: Option<Key>,
}

type Wrong = (String, String);

fn operations(documents: &BTreeMap<String, Described>) -> Result<Vec<Operation>, Wrong> {
    let mut parsed = Vec::new();
    for (name, document) in documents.iter().filter(|(_, document)| document.is_wsdl) {
        let tree = Document::parse(&document.text, &XmlLimits::default())
            .map_err(|error| (name.clone(), error.to_string()))?;
        parsed.push((name, tree));
    }
    let mut model = Model::default();
    for (_, document) in &parsed {
        model.read(document);
    }
    let mut operations = Vec::new();
    for (name, document) in &parsed {
        let root = document.root_element().unwrap_or_default();
        for binding in children(document, root, WSDL, "binding") {
            model
                .binding(document, binding, &mut operations)
                .map_err(|why| ((*name).clone(), why))?;
        }
    }
    Ok(operations)
}

fn children<'d>(
    document: &'d Document,
    parent: u32,
    namespace: &'d str,
    local: &'d str,
) -> impl Iterator<Item = u32> + 'd {
    document.children(parent).filter(move |node| {
        document.node_kind(*node) == Kind::Element
            && document.local_name(Id::node(*node)) == local
            && document.namespace(Id::node(*node)) == namespace
    })
}

/// The name that an attribute holds, its prefix resolved.
pub(crate) fn qname(document: &Document, node: u32, attribute: &str) -> Option<Name> {
    let value = document.attribute(node, "", attribute)?.trim();
    let (prefix, local) = value.split_once(':').unwrap_or(("", value));
    Some(Name {
        namespace: document
            .resolve(node, prefix)
            .unwrap_or_default()
            .to_owned(),
        local: local.to_owned(),
    })
}

fn key(name: Name) -> Key {
    (name.namespace, name.local)
}

impl Model {
    fn read(&mut self, document: &Document) {
        let root = document.root_element().unwrap_or_default();
        let target = document
            .attribute(root, "", "targetNamespace")
            .unwrap_or_default();
        let named = |node: u32| {
            let name = document.attribute(node, "", "name")?;
            Some((target.to_owned(), name.to_owned()))
        };
        for message in children(document, root, WSDL, "message") {
            let parts = children(document, message, WSDL, "part")
                .filter_map(|part| {
                    let name = document.attribute(part, "", "name").unwrap_or_default();
                    let what = match qname(document, part, "element") {
                        Some(element) => Part::Element(element),
                        None => Part::Type(qname(document, part, "type")?),
                    };
                    Some((name.to_owned(), what))
                })
                .collect();
            if let Some(key) = named(message) {
                self.messages.insert(key, parts);
            }
        }
        for port_type in children(document, root, WSDL, "portType") {
            let operations = children(document, port_type, WSDL, "operation")
                .map(|operation| {
                    let message = |local| {
                        children(document, operation, WSDL, local)
                            .next()
                            .and_then(|node| qname(document, node, "message"))
                            .map(key)
                    };
                    Abstract {
                        name: document
                            .attribute(operation, "", "name")
                            .unwrap_or_default()
                            .to_owned(),
                        input: message("input"),
                        output: message("output"),
                    }
                })
                .collect();
            if let Some(key) = named(port_type) {
                self.port_types.insert(key, operations);
            }
        }
    }

    /// The operations of one binding, if it is one over SOAP.
    fn binding(
        &self,
        document: &Document,
        binding: u32,
        operations: &mut Vec<Operation>,
    ) -> Result<(), String> {
        let soap = [(SOAP_11, Version::V11), (SOAP_12, Version::V12)]
            .into_iter()
            .find_map(|(namespace, version)| {
                let node = children(document, binding, namespace, "binding").next()?;
                Some((namespace, version, node))
            });
        let Some((namespace, version, soap)) = soap else {
            return Ok(());
        };
        let usual_style = document.attribute(soap, "", "style").unwrap_or("document");
        let name = document.attribute(binding, "", "name").unwrap_or_default();
        let port_type = qname(document, binding, "type").map(key);
        let Some(declared) = port_type.and_then(|key| self.port_types.get(&key)) else {
            return Err(format!(
                "the portType of the binding '{name}' is not defined"
            ));
        };
        for operation in children(document, binding, WSDL, "operation") {
            let name = document
                .attribute(operation, "", "name")
                .unwrap_or_default();
            let Some(abstracted) = declared.iter().find(|known| known.name == name) else {
                return Err(format!(
                    "the operation '{name}' is not defined in its portType"
                ));
            };
            let soap = children(document, operation, namespace, "operation").next();
            let of_soap = |attribute| document.attribute(soap?, "", attribute);
            let rpc = of_soap("style").unwrap_or(usual_style) == "rpc";
            let payload = |message: &Option<Key>, local: &'static str, suffix| {
                let parts = match message {
                    None => Some(&[][..]),
                    Some(key) => self.messages.get(key).map(Vec::as_slice),
                };
                let Some(parts) = parts else {
                    return Err(format!(
                        "the message of the operation '{name}' is not defined"
                    ));
                };
                let node = children(document, operation, WSDL, local).next();
                let wrapper = rpc.then(|| format!("{name}{suffix}"));
                Ok(self.payload(document, node, namespace, parts, wrapper))
            };
            let input = payload(&abstracted.input, "input", "")?;
            let output = match &abstracted.output {
                None => None,
                output => Some(payload(output, "output", "Response")?),
            };
            operations.push(Operation {
                name: name.to_owned(),
                version,
                action: of_soap("soapAction").map(str::to_owned),
                input,
                output,
            });
        }
        Ok(())
    }

    /// What an input or output of a binding puts into an envelope; `wrapper`: the local name of the
    /// element around the parts, in RPC style.
    fn payload(
        &self,
        document: &Document,
        node: Option<u32>,
        namespace: &str,
        parts: &[(String, Part)],
        wrapper: Option<String>,
    ) -> Payload {
        // With attachments, the body is that of the first MIME part.
        let within = |local| {
            let node = node?;
            (node..document.end(node)).find(|node| {
                let id = Id::node(*node);
                document.node_kind(*node) == Kind::Element
                    && document.local_name(id) == local
                    && document.namespace(id) == namespace
            })
        };
        let body = within("body");
        let of_body = |attribute| document.attribute(body?, "", attribute);
        let mut headers = Vec::new();
        let mut header_parts = Vec::new();
        for header in node
            .into_iter()
            .flat_map(|node| node..document.end(node))
            .filter(|node| {
                let id = Id::node(*node);
                document.node_kind(*node) == Kind::Element
                    && document.local_name(id) == "header"
                    && document.namespace(id) == namespace
            })
        {
            let message = qname(document, header, "message").map(key);
            let part = document.attribute(header, "", "part").unwrap_or_default();
            let known = message.and_then(|key| self.messages.get(&key));
            let found = known.and_then(|parts| parts.iter().find(|(name, _)| name == part));
            if let Some((name, Part::Element(element))) = found {
                headers.push(element.clone());
                header_parts.push((name.clone(), element.clone()));
            }
        }
        let listed: Option<Vec<&str>> =
            of_body("parts").map(|parts| parts.split_ascii_whitespace().collect());
        let in_body: Vec<&(String, Part)> = parts
            .iter()
            .filter(|(name, what)| match &listed {
                Some(listed) => listed.contains(&name.as_str()),
                // Without a list, a part that is a header is no part of the body.
                None => !header_parts
                    .iter()
                    .any(|(of, element)| of == name && *what == Part::Element(element.clone())),
            })
            .collect();
        let encoded = of_body("use") == Some("encoded");
        let body = match wrapper {
            Some(local) => {
                let name = Name {
                    namespace: of_body("namespace").unwrap_or_default().to_owned(),
                    local,
                };
                match encoded {
                    true => Body::Unchecked(Some(name)),
                    false => Body::Rpc(name, in_body.into_iter().cloned().collect()),
                }
            }
            None => {
                let elements: Option<Vec<Name>> = in_body
                    .iter()
                    .map(|(_, what)| match what {
                        Part::Element(element) if !encoded => Some(element.clone()),
                        _ => None,
                    })
                    .collect();
                match elements {
                    Some(elements) if elements.is_empty() => Body::Empty,
                    Some(elements) => Body::Elements(elements),
                    None => Body::Unchecked(in_body.iter().find_map(|(_, what)| match what {
                        Part::Element(element) => Some(element.clone()),
                        Part::Type(_) => None,
                    })),
                }
            }
        };
        Payload { body, headers }
    }
}
