//! The bus's own mail, to its administrators.

use std::sync::Arc;
use std::time::Duration;

use lettre::message::Mailbox;
use tokio::time::Instant;
use xbus_core::spec::Connection;
use xbus_core::{MessageId, SendError};

use crate::address::fixed;
use crate::compose::{Draft, message_id};
use crate::connection::Smtp;

/// How long one mail may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Sends the bus's own mails over one connection, from one sender to the same recipients.
pub struct Mailer {
    smtp: Arc<Smtp>,
    from: Mailbox,
    to: Vec<Mailbox>,
}

impl Mailer {
    /// A mailer over a connection of the kind `smtp`. Does no I/O.
    ///
    /// # Errors
    /// A connection of another kind, an address that is none, no recipient; in words.
    pub fn new(connection: Connection, from: &str, to: &[String]) -> Result<Self, String> {
        let smtp = connection
            .downcast::<Smtp>()
            .map_err(|_| String::from("the connection is no smtp connection"))?;
        let no_address = |text: &str| format!("'{text}' is no mail address");
        let mut senders = fixed(from).ok_or_else(|| no_address(from))?;
        let from = match senders.pop() {
            Some(one) if senders.is_empty() => one,
            _ => return Err(format!("'{from}' is more than one sender")),
        };
        let mut recipients = Vec::new();
        for text in to {
            recipients.extend(fixed(text).ok_or_else(|| no_address(text))?);
        }
        if recipients.is_empty() {
            return Err(String::from("there is no recipient"));
        }
        Ok(Self {
            smtp,
            from,
            to: recipients,
        })
    }

    /// Sends one mail; waits up to 60 s. Nothing in the parameters can add a header or a
    /// recipient: control characters become spaces. Recipients that the server refuses while it
    /// takes others are logged.
    ///
    /// # Errors
    /// [`Class::Rejected`](xbus_core::adapter::Class) for a permanent refusal, `Unknown` when the
    /// answer to the whole mail is missing, else `Outage`.
    pub async fn send(
        &self,
        subject: &str,
        text: &str,
        html: Option<&str>,
        headers: &[(&str, &str)],
    ) -> Result<(), SendError> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let draft = Draft {
            from: self.from.clone(),
            to: self.to.clone(),
            cc: Vec::new(),
            bcc: Vec::new(),
            subject: subject.to_owned(),
            text: Some(text.to_owned()),
            html: html.map(str::to_owned),
            attachments: Vec::new(),
            headers: headers.iter().map(owned).collect(),
            message_id: message_id(MessageId::new(), "alert", self.from.email.domain()),
            automatic: "auto-generated",
        };
        let mail = draft
            .compose()
            .map_err(|fault| SendError::rejected(fault.reason))?;
        let deadline = Instant::now() + DEADLINE;
        let refused = self.smtp.send(&mail.envelope, &mail.data, deadline).await?;
        for one in refused {
            tracing::warn!(address = %one.address, answer = %one.answer, "a recipient of failure mail was refused");
        }
        Ok(())
    }
}
