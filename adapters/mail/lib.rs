//! Mail: a receiver that takes it from a mailbox by IMAP or POP3, a sender by SMTP for routes, and
//! [`Mailer`] for the bus's own failure mail.
//!
//! Absent on purpose: fetching anything that a mail names, a queue (lanes and outbox keep what waits) and a mail server's work such as
//! looking up MX records: mail goes to the one relay that the connection names.

mod account;
mod address;
mod answer;
mod compose;
mod connection;
mod failed;
#[doc(hidden)]
pub mod fuzz;
mod imap;
mod mailbox;
mod mailer;
mod mime;
mod notice;
mod open;
mod pop3;
mod receiver;
mod sender;
#[cfg(test)]
mod server;
mod take;
mod text;
mod trouble;
mod vitals;
mod watch;
mod wire;

use xbus_core::Kind;
use xbus_core::adapter::{ConnectionKind, ReceiverKind, SenderKind};

pub use mailer::{ALERT_FIELDS, MailAlerts, Mailer, Recipients};

/// The word `mail` of routes. `alerts`: the bus's failure mail, whose sender gets no answers.
pub fn kind(alerts: Option<&MailAlerts>) -> Kind {
    let own = alerts.map(MailAlerts::sender);
    Kind {
        name: "mail",
        doc: "Takes mails from a mailbox, and sends the message by mail. A mail that was accepted is \
              marked, moved or deleted, and never taken twice; one that fails for good goes to a \
              folder of its own, with the reason. What a message gives can name one address at a time and \
              never adds a header or a recipient. A mail cannot be taken back.",
        receiver: Some(ReceiverKind {
            fields: receiver::FIELDS,
            example: "mail: { connection: inbox, done: { move: Archive }, attachments: each }",
            answers: false,
            in_turn: true,
            build: Box::new(move |args| receiver::build(args, own.clone())),
        }),
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
            health: Some(vitals::of_smtp),
        }),
    }
}

/// The word `imap` of `connections`.
pub fn imap_kind() -> Kind {
    Kind {
        name: "imap",
        doc: "A mailbox that is read by IMAP4rev1 (RFC 3501). Its folders are watched with IDLE where \
              the server has it; MOVE and UIDPLUS are used where it has them.",
        receiver: None,
        sender: None,
        connection: Some(ConnectionKind {
            fields: account::IMAP_FIELDS,
            example: "inbox: { imap: { host: mail.acme.example, tls: tls, user: orders, password: \"${IMAP_PASSWORD}\" } }",
            build: Box::new(account::build_imap),
            lanes: None,
            health: Some(vitals::of_account),
        }),
    }
}

/// The word `pop3` of `connections`.
pub fn pop3_kind() -> Kind {
    Kind {
        name: "pop3",
        doc: "A mailbox that is read by POP3 (RFC 1939). It has no folders and no marks: what was \
              accepted is deleted.",
        receiver: None,
        sender: None,
        connection: Some(ConnectionKind {
            fields: account::POP3_FIELDS,
            example: "inbox: { pop3: { host: mail.acme.example, tls: tls, user: orders, password: \"${POP3_PASSWORD}\" } }",
            build: Box::new(account::build_pop3),
            lanes: None,
            health: Some(vitals::of_account),
        }),
    }
}
