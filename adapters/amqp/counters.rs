//! What a connection counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the connection was first built.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) published: AtomicU64,
    pub(crate) returned: AtomicU64,
    pub(crate) nacked: AtomicU64,
    pub(crate) late_replies: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
