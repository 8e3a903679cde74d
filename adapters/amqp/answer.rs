//! What a sender that waits gets back: the route's reply, an acknowledgement, or a fault.
//!
//! The address in a message is the name of a queue of the same broker and nothing else: answers go
//! through the default exchange, so that no message chooses what the bus connects to. Answers are
//! never enveloped.

use std::sync::Arc;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use xbus_core::{Fault, Format, Headers, MessageId, Reply, Timestamp};

use crate::link::Publish;
use crate::properties::{line, short};

/// The header of an answer that is a fault: the fault's code.
pub(crate) const FAULT: &str = "x-xbus-fault";

/// A sender that waits for an answer.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// The queue in which it waits.
    queue: ShortString,
    /// What tells it which answer this is.
    correlation: Option<ShortString>,
    app_id: Arc<str>,
}

/// An answer that is ready to go.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    queue: ShortString,
    properties: BasicProperties,
    body: Bytes,
}

impl Answer {
    /// As it is published.
    pub(crate) fn publish(&self) -> Publish {
        Publish {
            exchange: Arc::from(""),
            routing_key: Arc::from(self.queue.as_str()),
            properties: self.properties.clone(),
            body: self.body.clone(),
        }
    }
}

impl Ask {
    /// Of a message's properties; nothing when it names nowhere to answer to. An answer is known by
    /// the correlation id, or where there is none by the message id (as JMS has it).
    pub(crate) fn of(properties: &BasicProperties, app_id: &Arc<str>) -> Option<Self> {
        let queue = properties.reply_to().clone()?;
        let correlation = properties.correlation_id().clone();
        (!queue.as_str().is_empty()).then(|| Self {
            queue,
            correlation: correlation.or_else(|| properties.message_id().clone()),
            app_id: app_id.clone(),
        })
    }

    /// The good answer.
    pub(crate) fn reply(&self, reply: &Reply) -> Answer {
        let Some(message) = &reply.message else {
            let body = format!(
                "{{\"id\":\"{}\",\"status\":\"{}\"}}",
                reply.id,
                reply.status.name()
            );
            return self.answer(
                reply.id,
                Format::Json.media_type(),
                &Headers::new(),
                body.into(),
            );
        };
        let body = message.body.bytes().clone();
        let usual = || match message.format() {
            Some(format) => format.media_type(),
            None if std::str::from_utf8(&body).is_ok() => Format::Text.media_type(),
            None => Format::Bytes.media_type(),
        };
        let content_type = message.content_type().unwrap_or_else(usual);
        self.answer(reply.id, content_type, &reply.headers, body.clone())
    }

    /// The answer to a message that failed: what the caller may read of the fault, as JSON.
    pub(crate) fn fault(&self, id: MessageId, fault: &Fault) -> Answer {
        let code = fault.code.name();
        let body = serde_json::json!({
            "id": id.to_string(),
            "fault": { "code": code, "reason": fault.reason, "step": fault.step.as_deref() },
        })
        .to_string();
        let headers: Headers = [(FAULT, code)].into_iter().collect();
        self.answer(id, Format::Json.media_type(), &headers, body.into())
    }

    fn answer(&self, id: MessageId, content_type: &str, headers: &Headers, body: Bytes) -> Answer {
        let mut table = FieldTable::default();
        for (name, value) in headers.iter() {
            // What does not fit a frame would end the connection.
            if let Some(name) = short(name) {
                let value = LongString::from(line(value, 4096));
                table.insert(name, AMQPValue::LongString(value));
            }
        }
        let seconds = Timestamp::now().as_micros().max(0) as u64 / 1_000_000;
        let mut properties = BasicProperties::default()
            .with_message_id(id.to_string().into())
            .with_timestamp(seconds)
            .with_headers(table);
        if let Some(content_type) = short(content_type) {
            properties = properties.with_content_type(content_type);
        }
        if let Some(app_id) = short(&self.app_id) {
            properties = properties.with_app_id(app_id);
        }
        if let Some(correlation) = &self.correlation {
            properties = properties.with_correlation_id(correlation.clone());
        }
        Answer {
            queue: self.queue.clone(),
            properties,
            body,
        }
    }
}

#[cfg(test)]
mod tests {
    use xbus_core::{Code, Message, Status};

    use super::*;

    fn ask() -> Ask {
        let properties = BasicProperties::default()
            .with_reply_to("answers".into())
            .with_correlation_id("c7".into());
        Ask::of(&properties, &Arc::from("bus")).unwrap()
    }

    #[test]
    fn nothing_is_answered_to_who_does_not_ask() {
        let app: Arc<str> = Arc::from("bus");
        assert!(Ask::of(&BasicProperties::default(), &app).is_none());
        let empty = BasicProperties::default().with_reply_to("".into());
        assert!(Ask::of(&empty, &app).is_none());
    }

    #[test]
    fn a_reply_goes_to_the_default_exchange_with_the_correlation_id() {
        let mut message = Message::new("{}");
        message.headers.set("content-type", "application/json");
        message.headers.set("internal", "not for callers");
        let reply = Reply {
            id: message.id,
            status: Status::Delivered,
            message: Some(Arc::new(message)),
            http_status: None,
            headers: [("X-Price", "7")].into_iter().collect(),
        };
        let answer = ask().reply(&reply).publish();
        assert_eq!((&*answer.exchange, &*answer.routing_key), ("", "answers"));
        assert_eq!(answer.body.as_ref(), b"{}");
        let properties = answer.properties;
        let correlation = properties
            .correlation_id()
            .as_ref()
            .map(ShortString::as_str);
        assert_eq!(correlation, Some("c7"));
        let headers = properties.headers().clone().unwrap_or_default();
        assert!(headers.contains_key("X-Price") && !headers.contains_key("internal"));
    }

    #[test]
    fn a_fault_says_what_callers_may_read() {
        let fault = Fault::new(Code::Destination, "the destination failed")
            .detail("http://10.0.0.7/secret refused")
            .at(&Arc::from("stock"));
        let id = MessageId::new();
        let answer = ask().fault(id, &fault).publish();
        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["fault"]["code"], "destination");
        assert_eq!(body["fault"]["step"], "stock");
        assert_eq!(body["id"], id.to_string());
        assert!(!String::from_utf8_lossy(&answer.body).contains("10.0.0.7"));
        assert!(
            answer
                .properties
                .headers()
                .clone()
                .unwrap_or_default()
                .contains_key(FAULT)
        );
    }
}
