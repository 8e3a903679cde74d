//! A message on its way to an exchange, as a target that is committed with others.
//!
//! Nothing can be published and not yet visible in AMQP: staging only looks whether publishing will
//! be possible, and there is nothing to take back. A commit that is repeated publishes the same
//! message under the same message id.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;
use xbus_core::adapter::Stage;
use xbus_core::codec::{Decoder, Encoder};
use xbus_core::{Fault, Message, SendError};

use crate::link::{Link, Publish};
use crate::properties;

/// The form of tokens; the first byte of one.
const VERSION: u8 = 1;

/// Everything that publishing needs, in a form that outlives the process.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) exchange: Arc<str>,
    pub(crate) routing_key: Arc<str>,
    pub(crate) persistent: bool,
    pub(crate) mandatory: bool,
    pub(crate) expiration: Option<Duration>,
    pub(crate) priority: Option<u8>,
    /// With the headers that are added, and in its envelope.
    pub(crate) message: Message,
}

impl Outgoing {
    /// As it is published.
    ///
    /// # Errors
    /// Headers that AMQP cannot carry.
    pub(crate) fn publish(&self, bus: &str) -> Result<Publish, Fault> {
        let (mut properties, body) = properties::write(&self.message, bus)?;
        properties = properties.with_delivery_mode(if self.persistent { 2 } else { 1 });
        if let Some(expiration) = self.expiration {
            // In milliseconds, as text (https://www.rabbitmq.com/docs/ttl).
            let millis = expiration.as_millis().min(u128::from(u32::MAX));
            properties = properties.with_expiration(millis.to_string().into());
        }
        if let Some(priority) = self.priority {
            properties = properties.with_priority(priority);
        }
        Ok(Publish {
            exchange: self.exchange.clone(),
            routing_key: self.routing_key.clone(),
            properties,
            body,
        })
    }

    fn encode(&self) -> Bytes {
        let mut encoder = Encoder::new();
        encoder
            .u8(VERSION)
            .text(&self.exchange)
            .text(&self.routing_key)
            .u8(u8::from(self.persistent))
            .u8(u8::from(self.mandatory))
            .u64(self.expiration.map_or(u64::MAX, |time| {
                u64::try_from(time.as_millis()).unwrap_or(u64::MAX - 1)
            }))
            .u32(self.priority.map_or(u32::MAX, u32::from))
            .message(&self.message);
        encoder.finish()
    }

    /// Reads a token; nothing when it is none.
    pub(crate) fn decode(token: &[u8]) -> Option<Self> {
        let mut decoder = Decoder::new(Bytes::copy_from_slice(token));
        if decoder.u8()? != VERSION {
            return None;
        }
        Some(Self {
            exchange: decoder.name()?,
            routing_key: decoder.name()?,
            persistent: decoder.u8()? == 1,
            mandatory: decoder.u8()? == 1,
            expiration: Some(decoder.u64()?)
                .filter(|millis| *millis != u64::MAX)
                .map(Duration::from_millis),
            priority: decoder.u32()?.try_into().ok(),
            message: decoder.message()?,
        })
    }
}

/// A message that is published by its commit.
pub(crate) struct Staged {
    pub(crate) link: Arc<Link>,
    pub(crate) publish: Publish,
    pub(crate) outgoing: Outgoing,
    /// How long looking or publishing may take.
    pub(crate) timeout: Duration,
}

impl Staged {
    async fn send(&self, until: Instant) -> Result<(), SendError> {
        let publish = self.publish.clone();
        match self.outgoing.mandatory {
            true => self.link.publish(publish, until).await,
            false => self.link.publish_optional(publish, until).await,
        }
    }
}

impl Stage for Staged {
    fn token(&self) -> Bytes {
        self.outgoing.encode()
    }

    fn stage(&self) -> BoxFuture<'_, Result<(), SendError>> {
        Box::pin(async {
            let Publish {
                exchange,
                routing_key,
                ..
            } = &self.publish;
            let until = Instant::now() + self.timeout;
            // A queue that nobody needs to have is not looked for.
            match self.outgoing.mandatory || !exchange.is_empty() {
                true => self.link.look(exchange, routing_key, until).await,
                false => Ok(()),
            }
        })
    }

    fn commit(&self) -> BoxFuture<'_, Result<(), SendError>> {
        Box::pin(self.send(Instant::now() + self.timeout))
    }

    fn commit_until(&self, deadline: Instant) -> BoxFuture<'_, Result<(), SendError>> {
        Box::pin(self.send(deadline))
    }

    fn undo(&self) -> BoxFuture<'_, Result<(), SendError>> {
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_holds_all_that_publishing_needs() {
        let mut message = Message::new(vec![0, 255]);
        message.headers.set("X-Customer", "7");
        let mut outgoing = Outgoing {
            exchange: "erp".into(),
            routing_key: "order.de".into(),
            persistent: true,
            mandatory: false,
            expiration: Some(Duration::from_secs(60)),
            priority: Some(0),
            message,
        };
        for bare in [false, true] {
            if bare {
                (outgoing.expiration, outgoing.priority) = (None, None);
            }
            let token = outgoing.encode();
            let back = Outgoing::decode(&token).unwrap();
            let (before, after) = (
                outgoing.publish("bus").unwrap(),
                back.publish("bus").unwrap(),
            );
            assert_eq!(after.exchange, before.exchange);
            assert_eq!(after.routing_key, before.routing_key);
            assert_eq!(after.properties, before.properties);
            assert_eq!(after.body, before.body);
            assert!(!back.mandatory && back.persistent);
            for cut in 0..token.len() {
                assert!(Outgoing::decode(&token[..cut]).is_none());
            }
        }
        assert!(Outgoing::decode(b"\x02").is_none());
    }
}
