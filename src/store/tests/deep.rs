//! Long lanes and many lanes: bounded memory, and the same behaviour as a plain list.

use std::collections::BTreeMap;

use xbus_core::store::{Change, Store};

use super::sim::{Random, SimDisk};
use super::*;

#[test]
fn a_million_entries_keep_few_places_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open(dir.path(), Options::default()).unwrap();
    let one = message("x");
    for _ in 0..1000 {
        let changes = (0..1000).map(|_| put("q", "k", &one, "")).collect();
        commit(&store, changes).unwrap();
    }
    assert_eq!(store.lanes("q")[0].depth, 1_000_000);
    let most = 4 * Options::default().page_entries as u64;
    assert!(store.statistics().places_in_memory <= most);
    store.close().wait();
    drop(store);
    let store = LogStore::open(dir.path(), Options::default()).unwrap();
    assert_eq!(store.queues()[0].depth, 1_000_000);
    assert!(store.statistics().places_in_memory <= most);
    let mut last = 0;
    for _ in 0..1000 {
        let head = store.head("q", "k").unwrap().unwrap();
        assert!(head.at.seq > last);
        last = head.at.seq;
        commit_lazily(&store, vec![settle(&head.at)]).unwrap();
        until("the head moves on", || {
            store.head("q", "k").unwrap().unwrap().at.seq > last
        });
    }
    assert!(store.statistics().places_in_memory <= most);
}

#[test]
fn ten_thousand_lanes_are_kept_apart_and_vanish_when_empty() {
    let disk = SimDisk::default();
    let options = Options {
        page_entries: 256,
        segment_size: 1 << 20,
        ..small()
    };
    let store = open(&disk, options.clone());
    for round in 0..2 {
        let changes = (0..10_000)
            .map(|n| put("q", &format!("k{n}"), &message(&format!("{round}/{n}")), ""))
            .collect();
        commit(&store, changes).unwrap();
    }
    store.close().wait();
    let store = open(&disk, options);
    let lanes = store.lanes("q");
    assert_eq!(lanes.len(), 10_000);
    assert!(
        lanes
            .windows(2)
            .all(|two| two[0].head_seq < two[1].head_seq)
    );
    for round in 0..2 {
        let mut changes = Vec::new();
        for n in 0..10_000 {
            let head = store.head("q", &format!("k{n}")).unwrap().unwrap();
            assert_eq!(body(&head), format!("{round}/{n}"));
            changes.push(settle(&head.at));
        }
        commit(&store, changes).unwrap();
    }
    assert!(store.lanes("q").is_empty() && store.queues().is_empty());
    assert_eq!(store.statistics().places_in_memory, 0);
}

/// What a lane should be.
#[derive(Default)]
struct Lane {
    waiting: BTreeMap<u64, String>,
    parked: BTreeMap<u64, String>,
}

fn compare(store: &LogStore, model: &BTreeMap<String, Lane>) {
    let mut waiting: Vec<(u64, String)> = Vec::new();
    let mut parked: Vec<(u64, String)> = Vec::new();
    for (key, lane) in model {
        let head = store.head("q", key).unwrap();
        assert_eq!(
            head.map(|head| (head.at.seq, body(&head))),
            lane.waiting.first_key_value().map(|(s, t)| (*s, t.clone()))
        );
        waiting.extend(lane.waiting.clone());
        parked.extend(lane.parked.clone());
    }
    waiting.sort();
    parked.sort();
    let listed = |parked| -> Vec<(u64, String)> {
        let entries = store.entries("q", parked, usize::MAX).unwrap();
        entries.iter().map(|e| (e.at.seq, body(e))).collect()
    };
    assert_eq!(listed(false), waiting);
    assert_eq!(listed(true), parked);
    let starts = waiting
        .iter()
        .step_by(7)
        .flat_map(|(seq, _)| [*seq, seq + 1]);
    for from in starts {
        let entries = store.entries_from("q", from, 5).unwrap();
        let numbers: Vec<u64> = entries.iter().map(|e| e.at.seq).collect();
        let later = waiting
            .iter()
            .map(|(seq, _)| *seq)
            .filter(|seq| *seq >= from);
        assert_eq!(numbers, later.take(5).collect::<Vec<u64>>(), "from {from}");
    }
    let depth: u64 = store.lanes("q").iter().map(|lane| lane.depth).sum();
    assert_eq!(depth, waiting.len() as u64);
}

#[test]
fn lanes_behave_as_lists_however_they_are_paged() {
    for seed in 0..12 {
        let mut random = Random::new(1000 + seed);
        let mut disk = SimDisk::default();
        let mut store = open(&disk, small());
        let mut model: BTreeMap<String, Lane> = BTreeMap::new();
        for step in 0..600 {
            let key = format!("k{}", random.below(2));
            let lane = model.entry(key.clone()).or_default();
            let at = |seq: u64| EntryRef {
                queue: "q".into(),
                key: key.as_str().into(),
                seq,
            };
            let nth = |map: &BTreeMap<u64, String>, random: &mut Random| {
                let n = random.below(map.len() as u64) as usize;
                map.keys().nth(n).copied()
            };
            match random.below(20) {
                0..9 => {
                    let text = format!("m{step}");
                    commit(&store, vec![put("q", &key, &message(&text), "")]).unwrap();
                    let all = store.entries("q", false, usize::MAX).unwrap();
                    let seq = all.iter().map(|e| e.at.seq).max().unwrap();
                    lane.waiting.insert(seq, text);
                }
                9..12 => {
                    if let Some(seq) = lane.waiting.keys().next().copied() {
                        commit(&store, vec![settle(&at(seq))]).unwrap();
                        lane.waiting.remove(&seq);
                    }
                }
                12..16 => {
                    if let Some(seq) = nth(&lane.waiting, &mut random) {
                        let park = Change::Park {
                            at: at(seq),
                            reason: "r".into(),
                        };
                        commit(&store, vec![park]).unwrap();
                        let text = lane.waiting.remove(&seq).unwrap();
                        lane.parked.insert(seq, text);
                    }
                }
                16..19 => {
                    if let Some(seq) = nth(&lane.parked, &mut random) {
                        let release = Change::Release { at: at(seq) };
                        commit(&store, vec![release]).unwrap();
                        let text = lane.parked.remove(&seq).unwrap();
                        lane.waiting.insert(seq, text);
                    }
                }
                _ => {
                    if random.chance(50) {
                        store.close().wait();
                    } else {
                        store.kill();
                        disk = disk.after_kill();
                    }
                    store = open(&disk, small());
                    compare(&store, &model);
                }
            }
        }
        compare(&store, &model);
    }
}
