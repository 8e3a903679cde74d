//! Handing entries over to the broker: published one after the other on one channel, confirmed side
//! by side.
//!
//! Each lane has a channel of its own for this. It lives on one connection and is never opened
//! again, so that nothing of a batch can overtake what was lost before it. What a broker refuses
//! while it takes a later one is the one case in which numbers do not ascend: each entry says which
//! was handed over before it, so that one that is missing is known.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::Poll;
use std::time::Duration;

use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::ShortString;
use lapin::{Channel, Confirmation};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};
use xbus_core::SendError;
use xbus_core::broker::LaneEntry;

use super::entry::Entry;
use super::failure::{self, Failure};
use super::names;
use crate::error::{describe, reply};
use crate::link::Link;

/// How long handing over a batch may take before it is given up and done again.
const BATCH: Duration = Duration::from_secs(30);
/// RabbitMQ 3.10 loses track of consumers of a quorum queue that is declared again within some
/// milliseconds after it was deleted: they are neither cancelled nor given anything.
pub(super) const AFTER_DELETION: Duration = Duration::from_secs(1);
/// So many entries are confirmed one by one after a refusal, so that what follows cannot overtake.
const CAREFUL: usize = 64;

/// Hands over, for all lanes of a connection.
pub(super) struct Putter {
    link: Arc<Link>,
    lanes: std::sync::Mutex<HashMap<Arc<str>, Arc<Mutex<State>>>>,
}

/// What handing over to one lane knows.
#[derive(Default)]
struct State {
    channel: Option<Channel>,
    /// Queues that exist, as far as this channel has seen.
    declared: HashSet<Arc<str>>,
    /// How many more to confirm one by one.
    careful: usize,
    /// The last number of each origin that each queue has.
    last: HashMap<Place, u64>,
    /// A queue that was deleted is not declared again before.
    declare_at: Option<Instant>,
}

/// A queue, and the store that a message comes from.
type Place = (Arc<str>, Arc<str>);
type Answer = lapin::Result<Confirmation>;
type Confirming = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// An entry that was published.
struct Sent {
    queue: Arc<str>,
    id: String,
    origin: Option<(Arc<str>, u64)>,
    confirming: Option<Confirming>,
    answer: Option<Answer>,
    /// Nothing else was waited for: what the broker says is about this one.
    alone: bool,
}

impl Putter {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self {
            link,
            lanes: std::sync::Mutex::default(),
        }
    }

    /// How many of `entries`, counted from the first, are confirmed; and why not all.
    pub(super) async fn put(&self, entries: Vec<LaneEntry>) -> (usize, Option<SendError>) {
        let until = Instant::now() + BATCH;
        let mut entries = entries.into_iter().peekable();
        let mut confirmed = 0;
        while let Some(first) = entries.next() {
            let lane = first.lane.queue.clone();
            let mut batch = vec![first];
            while let Some(next) = entries.next_if(|next| next.lane.queue == lane) {
                batch.push(next);
            }
            let state = self.lane(&lane);
            let mut state = state.lock().await;
            let (count, error) = state.put(&self.link, batch, until).await;
            confirmed += count;
            if error.is_some() {
                return (confirmed, error);
            }
        }
        (confirmed, None)
    }

    fn lane(&self, lane: &Arc<str>) -> Arc<Mutex<State>> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.entry(lane.clone()).or_default().clone()
    }
}

impl State {
    async fn put(
        &mut self,
        link: &Arc<Link>,
        entries: Vec<LaneEntry>,
        until: Instant,
    ) -> (usize, Option<SendError>) {
        let mut sent: Vec<Sent> = Vec::with_capacity(entries.len());
        let mut last = self.last.clone();
        let mut stopped = None;
        for entry in entries {
            let partition = names::partition_of(&entry.key, entry.lane.partitions);
            let queue = names::partition(&entry.lane, partition);
            let channel = match self.ready(link, &queue, sent.is_empty(), until).await {
                Ok(channel) => channel,
                Err(error) => {
                    stopped = Some(error);
                    break;
                }
            };
            let mut entry = Entry::from(entry);
            if let Some((store, number)) = &entry.origin {
                let before = last.insert((queue.clone(), store.clone()), *number);
                entry.after = before.filter(|before| before < number);
            }
            let mut published = Sent::new(channel, queue, &entry).await;
            if self.careful > 0 {
                self.careful -= 1;
                published.alone = true;
                published.wait(until).await;
            }
            let over = published.failed();
            sent.push(published);
            if over {
                break;
            }
        }
        for published in &mut sent {
            published.wait(until).await;
        }
        let (confirmed, error) = self.settle(&sent);
        if error.is_some() && !*link.publishing.blocked().borrow() {
            // The broker may have lost count of what it confirms on this channel, as it does when a
            // queue is deleted and declared again.
            if let Some(channel) = self.channel.take() {
                failure::close(&channel).await;
            }
        }
        (confirmed, error.or(stopped))
    }

    /// The channel, with the queue there. It is opened for the `first` of a batch only: on a new one
    /// what follows would overtake what was lost with the old one.
    async fn ready(
        &mut self,
        link: &Arc<Link>,
        queue: &Arc<str>,
        first: bool,
        until: Instant,
    ) -> Result<Channel, SendError> {
        let mut blocked = link.publishing.blocked();
        if timeout_at(until, blocked.wait_for(|blocked| !blocked))
            .await
            .is_err()
        {
            return Err(SendError::outage(link.publishing.why_not()).timed_out());
        }
        let channel = match &self.channel {
            Some(channel) if channel.status().connected() => channel.clone(),
            _ if !first => {
                return Err(SendError::outage(
                    "the channel was lost while messages were handed over",
                ));
            }
            _ => {
                self.declared.clear();
                let up = link.publishing.up_until(until).await?;
                let channel = call("opening a channel", up.connection.create_channel()).await?;
                call(
                    "asking for confirms",
                    channel.confirm_select(ConfirmSelectOptions::default()),
                )
                .await?;
                self.channel = Some(channel.clone());
                channel
            }
        };
        if !self.declared.contains(queue) {
            if let Some(at) = self.declare_at.take() {
                tokio::time::sleep_until(at).await;
            }
            declare(&channel, queue).await.map_err(outage)?;
            self.declared.insert(queue.clone());
            // A quorum queue that has just been declared may refuse the first messages and take the
            // next ones.
            self.careful = self.careful.max(1);
        }
        Ok(channel)
    }

    /// Counts what is there for certain. What came back says itself which it is: the client library
    /// hands it to any one of the confirms that came together.
    fn settle(&mut self, sent: &[Sent]) -> (usize, Option<SendError>) {
        let returned: Vec<&BasicReturnMessage> = sent
            .iter()
            .filter_map(|sent| match &sent.answer {
                Some(Ok(Confirmation::Ack(Some(back)) | Confirmation::Nack(Some(back)))) => {
                    Some(back)
                }
                _ => None,
            })
            .collect();
        let mut confirmed = 0;
        let mut first = None;
        let mut by_broker = false;
        for published in sent {
            match published.refusal(&returned) {
                None if first.is_none() => {
                    confirmed += 1;
                    if let Some((store, number)) = &published.origin {
                        let place = (published.queue.clone(), store.clone());
                        self.last.insert(place, *number);
                    }
                }
                // It is handed over again, behind the one that is missing.
                None => {}
                Some((error, refused)) => {
                    by_broker |= refused;
                    first = first.or(Some(error));
                }
            }
        }
        if let (Some(error), true) = (&first, by_broker) {
            tracing::warn!(error = %error.detail, "the broker refused a message of a lane");
            // The queue may be gone: look again.
            self.declared.clear();
            self.declare_at = Some(Instant::now() + AFTER_DELETION);
            self.careful = CAREFUL;
        }
        (confirmed, first)
    }
}

impl Sent {
    /// Hands an entry over to the connection; what is handed over later comes after it.
    async fn new(channel: Channel, queue: Arc<str>, entry: &Entry) -> Self {
        let (properties, body) = entry.write();
        let properties = properties.with_delivery_mode(2);
        let options = BasicPublishOptions {
            mandatory: true,
            immediate: false,
        };
        // The queue was declared, so that its name is short enough.
        let name = ShortString::try_new(&*queue).unwrap_or_default();
        let mut confirming: Confirming = Box::pin(async move {
            channel
                .basic_publish("".into(), name, options, &body, properties)
                .await?
                .await
        });
        let mut sent = Self {
            queue,
            id: entry.message.id.to_string(),
            origin: entry.origin.clone(),
            confirming: None,
            answer: None,
            alone: false,
        };
        match futures_util::poll!(confirming.as_mut()) {
            Poll::Ready(answer) => sent.answer = Some(answer),
            Poll::Pending => sent.confirming = Some(confirming),
        }
        sent
    }

    async fn wait(&mut self, until: Instant) {
        if let Some(confirming) = self.confirming.take() {
            self.answer = timeout_at(until, confirming).await.ok();
        }
    }

    /// Whether it is over and did not go well.
    fn failed(&self) -> bool {
        self.confirming.is_none() && !matches!(self.answer, Some(Ok(Confirmation::Ack(None))))
    }

    /// Why it is not known to be there, and whether the broker itself said so.
    fn refusal(&self, returned: &[&BasicReturnMessage]) -> Option<(SendError, bool)> {
        let mine = returned.iter().find(|back| {
            back.routing_key.as_str() == &*self.queue
                && back
                    .properties
                    .message_id()
                    .as_ref()
                    .map(ShortString::as_str)
                    == Some(&self.id)
        });
        let queue = &self.queue;
        match &self.answer {
            Some(Ok(Confirmation::Ack(_))) => mine.map(|back| {
                let text = format!("queue '{queue}' took no message: {}", back.reply_text);
                (SendError::outage(text), true)
            }),
            Some(Ok(Confirmation::Nack(_))) => Some((
                SendError::outage(format!(
                    "queue '{queue}' did not take the message (basic.nack); see whether it is full \
                     or its leader is missing"
                )),
                true,
            )),
            Some(Ok(Confirmation::NotRequested)) => {
                Some((SendError::unknown("the channel confirms nothing"), false))
            }
            Some(Err(error)) if self.alone && matches!(reply(error), Some((406, _))) => Some((
                SendError::rejected(format!("queue '{queue}': {}", describe(error))),
                true,
            )),
            Some(Err(error)) => Some((
                SendError::unknown(format!(
                    "queue '{queue}': the broker has not confirmed: {}",
                    describe(error)
                )),
                // The channel was closed for one of those in flight; the next time it is seen which.
                error.is_amqp_soft_error(),
            )),
            None => Some((
                SendError::unknown(format!("queue '{queue}': not confirmed in time")).timed_out(),
                false,
            )),
        }
    }
}

/// Declares the queue of a partition.
pub(super) async fn declare(channel: &Channel, queue: &str) -> Result<(), Failure> {
    failure::call(
        &format!("declaring queue '{queue}'"),
        channel.queue_declare(
            names::short(queue)?,
            QueueDeclareOptions::durable(),
            names::lane_arguments(),
        ),
    )
    .await?;
    Ok(())
}

async fn call<T>(what: &str, made: impl Future<Output = lapin::Result<T>>) -> Result<T, SendError> {
    failure::call(what, made).await.map_err(outage)
}

fn outage(failure: Failure) -> SendError {
    SendError::outage(failure.to_string())
}
