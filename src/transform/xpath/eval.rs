//! Evaluation over a document (XPath 1.0 sections 2 to 5). Recursion follows the expression, whose
//! depth is bounded, never the document. Every visit is counted.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::time::Instant;

use xbus_core::transform::float_text;

use super::XPath;
use super::parse::{Axis, Expr, Function, Op, Start, Step, Test};
use crate::script::call;
use crate::xml::tree::{Document, Id, Kind};

/// What an evaluation may spend.
pub(crate) struct Budget {
    left: Cell<u64>,
    deadline: Option<Instant>,
}

impl Budget {
    pub(crate) fn new(visits: u64, deadline: Option<Instant>) -> Self {
        Self {
            left: Cell::new(visits),
            deadline,
        }
    }

    fn spend(&self, visits: u64) -> Result<(), String> {
        let left = self.left.get();
        if left < visits {
            return Err("the XPath visits more nodes than the limit allows".into());
        }
        self.left.set(left - visits);
        if (left ^ (left - visits)) >> 14 != 0
            && (call::is_late() || self.deadline.is_some_and(|end| Instant::now() >= end))
        {
            return Err("the XPath takes longer than the limit allows".into());
        }
        Ok(())
    }
}

/// The value of an expression.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// In document order, each once.
    Nodes(Vec<Id>),
    Bool(bool),
    Number(f64),
    Text(String),
}

struct Evaluator<'d> {
    document: &'d Document,
    budget: &'d Budget,
    /// For each name test the document's number of that name, once looked up.
    names: RefCell<Vec<Option<Option<u32>>>>,
}

#[derive(Clone, Copy)]
struct Place {
    node: Id,
    position: usize,
    size: usize,
}

impl XPath {
    /// The value with `context` as the context node.
    pub(crate) fn evaluate(
        &self,
        document: &Document,
        context: Id,
        budget: &Budget,
    ) -> Result<Value, String> {
        let evaluator = Evaluator {
            document,
            budget,
            names: RefCell::new(vec![None; self.names]),
        };
        evaluator.value(
            &self.root,
            Place {
                node: context,
                position: 1,
                size: 1,
            },
        )
    }
}

/// The number that a text is by section 4.4, or NaN.
pub(crate) fn text_number(text: &str) -> f64 {
    let text = text.trim_matches([' ', '\t', '\n', '\r']);
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.len() + fraction.len() == 0
        || !whole
            .bytes()
            .chain(fraction.bytes())
            .all(|b| b.is_ascii_digit())
    {
        return f64::NAN;
    }
    text.parse().unwrap_or(f64::NAN)
}

fn compare(op: Op, a: f64, b: f64) -> bool {
    match op {
        Op::Equal => a == b,
        Op::NotEqual => a != b,
        Op::Less => a < b,
        Op::LessEqual => a <= b,
        Op::Greater => a > b,
        _ => a >= b,
    }
}

impl<'d> Evaluator<'d> {
    fn value(&self, expr: &Expr, place: Place) -> Result<Value, String> {
        self.budget.spend(1)?;
        Ok(match expr {
            Expr::Literal(text) => Value::Text(text.clone()),
            Expr::Number(number) => Value::Number(*number),
            Expr::Negate(inner) => Value::Number(-self.number(inner, place)?),
            Expr::Binary(Op::Or, a, b) => {
                Value::Bool(self.boolean(a, place)? || self.boolean(b, place)?)
            }
            Expr::Binary(Op::And, a, b) => {
                Value::Bool(self.boolean(a, place)? && self.boolean(b, place)?)
            }
            Expr::Binary(Op::Union, a, b) => {
                let mut nodes = self.nodes(a, place)?;
                nodes.extend(self.nodes(b, place)?);
                self.budget.spend(nodes.len() as u64)?;
                nodes.sort_unstable();
                nodes.dedup();
                Value::Nodes(nodes)
            }
            Expr::Binary(
                op @ (Op::Add | Op::Subtract | Op::Multiply | Op::Divide | Op::Modulo),
                a,
                b,
            ) => {
                let (a, b) = (self.number(a, place)?, self.number(b, place)?);
                Value::Number(match op {
                    Op::Add => a + b,
                    Op::Subtract => a - b,
                    Op::Multiply => a * b,
                    Op::Divide => a / b,
                    _ => a % b,
                })
            }
            Expr::Binary(op, a, b) => {
                Value::Bool(self.compare(*op, self.value(a, place)?, self.value(b, place)?)?)
            }
            Expr::Call(function, arguments) => self.call(*function, arguments, place)?,
            Expr::Path(start, steps) => Value::Nodes(self.path(start, steps, place)?),
        })
    }

    fn nodes(&self, expr: &Expr, place: Place) -> Result<Vec<Id>, String> {
        match self.value(expr, place)? {
            Value::Nodes(nodes) => Ok(nodes),
            _ => Err("a set of nodes is needed".into()),
        }
    }

    fn boolean(&self, expr: &Expr, place: Place) -> Result<bool, String> {
        Ok(match self.value(expr, place)? {
            Value::Nodes(nodes) => !nodes.is_empty(),
            Value::Bool(value) => value,
            Value::Number(number) => number != 0.0 && !number.is_nan(),
            Value::Text(text) => !text.is_empty(),
        })
    }

    fn number(&self, expr: &Expr, place: Place) -> Result<f64, String> {
        self.as_number(self.value(expr, place)?)
    }

    fn as_number(&self, value: Value) -> Result<f64, String> {
        Ok(match value {
            Value::Number(number) => number,
            Value::Bool(value) => f64::from(u8::from(value)),
            other => text_number(&self.as_text(other)?),
        })
    }

    fn text(&self, expr: &Expr, place: Place) -> Result<String, String> {
        let value = self.value(expr, place)?;
        self.as_text(value)
    }

    fn as_text(&self, value: Value) -> Result<String, String> {
        Ok(match value {
            Value::Text(text) => text,
            Value::Bool(value) => value.to_string(),
            Value::Number(number) => float_text(number),
            Value::Nodes(nodes) => match nodes.first() {
                Some(node) => self.string_value(*node)?.into_owned(),
                None => String::new(),
            },
        })
    }

    fn string_value(&self, node: Id) -> Result<Cow<'d, str>, String> {
        if let Some(text) = self.document.characters(node) {
            return Ok(Cow::Borrowed(text));
        }
        let end = self.document.end(node.node);
        self.budget.spend(u64::from(end - node.node))?;
        let mut texts = (node.node + 1..end)
            .filter(|n| self.document.node_kind(*n) == Kind::Text)
            .filter_map(|n| self.document.characters(Id::node(n)));
        let Some(first) = texts.next() else {
            return Ok(Cow::Borrowed(""));
        };
        let Some(second) = texts.next() else {
            return Ok(Cow::Borrowed(first));
        };
        let mut value = String::from(first);
        value.push_str(second);
        value.extend(texts);
        self.budget.spend(value.len() as u64 / 64)?;
        Ok(Cow::Owned(value))
    }

    /// Section 3.4.
    fn compare(&self, op: Op, a: Value, b: Value) -> Result<bool, String> {
        let ordering = !matches!(op, Op::Equal | Op::NotEqual);
        match (a, b) {
            (Value::Nodes(a), Value::Nodes(b)) => {
                if ordering {
                    let mut numbers = Vec::with_capacity(b.len());
                    for node in &b {
                        numbers.push(text_number(&self.string_value(*node)?));
                    }
                    for node in &a {
                        let number = text_number(&self.string_value(*node)?);
                        self.budget.spend(numbers.len() as u64)?;
                        if numbers.iter().any(|other| compare(op, number, *other)) {
                            return Ok(true);
                        }
                    }
                    return Ok(false);
                }
                let mut texts = Vec::with_capacity(b.len());
                for node in &b {
                    texts.push(self.string_value(*node)?);
                }
                for node in &a {
                    let text = self.string_value(*node)?;
                    self.budget.spend(texts.len() as u64)?;
                    if texts
                        .iter()
                        .any(|other| (*other == text) == (op == Op::Equal))
                    {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            (Value::Nodes(nodes), Value::Bool(value)) => {
                self.compare(op, Value::Bool(!nodes.is_empty()), Value::Bool(value))
            }
            (Value::Bool(value), Value::Nodes(nodes)) => {
                self.compare(op, Value::Bool(value), Value::Bool(!nodes.is_empty()))
            }
            (Value::Nodes(nodes), other) => {
                self.any(&nodes, |text| self.compare_text(op, text, &other, false))
            }
            (other, Value::Nodes(nodes)) => {
                self.any(&nodes, |text| self.compare_text(op, text, &other, true))
            }
            (a, b) if ordering => Ok(compare(op, self.as_number(a)?, self.as_number(b)?)),
            (a, b) => {
                let equal = match (a, b) {
                    (Value::Bool(a), b) => a == self.truth(b),
                    (a, Value::Bool(b)) => self.truth(a) == b,
                    (Value::Number(a), b) => {
                        return Ok(compare(op, a, self.as_number(b)?));
                    }
                    (a, Value::Number(b)) => {
                        return Ok(compare(op, self.as_number(a)?, b));
                    }
                    (a, b) => self.as_text(a)? == self.as_text(b)?,
                };
                Ok(equal == (op == Op::Equal))
            }
        }
    }

    fn truth(&self, value: Value) -> bool {
        match value {
            Value::Nodes(nodes) => !nodes.is_empty(),
            Value::Bool(value) => value,
            Value::Number(number) => number != 0.0 && !number.is_nan(),
            Value::Text(text) => !text.is_empty(),
        }
    }

    fn any(
        &self,
        nodes: &[Id],
        test: impl Fn(&str) -> Result<bool, String>,
    ) -> Result<bool, String> {
        for node in nodes {
            self.budget.spend(1)?;
            if test(&self.string_value(*node)?)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Compares a node's text with a number or a text; `swapped` when the node stood right.
    fn compare_text(
        &self,
        op: Op,
        text: &str,
        other: &Value,
        swapped: bool,
    ) -> Result<bool, String> {
        if let (Value::Text(other), Op::Equal | Op::NotEqual) = (other, op) {
            return Ok((text == other) == (op == Op::Equal));
        }
        let (a, b) = (text_number(text), self.as_number(other.clone())?);
        Ok(if swapped {
            compare(op, b, a)
        } else {
            compare(op, a, b)
        })
    }

    fn path(&self, start: &Start, steps: &[Step], place: Place) -> Result<Vec<Id>, String> {
        let mut nodes = match start {
            Start::Context => vec![place.node],
            Start::Root => vec![Id::ROOT],
            Start::Value(expr, predicates) => {
                let mut nodes = self.nodes(expr, place)?;
                for predicate in predicates {
                    nodes = self.filter(nodes, predicate)?;
                }
                nodes
            }
        };
        for step in steps {
            nodes = self.step(&nodes, step)?;
        }
        Ok(nodes)
    }

    fn step(&self, context: &[Id], step: &Step) -> Result<Vec<Id>, String> {
        let mut result = Vec::new();
        for node in context {
            let before = result.len();
            // `[1]` on a forward axis needs the first node only.
            let first = matches!(step.predicates.first(), Some(Expr::Number(n)) if *n == 1.0);
            self.axis(*node, step.axis, &step.test, first, &mut result)?;
            if !step.predicates.is_empty() {
                let mut candidates = result.split_off(before);
                for predicate in &step.predicates {
                    candidates = self.filter(candidates, predicate)?;
                }
                result.extend(candidates);
            }
        }
        if context.len() > 1 || step.axis.reverse() {
            self.budget.spend(result.len() as u64)?;
            if !result.is_sorted_by(|a, b| a < b) {
                result.sort_unstable();
                result.dedup();
            }
        }
        Ok(result)
    }

    /// The nodes for which a predicate holds; positions count along the given order.
    fn filter(&self, nodes: Vec<Id>, predicate: &Expr) -> Result<Vec<Id>, String> {
        let size = nodes.len();
        if let Expr::Number(number) = predicate {
            let at = *number;
            return Ok(if at >= 1.0 && at.fract() == 0.0 && at <= size as f64 {
                vec![nodes[at as usize - 1]]
            } else {
                Vec::new()
            });
        }
        let mut kept = Vec::new();
        for (at, node) in nodes.into_iter().enumerate() {
            let place = Place {
                node,
                position: at + 1,
                size,
            };
            let holds = match self.value(predicate, place)? {
                Value::Number(number) => number == place.position as f64,
                other => self.truth(other),
            };
            if holds {
                kept.push(node);
            }
        }
        Ok(kept)
    }

    fn axis(
        &self,
        from: Id,
        axis: Axis,
        test: &Test,
        first: bool,
        out: &mut Vec<Id>,
    ) -> Result<(), String> {
        let document = self.document;
        let start = out.len();
        // Looks at one node and says whether there is more to look at.
        let mut look = |id: Id| -> Result<bool, String> {
            self.budget.spend(1)?;
            if self.matches(id, axis, test) {
                out.push(id);
                if first {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        macro_rules! each {
            ($nodes:expr) => {
                for node in $nodes {
                    if !look(Id::node(node))? {
                        return Ok(());
                    }
                }
            };
        }
        match axis {
            Axis::Own => {
                look(from)?;
            }
            Axis::Child if from.attr == 0 => each!(document.children(from.node)),
            Axis::Descendant if from.attr == 0 => {
                each!(from.node + 1..document.end(from.node));
            }
            Axis::DescendantOrSelf => {
                let more = look(from)?;
                if more && from.attr == 0 {
                    each!(from.node + 1..document.end(from.node));
                }
            }
            Axis::Attribute if from.attr == 0 => {
                for attr in document.attributes(from.node) {
                    let id = Id {
                        node: from.node,
                        attr: attr + 1,
                    };
                    if !look(id)? {
                        return Ok(());
                    }
                }
            }
            Axis::Parent => {
                if let Some(parent) = document.parent(from) {
                    look(parent)?;
                }
            }
            Axis::Ancestor | Axis::AncestorOrSelf => {
                let mut next = if axis == Axis::AncestorOrSelf {
                    Some(from)
                } else {
                    document.parent(from)
                };
                while let Some(node) = next {
                    if !look(node)? {
                        return Ok(());
                    }
                    next = document.parent(node);
                }
            }
            Axis::FollowingSibling if from.attr == 0 => {
                let mut next = document.next_sibling(from.node);
                while let Some(node) = next {
                    if !look(Id::node(node))? {
                        return Ok(());
                    }
                    next = document.next_sibling(node);
                }
            }
            Axis::PrecedingSibling if from.attr == 0 => {
                if let Some(parent) = document.parent(from) {
                    let before: Vec<u32> = document
                        .children(parent.node)
                        .take_while(|n| *n < from.node)
                        .collect();
                    self.budget.spend(before.len() as u64)?;
                    each!(before.into_iter().rev());
                }
            }
            Axis::Following => {
                // What follows an attribute begins with its element's children.
                let next = if from.attr > 0 {
                    from.node + 1
                } else {
                    document.end(from.node)
                };
                each!(next..document.end(0));
            }
            Axis::Preceding => {
                for node in (1..from.node).rev() {
                    // Ancestors do not precede.
                    if document.end(node) > from.node {
                        self.budget.spend(1)?;
                        continue;
                    }
                    if !look(Id::node(node))? {
                        return Ok(());
                    }
                }
            }
            _ => {}
        }
        debug_assert!(out.len() >= start);
        Ok(())
    }

    fn matches(&self, id: Id, axis: Axis, test: &Test) -> bool {
        let document = self.document;
        let principal = if axis == Axis::Attribute {
            id.attr > 0
        } else {
            document.kind(id) == Some(Kind::Element)
        };
        match test {
            Test::Node => true,
            Test::Any => principal,
            Test::Namespace(uri) => principal && document.namespace(id) == uri,
            Test::Name { uri, local, number } => {
                principal && {
                    let mut names = self.names.borrow_mut();
                    let wanted =
                        *names[*number].get_or_insert_with(|| document.find_name(uri, local));
                    wanted.is_some() && document.expanded(id) == wanted
                }
            }
            Test::Text => document.kind(id) == Some(Kind::Text),
            Test::Comment => document.kind(id) == Some(Kind::Comment),
            Test::Instruction(target) => {
                document.kind(id) == Some(Kind::Instruction)
                    && target.as_ref().is_none_or(|t| document.name(id) == t)
            }
        }
    }

    fn call(&self, function: Function, arguments: &[Expr], place: Place) -> Result<Value, String> {
        let document = self.document;
        let text = |at: usize| match arguments.get(at) {
            Some(argument) => self.text(argument, place),
            None => Ok(self.string_value(place.node)?.into_owned()),
        };
        let node = || match arguments.first() {
            Some(argument) => Ok(self.nodes(argument, place)?.first().copied()),
            None => Ok::<_, String>(Some(place.node)),
        };
        Ok(match function {
            Function::Last => Value::Number(place.size as f64),
            Function::Position => Value::Number(place.position as f64),
            Function::Count => Value::Number(self.nodes(&arguments[0], place)?.len() as f64),
            // Without a DTD no attribute is of type ID.
            Function::Id => Value::Nodes(Vec::new()),
            Function::LocalName => {
                Value::Text(node()?.map_or(String::new(), |id| document.local_name(id).to_owned()))
            }
            Function::NamespaceUri => {
                Value::Text(node()?.map_or(String::new(), |id| document.namespace(id).to_owned()))
            }
            Function::Name => {
                Value::Text(node()?.map_or(String::new(), |id| document.name(id).to_owned()))
            }
            Function::String => Value::Text(text(0)?),
            Function::Concat => {
                let mut all = String::new();
                for argument in arguments {
                    all.push_str(&self.text(argument, place)?);
                }
                self.budget.spend(all.len() as u64 / 64)?;
                Value::Text(all)
            }
            Function::StartsWith => Value::Bool(text(0)?.starts_with(&*text(1)?)),
            Function::Contains => Value::Bool(text(0)?.contains(&*text(1)?)),
            Function::SubstringBefore => {
                let (text, part) = (text(0)?, text(1)?);
                Value::Text(text.find(&*part).map_or("", |at| &text[..at]).to_owned())
            }
            Function::SubstringAfter => {
                let (text, part) = (text(0)?, text(1)?);
                Value::Text(
                    text.find(&*part)
                        .map_or("", |at| &text[at + part.len()..])
                        .to_owned(),
                )
            }
            Function::Substring => {
                let text = text(0)?;
                let start = round(self.number(&arguments[1], place)?);
                let end = match arguments.get(2) {
                    Some(length) => start + round(self.number(length, place)?),
                    None => f64::INFINITY,
                };
                Value::Text(
                    text.chars()
                        .enumerate()
                        .filter(|(at, _)| {
                            let position = *at as f64 + 1.0;
                            position >= start && position < end
                        })
                        .map(|(_, c)| c)
                        .collect(),
                )
            }
            Function::StringLength => Value::Number(text(0)?.chars().count() as f64),
            Function::NormalizeSpace => Value::Text(
                text(0)?
                    .split([' ', '\t', '\n', '\r'])
                    .filter(|word| !word.is_empty())
                    .collect::<Vec<_>>()
                    .join(" "),
            ),
            Function::Translate => {
                let (text, from, to) = (text(0)?, text(1)?, text(2)?);
                let to: Vec<char> = to.chars().collect();
                let mut map = ahash::AHashMap::new();
                for (at, c) in from.chars().enumerate() {
                    map.entry(c).or_insert(to.get(at).copied());
                }
                Value::Text(
                    text.chars()
                        .filter_map(|c| map.get(&c).copied().unwrap_or(Some(c)))
                        .collect(),
                )
            }
            Function::Boolean => Value::Bool(self.boolean(&arguments[0], place)?),
            Function::Not => Value::Bool(!self.boolean(&arguments[0], place)?),
            Function::True => Value::Bool(true),
            Function::False => Value::Bool(false),
            Function::Lang => {
                let wanted = text(0)?;
                let mut at = Some(place.node);
                let mut holds = false;
                while let Some(id) = at {
                    if let Some(lang) =
                        document.attribute(id.node, crate::xml::XML_NAMESPACE, "lang")
                    {
                        holds = lang.get(..wanted.len()).is_some_and(|start| {
                            start.eq_ignore_ascii_case(&wanted)
                                && matches!(lang.as_bytes().get(wanted.len()), None | Some(b'-'))
                        });
                        break;
                    }
                    at = document.parent(id);
                }
                Value::Bool(holds)
            }
            Function::Number => Value::Number(match arguments.first() {
                Some(argument) => self.number(argument, place)?,
                None => text_number(&text(0)?),
            }),
            Function::Sum => {
                let mut sum = 0.0;
                for node in self.nodes(&arguments[0], place)? {
                    sum += text_number(&self.string_value(node)?);
                }
                Value::Number(sum)
            }
            Function::Floor => Value::Number(self.number(&arguments[0], place)?.floor()),
            Function::Ceiling => Value::Number(self.number(&arguments[0], place)?.ceil()),
            Function::Round => Value::Number(round(self.number(&arguments[0], place)?)),
        })
    }
}

/// To the nearest whole number, halves upwards (section 4.4).
fn round(number: f64) -> f64 {
    if number.is_finite() {
        (number + 0.5).floor()
    } else {
        number
    }
}
