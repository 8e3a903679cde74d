//! Whether the writer waits, before it syncs, for those whom it has just answered to come back.
//!
//! Where a sync takes long beside what callers need to come back (a slow disk), one sync for all of them
//! serves nearly twice as many as two that each serve some. Where it is the callers who take longer,
//! the time is lost: who is there already could be synced while the others are on their way. Which of the two
//! it is shows in what waiting brings, so the writer tries it, and tries it again now and then.

use std::time::Duration;

/// Longest time that the writer waits for those who come back.
const LONGEST_PATIENCE: Duration = Duration::from_millis(1);
/// So many times in a row it waits in vain until it gives up.
const TRIES: u32 = 3;
/// So many batches pass before it tries again.
const REST: u32 = 500;

/// Who may come back soon after being answered, and how long it pays to wait for them.
#[derive(Clone, Copy, Default)]
pub struct Hope {
    /// Who waited for the last batch.
    waiters: usize,
    patience: Duration,
    /// Times in a row that not all came back.
    in_vain: u32,
    /// Batches that are still taken without waiting.
    rest: u32,
}

impl Hope {
    /// A batch was taken for which so many wait.
    pub fn took(&mut self, waiters: usize) {
        self.waiters = waiters;
        self.rest = self.rest.saturating_sub(1);
    }

    /// A sync took so long.
    pub fn synced(&mut self, took: Duration) {
        self.patience = (took / 4).min(LONGEST_PATIENCE);
    }

    /// How many are hoped for, and how long they are waited for, when `there` are there already.
    pub fn waits(&self, there: usize) -> Option<(usize, Duration)> {
        (self.rest == 0 && there < self.waiters).then_some((self.waiters, self.patience))
    }

    /// What waiting has brought: whether all came.
    pub fn waited(&mut self, all_came: bool) {
        if all_came {
            self.in_vain = 0;
            return;
        }
        self.in_vain += 1;
        if self.in_vain >= TRIES {
            self.rest = REST;
            // One more in vain is enough next time.
            self.in_vain = TRIES - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYNC: Duration = Duration::from_millis(2);

    fn hope() -> Hope {
        let mut hope = Hope::default();
        hope.took(8);
        hope.synced(SYNC);
        hope
    }

    #[test]
    fn who_was_answered_is_waited_for_a_quarter_of_a_sync_and_a_millisecond_at_most() {
        let mut hope = hope();
        assert_eq!(hope.waits(3), Some((8, SYNC / 4)));
        assert_eq!(hope.waits(8), None);
        hope.synced(Duration::from_secs(1));
        assert_eq!(hope.waits(3), Some((8, LONGEST_PATIENCE)));
    }

    #[test]
    fn waiting_in_vain_three_times_in_a_row_ends_it_for_a_while() {
        let mut hope = hope();
        for all_came in [false, false, true, false, false] {
            hope.waited(all_came);
            assert!(hope.waits(1).is_some());
        }
        hope.waited(false);
        for _ in 0..REST {
            assert_eq!(hope.waits(1), None);
            hope.took(8);
        }
        assert!(hope.waits(1).is_some(), "tried again after a rest");
        // Where it is still in vain once is enough, where it is not it goes on.
        let mut slow = hope;
        hope.waited(false);
        assert_eq!(hope.waits(1), None);
        slow.waited(true);
        slow.waited(false);
        assert!(slow.waits(1).is_some());
    }
}
