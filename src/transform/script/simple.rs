//! The commonest expressions, evaluated without the script engine: `header("x")`, `xpath("…")`, and
//! those compared with a text. The result is by definition the engine's: whatever is not plain sailing
//! is left to it.

use std::sync::Arc;

use rhai::{Expr, FnCallExpr, Stmt};
use xbus_core::Message;
use xbus_core::transform::Value;

use super::call;
use super::namespaces::Namespaces;
use crate::xml::XmlLimits;
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
    pub(crate) fn of(statements: &[Stmt], namespaces: &Namespaces) -> Option<Self> {
        let call = match statements {
            // So the optimiser leaves an expression that is a call.
            [Stmt::FnCall(call, _)] => call,
            [Stmt::Expr(expression)] => match &**expression {
                Expr::FnCall(call, _) => call,
                _ => return None,
            },
            _ => return None,
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

    /// Its value; nothing where the engine has to find it.
    pub(crate) fn evaluate(
        &self,
        message: &Message,
        namespaces: &Namespaces,
        limits: &XmlLimits,
    ) -> Option<Value> {
        let of_body;
        let found = match &self.read {
            Read::Header(name) => message.headers.get(name),
            Read::XPath(xpath) => {
                of_body = call::stream(message, xpath, namespaces, limits)?.ok()?;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::Limits;
    use crate::script::Scripts;

    use super::Simple;

    #[test]
    fn the_commonest_expressions_need_no_engine() {
        let scripts = Scripts::new(std::path::PathBuf::new(), Limits::default());
        for (text, simple) in [
            (r#"header("country")"#, true),
            (r#"header("country") == "DE""#, true),
            (r#"xpath("//country")"#, true),
            (r#"xpath("/a/b/@c") != "DE""#, true),
            (r#"xpath("count(//a)") == 1"#, false),
            (r#"header("a") == header("b")"#, false),
            (r#"header("a") + "b""#, false),
        ] {
            let program = scripts.compile(None, text, &BTreeMap::new()).unwrap();
            let found = Simple::of(program.runs.statements(), &program.namespaces);
            assert_eq!(found.is_some(), simple, "{text}");
        }
    }
}
