//! The files that a schema or a WSDL consists of: read once, beneath one folder, and looked through
//! for what the engine does not tell with its place (names that nothing defines, imports that lead
//! nowhere, patterns that cannot be read).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use quick_xml::events::{BytesStart, Event};
use quick_xml::name::{QName, ResolveResult};
use quick_xml::reader::NsReader;

use crate::reader::{namespaced, said};
use crate::xop::percent_decoded;
use xsd_schema::SchemaError;

use super::pattern;

/// Largest file that is read, in bytes.
pub const MAX_FILE: u64 = 16 << 20;
/// Most files of one schema.
const MAX_FILES: usize = 500;

const XS: &str = "http://www.w3.org/2001/XMLSchema";
const WSDL: &str = "http://schemas.xmlsoap.org/wsdl/";
const XML: &str = "http://www.w3.org/XML/1998/namespace";
const XLINK: &str = "http://www.w3.org/1999/xlink";

/// Every type of part 2, and those above them.
const BUILT_IN: &str = " anyType anySimpleType string boolean decimal float double duration dateTime \
    time date gYearMonth gYear gMonthDay gDay gMonth hexBinary base64Binary anyURI QName NOTATION \
    normalizedString token language NMTOKEN NMTOKENS Name NCName ID IDREF IDREFS ENTITY ENTITIES \
    integer nonPositiveInteger negativeInteger long int short byte nonNegativeInteger unsignedLong \
    unsignedInt unsignedShort unsignedByte positiveInteger ";

/// What is to be said of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Whether the schema cannot be used; else it is a warning.
    pub error: bool,
    /// The file, relative to the folder.
    pub file: PathBuf,
    /// 1-based line.
    pub line: usize,
    /// 1-based column in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub help: String,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// Texts of schemas, by their path relative to the folder (those within a WSDL have a number
    /// behind it).
    texts: BTreeMap<String, String>,
    /// Those that are asked for themselves.
    pub(super) roots: Vec<String>,
    /// Kind, namespace and name of what is declared at the top of a schema.
    declared: HashSet<(&'static str, String, String)>,
    /// Whether they come from a WSDL.
    pub(super) is_wsdl: bool,
    /// Namespaces of which a file could not be read, and why.
    pub(super) lost: HashMap<String, String>,
    /// Namespaces that some schema is for.
    pub(super) supplied: HashSet<String>,
}

/// The name by which the engine knows a file: so deep that no `..` reaches another one.
pub(super) fn uri_of(name: &str) -> String {
    format!("{PREFIX}{name}")
}

const PREFIX: &str = "/xbus/0/1/2/3/4/5/6/7/8/9/transforms/";

impl Sources {
    /// Reads `file` in `folder` and all that it leads to.
    pub(super) fn read(folder: &Path, file: &Path) -> (Self, Vec<Finding>) {
        let mut reading = Reading {
            folder,
            sources: Self::default(),
            findings: Vec::new(),
            seen: BTreeSet::new(),
            waiting: Vec::new(),
            known: BTreeMap::new(),
        };
        reading.document(file, None);
        while let Some((next, by)) = reading.waiting.pop() {
            if reading.seen.len() >= MAX_FILES {
                reading.say(
                    true,
                    &by,
                    format!("the schema has more than {MAX_FILES} files"),
                    "",
                );
                break;
            }
            reading.document(&next, Some(by));
        }
        reading.resolve();
        reading
            .findings
            .sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        reading.findings.dedup();
        (reading.sources, reading.findings)
    }

    pub(super) fn text(&self, uri: &str) -> Option<&str> {
        let name = uri.strip_prefix(PREFIX)?;
        self.texts.get(name).map(String::as_str)
    }

    pub(super) fn is_built_in(&self, namespace: &str, local: &str) -> bool {
        namespace == XS && BUILT_IN.contains(&format!(" {local} "))
    }

    pub(super) fn declares(&self, kind: &'static str, namespace: &str, local: &str) -> bool {
        self.declared
            .contains(&(kind, namespace.to_owned(), local.to_owned()))
    }

    /// What the engine says of a schema, with its place in our files.
    pub(super) fn finding(&self, file: &Path, error: &SchemaError) -> Finding {
        let place = error.location();
        let known = place.and_then(|place| place.base_uri.strip_prefix(PREFIX));
        let file = known.map_or_else(
            || file.to_owned(),
            |name| PathBuf::from(name.split('\u{1}').next().unwrap_or(name)),
        );
        let (line, column) = match (place, known) {
            (Some(place), Some(_)) => (place.line.max(1), place.column.max(1)),
            _ => (1, 1),
        };
        let message = match error {
            SchemaError::XmlError { message, .. }
            | SchemaError::NamespaceError { message, .. }
            | SchemaError::ResolutionError { message } => message.clone(),
            SchemaError::StructuralError {
                message,
                constraint,
                ..
            } => format!("{message} ({constraint})"),
            SchemaError::FeatureError { message, .. } => format!("{message} is not XML Schema 1.0"),
            other => other.to_string(),
        };
        Finding {
            error: true,
            file,
            line,
            column,
            message: message.replace(PREFIX, "").replace('\u{1}', " schema "),
            help: "mend the schema; it has to be one by XML Schema 1.0".into(),
        }
    }
}

/// The path of `location` (a relative reference, RFC 3986) as seen from the folder of `from`, when it
/// stays beneath the folder.
pub fn beneath(from: &Path, location: &str) -> Option<PathBuf> {
    let location = location.split('#').next().unwrap_or_default().trim();
    if location.is_empty() || location.contains(':') || location.starts_with(['/', '\\']) {
        return None;
    }
    let location = percent_decoded(location).replace('\\', "/");
    let mut path = PathBuf::new();
    let base = from.parent().unwrap_or(Path::new(""));
    for part in base.components().chain(Path::new(&location).components()) {
        match part {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !path.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

/// The text of a file beneath `folder`, links included, decoded as XML says. The error says why not.
pub fn read_text(folder: &Path, file: &Path) -> Result<String, String> {
    let wrong = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file in transforms/".to_owned(),
        _ => format!("it cannot be read: {error}"),
    };
    let root = folder.canonicalize().map_err(wrong)?;
    let path = folder.join(file).canonicalize().map_err(wrong)?;
    if !path.starts_with(&root) {
        return Err("it lies outside of transforms/".into());
    }
    let mut bytes = Vec::new();
    std::fs::File::open(&path)
        .and_then(|file| {
            if !file.metadata()?.is_file() {
                return Err(std::io::Error::other("it is no file"));
            }
            file.take(MAX_FILE + 1).read_to_end(&mut bytes)
        })
        .map_err(wrong)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("it is larger than {} MiB", MAX_FILE >> 20));
    }
    let text = xbus_charset::decode(&bytes, None, true).map_err(String::from)?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned())
}

/// Where something stands.
#[derive(Clone, Debug)]
struct Spot {
    file: PathBuf,
    line: usize,
    column: usize,
}

/// A name that a schema uses.
struct Reference {
    kind: &'static str,
    namespace: String,
    local: String,
    /// The attribute that names it, and the range of its tag.
    key: &'static str,
    tag: (usize, usize),
    /// The component at the top of the schema within which it stands.
    component: Option<usize>,
    spot: Spot,
}

struct Reading<'a> {
    folder: &'a Path,
    sources: Sources,
    findings: Vec<Finding>,
    seen: BTreeSet<PathBuf>,
    waiting: Vec<(PathBuf, Spot)>,
    /// What is known of each schema, by its name among the texts.
    known: BTreeMap<String, Known>,
}

/// What is known of one schema.
#[derive(Default)]
struct Known {
    text: String,
    /// What the engine is to read in place of a range of the text.
    mended: Vec<(usize, usize, String)>,
    target: String,
    declared: Vec<(&'static str, String)>,
    included: Vec<String>,
    imported: HashSet<String>,
    references: Vec<Reference>,
    /// What stands at the top of the schema and has content.
    components: Vec<TopLevel>,
    /// Where its first child may stand, and the prefix of its elements with the colon.
    begin: usize,
    prefix: String,
}

/// Something at the top of a schema.
struct TopLevel {
    local: String,
    /// The range between its tags.
    content: (usize, usize),
}

impl TopLevel {
    /// Content that allows anything.
    fn open(&self, prefix: &str) -> String {
        let any = format!(
            "<{prefix}any minOccurs=\"0\" maxOccurs=\"unbounded\" processContents=\"lax\"/>"
        );
        let attributes = format!("<{prefix}anyAttribute processContents=\"lax\"/>");
        match &*self.local {
            "complexType" => {
                format!("<{prefix}sequence>{any}</{prefix}sequence>{attributes}")
            }
            "simpleType" => format!("<{prefix}restriction base=\"{prefix}string\"/>"),
            "group" => format!("<{prefix}sequence>{any}</{prefix}sequence>"),
            "attributeGroup" => attributes,
            _ => String::new(),
        }
    }
}

impl Reading<'_> {
    fn say(&mut self, error: bool, at: &Spot, message: impl Into<String>, help: &str) {
        self.findings.push(Finding {
            error,
            file: at.file.clone(),
            line: at.line,
            column: at.column,
            message: message.into(),
            help: help.to_owned(),
        });
    }

    /// Reads one file; `by`: the place that leads to it.
    fn document(&mut self, file: &Path, by: Option<Spot>) {
        if !self.seen.insert(file.to_owned()) {
            return;
        }
        let start = Spot {
            file: file.to_owned(),
            line: 1,
            column: 1,
        };
        let text = match read_text(self.folder, file) {
            Ok(text) => without_dtd(text),
            Err(why) => {
                let at = by.unwrap_or(start);
                let message = format!("{}: {why}", file.display());
                return self.say(true, &at, message, "put the file there, or mend the path");
            }
        };
        let is_root = by.is_none();
        if let Err((at, why)) = self.scan(file, &text, is_root) {
            let at = spot(file, &text, at);
            self.say(
                true,
                &at,
                format!("not well-formed XML: {why}"),
                "mend the file",
            );
        }
    }

    /// Looks through a file: a schema, or a WSDL with schemas in it.
    fn scan(&mut self, file: &Path, text: &str, is_root: bool) -> Result<(), (usize, String)> {
        let mut reader = namespaced(text);
        let mut depth = 0usize;
        let mut number = 0usize;
        // Declarations of the elements around a schema within a WSDL.
        let mut around: Vec<(usize, String, String)> = Vec::new();
        loop {
            let at = reader.buffer_position() as usize;
            let event = reader.read_event().map_err(|error| (at, said(&error)))?;
            let (start, empty) = match event {
                Event::Start(start) => (start, false),
                Event::Empty(start) => (start, true),
                Event::End(_) => {
                    depth = depth.saturating_sub(1);
                    around.retain(|(level, ..)| *level <= depth);
                    continue;
                }
                Event::DocType(_) => return Err((at, "a DTD is not accepted".into())),
                Event::Eof if depth > 0 => return Err((at, "it ends within an element".into())),
                Event::Eof => return Ok(()),
                _ => continue,
            };
            let (namespace, local) = name_of(&reader, &start).map_err(|why| (at, why))?;
            if depth == 0
                && !matches!(
                    (&*namespace, &*local),
                    (XS, "schema") | (WSDL, "definitions")
                )
            {
                return Err((
                    at,
                    format!("its first element is '{local}', not that of a schema or a WSDL 1.1"),
                ));
            }
            if namespace == XS && local == "schema" {
                let mut name = file.display().to_string();
                if depth > 0 {
                    number += 1;
                    name = format!("{name}\u{1}{number}");
                }
                let end = match empty {
                    true => reader.buffer_position() as usize,
                    false => {
                        let end = reader.read_to_end(start.name());
                        end.map_err(|error| (at, said(&error)))?;
                        reader.buffer_position() as usize
                    }
                };
                let own = cut(text, at, end, &around);
                self.schema(file, &name, &own)?;
                if is_root || depth > 0 {
                    self.sources.roots.push(name);
                }
                if depth == 0 {
                    return Ok(());
                }
                continue;
            }
            if depth == 0 {
                self.sources.is_wsdl = true;
            }
            if namespace == WSDL && local == "import" {
                let at = spot(file, text, at);
                self.wsdl_import(file, &start, at);
            }
            if !empty {
                depth += 1;
                for attribute in start.attributes().with_checks(false).flatten() {
                    let prefix = match attribute.key.0 {
                        "xmlns" => "",
                        key => match key.strip_prefix("xmlns:") {
                            Some(prefix) => prefix,
                            None => continue,
                        },
                    };
                    let value = unescaped(&attribute.value);
                    around.push((depth, prefix.to_owned(), value));
                }
            }
        }
    }

    fn wsdl_import(&mut self, file: &Path, start: &BytesStart<'_>, at: Spot) {
        let Some(location) = attribute(start, "location") else {
            return;
        };
        match beneath(file, &location) {
            Some(path) => self.waiting.push((path, at)),
            None => self.say(
                false,
                &at,
                format!("the import of '{location}' is not read: only files in transforms/ are"),
                "put a copy there, and name it",
            ),
        }
    }

    /// Looks through one schema, and keeps it as the engine is to read it.
    fn schema(&mut self, file: &Path, name: &str, text: &str) -> Result<(), (usize, String)> {
        let mut reader = namespaced(text);
        let mut known = Known::default();
        let mut depth = 0usize;
        loop {
            let at = reader.buffer_position() as usize;
            let event = reader.read_event().map_err(|error| (at, said(&error)))?;
            let (start, empty) = match event {
                Event::Start(start) => (start, false),
                Event::Empty(start) => (start, true),
                Event::End(_) => {
                    depth = depth.saturating_sub(1);
                    if depth == 1
                        && let Some(component) = known.components.last_mut()
                    {
                        component.content.1 = at;
                    }
                    continue;
                }
                Event::Eof => break,
                _ => continue,
            };
            let end = reader.buffer_position() as usize;
            let (namespace, local) = name_of(&reader, &start).map_err(|why| (at, why))?;
            if depth == 1 && !empty {
                known.components.push(TopLevel {
                    local: local.clone(),
                    content: (end, end),
                });
            }
            if namespace == XS {
                let spot = spot(file, text, at);
                match depth {
                    0 => {
                        known.begin = end;
                        let prefix = start.name().0.split_once(':');
                        known.prefix = prefix.map_or_else(String::new, |(p, _)| format!("{p}:"));
                        known.target = attribute(&start, "targetNamespace").unwrap_or_default();
                        self.sources.supplied.insert(known.target.clone());
                    }
                    1 if local == "import" => {
                        let namespace = attribute(&start, "namespace").unwrap_or_default();
                        known.imported.insert(namespace);
                        let mut tag = plainly_located(&text[at..end], &start);
                        if let Some(theirs) = self.import(&start, file, &spot) {
                            let before = tag.as_deref().unwrap_or(&text[at..end]);
                            tag = Some(with_value(before, "namespace", &theirs));
                            known.imported.insert(theirs);
                        }
                        known.mended.extend(tag.map(|tag| (at, end, tag)));
                    }
                    1 if local == "include" || local == "redefine" => {
                        let tag = plainly_located(&text[at..end], &start);
                        known.mended.extend(tag.map(|tag| (at, end, tag)));
                        self.include(&start, file, &spot, &mut known);
                    }
                    // What stands in a redefine is at the top of its schema too.
                    1 | 2 => known.declare(&local, &start),
                    _ => {}
                }
                references(&reader, &local, &start, (at, end), &spot, &mut known)
                    .map_err(|why| (at, why))?;
                if local == "pattern" {
                    match attribute(&start, "value").map(|value| pattern::mend(&value)) {
                        Some(Ok(Some(better))) => {
                            let tag = with_value(&text[at..end], "value", &better);
                            known.mended.push((at, end, tag));
                        }
                        Some(Err(what)) => self.say(
                            true,
                            &spot,
                            format!("the pattern cannot be read: {what}"),
                            "write it as XML Schema part 2, appendix F, says",
                        ),
                        _ => {}
                    }
                }
            }
            if !empty {
                depth += 1;
            }
        }
        known.text = text.to_owned();
        self.known.insert(name.to_owned(), known);
        Ok(())
    }

    fn include(&mut self, start: &BytesStart<'_>, file: &Path, at: &Spot, known: &mut Known) {
        let location = attribute(start, "schemaLocation").unwrap_or_default();
        match beneath(file, &location) {
            Some(path) => {
                known.included.push(path.display().to_string());
                self.waiting.push((path, at.clone()));
            }
            None => self.say(
                true,
                at,
                format!("'{location}' is not read: only files in transforms/ are"),
                "put a copy there, and name it",
            ),
        }
    }

    /// Follows an import. Gives the file's namespace when it is another one than the import says,
    /// which the engine refuses, and some schemas in use have.
    fn import(&mut self, start: &BytesStart<'_>, file: &Path, at: &Spot) -> Option<String> {
        let namespace = attribute(start, "namespace").unwrap_or_default();
        let location = attribute(start, "schemaLocation")?;
        if matches!(&*namespace, XML | XLINK) {
            return None;
        }
        let Some(path) = beneath(file, &location) else {
            let why = format!("'{location}' is not read: only files in transforms/ are");
            self.sources.lost.entry(namespace).or_insert(why);
            return None;
        };
        let text = match read_text(self.folder, &path) {
            Ok(text) => text,
            Err(why) => {
                let why = format!("'{}': {why}", path.display());
                self.sources.lost.entry(namespace).or_insert(why);
                return None;
            }
        };
        self.waiting.push((path, at.clone()));
        match target_of(&text) {
            Some(theirs) if theirs != namespace => {
                self.say(
                    false,
                    at,
                    format!(
                        "the import names the namespace '{namespace}', and '{location}' is for '{theirs}'"
                    ),
                    "write the namespace of the file into the import",
                );
                (!namespace.is_empty() && !theirs.is_empty()).then_some(theirs)
            }
            _ => None,
        }
    }

    /// Says which names nothing defines.
    fn resolve(&mut self) {
        // A schema without a namespace has those of the ones that include it.
        let mut namespaces: BTreeMap<String, BTreeSet<String>> = self
            .known
            .iter()
            .map(|(name, known)| (name.clone(), BTreeSet::from([known.target.clone()])))
            .collect();
        loop {
            let mut changed = false;
            for (name, known) in &self.known {
                let own = namespaces.get(name).cloned().unwrap_or_default();
                for included in &known.included {
                    let adopts = self
                        .known
                        .get(included)
                        .is_some_and(|known| known.target.is_empty());
                    if adopts && let Some(theirs) = namespaces.get_mut(included) {
                        let before = theirs.len();
                        theirs.extend(own.iter().cloned());
                        changed |= theirs.len() != before;
                    }
                }
            }
            if !changed {
                break;
            }
        }
        for (name, known) in &self.known {
            for (kind, local) in &known.declared {
                for namespace in &namespaces[name] {
                    let declared = (*kind, namespace.clone(), local.clone());
                    self.sources.declared.insert(declared);
                }
            }
        }
        let mut open = Vec::new();
        for (name, known) in &mut self.known {
            for reference in std::mem::take(&mut known.references) {
                let adopted = || {
                    namespaces[name].iter().any(|namespace| {
                        self.sources
                            .declares(reference.kind, namespace, &reference.local)
                    })
                };
                let found = match &*reference.namespace {
                    XS => {
                        reference.kind != "type"
                            || BUILT_IN.contains(&format!(" {} ", reference.local))
                    }
                    XML | XLINK => true,
                    namespace => self
                        .sources
                        .declares(reference.kind, namespace, &reference.local),
                };
                let found = found || (reference.namespace.is_empty() && adopted());
                if !found {
                    // The engine takes what is not there for an error: it is opened to anything.
                    let around = reference.component.and_then(|at| known.components.get(at));
                    if reference.key == "type" {
                        let (at, end) = reference.tag;
                        let tag = without_attribute(&known.text[at..end], "type");
                        known.mended.push((at, end, tag));
                    } else if let Some(component) = around
                        && component.content.0 <= reference.tag.0
                    {
                        let (at, end) = component.content;
                        let content = component.open(&known.prefix);
                        known.mended.push((at, end, content));
                    }
                    open.push(reference);
                } else if reference.namespace != known.target
                    && !matches!(&*reference.namespace, "" | XS | XML | XLINK)
                    && known.imported.insert(reference.namespace.clone())
                    && self.sources.is_wsdl
                {
                    // Types of one WSDL know one another in practice, import or not.
                    let uri = quick_xml::escape::escape(reference.namespace.as_str());
                    let import = format!("<{}import namespace=\"{uri}\"/>", known.prefix);
                    known.mended.push((known.begin, known.begin, import));
                }
            }
        }
        for (name, mut known) in std::mem::take(&mut self.known) {
            // What is around comes before what stands in it.
            known
                .mended
                .sort_by_key(|(from, to, _)| (*from, std::cmp::Reverse(*to)));
            let mut kept = String::with_capacity(known.text.len());
            let mut from = 0;
            for (start, end, by) in known.mended {
                if start >= from {
                    kept.push_str(&known.text[from..start]);
                    kept.push_str(&by);
                    from = end;
                }
            }
            kept.push_str(&known.text[from..]);
            self.sources.texts.insert(name, kept);
        }
        let lenient = self.sources.is_wsdl;
        for Reference {
            kind,
            namespace,
            local,
            spot,
            ..
        } in open
        {
            let what = match namespace.is_empty() {
                true => format!("the {kind} '{local}' is not defined"),
                false => format!("the {kind} '{local}' of '{namespace}' is not defined"),
            };
            let lost = self.sources.lost.get(&namespace).cloned();
            let foreign = !self.sources.supplied.contains(&namespace) && namespace != XS;
            match (lost, foreign) {
                (None, false) if !lenient => {
                    self.say(true, &spot, what, "mend the name, or define it");
                }
                (None, false) => self.say(
                    false,
                    &spot,
                    format!("{what}; what it stands for is not checked"),
                    "mend the name, or define it",
                ),
                (lost, _) => {
                    let why =
                        lost.unwrap_or_else(|| "no file for its namespace is imported".into());
                    let (end, help) = match lenient {
                        true => (
                            "; what it stands for is not checked",
                            "put the file there, and name it in the import",
                        ),
                        false => ("", "put the file there, and name it in the import"),
                    };
                    self.say(!lenient, &spot, format!("{what}: {why}{end}"), help);
                }
            }
        }
    }
}

impl Known {
    fn declare(&mut self, local: &str, start: &BytesStart<'_>) {
        let kind = match local {
            "element" => "element",
            "attribute" => "attribute",
            "simpleType" | "complexType" => "type",
            "group" => "group",
            "attributeGroup" => "attribute group",
            _ => return,
        };
        if let Some(name) = attribute(start, "name") {
            self.declared.push((kind, name));
        }
    }
}

/// The names that an element of a schema refers to.
fn references(
    reader: &NsReader<&[u8]>,
    local: &str,
    start: &BytesStart<'_>,
    tag: (usize, usize),
    spot: &Spot,
    known: &mut Known,
) -> Result<(), String> {
    for (key, kind) in [
        ("type", "type"),
        ("base", "type"),
        ("itemType", "type"),
        ("memberTypes", "type"),
        ("substitutionGroup", "element"),
        (
            "ref",
            match local {
                "element" => "element",
                "attribute" => "attribute",
                "group" => "group",
                "attributeGroup" => "attribute group",
                _ => "",
            },
        ),
    ] {
        if kind.is_empty() {
            continue;
        }
        let Some(value) = attribute(start, key) else {
            continue;
        };
        for name in value.split_ascii_whitespace() {
            let (resolved, local) = reader.resolver().resolve_element(QName(name));
            let namespace = match resolved {
                ResolveResult::Bound(namespace) => namespace.0.to_owned(),
                ResolveResult::Unbound => String::new(),
                ResolveResult::Unknown(prefix) => {
                    return Err(format!("the prefix '{prefix}' of '{name}' is not declared"));
                }
            };
            known.references.push(Reference {
                kind,
                namespace,
                local: local.into_inner().to_owned(),
                key,
                tag,
                component: known.components.len().checked_sub(1),
                spot: spot.clone(),
            });
        }
    }
    Ok(())
}

/// Namespace and local name of a start tag.
fn name_of(reader: &NsReader<&[u8]>, start: &BytesStart<'_>) -> Result<(String, String), String> {
    let (resolved, local) = reader.resolver().resolve_element(start.name());
    let local = local.into_inner().to_owned();
    match resolved {
        ResolveResult::Bound(namespace) => Ok((namespace.0.to_owned(), local)),
        ResolveResult::Unbound => Ok((String::new(), local)),
        ResolveResult::Unknown(prefix) => Err(format!("the prefix '{prefix}' is not declared")),
    }
}

/// The value of an attribute without a prefix.
fn attribute(start: &BytesStart<'_>, name: &str) -> Option<String> {
    start
        .attributes()
        .with_checks(false)
        .flatten()
        .find(|attribute| attribute.key.0 == name)
        .map(|attribute| unescaped(&attribute.value))
}

fn unescaped(value: &str) -> String {
    quick_xml::escape::unescape(value).map_or_else(|_| value.to_owned(), |value| value.into_owned())
}

fn spot(file: &Path, text: &str, at: usize) -> Spot {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |n| n + 1);
    Spot {
        file: file.to_owned(),
        line: before.bytes().filter(|byte| *byte == b'\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    }
}

/// The target namespace of a schema; nothing for what is none.
pub fn target_of(text: &str) -> Option<String> {
    let mut reader = namespaced(text);
    loop {
        match reader.read_event().ok()? {
            Event::Start(start) | Event::Empty(start) => {
                let (namespace, local) = name_of(&reader, &start).ok()?;
                return (namespace == XS && local == "schema")
                    .then(|| attribute(&start, "targetNamespace").unwrap_or_default());
            }
            Event::Eof => return None,
            _ => {}
        }
    }
}

/// A schema out of the text of a WSDL, as a document of its own: its lines keep their numbers, and
/// it has the declarations of the elements around it.
fn cut(text: &str, from: usize, to: usize, around: &[(usize, String, String)]) -> String {
    let schema = &text[from..to];
    let name_end = schema
        .find(|c: char| c.is_ascii_whitespace() || matches!(c, '>' | '/'))
        .unwrap_or(schema.len());
    let tag_end = schema.find('>').unwrap_or(schema.len());
    let mut declarations = String::new();
    for (at, (_, prefix, uri)) in around.iter().enumerate() {
        let nearer = around[at + 1..].iter().any(|(_, other, _)| other == prefix);
        let name = match prefix.is_empty() {
            true => "xmlns".to_owned(),
            false => format!("xmlns:{prefix}"),
        };
        let own = schema[..tag_end]
            .split(|c: char| c.is_ascii_whitespace())
            .any(|part| part.split('=').next() == Some(&name));
        if !nearer && !own {
            let uri = quick_xml::escape::escape(uri.as_str());
            declarations.push_str(&format!(" {name}=\"{uri}\""));
        }
    }
    let lines = text[..from].bytes().filter(|byte| *byte == b'\n').count();
    format!(
        "{}{}{declarations}{}",
        "\n".repeat(lines),
        &schema[..name_end],
        &schema[name_end..]
    )
}

/// A start tag without an attribute.
fn without_attribute(tag: &str, name: &str) -> String {
    match range_of(tag, name) {
        Some((from, _, end)) => format!("{}{}", &tag[..from], &tag[end..]),
        None => tag.to_owned(),
    }
}

/// A start tag in which an attribute has another value.
fn with_value(tag: &str, name: &str, value: &str) -> String {
    match range_of(tag, name) {
        Some((_, open, end)) => {
            let escaped = quick_xml::escape::escape(value);
            format!("{}\"{escaped}\"{}", &tag[..open], &tag[end..])
        }
        None => tag.to_owned(),
    }
}

/// A start tag whose `schemaLocation` is the name that the engine knows the file by, where that is
/// percent-encoded.
fn plainly_located(tag: &str, start: &BytesStart<'_>) -> Option<String> {
    let location = attribute(start, "schemaLocation")?;
    let plain = percent_decoded(&location);
    (plain != location).then(|| with_value(tag, "schemaLocation", &plain))
}

/// Where in a well-formed start tag an attribute begins, its quoted value begins, and both end.
pub fn range_of(tag: &str, name: &str) -> Option<(usize, usize, usize)> {
    let bytes = tag.as_bytes();
    let space = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_whitespace);
    let mut at = tag.find(|c: char| c.is_ascii_whitespace())?;
    loop {
        while space(at) {
            at += 1;
        }
        let from = at;
        let equals = at + tag.get(at..)?.find('=')?;
        let key = tag[from..equals].trim_end();
        let mut open = equals + 1;
        while space(open) {
            open += 1;
        }
        let quote = *bytes.get(open)?;
        let length = bytes[open + 1..].iter().position(|byte| *byte == quote)?;
        let end = open + length + 2;
        if key == name {
            return Some((from, open, end));
        }
        at = end;
    }
}

/// A schema without its document type declaration (that of XML Signature has one), which stays as
/// white space so that lines keep their numbers. Entities of its own are not known afterwards.
fn without_dtd(text: String) -> String {
    let Some(from) = text.find("<!DOCTYPE") else {
        return text;
    };
    let mut inside = false;
    let mut quote = None;
    let mut comment = false;
    for (at, c) in text[from..].char_indices() {
        let rest = &text[from + at..];
        match (c, quote) {
            _ if comment => comment = !rest.starts_with("-->"),
            ('<', None) if rest.starts_with("<!--") => comment = true,
            (c, Some(open)) if c == open => quote = None,
            (_, Some(_)) => {}
            ('"' | '\'', None) => quote = Some(c),
            ('[', None) => inside = true,
            (']', None) => inside = false,
            ('>', None) if !inside => {
                let end = from + at + 1;
                let blank: String = text[from..end]
                    .chars()
                    .map(|c| if c == '\n' { c } else { ' ' })
                    .collect();
                return format!("{}{blank}{}", &text[..from], &text[end..]);
            }
            _ => {}
        }
    }
    text
}
