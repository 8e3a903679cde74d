//! What goes wrong between here and the broker, in words for administrators, and calls that end.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::{Channel, ErrorKind};
use xbus_core::SendError;
use xbus_core::store::StoreError;

/// How long one call to the broker may take. A connection that is gone is found out by its
/// heartbeats before.
pub(super) const CALL: Duration = Duration::from_secs(20);

/// A call to the broker that failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    text: String,
    missing: bool,
    /// The channel was closed by the broker for what was asked, not by a connection that went.
    refused: bool,
    deletion: bool,
}

impl Failure {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            missing: false,
            refused: false,
            deletion: false,
        }
    }

    /// A queue went while it was in use.
    pub(super) fn deletion(text: impl Into<String>) -> Self {
        Self {
            deletion: true,
            ..Self::new(text)
        }
    }

    /// From what the client library says; `what` was tried.
    pub(super) fn of(what: &str, error: &lapin::Error) -> Self {
        let (missing, refused) = match error.kind() {
            ErrorKind::ProtocolError(error) => (
                *error.kind() == AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND),
                matches!(error.kind(), AMQPErrorKind::Soft(_)),
            ),
            _ => (false, false),
        };
        let text = match error.kind() {
            ErrorKind::ProtocolError(error) => error.get_message().to_string(),
            _ => error.to_string(),
        };
        Self {
            text: format!("{what}: {text}"),
            missing,
            refused,
            deletion: missing,
        }
    }

    /// Whether it is that a queue does not exist.
    pub(super) fn is_missing(&self) -> bool {
        self.missing
    }

    /// Whether a queue went while it was in use.
    pub(super) fn is_deletion(&self) -> bool {
        self.deletion
    }

    /// Whether the broker did not want what was asked, and said so.
    pub(super) fn is_refused(&self) -> bool {
        self.refused
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        Self::new(error.detail)
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        StoreError::Broker(format!(
            "the broker does not answer as it should: {failure}"
        ))
    }
}

/// Waits for a call to the broker, but not for ever.
pub(super) async fn call<T>(
    what: &str,
    made: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(CALL, made).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Failure::of(what, &error)),
        Err(_) => Err(Failure::new(format!(
            "{what}: the broker did not answer within {} s",
            CALL.as_secs()
        ))),
    }
}

/// Closes a channel, which gives back what it holds, each to its place.
pub(super) async fn close(channel: &Channel) {
    if channel.status().connected() {
        let closing = channel.close(200, "done".into());
        // Closed or lost: either way the broker takes back what it held.
        let _ = tokio::time::timeout(Duration::from_secs(5), closing).await;
    }
}
