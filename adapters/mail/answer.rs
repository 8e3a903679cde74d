//! Answers to mails: a route with `reply` writes back to whom the mail came from.
//!
//! Nobody is answered who would not read it: automatic mail (RFC 3834), lists, bounces, and the bus
//! itself. Absent: an outbox. An answer is sent once, after the acceptance; a crash between the two
//! loses it.

use std::sync::Arc;
use std::time::Duration;

use lettre::message::Mailbox;
use tokio::time::Instant;
use xbus_core::{Message, Reply, SendError};

use crate::address::fixed;
use crate::compose::{Attached, Draft, message_id};
use crate::connection::Smtp;
use crate::sender::{content_type, file_name};
use crate::text;

/// How long one answer may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// Most earlier mails of a conversation that are named.
const REFERENCES_MOST: usize = 10;

/// Sends answers.
pub(crate) struct Answers {
    pub(crate) smtp: Arc<Smtp>,
    pub(crate) from: Mailbox,
    pub(crate) bus: Arc<str>,
}

impl Answers {
    /// Answers a mail; `Ok(None)` when it was sent, else why nobody is answered.
    pub(crate) async fn send(
        &self,
        mail: &Message,
        reply: &Reply,
    ) -> Result<Option<&'static str>, SendError> {
        if let Some(why) = self.unanswered(mail) {
            return Ok(Some(why));
        }
        let Some(to) = recipient(mail) else {
            return Ok(Some("it names nobody to answer"));
        };
        if to.email == self.from.email {
            return Ok(Some("it would go to the bus itself"));
        }
        let composed = self
            .draft(mail, reply, to)
            .compose()
            .map_err(|fault| SendError::rejected(fault.reason))?;
        let deadline = Instant::now() + DEADLINE;
        self.smtp
            .send(&composed.envelope, &composed.data, deadline)
            .await?;
        Ok(None)
    }

    /// RFC 3834 section 2, and what mail programs do beside it.
    fn unanswered(&self, mail: &Message) -> Option<&'static str> {
        let header = |name: &str| {
            mail.headers
                .get(name)
                .map(|v| v.trim().to_ascii_lowercase())
        };
        let has = |name: &str| mail.headers.get(name).is_some();
        if header("mail.auto-submitted").is_some_and(|word| !word.is_empty() && word != "no") {
            return Some("it was sent by a machine (Auto-Submitted)");
        }
        if header("mail.return-path").is_some_and(|path| path == "<>") {
            return Some("it is a notification (empty Return-Path)");
        }
        let bulk = |word: String| matches!(word.as_str(), "bulk" | "junk" | "list");
        if header("mail.precedence").is_some_and(bulk)
            || ["mail.list-id", "mail.list-post", "mail.list-unsubscribe"]
                .into_iter()
                .any(has)
        {
            return Some("it went to many (a list)");
        }
        if header("mail.x-auto-response-suppress").is_some_and(|word| word != "none") {
            return Some("it asks for no automatic answer");
        }
        let from = header("mail.from-address").unwrap_or_default();
        let local = from.split('@').next().unwrap_or_default();
        let machines = [
            "mailer-daemon",
            "postmaster",
            "noreply",
            "no-reply",
            "donotreply",
        ];
        if machines.contains(&local) {
            return Some("its sender reads no mail");
        }
        let own = self.from.email.to_string();
        own.eq_ignore_ascii_case(&from)
            .then_some("it comes from the bus itself")
    }

    fn draft(&self, mail: &Message, reply: &Reply, to: Mailbox) -> Draft {
        let header = |name: &str| mail.headers.get(name).unwrap_or_default();
        let subject = header("mail.subject");
        let answered = header("mail.message-id");
        let references: Vec<&str> = header("mail.references")
            .split_ascii_whitespace()
            .chain([answered])
            .filter(|id| !id.is_empty())
            .collect();
        let references = references[references.len().saturating_sub(REFERENCES_MOST)..].join(" ");
        let mut headers = vec![(String::from("X-Message-Id"), reply.id.to_string())];
        if !answered.is_empty() {
            headers.push((String::from("In-Reply-To"), answered.to_owned()));
            headers.push((String::from("References"), references));
        }
        let mut draft = Draft {
            from: self.from.clone(),
            to: vec![to],
            cc: Vec::new(),
            bcc: Vec::new(),
            subject: match subject.get(..3) {
                Some(start) if start.eq_ignore_ascii_case("re:") => subject.to_owned(),
                _ => format!("Re: {subject}"),
            },
            text: None,
            html: None,
            attachments: Vec::new(),
            headers,
            message_id: message_id(reply.id, "reply", &self.bus),
            automatic: "auto-replied",
        };
        match &reply.message {
            None => draft.text = Some(format!("{}: {}\r\n", reply.status.name(), reply.id)),
            Some(message) => match text::of(message) {
                Some(text) if text::is_html(message) => draft.html = Some(text),
                Some(text) => draft.text = Some(text),
                None => draft.attachments.push(Attached {
                    name: file_name(message),
                    content_type: content_type(message, false),
                    content_id: None,
                    content: message.body.bytes().clone(),
                }),
            },
        }
        draft
    }
}

/// Whom the sender wants to be answered: one, whatever it names.
fn recipient(mail: &Message) -> Option<Mailbox> {
    let of = |name: &str| {
        let text = mail.headers.get(name)?;
        let all = fixed(text)?;
        (all.len() == 1).then(|| all.into_iter().next()).flatten()
    };
    of("mail.reply-to").or_else(|| of("mail.from-address"))
}

#[cfg(test)]
mod tests {
    use xbus_core::{Headers, Status};

    use super::*;
    use crate::open::{self, Attachments, Reading};

    fn mail(head: &str) -> Message {
        let reading = Reading {
            attachments: Attachments::Each,
            prefer_html: false,
            format: None,
            charset: None,
        };
        let mail = format!("From: Ann <ann@shop.example>\nMessage-ID: <1@shop>\n{head}\n\nhi");
        open::messages(mail.as_bytes(), &reading).unwrap().remove(0)
    }

    fn answers() -> Answers {
        Answers {
            smtp: Arc::new(crate::connection::to(1)),
            from: fixed("bus@acme.example").unwrap().remove(0),
            bus: Arc::from("acme"),
        }
    }

    #[test]
    fn machines_lists_and_the_bus_itself_get_no_answer() {
        for head in [
            "Auto-Submitted: auto-generated",
            "Auto-Submitted: auto-replied; owner-email=x",
            "Return-Path: <>",
            "Precedence: Bulk",
            "List-Id: <x.example>",
            "X-Auto-Response-Suppress: All",
        ] {
            assert!(answers().unanswered(&mail(head)).is_some(), "{head}");
            // However many headers stand ahead of it.
            let late = format!("{}{head}", "X: y\nZ: y\n".repeat(200));
            assert!(answers().unanswered(&mail(&late)).is_some(), "{head}, late");
        }
        for head in [
            "Auto-Submitted: no",
            "Return-Path: <ann@shop.example>",
            "Subject: x",
        ] {
            assert!(answers().unanswered(&mail(head)).is_none(), "{head}");
        }
        let mut own = mail("Subject: x");
        own.headers.set("mail.from-address", "Bus@acme.example");
        assert!(answers().unanswered(&own).is_some());
    }

    #[test]
    fn an_answer_belongs_to_its_mail() {
        let mail = mail("Subject: Order 7\nReferences: <0@shop>\nReply-To: desk@shop.example");
        let reply = Reply {
            id: mail.id,
            status: Status::Delivered,
            message: Some(Arc::new(Message::new("thanks\r\nBcc: thief@evil.example"))),
            http_status: None,
            headers: Headers::new(),
        };
        let to = recipient(&mail).unwrap();
        let composed = answers().draft(&mail, &reply, to).compose().unwrap();
        let text = String::from_utf8(composed.data).unwrap();
        for line in [
            "To: desk@shop.example",
            "Subject: Re: Order 7",
            "In-Reply-To: <1@shop>",
            "References: <0@shop> <1@shop>",
            "Auto-Submitted: auto-replied",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} in {text}");
        }
        assert_eq!(composed.envelope.to().len(), 1);
    }
}
