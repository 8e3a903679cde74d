//! What a receiver has taken from its queue on one channel, and in which order it is worked on.
//!
//! Messages of one key are worked on one after the other, keys side by side, each in a task of its own. Where all
//! keep one order only one is under way: it runs in the receiver's own task, since handing it to another one and
//! its end back would wake two threads between any two messages. A key that fails holds
//! up its own messages, and the others once the window (the prefetch) is full of those.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt, TryFutureExt};
use lapin::Channel;
use lapin::message::Delivery;
use tokio::task::JoinSet;
use tokio::time::Instant;
use xbus_core::Stop;

use crate::answer::{Answer, Ask};
use crate::held::{Desk, Held, Place};
use crate::incoming::Reading;
use crate::ledger::Released;
use crate::memory::{Carried, Identity};
use crate::shelf;

/// The numbers of released messages begin here; those of others are delivery tags, which ascend from 1.
const RELEASED: u64 = 1 << 63;

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

/// A lane's message under way, and what waits behind it: first, in their order, what was released or
/// has stepped aside for that.
struct Line {
    place: Place,
    step_aside: Stop,
    waiting: VecDeque<Held>,
}

/// What came to its end, and a message that has stepped aside.
type Ended = (Lane, u64, Option<Box<Held>>);
type Here = BoxFuture<'static, Result<Ended, Defect>>;

/// A message's work ended by a defect of the bus: what is held can only be given back.
#[derive(Debug)]
pub(crate) struct Defect;

/// The messages that are held on one channel.
pub(crate) struct Window {
    desk: Arc<Desk>,
    reading: Reading,
    order: Order,
    app_id: Arc<str>,
    /// Lanes with a message under way.
    lanes: HashMap<Lane, Line>,
    /// What is under way in tasks.
    tasks: JoinSet<Ended>,
    /// What is under way here.
    here: FuturesUnordered<Here>,
    /// When each message that is held came, by delivery tag; tags ascend.
    since: BTreeMap<u64, Instant>,
    /// The same of released messages, each with the channel that holds it.
    shelves: BTreeMap<u64, (Instant, Channel)>,
    released: u64,
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
            here: FuturesUnordered::new(),
            since: BTreeMap::new(),
            shelves: BTreeMap::new(),
            released: RELEASED,
        }
    }

    /// When the message came that is held for the longest time.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        let tag = self.since.first_key_value().map(|(_, since)| *since);
        let released = self.shelves.first_key_value();
        let released = released.map(|(_, (since, _))| *since);
        tag.into_iter().chain(released).min()
    }

    /// Whether nothing is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.here.is_empty()
    }

    /// Takes a delivery in.
    pub(crate) fn take(&mut self, delivery: Delivery) {
        let tag = delivery.delivery_tag;
        self.since.insert(tag, Instant::now());
        let identity = OnceLock::new();
        let carried = match delivery.redelivered {
            true => {
                let identity = *identity.get_or_init(|| Identity::of(&delivery));
                self.desk.memory.carried(identity)
            }
            false => None,
        };
        let carried = carried.unwrap_or_else(Carried::new);
        let (lane, held) = self.open(delivery, identity, tag, carried);
        if let Some(held) = self.unless_done(held) {
            self.queue_up(lane, held);
        }
    }

    /// Takes a released message in, before everything that has not been begun yet and in its old order
    /// with the head and with what else was released: a head that came after it steps aside when no
    /// attempt at it is under way.
    pub(crate) fn release(&mut self, released: Released) {
        let shelf = Some(released.channel.clone());
        let number = self.put_back(released.delivery, released.carried, shelf);
        self.shelves
            .insert(number, (Instant::now(), released.channel));
        let _ = released.done.send(());
    }

    /// Puts a released message, which `shelf` holds, in its place. Gives its number.
    pub(crate) fn put_back(
        &mut self,
        delivery: Delivery,
        known: Carried,
        shelf: Option<Channel>,
    ) -> u64 {
        self.released += 1;
        let number = self.released;
        let identity = Identity::of(&delivery);
        // It may have been given back since: then more is known of it.
        let carried = self.desk.memory.carried(identity);
        let carried = carried.filter(|carried| carried.id == known.id);
        let carried = carried.unwrap_or(known);
        let (lane, mut held) = self.open(delivery, identity.into(), number, carried);
        (held.released, held.shelf) = (true, shelf);
        if held.has_id() && self.desk.door.seen(&identity.key()) {
            self.finish_only(held, None);
        } else {
            self.queue_up(lane, held);
        }
        number
    }

    fn queue_up(&mut self, lane: Lane, held: Held) {
        match self.lanes.get_mut(&lane) {
            Some(line) if held.released => {
                if held.place() < line.place {
                    line.step_aside.cancel();
                }
                line.insert(held);
            }
            Some(line) => line.waiting.push_back(held),
            None => self.start(lane, held),
        }
    }

    /// Waits until a message has ended, and goes on with the next of its lane. Nothing when none is
    /// under way. May be dropped.
    pub(crate) async fn ended(&mut self) -> Option<Result<(), Defect>> {
        let ended = tokio::select! {
            biased;
            Some(ended) = self.here.next(), if !self.here.is_empty() => ended,
            Some(ended) = self.tasks.join_next() => ended.map_err(|_| Defect),
            else => return None,
        };
        let (lane, tag, aside) = match ended {
            Ok(ended) => ended,
            Err(defect) => return Some(Err(defect)),
        };
        if let Some(held) = aside {
            // It is held still, and stands behind what it made room for.
            if let Some(line) = self.lanes.get_mut(&lane) {
                line.insert(*held);
            }
        } else if self.since.remove(&tag).is_none()
            && !self.desk.give_back.is_cancelled()
            && let Some((_, channel)) = self.shelves.remove(&tag)
        {
            tokio::spawn(async move { shelf::close(&channel).await });
        }
        let line = self.lanes.get_mut(&lane);
        match line.and_then(|line| line.waiting.pop_front()) {
            Some(next) if !self.desk.give_back.is_cancelled() => self.start(lane, next),
            Some(next) => {
                next.carry(&self.desk);
                self.give_back_waiting(&lane);
            }
            None => {
                self.lanes.remove(&lane);
            }
        }
        Some(Ok(()))
    }

    /// Begins nothing more, and ends when what is under way has ended and what had been set aside
    /// lies there again.
    pub(crate) async fn give_back(&mut self) {
        self.desk.give_back.cancel();
        while let Some(ended) = self.ended().await {
            if let Err(Defect) = ended {
                tracing::error!(queue = %self.desk.queue, "a message's work ended by a defect of the bus");
            }
        }
        for (_, channel) in std::mem::take(&mut self.shelves).into_values() {
            shelf::close(&channel).await;
        }
    }

    fn give_back_waiting(&mut self, lane: &Lane) {
        let line = self.lanes.remove(lane);
        for held in line.into_iter().flat_map(|line| line.waiting) {
            held.carry(&self.desk);
        }
    }

    fn open(
        &self,
        mut delivery: Delivery,
        identity: OnceLock<Identity>,
        number: u64,
        carried: Carried,
    ) -> (Lane, Held) {
        let body = Bytes::from(std::mem::take(&mut delivery.data));
        let message = self
            .reading
            .message(&delivery, body.clone(), &carried)
            .map(|(message, cause)| (Arc::new(message), cause));
        let key: Arc<str> = match (self.order, &message) {
            (Order::Keys, Ok((message, _))) => self.desk.door.key(message).unwrap_or_default(),
            _ => Arc::from(""),
        };
        let shown = match &message {
            Ok((message, _)) => message.clone(),
            Err(_) => Arc::new(shelf::as_it_came(&delivery, body.clone(), &carried)),
        };
        let ticket = self.desk.ledger.enter(shown, key.clone(), &carried);
        let lane = match self.order {
            Order::None => Lane::Alone(number),
            Order::All | Order::Keys => Lane::Key(key),
        };
        let asks = self.desk.door.answers();
        let held = Held {
            number,
            released: false,
            shelf: None,
            begun: false,
            step_aside: Stop::new(),
            ticket,
            ask: Ask::of(&delivery.properties, &self.app_id).filter(|_| asks),
            delivery,
            body,
            identity,
            message,
            carried,
        };
        (lane, held)
    }

    /// Acknowledges a message that was done before and could not be acknowledged then, by this
    /// process or, where it is in the store, by an earlier one.
    fn unless_done(&mut self, held: Held) -> Option<Held> {
        if !held.delivery.redelivered {
            return Some(held);
        }
        let answer = match self.desk.memory.was_done(held.identity()) {
            Some(answer) => answer,
            None if held.has_id() && self.desk.door.seen(&held.identity().key()) => None,
            None => return Some(held),
        };
        tracing::info!(route = %self.desk.door.route(), queue = %self.desk.queue, "a message that was done before came again and is acknowledged");
        self.finish_only(held, answer);
        None
    }

    /// Acknowledges a message without running it, when it was answered.
    fn finish_only(&mut self, held: Held, answer: Option<Answer>) {
        let (desk, number) = (self.desk.clone(), held.number);
        self.tasks.spawn(async move {
            desk.finish(&held, answer).await;
            (Lane::Alone(number), number, None)
        });
    }

    fn start(&mut self, lane: Lane, mut held: Held) {
        held.step_aside = Stop::new();
        let (place, step_aside) = (held.place(), held.step_aside.clone());
        match self.lanes.get_mut(&lane) {
            Some(line) => (line.place, line.step_aside) = (place, step_aside),
            None => {
                let line = Line {
                    place,
                    step_aside,
                    waiting: VecDeque::new(),
                };
                self.lanes.insert(lane.clone(), line);
            }
        }
        let (desk, number) = (self.desk.clone(), held.number);
        let work = async move {
            let aside = desk.hold(held).await;
            (lane, number, aside.map(Box::new))
        };
        match self.order {
            Order::All => {
                let work = AssertUnwindSafe(work).catch_unwind();
                self.here.push(Box::pin(work.map_err(|_| Defect)));
            }
            Order::Keys | Order::None => drop(self.tasks.spawn(work)),
        }
    }
}

impl Line {
    /// Puts what was released or has stepped aside before what has not been begun yet.
    fn insert(&mut self, held: Held) {
        let place = held.place();
        let ahead = |other: &&Held| (other.released || other.begun) && other.place() < place;
        let before = self.waiting.iter().take_while(ahead).count();
        self.waiting.insert(before, held);
    }
}
