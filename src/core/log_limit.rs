//! Lines of the log that strangers can cause: some of them are written, the others told as a number.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lines in a [`WINDOW`]; what is more is told as a number.
pub const LINES: u32 = 20;
/// How long [`LINES`] count together.
pub const WINDOW: Duration = Duration::from_secs(10);

/// How many lines of one sort have been written lately.
#[derive(Default, Debug)]
pub struct LogLimit(Mutex<Written>);

#[derive(Default, Debug)]
struct Written {
    since: Option<Instant>,
    lines: u32,
    /// What got no line, and is to be told together.
    more: u64,
    /// Somebody waits to tell of it.
    gathering: bool,
}

impl LogLimit {
    /// Whether another line may be written. When not, `tell` is called with the number of lines that
    /// were left out, once the window is over; of several calls in one window the first one's. In a
    /// runtime only.
    pub fn admits(self: &Arc<Self>, tell: impl FnOnce(u64) + Send + 'static) -> bool {
        let now = Instant::now();
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match written.since {
            Some(since) if now.duration_since(since) < WINDOW => since,
            _ => {
                (written.since, written.lines) = (Some(now), 0);
                now
            }
        };
        if written.lines < LINES {
            written.lines += 1;
            return true;
        }
        written.more += 1;
        if !std::mem::replace(&mut written.gathering, true) {
            let this = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep_until(since + WINDOW).await;
                tell(this.gathered());
            });
        }
        false
    }

    fn gathered(&self) -> u64 {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        written.gathering = false;
        std::mem::take(&mut written.more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_has_some_lines_and_a_number() {
        let limit = Arc::new(LogLimit::default());
        let told = Arc::new(Mutex::new(Vec::new()));
        let admits = || {
            let told = told.clone();
            limit.admits(move |more| told.lock().unwrap().push(more))
        };
        for round in 1..=2 {
            let lines = (0..1000).filter(|_| admits()).count();
            assert_eq!(lines, LINES as usize, "round {round}");
            tokio::time::sleep(WINDOW + Duration::from_millis(1)).await;
            let told = told.lock().unwrap().clone();
            assert_eq!(told, vec![980; round], "told together");
        }
        assert!(admits());
    }
}
