//! Messages set aside: kept in `P.parked`, listed, put back to the front, or removed.

use std::sync::Arc;

use lapin::Acker;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::time::Instant;
use xbus_core::MessageId;

use super::entry::{self, Content, Entry};
use super::failure::{CALL, Failure, call, close};
use super::{keep, names};
use crate::link::{Link, Publish};

/// What the journal says of a message that an administrator removed.
pub(super) const DROPPED: &str = "dropped by an administrator";

/// Keeps a message with its reason; `Ok` once it is durable.
pub(super) async fn set_aside(link: &Arc<Link>, queue: &str, entry: &Entry) -> Result<(), Failure> {
    publish(link, names::parked(queue), entry.write(), false).await
}

/// A channel that holds parked messages; closing it gives them back, each to its place.
struct Shelf {
    channel: Channel,
    queue: Arc<str>,
}

impl Shelf {
    async fn open(link: &Arc<Link>, queue: &str) -> Result<Self, Failure> {
        Ok(Self {
            channel: link.channel(Instant::now() + CALL).await?,
            queue: names::parked(queue),
        })
    }

    /// The next one; nothing when there is none (or no queue).
    async fn next(&self) -> Result<Option<(Entry, Acker)>, Failure> {
        loop {
            let got = call(
                &format!("reading queue '{}'", self.queue),
                self.channel
                    .basic_get(names::short(&self.queue)?, BasicGetOptions::default()),
            )
            .await;
            let message = match got {
                Ok(Some(message)) => message.delivery,
                Ok(None) => return Ok(None),
                Err(failure) if failure.is_missing() => return Ok(None),
                Err(failure) => return Err(failure),
            };
            if let Content::Entry(entry) = Entry::read(&message.properties, message.data) {
                return Ok(Some((*entry, message.acker)));
            }
        }
    }

    /// Takes messages off the queue, and waits until the broker has done it.
    async fn remove(&self, ackers: &[Acker]) -> Result<(), Failure> {
        for acker in ackers {
            call("acknowledging", acker.ack(BasicAckOptions::default())).await?;
        }
        call(
            &format!("looking at queue '{}'", self.queue),
            self.channel.queue_declare(
                names::short(&self.queue)?,
                QueueDeclareOptions::durable().passive(),
                FieldTable::default(),
            ),
        )
        .await?;
        Ok(())
    }

    async fn close(&self) {
        close(&self.channel).await;
    }
}

/// The oldest parked messages of a partition, each once.
pub(super) async fn list(
    link: &Arc<Link>,
    queue: &str,
    limit: usize,
) -> Result<Vec<Entry>, Failure> {
    let shelf = Shelf::open(link, queue).await?;
    let mut entries: Vec<Entry> = Vec::new();
    while entries.len() < limit {
        let Some((entry, _)) = shelf.next().await? else {
            break;
        };
        if !entries
            .iter()
            .any(|known| known.message.id == entry.message.id)
        {
            entries.push(entry);
        }
    }
    shelf.close().await;
    Ok(entries)
}

/// Takes a parked message out; `with` is done before it leaves the queue. Gives whether it was there.
async fn take<F>(
    link: &Arc<Link>,
    queue: &str,
    id: MessageId,
    with: impl FnOnce(Entry) -> F,
) -> Result<bool, Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    let shelf = Shelf::open(link, queue).await?;
    let mut found = None;
    let mut ackers = Vec::new();
    while let Some((entry, acker)) = shelf.next().await? {
        // A crash between parking and acknowledging may have parked it twice.
        if entry.message.id == id {
            ackers.push(acker);
            found = Some(entry);
        }
    }
    let there = found.is_some();
    if let Some(entry) = found {
        with(entry).await?;
        shelf.remove(&ackers).await?;
    }
    shelf.close().await;
    Ok(there)
}

/// Puts a parked message to the front; `Ok(true)` once it is durable there.
pub(super) async fn release(link: &Arc<Link>, queue: &str, id: MessageId) -> Result<bool, Failure> {
    let released = take(link, queue, id, async |mut entry: Entry| {
        entry.parked = None;
        publish(link, names::front(queue), entry.write(), false).await
    })
    .await?;
    if released {
        publish(link, Arc::from(queue), entry::nudge(), true).await?;
    }
    Ok(released)
}

/// Removes a parked message; `with` is done before.
pub(super) async fn remove<F>(
    link: &Arc<Link>,
    queue: &str,
    id: MessageId,
    with: impl FnOnce(Entry) -> F,
) -> Result<bool, Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    take(link, queue, id, with).await
}

async fn publish(
    link: &Arc<Link>,
    queue: Arc<str>,
    (properties, body): (lapin::BasicProperties, bytes::Bytes),
    lane: bool,
) -> Result<(), Failure> {
    let arguments = if lane {
        names::lane_arguments
    } else {
        names::kept_arguments
    };
    keep::publish(
        link,
        Publish {
            exchange: Arc::from(""),
            routing_key: queue,
            properties,
            body,
        },
        arguments,
    )
    .await
}
