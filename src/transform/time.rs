//! Times in other forms, for mappings that need them.

use jiff::civil::{Date, DateTime};

/// `time` (RFC 3339, or a date with or without a time of day) in the form of strftime.
pub(crate) fn format(time: &str, form: &str) -> Result<String, String> {
    if form.len() > 256 {
        return Err("the form of a time is longer than 256 characters".into());
    }
    let wrong = |error: jiff::Error| format!("the form '{form}': {error}");
    let time = time.trim();
    if let Ok(time) = time.parse::<jiff::Timestamp>() {
        return jiff::fmt::strtime::format(form, time).map_err(wrong);
    }
    if let Ok(time) = time.parse::<DateTime>() {
        return jiff::fmt::strtime::format(form, time).map_err(wrong);
    }
    match time.parse::<Date>() {
        Ok(date) => jiff::fmt::strtime::format(form, date).map_err(wrong),
        Err(_) => Err(format!("'{time}' is not a date or time")),
    }
}

#[cfg(test)]
mod tests {
    use super::format;

    #[test]
    fn dates_and_times_in_other_forms() {
        assert_eq!(format("2026-11-22", "%d.%m.%Y").unwrap(), "22.11.2026");
        assert_eq!(
            format("2026-11-22T08:30:00", "%Y%m%d%H%M").unwrap(),
            "202611220830"
        );
        assert_eq!(
            format("2026-11-22T08:30:00.5Z", "%Y%m%d").unwrap(),
            "20261122"
        );
        assert!(format("tomorrow", "%d").is_err());
    }
}
