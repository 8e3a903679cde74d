//! Faults: why a message did not get where it should, in words for the caller and, apart from
//! those, in words for the administrator.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The kind of a fault. The name goes to callers, the journal and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Code {
    /// The caller's message is wrong: repeating it as it is cannot help.
    Client,
    /// No `when` of the route matched.
    Unroutable,
    /// No such route, path or method.
    NotFound,
    /// The caller is not let in.
    Denied,
    /// The body, a header or the document is beyond a limit.
    TooLarge,
    /// A content type, charset or version that the route does not take.
    Unsupported,
    /// The bus has no room or no turn for it now.
    Overloaded,
    /// A destination refused, failed or could not be reached.
    Destination,
    /// A destination did not answer in time; what it did is unknown.
    Timeout,
    /// The outcome at a destination is unknown.
    InDoubt,
    /// A script or a conversion of the route failed.
    Transform,
    /// The bus itself failed.
    Internal,
}

impl Code {
    /// The name as callers see it, such as `too-large`.
    pub fn name(self) -> &'static str {
        match self {
            Code::Client => "client",
            Code::Unroutable => "unroutable",
            Code::NotFound => "not-found",
            Code::Denied => "denied",
            Code::TooLarge => "too-large",
            Code::Unsupported => "unsupported",
            Code::Overloaded => "overloaded",
            Code::Destination => "destination",
            Code::Timeout => "timeout",
            Code::InDoubt => "in-doubt",
            Code::Transform => "transform",
            Code::Internal => "internal",
        }
    }

    /// The status that a caller over HTTP gets for it (RFC 9110 section 15).
    pub fn http_status(self) -> u16 {
        match self {
            Code::Client => 400,
            Code::Denied => 403,
            Code::NotFound => 404,
            Code::TooLarge => 413,
            Code::Unsupported => 415,
            Code::Unroutable => 422,
            Code::Transform | Code::Internal => 500,
            Code::Destination => 502,
            Code::Overloaded => 503,
            Code::Timeout | Code::InDoubt => 504,
        }
    }

    /// The code of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Code::Client,
            Code::Unroutable,
            Code::NotFound,
            Code::Denied,
            Code::TooLarge,
            Code::Unsupported,
            Code::Overloaded,
            Code::Destination,
            Code::Timeout,
            Code::InDoubt,
            Code::Transform,
            Code::Internal,
        ]
        .into_iter()
        .find(|code| code.name() == name)
    }

    /// Whether repeating the same message cannot help, because the fault lies in it.
    pub fn is_rejection(self) -> bool {
        matches!(
            self,
            Code::Client
                | Code::Unroutable
                | Code::NotFound
                | Code::Denied
                | Code::TooLarge
                | Code::Unsupported
        )
    }
}

/// A failure of one message.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What kind of failure.
    pub code: Code,
    /// For the caller: holds no address, credential or stack of a destination.
    pub reason: String,
    /// For log, journal and failure mail: where exactly, with the quoted source line or the
    /// destination's answer. Never shown to callers.
    pub detail: Option<String>,
    /// What a destination answered: may repeat the payload, so that it stays out of logs.
    pub answer: Option<String>,
    /// The step or target in which it happened.
    pub step: Option<Arc<str>>,
    /// When to come again (sent as `Retry-After`).
    pub retry_after: Option<Duration>,
    /// The destination said that it is the message's fault (another 4xx, a SOAP Client fault, a
    /// permanent 5yz of SMTP): a lane with `on_reject: park` sets the message aside.
    pub rejected: bool,
    /// The destination was certainly not touched, although its code leaves that open (a connection
    /// that could not be made in time).
    pub untouched: bool,
    /// The administrators have heard of it where it arose, or need not.
    pub(crate) told: bool,
    /// The HTTP status where it is not the usual one of the code: 429 for a `rate`, 422 for a
    /// repeated key with another body.
    pub http_status: Option<u16>,
}

impl Fault {
    /// The status that a caller over HTTP gets: its own if that tells of an error, else its code's.
    pub fn status(&self) -> u16 {
        let own = self.http_status.filter(|own| (400..=999).contains(own));
        own.unwrap_or_else(|| self.code.http_status())
    }

    /// A fault with a reason that callers may read.
    pub fn new(code: Code, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            detail: None,
            answer: None,
            step: None,
            retry_after: None,
            rejected: code.is_rejection(),
            untouched: false,
            told: false,
            http_status: None,
        }
    }

    /// Adds what only administrators may read.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(crate::secrets::mask(&detail.into()).into_owned());
        self
    }

    /// Says in which step it happened, unless that was said deeper down.
    pub fn at(mut self, step: &Arc<str>) -> Self {
        self.step.get_or_insert_with(|| step.clone());
        self
    }

    /// Says when to come again.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The whole of it in one text for the journal: step, code and what administrators read.
    pub fn in_full(&self) -> String {
        match &self.step {
            Some(step) => format!("{step}: {}: {}", self.code.name(), self.for_admin()),
            None => format!("{}: {}", self.code.name(), self.for_admin()),
        }
    }

    /// What logs show: the detail where there is one, else the reason.
    pub fn for_log(&self) -> &str {
        self.detail.as_deref().unwrap_or(&self.reason)
    }

    /// What journal and failure mail show: the same, with the destination's answer.
    pub fn for_admin(&self) -> Cow<'_, str> {
        match &self.answer {
            Some(answer) => Cow::Owned(format!("{}: {answer}", self.for_log())),
            None => Cow::Borrowed(self.for_log()),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(step) = &self.step {
            write!(f, "{step}: ")?;
        }
        write!(f, "{}: {}", self.code.name(), self.for_log())
    }
}

impl std::error::Error for Fault {}
