//! Elements that scripts build. Content is text, nodes of documents (referred to, not copied) and
//! other built elements. Every element knows its depth and weight, so that no script can build one
//! that the writer or the destructor cannot bear.

use std::sync::{Arc, OnceLock};

use super::{Document, NodeRef, is_xml_char, split_name};

/// One piece of content.
#[derive(Clone)]
pub enum Content {
    /// Characters.
    Text(Arc<str>),
    /// A node of a document.
    Node(NodeRef),
    /// Another built element.
    Element(Arc<Element>),
}

/// A built element.
pub struct Element {
    /// Name as written.
    pub name: String,
    /// Attributes and namespace declarations, as written.
    pub attributes: Vec<(String, String)>,
    /// What stands in it.
    pub content: Vec<Content>,
    depth: usize,
    weight: usize,
    /// The element as a document of its own, once something has read it by XPath.
    pub parsed: OnceLock<Arc<Document>>,
}

impl Element {
    /// A new element. `weight_limit` is in bytes, roughly.
    pub fn new(
        name: &str,
        attributes: Vec<(String, String)>,
        content: Vec<Content>,
        depth_limit: usize,
        weight_limit: usize,
    ) -> Result<Self, String> {
        if split_name(name).is_none() {
            return Err(format!("'{name}' is not a name for an element"));
        }
        for (at, (name, value)) in attributes.iter().enumerate() {
            if split_name(name).is_none() {
                return Err(format!("'{name}' is not a name for an attribute"));
            }
            if attributes[..at].iter().any(|(other, _)| other == name) {
                return Err(format!("the attribute '{name}' is given twice"));
            }
            check(value)?;
        }
        let mut depth = 1;
        let mut weight = 64
            + 2 * name.len()
            + attributes
                .iter()
                .map(|(name, value)| name.len() + value.len() + 4)
                .sum::<usize>();
        for piece in &content {
            weight = weight.saturating_add(match piece {
                Content::Text(text) => {
                    check(text)?;
                    text.len()
                }
                Content::Node(node) => {
                    let document = &node.document;
                    (document.end(node.id.node) - node.id.node) as usize * 32
                }
                Content::Element(element) => {
                    depth = depth.max(element.depth + 1);
                    element.weight
                }
            });
        }
        if depth > depth_limit {
            return Err(format!("elements nested more than {depth_limit} deep"));
        }
        if weight > weight_limit {
            return Err(format!(
                "the element <{name}> would be larger than {weight_limit} bytes"
            ));
        }
        Ok(Self {
            name: name.to_owned(),
            attributes,
            content,
            depth,
            weight,
            parsed: OnceLock::new(),
        })
    }

    /// Bytes, roughly.
    pub fn weight(&self) -> usize {
        self.weight
    }
}

fn check(text: &str) -> Result<(), String> {
    if text.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return Ok(());
    }
    match text.chars().find(|c| !is_xml_char(*c)) {
        None => Ok(()),
        Some(c) => Err(format!(
            "the character U+{:04X} cannot stand in XML",
            c as u32
        )),
    }
}
