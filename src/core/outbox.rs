//! The outbox of failure mails: durable, and tried until the mail server takes them. A mail server
//! that fails is no incident and holds nothing up but the mails.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use crate::adapter::{Class, SendError};
use crate::codec::{Decoder, Encoder};
use crate::incident::write_behind;
use crate::plan::Retry;
use crate::store::{Change, Commit, Durability, Store};
use crate::{Stop, Timestamp};

const PREFIX: &str = "outbox/";

/// Waits between attempts: 10 s, doubling to 5 minutes.
const RETRY: Retry = Retry {
    attempts: u32::MAX,
    first: Duration::from_secs(10),
    factor: 2.0,
    max: Duration::from_secs(300),
};

/// A mail to the administrators.
#[derive(Clone, Debug, PartialEq)]
pub struct Mail {
    /// Its subject; one line.
    pub subject: String,
    /// Its text.
    pub text: String,
    /// The incident, for the header `X-Xbus-Incident`.
    pub incident: String,
}

/// Sends mails to the administrators.
pub trait Notifier: Send + Sync {
    /// Hands one mail to the mail server.
    fn notify<'a>(&'a self, mail: &'a Mail) -> BoxFuture<'a, Result<(), SendError>>;
}

/// Mails that wait to go out, in order.
pub struct Outbox {
    store: Arc<dyn Store>,
    number: AtomicU64,
    filled: Arc<Notify>,
}

impl Outbox {
    /// The outbox in `store`, with what an earlier process left in it.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            number: AtomicU64::new(Timestamp::now().as_micros() as u64),
            filled: Arc::default(),
        }
    }

    /// Puts a mail at the end, without waiting for the disk.
    pub fn put(&self, mail: Mail) {
        let number = self.number.fetch_add(1, SeqCst);
        let mut out = Encoder::new();
        out.u8(1)
            .text(&mail.subject)
            .text(&mail.text)
            .text(&mail.incident);
        let commit = Commit::of(Change::Value {
            name: Arc::from(format!("{PREFIX}{number:020}")),
            value: Some(out.finish()),
        });
        let (store, filled) = (self.store.clone(), self.filled.clone());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            match store.commit(commit, Durability::Synced).await {
                Ok(()) => filled.notify_one(),
                Err(error) => tracing::error!(%error, "a failure mail could not be kept"),
            }
        });
    }

    /// Whether a mail about this incident waits still.
    pub fn holds(&self, incident: &str) -> bool {
        self.store
            .values(PREFIX)
            .into_iter()
            .filter_map(|(_, value)| decode(Decoder::new(value)))
            .any(|mail| mail.incident == incident)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.store.values(PREFIX).len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sends what waits, oldest first, until `stop`.
    pub async fn run(&self, notifier: Arc<dyn Notifier>, stop: Stop) {
        let mut failed = 0u32;
        // What was sent, until its deletion can be read.
        let mut sent = BTreeSet::new();
        loop {
            let all_out = self.send_all(&*notifier, &stop, &mut sent).await;
            failed = if all_out { 0 } else { failed + 1 };
            let again = async {
                if all_out {
                    self.filled.notified().await;
                } else {
                    tokio::time::sleep(RETRY.wait(failed)).await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = again => {}
            }
        }
    }

    /// Tries every mail once; whether none is left.
    async fn send_all(
        &self,
        notifier: &dyn Notifier,
        stop: &Stop,
        sent: &mut BTreeSet<Arc<str>>,
    ) -> bool {
        let waiting = self.store.values(PREFIX);
        sent.retain(|name| waiting.iter().any(|(other, _)| other == name));
        let mut all_out = true;
        for (name, value) in waiting {
            if stop.is_cancelled() {
                return true;
            }
            if sent.contains(&name) {
                continue;
            }
            let result = match decode(Decoder::new(value)) {
                Some(mail) => notifier.notify(&mail).await,
                None => Ok(()),
            };
            match result {
                Ok(()) => {}
                Err(error) if error.class == Class::Rejected && is_old(&name) => {
                    tracing::error!(error = %error.detail, "a failure mail is given up: the mail server has rejected it for three days");
                }
                Err(error) => {
                    tracing::warn!(error = %error.detail, "a failure mail could not be sent");
                    all_out = false;
                    if error.class == Class::Rejected {
                        continue;
                    }
                    return false;
                }
            }
            sent.insert(name.clone());
            write_behind(&self.store, Change::Value { name, value: None });
        }
        all_out
    }
}

/// Whether a mail has waited for three days, by the time in its name.
fn is_old(name: &str) -> bool {
    let at = name
        .strip_prefix(PREFIX)
        .and_then(|n| n.parse().ok())
        .map_or(Timestamp::now(), Timestamp::from_micros);
    at.until(Timestamp::now()) > Duration::from_secs(3 * 86_400)
}

fn decode(mut data: Decoder) -> Option<Mail> {
    (data.u8()? == 1).then_some(())?;
    Some(Mail {
        subject: data.text()?,
        text: data.text()?,
        incident: data.text()?,
    })
}
