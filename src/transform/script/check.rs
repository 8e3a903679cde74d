//! What can be found wrong in a script before any message comes: unknown names with the nearest
//! known one, wrong numbers of arguments, XPaths and tables that do not work.

use ahash::{AHashMap, AHashSet};
use rhai::{AST, ASTNode, BinaryExpr, Expr, FnCallExpr, Position, Stmt};
use xbus_core::transform::{Asked, CompileError};

use super::Shared;
use super::names::nearest;
use super::namespaces::Namespaces;

/// The names that every script finds without declaring them.
pub(crate) const VARIABLES: &[&str] = &[
    "body",
    "headers",
    "attachments",
    "id",
    "correlation_id",
    "route",
    "received_at",
    "received",
    "responses",
    "response",
];

/// What a message gives without parentheses.
const PROPERTIES: &[&str] = &[
    "body",
    "headers",
    "attachments",
    "id",
    "correlation_id",
    "received_at",
];

/// Functions that rhai handles in its syntax.
const KEYWORDS: &[&str] = &[
    "call",
    "curry",
    "type_of",
    "print",
    "debug",
    "is_def_var",
    "is_def_fn",
    "is_shared",
    "Fn",
];

/// Every native function with the numbers of arguments that it takes.
pub(crate) struct Functions(AHashMap<String, Vec<usize>>);

impl Functions {
    pub(crate) fn of(engine: &rhai::Engine) -> Self {
        let mut known: AHashMap<String, Vec<usize>> = AHashMap::new();
        let all = engine.collect_fn_metadata(
            None,
            |info| Some((info.metadata.name.to_string(), info.metadata.num_params)),
            true,
        );
        for (name, arguments) in all {
            let counts = known.entry(name).or_default();
            if !counts.contains(&arguments) {
                counts.push(arguments);
            }
        }
        Self(known)
    }
}

fn error(message: String, position: Position, help: Option<String>) -> CompileError {
    CompileError {
        message,
        line: position.line().unwrap_or(1),
        column: position.position().unwrap_or(1).max(1),
        help,
    }
}

/// An error of the parser, with help where the mistake is a common one.
pub(crate) fn explain(cause: &rhai::ParseError, text: &str) -> CompileError {
    let mut found = super::error::compile_error(cause);
    let line = text.lines().nth(found.line - 1).unwrap_or_default();
    if line.contains('\'') && found.message.contains("character") {
        found.help = Some("texts stand in double quotes: \"…\"".into());
    } else if let Some((name, _)) = found.message.split_once("' is a reserved keyword") {
        let name = name.trim_start_matches('\'');
        found.help = Some(format!(
            "the language keeps this word for itself: as a member write [\"{name}\"], in a map \
             \"{name}\": …"
        ));
    } else if found.message.contains("EOF") || found.message.contains("end of") {
        found.help = Some("a bracket, brace or quote is not closed".into());
    }
    found
}

/// Checks the whole program; literal XPaths are compiled into `namespaces`.
pub(crate) fn check(
    ast: &AST,
    text: &str,
    functions: &Functions,
    shared: &Shared,
    namespaces: &mut Namespaces,
) -> Result<Vec<Asked>, CompileError> {
    let own: AHashMap<String, Vec<usize>> =
        ast.iter_functions()
            .fold(AHashMap::new(), |mut own, function| {
                own.entry(function.name.to_owned())
                    .or_insert_with(Vec::new)
                    .push(function.params.len());
                own
            });
    // Members of maps may hold functions and be called like methods.
    let mut members: AHashSet<String> = AHashSet::new();
    let mut declared: AHashSet<String> = AHashSet::new();
    ast.walk(&mut |path| {
        match path.last() {
            Some(ASTNode::Expr(Expr::Map(map, _))) => {
                members.extend(map.0.iter().map(|(name, _)| name.name.to_string()));
            }
            Some(ASTNode::Expr(Expr::DynamicConstant(value, _))) => {
                if let Some(map) = value.read_lock::<rhai::Map>() {
                    members.extend(map.keys().map(ToString::to_string));
                }
            }
            Some(ASTNode::Expr(Expr::Property(property, _))) => {
                members.insert(property.2.to_string());
            }
            Some(ASTNode::Stmt(Stmt::Var(var, ..))) => {
                declared.insert(var.0.name.to_string());
            }
            Some(ASTNode::Stmt(Stmt::For(each, _))) => {
                declared.insert(each.0.name.to_string());
            }
            _ => {}
        }
        true
    });
    let mut checker = Checker {
        text,
        functions,
        own,
        members,
        declared,
        shared,
        namespaces,
        asked: Vec::new(),
        sought: AHashSet::new(),
    };
    let mut found = None;
    ast.walk(&mut |path| {
        let checked = match path.last() {
            Some(ASTNode::Expr(expr)) => checker.expr(expr),
            Some(ASTNode::Stmt(Stmt::FnCall(call, position))) => {
                checker.call(call, *position, false)
            }
            Some(ASTNode::Stmt(Stmt::Var(var, _, position))) => declaration(&var.0.name, *position),
            Some(ASTNode::Stmt(Stmt::Share(captured))) => {
                captures(path, captured.first().map(|(name, _)| name.pos))
            }
            _ => Ok(()),
        };
        match checked {
            Ok(()) => true,
            Err(wrong) => {
                found = Some(wrong);
                false
            }
        }
    });
    match found {
        Some(wrong) => Err(wrong),
        None => {
            let Checker { asked, sought, .. } = checker;
            let unsure = |asked: &Asked| !sought.contains(&asked.step);
            Ok(asked.into_iter().filter(unsure).collect())
        }
    }
}

/// A variable of this name would hide the message's own, and setting it would change nothing.
fn declaration(name: &str, position: Position) -> Result<(), CompileError> {
    if name != "attachments" {
        return Ok(());
    }
    Err(error(
        "a variable named 'attachments' would hide the attachments of the message".to_owned(),
        position,
        Some(
            "without `let` the message's are set: attachments = …; else choose another name"
                .to_owned(),
        ),
    ))
}

/// Methods that call a function and do not keep it.
const CALLERS: &[&str] = &[
    "all",
    "dedup",
    "drain",
    "filter",
    "find",
    "find_map",
    "for_each",
    "index_of",
    "map",
    "reduce",
    "reduce_rev",
    "retain",
    "some",
    "sort",
    "split",
];

/// A closure that captures may stand only where it is called and forgotten. Kept ones could be
/// nested without bound (a captures b captures c…), which no limit of rhai counts and whose
/// destructor would overflow the stack.
fn captures(path: &[ASTNode<'_>], position: Option<Position>) -> Result<(), CompileError> {
    if let [
        ..,
        ASTNode::Expr(Expr::MethodCall(call, _)),
        ASTNode::Expr(closure),
        _,
    ] = path
        && CALLERS.contains(&call.name.as_str())
        && call
            .args
            .first()
            .is_some_and(|argument| std::ptr::eq(argument, *closure))
    {
        return Ok(());
    }
    Err(error(
        "a closure that uses variables from around it can only be handed to map, filter, \
         reduce and the like"
            .to_owned(),
        position.unwrap_or(Position::NONE),
        Some("make it a function (fn) and hand the variables over as arguments".to_owned()),
    ))
}

struct Checker<'c> {
    text: &'c str,
    functions: &'c Functions,
    own: AHashMap<String, Vec<usize>>,
    members: AHashSet<String>,
    declared: AHashSet<String>,
    shared: &'c Shared,
    namespaces: &'c mut Namespaces,
    asked: Vec<Asked>,
    /// Names that the text itself looks for first: `"stock" in responses`.
    sought: AHashSet<String>,
}

impl Checker<'_> {
    fn expr(&mut self, expr: &Expr) -> Result<(), CompileError> {
        match expr {
            // A variable without an index is none that the parser saw declared.
            Expr::Variable(variable, None, position) if variable.0.is_none() => {
                let name = variable.1.as_str();
                if !variable.2.is_empty()
                    || VARIABLES.contains(&name)
                    || self.own.contains_key(name)
                    // Captured by a closure; were it out of scope, the run would tell.
                    || self.declared.contains(name)
                {
                    return Ok(());
                }
                let known = VARIABLES
                    .iter()
                    .copied()
                    .chain(self.declared.iter().map(String::as_str));
                let help = if self.functions.0.contains_key(name) {
                    Some(format!("{name} is a function: write {name}(…)"))
                } else {
                    nearest(name, known).map(|near| format!("did you mean {near}?"))
                };
                Err(error(
                    format!("there is no variable '{name}'"),
                    *position,
                    help,
                ))
            }
            Expr::Dot(pair, ..) => {
                self.responses(pair);
                self.property(pair)
            }
            Expr::Index(pair, ..) => {
                self.responses(pair);
                Ok(())
            }
            Expr::FnCall(call, position) => self.call(call, *position, false),
            Expr::MethodCall(call, position) => self.call(call, *position, true),
            _ => Ok(()),
        }
    }

    /// Notes whose response is asked for.
    fn responses(&mut self, pair: &BinaryExpr) {
        let Expr::Variable(variable, None, _) = &pair.lhs else {
            return;
        };
        if variable.0.is_some() || variable.1 != "responses" || self.declared.contains("responses")
        {
            return;
        }
        let first = match &pair.rhs {
            Expr::Dot(more, ..) | Expr::Index(more, ..) => &more.lhs,
            last => last,
        };
        let (step, position) = match first {
            Expr::Property(property, position) => (property.2.to_string(), position),
            Expr::StringConstant(name, position) => (name.to_string(), position),
            _ => return,
        };
        self.asked.push(Asked {
            step,
            line: position.line().unwrap_or(1),
            column: position.position().unwrap_or(1).max(1),
        });
    }

    /// What is asked of `received` and `response`, where they are the message's.
    fn property(&self, pair: &BinaryExpr) -> Result<(), CompileError> {
        let Expr::Variable(variable, None, _) = &pair.lhs else {
            return Ok(());
        };
        let of = variable.1.as_str();
        if variable.0.is_some()
            || !matches!(of, "received" | "response")
            || self.declared.contains(of)
        {
            return Ok(());
        }
        let first = match &pair.rhs {
            Expr::Dot(more, ..) | Expr::Index(more, ..) => &more.lhs,
            last => last,
        };
        match first {
            Expr::Property(property, position) if !PROPERTIES.contains(&property.2.as_str()) => {
                let name = property.2.as_str();
                let near = nearest(name, PROPERTIES.iter().copied());
                let help = match near {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("there are: {}", PROPERTIES.join(", ")),
                };
                let message = format!("a message has no property '{name}'");
                Err(error(message, *position, Some(help)))
            }
            _ => Ok(()),
        }
    }

    fn call(
        &mut self,
        call: &FnCallExpr,
        position: Position,
        method: bool,
    ) -> Result<(), CompileError> {
        let name = call.name.as_str();
        if name == "contains" {
            self.sought
                .extend(call.args.iter().filter_map(|argument| match argument {
                    Expr::StringConstant(text, _) => Some(text.to_string()),
                    _ => None,
                }));
        }
        if call.is_operator_call()
            || !call.namespace.is_empty()
            || KEYWORDS.contains(&name)
            || name.starts_with("anon$")
            || !name.starts_with(|c: char| c.is_alphabetic() || c == '_')
        {
            return Ok(());
        }
        let given = call.args.len();
        let counts = |extra: usize| {
            let native = self.functions.0.get(name).into_iter().flatten();
            let own = self.own.get(name).into_iter().flatten();
            native
                .map(move |n| n.saturating_sub(extra))
                .chain(own.copied())
                .collect::<Vec<usize>>()
        };
        let known = counts(usize::from(method));
        if known.is_empty() {
            if method && self.members.contains(name) {
                return Ok(());
            }
            let near = nearest(
                name,
                self.functions
                    .0
                    .keys()
                    .chain(self.own.keys())
                    .map(String::as_str)
                    .filter(|n| n.starts_with(|c: char| c.is_alphabetic())),
            );
            return Err(error(
                format!("there is no function '{name}'"),
                position,
                near.map(|near| format!("did you mean {near}?")),
            ));
        }
        if !known.contains(&given) {
            let mut counts: Vec<String> = {
                let mut counts = known;
                counts.sort_unstable();
                counts.dedup();
                counts.into_iter().map(|n| n.to_string()).collect()
            };
            let last = counts.pop().unwrap_or_default();
            let takes = if counts.is_empty() {
                last
            } else {
                format!("{} or {last}", counts.join(", "))
            };
            return Err(error(
                format!("{name}() takes {takes} argument(s), {given} given"),
                position,
                None,
            ));
        }
        self.literal(name, call, method)
    }

    /// Literals that can be tried now.
    fn literal(&mut self, name: &str, call: &FnCallExpr, method: bool) -> Result<(), CompileError> {
        let Some(Expr::StringConstant(literal, position)) = call.args.first() else {
            return Ok(());
        };
        match (name, call.args.len()) {
            ("xpath" | "xpath_all", 1) => {
                self.namespaces.add(literal).map_err(|wrong| {
                    // In a plain literal the place within it is known.
                    let plain = position
                        .line()
                        .and_then(|line| self.text.lines().nth(line - 1))
                        .is_some_and(|line| line.contains(literal.as_str()));
                    let mut found = error(
                        format!("XPath: {} (character {})", wrong.message, wrong.offset + 1),
                        *position,
                        None,
                    );
                    if plain {
                        found.column += 1 + wrong.offset;
                    }
                    found
                })?;
                if name == "xpath" && !method {
                    self.namespaces.ask(literal);
                }
                Ok(())
            }
            ("jsonpath" | "jsonpath_all", 1) => super::reading::json_path(literal)
                .map(|_| ())
                .map_err(|wrong| error(wrong.to_string(), *position, None)),
            ("table", 1) => self
                .shared
                .table(literal)
                .map(|_| ())
                .map_err(|wrong| error(wrong.to_string(), *position, None)),
            _ => Ok(()),
        }
    }
}
