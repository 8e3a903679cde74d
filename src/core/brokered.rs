//! The core's side of a lane at a broker: each head is delivered by the route as it is now, and the
//! journal of the node that accepted the message learns what became of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::broker::{LaneBroker, LaneName, LaneWorker, Report, Verdict};
use crate::incident::Incidents;
use crate::lanes::{Consumer, judge};
use crate::progress::Progress;
use crate::store::{Change, Commit, Durability, Queued, Store, StoreError, TargetEntry};

/// How long a head waits whose target no route has now.
const NOBODY: Duration = Duration::from_secs(60);

/// How long looking what waits may take, and how often it is done.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Works on the heads of one lane.
pub(crate) struct BrokerWorker {
    lane: LaneName,
    broker: Arc<dyn LaneBroker>,
    consumer: Arc<dyn Consumer>,
    store: Arc<dyn Store>,
    incidents: Arc<Incidents>,
    /// Route and step of the incidents of the broker itself.
    place: (Arc<str>, String),
    /// When it was last looked what waits in the lane.
    looked: Mutex<Option<Instant>>,
    /// What has been delivered of a partition and origin.
    delivered: Mutex<HashMap<(u32, Arc<str>), Progress>>,
    /// The last reason why the broker could not be worked with.
    broken: Mutex<Option<String>>,
}

impl BrokerWorker {
    pub(crate) fn new(
        lane: LaneName,
        broker: Arc<dyn LaneBroker>,
        consumer: Arc<dyn Consumer>,
        store: Arc<dyn Store>,
        incidents: Arc<Incidents>,
        place: (Arc<str>, String),
    ) -> Self {
        let mut delivered = HashMap::new();
        let prefix = prefix(&lane);
        for (name, value) in store.values(&prefix) {
            if let (Some((partition, origin)), Some(progress)) = (
                name[prefix.len()..].split_once('/'),
                Progress::from_bytes(&value),
            ) && let Ok(partition) = partition.parse()
            {
                delivered.insert((partition, Arc::from(origin)), progress);
            }
        }
        Self {
            lane,
            broker,
            consumer,
            store,
            incidents,
            place,
            looked: Mutex::default(),
            delivered: Mutex::new(delivered),
            broken: Mutex::default(),
        }
    }

    /// Sees now and then what waits, so that failure mails can tell.
    async fn look(&self) {
        {
            let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
            if looked.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
                return;
            }
            *looked = Some(Instant::now());
        }
        let asked = tokio::time::timeout(LOOK, self.broker.status(&self.lane)).await;
        if let Ok(Ok(status)) = asked {
            self.incidents.note_queue(status);
        }
    }

    async fn keep(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        loop {
            let commit = Commit::from(changes.clone());
            match self.store.commit(commit, Durability::Synced).await {
                Err(error @ StoreError::Full(_)) => {
                    tracing::error!(queue = %self.lane.queue, %error, "a delivery cannot be noted; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                other => return other,
            }
        }
    }
}

/// The names under which the store keeps how far a lane has been delivered.
fn prefix(lane: &LaneName) -> String {
    format!("lane-delivered/{}/", lane.queue)
}

impl LaneWorker for BrokerWorker {
    fn attempt<'a>(&'a self, head: &'a Queued) -> BoxFuture<'a, Verdict> {
        Box::pin(async move {
            let Some(policy) = self.consumer.policy() else {
                return Verdict::Wait { wait: NOBODY };
            };
            let fault = match self.consumer.deliver(head).await {
                Ok(changes) => {
                    if !changes.is_empty()
                        && let Err(error) = self.keep(changes).await
                    {
                        tracing::error!(queue = %self.lane.queue, %error, "a delivery could not be noted");
                        return Verdict::Wait { wait: NOBODY };
                    }
                    tracing::debug!(
                        id = %head.message.id,
                        queue = %self.lane.queue,
                        attempts = head.attempts + 1,
                        "delivered from the queue"
                    );
                    self.consumer.cleared();
                    return Verdict::Done;
                }
                Err(fault) => fault,
            };
            self.look().await;
            let judged = judge(&*self.consumer, &self.lane.queue, head, &policy, &fault);
            let error = fault.in_full();
            if judged.park {
                Verdict::Park { reason: error }
            } else {
                Verdict::Retry {
                    error,
                    wait: judged.wait,
                }
            }
        })
    }

    fn report(&self, report: Report) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let change = Change::Target {
                id: report.id,
                target: TargetEntry {
                    name: report.target,
                    outcome: report.outcome,
                    attempts: report.attempts,
                    error: report.error,
                    at: report.at,
                },
            };
            // The broker is told next, and then nobody else knows it.
            self.store
                .commit(Commit::of(change), Durability::Written)
                .await
        })
    }

    fn progress(&self, partition: u32, origin: &str) -> Progress {
        self.delivered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&(partition, Arc::from(origin)))
            .cloned()
            .unwrap_or_default()
    }

    fn delivered(&self, partition: u32) -> Vec<(Arc<str>, Progress)> {
        self.delivered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter(|((of, _), _)| *of == partition)
            .map(|((_, origin), progress)| (origin.clone(), progress.clone()))
            .collect()
    }

    fn set_progress(
        &self,
        partition: u32,
        origin: &str,
        progress: Progress,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let change = Change::Value {
            name: Arc::from(format!("{}{partition}/{origin}", prefix(&self.lane))),
            value: Some(Bytes::from(progress.to_bytes())),
        };
        self.delivered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((partition, Arc::from(origin)), progress);
        // Handed in before anybody waits.
        self.store.commit(Commit::of(change), Durability::Written)
    }

    fn broken(&self, error: &str) {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        if broken.as_deref() == Some(error) {
            return;
        }
        *broken = Some(error.to_owned());
        tracing::warn!(queue = %self.lane.queue, error, "a lane at the broker cannot be worked off");
        self.incidents.failed(
            &self.place.0,
            &self.place.1,
            "outage",
            error,
            None,
            Some(&self.lane.queue),
        );
    }

    fn works(&self) {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        if broken.take().is_some() {
            self.incidents.succeeded(&self.place.0, &self.place.1);
        }
        drop(broken);
        self.consumer.cleared();
    }
}
