//! What of a document is against a schema, in words that hold nothing of its values.

use xsd_schema::validation::ValidationError;

use crate::Document;
use crate::tree::Id;

/// The first thing in a document that its schema does not allow.
#[derive(Clone, Debug, PartialEq)]
pub struct Breach {
    /// The element's number in the tree.
    pub node: u32,
    /// The attribute's number plus one, when it is one of its attributes.
    pub attribute: Option<u32>,
    /// The rule, by its name in XML Schema part 1 or 2.
    pub rule: &'static str,
    /// What is wrong. Names of elements, attributes and types stand in it, values do not.
    pub message: String,
}

impl Breach {
    /// The breach that an error is; nothing for one that is none.
    pub(super) fn of(
        error: &ValidationError,
        document: &Document,
        node: u32,
        attribute: Option<u32>,
    ) -> Option<Self> {
        let id = Id {
            node,
            attr: attribute.unwrap_or(0),
        };
        let value = document.string_value(id);
        if is_broken_base64(error, &value) {
            return None;
        }
        Some(Self {
            node,
            attribute,
            rule: error.constraint,
            message: without_value(&error.message, &value),
        })
    }

    /// The words with line and column.
    pub(super) fn at(&self, document: &Document, place: Option<(usize, usize)>) -> String {
        let mut text = match place {
            Some((line, column)) => format!("line {line}, column {column}: "),
            None => String::new(),
        };
        if let Some(attr) = self.attribute {
            let id = Id {
                node: self.node,
                attr,
            };
            text.push_str(&format!("attribute '{}' of ", short(document.name(id))));
        }
        text.push_str(&format!(
            "element '{}': {} ({})",
            short(document.name(Id::node(self.node))),
            self.message,
            self.rule
        ));
        text
    }
}

/// White space within base64Binary is allowed (part 2 section 3.2.16), as in lines of 76
/// characters; the crate takes it for a fault.
fn is_broken_base64(error: &ValidationError, value: &str) -> bool {
    use base64::Engine;
    error.message.starts_with("Invalid base64Binary value") && {
        let text: Vec<u8> = value
            .bytes()
            .filter(|byte| !byte.is_ascii_whitespace())
            .collect();
        text.len() < value.len() && base64::prelude::BASE64_STANDARD.decode(text).is_ok()
    }
}

/// A message without what the element or attribute holds: only names and the schema's own words
/// stay in quotes.
fn without_value(message: &str, value: &str) -> String {
    let collapsed = value.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    let mut text = message.to_owned();
    let mut values: Vec<&str> = vec![value, value.trim(), &collapsed];
    // Items of lists.
    values.extend(value.split_ascii_whitespace().take(200));
    for value in values {
        let quoted = format!("'{value}'");
        let named = NAMED
            .iter()
            .any(|before| text.contains(&format!("{before}{quoted}")));
        if !named && text.contains(&quoted) {
            text = text.replace(&quoted, "…");
        }
    }
    let mut out = String::with_capacity(text.len());
    for (number, part) in text.split('\'').enumerate() {
        if number % 2 == 0 {
            out.push_str(part);
        } else if NAMED.iter().any(|before| out.ends_with(before)) {
            out.push('\'');
            out.push_str(part);
            out.push('\'');
        } else {
            out.push('…');
        }
    }
    let out = out
        .replace(" value …", " value")
        .replace("value … ", "value ")
        .replace(": …", "");
    short(&out).into_owned()
}

/// What comes before a name or a word of the schema.
const NAMED: [&str; 12] = [
    "pattern ",
    "minimum ",
    "maximum ",
    "than ",
    "Element ",
    "element ",
    "Elements ",
    "Attribute ",
    "attribute ",
    "Type ",
    "type ",
    "constraint ",
];

fn short(text: &str) -> std::borrow::Cow<'_, str> {
    match text.char_indices().nth(300) {
        None => text.into(),
        Some((at, _)) => format!("{}…", &text[..at]).into(),
    }
}
