//! The segment that is made ahead: when, that nothing depends on it, and that none is left behind.

use xbus_core::MessageId;
use xbus_core::store::{Change, Outcome, Store, StoreError};

use super::sim::{Random, SimDisk};
use super::*;
use crate::ahead::AHEAD;

/// So many messages fill half of a small segment: the last of them passes its middle.
const HALF: usize = 8;

fn fill(store: &LogStore, from: usize, count: usize) {
    for n in from..from + count {
        let text = format!("m{n}-{}", "z".repeat(1000));
        commit(store, vec![put("q", "", &message(&text), "")]).unwrap();
    }
}

fn check(store: &LogStore, count: usize) {
    let left = store.entries("q", false, usize::MAX).unwrap();
    let numbers: Vec<String> = left
        .iter()
        .map(|queued| body(queued).split('-').next().unwrap().to_owned())
        .collect();
    let wanted: Vec<String> = (0..count).map(|n| format!("m{n}")).collect();
    assert_eq!(numbers, wanted);
    assert!(store.damage().is_empty(), "{:?}", store.damage());
}

fn has(disk: &SimDisk, name: &str) -> bool {
    disk.names().iter().any(|known| known == name)
}

#[test]
fn a_segment_is_made_when_the_last_is_half_full_and_is_gone_on_in() {
    let disk = SimDisk::default();
    let store = open(&disk, small());
    fill(&store, 0, 6);
    assert!(
        !has(&disk, AHEAD),
        "made before half of the segment is full"
    );
    let before = store.disk_bytes();
    // The last of them fills the half: the next one would go into the file, were it there already.
    fill(&store, 6, HALF - 6);
    until("a file made ahead and counted", || {
        store.disk_bytes() == before + small().segment_size
    });
    assert!(has(&disk, AHEAD));
    fill(&store, HALF, 6);
    assert!(has(&disk, "00000002.log") && !has(&disk, AHEAD));
    check(&store, HALF + 6);
    // A power loss, whatever of the names is left.
    for seed in 0..20 {
        let fork = disk.after_kill().cut_power(&mut Random::new(seed));
        check(&open(&fork, small()), HALF + 6);
    }
    store.close().wait();
    assert!(!has(&disk, AHEAD), "left behind by a clean stop");
    check(&open(&disk, small()), HALF + 6);
}

#[test]
fn a_segment_of_reserved_room_gives_way_soon() {
    let options = || Options {
        segment_size: 16 << 20,
        ..small()
    };
    let disk = SimDisk::default();
    let store = open(&disk, options());
    let mut count = 0;
    until("the second segment", || {
        fill(&store, count, 50);
        count += 50;
        has(&disk, "00000002.log")
    });
    let first = disk.bytes("00000001.log").len();
    assert!(first > 1 << 20 && first < 15 << 20, "{first}");
    check(&store, count);
    // One that was made ahead is used to its half before another is made.
    assert!(!has(&disk, AHEAD));
    let after = disk.after_kill();
    store.kill();
    check(&open(&after, options()), count);
}

#[test]
fn what_a_kill_leaves_of_it_is_swept() {
    let disk = SimDisk::default();
    let store = open(&disk, small());
    fill(&store, 0, HALF);
    until("a file made ahead", || has(&disk, AHEAD));
    let after = disk.after_kill();
    store.kill();
    assert!(has(&after, AHEAD));
    let store = open(&after, small());
    assert!(!has(&after, AHEAD));
    fill(&store, HALF, 20);
    check(&store, HALF + 20);
}

#[test]
fn without_room_for_it_the_last_segment_is_filled_all_the_same() {
    let disk = SimDisk::default();
    let store = open(&disk, small());
    disk.limit(Some(disk.used() + 1000));
    fill(&store, 0, 12);
    store.health().unwrap();
    assert!(!has(&disk, AHEAD));
    let error = loop {
        if let Err(error) = commit(&store, vec![put("q", "", &message(&"z".repeat(1000)), "")]) {
            break error;
        }
    };
    assert!(matches!(error, StoreError::Full(_)), "{error:?}");
}

#[test]
fn segments_that_end_by_rows_are_made_ahead_as_long_as_they_become() {
    const ROWS: usize = 200_000;
    let options = Options {
        segment_size: 64 << 20,
        segment_rows: ROWS,
        ..small()
    };
    let disk = SimDisk::default();
    let store = open(&disk, options);
    let journal_rows = |count: usize| {
        let change = |_| Change::Journal(journal(MessageId::new(), "r", Outcome::Delivered));
        for _ in 0..count / 1000 {
            commit(&store, (0..1000).map(change).collect()).unwrap();
        }
    };
    // The first one is of reserved room, and gives way long before it is full.
    until("the second segment", || {
        journal_rows(1000);
        has(&disk, "00000002.log")
    });
    journal_rows(ROWS / 2);
    until("a file made ahead", || has(&disk, AHEAD));
    let len = disk.bytes(AHEAD).len();
    assert!((4 << 20..48 << 20).contains(&len), "{len}");
    assert!(!has(&disk, "00000003.log"));
    until("the third segment", || {
        journal_rows(1000);
        has(&disk, "00000003.log")
    });
    let used = disk.bytes("00000002.log").len();
    assert!(used < len && len < 2 * used, "{used} of {len}");
}
