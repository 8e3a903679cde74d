//! XML as far as HTTP needs it: media types, leaving prologs out, and escaping. Decoding is that of
//! xbus-charset.

use std::borrow::Cow;

pub(crate) use xbus_core::essence;

/// The document from its first element on: without declaration, comments and instructions before
/// it. A DTD is an error.
pub(crate) fn without_prolog(text: &str) -> Result<&str, String> {
    let mut rest = text.trim_start_matches('\u{feff}').trim_start();
    loop {
        let skipped = if rest.starts_with("<?") {
            rest.split_once("?>").map(|(_, rest)| rest)
        } else if let Some(comment) = rest.strip_prefix("<!--") {
            comment.split_once("-->").map(|(_, rest)| rest)
        } else if rest.starts_with("<!") {
            return Err("a DTD is not allowed".into());
        } else {
            return Ok(rest.trim_end());
        };
        rest = skipped.ok_or("its prolog does not end")?.trim_start();
    }
}

/// Appends a namespace declaration, its value as it was written somewhere else.
pub(crate) fn declare(out: &mut String, name: &str, raw: &str) {
    // It holds one kind of quote at most.
    let quote = if raw.contains('"') { '\'' } else { '"' };
    out.push(' ');
    out.push_str(name);
    out.extend(['=', quote]);
    out.push_str(raw);
    out.push(quote);
}

/// The text of an element without markup, its entities resolved where they are predefined.
pub(crate) fn plain_text(raw: &str) -> String {
    quick_xml::escape::unescape(raw)
        .map_or_else(|_| raw.to_owned(), Cow::into_owned)
        .trim()
        .to_owned()
}

/// Appends text to XML: markup is escaped, characters that XML 1.0 does not know become `?`.
pub(crate) fn escape_into(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => out.push(c),
            c if !is_char(c) => out.push('?'),
            c => out.push(c),
        }
    }
}

/// Whether XML 1.0 knows a character (production 2).
pub(crate) fn is_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prologs_are_left_out() {
        let text = "\u{feff}<?xml version='1.0'?>\n<!-- x --><?a b?> <a/> \n";
        assert_eq!(without_prolog(text), Ok("<a/>"));
        assert!(without_prolog("<!DOCTYPE a><a/>").is_err());
    }
}
