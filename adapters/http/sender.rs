//! The sending side: what a route says of an `http` step or target, and the requests made of it.

use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderName,
    HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, StatusCode, Uri};
use xbus_charset::Writing;
use xbus_core::adapter::SenderKind;
use xbus_core::spec::{Args, Field, Raw, Role, Type};
use xbus_core::template::Template;
use xbus_core::{Code, Context, Fault, Message, MessageId, Reach, Request, Sender};

use crate::call::HttpCall;
use crate::pack::{self, Attach};
use crate::pool::{Destination, TlsIdentity};
use crate::security::{OUT_TOKEN_FIELDS, Outgoing};
use crate::settings::is_loopback;
use crate::soap::{self, Version};
use crate::url::Url;
use crate::{addressing, form, heads, splice, tls, wrap};

pub(crate) static FIELDS: &[Field] = &[
    Field::new(
        "url",
        Type::Template,
        "The address, `http://…` or `https://…`. What `{{ }}` gives is percent-encoded as one path segment or query value; scheme, host and port cannot come from a message.",
    )
    .required(),
    Field::new("method", Type::Text, "The request method. GET and HEAD are sent without a body.")
        .default("POST"),
    Field::new(
        "headers",
        Type::Either(&[Type::Text, Type::List(&Type::Text), Type::Map(&Type::Template)]),
        "A list of message headers to send along, or a map of names to values. Content type, X-Message-Id, X-Correlation-Id, Idempotency-Key and traceparent are always sent.",
    ),
    Field::new(
        "charset",
        xbus_charset::TYPE,
        "Sends the text in this charset (IANA label); XML declaration and content type say so. Left out: the bytes as they are.",
    ),
    Field::new("auth", Type::Object(AUTH_FIELDS), "The credentials to send."),
    Field::new(
        "soap",
        Type::Either(&[Type::Choice(&["1.1", "1.2"]), Type::Object(SOAP_FIELDS)]),
        "Sends SOAP envelopes: a body that is none is wrapped into one.",
    ),
    Field::new(
        "attach",
        Type::Choice(&["mtom", "swa", "inline", "form", "none"]),
        "How attachments are sent. With `soap`: `mtom` or `swa`, in a multipart beside the envelope; `inline`, as base64 where the envelope refers to them by `xop:Include`. Without `soap`: `form`, as files of a `multipart/form-data`. `none`: not at all. Left out, SOAP takes MTOM where the envelope has an `xop:Include`, else SwA; without `soap` the body is sent alone.",
    ),
    Field::new("tls", Type::Object(TLS_FIELDS), "Certificates for https."),
    Field::new(
        "success",
        Type::OneOrMany(&Type::Text),
        "The statuses that count as success: numbers (`404`), ranges (`200-299`) or classes (`2xx`).",
    )
    .default("2xx"),
    Field::new(
        "follow",
        Type::Bool,
        "Follows redirects (at most 5) on the same scheme, host and port: of any kind for GET and HEAD, 307 and 308 for other methods. Any other redirect is a failure.",
    )
    .default("false"),
];

static AUTH_FIELDS: &[Field] = &[
    Field::new("basic", Type::Object(BASIC_FIELDS), "User and password."),
    Field::new(
        "bearer",
        Type::Secret,
        "A token for `Authorization: Bearer`.",
    ),
    Field::new(
        "api_key",
        Type::Object(API_KEY_FIELDS),
        "A key in a header of its own.",
    ),
];

static BASIC_FIELDS: &[Field] = &[
    Field::new("user", Type::Text, "The user.").required(),
    Field::new("password", Type::Secret, "The password.").required(),
];

static API_KEY_FIELDS: &[Field] = &[
    Field::new("header", Type::Text, "The header that holds the key.").default("X-Api-Key"),
    Field::new("value", Type::Secret, "The key.").required(),
];

pub(crate) static SOAP_FIELDS: &[Field] = &[
    Field::new(
        "version",
        Type::Choice(&["1.1", "1.2"]),
        "The version of SOAP.",
    )
    .default("1.1"),
    Field::new(
        "action",
        Type::Template,
        "The SOAP action: the header SOAPAction (1.1), or the parameter `action` of the content type (1.2). It may stand in quotes, as in that header.",
    ),
    Field::new(
        "username_token",
        Type::Object(OUT_TOKEN_FIELDS),
        "Puts a wsse:Security header with a UsernameToken into the envelope, made anew for each attempt, in place of one that is there.",
    ),
    Field::new(
        "timestamp",
        Type::Duration,
        "Puts a wsu:Timestamp into the wsse:Security header: for so long from when it is sent the message may be used.",
    ),
    Field::new(
        "faults",
        Type::Choice(&["fail", "pass"]),
        "What becomes of a SOAP fault that the destination answers. `fail`: the step fails. `pass` (only in `invoke`): the fault is the step's response, and the route goes on with it.",
    )
    .default("fail"),
    Field::new(
        "addressing",
        Type::Bool,
        "Puts the headers To, Action and MessageID of WS-Addressing 1.0 into the envelope, as far as it lacks them. Needs `action`.",
    )
    .default("false"),
];

static TLS_FIELDS: &[Field] = &[
    Field::new(
        "ca",
        Type::Path,
        "Certificates (PEM) of the authorities to believe, in place of the machine's own.",
    ),
    Field::new("cert", Type::Path, "The client certificate chain (PEM)."),
    Field::new(
        "key",
        Type::Path,
        "The client certificate's private key (PEM).",
    ),
];

/// The sending side of the kind.
pub(crate) fn kind() -> SenderKind {
    SenderKind {
        fields: FIELDS,
        example: "http: { url: \"http://127.0.0.1:9001/stock\", headers: [order-id] }\n",
        answers: true,
        build: Box::new(|args| build(args).map(|sender| Arc::new(sender) as Arc<dyn Sender>)),
    }
}

/// A sender as it runs.
pub(crate) struct HttpSender(Arc<Config>);

/// What all requests of a sender share.
pub(crate) struct Config {
    /// `build.step`: the second half of the idempotency key.
    pub(crate) step: Arc<str>,
    pub(crate) method: Method,
    url: Url,
    pub(crate) destination: Arc<Destination>,
    headers: Sent,
    pub(crate) credential: Option<(HeaderName, HeaderValue)>,
    soap: Option<SoapOut>,
    attach: Option<Attach>,
    charset: Option<Writing>,
    pub(crate) success: Success,
    pub(crate) follow: bool,
    /// Largest answer in bytes.
    pub(crate) max_body: u64,
}

/// Which message headers go along.
enum Sent {
    Named(Vec<HeaderName>),
    Made(Vec<(HeaderName, Template)>),
}

struct SoapOut {
    version: Version,
    action: Option<Template>,
    security: Option<Arc<Outgoing>>,
    addressing: bool,
    passes_faults: bool,
}

/// Which statuses are good.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Success(Vec<(u16, u16)>);

impl Success {
    fn parse(text: &str) -> Option<(u16, u16)> {
        let in_range = |status: &u16| (200..=599).contains(status);
        let number = |text: &str| text.trim().parse::<u16>().ok().filter(in_range);
        if let Some(class) = text.strip_suffix("xx") {
            let class: u16 = class.parse().ok()?;
            return in_range(&(class * 100)).then_some((class * 100, class * 100 + 99));
        }
        match text.split_once('-') {
            Some((from, to)) => {
                let (from, to) = (number(from)?, number(to)?);
                (from <= to).then_some((from, to))
            }
            None => number(text).map(|one| (one, one)),
        }
    }

    /// Whether a status counts as success.
    pub(crate) fn holds(&self, status: StatusCode) -> bool {
        let status = status.as_u16();
        self.0
            .iter()
            .any(|(from, to)| (*from..=*to).contains(&status))
    }
}

fn bad(args: Args<'_>, key: &str, message: String, help: &str) {
    args.build
        .problems
        .error(&args.place(key), "bad-value", message, help);
}

pub(crate) fn build(args: Args<'_>) -> Option<HttpSender> {
    let url = args
        .template("url")
        .and_then(|template| url(args, &template));
    let method = method(args);
    let headers = sent(args);
    let soap = args.has("soap").then(|| soap_out(args));
    if soap.is_some()
        && method
            .as_ref()
            .is_some_and(|method| *method != Method::POST)
    {
        let message = "SOAP is sent with POST".to_owned();
        bad(args, "method", message, "leave 'method' out");
    }
    let attach = attach(args, soap.is_some(), method.as_ref());
    let success = success(args);
    let charset = Writing::read(args, "charset");
    let (url, destination, credential) = place(args, url)?;
    let shown = soap
        .as_ref()
        .and_then(|soap| soap.security.as_ref())
        .is_some_and(|security| security.shows_password());
    if shown && !url.secure && !is_loopback(&url.host) {
        args.build.problems.warning(
            &args.place("soap"),
            "clear-password",
            "the password of username_token goes to the destination unencrypted",
            "write https:// in 'url', or send a digest (type: digest)",
        );
    }
    let headed = soap
        .as_ref()
        .is_some_and(|soap| soap.security.is_some() || soap.addressing);
    if headed && args.has("charset") {
        let message = "what WS-Security and WS-Addressing put into envelopes goes out in UTF-8";
        bad(args, "charset", message.to_owned(), "leave 'charset' out");
        return None;
    }
    let method = method?;
    Some(HttpSender(Arc::new(Config {
        step: args.build.step.clone(),
        method,
        destination,
        url,
        headers: headers?,
        credential,
        soap,
        attach: attach?,
        charset: charset?,
        success: success?,
        follow: args.boolean("follow"),
        max_body: args.build.max_body,
    })))
}

/// What can stand under `alerts.webhook`, `timeout` apart.
pub(crate) const POST_FIELDS: [Field; 4] = [
    Field::new(
        "url",
        Type::Text,
        "The address, `http://…` or `https://…`. Its path is not shown anywhere: with many services it is the password.",
    )
    .required(),
    Field::new(
        "headers",
        Type::Map(&Type::Secret),
        "Further request headers.",
    ),
    Field::new("auth", Type::Object(AUTH_FIELDS), "The credentials to send."),
    Field::new("tls", Type::Object(TLS_FIELDS), "Certificates for https."),
];

/// A sender that posts, named `step` in the idempotency key, from [`POST_FIELDS`].
pub(crate) fn build_post(args: Args<'_>, step: &str) -> Option<HttpSender> {
    let text = args.text("url")?;
    let url = url(args, &Template::constant(text));
    let mut headers = Some(Vec::new());
    for (key, node) in args.entries("headers") {
        let value = node.text().unwrap_or_default().to_owned();
        if HeaderValue::from_bytes(value.as_bytes()).is_err() {
            let message = format!("the value of '{}' holds a control character", key.name);
            bad(args, "headers", message, "a header is one line of text");
            headers = None;
        }
        match header_name(args, "headers", &key.name) {
            Some(name) => {
                if let Some(all) = &mut headers {
                    all.push((name, Template::constant(value)));
                }
            }
            None => headers = None,
        }
    }
    let (url, destination, credential) = place(args, url)?;
    if !url.secure && !is_loopback(&url.host) {
        args.build.problems.warning(
            &args.place("url"),
            "clear-password",
            "what is posted, and who posts it, goes over the network unencrypted",
            "write https:// in 'url'",
        );
    }
    Some(HttpSender(Arc::new(Config {
        step: Arc::from(step),
        method: Method::POST,
        destination,
        url,
        headers: Sent::Made(headers?),
        credential,
        soap: None,
        attach: None,
        charset: None,
        success: Success(vec![(200, 299)]),
        follow: false,
        max_body: 64 * 1024,
    })))
}

impl HttpSender {
    /// Scheme, host and port, for people.
    pub(crate) fn destination(&self) -> String {
        self.0.destination.shown()
    }

    /// A text for administrators in which the address's own path does not show.
    pub(crate) fn without_path(&self, text: &str) -> String {
        match self.0.url.path() {
            Some(path) if path.len() > 1 => text.replace(path, "/..."),
            _ => text.to_owned(),
        }
    }
}

impl Config {
    /// The headers that every request has, in the order in which they go out; the values of those
    /// that differ are to be filled in.
    pub(crate) fn usual(&self) -> &HeaderMap {
        let bodied = !matches!(self.method, Method::GET | Method::HEAD);
        self.destination.usual(bodied, |authority| {
            let later = HeaderValue::from_static("");
            // Room for what hyper looks for, so that a copy does not grow.
            let mut headers = HeaderMap::with_capacity(12);
            headers.insert(HOST, authority.clone());
            for name in [&heads::MESSAGE_ID, &CORRELATION_ID, &IDEMPOTENCY_KEY] {
                headers.insert(name.clone(), later.clone());
            }
            if bodied {
                headers.insert(CONTENT_TYPE, later.clone());
                headers.insert(CONTENT_LENGTH, later);
            }
            headers
        })
    }
}

fn url(args: Args<'_>, template: &Template) -> Option<Url> {
    Url::parse(template)
        .map_err(|(message, help)| bad(args, "url", message, help))
        .ok()
}

type Place = (Url, Arc<Destination>, Option<(HeaderName, HeaderValue)>);

/// Where requests go, and how they prove who sends them.
fn place(args: Args<'_>, url: Option<Url>) -> Option<Place> {
    let identity = tls_identity(args);
    let own = credential(args);
    let url = url?;
    if url.user_info.is_some() && args.has("auth") {
        let message = "credentials stand twice: in 'url' and in 'auth'".to_owned();
        let help = "keep 'auth', and leave the user out of 'url'";
        bad(args, "auth", message, help);
        return None;
    }
    let credential = own?.or_else(|| url.user_info.as_deref().and_then(basic));
    if args.has("tls") && !url.secure {
        let message = "'tls' is set for an http:// address".to_owned();
        bad(
            args,
            "tls",
            message,
            "write https:// in 'url', or leave 'tls' out",
        );
    }
    let destination = Destination::of(url.secure, &url.host, url.port, identity?)?;
    Some((url, destination, credential))
}

fn method(args: Args<'_>) -> Option<Method> {
    let text = args.text("method")?;
    match Method::from_bytes(text.to_ascii_uppercase().as_bytes()) {
        Ok(method) if method != Method::CONNECT => Some(method),
        _ => {
            let message = format!("'{text}' is not a request method");
            bad(
                args,
                "method",
                message,
                "write POST, GET, PUT, PATCH or DELETE",
            );
            None
        }
    }
}

/// A header name that a route may set.
fn header_name(args: Args<'_>, key: &str, text: &str) -> Option<HeaderName> {
    let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
        let message = format!("'{text}' is not a header name");
        bad(args, key, message, "letters, digits and '-' make a name");
        return None;
    };
    let framing = matches!(
        name,
        HOST | CONTENT_LENGTH | TRANSFER_ENCODING | CONNECTION | TE | TRAILER | UPGRADE | EXPECT
    );
    if framing {
        let message = format!("the header '{text}' is set by HTTP itself");
        bad(args, key, message, "leave it out");
        return None;
    }
    Some(name)
}

fn sent(args: Args<'_>) -> Option<Sent> {
    match args.node("headers").map(|node| &node.raw) {
        Some(Raw::Map(entries)) => {
            let mut made = Vec::new();
            let mut good = true;
            for (key, node) in entries {
                match (
                    header_name(args, "headers", &key.name),
                    args.build.template(node),
                ) {
                    (Some(name), Some(template)) => made.push((name, template)),
                    _ => good = false,
                }
            }
            good.then_some(Sent::Made(made))
        }
        _ => {
            let names = args.texts("headers");
            let wanted = names.len();
            let found: Vec<HeaderName> = names
                .iter()
                .filter_map(|name| header_name(args, "headers", name))
                .collect();
            (found.len() == wanted).then_some(Sent::Named(found))
        }
    }
}

fn soap_out(args: Args<'_>) -> SoapOut {
    let short = args.node("soap").and_then(|node| node.text());
    let inner = args.object("soap", SOAP_FIELDS);
    let version = Version::written(short, inner).unwrap_or(Version::V11);
    if short.is_some() {
        return SoapOut {
            version,
            action: None,
            security: None,
            addressing: false,
            passes_faults: false,
        };
    }
    let addressing = inner.boolean("addressing");
    if addressing && !inner.has("action") {
        let message = "WS-Addressing needs an action, and none is named".to_owned();
        bad(inner, "addressing", message, "add action: \"urn:…\"");
    }
    let passes_faults = inner.text("faults").as_deref() == Some("pass");
    if passes_faults && args.build.role != Role::Invoke {
        let message = "a target whose fault is passed on would count as delivered".to_owned();
        let help = "leave 'faults' out, or ask the destination in a step of invoke";
        bad(inner, "faults", message, help);
    }
    SoapOut {
        version,
        passes_faults,
        action: inner.template("action"),
        security: Outgoing::build(inner, version).map(Arc::new),
        addressing,
    }
}

/// The outer `Option` is empty when something is wrong, the inner when nothing is said.
fn attach(args: Args<'_>, soap: bool, method: Option<&Method>) -> Option<Option<Attach>> {
    let Some(word) = args.text("attach") else {
        return Some(None);
    };
    let attach = Attach::from_name(&word)?;
    let (message, help) = match attach {
        Attach::Mtom | Attach::Swa | Attach::Inline if !soap => (
            format!("'{word}' is a way of SOAP, which this step does not send"),
            "add soap: \"1.1\", or send the attachments as files with attach: form",
        ),
        Attach::Form if soap => (
            "a form is not SOAP, which this step sends".to_owned(),
            "write attach: mtom, swa or inline, or leave 'soap' out",
        ),
        Attach::Form if method.is_some_and(|m| matches!(*m, Method::GET | Method::HEAD)) => (
            "a request without a body has no place for attachments".to_owned(),
            "leave 'method' out, or write POST",
        ),
        _ => return Some(Some(attach)),
    };
    bad(args, "attach", message, help);
    None
}

fn success(args: Args<'_>) -> Option<Success> {
    let mut ranges = Vec::new();
    for text in args.texts("success") {
        match Success::parse(&text) {
            Some(range) => ranges.push(range),
            None => {
                let message = format!("'{text}' is neither a status nor a range of them");
                bad(args, "success", message, "write 200, 200-299 or 2xx");
                return None;
            }
        }
    }
    Some(Success(ranges))
}

fn tls_identity(args: Args<'_>) -> Option<TlsIdentity> {
    if !args.has("tls") {
        return Some(TlsIdentity::default());
    }
    let inner = args.object("tls", TLS_FIELDS);
    let (ca, cert, key) = (inner.path("ca"), inner.path("cert"), inner.path("key"));
    let identity: Option<(PathBuf, PathBuf)> = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => {
            let message = "'cert' and 'key' go together".to_owned();
            bad(args, "tls", message, "set both, or neither");
            return None;
        }
    };
    let config = tls::client_config(
        ca.as_deref(),
        identity
            .as_ref()
            .map(|(cert, key)| (cert.as_path(), key.as_path())),
    );
    match config {
        Ok(config) => Some(TlsIdentity {
            key: fingerprint(
                [&ca, &identity.as_ref().map(|(cert, _)| cert.clone())]
                    .into_iter()
                    .flatten(),
            ),
            config: Some(config),
        }),
        Err(error) => {
            args.build
                .problems
                .error(&args.place("tls"), "bad-tls", error.message, error.help);
            None
        }
    }
}

/// Tells certificates apart by what the files hold, so that renewed ones are used after a reload.
fn fingerprint<'a>(files: impl Iterator<Item = &'a PathBuf>) -> String {
    let mut hasher = std::hash::DefaultHasher::new();
    let mut key = String::new();
    for file in files {
        std::fs::read(file).unwrap_or_default().hash(&mut hasher);
        key.push_str(&format!("{} ", file.display()));
    }
    key + &hasher.finish().to_string()
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_bytes(text.as_bytes()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn basic(pair: &str) -> Option<(HeaderName, HeaderValue)> {
    let value = secret(&format!("Basic {}", BASE64_STANDARD.encode(pair)))?;
    Some((AUTHORIZATION, value))
}

/// The outer `Option` is empty when something is wrong, the inner when there are no credentials.
fn credential(args: Args<'_>) -> Option<Option<(HeaderName, HeaderValue)>> {
    if !args.has("auth") {
        return Some(None);
    }
    let auth = args.object("auth", AUTH_FIELDS);
    let ways = ["basic", "bearer", "api_key"];
    if ways.iter().filter(|way| auth.has(way)).count() > 1 {
        let message = "'auth' names more than one way".to_owned();
        bad(
            args,
            "auth",
            message,
            "keep one of basic, bearer and api_key",
        );
        return None;
    }
    let unusable = || {
        let message = "the credential holds characters that no header can hold".to_owned();
        bad(
            args,
            "auth",
            message,
            "control characters and line ends cannot be sent",
        );
    };
    if auth.has("basic") {
        let inner = auth.object("basic", BASIC_FIELDS);
        let (user, password) = (inner.text("user")?, inner.secret("password")?);
        return Some(basic(&format!("{user}:{}", password.0)));
    }
    if let Some(token) = auth.secret("bearer") {
        let value = secret(&format!("Bearer {}", token.0));
        if value.is_none() {
            unusable();
        }
        return Some(Some((AUTHORIZATION, value?)));
    }
    if auth.has("api_key") {
        let inner = auth.object("api_key", API_KEY_FIELDS);
        let name = header_name(inner, "header", &inner.text("header")?)?;
        let value = secret(&inner.secret("value")?.0);
        if value.is_none() {
            unusable();
        }
        return Some(Some((name, value?)));
    }
    Some(None)
}

impl Sender for HttpSender {
    fn reach(&self) -> Reach {
        Reach::OneShot
    }

    fn make(&self, message: Arc<Message>, context: &Context) -> Result<Request, Fault> {
        let config = &self.0;
        let target = config.url.target(&message, context)?;
        let mut headers = HeaderMap::new();
        if let Some(parent) = message.headers.get("traceparent")
            && let Ok(value) = HeaderValue::from_str(parent)
        {
            headers.insert("traceparent", value);
        }
        let outgoing = config.body(&message, context, &target, &mut headers)?;
        config.add_headers(&message, context, &mut headers)?;
        if let Some((name, value)) = &config.credential {
            headers.insert(name.clone(), value.clone());
        }
        Ok(Request::Call(Box::new(HttpCall {
            config: config.clone(),
            identity: Identity::of(&message, &config.step),
            message,
            target,
            content_type: outgoing.content_type,
            headers,
            body: outgoing.body,
            security: outgoing.security,
        })))
    }
}

static CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What a call sends.
struct Outbound {
    body: Bytes,
    /// Nothing where the headers have it.
    content_type: Option<HeaderValue>,
    security: Option<(Arc<Outgoing>, usize)>,
}

impl From<Bytes> for Outbound {
    fn from(body: Bytes) -> Self {
        Self {
            body,
            content_type: None,
            security: None,
        }
    }
}

/// Who a message is, the same over all attempts.
pub(crate) struct Identity {
    id: HeaderValue,
    correlation: HeaderValue,
    key: HeaderValue,
}

impl Identity {
    /// One text holds the id, and the key that begins with it.
    fn of(message: &Message, step: &str) -> Self {
        let mut text = Vec::with_capacity(MessageId::LENGTH + 1 + step.len());
        text.extend_from_slice(message.id.encode(&mut [0; MessageId::LENGTH]).as_bytes());
        text.push(b'/');
        text.extend_from_slice(step.as_bytes());
        let key = Bytes::from(text);
        // Ids and names of steps hold nothing that a header cannot.
        let value = |text: Bytes| {
            HeaderValue::from_maybe_shared(text).unwrap_or_else(|_| HeaderValue::from_static(""))
        };
        let id = value(key.slice(..MessageId::LENGTH));
        Self {
            correlation: message
                .correlation_id
                .as_ref()
                .and_then(|said| HeaderValue::from_str(said).ok())
                .unwrap_or_else(|| id.clone()),
            id,
            key: value(key),
        }
    }

    /// Fills in the value of a header that says it.
    pub(crate) fn tell(&self, name: &HeaderName, value: &mut HeaderValue) {
        if *name == heads::MESSAGE_ID {
            *value = self.id.clone();
        } else if *name == CORRELATION_ID {
            *value = self.correlation.clone();
        } else if *name == IDEMPOTENCY_KEY {
            *value = self.key.clone();
        }
    }
}

/// An action without the quotes that it has in a header SOAPAction.
fn bare(action: String) -> String {
    let inner = action.trim().strip_prefix('"');
    match inner.and_then(|inner| inner.strip_suffix('"')) {
        Some(inner) => inner.to_owned(),
        None => action,
    }
}

fn cannot(what: &str, detail: impl Into<String>) -> Fault {
    Fault::new(Code::Transform, what).detail(detail)
}

impl Config {
    /// The body to send, and the headers that describe it.
    fn body(
        &self,
        message: &Arc<Message>,
        context: &Context,
        target: &Uri,
        headers: &mut HeaderMap,
    ) -> Result<Outbound, Fault> {
        if matches!(self.method, Method::GET | Method::HEAD) {
            return Ok(Bytes::new().into());
        }
        let given = message.content_type();
        let Some(soap) = &self.soap else {
            if self.attach == Some(Attach::Form) {
                let packed = form::packed(message)?;
                packed.describe(headers)?;
                return Ok(packed.body.into());
            }
            if let Some(writing) = &self.charset {
                let made = writing.apply(message)?;
                let said = made.content_type().unwrap_or_default();
                let mut outgoing = Outbound::from(made.body.bytes().clone());
                outgoing.content_type = Some(sendable(&CONTENT_TYPE, said)?);
                return Ok(outgoing);
            }
            let value = match given {
                Some(given) => HeaderValue::from_bytes(given.as_bytes()).ok(),
                None => message
                    .format
                    .map(|format| HeaderValue::from_static(format.media_type())),
            };
            let mut outgoing = Outbound::from(message.body.bytes().clone());
            outgoing.content_type = value;
            return Ok(outgoing);
        };
        let charset = given.and_then(xbus_charset::label);
        let (mut body, mut changed) =
            wrap::into_envelope(soap.version, message.body.bytes(), charset).map_err(|why| {
                cannot(
                    "the request is not an XML document",
                    format!("a SOAP request cannot be made of the body: {why}"),
                )
            })?;
        let action = match &soap.action {
            Some(template) => Some(bare(template.render(message, context)?)),
            None => None,
        };
        if action.as_ref().is_some_and(|action| {
            action.contains(['"', '\\']) || action.chars().any(char::is_control)
        }) {
            return Err(cannot(
                "the SOAP action cannot be sent",
                "the SOAP action holds a quote, a backslash or a control character",
            ));
        }
        let puts_header = soap.security.is_some() || soap.addressing;
        if puts_header && !changed && !xbus_charset::is_utf8(&body, charset) {
            // What is put in need not exist in the envelope's own charset.
            let text = xbus_charset::decode(&body, charset, true)
                .map_err(|error| cannot("the request cannot be read", error.to_string()))?;
            body = xbus_charset::declare(&text, "utf-8").into();
            changed = true;
        }
        let charset = match charset {
            _ if changed || xbus_charset::is_utf8(&body, charset) => Some("utf-8"),
            other => other,
        };
        let (body, charset) = match &self.charset {
            None => (body, charset),
            Some(writing) => {
                let text = xbus_charset::decode(&body, charset, true)
                    .map_err(|error| cannot("the request is no text", error.to_string()))?;
                let bytes = writing
                    .bytes(&text, true)
                    .map_err(|error| Fault::new(Code::Transform, error.to_string()))?;
                (Bytes::from(bytes), Some(writing.label()))
            }
        };
        let mut content_type = String::from(soap.version.media_type());
        if let Some(charset) = charset {
            content_type.push_str("; charset=");
            content_type.push_str(charset);
        }
        let mut outgoing = match puts_header {
            true => self.with_header(soap, message, &body, action.as_deref(), target)?,
            false => body.into(),
        };
        match (soap.version, &action) {
            (Version::V11, action) => {
                // SOAP 1.1 section 6.1.1: the header must be there, quoted.
                let value = format!("\"{}\"", action.as_deref().unwrap_or_default());
                insert(headers, HeaderName::from_static("soapaction"), &value)?;
            }
            (Version::V12, Some(action)) => {
                content_type.push_str("; action=\"");
                content_type.push_str(action);
                content_type.push('"');
            }
            (Version::V12, None) => {}
        }
        let root = pack::Root {
            version: soap.version,
            action: action.as_deref(),
            content_type: &content_type,
            body: &outgoing.body,
        };
        if let Some(packed) = pack::soap(self.attach, None, message, &root)? {
            packed.describe(headers)?;
            if let Some((_, at)) = &mut outgoing.security {
                *at += packed.root;
            }
            outgoing.body = packed.body;
            return Ok(outgoing);
        }
        outgoing.content_type = Some(sendable(&CONTENT_TYPE, &content_type)?);
        Ok(outgoing)
    }

    /// The envelope (in UTF-8) with the headers of WS-Addressing, ready for that of WS-Security.
    fn with_header(
        &self,
        soap: &SoapOut,
        message: &Message,
        body: &Bytes,
        action: Option<&str>,
        target: &Uri,
    ) -> Result<Outbound, Fault> {
        let seen = soap::look(body, Some("utf-8"), false).map_err(|why| {
            let detail = format!("no header can be put into the SOAP request: {why:?}");
            cannot("the request is not an envelope", detail)
        })?;
        let blocks = match soap.addressing {
            true => {
                // Like the idempotency key: the same over all attempts, another for each step.
                let of = uuid::Uuid::from_u128(message.id.as_u128());
                let id = uuid::Uuid::new_v5(&of, self.step.as_bytes());
                let id = format!("urn:uuid:{id}");
                let to = format!("{}{target}", self.url.place());
                addressing::of_request(&seen, &id, action.unwrap_or_default(), &to)
            }
            false => String::new(),
        };
        let replaced: Vec<_> = match &soap.security {
            Some(_) => seen
                .security
                .iter()
                .map(|block| block.range.clone())
                .collect(),
            None => Vec::new(),
        };
        let (body, inside) = splice::into_header(body, &seen, &blocks, &replaced);
        let security = soap.security.clone().map(|security| (security, inside));
        Ok(Outbound {
            body,
            content_type: None,
            security,
        })
    }

    /// Whether requests are SOAP.
    pub(crate) fn sends_soap(&self) -> bool {
        self.soap.is_some()
    }

    /// Whether an answer of that status may be a fault that is passed on: others say more by themselves.
    pub(crate) fn passes_fault(&self, status: StatusCode) -> bool {
        let passes = self.soap.as_ref().is_some_and(|soap| soap.passes_faults);
        passes && (status.is_success() || matches!(status.as_u16(), 400 | 500))
    }

    /// Whether answers that are multiparts are opened.
    pub(crate) fn opens(&self) -> bool {
        self.soap.is_some() || self.attach == Some(Attach::Form)
    }

    fn add_headers(
        &self,
        message: &Arc<Message>,
        context: &Context,
        headers: &mut HeaderMap,
    ) -> Result<(), Fault> {
        match &self.headers {
            Sent::Named(names) => {
                for name in names {
                    if let Some(value) = message.headers.get(name.as_str()) {
                        insert(headers, name.clone(), value)?;
                    }
                }
            }
            Sent::Made(made) => {
                for (name, template) in made {
                    let value = template.render(message, context)?;
                    insert(headers, name.clone(), &value)?;
                }
            }
        }
        Ok(())
    }
}

/// Sets a header.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) -> Result<(), Fault> {
    let value = sendable(&name, value)?;
    headers.insert(name, value);
    Ok(())
}

/// The value of a header; what no header can hold (line ends above all) is a fault.
fn sendable(name: &HeaderName, value: &str) -> Result<HeaderValue, Fault> {
    HeaderValue::from_bytes(value.as_bytes()).map_err(|_| {
        cannot(
            "a header of the request cannot be sent",
            format!("the value of the header '{name}' holds a control character"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_that_count_as_success() {
        assert_eq!(Success::parse("2xx"), Some((200, 299)));
        assert_eq!(Success::parse("404"), Some((404, 404)));
        assert_eq!(Success::parse("200-204"), Some((200, 204)));
        for bad in ["20", "xx", "9xx", "300-200", "ok", "600", "1xx"] {
            assert_eq!(Success::parse(bad), None, "{bad}");
        }
        let success = Success(vec![(200, 204), (404, 404)]);
        assert!(success.holds(StatusCode::NOT_FOUND) && success.holds(StatusCode::OK));
        assert!(!success.holds(StatusCode::MULTI_STATUS));
    }
}
