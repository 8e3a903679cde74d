//! Lanes: queues worked off strictly first in, first out, each key of a queue a lane of its own.
//!
//! The store holds the messages; here is only who works on what. A queue that has something to do
//! has one dispatcher task; an idle one has no task, no timer and no lane in memory. The head of a
//! lane is tried until it is delivered, parked or dropped; nothing behind it is tried before.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::plan::LanePolicy;
use crate::store::{Change, Commit, Durability, EntryRef, Queued, Settlement, Store, StoreError};
use crate::{Fault, MessageId, Stop, Timestamp};

/// So many messages of one lane are delivered in a row before other keys of its queue get a turn.
const TURN: usize = 32;

/// How long an administrator's command waits for a delivery that is under way.
const PATIENCE: Duration = Duration::from_secs(35);

/// Takes what a queue gives, one message at a time per key.
pub trait Consumer: Send + Sync {
    /// How the queue is worked off now; asked anew for each message, so that a mended route mends
    /// its queue. `None`: nobody takes its messages now, they are kept.
    fn policy(&self) -> Option<LanePolicy>;

    /// Delivers the head. `Ok` gives changes to commit together with its leaving the lane. On a
    /// fault the head stays, is tried again or is parked, as the policy says.
    fn deliver<'a>(&'a self, head: &'a Queued) -> BoxFuture<'a, Result<Vec<Change>, Fault>>;

    /// Whether the head is set aside for an administrator instead of tried again: its outcome is
    /// unknown and it would be repeated blindly.
    fn sets_aside(&self, _fault: &Fault) -> bool {
        false
    }

    /// The route that delivers now, for logs.
    fn route(&self) -> Option<Arc<str>>;

    /// Told of each failed attempt, with what comes next.
    fn failed(&self, head: &Queued, fault: &Fault, parked: bool);

    /// Told of each delivery, and when an administrator has parked or dropped the head.
    fn cleared(&self);
}

/// What becomes of a head that failed.
pub(crate) struct Judged {
    /// It is set aside; else it is tried again.
    pub(crate) park: bool,
    /// How long it waits until then.
    pub(crate) wait: Duration,
}

/// Decides what becomes of a head that failed, and tells the log and the consumer.
pub(crate) fn judge(
    consumer: &dyn Consumer,
    queue: &str,
    head: &Queued,
    policy: &LanePolicy,
    fault: &Fault,
) -> Judged {
    let attempts = head.attempts + 1;
    let park = (fault.rejected && policy.park_rejected) || consumer.sets_aside(fault);
    let route = consumer.route();
    tracing::warn!(
        id = %head.message.id,
        route = route.as_deref().unwrap_or_default(),
        queue,
        attempts,
        parked = park,
        error = %fault,
        "delivery from the queue failed"
    );
    let mut shown = head.clone();
    shown.attempts = attempts;
    shown.last_error = Some(fault.in_full());
    consumer.failed(&shown, fault, park);
    let wait = policy.retry.wait(attempts);
    Judged {
        park,
        wait: wait.max(fault.retry_after.unwrap_or_default()),
    }
}

/// The lanes of the embedded store, and the work on them.
pub struct Lanes {
    store: Arc<dyn Store>,
    queues: Arc<Queues>,
}

type Queues = RwLock<HashMap<Arc<str>, Arc<Queue>>>;

/// One queue that somebody works off.
struct Queue {
    name: Arc<str>,
    store: Arc<dyn Store>,
    consumer: Arc<dyn Consumer>,
    stop: Stop,
    /// Where its lanes are worked on, whoever puts something into them: a worker that serves callers
    /// would do so with one thread.
    runtime: Handle,
    /// The other queues, for deliveries that put something into one of them.
    others: Weak<Queues>,
    state: Mutex<State>,
    /// Something became ready.
    wake: Notify,
    /// Changes whenever a lane stops being busy.
    freed: watch::Sender<u64>,
    /// True while the dispatcher runs.
    running: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    lanes: HashMap<Arc<str>, LaneState>,
    ready: VecDeque<Arc<str>>,
    waiting: BinaryHeap<Reverse<(Instant, Arc<str>)>>,
    dispatching: bool,
}

#[derive(PartialEq)]
enum LaneState {
    /// In `ready`.
    Ready,
    /// Being worked on; `again` when something came in meanwhile.
    Busy { again: bool },
    /// Its head failed and is tried again at this time.
    Waiting(Instant),
}

/// What a turn at a lane found out.
enum Turn {
    /// Nothing waits in it.
    Empty,
    /// There is more to do.
    More,
    /// Not before this time.
    Later(Instant),
}

impl Lanes {
    /// Over `store`; nothing is worked off until [`Lanes::attach`].
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            queues: Arc::default(),
        }
    }

    /// Has `consumer` work off `queue` until `stop`, on the runtime that this is called on; what it
    /// gives resolves once the last delivery has ended after that.
    pub fn attach(
        &self,
        queue: &Arc<str>,
        consumer: Arc<dyn Consumer>,
        stop: Stop,
    ) -> BoxFuture<'static, ()> {
        let working = Arc::new(Queue {
            name: queue.clone(),
            store: self.store.clone(),
            consumer,
            stop: stop.clone(),
            runtime: Handle::current(),
            others: Arc::downgrade(&self.queues),
            state: Mutex::default(),
            wake: Notify::new(),
            freed: watch::channel(0).0,
            running: watch::channel(false).0,
        });
        working.take_up();
        self.queues
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .insert(queue.clone(), working.clone());
        Box::pin(async move {
            stop.cancelled().await;
            let mut running = working.running.subscribe();
            // The sender lives in `working`, so that this cannot fail.
            let _ = running.wait_for(|running| !running).await;
        })
    }

    /// Says that a durable commit put something into the lane.
    pub fn wake(&self, queue: &str, key: &Arc<str>) {
        if let Some(queue) = self.working(queue) {
            queue.came_in(key);
        }
    }

    /// Whether a delivery of the lane is under way, and whether anybody works the queue off.
    pub fn is_delivering(&self, queue: &str) -> bool {
        self.working(queue).is_some_and(|queue| {
            queue
                .lock()
                .lanes
                .values()
                .any(|lane| matches!(lane, LaneState::Busy { .. }))
        })
    }

    /// Whether a route takes the queue's messages now.
    pub fn is_worked(&self, queue: &str) -> bool {
        self.working(queue)
            .is_some_and(|queue| !queue.stop.is_cancelled() && queue.consumer.policy().is_some())
    }

    /// Tries every head that waits for its time: the routes have changed, and what they waited for
    /// may be mended.
    pub fn try_all(&self) {
        let all: Vec<Arc<Queue>> = self
            .queues
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .values()
            .cloned()
            .collect();
        for queue in all {
            self.resume(&queue.name);
        }
    }

    /// Tries the heads of one queue that wait for others to go first.
    pub(crate) fn resume(&self, queue: &str) {
        if let Some(working) = self.working(queue) {
            for lane in self.store.lanes(queue) {
                working.now(&lane.key);
            }
        }
    }

    /// Whether somebody has been attached to the queue.
    pub fn is_attached(&self, queue: &str) -> bool {
        self.working(queue).is_some()
    }

    fn working(&self, queue: &str) -> Option<Arc<Queue>> {
        self.queues
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .get(queue)
            .cloned()
    }

    /// Tries heads that wait for their time now: all of the queue, or the one that holds `id`.
    pub fn retry(&self, queue: &str, id: Option<MessageId>) -> Result<usize, StoreError> {
        let keys: Vec<Arc<str>> = match id {
            Some(id) => {
                let at = self.find(queue, id)?.at;
                let head = self.store.head(queue, &at.key)?;
                if head.is_none_or(|head| head.at.seq != at.seq) {
                    return Err(StoreError::NotFound(format!(
                        "message {id} is not the head of its lane; only heads can be retried"
                    )));
                }
                vec![at.key]
            }
            None => self
                .store
                .lanes(queue)
                .into_iter()
                .map(|lane| lane.key)
                .collect(),
        };
        if keys.is_empty() {
            return Err(StoreError::NotFound(format!(
                "queue '{queue}' holds nothing that could be retried"
            )));
        }
        if let Some(working) = self.working(queue) {
            keys.iter().for_each(|key| working.now(key));
        }
        Ok(keys.len())
    }

    /// Parks the head of the queue, or the head that holds `id`.
    pub async fn park(
        &self,
        queue: &str,
        id: Option<MessageId>,
        reason: &str,
    ) -> Result<MessageId, StoreError> {
        let at = match id {
            Some(id) => self.find(queue, id)?.at,
            None => self.oldest(queue)?,
        };
        self.with_lane(&at, |head| {
            if head.at.seq != at.seq {
                return Err(StoreError::NotFound(format!(
                    "message {} is not the head of its lane; only heads can be parked",
                    id.unwrap_or(head.message.id)
                )));
            }
            Ok(Change::Park {
                at: head.at.clone(),
                reason: reason.to_owned(),
            })
        })
        .await
    }

    /// Drops a head or a parked message for good.
    pub async fn drop_entry(&self, queue: &str, id: MessageId) -> Result<(), StoreError> {
        let entry = self.find(queue, id)?;
        let settle = |entry: &Queued| Change::Settle {
            at: entry.at.clone(),
            how: Settlement::Dropped,
            attempts: entry.attempts,
            error: Some("dropped by an administrator".to_owned()),
        };
        if entry.parked.is_some() {
            let commit = Commit::of(settle(&entry));
            self.store.commit(commit, Durability::Synced).await?;
            self.unless_blocked(queue);
            return Ok(());
        }
        self.with_lane(&entry.at, |head| {
            if head.at.seq == entry.at.seq {
                Ok(settle(head))
            } else {
                Err(StoreError::NotFound(format!(
                    "message {id} is neither a head nor parked; only those can be dropped"
                )))
            }
        })
        .await
        .map(drop)
    }

    /// Puts a parked message back, before everything that entered its lane after it.
    pub async fn release(&self, queue: &str, id: MessageId) -> Result<(), StoreError> {
        let entry = self.find(queue, id)?;
        if entry.parked.is_none() {
            return Err(StoreError::NotFound(format!(
                "message {id} is not parked in queue '{queue}'"
            )));
        }
        let working = self.working(queue);
        if let Some(working) = &working {
            working.seize(&entry.at.key).await?;
        }
        let change = Change::Release {
            at: entry.at.clone(),
        };
        let result = self
            .store
            .commit(Commit::of(change), Durability::Synced)
            .await;
        if let Some(working) = &working {
            working.give_back(&entry.at.key, Turn::More);
        }
        result
    }

    /// Settles what was set aside and has been decided otherwise; nothing when it is not there.
    pub(crate) async fn settle_parked(
        &self,
        queue: &str,
        id: MessageId,
        how: Settlement,
    ) -> Result<(), StoreError> {
        let Some(entry) = self.store.entry(queue, id)? else {
            return Ok(());
        };
        let change = Change::Settle {
            at: entry.at.clone(),
            how,
            attempts: entry.attempts,
            error: entry.last_error.clone(),
        };
        self.store
            .commit(Commit::of(change), Durability::Synced)
            .await?;
        self.unless_blocked(queue);
        Ok(())
    }

    /// Tells the consumer that nothing is blocked, when that is so after an administrator's command.
    fn unless_blocked(&self, queue: &str) {
        let blocked = self.store.lanes(queue).iter().any(|lane| lane.attempts > 0);
        let parked = self
            .store
            .entries(queue, true, 1)
            .is_ok_and(|parked| !parked.is_empty());
        if let (false, false, Some(working)) = (blocked, parked, self.working(queue)) {
            working.consumer.cleared();
        }
    }

    fn find(&self, queue: &str, id: MessageId) -> Result<Queued, StoreError> {
        self.store
            .entry(queue, id)?
            .ok_or_else(|| StoreError::NotFound(format!("queue '{queue}' holds no message {id}")))
    }

    fn oldest(&self, queue: &str) -> Result<EntryRef, StoreError> {
        self.store
            .lanes(queue)
            .into_iter()
            .min_by_key(|lane| lane.head_seq)
            .map(|lane| EntryRef {
                queue: Arc::from(queue),
                key: lane.key,
                seq: lane.head_seq,
            })
            .ok_or_else(|| StoreError::NotFound(format!("nothing waits in queue '{queue}'")))
    }

    /// Commits what `change` makes of the lane's head while nobody delivers it.
    async fn with_lane(
        &self,
        at: &EntryRef,
        change: impl FnOnce(&Queued) -> Result<Change, StoreError>,
    ) -> Result<MessageId, StoreError> {
        let working = self.working(&at.queue);
        if let Some(working) = &working {
            working.seize(&at.key).await?;
        }
        let result = self.change_head(at, change).await;
        if let Some(working) = &working {
            working.give_back(&at.key, Turn::More);
            if result.is_ok() {
                working.consumer.cleared();
            }
        }
        result
    }

    async fn change_head(
        &self,
        at: &EntryRef,
        change: impl FnOnce(&Queued) -> Result<Change, StoreError>,
    ) -> Result<MessageId, StoreError> {
        let head = self.store.head(&at.queue, &at.key)?.ok_or_else(|| {
            StoreError::NotFound(format!("nothing waits in queue '{}'", at.queue))
        })?;
        let commit = Commit::of(change(&head)?);
        self.store.commit(commit, Durability::Synced).await?;
        Ok(head.message.id)
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes up what an earlier process left, each head at the time that was set for it.
    fn take_up(self: &Arc<Self>) {
        let now = Timestamp::now();
        let mut state = self.lock();
        // A clock that was set back must not stop a lane for longer than its longest wait.
        let longest = self
            .consumer
            .policy()
            .map_or(Duration::from_secs(300), |policy| policy.retry.max);
        for lane in self.store.lanes(&self.name) {
            match lane.next_try {
                Some(at) if at > now => {
                    state.wait(&lane.key, Instant::now() + now.until(at).min(longest));
                }
                _ => state.make_ready(&lane.key),
            }
        }
        self.dispatch(&mut state);
    }

    fn came_in(self: &Arc<Self>, key: &Arc<str>) {
        let mut state = self.lock();
        match state.lanes.get_mut(key) {
            Some(LaneState::Busy { again }) => *again = true,
            // It is known already that there is something to do, or that it must wait.
            Some(_) => {}
            None => {
                state.make_ready(key);
                self.dispatch(&mut state);
            }
        }
    }

    /// Tries the head of a lane that waits for its time now.
    fn now(self: &Arc<Self>, key: &Arc<str>) {
        let mut state = self.lock();
        if let Some(LaneState::Waiting(_)) = state.lanes.get(key) {
            state.make_ready(key);
            self.dispatch(&mut state);
        }
    }

    /// Makes sure that the dispatcher sees what is ready.
    fn dispatch(self: &Arc<Self>, state: &mut State) {
        if state.lanes.is_empty() || self.stop.is_cancelled() {
            return;
        }
        if state.dispatching {
            self.wake.notify_one();
        } else {
            state.dispatching = true;
            self.running.send_replace(true);
            self.runtime.spawn(self.clone().run());
        }
    }

    async fn run(self: Arc<Self>) {
        let mut turns = JoinSet::new();
        loop {
            let until = {
                let mut state = self.lock();
                state.promote(Instant::now());
                let places = self
                    .consumer
                    .policy()
                    .map_or(1, |policy| policy.concurrency.max(1));
                while turns.len() < places && !self.stop.is_cancelled() {
                    let Some(key) = state.ready.pop_front() else {
                        break;
                    };
                    if state.lanes.get(&key) != Some(&LaneState::Ready) {
                        continue;
                    }
                    state
                        .lanes
                        .insert(key.clone(), LaneState::Busy { again: false });
                    turns.spawn(self.clone().turn(key));
                }
                let stopped = self.stop.is_cancelled();
                if turns.is_empty() && (stopped || state.lanes.is_empty()) {
                    state.dispatching = false;
                    self.running.send_replace(false);
                    return;
                }
                if stopped { None } else { state.next_time() }
            };
            let timer = async {
                match until {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let stopping = self.stop.is_cancelled();
            tokio::select! {
                () = self.wake.notified() => {}
                () = timer => {}
                () = self.stop.cancelled(), if !stopping => {}
                Some(ended) = turns.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(queue = %self.name, %error, "a delivery ended by a defect of the bus");
                    }
                }
            }
        }
    }

    /// Works on one lane until it is empty, must wait, or others want their turn.
    async fn turn(self: Arc<Self>, key: Arc<str>) {
        let mut hold = Hold::new(self, key);
        for _ in 0..TURN {
            // What stands when this attempt ends by a panic.
            hold.result = Turn::Later(Instant::now() + Duration::from_secs(5));
            let result = hold.queue.head(&hold.key).await;
            let more = matches!(result, Turn::More);
            hold.result = result;
            if !more || hold.queue.stop.is_cancelled() {
                break;
            }
        }
    }

    /// Tries the head once.
    async fn head(&self, key: &Arc<str>) -> Turn {
        let head = match self.store.head(&self.name, key) {
            Ok(Some(head)) => head,
            Ok(None) => return Turn::Empty,
            Err(error) => {
                tracing::error!(queue = %self.name, %error, "the head of a lane cannot be read");
                return Turn::Later(Instant::now() + Duration::from_secs(5));
            }
        };
        let Some(policy) = self.consumer.policy() else {
            return Turn::Later(Instant::now() + Duration::from_secs(60));
        };
        match self.consumer.deliver(&head).await {
            Ok(changes) => self.delivered(&head, changes).await,
            Err(fault) => self.failed(&head, &policy, fault).await,
        }
    }

    async fn delivered(&self, head: &Queued, mut changes: Vec<Change>) -> Turn {
        changes.push(Change::Settle {
            at: head.at.clone(),
            how: Settlement::Delivered,
            attempts: head.attempts + 1,
            error: None,
        });
        tracing::debug!(
            id = %head.message.id,
            queue = %self.name,
            attempts = head.attempts + 1,
            "delivered from the queue"
        );
        match self.settle(&changes).await {
            Ok(()) => {
                self.consumer.cleared();
                self.wake_others(&changes);
                Turn::More
            }
            Err(later) => later,
        }
    }

    async fn failed(&self, head: &Queued, policy: &LanePolicy, fault: Fault) -> Turn {
        let attempts = head.attempts + 1;
        let Judged { park, wait } = judge(&*self.consumer, &self.name, head, policy, &fault);
        let note = Change::Attempt {
            at: head.at.clone(),
            attempts,
            error: fault.in_full(),
            next_try: Timestamp::now().after(wait),
        };
        if park {
            let aside = Change::Park {
                at: head.at.clone(),
                reason: fault.in_full(),
            };
            return match self.settle(&[note, aside]).await {
                Ok(()) => Turn::More,
                Err(later) => later,
            };
        }
        if let Err(error) = self.store.commit(Commit::of(note), Durability::Lazy).await {
            tracing::warn!(queue = %self.name, %error, "a failed attempt could not be noted");
        }
        Turn::Later(Instant::now() + wait)
    }

    /// Commits what ended; what was delivered is not delivered again while this process lives.
    async fn settle(&self, changes: &[Change]) -> Result<(), Turn> {
        loop {
            let commit = Commit::from(changes.to_vec());
            match self.store.commit(commit, Durability::Synced).await {
                Ok(()) => return Ok(()),
                Err(error @ StoreError::Full(_)) if !self.stop.is_cancelled() => {
                    tracing::error!(queue = %self.name, %error, "a delivery cannot be noted; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(error) => {
                    tracing::error!(queue = %self.name, %error, "a delivery could not be noted");
                    return Err(Turn::Later(Instant::now() + Duration::from_secs(3600)));
                }
            }
        }
    }

    fn wake_others(&self, changes: &[Change]) {
        for change in changes {
            let Change::Put { queue, key, .. } = change else {
                continue;
            };
            let other = self.others.upgrade().and_then(|queues| {
                queues
                    .read()
                    .unwrap_or_else(|poisoned| poisoned.into_inner())
                    .get(queue)
                    .cloned()
            });
            if let Some(other) = other {
                other.came_in(key);
            }
        }
    }

    /// Takes a lane away from the dispatcher for an administrator's command.
    async fn seize(&self, key: &Arc<str>) -> Result<(), StoreError> {
        let mut freed = self.freed.subscribe();
        let deadline = Instant::now() + PATIENCE;
        loop {
            freed.mark_unchanged();
            {
                let mut state = self.lock();
                if !matches!(state.lanes.get(key), Some(LaneState::Busy { .. })) {
                    state
                        .lanes
                        .insert(key.clone(), LaneState::Busy { again: false });
                    return Ok(());
                }
            }
            if tokio::time::timeout_at(deadline, freed.changed())
                .await
                .is_err()
            {
                return Err(StoreError::NotFound(format!(
                    "a delivery from queue '{}' is under way; try again when it has ended",
                    self.name
                )));
            }
        }
    }

    fn give_back(self: &Arc<Self>, key: &Arc<str>, result: Turn) {
        {
            let mut state = self.lock();
            let again = state.lanes.get(key) == Some(&LaneState::Busy { again: true });
            match result {
                Turn::Empty if !again => {
                    state.lanes.remove(key);
                }
                Turn::Empty | Turn::More => state.make_ready(key),
                Turn::Later(at) => state.wait(key, at),
            }
            self.dispatch(&mut state);
        }
        self.freed.send_modify(|count| *count += 1);
    }
}

/// A lane that is being worked on: it is given back however the work ends, by a defect too.
struct Hold {
    queue: Arc<Queue>,
    key: Arc<str>,
    result: Turn,
}

impl Hold {
    fn new(queue: Arc<Queue>, key: Arc<str>) -> Self {
        Self {
            queue,
            key,
            result: Turn::More,
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let result = std::mem::replace(&mut self.result, Turn::More);
        self.queue.give_back(&self.key, result);
    }
}

impl State {
    fn make_ready(&mut self, key: &Arc<str>) {
        self.lanes.insert(key.clone(), LaneState::Ready);
        self.ready.push_back(key.clone());
    }

    fn wait(&mut self, key: &Arc<str>, until: Instant) {
        self.lanes.insert(key.clone(), LaneState::Waiting(until));
        self.waiting.push(Reverse((until, key.clone())));
    }

    /// Makes lanes ready whose time has come.
    fn promote(&mut self, now: Instant) {
        while let Some(Reverse((at, _))) = self.waiting.peek() {
            if *at > now {
                return;
            }
            if let Some(Reverse((at, key))) = self.waiting.pop() {
                // A lane that was retried early left an old time behind.
                if self.lanes.get(&key) == Some(&LaneState::Waiting(at)) {
                    self.make_ready(&key);
                }
            }
        }
    }

    /// When the next waiting lane's time comes.
    fn next_time(&self) -> Option<Instant> {
        self.waiting.peek().map(|Reverse((at, _))| *at)
    }
}
