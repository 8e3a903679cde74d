//! What is live, in memory: lanes, parked entries, open protocols, remembered keys, values. It is
//! the same whether it comes from commits as they are written or from the log as it is replayed:
//! both go through [`State::apply`].

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Weak};

use ahash::AHashMap as HashMap;
use bytes::Bytes;
use tokio::sync::Notify;
use xbus_core::store::EntryRef;
use xbus_core::{MessageId, Timestamp};

use crate::kept::{Kept, Record};
use crate::lane::Lane;
use crate::pages::Pages;
use crate::record::{EntryView, View};

/// A place in the log: segment and offset within it.
pub fn position(segment: u32, offset: u32) -> u64 {
    u64::from(segment) << 32 | u64::from(offset)
}

/// The segment of a place.
pub fn segment_of(position: u64) -> u32 {
    (position >> 32) as u32
}

/// The offset of a place in its segment.
pub fn offset_of(position: u64) -> u32 {
    position as u32
}

/// What is known of an entry whose delivery failed at least once.
#[derive(Clone, Debug)]
pub struct Tries {
    pub attempts: u32,
    pub error: Option<Box<str>>,
    pub next_try: Option<Timestamp>,
}

/// An entry that was set aside.
#[derive(Clone, Debug)]
pub struct Parked {
    pub key: Arc<str>,
    pub position: u64,
    pub reason: Box<str>,
}

/// One queue that holds something.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    pub lanes: HashMap<Arc<str>, Lane>,
    pub tries: HashMap<u64, Tries>,
    pub parked: BTreeMap<u64, Parked>,
    /// Entries in lanes.
    pub depth: u64,
    /// Whether any entry since it was last empty was a target of the journal.
    pub has_targets: bool,
}

/// A remembered key's value.
#[derive(Clone, Debug)]
pub struct Remembered {
    pub value: Box<[u8]>,
    pub until: Option<Timestamp>,
}

/// All of it.
pub struct State {
    pub queues: HashMap<Arc<str>, Queue>,
    /// Places of the records of each open protocol.
    pub protocols: BTreeMap<MessageId, Vec<u64>>,
    pub remembered: HashMap<Arc<str>, HashMap<Arc<str>, Remembered>>,
    pub values: BTreeMap<Arc<str>, Bytes>,
    /// What pins a segment: its entries that have not left and its open protocol records.
    pub live: BTreeMap<u32, u64>,
    /// Everything before this place is in here.
    pub applied: u64,
    /// The next number of a commit or an entry.
    pub next: u64,
    pub pages: Pages,
    /// Records of entries that wait in lanes.
    pub kept: Kept,
    /// Who is notified of what comes into a queue.
    pub watchers: HashMap<Arc<str>, Weak<Notify>>,
    /// Of those, who is to be notified of what has been applied.
    stirred: Vec<Arc<Notify>>,
}

impl State {
    pub fn new(pages: Pages) -> Self {
        Self {
            queues: HashMap::new(),
            protocols: BTreeMap::new(),
            remembered: HashMap::new(),
            values: BTreeMap::new(),
            live: BTreeMap::new(),
            applied: 0,
            next: 1,
            pages,
            kept: Kept::default(),
            watchers: HashMap::new(),
            stirred: Vec::new(),
        }
    }

    /// Whom to notify of what was applied since this was called last; not while the state is locked.
    pub fn take_stirred(&mut self) -> Vec<Arc<Notify>> {
        std::mem::take(&mut self.stirred)
    }

    fn stir(&mut self, queue: &str) {
        let Some(watcher) = self.watchers.get(queue) else {
            return;
        };
        match watcher.upgrade() {
            Some(watcher)
                if self
                    .stirred
                    .iter()
                    .any(|other| Arc::ptr_eq(other, &watcher)) => {}
            Some(watcher) => self.stirred.push(watcher),
            None => drop(self.watchers.remove(queue)),
        }
    }

    /// Does one change, which stands at `position` with this body.
    pub fn apply(&mut self, view: &View<'_>, body: &[u8], position: u64) -> io::Result<()> {
        match view {
            View::Put(put) => {
                self.next = self.next.max(put.seq + 1);
                let queue = entry(&mut self.queues, put.queue);
                queue.has_targets |= !put.target.is_empty();
                queue.depth += 1;
                let lane = entry(&mut queue.lanes, put.key);
                lane.insert((put.seq, position), &mut self.pages)?;
                self.kept.offer(put.seq, body, &mut lane.kept);
                self.pin(position);
                self.stir(put.queue);
            }
            View::Moved(put) => {
                let Some(queue) = self.queues.get_mut(put.queue) else {
                    return Ok(());
                };
                let old = if let Some(parked) = queue.parked.get_mut(&put.seq) {
                    Some(std::mem::replace(&mut parked.position, position))
                } else if let Some(lane) = queue.lanes.get_mut(put.key) {
                    lane.relocate(put.seq, position, &mut self.pages)?
                } else {
                    None
                };
                if let Some(old) = old {
                    self.unpin(old);
                    self.pin(position);
                }
            }
            View::Settle { at, .. } => {
                if let Some(old) = self.take(at)? {
                    self.unpin(old);
                }
                if let Some(queue) = self.queues.get_mut(at.queue) {
                    queue.tries.remove(&at.seq);
                }
                self.forget_empty(at.queue);
            }
            View::Attempt {
                at,
                attempts,
                error,
                next_try,
                ..
            } => {
                if self.locate(at.queue, at.key, at.seq)?.is_some()
                    && let Some(queue) = self.queues.get_mut(at.queue)
                {
                    queue.tries.insert(
                        at.seq,
                        Tries {
                            attempts: *attempts,
                            error: error.map(Box::from),
                            next_try: Some(*next_try),
                        },
                    );
                }
            }
            View::Park { at, reason } => {
                let parked_already = self
                    .queues
                    .get(at.queue)
                    .is_some_and(|queue| queue.parked.contains_key(&at.seq));
                if !parked_already && let Some(place) = self.take(at)? {
                    let queue = entry(&mut self.queues, at.queue);
                    if let Some(tries) = queue.tries.get_mut(&at.seq) {
                        tries.next_try = None;
                    }
                    queue.parked.insert(
                        at.seq,
                        Parked {
                            key: at.key.into(),
                            position: place,
                            reason: (*reason).into(),
                        },
                    );
                }
            }
            View::Release { at } => {
                let Some(queue) = self.queues.get_mut(at.queue) else {
                    return Ok(());
                };
                if let Some(parked) = queue.parked.remove(&at.seq) {
                    queue.depth += 1;
                    queue
                        .lanes
                        .entry(parked.key)
                        .or_default()
                        .insert((at.seq, parked.position), &mut self.pages)?;
                    self.stir(at.queue);
                }
            }
            View::Protocol { id, .. } => {
                self.protocols.entry(*id).or_default().push(position);
                self.pin(position);
            }
            View::ProtocolEnd { id } => {
                for place in self.protocols.remove(id).unwrap_or_default() {
                    self.unpin(place);
                }
            }
            View::Remember {
                scope,
                key,
                value,
                until,
            } => {
                entry(&mut self.remembered, scope).insert(
                    Arc::from(*key),
                    Remembered {
                        value: Box::from(*value),
                        until: *until,
                    },
                );
            }
            View::Forget { scope, key } => {
                if let Some(keys) = self.remembered.get_mut(*scope) {
                    keys.remove(*key);
                    if keys.is_empty() {
                        self.remembered.remove(*scope);
                    }
                }
            }
            View::Value { name, value } => match value {
                Some(value) => {
                    self.values
                        .insert(Arc::from(*name), Bytes::copy_from_slice(value));
                }
                None => {
                    self.values.remove(*name);
                }
            },
            View::Journal { .. } | View::Payload { .. } | View::Target { .. } => {}
        }
        Ok(())
    }

    /// Where the put of an entry is, waiting or parked.
    pub fn locate(&self, queue: &str, key: &str, seq: u64) -> io::Result<Option<u64>> {
        let Some(queue) = self.queues.get(queue) else {
            return Ok(None);
        };
        if let Some(parked) = queue.parked.get(&seq) {
            return Ok(Some(parked.position));
        }
        match queue.lanes.get(key) {
            Some(lane) => lane.find(seq, &self.pages),
            None => Ok(None),
        }
    }

    /// The record of an entry that waits, where memory keeps it.
    pub fn record(&self, seq: u64) -> Option<Record> {
        self.kept.get(seq).cloned()
    }

    /// Keeps the record of a lane's head that was read from the log, if it still is the head;
    /// `beginning` is how much of it says what it is about.
    pub fn keep_head(&mut self, at: &EntryRef, body: &[u8], beginning: usize) {
        let queue = self.queues.get_mut(&at.queue);
        if let Some(lane) = queue.and_then(|queue| queue.lanes.get_mut(&at.key))
            && lane.front().is_some_and(|front| front.0 == at.seq)
        {
            self.kept.keep_head(at.seq, body, beginning, &mut lane.kept);
        }
    }

    /// Takes an entry out of its lane or from among the parked ones.
    fn take(&mut self, at: &EntryView<'_>) -> io::Result<Option<u64>> {
        let Some(queue) = self.queues.get_mut(at.queue) else {
            return Ok(None);
        };
        if let Some(parked) = queue.parked.remove(&at.seq) {
            return Ok(Some(parked.position));
        }
        let Some(lane) = queue.lanes.get_mut(at.key) else {
            return Ok(None);
        };
        let found = lane.remove(at.seq, &mut self.pages)?;
        if found.is_some() {
            queue.depth -= 1;
            self.kept.forget(at.seq, &mut lane.kept);
            if lane.depth == 0 {
                queue.lanes.remove(at.key);
            }
        }
        Ok(found)
    }

    fn forget_empty(&mut self, name: &str) {
        if self
            .queues
            .get(name)
            .is_some_and(|queue| queue.lanes.is_empty() && queue.parked.is_empty())
        {
            self.queues.remove(name);
        }
    }

    fn pin(&mut self, position: u64) {
        *self.live.entry(segment_of(position)).or_default() += 1;
    }

    fn unpin(&mut self, position: u64) {
        let segment = segment_of(position);
        if let Some(live) = self.live.get_mut(&segment) {
            *live -= 1;
            if *live == 0 {
                self.live.remove(&segment);
            }
        }
    }
}

/// The value of a key, made when it is not there; allocates only then.
fn entry<'a, T: Default>(map: &'a mut HashMap<Arc<str>, T>, key: &str) -> &'a mut T {
    if !map.contains_key(key) {
        map.insert(Arc::from(key), T::default());
    }
    match map.get_mut(key) {
        Some(value) => value,
        None => unreachable!("it was put there above"),
    }
}
