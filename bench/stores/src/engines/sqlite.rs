//! SQLite: WAL, synchronous=FULL, one writer with group commit, a few readers.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rusqlite::{Connection, params};
use xbus_core::Message;
use xbus_core::store::JournalEntry;

use super::{Done, Engine, Op, Writer, pack, pack_targets};

pub struct Sqlite {
    writer: Writer,
    reader: Mutex<Connection>,
    syncs: Arc<AtomicU64>,
    path: std::path::PathBuf,
}

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS lane (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, id BLOB NOT NULL,
        target TEXT NOT NULL, since INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
        message BLOB NOT NULL);
    CREATE INDEX IF NOT EXISTS lane_key ON lane (key, seq);
    CREATE TABLE IF NOT EXISTS journal (
        id BLOB PRIMARY KEY, route TEXT NOT NULL, received INTEGER NOT NULL,
        outcome INTEGER NOT NULL, targets BLOB NOT NULL) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS journal_route ON journal (route, received);
    CREATE INDEX IF NOT EXISTS journal_outcome ON journal (outcome, received);
    CREATE TABLE IF NOT EXISTS business (
        name TEXT NOT NULL, value TEXT NOT NULL, id BLOB NOT NULL,
        PRIMARY KEY (name, value, id)) WITHOUT ROWID;";

fn connect(path: &Path) -> Connection {
    let db = Connection::open(path).expect("a database");
    db.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-32000;
         PRAGMA wal_autocheckpoint=4000; PRAGMA busy_timeout=5000;",
    )
    .expect("pragmas");
    db.set_prepared_statement_cache_capacity(32);
    db
}

impl Sqlite {
    pub fn open(dir: &Path) -> Self {
        let path = dir.join("store.sqlite");
        let mut db = connect(&path);
        db.execute_batch(SCHEMA).expect("a schema");
        let reader = Mutex::new(connect(&path));
        let syncs = Arc::new(AtomicU64::new(0));
        let counted = syncs.clone();
        let writer = Writer::start(move |ops| {
            let tx = db.transaction().expect("a transaction");
            for op in ops {
                apply(&tx, op).expect("a change");
            }
            tx.commit().expect("a commit");
            counted.fetch_add(1, Ordering::Relaxed);
        });
        Self {
            writer,
            reader,
            syncs,
            path,
        }
    }

    fn first(&self, lane: usize) -> Option<(u64, u128)> {
        let db = self.reader.lock().expect("a reader");
        let mut statement = db
            .prepare_cached("SELECT seq, id, message FROM lane WHERE key = ? ORDER BY seq LIMIT 1")
            .expect("a statement");
        let mut rows = statement.query([lane.to_string()]).expect("rows");
        let row = rows.next().expect("a row")?;
        let id: Vec<u8> = row.get(1).expect("an id");
        let message: Vec<u8> = row.get(2).expect("a message");
        assert!(message.len() > 1024);
        let id = u128::from_be_bytes(id.try_into().expect("16 bytes"));
        Some((row.get::<_, i64>(0).expect("a number") as u64, id))
    }
}

fn apply(db: &Connection, op: &Op) -> rusqlite::Result<()> {
    match op {
        Op::Put {
            lane,
            message,
            entry,
        } => {
            let id = entry.id.as_u128().to_be_bytes();
            db.prepare_cached(
                "INSERT INTO lane (key, id, target, since, message) VALUES (?,?,?,?,?)",
            )?
            .execute(params![
                lane.to_string(),
                id,
                "erp",
                message.received_at.as_micros(),
                pack(message)
            ])?;
            db.prepare_cached("INSERT OR REPLACE INTO journal VALUES (?,?,?,?,?)")?
                .execute(params![
                    id,
                    &*entry.route,
                    entry.received_at.as_micros(),
                    1,
                    pack_targets(entry)
                ])?;
            for (name, value) in &entry.keys {
                db.prepare_cached("INSERT INTO business VALUES (?,?,?)")?
                    .execute(params![&**name, value, id])?;
            }
        }
        Op::Settle { seq, id, .. } => {
            db.prepare_cached("DELETE FROM lane WHERE seq = ?")?
                .execute([*seq as i64])?;
            db.prepare_cached("UPDATE journal SET outcome = 0, targets = ? WHERE id = ?")?
                .execute(params![[0u8; 21], id.to_be_bytes()])?;
        }
    }
    Ok(())
}

impl Engine for Sqlite {
    fn put(&self, lane: usize, message: Arc<Message>, entry: JournalEntry) -> Done<'_> {
        self.writer.ask(Op::Put {
            lane,
            message,
            entry: Box::new(entry),
        })
    }

    fn settle_head(&self, lane: usize) -> Done<'_> {
        let (seq, id) = self.first(lane).expect("a head");
        self.writer.ask(Op::Settle { lane, seq, id })
    }

    fn head(&self, lane: usize) -> bool {
        self.first(lane).is_some()
    }

    fn drain(&self, lane: usize) -> usize {
        let mut count = 0;
        loop {
            let found: Vec<(i64, Vec<u8>)> = {
                let db = self.reader.lock().expect("a reader");
                let mut statement = db
                    .prepare_cached(
                        "SELECT seq, id FROM lane WHERE key = ? ORDER BY seq LIMIT 1000",
                    )
                    .expect("a statement");
                let rows = statement
                    .query_map([lane.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))
                    .expect("rows");
                rows.map(|row| row.expect("a row")).collect()
            };
            if found.is_empty() {
                return count;
            }
            count += found.len();
            let asked: Vec<_> = found
                .into_iter()
                .map(|(seq, id)| {
                    self.writer.ask(Op::Settle {
                        lane,
                        seq: seq as u64,
                        id: u128::from_be_bytes(id.try_into().expect("16 bytes")),
                    })
                })
                .collect();
            wait(asked);
        }
    }

    fn forget_journal(&self) {
        let db = connect(&self.path);
        db.execute_batch(
            "DELETE FROM journal; DELETE FROM business; PRAGMA wal_checkpoint(TRUNCATE);",
        )
        .expect("deleted");
    }

    fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    fn close(&self) {}
}

/// Waits for all of them.
pub fn wait(asked: Vec<Done<'_>>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        for done in asked {
            done.await;
        }
    });
}
