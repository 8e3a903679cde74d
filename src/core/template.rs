//! Texts with `{{ expression }}` in them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::problem::Place;
use crate::spec::{Build, Scalar};
use crate::transform::{Context, Expression};
use crate::{Code, Fault, Message};

/// A text whose `{{ }}` are evaluated for each message.
#[derive(Clone)]
pub struct Template {
    parts: Vec<Part>,
    /// What it makes stands in one line.
    one_line: bool,
}

/// One piece of a template.
#[derive(Clone)]
pub enum Part {
    /// Text as written.
    Text(String),
    /// What the expression gives; nothing (`()`) is the empty text.
    Expression(Arc<dyn Expression>),
}

impl Template {
    /// A text without expressions.
    pub fn constant(text: impl Into<String>) -> Self {
        Self {
            parts: vec![Part::Text(text.into())],
            one_line: false,
        }
    }

    /// Where the expressions of a text stand: byte ranges between the braces, blanks around them
    /// left out. Braces that came from the environment are text. The error is the byte at which an
    /// expression begins that does not end.
    pub fn expressions(scalar: &Scalar) -> Result<Vec<Range<usize>>, usize> {
        let text = scalar.text.as_str();
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(braces) = text[at..].find("{{").map(|offset| at + offset) {
            if scalar.literal.iter().any(|range| range.contains(&braces)) {
                // One byte on: the second brace may begin an expression of the file's own.
                at = braces + 1;
                continue;
            }
            let start = braces + 2;
            let end = start + end_of_expression(&text[start..]).ok_or(braces)?;
            let inner = &text[start..end];
            let blanks = inner.len() - inner.trim_start().len();
            let from = start + blanks;
            found.push(from..from + inner.trim().len());
            at = end + 2;
        }
        Ok(found)
    }

    /// Compiles what the user wrote; problems are reported through `build`.
    pub fn parse(scalar: &Scalar, place: &Place, build: &Build<'_>) -> Option<Self> {
        let text = scalar.text.as_str();
        let Ok(expressions) = Self::expressions(scalar) else {
            build.problems.error(
                place,
                "bad-expression",
                "'{{' without its '}}'",
                "close the expression with '}}'",
            );
            return None;
        };
        let mut parts = Vec::new();
        let mut good = true;
        let mut at = 0;
        for range in expressions {
            let braces = text[..range.start].rfind("{{").unwrap_or(range.start);
            if braces > at {
                parts.push(Part::Text(text[at..braces].to_owned()));
            }
            match build.expression(&text[range.clone()], place) {
                Some(expression) => parts.push(Part::Expression(expression)),
                None => good = false,
            }
            at = text[range.end..]
                .find("}}")
                .map_or(text.len(), |end| range.end + end + 2);
        }
        if at < text.len() || parts.is_empty() {
            parts.push(Part::Text(text[at..].to_owned()));
        }
        good.then_some(Self {
            parts,
            one_line: false,
        })
    }

    /// The same for the value of a header: a line break in it, or another control character, is a fault.
    pub fn one_line(mut self) -> Self {
        self.one_line = true;
        self
    }

    /// The pieces, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The text, when there is no expression in it.
    pub fn as_constant(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The text for one message; `escape` is applied to what expressions give.
    pub fn render_with(
        &self,
        message: &Arc<Message>,
        context: &Context,
        escape: impl Fn(String) -> Result<String, Fault>,
    ) -> Result<String, Fault> {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Expression(expression) => {
                    let value = expression.evaluate(message, context)?;
                    out.push_str(&escape(value.into_text())?);
                }
            }
        }
        if self.one_line && out.contains(|c: char| c.is_control() && c != '\t') {
            let why = "the value of a header holds a line break or another control character";
            return Err(Fault::new(Code::Transform, why));
        }
        Ok(out)
    }

    /// The text for one message, with what expressions give as it is.
    pub fn render(&self, message: &Arc<Message>, context: &Context) -> Result<String, Fault> {
        self.render_with(message, context, Ok)
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            match part {
                Part::Text(text) => f.write_str(text)?,
                Part::Expression(_) => f.write_str("{{…}}")?,
            }
        }
        Ok(())
    }
}

/// Length of the expression up to its `}}`; braces in string literals and nested maps do not end it.
fn end_of_expression(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut open = 0usize;
    let mut quote = None;
    while at < bytes.len() {
        let byte = bytes[at];
        match quote {
            Some(end) => match byte {
                b'\\' if end != b'`' => at += 1,
                _ if byte == end => quote = None,
                _ => {}
            },
            None => match byte {
                b'"' | b'\'' | b'`' => quote = Some(byte),
                b'{' => open += 1,
                b'}' if open > 0 => open -= 1,
                b'}' if bytes.get(at + 1) == Some(&b'}') => return Some(at),
                _ => {}
            },
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_value_has_one_line() {
        let message = Arc::new(Message::new("a"));
        let context = Context::new("r".into(), message.clone());
        for (text, fits) in [("a\tb", true), ("a\r\nb: c", false), ("a\u{0}", false)] {
            let template = Template::constant(text);
            assert!(template.render(&message, &context).is_ok());
            let made = template.one_line().render(&message, &context);
            assert_eq!(made.is_ok(), fits, "{text:?}");
        }
    }

    #[test]
    fn the_end_of_an_expression_is_not_in_a_string_or_a_map() {
        let end = |text: &str| end_of_expression(text).map(|at| text[..at].to_owned());
        assert_eq!(end(r#" id }} x"#).as_deref(), Some(" id "));
        assert_eq!(end(r#" "}}" }}"#).as_deref(), Some(r#" "}}" "#));
        assert_eq!(
            end(r#" xpath("//a", #{a: "u"}) }}"#).as_deref(),
            Some(r#" xpath("//a", #{a: "u"}) "#)
        );
        assert_eq!(end(" id }"), None);
    }
}
