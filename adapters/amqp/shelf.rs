//! What was set aside from a queue: listed, taken up again, or removed.
//!
//! Messages are looked at by taking them from `QUEUE.parked` without acknowledging them; closing the
//! channel gives them back, each to its place.

use std::sync::Arc;
use std::time::Duration;

use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Acker, Channel};
use tokio::time::Instant;
use xbus_core::store::{EntryRef, Queued};
use xbus_core::{Message, MessageId, Timestamp};

use crate::binding::code;
use crate::error::describe;
use crate::link::Link;
use crate::memory::{Carried, Identity};
use crate::properties::{self, Envelope, short};

/// How long one call to the broker may take.
const CALL: Duration = Duration::from_secs(20);

/// A broker that has closed a channel gives back what it held a moment later: how long that is waited
/// for, and how often it is looked.
const BACK: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);

/// Why the broker did not do what was asked.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// There is no such queue.
    Missing,
    /// The bus's user may not, in words.
    Refused(String),
    /// In words.
    Other(String),
}

/// A message that was set aside.
pub(crate) struct Parked {
    /// The delivery as it came first, but for its acknowledgement.
    pub(crate) delivery: Delivery,
    /// What is known of it.
    pub(crate) carried: Carried,
    reason: String,
    last_error: Option<String>,
    /// The bus has set it aside: its id is its own, and two of one id are copies.
    ours: bool,
}

impl Parked {
    fn read(mut delivery: Delivery) -> Self {
        let headers = delivery.properties.headers().clone().unwrap_or_default();
        let said = |name: &str| {
            let value = headers.inner().get(name)?;
            Some(properties::text_of(value).into_owned()).filter(|text| !text.is_empty())
        };
        let id = said("x-xbus-id").and_then(|id| id.parse::<MessageId>().ok());
        // Whoever had put it there: where it came from is what the bus knows, if it does.
        if let Some(exchange) = said("x-xbus-exchange").as_deref().and_then(short) {
            delivery.exchange = exchange;
        } else if id.is_some() {
            delivery.exchange = ShortString::default();
        }
        if let Some(key) = said("x-xbus-routing-key").as_deref().and_then(short) {
            delivery.routing_key = key;
        }
        let mut carried = Carried::new();
        let identity = |delivery: &Delivery| Identity::of(delivery).as_id();
        carried.id = id.unwrap_or_else(|| identity(&delivery));
        let time = |name: &str| said(name)?.parse::<Timestamp>().ok();
        if let Some(at) = time("x-xbus-received-at").or_else(|| time("x-xbus-parked-at")) {
            carried.received_at = at;
        }
        let attempts = said("x-xbus-attempts").and_then(|attempts| attempts.parse().ok());
        carried.attempts = attempts.unwrap_or(0);
        let mut own = FieldTable::default();
        for (name, value) in &headers {
            if !name.as_str().starts_with("x-xbus-") && name.as_str() != "x-delivery-count" {
                own.insert(name.clone(), value.clone());
            }
        }
        let mut properties = delivery.properties.clone().with_headers(own);
        if let Some(expiration) = said("x-xbus-expiration").as_deref().and_then(short) {
            properties = properties.with_expiration(expiration);
        }
        if let Some(user) = said("x-xbus-user-id").as_deref().and_then(short) {
            properties = properties.with_user_id(user);
        }
        delivery.properties = properties;
        Self {
            delivery,
            carried,
            reason: said("x-xbus-reason").unwrap_or_else(|| String::from("put there by others")),
            last_error: said("x-xbus-last-error"),
            ours: id.is_some(),
        }
    }

    /// As the core knows it; `number`: its place.
    pub(crate) fn queued(&self, queue: &Arc<str>, number: u64) -> Queued {
        Queued {
            at: EntryRef {
                queue: queue.clone(),
                key: Arc::from(""),
                seq: number,
            },
            message: Arc::new(as_it_came(
                &self.delivery,
                self.delivery.data.clone().into(),
                &self.carried,
            )),
            target: Arc::from(""),
            since: self.carried.received_at,
            cause: None,
            attempts: self.carried.attempts,
            last_error: self.last_error.clone(),
            next_try: None,
            parked: Some(self.reason.clone()),
        }
    }
}

/// The message that a delivery is, not decoded: for those who look at it.
pub(crate) fn as_it_came(delivery: &Delivery, body: bytes::Bytes, carried: &Carried) -> Message {
    let about = Envelope {
        exchange: delivery.exchange.as_str(),
        routing_key: delivery.routing_key.as_str(),
        redelivered: delivery.redelivered,
    };
    let mut message = properties::read(&delivery.properties, about, body);
    message.id = carried.id;
    message.received_at = carried.received_at;
    message
}

/// The oldest messages that are set aside.
pub(crate) async fn list(
    link: &Arc<Link>,
    queue: &ShortString,
    limit: usize,
) -> Result<Vec<Parked>, Trouble> {
    let channel = open(link).await?;
    let mut found = Vec::new();
    while found.len() < limit {
        match next(&channel, queue).await? {
            Some(delivery) => found.push(Parked::read(delivery)),
            None => break,
        }
    }
    give_back(link, channel, queue, found.len()).await?;
    Ok(found)
}

/// Takes up the oldest message that is `id`: it, and the channel that holds it and nothing else.
/// Copies of it, of which a crash between setting aside and acknowledging leaves one, are removed.
pub(crate) async fn take(
    link: &Arc<Link>,
    queue: &ShortString,
    id: MessageId,
) -> Result<Option<(Parked, Channel)>, Trouble> {
    // Its place first. Others may take messages out meanwhile.
    for _ in 0..3 {
        let channel = open(link).await?;
        let (mut place, mut before, mut all) = (None, 0_usize, 0_usize);
        let mut copies = Vec::new();
        while let Some(delivery) = next(&channel, queue).await? {
            let parked = Parked::read(delivery);
            all += 1;
            match place {
                None if parked.carried.id == id => place = Some(before),
                None => before += 1,
                Some(_) if parked.ours && parked.carried.id == id => {
                    copies.push(parked.delivery.acker);
                }
                Some(_) => {}
            }
        }
        remove(&channel, queue, &copies).await?;
        give_back(link, channel, queue, all - copies.len()).await?;
        let Some(place) = place else {
            return Ok(None);
        };
        let (others, own) = (open(link).await?, open(link).await?);
        for _ in 0..place {
            next(&others, queue).await?;
        }
        let taken = next(&own, queue).await?.map(Parked::read);
        give_back(link, others, queue, place).await?;
        match taken {
            Some(parked) if parked.carried.id == id => return Ok(Some((parked, own))),
            _ => close(&own).await,
        }
    }
    Err(Trouble::Other(format!(
        "queue '{queue}' is changed by others all the time"
    )))
}

/// Removes the messages that are `id`. Whether there was one.
pub(crate) async fn drop_parked(
    link: &Arc<Link>,
    queue: &ShortString,
    id: MessageId,
) -> Result<bool, Trouble> {
    let channel = open(link).await?;
    let (mut ackers, mut all) = (Vec::new(), 0_usize);
    while let Some(delivery) = next(&channel, queue).await? {
        let parked = Parked::read(delivery);
        all += 1;
        if parked.carried.id == id && (parked.ours || ackers.is_empty()) {
            ackers.push(parked.delivery.acker);
        }
    }
    remove(&channel, queue, &ackers).await?;
    give_back(link, channel, queue, all - ackers.len()).await?;
    Ok(!ackers.is_empty())
}

/// How many messages are ready in a queue.
pub(crate) async fn count(channel: &Channel, queue: &ShortString) -> Result<u64, Trouble> {
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel.queue_declare(queue.clone(), options, FieldTable::default());
    let found = call(queue, declared).await?;
    Ok(u64::from(found.message_count()))
}

/// A channel for looking.
pub(crate) async fn open(link: &Arc<Link>) -> Result<Channel, Trouble> {
    let channel = link.channel(Instant::now() + CALL).await;
    channel.map_err(|error| Trouble::Other(error.detail))
}

/// Closes a channel, which gives back what it holds, each to its place.
pub(crate) async fn close(channel: &Channel) {
    if channel.status().connected() {
        // Closed or lost: either way the broker takes back what it held.
        let _ = tokio::time::timeout(CALL, channel.close(200, "done".into())).await;
    }
}

/// Closes a channel that holds so many messages of a queue, and waits until they lie there again: the
/// next who looks would not find them.
async fn give_back(
    link: &Arc<Link>,
    channel: Channel,
    queue: &ShortString,
    held: usize,
) -> Result<(), Trouble> {
    close(&channel).await;
    if held == 0 {
        return Ok(());
    }
    let look = open(link).await?;
    let until = Instant::now() + BACK;
    while count(&look, queue).await? < held as u64 && Instant::now() < until {
        tokio::time::sleep(LOOK).await;
    }
    close(&look).await;
    Ok(())
}

async fn next(channel: &Channel, queue: &ShortString) -> Result<Option<Delivery>, Trouble> {
    let got = channel.basic_get(queue.clone(), BasicGetOptions::default());
    let got = call(queue, got).await?;
    Ok(got.map(|message| message.delivery))
}

/// Acknowledges, and waits until the broker has read it.
async fn remove(channel: &Channel, queue: &ShortString, ackers: &[Acker]) -> Result<(), Trouble> {
    for acker in ackers {
        call(queue, acker.ack(BasicAckOptions::default())).await?;
    }
    if !ackers.is_empty() {
        count(channel, queue).await?;
    }
    Ok(())
}

async fn call<T>(
    queue: &ShortString,
    made: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Trouble> {
    match tokio::time::timeout(CALL, made).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) if code(&error) == Some(404) => Err(Trouble::Missing),
        Ok(Err(error)) if code(&error) == Some(403) => Err(Trouble::Refused(format!(
            "queue '{queue}': {}",
            describe(&error)
        ))),
        Ok(Err(error)) => Err(Trouble::Other(format!(
            "queue '{queue}': {}",
            describe(&error)
        ))),
        Err(_) => Err(Trouble::Other(format!(
            "queue '{queue}': the broker does not answer"
        ))),
    }
}
