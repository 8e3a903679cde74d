//! Lanes: queues worked off strictly first in, first out, each key of a queue a lane of its own.
//!
//! The store holds the messages; here is only who works on what. A queue that has something to do
//! has one dispatcher task; an idle one has no task, no timer and no lane in memory. The head of a
//! lane is tried until it is delivered, parked or dropped; nothing behind it is tried before.

mod commands;
mod dispatch;

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::plan::LanePolicy;
use crate::store::{Change, Queued, Store};
use crate::{Fault, Stop};
use dispatch::Queue;

/// Takes what a queue gives, one message at a time per key.
pub trait Consumer: Send + Sync {
    /// How the queue is worked off now; asked anew for each message, so that a mended route mends
    /// its queue. `None`: nobody takes its messages now, they are kept.
    fn policy(&self) -> Option<LanePolicy>;

    /// Delivers the head. `Ok` gives changes to commit together with its leaving the lane. On a
    /// fault the head stays, is tried again or is parked, as the policy says.
    fn deliver<'a>(&'a self, head: &'a Queued) -> BoxFuture<'a, Result<Vec<Change>, Fault>>;

    /// Whether the head is set aside for an administrator instead of tried again: its outcome is
    /// unknown and it would be repeated blindly.
    fn sets_aside(&self, _fault: &Fault) -> bool {
        false
    }

    /// The route that delivers now, for logs.
    fn route(&self) -> Option<Arc<str>>;

    /// Told of each failed attempt, with what comes next.
    fn failed(&self, head: &Queued, fault: &Fault, parked: bool);

    /// Told of each delivery, and when an administrator has parked or dropped the head.
    fn cleared(&self);
}

/// What becomes of a head that failed.
pub(crate) struct Judged {
    /// It is set aside; else it is tried again.
    pub(crate) park: bool,
    /// How long it waits until then.
    pub(crate) wait: Duration,
}

/// Decides what becomes of a head that failed, and tells the log and the consumer.
pub(crate) fn judge(
    consumer: &dyn Consumer,
    queue: &str,
    head: &Queued,
    policy: &LanePolicy,
    fault: &Fault,
) -> Judged {
    let attempts = head.attempts + 1;
    let park = (fault.rejected && policy.park_rejected) || consumer.sets_aside(fault);
    let route = consumer.route();
    tracing::warn!(
        id = %head.message.id,
        route = route.as_deref().unwrap_or_default(),
        queue,
        attempts,
        parked = park,
        error = %fault,
        "delivery from the queue failed"
    );
    let mut shown = head.clone();
    shown.attempts = attempts;
    shown.last_error = Some(fault.in_full());
    consumer.failed(&shown, fault, park);
    let wait = policy.retry.wait(attempts);
    Judged {
        park,
        wait: wait.max(fault.retry_after.unwrap_or_default()),
    }
}

/// The lanes of the embedded store, and the work on them.
pub struct Lanes {
    store: Arc<dyn Store>,
    queues: Arc<Queues>,
}

type Queues = RwLock<HashMap<Arc<str>, Arc<Queue>>>;

impl Lanes {
    /// Over `store`; nothing is worked off until [`Lanes::attach`].
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            queues: Arc::default(),
        }
    }

    /// Has `consumer` work off `queue` until `stop`, on the runtime that this is called on; what it
    /// gives resolves once the last delivery has ended after that.
    pub fn attach(
        &self,
        queue: &Arc<str>,
        consumer: Arc<dyn Consumer>,
        stop: Stop,
    ) -> BoxFuture<'static, ()> {
        let others = Arc::downgrade(&self.queues);
        let store = self.store.clone();
        let working = Arc::new(Queue::new(queue.clone(), store, consumer, stop, others));
        working.take_up();
        self.queues
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .insert(queue.clone(), working.clone());
        Box::pin(async move { working.ended().await })
    }

    /// Says that a durable commit put something into the lane.
    pub fn wake(&self, queue: &str, key: &Arc<str>) {
        if let Some(queue) = self.working(queue) {
            queue.came_in(key);
        }
    }

    /// Whether a delivery of the lane is under way, and whether anybody works the queue off.
    pub fn is_delivering(&self, queue: &str) -> bool {
        self.working(queue)
            .is_some_and(|queue| queue.is_delivering())
    }

    /// Whether a route takes the queue's messages now.
    pub fn is_worked(&self, queue: &str) -> bool {
        self.working(queue).is_some_and(|queue| queue.is_worked())
    }

    /// Tries every head that waits for its time: the routes have changed, and what they waited for
    /// may be mended.
    pub fn try_all(&self) {
        let all: Vec<Arc<str>> = self
            .queues
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .keys()
            .cloned()
            .collect();
        for queue in all {
            self.resume(&queue);
        }
    }

    /// Tries the heads of one queue that wait for others to go first.
    pub(crate) fn resume(&self, queue: &str) {
        if let Some(working) = self.working(queue) {
            for lane in self.store.lanes(queue) {
                working.now(&lane.key);
            }
        }
    }

    /// Whether somebody has been attached to the queue.
    pub fn is_attached(&self, queue: &str) -> bool {
        self.working(queue).is_some()
    }

    fn working(&self, queue: &str) -> Option<Arc<Queue>> {
        self.queues
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .get(queue)
            .cloned()
    }
}
