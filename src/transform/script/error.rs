//! Errors of scripts: raised by functions, placed by rhai, told as faults that quote the source.

use rhai::{Dynamic, EvalAltResult, Position};
use xbus_core::transform::CompileError;
use xbus_core::{Code, Fault, Format};

use super::call::current;

/// What a function of the bus raises.
#[derive(Clone, Debug)]
pub(crate) struct ScriptError {
    /// Nothing: the script is at fault.
    pub(crate) code: Option<Code>,
    pub(crate) text: String,
}

impl ScriptError {
    /// The script did something that does not work.
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self {
            code: None,
            text: text.into(),
        }
    }

    /// A fault whose text callers may read.
    pub(crate) fn fault(code: Code, text: impl Into<String>) -> Self {
        Self {
            code: Some(code),
            text: text.into(),
        }
    }
}

impl From<String> for ScriptError {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

impl std::fmt::Display for ScriptError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<ScriptError> for Box<EvalAltResult> {
    fn from(error: ScriptError) -> Self {
        Box::new(EvalAltResult::ErrorRuntime(
            Dynamic::from(error),
            Position::NONE,
        ))
    }
}

/// Where a text came from: a file's name below `transforms/`, or an expression.
pub(crate) struct Origin {
    /// `transforms/x.rhai`, or nothing for an expression.
    pub(crate) file: Option<String>,
    pub(crate) text: String,
    /// Where the statement begins whose value is the result.
    pub(crate) result: Position,
}

impl Origin {
    /// The fault of a failed run.
    pub(crate) fn fault(&self, error: &EvalAltResult) -> Fault {
        let (inner, position, depth) = innermost(error);
        let (code, text) = match inner {
            EvalAltResult::ErrorRuntime(value, _) => {
                match value.clone().try_cast::<ScriptError>() {
                    Some(raised) => (raised.code, raised.text),
                    None => (None, value.to_string()),
                }
            }
            EvalAltResult::ErrorTerminated(..) => (
                None,
                "the script takes longer than the limit allows".to_owned(),
            ),
            EvalAltResult::ErrorTooManyOperations(_) => (
                None,
                "the script spends more operations than the limit allows".to_owned(),
            ),
            EvalAltResult::ErrorStackOverflow(_) => (
                None,
                "functions call each other deeper than the limit allows".to_owned(),
            ),
            EvalAltResult::ErrorDataTooLarge(what, _) => (
                None,
                format!("what the script builds is larger than the limit allows ({what})"),
            ),
            EvalAltResult::ErrorVariableNotFound(name, _) => {
                (None, format!("there is no variable '{name}'"))
            }
            EvalAltResult::ErrorIndexingType(kind, _) if kind.contains('=') || kind.starts_with("object") || kind.starts_with("list") => (
                None,
                "what was received does not change in place: copy(…) makes a map or array that \
                 does"
                    .to_owned(),
            ),
            EvalAltResult::ErrorFunctionNotFound(signature, _) => (
                None,
                format!("there is no function {}", friendly(signature)),
            ),
            other => (
                None,
                self.of_text(other, position)
                    .unwrap_or_else(|| friendly(&without_position(other))),
            ),
        };
        let text = shortened(text);
        let mut detail = self.place(position);
        detail.push_str(&text);
        if depth > 0 {
            detail.push_str(&format!(" (within {depth} function call(s))"));
        }
        self.quote(&mut detail, position);
        match code {
            Some(code) => Fault::new(code, text).detail(detail),
            None => Fault::new(
                Code::Transform,
                match &self.file {
                    Some(_) => "the transformation failed",
                    None => "an expression failed",
                },
            )
            .detail(detail),
        }
    }

    /// A member or item is wanted of a text: most likely of a body whose format nobody said.
    fn of_text(&self, error: &EvalAltResult, position: Position) -> Option<String> {
        let what = match error {
            EvalAltResult::ErrorDotExpr(text, _)
                if ["'string'", "'char'"]
                    .iter()
                    .any(|kind| text.contains(kind)) =>
            {
                match text.split('\'').nth(1) {
                    Some(name) => format!("a text has no member '{name}'"),
                    None => "a text has no members".to_owned(),
                }
            }
            EvalAltResult::ErrorIndexingType(kind, _)
                if kind.starts_with("string") || kind.starts_with("char") =>
            {
                "a text has no members".to_owned()
            }
            EvalAltResult::ErrorMismatchDataType(wanted, given, _)
                if wanted == "i64" && given == "string" && self.is_index(position) =>
            {
                "a text has no members by name, nor has a list".to_owned()
            }
            _ => return None,
        };
        let Some(call) = current().ok().filter(|call| {
            self.text.contains("body") && call.format(&call.message) == Format::Text
        }) else {
            return Some(what);
        };
        let known = match call.message.content_type() {
            Some(content_type) => format!("content type {content_type}"),
            None => "no content type".to_owned(),
        };
        Some(format!(
            "{what}: the body is read as text ({known}); the right content type or, in the route, \
             `format: json` (xml, csv, form) gives it parts"
        ))
    }

    /// Whether what stands at that place is an index, in brackets.
    fn is_index(&self, position: Position) -> bool {
        let (Some(line), Some(column)) = (position.line(), position.position()) else {
            return false;
        };
        self.text.lines().nth(line - 1).is_some_and(|line| {
            let before: Vec<char> = line.chars().take(column.saturating_sub(1)).collect();
            before.iter().rev().find(|c| !c.is_whitespace()) == Some(&'[')
        })
    }

    /// The fault of a result that cannot become a body.
    pub(crate) fn unusable(&self, error: &ScriptError) -> Fault {
        let mut detail = self.place(self.result);
        detail.push_str(&error.text);
        self.quote(&mut detail, self.result);
        match error.code {
            Some(code) => Fault::new(code, error.text.clone()).detail(detail),
            None => Fault::new(Code::Transform, "the transformation failed").detail(detail),
        }
    }

    fn place(&self, position: Position) -> String {
        match (&self.file, position.line(), position.position()) {
            (Some(file), Some(line), Some(column)) => format!("{file}:{line}:{column}: "),
            (Some(file), Some(line), None) => format!("{file}:{line}: "),
            (Some(file), ..) => format!("{file}: "),
            (None, _, Some(column)) => format!("expression `{}`, column {column}: ", self.text),
            (None, ..) => format!("expression `{}`: ", self.text),
        }
    }

    fn quote(&self, out: &mut String, position: Position) {
        let (Some(line), Some(_)) = (position.line(), &self.file) else {
            return;
        };
        let Some(source) = self.text.lines().nth(line - 1) else {
            return;
        };
        let column = position.position().unwrap_or(1).max(1);
        let number = line.to_string();
        let shown: String = source.chars().take(200).collect();
        out.push_str(&format!("\n {number} | {shown}"));
        if column <= 200 {
            out.push_str(&format!(
                "\n {} | {}^",
                " ".repeat(number.len()),
                " ".repeat(column - 1)
            ));
        }
    }
}

/// What a message or a script put into an error can be long.
fn shortened(mut text: String) -> String {
    if let Some((at, _)) = text.char_indices().nth(1_000) {
        text.truncate(at);
        text.push('…');
    }
    text
}

/// The error at the bottom of nested calls, where it happened, and how many calls lie above.
fn innermost(error: &EvalAltResult) -> (&EvalAltResult, Position, usize) {
    let mut inner = error;
    let mut position = error.position();
    let mut depth = 0;
    loop {
        inner = match inner {
            EvalAltResult::ErrorInFunctionCall(_, _, next, _) => {
                depth += 1;
                next
            }
            EvalAltResult::ErrorInModule(_, next, _) => next,
            _ => return (inner, position, depth),
        };
        if !inner.position().is_none() {
            position = inner.position();
        }
    }
}

fn without_position(error: &EvalAltResult) -> String {
    let text = error.to_string();
    match text.rfind(" (line ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

/// rhai's names of types in the words of the documentation.
pub(crate) fn friendly(text: &str) -> String {
    text.replace("&str | ImmutableString | String", "text")
        .replace("ImmutableString", "text")
        .replace("alloc::string::String", "text")
        .replace("xbus_transform::script::values::LongNumber", "number")
        .replace("xbus_transform::script::values::JsonObject", "object")
        .replace("xbus_transform::script::values::HeadersHandle", "headers")
        .replace("xbus_transform::script::values::MessageHandle", "message")
        .replace("xbus_transform::script::values::LookupTable", "table")
        .replace("xbus_transform::script::values::Responses", "responses")
        .replace("xbus_transform::script::values::Node", "node")
        .replace("xbus_transform::script::values::List", "list")
        .replace("xbus_transform::script::octets::Octets", "blob")
        .replace("xbus_transform::script::attachments::Part", "attachment")
}

/// The error of a text that does not parse.
pub(crate) fn compile_error(error: &rhai::ParseError) -> CompileError {
    let rhai::ParseError(kind, position) = error;
    CompileError {
        message: kind.to_string(),
        line: position.line().unwrap_or(1),
        column: position.position().unwrap_or(1).max(1),
        help: None,
    }
}
