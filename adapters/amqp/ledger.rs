//! What a receiver holds now, for administrators, and their way to it.
//!
//! Each message that is held has a line here as long as it is held. What an administrator asks of a
//! message goes to the task that holds it, which does it between two attempts and says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapin::Channel;
use lapin::message::Delivery;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use xbus_core::store::{EntryRef, Queued};
use xbus_core::{Message, MessageId, Timestamp};

use crate::memory::Carried;

/// What an administrator wants of a message that is held.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// Try it now.
    Retry,
    /// Set it aside, for this reason.
    Park(String),
    /// Acknowledge it without running it.
    Drop,
}

/// The wish, and whom to tell that it was done, or why it could not be.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) wanted: Wanted,
    pub(crate) done: oneshot::Sender<Result<(), String>>,
}

/// A message that was set aside and is to run before what came after it.
pub(crate) struct Released {
    /// As it came first; its acknowledgement takes it out of what is set aside.
    pub(crate) delivery: Delivery,
    /// Its channel: as long as it is open and the message not acknowledged, nobody else has it.
    pub(crate) channel: Channel,
    pub(crate) carried: Carried,
    /// Told when it stands in the window.
    pub(crate) done: oneshot::Sender<()>,
}

/// Shared by a receiver's channels, one after the other, and by who asks about its queue.
pub(crate) struct Ledger {
    /// The queue's name as administrators know it.
    name: Arc<str>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    number: u64,
    held: BTreeMap<u64, Line>,
    /// Where released messages go in; nothing while no channel is open.
    entrance: Option<mpsc::UnboundedSender<Released>>,
    /// Released messages that were given back before they had been dealt with, by age.
    again: Vec<(Timestamp, MessageId)>,
    /// Why the queue cannot be read.
    trouble: Option<String>,
    /// Something was set aside.
    parked: bool,
}

/// A message that is held.
struct Line {
    queued: Queued,
    /// It is tried, or waits to be tried again; the others wait behind one of these.
    begun: bool,
    /// An attempt is under way.
    running: bool,
    orders: mpsc::UnboundedSender<Order>,
}

/// Why nothing was asked of a message.
#[derive(Debug, PartialEq)]
pub(crate) enum Not {
    /// It is not held.
    Here,
    /// It waits behind another one.
    Head,
}

impl Ledger {
    pub(crate) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            state: Mutex::default(),
        }
    }

    /// The queue's name as administrators know it.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// A message is held from now on, until the ticket is dropped.
    pub(crate) fn enter(
        self: &Arc<Self>,
        message: Arc<Message>,
        key: Arc<str>,
        carried: &Carried,
    ) -> Ticket {
        let mut state = self.lock();
        state.number += 1;
        let number = state.number;
        let (sender, orders) = mpsc::unbounded_channel();
        let queued = Queued {
            at: EntryRef {
                queue: self.name.clone(),
                key,
                seq: number,
            },
            message,
            target: Arc::from(""),
            since: carried.received_at,
            cause: None,
            attempts: carried.attempts,
            last_error: carried.last_error(),
            next_try: time_of(carried.next_try),
            parked: None,
        };
        let line = Line {
            queued,
            begun: false,
            running: false,
            orders: sender,
        };
        state.held.insert(number, line);
        Ticket {
            ledger: self.clone(),
            number,
            orders,
        }
    }

    /// A channel is open: released messages go in here.
    pub(crate) fn open(&self, entrance: mpsc::UnboundedSender<Released>) {
        self.lock().entrance = Some(entrance);
    }

    /// The channel is about to be closed.
    pub(crate) fn close(&self) {
        self.lock().entrance = None;
    }

    /// Where released messages go in now.
    pub(crate) fn entrance(&self) -> Option<mpsc::UnboundedSender<Released>> {
        self.lock().entrance.clone()
    }

    /// A released message was given back undone.
    pub(crate) fn release_again(&self, since: Timestamp, id: MessageId) {
        self.lock().again.push((since, id));
    }

    /// Released messages that were given back undone, oldest first.
    pub(crate) fn take_released(&self) -> Vec<MessageId> {
        let mut again = std::mem::take(&mut self.lock().again);
        again.sort();
        again.into_iter().map(|(_, id)| id).collect()
    }

    /// Says why the queue cannot be read, or that it can.
    pub(crate) fn set_trouble(&self, trouble: Option<&str>) {
        self.lock().trouble = trouble.map(str::to_owned);
    }

    /// Why the queue cannot be read.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    /// A message was set aside.
    pub(crate) fn set_parked(&self) {
        self.lock().parked = true;
    }

    /// Whether something was set aside since this was asked last.
    pub(crate) fn has_parked(&self) -> bool {
        std::mem::take(&mut self.lock().parked)
    }

    /// What is held, oldest first.
    pub(crate) fn held(&self) -> Vec<Queued> {
        let state = self.lock();
        let mut held: Vec<Queued> = state
            .held
            .values()
            .map(|line| line.queued.clone())
            .collect();
        held.sort_by_key(|queued| (queued.since, queued.at.seq));
        held
    }

    /// The messages that are tried or wait to be tried again, oldest first.
    pub(crate) fn heads(&self) -> Vec<Queued> {
        let state = self.lock();
        let begun = state.held.values().filter(|line| line.begun);
        let mut heads: Vec<Queued> = begun.map(|line| line.queued.clone()).collect();
        heads.sort_by_key(|queued| (queued.since, queued.at.seq));
        heads
    }

    /// Has the heads that wait tried now, or the one that is `id`. Gives how many are tried.
    pub(crate) fn retry(&self, id: Option<MessageId>) -> usize {
        let state = self.lock();
        let wanted = |line: &&Line| line.begun && id.is_none_or(|id| line.queued.message.id == id);
        let mut heads = 0;
        for line in state.held.values().filter(wanted) {
            let (done, _) = oneshot::channel();
            let order = Order {
                wanted: Wanted::Retry,
                done,
            };
            // One that is under way is being tried.
            heads += usize::from(line.running || line.orders.send(order).is_ok());
        }
        heads
    }

    /// Asks something of a head. Who waits for the answer and gives up takes the wish back, unless it
    /// is being done.
    pub(crate) fn ask(
        &self,
        id: MessageId,
        wanted: Wanted,
    ) -> Result<oneshot::Receiver<Result<(), String>>, Not> {
        let state = self.lock();
        let mut lines = state.held.values();
        let line = lines.find(|line| line.queued.message.id == id);
        let line = line.ok_or(Not::Here)?;
        if !line.begun {
            return Err(Not::Head);
        }
        let (done, answer) = oneshot::channel();
        let sent = line.orders.send(Order { wanted, done });
        sent.map(|()| answer).map_err(|_| Not::Here)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A held message's line in the ledger.
pub(crate) struct Ticket {
    ledger: Arc<Ledger>,
    number: u64,
    orders: mpsc::UnboundedReceiver<Order>,
}

impl Ticket {
    /// The message's turn has come, or is over because an earlier one goes first.
    pub(crate) fn begin(&self, begun: bool) {
        self.with(|line| line.begun = begun);
    }

    /// An attempt is under way, or has ended.
    pub(crate) fn running(&self, running: bool) {
        self.with(|line| line.running = running);
    }

    /// What is known of the message has changed.
    pub(crate) fn note(&self, carried: &Carried) {
        self.with(|line| {
            line.queued.attempts = carried.attempts;
            line.queued.last_error = carried.last_error();
            line.queued.next_try = time_of(carried.next_try);
        });
    }

    /// Whether there is a wish.
    pub(crate) fn is_asked(&self) -> bool {
        !self.orders.is_empty()
    }

    /// The next wish that somebody still waits for, or that nobody needs to wait for.
    pub(crate) async fn order(&mut self) -> Order {
        loop {
            match self.orders.recv().await {
                Some(order) if matches!(order.wanted, Wanted::Retry) => return order,
                Some(order) if order.done.is_closed() => {}
                Some(order) => return order,
                // The line is there as long as the ticket is.
                None => std::future::pending().await,
            }
        }
    }

    fn with(&self, change: impl FnOnce(&mut Line)) {
        if let Some(line) = self.ledger.lock().held.get_mut(&self.number) {
            change(line);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.ledger.lock().held.remove(&self.number);
    }
}

/// A time of the process as one of the wall clock; nothing for one that has come.
fn time_of(at: Option<Instant>) -> Option<Timestamp> {
    let left = at?.checked_duration_since(Instant::now())?;
    Some(Timestamp::now().after(left))
}
