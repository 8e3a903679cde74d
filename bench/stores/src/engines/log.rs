//! The segmented log of xbus-store, through the interface that the bus uses.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use xbus_core::store::{
    Change, Commit, Durability, JournalEntry, Outcome, Query, Retention, Settlement, Store,
    TargetEntry,
};
use xbus_core::{Message, MessageId, Timestamp};
use xbus_store::{LogStore, Options};

use super::sqlite::wait;
use super::{Done, Engine};
use crate::measure::{Cpu, dir_bytes, resident, thread_seconds};
use crate::{id_at, sample};

pub struct Log {
    store: Arc<LogStore>,
    dir: std::path::PathBuf,
}

impl Log {
    pub fn open(dir: &Path) -> Self {
        Self {
            store: LogStore::open(dir, Options::default()).expect("a store"),
            dir: dir.to_path_buf(),
        }
    }

    fn settle(&self, lane: usize) -> Option<Done<'_>> {
        let head = self
            .store
            .head("orders.erp", &lane.to_string())
            .expect("read")?;
        assert!(head.message.body.bytes().len() == 1024);
        let settle = Change::Settle {
            at: head.at,
            how: Settlement::Delivered,
            attempts: 1,
            error: None,
        };
        let done = self.store.commit(Commit::of(settle), Durability::Synced);
        Some(Box::pin(async move { done.await.expect("settled") }))
    }
}

impl Engine for Log {
    fn put(&self, lane: usize, message: Arc<Message>, entry: JournalEntry) -> Done<'_> {
        let put = Change::Put {
            queue: "orders.erp".into(),
            key: lane.to_string().into(),
            message,
            target: "erp".into(),
            cause: None,
        };
        let commit = Commit::from(vec![put, Change::Journal(entry)]);
        let done = self.store.commit(commit, Durability::Synced);
        Box::pin(async move { done.await.expect("put") })
    }

    fn settle_head(&self, lane: usize) -> Done<'_> {
        self.settle(lane).expect("a head")
    }

    fn head(&self, lane: usize) -> bool {
        let head = self.store.head("orders.erp", &lane.to_string());
        head.expect("read").is_some()
    }

    fn drain(&self, lane: usize) -> usize {
        let mut count = 0;
        loop {
            let found = self.store.entries("orders.erp", false, 1000).expect("read");
            let found: Vec<_> = found
                .into_iter()
                .filter(|entry| *entry.at.key == lane.to_string())
                .collect();
            if found.is_empty() {
                return count;
            }
            count += found.len();
            let asked = found.into_iter().map(|entry| -> Done<'_> {
                let settle = Change::Settle {
                    at: entry.at,
                    how: Settlement::Delivered,
                    attempts: 1,
                    error: None,
                };
                let done = self.store.commit(Commit::of(settle), Durability::Synced);
                Box::pin(async move { done.await.expect("settled") })
            });
            wait(asked.collect());
        }
    }

    fn forget_journal(&self) {
        // What retention does when the time has come.
        wait(vec![self.store.close()]);
        let dir = self.dir.clone();
        // The lock is this process's own: a second handle waits until the first is gone.
        let options = Options {
            retention: Retention {
                keep: Duration::ZERO,
                max_size: 0,
            },
            prune_every: Duration::from_millis(50),
            ..Options::default()
        };
        let _ = std::fs::write(dir.join("lock"), "");
        let _ = std::fs::remove_file(dir.join("lock"));
        let store = LogStore::open(&dir, options).expect("a store");
        let mut last = u64::MAX;
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(100));
            let now = dir_bytes(&dir);
            if now == last && now < 200 << 20 {
                break;
            }
            last = now;
        }
        wait(vec![store.close()]);
    }

    fn syncs(&self) -> u64 {
        self.store.statistics().syncs
    }

    fn close(&self) {
        wait(vec![self.store.close()]);
    }
}

/// Sets what a search asks for.
type Ask<'a> = Box<dyn Fn(&mut Query, usize) + 'a>;

/// Lazy journal records, as requests without lanes write them.
pub fn lazy(dir: &Path, messages: usize) {
    let store = LogStore::open(dir, Options::default()).expect("a store");
    let entries: Vec<JournalEntry> = (0..messages)
        .map(|_| {
            let (_, mut entry) = sample(0);
            entry.outcome = Outcome::Delivered;
            entry.keys.clear();
            entry.targets[0].outcome = Outcome::Delivered;
            entry
        })
        .collect();
    let (cpu, own, start) = (Cpu::now(), thread_seconds(), Instant::now());
    let waker = std::task::Waker::noop();
    let mut context = std::task::Context::from_waker(waker);
    for entry in entries {
        let mut done = store.commit(Commit::of(Change::Journal(entry)), Durability::Lazy);
        while done.as_mut().poll(&mut context).is_pending() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let producer = thread_seconds() - own;
    let seconds = start.elapsed().as_secs_f64();
    wait(vec![store.close()]);
    let count = messages as f64;
    println!(
        "{} {} {}",
        count / seconds,
        producer * 1e6 / count,
        cpu.until_now() * 1e6 / count
    );
}

/// Journals `count` messages over some hours of pretended time, then searches them.
pub fn find(count: usize) {
    let base = std::env::var("STORES_DIR").unwrap_or_else(|_| ".".into());
    let dir = tempfile::tempdir_in(base).expect("a folder");
    let options = Options {
        retention: Retention {
            keep: Duration::from_secs(1 << 30),
            max_size: u64::MAX,
        },
        ..Options::default()
    };
    let store = LogStore::open(dir.path(), options.clone()).expect("a store");
    let start_millis = 1_790_000_000_000u64;
    let routes: Vec<Arc<str>> = (0..50).map(|n| format!("route-{n}").into()).collect();
    let rare: Arc<str> = "rare".into();
    let name: Arc<str> = "order-no".into();
    let target: Arc<str> = "erp".into();
    let start = Instant::now();
    for first in (0..count).step_by(500) {
        let mut changes = Vec::with_capacity(500);
        for n in first..(first + 500).min(count) {
            let millis = start_millis + n as u64 / 2;
            let received_at = Timestamp::from_micros(millis as i64 * 1000);
            let pending = n % 10_000 == 17;
            let id = id_at(millis, n as u64);
            let outcome = match n {
                _ if pending => Outcome::Pending,
                _ if n % 100_000 == 7 => Outcome::InDoubt,
                _ if n % 100 == 3 => Outcome::Failed,
                _ => Outcome::Delivered,
            };
            let route = match n % 50_000 {
                11 => rare.clone(),
                _ => routes[n % 50].clone(),
            };
            if pending {
                let mut message = Message::new("x");
                message.id = id;
                changes.push(Change::Put {
                    queue: "q".into(),
                    key: "".into(),
                    message: Arc::new(message),
                    target: target.clone(),
                    cause: None,
                });
            }
            changes.push(Change::Journal(JournalEntry {
                id,
                correlation_id: None,
                cause: None,
                route,
                received_at,
                took_micros: 90,
                outcome,
                keys: vec![(name.clone(), n.to_string())],
                targets: vec![TargetEntry {
                    name: target.clone(),
                    outcome: if pending {
                        Outcome::Queued
                    } else {
                        Outcome::Delivered
                    },
                    attempts: 1,
                    error: None,
                    at: received_at,
                }],
                fault: None,
            }));
        }
        wait(vec![{
            let done = store.commit(Commit::from(changes), Durability::Lazy);
            Box::pin(async move { done.await.expect("journalled") })
        }]);
    }
    wait(vec![store.close()]);
    drop(store);
    println!(
        "{count} messages journalled in {:.0} s",
        start.elapsed().as_secs_f64()
    );
    let start = Instant::now();
    let store = LogStore::open(dir.path(), options).expect("a store");
    println!(
        "{:.0} MiB on disk; opened in {:.2} s; {:.0} MiB resident",
        dir_bytes(dir.path()) as f64 / 1048576.0,
        start.elapsed().as_secs_f64(),
        resident() as f64 / 1048576.0
    );
    let id = |n: usize| -> MessageId { id_at(start_millis + n as u64 / 2, n as u64) };
    let at = |n: usize| Timestamp::from_micros((start_millis + n as u64 / 2) as i64 * 1000);
    let key = |q: &mut Query, n: usize| q.key = Some(("order-no".into(), n.to_string()));
    let cases: Vec<(&str, Ask<'_>)> = vec![
        ("newest 100", Box::new(|_, _| {})),
        ("id", Box::new(|q, n| q.id = Some(id(n)))),
        ("unknown id", Box::new(|q, _| q.id = Some(MessageId::new()))),
        ("business key", Box::new(key)),
        (
            "unknown key",
            Box::new(|q, n| q.key = Some(("no".into(), n.to_string()))),
        ),
        (
            "route",
            Box::new(|q, n| q.route = Some(format!("route-{}", n % 50).into())),
        ),
        (
            "rare route, all 200",
            Box::new(|q, _| {
                q.route = Some("rare".into());
                q.limit = 1000;
            }),
        ),
        (
            "unknown route",
            Box::new(|q, _| q.route = Some("none".into())),
        ),
        (
            "outcome failed",
            Box::new(|q, _| q.outcome = Some(Outcome::Failed)),
        ),
        (
            "outcome in-doubt",
            Box::new(|q, _| q.outcome = Some(Outcome::InDoubt)),
        ),
        (
            "outcome pending",
            Box::new(|q, _| q.outcome = Some(Outcome::Pending)),
        ),
        (
            "outcome undone (none)",
            Box::new(|q, _| q.outcome = Some(Outcome::Undone)),
        ),
        (
            "a second of time",
            Box::new(|q, n| {
                q.since = Some(at(n));
                q.until = Some(at(n + 2000));
            }),
        ),
        (
            "route and failed",
            Box::new(|q, n| {
                q.route = Some(format!("route-{}", n % 50).into());
                q.outcome = Some(Outcome::Failed);
            }),
        ),
        (
            "route, in-doubt, before",
            Box::new(|q, n| {
                q.route = Some("route-7".into());
                q.outcome = Some(Outcome::InDoubt);
                q.until = Some(at(n));
            }),
        ),
    ];
    println!("\n| search | found | first, ms | median, ms | longest, ms |\n|---|---|---|---|---|");
    for (what, query) in cases {
        let mut took = Vec::new();
        let mut found = 0;
        for round in 0..9usize {
            let n = (round * 1_234_567 + 4321) % count.max(1);
            let mut asked = Query {
                limit: 100,
                ..Query::default()
            };
            query(&mut asked, n);
            let start = Instant::now();
            found = store.find(&asked).expect("found").len();
            took.push(start.elapsed().as_secs_f64() * 1e3);
        }
        let first = took[0];
        took.sort_by(f64::total_cmp);
        println!(
            "| {what} | {found} | {first:.1} | {:.1} | {:.1} |",
            took[4], took[8]
        );
    }
    println!(
        "\n{:.0} MiB resident after searching",
        resident() as f64 / 1048576.0
    );
}
