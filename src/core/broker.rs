//! Lanes that live in a message broker instead of the store.
//!
//! A message enters such a lane like any other: the commit that accepts it puts it into the store's
//! queue of the same name. From there the forwarder ([`crate::forward`]) hands it over to the broker,
//! in order, and takes it out of the store when the broker has confirmed it. Several nodes then
//! share the lane at the broker, which gives it to one of them at a time.
//!
//! Absent on purpose: AMQP. What a broker must do is said here in the domain's words.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::progress::Progress;
use crate::store::{Outcome, QueueStatus, Queued, StoreError};
use crate::{Message, MessageId, SendError, Stop, Timestamp};

/// A lane as the routes define it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneName {
    /// The queue's name, such as `orders.erp`.
    pub queue: Arc<str>,
    /// Over how many partitions keys are spread; 1 for a lane without `order_by`.
    pub partitions: u32,
}

/// One message of a lane at the broker.
#[derive(Clone, Debug)]
pub struct LaneEntry {
    /// The lane.
    pub lane: LaneName,
    /// The key of `order_by`; empty for none. Messages of one key keep their order.
    pub key: Arc<str>,
    /// The message as it was made when it was accepted.
    pub message: Arc<Message>,
    /// Name of the journal's target that this entry is.
    pub target: Arc<str>,
    /// When it entered the lane.
    pub since: Timestamp,
    /// The message that caused this one, where it is another one.
    pub cause: Option<MessageId>,
    /// The node that accepted it and whose journal wants to know what became of it.
    pub node: Arc<str>,
    /// What tells a message that is handed over twice: the store that it comes from, and its number
    /// there. Numbers of one store and lane ascend in the order of handing over.
    pub origin: Option<(Arc<str>, u64)>,
}

/// What became of an entry, for the journal of the node that accepted it.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The message.
    pub id: MessageId,
    /// The target.
    pub target: Arc<str>,
    /// `Delivered`, or `Failed` for what was dropped.
    pub outcome: Outcome,
    /// How often it was tried.
    pub attempts: u32,
    /// The last error, for what was dropped.
    pub error: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// What comes after an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The head was delivered: it leaves the lane.
    Done,
    /// It stays at the head and is tried again after `wait`.
    Retry {
        /// What went wrong, for administrators.
        error: String,
        /// How long to wait.
        wait: Duration,
    },
    /// It is set aside, and the next goes on.
    Park {
        /// Why.
        reason: String,
    },
    /// Nobody takes the lane's messages now: it stays at the head, untried.
    Wait {
        /// How long to wait before asking again.
        wait: Duration,
    },
}

/// What works on the heads of a lane; the core's side of a lane at a broker.
pub trait LaneWorker: Send + Sync {
    /// Tries the head once. `head.attempts` counts the earlier tries. Whatever goes wrong is told
    /// to the administrators from here.
    fn attempt<'a>(&'a self, head: &'a Queued) -> BoxFuture<'a, Verdict>;

    /// Writes into this node's journal what became of a message that it accepted. `Ok` once that
    /// is as safe as the journal is.
    fn report(&self, report: Report) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Which messages of `origin` have been delivered from this lane's partition, as far as this
    /// node knows; kept over restarts.
    fn progress(&self, partition: u32, origin: &str) -> Progress;

    /// The same of every origin that is known.
    fn delivered(&self, partition: u32) -> Vec<(Arc<str>, Progress)>;

    /// Remembers what [`LaneWorker::progress`] tells; also when nobody waits for what this gives. `Ok`
    /// once a process that is killed does not forget it.
    fn set_progress(
        &self,
        partition: u32,
        origin: &str,
        progress: Progress,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The broker cannot be worked with; told once for each new reason.
    fn broken(&self, error: &str);

    /// The lane is worked off (again), or an administrator changed its head.
    fn works(&self);
}

/// What a lane is asked to do by an administrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaneCommand {
    /// Try the heads that wait for their time now: all, or the one that is this message.
    Retry(Option<MessageId>),
    /// Set the oldest head aside, or the head that is this message.
    Park(Option<MessageId>, String),
    /// Put a parked message back before everything that is still queued.
    Release(MessageId),
    /// Remove a head or a parked message for good.
    Drop(MessageId),
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneDone {
    /// The message that was changed, where it was one.
    pub id: Option<MessageId>,
    /// How many heads were tried again.
    pub heads: usize,
}

/// Hands entries of one lane over to its broker. Many may be on their way, which keeps their order.
pub trait LaneWriter: Send {
    /// Hands entries over, each to the tail of its partition, in the order given and behind those of
    /// earlier calls; does not wait until they are confirmed. Gives how many of them, counted from
    /// the first, are on their way now, and why not all. Not to be dropped before it has ended,
    /// unless the writer is.
    fn put(&mut self, entries: Vec<LaneEntry>) -> BoxFuture<'_, (usize, Option<SendError>)>;

    /// Waits for the oldest that is on its way. Gives how many, counted from that one, are confirmed
    /// as durable. With an error nothing is on its way any more: what comes after those may or may
    /// not be there, and is handed over again, from the first of them. Dropping it changes nothing.
    fn confirmed(&mut self) -> BoxFuture<'_, (usize, Option<SendError>)>;
}

/// A broker that keeps lanes. Cheap to share; nothing connects before it is used.
pub trait LaneBroker: Send + Sync {
    /// The connection's name in xbus.yaml.
    fn name(&self) -> &str;

    /// Whether it can keep a lane of that name, or why not.
    fn can_keep(&self, lane: &LaneName) -> Result<(), String>;

    /// Every queue that the lane has or may come to have at the broker.
    fn queues_of(&self, lane: &LaneName) -> Vec<Arc<str>>;

    /// Whether it takes messages now, as far as is known: connected, and not blocked.
    fn is_up(&self) -> bool;

    /// A way to hand over entries of a lane. One at a time: what two of them hand over has no order.
    fn writer(&self) -> Box<dyn LaneWriter>;

    /// Works the lane off together with other nodes, until `stop`; ends when the last attempt has
    /// ended. A broker that is down is tried again for ever.
    fn work(
        &self,
        lane: LaneName,
        worker: Arc<dyn LaneWorker>,
        stop: Stop,
    ) -> BoxFuture<'static, ()>;

    /// What waits in the lane and is parked, over all partitions and nodes.
    fn status<'a>(&'a self, lane: &'a LaneName) -> BoxFuture<'a, Result<QueueStatus, StoreError>>;

    /// Entries of the lane, oldest first: what waits (heads first), or what is parked.
    fn entries<'a>(
        &'a self,
        lane: &'a LaneName,
        parked: bool,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Queued>, StoreError>>;

    /// Does what an administrator asks; at whichever node holds the head.
    fn command<'a>(
        &'a self,
        lane: &'a LaneName,
        command: LaneCommand,
        worker: Option<Arc<dyn LaneWorker>>,
    ) -> BoxFuture<'a, Result<LaneDone, StoreError>>;

    /// Takes everything that waits out of the lane, in order: `keep` makes a batch durable elsewhere,
    /// and only then it leaves the broker. Parked messages come with their reason, first. No node may
    /// work the lane off meanwhile. Gives how many were taken.
    fn empty<'a>(
        &'a self,
        lane: &'a LaneName,
        keep: &'a (dyn Fn(Vec<Queued>) -> BoxFuture<'a, Result<(), StoreError>> + Send + Sync),
    ) -> BoxFuture<'a, Result<usize, StoreError>>;
}
