//! Faults of SOAP said in the other version: codes, reason, who it was, and detail (SOAP 1.1 section
//! 4.4, SOAP 1.2 part 1 section 5.4).
//!
//! Absent: attributes of the fault's own elements, `xml:lang` apart; they mean nothing in the other
//! version.

use std::fmt::Write as _;

use quick_xml::events::{BytesStart, Event};
use quick_xml::name::{PrefixDeclaration, QName, ResolveResult};
use quick_xml::reader::NsReader;
use xbus_xml::reader::{namespaced, said};

use crate::soap::{FaultSide, NS_11, NS_12, Version, side_of};
use crate::xml;

type Reader<'a> = NsReader<&'a [u8]>;

/// Codes within one another that are looked at.
const CODES_MOST: usize = 16;
/// Bytes that a detail may have beyond four times the envelope.
const DETAIL_MORE: usize = 64 * 1024;

/// Says the fault in an envelope as `version` does. `text` is an envelope whose namespace is that of
/// `version` already, with a fault as the other version says it. The error says why it cannot be read.
pub(crate) fn restructured(version: Version, text: &str) -> Result<String, String> {
    let mut reader = namespaced(text);
    let mut depth = 0usize;
    let mut in_body = false;
    loop {
        let from = at(&reader);
        let (resolved, event) = reader.read_resolved_event().map_err(|e| said(&e))?;
        let of_soap = matches!(resolved, ResolveResult::Bound(ns) if ns.0 == version.namespace());
        match event {
            Event::Start(start) => {
                depth += 1;
                let local = start.local_name().into_inner();
                if depth == 2 {
                    in_body = of_soap && local == "Body";
                } else if depth == 3 && in_body && of_soap && local == "Fault" {
                    let fault = Fault::read(version, text, &mut reader, &start)?;
                    let written = fault.written();
                    return Ok([&text[..from], &written, &text[at(&reader)..]].concat());
                }
            }
            Event::End(_) => depth = depth.saturating_sub(1),
            Event::Eof => return Ok(text.to_owned()),
            _ => {}
        }
    }
}

fn at(reader: &Reader<'_>) -> usize {
    usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX)
}

/// A code: a name, and its namespace as it was written; empty for none, or one that is not declared.
struct Code {
    namespace: String,
    local: String,
}

impl Code {
    /// Whether SOAP itself names it. Many leave its prefix out, or do not declare it.
    fn of_soap(&self) -> bool {
        matches!(self.namespace.as_str(), NS_11 | NS_12)
            || (self.namespace.is_empty() && is_known(first(&self.local)))
    }
}

/// The word ahead of the dots by which SOAP 1.1 lets codes be refined.
fn first(local: &str) -> &str {
    local.split('.').next().unwrap_or(local)
}

fn is_known(word: &str) -> bool {
    matches!(
        word,
        "Client" | "Server" | "Sender" | "Receiver" | "VersionMismatch" | "MustUnderstand"
    )
}

/// What a fault says. Texts are escaped as they are to be written.
struct Fault {
    /// The version in which it is to be said.
    version: Version,
    prefix: String,
    /// The declarations of its tag, with that of its prefix.
    declarations: String,
    /// Whether names without a prefix are in a namespace there.
    default: bool,
    /// The code, then those within it.
    codes: Vec<Code>,
    /// Languages and texts.
    reasons: Vec<(String, String)>,
    role: Option<String>,
    node: Option<String>,
    detail: Option<Detail>,
}

impl Fault {
    /// Reads from after the start tag to the end of the element.
    fn read(
        version: Version,
        text: &str,
        reader: &mut Reader<'_>,
        start: &BytesStart<'_>,
    ) -> Result<Self, String> {
        let mut declarations = String::new();
        for (name, value) in declared(start)? {
            xml::declare(&mut declarations, &name, &value);
        }
        let prefix = match start.name().prefix() {
            Some(prefix) => prefix.into_inner().to_owned(),
            None => {
                let prefix = unused(reader);
                let name = format!("xmlns:{prefix}");
                xml::declare(&mut declarations, &name, version.namespace());
                prefix
            }
        };
        let mut fault = Self {
            version,
            prefix,
            declarations,
            default: !default_namespace(reader).is_empty(),
            codes: Vec::new(),
            reasons: Vec::new(),
            role: None,
            node: None,
            detail: None,
        };
        let mut depth = 0usize;
        loop {
            let start = match reader.read_event().map_err(|e| said(&e))? {
                Event::Start(start) => start,
                Event::End(_) if depth == 0 => return Ok(fault),
                Event::End(_) => {
                    depth -= 1;
                    continue;
                }
                Event::Eof => return Err("the fault does not end".into()),
                _ => continue,
            };
            match start.local_name().into_inner() {
                "Code" | "Subcode" | "Reason" => depth += 1,
                "faultcode" | "Value" if fault.codes.len() < CODES_MOST => {
                    let said = content(reader)?;
                    let (resolved, local) = reader.resolver().resolve_element(QName(said.trim()));
                    fault.codes.push(Code {
                        namespace: match resolved {
                            ResolveResult::Bound(ns) => ns.0.to_owned(),
                            _ => String::new(),
                        },
                        local: local.into_inner().to_owned(),
                    });
                }
                "faultstring" | "Text" => {
                    let language = start
                        .attributes()
                        .with_checks(false)
                        .flatten()
                        .find(|attribute| attribute.key.0 == "xml:lang");
                    let mut escaped = String::new();
                    if let Some(language) = language {
                        xml::escape_into(&mut escaped, &xml::plain_text(&language.value));
                    }
                    fault.reasons.push((escaped, content(reader)?));
                }
                "faultactor" | "Role" => fault.role = Some(content(reader)?),
                "Node" => fault.node = Some(content(reader)?),
                "detail" | "Detail" => {
                    let detail = Detail::read(version, &fault.prefix, text, reader, &start)?;
                    fault.detail = Some(detail);
                }
                _ => {
                    reader.read_to_end(start.name()).map_err(|e| said(&e))?;
                }
            }
        }
    }

    fn written(&self) -> String {
        let p = &self.prefix;
        let mut out = String::with_capacity(400);
        let _ = write!(out, "<{p}:Fault{}>", self.declarations);
        match self.version {
            Version::V11 => self.as_11(&mut out),
            Version::V12 => self.as_12(&mut out),
        }
        let _ = write!(out, "</{p}:Fault>");
        out
    }

    fn as_12(&self, out: &mut String) {
        let p = &self.prefix;
        let code = self.codes.first();
        let said = code.map_or("", |code| first(&code.local));
        let word = match (said, side_of(said)) {
            ("VersionMismatch" | "MustUnderstand", _) if code.is_some_and(Code::of_soap) => said,
            (_, FaultSide::Receiver) => "Receiver",
            _ => "Sender",
        };
        let _ = write!(out, "<{p}:Code><{p}:Value>{p}:{word}</{p}:Value>");
        // What the word alone does not say.
        let finer = code.filter(|code| !code.of_soap() || code.local != said);
        if let Some(code) = finer.filter(|code| xbus_xml::is_ncname(&code.local)) {
            let _ = write!(out, "<{p}:Subcode><{p}:Value");
            self.name(out, code);
            let _ = write!(out, "</{p}:Value></{p}:Subcode>");
        }
        let _ = write!(out, "</{p}:Code><{p}:Reason>");
        let (language, text) = self.reason();
        let language = if language.is_empty() { "en" } else { language };
        let _ = write!(
            out,
            "<{p}:Text xml:lang=\"{language}\">{text}</{p}:Text></{p}:Reason>"
        );
        if let Some(role) = &self.role {
            let _ = write!(out, "<{p}:Role>{role}</{p}:Role>");
        }
        if let Some(detail) = &self.detail {
            let Detail {
                declarations,
                content,
            } = detail;
            let _ = write!(out, "<{p}:Detail{declarations}>{content}</{p}:Detail>");
        }
    }

    fn as_11(&self, out: &mut String) {
        let p = &self.prefix;
        // The elements of a fault are in no namespace.
        let none = if self.default { " xmlns=\"\"" } else { "" };
        let said = self.codes.first().map_or("", |code| code.local.as_str());
        let word = match (said, side_of(said)) {
            ("VersionMismatch" | "MustUnderstand", _) => said,
            (_, FaultSide::Receiver) => "Server",
            _ => "Client",
        };
        // The innermost code is the one that says most, as in the bindings of WS-Addressing and
        // WS-Security to SOAP 1.1.
        let finer = self.codes.get(1..).and_then(<[Code]>::last);
        let finer = finer
            .filter(|code| xbus_xml::is_ncname(&code.local) && matches!(word, "Client" | "Server"));
        match finer {
            // A code of SOAP 1.1 that was refined with dots.
            Some(code) if code.of_soap() && first(&code.local) == word => {
                let _ = write!(out, "<faultcode{none}>{p}:{}</faultcode>", code.local);
            }
            Some(code) => {
                out.push_str("<faultcode");
                if !code.namespace.is_empty() {
                    out.push_str(none);
                }
                self.name(out, code);
                out.push_str("</faultcode>");
            }
            None => {
                let _ = write!(out, "<faultcode{none}>{p}:{word}</faultcode>");
            }
        }
        let (language, text) = self.reason();
        let _ = write!(out, "<faultstring{none}");
        if !language.is_empty() {
            let _ = write!(out, " xml:lang=\"{language}\"");
        }
        let _ = write!(out, ">{text}</faultstring>");
        if let Some(actor) = self.role.as_ref().or(self.node.as_ref()) {
            let _ = write!(out, "<faultactor{none}>{actor}</faultactor>");
        }
        if let Some(detail) = &self.detail {
            let Detail {
                declarations,
                content,
            } = detail;
            let _ = write!(out, "<detail{none}{declarations}>{content}</detail>");
        }
    }

    /// What stands of a code behind its element's name: the declaration that it needs, and itself.
    fn name(&self, out: &mut String, code: &Code) {
        let local = &code.local;
        // SOAP 1.1 defines no names with dots: they are the sender's, in its namespace.
        let namespace = match self.version {
            Version::V12 if code.of_soap() => NS_11,
            _ => code.namespace.as_str(),
        };
        if namespace.is_empty() {
            let _ = write!(out, " xmlns=\"\">{local}");
            return;
        }
        let prefix = if self.prefix == "c" { "d" } else { "c" };
        xml::declare(out, &format!("xmlns:{prefix}"), namespace);
        let _ = write!(out, ">{prefix}:{local}");
    }

    /// Of several languages English, else the first.
    fn reason(&self) -> (&str, &str) {
        let english = |(language, _): &&(String, String)| {
            language
                .get(..2)
                .is_some_and(|start| start.eq_ignore_ascii_case("en"))
        };
        let found = self.reasons.iter().find(english);
        found
            .or(self.reasons.first())
            .map_or(("", ""), |(language, text)| (language, text))
    }
}

/// A prefix that nothing is bound to.
fn unused(reader: &Reader<'_>) -> String {
    let bound = |prefix: &str| {
        let mut bindings = reader.resolver().bindings();
        bindings
            .any(|(known, _)| matches!(known, PrefixDeclaration::Named(known) if known == prefix))
    };
    let mut prefix = String::from("soap");
    let mut number = 0u32;
    while bound(&prefix) {
        number += 1;
        prefix = format!("soap{number}");
    }
    prefix
}

/// The namespace of names without a prefix, as it was written; empty for none.
fn default_namespace(reader: &Reader<'_>) -> String {
    match reader.resolver().resolve_element(QName("x")).0 {
        ResolveResult::Bound(ns) => ns.0.to_owned(),
        _ => String::new(),
    }
}

/// The namespace declarations of a tag: attribute names, and values as they were written.
fn declared(start: &BytesStart<'_>) -> Result<Vec<(String, String)>, String> {
    let mut found = Vec::new();
    for attribute in start.attributes().with_checks(false) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        if attribute.key.as_namespace_binding().is_some() {
            found.push((attribute.key.0.to_owned(), attribute.value.into_owned()));
        }
    }
    Ok(found)
}

/// The text of an element whose start was read, escaped, up to its end. Its namespaces are still in
/// scope then.
fn content(reader: &mut Reader<'_>) -> Result<String, String> {
    let mut out = String::new();
    let mut depth = 0usize;
    loop {
        match reader.read_event().map_err(|e| said(&e))? {
            Event::Text(text) => out.push_str(&text),
            Event::CData(text) => xml::escape_into(&mut out, &text),
            Event::GeneralRef(name) => {
                let _ = write!(out, "&{};", &*name);
            }
            Event::Start(_) => depth += 1,
            Event::End(_) if depth == 0 => return Ok(out),
            Event::End(_) => depth -= 1,
            Event::Eof => return Err("the fault does not end".into()),
            _ => {}
        }
    }
}

/// A detail for the other version.
struct Detail {
    /// What its element declares.
    declarations: String,
    content: String,
}

impl Detail {
    /// Reads from after the start tag to the end of the element. What that one declares and cannot as
    /// it is written now (a default namespace in 1.1, `prefix` in 1.2), its children declare: an error where
    /// that takes too much room.
    fn read(
        version: Version,
        prefix: &str,
        text: &str,
        reader: &mut Reader<'_>,
        start: &BytesStart<'_>,
    ) -> Result<Self, String> {
        let own = match version {
            Version::V11 => "xmlns".to_owned(),
            Version::V12 => format!("xmlns:{prefix}"),
        };
        let mut declarations = String::new();
        let mut moved = None;
        for (name, value) in declared(start)? {
            if name == own {
                moved = Some(value);
            } else {
                xml::declare(&mut declarations, &name, &value);
            }
        }
        if version == Version::V11 && moved.is_none() {
            moved = Some(default_namespace(reader)).filter(|default| !default.is_empty());
        }
        let mut content = String::new();
        loop {
            let from = at(reader);
            let (child, empty) = match reader.read_event().map_err(|e| said(&e))? {
                Event::Start(child) => (child, false),
                Event::Empty(child) => (child, true),
                Event::End(_) => {
                    return Ok(Self {
                        declarations,
                        content,
                    });
                }
                Event::Eof => return Err("the fault does not end".into()),
                _ => {
                    content.push_str(&text[from..at(reader)]);
                    continue;
                }
            };
            let name = child.name().0;
            let _ = write!(content, "<{name}");
            if let Some(value) = &moved
                && declared(&child)?.iter().all(|(known, _)| *known != own)
            {
                xml::declare(&mut content, &own, value);
            }
            if content.len() > text.len() * 4 + DETAIL_MORE {
                return Err("the namespaces of the fault's detail take too much room".into());
            }
            if !empty {
                reader.read_to_end(child.name()).map_err(|e| said(&e))?;
            }
            content.push_str(&text[from + 1 + name.len()..at(reader)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_11(declarations: &str, fault: &str) -> String {
        format!(
            "<s:Envelope xmlns:s=\"{NS_11}\"{declarations}><s:Body><s:Fault>{fault}</s:Fault></s:Body></s:Envelope>"
        )
    }

    fn of_12(declarations: &str, fault: &str) -> String {
        of_11(declarations, fault).replace(NS_11, NS_12)
    }

    /// As `into_envelope` does it.
    fn said_in(version: Version, text: &str) -> String {
        let (body, changed) =
            crate::wrap::into_envelope(version, &text.to_owned().into(), None).unwrap();
        assert!(changed);
        let made = String::from_utf8(body.to_vec()).unwrap();
        crate::wellformed::check(made.as_bytes(), None, 256, 1000, true).unwrap();
        made
    }

    fn code_12(code: &str) -> String {
        let made = said_in(
            Version::V12,
            &of_11(
                " xmlns:a=\"urn:a\"",
                &format!("<faultcode>{code}</faultcode><faultstring>x</faultstring>"),
            ),
        );
        let (_, rest) = made.split_once("<s:Code>").unwrap();
        rest.split_once("</s:Code>").unwrap().0.to_owned()
    }

    #[test]
    fn codes_of_1_1_become_those_of_1_2() {
        for (code, word) in [
            ("s:Client", "Sender"),
            ("s:Server", "Receiver"),
            ("Server", "Receiver"),
            ("undeclared:Client", "Sender"),
            ("s:VersionMismatch", "VersionMismatch"),
            ("s:MustUnderstand", "MustUnderstand"),
            ("not a name", "Receiver"),
            ("", "Receiver"),
        ] {
            let value = format!("<s:Value>s:{word}</s:Value>");
            assert_eq!(code_12(code), value, "{code}");
        }
        for (code, word, finer) in [
            (
                "s:Client.Auth",
                "Sender",
                format!(" xmlns:c=\"{NS_11}\">c:Client.Auth"),
            ),
            (
                "Server.Db.Full",
                "Receiver",
                format!(" xmlns:c=\"{NS_11}\">c:Server.Db.Full"),
            ),
            (
                "a:NoStock",
                "Receiver",
                " xmlns:c=\"urn:a\">c:NoStock".into(),
            ),
            ("a:Client", "Sender", " xmlns:c=\"urn:a\">c:Client".into()),
            ("E17", "Receiver", " xmlns=\"\">E17".into()),
        ] {
            let value = format!(
                "<s:Value>s:{word}</s:Value><s:Subcode><s:Value{finer}</s:Value></s:Subcode>"
            );
            assert_eq!(code_12(code), value, "{code}");
        }
    }

    #[test]
    fn codes_of_1_2_become_those_of_1_1() {
        for (codes, code) in [
            ("<s:Value>s:Sender</s:Value>", ">s:Client<".to_owned()),
            ("<s:Value>s:Receiver</s:Value>", ">s:Server<".into()),
            (
                "<s:Value>s:DataEncodingUnknown</s:Value>",
                ">s:Client<".into(),
            ),
            (
                "<s:Value>s:VersionMismatch</s:Value>",
                ">s:VersionMismatch<".into(),
            ),
            (
                "<s:Value>s:MustUnderstand</s:Value>",
                ">s:MustUnderstand<".into(),
            ),
            (
                "<s:Value>s:Sender</s:Value><s:Subcode><s:Value xmlns:b=\"urn:b\">b:Outer</s:Value>\
                 <s:Subcode><s:Value xmlns:b=\"urn:b\"> b:Inner </s:Value></s:Subcode></s:Subcode>",
                " xmlns:c=\"urn:b\">c:Inner<".into(),
            ),
            (
                "<s:Value>s:Sender</s:Value><s:Subcode><s:Value xmlns:b=\"http://schemas.xmlsoap.org/soap/envelope/\">b:Client.Auth</s:Value></s:Subcode>",
                ">s:Client.Auth<".into(),
            ),
        ] {
            let made = said_in(
                Version::V11,
                &of_12("", &format!("<s:Code>{codes}</s:Code>")),
            );
            assert!(
                made.contains(&format!("<faultcode{code}")),
                "{codes}: {made}"
            );
        }
    }

    #[test]
    fn reason_actor_and_detail_go_along_both_ways() {
        let eleven = of_11(
            "",
            "<faultcode>s:Client</faultcode><faultstring xml:lang=\"de\">zu &lt; viel</faultstring>\
             <faultactor>urn:who</faultactor><detail>t<d:a xmlns:d=\"urn:d\" x=\"1\">&amp;</d:a><b/></detail>",
        );
        let twelve = of_12(
            "",
            "<s:Code><s:Value>s:Sender</s:Value></s:Code>\
             <s:Reason><s:Text xml:lang=\"de\">zu &lt; viel</s:Text></s:Reason>\
             <s:Role>urn:who</s:Role>\
             <s:Detail>t<d:a xmlns:d=\"urn:d\" x=\"1\">&amp;</d:a><b/></s:Detail>",
        );
        assert_eq!(said_in(Version::V12, &eleven), twelve);
        assert_eq!(said_in(Version::V11, &twelve), eleven);
        let several = of_12(
            "",
            "<s:Code><s:Value>s:Receiver</s:Value></s:Code><s:Reason><s:Text xml:lang=\"fr\">non</s:Text>\
             <s:Text xml:lang=\"en-GB\"><![CDATA[a < b]]></s:Text></s:Reason><s:Node>urn:node</s:Node>",
        );
        let made = said_in(Version::V11, &several);
        assert!(
            made.contains("<faultstring xml:lang=\"en-GB\">a &lt; b</faultstring>")
                && made.contains("<faultactor>urn:node</faultactor>"),
            "{made}"
        );
    }

    #[test]
    fn names_stay_in_their_namespaces() {
        // SOAP is the default namespace, and the detail declares its own.
        let eleven = format!(
            "<Envelope xmlns=\"{NS_11}\" xmlns:soap=\"urn:taken\"><Body><Fault><faultcode xmlns=\"\">Client</faultcode>\
             <faultstring xmlns=\"\">x</faultstring><detail xmlns=\"urn:d\" xmlns:e=\"urn:e\"><a/><e:b xmlns=\"\"><c/></e:b></detail></Fault></Body></Envelope>"
        );
        let twelve = said_in(Version::V12, &eleven);
        assert!(
            twelve.contains(&format!("<soap1:Fault xmlns:soap1=\"{NS_12}\"><soap1:Code>"))
                && twelve.contains(
                    "<soap1:Detail xmlns=\"urn:d\" xmlns:e=\"urn:e\"><a/><e:b xmlns=\"\"><c/></e:b></soap1:Detail>"
                ),
            "{twelve}"
        );
        let twelve = format!(
            "<Envelope xmlns=\"{NS_12}\"><Body><Fault><Code><Value>Sender</Value><Subcode><Value xmlns:b=\"urn:b\">b:X</Value></Subcode></Code>\
             <Reason><Text xml:lang=\"en\">x</Text></Reason><Detail xmlns=\"urn:d\"><a/></Detail></Fault></Body></Envelope>"
        );
        let eleven = said_in(Version::V11, &twelve);
        assert!(
            eleven.contains("<faultcode xmlns=\"\" xmlns:c=\"urn:b\">c:X</faultcode>")
                && eleven.contains("<detail xmlns=\"\"><a xmlns=\"urn:d\"/></detail>"),
            "{eleven}"
        );
    }

    #[test]
    fn a_detail_that_gives_the_prefix_of_soap_another_meaning_keeps_it() {
        let fault = "<faultcode>s:Client</faultcode><detail xmlns:s=\"urn:d\" xmlns:t=\"urn:t\"><s:a/><b xmlns:s=\"urn:b\"/></detail>";
        let twelve = said_in(Version::V12, &of_11("", fault));
        let detail =
            "<s:Detail xmlns:t=\"urn:t\"><s:a xmlns:s=\"urn:d\"/><b xmlns:s=\"urn:b\"/></s:Detail>";
        assert!(twelve.contains(detail), "{twelve}");
    }

    #[test]
    fn namespaces_cannot_make_a_fault_grow_without_bound() {
        let long = "x".repeat(100_000);
        let many = "<a/>".repeat(100_000);
        let detail = format!("<s:Detail xmlns=\"urn:{long}\">{many}</s:Detail>");
        let body = bytes::Bytes::from(of_12("", &detail));
        let why = crate::wrap::into_envelope(Version::V11, &body, None).unwrap_err();
        assert!(why.contains("too much room"), "{why}");
        let codes = format!(
            "<s:Subcode><s:Value>{}</s:Value></s:Subcode>",
            "</s:Value><s:Value>n:x".repeat(100_000)
        );
        let began = std::time::Instant::now();
        said_in(
            Version::V11,
            &of_12(&format!(" xmlns:n=\"urn:{long}\""), &codes),
        );
        assert!(began.elapsed() < std::time::Duration::from_secs(5));
    }

    #[test]
    fn a_fault_that_is_cut_off_is_not_mapped() {
        let whole = of_11("", "<faultcode>s:Client</faultcode><detail><a/></detail>");
        let cut = &whole[..whole.find("</detail>").unwrap()];
        let body = bytes::Bytes::from(cut.to_owned());
        assert!(crate::wrap::into_envelope(Version::V12, &body, None).is_err());
    }
}
