//! Answers in the caller's shape: a SOAP envelope of its version, plain XML, or JSON; with the
//! HTTP status that goes with it. Never HTML, never a fault with 200.

use std::fmt::Write as _;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{
    ACCEPT, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Collected, Full};
use xbus_core::{Code, Fault, Format, MessageId, Status};

use crate::door::Door;
use crate::heads::MESSAGE_ID;
use crate::soap::{NS_11, NS_12, Name, Version};
use crate::wrap::envelope;
use crate::{package, xml};

/// An HTTP answer.
pub(crate) type Answer = Response<Full<Bytes>>;

const NAMESPACE: &str = "urn:xbus:reply:1";

/// The shape in which a caller wants its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    Soap(Version),
    Xml,
    Json,
}

impl Shape {
    /// The shape that a request asks for by itself: SOAP when it is SOAP, else by `Accept`, else
    /// by its content type; JSON for requests without one, for text and for CSV.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let content_type = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        if let Some(version) = soap_by_type(content_type, headers) {
            return Shape::Soap(version);
        }
        headers
            .get(ACCEPT)
            .and_then(|value| value.to_str().ok())
            .and_then(by_accept)
            .unwrap_or(match Format::from_media_type(content_type) {
                Some(Format::Xml) => Shape::Xml,
                _ => Shape::Json,
            })
    }
}

/// The version of a SOAP request by its head alone.
fn soap_by_type(content_type: &str, headers: &HeaderMap) -> Option<Version> {
    let essence = xml::essence(content_type);
    if essence.eq_ignore_ascii_case(Version::V12.media_type()) {
        Some(Version::V12)
    } else if essence.eq_ignore_ascii_case(Version::V11.media_type())
        && headers.contains_key("soapaction")
    {
        Some(Version::V11)
    } else {
        package::version_said(content_type)
            .filter(|version| *version == Version::V12 || headers.contains_key("soapaction"))
    }
}

/// XML or JSON, whichever `Accept` (RFC 9110 section 12.5.1) prefers; nothing when it does not say.
fn by_accept(accept: &str) -> Option<Shape> {
    let mut best: Option<(f32, Shape)> = None;
    let mut tie = false;
    for part in accept.split(',') {
        let essence = xml::essence(part);
        let shape = match Format::from_media_type(essence) {
            Some(Format::Json) => Shape::Json,
            Some(Format::Xml) if !essence.eq_ignore_ascii_case("application/xhtml+xml") => {
                Shape::Xml
            }
            _ => continue,
        };
        let quality: f32 = xbus_charset::parameter(part, "q")
            .and_then(|q| q.parse().ok())
            .unwrap_or(1.0);
        if quality <= 0.0 {
            continue;
        }
        match best {
            Some((known, _)) if quality < known => {}
            Some((known, other)) if quality == known => tie |= other != shape,
            _ => (best, tie) = (Some((quality, shape)), false),
        }
    }
    best.filter(|_| !tie).map(|(_, shape)| shape)
}

/// What SOAP says beside "whose fault".
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) enum SoapCode {
    #[default]
    Usual,
    VersionMismatch,
    MustUnderstand(Vec<Name>),
    /// A code that another specification names. SOAP 1.2 says them as subcodes, one in the other;
    /// SOAP 1.1 says the last one.
    Of {
        prefix: &'static str,
        namespace: &'static str,
        codes: &'static [&'static str],
    },
}

/// A request that gets no good answer.
#[derive(Debug)]
pub(crate) struct Refusal(Box<Refused>);

/// What a [`Refusal`] holds.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) fault: Fault,
    /// In place of the status that goes with the fault's code.
    pub(crate) status: Option<StatusCode>,
    /// A header that belongs to the status (Allow, WWW-Authenticate, Accept-Encoding).
    pub(crate) header: Option<(HeaderName, HeaderValue)>,
    /// Whether the connection cannot be used further.
    pub(crate) close: bool,
    pub(crate) soap: SoapCode,
    /// The route that it was for, where that is known.
    pub(crate) door: Option<Arc<Door>>,
    /// No route takes it, whichever was asked.
    pub(crate) nowhere: bool,
    /// Its route has run, and told what there is to tell.
    pub(crate) delivered: bool,
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self(Box::new(Refused {
            fault,
            status: None,
            header: None,
            close: false,
            soap: SoapCode::Usual,
            door: None,
            nowhere: false,
            delivered: false,
        }))
    }
}

/// A door has no form of its own to be shown in.
impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.route())
    }
}

impl Deref for Refusal {
    type Target = Refused;

    fn deref(&self) -> &Refused {
        &self.0
    }
}

impl Refusal {
    pub(crate) fn new(code: Code, reason: impl Into<String>) -> Self {
        Fault::new(code, reason).into()
    }

    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        self.0.status = Some(status);
        self
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.header = Some((name, value));
        self
    }

    pub(crate) fn soap(mut self, code: SoapCode) -> Self {
        self.0.soap = code;
        self
    }

    /// It was for this route.
    pub(crate) fn at(mut self, door: &Arc<Door>) -> Self {
        if !self.0.nowhere {
            self.0.door.get_or_insert_with(|| door.clone());
        }
        self
    }

    /// No route takes it.
    pub(crate) fn nowhere(mut self) -> Self {
        self.0.nowhere = true;
        self
    }

    /// The route has run.
    pub(crate) fn delivered(mut self) -> Self {
        self.0.delivered = true;
        self
    }

    pub(crate) fn close(mut self) -> Self {
        self.0.close = true;
        self
    }
}

/// The status that goes with a fault, SOAP aside.
pub(crate) fn status_of(fault: &Fault) -> StatusCode {
    StatusCode::from_u16(fault.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The status of a SOAP fault: what HTTP itself says of a request keeps its status; otherwise the
/// binding's (SOAP 1.1 section 6.2, SOAP 1.2 part 2 table 20).
fn soap_status(version: Version, usual: StatusCode, sender: bool, code: &SoapCode) -> StatusCode {
    match usual.as_u16() {
        // What an envelope lacks is not asked for by HTTP.
        401 | 403 if matches!(code, SoapCode::Of { .. }) => match version {
            Version::V11 => StatusCode::INTERNAL_SERVER_ERROR,
            Version::V12 => StatusCode::BAD_REQUEST,
        },
        401 | 403 | 404 | 405 | 408 | 413 | 415 | 429 | 431 | 503 => usual,
        _ if version == Version::V12
            && sender
            && matches!(code, SoapCode::Usual | SoapCode::Of { .. }) =>
        {
            StatusCode::BAD_REQUEST
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The answer to a request that failed.
pub(crate) fn fault(shape: Shape, id: MessageId, refusal: &Refusal) -> Answer {
    let fault = &refusal.fault;
    let usual = refusal.status.unwrap_or_else(|| status_of(fault));
    let (status, body) = match shape {
        Shape::Soap(version) => {
            let sender = fault.code.is_rejection();
            let status = match refusal.status {
                Some(status) if matches!(refusal.soap, SoapCode::Usual) => status,
                _ => soap_status(version, usual, sender, &refusal.soap),
            };
            let body = soap_fault(version, id, fault, sender, &refusal.soap);
            (status, body)
        }
        Shape::Xml => (usual, fault_element(id, fault)),
        Shape::Json => (usual, fault_json(id, fault)),
    };
    let mut answer = answer(status, content_type(shape), body.into(), id);
    let headers = answer.headers_mut();
    if let Some(after) = fault.retry_after {
        // Whole seconds, rounded up: coming earlier would be in vain.
        let seconds = after.as_millis().div_ceil(1000).max(1) as u64;
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    } else if fault.code == Code::Overloaded {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if let Some((name, value)) = &refusal.header {
        headers.insert(name.clone(), value.clone());
    }
    if refusal.close {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// What is wrong with a request whose head could not be read.
pub(crate) fn fault_of_head(status: StatusCode) -> Fault {
    let (code, reason) = match status {
        StatusCode::REQUEST_TIMEOUT => (Code::Client, "the request did not come in time"),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => (
            Code::TooLarge,
            "the head of the request is too large, or has too many headers",
        ),
        StatusCode::URI_TOO_LONG => (Code::TooLarge, "the target of the request is too long"),
        _ => (Code::Client, "the request is not valid HTTP/1.1"),
    };
    Fault::new(code, reason)
}

/// A whole answer, as bytes, to a request whose head could not be read. The connection ends with it.
pub(crate) fn refusal(status: StatusCode, id: MessageId, fault: &Fault) -> Vec<u8> {
    let body = fault_json(id, fault);
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {}\r\ncontent-length: {}\r\nx-message-id: {id}\r\n\
         date: {}\r\nconnection: close\r\n\r\n{body}",
        Format::Json.media_type(),
        body.len(),
        httpdate::fmt_http_date(std::time::SystemTime::now()),
    )
    .into_bytes()
}

/// The acknowledgement of a message.
pub(crate) fn acknowledgement(shape: Shape, id: MessageId, status: Status) -> Answer {
    let word = status.name();
    let (code, body) = match shape {
        Shape::Soap(version) => (
            StatusCode::OK,
            envelope(version, &acknowledgement_element(id, word)),
        ),
        Shape::Xml => (ack_status(status), acknowledgement_element(id, word)),
        Shape::Json => (
            ack_status(status),
            format!("{{\"id\":\"{id}\",\"status\":\"{word}\"}}"),
        ),
    };
    answer(code, content_type(shape), body.into(), id)
}

/// The answer to a one-way operation: accepted, and no envelope (WS-I Basic Profile 1.1 R2714).
pub(crate) fn nothing(id: MessageId) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::new()));
    *answer.status_mut() = StatusCode::ACCEPTED;
    set_id(&mut answer, id);
    answer
}

/// The status of an acknowledgement outside of SOAP.
pub(crate) fn ack_status(status: Status) -> StatusCode {
    match status {
        Status::Accepted => StatusCode::ACCEPTED,
        Status::Delivered | Status::Filtered => StatusCode::OK,
    }
}

fn acknowledgement_element(id: MessageId, status: &str) -> String {
    let mut buffer = [0; MessageId::LENGTH];
    [
        "<ack xmlns=\"",
        NAMESPACE,
        "\" id=\"",
        id.encode(&mut buffer),
        "\" status=\"",
        status,
        "\"/>",
    ]
    .concat()
}

fn content_type(shape: Shape) -> HeaderValue {
    HeaderValue::from_static(match shape {
        Shape::Soap(version) => version.content_type(),
        Shape::Xml => "application/xml; charset=utf-8",
        Shape::Json => "application/json",
    })
}

/// An answer with the message's id.
pub(crate) fn answer(
    status: StatusCode,
    content_type: HeaderValue,
    body: Bytes,
    id: MessageId,
) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    // With room for what others add.
    let mut headers = HeaderMap::with_capacity(6);
    headers.append(CONTENT_TYPE, content_type);
    *answer.headers_mut() = headers;
    set_id(&mut answer, id);
    answer
}

/// The body of an answer: it is all there.
pub(crate) fn whole(body: Full<Bytes>) -> Bytes {
    let all = body.collect().now_or_never();
    all.and_then(Result::ok)
        .map(Collected::to_bytes)
        .unwrap_or_default()
}

/// Says the message's id.
pub(crate) fn set_id(answer: &mut Answer, id: MessageId) {
    if let Ok(value) = HeaderValue::from_str(id.encode(&mut [0; MessageId::LENGTH])) {
        answer.headers_mut().insert(&MESSAGE_ID, value);
    }
}

fn fault_element(id: MessageId, fault: &Fault) -> String {
    let mut out = String::with_capacity(160 + fault.reason.len());
    let code = fault.code.name();
    let _ = write!(
        out,
        "<fault xmlns=\"{NAMESPACE}\" id=\"{id}\" code=\"{code}\""
    );
    if let Some(step) = &fault.step {
        out.push_str(" step=\"");
        xml::escape_into(&mut out, step);
        out.push('"');
    }
    out.push('>');
    xml::escape_into(&mut out, &fault.reason);
    out.push_str("</fault>");
    out
}

fn fault_json(id: MessageId, fault: &Fault) -> String {
    let mut out = String::with_capacity(160 + fault.reason.len());
    let code = fault.code.name();
    let _ = write!(
        out,
        "{{\"id\":\"{id}\",\"fault\":{{\"code\":\"{code}\",\"reason\":"
    );
    json_string(&mut out, &fault.reason);
    if let Some(step) = &fault.step {
        out.push_str(",\"step\":");
        json_string(&mut out, step);
    }
    out.push_str("}}");
    out
}

fn json_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A SOAP fault in its envelope. Faults of the header carry no detail (SOAP 1.1 section 4.4).
fn soap_fault(
    version: Version,
    id: MessageId,
    fault: &Fault,
    sender: bool,
    code: &SoapCode,
) -> String {
    let mut reason = String::with_capacity(fault.reason.len() + 16);
    xml::escape_into(&mut reason, &fault.reason);
    let detail = match code {
        SoapCode::Usual | SoapCode::Of { .. } => fault_element(id, fault),
        _ => String::new(),
    };
    let namespace = version.namespace();
    let word = match (code, version, sender) {
        (SoapCode::VersionMismatch, ..) => "VersionMismatch",
        (SoapCode::MustUnderstand(_), ..) => "MustUnderstand",
        (_, Version::V11, true) => "Client",
        (_, Version::V11, false) => "Server",
        (_, Version::V12, true) => "Sender",
        (_, Version::V12, false) => "Receiver",
    };
    let mut out = String::with_capacity(500 + reason.len() + detail.len());
    let _ = write!(out, "<soap:Envelope xmlns:soap=\"{namespace}\"");
    if let SoapCode::Of {
        prefix, namespace, ..
    } = code
    {
        let _ = write!(out, " xmlns:{prefix}=\"{namespace}\"");
    }
    out.push('>');
    match version {
        Version::V11 => {
            let (prefix, word) = match code {
                SoapCode::Of { prefix, codes, .. } => (*prefix, *codes.last().unwrap_or(&word)),
                _ => ("soap", word),
            };
            let _ = write!(
                out,
                "<soap:Body><soap:Fault><faultcode>{prefix}:{word}</faultcode><faultstring>{reason}</faultstring>"
            );
            if !detail.is_empty() {
                let _ = write!(out, "<detail>{detail}</detail>");
            }
        }
        Version::V12 => {
            header_of_fault(&mut out, code);
            let _ = write!(
                out,
                "<soap:Body><soap:Fault><soap:Code><soap:Value>soap:{word}</soap:Value>"
            );
            subcodes(&mut out, code);
            let _ = write!(
                out,
                "</soap:Code><soap:Reason><soap:Text xml:lang=\"en\">{reason}</soap:Text></soap:Reason>"
            );
            if !detail.is_empty() {
                let _ = write!(out, "<soap:Detail>{detail}</soap:Detail>");
            }
        }
    }
    out.push_str("</soap:Fault></soap:Body></soap:Envelope>");
    out
}

/// The codes within the code (SOAP 1.2 part 1 section 5.4.6).
fn subcodes(out: &mut String, code: &SoapCode) {
    let SoapCode::Of { prefix, codes, .. } = code else {
        return;
    };
    for word in *codes {
        let _ = write!(
            out,
            "<soap:Subcode><soap:Value>{prefix}:{word}</soap:Value>"
        );
    }
    out.extend(codes.iter().map(|_| "</soap:Subcode>"));
}

/// What was not understood, or which versions are (SOAP 1.2 part 1 section 5.4.7 and 5.4.8).
fn header_of_fault(out: &mut String, code: &SoapCode) {
    match code {
        SoapCode::Usual | SoapCode::Of { .. } => {}
        SoapCode::VersionMismatch => {
            let _ = write!(
                out,
                "<soap:Header><soap:Upgrade>\
                 <soap:SupportedEnvelope qname=\"v:Envelope\" xmlns:v=\"{NS_12}\"/>\
                 <soap:SupportedEnvelope qname=\"v:Envelope\" xmlns:v=\"{NS_11}\"/>\
                 </soap:Upgrade></soap:Header>"
            );
        }
        SoapCode::MustUnderstand(names) => {
            out.push_str("<soap:Header>");
            for name in names {
                out.push_str("<soap:NotUnderstood qname=\"n:");
                xml::escape_into(out, &name.local);
                out.push_str("\" xmlns:n=\"");
                xml::escape_into(out, &name.namespace);
                out.push_str("\"/>");
            }
            out.push_str("</soap:Header>");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn the_shape_follows_soap_then_accept_then_content_type() {
        let soap11 = Shape::Soap(Version::V11);
        let soap12 = Shape::Soap(Version::V12);
        for (pairs, expected) in [
            (&[][..], Shape::Json),
            (&[("content-type", "text/csv")], Shape::Json),
            (&[("content-type", "text/xml")], Shape::Xml),
            (&[("content-type", "application/atom+xml")], Shape::Xml),
            (
                &[("content-type", "application/soap+xml; action=x")],
                soap12,
            ),
            (&[("content-type", "text/xml"), ("soapaction", "")], soap11),
            (
                &[("content-type", "text/xml"), ("accept", "application/json")],
                Shape::Json,
            ),
            (
                &[("accept", "text/html, application/xml;q=0.9, */*")],
                Shape::Xml,
            ),
            (
                &[("accept", "application/json;q=0.5, text/xml;q=0.6")],
                Shape::Xml,
            ),
            (
                &[("content-type", "text/xml"), ("accept", "*/*")],
                Shape::Xml,
            ),
            (
                &[
                    ("content-type", "text/xml"),
                    ("accept", "text/xml, application/json"),
                ],
                Shape::Xml,
            ),
        ] {
            assert_eq!(Shape::of(&headers(pairs)), expected, "{pairs:?}");
        }
    }

    async fn text(answer: Answer) -> (u16, String) {
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn faults_take_every_shape_and_the_status_that_goes_with_it() {
        let id = MessageId::new();
        let failed = || -> Refusal {
            Fault::new(Code::Client, "a < \"b\"")
                .at(&Arc::from("erp"))
                .into()
        };
        let json = text(fault(Shape::Json, id, &failed())).await;
        let expected = format!(
            "{{\"id\":\"{id}\",\"fault\":{{\"code\":\"client\",\"reason\":\"a < \\\"b\\\"\",\"step\":\"erp\"}}}}"
        );
        assert_eq!(json, (400, expected));
        let element = format!(
            "<fault xmlns=\"urn:xbus:reply:1\" id=\"{id}\" code=\"client\" step=\"erp\">a &lt; &quot;b&quot;</fault>"
        );
        assert_eq!(
            text(fault(Shape::Xml, id, &failed())).await,
            (400, element.clone())
        );
        let (status, body) = text(fault(Shape::Soap(Version::V11), id, &failed())).await;
        assert_eq!(status, 500);
        assert!(
            body.contains("<faultcode>soap:Client</faultcode>"),
            "{body}"
        );
        assert!(
            body.contains(&format!("<detail>{element}</detail>")),
            "{body}"
        );
        let (status, body) = text(fault(Shape::Soap(Version::V12), id, &failed())).await;
        assert_eq!(status, 400);
        assert!(
            body.contains("<soap:Value>soap:Sender</soap:Value>"),
            "{body}"
        );
    }

    #[tokio::test]
    async fn statuses_follow_the_code_and_soap_keeps_what_http_says() {
        let id = MessageId::new();
        for (code, plain, soap11, soap12) in [
            (Code::Client, 400, 500, 400),
            (Code::Unroutable, 422, 500, 400),
            (Code::NotFound, 404, 404, 404),
            (Code::Denied, 403, 403, 403),
            (Code::TooLarge, 413, 413, 413),
            (Code::Unsupported, 415, 415, 415),
            (Code::Overloaded, 503, 503, 503),
            (Code::Destination, 502, 500, 500),
            (Code::Timeout, 504, 500, 500),
            (Code::InDoubt, 504, 500, 500),
            (Code::Transform, 500, 500, 500),
            (Code::Internal, 500, 500, 500),
        ] {
            let refusal = Refusal::new(code, "x");
            for (shape, status) in [
                (Shape::Json, plain),
                (Shape::Soap(Version::V11), soap11),
                (Shape::Soap(Version::V12), soap12),
            ] {
                assert_eq!(fault(shape, id, &refusal).status(), status, "{code:?}");
            }
        }
        let mut limited = Fault::new(Code::Overloaded, "x");
        limited.http_status = Some(429);
        let answer = fault(
            Shape::Json,
            id,
            &limited
                .retry_after(std::time::Duration::from_millis(1200))
                .into(),
        );
        assert_eq!(answer.status(), 429);
        assert_eq!(answer.headers()[RETRY_AFTER], "2");
        assert_eq!(answer.headers()[&MESSAGE_ID], id.to_string());
    }

    #[tokio::test]
    async fn acknowledgements_say_what_became_of_the_message() {
        let id = MessageId::new();
        let json = acknowledgement(Shape::Json, id, Status::Accepted);
        let expected = format!("{{\"id\":\"{id}\",\"status\":\"accepted\"}}");
        assert_eq!(text(json).await, (202, expected));
        let soap = acknowledgement(Shape::Soap(Version::V11), id, Status::Accepted);
        let (status, body) = text(soap).await;
        assert_eq!(status, 200);
        let element = format!("<ack xmlns=\"urn:xbus:reply:1\" id=\"{id}\" status=\"accepted\"/>");
        assert!(body.contains(&format!("<soap:Body>{element}</soap:Body>")));
        let plain = acknowledgement(Shape::Xml, id, Status::Filtered);
        assert_eq!(text(plain).await.0, 200);
    }
}
