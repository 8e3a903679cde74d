//! The forwarder: hands over what the store's queue of a lane holds to the broker that keeps the
//! lane, strictly in order, and takes out of the store what the broker has confirmed.
//!
//! A message that was handed over and not taken out in time (a crash between) is handed over again
//! under the same number; the lane's worker drops what it has delivered already.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::adapter::Class;
use crate::broker::{LaneBroker, LaneEntry, LaneName};
use crate::incident::Incidents;
use crate::plan::Retry;
use crate::store::{Change, Commit, Durability, EntryRef, Queued, Settlement, Store};
use crate::{MessageId, SendError, Stop};

/// At most so many are handed over before their confirms are waited for.
const BATCH: usize = 256;
/// So many confirmed ones may be waiting for the store to let go of them.
const UNSETTLED: usize = 4096;
/// How often it is looked whether a broker is back, or has gone.
const LOOK: Duration = Duration::from_millis(100);
/// How long a bus that stops goes on handing over.
const LAST: Duration = Duration::from_secs(3);
/// Waits while the broker cannot be reached.
const AGAIN: Retry = Retry {
    attempts: u32::MAX,
    first: Duration::from_millis(200),
    factor: 2.0,
    max: Duration::from_secs(5),
};

/// Hands one lane over to its broker.
pub(crate) struct Forwarder {
    pub(crate) lane: LaneName,
    pub(crate) broker: Arc<dyn LaneBroker>,
    /// This bus's name among several, and what tells its store from all others.
    pub(crate) node: Arc<str>,
    /// The latter for what came back from a broker, and for all else.
    pub(crate) origins: [Arc<str>; 2],
    /// The store's queue that goes first: what came back from a broker.
    pub(crate) front: Arc<str>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) incidents: Arc<Incidents>,
    /// Route and step of its incidents.
    pub(crate) place: (Arc<str>, String),
    pub(crate) wake: Notify,
    /// The broker has refused what was handed over last.
    pub(crate) refused: AtomicBool,
    /// Who waits for which message; nothing once the forwarder has ended.
    pub(crate) waiting: Mutex<Option<Waiting>>,
}

type Waiting = HashMap<MessageId, oneshot::Sender<()>>;

/// What a message that enters the lane waits for.
pub(crate) struct Handover {
    forwarder: Arc<Forwarder>,
    id: MessageId,
    confirmed: oneshot::Receiver<()>,
}

impl Handover {
    /// Waits until the broker has confirmed the message, until it is known that it cannot now, or
    /// until `deadline`: the message is durable in the store and will be handed over in any case.
    pub(crate) async fn wait(mut self, deadline: Instant) {
        self.forwarder.wake.notify_one();
        while self.forwarder.takes() && Instant::now() < deadline {
            let look = deadline.min(Instant::now() + LOOK);
            if tokio::time::timeout_at(look, &mut self.confirmed)
                .await
                .is_ok()
            {
                break;
            }
        }
        if let Some(waiting) = &mut *self.forwarder.lock_waiting() {
            waiting.remove(&self.id);
        }
    }
}

impl Forwarder {
    /// To be called before the commit that puts the message into the lane.
    pub(crate) fn expect(self: &Arc<Self>, id: MessageId) -> Handover {
        let (sender, confirmed) = oneshot::channel();
        if let Some(waiting) = &mut *self.lock_waiting() {
            waiting.insert(id, sender);
        }
        Handover {
            forwarder: self.clone(),
            id,
            confirmed,
        }
    }

    /// Whether waiting for a confirm is worth while.
    fn takes(&self) -> bool {
        self.broker.is_up() && !self.refused.load(Relaxed)
    }

    fn lock_waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over until `stop`, and then what is left as far as that is quick.
    pub(crate) async fn run(self: Arc<Self>, stop: Stop) {
        let mut work = Work::default();
        while !stop.is_cancelled() {
            let step = tokio::select! {
                biased;
                step = self.step(&mut work) => step,
                // What may have been sent is handed over once more after the next start.
                () = self.gives_up(&stop) => break,
            };
            match step {
                Step::Idle => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = stop.cancelled() => {}
                    }
                }
                Step::More => {}
                Step::Later(wait) => {
                    // Nobody waits for a broker that does not take anything.
                    if let Some(waiting) = &mut *self.lock_waiting() {
                        waiting.clear();
                    }
                    tokio::select! {
                        () = self.pause(wait) => {}
                        () = stop.cancelled() => {}
                    }
                }
            }
        }
        let last = async {
            while self.broker.is_up() && matches!(self.step(&mut work).await, Step::More) {}
        };
        let _ = tokio::time::timeout(LAST, last).await;
        self.lock_waiting().take();
    }

    /// Resolves when the bus stops and the broker does not take anything.
    async fn gives_up(&self, stop: &Stop) {
        stop.cancelled().await;
        let until = Instant::now() + LAST;
        while self.broker.is_up() && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits, but no longer than until a broker that was down is back.
    async fn pause(&self, most: Duration) {
        let (until, was_up) = (Instant::now() + most, self.broker.is_up());
        while Instant::now() < until && (was_up || !self.broker.is_up()) {
            tokio::time::sleep(LOOK.min(most)).await;
        }
    }

    async fn step(&self, work: &mut Work) -> Step {
        let limit = BATCH + work.settling.len();
        let (queue, origin) = if self.store.lanes(&self.front).is_empty() {
            (&self.lane.queue, &self.origins[1])
        } else {
            (&self.front, &self.origins[0])
        };
        let entries = match self.store.entries(queue, false, limit) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::error!(queue = %self.lane.queue, %error, "a queue cannot be read");
                return Step::Later(Duration::from_secs(5));
            }
        };
        work.settling.retain_visible(&entries);
        if work.settling.len() > UNSETTLED {
            return Step::Later(Duration::from_millis(20));
        }
        let batch: Vec<Queued> = entries
            .into_iter()
            .filter(|entry| !work.settling.contains(&entry.at))
            .take(BATCH)
            .collect();
        if batch.is_empty() {
            return Step::Idle;
        }
        let (confirmed, error) = self.broker.put(self.entries(&batch, origin)).await;
        self.settle(&batch[..confirmed], work);
        self.refused.store(error.is_some(), Relaxed);
        let Some(error) = error else {
            if std::mem::take(&mut work.failed) > 0 {
                self.incidents.succeeded(&self.place.0, &self.place.1);
            }
            return Step::More;
        };
        let first = batch.get(confirmed).or(batch.last());
        if let (Class::Rejected, Some(first)) = (error.class, first) {
            return self.set_aside(first, &error).await;
        }
        work.failed += 1;
        tracing::warn!(
            queue = %self.lane.queue,
            connection = self.broker.name(),
            error = %error.detail,
            "the broker does not take the lane's messages; they wait in the store"
        );
        self.incidents.failed(
            &self.place.0,
            &self.place.1,
            "outage",
            &error.detail,
            first.map(|entry| entry.message.id),
            Some(&self.lane.queue),
        );
        Step::Later(AGAIN.wait(work.failed))
    }

    /// What the broker will never take (too large for it) is parked in the store, and the next goes
    /// on.
    async fn set_aside(&self, entry: &Queued, error: &SendError) -> Step {
        tracing::error!(
            id = %entry.message.id,
            queue = %self.lane.queue,
            connection = self.broker.name(),
            error = %error.detail,
            "the broker refuses a message for good; it is parked"
        );
        self.incidents.failed(
            &self.place.0,
            &self.place.1,
            "rejection",
            &error.detail,
            Some(entry.message.id),
            Some(&self.lane.queue),
        );
        let park = Change::Park {
            at: entry.at.clone(),
            reason: error.detail.clone(),
        };
        let commit = Commit::of(park);
        match self.store.commit(commit, Durability::Synced).await {
            Ok(()) => Step::More,
            Err(error) => {
                tracing::error!(queue = %self.lane.queue, %error, "a message could not be parked");
                Step::Later(Duration::from_secs(5))
            }
        }
    }

    fn entries(&self, batch: &[Queued], origin: &Arc<str>) -> Vec<LaneEntry> {
        batch
            .iter()
            .map(|entry| LaneEntry {
                lane: self.lane.clone(),
                key: entry.at.key.clone(),
                message: entry.message.clone(),
                target: entry.target.clone(),
                since: entry.since,
                cause: entry.cause,
                node: self.node.clone(),
                origin: Some((origin.clone(), entry.at.seq)),
            })
            .collect()
    }

    fn settle(&self, confirmed: &[Queued], work: &mut Work) {
        if confirmed.is_empty() {
            return;
        }
        let changes: Vec<Change> = confirmed
            .iter()
            .map(|entry| Change::Settle {
                at: entry.at.clone(),
                how: Settlement::Forwarded,
                attempts: 0,
                error: None,
            })
            .collect();
        {
            let mut waiting = self.lock_waiting();
            for entry in confirmed {
                if let Some(sender) = waiting
                    .as_mut()
                    .and_then(|waiting| waiting.remove(&entry.message.id))
                {
                    let _ = sender.send(());
                }
            }
        }
        work.settling
            .0
            .extend(confirmed.iter().map(|entry| entry.at.clone()));
        // Synced, so that a power loss has little to hand over again; nobody waits for it.
        let (store, queue) = (self.store.clone(), self.lane.queue.clone());
        tokio::spawn(async move {
            let commit = store.commit(Commit::from(changes), Durability::Synced);
            if let Err(error) = commit.await {
                tracing::warn!(%queue, %error, "what the broker has could not be taken out of the store yet");
            }
        });
    }
}

#[derive(Default)]
struct Work {
    settling: Settling,
    /// Failures in a row.
    failed: u32,
}

/// Entries that the broker has and that the store may still show.
#[derive(Default)]
struct Settling(HashSet<EntryRef>);

impl Settling {
    fn retain_visible(&mut self, entries: &[Queued]) {
        if !self.0.is_empty() {
            let visible: HashSet<&EntryRef> = entries.iter().map(|entry| &entry.at).collect();
            self.0.retain(|at| visible.contains(at));
        }
    }

    fn contains(&self, at: &EntryRef) -> bool {
        self.0.contains(at)
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

enum Step {
    /// Nothing to hand over.
    Idle,
    More,
    Later(Duration),
}
