//! Whether a document is well-formed XML 1.0, in one pass without building anything, within limits
//! of depth and attributes, and what its first element is.
//!
//! Absent: rules of its own. What is well-formed for a receiver is what scripts can parse: both ask
//! the reader of xbus-xml.

use std::ops::ControlFlow;

use quick_xml::events::Event;
use quick_xml::name::ResolveResult;
use xbus_core::{Format, Message, Rules};
use xbus_xml::XmlLimits;
use xbus_xml::reader::{self, Sink, Start};

use crate::soap::Name;

/// Checks a document, and with `soap` the parts of an envelope too; the error says what is wrong with
/// it, and where.
pub(crate) fn check(
    body: &[u8],
    charset: Option<&str>,
    max_depth: usize,
    max_attributes: usize,
    soap: bool,
) -> Result<(), String> {
    let wrong = |why: String| format!("not well-formed XML: {why}");
    let text =
        xbus_charset::decode(body, charset, true).map_err(|error| wrong(error.to_string()))?;
    let limits = XmlLimits {
        depth: max_depth,
        attributes: max_attributes,
        // Nothing is kept: the size of the body is limit enough.
        nodes: usize::MAX,
    };
    let mut parts = Parts::default();
    match reader::read(&text, &limits, &mut parts) {
        Ok(_) if soap => parts.check(),
        Ok(_) => Ok(()),
        Err(error) => Err(wrong(format!(
            "{} (line {}, column {})",
            error.message, error.line, error.column
        ))),
    }
}

/// Whole answers: what a caller gets is well-formed to its end, where it is XML.
pub(crate) struct WholeAnswers {
    /// Every answer is, and an envelope or what stands in one.
    pub(crate) soap: bool,
}

impl Rules for WholeAnswers {
    fn verdict(&self) -> &'static str {
        "cannot be passed on"
    }

    fn check(&self, message: &Message) -> Result<(), String> {
        let body = message.body.bytes();
        if body.is_empty() || !(self.soap || message.format() == Some(Format::Xml)) {
            return Ok(());
        }
        let label = message.content_type().and_then(xbus_charset::label);
        let limits = XmlLimits::default();
        let checked = check(body, label, limits.depth, limits.attributes, self.soap);
        checked.map_err(|why| format!("it is {why}"))
    }
}

/// Counts the parts of an envelope, and keeps nothing.
#[derive(Default)]
struct Parts {
    depth: usize,
    /// The namespace of the root, where it is an Envelope.
    namespace: Option<u32>,
    bodies: usize,
    late_header: bool,
}

impl Parts {
    /// An Envelope has one Body, and its Header ahead of it (SOAP 1.1 section 4.1.1, SOAP 1.2 part 1
    /// section 5.1).
    fn check(&self) -> Result<(), String> {
        if self.bodies > 1 {
            return Err("no SOAP envelope: it has two Bodies".into());
        }
        if self.late_header {
            return Err("no SOAP envelope: its Header stands behind the Body".into());
        }
        Ok(())
    }
}

impl<'a> Sink<'a> for Parts {
    fn start(&mut self, tag: &Start<'_, 'a>) -> ControlFlow<()> {
        match self.depth {
            0 if tag.local == "Envelope" => self.namespace = Some(tag.uri),
            1 if self.namespace == Some(tag.uri) => match tag.local {
                "Body" => self.bodies += 1,
                "Header" => self.late_header |= self.bodies > 0,
                _ => {}
            },
            _ => {}
        }
        self.depth += 1;
        ControlFlow::Continue(())
    }
    fn end(&mut self) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
    fn text(&mut self, _: &str) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
    fn comment(&mut self, _: &str) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
    fn instruction(&mut self, _: &'a str, _: &str) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// The first element of a document and its namespace; nothing when there is none to be read.
pub(crate) fn first_element(body: &[u8], charset: Option<&str>) -> Option<Name> {
    let text = xbus_charset::decode(body, charset, true).ok()?;
    let mut reader = reader::namespaced(text.strip_prefix('\u{feff}').unwrap_or(&text));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(text: &str) -> Result<(), String> {
        check(text.as_bytes(), None, 256, 1000, false)
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
            "<xmlns:a/>",
            "<a xmlns:xml='u'/>",
            "<a xmlns='http://www.w3.org/2000/xmlns/'/>",
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
    fn an_envelope_has_one_body_and_its_header_ahead_of_it() {
        let envelope = |parts: &str| {
            let text = format!("<s:Envelope xmlns:s='urn:s'>{parts}</s:Envelope>");
            check(text.as_bytes(), None, 256, 1000, true)
        };
        assert_eq!(
            envelope("<s:Header/><s:Body><s:Body/><s:Header/></s:Body><Body/>"),
            Ok(())
        );
        assert!(
            envelope("<s:Body/><s:Body/>")
                .unwrap_err()
                .contains("two Bodies")
        );
        assert!(
            envelope("<s:Body/><s:Header/>")
                .unwrap_err()
                .contains("behind")
        );
        // What is no envelope has no parts.
        assert_eq!(verdict("<a><Body/><Body/><Header/></a>"), Ok(()));
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
