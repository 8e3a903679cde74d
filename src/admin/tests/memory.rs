//! A store in memory with just enough of the contract for the admin side: lanes, parked entries,
//! journal, payloads and named values. Nothing is durable, nothing is pruned.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use xbus_core::store::{
    Change, Commit, Durability, EntryRef, JournalEntry, LaneStatus, Outcome, Query, QueueStatus,
    Queued, Settlement, Store, StoreError, TargetEntry,
};
use xbus_core::{Message, MessageId, Timestamp};

#[derive(Default)]
pub(super) struct Memory {
    state: Mutex<State>,
    /// What the store says of its health, and of every commit.
    pub(super) broken: Mutex<Option<StoreError>>,
}

#[derive(Default)]
struct State {
    seq: u64,
    entries: BTreeMap<u64, (Queued, Arc<str>)>,
    journal: BTreeMap<MessageId, JournalEntry>,
    payloads: BTreeMap<MessageId, Arc<Message>>,
    protocols: BTreeMap<MessageId, Vec<Bytes>>,
    keys: BTreeMap<(Arc<str>, Arc<str>), Bytes>,
    values: BTreeMap<Arc<str>, Bytes>,
}

impl State {
    fn entry(&mut self, at: &EntryRef) -> Result<&mut Queued, StoreError> {
        self.entries
            .get_mut(&at.seq)
            .map(|(entry, _)| entry)
            .ok_or_else(|| StoreError::NotFound(format!("no entry {}", at.seq)))
    }

    fn waiting(&self, queue: &str) -> impl Iterator<Item = &Queued> {
        self.entries
            .values()
            .map(|(entry, _)| entry)
            .filter(move |entry| &*entry.at.queue == queue && entry.parked.is_none())
    }

    fn target(&mut self, id: MessageId, new: TargetEntry) {
        let Some(entry) = self.journal.get_mut(&id) else {
            return;
        };
        match entry
            .targets
            .iter_mut()
            .find(|known| known.name == new.name)
        {
            Some(known) => *known = new,
            None => entry.targets.push(new),
        }
        let open = |t: &TargetEntry| t.outcome == Outcome::Queued;
        if entry.outcome == Outcome::Pending && !entry.targets.iter().any(open) {
            entry.outcome = Outcome::Delivered;
        }
    }

    fn apply(&mut self, change: Change) -> Result<(), StoreError> {
        match change {
            Change::Put {
                queue,
                key,
                message,
                target,
                cause,
            } => {
                self.seq += 1;
                let entry = Queued {
                    at: EntryRef {
                        queue,
                        key,
                        seq: self.seq,
                    },
                    message,
                    target: target.clone(),
                    since: Timestamp::now(),
                    cause,
                    attempts: 0,
                    last_error: None,
                    next_try: None,
                    parked: None,
                };
                self.entries.insert(self.seq, (entry, target));
            }
            Change::Settle {
                at,
                how,
                attempts,
                error,
            } => {
                let (entry, target) = self
                    .entries
                    .remove(&at.seq)
                    .ok_or_else(|| StoreError::NotFound(String::from("gone")))?;
                let outcome = match how {
                    Settlement::Delivered => Outcome::Delivered,
                    Settlement::Dropped => Outcome::Failed,
                    Settlement::Forwarded => return Ok(()),
                };
                let at = Timestamp::now();
                self.target(
                    entry.message.id,
                    TargetEntry {
                        name: target,
                        outcome,
                        attempts,
                        error,
                        at,
                    },
                );
            }
            Change::Attempt {
                at,
                attempts,
                error,
                next_try,
            } => {
                let entry = self.entry(&at)?;
                entry.attempts = attempts;
                entry.last_error = Some(error);
                entry.next_try = Some(next_try);
            }
            Change::Park { at, reason } => self.entry(&at)?.parked = Some(reason),
            Change::Release { at } => self.entry(&at)?.parked = None,
            Change::Journal(entry) => {
                self.journal.insert(entry.id, entry);
            }
            Change::Payload(message) => {
                self.payloads.insert(message.id, message);
            }
            Change::Target { id, target } => self.target(id, target),
            Change::Protocol { id, data } => self.protocols.entry(id).or_default().push(data),
            Change::ProtocolEnd { id } => {
                self.protocols.remove(&id);
            }
            Change::Remember {
                scope, key, value, ..
            } => {
                self.keys.insert((scope, key), value);
            }
            Change::Forget { scope, key } => {
                self.keys.remove(&(scope, key));
            }
            Change::Value {
                name,
                value: Some(value),
            } => {
                self.values.insert(name, value);
            }
            Change::Value { name, value: None } => {
                self.values.remove(&name);
            }
        }
        Ok(())
    }
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Store for Memory {
    fn commit(&self, commit: Commit, _: Durability) -> BoxFuture<'_, Result<(), StoreError>> {
        let result = self.health().and_then(|()| {
            let mut state = self.lock();
            commit
                .changes
                .into_iter()
                .try_for_each(|change| state.apply(change))
        });
        std::future::ready(result).boxed()
    }

    fn head(&self, queue: &str, key: &str) -> Result<Option<Queued>, StoreError> {
        let state = self.lock();
        Ok(state
            .waiting(queue)
            .find(|entry| &*entry.at.key == key)
            .cloned())
    }

    fn lanes(&self, queue: &str) -> Vec<LaneStatus> {
        let state = self.lock();
        let mut lanes: BTreeMap<Arc<str>, LaneStatus> = BTreeMap::new();
        for entry in state.waiting(queue) {
            lanes
                .entry(entry.at.key.clone())
                .and_modify(|lane| lane.depth += 1)
                .or_insert_with(|| LaneStatus {
                    key: entry.at.key.clone(),
                    depth: 1,
                    head_seq: entry.at.seq,
                    attempts: entry.attempts,
                    next_try: entry.next_try,
                });
        }
        let mut lanes: Vec<_> = lanes.into_values().collect();
        lanes.sort_by_key(|lane| lane.head_seq);
        lanes
    }

    fn queues(&self) -> Vec<QueueStatus> {
        let names: std::collections::BTreeSet<Arc<str>> = self
            .lock()
            .entries
            .values()
            .map(|(entry, _)| entry.at.queue.clone())
            .collect();
        names
            .into_iter()
            .map(|name| {
                let lanes = self.lanes(&name);
                let state = self.lock();
                QueueStatus {
                    depth: state.waiting(&name).count() as u64,
                    parked: state
                        .entries
                        .values()
                        .filter(|(entry, _)| entry.at.queue == name && entry.parked.is_some())
                        .count() as u64,
                    blocked_keys: lanes.iter().filter(|lane| lane.attempts > 0).count() as u64,
                    head: state.waiting(&name).next().cloned(),
                    name: name.clone(),
                }
            })
            .collect()
    }

    fn entries(&self, queue: &str, parked: bool, limit: usize) -> Result<Vec<Queued>, StoreError> {
        let state = self.lock();
        let all = state.entries.values().map(|(entry, _)| entry);
        let wanted = all.filter(|e| &*e.at.queue == queue && e.parked.is_some() == parked);
        Ok(wanted.take(limit).cloned().collect())
    }

    fn entry(&self, queue: &str, id: MessageId) -> Result<Option<Queued>, StoreError> {
        let state = self.lock();
        let mut all = state.entries.values().map(|(entry, _)| entry);
        Ok(all
            .find(|e| &*e.at.queue == queue && e.message.id == id)
            .cloned())
    }

    fn find(&self, query: &Query) -> Result<Vec<JournalEntry>, StoreError> {
        let matches = |entry: &&JournalEntry| {
            query.id.is_none_or(|id| entry.id == id)
                && query
                    .route
                    .as_ref()
                    .is_none_or(|route| entry.route == *route)
                && query.outcome.is_none_or(|outcome| entry.outcome == outcome)
                && query.key.as_ref().is_none_or(|(name, value)| {
                    entry.keys.iter().any(|(n, v)| **n == **name && v == value)
                })
                && query.since.is_none_or(|since| entry.received_at >= since)
                && query.until.is_none_or(|until| entry.received_at < until)
        };
        let state = self.lock();
        let found = state.journal.values().rev().filter(matches);
        Ok(found.take(query.limit).cloned().collect())
    }

    fn payload(&self, id: MessageId) -> Result<Option<Message>, StoreError> {
        Ok(self
            .lock()
            .payloads
            .get(&id)
            .map(|message| Message::clone(message)))
    }

    fn protocols(&self) -> Vec<(MessageId, Vec<Bytes>)> {
        self.lock().protocols.clone().into_iter().collect()
    }

    fn recall(&self, scope: &str, key: &str) -> Option<Bytes> {
        self.lock()
            .keys
            .get(&(Arc::from(scope), Arc::from(key)))
            .cloned()
    }

    fn values(&self, prefix: &str) -> Vec<(Arc<str>, Bytes)> {
        let state = self.lock();
        let all = state
            .values
            .iter()
            .filter(|(name, _)| name.starts_with(prefix));
        all.map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    fn health(&self) -> Result<(), StoreError> {
        self.broken.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn disk_bytes(&self) -> u64 {
        4096
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}
