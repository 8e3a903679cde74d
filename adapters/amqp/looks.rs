//! Looks whether an exchange or a queue is there, before a message is accepted for it. What was
//! found is believed for a while, so that it costs a message nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use tokio::sync::Mutex;
use tokio::time::Instant;
use xbus_core::SendError;

use crate::error::{describe, reply};
use crate::link::Link;
use crate::publisher::look_at_exchange;

/// How long it is believed that something is there.
const BELIEVED: Duration = Duration::from_secs(10);
/// How much is remembered at most; then all of it is forgotten.
const MOST: usize = 1024;

/// What was found.
#[derive(Default)]
pub(crate) struct Looks(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    /// For looking; an error closes it.
    channel: Option<Channel>,
    /// When exchange or, behind the default exchange, queue were seen.
    when: HashMap<(Arc<str>, Arc<str>), Instant>,
}

impl Link {
    /// Looks whether a message can be published: the connection stands and is not blocked, and the
    /// exchange exists; of the default exchange, the queue that the routing key names. Waits for a
    /// connection until then.
    pub(crate) async fn look(
        self: &Arc<Self>,
        exchange: &Arc<str>,
        routing_key: &Arc<str>,
        until: Instant,
    ) -> Result<(), SendError> {
        let work = self.look_now(exchange, routing_key);
        tokio::select! {
            biased;
            result = work => result,
            () = tokio::time::sleep_until(until) => {
                Err(SendError::outage(self.publishing.why_not()).timed_out())
            }
            () = self.publishing.down_for(crate::link::PATIENCE) => {
                Err(SendError::outage(self.publishing.why_not()))
            }
        }
    }

    async fn look_now(
        self: &Arc<Self>,
        exchange: &Arc<str>,
        routing_key: &Arc<str>,
    ) -> Result<(), SendError> {
        let closing = || SendError::outage(self.publishing.said("the connection is being closed"));
        let up = self.publishing.up().await.ok_or_else(closing)?;
        let mut blocked = self.publishing.blocked();
        blocked
            .wait_for(|blocked| !*blocked)
            .await
            .map_err(|_| closing())?;
        let key = match exchange.is_empty() {
            true => (exchange.clone(), routing_key.clone()),
            false => (exchange.clone(), Arc::from("")),
        };
        let mut seen = self.looks.0.lock().await;
        let now = Instant::now();
        if seen
            .when
            .get(&key)
            .is_some_and(|when| now - *when < BELIEVED)
        {
            return Ok(());
        }
        let channel = match seen
            .channel
            .take()
            .filter(|channel| channel.status().connected())
        {
            Some(channel) => channel,
            None => {
                let opened = up.connection.create_channel().await;
                opened.map_err(|error| self.cannot_look(&describe(&error)))?
            }
        };
        let looked = match exchange.is_empty() {
            true => look_at_queue(&channel, routing_key).await,
            false => look_at_exchange(&channel, exchange).await,
        };
        match looked {
            Ok(()) => {}
            // It belongs to another connection, and can be published to.
            Err(error) if reply(&error).is_some_and(|(code, _)| code == 405) => {}
            Err(error) => {
                seen.when.remove(&key);
                let what = match (reply(&error), exchange.is_empty()) {
                    (Some((404, _)), true) => format!(
                        "there is no queue '{routing_key}'; declare it under 'queues' of the \
                         connection, or at the broker"
                    ),
                    (Some((404, _)), false) => format!(
                        "there is no exchange '{exchange}'; declare it under 'exchanges' of the \
                         connection, or at the broker"
                    ),
                    _ => describe(&error),
                };
                return Err(self.cannot_look(&what));
            }
        }
        seen.channel = Some(channel);
        if seen.when.len() >= MOST {
            seen.when.clear();
        }
        seen.when.insert(key, now);
        Ok(())
    }

    fn cannot_look(&self, what: &str) -> SendError {
        SendError::outage(self.publishing.said(what))
    }
}

async fn look_at_queue(channel: &Channel, queue: &str) -> lapin::Result<()> {
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let Ok(name) = ShortString::try_new(queue) else {
        return Ok(());
    };
    let looked = channel.queue_declare(name, options, FieldTable::default());
    looked.await.map(drop)
}
