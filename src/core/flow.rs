//! Flow control: how much runs at once, how much starts in a time, and when a destination is spared.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::spec::Rate;
use crate::{Code, Fault};

/// At most so many at once; others wait up to `queue_for` and are then shed.
pub struct Gate {
    places: Semaphore,
    /// How long to wait for a place.
    queue_for: Duration,
}

impl Gate {
    /// A gate with `places` places.
    pub fn new(places: usize, queue_for: Duration) -> Self {
        Self {
            places: Semaphore::new(places.clamp(1, Semaphore::MAX_PERMITS)),
            queue_for,
        }
    }

    /// A place, given back when dropped; `overloaded` when none becomes free in time.
    pub async fn enter(&self) -> Result<SemaphorePermit<'_>, Fault> {
        match tokio::time::timeout(self.queue_for, self.places.acquire()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(overloaded("too many messages at once", self.queue_for)),
        }
    }
}

fn overloaded(reason: &str, after: Duration) -> Fault {
    Fault::new(Code::Overloaded, reason).retry_after(after.max(Duration::from_secs(1)))
}

/// At most so many starts in a time: a token bucket that holds one period's worth.
pub struct Pace {
    rate: Rate,
    queue_for: Duration,
    state: Mutex<Bucket>,
}

struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

impl Pace {
    /// A pace; who comes too early waits up to `queue_for`.
    pub fn new(rate: Rate, queue_for: Duration) -> Self {
        Self {
            rate,
            queue_for,
            state: Mutex::new(Bucket {
                tokens: f64::from(rate.count),
                filled_at: Instant::now(),
            }),
        }
    }

    /// Waits for the next start; `overloaded` when it would take longer than `queue_for`.
    pub async fn start(&self) -> Result<(), Fault> {
        let wait = self.take();
        match wait {
            None => {
                let mut fault = overloaded("too many messages in this time", self.rate.per);
                fault.http_status = Some(429);
                Err(fault)
            }
            Some(wait) if wait.is_zero() => Ok(()),
            Some(wait) => {
                tokio::time::sleep(wait).await;
                Ok(())
            }
        }
    }

    fn take(&self) -> Option<Duration> {
        let mut bucket = self
            .state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let per_second = f64::from(self.rate.count) / self.rate.per.as_secs_f64();
        let now = Instant::now();
        let gained = (now - bucket.filled_at).as_secs_f64() * per_second;
        let tokens = (bucket.tokens + gained).min(f64::from(self.rate.count));
        let wait = Duration::from_secs_f64(((1.0 - tokens) / per_second).max(0.0));
        if wait > self.queue_for {
            return None;
        }
        // Below nothing when several wait: each next one waits for its own token.
        bucket.tokens = tokens - 1.0;
        bucket.filled_at = now;
        Some(wait)
    }
}

/// Spares a destination: after so many failures in a row it is not called for a while; then one
/// call tries, and its success closes the breaker (Nygard, "Release It!", circuit breaker).
pub struct Breaker {
    failures: usize,
    open_for: Duration,
    in_a_row: AtomicUsize,
    open_until: Mutex<Option<Instant>>,
}

impl Breaker {
    /// Opens for `open_for` after `failures` failures in a row.
    pub fn new(failures: usize, open_for: Duration) -> Self {
        Self {
            failures: failures.max(1),
            open_for,
            in_a_row: AtomicUsize::new(0),
            open_until: Mutex::new(None),
        }
    }

    /// Whether a call may go out now; else for how long not.
    pub fn check(&self) -> Result<(), Duration> {
        if self.in_a_row.load(SeqCst) < self.failures {
            return Ok(());
        }
        let mut until = self
            .open_until
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let now = Instant::now();
        match *until {
            Some(end) if end > now => Err(end - now),
            _ => {
                // This one tries; the others wait for what it finds.
                *until = Some(now + self.open_for);
                Ok(())
            }
        }
    }

    /// Says how a call ended.
    pub fn report(&self, success: bool) {
        if success {
            self.in_a_row.store(0, SeqCst);
        } else if self.in_a_row.fetch_add(1, SeqCst) + 1 >= self.failures {
            *self
                .open_until
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner()) =
                Some(Instant::now() + self.open_for);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_breaker_opens_after_failures_and_one_success_closes_it() {
        let breaker = Breaker::new(2, Duration::from_secs(30));
        breaker.report(false);
        assert!(breaker.check().is_ok());
        breaker.report(false);
        assert_eq!(breaker.check(), Err(Duration::from_secs(30)));
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(breaker.check().is_ok());
        assert!(breaker.check().is_err(), "only one call tries");
        breaker.report(true);
        assert!(breaker.check().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_gate_sheds_after_its_wait() {
        let gate = Gate::new(1, Duration::from_secs(5));
        let place = gate.enter().await.unwrap();
        let fault = gate.enter().await.unwrap_err();
        assert_eq!(fault.code, Code::Overloaded);
        drop(place);
        assert!(gate.enter().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pace_lets_its_rate_through_and_no_more() {
        let rate = Rate {
            count: 10,
            per: Duration::from_secs(1),
        };
        let pace = Pace::new(rate, Duration::from_millis(100));
        let all = futures_util::future::join_all((0..20).map(|_| pace.start())).await;
        let through = all.iter().filter(|start| start.is_ok()).count();
        // The bucket's ten, and the one whose turn comes within 100 ms.
        assert_eq!(through, 11);
    }
}
