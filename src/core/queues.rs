//! What administrators see of queues and do with their messages, wherever a queue lives.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::broker::{LaneBroker, LaneCommand, LaneDone, LaneName};
use crate::bus::Bus;
use crate::homes::{AtBroker, FRONT, front_of};
use crate::store::{
    Change, Commit, Durability, Outcome, Query, QueueStatus, Queued, Settlement, StoreError,
};
use crate::{MessageId, Timestamp};

/// What the journal says of a message that an administrator gave up.
const DROPPED: &str = "dropped by an administrator";

/// The queue at a broker that a receiver works off, as administrators see it. Nothing of it is in
/// the store.
pub trait ReceivedQueue: Send + Sync {
    /// The name under which it is shown: `CONNECTION/QUEUE`, because an embedded queue may have the
    /// plain one.
    fn name(&self) -> &Arc<str>;

    /// The connection's name in xbus.yaml.
    fn connection(&self) -> &Arc<str>;

    /// What waits at the broker and here and what is parked, and why the queue is not read or what
    /// is not known of it now. Ends within seconds.
    fn status(&self) -> BoxFuture<'_, (QueueStatus, Option<String>)>;

    /// Messages, oldest first: those that the receiver holds, or those that are parked.
    fn entries(&self, parked: bool, limit: usize)
    -> BoxFuture<'_, Result<Vec<Queued>, StoreError>>;

    /// Does what an administrator asks, with the heads that this bus holds and with what is parked.
    fn command(&self, command: LaneCommand) -> BoxFuture<'_, Result<LaneDone, StoreError>>;
}

/// How long a broker is asked that is down.
const LOOK: Duration = Duration::from_secs(3);

/// A queue with where it lives.
#[derive(Clone, Debug)]
pub struct QueueView {
    /// What waits in it, at all the places where its messages are.
    pub status: QueueStatus,
    /// The connection to the broker that keeps it; nothing for the store.
    pub connection: Option<Arc<str>>,
    /// Of a queue at a broker: how many of its messages wait in this bus's store to be handed over.
    pub in_store: u64,
    /// Why nothing of it is worked off, or what is not known of it now.
    pub trouble: Option<String>,
    /// Whether the routes, as they are now, take messages from it.
    pub attended: bool,
    /// The route whose receiver works it off; nothing for lanes and embedded queues.
    pub route: Option<Arc<str>>,
}

impl QueueView {
    async fn received(route: Arc<str>, queue: Arc<dyn ReceivedQueue>) -> Self {
        let (status, trouble) = queue.status().await;
        Self {
            status,
            connection: Some(queue.connection().clone()),
            in_store: 0,
            trouble,
            attended: true,
            route: Some(route),
        }
    }
}

impl QueueView {
    /// A lane at a broker whose target no route has now.
    async fn orphan(mut status: QueueStatus, lane: &LaneName, broker: &dyn LaneBroker) -> Self {
        let in_store = status.depth;
        let mut trouble = None;
        match tokio::time::timeout(LOOK, broker.status(lane)).await {
            Ok(Ok(there)) => {
                status.depth += there.depth;
                status.parked += there.parked;
                status.head = there.head.or(status.head);
            }
            Ok(Err(error)) => trouble = Some(error.to_string()),
            Err(_) => trouble = Some("the broker does not answer".to_owned()),
        }
        Self {
            status,
            connection: Some(Arc::from(broker.name())),
            in_store,
            trouble,
            attended: false,
            route: None,
        }
    }
}

impl Bus {
    /// The queues outside the store that routes receive from, with the routes.
    fn received(&self) -> Vec<(Arc<str>, Arc<dyn ReceivedQueue>)> {
        let plan = self.plan();
        let routes = plan.routes.values().filter(|route| route.enabled);
        routes
            .filter_map(|route| Some((route.name.clone(), route.receiver.as_ref()?.queue()?)))
            .collect()
    }

    /// Whether `name` is a queue at a broker that a receiver works off. What is released there is
    /// parked again when the bus stops before it is done.
    pub fn is_received(&self, name: &str) -> bool {
        self.received_queue(name).is_some()
    }

    fn received_queue(&self, name: &str) -> Option<(Arc<str>, Arc<dyn ReceivedQueue>)> {
        let mut received = self.received().into_iter();
        received.find(|(_, queue)| **queue.name() == *name)
    }

    /// Whether a route takes the queue's messages now.
    pub fn is_worked(&self, queue: &str) -> bool {
        self.lanes().is_worked(queue) || self.homes().is_at_broker(queue)
    }

    /// The queue that an administrator means: what came back from a broker waits under a name of its
    /// own in the store, and is the lane's.
    fn meant<'a>(&self, name: &'a str) -> &'a str {
        match name.strip_suffix(FRONT) {
            Some(lane) if self.plan().lane(lane).is_some() => lane,
            _ => name,
        }
    }

    /// The store's queue that holds the message: the lane's own, or what came back from a broker.
    fn place_of(&self, queue: &str, id: Option<MessageId>) -> Result<Arc<str>, StoreError> {
        let front = front_of(queue);
        let there = match id {
            Some(id) => self.store().entry(&front, id)?.is_some(),
            None => !self.store().lanes(&front).is_empty(),
        };
        Ok(if there { front } else { Arc::from(queue) })
    }

    /// Every queue by name: those that hold something, and the empty ones that the routes have.
    pub async fn queues(&self) -> Vec<QueueView> {
        let mut found: BTreeMap<Arc<str>, QueueStatus> = self
            .store()
            .queues()
            .into_iter()
            .map(|queue| (queue.name.clone(), queue))
            .collect();
        let plan = self.plan();
        let of_targets = plan
            .routes
            .values()
            .filter(|route| route.enabled)
            .flat_map(|route| route.all_targets())
            .filter_map(|target| target.lane.as_ref().map(|lane| &lane.queue));
        for name in of_targets.chain(plan.readers.keys()) {
            found.entry(name.clone()).or_insert_with(|| empty(name));
        }
        for (lane, _) in self.orphans() {
            found
                .entry(lane.queue.clone())
                .or_insert_with(|| empty(&lane.queue));
        }
        found.retain(|name, _| self.meant(name) == &**name);
        let views = found.into_values().map(|status| self.view(status));
        let received = self.received().into_iter();
        let received = received.map(|(route, queue)| QueueView::received(route, queue));
        let (mut views, received) = futures_util::future::join(
            futures_util::future::join_all(views),
            futures_util::future::join_all(received),
        )
        .await;
        views.extend(received);
        views.sort_by(|a, b| a.status.name.cmp(&b.status.name));
        views
    }

    /// One queue; nothing when there is none of that name.
    pub async fn queue(&self, name: &str) -> Option<QueueView> {
        if let Some((route, queue)) = self.received_queue(name) {
            return Some(QueueView::received(route, queue).await);
        }
        let name = self.meant(name);
        let held = self.store_queue(name);
        let plan = self.plan();
        let known = || {
            let lane = plan.lane(name).is_some() || plan.readers.contains_key(name);
            let orphan = || self.orphans().iter().any(|(lane, _)| &*lane.queue == name);
            (lane || orphan()).then(|| empty(&Arc::from(name)))
        };
        Some(self.view(held.or_else(known)?).await)
    }

    fn store_queue(&self, name: &str) -> Option<QueueStatus> {
        let held = self.store().queues();
        held.into_iter().find(|queue| *queue.name == *name)
    }

    async fn view(&self, mut status: QueueStatus) -> QueueView {
        if let Some(front) = self.store_queue(&front_of(&status.name)) {
            status.depth += front.depth;
            status.parked += front.parked;
            status.blocked_keys += front.blocked_keys;
            status.head = front.head.or(status.head);
        }
        let held = self.homes().why_held(&status.name);
        let Some(at) = self.homes().at_broker(&status.name) else {
            let mut orphans = self.orphans().into_iter();
            if let Some((lane, broker)) = orphans.find(|(lane, _)| lane.queue == status.name) {
                return QueueView::orphan(status, &lane, &*broker).await;
            }
            return QueueView {
                attended: held.is_none() && self.is_attended(&status.name),
                status,
                connection: None,
                in_store: 0,
                trouble: held,
                route: None,
            };
        };
        let in_store = status.depth;
        let mut trouble = None;
        match within(&at, at.broker.status(&at.lane)).await {
            Ok(there) => {
                status.depth += there.depth;
                status.parked += there.parked;
                status.blocked_keys = there.blocked_keys;
                status.head = there.head.or(status.head);
            }
            Err(error) => trouble = Some(error.to_string()),
        }
        QueueView {
            status,
            connection: Some(Arc::from(at.broker.name())),
            in_store,
            trouble,
            attended: true,
            route: None,
        }
    }

    fn is_attended(&self, queue: &str) -> bool {
        // What came back from a broker is worked off first, by the lane's own target.
        self.lanes().is_worked(queue) || !self.store().lanes(&front_of(queue)).is_empty()
    }

    /// Messages of a queue, oldest first: what waits, or what is parked.
    pub async fn queue_entries(
        &self,
        queue: &str,
        parked: bool,
        limit: usize,
    ) -> Result<Vec<Queued>, StoreError> {
        if let Some((_, queue)) = self.received_queue(queue) {
            return queue.entries(parked, limit).await;
        }
        let queue = self.meant(queue);
        let mut entries = Vec::new();
        if let Some(at) = self.homes().at_broker(queue) {
            match within(&at, at.broker.entries(&at.lane, parked, limit)).await {
                Ok(found) => entries = found,
                // The queue's trouble tells it.
                Err(error) => tracing::debug!(queue, %error, "messages at the broker are not seen"),
            }
        }
        for place in [&*front_of(queue), queue] {
            let rest = limit.saturating_sub(entries.len());
            entries.extend(self.store().entries(place, parked, rest)?);
        }
        Ok(entries)
    }

    /// One message of a queue, where it can be found.
    pub async fn queue_entry(
        &self,
        queue: &str,
        id: MessageId,
    ) -> Result<Option<Queued>, StoreError> {
        if let Some((_, queue)) = self.received_queue(queue) {
            for parked in [false, true] {
                let entries = queue.entries(parked, usize::MAX).await?;
                if let Some(entry) = entries.into_iter().find(|entry| entry.message.id == id) {
                    return Ok(Some(entry));
                }
            }
            return Ok(None);
        }
        let queue = self.meant(queue);
        if let Some(entry) = self.store().entry(&self.place_of(queue, Some(id))?, id)? {
            return Ok(Some(entry));
        }
        let Some(at) = self.homes().at_broker(queue) else {
            return Ok(None);
        };
        for parked in [false, true] {
            let entries = at.broker.entries(&at.lane, parked, usize::MAX).await?;
            if let Some(entry) = entries.into_iter().find(|entry| entry.message.id == id) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Tries heads now: all of the queue, or the one that is `id`. Gives how many.
    pub async fn queue_retry(
        &self,
        queue: &str,
        id: Option<MessageId>,
    ) -> Result<usize, StoreError> {
        if let Some((_, queue)) = self.received_queue(queue) {
            return Ok(queue.command(LaneCommand::Retry(id)).await?.heads);
        }
        let queue = self.meant(queue);
        match self.homes().at_broker(queue) {
            Some(at) => {
                let command = LaneCommand::Retry(id);
                let done = at.broker.command(&at.lane, command, at.worker()).await?;
                Ok(done.heads)
            }
            None => self.lanes().retry(&self.place_of(queue, id)?, id),
        }
    }

    /// Parks the head of the queue, or the head that is `id`. Gives its id.
    pub async fn queue_park(
        &self,
        queue: &str,
        id: Option<MessageId>,
        reason: &str,
    ) -> Result<MessageId, StoreError> {
        let nothing = || StoreError::NotFound(format!("nothing waits in queue '{queue}'"));
        if let Some((_, queue)) = self.received_queue(queue) {
            let command = LaneCommand::Park(id, reason.to_owned());
            return queue.command(command).await?.id.ok_or_else(nothing);
        }
        let queue = self.meant(queue);
        let Some(at) = self.homes().at_broker(queue) else {
            let place = self.place_of(queue, id)?;
            return self.lanes().park(&place, id, reason).await;
        };
        let command = LaneCommand::Park(id, reason.to_owned());
        let done = at.broker.command(&at.lane, command, at.worker()).await?;
        done.id.or(id).ok_or_else(nothing)
    }

    /// Drops a head or a parked message for good.
    pub async fn queue_drop(&self, queue: &str, id: MessageId) -> Result<(), StoreError> {
        if let Some((_, queue)) = self.received_queue(queue) {
            queue.command(LaneCommand::Drop(id)).await?;
            return self.journal_dropped(id).await;
        }
        let queue = self.meant(queue);
        let place = self.place_of(queue, Some(id))?;
        let Some(at) = self.homes().at_broker(queue) else {
            return self.lanes().drop_entry(&place, id).await;
        };
        if self.parked_here(&place, id)?.is_some() {
            return self.lanes().drop_entry(&place, id).await;
        }
        let command = LaneCommand::Drop(id);
        let done = at.broker.command(&at.lane, command, at.worker()).await;
        done.map(drop)
    }

    /// Puts a parked message back, before everything that is still queued.
    pub async fn queue_release(
        self: &Arc<Self>,
        queue: &str,
        id: MessageId,
    ) -> Result<(), StoreError> {
        if let Some((_, queue)) = self.received_queue(queue) {
            return queue.command(LaneCommand::Release(id)).await.map(drop);
        }
        let queue = self.meant(queue);
        let place = self.place_of(queue, Some(id))?;
        let Some(at) = self.homes().at_broker(queue) else {
            let released = self.lanes().release(&place, id).await;
            // Nobody works off what came back as long as nothing of it waits.
            self.work_off_lanes();
            return released;
        };
        // What was parked before the lane moved to the broker goes there like a new message.
        if let Some(entry) = self.parked_here(&place, id)? {
            let changes = vec![
                Change::Put {
                    queue: Arc::from(queue),
                    key: entry.at.key.clone(),
                    message: entry.message.clone(),
                    target: entry.target.clone(),
                    cause: entry.cause,
                },
                Change::Settle {
                    at: entry.at.clone(),
                    how: Settlement::Forwarded,
                    attempts: entry.attempts,
                    error: None,
                },
            ];
            self.store()
                .commit(Commit::from(changes), Durability::Synced)
                .await?;
            self.wake(queue, &entry.at.key);
            return Ok(());
        }
        let command = LaneCommand::Release(id);
        let done = at.broker.command(&at.lane, command, at.worker()).await;
        done.map(drop)
    }

    /// Takes a message that was in doubt, and has been decided, out of what its receiver set aside.
    pub(crate) async fn take_off_shelf(&self, route: &str, id: MessageId) {
        let received = self.received().into_iter();
        let found = received.map(|(name, queue)| (*name == *route, queue));
        for (_, queue) in found.filter(|(is, _)| *is) {
            match queue.command(LaneCommand::Drop(id)).await {
                Ok(_) | Err(StoreError::NotFound(_)) => {}
                Err(error) => {
                    tracing::warn!(%id, queue = %queue.name(), %error, "a message that was decided may still be parked");
                }
            }
        }
    }

    /// Journals that a received message which was to be tried again was given up.
    async fn journal_dropped(&self, id: MessageId) -> Result<(), StoreError> {
        self.catch_up().await;
        let store = self.store().clone();
        let query = Query {
            id: Some(id),
            ..Query::default()
        };
        let found = tokio::task::spawn_blocking(move || store.find(&query))
            .await
            .map_err(|error| StoreError::Failed(error.to_string()))??;
        let pending = found
            .into_iter()
            .find(|entry| entry.outcome == Outcome::Pending);
        let Some(mut entry) = pending else {
            return Ok(());
        };
        entry.outcome = Outcome::Failed;
        for target in &mut entry.targets {
            if target.outcome == Outcome::Queued {
                target.outcome = Outcome::Failed;
                target.error.get_or_insert_with(|| DROPPED.to_owned());
                target.at = Timestamp::now();
            }
        }
        let change = Change::Journal(entry);
        self.store()
            .commit(Commit::of(change), Durability::Lazy)
            .await
    }

    fn parked_here(&self, queue: &str, id: MessageId) -> Result<Option<Queued>, StoreError> {
        let entry = self.store().entry(queue, id)?;
        Ok(entry.filter(|entry| entry.parked.is_some()))
    }
}

/// Waits for the broker, but not long for one that is down.
async fn within<T>(
    at: &AtBroker,
    asked: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    if at.broker.is_up() {
        return asked.await;
    }
    let asked = tokio::time::timeout(LOOK, asked).await;
    asked.unwrap_or_else(|_| {
        Err(StoreError::Broker(format!(
            "connection '{}' is down; the messages at the broker are not seen",
            at.broker.name()
        )))
    })
}

fn empty(name: &Arc<str>) -> QueueStatus {
    QueueStatus {
        name: name.clone(),
        depth: 0,
        parked: 0,
        blocked_keys: 0,
        head: None,
    }
}
