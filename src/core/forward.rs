//! The forwarder: hands over what the store's queue of a lane holds to the broker that keeps the
//! lane, strictly in order, and takes out of the store what the broker has confirmed. Many are on
//! their way at once; with the first that is not confirmed all that follow are handed over again.
//!
//! A message that was handed over and not taken out in time (a crash between) is handed over again
//! under the same number; the lane's worker drops what it has delivered already.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use crate::adapter::Class;
use crate::broker::{LaneBroker, LaneEntry, LaneName, LaneWriter};
use crate::incident::Incidents;
use crate::plan::Retry;
use crate::store::{Change, Commit, Durability, EntryRef, Queued, Settlement, Store, StoreError};
use crate::{MessageId, SendError, Stop};

/// At most so many are read from the store at once.
const BATCH: usize = 256;
/// At most so many, and bytes of them, are on their way to the broker.
const WINDOW: usize = 1024;
const WINDOW_BYTES: usize = 32 << 20;
/// Confirmed ones gather for so long before the store lets go of them, so that one sync serves them
/// and the messages that come next.
const GATHER: Duration = Duration::from_millis(10);
/// So many confirmed ones may be waiting for the store to let go of them.
const UNSETTLED: usize = 4096;
/// How long a store without room is left alone.
const FULL: Duration = Duration::from_secs(1);
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
    /// Notified when something comes into either queue, and when the store has let go of something.
    pub(crate) wake: Arc<Notify>,
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
        for queue in [&self.front, &self.lane.queue] {
            self.store.watch(queue, &self.wake);
        }
        let (settle, confirmed) = mpsc::unbounded_channel();
        let (let_go, settled) = mpsc::unbounded_channel();
        let settling = tokio::spawn(self.clone().settle(confirmed, let_go));
        let work = Work::new(self.broker.writer(), settle, settled);
        self.hand_over(work, stop).await;
        self.lock_waiting().take();
        // It ends with what it has been given.
        let _ = tokio::time::timeout(LAST, settling).await;
    }

    async fn hand_over(&self, mut work: Work, stop: Stop) {
        while !stop.is_cancelled() {
            let step = tokio::select! {
                biased;
                step = self.step(&mut work) => step,
                // What may have been sent is handed over once more after the next start.
                () = self.gives_up(&stop) => return,
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
        work.forget_settled();
        if work.has_room() {
            let batch = match self.read(work) {
                Ok(batch) => batch,
                Err(error) => {
                    tracing::error!(queue = %self.lane.queue, %error, "a queue cannot be read");
                    if work.sent.is_empty() {
                        return Step::Later(Duration::from_secs(5));
                    }
                    Vec::new()
                }
            };
            if !batch.is_empty() {
                self.put(batch, work).await;
            }
        }
        if work.sent.is_empty() {
            let held = std::mem::take(&mut work.held);
            return match work.trouble.take() {
                Some(error) => self.failed(error, None, work).await,
                None if held => Step::More,
                None if work.known.len() > UNSETTLED => Step::Later(Duration::from_millis(20)),
                None => Step::Idle,
            };
        }
        let (confirmed, error) = tokio::select! {
            biased;
            confirmed = work.writer.confirmed() => confirmed,
            () = self.wake.notified(), if work.has_room() => return Step::More,
        };
        self.confirm(confirmed, work);
        self.refused.store(error.is_some(), Relaxed);
        if let Some(error) = error {
            let first = work.sent.front().cloned();
            work.start_again();
            return self.failed(error, first, work).await;
        }
        if std::mem::take(&mut work.failed) > 0 {
            self.incidents.succeeded(&self.place.0, &self.place.1);
        }
        Step::More
    }

    /// What waits and is not on its way yet.
    fn read(&self, work: &mut Work) -> Result<Vec<Queued>, StoreError> {
        // Nothing of the lane goes before the store has let go of all of the front.
        let queue = if self.store.lanes(&self.front).is_empty() {
            &self.lane.queue
        } else {
            &self.front
        };
        let limit = work.limit();
        let entries = match work.next(queue) {
            Some(from) => self.store.entries_from(queue, from, limit)?,
            None => self.store.entries(queue, false, limit + work.known.len())?,
        };
        let new = entries
            .into_iter()
            .filter(|entry| !work.known.contains(&entry.at));
        Ok(new.take(limit).collect())
    }

    async fn put(&self, batch: Vec<Queued>, work: &mut Work) {
        let (count, error) = work.writer.put(self.entries(&batch)).await;
        work.held = count < batch.len();
        if error.is_some() {
            self.refused.store(true, Relaxed);
        }
        work.trouble = error;
        for entry in &batch[..count] {
            work.push(entry);
        }
    }

    /// What comes after the broker has not taken something.
    async fn failed(&self, error: SendError, first: Option<Sent>, work: &mut Work) -> Step {
        if let (Class::Rejected, Some(first)) = (error.class, &first) {
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
            first.map(|entry| entry.id),
            Some(&self.lane.queue),
        );
        Step::Later(AGAIN.wait(work.failed))
    }

    /// What the broker will never take (too large for it) is parked in the store, and the next goes
    /// on.
    async fn set_aside(&self, entry: &Sent, error: &SendError) -> Step {
        tracing::error!(
            id = %entry.id,
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
            Some(entry.id),
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

    fn entries(&self, batch: &[Queued]) -> Vec<LaneEntry> {
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
                origin: {
                    let origin = &self.origins[usize::from(entry.at.queue != self.front)];
                    Some((origin.clone(), entry.at.seq))
                },
            })
            .collect()
    }

    /// The oldest ones have arrived.
    fn confirm(&self, count: usize, work: &mut Work) {
        if count == 0 {
            return;
        }
        let confirmed = work.pop(count);
        {
            let mut waiting = self.lock_waiting();
            for entry in &confirmed {
                if let Some(sender) = waiting
                    .as_mut()
                    .and_then(|waiting| waiting.remove(&entry.id))
                {
                    let _ = sender.send(());
                }
            }
        }
        let places = confirmed.into_iter().map(|entry| entry.at).collect();
        // The task ends after this one.
        let _ = work.settle.send(places);
    }

    /// Takes out of the store what has arrived. Synced, so that a power loss has little to hand over
    /// again; nobody waits for it.
    async fn settle(self: Arc<Self>, mut confirmed: Receiver, let_go: Sender) {
        while let Some(mut places) = confirmed.recv().await {
            tokio::time::sleep(GATHER).await;
            while let Ok(more) = confirmed.try_recv() {
                places.extend(more);
            }
            match take_out(&*self.store, &places, &let_go).await {
                Ok(()) => {
                    // Whoever hands over may have ended.
                    let _ = let_go.send(places);
                    self.wake.notify_one();
                }
                Err(error) => {
                    tracing::warn!(queue = %self.lane.queue, %error, "what the broker has could not be taken out of the store");
                }
            }
        }
    }
}

/// Takes `places` out of the store; waits for room on its disk as long as somebody forwards.
async fn take_out(
    store: &dyn Store,
    places: &[EntryRef],
    let_go: &Sender,
) -> Result<(), StoreError> {
    let settle = |at: &EntryRef| Change::Settle {
        at: at.clone(),
        how: Settlement::Forwarded,
        attempts: 0,
        error: None,
    };
    loop {
        let changes: Vec<Change> = places.iter().map(settle).collect();
        let taken = store
            .commit(Commit::from(changes), Durability::Synced)
            .await;
        match taken {
            Err(StoreError::Full(_)) if !let_go.is_closed() => tokio::time::sleep(FULL).await,
            other => return other,
        }
    }
}

type Sender = mpsc::UnboundedSender<Vec<EntryRef>>;
type Receiver = mpsc::UnboundedReceiver<Vec<EntryRef>>;

/// An entry on its way.
#[derive(Clone)]
struct Sent {
    at: EntryRef,
    id: MessageId,
    size: usize,
}

struct Work {
    writer: Box<dyn LaneWriter>,
    /// On their way, oldest first.
    sent: VecDeque<Sent>,
    /// Their sizes together.
    bytes: usize,
    /// Those, and those that the broker has and the store may still show.
    known: HashSet<EntryRef>,
    /// The queue, and the number up to which all of it has been seen.
    seen: Option<(Arc<str>, u64)>,
    /// The size of the largest of the last ones.
    size: usize,
    /// Nothing more is handed over before the fate of what is on its way is known.
    held: bool,
    trouble: Option<SendError>,
    /// Failures in a row.
    failed: u32,
    settle: Sender,
    settled: Receiver,
}

impl Work {
    fn new(writer: Box<dyn LaneWriter>, settle: Sender, settled: Receiver) -> Self {
        Self {
            writer,
            sent: VecDeque::new(),
            bytes: 0,
            known: HashSet::new(),
            seen: None,
            size: 0,
            held: false,
            trouble: None,
            failed: 0,
            settle,
            settled,
        }
    }

    /// Whether more may be handed over.
    fn has_room(&self) -> bool {
        !self.held
            && self.trouble.is_none()
            && self.sent.len() + BATCH <= WINDOW
            && self.bytes < WINDOW_BYTES
            && self.known.len() <= UNSETTLED
    }

    /// How many to read, so that it is not much more than there is room for.
    fn limit(&self) -> usize {
        let room = WINDOW_BYTES.saturating_sub(self.bytes);
        (room / self.size.max(1)).clamp(1, BATCH)
    }

    /// The number from which on to read; nothing for from the beginning.
    fn next(&self, queue: &Arc<str>) -> Option<u64> {
        let (seen, number) = self.seen.as_ref()?;
        let goes_on = !self.sent.is_empty() && seen == queue;
        goes_on.then_some(number + 1)
    }

    fn push(&mut self, entry: &Queued) {
        let size = entry.message.body.bytes().len() + entry.message.attachments.size();
        if self.size < size || self.sent.is_empty() {
            self.size = size;
        }
        self.bytes += size;
        let seen = match self.seen.take() {
            Some((queue, number)) if queue == entry.at.queue => number.max(entry.at.seq),
            _ => entry.at.seq,
        };
        self.seen = Some((entry.at.queue.clone(), seen));
        self.known.insert(entry.at.clone());
        self.sent.push_back(Sent {
            at: entry.at.clone(),
            id: entry.message.id,
            size,
        });
    }

    fn pop(&mut self, count: usize) -> Vec<Sent> {
        let count = count.min(self.sent.len());
        let popped: Vec<Sent> = self.sent.drain(..count).collect();
        self.bytes -= popped.iter().map(|entry| entry.size).sum::<usize>();
        popped
    }

    /// Nothing is on its way any more.
    fn start_again(&mut self) {
        for entry in self.sent.drain(..) {
            self.known.remove(&entry.at);
        }
        self.bytes = 0;
        self.seen = None;
        self.held = false;
        self.trouble = None;
    }

    fn forget_settled(&mut self) {
        while let Ok(places) = self.settled.try_recv() {
            for at in places {
                self.known.remove(&at);
            }
        }
    }
}

enum Step {
    /// Nothing to hand over.
    Idle,
    More,
    Later(Duration),
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::incident::tests::Values;
    use crate::{Message, Timestamp};

    struct Nowhere;

    impl LaneWriter for Nowhere {
        fn put(&mut self, entries: Vec<LaneEntry>) -> BoxFuture<'_, (usize, Option<SendError>)> {
            Box::pin(std::future::ready((entries.len(), None)))
        }

        fn confirmed(&mut self) -> BoxFuture<'_, (usize, Option<SendError>)> {
            Box::pin(std::future::pending())
        }
    }

    fn work() -> (Work, Sender) {
        let (settle, _) = mpsc::unbounded_channel();
        let (let_go, settled) = mpsc::unbounded_channel();
        (Work::new(Box::new(Nowhere), settle, settled), let_go)
    }

    fn entry(queue: &str, seq: u64, size: usize) -> Queued {
        Queued {
            at: EntryRef {
                queue: Arc::from(queue),
                key: Arc::from(""),
                seq,
            },
            message: Arc::new(Message::new(vec![b'x'; size])),
            target: Arc::from("t"),
            since: Timestamp::now(),
            cause: None,
            attempts: 0,
            last_error: None,
            next_try: None,
            parked: None,
        }
    }

    #[test]
    fn what_is_on_its_way_is_not_read_again_and_all_is_after_a_failure() {
        let (queue, front) = (Arc::from("q"), Arc::from("q.front"));
        let (mut work, let_go) = work();
        assert_eq!(work.next(&queue), None);
        for seq in [4, 7, 9] {
            work.push(&entry("q", seq, 10));
        }
        assert_eq!(work.next(&queue), Some(10));
        assert_eq!(work.next(&front), None, "another queue");
        // The oldest has arrived; the store may still show it.
        let popped = work.pop(1);
        assert_eq!((popped.len(), popped[0].at.seq, work.bytes), (1, 4, 20));
        work.start_again();
        assert_eq!((work.sent.len(), work.bytes), (0, 0));
        assert_eq!(work.next(&queue), None);
        let known = |work: &Work| work.known.iter().map(|at| at.seq).collect::<Vec<u64>>();
        assert_eq!(
            known(&work),
            [4],
            "it is not handed over again, the others are"
        );
        let_go.send(vec![popped[0].at.clone()]).unwrap();
        work.forget_settled();
        assert_eq!(known(&work), [0; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_arrived_leaves_the_store_as_soon_as_that_has_room() {
        let store = Values::default();
        store.full.store(true, Relaxed);
        let (let_go, settled) = mpsc::unbounded_channel();
        let places = [entry("q", 1, 1).at];
        let mut taking = Box::pin(take_out(&store, &places, &let_go));
        let waits = tokio::time::timeout(FULL * 5, &mut taking).await;
        assert!(waits.is_err());
        store.full.store(false, Relaxed);
        assert_eq!(taking.await, Ok(()));
        // Nobody hands over any more: the next start finds it.
        store.full.store(true, Relaxed);
        drop(settled);
        assert!(take_out(&store, &places, &let_go).await.is_err());
    }

    #[test]
    fn what_is_on_its_way_is_bounded_in_number_and_size() {
        let (mut many, _let_go) = work();
        let mut seq = 0;
        while many.has_room() {
            seq += many.limit() as u64;
            for at in 0..many.limit() as u64 {
                many.push(&entry("q", seq + at, 1));
            }
        }
        assert!(many.sent.len() > WINDOW - BATCH && many.sent.len() <= WINDOW);

        let (mut large, _let_go) = work();
        let size = WINDOW_BYTES / 4;
        while large.has_room() {
            seq += 1;
            large.push(&entry("q", seq, size));
            assert!(large.limit() <= 4, "{}", large.limit());
        }
        assert_eq!(large.sent.len(), 4);
        large.pop(4);
        assert!(large.has_room());
        large.held = true;
        assert!(!large.has_room());
    }
}
