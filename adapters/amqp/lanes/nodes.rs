//! The partitions that this node works on, the nodes that share the broker with it, and what they
//! ask of each other.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use xbus_core::MessageId;
use xbus_core::progress::Progress;
use xbus_core::store::StoreError;

use super::control;
use super::failure::Failure;
use super::names;
use super::seat::{Act, Seat};
use super::state::count;
use super::takeover::Takeover;
use super::wire::{Answer, Ask, Delivered, Head, Hello, Said};
use crate::link::Link;

/// A node that was not heard for so long is gone; nodes speak every two seconds.
const GONE: Duration = Duration::from_secs(8);
/// Lanes are left to a node that has been there for so long.
const SETTLED: Duration = Duration::from_secs(5);
/// How long the answers of other nodes are waited for.
const ANSWERS: Duration = Duration::from_secs(2);
/// How long a command waits for an attempt that is under way.
const PATIENCE: Duration = Duration::from_secs(35);
/// Nodes answer a greeting within this time.
const GREETING: Duration = Duration::from_millis(500);

/// What the tasks of one connection share.
pub(super) struct Nodes {
    pub(super) link: Arc<Link>,
    /// Tells this run of this node from every other.
    pub(super) instance: String,
    seats: Mutex<HashMap<Arc<str>, Arc<Seat>>>,
    peers: Mutex<HashMap<String, Peer>>,
    /// What was delivered since others were told: by queue and origin.
    delivered: Mutex<Numbers>,
    /// Queues beside lanes that were not there when they were looked at; asking for one costs a
    /// channel, and a line in the broker's log.
    absent: Mutex<HashSet<Arc<str>>>,
    asked: Mutex<HashMap<u64, mpsc::UnboundedSender<(String, Answer)>>>,
    number: AtomicU64,
    control: Mutex<Option<mpsc::UnboundedSender<Out>>>,
    /// Since when the control queue is there.
    up: watch::Sender<Option<Instant>>,
}

/// By queue and origin.
type Numbers = HashMap<(Arc<str>, Arc<str>), Progress>;

/// Another node.
struct Peer {
    node: String,
    lanes: HashSet<String>,
    first: Instant,
    last: Instant,
    /// It has not answered, and was not heard of since.
    silent: bool,
}

/// What the control task is to send.
pub(super) enum Out {
    /// To every node.
    All(Said),
    /// To one node's queue.
    To(String, Said),
    /// Say what this node does now.
    Hello,
}

static PROCESS: OnceLock<String> = OnceLock::new();
static INSTANCES: AtomicU64 = AtomicU64::new(0);

fn process() -> &'static str {
    PROCESS.get_or_init(|| uuid::Uuid::new_v4().simple().to_string())
}

/// A new name, which no other has, in this process or another.
fn instance() -> String {
    let number = INSTANCES.fetch_add(1, Ordering::Relaxed);
    format!("{}-{number}", process())
}

fn is_this_process(instance: &str) -> bool {
    instance.starts_with(process())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nodes {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self {
            link,
            instance: instance(),
            seats: Mutex::default(),
            peers: Mutex::default(),
            delivered: Mutex::default(),
            absent: Mutex::default(),
            asked: Mutex::default(),
            number: AtomicU64::new(0),
            control: Mutex::default(),
            up: watch::channel(None).0,
        }
    }

    /// Messages that a queue beside a lane holds ready.
    pub(super) async fn count_beside(&self, queue: Arc<str>) -> Result<u64, Failure> {
        // Without the others' word nothing is known of what they declare.
        let hears = self.up.borrow().is_some();
        if hears && lock(&self.absent).contains(&queue) {
            return Ok(0);
        }
        let found = count(&self.link, &queue).await?;
        if found.is_none() && hears {
            lock(&self.absent).insert(queue);
        }
        Ok(found.map_or(0, |(ready, _)| u64::from(ready)))
    }

    /// A queue beside a lane was declared.
    pub(super) fn made(&self, queue: &str) {
        lock(&self.absent).remove(queue);
    }

    /// Declared one here: the others are told.
    pub(super) fn tell_made(self: &Arc<Self>, queue: &str) {
        self.made(queue);
        self.say(Out::All(Said::Made {
            queue: queue.to_owned(),
        }));
    }

    /// Takes partitions up, and tells the others.
    pub(super) fn enlist(self: &Arc<Self>, seats: &[Arc<Seat>]) {
        let mut all = lock(&self.seats);
        for seat in seats {
            all.insert(seat.queue.clone(), seat.clone());
        }
        drop(all);
        self.say(Out::Hello);
    }

    /// Lays partitions down.
    pub(super) fn dismiss(self: &Arc<Self>, seats: &[Arc<Seat>]) {
        let mut all = lock(&self.seats);
        for seat in seats {
            if all
                .get(&seat.queue)
                .is_some_and(|there| Arc::ptr_eq(there, seat))
            {
                all.remove(&seat.queue);
            }
        }
        drop(all);
        self.say(Out::Hello);
    }

    /// Whether this node works on anything.
    pub(super) fn is_idle(&self) -> bool {
        lock(&self.seats).is_empty()
    }

    /// The seat of a queue.
    pub(super) fn seat(&self, queue: &str) -> Option<Arc<Seat>> {
        lock(&self.seats).get(queue).cloned()
    }

    /// The seats of a lane, or all.
    pub(super) fn seats(&self, lane: Option<&str>) -> Vec<Arc<Seat>> {
        lock(&self.seats)
            .values()
            .filter(|seat| lane.is_none_or(|lane| &*seat.lane.queue == lane))
            .cloned()
            .collect()
    }

    /// Sends by the control task, which is started when it does not run.
    pub(super) fn say(self: &Arc<Self>, out: Out) {
        let mut control = lock(&self.control);
        let sender = control.get_or_insert_with(|| {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(control::run(self.clone(), receiver));
            sender
        });
        // The receiver is dropped under the lock only, so that this cannot fail.
        let _ = sender.send(out);
    }

    /// Ends the control task, unless there is something to send.
    pub(super) fn end_control(&self, receiver: &mpsc::UnboundedReceiver<Out>) -> bool {
        let mut control = lock(&self.control);
        if receiver.is_empty() && self.is_idle() {
            *control = None;
            self.up.send_replace(None);
            return true;
        }
        false
    }

    /// The control queue is there, or no longer.
    pub(super) fn set_up(&self, up: bool) {
        // What was declared meanwhile was not heard of.
        lock(&self.absent).clear();
        self.up.send_replace(up.then(Instant::now));
    }

    /// What this node says of itself.
    pub(super) fn hello(&self, asks: bool) -> Hello {
        let mut open: HashMap<String, bool> = HashMap::new();
        for seat in self.seats(None) {
            let all = open.entry(seat.lane.queue.to_string()).or_insert(true);
            *all &= seat.is_open();
        }
        let delivered = std::mem::take(&mut *lock(&self.delivered));
        Hello {
            instance: self.instance.clone(),
            node: self.link.node().to_string(),
            lanes: open
                .into_iter()
                .filter_map(|(lane, open)| open.then_some(lane))
                .collect(),
            delivered: delivered
                .into_iter()
                .map(|((queue, origin), progress)| Delivered::new(&queue, &origin, &progress))
                .collect(),
            asks,
        }
    }

    /// Notes what was delivered, for the others to know should they get it again.
    pub(super) fn delivered(&self, queue: &Arc<str>, origin: &Arc<str>, progress: Progress) {
        lock(&self.delivered).insert((queue.clone(), origin.clone()), progress);
    }

    /// Another node has delivered messages.
    pub(super) fn learn(&self, delivered: Delivered) {
        let origin = delivered.origin.clone();
        if let Some(seat) = self.seat(&delivered.queue)
            && let Some(theirs) = delivered.progress()
        {
            let mut progress = seat.worker.progress(seat.index, &origin);
            if progress.learn(&theirs) {
                // Nobody waits: what was handed over twice meanwhile is found out here.
                drop(seat.worker.set_progress(seat.index, &origin, progress));
            }
        }
    }

    /// Another node has spoken.
    pub(super) fn heard(self: &Arc<Self>, hello: Hello) {
        for delivered in hello.delivered {
            self.learn(delivered);
        }
        let now = Instant::now();
        let mut peers = lock(&self.peers);
        let new = !peers.contains_key(&hello.instance);
        if new && hello.node == **self.link.node() && !is_this_process(&hello.instance) {
            tracing::error!(
                node = %hello.node,
                "another bus on this broker has the same name; set `node` in xbus.yaml, or reports \
                 of deliveries reach the wrong journal"
            );
        }
        let peer = peers.entry(hello.instance).or_insert_with(|| Peer {
            node: hello.node.clone(),
            lanes: HashSet::new(),
            first: now,
            last: now,
            silent: false,
        });
        if now.duration_since(peer.last) > GONE {
            peer.first = now;
        }
        peer.last = now;
        peer.silent = false;
        peer.lanes = hello.lanes.into_iter().collect();
        drop(peers);
        if new || hello.asks {
            self.say(Out::Hello);
        }
    }

    /// Another node goes.
    pub(super) fn left(&self, instance: &str) {
        lock(&self.peers).remove(instance);
    }

    /// Forgets nodes that were not heard of for long.
    pub(super) fn sweep(&self) {
        lock(&self.peers).retain(|_, peer| peer.last.elapsed() < 4 * GONE);
    }

    /// Whether a partition that this node works on belongs to another one, which is ready for it.
    pub(super) fn belongs_elsewhere(&self, seat: &Seat) -> bool {
        let own = self.link.node();
        let peers = lock(&self.peers);
        let ready = peers
            .values()
            .filter(|peer| {
                peer.last.elapsed() < GONE
                    && peer.first.elapsed() >= SETTLED
                    && peer.lanes.contains(&*seat.lane.queue)
            })
            .map(|peer| peer.node.as_str());
        let all = ready.chain(std::iter::once(&**own));
        names::preferred(&seat.queue, all).is_some_and(|node| node != &**own)
    }

    /// Begins to ask the other nodes whether they have let go of a queue; see [`Takeover`].
    pub(super) fn take_over(self: &Arc<Self>, queue: &Arc<str>) -> Takeover {
        let up = *self.up.borrow();
        let peers: Vec<String> = lock(&self.peers)
            .iter()
            // Nobody could be heard of while the control queue was not there.
            .filter(|(_, peer)| {
                !peer.silent && up.is_none_or(|up| peer.last.max(up).elapsed() < GONE)
            })
            .map(|(instance, _)| instance.clone())
            .collect();
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let (sender, answers) = mpsc::unbounded_channel();
        if !peers.is_empty() {
            lock(&self.asked).insert(number, sender);
        }
        Takeover::new(self.clone(), queue.clone(), peers, number, answers)
    }

    /// Asks the others once more.
    pub(super) fn ask_to_let_go(self: &Arc<Self>, number: u64, queue: &str) {
        if self.up.borrow().is_some() {
            let queue = queue.to_owned();
            let ask = Ask::LetGo { queue };
            self.say(Out::All(Said::Ask { number, ask }));
        }
    }

    /// Nobody waits for these answers any more.
    pub(super) fn asked_enough(&self, number: u64) {
        lock(&self.asked).remove(&number);
    }

    /// These gave no answer: they are not waited for before they are heard of again.
    pub(super) fn note_silent(&self, instances: &[String]) {
        let mut peers = lock(&self.peers);
        for instance in instances {
            if let Some(peer) = peers.get_mut(instance) {
                peer.silent = true;
            }
        }
    }

    /// Since when the others can be asked.
    pub(super) fn up_since(&self) -> Option<Instant> {
        *self.up.borrow()
    }

    /// Asks every node, this one included, and waits for what they answer.
    pub(super) async fn ask(self: &Arc<Self>, ask: Ask) -> Vec<Answer> {
        let own = self.answer(ask.clone(), None);
        let others = self.ask_others(ask);
        let (own, mut answers) = tokio::join!(own, others);
        answers.push(own);
        answers
    }

    async fn ask_others(self: &Arc<Self>, ask: Ask) -> Vec<Answer> {
        if !self.met_others().await {
            return Vec::new();
        }
        let mut waiting: HashSet<String> = lock(&self.peers)
            .iter()
            .filter(|(_, peer)| peer.last.elapsed() < GONE)
            .map(|(instance, _)| instance.clone())
            .collect();
        if waiting.is_empty() {
            return Vec::new();
        }
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let (sender, mut receiver) = mpsc::unbounded_channel();
        lock(&self.asked).insert(number, sender);
        self.say(Out::All(Said::Ask { number, ask }));
        let mut answers = Vec::new();
        let mut until = Instant::now() + ANSWERS;
        while !waiting.is_empty() {
            match tokio::time::timeout_at(until, receiver.recv()).await {
                Ok(Some((_, answer))) if answer.later => {
                    until = until.max(Instant::now() + PATIENCE + ANSWERS);
                }
                Ok(Some((instance, answer))) => {
                    waiting.remove(&instance);
                    answers.push(answer);
                }
                Ok(None) | Err(_) => break,
            }
        }
        lock(&self.asked).remove(&number);
        answers
    }

    /// Waits until the others have had the time to greet this node, if it has just come.
    async fn met_others(self: &Arc<Self>) -> bool {
        let mut up = self.up.subscribe();
        if up.borrow().is_none() {
            self.say(Out::Hello);
        }
        let since = tokio::time::timeout(ANSWERS, up.wait_for(Option::is_some))
            .await
            .ok()
            .and_then(Result::ok)
            .and_then(|since| *since);
        match since {
            Some(since) => {
                tokio::time::sleep_until(since + GREETING).await;
                true
            }
            None => false,
        }
    }

    /// An answer came in.
    pub(super) fn answered(&self, number: u64, instance: String, answer: Answer) {
        if let Some(sender) = lock(&self.asked).get(&number) {
            // Nobody waits any more: too late.
            let _ = sender.send((instance, answer));
        }
    }

    /// Answers for this node. `later` is called when it takes longer.
    pub(super) async fn answer(&self, ask: Ask, later: Option<&(dyn Fn() + Sync)>) -> Answer {
        match ask {
            Ask::Heads { lane } => Answer {
                heads: self
                    .seats(Some(&lane))
                    .iter()
                    .flat_map(|seat| {
                        let held = seat.held();
                        let queue = seat.queue.clone();
                        held.into_iter().map(move |head| Head::of(&queue, &head))
                    })
                    .collect(),
                ..Answer::default()
            },
            Ask::Front { queue } => {
                if let Some(seat) = self.seat(&queue) {
                    seat.look_at_front();
                }
                Answer::default()
            }
            Ask::Retry { lane, id } => {
                let id = id.and_then(|id| id.parse::<MessageId>().ok());
                self.retry(&lane, id).await
            }
            Ask::Park { lane, id, reason } => self.act(&lane, &id, Act::Park(reason), later).await,
            Ask::Drop { lane, id } => self.act(&lane, &id, Act::Drop, later).await,
            Ask::LetGo { queue } => match self.seat(&queue) {
                Some(seat) => seat.let_go(),
                None => Answer::default(),
            },
        }
    }

    async fn retry(&self, lane: &str, id: Option<MessageId>) -> Answer {
        let seats = self.seats(Some(lane));
        let tried = join_all(seats.iter().map(async |seat| {
            let held = seat.held();
            let meant = match id {
                Some(id) => held.first().is_some_and(|head| head.message.id == id),
                None => !held.is_empty(),
            };
            if !meant {
                return false;
            }
            // What is being tried needs no push.
            seat.is_busy() || within(seat.command(id, Act::Retry)).await.is_ok()
        }))
        .await;
        Answer {
            done: tried.into_iter().filter(|tried| *tried).count(),
            ..Answer::default()
        }
    }

    async fn act(
        &self,
        lane: &str,
        id: &str,
        act: Act,
        later: Option<&(dyn Fn() + Sync)>,
    ) -> Answer {
        let Ok(id) = id.parse::<MessageId>() else {
            return Answer::default();
        };
        let seat = self
            .seats(Some(lane))
            .into_iter()
            .find(|seat| seat.held().iter().any(|head| head.message.id == id));
        let Some(seat) = seat else {
            return Answer::default();
        };
        if let Some(later) = later
            && seat.is_busy()
        {
            later();
        }
        match within(seat.command(Some(id), act)).await {
            Ok(_) => Answer {
                done: 1,
                ..Answer::default()
            },
            Err(error) => Answer::failed(&error),
        }
    }
}

async fn within<T>(command: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    tokio::time::timeout(PATIENCE, command)
        .await
        .unwrap_or_else(|_| {
            Err(StoreError::NotFound(
                "a delivery from the lane is under way; try again when it has ended".to_owned(),
            ))
        })
}
