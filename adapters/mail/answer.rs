//! Answers to mails: a route with `reply` writes back to whom the mail came from.
//!
//! Nobody is answered who would not read it: automatic mail (RFC 3834), lists, bounces, and the bus
//! itself. An answer that its server puts off waits in memory while the mailbox goes on. Absent: a
//! durable outbox. An answer is sent once, after the acceptance; a crash between the two loses it.

use std::sync::Arc;
use std::time::Duration;

use lettre::Address;
use lettre::message::Mailbox;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use xbus_core::adapter::Class;
use xbus_core::store::Outcome;
use xbus_core::{Inbox, Message, MessageId, Reply, SendError, Stop};

use crate::address::fixed;
use crate::compose::{Attached, Composed, Draft, message_id};
use crate::connection::{Smtp, Unsent};
use crate::sender::{content_type, file_name};
use crate::take::sleep;
use crate::text;

/// How long one answer may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// Most earlier mails of a conversation that are named.
const REFERENCES_MOST: usize = 10;
/// How often an answer is offered to a server that puts it off. With the usual waits of `retry`, which
/// double up to some minutes, that is long enough for greylisting (RFC 6647 section 5).
pub(crate) const OFFERS_MOST: u32 = 20;
/// Most answers of a receiver that wait for their server, in KiB; each counts for one at least.
const WAITING_MOST: usize = 16 * 1024;

/// Sends answers.
pub(crate) struct Answers {
    pub(crate) smtp: Arc<Smtp>,
    pub(crate) from: Mailbox,
    pub(crate) bus: Arc<str>,
    /// The address that the bus tells its administrators from.
    own: Option<Address>,
    waiting: Arc<Semaphore>,
}

/// The name under which journal and incidents tell of answers.
const STEP: &str = "reply";

impl Answers {
    /// Answers by `smtp`, from `from`, in the name of the bus; `own`: the address of its failure mail.
    pub(crate) fn new(smtp: Arc<Smtp>, from: Mailbox, bus: Arc<str>, own: Option<Address>) -> Self {
        Self {
            smtp,
            from,
            bus,
            own,
            waiting: Arc::new(Semaphore::new(WAITING_MOST)),
        }
    }

    /// Answers the sender of an accepted mail. While the mail server is down that is tried again until
    /// `stop`; what it says of this one mail keeps nobody waiting. Whatever becomes of the answer, what
    /// is accepted stays accepted.
    pub(crate) async fn answer(&self, mail: &Message, reply: &Reply, inbox: &Inbox, stop: &Stop) {
        let composed = match self.compose(mail, reply) {
            Ok(composed) => composed,
            Err(why) => {
                tracing::info!(route = %inbox.route(), id = %mail.id, why, "the mail is not answered");
                return;
            }
        };
        let mut answer = match composed {
            Ok(composed) => Answer {
                composed,
                id: mail.id,
                smtp: self.smtp.clone(),
                inbox: inbox.clone(),
                stop: stop.clone(),
                tried: 0,
                put_off: 0,
            },
            Err(error) => return lost(inbox, mail.id, 1, &error).await,
        };
        let Some(error) = answer.go(false).await else {
            return;
        };
        let size = answer.composed.data.len().div_ceil(1024).max(1);
        let room = u32::try_from(size)
            .ok()
            .and_then(|size| self.waiting.clone().try_acquire_many_owned(size).ok());
        match room {
            Some(room) => drop(tokio::spawn(answer.wait(error, room))),
            None => lost(inbox, mail.id, answer.tried, &error).await,
        }
    }

    /// The answer to a mail, or why nobody is answered.
    fn compose(
        &self,
        mail: &Message,
        reply: &Reply,
    ) -> Result<Result<Composed, SendError>, &'static str> {
        if let Some(why) = self.unanswered(mail) {
            return Err(why);
        }
        let Some(to) = recipient(mail) else {
            return Err("it names nobody to answer");
        };
        if self.is_own(to.email.as_ref()) {
            return Err("it would go to the bus itself");
        }
        let composed = self.draft(mail, reply, to).compose();
        Ok(composed.map_err(|fault| SendError::rejected(fault.reason)))
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
        // Notices of delivery, of reading and the like (RFC 6522), whoever forgot to say so.
        if header("mail.content-type").is_some_and(|kind| kind.starts_with("multipart/report")) {
            return Some("it is a report (multipart/report)");
        }
        self.is_own(&from).then_some("it comes from the bus itself")
    }

    /// Whether it is an address that the bus writes from: an answer to it would go round in circles.
    fn is_own(&self, address: &str) -> bool {
        let own = self.own.iter().chain([&self.from.email]);
        own.into_iter()
            .any(|own| own.to_string().eq_ignore_ascii_case(address))
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

/// An answer on its way.
struct Answer {
    composed: Composed,
    id: MessageId,
    smtp: Arc<Smtp>,
    inbox: Inbox,
    stop: Stop,
    /// How often it was tried.
    tried: u32,
    /// How often the server put it off.
    put_off: u32,
}

impl Answer {
    /// Sends it, again while the server is down. Gives why, once the server has put it off, or with
    /// `patient` too often.
    async fn go(&mut self, patient: bool) -> Option<SendError> {
        let incidents = self.inbox.bus().incidents();
        let (route, id) = (self.inbox.route(), self.id);
        loop {
            let deadline = Instant::now() + DEADLINE;
            let mail = &self.composed;
            let offered = self.smtp.offer(&mail.envelope, &mail.data, deadline).await;
            self.tried += 1;
            let Unsent { error, put_off } = match offered {
                Ok(_) => {
                    incidents.succeeded(route, STEP);
                    return None;
                }
                Err(unsent) => unsent,
            };
            if error.class != Class::Outage {
                lost(&self.inbox, id, self.tried, &error).await;
                return None;
            }
            if put_off {
                self.put_off += 1;
                if !patient || self.put_off >= OFFERS_MOST {
                    return Some(error);
                }
            } else {
                incidents.failed(route, STEP, "outage", &error.detail, Some(id), None);
            }
            let wait = self.inbox.policy().retry.wait(self.tried);
            if sleep(wait, &self.stop).await {
                lost(&self.inbox, id, self.tried, &error).await;
                return None;
            }
        }
    }

    /// Goes on with an answer that was put off, until it is sent or there is no hope.
    async fn wait(mut self, error: SendError, _room: OwnedSemaphorePermit) {
        let (route, id) = (self.inbox.route(), self.id);
        let wait = self.inbox.policy().retry.wait(self.tried);
        tracing::warn!(%route, %id, error = error.detail, retry_in = ?wait, "the mail server does not want the answer now, it is tried again; the mailbox goes on");
        if sleep(wait, &self.stop).await {
            return lost(&self.inbox, id, self.tried, &error).await;
        }
        if let Some(error) = self.go(true).await {
            lost(&self.inbox, id, self.tried, &error).await;
        }
    }
}

/// Tells of an answer that is not tried again.
async fn lost(inbox: &Inbox, id: MessageId, tried: u32, error: &SendError) {
    let (kind, outcome) = match error.class {
        // Perhaps it was sent: nobody gets it twice.
        Class::Unknown => ("in-doubt", Outcome::InDoubt),
        Class::Outage | Class::Rejected => ("rejection", Outcome::Failed),
    };
    let route = inbox.route();
    tracing::warn!(%route, %id, tried, error = error.detail, "the mail was accepted and its answer is not sent");
    let incidents = inbox.bus().incidents();
    incidents.failed(route, STEP, kind, &error.detail, Some(id), None);
    if let Err(error) = inbox.told(id, STEP, outcome, tried, &error.detail).await {
        tracing::warn!(%route, %id, %error, "the journal does not say that the answer is not sent");
    }
}

/// Whom the sender wants to be answered: the first that it names. One mail makes the bus write one,
/// to one address.
fn recipient(mail: &Message) -> Option<Mailbox> {
    let of = |name: &str| {
        let text = mail.headers.get(name)?;
        fixed(text)?.into_iter().next()
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
        open::messages(mail.as_bytes(), &reading)
            .unwrap()
            .remove(0)
            .unwrap()
    }

    fn answers() -> Answers {
        Answers::new(
            Arc::new(crate::connection::to(1)),
            fixed("bus@acme.example").unwrap().remove(0),
            Arc::from("acme"),
            "alerts@acme.example".parse().ok(),
        )
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
            "Content-Type: Multipart/Report; report-type=delivery-status; boundary=x",
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
        for address in ["Bus@acme.example", "alerts@ACME.example"] {
            own.headers.set("mail.from-address", address);
            assert!(answers().unanswered(&own).is_some(), "{address}");
        }
    }

    #[test]
    fn one_address_is_answered_the_first_that_the_sender_names() {
        for (reply_to, expected) in [
            (
                "\"Doe, Jane\" <jane@shop.example>, desk@shop.example",
                "jane@shop.example",
            ),
            ("desk@shop.example, jane@shop.example", "desk@shop.example"),
            ("nobody", "ann@shop.example"),
            ("", "ann@shop.example"),
        ] {
            let to = recipient(&mail(&format!("Reply-To: {reply_to}"))).unwrap();
            assert_eq!(to.email.to_string(), expected, "{reply_to}");
        }
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
