//! The values that scripts hold of documents: handles that are cheap to copy and share what they
//! refer to. A script that copies, nests or drops them costs nothing and endangers nothing.

use std::sync::Arc;

use rhai::{Array, Dynamic, FLOAT, INT, ImmutableString, Map};
use xbus_core::Message;

use super::attachments::Part;
use super::call::current;
use super::error::ScriptError;
use super::octets::Octets;
use crate::json::{Json, Object};
use crate::number::Number;
use crate::table::{Lookup, Table};
use crate::xml::tree::{Id, Kind};
use crate::xml::{Element, NodeRef, XmlLimits};
use crate::xpath::{Value, XPath};

/// A node of a document, or an element that the script has built.
#[derive(Clone)]
pub(crate) enum Node {
    Parsed(NodeRef),
    Built(Arc<Element>),
}

impl Node {
    /// The node as one of a document; a built element is written and read once for that.
    pub(crate) fn parsed(&self) -> Result<NodeRef, ScriptError> {
        match self {
            Node::Parsed(node) => Ok(node.clone()),
            Node::Built(element) => {
                if let Some(document) = element.parsed.get() {
                    return Ok(NodeRef::root(document.clone()));
                }
                let call = current()?;
                let text = xml_text(self, None)?;
                let document =
                    crate::xml::Document::parse(&text, &XmlLimits::from(&call.shared.limits))
                        .map_err(|error| ScriptError::text(error.to_string()))?;
                Ok(NodeRef::root(
                    element.parsed.get_or_init(|| Arc::new(document)).clone(),
                ))
            }
        }
    }

    /// The element that the node is; of a document its root element.
    fn element(&self) -> Result<Option<(NodeRef, u32)>, ScriptError> {
        let node = self.parsed()?;
        Ok(node.element().map(|element| (node, element)))
    }

    pub(crate) fn name(&self) -> Result<String, ScriptError> {
        if let Node::Built(element) = self {
            return Ok(element.name.clone());
        }
        let node = self.parsed()?;
        Ok(match node.element() {
            Some(element) => node.document.name(Id::node(element)).to_owned(),
            None => node.document.name(node.id).to_owned(),
        })
    }

    pub(crate) fn local_name(&self) -> Result<String, ScriptError> {
        let name = self.name()?;
        Ok(match name.split_once(':') {
            Some((_, local)) => local.to_owned(),
            None => name,
        })
    }

    pub(crate) fn namespace(&self) -> Result<String, ScriptError> {
        Ok(match self.element()? {
            Some((node, element)) => node.document.namespace(Id::node(element)).to_owned(),
            None => {
                let node = self.parsed()?;
                node.document.namespace(node.id).to_owned()
            }
        })
    }

    pub(crate) fn text(&self) -> Result<String, ScriptError> {
        Ok(self.parsed()?.string_value())
    }

    /// The value of an attribute; `p:name` with a prefix of the route or of the document.
    pub(crate) fn attr(&self, name: &str) -> Result<Dynamic, ScriptError> {
        let Some((node, element)) = self.element()? else {
            return Ok(Dynamic::UNIT);
        };
        let (uri, local) = match name.split_once(':') {
            None => (String::new(), name),
            Some((prefix, local)) => {
                let call = current()?;
                let uri = call
                    .namespaces
                    .prefixes
                    .get(prefix)
                    .cloned()
                    .or_else(|| node.document.resolve(element, prefix).map(str::to_owned))
                    .ok_or_else(|| {
                        ScriptError::text(format!("the prefix '{prefix}' is not declared"))
                    })?;
                (uri, local)
            }
        };
        Ok(node
            .document
            .attribute(element, &uri, local)
            .map_or(Dynamic::UNIT, |value| value.into()))
    }

    /// The elements directly within.
    pub(crate) fn children(&self) -> Result<List, ScriptError> {
        let ids = match self.element()? {
            None => Vec::new(),
            Some((node, element)) => node
                .document
                .children(element)
                .filter(|n| node.document.node_kind(*n) == Kind::Element)
                .map(Id::node)
                .collect(),
        };
        Ok(List::nodes(self.parsed()?, ids))
    }

    pub(crate) fn xpath(&self, xpath: &XPath) -> Result<Dynamic, ScriptError> {
        let node = self.parsed()?;
        let value = xpath.evaluate(&node.document, node.id, &current()?.budget())?;
        Ok(match value {
            Value::Nodes(ids) => match ids.first() {
                Some(id) => node.document.string_value(*id).into(),
                None => Dynamic::UNIT,
            },
            Value::Bool(value) => value.into(),
            Value::Number(number) => number_value(number, xpath.whole),
            Value::Text(text) => text.into(),
        })
    }

    pub(crate) fn xpath_all(&self, xpath: &XPath) -> Result<List, ScriptError> {
        let node = self.parsed()?;
        match xpath.evaluate(&node.document, node.id, &current()?.budget())? {
            Value::Nodes(ids) => Ok(List::nodes(node, ids)),
            _ => Err(ScriptError::text(
                "xpath_all takes an XPath that selects nodes; for numbers and texts use xpath",
            )),
        }
    }
}

/// Whole where the XPath promises it, so that `count(…)` can index and print as one expects.
fn number_value(number: f64, whole: bool) -> Dynamic {
    if whole {
        (number as INT).into()
    } else {
        FLOAT::from(number).into()
    }
}

/// The node as XML text, with a declaration when a charset is given.
pub(crate) fn xml_text(node: &Node, charset: Option<&str>) -> Result<String, ScriptError> {
    let call = current()?;
    let mut writer =
        crate::xml::write::Writer::new(call.shared.limits.output_size, &call.namespaces.prefixes);
    if let Some(charset) = charset {
        writer.declaration(charset);
    }
    match node {
        Node::Parsed(node) => writer.node(node)?,
        Node::Built(element) => writer.element(element)?,
    }
    Ok(writer.finish())
}

/// A JSON object of a document.
#[derive(Clone)]
pub(crate) struct JsonObject {
    pub(crate) object: Arc<Object>,
    /// It is the body itself.
    pub(crate) body: bool,
}

/// What a script sees of a JSON value.
pub(crate) fn from_json(json: &Json) -> Dynamic {
    match json {
        Json::Null => Dynamic::UNIT,
        Json::Bool(value) => (*value).into(),
        Json::Int(value) => (*value).into(),
        Json::Float(value) => (*value).into(),
        Json::Number(number) => match number.float() {
            Some(value) => value.into(),
            None => Dynamic::from(LongNumber(number.clone())),
        },
        Json::Text(text) => text.clone().into(),
        Json::Array(items) => Dynamic::from(List {
            items: Items::Json(items.clone()),
            body: false,
        }),
        Json::Object(object) => Dynamic::from(JsonObject {
            object: object.clone(),
            body: false,
        }),
    }
}

/// The value as plain maps and arrays that a script can change.
pub(crate) fn copy(value: &Dynamic) -> Result<Dynamic, ScriptError> {
    if let Some(object) = value.read_lock::<JsonObject>() {
        return Ok(copy_json(&Json::Object(object.object.clone())));
    }
    if let Some(list) = value.read_lock::<List>() {
        return match &list.items {
            Items::Json(items) => Ok(copy_json(&Json::Array(items.clone()))),
            _ => Ok((0..list.len())
                .map(|at| list.get(at))
                .collect::<Array>()
                .into()),
        };
    }
    Ok(value.clone())
}

fn copy_json(json: &Json) -> Dynamic {
    match json {
        Json::Array(items) => items.iter().map(copy_json).collect::<Array>().into(),
        Json::Object(object) => object
            .members()
            .iter()
            .map(|(name, value)| (name.as_str().into(), copy_json(value)))
            .collect::<Map>()
            .into(),
        other => from_json(other),
    }
}

/// A list that the bus made: rows, nodes, items of a JSON array, or values that a script pushed.
/// It may be long; the limit on arrays is not for it.
#[derive(Clone)]
pub(crate) struct List {
    pub(crate) items: Items,
    /// It is the body itself.
    pub(crate) body: bool,
}

#[derive(Clone)]
pub(crate) enum Items {
    Json(Arc<Vec<Json>>),
    Rows(Arc<Table>),
    Nodes(Option<NodeRef>, Arc<Vec<Id>>),
    Values(Arc<Values>),
}

/// Values that a script put into a list, with what they weigh.
#[derive(Clone, Default)]
pub(crate) struct Values {
    pub(crate) items: Vec<Dynamic>,
    weight: usize,
    depth: usize,
}

/// Lists within lists within lists…
const MAX_LIST_DEPTH: usize = 32;

impl List {
    pub(crate) fn empty() -> Self {
        Self::values(Values::default())
    }

    fn values(values: Values) -> Self {
        Self {
            items: Items::Values(Arc::new(values)),
            body: false,
        }
    }

    pub(crate) fn nodes(document: NodeRef, ids: Vec<Id>) -> Self {
        Self {
            items: Items::Nodes(Some(document), Arc::new(ids)),
            body: false,
        }
    }

    pub(crate) fn rows(table: Arc<Table>, body: bool) -> Self {
        Self {
            items: Items::Rows(table),
            body,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match &self.items {
            Items::Json(items) => items.len(),
            Items::Rows(table) => table.len(),
            Items::Nodes(_, ids) => ids.len(),
            Items::Values(values) => values.items.len(),
        }
    }

    /// The item at `at`, which must be below `len`.
    pub(crate) fn get(&self, at: usize) -> Dynamic {
        match &self.items {
            Items::Json(items) => from_json(&items[at]),
            Items::Rows(table) => row(table, at),
            Items::Nodes(Some(node), ids) => Dynamic::from(Node::Parsed(NodeRef {
                document: node.document.clone(),
                id: ids[at],
            })),
            Items::Nodes(None, _) => Dynamic::UNIT,
            Items::Values(values) => values.items[at].clone(),
        }
    }

    /// By a script's index: negative ones count from the end.
    pub(crate) fn index(&self, at: INT) -> Result<Dynamic, ScriptError> {
        let length = self.len();
        let place = if at < 0 {
            length.checked_sub(at.unsigned_abs() as usize)
        } else {
            Some(at as usize).filter(|at| *at < length)
        };
        match place {
            Some(place) => Ok(self.get(place)),
            None => Err(ScriptError::text(format!(
                "the list has {length} item(s), there is none at {at}"
            ))),
        }
    }

    /// Adds a value at the end.
    pub(crate) fn push(&mut self, value: Dynamic) -> Result<(), ScriptError> {
        let limit = current()?.shared.limits.output_size;
        if !matches!(self.items, Items::Values(_)) {
            let mut values = Values::default();
            for at in 0..self.len() {
                add(&mut values, self.get(at), limit)?;
            }
            *self = Self::values(values);
        }
        self.body = false;
        if let Items::Values(values) = &mut self.items {
            add(Arc::make_mut(values), value, limit)?;
        }
        Ok(())
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Dynamic> {
        (0..self.len()).map(move |at| self.get(at))
    }
}

fn add(values: &mut Values, value: Dynamic, limit: usize) -> Result<(), ScriptError> {
    let value = value.flatten();
    let (weight, depth) = weigh(&value);
    values.weight = values.weight.saturating_add(weight);
    values.depth = values.depth.max(depth + 1);
    if values.weight > limit {
        return Err(ScriptError::text(format!(
            "the list would be larger than {limit} bytes"
        )));
    }
    if values.depth > MAX_LIST_DEPTH {
        return Err(ScriptError::text(format!(
            "lists nested more than {MAX_LIST_DEPTH} deep"
        )));
    }
    values.items.push(value);
    Ok(())
}

/// Bytes, roughly, and depth of lists. Arrays and maps of scripts are bounded by rhai.
fn weigh(value: &Dynamic) -> (usize, usize) {
    if let Some(list) = value.read_lock::<List>() {
        return match &list.items {
            Items::Values(values) => (values.weight + 32, values.depth),
            other => {
                let _ = other;
                (list.len().saturating_mul(16), 1)
            }
        };
    }
    if let Some(array) = value.read_lock::<Array>() {
        return array
            .iter()
            .map(weigh)
            .fold((32, 0), |(w, d), (weight, depth)| {
                (w.saturating_add(weight), d.max(depth))
            });
    }
    if let Some(map) = value.read_lock::<Map>() {
        return map.iter().fold((32, 0), |(w, d), (key, value)| {
            let (weight, depth) = weigh(value);
            (w.saturating_add(weight + key.len() + 16), d.max(depth))
        });
    }
    if let Some(text) = value.read_lock::<ImmutableString>() {
        return (text.len() + 16, 0);
    }
    if let Some(blob) = value.read_lock::<rhai::Blob>() {
        return (blob.len() + 16, 0);
    }
    if let Some(Node::Built(element)) = value.read_lock::<Node>().as_deref() {
        return (element.weight(), 0);
    }
    (16, 0)
}

/// A row as a map by column, or as a list where there are no columns.
pub(crate) fn row(table: &Table, at: usize) -> Dynamic {
    let cells = table.row(at);
    if table.columns.is_empty() {
        return cells
            .iter()
            .map(|cell| cell.clone().into())
            .collect::<Array>()
            .into();
    }
    table
        .columns
        .iter()
        .zip(cells)
        .map(|(column, cell)| (column.as_str().into(), cell.clone().into()))
        .collect::<Map>()
        .into()
}

/// A lookup table.
#[derive(Clone)]
pub(crate) struct LookupTable(pub(crate) Arc<Lookup>);

impl LookupTable {
    /// The row of a key; with two columns the text of the second.
    pub(crate) fn get(&self, key: &str) -> Dynamic {
        let Some(at) = self.0.find(key) else {
            return Dynamic::UNIT;
        };
        let table = &self.0.table;
        if table.columns.len() == 2 {
            table.row(at)[1].clone().into()
        } else {
            row(table, at)
        }
    }
}

/// `received`, `response` and `responses.NAME`.
#[derive(Clone)]
pub(crate) struct MessageHandle(pub(crate) Arc<Message>);

/// `responses`.
#[derive(Clone)]
pub(crate) struct Responses;

/// `headers`, of the current message (nothing inside) or of another.
#[derive(Clone)]
pub(crate) struct HeadersHandle(pub(crate) Option<Arc<Message>>);

/// A number of a JSON document that is too long for an integer or a float.
#[derive(Clone)]
pub(crate) struct LongNumber(pub(crate) Arc<Number>);

/// What a value is, in the words of the documentation, with its article.
pub(crate) fn described(value: &Dynamic) -> String {
    let known = [
        (value.is::<HeadersHandle>(), "the headers of a message"),
        (value.is::<MessageHandle>(), "a whole message"),
        (value.is::<Responses>(), "the responses"),
        (value.is::<LookupTable>(), "a lookup table"),
        (value.is::<Node>(), "a node"),
        (value.is::<JsonObject>() || value.is_map(), "a map"),
        (value.is::<List>() || value.is_array(), "a list"),
        (value.is_blob() || value.is::<Octets>(), "a blob"),
        (value.is::<Part>(), "an attachment"),
        (value.is::<LongNumber>(), "a number"),
        (value.is_int() || value.is_float(), "a number"),
        (value.is_bool(), "a boolean"),
        (value.is_string() || value.is_char(), "a text"),
        (value.is_unit(), "() (nothing)"),
        (value.is_fnptr(), "a function"),
        (value.is_timestamp(), "a clock of timestamp()"),
    ];
    match known.iter().find(|(is, _)| *is) {
        Some((_, words)) => (*words).to_owned(),
        None if value.type_name().contains("ops::range::") => "a range".to_owned(),
        None => "a value of this kind".to_owned(),
    }
}

/// A body that is not the current message's own does not stand for it.
pub(crate) fn unmark(value: &mut Dynamic) {
    if let Some(mut object) = value.write_lock::<JsonObject>() {
        object.body = false;
    }
    if let Some(mut list) = value.write_lock::<List>() {
        list.body = false;
    }
    if let Some(mut octets) = value.write_lock::<Octets>() {
        octets.body = false;
    }
}
