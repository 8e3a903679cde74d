//! AMQP 0.9.1 (RabbitMQ): a receiver, a sender that publishes or asks, and lanes that live in the
//! broker.
//!
//! Absent on purpose: AMQP transactions (they are not atomic over queues) and negative
//! acknowledgement (a quorum queue sends what is given back to its tail). A message that cannot be
//! dealt with is held, set aside in a queue of its own, or given back by closing its channel, which
//! keeps its place.

mod ack;
mod answer;
mod attended;
mod backoff;
mod binding;
mod connect;
mod counters;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod grip;
mod held;
mod incoming;
mod lanes;
mod ledger;
mod link;
mod looks;
mod memory;
mod properties;
mod publisher;
mod receiver;
mod replies;
mod request;
mod sender;
#[cfg(test)]
mod sender_tests;
mod settings;
mod shelf;
mod size;
mod socket;
mod stage;
#[cfg(test)]
mod testing;
mod topology;
mod window;
#[cfg(test)]
mod window_tests;

use std::sync::Arc;

use xbus_core::Kind;
use xbus_core::adapter::{ConnectionHealth, ConnectionKind, ReceiverKind, SenderKind};
use xbus_core::broker::LaneBroker;
use xbus_core::spec::Connection;

pub use link::Links;

/// The word `amqp` of routes and of `connections`.
pub fn kind(links: Arc<Links>) -> Kind {
    Kind {
        name: "amqp",
        doc: "AMQP 0.9.1, as RabbitMQ speaks it. Receives from a queue; publishes to an exchange, \
              always persistent, mandatory and confirmed: a message that no queue takes is a failure. \
              In `invoke` it asks by reply-to and correlation id.",
        receiver: Some(ReceiverKind {
            fields: receiver::FIELDS,
            example: "amqp: { connection: rabbit, queue: orders, bind: { exchange: shop, type: topic, keys: ['order.#'] } }",
            answers: false,
            in_turn: false,
            build: Box::new(receiver::build),
        }),
        sender: Some(SenderKind {
            fields: sender::FIELDS,
            example: "amqp: { connection: rabbit, exchange: erp, routing_key: 'order.{{ header(\"country\") }}' }",
            answers: true,
            build: Box::new(sender::build),
        }),
        connection: Some(ConnectionKind {
            fields: link::FIELDS,
            example: "rabbit: { amqp: { url: \"${AMQP_URL:-amqp://guest:guest@127.0.0.1:5672/%2f}\" } }",
            build: Box::new(move |args| links.build(args)),
            lanes: Some(lane_broker),
            health: Some(health),
        }),
    }
}

fn health(connection: &Connection) -> Option<Arc<dyn ConnectionHealth>> {
    let link = connection.clone().downcast::<link::Link>().ok()?;
    Some(link)
}

/// The broker behind a connection of kind `amqp`, as a place for lanes.
fn lane_broker(connection: &Connection) -> Option<Arc<dyn LaneBroker>> {
    let link = connection.clone().downcast::<link::Link>().ok()?;
    Some(link.broker())
}
