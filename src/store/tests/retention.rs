//! What is deleted and what never is.

use std::time::Duration;

use xbus_core::store::{Change, Query, Store};

use super::sim::SimDisk;
use super::*;

fn tight() -> Options {
    Options {
        retention: Retention {
            keep: Duration::from_secs(1 << 32),
            max_size: 64 << 10,
        },
        ..small()
    }
}

fn segments(disk: &SimDisk) -> usize {
    let names = disk.names();
    names.iter().filter(|name| name.ends_with(".log")).count()
}

fn write_journal(store: &LogStore, count: usize) {
    for _ in 0..count {
        let mut entry = journal(MessageId::new(), "r", Outcome::Delivered);
        entry.keys = vec![("k".into(), "v".repeat(900))];
        commit(store, vec![Change::Journal(entry)]).unwrap();
    }
}

#[test]
fn old_journal_goes_and_what_waits_stays() {
    let disk = SimDisk::default();
    let store = open(&disk, tight());
    let mut kept = Vec::new();
    for n in 0..5 {
        let one = message(&format!("{n}{}", "w".repeat(500)));
        let mut entry = journal(one.id, "waits", Outcome::Pending);
        entry.targets = vec![target("t", Outcome::Queued)];
        let changes = vec![put("q", "", &one, "t"), Change::Journal(entry)];
        commit(&store, changes).unwrap();
        kept.push(one.id);
        write_journal(&store, 40);
    }
    let parked = store.head("q", "").unwrap().unwrap();
    let park = Change::Park {
        at: parked.at,
        reason: "x".into(),
    };
    commit(&store, vec![park]).unwrap();
    let protocol = Change::Protocol {
        id: kept[0],
        data: "begin".into(),
    };
    write_journal(&store, 200);
    // Of some 28: those with what waits, what the limit leaves, and one that a segment made ahead cut short.
    until("the log is small again", || segments(&disk) < 10);
    let check = |store: &LogStore| {
        let waiting = store.entries("q", false, 10).unwrap();
        let ids: Vec<_> = waiting.iter().map(|e| e.message.id).collect();
        assert_eq!(ids, kept[1..]);
        let parked = store.entries("q", true, 10).unwrap();
        assert_eq!(parked[0].message.id, kept[0]);
        let query = Query {
            outcome: Some(Outcome::Pending),
            ..Query::default()
        };
        assert_eq!(store.find(&query).unwrap().len(), 5);
        for id in &kept {
            let entry = store.entry("q", *id).unwrap().unwrap();
            assert!(!entry.message.body.bytes().is_empty());
        }
    };
    check(&store);
    commit(&store, vec![protocol]).unwrap();
    write_journal(&store, 200);
    check(&store);
    store.kill();
    let disk = disk.after_kill();
    let store = open(&disk, tight());
    check(&store);
    assert!(store.damage().is_empty(), "{:?}", store.damage());
    assert_eq!(store.protocols().len(), 1);
    for name in ["a", "b"] {
        commit(&store, vec![put("other", name, &message(name), "")]).unwrap();
    }
    store.close().wait();
    let store = open(&disk, tight());
    check(&store);
    assert_eq!(store.lanes("other").len(), 2);
}

#[test]
fn a_drained_queue_gives_its_disk_back() {
    let disk = SimDisk::default();
    let store = open(&disk, tight());
    for n in 0..300 {
        let text = format!("{n}{}", "w".repeat(1000));
        commit(&store, vec![put("q", "", &message(&text), "")]).unwrap();
    }
    assert!(store.disk_bytes() > 300_000 && disk.used() > 300_000);
    for _ in 0..300 {
        let head = store.head("q", "").unwrap().unwrap();
        commit(&store, vec![settle(&head.at)]).unwrap();
    }
    // What retention leaves, the reserves, what the two kept checkpoints may still need, and perhaps a
    // segment that was made ahead.
    let ahead = tight().segment_size;
    until("the disk is given back", || disk.used() < 200_000);
    until("it is said so", || store.disk_bytes() < 150_000 + ahead);
}

#[test]
fn age_alone_lets_the_journal_go() {
    let disk = SimDisk::default();
    let options = Options {
        retention: Retention {
            keep: Duration::from_millis(50),
            max_size: u64::MAX,
        },
        ..small()
    };
    let store = open(&disk, options);
    write_journal(&store, 50);
    until("everything old is gone", || {
        let entry = journal(MessageId::new(), "new", Outcome::Delivered);
        commit(&store, vec![Change::Journal(entry)]).unwrap();
        let query = Query {
            route: Some("r".into()),
            ..Query::default()
        };
        store.find(&query).unwrap().is_empty()
    });
}
