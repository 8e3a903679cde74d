//! What the core asks of durable storage, in the domain's words. The engine lives in xbus-store.
//!
//! One [`Commit`] is one atomic unit: after a crash all of its changes are there or none. Commits
//! take effect in the order in which they were handed in; that order is the order of acceptance.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use crate::{Message, MessageId, Timestamp};

/// How long [`Store::commit`] waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Until the commit survives a power loss (written and synced). Needed before anything is
    /// acknowledged or the next of a lane is tried.
    Synced,
    /// Until it is written, so that it outlives a kill of the process; a power loss may take it.
    /// On a full disk it is what a lazy one is.
    Written,
    /// Not at all, unless the write buffer is full. It is written within milliseconds and so
    /// outlives a kill of the process soon after; a power loss may take it, later commits with it.
    /// On a full disk a lazy commit of journal records alone is dropped and counted, not refused.
    Lazy,
}

/// Where an entry of a lane stands: queue, key within the queue, and number. Numbers ascend with
/// acceptance within a queue and are never used twice.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct EntryRef {
    /// The queue's name, such as `orders.erp`.
    pub queue: Arc<str>,
    /// The key of `order_by`; empty for messages without one.
    pub key: Arc<str>,
    /// The number.
    pub seq: u64,
}

/// A message of a lane as it is kept.
#[derive(Clone, Debug)]
pub struct Queued {
    /// Where it stands.
    pub at: EntryRef,
    /// The message as it was made when it was accepted.
    pub message: Arc<Message>,
    /// Name of the journal's target that this entry is; empty for a classic queue.
    pub target: Arc<str>,
    /// When it entered the lane.
    pub since: Timestamp,
    /// The message that caused this one, where it is another one (a classic queue).
    pub cause: Option<MessageId>,
    /// How often delivery was tried.
    pub attempts: u32,
    /// What went wrong the last time.
    pub last_error: Option<String>,
    /// When it is tried again.
    pub next_try: Option<Timestamp>,
    /// Why it is parked; nothing for what waits in the lane.
    pub parked: Option<String>,
}

/// What happened to a message, or to one of its targets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Outcome {
    /// Done.
    Delivered,
    /// Message: not all targets have it yet.
    Pending,
    /// Target: in its lane, not delivered yet.
    Queued,
    /// Definitely not done.
    Failed,
    /// `when` of the route did not match.
    Filtered,
    /// Target: its `when` did not match.
    Skipped,
    /// Taken back before anyone saw it.
    Undone,
    /// Delivered and then compensated.
    Compensated,
    /// It may or may not have happened.
    InDoubt,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Outcome; 9] = [
        Outcome::Delivered,
        Outcome::Pending,
        Outcome::Queued,
        Outcome::Failed,
        Outcome::Filtered,
        Outcome::Skipped,
        Outcome::Undone,
        Outcome::Compensated,
        Outcome::InDoubt,
    ];

    /// The name that users see, such as `in-doubt`.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Delivered => "delivered",
            Outcome::Pending => "pending",
            Outcome::Queued => "queued",
            Outcome::Failed => "failed",
            Outcome::Filtered => "filtered",
            Outcome::Skipped => "skipped",
            Outcome::Undone => "undone",
            Outcome::Compensated => "compensated",
            Outcome::InDoubt => "in-doubt",
        }
    }

    /// The outcome of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.name() == name)
    }
}

/// What the journal knows of one target of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetEntry {
    /// The target's (or step's) name.
    pub name: Arc<str>,
    /// Its outcome.
    pub outcome: Outcome,
    /// How often it was tried.
    pub attempts: u32,
    /// What went wrong, for administrators.
    pub error: Option<String>,
    /// When this outcome came about.
    pub at: Timestamp,
}

/// What the journal knows of one message. Written again under the same id it replaces what was
/// there, but for target outcomes that lanes have reported since.
#[derive(Clone, Debug, PartialEq)]
pub struct JournalEntry {
    /// The message.
    pub id: MessageId,
    /// Its correlation id, where it is not the id itself.
    pub correlation_id: Option<Arc<str>>,
    /// The message that this one repeats or comes from.
    pub cause: Option<MessageId>,
    /// The route that took it.
    pub route: Arc<str>,
    /// When it was received.
    pub received_at: Timestamp,
    /// How long the route ran, in microseconds.
    pub took_micros: u64,
    /// What became of it. Once every target that was queued is delivered, a pending message is
    /// shown as delivered; with a target that was dropped as failed.
    pub outcome: Outcome,
    /// Business keys.
    pub keys: Vec<(Arc<str>, String)>,
    /// The targets, in the order of the route.
    pub targets: Vec<TargetEntry>,
    /// Why it failed: code, step and words for administrators.
    pub fault: Option<JournalFault>,
}

/// A fault as the journal keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct JournalFault {
    /// Name of the fault's code, such as `destination`.
    pub code: Arc<str>,
    /// The step in which it happened.
    pub step: Option<Arc<str>>,
    /// Words for administrators.
    pub reason: String,
}

/// How an entry leaves its lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settlement {
    /// It was delivered: the target's outcome becomes `delivered`.
    Delivered,
    /// An administrator dropped it: the target's outcome becomes `failed`.
    Dropped,
    /// It went on to another place where it waits (a broker's lane): the journal learns nothing from
    /// this, and is told later by [`Change::Target`].
    Forwarded,
}

/// One change of what is kept.
#[derive(Clone, Debug)]
pub enum Change {
    /// Appends a message to the tail of its lane.
    Put {
        /// The queue.
        queue: Arc<str>,
        /// The key within the queue; empty for none.
        key: Arc<str>,
        /// The message as it will be sent.
        message: Arc<Message>,
        /// Name of the journal's target that this entry is, for an async target; empty for a
        /// classic queue, whose target is done once this commit is.
        target: Arc<str>,
        /// The message that this one comes from, where that is another one.
        cause: Option<MessageId>,
    },
    /// Takes an entry (waiting or parked) out of its lane for good, and tells the journal.
    Settle {
        /// Which.
        at: EntryRef,
        /// How it ended.
        how: Settlement,
        /// How often it was tried in all.
        attempts: u32,
        /// The last error, for what was dropped.
        error: Option<String>,
    },
    /// Keeps what is known of a head that failed.
    Attempt {
        /// Which.
        at: EntryRef,
        /// How often it was tried in all.
        attempts: u32,
        /// What went wrong.
        error: String,
        /// When it is tried again.
        next_try: Timestamp,
    },
    /// Sets an entry aside; what is behind it goes on.
    Park {
        /// Which.
        at: EntryRef,
        /// Why.
        reason: String,
    },
    /// Puts a parked entry back, before everything in its lane that has a higher number.
    Release {
        /// Which.
        at: EntryRef,
    },
    /// Writes what is known of a message.
    Journal(JournalEntry),
    /// Keeps a message's payload for `show` and `replay`.
    Payload(Arc<Message>),
    /// The outcome of one target, told apart from the entry (resolve, recovery).
    Target {
        /// The message.
        id: MessageId,
        /// What became of the target.
        target: TargetEntry,
    },
    /// A step of the sync distribution's protocol; the data is the core's own. Kept until
    /// [`Change::ProtocolEnd`].
    Protocol {
        /// The message.
        id: MessageId,
        /// What recovery needs.
        data: Bytes,
    },
    /// Ends the protocol of a message: recovery has nothing more to do.
    ProtocolEnd {
        /// The message.
        id: MessageId,
    },
    /// Remembers a key (idempotent receiver, file and mail inbox).
    Remember {
        /// Whose keys: one name space per route and caller.
        scope: Arc<str>,
        /// The key.
        key: Arc<str>,
        /// What is answered to a repeat; the core's own form.
        value: Bytes,
        /// When it may be forgotten; never before [`Change::Forget`] when absent.
        until: Option<Timestamp>,
    },
    /// Forgets a key.
    Forget {
        /// Whose.
        scope: Arc<str>,
        /// The key.
        key: Arc<str>,
    },
    /// Keeps a small named value (incidents, mail outbox) until it is set to nothing.
    Value {
        /// Its name, such as `incident/orders/erp/outage`.
        name: Arc<str>,
        /// The value; nothing deletes it.
        value: Option<Bytes>,
    },
}

/// Changes that take effect together.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// In order.
    pub changes: Vec<Change>,
}

impl Commit {
    /// A commit of one change.
    pub fn of(change: Change) -> Self {
        Self {
            changes: vec![change],
        }
    }
}

impl From<Vec<Change>> for Commit {
    fn from(changes: Vec<Change>) -> Self {
        Self { changes }
    }
}

/// Why the store does not do what it was asked.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreError {
    /// No room on the disk (or in the quota). Nothing of the commit was kept; it works again when
    /// there is room.
    Full(String),
    /// A write or sync failed: nothing is accepted any more until a restart has recovered.
    Failed(String),
    /// Another process has the store open.
    Locked(String),
    /// What is on the disk cannot be read, and where.
    Corrupt(String),
    /// No such queue, entry or message, or it is not in the state asked for.
    NotFound(String),
    /// The broker that keeps the queue cannot be asked, or did not do what it was asked.
    Broker(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Full(text) => write!(f, "the store has no room: {text}"),
            StoreError::Failed(text) => write!(f, "the store failed: {text}"),
            StoreError::Locked(text) => write!(f, "the store is in use: {text}"),
            StoreError::Corrupt(text) => write!(f, "the store is damaged: {text}"),
            StoreError::NotFound(text) | StoreError::Broker(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for StoreError {}

/// One lane that is not empty, as [`Store::lanes`] lists it.
#[derive(Clone, Debug)]
pub struct LaneStatus {
    /// The key; empty for messages without one.
    pub key: Arc<str>,
    /// How many wait, the head included, the parked ones not.
    pub depth: u64,
    /// Number of the head.
    pub head_seq: u64,
    /// Attempts at the head so far.
    pub attempts: u32,
    /// When the head is tried again, if it failed.
    pub next_try: Option<Timestamp>,
}

/// One queue in numbers.
#[derive(Clone, Debug)]
pub struct QueueStatus {
    /// Its name.
    pub name: Arc<str>,
    /// What is undelivered and not parked, heads included.
    pub depth: u64,
    /// What is parked.
    pub parked: u64,
    /// How many of its lanes have a head that failed at least once.
    pub blocked_keys: u64,
    /// The oldest entry that waits.
    pub head: Option<Queued>,
}

/// What to find in the journal. Everything given must match.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Exactly this message.
    pub id: Option<MessageId>,
    /// Of this route.
    pub route: Option<Arc<str>>,
    /// With this outcome.
    pub outcome: Option<Outcome>,
    /// With this business key.
    pub key: Option<(String, String)>,
    /// Received at or after.
    pub since: Option<Timestamp>,
    /// Received before.
    pub until: Option<Timestamp>,
    /// At most so many; 0 stands for 100.
    pub limit: usize,
}

/// How long the journal keeps what is settled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retention {
    /// Age at which it goes.
    pub keep: Duration,
    /// Size in bytes on disk at which the oldest goes.
    pub max_size: u64,
}

/// Durable storage of lanes, journal, protocol and keys. One process has it open at a time.
///
/// Reading calls are synchronous and quick (memory or the page cache); call them from anywhere.
/// Only what is durable can be read: a lane's head is never an entry whose commit may still be lost.
pub trait Store: Send + Sync {
    /// Does all changes or none. With [`Durability::Synced`] `Ok` means that they survive a power
    /// loss. Dropping the future does not take the commit back.
    fn commit(
        &self,
        commit: Commit,
        durability: Durability,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The oldest entry that waits in the lane.
    fn head(&self, queue: &str, key: &str) -> Result<Option<Queued>, StoreError>;

    /// The lanes of a queue that are not empty, oldest head first.
    fn lanes(&self, queue: &str) -> Vec<LaneStatus>;

    /// Every queue that holds something, by name.
    fn queues(&self) -> Vec<QueueStatus>;

    /// Entries of a queue, oldest first: what waits, or what is parked.
    fn entries(&self, queue: &str, parked: bool, limit: usize) -> Result<Vec<Queued>, StoreError>;

    /// Entries that wait in a queue, oldest first, from this number on.
    fn entries_from(
        &self,
        queue: &str,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Queued>, StoreError> {
        let all = self.entries(queue, false, usize::MAX)?;
        let later = all.into_iter().filter(|entry| entry.at.seq >= from);
        Ok(later.take(limit).collect())
    }

    /// Has `wake` notified when something has come to wait in the queue and can be read, once for all that comes
    /// together and before whoever put it there is answered, for as long as `wake` is held elsewhere. The last one
    /// that was given for a queue counts. A store that is never put into need not do it.
    fn watch(&self, _queue: &str, _wake: &Arc<Notify>) {}

    /// The entry of a queue that holds this message, waiting or parked.
    fn entry(&self, queue: &str, id: MessageId) -> Result<Option<Queued>, StoreError>;

    /// Journal entries, the one last written first. A search for pending messages is quick where a
    /// message's entry and its puts were one commit and nothing was forwarded.
    fn find(&self, query: &Query) -> Result<Vec<JournalEntry>, StoreError>;

    /// The kept payload of a message; where none was kept, what an entry of a lane holds for it.
    fn payload(&self, id: MessageId) -> Result<Option<Message>, StoreError>;

    /// Protocol records of messages whose protocol has not ended, each in the order written.
    fn protocols(&self) -> Vec<(MessageId, Vec<Bytes>)>;

    /// The value of a remembered key.
    fn recall(&self, scope: &str, key: &str) -> Option<Bytes>;

    /// Named values whose name begins with `prefix`, by name.
    fn values(&self, prefix: &str) -> Vec<(Arc<str>, Bytes)>;

    /// Whether the store takes commits now.
    fn health(&self) -> Result<(), StoreError>;

    /// Bytes on disk.
    fn disk_bytes(&self) -> u64;

    /// Writes and syncs what is still in memory; nothing is accepted after.
    fn close(&self) -> BoxFuture<'_, ()>;
}
