//! From text to a tree of expressions (XPath 1.0 sections 2, 3 and 4).

use std::collections::BTreeMap;

use super::{XPath, XPathError};
use crate::xml::{XML_NAMESPACE, is_name_char, is_name_start};

/// Nesting of parentheses, predicates and function calls.
const MAX_DEPTH: usize = 48;
/// Characters of one expression.
const MAX_LENGTH: usize = 16 << 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    Or,
    And,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Union,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Axis {
    Child,
    Descendant,
    DescendantOrSelf,
    Parent,
    Ancestor,
    AncestorOrSelf,
    Following,
    FollowingSibling,
    Preceding,
    PrecedingSibling,
    Attribute,
    Own,
}

impl Axis {
    pub(crate) fn reverse(self) -> bool {
        matches!(
            self,
            Axis::Parent
                | Axis::Ancestor
                | Axis::AncestorOrSelf
                | Axis::Preceding
                | Axis::PrecedingSibling
        )
    }
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Test {
    /// `*`
    Any,
    /// `p:*`
    Namespace(String),
    /// A name, its namespace resolved, and its number within the expression.
    Name {
        uri: String,
        local: String,
        number: usize,
    },
    Node,
    Text,
    Comment,
    Instruction(Option<String>),
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Step {
    pub(crate) axis: Axis,
    pub(crate) test: Test,
    pub(crate) predicates: Vec<Expr>,
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Start {
    Context,
    Root,
    Value(Box<Expr>, Vec<Expr>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Function {
    Last,
    Position,
    Count,
    Id,
    LocalName,
    NamespaceUri,
    Name,
    String,
    Concat,
    StartsWith,
    Contains,
    SubstringBefore,
    SubstringAfter,
    Substring,
    StringLength,
    NormalizeSpace,
    Translate,
    Boolean,
    Not,
    True,
    False,
    Lang,
    Number,
    Sum,
    Floor,
    Ceiling,
    Round,
}

/// Name, function, fewest and most arguments (XPath 1.0 section 4).
const FUNCTIONS: &[(&str, Function, usize, usize)] = &[
    ("last", Function::Last, 0, 0),
    ("position", Function::Position, 0, 0),
    ("count", Function::Count, 1, 1),
    ("id", Function::Id, 1, 1),
    ("local-name", Function::LocalName, 0, 1),
    ("namespace-uri", Function::NamespaceUri, 0, 1),
    ("name", Function::Name, 0, 1),
    ("string", Function::String, 0, 1),
    ("concat", Function::Concat, 2, usize::MAX),
    ("starts-with", Function::StartsWith, 2, 2),
    ("contains", Function::Contains, 2, 2),
    ("substring-before", Function::SubstringBefore, 2, 2),
    ("substring-after", Function::SubstringAfter, 2, 2),
    ("substring", Function::Substring, 2, 3),
    ("string-length", Function::StringLength, 0, 1),
    ("normalize-space", Function::NormalizeSpace, 0, 1),
    ("translate", Function::Translate, 3, 3),
    ("boolean", Function::Boolean, 1, 1),
    ("not", Function::Not, 1, 1),
    ("true", Function::True, 0, 0),
    ("false", Function::False, 0, 0),
    ("lang", Function::Lang, 1, 1),
    ("number", Function::Number, 0, 1),
    ("sum", Function::Sum, 1, 1),
    ("floor", Function::Floor, 1, 1),
    ("ceiling", Function::Ceiling, 1, 1),
    ("round", Function::Round, 1, 1),
];

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Expr {
    Binary(Op, Box<Expr>, Box<Expr>),
    Negate(Box<Expr>),
    Literal(String),
    Number(f64),
    Call(Function, Vec<Expr>),
    Path(Start, Vec<Step>),
}

impl Expr {
    /// Whether the value can be a set of nodes.
    pub(crate) fn is_nodes(&self) -> bool {
        matches!(
            self,
            Expr::Path(..) | Expr::Binary(Op::Union, ..) | Expr::Call(Function::Id, _)
        )
    }

    fn is_number(&self) -> bool {
        match self {
            Expr::Number(_) | Expr::Negate(_) => true,
            Expr::Binary(op, ..) => matches!(
                op,
                Op::Add | Op::Subtract | Op::Multiply | Op::Divide | Op::Modulo
            ),
            Expr::Call(function, _) => matches!(
                function,
                Function::Last
                    | Function::Position
                    | Function::Count
                    | Function::StringLength
                    | Function::Number
                    | Function::Sum
                    | Function::Floor
                    | Function::Ceiling
                    | Function::Round
            ),
            Expr::Path(..) | Expr::Literal(_) => false,
        }
    }

    /// Whether the value depends on the position of the context node.
    fn positional(&self) -> bool {
        match self {
            Expr::Binary(_, a, b) => a.positional() || b.positional(),
            Expr::Negate(a) => a.positional(),
            Expr::Call(Function::Last | Function::Position, _) => true,
            Expr::Call(_, arguments) => arguments.iter().any(Expr::positional),
            Expr::Path(Start::Value(value, _), _) => value.positional(),
            // Predicates of steps have positions of their own.
            Expr::Path(..) | Expr::Literal(_) | Expr::Number(_) => false,
        }
    }
}

#[derive(Clone, PartialEq, Debug)]
enum Token {
    Name(String),
    Literal(String),
    Number(f64),
    Symbol(&'static str),
}

const SYMBOLS: &[&str] = &[
    "::", "//", "..", "!=", "<=", ">=", "(", ")", "[", "]", ".", "@", ",", "/", "|", "+", "-", "=",
    "<", ">", "*", "$", ":",
];

fn tokens(text: &str) -> Result<Vec<(Token, usize)>, XPathError> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        if matches!(c, ' ' | '\t' | '\n' | '\r') {
            at += 1;
            continue;
        }
        let start = at;
        if c == '"' || c == '\'' {
            at += 1;
            while at < chars.len() && chars[at] != c {
                at += 1;
            }
            if at == chars.len() {
                return Err(XPathError {
                    message: "the literal does not end".into(),
                    offset: start,
                });
            }
            tokens.push((Token::Literal(chars[start + 1..at].iter().collect()), start));
            at += 1;
            continue;
        }
        if c.is_ascii_digit() || c == '.' && chars.get(at + 1).is_some_and(|c| c.is_ascii_digit()) {
            while at < chars.len() && chars[at].is_ascii_digit() {
                at += 1;
            }
            if at < chars.len() && chars[at] == '.' {
                at += 1;
                while at < chars.len() && chars[at].is_ascii_digit() {
                    at += 1;
                }
            }
            let digits: String = chars[start..at].iter().collect();
            tokens.push((Token::Number(digits.parse().unwrap_or(f64::NAN)), start));
            continue;
        }
        if is_name_start(c) {
            while at < chars.len() && is_name_char(chars[at]) {
                at += 1;
            }
            tokens.push((Token::Name(chars[start..at].iter().collect()), start));
            continue;
        }
        let rest: String = chars[at..chars.len().min(at + 2)].iter().collect();
        match SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
            Some(symbol) => {
                tokens.push((Token::Symbol(symbol), start));
                at += symbol.len();
            }
            None if c == '!' => {
                return Err(XPathError {
                    message: "'!' must be followed by '='; negation is not(…)".into(),
                    offset: at,
                });
            }
            None => {
                return Err(XPathError {
                    message: format!("'{c}' has no place in XPath"),
                    offset: at,
                });
            }
        }
    }
    Ok(tokens)
}

struct Parser<'n> {
    tokens: Vec<(Token, usize)>,
    at: usize,
    length: usize,
    depth: usize,
    names: usize,
    namespaces: &'n BTreeMap<String, String>,
}

/// Parses a whole expression.
pub(crate) fn parse(
    text: &str,
    namespaces: &BTreeMap<String, String>,
) -> Result<XPath, XPathError> {
    let length = text.chars().count();
    if length > MAX_LENGTH {
        return Err(XPathError {
            message: format!("the XPath is longer than {MAX_LENGTH} characters"),
            offset: 0,
        });
    }
    let mut parser = Parser {
        tokens: tokens(text)?,
        at: 0,
        length,
        depth: 0,
        names: 0,
        namespaces,
    };
    let root = parser.expression()?;
    if parser.at < parser.tokens.len() {
        return Err(parser.unexpected("the end or an operator"));
    }
    let whole = matches!(
        root,
        Expr::Call(
            Function::Count | Function::StringLength | Function::Position | Function::Last,
            _
        )
    );
    Ok(XPath {
        root,
        names: parser.names,
        whole,
        plain: None,
    })
}

/// Binary operators from loosest to tightest.
const LEVELS: &[&[(&str, Op)]] = &[
    &[("or", Op::Or)],
    &[("and", Op::And)],
    &[("=", Op::Equal), ("!=", Op::NotEqual)],
    &[
        ("<=", Op::LessEqual),
        ("<", Op::Less),
        (">=", Op::GreaterEqual),
        (">", Op::Greater),
    ],
    &[("+", Op::Add), ("-", Op::Subtract)],
    &[
        ("*", Op::Multiply),
        ("div", Op::Divide),
        ("mod", Op::Modulo),
    ],
];

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self.peek(), Some(Token::Symbol(s)) if *s == symbol)
    }

    fn is_at(&self, ahead: usize, symbol: &str) -> bool {
        matches!(self.tokens.get(self.at + ahead), Some((Token::Symbol(s), _)) if *s == symbol)
    }

    fn take(&mut self, symbol: &str) -> bool {
        let there = self.is(symbol);
        self.at += usize::from(there);
        there
    }

    fn expect(&mut self, symbol: &str) -> Result<(), XPathError> {
        if self.take(symbol) {
            Ok(())
        } else {
            Err(self.unexpected(&format!("'{symbol}'")))
        }
    }

    fn offset(&self) -> usize {
        self.tokens
            .get(self.at)
            .map_or(self.length, |(_, offset)| *offset)
    }

    fn error(&self, message: impl Into<String>) -> XPathError {
        XPathError {
            message: message.into(),
            offset: self.offset(),
        }
    }

    fn unexpected(&self, wanted: &str) -> XPathError {
        self.error(match self.peek() {
            None => format!("the XPath ends where {wanted} should follow"),
            Some(Token::Name(name)) => format!("'{name}' stands where {wanted} should follow"),
            Some(Token::Literal(_)) => format!("a literal stands where {wanted} should follow"),
            Some(Token::Number(_)) => format!("a number stands where {wanted} should follow"),
            Some(Token::Symbol(s)) => format!("'{s}' stands where {wanted} should follow"),
        })
    }

    fn expression(&mut self) -> Result<Expr, XPathError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error(format!("the XPath is nested more than {MAX_DEPTH} deep")));
        }
        let expr = self.binary(0);
        self.depth -= 1;
        expr
    }

    fn binary(&mut self, level: usize) -> Result<Expr, XPathError> {
        let Some(operators) = LEVELS.get(level) else {
            return self.unary();
        };
        let mut left = self.binary(level + 1)?;
        let mut chained = 0;
        loop {
            let op = match self.peek() {
                Some(Token::Symbol(symbol)) => operators.iter().find(|(s, _)| s == symbol),
                Some(Token::Name(name)) => operators.iter().find(|(s, _)| s == name),
                _ => None,
            };
            let Some((_, op)) = op else {
                return Ok(left);
            };
            chained += 1;
            if chained > 200 {
                return Err(self.error("more than 200 operators in a row"));
            }
            self.at += 1;
            let right = self.binary(level + 1)?;
            left = Expr::Binary(*op, Box::new(left), Box::new(right));
        }
    }

    fn unary(&mut self) -> Result<Expr, XPathError> {
        let mut negative = 0;
        while self.take("-") {
            negative += 1;
        }
        let mut expr = self.union()?;
        if negative > 0 {
            expr = Expr::Negate(Box::new(expr));
            if negative % 2 == 0 {
                expr = Expr::Negate(Box::new(expr));
            }
        }
        Ok(expr)
    }

    fn union(&mut self) -> Result<Expr, XPathError> {
        let mut left = self.path()?;
        let mut chained = 0;
        while self.is("|") {
            chained += 1;
            if chained > 200 {
                return Err(self.error("more than 200 operators in a row"));
            }
            if !left.is_nodes() {
                return Err(self.error("'|' joins sets of nodes only"));
            }
            self.at += 1;
            let at = self.at;
            let right = self.path()?;
            if !right.is_nodes() {
                self.at = at;
                return Err(self.error("'|' joins sets of nodes only"));
            }
            left = Expr::Binary(Op::Union, Box::new(left), Box::new(right));
        }
        Ok(left)
    }

    fn starts_primary(&self) -> bool {
        match self.peek() {
            Some(Token::Literal(_) | Token::Number(_)) => true,
            Some(Token::Symbol(s)) => matches!(*s, "(" | "$"),
            Some(Token::Name(name)) => {
                self.is_at(1, "(")
                    && !matches!(
                        &**name,
                        "node" | "text" | "comment" | "processing-instruction"
                    )
            }
            None => false,
        }
    }

    fn path(&mut self) -> Result<Expr, XPathError> {
        let mut steps = Vec::new();
        let start = if self.starts_primary() {
            let from = self.at;
            let primary = self.primary()?;
            let mut predicates = Vec::new();
            while self.is("[") {
                predicates.push(self.predicate()?);
            }
            if predicates.is_empty() && !self.is("/") && !self.is("//") {
                return Ok(primary);
            }
            if !primary.is_nodes() {
                self.at = from;
                return Err(self.error("only a set of nodes can be followed by a path or [ ]"));
            }
            Start::Value(Box::new(primary), predicates)
        } else if self.is("/") || self.is("//") {
            if self.take("/") {
                if !self.starts_step() {
                    return Ok(Expr::Path(Start::Root, steps));
                }
                steps.push(self.step()?);
            }
            Start::Root
        } else {
            steps.push(self.step()?);
            Start::Context
        };
        loop {
            if self.take("//") {
                let mut step = self.step()?;
                // `//x` is descendant-or-self::node()/child::x; the same nodes as descendant::x
                // unless a predicate counts positions.
                let counts = step
                    .predicates
                    .iter()
                    .any(|p| p.is_number() || p.positional());
                if step.axis == Axis::Child && !counts {
                    step.axis = Axis::Descendant;
                } else {
                    steps.push(Step {
                        axis: Axis::DescendantOrSelf,
                        test: Test::Node,
                        predicates: Vec::new(),
                    });
                }
                steps.push(step);
            } else if self.take("/") {
                steps.push(self.step()?);
            } else {
                return Ok(Expr::Path(start, steps));
            }
            if steps.len() > 200 {
                return Err(self.error("more than 200 steps"));
            }
        }
    }

    fn starts_step(&self) -> bool {
        match self.peek() {
            Some(Token::Name(_)) => true,
            Some(Token::Symbol(s)) => matches!(*s, "." | ".." | "@" | "*"),
            _ => false,
        }
    }

    fn step(&mut self) -> Result<Step, XPathError> {
        let plain = |axis| Step {
            axis,
            test: Test::Node,
            predicates: Vec::new(),
        };
        if self.take(".") {
            return Ok(plain(Axis::Own));
        }
        if self.take("..") {
            return Ok(plain(Axis::Parent));
        }
        let mut axis = Axis::Child;
        if self.take("@") {
            axis = Axis::Attribute;
        } else if let (Some(Token::Name(name)), true) = (self.peek(), self.is_at(1, "::")) {
            axis = match &**name {
                "child" => Axis::Child,
                "descendant" => Axis::Descendant,
                "descendant-or-self" => Axis::DescendantOrSelf,
                "parent" => Axis::Parent,
                "ancestor" => Axis::Ancestor,
                "ancestor-or-self" => Axis::AncestorOrSelf,
                "following" => Axis::Following,
                "following-sibling" => Axis::FollowingSibling,
                "preceding" => Axis::Preceding,
                "preceding-sibling" => Axis::PrecedingSibling,
                "attribute" => Axis::Attribute,
                "self" => Axis::Own,
                "namespace" => return Err(self.error("the namespace axis is not supported")),
                other => return Err(self.error(format!("'{other}' is not an axis"))),
            };
            self.at += 2;
        }
        let test = self.test(axis)?;
        let mut predicates = Vec::new();
        while self.is("[") {
            predicates.push(self.predicate()?);
            if predicates.len() > 50 {
                return Err(self.error("more than 50 predicates at one step"));
            }
        }
        Ok(Step {
            axis,
            test,
            predicates,
        })
    }

    fn test(&mut self, axis: Axis) -> Result<Test, XPathError> {
        if self.take("*") {
            return Ok(Test::Any);
        }
        let offset = self.at;
        let Some(Token::Name(name)) = self.peek().cloned() else {
            return Err(self.unexpected("a name"));
        };
        self.at += 1;
        if self.take("(") {
            let test = match &*name {
                "node" => Test::Node,
                "text" => Test::Text,
                "comment" => Test::Comment,
                "processing-instruction" => {
                    if let Some(Token::Literal(target)) = self.peek().cloned() {
                        self.at += 1;
                        Test::Instruction(Some(target))
                    } else {
                        Test::Instruction(None)
                    }
                }
                other => {
                    self.at = offset;
                    return Err(self.error(format!("the function {other}() cannot be a step")));
                }
            };
            self.expect(")")?;
            return Ok(test);
        }
        if !self.take(":") {
            let number = self.names;
            self.names += 1;
            return Ok(Test::Name {
                uri: String::new(),
                local: name,
                number,
            });
        }
        let uri = match self.namespaces.get(&name) {
            Some(uri) => uri.clone(),
            None if name == "xml" => XML_NAMESPACE.into(),
            None => {
                self.at = offset;
                return Err(self.error(format!(
                    "the prefix '{name}' is not declared: put it into the route's namespaces"
                )));
            }
        };
        if self.take("*") {
            return Ok(Test::Namespace(uri));
        }
        let _ = axis;
        match self.peek().cloned() {
            Some(Token::Name(local)) => {
                self.at += 1;
                let number = self.names;
                self.names += 1;
                Ok(Test::Name { uri, local, number })
            }
            _ => Err(self.unexpected("a name")),
        }
    }

    fn predicate(&mut self) -> Result<Expr, XPathError> {
        self.expect("[")?;
        let expr = self.expression()?;
        self.expect("]")?;
        Ok(expr)
    }

    fn primary(&mut self) -> Result<Expr, XPathError> {
        match self.peek().cloned() {
            Some(Token::Literal(text)) => {
                self.at += 1;
                Ok(Expr::Literal(text))
            }
            Some(Token::Number(number)) => {
                self.at += 1;
                Ok(Expr::Number(number))
            }
            Some(Token::Symbol("$")) => Err(self.error("there are no variables in this XPath")),
            Some(Token::Symbol(_)) | None => {
                self.expect("(")?;
                let expr = self.expression()?;
                self.expect(")")?;
                Ok(expr)
            }
            Some(Token::Name(name)) => self.call(&name),
        }
    }

    fn call(&mut self, name: &str) -> Result<Expr, XPathError> {
        let from = self.at;
        let Some((_, function, fewest, most)) = FUNCTIONS.iter().find(|(known, ..)| *known == name)
        else {
            let near = crate::script::names::nearest(name, FUNCTIONS.iter().map(|f| f.0));
            return Err(self.error(match near {
                Some(near) => format!("XPath 1.0 has no function {name}(): did you mean {near}()?"),
                None => format!("XPath 1.0 has no function {name}()"),
            }));
        };
        self.at += 2;
        let mut arguments = Vec::new();
        if !self.is(")") {
            loop {
                arguments.push(self.expression()?);
                if !self.take(",") {
                    break;
                }
            }
        }
        self.expect(")")?;
        if arguments.len() < *fewest || arguments.len() > *most {
            self.at = from;
            return Err(self.error(format!(
                "{name}() does not take {} argument(s)",
                arguments.len()
            )));
        }
        let wants_nodes = matches!(
            function,
            Function::Count
                | Function::Sum
                | Function::LocalName
                | Function::NamespaceUri
                | Function::Name
        );
        if wants_nodes && arguments.first().is_some_and(|a| !a.is_nodes()) {
            self.at = from;
            return Err(self.error(format!("{name}() takes a set of nodes")));
        }
        Ok(Expr::Call(*function, arguments))
    }
}
