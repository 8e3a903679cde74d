//! The running bus: what routes share, and how it starts and stops.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::adapter::OpenError;
use crate::homes::{Homes, front_of};
use crate::incident::Incidents;
use crate::lanes::Lanes;
use crate::once::Once;
use crate::plan::{Plan, Route};
use crate::recovery::Left;
use crate::store::{Commit, Durability, JournalEntry, Settlement, Store, StoreError};
use crate::target::TargetConsumer;
use crate::{Inbox, MessageId, Stop, Timestamp, recovery};

/// What all routes share while the bus runs.
pub struct Bus {
    store: Arc<dyn Store>,
    plan: RwLock<Arc<Plan>>,
    lanes: Lanes,
    homes: Homes,
    incidents: Arc<Incidents>,
    once: Once,
    tasks: TaskTracker,
    /// Ends background work and the lanes.
    stopping: Stop,
    receiving: Mutex<Receiving>,
    /// Lanes that are worked off; ends when all have stopped.
    working: Mutex<JoinSet<()>>,
}

/// The receivers that are open now.
#[derive(Default)]
struct Receiving {
    /// Those whose senders wait for the answer: a new one opens before the old one closes.
    answering: Open,
    /// Those that take things one by one: the old one ends before a new one takes over.
    taking: Open,
}

#[derive(Default)]
struct Open {
    stop: Stop,
    running: JoinSet<()>,
}

impl Open {
    async fn close(mut self) {
        self.stop.cancel();
        while self.running.join_next().await.is_some() {}
    }
}

impl Bus {
    /// A bus over `store` that will run `plan`; nothing runs until [`Bus::start`].
    pub fn new(store: Arc<dyn Store>, plan: Plan, incidents: Arc<Incidents>) -> Arc<Self> {
        Arc::new(Self {
            lanes: Lanes::new(store.clone()),
            homes: Homes::default(),
            store,
            plan: RwLock::new(Arc::new(plan)),
            incidents,
            once: Once::default(),
            tasks: TaskTracker::new(),
            stopping: Stop::new(),
            receiving: Mutex::default(),
            working: Mutex::default(),
        })
    }

    /// The durable storage.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The plan that runs now.
    pub fn plan(&self) -> Arc<Plan> {
        self.plan
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }

    /// The lanes.
    pub fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// Lanes that do not live in the store.
    pub(crate) fn homes(&self) -> &Homes {
        &self.homes
    }

    /// Says that a durable commit put something into the lane. Who hands it over to a broker is told by the store.
    pub(crate) fn wake(&self, queue: &str, key: &Arc<str>) {
        if !self.homes.is_at_broker(queue) {
            self.lanes.wake(queue, key);
        }
    }

    pub(crate) fn lock_working(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.working
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What has failed and is not mended.
    pub fn incidents(&self) -> &Arc<Incidents> {
        &self.incidents
    }

    /// Keys whose first message is on its way.
    pub(crate) fn once(&self) -> &Once {
        &self.once
    }

    /// The tasks of messages that are on their way.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Is cancelled when the bus stops.
    pub fn stopping(&self) -> &Stop {
        &self.stopping
    }

    /// The door of a route, by its name.
    pub fn inbox(self: &Arc<Self>, route: &str) -> Option<Inbox> {
        let route = self.plan().routes.get(route).cloned()?;
        Some(self.inbox_of(&route))
    }

    fn inbox_of(self: &Arc<Self>, route: &Arc<Route>) -> Inbox {
        Inbox {
            bus: self.clone(),
            route: route.clone(),
        }
    }

    /// Ends what an earlier process left open, works off the lanes and opens the receivers. On an
    /// error some receivers may be open: stop the bus then.
    pub async fn start(self: &Arc<Self>) -> Result<(), Vec<OpenError>> {
        self.sweep();
        recovery::recover(self).await;
        self.find_homes().await;
        self.work_off_lanes();
        let answering = self.open_receivers(true).await?;
        let taking = self.open_receivers(false).await?;
        *self.lock_receiving() = Receiving { answering, taking };
        self.report_orphans();
        Ok(())
    }

    /// Removes, in the background, what crashed processes staged and nobody will take up. What is
    /// staged from now on belongs to newer messages.
    fn sweep(&self) {
        let open: HashSet<MessageId> = self
            .store
            .protocols()
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        let now = Timestamp::now();
        let plan = self.plan();
        tokio::task::spawn_blocking(move || {
            let keep = |id: MessageId| open.contains(&id) || id.made_at() >= now;
            for target in plan.routes.values().flat_map(|route| route.all_targets()) {
                target.step.sender.sweep(&keep);
            }
        });
    }

    /// Swaps in a new plan; what is in flight ends on the plan that took it. Doors at which somebody
    /// waits open anew before the old ones close; receivers that take things one by one hand over.
    /// On an error the old plan goes on.
    pub async fn reload(self: &Arc<Self>, plan: Plan) -> Result<(), Vec<OpenError>> {
        let old = self.plan();
        self.swap(Arc::new(plan));
        let answering = match self.open_receivers(true).await {
            Ok(open) => open,
            Err(_) => match self.open_after_closing().await {
                Ok(open) => open,
                Err(errors) => {
                    self.swap(old);
                    let restored = self.open_receivers(true).await.unwrap_or_default();
                    let closing = std::mem::replace(&mut self.lock_receiving().answering, restored);
                    self.tasks.spawn(closing.close());
                    return Err(errors);
                }
            },
        };
        let before = std::mem::take(&mut *self.lock_receiving());
        before.answering.stop.cancel();
        before.taking.close().await;
        self.find_homes().await;
        self.work_off_lanes();
        let taking = match self.open_receivers(false).await {
            Ok(open) => open,
            Err(errors) => {
                self.swap(old);
                let restored = self.open_receivers(true).await.unwrap_or_default();
                answering.stop.cancel();
                let taking = self.open_receivers(false).await.unwrap_or_default();
                *self.lock_receiving() = Receiving {
                    answering: restored,
                    taking,
                };
                return Err(errors);
            }
        };
        // What still runs behind the old doors ends in its own time.
        self.tasks.spawn(before.answering.close());
        *self.lock_receiving() = Receiving { answering, taking };
        self.lanes.try_all();
        self.report_orphans();
        Ok(())
    }

    /// What one route has left another may take: the old doors close first, and for a moment nobody
    /// answers at them.
    async fn open_after_closing(self: &Arc<Self>) -> Result<Open, Vec<OpenError>> {
        const TRIES: u32 = 25;
        self.lock_receiving().answering.stop.cancel();
        let mut last = self.open_receivers(true).await;
        for _ in 1..TRIES {
            if last.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            last = self.open_receivers(true).await;
        }
        last
    }

    fn swap(&self, plan: Arc<Plan>) {
        *self
            .plan
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = plan;
    }

    fn lock_receiving(&self) -> std::sync::MutexGuard<'_, Receiving> {
        self.receiving
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Opens the receivers of all routes whose senders wait for the answer, or of all others.
    async fn open_receivers(self: &Arc<Self>, answering: bool) -> Result<Open, Vec<OpenError>> {
        let mut open = Open::default();
        let mut errors = Vec::new();
        let plan = self.plan();
        let routes = plan
            .routes
            .values()
            .filter(|route| route.enabled && route.answers == answering);
        for route in routes {
            let Some(receiver) = route.receiver.clone() else {
                continue;
            };
            match receiver.open(self.inbox_of(route), open.stop.clone()).await {
                Ok(running) => {
                    open.running.spawn(running);
                }
                Err(mut error) => {
                    error.message = format!("route '{}': {}", route.name, error.message);
                    errors.push(error);
                }
            }
        }
        if errors.is_empty() {
            Ok(open)
        } else {
            open.close().await;
            Err(errors)
        }
    }

    /// Has every async target's queue worked off that is not yet.
    pub(crate) fn work_off_lanes(self: &Arc<Self>) {
        let mut working = self.lock_working();
        for route in self.plan().routes.values().filter(|route| route.enabled) {
            for target in route.all_targets() {
                let Some(lane) = &target.lane else { continue };
                let front = front_of(&lane.queue);
                let came_back = !self.store.lanes(&front).is_empty();
                if came_back && !self.lanes.is_attached(&front) {
                    let consumer = TargetConsumer::before(self, &lane.queue);
                    let stopped =
                        self.lanes
                            .attach(&front, Arc::new(consumer), self.stopping.clone());
                    working.spawn(stopped);
                }
                if self.lanes.is_attached(&lane.queue) || self.homes.elsewhere(&lane.queue) {
                    continue;
                }
                let consumer = TargetConsumer::new(self, &lane.queue);
                let stopped =
                    self.lanes
                        .attach(&lane.queue, Arc::new(consumer), self.stopping.clone());
                working.spawn(stopped);
            }
        }
    }

    /// A queue that holds messages and that nobody works off is kept, and told of. What was told of
    /// places that are gone from the routes is over.
    fn report_orphans(self: &Arc<Self>) {
        let plan = self.plan();
        let there = |route: &str, step: &str| {
            let route = plan.routes.get(route);
            route.is_some_and(|route| route.enabled && route.has_part(step))
        };
        self.incidents.keep_only(there);
        self.report_orphans_at_brokers();
        for route in self.plan().routes.values().filter(|route| route.enabled) {
            for lane in route
                .all_targets()
                .filter_map(|target| target.lane.as_ref())
            {
                // What was told while its target was away is over.
                if lane.home.is_some() && self.homes.why_held(&lane.queue).is_none() {
                    self.incidents.succeeded(&lane.queue, "queue");
                }
            }
        }
        for queue in self.store.queues() {
            if self.homes.why_held(&queue.name).is_some() {
                continue;
            }
            if self.is_worked(&queue.name) {
                self.incidents.succeeded(&queue.name, "queue");
            } else if queue.depth > 0 {
                self.incidents.failed(
                    &queue.name,
                    "queue",
                    "no-consumer",
                    "no route takes the messages of this queue any more; they are kept",
                    queue.head.map(|head| head.message.id),
                    Some(&queue.name),
                );
            }
        }
    }

    /// Goes on with a decided distribution in the background, see [`recovery::finish`].
    pub(crate) fn finish_later(self: &Arc<Self>, id: MessageId, left: Vec<Left>) {
        let bus = self.clone();
        self.tasks
            .spawn(async move { recovery::finish(&bus, id, left).await });
    }

    /// Decides what an unknown outcome was: done (`commit`) or not. Gives the entry as it is then.
    pub async fn resolve(
        self: &Arc<Self>,
        id: MessageId,
        commit: bool,
    ) -> Result<JournalEntry, StoreError> {
        let entry = recovery::resolve(self, id, commit).await?;
        // A head of a queue was set aside until now.
        let route = self.plan().routes.get(&entry.route).cloned();
        if let Some(queue) = route.and_then(|route| route.reads.clone()) {
            let how = if commit {
                Settlement::Delivered
            } else {
                Settlement::Dropped
            };
            self.lanes.settle_parked(&queue, id, how).await?;
        }
        self.take_off_shelf(&entry.route, id).await;
        self.incidents.decided(&entry.route);
        Ok(entry)
    }

    /// Waits until everything that was journalled so far can be found. A store that takes no commits
    /// shows what it has.
    pub async fn catch_up(&self) {
        let nothing = Commit::default();
        if let Err(error) = self.store.commit(nothing, Durability::Synced).await {
            tracing::warn!(%error, "the newest journal entries cannot be shown");
        }
    }

    /// Tells the administrators that the store does not take messages.
    pub fn store_failed(&self, error: &StoreError) {
        let kind = match error {
            StoreError::Full(_) => "disk-full",
            _ => "store",
        };
        self.incidents
            .failed("bus", "store", kind, &error.to_string(), None, None);
    }

    /// Stops: receivers first, then what is in flight within `grace`, then the lanes, then the
    /// store. Says whether everything ended in time.
    pub async fn stop(&self, grace: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + grace;
        let receiving = std::mem::take(&mut *self.lock_receiving());
        let receivers = async {
            tokio::join!(receiving.answering.close(), receiving.taking.close());
        };
        let mut in_time = tokio::time::timeout_at(deadline, receivers).await.is_ok();
        self.stopping.cancel();
        self.tasks.close();
        in_time &= tokio::time::timeout_at(deadline, self.tasks.wait())
            .await
            .is_ok();
        let mut working = std::mem::take(&mut *self.lock_working());
        let lanes = async { while working.join_next().await.is_some() {} };
        in_time &= tokio::time::timeout_at(deadline, lanes).await.is_ok();
        self.store.close().await;
        in_time
    }
}
