//! XPath 1.0 (W3C Recommendation of 16 November 1999): compiled once, evaluated within limits.
//!
//! Absent: the namespace axis, variables, and functions of other specifications.

pub(crate) mod eval;
pub(crate) mod parse;
pub(crate) mod stream;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub(crate) use eval::{Budget, Value};

/// Why a text is not an XPath expression.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct XPathError {
    pub(crate) message: String,
    /// 0-based, in characters of the expression.
    pub(crate) offset: usize,
}

impl std::fmt::Display for XPathError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (at character {})", self.message, self.offset + 1)
    }
}

/// A compiled expression.
#[derive(Debug)]
pub(crate) struct XPath {
    pub(crate) root: parse::Expr,
    /// How many name tests there are; each has a number below it.
    pub(crate) names: usize,
    /// The value is a whole number whatever the document holds.
    pub(crate) whole: bool,
    /// The form that needs no tree, where there is one.
    pub(crate) plain: Option<stream::Plain>,
}

impl XPath {
    /// Compiles `text` with the prefixes that it may use.
    pub(crate) fn compile(
        text: &str,
        namespaces: &BTreeMap<String, String>,
    ) -> Result<Self, XPathError> {
        let mut compiled = parse::parse(text, namespaces)?;
        compiled.plain = stream::Plain::of(&compiled);
        Ok(compiled)
    }
}
