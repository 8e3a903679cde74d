//! Whether a document is well-formed XML 1.0, in one pass without building anything, within limits
//! of depth and attributes. A DTD is refused, so that no entity but the predefined ones exists.
//!
//! Beyond what the tokenizer sees, this checks what the productions of XML 1.0 and the constraints
//! of Namespaces in XML ask for: characters, names, declarations, references, one root element.

use quick_xml::events::attributes::Attribute;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::ResolveResult;
use quick_xml::reader::NsReader;

use crate::soap::Name;
use crate::xml;

/// Checks a document; the error says what is wrong with it and at which byte of its text.
pub(crate) fn check(
    body: &[u8],
    charset: Option<&str>,
    max_depth: usize,
    max_attributes: usize,
) -> Result<(), String> {
    let text = xbus_charset::decode(body, charset, true)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    if let Some(at) = text.find(|c| !xml::is_char(c)) {
        return Err(format!("a character that XML does not know at byte {at}"));
    }
    let mut check = Check {
        depth: 0,
        roots: 0,
        events: 0,
        max_depth,
        max_attributes,
    };
    let mut reader = NsReader::from_str(text);
    reader.config_mut().enable_all_checks(true);
    loop {
        let result = reader
            .read_event()
            .map_err(|error| error.to_string())
            .and_then(|event| check.event(&reader, event));
        match result {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(why) => return Err(format!("{why} (at byte {})", reader.buffer_position())),
        }
    }
}

/// The first element of a document and its namespace; nothing when there is none to be read.
pub(crate) fn first_element(body: &[u8], charset: Option<&str>) -> Option<Name> {
    let text = xbus_charset::decode(body, charset, true).ok()?;
    let mut reader = NsReader::from_str(text.strip_prefix('\u{feff}').unwrap_or(&text));
    loop {
        let (resolved, event) = reader.read_resolved_event().ok()?;
        match event {
            Event::Start(start) | Event::Empty(start) => {
                let namespace = match resolved {
                    ResolveResult::Bound(namespace) => namespace.0.to_owned(),
                    ResolveResult::Unbound => String::new(),
                    ResolveResult::Unknown(_) => return None,
                };
                return Some(Name {
                    namespace,
                    local: start.local_name().into_inner().to_owned(),
                });
            }
            Event::Eof | Event::DocType(_) => return None,
            _ => {}
        }
    }
}

struct Check {
    depth: usize,
    roots: usize,
    events: usize,
    max_depth: usize,
    max_attributes: usize,
}

impl Check {
    /// Checks one event; `false` at the good end of the document.
    fn event(&mut self, reader: &NsReader<&[u8]>, event: Event<'_>) -> Result<bool, String> {
        self.events += 1;
        match event {
            Event::Start(start) => {
                self.depth += 1;
                if self.depth > self.max_depth {
                    return Err(format!(
                        "elements are nested more than {} deep",
                        self.max_depth
                    ));
                }
                self.element(reader, &start, self.depth == 1)?;
            }
            Event::Empty(start) => {
                if self.depth >= self.max_depth {
                    return Err(format!(
                        "elements are nested more than {} deep",
                        self.max_depth
                    ));
                }
                self.element(reader, &start, self.depth == 0)?;
            }
            Event::End(end) => {
                let raw: &str = &end;
                if raw.trim_end().len() != end.name().0.len() {
                    return Err("an end tag holds more than its name".into());
                }
                self.depth = self.depth.saturating_sub(1);
            }
            Event::Text(text) => {
                if self.depth == 0 && !text.chars().all(is_space) {
                    return Err("text outside of the root element".into());
                }
                if text.contains("]]>") {
                    return Err("']]>' in text".into());
                }
            }
            Event::GeneralRef(reference) => {
                if self.depth == 0 {
                    return Err("a reference outside of the root element".into());
                }
                check_reference(&reference)?;
            }
            Event::CData(_) if self.depth == 0 => {
                return Err("a CDATA section outside of the root element".into());
            }
            Event::CData(_) => {}
            Event::Comment(text) => {
                if text.contains("--") || text.ends_with('-') {
                    return Err("'--' in a comment".into());
                }
            }
            Event::PI(instruction) => {
                let target = instruction.target();
                if !is_ncname(target) || target.eq_ignore_ascii_case("xml") {
                    return Err("a processing instruction without a proper name".into());
                }
            }
            Event::Decl(declaration) => {
                if self.events != 1 {
                    return Err("an XML declaration that is not at the beginning".into());
                }
                check_declaration(&declaration)?;
            }
            Event::DocType(_) => return Err("a DTD is not allowed".into()),
            Event::Eof => {
                return match (self.depth, self.roots) {
                    (0, 1) => Ok(false),
                    (0, _) => Err("there is no element".into()),
                    _ => Err("it ends inside of an element".into()),
                };
            }
        }
        Ok(true)
    }

    fn element(
        &mut self,
        reader: &NsReader<&[u8]>,
        start: &BytesStart<'_>,
        root: bool,
    ) -> Result<(), String> {
        if root {
            self.roots += 1;
            if self.roots > 1 {
                return Err("there is more than one root element".into());
            }
        }
        check_qname(start.name().0)?;
        if let (ResolveResult::Unknown(prefix), _) = reader.resolver().resolve_element(start.name())
        {
            return Err(format!("the prefix '{prefix}' is not declared"));
        }
        // Attributes need space between them, which the tokenizer does not insist on.
        check_spacing(start.attributes_raw())?;
        // The tokenizer compares each name with all others: count before.
        let mut count = 0;
        for attribute in start.attributes().with_checks(false) {
            attribute.map_err(|error| error.to_string())?;
            count += 1;
            if count > self.max_attributes {
                return Err(format!(
                    "an element has more than {} attributes",
                    self.max_attributes
                ));
            }
        }
        let mut expanded = std::collections::HashSet::new();
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|error| error.to_string())?;
            check_attribute(&attribute)?;
            match reader.resolver().resolve_attribute(attribute.key) {
                (ResolveResult::Unknown(prefix), _) => {
                    return Err(format!("the prefix '{prefix}' is not declared"));
                }
                (ResolveResult::Bound(namespace), local) => {
                    if !expanded.insert((namespace.0.to_owned(), local.into_inner().to_owned())) {
                        return Err("an element has the same attribute twice".into());
                    }
                }
                (ResolveResult::Unbound, _) => {}
            }
        }
        Ok(())
    }
}

fn check_attribute(attribute: &Attribute<'_>) -> Result<(), String> {
    check_qname(attribute.key.0)?;
    let value: &str = &attribute.value;
    if value.contains('<') {
        return Err("'<' in an attribute".into());
    }
    if attribute.key.0.starts_with("xmlns:") && value.is_empty() {
        return Err("a prefix is declared for no namespace".into());
    }
    let mut rest = value;
    while let Some((_, after)) = rest.split_once('&') {
        let (name, after) = after
            .split_once(';')
            .ok_or("'&' that begins no reference in an attribute")?;
        check_reference(name)?;
        rest = after;
    }
    Ok(())
}

/// Between two attributes stands white space (XML 1.0 production 40).
fn check_spacing(raw: &str) -> Result<(), String> {
    let mut quote = None;
    let mut closed = false;
    for c in raw.chars() {
        match quote {
            Some(end) if c == end => (quote, closed) = (None, true),
            Some(_) => {}
            None => {
                if closed && !is_space(c) && c != '/' {
                    return Err("no space between two attributes".into());
                }
                closed = false;
                if matches!(c, '"' | '\'') {
                    quote = Some(c);
                }
            }
        }
    }
    Ok(())
}

/// A character reference to a character of XML, or one of the five predefined entities.
fn check_reference(name: &str) -> Result<(), String> {
    let number = match name.strip_prefix('#') {
        None => {
            return if matches!(name, "lt" | "gt" | "amp" | "apos" | "quot") {
                Ok(())
            } else {
                Err("a reference to an entity that is not declared".into())
            };
        }
        Some(number) => number,
    };
    let (digits, radix) = match number.strip_prefix('x') {
        Some(digits) => (digits, 16),
        None => (number, 10),
    };
    let good = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    let character = u32::from_str_radix(digits, radix)
        .ok()
        .and_then(char::from_u32);
    match character {
        Some(c) if good && xml::is_char(c) => Ok(()),
        _ => Err("a reference to a character that XML does not know".into()),
    }
}

/// `version`, then `encoding`, then `standalone` (XML 1.0 productions 23 to 32 and 80).
fn check_declaration(raw: &str) -> Result<(), String> {
    let wrong = || "the XML declaration is not right".to_owned();
    let rest = raw.strip_prefix("xml").ok_or_else(wrong)?;
    check_spacing(rest)?;
    let mut expected = ["version", "encoding", "standalone"].iter();
    let mut rest = rest;
    let mut first = true;
    while !rest.trim_matches(is_space).is_empty() {
        if !rest.starts_with(is_space) {
            return Err(wrong());
        }
        let (name, after) = rest.split_once('=').ok_or_else(wrong)?;
        let name = name.trim_matches(is_space);
        let after = after.trim_start_matches(is_space);
        let quote = after
            .chars()
            .next()
            .filter(|c| matches!(c, '"' | '\''))
            .ok_or_else(wrong)?;
        let (value, after) = after[1..].split_once(quote).ok_or_else(wrong)?;
        if !expected.any(|known| *known == name) || (first && name != "version") {
            return Err(wrong());
        }
        first = false;
        let good = match name {
            "version" => value.strip_prefix("1.").is_some_and(|minor| {
                !minor.is_empty() && minor.chars().all(|c| c.is_ascii_digit())
            }),
            "encoding" => {
                value.starts_with(|c: char| c.is_ascii_alphabetic())
                    && value
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
            }
            _ => matches!(value, "yes" | "no"),
        };
        if !good {
            return Err(wrong());
        }
        rest = after;
    }
    if first { Err(wrong()) } else { Ok(()) }
}

fn check_qname(name: &str) -> Result<(), String> {
    let good = match name.split_once(':') {
        Some((prefix, local)) => is_ncname(prefix) && is_ncname(local),
        None => is_ncname(name),
    };
    if good {
        Ok(())
    } else {
        Err("a name that XML does not allow".into())
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

/// A name without a colon (Namespaces in XML 1.0, production 4).
fn is_ncname(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(is_name_start) && chars.all(is_name_char)
}

/// XML 1.0 (fifth edition) production 4, without the colon.
fn is_name_start(c: char) -> bool {
    matches!(c, 'A'..='Z' | 'a'..='z' | '_' | '\u{c0}'..='\u{d6}' | '\u{d8}'..='\u{f6}'
        | '\u{f8}'..='\u{2ff}' | '\u{370}'..='\u{37d}' | '\u{37f}'..='\u{1fff}'
        | '\u{200c}' | '\u{200d}' | '\u{2070}'..='\u{218f}' | '\u{2c00}'..='\u{2fef}'
        | '\u{3001}'..='\u{d7ff}' | '\u{f900}'..='\u{fdcf}' | '\u{fdf0}'..='\u{fffd}'
        | '\u{10000}'..='\u{effff}')
}

/// XML 1.0 (fifth edition) production 4a, without the colon.
fn is_name_char(c: char) -> bool {
    is_name_start(c)
        || matches!(c, '-' | '.' | '0'..='9' | '\u{b7}' | '\u{300}'..='\u{36f}' | '\u{203f}' | '\u{2040}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(text: &str) -> Result<(), String> {
        check(text.as_bytes(), None, 256, 1000)
    }

    #[test]
    fn well_formed_documents_pass() {
        for good in [
            "<a/>",
            "\u{feff}<?xml version=\"1.0\" encoding='UTF-8' standalone='yes' ?>\n<!-- x --><a/><?p q?>\n",
            "<a x='1' y=\"&lt;&#xe9;\" xml:lang='de'><![CDATA[<>&]]>1 &amp; 2 &#9;</a >",
            "<n:a xmlns:n='urn:x'><n:b n:c='1' c='2'/></n:a>",
            "<é.1-·>x</é.1-·>",
        ] {
            assert_eq!(verdict(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_is_not_well_formed_is_refused() {
        for bad in [
            "",
            " ",
            "text",
            "<a>",
            "<a></b>",
            "<a/><b/>",
            "<a/>x",
            "x<a/>",
            "<a>&undefined;</a>",
            "<a>&#0;</a>",
            "<a>&#x110000;</a>",
            "<a>&#X41;</a>",
            "<a>1 & 2</a>",
            "<a>]]></a>",
            "<a x='<'/>",
            "<a x='&'/>",
            "<a x='&bad;'/>",
            "<a x='1' x='2'/>",
            "<a xmlns:p='u' xmlns:q='u' p:x='1' q:x='2'/>",
            "<a x='1'y='2'/>",
            "<a x=1/>",
            "<a x/>",
            "<p:a/>",
            "<a p:x='1'/>",
            "<a xmlns:p=''/>",
            "<1a/>",
            "<a:b:c xmlns:a='u'/>",
            "<a><!-- -- --></a>",
            "<a><!----->\u{1}</a>",
            "<a>\u{1}</a>",
            "<a>\u{fffe}</a>",
            "<?xml version='2.0'?><a/>",
            "<?xml encoding='UTF-8'?><a/>",
            "<?xml version='1.0' standalone='maybe'?><a/>",
            "<?xml version='1.0' standalone='yes' encoding='UTF-8'?><a/>",
            "<?xml version='1.0'encoding='UTF-8'?><a/>",
            " <?xml version='1.0'?><a/>",
            "<a><?xml version='1.0'?></a>",
            "<a><?XmL x?></a>",
            "<!DOCTYPE a><a/>",
            "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
            "<a><![CDATA[</a>",
            "<![CDATA[x]]><a/>",
            "<a></a x>",
            "<a",
        ] {
            assert!(verdict(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn depth_and_attributes_are_limited() {
        let nested = |depth: usize| "<a>".repeat(depth) + &"</a>".repeat(depth);
        assert_eq!(verdict(&nested(256)), Ok(()));
        assert!(verdict(&nested(257)).is_err());
        let wide = |count: usize| {
            let attributes: String = (0..count).map(|at| format!(" a{at}=''")).collect();
            format!("<a{attributes}/>")
        };
        assert_eq!(verdict(&wide(1000)), Ok(()));
        assert!(
            verdict(&wide(1001))
                .unwrap_err()
                .contains("1000 attributes")
        );
    }

    #[test]
    fn a_million_attributes_or_levels_are_refused_at_once() {
        let attributes: String = (0..1_000_000).map(|at| format!(" a{at}=''")).collect();
        let began = std::time::Instant::now();
        assert!(verdict(&format!("<a{attributes}/>")).is_err());
        assert!(verdict(&"<a>".repeat(1_000_000)).is_err());
        assert!(began.elapsed() < std::time::Duration::from_secs(5));
    }

    #[test]
    fn the_first_element_is_found_with_its_namespace() {
        let found = |text: &str| first_element(text.as_bytes(), None).map(|name| name.to_string());
        assert_eq!(
            found("<?xml version='1.0'?><!-- x --><n:a xmlns:n='urn:x'>"),
            Some("{urn:x}a".into())
        );
        assert_eq!(found("<a>"), Some("a".into()));
        assert_eq!(found("{\"a\": 1}"), None);
    }
}
