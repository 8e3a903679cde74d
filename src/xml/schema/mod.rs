//! XML Schema 1.0: documents held against a schema and what it includes and imports.
//!
//! The rules are those of the crate xsd-schema, which is driven over our own trees. Around it stands
//! what it leaves to its host: which files are read ([`sources`]), patterns that it would read
//! otherwise than the recommendation says ([`pattern`]), and words without the values of the message
//! ([`breach`]).
//!
//! A set of compiled schemas serves one check at a time and remembers every name that it meets. So
//! there are as many as checks run side by side, at most one for each processor, and one that has
//! grown is made anew.
//!
//! Absent: XSD 1.1, the network, files outside of the folder, `xsi:schemaLocation` in messages.

mod blocks;
mod breach;
mod pattern;
mod sources;

use std::cell::RefCell;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use xbus_core::Message;
use xsd_schema::namespace::context::NamespaceContextSnapshot;
use xsd_schema::validation::{
    SchemaValidator, ValidationError, ValidationFlags, ValidationRoot, ValidationRuntime,
    ValidationSink, ValidationWarning,
};
use xsd_schema::{EmbeddedLoader, LoaderChain, SchemaLoader, SchemaSet, SchemaSetBuilder};

use crate::tree::{Id, Kind};
use crate::{Document, XmlLimits, cache, reader, xop};

pub use breach::Breach;
pub use sources::{Finding, MAX_FILE, beneath, range_of, read_text, target_of};
use sources::{Sources, uri_of};

/// The namespace of `xsi:type` and `xsi:nil`.
pub const XSI_NAMESPACE: &str = "http://www.w3.org/2001/XMLSchema-instance";

/// How many bytes of names a compiled set may gather before it is made anew.
const NAMES: usize = 4 << 20;

/// What an element must be.
#[derive(Clone, Copy, Debug)]
pub enum Expected<'a> {
    /// One that the schema declares by its name.
    Declared,
    /// Of this type (namespace and name), whatever its own name.
    Type(&'a str, &'a str),
}

/// Compiled schemas.
pub struct Schema {
    sources: Arc<Sources>,
    /// Whether types that no file defines are passed over.
    lenient: bool,
    idle: Mutex<Idle>,
    returned: Condvar,
    most: usize,
    limits: XmlLimits,
}

struct Idle {
    sets: Vec<Compiled>,
    made: usize,
}

struct Compiled {
    set: SchemaSet,
    names: usize,
}

impl Schema {
    /// Reads and compiles `file` in `folder`, with everything that it includes and imports there. A
    /// WSDL stands for the schemas within it; what those leave undefined because an import cannot be
    /// read is passed over there, and an error in a schema. Gives the schema where there is no
    /// error, and everything that is to be said.
    pub fn load(folder: &Path, file: &Path) -> (Option<Self>, Vec<Finding>) {
        let (sources, mut findings) = Sources::read(folder, file);
        if findings.iter().any(|finding| finding.error) {
            return (None, findings);
        }
        let sources = Arc::new(sources);
        match compile(&sources) {
            Ok(first) => {
                let most = std::thread::available_parallelism().map_or(1, usize::from);
                let schema = Self {
                    lenient: sources.is_wsdl,
                    sources,
                    idle: Mutex::new(Idle {
                        sets: vec![first],
                        made: 1,
                    }),
                    returned: Condvar::new(),
                    most,
                    limits: XmlLimits::default(),
                };
                (Some(schema), findings)
            }
            Err(error) => {
                findings.push(sources.finding(file, &error));
                (None, findings)
            }
        }
    }

    /// Whether an element of that name is declared.
    pub fn declares(&self, namespace: &str, local: &str) -> bool {
        self.sources.declares("element", namespace, local)
    }

    /// Whether a type of that name is defined, or built in.
    pub fn defines(&self, namespace: &str, local: &str) -> bool {
        self.sources.is_built_in(namespace, local)
            || self.sources.declares("type", namespace, local)
    }

    /// Why what is of a namespace may be missing; nothing when all its files were read.
    pub fn missing(&self, namespace: &str) -> Option<&str> {
        match self.sources.lost.get(namespace) {
            Some(why) => Some(why),
            None if !self.sources.supplied.contains(namespace) => {
                Some("no file for its namespace is imported")
            }
            None => None,
        }
    }

    /// Holds the whole document of `message` against the schema. The error says line, element and
    /// rule, or why there is no document. What stands in attachments counts as if it stood in it.
    pub fn check_message(&self, message: &Message) -> Result<(), String> {
        let restored = xop::restored(message);
        let message = restored.as_ref().unwrap_or(message);
        let document = cache::of(message).document(message, &self.limits)?;
        let Some(root) = document.root_element() else {
            return Err("there is no root element".into());
        };
        self.check(&document, root, Expected::Declared)
            .map_err(|breach| self.place(message, &document, &breach))
    }

    /// The words for a breach in the document of `message`, with line and column.
    pub fn place(&self, message: &Message, document: &Document, breach: &Breach) -> String {
        let number = (0..breach.node)
            .filter(|node| document.node_kind(*node) == Kind::Element)
            .count();
        let place = xbus_charset::text(message, true)
            .ok()
            .and_then(|text| reader::place_of_element(&text, &self.limits, number));
        breach.at(document, place)
    }

    /// Holds one element and all in it against the schema; stops at the first breach.
    pub fn check(
        &self,
        document: &Document,
        element: u32,
        expected: Expected<'_>,
    ) -> Result<(), Breach> {
        let compiled = self.take().map_err(|message| Breach {
            node: element,
            attribute: None,
            rule: "internal",
            message,
        })?;
        let result = walk(&compiled.set, document, element, expected, self.lenient);
        self.give_back(compiled);
        result
    }

    fn take(&self) -> Result<Compiled, String> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(compiled) = idle.sets.pop() {
                return Ok(compiled);
            }
            if idle.made < self.most {
                idle.made += 1;
                drop(idle);
                return compile(&self.sources).map_err(|error| {
                    self.idle
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .made -= 1;
                    error.to_string()
                });
            }
            idle = self
                .returned
                .wait(idle)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, compiled: Compiled) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if compiled.set.name_table.heap_bytes() > compiled.names + NAMES {
            idle.made -= 1;
        } else {
            idle.sets.push(compiled);
        }
        self.returned.notify_one();
    }
}

fn compile(sources: &Arc<Sources>) -> Result<Compiled, xsd_schema::SchemaError> {
    let mut loaders = LoaderChain::new();
    loaders.add(Box::new(EmbeddedLoader::new()));
    loaders.add(Box::new(Read(sources.clone())));
    let mut builder = SchemaSetBuilder::with_loader(Box::new(loaders));
    for root in &sources.roots {
        builder.try_add(&uri_of(root))?;
    }
    let set = builder.compile()?.into_schema_set();
    let names = set.name_table.heap_bytes();
    Ok(Compiled { set, names })
}

/// Gives what was read, and nothing else.
#[derive(Debug)]
struct Read(Arc<Sources>);

impl SchemaLoader for Read {
    fn load(&self, location: &str) -> xsd_schema::error::SchemaResult<String> {
        self.0.text(location).map(str::to_owned).ok_or_else(|| {
            xsd_schema::SchemaError::resolution(format!("'{location}' was not read"))
        })
    }

    fn can_load(&self, location: &str) -> bool {
        !EmbeddedLoader::new().can_load(location)
    }
}

/// Characters of the longest number that is looked at: making a number of text takes time by the
/// square of its length.
const LONGEST_NUMBER: usize = 20_000;

/// Whether a text may be a number, or a part of one.
fn is_numeric(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_digit() || byte.is_ascii_whitespace() || b"+-.".contains(&byte))
}

fn too_long(node: u32, attribute: Option<u32>) -> Breach {
    Breach {
        node,
        attribute,
        rule: "cvc-datatype-valid",
        message: format!("a number of more than {LONGEST_NUMBER} characters is not looked at"),
    }
}

/// Where a check has come to, so that a breach can name its place.
struct Walk<'d> {
    document: &'d Document,
    errors: usize,
}

impl Walk<'_> {
    /// The first breach that the last event has brought, if it counts.
    fn breach(
        &mut self,
        errors: &RefCell<Vec<ValidationError>>,
        node: u32,
        attribute: Option<u32>,
    ) -> Result<(), Breach> {
        let errors = errors.borrow();
        for error in &errors[self.errors..] {
            self.errors += 1;
            if let Some(breach) = Breach::of(error, self.document, node, attribute) {
                return Err(breach);
            }
        }
        Ok(())
    }
}

/// Collects errors where the walk can look at them between two events.
struct Shared<'a>(&'a RefCell<Vec<ValidationError>>);

impl ValidationSink for Shared<'_> {
    fn on_error(&mut self, error: ValidationError) {
        let mut errors = self.0.borrow_mut();
        // One breach is told; a document cannot fill the memory with them.
        if errors.len() < 1000 {
            errors.push(error);
        }
    }
    fn on_warning(&mut self, _: ValidationWarning) {}
}

/// Walks over an element and all in it. Keeps no stack: depth costs nothing here.
fn walk(
    set: &SchemaSet,
    document: &Document,
    element: u32,
    expected: Expected<'_>,
    lenient: bool,
) -> Result<(), Breach> {
    let errors = RefCell::new(Vec::new());
    let validator = SchemaValidator::new(set, ValidationFlags::empty());
    let mut runtime = validator.start_run(Shared(&errors));
    if let Expected::Type(namespace, name) = expected {
        let names = &set.name_table;
        let namespace = (!namespace.is_empty()).then(|| names.add(namespace));
        match set.lookup_type(namespace, names.add(name)) {
            Some(key) => runtime.set_validation_root(ValidationRoot::Type(key)),
            None if lenient => return Ok(()),
            None => {
                return Err(Breach {
                    node: element,
                    attribute: None,
                    rule: "src-resolve",
                    message: format!("the type '{name}' is not defined"),
                });
            }
        }
    }
    let mut walk = Walk {
        document,
        errors: 0,
    };
    let end = document.end(element);
    let mut open: Vec<u32> = Vec::new();
    // Digits that an element's text has so far, in however many pieces.
    let mut number = (element, 0);
    // The prefixes in scope, of the elements that declare some; the innermost last.
    let mut scopes = vec![(end, in_scope(set, document, element))];
    let mut node = element;
    loop {
        while let Some(inner) = open.last().copied()
            && (node >= document.end(inner) || node >= end)
        {
            runtime.validate_end_element_novalue();
            walk.breach(&errors, inner, None)?;
            open.pop();
        }
        if node >= end {
            break;
        }
        match document.node_kind(node) {
            Kind::Element => {
                while scopes.len() > 1 && scopes.last().is_some_and(|(end, _)| node >= *end) {
                    scopes.pop();
                }
                if node != element && document.declarations(node).next().is_some() {
                    scopes.push((document.end(node), in_scope(set, document, node)));
                }
                if let Some((_, scope)) = scopes.last() {
                    start(&mut runtime, document, node, scope);
                }
                walk.breach(&errors, node, None)?;
                attributes(&mut runtime, document, node, |attribute| {
                    walk.breach(&errors, node, Some(attribute))
                })?;
                runtime.validate_end_of_attributes_novalue();
                walk.breach(&errors, node, None)?;
                open.push(node);
            }
            Kind::Text => {
                let text = document.characters(Id::node(node)).unwrap_or_default();
                let inner = open.last().copied().unwrap_or(element);
                number = match is_numeric(text) {
                    true if number.0 == inner => (inner, number.1 + text.len()),
                    true => (inner, text.len()),
                    false => (inner, 0),
                };
                if number.1 > LONGEST_NUMBER {
                    return Err(too_long(inner, None));
                }
                if text.bytes().all(|b| b.is_ascii_whitespace()) {
                    runtime.validate_whitespace(text);
                } else {
                    runtime.validate_text(text);
                }
                walk.breach(&errors, inner, None)?;
            }
            _ => {}
        }
        node += 1;
    }
    if let Err(error) = runtime.end_validation()
        && let Some(breach) = Breach::of(&error, document, element, None)
    {
        return Err(breach);
    }
    drop(runtime);
    walk.breach(&errors, element, None)
}

fn start<S: ValidationSink>(
    runtime: &mut ValidationRuntime<'_, S>,
    document: &Document,
    node: u32,
    scope: &NamespaceContextSnapshot,
) {
    let id = Id::node(node);
    let xsi = |name| document.attribute(node, XSI_NAMESPACE, name);
    runtime.validate_element_novalue(
        document.local_name(id),
        document.namespace(id),
        xsi("type"),
        xsi("nil"),
        scope,
    );
}

/// The prefixes in scope at an element, the innermost first.
fn in_scope(set: &SchemaSet, document: &Document, node: u32) -> NamespaceContextSnapshot {
    let names = &set.name_table;
    let mut snapshot = NamespaceContextSnapshot::default();
    let mut default_known = false;
    let mut at = Some(Id::node(node));
    while let Some(id) = at {
        for (prefix, uri) in document.declarations(id.node) {
            if prefix.is_empty() {
                if !default_known {
                    default_known = true;
                    snapshot.default_ns = (!uri.is_empty()).then(|| names.add(uri));
                }
                continue;
            }
            let prefix = names.add(prefix);
            if !snapshot.bindings.iter().any(|(known, _)| *known == prefix) {
                snapshot.bindings.push((prefix, names.add(uri)));
            }
        }
        at = document.parent(id);
    }
    snapshot
}

/// The namespaces of `mustUnderstand`, `actor`, `role`, `relay` and `encodingStyle`: SOAP 1.1
/// (section 4.1.1) and SOAP 1.2 part 1 (section 5.2).
const SOAP: [&str; 2] = [
    "http://schemas.xmlsoap.org/soap/envelope/",
    "http://www.w3.org/2003/05/soap-envelope",
];

fn attributes<S: ValidationSink>(
    runtime: &mut ValidationRuntime<'_, S>,
    document: &Document,
    node: u32,
    mut after: impl FnMut(u32) -> Result<(), Breach>,
) -> Result<(), Breach> {
    for number in document.attributes(node) {
        let id = Id {
            node,
            attr: number + 1,
        };
        // What SOAP itself says of an element stands beside whatever its schema allows.
        if SOAP.contains(&document.namespace(id)) {
            continue;
        }
        let value = document.characters(id).unwrap_or_default();
        if value.len() > LONGEST_NUMBER && is_numeric(value) {
            return Err(too_long(node, Some(number + 1)));
        }
        runtime.validate_attribute(document.local_name(id), document.namespace(id), value);
        after(number + 1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
