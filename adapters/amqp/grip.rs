//! Makes sure, before a message is tried, that its channel still holds it.
//!
//! A process that was stopped, or was cut off from the broker, learns of that late: by then the
//! broker may have given the message to another node, and what is behind it too. A connection is
//! given up by the broker when it was silent for two heartbeats; what answered less than half of one
//! ago is believed.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use tokio::sync::Mutex as Turn;
use tokio::time::Instant;

/// What was proven so long ago is proven again; or half a heartbeat ago, when that is less.
const FRESH: Duration = Duration::from_secs(1);

/// A channel's hold on its messages.
pub(crate) struct Grip {
    channel: Channel,
    queue: ShortString,
    fresh: Duration,
    /// When it was asked for what proved it, by both clocks: one of them stands still while the
    /// machine sleeps.
    proven: Mutex<(Instant, SystemTime)>,
    /// Held by who asks, so that only one does.
    asking: Turn<()>,
}

impl Grip {
    /// Of a channel that has just been opened.
    pub(crate) fn new(channel: Channel, queue: ShortString, heartbeat: Duration) -> Self {
        Self {
            channel,
            queue,
            fresh: FRESH.min(heartbeat / 2),
            proven: Mutex::new(now()),
            asking: Turn::new(()),
        }
    }

    /// The channel that holds them.
    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Whether the broker's word is still good.
    pub(crate) fn is_fresh(&self) -> bool {
        let proven = *self.proven();
        let walked = proven.1.elapsed().unwrap_or(Duration::MAX);
        proven.0.elapsed().max(walked) < self.fresh
    }

    /// Waits for the broker's word that it still knows the channel.
    ///
    /// # Errors
    /// It does not.
    pub(crate) async fn prove(&self) -> lapin::Result<()> {
        let _asking = self.asking.lock().await;
        if self.is_fresh() {
            return Ok(());
        }
        let asked = now();
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        self.channel
            .queue_declare(self.queue.clone(), options, FieldTable::default())
            .await?;
        *self.proven() = asked;
        Ok(())
    }

    fn proven(&self) -> MutexGuard<'_, (Instant, SystemTime)> {
        self.proven.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> (Instant, SystemTime) {
    (Instant::now(), SystemTime::now())
}
