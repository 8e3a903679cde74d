//! YAML (1.2) to a tree of [`Node`]s with places.
//!
//! The tree is built from the parser's events without recursion, and everything that a small file
//! could blow up is bounded: nesting, file size, and what aliases expand to. Absent: types. Whether
//! `5` is a number or a text, the field says later. Custom tags and several documents are errors.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use granit_parser::{Event, Marker, Options, Parser, ScalarStyle, ScanError, Span, StructureStyle};
use xbus_core::Problems;
use xbus_core::problem::Place;
use xbus_core::spec::{Key, Node, Raw, Scalar};

/// Deepest nesting, aliases included.
const MAX_DEPTH: usize = 64;
/// Most nodes that the aliases of one file may expand to.
const MAX_ALIASED: usize = 10_000;

/// What a file holds.
pub(crate) struct Document {
    /// The root; nothing when the file is empty or cannot be read as YAML.
    pub(crate) root: Option<Node>,
    /// Nothing stands in it, or only comments.
    pub(crate) empty: bool,
    /// Values whose meaning is unknown because of a problem that was reported already: nobody
    /// shall complain about them again.
    pub(crate) unknown: Vec<Place>,
}

/// Reads one document.
pub(crate) fn parse(file: &Arc<Path>, text: &str, problems: &Problems) -> Document {
    let mut options = Options::default();
    options.block_nesting_limit = MAX_DEPTH;
    options.flow_nesting_limit = MAX_DEPTH;
    let mut tree = Tree {
        file,
        text,
        problems,
        stack: Vec::new(),
        anchors: HashMap::new(),
        aliased: 0,
        root: None,
        unknown: Vec::new(),
        documents: 0,
        unquoted: 0,
    };
    let mut readable = true;
    for event in Parser::new_from_str_with_options(text, options) {
        let taken = match event {
            Ok((event, span)) => tree.take(event, span),
            Err(error) => Err(tree.syntax(&error)),
        };
        if let Err(Reported) = taken {
            tree.root = None;
            readable = false;
            break;
        }
    }
    Document {
        empty: readable && tree.root.is_none(),
        root: tree.root,
        unknown: tree.unknown,
    }
}

/// The file cannot be read on; why was reported.
struct Reported;

struct Tree<'a> {
    file: &'a Arc<Path>,
    text: &'a str,
    problems: &'a Problems,
    stack: Vec<Frame>,
    anchors: HashMap<usize, (Node, Extent)>,
    aliased: usize,
    root: Option<Node>,
    unknown: Vec<Place>,
    documents: usize,
    /// The last line with a `{{` outside of quotes.
    unquoted: usize,
}

/// How much of a tree there is below a node.
#[derive(Clone, Copy)]
struct Extent {
    nodes: usize,
    depth: usize,
}

impl Extent {
    const LEAF: Extent = Extent { nodes: 1, depth: 0 };

    fn hold(&mut self, child: Extent) {
        self.nodes += child.nodes;
        self.depth = self.depth.max(child.depth + 1);
    }
}

/// A list or map that is not complete yet.
struct Frame {
    place: Place,
    anchor: usize,
    extent: Extent,
    /// Stands where a key should: its content is dropped.
    as_key: bool,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map {
        entries: Vec<(Key, Node)>,
        merged: Vec<Node>,
        key: Pending,
        flow: bool,
    },
}

/// What a map waits for.
enum Pending {
    /// A key.
    Key,
    /// The value of this key.
    Value(Key),
    /// The value of `<<`.
    Merge,
    /// A value whose key was no text, to be dropped.
    Drop,
}

impl Tree<'_> {
    fn place(&self, marker: &Marker) -> Place {
        Place {
            file: self.file.clone(),
            line: marker.line().max(1),
            column: marker.col() + 1,
        }
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Reported> {
        let place = self.place(&span.start);
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    self.problems.error(
                        &place,
                        "several-documents",
                        "a second YAML document begins here",
                        "put it into a file of its own: one route a file",
                    );
                    return Err(Reported);
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.tag(tag.as_deref(), &span);
                let plain = style == ScalarStyle::Plain;
                if self.expects_key() {
                    return self.key(&text, plain, place);
                }
                let raw = if plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL") {
                    Raw::Null
                } else {
                    Raw::Scalar(Scalar {
                        text: text.into_owned(),
                        literal: Vec::new(),
                        secret: false,
                    })
                };
                self.complete(Node { place, raw }, Extent::LEAF, anchor);
                Ok(())
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), &span);
                self.open(place, anchor, Content::List(Vec::new()))
            }
            Event::MappingStart(style, anchor, tag) => {
                self.tag(tag.as_deref(), &span);
                let content = Content::Map {
                    entries: Vec::new(),
                    merged: Vec::new(),
                    key: Pending::Key,
                    flow: style == StructureStyle::Flow,
                };
                self.open(place, anchor, content)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                self.close();
                Ok(())
            }
            Event::Alias(id) => self.alias(id, &place),
            _ => Ok(()),
        }
    }

    fn tag(&self, tag: Option<&granit_parser::Tag>, span: &Span) {
        if let Some(tag) = tag.filter(|tag| !tag.is_yaml_core_schema() && tag.suffix() != "") {
            let place = self.place(span.tag_start.as_ref().unwrap_or(&span.start));
            self.problems.error(
                &place,
                "unknown-tag",
                format!("the YAML tag '{}' has no meaning here", tag.original()),
                "leave the tag out",
            );
        }
    }

    fn expects_key(&self) -> bool {
        matches!(
            self.stack.last().map(|frame| &frame.content),
            Some(Content::Map {
                key: Pending::Key,
                ..
            })
        )
    }

    fn key(&mut self, text: &str, plain: bool, place: Place) -> Result<(), Reported> {
        if let Some(Frame {
            content: Content::Map { key, .. },
            ..
        }) = self.stack.last_mut()
        {
            *key = if plain && text == "<<" {
                Pending::Merge
            } else {
                Pending::Value(Key {
                    name: text.to_owned(),
                    place,
                })
            };
        }
        Ok(())
    }

    fn open(&mut self, place: Place, anchor: usize, content: Content) -> Result<(), Reported> {
        if self.stack.len() >= MAX_DEPTH {
            self.too_deep(&place);
            return Err(Reported);
        }
        let as_key = self.expects_key();
        if as_key {
            self.bad_key(&place, &content);
        }
        self.stack.push(Frame {
            place,
            anchor,
            extent: Extent::LEAF,
            as_key,
            content,
        });
        Ok(())
    }

    /// A list or map where a key should be. `{{ x }}` without quotes is read so.
    fn bad_key(&mut self, place: &Place, content: &Content) {
        let Some(outer) = self.stack.last() else {
            return;
        };
        let both_flow = matches!(
            (&outer.content, content),
            (
                Content::Map { flow: true, .. },
                Content::Map { flow: true, .. }
            )
        );
        if both_flow && outer.place.line == place.line && outer.place.column + 1 == place.column {
            self.unquoted = outer.place.line;
            self.problems.error(
                &outer.place,
                "unquoted-expression",
                "'{{' without quotes begins a YAML map, not a text",
                "put the text in single quotes: '{{ … }}'",
            );
        } else {
            self.problems.error(
                place,
                "bad-key",
                "a key must be a text",
                "write KEY: VALUE; a text with braces or brackets needs quotes",
            );
        }
        let outer = outer.place.clone();
        self.unknown.push(outer);
    }

    fn close(&mut self) {
        let Some(frame) = self.stack.pop() else {
            return;
        };
        let raw = match frame.content {
            Content::List(items) => Raw::List(items),
            Content::Map {
                entries, merged, ..
            } => Raw::Map(self.entries(entries, merged)),
        };
        let node = Node {
            place: frame.place,
            raw,
        };
        if frame.as_key {
            if let Some(Frame {
                content: Content::Map { key, .. },
                ..
            }) = self.stack.last_mut()
            {
                *key = Pending::Drop;
            }
        } else {
            self.complete(node, frame.extent, frame.anchor);
        }
    }

    /// The entries of a complete map: each key once, then what `<<` brings that is not there yet.
    fn entries(&self, written: Vec<(Key, Node)>, merged: Vec<Node>) -> Vec<(Key, Node)> {
        let mut lines: HashMap<String, usize> = HashMap::with_capacity(written.len());
        let mut entries = Vec::with_capacity(written.len());
        for (key, value) in written {
            match lines.get(&key.name) {
                Some(line) => self.problems.error(
                    &key.place,
                    "duplicate-key",
                    format!("the key '{}' is here a second time", key.name),
                    format!("keep one of the two; the first is on line {line}"),
                ),
                None => {
                    lines.insert(key.name.clone(), key.place.line);
                    entries.push((key, value));
                }
            }
        }
        for node in merged {
            let maps = match node.raw {
                Raw::List(items) => items,
                _ => vec![node],
            };
            for map in maps {
                let Raw::Map(more) = map.raw else {
                    self.problems.error(
                        &map.place,
                        "bad-merge",
                        "'<<' takes a map or a list of maps",
                        "refer to a map with an alias: <<: *name",
                    );
                    continue;
                };
                for (key, value) in more {
                    if !lines.contains_key(&key.name) {
                        lines.insert(key.name.clone(), key.place.line);
                        entries.push((key, value));
                    }
                }
            }
        }
        entries
    }

    fn alias(&mut self, id: usize, place: &Place) -> Result<(), Reported> {
        let Some((_, extent)) = self.anchors.get(&id) else {
            self.problems.error(
                place,
                "bad-alias",
                "the alias stands inside of what it names",
                "an alias can only name what is complete before it",
            );
            return Err(Reported);
        };
        let extent = *extent;
        self.aliased += extent.nodes;
        if self.aliased > MAX_ALIASED {
            self.problems.error(
                place,
                "too-many-aliases",
                format!("the aliases of this file expand to more than {MAX_ALIASED} values"),
                "write out what is needed, or split the file",
            );
            return Err(Reported);
        }
        if self.stack.len() + extent.depth >= MAX_DEPTH {
            self.too_deep(place);
            return Err(Reported);
        }
        if self.expects_key() {
            return match self.anchors.get(&id).and_then(|(node, _)| node.text()) {
                Some(text) => {
                    let text = text.to_owned();
                    self.key(&text, false, place.clone())
                }
                None => {
                    self.problems.error(
                        place,
                        "bad-key",
                        "a key must be a text",
                        "write KEY: VALUE",
                    );
                    Err(Reported)
                }
            };
        }
        if let Some((node, _)) = self.anchors.get(&id) {
            let node = node.clone();
            self.complete(node, extent, 0);
        }
        Ok(())
    }

    fn too_deep(&self, place: &Place) {
        self.problems.error(
            place,
            "too-deep",
            format!("nested deeper than {MAX_DEPTH} levels"),
            "no key needs that depth: look for brackets that are not closed",
        );
    }

    /// Hands a complete node to what holds it.
    fn complete(&mut self, node: Node, extent: Extent, anchor: usize) {
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), extent));
        }
        let Some(frame) = self.stack.last_mut() else {
            if !matches!(node.raw, Raw::Null) {
                self.root.get_or_insert(node);
            }
            return;
        };
        frame.extent.hold(extent);
        match &mut frame.content {
            Content::List(items) => items.push(node),
            Content::Map {
                entries,
                merged,
                key,
                ..
            } => match std::mem::replace(key, Pending::Key) {
                Pending::Value(key) => entries.push((key, node)),
                Pending::Merge => merged.push(node),
                Pending::Key | Pending::Drop => {}
            },
        }
    }

    fn syntax(&self, error: &ScanError) -> Reported {
        let place = self.place(error.marker());
        if place.line == self.unquoted {
            // It is what follows of the braces, about which all was said.
            return Reported;
        }
        let help = self.help(place.line);
        self.problems.error(
            &place,
            "bad-yaml",
            format!("not YAML: {}", error.kind()),
            help,
        );
        Reported
    }

    /// The likeliest slip at or just above a line that is not YAML.
    fn help(&self, line: usize) -> &'static str {
        let lines: Vec<&str> = self.text.lines().take(line).collect();
        let near = lines
            .iter()
            .rev()
            .filter(|line| !line.trim().is_empty())
            .take(2);
        for line in near {
            let content = line.trim_start_matches([' ', '\t']);
            let value = value_of(content);
            if line.len() > content.len() && line[..line.len() - content.len()].contains('\t') {
                return "indent with spaces: YAML takes no tabs";
            }
            if unquoted(content, "{{") {
                return "put a text with {{ … }} in single quotes: '{{ … }}'";
            }
            if unquoted(content, "${") {
                return "put a text with ${…} in quotes: \"${NAME}\"";
            }
            if value.starts_with('"') && value.matches('"').count() > 2 {
                return "put a text with \" in it in single quotes: '…'";
            }
            if value.starts_with(['@', '`', '%', '*', '&', '!']) {
                return "put a text that begins with @, `, %, *, & or ! in quotes";
            }
            if !value.starts_with(['"', '\'', '[', '{', '|', '>']) && value.contains(": ") {
                return "put a text with ': ' in it in quotes";
            }
        }
        "look at the indentation, and for quotes and brackets that are not closed"
    }
}

/// What follows `key: ` of a line, or the line.
fn value_of(content: &str) -> &str {
    let content = content.trim_start_matches("- ");
    content
        .split_once(": ")
        .map_or(content, |(_, value)| value.trim_start())
}

/// Whether `what` stands in a line outside of quotes.
fn unquoted(line: &str, what: &str) -> bool {
    let mut quote = None;
    for (at, c) in line.char_indices() {
        match quote {
            Some(end) if c == end => quote = None,
            Some(_) => {}
            None if line[at..].starts_with(what) => return true,
            None if c == '"' || c == '\'' => quote = Some(c),
            None => {}
        }
    }
    false
}
