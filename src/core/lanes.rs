//! Lanes: queues worked off strictly first in, first out.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::plan::LanePolicy;
use crate::store::{Change, Queued, Store};
use crate::{Fault, Stop};

/// Takes what a queue gives, one message at a time per key.
pub trait Consumer: Send + Sync {
    /// How the queue is worked off now.
    fn policy(&self) -> LanePolicy;

    /// Delivers the head. `Ok` gives changes to commit together with its leaving the lane. On a
    /// fault the head stays, is tried again or is parked, as the policy says.
    fn deliver<'a>(&'a self, head: &'a Queued) -> BoxFuture<'a, Result<Vec<Change>, Fault>>;
}

/// The lanes of the embedded store, and the work on them.
pub struct Lanes {
    _store: Arc<dyn Store>,
}

impl Lanes {
    /// Over `store`; nothing is worked off until [`Lanes::attach`].
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { _store: store }
    }

    /// Has `consumer` work off `queue` until `stop`; resolves when it has stopped.
    pub fn attach(
        &self,
        _queue: &Arc<str>,
        _consumer: Arc<dyn Consumer>,
        _stop: Stop,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}
