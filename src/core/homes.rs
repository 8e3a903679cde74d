//! Where lanes live: in the store, or at a broker.
//!
//! A lane stays where its messages are. When the routes name another place, nothing happens to what
//! is queued and new messages join it, until an administrator moves the lane; only a lane that has
//! never lived at a broker goes there by itself, because the forwarder carries what waits in order.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::broker::{LaneBroker, LaneName, LaneWorker};
use crate::brokered::BrokerWorker;
use crate::bus::Bus;
use crate::forward::{Forwarder, Handover};
use crate::plan::BrokerHome;
use crate::store::{Change, Commit, Durability, Queued, StoreError};
use crate::target::TargetConsumer;
use crate::{MessageId, Stop};

/// Under this the store keeps where each lane lives.
const HOME: &str = "lane-home/";
/// Under this the store keeps what tells it from all others.
const ORIGIN: &str = "store-id";
/// How long a broker is asked about a lane that nobody works off.
const ASK: Duration = Duration::from_secs(20);
/// How long a move to a broker waits for what is queued to be handed over.
const CARRY: Duration = Duration::from_secs(600);

/// The lanes that do not live in the store.
#[derive(Default)]
pub(crate) struct Homes {
    lanes: Mutex<HashMap<Arc<str>, Arc<AtBroker>>>,
    /// Lanes that nobody works off for now, with the reason.
    held: Mutex<HashMap<Arc<str>, String>>,
}

/// A lane at a broker, and this node's work on it.
pub(crate) struct AtBroker {
    pub(crate) lane: LaneName,
    pub(crate) broker: Arc<dyn LaneBroker>,
    worker: Arc<BrokerWorker>,
    forwarder: Arc<Forwarder>,
    stop: Stop,
    ended: watch::Receiver<bool>,
}

impl AtBroker {
    /// What works on the lane's heads here.
    pub(crate) fn worker(&self) -> Option<Arc<dyn LaneWorker>> {
        Some(self.worker.clone())
    }

    async fn end(&self) {
        self.stop.cancel();
        // An error: it ended without saying so.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }
}

/// What the store knows of a lane's home.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    home: BrokerHome,
    /// A move away from it was begun and has not ended.
    moving: bool,
}

impl Known {
    fn decode(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let mut lines = text.split('\n');
        Some(Self {
            home: BrokerHome {
                connection: Arc::from(lines.next()?),
                partitions: lines.next()?.parse().ok()?,
            },
            moving: lines.next() == Some("moving"),
        })
    }

    fn encode(&self) -> Bytes {
        let Self { home, moving } = self;
        let moving = if *moving { "\nmoving" } else { "" };
        Bytes::from(format!("{}\n{}{moving}", home.connection, home.partitions))
    }
}

impl Homes {
    fn lanes(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<AtBroker>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Arc<str>, String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lane at its broker.
    pub(crate) fn at_broker(&self, queue: &str) -> Option<Arc<AtBroker>> {
        self.lanes().get(queue).cloned()
    }

    /// Why nobody works the lane off.
    pub(crate) fn why_held(&self, queue: &str) -> Option<String> {
        self.held().get(queue).cloned()
    }

    /// Whether the store's queue of this name is not worked off by this node itself.
    pub(crate) fn elsewhere(&self, queue: &str) -> bool {
        self.lanes().contains_key(queue) || self.held().contains_key(queue)
    }

    /// What a message that enters the lane waits for; nothing for a lane in the store.
    pub(crate) fn expect(&self, queue: &str, id: MessageId) -> Option<Handover> {
        let at = self.at_broker(queue)?;
        Some(at.forwarder.expect(id))
    }

    /// Whether the lane lives at a broker.
    pub(crate) fn is_at_broker(&self, queue: &str) -> bool {
        self.lanes().contains_key(queue)
    }
}

/// Ends the name of the store's queue of what came back from a broker.
pub(crate) const FRONT: &str = ".front";

/// The store's queue that is worked off before `queue`: what came back from a broker.
pub(crate) fn front_of(queue: &str) -> Arc<str> {
    Arc::from(format!("{queue}{FRONT}"))
}

impl Bus {
    /// Finds out where each lane of the plan lives and sets to work on those at brokers.
    pub(crate) async fn find_homes(self: &Arc<Self>) {
        let plan = self.plan();
        let mut wanted: HashMap<Arc<str>, Option<BrokerHome>> = HashMap::new();
        for route in plan.routes.values().filter(|route| route.enabled) {
            for lane in route
                .all_targets()
                .filter_map(|target| target.lane.as_ref())
            {
                wanted.insert(lane.queue.clone(), lane.home.clone());
            }
        }
        let gone: Vec<Arc<AtBroker>> = {
            let mut lanes = self.homes().lanes();
            let names: Vec<Arc<str>> = lanes
                .keys()
                .filter(|name| !wanted.contains_key(*name))
                .cloned()
                .collect();
            names.iter().filter_map(|name| lanes.remove(name)).collect()
        };
        for at in gone {
            at.end().await;
        }
        for (queue, home) in wanted {
            if let Err(why) = self.find_home(&queue, home).await {
                self.hold(&queue, why);
                self.leave(&queue).await;
            }
        }
    }

    async fn find_home(
        self: &Arc<Self>,
        queue: &Arc<str>,
        wanted: Option<BrokerHome>,
    ) -> Result<(), String> {
        let known = self.known_home(queue);
        if let Some(known) = &known {
            if known.moving {
                return Err(format!(
                    "a move of this lane has not ended; repeat: xbus queues move {queue} --to embedded"
                ));
            }
            if wanted.as_ref() != Some(&known.home) {
                tracing::warn!(
                    %queue,
                    connection = %known.home.connection,
                    partitions = known.home.partitions,
                    "the routes name another place for this lane; it stays until 'xbus queues move'"
                );
            }
        }
        let Some(home) = known.as_ref().map(|known| known.home.clone()).or(wanted) else {
            self.leave(queue).await;
            self.unhold(queue);
            return Ok(());
        };
        if known.is_none() {
            let known = Known {
                home: home.clone(),
                moving: false,
            };
            self.write_home(queue, Some(&known))
                .await
                .map_err(|error| format!("where the lane lives cannot be noted: {error}"))?;
        }
        let Some(broker) = self.plan().brokers.get(&home.connection).cloned() else {
            return Err(format!(
                "the lane lives on connection '{0}', which xbus.yaml does not define any more; define '{0}' again, then move the lane: xbus queues move {queue} --to embedded",
                home.connection
            ));
        };
        let lane = LaneName {
            queue: queue.clone(),
            partitions: home.partitions,
        };
        if let Some(at) = self.homes().at_broker(queue) {
            if Arc::ptr_eq(&at.broker, &broker) && at.lane == lane {
                return Ok(());
            }
            self.leave(queue).await;
        }
        self.enter(lane, broker).await;
        Ok(())
    }

    /// Lanes at brokers whose target no route has now, with what their brokers know of them.
    pub(crate) fn orphans(&self) -> Vec<(LaneName, Arc<dyn LaneBroker>)> {
        let plan = self.plan();
        let known = self.store().values(HOME).into_iter();
        known
            .filter_map(|(name, value)| {
                let queue: Arc<str> = Arc::from(name.strip_prefix(HOME)?);
                let home = Known::decode(&value)?.home;
                let broker = plan.brokers.get(&home.connection)?.clone();
                let lane = LaneName {
                    queue,
                    partitions: home.partitions,
                };
                plan.lane(&lane.queue).is_none().then_some((lane, broker))
            })
            .collect()
    }

    /// Tells of lanes at brokers that hold messages and that nobody works off, in the background.
    pub(crate) fn report_orphans_at_brokers(self: &Arc<Self>) {
        let bus = self.clone();
        self.tasks().spawn(async move {
            for (lane, broker) in bus.orphans() {
                let asked = tokio::time::timeout(ASK, broker.status(&lane)).await;
                let Ok(Ok(status)) = asked else { continue };
                if status.depth + status.parked == 0 {
                    continue;
                }
                bus.incidents().note_queue(status);
                bus.incidents().failed(
                    &lane.queue,
                    "queue",
                    "no-consumer",
                    "no route takes the messages of this queue any more; they are kept at the broker",
                    None,
                    Some(&lane.queue),
                );
            }
        });
    }

    fn known_home(&self, queue: &str) -> Option<Known> {
        let name = format!("{HOME}{queue}");
        let values = self.store().values(&name);
        let (_, value) = values.iter().find(|(known, _)| **known == *name)?;
        Known::decode(value)
    }

    async fn write_home(&self, queue: &str, known: Option<&Known>) -> Result<(), StoreError> {
        let change = Change::Value {
            name: Arc::from(format!("{HOME}{queue}")),
            value: known.map(Known::encode),
        };
        self.store()
            .commit(Commit::of(change), Durability::Synced)
            .await
    }

    fn hold(&self, queue: &Arc<str>, why: String) {
        tracing::error!(%queue, why, "nobody works off this lane");
        self.incidents()
            .failed(queue, "queue", "held", &why, None, Some(queue));
        self.homes().held().insert(queue.clone(), why);
    }

    fn unhold(&self, queue: &str) {
        if self.homes().held().remove(queue).is_some() {
            self.incidents().succeeded(queue, "queue");
        }
    }

    /// Ends this node's work on a lane at a broker.
    async fn leave(&self, queue: &str) {
        let at = self.homes().lanes().remove(queue);
        if let Some(at) = at {
            at.end().await;
        }
    }

    /// Sets to work on a lane at a broker.
    async fn enter(self: &Arc<Self>, lane: LaneName, broker: Arc<dyn LaneBroker>) {
        // Deliveries out of the store that are under way belong to the time before; no other begins.
        let why = "it is being handed over to the broker";
        self.homes()
            .held()
            .entry(lane.queue.clone())
            .or_insert_with(|| why.to_owned());
        let front = front_of(&lane.queue);
        while self.lanes().is_delivering(&lane.queue) || self.lanes().is_delivering(&front) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let plan = self.plan();
        let (route, step) = match plan.lane(&lane.queue) {
            Some((route, at)) => {
                let target = route.all_targets().nth(at);
                let step = target.map_or("queue", |target| &*target.step.name);
                (route.name.clone(), step.to_owned())
            }
            None => (lane.queue.clone(), "queue".to_owned()),
        };
        let stop = self.stopping().child_token();
        let (end, ended) = watch::channel(false);
        let forwarder = Arc::new(Forwarder {
            lane: lane.clone(),
            broker: broker.clone(),
            node: plan.node.clone(),
            front: front_of(&lane.queue),
            origins: {
                let origin = self.origin();
                [Arc::from(format!("{origin}/front")), origin]
            },
            store: self.store().clone(),
            incidents: self.incidents().clone(),
            place: (route.clone(), format!("{step}@{}", broker.name())),
            wake: Arc::default(),
            refused: AtomicBool::new(false),
            waiting: Mutex::new(Some(HashMap::new())),
        });
        let worker = Arc::new(BrokerWorker::new(
            lane.clone(),
            broker.clone(),
            Arc::new(TargetConsumer::at_broker(self, &lane.queue)),
            self.store().clone(),
            self.incidents().clone(),
            (route, format!("{step}@{} lane", broker.name())),
        ));
        let running = {
            let (forwarder, worker) = (forwarder.clone(), worker.clone());
            let (lane, broker, stop) = (lane.clone(), broker.clone(), stop.clone());
            async move {
                let working = broker.work(lane, worker, stop.clone());
                tokio::join!(forwarder.run(stop), working);
                end.send_replace(true);
            }
        };
        self.lock_working().spawn(running);
        let at = AtBroker {
            lane: lane.clone(),
            broker,
            worker,
            forwarder,
            stop,
            ended,
        };
        let queue = lane.queue;
        self.homes().lanes().insert(queue.clone(), Arc::new(at));
        self.unhold(&queue);
    }

    /// What tells this bus's store from all others, made once.
    fn origin(&self) -> Arc<str> {
        let known = self.store().values(ORIGIN);
        if let Some((_, value)) = known.iter().find(|(name, _)| &**name == ORIGIN)
            && let Ok(text) = std::str::from_utf8(value)
        {
            return Arc::from(text);
        }
        let id = MessageId::new().to_string();
        let change = Change::Value {
            name: Arc::from(ORIGIN),
            value: Some(Bytes::copy_from_slice(id.as_bytes())),
        };
        // It is written before anything that is put into a lane from now on.
        drop(self.store().commit(Commit::of(change), Durability::Lazy));
        Arc::from(id)
    }

    /// Carries a lane to the place that the routes name for it. Gives how many messages it carried.
    pub async fn move_lane(self: &Arc<Self>, queue: &str, to: &str) -> Result<u64, StoreError> {
        let refused = |text: String| Err(StoreError::NotFound(text));
        let plan = self.plan();
        let wanted = plan.lane(queue).and_then(|(route, at)| {
            let lane = route.all_targets().nth(at)?.lane.as_ref()?;
            Some((lane.queue.clone(), lane.home.clone()))
        });
        let Some((queue, wanted)) = wanted else {
            return refused(format!(
                "no async target of the routes has queue '{queue}'; only their lanes can be moved"
            ));
        };
        let place = wanted.as_ref().map_or("embedded", |home| &*home.connection);
        if place != to {
            return refused(format!(
                "the routes say that '{queue}' lives {}; change 'queues' in xbus.yaml or 'connection' of the target, reload, and move it then",
                match &wanted {
                    Some(home) => format!("on connection '{}'", home.connection),
                    None => "in the embedded store".to_owned(),
                }
            ));
        }
        let known = self.known_home(&queue);
        let there = known.as_ref().filter(|known| !known.moving);
        if there.map(|known| &known.home) == wanted.as_ref() && wanted.is_some() {
            return self.carried_over(&queue).await;
        }
        let Some(known) = known else {
            return Ok(0);
        };
        let moved = self.bring_home(&queue, known).await?;
        self.find_homes().await;
        self.work_off_lanes();
        self.lanes().resume(&front_of(&queue));
        self.lanes().resume(&queue);
        if wanted.is_some() {
            return self.carried_over(&queue).await.map(|more| more.max(moved));
        }
        Ok(moved)
    }

    /// Waits until the forwarder has handed over what was in the store.
    async fn carried_over(&self, queue: &str) -> Result<u64, StoreError> {
        let depth = || {
            let queues = self.store().queues();
            queues
                .iter()
                .find(|status| *status.name == *queue)
                .map_or(0, |status| status.depth)
        };
        let before = depth();
        let until = Instant::now() + CARRY;
        while depth() > 0 {
            if Instant::now() > until {
                return Err(StoreError::Broker(format!(
                    "{} messages of '{queue}' still wait in the store; the broker takes them as soon as it can",
                    depth()
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(before)
    }

    /// Takes a lane out of its broker into the store, before what the store holds of it.
    async fn bring_home(&self, queue: &Arc<str>, known: Known) -> Result<u64, StoreError> {
        let Some(broker) = self.plan().brokers.get(&known.home.connection).cloned() else {
            return Err(StoreError::NotFound(format!(
                "connection '{}', on which the lane lives, is not defined in xbus.yaml",
                known.home.connection
            )));
        };
        let lane = LaneName {
            queue: queue.clone(),
            partitions: known.home.partitions,
        };
        let moving = Known {
            moving: true,
            ..known
        };
        self.write_home(queue, Some(&moving)).await?;
        let why = "it is being moved into the embedded store";
        self.homes().held().insert(queue.clone(), why.to_owned());
        self.leave(queue).await;
        let front = front_of(queue);
        let keep = |batch: Vec<Queued>| -> BoxFuture<'_, Result<(), StoreError>> {
            Box::pin(self.take_in(front.clone(), batch))
        };
        let moved = match broker.empty(&lane, &keep).await {
            Ok(moved) => moved,
            Err(error) => {
                self.hold(queue, format!("its move has not ended ({error}); repeat: xbus queues move {queue} --to embedded"));
                return Err(error);
            }
        };
        self.write_home(queue, None).await?;
        self.unhold(queue);
        Ok(moved as u64)
    }

    async fn take_in(&self, front: Arc<str>, batch: Vec<Queued>) -> Result<(), StoreError> {
        let store = self.store();
        let mut changes = Vec::new();
        let mut parked = Vec::new();
        for entry in batch {
            // A move that was cut off gives them once more.
            if store.entry(&front, entry.message.id)?.is_none() {
                changes.push(Change::Put {
                    queue: front.clone(),
                    key: entry.at.key.clone(),
                    message: entry.message.clone(),
                    target: entry.target.clone(),
                    cause: entry.cause,
                });
            }
            if let Some(reason) = entry.parked {
                parked.push((entry.message.id, reason));
            }
        }
        store
            .commit(Commit::from(changes), Durability::Synced)
            .await?;
        for (id, reason) in parked {
            if let Some(entry) = store.entry(&front, id)?
                && entry.parked.is_none()
            {
                let park = Change::Park {
                    at: entry.at,
                    reason,
                };
                store.commit(Commit::of(park), Durability::Synced).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_read_as_it_was_written() {
        for moving in [false, true] {
            let known = Known {
                home: BrokerHome {
                    connection: Arc::from("rabbit"),
                    partitions: 16,
                },
                moving,
            };
            assert_eq!(Known::decode(&known.encode()), Some(known));
        }
        assert_eq!(Known::decode(b"rabbit"), None);
    }
}
