//! Points in time, as the journal and the lanes keep them.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

/// Microseconds since 1970-01-01T00:00:00Z. Shown in RFC 3339 with milliseconds, in UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The wall clock's time.
    pub fn now() -> Self {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self(since.as_micros() as i64)
    }

    /// From microseconds since the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// How long ago this was at `later`; zero when it lies ahead.
    pub fn until(self, later: Timestamp) -> Duration {
        Duration::from_micros(later.0.saturating_sub(self.0).max(0) as u64)
    }

    /// This time and `duration`.
    pub fn after(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(duration.as_micros().min(i64::MAX as u128) as i64),
        )
    }

    /// The time `duration` before this one.
    pub fn before(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(duration.as_micros().min(i64::MAX as u128) as i64),
        )
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => write!(f, "{}us", self.0),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = String;

    /// RFC 3339, such as `2026-11-22T08:00:00Z`.
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<jiff::Timestamp>()
            .map(|time| Self(time.as_microsecond()))
            .map_err(|_| format!("'{text}' is not a time such as 2026-11-22T08:00:00Z"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_rfc_3339_and_reads_back() {
        let time: Timestamp = "2026-11-22T08:00:00.250Z".parse().unwrap();
        assert_eq!(time.to_string(), "2026-11-22T08:00:00.250Z");
        assert_eq!(
            time.after(Duration::from_secs(60)).to_string(),
            "2026-11-22T08:01:00.250Z"
        );
        assert!("yesterday".parse::<Timestamp>().is_err());
    }
}
