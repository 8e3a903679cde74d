//! The sender: the message becomes an entry of the queue, in the store's own commit.

use std::sync::Arc;

use xbus_core::adapter::{Put, Reach, Request};
use xbus_core::spec::{Args, Field, Type};
use xbus_core::{Context, Fault, Format, Message, Sender};

/// What can stand under `queue` in a target.
pub(crate) const FIELDS: &[Field] = &[
    Field::new(
        "name",
        Type::Text,
        "The queue; it needs no declaration. The same for every message.",
    )
    .required(),
    Field::new(
        "envelope",
        Type::Choice(crate::ENVELOPES),
        "`xbus`: the body becomes one XML document that holds the whole message.",
    )
    .default("none"),
];

struct QueueSender {
    queue: Arc<str>,
    envelope: bool,
}

/// Builds a sender from what the target says.
pub(crate) fn build(args: Args<'_>) -> Option<Arc<dyn Sender>> {
    Some(Arc::new(QueueSender {
        queue: name(&args)?,
        envelope: args.text("envelope").as_deref() == Some("xbus"),
    }))
}

/// The queue's name; a problem is reported when it cannot be one.
pub(crate) fn name(args: &Args<'_>) -> Option<Arc<str>> {
    let name = args.text("name")?;
    let usable = !name.is_empty() && name.len() <= 200 && !name.chars().any(char::is_control);
    if !usable || name.contains("{{") {
        args.build.problems.error(
            &args.place("name"),
            "bad-name",
            "this cannot be the name of a queue",
            "write a constant name of at most 200 bytes",
        );
        return None;
    }
    Some(Arc::from(name))
}

impl Sender for QueueSender {
    fn reach(&self) -> Reach {
        Reach::Queue
    }

    fn make(&self, message: Arc<Message>, _: &Context) -> Result<Request, Fault> {
        let message = if self.envelope {
            let mut wrapped = message.with_body(xbus_envelope::write(&message));
            wrapped
                .headers
                .set("content-type", Format::Xml.media_type());
            wrapped.format = Some(Format::Xml);
            Arc::new(wrapped)
        } else {
            message
        };
        let queue = self.queue.clone();
        Ok(Request::Put(Put { queue, message }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(envelope: bool, message: &Arc<Message>) -> Put {
        let sender = QueueSender {
            queue: Arc::from("classic"),
            envelope,
        };
        let context = Context::new(Arc::from("r"), message.clone());
        match sender.make(message.clone(), &context).unwrap() {
            Request::Put(put) => put,
            _ => panic!("a queue sender puts"),
        }
    }

    #[test]
    fn an_entry_has_all_headers_and_the_very_body() {
        let mut message = Message::new(vec![0, 255, 13]);
        message.headers.set("X-Customer", "7");
        message.headers.set("content-type", "application/x-thing");
        let message = Arc::new(message);
        let entry = put(false, &message);
        assert_eq!(&*entry.queue, "classic");
        assert_eq!(entry.message.headers, message.headers);
        assert_eq!(entry.message.body.bytes(), message.body.bytes());
    }

    #[test]
    fn an_envelope_holds_the_whole_message() {
        let mut message = Message::new(vec![0, 255, 13]);
        message.headers.set("content-type", "application/x-thing");
        let message = Arc::new(message);
        let entry = put(true, &message).message;
        assert_eq!(entry.format(), Some(Format::Xml));
        assert_eq!(entry.id, message.id);
        let read = xbus_envelope::read(entry.body.bytes()).unwrap();
        assert_eq!(read.id, message.id);
        assert_eq!(read.headers, message.headers);
        assert_eq!(read.body.bytes(), message.body.bytes());
    }
}
