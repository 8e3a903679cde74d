//! The outbox of one way to administrators: what is to be told waits here, in memory and in the
//! store, until the way takes it. Each way has its own, so that one that is down holds up no other.
//! A way that fails is no incident and holds nothing up but its own notices.
//!
//! Bounded: a digest is not added while its opening or an earlier digest waits, and of more than
//! [`MOST`] notices the oldest goes, digests first.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use crate::adapter::{Class, SendError};
use crate::codec::Decoder;
use crate::notice::{Event, Notice};
use crate::plan::Retry;
use crate::store::{Change, Commit, Durability, Store};
use crate::{MessageId, Stop, Timestamp};

const PREFIX: &str = "outbox/";

/// How many notices wait for one way at most.
pub const MOST: usize = 500;

/// Waits between attempts: 10 s, doubling to 5 minutes.
const RETRY: Retry = Retry {
    attempts: u32::MAX,
    first: Duration::from_secs(10),
    factor: 2.0,
    max: Duration::from_secs(300),
};

/// How long a notice that the way rejects is tried.
const GIVE_UP: Duration = Duration::from_secs(3 * 86_400);

/// So many failures in a row end a round: the way is down. Fewer may be a notice's own.
const IN_A_ROW: u32 = 3;

/// What a way said when it took a notice.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Accepted {
    /// The server's words.
    pub said: String,
    /// Recipients that the server refused while it took others, each with its words.
    pub refused: Vec<String>,
}

/// A way to the administrators.
pub trait Notifier: Send + Sync {
    /// Its name: `mail`, `webhook`. Stands in the store's names.
    fn way(&self) -> &'static str;

    /// Where a notice of level 0 goes, for people, without credentials.
    fn goes_to(&self) -> String;

    /// Hands one notice over, within a time of its own. The same notice may be handed over again when
    /// the answer was lost.
    fn notify<'a>(&'a self, notice: &'a Notice) -> BoxFuture<'a, Result<Accepted, SendError>>;
}

/// How a way has been doing since the process started.
#[derive(Clone, Debug, Default)]
pub struct WayState {
    /// When it last took a notice.
    pub last_sent: Option<Timestamp>,
    /// When it last failed, and why; nothing once it has taken one after that.
    pub failing: Option<(Timestamp, String)>,
    /// Notices that were taken.
    pub sent: u64,
    /// Notices that went without being sent: too many waited, or the way rejected them for days.
    pub dropped: u64,
}

/// Notices that wait for one way, in order.
pub struct Outbox {
    way: &'static str,
    store: Arc<dyn Store>,
    next: AtomicU64,
    waiting: Mutex<BTreeMap<u64, Arc<Notice>>>,
    state: Mutex<WayState>,
    filled: Notify,
}

impl Outbox {
    /// The outbox of a way, with what an earlier process left in it.
    pub fn new(way: &'static str, store: Arc<dyn Store>) -> Self {
        let prefix = format!("{PREFIX}{way}/");
        let waiting: BTreeMap<u64, Arc<Notice>> = store
            .values(&prefix)
            .into_iter()
            .filter_map(|(name, value)| {
                let number = name.strip_prefix(&prefix)?.parse().ok()?;
                Some((number, Arc::new(Notice::decode(Decoder::new(value))?)))
            })
            .collect();
        let after = waiting.keys().next_back().map_or(0, |last| last + 1);
        Self {
            way,
            store,
            next: AtomicU64::new(after.max(Timestamp::now().as_micros() as u64)),
            waiting: Mutex::new(waiting),
            state: Mutex::default(),
            filled: Notify::new(),
        }
    }

    /// Forgets what waits for ways that there are no more.
    pub(crate) fn forget_others(store: &Arc<dyn Store>, ways: &[&str]) {
        let known: Vec<String> = ways.iter().map(|way| format!("{PREFIX}{way}/")).collect();
        for (name, _) in store.values(PREFIX) {
            if !known.iter().any(|prefix| name.starts_with(prefix.as_str())) {
                tracing::warn!(%name, "a notice is given up: the way that it was for is not configured any more");
                write_behind(store, vec![Change::Value { name, value: None }]);
            }
        }
    }

    /// The way's name.
    pub fn way(&self) -> &'static str {
        self.way
    }

    /// Adds a notice at the end. Gives what makes that durable, for the commit that notes with it
    /// what has been told; nothing where there is nothing to add.
    pub(crate) fn add(&self, notice: &Notice) -> Vec<Change> {
        let mut notice = notice.clone();
        let mut waiting = self.waiting();
        if notice.event == Event::Digest {
            // While the way is down digests do not pile up: the next one says it all.
            let held = |id: MessageId| {
                let same = |notice: &&Arc<Notice>| {
                    matches!(notice.event, Event::Opened | Event::Digest)
                        && notice.incidents.iter().any(|report| report.id == id)
                };
                waiting.values().any(|notice| same(&notice))
            };
            notice.incidents.retain(|report| !held(report.id));
            if notice.incidents.is_empty() {
                return Vec::new();
            }
        }
        let number = self.next.fetch_add(1, SeqCst);
        let mut changes = vec![Change::Value {
            name: self.name(number),
            value: Some(notice.encode()),
        }];
        if waiting.len() >= MOST {
            let digest = waiting
                .iter()
                .find(|(_, notice)| notice.event == Event::Digest);
            let oldest = digest.or(waiting.iter().next()).map(|(number, _)| *number);
            if let Some(number) = oldest {
                waiting.remove(&number);
                self.state().dropped += 1;
                tracing::error!(
                    way = self.way,
                    "too many notices wait; the oldest is given up"
                );
                changes.push(Change::Value {
                    name: self.name(number),
                    value: None,
                });
            }
        }
        waiting.insert(number, Arc::new(notice));
        self.filled.notify_one();
        changes
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting().len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How the way has been doing.
    pub fn way_state(&self) -> WayState {
        self.state().clone()
    }

    /// Hands over what waits, oldest first, until `stop`.
    pub async fn run(&self, notifier: &dyn Notifier, stop: Stop) {
        let mut failed = 0u32;
        loop {
            let wait = match self.round(notifier, &stop).await {
                None => {
                    failed = 0;
                    None
                }
                Some(asked) => {
                    failed = failed.saturating_add(1);
                    Some(RETRY.wait(failed).max(asked.min(RETRY.max)))
                }
            };
            let again = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => self.filled.notified().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = again => {}
            }
        }
    }

    /// Tries every notice once, unless the way is down. Nothing when none is left, else how long the
    /// way asks to be left alone.
    async fn round(&self, notifier: &dyn Notifier, stop: &Stop) -> Option<Duration> {
        let waiting: Vec<(u64, Arc<Notice>)> = self
            .waiting()
            .iter()
            .map(|(number, notice)| (*number, notice.clone()))
            .collect();
        let mut asked = None;
        let mut in_a_row = 0;
        for (number, notice) in waiting {
            if stop.is_cancelled() {
                return None;
            }
            let error = match notifier.notify(&notice).await {
                Ok(accepted) => {
                    in_a_row = 0;
                    self.took(&accepted);
                    self.remove(number);
                    continue;
                }
                Err(error) => error,
            };
            let now = Timestamp::now();
            if error.class == Class::Rejected && notice.at.until(now) > GIVE_UP {
                tracing::error!(way = self.way, error = %error.detail, "a notice is given up: it has been rejected for three days");
                self.state().dropped += 1;
                self.remove(number);
                continue;
            }
            tracing::warn!(way = self.way, error = %error.detail, "a failure notice could not be sent");
            self.state().failing = Some((now, error.detail));
            asked = asked.max(Some(error.retry_after.unwrap_or_default()));
            if error.class != Class::Rejected {
                in_a_row += 1;
                if in_a_row == IN_A_ROW {
                    break;
                }
            }
        }
        asked
    }

    fn took(&self, accepted: &Accepted) {
        for refused in &accepted.refused {
            tracing::warn!(
                way = self.way,
                refused,
                "a recipient of a failure notice was refused"
            );
        }
        let mut state = self.state();
        state.last_sent = Some(Timestamp::now());
        state.failing = None;
        state.sent += 1;
    }

    fn remove(&self, number: u64) {
        if self.waiting().remove(&number).is_some() {
            let name = self.name(number);
            write_behind(&self.store, vec![Change::Value { name, value: None }]);
        }
    }

    /// Forgets what waits, as if the way had taken it.
    #[cfg(test)]
    pub(crate) fn clear(&self) {
        let all: Vec<u64> = self.waiting().keys().copied().collect();
        all.into_iter().for_each(|number| self.remove(number));
    }

    fn name(&self, number: u64) -> Arc<str> {
        Arc::from(format!("{PREFIX}{}/{number:020}", self.way))
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Notice>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, WayState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Commits changes without waiting for it. Handing them over happens here and now, in order; only a
/// full write buffer makes it wait, and then in a task of its own.
pub(crate) fn write_behind(store: &Arc<dyn Store>, changes: Vec<Change>) {
    hand_over(store, changes, Durability::Lazy);
}

/// The same, synced: what was handed over survives a power loss soon after.
pub(crate) fn write_synced(store: &Arc<dyn Store>, changes: Vec<Change>) {
    hand_over(store, changes, Durability::Synced);
}

fn hand_over(store: &Arc<dyn Store>, changes: Vec<Change>, durability: Durability) {
    use futures_util::FutureExt;
    let store = store.clone();
    let mut commit = Box::pin(async move {
        // A notice that cannot be kept is sent all the same, as long as the process lives.
        if let Err(error) = store.commit(Commit::from(changes), durability).await {
            tracing::warn!(%error, "what is told of incidents could not be kept");
        }
    });
    if commit.as_mut().now_or_never().is_none()
        && let Ok(runtime) = tokio::runtime::Handle::try_current()
    {
        runtime.spawn(commit);
    }
}
