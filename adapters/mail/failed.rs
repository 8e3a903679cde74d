//! What is kept of a mail that must not be taken again: in the store until it has left its place, and,
//! of one that failed for good, as headers ahead of its own in the failed folder.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use xbus_core::{Fault, MessageId, Timestamp};

/// Most characters of a reason.
const REASON_MOST: usize = 2000;

/// Stands in the store in place of a fault's code.
const MOVED: &str = "moved";

/// What is remembered of a mail until it has left its place.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Aside {
    /// It was accepted and copied to where it is moved to: only its own is still to be deleted.
    Moved,
    /// It failed.
    Failed(Failure),
}

impl Aside {
    /// Whether a copy lies where it belongs.
    pub(crate) fn is_copied(&self) -> bool {
        match self {
            Aside::Moved => true,
            Aside::Failed(failure) => failure.copied,
        }
    }

    /// For the store.
    pub(crate) fn to_text(&self) -> String {
        match self {
            Aside::Moved => json!({ "code": MOVED, "copied": true }).to_string(),
            Aside::Failed(failure) => failure.to_text(),
        }
    }

    /// From the store.
    pub(crate) fn from_text(text: &str) -> Self {
        let value: Value = serde_json::from_str(text).unwrap_or_default();
        match value["code"].as_str() {
            Some(MOVED) => Aside::Moved,
            _ => Aside::Failed(Failure::from_value(&value)),
        }
    }
}

/// Why a mail failed.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Failure {
    /// The message that it was, for `xbus messages show`.
    pub(crate) id: String,
    pub(crate) step: String,
    pub(crate) code: String,
    pub(crate) reason: String,
    pub(crate) attempts: u32,
    pub(crate) at: String,
    /// It lies in the failed folder already, and only has to leave its own.
    pub(crate) copied: bool,
}

impl Failure {
    /// Of a message that failed with `fault`.
    pub(crate) fn of(id: MessageId, attempts: u32, fault: &Fault) -> Self {
        Self {
            id: id.to_string(),
            step: fault.step.as_deref().unwrap_or("receive").to_owned(),
            code: fault.code.name().to_owned(),
            reason: fault.for_admin().chars().take(REASON_MOST).collect(),
            attempts,
            at: Timestamp::now().to_string(),
            copied: false,
        }
    }

    fn to_text(&self) -> String {
        json!({
            "id": self.id, "step": self.step, "code": self.code, "reason": self.reason,
            "attempts": self.attempts, "at": self.at, "copied": self.copied,
        })
        .to_string()
    }

    fn from_value(value: &Value) -> Self {
        let word = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        Self {
            id: word("id"),
            step: word("step"),
            code: word("code"),
            reason: word("reason"),
            attempts: value["attempts"].as_u64().unwrap_or(1) as u32,
            at: word("at"),
            copied: value["copied"].as_bool().unwrap_or(false),
        }
    }

    fn fields(&self, route: &str) -> String {
        let attempts = self.attempts.to_string();
        [
            ("Reason", self.reason.as_str()),
            ("Code", &self.code),
            ("Route", route),
            ("Step", &self.step),
            ("Message", &self.id),
            ("Attempts", &attempts),
            ("Failed-At", &self.at),
        ]
        .iter()
        .map(|(name, value)| format!("X-Xbus-{name}: {}\r\n", field_value(value)))
        .collect()
    }

    /// The mail with the reason ahead of its own headers, in place of an earlier one.
    pub(crate) fn copy(&self, route: &str, mail: &[u8]) -> Vec<u8> {
        let mut copy = self.fields(route).into_bytes();
        copy.extend_from_slice(without_earlier(mail));
        copy
    }

    /// A mail of its own that tells the reason, for one that cannot be copied.
    pub(crate) fn report(&self, route: &str, subject: &str, message_id: &str) -> Vec<u8> {
        let subject = field_value(&format!("[xbus] failed: {subject}"));
        let date = Timestamp::now();
        let id: Arc<str> = Arc::from(self.id.as_str());
        let answer = match message_id.is_empty() {
            true => String::new(),
            false => format!("In-Reply-To: {}\r\n", field_value(message_id)),
        };
        format!(
            "{}From: xbus <xbus@localhost>\r\nSubject: {subject}\r\n{answer}Auto-Submitted: \
             auto-generated\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Transfer-Encoding: base64\r\n\r\n{}\r\n",
            self.fields(route),
            wrapped(&format!(
                "A mail of this folder could not be processed.\r\n\r\nReason:  {}\r\nRoute:   \
                 {route}\r\nStep:    {}\r\nMessage: {id}\r\nAt:      {date}\r\n",
                self.reason, self.step
            ))
        )
        .into_bytes()
    }
}

/// A mail without the reason that an earlier failure put ahead of it.
fn without_earlier(mail: &[u8]) -> &[u8] {
    let mut rest = mail;
    let mut within = false;
    loop {
        let ours = rest
            .get(..7)
            .is_some_and(|start| start.eq_ignore_ascii_case(b"X-Xbus-"));
        let folded = within && rest.first().is_some_and(|c| matches!(c, b' ' | b'\t'));
        if !ours && !folded {
            return rest;
        }
        within = true;
        let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
        rest = &rest[end..];
    }
}

fn wrapped(text: &str) -> String {
    let coded = STANDARD.encode(text);
    let lines: Vec<&str> = (0..coded.len())
        .step_by(76)
        .filter_map(|at| coded.get(at..(at + 76).min(coded.len())))
        .collect();
    lines.join("\r\n")
}

/// One header's value: as it is where it is short and plain, else in encoded words (RFC 2047).
fn field_value(text: &str) -> String {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if line.len() < 200 && line.is_ascii() && !line.contains("=?") {
        return line;
    }
    let mut words = vec![String::new()];
    for c in line.chars() {
        // 75 characters a word at the most, its frame included.
        let full = words
            .last()
            .is_none_or(|word| word.len() + c.len_utf8() > 42);
        if full {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut() {
            word.push(c);
        }
    }
    let coded: Vec<String> = words
        .iter()
        .map(|word| format!("=?utf-8?B?{}?=", STANDARD.encode(word)))
        .collect();
    coded.join("\r\n ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use xbus_core::Code;

    #[test]
    fn the_reason_stands_ahead_of_the_mail_once() {
        let fault = Fault::new(
            Code::Client,
            format!("böse\r\nBcc: x@y {}", "z".repeat(300)),
        );
        let failure = Failure::of(MessageId::new(), 3, &fault);
        let aside = Aside::Failed(failure.clone());
        assert_eq!(Aside::from_text(&aside.to_text()), aside);
        let mail = b"Subject: x\r\n\r\nbody\r\n";
        let once = failure.copy("orders", mail);
        let twice = failure.copy("orders", &once);
        assert_eq!(once, twice);
        let text = String::from_utf8(once).unwrap();
        assert!(
            text.is_ascii() && text.ends_with("\r\nSubject: x\r\n\r\nbody\r\n"),
            "{text}"
        );
        assert!(!text.contains("\nBcc"), "{text}");
        assert!(text.lines().all(|line| line.len() < 100), "{text}");
        let (fields, _) = crate::mime::Fields::read(text.as_bytes()).unwrap();
        let reason = fields.get("x-xbus-reason").unwrap().text();
        assert_eq!(reason, fault.reason.replace("\r\n", "  "));
        assert_eq!(fields.get("x-xbus-route").unwrap().text(), "orders");
        assert_eq!(fields.get("subject").unwrap().text(), "x");
    }

    #[test]
    fn a_mail_that_was_moved_has_not_failed() {
        assert_eq!(Aside::from_text(&Aside::Moved.to_text()), Aside::Moved);
        let earlier =
            r#"{"id":"","step":"","code":"moved","reason":"","attempts":0,"at":"","copied":true}"#;
        assert_eq!(Aside::from_text(earlier), Aside::Moved);
        assert!(Aside::Moved.is_copied());
        let fault = Fault::new(Code::Client, "moved");
        let failed = Aside::Failed(Failure::of(MessageId::new(), 1, &fault));
        assert!(!Aside::from_text(&failed.to_text()).is_copied());
    }

    #[test]
    fn a_report_is_a_mail() {
        let failure = Failure::of(
            MessageId::new(),
            1,
            &Fault::new(Code::TooLarge, "too large"),
        );
        let mail = failure.report("orders", "Grüße", "<1@x>");
        let (fields, body) = crate::mime::Fields::read(&mail).unwrap();
        assert_eq!(
            fields.get("subject").unwrap().text(),
            "[xbus] failed: Grüße"
        );
        let leaves = crate::mime::leaves(&mail, fields, body).unwrap();
        let text = String::from_utf8(leaves[0].decoded().unwrap().into_owned()).unwrap();
        assert!(text.contains("Reason:  too large"), "{text}");
    }
}
