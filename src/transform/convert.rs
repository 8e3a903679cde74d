//! `convert: { from, to }`: plain changes of format by fixed conventions (docs/transformations.md).
//!
//! The common ground is JSON. XML maps to it so: the root element is the one member; an element
//! with attributes or children is an object, attributes as `@name`, own text as `#text`, repeated
//! children as a list; any other element is its text. Prefixes and declarations are dropped on the
//! way to JSON: who needs namespaces writes a script.

use std::sync::Arc;

use rhai::ImmutableString;
use xbus_core::{Body, Code, Context, Fault, Format, Message, Transform, long};

use crate::json::{Json, Object, write_float};
use crate::limits::Limits;
use crate::table::{CsvOptions, CsvWriter, Table};
use crate::xml;
use crate::xml::tree::{Id, Kind};
use crate::xml::{Document, XmlLimits, split_name};

/// Appends `text` in the coding of `application/x-www-form-urlencoded` (WHATWG URL section 5.2).
pub(crate) fn form_escape(out: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'*' | b'-' | b'.' | b'_' => {
                out.push(byte as char);
            }
            b' ' => out.push('+'),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
}

/// A compiled `convert`.
pub(crate) struct Convert {
    pub(crate) from: Option<Format>,
    pub(crate) to: Format,
    pub(crate) limits: Limits,
}

/// Whether there is a convention for that change.
pub(crate) fn possible(from: Option<Format>, to: Format) -> bool {
    let structured = |f: Format| !matches!(f, Format::Text | Format::Bytes);
    match from {
        None => true,
        Some(from) => matches!(to, Format::Text | Format::Bytes) || structured(from),
    }
}

impl Transform for Convert {
    fn apply(&self, message: &Arc<Message>, context: &Context) -> Result<Message, Fault> {
        let size = message.body.bytes().len();
        long::over(size, long::PARSED, || self.convert(message, context))
    }
}

impl Convert {
    fn convert(&self, message: &Arc<Message>, context: &Context) -> Result<Message, Fault> {
        let from = self.from.or_else(|| message.format());
        let Some(from) = from.filter(|from| possible(Some(*from), self.to)) else {
            return Err(Fault::new(
                Code::Unsupported,
                format!(
                    "a body of format {} does not become {}",
                    from.map_or("unknown", Format::name),
                    self.to.name()
                ),
            ));
        };
        let unreadable = |what: String| {
            let same =
                |other: &Message| other.body.bytes().as_ptr() == message.body.bytes().as_ptr();
            let code = if context.responses.iter().any(|(_, m)| same(m)) {
                Code::Destination
            } else if context.responses.is_empty() || same(&context.received) {
                Code::Client
            } else {
                Code::Transform
            };
            Fault::new(code, format!("the message cannot be read: {what}"))
        };
        let failed = |what: String| {
            Fault::new(Code::Transform, "the transformation failed").detail(format!(
                "convert from {} to {}: {what}",
                from.name(),
                self.to.name()
            ))
        };
        if self.to == Format::Bytes {
            let mut made = Message::clone(message);
            made.format = Some(Format::Bytes);
            return Ok(made);
        }
        let text = xbus_charset::text(message, from == Format::Xml)
            .map_err(|error| unreadable(error.into()))?;
        let out = if self.to == Format::Text {
            text.into_owned()
        } else {
            let label = message.content_type().and_then(xbus_charset::label);
            let json = read(&text, label, from, &self.limits).map_err(unreadable)?;
            write(&json, self.to, &self.limits).map_err(failed)?
        };
        let mut made = message.with_body(Body::from(out));
        made.headers.set("content-type", self.to.media_type());
        Ok(made)
    }
}

fn read(text: &str, label: Option<&str>, from: Format, limits: &Limits) -> Result<Json, String> {
    match from {
        Format::Json => Json::parse(text),
        Format::Csv => {
            let table = Table::parse(text, &CsvOptions::default())?;
            Ok(Json::Array(Arc::new(
                (0..table.len())
                    .map(|at| {
                        object(
                            table
                                .columns
                                .iter()
                                .cloned()
                                .zip(table.row(at).iter().cloned().map(Json::Text))
                                .collect(),
                        )
                    })
                    .collect(),
            )))
        }
        Format::Form => {
            let mut members: Vec<(ImmutableString, Json)> = Vec::new();
            for pair in xbus_charset::form_pairs(text, label).map_err(String::from)? {
                let (name, value) = pair.map_err(String::from)?;
                if members.len() >= 1_000 {
                    return Err("more than 1,000 fields".into());
                }
                add(&mut members, name.into(), Json::Text(value.into()));
            }
            Ok(object(members))
        }
        Format::Xml => {
            let document =
                Document::parse(text, &XmlLimits::from(limits)).map_err(|e| e.to_string())?;
            let Some(root) = document.root_element() else {
                return Err("there is no root element".into());
            };
            let name = document.local_name(Id::node(root)).into();
            Ok(object(vec![(name, from_element(&document, root))]))
        }
        Format::Text | Format::Bytes => Err("text has no parts".into()),
    }
}

fn object(members: Vec<(ImmutableString, Json)>) -> Json {
    Json::Object(Arc::new(Object::new(members)))
}

/// Adds a member; a name that comes again makes a list.
fn add(members: &mut Vec<(ImmutableString, Json)>, name: ImmutableString, value: Json) {
    // Repeated elements mostly follow each other.
    match members.iter_mut().rev().find(|(known, _)| *known == name) {
        None => members.push((name, value)),
        Some((_, Json::Array(items))) => Arc::make_mut(items).push(value),
        Some((_, before)) => *before = Json::Array(Arc::new(vec![before.clone(), value])),
    }
}

/// Recursion is bounded by the depth of the document.
fn from_element(document: &Document, node: u32) -> Json {
    let mut members: Vec<(ImmutableString, Json)> = document
        .attributes(node)
        .map(|attr| {
            let id = Id {
                node,
                attr: attr + 1,
            };
            let name = format!("@{}", document.local_name(id));
            let value = document.characters(id).unwrap_or_default();
            (name.into(), Json::Text(value.into()))
        })
        .collect();
    let mut text = String::new();
    let mut names: ahash::AHashMap<&str, usize> = ahash::AHashMap::new();
    for child in document.children(node) {
        let id = Id::node(child);
        match document.node_kind(child) {
            Kind::Text => text.push_str(document.characters(id).unwrap_or_default()),
            Kind::Element => {
                let name = document.local_name(id);
                let value = from_element(document, child);
                match names.get(name) {
                    None => {
                        names.insert(name, members.len());
                        members.push((name.into(), value));
                    }
                    Some(at) => match &mut members[*at].1 {
                        Json::Array(items) => Arc::make_mut(items).push(value),
                        before => *before = Json::Array(Arc::new(vec![before.clone(), value])),
                    },
                }
            }
            _ => {}
        }
    }
    if members.is_empty() {
        return Json::Text(text.into());
    }
    if !text.trim().is_empty() {
        members.push(("#text".into(), Json::Text(text.into())));
    }
    object(members)
}

fn write(json: &Json, to: Format, limits: &Limits) -> Result<String, String> {
    let limit = limits.output_size;
    let mut out = String::new();
    match to {
        Format::Json => json.write(&mut out, limit)?,
        Format::Csv => {
            // `{"rows": [ … ]}` is the list within, however deep the wrapping is.
            let mut rows = json;
            while let Json::Object(object) = rows {
                match object.members() {
                    [(_, inner @ (Json::Object(_) | Json::Array(_)))] => rows = inner,
                    _ => break,
                }
            }
            let single = [rows.clone()];
            let rows: &[Json] = match rows {
                Json::Array(items) => items,
                _ => &single,
            };
            return csv_rows(rows, limit);
        }
        Format::Form => {
            let Json::Object(object) = json else {
                return Err("a form is made of an object".into());
            };
            for (name, value) in object.members() {
                let single = [value.clone()];
                let values: &[Json] = match value {
                    Json::Array(items) => items,
                    _ => &single,
                };
                for value in values {
                    if !out.is_empty() {
                        out.push('&');
                    }
                    form_escape(&mut out, name);
                    out.push('=');
                    form_escape(&mut out, &scalar(name, value)?);
                }
            }
        }
        Format::Xml => {
            out.push_str("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
            match json {
                Json::Object(object)
                    if object.members().len() == 1 && is_single(&object.members()[0].1) =>
                {
                    let (name, value) = &object.members()[0];
                    to_element(&mut out, name, value, limits, 1)?;
                }
                Json::Array(items) => {
                    out.push_str("<items>");
                    for item in items.iter() {
                        to_element(&mut out, "item", item, limits, 2)?;
                    }
                    out.push_str("</items>");
                }
                other => to_element(&mut out, "document", other, limits, 1)?,
            }
        }
        Format::Text | Format::Bytes => return Err("nothing to do".into()),
    }
    if out.len() > limit {
        return Err(format!("the result would be larger than {limit} bytes"));
    }
    Ok(out)
}

fn is_single(json: &Json) -> bool {
    !matches!(json, Json::Array(_))
}

fn scalar(name: &str, value: &Json) -> Result<String, String> {
    Ok(match value {
        Json::Null => String::new(),
        Json::Bool(value) => value.to_string(),
        Json::Int(value) => value.to_string(),
        Json::Float(value) => {
            let mut out = String::new();
            write_float(&mut out, *value)?;
            out
        }
        Json::Number(number) => number.text().to_owned(),
        Json::Text(text) => text.to_string(),
        Json::Array(_) | Json::Object(_) => {
            return Err(format!("'{name}' holds more than one value"));
        }
    })
}

fn csv_rows(rows: &[Json], limit: usize) -> Result<String, String> {
    let mut writer = CsvWriter::new(&CsvOptions::default(), limit);
    // Columns in the order in which they first occur.
    let mut columns: Vec<&str> = Vec::new();
    let mut known = ahash::AHashSet::new();
    for row in rows {
        if let Json::Object(object) = row {
            for (name, _) in object.members() {
                if known.insert(name.as_str()) {
                    columns.push(name);
                }
            }
        }
    }
    if columns.len() > 10_000 {
        return Err("more than 10,000 columns".into());
    }
    if !columns.is_empty() {
        writer.row(columns.iter().copied())?;
    }
    for row in rows {
        let fields: Vec<String> = match row {
            Json::Object(object) => columns
                .iter()
                .map(|column| match object.get(column) {
                    Some(value) => scalar(column, value),
                    None => Ok(String::new()),
                })
                .collect::<Result<_, _>>()?,
            Json::Array(items) => items
                .iter()
                .map(|value| scalar("a field", value))
                .collect::<Result<_, _>>()?,
            _ => return Err("rows are objects or lists".into()),
        };
        writer.row(fields.iter().map(String::as_str))?;
    }
    writer.finish()
}

/// Recursion is bounded by the nesting of JSON and by `xml_depth`.
fn to_element(
    out: &mut String,
    name: &str,
    value: &Json,
    limits: &Limits,
    depth: usize,
) -> Result<(), String> {
    if depth > limits.xml_depth {
        return Err(format!(
            "elements nested more than {} deep",
            limits.xml_depth
        ));
    }
    if split_name(name).is_none_or(|(prefix, _)| !prefix.is_empty()) {
        return Err(format!("'{name}' is not a name for an element"));
    }
    if out.len() > limits.output_size {
        return Err(format!(
            "the XML would be larger than {} bytes",
            limits.output_size
        ));
    }
    let check = |text: &str| match text.chars().find(|c| !xml::is_xml_char(*c)) {
        Some(c) => Err(format!(
            "the character U+{:04X} cannot stand in XML",
            c as u32
        )),
        None => Ok(()),
    };
    match value {
        Json::Array(items) => {
            for item in items.iter() {
                if matches!(item, Json::Array(_)) {
                    return Err(format!("'{name}' holds a list of lists"));
                }
                to_element(out, name, item, limits, depth)?;
            }
            return Ok(());
        }
        Json::Object(object) => {
            out.push('<');
            out.push_str(name);
            for (member, value) in object.members() {
                if let Some(attribute) = member.strip_prefix('@') {
                    if !xml::is_ncname(attribute) || attribute == "xmlns" {
                        return Err(format!("'{attribute}' is not a name for an attribute"));
                    }
                    let text = scalar(attribute, value)?;
                    check(&text)?;
                    out.push(' ');
                    out.push_str(attribute);
                    out.push_str("=\"");
                    xml::write::escape(out, &text, true);
                    out.push('"');
                }
            }
            out.push('>');
            for (member, value) in object.members() {
                if member.as_str() == "#text" {
                    let text = scalar(member, value)?;
                    check(&text)?;
                    xml::write::escape(out, &text, false);
                } else if !member.starts_with('@') {
                    to_element(out, member, value, limits, depth + 1)?;
                }
            }
        }
        other => {
            let text = scalar(name, other)?;
            check(&text)?;
            out.push('<');
            out.push_str(name);
            if text.is_empty() {
                out.push_str("/>");
                return Ok(());
            }
            out.push('>');
            xml::write::escape(out, &text, false);
        }
    }
    out.push_str("</");
    out.push_str(name);
    out.push('>');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(from: &str, to: &str, body: &str) -> Result<String, Fault> {
        let message = Arc::new(Message::new(body.to_owned()));
        let context = Context::new("r".into(), message.clone());
        let convert = Convert {
            from: Format::from_name(from),
            to: Format::from_name(to).unwrap(),
            limits: Limits::default(),
        };
        let made = convert.apply(&message, &context)?;
        assert_eq!(made.content_type(), Some(convert.to.media_type()));
        Ok(String::from_utf8(made.body.bytes().to_vec()).unwrap())
    }

    #[test]
    fn each_format_becomes_the_others() {
        let declaration = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
        for (from, to, body, expected) in [
            (
                "csv",
                "json",
                "a,b\n1,x\n2,\"y,z\"\n",
                r#"[{"a":"1","b":"x"},{"a":"2","b":"y,z"}]"#.to_owned(),
            ),
            (
                "json",
                "csv",
                r#"[{"b":1,"a":"x"},{"a":null,"c":true}]"#,
                "b,a,c\r\n1,x,\r\n,,true\r\n".to_owned(),
            ),
            (
                "json",
                "csv",
                r#"{"rows":[[1,2],[3,4]]}"#,
                "1,2\r\n3,4\r\n".to_owned(),
            ),
            (
                "csv",
                "xml",
                "a,b\n1,<\n",
                format!("{declaration}<items><item><a>1</a><b>&lt;</b></item></items>"),
            ),
            (
                "xml",
                "json",
                "<o:a xmlns:o='u' n='1'>t<b>x</b><b/><c d='2'/></o:a>",
                r##"{"a":{"@n":"1","b":["x",""],"c":{"@d":"2"},"#text":"t"}}"##.to_owned(),
            ),
            (
                "json",
                "xml",
                r##"{"a":{"@n":1,"b":["x",""],"#text":"t"}}"##,
                format!("{declaration}<a n=\"1\"><b>x</b><b/>t</a>"),
            ),
            (
                "json",
                "xml",
                "[1,2]",
                format!("{declaration}<items><item>1</item><item>2</item></items>"),
            ),
            (
                "xml",
                "csv",
                "<r><row><a>1</a></row><row><a>2</a></row></r>",
                "a\r\n1\r\n2\r\n".to_owned(),
            ),
            (
                "form",
                "json",
                "a=1+2&b=%C3%A9&a=3",
                r#"{"a":["1 2","3"],"b":"é"}"#.to_owned(),
            ),
            (
                "json",
                "form",
                r#"{"a":["1 2",3],"b":"é&"}"#,
                "a=1+2&a=3&b=%C3%A9%26".to_owned(),
            ),
            ("json", "text", "{ }", "{ }".to_owned()),
            (
                "json",
                "csv",
                r#"[{"a":12345678901234567890123,"b":1.10}]"#,
                "a,b\r\n12345678901234567890123,1.10\r\n".to_owned(),
            ),
            (
                "json",
                "json",
                r#"[9223372036854775808,0.1234567890123456789]"#,
                "[9223372036854775808,0.1234567890123456789]".to_owned(),
            ),
        ] {
            assert_eq!(
                convert(from, to, body).unwrap(),
                expected,
                "{from} to {to}: {body}"
            );
        }
    }

    #[test]
    fn forms_are_read_in_their_charset() {
        let convert = |content_type: &str, body: &str| {
            let mut message = Message::new(body.to_owned());
            message.headers.set("content-type", content_type);
            let message = Arc::new(message);
            let context = Context::new("r".into(), message.clone());
            let convert = Convert {
                from: None,
                to: Format::Json,
                limits: Limits::default(),
            };
            let made = convert
                .apply(&message, &context)
                .map_err(|fault| fault.code)?;
            Ok(String::from_utf8(made.body.bytes().to_vec()).unwrap())
        };
        let plain = "application/x-www-form-urlencoded";
        let latin = "application/x-www-form-urlencoded; charset=iso-8859-1";
        assert_eq!(convert(latin, "a=%E9"), Ok(r#"{"a":"é"}"#.to_owned()));
        assert_eq!(
            convert(plain, "_charset_=latin1&a=%E9"),
            Ok(r#"{"_charset_":"UTF-8","a":"é"}"#.to_owned())
        );
        assert_eq!(convert(plain, "a=%E9"), Err(Code::Client));
    }

    #[test]
    fn what_has_no_form_is_a_fault() {
        for (from, to, body, code) in [
            ("json", "csv", r#"[{"a":{"b":1}}]"#, Code::Transform),
            ("json", "xml", r#"{"a b":1}"#, Code::Transform),
            ("json", "xml", "{\"a\":\"\\u0001\"}", Code::Transform),
            ("json", "form", "[1]", Code::Transform),
            ("json", "csv", "{", Code::Client),
            ("csv", "json", "a,b\n1,\"x", Code::Client),
            ("xml", "json", "<a>", Code::Client),
            ("none", "json", "x", Code::Unsupported),
        ] {
            assert_eq!(
                convert(from, to, body).unwrap_err().code,
                code,
                "{from} to {to}: {body}"
            );
        }
        assert!(!possible(Some(Format::Text), Format::Json));
    }
}
