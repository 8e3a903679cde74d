//! What a receiver remembers of messages beyond the life of a channel: attempts at those that it
//! gave back, and that it has done those which it could not acknowledge.
//!
//! All of it is bounded. What is pushed out costs an attempt's count or a repeat, never a message.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::message::Delivery;
use lapin::types::ShortString;
use tokio::time::Instant;
use uuid::Uuid;
use xbus_core::{Fault, MessageId, Timestamp};

use crate::answer::Answer;

/// How many of each kind are remembered.
const MOST: usize = 1024;

/// How many acknowledged messages keep their key in the store, and for how long. The broker has
/// dealt with an acknowledgement long before; what it has not is a repeat at the worst.
const KEYS: usize = 64;
const KEPT: Duration = Duration::from_secs(5);

/// What tells messages apart, delivery after delivery: a name-based UUID (RFC 9562, version 5) of
/// what the publisher said and sent. Headers are not part of it, because brokers change them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Identity(Uuid);

impl Identity {
    /// Of a delivery.
    pub(crate) fn of(delivery: &Delivery) -> Self {
        Self::with_body(delivery, &delivery.data)
    }

    /// Of a delivery whose body was taken out of it.
    pub(crate) fn with_body(delivery: &Delivery, body: &[u8]) -> Self {
        let properties = &delivery.properties;
        let mut said = Vec::with_capacity(256);
        for text in [
            properties.message_id(),
            properties.correlation_id(),
            properties.kind(),
            &Some(delivery.exchange.clone()),
            &Some(delivery.routing_key.clone()),
        ] {
            let text = text.as_ref().map_or("", ShortString::as_str);
            said.push(text.len() as u8);
            said.extend_from_slice(text.as_bytes());
        }
        said.extend_from_slice(&properties.timestamp().unwrap_or(0).to_le_bytes());
        let said = Uuid::new_v5(&Uuid::NAMESPACE_OID, &said);
        Self(Uuid::new_v5(&said, body))
    }

    /// As the id of a message that the bus has never seen.
    pub(crate) fn as_id(self) -> MessageId {
        MessageId::from_u128(self.0.as_u128())
    }

    /// The key under which the inbox remembers it.
    pub(crate) fn key(self) -> Arc<str> {
        Arc::from(self.0.simple().to_string())
    }
}

/// What is known of a message that was given back.
#[derive(Clone, Debug)]
pub(crate) struct Carried {
    /// Its id, which stays the same.
    pub(crate) id: MessageId,
    /// When it first came.
    pub(crate) received_at: Timestamp,
    /// How often it was tried.
    pub(crate) attempts: u32,
    /// Not to be tried before.
    pub(crate) next_try: Option<Instant>,
    /// The step at which it failed.
    pub(crate) step: Option<Arc<str>>,
    /// Why it failed last.
    pub(crate) fault: Option<Fault>,
    /// It is to be set aside, for this reason.
    pub(crate) aside: Option<Aside>,
}

/// Why a message is set aside.
#[derive(Clone, Debug)]
pub(crate) enum Aside {
    /// Of itself: for its last fault.
    Failed,
    /// An administrator says so, and why.
    Asked(String),
}

impl Carried {
    /// Of a message that was never tried.
    pub(crate) fn new() -> Self {
        Self {
            id: MessageId::new(),
            received_at: Timestamp::now(),
            attempts: 0,
            next_try: None,
            step: None,
            fault: None,
            aside: None,
        }
    }

    /// Why it failed last, for administrators.
    pub(crate) fn last_error(&self) -> Option<String> {
        self.fault.as_ref().map(Fault::in_full)
    }
}

/// Shared by a receiver's channels, one after the other.
#[derive(Default)]
pub(crate) struct Memory(Mutex<State>);

#[derive(Default)]
struct State {
    carried: VecDeque<(Identity, Carried)>,
    done: VecDeque<(Identity, Option<Answer>)>,
    /// Keys to forget, with the time of their acknowledgement.
    keys: VecDeque<(Arc<str>, Instant)>,
    /// Steps at which messages failed that were set aside.
    failing: BTreeSet<Arc<str>>,
}

impl Memory {
    /// The message was given back.
    pub(crate) fn carry(&self, identity: Identity, carried: Carried) {
        push(&mut self.lock().carried, (identity, carried));
    }

    /// What is known of a message that comes again.
    pub(crate) fn carried(&self, identity: Identity) -> Option<Carried> {
        take(&mut self.lock().carried, identity)
    }

    /// The message is done, and may come again all the same; then this is still to be answered.
    pub(crate) fn done(&self, identity: Identity, answer: Option<Answer>) {
        push(&mut self.lock().done, (identity, answer));
    }

    /// Whether a message that comes again is done, and what is still to be answered.
    pub(crate) fn was_done(&self, identity: Identity) -> Option<Option<Answer>> {
        take(&mut self.lock().done, identity)
    }

    /// The message was acknowledged: its key is forgotten later.
    pub(crate) fn forget_later(&self, key: Arc<str>) {
        self.lock().keys.push_back((key, Instant::now()));
    }

    /// Keys that may be forgotten now; with `all` every one.
    pub(crate) fn to_forget(&self, all: bool) -> Vec<Arc<str>> {
        let mut state = self.lock();
        let old = |state: &State| match state.keys.front() {
            None => false,
            Some((_, since)) => all || state.keys.len() > KEYS || since.elapsed() > KEPT,
        };
        let mut keys = Vec::new();
        while old(&state) {
            keys.extend(state.keys.pop_front().map(|(key, _)| key));
        }
        keys
    }

    /// A message that was set aside had failed at this step.
    pub(crate) fn failed_at(&self, step: &Arc<str>) {
        self.lock().failing.insert(step.clone());
    }

    /// A message has passed: the steps at which earlier ones had failed.
    pub(crate) fn mended(&self) -> BTreeSet<Arc<str>> {
        std::mem::take(&mut self.lock().failing)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push<T>(shelf: &mut VecDeque<(Identity, T)>, entry: (Identity, T)) {
    if shelf.len() >= MOST {
        shelf.pop_front();
    }
    shelf.push_back(entry);
}

fn take<T>(shelf: &mut VecDeque<(Identity, T)>, identity: Identity) -> Option<T> {
    let at = shelf.iter().position(|(known, _)| *known == identity)?;
    shelf.remove(at).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;
    use lapin::types::{AMQPValue, FieldTable};

    use super::*;

    fn delivery(id: &str, body: &str, redelivered: bool) -> Delivery {
        let mut delivery = Delivery::mock(1, "e".into(), "k".into(), redelivered, body.into());
        delivery.properties = BasicProperties::default().with_message_id(id.into());
        delivery
    }

    #[test]
    fn a_message_is_the_same_when_it_comes_again_and_no_other_is() {
        let first = Identity::of(&delivery("1", "body", false));
        let mut again = delivery("1", "body", true);
        let mut headers = FieldTable::default();
        headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(1));
        again.properties = again.properties.with_headers(headers);
        assert_eq!(Identity::of(&again), first);
        for other in [
            delivery("2", "body", true),
            delivery("1", "ybod", true),
            delivery("", "1body", true),
        ] {
            assert_ne!(Identity::of(&other), first);
        }
        let mut other = delivery("1", "body", true);
        other.routing_key = "other".into();
        assert_ne!(Identity::of(&other), first);
    }

    #[test]
    fn memory_is_bounded_and_used_once() {
        let memory = Memory::default();
        let identities: Vec<Identity> = (0..=MOST).map(|_| Identity(Uuid::new_v4())).collect();
        for identity in &identities {
            memory.done(*identity, None);
            memory.carry(*identity, Carried::new());
        }
        assert!(memory.was_done(identities[0]).is_none());
        assert!(memory.carried(identities[0]).is_none());
        assert!(memory.was_done(identities[1]).is_some());
        assert!(memory.was_done(identities[1]).is_none());
        assert!(memory.carried(identities[MOST]).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_forgotten_by_age_and_by_number() {
        let memory = Memory::default();
        for number in 0..KEYS + 3 {
            memory.forget_later(Arc::from(number.to_string()));
        }
        assert_eq!(memory.to_forget(false).len(), 3);
        tokio::time::advance(KEPT + Duration::from_millis(1)).await;
        assert_eq!(memory.to_forget(false).len(), KEYS);
        memory.forget_later(Arc::from("last"));
        assert!(memory.to_forget(false).is_empty());
        assert_eq!(memory.to_forget(true).len(), 1);
    }
}
