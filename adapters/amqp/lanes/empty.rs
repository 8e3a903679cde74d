//! Taking all of a lane out of the broker, in order.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use lapin::Acker;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::time::Instant;
use xbus_core::broker::LaneName;
use xbus_core::progress::Progress;
use xbus_core::store::{Queued, StoreError};

use super::entry::{Content, Entry};
use super::failure::{CALL, Failure, call, close};
use super::names;
use super::state::{States, count};
use crate::link::Link;

/// How many are made durable elsewhere at once.
const BATCH: usize = 200;
/// The broker sends what it has; when nothing came for so long, it is asked whether that was all.
const QUIET: Duration = Duration::from_millis(300);
/// The broker goes on counting a consumer for a moment that has just left.
const LEAVING: Duration = Duration::from_secs(8);

/// Makes a batch durable elsewhere.
pub(super) type Keep<'a> =
    &'a (dyn Fn(Vec<Queued>) -> BoxFuture<'a, Result<(), StoreError>> + Send + Sync);

/// What leaves the broker together.
struct Batch<'a> {
    lane: LaneName,
    keep: Keep<'a>,
    entries: Vec<Queued>,
    last: Option<Acker>,
    taken: usize,
}

/// Takes a lane out: all that is parked, then for each partition what is in front and what waits.
pub(super) async fn run(
    link: &Arc<Link>,
    lane: &LaneName,
    keep: Keep<'_>,
) -> Result<usize, StoreError> {
    let queues = names::partitions(lane);
    let until = Instant::now() + LEAVING;
    for queue in &queues {
        while count(link, queue)
            .await?
            .is_some_and(|(_, users)| users > 0)
        {
            if Instant::now() > until {
                return Err(StoreError::NotFound(format!(
                    "queue '{queue}' is being worked off; stop all nodes that work on the lane, then \
                     try again"
                )));
            }
            tokio::time::sleep(QUIET).await;
        }
    }
    let mut taken = 0;
    // First, so that what is released later stands before what waits now.
    for queue in &queues {
        taken += got(link, lane, &names::parked(queue), None, keep).await?;
    }
    for queue in &queues {
        let mut states = States::default();
        states.read(link, queue).await?;
        taken += got(link, lane, &names::front(queue), Some(&states), keep).await?;
        taken += consumed(link, lane, queue, &states, keep).await?;
    }
    Ok(taken)
}

/// Empties a queue that can be read message by message.
async fn got(
    link: &Arc<Link>,
    lane: &LaneName,
    queue: &str,
    states: Option<&States>,
    keep: Keep<'_>,
) -> Result<usize, StoreError> {
    if count(link, queue).await?.is_none() {
        return Ok(0);
    }
    let channel = link
        .channel(Instant::now() + CALL)
        .await
        .map_err(Failure::from)?;
    let mut batch = Batch::new(lane, keep);
    let what = format!("reading queue '{queue}'");
    loop {
        let name = names::short(queue)?;
        let Some(message) =
            call(&what, channel.basic_get(name, BasicGetOptions::default())).await?
        else {
            break;
        };
        let message = message.delivery;
        let content = Entry::read(&message.properties, message.data);
        batch.add(content, message.acker, states).await?;
    }
    batch.flush().await?;
    leave(&channel, queue).await?;
    Ok(batch.taken)
}

/// Empties a partition's queue, which gives its messages to a consumer only.
async fn consumed(
    link: &Arc<Link>,
    lane: &LaneName,
    queue: &str,
    states: &States,
    keep: Keep<'_>,
) -> Result<usize, StoreError> {
    if count(link, queue).await?.is_none() {
        return Ok(0);
    }
    let channel = link
        .channel(Instant::now() + CALL)
        .await
        .map_err(Failure::from)?;
    let mut consumer = consume(&channel, queue, BATCH).await?;
    let mut batch = Batch::new(lane, keep);
    // What was handed over twice is known by its number.
    let mut seen: HashMap<Arc<str>, Progress> = HashMap::new();
    while let Some((entry, acker)) = next(&mut consumer, link, queue).await? {
        if let Content::Entry(entry) = &entry
            && let Some((store, number)) = &entry.origin
        {
            let progress = seen.entry(store.clone()).or_default();
            if progress.has(*number) {
                batch.skip(acker).await?;
                continue;
            }
            progress.deliver(*number, entry.after);
        }
        batch.add(entry, acker, Some(states)).await?;
    }
    batch.flush().await?;
    leave(&channel, queue).await?;
    Ok(batch.taken)
}

/// Consumes a queue with so many messages sent ahead.
async fn consume(channel: &Channel, queue: &str, ahead: usize) -> Result<Consumer, Failure> {
    let ahead = u16::try_from(ahead.max(1)).unwrap_or(u16::MAX);
    call(
        "limiting what is sent at once",
        channel.basic_qos(ahead, BasicQosOptions::default()),
    )
    .await?;
    call(
        &format!("consuming queue '{queue}'"),
        channel.basic_consume(
            names::short(queue)?,
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        ),
    )
    .await
}

/// The next message; nothing when the queue holds none.
async fn next(
    consumer: &mut Consumer,
    link: &Arc<Link>,
    queue: &str,
) -> Result<Option<(Content, Acker)>, Failure> {
    loop {
        match tokio::time::timeout(QUIET, consumer.next()).await {
            Ok(Some(Ok(delivery))) => {
                let content = Entry::read(&delivery.properties, delivery.data);
                return Ok(Some((content, delivery.acker)));
            }
            Ok(Some(Err(error))) => {
                return Err(Failure::of(&format!("queue '{queue}'"), &error));
            }
            Ok(None) => return Err(Failure::new(format!("queue '{queue}' was deleted"))),
            Err(_) => {
                let there = count(link, queue).await?;
                if there.is_none_or(|(ready, _)| ready == 0) {
                    return Ok(None);
                }
            }
        }
    }
}

/// The first messages of a partition that nobody works on; they stay where they are.
pub(super) async fn peek(
    link: &Arc<Link>,
    queue: &str,
    limit: usize,
) -> Result<Vec<Entry>, Failure> {
    let channel = link.channel(Instant::now() + CALL).await?;
    let mut consumer = consume(&channel, queue, limit).await?;
    let mut entries = Vec::new();
    while entries.len() < limit {
        match tokio::time::timeout(QUIET, consumer.next()).await {
            Ok(Some(Ok(delivery))) => {
                if let Content::Entry(entry) = Entry::read(&delivery.properties, delivery.data) {
                    entries.push(*entry);
                }
            }
            // Nothing more, or no longer: what was seen is shown.
            _ => break,
        }
    }
    close(&channel).await;
    Ok(entries)
}

/// Waits until the broker has taken the acknowledgements, and closes the channel.
async fn leave(channel: &Channel, queue: &str) -> Result<(), Failure> {
    call(
        &format!("looking at queue '{queue}'"),
        channel.queue_declare(
            names::short(queue)?,
            QueueDeclareOptions::durable().passive(),
            FieldTable::default(),
        ),
    )
    .await?;
    close(channel).await;
    Ok(())
}

impl<'a> Batch<'a> {
    fn new(lane: &LaneName, keep: Keep<'a>) -> Self {
        Self {
            lane: lane.clone(),
            keep,
            entries: Vec::new(),
            last: None,
            taken: 0,
        }
    }

    async fn add(
        &mut self,
        content: Content,
        acker: Acker,
        states: Option<&States>,
    ) -> Result<(), StoreError> {
        if let Content::Entry(entry) = content {
            let mut queued = entry.queued(&self.lane);
            if let Some(state) = states.and_then(|states| states.of(queued.message.id)) {
                queued.attempts = state.attempts;
                queued.last_error = Some(state.error.clone());
                queued.next_try = Some(state.next_try());
            }
            self.entries.push(queued);
        }
        self.skip(acker).await
    }

    /// A message that leaves the broker and goes nowhere.
    async fn skip(&mut self, acker: Acker) -> Result<(), StoreError> {
        self.last = Some(acker);
        if self.entries.len() >= BATCH / 2 {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), StoreError> {
        let entries = std::mem::take(&mut self.entries);
        let count = entries.len();
        if count > 0 {
            (self.keep)(entries).await?;
        }
        if let Some(last) = self.last.take() {
            call(
                "acknowledging",
                last.ack(BasicAckOptions { multiple: true }),
            )
            .await?;
        }
        self.taken += count;
        Ok(())
    }
}
