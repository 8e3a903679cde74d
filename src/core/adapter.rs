//! What an adapter is to the core: receivers that bring messages in, senders that take them out,
//! and the [`Kind`] that says how both are configured.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::broker::LaneBroker;
use crate::inbox::Inbox;
use crate::queues::ReceivedQueue;
use crate::secrets;
use crate::spec::{Args, Connection, Field};
use crate::transform::{Checks, Context};
use crate::{Code, Fault, Message, MessageId, Timestamp};

/// Says when to stop; cloned freely.
pub type Stop = CancellationToken;

/// Brings messages in.
pub trait Receiver: Send + Sync {
    /// What it takes for itself alone, in words such as `POST /orders on http`: two receivers with
    /// the same claim are an error of `check`.
    fn claim(&self) -> Option<String> {
        None
    }

    /// The queue at a broker that it works off, as administrators see it and act on it; nothing for
    /// receivers that have none. The same receiver gives the same queue each time.
    fn queue(&self) -> Option<Arc<dyn ReceivedQueue>> {
        None
    }

    /// What its messages and the replies to them are held against.
    fn checks(&self) -> Checks {
        Checks::default()
    }

    /// Whether it takes a file of this path when somebody writes it; no for receivers of anything else.
    /// It looks at no disk.
    fn takes(&self, _file: &Path) -> bool {
        false
    }

    /// Why it could not send what `reply` of its route says: an error of `check` in routes with `reply`.
    fn cannot_reply(&self) -> Option<OpenError> {
        None
    }

    /// Whether it sets that header of an answer itself, or never sends it: naming it in `reply.headers` is an error of `check`.
    fn sets_header(&self, _name: &str) -> bool {
        false
    }

    /// Opens the door: returns once messages are taken, or with why it cannot. The future that it
    /// gives runs until `stop`, then takes nothing more and ends when what it took is answered. It
    /// is spawned by the caller and never dropped before its end.
    fn open(
        self: Arc<Self>,
        inbox: Inbox,
        stop: Stop,
    ) -> BoxFuture<'static, Result<BoxFuture<'static, ()>, OpenError>>;
}

/// Why a receiver cannot open.
#[derive(Clone, Debug)]
pub struct OpenError {
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub help: String,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.help)
    }
}

/// How a sync distribution can treat a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Once sent it cannot be taken back (http, mail, a file that is appended to).
    OneShot,
    /// Can be made visible or undone later (file).
    Staged,
    /// Becomes part of the store's own commit (an embedded queue).
    Queue,
}

/// Takes messages out: request/response and request/acknowledgement alike.
pub trait Sender: Send + Sync {
    /// How a sync distribution treats it; the same for every message.
    fn reach(&self) -> Reach;

    /// Makes the request for one message: everything that can fail without touching the outside
    /// (expressions in the address, names, charsets) fails here. CPU only.
    fn make(&self, message: Arc<Message>, context: &Context) -> Result<Request, Fault>;

    /// Paths of files as it writes them, for a few different values of what a message decides: what
    /// holds for each of them may be taken to hold for all. None for senders that write no files.
    fn writes(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Takes up what an earlier process staged, from its token. Only staged senders are asked.
    fn resume(&self, _token: &[u8]) -> Option<Box<dyn Stage>> {
        None
    }

    /// Removes what an earlier process staged and nobody will take up: of messages that `keep` does
    /// not hold. Called once at the start, on a thread that may wait for the disk.
    fn sweep(&self, _keep: &(dyn Fn(MessageId) -> bool + Sync)) {}
}

/// A request that is ready to go.
pub enum Request {
    /// One call, of a sender whose reach is [`Reach::OneShot`].
    Call(Box<dyn Call>),
    /// Of a sender whose reach is [`Reach::Staged`].
    Stage(Box<dyn Stage>),
    /// Of a sender whose reach is [`Reach::Queue`].
    Put(Put),
}

/// A request to a destination.
pub trait Call: Send + Sync {
    /// Sends it and waits for the answer, until `deadline`. The response keeps the request's id,
    /// correlation and headers and has the answer's body, content type and protocol headers. May
    /// be called again for a retry.
    fn run(&self, deadline: Instant) -> BoxFuture<'_, Result<Message, SendError>>;
}

/// A request that can be taken back until it is committed. Every method may be called again after
/// a crash or an error and then finishes what is left.
pub trait Stage: Send + Sync {
    /// What [`Sender::resume`] needs to go on after a crash; known before [`Stage::stage`].
    fn token(&self) -> Bytes;
    /// Puts it where it is durable and not yet visible. A refusal here has touched nothing.
    fn stage(&self) -> BoxFuture<'_, Result<(), SendError>>;
    /// Makes it visible, durably. It ends by itself, however long the destination takes.
    fn commit(&self) -> BoxFuture<'_, Result<(), SendError>>;
    /// The same, where it may have been done already, by a process that has died or one that nobody waited for,
    /// and what was made visible may have been taken since.
    fn commit_again(&self) -> BoxFuture<'_, Result<(), SendError>> {
        self.commit()
    }
    /// As [`Stage::commit`] until `deadline`. A sender whose commit may have arrived by then says so in a method
    /// of its own; otherwise a commit that is not done by then counts as not done, and is repeated.
    fn commit_until(&self, deadline: Instant) -> BoxFuture<'_, Result<(), SendError>> {
        Box::pin(crate::distribute::within(deadline, self.commit()))
    }
    /// Takes it back.
    fn undo(&self) -> BoxFuture<'_, Result<(), SendError>>;
    /// Stages and makes visible in one, until `deadline`, for a request that is alone: nothing else
    /// waits for what is staged, so that it need not outlive a crash before it is visible. An error
    /// leaves nothing staged. What a sender does here otherwise than step by step is the sender's.
    fn at_once(&self, deadline: Instant) -> BoxFuture<'_, Result<(), SendError>> {
        Box::pin(async move {
            crate::distribute::within(deadline, self.stage()).await?;
            let committed = self.commit_until(deadline).await;
            if committed.is_err()
                && let Err(undo) = self.undo().await
            {
                tracing::warn!(error = %undo.detail, "a staged target could not be undone");
            }
            committed
        })
    }
}

/// An entry for an embedded queue.
#[derive(Clone, Debug)]
pub struct Put {
    /// The queue's name.
    pub queue: Arc<str>,
    /// What to keep.
    pub message: Arc<Message>,
}

/// What a failed send means for what comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// The destination cannot take it now: later it may. Nothing was done.
    Outage,
    /// The destination does not want this message: repeating it cannot help. Nothing was done.
    Rejected,
    /// The request was sent, and what became of it is unknown.
    Unknown,
}

/// A send that failed.
#[derive(Clone, Debug)]
pub struct SendError {
    /// What it means.
    pub class: Class,
    /// Whether time ran out.
    pub timed_out: bool,
    /// For administrators: what was tried and what came back, without credentials.
    pub detail: String,
    /// What the destination answered, shortened. It may repeat what it was sent, so that it goes to
    /// journal and failure mail and not to logs.
    pub answer: Option<String>,
    /// When the destination asked to be tried again.
    pub retry_after: Option<Duration>,
}

impl SendError {
    /// The destination cannot take it now.
    pub fn outage(detail: impl Into<String>) -> Self {
        Self::of(Class::Outage, detail)
    }

    /// The destination does not want this message.
    pub fn rejected(detail: impl Into<String>) -> Self {
        Self::of(Class::Rejected, detail)
    }

    /// What the destination did is unknown.
    pub fn unknown(detail: impl Into<String>) -> Self {
        Self::of(Class::Unknown, detail)
    }

    /// The same, because time ran out.
    pub fn timed_out(mut self) -> Self {
        self.timed_out = true;
        self
    }

    /// Adds what the destination answered.
    pub fn answer(mut self, answer: impl Into<String>) -> Self {
        self.answer = Some(answer.into());
        self
    }

    fn of(class: Class, detail: impl Into<String>) -> Self {
        Self {
            class,
            timed_out: false,
            detail: secrets::mask(&detail.into()).into_owned(),
            answer: None,
            retry_after: None,
        }
    }

    /// As the fault of a step: what callers may read says nothing of addresses.
    pub fn into_fault(self) -> Fault {
        let (code, reason) = match (self.class, self.timed_out) {
            (Class::Unknown, true) => (
                Code::Timeout,
                "the destination did not answer in time; whether it acted is unknown",
            ),
            (Class::Unknown, false) => (
                Code::InDoubt,
                "the destination's answer was lost; whether it acted is unknown",
            ),
            (_, true) => (
                Code::Timeout,
                "the destination could not be reached in time",
            ),
            (Class::Rejected, _) => (Code::Destination, "the destination rejected the message"),
            (Class::Outage, _) => (Code::Destination, "the destination failed"),
        };
        let mut fault = Fault::new(code, reason).detail(self.detail);
        fault.answer = self
            .answer
            .map(|answer| secrets::mask(&answer).into_owned());
        fault.rejected = self.class == Class::Rejected;
        fault.untouched = self.class != Class::Unknown;
        fault.retry_after = self.retry_after;
        fault
    }
}

/// Builds a receiver from what the route says; `None` when a problem was reported.
pub type BuildReceiver = Box<dyn Fn(Args<'_>) -> Option<Arc<dyn Receiver>> + Send + Sync>;
/// Builds a sender from what the step says; `None` when a problem was reported.
pub type BuildSender = Box<dyn Fn(Args<'_>) -> Option<Arc<dyn Sender>> + Send + Sync>;
/// Builds a connection from what xbus.yaml says; `None` when a problem was reported.
pub type BuildConnection = Box<dyn Fn(Args<'_>) -> Option<Connection> + Send + Sync>;

/// Gives a connection as what tells how it is doing.
pub type AsHealth = fn(&Connection) -> Option<Arc<dyn ConnectionHealth>>;
/// Gives a connection as a place where lanes live.
pub type AsLanes = fn(&Connection) -> Option<Arc<dyn LaneBroker>>;

/// An adapter as routes see it: a word that can stand under `receive`, in a step, or in a connection.
pub struct Kind {
    /// The word, such as `http`.
    pub name: &'static str,
    /// What it is, in a few sentences (Markdown).
    pub doc: &'static str,
    /// What can stand under `receive`.
    pub receiver: Option<ReceiverKind>,
    /// What can stand in a step or target.
    pub sender: Option<SenderKind>,
    /// What can stand under a name in `connections`.
    pub connection: Option<ConnectionKind>,
}

/// The receiving side of a [`Kind`].
pub struct ReceiverKind {
    /// Its keys.
    pub fields: &'static [Field],
    /// A runnable `receive:` block (YAML).
    pub example: &'static str,
    /// Whether somebody waits for the answer (http), so that failures are told and not retried.
    pub answers: bool,
    /// Whether it takes one message after the other and puts aside by itself what fails for good, so
    /// that of a queue's keys only `retry` has a meaning.
    pub in_turn: bool,
    /// Makes one.
    pub build: BuildReceiver,
}

/// The sending side of a [`Kind`].
pub struct SenderKind {
    /// Its keys.
    pub fields: &'static [Field],
    /// A runnable target (YAML).
    pub example: &'static str,
    /// Whether it gives a response, so that `invoke` can use it.
    pub answers: bool,
    /// Makes one.
    pub build: BuildSender,
}

/// The connection of a [`Kind`].
pub struct ConnectionKind {
    /// Its keys.
    pub fields: &'static [Field],
    /// A runnable entry of `connections` (YAML).
    pub example: &'static str,
    /// Makes one.
    pub build: BuildConnection,
    /// The connection as a place where lanes live; nothing for kinds that keep none. The same
    /// connection gives the same broker each time.
    pub lanes: Option<AsLanes>,
    /// How one that was made is doing, for health and metrics; nothing for kinds that keep no
    /// lasting connection.
    pub health: Option<AsHealth>,
}

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectionPhase {
    /// Nobody has needed it yet.
    Idle,
    /// It is being made for the first time, or again.
    Connecting,
    /// It can be used.
    Up,
    /// It stands, and the other side takes nothing for now.
    Blocked,
    /// It is lost or cannot be made; it is tried again.
    Down,
}

impl ConnectionPhase {
    /// The name that health and metrics use: `idle`, `connecting`, `up`, `blocked`, `down`.
    pub fn name(self) -> &'static str {
        match self {
            ConnectionPhase::Idle => "idle",
            ConnectionPhase::Connecting => "connecting",
            ConnectionPhase::Up => "up",
            ConnectionPhase::Blocked => "blocked",
            ConnectionPhase::Down => "down",
        }
    }
}

/// What a connection is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectionState {
    /// How far it is.
    pub phase: ConnectionPhase,
    /// Since when it is so.
    pub since: Timestamp,
    /// What is wrong, for administrators and without credentials. Also where it is up: what was
    /// asked of it once and could not be done, and is tried again.
    pub error: Option<String>,
}

/// Tells how a lasting connection is doing. Neither method waits or does I/O.
pub trait ConnectionHealth: Send + Sync {
    /// What it is now.
    fn state(&self) -> ConnectionState;

    /// What it has counted since it was made: name (snake case, without prefix), help and value.
    fn counters(&self) -> Vec<(&'static str, &'static str, u64)>;
}
