//! What the fuzz targets (tests/fuzz) need of this crate beside its public parts. No part of its API.

use std::collections::BTreeMap;

use crate::xml::XmlLimits;
use crate::xml::tree::{Document, Id};
use crate::xpath::stream::Source;
use crate::xpath::{Budget, Value, XPath};

/// Nodes that an expression may visit here: enough for small documents, little enough for many runs.
const VISITS: u64 = 200_000;

/// Evaluates `path` over `xml` in each way that there is. Panics where they disagree.
pub fn xpath(path: &str, xml: &str) {
    let namespaces = BTreeMap::from([("p".to_owned(), "urn:p".to_owned())]);
    let Ok(compiled) = XPath::compile(path, &namespaces) else {
        return;
    };
    let limits = XmlLimits {
        nodes: 10_000,
        ..XmlLimits::default()
    };
    let streamed = compiled
        .plain
        .as_ref()
        .map(|plain| plain.first(Source::Text(xml), &limits));
    let document = match Document::parse(xml, &limits) {
        Ok(document) => document,
        Err(error) => {
            // The stream may stop before the mistake; it never finds another.
            if let Some(Err(other)) = streamed {
                assert_eq!(error, other, "{path}");
            }
            return;
        }
    };
    let value = compiled.evaluate(&document, Id::ROOT, &Budget::new(VISITS, None));
    let Some(streamed) = streamed else {
        return;
    };
    let Ok(Value::Nodes(nodes)) = value else {
        assert!(value.is_err(), "a plain path gives nodes: {path}");
        return;
    };
    let first = nodes.first().map(|id| document.string_value(*id));
    assert_eq!(streamed.as_ref().ok(), Some(&first), "{path}");
    if let Some(plain) = &compiled.plain {
        let read = plain.first(Source::Bytes(xml.as_bytes(), None), &limits);
        assert_eq!(read, streamed, "{path}");
    }
}

/// Reads CSV, and what is written of it again.
pub fn csv(text: &str, header: bool, separator: u8) {
    use crate::table::{CsvOptions, CsvWriter, Table};
    if !separator.is_ascii_punctuation() || separator == b'"' {
        return;
    }
    let options = CsvOptions {
        header,
        separator,
        ..CsvOptions::default()
    };
    let Ok(table) = Table::parse(text, &options) else {
        return;
    };
    let bare = CsvOptions {
        header: false,
        ..options
    };
    let mut writer = CsvWriter::new(&bare, usize::MAX);
    let width = table.columns.len();
    if header && width > 0 {
        let names = table.columns.iter().map(|name| name.as_str());
        writer.row(names).expect("in memory");
    }
    for row in 0..table.len() {
        let fields = table.row(row).iter().map(|field| field.as_str());
        writer.row(fields).expect("in memory");
    }
    let written = writer.finish().expect("in memory");
    let again = Table::parse(&written, &CsvOptions { header, ..bare })
        .unwrap_or_else(|error| panic!("{error}: {written:?}"));
    assert_eq!(again.len(), table.len(), "{written:?}");
    for row in 0..table.len() {
        assert_eq!(again.row(row), table.row(row), "{written:?}");
    }
}

/// Reads JSON, and what is written of it again.
pub fn json(text: &str) {
    use crate::json::Json;
    let Ok(json) = Json::parse(text) else {
        return;
    };
    let mut written = String::new();
    json.write(&mut written, usize::MAX).expect("no limit");
    let mut again = String::new();
    Json::parse(&written)
        .unwrap_or_else(|error| panic!("{error}: {written}"))
        .write(&mut again, usize::MAX)
        .expect("no limit");
    assert_eq!(written, again);
}
