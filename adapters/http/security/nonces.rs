//! Nonces that were seen, so that no token counts twice.
//!
//! One rule holds whatever happens: a token that was made before the *floor* is refused, and every
//! token made after it that was let in is known here. What is forgotten raises the floor: because
//! it is older than any route's window, because there is no more room, or because the process is a
//! new one. So memory has a bound and a full cache shortens the window instead of opening a door.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha1::{Digest, Sha1};
use xbus_core::Timestamp;

/// As many nonces are kept: about 15 MiB.
const MOST: usize = 1 << 18;
const MICROS: i64 = 1_000_000;

/// Why a token is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// Its nonce was there before.
    Repeated,
    /// It was made at a time of which not all nonces are known any more.
    Forgotten,
}

/// The nonces of all routes of a bus. A reload keeps them; a restart forgets them.
#[derive(Default)]
pub(crate) struct Nonces(Mutex<Seen>);

struct Seen {
    /// Seconds since 1970: what was made earlier is refused.
    floor: i64,
    /// The longest window of all routes that there were.
    longest: Duration,
    most: usize,
    keys: HashSet<u128>,
    /// The keys by the second in which their tokens were made.
    by_second: BTreeMap<i64, Vec<u128>>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            floor: i64::MIN,
            longest: Duration::ZERO,
            most: MOST,
            keys: HashSet::new(),
            by_second: BTreeMap::new(),
        }
    }
}

impl Nonces {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a route lets tokens in that are up to `window` old.
    pub(crate) fn cover(&self, window: Duration) {
        let mut seen = self.seen();
        seen.longest = seen.longest.max(window);
    }

    /// The process begins to take requests: what an earlier one let in is not known. Gives how long
    /// to wait before the first one, so that it comes in a second of its own: tokens often say when
    /// they were made in whole seconds. Nothing when no route asks for tokens.
    pub(crate) fn begin(&self, now: Timestamp) -> Option<Duration> {
        let mut seen = self.seen();
        let second = now.as_micros().div_euclid(MICROS) + 1;
        seen.floor = seen.floor.max(second);
        let wait = second * MICROS - now.as_micros();
        (!seen.longest.is_zero()).then(|| Duration::from_micros(wait.unsigned_abs()))
    }

    /// Takes a nonce up; `made` is what its token says.
    pub(crate) fn take(
        &self,
        user: &str,
        nonce: &[u8],
        made: Timestamp,
        now: Timestamp,
    ) -> Result<(), Refused> {
        let key = key(user, nonce);
        let second = made.as_micros().div_euclid(MICROS);
        let mut seen = self.seen();
        let oldest = now.before(seen.longest).as_micros().div_euclid(MICROS);
        seen.forget_before(oldest);
        if seen.keys.contains(&key) {
            return Err(Refused::Repeated);
        }
        while seen.keys.len() >= seen.most {
            let Some(first) = seen.by_second.keys().next().copied() else {
                break;
            };
            seen.forget_before(first + 1);
        }
        if second < seen.floor {
            return Err(Refused::Forgotten);
        }
        seen.keys.insert(key);
        seen.by_second.entry(second).or_default().push(key);
        Ok(())
    }
}

impl Seen {
    /// Forgets what was made before a second. The floor rises as far as something was forgotten and
    /// no further, so that a clock that runs wild for a moment does not lock everybody out.
    fn forget_before(&mut self, second: i64) {
        while let Some(entry) = self.by_second.first_entry()
            && *entry.key() < second
        {
            self.floor = self.floor.max(entry.key() + 1);
            for key in entry.remove() {
                self.keys.remove(&key);
            }
        }
    }
}

fn key(user: &str, nonce: &[u8]) -> u128 {
    let hash = Sha1::new()
        .chain_update((user.len() as u64).to_le_bytes())
        .chain_update(user)
        .chain_update(nonce)
        .finalize();
    hash.iter()
        .take(16)
        .fold(0, |key, byte| key << 8 | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_micros(second * MICROS)
    }

    fn covering(window: u64) -> Nonces {
        let nonces = Nonces::default();
        nonces.cover(Duration::from_secs(window));
        nonces
    }

    #[test]
    fn a_nonce_counts_once_for_each_user() {
        let nonces = covering(300);
        assert_eq!(nonces.take("a", b"n", at(1000), at(1000)), Ok(()));
        for made in [1000, 1001, 900] {
            let again = nonces.take("a", b"n", at(made), at(1002));
            assert_eq!(again, Err(Refused::Repeated));
        }
        assert_eq!(nonces.take("b", b"n", at(1000), at(1002)), Ok(()));
        // Names and nonces do not run into one another.
        assert_eq!(nonces.take("ab", b"", at(1000), at(1002)), Ok(()));
        assert_eq!(nonces.take("a", b"b", at(1000), at(1002)), Ok(()));
    }

    #[test]
    fn what_is_forgotten_with_age_stays_refused() {
        let nonces = covering(300);
        assert_eq!(nonces.take("a", b"n", at(1000), at(1000)), Ok(()));
        assert_eq!(nonces.take("a", b"m", at(1400), at(1400)), Ok(()));
        assert_eq!(nonces.seen().keys.len(), 1);
        let again = nonces.take("a", b"n", at(1000), at(1401));
        assert_eq!(again, Err(Refused::Forgotten));
        // A route with a longer window comes with a reload: the old ones do not count anew.
        nonces.cover(Duration::from_secs(3600));
        let again = nonces.take("a", b"n", at(1000), at(1402));
        assert_eq!(again, Err(Refused::Forgotten));
    }

    #[test]
    fn a_full_cache_shortens_the_window() {
        let nonces = covering(300);
        nonces.seen().most = 3;
        for (nonce, made) in [(b"1", 1000), (b"2", 1000), (b"3", 1001), (b"4", 1002)] {
            assert_eq!(nonces.take("a", nonce, at(made), at(1002)), Ok(()));
        }
        assert_eq!(nonces.seen().keys.len(), 2);
        for (nonce, made) in [(b"1", 1000), (b"2", 1000), (b"9", 1000)] {
            let again = nonces.take("a", nonce, at(made), at(1002));
            assert_eq!(again, Err(Refused::Forgotten));
        }
        let again = nonces.take("a", b"3", at(1001), at(1002));
        assert_eq!(again, Err(Refused::Repeated));
        // Even a crowd in one second leaves nothing to be used twice.
        for nonce in 0u32..10 {
            let _ = nonces.take("b", &nonce.to_le_bytes(), at(1003), at(1003));
            assert!(nonces.seen().keys.len() <= 3);
        }
        for nonce in 0u32..10 {
            let again = nonces.take("b", &nonce.to_le_bytes(), at(1003), at(1003));
            assert!(again.is_err());
        }
    }

    #[test]
    fn tokens_of_an_earlier_process_are_refused() {
        let nonces = covering(300);
        let wait = nonces.begin(Timestamp::from_micros(1000 * MICROS + 400_000));
        assert_eq!(wait, Some(Duration::from_millis(600)));
        let old = nonces.take("a", b"n", at(1000), at(1001));
        assert_eq!(old, Err(Refused::Forgotten));
        assert_eq!(nonces.take("a", b"n", at(1001), at(1001)), Ok(()));
        assert_eq!(Nonces::default().begin(at(1000)), None);
    }

    #[test]
    fn a_clock_that_jumps_ahead_for_a_moment_locks_nobody_out() {
        let nonces = covering(300);
        assert_eq!(nonces.take("a", b"1", at(1000), at(1000)), Ok(()));
        assert_eq!(nonces.take("a", b"2", at(90_000), at(90_000)), Ok(()));
        assert_eq!(nonces.take("a", b"3", at(1001), at(1001)), Ok(()));
        let again = nonces.take("a", b"1", at(1000), at(1001));
        assert_eq!(again, Err(Refused::Forgotten));
    }
}
