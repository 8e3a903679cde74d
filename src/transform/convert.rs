//! `convert: { from, to }`: plain changes of format by fixed conventions (docs/transformations.md).

/// Appends `text` in the coding of `application/x-www-form-urlencoded` (WHATWG URL section 5.2).
pub(crate) fn form_escape(out: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'*' | b'-' | b'.' | b'_' => {
                out.push(byte as char);
            }
            b' ' => out.push('+'),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
}
