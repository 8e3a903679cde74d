//! Handing entries over to the broker: published one after the other on one channel, confirmed side
//! by side.
//!
//! A channel lives on one connection and is never opened again, so that nothing of a batch can
//! overtake what was lost before it. What a broker refuses while it takes a later one is the one
//! case in which numbers do not ascend; it is marked as late when it is handed over again.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::{Channel, Confirmation};
use tokio::sync::Mutex;
use tokio::time::Instant;
use xbus_core::SendError;
use xbus_core::broker::LaneEntry;

use super::entry::Entry;
use super::failure::{self, Failure};
use super::names;
use crate::link::Link;

/// How long handing over a batch may take before it is given up and done again.
const BATCH: Duration = Duration::from_secs(30);
/// So many entries are confirmed one by one after a refusal, so that what follows cannot overtake.
const CAREFUL: usize = 64;

/// Hands over, for all lanes of a connection.
pub(super) struct Putter {
    link: Arc<Link>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    channel: Option<Channel>,
    /// Queues that exist, as far as this channel has seen.
    declared: HashSet<Arc<str>>,
    /// How many more to confirm one by one.
    careful: usize,
    /// The highest number that a queue took before a lower one of the same origin.
    ahead: HashMap<(Arc<str>, Arc<str>), u64>,
}

type Confirming = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send>>;

/// What a published entry waits for.
enum Published {
    Waiting(Confirming),
    Ended(lapin::Result<Confirmation>),
}

impl Putter {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self {
            link,
            state: Mutex::default(),
        }
    }

    /// How many of `entries`, counted from the first, are confirmed; and why not all.
    pub(super) async fn put(&self, entries: Vec<LaneEntry>) -> (usize, Option<SendError>) {
        let until = Instant::now() + BATCH;
        let mut places = Vec::with_capacity(entries.len());
        let mut published = Vec::with_capacity(entries.len());
        let mut stopped = None;
        {
            let mut state = self.state.lock().await;
            for entry in entries {
                let partition = names::partition_of(&entry.key, entry.lane.partitions);
                let queue = names::partition(&entry.lane, partition);
                let channel = match state.ready(&self.link, &queue, until).await {
                    Ok(channel) => channel,
                    Err(error) => {
                        stopped = Some(error);
                        break;
                    }
                };
                let mut entry = Entry::from(entry);
                entry.late = state.is_late(&queue, &entry);
                let place = entry.origin.clone().map(|(store, number)| (queue.clone(), store, number));
                let mut confirming = publish(channel, queue, &entry);
                // The first poll hands the frames over; the next entry's come after them.
                let mut ended = match futures_util::poll!(confirming.as_mut()) {
                    std::task::Poll::Ready(result) => Published::Ended(result),
                    std::task::Poll::Pending => Published::Waiting(confirming),
                };
                if state.careful > 0 {
                    state.careful -= 1;
                    ended = Published::Ended(ended.wait(until).await);
                }
                let failed = matches!(&ended, Published::Ended(result) if refusal(result).is_some());
                places.push(place);
                published.push(ended);
                if failed {
                    break;
                }
            }
        }
        let mut confirmed = 0;
        let mut first = None;
        let mut overtaken = Vec::new();
        for (at, waiting) in published.into_iter().enumerate() {
            let result = waiting.wait(until).await;
            match refusal(&result) {
                None if first.is_none() => confirmed += 1,
                None => overtaken.push(at),
                Some(error) => first = first.or(Some(error)),
            }
        }
        if let Some(error) = &first {
            let taken = overtaken.into_iter().filter_map(|at| places[at].clone());
            self.state.lock().await.refused(taken, error);
        }
        (confirmed, first.map(|(error, _)| error).or(stopped))
    }
}

impl Published {
    async fn wait(self, until: Instant) -> lapin::Result<Confirmation> {
        match self {
            Published::Ended(result) => result,
            Published::Waiting(confirming) => match tokio::time::timeout_at(until, confirming).await
            {
                Ok(result) => result,
                Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
            },
        }
    }
}

impl State {
    /// The channel, with the queue there.
    async fn ready(
        &mut self,
        link: &Arc<Link>,
        queue: &Arc<str>,
        until: Instant,
    ) -> Result<Channel, SendError> {
        let channel = match &self.channel {
            Some(channel) if channel.status().connected() => channel.clone(),
            _ => {
                self.declared.clear();
                let channel = link.channel(until).await?;
                failure::call(
                    "asking for confirms",
                    channel.confirm_select(ConfirmSelectOptions::default()),
                )
                .await
                .map_err(outage)?;
                self.channel = Some(channel.clone());
                channel
            }
        };
        if !self.declared.contains(queue) {
            declare(&channel, queue).await.map_err(outage)?;
            self.declared.insert(queue.clone());
        }
        Ok(channel)
    }

    /// Whether a later one of its origin is already there.
    fn is_late(&mut self, queue: &Arc<str>, entry: &Entry) -> bool {
        let Some((store, number)) = &entry.origin else {
            return false;
        };
        if self.ahead.is_empty() {
            return false;
        }
        let place = (queue.clone(), store.clone());
        match self.ahead.get(&place) {
            Some(ahead) if number <= ahead => true,
            Some(_) => {
                self.ahead.remove(&place);
                false
            }
            None => false,
        }
    }

    /// Notes a refusal, and what was taken after it.
    fn refused(
        &mut self,
        taken: impl Iterator<Item = (Arc<str>, Arc<str>, u64)>,
        (error, by_broker): &(SendError, bool),
    ) {
        if !by_broker {
            return;
        }
        tracing::warn!(error = %error.detail, "the broker refused a message of a lane");
        // The queue may be gone: look again.
        self.declared.clear();
        self.careful = CAREFUL;
        for (queue, store, number) in taken {
            let ahead = self.ahead.entry((queue, store)).or_default();
            *ahead = number.max(*ahead);
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

fn publish(channel: Channel, queue: Arc<str>, entry: &Entry) -> Confirming {
    let (properties, body) = entry.write();
    let properties = properties.with_delivery_mode(2);
    let options = BasicPublishOptions {
        mandatory: true,
        immediate: false,
    };
    Box::pin(async move {
        // The name was declared, so that it is short enough.
        let queue = lapin::types::ShortString::try_new(&*queue).unwrap_or_default();
        channel
            .basic_publish("".into(), queue, options, &body, properties)
            .await?
            .await
    })
}

/// Why an entry is not known to be there, and whether the broker itself said so.
fn refusal(result: &lapin::Result<Confirmation>) -> Option<(SendError, bool)> {
    match result {
        Ok(Confirmation::Ack(None)) => None,
        Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned))) => Some((
            SendError::outage(format!(
                "the broker gave the message back: {}",
                returned.reply_text
            )),
            true,
        )),
        Ok(Confirmation::Nack(None)) => Some((
            SendError::outage("the broker refused the message (a limit of the queue's length?)"),
            true,
        )),
        Ok(Confirmation::NotRequested) => {
            Some((SendError::unknown("the broker confirms nothing"), false))
        }
        Err(error) => Some((
            SendError::unknown(format!("the broker did not confirm the message: {error}")),
            false,
        )),
    }
}

fn outage(failure: Failure) -> SendError {
    SendError::outage(failure.to_string())
}
