//! What a WSDL says of messages, held against them: header blocks and the Body's elements by the
//! types of the description. What is encoded (SOAP 1.1 section 5), or described by a type in document
//! style, is looked at no further than its first element.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use xbus_core::{Message, Rules};
use xbus_xml::schema::{Breach, Expected, Finding, Schema};
use xbus_xml::tree::{Id, Kind};
use xbus_xml::{Document, XmlLimits, cache, xop};

use crate::soap::{self, NS_11, NS_12, Name, Version};
use crate::wsdl::{Body, Part, Payload, Wsdl};

/// A description and, where messages are held against it, its schemas.
type Shared = (Weak<Wsdl>, Weak<Schema>);

/// The descriptions that routes use. A reload reads every file, and takes over what has not changed.
#[derive(Default)]
pub(crate) struct Descriptions(Mutex<HashMap<(PathBuf, u64), Shared>>);

/// What a route gets of a description, and what is to be said of its files.
pub(crate) struct Found {
    pub(crate) wsdl: Option<Arc<Wsdl>>,
    pub(crate) schema: Option<Arc<Schema>>,
    pub(crate) findings: Vec<Finding>,
}

impl Descriptions {
    /// Reads a description beneath `folder`; with its schemas, when they are asked for.
    pub(crate) fn find(&self, folder: &Path, file: &Path, with_schema: bool) -> Found {
        let (wsdl, mut findings) = Wsdl::load(folder, file);
        let Some(wsdl) = wsdl else {
            return Found {
                wsdl: None,
                schema: None,
                findings,
            };
        };
        let key = (folder.join(file), wsdl.fingerprint());
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (wsdl, _)| wsdl.strong_count() > 0);
        let (wsdl, mut schema) = match known.get(&key) {
            Some((old, schema)) => (
                old.upgrade().unwrap_or_else(|| Arc::new(wsdl)),
                schema.upgrade(),
            ),
            None => (Arc::new(wsdl), None),
        };
        if with_schema && schema.is_none() {
            let (made, said) = Schema::load(folder, file);
            findings.extend(said);
            if let Some(made) = &made {
                findings.extend(undefined(&wsdl, made, file));
            }
            schema = made.map(Arc::new);
        }
        let weak = schema.as_ref().map_or_else(Weak::new, Arc::downgrade);
        known.insert(key, (Arc::downgrade(&wsdl), weak));
        Found {
            wsdl: Some(wsdl),
            schema,
            findings,
        }
    }
}

/// What the operations name and no schema defines: passed over where an import is missing.
fn undefined(wsdl: &Wsdl, schema: &Schema, file: &Path) -> Vec<Finding> {
    let payloads = wsdl
        .operations
        .iter()
        .flat_map(|operation| std::iter::once(&operation.input).chain(&operation.output));
    let mut open: Vec<(&'static str, &Name)> = Vec::new();
    for payload in payloads {
        let (elements, types): (Vec<&Name>, Vec<&Name>) = match &payload.body {
            Body::Elements(names) => (names.iter().collect(), Vec::new()),
            Body::Rpc(_, parts) => (
                parts
                    .iter()
                    .filter_map(|(_, part)| match part {
                        Part::Element(name) => Some(name),
                        Part::Type(_) => None,
                    })
                    .collect(),
                parts
                    .iter()
                    .filter_map(|(_, part)| match part {
                        Part::Type(name) => Some(name),
                        Part::Element(_) => None,
                    })
                    .collect(),
            ),
            _ => continue,
        };
        let elements = elements.into_iter().chain(&payload.headers);
        open.extend(
            elements
                .filter(|name| !schema.declares(&name.namespace, &name.local))
                .map(|name| ("element", name)),
        );
        open.extend(
            types
                .into_iter()
                .filter(|name| !schema.defines(&name.namespace, &name.local))
                .map(|name| ("type", name)),
        );
    }
    let mut findings: Vec<Finding> = Vec::new();
    for (kind, name) in open {
        let why = schema.missing(&name.namespace);
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        let (file, line) = wsdl
            .line_of(&name.local)
            .unwrap_or_else(|| (file.to_owned(), 1));
        let finding = Finding {
            error: false,
            file,
            line,
            column: 1,
            message: format!(
                "the {kind} '{}' of '{}' is not defined{why}; what it stands for is not checked",
                name.local, name.namespace
            ),
            help: "put its schema into transforms/, and import it".into(),
        };
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }
    findings
}

/// Which way a message goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    Request,
    Response,
}

/// Messages are as a WSDL says.
pub(crate) struct Contract {
    pub(crate) wsdl: Arc<Wsdl>,
    pub(crate) schema: Arc<Schema>,
    pub(crate) way: Way,
}

impl Rules for Contract {
    fn check(&self, message: &Message) -> Result<(), String> {
        let restored = xop::restored(message);
        let message = restored.as_ref().unwrap_or(message);
        let document = cache::of(message).document(message, &XmlLimits::default())?;
        self.envelope(&document)
            .map_err(|breach| self.schema.place(message, &document, &breach))
    }

    /// A one-way operation answers nothing, whatever the route makes for the others.
    fn answers(&self, received: &Message) -> bool {
        let charset = received.content_type().and_then(xbus_charset::label);
        match soap::look(received.body.bytes(), charset, true) {
            Ok(seen) => !self.wsdl.is_one_way(seen.element.as_ref()),
            Err(_) => true,
        }
    }
}

fn elements(document: &Document, parent: u32) -> impl Iterator<Item = u32> + '_ {
    document
        .children(parent)
        .filter(|node| document.node_kind(*node) == Kind::Element)
}

fn is(document: &Document, node: u32, name: &Name) -> bool {
    document.local_name(Id::node(node)) == name.local
        && document.namespace(Id::node(node)) == name.namespace
}

fn breach(node: u32, message: impl Into<String>) -> Breach {
    Breach {
        node,
        attribute: None,
        rule: "wsdl",
        message: message.into(),
    }
}

impl Contract {
    /// Holds an envelope, or what will stand in the Body of one, against the description.
    fn envelope(&self, document: &Document) -> Result<(), Breach> {
        let Some(root) = document.root_element() else {
            return Ok(());
        };
        let id = Id::node(root);
        let version = match document.namespace(id) {
            NS_11 => Some(Version::V11),
            NS_12 => Some(Version::V12),
            _ => None,
        };
        let Some(version) = version.filter(|_| document.local_name(id) == "Envelope") else {
            return self.body(document, root, &[root]);
        };
        let part = |local| {
            elements(document, root).find(|node| {
                let id = Id::node(*node);
                document.local_name(id) == local && document.namespace(id) == version.namespace()
            })
        };
        let Some(body) = part("Body") else {
            return Err(breach(root, "there is no Body"));
        };
        let behind = elements(document, root)
            .skip_while(|node| *node != body)
            .skip(1)
            .find(|node| {
                let id = Id::node(*node);
                document.namespace(id) == version.namespace()
            });
        if let Some(node) = behind {
            return Err(breach(node, "nothing of SOAP's own stands behind the Body"));
        }
        let content: Vec<u32> = elements(document, body).collect();
        let fault = content.first().is_some_and(|first| {
            let id = Id::node(*first);
            document.local_name(id) == "Fault" && document.namespace(id) == version.namespace()
        });
        if fault && self.way == Way::Response {
            return Ok(());
        }
        if let Some(header) = part("Header") {
            let described: Vec<&Name> = self
                .payloads()
                .flat_map(|payload| &payload.headers)
                .collect();
            for block in elements(document, header) {
                if described.iter().any(|name| is(document, block, name)) {
                    self.element(document, block)?;
                }
            }
        }
        self.body(document, body, &content)
    }

    /// An element that the description names, and a schema declares unless its import is missing.
    fn element(&self, document: &Document, node: u32) -> Result<(), Breach> {
        let id = Id::node(node);
        match self
            .schema
            .declares(document.namespace(id), document.local_name(id))
        {
            true => self.schema.check(document, node, Expected::Declared),
            false => Ok(()),
        }
    }

    fn payloads(&self) -> impl Iterator<Item = &Payload> {
        self.wsdl
            .operations
            .iter()
            .filter_map(|operation| match self.way {
                Way::Request => Some(&operation.input),
                Way::Response => operation.output.as_ref(),
            })
    }

    /// Holds the content of the Body (or of what stands for it) against the operation that it is of.
    fn body(&self, document: &Document, at: u32, content: &[u32]) -> Result<(), Breach> {
        let first = content.first().copied();
        let of_first = |payload: &&Payload| match (payload.first(), first) {
            (None, None) => true,
            (Some(name), Some(node)) => is(document, node, name),
            _ => false,
        };
        let Some(payload) = self.payloads().find(of_first) else {
            // An operation that is described by types alone may have any element.
            let open = self
                .payloads()
                .any(|payload| payload.body == Body::Unchecked(None));
            let what = match self.way {
                Way::Request => "no operation of the WSDL takes this element",
                Way::Response => "no operation of the WSDL answers with this element",
            };
            return match (open, first) {
                (true, _) => Ok(()),
                (false, Some(first)) => Err(breach(first, what)),
                (false, None) => Err(breach(at, "the Body is empty, which no operation allows")),
            };
        };
        match &payload.body {
            Body::Empty | Body::Unchecked(_) => Ok(()),
            Body::Elements(names) => {
                for (number, node) in content.iter().enumerate() {
                    if !names
                        .get(number)
                        .is_some_and(|name| is(document, *node, name))
                    {
                        return Err(breach(
                            *node,
                            "the operation does not have this element here",
                        ));
                    }
                    self.element(document, *node)?;
                }
                match names.get(content.len()) {
                    Some(name) => Err(breach(
                        at,
                        format!("the element '{}' is missing", name.local),
                    )),
                    None => Ok(()),
                }
            }
            Body::Rpc(_, parts) => {
                let Some(wrapper) = first else { return Ok(()) };
                if let Some(second) = content.get(1) {
                    return Err(breach(
                        *second,
                        "the operation does not have this element here",
                    ));
                }
                self.parts(document, wrapper, parts)
            }
        }
    }

    /// RPC style (WSDL 1.1 section 3.5): the parts stand in the wrapper by their names, in no namespace.
    fn parts(
        &self,
        document: &Document,
        wrapper: u32,
        parts: &[(String, Part)],
    ) -> Result<(), Breach> {
        let mut seen: Vec<&str> = Vec::new();
        for node in elements(document, wrapper) {
            let id = Id::node(node);
            let local = document.local_name(id);
            let part = parts.iter().find(|(name, what)| match what {
                Part::Type(_) => name == local && document.namespace(id).is_empty(),
                Part::Element(element) => is(document, node, element),
            });
            let Some((name, what)) = part else {
                return Err(breach(node, "the operation has no such part"));
            };
            if seen.contains(&name.as_str()) {
                return Err(breach(node, "the part stands twice"));
            }
            seen.push(name);
            match what {
                Part::Type(name) => {
                    let expected = Expected::Type(&name.namespace, &name.local);
                    self.schema.check(document, node, expected)?;
                }
                Part::Element(_) => self.element(document, node)?,
            }
        }
        match parts
            .iter()
            .find(|(name, _)| !seen.contains(&name.as_str()))
        {
            Some((name, _)) => Err(breach(wrapper, format!("the part '{name}' is missing"))),
            None => Ok(()),
        }
    }
}
