//! The document of the benchmarks, read by hand with quick-xml: what routing and the script need of it.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use crate::Fallible;

/// The text of the first element at `path` (local names from the root on); reading stops there.
pub fn first(document: &[u8], path: &[&str]) -> Fallible<Option<String>> {
    let mut found = None;
    walk(document, |inside, text| {
        if !at(inside, path) {
            return true;
        }
        found.get_or_insert_with(String::new).push_str(text);
        false
    })?;
    Ok(found)
}

/// What the script is given of an order.
#[derive(Default)]
pub struct Order {
    pub number: String,
    pub customer: String,
    pub country: String,
    pub total: String,
}

impl Order {
    /// Reads to the end of the document: the total stands there.
    pub fn read(document: &[u8]) -> Fallible<Self> {
        let mut order = Self {
            number: number(document)?,
            ..Self::default()
        };
        walk(document, |inside, text| {
            if at(inside, &["order", "customer"]) {
                order.customer.push_str(text);
            } else if at(inside, &["order", "country"]) {
                order.country.push_str(text);
            } else if at(inside, &["order", "total"]) {
                order.total.push_str(text);
            }
            true
        })?;
        Ok(order)
    }
}

/// The attribute `no` of the root.
fn number(document: &[u8]) -> Fallible<String> {
    let mut reader = Reader::from_reader(document);
    loop {
        match reader.read_event()? {
            Event::Start(root) => {
                let attribute = root.try_get_attribute("no")?.ok_or("no number")?;
                let value = attribute.normalized_value(quick_xml::XmlVersion::Implicit1_0)?;
                return Ok(value.into_owned());
            }
            Event::Eof => return Err("no root".into()),
            _ => {}
        }
    }
}

fn at(inside: &[BytesStart<'_>], path: &[&str]) -> bool {
    inside.len() == path.len()
        && inside
            .iter()
            .rev()
            .zip(path.iter().rev())
            .all(|(element, name)| element.local_name().as_ref() == *name)
}

/// Hands each piece of text with the elements around it to `take`, until that says that it has enough.
fn walk(document: &[u8], mut take: impl FnMut(&[BytesStart<'_>], &str) -> bool) -> Fallible<()> {
    let mut reader = Reader::from_reader(document);
    let mut inside: Vec<BytesStart<'_>> = Vec::new();
    loop {
        let go_on = match reader.read_event()? {
            Event::Start(element) => {
                inside.push(element);
                true
            }
            Event::End(_) => {
                inside.pop();
                true
            }
            Event::Text(text) => take(&inside, &text),
            Event::GeneralRef(name) => {
                let character = name.resolve_char_ref()?;
                let mut buffer = [0; 4];
                let text = match (character, &*name) {
                    (Some(character), _) => &*character.encode_utf8(&mut buffer),
                    (None, "amp") => "&",
                    (None, "lt") => "<",
                    (None, "gt") => ">",
                    _ => return Err("an unknown entity".into()),
                };
                take(&inside, text)
            }
            Event::Eof => return Ok(()),
            _ => true,
        };
        if !go_on {
            return Ok(());
        }
    }
}
