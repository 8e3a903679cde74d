//! WS-Addressing as far as a bus needs it: what a request says of itself, answers that say which
//! request they belong to, and headers for requests that go out. Both generations that are in use:
//! the recommendation of 2006 (namespace 2005/08) and the submission of 2004 (2004/08).
//!
//! Absent on purpose: sending anything to an address that a message names. Answers go back over the
//! connection that the request came over.

use std::fmt::Write as _;
use std::ops::Range;

use bytes::Bytes;
use xbus_core::Code;

use crate::shape::{Refusal, SoapCode};
use crate::soap;
use crate::{splice, xml};

/// A generation of WS-Addressing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Generation {
    /// W3C submission of August 2004.
    Submission,
    /// W3C recommendation 1.0 of May 2006.
    Recommendation,
}

impl Generation {
    /// The generation whose namespace it is.
    pub(crate) fn of(namespace: &str) -> Option<Self> {
        [Generation::Recommendation, Generation::Submission]
            .into_iter()
            .find(|generation| generation.namespace() == namespace)
    }

    pub(crate) fn namespace(self) -> &'static str {
        match self {
            Generation::Submission => "http://schemas.xmlsoap.org/ws/2004/08/addressing",
            Generation::Recommendation => "http://www.w3.org/2005/08/addressing",
        }
    }

    /// The address of whoever waits at the other end of the connection.
    fn anonymous(self) -> &'static str {
        match self {
            Generation::Submission => {
                "http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous"
            }
            Generation::Recommendation => "http://www.w3.org/2005/08/addressing/anonymous",
        }
    }

    /// The action of faults (SOAP binding 1.0 section 6; submission section 4).
    fn fault(self) -> &'static str {
        match self {
            Generation::Submission => "http://schemas.xmlsoap.org/ws/2004/08/addressing/fault",
            Generation::Recommendation => "http://www.w3.org/2005/08/addressing/soap/fault",
        }
    }
}

/// What an envelope's headers of WS-Addressing say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Addressed {
    generation: Generation,
    /// MessageID.
    pub(crate) message_id: Option<String>,
    action: Option<String>,
    to: bool,
    /// Each RelatesTo, and where it lies.
    relates_to: Vec<(String, Range<usize>)>,
    /// The answer must go to another address, and that must be understood.
    elsewhere: bool,
}

impl Addressed {
    pub(crate) fn new(generation: Generation) -> Self {
        Self {
            generation,
            message_id: None,
            action: None,
            to: false,
            relates_to: Vec::new(),
            elsewhere: false,
        }
    }

    /// Takes up a header. Where both generations stand in one envelope the first one counts.
    pub(crate) fn note(
        &mut self,
        generation: Generation,
        local: &str,
        value: String,
        mandatory: bool,
        range: Range<usize>,
    ) {
        if generation != self.generation {
            return;
        }
        match local {
            "MessageID" if !value.is_empty() => {
                self.message_id.get_or_insert(value);
            }
            "Action" => {
                self.action.get_or_insert(value);
            }
            "To" => self.to = true,
            "RelatesTo" => self.relates_to.push((value, range)),
            "ReplyTo" | "FaultTo" if mandatory => {
                let none = "http://www.w3.org/2005/08/addressing/none";
                self.elsewhere |= !value.contains(generation.anonymous()) && !value.contains(none);
            }
            _ => {}
        }
    }

    /// Refuses what cannot be done: an answer to an address that has to be used (SOAP binding 1.0
    /// section 6.4.1.7; the submission has no code of its own for it).
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        if !self.elsewhere {
            return Ok(());
        }
        let codes: &[&str] = match self.generation {
            Generation::Submission => &["InvalidMessageInformationHeader"],
            Generation::Recommendation => {
                &["InvalidAddressingHeader", "OnlyAnonymousAddressSupported"]
            }
        };
        let code = SoapCode::Of {
            prefix: "wsa",
            namespace: self.generation.namespace(),
            codes,
        };
        let reason = "answers go back over the connection of the request, and nowhere else";
        Err(Refusal::new(Code::Client, reason).soap(code))
    }

    /// The headers of an answer that the bus makes itself. The action is that of the request and
    /// `Response`, as WSDL names it by default.
    fn answer(&self, is_fault: bool) -> String {
        let namespace = self.generation.namespace();
        let mut out = String::with_capacity(400);
        let mut put = |local: &str, value: &str| {
            let _ = write!(out, "<wsa:{local} xmlns:wsa=\"{namespace}\">");
            xml::escape_into(&mut out, value);
            let _ = write!(out, "</wsa:{local}>");
        };
        match (&self.action, is_fault) {
            (_, true) => put("Action", self.generation.fault()),
            (Some(action), false) if !action.is_empty() => {
                put("Action", &format!("{action}Response"));
            }
            _ => put("Action", "urn:xbus:reply:1"),
        }
        if self.generation == Generation::Submission {
            put("To", self.generation.anonymous());
        }
        if let Some(id) = &self.message_id {
            put("RelatesTo", id);
        }
        out
    }

    /// The body of an answer to a request that says this of itself: made by the bus (`own`) it gets
    /// headers; one that says that it belongs to another request (the one that a step made of this
    /// one) is put right. Nothing when it stays as it is.
    pub(crate) fn related(&self, body: &Bytes, own: bool) -> Option<Bytes> {
        if !xbus_charset::is_utf8(body, None) {
            return None;
        }
        let seen = soap::look(body, None, false).ok()?;
        if own && seen.addressed.is_none() {
            let blocks = self.answer(seen.fault.is_some());
            return Some(splice::into_header(body, &seen, &blocks, &[]).0);
        }
        let id = self.message_id.as_ref()?;
        let theirs = seen.addressed?;
        let (_, range) = match theirs.relates_to.iter().any(|(to, _)| to == id) {
            true => return None,
            false => theirs.relates_to.first()?,
        };
        let namespace = theirs.generation.namespace();
        let mut block = format!("<wsa:RelatesTo xmlns:wsa=\"{namespace}\">");
        xml::escape_into(&mut block, id);
        block.push_str("</wsa:RelatesTo>");
        Some(splice::replace(body, range.clone(), &block))
    }
}

/// The headers that a request lacks: who it is, what it wants, and where it goes. What it has stays.
pub(crate) fn of_request(seen: &soap::Envelope, id: &str, action: &str, to: &str) -> String {
    let known = seen.addressed.as_deref();
    let generation = known.map_or(Generation::Recommendation, |known| known.generation);
    let namespace = generation.namespace();
    let mut out = String::with_capacity(400);
    let mut put = |present: bool, local: &str, value: &str| {
        if !present {
            let _ = write!(out, "<wsa:{local} xmlns:wsa=\"{namespace}\">");
            xml::escape_into(&mut out, value);
            let _ = write!(out, "</wsa:{local}>");
        }
    };
    put(known.is_some_and(|known| known.to), "To", to);
    put(
        known.is_some_and(|known| known.action.is_some()),
        "Action",
        action,
    );
    put(
        known.is_some_and(|known| known.message_id.is_some()),
        "MessageID",
        id,
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soap::Version;

    fn envelope(header: &str, body: &str) -> Bytes {
        let namespace = Version::V11.namespace();
        format!("<e:Envelope xmlns:e=\"{namespace}\">{header}<e:Body>{body}</e:Body></e:Envelope>")
            .into()
    }

    fn addressed(header: &str) -> Addressed {
        let body = envelope(&format!("<e:Header>{header}</e:Header>"), "<x/>");
        let seen = soap::look(&body, None, false).expect("an envelope");
        *seen.addressed.expect("headers")
    }

    #[test]
    fn own_answers_say_what_they_belong_to() {
        for generation in [Generation::Recommendation, Generation::Submission] {
            let namespace = generation.namespace();
            let of = addressed(&format!(
                "<a:Action xmlns:a=\"{namespace}\">urn:x/Book</a:Action><MessageID xmlns=\"{namespace}\"> urn:a&amp;b </MessageID>"
            ));
            assert_eq!(of.message_id.as_deref(), Some("urn:a&b"));
            let answer = of.related(&envelope("", "<ack/>"), true).expect("headers");
            let seen = soap::look(&answer, None, false).expect("an envelope");
            let theirs = seen.addressed.expect("headers");
            assert_eq!(theirs.generation, generation);
            assert_eq!(theirs.action.as_deref(), Some("urn:x/BookResponse"));
            assert_eq!(theirs.relates_to[0].0, "urn:a&b");
            let fault = of
                .related(&envelope("", "<e:Fault/>"), true)
                .expect("headers");
            let seen = soap::look(&fault, None, false).expect("an envelope");
            let theirs = seen.addressed.expect("headers");
            assert_eq!(theirs.action.as_deref(), Some(generation.fault()));
        }
    }

    #[test]
    fn what_belongs_to_another_request_is_put_right_and_all_else_stays() {
        let namespace = Generation::Recommendation.namespace();
        let of = addressed(&format!("<MessageID xmlns=\"{namespace}\">m1</MessageID>"));
        let answer = |id: &str| {
            envelope(
                &format!(
                    "<e:Header><h/><a:RelatesTo xmlns:a=\"{namespace}\">{id}</a:RelatesTo></e:Header>"
                ),
                "<a>&#65;</a>",
            )
        };
        assert!(of.related(&answer("m1"), false).is_none());
        assert!(of.related(&envelope("", "<a/>"), false).is_none());
        let right = of.related(&answer("other"), false).expect("put right");
        let text = String::from_utf8_lossy(&right)
            .replace("wsa:", "a:")
            .replace(":wsa", ":a");
        assert_eq!(text.as_bytes(), answer("m1"));
    }

    #[test]
    fn an_answer_elsewhere_is_refused_only_where_it_must_be_understood() {
        let namespace = Generation::Recommendation.namespace();
        let reply_to = |attributes: &str, address: &str| {
            addressed(&format!(
                "<a:ReplyTo xmlns:a=\"{namespace}\" {attributes}><a:Address>{address}</a:Address></a:ReplyTo>"
            ))
        };
        let must = "e:mustUnderstand=\"1\"";
        assert!(reply_to("", "http://127.0.0.1:1/").check().is_ok());
        assert!(
            reply_to(must, &format!("{namespace}/anonymous"))
                .check()
                .is_ok()
        );
        assert!(reply_to(must, &format!("{namespace}/none")).check().is_ok());
        assert!(reply_to(must, "http://127.0.0.1:1/").check().is_err());
    }

    #[test]
    fn requests_get_what_they_lack() {
        let namespace = Generation::Submission.namespace();
        let with = envelope(
            &format!("<e:Header><MessageID xmlns=\"{namespace}\">m1</MessageID></e:Header>"),
            "",
        );
        let seen = soap::look(&with, None, false).expect("an envelope");
        let added = of_request(&seen, "id", "urn:a", "http://x/");
        assert!(added.contains("<wsa:To") && added.contains("<wsa:Action"));
        assert!(!added.contains("MessageID") && added.contains(namespace));
        let without = soap::look(&envelope("", ""), None, false).expect("an envelope");
        let added = of_request(&without, "urn:uuid:1", "urn:a", "http://x/?a=1&b=2");
        assert!(added.contains(">urn:uuid:1</wsa:MessageID>") && added.contains("a=1&amp;b=2"));
    }
}
