//! What the other tasks of this process see of a partition's owner, and how they reach it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Notify, mpsc, oneshot};
use xbus_core::MessageId;
use xbus_core::broker::{LaneName, LaneWorker};
use xbus_core::store::{Queued, StoreError};

use super::wire::{Answer, Delivered, Ended};

/// One partition that this node works on (or waits to).
pub(super) struct Seat {
    pub(super) lane: LaneName,
    pub(super) index: u32,
    pub(super) queue: Arc<str>,
    pub(super) worker: Arc<dyn LaneWorker>,
    commands: mpsc::UnboundedSender<Command>,
    dirty: AtomicBool,
    woken: Notify,
    view: Mutex<View>,
}

/// What is going on.
#[derive(Default)]
struct View {
    /// What is held: the one that is tried first.
    held: Vec<Queued>,
    /// An attempt is under way.
    busy: bool,
    /// How the last attempts ended: of a released message, and of another one.
    ended: [Option<Ended>; 2],
    /// The partition's queue is consumed.
    open: bool,
}

/// What is to be done with a head.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// Try it now.
    Retry,
    /// Set it aside, for this reason.
    Park(String),
    /// Remove it.
    Drop,
}

/// A command to the owner.
pub(super) struct Command {
    /// The head that is meant; nothing for whichever it is.
    pub(super) id: Option<MessageId>,
    pub(super) act: Act,
    pub(super) done: oneshot::Sender<Result<MessageId, StoreError>>,
}

impl Seat {
    pub(super) fn new(
        lane: LaneName,
        index: u32,
        queue: Arc<str>,
        worker: Arc<dyn LaneWorker>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Command>) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let seat = Self {
            lane,
            index,
            queue,
            worker,
            commands,
            dirty: AtomicBool::new(true),
            woken: Notify::new(),
            view: Mutex::default(),
        };
        (Arc::new(seat), receiver)
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What is held, the one that is tried first.
    pub(super) fn held(&self) -> Vec<Queued> {
        self.view().held.clone()
    }

    pub(super) fn is_busy(&self) -> bool {
        self.view().busy
    }

    pub(super) fn is_open(&self) -> bool {
        self.view().open
    }

    pub(super) fn set_open(&self, open: bool) {
        let mut view = self.view();
        view.open = open;
        if !open {
            view.held.clear();
        }
    }

    /// An attempt begins.
    pub(super) fn begin(&self) {
        self.view().busy = true;
    }

    /// An attempt has ended, of a message of the front or another one; `None`: nothing was tried.
    pub(super) fn end(&self, front: bool, ended: Option<Ended>) {
        let mut view = self.view();
        view.busy = false;
        if ended.is_some() {
            view.ended[usize::from(!front)] = ended;
        }
    }

    /// For another node that was given the queue: what has been delivered from it, or that it is to
    /// ask again.
    pub(super) fn let_go(&self) -> Answer {
        let ended = {
            let view = self.view();
            if view.busy {
                return Answer {
                    later: true,
                    ..Answer::default()
                };
            }
            view.ended.iter().flatten().cloned().collect()
        };
        let delivered = self.worker.delivered(self.index).into_iter();
        Answer {
            delivered: delivered
                .map(|(origin, progress)| Delivered::new(&self.queue, &origin, &progress))
                .collect(),
            ended,
            ..Answer::default()
        }
    }

    /// Shows a head, before what is shown already, or in place of itself.
    pub(super) fn show(&self, head: &Queued) {
        let mut view = self.view();
        match view
            .held
            .iter_mut()
            .find(|held| held.message.id == head.message.id)
        {
            Some(held) => *held = head.clone(),
            None => view.held.insert(0, head.clone()),
        }
    }

    /// A head left.
    pub(super) fn hide(&self, id: MessageId) {
        self.view().held.retain(|held| held.message.id != id);
    }

    /// The front may hold something.
    pub(super) fn look_at_front(&self) {
        self.dirty.store(true, Ordering::Release);
        self.woken.notify_one();
    }

    /// Whether the front is to be looked at; asking means doing it.
    pub(super) fn take_dirty(&self) -> bool {
        self.dirty.swap(false, Ordering::AcqRel)
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    /// Resolves when the front is to be looked at.
    pub(super) async fn woken(&self) {
        self.woken.notified().await;
    }

    /// Has the owner do something; the answer comes when an attempt that is under way has ended.
    pub(super) async fn command(
        &self,
        id: Option<MessageId>,
        act: Act,
    ) -> Result<MessageId, StoreError> {
        let (done, answer) = oneshot::channel();
        let gone = || StoreError::NotFound("the lane is no longer worked off here".to_owned());
        self.commands
            .send(Command { id, act, done })
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// What is wrong with a lane's partitions, so that its worker hears of each reason once.
pub(super) struct Health {
    worker: Arc<dyn LaneWorker>,
    broken: Mutex<HashMap<u32, String>>,
}

impl Health {
    pub(super) fn new(worker: Arc<dyn LaneWorker>) -> Self {
        Self {
            worker,
            broken: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, String>> {
        self.broken
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A partition cannot be worked off.
    pub(super) fn broken(&self, index: u32, why: &str) {
        let known = {
            let mut broken = self.lock();
            let known = broken.values().any(|reason| reason == why);
            broken.insert(index, why.to_owned());
            known
        };
        if !known {
            self.worker.broken(why);
        }
    }

    /// A partition can be worked off.
    pub(super) fn works(&self, index: u32) {
        let mended = {
            let mut broken = self.lock();
            broken.remove(&index).is_some() && broken.is_empty()
        };
        if mended {
            self.worker.works();
        }
    }
}
