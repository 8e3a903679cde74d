//! Values that never show: what configuration declares secret is registered here once, and error
//! texts are masked with it, because a destination's address or answer may repeat it.

use std::borrow::Cow;
use std::sync::RwLock;

/// Shorter values would mask ordinary words.
const SHORTEST: usize = 4;

const MASK: &str = "(secret)";

static KNOWN: RwLock<Vec<String>> = RwLock::new(Vec::new());

/// Has `value` masked from now on, in its own form and percent-encoded. Values of less than four
/// characters are not: they would hide ordinary text.
pub fn register(value: &str) {
    let value = value.trim();
    if value.len() < SHORTEST {
        return;
    }
    let mut known = KNOWN
        .write()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    for form in [value.to_owned(), percent_encoded(value)] {
        if !known.contains(&form) {
            known.push(form);
        }
    }
    // The longest first, so that a secret within another one leaves no rest.
    known.sort_by_key(|form| std::cmp::Reverse(form.len()));
}

/// `text` without any registered value.
pub fn mask(text: &str) -> Cow<'_, str> {
    let known = KNOWN
        .read()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut masked = Cow::Borrowed(text);
    for value in known.iter() {
        if masked.contains(value.as_str()) {
            masked = Cow::Owned(masked.replace(value.as_str(), MASK));
        }
    }
    masked
}

/// As RFC 3986 writes it in a path segment.
fn percent_encoded(value: &str) -> String {
    value
        .bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registered_values_are_masked_in_every_form() {
        register("s3cr/t-value");
        register("abc");
        assert_eq!(
            mask("at http://x/s3cr/t-value and s3cr%2Ft-value: abc"),
            "at http://x/(secret) and (secret): abc"
        );
        assert!(matches!(mask("nothing here"), Cow::Borrowed(_)));
    }
}
