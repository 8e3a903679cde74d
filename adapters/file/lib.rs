//! Files: a receiver that watches a folder, and a sender that writes files durably and all at once.
//!
//! Absent on purpose: any transformation of what is read (the body is the file's bytes), and any
//! trust in file-system events (they only make the polling scan come sooner).

mod claim;
mod disk;
mod events;
mod folders;
mod names;
mod receiver;
mod reserve;
mod scan;
mod sender;
mod settle;
mod stage;
mod take;
#[cfg(test)]
mod tests;

use xbus_core::Kind;
use xbus_core::adapter::{ReceiverKind, SenderKind};

/// The word `file` of routes.
pub fn kind() -> Kind {
    Kind {
        name: "file",
        doc: "Takes files from a watched folder, and writes files. A file is taken by an atomic \
              rename and acknowledged by its move to the `done` folder; a file is written under a \
              temporary name, synced, and then given its name, so that nobody sees half a file.",
        receiver: Some(ReceiverKind {
            fields: receiver::FIELDS,
            example: "file: { dir: in/invoices, pattern: \"*.xml\" }",
            answers: false,
            in_turn: false,
            build: Box::new(receiver::build),
        }),
        sender: Some(SenderKind {
            fields: sender::FIELDS,
            example: "file: { dir: archive, name: \"{{ id }}.xml\" }",
            answers: false,
            build: Box::new(sender::build),
        }),
        connection: None,
    }
}
