//! One request to a destination: sent, answered, and judged. A variant of [`SendError`] says what
//! is known of the destination: nothing was done, it does not want the message, or unknown.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER,
};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::Instant;
use xbus_core::adapter::Class;
use xbus_core::{Attachments, Call, Fault, Message, SendError, Timestamp};
use xbus_xml::XmlLimits;

use crate::body::{self, BodyError};
use crate::package;
use crate::pool::SessionRefused;
use crate::security::Outgoing;
use crate::sender::{Config, Identity};
use crate::soap::{self, Envelope, FaultSide};
use crate::{heads, splice, wellformed};

/// As much of the answer of a failure is looked at.
const FAILURE_BODY: u64 = 64 * 1024;
/// As many characters of it are told.
const TOLD: usize = 200;
/// Redirects that are followed.
const REDIRECTS: usize = 5;
/// A decoded answer may be so much larger than what came.
const RATIO: u64 = 100;

/// A request that is ready to go.
pub(crate) struct HttpCall {
    pub(crate) config: Arc<Config>,
    pub(crate) message: Arc<Message>,
    pub(crate) target: Uri,
    pub(crate) identity: Identity,
    /// Of the body; nothing where the format says nothing.
    pub(crate) content_type: Option<HeaderValue>,
    /// What is sent beside what every request of the sender has, or in place of it.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// What makes the header of WS-Security, and the byte of the body at which it goes.
    pub(crate) security: Option<(Arc<Outgoing>, usize)>,
}

impl Call for HttpCall {
    fn run(&self, deadline: Instant) -> BoxFuture<'_, Result<Message, SendError>> {
        Box::pin(async move {
            let sent = AtomicBool::new(false);
            match tokio::time::timeout_at(deadline, self.exchange(&sent)).await {
                Ok(result) => result,
                Err(_) if sent.load(Relaxed) => Err(SendError::unknown(format!(
                    "{} was sent and not answered in time",
                    self.shown()
                ))
                .timed_out()),
                Err(_) => Err(SendError::outage(format!(
                    "{}: no connection could be made in time",
                    self.shown()
                ))
                .timed_out()),
            }
        })
    }
}

/// Where a redirect leads.
struct Redirect {
    method: Method,
    target: Uri,
}

impl HttpCall {
    /// Method and address for administrators: without user and query, where credentials may be.
    fn shown(&self) -> String {
        let query = if self.target.query().is_some() {
            "?…"
        } else {
            ""
        };
        format!(
            "{} {}{}{query}",
            self.config.method,
            self.config.destination.shown(),
            self.target.path()
        )
    }

    /// The body as one attempt sends it.
    fn body(&self) -> Result<Bytes, SendError> {
        let Some((security, at)) = &self.security else {
            return Ok(self.body.clone());
        };
        let header = security.header(Timestamp::now()).ok_or_else(|| {
            SendError::outage(format!(
                "{}: the system gives no random numbers for a nonce",
                self.shown()
            ))
        })?;
        Ok(splice::insert(&self.body, *at, &header))
    }

    async fn exchange(&self, sent: &AtomicBool) -> Result<Message, SendError> {
        let mut moved: Option<Box<Redirect>> = None;
        for _ in 0..=REDIRECTS {
            let (method, target) = match &moved {
                Some(moved) => (&moved.method, &moved.target),
                None => (&self.config.method, &self.target),
            };
            let (answer, handle) = self.send(method, target, sent).await?;
            let (head, incoming) = answer.into_parts();
            let good = self.config.success.holds(head.status);
            let limit = if good || self.config.passes_fault(head.status) {
                self.config.max_body
            } else {
                FAILURE_BODY
            };
            // The deadline bounds the body, not its pauses.
            let body = body::collect(incoming, limit, None).await;
            if body.is_ok() {
                self.config.destination.put(handle);
            }
            // Whatever else has come goes on first as far as here: the answers then leave one after the other,
            // and who gets them is woken once for many.
            tokio::task::yield_now().await;
            if !good && self.config.follow && head.status.is_redirection() {
                match self.redirect(method, head.status, &head.headers) {
                    Ok(next) => {
                        moved = Some(Box::new(next));
                        continue;
                    }
                    Err(why) => {
                        let mut error = self.failed(head.status, &head.headers);
                        error.detail = format!("{}: {why}", error.detail);
                        return Err(error);
                    }
                }
            }
            return self.judge(head.status, &head.headers, body).await;
        }
        Err(SendError::outage(format!(
            "{} was redirected more than {REDIRECTS} times",
            self.shown()
        )))
    }

    fn request(&self, method: &Method, target: &Uri, body: Bytes) -> Request<Full<Bytes>> {
        let mut headers = self.config.usual().clone();
        // By name and not by `insert`, for which each name would be hashed.
        for (name, value) in &mut headers {
            match *name {
                CONTENT_LENGTH => *value = HeaderValue::from(body.len()),
                CONTENT_TYPE => {
                    if let Some(said) = &self.content_type {
                        *value = said.clone();
                    }
                }
                _ => self.identity.tell(name, value),
            }
        }
        if self.content_type.is_none() {
            headers.remove(CONTENT_TYPE);
        }
        if body.is_empty() {
            headers.remove(CONTENT_LENGTH);
        }
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method.clone();
        *request.uri_mut() = target.clone();
        *request.headers_mut() = headers;
        request
    }

    /// Sends over a connection that waits, or over a new one. A request that was certainly not
    /// sent goes over the next connection; so does a GET or HEAD over a kept connection that was
    /// lost without an answer, since it changes nothing (RFC 9110 section 9.2.2).
    async fn send(
        &self,
        method: &Method,
        target: &Uri,
        sent: &AtomicBool,
    ) -> Result<
        (
            Response<Incoming>,
            hyper::client::conn::http1::SendRequest<Full<Bytes>>,
        ),
        SendError,
    > {
        let destination = &self.config.destination;
        let body = self.body()?;
        // Made when there is a connection for it, so that nothing holds it while there is none.
        let mut unsent: Option<Box<Request<Full<Bytes>>>> = None;
        loop {
            let (mut handle, kept) = match destination.take().await {
                Some(handle) => (handle, true),
                None => {
                    // Boxed, for it is large and seldom needed.
                    let handle = Box::pin(destination.connect()).await.map_err(|error| {
                        SendError::outage(format!("{}: no connection: {error}", self.shown()))
                    })?;
                    (handle, false)
                }
            };
            let before = sent.swap(true, Relaxed);
            let sending = handle.try_send_request(match unsent.take() {
                Some(request) => *request,
                None => self.request(method, target, body.clone()),
            });
            let mut failure = match sending.await {
                Ok(answer) => return Ok((answer, handle)),
                Err(failure) => failure,
            };
            match failure.take_message() {
                Some(request) => {
                    sent.store(before, Relaxed);
                    if kept {
                        unsent = Some(Box::new(request));
                        continue;
                    }
                    return Err(SendError::outage(format!(
                        "{}: the connection was closed before the request was sent",
                        self.shown()
                    )));
                }
                None => {
                    let error = failure.into_error();
                    // The request was not processed, whatever of it was written.
                    if let Some(refused) = SessionRefused::behind(&error) {
                        sent.store(before, Relaxed);
                        return Err(SendError::outage(format!("{}: {refused}", self.shown())));
                    }
                    let harmless = matches!(*method, Method::GET | Method::HEAD);
                    if kept && harmless && (error.is_incomplete_message() || error.is_closed()) {
                        continue;
                    }
                    let what = if error.is_parse() {
                        "was answered with something that is not HTTP"
                    } else {
                        "was sent, and the connection was lost before the answer"
                    };
                    return Err(SendError::unknown(format!(
                        "{} {what}: {}",
                        self.shown(),
                        with_sources(&error)
                    )));
                }
            }
        }
    }

    /// Where a redirect leads, when it may be followed.
    fn redirect(
        &self,
        from: &Method,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<Redirect, &'static str> {
        let harmless = matches!(*from, Method::GET | Method::HEAD);
        let method = match status.as_u16() {
            307 | 308 => from.clone(),
            301..=303 if harmless => from.clone(),
            _ => return Err("a redirect that would lose the body is not followed"),
        };
        let location: Uri = headers
            .get(LOCATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse().ok())
            .ok_or("a redirect without a usable Location")?;
        let same_place = match (location.scheme_str(), location.authority()) {
            (None, None) => location.path().starts_with('/'),
            (Some(scheme), Some(authority)) => {
                let usual = if scheme == "https" { 443 } else { 80 };
                let place = format!(
                    "{scheme}://{}:{}",
                    authority.host(),
                    authority.port_u16().unwrap_or(usual)
                );
                place.eq_ignore_ascii_case(&self.config.destination.shown())
            }
            _ => false,
        };
        if !same_place {
            return Err("a redirect to another scheme, host or port is not followed");
        }
        let target = location
            .path_and_query()
            .cloned()
            .map(Uri::from)
            .ok_or("a redirect without a path")?;
        Ok(Redirect { method, target })
    }

    /// Whether an answer is good, and what it makes of the message.
    async fn judge(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        body: Result<Bytes, BodyError>,
    ) -> Result<Message, SendError> {
        let passes = self.config.passes_fault(status);
        if !self.config.success.holds(status) {
            let body = body.unwrap_or_default();
            let limit = if passes {
                self.config.max_body
            } else {
                FAILURE_BODY
            };
            let body = decoded(headers, body, limit).await.unwrap_or_default();
            // Whatever cannot be opened is shown as it came.
            let content = self
                .content(headers, body.clone())
                .await
                .unwrap_or_else(|_| Content::of(headers, body));
            if passes && content.is_whole_fault() {
                return Ok(self.response(status, headers, content));
            }
            let Content {
                content_type, body, ..
            } = content;
            let content_type = content_type.as_deref();
            let mut error = self.failed(status, headers);
            // What a SOAP fault says of itself is more exact than these two statuses.
            if matches!(status.as_u16(), 400 | 500)
                && let Some((_, side)) = soap::fault_in(content_type, &body)
            {
                error.class = class_of(side);
            }
            return Err(with_answer(error, told(&body)));
        }
        let unreadable = |why: &str| {
            SendError::unknown(format!(
                "{} was answered with {}, and the answer cannot be read: {why}",
                self.shown(),
                status.as_u16()
            ))
        };
        let body = match body {
            Ok(body) => decoded(headers, body, self.config.max_body).await,
            Err(error) => Err(error),
        };
        let body = body.map_err(|error| match error {
            BodyError::TooLarge | BodyError::Ratio => {
                unreadable(&format!("it is larger than {} bytes", self.config.max_body))
            }
            BodyError::Lost(why) => unreadable(&why),
            BodyError::Slow => unreadable("it did not come to its end"),
            BodyError::Coding(coding) => unreadable(&format!("its coding is '{coding}'")),
            BodyError::Corrupt => unreadable("it is not what its coding says"),
        })?;
        let content = self
            .content(headers, body)
            .await
            .map_err(|fault| unreadable(&fault.reason))?;
        // A fault never counts as success, unless the route asks for that status on purpose.
        let passed = passes && content.is_whole_fault();
        if status.is_success()
            && !passed
            && let Some((_, side)) = soap::fault_in(content.content_type.as_deref(), &content.body)
        {
            let mut error = self.failed(status, headers);
            error.class = class_of(side);
            return Err(with_answer(error, told(&content.body)));
        }
        let sends_soap = self.config.sends_soap() && !content.body.is_empty();
        if status.is_success() && sends_soap && !passed {
            self.check_envelope(&content)
                .map_err(|why| unreadable(&why))?;
        }
        Ok(self.response(status, headers, content))
    }

    /// A page of a proxy or a form to log in is no answer of a SOAP service, whatever its status.
    fn check_envelope(&self, content: &Content<'_>) -> Result<(), String> {
        let charset = content
            .content_type
            .as_deref()
            .and_then(xbus_charset::label);
        match soap::look(&content.body, charset, false) {
            Ok(Envelope {
                version: Some(_),
                fault: None,
                ..
            }) if soap::is_cut_off(&content.body) => {
                Err(String::from("the envelope ends in the middle"))
            }
            Ok(Envelope {
                version: Some(_),
                fault: None,
                ..
            }) => Ok(()),
            Ok(Envelope { fault: Some(_), .. }) => Err(String::from(
                "it is a SOAP fault, and its content type is not SOAP's",
            )),
            Ok(_) => Err(String::from("it is no SOAP envelope")),
            Err(why) => Err(format!("it is no SOAP envelope: {why}")),
        }
    }

    /// What the answer holds: a multipart is opened where the step sends SOAP or forms.
    async fn content<'a>(&self, headers: &'a HeaderMap, body: Bytes) -> Result<Content<'a>, Fault> {
        let whole = Content::of(headers, body);
        match &whole.content_type {
            Some(said) if self.config.opens() && package::is_multipart(said) => {
                let opened = Box::pin(package::open_aside(said, whole.body, None)).await?;
                Ok(Content {
                    content_type: Some(opened.content_type.into()),
                    body: opened.body,
                    attachments: opened.attachments,
                })
            }
            _ => Ok(whole),
        }
    }

    /// A failure by its status alone. Its detail says nothing of the answer's body.
    fn failed(&self, status: StatusCode, headers: &HeaderMap) -> SendError {
        let detail = format!("{} was answered with {}", self.shown(), status.as_u16());
        let mut error = match status.as_u16() {
            401 | 403 | 404 | 408 | 429 => SendError::outage(detail),
            400..=499 => SendError::rejected(detail),
            _ => SendError::outage(detail),
        };
        error.retry_after = retry_after(headers);
        error
    }

    /// The response as a message: the answer's body, attachments and headers, and the message's own
    /// headers.
    fn response(&self, status: StatusCode, headers: &HeaderMap, content: Content<'_>) -> Message {
        let size: usize = headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + UNDER.len())
            .sum();
        let mut all = self
            .message
            .headers
            .kept(stays, headers.len() + 2, size + 64);
        if let Some(content_type) = &content.content_type {
            all.append("content-type", content_type);
        }
        all.append("http.status", status.as_str());
        heads::add_all(&mut all, UNDER, headers, heads::answer_passes);
        let message = &self.message;
        Message {
            id: message.id,
            correlation_id: message.correlation_id.clone(),
            received_at: message.received_at,
            headers: all,
            body: content.body.into(),
            attachments: content.attachments,
            format: None,
        }
    }
}

/// Begins the names under which a message has the headers of an answer.
const UNDER: &str = "http.";

/// Whether a message keeps its own header when it becomes a response: what an earlier answer said, and
/// what describes the body, it does not.
fn stays(name: &str) -> bool {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    match name.len() {
        12 => !is("content-type") && !of_an_answer(name),
        16 => !is("content-encoding") && !of_an_answer(name),
        11 => is("http.method") || is("http.client") || !of_an_answer(name),
        _ => !of_an_answer(name),
    }
}

fn of_an_answer(name: &str) -> bool {
    name.get(..UNDER.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(UNDER))
}

/// What an answer holds.
struct Content<'a> {
    content_type: Option<Cow<'a, str>>,
    body: Bytes,
    attachments: Attachments,
}

impl<'a> Content<'a> {
    /// Whether it is a fault of SOAP, and well-formed to its end.
    fn is_whole_fault(&self) -> bool {
        let said = self.content_type.as_deref();
        let charset = said.and_then(xbus_charset::label);
        let limits = XmlLimits::default();
        soap::fault_in(said, &self.body).is_some()
            && wellformed::check(&self.body, charset, limits.depth, limits.attributes, true).is_ok()
    }

    /// The body as it came.
    fn of(headers: &'a HeaderMap, body: Bytes) -> Self {
        Self {
            content_type: package::said(headers),
            body,
            attachments: Attachments::default(),
        }
    }
}

/// The answer's body without its content coding.
async fn decoded(headers: &HeaderMap, body: Bytes, limit: u64) -> Result<Bytes, BodyError> {
    match headers.get(CONTENT_ENCODING) {
        None => Ok(body),
        Some(coding) => {
            let coding = coding.to_str().unwrap_or("?");
            Box::pin(body::decode(coding, body, limit, RATIO)).await
        }
    }
}

fn class_of(side: FaultSide) -> Class {
    match side {
        FaultSide::Sender | FaultSide::Envelope => Class::Rejected,
        FaultSide::Receiver => Class::Outage,
    }
}

/// Adds what the destination said to a failure, apart from the detail: it may repeat the message.
fn with_answer(error: SendError, quote: String) -> SendError {
    error.answer(quote)
}

/// The beginning of a body, on one line.
fn told(body: &[u8]) -> String {
    if body.is_empty() {
        return "(empty)".into();
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(TOLD * 4)]);
    let mut out = String::new();
    for c in text.chars().take(TOLD) {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    if text.chars().nth(TOLD).is_some() {
        out.push('…');
    }
    out
}

/// `Retry-After` (RFC 9110 section 10.2.3): seconds or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(
        at.duration_since(SystemTime::now())
            .unwrap_or(Duration::ZERO),
    )
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(deeper) = source {
        text.push_str(": ");
        text.push_str(&deeper.to_string());
        source = deeper.source();
    }
    text
}
