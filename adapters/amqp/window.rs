//! What a receiver has taken from its queue on one channel, and in which order it is worked on.
//!
//! Messages of one key are worked on one after the other, keys side by side. A key that fails holds
//! up its own messages, and the others once the window (the prefetch) is full of those.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use lapin::message::Delivery;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::answer::Ask;
use crate::held::{Desk, Held};
use crate::incoming::Reading;
use crate::memory::{Carried, Identity};

/// How messages are told apart by key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    /// One after the other.
    All,
    /// By the route's `order_by`.
    Keys,
    /// Not at all.
    None,
}

/// A key among which messages keep their order.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Lane {
    /// Of `order_by`; empty for messages without one.
    Key(Arc<str>),
    /// A message of its own.
    Alone(u64),
}

/// The messages that are held on one channel.
pub(crate) struct Window {
    desk: Arc<Desk>,
    reading: Reading,
    order: Order,
    app_id: Arc<str>,
    /// Lanes with a message under way, and what waits behind it.
    lanes: HashMap<Lane, VecDeque<Held>>,
    tasks: JoinSet<(Lane, u64)>,
    /// When each message that is held came, by delivery tag; tags ascend.
    since: BTreeMap<u64, Instant>,
}

impl Window {
    pub(crate) fn new(desk: Arc<Desk>, reading: Reading, order: Order, app_id: Arc<str>) -> Self {
        Self {
            desk,
            reading,
            order,
            app_id,
            lanes: HashMap::new(),
            tasks: JoinSet::new(),
            since: BTreeMap::new(),
        }
    }

    /// When the message came that is held for the longest time.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.since.first_key_value().map(|(_, since)| *since)
    }

    /// Whether nothing is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Takes a delivery in.
    pub(crate) fn take(&mut self, delivery: Delivery) {
        let tag = delivery.delivery_tag;
        self.since.insert(tag, Instant::now());
        let held = self.open(delivery);
        let Some(held) = self.unless_done(held) else {
            return;
        };
        let lane = match (self.order, &held.message) {
            (Order::None, _) => Lane::Alone(tag),
            (Order::All, _) | (_, Err(_)) => Lane::Key(Arc::from("")),
            (Order::Keys, Ok((message, _))) => {
                Lane::Key(self.desk.door.key(message).unwrap_or_else(|| Arc::from("")))
            }
        };
        match self.lanes.get_mut(&lane) {
            Some(waiting) => waiting.push_back(held),
            None => {
                self.lanes.insert(lane.clone(), VecDeque::new());
                self.start(lane, held);
            }
        }
    }

    /// Waits until a message has ended, and goes on with the next of its lane. Nothing when none is
    /// under way. The error is a defect of the bus: what is held can only be given back.
    pub(crate) async fn ended(&mut self) -> Option<Result<(), JoinError>> {
        let (lane, tag) = match self.tasks.join_next().await? {
            Ok(ended) => ended,
            Err(error) => return Some(Err(error)),
        };
        self.since.remove(&tag);
        match self.lanes.get_mut(&lane).and_then(VecDeque::pop_front) {
            Some(next) if !self.desk.give_back.is_cancelled() => self.start(lane, next),
            Some(next) => {
                next.carry(&self.desk.memory);
                self.give_back_waiting(&lane);
            }
            None => {
                self.lanes.remove(&lane);
            }
        }
        Some(Ok(()))
    }

    /// Begins nothing more, and ends when what is under way has ended.
    pub(crate) async fn give_back(&mut self) {
        self.desk.give_back.cancel();
        while let Some(ended) = self.ended().await {
            if let Err(error) = ended {
                tracing::error!(queue = %self.desk.queue, %error, "a message's work ended by a defect of the bus");
            }
        }
    }

    fn give_back_waiting(&mut self, lane: &Lane) {
        for held in self.lanes.remove(lane).into_iter().flatten() {
            held.carry(&self.desk.memory);
        }
    }

    fn open(&self, mut delivery: Delivery) -> Held {
        let identity = Identity::of(&delivery);
        let body = Bytes::from(std::mem::take(&mut delivery.data));
        let carried = match delivery.redelivered {
            true => self.desk.memory.carried(identity),
            false => None,
        };
        let carried = carried.unwrap_or_else(Carried::new);
        let message = self
            .reading
            .message(&delivery, body.clone(), &carried)
            .map(|(message, cause)| (Arc::new(message), cause));
        let asks = self.desk.door.answers();
        Held {
            ask: Ask::of(&delivery.properties, &self.app_id).filter(|_| asks),
            delivery,
            body,
            identity,
            message,
            carried,
        }
    }

    /// Acknowledges a message that was done before and could not be acknowledged then, by this
    /// process or, where it is in the store, by an earlier one.
    fn unless_done(&mut self, held: Held) -> Option<Held> {
        if !held.delivery.redelivered {
            return Some(held);
        }
        let answer = match self.desk.memory.was_done(held.identity) {
            Some(answer) => answer,
            None if held.has_id() && self.desk.door.seen(&held.identity.key()) => None,
            None => return Some(held),
        };
        tracing::info!(route = %self.desk.door.route(), queue = %self.desk.queue, "a message that was done before came again and is acknowledged");
        let (desk, tag) = (self.desk.clone(), held.delivery.delivery_tag);
        self.tasks.spawn(async move {
            desk.finish(&held, answer).await;
            (Lane::Alone(tag), tag)
        });
        None
    }

    fn start(&mut self, lane: Lane, held: Held) {
        let (desk, tag) = (self.desk.clone(), held.delivery.delivery_tag);
        self.tasks.spawn(async move {
            desk.hold(held).await;
            (lane, tag)
        });
    }
}
