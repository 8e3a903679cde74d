//! When the next tick is.

use std::time::Duration;

use croner::Cron;
use croner::errors::CronError;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};
use tokio::time::Instant;

/// More skipped ticks than this are not counted one by one.
const COUNTED: u64 = 1000;

/// Waits no longer than this without a look at the clock, which may be set meanwhile.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// A clock that is corrected goes back by less than this.
const MUCH: SignedDuration = SignedDuration::from_hours(1);

/// What makes ticks.
#[derive(Clone)]
pub(crate) enum Ticks {
    /// Every so often, the first one after that time.
    Every {
        period: Duration,
        next: Option<Instant>,
    },
    /// When a cron expression says so, in a time zone.
    Cron {
        cron: Box<Cron>,
        zone: TimeZone,
        next: Option<Zoned>,
        /// The latest time that the clock has shown.
        seen: Option<Timestamp>,
    },
}

impl Ticks {
    /// Every `period`, which is at least a millisecond.
    pub(crate) fn every(period: Duration) -> Self {
        Ticks::Every {
            period: period.max(Duration::from_millis(1)),
            next: None,
        }
    }

    /// As the expression says; wrong ones, and those that never come, are an error.
    pub(crate) fn cron(expression: &str, zone: TimeZone) -> Result<Self, CronError> {
        let cron: Box<Cron> = Box::new(expression.parse()?);
        cron.find_next_occurrence(&Zoned::now().with_time_zone(zone.clone()), false)?;
        Ok(Ticks::Cron {
            cron,
            zone,
            next: None,
            seen: None,
        })
    }

    /// Waits for the next tick and gives the number of ticks that were skipped before it. Nothing:
    /// there will be no further tick. Dropping the future loses no tick.
    pub(crate) async fn next(&mut self) -> Option<u64> {
        match self {
            Ticks::Every { period, next } => {
                let now = Instant::now();
                let first = *next.get_or_insert(now + *period);
                let late = now.saturating_duration_since(first);
                let skipped = match late.is_zero() {
                    true => 0,
                    false => (late.as_nanos() / period.as_nanos()) as u64 + 1,
                };
                let at = first + skip(*period, skipped);
                tokio::time::sleep_until(at).await;
                *next = Some(at + *period);
                Some(skipped)
            }
            Ticks::Cron {
                cron,
                zone,
                next,
                seen,
            } => {
                let now = Zoned::now().with_time_zone(zone.clone());
                let known = next.take().filter(|_| !set_back(seen, now.timestamp()));
                let (mut at, skipped) = planned(cron, known, &now)?;
                *next = Some(at.clone());
                loop {
                    let now = Zoned::now().with_time_zone(zone.clone());
                    if set_back(seen, now.timestamp()) {
                        at = cron.find_next_occurrence(&now, false).ok()?;
                        *next = Some(at.clone());
                    }
                    let wait = now.duration_until(&at);
                    match Duration::try_from(wait) {
                        Ok(wait) if !wait.is_zero() => {
                            tokio::time::sleep(wait.min(LONGEST_WAIT)).await;
                        }
                        _ => break,
                    }
                }
                *next = cron.find_next_occurrence(&at, false).ok();
                Some(skipped)
            }
        }
    }
}

/// Whether the clock was set back by much since it was looked at: what was planned by it may lie years
/// ahead. After a little no tick comes twice.
fn set_back(seen: &mut Option<Timestamp>, now: Timestamp) -> bool {
    let back = seen.is_some_and(|seen| seen.duration_since(now) > MUCH);
    *seen = match back {
        true => Some(now),
        false => (*seen).max(Some(now)),
    };
    back
}

fn skip(period: Duration, count: u64) -> Duration {
    Duration::from_nanos((period.as_nanos() * u128::from(count)).min(u128::from(u64::MAX)) as u64)
}

/// The next tick not before `now`, and how many from `next` on are past.
fn planned(cron: &Cron, next: Option<Zoned>, now: &Zoned) -> Option<(Zoned, u64)> {
    let mut at = match next {
        Some(next) => next,
        None => cron.find_next_occurrence(now, false).ok()?,
    };
    let mut skipped = 0;
    while at < *now {
        skipped += 1;
        let from = if skipped < COUNTED { &at } else { now };
        at = cron.find_next_occurrence(from, false).ok()?;
    }
    Some((at, skipped))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zoned(text: &str) -> Zoned {
        text.parse().unwrap()
    }

    fn cron(text: &str) -> Cron {
        text.parse().unwrap()
    }

    #[test]
    fn cron_keeps_to_the_wall_clock_of_its_zone() {
        let daily = cron("30 2 * * *");
        // Clocks go forward: 02:30 does not exist on this day.
        let (at, _) = planned(&daily, None, &zoned("2026-03-28T12:00:00[Europe/Berlin]")).unwrap();
        assert_eq!(at.date(), jiff::civil::date(2026, 3, 29));
        let winter = zoned("2026-10-24T12:00:00[Europe/Berlin]");
        let (at, _) = planned(&daily, None, &winter).unwrap();
        assert_eq!(at.hour(), 2);
    }

    #[test]
    fn past_ticks_are_counted_and_not_made_up_for() {
        let now = zoned("2026-01-01T10:10:30[UTC]");
        let next = zoned("2026-01-01T10:05:00[UTC]");
        let (at, skipped) = planned(&cron("* * * * *"), Some(next), &now).unwrap();
        assert_eq!((at, skipped), (zoned("2026-01-01T10:11:00[UTC]"), 6));
        let long_ago = zoned("2020-01-01T00:00:00[UTC]");
        let (at, skipped) = planned(&cron("* * * * *"), Some(long_ago), &now).unwrap();
        assert_eq!((at, skipped), (zoned("2026-01-01T10:11:00[UTC]"), COUNTED));
    }

    #[test]
    fn a_clock_that_goes_back_by_much_is_noticed_once() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut seen = None;
        for (now, back) in [
            ("2030-01-01T00:00:00Z", false),
            ("2029-12-31T23:50:00Z", false),
            ("2029-12-31T23:10:00Z", false),
            ("2026-11-22T08:00:00Z", true),
            ("2026-11-22T08:00:30Z", false),
        ] {
            assert_eq!(set_back(&mut seen, at(now)), back, "{now}");
        }
    }

    #[test]
    fn wrong_and_impossible_expressions_are_refused() {
        assert!(Ticks::cron("61 * * * *", TimeZone::UTC).is_err());
        assert!(Ticks::cron("0 0 30 2 *", TimeZone::UTC).is_err());
        assert!(Ticks::cron("*/5 * * * MON-FRI", TimeZone::UTC).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn periods_do_not_drift_and_late_ones_are_skipped() {
        let start = Instant::now();
        let mut ticks = Ticks::every(Duration::from_secs(10));
        assert_eq!(ticks.next().await, Some(0));
        assert_eq!(start.elapsed().as_secs(), 10);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(ticks.next().await, Some(0));
        assert_eq!(start.elapsed().as_secs(), 20);
        // The route took 25 seconds: the ticks at 30 and 40 are gone.
        tokio::time::advance(Duration::from_secs(25)).await;
        assert_eq!(ticks.next().await, Some(2));
        assert_eq!(start.elapsed().as_secs(), 50);
    }

    #[tokio::test]
    async fn a_cron_tick_comes() {
        let mut ticks = Ticks::cron("* * * * * *", TimeZone::UTC).unwrap();
        assert_eq!(ticks.next().await, Some(0));
    }
}
