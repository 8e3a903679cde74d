//! One queue that somebody works off: which of its lanes are ready, which are being worked on, and which
//! wait for their time. Lanes that are empty are not in memory.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Consumer, Judged, Queues, judge};
use crate::plan::LanePolicy;
use crate::store::{Change, Commit, Durability, Queued, Settlement, Store, StoreError};
use crate::{Fault, Stop, Timestamp};

/// So many messages of one lane are delivered in a row before other keys of its queue get a turn.
const TURN: usize = 32;

/// How long an administrator's command waits for a delivery that is under way.
const PATIENCE: Duration = Duration::from_secs(35);

/// One queue that somebody works off.
pub(super) struct Queue {
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
pub(super) enum Turn {
    /// Nothing waits in it.
    Empty,
    /// There is more to do.
    More,
    /// Not before this time.
    Later(Instant),
}

impl Queue {
    /// Worked off on the runtime that this is called on.
    pub(super) fn new(
        name: Arc<str>,
        store: Arc<dyn Store>,
        consumer: Arc<dyn Consumer>,
        stop: Stop,
        others: Weak<Queues>,
    ) -> Self {
        Self {
            name,
            store,
            consumer,
            stop,
            runtime: Handle::current(),
            others,
            state: Mutex::default(),
            wake: Notify::new(),
            freed: watch::channel(0).0,
            running: watch::channel(false).0,
        }
    }

    /// Resolves once it is stopped and the last delivery has ended.
    pub(super) async fn ended(&self) {
        self.stop.cancelled().await;
        let mut running = self.running.subscribe();
        // The sender lives in `self`, so that this cannot fail.
        let _ = running.wait_for(|running| !running).await;
    }

    /// Whether a delivery is under way.
    pub(super) fn is_delivering(&self) -> bool {
        let busy = |lane: &LaneState| matches!(lane, LaneState::Busy { .. });
        self.lock().lanes.values().any(busy)
    }

    /// Whether a route takes its messages now.
    pub(super) fn is_worked(&self) -> bool {
        !self.stop.is_cancelled() && self.consumer.policy().is_some()
    }

    /// Tells the consumer that an administrator has cleared what was in the way.
    pub(super) fn cleared(&self) {
        self.consumer.cleared();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes up what an earlier process left, each head at the time that was set for it.
    pub(super) fn take_up(self: &Arc<Self>) {
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

    pub(super) fn came_in(self: &Arc<Self>, key: &Arc<str>) {
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
    pub(super) fn now(self: &Arc<Self>, key: &Arc<str>) {
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
    pub(super) async fn seize(&self, key: &Arc<str>) -> Result<(), StoreError> {
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

    pub(super) fn give_back(self: &Arc<Self>, key: &Arc<str>, result: Turn) {
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
