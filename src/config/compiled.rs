//! Checks of what is compiled: expressions, texts with `{{ }}`, and transformations. A problem
//! stands where the wrong letter is: in the YAML file for expressions, in the script's own file for
//! scripts.

use std::path::{Path, PathBuf};

use xbus_core::Format;
use xbus_core::problem::Place;
use xbus_core::spec::{Node, Raw, Scalar, Type};
use xbus_core::template::Template;
use xbus_core::transform::{CompileError, Source};

use crate::check::{Checker, all};
use crate::words::shown;

/// Extensions of transformations, whether or not this build can run them.
const TRANSFORMS: [&str; 4] = ["rhai", "xsl", "xslt", "j2"];

impl Checker<'_> {
    pub(crate) fn template(&self, node: &Node, scalar: &Scalar) -> bool {
        match Template::expressions(scalar) {
            Ok(ranges) => all(&ranges, |range| {
                self.expression(node, scalar, range.clone())
            }),
            Err(at) => {
                self.problems.error(
                    &self.files.place_within(node, scalar, at),
                    "bad-expression",
                    "'{{' without its '}}'",
                    "close the expression with '}}'",
                );
                false
            }
        }
    }

    pub(crate) fn expression(
        &self,
        node: &Node,
        scalar: &Scalar,
        range: std::ops::Range<usize>,
    ) -> bool {
        let text = &scalar.text[range.clone()];
        if text.trim().is_empty() {
            self.problems.error(
                &self.files.place_within(node, scalar, range.start),
                "bad-expression",
                "the expression is empty",
                "write an expression such as header(\"country\")",
            );
            return false;
        }
        let Err(error) = self.compiler.expression(text, self.scope) else {
            return true;
        };
        let at = range.start + offset(text, &error);
        let message = if scalar.secret || !scalar.literal.is_empty() {
            String::from(
                "the expression does not compile; it holds values of the environment and is not shown",
            )
        } else {
            format!("the expression does not compile: {}", error.message)
        };
        self.problems.error(
            &self.files.place_within(node, scalar, at),
            "bad-expression",
            message,
            error.help.unwrap_or_else(|| {
                String::from("mend the expression; texts in it stand in double quotes")
            }),
        );
        false
    }

    pub(crate) fn transforms(&self, node: &Node) -> bool {
        match &node.raw {
            Raw::List(items) => all(items, |item| match item.raw {
                Raw::List(_) => self.wrong(item, &Type::Transform, "transform"),
                _ => self.transforms(item),
            }),
            Raw::Scalar(scalar) => self.script(node, scalar),
            Raw::Map(_) => {
                self.fields(node, &[crate::tables::CONVERSION], "a transformation")
                    && self.conversion(node)
            }
            Raw::Null => self.wrong(node, &Type::Transform, "transform"),
        }
    }

    fn script(&self, node: &Node, scalar: &Scalar) -> bool {
        if self.files.is_unknown(node) {
            return true;
        }
        let path = PathBuf::from(&scalar.text);
        let extension = path.extension().and_then(|extension| extension.to_str());
        if !extension.is_some_and(|extension| TRANSFORMS.contains(&extension)) {
            self.problems.error(
                &node.place,
                "unknown-transform",
                format!("{} is no transformation", shown(scalar)),
                "name a file that ends in .rhai, or write { convert: { from, to } }",
            );
            return false;
        }
        let base = self.root.join("transforms");
        if !self.exists(&node.place, scalar, &base, Path::new("transforms")) {
            return false;
        }
        let Err(error) = self.compiler.transform(Source::File(&path), self.scope) else {
            return true;
        };
        // What is wrong stands in the script, not where the route names it.
        let place = Place {
            file: Path::new("transforms").join(&path).into(),
            line: error.line,
            column: error.column,
        };
        let unended = error.message.starts_with("Expecting ';'");
        self.problems.error(
            &place,
            "bad-script",
            error.message,
            error.help.unwrap_or_else(|| {
                // The parser sees it only at what follows.
                let unended = error.line > 1 && unended;
                String::from(match unended {
                    true => "end the statement before this place with ';', or mend the script here",
                    false => "mend the script at this place",
                })
            }),
        );
        false
    }

    fn conversion(&self, node: &Node) -> bool {
        let Some((from, to)) = conversion(node) else {
            return true;
        };
        match self
            .compiler
            .transform(Source::Convert { from, to }, self.scope)
        {
            Ok(_) => true,
            Err(error) => {
                self.problems.error(
                    &node.place,
                    "bad-conversion",
                    error.message,
                    error.help.unwrap_or_default(),
                );
                false
            }
        }
    }
}

/// The formats of `{ convert: { from, to } }`.
pub(crate) fn conversion(node: &Node) -> Option<(Option<Format>, Format)> {
    let convert = node.get("convert")?;
    let format = |name: &str| Format::from_name(convert.get(name)?.text()?);
    Some((format("from"), format("to")?))
}

/// The byte of `text` at which a compile error stands.
fn offset(text: &str, error: &CompileError) -> usize {
    let mut start = 0;
    for line in text
        .split_inclusive('\n')
        .take(error.line.saturating_sub(1))
    {
        start += line.len();
    }
    let line = text.get(start..).unwrap_or_default();
    let within = line
        .char_indices()
        .nth(error.column.saturating_sub(1))
        .map_or(line.len(), |(at, _)| at);
    start + within
}
