//! Messages by the clock: every so often, or as a cron expression says.
//!
//! Absent on purpose: memory of ticks that nobody made (the bus was down, or the last tick's
//! message was still on its way). They are not made up for; a log line counts them.

mod receiver;
mod ticks;

use xbus_core::Kind;
use xbus_core::adapter::ReceiverKind;

/// The word `schedule` of routes.
pub fn kind() -> Kind {
    Kind {
        name: "schedule",
        doc: "Makes a message every so often, or when a cron expression says so. One at a time: \
              while a message is on its way, or waits for its next attempt, ticks are skipped.",
        receiver: Some(ReceiverKind {
            fields: receiver::FIELDS,
            example: "schedule: { cron: \"0 6 * * MON-FRI\", timezone: Europe/Berlin, body: report }",
            answers: false,
            in_turn: false,
            build: Box::new(receiver::build),
        }),
        sender: None,
        connection: None,
    }
}
