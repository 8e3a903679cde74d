//! One message that is held: tried until it is done or set aside, then acknowledged.
//!
//! Absent on purpose: negative acknowledgement. What is given back stays unacknowledged until its
//! channel is closed, which leaves it where it was in the queue.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lapin::message::Delivery;
use lapin::options::BasicAckOptions;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep};
use xbus_core::adapter::Class;
use xbus_core::plan::LanePolicy;
use xbus_core::{
    Arrival, Code, Fault, Inbox, Message, MessageId, Reply, SendError, Stop, Timestamp,
};

use crate::ack::ack;
use crate::answer::{Answer, Ask};
use crate::grip::Grip;
use crate::ledger::{Ledger, Order, Ticket, Wanted};
use crate::link::Publish;
use crate::memory::{Aside, Carried, Identity, Memory};
use crate::properties::{line, short};

/// How long one publication may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long an acknowledgement under way is waited for once everything is to be given back.
const LAST_WORD: Duration = Duration::from_secs(5);

/// Longest reason in a header of a message that is set aside, in bytes.
const LONGEST_REASON: usize = 2000;

/// What messages are handed to: the inbox, or a test's stand-in.
pub(crate) trait Door: Send + Sync {
    /// See [`Inbox::deliver`] and, for a sender that waits, [`Inbox::ask`].
    fn deliver(&self, arrival: Arrival, waits: bool) -> BoxFuture<'_, Result<Reply, Fault>>;
    /// See [`Inbox::seen`].
    fn seen(&self, key: &str) -> bool;
    /// See [`Inbox::forget`].
    fn forget(&self, key: Arc<str>) -> BoxFuture<'_, ()>;
    /// See [`Inbox::fails`].
    fn fails(&self, kind: &'static str, error: &str);
    /// The route cannot be run for the head of `queue`, whose name is as administrators know it.
    fn rejects(&self, error: &str, queue: &str);
    /// See [`Inbox::works`].
    fn works(&self);
    /// See [`Inbox::policy`].
    fn policy(&self) -> LanePolicy;
    /// Whether the route says how messages are ordered, see [`Inbox::order_by`].
    fn orders(&self) -> bool;
    /// The key of a message; nothing where there is none.
    fn key(&self, message: &Arc<Message>) -> Option<Arc<str>>;
    /// See [`Inbox::answers`].
    fn answers(&self) -> bool;
    /// See [`Inbox::commits`].
    fn commits(&self) -> bool;
    /// The route's name.
    fn route(&self) -> Arc<str>;
    /// What failed at `step` is over.
    fn cleared(&self, step: &str);
}

impl Door for Inbox {
    fn deliver(&self, arrival: Arrival, waits: bool) -> BoxFuture<'_, Result<Reply, Fault>> {
        match waits {
            true => Box::pin(self.ask(arrival)),
            false => Box::pin(Inbox::deliver(self, arrival)),
        }
    }

    fn seen(&self, key: &str) -> bool {
        Inbox::seen(self, key)
    }

    fn forget(&self, key: Arc<str>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Err(error) = Inbox::forget(self, &[key]).await {
                tracing::warn!(route = %Inbox::route(self), %error, "a message's key is not forgotten");
            }
        })
    }

    fn fails(&self, kind: &'static str, error: &str) {
        Inbox::fails(self, kind, error);
    }

    fn rejects(&self, error: &str, queue: &str) {
        let (route, incidents) = (Inbox::route(self), self.bus().incidents());
        // Without the message: what the route never got cannot be shown by its id.
        incidents.failed(route, "receive", "rejection", error, None, Some(queue));
    }

    fn works(&self) {
        Inbox::works(self);
    }

    fn policy(&self) -> LanePolicy {
        Inbox::policy(self).clone()
    }

    fn orders(&self) -> bool {
        self.order_by().is_some()
    }

    fn key(&self, message: &Arc<Message>) -> Option<Arc<str>> {
        let context = xbus_core::Context::new(Inbox::route(self).clone(), message.clone());
        // A message whose key cannot be told keeps its order with those that have none; the route
        // finds out what is wrong with it.
        let value = self.order_by()?.evaluate(message, &context).ok()?;
        Some(value.into_text().into())
    }

    fn answers(&self) -> bool {
        Inbox::answers(self)
    }

    fn commits(&self) -> bool {
        Inbox::commits(self)
    }

    fn route(&self) -> Arc<str> {
        Inbox::route(self).clone()
    }

    fn cleared(&self, step: &str) {
        self.bus().incidents().succeeded(Inbox::route(self), step);
    }
}

/// Where answers and what is set aside go: the connection, or a test's stand-in.
pub(crate) trait Outlet: Send + Sync {
    /// See [`crate::link::Link::publish`].
    fn publish(&self, publish: Publish, until: Instant) -> BoxFuture<'_, Result<(), SendError>>;
    /// See [`crate::link::Link::publish_optional`].
    fn answer(&self, publish: Publish, until: Instant) -> BoxFuture<'_, Result<(), SendError>>;
    /// Sees that the queue for what is set aside is there.
    fn declare<'a>(
        &'a self,
        queue: &'a ShortString,
        until: Instant,
    ) -> BoxFuture<'a, Result<(), String>>;
}

/// What all messages of one channel share.
pub(crate) struct Desk {
    pub(crate) door: Arc<dyn Door>,
    pub(crate) outlet: Arc<dyn Outlet>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) ledger: Arc<Ledger>,
    /// The queue, and the one for what is set aside from it.
    pub(crate) queue: ShortString,
    pub(crate) parked: ShortString,
    /// The channel's hold on its messages; none where a test stands in for the broker.
    pub(crate) grip: Option<Grip>,
    /// How many attempts run at once.
    pub(crate) places: Semaphore,
    /// Says that what is not under way is to be given back.
    pub(crate) give_back: Stop,
}

/// What a message comes to that waits for its turn.
enum Turn<'a> {
    /// It is to be given back.
    GiveBack,
    /// An administrator wants something of it.
    Order(Order),
    /// An earlier message was released and goes first.
    StepAside,
    /// It may be tried, and has a place for that; or, without one, set aside.
    Due(Option<SemaphorePermit<'a>>),
}

/// See [`Held::place`].
pub(crate) type Place = (i64, MessageId);

/// A message that is held.
pub(crate) struct Held {
    /// What tells it from the others of its channel.
    pub(crate) number: u64,
    /// It was set aside before, and is acknowledged there.
    pub(crate) released: bool,
    /// The channel that holds a released one.
    pub(crate) shelf: Option<Channel>,
    /// It was tried in this window, so that only what came before it may go before it.
    pub(crate) begun: bool,
    /// Says, while it is tried, that an earlier one was released and goes first.
    pub(crate) step_aside: Stop,
    pub(crate) ticket: Ticket,
    /// The delivery without its body.
    pub(crate) delivery: Delivery,
    pub(crate) body: Bytes,
    /// Made when it is asked for: it hashes the body, and few messages come twice.
    pub(crate) identity: OnceLock<Identity>,
    /// The message, or why there is none; and what it comes from.
    pub(crate) message: Result<(Arc<Message>, Option<MessageId>), Fault>,
    pub(crate) carried: Carried,
    /// Who waits for an answer.
    pub(crate) ask: Option<Ask>,
}

impl Held {
    /// Gives it back, so that it is known when it comes again.
    pub(crate) fn carry(self, desk: &Desk) {
        if self.released {
            let Carried {
                received_at, id, ..
            } = self.carried;
            desk.ledger.release_again(received_at, id);
        }
        if self.carried.attempts > 0 || self.carried.aside.is_some() {
            desk.memory.carry(self.identity(), self.carried);
        }
    }

    /// Where it stands among messages of its key: by when it first came, to the millisecond that is
    /// written down of what is set aside, and by its id, which ascends within that.
    pub(crate) fn place(&self) -> Place {
        let Carried {
            received_at, id, ..
        } = &self.carried;
        (received_at.as_micros().div_euclid(1000), *id)
    }

    /// What tells it from others when it comes again.
    pub(crate) fn identity(&self) -> Identity {
        let known = || Identity::with_body(&self.delivery, &self.body);
        *self.identity.get_or_init(known)
    }

    /// Whether the publisher gave it an id: without one a repeat may be another message.
    pub(crate) fn has_id(&self) -> bool {
        has_id(&self.delivery.properties)
    }
}

fn has_id(properties: &BasicProperties) -> bool {
    properties
        .message_id()
        .as_ref()
        .is_some_and(|id| !id.as_str().is_empty())
}

impl Desk {
    /// Tries a message until it is acknowledged, or given back. Gives it when it steps aside before
    /// that.
    pub(crate) async fn hold(&self, mut held: Held) -> Option<Held> {
        held.ticket.begin(true);
        held.begun = true;
        loop {
            if held.carried.aside.is_some() {
                match self.set_aside(&held).await {
                    Ok(()) => {
                        self.acknowledge(&held).await;
                        return None;
                    }
                    Err(error) => {
                        self.door.fails("outage", &error);
                        held.carried.next_try = Some(Instant::now() + Duration::from_secs(5));
                    }
                }
            }
            held.ticket.note(&held.carried);
            let place = match self.turn(&mut held).await {
                Turn::GiveBack => {
                    held.carry(self);
                    return None;
                }
                Turn::StepAside => return Some(self.step_aside(held)),
                Turn::Order(order) => match self.obey(&mut held, order).await {
                    true => return None,
                    false => continue,
                },
                Turn::Due(None) => continue,
                Turn::Due(Some(place)) => place,
            };
            if !self.is_ours().await {
                held.carry(self);
                return None;
            }
            if held.step_aside.is_cancelled() {
                return Some(self.step_aside(held));
            }
            held.ticket.running(true);
            let result = self.attempt(&held).await;
            held.ticket.running(false);
            drop(place);
            match result {
                Ok(reply) => {
                    if let Some(step) = &held.carried.step {
                        self.door.cleared(step);
                    }
                    for step in self.memory.mended() {
                        self.door.cleared(&step);
                    }
                    let answer = held.ask.as_ref().map(|ask| ask.reply(&reply));
                    self.finish(&held, answer).await;
                    return None;
                }
                Err(fault) => {
                    if self.failed(&mut held, fault).await {
                        return None;
                    }
                }
            }
        }
    }

    /// Waits behind an earlier message that was released. When that one is dealt with it is tried at
    /// once: how its destination does is known anew then.
    fn step_aside(&self, mut held: Held) -> Held {
        tracing::info!(route = %self.door.route(), id = %held.carried.id, queue = %self.queue, "the message waits for an earlier one that was released");
        held.ticket.begin(false);
        held.carried.next_try = None;
        held.ticket.note(&held.carried);
        held
    }

    async fn attempt(&self, held: &Held) -> Result<Reply, Fault> {
        let (message, cause) = match &held.message {
            Ok((message, cause)) => (message, *cause),
            Err(fault) => return Err(fault.clone()),
        };
        let seen_as = (held.has_id() && self.door.commits()).then(|| held.identity().key());
        let arrival = Arrival {
            message: Message::clone(message),
            caller: None,
            passing: Vec::new(),
            seen_as,
            seen_also: None,
            cause,
            replayed: false,
            attempts: held.carried.attempts,
            fits: None,
        };
        self.door.deliver(arrival, held.ask.is_some()).await
    }

    /// What a fault means for the message; `true` when it has ended.
    async fn failed(&self, held: &mut Held, fault: Fault) -> bool {
        let policy = self.door.policy();
        let carried = &mut held.carried;
        carried.attempts += 1;
        let (id, attempts, route) = (carried.id, carried.attempts, self.door.route());
        // One that waits is told at once, as over HTTP: it decides whether to ask again.
        if let Some(ask) = &held.ask {
            tracing::warn!(%route, %id, error = %fault, "the message failed, which its sender is told");
            let answer = ask.fault(id, &fault);
            self.finish(held, Some(answer)).await;
            return true;
        }
        let rejected = fault.rejected || fault.code == Code::Transform;
        let in_doubt = fault.code == Code::InDoubt;
        let aside = in_doubt || (rejected && policy.park_rejected);
        if held.message.is_err() {
            // The route never sees it, so that nobody else tells of it.
            let error = format!("message {id}: {}", fault.for_admin());
            self.door.rejects(&error, self.ledger.name());
        }
        let step = match held.message {
            Ok(_) => fault.step.clone().unwrap_or_else(|| Arc::from("route")),
            Err(_) => Arc::from("receive"),
        };
        carried.step = Some(step);
        let wait = policy
            .retry
            .wait(attempts)
            .max(fault.retry_after.unwrap_or_default());
        tracing::warn!(%route, %id, queue = %self.queue, attempts, parked = aside, error = %fault, retry_in = ?(!aside).then_some(wait), "the message failed");
        carried.next_try = (!aside).then(|| Instant::now() + wait);
        carried.aside = aside.then_some(Aside::Failed);
        carried.fault = Some(fault);
        false
    }

    /// Does what an administrator wants of a message that waits; `true` when it has ended.
    async fn obey(&self, held: &mut Held, order: Order) -> bool {
        let ended = match order.wanted {
            Wanted::Retry => {
                held.carried.next_try = None;
                Ok(false)
            }
            Wanted::Park(reason) => {
                let before = held.carried.aside.replace(Aside::Asked(reason));
                let done = self.set_aside(held).await;
                if done.is_err() {
                    held.carried.aside = before;
                }
                done.map(|()| true)
            }
            Wanted::Drop => Ok(true),
        };
        if matches!(ended, Ok(true)) {
            if let Some(step) = &held.carried.step {
                self.door.cleared(step);
            }
            self.acknowledge(held).await;
        }
        let _ = order.done.send(ended.clone().map(drop));
        ended.unwrap_or(false)
    }

    /// Sends the answer, then acknowledges.
    pub(crate) async fn finish(&self, held: &Held, answer: Option<Answer>) {
        if let Some(answer) = &answer
            && !self.send(answer).await
        {
            // It will come again, and then only this is made up for.
            return self.memory.done(held.identity(), Some(answer.clone()));
        }
        self.acknowledge(held).await;
    }

    /// Sends an answer. Whether nothing is left to do about it: a queue that is gone is one that
    /// nobody waits at any more.
    async fn send(&self, answer: &Answer) -> bool {
        loop {
            let until = Instant::now() + PATIENCE;
            match self.outlet.answer(answer.publish(), until).await {
                Ok(()) => return true,
                Err(error) if error.class == Class::Rejected => {
                    tracing::debug!(route = %self.door.route(), error = %error.detail, "the broker refuses the answer");
                    return true;
                }
                Err(error) => {
                    tracing::warn!(route = %self.door.route(), error = %error.detail, "an answer could not be sent");
                }
            }
            if self
                .wait(Some(Instant::now() + Duration::from_secs(1)))
                .await
            {
                return false;
            }
        }
    }

    /// Tells the broker that the message is done; `false`: it was lost before.
    async fn ack(&self, held: &Held) -> lapin::Result<bool> {
        let (shelf, own) = (held.shelf.as_ref(), self.grip.as_ref().map(Grip::channel));
        match shelf.or(own) {
            Some(channel) => ack(channel, held.delivery.delivery_tag).await,
            None => held.delivery.acker.ack(BasicAckOptions::default()).await,
        }
    }

    /// Acknowledges; where that is impossible, remembers that the message is done.
    async fn acknowledge(&self, held: &Held) {
        let has_id = held.has_id();
        let acked = tokio::select! {
            biased;
            acked = self.ack(held) => acked,
            // lapin may leave one unanswered that meets the loss of its connection.
            () = async { self.give_back.cancelled().await; sleep(LAST_WORD).await } => {
                tracing::debug!(queue = %self.queue, "an acknowledgement was not answered");
                if has_id {
                    self.memory.done(held.identity(), None);
                }
                return;
            }
        };
        match acked {
            Ok(true) if has_id => {
                // The connection may be lost before the broker has read it.
                self.memory.done(held.identity(), None);
                if self.door.commits() {
                    self.memory.forget_later(held.identity().key());
                }
            }
            Ok(true) => {}
            // The channel was gone: it was certainly not acknowledged.
            Ok(false) => self.memory.done(held.identity(), None),
            Err(error) => {
                tracing::debug!(queue = %self.queue, %error, "an acknowledgement failed");
                if has_id {
                    self.memory.done(held.identity(), None);
                }
            }
        }
    }

    /// Puts a message into the queue of what is set aside, with why.
    async fn set_aside(&self, held: &Held) -> Result<(), String> {
        let Some(why) = &held.carried.aside else {
            return Ok(());
        };
        let until = Instant::now() + PATIENCE;
        let cannot =
            |why: String| format!("a message cannot be set aside in '{}': {why}", self.parked);
        self.outlet
            .declare(&self.parked, until)
            .await
            .map_err(cannot)?;
        let properties = aside_properties(held, why, &self.queue, &self.door.route());
        let publish = Publish {
            exchange: Arc::from(""),
            routing_key: Arc::from(self.parked.as_str()),
            properties,
            body: held.body.clone(),
        };
        self.outlet
            .publish(publish, until)
            .await
            .map_err(|error| cannot(error.detail))?;
        self.ledger.set_parked();
        if let Some(step) = &held.carried.step {
            self.memory.failed_at(step);
        }
        tracing::warn!(route = %self.door.route(), id = %held.carried.id, queue = %self.parked, "the message was set aside");
        Ok(())
    }

    /// Waits; `true` when what is not under way is to be given back.
    async fn wait(&self, until: Option<Instant>) -> bool {
        if let Some(until) = until {
            tokio::select! {
                () = self.give_back.cancelled() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
        self.give_back.is_cancelled()
    }

    /// Whether what is held is still ours; when it is not, what is not under way was given back.
    async fn is_ours(&self) -> bool {
        let fresh = self.grip.as_ref().is_none_or(Grip::is_fresh);
        if fresh || self.give_back.is_cancelled() {
            return !self.give_back.is_cancelled();
        }
        let proven = async {
            match &self.grip {
                Some(grip) => grip.prove().await,
                None => Ok(()),
            }
        };
        let proven = tokio::select! {
            biased;
            () = self.give_back.cancelled() => return false,
            proven = proven => proven,
        };
        if let Err(error) = proven {
            tracing::debug!(queue = %self.queue, %error, "what is held is not ours any more");
            // The consumer ends with the channel, and then all of it is given back.
            self.give_back.cancelled().await;
            return false;
        }
        true
    }

    /// Waits until the message may be tried, or something else is to be done with it.
    async fn turn(&self, held: &mut Held) -> Turn<'_> {
        let (next_try, aside) = (held.carried.next_try, held.carried.aside.is_some());
        // As below, for one that nothing keeps: most of all messages.
        let kept = self.give_back.is_cancelled() || held.step_aside.is_cancelled();
        if next_try.is_none()
            && !aside
            && !kept
            && !held.ticket.is_asked()
            && let Ok(place) = self.places.try_acquire()
        {
            return Turn::Due(Some(place));
        }
        let due = async {
            if let Some(at) = next_try {
                tokio::time::sleep_until(at).await;
            }
            match aside {
                true => Turn::Due(None),
                // The semaphore is never closed.
                false => Turn::Due(self.places.acquire().await.ok()),
            }
        };
        tokio::select! {
            biased;
            () = self.give_back.cancelled() => Turn::GiveBack,
            order = held.ticket.order() => Turn::Order(order),
            () = held.step_aside.cancelled() => Turn::StepAside,
            due = due => due,
        }
    }
}

/// The properties of a message that is set aside: its own, but for those by which the broker would
/// drop it, refuse it or copy it elsewhere; and why it lies there.
fn aside_properties(held: &Held, why: &Aside, queue: &ShortString, route: &str) -> BasicProperties {
    let mut properties = BasicProperties::default();
    let original = &held.delivery.properties;
    macro_rules! keep {
        ($($get:ident => $with:ident),*) => {
            $(if let Some(value) = original.$get().clone() {
                properties = properties.$with(value);
            })*
        };
    }
    keep!(
        content_type => with_content_type,
        content_encoding => with_content_encoding,
        priority => with_priority,
        correlation_id => with_correlation_id,
        reply_to => with_reply_to,
        message_id => with_message_id,
        timestamp => with_timestamp,
        kind => with_type,
        app_id => with_app_id
    );
    let mut headers = FieldTable::default();
    for (name, value) in original.headers().iter().flatten() {
        let dropped = ["CC", "BCC", "x-delivery-count"].contains(&name.as_str());
        if !dropped && !name.as_str().starts_with("x-xbus-") {
            headers.insert(name.clone(), value.clone());
        }
    }
    let mut say = |name: &str, value: &str| {
        if let Some(name) = short(name) {
            headers.insert(name, AMQPValue::LongString(LongString::from(value)));
        }
    };
    let error = held.carried.last_error().unwrap_or_default();
    let reason = match why {
        Aside::Failed => &error,
        Aside::Asked(reason) => {
            say("x-xbus-last-error", &line(&error, LONGEST_REASON));
            reason
        }
    };
    say("x-xbus-reason", &line(reason, LONGEST_REASON));
    if let Some(fault) = &held.carried.fault {
        say("x-xbus-code", fault.code.name());
    }
    say("x-xbus-received-at", &held.carried.received_at.to_string());
    say("x-xbus-parked-at", &Timestamp::now().to_string());
    say("x-xbus-id", &held.carried.id.to_string());
    say("x-xbus-route", route);
    say("x-xbus-queue", queue.as_str());
    say("x-xbus-exchange", held.delivery.exchange.as_str());
    say("x-xbus-routing-key", held.delivery.routing_key.as_str());
    say("x-xbus-attempts", &held.carried.attempts.to_string());
    if let Some(expiration) = original.expiration() {
        say("x-xbus-expiration", expiration.as_str());
    }
    if let Some(user) = original.user_id() {
        say("x-xbus-user-id", user.as_str());
    }
    properties.with_headers(headers)
}
