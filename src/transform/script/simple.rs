//! The commonest expressions, evaluated without the script engine: `header("x")`, `xpath("…")`, and
//! those compared with a text. The result is by definition the engine's: whatever is not plain sailing
//! is left to it.

use std::sync::Arc;

use rhai::{AST, Expr, FnCallExpr, Stmt};
use xbus_core::Message;
use xbus_core::transform::Value;

use super::call::Call;
use super::namespaces::Namespaces;
use crate::xpath::XPath;

/// Such an expression.
pub(crate) struct Simple {
    read: Read,
    /// The text that it is compared with, and whether it is to be another one.
    compared: Option<(String, bool)>,
}

/// What is read of the message.
enum Read {
    Header(String),
    XPath(Arc<XPath>),
}

impl Simple {
    /// The simple form of an expression, where it has one.
    pub(crate) fn of(ast: &AST, namespaces: &Namespaces) -> Option<Self> {
        let [Stmt::Expr(expression)] = ast.statements() else {
            return None;
        };
        let Expr::FnCall(call, _) = &**expression else {
            return None;
        };
        let other = match call.name.as_str() {
            "==" => false,
            "!=" => true,
            _ => {
                return Some(Self {
                    read: Read::of(call, namespaces)?,
                    compared: None,
                });
            }
        };
        let [Expr::FnCall(read, _), Expr::StringConstant(text, _)] = &call.args[..] else {
            return None;
        };
        Some(Self {
            read: Read::of(read, namespaces)?,
            compared: Some((text.to_string(), other)),
        })
    }

    /// Whether a call has to be current for it to be evaluated.
    pub(crate) fn needs_call(&self) -> bool {
        matches!(self.read, Read::XPath(_))
    }

    /// Its value; nothing where the engine has to find it.
    pub(crate) fn evaluate(&self, message: &Message, call: Option<&Call>) -> Option<Value> {
        let of_body;
        let found = match &self.read {
            Read::Header(name) => message.headers.get(name),
            Read::XPath(xpath) => {
                of_body = call?.stream(message, xpath)?.ok()?;
                of_body.as_deref()
            }
        };
        Some(match (&self.compared, found) {
            (Some((text, other)), found) => Value::Bool((found == Some(text)) != *other),
            (None, Some(text)) => Value::Text(text.to_owned()),
            (None, None) => Value::Unit,
        })
    }
}

impl Read {
    fn of(call: &FnCallExpr, namespaces: &Namespaces) -> Option<Self> {
        let [Expr::StringConstant(text, _)] = &call.args[..] else {
            return None;
        };
        if !call.namespace.is_empty() {
            return None;
        }
        match call.name.as_str() {
            "header" => Some(Read::Header(text.to_string())),
            "xpath" => {
                let xpath = namespaces.xpath(text).ok()?;
                xpath.plain.is_some().then_some(Read::XPath(xpath))
            }
            _ => None,
        }
    }
}
