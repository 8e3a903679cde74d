//! The bus's own mail, to its administrators: `alerts.mail` of xbus.yaml.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use lettre::Address;
use lettre::message::Mailbox;
use tokio::time::Instant;
use xbus_core::notice::{Event, Notice};
use xbus_core::outbox::{Accepted, Notifier};
use xbus_core::spec::{Args, Connection, Field, Type};
use xbus_core::{MessageId, SendError};

use crate::address::fixed;
use crate::compose::{Draft, message_id};
use crate::connection::Smtp;
use crate::notice;

/// How long one mail may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// So many incidents, and openings of incidents, are named in headers at most.
const NAMED: usize = 10;

/// What can stand under `alerts.mail`.
pub static ALERT_FIELDS: &[Field] = &[
    Field::new(
        "connection",
        Type::Connection(&["smtp"]),
        "The mail server.",
    )
    .required(),
    Field::new("from", Type::Text, "The sender's address.").required(),
    Field::new("to", Type::OneOrMany(&Type::Text), "Who gets it.").required(),
    Field::new(
        "digest",
        Type::Duration,
        "At most one mail in this time about incidents that go on. The same as `alerts.digest`.",
    ),
];

/// People who get mail.
#[derive(Clone, Debug)]
pub struct Recipients(Vec<Mailbox>);

impl Recipients {
    /// The addresses under `key`; nothing when one is wrong or there is none, which is reported.
    pub fn read(args: &Args<'_>, key: &str) -> Option<Self> {
        let problems = args.build.problems;
        let mut all = Vec::new();
        let mut good = true;
        for node in args.items(key) {
            let text = node.text()?;
            match fixed(text) {
                Some(some) => all.extend(some),
                None => {
                    problems.error(
                        &node.place,
                        "bad-address",
                        format!("'{text}' is no mail address"),
                        "write ops@acme.example or 'Operations <ops@acme.example>'",
                    );
                    good = false;
                }
            }
        }
        if good && all.is_empty() && args.has(key) {
            problems.error(
                &args.place(key),
                "bad-address",
                format!("'{key}' names nobody"),
                "write one address or a list of them",
            );
        }
        (good && !all.is_empty()).then_some(Self(all))
    }
}

/// `alerts.mail`, read; the connection is made later.
#[derive(Clone, Debug)]
pub struct MailAlerts {
    /// The name of the connection.
    pub connection: String,
    from: Mailbox,
    to: Vec<Mailbox>,
    levels: Vec<Option<Recipients>>,
    console: Option<String>,
}

impl MailAlerts {
    /// Reads [`ALERT_FIELDS`]. `levels`: who is told of escalations, the usual people where nobody is
    /// named; `console`: the address of the admin listener, for links. Nothing when something is
    /// wrong, which is reported.
    pub fn read(
        args: Args<'_>,
        levels: Vec<Option<Recipients>>,
        console: Option<String>,
    ) -> Option<Self> {
        let from = Recipients::read(&args, "from");
        let to = Recipients::read(&args, "to");
        let mut from = from?.0;
        if from.len() != 1 {
            args.build.problems.error(
                &args.place("from"),
                "bad-address",
                "'from' names more than one sender",
                "write one address",
            );
            return None;
        }
        Some(Self {
            connection: args.text("connection")?,
            from: from.pop()?,
            to: to?.0,
            levels,
            console,
        })
    }

    pub(crate) fn sender(&self) -> Address {
        self.from.email.clone()
    }

    /// The way over a connection; nothing when it is not of the kind `smtp`. Does no I/O.
    pub fn over(self, connection: Connection) -> Option<Mailer> {
        Some(Mailer {
            smtp: connection.downcast::<Smtp>().ok()?,
            alerts: self,
        })
    }
}

/// Sends the bus's own mails over one connection.
pub struct Mailer {
    smtp: Arc<Smtp>,
    alerts: MailAlerts,
}

impl Mailer {
    /// Who gets a notice. Levels that xbus.yaml does not have any more are nobody's.
    fn recipients(&self, notice: &Notice) -> Vec<Mailbox> {
        let usual = &self.alerts.to;
        let level = |number: usize| -> &[Mailbox] {
            match self.alerts.levels.get(number) {
                Some(Some(people)) => &people.0,
                _ => usual,
            }
        };
        let reached = notice.level as usize;
        let mut all: Vec<&Mailbox> = match notice.event {
            Event::Escalated => level(reached.saturating_sub(1)).iter().collect(),
            _ => usual.iter().chain((0..reached).flat_map(level)).collect(),
        };
        let mut known = Vec::new();
        all.retain(|one| {
            let new = !known.contains(&&one.email);
            known.push(&one.email);
            new
        });
        all.into_iter().cloned().collect()
    }

    /// The mail of a notice: its `Message-ID` is the same over all attempts, and `References` names
    /// the mails that told of the openings, so that mail programs show an incident as one thread.
    fn draft(&self, notice: &Notice) -> Draft {
        let name = |id: MessageId| message_id(id, "alert", self.alerts.from.email.domain());
        let mut openings: Vec<MessageId> = Vec::new();
        for opening in notice.incidents.iter().filter_map(|one| one.opening) {
            if opening != notice.id && !openings.contains(&opening) && openings.len() < NAMED {
                openings.push(opening);
            }
        }
        let mut headers = Vec::new();
        let ids = notice.incidents.iter().take(NAMED);
        let ids: Vec<String> = ids.map(|one| one.id.to_string()).collect();
        if !ids.is_empty() {
            headers.push((String::from("X-Xbus-Incident"), ids.join(", ")));
        }
        if let [opening] = openings.as_slice() {
            headers.push((String::from("In-Reply-To"), name(*opening)));
        }
        if !openings.is_empty() {
            let names: Vec<String> = openings.into_iter().map(name).collect();
            headers.push((String::from("References"), names.join(" ")));
        }
        // Exchange sends no automatic replies to such mail; the others look at Auto-Submitted.
        headers.push((
            String::from("X-Auto-Response-Suppress"),
            String::from("All"),
        ));
        let console = self.alerts.console.as_deref();
        Draft {
            from: self.alerts.from.clone(),
            to: self.recipients(notice),
            cc: Vec::new(),
            bcc: Vec::new(),
            subject: notice.subject(),
            text: Some(notice::text(notice, console)),
            html: Some(notice::html(notice, console)),
            attachments: Vec::new(),
            headers,
            message_id: name(notice.id),
            automatic: "auto-generated",
        }
    }
}

impl Notifier for Mailer {
    fn way(&self) -> &'static str {
        "mail"
    }

    fn goes_to(&self) -> String {
        let to = self.alerts.to.iter().map(|one| one.email.to_string());
        let to: Vec<String> = to.collect();
        format!("{} by {}", to.join(", "), self.smtp.shown())
    }

    /// Waits up to 60 s. Nothing in the notice can add a header or a recipient: control characters
    /// become spaces.
    fn notify<'a>(&'a self, notice: &'a Notice) -> BoxFuture<'a, Result<Accepted, SendError>> {
        Box::pin(async move {
            let mail = self
                .draft(notice)
                .compose_at(notice.at)
                .map_err(|fault| SendError::rejected(fault.reason))?;
            let deadline = Instant::now() + DEADLINE;
            let taken = self.smtp.send(&mail.envelope, &mail.data, deadline).await?;
            let refused = taken.refused.iter();
            Ok(Accepted {
                said: taken.answer,
                refused: refused
                    .map(|one| format!("{}: {}", one.address, one.answer))
                    .collect(),
            })
        })
    }
}

#[cfg(test)]
#[path = "mailer_tests.rs"]
mod tests;
