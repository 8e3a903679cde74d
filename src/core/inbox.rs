//! The inbox: where receivers hand in what they took, and what they learn of it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::adapter::Reach;
use crate::bus::Bus;
use crate::delivery::Delivery;
use crate::plan::{LanePolicy, Route, Target};
use crate::router;
use crate::store::{Change, Commit, Durability, Outcome, StoreError, TargetEntry};
use crate::{Expression, Fault, Headers, Message, MessageId, Timestamp};
use crate::{current, secrets};

/// Where an answer fails that the route has made. No step can have that name.
const ANSWER: &str = "reply@caller";

/// One route's door.
#[derive(Clone)]
pub struct Inbox {
    pub(crate) bus: Arc<Bus>,
    pub(crate) route: Arc<Route>,
}

/// Says why a reply cannot be given.
pub type Fits = fn(&Message) -> Result<(), Fault>;

/// A message at the door, with what its receiver knows beside it.
#[derive(Debug)]
pub struct Arrival {
    /// The message; its id is ours.
    pub message: Message,
    /// Who sent it, when it said who it is and was believed.
    pub caller: Option<Arc<str>>,
    /// Where in the body (byte ranges in their order) stands what differs each time its sender
    /// repeats it, such as a token that counts once: `once` compares the rest.
    pub passing: Vec<Range<usize>>,
    /// What the receiver would see again after a crash (a file's identity, a mail's UID). It is
    /// remembered in the commit that accepts the message, until [`Inbox::forget`].
    pub seen_as: Option<Arc<str>>,
    /// A second name of the same, for when the first may change (a mail's Message-ID and content
    /// beside its UID). Remembered and forgotten with it.
    pub seen_also: Option<Arc<str>>,
    /// The message that this one comes from.
    pub cause: Option<MessageId>,
    /// Run once more on purpose: `once` does not hold it back.
    pub replayed: bool,
    /// How often its receiver has tried it before.
    pub attempts: u32,
    /// Whether a reply can be given to its sender, asked before anything is distributed.
    pub fits: Option<Fits>,
}

impl From<Message> for Arrival {
    fn from(message: Message) -> Self {
        Self {
            message,
            caller: None,
            passing: Vec::new(),
            seen_as: None,
            seen_also: None,
            cause: None,
            replayed: false,
            attempts: 0,
            fits: None,
        }
    }
}

/// How a message was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Every target has it, or the last step answered.
    Delivered,
    /// It is durable, and the bus delivers it.
    Accepted,
    /// The route does not want it.
    Filtered,
}

impl Status {
    /// `delivered`, `accepted` or `filtered`.
    pub fn name(self) -> &'static str {
        match self {
            Status::Delivered => "delivered",
            Status::Accepted => "accepted",
            Status::Filtered => "filtered",
        }
    }
}

/// The good answer to a message.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The message's id; for a repeat the id of the first one.
    pub id: MessageId,
    /// How it was taken.
    pub status: Status,
    /// The answer's message: the last response, or what `reply` made. Nothing: the receiver says
    /// the acknowledgement in the shape that its sender expects.
    pub message: Option<Arc<Message>>,
    /// HTTP status that `reply` asks for.
    pub http_status: Option<u16>,
    /// Further headers of the answer that `reply` asks for.
    pub headers: Headers,
}

impl Inbox {
    /// The route's name.
    pub fn route(&self) -> &Arc<str> {
        &self.route.name
    }

    /// How a receiver whose sender does not wait treats failures.
    pub fn policy(&self) -> &LanePolicy {
        &self.route.lane
    }

    /// The key of messages that keep their order among themselves; nothing where all do, or none.
    pub fn order_by(&self) -> Option<&Arc<dyn Expression>> {
        self.route.order_by.as_ref()
    }

    /// Whether the route gives a sender that asked something to wait for: it ends in `invoke`, or
    /// has `reply`.
    pub fn answers(&self) -> bool {
        self.route.reply.is_some() || self.route.targets.is_empty()
    }

    /// Whether the route says what its sender gets back (`reply`).
    pub fn replies(&self) -> bool {
        self.route.reply.is_some()
    }

    /// Whether each message of the route ends in a commit that is synced, so that what is remembered
    /// with it costs no wait of its own.
    pub fn commits(&self) -> bool {
        let queued =
            |target: &Target| target.lane.is_some() || target.step.sender.reach() == Reach::Queue;
        self.route.targets.iter().any(queued)
    }

    /// The bus that this door belongs to.
    pub fn bus(&self) -> &Arc<Bus> {
        &self.bus
    }

    /// Runs the route for one message, to its end, even when the returned future is dropped on the
    /// way. `Ok` means that the sender may forget the message.
    pub fn deliver(&self, arrival: impl Into<Arrival>) -> Delivery {
        Delivery::new(&self.bus, &self.route, arrival.into(), self.route.answers)
    }

    /// The same for a message whose sender waits although those of others do not: a failure is told
    /// to it and final, as [`Route::answers`] has it for all.
    pub fn ask(&self, arrival: impl Into<Arrival>) -> Delivery {
        Delivery::new(&self.bus, &self.route, arrival.into(), true)
    }

    /// Whether a message that was seen as `key` has been accepted, and not been forgotten since.
    pub fn seen(&self, key: &str) -> bool {
        self.bus
            .store()
            .recall(&seen_scope(&self.route.name), key)
            .is_some()
    }

    /// Forgets `keys`: their messages have left the place where they could be seen again.
    pub async fn forget(&self, keys: &[Arc<str>]) -> Result<(), StoreError> {
        let scopes = [
            seen_scope(&self.route.name),
            underway_scope(&self.route.name),
        ];
        let changes: Vec<Change> = keys
            .iter()
            .flat_map(|key| scopes.iter().map(move |scope| (scope, key)))
            .map(|(scope, key)| Change::Forget {
                scope: scope.clone(),
                key: key.clone(),
            })
            .collect();
        self.bus
            .store()
            .commit(Commit::from(changes), Durability::Lazy)
            .await
    }

    /// Writes a message into the journal as failed without running the route: its receiver cannot
    /// make what the route takes of it. Opens an incident, as any rejection does.
    pub async fn refuse(&self, message: Message, fault: &Fault) {
        router::refuse(&self.bus, &self.route, message, fault).await;
    }

    /// The same for a message whose sender waits and is told of the fault.
    pub async fn turn_away(&self, message: Message, fault: &Fault) {
        let about = (message.id, self.route.name.clone());
        let work = router::turn_away(&self.bus, &self.route, message, fault);
        current::about(about.0, about.1, work).await;
    }

    /// A message was taken, and what the route answers it cannot be given to its sender: notes it in the
    /// journal and tells the administrators. [`Inbox::answered`] ends that.
    pub async fn unanswered(&self, id: MessageId, fault: &Fault) {
        let route = &*self.route.name;
        tracing::warn!(%route, %id, error = fault.for_log(), "the answer could not be made");
        let (kind, error) = (fault.code.name(), fault.for_admin());
        self.bus
            .incidents()
            .failed(route, ANSWER, kind, &error, Some(id), None);
        let noted = self.told(id, ANSWER, Outcome::Failed, 1, &error).await;
        if let Err(error) = noted {
            tracing::warn!(%error, "a journal entry was not kept");
        }
    }

    /// Answers can be given again.
    pub fn answered(&self) {
        self.bus.incidents().succeeded(&self.route.name, ANSWER);
    }

    /// Remembers, durably, that what is seen as `key` must not be taken again (it failed for good, or
    /// is in doubt), and `why`. [`Inbox::release`] ends it.
    pub async fn set_aside(&self, key: &str, why: &str) -> Result<(), StoreError> {
        let change = Change::Value {
            name: self.aside_name(key),
            value: Some(Bytes::copy_from_slice(why.as_bytes())),
        };
        self.bus
            .store()
            .commit(Commit::of(change), Durability::Synced)
            .await
    }

    /// The keys that are set aside, each with why.
    pub fn asides(&self) -> Vec<(String, String)> {
        let prefix = self.aside_name("");
        let text = |value: &Bytes| String::from_utf8_lossy(value).into_owned();
        let values = self.bus.store().values(&prefix);
        values
            .iter()
            .filter_map(|(name, why)| Some((name.strip_prefix(&*prefix)?.to_owned(), text(why))))
            .collect()
    }

    /// Forgets that `key` was set aside: it has left the place where it could be seen again.
    pub async fn release(&self, key: &str) -> Result<(), StoreError> {
        let change = Change::Value {
            name: self.aside_name(key),
            value: None,
        };
        self.bus
            .store()
            .commit(Commit::of(change), Durability::Lazy)
            .await
    }

    fn aside_name(&self, key: &str) -> Arc<str> {
        Arc::from(format!("aside/{}/{key}", self.route.name))
    }

    /// Adds to the journal what became of something that is done for a message after its acceptance,
    /// such as its answer, under the name of a step.
    pub async fn told(
        &self,
        id: MessageId,
        step: &str,
        outcome: Outcome,
        attempts: u32,
        error: &str,
    ) -> Result<(), StoreError> {
        let change = Change::Target {
            id,
            target: TargetEntry {
                name: step.into(),
                outcome,
                attempts,
                error: Some(secrets::mask(error).into()),
                at: Timestamp::now(),
            },
        };
        self.bus
            .store()
            .commit(Commit::of(change), Durability::Lazy)
            .await
    }

    /// Tells the administrators that this receiver cannot do its work (`what` is a kind such as
    /// `outage`); [`Inbox::works`] ends it.
    pub fn fails(&self, kind: &'static str, error: &str) {
        self.bus
            .incidents()
            .failed(&self.route.name, "receive", kind, error, None, None);
    }

    /// The receiver does its work again.
    pub fn works(&self) {
        self.bus.incidents().succeeded(&self.route.name, "receive");
    }
}

/// The name space of what a route's receiver has seen.
pub(crate) fn seen_scope(route: &str) -> Arc<str> {
    Arc::from(format!("seen/{route}"))
}

/// The name space of what a route's receiver has seen and whose distribution has begun.
pub(crate) fn underway_scope(route: &str) -> Arc<str> {
    Arc::from(format!("underway/{route}"))
}
