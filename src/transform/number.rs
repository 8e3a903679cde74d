//! Numbers of JSON that neither a 64-bit integer nor a float renders as they are written. They keep
//! their text. Absent: arithmetic with them.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::json::{Json, write_float};

/// A number by its text (RFC 8259 section 6).
#[derive(Debug)]
pub(crate) struct Number {
    text: Box<str>,
    /// The float of the same value, if the shortest text of a float says that value.
    float: Option<f64>,
}

impl Number {
    /// The JSON value of a number that is not a 64-bit integer.
    pub(crate) fn json(text: &str) -> Json {
        let nearest: f64 = text.parse().unwrap_or(f64::NAN);
        let mut shown = String::new();
        let float = match write_float(&mut shown, nearest) {
            Ok(()) if shown == text => return Json::Float(nearest),
            Ok(()) if compare(&shown, text) == Some(Ordering::Equal) => Some(nearest),
            _ => None,
        };
        Json::Number(Arc::new(Self {
            text: text.into(),
            float,
        }))
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The float of the same value, where there is one.
    pub(crate) fn float(&self) -> Option<f64> {
        self.float
    }

    /// The float nearest to the value.
    pub(crate) fn nearest(&self) -> f64 {
        self.float
            .unwrap_or_else(|| self.text.parse().unwrap_or(f64::NAN))
    }
}

/// Sign, digits without zeros at either end, and the power of ten of `0.digits`.
struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    power: i64,
}

impl Decimal {
    fn of(text: &str) -> Option<Self> {
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()),
            None => (text, Some(0)),
        };
        let (negative, mantissa) = match mantissa.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, mantissa),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let mut digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let zeros = digits.iter().take_while(|d| **d == b'0').count();
        digits.drain(..zeros);
        while digits.last() == Some(&b'0') {
            digits.pop();
        }
        if digits.is_empty() {
            return Some(Self {
                negative: false,
                digits,
                power: 0,
            });
        }
        let places = i64::try_from(whole.len()).ok()? - i64::try_from(zeros).ok()?;
        Some(Self {
            negative,
            digits,
            power: exponent?.checked_add(places)?,
        })
    }

    fn sign(&self) -> i8 {
        match (self.digits.is_empty(), self.negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        }
    }
}

/// Compares two numbers by their exact values. Nothing: one is no number, or its exponent is
/// beyond 64 bits.
pub(crate) fn compare(a: &str, b: &str) -> Option<Ordering> {
    let (a, b) = (Decimal::of(a)?, Decimal::of(b)?);
    let sizes = || a.power.cmp(&b.power).then_with(|| a.digits.cmp(&b.digits));
    Some(a.sign().cmp(&b.sign()).then_with(|| match a.sign() {
        0 => Ordering::Equal,
        1 => sizes(),
        _ => sizes().reverse(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_compared_exactly() {
        for (a, b, order) in [
            ("1.10", "1.1", Ordering::Equal),
            ("1e5", "100000.0", Ordering::Equal),
            ("0.00", "-0", Ordering::Equal),
            ("0e99999999999999999999", "0", Ordering::Equal),
            (
                "12345678901234567890123",
                "12345678901234567890122",
                Ordering::Greater,
            ),
            (
                "-12345678901234567890123",
                "-12345678901234567890122",
                Ordering::Less,
            ),
            (
                "0.1234567890123456789",
                "0.12345678901234568",
                Ordering::Less,
            ),
            ("9", "10", Ordering::Less),
            ("0.09", "0.1", Ordering::Less),
            ("-1", "1", Ordering::Less),
            ("1e-400", "0", Ordering::Greater),
        ] {
            assert_eq!(compare(a, b), Some(order), "{a} {b}");
            assert_eq!(compare(b, a), Some(order.reverse()), "{b} {a}");
        }
        assert_eq!(compare("1e99999999999999999999", "1"), None);
        assert_eq!(compare("x", "1"), None);
    }

    #[test]
    fn a_float_stands_only_for_the_same_value() {
        let float = |text: &str| match Number::json(text) {
            Json::Float(value) => Some(value),
            Json::Number(number) => number.float(),
            other => panic!("{other:?}"),
        };
        assert_eq!(float("1.10"), Some(1.1));
        assert_eq!(float("1E2"), Some(100.0));
        assert_eq!(float("10000000000000000000000"), Some(1e22));
        assert_eq!(float("9223372036854775808"), None);
        assert_eq!(float("0.1234567890123456789"), None);
        assert_eq!(float("1e-400"), None);
    }
}
