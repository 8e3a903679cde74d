//! Mail by SMTP: a sender for routes, and [`Mailer`] for the bus's own failure mail.
//!
//! Absent on purpose: a queue (lanes and outbox keep what waits) and a mail server's work such as
//! looking up MX records: mail goes to the one relay that the connection names.

mod address;
mod compose;
mod connection;
mod mailer;
mod sender;
#[cfg(test)]
mod server;
mod text;

use xbus_core::Kind;
use xbus_core::adapter::{ConnectionKind, SenderKind};

pub use mailer::Mailer;

/// The word `mail` of routes.
pub fn kind() -> Kind {
    Kind {
        name: "mail",
        doc: "Sends the message by mail. What a message gives can name one address at a time and \
              never adds a header or a recipient. A mail cannot be taken back.",
        receiver: None,
        sender: Some(SenderKind {
            fields: sender::FIELDS,
            example: "mail: { connection: relay, from: bus@acme.example, to: desk@acme.example, subject: 'Order {{ id }}' }",
            answers: false,
            build: Box::new(sender::build),
        }),
        connection: None,
    }
}

/// The word `smtp` of `connections`.
pub fn connection_kind() -> Kind {
    Kind {
        name: "smtp",
        doc: "A mail server (RFC 5321) that takes mail for all recipients.",
        receiver: None,
        sender: None,
        connection: Some(ConnectionKind {
            fields: connection::FIELDS,
            example: "relay: { smtp: { host: mail.acme.example, port: 587, tls: starttls, user: bus, password: \"${SMTP_PASSWORD}\" } }",
            build: Box::new(connection::build),
            lanes: None,
            health: None,
        }),
    }
}
