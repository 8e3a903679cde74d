//! One request of an `invoke` step, and what its reply means.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use lapin::message::Delivery;
use lapin::types::AMQPValue;
use tokio::time::Instant;
use xbus_core::{Call, Code, Message, SendError};

use crate::answer::FAULT;
use crate::incoming::Reading;
use crate::link::{Link, Publish};
use crate::properties::{self, Envelope};

/// The message's correlation id, whose property carries the attempt's own.
const CORRELATION: &str = "x-correlation-id";
/// How much of a fault is told.
const TOLD: usize = 1000;

/// A request to whoever takes it from a queue and replies.
pub(crate) struct Asking {
    pub(crate) link: Arc<Link>,
    pub(crate) publish: Publish,
    pub(crate) message: Arc<Message>,
    /// How long the reply may take, within the step's own limit.
    pub(crate) timeout: Duration,
    /// The largest reply, in bytes.
    pub(crate) max_body: u64,
}

impl Call for Asking {
    fn run(&self, deadline: Instant) -> BoxFuture<'_, Result<Message, SendError>> {
        Box::pin(async move {
            let until = deadline.min(Instant::now() + self.timeout);
            let mut publish = self.publish.clone();
            let mut headers = publish.properties.headers().clone().unwrap_or_default();
            if !headers.contains_key(CORRELATION) {
                let correlation = self.message.correlation();
                headers.insert(
                    CORRELATION.into(),
                    AMQPValue::LongString(correlation.into()),
                );
                publish.properties = publish.properties.with_headers(headers);
            }
            let reply = self.link.ask(publish, until).await?;
            self.response(reply)
        })
    }
}

impl Asking {
    fn said(&self, what: &str) -> String {
        let Publish {
            exchange,
            routing_key,
            ..
        } = &self.publish;
        self.link.publishing.said(&format!(
            "the request to exchange '{exchange}' with routing key '{routing_key}' {what}"
        ))
    }

    /// The reply as the step's response: its body and headers, and the message's own.
    fn response(&self, reply: Delivery) -> Result<Message, SendError> {
        if reply.data.len() as u64 > self.max_body {
            let what = format!("was answered with more than {} bytes", self.max_body);
            return Err(SendError::unknown(self.said(&what)));
        }
        let about = Envelope {
            exchange: reply.exchange.as_str(),
            routing_key: reply.routing_key.as_str(),
            redelivered: reply.redelivered,
        };
        let mut read = properties::read(&reply.properties, about, reply.data);
        let reading = Reading {
            max_body: self.max_body,
            ..Reading::default()
        };
        if let Err(fault) = reading.decode(&mut read) {
            let what = format!(
                "was answered, and the answer cannot be read: {}",
                fault.reason
            );
            return Err(SendError::unknown(self.said(&what)));
        }
        if let Some(code) = read.headers.get(FAULT) {
            return Err(self.fault(code, read.body.bytes()));
        }
        let mut response = self.message.with_body(read.body.bytes().clone());
        response.attachments = read.attachments;
        response.headers.retain(|name| {
            let lower = name.to_ascii_lowercase();
            !lower.starts_with("amqp.") && lower != "content-type" && lower != "content-encoding"
        });
        for (name, value) in read.headers.iter() {
            if !name.eq_ignore_ascii_case(CORRELATION) {
                response.headers.set(name, value);
            }
        }
        Ok(response)
    }

    /// Another bus says that it could not.
    fn fault(&self, code: &str, body: &[u8]) -> SendError {
        let code = Code::from_name(code);
        let what = format!(
            "was answered with a fault ({})",
            code.map_or("of an unknown code", Code::name)
        );
        let error = match code {
            Some(code) if code.is_rejection() => SendError::rejected(self.said(&what)),
            Some(Code::Timeout | Code::InDoubt) => SendError::unknown(self.said(&what)),
            _ => SendError::outage(self.said(&what)),
        };
        let text = properties::line(&String::from_utf8_lossy(body), TOLD);
        match text.is_empty() {
            true => error,
            false => error.answer(text),
        }
    }
}
