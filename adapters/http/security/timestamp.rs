//! When a message or a token was made, and until when it may be used: wsu:Created and wsu:Expires
//! (OASIS Web Services Security: SOAP Message Security 1.1, section 10).

use std::time::Duration;

use xbus_core::Timestamp;
use xbus_xml::Document;

use super::{Denied, WSU, only_text};

/// As far ahead of ours may a caller's clock be.
pub(super) const AHEAD: Duration = Duration::from_secs(60);

/// Reads an xsd:dateTime. One without a zone is in UTC (BSP 1.1 R3217 asks for UTC).
pub(super) fn parse(text: &str) -> Option<Timestamp> {
    let known = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | ':' | '.' | 'T' | 'Z');
    let (_, time) = text.split_once('T')?;
    if !text.chars().all(known) || time.contains('T') {
        return None;
    }
    let zoned = time.contains(['Z', '+', '-']);
    // XML Schema allows any number of digits after the point; nine are more than enough.
    let text = match text.split_once('.') {
        Some((whole, rest)) => {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            if digits == 0 {
                return None;
            }
            format!("{whole}.{}{}", &rest[..digits.min(9)], &rest[digits..])
        }
        None => text.to_owned(),
    };
    match zoned {
        true => text.parse().ok(),
        false => format!("{text}Z").parse().ok(),
    }
}

/// Whether something was made at a time at which it may have been made: no more than `window` ago,
/// and not in the future.
pub(super) fn is_fresh(
    created: Timestamp,
    now: Timestamp,
    window: Duration,
    what: &'static str,
) -> Result<(), Denied> {
    if created > now.after(AHEAD.min(window)) {
        return Err(Denied::expired(format!("{what} was made in the future")));
    }
    if created < now.before(window) {
        return Err(Denied::expired(format!("{what} was made too long ago")));
    }
    Ok(())
}

/// Checks a wsu:Timestamp. What says until when it may be used is not held against the window.
pub(super) fn check(
    document: &Document,
    node: u32,
    now: Timestamp,
    window: Duration,
) -> Result<(), Denied> {
    let time = |name: &'static str| -> Result<Option<Timestamp>, Denied> {
        let text = only_text(document, node, WSU, name)?;
        let time = text.map(|text| {
            parse(text.trim()).ok_or_else(|| Denied::invalid(format!("{name} is not a time")))
        });
        time.transpose()
    };
    let (created, expires) = (time("Created")?, time("Expires")?);
    let what = "the message";
    if let Some(expires) = expires {
        if created.is_some_and(|created| expires < created) {
            let why = "the Timestamp ends before it begins";
            return Err(Denied::invalid(why));
        }
        if expires <= now {
            return Err(Denied::expired("the message has expired"));
        }
    }
    match (created, expires) {
        (Some(created), None) => is_fresh(created, now, window, what),
        (Some(created), Some(_)) => is_fresh(created, now, Duration::MAX, what),
        (None, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_xml_schema_writes_them() {
        let plain = parse("2003-07-16T01:24:32Z").expect("a time");
        for same in [
            "2003-07-16T01:24:32",
            "2003-07-16T01:24:32.000Z",
            "2003-07-16T03:24:32+02:00",
            "2003-07-15T20:24:32.0-05:00",
            "2003-07-16T01:24:32.00000000000000Z",
            "2003-07-16T01:24:32+00:00",
        ] {
            assert_eq!(parse(same), Some(plain), "{same}");
        }
        let fraction = parse("2003-07-16T01:24:32.1234567Z").expect("a time");
        assert_eq!(fraction.as_micros() - plain.as_micros(), 123_456);
        for bad in [
            "",
            "now",
            "2003-07-16",
            "2003-07-16 01:24:32Z",
            "2003-07-16T01:24:32.Z",
            "2003-13-16T01:24:32Z",
            "2003-07-16T01:24:32[Europe/Berlin]",
            "2003-07-16T01:24:32Z<",
            "1058318672",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_window_reaches_back_and_a_little_ahead() {
        let now = parse("2026-11-22T12:00:00Z").expect("a time");
        let fresh = |text: &str, window: u64| {
            let created = parse(text).expect("a time");
            is_fresh(created, now, Duration::from_secs(window), "it").is_ok()
        };
        assert!(fresh("2026-11-22T11:55:00Z", 300) && !fresh("2026-11-22T11:54:59Z", 300));
        assert!(fresh("2026-11-22T12:01:00Z", 300) && !fresh("2026-11-22T12:01:01Z", 300));
        assert!(
            !fresh("2026-11-22T12:00:06Z", 5),
            "no further than the window"
        );
    }
}
