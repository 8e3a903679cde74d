//! A full disk: refusals, draining from the reserve, and going on when there is room again.

use std::time::Duration;

use xbus_core::store::{Change, Store, StoreError};

use super::sim::SimDisk;
use super::*;

/// A store on a disk that is full, with this many entries in its lane.
fn fill(disk: &SimDisk) -> (Arc<LogStore>, usize) {
    let store = open(disk, small());
    disk.limit(Some(disk.used() + (40 << 10)));
    let mut kept = 0;
    let error = loop {
        let text = format!("m{kept}{}", "z".repeat(1000));
        match commit(&store, vec![put("q", "", &message(&text), "")]) {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full(_)), "{error:?}");
    assert!(matches!(store.health(), Err(StoreError::Full(_))));
    (store, kept)
}

#[test]
fn a_full_disk_refuses_puts_lets_lanes_drain_and_recovers_by_itself() {
    let disk = SimDisk::default();
    let (store, kept) = fill(&disk);
    assert!(kept > 10);
    let entry = Change::Journal(journal(MessageId::new(), "r", Outcome::Delivered));
    // A journal record that nobody waits for is no reason to refuse a message.
    commit_lazily(&store, vec![entry.clone()]).unwrap();
    assert_eq!(store.entries("q", false, 1000).unwrap().len(), kept);
    let drained = kept / 2;
    for _ in 0..drained {
        let head = store.head("q", "").unwrap().unwrap();
        commit(&store, vec![settle(&head.at)]).unwrap();
    }
    until("the record is counted as dropped", || {
        let _ = commit_lazily(&store, vec![entry.clone()]);
        store.statistics().dropped > 0
    });
    disk.limit(None);
    until("it works again without a restart", || {
        std::thread::sleep(Duration::from_millis(10));
        commit(&store, vec![put("q", "", &message("after"), "")]).is_ok()
    });
    store.health().unwrap();
    store.kill();
    let store = open(&disk.after_kill(), small());
    let left = store.entries("q", false, 1000).unwrap();
    assert_eq!(left.len(), kept - drained + 1);
    assert!(body(&left[0]).starts_with(&format!("m{drained}z")));
    assert_eq!(body(left.last().unwrap()), "after");
}

#[test]
fn a_store_opens_on_a_full_disk_and_drains() {
    let disk = SimDisk::default();
    let (store, kept) = fill(&disk);
    store.kill();
    disk.limit(Some(disk.used()));
    let store = open(&disk, small());
    assert!(matches!(
        commit(
            &store,
            vec![put("q", "", &message(&"n".repeat(20_000)), "")]
        ),
        Err(StoreError::Full(_))
    ));
    for _ in 0..kept {
        let head = store.head("q", "").unwrap().unwrap();
        commit(&store, vec![settle(&head.at)]).unwrap();
    }
    assert!(store.queues().is_empty());
}
