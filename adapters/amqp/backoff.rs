//! Waits that grow, with jitter, so that many nodes do not come back at the same moment.

use std::time::Duration;

/// The first wait.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait: a broker that is back is used again within seconds.
const LAST: Duration = Duration::from_secs(3);

/// From 100 ms to 3 s, doubled each time, each wait between a half and the whole of that.
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self(FIRST)
    }

    /// Begins again with the shortest wait.
    pub(crate) fn reset(&mut self) {
        self.0 = FIRST;
    }

    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        let whole = self.0;
        self.0 = (whole * 2).min(LAST);
        let random = (uuid::Uuid::new_v4().as_u128() & 0xffff) as u32;
        whole / 2 + whole / 2 * random / 0xffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit() {
        let mut backoff = Backoff::new();
        let mut upper = FIRST;
        for _ in 0..20 {
            let wait = backoff.next();
            assert!(wait >= upper / 2 && wait <= upper, "{wait:?} of {upper:?}");
            upper = (upper * 2).min(LAST);
        }
        assert_eq!(upper, LAST);
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
