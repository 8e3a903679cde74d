//! Tests of the whole engine through its public trait, on a simulated disk where they must break it.

mod ahead;
mod basics;
mod crashes;
mod deep;
mod full;
mod kept;
mod retention;
mod search;
mod sim;

use std::sync::Arc;
use std::time::Duration;

use xbus_core::store::{
    Change, Commit, Durability, EntryRef, JournalEntry, Outcome, Retention, Settlement, Store,
    StoreError, TargetEntry,
};
use xbus_core::{Message, MessageId, Timestamp};

use crate::{LogStore, Options};
use sim::SimDisk;

/// Small everything, so that a few hundred entries meet every edge.
pub fn small() -> Options {
    Options {
        segment_size: 16 << 10,
        segment_rows: 1 << 20,
        write_buffer: 1 << 20,
        gather: Duration::from_millis(1),
        lazy_sync: Duration::from_millis(20),
        page_entries: 4,
        keep_in_memory: 2 << 10,
        reserve: 8 << 10,
        prune_every: Duration::from_millis(20),
        ..Options::default()
    }
}

pub fn open(disk: &SimDisk, options: Options) -> Arc<LogStore> {
    LogStore::open_on(Arc::new(disk.clone()), options, None).unwrap()
}

pub fn message(text: &str) -> Arc<Message> {
    let mut message = Message::new(text.to_owned());
    message.headers.set("content-type", "text/plain");
    Arc::new(message)
}

pub fn put(queue: &str, key: &str, message: &Arc<Message>, target: &str) -> Change {
    Change::Put {
        queue: queue.into(),
        key: key.into(),
        message: message.clone(),
        target: target.into(),
        cause: None,
    }
}

pub fn settle(at: &EntryRef) -> Change {
    Change::Settle {
        at: at.clone(),
        how: Settlement::Delivered,
        attempts: 1,
        error: None,
    }
}

pub fn journal(id: MessageId, route: &str, outcome: Outcome) -> JournalEntry {
    JournalEntry {
        id,
        correlation_id: None,
        cause: None,
        route: route.into(),
        received_at: Timestamp::now(),
        took_micros: 12,
        outcome,
        keys: Vec::new(),
        targets: Vec::new(),
        fault: None,
    }
}

pub fn target(name: &str, outcome: Outcome) -> TargetEntry {
    TargetEntry {
        name: name.into(),
        outcome,
        attempts: 0,
        error: None,
        at: Timestamp::now(),
    }
}

/// Commits and waits.
pub fn commit(store: &LogStore, changes: Vec<Change>) -> Result<(), StoreError> {
    store
        .commit(Commit::from(changes), Durability::Synced)
        .wait()
}

pub fn commit_lazily(store: &LogStore, changes: Vec<Change>) -> Result<(), StoreError> {
    store.commit(Commit::from(changes), Durability::Lazy).wait()
}

/// Waits for a future on this thread.
pub trait Wait<T> {
    fn wait(self) -> T;
}

impl<T, F: Future<Output = T>> Wait<T> for F {
    fn wait(self) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(self)
    }
}

pub fn body(queued: &xbus_core::store::Queued) -> String {
    String::from_utf8(queued.message.body.bytes().to_vec()).unwrap()
}

/// Waits until something is so, half a minute at most.
pub fn until(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if is() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("never: {what}");
}
