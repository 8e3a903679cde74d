//! Counters of routes and targets: plain atomics that the admin side reads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A number that only grows.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// The number so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Default, Debug)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// One more; one less when the guard is dropped.
    pub fn enter(&self) -> InGauge<'_> {
        self.0.fetch_add(1, Relaxed);
        InGauge(self)
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Counts one less when dropped.
pub struct InGauge<'a>(&'a Gauge);

impl Drop for InGauge<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// Upper bounds of the latency buckets, in microseconds; what is above falls into `+Inf`.
pub const LATENCY_BOUNDS: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 1_000_000,
    5_000_000, 30_000_000,
];

/// How long things took.
#[derive(Default, Debug)]
pub struct Histogram {
    buckets: [AtomicU64; LATENCY_BOUNDS.len() + 1],
    sum_micros: AtomicU64,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, took: Duration) {
        let micros = took.as_micros().min(u64::MAX as u128) as u64;
        let at = LATENCY_BOUNDS.partition_point(|bound| *bound < micros);
        self.buckets[at].fetch_add(1, Relaxed);
        self.sum_micros.fetch_add(micros, Relaxed);
    }

    /// Counts by bucket (the last is `+Inf`), not cumulated, and the sum in microseconds.
    pub fn snapshot(&self) -> (Vec<u64>, u64) {
        (
            self.buckets.iter().map(|b| b.load(Relaxed)).collect(),
            self.sum_micros.load(Relaxed),
        )
    }
}

/// What is counted for a route.
#[derive(Default, Debug)]
pub struct RouteStats {
    /// Messages that came in.
    pub received: Counter,
    /// Messages whose sender was told that all is well.
    pub acknowledged: Counter,
    /// Messages whose sender was told of a fault.
    pub failed: Counter,
    /// Messages that `when` did not let in.
    pub filtered: Counter,
    /// Messages that are on their way now.
    pub running: Gauge,
    /// From acceptance to the answer.
    pub latency: Histogram,
}

/// What is counted for a step or target.
#[derive(Default, Debug)]
pub struct StepStats {
    /// Requests that were answered well.
    pub delivered: Counter,
    /// Attempts that failed.
    pub failed: Counter,
    /// How long one attempt took.
    pub latency: Histogram,
}

/// Requests that no route has taken, by listener and kind of refusal.
#[derive(Default, Debug)]
pub struct RefusedRequests(Mutex<BTreeMap<(Arc<str>, &'static str), u64>>);

impl RefusedRequests {
    /// One more.
    pub fn add(&self, listener: &Arc<str>, kind: &'static str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *all.entry((listener.clone(), kind)).or_default() += 1;
    }

    /// Listener, kind and number, in their order.
    pub fn all(&self) -> Vec<(Arc<str>, &'static str, u64)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .map(|((listener, kind), count)| (listener.clone(), *kind, *count))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_the_bucket_that_holds_them() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(100));
        histogram.observe(Duration::from_micros(101));
        histogram.observe(Duration::from_secs(60));
        let (buckets, sum) = histogram.snapshot();
        assert_eq!((buckets[0], buckets[1], buckets[14]), (1, 1, 1));
        assert_eq!(sum, 60_000_201);
    }
}
