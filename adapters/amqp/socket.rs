//! One TCP connection to the broker: made when it is first needed, kept, and made again whenever it
//! is lost, until nobody needs it any more.
//!
//! lapin's own recovery is off: it would replay what the bus cannot tell apart from what arrived.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::{Connection, Event};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use xbus_core::adapter::{ConnectionPhase, ConnectionState};
use xbus_core::{SendError, Timestamp, secrets};

use crate::backoff::Backoff;
use crate::connect::connect;
use crate::error::describe;
use crate::settings::Settings;

/// How long taking leave of the broker may take.
const LEAVE: Duration = Duration::from_secs(2);
/// How often it is looked whether the connection still stands, beside what lapin tells.
const LOOK: Duration = Duration::from_millis(500);
/// A connection that lasted this long is made again at once when it is lost.
const LASTING: Duration = Duration::from_secs(1);
/// How long the broker may take to declare what the connection names.
const DECLARE: Duration = Duration::from_secs(60);
/// How long to wait before trying again to declare what the broker refused.
const DECLARE_AGAIN: Duration = Duration::from_secs(15);

/// A connection that stands.
pub(crate) struct Up {
    pub(crate) connection: Connection,
    /// Ends when the connection is lost.
    pub(crate) lost: CancellationToken,
}

/// One TCP connection and what keeps it.
pub(crate) struct Socket {
    settings: Arc<Settings>,
    /// The name that the broker shows.
    name: String,
    started: AtomicBool,
    up: watch::Sender<Option<Arc<Up>>>,
    state: RwLock<State>,
    blocked: watch::Sender<bool>,
    stop: CancellationToken,
    /// How often it was made, so that it was made again one time less.
    made: AtomicU64,
}

struct State {
    phase: ConnectionPhase,
    since: Timestamp,
    error: Option<String>,
    /// What of the topology the broker refused.
    undeclared: Option<String>,
}

impl Socket {
    pub(crate) fn new(settings: Arc<Settings>, name: String, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            settings,
            name,
            started: AtomicBool::new(false),
            up: watch::Sender::new(None),
            state: RwLock::new(State {
                phase: ConnectionPhase::Idle,
                since: Timestamp::now(),
                error: None,
                undeclared: None,
            }),
            blocked: watch::Sender::new(false),
            stop,
            made: AtomicU64::new(0),
        })
    }

    /// Begins to connect, unless that has begun.
    pub(crate) fn start(self: &Arc<Self>) {
        if !self.started.swap(true, Ordering::SeqCst) {
            tokio::spawn(self.clone().keep());
        }
    }

    /// What is cancelled when the connection as it is now is lost; nothing without one.
    pub(crate) fn lost(&self) -> Option<CancellationToken> {
        self.up.borrow().as_ref().map(|up| up.lost.clone())
    }

    /// How often a lost connection was made again.
    pub(crate) fn reconnects(&self) -> u64 {
        self.made.load(Ordering::Relaxed).saturating_sub(1)
    }

    pub(crate) fn state(&self) -> ConnectionState {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        ConnectionState {
            phase: state.phase,
            since: state.since,
            error: state.error.clone().or_else(|| state.undeclared.clone()),
        }
    }

    /// Whether the broker has asked to publish nothing.
    pub(crate) fn blocked(&self) -> watch::Receiver<bool> {
        self.blocked.subscribe()
    }

    /// The connection as it is now; waits for one until then.
    pub(crate) async fn up_until(self: &Arc<Self>, until: Instant) -> Result<Arc<Up>, SendError> {
        match tokio::time::timeout_at(until, self.up()).await {
            Ok(Some(up)) => Ok(up),
            Ok(None) => Err(SendError::outage(
                self.said("the connection is being closed"),
            )),
            Err(_) => Err(SendError::outage(self.why_not()).timed_out()),
        }
    }

    /// The connection as it is now; waits for one for ever, or until nobody needs it any more.
    pub(crate) async fn up(self: &Arc<Self>) -> Option<Arc<Up>> {
        self.start();
        let mut up = self.up.subscribe();
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            found = up.wait_for(|up| up.as_ref().is_some_and(|up| !up.lost.is_cancelled())) => {
                found.ok()?.clone()
            }
        }
    }

    /// Ends when the connection has been down for all of `patience`, an attempt to make it included.
    pub(crate) async fn down_for(&self, patience: Duration) {
        let mut since = Instant::now();
        loop {
            sleep(Duration::from_millis(100)).await;
            // Also while it is tried again; not while it is tried for the first time.
            let down = self.up.borrow().is_none() && self.state().error.is_some();
            if !down {
                since = Instant::now();
            } else if since.elapsed() >= patience {
                return;
            }
        }
    }

    /// Why there is no connection, or why nothing can be sent.
    pub(crate) fn why_not(&self) -> String {
        let state = self.state();
        match (state.phase, state.error) {
            (ConnectionPhase::Blocked, reason) => self.said(&format!(
                "the broker takes no messages for now: {}; it has to get room again, see \
                 'rabbitmqctl status'",
                reason.unwrap_or_default()
            )),
            (ConnectionPhase::Up, _) => self.said("the connection is up, and it took too long"),
            (_, Some(error)) => format!("connection '{}': {error}", self.settings.name),
            (_, None) => self.said("no connection in time"),
        }
    }

    /// A text that says which connection it is about.
    pub(crate) fn said(&self, what: &str) -> String {
        let Settings { name, address, .. } = &*self.settings;
        format!("connection '{name}' ({address}): {what}")
    }

    fn set(&self, phase: ConnectionPhase, error: Option<String>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let no_connection =
            |phase| matches!(phase, ConnectionPhase::Connecting | ConnectionPhase::Down);
        // Being down goes on while it is tried again.
        if state.phase != phase && !(no_connection(state.phase) && no_connection(phase)) {
            state.since = Timestamp::now();
        }
        state.phase = phase;
        state.error = error.map(|error| secrets::mask(&error).into_owned());
    }

    /// Keeps the connection until nobody needs it any more.
    async fn keep(self: Arc<Self>) {
        let mut backoff = Backoff::new();
        let mut told: Option<String> = None;
        loop {
            let error = self.state().error.filter(|_| told.is_some());
            self.set(ConnectionPhase::Connecting, error);
            let made = tokio::select! {
                biased;
                () = self.stop.cancelled() => return self.set(ConnectionPhase::Idle, None),
                made = connect(&self.settings, self.name.clone()) => made,
            };
            let why = match made {
                Ok(connection) => {
                    if told.take().is_some() {
                        tracing::info!(connection = %self.settings.name, "connected again");
                    }
                    let since = Instant::now();
                    let why = self.hold(connection).await;
                    if since.elapsed() >= LASTING {
                        backoff.reset();
                    }
                    why
                }
                Err(error) => Some(error),
            };
            self.up.send_replace(None);
            self.blocked.send_replace(false);
            let Some(why) = why else {
                return self.set(ConnectionPhase::Idle, None);
            };
            if told.as_ref() != Some(&why) {
                let error = secrets::mask(&why).into_owned();
                tracing::warn!(connection = %self.settings.name, %error, "not connected");
            }
            self.set(ConnectionPhase::Down, Some(why.clone()));
            told = Some(why);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return self.set(ConnectionPhase::Idle, None),
                () = sleep(backoff.next()) => {}
            }
        }
    }

    /// Holds a connection while it stands. Gives why it was lost; nothing when it was closed because
    /// nobody needs it any more.
    async fn hold(&self, connection: Connection) -> Option<String> {
        let mut events = Box::pin(connection.events_listener());
        let up = Arc::new(Up {
            connection,
            lost: CancellationToken::new(),
        });
        let _lost = up.lost.clone().drop_guard();
        let lost = |what: &str| format!("{} was lost: {what}", self.settings.address);
        let declared = self.settings.topology.declare(&up.connection);
        let mut missing = match timeout(DECLARE, declared).await {
            Ok(Ok(missing)) => missing,
            Ok(Err(error)) => return Some(lost(&describe(&error))),
            Err(_) => return Some(lost("what is to be declared was not answered in time")),
        };
        self.undeclared(missing.clone());
        self.made.fetch_add(1, Ordering::Relaxed);
        self.set(ConnectionPhase::Up, None);
        self.up.send_replace(Some(up.clone()));
        let mut declare_at = Instant::now() + DECLARE_AGAIN;
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    let bye = up.connection.close(200, "the bus needs it no more".into());
                    let _ = timeout(LEAVE, bye).await;
                    return None;
                }
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => self.block(Some(reason)),
                    Some(Event::ConnectionUnblocked) => self.block(None),
                    Some(Event::Error(error)) if !up.connection.status().connected() => {
                        return Some(lost(&describe(&error)));
                    }
                    Some(_) => {}
                    None => return Some(lost("it was closed")),
                },
                () = sleep(LOOK) => {
                    if !up.connection.status().connected() {
                        return Some(lost("it was closed"));
                    }
                    // Said before anybody listened.
                    if up.connection.status().blocked() && !*self.blocked.borrow() {
                        self.block(Some(String::from("a resource of it runs out")));
                    }
                    if missing.is_some() && Instant::now() >= declare_at {
                        let again = self.settings.topology.declare(&up.connection);
                        if let Ok(Ok(again)) = timeout(self.settings.timeout, again).await {
                            missing = again;
                            self.undeclared(missing.clone());
                        }
                        declare_at = Instant::now() + DECLARE_AGAIN;
                    }
                }
            }
        }
    }

    fn block(&self, reason: Option<String>) {
        let connection = &self.settings.name;
        match &reason {
            Some(reason) => tracing::warn!(%connection, %reason, "the broker takes no messages"),
            None => tracing::info!(%connection, "the broker takes messages again"),
        }
        self.blocked.send_replace(reason.is_some());
        match reason {
            Some(reason) => self.set(ConnectionPhase::Blocked, Some(reason)),
            None => self.set(ConnectionPhase::Up, None),
        }
    }

    fn undeclared(&self, what: Option<String>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = what
            .as_ref()
            .filter(|what| state.undeclared.as_ref() != Some(what))
        {
            tracing::warn!(connection = %self.settings.name, %error, "not declared");
        }
        state.undeclared = what;
    }
}
