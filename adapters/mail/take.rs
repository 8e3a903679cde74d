//! One mail's messages through the route, until each is accepted or has failed for good.
//!
//! A mail is known by names: the server's lasting one, and its Message-ID with a hash of the whole.
//! Each message of it is remembered under them in the commit that accepts it, so that after a crash,
//! or when the server has numbered its mails anew, only what is missing is done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use xbus_core::{Arrival, Code, Fault, Inbox, Message, Status, Stop};

use crate::answer::Answers;
use crate::failed::{Aside, Failure};
use crate::open::{self, Reading};

/// Most failed attachments that a reason names.
const NAMED_MOST: usize = 10;

/// What became of a mail.
#[derive(Debug)]
pub(crate) enum Fate {
    /// Every message of it is accepted; how many there are.
    Done(usize),
    /// Some of it failed for good.
    Failed(Failure),
    /// The bus stops while it waits for another attempt.
    Stopped,
}

/// The names of one mail, the surest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    /// By the server's number for it.
    pub(crate) server: Option<Arc<str>>,
    /// By what it is.
    pub(crate) content: Option<Arc<str>>,
}

impl Names {
    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<str>> {
        self.server.iter().chain(&self.content)
    }

    /// The names of one of several messages of it.
    fn part(&self, number: usize) -> Self {
        let part = |name: &Arc<str>| Arc::from(format!("{name}#{number}"));
        Self {
            server: self.server.as_ref().map(part),
            content: self.content.as_ref().map(part),
        }
    }

    /// Whether a message of that name was accepted.
    pub(crate) fn seen(&self, inbox: &Inbox) -> bool {
        self.iter().any(|name| inbox.seen(name))
    }
}

/// The name of a mail by what it is: `place` is the mailbox and folder.
pub(crate) fn content_name(place: &str, mail: &[u8]) -> Arc<str> {
    let mut hash = Sha256::new();
    if let Ok((fields, _)) = crate::mime::Fields::read(mail)
        && let Some(id) = fields.get("message-id")
    {
        hash.update(id.value);
    }
    hash.update(b"\n");
    hash.update(mail);
    let hex: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Arc::from(format!("{place}/{hex}"))
}

/// What was set aside, by name.
pub(crate) type Asides = BTreeMap<String, String>;

/// A mail on its way.
pub(crate) struct Mail<'a> {
    pub(crate) inbox: &'a Inbox,
    pub(crate) reading: &'a Reading,
    pub(crate) names: &'a Names,
    /// Who answers, where the route does.
    pub(crate) answers: Option<&'a Answers>,
    pub(crate) stop: &'a Stop,
}

impl Mail<'_> {
    /// Takes it to its end.
    pub(crate) async fn take(&self, raw: Arc<Vec<u8>>, asides: &mut Asides) -> Fate {
        let reading = self.reading.clone();
        // Large mails take a while to be read.
        let opened = tokio::task::spawn_blocking(move || open::messages(&raw, &reading)).await;
        let messages = match opened {
            Ok(Ok(messages)) => messages,
            Ok(Err(refused)) => return self.refuse(*refused.message, &refused.fault).await,
            Err(error) => {
                tracing::error!(route = %self.inbox.route(), %error, "reading a mail ended by a defect of the bus");
                let fault = Fault::new(Code::Unsupported, "the bus cannot read the mail");
                return self.refuse(Message::new(""), &fault).await;
            }
        };
        let count = messages.len();
        let mut failures: Vec<(String, Failure)> = Vec::new();
        for (at, made) in messages.into_iter().enumerate() {
            let names = match count {
                1 => self.names.clone(),
                _ => self.names.part(at + 1),
            };
            if names.seen(self.inbox) {
                tracing::info!(route = %self.inbox.route(), "already accepted before, only marked");
                continue;
            }
            let headers = match &made {
                Ok(message) => &message.headers,
                Err(refused) => &refused.message.headers,
            };
            let label = headers
                .get("mail.attachment")
                .unwrap_or("the mail")
                .to_owned();
            let aside = names.iter().find_map(|name| asides.get(&**name));
            if let Some(why) = aside.filter(|_| count > 1)
                && let Aside::Failed(failure) = Aside::from_text(why)
            {
                failures.push((label, failure));
                continue;
            }
            let delivered = match made {
                Ok(message) => self.deliver(message, &names).await,
                Err(refused) => Err(self.journalled(*refused.message, &refused.fault).await),
            };
            match delivered {
                Ok(true) => {}
                Ok(false) => return Fate::Stopped,
                Err(failure) => {
                    if count > 1 {
                        let aside = Aside::Failed(failure.clone());
                        set_aside(self.inbox, &names, &aside, asides).await;
                    }
                    failures.push((label, failure));
                }
            }
        }
        match failures.len() {
            0 => Fate::Done(count),
            _ => Fate::Failed(joined(failures, count)),
        }
    }

    /// Runs the route for one message, again after an outage; `false` when `stop` came first.
    async fn deliver(&self, message: Message, names: &Names) -> Result<bool, Failure> {
        let mut all = names.iter().cloned();
        let (seen_as, seen_also) = (all.next(), all.next());
        let (inbox, id) = (self.inbox, message.id);
        let mut attempts = 0;
        loop {
            let arrival = Arrival {
                seen_as: seen_as.clone(),
                seen_also: seen_also.clone(),
                attempts,
                ..Arrival::from(message.clone())
            };
            attempts += 1;
            let fault = match inbox.deliver(arrival).await {
                Ok(reply) => {
                    if let Some(answers) = self.answers
                        && reply.status != Status::Filtered
                    {
                        answers.answer(&message, &reply, inbox, self.stop).await;
                    }
                    return Ok(true);
                }
                Err(fault) => fault,
            };
            if is_final(&fault) {
                return Err(Failure::of(id, attempts, &fault));
            }
            let wait = inbox.policy().retry.wait(attempts);
            let wait = fault.retry_after.map_or(wait, |asked| asked.max(wait));
            tracing::warn!(route = %inbox.route(), %id, attempts, error = %fault, retry_in = ?wait, "mail not delivered, tried again");
            if sleep(wait, self.stop).await {
                return Ok(false);
            }
        }
    }

    async fn journalled(&self, message: Message, fault: &Fault) -> Failure {
        let id = message.id;
        self.inbox.refuse(message, fault).await;
        Failure::of(id, 1, fault)
    }

    /// Journals a mail that gives no message.
    pub(crate) async fn refuse(&self, message: Message, fault: &Fault) -> Fate {
        Fate::Failed(self.journalled(message, fault).await)
    }
}

/// Remembers that a mail, or one message of it, must not be taken again.
pub(crate) async fn set_aside(inbox: &Inbox, names: &Names, why: &Aside, asides: &mut Asides) {
    let text = why.to_text();
    for name in names.iter() {
        asides.insert(name.to_string(), text.clone());
        if let Err(error) = inbox.set_aside(name, &text).await {
            tracing::warn!(route = %inbox.route(), %error, "what became of a mail is not remembered");
        }
    }
}

/// Forgets a mail and its messages, `parts` at the most: it has left its place.
pub(crate) async fn forget(inbox: &Inbox, names: &Names, parts: usize, asides: &mut Asides) {
    for name in names.iter() {
        let part = format!("{name}#");
        let old: Vec<String> = asides
            .keys()
            .filter(|known| ***known == **name || known.starts_with(&part))
            .cloned()
            .collect();
        for known in old {
            asides.remove(&known);
            tell(inbox, inbox.release(&known).await);
        }
        if inbox.seen(name) {
            tell(inbox, inbox.forget(std::slice::from_ref(name)).await);
        }
        for number in (1..=parts).filter(|_| parts > 1) {
            let part: Arc<str> = Arc::from(format!("{name}#{number}"));
            if inbox.seen(&part) {
                tell(inbox, inbox.forget(&[part]).await);
            }
        }
    }
}

fn tell(inbox: &Inbox, result: Result<(), xbus_core::store::StoreError>) {
    if let Err(error) = result {
        // Numbers are never used twice: what is not forgotten only takes room.
        tracing::warn!(route = %inbox.route(), %error, "a mail's key is not forgotten");
    }
}

/// Whether repeating cannot help or must not happen by itself.
fn is_final(fault: &Fault) -> bool {
    fault.rejected
        || fault.code.is_rejection()
        || matches!(fault.code, Code::Transform | Code::InDoubt)
}

fn joined(mut failures: Vec<(String, Failure)>, count: usize) -> Failure {
    if count == 1 {
        return failures.remove(0).1;
    }
    let total = failures.len();
    let reasons: Vec<String> = failures
        .iter()
        .take(NAMED_MOST)
        .map(|(label, failure)| format!("'{label}': {}", failure.reason))
        .collect();
    let (_, mut first) = failures.remove(0);
    first.reason = format!(
        "{total} of {count} attachments failed: {}",
        reasons.join("; ")
    );
    first
}

/// Waits; `true` when `stop` came first.
pub(crate) async fn sleep(time: Duration, stop: &Stop) -> bool {
    tokio::select! {
        () = tokio::time::sleep(time) => false,
        () = stop.cancelled() => true,
    }
}
