//! The limits within which scripts and documents are handled. Every one has a default that ordinary
//! mappings never meet.

use std::time::Duration;

/// Limits of scripts, documents and what scripts build.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Operations one script may spend (a loop turn is a handful).
    pub operations: u64,
    /// Nested calls of functions that scripts define.
    pub call_depth: usize,
    /// Nesting of expressions in a script's text.
    pub expression_depth: usize,
    /// Elements that an array built by a script may hold, those of nested arrays counted. Lists of
    /// the bus (`csv(…)`, `xpath_all(…)`, `list()`) do not fall under it. At most 10,000 is
    /// honoured: nesting must fit the stack.
    pub array_size: usize,
    /// Entries that a map built by a script may hold, those of nested maps counted. At most 10,000.
    pub map_size: usize,
    /// Bytes of one text, and of all texts within one array or map.
    pub string_size: usize,
    /// Bytes that one list of the bus may weigh, and that a script's result may have.
    pub output_size: usize,
    /// Variables in scope at once.
    pub variables: usize,
    /// Time that one script or expression may take.
    pub deadline: Duration,
    /// Nesting of elements in an XML document, read or built.
    pub xml_depth: usize,
    /// Attributes of one XML element, namespace declarations included.
    pub xml_attributes: usize,
    /// Nodes and attributes of one XML document.
    pub xml_nodes: usize,
    /// Nodes that one XPath may visit.
    pub xpath_visits: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            operations: 10_000_000,
            call_depth: 32,
            expression_depth: 64,
            array_size: 1_000,
            map_size: 1_000,
            string_size: 4 << 20,
            output_size: 64 << 20,
            variables: 128,
            deadline: Duration::from_secs(5),
            xml_depth: 256,
            xml_attributes: 1_000,
            xml_nodes: 2_000_000,
            xpath_visits: 20_000_000,
        }
    }
}

impl From<&Limits> for xbus_xml::XmlLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            depth: limits.xml_depth,
            attributes: limits.xml_attributes,
            nodes: limits.xml_nodes,
        }
    }
}
