//! Asks and waits for the reply: one queue for all replies of a connection.
//!
//! The queue is exclusive and named by the broker, not RabbitMQ's direct reply-to: that is bound to
//! the channel which publishes, and requests go through the channels that all share, confirmed and
//! mandatory, and outlive each other's errors. It lives as long as the receiving connection; whoever
//! still waits when that is lost does not learn what became of the request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use xbus_core::SendError;

use crate::counters::Counters;
use crate::error::describe;
use crate::link::{Link, PATIENCE, Publish};

/// Who waits for which correlation id.
type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<Delivery>>>>;

/// The reply queue of a connection, declared when it is first needed.
#[derive(Default)]
pub(crate) struct Replies {
    queue: tokio::sync::Mutex<Option<ReplyQueue>>,
    waiting: Waiting,
}

#[derive(Clone)]
struct ReplyQueue {
    name: ShortString,
    /// Ends when no reply can come any more.
    gone: CancellationToken,
}

/// Lets go of a correlation id.
struct Registered<'a> {
    waiting: &'a Waiting,
    id: &'a str,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.remove(self.id);
    }
}

impl Link {
    /// Publishes a request and waits for its reply until then. Correlation id and reply-to of the
    /// properties are set here: the id is made anew for each attempt, so that the late reply to an
    /// earlier one is not taken for this one's.
    ///
    /// # Errors
    /// As those of [`Link::publish`]; and unknown when the reply does not come in time, or when the
    /// connection on which it would come was lost.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        mut publish: Publish,
        until: Instant,
    ) -> Result<Delivery, SendError> {
        let queue = self.reply_queue(until).await?;
        let id = uuid::Uuid::new_v4().to_string();
        publish.properties = publish
            .properties
            .with_correlation_id(id.as_str().into())
            .with_reply_to(queue.name.clone());
        let (sender, mut reply) = oneshot::channel();
        let waiting = &self.replies.waiting;
        waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.clone(), sender);
        let _registered = Registered { waiting, id: &id };
        let mut sent = std::pin::pin!(self.publish(publish, until));
        let mut confirmed = false;
        let unknown = |what: &str| SendError::unknown(self.receiving.said(what));
        loop {
            tokio::select! {
                biased;
                reply = &mut reply => {
                    return reply.map_err(|_| unknown("the connection is being closed"));
                }
                result = &mut sent, if !confirmed => {
                    result?;
                    confirmed = true;
                }
                () = queue.gone.cancelled() => {
                    return Err(unknown(
                        "the connection was lost, or the reply queue deleted, before the reply came",
                    ));
                }
                // Before that, publishing ends by itself.
                () = sleep_until(until), if confirmed => {
                    return Err(unknown("the request was sent, and no reply came in time").timed_out());
                }
            }
        }
    }

    async fn reply_queue(self: &Arc<Self>, until: Instant) -> Result<ReplyQueue, SendError> {
        self.receiving.start();
        let too_late = || SendError::outage(self.receiving.why_not()).timed_out();
        let Ok(mut queue) = timeout_at(until, self.replies.queue.lock()).await else {
            return Err(too_late());
        };
        if let Some(queue) = queue.as_ref().filter(|queue| !queue.gone.is_cancelled()) {
            return Ok(queue.clone());
        }
        *queue = None;
        let channel = tokio::select! {
            channel = self.channel(until) => channel?,
            () = self.receiving.down_for(PATIENCE) => {
                return Err(SendError::outage(self.receiving.why_not()));
            }
        };
        let made = match timeout_at(until, declare(&channel)).await {
            Ok(Ok(made)) => made,
            Ok(Err(error)) => {
                let what = format!("no queue for replies: {}", describe(&error));
                return Err(SendError::outage(self.receiving.said(&what)));
            }
            Err(_) => return Err(too_late()),
        };
        let (name, consumer) = made;
        let made = ReplyQueue {
            name,
            gone: CancellationToken::new(),
        };
        tokio::spawn(take(
            channel,
            consumer,
            self.replies.waiting.clone(),
            self.counters.clone(),
            made.gone.clone(),
            self.stop.clone(),
        ));
        *queue = Some(made.clone());
        Ok(made)
    }
}

async fn declare(channel: &Channel) -> lapin::Result<(ShortString, Consumer)> {
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    let mut arguments = FieldTable::default();
    // Where the broker's default is another type: only classic queues can be exclusive.
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("classic".into()),
    );
    let queue = channel.queue_declare("".into(), options, arguments).await?;
    let options = BasicConsumeOptions {
        no_ack: true,
        exclusive: true,
        ..BasicConsumeOptions::default()
    };
    let name = queue.name().clone();
    let consumer = channel
        .basic_consume(name.clone(), "".into(), options, FieldTable::default())
        .await?;
    Ok((name, consumer))
}

/// Hands replies to those who wait for them, until none can come any more.
async fn take(
    channel: Channel,
    mut consumer: Consumer,
    waiting: Waiting,
    counters: Arc<Counters>,
    gone: CancellationToken,
    stop: CancellationToken,
) {
    let _gone = gone.drop_guard();
    loop {
        let delivery = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            delivery = consumer.next() => match delivery {
                Some(Ok(delivery)) => delivery,
                Some(Err(_)) | None => return,
            },
            // lapin ends the stream, except when the channel ended before there was one.
            () = sleep(Duration::from_secs(5)) => match channel.status().connected() {
                true => continue,
                false => return,
            },
        };
        let asker = delivery
            .properties
            .correlation_id()
            .as_ref()
            .and_then(|id| {
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                waiting.remove(id.as_str())
            });
        if asker.is_none_or(|asker| asker.send(delivery).is_err()) {
            Counters::add(&counters.late_replies);
        }
    }
}
