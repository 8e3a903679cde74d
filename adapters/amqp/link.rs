//! A connection of xbus.yaml: made at first use, kept, and made again when it is lost.
//!
//! It is up to two TCP connections: one that receives, and one that publishes. A broker that runs
//! out of memory or disk reads nothing more from connections that publish, and acknowledgements on
//! the same one would stand still just when they would make room.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use xbus_core::SendError;
use xbus_core::adapter::{ConnectionHealth, ConnectionPhase, ConnectionState};
use xbus_core::spec::{Args, Connection};

use crate::counters::Counters;
use crate::error::describe;
use crate::lanes::Broker;
use crate::looks::Looks;
use crate::publisher::{Job, Publisher, Ticket};
use crate::replies::Replies;
use crate::settings::{self, Settings};
use crate::size;
use crate::socket::Socket;

pub(crate) use crate::publisher::Publish;
pub(crate) use crate::settings::FIELDS;

/// A connection that has been down for so long fails what would wait for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// The connections that are open, kept over reloads as long as their settings are the same.
#[derive(Default)]
pub struct Links(Mutex<HashMap<Arc<str>, Weak<Link>>>);

impl Links {
    /// Builds a connection from what xbus.yaml says, or gives the running one with the same
    /// settings. Does no I/O.
    pub(crate) fn build(&self, args: Args<'_>) -> Option<Connection> {
        Some(self.link(settings::read(&args)?))
    }

    /// The running connection with these settings, or a new one.
    pub(crate) fn link(&self, settings: Settings) -> Arc<Link> {
        let mut links = lock(&self.0);
        links.retain(|_, link| link.strong_count() > 0);
        let running = links.get(&settings.name).and_then(Weak::upgrade);
        match running.filter(|link| *link.settings == settings) {
            Some(link) => link,
            None => {
                let link = Arc::new(Link::new(settings));
                links.insert(link.settings.name.clone(), Arc::downgrade(&link));
                link
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection to a broker. It is closed when the last user lets go of it.
pub(crate) struct Link {
    pub(crate) settings: Arc<Settings>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) receiving: Arc<Socket>,
    pub(crate) publishing: Arc<Socket>,
    /// By exchange.
    publishers: Mutex<HashMap<Arc<str>, mpsc::UnboundedSender<Job>>>,
    pub(crate) replies: Replies,
    pub(crate) looks: Looks,
    /// What keeps lanes on this connection, as long as somebody uses it.
    broker: Mutex<Weak<Broker>>,
    pub(crate) stop: CancellationToken,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Link {
    fn new(settings: Settings) -> Self {
        let settings = Arc::new(settings);
        let stop = CancellationToken::new();
        let name = format!("{}/{}/{}", settings.bus, settings.node, settings.name);
        let socket = |name: String| Socket::new(settings.clone(), name, stop.clone());
        Self {
            receiving: socket(name.clone()),
            publishing: socket(format!("{name} (publishing)")),
            counters: Arc::default(),
            publishers: Mutex::default(),
            replies: Replies::default(),
            looks: Looks::default(),
            broker: Mutex::default(),
            settings,
            stop,
        }
    }

    /// What keeps lanes on this connection: one for all, also over reloads.
    pub(crate) fn broker(self: &Arc<Self>) -> Arc<Broker> {
        let mut known = lock(&self.broker);
        known.upgrade().unwrap_or_else(|| {
            let broker = Arc::new(Broker::new(self.clone()));
            *known = Arc::downgrade(&broker);
            broker
        })
    }

    /// The connection's name in xbus.yaml.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.settings.name
    }

    /// This bus's name among several on the same broker.
    pub(crate) fn node(&self) -> &Arc<str> {
        &self.settings.node
    }

    /// How long a message may be held before its channel is closed and opened again on purpose.
    pub(crate) fn renew_after(&self) -> Duration {
        self.settings.renew_after
    }

    /// How often broker and bus hear of each other at least.
    pub(crate) fn heartbeat(&self) -> Duration {
        self.settings.heartbeat
    }

    /// Connected, and not blocked by the broker, as far as it has been used. Nothing has been as
    /// long as nobody has asked for a channel, published, or called [`Link::start`].
    pub(crate) fn is_up(&self) -> bool {
        self.state().phase == ConnectionPhase::Up
    }

    /// A new channel for the caller alone, on the connection as it is now; waits for a connection
    /// until then. A channel that was closed is never usable again: ask for a new one. It is meant
    /// for receiving, declaring and asking; what is published on it has the broker block the
    /// connection that acknowledges (see [`Link::publish`]).
    pub(crate) async fn channel(
        self: &Arc<Self>,
        until: Instant,
    ) -> Result<lapin::Channel, SendError> {
        Ok(self.channel_until_lost(until).await?.0)
    }

    /// The same, and what is cancelled when its connection is lost. lapin answers for what was under
    /// way then, but not always: what came to it just then stays open for ever.
    pub(crate) async fn channel_until_lost(
        self: &Arc<Self>,
        until: Instant,
    ) -> Result<(lapin::Channel, CancellationToken), SendError> {
        loop {
            let up = self.receiving.up_until(until).await?;
            let error = match timeout_at(until, up.connection.create_channel()).await {
                Ok(Ok(channel)) => return Ok((channel, up.lost.clone())),
                Ok(Err(error)) if up.connection.status().connected() => error,
                // The next connection may be better.
                Ok(Err(_)) => {
                    let _ = timeout_at(until, up.lost.cancelled()).await;
                    continue;
                }
                Err(_) => {
                    let what = self.receiving.said("the broker opened no channel in time");
                    return Err(SendError::outage(what).timed_out());
                }
            };
            let what = format!("no channel: {}", describe(&error));
            return Err(SendError::outage(self.receiving.said(&what)));
        }
    }

    /// Publishes persistent, mandatory and confirmed, on a channel that all share who publish to the
    /// same exchange. `Ok`: at least one queue has it, durably. An error says whether it may have
    /// arrived ([`xbus_core::adapter::Class::Unknown`]) or has not. Calls run side by side: many
    /// confirms are waited for at once. What is published to one exchange by calls that were polled
    /// one after the other arrives in that order as long as the connection lives.
    ///
    /// A connection that is down, or blocked by the broker, is waited for until then; one that has
    /// been down for 2 seconds fails at once. Properties with delivery mode 1 stay as they are. A
    /// call that is dropped before its message was handed over publishes nothing.
    pub(crate) async fn publish(
        self: &Arc<Self>,
        publish: Publish,
        until: Instant,
    ) -> Result<(), SendError> {
        self.hand_over(publish, true, until).await
    }

    /// The same, but a message that no queue takes is a success.
    pub(crate) async fn publish_optional(
        self: &Arc<Self>,
        publish: Publish,
        until: Instant,
    ) -> Result<(), SendError> {
        self.hand_over(publish, false, until).await
    }

    async fn hand_over(
        self: &Arc<Self>,
        publish: Publish,
        mandatory: bool,
        until: Instant,
    ) -> Result<(), SendError> {
        if let Err(what) = size::fits(&publish) {
            return Err(SendError::rejected(self.publishing.said(&what)));
        }
        let exchange = publish.exchange.clone();
        let ticket = Ticket::new(publish, mandatory);
        let _take_back = TakeBack(&ticket);
        let (done, mut answer) = oneshot::channel();
        self.publishing.start();
        let job = Job {
            ticket: ticket.clone(),
            done,
        };
        self.to_publisher(exchange, job);
        let closing = || SendError::unknown(self.publishing.said("the connection is being closed"));
        tokio::select! {
            biased;
            answer = &mut answer => return answer.unwrap_or_else(|_| Err(closing())),
            () = sleep_until(until) => return Err(match ticket.take() {
                Some(_) => SendError::outage(self.publishing.why_not()).timed_out(),
                None => SendError::unknown(
                    self.publishing.said("the broker has not confirmed in time"),
                )
                .timed_out(),
            }),
            () = self.publishing.down_for(PATIENCE) => {}
        }
        if ticket.take().is_some() {
            return Err(SendError::outage(self.publishing.why_not()));
        }
        match timeout_at(until, answer).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(closing())),
            Err(_) => Err(SendError::unknown(
                self.publishing.said("the broker has not confirmed in time"),
            )
            .timed_out()),
        }
    }

    fn to_publisher(&self, exchange: Arc<str>, job: Job) {
        let mut publishers = lock(&self.publishers);
        let sender = publishers.entry(exchange.clone()).or_insert_with(|| {
            let (sender, jobs) = mpsc::unbounded_channel();
            let (socket, counters) = (self.publishing.clone(), self.counters.clone());
            let publisher = Publisher::new(exchange, socket, counters, jobs, self.stop.clone());
            tokio::spawn(publisher.run());
            sender
        });
        // It ends with the link only.
        let _ = sender.send(job);
    }
}

/// Takes a message back that was not handed over when its call is dropped.
struct TakeBack<'a>(&'a Ticket);

impl Drop for TakeBack<'_> {
    fn drop(&mut self) {
        self.0.take();
    }
}

impl ConnectionHealth for Link {
    /// The worse of the two that are in use.
    fn state(&self) -> ConnectionState {
        let badness = |state: &ConnectionState| match state.phase {
            ConnectionPhase::Idle => 0,
            ConnectionPhase::Up if state.error.is_none() => 1,
            ConnectionPhase::Up => 2,
            ConnectionPhase::Blocked => 3,
            ConnectionPhase::Connecting => 4,
            ConnectionPhase::Down => 5,
        };
        let (receiving, publishing) = (self.receiving.state(), self.publishing.state());
        match badness(&publishing) >= badness(&receiving) {
            true => publishing,
            false => receiving,
        }
    }

    fn counters(&self) -> Vec<(&'static str, &'static str, u64)> {
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        let reconnects = self.receiving.reconnects() + self.publishing.reconnects();
        vec![
            (
                "reconnects",
                "Connections made again after a loss.",
                reconnects,
            ),
            (
                "published",
                "Messages that the broker has confirmed.",
                get(&counters.published),
            ),
            (
                "returned",
                "Messages that no queue took.",
                get(&counters.returned),
            ),
            (
                "nacked",
                "Messages that the broker did not take.",
                get(&counters.nacked),
            ),
            (
                "late_replies",
                "Replies that came when nobody waited for them any more.",
                get(&counters.late_replies),
            ),
        ]
    }
}
