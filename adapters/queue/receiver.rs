//! The receiver: each head of the queue runs through the route; it leaves the queue when the route
//! has succeeded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use xbus_core::adapter::OpenError;
use xbus_core::lanes::Consumer;
use xbus_core::plan::LanePolicy;
use xbus_core::spec::{Args, Field, Type};
use xbus_core::store::{Change, Queued};
use xbus_core::{Arrival, Code, Fault, Format, Inbox, Message, Receiver, Stop};

/// What can stand under `receive: { queue: … }`, beside how a queue is worked off.
pub(crate) const FIELDS: &[Field] = &[
    Field::new("name", Type::Text, "The queue.").required(),
    Field::new(
        "envelope",
        Type::Choice(crate::ENVELOPES),
        "`xbus`: the entries are XML documents that each hold a whole message.",
    )
    .default("none"),
    Field::new(
        "format",
        Type::Choice(&["xml", "json", "csv", "form", "text", "bytes"]),
        "How the bodies are read. Left out: as they were put in.",
    ),
];

struct QueueReceiver {
    queue: Arc<str>,
    envelope: bool,
    format: Option<Format>,
}

/// Builds a receiver from what the route says.
pub(crate) fn build(args: Args<'_>) -> Option<Arc<dyn Receiver>> {
    Some(Arc::new(QueueReceiver {
        queue: crate::sender::name(&args)?,
        envelope: args.text("envelope").as_deref() == Some("xbus"),
        format: args.text("format").as_deref().and_then(Format::from_name),
    }))
}

impl QueueReceiver {
    /// The message that an entry holds, under the entry's own id.
    fn unwrap(&self, entry: &Message) -> Result<Message, Fault> {
        let mut message = if self.envelope {
            let mut message = xbus_envelope::read(entry.body.bytes()).map_err(|error| {
                Fault::new(Code::Client, "the queue's entry is no xbus envelope")
                    .detail(format!("the queue's entry is no xbus envelope: {error}"))
            })?;
            let correlation = message.correlation();
            message.correlation_id = Some(Arc::from(correlation));
            message.id = entry.id;
            message.received_at = entry.received_at;
            message
        } else {
            entry.clone()
        };
        message.format = self.format.or(message.format);
        Ok(message)
    }
}

impl Receiver for QueueReceiver {
    fn claim(&self) -> Option<String> {
        Some(format!("queue {}", self.queue))
    }

    fn open(
        self: Arc<Self>,
        inbox: Inbox,
        stop: Stop,
    ) -> BoxFuture<'static, Result<BoxFuture<'static, ()>, OpenError>> {
        Box::pin(async move {
            let queue = self.queue.clone();
            let bus = inbox.bus().clone();
            let reader = Arc::new(Reader {
                receiver: self,
                inbox,
                failing: Mutex::default(),
            });
            Ok(bus.lanes().attach(&queue, reader, stop))
        })
    }
}

/// Hands heads to the route.
struct Reader {
    receiver: Arc<QueueReceiver>,
    inbox: Inbox,
    /// Heads that failed, by the lane's key.
    failing: Mutex<HashMap<Arc<str>, Failing>>,
}

/// A head that failed.
struct Failing {
    /// Its number in the queue.
    number: u64,
    /// The step at which it failed.
    step: Arc<str>,
}

impl Consumer for Reader {
    fn policy(&self) -> Option<LanePolicy> {
        Some(self.inbox.policy().clone())
    }

    fn deliver<'a>(&'a self, head: &'a Queued) -> BoxFuture<'a, Result<Vec<Change>, Fault>> {
        Box::pin(async move {
            let arrival = Arrival {
                message: self.receiver.unwrap(&head.message)?,
                caller: None,
                passing: Vec::new(),
                seen_as: None,
                seen_also: None,
                cause: head.cause,
                replayed: false,
                attempts: head.attempts,
                fits: None,
            };
            self.inbox.deliver(arrival).await.map(|_| Vec::new())
        })
    }

    fn sets_aside(&self, fault: &Fault) -> bool {
        fault.code == Code::InDoubt
    }

    fn route(&self) -> Option<Arc<str>> {
        Some(self.inbox.route().clone())
    }

    /// The route has told of the failure; here is only which head it was.
    fn failed(&self, head: &Queued, fault: &Fault, _parked: bool) {
        let step = fault.step.clone().unwrap_or_else(|| Arc::from("route"));
        self.failing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(
                head.at.key.clone(),
                Failing {
                    number: head.at.seq,
                    step,
                },
            );
    }

    /// What failed and is no longer the head of its lane has been delivered, parked or dropped.
    fn cleared(&self) {
        let bus = self.inbox.bus();
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut over = Vec::new();
        failing.retain(|key, failing| {
            let stays = match bus.store().head(&self.receiver.queue, key) {
                Ok(head) => head.is_some_and(|head| head.at.seq == failing.number),
                Err(_) => true,
            };
            if !stays {
                over.push(failing.step.clone());
            }
            stays
        });
        for step in over {
            if !failing.values().any(|other| other.step == step) {
                bus.incidents().succeeded(self.inbox.route(), &step);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receiver(envelope: bool, format: Option<Format>) -> QueueReceiver {
        QueueReceiver {
            queue: Arc::from("classic"),
            envelope,
            format,
        }
    }

    #[test]
    fn an_entry_is_taken_as_it_is() {
        let mut entry = Message::new("{}");
        entry.headers.set("X-Customer", "7");
        let taken = receiver(false, Some(Format::Json)).unwrap(&entry).unwrap();
        assert_eq!(taken.id, entry.id);
        assert_eq!(taken.headers, entry.headers);
        assert_eq!(taken.format(), Some(Format::Json));
    }

    #[test]
    fn an_envelope_is_opened_under_the_entrys_id() {
        let mut inner = Message::new("<a/>");
        inner.headers.set("X-Customer", "7");
        let entry = Message::new(xbus_envelope::write(&inner));
        let taken = receiver(true, None).unwrap(&entry).unwrap();
        assert_eq!(taken.id, entry.id);
        assert_eq!(taken.correlation(), inner.id.to_string());
        assert_eq!(taken.headers.get("x-customer"), Some("7"));
        assert_eq!(taken.body.bytes().as_ref(), b"<a/>");
    }

    #[test]
    fn what_is_no_envelope_is_rejected() {
        let entry = Message::new("<a/>");
        let fault = receiver(true, None).unwrap(&entry).unwrap_err();
        assert!(fault.rejected);
    }
}
