//! fjall: batches over five keyspaces, one writer with group commit, the journal synced by fdatasync.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ::fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use xbus_core::Message;
use xbus_core::store::JournalEntry;

use super::sqlite::wait;
use super::{Done, Engine, Op, Writer, pack, pack_targets};

#[derive(Clone)]
struct Spaces {
    lanes: Keyspace,
    journal: Keyspace,
    by_route: Keyspace,
    by_outcome: Keyspace,
    by_key: Keyspace,
}

pub struct Fjall {
    db: Database,
    spaces: Spaces,
    writer: Writer,
    syncs: Arc<AtomicU64>,
    taken: Mutex<HashMap<usize, u64>>,
}

impl Fjall {
    pub fn open(dir: &Path) -> Self {
        let db = Database::builder(dir).open().expect("a database");
        let space = |name| {
            db.keyspace(name, KeyspaceCreateOptions::default)
                .expect("a keyspace")
        };
        let spaces = Spaces {
            lanes: space("lanes"),
            journal: space("journal"),
            by_route: space("by_route"),
            by_outcome: space("by_outcome"),
            by_key: space("by_key"),
        };
        let syncs = Arc::new(AtomicU64::new(0));
        let (inner, to, counted) = (db.clone(), spaces.clone(), syncs.clone());
        let mut seq = 0u64;
        for item in spaces.lanes.iter().rev().take(1) {
            let key = item.key().expect("a key");
            seq = u64::from_be_bytes(key[8..16].try_into().expect("8 bytes"));
        }
        let writer = Writer::start(move |ops| {
            let mut batch = inner.batch().durability(Some(PersistMode::SyncData));
            for op in ops {
                match op {
                    Op::Put {
                        lane,
                        message,
                        entry,
                    } => {
                        seq += 1;
                        let id = entry.id.as_u128().to_be_bytes();
                        let at = entry.received_at.as_micros().to_be_bytes();
                        let mut value = id.to_vec();
                        value.extend_from_slice(&pack(message));
                        batch.insert(&to.lanes, lane_key(*lane, seq).to_vec(), value);
                        let mut record = vec![1u8];
                        record.extend_from_slice(&at);
                        record.extend_from_slice(entry.route.as_bytes());
                        record.extend_from_slice(&pack_targets(entry));
                        batch.insert(&to.journal, id.to_vec(), record);
                        let route = [entry.route.as_bytes(), &[0], &at, &id].concat();
                        batch.insert(&to.by_route, route, "");
                        batch.insert(&to.by_outcome, [&[1u8], &at[..], &id].concat(), "");
                        for (name, value) in &entry.keys {
                            let key = [name.as_bytes(), &[0], value.as_bytes(), &[0], &id].concat();
                            batch.insert(&to.by_key, key, "");
                        }
                    }
                    Op::Settle { lane, seq, id } => {
                        let id = id.to_be_bytes();
                        batch.remove(&to.lanes, lane_key(*lane, *seq).to_vec());
                        if let Some(old) = to.journal.get(id).expect("a record") {
                            let at = &old[1..9];
                            batch.remove(&to.by_outcome, [&[1u8], at, &id].concat());
                            batch.insert(&to.by_outcome, [&[0u8], at, &id].concat(), "");
                            let mut record = old.to_vec();
                            record[0] = 0;
                            batch.insert(&to.journal, id.to_vec(), record);
                        }
                    }
                }
            }
            batch.commit().expect("a commit");
            counted.fetch_add(1, Ordering::Relaxed);
        });
        Self {
            db,
            spaces,
            writer,
            syncs,
            taken: Mutex::default(),
        }
    }

    /// The oldest entries. Begins behind what was taken last: from the lane's own beginning a scan
    /// would pass over the tombstones of all that were settled.
    fn first(&self, lane: usize, count: usize) -> Vec<(u64, u128)> {
        let mut taken = self.taken.lock().expect("the cursors");
        let cursor = taken.entry(lane).or_default();
        let range = lane_key(lane, *cursor)..=lane_key(lane, u64::MAX);
        let found = self.spaces.lanes.range(range).take(count);
        let found: Vec<(u64, u128)> = found
            .map(|item| {
                let (key, value) = item.into_inner().expect("an entry");
                let seq = u64::from_be_bytes(key[8..16].try_into().expect("8 bytes"));
                let id = u128::from_be_bytes(value[..16].try_into().expect("16 bytes"));
                (seq, id)
            })
            .collect();
        if let Some((seq, _)) = found.first() {
            *cursor = *seq;
        }
        found
    }
}

fn lane_key(lane: usize, seq: u64) -> [u8; 16] {
    let mut key = [0u8; 16];
    key[..8].copy_from_slice(&(lane as u64).to_be_bytes());
    key[8..].copy_from_slice(&seq.to_be_bytes());
    key
}

impl Engine for Fjall {
    fn put(&self, lane: usize, message: Arc<Message>, entry: JournalEntry) -> Done<'_> {
        self.writer.ask(Op::Put {
            lane,
            message,
            entry: Box::new(entry),
        })
    }

    fn settle_head(&self, lane: usize) -> Done<'_> {
        let (seq, id) = self.first(lane, 1)[0];
        self.writer.ask(Op::Settle { lane, seq, id })
    }

    fn head(&self, lane: usize) -> bool {
        !self.first(lane, 1).is_empty()
    }

    fn drain(&self, lane: usize) -> usize {
        let mut count = 0;
        loop {
            let found = self.first(lane, 1000);
            if found.is_empty() {
                return count;
            }
            count += found.len();
            let ops = found.into_iter();
            wait(
                ops.map(|(seq, id)| self.writer.ask(Op::Settle { lane, seq, id }))
                    .collect(),
            );
        }
    }

    fn forget_journal(&self) {
        let spaces = &self.spaces;
        for space in [
            &spaces.journal,
            &spaces.by_route,
            &spaces.by_outcome,
            &spaces.by_key,
        ] {
            space.clear().expect("cleared");
        }
        spaces.lanes.rotate_memtable_and_wait().expect("flushed");
        spaces.lanes.major_compact().expect("compacted");
    }

    fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    fn close(&self) {
        self.db.persist(PersistMode::SyncAll).expect("synced");
    }
}
