//! Embedded queues: a sender that puts messages into one, and a receiver that works one off.
//!
//! Absent on purpose: storage, order and retries. Those are the store's and the lanes' part; here
//! is only what becomes an entry and what becomes of one.

mod receiver;
mod sender;

use xbus_core::Kind;
use xbus_core::adapter::{ReceiverKind, SenderKind};

/// The words of `envelope`.
const ENVELOPES: &[&str] = &["none", "xbus"];

/// The word `queue` of routes.
pub fn kind() -> Kind {
    Kind {
        name: "queue",
        doc: "A durable queue inside the bus: one route puts messages in, another takes them out, \
              strictly first in, first out. Headers, content type and body are kept as they are. A \
              queue has one reader.",
        receiver: Some(ReceiverKind {
            fields: receiver::FIELDS,
            example: "queue: { name: orders }",
            answers: false,
            in_turn: false,
            build: Box::new(receiver::build),
        }),
        sender: Some(SenderKind {
            fields: sender::FIELDS,
            example: "queue: { name: orders }",
            answers: false,
            build: Box::new(sender::build),
        }),
        connection: None,
    }
}
