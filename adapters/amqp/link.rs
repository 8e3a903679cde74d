//! A connection of xbus.yaml: made at first use, kept, and made again when it is lost.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use tokio::time::Instant;
use xbus_core::SendError;
use xbus_core::spec::{Args, Connection, Field, Type};

/// What can stand under `amqp` of a connection.
pub(crate) const FIELDS: &[Field] = &[Field::new(
    "url",
    Type::Text,
    "amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps: for TLS.",
)
.required()];

/// The connections that are open, kept over reloads as long as their settings are the same.
#[derive(Default)]
pub struct Links {}

impl Links {
    /// Builds a connection from what xbus.yaml says, or gives the running one with the same
    /// settings.
    pub(crate) fn build(&self, args: Args<'_>) -> Option<Connection> {
        let _ = args;
        None
    }
}

/// One connection to a broker.
pub(crate) struct Link {}

/// A message to publish.
pub(crate) struct Publish {
    /// The exchange; empty for the default one, whose routing key is a queue's name.
    pub(crate) exchange: Arc<str>,
    /// The routing key.
    pub(crate) routing_key: Arc<str>,
    /// Properties and headers; delivery mode 2 is set by [`Link::publish`].
    pub(crate) properties: BasicProperties,
    /// The body.
    pub(crate) body: Bytes,
}

impl Link {
    /// The connection's name in xbus.yaml.
    pub(crate) fn name(&self) -> &Arc<str> {
        unimplemented!()
    }

    /// This bus's name among several on the same broker.
    pub(crate) fn node(&self) -> &Arc<str> {
        unimplemented!()
    }

    /// How long a message may be held before its channel is closed and opened again on purpose.
    pub(crate) fn renew_after(&self) -> Duration {
        unimplemented!()
    }

    /// Connected, and not blocked by the broker.
    pub(crate) fn is_up(&self) -> bool {
        unimplemented!()
    }

    /// A new channel for the caller alone, on the connection as it is now; waits for a connection
    /// until then. A channel that was closed is never usable again: ask for a new one.
    pub(crate) async fn channel(
        self: &Arc<Self>,
        until: Instant,
    ) -> Result<lapin::Channel, SendError> {
        let _ = until;
        unimplemented!()
    }

    /// Publishes persistent, mandatory and confirmed, on a channel shared by all that publish. `Ok`:
    /// at least one queue has it, durably. An error says whether it may have arrived
    /// ([`xbus_core::adapter::Class::Unknown`]) or has not. Calls run side by side: many confirms
    /// are waited for at once. What is published by calls that were polled one after the other
    /// arrives in that order as long as the connection lives.
    pub(crate) async fn publish(
        self: &Arc<Self>,
        publish: Publish,
        until: Instant,
    ) -> Result<(), SendError> {
        let _ = (publish, until);
        unimplemented!()
    }
}
