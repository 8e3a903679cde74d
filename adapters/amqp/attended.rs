//! The queue that a receiver works off, as administrators see it and act on it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use lapin::Channel;
use lapin::types::ShortString;
use tokio::sync::{Mutex, oneshot};
use tokio::time::{Instant, timeout};
use xbus_core::MessageId;
use xbus_core::adapter::ConnectionPhase;
use xbus_core::broker::{LaneCommand, LaneDone};
use xbus_core::queues::ReceivedQueue;
use xbus_core::store::{QueueStatus, Queued, StoreError};

use crate::ledger::{Ledger, Not, Released, Wanted};
use crate::link::Link;
use crate::shelf::{self, Trouble};

/// How long looking at the broker may take.
const LOOK: Duration = Duration::from_secs(3);
/// How long a queue that is absent is not asked for again: each time is an error in the broker's log.
const ABSENT: Duration = Duration::from_secs(300);
/// How long a command waits for an attempt that is under way.
const PATIENCE: Duration = Duration::from_secs(35);

/// A receiver's queue with what was set aside from it.
pub(crate) struct Attended {
    link: Arc<Link>,
    queue: ShortString,
    parked: ShortString,
    ledger: Arc<Ledger>,
    /// Held by whoever looks: what one has taken to look at it, another would not find.
    looks: Mutex<Looks>,
}

#[derive(Default)]
struct Looks {
    /// For counting; an error closes it.
    channel: Option<Channel>,
    /// When there was no queue for what is set aside.
    absent: Option<Instant>,
}

impl Attended {
    pub(crate) fn new(
        link: Arc<Link>,
        queue: ShortString,
        parked: ShortString,
        ledger: Arc<Ledger>,
    ) -> Self {
        Self {
            link,
            queue,
            parked,
            ledger,
            looks: Mutex::default(),
        }
    }

    /// How many messages are ready in the queue, and are set aside.
    async fn counts(&self, ready: bool) -> (Result<u64, String>, u64) {
        let mut looks = self.looks.lock().await;
        let waiting = match ready {
            true => match self.count(&mut looks, &self.queue).await {
                Ok(count) => Ok(count),
                Err(Trouble::Missing) => Err(format!("there is no queue '{}'", self.queue)),
                Err(Trouble::Refused(why) | Trouble::Other(why)) => Err(why),
            },
            false => Ok(0),
        };
        if self.ledger.has_parked() {
            looks.absent = None;
        }
        if looks.absent.is_some_and(|since| since.elapsed() < ABSENT) {
            return (waiting, 0);
        }
        match self.count(&mut looks, &self.parked).await {
            Ok(parked) => (waiting, parked),
            // Whoever may not look there may not have set anything aside.
            Err(Trouble::Missing | Trouble::Refused(_)) => {
                looks.absent = Some(Instant::now());
                (waiting, 0)
            }
            Err(Trouble::Other(why)) => (waiting.and(Err(why)), 0),
        }
    }

    async fn count(&self, looks: &mut Looks, queue: &ShortString) -> Result<u64, Trouble> {
        let known = looks.channel.take();
        let channel = match known.filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => shelf::open(&self.link).await?,
        };
        let count = shelf::count(&channel, queue).await?;
        looks.channel = Some(channel);
        Ok(count)
    }

    async fn look(&self) -> (QueueStatus, Option<String>) {
        let heads = self.ledger.heads();
        let held = self.ledger.held();
        let mut status = QueueStatus {
            name: self.ledger.name().clone(),
            depth: held.len() as u64,
            parked: 0,
            blocked_keys: heads.iter().filter(|head| head.attempts > 0).count() as u64,
            head: heads.into_iter().chain(held).next(),
        };
        let trouble = self.ledger.trouble();
        let connection = self.link.receiving.state();
        if matches!(
            connection.phase,
            ConnectionPhase::Connecting | ConnectionPhase::Down
        ) && connection.error.is_some()
        {
            return (status, Some(self.link.receiving.why_not()));
        }
        match timeout(LOOK, self.counts(trouble.is_none())).await {
            Ok((waiting, parked)) => {
                status.parked = parked;
                match waiting {
                    Ok(waiting) => status.depth += waiting,
                    Err(why) => return (status, trouble.or(Some(why))),
                }
                (status, trouble)
            }
            Err(_) => {
                let why = String::from("what waits is not known: the broker does not answer");
                (status, trouble.or(Some(why)))
            }
        }
    }

    async fn shown(&self, limit: usize) -> Result<Vec<Queued>, StoreError> {
        let mut looks = self.looks.lock().await;
        match shelf::list(&self.link, &self.parked, limit).await {
            Ok(found) => {
                looks.absent = None;
                let number = found.iter().zip(0_u64..);
                Ok(number
                    .map(|(parked, number)| parked.queued(self.ledger.name(), number))
                    .collect())
            }
            Err(Trouble::Missing) => Ok(Vec::new()),
            Err(Trouble::Refused(why) | Trouble::Other(why)) => Err(failed(why)),
        }
    }

    /// Takes up again what was released and given back undone, oldest first.
    pub(crate) async fn released_before(&self) -> Vec<Released> {
        let ids = self.ledger.take_released();
        let mut found = Vec::new();
        if ids.is_empty() {
            return found;
        }
        let _looks = self.looks.lock().await;
        for id in ids {
            // It was given back just now, and may not lie there yet.
            let until = Instant::now() + LOOK;
            let taken = loop {
                match shelf::take(&self.link, &self.parked, id).await {
                    Ok(None) if Instant::now() < until => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    taken => break taken,
                }
            };
            match taken {
                Ok(Some((parked, channel))) => found.push(Released {
                    delivery: parked.delivery,
                    channel,
                    carried: parked.carried,
                    done: oneshot::channel().0,
                }),
                other => {
                    let why = other.err();
                    tracing::warn!(queue = %self.queue, %id, ?why, "a message that was released stays set aside");
                }
            }
        }
        found
    }

    async fn release(&self, id: MessageId) -> Result<LaneDone, StoreError> {
        let closed = || {
            let why = self.ledger.trouble();
            let why = why.unwrap_or_else(|| String::from("its channel is being renewed"));
            StoreError::NotFound(format!(
                "queue '{}' is not read now, so that message {id} stays parked: {why}",
                self.ledger.name()
            ))
        };
        let entrance = self.ledger.entrance().ok_or_else(closed)?;
        let taken = {
            let _looks = self.looks.lock().await;
            match shelf::take(&self.link, &self.parked, id).await {
                Ok(taken) => taken,
                Err(Trouble::Missing) => None,
                Err(Trouble::Refused(why) | Trouble::Other(why)) => return Err(failed(why)),
            }
        };
        let Some((parked, channel)) = taken else {
            return Err(StoreError::NotFound(format!(
                "message {id} is not parked in queue '{}'",
                self.ledger.name()
            )));
        };
        let (done, inside) = oneshot::channel();
        let released = Released {
            delivery: parked.delivery,
            channel: channel.clone(),
            carried: parked.carried,
            done,
        };
        let sent = entrance.send(released).is_ok();
        if !sent || inside.await.is_err() {
            shelf::close(&channel).await;
            return Err(closed());
        }
        Ok(LaneDone {
            id: Some(id),
            heads: 0,
        })
    }

    /// Asks something of a head, and waits until it is done; `false` when it is not held.
    async fn ask(&self, id: MessageId, wanted: Wanted) -> Result<bool, StoreError> {
        let name = self.ledger.name();
        let answer = match self.ledger.ask(id, wanted) {
            Ok(answer) => answer,
            Err(Not::Here) => return Ok(false),
            Err(Not::Head) => {
                return Err(StoreError::NotFound(format!(
                    "message {id} waits behind the head of queue '{name}'; only heads can be tried, parked or dropped"
                )));
            }
        };
        match timeout(PATIENCE, answer).await {
            Ok(Ok(Ok(()))) => Ok(true),
            Ok(Ok(Err(why))) => Err(failed(why)),
            Ok(Err(_)) => Err(StoreError::NotFound(format!(
                "message {id} is not a head of queue '{name}' any more: it was delivered or set aside, or was given back to the broker"
            ))),
            Err(_) => Err(StoreError::NotFound(format!(
                "message {id} of queue '{name}' is being tried for more than {} s; nothing was done",
                PATIENCE.as_secs()
            ))),
        }
    }

    async fn act(&self, command: LaneCommand) -> Result<LaneDone, StoreError> {
        let name = self.ledger.name();
        let not_held = |id: Option<MessageId>| {
            let what = id.map_or_else(
                || String::from("no message"),
                |id| format!("no message {id}"),
            );
            StoreError::NotFound(format!(
                "this bus holds {what} at the head of queue '{name}'; another node may"
            ))
        };
        match command {
            LaneCommand::Retry(id) => match self.ledger.retry(id) {
                0 => Err(not_held(id)),
                heads => Ok(LaneDone { id, heads }),
            },
            LaneCommand::Park(id, reason) => {
                let oldest = || self.ledger.heads().first().map(|head| head.message.id);
                let head = id.or_else(oldest).ok_or_else(|| not_held(None))?;
                match self.ask(head, Wanted::Park(reason)).await? {
                    true => Ok(done(head, 1)),
                    false => Err(not_held(id)),
                }
            }
            LaneCommand::Release(id) => self.release(id).await,
            LaneCommand::Drop(id) => {
                if self.ask(id, Wanted::Drop).await? {
                    return Ok(done(id, 1));
                }
                let _looks = self.looks.lock().await;
                match shelf::drop_parked(&self.link, &self.parked, id).await {
                    Ok(true) => Ok(done(id, 0)),
                    Ok(false) | Err(Trouble::Missing) => Err(StoreError::NotFound(format!(
                        "message {id} is neither a head of queue '{name}' that this bus holds nor parked in it"
                    ))),
                    Err(Trouble::Refused(why) | Trouble::Other(why)) => Err(failed(why)),
                }
            }
        }
    }
}

impl ReceivedQueue for Attended {
    fn name(&self) -> &Arc<str> {
        self.ledger.name()
    }

    fn connection(&self) -> &Arc<str> {
        self.link.name()
    }

    fn status(&self) -> BoxFuture<'_, (QueueStatus, Option<String>)> {
        Box::pin(self.look())
    }

    fn entries(
        &self,
        parked: bool,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Queued>, StoreError>> {
        Box::pin(async move {
            if parked {
                return self.shown(limit).await;
            }
            let mut held = self.ledger.held();
            held.truncate(limit);
            Ok(held)
        })
    }

    fn command(&self, command: LaneCommand) -> BoxFuture<'_, Result<LaneDone, StoreError>> {
        Box::pin(self.act(command))
    }
}

fn done(id: MessageId, heads: usize) -> LaneDone {
    LaneDone {
        id: Some(id),
        heads,
    }
}

fn failed(why: String) -> StoreError {
    StoreError::Broker(format!("the broker does not answer as it should: {why}"))
}
